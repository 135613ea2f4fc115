"""Test all features together. Finds changes that no single column shows, such as two features that stop being correlated."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special

from labsupport.arguments import number, shown
from labsupport.drift.grouped import Codes, exchangeable, renumbered
from labsupport.drift.p_values import permuted
from labsupport.tabular import LARGEST, TooFewRows, codes_of, float_column, shape_of, table

COLUMNS = 100  # that `correlations` is asked about at most: all pairs of more take too long
ROWS = 500  # of each window, evenly spaced: pairs of rows cost memory and time
CLASSIFIER_ROWS = 5_000  # of each window
Groups = Sequence[Any] | None  # a pair of labels: of each row of the reference, and of the current sample
PAIR = "give a pair of labels, one for each row of the reference, and of the current sample"
PARTS = 16  # of a square of distances, each of which fits into a core's cache


@dataclass(frozen=True)
class Together:
    """The result of a test of all features together, on `rows` rows of each window.

    `statistic` is defined by the test's function. `leading` are the features that changed most, if the test can tell.
    """

    test: str
    statistic: float
    p_value: float
    rows: tuple[int, int]
    leading: tuple[str, ...] = ()


def mmd(reference: Any, current: Any, permutations: int = 999, seed: int = 0, groups: Groups = None) -> Together:
    """Test two samples of vectors, (N, D) and (M, D), by the maximum mean discrepancy: embeddings, or rows of numbers.

    Two distributions are the same exactly if their mean embeddings in the kernel's space are (Gretton and others,
    2012). The kernel is Gaussian, and its width is the median distance. The p-value is by permutation, so it is valid
    for any N and M if rows are independent. If rows come in groups, `groups` are their labels, (N,) and (M,), and whole
    groups are permuted. Uses up to `ROWS` evenly spaced rows of each. Raises ValueError for samples of different width
    or with values that are not finite, and `TooFewRows` for fewer than two rows.

    >>> random = np.random.default_rng(0)
    >>> mmd(random.normal(size=(100, 8)), random.normal(0.5, 1, size=(100, 8))).p_value
    0.001
    """
    x, y, codes = _samples(reference, current, 2, groups)
    permutations, seed = _checked(permutations, seed)
    squared = _squared_distances(both := np.vstack([x, y]))
    kernel = np.exp(-squared / (np.median(squared[np.triu_indices(len(both), 1)]) or 1.0))

    def draw(member: np.ndarray) -> np.ndarray:
        signs = np.where(member, 1 / member.sum(axis=1, keepdims=True), -1 / (~member).sum(axis=1, keepdims=True))
        distances: np.ndarray = ((signs @ kernel) * signs).sum(axis=1)
        return distances

    value = float(draw(_first(x, y))[0])
    p_value = permuted(value, draw, exchangeable(x, y, codes), permutations, seed)
    return Together("MMD", value, p_value, (len(x), len(y)))


def _squared_distances(rows: np.ndarray) -> np.ndarray:
    """Return the squared distance of each row to each, (N, N), of a table (N, D)."""
    squared = np.zeros((len(rows), len(rows)))
    for part, columns in zip(*(np.array_split(whole, PARTS) for whole in (squared, rows)), strict=True):
        for column, every in zip(columns.T, rows.T, strict=True):
            part += (column[:, np.newaxis] - every) ** 2
    return squared


def correlations(
    reference: Any,
    current: Any,
    names: list[str] | None = None,
    permutations: int = 999,
    seed: int = 0,
    groups: Groups = None,
) -> Together:
    """Test whether the correlation of any two columns changed, between tables of finite numbers, (N, D) and (M, D).

    The statistic is the largest change, over all pairs, of Fisher's z = artanh(r). Its p-value is by permutation, of
    whole groups if there are `groups` as in `mmd`. Such a change leaves every single column unchanged. Uses up to
    `ROWS` evenly spaced rows of each. `leading` names the two columns; columns of one name, such as the classes of one
    feature, are not paired. Raises ValueError as `mmd` does, and for fewer than two names; `TooFewRows` for fewer than
    four rows.

    >>> random = np.random.default_rng(0)
    >>> clean, turned = random.normal(size=(2, 150, 2))
    >>> turned[:, 1] = 0.6 * turned[:, 0] + 0.8 * turned[:, 1]  # correlated now, each column's distribution as it was
    >>> result = correlations(clean, turned, ["size", "price"])
    >>> round(result.statistic, 2), result.p_value, result.leading
    (0.51, 0.001, ('size', 'price'))
    """
    x, y, codes = _samples(reference, current, 4, groups)
    permutations, seed = _checked(permutations, seed)
    names = _names(names, x.shape[1])
    first, second = np.triu_indices(len(names), 1)
    apart = np.array([names[i] != names[j] for i, j in zip(first, second, strict=True)], bool)
    pairs = first[apart], second[apart]
    if not len(pairs[0]):
        raise ValueError("two columns of different names are needed, for one has no correlation")
    both = np.vstack([x, y])
    both = (both - both.mean(axis=0)) / np.where(both.std(axis=0) > 0, both.std(axis=0), 1.0)
    products = both[:, pairs[0]] * both[:, pairs[1]]

    def changes(member: np.ndarray) -> np.ndarray:
        """(P, pairs), of P ways to say which rows are of the first sample."""
        samples = member.astype(float), (~member).astype(float)
        before, now = (_fisher(sample, both, products, pairs) for sample in samples)
        difference: np.ndarray = np.abs(before - now)
        return difference

    (change,) = changes(_first(x, y))
    value = float(change.max())
    units = exchangeable(x, y, codes)
    p_value = permuted(value, lambda member: changes(member).max(axis=1), units, permutations, seed)
    leading = tuple(names[side[change.argmax()]] for side in pairs)
    return Together("correlations", value, p_value, (len(x), len(y)), leading)


def _fisher(chosen: np.ndarray, rows: np.ndarray, products: np.ndarray, pairs: tuple[np.ndarray, ...]) -> np.ndarray:
    """Return Fisher's z of the pairs' correlations, (P, pairs), over the rows chosen (P, N); 0 for a constant column."""
    count = chosen.sum(axis=1, keepdims=True)
    mean, square = chosen @ rows / count, chosen @ rows**2 / count
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    unit = np.where(deviation > 1e-6, deviation, np.inf)
    covariance = chosen @ products / count - mean[:, pairs[0]] * mean[:, pairs[1]]
    correlation = covariance / unit[:, pairs[0]] / unit[:, pairs[1]]
    z: np.ndarray = np.arctanh(np.clip(correlation, -0.9999, 0.9999))
    return z


def _first(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return truth values, (1, N + M): is each row of both samples from the first one?"""
    return (np.arange(len(x) + len(y)) < len(x))[np.newaxis]


