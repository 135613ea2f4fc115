"""Draw the factory of the lectures: a camera above a line takes pictures of phones, and some phones are scratched.

The world can change (*data drift*: `lighting`, `scratch_size`), and the definition of a defect can change (*concept
drift*: `smallest_defect`). Nothing was measured in a factory: the pictures show how methods behave, not what phones
look like. Lessons call it as `scenarios.inspection`, beside the other worlds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from labsupport import arguments
from labsupport.detection import Box

SIZE = 128  # pixels: pictures are square
NOISE = 4.0  # gray levels of 0 to 255: standard deviation of what the sensor adds to each channel of each pixel
BODIES = (
    (205, 203, 200),
    (45, 43, 42),
    (140, 172, 198),
    (150, 105, 62),
    (62, 58, 150),
)  # silver, black, gold, blue, red
GRID = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE)), axis=2).astype(np.float32)  # x and y of every pixel


@dataclass(frozen=True)
class Scratch:
    """One scratch: the points (K, 2), x and y in pixels, that its line connects."""

    line: np.ndarray
    width: float  # pixels

    @property
    def length(self) -> float:
        """Return the length of the line in pixels."""
        return float(np.linalg.norm(np.diff(self.line, axis=0), axis=1).sum())

    @property
    def box(self) -> Box:
        """Return the box that holds every pixel of the scratch, the blur of the lens included."""
        margin = self.width / 2 + 2
        left, top = np.floor(self.line.min(axis=0) - margin).clip(0).astype(int).tolist()
        right, bottom = np.ceil(self.line.max(axis=0) + margin + 1).clip(max=SIZE).astype(int).tolist()
        return Box(left, top, right, bottom)


@dataclass(frozen=True)
class Inspection:
    """Pictures of phones, and the truth about them. Made by `inspection`."""

    images: np.ndarray  # uint8, (N, 128, 128, 3), BGR
    scratches: list[list[Scratch]]  # of each picture
    smallest_defect: float  # pixels: the definition; `dataclasses.replace` gives the same pictures another one

    @property
    def boxes(self) -> list[list[Box]]:
        """Return the boxes of each picture's scratches, including those too short to be a defect."""
        return [[scratch.box for scratch in scratches] for scratches in self.scratches]

    @property
    def lengths(self) -> list[list[float]]:
        """Return the lengths of each picture's scratches, in pixels."""
        return [[scratch.length for scratch in scratches] for scratches in self.scratches]

    @property
    def truth(self) -> np.ndarray:
        """Return for each phone, as bool (N,), whether it is a defect by the current definition."""
        return np.array([max(lengths, default=-1.0) >= self.smallest_defect for lengths in self.lengths], bool)


def inspection(
    count: int,
    seed: int = 0,
    *,
    lighting: float | tuple[float, float, float] = 1.0,
    scratch_share: float = 0.3,
    scratch_size: float = 1.0,
    smallest_defect: float = 0.0,
    noise: float = NOISE,
) -> Inspection:
    """Draw `count` pictures of phones, about `scratch_share` (0 to 1) of them scratched.

    - `lighting`: how much light there is, 1.0 as it should be; three numbers (blue, green, red) for lamps of another colour
    - `scratch_size`: a factor on the length of scratches (usually 12 to 45 pixels) and on their width
    - `smallest_defect`: pixels; a phone is a defect if it has a scratch at least this long, at 0.0 if it has any
    - `noise`: standard deviation of the sensor's noise, in gray levels

    A seed gives the same pictures every time, and the first ones of a longer series are those of a shorter one. The seed
    settles phone, dust, scratch and noise separately: change one of the other parameters and all else in the picture
    stays as it was. Glare, dust, hairs and lint are on most phones and are no defects. About 1 ms a picture.
    Raises ValueError for a number out of range.

    >>> day = inspection(200, seed=1)
    >>> day.images.shape, int(day.truth.sum())
    ((200, 128, 128, 3), 57)
    >>> from dataclasses import replace
    >>> int(replace(day, smallest_defect=20).truth.sum())  # concept drift: the same pictures, fewer defects
    28
    >>> night = inspection(200, seed=1, lighting=0.5)  # data drift: other pictures, the same truth
    >>> round(float(night.images.mean() / day.images.mean()), 1), bool((night.truth == day.truth).all())
    (0.5, True)
    """
    lamps: list[object] = [lighting] * 3
    if not isinstance(lighting, int | float) and np.ndim(lighting) == 1 and len(lighting) == 3:
        lamps = [*lighting]
    light = np.array([arguments.number("lighting", lamp, 0) for lamp in lamps], np.float32)
    count = arguments.number("count", count, 0, whole=True)
    scratch_share = arguments.number("scratch_share", scratch_share, 0, 1)
    scratch_size = arguments.number("scratch_size", scratch_size, 0, ends=False)
    smallest_defect = arguments.number("smallest_defect", smallest_defect, 0)
    noise = arguments.number("noise", noise, 0)
    pictures, scratches = np.empty((count, SIZE, SIZE, 3), np.uint8), []
    for index in range(count):
        scene, damage, sensor = (np.random.default_rng([seed, index, part]) for part in range(3))
        phone = _Phone(scene)
        scratches.append(phone.scratch(damage, scratch_size) if damage.random() < scratch_share else [])
        pictures[index] = _photograph(phone.image, light * np.float32(phone.exposure), noise, sensor)
    return Inspection(pictures, scratches, smallest_defect)


