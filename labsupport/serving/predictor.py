"""Runs one prediction in a worker slot (a limit on parallel requests).

Calls `rollout.answering.answer`, then logs, counts and stores the upload. Knows nothing of HTTP: a request arrives as
`Asked`, and the caller passes `render`, which turns a `Prediction` into the answer.
"""

import asyncio
import functools
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from labsupport import images, models
from labsupport.access import Uploads
from labsupport.detection import Detection
from labsupport.log import PredictionLog
from labsupport.monitoring import Metrics
from labsupport.protection import LARGE_BODY, LARGE_PICTURE, Overloaded, Slots, memory_needed
from labsupport.rollout import Router, answering
from labsupport.serving import errors

Answer = TypeVar("Answer")


@dataclass
class Asked:
    """One request for a prediction."""

    upload: bytes
    model: str
    confidence: float
    key: str | None
    record: str | None = None  # the id under which the caller itself reports what became of this
    person: str | None = None  # the id of the person who sent it (`access.users`)


@dataclass(frozen=True)
class Prediction:
    """One prediction: the picture, the detections, the model version and the latency."""

    id: str
    version: str
    latency: float  # seconds
    image: np.ndarray
    detections: list[Detection]

    @property
    def headers(self) -> dict[str, str]:
        return {"X-Prediction-Id": self.id, "X-Model-Version": self.version}


class Predictor:
    """Runs predictions: picks the version, works in a slot, shows the picture to a shadow candidate, and logs the result."""

    def __init__(
        self,
        routers: Mapping[str, Router],
        slots: Slots,
        log: PredictionLog | None,
        uploads: Uploads | None,
        metrics: Metrics,
    ) -> None:
        self.routers, self.slots, self.log, self.uploads, self.metrics = routers, slots, log, uploads, metrics

    async def answer(self, asked: Asked, render: Callable[[Prediction], Answer]) -> Answer:
        """Predict, and return `render(prediction)`. Raises `Overloaded` if the queue is full, and the prediction's own
        errors.
        """
        try:
            large = len(asked.upload) > LARGE_BODY
            need = await asyncio.to_thread(memory_needed, asked.upload) if large else memory_needed(asked.upload)
            large = large or need > LARGE_PICTURE
            return await self.slots.run(self._work, asked, render, need=need, large=large)
        except Overloaded:  # there was a place when the upload began, and none when it had arrived
            self.refused()
            raise

    def _work(self, asked: Asked, render: Callable[[Prediction], Answer]) -> Answer:
        """Decode, detect, render and log. Runs in a slot's thread."""
        id = asked.record or uuid.uuid4().hex
        features: dict[str, float] | None = None

        def write(**row: Any) -> None:
            self._record(asked, features=features if row["status"] == 200 else None, **row)

        def drawn(version: str, latency: float, image: np.ndarray, detections: list[Detection]) -> Answer:
            nonlocal features
            content, features = render(Prediction(id, version, latency, image, detections)), images.features(image)
            return content

        try:
            router = self.router(asked.model)
        except Exception as error:  # no version can answer
            failed = {"detections": None, "status": errors.status(error), "error": type(error).__name__}
            write(id=uuid.uuid4().hex, version=None, latency=0.0, **failed)
            raise
        see = functools.partial(images.decode, asked.upload)
        answer: Answer = answering.answer(
            router, see, asked.confidence, asked.key, id, write, drawn, errors.status, asked.person
        )
        return answer

    def refused(self) -> None:
        """Log that an upload found the queue full. Without these rows the log would look best when the server is
        overloaded.
        """
        if self.log:
            self.log.record(
                id=uuid.uuid4().hex,
                version=None,
                latency=None,
                detections=None,
                features=None,
                status=503,
                error=Overloaded.__name__,
            )

    def router(self, model: str) -> Router:
        """Return the router of a model. Raises `models.ModelUnavailable`."""
        if router := self.routers.get(model):
            return router
        models.locate(model)  # raises if it is not installed
        raise models.NotInstalled(f"{model} was installed after this server started: start the server again")

    def _record(self, asked: Asked, *, version: str | None, latency: float, status: int, **row: Any) -> None:
        self.metrics.predicted(version, latency, row["detections"], row["features"], status)
        if self.log and not (asked.record and status == 200):  # who reports it writes the one row: `records`
            size = len(asked.upload)
            key, person = asked.key, asked.person
            self.log.record(version=version, latency=latency, key=key, person=person, bytes=size, status=status, **row)
            self.metrics.dropped(self.log.dropped)
