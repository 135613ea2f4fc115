"""The dashboard's figures beside pandas, its pictures beside what is in them, its cost beside a clock, and Grafana's
questions beside what the server really exposes."""

import json
import math
import re
import shutil
import subprocess
import threading
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import requests
from matplotlib.colors import same_color, to_hex
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event

from benchmarks.log import aged
from labsupport import paths
from labsupport.charts import ALARM, BEFORE, NOW
from labsupport.detection import Box, Detection
from labsupport.log import LogUnavailable, PredictionLog
from labsupport.monitoring import (
    DEFAULT_RULES,
    MEASURES,
    MINUTES,
    Alarms,
    AlertRule,
    Live,
    dashboard,
    dashboard_data,
    grafana,
    notebook_dashboard,
    timeline,
)
from labsupport.monitoring.dashboard_data import NO_LOG, bounded
from labsupport.monitoring.panels import LOOKED_AT, PANELS
from labsupport.monitoring.timeline import bucket_edges, fired, reach, read
from labsupport.protection.security import TokenGuard
from labsupport.rollout import Router, State
from labsupport.scenarios import simulate
from labsupport.scenarios.incidents import INCIDENTS
from labsupport.serving import create_app, errors, serve
from test_retention import steps

BEGAN = 1_700_000_000.0  # a multiple of 100 seconds
APPLE = (paths.IMAGES / "apple.jpg").read_bytes()
CAT = Detection("cat", 0.9, Box(0, 0, 9, 9))
WITHOUT_DRIFT = [measure for measure in LOOKED_AT if measure.name != "drift"]


