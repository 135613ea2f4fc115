"""Define the check cells of drift.ipynb, monitoring.ipynb and pipeline_monitoring.ipynb."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from labsupport.drift import cusum_run_length
from labsupport.exercises.exercise import exercise
from labsupport.monitoring import AlertRule

if TYPE_CHECKING:
    import pandas as pd

    from labsupport.log import PredictionLog


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


@exercise()
def pipeline_level(answer: float) -> str | None:
    """pipeline_monitoring.ipynb: the level of each test in a pipeline of nine stages, of which one look in 20 may err."""
    if not isinstance(answer, float):
        return "give a share between 0 and 1"
    if abs(answer - 0.05 / 9) < 1e-4:
        return "there are nine stages: what else is tested?"
    return None if abs(answer - 0.005) < 1e-6 else f"{answer} is not it: the levels of all tests add up to 0.05"


@exercise()
def order_of_clicks(describe: Callable[[list[str]], dict[str, Any]]) -> str | None:
    """pipeline_monitoring.ipynb: figures of a visit that change if the logging sorts its clicks, and only then."""
    from labsupport import drift
    from labsupport.scenarios import clickstream

    before, same, other = (clickstream.visits(200, seed=seed).clicks for seed in (71, 72, 73))
    figures = [[dict(describe(list(clicks))) for clicks in visits] for visits in (before, same, map(sorted, other))]
    columns = [{name: [row.get(name) for row in rows] for name in figures[0][0]} for rows in figures]
    if drift.compare(columns[0], columns[1], alpha=0.001).drifted:
        return "it raises an alarm where nothing has changed"
    if not drift.compare(columns[0], columns[2], alpha=0.001).drifted:
        return "sorted clicks look like the others to it: how do neighbours in a list tell whether it is sorted?"
    return None


@exercise()
def two_changes(answer: list[str]) -> str | None:
    """pipeline_monitoring.ipynb: which stages changed, if the microphone is noisier and the recogniser is version 2."""
    if not isinstance(answer, (list, tuple)):
        return 'give the names as a list, as in ["vad"]'
    if missing := {"input", "recogniser"} - set(answer):
        return f"{' and '.join(sorted(missing))} is missing: use report.named('changed')"
    return "the detection is as it was, it inherited its change" if "vad" in answer else None
