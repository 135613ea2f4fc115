"""Find the pictures and videos of a folder by their content, and list the files left out with the reason."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from labsupport.images import headers

PICTURES = (".jfif", ".jpe", ".jpeg", ".jpg", ".png")  # endings of names of pictures
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
NAMED = 10  # files left out that the log names

logger = logging.getLogger(__name__)


class NoPictures(FileNotFoundError):
    """The folder does not exist, or has no picture or video."""


class Found(NamedTuple):
    """Hold the files of a folder: pictures, videos, and those left out."""

    pictures: list[Path]
    videos: list[Path]
    left_out: dict[str, str]  # the name within the folder -> reason


def found(folder: Path, but: Path | None = None) -> Found:
    """Return the pictures (JPEG, PNG) and videos of a folder and its subfolders, or of one file, and files left out.

    Content decides, not the name. A file of unknown content with the name of a picture or video (`a.jpg`, `b.mp4`)
    counts as one, so that it becomes a row with an error. Hidden files are skipped; they are listed as left out if they
    have such a name. The file `but`, a table in the folder, is not listed. The files left out are logged.

    Each folder is read once. If a folder and a link to it are side by side, the folder's name is used. Raises `NoPictures`
    if the folder does not exist or has no picture or video, and OSError if it cannot be listed.

    >>> from labsupport import paths
    >>> "clock.png" in [file.name for file in found(paths.IMAGES).pictures]
    True
    """
    if not folder.exists():
        raise NoPictures(f"{folder}: there is no such folder")
    files = Found([], [], {})
    for path in _walk(folder, files.left_out) if folder.is_dir() else [folder]:
        if path == but:
            continue
        what = "hidden" if path.name.startswith(".") and path != folder else judged(path)
        if what == "picture":
            files.pictures.append(path)
        elif what == "video":
            files.videos.append(path)
        elif what != "hidden" or promised(path):
            files.left_out[printable(_within(path, folder))] = what
    if not files.pictures and not files.videos:
        raise NoPictures(f"{folder}: no picture or video in it{_said(files.left_out)}")
    if files.left_out:
        logger.warning("%s%s", folder, _said(files.left_out))
    return files


def judged(path: Path) -> str:
    """Return "picture" or "video", by a file's content or else by its name. Otherwise return its kind.

    >>> judged(Path(__file__))
    'text'
    """
    try:
        with headers.opened(path) as file:
            kind = headers.kind(start := file.read(headers.SNIFFED)) or (
                "a file of no known kind" if start else "empty"
            )
    except headers.UnsupportedImage:
        kind = "no file"
    except OSError as error:
        kind = f"cannot be read: {error.strerror}"
    if kind in headers.PICTURES:
        return "picture"
    return "video" if kind in headers.VIDEOS else promised(path) or kind


def promised(path: Path) -> str | None:
    """Return "picture" or "video" by the ending of a file's name, else None."""
    suffix = path.suffix.lower()
    return "picture" if suffix in PICTURES else "video" if suffix in VIDEOS else None


def printable(name: str) -> str:
    r"""Return a name for a log or a database, with unprintable characters escaped. Two names never become one.

    >>> printable("a b.png"), printable("a\nb.png"), printable("a\\nb.png")
    ('a b.png', 'a\\nb.png', 'a\\\\nb.png')
    """
    return name if name.isprintable() and "\\" not in name else ascii(name)[1:-1]


def _walk(folder: Path, left_out: dict[str, str]) -> Iterator[Path]:
    """Yield all files in a folder and its subfolders, except hidden folders. Leave out subfolders that cannot be listed."""

    def leave_out(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise error
        left_out[printable(_within(Path(error.filename), folder)) + "/"] = f"cannot be listed: {error.strerror}"

    visited = set()
    for here, folders, names in os.walk(folder, onerror=leave_out, followlinks=True):
        there = os.stat(here)
        known = (there.st_dev, there.st_ino) in visited
        visited.add((there.st_dev, there.st_ino))
        folders[:] = [] if known else _own_first(here, folders)
        yield from (Path(here, name) for name in names if not known)


def _own_first(here: str, folders: list[str]) -> list[str]:
    seen = [name for name in folders if not name.startswith(".")]
    return sorted(seen, key=lambda name: (os.path.islink(os.path.join(here, name)), name))


def _within(path: Path, folder: Path) -> str:
    return path.name if path == folder else path.relative_to(folder).as_posix()


def _said(left_out: dict[str, str]) -> str:
    if not left_out:
        return f" ({', '.join(PICTURES + VIDEOS)})"
    some = ", ".join(f"{name} ({why})" for name, why in sorted(left_out.items())[:NAMED])
    return f": {len(left_out):,} left out: {some}{', ...' if len(left_out) > NAMED else ''}"
