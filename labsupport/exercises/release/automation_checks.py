"""Define the exercises of automation.ipynb."""

from collections.abc import Collection, Mapping
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from labsupport.automation import Degree, Thresholds, error_bound, expected_outcome
from labsupport.exercises.exercise import OpenExercise, Question, exercise, is_number

if TYPE_CHECKING:
    import pandas as pd

LOOK, MISS, REJECT = 0.20, 5.0, 1.0  # euros, as in the lesson: a person's look, a missed defect, a false reject
DEAR = 50.0  # euros: a missed defect in the exercise on thresholds
ASSISTED = (0.02, 0.015)  # people with assistance: shares of missed defects and of false rejects
DEGREES = {"x-ray": "assistance", "spam": "full", "payments": "partial", "loans": "shadow"}
LOOP = ("x-ray", "payments")  # a human is in the loop


@exercise(
    "Ask of each case two things: who decides, and does a person see what the model says?",
    "In shadow mode the model's opinion is recorded, and nobody sees it.",
    "If the model decides some cases alone and not others, it is partial automation.",
    "A human is in the loop if person and model both take part in the decisions: two of the five degrees.",
)
def name_the_degree(answer: Mapping[str, str], in_the_loop: Collection[str]) -> str | None:
    """automation.ipynb: the degree of automation of four services, and those with a human in the loop."""
    if not isinstance(answer, Mapping) or DEGREES.keys() - answer.keys():
        return f"give a dictionary with a degree for each of {', '.join(DEGREES)}"
    if answer["loans"] == "assistance":
        return "loans: the officer does not see the score, so it assists nobody"
    if answer["payments"] in ("full", "assistance"):
        return f"payments: {answer['payments']} is one way for all cases; here the model decides some of them alone"
    if answer["x-ray"] == "partial":
        return "x-ray: the doctor decides every case, so the model decides none alone"
    wrong = [name for name, degree in DEGREES.items() if answer[name] != degree]
    if wrong:
        return f"{wrong[0]}: {answer[wrong[0]]!r} is not its degree: who decides there?"
    return _in_the_loop(in_the_loop)


def _in_the_loop(answer: Collection[str]) -> str | None:
    if isinstance(answer, str) or not isinstance(answer, Collection) or set(answer) - DEGREES.keys():
        return f"in the loop: give a set with some of {', '.join(DEGREES)}"
    if "spam" in answer:
        return "in the loop: no person takes part in the decisions about spam"
    if "loans" in answer:
        return "in the loop: the officer for loans decides, but the model takes no part, because nobody sees its score"
    missing = [name for name in LOOP if name not in answer]
    return f"in the loop: person and model both take part in the decisions of {missing[0]}" if missing else None


@exercise(
    "error_bound(0, 100) is the bound after 100 decisions without an error. Try larger numbers.",
    "Look for the smallest number whose bound is at most 0.01. The one below it must be too small.",
)
def error_free_decisions(answer: int) -> str | None:
    """automation.ipynb: how many decisions without an error promise at most 1 % errors with 95 % confidence."""
    if not is_number(answer, whole=True):
        return "give a whole number"
    if (bound := error_bound(0, answer)) > 0.01:
        return f"{answer} decisions without an error may still hide an error rate of {bound:.2%}"
    return None if error_bound(0, answer - 1) > 0.01 else "that is enough, and so is one less"


def _cost(table: "pd.DataFrame", degree: str, look: float = LOOK, miss: float = MISS) -> float:
    """Return the cost of a degree for each phone, in euros. The table is that of the lesson."""
    row = table.loc[degree]
    return float(look * (1 - row["by_model"]) + miss * row["misses"] + REJECT * row["rejects"])


@exercise(
    "Set the two costs equal: cost(table, look=price) of full and of partial.",
    "Only partial needs looks, at a share of 1 - by_model of the phones.",
    "Divide the difference of the costs of their mistakes by that share.",
)
def price_of_a_look(answer: float, table: "pd.DataFrame") -> str | None:
    """automation.ipynb: the price of a person's look from which on FULL is cheaper than PARTIAL; a miss costs 5."""
    if not is_number(answer) or not 0 < answer < 100:
        return "give a price, as the 0.2 that a look costs now"
    if _cost(table, "full", 1.02 * answer) >= _cost(table, "partial", 1.02 * answer):
        return f"at {answer} the mistakes of full automation still cost more than the looks of partial: go up"
    if _cost(table, "full", 0.98 * answer) < _cost(table, "partial", 0.98 * answer):
        return "full automation was cheaper before: go down"
    return None


@exercise(
    "Set the two costs equal: cost(table, miss=price) of assistance and of partial.",
    "Partial saves looks, and misses more. The difference of `misses` is what the price multiplies.",
    "Divide what partial saves (looks and rejects) by what it misses more.",
)
def price_of_a_miss(answer: float, table: "pd.DataFrame") -> str | None:
    """automation.ipynb: the price of a missed scratch from which on ASSISTANCE is cheaper than PARTIAL."""
    if not is_number(answer) or not 0 < answer < 10_000:
        return "give a price in euros, as the 5 that a missed scratch costs now"
    if _cost(table, "assistance", miss=1.02 * answer) >= _cost(table, "partial", miss=1.02 * answer):
        return f"at {answer} euros partial automation is still cheaper: go up"
    if _cost(table, "assistance", miss=0.98 * answer) < _cost(table, "partial", miss=0.98 * answer):
        return "assistance was cheaper before: go down"
    return None


