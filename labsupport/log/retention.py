"""Remove the oldest rows of the log, of every table, in small transactions; the disk gets its space back.

A transaction that removes a little holds up nobody for long. What users said of a prediction is removed together with it.
"""

import logging
import time as clock
from datetime import timedelta
from math import ceil

import sqlalchemy as sql

from labsupport import arguments
from labsupport.log.tables import DECISIONS, FEEDBACK, PREDICTIONS, PRUNING, TENDING, alone

AGED = {  # every table, and the column that says how old a row is: the limits hold for all of them
    PREDICTIONS: PREDICTIONS.c.time,
    FEEDBACK: FEEDBACK.c.time,
    DECISIONS: DECISIONS.c.time,
}
ROWS = {"sqlite": 1000, "postgresql": 10_000}  # of a table in one transaction, which in PostgreSQL holds up nobody
PAGES = 500  # given back to the disk in one transaction
SAMPLE = 1_000  # pages of a table in PostgreSQL that are read to estimate its size: 8 MB
INCREMENTAL = 2  # SQLite's auto_vacuum mode in which pages can be given back a few at a time
JUMP = 3_600.0  # seconds: a clock that runs ahead by more was set, and may be set back

logger = logging.getLogger(__name__)


class Retention:
    """What is to be kept: rows no older than `keep`, and no more than `max_bytes` of them; None for no such limit.

    Raises ValueError for a negative limit, TypeError for a `keep` that is no timedelta.

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
            max_bytes = arguments.number("max_bytes", max_bytes, 0, whole=True)
        self._engine, self._keep, self._max_bytes = engine, keep, max_bytes
        self._began = clock.time() - _elapsed()
        self._jumped = False
        self._turn: sql.Connection | None = None  # holds PostgreSQL's lock of the one process that tends

    def step(self) -> bool:
        """Remove and give back a little; return whether there is more to do. With PostgreSQL one process does it for all."""
        if not self._our_turn():
            return False
        with self._connection() as connection:
            if self._remove(connection) or _gave_back(connection):
                return True
            _empty_log(connection)
            return False

    def all(self) -> int:
        """Remove what is too old or too much, and give back its space; return the number of predictions removed."""
        removed = 0
        with self._connection() as connection:
            while counts := self._pausing(self._remove, connection):
                removed += counts[PREDICTIONS]
            while self._pausing(_gave_back, connection):
                pass
            _empty_log(connection)
        return removed

    def close(self) -> None:
        """Leave the tending to another process."""
        if self._turn is not None:
            self._turn.close()
            self._turn = None

    def _connection(self) -> sql.Connection:
        return self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")

    def _our_turn(self) -> bool:
        if self._engine.dialect.name == "sqlite":
            return True  # a look costs next to nothing
        try:
            self._turn = self._turn or self._connection()
            if self._turn.exec_driver_sql(f"SELECT pg_try_advisory_lock({TENDING})").scalar_one():
                return True
        except BaseException:
            self.close()
            raise
        self.close()
        return False

    def _pausing(self, work, connection: sql.Connection):
        """Work, and then leave as much time to others: SQLite's lock is no queue, who asks for it at once gets it again."""
        started = clock.perf_counter()
        done = work(connection)
        if done and connection.dialect.name == "sqlite":
            clock.sleep(clock.perf_counter() - started)
        return done

    def _remove(self, connection: sql.Connection) -> dict[sql.Table, int]:
        """Remove one transaction's worth; return how many rows of each table, nothing if all are within the limits."""
        if self._bound(connection) is None:  # a look waits for nobody, and lets nobody wait
            return {}
        with alone(connection, PRUNING):
            if (bound := self._bound(connection)) is None:
                return {}
            counts = {table: _delete(connection, table, *bound) for table in AGED}
        return counts if any(counts.values()) else {}

    def _bound(self, connection: sql.Connection) -> tuple[float, int] | None:
        """Return up to which time rows are to go, and how many of a table at most; None if none is."""
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
        """The time, as far as the clock was not set ahead since this began: all would seem too old."""
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

    SQLite: the pages in use, indexes included, and rows as their numbers say. PostgreSQL: the rows alone, without indexes;
    estimated from `SAMPLE` pages of each table, exact for a smaller one.
    """
    counts = [_COUNTS[connection.dialect.name](connection, table.name) for table in AGED]
    used, rows = (sum(column) for column in zip(*counts, strict=True))
    if connection.dialect.name == "sqlite":
        pages, free, page = (_pragma(connection, name) for name in ("page_count", "freelist_count", "page_size"))
        used = (pages - free) * page
    return used, rows


def _numbered(connection: sql.Connection, table: str) -> tuple[int, int]:
    """How many numbers lie between the first row and the last, each of which SQLite finds at once."""
    ends = f"(SELECT max(rowid) FROM {table}) - (SELECT min(rowid) FROM {table}) + 1"
    return 0, connection.exec_driver_sql(f"SELECT coalesce({ends}, 0)").scalar_one()


def _sampled(connection: sql.Connection, table: str) -> tuple[int, int]:
    """Bytes and rows of a table, from the same pages at each look."""
    pages = f"SELECT pg_relation_size('{table}') / current_setting('block_size')::int"
    percent = min(100.0, 100 * SAMPLE / max(1, connection.exec_driver_sql(pages).scalar_one()))
    sample = f"FROM {table} AS sample TABLESAMPLE SYSTEM ({percent}) REPEATABLE (1)"
    found = connection.exec_driver_sql(f"SELECT coalesce(sum(pg_column_size(sample)), 0), count(*) {sample}").one()
    used, rows = (round(float(value) * 100 / percent) for value in found)
    return used, rows


def _too_many(connection: sql.Connection, max_bytes: int) -> int:
    """Half of the rows that would have to go if all were alike; the rest once we see how large these were. 0 if none."""
    used, rows = size(connection)
    return ceil(rows * (1 - max_bytes / used) / 2) if used > max_bytes else 0


def _oldest(connection: sql.Connection, count: int) -> float:
    """The time of the last of the `count` oldest rows, whichever table they are in."""
    times = []
    for time in AGED.values():
        times += connection.execute(sql.select(time).where(time.is_not(None)).order_by(time).limit(count)).scalars()
    return sorted(times)[:count][-1]


def _delete(connection: sql.Connection, table: sql.Table, until: float, most: int) -> int:
    """Remove the oldest rows up to a time, and return how many. What was said of an id stays while a row of it is there."""
    (key,), time = table.primary_key.columns, AGED[table]
    chosen = sql.select(key).where(time <= until).order_by(time, key).limit(most)
    gone = connection.execute(sql.delete(table).where(key.in_(chosen)).returning(table.c.id)).scalars().all()
    if table is PREDICTIONS:
        left = sql.exists().where(table.c.id == FEEDBACK.c.id)
        connection.execute(sql.delete(FEEDBACK).where(FEEDBACK.c.id.in_(gone), ~left))
    return len(gone)


def _gave_back(connection: sql.Connection) -> bool:
    """Give some free pages back to the disk; whether there were any. PostgreSQL keeps them for new rows, by itself."""
    if connection.dialect.name != "sqlite" or not _pragma(connection, "freelist_count"):
        return False
    if _pragma(connection, "auto_vacuum") == INCREMENTAL:
        driver = connection.connection.driver_connection  # SQLAlchemy would not fetch: with each row goes a page
        driver.execute(f"PRAGMA incremental_vacuum({PAGES})").fetchall()
    else:  # a file of an older version: it is written anew, once
        connection.exec_driver_sql(f"PRAGMA auto_vacuum={INCREMENTAL}")
        connection.exec_driver_sql("VACUUM")
    return True


def _empty_log(connection: sql.Connection) -> None:
    """Only once SQLite's log is in the file does the file shrink. If somebody still reads or writes, another time."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA busy_timeout=0")  # who reads for long shall not hold up those who write
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").all()


def _pragma(connection: sql.Connection, name: str) -> int:
    return connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()


def _elapsed() -> float:
    """Seconds that nobody sets, counted while the machine sleeps, too, where the system tells them."""
    return clock.clock_gettime(clock.CLOCK_BOOTTIME) if hasattr(clock, "CLOCK_BOOTTIME") else clock.monotonic()


_COUNTS = {"sqlite": _numbered, "postgresql": _sampled}
