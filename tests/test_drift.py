"""The comparison as a whole: no drift, no alarm; drift, alarm; what it says, and what it does with bad data."""

import copy
import datetime
import json
import math
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy import stats

from labsupport import drift
from labsupport.drift import multivariate
from labsupport.drift.p_values import CORRECTIONS
from labsupport.tabular import columns, containers

ALPHA = 0.05


def correlated(random, rows: int, rho: float, columns: int) -> np.ndarray:
    """Normal columns, each standard, every pair of them correlated by rho."""
    return math.sqrt(rho) * random.normal(size=(rows, 1)) + math.sqrt(1 - rho) * random.normal(size=(rows, columns))


def mixed(random, rows: int, columns: int) -> dict[str, np.ndarray]:
    """Numbers with holes, truth values, counts, classes, rounded numbers, all correlated by .7."""
    made = {}
    for number, x in enumerate(correlated(random, rows, 0.7, columns).T):
        kinds = [
            lambda x: np.where(random.random(rows) < 0.1, np.nan, x),
            lambda x: x > 0.8,
            lambda x: np.floor(2 * np.exp(x)),
            lambda x: np.array(list("abcdef"))[np.digitize(x, [-1, 0, 1, 1.5, 2])],
            lambda x: x.round(1),
        ]
        made[f"feature {number}"] = kinds[number % 5](x)
    return made


def autoregressive(random, phi: float, rows: int) -> np.ndarray:
    noise, values = random.normal(size=rows + 200) * math.sqrt(1 - phi**2), np.zeros(rows + 200)
    for row in range(1, rows + 200):
        values[row] = phi * values[row - 1] + noise[row]
    return values[200:]


def most_alarms(runs: int, share: float = ALPHA) -> int:
    """So many alarms or fewer, in all but one in a thousand of the times that the true share is as promised."""
    return int(stats.binom.isf(0.001, runs, share))


# corrections


def naive_holm(p_values: list[float]) -> list[float]:
    adjusted, least = {}, 0.0
    for rank, number in enumerate(sorted(range(len(p_values)), key=lambda number: p_values[number])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[number]))
        adjusted[number] = least
    return [adjusted[number] for number in range(len(p_values))]


def naive_benjamini_hochberg(p_values: list[float]) -> list[float]:
    """The smallest level at which the step-up procedure names it: of K as small or smaller ones, p times N over K."""
    ranked = [(p, sum(other <= p for other in p_values)) for p in p_values]
    return [min(1.0, *(other * len(p_values) / rank for other, rank in ranked if other >= p)) for p in p_values]


@pytest.mark.parametrize("count", [0, 1, 2, 7, 50])
def test_corrections_are_their_definitions(count):
    random = np.random.default_rng(count)
    for p_values in (random.random(count) ** 3, np.repeat(random.random(count), 2)[:count], np.ones(count)):
        assert CORRECTIONS["holm"](p_values) == pytest.approx(naive_holm(p_values.tolist()), abs=1e-15)
        assert CORRECTIONS["bonferroni"](p_values) == pytest.approx([min(1, count * p) for p in p_values], abs=1e-15)
        assert CORRECTIONS["bh"](p_values) == pytest.approx(naive_benjamini_hochberg(p_values.tolist()), abs=1e-15)


def test_the_example_of_benjamini_and_hochberg():
    """1995, section 4.1: of fifteen p-values Bonferroni's procedure finds three at .05, theirs four."""
    p_values = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344]
    p_values = np.array([*p_values, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0])
    found = {name: int((adjust(p_values) <= 0.05).sum()) for name, adjust in CORRECTIONS.items()}
    assert found == {"bonferroni": 3, "holm": 3, "bh": 4}


# no drift, no alarm


