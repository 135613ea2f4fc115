"""Draw the pictures whose truth we know: which object stands where, to the pixel.

A photograph has to be labelled by hand; a drawing is labelled by the constants that drew it. Each
picture here has one function, and `TRUTH` holds the label and the box of every object in it, so a
test can ask the detector and check its answer.

    python images/draw.py             draws them into the folder of this script
    python images/draw.py elsewhere   draws them into another folder
"""

import os
import sys
from pathlib import Path

import cv2
import numpy as np

# Colours are blue, green, red, as OpenCV keeps them.
WHITE, GREY, BLACK, DARK = (255, 255, 255), (110, 115, 120), (25, 25, 25), (10, 10, 10)
RED, ORANGE, GREEN, SHADOW = (30, 25, 180), (0, 140, 255), (40, 70, 40), (70, 85, 100)
WALL, TABLE, SKY, GRASS = (205, 213, 218), (120, 150, 180), (235, 205, 170), (80, 140, 100)
RED_LAMP, YELLOW_LAMP = (40, 40, 250), (40, 80, 90)  # lit, unlit

# Where each object stands: the middle of it (x, y) and its radius, in pixels.
CLOCK = (320, 240, 100)
TWO_CLOCKS = ((185, 235, 120), (480, 270, 95))
STOP_SIGN = (320, 200, 130)
FAR_STOP_SIGN = (720, 230, 40)
RED_BALL = (320, 260, 80)
ORANGES = ((220, 270, 85), (420, 280, 75))
TRAFFIC_LIGHT = (320, 195, 45, 126)  # half its width, half its height


