"""Queue rows and write them in batches on a thread. The caller does not wait.

`rows` inserts the rows. This module decides when to write, and what to do if the database cannot be written.
"""

import atexit
import logging
import threading
import time as clock
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import DataError, DBAPIError

from labsupport import background
from labsupport.log import tables

QUEUE, BATCH = 10_000, 500  # at most so many rows wait in memory, and are written in one transaction
DELAY = 0.2  # seconds that a row waits for more rows of its batch, and that we wait before another try
PAUSE = 60.0  # seconds between two lines about rows that cannot be written
TEND = 30.0  # seconds between two checks for rows that are too old or too many

logger = logging.getLogger(__name__)


class NotWritten(TimeoutError):
    """The rows could not be written to the database in time."""


class Trouble:
    """Log one warning when a trouble begins and one when it ends, however often it repeats in between.

    `name` names the subject of the messages.

    >>> trouble = Trouble("the file")
    >>> for _ in range(3):
    ...     trouble.met("cannot be read")
    >>> trouble.over("can be read again")
    """

    def __init__(self, name: str) -> None:
        self.name, self.there = name, False

    def met(self, message: str, *arguments: object) -> None:
        if not self.there:
            self.there = True
            logger.warning(f"%s {message}", self.name, *arguments)

    def over(self, message: str, *arguments: object) -> None:
        if self.there:
            self.there = False
            logger.warning(f"%s {message}", self.name, *arguments)


