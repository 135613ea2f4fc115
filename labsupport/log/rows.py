"""Convert recorded predictions to rows of tables. Build the queries that read them."""

import json
import math
import re
import time as clock
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import cache
from itertools import chain
from numbers import Real
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import numpy as np
import sqlalchemy as sql

from labsupport import arguments
from labsupport.detection import Box, Detection
from labsupport.extras import imported
from labsupport.log import forgetting
from labsupport.log.tables import COLUMNS, FEEDBACK, KEPT, PREDICTIONS, SAID

if TYPE_CHECKING:
    import pandas as pd

    Query = sql.Select[*tuple[Any, ...]]  # with any number of columns

YEAR_10000 = 253_402_300_800  # in seconds since the epoch: a larger number was probably meant in milliseconds
AT_ONCE = (100, 10, 1)  # rows in one statement: fewer statements delay other threads less
DTYPES = {float: "float64", int: "Int64", str: "string", list: "object", bool: "boolean"}  # of pandas, with nulls
DERIVED = {"aspect": PREDICTIONS.c.width / sql.func.nullif(PREDICTIONS.c.height, 0)}

TEXT = 1_000  # characters of a key, a version, a label and so on, at most
LABELS, REMARK = 1_000, 200_000  # labels in a remark, and characters in all of them together, at most
BROKEN = re.compile("[\0\ud800-\udfff]")  # not allowed in PostgreSQL, UTF-8 or Parquet: NUL, half a surrogate pair

Text = TypeVar("Text", str, str | None)
Moment = datetime | timedelta | np.datetime64 | np.timedelta64 | float | str | None
HOW = 'give datetime.now(UTC), "2025-06-01T12:00+00:00", timedelta(minutes=5), or seconds since the epoch'


def seconds(moment: Moment, name: str = "time") -> float:
    """Return a moment in seconds since the epoch, to the microsecond, so that a time from a frame equals its row's time.

    A moment is a datetime with a time zone, such a datetime as ISO 8601 text, seconds since the epoch, a timedelta that
    counts back from now, or a datetime64 of NumPy in UTC, as in a frame.
    Raises ValueError for anything else, with `name` and what to give instead.

    >>> from datetime import UTC
    >>> seconds(datetime(2025, 6, 1, tzinfo=UTC)), seconds("2025-06-01T02:00+02:00"), seconds(np.datetime64("2025-06-01"))
    (1748736000.0, 1748736000.0, 1748736000.0)
    >>> seconds("2025-06-01", name="since")
    Traceback (most recent call last):
    ValueError: since='2025-06-01': it has no time zone: write '2025-06-01T00:00:00+00:00' if it is UTC
    """
    try:
        value = _since_epoch(moment)
    except _NoTimeZone as error:
        raise ValueError(
            f"{name}={arguments.shown(moment)}: it has no time zone: write {str(error)!r} if it is UTC"
        ) from None
    except (ValueError, OverflowError, TypeError):
        value = math.nan
    if not abs(value) < YEAR_10000:
        raise ValueError(f"{name}={arguments.shown(moment)}: {HOW}")
    return round(value, 6)


class _NoTimeZone(Exception):
    """The moment has no time zone. The message is the moment as it would be in UTC."""


def _since_epoch(moment: Moment) -> float:
    """Return the moment in seconds, unchecked. Return NaN for an object that is not a moment."""
    if isinstance(moment, np.timedelta64):
        return clock.time() - float(moment / np.timedelta64(1, "s"))
    if isinstance(moment, np.datetime64):
        return float((moment - np.datetime64(0, "us")) / np.timedelta64(1, "s"))
    if isinstance(moment, timedelta):
        return clock.time() - moment.total_seconds()
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment.strip())
    if isinstance(moment, date) and not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day)
    if isinstance(moment, datetime):
        if moment == moment and moment.utcoffset() is None:  # pandas.NaT is not equal to itself
            raise _NoTimeZone(moment.replace(tzinfo=UTC).isoformat())
        return moment.timestamp()
    return float(moment) if isinstance(moment, Real) and not isinstance(moment, bool) else math.nan


def clean(text: Text) -> Text:
    """Return the text in a form that any database and any file can store, so that no row is lost because of its text.

    A text longer than `TEXT` characters is cut, and the rest is `mended`. Anything but text is returned unchanged.

    >>> clean("one\\0two"), clean("x" * 2000)[-3:], len(clean("x" * 2000))
    ('one\ufffdtwo', 'xx…', 1000)
    """
    if isinstance(text, str) and len(text) > TEXT:
        text = text[: TEXT - 1] + "…"
    return mended(text)


