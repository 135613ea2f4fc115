"""Decide which version of a model answers: shadow, canary, blue/green, ramps with a gate, rollback and retraining.

`Gate.decide` judges each step of a ramp. `Rollout` applies the verdict to the `Router`.

>>> from types import SimpleNamespace as Version
>>> from labsupport.rollout import Router
>>> Router(stable=Version(version="v1", detect=lambda image, confidence: [])).status()["stable"]
'v1'
"""

from typing import TYPE_CHECKING, Any

from labsupport.rollout import answering, journal
from labsupport.rollout.evidence import Evidence
from labsupport.rollout.gate import METRICS, Gate, Outcomes
from labsupport.rollout.journal import Journal, JournalUnavailable, State
from labsupport.rollout.ramp import Ramps, Rollout, WrongRamp
from labsupport.rollout.ramp_figures import TrialFigures, outcomes_since
from labsupport.rollout.router import Router
from labsupport.rollout.transitions import WrongMoment

if TYPE_CHECKING:
    from labsupport.rollout.retraining import Comparison, Retraining, better_evidence, weighed

RETRAINING = ("Comparison", "Retraining", "better_evidence", "weighed")
__all__ = [
    "METRICS",
    "Comparison",
    "Evidence",
    "Gate",
    "Journal",
    "JournalUnavailable",
    "Outcomes",
    "Ramps",
    "Retraining",
    "Rollout",
    "Router",
    "State",
    "TrialFigures",
    "WrongMoment",
    "WrongRamp",
    "answering",
    "better_evidence",
    "journal",
    "outcomes_since",
    "weighed",
]


def __getattr__(name: str) -> Any:
    """Load retraining when it is asked for: the server needs neither it nor SciPy."""
    if name not in RETRAINING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from labsupport.rollout import retraining

    return getattr(retraining, name)
