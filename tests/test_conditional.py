"""Is a change given the input found, and is one that only follows the input left alone?"""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cdist
from sklearn.linear_model import Ridge as Linear

from labsupport import drift
from labsupport.drift import conditional, given_input
from labsupport.tabular import TooFewRows

INPUTS, OUTPUTS = ["x0", "x1", "place"], ["y", "kind"]


def window(seed, rows=100, shift=0.0, change=0.0, spread=1.0, swap=0.0):
    """A world in which y follows x: `shift` moves x, the others change y given x."""
    random = np.random.default_rng(seed)
    x = random.normal(shift, 1, (rows, 2))
    place = np.where(x[:, 0] + random.normal(size=rows) > 0.5, "here", "there")
    y = np.sin(x[:, 0]) + x[:, 1] + change + swap * np.sign(x[:, 0]) + spread * 0.5 * random.normal(size=rows)
    kind = np.where(y + random.normal(size=rows) > 1, "a", "b")
    return pd.DataFrame({"x0": x[:, 0], "x1": x[:, 1], "place": place, "y": y, "kind": kind})


def p_values(seeds, **options):
    return np.array([
        given_input(window((seed, 1)), window((seed, 2), **options), INPUTS, OUTPUTS).p_value for seed in range(seeds)
    ])  # fmt: skip


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_it_holds_its_level_whether_or_not_the_input_has_changed(shift):
    alarms = (p_values(60, shift=shift) <= 0.05).mean()
    assert alarms <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 60)


def test_a_test_that_does_not_know_the_input_would_blame_the_stage_nearly_always():
    alarms = [
        drift.compare(window((seed, 1))["y"], window((seed, 2), shift=0.7)["y"], multivariate=()).drifted
        for seed in range(10)
    ]
    assert np.mean(alarms) > 0.9


@pytest.mark.parametrize(
    ("options", "power"),
    [
        ({"change": 0.6}, 0.9),
        ({"change": 0.6, "shift": 0.7}, 0.5),
        ({"spread": 2.5}, 0.9),
        ({"swap": 0.7}, 0.9),  # up for some inputs, down for others
    ],
)
def test_it_finds_changes_given_the_input(options, power):
    assert (p_values(20, **options) <= 0.05).mean() >= power


def test_windows_without_a_common_input_cannot_be_compared():
    test = given_input(window(1), window(2, shift=8, change=5), INPUTS, OUTPUTS)
    assert not test.comparable and test.p_value == 1.0 and test.overlap < 0.05
    assert given_input(window(1), window(2), INPUTS, OUTPUTS).overlap > 0.9


def test_the_figure_that_changed_is_named_with_its_direction():
    test = given_input(window(1, 300), window(2, 300, change=-0.8), INPUTS, OUTPUTS)
    assert test.figures["figure"].iloc[0] == "y"
    assert test.figures["effect"].iloc[0] < -0.4


def test_units_and_outliers_do_not_matter():
    before, now = window(1), window(2, change=0.3)
    as_it_is = given_input(before, now, INPUTS, OUTPUTS)
    other = [frame.assign(y=np.exp(255 * frame["y"] / 50), x1=frame["x1"] * 1e6) for frame in (before, now)]
    assert given_input(*other, INPUTS, OUTPUTS).p_value == as_it_is.p_value


def test_without_an_input_outputs_are_compared_as_they_are():
    assert given_input(window(1, 200), window(2, 200, shift=0.7), [], OUTPUTS).p_value < 0.01
    assert given_input(window(3, 200), window(4, 200), [], OUTPUTS).p_value > 0.05


def test_missing_values_and_constants():
    before, now = window(1, 200), window(2, 200)
    now.loc[::3, "y"] = np.nan  # is missing, and was not
    before["same"], now["same"] = 1.0, 1.0
    assert given_input(before, now, INPUTS, ["y"]).p_value < 0.01
    nothing = given_input(before, now, INPUTS, ["same"])
    assert nothing.p_value == 1.0 and not len(nothing.figures)


