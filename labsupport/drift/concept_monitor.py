"""Wraps the drift detectors of the `river` library.

Feed one number a sample: the error if labels exist, otherwise the confidence or the prediction. `detector_evaluation`
measures how good a detector's alarms are. `data_monitor` detects changes in the data themselves.
"""

import inspect
import math
import operator
import sys
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from labsupport.arguments import number, shown
from labsupport.drift.cusum import Cusum, cusum_limit, cusum_run_length, finite
from labsupport.drift.data_monitor import DataDriftMonitor, SerialCorrelation
from labsupport.drift.detector_evaluation import Evaluation, compare_detectors, evaluate
from labsupport.tabular import float_column, is_missing

__all__ = [
    "ConceptDriftMonitor",
    "Cusum",
    "DataDriftMonitor",
    "Evaluation",
    "NotExpected",
    "SerialCorrelation",
    "compare_detectors",
    "cusum_limit",
    "cusum_run_length",
    "evaluate",
]


class NotExpected(LookupError):
    """Raised if a label arrives for a prediction that does not wait for one."""


class ConceptDriftMonitor:
    """Detects a change in one stream of numbers. Feed it with `update`, or with predictions and their labels.

    `detector` is "adwin", "page-hinkley", "kswin" or "ddm" of river, our "cusum", or any object with `update(x)` and
    `drift_detected`. `parameters` are passed to the detector that is named. After an alarm river's detectors restart by
    themselves.

    If `reference`, the values of a healthy period, is given, every value is standardised on it first. Then the alarms
    are the same for brightness 0-1 and 0-255, and thresholds are in standard deviations. Without a reference, values
    pass unchanged, which is right for errors, 0 or 1. "ddm" takes only such errors, and "cusum" needs a reference.

    If labels exist, call `expect` with each prediction and `arrived` with each label. Labels may be late, in any order,
    or missing. If there are no labels, call `update` with the confidence, or with 1 if the prediction is a certain
    class and 0 otherwise. This detects a change in what the model answers, but not whether the answers are right.

    - `error`: a function of a prediction and its label that returns the error. By default it is 1 if they differ; for
      house prices use `lambda prediction, label: abs(prediction - label)`.
    - `max_waiting`: the most predictions that wait for their label. Beyond it the oldest is forgotten; `forgotten`
      counts them.

    `n` counts values. `alarms` lists the indices of the values that raised an alarm, in the order of arrival. Raises
    ValueError for an unknown detector, and for a reference that is empty, constant or not finite.

    >>> random = np.random.default_rng(0)
    >>> errors = np.concatenate([random.random(1000) < 0.05, random.random(1000) < 0.2])
    >>> monitor = ConceptDriftMonitor("adwin")
    >>> for error in errors:
    ...     if monitor.update(error).drift_detected:
    ...         print(monitor)
    <ConceptDriftMonitor ADWIN: 1120 values, 1 alarms>
    """

    def __init__(
        self,
        detector: str | Any = "adwin",
        *,
        reference: Sequence[float] | None = None,
        error: Callable[[Any, Any], float] = operator.ne,
        max_waiting: int = 10_000,
        **parameters: Any,
    ) -> None:
        self.max_waiting = int(number("max_waiting", max_waiting, 1, whole=True))
        if not callable(error):
            raise ValueError(f"error={shown(error)}: give a function of a prediction and its label")
        self._detector = _detector(detector, parameters)
        self._binary = _takes_errors_only(self._detector)
        if detector == "cusum" and reference is None:
            raise ValueError("cusum adds up standard deviations: give a reference, the values of a healthy period")
        if self._binary and reference is not None:
            raise ValueError(
                f"{type(self._detector).__name__} takes errors, 0 or 1, as they are: leave the reference out"
            )
        self._mean, self._deviation = (0.0, 1.0) if reference is None else _standard(reference)
        self._error = error
        self._waiting: dict[Hashable, Any] = {}
        self.n = self.forgotten = 0
        self.alarms: list[int] = []

    def update(self, x: float) -> "ConceptDriftMonitor":
        """Add the next value, and return the monitor.

        Raises ValueError for NaN, infinity, text, and for anything but 0 and 1 if the detector takes errors only. Then
        nothing changes.
        """
        value = finite((finite(x) - self._mean) / self._deviation)
        if self._binary and value not in (0, 1):
            raise ValueError(f"{x!r}: this detector takes errors, 0 or 1; adwin, page-hinkley and kswin take numbers")
        self._detector.update(value)
        if self.drift_detected:
            self.alarms.append(self.n)
        self.n += 1
        return self

    def expect(self, id: Hashable, prediction: Any) -> "ConceptDriftMonitor":
        """Keep a prediction until its label comes. Raises ValueError if this id waits already."""
        try:
            waits = id in self._waiting
        except TypeError:
            raise ValueError(f"id={shown(id)}: give a text or a number") from None
        if waits:
            raise ValueError(f"{id!r} waits for its label already: give each prediction its own id")
        self._waiting[id] = prediction
        if len(self._waiting) > self.max_waiting:
            del self._waiting[next(iter(self._waiting))]
            self.forgotten += 1
        return self

    def arrived(self, id: Hashable, label: Any) -> "ConceptDriftMonitor":
        """Add a label, and with it the error of its prediction.

        If labels arrive sooner for wrong answers than for right ones, the monitor reports drift that is not there.
        Raises `NotExpected` for a prediction that is unknown, labelled already or forgotten, and ValueError for a
        missing label. Then nothing changes.
        """
        if not isinstance(id, Hashable) or id not in self._waiting:
            raise NotExpected(
                f"{id!r}: not expected, labelled already, or older than the {self.max_waiting} that may wait"
            )
        if is_missing(label):
            raise ValueError(f"{id!r}: the label is missing; wait for one")
        self.update(self._error(self._waiting[id], label))
        del self._waiting[id]
        return self

    @property
    def waiting(self) -> int:
        """Return the number of predictions that have no label yet."""
        return len(self._waiting)

    @property
    def drift_detected(self) -> bool:
        """Return True if the last value raised the alarm."""
        return bool(self._detector.drift_detected)

    @property
    def warning_detected(self) -> bool:
        """Return True if the detector warned at the last value that an alarm may follow. Detectors without warnings
        return False.
        """
        return bool(getattr(self._detector, "warning_detected", False))

    def __repr__(self) -> str:
        name = type(self._detector).__name__
        return f"<ConceptDriftMonitor {name}: {self.n} values, {len(self.alarms)} alarms>"


