"""Where the lab's folders are, whichever folder a notebook or a command was started from.

The lab's root is `LAB_ROOT` if that is set; else the nearest folder, from the working folder upwards, that holds both
`images` and `notebooks`; else the checkout that this package was installed from.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDERS = {"IMAGES": "images", "IMAGES_WITH_BOXES": "images_with_boxes", "IMAGES_UPLOADED": "images_uploaded"}


class LabNotFound(FileNotFoundError):
    """No folder of the lab is in sight; the message says how to point at one."""


def root() -> Path:
    """The lab's root folder. Raises `LabNotFound`."""
    if chosen := os.environ.get("LAB_ROOT"):
        if not Path(chosen).is_dir():
            raise LabNotFound(f"LAB_ROOT is {chosen}, and there is no such folder: correct it or unset it")
        return Path(chosen).resolve()
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).resolve().parent.parent):
        if (folder / "images").is_dir() and (folder / "notebooks").is_dir():
            return folder
    raise LabNotFound(f"no lab in {here} or above it: set LAB_ROOT to the folder that holds images and notebooks")


def __getattr__(name: str) -> Path:
    """`IMAGES`, `IMAGES_WITH_BOXES` and `IMAGES_UPLOADED`, found when they are asked for."""
    if name not in FOLDERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    folder = root() / FOLDERS[name]
    folder.mkdir(exist_ok=True)
    return folder


def cache() -> Path:
    """Where converted networks are kept: `labsupport` in the user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "labsupport"


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`: what is written there gets the name `path` if all goes well, and goes away if not.

    So a file or a folder appears complete or not at all, whoever else is writing or reading it.

    >>> folder = Path(tempfile.mkdtemp())
    >>> with whole(folder / "notes.txt") as partial:
    ...     size = partial.write_text("all of it")
    >>> [file.name for file in folder.iterdir()]
    ['notes.txt']
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent, ignore_cleanup_errors=True) as folder:
        partial = Path(folder) / path.name
        yield partial
        os.replace(partial, path)
