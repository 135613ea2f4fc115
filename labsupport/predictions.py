"""What happened, written down: one row for each request.

The server records every prediction here, off the answer's path; rollout, drift and dashboards read what was written, and
nothing else. A row says when, which version, how long it took, what the picture was like and what was found in it.
"""

import json
import time as clock
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sql
from sqlalchemy.exc import DBAPIError

from labsupport import agreement, records, rows, tables
from labsupport.detection import Detection
from labsupport.retention import Retention
from labsupport.rows import Moment, from_json, to_json
from labsupport.tables import COLUMNS, FEATURES, FEEDBACK, PREDICTIONS, SAID, LogUnavailable, UnknownSchema
from labsupport.writer import NotWritten, Writer

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

DTYPES = {float: "float64", int: "Int64", str: "string", list: "object", bool: "boolean"}  # pandas', with nulls


class UnknownPrediction(KeyError):
    """No prediction of that id was recorded here."""

    def __str__(self) -> str:
        return self.args[0]


class PredictionLog:
    """What the model was asked and what it answered, in a database that several processes may write and read at once.

    `url` names a SQLite file, or a PostgreSQL database that several machines share (postgresql+psycopg://user@host/lab; the
    password may stand in ~/.pgpass, and is never printed). With `keep` or `max_bytes` whoever records removes the oldest
    rows, twice a minute, as `prune` does; by default everything stays.

    `record` returns at once; a thread writes, at the latest after 0.2 s or 500 rows, each batch in one transaction. While
    the disk is slow, locked or full, or the server away, up to 10,000 rows wait and are tried again; beyond that the oldest
    waiting one makes room, for monitoring asks about now. `dropped` counts what was lost so, and `logging` says it once.

    A crash (kill -9) loses what was recorded in its last 0.2 s, or what waits for the disk, and never leaves half a row.
    Power loss may also undo the last transactions, and damages nothing (https://sqlite.org/wal.html, synchronous=NORMAL).
    Threads may share a log; each process opens its own, a forked one too. Delete the file only while nobody has it open.

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
        self, url: str = "sqlite:///predictions.db", keep: timedelta | None = None, max_bytes: int | None = None
    ) -> None:
        """Open the database, or make its tables.

        Raises `LogUnavailable`, `UnknownSchema`, and ValueError for a `url` that names neither kind of database and for a
        negative limit.
        """
        self.url = tables.shown(url)
        self._engine = tables.open_database(url)
        tend = None if keep is None and max_bytes is None else Retention(self._engine, keep, max_bytes).step
        self._writer = Writer(self._engine, self.url, rows.insert, tend)

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
        `time` is now, unless given as an aware datetime or in seconds since the epoch.
        Raises ValueError for a feature that has no column, and for a time that is naive or out of range.
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

        Labels are a correction. Of several remarks on one prediction the last counts. Written when this returns. Raises
        `UnknownPrediction`, ValueError if nothing is said, and `NotWritten` if the database does not take it.
        """
        if correct is None and labels is None and not retry:
            raise ValueError("say something: correct=True or False, labels=[...] or retry=True")
        wrong = False if labels is not None else correct
        said = {"correct": wrong, "labels": None if labels is None else json.dumps(list(labels)), "retry": retry}
        with self._writing():
            if not self._recorded(id):
                self.flush()  # it may wait to be written
                if not self._recorded(id):
                    raise UnknownPrediction(f"no prediction {id!r} is in {self.url}: take the id from X-Prediction-Id")
            with self._engine.begin() as connection:
                connection.execute(sql.insert(FEEDBACK).values(time=clock.time(), id=id, **said))

    def receive(self, decided: Sequence[Mapping]) -> int:
        """Take in what stations decided, each id once, in this order; how many were new. `edge` says what stations are.

        Each is what `schemas.RecordIn` lets in. A decision becomes a row of `decisions`, and what a model saw one of the
        predictions, both at once. When this returns, the disk has them: a power cut does not undo it. A second arrival
        changes nothing. Raises `NotWritten` if the database does not take them, and then it has none of them.
        """
        with self._writing():
            records.make_table(self._engine)
            with self._engine.begin() as connection:
                if connection.dialect.name == "sqlite":
                    connection.exec_driver_sql("PRAGMA synchronous=FULL")
                return records.take(connection, decided)

    def prune(self, older_than: timedelta | None = None, max_bytes: int | None = None) -> int:
        """Remove what is older, and then the oldest rows until the rest fits; the number of predictions removed.

        What users said goes with its prediction. We remove some rows at a time, so that nobody who writes waits for long; a
        SQLite file that an older version made is written anew once, and writers wait that long, their rows in memory.

        `max_bytes` is the size of the SQLite file, without the few megabytes of log beside it, and the disk gets its space
        back. In PostgreSQL it is the size of the rows without their indexes, and the server keeps the space for new rows.
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

    def columns(
        self, *names: str, since: Moment = None, until: datetime | float | None = None, shadow: bool = False
    ) -> dict[str, list]:
        """Some columns of the rows with since <= time < until, by time: of those that are written, by whichever process.

        `since` and `until` are aware datetimes or seconds since the epoch; `since=timedelta(minutes=5)` is the last five
        minutes. `names` are those of `COLUMNS` and, for what the user said last, of `SAID`; values are the database's own,
        None where there is none. `shadow=True` gives what candidates in shadow said, instead of the answers.
        Raises ValueError for a naive datetime, and `LogUnavailable` while the server cannot be reached.
        """
        with self._reading() as connection:
            found = connection.execute(rows.query(names, since, until).where(PREDICTIONS.c.shadow.is_(shadow))).all()
        return dict(zip(names, map(list, zip(*found, strict=True)) if found else [[] for _ in names], strict=True))

    def select(self, query: sql.Select) -> list[sql.Row]:
        """The rows that a query of `tables` finds. Raises `LogUnavailable`."""
        with self._reading() as connection:
            return connection.execute(query).all()

    def frame(
        self, since: Moment = None, until: datetime | float | None = None, shadow: bool = False
    ) -> "pd.DataFrame":
        """The rows with since <= time < until, by time, as `columns` chooses them.

        Columns: those of `COLUMNS` and `SAID`, with `time` as datetime64 in UTC, `detections` as lists of `Detection` and
        `labels` as lists of strings. Raises what `columns` raises.
        """
        import pandas as pd

        kinds = {name: kind for name, kind in {**COLUMNS, **SAID}.items() if name != "shadow"}
        frame = pd.DataFrame(self.columns(*kinds, since=since, until=until, shadow=shadow), dtype=object)
        frame = frame.astype({name: DTYPES[kind] for name, kind in kinds.items()})
        microseconds = (frame["time"] * 1e6).round().astype("int64")
        frame["time"] = pd.to_datetime(microseconds, unit="us", utc=True).dt.as_unit("us")
        frame["detections"] = frame["detections"].map(from_json, na_action="ignore")
        frame["labels"] = frame["labels"].map(json.loads, na_action="ignore")
        return frame

    def decisions(self, since: Moment = None, until: datetime | float | None = None) -> "pd.DataFrame":
        """What stations decided with since <= time < until, by time: a row for each product.

        Columns: those of `records.KEPT`. `id` is that of the prediction, if a model saw the product; `latency` in
        seconds, from the picture to the decision.
        Raises what `columns` raises.
        """
        import pandas as pd

        table, found = records.DECISIONS.c, []
        query = sql.select(*(table[name] for name in records.KEPT)).order_by(table.time)
        query = query if since is None else query.where(table.time >= rows.seconds(since))
        query = query if until is None else query.where(table.time < rows.seconds(until))
        with self._reading() as connection:
            if records.exists(self._engine):
                found = connection.execute(query).all()
        frame = pd.DataFrame(found, columns=[*records.KEPT]).astype(dict.fromkeys(records.NUMBERS, float))
        frame["time"] = pd.to_datetime((frame["time"] * 1e6).round().astype("int64"), unit="us", utc=True)
        return frame

    def pairs(self, since: Moment = None, until: datetime | float | None = None) -> "pd.DataFrame":
        """Each picture that a candidate saw in shadow: what it said beside the answer, and how far the two agree.

        Columns: `time`, `id`, `key`, `version`, `candidate`, `latency`, `candidate_latency`, `detections`,
        `candidate_detections`, `candidate_error`, and `matched`, `relabelled`, `missed`, `extra` and `agreement` as
        `agreement.compare` counts them, with the answer as the reference; these are missing where the candidate failed.
        `since` and `until` are about the answers; what the candidate said more than an hour after `until` is left out.
        """
        import pandas as pd

        later = None if until is None else rows.seconds(until) + 3600  # a candidate may be slow
        answers, others = self.frame(since, until), self.frame(since, later, shadow=True)
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

    def export(self, path: Path | str, since: Moment = None, until: datetime | float | None = None) -> int:
        """Write the rows with since <= time < until into a Parquet file, by time; the number of rows.

        Columns: those of `COLUMNS` and `SAID`, answers and candidates in shadow alike, told apart by `shadow`. `time` is a
        timestamp in UTC, `detections` a list of structs of label, confidence and box, and `labels` a list of strings. All
        of it is of one moment, and goes through memory 10,000 rows at a time. The file appears whole or not at all.
        Raises what `columns` raises.
        """
        from labsupport import parquet

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
            raise LogUnavailable(f"{self.url} cannot be read: {tables.reason(error)}") from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise NotWritten(f"{self.url} cannot be written: {tables.reason(error)}") from error
