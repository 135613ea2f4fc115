"""Performance without labels, in worlds of which we know how often an answer is right, and on real digits.

The oracles: scikit-learn's isotonic regression, the sum of coins written out, SciPy's beta distribution, and simulation.
"""

import subprocess
import sys

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score
from sklearn.naive_bayes import GaussianNB

from labsupport.estimation import Calibration, NotEstimable, calibration_error, estimate, realised
from labsupport.estimation.calibration import GROUP, MIN_EACH, MIN_REFERENCE
from labsupport.estimation.performance import ASSUMPTION, MIN_WINDOW


def world(rng, count, shift=0.0, overconfidence=2.0):
    """Labels (bool) and a model's probabilities. P(y|x) is a logistic curve that never changes; x moves by `shift`."""
    x = rng.normal(shift, 1, count)
    return rng.random(count) < expit(1.5 * x - 0.5), expit(overconfidence * (1.5 * x - 0.5))


def top_label(labels, probabilities):
    """The same model's answers: which are right, and their confidences."""
    return (probabilities >= 0.5) == labels, np.maximum(probabilities, 1 - probabilities)


# calibration


def test_the_staircase_is_scikit_learns_isotonic_regression_of_the_same_groups():
    rng = np.random.default_rng(0)
    labels, probabilities = world(rng, 2000)
    order = np.argsort(probabilities)
    groups = [order[start : start + GROUP] for start in range(0, 2000, GROUP)]
    x, y = [probabilities[g].min() for g in groups], [labels[g].mean() for g in groups]
    expected = IsotonicRegression().fit(x, y).predict(x)
    ours = Calibration.binary(labels, probabilities).calibrated(x)
    assert len(np.unique(expected)) > 10
    np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_tied_confidences_share_a_step():
    """Five values, each with its own share: the best staircase is those shares."""
    rng = np.random.default_rng(0)
    values = rng.choice([0.5, 0.6, 0.7, 0.8, 1.0], 5000)
    correct = rng.random(5000) < values - 0.2
    calibration = Calibration.top_label(correct, values)
    for value in np.unique(values):
        assert calibration.calibrated([value])[0] == pytest.approx(correct[values == value].mean(), abs=1e-12)
    assert list(calibration.calibrated([0.0, 0.55])) == [calibration.rates[0]] * 2  # between two steps, the lower
    wrong_order = np.repeat([0.5, 0.6], [100, 300])  # .4 and .2 come true: both are worth what came true of all 400
    came_true = np.concatenate([np.arange(100) < 40, np.arange(300) < 60])
    assert Calibration.top_label(came_true, wrong_order).calibrated([0.5, 0.6]) == pytest.approx([0.25, 0.25])
    neighbours = np.where(values > 0.7, 1.0, np.nextafter(1.0, 0))  # as close as floats can be
    assert np.ptp(Calibration.top_label(correct, neighbours).calibrated([np.nextafter(1.0, 0), 1.0])) > 0.2


def test_on_its_own_reference_the_estimate_is_what_was_realised():
    labels, probabilities = world(np.random.default_rng(1), 1500)
    correct, confidences = top_label(labels, probabilities)
    calibration = Calibration.top_label(correct, confidences)
    assert estimate(calibration, confidences).accuracy.value == pytest.approx(correct.mean(), abs=1e-12)


def test_an_overconfident_model_is_far_off_raw_and_near_once_calibrated():
    raw, ours = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        calibration = Calibration.top_label(*top_label(*world(rng, 2000, overconfidence=4)))
        correct, confidences = top_label(*world(rng, 2000, shift=0.5, overconfidence=4))
        raw.append(confidences.mean() - correct.mean())
        ours.append(estimate(calibration, confidences).accuracy.value - correct.mean())
    assert np.mean(raw) > 0.1
    assert np.mean(np.abs(ours)) < 0.02
    assert calibration.errors[0] > 0.1 and calibration.errors[1] < 0.04


def test_calibration_error_is_its_definition_written_out():
    rng = np.random.default_rng(0)
    confidences = np.append(rng.random(500), [0.0, 0.95, 1.0, 1.0])
    happened = np.append(rng.random(500) < confidences[:500] ** 0.5, [False, True, False, False])
    total = 0.0
    for k in range(10):
        inside = (confidences >= k / 10) & ((confidences < (k + 1) / 10) | (k == 9))
        total += inside.mean() * abs(confidences[inside].mean() - happened[inside].mean())
    assert calibration_error(happened, confidences) == pytest.approx(total, abs=1e-12)


