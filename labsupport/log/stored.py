"""Find one prediction of the log by its id."""

from dataclasses import dataclass

import sqlalchemy as sql

from labsupport.detection import Detection
from labsupport.log.prediction_log import PredictionLog, unknown
from labsupport.log.rows import from_json
from labsupport.log.tables import PREDICTIONS


@dataclass(frozen=True)
class StoredPrediction:
    """Hold one answer as it is in the log: times in seconds, and the id of the person who asked, if it is known."""

    time: float
    version: str
    latency: float
    detections: list[Detection]
    person: str | None


def stored_prediction(log: PredictionLog, id: str) -> StoredPrediction:
    """Return the answer with this id. Raises `UnknownPrediction`, also if it is not written yet, and `LogUnavailable`."""
    row = PREDICTIONS.c
    query = sql.select(row.time, row.version, row.latency, row.detections, row.person)
    query = query.where(row.id == id, row.shadow.is_(False), row.detections.is_not(None))
    found = log.select(query)
    if not found:
        raise unknown(id)
    time, version, latency, detections, person = found[0]
    return StoredPrediction(time, version, latency, from_json(detections), person)
