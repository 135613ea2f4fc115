"""The model behind a web API.

`create_app` puts anything that answers `detect(image, confidence)` behind HTTP: an upload is let in (`admission`), decoded,
looked at, drawn or counted in one of the slots, and what happened is written down (`monitoring.PredictionLog`). Nothing
the client says ever names a file. `serve` and `RunningServer`, which run the app, are in `running`; import them from here.
"""

import asyncio
import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated

import cv2
import numpy as np
from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline

from labsupport import admission, console, images, models
from labsupport.admission import Admission, Overloaded, Slots
from labsupport.detection import Detection, Detector, draw_boxes
from labsupport.monitoring import PredictionLog
from labsupport.running import PortTaken, RunningServer, guarded, serve
from labsupport.schemas import GUARDED, UPLOAD, CountOut, PredictionOut, answers
from labsupport.uploads import Uploads

__all__ = ["PortTaken", "RunningServer", "create_app", "serve"]

MULTIPART_OVERHEAD = 10_000  # what a form adds around the one file in it, in bytes
TOO_MANY_BYTES = f"send a picture of at most {images.MAX_BYTES:,} bytes"
FORM_LIMITS = {"max_files": 4, "max_fields": 4, "max_part_size": 1_000}
COUNTED = {"cars": "car", "apples": "apple", "plants": "pottedplant"}  # endpoint -> label

ModelName = StrEnum("ModelName", {name.replace("-", "_"): name for name in models.MODELS})


REFUSALS = {  # what the inside raises -> status, headers
    images.UnsupportedImage: (415, {}),
    images.ImageTooLarge: (413, {}),
    models.ModelUnavailable: (503, {"Retry-After": "60"}),
    Overloaded: (503, admission.RETRY_AFTER),
}


@dataclass
class Asked:
    """One request for a prediction, as it came in."""

    upload: bytes
    model: str
    confidence: float
    key: str | None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True)
class Prediction:
    """One picture that was looked at: by which version, how fast, and what was found."""

    id: str
    version: str
    latency: float  # seconds
    image: np.ndarray
    detections: list[Detection]

    @property
    def headers(self) -> dict[str, str]:
        return {"X-Prediction-Id": self.id, "X-Model-Version": self.version}


def create_app(
    detectors: Mapping[str, Detector] | Detector | None = None,
    root_path: str = "",
    keep_uploads: bool = False,
    log: PredictionLog | None = None,
    slots: int | None = None,
) -> FastAPI:
    """The HTTP API around detectors, which are looked up by the name in `?model=`.

    `detectors` is a mapping from model name to detector, one detector that answers as yolov3-tiny, or None: then every
    installed model is loaded now, so that the first request is as fast as the next. `root_path` is the prefix that a
    proxy in front puts before every path. With `keep_uploads` annotated pictures are kept in `images_uploaded`, the newest
    of them. Every prediction is written to `log`, if there is one. `slots` pictures are worked on at once, by default one
    a core.
    Raises `models.ModelUnavailable` when no model is installed.
    """
    if detectors is None:
        detectors = _load_installed(slots)
    elif not isinstance(detectors, Mapping):
        detectors = {"yolov3-tiny": detectors}
    app = FastAPIOffline(
        title="Object detection, deployed",
        description="Send a picture, get back what is in it. Everything on this page works without the internet.",
        redoc_url=None,  # a second page with the same content, which fetches its logo from the internet
        swagger_ui_parameters={"defaultModelsExpandDepth": -1},
        form_limits=FORM_LIMITS,
        responses=GUARDED,
        lifespan=_flushing(log),
    )
    desk = Desk(detectors, Slots(slots and slots + 1), log, Uploads() if keep_uploads else None)
    # the last one added is the first to see a request
    app.add_middleware(
        Admission, slots=desk.slots, max_bytes=images.MAX_BYTES + MULTIPART_OVERHEAD, too_large=TOO_MANY_BYTES
    )
    app.add_middleware(console.AccessLog)
    if root_path:
        app.add_middleware(Prefix, root_path=root_path.rstrip("/"))
    _explain_errors(app)
    _add_prediction_routes(app, desk)
    _add_status_routes(app, detectors)
    return app


