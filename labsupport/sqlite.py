"""What every SQLite file of ours needs, whichever module keeps it: readers and a writer at once, whoever opens it first."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager


def write_ahead(connection: sqlite3.Connection, patience: float = 5.0) -> None:
    """Keep the file in write-ahead mode from now on: who reads waits for no writer (sqlite.org/wal.html).

    Only one connection can switch a file, and SQLite gives up at once where it would wait for other locks: so we try again,
    for up to `patience` seconds. Raises sqlite3.OperationalError after that.

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
    """All of what follows is written, or nothing of it; no other process writes meanwhile. FULL waits for the disk.

    `synchronous` is "FULL" or "NORMAL" (sqlite.org/pragma.html). Raises what SQLite raises.

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
