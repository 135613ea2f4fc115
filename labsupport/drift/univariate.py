"""Test whether one feature changed between two windows, and by how much.

Numbers get the Kolmogorov-Smirnov test. Classes, truth values and numbers of few distinct values get a test of counts,
because KS has too little power for them. Rows that resemble their neighbours are counted as fewer rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy import special

from labsupport.arguments import number, shown
from labsupport.drift import p_values
from labsupport.drift.effective_rows import Alike, _checked
from labsupport.drift.p_values import Noise, fisher
from labsupport.tabular import TooFewRows, float_column

LEVELS = np.linspace(0, 1, 11)[1:-1]  # of the reference's deciles, for PSI and for Jensen-Shannon
EXPECTED = 5.0  # a class expected less often than that, in either window, joins the other rare ones (Cochran, 1954)
PERMUTE_BELOW = 200  # rows: above, PSI's chi-square approximation holds
PERMUTATIONS = 999
BLOCK = 2**15  # rows that fit into a core's cache
MOST_ROWS = 10**15  # of one class: floats count no further


@dataclass(frozen=True)
class TwoSampleTest:
    """A two-sample test's name, statistic and p-value."""

    name: str
    statistic: float
    p_value: float


@dataclass(frozen=True)
class Psi:
    """A population stability index. `limit` is the value above which it is an alarm, for these numbers of rows.

    `noise` is its mean without any drift, for these numbers of rows.
    """

    value: float
    limit: float
    p_value: float
    noise: float = 0.0

    @property
    def drifted(self) -> bool:
        return self.value > self.limit

    def __float__(self) -> float:
        return self.value


@dataclass(frozen=True)
class Counts:
    """Counts of each class, or of each bin, in the two windows. Arrays of whole numbers, (K,).

    Raises ValueError for arrays of different lengths, and for counts that are missing or negative; `TooFewRows` for a
    window without any row.
    """

    reference: np.ndarray
    current: np.ndarray
    labels: list[Any] = field(default_factory=list)
    values: tuple[np.ndarray, np.ndarray] | None = None  # of `deciles`: the numbers, in ascending order

    def __post_init__(self) -> None:
        for name in ("reference", "current"):
            counts = float_column(name, getattr(self, name))
            if not ((counts >= 0) & (counts <= MOST_ROWS) & (counts == np.rint(counts))).all():
                raise ValueError(
                    f"{name}={shown(counts)}: give how often each class occurs, whole numbers of 0 or more"
                )
            object.__setattr__(self, name, counts.astype(int))
            if not counts.sum():
                raise TooFewRows(f"the {name} window has 0 rows: there is nothing to compare")
        before, now = len(self.reference), len(self.current)
        if before != now:
            raise ValueError(f"{before} classes in the reference, {now} now: count the same ones")

    @property
    def sizes(self) -> tuple[int, int]:
        return int(self.reference.sum()), int(self.current.sum())


def kolmogorov_smirnov(reference: np.ndarray, current: np.ndarray, alike: Sequence[float] = Alike()) -> TwoSampleTest:
    """Run the two-sample test of Kolmogorov and Smirnov on two arrays of finite numbers, (N,) and (M,).

    `alike`: how many neighbouring rows carry as much as one independent row, in each window (see `inefficiency`). Exact
    for up to `p_values.EXACT_TO` independent rows, asymptotic for more (Hodges, 1958). Statistic and p-value are
    SciPy's. Raises ValueError for missing or infinite values, and `TooFewRows` for no rows.

    >>> test = kolmogorov_smirnov(np.arange(30.0), np.arange(30.0) + 9)
    >>> test.name, round(test.statistic, 3), round(test.p_value, 3)
    ('KS', 0.3, 0.135)
    """
    reference, current = finite_column("reference", reference), finite_column("current", current)
    statistic, alike = distance(reference, current)[0], _checked(alike)
    return TwoSampleTest("KS", statistic, p_values.kolmogorov_smirnov(statistic, reference, current, alike))


def finite_column(name: str, data: Any) -> np.ndarray:
    """Return the numbers of one window, (N,). Raises ValueError if one is missing or infinite, `TooFewRows` without any."""
    values = float_column(name, data).astype(float)
    if not len(values):
        raise TooFewRows(f"the {name} window has 0 rows: there is nothing to compare")
    if bad := int((~np.isfinite(values)).sum()):
        raise ValueError(f"{name}: {bad} of {len(values)} values are missing or infinite: leave them out")
    return values


def distance(reference: np.ndarray, current: np.ndarray) -> tuple[float, float]:
    """Return the KS statistic and the Wasserstein-1 distance (in the feature's unit), both from one sort.

    >>> statistic, wasserstein = distance(np.array([1.0, 2, 3]), np.array([2.0, 3, 4]))
    >>> round(statistic, 3), round(wasserstein, 3)
    (0.333, 1.0)
    """
    return ordered_distance(ascending(reference), ascending(current))


