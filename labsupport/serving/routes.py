"""Define the routes of the HTTP API. `serving.create_app` adds them to the app, one group at a time."""

import contextlib
import copy
import uuid
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, FastAPI, Form, Header, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from labsupport import images, models
from labsupport.detection import draw_boxes, versions
from labsupport.log import LogUnavailable, PredictionLog
from labsupport.monitoring import CONTENT_TYPE, Metrics
from labsupport.protection import security
from labsupport.rollout import Gate, Ramps, Router, TrialFigures
from labsupport.serving import errors, schemas, strict_routes
from labsupport.serving.own_predictions import check_own
from labsupport.serving.predictor import Asked, Prediction, Predictor
from labsupport.serving.schemas import (
    UPLOAD,
    CountOut,
    FeedbackIn,
    PredictionOut,
    Records,
    RecordsOut,
    RolloutIn,
    RolloutOut,
    UploadIn,
    answers,
)

COUNTED = {"cars": "car", "apples": "apple", "plants": "pottedplant"}  # endpoint -> label

if TYPE_CHECKING:  # the default below

    class ModelName(StrEnum):
        yolov3_tiny = "yolov3-tiny"

else:
    ModelName = StrEnum("ModelName", {name.replace("-", "_"): name for name in models.MODELS})


def add_status_routes(app: FastAPI, routers: Mapping[str, Router]) -> None:
    @app.get("/models", tags=["status"], summary="List the models", response_description="all models")
    def list_models() -> list[dict[str, str | bool | None]]:
        answering = {name: router.version for name, router in routers.items()}
        return [
            {"name": name, "about": model.about, "installed": not models.missing(name), "version": answering.get(name)}
            for name, model in models.MODELS.items()
        ]

    @app.get("/health", tags=["status"], summary="Check that the process is alive", response_description="it is alive")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/ready", tags=["status"], summary="Check that the models are loaded", response_description="they are")
    async def ready() -> dict[str, str | list[str]]:
        return {"status": "ready", "versions": [router.version for router in routers.values()]}


