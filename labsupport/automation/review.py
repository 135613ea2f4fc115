"""Queue pictures for people to label, in one file, and return the labels.

`automation.decide` leaves a picture to a person. The queue gives it to one person at a time, and stores the answer as a
label, for `choose_thresholds` and for training the next model.
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
from labsupport.extras import imported

if TYPE_CHECKING:
    import pandas as pd

LABELS = ("good", "defect")
PNG = b"\x89PNG"  # the first bytes of a PNG file
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
CONTENT = """
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
    """The file cannot be used: no such folder, no permission, not a review queue, or locked by another process."""


class UnknownItem(LookupError):
    """The queue has no item with this id."""


@dataclass(frozen=True)
class ReviewItem:
    """Hold what a person sees of an item. In shadow mode it has no opinion and no regions of the model."""

    id: str
    opinion: str | None
    highlight: tuple[Detection, ...]
    picture: bytes | None


class ReviewQueue:
    """Store pictures for review in a SQLite file that several processes may use at the same time. Reads never wait.

    Each call is one transaction. kill -9 at any time loses no answered or added item. Power loss may lose the last added
    items, and no answer. The oldest item comes first, so that no item waits for ever, and the choice of labelled pictures
    does not depend on the model. An item that `next` returned is reserved for `lease` seconds. Without an answer by then,
    `next` returns it again.

    Privacy: the file holds a picture only if you give it, and without metadata. Its pixels are decoded and encoded again,
    so that no place, time, camera, comment or thumbnail stays. `person` can be a pseudonym. Only its owner can read the
    file. `forget` removes an item permanently.

    Threads may share a queue. Each process opens its own, also after a fork. Delete the file only while it is not open.

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
        """Open or create the file. `lease` is in seconds. Raises `QueueUnavailable`, and ValueError for an invalid lease."""
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
        # called at the latest when the queue is garbage-collected
        self.close = weakref.finalize(self, _close, self._reader, self._connection)
        try:
            self._prepare()
        except QueueUnavailable:
            self.close()
            raise

    def add(self, id: str, decision: Decision, picture: bytes | None = None) -> None:
        """Add an item with the id of its prediction. `picture` is a JPEG or PNG, if the queue should store it.

        A PNG keeps its pixels; a JPEG is encoded again with quality 90. Both are turned upright. Adding the same item again
        changes nothing, so repeat the call after a crash. You may also add a decision of the model, for an audit.
        Raises ValueError if the id exists with another content or is not text of 1 to 1,000 characters, TypeError for a
        picture that is not bytes, and the errors of `images.decode` if it is not a JPEG or PNG.
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
        """Return the oldest free item and reserve it for `lease` seconds; None if there is none."""
        with self._transaction() as connection:
            rows = connection.execute(NEXT, {"now": clock.time(), "lease": self.lease}).fetchall()
        return next((ReviewItem(id, shown, _from_json(text), picture) for id, shown, text, picture in rows), None)

    def answer(self, id: str, label: str, person: str | None = None) -> None:
        """Store a person's label: "good" or "defect". A later answer corrects the first.

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
        """Return how many items have no answer yet, reserved or not."""
        with self._reading() as connection:
            count: int = connection.execute("SELECT count(*) FROM review_items WHERE waiting").fetchone()[0]
        return count

    def picture(self, id: str) -> bytes | None:
        """Return the picture of an item, for training; None if it was not given. Raises `UnknownItem`."""
        arguments.text("id", id)
        with self._reading() as connection:
            row = connection.execute("SELECT picture FROM review_items WHERE id = ?", [id]).fetchone()
        if row is None:
            raise UnknownItem(f"{id} is not in {self.path}: was it added, or forgotten?")
        picture: bytes | None = row[0]
        return picture

    def forget(self, id: str) -> None:
        """Remove and overwrite an item, its picture and its answers; in the log at the latest when all close it."""
        arguments.text("id", id)
        with self._transaction("FULL") as connection:
            for table in ("review_items", "review_answers"):
                connection.execute(f"DELETE FROM {table} WHERE id = ?", [id])
        with self._used() as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # empties the log too

    def labels(self) -> "pd.DataFrame":
        """Return the answered items as a frame, one row each with its latest answer, in the order in which they were added.

        | column | value |
        |---|---|
        | id, degree, person | as given to `add` and `answer` |
        | confidence | of the model; NaN without a model |
        | label | the person's verdict |
        | opinion | the model's verdict |
        | shown | the part of the opinion that the person saw |
        | time | of the answer (UTC) |
        | answers | the number of answers |

        For `choose_thresholds` take the rows of degree "shadow". Items that partial automation left to a person are not a
        random sample, and a person who saw the opinion is influenced by it.
        """
        pd = imported("pandas")

        with self._reading() as connection:
            cursor = connection.execute(READ)
            frame = pd.DataFrame(cursor.fetchall(), columns=[column[0] for column in cursor.description])
        frame["time"] = pd.to_datetime(frame["time"].astype(float), unit="s", utc=True)
        return frame.astype({"confidence": float, "answers": int})

    def __enter__(self) -> "ReviewQueue":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ReviewQueue {self.path}>"

    def _prepare(self) -> None:
        """Create the tables in a new file, once even if several processes open it. Refuse files of other programs."""
        with self._used() as connection:
            if (content := connection.execute(CONTENT).fetchone()) not in (NEW, OURS):
                raise QueueUnavailable(f"{self.path} is of another program or of a newer version: name another file")
            connection.execute("PRAGMA secure_delete=ON")
            if content == NEW:
                sqlite.write_ahead(connection)
                connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT")
        sqlite.make_private(self.path)

    @contextmanager
    def _used(self) -> Iterator[sqlite3.Connection]:
        """Lock the connection for one thread. Convert errors of SQLite to `QueueUnavailable`."""
        try:
            with self._lock:
                yield self._connection
        except sqlite3.DatabaseError as error:
            raise QueueUnavailable(f"{self.path}: {error}") from error

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Lock the separate connection for reads. It sees the last commit and does not wait for writers."""
        try:
            with self._reads:
                yield self._reader
        except sqlite3.DatabaseError as error:
            raise QueueUnavailable(f"{self.path}: {error}") from error

    @contextmanager
    def _transaction(self, synchronous: str = "NORMAL") -> Iterator[sqlite3.Connection]:
        """Run the block as one transaction, while no other process writes. FULL waits for the disk."""
        with self._used() as connection, sqlite.transaction(connection, synchronous):
            yield connection


def _close(*connections: sqlite3.Connection) -> None:
    for connection in connections:
        connection.close()


def _bare(picture: bytes) -> bytes:
    """Return a JPEG or PNG with the same pixels, upright, and nothing else in it. Raises what `images.decode` raises."""
    return images.encode(images.decode(picture), "png" if picture.startswith(PNG) else "jpeg")


def _to_json(detections: tuple[Detection, ...]) -> str:
    return json.dumps([vars(detection) for detection in detections], default=float)


def _from_json(text: str) -> tuple[Detection, ...]:
    return tuple(Detection(one["label"], one["confidence"], Box(*one["box"])) for one in json.loads(text))
