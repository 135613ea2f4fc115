"""Simulate people who label phones, customers who return phones, and a small model that learns from the labels.

Each person has a limit of their own: a phone is a defect if its longest scratch looks at least so many pixels long. The
model is a frozen network (`inspector`) that says where it sees scratches, and a last step that a lesson trains on
`Pool.inputs`. Nothing was measured in a factory: people and customers follow the simple rules that are written here.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np

from labsupport import arguments
from labsupport.detection import Box, Detection
from labsupport.scenarios.inspector import Inspector, sheet
from labsupport.scenarios.phones import SIZE, Inspection, inspection

RULE = 20.0  # pixels: a phone with a scratch at least this long is a defect
SCRATCHED = 0.6  # share of the phones that have a scratch, short ones included
WARM = 0.3  # the network sees a scratch in each cell whose confidence is above this
INPUTS = (
    "highest confidence",
    "sum of all confidences (log)",
    "longest region where the network sees a scratch (pixels)",
)
WORTH, SPREAD = 28.8, 4.0  # pixels: the length at which half of the customers return a phone, and how fast that changes
ON_THE_SHEET = (23, 0, 36, 15, 28, 13, 32, 17, 26, 0, 25, 40)  # pixels: lengths of the scratches, row by row
LETTERS = {"d": True, "g": False}


@dataclass(frozen=True)
class Labeller:
    """A person who calls a phone a defect if its longest scratch looks at least `limit` pixels long.

    `jitter` is the standard deviation of what they take the length for, in pixels. `slips` is the share of labels that
    they swap by mistake. A phone without a scratch looks good to everybody.

    >>> Labeller("B", limit=34, slips=0).label(np.array([0.0, 20.0, 45.0]), np.random.default_rng(0)).tolist()
    [False, False, True]
    """

    name: str
    limit: float = RULE
    jitter: float = 1.5
    slips: float = 0.02

    def __post_init__(self) -> None:
        arguments.number("limit", self.limit, 0)
        arguments.number("jitter", self.jitter, 0)
        arguments.number("slips", self.slips, 0, 1)

    def label(self, lengths: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Return for each phone whether this person calls it a defect, as bool (N,), from its longest scratch in pixels."""
        looks = lengths + random.normal(0, self.jitter, len(lengths))
        slip = random.random(len(lengths)) < self.slips
        labels: np.ndarray = ((looks >= self.limit) & (lengths > 0)) ^ slip
        return labels


HURRIED = (Labeller("A", 24), Labeller("B", 34))  # they let short scratches pass
CAREFUL = Labeller("careful", RULE)  # anybody who follows the rule, with a ruler and enough time


def labels(lengths: np.ndarray, people: Sequence[Labeller], random: np.random.Generator) -> np.ndarray:
    """Return a label for each phone, as bool (N,). One person, chosen at random, labels each phone.

    Raises ValueError for no people.

    >>> labels(np.array([0.0, 50.0]), [Labeller("A", 24), Labeller("B", 34)], np.random.default_rng(0)).tolist()
    [False, True]
    """
    if not people:
        raise ValueError("people=[]: give one Labeller at least")
    who = random.integers(len(people), size=len(lengths))
    said: np.ndarray = np.array([person.label(lengths, random) for person in people])
    chosen: np.ndarray = said[who, np.arange(len(lengths))]
    return chosen


def returned(lengths: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return for each sold phone whether its customer returns it for its longest scratch (pixels), as bool (N,).

    Half of the customers return a phone with a scratch of `WORTH` pixels, and one in ten at `RULE`.

    >>> returned(np.array([0.0, 100.0]), np.random.default_rng(0)).tolist()
    [False, True]
    """
    chance = (lengths > 0) / (1 + np.exp((WORTH - lengths) / SPREAD))
    back: np.ndarray = random.random(len(lengths)) < chance
    return back


@dataclass(frozen=True)
class Pool:
    """Hold phones and what is known of each. Made by `pool`."""

    phones: Inspection
    lengths: np.ndarray  # float (N,): the longest scratch in pixels, 0 for none
    heat: np.ndarray  # float32 (N, 16, 16): where the network sees scratches, 0 to 1

    @property
    def truth(self) -> np.ndarray:
        """Return for each phone whether it is a defect by the rule, as bool (N,)."""
        return self.lengths >= self.phones.smallest_defect

    @property
    def inputs(self) -> np.ndarray:
        """Return what the last step of the model learns from, float (N, 3): `INPUTS`."""
        return np.array([inputs(heat) for heat in self.heat]).reshape(-1, len(INPUTS))

    @property
    def cells(self) -> np.ndarray:
        """Return the network's confidences for all cells, float32 (N, 256), for a bigger model."""
        return self.heat.reshape(len(self.heat), -1)


def pool(count: int, seed: int = 0, lighting: float = 1.0) -> Pool:
    """Draw `count` phones, `SCRATCHED` of them with a scratch, and let the network "stable" look at each. 3 ms a phone.

    `seed` and `lighting` are those of `phones.inspection`.

    >>> phones = pool(4, seed=1)
    >>> phones.inputs.shape, phones.cells.shape, phones.truth.shape
    ((4, 3), (4, 256), (4,))
    """
    phones = inspection(count, seed, lighting=lighting, scratch_share=SCRATCHED, smallest_defect=RULE)
    network = Inspector.load("stable", slots=1)
    heat = np.array([network.heat_map(picture) for picture in phones.images], np.float32)
    lengths = np.array([max(one, default=0.0) for one in phones.lengths], float)
    return Pool(phones, lengths, heat.reshape(-1, 16, 16))


def inputs(heat: np.ndarray) -> list[float]:
    """Return the three numbers of a heat map (16, 16) that the last step of the model learns from: `INPUTS`.

    The network sees a scratch in each cell whose confidence is above `WARM`. A region is a group of such cells that
    touch. Its length is the diagonal of the box around it, and a region of one cell is 8 pixels long.

    >>> heat = np.zeros((16, 16), np.float32)
    >>> heat[5, 2:5] = 0.9
    >>> [round(number, 2) for number in inputs(heat)]
    [0.9, 1.31, 24.0]
    """
    count, _, boxes, _ = cv2.connectedComponentsWithStats((heat > WARM).astype(np.uint8), connectivity=8)
    cell = SIZE / heat.shape[0]
    sides = boxes[1:count, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]] - 1
    longest = max((cell * (1 + float(np.hypot(*side))) for side in sides), default=0.0)
    return [float(heat.max()), float(np.log1p(heat.sum())), longest]


