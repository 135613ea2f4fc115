"""One feature: every statistic beside SciPy's, or beside its definition written out; the alarms by simulation."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.spatial import distance as spatial

from labsupport.drift import effective_rows, p_values, univariate
from labsupport.drift.effective_rows import Alike
from labsupport.drift.univariate import Counts

SIZES = [(5, 6), (20, 20), (7, 300), (97, 101), (250, 60), (500, 499), (1000, 1000), (1500, 40), (20_000, 3000)]
DRAWS = {
    "normal": lambda random, size: random.normal(size=size),
    "moved": lambda random, size: random.normal(0.3, 1.2, size=size),
    "ties": lambda random, size: random.normal(size=size).round(1),
    "counts": lambda random, size: random.poisson(4, size=size).astype(float),
    "heavy tails": lambda random, size: random.standard_cauchy(size=size),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize(("n", "m"), SIZES)
def test_ks_and_wasserstein_are_scipys(name, n, m):
    random = np.random.default_rng([n, m])
    reference, current = DRAWS["normal" if name == "moved" else name](random, n), DRAWS[name](random, m)
    method = "exact" if max(n, m) <= p_values.EXACT_TO else "asymp"
    theirs, ours = stats.ks_2samp(reference, current, method=method), univariate.kolmogorov_smirnov(reference, current)
    assert ours.statistic == pytest.approx(theirs.statistic, abs=1e-9)
    assert ours.p_value == pytest.approx(theirs.pvalue, abs=1e-9)
    wasserstein = univariate.distance(reference, current)[1]
    assert wasserstein == pytest.approx(stats.wasserstein_distance(reference, current), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", [*DRAWS, "one value", "two values"])
@pytest.mark.parametrize("block", [1, 3, 50])
def test_the_distance_is_the_same_however_many_rows_are_merged_at_a_time(name, block, monkeypatch):
    draws = {
        **DRAWS,
        "one value": lambda random, size: np.full(size, 7.0),
        "two values": lambda random, size: random.integers(0, 2, size).astype(float),
    }
    monkeypatch.setattr(univariate, "BLOCK", block)
    for n, m in ((1, 1), (2, 90), (90, 2), (150, 151)):
        random = np.random.default_rng([n, m])
        reference, current = draws[name](random, n), draws[name](random, m)
        statistic, wasserstein = univariate.distance(reference, current)
        assert statistic == pytest.approx(stats.ks_2samp(reference, current).statistic, abs=1e-12)
        assert wasserstein == pytest.approx(stats.wasserstein_distance(reference, current), rel=1e-12, abs=1e-12)
        assert univariate.deviation(reference) == pytest.approx(reference.std(), rel=1e-12)


@pytest.mark.parametrize("rows", [1_001, 1_237, 40_003])
def test_the_p_value_of_many_rows_is_scipys_to_the_last_digits(rows):
    for square in (0.5, 2.19, 2.21, 6, 60, 300, 400):
        distance = math.sqrt(square / rows)
        theirs = stats.kstwo.sf(distance, rows)
        window = np.zeros(2 * rows)  # of two windows of 2 n rows, n count
        assert p_values.kolmogorov_smirnov(distance, window, window, Alike()) == pytest.approx(theirs, rel=1e-12, abs=0)


@pytest.mark.parametrize(("n", "m"), [(6, 6), (20, 20), (499, 499), (1000, 1000), (500, 200)])
def test_the_exact_p_value_is_scipys_to_the_last_digit(n, m):
    random = np.random.default_rng(n)
    for shift in (0.0, 0.2, 1.0, 9.0):
        reference, current = random.normal(size=n), random.normal(shift, 1, size=m)
        theirs = stats.ks_2samp(reference, current, method="exact").pvalue
        ours = univariate.kolmogorov_smirnov(reference, current).p_value
        assert ours == (theirs if n == m else pytest.approx(theirs, rel=1e-13, abs=0))


def test_the_p_value_of_two_windows_of_different_sizes_is_scipys_however_small(monkeypatch):
    """Of one row, of a few, with ties; from 1 down to 1e-60; and where SciPy computes it."""
    random = np.random.default_rng(5)
    for n, m in [(1, 1), (1, 7), (3, 4), (12, 9), (60, 61), (200, 150), (37, 400)]:
        for shift in (0.0, 0.7, 2.0, 9.0):
            reference, current = random.normal(size=n), random.normal(shift, 1, size=m).round(1)
            theirs = stats.ks_2samp(reference, current, method="exact")
            for own in (0, p_values.PATHS_TO):
                monkeypatch.setattr(p_values, "PATHS_TO", own)
                ours = p_values.kolmogorov_smirnov(theirs.statistic, reference, current, Alike())
                assert ours == pytest.approx(theirs.pvalue, rel=1e-13, abs=0), (n, m, shift)


def test_tails_of_chi_square_and_of_f_are_scipys():
    for scale, degrees, value in ((1.0, 3, 7.5), (0.01, 9, 0.2), (2.5, 1.7, 0.0)):
        noise = p_values.Noise(scale, degrees)
        assert noise.p_value(value) == pytest.approx(stats.chi2.sf(value / scale, degrees), rel=1e-13)
        assert noise.limit(0.03) == pytest.approx(scale * stats.chi2.isf(0.03, degrees), rel=1e-13)
        noise = p_values.Noise(scale, degrees, 12.5)
        expected = (
            stats.f.sf(value / scale / degrees, degrees, 12.5),
            scale * degrees * stats.f.isf(0.03, degrees, 12.5),
        )
        assert (noise.p_value(value), noise.limit(0.03)) == pytest.approx(expected, rel=1e-13)


def test_tiny_p_values_are_scipys_too():
    reference, current = np.arange(200.0), np.arange(200.0) + 60
    theirs = stats.ks_2samp(reference, current, method="exact").pvalue
    assert theirs < 1e-7
    assert univariate.kolmogorov_smirnov(reference, current).p_value == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("size", [5, 7, 30, 200, 1000])
def test_samples_that_could_not_be_closer_have_p_value_1(size):
    """SciPy's exact p-value is 1 and some rounding there: it warns and takes another."""
    reference = np.arange(size, dtype=float)
    test = univariate.kolmogorov_smirnov(reference, reference + 0.5)
    assert (test.statistic, test.p_value) == (pytest.approx(1 / size), 1.0)
    if size > 100:
        return  # and there for the next closest too
    nearly = univariate.kolmogorov_smirnov(reference, reference + 1.5)
    assert nearly.p_value == pytest.approx(stats.ks_2samp(reference, reference + 1.5, method="exact").pvalue, abs=1e-12)