WORLDS = {  # columns, rows of the reference and of the window, pairs
    "one, normal": (lambda random, rows: random.normal(size=(rows, 1)), 500, 200, 60),
    "10, normal": (lambda random, rows: random.normal(size=(rows, 10)), 300, 150, 20),
    "10, correlated": (lambda random, rows: correlated(random, rows, 0.7, 10), 300, 150, 20),
    "100, correlated": (lambda random, rows: correlated(random, rows, 0.7, 100), 200, 100, 2),
    "5, mixed, few rows": (lambda random, rows: mixed(random, rows, 5), 60, 40, 40),
    "one, with holes": (lambda random, rows: mixed(random, rows, 1), 30, 30, 40),
    "10, mixed": (lambda random, rows: mixed(random, rows, 10), 300, 150, 10),
}


@pytest.fixture(scope="module")
def clean_alarms():
    """Of each world, how many pairs of clean windows alarm, by any of the corrections, and how many there are."""
    found = {}
    for name, (draw, n, m, runs) in WORLDS.items():
        alarms = dict.fromkeys(CORRECTIONS, 0)
        for seed in range(runs):
            random = np.random.default_rng([seed, n])
            report = drift.compare(draw(random, n), draw(random, m), ALPHA)
            p_values = pd.concat([report.features["p_value"], report.together["p_value"]]).dropna().to_numpy(float)
            for correction, adjust in CORRECTIONS.items():
                alarms[correction] += bool((adjust(p_values) <= ALPHA).any())
            assert report.drifted == bool((CORRECTIONS["holm"](p_values) <= ALPHA).any())
        found[name] = (max(alarms.values()), runs)
    return found


@pytest.mark.parametrize("world", WORLDS)
def test_no_drift_no_alarm(world, clean_alarms):
    """The share of clean pairs with any alarm is at most alpha, up to the binomial's .999 quantile, by any correction."""
    alarms, runs = clean_alarms[world]
    assert alarms <= most_alarms(runs)


def test_no_drift_no_alarm_in_all_worlds_together(clean_alarms):
    alarms, runs = map(sum, zip(*clean_alarms.values(), strict=True))
    assert alarms <= most_alarms(runs)


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_each_correction_is_used_on_features_and_whole_alike(correction):
    random = np.random.default_rng(0)
    clean, now = random.normal(size=(200, 4)), random.normal([0, 0.3, 0, 0.6], 1, size=(150, 4))
    report = drift.compare(clean, now, correction=correction)
    p_values = np.concatenate([report.features["p_value"], report.together["p_value"]])
    adjusted = np.concatenate([report.features["p_adjusted"], report.together["p_adjusted"]])
    assert adjusted == pytest.approx(CORRECTIONS[correction](p_values), abs=1e-15)
    drifted = np.concatenate([report.features["drifted"], report.together["drifted"]])
    assert drifted.tolist() == (adjusted <= ALPHA).tolist()
    assert drifted[3]


def test_clean_features_are_not_said_to_resemble_themselves():
    said = [
        drift.compare(*np.random.default_rng(seed).normal(size=(2, 200, 20)), multivariate=()).warnings
        for seed in range(15)
    ]
    assert sum(map(bool, said)) <= most_alarms(15, 0.02)


# drift, alarm


def test_a_change_in_correlation_alone_is_found_and_no_feature_is_blamed():
    found, blamed, runs = 0, 0, 12
    for seed in range(runs):
        random = np.random.default_rng(seed)
        clean, turned = random.normal(size=(150, 2)), correlated(random, 150, 0.6, 2)
        report = drift.compare(clean, turned)
        found += report.drifted
        blamed += report.features["drifted"].any()
    assert found == runs
    assert blamed <= most_alarms(runs)
    assert "correlations of 0, 1" in report.summary()


def test_one_moved_feature_of_ten_is_named():
    random = np.random.default_rng(0)
    report = drift.compare(random.normal(size=(500, 10)), random.normal([0.5] + [0] * 9, 1, size=(500, 10)))
    assert report.features.query("drifted")["feature"].tolist() == ["0"]
    assert report.to_frame()["feature"].iloc[0] == "0"
    assert not report.together.query("test == 'correlations'")["drifted"].item()


