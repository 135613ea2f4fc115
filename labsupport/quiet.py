"""Keep notes of compiled libraries out of a notebook."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hushed() -> Iterator[None]:
    """Drop what compiled code writes to the standard error inside a `with` block. Python's own messages still appear.

    >>> with hushed():
    ...     _ = os.write(2, b"a note of a library")
    """
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
