"""Is the stage that changed named, and nobody else?"""

import numpy as np
import pandas as pd
import pytest

from labsupport.pipeline import Pipeline, Stage
from labsupport.pipeline.diagnosis import diagnose
from labsupport.scenarios import clickstream, speech
from labsupport.tabular import TooFewRows

STAGES = ["double", "word"]


def window(seed, rows=150, shift=0.0, factor=2.0, limit=1.0, latency=(0.01, 0.01), errors=0.0, nulls=0.0):
    """A number is doubled, with some noise; then it is called large or small. As a pipeline would write it down."""
    random = np.random.default_rng(seed)
    x = random.normal(shift, 1, rows)
    failed, null = random.random(rows) < errors, random.random(rows) < nulls
    y = np.where(failed | null, np.nan, factor * x + 0.3 * random.normal(size=rows))
    asked = ~(failed | null)
    word = np.where(y + random.normal(size=rows) > limit, "large", "small").astype(object)
    took = [seconds * random.lognormal(0, 0.2, rows) for seconds in latency]
    noted = {"double.asked": True, "double.latency": took[0], "double.error": np.where(failed, "OSError", None)}
    noted |= {"double.null": null, "double.value": y, "word.asked": asked, "word.latency": took[1]}
    noted |= {"word.error": None, "word.null": False, "word.value": np.where(asked, word, None)}
    return pd.DataFrame({"time": np.arange(rows, dtype=float), "input.value": x, **noted})


def verdicts(current, **options):
    report = diagnose(window(1), current, STAGES, **options)
    return report.entered, report.stages["verdict"].tolist()


@pytest.mark.parametrize(
    ("options", "entered", "found"),
    [
        ({}, None, ["unchanged", "unchanged", "unchanged"]),
        ({"shift": 1.0}, "input", ["changed", "inherited", "inherited"]),
        ({"factor": 3.5}, "double", ["unchanged", "changed", None]),
        ({"limit": -0.5}, "word", ["unchanged", "unchanged", "changed"]),
        ({"errors": 0.15}, "double", ["unchanged", "changed", "unchanged"]),
        ({"nulls": 0.15}, "double", ["unchanged", "changed", "unchanged"]),
        ({"errors": 0.95}, "double", ["unchanged", "changed", "unclear"]),
        ({"latency": (0.01, 0.02)}, "word", ["unchanged", "unchanged", "changed"]),
        ({"latency": (0.02, 0.02)}, None, ["unchanged", "unchanged", "unchanged"]),  # the machine's
        ({"latency": (0.02, 0.06)}, "word", ["unchanged", "unchanged", "changed"]),
        ({"latency": (0.01, 0.013)}, None, ["unchanged", "unchanged", "unchanged"]),  # too little
        ({"shift": 1.0, "limit": -1.0}, "input", ["changed", "inherited", "changed"]),
        ({"shift": 9.0}, "input", ["changed", "unclear", "unclear"]),
    ],
)
def test_where_a_change_entered(options, entered, found):
    named, said = verdicts(window(2, **options))
    assert named == entered
    assert [v for v, expected in zip(said, found, strict=True) if expected] == [v for v in found if v]


def test_a_figure_that_cannot_be_compared_is_not_taken_for_unchanged():
    """Numbers, and among them the word unknown: three times as often as before."""
    windows = window(1), window(2)
    for frame, every in zip(windows, (15, 5), strict=True):
        frame["double.value"] = frame["double.value"].astype(object).mask(frame.index % every == 0, "unknown")
    report = diagnose(*windows, STAGES)
    assert report.stages["verdict"].tolist() == ["unchanged", "unclear", "unclear"]
    assert report.stages["note"][1] == "value: neither numbers nor classes nor texts, or several of these"
    assert "double, word unclear" in report.summary()
    for frame in windows:
        frame["input.value"] = frame["double.value"]
    assert diagnose(*windows, STAGES).stages["verdict"][0] == "unclear"


def test_nobody_is_named_without_a_change_but_for_a_share_alpha():
    named = [diagnose(window((s, 1), 60), window((s, 2), 60), STAGES).entered for s in range(20)]
    assert sum(name is not None for name in named) <= 0.02 * 20 + 3 * np.sqrt(0.02 * 0.98 * 20)


def test_stages_that_only_inherit_are_not_named():
    named = [diagnose(window((s, 1), 100), window((s, 2), 100, shift=1.0), STAGES) for s in range(12)]
    assert all(report.entered == "input" for report in named)
    assert sum(len(report.named("changed")) > 1 for report in named) <= 0.02 * 12 + 3 * np.sqrt(0.02 * 0.98 * 12)


def test_the_machine_is_said_to_be_slower():
    report = diagnose(window(1), window(2, latency=(0.02, 0.02)), STAGES)
    assert report.slower == pytest.approx(2, abs=0.2)
    assert "every stage takes 2" in report.summary()


def test_milliseconds_are_not_counted():
    before, now = window(1, latency=(1e-5, 1e-5)), window(2, latency=(1e-5, 1e-4))
    assert diagnose(before, now, STAGES).entered is None


def test_numbers_that_have_become_classes():
    now = window(2)
    now["double.value"] = np.where(now["double.value"] > 0, "high", "low")
    report = diagnose(window(1), now, STAGES)
    assert report.entered == "double"
    assert report.stages["figure"][1] == "value"


def test_the_report_shows_itself():
    report = diagnose(window(1), window(2, limit=-0.5), STAGES)
    assert repr(report).startswith("<Diagnosis: the change entered at word: value was ")
    assert "(family-wise level 0.02, 150 and 150 runs)" in repr(report)
    assert "<table" in report._repr_html_() and "changed" in report._repr_html_()
    texts = [text.get_text() for axis in report.plot().axes for text in axis.texts]
    assert [text for text in texts if text in ("changed", "unchanged")] == ["unchanged", "unchanged", "changed"]


