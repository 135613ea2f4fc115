"""Test one feature, and all features together, for `drift.compare`: choose the test, the effect size and the plot."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from scipy import special

from labsupport.arguments import number
from labsupport.drift import effective_rows, grouped, multivariate, p_values, univariate
from labsupport.drift.effective_rows import Alike
from labsupport.drift.grouped import Codes
from labsupport.drift.multivariate import Together
from labsupport.drift.univariate import Counts, Psi, TwoSampleTest
from labsupport.tabular import CLASSES, MIN_ROWS, Feature, features, to_frame

FEWEST = 5  # known values in each window, below which a column's values are not compared
MISSING = "missing"  # the test of whether values are missing as often as before
LABEL = 16  # characters of a class's name that a plot shows
TESTS: dict[str, Callable[..., Together]] = {
    "correlations": multivariate.correlations,
    "mmd": multivariate.mmd,
    "classifier": multivariate.domain_classifier,
}
Shape = tuple[list[Any], np.ndarray, np.ndarray]  # bins' edges or classes, shares before, shares now


@dataclass(frozen=True)
class _Tested:
    test: TwoSampleTest
    alike: Alike
    resemblance: float  # of neighbours, in standard errors: of the window where they are more alike


def look(
    feature: Feature, features: int, alpha: float, seed: int, groups: Codes | None = None
) -> tuple[dict[str, Any], Shape | None]:
    """Return the report's row for one of `features` features, and its shape to plot.

    A feature can drift in two ways: in its values, or in the share of rows where it is missing.

    >>> missing = np.zeros(30, bool), np.zeros(30, bool)
    >>> row, _ = look(Feature("size", "numeric", np.arange(30.0), np.arange(30.0), missing), 1, 0.05, 0)
    >>> row["test"], row["p_value"], row["effect"]
    ('KS', 1.0, 0.0)
    """
    row: dict[str, Any] = {
        "feature": feature.name,
        "kind": feature.kind,
        "note": feature.note,
        "changed": feature.changed,
        "repeats": max(effective_rows.repeats(values) for values in (feature.reference, feature.current))
        if groups is None and feature.kind == "numeric"
        else 0.0,
    }
    row.update(zip(("missing_reference", "missing_current"), feature.missing_shares, strict=True))
    tests: list[_Tested] = []
    shape: Shape | None = None
    if min(len(feature.reference), len(feature.current)) >= FEWEST:
        tested, sizes, shape = _values(feature, alpha, seed, groups)
        tests.append(tested)
        row.update(sizes)
    elif feature.kind != "none":
        row["note"] = row["note"] or f"fewer than {FEWEST} known values"
    if not feature.changed and 0 < sum(feature.missing_shares) < 2:
        tests.append(_missing(feature, groups))
        before, now = (np.array([1 - share, share]) for share in feature.missing_shares)
        shape = shape or (["known", "missing"], before, now)
    return {**row, **_verdict(tests, features)}, shape


def _verdict(tests: list[_Tested], features: int) -> dict[str, Any]:
    """Combine the tests of one feature. `step`: keep every `step`-th row, so that the kept rows are roughly independent."""
    # with many features some resemble themselves by chance: of that we neither speak nor leave out rows
    significant = -special.ndtri(0.01 / (2 * features))
    alike = {"inefficiency": max([1.0, *(max(tested.alike[:2]) for tested in tests)])}
    alike["step"] = max([1.0, *(max(tested.alike[:2]) for tested in tests if tested.resemblance > significant)])
    if not tests:
        return alike
    smallest = min(tests, key=lambda tested: tested.test.p_value).test
    names = ", ".join(tested.test.name for tested in tests)
    p_value = min(1.0, len(tests) * smallest.p_value)
    result = {"test": names, "statistic": tests[0].test.statistic, "p_value": p_value}
    return {**alike, **result, "of_missing": smallest.name == MISSING}


def _values(feature: Feature, alpha: float, seed: int, groups: Codes | None) -> tuple[_Tested, dict[str, float], Shape]:
    """Return the test of the known values, the effect sizes, and the shape."""
    windows = (feature.reference, feature.current)
    if not feature.counted:
        windows = np.sort(feature.reference), np.sort(feature.current)  # once, for all that follows
    bins = counts(feature, windows)
    classes: Callable[[], tuple[TwoSampleTest, Alike]]
    if groups is None:
        alike, resemblance = _neighbours(feature)
        size = univariate.population_stability(bins, alpha, alike, seed)
        classes = partial(_classes, feature, alike)
    else:
        before, now = (codes[~gone] for codes, gone in zip(groups, feature.missing, strict=True))
        groups = before, now
        alike, resemblance = grouped.design_effect(_indicators(feature), groups), 0.0
        size = univariate.population_stability(bins, alpha, noise=grouped.noise(_in_bins(feature, windows[0]), groups))
        classes = partial(grouped.class_test, (feature.reference, feature.current), groups, len(feature.labels))
    sizes = {"effect": size.value, "limit": size.limit, "noise": size.noise}
    sizes["jensen_shannon"] = univariate.jensen_shannon(bins)
    if feature.counted:
        test, alike = classes()
        return _Tested(test, alike, resemblance), sizes, _bars(feature, bins)
    statistic, wasserstein = univariate.ordered_distance(*windows)
    test = TwoSampleTest("KS", statistic, p_values.kolmogorov_smirnov(statistic, *windows, alike))
    deviation = univariate.deviation(windows[0])
    sizes["wasserstein"] = wasserstein / deviation if deviation else np.nan
    return _Tested(test, alike, resemblance), sizes, _histogram(windows)


def _classes(feature: Feature, alike: Alike) -> tuple[TwoSampleTest, Alike]:
    return univariate.chi_square(_counted(feature.reference, feature.current, len(feature.labels)), alike), alike


def _counted(before: np.ndarray, now: np.ndarray, classes: int) -> Counts:
    return Counts(np.bincount(before, minlength=classes), np.bincount(now, minlength=classes))


def _in_bins(feature: Feature, ordered: np.ndarray) -> list[np.ndarray]:
    """Return the bin of `counts` that each known value is in, as truth values (N, K) of each window."""
    windows = (feature.reference, feature.current)
    if feature.counted:
        most = min(CLASSES, len(feature.labels))
        return [np.minimum(values, most - 1)[:, np.newaxis] == np.arange(most) for values in windows]
    edges = univariate.decile_edges(ordered)
    return [np.searchsorted(edges, values, "left")[:, np.newaxis] == np.arange(len(edges) + 1) for values in windows]


def _missing(feature: Feature, groups: Codes | None) -> _Tested:
    if groups is None:
        alike, resemblance = effective_rows.serial(feature.missing)
        test = univariate.chi_square(_counted(*feature.missing, 2), alike)
    else:
        test, alike = grouped.class_test([gone.astype(int) for gone in feature.missing], groups, 2)
        resemblance = 0.0
    return _Tested(replace(test, name=MISSING), alike, resemblance)


def _neighbours(feature: Feature) -> tuple[Alike, float]:
    """Return how much the known values resemble their neighbours, in the order of the rows, of the last `LOOKED_AT` rows."""
    return effective_rows.serial(_indicators(feature, effective_rows.LOOKED_AT))


def _indicators(feature: Feature, last: int = 0) -> list[np.ndarray]:
    """Return the truth values (N, K) whose shares a test compares, of all or the last rows: up to a quartile, of a
    common class.
    """
    windows = (feature.reference, feature.current)
    if not feature.counted:
        return [effective_rows.below(values[-last:]) for values in windows]
    commonest = np.argsort(-np.bincount(np.concatenate(windows)), kind="stable")[:3]
    return [values[-last:, np.newaxis] == commonest for values in windows]


def counts(feature: Feature, windows: Sequence[np.ndarray]) -> Counts:
    """Count a feature's values: in deciles of the reference, or in the commonest classes, with all others as one class.

    `windows` are the values of both windows, numbers in ascending order.

    >>> feature = Feature("colour", "category", np.array([0, 0, 1]), np.array([1, 1, 1]), (), ["red", "blue"])
    >>> counts(feature, (feature.reference, feature.current)).current.tolist()
    [0, 3]
    """
    if not feature.counted:
        return univariate.ordered_deciles(*windows)
    most = min(CLASSES, len(feature.labels))
    before, now = (np.minimum(values, most - 1) for values in windows)
    return _counted(before, now, most)


def psi(reference: Any, current: Any, alpha: float = 0.05, seed: int = 0) -> Psi:
    """Return the population stability index of one feature in two arrays (N,) and (M,), with its limit for these sizes.

    >>> random = np.random.default_rng(0)
    >>> found = psi(random.normal(size=100), random.normal(size=100))
    >>> round(found.value, 2), round(found.limit, 2), found.drifted  # above 0.1, and no drift
    (0.2, 0.33, False)
    """
    alpha, seed = number("alpha", alpha, 0, 1, ends=False), number("seed", seed, 0, whole=True)
    column, *more = features(to_frame(reference, "reference"), to_frame(current, "current"))
    if more:
        raise ValueError(f"one feature is needed, not {len(more) + 1}: compare takes several")
    if column.kind == "none" or not min(len(column.reference), len(column.current)):
        raise ValueError(f"cannot be compared: {column.note or 'one window has no values'}")
    windows = [values if column.counted else np.sort(values) for values in (column.reference, column.current)]
    return univariate.population_stability(counts(column, windows), alpha, seed=seed)


def _histogram(ordered: tuple[np.ndarray, np.ndarray]) -> Shape:
    ends = [univariate.quantiles(values, np.array([0.001, 0.999])) for values in ordered]
    edges = np.linspace(min(low for low, _ in ends), max(high for _, high in ends), 25)
    before, now = (univariate.in_bins(values, edges[1:-1], "left") / len(values) for values in ordered)
    return edges.tolist(), before, now


def _bars(feature: Feature, bins: Counts) -> Shape:
    shown = [
        f"{label:g}" if isinstance(label, float) else str(label) for label in feature.labels[: len(bins.reference)]
    ]
    shown = [label if len(label) <= LABEL else label[: LABEL - 1] + "…" for label in shown]
    if len(shown) < len(feature.labels):
        shown[-1] = "others"
    return shown, bins.reference / bins.reference.sum(), bins.current / bins.current.sum()


@dataclass(frozen=True)
class Sampled:
    """The values of a feature in the same few rows as every other's, NaN if they are missing, of both windows."""

    name: str
    classes: int  # 0 of numbers
    windows: tuple[np.ndarray, np.ndarray]


