"""What a pipeline writes down of its runs."""

from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from labsupport.pipeline import Pipeline, Stage, describe


@dataclass
class Point:
    x: int
    name: str


@pytest.mark.parametrize(
    ("value", "figures"),
    [
        (None, {}),
        (3, {"value": 3}),
        (np.float32(0.5), {"value": 0.5}),
        (np.True_, {"value": True}),
        ("yes", {"value": "yes"}),
        (np.array([[1.0, 3.0]]), {"size": 2, "mean": 2.0, "std": 1.0, "min": 1.0, "max": 3.0}),
        ([], {"size": 0}),
        (["a", "b"], {"size": 2}),
        ({"a": 1, "b": {"c": "x"}, "d": [1, 1]}, {"a": 1, "b_c": "x", "d_size": 2, "d_mean": 1.0, "d_std": 0.0}
         | {"d_min": 1.0, "d_max": 1.0}),
        (Point(1, "p"), {"x": 1, "name": "p"}),
        (namedtuple("Pair", "a b")(1, None), {"a": 1}),
        (object(), {"type": "object"}),
    ],
)  # fmt: skip
def test_what_is_watched_of_a_value_by_default(value, figures):
    assert describe(value) == figures


def ticking(*durations):
    """A clock that says 0 when a run starts, and then lets each stage take that long."""
    times = [0.0]
    for duration in durations:
        times += [times[-1], times[-1] + duration]
    return iter(times).__next__


def test_every_run_is_a_row_with_what_each_stage_did():
    pipeline = Pipeline([Stage("words", str.split), Stage("count", len)], clock=ticking(0.5, 0.25))
    assert pipeline.run("one two") == 2
    (row,) = pipeline.frame().to_dict("records")
    expected = {"time": 0.0, "input.value": "one two"}
    expected |= {"words.asked": True, "words.latency": 0.5, "words.error": None, "words.null": False, "words.size": 2}
    expected |= {"count.asked": True, "count.latency": 0.25, "count.error": None, "count.null": False}
    assert row == expected | {"count.value": 2}


def test_none_ends_a_run_and_unknown_goes_on():
    asked = []
    answers = {"nothing": None, "shrug": "unknown", "word": "known"}
    pipeline = Pipeline([Stage("first", answers.get), Stage("second", lambda word: asked.append(word) or "offer")])
    assert [pipeline.run(word) for word in answers] == [None, "offer", "offer"]
    assert asked == ["unknown", "known"]
    table = pipeline.frame()
    assert table["first.null"].tolist() == [True, True, False]
    assert table["second.asked"].tolist() == [False, True, True]


def test_an_error_is_written_down_and_raised():
    pipeline = Pipeline([Stage("divide", lambda number: 1 / number), Stage("next", lambda number: number)])
    with pytest.raises(ZeroDivisionError):
        pipeline.run(0)
    assert pipeline.run(4) == 0.25
    table = pipeline.frame()
    assert table["divide.error"].tolist()[0] == "ZeroDivisionError" and table["divide.error"].isna().tolist()[1]
    assert table["next.asked"].tolist() == [False, True]
    assert (table["divide.latency"] >= 0).all()
    assert pipeline.summary()["errors"].tolist() == [0.5, 0.0]


def test_what_is_watched_can_be_chosen():
    pipeline = Pipeline([Stage("square", lambda x: x * x, lambda y: {"even": y % 2 == 0})], lambda x: {"sign": x > 0})
    pipeline.run(3)
    assert pipeline.frame()[["input.sign", "square.even"]].values.tolist() == [[True, False]]


def fails(value):
    raise RuntimeError("no description today")


@pytest.mark.parametrize("broken", [fails, lambda value: None, lambda value: [value], lambda value: {"latency": 1}])
@pytest.mark.parametrize("part", ["input", "first", "second"])
def test_what_watches_never_breaks_what_is_watched(broken, part, caplog):
    described = {
        name: broken if name == part else (lambda value: {"n": value}) for name in ("input", "first", "second")
    }
    stages = [Stage(name, lambda value: value + 1, described[name]) for name in ("first", "second")]
    pipeline = Pipeline(stages, describe=described["input"])
    assert [pipeline.run(value) for value in range(3)] == [2, 3, 4]
    if (part, broken({}) if broken is not fails else 0) == ("input", {"latency": 1}):
        return  # of the input no latency is noted, so the name is free
    frame = pipeline.frame()
    assert f"{part}.n" not in frame and {f"{name}.n" for name in described if name != part} <= {*frame}
    assert not frame["first.error"].notna().any() and not frame["second.error"].notna().any()
    assert len(caplog.records) == 1 and f"{part}: its output is not described" in caplog.text


def test_windows_by_time_and_the_oldest_runs_go_first():
    times = iter(float(tick) for tick in range(100))
    pipeline = Pipeline([Stage("same", lambda x: x)], most=5, clock=lambda: next(times))
    for number in range(8):
        pipeline.run(number)  # starts at 0, 3, 6, ...
    assert pipeline.frame()["input.value"].tolist() == [3, 4, 5, 6, 7]
    assert pipeline.frame(since=12.0, until=18.0)["input.value"].tolist() == [4, 5]
    assert pipeline.summary(since=12.0)["throughput"].tolist() == [4 / 9]


def test_a_pipeline_that_has_not_run_has_an_empty_frame_and_summary():
    pipeline = Pipeline([Stage("same", lambda x: x)])
    assert pipeline.frame().empty
    assert pipeline.summary()["asked"].tolist() == [0]


def test_many_threads_lose_no_run():
    pipeline = Pipeline([Stage("double", lambda x: 2 * x)])
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(pipeline.run, range(400))) == list(range(0, 800, 2))
    table = pipeline.frame()
    assert sorted(table["input.value"]) == list(range(400))
    assert (table["double.value"] == 2 * table["input.value"]).all()


@pytest.mark.parametrize("names", [[], ["a", "a"]])
def test_stages_need_names_of_their_own(names):
    with pytest.raises(ValueError, match="a name of its own"):
        Pipeline([Stage(name, len) for name in names])


@pytest.mark.parametrize("name", ["", "a.b", "input"])
def test_names_that_would_be_mistaken(name):
    with pytest.raises(ValueError, match="a stage's name"):
        Stage(name, len)


def test_a_stage_that_exits_has_given_no_answer():
    def exits(value):
        raise SystemExit(3)

    pipeline = Pipeline([Stage("exits", exits)])
    with pytest.raises(SystemExit):
        pipeline.run(1)
    assert pipeline.frame()["exits.error"].tolist() == ["SystemExit"]
    assert pipeline.summary()["errors"].tolist() == [1.0]


@pytest.mark.parametrize("since", [float("nan"), "yesterday", datetime(2026, 1, 1), True])
def test_a_moment_that_is_none_is_refused(since):
    pipeline = Pipeline([Stage("half", lambda number: number / 2)])
    for window in ({"since": since}, {"until": since}):
        with pytest.raises(ValueError, match=r"since=|until="):
            pipeline.frame(**window)


def test_a_window_may_begin_a_while_ago():
    pipeline = Pipeline([Stage("half", lambda number: number / 2)])
    pipeline.run(3)
    assert (
        len(pipeline.frame(since=timedelta(minutes=5)))
        == len(pipeline.frame(datetime.now(UTC) - timedelta(hours=1)))
        == 1
    )