def test_the_same_windows_give_the_same_report():
    first, second = (diagnose(window(1), window(2, shift=0.3), STAGES) for _ in range(2))
    pd.testing.assert_frame_equal(first.stages, second.stages)


def test_frames_survive_a_file(tmp_path):
    before, now = window(1), window(2, limit=-0.5)
    before.to_parquet(tmp_path / "before.parquet")
    report = diagnose(pd.read_parquet(tmp_path / "before.parquet"), now, STAGES)
    pd.testing.assert_frame_equal(report.stages, diagnose(before, now, STAGES).stages)


@pytest.mark.parametrize("what", ["errors", "nulls"])
def test_errors_and_nulls_are_found_where_no_output_is_described(what):
    before, now = (frame.drop(columns="double.value") for frame in (window(1), window(2, **{what: 0.15})))
    report = diagnose(before, now, STAGES)
    assert report.entered == "double"
    assert report.stages["figure"][1] == what[:-1]


def test_windows_may_be_put_together_from_others():
    before, now = window(1), window(2, limit=-0.5)
    pieces = pd.concat([before[:70], before[70:].reset_index(drop=True)])  # row numbers occur twice
    pd.testing.assert_frame_equal(diagnose(pieces, now, STAGES).stages, diagnose(before, now, STAGES).stages)


def test_what_is_refused():
    with pytest.raises(TooFewRows, match="the current window has 19 runs: at least 20"):
        diagnose(window(1), window(2, rows=19), STAGES)
    with pytest.raises(ValueError, match="the reference window has no other"):
        diagnose(window(1), window(2), ["other"])
    with pytest.raises(ValueError, match="alpha=5: give a number between 0 and 1"):
        diagnose(window(1), window(2), STAGES, alpha=5)


def test_an_input_of_which_nothing_is_described_is_unclear():
    pipeline = Pipeline([Stage("size", len)], describe=lambda text: {})
    for number in range(60):
        pipeline.run("x" * (number % 7))
    report = pipeline.diagnose(pipeline.frame()[:30], pipeline.frame()[30:])
    assert report.stages["verdict"].tolist() == ["unclear", "unchanged"]


def texts(values):
    return [f"{value:.2f}" for value in values]


def at_times(values):
    return pd.Timestamp("2026-01-01") + pd.to_timedelta(values, unit="h")


@pytest.mark.parametrize(
    ("before", "now", "entered", "found", "note"),
    [
        (list, texts, "input", ["changed", "unclear"], "was numeric, is text"),
        (at_times, at_times, None, ["unclear", "unclear"], "times are not compared"),
    ],
)
def test_no_stage_is_blamed_for_an_input_that_cannot_be_compared(before, now, entered, found, note):
    frames = [window(seed, shift=shift) for seed, shift in ((1, 0), (2, 1))]
    frames = [
        frame.assign(**{"input.value": make(frame["input.value"])})
        for frame, make in zip(frames, (before, now), strict=True)
    ]
    report = diagnose(*frames, STAGES)
    assert report.entered == entered and report.stages["verdict"].tolist()[:2] == found
    assert report.stages["note"][1] == f"its input's value: {note}"


def test_an_output_of_another_type_is_a_change_of_its_stage():
    frames = window(1), window(2)
    frames[1]["double.value"] = texts(frames[1]["double.value"])
    report = diagnose(*frames, STAGES)
    assert report.entered == "double" and report.stages["verdict"].tolist() == ["unchanged", "changed", "unclear"]


# the two worked examples: smaller than the full runs, which name the true stage in at least 95 of 100


def heard(seed, version="1", vad=None, **microphone):
    pipeline = speech.pipeline(version, **(vad or {}))
    for sound in speech.clips(200, seed, **microphone).sound:
        pipeline.run(sound)
    return pipeline.frame()


@pytest.mark.parametrize(
    ("options", "entered"),
    [
        ({}, None),
        ({"noise_db": -44}, "input"),
        ({"gain_db": -4}, "input"),
        ({"vad": {"margin_db": 14.0, "lead": 0.03}}, "vad"),
        ({"version": "2"}, "recogniser"),
    ],
)
def test_spoken_words(options, entered):
    report = diagnose(heard((22, 1)), heard((22, 2), **options), ["vad", "recogniser"])
    assert report.entered == entered, report
    assert entered != "vad" or report.stages["verdict"].tolist() == ["unchanged", "changed", "inherited"]


def offered(seed, sure=0.7, offers=clickstream.OFFERS, **world):
    pipeline = clickstream.pipeline(sure, offers, seed)
    for clicks in clickstream.visits(500, seed, **world).clicks:
        pipeline.run(clicks)
    return pipeline.frame()


@pytest.mark.parametrize(
    ("options", "entered"),
    [
        ({}, None),
        ({"news": 2.0}, "input"),
        ({"lost": 0.35}, "input"),
        ({"sure": 0.85}, "profile"),
        ({"offers": clickstream.OFFERS_2}, "recommender"),
    ],
)
def test_offers(options, entered):
    report = diagnose(offered((20, 1)), offered((20, 2), **options), ["profile", "recommender"])
    assert report.entered == entered, report


def test_a_figure_that_no_run_has_is_not_known_and_breaks_nothing():
    before, now = (window(seed).assign(**{"input.extra": None}) for seed in (1, 2))
    assert diagnose(before, now, STAGES).entered is None