@pytest.mark.parametrize(("phi", "rows"), [(0.5, 500), (0.9, 500), (0.9, 2000)])
def test_serial_correlation_is_said_and_allowed_for(phi, rows):
    """False alarms at most .08, where the plain test has .23 to .73; at +.5 sd a power of .9 at phi .5."""
    runs, alarms, found, said = 30, 0, 0, 0
    for seed in range(runs):
        random = np.random.default_rng(seed)
        reference, current = autoregressive(random, phi, rows), autoregressive(random, phi, 500)
        report = drift.compare(reference, current)
        alarms += report.drifted
        said += any("resemble their neighbours (serial correlation)" in words for words in report.warnings)
        found += phi == 0.5 and drift.compare(reference, current + 0.5).drifted
    assert alarms <= most_alarms(runs)
    assert said == runs
    if phi == 0.5:
        assert found >= 0.9 * runs


def test_a_short_window_is_judged_by_how_alike_neighbours_are_in_the_long_one():
    """Users send some pictures of one scene each. Sixty rows rarely show that, 2,000 do: by themselves, .097 of the short
    windows would alarm, and so few as two standard errors above .05 would not do."""
    runs = 300

    def window(random, rows: int) -> dict:
        scenes = np.repeat(random.normal(size=rows), random.geometric(0.25, rows))[:rows]
        return {"brightness": 0.93 * scenes + 0.37 * random.normal(size=rows)}

    alarms = 0
    for seed in range(runs):
        random = np.random.default_rng([seed, 3])
        alarms += drift.compare(window(random, 2_000), window(random, 60)).drifted
    assert alarms <= (0.05 + 2 * math.sqrt(0.05 * 0.95 / runs)) * runs


def test_in_a_large_sample_significant_and_relevant_are_told_apart():
    random = np.random.default_rng(0)
    small = drift.compare(random.normal(size=100_000), random.normal(0.02, 1, size=100_000))
    assert small.drifted
    assert small.features["reading"].item() == "negligible"
    assert "too small to matter by itself: 0" in small.warnings[0]
    large = drift.compare(random.normal(size=100_000), random.normal(1, 1, size=100_000))
    assert large.features["reading"].item() == "large"
    assert not large.warnings


def test_a_reading_does_not_depend_on_the_number_of_rows():
    """A shift of .4 sd has a PSI of .15, moderate; to it chance adds .06 at 300 and 300 rows, which is taken off."""
    for rows in (300, 1000, 20_000):
        random, readings = np.random.default_rng(rows), []
        for _ in range(15):
            report = drift.compare(random.normal(size=rows), random.normal(0.4, 1, size=rows))
            readings += report.features.query("drifted")["reading"].tolist()
        assert max(set(readings), key=readings.count) == "moderate"


@pytest.mark.parametrize(
    ("before", "now", "test"),
    [
        (lambda r: r.poisson(3, 400), lambda r: r.poisson(4, 200), "chi-square"),
        (lambda r: r.random(400) < 0.3, lambda r: r.random(200) < 0.6, "Fisher"),
        (lambda r: r.choice(list("abc"), 400), lambda r: r.choice(list("abc"), 200, p=[0.6, 0.2, 0.2]), "chi-square"),
        (lambda r: r.choice(list("abc"), 400), lambda r: r.choice(list("abd"), 200), "chi-square"),
        (lambda r: r.lognormal(size=400), lambda r: 2 * r.lognormal(size=200), "KS"),
        (lambda r: words(r, 5, 400), lambda r: words(r, 8, 200), "KS"),
        (lambda r: np.ones(400), lambda r: np.full(200, 2.0), "Fisher"),
        (lambda r: np.ones(400), lambda r: r.normal(size=200), "KS"),
        (lambda r: r.normal(size=400), lambda r: np.ones(200), "KS"),
        (
            lambda r: r.normal(size=400),
            lambda r: np.where(r.random(200) < 0.2, np.nan, r.normal(size=200)),
            "KS, missing",
        ),
        (lambda r: r.normal(size=400), lambda r: np.full(200, np.nan), "missing"),
        (lambda r: np.full(400, np.nan), lambda r: r.normal(size=200), "missing"),
    ],
)
def test_each_kind_of_data_gets_its_test_and_an_alarm(before, now, test):
    random = np.random.default_rng(0)
    report = drift.compare({"x": before(random)}, {"x": now(random)})
    assert report.features["test"].item() == test
    assert report.drifted


