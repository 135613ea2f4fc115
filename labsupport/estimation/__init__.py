"""Estimate how often a model is right, without labels, from calibrated confidences."""

from labsupport.estimation.calibration import (
    Calibration,
    Labelled,
    NotEstimable,
    calibration_error,
    checked,
    read_inputs,
)
from labsupport.estimation.performance import Estimate, Figure, Realised, density_ratio, estimate, realised

__all__ = [
    "Calibration",
    "Estimate",
    "Figure",
    "Labelled",
    "NotEstimable",
    "Realised",
    "calibration_error",
    "checked",
    "density_ratio",
    "estimate",
    "read_inputs",
    "realised",
]
