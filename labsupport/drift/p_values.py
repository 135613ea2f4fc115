"""Compute p-values, and adjust those of several tests for their number, so that one level holds for all of them together.

Of twenty tests at .05 without any effect, one is expected to raise an alarm; at least one does with probability .64.

`scipy.stats` takes a second to load, so what a small comparison needs is computed here. `scipy.special.smirnov` holds
the GIL for half a second with a million rows, so `_smirnov` replaces it. Tests compare each with SciPy.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import special

from labsupport.drift.effective_rows import Alike

PATHS_TO = 1_000  # rows of both windows together: up to there our own sum takes less time than to load SciPy's
TABLES_TO = 100_000  # 2 x 2 tables with the same sums: for more of them SciPy needs less time and memory
EXACT_TO = 1_000  # rows: KS p-values are exact up to there; above, those of one sample of as much information
SUMMED_FROM, TERMS = 1_000, 2**15  # rows for which we add up the terms ourselves; terms in memory at a time
ENOUGH, CHUNK = 20, 50  # permutations that reach the value, before we stop; that are drawn at a time


@dataclass(frozen=True)
class Noise:
    """The distribution of squared differences of shares without any drift: `scale` times a chi-square of `degrees` degrees.

    If the scale is an estimate with `freedom` degrees of freedom, the sum is compared with an F distribution instead.
    """

    scale: float
    degrees: float
    freedom: float = np.inf

    def p_value(self, value: float) -> float:
        """Return the chance that the sum reaches `value` without any drift."""
        if np.isinf(self.freedom):
            return float(special.chdtrc(self.degrees, value / self.scale))
        return float(special.fdtrc(self.degrees, self.freedom, value / self.scale / self.degrees))

    def limit(self, alpha: float) -> float:
        """Return the value that the sum exceeds with probability `alpha` without any drift."""
        if np.isinf(self.freedom):
            return float(self.scale * special.chdtri(self.degrees, alpha))
        return float(self.scale * self.degrees * special.fdtri(self.degrees, self.freedom, 1 - alpha))


def kolmogorov_smirnov(statistic: float, reference: np.ndarray, current: np.ndarray, alike: Alike) -> float:
    """Return the p-value of a KS statistic of two arrays of numbers: SciPy's, or with `freedom` the one of `_kolmogorov`."""
    n, m = len(reference), len(current)
    if statistic**2 * n * m / (n + m) < 0.03 or (n == m and statistic < 1.5 / n):
        return 1.0  # to the last digit; SciPy gets a little more than 1, and warns
    if alike == Alike() and max(n, m) <= EXACT_TO:
        return _exact(statistic, reference, current)
    before, now = n / alike.reference, m / alike.current  # independent rows
    if not np.isinf(alike.freedom):
        return float(np.clip(_kolmogorov(statistic**2 * before * now / (before + now), alike.freedom), 0, 1))
    rows = max(1, round(before * now / (before + now)))
    if rows > SUMMED_FROM and 2.2 <= rows * statistic**2 < 370:  # in this range SciPy returns the same, but slowly
        return 2 * _smirnov(rows, statistic)
    from scipy import stats

    return float(np.clip(stats.distributions.kstwo.sf(statistic, rows), 0, 1))


def _smirnov(rows: int, distance: float) -> float:
    """Return `scipy.special.smirnov(rows, distance)`, a sum of `rows` terms, ten times as fast, and without the GIL.

    Term v of the sum (Smirnov, 1944) is a binomial probability times a factor, and that probability comes from the error
    of Stirling's approximation and from two deviances (Loader, 2000), which loses no digits.
    """
    shift, total = rows * distance, float(np.exp(rows * np.log1p(-distance)))  # term 0
    end = int(np.ceil(rows - shift))
    for start in range(1, end, TERMS):
        v = np.arange(start, min(start + TERMS, end), dtype=float)
        rest = rows - v
        deviances = v * np.log1p(shift / v) - shift + rest * np.log1p(-shift / rest) + shift
        errors = _stirling(np.array([float(rows)])) - _stirling(v) - _stirling(rest)
        binomial = np.exp(errors + deviances) * np.sqrt(rows / (2 * np.pi * v * rest))
        total += float((binomial * shift / (v + shift)).sum())
    return total


