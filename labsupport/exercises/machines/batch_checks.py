"""Define the check cells of batch_or_realtime.ipynb."""

import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np

from labsupport.exercises.exercise import OpenExercise, Question, exercise, is_number

if TYPE_CHECKING:
    import pandas as pd

PRICE, RATE = 0.09, 100  # dollars an hour, pictures a second


@exercise("How many pictures does the machine finish in one hour?", "Divide the pictures by those of one hour.")
def night_hours(answer: float) -> str | None:
    """Check how many hours two million pictures take at 100 a second."""
    if not is_number(answer):
        return "give a number of hours"
    right = 2e6 / RATE / 3600
    if abs(answer - right * 3600) < 1:
        return "that is the number of seconds"
    if abs(answer - right * 60) < 1:
        return "that is the number of minutes"
    return None if abs(answer - right) < 0.1 else f"{answer:g} hours are {answer * 3600 * RATE:,.0f} pictures"


@exercise(
    "Look at the function night: which of its lines does this exercise lack?",
    "Ask the table first: SELECT 1 FROM done WHERE name = ?",
    "A block `with db:` commits at its end, and undoes its changes if an error leaves it.",
)
def resumable(once: Callable[[sqlite3.Connection, str, Callable[[str], float]], None]) -> str | None:
    """Check `once(db, name, look)`, which stores look(name) in the table `done`, once, also after a crash."""
    looks: list[str] = []

    def look(name: str) -> float:
        looks.append(name)
        if looks == ["a.jpg", "b.jpg", "c.jpg"]:
            raise MemoryError("the crash of the exercise")
        return len(looks)

    with tempfile.TemporaryDirectory() as folder:
        for night in range(3):
            with closing(sqlite3.connect(f"{folder}/done.db")) as db:
                db.execute("CREATE TABLE IF NOT EXISTS done (name TEXT PRIMARY KEY, score REAL)")
                if night == 1 and (wrong := _after_the_crash(dict(db.execute("SELECT name, score FROM done")))):
                    return wrong
                try:
                    for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg"):
                        once(db, name, look)
                except MemoryError:
                    pass
        with closing(sqlite3.connect(f"{folder}/done.db")) as db:
            done = dict(db.execute("SELECT name, score FROM done"))
    if (most := max(map(looks.count, ("a.jpg", "b.jpg", "d.jpg")))) > 1:
        return f"a finished picture was looked at {most} times: does once ask the table first?"
    right = {"a.jpg": 1.0, "b.jpg": 2.0, "c.jpg": 4.0, "d.jpg": 5.0}
    return None if done == right else f"at the end the table has {done}, not {right}"


def _after_the_crash(done: dict[str, float]) -> str | None:
    if "c.jpg" in done:
        return "the look at c.jpg failed, and c.jpg is in the table: store the row after the look"
    if set(done) != {"a.jpg", "b.jpg"}:
        return f"after the crash {len(done)} of 2 finished pictures are in the table: is each row committed?"
    return None


@exercise(
    "Which machine-hours does a million pictures take?",
    "Pictures, divided by pictures an hour, times dollars an hour.",
)
def price_of_a_million(answer: float) -> str | None:
    """Check what a million pictures cost on a machine at 0.09 dollars an hour, busy at 100 pictures a second."""
    if not is_number(answer):
        return "give a number of dollars"
    hours = 1e6 / RATE / 3600
    if abs(answer - hours) < 0.05:
        return "those are the machine's hours: what do they cost?"
    if abs(answer - hours * PRICE / 0.7) < 0.01:
        return "that would be right for a server that is 70 % busy: this machine is always busy"
    if abs(answer - hours * PRICE) < 0.01:
        return None
    return f"{answer:g} dollars pay for {answer / PRICE * 3600 * RATE:,.0f} pictures"


@exercise(
    "With patience=0 the busiest hour decides. With more patience, work may wait for a quieter hour.",
    "The pictures of any span of hours, say from hour i to hour j, must be done by hour j + patience.",
    "So a span of j - i + 1 hours has j - i + 1 + patience hours of machine time.",
)
def fewest_machines(machines: Callable[[list[int], int, int], int]) -> str | None:
    """Check the fewest machines with which no picture waits longer than it may."""
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


@exercise(
    "Make two columns of True and False: rows of another version, and rows with an error of the disk.",
    'The kind of an error is what stands before the colon: table["error"].str.split(":").str[0].',
    "A file appears once: dict.fromkeys(names) drops repeats and keeps the order.",
)
def files_to_repeat(again: Callable[["pd.DataFrame", str], list[str]]) -> str | None:
    """Check the files of a table that the next batch must look at again."""
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
        return f"{', '.join(extra)} would be looked at again, and give the same result"
    return None if answer == wanted else f"{answer}: each file once, in the table's order"


own_use_case = OpenExercise(
    "A shop sends a letter with offers once a week. Nobody waits for the letter, all customers are known the day before, "
    "and an offer of last night is still a good one: a batch. A visitor who is new to the shop's page is another case. "
    "The shop knows nothing about this visitor, who waits for the page: realtime.",
    "Does your answer say whether somebody or something waits?",
    "Does it say how old an answer may be before it is wrong?",
    "Does it say what an hour without the service costs?",
)

question_of_a_crash = Question(
    "A nightly batch is killed after six of its eight hours. What lets it go on where it was?",
    right="a",
    a=("A table of finished inputs, with each row committed.", "What is committed survives the process."),
    b=(
        "A try and except around the whole loop.",
        "A process that is killed runs no code any more, so nothing is caught.",
    ),
    c=("A list of results in memory, written at the end.", "The memory of a process is lost when it is killed."),
)

question_of_the_arm = Question(
    "Which of these needs realtime?",
    right="c",
    a=(
        "A new inspector looks again at yesterday's phones.",
        "All pictures are there, and nobody waits for one of them.",
    ),
    b=(
        "A list of customers who may leave, once a week.",
        "The list may be hours old, and all its inputs are known before.",
    ),
    c=("An arm that removes scratched phones from a moving belt.", "The phone is gone if the answer is late."),
)

question_of_the_bill = Question(
    "The server needs more machines than a batch once a day, for the same pictures. What is the main reason?",
    right="b",
    a=(
        "It computes more for each picture.",
        "The model is the same. Sending pictures over HTTP costs something, but less.",
    ),
    b=("It needs machines for the busiest minute, and a reserve.", "A batch spreads the same work over the whole day."),
    c=("Its answers are more exact.", "We compared them: they are the same."),
)
