"""An alarm rule: a measure, a limit, how long it may be exceeded, severity, and what to do.

`Alarms` evaluates rules on the log; `prometheus` writes the same rules for Prometheus. As in Prometheus, an alarm is
inactive, pending or firing. It fires once and clears once, and its text contains the measured values.
"""

import logging
import math
import re
import threading
import time as clock
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from labsupport import arguments
from labsupport.extras import imported
from labsupport.log import Moment, seconds
from labsupport.monitoring.measures import MEASURES, Column, Drift, Measure, Reading, as_numbers

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

SEVERITIES = {"page": "users are hurt now", "ticket": "somebody should look at it in working hours"}
BEFORE_THE_MEANING = 20  # rows: of fewer, one odd picture would be an incident


@dataclass(frozen=True)
class AlertRule:
    """A rule that decides when an alarm fires, with a text that says what to do then.

    The alarm fires when `metric`, one of `MEASURES`, over the last `window` seconds is above `above`, or below `below`,
    in every evaluation for `hold` seconds. It ends when the metric passes `clear`. `clear` may lie further on the good
    side than the limit, so that a value that varies around the limit raises one alarm (hysteresis; by default there is
    none). With fewer than `min_rows` rows there is nothing to measure: then no alarm fires, and a firing alarm keeps
    firing.

    `severity` is "page" (users are hurt now) or "ticket" (somebody should look); `cure` says what to do. Raises
    ValueError for an inconsistent rule.

    >>> rule = AlertRule("Dark", "brightness_mean", below=0.2, clear=0.25, cure="Look at the lamp.")
    >>> rule.beyond(0.22), rule.beyond(0.22, firing=True)
    (False, True)
    >>> AlertRule("Dark", "brightness_mean", below=0.2, clear=0.1)
    Traceback (most recent call last):
    ValueError: Dark: clear=0.1 lies beyond the limit, 0.2: give a value on its good side
    """

    name: str
    metric: str
    above: float | None = None
    below: float | None = None
    clear: float | None = None
    window: float = 300.0
    hold: float = 60.0
    severity: str = "ticket"
    cure: str = ""
    min_rows: int = BEFORE_THE_MEANING

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z]\w*", self.name, re.ASCII):
            raise ValueError(f"name={arguments.shown(self.name)} is no name for an alarm: write it as in ManyErrors")
        if problem := self._problem():
            raise ValueError(f"{self.name}: {problem}")

    def _problem(self) -> str | None:
        if self.metric not in list(MEASURES):
            return f"no metric {self.metric!r}: there are {', '.join(MEASURES)}"
        if (self.above is None) == (self.below is None):
            return "give one limit, above=... or below=..."
        numbers = {name: getattr(self, name) for name in ("above", "below", "clear", "window", "hold", "min_rows")}
        try:
            for name, value in numbers.items():
                arguments.number(name, 0 if value is None and name in ("above", "below", "clear") else value)
        except ValueError as error:
            return str(error)
        if self.end != self.limit and self.beyond(self.end):
            return f"clear={self.clear} lies beyond the limit, {self.limit:g}: give a value on its good side"
        if self.window <= 0 or self.hold < 0 or self.min_rows < 1:
            return "window is more than 0 seconds, hold is not negative, min_rows is at least 1"
        if self.severity not in list(SEVERITIES):
            return f"no severity {self.severity!r}: there are {', '.join(SEVERITIES)}"
        return None

    @property
    def limit(self) -> float:
        limit = self.below if self.above is None else self.above
        assert limit is not None  # a rule has one of both
        return limit

    @property
    def end(self) -> float:
        """Return the value at which a firing alarm ends: `clear`, or the limit itself."""
        return self.limit if self.clear is None else self.clear

    def beyond(self, value: float, firing: bool = False) -> bool:
        """Return True if this value starts an alarm, or with `firing` keeps it firing."""
        limit = self.end if firing else self.limit
        return value < limit if self.above is None else value > limit

    @property
    def measure(self) -> Measure:
        return MEASURES[self.metric]

    def judged(self, reading: Reading) -> float | None:
        """Return the value to compare with the limit, or None if it was measured on too few rows."""
        return reading.value if reading.rows >= self.min_rows or self.measure.nothing is not None else None


