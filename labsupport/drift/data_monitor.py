"""Tests each window of a stream against one fixed reference.

First subtracts the sampling error of the reference. The false-alarm rate then holds for this reference, not only on
average over references. Usual two-sample tests hold their level only on average over references. But a monitor uses one
reference for years, and its sampling error would affect every window.
"""

import math
import warnings
from collections import Counter
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np

from labsupport.arguments import number, shown
from labsupport.drift.cusum import finite
from labsupport.tabular import TooFewRows, is_missing, narrowest, precision, rounded, row_of, table

if TYPE_CHECKING:
    import pandas as pd

UNLUCKY = 0.01  # share of references for which the promise is not made
FEWEST = 30  # rows in a window
TIMES = 10  # how many windows long a reference is at least
SCOUTS = 10  # every tenth row of the reference says which values there are, the others how often they come
NUMBERS = 10  # more distinct numbers than these are a distribution, fewer are classes
CLASSES = 20  # the most frequent ones are told apart, the rest are one


class SerialCorrelation(UserWarning):
    """Warns that neighbouring rows are correlated, so that a monitor's false-alarm rate does not hold."""


class DataDriftMonitor:
    """Compares each window of `window` rows with the reference, in every feature, and raises an alarm if one has changed.

    `reference` holds the rows of a healthy period, at least 10 windows of them, in any form that `compare` takes but a file.
    `update` takes a row by name (a mapping, a pandas Series, a frame of one row, a record), by place (a tuple, a list,
    an array, in the order of the features), or as a bare value if there is one feature. Features are numbers, bools or
    texts; None, NaN and masked values are missing. Windows do not overlap, and each is tested once, when it is full.

    The promise: while rows are independent and come from the reference's distribution, a window raises an alarm with
    probability `false_alarm_rate` at most, independently of earlier windows. So the first false alarm takes 1 /
    `false_alarm_rate` windows or more on average, and in N windows there is one with probability N times that rate at
    most. This holds for any distribution of the values and for any dependence between features. It holds for 99 of 100
    references; with the other one alarms may be more frequent. It is a bound: the observed rate is usually far lower. A
    longer reference has a smaller sampling error, so smaller changes are detected.

    - Numbers: the largest distance between the two distribution functions, as in the Kolmogorov-Smirnov test, minus the
      possible error of the reference. Both use the inequality of Dvoretzky, Kiefer and Wolfowitz with the constant of
      Massart (1990, "The tight constant in the Dvoretzky-Kiefer-Wolfowitz inequality"). Missing values count as lowest.
    - Texts, bools and other numbers of few values: the share of each of the 20 most frequent, and of all others
      together, by a binomial test against the interval of Clopper and Pearson (1934) for the reference's share.
    - Several features: Bonferroni, for the windows and for the reference.

    `drift_detected` and `reasons` (the features that changed, worst first) are about the last row. Only a row that
    fills a window can raise an alarm. `p_values` are those of the last window, and `p_value` combines them; both are
    None before the first window. `n` counts rows, `windows` windows, and `alarms` lists the indices of the rows that
    raised one.

    Rows that are correlated in time (video, a sensor read every second) break the promise. If the reference has its
    rows in their order and is correlated, the monitor warns: `SerialCorrelation`. Raises `TooFewRows` for a reference
    that is too short. Raises ValueError for a reference whose columns differ in length or hold neither numbers nor
    texts, and for an invalid window or rate.

    >>> random = np.random.default_rng(0)
    >>> monitor = DataDriftMonitor({"brightness": random.normal(0.5, 0.1, 2000)}, window=100)
    >>> for brightness in np.concatenate([random.normal(0.5, 0.1, 1000), random.normal(0.4, 0.1, 200)]):
    ...     if monitor.update({"brightness": brightness}).drift_detected:
    ...         print(f"row {monitor.n}: {monitor.reasons} p={monitor.p_value:.0e}")
    row 1100: ('brightness',) p=5e-11
    row 1200: ('brightness',) p=4e-08
    """

    def __init__(self, reference: Any, window: int, false_alarm_rate: float = 0.01) -> None:
        self.window = number("window", window, FEWEST, whole=True)
        self.false_alarm_rate = number("false_alarm_rate", false_alarm_rate, 0, 1, ends=False)
        frame = table(reference, "reference")
        if not len(frame.columns):
            raise ValueError("reference: it has no columns: give one or more features")
        if (rows := len(frame)) < TIMES * self.window:
            raise TooFewRows(f"{rows} reference rows: give at least {TIMES} windows, {TIMES * self.window} rows")
        columns = {name: frame[name] for name in frame.columns}
        self._features = {name: _feature(name, values, UNLUCKY / len(columns)) for name, values in columns.items()}
        for name, values in columns.items():
            _check_order(name, self._features[name].order(values.to_list()))
        self._rows: list[list[float]] = []
        self.n = self.windows = 0
        self.alarms: list[int] = []
        self.reasons: tuple[Hashable, ...] = ()
        self.p_values: dict[Hashable, float] | None = None

    def update(self, row: Any) -> "DataDriftMonitor":
        """Add the next row, and return the monitor.

        Raises ValueError for other features than those of the reference, infinity, text instead of a number, and a
        number instead of text. Then nothing changes.
        """
        self._rows.append(self._read(row))
        self.n, self.reasons = self.n + 1, ()
        if len(self._rows) == self.window:
            self._judge()
        return self

    @property
    def drift_detected(self) -> bool:
        """Return True if the last row filled a window that raised the alarm."""
        return bool(self.reasons)

    @property
    def p_value(self) -> float | None:
        """Return the p-value of the last full window, over all features. At `false_alarm_rate` or below it is an alarm."""
        return None if self.p_values is None else min(1.0, len(self.p_values) * min(self.p_values.values()))

    def __repr__(self) -> str:
        return (
            f"<DataDriftMonitor of {len(self._features)} features: {self.windows} windows, {len(self.alarms)} alarms>"
        )

    def _judge(self) -> None:
        columns, self._rows = np.array(self._rows).T, []
        pairs = zip(self._features.items(), columns, strict=True)
        self.p_values = {name: feature.p_value(column) for (name, feature), column in pairs}
        self.windows += 1
        worst = sorted(self.p_values, key=self.p_values.__getitem__)
        level = self.false_alarm_rate / len(self._features)
        self.reasons = tuple(name for name in worst if self.p_values[name] <= level)
        if self.reasons:
            self.alarms.append(self.n - 1)

    def _read(self, row: Any) -> list[float]:
        features, values = self._features, row_of(row)
        if isinstance(values, dict) and values.keys() != features.keys() and hasattr(row, "_fields"):
            values = _of_tuple(values, features)
        if isinstance(values, dict):
            if odd := values.keys() ^ features.keys():
                alike = len(set(map(str, odd))) < len(odd)  # as 0 of an array and "0" of a frame
                names = ", ".join(map(shown if alike else str, list(odd)[:5])) + (", ..." if len(odd) > 5 else "")
                raise ValueError(f"{names}: in the row or in the reference, but not in both")
            return [feature.read(values[name]) for name, feature in features.items()]
        if len(values) != len(features):
            raise ValueError(f"row={shown(row)}: {len(values)} values: give {len(features)}, one for each feature")
        return [feature.read(value) for value, feature in zip(values, features.values(), strict=True)]


