"""Bytes to pixels and back: the edge where pictures enter and leave.

What arrives is judged by its content, never by its name, and its size is read from its header before a single pixel is
allocated. What is let in comes out one way: an array (H, W, 3) of uint8, BGR as OpenCV reads it, upright.
"""

import io
import math
import warnings

import cv2
import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base
from PIL.Image import Transpose

MAX_BYTES = 20_000_000
MAX_PIXELS = 25_000_000  # a camera of 24 megapixels fits; its pixels take 75 MB
MAX_SIDE = 65_500  # pixels either way: no JPEG is larger, and the answer is one
JPEG_QUALITY = 90
WORKING_SIZE = 128  # pixels either way: what `features` shrinks every picture to
NOISE_SIZE = 192  # pixels either way: the piece, as it is, in which it looks for noise
JPEG_END = b"\xff\xd9"  # the marker at the end of a whole JPEG
MAX_SCANS = 100  # a progressive JPEG needs some 10; each goes over every pixel, and 11 bytes are enough for one
JPEG_SCAN = b"\xff\xda\0"  # how a scan starts; compressed pixels hold no such bytes
# the EXIF standard's orientations, and what puts each upright; 1 is upright, and so is anything unknown
TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}

# odd EXIF or a great many pixels: Pillow would write to the server's terminal what is answered or harmless here
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class UnsupportedImage(ValueError):
    """The bytes are no JPEG or PNG picture that can be read."""


class ImageTooLarge(ValueError):
    """The picture has more bytes or pixels than the lab takes."""


def decode(data: bytes) -> np.ndarray:
    """The pixels of a JPEG or PNG: uint8, (H, W, 3), BGR, turned upright as its EXIF says.

    Grayscale becomes three equal channels, 16 bits become 8, CMYK becomes BGR, and what is transparent becomes white.
    Raises `UnsupportedImage` for anything else, damaged and cut-off pictures included, and `ImageTooLarge` beyond
    `MAX_BYTES`, `MAX_PIXELS` or `MAX_SIDE`, before any pixel is allocated.

    >>> black = np.zeros((2, 3, 3), np.uint8)
    >>> decode(encode(black, "png")).shape
    (2, 3, 3)
    >>> decode(b"certainly not a picture")
    Traceback (most recent call last):
    labsupport.images.UnsupportedImage: not a JPEG or PNG picture: send one of these
    """
    if len(data) > MAX_BYTES:
        raise ImageTooLarge(f"{len(data):,} bytes: send at most {MAX_BYTES:,}")
    picture = _open(data)
    if picture.width * picture.height > MAX_PIXELS:
        raise _too_many_pixels(f"{picture.width:,} x {picture.height:,} pixels")
    if max(picture.size) > MAX_SIDE:
        raise ImageTooLarge(f"{picture.width:,} x {picture.height:,} pixels: send at most {MAX_SIDE:,} either way")
    if picture.format != "PNG" and (scans := data.count(JPEG_SCAN)) > MAX_SCANS:
        raise UnsupportedImage(f"a JPEG in {scans:,} scans: save it again in at most {MAX_SCANS}")
    if (pixels := _ordinary(picture, data)) is not None:
        return pixels
    try:
        rgb = np.asarray(_to_rgb(_upright(picture)))
    except Exception as error:  # over damaged bytes Pillow stumbles in many ways
        raise UnsupportedImage("the picture is damaged or cut off: send it again, whole") from error
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)


def measure(data: bytes) -> tuple[int, int]:
    """Return the width and height in pixels that a picture's header says.

    Raises `UnsupportedImage` if there is no such header, and `ImageTooLarge` for too many pixels.

    >>> measure(encode(np.zeros((2, 3, 3), np.uint8), "png"))
    (3, 2)
    """
    picture = _open(data)
    if picture.width * picture.height > MAX_PIXELS:
        raise _too_many_pixels(f"{picture.width:,} x {picture.height:,} pixels")
    return picture.size


def encode(image: np.ndarray, kind: str = "jpeg") -> bytes:
    """The bytes of a picture (uint8, (H, W, 3), BGR) as `kind`: "jpeg" (quality 90) or "png" (exact).

    >>> encode(np.zeros((2, 2, 3), np.uint8))[:2].hex()
    'ffd8'
    """
    options = {"jpeg": [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY], "png": [cv2.IMWRITE_PNG_COMPRESSION, 1]}
    return cv2.imencode(f".{kind}", image, options[kind])[1].tobytes()


