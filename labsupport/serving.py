"""The model behind a web API.

`create_app` puts anything that answers `detect(image, confidence)` behind HTTP: an upload is let in (`admission`), becomes
a prediction (`desk`), and goes back drawn, listed or counted; who answers can be looked at and changed (`rollout`). Nothing
the client says ever names a file. `serve` and `RunningServer`, which run the app, are in `running`; import them from here.
"""

import asyncio
import contextlib
import ctypes
import json
import os
from collections.abc import Mapping
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Annotated

import cv2
from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.routing import Match

from labsupport import admission, console, images, models, paths, schemas, security
from labsupport.admission import Admission, Overloaded, Slots
from labsupport.desk import Asked, Desk, Prediction, status_of
from labsupport.detection import Detection, Detector, draw_boxes
from labsupport.journal import JournalUnavailable
from labsupport.live import MINUTES, Live
from labsupport.metrics import CONTENT_TYPE, Metrics, Watch
from labsupport.monitoring import LogUnavailable, NotWritten, PredictionLog, UnknownPrediction
from labsupport.rollout import Gate, Ramps, Router, UnknownVersion, WrongMoment, WrongRamp
from labsupport.running import PortTaken, RunningServer, guarded, serve
from labsupport.schemas import GUARDED, UPLOAD, CountOut, FeedbackIn, PredictionOut, RolloutIn, RolloutOut, answers
from labsupport.uploads import Uploads

__all__ = ["PortTaken", "RunningServer", "create_app", "serve"]

MULTIPART_OVERHEAD = 10_000  # what a form adds around the one file in it, in bytes
TOO_MANY_BYTES = f"send a picture of at most {images.MAX_BYTES:,} bytes"
FORM_LIMITS = {"max_files": 4, "max_fields": 4, "max_part_size": 1_000}
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # glibc's malloc.h
COUNTED = {"cars": "car", "apples": "apple", "plants": "pottedplant"}  # endpoint -> label

DASHBOARD = {
    "type": "object",
    "required": ["now", "since", "versions", "message", "rows", "alarms", "spans", "rollouts"],
}
PAGE = Path(__file__).parent / "static" / "dashboard.html"
PAGE_HEADERS = {  # whatever a version's name may hold, the page talks to this server only
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
    "Cache-Control": "no-cache",
}

ModelName = StrEnum("ModelName", {name.replace("-", "_"): name for name in models.MODELS})
Minutes = IntEnum("Minutes", {f"last_{minutes}": minutes for minutes in MINUTES})


RETRY = {  # what may pass, and after how many seconds
    models.ModelUnavailable: {"Retry-After": "60"},
    Overloaded: admission.RETRY_AFTER,
    NotWritten: admission.RETRY_AFTER,
    JournalUnavailable: admission.RETRY_AFTER,
    LogUnavailable: admission.RETRY_AFTER,
}
REFUSALS = {  # what the inside raises -> status
    **{kind: status_of(kind()) for kind in (images.UnsupportedImage, images.ImageTooLarge, models.ModelUnavailable)},
    **dict.fromkeys((Overloaded, NotWritten, JournalUnavailable, LogUnavailable), 503),
    UnknownPrediction: 404,
    UnknownVersion: 404,
    WrongMoment: 409,
    WrongRamp: 422,
}