class Cats:
    """A version that sees cats, one in every picture."""

    def __init__(self, version="cats"):
        self.version = version

    def detect(self, image, confidence=0.5):
        return [CAT]


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Twenty minutes, of which the last ten go wrong in two ways, with the sizes of the pictures."""
    with PredictionLog(f"sqlite:///{tmp_path_factory.mktemp('dashboard')}/log.db") as log:
        simulate("darkness", start=600, seconds=1200, rate=4, seed=1).write(log, began=BEGAN)
        random = np.random.default_rng(0)
        for number, second in enumerate(random.uniform(0, 1200, 400)):
            seen = {"brightness": 0.4, "width": random.integers(100, 2000), "height": 500}
            log.record(
                id=f"sized{number}", version="sized", latency=0.1, detections=[CAT], features=seen, time=BEGAN + second
            )
            if number % 9 == 0:
                log.flush()
                log.feedback(f"sized{number}", retry=True)
        log.flush()
        yield log


def seen_in(log, since=BEGAN, until=BEGAN + 1200, **more):
    return timeline.timeline(read(log, since - reach(DEFAULT_RULES), until), since, until, **more)


def series(seen):
    return {one.measure.name: one for panels in seen.rows.values() for _, lines in panels for one in lines}


# the series, beside pandas


def by_pandas(frame: pd.DataFrame, name: str, seconds: float) -> float:
    """What the measure's name says, in a data analyst's words; NaN where there is nothing."""
    frame = frame.assign(error=frame.error.fillna(""))
    good = frame[frame.status == 200]
    said = good.correct.notna() | good.retry.fillna(False).astype(bool)
    words = {
        "requests_per_second": lambda: len(frame) / seconds,
        "error_ratio": lambda: (frame[frame.error.isin(["", "RuntimeError"])].error == "RuntimeError").mean(),
        "refused_ratio": lambda: (frame.error == "Overloaded").mean(),
        "undecodable_ratio": lambda: (frame.error == "UnsupportedImage").mean(),
        "latency_p95": lambda: good.latency.quantile(0.95),
        "latency_p50": lambda: good.latency.median(),
        "brightness_mean": lambda: good.brightness.mean(),
        "megapixels_mean": lambda: (good.width * good.height).mean() / 1e6,
        "detections_mean": lambda: good.n_detections.mean(),
        "empty_ratio": lambda: (good.n_detections == 0).mean(),
        "confidence_mean": lambda: good.max_confidence.mean(),
        "wrong_ratio": lambda: (good.correct == False).fillna(False).mean(),  # noqa: E712
        "retry_ratio": lambda: good.retry.fillna(False).astype(bool).mean(),
        "feedback_ratio": lambda: said.mean(),
    }
    return float(words[name]())


@pytest.mark.parametrize("name", [measure.name for measure in WITHOUT_DRIFT])
def test_points_and_lines_are_what_pandas_makes_of_the_log(log, name):
    since, until = BEGAN + 307, BEGAN + 1190
    seen, frame = seen_in(log, since, until), log.frame()
    frame["second"] = frame.time.astype("int64") / 1e6
    one = series(seen)[name]
    assert len(one.points) == len(one.judged) == len(seen.edges) - 1
    window = next((rule.window for rule in DEFAULT_RULES if rule.metric == name), None)
    stretches = list(zip(seen.edges[:-1], seen.edges[1:], one.points, one.judged, strict=True))
    for start, end, point, judged in [*stretches[::9], stretches[-1]]:
        inside = frame[(frame.second >= start) & (frame.second < end)]
        assert point == pytest.approx(by_pandas(inside, name, end - start), rel=1e-9, nan_ok=True)
        if window:
            before = frame[(frame.second >= end - window) & (frame.second < end)]
            assert judged == pytest.approx(by_pandas(before, name, window), rel=1e-9)
        else:
            assert judged == pytest.approx(point, nan_ok=True)
    last = frame[(frame.second >= until - 60) & (frame.second < until)]
    assert seen.now[name].value == pytest.approx(by_pandas(last, name, 60), rel=1e-9)
    assert seen.count == ((frame.second >= since) & (frame.second < until)).sum()


def test_a_line_is_not_drawn_where_the_alarm_wants_more_rows(tmp_path):
    with PredictionLog(f"sqlite:///{tmp_path}/log.db") as log:
        for number in range(40):
            dark = {"brightness": 0.1}
            log.record(id=str(number), version="a", latency=0.1, detections=[], features=dark, time=BEGAN + 10 * number)
        log.flush()
        one = series(seen_in(log, BEGAN, BEGAN + 400))["brightness_mean"]
    drawn, rows = np.isfinite(one.judged), (np.arange(len(one.judged)) + 1) * 10 / 10
    assert np.array_equal(drawn, rows >= one.rules[0].min_rows) and drawn.any() and not drawn.all()
    assert np.isfinite(one.points).all()


@pytest.mark.parametrize(
    ("since", "until"), [(0, 1), (7.3, 7.9), (0, 900), (3, 3600), (BEGAN, BEGAN + 86_400), (0, 1e8), (59.9, 120.1)]
)
def test_stretches_cover_the_window_and_are_of_one_length_but_for_the_ends(since, until):
    edges = bucket_edges(since, until)
    assert (edges[0], edges[-1]) == (since, until) and len(edges) <= 77
    widths = np.diff(edges)
    assert (widths > 0).all()
    if len(widths) > 3:
        step = widths[1]
        assert np.allclose(widths[1:-1], step) and np.allclose(edges[1:-1] % step, 0)
        assert step / 2 <= widths[0] <= 1.5 * step and step / 2 <= widths[-1] <= 1.5 * step


# alarms


@pytest.mark.parametrize("incident", INCIDENTS)
def test_each_incident_is_shaded_as_if_somebody_had_looked_all_the_while(tmp_path, incident):
    traffic = simulate(incident, start=600, seconds=1080, seed=5)
    watched = Alarms(DEFAULT_RULES, traffic)
    for now in range(0, 1081, 15):
        watched.evaluate(float(now))
    with PredictionLog(f"sqlite:///{tmp_path}/log.db") as log:
        traffic.write(log)
        spans = seen_in(log, 300, 1080).spans
    assert INCIDENTS[incident].alarm in [span.alarm for span in spans]
    late = (
        60 if incident in ("users correct", "dirty lens") else 0
    )  # what they say is known from the answer on, in a log read later
    expected = fired(watched.history, DEFAULT_RULES, 300, 1080)
    assert [span.alarm for span in spans] == [span.alarm for span in expected]
    for span, other in zip(spans, expected, strict=True):
        assert other.since - late <= span.since <= other.since and span.until == other.until == 1080


def test_an_alarm_that_fired_before_the_window_is_shaded_from_its_edge(log):
    (span,) = seen_in(log, BEGAN + 1000).spans
    assert (span.alarm, span.since, span.until) == ("Dark", BEGAN + 1000, BEGAN + 1200)


def test_what_was_seen_while_it_happened_is_shaded_where_it_happened(log):
    rule = AlertRule("Dark", "brightness_mean", below=0.3, window=60, hold=0, min_rows=1)
    alarms = Alarms([rule], log)
    for now in (BEGAN + 100, BEGAN + 700, BEGAN + 900):
        alarms.evaluate(now)
    seen = seen_in(log, rules=alarms.rules, alarms=alarms)
    assert [(span.alarm, span.since, span.until) for span in seen.spans] == [("Dark", BEGAN + 700, BEGAN + 1200)]


def test_an_alarm_that_cleared_ends_where_it_cleared_and_outside_the_window_is_not_seen():
    def event(time, what):
        return SimpleNamespace(time=time, alarm="Dark", event=what)

    history = [event(10, "fired"), event(20, "cleared"), event(30, "fired"), event(50, "cleared"), event(70, "fired")]
    rules = [AlertRule("Dark", "brightness_mean", below=0.2)]
    spans = [(span.since, span.until) for span in fired(history, rules, 25, 60)]
    assert spans == [(30, 50)]
    assert [(span.since, span.until) for span in fired(history, rules, 40, 80)] == [(40, 50), (70, 80)]


# the figure


@pytest.fixture(scope="module")
def figure(log):
    rollouts = [
        State("v1", candidate="v2", mode="canary", share=5.0, time=BEGAN + 300, action="canary"),
        State("v2", time=BEGAN + 600, action="promote"),
        State("v3", time=BEGAN + 5000, action="promote"),  # outside
    ]
    return dashboard(log, since=BEGAN, until=BEGAN + 1200, rollouts=rollouts)


def panels_of(figure):
    return {axis.get_title(loc="left"): axis for axis in figure.axes if axis.get_visible()}


def dashed(axis):
    return [line.get_ydata()[0] for line in axis.lines if same_color(line.get_color(), ALARM)]


def test_every_row_and_panel_is_there_with_its_limits(figure):
    panels = panels_of(figure)
    expected = [panel for group, panels in PANELS.items() if group != "drift" for panel in panels]
    assert list(panels) == [panel.title for panel in expected]
    assert [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()] == ["software", "input", "output", "user"]
    for panel in expected:
        names = {measure.name for measure in panel.measures}
        assert dashed(panels[panel.title]) == [rule.limit for rule in DEFAULT_RULES if rule.metric in names]


def test_lines_show_the_series(figure, log):
    seen = series(seen_in(log))
    for panel in (panel for group in ("software", "input", "output", "user") for panel in PANELS[group]):
        lines = [line for line in panels_of(figure)[panel.title].lines if line.get_linewidth() == 1.8]
        for line, measure in zip(lines, panel.measures, strict=True):
            np.testing.assert_array_equal(line.get_ydata(), seen[measure.name].judged)
        colours, styles = [to_hex(line.get_color()) for line in lines], {line.get_linestyle() for line in lines}
        assert colours == [BEFORE, NOW][: len(lines)] and len(styles) == len(lines)  # told apart without colours, too


def test_alarms_are_shaded_on_their_own_panel(figure, log):
    (span,) = seen_in(log).spans
    assert span.alarm == "Dark" and BEGAN + 600 < span.since < BEGAN + 1200
    for title, axis in panels_of(figure).items():
        shaded = [patch for patch in axis.patches if same_color(patch.get_facecolor()[:3], ALARM)]
        assert len(shaded) == (title == "brightness")
        for patch in shaded:
            assert patch.get_x() * 86_400 == pytest.approx(span.since, abs=1.5)  # matplotlib counts in days
            assert (patch.get_x() + patch.get_width()) * 86_400 == pytest.approx(BEGAN + 1200, abs=1.5)


def test_rollouts_are_marked_with_letters_that_are_explained_below(figure):
    for axis in panels_of(figure).values():
        assert [text.get_text() for text in axis.texts] == ["A", "B"]
        marks = [line for line in axis.lines if line.get_linestyle() == ":"]
        places = [np.datetime64(line.get_xdata()[0], "s").astype(int) for line in marks]
        assert places == [BEGAN + 300, BEGAN + 600]
    below = figure.get_supxlabel()
    assert "A: 22:18 canary v2 5 %" in below and "B: 22:23 promote v2" in below and "v3" not in below


def test_the_title_and_the_sentence_say_the_figures_of_the_last_minute(figure, log):
    frame = log.frame(since=BEGAN + 1140, until=BEGAN + 1200)
    rate, p95 = len(frame) / 60, frame.latency[frame.status == 200].quantile(0.95)
    title = f"simulated and sized answer, {rate:.3g} requests/s, 0 % failed, 0 % refused, p95 {p95:.3g} s, firing: Dark"
    assert figure.get_suptitle() == title
    assert figure.alt == f"Dashboard from 22:13 to 22:33 UTC: {title}."


def test_with_a_reference_there_is_drift_and_its_limit(log):
    reference = log.columns(*MEASURES["drift"].columns, since=BEGAN, until=BEGAN + 400)
    alarms = Alarms(DEFAULT_RULES, log, reference=reference)
    figure = dashboard(log, since=BEGAN + 400, until=BEGAN + 1200, alarms=alarms)
    axis = panels_of(figure)["drift from the reference"]
    assert dashed(axis) == pytest.approx([5.0])  # 1e-5
    (line,) = [line for line in axis.lines if line.get_linewidth() == 1.8]
    judged, end = line.get_ydata(), bucket_edges(BEGAN + 400, BEGAN + 1200)[1]
    window = log.columns(*MEASURES["drift"].columns, since=end - 300, until=end)
    value = replace(MEASURES["drift"], reference=reference).read(window, 300).value
    assert judged[0] == pytest.approx(-math.log10(value)) and judged[-1] > 5 > judged[0]


@pytest.mark.parametrize("names", [[], ["yolov3-tiny/openvino-bf16", "yolov3-tiny/litert-int8", "yolov3-tiny/pruned"]])
def test_it_is_as_wide_as_a_notebook_and_nothing_sticks_out(log, monkeypatch, names):
    if names:
        monkeypatch.setattr(notebook_dashboard, "_versions", lambda *_: names)
    figure = dashboard(log, since=BEGAN, until=BEGAN + 1200)
    assert figure.get_figwidth() <= 12
    figure.canvas.draw()
    box = figure.get_tightbbox()
    assert box.x0 >= -0.02 and box.x1 <= figure.get_figwidth() + 0.02


def test_an_empty_log_is_a_sentence(tmp_path):
    with PredictionLog(f"sqlite:///{tmp_path}/log.db") as log:
        for since in (timedelta(minutes=5), None):
            figure = dashboard(log, since=since, until=BEGAN)
            (text,) = figure.axes[0].texts
            assert "Nothing was written down" in text.get_text() and "since=" in text.get_text()
            assert "no requests were written down" in figure.alt


def test_it_begins_where_it_is_told_to(log):
    assert dashboard(log, since=timedelta(minutes=10), until=BEGAN + 1200).alt.startswith(
        "Dashboard from 22:23 to 22:33"
    )
    assert dashboard(log, since=None, until=BEGAN + 1200).alt.startswith("Dashboard from 22:13 to 22:33")
    silent = dashboard(log, since=BEGAN, until=BEGAN + 3600)
    assert silent.get_suptitle().startswith("silent since 22:33, 0 requests/s")


@pytest.mark.parametrize("since", [BEGAN + 10, BEGAN, timedelta(0)])
def test_a_window_that_ends_before_it_begins_is_refused(log, since):
    with pytest.raises(ValueError, match="is not before until"):
        dashboard(log, since=since, until=BEGAN)


# what the page reads


def strict(text):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_the_page_gets_the_same_series_and_no_number_that_json_does_not_know(log):
    data = strict(json.dumps(Live(log, {"yolov3-tiny": Router(Cats())}).look(15, until=BEGAN + 1200)))
    seen = seen_in(log, BEGAN + 300)
    assert data["edges"] == list(seen.edges) and data["count"] == seen.count
    lines = {one["measure"]: one for row in data["rows"] for panel in row["panels"] for one in panel["series"]}
    for name, one in series(seen).items():
        for given, expected in ((lines[name]["points"], one.points), (lines[name]["judged"], one.judged)):
            assert [value is None for value in given] == [math.isnan(value) for value in expected]
            numbers = [math.nan if value is None else value for value in given]
            np.testing.assert_allclose(numbers, expected, rtol=1e-5)
        assert lines[name]["value"] == pytest.approx(seen.now[name].value, rel=1e-9)
        assert lines[name]["limits"] == [rule.limit for rule in DEFAULT_RULES if rule.metric == name]
    (alarm,) = [alarm for alarm in data["alarms"] if alarm["state"] == "firing"]
    rule = next(rule for rule in DEFAULT_RULES if rule.name == "Dark")
    assert (alarm["name"], alarm["severity"], alarm["cure"]) == ("Dark", rule.severity, rule.cure)
    assert data["spans"] == [span._asdict() for span in seen.spans]
    assert data["versions"][0]["version"] == "cats" and data["message"] is None


def test_rollouts_of_all_models_come_in_the_order_of_time(log):
    first, second = Router(Cats("a")), Router(Cats("b"))
    first.canary(Cats("c"), 5, "why not")
    second.shadow(Cats("d"))
    data = Live(log, {"yolov3": second, "yolov3-tiny": first}).look(15)
    texts = ["start a", "start b", "canary c 5 %", "shadow d 100 %"]
    assert [change["text"] for change in data["rollouts"]] == texts
    assert data["rollouts"][2]["reason"] == "why not"


def test_a_look_reads_the_newest_changes_only_however_many_there_were(log, monkeypatch):
    router = Router(Cats("a"))
    for _ in range(3):
        router.canary(Cats("b"), 5)
        router.rollback()
    monkeypatch.setattr("labsupport.monitoring.dashboard_data.CHANGES", 2)
    assert [change["text"] for change in Live(log, {"m": router}).look(15)["rollouts"]] == [
        "canary b 5 %",
        "rollback a",
    ]


def test_of_too_many_rows_the_newest_are_shown_and_all_of_them(log, monkeypatch):
    rows, known = bounded(log, BEGAN, BEGAN + 1200, limit=500)
    expected = read(log, known, BEGAN + 1200)
    assert 500 <= len(rows["time"]) < 800 and known > BEGAN + 900
    for name, values in rows.items():
        np.testing.assert_array_equal(values, expected[name])
    everything, known = bounded(log, BEGAN, BEGAN + 1200)
    assert known == BEGAN
    np.testing.assert_array_equal(everything["time"], read(log, BEGAN, BEGAN + 1200)["time"])
    monkeypatch.setattr(dashboard_data, "bounded", lambda log, since, until: bounded(log, since, until, limit=500))
    data = Live(log, {}).look(15, until=BEGAN + 1200)
    assert "only the last" in data["message"] and data["edges"][0] > BEGAN + 900 and data["since"] == BEGAN + 300


@pytest.mark.parametrize("takes", [0.0001, 0.02, 0.5, 4.0])
def test_looking_never_costs_more_than_a_twentieth_of_a_core(monkeypatch, takes):
    now, looks = 100.0, 0

    def look(minutes):
        nonlocal now, looks
        now, looks = now + takes, looks + 1
        return {}

    monkeypatch.setattr(dashboard_data, "clock", SimpleNamespace(monotonic=lambda: now))
    watched = Live(None, {})
    monkeypatch.setattr(watched, "look", look)
    for _ in range(3000):  # five pages that each ask twice a second
        watched.text()
        now += 0.1
    assert looks * takes <= (now - 100) / 20 + takes  # the first one had no time before it
    assert 2 <= looks <= now - 100 + 1  # not more often than once a second


def test_whoever_asks_while_somebody_looks_gets_what_was_seen_before(log, monkeypatch):
    looking, go_on = threading.Event(), threading.Event()
    watched = Live(None, {})
    first = watched.text()
    watched._kept[15] = (first, -math.inf)  # too old

    def slow(minutes):
        looking.set()
        assert go_on.wait(30)
        return {"new": True}

    monkeypatch.setattr(watched, "look", slow)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(watched.text()))
    thread.start()
    assert looking.wait(30)
    assert watched.text() == first
    go_on.set()
    thread.join(30)
    assert answers == [b'{"new": true}'] == [watched.text()]


# what a look costs, however old the log is


@pytest.fixture(scope="module")
def ages(tmp_path_factory):
    """Two logs with the same last day, one of which holds forty times as many rows from before: their folders."""
    folder, logs = tmp_path_factory.mktemp("ages"), {}
    for name, before in (("young", 1_000), ("old", 40_000)):
        aged(folder / f"{name}.db", rows=before + 1_000, every=86.4, until=BEGAN)
        logs[name] = PredictionLog(folder / f"{name}.db")
    return logs


LOOKS = {
    **{
        f"a page of {minutes} minutes": lambda log, minutes=minutes: Live(log, {}).look(minutes, BEGAN)
        for minutes in MINUTES
    },
    "the alarms": lambda log: Alarms(DEFAULT_RULES, log).evaluate(BEGAN),
    "the notebook's dashboard": lambda log: dashboard(log, until=BEGAN),
    "the first row": lambda log: log.oldest(),
    "a remark": lambda log: log.feedback(f"{0:032x}", correct=True),
    "what stations decided": lambda log: log.decisions(since=BEGAN - 3600),
    "a window": lambda log: log.frame(since=BEGAN - 3600),
}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_a_look_costs_the_database_the_same_however_old_the_log_is(ages, look):
    """Counted in instructions of SQLite's virtual machine, which no other load on the machine changes."""
    costs = {name: steps(log, lambda log=log: look(log)) for name, log in ages.items()}
    assert 0 < costs["old"] < 1.1 * costs["young"]


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
def test_no_look_scans_a_table(ages, look):
    plans = explained(ages["old"], look)
    assert plans
    for plan in plans:
        for line in plan:
            assert not line.startswith("SCAN") or ("COVERING INDEX" in line and "min" in plan[0]), plan


