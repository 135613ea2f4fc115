"""Who decides, and whether the thresholds keep what they promise, where the true error is known.

The oracles: SciPy's exact binomial test, loops written out, and worlds of which we know the error at every confidence.
"""

import math
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from labsupport import automation
from labsupport.automation import Degree, NoSafeThreshold, Thresholds, choose_thresholds, decide
from labsupport.automation.thresholds import NEVER_SURE
from labsupport.detection import Box, Detection

UNSURE = Thresholds(low=0.1, high=0.8)


def found(*confidences: float) -> list[Detection]:
    return [Detection("scratch", confidence, Box(0, 0, 10, 10)) for confidence in confidences]


# who decides


def test_the_degrees_are_in_the_order_of_the_lectures():
    names = ["HUMAN_ONLY", "SHADOW", "ASSISTANCE", "PARTIAL", "FULL"]
    assert [degree.name for degree in sorted(Degree)] == names


SURE_DEFECT, SURE_GOOD, NOT_SURE = found(0.3, 0.9), found(0.05), found(0.3, 0.6, 0.05)


@pytest.mark.parametrize(
    ("degree", "detections", "by", "decided", "opinion", "shown", "highlighted"),
    [
        (Degree.HUMAN_ONLY, SURE_DEFECT, "human", None, None, None, []),
        (Degree.SHADOW, SURE_DEFECT, "human", None, "defect", None, []),
        (Degree.SHADOW, NOT_SURE, "human", None, "defect", None, []),
        (Degree.ASSISTANCE, SURE_DEFECT, "human", None, "defect", "defect", [0.3, 0.9]),
        (Degree.ASSISTANCE, SURE_GOOD, "human", None, "good", "good", []),
        (Degree.ASSISTANCE, NOT_SURE, "human", None, "defect", "defect", [0.3, 0.6]),
        (Degree.PARTIAL, SURE_DEFECT, "model", "defect", "defect", None, []),
        (Degree.PARTIAL, SURE_GOOD, "model", "good", "good", None, []),
        (Degree.PARTIAL, [], "model", "good", "good", None, []),
        (Degree.PARTIAL, NOT_SURE, "human", None, "defect", "defect", [0.3, 0.6]),
        (Degree.PARTIAL, found(0.44), "human", None, "good", "good", [0.44]),
        (Degree.FULL, SURE_DEFECT, "model", "defect", "defect", None, []),
        (Degree.FULL, NOT_SURE, "model", "defect", "defect", None, []),
        (Degree.FULL, found(0.44), "model", "good", "good", None, []),
    ],
)
def test_who_decides_what_and_what_a_person_sees(degree, detections, by, decided, opinion, shown, highlighted):
    decision = decide(detections, degree, UNSURE)
    assert (decision.degree, decision.by, decision.decided) == (degree, by, decided)
    assert (decision.opinion, decision.shown) == (opinion, shown)
    assert [region.confidence for region in decision.highlight] == highlighted
    expected = None if degree is Degree.HUMAN_ONLY else max((region.confidence for region in detections), default=0)
    assert decision.confidence == expected


def test_without_thresholds_partial_automation_leaves_everything_to_a_person():
    everything = [decide(found(confidence), Degree.PARTIAL) for confidence in (0.0, 0.5, 1.0)]
    assert {decision.by for decision in everything} == {"human"}
    assert [decision.opinion for decision in everything] == ["good", "defect", "defect"]
    assert not NEVER_SURE.sure(np.linspace(0, 1, 101)).any()


def test_a_degree_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="7"):
        decide([], 7)


@pytest.mark.parametrize(
    ("detections", "said"),
    [
        (iter([Detection("scratch", 0.9, Box(0, 0, 9, 9))]), "detections=.*: give the list of Detection"),
        (Detection("scratch", 0.9, Box(0, 0, 9, 9)), "detections=.*: give the list of Detection"),
        (None, "detections=None: give the list of Detection"),
        ("good", "detections='good': give the list of Detection"),
        ([0.9], r"detections=\[0.9\]: give the list of Detection"),
        (found(-1), "confidence=-1: give a number from 0 to 1"),
        (found(95), "confidence=95: give a number from 0 to 1"),
        (found("0.9"), "confidence='0.9': give a number from 0 to 1"),
        (found(math.inf), "confidence=inf: give a number from 0 to 1"),
    ],
)
def test_nothing_is_decided_about_what_is_no_list_of_detections(detections, said):
    with pytest.raises(ValueError, match=said):
        decide(detections, Degree.FULL, Thresholds(0.1, 0.8))


