"""All features together: a change that no single column shows, as when two of them stop going along with each other."""

from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.spatial.distance import cdist

COLUMNS = 100  # that `correlations` is asked about at most: all pairs of more take too long
ROWS = 500  # of each window, evenly spaced: pairs of rows cost memory and time
CLASSIFIER_ROWS = 5_000  # of each window
ENOUGH, CHUNK = 20, 50  # permutations that reach the value, before we stop; that are drawn at a time


@dataclass(frozen=True)
class Together:
    """What a test of all features at once says.

    `statistic` is what the test's function says; `rows` how many it looked at in each window; `leading` the features in
    which it shows most, where the test can tell.
    """

    test: str
    statistic: float
    p_value: float
    rows: tuple[int, int]
    leading: tuple[str, ...] = ()


def mmd(reference: np.ndarray, current: np.ndarray, permutations: int = 999, seed: int = 0) -> Together:
    """The maximum mean discrepancy of two samples of vectors, (N, D) and (M, D): embeddings, or rows of numbers.

    Two distributions are the same exactly if their mean embeddings in the kernel's space are (Gretton and others, 2012).
    Gaussian kernel, its width the median distance; the p-value by permutation, so it is valid for any N and M as long as
    rows are independent. Looks at up to `ROWS` evenly spaced rows of each. Raises ValueError for samples that do not fit
    together, hold no two rows or hold what is not finite.

    >>> random = np.random.default_rng(0)
    >>> mmd(random.normal(size=(100, 8)), random.normal(0.5, 1, size=(100, 8))).p_value
    0.001
    """
    x, y = _samples(reference, current, fewest=2)
    squared = cdist(both := np.vstack([x, y]), both, "sqeuclidean")
    kernel = np.exp(-squared / (np.median(squared[np.triu_indices(len(both), 1)]) or 1.0))
    signs = np.where(np.arange(len(both)) < len(x), 1 / len(x), -1 / len(y))

    def draw(orders: np.ndarray) -> np.ndarray:
        shuffled = signs[orders]
        return ((shuffled @ kernel) * shuffled).sum(axis=1)

    value = float(signs @ kernel @ signs)
    return Together("MMD", value, _permuted(value, draw, len(both), permutations, seed), (len(x), len(y)))


def correlations(
    reference: np.ndarray, current: np.ndarray, names: list[str] | None = None, permutations: int = 999, seed: int = 0
) -> Together:
    """Has any two columns' correlation changed? Of two tables of finite numbers, (N, D) and (M, D).

    The statistic is the largest change, over all pairs, of Fisher's z = artanh(r); its p-value by permutation. Such a
    change leaves every single column as it was. Looks at up to `ROWS` evenly spaced rows of each. `leading` names the
    two columns; columns of one name, such as the classes of one feature, are not paired. Raises ValueError as `mmd` does,
    for fewer than four rows, and for fewer than two names.

    >>> random = np.random.default_rng(0)
    >>> clean, turned = random.normal(size=(2, 150, 2))
    >>> turned[:, 1] = 0.6 * turned[:, 0] + 0.8 * turned[:, 1]  # correlated now, each column's distribution as it was
    >>> result = correlations(clean, turned, ["size", "price"])
    >>> round(result.statistic, 2), result.p_value, result.leading
    (0.51, 0.001, ('size', 'price'))
    """
    x, y = _samples(reference, current, fewest=4)
    names = names or [str(number) for number in range(x.shape[1])]
    first, second = np.triu_indices(len(names), 1)
    apart = np.array([names[i] != names[j] for i, j in zip(first, second, strict=True)], bool)
    pairs = first[apart], second[apart]
    if not len(pairs[0]):
        raise ValueError("two columns of different names are needed, for one has no correlation")
    both = np.vstack([x, y])
    both = (both - both.mean(axis=0)) / np.where(both.std(axis=0) > 0, both.std(axis=0), 1.0)
    products = both[:, pairs[0]] * both[:, pairs[1]]

    def changes(orders: np.ndarray) -> np.ndarray:
        """(P, pairs), of P orders of the rows, of which the first len(x) make the one sample and the others the other."""
        first, second = (orders < len(x)).astype(float), (orders >= len(x)).astype(float)
        return np.abs(_fisher(first, both, products, pairs) - _fisher(second, both, products, pairs))

    (found,) = changes(np.arange(len(both))[np.newaxis])
    p_value = _permuted(float(found.max()), lambda orders: changes(orders).max(axis=1), len(both), permutations, seed)
    leading = tuple(names[side[found.argmax()]] for side in pairs)
    return Together("correlations", float(found.max()), p_value, (len(x), len(y)), leading)


