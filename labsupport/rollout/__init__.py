"""Decide which version of a model answers: shadow, canary, blue/green, ramps with a gate, rollback and retraining.

Whether a ramp goes on is decided by `Gate.decide`. `Rollout` applies the decision to the `Router`.

>>> from types import SimpleNamespace as Version
>>> from labsupport.rollout import Router
>>> Router(stable=Version(version="v1", detect=lambda image, confidence: [])).status()["stable"]
'v1'
"""

from labsupport.rollout import answering, journal
from labsupport.rollout.evidence import Evidence
from labsupport.rollout.gate import METRICS, Gate, Outcomes
from labsupport.rollout.journal import Journal, JournalUnavailable, State
from labsupport.rollout.ramp import Ramps, Rollout, WrongRamp, checked
from labsupport.rollout.ramp_figures import outcomes_since
from labsupport.rollout.retraining import Comparison, Retraining, better_evidence, weighed
from labsupport.rollout.router import Router
from labsupport.rollout.transitions import WrongMoment

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
    "WrongMoment",
    "WrongRamp",
    "answering",
    "better_evidence",
    "checked",
    "journal",
    "outcomes_since",
    "weighed",
]