def create_app(
    detectors: Mapping[str, Detector | Router] | Detector | Router | None = None,
    root_path: str = "",
    keep_uploads: bool = False,
    log: PredictionLog | None = None,
    slots: int | None = None,
) -> FastAPI:
    """The HTTP API around detectors, which are looked up by the name in `?model=`.

    `detectors` is a mapping from model name to detector or router, one of them that answers as yolov3-tiny, or None: then
    every installed model is loaded now, so that the first request is as fast as the next. `root_path` is the prefix that a
    proxy in front puts before every path. With `keep_uploads` annotated pictures are kept in `images_uploaded`, the newest
    of them. Every prediction is written to `log`, if there is one. `slots` pictures are worked on at once, by default one
    a core.
    Raises `models.ModelUnavailable` when no model is installed.
    """
    if detectors is None:
        detectors = _load_installed(slots)
    elif not isinstance(detectors, Mapping):
        detectors = {"yolov3-tiny": detectors}
    routers = {name: one if isinstance(one, Router) else Router(one) for name, one in detectors.items()}
    for router in routers.values():
        router.log = router.log or log
    ramps = Ramps(routers)
    app = FastAPIOffline(
        title="Object detection, deployed",
        description="Send a picture, get back what is in it. Everything on this page works without the internet.",
        redoc_url=None,  # a second page with the same content, which fetches its logo from the internet
        swagger_ui_parameters={"defaultModelsExpandDepth": -1},
        form_limits=FORM_LIMITS,
        responses=GUARDED,
        lifespan=_life(log, ramps),
    )
    metrics, handlers = Metrics(), set()
    desk = Desk(routers, Slots(slots and slots + 1), log, Uploads() if keep_uploads else None, metrics)
    metrics.places.set(desk.slots.limit)
    # the last one added is the first to see a request
    limits = {"max_bytes": images.MAX_BYTES + MULTIPART_OVERHEAD, "too_large": TOO_MANY_BYTES}
    app.add_middleware(Admission, slots=desk.slots, refused=desk.refused, **limits)
    app.add_middleware(console.AccessLog)
    app.add_middleware(Watch, metrics=metrics, handlers=handlers)
    if root_path:
        app.add_middleware(Prefix, root_path=root_path.rstrip("/"))
    _explain_errors(app)
    _add_prediction_routes(app, desk)
    _add_feedback_route(app, log, metrics)
    _add_rollout_routes(app, desk, ramps)
    _add_status_routes(app, routers)
    _add_metrics_route(app, desk)
    _add_dashboard_routes(app, Live(log, routers))
    handlers.update(route.path for route in app.routes)
    return app


def _life(log: PredictionLog | None, ramps: Ramps):
    """The app's life: ramps that were under way go on, and at its end the log is written out, for a worker process ends
    without further notice."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI):
        ramps.go_on()
        yield
        await asyncio.to_thread(ramps.stop)
        if log:
            await asyncio.to_thread(log.flush)

    return lifespan


def app_from_environment():
    """The app of one worker process: `labsupport serve` leaves its options in `LAB_APP_OPTIONS`."""
    options = json.loads(os.environ["LAB_APP_OPTIONS"])
    host, log, precision = (options.pop(name) for name in ("host", "log", "precision"))
    console.show()
    _keep_memory()
    cv2.setNumThreads(1)  # the slots keep every core busy: more threads for one picture would only get in their way
    detectors = _load_installed(options["slots"], precision)
    routers = {
        name: Router(detector, load=Detector.named, journal=paths.root() / f"rollout-{name}.db")
        for name, detector in detectors.items()
    }
    return guarded(create_app(routers, log=PredictionLog(log) if log else None, **options), host)


def _keep_memory() -> None:
    """A picture's pixels come and go a hundred times a second: glibc would hand them back to the system each time, and get
    them again page by page. It may keep 128 MB instead; what is larger than 32 MB goes back at once all the same."""
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, 128 << 20)
        libc.mallopt(M_TOP_PAD, 16 << 20)


class Prefix:
    """Makes an app answer under a proxy's prefix, whether the proxy strips it or not, and when called directly."""

    def __init__(self, app, root_path: str) -> None:
        self.app, self.root_path = app, root_path

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "http":
            prefix, path = self.root_path, scope["path"]
            path = path if path.startswith(prefix + "/") else prefix + path
            scope = {**scope, "root_path": prefix, "path": path}
        await self.app(scope, receive, send)


def _load_installed(slots: int | None, precision: str | None = None) -> dict[str, Detector]:
    installed = [name for name in models.MODELS if not models.missing(name)]
    if not installed:
        models.locate("yolov3-tiny")  # raises, and says how to install it
    return {name: Detector.load(name, precision=precision, slots=slots) for name in installed}


