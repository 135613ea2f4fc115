"""Write predictions to a Parquet file, which keeps the types. pandas, polars and DuckDB can read it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from labsupport.extras import needed

try:
    import pyarrow as pa
    from pyarrow import parquet
except ModuleNotFoundError as error:
    raise ImportError(needed("pyarrow"), name="pyarrow") from error

from labsupport.detection import Box
from labsupport.log.rows import mended
from labsupport.paths import whole

ROWS = 10_000  # in memory at a time, and in a row group of the file
DETECTION = pa.struct(
    {
        "label": pa.string(),
        "confidence": pa.float64(),
        "box": pa.struct(dict.fromkeys(Box._fields, pa.int64())),
    }
)
SPECIAL = {"time": pa.timestamp("us", "UTC"), "detections": pa.list_(DETECTION), "labels": pa.list_(pa.string())}
KINDS = {float: pa.float64(), int: pa.int64(), str: pa.string(), bool: pa.bool_()}


def write(path: Path | str, kinds: Mapping[str, type], chunks: Iterable[Sequence[Sequence[Any]]]) -> int:
    """Write rows of the log to a Parquet file, and return their number. The file appears complete or not at all.

    `kinds` maps each column to its type, as `tables.COLUMNS` does. Each chunk holds rows as the database returns them.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> file = Path(folder.name) / "log.parquet"
    >>> write(file, {"time": float, "id": str}, [[(1.5, "a1")], [(2.5, "a2")]])
    2
    >>> parquet.read_table(file).to_pylist()[1]["id"]
    'a2'
    >>> folder.cleanup()
    """
    schema, written = pa.schema({name: SPECIAL.get(name) or KINDS[kind] for name, kind in kinds.items()}), 0
    with whole(Path(path)) as partial, parquet.ParquetWriter(partial, schema) as writer:
        for rows in chunks:
            columns = zip(*rows, strict=True)
            arrays = [_array(column, field) for column, field in zip(columns, schema, strict=True)]
            writer.write_table(pa.table(arrays, schema=schema), row_group_size=ROWS)
            written += len(rows)
    return written


def _array(column: Sequence[Any], field: pa.Field) -> pa.Array:
    if field.name == "time":
        column = [round(seconds * 1e6) for seconds in column]
    elif field.name == "detections":
        column = [None if text is None else list(map(_struct, json.loads(text))) for text in column]
    elif field.name == "labels":
        column = [None if text is None else [mended(label) for label in json.loads(text)] for text in column]
    return pa.array(column, field.type)


def _struct(detection: dict[str, Any]) -> dict[str, Any]:
    box = dict(zip(Box._fields, map(round, detection["box"]), strict=True))
    return {**detection, "label": mended(detection["label"]), "box": box}
