"""Summarise the requests since a ramp or another trial began. Each look reads only the new rows of the log."""

import math
import threading
import time as clock
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import sqlalchemy as sql

from labsupport.log import DECISIONS, FEEDBACK, PREDICTIONS, PredictionLog, station_records
from labsupport.rollout.evidence import Evidence, Keys
from labsupport.rollout.gate import Outcomes
from labsupport.rollout.journal import State
from labsupport.rollout.shadow import NOT_SHOWN

if TYPE_CHECKING:
    Query = sql.Select[*tuple[Any, ...]]  # with any number of columns
    Row = sql.Row[*tuple[Any, ...]]

CHUNK = 10_000  # rows that are read in one query
AGAIN = 1_000  # rows before the first one that are read too, because several processes do not write in exact order
# row numbers that may still appear: how many at most, and for how many seconds we wait for them
GAPS, PATIENCE = 10_000, 600.0
SLOWEST = 1e9  # seconds: a longer latency counts as this one
FASTEST, STEP = 1e-4, math.log(1.01)  # histogram of latencies: lowest value in seconds, width of a bin

_row, _remark, _word = PREDICTIONS.c, FEEDBACK.c, FEEDBACK.alias().c
_last_word = sql.select(_word.correct).where(_word.id == _row.id).order_by(_word.row.desc()).limit(1)
_names = ("row", "time", "key", "version", "status", "latency", "n_detections", "shadow", "error")
# what the user said of the answer that came; the candidate in shadow gave another one
_correct = sql.case((_row.shadow.is_(False), _last_word.correlate(PREDICTIONS).scalar_subquery())).label("correct")
# a station reported it, and its device answered, not the server
_elsewhere = sql.select(DECISIONS.c.id).where(DECISIONS.c.id == _row.id, station_records.by_device())
_fields: list[sql.ColumnElement[Any]] = [
    *(_row[name] for name in _names),
    _correct,
    _elsewhere.exists().label("elsewhere"),
]
_answer = (_row.id == _remark.id) & _row.shadow.is_(False)
ROWS = sql.select(_row.row.label("number"), *_fields)
REMARKS = sql.select(_remark.row.label("number"), *_fields).select_from(FEEDBACK.outerjoin(PREDICTIONS, _answer))


def first_row(since: float) -> "Query":
    """Return the query for the number of the first row since then. With the `+ 0` SQLite uses the index of time."""
    return sql.select(sql.func.min(_row.row + 0)).where(_row.time >= since)


def outcomes_since(log: PredictionLog, since: float) -> Outcomes:
    """Return the outcomes of the requests in a `PredictionLog` since then, without errors of the client (status 4xx) and
    without what devices of stations answered. This reads all rows. A ramp checks many times, so it uses `Watch`.
    """
    names = ("id", "time", "key", "version", "status", "latency", "n_detections", "correct")
    columns = {name: np.array(column, object) for name, column in log.columns(*names, since=since).items()}
    status, objects = columns["status"].astype(float), columns["n_detections"].astype(float)
    failed = _flags(status >= 500, unknown=np.isnan(status))
    silent = all(correct is None for correct in columns["correct"])
    outcomes = Outcomes(
        time=columns["time"].astype(float),
        version=columns["version"].astype(str),
        failed=failed,
        latency=columns["latency"].astype(float),
        null=_flags(objects == 0, unknown=np.isnan(objects) & (failed != 1)),
        corrected=_flags(columns["correct"] == 0, unknown=np.full(len(status), silent)),
        key=columns["key"],
    )
    theirs = np.isin(columns["id"].astype(str), list(log.elsewhere(since)))
    return outcomes.where(~((status >= 400) & (status < 500)) & ~theirs)


