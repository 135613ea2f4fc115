"""Annotated pictures, kept if somebody asks for it: under names of our own, and only the newest of them."""

import logging
import shutil
import threading
import time
from collections import deque
from pathlib import Path

from labsupport import paths

MOST = 1_000  # pictures
OLDEST = 7 * 24 * 3600  # seconds
ABANDONED = 600  # seconds: no picture takes so long to write

logger = logging.getLogger(__name__)


class Uploads:
    """The pictures in `images_uploaded`: at most `most` of them, none older than `oldest` seconds once another is kept.

    >>> import tempfile
    >>> uploads = Uploads(Path(tempfile.mkdtemp()), most=2)
    >>> kept = [uploads.keep(name, b"a picture") for name in ("a.jpg", "b.jpg", "c.jpg")]
    >>> [path.exists() for path in kept]
    [False, True, True]
    """

    def __init__(self, folder: Path | None = None, most: int = MOST, oldest: float = OLDEST) -> None:
        self.folder, self.most, self.oldest = folder or paths.IMAGES_UPLOADED, most, oldest
        self._lock = threading.Lock()
        self._kept = deque(sorted((_written(path), path) for path in self.folder.glob("*.jpg")))
        self._missed = 0  # pictures since the disk last took one
        for half in self.folder.glob(".partial-*"):  # of a server that was killed while it wrote
            if time.time() - _written(half) > ABANDONED:
                shutil.rmtree(half, ignore_errors=True)

    def keep(self, name: str, content: bytes) -> Path | None:
        """Write a picture, whole, and drop what is now too old or too many. Returns where it is.

        None if the disk does not take it: that costs a copy, not somebody's answer, and `logging` says it once.
        """
        path = self.folder / name
        try:
            with paths.whole(path) as partial:
                partial.write_bytes(content)
        except OSError as error:
            self._miss(error)
            return None
        with self._lock:
            if self._missed:
                logger.warning("%s: pictures are kept again, %d were not", self.folder, self._missed)
                self._missed = 0
            self._kept.append((time.time(), path))
            while self._kept and (len(self._kept) > self.most or time.time() - self._kept[0][0] > self.oldest):
                self._kept.popleft()[1].unlink(missing_ok=True)
        return path

    def _miss(self, error: OSError) -> None:
        with self._lock:
            self._missed += 1
            if self._missed == 1:
                logger.warning("%s: pictures cannot be kept: %s", self.folder, error)


def _written(path: Path) -> float:
    """When; now, if another worker has just taken it away."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()
