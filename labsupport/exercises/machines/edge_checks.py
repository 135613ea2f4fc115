"""Define the check cells of edge.ipynb."""

import time
from collections.abc import Callable
from typing import Any

from labsupport.detection import Box, Detection
from labsupport.exercises.exercise import OpenExercise, Question, exercise, is_number

WAITING = 1_300  # bytes that a product takes in the outbox until the server has it
FIRST, LONGEST = 0.25, 15.0  # seconds


@exercise("How many products pass in 60 hours?", "Multiply by the bytes of one product. A megabyte is a million bytes.")
def backlog(answer: float) -> str | None:
    """Check how many megabytes wait after a weekend of 60 hours without a server, at two products a second."""
    if not is_number(answer):
        return "give a number of megabytes"
    right = 60 * 3600 * 2 * WAITING / 1e6
    others = {
        right / 2: "that is one product a second",
        right / 60: "that is 60 minutes, not 60 hours",
        right * 1e6: "that is the number of bytes",
        right * 1e3: "that is the number of kilobytes",
    }
    for value, wrong in others.items():
        if abs(answer - value) < 0.02 * value:
            return wrong
    if abs(answer - right) < 0.02 * right:
        return None
    return f"{answer:,.0f} MB is not it: products in 60 hours, times bytes, in millions"


@exercise(
    "Which part of a record is the same when the record is sent again?",
    "Use the id as the key of the dict.",
    "A dict has a method that adds a key only if it is not there yet.",
)
def receiver(receive: Callable[[dict[Any, Any], dict[str, str]], None]) -> str | None:
    """Check `receive(kept, record)`, which puts a record into a dict of records, each id once, as it first arrived."""
    kept: dict[Any, Any] = {}
    first, second = {"id": "a", "verdict": "accept"}, {"id": "b", "verdict": "reject"}
    third = {"id": "c", "verdict": "accept"}
    for record in (first, second, first, {"id": "a", "verdict": "reject"}, second, third):
        receive(kept, dict(record))
    if len(kept) < 3:
        return f"three products arrived, and {len(kept)} are kept: do two different products have the same key?"
    if len(kept) > 3:
        return f"three products arrived, some twice, and {len(kept)} are kept: what is the key?"
    if list(kept.values()) != [first, second, third]:
        return "a second arrival changed what was kept: the first one counts"
    return None


def _scratch(confidence: float, length: int) -> Detection:
    return Detection("scratch", confidence, Box(10, 10, 10 + length, 18))


@exercise(
    "Go through the three rules in their order, and return as soon as one holds.",
    "A box has left and right: its width is their difference.",
    "any(... for one in found) is True if the condition holds for one of the scratches.",
)
def careful_judge(judge: Callable[[list[Detection]], bool | None]) -> str | None:
    """Check a judge that rejects a phone with a sure scratch at least 20 pixels wide.

    A scratch is sure from a confidence of 0.6 on. The judge returns None if any scratch is not sure, else True.
    """
    cases: tuple[tuple[list[Detection], bool | None, str], ...] = (
        ([], True, "no scratch"),
        ([_scratch(0.9, 30)], False, "one sure scratch, 30 pixels wide"),
        ([_scratch(0.9, 8)], True, "one sure scratch, 8 pixels wide"),
        ([_scratch(0.6, 20)], False, "one scratch of exactly 0.6 and 20 pixels"),
        ([_scratch(0.4, 30)], None, "one scratch with a confidence of 0.4"),
        ([_scratch(0.9, 8), _scratch(0.4, 8)], None, "a sure short scratch and one with 0.4"),
        ([_scratch(0.9, 30), _scratch(0.4, 30)], False, "a sure long scratch and one with 0.4"),
        ([_scratch(0.4, 8), _scratch(0.9, 8)], None, "one with 0.4 and a sure short scratch"),
        ([_scratch(0.4, 30), _scratch(0.9, 30)], False, "one with 0.4 and a sure long scratch"),
    )
    for detections, right, what in cases:
        if (verdict := judge(list(detections))) is not right:
            return f"for {what} it says {verdict}, not {right}"
    return None


