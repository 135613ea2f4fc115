"""Convert single values. Detect missing ones. Find the smallest float type that holds them."""

import numbers
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np

from labsupport.arguments import shown

if TYPE_CHECKING:
    import pandas as pd


NARROW = (np.float16, np.float32)  # types with fewer digits than Python's floats


def is_missing(value: Any) -> bool:
    """Return whether a single value is missing: masked, None, NaN, NaT or `pandas.NA`.

    >>> [is_missing(value) for value in (None, float("nan"), np.ma.masked, np.datetime64("NaT"), 0, "")]
    [True, True, True, True, False, False]
    """
    if isinstance(value, Decimal):
        return value.is_nan()  # a signalling NaN cannot be compared
    if isinstance(value, numbers.Number | np.datetime64 | np.timedelta64):
        return bool(value != value)
    return value is None or value is np.ma.masked or type(value).__name__ in ("NAType", "NaTType")


def as_float(value: Any) -> float:
    """Return a real number of any kind as a float: int, bool, NumPy's, Decimal, Fraction. Raises ValueError for others.

    >>> as_float(Decimal("0.5"))
    0.5
    """
    if is_number(value):
        try:
            return float(value)
        except OverflowError:
            return np.inf if value > 0 else -np.inf
    raise ValueError(f"{shown(value)} is no number")


def is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real | Decimal | np.bool_) and not isinstance(value, np.timedelta64)


def precision(column: "pd.Series") -> type:
    """Return NumPy's type of float that holds a column's numbers: float16, float32, or float64 for everything else.

    >>> import pandas as pd
    >>> precision(pd.Series([0.1], dtype="Float32")).__name__, precision(pd.Series([1])).__name__
    ('float32', 'float64')
    """
    if column.dtype == object:
        return narrowest(map(type, column))
    return narrowest([getattr(_numpy_dtype(column), "type", None)])


def _numpy_dtype(column: "pd.Series") -> Any:
    """Return NumPy's dtype for the values of a column, or the dtype of pandas if NumPy has none."""
    import pandas as pd

    dtype = column.dtype.subtype if isinstance(column.dtype, pd.SparseDtype) else column.dtype
    dtype = dtype.categories.dtype if isinstance(dtype, pd.CategoricalDtype) else dtype
    return getattr(dtype, "numpy_dtype", dtype)


def narrowest(types: Any) -> type:
    """Return the type with the fewest digits: float16, float32 or float64. Any other type counts as float64."""
    types = set(types)
    return next((narrow for narrow in NARROW if narrow in types), np.float64)


def rounded(values: Any, kind: type) -> np.ndarray:
    """Return the values as float64, rounded to the digits of the narrower type `kind`."""
    exact: np.ndarray = np.asarray(values, float)
    if kind is np.float64:
        return exact
    with np.errstate(over="ignore"):
        return exact.astype(kind).astype(float)


def as_array(values: list[Any]) -> np.ndarray:
    """Return an array of numbers if a list holds only numbers. Otherwise return an array of unchanged objects."""
    kinds = set(map(type, values))
    if kinds & set(NARROW) and kinds <= {*NARROW, float, type(None), np.ma.core.MaskedConstant}:
        return np.array([np.nan if is_missing(value) else value for value in values], narrowest(kinds))
    if kinds <= {bool, np.bool_} or (
        kinds and all(issubclass(kind, int | float | np.number | np.bool_) for kind in kinds)
    ):
        return np.asarray(values)
    return np.fromiter((None if value is np.ma.masked else value for value in values), object, len(values))


def filled(array: np.ndarray) -> np.ndarray:
    """Return a masked array without its mask, with NaN or None in place of each masked value."""
    if not isinstance(array, np.ma.MaskedArray):
        return array
    gone = np.ma.getmaskarray(array)
    if not gone.any():
        return array.data
    filled = array.data.astype(array.dtype if array.dtype.kind == "f" else object)
    filled[gone] = np.nan if array.dtype.kind == "f" else None
    return filled


def is_unreadable(value: Any) -> bool:
    return value is np.ma.masked or (isinstance(value, Decimal) and value.is_snan())