class _Phone:
    """A phone on the line, drawn from the belt upwards: `image`, float32, (128, 128, 3), gray levels in good light."""

    def __init__(self, random: np.random.Generator) -> None:
        self.exposure = random.normal(1, 0.05)  # no two pictures are lit quite alike
        self.half = random.uniform(52, 58) * np.array([0.52, 1.0])  # half of width and height, pixels
        self.centre = SIZE / 2 + random.normal(0, 1.5, 2)
        self.angle = np.radians(random.uniform(-7, 7))
        self.image = _belt(random)
        self._body(random)
        self._glare(random)
        self._litter(random)

    def scratch(self, random: np.random.Generator, size: float) -> list[Scratch]:
        """Draw one scratch, sometimes two or three."""
        scratches = []
        for _ in range(1 + random.binomial(2, 0.12)):
            line, width = self._place(self._crack(random, size)), random.uniform(1.1, 2.0) * size
            fading = random.uniform(0.4, 1, len(line) - 1)  # a scratch is not equally deep everywhere
            _stroke(self.image, line, width, random.uniform(60, 140), fading)
            scratches.append(Scratch(line, width))
        return scratches

    def _crack(self, random: np.random.Generator, size: float) -> np.ndarray:
        """Return the points of a scratch relative to the phone's middle: jagged, bent, and within the phone's edge."""
        length = np.exp(random.uniform(np.log(12), np.log(45))) * size
        steps = max(2, round(length / 4))
        bend = np.linspace(-1, 1, steps) * random.normal(0, 0.5)
        heading = random.uniform(0, 2 * np.pi) + bend + random.normal(0, 0.35, steps)
        moves = length / steps * np.stack([np.cos(heading), np.sin(heading)], axis=1)
        start = random.uniform(-0.85, 0.85, 2) * self.half
        points = np.vstack([start, start + moves.cumsum(axis=0)])
        outside = (np.abs(points) > 0.97 * self.half).any(axis=1)
        inside: np.ndarray = points[: max(2, outside.argmax())] if outside.any() else points
        return inside

    def _place(self, points: np.ndarray) -> np.ndarray:
        """Transform points from the phone's coordinates, whose origin is its middle, to the picture's."""
        cosine, sine = np.cos(self.angle), np.sin(self.angle)
        placed: np.ndarray = points @ np.array([[cosine, sine], [-sine, cosine]]) + self.centre
        return placed

    def _body(self, random: np.random.Generator) -> None:
        """Draw frame, rim and screen, speaker and camera."""
        rim = np.array(BODIES[random.integers(len(BODIES))]) * random.uniform(0.85, 1.1)
        glass = random.uniform(18, 38) * np.array([1.12, 1.0, 0.94])
        for inset, radius, tone in ((-1.2, 11, rim * 0.45), (0, 10, rim), (3.2, 7, glass)):
            _fill(self.image, self._rounded(self.half - inset, radius), tone)
        self.image = self.image.astype(np.float32)
        upper = self._place(np.array([[-5.0, 8], [5, 8], [10, 8], [9.6, 7.6]]) - (0, self.half[1]))
        _stroke(self.image, upper[:2], 1.8, 30)
        _stroke(self.image, upper[[2, 2]], 5, -16)
        _stroke(self.image, upper[[3, 3]], 1, 80)

    def _rounded(self, half: np.ndarray, radius: float) -> np.ndarray:
        """Return the outline, in the picture, of a rectangle with round corners around the phone's middle."""
        turns = np.radians(np.arange(7.5, 360, 15))
        arc = np.stack([np.cos(turns), np.sin(turns)], axis=1)
        return self._place(np.sign(arc) * (half - radius) + arc * radius)

    def _glare(self, random: np.random.Generator) -> None:
        """Draw lamps mirrored in the glass: bands across it, some as narrow as a scratch, but straight and soft."""
        glow = np.zeros((SIZE, SIZE), np.float32)
        wide, narrow = random.binomial(2, (0.6, 0.25))
        for width in (*random.uniform(5, 18, wide), *random.uniform(0.3, 1.5, narrow)):
            angle = self.angle + random.uniform(0.5, 1.1) * random.choice([-1, 1])
            across = np.array([np.cos(angle), np.sin(angle)], np.float32)
            place = self.centre + random.uniform(-0.6, 0.6, 2) * self.half
            away = np.abs((GRID - place.astype(np.float32)) @ across)
            glow += random.uniform(10, 45) * (1 - (away - float(width)) / random.uniform(1.5, 4)).clip(0, 1)
        glow *= _fill(np.zeros((SIZE, SIZE), np.uint8), self._rounded(self.half - 3.2, 7), [1])  # the screen
        self.image += cv2.merge([glow] * 3)

    def _litter(self, random: np.random.Generator) -> None:
        """Draw dust, hairs (dark) and lint (light), which are no defects."""
        specks = random.poisson(8)
        rows, columns = random.integers(SIZE, size=(2, specks))
        self.image[rows, columns] += random.uniform(30, 140, (specks, 1))
        for _ in range(random.binomial(3, 0.3)):
            start, end = random.uniform(10, SIZE - 10, (2, 2))
            knee = (start + end) / 2 + random.normal(0, 22, 2)
            t = np.linspace(0, random.uniform(0.3, 0.6), 10)[:, np.newaxis]
            curl = (1 - t) ** 2 * start + 2 * t * (1 - t) * knee + t**2 * end  # part of a Bezier curve
            _stroke(self.image, curl, random.uniform(0.8, 1.3), random.choice([-45, 18, 30]))


