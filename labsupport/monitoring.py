"""What was written down, and what it says: everything that watches the running service, under one name.

Each part is a module of its own that can be read alone; who uses them imports them from here.
"""

from labsupport.dashboard import dashboard
from labsupport.predictions import (
    COLUMNS,
    FEATURES,
    SAID,
    LogUnavailable,
    NotWritten,
    PredictionLog,
    UnknownPrediction,
    UnknownSchema,
)
from labsupport.tables import SCHEMA

__all__ = [
    "COLUMNS",
    "FEATURES",
    "SAID",
    "SCHEMA",
    "LogUnavailable",
    "NotWritten",
    "PredictionLog",
    "UnknownPrediction",
    "UnknownSchema",
    "dashboard",
]
