"""Which files of a folder are pictures or videos: each once, whatever links lead to it."""

import os
from collections.abc import Iterator
from pathlib import Path

PICTURES = (".jpeg", ".jpg", ".png")
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")


class NoPictures(FileNotFoundError):
    """There is no such folder, or nothing in it that is called a picture or a video."""


def files(folder: Path) -> Iterator[Path]:
    """What is called a picture or a video in a folder and below, or the one file itself; hidden names are left out.

    Each folder comes once, and by its own name rather than a link's where both stand side by side. Raises `NoPictures` if
    there is no such folder, and OSError for a subfolder that cannot be listed.

    >>> from labsupport import paths
    >>> "clock.png" in [file.name for file in files(paths.IMAGES)]
    True
    """
    if not folder.exists():
        raise NoPictures(f"{folder}: there is no such folder")
    if not folder.is_dir():
        yield from [folder] if _is_called_so(folder.name) else []
        return
    visited = set()
    for here, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        there = os.stat(here)
        known = (there.st_dev, there.st_ino) in visited
        visited.add((there.st_dev, there.st_ino))
        folders[:] = [] if known else _own_first(here, folders)
        yield from (Path(here, name) for name in names if not known and _is_called_so(name))


def found(folder: Path) -> list[Path]:
    """As `files`, and at least one. Raises `NoPictures` if there is none, too."""
    if listed := list(files(folder)):
        return listed
    raise NoPictures(f"{folder}: no picture or video in it ({', '.join(PICTURES + VIDEOS)})")


def _own_first(here: str, folders: list[str]) -> list[str]:
    seen = [name for name in folders if not name.startswith(".")]
    return sorted(seen, key=lambda name: (os.path.islink(os.path.join(here, name)), name))


def _is_called_so(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in PICTURES + VIDEOS


def _refuse(error: OSError) -> None:
    raise error
