"""Counts requests, inputs, outputs and feedback for Prometheus. With several workers, any worker reports the sum of all.

Names and units follow Prometheus' conventions. Labels have few values: a route's template, a status class, a model
version. Every app has its own registry, so an app that is made again in a notebook cell starts at zero. Several workers
write into one folder (`PROMETHEUS_MULTIPROC_DIR`).
"""

# ruff: noqa: E402
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
if not os.environ.get(FOLDER, "unset").strip():
    del os.environ[FOLDER]  # empty, which the client library would take for a folder when it is imported

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from labsupport import arguments
from labsupport.detection import Detection

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_PLAIN_0_0_4
PROMISED = 1.0  # seconds: a boundary lies on it, so that the share of answers within it is exact
# each 1.5 times the one before, which keeps a quantile's error below an eighth
SECONDS = sorted({*(round(0.01 * 1.5**k, 4) for k in range(17)), PROMISED})
SHARES = [round(0.05 * k, 2) for k in range(1, 20)]
COUNTS = [0, 1, 2, 3, 5, 8, 13, 21, 34]
PIXELS = [10_000 * 4**k for k in range(8)]
UPLOADS = re.compile("/(predict|detect|count-.+)")  # the templates of the routes that take pictures
REJECTED = {
    408: "too slow",
    413: "too large",
    415: "not a picture",
    422: "bad parameters",
    503: "unavailable",  # the queue is full, or the model is not installed
}
VERDICTS = ("correct", "wrong", "corrected", "retry")
WRONG = {"wrong", "corrected"}


class Metrics:
    """The metrics of one app. Counting takes some microseconds, from any thread.

    >>> metrics = Metrics()
    >>> metrics.answered("/predict", "POST", 200, seconds=0.02)
    >>> [line for line in metrics.text().splitlines() if line.startswith("http_requests_total")]
    ['http_requests_total{handler="/predict",method="POST",status="2xx"} 1.0']
    """

    def __init__(self) -> None:
        """Make the metrics. Raises ValueError if `PROMETHEUS_MULTIPROC_DIR` is not a folder that can be written."""
        arguments.variable(FOLDER, _writable, "a folder that can be written")
        self.registry = CollectorRegistry()
        self._count_requests()
        self._count_predictions()
        self._count_remarks()
        self._gauge("process_start_time_seconds", "When the oldest worker started.", "livemin").set(time.time())
        self._lost, self._lock = 0, threading.Lock()

    def _count_requests(self) -> None:
        route = ("handler", "method", "status")
        self.requests = self._counter("http_requests_total", "Requests answered.", *route)
        self.seconds = self._histogram(
            "http_request_duration_seconds", "From request to answer.", SECONDS, "handler", "status"
        )
        self.in_progress = self._gauge("http_requests_in_progress", "Requests under way.", "livesum")
        self.places = self._gauge("slots_limit", "Pictures that may be under way: above, uploads get 503.", "livesum")
        self.rejected = self._counter("input_rejected_total", "Uploads that were refused, by reason.", "reason")
        self.unauthorised = self._counter(
            "tokens_refused_total", "Requests without the right token: it was missing, or wrong.", "reason"
        )
        _begin_with_zeros(self.rejected, REJECTED.values())
        _begin_with_zeros(self.unauthorised, ("missing", "wrong"))

    def _count_predictions(self) -> None:
        self.inference = self._histogram("inference_duration_seconds", "Decoding and detecting.", SECONDS, "version")
        self.brightness = self._histogram("input_image_brightness_ratio", "Mean luma, 0 to 1.", SHARES)
        self.pixels = self._histogram("input_image_pixels", "Width times height.", PIXELS)
        self.predictions = self._counter("predictions_total", "Pictures looked at.", "version")
        self.errors = self._counter("prediction_errors_total", "Pictures on which the model failed.", "version")
        self.empty = self._counter("predictions_empty_total", "Pictures in which nothing was found.", "version")
        self.found = self._histogram("detections_per_picture", "Objects found.", COUNTS, "version")
        self.confidence = self._histogram(
            "prediction_confidence_ratio", "Of the surest object in a picture.", SHARES, "version"
        )
        self.lost = self._counter("log_rows_dropped_total", "Predictions that could not be written down.")

    def _count_remarks(self) -> None:
        self.feedback = self._counter("feedback_total", "What users said of answers.", "verdict")
        _begin_with_zeros(self.feedback, VERDICTS)
        self.spoken = self._counter("feedback_answers_total", "Answers of which users said something.")

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(name, about, labels, registry=self.registry)

    def _histogram(self, name: str, about: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(name, about, labels, buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, about: str, of_workers: Literal["livesum", "livemin"]) -> Gauge:
        return Gauge(name, about, multiprocess_mode=of_workers, registry=self.registry)

    def answered(self, handler: str, method: str, status: int, seconds: float) -> None:
        """Count an answered request. `handler` is the route's template."""
        kind = f"{status // 100}xx"
        self.requests.labels(handler, method, kind).inc()
        self.seconds.labels(handler, kind).observe(seconds)
        if UPLOADS.fullmatch(handler) and method == "POST" and (reason := REJECTED.get(status)):
            self.rejected.labels(reason).inc()

    def predicted(
        self,
        version: str | None,
        latency: float,
        detections: Sequence[Detection] | None,
        features: Mapping[str, float] | None,
        status: int = 200,
    ) -> None:
        """Count a prediction. If there was none, `detections` is None; it counts as an error if the model failed."""
        version = version or "none"
        if detections is None:
            if status >= 500 and status not in REJECTED:
                self.errors.labels(version).inc()
            return
        self.predictions.labels(version).inc()
        self.inference.labels(version).observe(latency)
        self.found.labels(version).observe(len(detections))
        if detections:
            self.confidence.labels(version).observe(max(float(one.confidence) for one in detections))
        else:
            self.empty.labels(version).inc()
        if features:
            self.brightness.observe(features["brightness"])
            self.pixels.observe(features["width"] * features["height"])

    def said(self, remark: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]] = ()) -> None:
        """Count a user's remark (`correct`, `labels`, `retry`) on an answer, but for what `earlier` remarks on it said."""
        known = {what for one in earlier for what in _said(one)}
        if known & WRONG:  # an answer is wrong once, and then corrected
            known |= WRONG
        for what in _said(remark) - known:
            self.feedback.labels(what).inc()
        if not earlier:
            self.spoken.inc()

    def dropped(self, rows: int) -> None:
        """Set the number of rows that the log has dropped so far."""
        with self._lock:
            self.lost.inc(max(0, rows - self._lost))
            self._lost = max(rows, self._lost)

    def text(self, versions: Iterable[tuple[str, str]] = (), unjudged: Mapping[str, float] | None = None) -> str:
        """Return the metrics of every worker in Prometheus' text format.

        `versions` are pairs of a model's name and the version that answers. `unjudged` maps a model to the seconds for
        which an evaluation of its ramp has been overdue.
        """
        answering = set(versions)
        for _, version in answering:
            for metric in (self.predictions, self.errors, self.empty, self.inference, self.found, self.confidence):
                metric.labels(version)
        folder = arguments.variable(FOLDER, Path, "a folder")
        workers = _workers(folder) if folder else [os.getpid()]
        counted = _of_all_workers() if folder else self.registry.collect()
        families = _Families([*counted, *_now(answering, workers, unjudged or {})])
        return prometheus_client.generate_latest(families).decode()


