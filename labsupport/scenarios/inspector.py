"""Detect scratches on pictures of phones, with the same call as every other detector.

An `Inspector` holds one network (see `inspector_training`) and has `detect(image, confidence)`. So a server, a client
and a router use it as they use a `detection.Detector`. The network divides the picture into a grid of 16 x 16 cells,
and gives each cell a confidence, 0 to 1, that a scratch runs through it. Cells that touch, with enough confidence, are
one scratch.
"""

import functools
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from labsupport import arguments, images
from labsupport.detection import Box, Detection, draw_boxes
from labsupport.models import runtimes
from labsupport.scenarios import inspector_training
from labsupport.scenarios.phones import SIZE, Inspection
from labsupport.scenarios.traffic import wait

if TYPE_CHECKING:
    from labsupport.rollout import Router

PART = 8  # phones after which a line waits for the candidate in shadow; half of what may wait for it


class Inspector:
    """A model that finds scratches on phones. Made by `Inspector.load`.

    >>> from labsupport import scenarios
    >>> inspector = Inspector.load("stable")
    >>> inspector.version
    'scratches/stable'
    >>> phones = scenarios.inspection(2, seed=3, scratch_share=1.0)
    >>> [found.label for found in inspector.detect(phones.images[0])]
    ['scratch']
    """

    def __init__(self, name: str, heat_map: Callable[[np.ndarray], np.ndarray]) -> None:
        self.name, self.version = name, f"scratches/{name}"
        self._heat_map = heat_map

    @classmethod
    def load(
        cls,
        name: str = "stable",
        slots: int | None = None,
        recipes: Mapping[str, inspector_training.Recipe] = inspector_training.RECIPES,
    ) -> "Inspector":
        """Load one of the networks of `recipes`, and warm it up. Those of other recipes than `RECIPES` are trained first.

        `slots` pictures are processed in parallel, each by one core; None is one for every core. Raises ValueError for
        a name that has no recipe, and `models.ModelUnavailable` if TensorFlow, which trains, is missing.
        """
        if name not in recipes:
            raise ValueError(f"no inspector is called {name!r}: choose from {', '.join(recipes)}")
        make = functools.partial(
            _network, inspector_training.networks(recipes) / f"{name}.xml", slots or os.cpu_count() or 1
        )
        return cls(name, runtimes.made(make, np.zeros((SIZE, SIZE, 3), np.uint8)))

    def heat_map(self, image: np.ndarray) -> np.ndarray:
        """Return the network's confidence, 0 to 1, that a scratch runs through each cell: (16, 16), float32.

        The picture is uint8, (H, W, 3), BGR; one of another size than the camera's is resized to it. Raises ValueError
        for anything else.
        """
        image = images.checked("image", image)
        return self._heat_map(cv2.resize(image, (SIZE, SIZE)) if image.shape[:2] != (SIZE, SIZE) else image)

    def score(self, image: np.ndarray) -> float:
        """Return the confidence, 0 to 1, that there is a scratch anywhere: the highest of all cells."""
        return float(self.heat_map(image).max())

    def detect(self, image: np.ndarray, confidence: float = 0.5) -> list[Detection]:
        """Return the scratches in a picture (uint8, (H, W, 3), BGR), by falling confidence, each above `confidence` (0
        to 1).

        A box surrounds whole cells, so its edges are right to about a cell: 8 pixels of 128. Raises ValueError for
        another image or confidence.
        """
        confidence = arguments.number("confidence", confidence, 0, 1)
        heat = self.heat_map(image)
        count, regions, extents, _ = cv2.connectedComponentsWithStats(
            (heat > confidence).astype(np.uint8), connectivity=8
        )
        across, down = image.shape[1] / heat.shape[1], image.shape[0] / heat.shape[0]
        scratches = []
        for region in range(1, count):  # 0 is what is around them
            left, top, width, height = extents[region, :4].tolist()
            edges = left * across, top * down, (left + width) * across, (top + height) * down
            scratches.append(Detection("scratch", float(heat[regions == region].max()), Box(*map(round, edges))))
        return sorted(scratches, key=lambda detection: -detection.confidence)

    def __repr__(self) -> str:
        return f"<Inspector {self.version}>"