def _samples(
    reference: Any, current: Any, fewest: int, groups: Groups, most: int = ROWS
) -> tuple[np.ndarray, np.ndarray, Codes | None]:
    """Return both tables as arrays of at most `most` evenly spaced rows, and the numbers of their groups."""
    x, y = (_numbers(name, sample) for name, sample in (("reference", reference), ("current", current)))
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"two tables of equal width are needed, not {x.shape} and {y.shape}")
    if min(len(x), len(y)) < fewest:
        raise TooFewRows(f"two tables of equal width, {fewest} rows at least, are needed, not {x.shape} and {y.shape}")
    if not all((np.abs(sample) <= LARGEST).all() for sample in (x, y)):  # False for NaN
        raise ValueError(f"give finite numbers of at most {LARGEST:g}: fill in or leave out the rows with other values")
    codes = None
    if groups is not None:
        if not isinstance(groups, Sequence) or len(groups) != 2:
            raise ValueError(f"groups={shown(groups)}: {PAIR}")
        codes = _codes(groups[0], len(x), most), _codes(groups[1], len(y), most)
    return evenly(x, most), evenly(y, most), codes


def _codes(labels: Any, rows: int, most: int) -> np.ndarray:
    """Return the numbers of the groups of at most `most` evenly spaced rows. Raises ValueError."""
    frame = table(labels, "groups")
    if frame.shape != (rows, 1):
        raise ValueError(f"groups: labels of shape {frame.shape} for {rows} rows: {PAIR}")
    if gone := int(frame.iloc[:, 0].isna().sum()):
        raise ValueError(f"groups: {gone} of {rows} labels are missing: {PAIR}")
    return np.unique(evenly(codes_of(frame.iloc[:, 0]), most), return_inverse=True)[1]


def _numbers(name: str, sample: Any) -> np.ndarray:
    """Return a table of numbers as an array (N, D), with NaN for missing ones. Raises ValueError."""
    if isinstance(sample, np.ndarray) and sample.ndim == 2 and sample.dtype == float and type(sample) is np.ndarray:
        return sample
    try:
        frame = table(sample, name)
        shape = frame.shape if isinstance(sample, Mapping) else getattr(sample, "shape", None) or shape_of(sample)
        if len(shape) != 2:
            raise ValueError(f"it is of shape {shape}")
        columns = [float_column(f"column {column}", frame.iloc[:, place]) for place, column in enumerate(frame)]
        return np.column_stack(columns).astype(float) if columns else np.empty(frame.shape)
    except ValueError as error:
        raise ValueError(f"{name}: two tables of equal width, of numbers, are needed: {error}") from None


def _checked(permutations: int, seed: int) -> tuple[int, int]:
    return number("permutations", permutations, 1, whole=True), number("seed", seed, 0, whole=True)


def _names(names: list[str] | None, width: int) -> list[str]:
    if not isinstance(names, Sequence | None) or isinstance(names, str):
        raise ValueError(f"names={shown(names)}: give a list of {width} names")
    names = [str(place) for place in range(width)] if names is None else list(map(str, names))
    if len(names) != width:
        raise ValueError(f"{len(names)} names for {width} columns: give one for each")
    return names


