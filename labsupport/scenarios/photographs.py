"""Simulate a camera that watches a street: objects that a detector finds or misses, and light that gets darker."""

from dataclasses import dataclass
from typing import Unpack

import numpy as np

from labsupport import images, paths
from labsupport.scenarios.worlds import Stream, When, _plan, _stream

OBJECTS = {  # of `photos`: what is to be seen in each, whether a detector finds it or not
    "apple.jpg": ("apple",),
    "cat.png": ("cat",),
    "clock.png": ("clock",),
    "far_stop_sign.png": ("stop sign",),
    "fruits.jpg": ("banana", "orange"),
    "gallery.jpg": ("apple", "cat", "cup", "orange", "person"),
    "grace_hopper.jpg": ("person", "tie"),
    "oranges.png": ("orange",),
    "person_dog.jpg": ("dog", "horse", "person"),
    "photographer.png": ("person",),
    "stop_sign.png": ("stop sign",),
    "street_1.jpg": ("car", "person"),
    "street_2.jpg": ("car", "person"),
    "traffic_light.png": ("traffic light",),
    "two_clocks.png": ("clock",),
}  # red_ball.png is left out: detectors call it an apple, and we cannot call that the truth


STREET = ("car", "person")  # in every frame of images/street; besides a van, which is a car or a truck as one likes


@dataclass(frozen=True, eq=False)
class Photos(Stream):
    """Photos in the order of time: `frame` has the columns file and light, `target` the objects. Made by `photos`."""

    def picture(self, row: int) -> np.ndarray:
        """Return the photo of a row, read and darkened now: uint8, (H, W, 3), BGR."""
        file, light = self.frame.iloc[row]
        return np.rint(images.decode((paths.IMAGES / file).read_bytes()) * np.float32(light)).astype(np.uint8)


def photos(count: int, seed: int = 0, *, drift: str = "data", light: float = 0.4, **when: Unpack[When]) -> Photos:
    """Return this project's photos, drawn at random: forty frames of a street and fifteen others. They get darker.

    Data drift: each gray level is multiplied by `light`, 0 to 1, and rounded. If gradual, the photos get darker little
    by little, in `width` equal steps (incremental drift in Gama et al.), and `regime` is True from the first of them
    on. The truth stays: `target` has a tuple for each photo, the labels of its objects, as we labelled them by eye. A
    photo is read on request, and not kept. Raises ValueError for a `light` out of range.

    >>> stream = photos(6, seed=1, speed="gradual", at=2, width=3)
    >>> stream.frame["light"].round(1).tolist()
    [1.0, 1.0, 0.8, 0.6, 0.4, 0.4]
    >>> stream.target[0], stream.picture(0).shape
    (('car', 'person'), (576, 768, 3))
    """
    if not 0 <= light <= 1:
        raise ValueError(f"light={light}: give 0, which is black, to 1, which is no change")
    plan = _plan(count, seed, drift, ("none", "data"), **when)
    street = sorted(f"street/{path.name}" for path in (paths.IMAGES / "street").glob("*.jpg"))
    files = [*OBJECTS, *street]
    drawn = [files[index] for index in np.random.default_rng([seed, 1]).integers(len(files), size=count)]
    truth = np.fromiter((OBJECTS.get(file, STREET) for file in drawn), object, count)
    dark = _stream({"file": drawn, "light": 1 - (1 - light) * plan.share}, truth, plan, drift, truth, truth)
    return Photos(**vars(dark) | {"regime": plan.share > 0})