def _of_tuple(values: dict[Any, Any], features: dict[Hashable, Any]) -> dict[Any, Any] | list[Any]:
    """Return a namedtuple by name, without the index that pandas' `itertuples` puts first; by place if the names differ."""
    if "Index" not in features:
        values.pop("Index", None)
    return values if values.keys() == features.keys() else list(values.values())


class _Numbers:
    """A feature of many numbers: its distribution function, and how far that may be from the true one."""

    def __init__(self, name: Hashable, rest: list[Any], held: type, unlucky: float) -> None:
        self.name, self.held = name, held
        self.sorted = np.sort([self.read(value) for value in rest])
        self.margin = math.sqrt(math.log(2 / unlucky) / (2 * len(rest)))

    def read(self, value: Any) -> float:
        if _kind(self.name, value) == "text":
            raise ValueError(f"{self.name}: {shown(value)} is no number, as those of the reference are")
        self.held = narrowest([self.held, type(value)])
        return -math.inf if is_missing(value) else float(value)

    def order(self, values: list[Any]) -> np.ndarray:
        return np.array([self.read(value) for value in values])

    def p_value(self, window: np.ndarray) -> float:
        reference = rounded(self.sorted, self.held)  # 9.99 as float32 is another number than as float64
        window, steps = np.sort(rounded(window, self.held)), np.arange(len(window) + 1) / len(window)
        upto, below = (np.searchsorted(reference, window, side) / len(reference) for side in ("right", "left"))
        distance = max((steps[1:] - upto).max(), (below - steps[:-1]).max())
        return min(1.0, 2 * math.exp(-2 * len(window) * max(0.0, distance - self.margin) ** 2))