def mended(text: Text) -> Text:
    """Return the text with U+FFFD for each NUL and each half of a surrogate pair. Return anything but text unchanged."""
    if not isinstance(text, str) or (text.isascii() and "\0" not in text):
        return text
    return BROKEN.sub("\ufffd", text)


class Remark(TypedDict):
    """A user's remark on an answer, with the columns `SAID`."""

    correct: bool | None
    labels: str | None  # JSON
    retry: bool


def remark(correct: bool | None, labels: Sequence[str] | None, retry: bool) -> Remark:
    """Return a user's remark as the columns `SAID`. Raises ValueError if it is empty or cannot be stored.

    Labels are a correction: at most 1,000 of 1,000 characters each, and 200,000 characters together.

    >>> remark(None, ["dog"], False)
    {'correct': False, 'labels': '["dog"]', 'retry': False}
    """
    correct = bool(correct) if isinstance(correct, np.bool_) else correct
    retry = bool(retry) if isinstance(retry, np.bool_) else retry
    arguments.choice("correct", correct, (None, True, False))
    arguments.choice("retry", retry, (True, False))
    if correct is None and labels is None and not retry:
        raise ValueError("say something: correct=True or False, labels=[...] or retry=True")
    if labels is None:
        return {"correct": correct, "labels": None, "retry": retry}
    if isinstance(labels, str) or not isinstance(labels, Collection) or len(labels) > LABELS:
        raise ValueError(f"labels={arguments.shown(labels)}: give a list of at most {LABELS:,} labels")
    if correct:
        raise ValueError("correct=True, labels=[...]: labels say that the answer was wrong: give one of the two")
    labels = [arguments.text("a label", label, TEXT) for label in labels]
    if (size := sum(map(len, labels))) > REMARK:
        raise ValueError(f"labels: {size:,} characters in all: give at most {REMARK:,}")
    return {"correct": False, "labels": json.dumps(labels), "retry": retry}


def to_json(found: Sequence[Detection]) -> str:
    """Return detections as JSON. Raises ValueError for a confidence that is not finite.

    >>> to_json([Detection("cat", 0.9, Box(10, 20, 110, 120))])
    '[{"label":"cat","confidence":0.9,"box":[10,20,110,120]}]'
    """
    return _encode([{"label": clean(one.label), "confidence": one.confidence, "box": one.box} for one in found])


def from_json(text: str) -> list[Detection]:
    """Return the detections in JSON from `to_json`.

    >>> from_json('[{"label": "cat", "confidence": 0.9, "box": [10, 20, 110, 120]}]')
    [Detection(label='cat', confidence=0.9, box=Box(left=10, top=20, right=110, bottom=120))]
    """
    return [Detection(one["label"], one["confidence"], Box(*one["box"])) for one in json.loads(text)]


def to_frame(columns: Mapping[str, list[Any]], kinds: Mapping[str, type]) -> "pd.DataFrame":
    """Return columns from the database as a frame: times in UTC, detections as `Detection`, labels as lists."""
    pd = imported("pandas")

    frame = pd.DataFrame(columns, dtype=object)
    frame = frame.astype({name: DTYPES[kind] for name, kind in kinds.items()})
    microseconds = (frame["time"] * 1e6).round().astype("int64")
    frame["time"] = pd.to_datetime(microseconds, unit="us", utc=True).dt.as_unit("us")
    frame["detections"] = frame["detections"].map(from_json, na_action="ignore")
    frame["labels"] = frame["labels"].map(json.loads, na_action="ignore")
    return frame


def note(connection: sql.Connection, id: str, said: Remark) -> list[Remark]:
    """Insert a remark, and store its row number with the prediction. Return the different earlier remarks on it.

    An earlier remark with labels has "" in their place. This is part of the caller's transaction. The other remarks are
    read last, so that two that come together see each other.
    """
    key = connection.execute(sql.insert(FEEDBACK).values(time=clock.time(), id=id, **said)).inserted_primary_key
    assert key is not None  # an insert of one row has one
    number, last = key[0], PREDICTIONS.c.said
    later = sql.or_(last.is_(None), last < number)  # another process may be inserting a later remark
    connection.execute(sql.update(PREDICTIONS).where(PREDICTIONS.c.id == id, later).values(said=number))
    # without the labels' texts, thousands of remarks are at most a few rows
    corrected = sql.case((FEEDBACK.c.labels.is_not(None), "")).label("labels")
    asked = sql.select(FEEDBACK.c.correct, corrected, FEEDBACK.c.retry).distinct()
    earlier = connection.execute(asked.where(FEEDBACK.c.id == id, FEEDBACK.c.row != number))
    return [Remark(correct=row.correct, labels=row.labels, retry=bool(row.retry)) for row in earlier]


