"""Make the web API around a model.

`create_app` takes any object that has `detect(image, confidence)`. `protection` decides whether an upload is accepted,
`predictor` runs the prediction, and `routes` sends the result as a picture, a list or a count. `rollout` chooses the
model version that answers. Text from a client is never used as the name of a file. `serve` and `RunningServer`, which
run the app, are defined in `running` and can be imported from here.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from labsupport import arguments, images, models
from labsupport.access import Access, Uploads
from labsupport.detection import Version, load_installed
from labsupport.log import PredictionLog
from labsupport.monitoring import Live, Metrics, Watch
from labsupport.protection import COPIES, EXTRA_SLOTS, LEAST, MOST_SLOTS, Admission, Budget, Rule, Slots, WrongTokens
from labsupport.rollout import Ramps, Router
from labsupport.serving import access_log, errors, own_predictions, pages, routes, strict_routes
from labsupport.serving.errors import ERRORS, GUARDED, Responses, refusal
from labsupport.serving.predictor import Predictor
from labsupport.serving.running import PortTaken, RunningServer, serve
from labsupport.serving.schemas import NO_NUL
from labsupport.serving.strict_routes import StrictRoute

__all__ = ["PortTaken", "RunningServer", "create_app", "serve"]

MULTIPART_OVERHEAD = 10_000  # what a form adds around the one file in it, in bytes
TOO_MANY_BYTES = f"send a picture of at most {images.MAX_BYTES:,} bytes"
PICTURE = Rule(images.MAX_BYTES + MULTIPART_OVERHEAD, copies=COPIES, predicts=True, too_large=TOO_MANY_BYTES)
RULES = {
    **dict.fromkeys(("/predict", "/detect", *(f"/count-{plural}" for plural in routes.COUNTED)), PICTURE),
    "/feedback": Rule(16_000, copies=30),
    "/records": Rule(2_000_000, copies=30, values=100_000, guarded=("POST",), too_large="send fewer records at a time"),
    "/rollout": Rule(16_000, copies=30, guarded=("PUT",)),
}
ANYWHERE: Responses = {  # what every route may answer besides what it says of itself
    **GUARDED,
    **{status: ERRORS[status] for status in (408, 413, 503)},
    414: refusal("the address is too long"),
    403: refusal("a page of another site made the browser ask, or the role does not allow it"),
    421: refusal("on loopback: the header Host names another machine"),
}
PROBLEMS = 10  # that an answer names, of those that a request has
PROBLEM = 200  # characters of each
WORDS = {  # instead of Pydantic's own, which name its insides
    "extra_forbidden": "no such key is read here: leave it out, or correct its name",
    "model_attributes_type": "send a JSON object, as in {...}",
    "string_unicode": "give valid unicode text, without half a surrogate pair",
}
NO_PATH = "there is no such path here: see which there are at"
FORM_LIMITS = {"max_files": 4, "max_fields": 4, "max_part_size": 1_000}
PREFIX = re.compile(r"(/[A-Za-z0-9._~-]+)+")

logger = logging.getLogger(__name__)


def create_app(
    detectors: Mapping[str, Version] | Version | None = None,
    root_path: str = "",
    keep_uploads: bool = False,
    log: PredictionLog | None = None,
    slots: int | None = None,
    memory: int | None = None,
    access: Access | None = None,
) -> FastAPI:
    """Return the app that serves `detectors` over HTTP. A request names the detector in `?model=`.

    - `detectors`: a mapping from model name to `Detector` or `Router`. A single one answers as yolov3-tiny. With None,
      every installed model is loaded now, so that the first request is as fast as the next.
    - `root_path`: the prefix that a proxy puts before every path.
    - `keep_uploads`: if True, the newest annotated pictures are kept in `images_uploaded`.
    - `log`: every prediction is written to this log; by default to that of the routers, if they have one.
    - `slots`: the number of pictures that are processed in parallel; by default one a core.
    - `memory`: the most bytes that uploads, pictures and answers take together. By default it is computed from the free
      part of the container's limit, or of a quarter of the machine's memory.
    - `access`: the people of a data folder. Then `serve` accepts their tokens, each may do what the role allows and sees
      only own predictions, the audit trail lists what they do, and their kept pictures are encrypted.

    Raises `models.ModelUnavailable` if no model is installed, and ValueError for any other kind of detector, a
    `root_path` that is not a path, several logs, or too little `memory`.
    """
    root_path = _prefix(root_path)
    routers = _routers(detectors, keep_uploads, log, slots)
    log = _one_log(routers, log)
    ramps, metrics = Ramps(routers), Metrics()
    app = FastAPIOffline(
        title="Object detection, deployed",
        description="Send a picture, get back what is in it. Everything on this page works without the internet.",
        redoc_url=None,  # a second page with the same content, which fetches its logo from the internet
        swagger_ui_parameters={"defaultModelsExpandDepth": -1},
        form_limits=FORM_LIMITS,
        responses=ANYWHERE,
        lifespan=_life(log, ramps, access),
    )
    app.router.route_class = StrictRoute
    budget = Budget(memory if memory is None else arguments.number("memory", memory, least=LEAST, whole=True))
    places = Slots(slots and slots + EXTRA_SLOTS, budget=budget)
    metrics.places.set(places.limit)
    uploads = Uploads(keys=access.keys if access else None) if keep_uploads else None
    predictor = Predictor(routers, places, log, uploads, metrics)
    app.state.root_path, app.state.access = root_path, access
    app.state.wrong_tokens = WrongTokens(lambda reason: metrics.unauthorised.labels(reason).inc())
    handlers: set[str] = set()
    # the last one added is the first to see a request
    app.add_middleware(
        Admission, slots=places, rules=RULES, wrong_tokens=app.state.wrong_tokens, refused=predictor.refused
    )
    app.add_middleware(access_log.AccessLog)
    app.add_middleware(Watch, metrics=metrics, handlers=handlers)
    if root_path:
        app.add_middleware(Prefix, root_path=root_path)
    _explain_errors(app)
    _add_routes(app, predictor, ramps)
    handlers.update(route.path for route in app.routes if isinstance(route, Route | Mount))
    return app


def _routers(
    detectors: Mapping[str, Version] | Version | None, keep_uploads: bool, log: PredictionLog | None, slots: int | None
) -> dict[str, Router]:
    """Check the arguments of `create_app`, and return a router for each model, which writes to `log`."""
    named: Mapping[str, Version]
    if detectors is None:
        named = load_installed(slots)
    else:
        named = detectors if isinstance(detectors, Mapping) else {"yolov3-tiny": detectors}
    for name, one in named.items():
        arguments.choice("the name of a model in detectors", name, models.MODELS)
        if isinstance(one, type) or not callable(getattr(one, "detect", None)):
            raise ValueError(
                f"detectors={arguments.shown(one)}: give a Detector, a Router, or one for each model's name"
            )
    arguments.choice("keep_uploads", keep_uploads, (False, True))
    if log is not None and not hasattr(log, "record"):
        raise ValueError(f'log={arguments.shown(log)}: give a PredictionLog, as in PredictionLog("sqlite:///log.db")')
    if slots is not None:
        arguments.number("slots", slots, 1, MOST_SLOTS - EXTRA_SLOTS, whole=True)
    routers = {name: one if isinstance(one, Router) else Router(one) for name, one in named.items()}
    return routers


def _one_log(routers: Mapping[str, Router], log: PredictionLog | None) -> PredictionLog | None:
    """Give the app and its routers one log, and return it. Raises ValueError if they have several: a ramp would be judged on
    another log than that of the predictions."""
    logs = [one for one in (log, *(router.log for router in routers.values())) if one is not None]
    for other in logs[1:]:
        if other is not logs[0] and not other.is_same(logs[0]):
            raise ValueError(f"there are two logs, {logs[0]} and {other}: give create_app and its Routers the same log")
    for router in routers.values():
        router.log = logs[0] if logs else None
    return logs[0] if logs else None


def _add_routes(app: FastAPI, predictor: Predictor, ramps: Ramps) -> None:
    routes.add_prediction_routes(app, predictor)
    routes.add_feedback_route(app, predictor.log, predictor.metrics)
    own_predictions.add_own_routes(app, predictor)
    routes.add_records_route(app, predictor.log)
    routes.add_rollout_routes(app, predictor, ramps)
    routes.add_status_routes(app, predictor.routers)
    routes.add_metrics_route(app, predictor)
    pages.add_start_route(app)
    pages.add_dashboard_routes(app, Live(predictor.log, predictor.routers))
    pages.add_browser_routes(app)
    routes.add_head_routes(app)


def _life(
    log: PredictionLog | None, ramps: Ramps, access: Access | None
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Return the app's lifespan: continue unfinished ramps at the start, and flush the log at the end.

    A worker process exits without further notice, so unwritten rows would be lost.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        ramps.go_on()
        yield
        await asyncio.to_thread(ramps.stop)
        if log:
            await asyncio.to_thread(log.flush)
        if access:
            await asyncio.to_thread(access.close)

    return lifespan


class Prefix:
    """Makes an app answer under a proxy's prefix. It works if the proxy strips the prefix, if it does not, and without
    a proxy.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app, self.root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            prefix, path = self.root_path, scope["path"]
            if path == prefix:
                path = prefix + "/"
            elif not path.startswith(prefix + "/"):
                path = prefix + path
            scope = {**scope, "root_path": prefix, "path": path}
        await self.app(scope, receive, send)


