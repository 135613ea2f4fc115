"""Computes each measure over time, its limits, and when alarms fired.

`notebook_dashboard` plots it; `dashboard_data` sends it as JSON.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from labsupport.log import Moment, seconds
from labsupport.monitoring.alarms import Alarms, AlertRule, ColumnSource, Event
from labsupport.monitoring.default_rules import DEFAULT_RULES
from labsupport.monitoring.measures import Drift, Measure, Reading, as_numbers
from labsupport.monitoring.panels import LOOKED_AT, NAMES, PANELS, Panel

BUCKETS, LOOKS = 75, 400  # at most: more than that nobody sees on a small chart, or wants to wait for
STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1_200, 1_800, 3_600, 7_200, 10_800, 21_600, 43_200, 86_400)  # seconds
LOOK = 15.0  # seconds between two looks at the rules, as in deploy/prometheus.yml
NOW = 60.0  # seconds: what the figures at the top are about
COLUMNS = tuple(dict.fromkeys(["time", *(name for measure in LOOKED_AT for name in measure.columns)]))
Rows = Mapping[str, np.ndarray]


class Span(NamedTuple):
    """The time in which an alarm fired: from `since` to `until`, or to the end of the timeline."""

    alarm: str
    metric: str
    since: float
    until: float


@dataclass(frozen=True)
class Series:
    """One measure over time.

    `points[i]` is its value in the interval between two edges. `judged[i]` is its value over the window of its rule up
    to the later edge, which the alarm compares with the limit; it is NaN if the rule needs more rows. Without a rule
    both are the same. Drift has p-values, so it has no points, and -log10(p) is judged.
    """

    measure: Measure
    rules: tuple[AlertRule, ...]
    points: np.ndarray
    judged: np.ndarray

    @property
    def name(self) -> str:
        return NAMES.get(self.measure.name, self.measure.about)

    @property
    def limits(self) -> tuple[float, ...]:
        limits = [rule.limit for rule in self.rules]
        return tuple(surprise(limit) for limit in limits) if isinstance(self.measure, Drift) else tuple(limits)

    @property
    def unit(self) -> str:
        return "-log10(p)" if isinstance(self.measure, Drift) else self.measure.unit

    def text(self, value: float) -> str:
        return f"{value:.3g}" if isinstance(self.measure, Drift) else self.measure.text(value)


@dataclass(frozen=True)
class Timeline:
    """The log of a period, divided into intervals.

    It has the `edges` of the intervals (N + 1, seconds since the epoch), the panels of each dashboard row with their
    series, readings of the last minute by measure, and the alarms with the spans in which they fired.
    """

    edges: np.ndarray
    rows: dict[str, list[tuple[Panel, list[Series]]]]
    now: dict[str, Reading]
    alarms: Alarms
    spans: list[Span]
    count: int  # rows of the log between the first edge and the last
    last: float | None  # when the last of them was written


def read(log: ColumnSource, since: float, until: float) -> dict[str, np.ndarray]:
    """Return the columns that the measures need, as arrays of floats. Raises what `log.columns` raises."""
    columns = log.columns(*COLUMNS, since=since, until=until)
    return {name: as_numbers(column) for name, column in columns.items()}


def reach(rules: Iterable[AlertRule]) -> float:
    """Return how many seconds before the first evaluation the rules need rows."""
    return max((rule.window for rule in rules), default=0.0)


def timeline(
    rows: Rows, since: Moment, until: Moment, rules: Iterable[AlertRule] = DEFAULT_RULES, alarms: Alarms | None = None
) -> Timeline:
    """Return the timeline of since <= time < until, moments as `rows.seconds` takes them.

    `rows` come from `read`, starting `reach(rules)` seconds before `since`. `alarms` are those that were evaluated
    during this period. Without them we replay the `rules`, evaluating them every 15 seconds of the window. So everybody
    who reads the same log sees the same alarms, independent of when they started to watch. In a replay, feedback counts
    from the time of the answer, and for a window beyond 100 minutes evaluations are rarer.

    >>> rows = dict.fromkeys(COLUMNS, np.full(100, np.nan)) | {"time": np.arange(100.0), "status": np.full(100, 200.0)}
    >>> rows["brightness"] = np.where(rows["time"] < 50, 0.5, 0.1)
    >>> dark = AlertRule("Dark", "brightness_mean", below=0.2, window=20, hold=10)
    >>> seen = timeline(rows, 0, 100, [dark])
    >>> [(span.alarm, span.since) for span in seen.spans], seen.now["brightness_mean"]
    ([('Dark', 90.0)], Reading(value=0.16666666666666666, rows=60, note=''))
    """
    since, until = window(since, until)
    alarms = replayed(rules, rows, since, until) if alarms is None else alarms
    edges = bucket_edges(since, until)
    first, last = np.searchsorted(rows["time"], [since, until])
    lately = _between(rows, until - min(NOW, until - since), until)
    plain = {measure.name: measure for measure in LOOKED_AT if not isinstance(measure, Drift)}
    return Timeline(
        edges,
        {group: drawn for group, panels in PANELS.items() if (drawn := _panels(panels, rows, edges, alarms))},
        {name: measure.read(lately, min(NOW, until - since)) for name, measure in plain.items()},
        alarms,
        fired(alarms.history, alarms.rules, since, until),
        int(last - first),
        float(rows["time"][last - 1]) if last > first else None,
    )


def window(since: Moment, until: Moment) -> tuple[float, float]:
    """Return both ends in seconds since the epoch. Raises ValueError for an invalid moment, and for an empty window."""
    since, until = seconds(since, "since"), seconds(until, "until")
    if not since < until:
        raise ValueError(f"since={since} is not before until={until}: nothing lies between them")
    return since, until


def bucket_edges(since: float, until: float) -> np.ndarray:
    """Return the edges of at most 75 intervals of a round length, at round times.

    The first and the last interval are the remainders; they are not shorter than half of the others.

    >>> bucket_edges(7, 100).tolist()[:3], bucket_edges(0, 900).size
    ([7.0, 8.0, 10.0], 61)
    """
    days = 86_400 * math.ceil((until - since) / BUCKETS / 86_400)
    step = next((step for step in STEPS if (until - since) / step <= BUCKETS), days)
    inner = step * np.arange(math.floor(since / step) + 1, math.ceil(until / step))
    inner = inner[(inner - since >= step / 2) & (until - inner >= step / 2)]
    return np.concatenate([[since], inner, [until]]).astype(float)


def replayed(rules: Iterable[AlertRule], rows: Rows, since: float, until: float) -> Alarms:
    """Return alarms that were evaluated every 15 seconds, at round times, from some time before the window on."""
    alarms = Alarms(rules, _Rows(rows))
    every = LOOK * math.ceil((until - since) / LOOKS / LOOK)
    start = since - reach(alarms.rules)
    if len(rows["time"]):
        start = max(start, float(rows["time"][0]))
    for look in every * np.arange(math.ceil(start / every), math.floor(until / every) + 1):
        alarms.evaluate(float(look))
    return alarms


def fired(history: Sequence[Event], rules: Sequence[AlertRule], since: float, until: float) -> list[Span]:
    """Return the spans in which alarms fired, as far as they lie in the window."""
    metrics, began, spans = {rule.name: rule.metric for rule in rules}, {}, []
    for event in history:
        if event.event == "fired":
            began[event.alarm] = event.time
        elif (start := began.pop(event.alarm, None)) is not None:
            spans.append(Span(event.alarm, metrics[event.alarm], start, event.time))
    spans += [Span(alarm, metrics[alarm], start, until) for alarm, start in began.items()]
    inside = [span for span in spans if span.until > since and span.since < until]
    return [span._replace(since=max(span.since, since), until=min(span.until, until)) for span in inside]


def surprise(p_value: float) -> float:
    """Return -log10(p): 5 for one in 100,000; at most 300.

    >>> surprise(1e-5), surprise(0)
    (5.0, 300.0)
    """
    return -math.log10(max(p_value, 1e-300))


class _Rows:
    """Rows in memory, with the log's method `columns`."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def columns(self, *names: str, since: float, until: float) -> dict[str, np.ndarray]:
        return {name: values for name, values in _between(self.rows, since, until).items() if name in names}


