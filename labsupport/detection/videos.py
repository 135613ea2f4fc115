"""Read the frames of a video one by one, and report where it is broken."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np

from labsupport import images

NO_FRAME = -1  # the frame number of an error before the first frame


class BrokenVideo(ValueError):
    """The file is not a video that can be read, or it ends too early."""


def frames(
    path: Path, every: int, known: Callable[[int], bool]
) -> Iterator[tuple[int, Callable[[], np.ndarray] | None]]:
    """Yield the number of every `every`-th frame, from 0, and a function that returns its pixels (uint8, (H, W, 3), BGR).

    The function raises `BrokenVideo` for a broken frame. For a frame that is `known`, yield None in place of the function.
    An error of the whole video comes last, in place of a frame.

    >>> [(number, read)] = frames(Path("no_such_video.mp4"), every=1, known=lambda frame: False)
    >>> read()
    Traceback (most recent call last):
    labsupport.detection.videos.BrokenVideo: not a video that can be read, or its beginning or end is missing
    """
    number, promised = 0, 0
    try:
        with _opened(path) as video:
            promised = _count(video)
            while video.grab():
                if number % every == 0:
                    yield number, None if known(number) else _keep(*video.retrieve())
                number += 1
        if number < max(1, promised - 1):  # some headers are one off
            raise BrokenVideo(f"it ends after {number} of {promised} frames")
    except Exception as error:
        frame = number or NO_FRAME
        yield frame, None if known(frame) else functools.partial(_fail, error)


@contextmanager
def _opened(path: Path) -> Iterator[cv2.VideoCapture]:
    if path.exists() and not path.is_file():
        raise BrokenVideo("this is no file")
    # only FFmpeg: OpenCV would otherwise read a name with digits as a series of pictures
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        if not video.isOpened():
            raise BrokenVideo("not a video that can be read, or its beginning or end is missing")
        width, height = (int(video.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if width * height > images.MAX_PIXELS:
            raise images.ImageTooLarge(f"{width:,} x {height:,} pixels: send at most {images.MAX_PIXELS:,} pixels")
        yield video
    finally:
        video.release()


def promised(path: Path) -> int:
    """Return the number of frames in the header; 0 if it is missing or cannot be read."""
    with suppress(Exception), _opened(path) as video:
        return _count(video)
    return 0


def _keep(whole: bool, image: np.ndarray | None) -> Callable[[], np.ndarray]:
    if whole and image is not None:
        return lambda: image
    return functools.partial(_fail, BrokenVideo("this frame cannot be decoded"))


def _fail(error: Exception) -> np.ndarray:
    raise error


def _count(video: cv2.VideoCapture) -> int:
    count = video.get(cv2.CAP_PROP_FRAME_COUNT)
    return int(count) if 0 < count < 1e9 else 0
