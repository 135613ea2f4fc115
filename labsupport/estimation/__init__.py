"""Estimate how often a model is right, without labels, from calibrated confidences."""

from labsupport.estimation.calibration import (
    Calibration,
    Labelled,
    NotEstimable,
    calibration_error,
)
from labsupport.estimation.performance import Estimate, Figure, Realised, estimate, realised

__all__ = [
    "Calibration",
    "Estimate",
    "Figure",
    "Labelled",
    "NotEstimable",
    "Realised",
    "calibration_error",
    "estimate",
    "realised",
]
