"""Remove the oldest rows of all tables of the log in small transactions, and give their space back to the disk.

Transactions are small so that writers do not wait for long. Users' remarks are removed together with their prediction.
"""

import logging
import sqlite3
import time as clock
from collections.abc import Callable
from datetime import timedelta
from math import ceil
from typing import TypeVar

import sqlalchemy as sql

from labsupport import arguments, sqlite
from labsupport.log.tables import BUSY, DECISIONS, FEEDBACK, FORGOTTEN, PREDICTIONS, PRUNING, TENDING, alone, driver

AGED = {  # every table with limits, and the column with the time of a row
    PREDICTIONS: PREDICTIONS.c.time,
    FEEDBACK: FEEDBACK.c.time,
    DECISIONS: DECISIONS.c.time,
    FORGOTTEN: FORGOTTEN.c.time,
}
ROWS = {"sqlite": 1000, "postgresql": 10_000}  # of a table in one transaction; in PostgreSQL it blocks no writer
PAGES = 500  # given back to the disk in one transaction
SAMPLE = 1_000  # pages of a table in PostgreSQL that are read to estimate its size: 8 MB
INCREMENTAL = 2  # SQLite's auto_vacuum mode in which pages can be given back a few at a time
JUMP = 3_600.0  # seconds: a clock that jumps ahead by more was set, and may be set back

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


class Retention:
    """Keep only rows no older than `keep`, and at most `max_bytes` of them. None means no limit.

    Raises ValueError for a negative limit, TypeError for a `keep` that is not a timedelta.

    >>> Retention(sql.create_engine("sqlite://"), keep=30, max_bytes=None)
    Traceback (most recent call last):
    TypeError: keep or older_than=30: give a timedelta, as in timedelta(days=30)
    """

    def __init__(self, engine: sql.Engine, keep: timedelta | None, max_bytes: int | None) -> None:
        if not isinstance(keep, timedelta | None):
            raise TypeError(f"keep or older_than={arguments.shown(keep)}: give a timedelta, as in timedelta(days=30)")
        if keep is not None and keep < timedelta(0):
            raise ValueError(f"keep or older_than={keep}: a limit cannot be negative: give a timedelta of at least 0")
        if max_bytes is not None:
            max_bytes = int(arguments.number("max_bytes", max_bytes, 0, whole=True))
        self._engine, self._keep, self._max_bytes = engine, keep, max_bytes
        self._began = clock.time() - _elapsed()
        self._jumped = False
        self._turn: sql.Connection | None = None  # holds PostgreSQL's lock, which only one process at a time can have

    def step(self) -> bool:
        """Remove some rows or free some space. Return whether more is to do. In PostgreSQL one process does it for all."""
        if not self._our_turn():
            return False
        with self._connection() as connection:
            if self._remove(connection) or _gave_back(connection):
                return True
            _empty_log(connection)
            return False

    def all(self) -> int:
        """Remove all rows beyond the limits, and give back their space. Return the number of predictions removed."""
        removed, changed = 0, False
        with self._connection() as connection:
            while counts := self._pausing(self._remove, connection):
                removed, changed = removed + counts[PREDICTIONS], True
            while self._pausing(_gave_back, connection):  # needs no free space on the disk
                pass
            if changed and connection.dialect.name == "sqlite":
                _rewrite(connection)
            _empty_log(connection)
        return removed

    def close(self) -> None:
        """Release the lock, so that another process can remove rows."""
        if self._turn is not None:
            self._turn.close()
            self._turn = None

    def _connection(self) -> sql.Connection:
        return self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")

    def _our_turn(self) -> bool:
        if self._engine.dialect.name == "sqlite":
            return True  # every process may check, as it is cheap
        try:
            self._turn = self._turn or self._connection()
            if self._turn.exec_driver_sql(f"SELECT pg_try_advisory_lock({TENDING})").scalar_one():
                return True
        except BaseException:
            self.close()
            raise
        self.close()
        return False

    def _pausing(self, work: Callable[[sql.Connection], Result], connection: sql.Connection) -> Result:
        """Run `work`, then pause as long as it took. SQLite's lock is not fair: without a pause, others may never get it."""
        started = clock.perf_counter()
        result = work(connection)
        if result and connection.dialect.name == "sqlite":
            clock.sleep(clock.perf_counter() - started)
        return result

    def _remove(self, connection: sql.Connection) -> dict[sql.Table, int]:
        """Remove rows in one transaction. Return the number for each table, or {} if all are within the limits."""
        if self._bound(connection) is None:  # this check takes no lock
            return {}
        with alone(connection, PRUNING):
            if (bound := self._bound(connection)) is None:
                return {}
            counts = {table: _delete(connection, table, *bound) for table in AGED}
        return counts if any(counts.values()) else {}

    def _bound(self, connection: sql.Connection) -> tuple[float, int] | None:
        """Return the time up to which rows must go, and the most rows for each table; None if none must go."""
        oldest = [connection.execute(sql.select(sql.func.min(time))).scalar_one() for time in AGED.values()]
        first = min((time for time in oldest if time is not None), default=None)
        if first is None:
            return None
        most = ROWS[connection.dialect.name]
        if self._keep is not None and first < (limit := self._now() - self._keep.total_seconds()):
            return limit, most
        if self._max_bytes is not None and (count := min(_too_many(connection, self._max_bytes), most)):
            return _oldest(connection, count), count
        return None

    def _now(self) -> float:
        """Return the time. If the clock was set ahead, ignore that, because all rows would seem too old."""
        steady, now = self._began + _elapsed(), clock.time()
        if now - steady > JUMP and not self._jumped:
            ahead = timedelta(seconds=round(now - steady))
            logger.warning(
                "the clock was set ahead by %s: for the age of rows the old one counts until we start again", ahead
            )
        self._jumped = now - steady > JUMP
        return steady if self._jumped else now


