"""Our tests beside evidently's, a specialised library: the same scores where the test is the same one.

It lives in an environment of its own, which `make test` makes first, and answers all the cases in one go.
"""

import json
import math
import os
import subprocess

import numpy as np
import pytest
from scipy import stats

from benchmarks import drift as benchmark
from benchmarks.drift import ORACLE, ROOT, SILENT
from labsupport import drift
from labsupport.drift import p_values, univariate
from labsupport.drift.univariate import Counts

SIZES = [(60, 60), (500, 200), (1000, 1000), (12_000, 900)]
NUMERIC = ["ks", "wasserstein"]
CLASSES = ["fisher_exact", "jensenshannon", "chisquare", "psi"]


def numbers(n: int, m: int) -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng([n, m])
    pairs = [
        (random.normal(size=n), random.normal(0.2, 1.3, size=m)),
        (random.exponential(size=n), random.normal(size=m)),
    ]
    return [*pairs, (random.normal(size=n).round(1), random.normal(size=m).round(1))]


def codes(n: int, m: int) -> list[tuple[np.ndarray, np.ndarray]]:
    random = np.random.default_rng([n, m, 1])
    shares = [((0.5, 0.5), (0.6, 0.4)), ((0.4, 0.3, 0.3), (0.3, 0.3, 0.4)), ((0.2,) * 5, (0.2,) * 5)]
    return [(random.choice(len(p), n, p=p), random.choice(len(q), m, p=q)) for p, q in shares]


def for_fisher(reference: np.ndarray, current: np.ndarray) -> bool:
    return reference.max() < 2 and len(reference) == len(current)  # theirs demands windows of one length


NUMERIC_CASES = [pair for size in SIZES for pair in numbers(*size)]
CLASS_CASES = [pair for size in SIZES for pair in codes(*size)]


@pytest.fixture(scope="module")
def answers():
    """Of every case, evidently's scores, by the test's name."""
    if not ORACLE.exists():
        missing = pytest.fail if "LAB_REQUIRE_BROWSER" in os.environ else pytest.skip
        missing("evidently is not installed: make .venv-oracle/installed")
    cases = [("num", NUMERIC, pair) for pair in NUMERIC_CASES]
    cases += [("cat", CLASSES if for_fisher(*pair) else CLASSES[1:], pair) for pair in CLASS_CASES]
    asked = [{"kind": k, "tests": t, "reference": p[0].tolist(), "current": p[1].tolist()} for k, t, p in cases]
    command = [ORACLE, "-m", "benchmarks.peers.evidently_drift", "tests"]
    done = subprocess.run(command, cwd=ROOT, input=json.dumps(asked), capture_output=True, text=True, env=SILENT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return found[: len(NUMERIC_CASES)], found[len(NUMERIC_CASES) :]


def counts(reference: np.ndarray, current: np.ndarray) -> Counts:
    classes = max(reference.max(), current.max()) + 1
    return Counts(*(np.bincount(values, minlength=classes) for values in (reference, current)))


def test_ks(answers):
    """Theirs is exact to 10,000 rows, ours to 1,000: both are asked for where they do the same."""
    compared = 0
    for (reference, current), theirs in zip(NUMERIC_CASES, answers[0], strict=True):
        if len(reference) <= p_values.EXACT_TO or len(reference) > 10_000:
            ours = univariate.kolmogorov_smirnov(reference, current).p_value
            assert ours == pytest.approx(theirs["ks"], abs=1e-9)
            compared += 1
    assert compared == len(NUMERIC_CASES)


def test_wasserstein_in_standard_deviations(answers):
    for (reference, current), theirs in zip(NUMERIC_CASES, answers[0], strict=True):
        report = drift.compare(reference, current, multivariate=())
        assert report.features["wasserstein"].item() == pytest.approx(theirs["wasserstein"], abs=1e-9)


def test_fisher(answers):
    pairs = [(case, found) for case, found in zip(CLASS_CASES, answers[1], strict=True) if "fisher_exact" in found]
    assert len(pairs) == 2
    for case, found in pairs:
        assert univariate.chi_square(counts(*case)).p_value == pytest.approx(found["fisher_exact"], abs=1e-9)


def test_jensen_shannon(answers):
    """Theirs is in nats, ours in bits: 0 to 1."""
    for case, found in zip(CLASS_CASES, answers[1], strict=True):
        ours = univariate.jensen_shannon(counts(*case))
        assert ours * math.sqrt(math.log(2)) == pytest.approx(found["jensenshannon"], abs=1e-9)


def test_chi_square_is_another_test(answers):
    """Theirs takes the reference's shares as known for certain (a test of fit), ours as estimated (of homogeneity).

    So theirs is SciPy's other test, and alarms too often if the reference is no larger than the window.
    """
    for case, found in zip(CLASS_CASES, answers[1], strict=True):
        table = counts(*case)
        expected = table.reference * table.current.sum() / table.reference.sum()
        assert stats.chisquare(table.current, expected).pvalue == pytest.approx(found["chisquare"], abs=1e-9)
        ours = univariate.chi_square(table)
        if ours.name == "chi-square":
            fit = stats.chi2.isf(found["chisquare"], len(table.reference) - 1)
            assert ours.statistic < fit or fit < 1e-6


def test_psi_of_classes_differs_by_the_half_row_that_we_add(answers):
    """And of numbers by the bins too: theirs are 30 of equal width, ours deciles of the reference."""
    for case, found in zip(CLASS_CASES, answers[1], strict=True):
        table = counts(*case)
        p, q = table.reference / table.reference.sum(), table.current / table.current.sum()
        assert ((p - q) * np.log(p / q)).sum() == pytest.approx(found["psi"], abs=1e-9)
        ours = univariate.population_stability(table).value
        assert ours == pytest.approx(found["psi"], abs=2 * found["psi"] / min(table.sizes) * 10 + 1e-6)


# what the benchmark measures


def test_the_benchmarks_frames_differ_in_five_columns(tmp_path):
    paths = [str(benchmark._write(tmp_path / f"{seed}.parquet", 20_000, seed)) for seed in (0, 1)]
    found = benchmark._timed(*paths)
    assert found["drifted"] == 5
    assert found["seconds"] > 0
    assert found["memory"] > 50


def test_the_benchmarks_figures_are_what_they_say(monkeypatch):
    """A tool that flags the first feature in every third window, and another one always."""
    monkeypatch.setattr(benchmark, "WINDOWS", (50,))
    looks = iter(range(10_000))

    def flag(reference, window):
        assert reference.shape == (500, 10)
        assert window.shape == (50, 10)
        return np.array([next(looks) % 3 == 2, True, *[False] * 8]), False

    rows = {row["shift"]: row for row in benchmark.measure(flag, 6)}
    assert rows[0.0]["false"] == 1.0
    for shift in (0.25, 0.5, 1.0):
        assert rows[shift] == {"window": 50, "shift": shift, "found": 0.0, "false": 1.0, "whole": 0.0, "delay": 3.0}
    never = lambda reference, window: (np.zeros(10, bool), False)  # noqa: E731
    assert benchmark.measure(never, 2)[1]["delay"] == benchmark.MOST
