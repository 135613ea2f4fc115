"""Compute how much memory the server may use and how much a picture needs, before the picture is decoded."""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from labsupport import images

GROUPS, GROUP_FILES = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
SHARE = 0.75  # of the memory limit: the rest is for uncounted memory, such as gaps in the allocator
PIXEL_BYTES = 12  # most bytes of memory for a pixel: a progressive JPEG in four colours, while it is decoded
COPIES = 3  # of an upload: in the form's file, as bytes, and one made by decoding
LARGE_BODY = 2_000_000  # bytes: an upload above this is large
LARGE_PICTURE = 4_000_000 * PIXEL_BYTES  # bytes: a picture that needs more than this is large
SMALL = LARGE_PICTURE + 2 * COPIES * LARGE_BODY  # bytes of the budget reserved for small uploads
LARGEST = images.MAX_PIXELS * 10  # bytes for the largest picture: it is decoded, copied for drawing, and encoded
LEAST = LARGEST + 2 * SMALL + COPIES * images.MAX_BYTES  # bytes: with less, the largest picture would never fit

logger = logging.getLogger(__name__)


def memory_limit() -> int:
    """Return the bytes of memory that this process may use.

    That is the limit of the container or control group that it runs in. Without one it is a quarter of the machine's memory.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min((bytes for bytes in group_limits() if 0 < bytes < machine), default=machine // 4)


def resident() -> int:
    """Return the bytes of memory that this process uses now, or 0 if the system does not report it."""
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def memory_needed(upload: bytes) -> int:
    """Return the bytes of memory needed to decode an upload, detect objects in it, and draw them.

    Only the picture's header is read. For a picture that `images.decode` refuses by its header, return 0.

    >>> import numpy as np
    >>> memory_needed(images.encode(np.zeros((10, 20, 3), np.uint8), "png")), memory_needed(b"no picture")
    (2400, 0)
    """
    try:
        width, height = images.measure(upload)
    except (images.UnsupportedImage, images.ImageTooLarge):
        return 0
    return min(width * height * PIXEL_BYTES, LARGEST)


def group_limits(groups: Path = GROUPS, root: Path = GROUP_FILES) -> Iterator[int]:
    """Yield the memory limit of each control group that this process is in, of version 1 or 2 (Linux's cgroups)."""
    with contextlib.suppress(OSError):
        for line in groups.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            own = root / controllers / path.lstrip("/")
            for folder in (own, *own.parents):
                with contextlib.suppress(OSError, ValueError):  # ValueError: "max", which is no limit
                    yield int((folder / ("memory.limit_in_bytes" if controllers else "memory.max")).read_text())


class Budget:
    """Count bytes that are taken and given back. Refuse to give more than `total`. Safe to use from several threads.

    >>> budget = Budget(100)
    >>> budget.take(60), budget.take(60), budget.take(20, leaving=30)
    (True, False, False)
    """

    def __init__(self, total: int | None = None) -> None:
        """Begin with a budget of `total` bytes; None: the bytes `left` of `memory_limit()`."""
        self.total = self.left(memory_limit()) if total is None else total
        self.taken = 0
        self.lock = threading.RLock()
        self.given_back: Callable[[], None] = lambda: None  # called, with the lock, when bytes were given back

    @staticmethod
    def left(limit: int) -> int:
        """Return the bytes for requests in a process that may use `limit`. Call it when the models are loaded.

        If this is not enough for the largest picture, log a warning, and return the bytes that this picture needs.
        """
        if (left := int(SHARE * limit) - resident()) < LEAST:
            more = (LEAST - left) / SHARE / 1e6
            logger.warning("for pictures of %d pixels give this server %.0f MB more memory", images.MAX_PIXELS, more)
        return max(left, LEAST)

    def take(self, size: int, leaving: int = 0) -> bool:
        """Take `size` bytes if `leaving` bytes remain after that. Return whether they were taken."""
        with self.lock:
            if fits := self.taken + size + leaving <= self.total:
                self.taken += size
            return fits

    def give(self, size: int) -> None:
        """Give `size` bytes back."""
        with self.lock:
            self.taken -= size
            self.given_back()


class Hold:
    """Track the bytes of the budget that one request holds. They grow, and are given back when the request ends."""

    def __init__(self, budget: Budget) -> None:
        self.budget, self.size = budget, 0

    def grow(self, size: int) -> bool:
        """Hold `size` bytes in all. Return False if that does not fit."""
        leaving = LARGEST + 2 * SMALL if size > COPIES * LARGE_BODY else SMALL
        if size > self.size and not self.budget.take(size - self.size, leaving):
            return False
        self.size = max(size, self.size)
        return True

    def set(self, size: int) -> None:
        """Hold `size` bytes, also beyond the budget, because they are in memory already."""
        with self.budget.lock:
            self.budget.give(self.size - size)
            self.size = size
