"""Give the columns of a window of data one at a time.

A Parquet file then never has to be in memory as a whole, and arrays of numbers never become a frame of pandas, which takes
longer to load than a small comparison.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labsupport.extras import imported
from labsupport.tabular.columns import to_frame

if TYPE_CHECKING:
    import pandas as pd

SUFFIX = ".parquet"  # of a text that names a file; a `Path` may end in anything


class Stored:
    """The columns of a Parquet file. Each is read when it is asked for, as `pandas.read_parquet` reads it.

    `name` is the name of the data in messages. Raises ValueError for a file that is missing, or that is no Parquet file.

    >>> import pandas as pd, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pd.DataFrame({"age": [31, 45]}).to_parquet(Path(folder, "ages.parquet"))
    ...     stored = Stored(Path(folder, "ages.parquet"), "reference")
    ...     len(stored), list(stored), stored["age"].tolist()
    (2, ['age'], [31, 45])
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        parquet, failed = imported("pyarrow.parquet"), imported("pyarrow").ArrowException
        try:
            with parquet.ParquetFile(path) as file:
                self._rows = int(file.metadata.num_rows)
                empty = file.schema_arrow.empty_table().to_pandas()
        except (OSError, ValueError, failed) as error:
            raise self._unreadable(error) from None
        self._status = self._file_status()
        self.columns: pd.Index = to_frame(empty, name).columns

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __getitem__(self, column: str) -> "pd.Series":
        """Return a column. Threads may read several at once."""
        import pandas as pd
        import pyarrow as pa

        try:
            frame = pd.read_parquet(self._path, columns=[column])
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self._unreadable(error) from None
        if self._file_status() != self._status:
            raise ValueError(
                f"{self._name}: {self._path} has changed while it was read: compare again when it is complete"
            )
        return to_frame(frame, self._name)[column]

    def drop(self, columns: str) -> "Stored":
        """Return the same file without one column."""
        rest = object.__new__(Stored)
        rest.__dict__.update(self.__dict__, columns=self.columns.drop(columns))
        return rest

    def _file_status(self) -> tuple[int, ...]:
        try:
            status = self._path.stat()
        except OSError as error:
            raise self._unreadable(error) from None
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _unreadable(self, error: Exception) -> ValueError:
        return ValueError(f"{self._name}: {self._path} cannot be read as a Parquet file: {error}")


class Arrays:
    """Columns of numbers in memory, by name: arrays of one length, (N,).

    >>> arrays = Arrays({"age": np.array([31, 45])}, 2)
    >>> len(arrays), list(arrays), arrays["age"].tolist()
    (2, ['age'], [31, 45])
    """

    def __init__(self, columns: dict[str, np.ndarray], rows: int) -> None:
        self.columns, self._rows = columns, rows

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __getitem__(self, column: str) -> np.ndarray:
        return np.ascontiguousarray(self.columns[column])  # a column of a table is slow to read many times

    def drop(self, columns: str) -> "Arrays":
        """Return all columns but one. The name of the argument is that of pandas."""
        return Arrays({name: values for name, values in self.columns.items() if name != columns}, self._rows)


def window(data: Any, name: str) -> "pd.DataFrame | Stored | Arrays":
    """Return the columns of data that `to_frame` can read, or of the Parquet file that a path names.

    A path is a `Path`, or a text that ends in `.parquet`. Raises ValueError as `to_frame` and `Stored` do.
    """
    if isinstance(data, os.PathLike) or (isinstance(data, str) and data.lower().endswith(SUFFIX)):
        return Stored(Path(data), name)
    arrays = _arrays(data)
    return to_frame(data, name) if arrays is None else arrays


def _arrays(data: Any) -> Arrays | None:
    """Return the columns of an array of numbers, or of a dict of such arrays; None for anything else."""
    if type(data) is np.ndarray and data.ndim in (1, 2):
        data = dict(enumerate(data.T if data.ndim == 2 else [data]))
    if not isinstance(data, Mapping):
        return None
    columns = {str(key): column for key, column in data.items()}
    plain = all(type(column) is np.ndarray and column.dtype.kind in "iuf" for column in columns.values())
    shapes = {column.shape for column in columns.values()} if plain else set()
    if len(columns) < len(data) or len(shapes) != 1 or len(shape := shapes.pop()) != 1 or not shape[0]:
        return None  # `to_frame` reads it, or says what is wrong with it
    return Arrays(columns, shape[0])
