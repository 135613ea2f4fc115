"""Describe an entry of the audit trail: its fields, how they are stored, and how they are printed."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from labsupport import arguments
from labsupport.access.verification import Row

LONGEST = 200  # characters of a field
YEAR_10000 = 253_402_300_800  # in seconds since the epoch
HEADER = "\t".join(("number", "time", "person", "role", "address", "action", "object", "effect"))


@dataclass(frozen=True)
class Entry:
    """Describe one action of a person: who, when, from where, what, on which object, with what effect."""

    time: float  # seconds since the epoch
    person: str | None  # the id of the person, never the name; None for a request without a token
    role: str | None
    address: str  # where the request came from
    action: str  # such as "POST /predict"
    object: str | None  # such as the id of a prediction
    effect: str  # the status of the answer, "begun" or "no answer"


def checked(entry: Entry) -> Row:
    """Return the values of an entry as they are stored, from `time` to `effect`.

    NUL and halves of surrogate pairs are replaced, because not every program can read them. A text of more than 200
    characters is cut, and then ends with "…". Raises ValueError for a value of the wrong type, and for an invalid time.

    >>> checked(Entry(1.7e9, None, None, "127.0.0.1", "GET /health", None, "200"))
    (1700000000.0, None, None, '127.0.0.1', 'GET /health', None, '200')
    """
    if not isinstance(entry, Entry):
        raise ValueError(f"entry={arguments.shown(entry)}: give an Entry")
    time = arguments.number("time", entry.time, 0, YEAR_10000) + 0.0  # SQLite stores -0.0 as 0.0
    return (
        time,
        _cleaned("person", entry.person, optional=True),
        _cleaned("role", entry.role, optional=True),
        _cleaned("address", entry.address),
        _cleaned("action", entry.action),
        _cleaned("object", entry.object, optional=True),
        _cleaned("effect", entry.effect),
    )


def line(number: int, entry: Entry, users: Mapping[str, str]) -> str:
    """Return an entry as a line, with the fields of `HEADER` separated by tabs, and "-" for None.

    `users` maps ids to names. A person who is not in it is shown by the id. The time is in UTC. Characters that a terminal
    does not print are shown as in a Python string, so that no entry can look like two.

    >>> line(1, Entry(1.7e9, "p-1", "reader", "127.0.0.1", "GET /x\\n2", None, "403 refused"), {"p-1": "Ada"}).split("\\t")
    ['1', '2023-11-14T22:13:20.000+00:00', 'Ada', 'reader', '127.0.0.1', 'GET /x\\\\n2', '-', '403 refused']
    """
    name = entry.person if entry.person is None else users.get(entry.person, entry.person)
    fields = (name, entry.role, entry.address, entry.action, entry.object, entry.effect)
    return "\t".join([str(number), _moment(entry.time), *map(_shown, fields)])


def _moment(time: float) -> str:
    try:
        return datetime.fromtimestamp(time, UTC).isoformat(timespec="milliseconds")
    except (TypeError, ValueError, OverflowError, OSError):  # only in a row that another program has written
        return _shown(time)


def _shown(value: object) -> str:
    text = "-" if value is None else str(value)
    return "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in text)


def _cleaned(name: str, value: str | None, optional: bool = False) -> str | None:
    if optional and value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{name}={arguments.shown(value)}: give text{' or None' if optional else ''}")
    if len(value) > LONGEST:
        value = value[: LONGEST - 1] + "…"
    return value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
