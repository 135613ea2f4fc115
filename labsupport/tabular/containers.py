"""Read data from users: tables, columns, rows and single values, in any container.

A value that is masked, None, NaN, NaT or `pandas.NA` is missing, in every container. pandas is loaded for tables only.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from labsupport.arguments import shown
from labsupport.tabular.values import (
    NARROW,
    _numpy_dtype,
    as_array,
    as_float,
    filled,
    is_missing,
    is_number,
    is_unreadable,
    precision,
)

if TYPE_CHECKING:
    import pandas as pd

TABLES = "give a frame, a dict of columns, a list of rows or an array, (N,) or (N, D)"


class TooFewRows(ValueError):
    """A window holds too few rows, or too few groups, to be compared."""


def table(data: Any, name: str = "data") -> "pd.DataFrame":
    """Return the data as a pandas frame. Column names stay as they are.

    `data` is a frame or a series (pandas, polars, pyarrow), a dict of columns, an array (N,) or (N, D), masked, structured
    or sparse, or a list of values or of rows. `name` is the name of the data in messages. Raises ValueError for
    anything else, for columns of different lengths, and for two columns of one name.

    >>> table({"size": np.ma.array([90, -9999], mask=[False, True])})["size"].tolist()
    [90, None]
    """
    try:
        return _without_masked(_frame(data, name), name)
    except UnicodeEncodeError as error:  # from Arrow, in which pandas stores texts
        raise ValueError(f"{name}: {shown(error.object)}: give text without half a surrogate pair") from None


def _frame(data: Any, name: str) -> "pd.DataFrame":
    import pandas as pd

    data = _to_pandas(data, name)
    if isinstance(data, pd.Series):
        data = data.to_frame("0" if data.name is None else data.name)
    elif isinstance(data, pd.Index):
        data = data.to_frame(index=False)
    elif isinstance(data, pd.api.extensions.ExtensionArray):
        data = pd.DataFrame({0: data})
    elif isinstance(data, Mapping):
        data = _from_columns(data, name)
    elif isinstance(data, list | tuple | deque | range):
        data = _from_rows(list(data), name)
    elif not isinstance(data, pd.DataFrame):
        data = _from_array(data, name)
    names = pd.Index([str(column) for column in data.columns])
    if not names.is_unique:
        raise ValueError(f"{name}: two columns of one name: {names[names.duplicated()].tolist()}")
    return data


def _to_pandas(data: Any, name: str) -> Any:
    """Convert data of polars, pyarrow and others to pandas. Return anything else unchanged. Raises ValueError."""
    try:
        return data.to_pandas() if hasattr(data, "to_pandas") else data
    except Exception as error:  # each library has its own errors
        raise ValueError(f"{name}: pandas cannot hold what is in this {type(data).__name__}: {error}") from None


def float_column(name: str, data: Any) -> np.ndarray:
    """Return one column of numbers as an array of floats, (N,), NaN where a value is missing.

    float16 and float32 keep their type, because a comparison needs to know how many digits they hold. Raises ValueError,
    which starts with `name`, for texts, times and complex numbers, and for more than one column.

    >>> float_column("confidences", [1, None, True])
    array([ 1., nan,  1.])
    """
    values = _values(name, data)
    if values.dtype.kind in "biuf":
        return values if values.dtype.type in NARROW else values.astype(float)
    floats = np.full(len(values), np.nan)
    for place, value in enumerate(values):
        if not is_missing(value):
            try:
                floats[place] = as_float(value)
            except ValueError:
                raise ValueError(f"{name}: {shown(value)} is no number") from None
    return floats


def bool_column(name: str, data: Any) -> np.ndarray:
    """Return one column of truth values as an array of bool, (N,). 0 and 1 also count as truth values.

    Raises ValueError, which starts with `name`, for missing and for all other values.

    >>> bool_column("labels", [1, 0.0, True])
    array([ True, False,  True])
    """
    values = _values(name, data)
    if values.dtype == bool:
        return values
    for value in values if values.dtype.kind not in "biuf" else values[(values != 0) & (values != 1)][:1]:
        if is_missing(value) or not is_number(value) or value not in (0, 1):
            raise ValueError(
                f"{name}: {'a value is missing' if is_missing(value) else shown(value)}: give True or False"
            )
    return values.astype(bool)


def shape_of(data: Any) -> tuple[int, ...]:
    """Return the shape of any data, as `numpy.shape` does: () if it has none, (N,) for rows that differ in length.

    >>> shape_of([1.0, np.ma.masked]), shape_of([[1, 2], [3]]), shape_of(None)
    ((2,), (2,), ())
    """
    if isinstance(data, list | tuple) and any(value is np.ma.masked for value in data):
        return (len(data),)
    try:
        return np.shape(data)
    except ValueError:
        return (len(data),)


def codes_of(groups: "pd.Series") -> np.ndarray:
    """Return the number of each row's group, 0, 1, ... No label may be missing. Raises ValueError for invalid labels."""
    try:
        codes: np.ndarray = groups.factorize()[0]
    except TypeError:
        raise ValueError(f"groups: {shown(groups.iloc[0])} is no label: give texts or numbers") from None
    return codes


