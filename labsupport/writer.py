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

from labsupport import tables

QUEUE, BATCH = 10_000, 500  # rows that wait in memory, rows that are written in one transaction: at most
DELAY = 0.2  # seconds that a row waits for others to be written with, and that we wait before another try
TEND = 30.0  # seconds between two looks at what has become too old, or too much

logger = logging.getLogger(__name__)


class NotWritten(TimeoutError):
    """The database did not take in time what was recorded."""


class Writer:
    """A queue of rows, and the thread that empties it: after 0.2 s or 500 rows, each batch in one transaction.

    `insert(connection, rows)` writes a batch; it may be called again with rows whose transaction failed. `tend()` is called
    now and then by the same thread, returns whether there is more to do, and is logged if it raises. `name` is for messages.

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
        tend: Callable[[], bool] | None = None,
    ) -> None:
        self.dropped = 0
        self._engine, self._name, self._insert, self._tend = engine, name, insert, tend
        self._changed = threading.Condition()  # guards what follows, and is never held while the database works
        self._queue: deque = deque()  # (number, row), the oldest first; a row leaves it once it is written
        self._number = self._writing = self._flushing = 0  # rows so far; rows in the transaction; threads in flush
        self._most, self._due, self._closing = BATCH, 0.0, False
        self._thread: threading.Thread | None = None
        self._said: set[str] = set()

    def put(self, row: dict) -> None:
        """Leave a row to be written. Where too many wait, the oldest that is in no transaction makes room and is counted."""
        with self._changed:
            self._number += 1
            self._queue.append((self._number, row))
            if len(self._queue) > QUEUE:
                del self._queue[self._writing]  # those before it are in a transaction already
                self.dropped += 1
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
                raise NotWritten(
                    f"{len(self._queue):,} rows still wait to be written to {self._name} after {timeout} s"
                )

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
        thread = threading.Thread(target=self._write, name="PredictionLog", daemon=True)
        with suppress(RuntimeError):  # no thread to be had just now: the next row asks again
            thread.start()
            self._thread = thread
            atexit.register(self.close)

    def _write(self) -> None:
        """What the thread does, until the log closes."""
        while True:
            try:
                with self._engine.connect() as connection:
                    while (rows := self._next()) is not None:
                        if rows:
                            with connection.begin():
                                self._insert(connection, rows)
                            self._written(len(rows))
                        self._look_after()
                return
            except Exception as error:
                if self._writing and _blames_a_row(error):
                    self._single_out(error)
                elif self._given_up(error):
                    return

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
            self._changed.notify_all()
        if "disk" in self._said:
            self._said.remove("disk")
            logger.warning("%s is written again, %d rows were dropped", self._name, self.dropped)

    def _given_up(self, error: Exception) -> bool:
        """Locked, full, away: no row is to blame and it may pass, so we try again, unless the log closes."""
        self._say("disk", "%s cannot be written, rows wait: %s", self._name, tables.reason(error))
        with self._changed:
            self._writing = 0
            if self._changed.wait_for(lambda: self._closing, DELAY):
                self.dropped += len(self._queue)
                self._queue.clear()
                self._thread = None
                self._changed.notify_all()
        if self.dropped:
            self._say("dropped", "%s: rows are dropped, %d so far", self._name, self.dropped)
        return self._thread is None

    def _single_out(self, error: Exception) -> None:
        """A row that no database can hold would stop all others: write one by one until we meet it, and drop that one."""
        self._most = 1 if self._writing > 1 else BATCH
        if self._most == BATCH:
            with self._changed:
                self.dropped += 1
                self._written(1)
            self._say("row", "a row that cannot be written was dropped: %r", getattr(error, "orig", error))

    def _look_after(self) -> None:
        """Tend, if it is time to: no row waits for longer than one step of it takes."""
        if self._tend is None or self._closing or clock.monotonic() < self._due:
            return
        try:
            more = self._tend()
        except Exception as error:
            more = self._say("tend", "%s: old rows cannot be removed: %s", self._name, tables.reason(error))
        self._due = 0.0 if more else clock.monotonic() + TEND

    def _say(self, what: str, message: str, *arguments) -> None:
        if what not in self._said:  # once, not with every row
            self._said.add(what)
            logger.warning(message, *arguments)


def _blames_a_row(error: Exception) -> bool:
    return isinstance(error, DataError) or not isinstance(error, DBAPIError)
