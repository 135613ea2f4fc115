"""What happened, written down: one row for each request, in one file.

The server records every prediction here, off the answer's path; rollout, drift and dashboards read what was written, and
nothing else. A row says when, which version, how long it took, what the picture was like and what was found in it.
"""

import atexit
import json
import logging
import threading
import time as clock
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import sqlalchemy as sql
from sqlalchemy.exc import DatabaseError

from labsupport import agreement
from labsupport.detection import Box, Detection
from labsupport.sqlite import write_ahead

if TYPE_CHECKING:
    import pandas as pd

QUEUE, BATCH = 10_000, 500  # rows that wait in memory, rows that are written in one transaction: at most
DELAY, BUSY = 0.2, 2.0  # seconds: a row waits for others to be written with; SQLite waits for another writer
YEAR_10000 = 253_402_300_800  # in seconds since the epoch: a later time was meant in milliseconds
SCHEMA = 2  # what a file of ours has as SQLite's user_version
NEW, OLD = (
    (0, None),
    (1, "predictions"),
)  # version and tables of an empty file, and of one from before shadow and feedback

FEATURES = ("brightness", "contrast", "sharpness", "saturation", "width", "height")  # what `images.features` gives
COLUMNS = {
    "time": sql.Float,  # seconds since the epoch, UTC, to the microsecond
    "id": sql.String,
    "key": sql.String,
    "version": sql.String,
    "latency": sql.Float,
    **dict.fromkeys(FEATURES, sql.Float),
    "bytes": sql.Integer,
    "detections": sql.Text,  # JSON: [{"label": "cat", "confidence": 0.9, "box": [left, top, right, bottom]}, ...]
    "n_detections": sql.Integer,
    **dict.fromkeys(("mean_confidence", "max_confidence", "min_confidence"), sql.Float),
    "error": sql.String,
    "status": sql.Integer,
    "shadow": sql.Boolean,  # nobody was given this answer: a candidate was shown the picture, too
}
SAID = {"correct": sql.Boolean, "labels": sql.Text, "retry": sql.Boolean}  # by a user, of an answer; labels as JSON
TABLES = sql.MetaData()
PREDICTIONS = sql.Table(
    "predictions",
    TABLES,
    sql.Column("row", sql.Integer, primary_key=True),
    *(sql.Column(name, kind, index=name in ("time", "id")) for name, kind in COLUMNS.items()),
)
FEEDBACK = sql.Table(
    "feedback",
    TABLES,
    sql.Column("row", sql.Integer, primary_key=True),
    sql.Column("time", sql.Float),
    sql.Column("id", sql.String, index=True),  # the prediction's
    *(sql.Column(name, kind) for name, kind in SAID.items()),
)
DTYPES = {
    sql.Float: "float64",
    sql.Integer: "Int64",
    sql.String: "string",
    sql.Text: "object",
    sql.Boolean: "boolean",
}  # pandas', with nulls

logger = logging.getLogger(__name__)


class LogUnavailable(OSError):
    """The file cannot be opened: its folder is missing or cannot be written, or it is no SQLite file."""


class UnknownSchema(RuntimeError):
    """The file is of a newer version of the lab, or of another program."""


class UnknownPrediction(KeyError):
    """No prediction of that id was recorded here."""

    def __str__(self) -> str:
        return self.args[0]


class NotWritten(TimeoutError):
    """The disk did not take in time what was recorded."""


