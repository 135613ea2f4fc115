"""Define the exercises of lifecycle.ipynb."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from labsupport.exercises.exercise import OpenExercise, Question, exercise, is_number
from labsupport.scenarios import labelling

if TYPE_CHECKING:
    import pandas as pd

FORGIVEN = 2  # labels of twelve that may differ from the rule: a scratch is hard to measure on a screen
GOOD = 0.9  # share of the phones that each of two people calls good


@exercise(
    "They agree in two ways: both say good, or both say defect.",
    "Multiply the chances for each way, and add the two products.",
)
def chance_agreement(answer: float) -> str | None:
    """lifecycle.ipynb: the share on which two people agree who call nine in ten phones good, at random."""
    if not is_number(answer) or not 0 <= answer <= 1:
        return "give a share between 0 and 1"
    near = {
        GOOD: "that is how often one of them says good",
        GOOD**2: "that is how often both say good: they may both say defect, too",
        2 * GOOD * (1 - GOOD): "that is how often they differ",
        (1 - GOOD) ** 2: "that is how often both say defect: they may both say good, too",
    }
    if hints := [hint for value, hint in near.items() if abs(answer - value) < 1e-3]:
        return hints[0]
    right = GOOD**2 + (1 - GOOD) ** 2
    return None if abs(answer - right) < 1e-3 else f"{answer:g} is not it: add up the two ways in which they agree"


@exercise(
    "Compare the two columns of costs, row by row.",
    "Find the first row in which selling costs more. Where does it begin?",
)
def shortest_defect(answer: float) -> str | None:
    """lifecycle.ipynb: the length of a scratch, in pixels, from which on rejecting a phone costs less than selling it."""
    if not is_number(answer):
        return "give a number of pixels"
    if abs(answer - labelling.RULE) < 0.5:
        return None
    if answer in (28, 29, 30, 32):
        return "there about half of the customers return the phone, but selling costs more than rejecting long before"
    if answer < labelling.RULE:
        return f"{answer:g} is too short: from 16 to 20 pixels selling still costs less than rejecting"
    return f"{answer:g} is too long: from 20 to 24 pixels selling already costs more than rejecting"


@exercise(
    "Is the longest scratch of the phone at least as long as the white bar?",
    "Dust, hairs and reflections are no scratches. A scratch is light, thin and jagged.",
    "By the rule most of the twelve phones are defects.",
)
def twelve_by_rule(answer: str, lengths: np.ndarray) -> str | None:
    """lifecycle.ipynb: the labels of twelve phones by the rule, d or g, whose longest scratches have these lengths."""
    if not isinstance(answer, str):
        return "give a text of twelve letters in quotes"
    try:
        labels = labelling.from_letters(answer, count=len(lengths))
    except ValueError as error:
        return str(error)
    truth = np.asarray(lengths) >= labelling.RULE
    wrong = labels != truth
    if wrong.sum() <= FORGIVEN:
        return None
    if not labels.any():
        return "you reject no phone: which scratches are longer than the bar?"
    first = int(wrong.argmax())
    words = "a defect: its scratch is at least as long" if truth[first] else "good: no scratch on it is as long"
    return f"{wrong.sum()} of your labels differ from the rule. For example, phone {first + 1} is {words} as the bar"


@exercise(
    "If both models give a phone the same answer, both are right or both are wrong.",
    "Count the phones on which the answers differ: as_it_is != sixty.",
)
def labels_to_compare(answer: int, one: np.ndarray, other: np.ndarray) -> str | None:
    """lifecycle.ipynb: the number of test phones whose labels decide which of two models is better."""
    if not is_number(answer, whole=True):
        return "give a whole number of phones"
    differ = int(np.sum(one != other))
    if answer == differ:
        return None
    if answer == len(one):
        return "on most of these both models say the same, and then the label is the same gain or loss for both"
    if answer == len(one) - differ:
        return "that is on how many they agree"
    return f"{answer} is not it: on how many phones do the two answers differ?"


@exercise(
    "Only the values in chances are worth trying, and one above all of them.",
    "For each place count np.sum((chances >= place) != labels).",
    "min(places, key=...) returns the place with the smallest count.",
)
def best_threshold(threshold: Callable[[np.ndarray, np.ndarray], float]) -> str | None:
    """lifecycle.ipynb: a function of chances and labels that returns a threshold with the fewest errors."""
    random, answers, wrong = np.random.default_rng(0), [], []
    for limit in (0.15, 0.3, 0.5, 0.8):
        chances = random.random(200)
        labels = (chances >= limit) ^ (random.random(200) < 0.1)
        if not is_number(answer := threshold(chances, labels)):
            return f"it returned a value of type {type(answer).__name__}: return a number"
        if answer > 2:
            return f"it returned {answer:g}: return the threshold, not the number of errors"
        errors = int(np.sum((chances >= answer) != labels))
        fewest = int(min(np.sum((chances >= place) != labels) for place in [*chances, 1.1]))
        answers.append(float(answer))
        if errors > fewest:
            wrong.append(f"of 200 phones it judges {errors} wrongly with {answer:.2f}, and {fewest} are possible")
    if wrong and len({*answers}) == 1:
        return f"it returns {answers[0]:g} whatever the labels are"
    return wrong[0] if wrong else None


@exercise(
    "Multiply two columns: table['share'] * table['gap'].",
    "A gap below zero means that people are wrong more often than the model: there is little to win.",
    "idxmax() of a column gives the name of the row with the largest value.",
)
def next_slice(answer: str, table: "pd.DataFrame") -> str | None:
    """lifecycle.ipynb: the slice in which most mistakes can be avoided. `table` has columns share, gap and model."""
    if not isinstance(answer, str) or answer not in table.index:
        return f"give the name of a slice: {', '.join(map(str, table.index))}"
    won = 100 * table["share"] * table["gap"]
    if answer == won.idxmax():
        return None
    if answer == table["model"].idxmax():
        return "there the model is wrong most often, but people often are, too, and such phones are few"
    if answer == table["share"].idxmax():
        return "that is the largest slice, but the model makes hardly any mistake there"
    return f"{answer} can win {won[answer]:.1f} points, and another slice can win more"


project_page = OpenExercise(
    "Walkers photograph a mushroom and get 'poisonous', 'edible' or 'ask an expert'. Calling a poisonous one edible may "
    "kill; the other mistake costs a meal. So the model never decides 'edible' alone. Experts who have the mushroom in "
    "their hands are almost always right, and on photographs less often: we measure that first. Rule: a species is edible "
    "if the official list names it without conditions, because a hospital judges by that list. Guesses: 90 % of the species "
    "right, 200 ms on the phone without a network, one picture a second, 3,000 labels by experts at 2 euros.",
    "Does each kind of mistake have a price of its own, and a person who pays it?",
    "Is the human level something that you will measure, and not a feeling?",
    "Does the rule have a reason that comes from the use, so that two people would label alike?",
    "Can each of the four guesses turn out wrong?",
    hints=["Begin with the mistake that you fear most. Who suffers from it, and what does it cost?"],
)

kappa_question = Question(
    "Two inspectors agree on 83 % of the phones, and kappa is 0.4. What does kappa add to the share?",
    right="b",
    a=("How many phones are labelled wrongly.", "Kappa compares people with each other, not with the rule."),
    b=(
        "How far the agreement gets from chance (0) towards full agreement (1).",
        "Most phones look good to both, so they would often agree without looking. Kappa takes that part out.",
    ),
    c=("How long they took.", "Neither of the two numbers knows about time."),
)

relabel_question = Question(
    "You correct labels for training, and the error on the old test labels rises. What do you do first?",
    right="a",
    a=(
        "Label a part of the test again, by the rule, where the two models differ.",
        "The old test may contain the same mistakes as the old training labels, and reward a model that repeats them.",
    ),
    b=("Go back to the old training labels.", "You would keep a model because it repeats the mistakes of the test."),
    c=("Collect more labels as before.", "They have the same bias, for training and for the test."),
)

fading_light_question = Question(
    "An alarm says that the pictures have become dark. What comes first?",
    right="c",
    a=("Train on all labels again.", "They were made in good light, so the model learns nothing about dark pictures."),
    b=("Raise the limit of the alarm.", "Then nobody notices, and missed defects go on."),
    c=(
        "Look at some pictures, and find the cause.",
        "A new lamp may be all that is needed. If the light stays, new pictures and labels are the way: back to data.",
    ),
)