def explained(log, look) -> list[list[str]]:
    """How SQLite goes about each question of a look: the lines of EXPLAIN QUERY PLAN, after the question."""
    asked, plans = [], []

    def note(connection, cursor, statement, parameters, context, executemany) -> None:
        asked.append((statement, parameters))

    event.listen(log._engine, "before_cursor_execute", note)
    try:
        look(log)
    finally:
        event.remove(log._engine, "before_cursor_execute", note)
    with log._engine.connect() as connection:
        for statement, parameters in asked:
            if statement.lstrip().startswith("SELECT") and "sqlite_master" not in statement:
                plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
                plans.append([statement, *(row[-1] for row in plan)])
    return plans


# over HTTP


def test_the_page_and_its_data_are_served_and_say_nothing_to_others(tmp_path):
    with PredictionLog(f"sqlite:///{tmp_path}/log.db") as log, serve(create_app(Cats(), log=log), port=0) as server:
        page = requests.get(f"{server.url}/dashboard", timeout=30)
        assert page.ok and page.headers["content-type"] == "text/html; charset=utf-8"
        assert "connect-src 'self'" in page.headers["content-security-policy"]
        assert not re.search(
            r"(?:src|href|action)=[\"'](?!data:)|https?://(?!www\.w3\.org/2000/svg)|@import", page.text
        )
        assert "Nothing was asked" in requests.get(f"{server.url}/dashboard/data", timeout=30).json()["message"]
        for _ in range(3):
            assert requests.post(f"{server.url}/detect", files={"file": APPLE}, timeout=30).ok
        log.flush()
        data = requests.get(f"{server.url}/dashboard/data?minutes=60", timeout=30).json()
        assert data["count"] == 3 and data["figures"]["detections_mean"] == 1 and data["message"] is None
        assert requests.get(f"{server.url}/dashboard/data?minutes=7", timeout=30).status_code == 422
        schema = requests.get(f"{server.url}/openapi.json", timeout=30).json()
        (parameter,) = schema["paths"]["/dashboard/data"]["get"]["parameters"]
        assert (
            str(list(MINUTES)) in json.dumps(schema["components"]["schemas"]["Minutes"]) and not parameter["required"]
        )