class _Classes:
    """A feature of few values: the share of each, and the interval in which the true one lies."""

    def __init__(
        self, name: Hashable, scouts: list[Any], rest: list[Any], kind: str, held: type, unlucky: float
    ) -> None:
        from scipy import special

        self.name, self.kind, self.held = name, kind, held
        frequent = Counter(None if is_missing(value) else value for value in scouts).most_common(CLASSES)
        self.codes: dict[type, dict[Any, int]] = {np.float64: {value: code for code, (value, _) in enumerate(frequent)}}
        count = self._count(np.array([self.read(value) for value in rest]))
        tail, some, most = unlucky / len(count) / 2, count > 0, count < len(rest)
        self.low, self.high = np.zeros(len(count)), np.ones(len(count))
        self.low[some] = special.betaincinv(count[some], len(rest) - count[some] + 1, tail)
        self.high[most] = special.betaincinv(count[most] + 1, len(rest) - count[most], 1 - tail)

    def read(self, value: Any) -> float:
        if _kind(self.name, value) not in (self.kind, None):
            raise ValueError(f"{self.name}: {shown(value)} is no {self.kind}, as those of the reference are")
        if is_missing(value):
            return float(self._codes(np.float64).get(None, self.others))
        held = narrowest([self.held, type(value)])
        return float(self._codes(held).get(value if held is np.float64 else float(held(value)), self.others))

    @property
    def others(self) -> int:
        return len(self.codes[np.float64])

    def _codes(self, held: type) -> dict[Any, int]:
        """Return the code of each value, rounded to this number type: 9.99 as float32 is another number than as float64."""
        if held not in self.codes:
            exact = {value: code for value, code in self.codes[np.float64].items() if value is not None}
            self.codes[held] = {float(held(value)): code for value, code in exact.items()}
            if len(self.codes[held]) < len(exact):
                del self.codes[held]
                raise ValueError(
                    f"{self.name}: {held.__name__} cannot tell the reference's values apart: give more digits"
                )
        return self.codes[held]

    def order(self, values: list[Any]) -> np.ndarray:
        return np.array([self.read(value) == 0 for value in values])  # is it the most frequent one?

    def p_value(self, window: np.ndarray) -> float:
        from scipy import special

        count = self._count(window)
        many = special.bdtrc(count - 1, len(window), self.high)
        few = special.bdtr(count, len(window), self.low)
        return float(min(1.0, len(count) * 2 * np.minimum(many, few).min()))

    def _count(self, codes: np.ndarray) -> np.ndarray:
        return np.bincount(codes.astype(int), minlength=self.others + 1).astype(float)


def _feature(name: Hashable, column: "pd.Series", unlucky: float) -> _Numbers | _Classes:
    """Return the feature of a column. Every tenth row (the scouts) decides its kind, and the other rows are its reference.

    The scouts are not used again. Otherwise the choice would be tested on the rows that led to it.
    """
    values, held = column.to_list(), precision(column)
    kinds = {kind for value in values if (kind := _kind(name, value)) is not None}
    if len(kinds) != 1:
        raise ValueError(f"{name}: {' and '.join(sorted(kinds)) or 'nothing'} in the reference; give numbers or texts")
    (kind,), scouts, rest = kinds, values[::SCOUTS], [value for row, value in enumerate(values) if row % SCOUTS]
    if kind == "number" and len({value for value in scouts if not is_missing(value)}) > NUMBERS:
        return _Numbers(name, rest, held, unlucky)
    return _Classes(name, scouts, rest, kind, held, unlucky)


def _kind(name: Hashable, value: Any) -> str | None:
    """Return "text" or "number", or None for a missing value. Raises ValueError for anything else, infinity included."""
    if isinstance(value, str):
        return "text"
    if is_missing(value):
        return None
    try:
        finite(value)
    except ValueError:
        raise ValueError(f"{name}: {shown(value)} is neither a finite number nor a text") from None
    return "number"


def _check_order(name: Hashable, values: np.ndarray) -> None:
    """Warn if neighbours are more alike than independent rows would be: the lag-1 correlation of ranks."""
    ranked = np.sort(values)
    ranks = np.searchsorted(ranked, values, "left") + np.searchsorted(ranked, values, "right") - float(len(values))
    alike = ranks[1:] @ ranks[:-1] / max(ranks @ ranks, 1.0)
    if alike > max(0.1, 5 / math.sqrt(len(values))):  # 5: by chance once in 3 million features
        apart = math.ceil(math.log(0.05) / math.log(min(alike, 0.999)))
        text = (
            f"{name}: neighbours in the reference correlate by {alike:.2f}. If those in the stream do, false alarms are"
        )
        warnings.warn(
            f"{text} more than promised: keep one row in {apart}, there and here", SerialCorrelation, stacklevel=3
        )