def sample(feature: Feature, inefficiency: float) -> Sampled | None:
    """Return the values in rows that are far enough apart to be independent; None for a feature that cannot be compared.

    >>> missing = np.zeros(4, bool), np.zeros(4, bool)
    >>> sample(Feature("x", "numeric", np.arange(4.0), np.arange(4.0), missing), 2.0).windows[0]
    array([0., 2.])
    """
    if feature.kind == "none":
        return None
    before, now = (sampled_rows(len(gone), inefficiency) for gone in feature.missing)
    classes = len(feature.labels) if feature.kind in ("category", "boolean") else 0
    return Sampled(feature.name, classes, feature.values_at(before, now))


def sampled_rows(rows: int, inefficiency: float) -> np.ndarray:
    """Return the rows, of this many, that `sample` takes."""
    return multivariate.evenly(np.arange(0, rows, int(np.ceil(inefficiency))), multivariate.CLASSIFIER_ROWS)


def look_together(
    samples: list[Sampled],
    features: int,
    tests: Sequence[str],
    alpha: float,
    seed: int,
    groups: Codes | None = None,
) -> tuple[list[Together], list[str]]:
    """Test all features together. Return the results and the warnings.

    `features` is the number of all features, with those that have no sample. `groups` are those of the sampled rows.

    >>> both = [Sampled(name, 0, (np.arange(15.0), np.arange(15.0))) for name in "ab"]
    >>> look_together(both, 2, ["mmd"], 0.05, 0)
    ([], ['too few independent rows to look at all features at once'])
    """
    if len(samples) < 2 or not tests:
        return [], []
    if min(map(len, samples[0].windows)) < MIN_ROWS:
        return [], ["too few independent rows to look at all features at once"]
    names, windows = _matrix(samples)
    most = max(999, int(np.ceil(2 * (features + len(tests)) / alpha)))  # else no p-value could pass the correction
    options: dict[str, dict[str, Any]]
    options = {"correlations": {"names": names, "permutations": most}, "mmd": {"permutations": most}}
    options["classifier"] = {"names": names} if groups is None else {"names": names, "permutations": most}
    many = "correlations" in tests and len(names) > multivariate.COLUMNS
    warnings = [f"correlations not compared: more than {multivariate.COLUMNS} columns"] if many else []
    feasible = [test for test in tests if not (many and test == "correlations")]
    return [TESTS[test](*windows, seed=seed, groups=groups, **options[test]) for test in feasible], warnings


def _matrix(samples: list[Sampled]) -> tuple[list[str], tuple[np.ndarray, np.ndarray]]:
    """Return two tables of numbers, (N, D) and (M, D): normal scores, and classes as zeros and ones."""
    names: list[str] = []
    columns: list[tuple[np.ndarray, np.ndarray]] = []
    for one in samples:
        before, now = one.windows
        if not one.classes:
            names.append(one.name)
            columns.append(multivariate.scores(before, now))
        for code in range(1 if one.classes == 2 else min(5, one.classes)):
            names.append(one.name)
            columns.append(((before == code).astype(float), (now == code).astype(float)))
    reference, current = zip(*columns, strict=True)
    return names, (np.column_stack(reference), np.column_stack(current))