def test_equal_samples_are_no_distance_apart_and_apart_ones_are_all_of_it():
    same = np.full(30, 7.0)
    assert univariate.distance(same, same) == (0.0, 0.0)
    assert univariate.kolmogorov_smirnov(same, same).p_value == 1.0
    assert univariate.distance(same, same + 3) == (1.0, 3.0)


def test_rows_that_are_alike_count_as_fewer():
    random = np.random.default_rng(0)
    reference, current = random.normal(size=500), random.normal(0.2, 1, size=300)
    test = univariate.kolmogorov_smirnov(reference, current, alike=(5.0, 3.0))
    expected = stats.kstwo.sf(test.statistic, round(100 * 100 / 200))
    assert test.p_value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("classes", [3, 5, 12])
@pytest.mark.parametrize(("n", "m"), [(200, 200), (3000, 150), (100_000, 90_000)])
def test_chi_square_is_scipys(classes, n, m):
    random = np.random.default_rng([classes, n])
    table = np.array([random.multinomial(size, np.full(classes, 1 / classes)) for size in (n, m)])
    ours, theirs = univariate.chi_square(Counts(*table)), stats.chi2_contingency(table, correction=False)
    assert ours.name == "chi-square"
    assert (ours.statistic, ours.p_value) == pytest.approx((theirs.statistic, theirs.pvalue), abs=1e-9)


