"""Define the exercises and questions of concept_drift.ipynb."""

from collections.abc import Callable

import numpy as np

from labsupport.drift import Cusum, cusum_run_length
from labsupport.exercises.exercise import OpenExercise, Question, exercise, is_number


@exercise(
    "Start at 0 and go through the values one by one.", "After each value: add it, subtract k, and never fall below 0."
)
def cusum_by_hand(answer: float) -> str | None:
    """concept_drift.ipynb: the CUSUM with k=0.5 after the values 1, 0, 0, 1, 1."""
    if not is_number(answer):
        return "give a number"
    if abs(answer - 1.0) < 1e-9:
        return None
    if abs(answer - 0.5) < 1e-9:
        return "the sum never falls below 0: after the third value it is 0, not -0.5"
    if abs(answer - 3) < 1e-9:
        return "that is the number of errors: subtract k after each value"
    return "write the sum after each of the five values, and never let it fall below 0"


@exercise(
    "A false alarm costs one hour. How many are there in 10,000 samples?",
    "cusum_run_length gives the time between false alarms (shift 0) and the delay (shift 1).",
)
def cheapest_limit(answer: float) -> str | None:
    """concept_drift.ipynb: the CUSUM's limit with the lowest cost, of false alarms and of one shift's delay."""
    if not is_number(answer) or not 0 < answer <= 20:
        return "give a number between 0 and 20"

    def cost(h: float) -> float:
        return 10_000 / cusum_run_length(0.0, 0.5, h) + cusum_run_length(1.0, 0.5, h) / 20

    best = min(np.arange(0.5, 20.5, 0.5), key=cost)
    if abs(answer - best) <= 0.25:
        return None
    wrong = "a lower" if answer > best else "a higher"
    return f"{answer} costs {cost(answer):.2f} hours in 10,000 samples: {wrong} limit costs less"


@exercise("Which answer is right most often if you ignore x?", "Its error is the share of the other answer.")
def fair_baseline(answer: float) -> str | None:
    """concept_drift.ipynb: the error of the best constant answer, if 30 of 100 customers leave."""
    if not is_number(answer) or not 0 <= answer <= 1:
        return "give a share between 0 and 1"
    if abs(answer - 0.3) < 1e-9:
        return None
    if abs(answer - 0.7) < 1e-9:
        return "that is the error of the constant 'leaves': another constant is better"
    if abs(answer - 0.5) < 1e-9:
        return "a coin is no constant, and it is wrong more often than the best constant"
    return "a constant is wrong exactly for the customers of the other class"


@exercise(
    "Keep one running sum. What do you add to it for an error, and what for a right answer?",
    "Return the index at which the sum first exceeds the limit.",
)
def own_cusum(first_alarm: "Callable[[np.ndarray, float, float], int | None]") -> str | None:
    """concept_drift.ipynb: a function that returns the index of the first alarm of a CUSUM, or None."""
    random = np.random.default_rng(4)
    for shift in (0.0, 1.0, -1.0):
        values = np.concatenate([random.normal(size=300), random.normal(shift, 1, size=300)])
        monitor = Cusum(k=0.5, h=8, two_sided=False)
        expected = next((index for index, value in enumerate(values) if monitor.update(value).drift_detected), None)
        answer = first_alarm(values, 0.5, 8)
        if answer == expected:
            continue
        if expected is None:
            return (
                f"it alarms at {answer}, but the mean of these values never rises: subtract k, and stay at 0 or above"
            )
        if answer is None:
            return f"no alarm, although the mean rises at value 300: the sum exceeds the limit at {expected}"
        return f"the first alarm is at index {answer}, not {expected}: count from 0, and alarm above the limit"
    return None


@exercise("The alarm tells when; the change was earlier.", "Rows from before the change teach the old rule.")
def rows_to_learn(answer: str) -> str | None:
    """concept_drift.ipynb: which rows to retrain on, after a sudden change at row 3,000 and an alarm at 3,080."""
    if answer not in ("everything", "last 1000", "since the change"):
        return "give 'everything', 'last 1000' or 'since the change'"
    if answer == "everything":
        return "3,000 of these rows follow the old rule, and they outvote the new ones"
    if answer == "last 1000":
        return "at row 3,500 half of the last 1,000 rows still follow the old rule"
    return None


retrain_plan = OpenExercise(
    "First look at a few wrong answers and check the camera, the log and the labels. If the rule for a defect has changed, "
    "ask the customer from which day on. Collect labels since that day, train a candidate on them, compare it with the old "
    "model and with a constant on later rows, then run it in shadow and through the gate. A sample of all phones gets a "
    "label by a person, whatever the model says.",
    "Do you look for a broken camera or a broken label before you retrain?",
    "Do you say which rows you train on, and on which other rows you compare?",
    "Do you also get labels for cases that the model rejects?",
)

sudden_question = Question(
    "Which change is gradual?",
    right="c",
    a=(
        "Shops close, and within a week most people buy online.",
        "This was the sudden change of 2020: a week is short.",
    ),
    b=("A customer's new contract allows scratches below 20 pixels from Monday on.", "The rule changes on one day."),
    c=(
        "Writers start to use new words, a few each month.",
        "The share of unknown words grows slowly, and the error with it.",
    ),
)
delay_question = Question(
    "Detector A finds a change after 10 labels, detector B after 80. Which one is better?",
    right="b",
    a=("A, because it is faster.", "A detector that fires all the time has the shortest delay."),
    b=("One cannot tell from the delays alone.", "Compare the delays at the same rate of false alarms."),
    c=("B, because it is more careful.", "A longer delay is no evidence of fewer false alarms: measure both."),
)
feedback_question = Question(
    "A bank learns only from payments that it let through. What does its next model lack?",
    right="a",
    a=("Examples of the frauds that the model recognises best.", "It blocked them, so their labels never arrive."),
    b=("Examples of honest payments.", "Most payments that it lets through are honest."),
    c=("Nothing: the data are still real payments.", "They are a selection by the model itself."),
)
