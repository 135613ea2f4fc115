"""Estimate how often a model is right while nobody has labelled its answers, from confidences that mean what they say."""

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