def insert(connection: sql.Connection, rows: list[dict[str, Any]]) -> None:
    """Insert recorded rows. You may insert the same rows again if the result of a commit is not known.

    With SQLite the result is always known. With PostgreSQL it is not if the network fails during a commit. So rows get their
    numbers first, and a row whose number exists is not inserted again. Rows of a forgotten person are left out.
    """
    rows = forgetting.remaining(connection, rows)
    inserted, dialect = 0, connection.dialect.name
    if dialect == "postgresql":
        _number(connection, [row for row in rows if "row" not in row])
    while inserted < len(rows):
        count = next(size for size in AT_ONCE if size <= len(rows) - inserted)
        values = chain.from_iterable(map(VALUES[dialect], rows[inserted : inserted + count]))
        connection.exec_driver_sql(_statement(dialect, count), tuple(values))
        inserted += count


def query(names: Sequence[str], since: Moment, until: Moment) -> "Query":
    """Return the query for columns of the rows with since <= time < until, by time, each with its last remark."""
    if not names:
        raise ValueError(f"no column is named: give some of {', '.join((*COLUMNS, *SAID))}")
    for name in names:
        arguments.choice("column", name, (*COLUMNS, *SAID))
    table, each = PREDICTIONS.c, FEEDBACK.alias().c
    newest = sql.select(sql.func.max(each.row)).where(each.id == table.id).correlate(PREDICTIONS).scalar_subquery()
    # a candidate may answer after the user has spoken
    last = sql.case((table.shadow.is_(True), newest), else_=table.said)
    chosen = sql.select(*(_column(name) for name in names))
    chosen = chosen.select_from(PREDICTIONS.outerjoin(FEEDBACK, FEEDBACK.c.row == last)).order_by(table.time, table.row)
    return within(chosen, table.time, since, until)


def within(chosen: "Query", time: sql.Column[Any], since: Moment, until: Moment) -> "Query":
    """Return the query limited to since <= time < until. None means no limit. Raises the errors of `seconds`."""
    if since is not None:
        chosen = chosen.where(time >= seconds(since, "since"))
    if until is not None:
        chosen = chosen.where(time < seconds(until, "until"))
    return chosen


def _column(name: str) -> sql.ColumnElement[Any]:
    if name in DERIVED:
        return DERIVED[name].label(name)
    return PREDICTIONS.c[name] if name in COLUMNS else FEEDBACK.c[name]


def _number(connection: sql.Connection, rows: list[dict[str, Any]]) -> None:
    """Give rows numbers from the table's sequence. No process gets a number twice, also after a rollback."""
    ask = "SELECT nextval(pg_get_serial_sequence('predictions', 'row')) FROM generate_series(1, %s)"
    for row, number in zip(rows, connection.exec_driver_sql(ask, (len(rows),)).scalars(), strict=True):
        row["row"] = number


@cache
def _statement(dialect: str, count: int) -> str:
    mark, names, suffix = ("?", KEPT, "") if dialect == "sqlite" else ("%s", ["row", *KEPT], " ON CONFLICT DO NOTHING")
    marks = f"({', '.join([mark] * len(names))})"
    columns = ", ".join(f'"{name}"' for name in names)
    return f"INSERT INTO predictions ({columns}) VALUES {', '.join([marks] * count)}{suffix}"


def _numbered(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return `_values` with the row's number, and None in place of NaN. SQLite stores NaN as NULL anyway."""
    return row["row"], *(value if value == value else None for value in _values(row))


def _values(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return the values of a row for the table: with the summary of its detections, and without NumPy scalars."""
    detections, row = row["detections"], {**EMPTY, **row, "time": seconds(row["time"])}
    row.update((name, clean(row[name])) for name in TEXTS)
    if detections is not None:
        row.update(detections=to_json(detections), n_detections=len(detections))
    if detections:
        sure = [detection.confidence for detection in detections]
        row.update(mean_confidence=sum(sure) / len(sure), max_confidence=max(sure), min_confidence=min(sure))
    values: tuple[Any, ...] = _ordered(row)
    if not _plain(tuple(map(type, values))):
        values = tuple(None if value is None else kind(value) for value, kind in zip(values, PLAIN, strict=True))
    return values


@cache
def _plain(kinds: tuple[type, ...]) -> bool:
    """Return whether the table accepts these types. The cache makes this one check for each combination of types."""
    return all(kind in (plain, type(None)) for kind, plain in zip(kinds, PLAIN, strict=True))


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=float).encode
_ordered = itemgetter(*KEPT)
EMPTY = dict.fromkeys(KEPT)
TEXTS = [name for name, kind in KEPT.items() if kind is str]
PLAIN = [str if kind is list else kind for kind in KEPT.values()]
VALUES = {"sqlite": _values, "postgresql": _numbered}
