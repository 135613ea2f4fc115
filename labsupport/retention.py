"""How long predictions are kept: the oldest are removed, in small transactions, and the disk gets its space back.

A transaction that removes a little holds up nobody for long; what is removed goes together with what users said of it.
"""

import time as clock
from datetime import timedelta
from math import ceil

import sqlalchemy as sql

from labsupport.tables import FEEDBACK, PREDICTIONS, alone

ROWS = {"sqlite": 1000, "postgresql": 10_000}  # removed in one transaction, which in PostgreSQL holds up nobody
PAGES = 500  # given back to the disk in one transaction
INCREMENTAL = 2  # SQLite's auto_vacuum mode in which pages can be given back a few at a time


class Retention:
    """What is to be kept: rows no older than `keep`, and no more than `max_bytes` of them; None for no such limit.

    Raises ValueError for a negative limit, TypeError for a `keep` that is no timedelta.

    >>> Retention(sql.create_engine("sqlite://"), keep=30, max_bytes=None)
    Traceback (most recent call last):
    TypeError: 30: say how long with a timedelta, as in timedelta(days=30)
    """

    def __init__(self, engine: sql.Engine, keep: timedelta | None, max_bytes: int | None) -> None:
        if not isinstance(keep, timedelta | None):
            raise TypeError(f"{keep}: say how long with a timedelta, as in timedelta(days=30)")
        if (keep is not None and keep < timedelta(0)) or (max_bytes is not None and max_bytes < 0):
            raise ValueError(f"{keep}, {max_bytes} bytes: a limit cannot be negative")
        self._engine, self._keep, self._max_bytes = engine, keep, max_bytes

    def step(self) -> bool:
        """Remove and give back a little; whether there is more to do."""
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            if self._remove(connection) or _gave_back(connection):
                return True
            _empty_log(connection)
            return False

    def all(self) -> int:
        """Remove what is too old or too much, and give back its space; the number of predictions removed."""
        removed = 0
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while count := self._pausing(self._remove, connection):
                removed += count
            while self._pausing(_gave_back, connection):
                pass
            _empty_log(connection)
        return removed

    def _pausing(self, work, connection: sql.Connection):
        """Work, and then leave as much time to others: SQLite's lock is no queue, who asks for it at once gets it again."""
        started = clock.perf_counter()
        done = work(connection)
        if done and connection.dialect.name == "sqlite":
            clock.sleep(clock.perf_counter() - started)
        return done

    def _remove(self, connection: sql.Connection) -> int:
        """One transaction's worth; the number of predictions removed."""
        most, row = ROWS[connection.dialect.name], PREDICTIONS.c
        oldest = sql.select(row.row).order_by(row.time, row.row)
        with alone(connection):
            removed = []
            if self._keep is not None:
                limit = clock.time() - self._keep.total_seconds()
                removed = _delete(connection, oldest.where(row.time < limit).limit(most))
            if not removed and self._max_bytes is not None and (much := _too_many(connection, self._max_bytes)):
                removed = _delete(connection, oldest.limit(min(much, most)))
        return len(removed)


def size(connection: sql.Connection) -> tuple[int, int]:
    """Bytes and rows. SQLite: pages in use, and rows as their numbers say. PostgreSQL: the rows alone, without indexes."""
    if connection.dialect.name == "sqlite":
        pages, free, page = (_pragma(connection, name) for name in ("page_count", "freelist_count", "page_size"))
        rows = connection.exec_driver_sql("SELECT coalesce(max(row) - min(row) + 1, 0) FROM predictions").scalar_one()
        return (pages - free) * page, rows
    counts = [
        connection.exec_driver_sql(f"SELECT coalesce(sum(pg_column_size({table})), 0), count(*) FROM {table}").one()
        for table in ("predictions", "feedback")
    ]
    return int(counts[0][0] + counts[1][0]), counts[0][1]


def _too_many(connection: sql.Connection, max_bytes: int) -> int:
    """How many rows would have to go, if all are alike; at least one while there is too much and there are any."""
    used, rows = size(connection)
    return ceil(rows * (1 - max_bytes / used)) if used > max_bytes else 0


def _delete(connection: sql.Connection, chosen: sql.Select) -> list[str]:
    """The ids of what was removed. What was said of an id stays as long as there is another row of it: a candidate's."""
    row = PREDICTIONS.c
    ids = connection.execute(sql.delete(PREDICTIONS).where(row.row.in_(chosen)).returning(row.id)).scalars().all()
    left = sql.exists().where(row.id == FEEDBACK.c.id)
    connection.execute(sql.delete(FEEDBACK).where(FEEDBACK.c.id.in_(ids), ~left))
    return ids


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