def _explain_errors(app: FastAPI) -> None:
    """Every error is `{"detail": text}`, with a text that says what to do."""

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, REFUSALS[type(error)], RETRY.get(type(error)))

    async def refuse_method(request: Request, error: HTTPException) -> JSONResponse:
        fitting = [route for route in app.routes if route.matches(request.scope)[0] != Match.NONE]
        methods = sorted({method for route in fitting for method in route.methods})
        return JSONResponse({"detail": f"ask with {' or '.join(methods)}"}, 405, {"Allow": ", ".join(methods)})

    async def refuse_parameters(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = [f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors()]
        return JSONResponse({"detail": "; ".join(problems)}, 422)

    async def apologise(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": "the server failed, and its log says how: send it again"}, 500)

    app.add_exception_handler(405, refuse_method)
    for kind in REFUSALS:
        app.add_exception_handler(kind, refuse)
    app.add_exception_handler(RequestValidationError, refuse_parameters)
    app.add_exception_handler(Exception, apologise)


def _add_status_routes(app: FastAPI, routers: Mapping[str, Router]) -> None:
    @app.get("/", tags=["status"], summary="Say hello")
    async def hello(request: Request) -> dict[str, str]:
        docs = request.scope.get("root_path", "") + "/docs"
        return {"message": f"The detector is up. Try it in the browser: {docs}", "docs": docs}

    @app.get("/models", tags=["status"], summary="Which models are installed, and which answer")
    def list_models() -> list[dict[str, str | bool | None]]:
        versions = {name: router.version for name, router in routers.items()}
        return [
            {"name": name, "about": model.about, "installed": not models.missing(name), "version": versions.get(name)}
            for name, model in models.MODELS.items()
        ]

    @app.get("/health", tags=["status"], summary="Is the process alive?")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/ready", tags=["status"], summary="Are the models loaded?")
    async def ready() -> dict[str, str | list[str]]:
        return {"status": "ready", "versions": [router.version for router in routers.values()]}


def _add_metrics_route(app: FastAPI, desk: Desk) -> None:
    @app.get(
        "/metrics",
        tags=["status"],
        summary="What Prometheus reads",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    def metrics() -> Response:
        if desk.log:
            desk.metrics.dropped(desk.log.dropped)
        answering = [(name, router.version) for name, router in desk.routers.items()]
        return Response(desk.metrics.text(answering), media_type=CONTENT_TYPE)


def _add_dashboard_routes(app: FastAPI, live: Live) -> None:
    @app.get(
        "/dashboard",
        tags=["status"],
        summary="What happens here, in the browser",
        description="One page, which needs no internet. Beyond loopback it needs the token as everything does, and a "
        "browser sends none by itself: a proxy in front has to add the header.",
        response_class=Response,
        responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}},
    )
    def dashboard() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=PAGE_HEADERS)

    @app.get(
        "/dashboard/data",
        tags=["status"],
        summary="What the dashboard shows",
        response_class=Response,
        responses={200: {"content": {"application/json": {"schema": DASHBOARD}}}, **schemas.refusals(422, 503)},
    )
    def data(minutes: Minutes = Minutes.last_15) -> Response:
        return Response(live.text(minutes), media_type="application/json", headers={"Cache-Control": "no-store"})


async def asked(
    request: Request,
    file: UploadFile,
    model: ModelName = ModelName.yolov3_tiny,
    confidence: Annotated[float, Query(ge=0, le=1, description="report what the model is surer of than this")] = 0.5,
    x_client_key: Annotated[
        str | None, Header(max_length=200, description="who asks, for the log and the router")
    ] = None,
) -> Asked:
    """The one picture in the form, and the parameters; what the client calls the picture does not matter."""
    if len((await request.form()).getlist("file")) > 1:
        raise HTTPException(422, "file: send one picture at a time")
    return Asked(await file.read(), model.value, confidence, x_client_key)


