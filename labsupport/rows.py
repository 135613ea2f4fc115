"""What a row of the log is made of: from what was recorded to what the tables take, and the query that gets it back."""

import json
import time as clock
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from itertools import chain
from operator import itemgetter

import sqlalchemy as sql

from labsupport.detection import Box, Detection
from labsupport.tables import COLUMNS, FEEDBACK, KEPT, PREDICTIONS

YEAR_10000 = 253_402_300_800  # in seconds since the epoch: a later time was meant in milliseconds
AT_ONCE = (100, 10, 1)  # rows in one statement: the fewer statements, the less their writer gets in other threads' way
DERIVED = {"aspect": PREDICTIONS.c.width / sql.func.nullif(PREDICTIONS.c.height, 0)}

Moment = datetime | timedelta | float | None


def seconds(moment: datetime | timedelta | float) -> float:
    """Since the epoch, to the microsecond: a time that was read back from a frame compares equal to its row's.

    Raises ValueError for a naive datetime, and for what must have been meant in milliseconds.

    >>> from datetime import UTC
    >>> seconds(datetime(2025, 6, 1, tzinfo=UTC))
    1748736000.0
    """
    if isinstance(moment, timedelta):
        moment = clock.time() - moment.total_seconds()
    elif isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise ValueError(f"{moment} has no time zone: use datetime.now(UTC), or .astimezone() if it is local time")
        moment = moment.timestamp()
    if not moment < YEAR_10000:
        raise ValueError(f"{moment}: give an aware datetime, or seconds since the epoch")
    return round(float(moment), 6)


def to_json(found: Sequence[Detection]) -> str:
    """Detections as JSON. Raises ValueError for a confidence that is not finite.

    >>> to_json([Detection("cat", 0.9, Box(10, 20, 110, 120))])
    '[{"label":"cat","confidence":0.9,"box":[10,20,110,120]}]'
    """
    return _encode([{"label": one.label, "confidence": one.confidence, "box": one.box} for one in found])


def from_json(text: str) -> list[Detection]:
    """What `to_json` made into JSON.

    >>> from_json('[{"label": "cat", "confidence": 0.9, "box": [10, 20, 110, 120]}]')
    [Detection(label='cat', confidence=0.9, box=Box(left=10, top=20, right=110, bottom=120))]
    """
    return [Detection(found["label"], found["confidence"], Box(*found["box"])) for found in json.loads(text)]


def insert(connection: sql.Connection, rows: list[dict]) -> None:
    """Insert what was recorded. Rows that are inserted again after a commit whose answer got lost stay single.

    SQLite knows whether it committed. PostgreSQL may have, when the network fails: there each row gets its number first.
    """
    done, dialect = 0, connection.dialect.name
    if dialect == "postgresql":
        _number(connection, [row for row in rows if "row" not in row])
    while done < len(rows):
        count = next(size for size in AT_ONCE if size <= len(rows) - done)
        values = chain.from_iterable(map(VALUES[dialect], rows[done : done + count]))
        connection.exec_driver_sql(_statement(dialect, count), tuple(values))
        done += count


def query(names: Sequence[str], since: Moment, until: datetime | float | None) -> sql.Select:
    """Columns of `COLUMNS` and `SAID` of the rows with since <= time < until, by time; of what users said, the last."""
    table, said = PREDICTIONS.c, FEEDBACK.c
    each = FEEDBACK.alias().c
    last = sql.select(sql.func.max(each.row)).where(each.id == table.id).correlate(PREDICTIONS).scalar_subquery()
    chosen = sql.select(*(_column(name) for name in names))
    chosen = chosen.select_from(PREDICTIONS.outerjoin(FEEDBACK, said.row == last)).order_by(table.time, table.row)
    if since is not None:
        chosen = chosen.where(table.time >= seconds(since))
    if until is not None:
        chosen = chosen.where(table.time < seconds(until))
    return chosen


def _column(name: str) -> sql.ColumnElement:
    if name in DERIVED:
        return DERIVED[name].label(name)
    return PREDICTIONS.c[name] if name in COLUMNS else FEEDBACK.c[name]


def _number(connection: sql.Connection, rows: list[dict]) -> None:
    """Numbers from the table's own sequence, which gives none twice, whoever asks and whatever is rolled back."""
    ask = "SELECT nextval(pg_get_serial_sequence('predictions', 'row')) FROM generate_series(1, %s)"
    for row, number in zip(rows, connection.exec_driver_sql(ask, (len(rows),)).scalars(), strict=True):
        row["row"] = number


@cache
def _statement(dialect: str, count: int) -> str:
    mark, names, suffix = ("?", KEPT, "") if dialect == "sqlite" else ("%s", ["row", *KEPT], " ON CONFLICT DO NOTHING")
    marks = f"({', '.join([mark] * len(names))})"
    columns = ", ".join(f'"{name}"' for name in names)
    return f"INSERT INTO predictions ({columns}) VALUES {', '.join([marks] * count)}{suffix}"


def _numbered(row: dict) -> tuple:
    """With the row's number; and NaN is no value, as SQLite has it by itself."""
    return row["row"], *(value if value == value else None for value in _values(row))


def _values(row: dict) -> tuple:
    """A row as the table takes it: summed up, and plain Python values, whatever NumPy scalars were recorded."""
    found, row = row["detections"], {**EMPTY, **row, "time": seconds(row["time"])}
    if found is not None:
        row.update(detections=to_json(found), n_detections=len(found))
    if found:
        sure = [detection.confidence for detection in found]
        row.update(mean_confidence=sum(sure) / len(sure), max_confidence=max(sure), min_confidence=min(sure))
    values = _ordered(row)
    if _plain(tuple(map(type, values))):
        return values
    return tuple(None if value is None else kind(value) for value, kind in zip(values, PLAIN, strict=True))


@cache
def _plain(kinds: tuple[type, ...]) -> bool:
    """Whether values of these types are what the table takes: asked once for each combination, and not for each value."""
    return all(kind in (wanted, type(None)) for kind, wanted in zip(kinds, PLAIN, strict=True))


_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=float).encode
_ordered = itemgetter(*KEPT)
EMPTY = dict.fromkeys(KEPT)
PLAIN = [str if kind is list else kind for kind in KEPT.values()]
VALUES = {"sqlite": _values, "postgresql": _numbered}
