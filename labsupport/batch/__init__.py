"""Predict a folder of pictures in one go, and go on where a run was interrupted."""

from labsupport.batch.prediction import Summary, check, predict_folder

__all__ = [
    "Summary",
    "check",
    "predict_folder",
]
