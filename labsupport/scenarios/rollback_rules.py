"""Compares common rollback rules with the gate's e-value test. Assumes one request a user.

A canary of 5 % answers beside a stable version. Each rule is evaluated after every 40 requests of the candidate, at
most 25 times. The result is how often each rule rolls back. If one user sends several requests, no rule holds its
level.
"""

import numpy as np
from scipy.stats import norm

from labsupport.rollout import Evidence

ALPHA = 0.05
LIMIT = 0.05  # error rate that the tolerant rules allow in a look


def rolled_back(
    candidate: float,
    stable: float = 0.01,
    share: float = 0.05,
    batch: int = 40,
    looks: int = 25,
    runs: int = 500,
    seed: int = 0,
) -> dict[str, float]:
    """Return the share of candidates that each rule rolls back within these looks. Error rates are between 0 and 1.

    - z-test at every look: two proportions, one-sided, at 5 %, as if it were the only look; Bonferroni: at 5 % / looks
    - e-value: `evidence.Evidence` above 20
    - Argo, failureLimit 3: more than 3 looks in which over 5 % of the requests failed (Argo Rollouts' rule)
    - Flagger, threshold 5: 5 such looks (Flagger's rule)

    >>> rates = rolled_back(0.01, runs=20)
    >>> rates["e-value"] <= rates["z-test at every look"]
    True
    """
    random = np.random.default_rng(seed)
    counts = dict.fromkeys(("z-test at every look", "Bonferroni over the looks", "e-value"), 0)
    counts |= dict.fromkeys(("Argo, failureLimit 3", "Flagger, threshold 5"), 0)
    beside = round(batch * (1 - share) / share)  # requests of the stable version between two looks
    for _ in range(runs):
        ours, theirs = random.random((looks, batch)) < candidate, random.random((looks, beside)) < stable
        score = _z_scores(ours, theirs).max()
        counts["z-test at every look"] += score > norm.isf(ALPHA)
        counts["Bonferroni over the looks"] += score > norm.isf(ALPHA / looks)
        counts["e-value"] += _highest_e_value(ours, theirs) >= 1 / ALPHA
        failed = (ours.mean(axis=1) > LIMIT).sum()
        counts["Argo, failureLimit 3"] += failed > 3
        counts["Flagger, threshold 5"] += failed >= 5
    return {rule: float(count / runs) for rule, count in counts.items()}


def _z_scores(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return the pooled two-proportion z-score at each look, of all requests so far."""
    bad, others_bad = ours.sum(axis=1).cumsum(), theirs.sum(axis=1).cumsum()
    looks = np.arange(1, len(ours) + 1)
    count, others = looks * ours.shape[1], looks * theirs.shape[1]
    pooled = (bad + others_bad) / (count + others)
    spread = np.sqrt(pooled * (1 - pooled) * (1 / count + 1 / others))
    scores: np.ndarray = (bad / count - others_bad / others) / np.maximum(spread, 1e-12)
    return scores


def _highest_e_value(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the largest e-value at any look. The stable version's requests are spread evenly between the candidate's."""
    between = theirs.reshape(*ours.shape, -1)
    bad = np.concatenate([between, ours[..., np.newaxis]], axis=2)
    candidate = np.zeros(bad.shape, bool)
    candidate[..., -1] = True
    evidence, highest = Evidence(), 1.0
    for look in range(len(ours)):
        evidence.add(candidate[look].ravel(), bad[look].ravel())
        highest = max(highest, evidence.value)
    return highest