def _add_prediction_routes(app: FastAPI, desk: Desk) -> None:
    Question = Annotated[Asked, Depends(asked)]

    @app.post(
        "/predict",
        tags=["predictions"],
        summary="The picture with boxes drawn",
        response_class=Response,
        responses=answers(content={"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}),
        openapi_extra=UPLOAD,
    )
    async def predict(question: Question) -> Response:
        def render(prediction: Prediction) -> Response:
            content = images.encode(draw_boxes(prediction.image, prediction.detections))
            if desk.uploads:
                desk.uploads.keep(f"{prediction.id}.jpg", content)
            return Response(content, media_type="image/jpeg", headers=prediction.headers)

        return await desk.answer(question, render)

    @app.post(
        "/detect",
        tags=["predictions"],
        summary="The objects as JSON",
        responses=answers(model=PredictionOut),
        openapi_extra=UPLOAD,
    )
    async def detect(question: Question) -> Response:
        def render(p: Prediction) -> Response:
            found = _as_json(p.detections)
            content = {"id": p.id, "version": p.version, "latency": p.latency, "detections": found}
            return JSONResponse(content, headers=p.headers)

        return await desk.answer(question, render)

    for plural, label in COUNTED.items():
        _add_counting_route(app, desk, plural, label)


def _add_counting_route(app: FastAPI, desk: Desk, plural: str, label: str) -> None:
    @app.post(
        f"/count-{plural}",
        tags=["predictions"],
        summary=f"How many {plural}?",
        responses=answers(model=CountOut),
        openapi_extra=UPLOAD,
        name=f"count_{plural}",
    )
    async def count(question: Annotated[Asked, Depends(asked)]) -> Response:
        def render(prediction: Prediction) -> Response:
            found = _as_json([found for found in prediction.detections if found.label == label])
            content = {"label": label, "count": len(found), "detections": found}
            return JSONResponse(content, headers=prediction.headers)

        return await desk.answer(question, render)


def _as_json(detections: list[Detection]) -> list[dict]:
    return [{"label": d.label, "confidence": d.confidence, "box": d.box._asdict()} for d in detections]


def _add_feedback_route(app: FastAPI, log: PredictionLog | None, metrics: Metrics) -> None:
    @app.post(
        "/feedback",
        tags=["predictions"],
        summary="Say whether an answer was right",
        status_code=204,
        responses=schemas.refusals(400, 404, 422, 503),
    )
    def feedback(said: FeedbackIn) -> None:
        if log is None:
            raise UnknownPrediction("this server keeps no log of its predictions: it cannot note what you say of them")
        log.feedback(said.prediction_id, said.correct, said.labels, said.retry)
        metrics.said(said.correct, said.labels, said.retry)


def _add_rollout_routes(app: FastAPI, desk: Desk, ramps: Ramps) -> None:
    @app.get(
        "/rollout",
        tags=["rollout"],
        summary="Who answers, and since when",
        responses=schemas.refusals(422, 503),
    )
    def show(model: ModelName = ModelName.yolov3_tiny) -> RolloutOut:
        return RolloutOut(**desk.router(model.value).status())

    @app.put(
        "/rollout",
        tags=["rollout"],
        summary="Change who answers",
        description="Only with the server's token, wherever it is bound.",
        dependencies=[Depends(token_shown)],
        responses=schemas.refusals(400, 404, 409, 422, 503),
    )
    def change(wanted: RolloutIn, model: ModelName = ModelName.yolov3_tiny) -> RolloutOut:
        router = desk.router(model.value)
        name = wanted.candidate
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
            case action:
                getattr(router, action)(wanted.reason)
        return RolloutOut(**router.status())


def token_shown(request: Request) -> None:
    """Raises a 401 unless the request carries the server's token. Without a token nobody changes the server's state."""
    if not security.carries(request.headers, security.token()):
        raise HTTPException(401, security.HOW, {"WWW-Authenticate": "Bearer"})