def test_without_rare_classes_chi_square_is_that_of_the_table_with_them_together():
    reference, current = np.array([3, 500, 2, 400, 60]), np.array([1, 60, 0, 30, 9])
    together = [[500, 400, 60, 5], [60, 30, 9, 1]]  # 1 of the last is too few by itself: it joins the next rarest
    together = [[row[0], row[1], row[2] + row[3]] for row in together]
    theirs = stats.chi2_contingency(together, correction=False)
    ours = univariate.chi_square(Counts(reference, current))
    assert (ours.statistic, ours.p_value) == pytest.approx((theirs.statistic, theirs.pvalue), abs=1e-12)


@pytest.mark.parametrize("table", [((3, 17), (12, 8)), ((0, 30), (9, 40)), ((500_000, 400_000), (5_000, 4_300))])
def test_two_classes_get_fishers_exact_test(table):
    ours, theirs = univariate.chi_square(Counts(*map(np.array, table))), stats.fisher_exact(table)
    assert ours.name == "Fisher"
    assert ours.p_value == pytest.approx(theirs.pvalue, abs=1e-9)


def test_fishers_test_of_any_table_is_scipys():
    random = np.random.default_rng(3)
    tables = [random.integers(0, most, (2, 2)) for most in (3, 12, 400, 90_000) for _ in range(60)]
    for table in tables:
        theirs = stats.fisher_exact(table)
        odds, p_value = p_values.fisher(table)
        assert odds == pytest.approx(theirs.statistic, rel=1e-12, nan_ok=True), table
        assert p_value == pytest.approx(theirs.pvalue, rel=1e-8, abs=1e-250), table
    assert min(table.sum(axis=0).min() for table in tables) == 0
    large = np.array([[10**9, 10**9], [10**9, 10**9 + 10**5]])
    alike = stats.chi2_contingency(large, correction=False).pvalue
    assert p_values.fisher(large) == pytest.approx((1.0001, alike), rel=1e-3)


def test_fishers_tea_tasting():
    """R. A. Fisher, The Design of Experiments (1935): 3 of 4 cups right, one-sided 17/70; two-sided 34/70."""
    assert univariate.chi_square(Counts(np.array([30, 10]), np.array([10, 30]))).p_value < 1e-4
    assert stats.fisher_exact([[3, 1], [1, 3]]).pvalue == pytest.approx(34 / 70)


def test_a_class_that_nobody_has_is_refused():
    with pytest.raises(ValueError, match="one class has no rows in either window"):
        univariate.chi_square(Counts(np.array([10, 0]), np.array([12, 0])))


def test_one_class_alone_has_nothing_to_be_tested():
    assert univariate.chi_square(Counts(np.array([40]), np.array([70]))).p_value == 1.0


def test_jensen_shannon_is_scipys():
    random = np.random.default_rng(0)
    for classes in (2, 5, 40):
        for p, q in random.multinomial(300, random.dirichlet(np.ones(classes)), size=(20, 2)):
            theirs = spatial.jensenshannon(p, q, base=2)
            assert univariate.jensen_shannon(Counts(p, q)) == pytest.approx(0 if np.isnan(theirs) else theirs, abs=1e-9)


@pytest.mark.parametrize("ties", [None, 1, 0])
def test_quantiles_and_bins_are_numpys(ties):
    values = np.random.default_rng(1).normal(0, 2, size=337)
    values = np.sort(values if ties is None else values.round(ties))
    levels = np.linspace(0, 1, 11)
    assert univariate.quantiles(values, levels) == pytest.approx(np.quantile(values, levels), abs=1e-12)
    edges = np.unique(np.quantile(values, levels[1:-1]))
    for side, mirrored in (("right", "left"), ("left", "right")):
        expected = np.bincount(np.searchsorted(edges, values, mirrored), minlength=len(edges) + 1)
        assert univariate.in_bins(values, edges, side).tolist() == expected.tolist()


# the population stability index


def naive_psi(p, q) -> float:
    p = [(count + 0.5) / (sum(p) + len(p) / 2) for count in p]
    q = [(count + 0.5) / (sum(q) + len(q) / 2) for count in q]
    return sum((b - a) * math.log(b / a) for a, b in zip(p, q, strict=True))


