"""Keep what takes long to make in the cache, with a checksum, and use it only if it is unchanged."""

import hashlib
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from labsupport import paths

CHECKSUM = "sha256"  # beside the files of a folder: their checksum
TICK = 20_000_000  # nanoseconds: longer than a step of the clock for file times

_digests: dict[Path, tuple[tuple[int, ...], str]] = {}  # a file -> its status when it was hashed, and its SHA-256
_hashing = threading.Lock()


def folder(name: str, make: Callable[[Path], None]) -> Path:
    """Return the folder `name` of the cache. If it is missing or was changed, make it anew.

    `make` writes files into a folder, and no subfolders. The folder appears complete or not at all. Raises the errors of
    `make`, and OSError with the reason if it cannot be stored.
    """
    made = paths.cache() / name
    if not _is_whole(made):
        try:
            shutil.rmtree(made, ignore_errors=True)
            with paths.whole(made) as partial:
                partial.mkdir()
                make(partial)
                (partial / CHECKSUM).write_text(_checksum(partial))
        except OSError as error:
            if not _is_whole(made):  # another process may have finished first; its files are as good
                raise OSError(f"could not be stored in {made}: {error.strerror or error}") from error
    return made


def key(*parts: str) -> str:
    """Return a part of a folder's name that changes with any of `parts`.

    A part that ends in .py is a module of this package, such as "darknet.py", and stands for its content.

    >>> key("a model") == key("a model"), key("a model") == key("a model", "another one")
    (True, False)
    """
    here = Path(__file__).parent
    content = [(here / part).read_bytes() if part.endswith(".py") else part.encode() for part in parts]
    return hashlib.sha256(b"\0".join(content)).hexdigest()[:16]


def digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal. Read the file once, and again if its status has changed."""
    with _hashing:
        status = _status(path)
        status_then, digest = _digests.get(path, (None, ""))
        if status_then != status:
            if 0 <= time.time_ns() - max(status[1:3]) < TICK:  # another change could get the same time
                time.sleep(TICK / 1e9)
                status = _status(path)
            with path.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            _digests[path] = status, digest
        return digest


def _is_whole(made: Path) -> bool:
    """Return whether files are unchanged since they were made. A damaged network might return wrong answers."""
    try:
        return (made / CHECKSUM).read_text() == _checksum(made)
    except OSError:  # not there, not readable, or another process is making it anew
        return False


def _checksum(made: Path) -> str:
    files = sorted(path for path in made.iterdir() if path.name != CHECKSUM)
    return hashlib.sha256(b"".join(bytes.fromhex(digest(path)) for path in files)).hexdigest()


def _status(path: Path) -> tuple[int, int, int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
