"""Does the gate keep its promise? How often it rolls back a candidate that is no worse, and one with four times the errors.

`python -m benchmarks.gate_promises [--runs 500]` prints a table. All users are simulated, and each ramp runs the gate's own
evidence on 20,000 requests, looked at after every 100. Intervals are exact (Clopper and Pearson), 95 %.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

from labsupport.rollout import Evidence

REQUESTS, LOOK = 20_000, 100
RAMP = np.repeat([0.05, 0.25, 0.5, 1.0], REQUESTS // 4)  # the candidate's share at each request
ALL = np.ones(REQUESTS, bool)
ALPHA, TIMES = 0.05, 4
GOLDEN = (5**0.5 - 1) / 2


class Traffic(NamedTuple):
    """What came of each request, in their order."""

    candidate: np.ndarray  # bool: the candidate answered
    bad: np.ndarray  # bool
    counted: np.ndarray  # bool: the first request of its key, or one without a key
    known: np.ndarray | None = None  # at which request it becomes known that it was bad; None: at once


def few(random, count: int) -> np.ndarray:
    """Of the users 5 % fail at 30 % of their requests, the others at .5 %."""
    return np.where(random.random(count) < 0.05, 0.3, 0.005)


def beta(random, count: int) -> np.ndarray:
    return random.beta(0.5, 24.5, count)


def lognormal(random, count: int) -> np.ndarray:
    return np.minimum(0.02 * random.lognormal(-0.5, 1, count), 1)


def keyed(random, times: float, users: int, rates: Callable, share=RAMP, alike=False, other=False, wait=0) -> Traffic:
    """Users with a key, whose error rates differ. A fifth of them makes four fifths of the requests, unless all are `alike`.

    `other`: the candidate errs with other users than the stable version, and as often. `wait`: a bad answer is known only
    once its user says so, after so many requests of all on average.
    """
    frequent = np.arange(users) < users // 5
    weights = np.ones(users) if alike else np.where(frequent, 4 / frequent.sum(), 1 / (~frequent).sum())
    user = random.choice(users, REQUESTS, p=weights / weights.sum())
    candidate = random.random(users)[user] < share
    stable_rates = rates(random, users)
    rate = np.where(candidate, times * (rates(random, users) if other else stable_rates)[user], stable_rates[user])
    known = np.arange(REQUESTS) + random.exponential(wait, REQUESTS) if wait else None
    return Traffic(candidate, random.random(REQUESTS) < rate, first(user), known)


def first(user: np.ndarray) -> np.ndarray:
    """Which requests are the first ones of their user."""
    chosen = np.zeros(REQUESTS, bool)
    chosen[np.unique(user, return_index=True)[1]] = True
    return chosen


def sessions(random, times: float, alike: float, key=True) -> Traffic:
    """Sessions of 4 pictures on average, many at a time. A picture has its session's outcome with probability `alike`."""
    session = np.repeat(np.arange(REQUESTS), 1 + random.poisson(3, REQUESTS))[:REQUESTS]
    session = session[np.argsort(session + random.exponential(30, REQUESTS))]
    luck = np.where(random.random(REQUESTS) < alike, random.random(REQUESTS)[session], random.random(REQUESTS))
    candidate = (random.random(REQUESTS)[session] if key else evenly(random)) < RAMP
    return Traffic(candidate, luck < np.where(candidate, times * 0.02, 0.02), first(session) if key else ALL)


def alone(random, times: float, rate: float, share=RAMP, outages: int = 0) -> Traffic:
    """Requests without a key; in an outage both versions fail at four of five requests, 5 to 50 in a row."""
    rates = np.full(REQUESTS, rate)
    for start in random.integers(0, REQUESTS, outages):
        rates[start : start + random.integers(5, 50)] = 0.8
    candidate = evenly(random) < share
    bad = random.random(REQUESTS) < np.where(candidate, np.minimum(times * rates, 1), rates)
    return Traffic(candidate, bad, ALL)


def evenly(random) -> np.ndarray:
    """Where requests without a key fall between 0 and 1: as `Router` deals them."""
    return (random.integers(10**6) + np.arange(REQUESTS)) * GOLDEN % 1


WORLDS = {"5 % of users fail at 30 %": few, "beta(.5, 24.5)": beta, "lognormal, sd 1": lognormal}
MANY, BOTH = (200, 2_000, 20_000), (2_000, 20_000)
SETTINGS: dict[str, Callable] = {
    **{f"{n:,} keys, {name}": partial(keyed, users=n, rates=rates) for name, rates in WORLDS.items() for n in MANY},
    "200 keys alike, beta": partial(keyed, users=200, rates=beta, alike=True),
    **{f"2,000 keys, 5 % only, {name}": partial(keyed, users=2_000, rates=r, share=0.05) for name, r in WORLDS.items()},
    **{f"{n:,} keys, errors move to other users": partial(keyed, users=n, rates=few, other=True) for n in BOTH},
    **{f"{n:,} keys, users complain later": partial(keyed, users=n, rates=few, wait=2_000) for n in BOTH},
    **{f"sessions with a key, alike {alike}": partial(sessions, alike=alike) for alike in (0.5, 0.9)},
    **{f"sessions without a key, alike {alike}": partial(sessions, alike=alike, key=False) for alike in (0.5, 0.9)},
    "no keys, 1 %": partial(alone, rate=0.01),
    "no keys, 5 % only, 1 %": partial(alone, rate=0.01, share=0.05),
    "no keys, 10 %": partial(alone, rate=0.1),
    "no keys, .5 % and 20 outages": partial(alone, rate=0.005, outages=20),
}


def rolled_back(traffic: Traffic, every: bool = False) -> bool:
    """Whether the e-value reaches 20 at any look; with `every`, as if each request counted."""
    evidence, counted = Evidence(), ALL if every else traffic.counted
    known = np.arange(REQUESTS) if traffic.known is None else traffic.known
    late = np.flatnonzero(traffic.bad & counted & (known > np.arange(REQUESTS)))
    for start in range(0, REQUESTS, LOOK):
        rows = start + np.flatnonzero(counted[start : start + LOOK])
        if rows.size:
            evidence.add(
                traffic.candidate[rows], traffic.bad[rows] & (known[rows] <= start + LOOK), rows if late.size else ()
            )
        for row in late[(known[late] > start) & (known[late] <= start + LOOK)].tolist():
            evidence.went_wrong(row)
        if evidence.value >= 1 / ALPHA:
            return True
    return False


def interval(count: int, runs: int) -> str:
    low, high = binomtest(count, runs).proportion_ci()
    return f"{count / runs:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=500)
    arguments.add_argument("--only", default="", help="settings whose names contain this")
    options = arguments.parse_args()
    print(f"{options.runs} ramps each; the e-value reaches {1 / ALPHA:.0f} in so many of them:\n")
    print(f"| users | no worse | no worse, as if each request counted | {TIMES} times the errors |\n|---|---|---|---|")
    for name, setting in SETTINGS.items():
        if options.only in name:
            print(
                f"| {name} | {' | '.join(interval(count, options.runs) for count in counts(setting, options.runs))} |"
            )


def counts(setting: Callable, runs: int) -> list[int]:
    """How many candidates are rolled back: those no worse; those as if each request counted; those that are worse."""
    count = [0, 0, 0]
    for run in range(runs):
        same, worse = (setting(np.random.default_rng([run, kind]), times) for kind, times in enumerate((1, TIMES)))
        for place, verdict in enumerate((rolled_back(same), rolled_back(same, every=True), rolled_back(worse))):
            count[place] += verdict
    return count


if __name__ == "__main__":
    main()