def population_psi(shift: float) -> float:
    edges = stats.norm.ppf(np.linspace(0, 1, 11))
    q = np.diff(stats.norm.cdf(edges - shift))
    return float(((q - 0.1) * np.log(q / 0.1)).sum())


@pytest.mark.parametrize(("shift", "published"), [(0.1, 0.010), (0.25, 0.060), (0.3, 0.086), (0.5, 0.238), (1, 0.926)])
def test_psi_of_a_shift_by_deciles_is_the_populations(shift, published):
    assert population_psi(shift) == pytest.approx(published, abs=5e-4)
    random = np.random.default_rng(3)
    reference, current = random.normal(size=400_000), random.normal(shift, 1, size=400_000)
    found = univariate.population_stability(univariate.deciles(reference, current))
    assert found.value == pytest.approx(population_psi(shift), abs=0.02)


def test_psi_is_its_definition_and_an_empty_bin_does_not_blow_it_up():
    for p, q in (([100] * 10, [50, 150, *[100] * 8]), ([50, 50, 0], [40, 40, 20]), ([30, 0], [0, 30])):
        found = univariate.population_stability(Counts(np.array(p), np.array(q)))
        assert found.value == pytest.approx(naive_psi(p, q), abs=1e-12)
        assert found.value < 10
    # a decile that one of 300 rows should reach is empty: a thousandth more or less, not a hundred
    counts = [np.array([30] * 10), np.array([33] * 9 + [0])]
    assert univariate.population_stability(Counts(*counts)).value == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize(("n", "m", "windows"), [(100, 100, 600), (1000, 100, 500), (250, 1000, 1000)])
def test_psi_alarms_in_as_many_clean_windows_as_it_says(n, m, windows):
    """The standard error is .9 % of 600 windows, 1 % of 500: three are allowed."""
    allowed = 0.05 + 3 * math.sqrt(0.05 * 0.95 / windows)
    random, alarms, values, noise = np.random.default_rng(n), 0, [], []
    for seed in range(windows):
        counts = univariate.deciles(random.normal(size=n), random.normal(size=m))
        found = univariate.population_stability(counts, seed=seed)
        alarms += found.drifted
        values.append(found.value)
        noise.append(found.noise)
        assert found.drifted == (found.p_value <= 0.05) or abs(found.value - found.limit) < 1e-9
    assert 0.02 <= alarms / windows <= allowed
    assert np.mean(noise) == pytest.approx(np.mean(values), rel=0.15)


@pytest.mark.parametrize(("m", "digits"), [(199, 9), (2000, 1)])
def test_psi_holds_its_level_for_a_small_reference_and_a_larger_window(m, digits):
    """With deciles held fixed, a tenth or more of clean windows were an alarm. The standard error is .7 %."""
    random, windows = np.random.default_rng(5), 900
    pairs = [[random.normal(size=size).round(digits) for size in (20, m)] for _ in range(windows)]
    alarms = sum(univariate.population_stability(univariate.deciles(*pair)).drifted for pair in pairs)
    assert alarms / windows == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / windows))


def test_a_bin_without_rows_in_both_windows_does_not_count():
    """A heap at the top: the last decile is the maximum, and no row is above it."""
    with_it = univariate.population_stability(Counts(np.array([100, 100, 0]), np.array([80, 120, 0])))
    assert with_it == univariate.population_stability(Counts(np.array([100, 100]), np.array([80, 120])))
    permuted = Counts(np.array([10, 0, 10]), np.array([8, 0, 12])), Counts(np.array([10, 10]), np.array([8, 12]))
    with_it, without = map(univariate.population_stability, permuted)
    assert with_it.value == without.value and with_it.limit == pytest.approx(without.limit)
    random, windows = np.random.default_rng(1), 2000
    heaped = np.minimum(1, random.beta(6, 2, (windows, 2, 200)) + 0.15)
    alarms = sum(univariate.population_stability(univariate.deciles(*pair)).drifted for pair in heaped)
    assert alarms / windows == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / windows))  # it was .0235


