"""Ask the questions at the end of a lesson. Each answer gets an explanation, and nothing is graded."""

from collections.abc import Mapping
from typing import Any

from labsupport.exercises.exercise import NOT_TRIED


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
        if letter is ... or letter not in self.options:
            print(f"Not tried yet: give one of {', '.join(self.options)}.")
            return
        verdict = "Right." if letter == self.right else "Not that one."
        print(f"{verdict} {self.options[letter][1]}")


class OpenQuestion:
    """Give a possible answer to a question that has many, and three things to compare. There is no right or wrong.

    >>> why = OpenQuestion("Because it is late.", "Is there a reason?", "Is it true?", "Is it short?")
    >>> why.check(...)
    Not tried yet: put your answer in place of the dots.
    >>> why.check("It is dark.")
    One possible answer: Because it is late.
    Compare it with yours:
      1. Is there a reason?
      2. Is it true?
      3. Is it short?
    """

    def __init__(self, possible: str, *compare: str) -> None:
        self.possible, self.compare = possible, compare

    def check(self, answer: Any) -> None:
        """Print a possible answer and what to compare, if there is an answer."""
        if answer is ... or not str(answer).strip():
            print(NOT_TRIED)
            return
        print(f"One possible answer: {self.possible}\nCompare it with yours:")
        for number, one in enumerate(self.compare, 1):
            print(f"  {number}. {one}")
