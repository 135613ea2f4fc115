"""Detect objects in all pictures and videos of a folder, and continue after an interruption."""

from labsupport.batch.prediction import BatchRunning, BatchUnwritable, Summary, check, predict_folder

__all__ = [
    "BatchRunning",
    "BatchUnwritable",
    "Summary",
    "check",
    "predict_folder",
]