class Event(NamedTuple):
    """An alarm fired or cleared."""

    time: float  # seconds since the epoch
    alarm: str
    event: str  # "fired" or "cleared"
    severity: str
    value: float
    text: str


@dataclass
class Status:
    """The state of an alarm ("inactive", "pending" or "firing"), the time of its last change, and the last reading."""

    state: str = "inactive"
    since: float = math.nan
    reading: Reading = field(default_factory=lambda: Reading(None, 0))
    looked: float = -math.inf


class ColumnSource(Protocol):
    """Describe what alarms ask of a log: `PredictionLog`, or rows in memory."""

    def columns(self, *names: str, since: float, until: float) -> Mapping[str, Column]:
        """Return columns of the rows with since <= time < until, by time."""


class Alarms:
    """Rules and the state of each. Call `evaluate` again and again: in a loop, or on request.

    `log` is a `PredictionLog`, or an object with its method `columns`. `reference` holds columns of a healthy period,
    as `log.columns(*MEASURES["drift"].columns)` returns them: without it the drift alarm has nothing to measure. Each
    call reads the rows of the longest window, some 100,000 a second. For a service with thousands of requests a second
    use Prometheus. Threads may share the object. Its states are kept in this process only, and are lost when it ends.

    >>> from types import SimpleNamespace
    >>> columns = {"time": np.arange(100.0), "brightness": np.full(100, 0.1)}
    >>> dark = AlertRule("Dark", "brightness_mean", below=0.2, clear=0.25, hold=10, cure="Look at the lamp.")
    >>> log = SimpleNamespace(columns=lambda *names, since, until: {name: columns[name] for name in names})
    >>> alarms = Alarms([dark], log)
    >>> alarms.evaluate(now=90), alarms.states
    ([], {'Dark': 'pending'})
    >>> print(alarms.evaluate(now=100)[0].text)
    Dark fired: brightness_mean is 0.1 over the last 5 minutes (100 rows), limit 0.2. Look at the lamp.
    """

    def __init__(
        self,
        rules: Iterable[AlertRule],
        log: ColumnSource,
        clock: Callable[[], float] = clock.time,
        reference: Mapping[str, Column] | None = None,
    ) -> None:
        self.rules, self.log, self.clock = tuple(rules), log, clock
        if wrong := [rule for rule in self.rules if not isinstance(rule, AlertRule)]:
            raise ValueError(f"rules: {arguments.shown(wrong[0])}: give a list of AlertRule")
        names = [rule.name for rule in self.rules]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two rules are called {', '.join(sorted(twice))}: give each a name of its own")
        self.reference = None if reference is None else _as_reference(reference)
        self.history: list[Event] = []
        self.status = {name: Status() for name in names}
        self._lock = threading.Lock()
        self._longest = max((rule.window for rule in self.rules), default=0.0)
        self._columns = tuple(dict.fromkeys(["time", *(name for rule in self.rules for name in rule.measure.columns)]))

    @property
    def firing(self) -> tuple[str, ...]:
        return tuple(name for name, state in self.states.items() if state == "firing")

    @property
    def states(self) -> dict[str, str]:
        return {name: status.state for name, status in self.status.items()}

    def evaluate(self, now: Moment = None) -> list[Event]:
        """Evaluate every rule; return the alarms that fired or cleared now. `now` as `rows.seconds` takes it.

        An evaluation at a time before the last one changes nothing. But if the clock itself was set back by more than
        the longest window, evaluations start again from the new time, and `logging` reports it. Raises what
        `log.columns` raises.
        """
        with self._lock:
            if now is None:
                now = float(self.clock())
                self._follow(now)
            now = seconds(now, "now")
            rows = self._rows(now)
            events = [event for rule in self.rules if (event := self._look(rule, rows, now))]
            self.history += events
            return events

    def _follow(self, now: float) -> None:
        """Forget evaluations that lie further ahead than a window. Otherwise none would be made until the clock is
        there again.
        """
        latest = max((status.looked for status in self.status.values()), default=-math.inf)
        if latest - now <= self._longest:
            return
        logger.warning(
            "the clock was set back by %s: alarms are judged from here on", spoken(float(round(latest - now)))
        )
        for status in self.status.values():
            status.looked, status.since = -math.inf, min(status.since, now)

    def to_frame(self) -> "pd.DataFrame":
        """Return a row for each rule: alarm, severity, state, since, metric, value, limit, clear, window, rows and cure."""
        pd = imported("pandas")

        names = ["alarm", "severity", "state", "since", "metric", "value", "limit", "clear", "window", "rows", "cure"]
        rows = [
            (
                *(rule.name, rule.severity, now.state, now.since, rule.metric, now.reading.value),
                *(rule.limit, rule.end, rule.window, now.reading.rows, rule.cure),
            )
            for rule, now in zip(self.rules, self.status.values(), strict=True)
        ]
        frame = pd.DataFrame(rows, columns=names).astype({"value": float, "since": float})
        return frame.assign(since=pd.to_datetime(frame["since"], unit="s", utc=True))

    def _rows(self, now: float) -> dict[str, np.ndarray]:
        """Return the rows of the longest window; `_look` selects those of each rule."""
        columns = self.log.columns(*self._columns, since=now - self._longest, until=now)
        return {name: as_numbers(column) for name, column in columns.items()}

    def _look(self, rule: AlertRule, rows: dict[str, np.ndarray], now: float) -> Event | None:
        status = self.status[rule.name]
        if now - status.looked >= rule.measure.pace * rule.window:
            first = np.searchsorted(rows["time"], now - rule.window)
            measure = rule.measure
            measure = replace(measure, reference=self.reference) if isinstance(measure, Drift) else measure
            columns = {name: rows[name][first:] for name in measure.columns}
            status.reading, status.looked = measure.read(columns, rule.window), now
        return self._step(rule, status, rule.judged(status.reading), now)

    def _step(self, rule: AlertRule, status: Status, value: float | None, now: float) -> Event | None:
        """Move an alarm from one state to the next, by the rules of Prometheus. Return the event, if there is one."""
        if status.state == "firing":
            if value is None or rule.beyond(value, firing=True):
                return None
            status.state, status.since = "inactive", now
            return self._event("cleared", rule, value, status.reading, now)
        if value is None or not rule.beyond(value):
            status.state, status.since = "inactive", now if status.state == "pending" else status.since
            return None
        if status.state == "inactive":
            status.state, status.since = "pending", now
        if now - status.since < rule.hold:
            return None
        status.state, status.since = "firing", now
        return self._event("fired", rule, value, status.reading, now)

    def _event(self, event: str, rule: AlertRule, value: float, reading: Reading, now: float) -> Event:
        text, limit = rule.measure.text, f"limit {rule.measure.text(rule.limit)}"
        if event == "cleared":
            limit = f"it had to come back {'to' if rule.end == rule.limit else 'past'} {text(rule.end)}"
        figures = f"{rule.metric} is {text(value)} over the last {spoken(rule.window)} ({reading.rows:,} rows)"
        note = f" in {reading.note}" if reading.note else ""
        cure = f" {rule.cure}" if event == "fired" and rule.cure else ""
        sentence = f"{rule.name} {event}: {figures}, {limit}{note}.{cure}"
        return Event(now, rule.name, event, rule.severity, value, sentence)


def _as_reference(reference: Mapping[str, Column]) -> dict[str, np.ndarray]:
    """Return the columns of a reference as numbers. Raises ValueError if one is missing, or has another length or kind."""
    needed, columns = MEASURES["drift"].columns, dict(reference)
    cure = f"give log.columns({', '.join(map(repr, needed))})"
    if lacks := [name for name in needed if name != "key" and name not in columns]:
        raise ValueError(f"reference lacks {', '.join(lacks)}: {cure}")
    try:
        numbers = {name: as_numbers(columns[name]) for name in needed if name in columns}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"reference has values that are neither numbers, texts nor None: {cure}") from error
    if len({column.shape for column in numbers.values()}) > 1:
        raise ValueError(f"reference has columns of different lengths: {cure}")
    return numbers


def spoken(seconds: float) -> str:
    """Return a time in words.

    >>> spoken(300), spoken(60), spoken(7.5)
    ('5 minutes', '1 minute', '7.5 seconds')
    """
    count, unit = (seconds / 60, "minute") if seconds >= 60 and seconds % 60 == 0 else (seconds, "second")
    return f"{count:g} {unit}{'' if count == 1 else 's'}"
