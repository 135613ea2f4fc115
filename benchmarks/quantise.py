"""Find the ranges for `quantisation.RANGES`, and say how well this CPU's int8 and bf16 agree with f32.

`python -m benchmarks.quantise` prints both. It takes the lowest and highest output of each convolution over every second
frame of the street, whole and in two crops each, zoomed, mirrored and lit by chance. The ranges are rounded outwards to a
tenth. The agreement is measured on these pictures, and on those of `compute.measure`, which give no ranges.
"""

from pathlib import Path

import cv2
import numpy as np
import openvino as ov

from labsupport import compute, images, models, paths
from labsupport.detection import Detector, resize_for_network

CROPS = 2  # of each frame
QUANTISED = (2, 3, 4, 5, 6, 7, 10)  # convolutions whose outputs become 8 bits
TOGETHER = (4, 10)  # they are concatenated, so one range serves both


def main() -> None:
    lowest, highest = extremes(models.network("yolov3-tiny"), calibration())
    lowest, highest = np.floor(lowest * 10) / 10, np.ceil(highest * 10) / 10
    for ends, widest in ((lowest, min), (highest, max)):
        ends[list(TOGETHER)] = widest(ends[list(TOGETHER)])
    print({number: (round(float(lowest[number]), 1), round(float(highest[number]), 1)) for number in QUANTISED})
    for name, shown in (("calibration", calibration()), ("the others", compute.pictures())):
        right = answers("f32", shown)
        for precision in ("int8", "bf16"):
            given = answers(precision, shown)
            shares = [f"{compute.found(given, right, overlap):.1%}" for overlap in (0.8, 0.9)]
            print(f"{name}, {precision}: {' and '.join(shares)} of {sum(map(len, right))} objects at IoU > 0.8 and 0.9")


def answers(precision: str, shown: list[np.ndarray]) -> list[list[tuple]]:
    """Return what the detector finds in each picture, as `compute.found` reads it."""
    detector = Detector.load(precision=precision)
    return [[(one.label, one.confidence, *one.box) for one in detector.detect(picture)] for picture in shown]


def calibration() -> list[np.ndarray]:
    """Return the pictures that give the ranges, resized for the network."""
    rng, frames = (
        np.random.default_rng(0),
        sorted((paths.IMAGES / "street").iterdir())[1::2],
    )  # `measure` takes the others
    whole = [images.decode(path.read_bytes()) for path in frames]
    return [
        resize_for_network(image) for frame in whole for image in (frame, *(crop(frame, rng) for _ in range(CROPS)))
    ]


def crop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    share, mirrored = rng.uniform(0.5, 1), rng.random() < 0.5
    height, width = (int(side * share) for side in image.shape[:2])
    top, left = rng.integers(image.shape[0] - height + 1), rng.integers(image.shape[1] - width + 1)
    part = image[top : top + height, left : left + width]
    lit = cv2.convertScaleAbs(part, alpha=rng.uniform(0.7, 1.25), beta=rng.uniform(0, 15))
    return lit[:, ::-1] if mirrored else lit


def extremes(network: Path, pictures: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the lowest and the highest output of each convolution of an OpenVINO network over these pictures."""
    core = ov.Core()
    model = core.read_model(network)
    steps = {step.get_friendly_name(): step for step in model.get_ordered_ops()}
    count = sum(name.startswith("convolution ") for name in steps)
    model = ov.Model([steps[f"convolution {number}"].output(0) for number in range(count)], model.get_parameters())
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ends = []
    for picture in pictures:
        outputs = compiled(picture[None])
        ends.append([(outputs[number].min(), outputs[number].max()) for number in range(count)])
    low, high = np.array(ends).transpose(2, 0, 1)
    return low.min(axis=0), high.max(axis=0)


if __name__ == "__main__":
    main()
