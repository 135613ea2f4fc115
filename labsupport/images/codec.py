"""Decode files to pixels, encode pixels to files, and check and describe pictures.

The content of a file decides its kind, not its name. Its size is read from its header before memory for pixels is
allocated. Every decoded picture is an upright array (H, W, 3) of uint8 in BGR, as in OpenCV.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from labsupport.arguments import choice, number, shown, text
from labsupport.extras import imported
from labsupport.images import headers, jpeg, png
from labsupport.images.headers import ImageTooLarge, UnsupportedImage

MAX_BYTES = 20_000_000
MAX_PIXELS = 25_000_000  # a camera of 24 megapixels fits; its pixels take 75 MB
MAX_SIDE = 65_500  # pixels either way: the limit of JPEG, in which answers are sent
JPEG_QUALITY = 90
WORKING_SIZE = 128  # pixels either way: the size to which `features` shrinks every picture
NOISE_SIZE = 192  # pixels either way: the unscaled part in which `features` measures noise
# orientations of the EXIF standard, and the function that turns each upright; 1 is upright
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: partial(cv2.flip, flipCode=1),
    3: partial(cv2.rotate, rotateCode=cv2.ROTATE_180),
    4: partial(cv2.flip, flipCode=0),
    5: cv2.transpose,
    6: partial(cv2.rotate, rotateCode=cv2.ROTATE_90_CLOCKWISE),
    7: lambda stored: cv2.flip(turned := cv2.transpose(stored), -1, dst=turned),
    8: partial(cv2.rotate, rotateCode=cv2.ROTATE_90_COUNTERCLOCKWISE),
}
PICTURE = "uint8, (H, W, 3), BGR, 0 to 255, as images.decode returns it"


def decode(data: bytes) -> np.ndarray:
    """Return the pixels of a JPEG or PNG file: uint8, (H, W, 3), BGR, turned upright as its EXIF says.

    Grayscale becomes three equal channels, 16 bits become 8, CMYK becomes BGR, and what is transparent becomes white.

    Raises `UnsupportedImage` for anything else, also for damaged and cut-off pictures. Raises `ImageTooLarge` beyond
    `MAX_BYTES`, `MAX_PIXELS` or `MAX_SIDE`, before memory for pixels is allocated. Some kinds have a lower limit of pixels:
    PNGs of more than 32 bits a pixel, and progressive JPEGs in four colours. Raises ValueError if `data` is not bytes.

    Damage is found if it contradicts the format: missing pixels, wrong checksums, wrong codes. A changed byte of a JPEG may
    not be found, because a JPEG has no checksums.

    Beside `data` and a copy of it, decoding takes at most 12 bytes of memory for each pixel, and never more than 230 MB: 6
    for most pictures, 9 for progressive JPEGs, 12 for progressive JPEGs in four colours. It takes under 2 seconds on a core
    of 2023, for any file.

    >>> black = np.zeros((2, 3, 3), np.uint8)
    >>> decode(encode(black, "png")).shape
    (2, 3, 3)
    >>> decode(b"GIF89a")
    Traceback (most recent call last):
    labsupport.images.headers.UnsupportedImage: not a JPEG or PNG picture but a GIF picture: send one of these
    """
    head, pixels = _head(data)
    turn = TURNS.get(head.orientation)
    return turn(pixels()) if turn else pixels()


def measure(data: bytes) -> tuple[int, int]:
    """Return the width and height in pixels of the picture that `decode` would return, from the file's header alone.

    Takes milliseconds. Raises the errors of `decode`, except for damage in the pixels.

    >>> measure(encode(np.zeros((2, 3, 3), np.uint8)))
    (3, 2)
    """
    head, _ = _head(data)
    return (head.height, head.width) if head.orientation >= 5 else (head.width, head.height)


def read(path: Path | str) -> np.ndarray:
    """Return the pixels of a picture file, as `decode` does.

    Raises the errors of `decode`, OSError, and ValueError for anything but a path. Raises `UnsupportedImage` for pipes and
    devices, because reading them could block.
    """
    if not isinstance(path, str | Path) or "\0" in str(path):
        raise ValueError(f"path={shown(path)}: give the path of a JPEG or PNG file")
    with headers.opened(Path(path)) as file:
        if (size := file.seek(0, 2)) > MAX_BYTES:
            raise _too_many_bytes(size)
        file.seek(0)
        return decode(file.read(MAX_BYTES + 1))


def checked(name: str, image: np.ndarray) -> np.ndarray:
    """Return `image`, an argument called `name`, if it is a picture: uint8, (H, W, 3). Takes a microsecond.

    Return a copy if the pixels are not contiguous in memory. Raises ValueError that describes the argument and how to
    convert it to a picture.

    >>> checked("image", np.zeros((2, 3)))
    Traceback (most recent call last):
    ValueError: image is an array of float64, shape (2, 3): give uint8, (H, W, 3), BGR, 0 to 255, as images.decode returns it
    """
    fits = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    if fits and image.size and not isinstance(image, np.ma.MaskedArray):
        return np.ascontiguousarray(image)
    raise ValueError(f"{name} is {_described(image)}: give {PICTURE}{_remedy(image)}")


def encode(image: np.ndarray, kind: str = "jpeg") -> bytes:
    """Return the bytes of a picture (uint8, (H, W, 3), BGR) as `kind`: "jpeg" (quality 90) or "png" (exact).

    Raises ValueError for anything but a picture, another kind, and a JPEG of more than `MAX_SIDE` pixels either way.

    >>> encode(np.zeros((2, 2, 3), np.uint8))[:2].hex()
    'ffd8'
    """
    image = checked("image", image)
    choice("kind", kind, ("jpeg", "png"))
    if kind == "jpeg" and max(image.shape) > MAX_SIDE:
        raise ValueError(f"image has shape {image.shape}: a JPEG has at most {MAX_SIDE:,} pixels either way")
    options = {"jpeg": [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY], "png": [cv2.IMWRITE_PNG_COMPRESSION, 1]}
    return cv2.imencode(f".{kind}", image, options[kind])[1].tobytes()


def features(image: np.ndarray) -> dict[str, float]:
    """Return a few numbers that describe a picture (uint8, (H, W, 3), BGR), to watch for drift.

    - `brightness`: mean luma (ITU-R BT.601), 0 to 1
    - `contrast`: standard deviation of the luma, 0 to 0.5: RMS contrast (Peli, 1990)
    - `sharpness`: variance of the luma's Laplacian (Pech-Pacheco et al., 2000), in squared gray levels of 0 to 255
    - `saturation`: mean saturation in HSV, 0 to 1
    - `noise`: standard deviation of the luma's noise (Immerkær, 1996), in the unit of contrast: 0.02 is 5 gray levels of 255
    - `width`, `height`: in pixels
    - `aspect`: width / height

    The first four are computed on the picture shrunk to 128 x 128, which takes 0.3 ms at 768 x 576. So finer detail does not
    count, and the same scene has similar numbers at any higher resolution (sharpness within a factor of about 1.5; at the
    picture's full size, it would be 30 and more). Shrinking removes noise, so noise is measured in the middle 192 x 192
    pixels at full size. Fine texture counts as noise, too. All numbers are finite, also for a single pixel.
    Raises ValueError for anything but a picture.

    >>> gray = np.full((60, 80, 3), 51, np.uint8)
    >>> {name: round(value, 3) for name, value in features(gray).items() if value}
    {'brightness': 0.2, 'width': 80.0, 'height': 60.0, 'aspect': 1.333}
    """
    image = checked("image", image)
    small = _squeezed(image)
    luma = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)
    mean, deviation = cv2.meanStdDev(luma)
    _, edges = cv2.meanStdDev(cv2.Laplacian(luma, cv2.CV_16S))
    return {
        "brightness": mean.item() / 255,
        "contrast": deviation.item() / 255,
        "sharpness": edges.item() ** 2,
        "saturation": cv2.mean(cv2.cvtColor(small, cv2.COLOR_BGR2HSV))[1] / 255,
        "noise": _noise(image),
        "width": float(image.shape[1]),
        "height": float(image.shape[0]),
        "aspect": image.shape[1] / image.shape[0],
    }


def show(image: np.ndarray, alt: str = "", width: int = 560) -> None:
    """Display a picture (uint8, (H, W, 3), BGR) under a notebook cell, small enough to be stored in the notebook.

    `alt` describes the picture for people who cannot see it. Raises ValueError for anything but a picture.
    """
    image = checked("image", image)
    text("alt", alt, most=100_000)
    number("width", width, 1, MAX_SIDE)
    notebook = imported("IPython.display")
    if (share := width / image.shape[1]) < 1:
        size = [max(1, round(share * side)) for side in image.shape[1::-1]]
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    notebook.display(notebook.Image(data=encode(image), format="jpeg", alt=alt))


def _squeezed(image: np.ndarray) -> np.ndarray:
    """Return the picture averaged to `WORKING_SIZE` x `WORKING_SIZE`. Without averaging, noise would look like sharpness.

    INTER_AREA for any ratio takes three times as long as halving, for which OpenCV has fast code.
    """
    while min(image.shape[:2]) >= 4 * WORKING_SIZE:
        image = _halved(image)
    return _halved(cv2.resize(image, (2 * WORKING_SIZE, 2 * WORKING_SIZE)))


def _noise(image: np.ndarray) -> float:
    """Estimate noise as Immerkær, 1996, "Fast noise variance estimation". A difference of Laplacians removes edges.

    The squares of its weights (1, -2, 1) x (1, -2, 1) sum up to 36, and E|x| = sqrt(2/pi) sigma if x is normal.
    """
    height, width = image.shape[:2]
    if min(height, width) < 3:
        return 0.0
    top, left = max(0, height - NOISE_SIZE) // 2, max(0, width - NOISE_SIZE) // 2
    luma = cv2.cvtColor(image[top : top + NOISE_SIZE, left : left + NOISE_SIZE], cv2.COLOR_BGR2GRAY)
    weights = np.array([1, -2, 1], np.float32)
    inside = cv2.sepFilter2D(luma, cv2.CV_16S, weights, weights)[1:-1, 1:-1]
    return math.sqrt(math.pi / 2) / 6 * cv2.norm(inside, cv2.NORM_L1) / inside.size / 255


def _halved(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=cv2.INTER_AREA)


def _head(data: bytes) -> tuple[jpeg.Frame | png.Chunks, Callable[[], np.ndarray]]:
    """Return a picture's header, if it is within the limits, and the function that decodes its pixels."""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ValueError(f"data={shown(data)}: give the bytes of a JPEG or PNG file, as Path.read_bytes returns them")
    if len(data) > MAX_BYTES:
        raise _too_many_bytes(len(data))
    head: jpeg.Frame | png.Chunks
    pixels: Callable[[], np.ndarray]
    data, what = bytes(data), headers.kind(data)
    if what == "a JPEG picture":
        head, start = jpeg.read(data)
        pixels = partial(jpeg.pixels, data, head, start)
    elif what == "a PNG picture":
        head = png.read(data)
        pixels = partial(png.pixels, data, head)
    elif not data:
        raise UnsupportedImage("the file is empty: send a JPEG or PNG picture")
    else:
        raise UnsupportedImage(f"not a JPEG or PNG picture{(what and f' but {what}') or ''}: send one of these")
    size = f"{head.width:,} x {head.height:,} pixels"
    if head.width * head.height > MAX_PIXELS:
        raise ImageTooLarge(f"{size}: send at most {MAX_PIXELS:,} pixels")
    if max(head.width, head.height) > MAX_SIDE:
        raise ImageTooLarge(f"{size}: send at most {MAX_SIDE:,} either way")
    if head.width * head.height > head.most_pixels:
        raise ImageTooLarge(f"{size} {head.about}: send at most {head.most_pixels:,} of these")
    return head, pixels


def _too_many_bytes(size: int) -> ImageTooLarge:
    return ImageTooLarge(f"{size:,} bytes: send at most {MAX_BYTES:,}")


def _described(image: object) -> str:
    if isinstance(image, np.ndarray):
        masked = "a masked" if isinstance(image, np.ma.MaskedArray) else "an"
        return f"{masked} array of {image.dtype}, shape {image.shape}"
    return f"{shown(image)}, of type {type(image).__name__}"


def _remedy(image: object) -> str:
    """Return how to convert an object to a picture, for common mistakes; else an empty text."""
    if isinstance(image, str | Path):
        return "; images.read(path) makes it of a file"
    if isinstance(image, bytes):
        return "; images.decode(data) makes it of a file's bytes"
    if hasattr(image, "getexif"):  # as Pillow's pictures have
        return "; cv2.cvtColor(np.asarray(image.convert('RGB')), cv2.COLOR_RGB2BGR) makes it of a Pillow picture"
    if isinstance(image, np.ma.MaskedArray):
        return "; image.filled(0) makes it of a masked array, black where it is masked"
    if not isinstance(image, np.ndarray) or not image.size:
        return ""
    if image.dtype.kind == "f" and image.ndim == 3 and image.shape[2] == 3:
        scale = "image" if (image > 1).any() else "image * 255"
        return f"; ({scale}).round().astype(np.uint8) makes it of these floats"
    if image.dtype != np.uint8:
        return ""
    if image.ndim == 2:
        return "; cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) makes it of gray"
    if image.ndim == 3 and image.shape[2] == 4:
        return "; cv2.cvtColor(image, cv2.COLOR_BGRA2BGR) makes it of four channels"
    if image.ndim == 3 and image.shape[0] == 3:
        return "; image.transpose(1, 2, 0) makes it of channels that come first"
    if image.ndim == 4:
        return "; give one picture of the batch at a time"
    return ""
