"""Serves `/dashboard/data`. Caches each result for 20 times as long as it took to compute.

Computing a result takes one core. It reads a limited number of rows of the log. Requests that arrive during a
computation get the cached result.
"""

import json
import math
import threading
import time as clock
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from labsupport.log import Moment, seconds
from labsupport.monitoring.alarms import Alarms, AlertRule, ColumnSource, spoken
from labsupport.monitoring.default_rules import DEFAULT_RULES
from labsupport.monitoring.notebook_dashboard import change
from labsupport.monitoring.timeline import COLUMNS, Series, Timeline, reach, read, timeline

if TYPE_CHECKING:
    from labsupport.rollout import Router

MINUTES = (15, 60, 360, 1_440)  # how far back the page can look
ROWS = 50_000  # of the log in one look, about: half a second's work
CHANGES = 1_000  # of who answers, of each model, that are looked through: a few milliseconds' work
SHARE = 20  # a look is kept for so many times what it took
FIRST = 5.0  # seconds: how much is read to see how much there is
NO_LOG = (
    "This server keeps no log of its predictions, so there is nothing to show: start it with labsupport serve, or give "
    'create_app(log=PredictionLog("sqlite:///predictions.db")).'
)


class Live:
    """The dashboard's data for one app: the versions that answer, the measures from the log, and the `DEFAULT_RULES`
    that fire.

    Threads may share it. Workers that share a log return the same, because alarms are replayed from the log
    (`timeline`).

    >>> json.loads(Live(None, {}).text())["message"].split(":")[0]
    'This server keeps no log of its predictions, so there is nothing to show'
    """

    def __init__(self, log: ColumnSource | None, routers: Mapping[str, "Router"]) -> None:
        self.log, self.routers = log, routers
        self._kept: dict[int, tuple[bytes, float]] = {}  # minutes -> what was said, and until when it is good
        self._lock = threading.Lock()

    def text(self, minutes: int = 15) -> bytes:
        """Return the data as JSON, at most a second old or 20 times its computing time. Raises what `log.columns` raises."""
        kept, until = self._kept.get(minutes, (b"", -math.inf))
        if clock.monotonic() < until or not self._lock.acquire(blocking=not kept):
            return kept
        try:
            kept, until = self._kept.get(minutes, (b"", -math.inf))
            if (started := clock.monotonic()) >= until:  # nobody looked while we waited
                kept = json.dumps(self.look(minutes), allow_nan=False).encode()
                now = clock.monotonic()
                self._kept[minutes] = kept, now + max(1.0, SHARE * (now - started))
            return kept
        finally:
            self._lock.release()

    def look(self, minutes: int, until: Moment = None) -> dict[str, Any]:
        """Return the same as a dictionary, computed now. `until` as `rows.seconds` takes it, by default now."""
        until = clock.time() if until is None else seconds(until, "until")
        since = until - 60 * minutes
        data = {"now": until, "since": since, "minutes": minutes, "versions": [*self._versions()], "message": None}
        if self.log is None:
            return {**data, "message": NO_LOG, **{key: [] for key in ("rows", "alarms", "spans", "rollouts")}}
        rows, complete = bounded(self.log, since - reach(DEFAULT_RULES), until)
        message = None
        if complete > since:
            shown = until - complete
            words = spoken(60 * round(shown / 60) if shown > 90 else round(shown))
            message = f"So many requests came that only the last {words} are shown: Prometheus is made for more."
        period = timeline(rows, max(since, complete), until)
        if not period.count:
            message = f"Nothing was asked in the last {spoken(60.0 * minutes)}: send a picture, and it is seen here."
        return {
            **data,
            "message": message,
            "last": period.last,
            "count": period.count,
            "figures": {name: _figure(measured.value) for name, measured in period.now.items()},
            "edges": [_number(edge, 10) for edge in period.edges],
            "rows": [*_rows(period)],
            "alarms": [_alarm(period.alarms, rule) for rule in period.alarms.rules],
            "spans": [span._asdict() for span in period.spans],
            "rollouts": sorted(self._changes(since, until), key=lambda change: change["time"]),
        }

    def _versions(self) -> Iterable[dict[str, Any]]:
        for model, router in self.routers.items():
            state = router.state
            on_trial = {"candidate": state.candidate, "mode": state.mode, "share": state.share}
            yield {"model": model, "version": state.stable, **on_trial}

    def _changes(self, since: float, until: float) -> Iterable[dict[str, Any]]:
        for model, router in self.routers.items():
            for state in router.history(CHANGES):
                if since <= state.time <= until:
                    yield {"time": state.time, "model": model, "text": change(state), "reason": state.reason}


def bounded(log: ColumnSource, since: float, until: float, limit: int = ROWS) -> tuple[dict[str, np.ndarray], float]:
    """Return the newest rows in since <= time < until, about `limit` at most, and the time from which on they are complete.

    Reads backwards, in steps that double while there are few rows. Raises what `log.columns` raises.
    """
    parts, count, end, step = [], 0, until, FIRST
    while end > since and count < limit:
        start = max(since, end - step)
        parts.append(read(log, start, end))
        more, end = len(parts[-1]["time"]), start
        count += more
        step = max(1.0, min(2 * step, step * (limit - count) / max(more, 1)))
    return {name: np.concatenate([part[name] for part in reversed(parts)]) for name in COLUMNS}, end


def _rows(seen: Timeline) -> Iterable[dict[str, Any]]:
    for group, panels in seen.rows.items():
        charts = [{"title": panel.title, "series": [_line(one, seen) for one in series]} for panel, series in panels]
        yield {"name": group, "panels": charts}


def _line(series: Series, seen: Timeline) -> dict[str, Any]:
    measure, now = series.measure, seen.now[series.measure.name]
    return {
        **{"measure": measure.name, "name": series.name, "about": measure.about, "unit": measure.unit},
        **{"value": _figure(now.value), "limits": [*series.limits], "alarms": [rule.name for rule in series.rules]},
        "below": [rule.above is None for rule in series.rules],
        "points": [_number(value) for value in series.points],
        "judged": [_number(value) for value in series.judged],
    }


def _alarm(alarms: Alarms, rule: AlertRule) -> dict[str, Any]:
    status, text = alarms.status[rule.name], rule.measure.text
    value = "not known" if status.reading.value is None else text(status.reading.value)
    over = f"over the last {spoken(rule.window)}, limit {text(rule.limit)}"
    sentence = f"{rule.metric} is {value} {over}: {rule.measure.about}"
    return {
        **{"name": rule.name, "severity": rule.severity, "state": status.state, "since": _figure(status.since)},
        **{"metric": rule.metric, "value": _figure(status.reading.value), "text": sentence, "cure": rule.cure},
    }


def _figure(value: float | None) -> float | None:
    return None if value is None else _number(value, 12)


def _number(value: float, digits: int = 6) -> float | None:
    """Return a rounded number, or None for NaN, which JSON does not have.

    >>> _number(0.123456789), _number(math.nan)
    (0.123457, None)
    """
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None
