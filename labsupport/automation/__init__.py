"""Automate decisions step by step: degrees of automation, thresholds with a guaranteed error, and a review queue."""

from typing import TYPE_CHECKING, Any

from labsupport.automation.degrees import Decision, Degree, Outcome, decide, expected_outcome, risk_coverage
from labsupport.automation.thresholds import (
    NoSafeThreshold,
    Thresholds,
    choose_thresholds,
    error_bound,
)

if TYPE_CHECKING:
    from labsupport.automation.review import QueueUnavailable, ReviewItem, ReviewQueue, UnknownItem

__all__ = [
    "Decision",
    "Degree",
    "NoSafeThreshold",
    "Outcome",
    "QueueUnavailable",
    "ReviewItem",
    "ReviewQueue",
    "Thresholds",
    "UnknownItem",
    "choose_thresholds",
    "decide",
    "error_bound",
    "expected_outcome",
    "risk_coverage",
]


def __getattr__(name: str) -> Any:
    """Import the review queue at its first use, because a decision needs neither a database nor pictures."""
    if name not in ("QueueUnavailable", "ReviewItem", "ReviewQueue", "UnknownItem"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from labsupport.automation import review

    return getattr(review, name)
