"""Define the check cells of edge.ipynb."""

from collections.abc import Callable
from typing import Any

from labsupport.detection import Box, Detection
from labsupport.exercises.exercise import exercise

WAITING = 1_300  # bytes that a product takes in the outbox until the server has it


@exercise()
def backlog(answer: float) -> str | None:
    """Check how many megabytes wait after a weekend of 60 hours without a server, at two products a second."""
    if not isinstance(answer, int | float) or isinstance(answer, bool):
        return "give a number of megabytes"
    right = 60 * 3600 * 2 * WAITING / 1e6
    if abs(answer - right) < 0.02 * right:
        return None
    if abs(answer - right / 2) < 0.02 * right:
        return "that is one product a second"
    return f"{answer:,.0f} MB is not it: products in 60 hours, times bytes, in millions"


@exercise()
def receiver(receive: Callable[[dict[Any, Any], dict[str, str]], None]) -> str | None:
    """Check `receive(kept, record)`, which puts a record into a dict of records, each id once, as it first arrived."""
    kept: dict[Any, Any] = {}
    first, second = {"id": "a", "verdict": "accept"}, {"id": "b", "verdict": "reject"}
    for record in (first, second, first, {"id": "a", "verdict": "reject"}, second):
        receive(kept, dict(record))
    if len(kept) != 2:
        return f"two products arrived, some twice, and {len(kept)} are kept: what is the key?"
    if list(kept.values()) != [first, second]:
        return "a second arrival changed what was kept: the first one counts"
    return None


def _clock(confidence: float, width: int) -> Detection:
    return Detection("clock", confidence, Box(0, 0, width, 100))


@exercise()
def careful_judge(judge: Callable[[list[Detection]], bool | None]) -> str | None:
    """Check a judge that accepts exactly one clock, at least 50 pixels wide.

    The judge returns None if any clock's confidence is below 0.6.
    """
    cases: tuple[tuple[list[Detection], bool | None, str], ...] = (
        ([], False, "nothing"),
        ([_clock(0.9, 100)], True, "one sure clock, 100 pixels wide"),
        ([_clock(0.9, 30)], False, "one sure clock, 30 pixels wide"),
        ([_clock(0.9, 100), _clock(0.8, 100)], False, "two sure clocks"),
        ([_clock(0.4, 100)], None, "one clock with a confidence of 0.4"),
        ([_clock(0.9, 100), _clock(0.4, 100)], None, "a sure clock and one with 0.4"),
        ([_clock(0.9, 100), Detection("cat", 0.4, Box(0, 0, 9, 9))], True, "a sure clock, and a cat with 0.4"),
    )
    for detections, right, what in cases:
        if (verdict := judge(list(detections))) is not right:
            return f"for {what} it says {verdict}, not {right}"
    return None