def ordered_distance(reference: np.ndarray, current: np.ndarray) -> tuple[float, float]:
    """Return the `distance` of numbers that are in ascending order, (N,) and (M,)."""
    n, m = len(reference), len(current)
    edges = np.append(np.unique(reference[BLOCK::BLOCK]), np.inf)
    ends = zip(*(np.searchsorted(window, edges, "left").tolist() for window in (reference, current)), strict=True)
    first = second = gap = largest = 0  # whole numbers: the gap between the distribution functions, times n * m
    area = 0.0
    for edge_first, edge_second in ends:
        runs = np.concatenate([reference[first:edge_first], current[second:edge_second]])
        order = np.argsort(runs, kind="stable")  # merges the two: far quicker than a search for every value
        gaps = np.cumsum(np.where(order < edge_first - first, m, -n)) + gap
        first, second, gap = edge_first, edge_second, int(gaps[-1]) if len(gaps) else gap
        following = [window[place] for window, place in ((reference, first), (current, second)) if place < len(window)]
        runs = runs[order]
        steps = np.diff(runs, append=min(following, default=runs[-1:]))
        # between equal values neither distribution function has got to where it is going
        largest = max(largest, int(np.abs(gaps, out=gaps).max(where=steps > 0, initial=0)))
        area += float((gaps * steps).sum())  # a product of matrices would start threads of its own in each of ours
    return largest / (n * m), area / (n * m)


def ascending(values: np.ndarray) -> np.ndarray:
    return np.sort(values, kind="stable")  # next to no work for what is in order already, as it is in `drift`


def deviation(values: np.ndarray) -> float:
    """Return NumPy's standard deviation of many numbers, in pieces that fit into a core's cache.

    >>> deviation(np.array([1.0, 3.0]))
    1.0
    """
    middle = values.mean()
    squares = [float(((values[start : start + BLOCK] - middle) ** 2).sum()) for start in range(0, len(values), BLOCK)]
    return float(np.sqrt(sum(squares) / len(values)))


def chi_square(counts: Counts, alike: Sequence[float] = Alike()) -> TwoSampleTest:
    """Test whether both windows have the same shares of each class, by Pearson's test, or Fisher's for two classes.

    Classes that are expected fewer than five times in the smaller window are counted together. With `alike` as in
    `kolmogorov_smirnov` the counts are scaled down to those of independent rows (after Rao and Scott, 1981).

    >>> test = chi_square(Counts(np.array([50, 30, 20]), np.array([30, 30, 40])))
    >>> test.name, round(test.statistic, 2), round(test.p_value, 4)
    ('chi-square', 11.67, 0.0029)
    """
    alike = _checked(alike)
    table = np.array([counts.reference / alike.reference, counts.current / alike.current])
    place = without_rare(table)
    table = np.array([np.bincount(place, weights=window) for window in table])
    if table.shape[1] < 2:
        return TwoSampleTest("chi-square", 0.0, 1.0)
    statistic = _pearson(table)
    p_value = Noise(1.0, table.shape[1] - 1, alike.freedom).p_value(statistic)
    if table.shape[1] > 2:
        return TwoSampleTest("chi-square", statistic, p_value)
    odds, exact = fisher(np.rint(table).astype(int))
    return TwoSampleTest("Fisher", odds, exact if np.isinf(alike.freedom) else max(exact, p_value))


def _pearson(table: np.ndarray) -> float:
    """Return Pearson's statistic of a table of counts, (2, K). Raises ValueError for a class without any row."""
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    if not expected.all():
        raise ValueError(f"counts={shown(table)}: one class has no rows in either window: leave it out")
    return float(((table - expected) ** 2 / expected).sum())


def without_rare(table: np.ndarray) -> np.ndarray:
    """Return the new place of each class of a table of counts (2, K), (K,): rare ones together in the last place.

    If even together they are too few, the next rarest class joins them.
    """
    order = np.argsort(-table.sum(axis=0), kind="stable")
    expected = table.sum(axis=0)[order] * table.sum(axis=1).min() / table.sum()
    kept = int((expected >= EXPECTED).sum())
    if kept < len(expected) and expected[kept:].sum() < EXPECTED and kept > 1:
        kept -= 1
    place = np.empty(len(order), int)
    place[order] = np.minimum(np.arange(len(order)), max(1, kept))
    return place


def deciles(reference: np.ndarray, current: np.ndarray) -> Counts:
    """Return counts in ten bins that each hold the same share of the reference; fewer if values repeat.

    >>> deciles(np.arange(100), np.arange(50, 150)).current.tolist()
    [0, 0, 0, 0, 0, 10, 10, 10, 10, 60]
    """
    return ordered_deciles(
        ascending(finite_column("reference", reference)), ascending(finite_column("current", current))
    )


