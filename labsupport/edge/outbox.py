"""What was decided, on its way to the server: a queue in one file that a power cut does not damage.

A record is written before anybody acts on it, stays until the server has said that it has it, and is sent again if that word
got lost. Sending at least once, to a receiver that takes each id once, comes to exactly once (the idempotent receiver of
Hohpe and Woolf, 2003, "Enterprise Integration Patterns"). What was sent stays in short, so that nothing is decided twice.
"""

import json
import sqlite3
import threading
import uuid
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

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
    """The file cannot be used: no such folder, no permission, no room, damaged, or another program's."""


class Outbox:
    """Decisions in a SQLite file, one for each product, in the order in which they were made.

    `put` returns when the disk has the record (write-ahead log, synchronous=FULL: sqlite.org/pragma.html): after kill -9 or
    a power cut it is there, as far as the disk keeps its word about what it has written. The first decision about a product
    is the one that counts; another is not taken. `batch` gives what waits, `sent` is called once the server has it, `refuse`
    for what the server will never take. `sent` does not wait for the disk: a power cut may take it back, and then the record
    is sent again. Decisions are never removed: who wants an empty outbox names a new file.

    `station` names this file for good, so that no two files make the same id. Threads may share an outbox.

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
        """Open the file, or make it, and look whether it is whole. Raises `OutboxUnavailable` and ValueError."""
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
        self.close = weakref.finalize(
            self, self._connection.close
        )  # at the latest when nobody holds the outbox any more
        try:
            self._prepare()
        except OutboxUnavailable:
            self.close()
            raise

    def id_of(self, product: str) -> str:
        """The id of a product's record, the same after a restart: 32 hexadecimal digits (RFC 9562, version 5)."""
        return uuid.uuid5(uuid.UUID(self.station), product).hex

    def get(self, product: str) -> dict | None:
        """What was decided about a product; None if nothing was. Raises `OutboxUnavailable`."""
        with self._used() as connection:
            row = connection.execute("SELECT decision FROM outbox_decisions WHERE product = ?", [product]).fetchone()
        return row and json.loads(row[0])

    def put(self, product: str, decision: Mapping, prediction: Mapping | None = None) -> dict:
        """Store a decision until the server has it; what counts from now on: this one, or the one that was there before.

        Both are what JSON can hold; `prediction` is dropped once it was sent. Raises `OutboxUnavailable`, and then nothing
        is stored; and ValueError for what is no name or no decision.
        """
        text("product", product, least=1)
        if not isinstance(decision, Mapping) or not isinstance(prediction, Mapping | None):
            raise ValueError(f"decision={shown(decision)}, prediction={shown(prediction)}: give a dict of each")
        texts = [given and json.dumps(given) for given in (decision, prediction)]
        with self._transaction("FULL") as connection:
            if (added := connection.execute(ADD, [product, texts[0]])).rowcount:
                wait = "INSERT INTO outbox_waiting (number, prediction) VALUES (?, ?)"
                connection.execute(wait, [added.lastrowid, texts[1]])
        return self.get(product)

    def batch(self, most: int) -> list[tuple[int, dict]]:
        """The oldest records that wait, `most` at most: a number for `sent` or `refuse`, and what the server is to have."""
        with self._used() as connection:
            rows = connection.execute(f"{READ} WHERE refused IS NULL ORDER BY number LIMIT ?", [most]).fetchall()
        return [(number, self._record(*row)) for number, _, *row in rows]

    def sent(self, numbers: Sequence[int]) -> None:
        """The server has these. Their decisions stay, what else belonged to them is dropped."""
        with self._transaction("NORMAL") as connection:
            done = [(number,) for number in numbers]
            connection.executemany("DELETE FROM outbox_waiting WHERE number = ?", done)

    def refuse(self, number: int, reason: str) -> None:
        """The server will never take this one: it is kept aside, whole, and the rest goes on."""
        with self._transaction("NORMAL") as connection:
            connection.execute("UPDATE outbox_waiting SET refused = ? WHERE number = ?", [reason, number])

    def refused(self) -> list[tuple[dict, str]]:
        """The records that were kept aside, each with what the server said."""
        with self._used() as connection:
            rows = connection.execute(f"{READ} WHERE refused NOTNULL ORDER BY number").fetchall()
        return [(self._record(*row), reason) for _, reason, *row in rows]

    def waiting(self) -> int:
        """How many records the server does not have yet."""
        with self._used() as connection:
            return connection.execute("SELECT count(*) FROM outbox_waiting WHERE refused IS NULL").fetchone()[0]

    def __enter__(self) -> "Outbox":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Outbox {self.path}>"

    def _record(self, product: str, decision: str, prediction: str | None) -> dict:
        told = {"id": self.id_of(product), "station": self.station, "product": product, **json.loads(decision)}
        return {**told, "prediction": prediction and json.loads(prediction)}

    def _prepare(self) -> None:
        """Make the tables if the file is new, give it its name for good; refuse a file that is not ours or not whole."""
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
        """One small write to the disk, as `put` does: who has a deadline measures how long it takes."""
        with self._transaction("FULL") as connection:
            connection.execute("UPDATE outbox_station SET opened = opened + 1")

    @contextmanager
    def _used(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time; SQLite's errors get our name."""
        try:
            with self._lock:
                yield self._connection
        except sqlite3.Error as error:
            raise OutboxUnavailable(f"{self.path}: {error}: {_cure(error)}") from error

    @contextmanager
    def _transaction(self, synchronous: str) -> Iterator[sqlite3.Connection]:
        """All of what follows is written, or nothing of it. FULL waits for the disk, NORMAL does not."""
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