def test_the_error_after_calibration_is_not_flattered_by_the_examples_that_calibrated():
    """Confidences that mean nothing: fitted and judged on the same data they would seem to mean something."""
    rng = np.random.default_rng(0)
    flattered, crossed = [], []
    for _ in range(20):
        happened, confidences = rng.random(300) < 0.5, rng.random(300)
        calibration = Calibration.binary(happened, confidences)
        flattered.append(calibration_error(happened, calibration.calibrated(confidences)))
        crossed.append(calibration.errors[1])
    assert np.mean(flattered) < 0.01 < 0.03 < np.mean(crossed)


# estimates where P(y|x) stays: covariate shift


@pytest.mark.parametrize("shift", [-1.0, -0.5, 0.0, 1.0, 1.5])
def test_under_covariate_shift_the_estimate_is_within_two_hundredths(shift):
    errors, moved = {}, []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        reference, window = world(rng, 2000), world(rng, 2000, shift)
        for kind, calibration, now in (
            ("top-label", Calibration.top_label(*top_label(*reference)), top_label(*window)),
            ("binary", Calibration.binary(*reference), window),
        ):
            came = realised(calibration, *now)
            for name, value in came.figures.items():
                errors.setdefault((kind, name), []).append(came.estimate.figures[name].value - value)
        moved.append(top_label(*window)[0].mean() - top_label(*reference)[0].mean())
    assert shift == 0 or np.mean(moved) > 0.02  # the accuracy did change
    assert len(errors) == 5
    for kind in ("top-label", "binary"):
        assert np.mean(np.abs(errors[kind, "accuracy"])) < 0.02
    for error in errors.values():  # few positives make precision and recall noisy, but not biased
        assert abs(np.mean(error)) < 0.015


def test_a_shift_of_classes_and_difficulty_in_many_classes_is_followed():
    """Ten classes: what is answered right is a fixed function of the confidence, its mix is not."""
    errors = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        confidences = [rng.beta(*shape, 2000) * 0.9 + 0.1 for shape in ((3, 1.5), (2, 2))]
        correct = [rng.random(2000) < values**2 for values in confidences]
        calibration = Calibration.top_label(correct[0], confidences[0])
        errors.append(estimate(calibration, confidences[1]).accuracy.value - correct[1].mean())
    assert correct[0].mean() - correct[1].mean() > 0.1
    assert np.mean(np.abs(errors)) < 0.02


@pytest.mark.parametrize(("reference", "window", "shift"), [(500, 300, 0.0), (500, 300, 1.0), (2000, 2000, -1.0)])
def test_the_interval_holds_as_often_as_it_says(reference, window, shift):
    """200 worlds: the sampling error of a coverage of .95 is .015. An interval for the labels alone holds less often."""
    held = {}
    for seed in range(200):
        rng = np.random.default_rng(seed)
        came = realised(Calibration.binary(*world(rng, reference)), *world(rng, window, shift))
        for name, value in came.figures.items():
            held.setdefault(name, []).append(
                came.estimate.figures[name].low <= value <= came.estimate.figures[name].high
            )
    assert sorted(held) == ["accuracy", "f1", "precision", "recall"]
    assert {name: np.mean(values) for name, values in held.items() if not 0.91 <= np.mean(values) <= 0.99} == {}


def test_with_a_large_reference_the_interval_is_that_of_a_sum_of_coins():
    values = np.repeat([0.6, 0.7, 0.8, 0.9], 100_000)
    correct = np.tile(np.arange(100_000) % 10, 4) < np.round(10 * values)  # exactly so many
    window, coins = np.repeat([0.6, 0.7, 0.8, 0.9], [10, 5, 15, 20]), np.ones(1)
    for worth in window:
        coins = np.convolve(coins, [1 - worth, worth])
    low, high = (np.searchsorted(np.cumsum(coins), tail) / 50 for tail in (0.025, 0.975))
    ours = estimate(Calibration.top_label(correct, values), window).accuracy
    assert ours.value == pytest.approx(window.mean(), abs=1e-9)
    assert abs(ours.low - low) <= 0.02 and abs(ours.high - high) <= 0.02  # one answer is .02


def test_with_a_large_window_the_interval_is_that_of_the_reference():
    calibration = Calibration.top_label(np.arange(300) < 240, np.full(300, 0.9))
    ours = estimate(calibration, np.full(1_000_000, 0.9), confidence_level=0.9).accuracy
    assert ours.value == 0.8
    assert ours[1:] == pytest.approx(stats.beta.ppf([0.05, 0.95], 240.5, 60.5), abs=0.004)


