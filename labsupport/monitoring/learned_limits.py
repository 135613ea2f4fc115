"""Learn an alarm's limit from a healthy period, for a chosen rate of false alarms. `default_rules` holds the chosen
limits.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from labsupport import arguments
from labsupport.extras import imported
from labsupport.log import Moment, seconds
from labsupport.monitoring.alarms import AlertRule, ColumnSource
from labsupport.monitoring.measures import Drift, as_numbers, mean, p95

WEEK = 7 * 86_400.0
FEWEST = 10  # windows: a spread estimated from fewer is hardly known, and the limit would lie far out


def learned(
    rule: AlertRule,
    log: ColumnSource,
    since: Moment,
    until: Moment,
    every: float = 15.0,
    false_alarms: float = 1.0,
    period: float = WEEK,
) -> AlertRule:
    """Return the rule with limits learned from a healthy period of the log, since <= time < until in seconds since the
    epoch.

    The promise: if the service does not change and is evaluated every `every` seconds, it raises at most `false_alarms`
    in `period` seconds, by default a week. This holds on average over healthy periods, under two conditions: rows are
    independent except for an effect that their whole window shares, and windows that do not overlap are independent. So
    the healthy period has to contain all normal conditions: whole days if nights are different, and several of them. If
    neighbouring windows resemble each other so much that fewer than 10 independent ones are left, a warning reports it.
    `hold` only makes alarms rarer. `clear` is halfway back to the healthy mean. Windows with less than half the rows of
    the smallest healthy one are not judged.

    The limit is the loosest of those that the measure allows: `learn_limit` for all, `mean_limit` for means, and
    `p95_limit` for 95th percentiles. Raises ValueError for fewer than 10 windows with something to measure, for too few
    rows to estimate a percentile, for windows that differ so much that no value could pass the limit, and for the drift
    rule, whose limit is a probability already.
    """
    if isinstance(rule.measure, Drift):
        raise ValueError(f"{rule.name}: {rule.metric} is a p-value: its limit is the false-alarm rate, choose it")
    numbers = {"false_alarms": false_alarms, "every": every, "period": period}
    false_alarms, every, period = (arguments.number(name, value, 0, ends=False) for name, value in numbers.items())
    rate = false_alarms * every / period
    values, windows = _windows(rule, log, seconds(since, "since"), seconds(until, "until"))
    rows = [len(window) for window in windows]
    fewest = max(rule.min_rows, min(rows, default=0) // 2)
    upper, ratio = rule.above is not None, rule.measure.unit == "ratio"
    bounds = [learn_limit(values, rate, upper, (rows, fewest) if ratio else None)]
    if rule.measure.summary is mean:
        bounds.append(mean_limit(windows, rate, upper))
    elif rule.measure.summary is p95:
        bounds.append(p95_limit(windows, rate, upper))
    limit = max(bounds) if upper else min(bounds)
    limit = float(np.clip(limit, 0, 1)) if ratio else limit
    if (ratio and limit >= 1) if upper else limit <= 0:
        raise ValueError(
            f"{rule.name}: no {rule.metric} can pass {limit:.3g}, because the healthy windows differ too much or have too "
            "few rows: give a longer window, a more even period, or allow more false alarms"
        )
    if (independent := _independent(values)) < FEWEST:
        warnings.warn(
            f"{rule.name}: neighbouring windows resemble each other, so {len(values)} of them say as much as "
            f"{independent:.0f} independent ones: more false alarms than promised may come; learn from a longer period",
            stacklevel=2,
        )
    above, below = (limit, None) if upper else (None, limit)
    return replace(rule, above=above, below=below, clear=(limit + float(np.mean(values))) / 2, min_rows=fewest)


def learn_limit(
    values: Sequence[float] | np.ndarray,
    rate: float,
    upper: bool = True,
    counts: tuple[Sequence[int], int] | None = None,
) -> float:
    """Return the limit that the next value passes with probability `rate` at most, if nothing changes. At least 10
    `values`.

    Values are assumed to be independent and normal, as means over windows that do not overlap are. The limit is the
    one-sided prediction bound with Student's t, which accounts for estimating both mean and spread (Hahn, 1969,
    "Factors for calculating two-sided prediction intervals for samples from a normal distribution", Journal of the
    American Statistical Association 64, one-sided). Each evaluation of overlapping windows passes the limit with the
    same probability. So with N evaluations there are N times `rate` alarms on average at most, even if they depend on
    each other.

    Values that are shares of a few rare rows are not normal. With `counts`, the rows of each value and the fewest that
    a later one may have, a second bound is that of the beta-binomial distribution of the next count (Jeffreys' prior).
    The looser of the two bounds is returned. Shares stay within 0 and 1.

    >>> healthy = np.random.default_rng(0).normal(0.5, 0.01, 50)
    >>> round(learn_limit(healthy, 1e-4), 2), round(learn_limit(healthy, 1e-4, upper=False), 2)
    (0.54, 0.46)
    >>> learn_limit([0.0] * 12, 1e-4, counts=([600] * 12, 300))  # nothing was wrong, and yet 2 in 300 are no alarm
    0.006666666666666667
    """
    stats = imported("scipy.stats")

    values = np.asarray(values, float)
    if len(values) < FEWEST or not np.isfinite(values).all():
        raise ValueError(f"{len(values)} windows to learn from: give at least {FEWEST}, with finite values")
    if not 0 < rate < 0.5:
        raise ValueError(f"{rate:g} false alarms at each look: give a rate between 0 and 0.5")
    k = len(values)
    reach = stats.t.isf(rate, k - 1) * values.std(ddof=1) * math.sqrt(1 + 1 / k)
    limit = values.mean() + (reach if upper else -reach)
    if counts is not None:
        share = _next_share(values, *counts, rate, upper)
        limit = np.clip(max(limit, share) if upper else min(limit, share), 0, 1)
    return float(limit)


def _next_share(values: np.ndarray, rows: Sequence[int], fewest: int, rate: float, upper: bool) -> float:
    stats = imported("scipy.stats")

    hits, every = float(values @ np.asarray(rows)), float(np.sum(rows))
    coming = stats.betabinom(fewest, hits + 0.5, every - hits + 0.5)
    return float(coming.isf(rate) if upper else coming.ppf(rate)) / fewest


def mean_limit(windows: Sequence[np.ndarray], rate: float, upper: bool = True) -> float:
    """Return the limit that the mean of the next window passes with probability `rate` at most, if nothing changes.

    `windows` are the rows' values of each healthy window, (rows,). The variance of a mean has two parts: the variance
    between windows, and the variance between rows divided by the number of rows (one-way analysis of variance,
    unbalanced: Searle, Casella and McCulloch, 1992, "Variance Components", section 3.6). So a window with few rows, as
    at night, gets its larger spread (control limits for samples of varying size: Montgomery, "Introduction to
    Statistical Quality Control", section 6.3). All windows get the same limit: it is passed with probability `rate` on
    average over windows with as many rows as the healthy ones.

    >>> random = np.random.default_rng(0)
    >>> day_and_night = [random.normal(0.5, 0.1, rows) for rows in [120] * 50 + [10] * 50]
    >>> round(mean_limit(day_and_night[:50], 1e-4), 2), round(mean_limit(day_and_night, 1e-4), 2)
    (0.54, 0.62)
    """
    optimize = imported("scipy.optimize")
    stats = imported("scipy.stats")

    means, rows = (np.array([of(window) for window in windows], float) for of in (np.mean, len))
    count, total = len(means), float(rows.sum())
    inside = sum(float(np.var(window)) * len(window) for window in windows) / max(1.0, total - count)
    grand = float(means @ rows) / total
    excess = float(rows @ (means - grand) ** 2) - (count - 1) * inside
    between = max(0.0, excess / (total - float(rows @ rows) / total))
    spreads = np.sqrt((between + inside / rows) * (1 + 1 / count))
    if not spreads.any():
        return float(means.mean())

    def too_often(reach: float) -> float:
        return float(stats.t.sf(reach / np.maximum(spreads, 1e-300), count - 1).mean()) - rate

    reach: float = optimize.brentq(too_often, 0.0, float(stats.t.isf(rate, count - 1) * spreads.max()) * (1 + 1e-9))
    return float(means.mean()) + (reach if upper else -reach)


def p95_limit(windows: Sequence[np.ndarray], rate: float, upper: bool = True) -> float:
    """Return the limit that the 95th percentile of the next window passes with probability `rate` at most.

    `windows` are the rows' values of each healthy window, (rows,). Rows are assumed to be independent. A percentile of
    few rows is skewed and far from normal, so we use counts: it is above a limit only if more than some 5 % of the rows
    are. The limit is one of the healthy values. It is chosen so that few enough values exceed it: the next count, which
    is beta-binomial (Jeffreys' prior), is too high with probability `rate` at most, on average over windows of as many
    rows as the healthy ones (David and Nagaraja, 2003, "Order Statistics", section 7.1). Raises ValueError if even the
    most extreme healthy value is passed too often.

    >>> random = np.random.default_rng(0)
    >>> seconds = [random.lognormal(-2, 1, 100) for _ in range(100)]
    >>> 0.7 < np.exp(-2 + 1.645) < p95_limit(seconds, 1e-4) < 2
    True
    """
    stats = imported("scipy.stats")

    values = np.sort(np.concatenate(windows))
    rows, times = np.unique([len(window) for window in windows], return_counts=True)
    place = 0.95 * (rows - 1)  # of the percentile among a window's sorted rows, between two of them as a rule
    needed = rows - np.ceil(place) if upper else np.floor(place) + 1

    def passed(beyond: int) -> float:
        """Return how often the percentile passes a limit that `beyond` of the healthy values lie beyond."""
        chances = stats.betabinom.sf(needed - 1, rows, beyond + 0.5, len(values) - beyond + 0.5)
        return float(np.average(chances, weights=times))

    if passed(0) > rate:
        raise ValueError(
            f"{len(values):,} rows to learn a 95th percentile from are too few for a false alarm in {1 / rate:,.0f} looks: "
            "give a longer healthy period, a larger min_rows, or allow more false alarms"
        )
    low, high = 0, len(values)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if passed(middle) <= rate else (low, middle)
    return float(values[len(values) - 1 - low] if upper else values[low])


def _independent(values: np.ndarray) -> float:
    """Return the number of independent windows that carry as much information as these, if only neighbours correlate
    (AR(1)).
    """
    deviations = values - values.mean()
    if not deviations.any():
        return len(values)
    lag = float(deviations[1:] @ deviations[:-1]) / float(deviations @ deviations)
    return len(values) * (1 - lag) / (1 + lag) if lag > 2 / math.sqrt(len(values)) else len(values)


def _windows(rule: AlertRule, log: ColumnSource, since: float, until: float) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the measured value of each whole window that can be judged, one after the other, and its rows' values."""
    stored = log.columns("time", *rule.measure.columns, since=since, until=until)
    columns = {name: as_numbers(column) for name, column in stored.items()}
    measured, windows = [], []
    for start in since + rule.window * np.arange(int((until - since) / rule.window)):
        first, last = np.searchsorted(columns["time"], [start, start + rule.window])
        window = {name: columns[name][first:last] for name in rule.measure.columns}
        if (value := rule.judged(rule.measure.read(window, rule.window))) is not None:
            values = rule.measure.values(window)
            measured.append(value)
            windows.append(values[np.isfinite(values)])
    return np.array(measured, float), windows
