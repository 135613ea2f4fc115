"""Record every prediction and read it again: the log of predictions, on SQLite or PostgreSQL.

>>> from tempfile import TemporaryDirectory
>>> from labsupport.log import PredictionLog
>>> with TemporaryDirectory() as folder, PredictionLog(f"sqlite:///{folder}/predictions.db") as log:
...     log.frame().empty
True
"""

from importlib import import_module
from types import ModuleType

from labsupport.log import drift_window, rows, station_records, tables
from labsupport.log.migrations import SCHEMA
from labsupport.log.prediction_log import PredictionLog, UnknownPrediction, unknown
from labsupport.log.rows import YEAR_10000, Moment, seconds, to_json
from labsupport.log.station_records import RecordClash
from labsupport.log.stored import StoredPrediction, stored_prediction
from labsupport.log.tables import (
    COLUMNS,
    DECISIONS,
    FEATURES,
    FEEDBACK,
    PREDICTIONS,
    SAID,
    LogUnavailable,
    UnknownSchema,
)
from labsupport.log.writer import NotWritten

__all__ = [
    "COLUMNS",
    "DECISIONS",
    "FEATURES",
    "FEEDBACK",
    "PREDICTIONS",
    "SAID",
    "SCHEMA",
    "YEAR_10000",
    "LogUnavailable",
    "Moment",
    "NotWritten",
    "PredictionLog",
    "RecordClash",
    "StoredPrediction",
    "UnknownPrediction",
    "UnknownSchema",
    "drift_window",
    "parquet",
    "rows",
    "seconds",
    "station_records",
    "stored_prediction",
    "tables",
    "to_json",
    "unknown",
]


def __getattr__(name: str) -> ModuleType:
    """Load `parquet` when it is asked for: the server needs neither it nor pyarrow."""
    if name != "parquet":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("labsupport.log.parquet")
