"""Return people's own predictions to them, and refuse those of other people."""

import logging
from datetime import UTC, datetime
from typing import Annotated

from fastapi import FastAPI, HTTPException, Path, Request, Response
from pydantic import Field

from labsupport.access import OTHERS, PREDICT, Damaged, Forgotten, NoKey
from labsupport.log import PredictionLog, stored_prediction, unknown
from labsupport.protection import security
from labsupport.serving import errors, schemas
from labsupport.serving.predictor import Predictor
from labsupport.serving.schemas import DetectionOut, PredictionOut

PredictionId = Annotated[str, Path(pattern=schemas.RECORD_ID, description="the id from X-Prediction-Id")]


logger = logging.getLogger(__name__)


class StoredOut(PredictionOut):
    time: datetime = Field(description="when it was answered, in UTC")


def check_own(log: PredictionLog | None, id: str, request: Request) -> PredictionLog:
    """Return the log if this prediction is the sender's, or if the sender may see the predictions of others.

    Those without a person are of senders without a token.

    Raises a 404 without a log, and `UnknownPrediction` also for the prediction of another person.
    """
    if log is None:
        raise HTTPException(404, "this server keeps no log of its predictions: it cannot find this one")
    request.state.object = id  # for the audit trail
    owner, person = log.person_of(id), security.sender(request.scope)
    own = owner == (person and person.owner) and (person is None or person.may(PREDICT))
    if not own and not (person and person.may(OTHERS)):
        raise unknown(id)
    return log


def add_own_routes(app: FastAPI, predictor: Predictor) -> None:
    @app.get(
        "/predictions/{id}",
        tags=["predictions"],
        summary="Get your own prediction again",
        response_description="the prediction, as it was answered",
        responses=errors.refusals(404, 503),
    )
    def again(id: PredictionId, request: Request) -> StoredOut:
        stored = stored_prediction(check_own(predictor.log, id, request), id)
        found = [DetectionOut.model_validate(one) for one in schemas.as_json(stored.detections)]
        time = datetime.fromtimestamp(stored.time, UTC)
        return StoredOut(id=id, time=time, version=stored.version, latency=stored.latency, detections=found)

    @app.get(
        "/predictions/{id}/picture",
        tags=["predictions"],
        summary="Get the kept picture of your own prediction",
        response_description="the picture with boxes drawn, a JPEG",
        response_class=Response,
        responses={200: {"content": schemas.JPEG}, **errors.refusals(404, 503)},
    )
    def picture(id: PredictionId, request: Request) -> Response:
        uploads, person = predictor.uploads, check_own(predictor.log, id, request).person_of(id)
        try:
            content = uploads.picture(id, person) if uploads else None
        except Forgotten:
            content = None
        except (NoKey, Damaged) as error:
            logger.error("the picture of %s cannot be decrypted: %s", id, error)
            raise HTTPException(503, "this picture cannot be decrypted: the server's log says why") from error
        except ValueError:  # the id of a station's record, under which no picture is kept
            content = None
        if content is None:
            raise HTTPException(404, "no picture of this prediction is kept: a server keeps some with --keep-uploads")
        return Response(content, media_type="image/jpeg")
