"""Turn functions into check cells, which print whether an exercise's answer is right, and if not, what is wrong with it.

A check runs the answer; it does not compare its text. It never raises, because an unfinished exercise must not stop a
notebook that is run from top to bottom.
"""

from collections.abc import Callable
from functools import wraps


def check(question: Callable[..., str | None]) -> Callable[..., None]:
    """Return a check cell's function for `question`, which returns what is wrong, or None. The check prints the result.

    >>> @check
    ... def two(answer):
    ...     return None if answer == 2 else f"{answer} is not 2"
    >>> two(3)
    Not yet: 3 is not 2
    """

    @wraps(question)
    def verdict(*answer: object) -> None:
        try:
            wrong = question(*answer)
        except Exception as error:  # the learner's code may do anything
            wrong = f"it raised {type(error).__name__}: {error}"
        print(f"Not yet: {wrong}" if wrong else "Right.")

    return verdict