def test_a_rule_of_thumb_is_no_test():
    """Above 0.1 at n = 100 on clean data: measured .85 of the time."""
    random = np.random.default_rng(0)
    found = [univariate.deciles(random.normal(size=100), random.normal(size=100)) for _ in range(300)]
    assert np.mean([univariate.population_stability(counts).value > 0.1 for counts in found]) > 0.75


# rows that resemble their neighbours


def autoregressive(random, phi: float, rows: int) -> np.ndarray:
    noise, values = random.normal(size=rows + 200) * math.sqrt(1 - phi**2), np.zeros(rows + 200)
    for row in range(1, rows + 200):
        values[row] = phi * values[row - 1] + noise[row]
    return values[200:]


def test_independent_rows_count_as_one_each():
    random = np.random.default_rng(0)
    found = [effective_rows.inefficiency(effective_rows.below(random.normal(size=400))) for _ in range(1000)]
    assert np.mean(np.array(found) > 1) <= 0.02  # nominal .01: at most 20 of 1,000 in .999 of cases
    assert np.mean(found) < 1.02


@pytest.mark.parametrize("phi", [0.5, 0.8, 0.9])
def test_the_inefficiency_of_an_autoregression_is_what_its_medians_variance_says(phi):
    """Of the indicator of being below the median, the autocorrelation is 2/pi arcsin(phi^k)."""
    lags = phi ** np.arange(1, 500)
    truth = 1 + 2 * (2 / math.pi * np.arcsin(lags)).sum()
    random = np.random.default_rng(0)
    found = np.mean([effective_rows.inefficiency(autoregressive(random, phi, 4000) <= 0) for _ in range(30)])
    assert found == pytest.approx(truth, rel=0.1)


def test_resemblance_is_about_standard_normal_for_independent_rows():
    random = np.random.default_rng(0)
    found = [effective_rows.resemblance(effective_rows.below(random.normal(size=200))) for _ in range(1500)]
    assert np.mean(found) == pytest.approx(-0.1, abs=0.1)  # less by 1/sqrt(n): the mean is the sample's own
    assert np.std(found) == pytest.approx(1, abs=0.06)


def test_only_a_streams_end_is_looked_at():
    random = np.random.default_rng(0)
    stream = np.concatenate([np.repeat(random.normal(size=5000), 10), random.normal(size=effective_rows.LOOKED_AT)])
    assert effective_rows.inefficiency(effective_rows.below(stream)) < 1.05
    assert effective_rows.inefficiency(stream[: -effective_rows.LOOKED_AT] <= 0) > 5


def test_too_few_rows_or_equal_ones_resemble_nothing():
    for indicators in (np.zeros(0, bool), np.array([True, False]), np.ones(50, bool)):
        assert effective_rows.inefficiency(indicators) == 1.0


@pytest.mark.parametrize(
    "wrong", [None, 3, "ab", (1,), (1, 2, 3, 4), (0.5, 1), (math.nan, 1), ("x", 1), (1, 1, 0), (1, 1, -5)]
)
def test_what_does_not_say_how_alike_rows_are_is_refused(wrong):
    counts, rows = Counts(np.array([500, 900]), np.array([900, 500])), np.arange(30.0)
    for call in (
        lambda: univariate.kolmogorov_smirnov(rows, rows + 9, wrong),
        lambda: univariate.chi_square(counts, wrong),
        lambda: univariate.population_stability(counts, alike=wrong),
    ):
        with pytest.raises(ValueError, match=r"^alike="):
            call()


@pytest.mark.parametrize("counts", [[1.5, 2], [1e300, 1], [-1, 2], [math.nan, 1], [1j, 2]])
def test_counts_that_are_none_are_refused(counts):
    with pytest.raises(ValueError, match=r"^reference"):
        Counts(counts, [1, 2])


def test_counts_are_whole_numbers_whatever_holds_them():
    for kind in (object, bool, float):
        counts = Counts(np.array([1, 1], kind), np.array([1, 0], kind))
        assert univariate.population_stability(counts).p_value <= 1
        assert univariate.chi_square(counts).p_value <= 1 and univariate.jensen_shannon(counts) > 0