def _detector(detector: str | Any, parameters: dict[str, Any]) -> Any:
    if not isinstance(detector, str):
        if isinstance(detector, type) or not (hasattr(detector, "update") and hasattr(detector, "drift_detected")):
            raise ValueError(f"{detector!r} is no detector: give a name, or an object with update and drift_detected")
        if parameters:
            raise ValueError(f"{', '.join(parameters)}: give these to the detector when you make it")
        return detector
    if detector == "cusum":
        return _made(Cusum, parameters)
    from river import drift

    kinds = {"adwin": drift.ADWIN, "page-hinkley": drift.PageHinkley, "kswin": drift.KSWIN, "ddm": drift.binary.DDM}
    if detector not in kinds:
        raise ValueError(f"no detector {detector!r}: there are {', '.join(kinds)} and cusum")
    return _made(kinds[detector], parameters)


def _made(kind: type, parameters: dict[str, Any]) -> Any:
    """Return a detector with these parameters. Raises ValueError for unknown parameters, and for NaN."""
    for name, value in parameters.items():
        if is_missing(value) and value is not None:
            raise ValueError(f"{name}={value}: give a number")
    try:
        return kind(**parameters)
    except TypeError as error:
        known = ", ".join(inspect.signature(kind).parameters)
        raise ValueError(f"{', '.join(parameters)}: {kind.__name__} takes {known} ({error})") from None


def _takes_errors_only(detector: Any) -> bool:
    base = sys.modules.get("river.base")  # loaded if the detector is river's
    return base is not None and isinstance(detector, base.BinaryDriftDetector)


def _standard(reference: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the standard deviation of the reference. Raises ValueError."""
    try:
        values = float_column("reference", reference)
    except ValueError as error:
        raise ValueError(f"the reference is no row of finite numbers: {error}") from None
    if not np.isfinite(values).all():
        raise ValueError("the reference is no row of finite numbers: leave out what is missing or infinite")
    if len(values) < 2:
        raise ValueError(f"{len(values)} reference values: give those of a healthy period, as many as there are")
    with np.errstate(over="ignore"):
        mean, deviation = (float(moment) for moment in (values.mean(dtype=float), values.std(ddof=1, dtype=float)))
    if (
        values.min() == values.max() or not 0 < deviation < math.inf
    ):  # what is constant may have a deviation by rounding
        raise ValueError("the reference is constant, or its numbers too large: there is no deviation to measure by")
    return mean, deviation