def _belt(random: np.random.Generator) -> np.ndarray:
    """Return a picture of the belt under the phones, uint8: dark rubber with ribs."""
    rows = np.arange(SIZE) + random.uniform(0, 12)
    ribs = random.uniform(70, 95) + 6 * np.sin(rows * 2 * np.pi / 12)
    return np.broadcast_to(ribs[:, np.newaxis, np.newaxis], (SIZE, SIZE, 3)).astype(np.uint8)


def _fill(image: np.ndarray, outline: np.ndarray, tone: Sequence[float] | np.ndarray) -> np.ndarray:
    """Paint the inside of an outline (K, 2) into a picture of uint8."""
    sixteenths = np.rint(outline * 16).astype(np.int32)  # OpenCV takes whole numbers; four bits may be the fraction
    return cv2.fillPoly(image, [sixteenths], [float(t) for t in tone], cv2.LINE_AA, shift=4)


def _stroke(
    image: np.ndarray, line: np.ndarray, width: float, strength: float, fading: np.ndarray | float = 1.0
) -> None:
    """Add a line (K, 2) to a picture: `strength` gray levels, times `fading` (0 to 1), one number for each piece of it."""
    left, top = np.floor(line.min(axis=0) - width).clip(0, SIZE).astype(int)
    right, bottom = np.ceil(line.max(axis=0) + width + 1).clip(0, SIZE).astype(int)
    start, piece = line[:-1].astype(np.float32), np.diff(line, axis=0).astype(np.float32)
    pixels = GRID[top:bottom, left:right, np.newaxis] - start
    along = (pixels * piece).sum(axis=3) / ((piece**2).sum(axis=1) + np.float32(1e-9))
    off = pixels - along.clip(0, 1)[..., np.newaxis] * piece
    cover = (width / 2 + 0.5 - np.hypot(off[..., 0], off[..., 1])).clip(0, 1) * fading
    image[top:bottom, left:right] += strength * cover.max(axis=2, keepdims=True)


def _photograph(scene: np.ndarray, light: np.ndarray, noise: float, random: np.random.Generator) -> np.ndarray:
    """Return the camera's picture of a scene, uint8, with a slightly blurred lens, the light, and a sensor's noise."""
    seen = cv2.transform(cv2.GaussianBlur(scene, (3, 3), 0.6), np.diag(light))
    grain = np.float32(noise) * random.standard_normal(scene.shape, np.float32)
    return cv2.add(seen, grain, dtype=cv2.CV_8U)  # rounds, and stays within 0 to 255