def row_of(row: Any) -> dict[Any, Any] | list[Any]:
    """Return a row as a dict if its values have names, else as a list. A single value is a row of one value.

    A row is a mapping, a pandas Series, a frame of one row, a record of a structured array, a namedtuple, or a sequence.

    >>> import pandas as pd
    >>> row_of(next(pd.DataFrame({"size": [90.0], "rooms": [3.0]}).iterrows())[1])
    {'size': 90.0, 'rooms': 3.0}
    """
    if type(row) is list:
        return row
    if type(row) in (float, int, str, bool):
        return [row]
    row = _to_pandas(row, "row")
    if hasattr(row, "iloc") and getattr(row, "ndim", 0) == 2 and len(row) == 1:
        return {column: row[column].iloc[0] for column in row.columns}
    if isinstance(row, Mapping) or hasattr(row, "iloc"):
        return dict(row.items())
    if names := getattr(getattr(row, "dtype", None), "names", None):
        return {name: row[name] for name in names}
    if isinstance(row, tuple) and hasattr(row, "_asdict"):
        return dict(row._asdict())
    if isinstance(row, np.ndarray) and row.ndim:
        return list(row[0] if row.ndim == 2 and len(row) == 1 else row)
    return list(row) if isinstance(row, Sequence | deque) and not isinstance(row, str | bytes) else [row]


def _values(name: str, data: Any) -> np.ndarray:
    """Return one column, (N,), in its dtype or as objects, with None or NaN where a value is missing."""
    if isinstance(data, list | tuple | deque | range):
        values = as_array(list(data))
    elif isinstance(data, np.ndarray):
        values = data
    else:
        frame = table(data, name)
        if len(frame.columns) != 1:
            raise ValueError(f"{name}: one column of values is needed, not {len(frame.columns)}")
        return _series_values(frame.iloc[:, 0])
    if values.ndim != 1 or values.dtype.names:
        raise ValueError(f"{name} of shape {values.shape}: give one column of values, (N,)")
    return filled(values)


def _series_values(column: "pd.Series") -> np.ndarray:
    dtype = _numpy_dtype(column)
    values: np.ndarray
    if getattr(dtype, "kind", "O") not in "biuf":
        values = column.to_numpy(object)
    elif not column.isna().any():
        values = column.to_numpy(dtype)
    else:
        values = column.to_numpy(precision(column), na_value=np.nan)
    return values


def _from_columns(columns: Mapping[Any, Any], name: str) -> "pd.DataFrame":
    import pandas as pd

    columns = {key: _column(key, column, name) for key, column in columns.items()}
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{name}: columns of different lengths: {lengths}")
    return pd.DataFrame(columns)