def _prefix(root_path: str) -> str:
    """Return a proxy's prefix with a slash before it and none after it, or "" if there is none. Raises ValueError.

    >>> _prefix("serve"), _prefix("/serve/"), _prefix("/")
    ('/serve', '/serve', '')
    """
    path = arguments.text("root_path", root_path, 200).removesuffix("/")
    path = path if path.startswith("/") or not path else f"/{path}"
    if path and (not PREFIX.fullmatch(path) or {".", ".."} & {*path.split("/")}):
        raise ValueError(f"root_path={arguments.shown(root_path)}: give the path that the proxy adds, as in /serve")
    return path


def _explain_errors(app: FastAPI) -> None:
    """Make every error answer `{"detail": text}`. The text says what to do."""

    async def refuse(request: Request, error: Exception) -> JSONResponse:
        text = errors.text(error)
        if text != str(error):
            logger.warning("%s %s: %s", request.method, request.url.path, error)
        return JSONResponse({"detail": text}, errors.status(error), errors.headers(error))

    async def refuse_method(request: Request, error: Exception) -> JSONResponse:
        fitting = [route for route in app.routes if route.matches(request.scope)[0] != Match.NONE]
        methods = sorted({method for route in fitting for method in getattr(route, "methods", ())}) or ["GET", "HEAD"]
        return JSONResponse({"detail": f"ask with {' or '.join(methods)}"}, 405, {"Allow": ", ".join(methods)})

    async def refuse_path(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        detail = f"{NO_PATH} {app.state.root_path}/docs" if error.detail == "Not Found" else error.detail
        return JSONResponse({"detail": detail}, 404, error.headers)

    async def refuse_parameters(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        problems = error.errors()
        named = [f"{_place(problem['loc'])}: {_words(problem)}" for problem in problems[:PROBLEMS]]
        named = [text if len(text) <= PROBLEM else text[: PROBLEM - 3] + "..." for text in named]
        if len(problems) > PROBLEMS:
            named.append(f"and {len(problems) - PROBLEMS:,} more problems")
        return JSONResponse({"detail": "; ".join(named)}, 422)

    async def apologise(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": errors.FAILED}, 500)

    app.add_exception_handler(404, refuse_path)
    app.add_exception_handler(405, refuse_method)
    for kind in errors.STATUSES:
        app.add_exception_handler(kind, refuse)
    app.add_exception_handler(RequestValidationError, refuse_parameters)
    app.add_exception_handler(Exception, apologise)


def _place(location: tuple[str | int, ...]) -> str:
    """Return the place in the request where a problem is.

    >>> _place(("query", "confidence")), _place(("body", "labels", 0)), _place(("body", 3, "latency")), _place(("body",))
    ('confidence', 'labels[0]', '[3].latency', 'body')
    """
    parts = [part for part in location[1:] if part != "[key]"]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return place.removeprefix(".") or str(location[0])


def _words(problem: Mapping[str, Any]) -> str:
    """Return a text that says what is wrong and what to send."""
    kind: str = problem["type"]
    message: str = problem["msg"]
    if kind == "missing" and problem["loc"] == ("body",):
        return f"it is missing: {strict_routes.JSON}"
    if kind == "string_pattern_mismatch" and problem["ctx"]["pattern"] == NO_NUL:
        return "give text without NUL"
    return WORDS.get(kind, message.removeprefix("Value error, "))
