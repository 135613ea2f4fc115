"""What happened, written down: one row for each request.

The server records every prediction here, off the answer's path; rollout, drift and dashboards read what was written, and
nothing else. A row says when, which version, how long it took, what the picture was like and what was found in it.
"""

import time as clock
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sql
from sqlalchemy.exc import DBAPIError

from labsupport.arguments import shown
from labsupport.detection import Detection, agreement
from labsupport.log import rows, station_records, tables
from labsupport.log.retention import Retention
from labsupport.log.rows import Moment, from_json, to_json
from labsupport.log.tables import COLUMNS, FEATURES, PREDICTIONS, SAID, LogUnavailable, UnknownSchema
from labsupport.log.writer import NotWritten, Trouble, Writer

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "COLUMNS",
    "FEATURES",
    "SAID",
    "LogUnavailable",
    "NotWritten",
    "PredictionLog",
    "UnknownPrediction",
    "UnknownSchema",
    "from_json",
    "to_json",
]


class UnknownPrediction(KeyError):
    """No prediction of that id was recorded here."""

    def __str__(self) -> str:
        return self.args[0]


class PredictionLog:
    """What the model was asked and what it answered, in a database that several processes may write and read at once.

    `url` names a SQLite file: "sqlite:///" and a path as it is, whatever signs are in it, or a `Path`; only its owner can
    read the file. Or it names a PostgreSQL database that several machines share (postgresql+psycopg://user@host/lab; the
    password may stand in ~/.pgpass, and is never printed). With `keep` or `max_bytes` whoever records removes the oldest
    rows, twice a minute, as `prune` does; by default everything stays.

    `record` returns at once; a thread writes, at the latest after 0.2 s or 500 rows, each batch in one transaction. While
    the disk is slow, locked or full, or the server away, up to 10,000 rows wait and are tried again; beyond that the oldest
    waiting one makes room, for monitoring asks about now. `dropped` counts what was lost so, and `logging` gets a line when
    it begins and one when it is over. `NotWritten` and `LogUnavailable` name no path and no server, as clients may see them:
    `logging` gets the name and the reason.

    A crash (kill -9) loses what was recorded in its last 0.2 s, or what waits for the disk, and never leaves half a row.
    Power loss may also undo the last transactions, and damages nothing (https://sqlite.org/wal.html, synchronous=NORMAL).
    Threads may share a log; each process opens its own, a forked one too. If the file is deleted or replaced while it is
    open, `logging` says so, and the log begins a new one with the rows that wait.

    >>> import tempfile
    >>> from labsupport.detection import Box
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

    def __init__(
        self, url: str | Path = "sqlite:///predictions.db", keep: timedelta | None = None, max_bytes: int | None = None
    ) -> None:
        """Open the database, or make its tables.

        Raises `LogUnavailable`, `UnknownSchema`, and ValueError for a `url` that names neither kind of database and for a
        negative limit.
        """
        self.url = tables.shown(url)
        self._engine = tables.open_database(url)
        self._prepare = partial(tables.prepare, self._engine)
        retention, limited = Retention(self._engine, keep, max_bytes), keep is not None or max_bytes is not None
        tend = retention.step if limited else None
        self._writer = Writer(self._engine, self.url, rows.insert, self._prepare, tend, retention.close)
        self._unread = Trouble(self.url)

    @property
    def dropped(self) -> int:
        """How many rows were lost: no room was left to wait, or no database can hold them."""
        return self._writer.dropped

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

        `latency` in seconds; `features` from `images.features`, of which `aspect` is not kept, but computed when it is read;
        `key` is what the caller is routed by; `bytes` the size of the upload; `error` the kind of a failure; `shadow` marks
        what nobody was given as an answer. `detections` and `features` are None where nothing was looked at.
        `time` is now, unless given as `rows.seconds` takes it. Text that is too long or that no database can hold is cut or
        mended, for an answer must not be missing in the log because of it.
        Raises ValueError for a feature that has no column, and for a time that is none.
        """
        seen = features or {}
        if unknown := seen.keys() - FEATURES:
            raise ValueError(f"no column for {', '.join(sorted(unknown))}: the features are {', '.join(FEATURES)}")
        now = clock.time() if time is None else rows.seconds(time)
        found = None if detections is None else tuple(detections)  # a copy: the caller may go on with its list
        row = dict(seen, time=now, id=id, key=key, version=version, latency=latency, bytes=bytes)
        row.update(detections=found, error=error, status=status, shadow=shadow)
        self._writer.put(row)

    def feedback(
        self, id: str, correct: bool | None = None, labels: Sequence[str] | None = None, retry: bool = False
    ) -> None:
        """Note what a user says of an answer: it was correct or not, what is in the picture instead, or "try again".

        Labels are a correction: at most 1,000 of 1,000 characters each, 200,000 together. Of several remarks on one
        prediction the last counts. Written when this returns. Raises `UnknownPrediction`, ValueError if nothing is said or
        the labels are too much or no text, and `NotWritten` if the database does not take it.
        """
        said, id = rows.remark(correct, labels, retry), rows.clean(str(id))
        with self._writing():
            if not self._recorded(id):
                self.flush()  # it may wait to be written
                if not self._recorded(id):
                    raise UnknownPrediction(
                        f"no prediction {shown(id)} is in the log: take the id from X-Prediction-Id"
                    )
            with self._engine.begin() as connection:
                rows.note(connection, id, said)

    def receive(self, decided: Sequence[Mapping]) -> int:
        """Take in what stations decided, each id once, in this order; how many were new. `edge` says what stations are.

        Each is what `schemas.RecordIn` lets in. A decision becomes a row of `decisions`, and what a model saw one of the
        predictions, both at once. When this returns, the disk has them: a power cut does not undo it. A second arrival
        changes nothing. Raises ValueError for a record that is none, `records.RecordClash` if one has the id of a prediction
        that did not come from a station, and `NotWritten` if the database does not take them: then it has none of them.
        """
        decided = [station_records.checked(record) for record in decided]
        with self._writing():
            self._prepare()
            with self._engine.begin() as connection:
                if connection.dialect.name == "sqlite":
                    connection.exec_driver_sql("PRAGMA synchronous=FULL")
                return station_records.take(connection, decided)

    def prune(self, older_than: timedelta | None = None, max_bytes: int | None = None) -> int:
        """Remove what is older, and then the oldest rows until the rest fits; the number of predictions removed.

        The limits hold for predictions, remarks and decisions alike, by their time. What users said goes with its
        prediction at the latest. We remove some rows at a time, so that nobody who writes waits for long; a SQLite file that
        an older version made is written anew once, and writers wait that long, their rows in memory.

        `max_bytes` is the size of the SQLite file, without the few megabytes of log beside it, and the disk gets its space
        back. In PostgreSQL it is the size of the rows of all tables without their indexes, estimated from a sample of a
        large table, and the server keeps the space for new rows.
        Raises ValueError if no limit is given or one is negative, and `NotWritten` if somebody else locks the file.
        """
        if older_than is None and max_bytes is None:
            raise ValueError("say what is to go: older_than=timedelta(days=30) or max_bytes=1_000_000_000")
        with self._writing():
            return Retention(self._engine, older_than, max_bytes).all()

    def flush(self, timeout: float = 5) -> None:
        """Wait until everything recorded so far is written. Raises `NotWritten` after `timeout` seconds."""
        self._writer.flush(timeout)

    def close(self) -> None:
        """Write what waits and let go of the file. What cannot be written within about 5 s is dropped, and that is logged.

        The end of a `with` block closes, and so does the end of the program. Closing twice is fine.
        """
        self._writer.close()

    def __enter__(self) -> "PredictionLog":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<PredictionLog {self.url}>"

    def columns(self, *names: str, since: Moment = None, until: Moment = None, shadow: bool = False) -> dict[str, list]:
        """Some columns of the rows with since <= time < until, by time: of those that are written, by whichever process.

        `since` and `until` are what `rows.seconds` takes: a datetime with a time zone, its text in ISO 8601, or seconds
        since the epoch; `since=timedelta(minutes=5)` is the last five minutes. `names` are those of `COLUMNS` and, for what
        the user said last, of `SAID`; values are the database's own. `shadow=True` gives what candidates in shadow said.
        Raises ValueError for a moment or a name that is none, and `LogUnavailable` while the database cannot be read.
        """
        with self._reading() as connection:
            found = connection.execute(rows.query(names, since, until).where(PREDICTIONS.c.shadow.is_(shadow))).all()
        return dict(zip(names, map(list, zip(*found, strict=True)) if found else [[] for _ in names], strict=True))

    def select(self, query: sql.Select) -> list[sql.Row]:
        """The rows that a query of `tables` finds. Raises `LogUnavailable`."""
        with self._reading() as connection:
            return connection.execute(query).all()

    def oldest(self) -> float | None:
        """When the oldest row was recorded, in seconds since the epoch; None if there is none."""
        with self._reading() as connection:
            return connection.execute(sql.select(sql.func.min(PREDICTIONS.c.time))).scalar_one()

    def frame(self, since: Moment = None, until: Moment = None, shadow: bool = False) -> "pd.DataFrame":
        """The rows with since <= time < until, by time, as `columns` chooses them.

        Columns: those of `COLUMNS` and `SAID`, with `time` as datetime64 in UTC, `detections` as lists of `Detection` and
        `labels` as lists of strings. Raises what `columns` raises.
        """
        kinds = {name: kind for name, kind in {**COLUMNS, **SAID}.items() if name != "shadow"}
        return rows.to_frame(self.columns(*kinds, since=since, until=until, shadow=shadow), kinds)

    def decisions(self, since: Moment = None, until: Moment = None) -> "pd.DataFrame":
        """What stations decided with since <= time < until, by time: a row for each product.

        Columns: those of `tables.DECIDED`. `id` is that of the prediction, if a model saw the product; `latency` in
        seconds, from the picture to the decision.
        Raises what `columns` raises.
        """
        with self._reading() as connection:
            return station_records.read(connection, since, until)

    def pairs(self, since: Moment = None, until: Moment = None) -> "pd.DataFrame":
        """Each picture that a candidate saw in shadow: what it said beside the answer, and how far the two agree.

        Columns: `time`, `id`, `key`, `version`, `candidate`, `latency`, `candidate_latency`, `detections`,
        `candidate_detections`, `candidate_error`, and `matched`, `relabelled`, `missed`, `extra` and `agreement` as
        `agreement.compare` counts them, with the answer as the reference; these are missing where the candidate failed.
        `since` and `until` are about the answers; what the candidate said more than an hour after `until` is left out.
        """
        later = None if until is None else rows.seconds(until) + 3600  # a candidate may be slow
        return agreement.paired(self.frame(since, until), self.frame(since, later, shadow=True))

    def export(self, path: Path | str, since: Moment = None, until: Moment = None) -> int:
        """Write the rows with since <= time < until into a Parquet file, by time; the number of rows.

        Columns: those of `COLUMNS` and `SAID`, answers and candidates in shadow alike, told apart by `shadow`. `time` is a
        timestamp in UTC, `detections` a list of structs of label, confidence and box, and `labels` a list of strings. All
        of it is of one moment, and goes through memory 10,000 rows at a time. The file appears whole or not at all.
        Raises what `columns` raises.
        """
        from labsupport.log import parquet

        query = rows.query((*COLUMNS, *SAID), since, until).execution_options(yield_per=parquet.ROWS)
        with self._reading() as connection:
            return parquet.write(path, {**COLUMNS, **SAID}, connection.execute(query).partitions())

    def _recorded(self, id: str) -> bool:
        with self._engine.connect() as connection:
            return connection.execute(sql.select(PREDICTIONS.c.row).where(PREDICTIONS.c.id == id)).first() is not None

    @contextmanager
    def _reading(self) -> Iterator[sql.Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except DBAPIError as error:
            self._unread.met("cannot be read: %s", tables.reason(error))
            raise LogUnavailable("the log of predictions cannot be read now: try again") from error
        self._unread.over("can be read again")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (DBAPIError, LogUnavailable, UnknownSchema) as error:
            self._writer.fails(error)
            raise NotWritten("the log of predictions cannot be written now: nothing was noted, try again") from error
        self._writer.works()
