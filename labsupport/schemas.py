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


ERRORS = {
    400: "the body is no form that can be read",
    401: "the token is missing or wrong, where the server demands one",
    408: "the upload took too long",
    413: "too many bytes or pixels",
    415: "not a JPEG or PNG picture, judged by its content",
    422: "a parameter is missing or out of range",
    503: "the model is not installed, or the server is overloaded",
}