def words(random, count: int, rows: int) -> list[str]:
    return [" ".join(map(str, random.integers(0, 10_000, random.poisson(count) + 1))) for _ in range(rows)]


def test_the_effects_are_their_definitions():
    random = np.random.default_rng(0)
    reference, current = random.normal(3, 2, size=700), random.normal(4, 2, size=300)
    row = drift.compare({"x": reference}, {"x": current}).features.iloc[0]
    assert row.statistic == pytest.approx(stats.ks_2samp(reference, current).statistic, abs=1e-12)
    expected = stats.wasserstein_distance(reference, current) / reference.std()
    assert row.wasserstein == pytest.approx(expected, abs=1e-12)
    assert row.effect == drift.psi(reference, current).value == float(drift.psi(reference, current))
    assert row.limit == drift.psi(reference, current).limit
    assert drift.psi(reference, current).drifted


def test_every_multivariate_test_can_be_asked_for():
    random = np.random.default_rng(0)
    clean, moved = random.normal(size=(150, 3)), random.normal([0, 2, 0], 1, size=(100, 3))
    report = drift.compare(clean, moved, multivariate=("classifier", "mmd"))
    assert report.together["test"].tolist() == ["MMD", "domain classifier"]
    assert report.together["leading"].iloc[1].startswith("1")
    assert report.together["drifted"].all()
    assert drift.compare(clean, moved, multivariate="mmd").together["test"].tolist() == ["MMD"]
    assert not len(drift.compare(clean, moved, multivariate=()).together)


def test_many_columns_are_compared_without_their_correlations():
    random = np.random.default_rng(0)
    report = drift.compare(random.normal(size=(60, 120)), random.normal(1, 1, size=(60, 120)), correction="bonferroni")
    assert report.together["test"].tolist() == ["MMD"]
    assert report.together["drifted"].item()  # 999 permutations would not be enough for 121 tests
    assert "correlations not compared: more than 100 columns" in report.warnings


# the report


@pytest.fixture(scope="module")
def report():
    random = np.random.default_rng(0)
    reference = {
        "same": random.normal(size=300),
        "<b>": random.normal(size=300),
        "holes $x^^$": random.normal(size=300),
        "type": random.normal(size=300),
        "empty": np.full(300, np.nan),
        "gone": random.normal(size=300),
        "feature": random.choice(["a $x^^$", "b", "a very long name of a class"], 300),
        7: random.random(300) < 0.5,
    }
    current = {
        "same": random.normal(size=200),
        "<b>": random.normal(1.5, 1, size=200),
        "holes $x^^$": np.where(random.random(200) < 0.3, np.nan, random.normal(size=200)),
        "type": ["a", "b"] * 100,
        "empty": np.full(200, np.nan),
        "gone": [None] * 200,
        "feature": random.choice(["a $x^^$", "b", "a very long name of a class"], 200),
        7: random.random(200) < 0.5,
    }
    return drift.compare(reference, current)


def test_features_are_in_the_datas_order_and_to_frame_has_the_worst_first(report):
    assert report.features["feature"].tolist() == [
        "same",
        "<b>",
        "holes $x^^$",
        "type",
        "empty",
        "gone",
        "feature",
        "7",
    ]
    worst = report.to_frame()
    assert worst["feature"].tolist()[:4] == ["type", "gone", "<b>", "holes $x^^$"]
    assert worst["drifted"].tolist() == [True] * 4 + [False] * 4
    assert sorted(worst["feature"]) == sorted(report.features["feature"])
    worst["feature"] = "changed"
    assert "changed" not in report.features["feature"].tolist()


def test_the_summary_says_it_in_words(report):
    said = report.summary()
    assert said.startswith("drift in type (was numeric, is text), gone (missing: 0% before, 100% now), <b> (large), ")
    assert re.search(r"holes \$x\^\^\$ \(missing: 0% before, (2|3)\d% now\)", said)
    assert "(family-wise level 0.05, 300 and 200 rows); " in said
    assert said.endswith("not compared: empty (all missing in both windows)")
    assert repr(report) == f"<DriftReport: {said}>"
    random = np.random.default_rng(0)
    clean = drift.compare(*random.normal(size=(2, 1200)), alpha=0.01, correction="bh")
    assert clean.summary() == "no drift (false-discovery rate 0.01, 1,200 and 1,200 rows)"


