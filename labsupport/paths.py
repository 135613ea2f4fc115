"""Find the lab's folders from any working folder.

The lab's root is `LAB_ROOT` if that is set. Otherwise it is the nearest folder, from the working folder upwards, that holds
both `images` and `notebooks`. Otherwise it is the checkout that this package was installed from.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from labsupport import arguments

FOLDERS = {"IMAGES": "images", "IMAGES_WITH_BOXES": "images_with_boxes", "IMAGES_UPLOADED": "images_uploaded"}


class LabNotFound(FileNotFoundError):
    """The lab's folder was not found. The message says how to set it."""


def root() -> Path:
    """Return the lab's root folder. Raises `LabNotFound`."""
    if chosen := arguments.variable("LAB_ROOT", Path, "the lab's folder"):
        if not os.path.isdir(chosen):  # unlike Path.is_dir, False without permission
            raise LabNotFound(f"LAB_ROOT is {chosen}, and there is no such folder: correct it or unset it")
        return chosen.resolve()
    try:
        here = Path.cwd()
    except FileNotFoundError:
        raise LabNotFound("the working folder was removed: change to another one, or set LAB_ROOT") from None
    for folder in (here, *here.parents, Path(__file__).resolve().parent.parent):
        if (folder / "images").is_dir() and (folder / "notebooks").is_dir():
            return folder
    raise LabNotFound(f"no lab in {here} or above it: set LAB_ROOT to the folder that holds images and notebooks")


def __getattr__(name: str) -> Path:
    """Return `IMAGES`, `IMAGES_WITH_BOXES` or `IMAGES_UPLOADED`, found at the time of use."""
    if name not in FOLDERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    folder = root() / FOLDERS[name]
    folder.mkdir(exist_ok=True)
    return folder


def cache() -> Path:
    """Return the folder of what takes long to make, as converted networks. It may be deleted at any time.

    It is `labsupport` in the user's cache folder (`XDG_CACHE_HOME`, else `~/.cache`).
    Raises ValueError if `XDG_CACHE_HOME` is a relative path, which its specification forbids.
    """
    folder = arguments.variable("XDG_CACHE_HOME", _absolute, "an absolute path")
    return (folder or Path.home() / ".cache") / "labsupport"


def root_or_data() -> Path:
    """Return the lab's root folder, or where there is none a data folder of this user, which is made.

    That is `labsupport` in `XDG_DATA_HOME`, else in `~/.local/share`. Raises `LabNotFound` if `LAB_ROOT` is set to a folder
    that does not exist, and ValueError if `XDG_DATA_HOME` is a relative path.
    """
    try:
        return root()
    except LabNotFound:
        if arguments.variable("LAB_ROOT", Path, "the lab's folder"):
            raise
    folder = data()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def data() -> Path:
    """Return the folder of this user's data, which may not exist: `labsupport` in `XDG_DATA_HOME`, else `~/.local/share`.

    Raises ValueError if `XDG_DATA_HOME` is a relative path, and RuntimeError if this user has no home.
    """
    folder = arguments.variable("XDG_DATA_HOME", _absolute, "an absolute path")
    return (folder or Path.home() / ".local" / "share") / "labsupport"


def sync(path: Path) -> None:
    """Wait until the disk has a file, or the names of the files in a folder.

    >>> sync(Path(tempfile.gettempdir()))
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _absolute(text: str) -> Path:
    if not os.path.isabs(text):
        raise ValueError
    return Path(text)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. If the block succeeds, rename it to `path`; if not, remove it.

    So a file or a folder appears complete or not at all, also for other processes that write or read it.

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
