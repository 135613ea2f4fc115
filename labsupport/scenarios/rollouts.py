"""Simulate what surrounds a rollout: the picture of a day, and how often common rules err.

`timeline` draws what the log and the journal of a router hold. `rolled_back` compares
common rollback rules with the gate's e-value: a canary of 5 % answers beside a stable version, each request comes from
another user, and each rule is evaluated after every 40 requests of the candidate, at most 25 times. If one user sends
several requests, no rule holds its level.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import norm

from labsupport import charts
from labsupport.rollout import Evidence, State

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

ALPHA = 0.05
LIMIT = 0.05  # error rate that the tolerant rules allow in a look
BARS = 90  # of a timeline, at most


def journal_table(history: Sequence[State]) -> "pd.DataFrame":
    """Return a row for each state of a router's history: seconds, action, the candidate and its share, and the reason.

    >>> row = journal_table([State(stable="v1", time=9.0), State("v1", "v2", mode="canary", share=5.0, time=10.5)]).iloc[1]
    >>> float(row["second"]), row["stable version"], row["candidate"], row["share"]
    (1.5, 'v1', 'v2', '5 %')
    """
    import pandas as pd

    rows = [
        {
            "second": round(state.time - history[0].time, 1),
            "action": state.action,
            "stable version": state.stable,
            "candidate": state.candidate or "-",
            "share": f"{state.share:g} %" if state.candidate else "-",
            "reason": state.reason,
        }
        for state in history
    ]
    return pd.DataFrame(rows)


def timeline(log: "pd.DataFrame", history: Sequence[State], colours: Mapping[str, str]) -> "Figure":
    """Draw the share of answers of each version over time, the failed answers, and the phases of a router's history.

    `log` is the frame of a prediction log, `colours` maps the versions to draw to their colours.
    """
    import pandas as pd

    began = history[0].time
    seconds = np.array([moment.timestamp() - began for moment in log["time"]])
    wide = max(1, int(np.ceil(seconds.max() / BARS)))  # seconds of each bar
    second = pd.Series(wide * (seconds // wide).astype(int), index=log.index)
    shares = 100 * pd.crosstab(second, log["version"], normalize="index").reindex(columns=list(colours), fill_value=0)
    failed = (log["status"] >= 500).groupby(second).sum()
    figure = charts.new_figure(10, 5)
    names, upper, lower = figure.subplots(3, 1, sharex=True, height_ratios=[0.5, 3, 1])
    floor = np.zeros(len(shares))
    for version, colour in colours.items():
        upper.bar(shares.index, shares[version], wide, floor, align="edge", color=colour, label=version)
        floor = floor + shares[version].to_numpy()
    lower.bar(failed.index, failed, wide, align="edge", color=charts.ALARM)
    for name, start, end in phases(history, began + float(seconds.max())):
        names.axvspan(start - began, end - began, color="#dddddd")
        names.text((start + end) / 2 - began, 0.5, name, ha="center", va="center", fontsize=8)
        for axis in (names, upper, lower):
            axis.axvline(start - began, color="black", linewidth=0.8, linestyle=":")
            axis.axvline(end - began, color="black", linewidth=0.8, linestyle=":")
    names.set(
        ylim=(0, 1),
        yticks=[],
        title="Each pattern moves a chosen share of the answers, and after the rollback no answer fails",
    )
    upper.set(ylabel="share of answers (%)", ylim=(0, 100), xlim=(0, seconds.max()))
    upper.legend(loc="lower left", fontsize=8)
    lower.set(ylabel=f"failed answers\nin {wide} s", xlabel="time (seconds)", ylim=(0, max(2, failed.max() + 1)))
    return figure


def phases(history: Sequence[State], end: float) -> list[tuple[str, float, float]]:
    """Return (name, start, end) of each trial in a router's history: shadow, canary, ramp or blue/green.

    >>> trial = State("v1", "v2", mode="shadow", time=1.0)
    >>> phases([State("v1"), trial, State("v1", time=5.0)], 9.0)
    [('shadow', 1.0, 5.0)]
    """
    found: list[tuple[str, float, float]] = []
    for state, until in zip(history, [*(state.time for state in history[1:]), end], strict=True):
        name = "ramp" if state.ramp else state.mode.replace("_", "/")
        if found and found[-1][0] == name and found[-1][2] == state.time:
            found[-1] = (name, found[-1][1], until)
        elif name != "stable":
            found.append((name, state.time, until))
    return found


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
    rng = np.random.default_rng(seed)
    counts = dict.fromkeys(("z-test at every look", "Bonferroni over the looks", "e-value"), 0)
    counts |= dict.fromkeys(("Argo, failureLimit 3", "Flagger, threshold 5"), 0)
    beside = round(batch * (1 - share) / share)  # requests of the stable version between two looks
    for _ in range(runs):
        ours, theirs = rng.random((looks, batch)) < candidate, rng.random((looks, beside)) < stable
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
