"""Define the exercises and questions of data_drift.ipynb."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from labsupport.exercises.exercise import OpenExercise, Question, exercise, is_number

if TYPE_CHECKING:
    import pandas as pd


KINDS = ("data", "concept", "both", "label shift")
SITUATIONS = {  # of each: the kinds that are accepted, and why
    "houses": (("data",), "larger houses are listed, so P(x) has changed; a house of the same size costs what it did"),
    "prices": (("concept",), "the same houses are listed, so P(x) stays; for the same house another price is right"),
    "payments": (
        ("both",),
        "more people pay online, so P(x) has changed; such a payment is less often fraud, so P(y given x) has, too",
    ),
    "search": (
        ("data", "both"),  # both: "the president" may ask for another person now
        "the name is a new input, so P(x) has changed; for other searches the same pages are right as before",
    ),
    "voices": (("data",), "children sound different, so P(x) has changed; each word still has its own sounds"),
    "delivery": (
        ("label shift",),
        "more phones are scratched, so P(y) has changed, and P(x) only because of that: "
        "P(x given y) stays, because a scratched phone looks as before",
    ),
    "lamp": (("data",), "the pictures are darker, so P(x) has changed; the same scratch is still a defect"),
}


@exercise(
    "Ask two things. Do other inputs come now? Is another target right for the same input?",
    "In a label shift the shares of the targets change, and each target looks as before.",
)
def which_kind(answer: Mapping[str, str]) -> str | None:
    """data_drift.ipynb: the kind of drift in seven situations."""
    if not isinstance(answer, Mapping) or SITUATIONS.keys() - answer.keys():
        return f"give a dictionary with a kind for each of {', '.join(SITUATIONS)}"
    named = {name: str(answer[name]).lower().removesuffix(" drift") for name in SITUATIONS}
    if strange := [name for name, kind in named.items() if kind not in KINDS]:
        return f"{strange[0]}: {answer[strange[0]]!r} is no kind: give one of {', '.join(KINDS)}"
    wrong = [f"\n  {name}: {why}" for name, (kinds, why) in SITUATIONS.items() if named[name] not in kinds]
    return f"look again at {len(wrong)} of the {len(SITUATIONS)}:{''.join(wrong)}" if wrong else None


@exercise(
    "Draw both windows on one line.",
    "Which share of each window is at most 2? At which value do the shares differ most?",
)
def largest_gap(answer: float) -> str | None:
    """data_drift.ipynb: the KS statistic of 1, 2, 3, 4 and 3, 4, 5, 6."""
    if not is_number(answer):
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
    if not is_number(answer) or not 0 <= answer <= 1:
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

    windows = [  # missing values in each column, and rows: before, now
        (({"light": 30, "weight": 1, "speed": 2}, 100), ({"light": 7, "weight": 4, "speed": 0}, 20)),
        (({"light": 7, "weight": 1, "speed": 2}, 20), ({"light": 30, "weight": 20, "speed": 0}, 100)),
    ]
    for window in windows:
        before, now = (
            pd.DataFrame({name: gaps * [np.nan] + (rows - gaps) * [1.0] for name, gaps in columns.items()})
            for columns, rows in window
        )
        answer = column_with_new_gaps(before, now)
        if not isinstance(answer, str):
            return "return the name of a column"
        if answer == "light":
            return "the number of gaps in light is high, but light always had gaps: compare shares, before and now"
        if answer == "speed":
            return "speed has fewer gaps than before: look for the column in which the share has grown most"
        if answer != "weight":
            return f"there is no column {answer!r}"
    return None


@exercise(
    "Of 100 phones with a share s of defects, the model flags 90 s rightly. How many of the good ones?",
    "Solve flagged = s * 0.9 + (1 - s) * 0.1 for s.",
)
def share_of_defects(answer: float) -> str | None:
    """data_drift.ipynb: the share of defects, if 34 % are flagged by a model with 90 % true and 10 % false alarms."""
    if not is_number(answer) or not 0 <= answer <= 1:
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


@exercise(
    "share.diff(days) is how much the share has changed over this number of days. Its max() is the largest change.",
    "Try 1, 2, 3 and so on, until the largest change is above 0.05. The number before it is the answer.",
)
def days_between_reports(answer: int, share: "pd.Series") -> str | None:
    """data_drift.ipynb: the most days between two reports if a share may change by 5 points from one to the next."""
    if not is_number(answer, whole=True) or not 1 <= answer < len(share):
        return f"give a whole number of days, from 1 to {len(share) - 1}"
    change = (100 * share.diff(int(answer))).round(6)
    if (most := change.max()) > 5:
        end = int(change.idxmax())
        return f"from day {end - answer} to day {end} the share changes by {most:.1f} points: report more often"
    if round(100 * share.diff(int(answer) + 1).max(), 6) <= 5:
        return (
            f"with {answer} days between reports the share changes by at most {most:.1f} points, so more days are allowed: "
            "a fast day is followed by slower ones"
        )
    return None


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
