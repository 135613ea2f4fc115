"""What the API's answers look like, in the words of its documentation."""

from pydantic import BaseModel, Field


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


def _header(description: str, kind: str = "string") -> dict:
    return {"description": description, "required": True, "schema": {"type": kind}}


def _refusal(description: str, **headers: dict) -> dict:
    return {"model": Problem, "description": description, "headers": headers}


TOKEN = _header("how to send the token")
PATIENCE = _header("after how many seconds another try is worth it", "integer")
PREDICTED = {
    "X-Prediction-Id": _header("the prediction's id, as in the log"),
    "X-Model-Version": _header("the model version that answered"),
}

# what every route may answer, and what one that takes an upload may answer besides
GUARDED = {401: _refusal("the token is missing or wrong, where the server demands one", **{"WWW-Authenticate": TOKEN})}
ERRORS = {
    400: _refusal("the body is no form that can be read, or one of too many fields"),
    408: _refusal("the upload took too long"),
    413: _refusal("too many bytes or pixels"),
    415: _refusal("not a JPEG or PNG picture, judged by its content"),
    422: _refusal("a parameter is missing or out of range"),
    503: _refusal("the model is not installed, or the server is overloaded", **{"Retry-After": PATIENCE}),
}

# what FastAPI cannot know of the form: which files are worth sending
PICTURE = {"encoding": {"file": {"contentType": "image/jpeg, image/png"}}}
UPLOAD = {"requestBody": {"content": {"multipart/form-data": PICTURE}}}


def answers(**prediction) -> dict:
    """The answers of a route that takes an upload: a prediction, in FastAPI's words, or a refusal."""
    return {200: {**prediction, "headers": PREDICTED}, **ERRORS}
