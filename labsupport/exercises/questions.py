"""Ask the questions at the end of a lesson, and open exercises. Nothing here is graded."""

from collections.abc import Mapping, Sequence
from typing import Any

from labsupport.exercises.exercise import NOT_TRIED, Exercise


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
        if answer is ... or not str(answer).strip():
            print(NOT_TRIED)
            return
        print(f"One good answer: {self.model_answer}\nCompare it with yours:")
        for number, point in enumerate(self.points, 1):
            print(f"  {number}. {point}")

    def hint(self) -> None:
        """Print the next hint, as that of an `Exercise`."""
        self._hints.hint()
