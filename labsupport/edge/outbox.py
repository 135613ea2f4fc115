"""Deletes the body of a record when the server confirms it. Keeps a short entry, so that no product is decided twice.

The outbox is a queue in one file that survives a power cut. A record is written before its decision is used. It stays
until the server has confirmed it, and is sent again if the confirmation is lost. Sending at least once to a receiver
that takes each id once results in exactly once (the idempotent receiver of Hohpe and Woolf, 2003, "Enterprise
Integration Patterns").
"""

import json
import sqlite3
import threading
import uuid
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labsupport import sqlite
from labsupport.arguments import shown, text

NEW, OURS = (0, None), (1, "outbox_station,outbox_decisions,outbox_waiting")  # SQLite's user_version and the tables
BUSY = 0.25  # seconds that a call waits while another process writes: the line waits with it
SCHEMA = """
CREATE TABLE IF NOT EXISTS outbox_station (station TEXT NOT NULL, opened INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS outbox_decisions (
    number INTEGER PRIMARY KEY, product TEXT NOT NULL UNIQUE, decision TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS outbox_waiting (number INTEGER PRIMARY KEY, prediction TEXT, refused TEXT);
PRAGMA user_version = 1;
"""
FOUND = """
SELECT user_version, (SELECT group_concat(name) FROM sqlite_master WHERE type = 'table') FROM pragma_user_version
"""
ADD = "INSERT INTO outbox_decisions (product, decision) VALUES (?, ?) ON CONFLICT (product) DO NOTHING"
READ = "SELECT number, refused, product, decision, prediction FROM outbox_waiting JOIN outbox_decisions USING (number)"


class OutboxUnavailable(OSError):
    """Raised if the file cannot be used: no such folder, no permission, no room, damaged, or another program's."""