def test_metrics_of_labels_are_scikit_learns():
    rng = np.random.default_rng(0)
    calibration = Calibration.binary(*world(rng, 500), threshold=0.3)
    labels, probabilities = world(rng, 400)
    called = probabilities >= 0.3
    scores = {"accuracy": accuracy_score, "precision": precision_score, "recall": recall_score, "f1": f1_score}
    expected = {name: score(labels, called) for name, score in scores.items()}
    assert realised(calibration, labels, probabilities).figures == pytest.approx(expected, abs=1e-12)


def test_a_metric_that_is_not_defined_is_left_out():
    """Nothing is called positive: there is no precision, and no error either."""
    rng = np.random.default_rng(0)
    labels, probabilities = world(rng, 1000)
    calibration = Calibration.binary(labels, probabilities)
    low = probabilities[probabilities < 0.3]
    assert sorted(estimate(calibration, low).figures) == ["accuracy", "f1", "recall"]
    assert sorted(realised(calibration, np.zeros(len(low), bool), low).figures) == ["accuracy"]


# what it cannot see


def test_reversed_labels_change_nothing_in_the_estimate_and_every_result_says_that_it_cannot_see_this():
    rng = np.random.default_rng(0)
    calibration = Calibration.top_label(*top_label(*world(rng, 2000)))
    correct, confidences = top_label(*world(rng, 1000))
    before, after = realised(calibration, correct, confidences), realised(calibration, ~correct, confidences)
    assert before.as_estimated and not after.as_estimated
    assert after.estimate == before.estimate
    assert after.estimate.accuracy.value > 0.7 and after.figures["accuracy"] < 0.3
    assert "cannot see concept drift" in ASSUMPTION and "sees data drift" in ASSUMPTION
    for result in (before, after, before.estimate):
        assert ASSUMPTION in result.summary() and ASSUMPTION in str(result)
        assert "cannot see concept drift" in result._repr_html_()
    assert "sees data drift, cannot see concept drift" in repr(before.estimate)
    assert "not as estimated: concept drift" in repr(after) and "not as estimated: concept drift" in str(after)


def test_inputs_that_cannot_be_compared_are_refused():
    rng = np.random.default_rng(0)
    worth = rng.uniform(0.5, 1, 400)
    calibration = Calibration.top_label(rng.random(400) < worth, worth, inputs={"x": worth})
    assert estimate(calibration, worth, inputs={"x": worth}).accuracy.value > 0.5
    with pytest.raises(NotEstimable, match="inputs: x cannot be compared: was numeric, is text"):
        estimate(calibration, worth, inputs={"x": [f"{value:.2f}" for value in worth]})


@pytest.mark.parametrize(
    "values", [np.linspace(0.1, 0.9, 201), np.r_[np.full(19, 0.1), 0.2, np.linspace(0.3, 0.9, 181)]]
)
def test_no_step_rests_on_fewer_than_ten_examples(values):
    """The last of 201 would be alone, and so would one behind 19 equal ones."""
    happened = np.arange(len(values)) % 3 > 0
    happened[values <= 0.1], happened[values == 0.2] = np.arange((values <= 0.1).sum()) % 4 > 2, True
    happened[-1] = True
    counts = Calibration.top_label(happened, values).counts
    assert counts.min() >= GROUP and counts.sum() == len(values)


def test_a_part_of_the_inputs_that_the_model_knows_nothing_of_is_its_other_blind_spot():
    """P(y|x) stays, but x has a side that the model ignores: what a confidence is worth moves with it."""
    rng = np.random.default_rng(0)

    def seen(share):
        confidences, odd = rng.uniform(0.6, 1, 2000), rng.random(2000) < share
        return rng.random(2000) < np.where(odd, 0.3, confidences), confidences

    calibration = Calibration.top_label(*seen(0.1))
    assert realised(calibration, *seen(0.1)).as_estimated
    came = realised(calibration, *seen(0.8))
    assert came.estimate.accuracy.value - came.figures["accuracy"] > 0.2 and not came.as_estimated
    assert "On inputs of a new kind it may be wrong either way." in str(came.estimate)


