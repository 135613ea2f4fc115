"""Each product gets accept, reject or undecided within the deadline. Undecided means neither server nor device could
decide.

The server decides if it answers in time, otherwise the device. The decision is on the disk before `inspect` returns it.
It is sent to the server as soon as the server is back.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np

from labsupport import arguments, images
from labsupport.detection import Detection, Version
from labsupport.edge.asking import NotTaken, Prediction, is_ready, look_here, look_there
from labsupport.edge.breaker import CircuitBreaker
from labsupport.edge.camera import LONGEST_NAME, Camera, CameraUnavailable
from labsupport.edge.deadline import LONGEST, NoAnswer, Worker
from labsupport.edge.forwarder import Forwarder
from labsupport.edge.outbox import Outbox, OutboxUnavailable
from labsupport.protection import security

__all__ = ["Camera", "CameraUnavailable", "Decision", "InspectionStation", "Judge", "OutboxUnavailable", "wants"]

Judge = Callable[[list[Detection]], bool | None]  # True: accept, False: reject, None: it cannot tell
REMEMBERED = 50  # durations that the reserves are taken from
PROBE = 2.0  # seconds for the server to say that it is ready

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Decision:
    """The decision about one product. Made by `InspectionStation.inspect`."""

    product: str
    verdict: str  # "accept", "reject" or "undecided"
    decided_by: str  # "server", "device", or "nobody" if it is undecided
    version: str | None  # the model version that looked; None if none did
    latency: float  # seconds until it was decided; to store it comes on top
    reason: str  # why it was not the server, or why it is undecided; "" if all went well
    time: float  # seconds since the epoch


def wants(label: str, at_least: int = 1, low: float = 0.3, high: float = 0.5) -> Judge:
    """Return a judge that accepts a product with at least `at_least` objects of a kind. It returns None if it cannot tell.

    Objects above the confidence `high` count as present, those below `low` as absent. Between the two the judge is not
    sure. Raises ValueError unless 0 <= low <= high <= 1 and `at_least` is 1 or more.

    >>> from labsupport.detection import Box
    >>> judge = wants("clock", low=0.3, high=0.6)
    >>> [judge([Detection("clock", sure, Box(0, 0, 9, 9))]) for sure in (0.2, 0.5, 0.9)]
    [False, None, True]
    """
    label, at_least = arguments.text("label", label, least=1), arguments.number("at_least", at_least, 1, whole=True)
    low = arguments.number("low", low, 0, 1)
    high = arguments.number("high", high, low, 1)

    def judge(detections: list[Detection]) -> bool | None:
        sure = [detection.confidence for detection in detections if detection.label == label]
        if sum(confidence > high for confidence in sure) >= at_least:
            return True
        return None if sum(confidence > low for confidence in sure) >= at_least else False

    return judge


class InspectionStation:
    """Decides about products within a deadline, with or without the server, and sends its decisions to the server.

    `inspect` asks the server first. If the server fails, is too slow, or has failed three times in a row (`breaker`),
    the device decides; if the device cannot either, the product is undecided. A part of the deadline is reserved for
    the device and as much for the disk: for each four times its worst recent duration, at least a tenth and at most a
    third of the deadline. The server cannot make a decision late. A slow disk can, because the station waits for it.

    What is promised:

    - A decision is on the disk before `inspect` returns it, and is final. After kill -9 or a power cut the restarted
      station returns it again. So a caller acts at least once on each decision, and always the same way.
    - A decision that the disk does not take is undecided, and only such a product may be decided again.
    - Each record arrives at the server, in order, and is in its log once. The station sends it until the server has
      confirmed it, and the server takes each id once.
    - The server does not log its own answers to a station, because the station's record is the one row. So an answer
      that came too late is not counted beside the device's answer.

    With five detections a product takes 1.3 kB in the outbox while it waits, and 0.25 kB for ever. One product a second
    takes 110 MB in a day without the server. Of these 22 MB stay, and the rest is used again.
    """

    def __init__(
        self,
        server: str,
        device: Version | None,
        judge: Judge,
        outbox: Outbox,
        deadline: float,
        model: str = "yolov3-tiny",
        confidence: float = 0.3,
    ) -> None:
        """Measure how long the device and the disk take, and start.

        `server` is a URL; the token in `LAB_TOKEN` is sent with each request. `device` has `detect(image, confidence)`,
        or is None if there is no device. `judge` turns the detections above `confidence` into a verdict; it must be
        fast. `deadline` is in seconds. Raises ValueError for a deadline that device and disk alone would miss, and for
        an invalid argument. Then no thread is left, and the outbox stays open.
        """
        if not (device is None or (hasattr(device, "detect") and isinstance(getattr(device, "version", None), str))):
            raise ValueError(f"device={arguments.shown(device)}: give a Detector, or None where there is none")
        if not callable(judge):
            raise ValueError(f"judge={arguments.shown(judge)}: give a function of detections, such as wants()")
        if not isinstance(outbox, Outbox):
            raise ValueError(f"outbox={arguments.shown(outbox)}: give an Outbox")
        self.server, self.device, self.judge, self.outbox = arguments.address("server", server), device, judge, outbox
        self.deadline = arguments.number("deadline", deadline, 0, LONGEST, ends=False)
        self.model = arguments.text("model", model, most=100, least=1)
        self.confidence = arguments.number("confidence", confidence, 0, 1)
        token = security.token()
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._asker, self._looker = Worker("ask the server"), Worker("ask the device")
        self._looks: deque[float] = deque(maxlen=REMEMBERED)  # seconds
        self._stores: deque[float] = deque(maxlen=REMEMBERED)
        self._failing = False
        self.breaker = CircuitBreaker(self._ready)
        try:
            self._warm_up()
            self._forwarder = Forwarder(outbox, self.server, self._headers)
        except BaseException:
            self._asker.close()
            self._looker.close()
            raise
        self._forwarder.wake()

    def inspect(self, product: str, picture: np.ndarray | None) -> Decision:
        """Return the decision about a product: an earlier one, or a new one within the deadline.

        `picture` is uint8, (H, W, 3), BGR. If it is None, the product is undecided. Raises ValueError for a name that
        is empty, longer than 200 characters or not printable, and nothing else.

        >>> import tempfile
        >>> from labsupport import images, paths
        >>> from labsupport.detection import Detector
        >>> folder = tempfile.TemporaryDirectory()
        >>> clock = images.decode((paths.IMAGES / "clock.png").read_bytes())
        >>> outbox = Outbox(f"{folder.name}/outbox.db")
        >>> with InspectionStation("http://127.0.0.1:9", Detector.load(), wants("clock"), outbox, deadline=5) as station:
        ...     decision = station.inspect("p1", clock)
        >>> decision.verdict, decision.decided_by, decision.reason.split(":")[0]
        ('accept', 'device', 'server')
        >>> folder.cleanup()
        """
        if not (isinstance(product, str) and 0 < len(product) <= LONGEST_NAME and product.isprintable()):
            raise ValueError(f"product={product!r}: give a printable name of 1 to {LONGEST_NAME} characters")
        started = time.monotonic()
        try:
            if kept := self.outbox.get(product):
                return Decision(product=product, **kept)
        except OutboxUnavailable as error:
            return self._undecided(product, started, f"outbox: {error}")
        prediction, by, reason = self._look(product, picture, started + self.deadline - self._reserve(self._stores))
        return self._store(self._judged(product, started, prediction, by, reason), prediction)

    def forward(self) -> int:
        """Send all waiting records now, not in the background. Return the number of records that the server accepted.

        Raises `deadline.NoAnswer` if the server does not take them; then they keep waiting.
        """
        return self._forwarder.forward()

    def close(self) -> None:
        """Close the connection to the server, and the outbox. Waiting records are sent when a station opens the outbox
        again.
        """
        self.breaker.stop()
        self._forwarder.close()
        self._asker.close()
        self._looker.close()
        self.outbox.close()

    def __enter__(self) -> "InspectionStation":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _warm_up(self) -> None:
        blank = np.zeros((480, 640, 3), np.uint8)
        for _ in range(3):
            self._timed(self._stores, self.outbox.touch)
            if self.device:
                self._timed(self._looks, partial(look_here, self.device, blank, self.confidence))
        needed = max(self._stores) + max(self._looks, default=0.0)
        if needed > self.deadline:
            raise ValueError(f"deadline={self.deadline}: device and disk alone take {needed:.2g} s, give twice that")

    def _look(self, product: str, picture: np.ndarray | None, until: float) -> tuple[Prediction | None, str, str]:
        """Return the prediction, who made it, and why the one asked before did not. Errors become reasons."""
        if picture is None:
            return None, "nobody", "no picture"
        try:
            picture = images.checked("picture", picture)
        except ValueError as error:  # neither the server nor the device can look at it
            return None, "nobody", str(error)
        reasons: list[str] = []
        server: Callable[[np.ndarray, float], Prediction] = partial(self._ask_server, product)
        for by, ask in (("server", server), ("device", self._ask_device)):
            try:
                return ask(picture, until), by, "; ".join(reasons)
            except Exception as error:
                reasons.append(f"{by}: {str(error) or type(error).__name__}")
        return None, "nobody", "; ".join(reasons)

    def _ask_server(self, product: str, picture: np.ndarray, until: float) -> Prediction:
        if not self.breaker.closed:
            raise NoAnswer("not asked, it failed before")
        until -= self._reserve(self._looks) if self.device else 0.0
        id, seconds = self.outbox.id_of(product), until - time.monotonic()
        query: dict[str, str | float] = {"model": self.model, "confidence": self.confidence}
        ask = partial(look_there, self.server, self._headers, product, id, picture, seconds, **query)
        try:
            prediction = self._asker.do(ask, until)
        except NotTaken:  # the server is well
            self.breaker.succeeded()
            raise
        except OSError:
            self.breaker.failed()
            raise
        self.breaker.succeeded()
        return prediction

    def _ask_device(self, picture: np.ndarray, until: float) -> Prediction:
        if not self.device:
            raise NoAnswer("there is none")
        look = partial(look_here, self.device, picture, self.confidence)
        return self._looker.do(partial(self._timed, self._looks, look), until)

    def _judged(self, product: str, started: float, seen: Prediction | None, by: str, reason: str) -> Decision:
        if seen is None:
            return self._undecided(product, started, reason)
        about = f"judge of what the {by} saw"  # by these words the log knows a device's answer
        try:
            accepted = self.judge(seen.detections)
            if not isinstance(accepted, bool | np.bool_ | None):
                raise ValueError(f"gave {arguments.shown(accepted)}, not True, False or None")
        except (Exception, SystemExit) as error:  # the judge is the user's code, and the line goes on
            return self._undecided(product, started, f"{about}: {type(error).__name__}: {error}", seen.version)
        if accepted is None:
            return self._undecided(product, started, f"judge: not sure of what the {by} saw", seen.version)
        verdict = "accept" if accepted else "reject"
        return Decision(product, verdict, by, seen.version, time.monotonic() - started, _plain(reason), time.time())

    def _undecided(self, product: str, started: float, reason: str, version: str | None = None) -> Decision:
        latency = time.monotonic() - started
        return Decision(product, "undecided", "nobody", version, latency, _plain(reason), time.time())

    def _store(self, decision: Decision, prediction: Prediction | None) -> Decision:
        """Return the decision that counts. If it cannot be stored it is undecided: a restart would lose it."""
        fields = {name: value for name, value in asdict(decision).items() if name != "product"}
        try:
            put = partial(self.outbox.put, decision.product, fields, prediction and prediction.as_json())
            kept = self._timed(self._stores, put)
        except (OutboxUnavailable, ValueError, TypeError) as error:
            self._complain(error)
            return replace(decision, verdict="undecided", decided_by="nobody", reason=f"outbox: {error}")
        self._failing = False
        self._forwarder.wake()
        return Decision(product=decision.product, **kept)

    def _complain(self, error: Exception) -> None:
        if not self._failing:  # once, not with every product
            self._failing = True
            logger.error("decisions cannot be stored, so products are undecided: %s", error)

    def _ready(self) -> bool:
        if ready := is_ready(self.server, self._headers, PROBE):
            self._forwarder.wake()
        return ready

    def _reserve(self, durations: Sequence[float]) -> float:
        """Return four times the worst recent duration: at least a tenth and at most a third of the deadline."""
        return min(max(4 * max(durations, default=0.0), self.deadline / 10), self.deadline / 3)

    def _timed(self, durations: deque[float], work: Callable[[], Result]) -> Result:
        started = time.monotonic()
        result = work()
        durations.append(time.monotonic() - started)
        return result


def _plain(reason: str) -> str:
    """Return a reason in the form that the server takes: at most 1,000 printable characters in one line."""
    return "".join(sign if sign.isprintable() else "?" for sign in reason[:1_000])
