"""Queue pictures for people to label, in one file, and return the labels.

`automation.decide` leaves a picture to a person. The queue gives it to one person at a time, and stores the answer as a
label, for `choose_thresholds` and for training the next model.
"""

import sqlite3
import threading
import time as clock
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from labsupport import arguments, sqlite
from labsupport.access import Forgotten, Keys
from labsupport.automation import review_pictures, review_tables
from labsupport.automation.degrees import Decision
from labsupport.detection import Detection
from labsupport.extras import imported

if TYPE_CHECKING:
    import pandas as pd

LABELS = ("good", "defect")
LONGEST = 86_400.0  # the longest lease, in seconds
BUSY = 5.0  # seconds that a call waits while another process writes


class QueueUnavailable(OSError):
    """The file cannot be used: no such folder, no permission, not a review queue, or locked by another process."""


class UnknownItem(LookupError):
    """The queue has no item with this id."""


@dataclass(frozen=True)
class ReviewItem:
    """Hold what a person sees of an item. In shadow mode it has no opinion and no regions of the model.

    `picture` is None if none was added, or if its owner was forgotten.
    """

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
    so that no place, time, camera, comment or thumbnail stays. With `keys`, a picture that has an `owner` is encrypted
    before it is written. `person` can be a pseudonym. Only the user of this process can read the file. `forget` and
    `forget_owner` remove items permanently.

    Threads may share a queue. Each process opens its own, also after a fork. Delete the file only while it is not open.

    >>> import tempfile
    >>> from labsupport.automation import Degree, Thresholds, decide
    >>> from labsupport.detection import Box
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

    def __init__(self, path: str | Path = "review.db", lease: float = 600, keys: Keys | None = None) -> None:
        """Open or create the file. `lease` is in seconds, a day at most; `keys` encrypt the pictures of owners.

        Raises `QueueUnavailable`, and ValueError for an invalid lease.
        """
        self.lease, self.keys = arguments.number("lease", lease, 1e-3, LONGEST), keys
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

    def add(self, id: str, decision: Decision, picture: bytes | None = None, owner: str | None = None) -> None:
        """Add an item with the id of its prediction. `picture` is a JPEG or PNG, if the queue should store it.

        A PNG keeps its pixels; a JPEG is encoded again with quality 90. Both are turned upright. `owner` is the person's id
        for `keys`. Adding the same item again changes nothing, so repeat the call after a crash. You may also add a decision
        of the model, for an audit.
        Raises ValueError if the id exists with another content or is not text of 1 to 1,000 characters, TypeError for a
        picture that is not bytes, the errors of `images.decode` if it is not a JPEG or PNG, and those of `Keys.encrypt`.
        """
        if not isinstance(picture, bytes | None):
            raise TypeError(f"picture is a {type(picture).__name__}: give the bytes of a file, as images.encode does")
        if owner is not None:
            arguments.text("owner", owner, least=1)
        row = review_tables.row(arguments.text("id", id, least=1), decision, owner)
        row["picture"] = None if picture is None else review_pictures.bare(picture)
        with self._transaction() as connection:
            # in the transaction: `forget_owner` waits for an item that was encrypted before the key was removed
            stored = row | {"picture": review_pictures.sealed(self.keys, id, row["picture"], owner)}
            if not connection.execute(review_tables.ADD, stored).rowcount:
                query = f"SELECT {', '.join(row)} FROM review_items WHERE id = :id"
                there = dict(zip(row, connection.execute(query, row).fetchone(), strict=True))
                there["picture"] = review_pictures.opened(self.keys, id, there["picture"], there["owner"])
                if there != row:
                    raise ValueError(
                        f"{id} is in the queue already, with another decision or picture: give each its own id"
                    )

    def next(self) -> ReviewItem | None:
        """Return the oldest free item and reserve it for `lease` seconds; None if there is none.

        Raises `access.NoKey` and `access.Damaged` if its picture cannot be decrypted. The next call returns another item.
        """
        with self._transaction() as connection:
            # a reservation for more than two days comes from a clock that was wrong
            rows = connection.execute(
                review_tables.NEXT, {"now": clock.time(), "lease": self.lease, "longest": 2 * LONGEST}
            ).fetchall()
        if not rows:
            return None
        id, shown, text, picture, owner = rows[0]
        try:
            picture = review_pictures.opened(self.keys, id, picture, owner)
        except Forgotten:
            picture = None
        return ReviewItem(id, shown, review_tables.from_json(text), picture)

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
        """Return the picture of an item, for training; None if it was not given.

        Raises `UnknownItem`, and what `Keys.decrypt` raises: `access.Forgotten` if its owner was forgotten, `access.NoKey`,
        also in a queue that was opened without `keys`, and `access.Damaged`.
        """
        arguments.text("id", id)
        with self._reading() as connection:
            row = connection.execute("SELECT picture, owner FROM review_items WHERE id = ?", [id]).fetchone()
        if row is None:
            raise UnknownItem(f"{id} is not in {self.path}: was it added, or forgotten?")
        return review_pictures.opened(self.keys, id, *row)

    def forget(self, id: str) -> None:
        """Remove an item, its picture and its answers, and write the file anew, so that no byte of them is left.

        Raises `QueueUnavailable` if another process holds the file for longer than 5 s. Repeat the call then.
        """
        arguments.text("id", id)
        with self._transaction("FULL") as connection:
            for statement in review_tables.FORGET:
                connection.execute(statement, [id])
        self._rewrite()

    def forget_owner(self, owner: str, ids: Iterable[str] = ()) -> int:
        """Remove an owner's items as `forget` does, and items without an owner that have these ids. Return their number.

        Items of other owners stay, also if `ids` names them. Answers that the owner gave to other people's items stay as
        labels, without the name. Remove the key first (`Keys.forget`): then no process adds another item of this owner.
        Raises the errors of `forget`, and ValueError for `ids` that are one text.
        """
        arguments.text("owner", owner, least=1)
        if isinstance(ids, str):  # its letters would be taken for ids
            raise ValueError(f"ids={arguments.shown(ids)}: give a list of ids")
        chosen = [(arguments.text("an id", id),) for id in ids]
        with self._transaction("FULL") as connection:
            (before,) = connection.execute("SELECT count(*) FROM review_items").fetchone()
            for statement in review_tables.FORGET_OWNER:
                connection.execute(statement, [owner])
            for statement in review_tables.FORGET_UNOWNED:
                connection.executemany(statement, chosen)
            (after,) = connection.execute("SELECT count(*) FROM review_items").fetchone()
        self._rewrite()
        removed: int = before - after
        return removed

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
            cursor = connection.execute(review_tables.READ)
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
        with self._used() as connection:
            if not review_tables.prepare(connection):
                raise QueueUnavailable(f"{self.path} is of another program or of a newer version: name another file")
        sqlite.make_private(self.path)

    def _rewrite(self) -> None:
        try:
            with self._lock:
                sqlite.rewrite(self._connection, BUSY)
        except sqlite3.Error as error:
            words = (
                "the rows are removed, but their bytes are still in the file: close it in other programs, and repeat"
            )
            raise QueueUnavailable(f"{self.path}: {words} ({error})") from error

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
