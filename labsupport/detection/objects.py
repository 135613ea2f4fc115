"""Name what every detector takes and returns: a version of a model, and the objects that it finds."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np


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


class Version(Protocol):
    """Describe a version of a model: what a `Router` asks, and what a batch or a station uses. `Detector` is one."""

    @property
    def version(self) -> str:
        """Return the name that the log and the headers show, as "yolov3-tiny/openvino-f32"."""

    def detect(self, image: np.ndarray, confidence: float = 0.5) -> list[Detection]:
        """Return the objects in a picture (uint8, (H, W, 3), BGR) above `confidence` (0 to 1)."""
