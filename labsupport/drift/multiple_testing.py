"""Adjust the p-values of several tests for their number, so that one level holds for all of them together.

Of twenty tests at .05 without any effect, one is expected to raise an alarm; at least one does with probability .64.
"""

import numpy as np
from scipy.stats import false_discovery_control


def bonferroni(p_values: np.ndarray) -> np.ndarray:
    """Return each p-value times their number. Bounds the chance of any false alarm, however the tests depend on each other.

    >>> bonferroni(np.array([0.01, 0.02, 0.5])).round(2).tolist()
    [0.03, 0.06, 1.0]
    """
    adjusted: np.ndarray = np.minimum(1.0, len(p_values) * p_values)
    return adjusted


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return adjusted p-values: the smallest times K, the next times K - 1, and so on (Holm, 1979).

    Bounds the chance of any false alarm as `bonferroni` does, and never has less power.

    >>> holm(np.array([0.01, 0.02, 0.5])).round(2).tolist()
    [0.03, 0.04, 0.5]
    """
    order = np.argsort(p_values, kind="stable")
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, stepped)
    return adjusted


def benjamini_hochberg(p_values: np.ndarray) -> np.ndarray:
    """Return adjusted p-values that bound the mean share of false alarms among all alarms (Benjamini and Hochberg, 1995).

    The tests must be independent or positively dependent. Without any effect it bounds the chance of any false alarm.

    >>> benjamini_hochberg(np.array([0.01, 0.02, 0.5])).round(2).tolist()
    [0.03, 0.03, 0.5]
    """
    adjusted: np.ndarray = false_discovery_control(p_values) if len(p_values) else p_values
    return adjusted


CORRECTIONS = {"holm": holm, "bonferroni": bonferroni, "bh": benjamini_hochberg}
LEVELS = {"holm": "family-wise level", "bonferroni": "family-wise level", "bh": "false-discovery rate"}
