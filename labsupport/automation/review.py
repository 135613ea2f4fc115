"""What waits for a person, and what the person said: a queue in one file, and the labels that come out of it.

`automation.decide` leaves a picture to a person, the queue hands it to one person at a time, and the answer is kept as a
label: for `choose_thresholds`, and for whoever trains the next model.
"""

import json
import sqlite3
import threading
import time as clock
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from labsupport import arguments, images, sqlite
from labsupport.automation.degrees import Decision
from labsupport.detection import Box, Detection

if TYPE_CHECKING:
    import pandas as pd

LABELS = ("good", "defect")
PNG = b"\x89PNG"  # what such a file begins with
NEW, OURS = (0, None), (1, "review_items,review_answers")  # SQLite's user_version and the tables
BUSY = 5.0  # seconds that a call waits while another process writes
SCHEMA = """
CREATE TABLE IF NOT EXISTS review_items (
    row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, degree TEXT NOT NULL, confidence REAL, opinion TEXT, shown TEXT,
    highlight TEXT NOT NULL, picture BLOB, waiting INTEGER NOT NULL DEFAULT 1, leased_until REAL NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS review_answers (
    row INTEGER PRIMARY KEY, id TEXT NOT NULL, time REAL NOT NULL, label TEXT NOT NULL, person TEXT
);
CREATE INDEX IF NOT EXISTS review_waiting ON review_items (row) WHERE waiting;
CREATE INDEX IF NOT EXISTS review_answered ON review_answers (id);
PRAGMA user_version = 1;
"""
FOUND = """
SELECT user_version, (SELECT group_concat(name) FROM sqlite_master WHERE type = 'table') FROM pragma_user_version
"""
ADD = """
INSERT INTO review_items (id, degree, confidence, opinion, shown, highlight, picture)
VALUES (:id, :degree, :confidence, :opinion, :shown, :highlight, :picture) ON CONFLICT (id) DO NOTHING
"""
NEXT = """
UPDATE review_items SET leased_until = :now + :lease WHERE row = (
    SELECT row FROM review_items WHERE waiting AND leased_until <= :now ORDER BY row LIMIT 1
) RETURNING id, shown, highlight, picture
"""
READ = """
SELECT item.id, confidence, label, opinion, shown, degree, person, time,
    (SELECT count(*) FROM review_answers WHERE id = item.id) AS answers
FROM review_items AS item JOIN review_answers AS answer
    ON answer.row = (SELECT max(row) FROM review_answers WHERE id = item.id)
ORDER BY item.row
"""


class QueueUnavailable(OSError):
    """The file cannot be used: no such folder, no permission, not a review queue, or another process keeps it locked."""


class UnknownItem(LookupError):
    """No such id is in the queue."""


@dataclass(frozen=True)
class ReviewItem:
    """What a person gets to see. In shadow mode that is neither the model's opinion nor its regions."""

    id: str
    opinion: str | None
    highlight: tuple[Detection, ...]
    picture: bytes | None