def _column(key: Any, column: Any, name: str) -> "pd.Series":
    import pandas as pd

    column = _to_pandas(column, name)
    if isinstance(column, list | tuple | deque | range):
        column = as_array(list(column))
    elif isinstance(column, str | bytes) or not np.ndim(column):
        raise ValueError(f"{name}: {key}: a column of values is needed, not a single {type(column).__name__}")
    if isinstance(column, np.ndarray):
        column = filled(column[:, 0] if column.ndim == 2 and column.shape[1] == 1 else column)
    if np.ndim(column) != 1 or (getattr(column, "dtype", None) is not None and getattr(column.dtype, "names", None)):
        raise ValueError(f"{name}: {key}: one column of values is needed, not an array of shape {np.shape(column)}")
    return pd.Series(column).reset_index(drop=True)


def _from_rows(rows: list[Any], name: str) -> "pd.DataFrame":
    """Return the frame of a list of values or of rows. Mappings give names to columns, sequences give numbers."""
    import pandas as pd

    if not rows or not all(_is_row(row) for row in rows):
        return pd.DataFrame({0: _column(0, rows, name)})
    rows = [row_of(row) for row in rows]
    if all(isinstance(row, dict) for row in rows):
        names = list(dict.fromkeys(key for row in rows for key in row))
        return _from_columns({key: [row.get(key) for row in rows] for key in names}, name).reindex(range(len(rows)))
    if len(widths := sorted({len(row) for row in rows})) > 1 or any(isinstance(row, dict) for row in rows):
        raise ValueError(f"{name}: rows of different lengths or kinds ({', '.join(map(str, widths))} values): {TABLES}")
    columns = {place: [row[place] for row in rows] for place in range(widths[0])}
    return _from_columns(columns, name).reindex(range(len(rows)))


def _is_row(value: Any) -> bool:
    """Return whether an item of a list is a row of several values, and not a single value."""
    if isinstance(value, str | bytes):
        return False
    names = getattr(getattr(value, "dtype", None), "names", None)
    return isinstance(value, Mapping | Sequence | deque) or bool(names) or bool(getattr(value, "ndim", 0))


def _from_array(data: Any, name: str) -> "pd.DataFrame":
    import pandas as pd

    if isinstance(data, str | bytes) or not (hasattr(data, "__array__") or hasattr(data, "toarray")):
        raise ValueError(f"{name}: {TABLES}, not {type(data).__name__}")
    try:
        array = (
            data if isinstance(data, np.ndarray) else np.asarray(data.toarray() if hasattr(data, "toarray") else data)
        )
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{name}: {TABLES}; this {type(data).__name__} cannot be read: {error}") from None
    if array.dtype.names and array.ndim == 1:
        return _from_columns({field: array[field] for field in array.dtype.names}, name)
    if array.ndim not in (1, 2):
        what = f"an array of shape {array.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise ValueError(f"{name}: {TABLES}, not {what}")
    array = array[:, np.newaxis] if array.ndim == 1 else array
    if isinstance(array, np.ma.MaskedArray):
        columns = {place: filled(array[:, place]) for place in range(array.shape[1])}
        return pd.DataFrame(columns, index=range(len(array)))
    return pd.DataFrame(array)


def _without_masked(frame: "pd.DataFrame", name: str) -> "pd.DataFrame":
    """Return the frame with None in place of NumPy's masked constant, and of a NaN that pandas cannot read.

    Raises ValueError for a column of raw bytes.
    """
    for column, dtype in zip(frame.columns, frame.dtypes, strict=True):
        if isinstance(dtype, np.dtype) and dtype.kind == "V":
            raise ValueError(
                f"{name}: {column}: {dtype} are bytes of no known meaning: give numbers, texts or truth values"
            )
    for column in frame.columns[[isinstance(dtype, np.dtype) and dtype.hasobject for dtype in frame.dtypes]]:
        if any(map(is_unreadable, frame[column])):
            frame = frame.copy()
            frame[column] = frame[column].map(lambda value: None if is_unreadable(value) else value)
    return frame
