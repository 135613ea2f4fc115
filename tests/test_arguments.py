"""What is refused where it enters: the message names the argument, what came, and what to give."""

from decimal import Decimal

import numpy as np
import pytest

from labsupport import arguments
from labsupport.detection import agreement
from labsupport.scenarios import clickstream, incidents, speech


@pytest.mark.parametrize("value", [0, 1, 0.5, np.float32(0.5), np.int64(1), np.float64(0)])
def test_numbers_are_taken_whatever_holds_them(value):
    result = arguments.number("share", value, 0, 1)
    assert result == value and type(result) is float


@pytest.mark.parametrize(
    "value",
    [True, np.True_, "0.5", None, float("nan"), float("inf"), -0.1, 1.1, 1j, [0.5], np.array([0.5]), Decimal(1)],
)
def test_what_is_no_number_between_the_limits_is_refused(value):
    with pytest.raises(ValueError, match=r"^share=.*: give a number from 0 to 1$"):
        arguments.number("share", value, 0, 1)


@pytest.mark.parametrize("value", [1.0, np.float64(2), True, 0, "3"])
def test_whole_numbers_are_whole(value):
    with pytest.raises(ValueError, match=r"^count=.*: give a whole number of at least 1$"):
        arguments.number("count", value, 1, whole=True)


@pytest.mark.parametrize("unit", ["ns", "s", "D"])
@pytest.mark.parametrize("whole", [False, True])
def test_a_time_is_no_number(unit, whole):
    with pytest.raises(ValueError, match=r"^count=np.timedelta64.*: give a"):
        arguments.number("count", np.timedelta64(3, unit), 1, 9, whole=whole)


def test_ends_may_be_left_out():
    assert arguments.number("alpha", 0.05, 0, 1, ends=False) == 0.05
    for end in (0, 1):
        with pytest.raises(ValueError, match="between 0 and 1, without the ends"):
            arguments.number("alpha", end, 0, 1, ends=False)


@pytest.mark.parametrize("value", [b"text", None, 5, "", "x" * 11, "a\0b", "half \ud800", "\udfff"])
def test_what_is_no_text_is_refused(value):
    with pytest.raises(ValueError, match=r"^reason=") as refused:
        arguments.text("reason", value, most=10, least=1)
    str(refused.value).encode()  # the message itself can be written down


def test_text_of_any_language_is_taken():
    for value in ("größer", "日本語", "🍎"):
        assert arguments.text("reason", value) is value


@pytest.mark.parametrize("value", ["HOLM", None, 1, ["holm"], np.array(["holm"])])
def test_a_choice_is_one_of_them(value):
    with pytest.raises(ValueError, match=r"^method=.*: give one of 'holm', 'bh'$"):
        arguments.choice("method", value, ("holm", "bh"))


def test_a_message_stays_short_whatever_came():
    for value in ("x" * 10_000, b"x" * 10_000, [1] * 10_000, np.zeros((100, 100)), {"a": "b" * 500}):
        assert len(arguments.shown(value)) <= 60


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: incidents.simulate("flood"), "incident"),
        (lambda: incidents.simulate(rate=0), "rate"),
        (lambda: incidents.simulate(seconds=float("nan")), "seconds"),
        (lambda: speech.clips("three", seed=1), "count"),
        (lambda: speech.clips(1, seed=1, noise_db=float("inf")), "noise_db"),
        (lambda: speech.speak("hello"), "word"),
        (lambda: speech.speak("see", pace=0), "pace"),
        (lambda: clickstream.visits(-1, seed=1), "count"),
        (lambda: clickstream.visits(1, seed=1, lost=2), "lost"),
        (lambda: clickstream.Recommender(clickstream.OFFERS).recommend("maybe"), "owns_car"),
        (lambda: agreement.compare([], [], overlap=50), "overlap"),
    ],
)
def test_the_small_worlds_name_what_is_wrong(call, name):
    with pytest.raises(ValueError, match=f"^{name}=.*: give "):
        call()
