"""Define the exercises of pipeline_monitoring.ipynb."""

from collections.abc import Callable
from typing import Any

from labsupport.exercises.exercise import exercise


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