def ordered_deciles(reference: np.ndarray, current: np.ndarray) -> Counts:
    """Return the `deciles` of finite numbers that are in ascending order."""
    edges = decile_edges(reference)
    before, now = (in_bins(window, edges, "right") for window in (reference, current))
    return Counts(before, now, values=(reference, current))


def decile_edges(ordered: np.ndarray) -> np.ndarray:
    """Return the edges between the deciles of numbers that are in ascending order; fewer than nine if values repeat."""
    return np.unique(quantiles(ordered, LEVELS))


def quantiles(ordered: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return NumPy's quantiles of numbers that are sorted already, without sorting them again."""
    place = levels * (len(ordered) - 1)
    low = place.astype(int)
    above = ordered[np.minimum(low + 1, len(ordered) - 1)]
    values: np.ndarray = ordered[low] + (place - low) * (above - ordered[low])
    return values


def in_bins(ordered: np.ndarray, edges: np.ndarray, side: Literal["left", "right"]) -> np.ndarray:
    """Return the number of ordered numbers in each bin between the edges. With `side` "right" an edge ends its bin."""
    return np.diff(np.concatenate([[0], np.searchsorted(ordered, edges, side), [len(ordered)]]))


def population_stability(
    counts: Counts, alpha: float = 0.05, alike: Sequence[float] = Alike(), seed: int = 0, noise: Noise | None = None
) -> Psi:
    """Return the population stability index of counts, and the limit that it exceeds in a share `alpha` without drift.

    PSI is the sum over the bins of (q - p) ln(q / p). The rule of thumb, below 0.1 stable, above 0.25 changed, ignores
    the number of rows. Without drift PSI is about (1/n + 1/m) times a chi-square of K - 1 degrees (Yurdakul and
    Naranjo, 2020), which gives the limit; below 200 rows we permute. Each permutation of a small reference has its own
    deciles. If rows are not independent, `alike` (as in `kolmogorov_smirnov`) or `noise` replaces this. Half a row is
    added to every bin that has one, so no share is 0. Raises ValueError for `alpha` or `seed`.

    >>> round(population_stability(Counts(np.full(10, 100), np.arange(55, 155, 10))).value, 3)
    0.086
    """
    alpha, seed = number("alpha", alpha, 0, 1, ends=False), number("seed", seed, 0, whole=True)
    n, m = counts.sizes
    value, alike = float(_psi(counts.reference, counts.current)), _checked(alike)
    if (degrees := int((counts.reference + counts.current > 0).sum()) - 1) < 1:
        return Psi(0.0, 0.0, 1.0)
    if noise or min(n, m) >= PERMUTE_BELOW or max(alike[:2]) > 1:
        noise = noise or Noise(alike.reference / n + alike.current / m, degrees, alike.freedom)
        return Psi(value, noise.limit(alpha), noise.p_value(value), noise.scale * noise.degrees)
    if counts.values and n < PERMUTE_BELOW:
        before, now = p_values.redrawn(*counts.values, LEVELS, PERMUTATIONS, seed)
    else:
        pooled = counts.reference + counts.current
        now = np.random.default_rng(seed).multivariate_hypergeometric(pooled, m, PERMUTATIONS, method="marginals")
        before = pooled - now
    clean = np.sort(_psi(before, now))
    rank = int(np.ceil((1 - alpha) * (PERMUTATIONS + 1)))
    p_value = (1 + (clean >= value - 1e-12).sum()) / (PERMUTATIONS + 1)
    return Psi(value, float(clean[min(rank, PERMUTATIONS) - 1]), float(p_value), float(clean.mean()))


def _psi(reference: np.ndarray, current: np.ndarray) -> np.ndarray:
    """Return the index of counts (..., K). Bins without any row in either window do not count."""
    filled = reference + current > 0
    smoothed = [counts + 0.5 * filled for counts in (reference, current)]
    p, q = (counts / counts.sum(axis=-1, keepdims=True) for counts in smoothed)
    index: np.ndarray = ((q - p) * np.log(np.divide(q, p, out=np.ones_like(q), where=filled))).sum(axis=-1)
    return index


def jensen_shannon(counts: Counts) -> float:
    """Return the Jensen-Shannon distance, 0 (the same shares) to 1 (nothing in common): Endres and Schindelin, 2003.

    >>> jensen_shannon(Counts(np.array([5, 0]), np.array([0, 5])))
    1.0
    """
    p, q = counts.reference / counts.reference.sum(), counts.current / counts.current.sum()
    middle = (p + q) / 2
    entropies = [special.rel_entr(share / share.sum(), middle / middle.sum()).sum() for share in (p, q)]
    divergence = sum(entropies) / (2 * np.log(2))
    return float(np.sqrt(max(0.0, divergence)))
