"""What an alarm looks at: one number for a window of time, from the rows of the log or, in the same sense, from Prometheus.

Each measure picks the rows that it is about and a value for each of them; most are the mean of those values. Beside it
stands the same in PromQL, over what `metrics` counts, so that a rule means the same in a notebook and on a cluster.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

JOB = "labsupport"  # what the server is called in deploy/prometheus.yml
UNDECODABLE, UNAVAILABLE = 415, 503
DRIFTING = ("brightness", "contrast", "sharpness", "saturation", "n_detections", "max_confidence")
Columns = Mapping[str, np.ndarray]


class Reading(NamedTuple):
    """A measure of one window. `value` is None when there is nothing to measure; `rows` is what it was measured on."""

    value: float | None
    rows: int
    note: str = ""


def mean(values: np.ndarray, window: float) -> float:
    """Return the mean of the values (N,) of a window."""
    return float(values.mean())


@dataclass(frozen=True)
class Measure:
    """One number for a window.

    `values` makes, of columns as arrays of one length, an array (N,): what is summed up, NaN for rows that do not count.
    `summary` makes a number of the others and of the window in seconds; where no row counts, the number is `nothing`.
    `promql` is the same number in Prometheus and `counted` that of the rows, with WINDOW where the window belongs; both are
    empty for what only the log can tell. `unit` is "ratio", "s", "1/s" or, for a mere number, "". `pace` is the share of
    the window that must pass before it is worth computing again.

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

    def read(self, columns: Mapping[str, Sequence], window: float) -> Reading:
        """Of the rows of a window of so many seconds: columns as `PredictionLog.columns` gives them."""
        values = self.values({name: as_numbers(columns[name]) for name in self.columns})
        values = values[np.isfinite(values)]
        return Reading(self.summary(values, window) if len(values) else self.nothing, len(values))

    def text(self, value: float) -> str:
        """The value with its unit.

        >>> MEASURES["refused_ratio"].text(0.0512), MEASURES["latency_p95"].text(1.2345)
        ('5.12 %', '1.23 s')
        """
        return f"{100 * value:.3g} %" if self.unit == "ratio" else f"{value:.3g} {self.unit}".strip()


@dataclass(frozen=True)
class Drift(Measure):
    """How surprising the window is, beside a `reference` from a healthy period: the least p-value, corrected for the number
    of features (`drift.compare`), of those that changed much; 1 if none did. Much is a population stability index of 0.25:
    with many rows the smallest change is significant. Rows of one key (a user sends several pictures of one scene) are one
    group; rows without a key are taken to be independent. Nothing to measure without a reference, or with fewer than 20
    rows or keys.

    >>> from dataclasses import replace
    >>> random = np.random.default_rng(0)
    >>> def rows(brightness, count):
    ...     columns = {name: random.random(count) for name in DRIFTING}
    ...     return {**columns, "status": np.full(count, 200.0), "brightness": columns["brightness"] * brightness}
    >>> reading = replace(MEASURES["drift"], reference=rows(1, 2000)).read(rows(0.7, 200), window=60)
    >>> reading.value < 1e-5, reading.note
    (True, 'brightness')
    """

    reference: Mapping[str, Sequence] | None = None

    def read(self, columns: Mapping[str, Sequence], window: float) -> Reading:
        now, reference = self._rows(columns), self._rows(self.reference or dict.fromkeys(self.columns, ()))
        count, least = len(now["brightness"]), min(len(now["brightness"]), len(reference["brightness"]))
        return Reading(None, count) if least < 20 else _compared(reference, now, count)

    def _rows(self, columns: Mapping[str, Sequence]) -> dict[str, np.ndarray]:
        columns = {name: as_numbers(columns[name]) for name in self.columns if name in columns}
        return {name: columns[name][_looked_at(columns)] for name in (*DRIFTING, "key") if name in columns}


def _compared(reference: Columns, now: Columns, count: int) -> Reading:
    from labsupport import drift
    from labsupport.tabular import containers  # needs SciPy, which the server does without

    windows = [{name: rows[name] for name in DRIFTING} for rows in (reference, now)]
    try:
        report = drift.compare(*windows, multivariate=(), groups=[_users(rows) for rows in (reference, now)])
    except containers.TooFewRows:
        return Reading(None, count)
    much = report.to_frame().query("reading == 'large'")
    return Reading(float(much["p_adjusted"].min()) if len(much) else 1.0, count, ", ".join(much["feature"]))


