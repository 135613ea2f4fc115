"""Annotated pictures, kept if somebody asks for it: under names of our own, and only the newest of them."""

import threading
import time
from collections import deque
from pathlib import Path

from labsupport import paths

MOST = 1_000  # pictures
OLDEST = 7 * 24 * 3600  # seconds


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
        found = sorted(self.folder.glob("*.jpg"), key=lambda path: path.stat().st_mtime)
        self._lock = threading.Lock()
        self._kept = deque((path.stat().st_mtime, path) for path in found)

    def keep(self, name: str, content: bytes) -> Path:
        """Write a picture, whole, and drop what is now too old or too many. Returns where it is."""
        path = self.folder / name
        with paths.whole(path) as partial:
            partial.write_bytes(content)
        with self._lock:
            self._kept.append((time.time(), path))
            while self._kept and (len(self._kept) > self.most or time.time() - self._kept[0][0] > self.oldest):
                self._kept.popleft()[1].unlink(missing_ok=True)
        return path
