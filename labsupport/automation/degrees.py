"""Decide whether the model or a person decides about a picture, by the degree of automation and two thresholds.

A picture gets one verdict, "good" or "defect". The model's confidence in a defect is its highest confidence in a detection.
Automation begins in shadow mode: people decide, and their labels are stored (`review`). From these labels we choose
thresholds that guarantee a maximum error. Then the model decides where it is sure.
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
from labsupport.extras import imported
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
    """List the degrees of automation, from none to full, in the order in which they are introduced.

    >>> Degree.SHADOW < Degree.PARTIAL
    True
    """

    HUMAN_ONLY = 0  # no model
    SHADOW = 1  # a person decides and does not see the model's opinion, which is recorded
    ASSISTANCE = 2  # a person decides and sees the model's opinion and its regions
    PARTIAL = 3  # the model decides where it is sure; a person with assistance decides the rest
    FULL = 4  # the model decides


@dataclass(frozen=True)
class Decision:
    """Hold the decision about one picture. Returned by `decide`."""

    degree: Degree
    by: str  # "model" or "human"
    decided: str | None = None  # "good" or "defect"; None until a person decides
    opinion: str | None = None  # the model's verdict; None without a model
    confidence: float | None = None  # of the model in a defect
    highlight: tuple["Detection", ...] = ()  # the regions to show to the person

    @property
    def shown(self) -> str | None:
        """Return the opinion that a person sees: None in shadow mode, and in an audit of the model's decisions."""
        return self.opinion if self.by == "human" and self.degree >= Degree.ASSISTANCE else None


def decide(detections: Sequence["Detection"], degree: Degree, thresholds: Thresholds = NEVER_SURE) -> Decision:
    """Decide about a picture, or leave it to a person.

    `detections` are the possible defects, from `detect(image, confidence=...)`. Call it with a confidence below
    `thresholds.low`, because a defect that it leaves out counts as 0. `highlight` holds the detections from `low` on.
    Raises ValueError for an invalid `degree`, and for anything but a list of detections with confidences of 0 to 1.

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
    """Raise ValueError unless `detections` is a sequence of detections, each with a confidence of 0 to 1."""
    if not isinstance(detections, Sequence) or not all(hasattr(one, "confidence") for one in detections):
        raise ValueError(f"detections={shown(detections)}: give the list of Detection that detect returns")
    for one in detections:
        if is_missing(one.confidence):
            raise ValueError(f"detections: {shown(one)} has no confidence: leave it out, or ask a person")
        number("confidence", one.confidence, 0, 1)


def _degree(degree: Degree, thresholds: Thresholds) -> Degree:
    """Return the degree. Raises ValueError for an invalid degree or invalid thresholds."""
    if not isinstance(thresholds, Thresholds):
        raise ValueError(f"thresholds={shown(thresholds)}: give Thresholds(low, high)")
    try:
        return Degree(degree)
    except ValueError:
        names = ", ".join(f"Degree.{one.name}" for one in Degree)
        raise ValueError(f"degree={shown(degree)}: give one of {names}") from None


@dataclass(frozen=True)
class Outcome:
    """Hold the results of a degree of automation, as shares of 0 to 1. Returned by `expected_outcome`."""

    degree: Degree
    by_model: float  # of all pictures: those that the model decides alone
    error: float  # of all verdicts: those that are wrong
    missed: float  # of all defects: those called good
    false_alarms: float  # of all good pictures: those called defect


def expected_outcome(
    labels: np.ndarray,
    confidences: np.ndarray,
    degree: Degree,
    thresholds: Thresholds = NEVER_SURE,
    human_miss: float = 0.0,
    human_false_alarm: float = 0.0,
) -> Outcome:
    """Return the expected outcome of a degree on labelled examples, averaged over the errors of people.

    `labels` (N,) are True for a defect, `confidences` (N,) the model's. People call a share `human_miss` of the defects
    good, and a share `human_false_alarm` of the good pictures defect. These may differ between degrees, because assistance
    changes them. Raises ValueError as `choose_thresholds` does, and for shares outside 0 to 1.

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
    """Return the risk-coverage curve (El-Yaniv & Wiener, 2010; Geifman & El-Yaniv, 2017): error against automated share.

    `labels` (N,) are True for a defect, `confidences` (N,) its probability p. The model's verdict is "defect" if p >= 0.5.
    It decides if max(p, 1 - p) is at least a threshold. The frame has a row for each distinct threshold, the highest first.
    `coverage` is the share of pictures that the model decides; `risk` is the share of errors among them.
    Raises ValueError as `choose_thresholds` does.

    >>> risk_coverage([True, True, False, False], [0.9, 0.3, 0.2, 0.1])
       threshold  coverage  risk
    0        0.9      0.50  0.00
    1        0.8      0.75  0.00
    2        0.7      1.00  0.25
    """
    pd = imported("pandas")

    labels, confidences = checked(labels, confidences)
    wrong = (confidences >= 0.5) != labels
    thresholds, place = np.unique(-np.maximum(confidences, 1 - confidences), return_inverse=True)
    decided, errors = np.cumsum(np.bincount(place)), np.cumsum(np.bincount(place, weights=wrong))
    return pd.DataFrame({"threshold": -thresholds, "coverage": decided / len(labels), "risk": errors / decided})
