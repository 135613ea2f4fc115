"""Define the exercises of deployment_patterns.ipynb."""

import numpy as np
import requests

from labsupport import loopback
from labsupport.exercises.exercise import exercise
from labsupport.rollout import Gate, Outcomes


@exercise()
def canary_risk(answer: float) -> str | None:
    """deployment_patterns.ipynb: the share of answers that are errors: a third of a canary's 10 %."""
    if answer is None:
        return "give a number between 0 and 1"
    if abs(answer - 1 / 3) < 0.01:
        return "that is the share among the candidate's answers: how many of all answers are its own?"
    return None if abs(answer - 1 / 30) < 0.002 else f"{answer} is not it: 10 % of the answers, a third of those"


@exercise()
def null_gate(gate: Gate) -> str | None:
    """deployment_patterns.ipynb: a gate that rolls back a candidate that finds nothing much more often than the stable
    version.
    """
    if gate.min_requests < 50:
        return f"it decides on {gate.min_requests} requests: min_requests=50 at least"
    if (verdict := gate.judge(_nulls(0.1), "v1", "v2").verdict) != "promote":
        return f"to a candidate as good as the stable version it says {verdict}, not promote"
    if (verdict := gate.judge(_nulls(0.5), "v1", "v2").verdict) != "rollback":
        return f"to one that finds nothing in half of its pictures it says {verdict}: which metric, and which failure_limit?"
    return None


@exercise()
def ramp_by_request(url: str) -> str | None:
    """deployment_patterns.ipynb: a server of one's own, on which a ramp was begun with PUT /rollout."""
    if not isinstance(url, str):
        return "give the address of your server, such as http://127.0.0.1:8123"
    loopback.ask_directly()
    try:
        state = requests.get(f"{url.rstrip('/')}/rollout", timeout=10).json()
    except requests.RequestException as error:
        return f"nobody answers there ({type(error).__name__}): does your server run?"
    if state.get("mode") == "canary" or state.get("action") in ("promote", "rollback"):
        return None
    return f"it says {state.get('phase', state)}, and no candidate answers anybody: what did PUT /rollout answer?"


def _nulls(share: float) -> Outcomes:
    """Return 1,000 requests of v1, which finds nothing in one of ten, and 1,000 of v2, which finds nothing in this share."""
    number = np.arange(2_000)
    version = np.where(number % 2, "v2", "v1")
    null = number // 2 % 10 < np.where(number % 2, 10 * share, 1)
    fine = np.zeros(2_000, bool)
    return Outcomes(number.astype(float), version, fine, np.full(2_000, 0.01), null, fine)