def test_without_drift_labels_are_hardly_ever_called_a_surprise():
    """At 95 %, in 150 windows: 7.5 are expected, and more than 16 twice in 1,000 times."""
    rng = np.random.default_rng(0)
    calibration = Calibration.top_label(*top_label(*world(rng, 20_000)))
    surprises = sum(not realised(calibration, *top_label(*world(rng, 200))).as_estimated for _ in range(150))
    assert 1 <= surprises <= 16


# cautions


def test_a_window_where_the_reference_holds_little_gets_a_caution_and_its_like_does_not():
    rng = np.random.default_rng(0)
    cautioned = 0
    for _ in range(200):
        calibration = Calibration.top_label(*top_label(*world(rng, MIN_REFERENCE)))
        cautioned += bool(estimate(calibration, top_label(*world(rng, 50))[1]).cautions)
    assert cautioned <= 4
    strange = estimate(calibration, rng.uniform(0, 0.5, 300))
    assert strange.outside == 1.0
    assert "100 % of the confidences are below" in strange.cautions[0]
    assert strange.cautions[0] in str(strange) and strange.cautions[0] in repr(strange)


def test_a_small_window_gets_a_caution_and_a_wide_interval():
    correct, confidences = np.arange(1000) % 10 > 0, np.full(1000, 0.9)
    calibration = Calibration.top_label(correct, confidences)
    small, enough = (
        estimate(calibration, confidences[: MIN_WINDOW - 1]),
        estimate(calibration, confidences[:MIN_WINDOW]),
    )
    assert small.cautions == ("29 confidences, of at least 30: the interval is too wide to say much",)
    assert not enough.cautions
    assert small.accuracy.value - small.accuracy.low > 0.1


def test_the_estimate_never_lies_outside_its_interval():
    rng = np.random.default_rng(0)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        calibration = Calibration.top_label(*top_label(*world(rng, 400)))
        for confidences in (np.full(100_000, 0.99999), np.full(100_000, 0.5), np.array([1.0])):
            value, low, high = estimate(calibration, confidences).accuracy
            assert 0 <= low <= value <= high <= 1


# bad input


@pytest.mark.parametrize(
    ("confidences", "says"),
    [
        ([], r"shape \(0,\)"),
        (np.full((5, 3), 0.3), r"shape \(5, 3\): give one number for each answer"),
        ([0.5, np.nan], "0 to 1: leave out what is missing"),
        ([0.5, np.inf], "0 to 1"),
        ([3.2, -1.0], "turn scores into probabilities"),
        (["high", "low"], "no numbers"),
        (None, "shape"),
    ],
)
def test_unusable_confidences_are_refused_by_name(confidences, says):
    calibration = Calibration.top_label(*top_label(*world(np.random.default_rng(0), 500)))
    for call in (
        lambda: estimate(calibration, confidences),
        lambda: calibration.calibrated(confidences),
        lambda: realised(calibration, [True, False], confidences),
        lambda: Calibration.binary([True, False], confidences),
    ):
        with pytest.raises(NotEstimable, match=says):
            call()


@pytest.mark.parametrize("labels", [[True], ["good", "bad"], [0.0, 0.5], [2, 1], [[True], [False]], [None, True]])
def test_labels_that_are_none_are_refused_by_name(labels):
    calibration = Calibration.top_label(*top_label(*world(np.random.default_rng(0), 500)))
    with pytest.raises(NotEstimable, match="give one bool for each"):
        realised(calibration, labels, [0.6, 0.7])


def test_too_little_to_learn_from_is_refused_by_name():
    labels, probabilities = world(np.random.default_rng(0), MIN_REFERENCE)
    Calibration.binary(labels, probabilities)
    with pytest.raises(NotEstimable, match="199 reference examples: at least 200"):
        Calibration.binary(labels[1:], probabilities[1:])
    few = np.arange(1000) < MIN_EACH
    Calibration.binary(few, np.full(1000, 0.5))
    for one_kind in (np.arange(1000) < MIN_EACH - 1, np.arange(1000) >= MIN_EACH - 1):
        with pytest.raises(NotEstimable, match="only 19 reference labels of the rarer kind: at least 20"):
            Calibration.top_label(one_kind, np.full(1000, 0.5))


@pytest.mark.parametrize("bins", [0, -3, 2.5, "ten", None])
def test_bins_that_are_none_are_refused(bins):
    with pytest.raises(ValueError, match=r"^bins=.*: give a whole number"):
        calibration_error([True, False], [0.9, 0.8], bins)