def test_json_can_be_read_everywhere(report):
    def refuse(literal):
        raise AssertionError(f"{literal} is no JSON")

    found = json.loads(report.to_json(), parse_constant=refuse)
    assert found["drifted"] is True
    assert [row["feature"] for row in found["features"]] == report.features["feature"].tolist()
    rows = {row["feature"]: row for row in found["features"]}
    assert rows["type"]["p_value"] is None
    assert rows["<b>"]["p_value"] == pytest.approx(report.features["p_value"][1])
    assert found["rows"] == [300, 200]
    assert (found["alpha"], found["correction"]) == (0.05, "holm")
    assert found["together"][0]["test"] == "correlations"
    assert found["warnings"] == list(report.warnings)
    infinite = drift.compare({"x": [True, False] * 20}, {"x": [False] * 40})  # its odds ratio is infinite
    assert json.loads(infinite.to_json(), parse_constant=refuse)["features"][0]["statistic"] in (None, 0)


def test_html_escapes_what_comes_from_the_data(report):
    html = report._repr_html_()
    assert "&lt;b&gt;" in html
    assert "<b>drift in type" in html  # its own
    assert html.count("<b>") == 1
    assert "not compared: empty" in html
    assert "nan" not in html.lower().replace("missing", "")


def test_plot_shows_the_worst_first_with_names_as_they_are(report):
    figure = report.plot()
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert titles[0] == "gone: missing: 0% before, 100% now"
    assert titles[1] == "<b>: large"
    assert titles[2].startswith("holes $x^^$: missing: 0% before")
    assert len(titles) == 6  # what turned to text, or has no values, has no shape
    assert [axes.title.get_fontweight() for axes in figure.axes[:4]] == ["bold"] * 3 + ["normal"]
    classes = next(axes for axes in figure.axes if axes.get_title().startswith("feature"))
    assert {label.get_text() for label in classes.get_xticklabels()} == {"a $x^^$", "b", "a very long nam…"}
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert len([axes for axes in report.plot(most=1).axes if axes.get_visible()]) == 1


def test_what_is_plotted_are_shares(report):
    for bins, before, now in report.shapes.values():
        assert (before.sum(), now.sum()) == (pytest.approx(1), pytest.approx(1))
        assert len(bins) - len(before) in (0, 1)
        assert len(before) == len(now)
    edges, before, _ = drift.compare(np.arange(1000.0), np.arange(1000.0)).shapes["0"]
    assert before == pytest.approx(np.full(24, 1 / 24), abs=0.002)
    assert (edges[0], edges[-1]) == (pytest.approx(1, abs=0.1), pytest.approx(998, abs=0.1))


def test_the_figure_of_nothing_is_empty():
    empty = {"x": np.full(30, np.nan)}
    report = drift.compare(empty, empty)
    assert not report.drifted
    assert report.summary().startswith("nothing could be tested")
    assert report.plot()._repr_png_()


def test_a_seed_settles_it_and_the_data_stay_as_they_are():
    random = np.random.default_rng(0)
    before, now = (pd.DataFrame(mixed(random, rows, 5)) for rows in (150, 100))
    kept = copy.deepcopy((before, now))
    first, again = (
        drift.compare(before, now, multivariate=("mmd", "correlations", "classifier"), seed=3) for _ in "ab"
    )
    assert first.to_json() == again.to_json()
    for frame, copied in zip((before, now), kept, strict=True):
        pd.testing.assert_frame_equal(frame, copied)
    array = random.normal(size=(50, 2))
    kept = array.copy()
    drift.compare(array, array)
    assert np.array_equal(array, kept)


