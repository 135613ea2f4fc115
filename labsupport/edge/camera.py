"""Yields products from a folder of pictures, a video, or a camera, one after the other."""

import hashlib
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np

from labsupport import images
from labsupport.arguments import shown
from labsupport.detection import videos
from labsupport.images import folders, printable

LONGEST_NAME = 200  # characters of a product's name
BLIND = 10  # pictures in a row that a device does not give, until it counts as gone

logger = logging.getLogger(__name__)


class CameraUnavailable(OSError):
    """Raised if there is no such folder, video or device, or it is gone; the message says which."""


class Camera:
    """A source of products: each a name and a picture (uint8, (H, W, 3), BGR), or None if the picture cannot be read.

    `source` is a folder (its JPEG and PNG files, by name), a video file (its frames), or the number of a device. In a
    folder the content of a file decides whether it is a picture, and the log names the files that are left out.

    A product is named after its file, or after its video and the number of its frame, so it has the same name after a
    restart. In a name of more than 200 characters, a hash stands for the end of the file's name. A device takes each
    picture once, and names it by the time. A name must stand for one product: put another day's pictures into a folder
    of another name, or use a new outbox. A picture that cannot be read is still a product, because something lies on
    the belt. Iterating again starts from the beginning.

    Raises ValueError for any other source, and `CameraUnavailable`, also while iterating if a device is gone. A video that
    ends before the number of frames that it promises is reported in the log.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> _ = Path(folder.name, "a.png").write_bytes(images.encode(np.zeros((2, 3, 3), np.uint8), "png"))
    >>> _ = Path(folder.name, "b.png").write_bytes(b"no picture")
    >>> [(product, picture is not None) for product, picture in Camera(folder.name)]
    [('a.png', True), ('b.png', False)]
    >>> folder.cleanup()
    """

    def __init__(self, source: int | str | Path) -> None:
        number = isinstance(source, int) and not isinstance(source, bool) and source >= 0
        if not number and (not isinstance(source, str | Path) or not str(source) or "\0" in str(source)):
            raise ValueError(f"source={shown(source)}: give a folder, a video file, or the number of a device")
        self.source: int | Path = source if isinstance(source, int) else Path(source)
        if isinstance(self.source, int):
            _opened(self.source).release()
        elif not self.source.exists():
            raise CameraUnavailable(f"{source}: there is no such folder or video")
        elif self.source.is_file():
            _opened(str(source)).release()
        elif not self.source.is_dir():  # a pipe, which would wait for ever
            raise CameraUnavailable(f"{source}: neither a folder nor a file")

    def __iter__(self) -> Iterator[tuple[str, np.ndarray | None]]:
        if isinstance(self.source, int):
            return _from_device(self.source)
        return _from_folder(self.source) if self.source.is_dir() else _from_video(self.source)

    def __repr__(self) -> str:
        return f"<Camera {self.source}>"


def _from_folder(folder: Path) -> Iterator[tuple[str, np.ndarray | None]]:
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if (what := folders.judged(path)) == "picture":
            yield _named(path), _read(path)
        else:
            logger.warning("%s: no JPEG or PNG picture, but %s: left out", printable(str(path)), what)


def _named(path: Path, frame: str = "") -> str:
    """Return the name of a product. A long name is cut to `LONGEST_NAME` characters, and a hash keeps it distinct."""
    name = printable(path.name)
    if len(name + frame) > LONGEST_NAME:
        end = f"~{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        name = name[: LONGEST_NAME - len(end + frame)] + end
    return name + frame


def _read(path: Path) -> np.ndarray | None:
    try:
        return images.read(path)
    except (OSError, ValueError, MemoryError) as error:
        logger.warning("%s: %s", printable(str(path)), error)
        return None


def _from_video(path: Path) -> Iterator[tuple[str, np.ndarray | None]]:
    video, number = _opened(str(path)), 0
    try:
        while video.grab():
            whole, picture = video.retrieve()
            yield _named(path, f"/{number:06}"), picture if whole else None
            number += 1
    finally:
        video.release()
    promised = videos.promised(path)  # 0 if the file does not say
    if number < max(1, promised - 1):  # some headers are one off
        words = f"{path}: it ends after {number} of {promised} frames: is the file whole?"
        if not number:
            raise CameraUnavailable(words)
        logger.warning(words)  # no error: a film that was cut on a phone promises the frames that were cut off, too


def _from_device(number: int) -> Iterator[tuple[str, np.ndarray | None]]:
    device, missed = _opened(number), 0
    try:
        while missed < BLIND:
            whole, picture = device.read()
            missed = 0 if whole else missed + 1
            yield f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}", picture if whole else None
    finally:
        device.release()
    raise CameraUnavailable(f"device {number} gives no pictures any more: is it plugged in?")


def _opened(source: int | str) -> cv2.VideoCapture:
    # of a file FFmpeg and nothing else: OpenCV would take a name with digits for a series of pictures
    video = cv2.VideoCapture(source) if isinstance(source, int) else cv2.VideoCapture(source, cv2.CAP_FFMPEG)
    if not video.isOpened():
        what = f"device {source}: is it plugged in, and does no other program use it?"
        raise CameraUnavailable(what if isinstance(source, int) else f"{source}: not a video that can be read")
    if isinstance(source, str):
        width, height = (int(video.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if width * height > images.MAX_PIXELS:
            video.release()
            raise CameraUnavailable(f"{source}: {width:,} x {height:,} pixels: send at most {images.MAX_PIXELS:,}")
    return video
