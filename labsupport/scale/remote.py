"""Use a version that runs on another machine, and share one rollout state among all machines.

`Remote` replaces a `Detector`, so a `Router` can use it for shadow, canary, ramp and rollback as any other version.
`SharedJournal` replaces a `Journal`. One actor in the cluster, the keeper, has the file, and sends each change
immediately to every router in every process.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from labsupport import background, models
from labsupport.detection import Detection, Detector, parse_version, resize_for_network
from labsupport.rollout import Journal, JournalUnavailable, State
from labsupport.scale import local_cluster

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

PATIENCE = 15  # seconds for one picture, asked again as often as it takes
PAUSE = 0.02  # seconds before we ask again
KEEPER_SECONDS = 5  # for the keeper to answer
KEEPER_START_SECONDS = 120  # for its first answer: its process may have to start
HOLD = 10  # seconds for which the keeper holds a question for news


class Replica:
    """One version on a node. It processes one picture at a time on one core."""

    def __init__(self, version: str) -> None:
        cv2.setNumThreads(1)
        self._detector = Detector.load(*parse_version(version), slots=1)

    async def detect(self, small: np.ndarray, shape: tuple[int, int], confidence: float) -> list[Detection]:
        """Return the objects in a picture that had this shape (H, W) before it was resized for the network."""
        return self._detector.detect_resized(small, shape, confidence)  # nobody gets in between: there is one core


class Remote:
    """A version whose replicas run elsewhere. It has `detect(image, confidence)`, `version` and `slots`, as `Detector` has.

    `handle` is a Ray Serve handle to replicas of `Replica`; `slots` is the most pictures that they process in parallel.
    The picture is sent in the size of the network, 519 kB, instead of the 36 MB of a camera's. Detection changes no
    state, so if a replica dies, its picture is sent to another one. Raises `models.ModelUnavailable` if none has
    answered within `PATIENCE` seconds.
    """

    def __init__(self, version: str, handle: "DeploymentHandle[Any]", slots: int) -> None:
        self.version, self.slots = version, slots
        self._handle = handle.options(_by_reference=False)  # over gRPC: the object store would cost twice the CPU time
        self._errors = local_cluster.imported().exceptions
        unavailable = local_cluster.imported_serve().exceptions
        import grpc  # type: ignore[import-untyped]  # comes with ray[serve], without types

        self._died = (
            self._errors.RayActorError,
            self._errors.WorkerCrashedError,
            self._errors.ObjectLostError,
            unavailable.ReplicaUnavailableError,
            grpc.RpcError,  # a replica that ended while it had the picture
        )

    def detect(self, image: np.ndarray, confidence: float = 0.5) -> list[Detection]:
        """Return the same answers as `Detector.detect`. Call it from a thread, not from an event loop."""
        small, end = resize_for_network(image), time.monotonic() + PATIENCE
        lost: BaseException | None = None
        while (left := end - time.monotonic()) > 0:
            try:
                answer = self._handle.detect.remote(small, image.shape[:2], confidence)
                detections: list[Detection] = answer.result(timeout_s=left)
                return detections
            except self._errors.RayTaskError as error:  # what the detector raised, as it raised it
                raise error.cause from None
            except self._died as error:
                lost = error
                time.sleep(PAUSE)
            except TimeoutError:
                break
        raise models.ModelUnavailable(
            f"no machine has answered for {self.version}: send it again in a minute"
        ) from lost

    def __repr__(self) -> str:
        return f"<Remote {self.version}>"


class Keeper:
    """The actor that keeps a journal. Only it opens the file. Each state has a number; the first is 1."""

    def __init__(self, path: Path | str | None, first: State) -> None:
        self._journal, self._news = Journal(path, first), asyncio.Condition()

    async def read(self) -> tuple[int, State]:
        return self._journal.count(), self._journal.state

    async def wait(self, number: int) -> tuple[int, State]:
        """Return the current state when it differs from `number`, or after `HOLD` seconds."""
        try:
            async with asyncio.timeout(HOLD), self._news:
                while (now := await self.read())[0] == number:
                    await self._news.wait()
                return now
        except TimeoutError:
            return await self.read()

    async def write(self, before: State, after: State) -> tuple[int, State, bool]:
        """Set the state to `after` if it still is `before`. Return its number, the state, and whether it was set."""
        taken = self._journal.state == before
        if taken:
            self._journal.change(lambda _: after)
            async with self._news:
                self._news.notify_all()
        return *await self.read(), taken

    async def call(self, name: str, *arguments: Any) -> Any:
        """Call a method of the journal that changes no state: `history`, `claim`, `looked`, `judged`."""
        return getattr(self._journal, name)(*arguments)


class SharedJournal:
    """A `Journal` that several machines share. `keeper` is a handle to the actor `Keeper`.

    `state` is a local copy, so a request needs no call. A process that makes a change sees it immediately; the others
    see it when the keeper has told them. Raises `JournalUnavailable` if the keeper does not answer; then the last known
    state stays.
    """

    def __init__(self, keeper: Any) -> None:
        self._keeper, self._ray = keeper, local_cluster.imported()
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._number: int
        self._state: State
        self._number, self._state = self._ask(keeper.read.remote(), KEEPER_START_SECONDS)
        background.repeat(self._hear, "journal", self._closed)

    @property
    def state(self) -> State:
        """Return the last state that the keeper reported."""
        return self._state

    def change(self, change: Callable[[State], State]) -> State:
        """Change the state as `Journal.change` does. If somebody else changed it in between, `change` is called again."""
        while True:
            before = self._learn(*self._ask(self._keeper.read.remote()))
            after = change(before)
            if after is before:
                return before
            number, state, taken = self._ask(self._keeper.write.remote(before, after))
            learnt = self._learn(number, state)
            if taken:
                return learnt

    def history(self, most: int | None = None) -> list[State]:
        """Return the same as `Journal.history`."""
        states: list[State] = self._call("history", most)
        return states

    def claim(self, ramp: str, interval: float, began: float) -> float:
        """Do the same as `Journal.claim`."""
        return float(self._call("claim", ramp, interval, began))

    def looked(self, ramp: str) -> None:
        """Do the same as `Journal.looked`."""
        self._call("looked", ramp)

    def judged(self, ramp: str) -> float:
        """Do the same as `Journal.judged`."""
        return float(self._call("judged", ramp))

    def close(self) -> None:
        """Stop listening for changes."""
        self._closed.set()

    def _learn(self, number: int, state: State) -> State:
        with self._lock:  # word may come late
            if number > self._number:
                self._number, self._state = number, state
        return state

    def _call(self, name: str, *arguments: Any) -> Any:
        if not self._ray.is_initialized():  # to ask would start a Ray of its own
            raise JournalUnavailable("who answers is kept by an actor, and this process has left its cluster")
        return self._ask(self._keeper.call.remote(name, *arguments))

    def _ask(self, question: Any, seconds: float = KEEPER_SECONDS) -> Any:
        try:
            return self._ray.get(question, timeout=seconds)
        except (self._ray.exceptions.RayActorError, self._ray.exceptions.GetTimeoutError) as error:
            raise JournalUnavailable(f"who answers is kept by an actor, which does not answer: {error}") from error
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None

    def _hear(self) -> bool:
        """Wait once for a change. Return True if there will be no more; raises `JournalUnavailable`."""
        if not self._ray.is_initialized():  # to ask without would start a Ray of its own
            return True
        try:
            self._learn(*self._ask(self._keeper.wait.remote(self._number), HOLD + KEEPER_SECONDS))
        except SystemExit:  # how Ray says that this process has left the cluster
            return True
        return False