def _between(rows: Rows, since: float, until: float) -> dict[str, np.ndarray]:
    first, last = np.searchsorted(rows["time"], [since, until])
    return {name: values[first:last] for name, values in rows.items()}


def _panels(panels: Sequence[Panel], rows: Rows, edges: np.ndarray, alarms: Alarms) -> list[tuple[Panel, list[Series]]]:
    """Return each panel with its series. Without a reference the drift panel is left out."""
    measured = [panel for panel in panels if alarms.reference or not isinstance(panel.measures[0], Drift)]
    return [(panel, [_series(measure, rows, edges, alarms) for measure in panel.measures]) for panel in measured]


def _series(measure: Measure, rows: Rows, edges: np.ndarray, alarms: Alarms) -> Series:
    rules = tuple(rule for rule in alarms.rules if rule.metric == measure.name)
    if isinstance(measure, Drift):
        measure = replace(measure, reference=alarms.reference)
        return Series(measure, rules, np.full(len(edges) - 1, np.nan), _drift(measure, rules, rows, edges))
    values = measure.values({name: rows[name] for name in measure.columns})
    counts = np.isfinite(values)
    times, values = rows["time"][counts], values[counts]

    def over(starts: np.ndarray) -> list[Reading]:
        parts = [values[first:last] for first, last in np.searchsorted(times, [starts, edges[1:]]).T]
        widths = edges[1:] - starts
        return [_summed_up(measure, part, width) for part, width in zip(parts, widths, strict=True)]

    points = np.array([reading.value for reading in over(edges[:-1])], float)
    if not rules:
        return Series(measure, rules, points, points)
    starts = np.minimum(edges[:-1], edges[1:] - rules[0].window)
    return Series(measure, rules, points, np.array([rules[0].judged(reading) for reading in over(starts)], float))


def _summed_up(measure: Measure, values: np.ndarray, width: float) -> Reading:
    return Reading(measure.summary(values, width) if len(values) else measure.nothing, len(values))


def _drift(measure: Drift, rules: Sequence[AlertRule], rows: Rows, edges: np.ndarray) -> np.ndarray:
    """Return the drift at each edge. It is computed only as often as the alarm would, because it is slow."""
    window, surprises, last = rules[0].window if rules else 300.0, [], -math.inf
    for end in edges[1:]:
        if end - last >= measure.pace * window:
            reading, last = measure.read(_between(rows, end - window, end), window), end
            value = rules[0].judged(reading) if rules else reading.value
        surprises.append(np.nan if value is None else surprise(value))
    return np.array(surprises)
