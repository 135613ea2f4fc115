"""Run several steps one after the other, and record figures of each.

Every run adds a row. It holds the figures of the input, and for each stage its latency, its error, whether its output was
null, and the figures of its output. `diagnosis` compares two windows of such rows to find where a change entered.
"""

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from labsupport import arguments
from labsupport.log import Moment, seconds
from labsupport.pipeline.diagnosis import ALPHA, INPUT, NOTED, Diagnosis, diagnose

if TYPE_CHECKING:
    import pandas as pd

UNKNOWN = "unknown"  # an output that means "no answer"; like None it counts as null
Description = Mapping[str, float | bool | str | None]

logger = logging.getLogger(__name__)


def describe(value: Any) -> dict[str, Any]:
    """Return the figures of a value. A stage uses this function if it has no `describe` of its own.

    A number, a truth value or a class (str) has one figure, "value". An array or a list of numbers has its size, mean,
    standard deviation, minimum and maximum; any other list has its size. A dict, a dataclass or a named tuple has the
    figures of its entries. None has no figures. Anything else has its type.

    >>> describe({"word": "yes", "confidence": 0.9})
    {'word': 'yes', 'confidence': 0.9}
    >>> describe([1.0, 3.0])
    {'size': 2, 'mean': 2.0, 'std': 1.0, 'min': 1.0, 'max': 3.0}
    """
    if value is None:
        return {}
    if isinstance(value, (str, bool, Number, np.bool_)):
        return {"value": value.item() if isinstance(value, np.generic) else value}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = vars(value)
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        entries = {str(name): describe(entry) for name, entry in value.items()}
        return {
            name if figure == "value" else f"{name}_{figure}": one
            for name, figures in entries.items()
            for figure, one in figures.items()
        }
    return _of_many(value) if isinstance(value, (np.ndarray, Sequence)) else {"type": type(value).__name__}


def _of_many(values: np.ndarray | Sequence[Any]) -> dict[str, float]:
    numbers = np.asarray(values) if isinstance(values, np.ndarray) or _numbers(values) else np.empty(0, object)
    size: dict[str, float] = {"size": int(np.size(numbers) or len(values))}
    if numbers.dtype.kind not in "biuf" or not numbers.size:
        return size
    return size | {name: float(getattr(numbers, name)()) for name in ("mean", "std", "min", "max")}


def _numbers(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(value, Number) for value in values)


@dataclass(frozen=True)
class Stage:
    """Define one step: its name, its function, and `describe(output)`, which returns the figures of an output.

    `describe` returns a dict of numbers, truth values, classes and None. The default is the function `describe`. Describe
    everything that matters to the next stage. If an aspect of the output is not described, a change in it looks like a
    change of the next stage. An output that is None or "unknown" counts as null.

    >>> Stage("length", len).function("abc")
    3
    """

    name: str
    function: Callable[[Any], Any]
    describe: Callable[[Any], Description] = describe

    def __post_init__(self) -> None:
        if not self.name or "." in self.name or self.name == INPUT:
            raise ValueError(f"a stage's name is a word without a dot, and not {INPUT!r}: {self.name!r} will not do")


