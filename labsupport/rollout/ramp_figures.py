"""What became of the requests since a ramp began: read from the log once, and carried forward from look to look."""

import math
import threading
import time as clock
from collections import Counter, deque
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import sqlalchemy as sql

from labsupport.log import FEEDBACK, PREDICTIONS
from labsupport.rollout.evidence import Evidence, Keys
from labsupport.rollout.gate import Outcomes

CHUNK = 10_000  # rows that are read at once
AGAIN = 1_000  # rows before the first one that are read, too: several processes write, and not quite in turn
GAPS, PATIENCE = (
    10_000,
    600.0,
)  # numbers of rows that may still appear: at most, and for how many seconds we expect them
SLOWEST = 1e9  # seconds: who says that an answer took longer is taken at that
FASTEST, STEP = 1e-4, math.log(1.01)  # of the histogram of latencies: where it begins, and the width of a step

_row, _remark, _word = PREDICTIONS.c, FEEDBACK.c, FEEDBACK.alias().c
_last_word = sql.select(_word.correct).where(_word.id == _row.id).order_by(_word.row.desc()).limit(1)
_fields = [_row[name] for name in ("row", "time", "key", "version", "status", "latency", "n_detections", "shadow")]
_fields.append(_last_word.correlate(PREDICTIONS).scalar_subquery().label("correct"))
_answer = (_row.id == _remark.id) & _row.shadow.is_(False)
ROWS = sql.select(_row.row.label("number"), *_fields)
REMARKS = sql.select(_remark.row.label("number"), *_fields).select_from(FEEDBACK.outerjoin(PREDICTIONS, _answer))


def first_row(since: float) -> sql.Select:
    """Return the query for the number of the first row since then.

    The `+ 0` makes SQLite find the rows by the index of time; it would walk through all earlier rows to the first one.
    """
    return sql.select(sql.func.min(_row.row + 0)).where(_row.time >= since)


def outcomes_since(log, since: float) -> Outcomes:
    """Return what became of the requests since then, from a `PredictionLog`, without those that were the client's fault.

    It reads all of them. A ramp, which looks again and again, uses `Watch`.
    """
    names = ("time", "key", "version", "status", "latency", "n_detections", "correct")
    columns = {name: np.array(column, object) for name, column in log.columns(*names, since=since).items()}
    status, found = columns["status"].astype(float), columns["n_detections"].astype(float)
    failed = _flags(status >= 500, unknown=np.isnan(status))
    silent = all(correct is None for correct in columns["correct"])
    outcomes = Outcomes(
        time=columns["time"].astype(float),
        version=columns["version"].astype(str),
        failed=failed,
        latency=columns["latency"].astype(float),
        null=_flags(found == 0, unknown=np.isnan(found) & (failed != 1)),
        corrected=_flags(columns["correct"] == 0, unknown=np.full(len(status), silent)),
        key=columns["key"],
    )
    return outcomes.where(~((status >= 400) & (status < 500)))


