"""Classify the columns of two windows of data: numeric, discrete, category, boolean or text."""

import numbers
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np

from labsupport.tabular.containers import TooFewRows, table
from labsupport.tabular.values import NARROW, narrowest, precision, rounded

if TYPE_CHECKING:
    import pandas as pd

MIN_ROWS = 20  # in each window: with fewer rows, the tests can only find huge changes
FEW_VALUES = 20  # numbers with at most as many distinct values are counted like classes
TEXT_SHARE = 0.5  # if more than this share of the texts are distinct, compare their lengths and not their classes
CLASSES = 20  # the number of most frequent classes that effect sizes and plots distinguish
CHUNK = 100_000  # rows that are looked at together
LARGEST = 1e150  # squares of larger numbers overflow, so these count as infinite


class DifferentColumns(ValueError):
    """The two windows do not have the same columns."""


@dataclass(frozen=True)
class Feature:
    """Hold one column of both windows: its known values in the order of the rows, and the rows where it is missing.

    `kind`: "numeric", "discrete" (numbers of few distinct values), "category", "boolean", "text" (the values are lengths),
    or "none" if it cannot be compared; then `note` gives the reason. Values are numbers, or codes into `labels`.
    """

    name: str
    kind: str
    reference: np.ndarray
    current: np.ndarray
    missing: tuple[np.ndarray, np.ndarray]
    labels: Sequence[Any] = ()
    note: str = ""
    changed: bool = False  # its type differs between the windows

    @property
    def missing_shares(self) -> tuple[float, float]:
        reference, current = self.missing
        return float(reference.mean()), float(current.mean())

    @property
    def counted(self) -> bool:
        """Return whether its values are counted as classes: classes, or numbers with few distinct values."""
        return len(self.labels) > 0

    def values_at(self, reference: np.ndarray, current: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the values in these rows of both windows as floats, NaN if they are missing."""
        before, now = self.missing
        return _at(self.reference, before, reference), _at(self.current, now, current)


def _at(known: np.ndarray, gone: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the values of these rows, NaN if they are missing, from the known ones."""
    place = rows
    if gone.any():
        place = (np.cumsum(~gone) - 1)[rows]
    values: np.ndarray = known[place].astype(float) if len(known) else np.full(len(rows), np.nan)
    values[gone[rows]] = np.nan
    return values


def to_frame(data: Any, name: str = "data") -> "pd.DataFrame":
    """Return data that `containers.table` can read as a pandas frame whose column names are texts.

    `name` is the name of the data in messages. Raises ValueError as `containers.table` does.

    >>> to_frame([[90, 3], [105, 4]]).columns.tolist()
    ['0', '1']
    """
    frame = table(data, name)
    return frame.set_axis([str(column) for column in frame.columns], axis=1)


def features(reference: "pd.DataFrame", current: "pd.DataFrame") -> list[Feature]:
    """Return the features of both windows, in the reference's order. Raises `TooFewRows` and `DifferentColumns`.

    >>> import pandas as pd
    >>> [found.kind for found in features(*[pd.DataFrame({"a": np.arange(30.0), "b": list("xyz") * 10})] * 2)]
    ['numeric', 'category']
    """
    return [feature(name, reference[name], current[name]) for name in common_columns(reference, current)]


def common_columns(reference: Any, current: Any) -> list[str]:
    """Return the names of the columns of both windows, in the reference's order. Raises as `features` does."""
    check_rows(reference, current)
    if gone := [name for name in reference if name not in current.columns]:
        raise DifferentColumns(f"the current window has no {', '.join(gone)}: compare the columns that both have")
    if new := [name for name in current if name not in reference.columns]:
        raise DifferentColumns(f"the reference has no {', '.join(new)}: compare the columns that both have")
    if not len(reference.columns):
        raise DifferentColumns("there is no column to compare")
    return list(reference)


def check_rows(reference: Any, current: Any) -> None:
    """Raise `TooFewRows` if a window has fewer than `MIN_ROWS` rows."""
    for name, rows in (("reference", len(reference)), ("current", len(current))):
        if rows < MIN_ROWS:
            raise TooFewRows(
                f"the {name} window has {rows} rows: at least {MIN_ROWS} are needed, so collect more of them"
            )


def feature(name: str, reference: Any, current: Any) -> Feature:
    """Return one column of both windows, each a series or an array of numbers, as a feature.

    >>> feature("rooms", np.array([2.0, 3.0]), np.array([3, 3])).kind
    'discrete'
    """
    if found := _plain(name, reference, current):
        return found
    import pandas as pd

    reference, current = pd.Series(reference), pd.Series(current)
    reference, current = _alike(reference, current), _alike(current, reference)
    kinds = [kind for kind in (_kind(reference), _kind(current)) if kind != "empty"]
    missing = reference.isna().to_numpy(bool), current.isna().to_numpy(bool)
    nothing = Feature(name, "none", np.array([]), np.array([]), missing)
    if not kinds:
        return replace(nothing, note="all missing in both windows")
    if set(kinds) == {"category", "text"}:  # the same classes, in two containers
        kinds = ["category"]
    if len(set(kinds)) > 1:
        return replace(nothing, note=f"was {kinds[0]}, is {kinds[1]}", changed=True)
    if kinds[0] in ("time", "mixed"):
        unknown = "neither numbers nor classes nor texts, or several of these"
        return replace(nothing, note="times are not compared" if kinds[0] == "time" else unknown)
    if kinds[0] != "numeric":
        return _classes(name, kinds[0], reference, current, missing)
    held = narrowest([precision(reference), precision(current)])  # 9.99 as float32 is another number than as float64
    try:
        return _numbers(name, rounded(_floats(reference), held), rounded(_floats(current), held))
    except OverflowError:
        return replace(nothing, note="whole numbers too large for floating point")


def _plain(name: str, reference: Any, current: Any) -> Feature | None:
    """Return the feature of two columns that NumPy holds as numbers; None for others, and for columns without any value.

    This gives what `feature` gives for them, without looking at what they hold.
    """
    both = reference, current
    if not all(isinstance(column.dtype, np.dtype) and column.dtype.kind in "iuf" for column in both):
        return None
    held = narrowest(column.dtype.type for column in both)
    windows = [rounded(column, held) for column in both]
    return None if any(np.isnan(values).all() for values in windows) else _numbers(name, windows[0], windows[1])


def _alike(column: "pd.Series", other: "pd.Series") -> "pd.Series":
    """Return the column without differences that come only from its container, such as classes for numbers."""
    import pandas as pd

    if column.isna().all():
        return pd.Series(np.full(len(column), np.nan))
    if str(column.dtype).startswith("dictionary<"):  # Arrow's classes
        return column.astype(object).astype("category")
    if isinstance(column.dtype, pd.CategoricalDtype) and not isinstance(other.dtype, pd.CategoricalDtype):
        held = column.cat.categories.dtype
        return column if _kind(other) in ("text", "empty") else column.astype(held if held.kind == "f" else object)
    return column


def _floats(column: "pd.Series") -> np.ndarray:
    values: np.ndarray = column.to_numpy(float, na_value=np.nan)
    return values


def _kind(column: "pd.Series") -> str:
    """Return "numeric", "boolean", "category", "text", "time", "mixed", or "empty"."""
    import pandas as pd

    column = column.dropna()
    if column.empty:
        return "empty"
    if isinstance(column.dtype, pd.CategoricalDtype):
        return "category"
    inferred: str = pd.api.types.infer_dtype(column)
    if inferred in ("integer", "floating", "mixed-integer-float", "decimal"):
        return "numeric"
    if inferred.startswith(("datetime", "date", "time", "period")):
        return "time"
    if inferred == "mixed" and all(isinstance(value, numbers.Real | Decimal | np.bool_) for value in column):
        return "numeric"
    return {"string": "text", "boolean": "boolean"}.get(inferred, "mixed")


def _numbers(name: str, reference: np.ndarray, current: np.ndarray) -> Feature:
    """Return the feature of a column of numbers. Infinite values count as missing, because distances to them are unknown."""
    missing = _unusable(reference), _unusable(current)
    windows = list(zip((reference, current), missing, strict=True))
    infinite = sum(int((gone & ~np.isnan(column)).sum()) for column, gone in windows if gone.any())
    before, now = (column[~gone] if gone.any() else column for column, gone in windows)
    note = f"{infinite} infinite values count as missing" if infinite else ""
    return _few(Feature(name, "numeric", before, now, missing, note=note), "discrete")


def _unusable(values: np.ndarray) -> np.ndarray:
    """Return truth values, (N,): is the number missing, or too large to be squared?"""
    if len(values) and values.min() >= -LARGEST and values.max() <= LARGEST:  # False if one is NaN
        return np.zeros(len(values), bool)
    unusable: np.ndarray = ~(np.abs(values) <= LARGEST)
    return unusable


def _few(feature: Feature, kind: str) -> Feature:
    """Return the feature as codes, and of this kind, if its numbers have few distinct values. Else return it unchanged."""
    windows = (feature.reference, feature.current)
    distinct = np.unique(np.concatenate([column[:1000] for column in windows]))  # 1,000 rows decide it for most columns
    for column in windows:
        for start in range(0, len(column), CHUNK):
            if len(distinct) > FEW_VALUES:
                return feature
            chunk = column[start : start + CHUNK]
            place = np.minimum(np.searchsorted(distinct, chunk), len(distinct) - 1)
            distinct = np.union1d(distinct, chunk[distinct[place] != chunk])
    if len(distinct) > FEW_VALUES:
        return feature
    codes = [np.searchsorted(distinct, column) for column in windows]
    return replace(feature, kind=kind, reference=codes[0], current=codes[1], labels=distinct.tolist())


def _classes(
    name: str, kind: str, reference: "pd.Series", current: "pd.Series", missing: tuple[np.ndarray, np.ndarray]
) -> Feature:
    """Return the feature of classes, truth values or texts. Texts that hardly repeat become lengths in characters."""
    import pandas as pd

    windows = [column[~gone] for column, gone in zip((reference, current), missing, strict=True)]
    if reference.dtype != current.dtype:
        windows = [column.astype(object) for column in windows]
        if (held := narrowest([precision(reference), precision(current)])) in NARROW:  # as for numbers, see above
            windows = [
                column.map(lambda label: held(label) if isinstance(label, float) else label) for column in windows
            ]
    codes, labels = pd.concat(windows, ignore_index=True).factorize()
    if kind == "text" and len(labels) > max(FEW_VALUES, TEXT_SHARE * max(map(len, windows))):
        lengths = [column.str.len().to_numpy(float) for column in windows]
        return _few(Feature(name, "text", lengths[0], lengths[1], missing, note="the lengths of the texts"), "text")
    order = np.argsort(-np.bincount(codes, minlength=len(labels)), kind="stable")  # the most frequent first
    rank = np.empty(len(labels), int)
    rank[order] = np.arange(len(labels))
    before, now = np.split(rank[codes], [len(windows[0])])
    kind = "boolean" if kind == "boolean" else "category"
    return Feature(name, kind, before, now, missing, [labels[i] for i in order])