def test_a_server_without_a_log_says_how_to_get_one():
    with serve(create_app(Cats()), port=0) as server:
        data = requests.get(f"{server.url}/dashboard/data", timeout=30).json()
    assert (data["message"], data["rows"], data["alarms"]) == (NO_LOG, [], [])
    assert data["versions"][0]["version"] == "cats"


def test_a_log_that_cannot_be_reached_is_no_failure_of_the_server(log, monkeypatch):
    def unreachable(*names, **window):
        raise LogUnavailable("the database is away")

    monkeypatch.setattr(log, "columns", unreachable)
    with serve(create_app(Cats(), log=log), port=0) as server:
        answer = requests.get(f"{server.url}/dashboard/data", timeout=30)
    assert answer.status_code == 503 and answer.json() == {"detail": errors.TEXTS[LogUnavailable]}
    assert "retry-after" in answer.headers


def test_beyond_loopback_page_and_data_need_the_token():
    token = "0123456789abcdef"
    with serve(TokenGuard(create_app(Cats()), token), port=0) as server:
        for path in ("/dashboard", "/dashboard/data"):
            assert requests.get(server.url + path, timeout=30).status_code == 401
            assert requests.get(server.url + path, headers={"Authorization": f"Bearer {token}"}, timeout=30).ok


