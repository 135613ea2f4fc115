"""The model behind a web API.

`create_app` puts anything that answers `detect(image, confidence)` behind HTTP: the upload is decoded at the edge, the
detector looks at its pixels, the answer is drawn or counted, and nothing the client says ever names a file.
`serve` and `RunningServer`, which run the app, are in `running` and can be imported from here too.
"""

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import numpy as np
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, Field
from starlette.datastructures import Headers

from labsupport import images, models, paths
from labsupport.detection import Detection, Detector, draw_boxes
from labsupport.running import PortTaken, RunningServer, serve

__all__ = ["PortTaken", "RunningServer", "create_app", "serve"]

MULTIPART_OVERHEAD = 10_000  # what a form adds around the one file in it, in bytes
TOO_MANY_BYTES = f"send a picture of at most {images.MAX_BYTES:,} bytes"
RETRY_AFTER = {"Retry-After": "60"}
COUNTED = {"cars": "car", "apples": "apple", "plants": "pottedplant"}  # endpoint -> label

ModelName = StrEnum("ModelName", {name.replace("-", "_"): name for name in models.MODELS})


class BoxOut(BaseModel):
    """Pixels in the picture that was sent, turned upright."""

    left: int
    top: int
    right: int
    bottom: int


class DetectionOut(BaseModel):
    label: str
    confidence: float
    box: BoxOut


class PredictionOut(BaseModel):
    id: str
    version: str = Field(description="the model version that answered")
    latency: float = Field(description="seconds spent on decoding and detecting")
    detections: list[DetectionOut]


class CountOut(BaseModel):
    label: str
    count: int
    detections: list[DetectionOut]


class Problem(BaseModel):
    """What every error looks like."""

    detail: str = Field(description="what is wrong, and what to do")


@dataclass(frozen=True)
class Prediction:
    """One picture that was looked at: by which version, how fast, and what was found."""

    id: str
    version: str
    latency: float  # seconds
    image: np.ndarray
    detections: list[Detection]


ERRORS = {
    400: "the body is no form that can be read",
    413: "too many bytes or pixels",
    415: "not a JPEG or PNG picture, judged by its content",
    422: "a parameter is missing or out of range",
    503: "the model is not installed, or the server is overloaded",
}


def create_app(
    detectors: Mapping[str, Detector] | Detector | None = None, root_path: str = "", keep_uploads: bool = False
) -> FastAPI:
    """The HTTP API around detectors, which are looked up by the name in `?model=`.

    `detectors` is a mapping from model name to detector, one detector that answers as yolov3-tiny, or None: then every
    installed model is loaded now, so that the first request is as fast as the next. `root_path` is the prefix that a
    proxy in front puts before every path. With `keep_uploads` each annotated picture is kept in `images_uploaded`, named
    after its prediction's id. Raises `models.ModelUnavailable` when no model is installed.
    """
    if detectors is None:
        detectors = _load_installed()
    elif not isinstance(detectors, Mapping):
        detectors = {"yolov3-tiny": detectors}
    app = FastAPIOffline(
        title="Object detection, deployed",
        description="Send a picture, get back what is in it. Everything on this page works without the internet.",
        form_limits={"max_files": 8, "max_fields": 8},
        responses={status: {"model": Problem, "description": text} for status, text in ERRORS.items()},
    )
    app.add_middleware(UploadLimit, max_bytes=images.MAX_BYTES + MULTIPART_OVERHEAD)
    if root_path:
        app.add_middleware(Prefix, root_path=root_path.rstrip("/"))
    _explain_errors(app)
    _add_status_routes(app, detectors)
    _add_prediction_routes(app, detectors, keep_uploads)
    return app


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


class UploadLimit:
    """Refuses an upload that says it is too large before a byte of it is read, and one that does not say so in time."""

    def __init__(self, app, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope, receive, send) -> None:
        length = Headers(scope=scope).get("content-length", "") if scope["type"] == "http" else ""
        if length.isdecimal() and int(length) > self.max_bytes:
            refusal = JSONResponse({"detail": f"{int(length):,} bytes: {TOO_MANY_BYTES}"}, 413)
            return await refusal(scope, receive, send)
        received = 0

        async def receive_counted():
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise HTTPException(413, TOO_MANY_BYTES)
            return message

        await self.app(scope, receive_counted, send)