@exercise(
    "Doubling n times is a multiplication by 2 ** n.",
    "min(a, b) returns the smaller of two numbers.",
)
def probe_pause(pause: Callable[[int], float]) -> str | None:
    """Check `pause(failed)`, the seconds before the next probe after so many failed ones: 0.25, doubled, 15 at most."""
    for failed in (0, 1, 2, 5, 6, 30):
        right = min(LONGEST, FIRST * 2**failed)
        if (answer := pause(failed)) == right:
            continue
        if answer == FIRST * 2**failed:
            return f"with failed={failed} it waits {answer:g} s: no pause is longer than {LONGEST:g} s"
        if answer == min(LONGEST, FIRST * 2 ** (failed + 1)):
            return f"with failed={failed} it waits {answer:g} s: that is one doubling too many"
        return f"with failed={failed} it waits {answer} s, not {right:g}"
    return None


@exercise(
    "Start the server's function in a thread, so that you can stop waiting for it: pool.submit(server, picture).",
    "future.result(timeout=...) raises TimeoutError if the time is up, and the function's own error if it failed.",
    "A block `with ThreadPoolExecutor()` waits for its threads at its end. Make the pool outside of the function.",
)
def fallback(decide: Callable[..., tuple[Any, str]]) -> str | None:
    """Check `decide(server, device, picture, seconds)`, which asks the server in time, then the device, and never raises."""

    def works(picture: str) -> str:
        return f"{picture} by server"

    def device(picture: str) -> str:
        return f"{picture} by device"

    def broken(picture: str) -> str:
        raise OSError("no route to the server")

    def slow(picture: str) -> str:
        time.sleep(0.6)
        return works(picture)

    cases = (
        (works, device, ("p by server", "server"), "a server that answers"),
        (broken, device, ("p by device", "device"), "a server that raises"),
        (slow, device, ("p by device", "device"), "a server that takes 0.6 s"),
        (broken, broken, (None, "nobody"), "a server and a device that raise"),
    )
    for server, local, right, what in cases:
        started = time.monotonic()
        try:
            answer = decide(server, local, "p", 0.2)
        except Exception as error:
            return f"with {what} it raises {type(error).__name__}: the line would stop"
        took = time.monotonic() - started
        if took > 0.5:
            return f"with {what} it took {took:.1f} s, and it had 0.2 s for the server"
        if answer != right:
            return f"with {what} it returns {answer!r}, not {right!r}"
    return None


undecided_phones = OpenExercise(
    "The arm puts an undecided phone into a box, and the line goes on. A person looks into the box once an hour, and the "
    "person's verdict is recorded as a label. An alarm counts undecided phones: if it is more than 2 % for ten minutes, "
    "somebody looks at the lens and at the station.",
    "Does your line go on, and does no undecided phone go to a customer?",
    "Does your answer say who decides in the end, and how soon?",
    "Does it say how somebody learns that there are too many undecided phones?",
)

question_of_the_deadline = Question(
    "The server has not answered, and the time that the station may wait for it is over. What should the station do?",
    right="b",
    a=("Wait for the server, because its model is better.", "The phone has left the arm when the answer comes."),
    b=("Use the model on the device.", "It is there, its time is reserved, and its answer comes before the deadline."),
    c=("Accept the phone, because most phones are good.", "That is a guess. A scratched phone would be sold."),
)

question_of_the_id = Question(
    "The server ignores a record whose id it already has. Why may a record arrive twice?",
    right="c",
    a=("The station decides about each phone twice.", "It decides once. The first decision is kept and counts."),
    b=("The server copies its records for safety.", "Such copies are not records that arrive."),
    c=(
        "The confirmation was lost, so the station sent it again.",
        "The station cannot know whether the record arrived.",
    ),
)

question_of_the_browser = Question(
    "Which of these speaks for a model in the browser?",
    right="a",
    a=("The user's pictures stay on the user's device.", "The page fetches the model, and sends no picture."),
    b=(
        "It is faster than a server in any case.",
        "That depends on the visitor's device, and the first visit downloads it.",
    ),
    c=("Nobody can copy the model.", "Each visitor downloads the model, so each visitor has a copy."),
)