def _fisher(chosen: np.ndarray, rows: np.ndarray, products: np.ndarray, pairs: tuple[np.ndarray, ...]) -> np.ndarray:
    """Fisher's z of the pairs' correlations, (P, pairs), over the rows chosen (P, N); a constant column's are 0."""
    count = chosen.sum(axis=1, keepdims=True)
    mean, square = chosen @ rows / count, chosen @ rows**2 / count
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    unit = np.where(deviation > 1e-6, deviation, np.inf)
    covariance = chosen @ products / count - mean[:, pairs[0]] * mean[:, pairs[1]]
    return np.arctanh(np.clip(covariance / unit[:, pairs[0]] / unit[:, pairs[1]], -0.9999, 0.9999))


def _permuted(value: float, draw, rows: int, permutations: int, seed: int) -> float:
    """The share of permutations that give `value` or more; we stop at the 20th of those (Besag and Clifford, 1991)."""
    random, seen, reached = np.random.default_rng(seed), 0, 0
    while seen < permutations:
        orders = random.permuted(np.tile(np.arange(rows), (min(CHUNK, permutations - seen), 1)), axis=1)
        beyond = np.flatnonzero(draw(orders) >= value - 1e-12)
        if reached + len(beyond) >= ENOUGH:
            return float(ENOUGH / (seen + beyond[ENOUGH - reached - 1] + 1))
        seen, reached = seen + len(orders), reached + len(beyond)
    return float((reached + 1) / (permutations + 1))


def _samples(reference, current, fewest: int, most: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    x, y = (evenly(np.atleast_1d(np.asarray(sample, float)), most) for sample in (reference, current))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < fewest:
        raise ValueError(f"two tables of equal width, {fewest} rows at least, are needed, not {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("every number must be finite: fill in or leave out the rows with missing values")
    return x, y


def domain_classifier(reference, current, names: list[str] | None = None, seed: int = 0) -> Together:
    """Can a classifier tell which window a row is from? Two tables of finite numbers, (N, D) and (M, D).

    The statistic is the share of rows that it attributes to the right window. A random forest learns on one half of the
    rows and is asked about the other, where as many are of one window as of the other; guessing is right half the time,
    so the p-value is a binomial one (Lopez-Paz and Oquab, 2017). It needs more rows than `mmd`, and says which features
    it went by. Looks at up to `CLASSIFIER_ROWS` evenly spaced rows of each. Raises ValueError as `mmd` does, and for
    fewer than 20 rows.

    >>> random = np.random.default_rng(0)
    >>> result = domain_classifier(random.normal(size=(300, 3)), random.normal([0, 1, 0], size=(300, 3)))
    >>> result.p_value < 0.001, result.leading[0]
    (True, '1')
    """
    from sklearn.ensemble import RandomForestClassifier

    samples = _samples(reference, current, 20, CLASSIFIER_ROWS)
    rows = min(map(len, samples))
    x = np.vstack([evenly(sample, rows) for sample in samples])
    y = np.repeat([0, 1], rows)
    order = np.random.default_rng(seed).permutation(rows)
    learn = np.isin(np.arange(2 * rows) % rows, order[: rows // 2])
    forest = RandomForestClassifier(200, min_samples_leaf=5, random_state=seed).fit(x[learn], y[learn])
    right = int((forest.predict(x[~learn]) == y[~learn]).sum())
    asked = int((~learn).sum())
    telling = np.argsort(-forest.feature_importances_)
    names = names or [str(number) for number in range(x.shape[1])]
    p_value = stats.binomtest(right, asked, 0.5, alternative="greater").pvalue
    leading = tuple(names[number] for number in telling[:3])
    return Together("domain classifier", right / asked, float(p_value), (rows, rows), leading)


def evenly(rows: np.ndarray, most: int) -> np.ndarray:
    """At most `most` of the rows, evenly spaced."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).round().astype(int)]


def scores(reference: np.ndarray, current: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two columns of numbers as normal scores of their common ranks, missing ones as 0: no unit and no outlier counts."""
    both = np.concatenate([reference, current])
    known = np.isfinite(both)
    values = np.zeros(len(both))
    values[known] = stats.norm.ppf((stats.rankdata(both[known]) - 0.5) / max(1, known.sum()))
    return values[: len(reference)], values[len(reference) :]