def test_frames_dicts_and_arrays_give_the_same_numbers():
    random = np.random.default_rng(0)
    arrays = random.normal(size=(100, 3)), random.normal(0.3, 1, size=(80, 3))
    made = [
        lambda array: array,
        pd.DataFrame,
        lambda array: pl.DataFrame({str(i): column for i, column in enumerate(array.T)}),
        lambda array: {i: column.tolist() for i, column in enumerate(array.T)},
    ]
    first, *others = [drift.compare(*map(make, arrays)).to_json() for make in made]
    assert all(other == first for other in others)
    holes = [np.where(random.random(100) < 0.2, np.nan, column) for column in random.normal(size=(2, 100))]
    kinds = [
        pd.Series,
        lambda x: pl.Series([None if np.isnan(v) else v for v in x]),
        lambda x: pd.array(x, dtype="Float64"),
    ]
    first, *others = [drift.compare(*({"x": make(column)} for column in holes)).to_json() for make in kinds]
    assert all(other == first for other in others)


def test_a_unit_does_not_matter():
    random = np.random.default_rng(0)
    before, now = random.normal(size=(2, 300, 2))
    first, second = drift.compare(before, now), drift.compare(255 * before, 255 * now)
    for column in ("statistic", "p_value", "effect", "wasserstein", "inefficiency"):
        assert first.features[column].tolist() == pytest.approx(second.features[column].tolist(), rel=1e-9)
    assert first.together["p_value"].tolist() == second.together["p_value"].tolist()


def test_many_rows_are_looked_at_on_every_core_with_the_same_result(monkeypatch):
    random = np.random.default_rng(0)
    before, now = random.normal(size=(50_000, 3)), random.normal(0.05, 1, size=(40_000, 3))
    threads = drift.compare(before, now)
    monkeypatch.setattr("labsupport.drift.report._map", lambda look, names, cells: [look(name) for name in names])
    assert threads.to_json() == drift.compare(before, now).to_json()
    assert threads.features["drifted"].all()


# Parquet files


def stored(folder, name: str, frame: pd.DataFrame):
    path = folder / f"{name}.parquet"
    frame.to_parquet(path, row_group_size=40)
    return path


def holding_everything(random, rows: int) -> pd.DataFrame:
    frame = pd.DataFrame(mixed(random, rows, 10))
    frame["feature"] = random.normal(size=rows)  # the dot of the next one means nothing
    frame["feature.2"] = frame["feature"].astype(np.float32)
    frame["when"] = pd.Timestamp("2025-01-01")
    frame["category"] = pd.Categorical(random.choice(list("xyz"), rows))
    frame["whole"] = pd.array(np.where(random.random(rows) < 0.1, None, random.integers(0, 99, rows)), dtype="Int64")
    frame["user"] = random.integers(0, 30, rows)
    return frame.set_index(pd.Index(random.normal(size=rows), name="index"))


@pytest.mark.parametrize("options", [{}, {"groups": "user"}, {"multivariate": ("classifier",), "correction": "bh"}])
def test_parquet_files_are_compared_as_their_frames_are(tmp_path, options):
    random = np.random.default_rng(0)
    frames = [holding_everything(random, rows) for rows in (150, 120)]
    paths = [stored(tmp_path, name, frame) for name, frame in zip("ab", frames, strict=True)]
    expected = drift.compare(*map(pd.read_parquet, paths), **options).to_json()
    assert drift.compare(*paths, **options).to_json() == expected
    assert drift.compare(str(paths[0]), pd.read_parquet(paths[1]), **options).to_json() == expected


def test_neighbours_that_are_alike_are_compared_as_in_a_frame(tmp_path):
    random = np.random.default_rng(0)
    frames = [pd.DataFrame({name: autoregressive(random, 0.8, 600) for name in "xy"}) for _ in "ab"]
    paths = [stored(tmp_path, name, frame) for name, frame in zip("ab", frames, strict=True)]
    report = drift.compare(*paths)
    assert report.features["inefficiency"].min() > 2
    assert report.to_json() == drift.compare(*frames).to_json()


