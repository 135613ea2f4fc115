"""Record each request in the background, so that the answer does not wait.

Rollout, drift and dashboards read only this log. A row holds the time, the version, the latency, the features of the
picture and the detections.
"""

import time as clock
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import DBAPIError

from labsupport import arguments
from labsupport.detection import Detection
from labsupport.log import forgetting, rows, station_records, tables
from labsupport.log.reading import LogReader
from labsupport.log.retention import Retention
from labsupport.log.tables import FEATURES, PREDICTIONS, LogUnavailable, UnknownSchema
from labsupport.log.writer import DELAY, NotWritten, Writer


class UnknownPrediction(KeyError):
    """The log has no prediction with that id."""

    def __str__(self) -> str:
        return str(self.args[0])


class PredictionLog(LogReader):
    """Store requests and answers in a database. Several processes may write and read it at the same time.

    `url` names a SQLite file: "sqlite:///" and an unescaped path, or a `Path`. Only its owner can read the file. Or `url`
    names a PostgreSQL database that several machines share (postgresql+psycopg://user@host/lab). Its password may be in
    ~/.pgpass, and is never printed. With `keep` or `max_bytes`, a process that records also removes the oldest rows, twice
    a minute, as `prune` does. By default all rows stay.

    `record` does not wait. A thread writes after at most 0.2 s or 500 rows, each batch in one transaction. While the
    database is slow, locked, full or not reachable, up to 10,000 rows wait and are tried again. If more come, the oldest
    waiting rows are dropped, because monitoring needs recent rows. `dropped` counts them. `logging` gets one line when the
    trouble begins and one when it ends. `NotWritten` and `LogUnavailable` contain no path and no server name, because
    clients may see them. `logging` gets the name and the reason.

    A crash (kill -9) loses the rows of the last 0.2 s, or the rows that wait. It never leaves half a row.
    Power loss may also undo the last transactions, and damages nothing (https://sqlite.org/wal.html, synchronous=NORMAL).
    Threads may share a log. Each process opens its own, also after a fork. If the file is deleted or replaced while it is
    open, this is logged, and the waiting rows go to a new file.

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
        """Open the database, and create its tables if it has none.

        Raises `LogUnavailable`, `UnknownSchema`, and ValueError for a `url` that names neither kind of database and for a
        negative limit.
        """
        self.url = tables.shown(url)
        super().__init__(tables.open_database(url), self.url)
        self._prepare = partial(tables.prepare, self._engine)
        retention, limited = Retention(self._engine, keep, max_bytes), keep is not None or max_bytes is not None
        tend = retention.step if limited else None
        self._writer = Writer(self._engine, self.url, rows.insert, self._prepare, tend, retention.close)

    @property
    def dropped(self) -> int:
        """Return the number of rows that were lost: too many waited, or no database could store them."""
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
        person: str | None = None,
        bytes: int | None = None,
        status: int | None = 200,
        error: str | None = None,
        shadow: bool = False,
        time: datetime | float | None = None,
    ) -> None:
        """Record one request. Takes some microseconds, because it does not wait for the disk. Reopens a closed log.

        `latency` is in seconds. `features` come from `images.features`; `aspect` is not stored, but computed at reading.
        `key` routes the caller; `person` is the id of the person who sent the request, for `forget`; `bytes` is the size of
        the upload; `error` is the type of a failure. `shadow` marks the answer of a candidate in shadow. `detections` and
        `features` are None if no model ran. `time` is now by default; give it as for `rows.seconds`. Text that is too long
        is cut, and characters that no database stores are replaced.
        Raises ValueError for a feature that has no column, an invalid time, and a person that is not text.
        """
        measured = features or {}
        if unknown := measured.keys() - FEATURES:
            raise ValueError(f"no column for {', '.join(sorted(unknown))}: the features are {', '.join(FEATURES)}")
        if person is not None:
            arguments.text("person", person, least=1)
        now = clock.time() if time is None else rows.seconds(time)
        answer = None if detections is None else tuple(detections)  # a copy: the caller may change its list
        row: dict[str, Any] = dict(measured, time=now, id=id, key=key, version=version, latency=latency, bytes=bytes)
        row.update(detections=answer, error=error, status=status, shadow=shadow, person=person)
        self._writer.put(row)

    def feedback(
        self, id: str, correct: bool | None = None, labels: Sequence[str] | None = None, retry: bool = False
    ) -> list[rows.Remark]:
        """Record a user's remark on an answer: it was correct or not, what is in the picture instead, or "try again".

        Labels are a correction: at most 1,000 of 1,000 characters each, 200,000 together. If a prediction has several
        remarks, the last counts. The remark is written when this returns. Returns the different earlier remarks on the
        prediction, with "" for their labels. Raises `UnknownPrediction`, `NotWritten` if the database cannot be written, and
        ValueError for an empty remark, labels beside `correct=True`, too many or too long labels, or labels not text.
        """
        remark, id = rows.remark(correct, labels, retry), rows.clean(str(id))
        with self._writing():
            self._row_of(id)
            with self._transaction() as connection:
                earlier = rows.note(connection, id, remark)
                if connection.execute(_rows_of(id)).first() is None:  # `forget` has removed it meanwhile
                    raise unknown(id)
        return earlier

    def person_of(self, id: str) -> str | None:
        """Return the id of the person who sent the request of a prediction; None if it was recorded without one.

        Raises `UnknownPrediction`, `NotWritten` if the prediction may still wait to be written, and `LogUnavailable`.
        """
        with self._reading():
            row = self._row_of(rows.clean(str(id)))
        if row.shadow:  # only a candidate's answer is there
            raise unknown(id)
        person: str | None = row.person
        return person

    def forget(self, person: str) -> list[str]:
        """Remove all predictions of a person, with remarks and candidates' answers. Return the ids of the predictions.

        Rows of this person that any process records later are dropped, so give each person an id that is never used again.
        Other rows stay. A SQLite file is then written anew, so that no byte of the removed rows is left in it or beside it.
        Writers wait for that, and keep their rows in memory. PostgreSQL overwrites the bytes after its next VACUUM.
        Raises ValueError for an invalid person, and `NotWritten` if other processes keep the file locked for 30 s. Repeat
        the call then.
        """
        arguments.text("person", person, least=1)
        self.flush()
        with self._writing():
            removed = forgetting.remove(self._engine, person)
        forgetting.rewrite(self._engine)
        return removed

    def receive(self, decided: Sequence[Mapping[str, Any]]) -> int:
        """Store the records of stations (`edge`), each id once, in this order. Return how many were new.

        Each record has the form of `schemas.RecordIn`. It becomes a row of `decisions`, and the model's detections become a
        row of `predictions`, in one transaction. When this returns, the disk has them: a power cut does not undo it. A
        second arrival changes nothing. Raises ValueError for an invalid record, and `station_records.RecordClash` if one
        has the id of a prediction that did not come from a station. Raises `NotWritten` if none of them could be written.
        """
        decided = [station_records.checked(record) for record in decided]
        with self._writing():
            self._prepare()
            with self._transaction() as connection:
                if connection.dialect.name == "sqlite":
                    connection.exec_driver_sql("PRAGMA synchronous=FULL")
                return station_records.take(connection, decided)

    def prune(self, older_than: timedelta | None = None, max_bytes: int | None = None) -> int:
        """Remove rows that are too old, then the oldest rows until the rest fits. Return the number of predictions removed.

        The limits apply to predictions, remarks and decisions, by their time. A remark is removed at the latest with its
        prediction. Each transaction removes only some rows, so that writers do not wait for long. Then a SQLite file is
        written anew, so that no byte of the removed rows is left in it. Writers wait for that, and keep their rows in
        memory. `logging` gets a warning if that was not possible, because another process reads or the disk is full.

        `max_bytes` is the size of the SQLite file, without the few megabytes of its write-ahead log. The disk gets its space
        back. In PostgreSQL it is the size of the rows of all tables without their indexes, estimated from a sample of a
        large table. PostgreSQL keeps the space for new rows.
        Raises ValueError without a limit or for a negative one, and `NotWritten` if another process locks the file.
        """
        if older_than is None and max_bytes is None:
            raise ValueError("say what is to go: older_than=timedelta(days=30) or max_bytes=1_000_000_000")
        with self._writing():
            return Retention(self._engine, older_than, max_bytes).all()

    def flush(self, timeout: float = 5) -> None:
        """Wait until everything recorded so far is written. Raises `NotWritten` after `timeout` seconds."""
        self._writer.flush(timeout)

    def close(self) -> None:
        """Write the waiting rows and close the file. Rows that cannot be written within about 5 s are dropped and logged.

        The end of a `with` block and the end of the program also close the log. You may close it twice.
        """
        self._writer.close()

    def __enter__(self) -> "PredictionLog":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<PredictionLog {self.url}>"

    def _row_of(self, id: str) -> sql.Row[*tuple[Any, ...]]:
        """Return the row of a prediction. If it is not there, wait for the rows that are not written yet.

        Other processes write theirs after `DELAY` seconds, so look for twice as long.
        """
        until, flushed = clock.monotonic() + 2 * DELAY, False
        while True:
            last = clock.monotonic() >= until
            with self._engine.connect() as connection:
                if row := connection.execute(_rows_of(id)).first():
                    return row
            if last:
                raise unknown(id)
            if flushed:
                clock.sleep(DELAY / 4)
            else:
                self.flush()
                flushed = True

    @contextmanager
    def _transaction(self) -> Iterator[sql.Connection]:
        """Run the block as one transaction. Raises `LogUnavailable` if its file was deleted or replaced meanwhile."""
        with self._engine.connect() as connection:
            with connection.begin():
                yield connection
            tables.check_file(connection)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (DBAPIError, LogUnavailable, UnknownSchema) as error:
            self._writer.fails(error)
            raise NotWritten("the log of predictions cannot be written now: nothing was noted, try again") from error
        self._writer.works()


def _rows_of(id: str) -> "rows.Query":
    """Return the query for the rows of a prediction: the answer before those of candidates in shadow."""
    asked = sql.select(PREDICTIONS.c.person, PREDICTIONS.c.shadow).where(PREDICTIONS.c.id == id)
    return asked.order_by(PREDICTIONS.c.shadow)


def unknown(id: str) -> UnknownPrediction:
    """Return the error for an id that the log does not have, or that its sender may not see."""
    return UnknownPrediction(f"no prediction {arguments.shown(id)} is in the log: take the id from X-Prediction-Id")