class PredictionLog:
    """What the model was asked and what it answered, in a SQLite file that several processes may write and read at once.

    `record` returns at once; a thread writes, at the latest after 0.2 s or 500 rows, each batch in one transaction. While
    the disk is slow, locked or full, up to 10,000 rows wait and are tried again; beyond that the oldest waiting one makes
    room, for monitoring asks about now. `dropped` counts what was lost so, and `logging` says it once.

    A crash (kill -9) loses what was recorded in its last 0.2 s, or what waits for the disk, and never leaves half a row.
    Power loss may also undo the last transactions, and damages nothing (https://sqlite.org/wal.html, synchronous=NORMAL).
    Threads may share a log; each process opens its own, a forked one too. Delete the file only while nobody has it open.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> with PredictionLog(f"sqlite:///{folder.name}/predictions.db") as log:
    ...     cat = Detection("cat", 0.9, Box(10, 20, 110, 120))
    ...     log.record(id="a1", version="yolov3-tiny", latency=0.012, detections=[cat], features={"brightness": 0.4})
    ...     log.flush()
    ...     log.frame(since=timedelta(minutes=5))[["id", "version", "latency", "brightness", "n_detections"]]
       id      version  latency  brightness  n_detections
    0  a1  yolov3-tiny    0.012         0.4             1
    >>> folder.cleanup()
    """

    def __init__(self, url: str = "sqlite:///predictions.db") -> None:
        """Open the file, or make it. Raises `LogUnavailable`, `UnknownSchema`, and ValueError if `url` names no file."""
        self.url, self.dropped = url, 0
        self._engine = _open(url)
        self._changed = threading.Condition()  # guards what follows, and is never held while the disk works
        self._queue: deque = deque()  # (number, row), the oldest first; a row leaves it once it is written
        self._number = self._writing = self._flushing = 0  # rows so far; rows in the transaction; threads in flush
        self._most, self._closing = BATCH, False
        self._writer: threading.Thread | None = None
        self._said: set[str] = set()

    def record(
        self,
        *,
        id: str,
        version: str | None,
        latency: float | None,
        detections: Sequence[Detection] | None,
        features: Mapping[str, float] | None,
        key: str | None = None,
        bytes: int | None = None,
        status: int | None = 200,
        error: str | None = None,
        shadow: bool = False,
        time: datetime | float | None = None,
    ) -> None:
        """Note one request. Takes some microseconds, whatever the disk does, and opens a closed log again.

        `latency` in seconds; `features` from `images.features`; `key` is what the caller is routed by; `bytes` the size of
        the upload; `error` the kind of a failure; `shadow` marks what nobody was given as an answer. `detections` and
        `features` are None where nothing was looked at.
        `time` is now, unless given as an aware datetime or in seconds since the epoch.
        Raises ValueError for a feature that has no column, and for a time that is naive or out of range.
        """
        seen = features or {}
        if unknown := seen.keys() - FEATURES:
            raise ValueError(f"no column for {', '.join(sorted(unknown))}: the features are {', '.join(FEATURES)}")
        now = clock.time() if time is None else _seconds(time)
        found = None if detections is None else tuple(detections)  # a copy: the caller may go on with its list
        row = dict(seen, time=now, id=id, key=key, version=version, latency=latency, bytes=bytes)
        row.update(detections=found, error=error, status=status, shadow=shadow)
        with self._changed:
            self._number += 1
            self._queue.append((self._number, row))
            if len(self._queue) > QUEUE:
                del self._queue[self._writing]  # those before it are in a transaction already
                self.dropped += 1
            if self._writer is None:
                self._start()
            if len(self._queue) in (1, BATCH):
                self._changed.notify_all()

    def feedback(
        self, id: str, correct: bool | None = None, labels: Sequence[str] | None = None, retry: bool = False
    ) -> None:
        """Note what a user says of an answer: it was correct or not, what is in the picture instead, or "try again".

        Labels are a correction. Of several remarks on one prediction the last counts. Written when this returns. Raises
        `UnknownPrediction`, ValueError if nothing is said, and `NotWritten` if the disk does not take it.
        """
        if correct is None and labels is None and not retry:
            raise ValueError("say something: correct=True or False, labels=[...] or retry=True")
        wrong = False if labels is not None else correct
        said = {"correct": wrong, "labels": None if labels is None else json.dumps(list(labels)), "retry": retry}
        if not self._recorded(id):
            self.flush()  # it may wait to be written
            if not self._recorded(id):
                raise UnknownPrediction(f"no prediction {id!r} is in {self.url}: take the id from X-Prediction-Id")
        try:
            with self._engine.begin() as connection:
                connection.execute(sql.insert(FEEDBACK).values(time=clock.time(), id=id, **said))
        except DatabaseError as error:
            raise NotWritten(f"{self.url} cannot be written: {error.orig}") from error

    def _recorded(self, id: str) -> bool:
        with self._engine.connect() as connection:
            return connection.execute(sql.select(PREDICTIONS.c.row).where(PREDICTIONS.c.id == id)).first() is not None

    def flush(self, timeout: float = 5) -> None:
        """Wait until everything recorded so far is written. Raises `NotWritten` after `timeout` seconds."""
        with self._changed:
            last = self._number
            self._flushing += 1
            self._changed.notify_all()
            written = self._changed.wait_for(lambda: not self._queue or self._queue[0][0] > last, timeout)
            self._flushing -= 1
            if not written:
                raise NotWritten(f"{len(self._queue):,} rows still wait to be written to {self.url} after {timeout} s")

    def close(self) -> None:
        """Write what waits and let go of the file. What cannot be written within about 5 s is dropped, and that is logged.

        The end of a `with` block closes, and so does the end of the program. Closing twice is fine.
        """
        if (writer := self._writer) is None:
            return
        atexit.unregister(self.close)
        with suppress(NotWritten):  # then the writer gives up, and says so
            self.flush()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        writer.join(2 * BUSY)

    def __enter__(self) -> "PredictionLog":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<PredictionLog {self.url}>"

    def columns(
        self,
        *names: str,
        since: datetime | timedelta | float | None = None,
        until: datetime | float | None = None,
        shadow: bool = False,
    ) -> dict[str, list]:
        """Some columns of the rows with since <= time < until, by time: of those in the file, whichever process wrote them.

        `since` and `until` are aware datetimes or seconds since the epoch; `since=timedelta(minutes=5)` is the last five
        minutes. `names` are those of `COLUMNS` and, for what the user said last, of `SAID`; values are SQLite's own, None
        where there is none. `shadow=True` gives what candidates in shadow said, instead of the answers.
        Raises ValueError for a naive datetime.
        """
        table, said = PREDICTIONS.c, FEEDBACK.c
        each = FEEDBACK.alias().c
        last = sql.select(sql.func.max(each.row)).where(each.id == table.id).correlate(PREDICTIONS).scalar_subquery()
        query = sql.select(*(table[name] if name in COLUMNS else said[name] for name in names))
        query = query.select_from(PREDICTIONS.outerjoin(FEEDBACK, said.row == last)).order_by(table.time, table.row)
        query = query.where(table.shadow.is_(shadow))
        if since is not None:
            query = query.where(table.time >= _seconds(since))
        if until is not None:
            query = query.where(table.time < _seconds(until))
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return dict(zip(names, map(list, zip(*rows, strict=True)) if rows else [[] for _ in names], strict=True))

    def frame(
        self,
        since: datetime | timedelta | float | None = None,
        until: datetime | float | None = None,
        shadow: bool = False,
    ) -> "pd.DataFrame":
        """The rows with since <= time < until, by time, as `columns` chooses them.

        Columns: those of `COLUMNS` and `SAID`, with `time` as datetime64 in UTC, `detections` as lists of `Detection` and
        `labels` as lists of strings. Raises ValueError for a naive datetime.
        """
        import pandas as pd

        kinds = {**COLUMNS, **SAID}
        rows = self.columns(*kinds, since=since, until=until, shadow=shadow)
        frame = pd.DataFrame(rows, columns=list(kinds), dtype=object)
        frame = frame.astype({name: DTYPES[kind] for name, kind in kinds.items()})
        microseconds = (frame["time"] * 1e6).round().astype("int64")
        frame["time"] = pd.to_datetime(microseconds, unit="us", utc=True).dt.as_unit("us")
        frame["detections"] = frame["detections"].map(_from_json, na_action="ignore")
        frame["labels"] = frame["labels"].map(json.loads, na_action="ignore")
        return frame.drop(columns="shadow")

    def pairs(
        self, since: datetime | timedelta | float | None = None, until: datetime | float | None = None
    ) -> "pd.DataFrame":
        """Each picture that a candidate saw in shadow: what it said beside the answer, and how far the two agree.

        Columns: `time`, `id`, `key`, `version`, `candidate`, `latency`, `candidate_latency`, `detections`,
        `candidate_detections`, `candidate_error`, and `matched`, `relabelled`, `missed`, `extra` and `agreement` as
        `agreement.compare` counts them, with the answer as the reference; these are missing where the candidate failed.
        """
        import pandas as pd

        answers, others = self.frame(since, until), self.frame(since, None, shadow=True)
        seen = ["version", "latency", "detections", "error"]
        others = others[["id", *seen]].rename(columns={"version": "candidate"})
        others = others.rename(columns={name: f"candidate_{name}" for name in seen})
        answers = answers[["time", "id", "key", "version", "latency", "detections"]]
        pairs = answers.merge(others, on="id", validate="one_to_many")
        both = pairs["detections"].notna() & pairs["candidate_detections"].notna()
        counts = [
            {**vars(verdict), "agreement": verdict.share}
            for verdict in map(agreement.compare, pairs["candidate_detections"][both], pairs["detections"][both])
        ]
        names = ["matched", "relabelled", "missed", "extra", "agreement"]
        return pairs.join(pd.DataFrame(counts, index=pairs.index[both], columns=names, dtype="float64"))

    def _start(self) -> None:
        self._closing = False
        writer = threading.Thread(target=self._write, name="PredictionLog", daemon=True)
        with suppress(RuntimeError):  # no thread to be had just now: the next record asks again
            writer.start()
            self._writer = writer
            atexit.register(self.close)

    def _write(self) -> None:
        """What the writer's thread does, until the log closes."""
        while True:
            try:
                with self._engine.connect() as connection:
                    while rows := self._next():
                        with connection.begin():
                            connection.execute(sql.insert(PREDICTIONS), [_values(row) for row in rows])
                        self._written(len(rows))
                return
            except Exception as error:
                if self._writing and not isinstance(error, DatabaseError):
                    self._single_out(error)
                elif self._given_up(getattr(error, "orig", error)):
                    return

    def _next(self) -> list[dict]:
        """The rows to write next, once it is time to; none if the log closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            self._changed.wait_for(lambda: len(self._queue) >= self._most or self._flushing or self._closing, DELAY)
            self._writing = min(len(self._queue), self._most)
            if not self._writing:
                self._writer = None
            return [row for _, row in islice(self._queue, self._writing)]

    def _written(self, count: int) -> None:
        with self._changed:
            for _ in range(count):
                self._queue.popleft()
            self._writing = 0
            self._changed.notify_all()
        if "disk" in self._said:
            self._said.remove("disk")
            logger.warning("%s is written again, %d rows were dropped", self.url, self.dropped)

    def _given_up(self, error: Exception) -> bool:
        """Locked, full, damaged: no row is to blame and it may pass, so we try again, unless the log closes."""
        self._say("disk", "%s cannot be written, rows wait: %s", self.url, error)
        with self._changed:
            self._writing = 0
            if self._changed.wait_for(lambda: self._closing, DELAY):
                self.dropped += len(self._queue)
                self._queue.clear()
                self._writer = None
                self._changed.notify_all()
        if self.dropped:
            self._say("dropped", "%s: rows are dropped, %d so far", self.url, self.dropped)
        return self._writer is None

    def _single_out(self, error: Exception) -> None:
        """A row that no file can hold would stop all others: write one by one until we meet it, and drop that one."""
        self._most = 1 if self._writing > 1 else BATCH
        if self._most == BATCH:
            with self._changed:
                self.dropped += 1
                self._written(1)
            self._say("row", "a row that cannot be written was dropped: %r", error)

    def _say(self, what: str, message: str, *arguments) -> None:
        if what not in self._said:  # once, not with every row
            self._said.add(what)
            logger.warning(message, *arguments)


def _open(url: str) -> sql.Engine:
    address = sql.make_url(url) if url.startswith("sqlite:///") else None
    if address is None or address.database in (None, "", ":memory:"):
        raise ValueError(f"{url}: name a SQLite file, as in sqlite:///predictions.db")
    file = Path(address.database).absolute()
    if not file.parent.is_dir():
        raise LogUnavailable(f"there is no folder {file.parent}: make it, or name a file elsewhere")
    # no pool: nothing stays open between uses, so who only reads holds nothing and a fork takes no connection along
    engine = sql.create_engine(address, poolclass=sql.NullPool, connect_args={"timeout": BUSY})
    sql.event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=NORMAL"))
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            _prepare(connection, file)
    except DatabaseError as error:
        raise LogUnavailable(f"{file}: {error.orig}: is its folder writable, and is it a SQLite file?") from error
    return engine


def _prepare(connection: sql.Connection, file: Path) -> None:
    """Make the tables if the file is new or old, once, whoever else opens it now; refuse a file that is not ours."""
    if _schema(connection) in (NEW, OLD):
        write_ahead(connection.connection.driver_connection)  # kept in the file, as the version is
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        if (found := _schema(connection)) in (NEW, OLD):
            if found == OLD:
                connection.exec_driver_sql("ALTER TABLE predictions ADD COLUMN shadow BOOLEAN DEFAULT 0")
            TABLES.create_all(connection)
            connection.exec_driver_sql(f"PRAGMA user_version={SCHEMA}")
        connection.exec_driver_sql("COMMIT")
    version, tables = _schema(connection)
    if version != SCHEMA or PREDICTIONS.name not in (tables or "").split(","):
        what = f"{file} holds schema {version} (tables: {tables})"
        raise UnknownSchema(f"{what}, this labsupport reads {SCHEMA}: update it, or name another file")


def _schema(connection: sql.Connection) -> tuple[int, str | None]:
    """The version and the tables' names, in one statement: of one moment."""
    tables = "SELECT group_concat(name) FROM sqlite_master WHERE type = 'table'"
    return tuple(connection.exec_driver_sql(f"SELECT user_version, ({tables}) FROM pragma_user_version").one())


