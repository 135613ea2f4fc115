"""Define the check cells of automation.ipynb."""

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from labsupport.automation import error_bound
from labsupport.exercises.exercise import exercise

if TYPE_CHECKING:
    import pandas as pd


@exercise()
def error_free_decisions(answer: int) -> str | None:
    """automation.ipynb: how many decisions without an error promise at most 1 % errors with 95 % confidence."""
    if not isinstance(answer, int):
        return "give a whole number"
    if (bound := error_bound(0, answer)) > 0.01:
        return f"{answer} decisions without an error may still hide an error rate of {bound:.2%}"
    return None if error_bound(0, answer - 1) > 0.01 else "that is enough, and so is one less"


@exercise()
def price_of_a_look(answer: float, table: "pd.DataFrame") -> str | None:
    """automation.ipynb: the price of a person's look from which on FULL is cheaper than PARTIAL; an error costs 5."""
    if not isinstance(answer, int | float) or not 0 < answer < 100:
        return "give a price, as the 0.2 that a look costs now"

    def cost(degree: str, price: float) -> float:
        row = table[table["degree"] == degree].iloc[0]
        return float(price * (1 - row["by_model"]) + 5 * row["error"])

    if cost("FULL", 1.02 * answer) >= cost("PARTIAL", 1.02 * answer):
        return f"at {answer} the errors of FULL still cost more than what PARTIAL's looks do: go up"
    return "FULL was cheaper before: go down" if cost("FULL", 0.98 * answer) < cost("PARTIAL", 0.98 * answer) else None


@exercise()
def phones_saved(answer: int) -> str | None:
    """automation.ipynb: of 4,000 phones in shadow, how many fewer does a person look at with the better model?"""
    if not isinstance(answer, int | np.integer):
        return "give a whole number of phones"
    stable, better = _looks("stable"), _looks("better")
    if abs(answer - (stable - better)) <= 5:
        return None
    return f"with the stable model people look at {stable} phones; with the better one it is not {stable - answer}"


@cache
def _looks(name: str) -> int:
    """Return how many of the phones in shadow a person has to look at, with this model and its own thresholds."""
    from labsupport import scenarios
    from labsupport.automation import choose_thresholds
    from labsupport.scenarios import Inspector

    shadow, inspector = scenarios.inspection(4_000, seed=21), Inspector.load(name)
    confidences = np.array([inspector.score(picture) for picture in shadow.images])
    return int((~choose_thresholds(shadow.truth, confidences, max_error=0.02).sure(confidences)).sum())