def _flags(true: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Bool, if all are known; else numbers, with NaN where it is not known."""
    return np.where(unknown, np.nan, true) if unknown.any() else true.astype(bool)


class Watch:
    """The figures of a ramp, for `Gate.decide`. Each call of `figures` reads only what was written since the one before.

    So a look costs the same whatever the age of the ramp. Only the first one, after a start or a restart, reads all rows of
    the ramp, which takes a core some ten seconds for a million. In memory are sums, a histogram of latencies, 8 MB for the
    keys, and, so that a remark that comes late still counts, a bit for each row of the log and 16 bytes for each request of
    the candidate.

    The e-value takes requests in the order in which they were written, each with what was known of it then. A user who
    calls an answer wrong later adds to the evidence at that moment (`Evidence.went_wrong`).
    """

    def __init__(self, log, stable: str, candidate: str, began: float) -> None:
        """`began` is when the ramp began, in seconds since the epoch. Raises `LogUnavailable`."""
        self.began, self._log, self._stable, self._candidate = began, log, stable, candidate
        self._lock = threading.Lock()
        self._step = self._ramp = Tally(log, began, (stable, candidate))  # until the first step ends
        self._evidence, self._keys, self._counted = Evidence(), Keys(), 0

    def figures(self, since: float) -> dict[str, float]:
        """Return the candidate's metrics since then, those of the stable version (`stable_...`) and the evidence.

        Metrics that are not known are left out, as by `gate.measured`. Raises `LogUnavailable`; the next call reads on
        then, and nothing is lost.
        """
        with self._lock:
            for rows, wrong in self._ramp.read():
                self._weigh(rows, wrong)
            if self._step.since != since:
                self._step = Tally(self._log, since, (self._candidate,))
            if self._step is not self._ramp:
                deque(self._step.read(), maxlen=0)
            said = self._ramp.said
            stable = self._ramp.counts[self._stable].figures(said)
            figures = {f"stable_{name}": value for name, value in stable.items()}
            figures |= self._step.counts[self._candidate].figures(said) | self._keys.figures()
            return figures | {"e_value": self._evidence.value, "counted": self._counted}

    def _weigh(self, rows: list, wrong: list[int]) -> None:
        """Add to the evidence the first request of each key, and which earlier requests turned out to be wrong."""
        first = [row for row in rows if self._keys.first(row.key) and row.status is not None]
        candidate = [row.version == self._candidate for row in first]
        bad = [row.status >= 500 or row.correct == 0 for row in first]
        self._evidence.add(candidate, bad, [row.number for row in first])
        self._counted += len(first)
        for row in wrong:
            self._evidence.went_wrong(row)


class Tally:
    """The requests that some versions have answered since a moment, counted as they are written."""

    def __init__(self, log, since: float, versions: tuple[str, ...]) -> None:
        self.since, self.counts = since, {version: Counts() for version in versions}
        self.said = False  # whether any user has said of any of these answers whether it was right
        self._corrected: set[int] = set()  # rows whose last remark says so
        last, remark = (log.select(sql.select(sql.func.max(column)))[0][0] or 0 for column in (_row.row, _remark.row))
        first = log.select(first_row(since))[0][0] or last + 1  # asked after `last`: what comes between is read
        self._rows = Cursor(log, ROWS, _row.row, max(min(first - 1, last) - AGAIN, 0))
        self._remarks = Cursor(log, REMARKS, _remark.row, max(remark - AGAIN, 0))

    def read(self) -> Iterator[tuple[list, list[int]]]:
        """Count what is new. Yield, part by part, the new rows, and the numbers of earlier ones that were called wrong.

        A row that was written much later than its neighbours is counted, and not yielded: it has no place in the order.
        """
        for rows, late in self._rows.chunks():
            rows = [row for row in rows if self._is_ours(row)]
            for row in rows:
                self.counts[row.version].add(row)
                self.said = self.said or row.correct is not None
            self._corrected.difference_update(row.row for row in rows)  # an emptied log gives numbers again
            self._corrected.update(row.row for row in rows if row.correct == 0)
            yield [] if late else rows, []
        for remarks, _ in self._remarks.chunks():
            yield (
                [],
                [row.row for row in remarks if self._is_ours(row) and self._rows.has_read(row.row) and self._note(row)],
            )

    def _note(self, row) -> bool:
        """Take in the last remark on a row that was counted before; return whether it is called wrong only now."""
        self.said = self.said or row.correct is not None
        before, wrong = row.row in self._corrected, row.correct == 0
        if before != wrong:
            self.counts[row.version].correct(1 if wrong else -1)
            (self._corrected.add if wrong else self._corrected.remove)(row.row)
        return wrong and not before

    def _is_ours(self, row) -> bool:
        """Whether one of our versions answered since then; what was the client's fault is not counted."""
        ours = row.version in self.counts and not row.shadow and row.time >= self.since
        return ours and (row.status is None or not 400 <= row.status < 500)


class Counts:
    """How often each thing happened in the requests that one version answered."""

    def __init__(self) -> None:
        self._requests = 0
        self._sums, self._unknown = (
            Counter(),
            Counter(),
        )  # of each metric: how often it was so, how often we do not know
        self._latencies: Counter[int] = Counter()  # by their step

    def add(self, row) -> None:
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
        """Return the metrics, as `gate.measured` does. `said`: whether users say anything at all."""
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
    """The percentile of latencies, each taken as the middle of its step: right to 0.5 % from 0.1 ms on."""
    at = np.array(sorted(steps))
    if not at.size:
        return math.nan
    upto = np.cumsum([steps[step] for step in at.tolist()])
    place = share * (upto[-1] - 1)
    low, high = (
        FASTEST * np.exp(STEP * (at[np.searchsorted(upto, rank, "right")] + 0.5))
        for rank in (int(place), math.ceil(place))
    )
    return float(low + (high - low) * (place % 1))


class Cursor:
    """Reads the rows of a table in the order in which they were written, each once, in parts.

    In SQLite numbers grow in that order. PostgreSQL gives numbers before rows are written, and several processes write at
    once: a number that is left out may appear later, so it is asked for again for ten minutes.
    """

    def __init__(self, log, query: sql.Select, number: sql.ColumnElement, last: int) -> None:
        self._log, self._query, self._number, self._last = log, query, number, last
        self._skips = not log.url.startswith("sqlite")
        self._gaps: dict[int, float] = {}  # numbers that were left out, and when we saw that

    def has_read(self, number: int) -> bool:
        return number <= self._last and number not in self._gaps

    def chunks(self) -> Iterator[tuple[list, bool]]:
        """Yield what was written since the last call, and whether it comes late. Raises `LogUnavailable`."""
        if self._gaps:
            rows = self._log.select(self._query.where(self._number.in_(self._gaps)))
            for row in rows:
                del self._gaps[row.number]
            yield rows, True
        rows = self._next()
        if not rows:  # perhaps the last ones were removed: SQLite gives their numbers again
            self._last = min(self._last, self._log.select(sql.select(sql.func.max(self._number)))[0][0] or 0)
        while rows:
            yield rows, False
            rows = self._next() if len(rows) == CHUNK else []

    def _next(self) -> list:
        rows = self._log.select(self._query.where(self._number > self._last).order_by(self._number).limit(CHUNK))
        if self._skips:
            now, numbers = clock.monotonic(), [self._last, *(row.number for row in rows)]
            waiting = {number: seen for number, seen in self._gaps.items() if seen > now - PATIENCE}
            for before, after in pairwise(numbers):
                waiting |= dict.fromkeys(range(max(before + 1, after - GAPS), after), now)
            self._gaps = dict(list(waiting.items())[-GAPS:])
        self._last = rows[-1].number if rows else self._last
        return rows
