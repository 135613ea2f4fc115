"""Define the exercises and questions of data_drift.ipynb and concept_drift.ipynb."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from labsupport.drift import Cusum, cusum_run_length
from labsupport.exercises.exercise import OpenExercise, Question, exercise

if TYPE_CHECKING:
    import pandas as pd


def _number(answer: Any) -> bool:
    return isinstance(answer, int | float) and not isinstance(answer, bool)


@exercise(
    "Draw both windows on one line.",
    "Which share of each window is at most 2? At which value do the shares differ most?",
)
def largest_gap(answer: float) -> str | None:
    """data_drift.ipynb: the KS statistic of 1, 2, 3, 4 and 3, 4, 5, 6."""
    if not _number(answer):
        return "give a number"
    if abs(answer - 0.5) < 0.01:
        return None
    if answer > 1:
        return "a KS statistic is a difference of two shares, so it is at most 1; the values themselves moved by 2"
    if answer == 1:
        return "1 would mean that the windows have no value in common, but both have 3 and 4"
    return "compare the shares at each value from 1 to 6: the largest difference is another one"


@exercise(
    "Compare the two windows with the library, and look at its table.", "Use the adjusted p-value of each column."
)
def drifted_columns(answer: set[str]) -> str | None:
    """data_drift.ipynb: which columns of the shop have changed."""
    if not isinstance(answer, set | frozenset | list | tuple):
        return "give a set of column names"
    if unknown := set(answer) - {"items", "price", "hour"}:
        return f"the shop has no column {', '.join(sorted(map(str, unknown)))}"
    if extra := set(answer) - {"price"}:
        return f"{', '.join(sorted(extra))} comes from the same distribution as before: is its adjusted p-value below 0.05?"
    return None if answer else "one column has changed: drift.compare(last_week, this_week).features"


@exercise("First find the chance that all twelve tests stay silent.", "Independent events: multiply their chances.")
def any_alarm(answer: float) -> str | None:
    """data_drift.ipynb: the chance that at least one of twelve tests at 5 % fires although nothing has changed."""
    if not _number(answer) or not 0 <= answer <= 1:
        return "give a share between 0 and 1"
    if abs(answer - (1 - 0.95**12)) < 0.006:
        return None
    if abs(answer - 0.95**12) < 0.006:
        return "that is the chance that no test fires"
    if abs(answer - 0.6) < 0.006:
        return "a sum counts hours with two alarms twice"
    if abs(answer - 0.05) < 0.006:
        return "that is the chance for one column"
    return "twelve tests stay silent together with the product of their chances"


@exercise(
    "A test for each column gives ten p-values. What may the smallest one be?",
    "Section 3 has a rule that holds for all columns together.",
    "scipy.stats.ks_2samp gives a p-value for two arrays.",
)
def own_detector(is_drift: Callable[[np.ndarray, np.ndarray], bool]) -> str | None:
    """data_drift.ipynb: at most 5 % false alarms on 10 columns, and 80 % of shifts by half a deviation found."""
    random = np.random.default_rng(9)
    false, found = 0, 0
    for _ in range(200):
        reference, current = random.normal(size=(2, 200, 10))
        false += bool(is_drift(reference, current))
        current[:, random.integers(10)] += 0.5
        found += bool(is_drift(reference, current))
    if false > 0.05 * 200 + 7:  # two standard errors more than is allowed
        return f"it alarms in {false} of 200 windows in which nothing has changed: correct for the ten columns"
    return None if found >= 160 else f"it finds {found} of 200 shifts: at least 160 are needed"


@exercise(
    "Which method of a frame marks its missing values?",
    "The mean of a mark, 0 or 1, is a share. Compare the two shares.",
)
def most_missing(column_with_new_gaps: "Callable[[pd.DataFrame, pd.DataFrame], str]") -> str | None:
    """data_drift.ipynb: a function that names the column whose share of missing values grew most."""
    import pandas as pd

    gap, full = [np.nan], [1.0]
    before = pd.DataFrame({"light": 30 * gap + 70 * full, "weight": 1 * gap + 99 * full, "speed": 2 * gap + 98 * full})
    now = pd.DataFrame({"light": 7 * gap + 13 * full, "weight": 4 * gap + 16 * full, "speed": 20 * full})
    answer = column_with_new_gaps(before, now)
    if not isinstance(answer, str):
        return "return the name of a column"
    if answer == "light":
        return "the number of gaps in light is high, but light always had gaps: compare shares, before and now"
    if answer == "speed":
        return "speed has fewer gaps than before: look for the column in which the share has grown most"
    return None if answer == "weight" else f"there is no column {answer!r}"


@exercise(
    "Of 100 phones with a share s of defects, the model flags 90 s rightly. How many of the good ones?",
    "Solve flagged = s * 0.9 + (1 - s) * 0.1 for s.",
)
def share_of_defects(answer: float) -> str | None:
    """data_drift.ipynb: the share of defects, if 34 % are flagged by a model with 90 % true and 10 % false alarms."""
    if not _number(answer) or not 0 <= answer <= 1:
        return "give a share between 0 and 1"
    if abs(answer - 0.3) < 0.005:
        return None
    if abs(answer - 0.34) < 0.005:
        return "that is the share that the model flags; some of those are good phones"
    if abs(answer - 0.24) < 0.005:
        return "you removed the false alarms, but 80 points separate a day without defects from a day of defects only"
    if abs(answer - 0.34 / 0.9) < 0.005:
        return "you allowed for missed defects, but not for good phones that are flagged"
    return "write down which phones are flagged: 90 % of the defects and 10 % of the good ones"


watch_list = OpenExercise(
    "A loan model: watch income, age, the share of missing incomes, the channel of the application and the model's score. "
    "The reference is the quarter after the last check of the labels. One report a week, at a level of 5 %. "
    "If income shifts, first ask whether the form has changed; if the channel shifts, estimate the error for each channel.",
    "Does your list include an output of the model and missing values, besides the inputs?",
    "Is the reference a period for which somebody looked at labels?",
    "Does each alarm lead to a first action by a person who is named?",
)

harmless_question = Question(
    "Each new window raises an alarm on the inputs. Labels arrive, and the error is as before. What happened?",
    right="b",
    a=(
        "A false alarm.",
        "Chance raises an alarm now and then, but not in each new window. Think of the larger houses in section 1.",
    ),
    b=(
        "Data drift that does no harm.",
        "P(x) changed, and what the model learned about y given x still holds.",
    ),
    c=("Concept drift.", "Then y given x would have changed, and the error with it."),
)
limit_question = Question(
    "A colleague wants one limit, PSI above 0.1, for windows of 50 and of 5,000 rows. What do you say?",
    right="c",
    a=(
        "Fine, 0.1 is the rule of thumb.",
        "The rule ignores the number of rows. With 50 rows, chance alone gives more than 0.1.",
    ),
    b=("Use 0.25 for both.", "That is the same mistake with another number."),
    c=(
        "The limit must depend on the number of rows.",
        "PSI without any change is about (1/n + 1/m) times the number of bins.",
    ),
)
blind_question = Question(
    "From today on a scratch below 20 pixels counts as good. Which report notices it?",
    right="a",
    a=("A comparison of predictions with new labels.", "P(y given x) changed, and only labels show that."),
    b=("A comparison of the pictures' brightness.", "The pictures are the same as before."),
    c=("A comparison of the model's confidences.", "The same model gets the same pictures, so its confidences stay."),
)


@exercise(
    "Start at 0 and go through the values one by one.", "After each value: add it, subtract k, and never fall below 0."
)
def cusum_by_hand(answer: float) -> str | None:
    """concept_drift.ipynb: the CUSUM with k=0.5 after the values 1, 0, 0, 1, 1."""
    if not _number(answer):
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
    if not _number(answer) or not 0 < answer <= 20:
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
    if not _number(answer) or not 0 <= answer <= 1:
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
