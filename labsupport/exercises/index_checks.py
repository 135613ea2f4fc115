"""Define the exercises of index.ipynb: Question 0, and six checks of what the lessons take for granted."""

from typing import Any

import numpy as np

from labsupport.exercises.exercise import exercise

LATENCIES = (12, 14, 15, 15, 16, 17, 18, 18, 19, 20, 21, 22, 23, 24, 26, 28, 31, 35, 48, 120)  # milliseconds


@exercise(
    "Think of the picture as a table: 480 rows, 512 columns. How many cells does it have?",
    "Each cell holds three numbers: blue, green and red. Python can multiply for you.",
)
def question_zero(answer: int) -> str | None:
    """Check how many numbers a colour picture of 480 x 512 pixels has."""
    if not _is_number(answer):
        return "give a whole number, as in answer = 12"
    if answer == 480 * 512:
        return f"{answer:,} is the number of pixels: each of them has three numbers"
    if answer == 480 + 512 + 3:
        return "you added: rows times columns gives the number of pixels"
    return None if answer == 480 * 512 * 3 else f"{answer:,} is not rows times columns times colours"


@exercise(
    "A dict gives the value of a key with square brackets: found['label'] is 'dog'.",
    "The box is a dict inside the dict, so you need square brackets twice.",
    "To read: https://docs.python.org/3/tutorial/datastructures.html#dictionaries",
)
def from_a_dict(answer: int) -> str | None:
    """Check the left edge of a box, taken out of a nested dict."""
    if isinstance(answer, dict):
        return "that is the whole box: take one more key"
    if isinstance(answer, str):
        return "that is a text: the left edge is a number inside the box"
    if answer == 258:
        return "that is the top edge"
    return None if answer == 62 else f"{answer} does not stand under 'left'"


@exercise(
    "[name for name in names if ...] keeps the names for which the condition is true.",
    "Each element is a pair, so the loop may have two variables: for label, confidence in objects",
    "To read: https://docs.python.org/3/tutorial/datastructures.html#list-comprehensions",
)
def sure_labels(answer: list[str]) -> str | None:
    """Check the labels of the objects with a confidence above 0.8."""
    if not isinstance(answer, list | tuple):
        return "give a list of labels"
    if any(isinstance(one, tuple) for one in answer):
        return "these are pairs: keep the label only"
    if "sheep" in answer:
        return "the sheep has 0.78, which is not above 0.8"
    return None if list(answer) == ["person", "dog"] else f"{list(answer)}: which objects have more than 0.8?"


@exercise(
    "NumPy counts True as 1 and False as 0.",
    "The mean of such an array is the share of True. Every array has the method mean.",
    "To read: https://numpy.org/doc/stable/user/absolute_beginners.html#more-useful-array-operations",
)
def share_of_errors(answer: float) -> str | None:
    """Check the share of wrong answers in an array of True and False: two of five."""
    if not _is_number(answer):
        return "give a number between 0 and 1"
    if answer == 2:
        return "that is how many are wrong: divide by how many there are"
    if abs(answer - 0.6) < 1e-9:
        return "that is the share of right answers"
    if answer == 40:
        return "that is in per cent: give a share between 0 and 1"
    return None if abs(answer - 0.4) < 1e-9 else f"{answer} is not the share of True in the array"


@exercise(
    "Each bar counts the values between its two edges. Find the bar between 0.8 and 0.9.",
    "The height of that bar, read at the axis on the left, is the answer.",
    "To read: https://numpy.org/doc/stable/reference/generated/numpy.histogram.html",
)
def read_a_histogram(answer: int) -> str | None:
    """Check how many values lie between 0.8 and 0.9 in a histogram."""
    if not _is_number(answer):
        return "give a whole number"
    if answer == 20:
        return "that is the number of all values: read one bar"
    if answer in (2, 3, 4, 5):
        return "that is the height of another bar: look between 0.8 and 0.9"
    return None if answer == 6 else f"no bar is {answer} high"


@exercise(
    "It is the status that you see in the browser when a link is broken.",
    "It begins with 4, because the client has to change something.",
    "To read: https://developer.mozilla.org/en-US/docs/Web/HTTP/Reference/Status",
)
def missing_page(answer: int) -> str | None:
    """Check the HTTP status of a page that does not exist."""
    if isinstance(answer, str):
        return "give the number, without quotes"
    if answer == 200:
        return "200 means that all is well, and the page is in the answer"
    if isinstance(answer, int) and 500 <= answer < 600:
        return f"{answer} says that the server failed: here the server works, and the address is wrong"
    return None if answer == 404 else f"{answer} is another status"


@exercise(
    "Half of the values are below the median. 95 % of the values are below the 95th percentile.",
    "NumPy has a function with this name. Its second argument is the 95.",
    "To read: https://numpy.org/doc/stable/reference/generated/numpy.percentile.html",
)
def slow_answers(answer: float) -> str | None:
    """Check the 95th percentile of `LATENCIES`."""
    if not _is_number(answer):
        return "give a number of milliseconds"
    close = {
        "the median: half of the answers are faster": np.median(LATENCIES),
        "the mean": np.mean(LATENCIES),
        "the slowest answer: five in a hundred may be slower than the 95th percentile": max(LATENCIES),
        "nearly nothing: the second argument goes from 0 to 100": np.percentile(LATENCIES, 0.95),
    }
    for name, value in close.items():
        if abs(answer - value) < 0.01:
            return f"{answer:.4g} ms is {name}"
    return None if 48 <= answer <= 120 else f"{answer:.4g} ms: 19 of the 20 answers should be faster or as fast"


def _is_number(answer: Any) -> bool:
    return isinstance(answer, int | float | np.number) and not isinstance(answer, bool)