def test_too_few_rows():
    with pytest.raises(TooFewRows):
        given_input(window(1, 19), window(2), INPUTS, OUTPUTS)


def texts(values):
    return [f"{value:.2f}" for value in values]


def at_times(values):
    return pd.Timestamp("2026-01-01") + pd.to_timedelta(values, unit="h")


@pytest.mark.parametrize(
    ("before", "now", "why"),
    [
        (list, texts, "was numeric, is text"),
        (at_times, at_times, "times are not compared"),
        (lambda values: [{} for _ in values], lambda values: [{} for _ in values], "neither numbers nor classes"),
    ],
)
@pytest.mark.parametrize("column", ["x0", "y"])
def test_a_column_that_cannot_be_compared_is_refused(column, before, now, why):
    frames = window(1), window(2, shift=1)
    frames = [frame.assign(**{column: make(frame[column])}) for frame, make in zip(frames, (before, now), strict=True)]
    with pytest.raises(ValueError, match=f"{column} cannot be compared: {why}.*: convert it, or leave it out"):
        given_input(*frames, INPUTS, OUTPUTS)


def test_a_column_without_any_value_tells_nothing_and_is_no_error():
    frames = [window(seed).assign(x1=np.nan) for seed in (1, 2)]
    without = [frame.drop(columns="x1") for frame in frames]
    assert given_input(*frames, INPUTS, OUTPUTS).p_value == given_input(*without, ["x0", "place"], OUTPUTS).p_value


@pytest.mark.parametrize("names", [(["x0", "x0"], OUTPUTS), (INPUTS, ["y", "kind", "y"])])
def test_a_name_comes_once(names):
    with pytest.raises(ValueError, match=r"puts=\[.*\]: (x0|y) comes twice: give each name once"):
        given_input(window(1), window(2), *names)


def test_the_same_rows_give_the_same_answer():
    first, second = (given_input(window(1), window(2), INPUTS, OUTPUTS, seed=3) for _ in range(2))
    pd.testing.assert_frame_equal(first.figures, second.figures)


def test_neighbours_that_are_alike_count_as_fewer_rows():
    alone = np.random.default_rng(0).normal(0.1, 1, (100, 1))
    once, thrice = (conditional.largest(rows, 1_999)[0] for rows in (alone, alone.repeat(3, axis=0)))
    assert once / 3 < thrice < 3 * once


def test_residuals_are_those_of_leaving_each_row_out(monkeypatch):
    """Against a ridge regression on explicit features of the same kernel, fitted anew without each row."""
    monkeypatch.setattr(conditional, "RIDGES", np.array([0.7]))
    random = np.random.default_rng(0)
    x, y = random.normal(size=(40, 2)), random.normal(size=40)
    squared = cdist(x, x, "sqeuclidean")
    middle = x - x.mean(axis=0)
    values, vectors = np.linalg.eigh(np.exp(-squared / np.median(squared[squared > 0])) + middle @ middle.T / 2)
    features = vectors * np.sqrt(np.maximum(values, 0))
    expected = []
    for row in range(40):
        rest = np.arange(40) != row
        fitted = Linear(0.7).fit(features[rest], y[rest])
        expected.append(y[row] - fitted.predict(features[[row]])[0])
    np.testing.assert_allclose(conditional.Ridge(x).residuals(y[:, np.newaxis])[:, 0], expected, rtol=1e-6)


def test_p_values_are_those_of_all_signs():
    products = np.random.default_rng(1).normal(0, 1, (10, 1))
    every = np.array(list(itertools.product([-1, 1], repeat=10))) @ products
    exact = (np.abs(every) >= np.abs(products.sum()) - 1e-12).mean()
    assert exact > 0.1
    assert conditional.largest(products, 9_999)[0] == pytest.approx(exact, abs=0.02)
