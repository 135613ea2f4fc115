"""How often learned limits raise a false alarm in a healthy week, and how well they notice what is wrong.

`python -m benchmarks.limits 60` learns each limit from a healthy day and watches a healthy week after it, 60 times over. The
promise is one alarm a week. Beside it stands the delay, in seconds, until a change by two standard deviations of a row (a
latency that doubles) is noticed by day.
"""

import sys
import warnings
from types import SimpleNamespace

import numpy as np
from scipy import stats

from labsupport.monitoring import WEEK, AlertRule, learned

DAY, EVERY = 86_400.0, 15.0


def constant(random, seconds, rate=2.0):
    return np.sort(random.uniform(0, seconds, random.poisson(rate * seconds)))


def day_and_night(random, seconds):
    times = constant(random, seconds)
    by_day = (times % DAY > 6 * 3600) & (times % DAY < 22 * 3600)
    return times[by_day | (random.random(len(times)) < 0.05)]


def seldom(random, seconds):
    return constant(random, seconds, 0.2)


def lognormal(deviation):
    return lambda random, times: random.lognormal(-3, deviation, len(times))


def sometimes_slow(random, times):
    return random.lognormal(-3, 0.3, len(times)) * np.where(random.random(len(times)) < 0.03, 10, 1)


def slow_weather(random, times):
    """An Ornstein-Uhlenbeck process with a memory of six hours, of which everybody sees the same."""
    steps, pull = int(times[-1] / 60) + 2, np.exp(-60 / (6 * 3600))
    weather = np.zeros(steps)
    for step, kick in enumerate(random.normal(0, np.sqrt(1 - pull**2), steps - 1), 1):
        weather[step] = pull * weather[step - 1] + kick
    return random.normal(0.5, 0.1, len(times)) + 0.05 * weather[(times / 60).astype(int)]


def brightness(random, times):
    return random.normal(0.5, 0.1, len(times))


def found(random, times):
    return random.negative_binomial(1, 1 / 3, len(times)).astype(float)


SETTINGS = {
    "brightness, constant": ("brightness_mean", constant, brightness, 60, 0.2),
    "brightness, day and night": ("brightness_mean", day_and_night, brightness, 60, 0.2),
    "brightness, slow weather (outside the promise)": ("brightness_mean", constant, slow_weather, 60, 0.2),
    "detections, day and night": ("detections_mean", day_and_night, found, 60, 4.9),
    "latency lognormal 1, 0.2/s": ("latency_p95", seldom, lognormal(1), 60, 0.1),
    "latency lognormal 0.5, 0.2/s, no hold": ("latency_p95", seldom, lognormal(0.5), 0, 0.1),
    "latency lognormal 1, day and night": ("latency_p95", day_and_night, lognormal(1), 60, 0.1),
    "latency, 3 % ten times slower": ("latency_p95", day_and_night, sometimes_slow, 60, 0.1),
}


def rows(metric, times, values):
    column = {"brightness_mean": "brightness", "detections_mean": "n_detections", "latency_p95": "latency"}[metric]
    return {"time": times, "status": np.full(len(times), 200.0), column: values}


def log_of(columns):
    def read(*names, since, until):
        first, last = np.searchsorted(columns["time"], [since, until])
        return {name: columns[name][first:last] for name in names}

    return SimpleNamespace(columns=read)


def readings(rule, columns, until):
    """The measure at each look, NaN where it is not judged."""
    ends = np.arange(rule.window, until, EVERY)
    times, values = columns["time"], columns[rule.measure.columns[-1]]
    first, last = np.searchsorted(times, [ends - rule.window, ends])
    counts = last - first
    if rule.metric != "latency_p95":
        total = np.concatenate([[0.0], np.cumsum(values)])
        means = (total[last] - total[first]) / np.maximum(counts, 1)
        return np.where(counts >= rule.min_rows, means, np.nan)
    above = np.concatenate([[0], np.cumsum(values > rule.limit)])
    beyond = above[last] - above[first]  # where next to nothing is above the limit, the percentile need not be computed
    close = np.flatnonzero((counts >= rule.min_rows) & (beyond >= counts - np.ceil(0.95 * (counts - 1))))
    answer = np.where(counts >= rule.min_rows, 0.0, np.nan)
    for look in close:
        answer[look] = np.percentile(values[first[look] : last[look]], 95)
    return answer


def fired(rule, values):
    """The looks at which an alarm fires: beyond the limit for `hold` seconds, again only after it has cleared."""
    alarms, since, firing = [], None, False
    for look in np.flatnonzero(np.isfinite(values)):
        beyond = rule.beyond(values[look], firing)
        if firing and not beyond:
            firing, since = False, None
        elif not firing:
            since = (look if since is None else since) if beyond else None
            if beyond and (look - since) * EVERY >= rule.hold:
                firing = True
                alarms.append(look)
    return alarms


def measure(name, runs):
    metric, traffic, world, hold, shift = SETTINGS[name]
    alarms, limits, delays = [], [], []
    for seed in range(runs):
        random = np.random.default_rng([seed, len(name)])
        start = {"above": 1e9} if metric != "brightness_mean" else {"below": -1e9}
        rule = AlertRule("Learned", metric, **start, hold=hold)
        times = traffic(random, DAY + WEEK)
        columns = rows(metric, times, world(random, times))
        with warnings.catch_warnings(record=True) as cautions:
            warnings.simplefilter("always")
            rule = learned(rule, log_of(columns), 0, DAY)
        later = {key: column[times >= DAY] for key, column in columns.items()}
        later["time"] = later["time"] - DAY
        alarms.append(len(fired(rule, readings(rule, later, WEEK))))
        limits.append(rule.limit)
        noon = later["time"] > 12 * 3600
        broken = {key: column[noon] for key, column in later.items()}
        broken["time"] = broken["time"] - 12 * 3600
        key = rule.measure.columns[-1]
        broken[key] = (
            broken[key] * 2 if metric == "latency_p95" else broken[key] + (-shift if metric[0] == "b" else shift)
        )
        looks = fired(rule, readings(rule, broken, 4 * 3600))
        delays.append(looks[0] * EVERY + rule.window if looks else np.inf)
    total = sum(alarms)
    low, high = (
        stats.chi2.ppf(0.025, 2 * total) / 2 / runs if total else 0,
        stats.chi2.ppf(0.975, 2 * total + 2) / 2 / runs,
    )
    caution = "warned" if cautions else ""
    return total / runs, low, high, float(np.median(limits)), float(np.median(delays)), caution


def main(runs: int) -> None:
    print("setting | false alarms a week [95 %] | limit | median delay, s | last run")
    for name in SETTINGS:
        often, low, high, limit, delay, caution = measure(name, runs)
        print(f"{name} | {often:.2f} [{low:.2f}, {high:.2f}] | {limit:.3g} | {delay:.0f} | {caution}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