@exercise(
    "The two thresholds need not be equally far from 0 and 1. Which mistake is dear: below low, or from high on?",
    "low=0 means: a person looks at each phone that may be good.",
    "Try values of high between 0.1 and 1 with expected_outcome, and keep the cheapest.",
)
def cheapest_thresholds(thresholds: Thresholds, labels: np.ndarray, confidences: np.ndarray) -> str | None:
    """automation.ipynb: thresholds of partial automation at which a phone costs least, if a missed scratch costs 50."""
    if not isinstance(thresholds, Thresholds):
        return "give Thresholds(low=..., high=...)"
    places = [*np.linspace(0, 0.5, 26), *np.linspace(0.52, 1, 25), np.inf]
    pairs = [Thresholds(low, high) for low in places for high in places if low <= high and low <= 1]
    best = min(_partial_cost(pair, labels, confidences) for pair in pairs)
    cost = _partial_cost(thresholds, labels, confidences)
    if cost <= 1.02 * best:
        return None
    by_model = thresholds.sure(np.asarray(confidences)).mean()
    if not by_model:
        return (
            f"nothing is decided by the model, and a phone costs {cost:.3f}: let it decide where its mistakes are cheap"
        )
    if by_model == 1:
        return f"the model decides everything, and a phone costs {cost:.3f}: its misses are dear"
    return f"a phone costs {cost:.3f}, and less is possible: which of the two thresholds lets scratches pass?"


def _partial_cost(thresholds: Thresholds, labels: np.ndarray, confidences: np.ndarray) -> float:
    outcome = expected_outcome(labels, confidences, Degree.PARTIAL, thresholds, *ASSISTED)
    scratched = float(np.mean(labels))
    mistakes = DEAR * scratched * outcome.missed + REJECT * (1 - scratched) * outcome.false_alarms
    return LOOK * (1 - outcome.by_model) + mistakes


@exercise(
    "Do with Inspector.load('better') what this section did with the stable one: score, choose_thresholds, sure.",
    "A person looks at each phone of which the model is not sure. Count these for both models.",
)
def phones_saved(answer: int) -> str | None:
    """automation.ipynb: of 4,000 phones in shadow, how many fewer does a person look at with the better model?"""
    if not is_number(answer, whole=True):
        return "give a whole number of phones"
    stable, better = _looks("stable"), _looks("better")
    if abs(answer - (stable - better)) <= 5:
        return None
    if answer < 0:
        return "a negative number would mean more work for people: subtract the other way round"
    if abs(answer - better) <= 5:
        return "that is how many phones a person still looks at: how many fewer are these?"
    return f"with the stable model people look at {stable} phones; with the better one it is not {stable - answer}"


@cache
def _looks(name: str) -> int:
    """Return how many of the phones in shadow a person has to look at, with this model and its own thresholds."""
    from labsupport import scenarios
    from labsupport.automation import choose_thresholds
    from labsupport.scenarios import Inspector

    shadow, inspector = scenarios.inspection(4_000, seed=21), Inspector.load(name)
    confidences = np.array([inspector.score(picture) for picture in shadow.images])
    return int((~choose_thresholds(shadow.truth, confidences, max_error=0.02).sure(confidences)).sum())


audit_plan = OpenExercise(
    "Each day we draw 50 phones at random from those that the model decided, before anybody knows the verdict. Two people "
    "label them and do not see the model's opinion. After two weeks these are 700 decisions: we compute the exact bound, "
    "and if it is above the promise, we go back to assistance with one setting. We also watch the share that the model "
    "decides, because it changed first when the lamp failed, and needs no labels.",
    "Are the audited phones drawn from the model's own decisions, and not from those that people saw anyway?",
    "Do the people label them without seeing the model's opinion?",
    "Does the plan say how many phones are needed before a verdict, and what happens then?",
)

shadow_labels_question = Question(
    "Why do people label the phones in shadow mode without seeing the model's opinion?",
    right="c",
    a=("They are faster that way.", "Rather the opposite. Speed is a reason for assistance."),
    b=("The model must not learn from them.", "It may. The labels are used for thresholds and for the next model."),
    c=(
        "People who see an opinion tend to agree with it.",
        "Then the labels would hide the model's mistakes, and the thresholds chosen from them would promise too much.",
    ),
)

promise_question = Question(
    "Thresholds were chosen so that at most 2 % of the model's own decisions are wrong. What does that promise?",
    right="a",
    a=(
        "with a confidence level of 95 %, a bound on the average of its mistakes, on phones like those in shadow",
        "Missed scratches and false rejects count alike, so the share of scratches that are missed can be much higher.",
    ),
    b=("that it misses at most 2 % of the scratches", "It may miss more: most of its decisions are about good phones."),
    c=(
        "that it keeps 2 % in any light",
        "The labels came from one kind of light. In another light nothing is promised.",
    ),
)

move_right_question = Question(
    "A model decides 60 % of the phones alone and keeps its promise. When is moving on to full automation right?",
    right="b",
    a=("When it has kept its promise for a year.", "The promise covers the cases of which it is sure, not the others."),
    b=(
        "When its mistakes on the unsure cases cost less than people do, with their looks and their mistakes.",
        "Both count: the performance of the model, and what the mistakes cost in this use.",
    ),
    c=("As soon as possible: full automation is the goal.", "For many uses partial automation or assistance is best."),
)