class LastStep(Protocol):
    """Describe a trained last step: a classifier of scikit-learn, or anything with this method."""

    def predict_proba(self, inputs: np.ndarray) -> Any:
        """Return the probabilities of "good" and "defect", (N, 2), for inputs (N, 3)."""


class PhoneModel:
    """A version for a router: the frozen network and a last step. `detect` returns one detection for a defect.

    >>> from types import SimpleNamespace as Step
    >>> model = PhoneModel("always defect", Step(predict_proba=lambda inputs: np.array([[0.0, 1.0]])))
    >>> model.version, [found.label for found in model.detect(np.zeros((128, 128, 3), np.uint8))]
    ('phones/always defect', ['scratch'])
    """

    def __init__(self, name: str, step: LastStep) -> None:
        self.version, self._step, self._network = f"phones/{name}", step, Inspector.load("stable", slots=1)

    def detect(self, image: np.ndarray, confidence: float = 0.5) -> list[Detection]:
        """Return the place where the network is surest, if the last step's probability of a defect is above `confidence`.

        Raises ValueError as `Inspector.detect` does.
        """
        confidence = arguments.number("confidence", confidence, 0, 1)
        heat = self._network.heat_map(image)
        chance = float(self._step.predict_proba(np.array([inputs(heat)]))[0, 1])
        row, column = np.unravel_index(int(heat.argmax()), heat.shape)
        cell = SIZE // heat.shape[0]
        box = Box(*(cell * int(edge) for edge in (column, row, column + 1, row + 1)))
        return [Detection("scratch", chance, box)] if chance > confidence else []


def twelve(phones: Pool) -> np.ndarray:
    """Return the numbers of twelve phones for a contact sheet, whose longest scratches are about `ON_THE_SHEET` pixels long.

    No phone comes twice. Raises ValueError for a pool of fewer than twelve phones.
    """
    if len(phones.lengths) < len(ON_THE_SHEET):
        raise ValueError(f"a pool of {len(phones.lengths)} phones: give one of at least {len(ON_THE_SHEET)}")
    chosen: list[int] = []
    for length in ON_THE_SHEET:
        off = np.abs(phones.lengths - length)
        off[chosen] = np.inf
        chosen.append(int(off.argmin()))
    return np.array(chosen)


def contact_sheet(pictures: np.ndarray, ruler: float = 0, columns: int = 4, marked: Collection[int] = ()) -> np.ndarray:
    """Return one picture of several phones, each with its number from 1 on, and with a ruler of so many pixels.

    `pictures` is uint8, (N, 128, 128, 3). 0 is no ruler. The phones whose indices are `marked` get a frame.

    >>> contact_sheet(np.zeros((8, 128, 128, 3), np.uint8), ruler=20).shape
    (512, 1024, 3)
    """
    large, side = sheet(pictures, marked, columns), 2 * SIZE
    white = (255, 255, 255)
    for number in range(len(pictures)):
        left, top = side * (number % columns), side * (number // columns)
        cv2.putText(large, str(number + 1), (left + 10, top + 28), cv2.FONT_HERSHEY_SIMPLEX, 0.8, white, 2, cv2.LINE_AA)
        if ruler:
            end = left + 11 + round(2 * ruler), top + side - 12  # a picture is shown twice as large
            cv2.rectangle(large, (left + 12, top + side - 15), end, white, cv2.FILLED)
    return large


def from_letters(text: str, count: int | None = None) -> np.ndarray:
    """Return labels, as bool (N,), from a text with one letter for each phone: d for defect, g for good.

    Spaces do not count. Raises ValueError for other letters, and if there are not `count` of them.

    >>> from_letters("dg g").tolist()
    [True, False, False]
    """
    letters = arguments.text("letters", text).replace(" ", "").lower()
    if wrong := sorted({*letters} - {*LETTERS}):
        raise ValueError(f"{wrong[0]!r} is no label: write d for defect and g for good")
    if count is not None and len(letters) != count:
        raise ValueError(f"there are {len(letters)} labels: give {count}, one for each phone")
    return np.array([LETTERS[letter] for letter in letters], bool)