class Pipeline:
    """Run stages in order: the output of one is the input of the next. Record every run.

    - `describe`: returns the figures of the pipeline's input, as in `Stage`.
    - `most`: how many runs are kept. The oldest are removed first.
    - If a `describe` raises, only its figures are missing in that run. The error is logged once.
    - `clock`: returns seconds, in place of `time.time` and `time.perf_counter`, for tests.

    Several threads may use it. Raises ValueError if there is no stage, or if two stages have the same name.

    >>> pipeline = Pipeline([Stage("words", str.split), Stage("count", len)])
    >>> pipeline.run("three short words")
    3
    >>> pipeline.frame()[["input.value", "words.size", "count.value", "count.null"]]
             input.value  words.size  count.value  count.null
    0  three short words           3            3       False
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        describe: Callable[[Any], Description] = describe,
        most: int = 100_000,
        clock: Callable[[], float] | None = None,
    ) -> None:
        names = [stage.name for stage in stages]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a pipeline needs one stage at least, and each a name of its own, not {names}")
        self.stages, self.describe = tuple(stages), describe
        self._names = names
        self._rows: deque[dict[str, Any]] = deque(maxlen=arguments.number("most", most, 1, whole=True))
        self._lock = Lock()
        self._undescribed: set[str] = set()  # parts whose `describe` has raised
        self._now, self._timer = clock or time.time, clock or time.perf_counter

    def run(self, value: Any) -> Any:
        """Run all stages on `value`, and return the last stage's output.

        None ends a run: the remaining stages do not run, and the result is None. "unknown" counts as null too, but is passed
        on, because the next stage may handle it. An exception is recorded and raised.
        """
        row: dict[str, Any] = {"time": self._now(), **self._figures(INPUT, self.describe, value)}
        try:
            for stage in self.stages:
                if (value := self._step(stage, value, row)) is None:
                    return None
            return value
        finally:
            with self._lock:
                self._rows.append(row)

    def _step(self, stage: Stage, value: Any, row: dict[str, Any]) -> Any:
        started = self._timer()
        row[f"{stage.name}.asked"], row[f"{stage.name}.error"] = True, None
        try:
            value = stage.function(value)
        except BaseException as error:  # an interrupt is no answer either
            row[f"{stage.name}.error"] = type(error).__name__
            raise
        finally:
            row[f"{stage.name}.latency"] = self._timer() - started
        null = value is None or (isinstance(value, str) and value == UNKNOWN)
        row |= {f"{stage.name}.null": null, **self._figures(stage.name, stage.describe, value)}
        return value

    def _figures(self, part: str, describe: Callable[[Any], Description], value: Any) -> dict[str, Any]:
        """Return the figures of a value by column name. If `describe` raises, return {}, so that the run goes on."""
        try:
            return _named(part, describe(value))
        except Exception as error:
            if part not in self._undescribed:  # once, not with every run
                self._undescribed.add(part)
                logger.error("%s: its output is not described, so its figures are missing: %r", part, error)
            return {}

    def frame(self, since: Moment = None, until: Moment = None) -> "pd.DataFrame":
        """Return the runs that started in [since, until), one row for each, in the order of time.

        `since` and `until` are as in a log of predictions: a datetime with a time zone, its text in ISO 8601, seconds since
        the epoch, or a timedelta back from now. Raises ValueError for anything else.

        Columns: time (seconds since the epoch), the figures of the input (`input.loudness`), and for each stage: asked
        (False if the run ended before it), latency (seconds), error (the exception's name), null, and its figures.
        """
        import pandas as pd

        begin = -np.inf if since is None else seconds(since, "since")
        end = np.inf if until is None else seconds(until, "until")
        with self._lock:
            rows = [row for row in self._rows if begin <= row["time"] < end]
        order = ["time", *(name for part in (INPUT, *self._names) for name in _order(part, rows))]
        table = pd.DataFrame(rows, columns=order)
        for stage in self._names:
            table[f"{stage}.asked"] = table[f"{stage}.asked"].eq(True)
        return table

    def summary(self, since: Moment = None, until: Moment = None) -> "pd.DataFrame":
        """Return a frame with a row for each stage: number of runs, shares of errors and of nulls, latency (median and 95th
        percentile, in seconds), and throughput (answers per second, from the first run's start to the last run's start).

        >>> ticks = iter(range(100))
        >>> pipeline = Pipeline([Stage("half", lambda number: number / 2 or None)], clock=lambda: float(next(ticks)))
        >>> results = [pipeline.run(number) for number in (0, 1, 2)]
        >>> pipeline.summary().round(2)
          stage  asked  errors  nulls  latency_p50  latency_p95  throughput
        0  half      3     0.0   0.33          1.0          1.0         0.5
        """
        import pandas as pd

        table = self.frame(since, until)
        span = table["time"].max() - table["time"].min()
        rows = []
        for stage in self._names:
            mine = table.loc[table[f"{stage}.asked"], [f"{stage}.{name}" for name in NOTED]].set_axis(NOTED, axis=1)
            failed = mine["error"].notna()
            p50, p95 = mine["latency"].quantile([0.5, 0.95])
            rate = (~failed).sum() / span if span > 0 else np.nan
            rows.append((stage, len(mine), failed.mean(), mine["null"].eq(True).mean(), p50, p95, rate))
        columns = ["stage", "asked", "errors", "nulls", "latency_p50", "latency_p95", "throughput"]
        return pd.DataFrame(rows, columns=columns)

    def diagnose(
        self, reference: "pd.DataFrame", current: "pd.DataFrame", alpha: float = ALPHA, seed: int = 0
    ) -> Diagnosis:
        """Find where a change between two windows of `frame` entered. See `diagnosis.diagnose`."""
        return diagnose(reference, current, self._names, alpha, seed)


def _named(part: str, figures: Description) -> dict[str, Any]:
    """Return the figures under their columns' names."""
    if taken := set(figures) & set(NOTED if part != INPUT else ()):
        raise ValueError(f"{part}: a figure cannot be called {', '.join(sorted(taken))}, which is noted of every stage")
    return {f"{part}.{name}": value for name, value in figures.items()}


def _order(part: str, rows: list[dict[str, Any]]) -> list[str]:
    """Return the columns of one part, with those of every stage first."""
    first = [f"{part}.{name}" for name in NOTED] if part != INPUT else []
    return list(dict.fromkeys([*first, *(name for row in rows for name in row if name.startswith(f"{part}."))]))
