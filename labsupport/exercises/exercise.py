"""Make the exercises of the lessons, the questions at their ends, and guesses before a measurement.

The check of an `Exercise` runs the answer; it does not compare its text. No check raises, because an unfinished exercise
must not stop a notebook that is run from top to bottom.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from labsupport import arguments, paths

NOT_TRIED = "Not tried yet: put your answer in place of the dots."


def is_number(answer: object, whole: bool = False) -> bool:
    """Return whether an answer is a number, of Python or NumPy, and neither NaN nor a truth value."""
    return isinstance(answer, Integral if whole else Real) and not isinstance(answer, bool) and answer == answer


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
            verdict = f"Not yet: {wrong}" if wrong else "Right."
        except (Exception, SystemExit) as error:  # the learner's code may do anything
            verdict = f"Not yet: it raised {type(error).__name__}: {_text(error)}"
        print(verdict.encode(errors="backslashreplace").decode())  # a text may hold what cannot be printed

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


def _text(value: object) -> str:
    """Return `str(value)`, or a stand-in if that raises."""
    try:
        return str(value)
    except Exception:
        return "(its text cannot be shown)"


def exercise(*hints: str) -> Callable[[Callable[..., str | None]], Exercise]:
    """Return a decorator that makes an `Exercise` with these hints. It has the name of the function.

    >>> @exercise("look at the last digit")
    ... def even(answer):
    ...     return None if answer % 2 == 0 else f"{answer} is odd"
    >>> even.check(3)
    Not yet: 3 is odd
    """
    return lambda question: Exercise(question, question.__name__, hints)


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


class Question:
    """Ask a question with several options. `options` maps each letter to its text and its explanation.

    >>> sky = Question("Which colour is the sky?", right="b", a=("green", "That is grass."), b=("blue", "Light scatters."))
    >>> sky.ask()
    Which colour is the sky?
      a) green
      b) blue
    >>> sky.check("a")
    Not that one. That is grass.
    >>> sky.check("b")
    Right. Light scatters.
    >>> sky.check(...)
    Not tried yet: give one of a, b.
    >>> sky.check(["b"])
    ['b'] is no option: give one of a, b.
    """

    def __init__(self, text: str, right: str, **options: tuple[str, str]) -> None:
        if right not in options:
            raise ValueError(f"right={right!r}: give the letter of one of the options {', '.join(options)}")
        self.text, self.right = text, right
        self.options: Mapping[str, tuple[str, str]] = options

    def ask(self) -> None:
        """Print the question and its options."""
        print(self.text)
        for letter, (option, _) in self.options.items():
            print(f"  {letter}) {option}")

    def check(self, letter: Any) -> None:
        """Print whether the option is right, and its explanation."""
        if not isinstance(letter, str) or letter not in self.options:
            tried = "Not tried yet" if letter is ... else f"{arguments.shown(letter)} is no option"
            print(f"{tried}: give one of {', '.join(self.options)}.")
            return
        verdict = "Right." if letter == self.right else "Not that one."
        print(f"{verdict} {self.options[letter][1]}")


class OpenExercise:
    """Ask for an answer in the learner's own words, which no program can judge.

    `check` prints a model answer and points to compare the learner's answer with.

    >>> sky = OpenExercise("Air scatters blue light most.", "Is scattering named?", "Is it said which light?")
    >>> sky.check(...)
    Not tried yet: put your answer in place of the dots.
    >>> sky.check("the air does it")
    One good answer: Air scatters blue light most.
    Compare it with yours:
      1. Is scattering named?
      2. Is it said which light?
    """

    def __init__(self, model_answer: str, *points: str, hints: Sequence[str] = ()) -> None:
        self.model_answer, self.points = model_answer, points
        self._hints = Exercise(lambda: None, name="", hints=tuple(hints))

    def check(self, answer: Any) -> None:
        """Print the model answer and the points to compare, once there is an answer."""
        if answer is ... or not _text(answer).strip():
            print(NOT_TRIED)
            return
        print(f"One good answer: {self.model_answer}\nCompare it with yours:")
        for number, point in enumerate(self.points, 1):
            print(f"  {number}. {point}")

    def hint(self) -> None:
        """Print the next hint, as that of an `Exercise`."""
        self._hints.hint()