def _flags(true: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Return an array of bool if all values are known. Otherwise return numbers, with NaN for an unknown value."""
    return np.where(unknown, np.nan, true) if unknown.any() else true.astype(bool)


class Watch:
    """Compute the figures of a ramp for `Gate.decide`. Each call of `figures` reads only the rows written since the last.

    So a check costs the same at any age of the ramp. Only the first check after a start or a restart reads all rows of the
    ramp, which takes a core some ten seconds for a million rows. The memory holds sums, a histogram of latencies and 8 MB
    for the keys. It also holds a bit for each row of the log and 16 bytes for each request of the candidate, so that late
    remarks still count.

    The e-value reads requests in the order in which they were written, with the remarks known at that time. If a user
    calls an answer wrong later, this adds to the evidence at that moment (`Evidence.went_wrong`).
    """

    def __init__(self, log: PredictionLog, stable: str, candidate: str, began: float) -> None:
        """Begin to watch a ramp. `began` is its start, in seconds since the epoch. Raises `LogUnavailable`."""
        self.began, self._log, self._stable, self._candidate = began, log, stable, candidate
        self._lock = threading.Lock()
        self._step = self._ramp = Tally(log, began, (stable, candidate))  # until the first step ends
        self._evidence, self._keys, self._counted = Evidence(), Keys(), 0

    @property
    def newest(self) -> float:
        """Return the time of the newest request in the last figures of the step, in seconds since the epoch; 0 if none."""
        return self._step.newest

    def figures(self, since: float) -> dict[str, float]:
        """Return the candidate's metrics since then, those of the stable version (`stable_...`) and the evidence.

        Metrics that are not known are left out, as in `gate.measured`. Raises `LogUnavailable`. The next call then
        continues to read, and no row is lost.
        """
        with self._lock:
            for rows, wrong in self._ramp.read():
                self._weigh(rows, wrong)
            if self._step.since != since:
                self._step = Tally(self._log, since, (self._candidate,))
            if self._step is not self._ramp:
                deque(self._step.read(), maxlen=0)
            remarks = self._ramp.said
            stable = self._ramp.counts[self._stable].figures(remarks)
            figures = {f"stable_{name}": value for name, value in stable.items()}
            figures |= self._step.counts[self._candidate].figures(remarks) | self._keys.figures()
            return figures | {"e_value": self._evidence.value, "counted": self._counted}

    def _weigh(self, rows: "Sequence[Row]", wrong: list[int]) -> None:
        """Add the first request of each key to the evidence, then mark the earlier requests in `wrong` as bad."""
        first = [row for row in rows if self._keys.first(row.key) and row.status is not None]
        candidate = [row.version == self._candidate for row in first]
        bad = [row.status >= 500 or row.correct == 0 for row in first]
        self._evidence.add(candidate, bad, [row.number for row in first])
        self._counted += len(first)
        for row in wrong:
            self._evidence.went_wrong(row)


class TrialFigures:
    """Compute the figures of a canary or of a candidate in shadow, for people who decide. Each call reads only new rows."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._trial: tuple[str, str, float] | None = None
        self._tallies: tuple[Tally, ...] = ()

    def figures(self, log: PredictionLog, state: State) -> dict[str, float]:
        """Return the metrics of the candidate and of the stable version (`stable_...`) since the last change.

        Return {} if nothing is on trial. Raises `LogUnavailable`.
        """
        if state.candidate is None:
            return {}
        with self._lock:
            if self._trial != (trial := (state.candidate, state.mode, state.time)):
                stable = Tally(log, state.time, (state.stable,))
                self._tallies = (stable, Tally(log, state.time, (state.candidate,), shadow=state.mode == "shadow"))
                self._trial = trial
            for tally in self._tallies:
                deque(tally.read(), maxlen=0)
            stable, candidate = self._tallies
            figures = candidate.counts[state.candidate].figures(candidate.said)
            others = stable.counts[state.stable].figures(stable.said)
            return figures | {f"stable_{name}": value for name, value in others.items()}


class Tally:
    """Count the requests that some versions have answered since a moment, to users or in shadow."""

    def __init__(self, log: PredictionLog, since: float, versions: tuple[str, ...], shadow: bool = False) -> None:
        self.since, self.counts, self._shadow = since, {version: Counts() for version in versions}, shadow
        self.said = False  # whether any user has called one of these answers right or wrong
        self.newest = 0.0  # the latest time of a counted row
        self._corrected: set[int] = set()  # rows whose last remark calls the answer wrong
        last, remark = (log.select(sql.select(sql.func.max(column)))[0][0] or 0 for column in (_row.row, _remark.row))
        first = log.select(first_row(since))[0][0] or last + 1  # queried after `last`, so that no row is missed
        self._rows = Cursor(log, ROWS, _row.row, max(min(first - 1, last) - AGAIN, 0))
        self._remarks = Cursor(log, REMARKS, _remark.row, max(remark - AGAIN, 0))

    def read(self) -> "Iterator[tuple[Sequence[Row], list[int]]]":
        """Count the new rows. Yield them in parts, each with the numbers of earlier rows that were called wrong.

        A row that was written much later than its neighbours is counted and not yielded, because it is out of order.
        """
        for rows, late in self._rows.chunks():
            rows = [row for row in rows if self._is_ours(row)]
            for row in rows:
                self.counts[row.version].add(row)
                self.said = self.said or row.correct is not None
                self.newest = max(self.newest, row.time)
            self._corrected.difference_update(row.row for row in rows)  # an emptied log uses the same numbers again
            self._corrected.update(row.row for row in rows if row.correct == 0)
            yield [] if late else rows, []
        for remarks, _ in self._remarks.chunks():
            counted = (row for row in remarks if self._is_ours(row) and self._rows.has_read(row.row))
            yield [], [row.row for row in counted if self._note(row)]

    def _note(self, row: "Row") -> bool:
        """Add the last remark on a row that was counted before. Return whether this remark is the first to call it wrong."""
        self.said = self.said or row.correct is not None
        before, wrong = row.row in self._corrected, bool(row.correct == 0)
        if before != wrong:
            self.counts[row.version].correct(1 if wrong else -1)
            (self._corrected.add if wrong else self._corrected.remove)(row.row)
        return wrong and not before

    def _is_ours(self, row: "Row") -> bool:
        """Return whether one of our versions answered since then. Errors of the client (status 4xx) do not count, nor do
        pictures that a candidate in shadow was not shown, nor answers of a station's device.
        """
        if row.error == NOT_SHOWN or (row.elsewhere and not row.shadow):
            return False
        answers = row.version in self.counts and bool(row.shadow) is self._shadow and row.time >= self.since
        return bool(answers and (row.status is None or not 400 <= row.status < 500))


class Counts:
    """Count the outcomes of the requests that one version answered."""

    def __init__(self) -> None:
        self._requests = 0
        # for each metric: number of requests where it is true, and where it is not known
        self._sums: Counter[str] = Counter()
        self._unknown: Counter[str] = Counter()
        self._latencies: Counter[int] = Counter()  # requests in each bin of the histogram

    def add(self, row: "Row") -> None:
        failed = None if row.status is None else row.status >= 500
        null = None if row.n_detections is None and not failed else row.n_detections == 0
        self._requests += 1
        for name, value in (("error_rate", failed), ("null_rate", null), ("correction_rate", row.correct == 0)):
            (self._sums if value is not None else self._unknown)[name] += 1 if value is None else value
        if row.latency is None or not 0 <= row.latency < math.inf:
            self._unknown["latency_p95"] += 1
        else:
            self._latencies[int(math.log(max(min(row.latency, SLOWEST) / FASTEST, 1)) / STEP)] += 1

    def correct(self, more: int) -> None:
        self._sums["correction_rate"] += more

    def figures(self, said: bool) -> dict[str, float]:
        """Return the metrics, as `gate.measured` does. `said`: whether any user has called an answer right or wrong."""
        unknown = self._unknown + Counter({} if said else {"correction_rate": self._requests})
        figures: dict[str, float] = {"requests": self._requests}
        if self._requests:
            shares = {
                name: self._sums[name] / self._requests for name in ("error_rate", "null_rate", "correction_rate")
            }
            shares["latency_p95"] = _percentile(self._latencies, 0.95)
            figures |= {name: value for name, value in shares.items() if not unknown[name]}
        return figures | {f"{name}_unknown": count for name, count in unknown.items() if count}


def _percentile(steps: Counter[int], share: float) -> float:
    """Return a percentile of latencies, each taken as the middle of its bin: right to 0.5 % from 0.1 ms on."""
    bins = np.array(sorted(steps))
    if not bins.size:
        return math.nan
    upto = np.cumsum([steps[step] for step in bins.tolist()])
    place = share * (upto[-1] - 1)
    near = [np.searchsorted(upto, rank, "right") for rank in (int(place), math.ceil(place))]
    low, high = FASTEST * np.exp(STEP * (bins[near] + 0.5))
    return float(low + (high - low) * (place % 1))


class Cursor:
    """Read the rows of a table in parts, in the order in which they were written. Return each row once.

    In SQLite row numbers grow in that order. PostgreSQL assigns numbers before rows are written, and several processes
    write at the same time. So a missing number may appear later. The cursor queries for it again for ten minutes.
    """

    def __init__(self, log: PredictionLog, query: "Query", number: sql.ColumnElement[Any], last: int) -> None:
        self._log, self._query, self._number, self._last = log, query, number, last
        self._skips = not log.url.startswith("sqlite")
        self._gaps: dict[int, float] = {}  # missing numbers, and when each was first missing

    def has_read(self, number: int) -> bool:
        return number <= self._last and number not in self._gaps

    def chunks(self) -> "Iterator[tuple[Sequence[Row], bool]]":
        """Yield (rows, late) for the rows written since the last call. `late`: they fill gaps. Raises `LogUnavailable`."""
        if self._gaps:
            rows = self._log.select(self._query.where(self._number.in_(self._gaps)))
            for row in rows:
                del self._gaps[row.number]
            yield rows, True
        rows = self._next()
        if not rows:  # a new file may have taken the place of this one: its numbers begin at 1
            self._last = min(self._last, self._log.select(sql.select(sql.func.max(self._number)))[0][0] or 0)
        while rows:
            yield rows, False
            rows = self._next() if len(rows) == CHUNK else []

    def _next(self) -> "Sequence[Row]":
        rows = self._log.select(self._query.where(self._number > self._last).order_by(self._number).limit(CHUNK))
        if self._skips:
            now, numbers = clock.monotonic(), [self._last, *(row.number for row in rows)]
            waiting = {number: since for number, since in self._gaps.items() if since > now - PATIENCE}
            for before, after in pairwise(numbers):
                waiting |= dict.fromkeys(range(max(before + 1, after - GAPS), after), now)
            self._gaps = dict(list(waiting.items())[-GAPS:])
        self._last = rows[-1].number if rows else self._last
        return rows
