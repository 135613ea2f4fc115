"""Open SQLite files for all modules: readable only by the owner, under any path, with readers beside a writer."""

import errno
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

LONGEST = 503  # bytes of a path: SQLite takes 511, and the names of the files beside it are up to 8 longer
SHARED: dict[str, Any] = {
    "isolation_level": None,
    "check_same_thread": False,
}  # between threads; no transaction begins automatically

logger = logging.getLogger(__name__)


def connect(path: Path | str, patience: float, **options: Any) -> sqlite3.Connection:
    """Open or create a SQLite file that only its owner can read and write.

    `path` is any path of up to 503 bytes; `patience` is how many seconds a call waits for another writer; `options` go to
    `sqlite3.connect`. Threads may share the connection, and no transaction begins automatically.
    Raises OSError if the file cannot be created, sqlite3.Error if it cannot be opened.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> connect(f"{folder.name}/100% mine?.db", patience=1).close()
    >>> [(file.name, oct(file.stat().st_mode)) for file in Path(folder.name).iterdir()]
    [('100% mine?.db', '0o100600')]
    >>> folder.cleanup()
    """
    make(path)
    return reopen(path, patience, **options)


def reopen(path: Path | str, patience: float, **options: Any) -> sqlite3.Connection:
    """Open an existing SQLite file, as `connect` does. Raises sqlite3.OperationalError if there is none."""
    address = f"file://{quote(os.fsencode(Path(path).absolute()))}?mode=rw"
    connection: sqlite3.Connection = sqlite3.connect(address, uri=True, timeout=patience, **{**SHARED, **options})
    return connection


def make(path: Path | str) -> None:
    """Create an empty file for its owner only, if there is none. Raises OSError if that fails, or if it is a folder."""
    path = Path(path).absolute()
    if len(os.fsencode(path)) > LONGEST:
        raise OSError(errno.ENAMETOOLONG, f"SQLite takes paths of at most {LONGEST} bytes, this one is longer")
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))


def identity(path: Path) -> tuple[int, int] | None:
    """Return the device and inode of a file, which change if it is replaced; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def make_private(path: Path | str) -> None:
    """Let only the owner read and write an existing file or folder, and SQLite's files beside it.

    Call it only for a file of this package. A file of another user is not changed. A failure is logged.
    """
    for end in ("", "-wal", "-shm", "-journal"):
        file = Path(f"{path}{end}")
        try:
            status = file.stat()
            if status.st_mode & 0o077 and os.geteuid() in (0, status.st_uid):
                file.chmod(status.st_mode & 0o700)
        except FileNotFoundError:
            pass
        except OSError as error:
            logger.warning("%s: others may be able to read it, and that cannot be changed: %s", file, error.strerror)


def write_ahead(connection: sqlite3.Connection, patience: float = 5.0) -> None:
    """Switch the file to write-ahead mode permanently. Then readers do not wait for a writer (sqlite.org/wal.html).

    Only one connection can switch a file, and SQLite does not wait for locks here. So we try again for up to `patience`
    seconds. Raises sqlite3.OperationalError after that.

    >>> connection = sqlite3.connect(":memory:")
    >>> write_ahead(connection)
    """
    until = time.monotonic() + patience
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(0.01)


@contextmanager
def transaction(connection: sqlite3.Connection, synchronous: str) -> Iterator[sqlite3.Connection]:
    """Run the block as one transaction: all of it is written, or nothing. No other process writes meanwhile.

    `synchronous` is "FULL", which waits for the disk, or "NORMAL" (sqlite.org/pragma.html). Raises the errors of SQLite. Do
    not use it for reads, because it waits for writers.

    >>> connection = sqlite3.connect(":memory:", isolation_level=None)
    >>> with transaction(connection, "FULL"):
    ...     made = connection.execute("CREATE TABLE notes (text TEXT)")
    >>> connection.in_transaction
    False
    """
    connection.execute(f"PRAGMA synchronous={synchronous}")
    with connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection


def rewrite(connection: sqlite3.Connection, patience: float) -> None:
    """Write the file anew and empty its write-ahead log, so that no byte of a removed row is left in either.

    `PRAGMA secure_delete` overwrites removed rows, but not the copies that SQLite left in its pages when it moved rows.
    Waits up to `patience` seconds for other processes. Raises sqlite3.OperationalError if one holds the file for longer.

    >>> connection = sqlite3.connect(":memory:", isolation_level=None)
    >>> rewrite(connection, patience=1)
    """
    (before,) = connection.execute("PRAGMA busy_timeout").fetchone()
    connection.execute(f"PRAGMA busy_timeout={patience * 1000:.0f}")
    try:
        connection.execute("VACUUM")
        busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        connection.execute(f"PRAGMA busy_timeout={before}")
    if busy:
        raise sqlite3.OperationalError("another process is reading the file")