def test_several_workers_say_the_same(log):
    one, other = Live(log, {}), Live(log, {})
    other.look(15, until=BEGAN + 600)  # it was asked before, and knows no more for it
    assert one.look(15, until=BEGAN + 1200) == other.look(15, until=BEGAN + 1200)


# Grafana

GRAFANA = json.loads((paths.root() / "deploy" / "grafana-dashboard.json").read_text())
EXPRESSIONS = [target["expr"] for panel in GRAFANA["panels"] for target in panel.get("targets", ())]
EXPRESSIONS += [mark["expr"] for mark in GRAFANA["annotations"]["list"]]
OF_PROMETHEUS = {"up": {"job"}, "ALERTS": {"alertname", "alertstate", "severity"}}  # what it makes itself


def test_the_file_is_what_the_code_writes():
    assert (paths.root() / "deploy" / "grafana-dashboard.json").read_text() == grafana.to_grafana()


def test_every_panel_of_the_notebook_but_drift_is_there_with_its_limit():
    drawn = {panel["title"]: panel for panel in GRAFANA["panels"]}
    for panel in (panel for group, panels in PANELS.items() if group != "drift" for panel in panels):
        assert len(drawn[panel.title]["targets"]) == len(panel.measures)
        limits = [rule.limit for rule in DEFAULT_RULES if rule.metric in [one.name for one in panel.measures]]
        steps = drawn[panel.title]["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", [{}])
        assert [step.get("value") for step in steps[1:]] == limits[:1]


