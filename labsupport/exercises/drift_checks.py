"""Define the exercises of data_drift.ipynb and concept_drift.ipynb."""

from collections.abc import Callable

import numpy as np

from labsupport.drift import cusum_run_length
from labsupport.exercises.exercise import exercise


@exercise()
def drifted_columns(answer: set[str]) -> str | None:
    """drift.ipynb: which columns of the shop have changed."""
    if not isinstance(answer, set | frozenset | list | tuple):
        return "give a set of column names"
    if extra := set(answer) - {"price"}:
        return f"{', '.join(sorted(extra))} comes from the same distribution as before: is its adjusted p-value below 0.05?"
    return None if answer else "one column has changed: drift.compare(last_week, today).features"


@exercise()
def cheapest_limit(answer: float) -> str | None:
    """drift.ipynb: the CUSUM's limit with the lowest cost in 10,000 samples, of false alarms and of one shift's delay."""
    if not isinstance(answer, int | float) or not 0 < answer <= 20:
        return "give a number between 0 and 20"

    def cost(h: float) -> float:
        return 10_000 / cusum_run_length(0.0, 0.5, h) + cusum_run_length(1.0, 0.5, h) / 20

    best = min(np.arange(0.5, 20.5, 0.5), key=cost)
    if abs(answer - best) <= 0.25:
        return None
    wrong = "a lower" if answer > best else "a higher"
    return f"{answer} costs {cost(answer):.2f} hours in 10,000 samples: {wrong} limit costs less"


@exercise()
def own_detector(is_drift: Callable[[np.ndarray, np.ndarray], bool]) -> str | None:
    """drift.ipynb: at most 5 % false alarms on 10 columns, and 80 % of the shifts by half a standard deviation found."""
    random = np.random.default_rng(9)
    false, found = 0, 0
    for _ in range(200):
        reference, current = random.normal(size=(2, 200, 10))
        false += bool(is_drift(reference, current))
        current[:, random.integers(10)] += 0.5
        found += bool(is_drift(reference, current))
    if false > 0.05 * 200 + 7:  # two standard errors more than is allowed
        return f"it alarms in {false} of 200 windows in which nothing has changed: correct for the ten columns"
    return None if found >= 160 else f"it finds {found} of 200 shifts: at least 160 are wanted"
