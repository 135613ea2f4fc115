"""Validate the JSON of a server's `/detect` and `/ready`, because another program may be on that port."""

from typing import Any

from labsupport.arguments import number, shown, text
from labsupport.detection.objects import MOST_NAME, MOST_PIXEL, Box, Detection

MOST_DETECTIONS = 10_000  # in an answer, as in a record
NOT_OURS = (ValueError, KeyError, TypeError, RecursionError)  # errors of reading the answer of another program


def read_ready(said: Any) -> list[str]:
    """Return the versions in an answer of `GET /ready`, at least one. Raises one of `NOT_OURS` for anything else.

    >>> read_ready({"status": "ready", "versions": ["yolov3-tiny/openvino-f32"]})
    ['yolov3-tiny/openvino-f32']
    >>> read_ready({"status": "ready", "versions": []})
    Traceback (most recent call last):
    ValueError: versions=[]: give the names of the versions that answer
    """
    versions = said["versions"]
    if said["status"] != "ready" or not isinstance(versions, list) or not versions:
        raise ValueError(f"versions={shown(versions)}: give the names of the versions that answer")
    return [text("versions", one, MOST_NAME, least=1) for one in versions]


def read_answer(said: Any) -> tuple[str, list[Detection]]:
    """Return the version and the detections in an answer of `POST /detect`. Raises one of `NOT_OURS` for anything else.

    >>> read_answer({"version": "v1", "detections": [{"label": "cat", "confidence": float("nan"), "box": {}}]})
    Traceback (most recent call last):
    ValueError: confidence=nan: give a number from 0 to 1
    """
    if not isinstance(said["detections"], list) or len(said["detections"]) > MOST_DETECTIONS:
        raise ValueError(f"detections={shown(said['detections'])}: give a list of at most {MOST_DETECTIONS:,}")
    detections = []
    for one in said["detections"]:
        label, confidence = text("label", one["label"], MOST_NAME), number("confidence", one["confidence"], 0, 1)
        sides = (number(side, one["box"][side], -MOST_PIXEL, MOST_PIXEL, whole=True) for side in Box._fields)
        detections.append(Detection(label, confidence, Box(*sides)))
    return text("version", said["version"], MOST_NAME), detections
