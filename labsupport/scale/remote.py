"""Use a version that runs on another machine, and share one rollout state among all machines.

`Remote` replaces a `Detector`, so a `Router` can use it for shadow, canary, ramp and rollback as any other version.
`SharedJournal` replaces a `Journal`. One actor in the cluster, the keeper, has the file, and sends each change
immediately to every router in every process.
"""

import asyncio
import json
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
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
LEFT = "who answers is kept by an actor, and this process has left its cluster"


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
        self._began = path, first.stable
        if (state := self._journal.state).action == "start" and state.stable != first.stable:  # as `Router` does
            self._journal.change(lambda state: replace(state, stable=first.stable, time=time.time()))
        self._writes: dict[int, str] = {}  # the number of each state that this process wrote -> the id of the write

    async def read(self) -> tuple[int, State]:
        """Return the number of the state in force, and the state. Raises `JournalUnavailable`."""
        state = self._journal.state
        if self._journal.trouble:
            raise JournalUnavailable(self._journal.trouble)
        return self._journal.count(), state

    async def began(self) -> tuple[Path | str | None, str]:
        """Return the path and the stable version that this keeper was started with."""
        return self._began

    async def wait(self, number: int) -> tuple[int, State]:
        """Return the current state when it differs from `number`, or after `HOLD` seconds."""
        try:
            async with asyncio.timeout(HOLD), self._news:
                while (now := await self.read())[0] == number:
                    await self._news.wait()
                return now
        except TimeoutError:
            return await self.read()

    async def write(self, number: int, after: State, id: str) -> tuple[int, State, bool]:
        """Set the state to `after` if the state in force still has this number. Return `read()`, and whether it was set.

        Ray calls this again, with the same `id`, if the answer was lost. Then the state is not set twice.
        """
        now, _ = await self.read()
        taken = now == number
        if taken:
            self._journal.change(lambda _: after)
            self._writes[number + 1] = id
            async with self._news:
                self._news.notify_all()
        elif number + 1 in self._writes:
            taken = self._writes[number + 1] == id
        elif now > number:  # an earlier process of this keeper wrote the next state: its content says whose it is
            taken = _content(self._journal.history(now - number)[0]) == _content(after)
        return *await self.read(), taken

    async def call(self, name: str, *arguments: Any) -> Any:
        """Call a method of the journal that changes no state: `history`, `claim`, `looked`, `judged`."""
        await self.read()  # raises also for a file that was emptied, which `history` and `judged` can read
        return getattr(self._journal, name)(*arguments)


def _content(state: State) -> str:
    return json.dumps(asdict(state))


class SharedJournal:
    """A `Journal` that several machines share. `keeper` is a handle to the actor `Keeper`.

    `state` is a local copy, so a request needs no call. A process that makes a change sees it immediately; the others
    see it when the keeper has told them. Raises `JournalUnavailable` if the keeper does not answer; then the last known
    state stays, and `trouble` holds the reason until the keeper answers again.
    """

    def __init__(self, keeper: Any) -> None:
        self._keeper = keeper
        self._lock, self._closed = threading.Lock(), threading.Event()
        self.trouble = ""
        self._number: int
        self._state: State
        self._number, self._state = self._ask(keeper.read, seconds=KEEPER_START_SECONDS)
        background.repeat(self._hear, "journal", self._closed)

    @property
    def state(self) -> State:
        """Return the last state that the keeper reported."""
        return self._state

    def change(self, change: Callable[[State], State]) -> State:
        """Change the state as `Journal.change` does. If somebody else changed it in between, `change` is called again.

        If the keeper does not answer in time, it may still make the change later: `history` shows whether it did.
        """
        while True:
            number, state = self._ask(self._keeper.read)
            before = self._learn(number, state)
            after = change(before)
            if after is before:
                return before
            *news, taken = self._ask(self._keeper.write, number, after, secrets.token_hex(16))
            learnt = self._learn(*news)
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
        return self._ask(self._keeper.call, name, *arguments)

    def _ask(self, method: Any, *arguments: Any, seconds: float = KEEPER_SECONDS) -> Any:
        """Return what a method of the keeper returns, and store in `trouble` whether it could. Raises its errors."""
        try:
            answer = answered(method, *arguments, seconds=seconds)
        except JournalUnavailable as error:
            self.trouble = str(error)
            raise
        self.trouble = ""
        return answer

    def _hear(self) -> bool:
        """Wait once for a change. Return True if there will be no more; raises `JournalUnavailable`."""
        number = 0 if self.trouble else self._number  # no state has number 0: the keeper answers immediately if it can
        try:
            self._learn(*self._ask(self._keeper.wait, number, seconds=HOLD + KEEPER_SECONDS))
        except SystemExit:  # how Ray says that this process has left the cluster
            self.trouble = LEFT
        except JournalUnavailable:
            if self.trouble != LEFT:
                raise
        return self.trouble == LEFT


def answered(method: Any, *arguments: Any, seconds: float = KEEPER_SECONDS) -> Any:
    """Return what a method of the keeper returns. Raises its errors, and `JournalUnavailable` if there is no answer."""
    ray = local_cluster.imported()
    if not ray.is_initialized():  # to ask would start a Ray of its own
        raise JournalUnavailable(LEFT)
    try:
        return ray.get(method.remote(*arguments), timeout=seconds)
    except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
        raise JournalUnavailable(f"who answers is kept by an actor, which does not answer: {error}") from error
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
