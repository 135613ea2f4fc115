"""Write down who did what, when, from where, on which object and with what effect, so that a later change is noticed.

Someone who can write the data folder can change or remove rows of the file there, and then `AuditTrail.verify` reports it.
Someone who can also read the key folder, such as the server's own user, can forge rows.
"""

import asyncio
import errno
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from labsupport import arguments, background, sqlite
from labsupport.access import verification
from labsupport.access.chain import START, ChainBroken, Field, Keeper, Link, row_hash
from labsupport.access.entry import HEADER, Entry, checked, line
from labsupport.access.verification import Row, Verdict

__all__ = ["AuditTrail", "AuditUnavailable", "Entry", "Verdict", "lines"]

BUSY = 10.0  # seconds that a call waits for other processes
STEP = 0.002  # seconds between two attempts to get the lock, and between two transactions of one process
UNWRITTEN = "the audit trail cannot be written now, so the request is refused: try again later"
UNREAD = "the audit trail cannot be read now: try again later"

logger = logging.getLogger(__name__)


class AuditUnavailable(OSError):
    """The trail cannot be written or read now. The message contains no path, because clients may see it; the log does."""


class AuditTrail:
    """Append entries to a SQLite file that several processes share. No method changes or removes a row.

    `path` is the file, in a folder that exists. `keys` is the key folder, outside of that folder. The first write makes the
    file, the key and the anchor. Threads may share a trail. Each process opens its own, also after a fork.

    When `append` or `write` returns, the disk has the entries (synchronous=FULL), and the anchor covers them. Neither
    kill -9 nor a power cut loses one, if the disk really wrote what it confirmed. With NORMAL, a power cut could undo the
    newest rows, and then `verify` would report them as missing. A power cut may set the anchor back by some seconds. Until
    the next write, `verify` then does not notice if someone removes rows that are newer than the anchor.

    If rows are missing, the next row continues from the anchor, so that `verify` still reports the gap. If the key or the
    anchor is missing or was changed, nothing is written until they are restored from a copy. To begin a new trail instead,
    move the file and the two files of the key folder away together.

    A row takes about 140 bytes. So 10,000 requests a day take 0.5 GB in a year.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> with AuditTrail(f"{folder.name}/audit.db", f"{folder.name}/keys") as trail:
    ...     trail.append([Entry(1.7e9, "p-0123456789ab", "client", "127.0.0.1", "POST /predict", "a1", "200")])
    ...     print(trail.verify())
    ...     for line in lines(trail, {"p-0123456789ab": "Ada"}):
    ...         print(line.replace("\\t", "  "))
    intact, rows: 1
    number  time  person  role  address  action  object  effect
    1  2023-11-14T22:13:20.000+00:00  Ada  client  127.0.0.1  POST /predict  a1  200
    >>> folder.cleanup()
    """

    def __init__(self, path: Path | str, keys: Path | str) -> None:
        """Name the file and the key folder. Opens nothing. Raises ValueError for an invalid path."""
        for name, value in (("path", path), ("keys", keys)):
            if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
                raise ValueError(
                    f"{name}={arguments.shown(value)}: give the path of a {'file' if name == 'path' else 'folder'}"
                )
        self.path, self._keeper = Path(path).absolute(), Keeper(Path(keys).absolute())
        self._lock = threading.Lock()  # guards the connection
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._key, self._trouble = b"", ""
        self._queue: queue.SimpleQueue[tuple[Row, Future[None]] | None] = queue.SimpleQueue()  # None ends the thread
        self._starting = threading.Lock()  # guards the thread
        self._thread: threading.Thread | None = None

    def append(self, entries: Iterable[Entry]) -> None:
        """Write entries in one transaction, in this order. Blocks until they are written; in a coroutine, use `write`.

        Raises `AuditUnavailable` if they cannot be written. Then none of them is in the trail, or all are if only the anchor
        could not be written. Raises ValueError for a field of a wrong type, and then none is written.
        """
        self._append([checked(entry) for entry in entries])

    async def write(self, entry: Entry) -> None:
        """Write one entry, and return when it is written. Entries that arrive meanwhile share the next transaction.

        A thread writes. If the task is cancelled, the entry is written nevertheless. Raises the errors of `append`.
        """
        row, written = checked(entry), Future[None]()
        written.set_running_or_notify_cancel()  # from now on it cannot be cancelled
        with self._starting:
            if self._thread is None:
                try:
                    self._thread = background.repeat(self._write_waiting, "AuditTrail", threading.Event())
                except RuntimeError as error:
                    raise AuditUnavailable(UNWRITTEN) from error
            self._queue.put((row, written))
        await asyncio.wrap_future(written)

    def verify(self) -> Verdict:
        """Check all rows, and return whether any was changed, removed, exchanged or added.

        Rows beyond the anchor are intact if their hashes are, because a crash before the anchor was written leaves them.
        Raises `AuditUnavailable` if the file or the keys cannot be read.
        """
        with self._reading() as connection:
            try:
                return verification.verify(connection, self._keeper)
            except ChainBroken as error:
                return Verdict(False, 0, None, str(error))
            except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
                if not verification.damaged(error):
                    raise
                return Verdict(False, 0, None, f"the file {self.path} is damaged: {error}")

    def entries(
        self, since: float | None = None, until: float | None = None, person: str | None = None
    ) -> Iterator[tuple[int, Entry]]:
        """Yield (number, entry) of the rows with since <= time < until, of one person or of all, the oldest first.

        Times are in seconds since the epoch. `person` is an id. The rows are not verified.
        Raises ValueError for another type, and `AuditUnavailable` if the file cannot be read.
        """
        conditions: list[tuple[str, Field]] = []
        if since is not None:
            conditions.append(("time >= ?", arguments.number("since", since)))
        if until is not None:
            conditions.append(("time < ?", arguments.number("until", until)))
        if person is not None:
            conditions.append(("person = ?", arguments.text("person", person)))
        return self._entries(conditions)

    @property
    def begun(self) -> bool:
        """Return whether anything was ever written, also if the file was removed since. Raises OSError."""
        return not self._keeper.unused()

    def close(self) -> None:
        """Write the waiting entries, end the thread and close the file. A later write opens it again."""
        with self._starting:
            if self._thread is not None:
                self._queue.put(None)
                self._thread.join()
                self._thread = None
        with self._lock:
            self._close_file()

    def __enter__(self) -> "AuditTrail":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<AuditTrail {self.path}>"

    def _write_waiting(self) -> bool:
        """Wait for entries, write all that wait in one transaction, and return whether the trail is being closed."""
        waiting = [self._queue.get()]
        while not self._queue.empty():  # only this thread takes from it
            waiting.append(self._queue.get())
        batch = [each for each in waiting if each is not None]
        try:
            if batch:
                self._append([row for row, _ in batch])
        except Exception:
            for _, written in batch:
                written.set_exception(AuditUnavailable(UNWRITTEN))  # each task gets its own
        else:
            for _, written in batch:
                written.set_result(None)
        time.sleep(STEP)  # let another process have the lock
        return len(batch) < len(waiting)

    def _append(self, rows: Sequence[Row]) -> None:
        with self._lock:
            try:
                self._commit(rows)
            except Exception as error:  # whatever it is, the caller must learn that nothing was written
                self._close_file()
                if (trouble := f"{type(error).__name__}: {error}") != self._trouble:
                    logger.error("%s cannot be written: %s", self.path, trouble)
                self._trouble = trouble
                raise AuditUnavailable(UNWRITTEN) from error
            if self._trouble:
                logger.warning("%s is written again", self.path)
                self._trouble = ""

    def _commit(self, rows: Sequence[Row]) -> None:
        connection = self._open()
        with _transaction(connection):
            last, chained = self._last(connection), []
            for row in rows:
                number = last.number + 1
                last = Link(number, row_hash(self._key, last.hash, number, row))
                chained.append((number, *row, last.hash))
            connection.executemany("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", chained)
        if sqlite.identity(self.path) != self._identity:
            raise FileNotFoundError(errno.ENOENT, "the file was removed or replaced meanwhile")
        with _transaction(connection):  # then no process can replace a newer anchor with an older one
            self._keeper.anchor(self._key, last)

    def _last(self, connection: sqlite3.Connection) -> Link:
        """Return the row that the next one follows: the newest in the file, or that of the anchor if rows are missing."""
        anchored, newest = self._keeper.anchored(self._key), verification.newest(connection)
        if anchored.number > newest.number:
            logger.error("%s: rows %d to %d are missing", self.path, newest.number + 1, anchored.number)
        return anchored if anchored.number >= newest.number else newest

    def _open(self) -> sqlite3.Connection:
        """Return the open file. Open or create it if it is not open, or was removed or replaced since."""
        if self._connection is not None and sqlite.identity(self.path) == self._identity:
            return self._connection
        self._close_file()
        self._connection = connection = sqlite.connect(self.path, STEP)
        self._identity = sqlite.identity(self.path)
        sqlite.write_ahead(connection, BUSY)
        with _transaction(connection):
            if (made := verification.tables(connection)) is None:
                connection.execute(verification.SCHEMA)
            elif made != verification.SCHEMA:
                raise sqlite3.DatabaseError("its tables are not those of an audit trail")
            if verification.newest(connection) == START and self._keeper.unused():
                self._keeper.begin()
            self._key = self._keeper.key()
        sqlite.make_private(self.path)
        return connection

    def _close_file(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """Yield a connection, or None if there is no file. Errors of the file become `AuditUnavailable`."""
        try:
            if self.path.exists():
                with closing(sqlite.reopen(self.path, BUSY)) as connection:
                    connection.text_factory = verification.as_text
                    yield connection
            else:
                yield None
        except (OSError, sqlite3.Error, UnicodeDecodeError) as error:
            logger.error("%s cannot be read: %s", self.path, error)
            raise AuditUnavailable(UNREAD) from error

    def _entries(self, conditions: Sequence[tuple[str, Field]]) -> Iterator[tuple[int, Entry]]:
        with self._reading() as connection:
            if connection is not None and verification.tables(connection) is not None:
                for number, *fields, _ in verification.read(connection, conditions):
                    yield number, Entry(*fields)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Run the block as one transaction. Wait for other processes up to `BUSY` seconds, in short steps.

    SQLite's own steps grow to 0.1 s. Then a process could wait for seconds while others write all the time.
    """
    until = time.monotonic() + BUSY
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(sqlite.transaction(connection, "FULL"))
                break
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
        yield


def lines(
    trail: AuditTrail,
    users: Mapping[str, str],
    since: float | None = None,
    until: float | None = None,
    person: str | None = None,
) -> Iterator[str]:
    """Yield `HEADER` and a `line` for each entry, the oldest first.

    `users` maps ids to names. The other arguments and the errors are those of `AuditTrail.entries`.
    """
    yield HEADER
    for number, entry in trail.entries(since, until, person):
        yield line(number, entry, users)