def features(image: np.ndarray) -> dict[str, float]:
    """What the input looks like, in a few numbers to watch for drift; of a picture (uint8, (H, W, 3), BGR).

    - `brightness`: mean luma (ITU-R BT.601), 0 to 1
    - `contrast`: standard deviation of the luma, 0 to 0.5: RMS contrast (Peli, 1990)
    - `sharpness`: variance of the luma's Laplacian (Pech-Pacheco et al., 2000), in squared gray levels of 0 to 255
    - `saturation`: mean saturation in HSV, 0 to 1
    - `noise`: standard deviation of the luma's noise (Immerkær, 1996), in the unit of contrast: 0.02 is 5 gray levels of 255
    - `width`, `height`: in pixels
    - `aspect`: width / height

    The first four are taken from the picture squeezed to 128 x 128, which takes 0.3 ms at 768 x 576. So detail that is finer
    is not seen, and the same scene gives much the same numbers at any resolution above that (sharpness within a factor of
    about 1.5; taken at the picture's own size, it would be 30 and more). Noise is what squeezing takes away: we look for it
    in the middle 192 x 192 pixels as they are, where fine texture counts as noise, too. Finite for a single pixel.

    >>> gray = np.full((60, 80, 3), 51, np.uint8)
    >>> {name: round(value, 3) for name, value in features(gray).items() if value}
    {'brightness': 0.2, 'width': 80.0, 'height': 60.0, 'aspect': 1.333}
    """
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
    """Display a picture (uint8, (H, W, 3), BGR) under a notebook cell, small enough to be kept in the notebook.

    `alt` says in words what is in it, for those who cannot see it.
    """
    from IPython.display import Image as Shown
    from IPython.display import display

    if (share := width / image.shape[1]) < 1:
        image = cv2.resize(image, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
    display(Shown(data=encode(image), format="jpeg", alt=alt))


def _squeezed(image: np.ndarray) -> np.ndarray:
    """`WORKING_SIZE` x `WORKING_SIZE`, averaged: a plain resize picks one pixel in so many, and noise looks like sharpness.

    OpenCV's average for any ratio (INTER_AREA) costs three times as much as halving, which it is fast at.
    """
    while min(image.shape[:2]) >= 4 * WORKING_SIZE:
        image = _halved(image)
    return _halved(cv2.resize(image, (2 * WORKING_SIZE, 2 * WORKING_SIZE)))


def _noise(image: np.ndarray) -> float:
    """Immerkær, 1996, "Fast noise variance estimation": the difference of two Laplacians leaves no edge or slope, but noise.

    Its weights (1, -2, 1) x (1, -2, 1) have squares that sum up to 36, and E|x| = sqrt(2/pi) sigma if x is normal.
    """
    height, width = image.shape[:2]
    if min(height, width) < 3:
        return 0.0
    top, left = max(0, height - NOISE_SIZE) // 2, max(0, width - NOISE_SIZE) // 2
    luma = cv2.cvtColor(image[top : top + NOISE_SIZE, left : left + NOISE_SIZE], cv2.COLOR_BGR2GRAY)
    weights = np.float32([1, -2, 1])
    inside = cv2.sepFilter2D(luma, cv2.CV_16S, weights, weights)[1:-1, 1:-1]
    return math.sqrt(math.pi / 2) / 6 * cv2.norm(inside, cv2.NORM_L1) / inside.size / 255


def _halved(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=cv2.INTER_AREA)


def _open(data: bytes) -> Image.Image:
    """The picture with its header read and nothing else: Pillow opens lazily."""
    try:
        return Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels("far too many pixels") from error
    except UnidentifiedImageError as error:
        raise UnsupportedImage("not a JPEG or PNG picture: send one of these") from error
    except Exception as error:
        raise UnsupportedImage("the picture is damaged or cut off: send it again, whole") from error


def _ordinary(picture: Image.Image, data: bytes) -> np.ndarray | None:
    """The pixels of a JPEG in colour, upright and whole; None for all else. libjpeg-turbo's own interface makes the same
    pixels as Pillow in half the time, and unlike OpenCV fills nothing in and writes nothing to the server's terminal."""
    if picture.format != "JPEG" or picture.mode != "RGB" or _turn(picture) is not None:
        return None
    try:
        return simplejpeg.decode_jpeg(data, "BGR", strict=True)
    except ValueError:  # something is odd about it, which Pillow may be able to live with
        return None


def _upright(picture: Image.Image) -> Image.Image:
    """Only the orientation is read: `ImageOps.exif_transpose` writes all the EXIF anew, and stumbles over odd entries."""
    picture.load()  # here, where damaged pixels are an error; reading a PNG's EXIF would load them too
    turn = _turn(picture)
    return picture if turn is None else picture.transpose(turn)


def _turn(picture: Image.Image) -> Transpose | None:
    try:
        return TURNS.get(picture.getexif().get(Base.Orientation))
    except Exception:  # a picture is a picture, whatever nonsense its EXIF holds
        return None


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit grayscale: Pillow's own conversion would clip at 255
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _too_many_pixels(what: str) -> ImageTooLarge:
    return ImageTooLarge(f"{what}: send at most {MAX_PIXELS:,} pixels")