def box_around(x: int, y: int, radius: int, height: int = 0) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) around (x, y); `height` if it differs from `radius`."""
    height = height or radius
    return x - radius, y - height, x + radius, y + height


def scene(upper: tuple, lower: tuple, horizon: int, width: int = 640, height: int = 480):
    """An empty picture: one colour above the row `horizon`, one below, darker downwards."""
    image = np.empty((height, width, 3))
    image[:horizon], image[horizon:] = upper, lower
    image *= np.linspace(1.0, 0.85, height)[:, None, None]
    return image.astype(np.uint8)


def write(image: np.ndarray, words: str, x: float, y: float, size: float, colour: tuple) -> None:
    """Write words about `size` pixels high with their middle at (x, y)."""
    font, scale, thickness = cv2.FONT_HERSHEY_SIMPLEX, size / 21, max(1, round(size / 7))
    (width, height), _ = cv2.getTextSize(words, font, scale, thickness)
    corner = round(x - width / 2), round(y + height / 2)
    cv2.putText(image, words, corner, font, scale, colour, thickness, cv2.LINE_AA)


def clock(image: np.ndarray, x: int, y: int, radius: int) -> None:
    """A wall clock at ten past ten: rim, face, numbers, two hands."""
    cv2.circle(image, (x, y), radius, BLACK, -1, cv2.LINE_AA)
    cv2.circle(image, (x, y), round(radius * 0.9), WHITE, -1, cv2.LINE_AA)
    for hour in range(1, 13):
        across, down = np.sin(np.pi * hour / 6), -np.cos(np.pi * hour / 6)
        away = 0.72 * radius
        write(image, str(hour), x + away * across, y + away * down, radius * 0.13, BLACK)
    for degrees, length, width in ((305, 0.42, 0.05), (60, 0.62, 0.03)):
        across, down = np.sin(np.radians(degrees)), -np.cos(np.radians(degrees))
        tip = round(x + radius * length * across), round(y + radius * length * down)
        cv2.line(image, (x, y), tip, BLACK, max(2, round(radius * width)), cv2.LINE_AA)


def octagon(image: np.ndarray, x: int, y: int, radius: float, colour: tuple) -> None:
    """A regular octagon that stands on an edge; `radius` reaches the middle of an edge."""
    angles = np.pi * (np.arange(8) + 0.5) / 4
    reach = radius / np.cos(np.pi / 8)
    corners = np.stack([x + reach * np.cos(angles), y + reach * np.sin(angles)], axis=1)
    cv2.fillPoly(image, [corners.round().astype(np.int32)], colour, cv2.LINE_AA)


def stop_sign(image: np.ndarray, x: int, y: int, radius: int) -> None:
    """A stop sign on a pole that reaches the lower edge of the picture."""
    half = max(2, radius // 14)
    cv2.rectangle(image, (x - half, y), (x + half, image.shape[0]), GREY, -1)
    octagon(image, x, y, radius, WHITE)
    octagon(image, x, y, radius * 0.92, RED)
    write(image, "STOP", x, y, radius * 0.45, WHITE)


def ball(image: np.ndarray, x: int, y: int, radius: int, colour: tuple, peel: float = 0) -> None:
    """A ball lit from the upper left, with its shadow; `peel` is how rough its skin is."""
    shadow = (x, y + round(radius * 0.93)), (radius, round(radius * 0.2))
    cv2.ellipse(image, *shadow, 0, 0, 360, SHADOW, -1, cv2.LINE_AA)
    down, across = np.mgrid[: image.shape[0], : image.shape[1]]
    down, across = (down - y) / radius, (across - x) / radius
    distance = np.hypot(down, across)
    facing = np.sqrt(np.clip(1 - distance**2, 0, 1))  # 1 where the skin faces us, 0 at the rim
    light = 0.75 * facing - 0.4 * across - 0.5 * down + peel * facing * grain(distance.shape)
    light = np.clip(light, 0, 1)[..., None]
    skin = np.clip(np.array(colour) * (0.35 + 0.65 * light) + 80 * light**20, 0, 255)
    cover = np.clip((1 - distance) * radius + 0.5, 0, 1)[..., None]  # a soft edge, one pixel wide
    image[:] = (image * (1 - cover) + skin * cover).astype(np.uint8)


def grain(shape: tuple[int, int]) -> np.ndarray:
    """Soft noise of mean 0 and spread 1, the same on every call."""
    noise = cv2.GaussianBlur(np.random.default_rng(0).normal(size=shape), (0, 0), 1.2)
    return noise / noise.std()


def draw_clock() -> np.ndarray:
    """One clock on a wall."""
    image = scene(WALL, WALL, horizon=0)
    clock(image, *CLOCK)
    return image


def draw_two_clocks() -> np.ndarray:
    """Two clocks of different size: the detector must keep them apart."""
    image = scene(WALL, WALL, horizon=0)
    for place in TWO_CLOCKS:
        clock(image, *place)
    return image


def draw_stop_sign() -> np.ndarray:
    """A stop sign, seen from near."""
    image = scene(SKY, GRASS, horizon=380)
    stop_sign(image, *STOP_SIGN)
    return image


def draw_far_stop_sign() -> np.ndarray:
    """The same sign beside a road and far away: one hundredth of the picture."""
    image = scene(SKY, GRASS, horizon=330, width=960, height=600)
    road = np.array([(470, 330), (500, 330), (640, 600), (120, 600)])
    cv2.fillPoly(image, [road], GREY, cv2.LINE_AA)
    cv2.line(image, (485, 330), (390, 600), WHITE, 4, cv2.LINE_AA)
    stop_sign(image, *FAR_STOP_SIGN)
    return image


def draw_red_ball() -> np.ndarray:
    """A smooth red ball on a table. The detector takes it for an apple, and that is its label."""
    image = scene(WALL, TABLE, horizon=290)
    ball(image, *RED_BALL, RED)
    return image


def draw_oranges() -> np.ndarray:
    """Two oranges on a table. With a smooth skin they would be called apples as well."""
    image = scene(WALL, TABLE, horizon=290)
    for place in ORANGES:
        ball(image, *place, ORANGE, peel=0.06)
    return image


def draw_traffic_light() -> np.ndarray:
    """A traffic light at red: three lamps under their hoods, in a black box on a pole."""
    image = scene(SKY, GRASS, horizon=410)
    x, y, half, height = TRAFFIC_LIGHT
    cv2.rectangle(image, (x - 6, y), (x + 6, image.shape[0]), GREY, -1)
    cv2.rectangle(image, (x - half, y - height), (x + half, y + height), BLACK, -1)
    for down, colour in ((-79, RED_LAMP), (0, YELLOW_LAMP), (79, GREEN)):
        cv2.ellipse(image, (x, y + down - 6), (34, 34), 0, 180, 360, DARK, -1, cv2.LINE_AA)
        cv2.circle(image, (x, y + down), 31, colour, -1, cv2.LINE_AA)
    return image


DRAWINGS = {
    "clock.png": draw_clock,
    "two_clocks.png": draw_two_clocks,
    "stop_sign.png": draw_stop_sign,
    "far_stop_sign.png": draw_far_stop_sign,
    "red_ball.png": draw_red_ball,
    "oranges.png": draw_oranges,
    "traffic_light.png": draw_traffic_light,
}

# What the detector should answer, and the box (left, top, right, bottom) where it should see it.
TRUTH = {
    "clock.png": [("clock", box_around(*CLOCK))],
    "two_clocks.png": [("clock", box_around(*place)) for place in TWO_CLOCKS],
    "stop_sign.png": [("stop sign", box_around(*STOP_SIGN))],
    "far_stop_sign.png": [("stop sign", box_around(*FAR_STOP_SIGN))],
    "red_ball.png": [("apple", box_around(*RED_BALL))],
    "oranges.png": [("orange", box_around(*place)) for place in ORANGES],
    "traffic_light.png": [("traffic light", box_around(*TRAFFIC_LIGHT))],
}


def save(image: np.ndarray, path: Path) -> None:
    """Write a PNG under a temporary name and rename it: the file is whole or not there at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(cv2.imencode(".png", image)[1].tobytes())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def main(folder: Path) -> None:
    """Draw every picture into `folder`, making it if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in DRAWINGS.items():
        save(draw(), folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent)
