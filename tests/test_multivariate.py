"""All features together: statistics beside their definitions written out, false alarms and power by simulation."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.spatial.distance import cdist

from labsupport.drift import multivariate, p_values

TESTS = {
    "mmd": lambda x, y, seed: multivariate.mmd(x, y, 199, seed),
    "correlations": lambda x, y, seed: multivariate.correlations(x, y, None, 199, seed),
}


def correlated(random, rows: int, rho: float, columns: int = 2) -> np.ndarray:
    """Normal columns, each standard, every pair of them correlated by rho."""
    common = random.normal(size=(rows, 1))
    return math.sqrt(rho) * common + math.sqrt(1 - rho) * random.normal(size=(rows, columns))


def kernel(a, b, width: float) -> float:
    return math.exp(-sum((i - j) ** 2 for i, j in zip(a, b, strict=True)) / width)


def naive_mmd(x, y) -> float:
    both = [*x, *y]
    width = np.median([sum((a - b) ** 2) for i, a in enumerate(both) for b in both[:i]])
    within = [sum(kernel(a, b, width) for a in side for b in side) / len(side) ** 2 for side in (x, y)]
    return sum(within) - 2 * sum(kernel(a, b, width) for a in x for b in y) / (len(x) * len(y))


@pytest.mark.parametrize(("n", "m"), [(20, 20), (7, 30)])
def test_mmd_is_its_definition(n, m):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(n, 3)), random.normal(0.5, 1, size=(m, 3))
    assert multivariate.mmd(x, y, permutations=1).statistic == pytest.approx(naive_mmd(x, y), abs=1e-12)


def test_correlations_are_numpys():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(40, 4)), correlated(random, 70, 0.5, 4)
    x[:, 3], y[:, 2] = 5.0, 2 * y[:, 1] + 7  # one column is constant, two are as good as one
    changes = {}
    for i in range(4):
        for j in range(i):
            sides = [0.0 if 3 in (i, j) and side is x else np.corrcoef(side[:, i], side[:, j])[0, 1] for side in (x, y)]
            first, second = (math.atanh(min(r, 0.9999)) for r in sides)
            changes[f"{j}{i}"] = abs(first - second)
    found = multivariate.correlations(x, y, permutations=1)
    assert found.statistic == pytest.approx(max(changes.values()), abs=1e-9)
    assert "".join(found.leading) == max(changes, key=changes.get)


def test_columns_of_one_name_are_not_paired():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 200, 3))
    y[:, 1] = y[:, 0]
    assert multivariate.correlations(x, y, ["a", "b", "c"]).leading == ("a", "b")
    assert multivariate.correlations(x, y, ["a", "a", "c"]).p_value > 0.01


@pytest.mark.parametrize("name", TESTS)
def test_p_values_by_permutation_are_valid_at_every_level(name):
    """Of clean pairs a share of at most p has a p-value of at most p: within three binomial standard errors."""
    runs, found = 300, []
    for seed in range(runs):
        random = np.random.default_rng([seed, 1])
        found.append(TESTS[name](correlated(random, 40, 0.7, 3), correlated(random, 25, 0.7, 3), seed).p_value)
    for level in (0.05, 0.1, 0.25, 0.5):
        assert np.mean(np.array(found) <= level) <= level + 3 * math.sqrt(level * (1 - level) / runs)
    assert np.mean(np.array(found) <= 0.5) > 0.35  # and not because they never are small


def test_stopping_early_leaves_the_p_value_valid():
    """With a statistic that is uniform under the null, the share of p-values up to each level is at most that level."""
    runs, found = 2000, []
    random = np.random.default_rng(0)
    for seed in range(runs):
        draw = lambda orders: random.random(len(orders))  # noqa: E731
        found.append(p_values.permuted(random.random(), draw, (np.arange(4), 2), 199, seed))
    for level in (0.02, 0.05, 0.1, 0.3, 0.7):
        assert np.mean(np.array(found) <= level) <= level + 3 * math.sqrt(level * (1 - level) / runs)
        assert np.mean(np.array(found) <= level) >= level - 0.01 - 3 * math.sqrt(level * (1 - level) / runs)


def test_a_clear_case_uses_every_permutation_and_a_clean_one_stops():
    asked = []

    def draw(orders):
        asked.append(len(orders))
        return np.zeros(len(orders))

    assert p_values.permuted(1.0, draw, (np.arange(4), 2), 999, 0) == 1 / 1000
    assert sum(asked) == 999
    asked.clear()
    assert p_values.permuted(0.0, draw, (np.arange(4), 2), 999, 0) == 1.0
    assert sum(asked) == p_values.CHUNK


def test_a_shift_of_embeddings_is_found():
    random = np.random.default_rng(0)
    clean, moved = random.normal(size=(200, 64)), random.normal(0.2, 1, size=(150, 64))
    assert multivariate.mmd(clean, moved).p_value == 0.001


def test_the_classifier_holds_its_level_and_finds_what_changed():
    runs, alarms, found = 10, 0, 0
    for seed in range(runs):
        random = np.random.default_rng([seed, 2])
        clean, more, turned = correlated(random, 150, 0.3), correlated(random, 150, 0.3), correlated(random, 150, 0.95)
        alarms += multivariate.domain_classifier(clean, more, seed=seed).p_value <= 0.05
        found += multivariate.domain_classifier(clean, turned, seed=seed).p_value <= 0.05 if seed < 3 else 0
    assert stats.binom.sf(alarms - 1, runs, 0.05) > 0.001
    assert found == 3


def test_the_classifier_names_what_it_went_by_and_counts_what_it_asked():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(400, 4)), random.normal([0, 0, 1.5, 0], 1, size=(90, 4))
    found = multivariate.domain_classifier(x, y, ["a", "b", "c", "d"])
    assert found.leading[0] == "c"
    assert found.rows == (90, 90)
    right = round(found.statistic * 90)  # the half of each window that it did not learn on
    assert found.p_value == pytest.approx(stats.binom.sf(right - 1, 90, 0.5))


@pytest.mark.parametrize("test", [multivariate.mmd, multivariate.correlations, multivariate.domain_classifier])
def test_what_does_not_fit_together_is_refused(test):
    good = np.random.default_rng(0).normal(size=(30, 2))
    holes = np.where(good > 1.5, np.nan, good)
    for bad in (good[:, :1], good[:1], good[0], good[np.newaxis], 3.0, np.zeros((0, 2))):
        with pytest.raises(ValueError, match="two tables of equal width"):
            test(good, bad)
    for bad in (holes, np.where(good > 1.5, np.inf, good)):
        with pytest.raises(ValueError, match=r"finite numbers of at most 1e\+150"):
            test(bad, good)

    for wrong in (good + 1j, good.astype("M8[s]"), good.astype("m8[ns]"), good.astype(str)):
        with pytest.raises(
            ValueError, match=r"reference: two tables .* of numbers, are needed: column 0: .* is no number"
        ):
            test(wrong, good)


@pytest.mark.parametrize("test", [multivariate.mmd, multivariate.correlations, multivariate.domain_classifier])
@pytest.mark.parametrize(
    "groups", [3, (1, 2), (None, None), ([None] * 30, range(30)), ([math.nan] * 30, range(30)), ["a"]]
)
def test_groups_that_are_none_are_refused(test, groups):
    rows = np.random.default_rng(0).normal(size=(30, 2))
    with pytest.raises(ValueError, match=r"^groups"):
        test(rows, rows, groups=groups)


@pytest.mark.parametrize("names", [3, "ab", {"a": 1, "b": 2}])
def test_names_that_are_none_are_refused(names):
    rows = np.random.default_rng(0).normal(size=(30, 2))
    with pytest.raises(ValueError, match=r"^names=.*: give a list of 2 names"):
        multivariate.correlations(rows, rows, names)


def test_one_column_has_no_correlation():
    column = np.random.default_rng(0).normal(size=(30, 1))
    with pytest.raises(ValueError, match="two columns"):
        multivariate.correlations(column, column)


def test_large_samples_are_looked_at_in_part_and_evenly():
    rows = np.arange(10_000).reshape(-1, 1)
    some = multivariate.evenly(rows, 500).ravel()
    assert len(some) == 500
    assert (some[0], some[-1]) == (0, 9999)
    assert set(np.diff(some)) <= {20, 21}
    random = np.random.default_rng(0)
    assert multivariate.mmd(random.normal(size=(3000, 2)), random.normal(size=(70, 2)), 1).rows == (500, 70)


def test_scores_are_normal_and_know_no_unit():
    random = np.random.default_rng(0)
    x, y = random.lognormal(size=500), random.lognormal(size=300)
    x[:5] = np.nan
    first, second = multivariate.scores(x, y)
    again = multivariate.scores(np.exp(x / 10), np.exp(y / 10))
    assert np.array_equal(first, again[0])
    assert np.array_equal(second, again[1])
    assert (first[:5] == 0).all()
    known = np.concatenate([first[5:], second])
    assert stats.kstest(known, "norm").pvalue > 0.99
    empty = np.full(3, np.nan)
    assert np.array_equal(multivariate.scores(empty, empty)[0], np.zeros(3))


@pytest.mark.parametrize("shape", [(1, 1), (15, 3), (130, 7), (17, 0)])
def test_squared_distances_are_scipys(shape):
    rows = np.random.default_rng(0).normal(size=shape)
    expected = ((rows[:, np.newaxis] - rows) ** 2).sum(axis=2) if not rows.size else cdist(rows, rows, "sqeuclidean")
    assert multivariate._squared_distances(rows) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_normal_scores_are_scipys():
    random = np.random.default_rng(0)
    for before, now in random.normal(size=(5, 2, 60)).round(1):
        before[:3] = np.nan
        both = np.concatenate([before[3:], now])
        expected = stats.norm.ppf((stats.rankdata(both) - 0.5) / len(both))
        first, second = multivariate.scores(before, now)
        assert np.array_equal(first[:3], np.zeros(3))
        assert np.concatenate([first[3:], second]) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("test", [multivariate.mmd, multivariate.correlations])
def test_numbers_whose_squares_overflow_are_refused_and_smaller_ones_are_not(test):
    rows = np.random.default_rng(0).normal(size=(2, 40, 3)).clip(-3, 3)
    small, large = test(*rows), test(*(rows * 1e149))
    assert large.p_value == small.p_value > 0.01
    for factor in (1e160, -1e300):
        with pytest.raises(ValueError, match=r"finite numbers of at most 1e\+150"):
            test(rows[0], rows[1] * factor)


def test_a_statistic_that_is_no_number_has_no_p_value():
    with pytest.raises(ValueError, match="the statistic of these samples is not a number"):
        p_values.permuted(math.nan, lambda member: np.zeros(len(member)), (np.arange(20), 10), 99, 0)
