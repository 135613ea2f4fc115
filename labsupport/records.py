"""What stations decided, as the server keeps it: a row for each product, and each row once, however often it arrives.

A station sends a record until it hears that we have it, so some come twice. The id is the table's primary key: the second
arrival changes nothing. What a model saw goes among the predictions, in the same transaction, and so once as well.
"""

from collections.abc import Sequence

import sqlalchemy as sql

from labsupport import rows
from labsupport.detection import Box, Detection
from labsupport.tables import PREDICTIONS, alone

MOST = 100  # records in one request
KEPT = ("id", "time", "station", "product", "verdict", "decided_by", "version", "latency", "reason")
NUMBERS = ("time", "latency")  # seconds since the epoch; seconds
DECISIONS = sql.Table(
    "decisions",
    sql.MetaData(),
    *(
        sql.Column(name, sql.Float if name in NUMBERS else sql.String, primary_key=name == "id", index=name == "time")
        for name in KEPT
    ),
)
ADD = f"""
INSERT INTO decisions ({", ".join(KEPT)}) VALUES ({", ".join(f":{name}" for name in KEPT)}) ON CONFLICT (id) DO NOTHING
"""


class RecordClash(ValueError):
    """A record has the id of a prediction that was made for somebody else."""


def make_table(engine: sql.Engine) -> None:
    """The table of decisions, which a log has once a station has sent something. Many may ask for it at once."""
    if exists(engine):
        return
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection, alone(connection):
        DECISIONS.metadata.create_all(connection)


def exists(engine: sql.Engine) -> bool:
    """Whether a station has sent anything yet."""
    return sql.inspect(engine).has_table(DECISIONS.name)


def take(connection: sql.Connection, records: Sequence[dict]) -> int:
    """Insert the records that are not there yet, in their order; how many were new. Part of the caller's transaction.

    Raises `RecordClash` if a new one has the id of a prediction that did not come from a station.
    """
    add = sql.text(ADD)
    new = [record for record in records if connection.execute(add, {name: record[name] for name in KEPT}).rowcount]
    same = PREDICTIONS.c.id.in_([record["id"] for record in new])
    if clash := connection.scalar(sql.select(PREDICTIONS.c.id).where(same, PREDICTIONS.c.shadow.is_(False)).limit(1)):
        raise RecordClash(f"{clash}: another prediction has this id, so no record was taken: give each a fresh id")
    rows.insert(connection, [_prediction(record) for record in new if record["prediction"]])
    return len(new)


def _prediction(record: dict) -> dict:
    """The row among the predictions: what the model saw, under the record's id, at the time of the decision."""
    seen = record["prediction"]
    found = [Detection(d["label"], d["confidence"], Box(**d["box"])) for d in seen["detections"]]
    row = {"id": record["id"], "time": record["time"], "key": record["product"], "status": 200, "shadow": False}
    return {**seen["features"], **row, "version": seen["version"], "latency": seen["latency"], "detections": found}