def domain_classifier(
    reference: Any,
    current: Any,
    names: list[str] | None = None,
    seed: int = 0,
    groups: Groups = None,
    permutations: int = 999,
) -> Together:
    """Test whether a classifier can tell the window that a row is from. Takes finite numbers, (N, D) and (M, D).

    The statistic is the share of rows that it attributes to the right window. A random forest learns on one half of the
    rows and is tested on the other, which has as many rows of each window. Guessing is right half the time, so the
    p-value is a binomial one (Lopez-Paz and Oquab, 2017). It needs more rows than `mmd`, and names the features it used
    most. With `groups` as in `mmd` it learns on half of the groups, the p-value comes from `permutations` of the
    others, and the share is the mean of both windows'. Uses up to `CLASSIFIER_ROWS` evenly spaced rows of each. Raises
    ValueError as `mmd` does, and `TooFewRows` for fewer than 20 rows, or than 4 groups.

    >>> random = np.random.default_rng(0)
    >>> result = domain_classifier(random.normal(size=(300, 3)), random.normal([0, 1, 0], size=(300, 3)))
    >>> result.p_value < 0.001, result.leading[0]
    (True, '1')
    """
    from sklearn.ensemble import RandomForestClassifier

    x, y, codes = _samples(reference, current, 20, groups, CLASSIFIER_ROWS)
    permutations, seed = _checked(permutations, seed)
    names = _names(names, x.shape[1])
    rows = min(len(x), len(y))
    whose = np.repeat([0, 1], rows)
    both = np.vstack([evenly(x, rows), evenly(y, rows)])
    codes = None if codes is None else (evenly(codes[0], rows), evenly(codes[1], rows))
    learn = _half(rows, codes, np.random.default_rng(seed))
    forest = RandomForestClassifier(200, min_samples_leaf=5, random_state=seed).fit(both[learn], whose[learn])
    right = forest.predict(both[~learn]) == whose[~learn]
    telling = np.argsort(-forest.feature_importances_)
    leading = tuple(names[place] for place in telling[:3])
    if codes is None:
        from scipy import stats

        p_value = stats.binomtest(int(right.sum()), len(right), 0.5, alternative="greater").pvalue
        return Together("domain classifier", int(right.sum()) / len(right), float(p_value), (rows, rows), leading)
    share, p_value = _told_apart(right, whose[~learn], renumbered(codes, ~learn), permutations, seed)
    return Together("domain classifier", share, p_value, (rows, rows), leading)


def _half(rows: int, codes: Codes | None, random: np.random.Generator) -> np.ndarray:
    """Return which rows of both windows the classifier learns on, as truth values: half of the rows, or of the groups."""
    if codes is None:
        return np.isin(np.arange(2 * rows) % rows, random.permutation(rows)[: rows // 2])
    parts = []
    for of_row in codes:
        labels = np.unique(of_row)
        if len(labels) < 4:
            raise TooFewRows(f"{len(labels)} groups in a window: at least 4 are needed")
        parts.append(np.isin(of_row, random.permutation(labels)[: len(labels) // 2]))
    return np.concatenate(parts)


def _told_apart(
    right: np.ndarray, whose: np.ndarray, codes: Codes, permutations: int, seed: int
) -> tuple[float, float]:
    """Return the mean of both windows' shares of right answers, and its p-value by permuting whole groups."""
    says = np.where(right, whose, 1 - whose)

    def share(member: np.ndarray) -> np.ndarray:
        both = [(rows * (says == side)).sum(axis=1) / rows.sum(axis=1) for side, rows in enumerate((member, ~member))]
        mean: np.ndarray = (both[0] + both[1]) / 2
        return mean

    value = float(share((whose == 0)[np.newaxis])[0])
    return value, permuted(value, share, exchangeable(codes[0], codes[1], codes), permutations, seed)


def evenly(rows: np.ndarray, most: int) -> np.ndarray:
    """Return at most `most` of the rows, evenly spaced."""
    if len(rows) > most:
        rows = rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]
    return rows


def scores(reference: np.ndarray, current: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two columns as normal scores of their common ranks, 0 for missing values, so that no unit or outlier
    matters.
    """
    both = np.concatenate([reference, current])
    known = np.isfinite(both)
    values = np.zeros(len(both))
    values[known] = special.ndtri((_ranks(both[known]) - 0.5) / max(1, known.sum()))
    return values[: len(reference)], values[len(reference) :]


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks of numbers, 1 for the smallest; equal ones share the mean of theirs.

    >>> _ranks(np.array([5.0, 2.0, 5.0]))
    array([2.5, 1. , 2.5])
    """
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (np.cumsum(count) - (count - 1) / 2)[place]
    return ranks
