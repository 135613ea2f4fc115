"""Define the exercises of monitoring.ipynb."""

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import numpy as np

from labsupport.exercises.exercise import exercise
from labsupport.monitoring import AlertRule

if TYPE_CHECKING:
    import pandas as pd

    from labsupport.log import PredictionLog


@exercise()
def bright_rule(rule: AlertRule) -> str | None:
    """monitoring.ipynb: an alarm for a camera that looks into the sun."""
    if not isinstance(rule, AlertRule):
        return "give an AlertRule"
    wanted = {"name": "Bright", "metric": "brightness_mean", "above": 0.8, "window": 600, "hold": 120, "clear": 0.7}
    wanted["severity"] = "ticket"
    wrong = [f"{name} is {getattr(rule, name)!r}" for name, value in wanted.items() if getattr(rule, name) != value]
    return f"{', '.join(wrong)}: read the exercise again" if wrong else None


def two_windows() -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """monitoring.ipynb: return two simulated hours of a log; in the second one users correct more."""
    import pandas as pd

    windows = []
    for seed, content in ((1, 0.97), (2, 0.85)):
        random = np.random.default_rng(seed)
        columns: dict[str, np.ndarray] = {
            "brightness": random.normal(0.45, 0.08, 600),
            "objects": random.poisson(3, 600),
        }
        columns |= {"confidence": 0.5 + 0.5 * random.beta(3, 2, 600), "correct": random.random(600) < content}
        windows.append(pd.DataFrame(columns))
    return windows[0], windows[1]


@exercise()
def whose_fault(answer: str) -> str | None:
    """monitoring.ipynb: is it the pictures, the model, or what users expect of it?"""
    if answer not in ("input", "model", "concept"):
        return 'give "input", "model" or "concept"'
    hints = {
        "input": "compare brightness: if the pictures had changed, it would show",
        "model": "compare objects and confidence: what the model says is what it used to say",
    }
    return hints.get(answer)


@exercise()
def firings(calls: Callable[..., int]) -> str | None:
    """monitoring.ipynb: how often a rule fires in an hour of traffic that is looked at every 15 seconds."""
    from labsupport.monitoring import Alarms
    from labsupport.scenarios import incidents

    nervous = AlertRule("Nervous", "brightness_mean", below=0.46, window=30, hold=0, clear=0.461)
    patient = AlertRule("Patient", "brightness_mean", below=0.46, window=30, hold=120, clear=0.461)
    for rule, seed in ((nervous, 1), (patient, 1), (nervous, 2)):
        traffic = incidents.simulate(seed=seed, seconds=3_600)
        watch = Alarms([rule], cast("PredictionLog", traffic))  # of a log only `columns` is called
        for now in range(0, 3_601, 15):
            watch.evaluate(now)
        truth = sum(event.event == "fired" for event in watch.history)
        if (answer := calls(rule, traffic)) != truth:
            return f"the rule {rule.name} fires {truth} times in the hour of seed {seed}, not {answer}"
    return None