def _flushing(log: PredictionLog | None):
    """The app's life, at whose end the log is written out: a worker process ends without further notice."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI):
        yield
        if log:
            await asyncio.to_thread(log.flush)

    return lifespan


def app_from_environment():
    """The app of one worker process: `labsupport serve` leaves its options in `LAB_APP_OPTIONS`."""
    options = json.loads(os.environ["LAB_APP_OPTIONS"])
    host, log, precision = (options.pop(name) for name in ("host", "log", "precision"))
    console.show()
    cv2.setNumThreads(1)  # the slots keep every core busy: more threads for one picture would only get in their way
    detectors = _load_installed(options["slots"], precision)
    return guarded(create_app(detectors, log=PredictionLog(log) if log else None, **options), host)


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


class Desk:
    """Where uploads become predictions: picks the detector, works in a slot, writes down what happened."""

    def __init__(self, detectors, slots: Slots, log: PredictionLog | None, uploads: Uploads | None) -> None:
        self.detectors, self.slots, self.log, self.uploads = detectors, slots, log, uploads

    async def answer(self, asked: Asked, render: Callable):
        """What `render` makes of the prediction. Raises what `REFUSALS` lists."""
        return await self.slots.run(self._work, asked, render)

    def _work(self, asked: Asked, render: Callable):
        """In a slot's thread: decode, detect, render, write down."""
        started, version = time.perf_counter(), None
        try:
            detector = self._detector(asked.model)
            version = detector.version
            image = images.decode(asked.upload)
            detections = detector.detect(image, asked.confidence)
            latency = time.perf_counter() - started
            answer = render(Prediction(asked.id, version, latency, image, detections))
        except Exception as error:
            status, _ = REFUSALS.get(type(error), (500, None))
            failed = {"detections": None, "features": None, "status": status, "error": type(error).__name__}
            self._record(asked, version, time.perf_counter() - started, **failed)
            raise
        self._record(asked, version, latency, detections=detections, features=images.features(image))
        return answer

    def _detector(self, model: str):
        if detector := self.detectors.get(model):
            return detector
        models.locate(model)  # raises if it is not installed
        raise models.ModelUnavailable(f"{model} was installed after this server started: start the server again")

    def _record(self, asked: Asked, version: str | None, latency: float, **seen) -> None:
        if self.log:
            size = len(asked.upload)
            self.log.record(id=asked.id, version=version, latency=latency, key=asked.key, bytes=size, **seen)


def _load_installed(slots: int | None, precision: str | None = None) -> dict[str, Detector]:
    installed = [name for name in models.MODELS if not models.missing(name)]
    if not installed:
        models.locate("yolov3-tiny")  # raises, and says how to install it
    return {name: Detector.load(name, precision=precision, slots=slots) for name in installed}


def _explain_errors(app: FastAPI) -> None:
    """Every error is `{"detail": text}`, with a text that says what to do."""

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        status, headers = REFUSALS[type(error)]
        return JSONResponse({"detail": str(error)}, status, headers)

    async def refuse_parameters(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = [f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors()]
        return JSONResponse({"detail": "; ".join(problems)}, 422)

    async def apologise(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": "the server failed, and its log says how: send it again"}, 500)

    for kind in REFUSALS:
        app.add_exception_handler(kind, refuse)
    app.add_exception_handler(RequestValidationError, refuse_parameters)
    app.add_exception_handler(Exception, apologise)


def _add_status_routes(app: FastAPI, detectors: Mapping[str, Detector]) -> None:
    @app.get("/", tags=["status"], summary="Say hello")
    async def hello(request: Request) -> dict[str, str]:
        docs = request.scope.get("root_path", "") + "/docs"
        return {"message": f"The detector is up. Try it in the browser: {docs}", "docs": docs}

    @app.get("/models", tags=["status"], summary="Which models are installed, and which answer")
    def list_models() -> list[dict[str, str | bool | None]]:
        versions = {name: detector.version for name, detector in detectors.items()}
        return [
            {"name": name, "about": model.about, "installed": not models.missing(name), "version": versions.get(name)}
            for name, model in models.MODELS.items()
        ]

    @app.get("/health", tags=["status"], summary="Is the process alive?")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/ready", tags=["status"], summary="Are the models loaded?")
    async def ready() -> dict[str, str | list[str]]:
        return {"status": "ready", "versions": [detector.version for detector in detectors.values()]}


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
