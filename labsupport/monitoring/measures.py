"""Each measure is one number for a time window.

It has a Python form, computed from log rows, and a PromQL form, which uses the metrics of `counters`. A measure selects
rows and takes one value from each; most are the mean of these values. Both forms give the same value, with two exceptions:
of several remarks on one answer, Prometheus counts each verdict once, and the log counts the last remark. And Prometheus
counts all uploads, but an upload that was refused before a model got it (too large, bad parameters) is not in the log.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

JOB = "labsupport"  # what the server is called in deploy/prometheus.yml
UNDECODABLE, UNAVAILABLE = 415, 503
DRIFTING = ("brightness", "contrast", "sharpness", "saturation", "n_detections", "max_confidence")
Column = Sequence[Any] | np.ndarray
Columns = Mapping[str, np.ndarray]


class Reading(NamedTuple):
    """The value of a measure for one window. `value` is None if there is nothing to measure; `rows` counts the rows used."""

    value: float | None
    rows: int
    note: str = ""


def mean(values: np.ndarray, window: float) -> float:
    """Return the mean of the values (N,) of a window."""
    return float(values.mean())


@dataclass(frozen=True)
class Measure:
    """A measure: one number for a time window.

    - `values`: a function of columns (arrays of one length) that returns an array (N,), with NaN for rows that do not
      count.
    - `summary`: a function of the other values and of the window in seconds that returns the number.
    - `nothing`: the number if no row counts.
    - `promql`: the same number in PromQL, with WINDOW in place of the window; empty if only the log has it.
    - `counted`: the number of rows in PromQL; empty if only the log has it.
    - `unit`: "ratio", "s", "1/s", or "" for a plain number.
    - `pace`: the share of the window that must pass before the measure is computed again.

    >>> MEASURES["brightness_mean"].read({"brightness": [0.2, None, 0.4]}, window=60)
    Reading(value=0.30000000000000004, rows=2, note='')
    >>> MEASURES["latency_p95"].read({"status": [], "latency": []}, window=60)
    Reading(value=None, rows=0, note='')
    """

    name: str
    about: str
    unit: str
    group: str  # software, input, output, user or drift: a dashboard's rows
    columns: tuple[str, ...]
    values: Callable[[Columns], np.ndarray]
    promql: str
    counted: str
    summary: Callable[[np.ndarray, float], float] = mean
    nothing: float | None = None
    pace: float = 0.0

    def read(self, columns: Mapping[str, Column], window: float) -> Reading:
        """Return the reading of a window of so many seconds. `columns` are its rows, as `PredictionLog.columns` returns
        them.
        """
        values = self.values({name: as_numbers(columns[name]) for name in self.columns})
        values = values[np.isfinite(values)]
        return Reading(self.summary(values, window) if len(values) else self.nothing, len(values))

    def text(self, value: float) -> str:
        """Return the value with its unit.

        >>> MEASURES["refused_ratio"].text(0.0512), MEASURES["latency_p95"].text(1.2345)
        ('5.12 %', '1.23 s')
        """
        return f"{rounded(100 * value)} %" if self.unit == "ratio" else f"{rounded(value)} {self.unit}".strip()


def rounded(value: float) -> str:
    """Return three digits of a number, without an exponent below a million.

    >>> rounded(0.012345), rounded(1088.6), rounded(0.00001)
    ('0.0123', '1,090', '1e-05')
    """
    return f"{float(f'{value:.3g}'):,g}"


@dataclass(frozen=True)
class Drift(Measure):
    """The smallest p-value of the features that changed much, compared with a `reference` from a healthy period.

    The p-value is corrected for the number of features (`drift.compare`). A feature changed much if its population
    stability index exceeds its mean without drift by 0.25, or if its share of missing values changed by 0.25. Without
    this, the smallest change would be significant with many rows. If no feature changed much, the value is 1. Rows of one
    key (a user sends several pictures of one scene) are one group; rows without a key are assumed to be independent. There
    is nothing to measure without a reference, or with fewer than 20 rows or keys.

    >>> from dataclasses import replace
    >>> random = np.random.default_rng(0)
    >>> def rows(brightness, count):
    ...     columns = {name: random.random(count) for name in DRIFTING}
    ...     return {**columns, "status": np.full(count, 200.0), "brightness": columns["brightness"] * brightness}
    >>> reading = replace(MEASURES["drift"], reference=rows(1, 2000)).read(rows(0.7, 200), window=60)
    >>> reading.value < 1e-5, reading.note
    (True, 'brightness')
    """

    reference: Mapping[str, Column] | None = None

    def read(self, columns: Mapping[str, Column], window: float) -> Reading:
        now, reference = self._rows(columns), self._rows(self.reference or dict.fromkeys(self.columns, ()))
        count, least = len(now["brightness"]), min(len(now["brightness"]), len(reference["brightness"]))
        return Reading(None, count) if least < 20 else _compared(reference, now, count)

    def _rows(self, columns: Mapping[str, Column]) -> dict[str, np.ndarray]:
        numbers = {name: as_numbers(columns[name]) for name in self.columns if name in columns}
        return {name: numbers[name][_looked_at(numbers)] for name in (*DRIFTING, "key") if name in numbers}


def _compared(reference: Columns, now: Columns, count: int) -> Reading:
    from labsupport import drift
    from labsupport.tabular import containers  # needs SciPy, which the server does without

    before, after = ({name: rows[name] for name in DRIFTING} for rows in (reference, now))
    try:
        report = drift.compare(before, after, multivariate=(), groups=[_users(rows) for rows in (reference, now)])
    except containers.TooFewRows:
        return Reading(None, count)
    much = {row["feature"]: row for row in report.found if row["drifted"] and _size(row) >= LARGE}
    names = sorted(much, key=lambda name: -_size(much[name]))
    return Reading(min((float(row["p_adjusted"]) for row in much.values()), default=1.0), count, ", ".join(names))


def _size(row: Mapping[str, Any]) -> float:
    """Return the larger change of a feature: PSI less its mean without drift, or the change of the share that is missing."""
    missing = abs(row["missing_current"] - row["missing_reference"])
    return max(float(missing), float(np.nan_to_num(row["effect"] - row.get("noise", 0.0))))


def _users(rows: Columns) -> np.ndarray:
    """Return a number for the user of each row: one for each key, and a new one for each row without a key."""
    keys = rows.get("key", np.full(len(rows["brightness"]), np.nan))
    return np.where(np.isfinite(keys), keys, -1.0 - np.arange(len(keys)))


def as_numbers(column: Column) -> np.ndarray:
    """Return a column of numbers or bools as floats, with NaN for missing values.

    Each text gets its own number, which is the same in every column, so that parts of a log can be joined.

    >>> first, second = as_numbers(["b", None, "a", "b"]), as_numbers(["b"])
    >>> bool(first[0] == first[3] == second[0]), bool(first[0] == first[2]), bool(np.isnan(first[1]))
    (True, False, True)
    """
    if isinstance(column, np.ndarray) and column.dtype == float:
        return column
    values = np.asarray(column, dtype=object)
    if not isinstance(next((value for value in values if value is not None), None), str):
        return values.astype(float)
    numbers = {
        text: float(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest()))
        for text in {*values} - {None}
    }
    return np.array([numbers.get(text, np.nan) for text in values])


def _looked_at(rows: Columns) -> np.ndarray:
    answered: np.ndarray = rows["status"] == 200
    return answered


def _failed(rows: Columns) -> np.ndarray:
    failed: np.ndarray = (rows["status"] >= 500) & (rows["status"] != UNAVAILABLE)
    return failed


def _of(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.where(rows, values, np.nan)


def _errors(rows: Columns) -> np.ndarray:
    return _of(_looked_at(rows) | _failed(rows), _failed(rows))


def _wrong(rows: Columns) -> np.ndarray:
    return _of(_looked_at(rows), rows["correct"] == 0)  # in the log a correction says that it was wrong, too


def _rate(metric: str, labels: str = "") -> str:
    return f'sum(rate({metric}{{job="{JOB}"{labels}}}[WINDOW]))'


def _share(part: str, whole: str) -> tuple[str, str]:
    """Return `promql` and `counted` of a measure that is a quotient of two rates."""
    return f"{part} / {whole}", whole.replace("rate(", "increase(")


def _average(metric: str) -> tuple[str, str]:
    return _share(_rate(f"{metric}_sum"), _rate(f"{metric}_count"))


def p95(values: np.ndarray, window: float) -> float:
    """Return the 95th percentile of the values (N,) of a window, interpolated linearly."""
    return float(np.percentile(values, 95))


def _per_second(values: np.ndarray, window: float) -> float:
    return len(values) / window


LARGE = 0.25  # a change from here on is large: of PSI beyond its mean without drift, or of the share of missing values
ANSWERED = _rate("predictions_total")
FAILED = _rate("prediction_errors_total")
TRIED = f"({ANSWERED} + {FAILED})"
UPLOADS = f"({ANSWERED} + {FAILED} + {_rate('input_rejected_total')})"
LATENCY = f'histogram_quantile(0.95, sum by (le) (rate(inference_duration_seconds_bucket{{job="{JOB}"}}[WINDOW])))'


def _rejected(reason: str) -> str:
    return _rate("input_rejected_total", f', reason="{reason}"')


def _said(verdicts: str) -> str:
    return _rate("feedback_total", f', verdict=~"{verdicts}"')


_every = (
    Measure(
        *("error_ratio", "pictures on which the model failed", "ratio", "software", ("status",), _errors),
        *_share(FAILED, TRIED),
    ),
    Measure(
        *("refused_ratio", "uploads turned away with 503", "ratio", "software", ("status",)),
        lambda rows: rows["status"] == UNAVAILABLE,
        *_share(_rejected("unavailable"), UPLOADS),
    ),
    Measure(
        *("latency_p95", "decoding and detecting, without the wait in the queue", "s", "software"),
        *(("status", "latency"), lambda rows: _of(_looked_at(rows), rows["latency"])),
        promql=LATENCY,
        counted=_rate("inference_duration_seconds_count").replace("rate(", "increase("),
        summary=p95,
    ),
    Measure(
        *("requests_per_second", "uploads, refused ones too", "1/s", "software", ("status",)),
        lambda rows: np.zeros(len(rows["status"])),
        promql=UPLOADS,
        counted=UPLOADS.replace("rate(", "increase("),
        summary=_per_second,
        nothing=0.0,
    ),
    Measure(
        *("undecodable_ratio", "uploads that are no JPEG or PNG", "ratio", "input", ("status",)),
        lambda rows: rows["status"] == UNDECODABLE,
        *_share(_rejected("not a picture"), UPLOADS),
    ),
    Measure(
        *("brightness_mean", "mean luma, 0 to 1", "", "input", ("brightness",)),
        lambda rows: rows["brightness"],
        *_average("input_image_brightness_ratio"),
    ),
    Measure(
        *("empty_ratio", "pictures in which nothing was found", "ratio", "output", ("status", "n_detections")),
        lambda rows: _of(_looked_at(rows) & np.isfinite(rows["n_detections"]), rows["n_detections"] == 0),
        *_share(_rate("predictions_empty_total"), ANSWERED),
    ),
    Measure(
        *("detections_mean", "objects found in a picture", "", "output", ("n_detections",)),
        lambda rows: rows["n_detections"],
        *_average("detections_per_picture"),
    ),
    Measure(
        *("confidence_mean", "of the surest object in a picture", "", "output", ("max_confidence",)),
        lambda rows: rows["max_confidence"],
        *_average("prediction_confidence_ratio"),
    ),
    Measure(
        *("wrong_ratio", "answers that users called wrong or corrected", "ratio", "user"),
        *(("status", "correct"), _wrong),
        *_share(_said("wrong|corrected"), ANSWERED),
    ),
    Measure(
        *("retry_ratio", "answers after which users asked again", "ratio", "user", ("status", "retry")),
        lambda rows: _of(_looked_at(rows), rows["retry"] == 1),
        *_share(_said("retry"), ANSWERED),
    ),
    Drift(
        *("drift", "p-value of the window's pictures and answers beside the reference", "", "drift"),
        *(("status", "key", *DRIFTING), _looked_at),
        promql="",
        counted="",
        pace=0.5,
    ),
)
MEASURES = {measure.name: measure for measure in _every}
