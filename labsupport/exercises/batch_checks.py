"""Define the check cells of batch_or_realtime.ipynb."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from labsupport.exercises.exercise import exercise

if TYPE_CHECKING:
    import pandas as pd


@exercise()
def night_hours(answer: float) -> str | None:
    """batch_or_realtime.ipynb: two million pictures at 100 a second, in hours."""
    if not isinstance(answer, int | float):
        return "give a number of hours"
    return None if abs(answer - 50 / 9) < 0.1 else f"{answer} hours are {answer * 3600 * 100:,.0f} pictures"


@exercise()
def fewest_machines(machines: Callable[[list[int], int, int], int]) -> str | None:
    """batch_or_realtime.ipynb: the fewest machines with which no picture waits longer than it may."""
    random = np.random.default_rng(4)
    for patience in (0, 1, 3, 8):
        arrivals = random.integers(0, 9_000, 24).tolist()
        fewest = next(count for count in range(1, 100) if _in_time(arrivals, 1_000 * count, patience))
        if (answer := machines(list(arrivals), 1_000, patience)) != fewest:
            wrong = "too few" if answer < fewest else "more than it takes"
            return (
                f"{answer} machines are {wrong} with patience={patience}: what is still waiting at the end of an hour?"
            )
    return None


def _in_time(arrivals: list[int], capacity: int, patience: int) -> bool:
    """Return True if the arrivals of each hour are done `patience` hours after it. First come, first served."""
    waiting = []  # (hour, pictures), the oldest first
    for hour in range(len(arrivals) + patience + 1):
        waiting.append((hour, arrivals[hour] if hour < len(arrivals) else 0))
        left = capacity
        while waiting and left >= waiting[0][1]:
            left -= waiting.pop(0)[1]
        if waiting:
            waiting[0] = (waiting[0][0], waiting[0][1] - left)
            if waiting[0][0] + patience <= hour:
                return False
    return True


@exercise()
def files_to_repeat(again: Callable[["pd.DataFrame", str], list[str]]) -> str | None:
    """batch_or_realtime.ipynb: the files of a table that the next batch must look at again."""
    import pandas as pd

    rows = [
        ("a.jpg", None, "v2", None),
        ("belt.avi", 0, "v2", None),
        ("belt.avi", 10, "v1", None),
        ("belt.avi", 20, "v1", None),
        ("broken.jpg", None, "v2", "UnsupportedImage: the picture is damaged"),
        ("gone.jpg", None, "v2", "FileNotFoundError: No such file or directory"),
        ("locked.jpg", None, "v2", "PermissionError: Permission denied"),
        ("old.jpg", None, "v1", None),
    ]
    answer = list(again(pd.DataFrame(rows, columns=["file", "frame", "version", "error"]), "v2"))
    wanted = ["belt.avi", "gone.jpg", "locked.jpg", "old.jpg"]
    if missing := [name for name in wanted if name not in answer]:
        return f"{', '.join(missing)} is missing"
    if extra := sorted(set(answer) - set(wanted)):
        return f"{', '.join(extra)} would be looked at again, and say the same"
    return None if answer == wanted else f"{answer}: each file once, in the table's order"
