"""Remove all rows of a person from the log, so that no byte of them is left, and none comes back.

A process may still hold rows of the person that wait to be written, or run a candidate in shadow on a picture. So the log
notes who was forgotten, as a SHA-256, and drops such rows when they come.
"""

import hashlib
import sqlite3
import time as clock
from typing import Any

import sqlalchemy as sql

from labsupport import sqlite
from labsupport.log.tables import FEEDBACK, FORGOTTEN, PREDICTIONS, PRUNING, alone, check_file, driver
from labsupport.log.writer import NotWritten

PATIENCE = 30.0  # seconds to wait for other processes
NOTE = "INSERT INTO forgotten (id, time) VALUES (:id, :time) ON CONFLICT (id) DO UPDATE SET time = excluded.time"


def remove(engine: sql.Engine, person: str) -> list[str]:
    """Remove the predictions of a person, with remarks and candidates' answers, in one transaction. Return their ids."""
    theirs = PREDICTIONS.c.person == person
    ids = sql.select(PREDICTIONS.c.id).where(theirs, PREDICTIONS.c.shadow.is_(False))
    shadows = sql.and_(PREDICTIONS.c.shadow, PREDICTIONS.c.person.is_(None), PREDICTIONS.c.id.in_(ids))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql(f"PRAGMA busy_timeout={PATIENCE * 1000:.0f}")
        with alone(connection, PRUNING):
            if connection.dialect.name == "postgresql":  # wait for those who write, and let them wait: see `_hold`
                connection.exec_driver_sql("LOCK TABLE predictions IN SHARE ROW EXCLUSIVE MODE")
            connection.execute(sql.text(NOTE), {"id": _digest(person), "time": clock.time()})
            removed = list(dict.fromkeys(connection.execute(ids.order_by(PREDICTIONS.c.row)).scalars()))
            connection.execute(sql.delete(FEEDBACK).where(FEEDBACK.c.id.in_(ids)))
            for rows in (shadows, theirs):  # in this order: the first are found by the others
                connection.execute(sql.delete(PREDICTIONS).where(rows))
        check_file(connection)
    return removed


def rewrite(engine: sql.Engine) -> None:
    """Write a SQLite file anew, without what rows left in it. Raises `NotWritten` if another process holds it too long."""
    if engine.dialect.name != "sqlite":
        return
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        try:
            sqlite.rewrite(driver(connection), PATIENCE)
        except sqlite3.OperationalError as error:
            raise NotWritten(
                f"the rows are removed, but their bytes are still in the file ({error}): stop the server and "
                "whatever else reads the log, and repeat this"
            ) from error


def remaining(connection: sql.Connection, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows without those of forgotten people. Nobody is forgotten until the caller's transaction ends."""
    people = {_digest(row["person"]): row["person"] for row in rows if row.get("person") is not None}
    if not people:
        return rows
    _hold(connection)
    known = sql.select(FORGOTTEN.c.id).where(FORGOTTEN.c.id.in_(people))
    gone = {people[id] for id in connection.execute(known).scalars()}
    return [row for row in rows if row.get("person") not in gone] if gone else rows


def _hold(connection: sql.Connection) -> None:
    """Begin to write, so that `remove` in another process waits for the end of this transaction."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("LOCK TABLE predictions IN ROW EXCLUSIVE MODE")
    elif not driver(connection).in_transaction:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _digest(person: str) -> str:
    return hashlib.sha256(person.encode()).hexdigest()
