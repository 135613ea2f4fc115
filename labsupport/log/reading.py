"""Read the log of predictions: columns, frames, pairs of answers, and a Parquet file of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sql
from sqlalchemy.exc import DBAPIError

from labsupport.detection import agreement
from labsupport.log import rows, station_records, tables
from labsupport.log.rows import Moment
from labsupport.log.tables import COLUMNS, DECISIONS, PREDICTIONS, SAID, LogUnavailable
from labsupport.log.writer import Trouble

if TYPE_CHECKING:
    import pandas as pd

    from labsupport.log.rows import Query


class LogReader:
    """Read the tables of `tables`. `PredictionLog` adds how to write them."""

    def __init__(self, engine: sql.Engine, name: str) -> None:
        """Read the database of `engine`. `name` names it in the messages of `logging`."""
        self._engine, self._unread = engine, Trouble(name)

    def columns(
        self, *names: str, since: Moment = None, until: Moment = None, shadow: bool = False
    ) -> dict[str, list[Any]]:
        """Return columns of the rows with since <= time < until, by time. The rows may be from any process.

        `since` and `until` are as for `rows.seconds`: a datetime with a time zone, its text in ISO 8601, or seconds since
        the epoch. `since=timedelta(minutes=5)` means the last five minutes. `names` are columns of `COLUMNS`, and of `SAID`
        for the user's last remark. Values have the database's types. `shadow=True` returns candidates' answers.
        Raises ValueError for an invalid time or name, and `LogUnavailable` if the database cannot be read.
        """
        with self._reading() as connection:
            table = connection.execute(rows.query(names, since, until).where(PREDICTIONS.c.shadow.is_(shadow))).all()
        return dict(zip(names, map(list, zip(*table, strict=True)) if table else [[] for _ in names], strict=True))

    def select(self, query: "Query") -> "Sequence[sql.Row[*tuple[Any, ...]]]":
        """Return the rows of a query on the tables of `tables`. Raises `LogUnavailable`."""
        with self._reading() as connection:
            return connection.execute(query).all()

    def oldest(self) -> float | None:
        """Return the time of the oldest row, in seconds since the epoch; None if there is none."""
        with self._reading() as connection:
            oldest: float | None = connection.execute(sql.select(sql.func.min(PREDICTIONS.c.time))).scalar_one()
        return oldest

    def frame(self, since: Moment = None, until: Moment = None, shadow: bool = False) -> "pd.DataFrame":
        """Return the rows with since <= time < until as a frame, by time. Arguments are as for `columns`.

        Columns: those of `COLUMNS` and `SAID`, with `time` as datetime64 in UTC, `detections` as lists of `Detection` and
        `labels` as lists of strings. Raises the errors of `columns`.
        """
        kinds = {name: kind for name, kind in {**COLUMNS, **SAID}.items() if name != "shadow"}
        return rows.to_frame(self.columns(*kinds, since=since, until=until, shadow=shadow), kinds)

    def decisions(self, since: Moment = None, until: Moment = None) -> "pd.DataFrame":
        """Return the verdicts of stations with since <= time < until, by time, with a row for each product.

        Columns: those of `tables.DECIDED`. `id` is also the id of the prediction, if a model saw the product. `latency` is
        the time from the picture to the decision, in seconds.
        Raises the errors of `columns`.
        """
        with self._reading() as connection:
            return station_records.read(connection, since, until)

    def is_same(self, other: "LogReader") -> bool:
        """Return whether the other log is in the same database."""
        return self._engine.url == other._engine.url

    def elsewhere(self, since: Moment = None, until: Moment = None) -> set[str]:
        """Return the ids of predictions that a station reported and that its device made. `since` and `until` are as for
        `columns`. Raises the errors of `columns`.
        """
        chosen = rows.within(sql.select(DECISIONS.c.id), DECISIONS.c.time, since, until)
        with self._reading() as connection:
            return set(connection.scalars(chosen.where(station_records.by_device())))

    def pairs(self, since: Moment = None, until: Moment = None) -> "pd.DataFrame":
        """Return each picture that a candidate saw in shadow, with the two answers and their agreement.

        Columns: `time`, `id`, `key`, `version`, `candidate`, `latency`, `candidate_latency`, `detections`,
        `candidate_detections`, `candidate_error`, and `matched`, `relabelled`, `missed`, `extra` and `agreement` as
        `agreement.compare` counts them, with the stable version's answer as the reference. These are missing if the
        candidate failed. `since` and `until` select the stable version's answers. Candidates may answer 1 h later.
        What a station's device answered is in no pair.
        """
        later = None if until is None else rows.seconds(until) + 3600  # a candidate may be slow
        answers = self.frame(since, until)
        answers = answers[~answers["id"].isin(self.elsewhere(since, until))]
        return agreement.paired(answers, self.frame(since, later, shadow=True))

    def export(self, path: Path | str, since: Moment = None, until: Moment = None) -> int:
        """Write the rows with since <= time < until to a Parquet file, by time. Return the number of rows.

        Columns: those of `COLUMNS` and `SAID`. The column `shadow` marks the answers of candidates in shadow. `time` is a
        timestamp in UTC, `detections` a list of structs of label, confidence and box, and `labels` a list of strings.
        This reads one snapshot of the log, 10,000 rows at a time. The file appears complete or not at all.
        Raises the errors of `columns`.
        """
        from labsupport.log import parquet

        query = rows.query((*COLUMNS, *SAID), since, until).execution_options(yield_per=parquet.ROWS)
        with self._reading() as connection:
            return parquet.write(path, {**COLUMNS, **SAID}, connection.execute(query).partitions())

    @contextmanager
    def _reading(self) -> Iterator[sql.Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except DBAPIError as error:
            self._unread.met("cannot be read: %s", tables.reason(error))
            raise LogUnavailable("the log of predictions cannot be read now: try again") from error
        self._unread.over("can be read again")