def enlarged(phone: np.ndarray, found: Sequence[Detection] = (), times: int = 3) -> np.ndarray:
    """Return a phone's picture `times` as large, brighter for the screen, with its detections in boxes.

    >>> enlarged(np.zeros((128, 128, 3), np.uint8)).shape
    (384, 384, 3)
    """
    large = np.kron(cv2.convertScaleAbs(phone, alpha=1.4), np.ones((times, times, 1), np.uint8))
    boxes = [Detection(one.label, one.confidence, Box(*(times * edge for edge in one.box))) for one in found]
    return draw_boxes(large, boxes) if boxes else large


def sheet(phones: np.ndarray, marked: Collection[int] = (), columns: int = 6) -> np.ndarray:
    """Return one picture of several phones, row by row. Those whose numbers are `marked` get a frame.

    >>> sheet(np.zeros((12, 128, 128, 3), np.uint8)).shape
    (512, 1536, 3)
    """
    tiles = [enlarged(phone, times=2) for phone in phones]
    for number in marked:
        cv2.rectangle(tiles[number], (4, 4), (2 * SIZE - 5, 2 * SIZE - 5), (51, 119, 238), 6)  # orange
    return np.vstack([np.hstack(tiles[row : row + columns]) for row in range(0, len(tiles), columns)])


def _network(file: Path, slots: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that computes the heat map of one picture with OpenVINO, one core for each of `slots` pictures."""
    import openvino as ov

    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": slots,
        "INFERENCE_NUM_THREADS": slots,
        "ENABLE_CPU_PINNING": False,
    }
    compiled = ov.Core().compile_model(file, "CPU", options)
    free: SimpleQueue[Any] = SimpleQueue()
    for _ in range(slots):
        free.put(compiled.create_infer_request())

    def heat_map(image: np.ndarray) -> np.ndarray:
        request = free.get()
        try:
            answers = request.infer(inspector_training.contrast(image[np.newaxis]), share_inputs=True)
            heat: np.ndarray = answers[0][0, ..., 0]
            return heat
        finally:
            free.put(request)

    return heat_map


class Line:
    """Show phones to the version that a router chooses, and to a candidate in shadow. Then a person says what is right.

    The router's log gets the answers and the remarks. `pictures` keeps each picture under its id in the log. Phones come
    only as fast as a candidate in shadow answers, so it is shown every phone, also on a busy machine.
    """

    def __init__(self, router: "Router") -> None:
        if router.log is None:
            raise ValueError("the answers go to the log: give Router(..., log=PredictionLog(...))")
        self.router, self.log, self.pictures = router, router.log, dict[str, np.ndarray]()

    def inspect(self, phones: Inspection, labels: np.ndarray | None = None) -> None:
        """Inspect each phone once. Waits until all answers are in the log, before the person looks at the phones.

        `labels` says which phones the person calls defects, as bool (N,). By default the person is always right.
        """
        remarks: list[tuple[str, dict[str, Any]]] = []
        start = time.time()
        for picture, scratched in zip(phones.images, phones.truth if labels is None else labels, strict=True):
            key = str(len(self.pictures))
            id = f"phone {key}"
            version, began = self.router.choose(key), time.perf_counter()
            found = version.detect(picture)
            latency, features = time.perf_counter() - began, images.features(picture)
            self.log.record(
                id=id, key=key, version=version.version, latency=latency, detections=found, features=features
            )
            self.router.mirror(id, picture, 0.5, key)
            self.pictures[id] = picture
            right = bool(found) == scratched
            remarks.append((id, {"correct": True} if right else {"labels": ["scratch"] * int(scratched)}))
            if len(remarks) % PART == 0:
                self._wait_for_shadow(len(remarks), start)
        self._wait_for_shadow(len(remarks), start)
        self.log.flush()
        for id, remark in remarks:
            self.log.feedback(id, **remark)

    def _wait_for_shadow(self, shown: int, start: float) -> None:
        """Wait until a candidate in shadow, if there is one, has answered all phones shown since `start`."""

        def answered() -> bool:
            self.log.flush()
            return len(self.log.columns("id", since=start, shadow=True)["id"]) >= shown

        if self.router.state.mode == "shadow":
            wait(answered, f"{shown} answers of {self.router.state.candidate} in shadow")
