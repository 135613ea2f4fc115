"""Read the rows of the audit trail, and check that they are as they were written."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from labsupport import sqlite
from labsupport.access.chain import START, Field, Keeper, Link, row_hash

CHUNK = 1_000  # rows that are read at a time
COLUMNS = "number, time, person, role, address, action, object, effect, hash"
SCHEMA = (
    "CREATE TABLE audit (number INTEGER PRIMARY KEY, time REAL NOT NULL, person TEXT, role TEXT, address TEXT NOT NULL, "
    "action TEXT NOT NULL, object TEXT, effect TEXT NOT NULL, hash BLOB NOT NULL)"
)
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
CHANGED = "it is not the row that was written: a field or its hash was changed, or another row was put in its place"

Row = tuple[Any, ...]  # the values of COLUMNS


@dataclass(frozen=True)
class Verdict:
    """Say whether the trail is intact. `str` of it is a line for people.

    >>> print(Verdict(False, 16, 17, "rows 17 to 19 are missing"))
    NOT INTACT: rows 17 to 19 are missing. Rows before that are intact: 16
    """

    intact: bool
    rows: int  # the number of rows that are intact, up to the first wrong one
    wrong: int | None = None  # the number of the first wrong row; None if the trouble is not in a row
    reason: str = ""

    def __str__(self) -> str:
        if self.intact:
            return f"intact, rows: {self.rows:,}"
        before = "" if self.wrong is None else f". Rows before that are intact: {self.rows:,}"
        return f"NOT INTACT: {self.reason}{before}"


def as_text(content: bytes) -> str:
    """Return text from a file that someone may have damaged. Bytes that are not UTF-8 become halves of surrogate pairs."""
    return content.decode(errors="surrogateescape")


def tables(connection: sqlite3.Connection) -> str | None:
    """Return the statements that made the file's tables, `SCHEMA` for a trail, or None if it has no tables."""
    made: str | None = connection.execute("SELECT group_concat(sql, ';') FROM sqlite_master").fetchone()[0]
    return made


def newest(connection: sqlite3.Connection) -> Link:
    """Return the number and the hash of the newest row, or `START` if there are no rows."""
    row = connection.execute("SELECT number, hash FROM audit ORDER BY number DESC LIMIT 1").fetchone()
    return Link(*row) if row else START


def read(connection: sqlite3.Connection, conditions: Sequence[tuple[str, Field]] = ()) -> Iterator[Row]:
    """Yield rows by their number. `conditions` are pairs of a condition in SQL with one "?", and its value.

    Reads `CHUNK` rows at a time, so that memory does not grow and writers can reuse their write-ahead log.
    """
    where = " AND ".join(["number >= ?", *(condition for condition, _ in conditions)])
    query = f"SELECT {COLUMNS} FROM audit WHERE {where} ORDER BY number LIMIT {CHUNK}"
    first = -(2**63)
    while True:
        rows = connection.execute(query, [first, *(value for _, value in conditions)]).fetchall()
        yield from rows
        if len(rows) < CHUNK:
            return
        first = rows[-1][0] + 1


def verify(connection: sqlite3.Connection | None, keeper: Keeper) -> Verdict:
    """Check the file against the key and the anchor. `connection` is None if there is no file.

    Raises `ChainBroken` if the key or the anchor cannot be used, sqlite3.Error and OSError.
    """
    made = connection and tables(connection)
    if not made and keeper.unused():
        return Verdict(True, 0)  # nothing has been written yet
    key = keeper.key()
    if connection is None or not made:
        anchored = keeper.anchored(key)
        return _all(START, anchored, "there is no file, or no table in it, and ")
    if made != SCHEMA:
        return Verdict(False, 0, None, "its tables are not those of an audit trail, or something was added to them")
    with sqlite.transaction(connection, "NORMAL"):  # no process writes the anchor meanwhile
        anchored = keeper.anchored(key)
    return _checked(read(connection), key, anchored)


def damaged(error: Exception) -> bool:
    """Return True if the error says that the file was damaged, and not only that it cannot be read now."""
    if isinstance(error, UnicodeDecodeError):  # raised instead of an error whose message quotes damaged bytes
        return True
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in DAMAGED


def _checked(rows: Iterable[Row], key: bytes, anchored: Link) -> Verdict:
    last = START
    try:
        for number, *fields, found in rows:
            if number <= last.number:
                return Verdict(False, last.number, number, f"row {number} was added")
            if number > last.number + 1:
                return _all(last, Link(number - 1, b""))
            if found != row_hash(key, last.hash, number, fields):
                return Verdict(False, last.number, number, f"row {number}: {CHANGED}")
            last = Link(number, found)
            if number == anchored.number and found != anchored.hash:
                return Verdict(False, number - 1, number, f"row {number}: it is not the row in the anchor")
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        if not damaged(error):
            raise
        return Verdict(
            False, last.number, last.number + 1, f"the file is damaged at about row {last.number + 1}: {error}"
        )
    return _all(last, anchored)


def _all(last: Link, end: Link, why: str = "") -> Verdict:
    """Return the verdict on a trail whose row `last` should be row `end`, or a later one."""
    if last.number >= end.number:
        return Verdict(True, last.number)
    first = last.number + 1
    return Verdict(False, last.number, first, f"{why}rows {first:,} to {end.number:,} are missing")
