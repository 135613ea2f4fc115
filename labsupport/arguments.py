"""Check arguments of callers. Each error names the argument, its value, and what to give instead."""

import math
import os
from collections.abc import Callable, Iterable, Sized
from contextlib import suppress
from numbers import Integral, Real
from pathlib import Path
from typing import Literal, TypeVar, overload
from urllib.parse import urlsplit

Value = TypeVar("Value")


@overload
def number(
    name: str, value: object, least: float = ..., most: float = ..., *, whole: Literal[True], ends: bool = ...
) -> int: ...


@overload
def number(
    name: str, value: object, least: float = ..., most: float = ..., whole: Literal[False] = ..., ends: bool = ...
) -> float: ...


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
    duration = type(value).__name__ == "timedelta64"  # NumPy says that it is an Integral
    if isinstance(value, kind) and not isinstance(value, bool) and not duration:
        with suppress(OverflowError):  # a whole number that is larger than any float
            result = int(value) if isinstance(value, Integral) and whole else float(value)
            inside = least <= result <= most if ends else least < result < most
            if inside and math.isfinite(result):
                return result
    raise ValueError(f"{name}={shown(value)}: give {_described(least, most, whole, ends)}")


def choice(name: str, value: object, choices: Iterable[Value]) -> Value:
    """Return `value` if it is one of `choices`. Raises ValueError that lists them.

    >>> choice("method", "holm", ("holm", "bh"))
    'holm'
    """
    choices = list(choices)
    for one in choices:
        if isinstance(value, type(one)) and value == one:
            return value
    raise ValueError(f"{name}={shown(value)}: give one of {', '.join(map(repr, choices))}")


def text(name: str, value: object, most: int = 1_000, least: int = 0) -> str:
    """Return `value` if it is text of `least` to `most` characters that any database and any file can store.

    Raises ValueError if it is not a `str`, is too long or too short, or contains NUL or half a surrogate pair.

    >>> text("reason", "looks good")
    'looks good'
    """
    if not isinstance(value, str) or not least <= len(value) <= most:
        size = f" ({len(value):,} characters)" if isinstance(value, str) else ""
        raise ValueError(f"{name}={shown(value)}{size}: give text of {least:,} to {most:,} characters")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{name}={shown(value)}: give text without NUL and without half a surrogate pair")
    return value


def path(name: str, value: object) -> Path:
    """Return `value` as a `Path` if it is a `Path` or text that can name a file. Raises ValueError for anything else.

    >>> path("out", "")
    Traceback (most recent call last):
    ValueError: out='': give a path
    """
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError(f"{name}={shown(value)}: give a path")
    return Path(value)


def address(name: str, value: object) -> str:
    """Return `value`, without a slash at its end, if it is the address of a server: http or https, a host, maybe a port.

    A path may follow, such as a proxy's prefix. Raises ValueError for anything else: no scheme, a password, a query, an
    invalid port. The message never contains a password.

    >>> address("server", "http://127.0.0.1:8000/")
    'http://127.0.0.1:8000'
    >>> address("server", "127.0.0.1:8000")
    Traceback (most recent call last):
    ValueError: server='127.0.0.1:8000': give an address such as http://127.0.0.1:8000
    """
    come = shown(value)
    if isinstance(value, str) and value.isascii() and value.isprintable() and " " not in value:
        try:
            parts = urlsplit(value)
            fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
            if parts.username is not None:
                come, fine = "'...@...'", False
            if fine and not {"?", "#"} & {*value}:
                return value.rstrip("/")
        except ValueError:  # a port that is no number, a bracket that is not closed
            pass
    raise ValueError(f"{name}={come}: give an address such as http://127.0.0.1:8000")


def variable(name: str, read: Callable[[str], Value], give: str) -> Value | None:
    """Return `read(text)` for the text of the environment variable `name`, or None if it is not set or blank.

    Raises ValueError if `read` does, with a message that contains the variable and `give`.

    >>> os.environ["LAB_EXAMPLE"] = "much"
    >>> variable("LAB_EXAMPLE", int, give="a whole number")
    Traceback (most recent call last):
    ValueError: LAB_EXAMPLE='much': give a whole number, or unset this environment variable
    >>> os.environ["LAB_EXAMPLE"] = ""
    >>> variable("LAB_EXAMPLE", int, give="a whole number")
    """
    text = os.environ.get(name, "")
    if not text.strip():
        return None
    try:
        return read(text)
    except ValueError:
        raise ValueError(f"{name}={shown(text)}: give {give}, or unset this environment variable") from None


def shown(value: object) -> str:
    """Return `repr(value)`, cut to 60 characters, for a message. For a large value, return only its type and length.

    >>> shown("x" * 100)[-5:]
    'xx...'
    """
    if isinstance(value, str | bytes):
        value = value[:61]
    try:
        length = len(value) if isinstance(value, Sized) and not isinstance(value, bool | int | float) else 0
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
