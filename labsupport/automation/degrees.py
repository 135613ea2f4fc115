"""Who decides, the model or a person: the degrees of automation, and the thresholds between them.

A picture gets one verdict, "good" or "defect"; the model's confidence in a defect is that of its surest detection. It starts
in shadow mode, where people decide and what they say is kept (`review`). From those labels we choose thresholds that
promise an error, and the model decides where it is sure.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from labsupport.arguments import number, shown
from labsupport.automation.thresholds import (
    NEVER_SURE,
    NoSafeThreshold,
    Thresholds,
    checked,
    choose_thresholds,
    error_bound,
)
from labsupport.tabular import is_missing

__all__ = [
    "NEVER_SURE",
    "Decision",
    "Degree",
    "NoSafeThreshold",
    "Outcome",
    "Thresholds",
    "choose_thresholds",
    "decide",
    "error_bound",
    "expected_outcome",
    "risk_coverage",
]

if TYPE_CHECKING:
    import pandas as pd

    from labsupport.detection import Detection


class Degree(enum.IntEnum):
    """The degrees of automation, in the order in which a product climbs them.

    >>> Degree.SHADOW < Degree.PARTIAL
    True
    """

    HUMAN_ONLY = 0  # no model
    SHADOW = 1  # a person decides and does not see what the model says; it is recorded
    ASSISTANCE = 2  # a person decides and sees what the model says, and where
    PARTIAL = 3  # the model decides where it is sure; a person, with its assistance, decides the rest
    FULL = 4  # the model decides


@dataclass(frozen=True)
class Decision:
    """What becomes of one picture. Made by `decide`."""

    degree: Degree
    by: str  # who decides: "model" or "human"
    decided: str | None = None  # "good" or "defect"; None while a person has to say
    opinion: str | None = None  # what the model says; None where there is no model
    confidence: float | None = None  # the model's, that there is a defect
    highlight: tuple["Detection", ...] = ()  # the regions to show to the person

    @property
    def shown(self) -> str | None:
        """What a person sees of the opinion: nothing in shadow mode, nor in an audit of what the model decided."""
        return self.opinion if self.by == "human" and self.degree >= Degree.ASSISTANCE else None


def decide(detections: Sequence["Detection"], degree: Degree, thresholds: Thresholds = NEVER_SURE) -> Decision:
    """Who decides about a picture, and what is decided.

    `detections` are the possible defects: what `detect(image, confidence=...)` finds. Ask it for all from a confidence under
    `thresholds.low`, for what it leaves out counts as 0. Highlighted are those that the model is not sure are good.
    Raises ValueError if `degree` is none, and for what is no list of detections with confidences of 0 to 1.

    >>> from labsupport.detection import Box, Detection
    >>> scratch = Detection("scratch", 0.6, Box(10, 20, 60, 30))
    >>> unsure = decide([scratch], Degree.PARTIAL, Thresholds(low=0.1, high=0.8))
    >>> unsure.by, unsure.decided, unsure.shown, unsure.highlight == (scratch,)
    ('human', None, 'defect', True)
    >>> sure = decide([], Degree.PARTIAL, Thresholds(low=0.1, high=0.8))
    >>> sure.by, sure.decided
    ('model', 'good')
    """
    degree = _degree(degree, thresholds)
    _check(detections)
    if degree is Degree.HUMAN_ONLY:
        return Decision(degree, by="human")
    confidence = max((detection.confidence for detection in detections), default=0.0)
    opinion = "defect" if thresholds.defect(confidence) else "good"
    if degree is Degree.FULL or (degree is Degree.PARTIAL and thresholds.sure(confidence)):
        return Decision(degree, "model", opinion, opinion, confidence)
    regions = tuple(detection for detection in detections if detection.confidence >= thresholds.low)
    return Decision(degree, "human", None, opinion, confidence, regions if degree >= Degree.ASSISTANCE else ())


def _check(detections: Sequence["Detection"]) -> None:
    """Raise ValueError unless these are detections, each with a confidence of 0 to 1, that can be read twice."""
    if not isinstance(detections, Sequence) or not all(hasattr(one, "confidence") for one in detections):
        raise ValueError(f"detections={shown(detections)}: give the list of Detection that detect returns")
    for one in detections:
        if is_missing(one.confidence):
            raise ValueError(f"detections: {shown(one)} has no confidence: leave it out, or ask a person")
        number("confidence", one.confidence, 0, 1)


def _degree(degree: Degree, thresholds: Thresholds) -> Degree:
    """The degree, if it is one and the thresholds are `Thresholds`. Raises ValueError."""
    if not isinstance(thresholds, Thresholds):
        raise ValueError(f"thresholds={shown(thresholds)}: give Thresholds(low, high)")
    try:
        return Degree(degree)
    except ValueError:
        names = ", ".join(f"Degree.{one.name}" for one in Degree)
        raise ValueError(f"degree={shown(degree)}: give one of {names}") from None


@dataclass(frozen=True)
class Outcome:
    """What a degree of automation comes to, in shares of 0 to 1. Made by `expected_outcome`."""

    degree: Degree
    by_model: float  # of all pictures: those about which no person is asked
    error: float  # of all verdicts: the wrong ones
    missed: float  # of the defects: those called good
    false_alarms: float  # of the good ones: those called defect


def expected_outcome(
    labels: np.ndarray,
    confidences: np.ndarray,
    degree: Degree,
    thresholds: Thresholds = NEVER_SURE,
    human_miss: float = 0.0,
    human_false_alarm: float = 0.0,
) -> Outcome:
    """What a degree comes to on labelled examples, on average over what people might say.

    `labels` (N,) are True for a defect, `confidences` (N,) the model's. People call a share `human_miss` of the defects good
    and a share `human_false_alarm` of the good ones defect; that may differ from degree to degree, as assistance changes it.
    Raises ValueError as `choose_thresholds` does, and for shares that are none.

    >>> labels, confidences = [False, False, True, True], [0.1, 0.3, 0.4, 0.9]
    >>> expected_outcome(labels, confidences, Degree.PARTIAL, Thresholds(0.2, 0.8), human_miss=0.1)
    Outcome(degree=<Degree.PARTIAL: 3>, by_model=0.5, error=0.025, missed=0.05, false_alarms=0.0)
    """
    labels, confidences = checked(labels, confidences)
    human_miss = number("human_miss", human_miss, 0, 1)
    human_false_alarm = number("human_false_alarm", human_false_alarm, 0, 1)
    degree = _degree(degree, thresholds)
    by_model = np.where(degree is Degree.PARTIAL, thresholds.sure(confidences), degree is Degree.FULL)
    by_people = np.where(labels, human_miss, human_false_alarm)
    wrong = np.where(by_model, thresholds.defect(confidences) != labels, by_people)
    shares = [float(values.mean()) for values in (by_model, wrong, wrong[labels], wrong[~labels])]
    return Outcome(degree, *shares)


def risk_coverage(labels: np.ndarray, confidences: np.ndarray) -> "pd.DataFrame":
    """The risk-coverage curve (El-Yaniv & Wiener, 2010; Geifman & El-Yaniv, 2017): error against how much is automated.

    `labels` (N,) are True for a defect, `confidences` (N,) its probability p. The model says "defect" if p >= 0.5, and
    decides if max(p, 1 - p) is at least a threshold. A frame with a row for each that makes a difference, the surest first:
    threshold; coverage, the share of pictures decided; risk, the share of errors among those.
    Raises ValueError as `choose_thresholds` does.

    >>> risk_coverage([True, True, False, False], [0.9, 0.3, 0.2, 0.1])
       threshold  coverage  risk
    0        0.9      0.50  0.00
    1        0.8      0.75  0.00
    2        0.7      1.00  0.25
    """
    import pandas as pd

    labels, confidences = checked(labels, confidences)
    wrong = (confidences >= 0.5) != labels
    thresholds, place = np.unique(-np.maximum(confidences, 1 - confidences), return_inverse=True)
    decided, errors = np.cumsum(np.bincount(place)), np.cumsum(np.bincount(place, weights=wrong))
    return pd.DataFrame({"threshold": -thresholds, "coverage": decided / len(labels), "risk": errors / decided})
