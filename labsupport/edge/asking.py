"""Asks a model to look at a station's picture: the server over HTTP, once and without a retry, or the device.

`is_ready` asks the server whether it can look.
"""

import json
import time
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import numpy as np
import requests

from labsupport import images
from labsupport.arguments import number, text
from labsupport.detection import NOT_OURS, Detection, Version, all_plain, read_answer, read_ready
from labsupport.edge.deadline import NoAnswer, exchange

PICTURES_FAULT = (413, 415, 422)  # the server is well, and says no to this picture


class NotTaken(ValueError):
    """Raised if the server does not accept this picture; the message is the server's own."""


class Prediction(NamedTuple):
    """A model's result for a picture; it is written to the server's log."""

    version: str
    latency: float  # seconds that the model took
    detections: list[Detection]
    features: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """Return the prediction in the form that `POST /records` takes.

        >>> from labsupport.detection import Box
        >>> seen = Prediction("v1", 0.1, [Detection("cat", 0.5, Box(1, 2, 3, 4))], {"brightness": 0.5})
        >>> seen.as_json()["detections"]
        [{'label': 'cat', 'confidence': 0.5, 'box': {'left': 1, 'top': 2, 'right': 3, 'bottom': 4}}]
        """
        rows = [{"label": d.label, "confidence": d.confidence, "box": d.box._asdict()} for d in self.detections]
        return {**self._asdict(), "detections": rows}


def look_here(device: Version, picture: np.ndarray, confidence: float) -> Prediction:
    """Return the device's prediction for a picture (uint8, (H, W, 3), BGR), with objects above `confidence`.

    Raises what the device raises, and ValueError or TypeError for a detection or a version that no record can hold.
    """
    started = time.perf_counter()
    detections = all_plain(device.detect(picture, confidence))
    latency = time.perf_counter() - started
    version = text("version", device.version, 200)  # characters, as in a record
    return Prediction(version, latency, detections, images.features(picture))


def look_there(
    server: str,
    headers: Mapping[str, str],
    product: str,
    id: str,
    picture: np.ndarray,
    seconds: float,
    **query: str | float,
) -> Prediction:
    """Return the server's prediction. `id` is that of the record to come; the server then does not log its own answer.

    The picture is sent as PNG, so that no pixel changes. `query` is the model and the confidence. Raises `NotTaken`,
    and `NoAnswer`, also for an answer that is not from our server.
    """
    until = time.monotonic() + seconds
    file = ("picture.png", images.encode(picture, "png"), "image/png")
    form = requests.Request("POST", server, files={"file": file}).prepare()
    own = {"Content-Type": form.headers["Content-Type"], "X-Record-Id": id, "X-Client-Key": quote(product)[:200]}
    assert isinstance(form.body, bytes)  # as of each form with a file
    url = f"{server}/detect?{urlencode(query)}"
    status, body = exchange("POST", url, until - time.monotonic(), form.body, {**headers, **own})
    try:
        answer: Any = json.loads(body) if status in (200, *PICTURES_FAULT) else None
        if status in PICTURES_FAULT:
            raise NotTaken(f"{status}: {text('detail', answer['detail'], 10_000, least=1)}")
        if status == 200:
            if answer["id"] != id:  # only the server knows it, from our request
                raise ValueError(f"id={answer['id']!r}: give that of the request")
            version, detections = read_answer(answer)
            return Prediction(version, number("latency", answer["latency"], 0), detections, images.features(picture))
    except NotTaken:
        raise
    except NOT_OURS as error:
        raise NoAnswer(f"not the lab's server, it answered {status}: {_start(body)}") from error
    raise NoAnswer(f"{status}: {_start(body)}")


def is_ready(server: str, headers: Mapping[str, str], seconds: float) -> bool:
    """Return whether our server is at this address, with its models loaded. Another program that answers 200 is not."""
    try:
        status, body = exchange("GET", f"{server}/ready", seconds, headers=headers)
        return status == 200 and bool(read_ready(json.loads(body)))
    except (NoAnswer, *NOT_OURS):
        return False


def _start(body: bytes) -> str:
    return body[:100].decode(errors="replace")
