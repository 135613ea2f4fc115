"""Detect objects in all pictures and videos of a folder, and continue after an interruption."""

from labsupport.batch.prediction import Summary, check, predict_folder

__all__ = [
    "Summary",
    "check",
    "predict_folder",
]
