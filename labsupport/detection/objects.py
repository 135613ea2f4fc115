"""Name what every detector takes and returns: a version of a model, and the objects that it finds."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from labsupport.arguments import number, shown, text

MOST_NAME, MOST_PIXEL = 200, 1_000_000  # characters of a label, and how far a box may lie outside of its picture
MOST_DETECTIONS = 10_000  # in one picture


class Box(NamedTuple):
    """Hold the place of an object in pixels. `right` and `bottom` are just past the last pixel."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Detection:
    """Hold one object that was found.

    >>> Detection("clock", 0.98765, Box(10, 20, 110, 120))
    Detection(label='clock', confidence=0.98765, box=Box(left=10, top=20, right=110, bottom=120))
    """

    label: str
    confidence: float
    box: Box


def plain(one: Detection) -> Detection:
    """Return a detection in Python's own types, with a box in whole pixels, as logs and answers need it.

    A model may give a tuple or an array as its box, numbers of NumPy, or fractions of a pixel. Raises ValueError for a label
    that is no text of at most `MOST_NAME` characters, a confidence that is not between 0 and 1, and a box that is not four
    numbers of at most `MOST_PIXEL`.

    >>> plain(Detection("clock", np.float32(0.5), (1, 2.25, np.int64(3), 4)))
    Detection(label='clock', confidence=0.5, box=Box(left=1, top=2, right=3, bottom=4))
    """
    try:
        left, top, right, bottom = (round(number("box", side, -MOST_PIXEL, MOST_PIXEL)) for side in one.box)
        confidence = 1 if 1 < one.confidence < 1 + 1e-6 else one.confidence  # a sum of shares in 32 bits may be above 1
        return Detection(
            str(text("label", one.label, MOST_NAME)),
            number("confidence", confidence, 0, 1),
            Box(left, top, right, bottom),
        )
    except (ValueError, TypeError, AttributeError) as error:
        words = "give it a label that is text, a confidence from 0 to 1, and a box of four numbers"
        raise ValueError(f"{shown(one)} is no detection: {words} ({error})") from error


def all_plain(found: Iterable[Detection]) -> list[Detection]:
    """Return the detections that a version found in a picture as a list, each as `plain` does.

    Raises the errors of `plain`, and ValueError for more than `MOST_DETECTIONS`.

    >>> all_plain([])
    []
    """
    detections = [plain(one) for one in found]
    if len(detections) > MOST_DETECTIONS:
        raise ValueError(f"{len(detections):,} detections in one picture: give at most {MOST_DETECTIONS:,}")
    return detections


class Version(Protocol):
    """Describe a version of a model: what a `Router` asks, and what a batch or a station uses. `Detector` is one."""

    @property
    def version(self) -> str:
        """Return the name that the log and the headers show, as "yolov3-tiny/openvino-f32"."""

    def detect(self, image: np.ndarray, confidence: float = 0.5) -> list[Detection]:
        """Return the objects in a picture (uint8, (H, W, 3), BGR) above `confidence` (0 to 1)."""