class ReviewQueue:
    """Pictures that wait for a person, in a SQLite file that several processes may use at once. Who reads waits for nobody.

    Each call is one transaction: kill -9, between two calls or within one, loses nothing that was answered or added. Power
    loss may take back what was just added, and no answer. The oldest item comes first, so that none waits for ever, and so
    that what gets a label does not depend on the model. What was handed out is nobody else's for `lease` seconds; without an
    answer by then, it is handed out again.

    Privacy: a picture is in the file only if it was given, and without what its file says besides: its pixels are decoded
    and encoded anew, as the server's answers are, so that no place, time, camera, comment or thumbnail stays. `person` can
    be a pseudonym, only its owner can read the file, and `forget` takes an item out for good.

    Threads may share a queue; each process opens its own, a forked one too. Delete the file only while nobody has it open.

    >>> import tempfile
    >>> from labsupport.automation import Degree, Thresholds, decide
    >>> folder = tempfile.TemporaryDirectory()
    >>> scratch = Detection("scratch", 0.6, Box(10, 20, 60, 30))
    >>> with ReviewQueue(f"{folder.name}/review.db") as queue:
    ...     queue.add("a1", decide([scratch], Degree.PARTIAL, Thresholds(low=0.1, high=0.8)))
    ...     item = queue.next()
    ...     queue.answer(item.id, "good", person="p7")
    ...     queue.labels()[["id", "confidence", "label", "opinion"]]
       id  confidence label opinion
    0  a1         0.6  good  defect
    >>> item.opinion, len(item.highlight)
    ('defect', 1)
    >>> folder.cleanup()
    """

    def __init__(self, path: str | Path = "review.db", lease: float = 600) -> None:
        """Open the file, or make it; `lease` in seconds. Raises `QueueUnavailable`, and ValueError for no lease at all."""
        self.lease = arguments.number("lease", lease, 0, ends=False)
        self.path = Path(path).absolute()
        self._lock, self._reads = threading.Lock(), threading.Lock()
        try:
            self._connection = sqlite.connect(self.path, BUSY)
            self._reader = sqlite.reopen(self.path, BUSY)
        except OSError as error:
            raise QueueUnavailable(
                f"{self.path}: {error.strerror}: name a file in a folder you may write in"
            ) from error
        except sqlite3.Error as error:
            raise QueueUnavailable(f"{self.path}: {error}") from error
        # at the latest when nobody holds the queue any more
        self.close = weakref.finalize(self, _close, self._reader, self._connection)
        try:
            self._prepare()
        except QueueUnavailable:
            self.close()
            raise

    def add(self, id: str, decision: Decision, picture: bytes | None = None) -> None:
        """Put a picture into the queue, by the id of its prediction; `picture` is a JPEG or PNG, if it is to be kept here.

        A PNG keeps its pixels, a JPEG's change as little as quality 90 makes them; both are turned upright. To add the same
        again changes nothing: after a crash, do. A decision of the model may be added too, for an audit.
        Raises ValueError if the id is there with something else or is no text of 1 to 1,000 characters, TypeError for a
        picture that is not bytes, and what `images.decode` raises if it is no JPEG or PNG.
        """
        if not isinstance(picture, bytes | None):
            raise TypeError(f"picture is a {type(picture).__name__}: give the bytes of a file, as images.encode does")
        row = {
            "id": arguments.text("id", id, least=1),
            "degree": decision.degree.name.lower(),
            "confidence": None if decision.confidence is None else float(decision.confidence),
            "opinion": decision.opinion,
            "shown": decision.shown,
            "highlight": _to_json(decision.highlight),
            "picture": None if picture is None else _bare(picture),
        }
        with self._transaction() as connection:
            if not connection.execute(ADD, row).rowcount:
                there = connection.execute(f"SELECT {', '.join(row)} FROM review_items WHERE id = :id", row).fetchone()
                if there != tuple(row.values()):
                    raise ValueError(
                        f"{id} is in the queue already, with another decision or picture: give each its own id"
                    )

    def next(self) -> ReviewItem | None:
        """The oldest item that nobody has, for `lease` seconds ours; None if there is none. Asking again skips it."""
        with self._transaction() as connection:
            rows = connection.execute(NEXT, {"now": clock.time(), "lease": self.lease}).fetchall()
        return next((ReviewItem(id, shown, _from_json(text), picture) for id, shown, text, picture in rows), None)

    def answer(self, id: str, label: str, person: str | None = None) -> None:
        """Note what a person said: "good" or "defect". A second answer corrects the first; both are kept, the latest counts.

        Raises `UnknownItem`, and ValueError for another label.
        """
        if label not in LABELS:
            raise ValueError(f"label={arguments.shown(label)}: say {' or '.join(LABELS)}")
        if person is not None:
            arguments.text("person", person)
        arguments.text("id", id)
        with self._transaction("FULL") as connection:
            if not connection.execute("UPDATE review_items SET waiting = 0 WHERE id = ?", [id]).rowcount:
                raise UnknownItem(f"{id} is not in {self.path}: was it added, or forgotten?")
            answer = (id, clock.time(), label, person)
            connection.execute("INSERT INTO review_answers (id, time, label, person) VALUES (?, ?, ?, ?)", answer)

    def waiting(self) -> int:
        """How many items have no answer yet, handed out or not."""
        with self._reading() as connection:
            return connection.execute("SELECT count(*) FROM review_items WHERE waiting").fetchone()[0]

    def picture(self, id: str) -> bytes | None:
        """The picture of an item, to train with; None if it was not given. Raises `UnknownItem`."""
        arguments.text("id", id)
        with self._reading() as connection:
            row = connection.execute("SELECT picture FROM review_items WHERE id = ?", [id]).fetchone()
        if row is None:
            raise UnknownItem(f"{id} is not in {self.path}: was it added, or forgotten?")
        return row[0]

    def forget(self, id: str) -> None:
        """Take an item, its picture and its answers out and overwrite them; in the log too, at the latest when all close."""
        arguments.text("id", id)
        with self._transaction("FULL") as connection:
            for table in ("review_items", "review_answers"):
                connection.execute(f"DELETE FROM {table} WHERE id = ?", [id])
        with self._used() as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # empties the log too

    def labels(self) -> "pd.DataFrame":
        """What was answered, one row an item, in the order in which they were added, each with its latest answer.

        Columns: id; confidence (NaN without a model); label, what the person said; opinion, what the model said; shown, what
        the person saw of it; degree; person; time (UTC); answers, how many there were. For `choose_thresholds` take those of
        degree "shadow": what partial automation left to a person is no random sample, and an opinion that was seen sways.
        """
        import pandas as pd

        with self._reading() as connection:
            cursor = connection.execute(READ)
            frame = pd.DataFrame(cursor.fetchall(), columns=[column[0] for column in cursor.description])
        frame["time"] = pd.to_datetime(frame["time"].astype(float), unit="s", utc=True)
        return frame.astype({"confidence": float, "answers": int})

    def __enter__(self) -> "ReviewQueue":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ReviewQueue {self.path}>"

    def _prepare(self) -> None:
        """Make the tables if the file is new, once, whoever else opens it now; refuse a file that is not ours."""
        with self._used() as connection:
            if (found := connection.execute(FOUND).fetchone()) not in (NEW, OURS):
                raise QueueUnavailable(f"{self.path} is of another program or of a newer version: name another file")
            connection.execute("PRAGMA secure_delete=ON")
            if found == NEW:
                sqlite.write_ahead(connection)
                connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT")
        sqlite.make_private(self.path)

    @contextmanager
    def _used(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time; SQLite's errors get our name."""
        try:
            with self._lock:
                yield self._connection
        except sqlite3.DatabaseError as error:
            raise QueueUnavailable(f"{self.path}: {error}") from error

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A connection of its own, which sees what was written last and waits for nobody who writes."""
        try:
            with self._reads:
                yield self._reader
        except sqlite3.DatabaseError as error:
            raise QueueUnavailable(f"{self.path}: {error}") from error

    @contextmanager
    def _transaction(self, synchronous: str = "NORMAL") -> Iterator[sqlite3.Connection]:
        """All of what follows is written, or nothing of it; no other process writes meanwhile. FULL waits for the disk."""
        with self._used() as connection, sqlite.transaction(connection, synchronous):
            yield connection


def _close(*connections: sqlite3.Connection) -> None:
    for connection in connections:
        connection.close()


def _bare(picture: bytes) -> bytes:
    """Return a JPEG or PNG with the same pixels, upright, and nothing else in it. Raises what `images.decode` raises."""
    return images.encode(images.decode(picture), "png" if picture.startswith(PNG) else "jpeg")


def _to_json(found: tuple[Detection, ...]) -> str:
    return json.dumps([vars(detection) for detection in found], default=float)


def _from_json(text: str) -> tuple[Detection, ...]:
    return tuple(Detection(found["label"], found["confidence"], Box(*found["box"])) for found in json.loads(text))