def _of_all_workers() -> Iterable[Metric]:
    families: Iterable[Metric] = MultiProcessCollector(None).collect()  # type: ignore[no-untyped-call]  # the library's
    return families


def _begin_with_zeros(counter: Counter, labels: Iterable[str]) -> None:
    """Make the series now: one that begins at its first count never rose, as far as Prometheus can see."""
    for label in labels:
        counter.labels(label)


class _Families:
    """Collected metrics, in the form of a registry, without the creation times of series.

    Nobody reads these times, and they would double the number of series.
    """

    def __init__(self, families: Iterable[Metric]) -> None:
        self.families = families

    def collect(self) -> Iterator[Metric]:
        for family in self.families:
            family.samples = [one for one in family.samples if one.name != f"{family.name}_created"]
            yield family


class Watch:
    """Counts each request of an app after it was answered, and the requests in progress.

    Paths that the app does not have count as "other", so that a client cannot create new series.
    """

    def __init__(self, app: "ASGIApp", metrics: Metrics, handlers: set[str]) -> None:
        self.app, self.metrics, self.handlers = app, metrics, handlers

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        handler = path if path in self.handlers else "other"
        method = scope["method"] if scope["method"] in ("GET", "POST", "PUT", "HEAD") else "other"

        async def watched(message: "Message") -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.metrics.in_progress.inc()
        try:
            await self.app(scope, receive, watched)
        finally:
            self.metrics.in_progress.dec()
            self.metrics.answered(handler, method, status, time.perf_counter() - started)


def _said(remark: Mapping[str, Any]) -> set[str]:
    """Return the verdicts in a remark.

    >>> sorted(_said({"correct": False, "labels": None, "retry": True}))
    ['retry', 'wrong']
    """
    verdict = "corrected" if remark["labels"] is not None else {True: "correct", False: "wrong"}.get(remark["correct"])
    return {*filter(None, (verdict, "retry" if remark["retry"] else None))}


def _now(versions: set[tuple[str, str]], workers: list[int], unjudged: Mapping[str, float]) -> Iterator[Metric]:
    """Yield the metrics that are computed on request. No worker stores them, because its values would become stale."""
    answering = GaugeMetricFamily("model_info", "1 for a version that answers.", labels=["name", "version"])
    for pair in sorted(versions):
        answering.add_metric(pair, 1)
    yield answering
    overdue = GaugeMetricFamily(
        "rollout_unjudged_seconds", "For how long a look at a ramp has been overdue; 0: none is.", labels=["name"]
    )
    for name, seconds in sorted(unjudged.items()):
        overdue.add_metric([name], seconds)
    yield overdue
    if memory := sum(map(_resident, workers)):
        yield GaugeMetricFamily("process_resident_memory_bytes", "Of all workers together.", memory)


def _writable(text: str) -> Path:
    if not os.access(text, os.W_OK | os.X_OK) or not os.path.isdir(text):
        raise ValueError
    return Path(text)


def _resident(pid: int) -> int:
    """Return the bytes of memory that a process holds; 0 if the system does not report it."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _workers(folder: Path) -> list[int]:
    """Return the process ids of the running workers.

    The requests in progress of an ended worker are removed; its counts are kept.
    """
    living = []
    for pid in sorted({int(file.stem.rsplit("_", 1)[1]) for file in folder.glob("*.db")}):
        if _lives(pid):
            living.append(pid)
        else:
            with suppress(FileNotFoundError):  # another worker, asked at the same time, was faster
                mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]  # the library's
    return living


def _lives(pid: int) -> bool:
    """Return True if this process is alive. A process of another user is not our worker: it got an old worker's number."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