def add_metrics_route(app: FastAPI, predictor: Predictor) -> None:
    @app.get(
        "/metrics",
        tags=["status"],
        summary="Get the metrics for Prometheus",
        response_description="the metrics, in the text format",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    def metrics() -> Response:
        if predictor.log:
            predictor.metrics.dropped(predictor.log.dropped)
        answering = [(name, router.version) for name, router in predictor.routers.items()]
        unjudged = {name: router.unjudged for name, router in predictor.routers.items()}
        return Response(predictor.metrics.text(answering, unjudged), media_type=CONTENT_TYPE)


async def asked(
    request: Request,
    form: Annotated[UploadIn, Form(media_type="multipart/form-data")],
    model: ModelName = ModelName.yolov3_tiny,
    confidence: Annotated[
        float, Query(ge=0, le=1, description="report the objects with a confidence above this, from 0 to 1")
    ] = 0.5,
    x_client_key: Annotated[
        str | None,
        Header(
            max_length=200,
            description="a name for the user or the session; in a canary, the same key gets the same version",
        ),
    ] = None,
    x_record_id: Annotated[str | None, Header(pattern=schemas.RECORD_ID, include_in_schema=False)] = None,
) -> Asked:
    """Return the one picture in the form, and the parameters. The file name that the client sends is ignored."""
    if x_record_id is not None:
        strict_routes.change_allowed(request)
    upload, person = await form.file.read(), security.sender(request.scope)
    return Asked(upload, model.value, confidence, x_client_key, x_record_id, person.owner if person else None)


def add_head_routes(app: FastAPI) -> None:
    """Answer HEAD wherever the app answers GET: the same headers, and uvicorn leaves out the body. Call this last."""
    for route in [route for route in app.routes if isinstance(route, APIRoute) and "GET" in (route.methods or ())]:
        head = copy.copy(route)
        head.methods, head.include_in_schema = {"HEAD"}, False
        app.router.routes.append(head)


def add_prediction_routes(app: FastAPI, predictor: Predictor) -> None:
    Question = Annotated[Asked, Depends(asked)]

    @app.post(
        "/predict",
        tags=["predictions"],
        summary="Get the picture with boxes drawn",
        response_description="the picture, a JPEG",
        response_class=Response,
        responses=answers(content=schemas.JPEG),
        openapi_extra=UPLOAD,
    )
    async def predict(question: Question) -> Response:
        def render(prediction: Prediction) -> Response:
            content = images.encode(draw_boxes(prediction.image, prediction.detections))
            if predictor.uploads:  # under an id of the server's: that of a record comes from the client
                name = f"{uuid.uuid4().hex if question.record else prediction.id}.jpg"
                predictor.uploads.keep(name, content, question.person)
            return Response(content, media_type="image/jpeg", headers=prediction.headers)

        return await predictor.answer(question, render)

    @app.post(
        "/detect",
        tags=["predictions"],
        summary="Get the objects as JSON",
        response_description="the objects that were found",
        responses=answers(model=PredictionOut),
        openapi_extra=UPLOAD,
    )
    async def detect(question: Question) -> Response:
        def render(p: Prediction) -> Response:
            content = {
                "id": p.id,
                "version": p.version,
                "latency": p.latency,
                "detections": schemas.as_json(p.detections),
            }
            return JSONResponse(content, headers=p.headers)

        return await predictor.answer(question, render)

    for plural, label in COUNTED.items():
        _add_counting_route(app, predictor, plural, label)


def _add_counting_route(app: FastAPI, predictor: Predictor, plural: str, label: str) -> None:
    @app.post(
        f"/count-{plural}",
        tags=["predictions"],
        summary=f"Count {plural}",
        response_description=f"the number of {plural}, and where they are",
        responses=answers(model=CountOut),
        openapi_extra=UPLOAD,
        name=f"count_{plural}",
    )
    async def count(question: Annotated[Asked, Depends(asked)]) -> Response:
        def render(prediction: Prediction) -> Response:
            counted = schemas.as_json([one for one in prediction.detections if one.label == label])
            content = {"label": label, "count": len(counted), "detections": counted}
            return JSONResponse(content, headers=prediction.headers)

        return await predictor.answer(question, render)


def add_feedback_route(app: FastAPI, log: PredictionLog | None, metrics: Metrics) -> None:
    @app.post(
        "/feedback",
        tags=["predictions"],
        summary="Say whether an answer was right",
        response_description="the feedback is stored",
        status_code=204,
        responses=errors.refusals(400, 404, 422, 503),
    )
    def feedback(said: FeedbackIn, request: Request) -> None:
        own = check_own(log, said.prediction_id, request)
        earlier = own.feedback(said.prediction_id, said.correct, said.labels, said.retry)
        metrics.said({"correct": said.correct, "labels": said.labels, "retry": said.retry}, earlier)


def add_records_route(app: FastAPI, log: PredictionLog | None) -> None:
    @app.post(
        "/records",
        tags=["stations"],
        summary="Hand in the decisions of a station",
        response_description="all records are stored",
        description="Needs the server's token. Each id is stored once, so a station can safely send records again. "
        "The answer comes when all of it is on the disk. A station that asks for a prediction sends the id of its later "
        "record in the header X-Record-Id, with the token. Then only the record is logged.",
        dependencies=[Depends(strict_routes.change_allowed)],
        responses=errors.refusals(400, 404, 422, 503),
    )
    def receive(decided: Records, request: Request) -> RecordsOut:
        request.state.object = f"{len(decided):,} records"  # for the audit trail
        if log is None:
            raise HTTPException(404, "this server keeps no log: there is nowhere to put records")
        new = log.receive([record.model_dump() for record in decided])
        return RecordsOut(new=new, known=len(decided) - new)


def add_rollout_routes(app: FastAPI, predictor: Predictor, ramps: Ramps) -> None:
    trials = {name: TrialFigures() for name in predictor.routers}

    def state_of(name: str) -> RolloutOut:
        router = predictor.router(name)
        status, log, others = router.status(), predictor.log, list[str]()
        with contextlib.suppress(OSError):  # files that cannot be read: who answers is known all the same
            others = versions(name) if status.pop("loads") else []
        if not status["figures"] and log:
            try:
                status["figures"] = trials[name].figures(log, router.state)
            except LogUnavailable as error:
                status["trouble"] = "; ".join(filter(None, [status["trouble"], f"there are no figures: {error}"]))
        return RolloutOut(**status, loadable=sorted({*status["versions"], *others}))

    @app.get(
        "/rollout",
        tags=["rollout"],
        summary="Show which version answers",
        response_description="the state of the rollout",
        responses=errors.refusals(422, 503),
    )
    def show(model: ModelName = ModelName.yolov3_tiny) -> RolloutOut:
        return state_of(model.value)

    @app.put(
        "/rollout",
        tags=["rollout"],
        summary="Change which version answers",
        response_description="the state after the change",
        description="Needs the server's token, also on this machine: start the server with LAB_TOKEN, and press Authorize.",
        dependencies=[Depends(strict_routes.change_allowed)],
        responses=errors.refusals(400, 404, 409, 422, 503),
    )
    def change(wanted: RolloutIn, request: Request, model: ModelName = ModelName.yolov3_tiny) -> RolloutOut:
        router = predictor.router(model.value)
        name = wanted.candidate or ""
        request.state.object = " ".join(filter(None, (model.value, wanted.action, name)))  # for the audit trail
        if wanted.action in ("shadow", "canary", "blue_green", "ramp") and not name:
            raise HTTPException(422, f"candidate: {wanted.action} needs one, by its version's name")
        match wanted.action:
            case "shadow":
                router.shadow(name, wanted.percent, wanted.reason)
            case "canary":
                router.canary(name, wanted.weight, wanted.reason)
            case "blue_green":
                router.blue_green(name, wanted.reason)
            case "ramp":
                ramps.start(model.value, name, wanted.steps, Gate(**wanted.gate.model_dump()), wanted.interval)
            case "rollback":
                router.rollback(wanted.reason, to=wanted.to)
            case action:
                getattr(router, action)(wanted.reason)
        return state_of(model.value)