def _load_installed() -> dict[str, Detector]:
    installed = [name for name in models.MODELS if not models.missing(name)]
    if not installed:
        models.locate("yolov3-tiny")  # raises, and says how to install it
    return {name: Detector.load(name) for name in installed}


def _explain_errors(app: FastAPI) -> None:
    """Every error is `{"detail": text}`, with a text that says what to do."""
    statuses = {images.UnsupportedImage: 415, images.ImageTooLarge: 413, models.ModelUnavailable: 503}

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        status = statuses[type(error)]
        return JSONResponse({"detail": str(error)}, status, RETRY_AFTER if status == 503 else None)

    async def refuse_parameters(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = [f"{problem['loc'][-1]}: {problem['msg']}" for problem in error.errors()]
        return JSONResponse({"detail": "; ".join(problems)}, 422)

    for kind in statuses:
        app.add_exception_handler(kind, refuse)
    app.add_exception_handler(RequestValidationError, refuse_parameters)


def _add_status_routes(app: FastAPI, detectors: Mapping[str, Detector]) -> None:
    @app.get("/", summary="Say hello")
    def hello(request: Request) -> dict[str, str]:
        docs = request.scope.get("root_path", "") + "/docs"
        return {"message": f"The detector is up. Try it in the browser: {docs}", "docs": docs}

    @app.get("/models", summary="Which models are installed, and which answer")
    def list_models() -> list[dict[str, str | bool | None]]:
        versions = {name: detector.version for name, detector in detectors.items()}
        return [
            {"name": name, "about": model.about, "installed": not models.missing(name), "version": versions.get(name)}
            for name, model in models.MODELS.items()
        ]

    @app.get("/health", summary="Is the process alive?")
    def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/ready", summary="Are the models loaded?")
    def ready() -> dict[str, str | list[str]]:
        return {"status": "ready", "versions": [detector.version for detector in detectors.values()]}


async def one_file(request: Request, file: UploadFile) -> bytes:
    """The bytes of the one picture in the form; what the client calls it does not matter."""
    if len((await request.form()).getlist("file")) > 1:
        raise HTTPException(422, "file: send one picture at a time")
    return await file.read()


def _add_prediction_routes(app: FastAPI, detectors: Mapping[str, Detector], keep_uploads: bool) -> None:
    def predict(
        data: Annotated[bytes, Depends(one_file)],
        model: ModelName = ModelName.yolov3_tiny,
        confidence: Annotated[
            float, Query(ge=0, le=1, description="report what the model is surer of than this")
        ] = 0.5,
    ) -> Prediction:
        detector = detectors.get(model)
        if detector is None:
            models.locate(model)  # raises if it is not installed
            raise models.ModelUnavailable(f"{model} was installed after this server started: start the server again")
        started = time.perf_counter()
        image = images.decode(data)
        detections = detector.detect(image, confidence)
        return Prediction(uuid.uuid4().hex, detector.version, time.perf_counter() - started, image, detections)

    Predicted = Annotated[Prediction, Depends(predict)]

    @app.post(
        "/predict",
        summary="The picture with boxes drawn",
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}}},
    )
    def picture(prediction: Predicted) -> Response:
        content = images.encode(draw_boxes(prediction.image, prediction.detections))
        if keep_uploads:
            with paths.whole(paths.IMAGES_UPLOADED / f"{prediction.id}.jpg") as partial:
                partial.write_bytes(content)
        headers = {"X-Prediction-Id": prediction.id, "X-Model-Version": prediction.version}
        return Response(content, media_type="image/jpeg", headers=headers)

    @app.post("/detect", summary="The objects as JSON", response_model=PredictionOut)
    def detect(prediction: Predicted) -> dict:
        found = _as_json(prediction.detections)
        return {"id": prediction.id, "version": prediction.version, "latency": prediction.latency, "detections": found}

    for plural, label in COUNTED.items():
        _add_counting_route(app, plural, label, Predicted)


def _add_counting_route(app: FastAPI, plural: str, label: str, predicted) -> None:
    @app.post(f"/count-{plural}", summary=f"How many {plural}?", response_model=CountOut, name=f"count_{plural}")
    def count(prediction: predicted) -> dict:
        found = [detection for detection in prediction.detections if detection.label == label]
        return {"label": label, "count": len(found), "detections": _as_json(found)}


def _as_json(detections: list[Detection]) -> list[dict]:
    return [{"label": d.label, "confidence": d.confidence, "box": d.box._asdict()} for d in detections]