class Outbox:
    """Decisions in a SQLite file, one for each product, in the order in which they were made.

    `put` returns when the disk has the record (write-ahead log, synchronous=FULL: sqlite.org/pragma.html). After kill
    -9 or a power cut the record is there, if the disk really wrote what it confirmed. The first decision about a
    product counts; later ones are ignored. `batch` returns waiting records. Call `sent` once the server has them, and
    `refuse` for a record that the server will never take. `sent` does not wait for the disk: a power cut may undo it,
    and then the record is sent again. Decisions are never removed; for an empty outbox use a new file.

    `station` is this file's permanent name, so that no two files make the same id. Threads may share an outbox.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> with Outbox(f"{folder.name}/outbox.db") as outbox:
    ...     first = outbox.put("p1", {"verdict": "accept"})
    ...     again = outbox.put("p1", {"verdict": "reject"})
    ...     numbers = [number for number, record in outbox.batch(100)]
    ...     outbox.sent(numbers)
    ...     first, again, outbox.waiting(), outbox.get("p1")
    ({'verdict': 'accept'}, {'verdict': 'accept'}, 0, {'verdict': 'accept'})
    >>> folder.cleanup()
    """

    def __init__(self, path: str | Path) -> None:
        """Open or create the file, and check that it is intact. Raises `OutboxUnavailable` and ValueError."""
        if not isinstance(path, str | Path) or not str(path) or "\0" in str(path):
            raise ValueError(f"path={shown(path)}: give the path of a file")
        self.path, self._lock = Path(path).absolute(), threading.Lock()
        try:
            self._connection = sqlite.connect(self.path, BUSY)
        except OSError as error:
            raise OutboxUnavailable(
                f"{self.path}: {error.strerror}: name a file in a folder you may write in"
            ) from error
        except sqlite3.Error as error:
            raise OutboxUnavailable(f"{self.path}: {error}: {_cure(error)}") from error
        self._identity = sqlite.identity(self.path)
        self.close = weakref.finalize(
            self, self._connection.close
        )  # at the latest when nobody holds the outbox any more
        try:
            self._prepare()
        except OutboxUnavailable:
            self.close()
            raise

    def id_of(self, product: str) -> str:
        """Return the id of a product's record, the same after a restart: 32 hexadecimal digits (RFC 9562, version 5)."""
        return uuid.uuid5(uuid.UUID(self.station), product).hex

    def get(self, product: str) -> dict[str, Any] | None:
        """Return the decision about a product, or None. Raises `OutboxUnavailable`."""
        with self._used() as connection:
            row = connection.execute("SELECT decision FROM outbox_decisions WHERE product = ?", [product]).fetchone()
        decision: dict[str, Any] | None = row and json.loads(row[0])
        return decision

    def put(
        self, product: str, decision: Mapping[str, Any], prediction: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Store a decision until the server has it. Return the decision that counts: this one, or an earlier one.

        `decision` and `prediction` must be JSON values; `prediction` is deleted once it was sent. Raises
        `OutboxUnavailable`, and then nothing is stored; raises ValueError for an invalid name or decision.
        """
        text("product", product, least=1)
        if not isinstance(decision, Mapping) or not isinstance(prediction, Mapping | None):
            raise ValueError(f"decision={shown(decision)}, prediction={shown(prediction)}: give a dict of each")
        texts = [value and json.dumps(value) for value in (decision, prediction)]
        self._check_file()
        with self._transaction("FULL") as connection:
            if (added := connection.execute(ADD, [product, texts[0]])).rowcount:
                wait = "INSERT INTO outbox_waiting (number, prediction) VALUES (?, ?)"
                connection.execute(wait, [added.lastrowid, texts[1]])
            (kept,) = connection.execute(
                "SELECT decision FROM outbox_decisions WHERE product = ?", [product]
            ).fetchone()
            self._check_file()  # raising, it takes back what was written
        counts: dict[str, Any] = json.loads(kept)
        return counts

    def _check_file(self) -> None:
        """Raise `OutboxUnavailable` if what is written now is in a file that nobody finds again."""
        if sqlite.identity(self.path) != self._identity:
            raise OutboxUnavailable(f"{self.path} was deleted or replaced since it was opened: start again")

    def batch(self, most: int) -> list[tuple[int, dict[str, Any]]]:
        """Return the oldest waiting records, `most` at most. Each is a number for `sent` or `refuse`, and the record to
        send.
        """
        with self._used() as connection:
            rows = connection.execute(f"{READ} WHERE refused IS NULL ORDER BY number LIMIT ?", [most]).fetchall()
        return [(number, self._record(*row)) for number, _, *row in rows]

    def sent(self, numbers: Sequence[int]) -> None:
        """Mark these records as confirmed by the server. Their decisions stay, the rest of them is deleted."""
        with self._transaction("NORMAL") as connection:
            done = [(number,) for number in numbers]
            connection.executemany("DELETE FROM outbox_waiting WHERE number = ?", done)

    def refuse(self, number: int, reason: str) -> None:
        """Keep a record aside, complete, because the server will never take it. The other records are sent."""
        with self._transaction("NORMAL") as connection:
            connection.execute("UPDATE outbox_waiting SET refused = ? WHERE number = ?", [reason, number])

    def refused(self) -> list[tuple[dict[str, Any], str]]:
        """Return the records that were kept aside, each with the server's message."""
        with self._used() as connection:
            rows = connection.execute(f"{READ} WHERE refused NOTNULL ORDER BY number").fetchall()
        return [(self._record(*row), reason) for _, reason, *row in rows]

    def waiting(self) -> int:
        """Return the number of records that the server does not have yet."""
        with self._used() as connection:
            (count,) = connection.execute("SELECT count(*) FROM outbox_waiting WHERE refused IS NULL").fetchone()
        return int(count)

    def __enter__(self) -> "Outbox":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Outbox {self.path}>"

    def _record(self, product: str, decision: str, prediction: str | None) -> dict[str, Any]:
        record = {"id": self.id_of(product), "station": self.station, "product": product, **json.loads(decision)}
        return {**record, "prediction": prediction and json.loads(prediction)}

    def _prepare(self) -> None:
        """Make the tables and the permanent name if the file is new. Refuse another program's file, or a damaged one."""
        with self._used() as connection:
            if (found := connection.execute(FOUND).fetchone()) not in (NEW, OURS):
                raise OutboxUnavailable(f"{self.path} is of another program or of a newer version: name another file")
            if (verdict := connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(verdict)
            if found == NEW:
                sqlite.write_ahead(connection)
                connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT")
            named = connection.execute("SELECT station FROM outbox_station").fetchone()
        if named is None:
            with self._transaction("FULL") as connection:
                name = "INSERT INTO outbox_station SELECT ?, 0 WHERE NOT EXISTS (SELECT * FROM outbox_station)"
                connection.execute(name, [uuid.uuid4().hex])
                named = connection.execute("SELECT station FROM outbox_station").fetchone()
        (self.station,) = named
        sqlite.make_private(self.path)

    def touch(self) -> None:
        """Make one small write to the disk, as `put` does. A caller with a deadline uses it to measure how long that
        takes.
        """
        with self._transaction("FULL") as connection:
            connection.execute("UPDATE outbox_station SET opened = opened + 1")

    @contextmanager
    def _used(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection, for one thread at a time. SQLite's errors become `OutboxUnavailable`."""
        try:
            with self._lock:
                yield self._connection
        except sqlite3.Error as error:
            raise OutboxUnavailable(f"{self.path}: {error}: {_cure(error)}") from error

    @contextmanager
    def _transaction(self, synchronous: str) -> Iterator[sqlite3.Connection]:
        """Write all of the block, or nothing of it. FULL waits for the disk, NORMAL does not."""
        with self._used() as connection, sqlite.transaction(connection, synchronous):
            yield connection


def _cure(error: sqlite3.Error) -> str:
    code = getattr(error, "sqlite_errorcode", None)
    if isinstance(error, sqlite3.ProgrammingError):  # not the file's fault
        return "open it again"
    if code == sqlite3.SQLITE_FULL:
        return "make room on the disk"
    if code == sqlite3.SQLITE_BUSY:
        return "another process keeps it locked"
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, None):
        return "it is damaged or no outbox: keep it, records may wait in it, and name a new file"
    return "is the disk there, and may we write to it?"
