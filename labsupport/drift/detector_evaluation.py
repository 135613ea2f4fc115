"""Measure a detector's alarms: delay, missed drifts and false alarms, compared with a detector that ignores the data.

A short delay means nothing without the number of false alarms: a detector that fires all the time has the shortest
delay.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from labsupport.arguments import number, shown
from labsupport.tabular import float_column

if TYPE_CHECKING:
    import pandas as pd

EVERY = 300  # samples between two alarms of the detector that looks at nothing


@dataclass(frozen=True)
class Evaluation:
    """Delay, missed drifts and false alarms of one detector. Made by `evaluate`; two of them can be added."""

    delays: tuple[int, ...]  # samples from each drift that was detected to its alarm
    missed: int  # drifts without an alarm in time
    false_alarms: int
    clean_samples: int  # those at which an alarm is a false one

    @property
    def detected(self) -> int:
        return len(self.delays)

    @property
    def mean_delay(self) -> float:
        """Return the mean delay in samples; NaN if nothing was detected. Read it together with the share of missed
        drifts.
        """
        return sum(self.delays) / self.detected if self.delays else math.nan

    @property
    def false_alarms_per_10000(self) -> float:
        """Return the false alarms in 10,000 clean samples; NaN if there was no clean sample."""
        return 10_000 * self.false_alarms / self.clean_samples if self.clean_samples else math.nan

    def to_dict(self) -> dict[str, float]:
        names = ("detected", "missed", "mean_delay", "false_alarms", "false_alarms_per_10000")
        return {name: getattr(self, name) for name in names}

    def __add__(self, other: "Evaluation") -> "Evaluation":
        return Evaluation(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def evaluate(alarms: Sequence[int], drifts: Sequence[int], n_samples: int, max_delay: int) -> Evaluation:
    """Return delay, missed drifts and false alarms of a detector, from the indices of its alarms and of the drifts.

    `alarms` and `drifts` are increasing indices of the `n_samples` samples. A drift's index is that of the first
    changed sample. The first alarm from there on detects the drift, if it comes at most `max_delay` samples later and
    before the next drift. Later alarms in that stretch count as neither: counting them as false would punish a detector
    for repeating an alarm, and counting them as detections would reward it twice. All other alarms are false, including
    those that come too late. False alarms are for 10,000 samples outside these stretches. Raises ValueError for indices
    that are not whole, not increasing or out of range.

    >>> evaluate(alarms=[120, 530, 540, 900], drifts=[500], n_samples=1000, max_delay=100).to_dict()
    {'detected': 1, 'missed': 0, 'mean_delay': 30.0, 'false_alarms': 2, 'false_alarms_per_10000': 22.246941045606228}
    """
    n_samples, max_delay = number("n_samples", n_samples, 1, whole=True), number("max_delay", max_delay, 0, whole=True)
    fired, starts = _indices("alarms", alarms, n_samples), _indices("drifts", drifts, n_samples)
    ends = np.minimum(starts + max_delay + 1, np.append(starts[1:], n_samples))  # the first sample after each stretch
    first = np.searchsorted(fired, starts)
    inside = np.searchsorted(fired, ends) - first
    delays = fired[first[inside > 0]] - starts[inside > 0]
    return Evaluation(
        delays=tuple(delays.tolist()),
        missed=int((inside == 0).sum()),
        false_alarms=len(fired) - int(inside.sum()),
        clean_samples=n_samples - int((ends - starts).sum()),
    )


def compare_detectors(
    detectors: Mapping[str, Callable[..., Any]],
    streams: Iterable[tuple[Sequence[float], Sequence[int]]],
    max_delay: int = 2000,
    references: Sequence[Sequence[float]] | None = None,
    interval: float | None = None,
) -> "pd.DataFrame":
    """Return a table of detectors on the same streams, one row each: mean delay, missed drifts in percent, false alarms.

    `detectors` maps a name to a class or a function that makes a new detector for each stream. A stream is its values
    and the indices of its drifts, as in `evaluate`. The last row is that of a detector that fires every 300 samples and
    ignores the data: a useful detector must be better. Its delay is fair, 150 on average, if drifts come at random times.

    - `references`: the values of a healthy period for each stream. Then each function gets its stream's reference.
    - `interval`: a confidence level such as 0.95. Then the table also has the limits of an interval for the mean delay
      (Student's t, over the drifts) and for the rate of false alarms (exact, if they come independently).

    Raises ValueError without streams, for another number of references, and for an interval that is not between 0 and 1.
    Raises TypeError for a detector that is made already.

    >>> random = np.random.default_rng(0)
    >>> streams = [(np.concatenate([random.normal(0, 1, 5000), random.normal(1, 1, 2000)]), [5000]) for _ in range(5)]
    >>> from labsupport.drift import Cusum
    >>> compare_detectors({"CUSUM": lambda: Cusum(k=0.5, h=10)}, streams).round(1)
                     mean_delay  missed_percent  false_alarms_per_10000
    CUSUM                  19.8             0.0                     0.0
    fires every 300        99.0             0.0                    32.0
    """
    import pandas as pd

    if not isinstance(detectors, Mapping):
        raise ValueError(f"detectors={shown(detectors)}: give a dict of names and of what makes each detector")
    if made := [name for name, make in detectors.items() if not callable(make)]:
        raise TypeError(
            f"{', '.join(made)}: give what makes one, a class or a lambda; a used one remembers the last stream"
        )
    max_delay = number("max_delay", max_delay, 0, whole=True)
    if not (checked := [_stream(place, stream) for place, stream in enumerate(streams)]):
        raise ValueError("no stream: give (values, drifts) for each")
    if references is not None and len(references) != len(checked):
        raise ValueError(f"{len(references)} references, {len(checked)} streams: give one reference for each stream")
    level = None if interval is None else number("interval", interval, 0, 1, ends=False)
    told: list[tuple[Any, ...]] = [()] * len(checked) if references is None else [(one,) for one in references]
    everyone = {**detectors, f"fires every {EVERY}": lambda *_: _Always()}
    rows = {}
    for name, make in everyone.items():
        ready = [(make(*reference), *stream) for reference, stream in zip(told, checked, strict=True)]
        rows[name] = _total(ready, max_delay, level)
    return pd.DataFrame.from_dict(rows, orient="index")


def _stream(place: int, stream: tuple[Sequence[float], Sequence[int]]) -> tuple[np.ndarray, Sequence[int]]:
    """Return values and drifts. Raises ValueError for missing values, because detectors treat them differently."""
    try:
        samples, drifts = stream
    except (TypeError, ValueError):
        raise ValueError(f"streams[{place}]: give a pair, the values and the indices of the drifts") from None
    values = float_column(f"streams[{place}]: values", samples)
    if not np.isfinite(values).all():
        raise ValueError(
            f"streams[{place}]: {int((~np.isfinite(values)).sum())} values are missing or infinite: leave them out"
        )
    return values, drifts


class _Always:
    """A detector that ignores the data and fires every 300 samples."""

    def __init__(self) -> None:
        self.n = 0

    def update(self, x: float) -> None:
        self.n += 1

    @property
    def drift_detected(self) -> bool:
        return self.n % EVERY == 0


def _total(
    runs: Iterable[tuple[Any, np.ndarray, Sequence[int]]], max_delay: int, level: float | None
) -> dict[str, float]:
    """Return the row of one detector: a new one for each stream, with the stream's values and drifts."""
    total = Evaluation((), 0, 0, 0)
    for detector, values, drifts in runs:
        total += evaluate(_run(detector, values), drifts, len(values), max_delay)
    count = total.detected + total.missed
    row = {
        "mean_delay": total.mean_delay,
        "missed_percent": 100 * total.missed / count if count else math.nan,
        "false_alarms_per_10000": total.false_alarms_per_10000,
    }
    return row if level is None else row | _intervals(total, level)


def _intervals(total: Evaluation, level: float) -> dict[str, float]:
    """Return the limits of the mean delay, and of the false alarms in 10,000 clean samples (Garwood, 1936)."""
    from scipy import stats

    delays, alarms, tail = np.array(total.delays, float), total.false_alarms, (1 - level) / 2
    margin = math.nan
    if len(delays) > 1:
        margin = stats.t.isf(tail, len(delays) - 1) * float(delays.std(ddof=1)) / math.sqrt(len(delays))
    scale = 10_000 / total.clean_samples if total.clean_samples else math.nan
    low = stats.chi2.ppf(tail, 2 * alarms) / 2 if alarms else 0.0
    return {
        "delay_low": total.mean_delay - margin,
        "delay_high": total.mean_delay + margin,
        "false_alarms_low": scale * float(low),
        "false_alarms_high": scale * float(stats.chi2.isf(tail, 2 * alarms + 2)) / 2,
    }


def _run(detector: Any, values: np.ndarray) -> list[int]:
    alarms = []
    for index, value in enumerate(values):
        detector.update(value)
        if detector.drift_detected:
            alarms.append(index)
    return alarms


def _indices(name: str, values: Sequence[int], n_samples: int) -> np.ndarray:
    try:
        indices = float_column(name, values)
        whole = np.isfinite(indices).all() and (indices == np.rint(indices)).all() and not _of_bool(values)
    except ValueError:
        indices, whole = np.zeros(0), False
    if not whole or (np.diff(indices) <= 0).any():
        raise ValueError(f"{name}={shown(values)}: give whole indices, each above the one before")
    if len(indices) and (indices[0] < 0 or indices[-1] >= n_samples):
        raise ValueError(
            f"{name} from {indices[0]:g} to {indices[-1]:g}: there are {n_samples} samples, 0 to {n_samples - 1}"
        )
    return indices.astype(int)


def _of_bool(values: Sequence[int]) -> bool:
    """Return True if these are truth values, which a caller may give by mistake to mark each sample with an alarm."""
    return any(isinstance(value, bool | np.bool_) for value in values)