def _seconds(moment: datetime | timedelta | float) -> float:
    """Since the epoch, to the microsecond: a time that was read back from a frame compares equal to its row's."""
    if isinstance(moment, timedelta):
        moment = clock.time() - moment.total_seconds()
    elif isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise ValueError(f"{moment} has no time zone: use datetime.now(UTC), or .astimezone() if it is local time")
        moment = moment.timestamp()
    if not moment < YEAR_10000:
        raise ValueError(f"{moment}: give an aware datetime, or seconds since the epoch")
    return round(float(moment), 6)


def _values(row: dict) -> dict:
    """A row as the table takes it: summed up, and plain Python values, whatever NumPy scalars were recorded."""
    found = row["detections"]
    sure = [detection.confidence for detection in found or ()]
    summary = {"mean_confidence": fmean(sure), "max_confidence": max(sure), "min_confidence": min(sure)} if sure else {}
    row = {**row, **summary, "n_detections": None if found is None else len(found), "time": _seconds(row["time"])}
    return {name: None if row.get(name) is None else PLAIN[kind](row[name]) for name, kind in COLUMNS.items()}


def _to_json(found: Sequence[Detection]) -> str:
    return json.dumps([vars(detection) for detection in found], separators=(",", ":"), allow_nan=False, default=float)


def _from_json(text: str) -> list[Detection]:
    return [Detection(found["label"], found["confidence"], Box(*found["box"])) for found in json.loads(text)]


PLAIN = {sql.Float: float, sql.Integer: int, sql.String: str, sql.Text: _to_json, sql.Boolean: bool}