def test_panels_lie_side_by_side_on_the_grid():
    taken = set()
    for panel in GRAFANA["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in GRAFANA["panels"]}) == len(GRAFANA["panels"])


@pytest.fixture(scope="module")
def exposed(tmp_path_factory):
    """Every sample's name on a real server's /metrics after some traffic, with the labels and values that it has."""
    folder = tmp_path_factory.mktemp("exposed")
    with PredictionLog(f"sqlite:///{folder}/log.db") as log, serve(create_app(Cats(), log=log), port=0) as server:
        answer = requests.post(f"{server.url}/detect", files={"file": APPLE}, timeout=30)
        requests.post(f"{server.url}/detect", files={"file": b"no picture"}, timeout=30)
        said = {"prediction_id": answer.headers["X-Prediction-Id"], "retry": True}
        assert requests.post(f"{server.url}/feedback", json=said, timeout=30).ok
        text = requests.get(f"{server.url}/metrics", timeout=30).text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            for label, value in sample.labels.items():
                found.setdefault(sample.name, {}).setdefault(label, set()).add(value)
            found.setdefault(sample.name, {})
    return found


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_every_question_is_about_metrics_and_labels_that_the_server_exposes(exposed, expr):
    selectors = re.findall(r"([A-Za-z_:][\w:]*)\{([^}]*)\}", expr)
    assert selectors
    for metric, matchers in selectors:
        if metric in OF_PROMETHEUS:
            assert set(re.findall(r"(\w+)=", matchers)) <= OF_PROMETHEUS[metric]
            continue
        assert metric in exposed, metric
        for label, sign, value in re.findall(r'(\w+)(=~?)"([^"]*)"', matchers):
            if label == "job":  # Prometheus adds it, from its own configuration
                assert f"job_name: {value} " in (paths.root() / "deploy" / "prometheus.yml").read_text()
            elif sign == "=":
                assert value in exposed[metric][label]
            else:
                assert set(value.split("|")) <= exposed[metric][label]
    for labels in re.findall(r"by \(([^)]*)\)", expr):
        for metric, _ in selectors:
            assert {label.strip() for label in labels.split(",")} <= exposed[metric].keys()
    words = set(re.findall(r"[A-Za-z_:][\w:]*", re.sub(r"\{[^}]*\}|\[[^]]*\]|by \([^)]*\)|\b\d\w*\b", "", expr)))
    known = {"sum", "rate", "histogram_quantile", "count", "max", "vector", "or", "unless", "offset"}
    assert words - {metric for metric, _ in selectors} <= known  # nothing is asked for without a selector


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool: apt-get install prometheus")
def test_prometheus_understands_every_question(tmp_path):
    rules = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(EXPRESSIONS)]
    file = tmp_path / "rules.json"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True)
    assert done.returncode == 0 and f"SUCCESS: {len(rules)} rules found" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(("seconds", "step"), [(4, 1), (100, 30), (135, 30), (250, 60), (590, 120)])
def test_a_short_period_shows_seconds_on_its_clock(tmp_path, seconds, step):
    with PredictionLog(f"sqlite:///{tmp_path}/short.db") as log:
        log.record(id="1", version="v1", latency=0.1, detections=[], features={}, time=BEGAN + 1)
        log.flush()
        figure = dashboard(log, since=BEGAN, until=BEGAN + seconds)
    figure.canvas.draw()
    ticks = figure.axes[9].get_xticklabels()
    marks = [
        int(hour) * 3600 + int(minute) * 60 + int(second)
        for hour, minute, second in (tick.get_text().split(":") for tick in ticks)
    ]
    assert 2 <= len(marks) <= 6
    assert set(np.diff(marks)) == {step}
