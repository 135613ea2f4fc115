"""What every SQLite file of ours needs, whichever module keeps it: readers and a writer at once, whoever opens it first."""

import sqlite3
import time


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