def size(connection: sql.Connection) -> tuple[int, int]:
    """Return bytes and rows of all tables, without reading more than a sample of them.

    In SQLite the bytes are the pages in use, including indexes, and the rows are counted from their numbers. In PostgreSQL
    the bytes are those of the rows without indexes, estimated from `SAMPLE` pages of each table; exact for a smaller table.
    """
    counts = [_COUNTS[connection.dialect.name](connection, table.name) for table in AGED]
    used, rows = (sum(column) for column in zip(*counts, strict=True))
    if connection.dialect.name == "sqlite":
        pages, free, page = (_pragma(connection, name) for name in ("page_count", "freelist_count", "page_size"))
        used = (pages - free) * page
    return used, rows


def _numbered(connection: sql.Connection, table: str) -> tuple[int, int]:
    """Return 0 bytes, and the rows of a table, counted as last number - first number + 1, which SQLite finds quickly."""
    ends = f"(SELECT max(rowid) FROM {table}) - (SELECT min(rowid) FROM {table}) + 1"
    return 0, connection.exec_driver_sql(f"SELECT coalesce({ends}, 0)").scalar_one()


def _sampled(connection: sql.Connection, table: str) -> tuple[int, int]:
    """Return the bytes and rows of a table, estimated from the same pages at each call."""
    pages = f"SELECT pg_relation_size('{table}') / current_setting('block_size')::int"
    percent = min(100.0, 100 * SAMPLE / max(1, connection.exec_driver_sql(pages).scalar_one()))
    sample = f"FROM {table} AS sample TABLESAMPLE SYSTEM ({percent}) REPEATABLE (1)"
    sums = connection.exec_driver_sql(f"SELECT coalesce(sum(pg_column_size(sample)), 0), count(*) {sample}").one()
    used, rows = (round(float(value) * 100 / percent) for value in sums)
    return used, rows


def _too_many(connection: sql.Connection, max_bytes: int) -> int:
    """Return half of the number of rows to remove if all had the same size. The next call corrects for their true size."""
    used, rows = size(connection)
    return ceil(rows * (1 - max_bytes / used) / 2) if used > max_bytes else 0


def _oldest(connection: sql.Connection, count: int) -> float:
    """Return the time of the last of the `count` oldest rows of all tables."""
    times: list[float] = []
    for time in AGED.values():
        times += connection.execute(sql.select(time).where(time.is_not(None)).order_by(time).limit(count)).scalars()
    return sorted(times)[:count][-1]


def _delete(connection: sql.Connection, table: sql.Table, until: float, most: int) -> int:
    """Remove the oldest rows up to a time. Return how many. Remarks on an id stay while the id has another row."""
    (key,), time = table.primary_key.columns, AGED[table]
    chosen = sql.select(key).where(time <= until).order_by(time, key).limit(most)
    gone = connection.execute(sql.delete(table).where(key.in_(chosen)).returning(table.c.id)).scalars().all()
    if table is PREDICTIONS:
        left = sql.exists().where(table.c.id == FEEDBACK.c.id)
        connection.execute(sql.delete(FEEDBACK).where(FEEDBACK.c.id.in_(gone), ~left))
    return len(gone)


def _gave_back(connection: sql.Connection) -> bool:
    """Give some free pages back to the disk. Return whether there were any. PostgreSQL keeps its pages for new rows."""
    if connection.dialect.name != "sqlite" or not _pragma(connection, "freelist_count"):
        return False
    if _pragma(connection, "auto_vacuum") == INCREMENTAL:
        # each fetched row frees a page; SQLAlchemy would not fetch
        driver(connection).execute(f"PRAGMA incremental_vacuum({PAGES})").fetchall()
    else:  # a file of an older version: it is rewritten once
        connection.exec_driver_sql(f"PRAGMA auto_vacuum={INCREMENTAL}")
        connection.exec_driver_sql("VACUUM")
    return True


def _rewrite(connection: sql.Connection) -> None:
    """Remove the copies of rows that SQLite left in unused parts of its pages. `step` spares writers this."""
    try:
        sqlite.rewrite(driver(connection), BUSY)
    except sqlite3.OperationalError as error:
        logger.warning("old rows are removed, but the log's file may still have some of their bytes: %s", error)


def _empty_log(connection: sql.Connection) -> None:
    """Move SQLite's write-ahead log into the file, so that it shrinks. Skip this while another connection is active."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA busy_timeout=0")  # a long read must not block writers
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").all()


def _pragma(connection: sql.Connection, name: str) -> int:
    value: int = connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
    return value


def _elapsed() -> float:
    """Return seconds of a clock that cannot be set. If the system allows, they include the time when it sleeps."""
    return clock.clock_gettime(clock.CLOCK_BOOTTIME) if hasattr(clock, "CLOCK_BOOTTIME") else clock.monotonic()


_COUNTS = {"sqlite": _numbered, "postgresql": _sampled}
