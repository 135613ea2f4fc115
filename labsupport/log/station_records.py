"""Store the verdicts that edge stations send. Ignore a record that arrives twice.

A station sends a record until the server confirms it, so some records arrive twice. The id is the primary key of the table,
so the second arrival changes nothing. The model's detections are stored as a prediction in the same transaction, also once.
"""

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import sqlalchemy as sql

from labsupport import arguments
from labsupport.detection import MOST_DETECTIONS, MOST_PIXEL, Box, Detection
from labsupport.extras import imported
from labsupport.log import rows
from labsupport.log.rows import Moment
from labsupport.log.tables import DECIDED, DECISIONS, FEATURES, PREDICTIONS

if TYPE_CHECKING:
    import pandas as pd

MOST = 100  # records in one request
# beginnings of a station's reason, if its judge could not decide on the device's answer
UNDECIDED_ON_DEVICE = ("judge: not sure of what the device saw", "judge of what the device saw: ")
CHOICES = {"verdict": ("accept", "reject", "undecided"), "decided_by": ("server", "device", "nobody")}
ADD = f"""
INSERT INTO decisions ({", ".join(DECIDED)}) VALUES ({", ".join(f":{name}" for name in DECIDED)})
ON CONFLICT (id) DO NOTHING
"""


def by_device() -> sql.ColumnElement[bool]:
    """Return the condition on `DECISIONS` for products that a station's device looked at, and not the server."""
    words = sql.or_(*map(DECISIONS.c.reason.startswith, UNDECIDED_ON_DEVICE))
    return sql.or_(DECISIONS.c.decided_by == "device", sql.and_(DECISIONS.c.decided_by == "nobody", words))


class RecordClash(ValueError):
    """A record has the id of a prediction that did not come from a station."""


def checked(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of a record, and its `prediction`. Raises ValueError if `schemas.RecordIn` would refuse it.

    >>> checked({"id": "1", "station": "s", "product": "p", "verdict": "maybe"})
    Traceback (most recent call last):
    ValueError: verdict='maybe': give one of 'accept', 'reject', 'undecided'
    """
    row = {"version": None, "reason": "", "prediction": None, **_fields("record", record)}
    for name in row:
        arguments.choice("a key of a record", name, (*DECIDED, "prediction"))
    for name, least in {"id": 1, "station": 0, "product": 0, "reason": 0}.items():
        arguments.text(name, row.get(name), rows.TEXT, least)
    for name, choices in CHOICES.items():
        arguments.choice(name, row.get(name), choices)
    if row["version"] is not None:
        arguments.text("version", row["version"], rows.TEXT)
    if row["prediction"] is not None:
        _check_prediction(row["prediction"])
    time = rows.seconds(row.get("time"))
    row["time"] = float(row["time"]) if isinstance(row["time"], Real) else time  # with all digits that the station sent
    row["latency"] = arguments.number("latency", row.get("latency"), 0)
    return {name: row[name] for name in (*DECIDED, "prediction")}


def _check_prediction(seen: Mapping[str, Any]) -> None:
    arguments.text("version", _fields("prediction", seen).get("version"), rows.TEXT)
    arguments.number("latency", seen.get("latency"), 0)
    for name, value in _fields("features", seen.get("features")).items():
        arguments.choice("a feature", name, FEATURES)
        arguments.number(name, value)
    if not isinstance(seen.get("detections"), list | tuple):
        raise ValueError(
            f"detections={arguments.shown(seen.get('detections'))}: give a list, empty if nothing was found"
        )
    if len(seen["detections"]) > MOST_DETECTIONS:
        raise ValueError(f"detections={arguments.shown(seen['detections'])}: give at most {MOST_DETECTIONS:,}")
    for detection in seen["detections"]:
        arguments.text("label", _fields("a detection", detection).get("label"), rows.TEXT)
        arguments.number("confidence", detection.get("confidence"), 0, 1)
        for side in _fields("box", detection.get("box")).keys() | {*Box._fields}:
            arguments.choice("a side of box", side, Box._fields)
            arguments.number(side, detection["box"].get(side), -MOST_PIXEL, MOST_PIXEL, whole=True)


def _fields(name: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{name}={arguments.shown(value)}: give a dictionary")
    return value


def take(connection: sql.Connection, records: Sequence[Mapping[str, Any]]) -> int:
    """Insert the records whose ids are new, in their order, in the caller's transaction. Return how many were new.

    Raises `RecordClash` if a new one has the id of a prediction that did not come from a station.
    """
    add = sql.text(ADD)
    new = [record for record in records if connection.execute(add, {name: record[name] for name in DECIDED}).rowcount]
    same = PREDICTIONS.c.id.in_([record["id"] for record in new])
    if clash := connection.scalar(sql.select(PREDICTIONS.c.id).where(same, PREDICTIONS.c.shadow.is_(False)).limit(1)):
        raise RecordClash(f"{clash}: another prediction has this id, so no record was taken: give each a fresh id")
    rows.insert(connection, [_prediction(record) for record in new if record["prediction"]])
    return len(new)


def read(connection: sql.Connection, since: Moment, until: Moment) -> "pd.DataFrame":
    """Return the verdicts of stations with since <= time < until, as `PredictionLog.decisions` describes."""
    pd = imported("pandas")

    chosen = rows.within(sql.select(*DECISIONS.c).order_by(DECISIONS.c.time), DECISIONS.c.time, since, until)
    frame = pd.DataFrame(connection.execute(chosen).all(), columns=[*DECIDED])
    frame = frame.astype({"time": float, "latency": float})
    frame["time"] = pd.to_datetime((frame["time"] * 1e6).round().astype("int64"), unit="us", utc=True)
    return frame


def _prediction(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of `predictions` for a record: the model's detections, with the record's id and time."""
    answer = record["prediction"]
    detections = [Detection(d["label"], d["confidence"], Box(**d["box"])) for d in answer["detections"]]
    row = {"id": record["id"], "time": record["time"], "key": record["product"], "status": 200, "shadow": False}
    row |= {"version": answer["version"], "latency": answer["latency"], "detections": detections}
    return {**answer["features"], **row}