def test_shares_that_are_none_are_refused_by_name():
    labels, probabilities = world(np.random.default_rng(0), 500)
    with pytest.raises(NotEstimable, match=r"threshold=1\.5"):
        Calibration.binary(labels, probabilities, threshold=1.5)
    for level in (0, 1, 95, float("nan")):
        with pytest.raises(NotEstimable, match="give a share"):
            estimate(Calibration.binary(labels, probabilities), probabilities, confidence_level=level)


def test_numbers_and_columns_of_frames_do_as_well():
    import pandas as pd
    import polars as pl

    labels, probabilities = world(np.random.default_rng(0), 500)
    expected = estimate(Calibration.binary(labels, probabilities), probabilities)
    for series in (pd.Series, pl.Series, list):
        ours = Calibration.binary(series(labels.astype(int)), series(probabilities))
        assert estimate(ours, series(probabilities)) == expected


def test_importing_it_loads_neither_scipy_nor_the_server():
    program = "import labsupport.estimation, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"scipy", "sklearn", "fastapi", "pandas"} & set(done.stdout.split())


# real digits


def digits(seed=0):
    """300 to train on, 700 as reference, 797 to come."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    return np.split(images[order], [300, 1000]), np.split(labels[order], [300, 1000])


def answers(model, images, labels):
    probabilities = model.predict_proba(images)
    return probabilities.argmax(axis=1) == labels, probabilities.max(axis=1).clip(0, 1)


def trained(model, images, labels):
    model.fit(images[0], labels[0])
    return model, Calibration.top_label(*answers(model, images[1], labels[1]))


@pytest.mark.parametrize("model", [GaussianNB(), RandomForestClassifier(50, random_state=0)])
def test_real_classifiers_are_far_from_calibrated_and_their_estimates_are_not(model):
    """Five splits, and of each the harder half too: a covariate shift, and a real one."""
    raw, errors, held, harder = [], [], [], []
    for seed in range(5):
        images, labels = digits(seed)
        model, calibration = trained(model, images, labels)
        correct, confidences = answers(model, images[2], labels[2])
        hard = np.argsort(confidences)[: len(correct) // 2]
        for window in (slice(None), hard):
            came = realised(calibration, correct[window], confidences[window])
            errors.append(came.estimate.accuracy.value - came.figures["accuracy"])
            held.append(came.as_estimated)
        raw.append(confidences.mean() - correct.mean())
        harder.append(correct.mean() - correct[hard].mean())
    assert abs(np.mean(raw)) > 0.1 and np.mean(harder) > 0.04
    assert np.mean(np.abs(errors)) < 0.03 and abs(np.mean(errors)) < 0.02
    assert sum(held) >= 7


def test_darkened_digits_are_followed_until_they_are_of_a_new_kind():
    """A forest grows unsure as it gets dark, and wrong: the estimate goes along. Of mirrored digits it is too sure."""
    (*known, images), (*known_labels, labels) = digits()
    model, calibration = trained(RandomForestClassifier(100, random_state=0), known, known_labels)
    dark = {factor: realised(calibration, *answers(model, factor * images, labels)) for factor in (1, 0.6, 0.4)}
    for came in dark.values():
        assert abs(came.estimate.accuracy.value - came.figures["accuracy"]) < 0.03
    assert dark[1].figures["accuracy"] - dark[0.4].figures["accuracy"] > 0.2
    assert not dark[1].estimate.cautions and dark[0.4].estimate.cautions
    mirrored = images.reshape(-1, 8, 8)[:, :, ::-1].reshape(-1, 64)
    came = realised(calibration, *answers(model, mirrored, labels))
    assert came.estimate.accuracy.low - came.figures["accuracy"] > 0.3 and not came.as_estimated


def test_scikit_learns_calibrated_classifier_says_the_same_of_digits():
    """Eights against the rest: its isotonic calibration, without groups and with lines between the steps."""
    (images, reference, now), (labels, reference_labels, _) = digits()
    model = LogisticRegression(max_iter=3000).fit(images, labels == 8)
    theirs = CalibratedClassifierCV(FrozenEstimator(model), method="isotonic").fit(reference, reference_labels == 8)
    ours = Calibration.binary(reference_labels == 8, model.predict_proba(reference)[:, 1])
    for seen in (reference, now, 0.7 * now):
        expected = theirs.predict_proba(seen)[:, 1]
        calibrated = ours.calibrated(model.predict_proba(seen)[:, 1])
        assert calibrated.mean() == pytest.approx(expected.mean(), abs=0.01)
        assert np.mean(np.abs(calibrated - expected)) < 0.02