@pytest.mark.parametrize("confidence", [None, "0.5", [0.5]])
def test_thresholds_are_sure_of_numbers_only(confidence):
    for ask in (Thresholds(0.1, 0.8).sure, Thresholds(0.1, 0.8).defect):
        with pytest.raises(ValueError, match="is no number"):
            ask(confidence)


@pytest.mark.parametrize("max_error", [1e-300, 5e-324])
def test_an_error_too_small_for_any_sample_is_promised_by_none(max_error):
    with pytest.raises(NoSafeThreshold, match="no threshold promises"):
        choose_thresholds(OK * 20, [0.1, 0.9] * 20, max_error)


@pytest.mark.parametrize("bounds", [(0.5, 0.4), (-0.1, 0.5), (math.nan, 0.5), (0.1, math.nan)])
def test_thresholds_in_the_wrong_order_are_refused(bounds):
    with pytest.raises(ValueError, match="give 0 <= low <= high"):
        Thresholds(*bounds)


@pytest.mark.parametrize(
    "bounds", [(0, math.inf), (0.1, 0.8), (0.3, 0.3), (0.9, math.inf), (0, 0.1), (2, 3), (0, 0), (1, 1)]
)
def test_the_opinion_where_the_model_is_sure_is_the_thresholds_own(bounds):
    thresholds = Thresholds(*bounds)
    confidences = np.linspace(0, 1, 101)
    sure, defect = thresholds.sure(confidences), thresholds.defect(confidences)
    assert defect[confidences >= thresholds.high].all()
    assert not defect[confidences < thresholds.low].any()
    assert sure.tolist() == [p < thresholds.low or p >= thresholds.high for p in confidences]
    assert defect.tolist() == [bool(thresholds.defect(float(p))) for p in confidences]


# what a degree comes to


@pytest.mark.parametrize("degree", list(Degree))
def test_the_expected_outcome_is_that_of_deciding_one_by_one(degree):
    rng = np.random.default_rng(3)
    confidences = rng.random(200).round(2)
    labels = rng.random(200) < confidences
    miss, alarm = 0.125, 0.0625
    by_model, wrong = [], []
    for label, confidence in zip(labels, confidences, strict=True):
        decision = decide(found(confidence), degree, UNSURE)
        by_model.append(decision.by == "model")
        wrong.append((decision.decided == "defect") != label if by_model[-1] else miss if label else alarm)
    outcome = automation.expected_outcome(labels, confidences, degree, UNSURE, miss, alarm)
    assert outcome.by_model == pytest.approx(sum(by_model) / 200)
    assert outcome.error == pytest.approx(sum(wrong) / 200)
    assert outcome.missed == pytest.approx(np.mean([w for w, label in zip(wrong, labels, strict=True) if label]))
    assert outcome.false_alarms == pytest.approx(
        np.mean([w for w, label in zip(wrong, labels, strict=True) if not label])
    )


# the risk-coverage curve and the bound