def _users(rows: Columns) -> np.ndarray:
    """Whose row each is: a number for each key, and one of its own for each row without a key."""
    keys = rows.get("key", np.full(len(rows["brightness"]), np.nan))
    return np.where(np.isfinite(keys), keys, -1.0 - np.arange(len(keys)))


def as_numbers(column: Sequence) -> np.ndarray:
    """Return a column of numbers or bools as floats, NaN where there is no value.

    Of texts each gets a number of its own, the same in every column: so parts of a log can be put together.

    >>> first, second = as_numbers(["b", None, "a", "b"]), as_numbers(["b"])
    >>> bool(first[0] == first[3] == second[0]), bool(first[0] == first[2]), bool(np.isnan(first[1]))
    (True, False, True)
    """
    if isinstance(column, np.ndarray) and column.dtype == float:
        return column
    column = np.asarray(column, dtype=object)
    if not isinstance(next((value for value in column if value is not None), None), str):
        return column.astype(float)
    numbers = {
        text: float(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest()))
        for text in {*column} - {None}
    }
    return np.array([numbers.get(text, np.nan) for text in column])


def _looked_at(rows: Columns) -> np.ndarray:
    return rows["status"] == 200


def _failed(rows: Columns) -> np.ndarray:
    return (rows["status"] >= 500) & (rows["status"] != UNAVAILABLE)


def _of(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.where(rows, values, np.nan)


def _errors(rows: Columns) -> np.ndarray:
    return _of(_looked_at(rows) | _failed(rows), _failed(rows))


def _wrong(rows: Columns) -> np.ndarray:
    return _of(_looked_at(rows), rows["correct"] == 0)  # in the log a correction says that it was wrong, too


def _rate(metric: str, labels: str = "") -> str:
    return f'sum(rate({metric}{{job="{JOB}"{labels}}}[WINDOW]))'


def _share(part: str, whole: str) -> dict[str, str]:
    return {"promql": f"{part} / {whole}", "counted": whole.replace("rate(", "increase(")}


def _average(metric: str) -> dict[str, str]:
    return _share(_rate(f"{metric}_sum"), _rate(f"{metric}_count"))


def p95(values: np.ndarray, window: float) -> float:
    """Return the 95th percentile of the values (N,) of a window, interpolated linearly."""
    return float(np.percentile(values, 95))


def _per_second(values: np.ndarray, window: float) -> float:
    return len(values) / window


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
        **_share(FAILED, TRIED),
    ),
    Measure(
        *("refused_ratio", "uploads turned away with 503", "ratio", "software", ("status",)),
        lambda rows: rows["status"] == UNAVAILABLE,
        **_share(_rejected("unavailable"), UPLOADS),
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
        **_share(_rejected("not a picture"), UPLOADS),
    ),
    Measure(
        *("brightness_mean", "mean luma, 0 to 1", "", "input", ("brightness",)),
        lambda rows: rows["brightness"],
        **_average("input_image_brightness_ratio"),
    ),
    Measure(
        *("empty_ratio", "pictures in which nothing was found", "ratio", "output", ("status", "n_detections")),
        lambda rows: _of(_looked_at(rows), rows["n_detections"] == 0),
        **_share(_rate("predictions_empty_total"), ANSWERED),
    ),
    Measure(
        *("detections_mean", "objects found in a picture", "", "output", ("n_detections",)),
        lambda rows: rows["n_detections"],
        **_average("detections_per_picture"),
    ),
    Measure(
        *("confidence_mean", "of the surest object in a picture", "", "output", ("max_confidence",)),
        lambda rows: rows["max_confidence"],
        **_average("prediction_confidence_ratio"),
    ),
    Measure(
        *("wrong_ratio", "answers that users called wrong or corrected", "ratio", "user"),
        *(("status", "correct"), _wrong),
        **_share(_said("wrong|corrected"), ANSWERED),
    ),
    Measure(
        *("retry_ratio", "answers after which users asked again", "ratio", "user", ("status", "retry")),
        lambda rows: _of(_looked_at(rows), rows["retry"] == 1),
        **_share(_said("retry"), ANSWERED),
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