def test_all_features_are_tested_on_rows_that_are_far_enough_apart():
    random = np.random.default_rng(0)
    windows = [{name: autoregressive(random, 0.8, 600) for name in "xy"} for _ in "ab"]
    report = drift.compare(*windows, multivariate="mmd")
    step = math.ceil(report.features["inefficiency"].max())
    assert step > 2
    scores = [multivariate.scores(*(window[name][::step] for window in windows)) for name in "xy"]
    expected = multivariate.mmd(*(np.column_stack(columns) for columns in zip(*scores, strict=True)))
    assert report.together["statistic"].item() == pytest.approx(expected.statistic, rel=1e-12)
    assert report.together["p_value"].item() == expected.p_value


def test_of_a_parquet_file_one_column_is_read_at_a_time(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    path = stored(tmp_path, "a", pd.DataFrame(random.normal(size=(50, 4)), columns=list("abcd")))
    read, asked = pd.read_parquet, []

    def recorded(path, columns=None):
        asked.append(columns)
        return read(path, columns=columns)

    monkeypatch.setattr(pd, "read_parquet", recorded)
    drift.compare(path, path)
    assert sorted(asked) == [["a"]] * 2 + [["b"]] * 2 + [["c"]] * 2 + [["d"]] * 2


def test_a_path_that_cannot_be_read_is_named(tmp_path):
    good = stored(tmp_path, "good", pd.DataFrame({"a": np.arange(30.0)}))
    bad = tmp_path / "bad.parquet"
    bad.write_text("a,b\n1,2\n")
    for path in (bad, tmp_path / "none.parquet", tmp_path):
        with pytest.raises(ValueError, match=f"^current: {re.escape(str(path))} cannot be read as a Parquet file"):
            drift.compare(good, path)
    with pytest.raises(ValueError, match="reference: give a frame, a dict"):
        drift.compare("good", good)
    with pytest.raises(columns.DifferentColumns, match="has no a"):
        drift.compare(good, stored(tmp_path, "other", pd.DataFrame({"b": np.arange(30.0)})))


# what a small comparison loads


def test_a_small_comparison_loads_no_large_library():
    program = """
import sys
import numpy as np
from labsupport import drift
before, now = np.random.default_rng(0).normal(size=(2, 500, 5))
text = str(drift.compare(before, now + 1)), str(drift.compare({"x": before[:, 0]}, {"x": now[:, 0].round()}))
text += (str(drift.compare(before[:150], now)),)
large = ("scipy.stats", "scipy.spatial", "pandas", "pyarrow", "sklearn", "river")
print(*(name for name in large if name in sys.modules))
import pandas as pd
def frame(x):
    return pd.DataFrame({"size": x[:, 0], "kind": np.where(x[:, 1] > 0, "a", "b")})
print(drift.compare(frame(before[:200]), frame(now[:150])).features.test.tolist(), "scipy.stats" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["", "['KS', 'Fisher'] False"]


def test_arrays_that_pandas_need_not_hold_are_compared_as_frames_are():
    random = np.random.default_rng(0)
    kinds = {
        "x": lambda rows: random.normal(size=rows),
        "holes": lambda rows: np.where(random.random(rows) < 0.2, np.nan, random.normal(size=rows)),
        "small": lambda rows: random.normal(size=rows).astype(np.float16),
        "counts": lambda rows: random.poisson(4, rows),
        "gone": lambda rows: np.full(rows, np.nan),
        "infinite": lambda rows: np.where(random.random(rows) < 0.1, np.inf, random.normal(size=rows)),
        "constant": lambda rows: np.full(rows, 7),
        "user": lambda rows: random.integers(0, 40, rows),
    }
    windows = [{name: draw(rows) for name, draw in kinds.items()} for rows in (300, 200)]
    for options in ({}, {"groups": "user"}):
        ours, theirs = drift.compare(*windows, **options), drift.compare(*map(pd.DataFrame, windows), **options)
        assert ours.to_json() == theirs.to_json() and ours.summary() == theirs.summary()
    only = [{"user": window["user"]} for window in windows]
    with pytest.raises(columns.DifferentColumns, match="no column to compare"):
        drift.compare(*only, groups="user")
    with pytest.raises(ValueError, match="reference: two columns of one name"):
        drift.compare({1: np.arange(30.0), "1": np.arange(30.0)}, windows[0])
    with pytest.raises(ValueError, match="columns of different lengths"):
        drift.compare({"a": np.arange(30.0), "b": np.arange(31.0)}, windows[0])
    with pytest.raises(containers.TooFewRows, match="0 rows"):
        drift.compare({"a": np.array([])}, windows[0])


# bad data: named errors, or a clear row; warnings are errors here


@pytest.mark.parametrize(
    ("reference", "current", "note"),
    [
        ([1.0] * 30, ["a"] * 30, "was numeric, is text"),
        ([True, False] * 15, [0.0, 1.0] * 15, "was boolean, is numeric"),
        ([datetime.date(2025, 1, 1)] * 30, [datetime.date(2025, 1, 1)] * 30, "times are not compared"),
        ([{"a": 1}] * 30, [{"a": 1}] * 30, "neither numbers nor classes nor texts, or several of these"),
        ([None] * 30, [None] * 30, "all missing in both windows"),
        ([10**400 + i for i in range(30)], [1.5] * 30, "whole numbers too large for floating point"),
        (
            np.arange(30.0),
            np.where(np.arange(30) * 7 % 30 < 15, np.inf, np.arange(30.0)),
            "15 infinite values count as missing",
        ),
    ],
)
def test_what_cannot_be_compared_is_a_row_with_a_note(reference, current, note):
    report = drift.compare({"x": reference}, {"x": current})
    assert report.features["note"].item() == note
    assert report.drifted == (note.startswith("was") or "infinite" in note)
    assert note in report.summary() or "missing: 0% before, 50% now" in report.summary()
    assert report._repr_html_()
    assert report.plot()


def test_a_window_of_the_smallest_size_is_compared():
    random = np.random.default_rng(0)
    report = drift.compare(random.normal(size=(20, 2)), random.normal(4, 1, size=(20, 2)))
    assert report.features["drifted"].all()
    few = np.r_[random.normal(size=4), np.full(26, np.nan)]
    tested = drift.compare({"x": few}, {"x": few}).features.iloc[0]
    assert (tested.test, tested.p_value) == ("missing", 1.0)


def test_bad_arguments_are_refused():
    good = np.random.default_rng(0).normal(size=(30, 2))
    for alpha in (0, 1, -1, math.nan):
        with pytest.raises(ValueError, match=r"^alpha=.*: give a number between 0 and 1, without the ends"):
            drift.compare(good, good, alpha)
    with pytest.raises(ValueError, match="correction='none': give one of 'holm', 'bonferroni', 'bh'"):
        drift.compare(good, good, correction="none")
    with pytest.raises(ValueError, match="multivariate='wasp': give one of 'correlations', 'mmd', 'classifier'"):
        drift.compare(good, good, multivariate="wasp")
    with pytest.raises(containers.TooFewRows, match="at least 20 are needed"):
        drift.compare(good, good[:1])
    with pytest.raises(columns.DifferentColumns, match="has no 1"):
        drift.compare(good, good[:, :1])


def test_psi_of_what_is_not_one_feature_is_refused():
    good = np.random.default_rng(0).normal(size=30)
    with pytest.raises(ValueError, match="one feature is needed, not 2"):
        drift.psi(np.column_stack([good, good]), np.column_stack([good, good]))
    with pytest.raises(ValueError, match="was numeric, is text"):
        drift.psi(good, ["a"] * 30)
    with pytest.raises(ValueError, match="one window has no values"):
        drift.psi(good, np.full(30, np.nan))
    with pytest.raises(containers.TooFewRows):
        drift.psi(good, good[:3])


def test_a_heap_at_the_top_of_a_column_is_compared_by_groups_too():
    random, user = np.random.default_rng(0), np.repeat(np.arange(120), 5)

    def frame(shape):
        return pd.DataFrame({"c": np.minimum(1, random.beta(shape, 2, 600) + 0.15), "user": user})

    moved, clean = (drift.compare(frame(6), frame(shape), groups="user") for shape in (2, 6))
    assert moved.found[0]["reading"] == "large" and not clean.drifted
    assert 0 < clean.found[0]["noise"] < clean.found[0]["limit"] < 0.1 and clean.found[0]["effect"] < 0.1