class Writer:
    """Queue rows, and write them on a thread: after 0.2 s or 500 rows, each batch in one transaction.

    - `insert(connection, rows)` writes a batch. It may be called again with rows whose transaction failed.
    - `prepare()` is called after a failure, before the database is opened again.
    - `tend()` is called every 30 s by the same thread, and returns whether there is more to do. Its errors are logged.
    - `end()` is called when the thread ends.
    - `name` names the database in messages.

    >>> written = []
    >>> writer = Writer(sql.create_engine("sqlite://"), "a list", lambda connection, rows: written.extend(rows))
    >>> writer.put({"id": "a1"})
    >>> writer.close()
    >>> written
    [{'id': 'a1'}]
    """

    def __init__(
        self,
        engine: sql.Engine,
        name: str,
        insert: Callable[[sql.Connection, list[dict[str, Any]]], None],
        prepare: Callable[[], object] = lambda: None,
        tend: Callable[[], bool] | None = None,
        end: Callable[[], object] = lambda: None,
    ) -> None:
        self.dropped = 0
        self._engine, self._name, self._insert = engine, name, insert
        self._prepare, self._tend, self._end = prepare, tend, end
        self._changed = threading.Condition()  # guards the attributes below; never held while the database works
        self._queue: deque[tuple[int, dict[str, Any]]] = (
            deque()
        )  # (number, row), the oldest first; a row leaves it once it is written
        self._number = self._writing = self._flushing = 0  # rows so far; rows in the transaction; threads in flush
        self._lost = 0  # rows that were dropped since the queue was last short
        self._most, self._due, self._closing = BATCH, 0.0, False
        self._thread: threading.Thread | None = None
        self._away, self._full, self._tending = Trouble(name), Trouble(name), Trouble(name)
        # rows that no database can store, since the last message; when the next message may come
        self._bad, self._bad_due = 0, 0.0

    def put(self, row: dict[str, Any]) -> None:
        """Queue a row. If too many rows wait, drop the oldest that is not in a transaction, and count it."""
        with self._changed:
            self._number += 1
            self._queue.append((self._number, row))
            if len(self._queue) > QUEUE:
                del self._queue[self._writing]  # the rows before it are in a transaction already
                self._lose(1)
            if self._thread is None:
                self._start()
            if len(self._queue) in (1, BATCH):
                self._changed.notify_all()

    def flush(self, timeout: float = 5) -> None:
        """Wait until all rows queued so far are written. Raises `NotWritten` after `timeout` seconds."""
        with self._changed:
            last = self._number
            self._flushing += 1
            self._changed.notify_all()
            written = self._changed.wait_for(lambda: not self._queue or self._queue[0][0] > last, timeout)
            self._flushing -= 1
            if not written:
                raise NotWritten(f"{len(self._queue):,} rows still wait to be written to the log after {timeout} s")

    def close(self) -> None:
        """Write the waiting rows and end the thread. Log how many cannot be written within about 5 s: these are lost."""
        with self._changed:
            if self._queue and self._thread is None:
                self._start()  # no thread was free when the rows came
            thread = self._thread
        if thread is None:
            self._left_behind()
            return
        atexit.unregister(self.close)
        with suppress(NotWritten):  # then the thread drops the rows and logs it
            self.flush()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        thread.join(2 * tables.BUSY)
        if thread.is_alive():  # it hangs in the database
            self._left_behind()

    def _left_behind(self) -> None:
        with self._changed:
            if waiting := len(self._queue):
                logger.warning(
                    "%s is closed, and %d rows are not written: they end with the program", self._name, waiting
                )

    def _start(self) -> None:
        self._closing = False
        atexit.unregister(self.close)
        atexit.register(self.close)
        with suppress(RuntimeError):  # no thread is available now: the next row tries again
            self._thread = background.repeat(self._work, "PredictionLog", threading.Event(), after_error=DELAY)

    def _work(self) -> bool:
        """Write and tend until the log closes or the database fails. Return whether the log is closed."""
        closed = False
        try:
            if self._away.there:
                self._prepare()
            with self._engine.connect() as connection:
                while (rows := self._next()) is not None:
                    if rows:
                        with connection.begin():
                            self._insert(connection, rows)
                        tables.check_file(connection)
                        self._written(len(rows))
                    self._look_after()
            closed = True
        except Exception as error:
            if self._writing and _blames_a_row(error):
                self._single_out(error)
            else:
                closed = self._given_up(error)
        if closed:
            self._say_bad()
            self._end()
        return closed

    def _next(self) -> list[dict[str, Any]] | None:
        """Wait for the next batch and return it. Return [] if it is time to tend, and None if the log closes."""
        with self._changed:
            pause = max(self._due - clock.monotonic(), 0) if self._tend else None
            self._changed.wait_for(lambda: self._queue or self._closing, pause)
            if self._queue:
                self._changed.wait_for(lambda: len(self._queue) >= self._most or self._flushing or self._closing, DELAY)
            self._writing = min(len(self._queue), self._most)
            if self._closing and not self._writing:
                self._thread = None
                return None
            return [row for _, row in islice(self._queue, self._writing)]

    def _written(self, count: int) -> None:
        with self._changed:
            for _ in range(count):
                self._queue.popleft()
            self._writing = 0
        self._say_lost(few=len(self._queue) < BATCH)
        with self._changed:
            self._changed.notify_all()

    def _say_lost(self, few: bool) -> None:
        """Log that a trouble is over if few rows wait. Log that there is one if many wait and some were dropped."""
        with self._changed:
            lost = self._lost
            self._lost = 0 if few else lost
        if few:
            self._full.there = self._full.there and not self._away.there  # one line is enough for both
            self._away.over("is written again, %d rows were dropped", lost)
            self._full.over("keeps up again, %d rows were dropped", lost)
        elif lost:
            self._full.met("takes fewer rows than come: the oldest that wait are dropped")

    def works(self) -> None:
        """Log that the database is written again, if no row waits."""
        if not self._queue:
            self._say_lost(few=True)

    def fails(self, error: Exception) -> None:
        """Log that the database cannot be written, once until it is written again."""
        self._away.met("cannot be written, rows wait: %s", tables.reason(error))

    def _given_up(self, error: Exception) -> bool:
        """Try again after an error that no row caused (locked, full, not reachable). If the log closes, drop the rows."""
        self.fails(error)
        with self._changed:
            self._writing = 0
            if self._changed.wait_for(lambda: self._closing, DELAY):
                self._lose(len(self._queue))
                self._queue.clear()
                self._thread = None
                self._changed.notify_all()
            closed, lost = self._closing, self._lost
            self._lost = 0 if closed else lost
        if closed:
            logger.warning("%s is closed while it cannot be written: %d rows were dropped", self._name, lost)
        elif lost:
            self._full.met("cannot be written for too long: rows are dropped")
        return closed

    def _lose(self, count: int) -> None:
        self.dropped += count
        self._lost += count

    def _single_out(self, error: Exception) -> None:
        """Find the row that no database can store: write rows one by one, and drop the one that fails."""
        self._most = 1 if self._writing > 1 else BATCH
        if self._most == BATCH:
            with self._changed:
                self.dropped += 1
            self._written(1)
            self._bad += 1
            if clock.monotonic() >= self._bad_due:
                self._say_bad(f"{type(error).__name__}: {tables.reason(error)}"[:200])

    def _say_bad(self, why: str = "as before") -> None:
        """Log how many rows were dropped because no database can store them, at most once a minute."""
        if self._bad:
            logger.warning("%s: %d rows that cannot be written were dropped: %s", self._name, self._bad, why)
            self._bad, self._bad_due = 0, clock.monotonic() + PAUSE

    def _look_after(self) -> None:
        """Tend if it is time. This delays rows by one step of `tend` at most."""
        if self._tend is None or self._closing or clock.monotonic() < self._due:
            return
        try:
            more = self._tend()
            self._tending.over("is kept within its limits again")
        except Exception as error:
            more = False
            self._tending.met("is not kept within its limits, old rows stay: %s", tables.reason(error))
        self._due = 0.0 if more else clock.monotonic() + TEND


def _blames_a_row(error: Exception) -> bool:
    return isinstance(error, DataError) or not isinstance(error, DBAPIError | OSError | MemoryError)
