"""Compute the number of rows that carry as much information as one independent row, and find repeated rows."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from labsupport.arguments import number, shown
from labsupport.tabular import FEW_VALUES

LOOKED_AT = 20_000  # rows that are enough to see whether neighbours are alike


class Alike(NamedTuple):
    """The number of rows that carry as much information as one independent row, for each window.

    `freedom`: the degrees of freedom with which these numbers were estimated; infinite if they are known.
    """

    reference: float = 1.0
    current: float = 1.0
    freedom: float = np.inf


def _checked(alike: Sequence[float]) -> Alike:
    """Return `Alike` of two numbers of 1 or more, and optionally degrees of freedom above 0. Raises ValueError."""
    if type(alike) is Alike:
        return alike
    if not isinstance(alike, Sequence) or not 2 <= len(alike) <= 3 or isinstance(alike, str):
        raise ValueError(f"alike={shown(alike)}: give two numbers: how many rows of each window count as one")
    before, now = (number("alike", value, 1) for value in alike[:2])
    freedom = [*alike[2:], np.inf][0]
    return Alike(before, now, freedom if freedom == np.inf else number("alike", freedom, 0, ends=False))


def resemblance(indicators: np.ndarray) -> float:
    """Return the first autocorrelation of truth values, (N,) or (N, K), in standard errors.

    For independent rows it is about standard normal. Of a stream we use the last `LOOKED_AT` rows.

    >>> resemblance(np.tile([True, False], 50)) < -9
    True
    """
    rows = _centred(indicators)
    spread = np.linalg.norm(rows.T @ rows)  # the sum of the lagged products of independent rows has this / sqrt(N)
    return float((rows[1:] * rows[:-1]).sum() / spread * np.sqrt(len(rows))) if len(rows) > 2 and spread else 0.0


def _centred(indicators: np.ndarray) -> np.ndarray:
    """Return the last rows as numbers (N, K) of mean 0."""
    rows: np.ndarray = indicators[-LOOKED_AT:].astype(float)
    rows = rows[:, np.newaxis] if rows.ndim == 1 else rows
    if len(rows):
        rows = rows - rows.mean(axis=0)
    return rows


def inefficiency(indicators: np.ndarray) -> float:
    """Return the number of neighbouring rows that carry as much information as one independent row: at least 1.

    `indicators` are truth values, (N,) or (N, K), in the order of the rows. The result is one plus twice the sum of the
    autocorrelations of the columns together, taken in pairs for as long as these stay positive (Geyer, 1992). It is 1
    unless the first of them is significant (see `resemblance`) at 1 %. We use the truth values whose shares a test
    compares: see `below`.

    >>> numbers = np.random.default_rng(0).normal(size=1000)
    >>> inefficiency(below(numbers)), round(inefficiency(below(numbers.repeat(3))), 1)
    (1.0, 3.2)
    """
    return dependence(indicators)[0]


def dependence(indicators: np.ndarray) -> tuple[float, float]:
    """Return the `inefficiency` and the degrees of freedom with which it is estimated, infinite if it is 1.

    An estimate from N rows and L lags varies about as much as a variance with N / (2 L + 1) degrees (Priestley, 1981).
    """
    if resemblance(indicators) < -special.ndtri(0.01):
        return 1.0, np.inf
    rows = _centred(indicators)
    padded = np.fft.rfft(rows, 2 * len(rows), axis=0)
    correlation = np.fft.irfft((np.abs(padded) ** 2).sum(axis=1))[: len(rows)] / (rows**2).sum()
    pairs = correlation[: len(rows) // 2 * 2].reshape(-1, 2).sum(axis=1)  # of lags 0 and 1, 2 and 3, ...
    ends = np.flatnonzero(pairs <= 0)
    count = int(ends[0]) if len(ends) else len(pairs)
    estimate = float(max(1.0, 2 * pairs[:count].sum() - 1))
    return (estimate, max(1.0, len(rows) / (4 * count - 1))) if estimate > 1 else (1.0, np.inf)


def welch(spreads: np.ndarray, freedoms: Sequence[float]) -> float:
    """Return the degrees of freedom of a sum of variances that were estimated with these (Welch, 1947; Satterthwaite, 1946).

    >>> welch(np.array([1.0, 1.0]), [10, np.inf])
    40.0
    """
    share = (np.asarray(spreads) ** 2 / np.asarray(freedoms)).sum()
    return float(np.sum(spreads) ** 2 / share) if share > 0 else np.inf


def serial(indicators: Sequence[np.ndarray]) -> tuple[Alike, float]:
    """Return how much neighbours resemble each other in both windows, and their resemblance in standard errors."""
    estimates, sizes = [dependence(window) for window in indicators], list(map(len, indicators))
    longer, shorter = (1, 0) if sizes[1] > sizes[0] else (0, 1)
    # what the longer window shows of neighbours holds for the shorter one, too, which may not show it
    if taken := estimates[shorter][0] < estimates[longer][0]:
        estimates[shorter] = estimates[longer]
    spreads = np.array([alike / max(1, size) for (alike, _), size in zip(estimates, sizes, strict=True)])
    freedom = estimates[longer][1] if taken else welch(spreads, [degrees for _, degrees in estimates])
    nearness = max(resemblance(window) for window in indicators)
    return Alike(estimates[0][0], estimates[1][0], freedom), nearness


def below(values: np.ndarray) -> np.ndarray:
    """Return truth values, (N, 3): is each number at or below each quartile? KS compares such shares."""
    truth: np.ndarray = values[:, np.newaxis] <= np.quantile(values, (0.25, 0.5, 0.75))
    return truth


def repeats(values: np.ndarray) -> float:
    """Return the share of distinct numbers that occur more than once among the last rows, as in copied rows.

    It is 0 for numbers on an even grid, such as whole or rounded ones, because they repeat anyway.

    >>> numbers = np.random.default_rng(0).normal(size=300)
    >>> repeats(numbers), repeats(numbers.repeat(2)), repeats(numbers.round(1))
    (0.0, 1.0, 0.0)
    """
    distinct, count = np.unique(values[-LOOKED_AT:], return_counts=True)
    share = float((count > 1).mean()) if len(distinct) > FEW_VALUES else 0.0
    if not share:
        return 0.0
    reach = distinct[-1] - distinct[0]
    steps = np.rint(reach / np.diff(distinct).min())  # of the grid, if it is one
    place = (distinct - distinct[0]) / reach * steps
    return share if (np.abs(place - np.rint(place)) > 0.01).any() else 0.0
