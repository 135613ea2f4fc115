"""Rows on their way into a database: whoever has one goes on at once, and a thread writes them in batches.

`predictions` says what a row is and how it is inserted; here is when, and what happens if the database does not take it.
"""

import atexit
import logging
import threading
import time as clock
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import islice

import sqlalchemy as sql
from sqlalchemy.exc import DataError, DBAPIError

from labsupport import background
from labsupport.log import tables

QUEUE, BATCH = 10_000, 500  # rows that wait in memory, rows that are written in one transaction: at most
DELAY = 0.2  # seconds that a row waits for others to be written with, and that we wait before another try
PAUSE = 60.0  # seconds between two lines about rows that cannot be written
TEND = 30.0  # seconds between two looks at what has become too old, or too much

logger = logging.getLogger(__name__)


class NotWritten(TimeoutError):
    """The database did not take in time what was recorded."""


class Trouble:
    """Say that something does not work when it begins, and that it works again, however often it fails in between.

    `logging` gets one warning for each. `name` is what the messages are about.

    >>> trouble = Trouble("the file")
    >>> for _ in range(3):
    ...     trouble.met("cannot be read")
    >>> trouble.over("can be read again")
    """

    def __init__(self, name: str) -> None:
        self.name, self.there = name, False

    def met(self, message: str, *arguments) -> None:
        if not self.there:
            self.there = True
            logger.warning(f"%s {message}", self.name, *arguments)

    def over(self, message: str, *arguments) -> None:
        if self.there:
            self.there = False
            logger.warning(f"%s {message}", self.name, *arguments)


class Writer:
    """A queue of rows, and the thread that empties it: after 0.2 s or 500 rows, each batch in one transaction.

    - `insert(connection, rows)` writes a batch; it may be called again with rows whose transaction failed.
    - `prepare()` is called after a failure, before the database is opened again.
    - `tend()` is called now and then by the same thread, returns whether there is more to do, and is logged if it raises.
    - `end()` is called when the thread ends.
    - `name` is for messages.

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
        insert: Callable[[sql.Connection, list[dict]], None],
        prepare: Callable[[], object] = lambda: None,
        tend: Callable[[], bool] | None = None,
        end: Callable[[], object] = lambda: None,
    ) -> None:
        self.dropped = 0
        self._engine, self._name, self._insert = engine, name, insert
        self._prepare, self._tend, self._end = prepare, tend, end
        self._changed = threading.Condition()  # guards what follows, and is never held while the database works
        self._queue: deque = deque()  # (number, row), the oldest first; a row leaves it once it is written
        self._number = self._writing = self._flushing = 0  # rows so far; rows in the transaction; threads in flush
        self._lost = 0  # rows that made room since few rows waited
        self._most, self._due, self._closing = BATCH, 0.0, False
        self._thread: threading.Thread | None = None
        self._away, self._full, self._tending = Trouble(name), Trouble(name), Trouble(name)
        self._bad, self._bad_due = 0, 0.0  # rows that no database can hold, since we last said so; when we may again

    def put(self, row: dict) -> None:
        """Leave a row to be written. Where too many wait, the oldest that is in no transaction makes room and is counted."""
        with self._changed:
            self._number += 1
            self._queue.append((self._number, row))
            if len(self._queue) > QUEUE:
                del self._queue[self._writing]  # those before it are in a transaction already
                self._lose(1)
            if self._thread is None:
                self._start()
            if len(self._queue) in (1, BATCH):
                self._changed.notify_all()

    def flush(self, timeout: float = 5) -> None:
        """Wait until everything that was put so far is written. Raises `NotWritten` after `timeout` seconds."""
        with self._changed:
            last = self._number
            self._flushing += 1
            self._changed.notify_all()
            written = self._changed.wait_for(lambda: not self._queue or self._queue[0][0] > last, timeout)
            self._flushing -= 1
            if not written:
                raise NotWritten(f"{len(self._queue):,} rows still wait to be written to the log after {timeout} s")

    def close(self) -> None:
        """Write what waits and end the thread. What cannot be written within about 5 s is dropped, and that is logged."""
        if (thread := self._thread) is None:
            return
        atexit.unregister(self.close)
        with suppress(NotWritten):  # then the thread gives up, and says so
            self.flush()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        thread.join(2 * tables.BUSY)

    def _start(self) -> None:
        self._closing = False
        with suppress(RuntimeError):  # no thread to be had just now: the next row asks again
            self._thread = background.repeat(self._work, "PredictionLog", threading.Event(), after_error=DELAY)
            atexit.register(self.close)

    def _work(self) -> bool:
        """Write and tend until the log closes, or the database fails; return whether the log is closed."""
        closed = False
        try:
            if self._away.there:
                self._prepare()
            with self._engine.connect() as connection:
                while (rows := self._next()) is not None:
                    if rows:
                        with connection.begin():
                            self._insert(connection, rows)
                        if tables.moved(connection):
                            raise tables.LogUnavailable("the file was deleted or replaced")
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

    def _next(self) -> list[dict] | None:
        """The rows to write next, once it is time to; none if it is time to tend, None if the log closes."""
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
        """Say that a trouble is over, if few rows wait; and that there is one, if many wait and some made room."""
        with self._changed:
            lost = self._lost
            self._lost = 0 if few else lost
        if few:
            self._full.there = self._full.there and not self._away.there  # one line is enough
            self._away.over("is written again, %d rows were dropped", lost)
            self._full.over("keeps up again, %d rows were dropped", lost)
        elif lost:
            self._full.met("takes fewer rows than come: the oldest that wait are dropped")

    def works(self) -> None:
        """Say that the database is written again, if no row waits to be."""
        if not self._queue:
            self._say_lost(few=True)

    def fails(self, error: Exception) -> None:
        """Say that the database cannot be written, once until it is written again."""
        self._away.met("cannot be written, rows wait: %s", tables.reason(error))

    def _given_up(self, error: Exception) -> bool:
        """Locked, full, away: no row is to blame and it may pass, so we try again, unless the log closes."""
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
        """A row that no database can hold would stop all others: write one by one until we meet it, and drop that one."""
        self._most = 1 if self._writing > 1 else BATCH
        if self._most == BATCH:
            with self._changed:
                self.dropped += 1
            self._written(1)
            self._bad += 1
            if clock.monotonic() >= self._bad_due:
                self._say_bad(f"{type(error).__name__}: {tables.reason(error)}"[:200])

    def _say_bad(self, why: str = "as before") -> None:
        """Say how many rows were dropped because no database can hold them, at most once a minute."""
        if self._bad:
            logger.warning("%s: %d rows that cannot be written were dropped: %s", self._name, self._bad, why)
            self._bad, self._bad_due = 0, clock.monotonic() + PAUSE

    def _look_after(self) -> None:
        """Tend, if it is time to: no row waits for longer than one step of it takes."""
        if self._tend is None or self._closing or clock.monotonic() < self._due:
            return
        try:
            more = self._tend()
            self._tending.over("is kept within its limits again")
        except Exception as error:
            more = self._tending.met("is not kept within its limits, old rows stay: %s", tables.reason(error))
        self._due = 0.0 if more else clock.monotonic() + TEND


def _blames_a_row(error: Exception) -> bool:
    return isinstance(error, DataError) or not isinstance(error, DBAPIError | OSError | MemoryError)