@pytest.mark.parametrize(("size", "decimals"), [(2, 1), (40, 1), (40, 17), (150, 2)])
def test_the_risk_coverage_curve_is_that_of_a_double_loop(size, decimals):
    rng = np.random.default_rng(size + decimals)
    confidences = rng.random(size).round(decimals)
    labels = rng.random(size) < confidences
    labels[:2] = True, False
    expected = []
    for threshold in sorted({max(p, 1 - p) for p in confidences}, reverse=True):
        decided = errors = 0
        for label, p in zip(labels, confidences, strict=True):
            if max(p, 1 - p) >= threshold:
                decided += 1
                errors += (p >= 0.5) != label
        expected.append((threshold, decided / size, errors / decided))
    curve = automation.risk_coverage(labels, confidences)
    assert list(curve.columns) == ["threshold", "coverage", "risk"]
    np.testing.assert_allclose(curve.to_numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("decisions", [1, 2, 10, 299, 5000])
@pytest.mark.parametrize("confidence_level", [0.5, 0.95, 0.999])
def test_the_bound_is_that_of_scipys_exact_binomial_test(decisions, confidence_level):
    for errors in {0, 1, decisions // 10, decisions // 2, decisions - 1, decisions}:
        exact = stats.binomtest(errors, decisions, alternative="less").proportion_ci(confidence_level, method="exact")
        assert automation.error_bound(errors, decisions, confidence_level) == pytest.approx(exact.high, rel=1e-6)


# thresholds that keep their promise

ATOMS = np.linspace(0, 1, 4002)[1:-1]  # the confidences there are; what is small enough stands for what is continuous


def density(a: float, b: float) -> np.ndarray:
    weight = ATOMS ** (a - 1) * (1 - ATOMS) ** (b - 1)
    return weight / weight.sum()


def world(kind: str, rate: float, max_error: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The confidences there are, the true probability of a defect at each, and how often each comes; `rate` are defects."""
    weight = (1 - rate) * density(0.3, 12) + rate * density(6, 0.5)
    if kind == "calibrated":
        return ATOMS, ATOMS, weight
    if kind == "over-confident":  # 99 % should be 97.5 %
        return ATOMS, 1 / (1 + (1 / ATOMS - 1) ** 0.8), weight
    if kind == "boundary":  # wherever the thresholds are, the error is a little too large
        return ATOMS, np.where(ATOMS < 0.5, 1.05 * max_error, 1 - 1.05 * max_error), weight
    if kind == "cliff":  # fine for the surest 40 %, then three times too large
        order = np.argsort(-np.abs(ATOMS - 0.5))
        error = np.empty(len(ATOMS))
        error[order] = np.where(np.cumsum(weight[order]) < 0.4, 0.3, 3) * max_error
        return ATOMS, np.where(ATOMS < 0.5, error, 1 - error), weight
    assert kind == "detector"  # nothing found in most, and no more than 0.9 for many a defect
    missed, nothing = rate * 0.003, (1 - rate) * 0.7 + rate * 0.003
    good, defect = (1 - rate) * 0.3 * density(1.5, 12), rate * 0.997 * density(5, 3)
    defects = np.concatenate([[missed], defect])
    weight = np.concatenate([[nothing], good + defect])
    return np.concatenate([[0], ATOMS]), defects / weight, weight


def automated(thresholds: Thresholds, truth: tuple) -> tuple[float, float]:
    """The true share that is automated, and the true error of that."""
    confidences, probability, weight = truth
    sure = thresholds.sure(confidences)
    error = np.where(thresholds.defect(confidences), 1 - probability, probability)
    share = weight[sure].sum()
    return share, (weight * error)[sure].sum() / share if share else 0.0


def draw(truth: tuple, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    confidences, probability, weight = truth
    chosen = np.searchsorted(np.cumsum(weight)[:-1], rng.random(size))
    return rng.random(size) < probability[chosen], confidences[chosen]


def naive(labels: np.ndarray, confidences: np.ndarray, max_error: float) -> Thresholds:
    """What one would do without a thought of chance: the widest thresholds at which no more than max_error was wrong."""
    sureness = np.abs(confidences - 0.5)
    order = np.argsort(-sureness)
    error = np.cumsum(((confidences >= 0.5) != labels)[order]) / np.arange(1, len(labels) + 1)
    small = np.flatnonzero(error <= max_error)
    return Thresholds(0.5 - sureness[order[small[-1]]], 0.5 + sureness[order[small[-1]]]) if small.size else NEVER_SURE


RUNS = 500
KINDS = ["calibrated", "over-confident", "boundary", "cliff", "detector"]
CASES = [
    (300, 0.05, 0.3),
    (300, 0.01, 0.02),
    (1000, 0.01, 0.02),
    (1000, 0.01, 0.3),
    (5000, 0.01, 0.02),
    (5000, 0.01, 0.3),
]


def assert_kept(broken: int, runs: int) -> None:
    """No more than 5 % of the runs broke the promise; that more did by chance happens once in a thousand times."""
    assert stats.binomtest(broken, runs, 0.05, alternative="greater").pvalue > 0.001, f"{broken} of {runs}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_true_error_exceeds_the_promise_in_at_most_one_of_twenty_samples(kind, case):
    size, max_error, rate = case
    truth, rng = world(kind, rate, max_error), np.random.default_rng(11)
    shares, broken = np.zeros(RUNS), 0
    for run in range(RUNS):
        try:
            thresholds = choose_thresholds(*draw(truth, size, rng), max_error)
        except ValueError:  # NoSafeThreshold, or no defect among 300
            continue
        shares[run], error = automated(thresholds, truth)
        broken += error > max_error
    print(f"{kind}, n={size}, {rate:.0%} defects, {max_error:.0%} promised: broken in {broken / RUNS:.1%}, ", end="")
    print(f"{shares.mean():.0%} automated, nothing promised in {np.mean(shares == 0):.0%}")
    assert_kept(broken, RUNS)


@pytest.mark.parametrize(
    ("kind", "case", "at_least"),
    [
        ("calibrated", (1000, 0.01, 0.3), 0.4),
        ("over-confident", (5000, 0.01, 0.3), 0.4),
        ("cliff", (1000, 0.01, 0.3), 0.4),
    ],
)
def test_a_choice_that_forgets_chance_breaks_the_promise_far_more_often(kind, case, at_least):
    size, max_error, rate = case
    truth, rng = world(kind, rate, max_error), np.random.default_rng(11)
    broken = [automated(naive(*draw(truth, size, rng), max_error), truth)[1] > max_error for _ in range(100)]
    print(f"{kind}, n={size}: broken in {np.mean(broken):.0%}")
    assert np.mean(broken) > at_least
    with pytest.raises(AssertionError):
        assert_kept(sum(broken), len(broken))


@pytest.mark.parametrize("confidence_level", [0.5, 0.8])
def test_the_promise_is_kept_at_other_levels_and_is_not_far_from_being_broken(confidence_level):
    truth, rng = world("boundary", 0.3, 0.1), np.random.default_rng(5)
    broken = 0
    for _ in range(400):
        try:
            broken += automated(choose_thresholds(*draw(truth, 300, rng), 0.1, confidence_level), truth)[1] > 0.1
        except NoSafeThreshold:
            continue
    print(f"broken {broken / 400:.3f} at {confidence_level}")
    assert stats.binomtest(broken, 400, 1 - confidence_level, alternative="greater").pvalue > 0.001
    assert broken / 400 > (1 - confidence_level) / 6  # three sequences share the level, and only one is usually near


# ... and that are worth having


def test_a_perfect_model_gets_nearly_everything():
    rng = np.random.default_rng(0)
    confidences = rng.random(1000)
    thresholds = choose_thresholds(confidences > 0.5, confidences)
    assert thresholds.sure(confidences).mean() > 0.99


@pytest.mark.parametrize(
    ("kind", "case", "at_least"),
    [
        ("calibrated", (1000, 0.05, 0.3), 0.9),
        ("calibrated", (5000, 0.01, 0.02), 0.5),
        ("detector", (1000, 0.01, 0.02), 0.9),
        ("detector", (1000, 0.05, 0.3), 0.9),
        ("detector", (5000, 0.01, 0.3), 0.85),
    ],
)
def test_thresholds_automate_what_can_be_promised(kind, case, at_least):
    size, max_error, rate = case
    truth, rng = world(kind, rate, max_error), np.random.default_rng(13)
    shares = [automated(choose_thresholds(*draw(truth, size, rng), max_error), truth)[0] for _ in range(20)]
    assert np.mean(shares) > at_least


def test_one_early_error_does_not_end_it_all():
    confidences = np.linspace(0, 1, 5000)
    labels = confidences > 0.5
    labels[0] = True  # the surest of all
    assert choose_thresholds(labels, confidences).sure(confidences).mean() > 0.9


def test_a_sequence_ends_with_the_first_test_that_fails():
    """With 1,000 examples there is one run in each sequence, and its first test allows no error."""
    confidences = np.linspace(0, 1, 1000)
    labels = confidences > 0.5
    labels[[0, -1]] = True, False  # the surest on either side
    assert stats.binomtest(2, 1000, 0.01, alternative="less").pvalue < 0.05 / 2  # would pass if it were the first
    with pytest.raises(NoSafeThreshold):
        choose_thresholds(labels, confidences)


def test_a_model_that_knows_only_good_ones_decides_only_those():
    rng = np.random.default_rng(1)
    confidences = rng.random(5000)
    labels = (confidences > 0.5) & (rng.random(5000) < 0.6)
    thresholds = choose_thresholds(labels, confidences)
    assert 0.4 < thresholds.low < 0.55
    assert thresholds.high > 1


def test_a_model_that_knows_only_defects_decides_only_those():
    rng = np.random.default_rng(1)
    confidences = rng.random(5000)
    labels = (confidences > 0.5) | (rng.random(5000) < 0.4)
    thresholds = choose_thresholds(labels, confidences)
    assert thresholds.low == 0
    assert 0.45 < thresholds.high < 0.6


def test_where_both_sides_could_have_a_picture_the_thresholds_do_not_cross():
    confidences = np.repeat([0.2, 0.3, 0.4], [5000, 30, 5000])
    labels = np.repeat([False, True, True], [5000, 30, 5000])
    thresholds = choose_thresholds(labels, confidences, max_error=0.2)
    assert thresholds.low <= thresholds.high
    assert thresholds.sure(confidences).mean() > 0.99


def test_what_was_decided_in_the_sample_passes_scipys_test():
    rng = np.random.default_rng(17)
    for rate, decimals in [(0.3, 2), (0.3, 17), (0.02, 3)]:
        labels, confidences = draw(world("calibrated", rate, 0.02), 5000, rng)
        thresholds = choose_thresholds(labels, confidences.round(decimals), 0.02)
        good, defect = confidences.round(decimals) < thresholds.low, confidences.round(decimals) >= thresholds.high
        errors = (labels & good).sum() + (~labels & defect).sum()
        test = stats.binomtest(int(errors), int(good.sum() + defect.sum()), 0.02, alternative="less")
        assert test.pvalue <= 0.025


# no promise, and bad input


@pytest.mark.parametrize(("max_error", "level", "needed"), [(0.01, 0.95, 368), (0.05, 0.95, 72), (0.01, 0.99, 528)])
def test_too_few_examples_are_said_to_be_too_few(max_error, level, needed):
    """One more than is needed is enough, for one is left out as the threshold."""
    for size, enough in [(needed, False), (needed + 1, True)]:
        confidences = np.linspace(0, 1, size)
        if enough:
            assert choose_thresholds(confidences > 0.5, confidences, max_error, level).sure(confidences).sum() == needed
        else:
            with pytest.raises(NoSafeThreshold, match=f"{size} examples. It takes at least {needed} sure decisions"):
                choose_thresholds(confidences > 0.5, confidences, max_error, level)


def test_a_model_that_knows_nothing_gets_no_promise():
    rng = np.random.default_rng(2)
    with pytest.raises(NoSafeThreshold):
        choose_thresholds(rng.random(5000) < 0.5, rng.random(5000))


def test_a_model_that_always_says_the_same_gets_no_promise():
    with pytest.raises(NoSafeThreshold):
        choose_thresholds(np.arange(5000) < 10, np.full(5000, 0.3))


OK = [True, False]


@pytest.mark.parametrize(
    ("labels", "confidences", "said"),
    [
        (OK, [0.1], "one length"),
        ([OK], [[0.1, 0.2]], "one length"),
        (True, 0.1, "one length"),
        ([], [], "both kinds"),
        (OK, [0.1, math.nan], "between 0 and 1"),
        (OK, [0.1, 1.1], "between 0 and 1"),
        (OK, [-0.1, 1], "between 0 and 1"),
        ([True, 2], [0.1, 0.2], "not bool"),
        ([True, math.nan], [0.1, 0.2], "not bool"),
        ([True, None], [0.1, 0.2], "not bool"),
        (["good", "defect"], [0.1, 0.2], "not bool"),
        ([True, True], [0.1, 0.2], "of 2 labels 2 are defects"),
        ([False, False], [0.1, 0.2], "of 2 labels 0 are defects"),
    ],
)
@pytest.mark.parametrize("function", [choose_thresholds, automation.risk_coverage])
def test_bad_examples_are_refused(function, labels, confidences, said):
    with pytest.raises(ValueError, match=said) as error:
        function(labels, confidences)
    assert error.type is ValueError


@pytest.mark.parametrize(
    "shares", [(0, 0.95), (1, 0.95), (-1, 0.95), (0.01, 0), (0.01, 1), (0.01, 95), (math.nan, 0.95)]
)
def test_shares_outside_0_to_1_are_refused(shares):
    with pytest.raises(ValueError, match=r"(max_error|confidence_level)=.*: give a number between 0 and 1"):
        choose_thresholds(OK, [0.1, 0.9], *shares)


def test_labels_may_be_whatever_is_0_or_1_and_the_examples_in_any_order():
    rng = np.random.default_rng(4)
    confidences = rng.random(2000).round(3)
    labels = confidences > 0.5
    mixed = rng.permutation(2000)
    expected = choose_thresholds(labels, confidences)
    assert choose_thresholds(labels.astype(float)[mixed], confidences[mixed]) == expected
    assert choose_thresholds(labels[mixed].tolist(), confidences[mixed].tolist()) == expected
    assert [type(bound) for bound in (expected.low, expected.high)] == [float, float]


def test_deciding_needs_no_more_than_numpy():
    program = "import sys, labsupport.automation; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"scipy", "pandas", "cv2", "openvino", "sqlalchemy", "fastapi"} & set(done.stdout.split())
