"""Several steps, learned or not, one after the other, and each of them watched.

Every run writes a row: what went in, and for each stage how long it took, whether it failed, whether it had no answer, and
the figures of its output. Two windows of such rows say where a change entered (`diagnosis`).
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
from labsupport.pipeline.diagnosis import ALPHA, INPUT, NOTED, Diagnosis, diagnose

if TYPE_CHECKING:
    import pandas as pd

UNKNOWN = "unknown"  # an answer that says there is none; like None it counts as null
Description = Mapping[str, float | bool | str | None]

logger = logging.getLogger(__name__)


def describe(value: Any) -> dict[str, Any]:
    """The figures of a value that are watched if a stage has no `describe` of its own.

    A number, a truth value or a class (str) is one figure, "value". An array or a list of numbers has its size, mean,
    standard deviation, least and greatest; any other list its size. A dict, a dataclass or a named tuple has those of its
    entries. None has no figures, and of anything else we watch the type.

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


def _of_many(values) -> dict[str, float]:
    numbers = np.asarray(values) if isinstance(values, np.ndarray) or _numbers(values) else np.empty(0, object)
    size = {"size": int(np.size(numbers) or len(values))}
    if numbers.dtype.kind not in "biuf" or not numbers.size:
        return size
    return size | {name: float(getattr(numbers, name)()) for name in ("mean", "std", "min", "max")}


def _numbers(values: Sequence) -> bool:
    return bool(values) and all(isinstance(value, Number) for value in values)


@dataclass(frozen=True)
class Stage:
    """One step: its name, the function that does it, and `describe(output)`, which figures of an output are watched.

    `describe` returns a dict of numbers, truth values, classes and None (see the function `describe`, which is used if
    there is none). Describe all that matters to the next stage: to us, what is not described of an input does not exist,
    so a change of it looks like one of the stage that reads it. An output that is None or "unknown" counts as null.

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
    """Stages in order; the output of one is the input of the next. Every run is written down.

    - `describe`: which figures of the pipeline's input are watched, as in `Stage`.
    - `most`: how many runs are kept; the oldest go first.
    - a `describe` that raises costs its figures and nothing else: they are missing in that run, and `logging` says it once.
    - `clock`: seconds, as `time.time` and `time.perf_counter` give them; for tests.

    May be used by several threads. Raises ValueError if there is no stage, or two have one name.

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
        self._rows: deque[dict[str, Any]] = deque(maxlen=int(arguments.number("most", most, 1, whole=True)))
        self._lock = Lock()
        self._undescribed: set[str] = set()  # parts whose `describe` has raised
        self._now, self._timer = clock or time.time, clock or time.perf_counter

    def run(self, value: Any) -> Any:
        """The last stage's output.

        None ends a run: the stages that remain are not asked, and the answer is None. "unknown" counts as null too, and is
        handed on, for the next stage may know what to do without an answer. An exception is written down, and raised.
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
        except Exception as error:
            row[f"{stage.name}.error"] = type(error).__name__
            raise
        finally:
            row[f"{stage.name}.latency"] = self._timer() - started
        null = value is None or (isinstance(value, str) and value == UNKNOWN)
        row |= {f"{stage.name}.null": null, **self._figures(stage.name, stage.describe, value)}
        return value

    def _figures(self, part: str, describe: Callable[[Any], Description], value: Any) -> dict[str, Any]:
        """Return what `describe` says of a value, under the columns' names; nothing if it raises, for the run goes on."""
        try:
            return _named(part, describe(value))
        except Exception as error:
            if part not in self._undescribed:  # once, not with every run
                self._undescribed.add(part)
                logger.error("%s: its output is not described, so its figures are missing: %r", part, error)
            return {}

    def frame(self, since: float | None = None, until: float | None = None) -> "pd.DataFrame":
        """A row a run, in the order of time: all that was written down of the runs that started in [since, until).

        Columns: time (seconds since the epoch), those of the input (`input.loudness`), and for each stage asked (False if
        the run ended before it), latency (seconds), error (the exception's name), null, and its own figures.
        """
        import pandas as pd

        with self._lock:
            rows = [row for row in self._rows if (since or 0) <= row["time"] and (until is None or row["time"] < until)]
        order = ["time", *(name for part in (INPUT, *self._names) for name in _order(part, rows))]
        table = pd.DataFrame(rows, columns=order)
        for stage in self._names:
            table[f"{stage}.asked"] = table[f"{stage}.asked"].eq(True)
        return table

    def summary(self, since: float | None = None, until: float | None = None) -> "pd.DataFrame":
        """A row a stage: how often it was asked, shares of errors and of nulls, latency (median and 95th percentile, in
        seconds), and throughput: answers per second, from the first run's start to the last one's.

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
        """Where a change between two windows of `frame` entered, and who only inherited it: see `diagnosis.diagnose`."""
        return diagnose(reference, current, self._names, alpha, seed)


def _named(part: str, figures: Description) -> dict[str, Any]:
    """The figures under their columns' names."""
    if taken := set(figures) & set(NOTED if part != INPUT else ()):
        raise ValueError(f"{part}: a figure cannot be called {', '.join(sorted(taken))}, which is noted of every stage")
    return {f"{part}.{name}": value for name, value in figures.items()}


def _order(part: str, rows: list[dict[str, Any]]) -> list[str]:
    """The columns of one part, those that are noted of every stage first."""
    first = [f"{part}.{name}" for name in NOTED] if part != INPUT else []
    return list(dict.fromkeys([*first, *(name for row in rows for name in row if name.startswith(f"{part}."))]))
