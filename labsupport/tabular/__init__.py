"""Read columns of data from any container: pandas, polars, Arrow, NumPy, dicts, lists of rows.

>>> from labsupport import tabular
>>> tabular.table([{"age": 31}, {"age": 45}])
   age
0   31
1   45
"""

from labsupport.tabular import containers
from labsupport.tabular.columns import (
    CLASSES,
    FEW_VALUES,
    LARGEST,
    MIN_ROWS,
    DifferentColumns,
    Feature,
    check_rows,
    common_columns,
    feature,
    features,
    to_frame,
)
from labsupport.tabular.containers import TooFewRows, bool_column, codes_of, float_column, row_of, shape_of, table
from labsupport.tabular.values import NARROW, as_float, is_missing, narrowest, precision, rounded
from labsupport.tabular.windows import window

__all__ = [
    "CLASSES",
    "FEW_VALUES",
    "LARGEST",
    "MIN_ROWS",
    "NARROW",
    "DifferentColumns",
    "Feature",
    "TooFewRows",
    "as_float",
    "bool_column",
    "check_rows",
    "codes_of",
    "common_columns",
    "containers",
    "feature",
    "features",
    "float_column",
    "is_missing",
    "narrowest",
    "precision",
    "rounded",
    "row_of",
    "shape_of",
    "table",
    "to_frame",
    "window",
]
