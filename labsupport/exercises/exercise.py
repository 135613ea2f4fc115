"""Make the exercises of the lessons: each checks an answer, gives hints, and shows its solution.

A check runs the answer; it does not compare its text. It never raises, because an unfinished exercise must not stop a
notebook that is run from top to bottom.
"""

import json
from collections.abc import Callable
from typing import Any

from labsupport import paths

NOT_TRIED = "Not tried yet: put your answer in place of the dots."


class Exercise:
    """Check the answers to one exercise with `question`, which returns what is wrong with an answer, or None.

    >>> two = Exercise(lambda answer: None if answer == 2 else f"{answer} is not 2", name="two", hints=["1 + 1"])
    >>> two.check(...)
    Not tried yet: put your answer in place of the dots.
    >>> two.check(3)
    Not yet: 3 is not 2
    >>> two.hint()
    Hint 1 of 1: 1 + 1
    >>> two.check(2)
    Right.
    """

    def __init__(self, question: Callable[..., str | None], name: str, hints: list[str] | tuple[str, ...] = ()) -> None:
        self.name, self.hints, self._question, self._hinted = name, tuple(hints), question, 0
        self.__doc__ = question.__doc__

    def check(self, *answer: Any) -> None:
        """Print `Right.`, `Not yet:` with what is wrong, or `Not tried yet` if an answer is still `...`."""
        if any(part is ... for part in answer):
            print(NOT_TRIED)
            return
        try:
            wrong = self._question(*answer)
        except Exception as error:  # the learner's code may do anything
            wrong = f"it raised {type(error).__name__}: {error}"
        print(f"Not yet: {wrong}" if wrong else "Right.")

    def hint(self) -> None:
        """Print the next hint. After the last one, print all of them again from the first."""
        if not self.hints:
            print("There is no hint for this exercise.")
            return
        number = self._hinted % len(self.hints)
        self._hinted += 1
        print(f"Hint {number + 1} of {len(self.hints)}: {self.hints[number]}")

    def solution(self) -> None:
        """Print a solution, which the lesson's notebook holds in the metadata of the cell that calls `check`."""
        for file in sorted((paths.root() / "notebooks").glob("*.ipynb")):
            for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
                if f"{self.name}.check(" in "".join(cell["source"]) and "solution" in cell["metadata"]:
                    print(cell["metadata"]["solution"])
                    return
        print(f"No solution was found in {paths.root() / 'notebooks'}.")


def exercise(*hints: str) -> Callable[[Callable[..., str | None]], Exercise]:
    """Return a decorator that makes an `Exercise`, called like its function, with these hints.

    >>> @exercise("look at the last digit")
    ... def even(answer):
    ...     return None if answer % 2 == 0 else f"{answer} is odd"
    >>> even.check(3)
    Not yet: 3 is odd
    """
    return lambda question: Exercise(question, question.__name__, hints)


class OpenExercise:
    """Answer an exercise that has no single right answer with a model answer and three things to compare.

    >>> why = OpenExercise("Because light scatters.", "Is a cause named?", "Is it short?", "Is it true?")
    >>> why.check(...)
    Not tried yet: put your answer in place of the dots.
    >>> why.check("It is far away.")
    A model answer: Because light scatters.
    Compare it with yours:
      1. Is a cause named?
      2. Is it short?
      3. Is it true?
    """

    def __init__(self, model: str, *compare: str, hints: list[str] | tuple[str, ...] = ()) -> None:
        self.model, self.compare = model, compare
        self._hints = Exercise(lambda: None, name="", hints=hints)

    def check(self, *answer: Any) -> None:
        """Print the model answer and what to compare, or `Not tried yet` if an answer is still `...`. No verdict."""
        if any(part is ... for part in answer):
            print(NOT_TRIED)
            return
        print(f"A model answer: {self.model}\nCompare it with yours:")
        for number, thing in enumerate(self.compare, start=1):
            print(f"  {number}. {thing}")

    def hint(self) -> None:
        """Print the next hint. After the last one, print all of them again from the first."""
        self._hints.hint()


class Guess:
    """Keep a guess that was made before a measurement, and print both after it. Made by `predict`."""

    def __init__(self, question: str, guess: Any) -> None:
        self.question, self.guess = question, guess

    def against(self, measured: Any) -> None:
        """Print the guess beside the measured value. There is no right or wrong."""
        guess = "no guess yet" if self.guess is ... else f"your guess {self.guess}"
        print(f"{self.question} {guess}, measured {measured}")


def predict(question: str, guess: Any = ...) -> Guess:
    """Return a `Guess`, to be compared with what the next cells measure. `...` stands for no guess yet.

    >>> predict("How many of 900 requests are refused?", 100).against(312)
    How many of 900 requests are refused? your guess 100, measured 312
    """
    return Guess(question, guess)
