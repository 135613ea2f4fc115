"""Detect whether data have changed: compare two windows, or monitor a stream.

>>> import numpy as np
>>> from labsupport.drift import compare
>>> random = np.random.default_rng(0)
>>> report = compare({"x": random.normal(size=300)}, {"x": random.normal(1, 1, size=300)})
>>> bool(report.features["drifted"][0])
True
"""

from labsupport.extras import needed

try:
    import scipy as _scipy  # noqa: F401  # every test below needs it
except ModuleNotFoundError as error:
    raise ImportError(needed("scipy"), name="scipy") from error

from labsupport.drift.concept_monitor import ConceptDriftMonitor, NotExpected
from labsupport.drift.conditional import columns, given_input
from labsupport.drift.cusum import Cusum, cusum_limit, cusum_run_length
from labsupport.drift.data_monitor import DataDriftMonitor, SerialCorrelation
from labsupport.drift.detector_evaluation import compare_detectors
from labsupport.drift.feature_tests import TESTS, psi
from labsupport.drift.report import DriftReport, compare

__all__ = [
    "TESTS",
    "ConceptDriftMonitor",
    "Cusum",
    "DataDriftMonitor",
    "DriftReport",
    "NotExpected",
    "SerialCorrelation",
    "columns",
    "compare",
    "compare_detectors",
    "cusum_limit",
    "cusum_run_length",
    "given_input",
    "psi",
]