def _stirling(k: np.ndarray) -> np.ndarray:
    """Return log k! minus Stirling's approximation of it, for whole numbers of 1 or more."""
    square = k**2
    errors: np.ndarray = (1 / 12 - (1 / 360 - (1 / 1260 - 1 / 1680 / square) / square) / square) / k
    few = k[k < 15]  # for larger ones the series has all digits
    errors[k < 15] = special.gammaln(few + 1) - (few + 0.5) * np.log(few) + few - np.log(2 * np.pi) / 2
    return errors


def _exact(statistic: float, reference: np.ndarray, current: np.ndarray) -> float:
    """Return the exact p-value, as `scipy.stats.ks_2samp`: for windows of one size that of Gnedenko and Korolyuk (1951)."""
    rows, p_value = len(reference), np.inf
    if rows == len(current):
        p_value, steps = 0.0, round(statistic * rows)
        for turn in range(rows // steps, -1, -1):
            product = 1.0
            for step in range(turn * steps, (turn + 1) * steps):
                product = (rows - step) * product / (rows + step + 1)
            p_value = product * (1 - p_value)
    if 2 * p_value <= 1:
        return 2 * p_value
    if rows + len(current) <= PATHS_TO:
        return _of_paths(statistic, *sorted((rows, len(current))))
    from scipy import stats

    return float(stats.ks_2samp(reference, current, method="exact").pvalue)


def _of_paths(statistic: float, n: int, m: int) -> float:
    """Return the exact p-value of a KS statistic of windows of `n` and `m` rows.

    Sorted together, the rows are a path from (0, 0) to (n, m): a step for each row, right or up. Without drift every path is
    as likely. The p-value is the share of the paths that go as far from the diagonal as `statistic` (Hodges, 1958). For
    the points of each step it follows from those of the step before (Viehmann, 2021).
    """
    far, both = round(statistic * n * m), n + m
    right = np.arange(1.0, n + 1)
    beyond = np.zeros(n + 1)  # at (i, step - i): the share of the paths there that have been far away
    for step in range(1, both + 1):
        low, high = max(0, (step * n - far) // both), min(n, (step * n + far) // both)
        part = right[low:high]  # i, where it is not far away; the other points need no sum
        before = beyond[low:high] * part
        beyond[low + 1 : high + 1] *= step - part
        beyond[low + 1 : high + 1] += before
        beyond[low + 1 : high + 1] /= step
        if step * n >= far:
            beyond[: low + 1] = 1.0
        beyond[-(-(step * n + far) // both) :] = 1.0
    return float(beyond[n])


def fisher(table: np.ndarray) -> tuple[float, float]:
    """Return the odds ratio of a table of counts, (2, 2), and the two-sided p-value of Fisher's exact test.

    The p-value is the probability of all tables with these sums that are at most as likely as this one. Probabilities count
    as equal if they differ by less than 1e-7 of each other (1e-14 in SciPy), because they come from sums of logarithms.

    >>> odds, p_value = fisher(np.array([[8, 2], [1, 5]]))
    >>> odds, round(p_value, 4)
    (20.0, 0.035)
    """
    (a, b), (c, d) = table.tolist()
    least, most = max(0, a - d), a + min(b, c)
    if most - least > TABLES_TO:
        from scipy import stats

        theirs = stats.fisher_exact(table)
        return float(theirs.statistic), float(theirs.pvalue)
    x = np.arange(least, most, dtype=float)  # of the first count, in each of these tables but the last
    steps = np.log((a + b - x) * (a + c - x) / (x + 1) / (d - a + x + 1))  # from the logarithm of one to the next
    logarithms = np.concatenate([[0.0], np.cumsum(steps)])
    weights = np.exp(logarithms - logarithms.max())
    odds = a * d / (b * c) if b * c else np.inf if a * d else np.nan
    return odds, float(weights[logarithms <= logarithms[a - least] + 1e-7].sum() / weights.sum())


def _kolmogorov(square: float, freedom: float) -> float:
    """Return the chance beyond a squared statistic whose scale is an estimate: what Student's t is to the normal.

    The terms exp(-2 k^2 x) of Kolmogorov's limit become their means over a chi-square of `freedom` degrees by its mean.
    """
    if square < 0.09:  # p is nearly 1, and the terms of the sum hardly fall
        return 1.0
    k = np.arange(1, 1_001)
    terms = (-1.0) ** (k - 1) * (1 + 4 * k**2 * square / freedom) ** (-freedom / 2)
    return float(2 * (terms.sum() - terms[-1] / 2))


def permuted(
    value: float,
    draw: Callable[[np.ndarray], np.ndarray],
    units: tuple[np.ndarray, int],
    permutations: int,
    seed: int,
) -> float:
    """Return the share of permutations that give `value` or more. Stops at the 20th of those (Besag and Clifford, 1991).

    `draw` takes truth values, (P, N + M): is each row in the first sample? Raises ValueError for a value of NaN, because
    no comparison with it is true.
    """
    if np.isnan(value):
        raise ValueError("the statistic of these samples is not a number: give numbers that are less far apart")
    random, drawn, reached = np.random.default_rng(seed), 0, 0
    of_row, first = units
    every = np.arange(of_row.max() + 1)
    while drawn < permutations:
        orders = random.permuted(np.tile(every, (min(CHUNK, permutations - drawn), 1)), axis=1)
        beyond = np.flatnonzero(draw((orders < first)[:, of_row]) >= value - 1e-12)
        if reached + len(beyond) >= ENOUGH:
            return float(ENOUGH / (drawn + beyond[ENOUGH - reached - 1] + 1))
        drawn, reached = drawn + len(orders), reached + len(beyond)
    return float((reached + 1) / (permutations + 1))


def redrawn(
    reference: np.ndarray, current: np.ndarray, levels: np.ndarray, permutations: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the counts of both windows, (P, K) each, of numbers that are permuted between them P times.

    The bins end at the quantiles, at `levels` (K - 1,), of each permuted reference. Equal quantiles leave empty bins.

    >>> before, now = redrawn(np.arange(10.0), np.arange(10.0, 30), np.array([0.5]), 3, seed=0)
    >>> before.tolist(), now.sum(axis=1).tolist()
    ([[5, 5], [5, 5], [5, 5]], [20, 20, 20])
    """
    random, pooled, rows = np.random.default_rng(seed), np.sort(np.concatenate([reference, current])), len(reference)
    chosen = [random.choice(len(pooled), rows, replace=False, shuffle=False) for _ in range(permutations)]
    edges = np.quantile(pooled[chosen], levels, axis=1).T
    ends = np.searchsorted(pooled, edges, "right")  # of each bin: how many of both windows are up to there
    inside = (np.array(chosen)[:, :, np.newaxis] < ends[:, np.newaxis]).sum(axis=1)
    before = np.diff(inside, axis=1, prepend=0, append=rows)
    return before, np.diff(ends, axis=1, prepend=0, append=len(pooled)) - before


def bonferroni(p_values: np.ndarray) -> np.ndarray:
    """Return each p-value times their number. Bounds the chance of any false alarm, however the tests depend on each other.

    >>> bonferroni(np.array([0.01, 0.02, 0.5])).round(2).tolist()
    [0.03, 0.06, 1.0]
    """
    adjusted: np.ndarray = np.minimum(1.0, len(p_values) * p_values)
    return adjusted


def holm(p_values: np.ndarray) -> np.ndarray:
    """Return adjusted p-values: the smallest times K, the next times K - 1, and so on (Holm, 1979).

    Bounds the chance of any false alarm as `bonferroni` does, and never has less power.

    >>> holm(np.array([0.01, 0.02, 0.5])).round(2).tolist()
    [0.03, 0.04, 0.5]
    """
    order = np.argsort(p_values, kind="stable")
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, stepped)
    return adjusted


def benjamini_hochberg(p_values: np.ndarray) -> np.ndarray:
    """Return adjusted p-values that bound the mean share of false alarms among all alarms (Benjamini and Hochberg, 1995).

    The tests must be independent or positively dependent. Without any effect it bounds the chance of any false alarm.

    >>> benjamini_hochberg(np.array([0.01, 0.02, 0.5])).round(2).tolist()
    [0.03, 0.03, 0.5]
    """
    order = np.argsort(-p_values, kind="stable")
    ranks = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, np.minimum.accumulate(p_values[order] * len(p_values) / ranks))
    return adjusted


CORRECTIONS = {"holm": holm, "bonferroni": bonferroni, "bh": benjamini_hochberg}
LEVELS = {"holm": "family-wise level", "bonferroni": "family-wise level", "bh": "false-discovery rate"}
