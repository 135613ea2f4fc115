"""Maps each exception to an HTTP status and to the text that a client reads, and describes these answers for `/docs`.

The answer, the log and the metrics use this one table. Most messages are written for clients, so the client gets them.
Other messages contain file names or addresses. For these the client gets a text from `TEXTS`, and the server's log gets
the message.
"""

from typing import Any

from pydantic import BaseModel, Field

from labsupport import images, models
from labsupport.detection import UnknownVersion
from labsupport.log import LogUnavailable, NotWritten, RecordClash, UnknownPrediction
from labsupport.protection import Overloaded
from labsupport.rollout import JournalUnavailable, WrongMoment, WrongRamp
from labsupport.serving import browser_page

STATUSES: dict[type[Exception], int] = {
    images.UnsupportedImage: 415,
    images.ImageTooLarge: 413,
    browser_page.UnknownFile: 404,
    UnknownPrediction: 404,
    UnknownVersion: 404,
    WrongMoment: 409,
    WrongRamp: 422,
    RecordClash: 422,
    models.ModelUnavailable: 503,
    models.NotInstalled: 503,
    Overloaded: 503,
    NotWritten: 503,
    JournalUnavailable: 503,
    LogUnavailable: 503,
}
TEXTS: dict[type[Exception], str] = {  # said instead of the exception's own message
    UnknownPrediction: "no prediction with that id is known here: take the id from the answer's header X-Prediction-Id",
    models.ModelUnavailable: "this model cannot be loaded at present, and the server's log says why: try again in a minute",
    NotWritten: "the log cannot be written at present: send it again in a second",
    JournalUnavailable: "the rollout cannot be read or written at present, so nothing was changed: try again in a second",
    LogUnavailable: "the log cannot be read at present: try again in a second",
}
FAILED = "the server failed, and its log says how: send it again"
SLOW = (models.ModelUnavailable,)  # what takes a person to mend: worth another try in a minute, all else in a second


def status(error: BaseException) -> int:
    """Return the HTTP status of `error`: 500 if it is not in the table.

    A subclass has the status of its nearest listed parent.

    >>> status(images.ImageTooLarge("too many pixels")), status(ZeroDivisionError())
    (413, 500)
    """
    return next((STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), 500)


def text(error: BaseException) -> str:
    """Return the text that a client reads about `error`: the one in `TEXTS`, otherwise the exception's own message.

    The nearest parent in `STATUSES` decides, as in `status`. An exception that is not in the table gives `FAILED`.

    >>> text(LogUnavailable("sqlite:////home/ann/predictions.db is locked"))
    'the log cannot be read at present: try again in a second'
    >>> text(images.ImageTooLarge("too many pixels"))
    'too many pixels'
    """
    nearest = next((kind for kind in type(error).__mro__ if kind in STATUSES), None)
    return TEXTS.get(nearest, str(error)) if nearest else FAILED


def headers(error: BaseException) -> dict[str, str] | None:
    """Return the headers of the answer to `error`: `Retry-After`, in seconds, for a 503; otherwise None.

    >>> headers(models.ModelUnavailable("not installed"))
    {'Retry-After': '60'}
    """
    if status(error) != 503:
        return None
    return {"Retry-After": "60" if isinstance(error, SLOW) else "1"}


Responses = dict[int | str, dict[str, Any]]  # of a route, as FastAPI takes them


class Problem(BaseModel):
    """The body of every error."""

    detail: str = Field(description="what is wrong, and what to do")


def header(description: str, kind: str = "string") -> dict[str, Any]:
    """Return the OpenAPI entry of a header that an answer always has."""
    return {"description": description, "required": True, "schema": {"type": kind}}


# the schema of errors, defined with the answer 401 of every route: to name the class in each answer takes longer to start
PROBLEM_BODY = {"application/json": {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}}


def refusal(description: str, **required: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI entry of an answer with an error and these headers, in FastAPI's format."""
    return {"description": description, "content": PROBLEM_BODY, **({"headers": required} if required else {})}


TOKEN = header("how to send the token")
PATIENCE = header("after how many seconds another try is worth it", "integer")

# what every route may answer, and what some may answer besides
GUARDED: Responses = {
    401: refusal("the token is missing or wrong, where the server demands one", **{"WWW-Authenticate": TOKEN})
    | {"model": Problem},
    422: refusal(
        "a parameter, field or key is missing, out of range, unknown or given twice; or a body is not expected"
    ),
}
ERRORS: Responses = {
    400: refusal("the body is no form that can be read, or one of too many fields"),
    408: refusal("the upload took too long"),
    413: refusal("too many bytes or pixels"),
    415: refusal("not a JPEG or PNG picture, judged by its content"),
    422: GUARDED[422],
    503: refusal(
        "the model, the log or the rollout is not available at present, or the server is overloaded",
        **{"Retry-After": PATIENCE},
    ),
}


def refusals(*statuses: int) -> Responses:
    """Return the OpenAPI entries of these error statuses; 404 and 409 are those of single routes."""
    more: Responses = {
        404: refusal("no such prediction or version is known"),
        409: refusal("not possible in the present state"),
    }
    return {status: {**ERRORS, **more}[status] for status in statuses}
