"""Check what callers give, where it enters: each message names the argument, what came, and what to give."""

import math
from collections.abc import Iterable
from numbers import Integral, Real


def number(
    name: str,
    value: object,
    least: float = -math.inf,
    most: float = math.inf,
    whole: bool = False,
    ends: bool = True,
) -> float:
    """Return `value` as a float, or as an int if `whole`, if it is a finite number from `least` to `most`.

    With `ends=False`, `least` and `most` themselves are refused, too. Raises ValueError for everything else: a bool, text,
    NaN, an infinite number, a number beyond the limits.

    >>> number("confidence", 0.5, 0, 1)
    0.5
    >>> number("confidence", 50, 0, 1)
    Traceback (most recent call last):
    ValueError: confidence=50: give a number from 0 to 1
    """
    kind = Integral if whole else Real
    if isinstance(value, kind) and not isinstance(value, bool):
        result = int(value) if whole else float(value)
        inside = least <= result <= most if ends else least < result < most
        if inside and math.isfinite(result):
            return result
    raise ValueError(f"{name}={shown(value)}: give {_described(least, most, whole, ends)}")


def choice(name: str, value: object, choices: Iterable) -> object:
    """Return `value` if it is one of `choices`. Raises ValueError that lists them.

    >>> choice("method", "holm", ("holm", "bh"))
    'holm'
    """
    choices = list(choices)
    if not any(type(value) is type(one) and value == one for one in choices):
        raise ValueError(f"{name}={shown(value)}: give one of {', '.join(map(repr, choices))}")
    return value


def text(name: str, value: object, most: int = 1_000, least: int = 0) -> str:
    """Return `value` if it is text of `least` to `most` characters that any database and any file can hold.

    Raises ValueError for what is no `str`, is too long or too short, or contains NUL or half a surrogate pair.

    >>> text("reason", "looks good")
    'looks good'
    """
    if not isinstance(value, str) or not least <= len(value) <= most:
        size = f" ({len(value):,} characters)" if isinstance(value, str) else ""
        raise ValueError(f"{name}={shown(value)}{size}: give text of {least:,} to {most:,} characters")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{name}={shown(value)}: give text without NUL and without half a surrogate pair")
    return value


def shown(value: object) -> str:
    """Return `repr(value)`, cut to 60 characters, for a message; large values only say their type.

    >>> shown("x" * 100)[-5:]
    'xx...'
    """
    if isinstance(value, str | bytes):
        value = value[:61]
    try:
        length = 0 if isinstance(value, bool | int | float | None) else len(value)
    except TypeError:  # it has none
        length = 0
    if length > 20 and not isinstance(value, str | bytes):
        return f"a {type(value).__name__} of length {length:,}"
    whole = repr(value)
    return whole if len(whole) <= 60 else whole[:57] + "..."


def _described(least: float, most: float, whole: bool, ends: bool) -> str:
    kind = "a whole number" if whole else "a number"
    low, high = (f"{end:,}" if isinstance(end, int) else f"{end:g}" for end in (least, most))
    if math.isinf(least) and math.isinf(most):
        return kind if whole else "a finite number"
    if math.isinf(most):
        return f"{kind} of at least {low}" if ends else f"{kind} above {low}"
    if math.isinf(least):
        return f"{kind} of at most {high}" if ends else f"{kind} below {high}"
    return f"{kind} from {low} to {high}" if ends else f"{kind} between {low} and {high}, without the ends"
