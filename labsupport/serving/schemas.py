"""Define the bodies of the API's requests and answers. Their docstrings and descriptions appear in `/docs`."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict, JsonValue

from labsupport.detection import MOST_DETECTIONS, MOST_PIXEL, Detection
from labsupport.log import FEATURES, YEAR_10000, station_records
from labsupport.rollout import METRICS, Gate
from labsupport.serving.errors import ERRORS, Responses, header

# With a length Pydantic also refuses half a surrogate pair, which no file takes. PostgreSQL keeps no NUL.
NO_NUL = r"^[^\x00]*$"
Name = Annotated[str, Field(max_length=200, pattern=NO_NUL)]
Text = Annotated[str, Field(max_length=1_000, pattern=NO_NUL)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
if TYPE_CHECKING:
    Metric = str
    Feature = str
else:
    Metric, Feature = Literal[METRICS], Literal[FEATURES]


class UploadIn(BaseModel):
    """The form that holds a picture: one field, `file`."""

    model_config = ConfigDict(extra="forbid")

    file: UploadFile = Field(description="a JPEG or PNG picture")


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
    latency: float = Field(
        description="seconds for decoding and detecting, with the wait for a free core, without the wait for a slot"
    )
    detections: list[DetectionOut]


class CountOut(BaseModel):
    label: str
    count: int
    detections: list[DetectionOut]


_SAID: list[JsonValue] = [
    {"required": ["correct"], "properties": {"correct": {"type": "boolean"}}},
    {"required": ["labels"], "properties": {"labels": {"type": "array"}}},
    {"required": ["retry"], "properties": {"retry": {"const": True}}},
]
_BOTH: JsonDict = {
    "required": ["correct", "labels"],
    "properties": {"correct": {"const": True}, "labels": {"type": "array"}},
}
_WRONG: JsonDict = {"prediction_id": "0" * 32, "correct": False}  # what /docs offers to try


class FeedbackIn(BaseModel):
    """A user's feedback on an answer: at least one of the three. Labels are a correction, so they exclude `correct:
    true`.
    """

    model_config = ConfigDict(extra="forbid", json_schema_extra={"anyOf": _SAID, "not": _BOTH, "examples": [_WRONG]})

    prediction_id: Annotated[Name, Field(max_length=64, description="from the answer's X-Prediction-Id")]
    correct: bool | None = None
    labels: list[Name] | None = Field(default=None, max_length=1_000, description="what is in the picture instead")
    retry: bool = Field(default=False, description="the user asked again")

    @model_validator(mode="after")
    def _says_something(self) -> "FeedbackIn":
        if self.correct is None and self.labels is None and not self.retry:
            raise ValueError("say correct, labels or retry")
        if self.correct and self.labels is not None:
            raise ValueError("labels say that the answer was wrong: leave out correct, or send it as false")
        return self


Percent = Annotated[float, Field(ge=0, le=100)]
Limit = tuple[Finite | None, Finite | None]


class GateIn(BaseModel):
    """The rules by which a ramp goes on, waits or turns back."""

    model_config = ConfigDict(extra="forbid")

    thresholds: dict[Metric, Limit] = Field(default_factory=dict, description="metric -> least, most")
    ratios: dict[Metric, Annotated[Finite, Field(gt=0)]] = Field(
        default_factory=dict, description="metric -> at most so many times the stable version's"
    )
    min_requests: int = Field(default=200, ge=1, le=1_000_000_000)
    alpha: float = Field(default=0.05, gt=0, lt=1)
    failure_limit: int = Field(default=3, ge=0, le=1_000_000_000)

    @model_validator(mode="after")
    def _makes_sense(self) -> "GateIn":
        Gate(**self.model_dump()).check_ramp()
        return self


READS = {  # what each action reads; the gate gives the reasons of a ramp
    "shadow": ("candidate", "percent", "reason"),
    "canary": ("candidate", "weight", "reason"),
    "blue_green": ("candidate", "reason"),
    "ramp": ("candidate", "steps", "gate", "interval"),
    "rollback": ("to", "reason"),
    **dict.fromkeys(("switch", "promote", "pause", "resume"), ("reason",)),
}
# what /docs offers to try
_CANARY: JsonDict = {"action": "canary", "candidate": "yolov3-tiny/opencv-f32", "weight": 5}


class RolloutIn(BaseModel):
    """A change of the version that answers. A field that the action does not read is refused, as in a canary with
    `percent`.
    """

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [_CANARY]})

    action: Literal["shadow", "canary", "blue_green", "ramp", "switch", "promote", "pause", "resume", "rollback"]
    candidate: Name | None = Field(default=None, examples=["yolov3-tiny/opencv-f32"])
    percent: Percent = Field(default=100, description="of pictures that a candidate in shadow sees")
    weight: Percent = Field(default=5, description="percent of requests that a canary answers")
    steps: list[Percent] = Field(
        default=[5, 25, 50, 100], description="the ramp's weights", min_length=1, max_length=100
    )
    gate: GateIn = Field(default_factory=GateIn)
    interval: float = Field(default=1, ge=0.01, le=86_400, description="seconds between two looks of the ramp's gate")
    to: Name | None = Field(default=None, description="the version that a rollback returns to, if nothing is on trial")
    reason: Text = ""

    @model_validator(mode="after")
    def _is_read(self) -> "RolloutIn":
        if unread := self.model_fields_set - {"action", *READS[self.action]}:
            reads = ", ".join(READS[self.action])
            raise ValueError(f"{self.action} does not read {', '.join(sorted(unread))}: it reads {reads}")
        return self


class RolloutOut(BaseModel):
    """The version that answers now, and the last change."""

    phase: Literal["Healthy", "Progressing", "Paused", "Degraded"]
    stable: str
    candidate: str | None
    previous: str | None
    mode: Literal["stable", "shadow", "canary", "blue_green"]
    share: float = Field(description="percent of requests that the candidate answers or sees")
    paused: bool
    action: str
    reason: str
    time: float = Field(description="of the last change, in seconds since the epoch")
    figures: dict[str, float] = Field(description="of the candidate, and as stable_... of the stable version")
    versions: list[str] = Field(description="the versions in memory")
    loadable: list[str] = Field(description="the versions that a change can name")
    trouble: str = Field(description="what is wrong in the process that was asked; empty if nothing is")
    unjudged_seconds: float = Field(description="for how long a look at the ramp has been overdue; 0 if none is")


RECORD_ID = "^[0-9a-f]{32}$"
Moment = Annotated[Finite, Field(ge=0, lt=YEAR_10000, description="in seconds since the epoch")]
Seconds = Annotated[Finite, Field(ge=0)]
Pixel = Annotated[int, Field(ge=-MOST_PIXEL, le=MOST_PIXEL)]


class BoxIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    left: Pixel
    top: Pixel
    right: Pixel
    bottom: Pixel


class DetectionIn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    label: Name
    confidence: Annotated[Finite, Field(ge=0, le=1)]
    box: BoxIn


class PredictionIn(BaseModel):
    """A model's prediction, made on the server or on a device."""

    model_config = ConfigDict(extra="forbid")

    version: Name
    latency: Seconds = Field(description="seconds that the model took")
    detections: list[DetectionIn] = Field(max_length=MOST_DETECTIONS, fail_fast=True)  # one error is enough
    features: dict[Feature, Finite]


class RecordIn(BaseModel):
    """A station's decision about one product."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(pattern=RECORD_ID, description="the same whenever this record is sent: it is taken once")
    time: Moment
    station: Name
    product: Name
    verdict: Literal["accept", "reject", "undecided"]
    decided_by: Literal["server", "device", "nobody"]
    version: Name | None = Field(default=None, description="the model version that looked")
    latency: Seconds = Field(description="seconds from the picture to the decision")
    reason: Text = ""
    prediction: PredictionIn | None = Field(default=None, description="null if no model looked")


Records = Annotated[list[RecordIn], Field(min_length=1, max_length=station_records.MOST, fail_fast=True)]


class RecordsOut(BaseModel):
    """The number of new and of known records. All are in the log now; the known ones were not changed."""

    new: int
    known: int


JPEG = {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}
# what FastAPI cannot know of the form: which files are worth sending
ENCODING = {"encoding": {"file": {"contentType": "image/jpeg, image/png"}}}
UPLOAD = {"requestBody": {"content": {"multipart/form-data": ENCODING}}}


def as_json(detections: list[Detection]) -> list[dict[str, Any]]:
    """Return detections in the form of `DetectionOut`."""
    return [{"label": d.label, "confidence": d.confidence, "box": d.box._asdict()} for d in detections]


PREDICTED = {
    "X-Prediction-Id": header("the prediction's id, as in the log"),
    "X-Model-Version": header("the model version that answered"),
}


def answers(**prediction: Any) -> Responses:
    """Return the OpenAPI entries of a route that takes an upload: its prediction, in FastAPI's format, and its errors."""
    return {200: {**prediction, "headers": PREDICTED}, **ERRORS}
