"""A real Prometheus beside our server and our rules: it takes them, and it says what our own evaluation says."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from command import until
from labsupport import images, paths
from labsupport.detection import Box, Detection
from labsupport.log import PredictionLog
from labsupport.monitoring import DEFAULT_RULES, MEASURES, Alarms, AlertRule, Metrics
from labsupport.monitoring.prometheus import GONE, UNJUDGED, to_prometheus
from labsupport.scenarios import simulate
from labsupport.scenarios.incidents import INCIDENTS, Traffic
from labsupport.serving import create_app, serve

DEPLOY = paths.root() / "deploy"
EXPORTED = [rule for rule in DEFAULT_RULES if rule.measure.promql]
UP = {"series": 'up{job="labsupport"}', "values": "1x1000"}


def program(name: str) -> str:
    """Debian's, which CI installs."""
    if found := shutil.which(name):
        return found
    missing = pytest.fail if "LAB_REQUIRE_BROWSER" in os.environ else pytest.skip
    missing(f"no {name}: apt-get install prometheus")


def promtool(*words, stdin: str | None = None) -> None:
    done = subprocess.run(
        [program("promtool"), *map(str, words)], input=stdin, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


# what is written is what Prometheus takes


def test_the_files_in_deploy_are_what_the_code_says_and_prometheus_takes_them():
    assert (DEPLOY / "rules.yml").read_text() == to_prometheus(), (
        "python -m labsupport.monitoring.prometheus > deploy/rules.yml"
    )
    promtool("check", "rules", DEPLOY / "rules.yml")
    promtool("check", "config", DEPLOY / "prometheus.yml")


def test_names_times_and_texts_of_any_rule_get_there(tmp_path):
    odd = AlertRule(
        "Odd", "latency_p95", above=0.1 + 0.2, window=7.5, hold=0, cure='Say "no": {it\'s} — ok? 100 %\n# é'
    )
    (tmp_path / "odd.yml").write_text(to_prometheus([odd]))
    promtool("check", "rules", tmp_path / "odd.yml")
    assert "> 0.30000000000000004" in to_prometheus([odd])


def test_every_metric_of_the_rules_is_one_that_the_server_exposes():
    text = Metrics().text([("yolov3-tiny", "v1")])
    exposed = {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    asked = {name for measure in MEASURES.values() for name in re.findall(r"(\w+)\{", measure.promql + measure.counted)}
    assert len(asked) > 10 and asked <= exposed


def test_what_the_server_says_of_itself_is_what_prometheus_reads(server):
    for picture in ((paths.IMAGES / "apple.jpg").read_bytes(), b"no picture"):
        requests.post(server.url + "/detect", files={"file": picture}, timeout=30)
    promtool("check", "metrics", stdin=requests.get(server.url + "/metrics", timeout=30).text)


# written scenarios


def scenario(folder, rules, series, firing: dict[float, set[str]], interval: int = 60) -> None:
    """Let promtool play `series`, a value each `interval` seconds, and see which alarms fire at which second."""
    (folder / "rules.yml").write_text(to_prometheus(rules))
    expected = [
        {
            "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
            "eval_time": f"{int(second)}s",
            "exp_samples": [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(names)],
        }
        for second, names in firing.items()
    ]
    test = {"interval": f"{interval}s", "input_series": series, "promql_expr_test": expected}
    whole = {"rule_files": ["rules.yml"], "evaluation_interval": f"{interval}s", "tests": [test]}
    (folder / "test.yml").write_text(json.dumps(whole))  # JSON is YAML
    promtool("test", "rules", folder / "test.yml")


def counter(name: str, increments) -> dict[str, str]:
    values = " ".join(f"{value:.10g}" for value in np.cumsum([0, *increments]))
    return {
        "series": re.sub(r"\{|$", '{job="labsupport",', name, count=1).rstrip(",") + "}" * ("{" not in name),
        "values": values,
    }


DARK = AlertRule("Dark", "brightness_mean", below=0.2, clear=0.3, window=300, hold=120, min_rows=100, cure="Look.")


def brightness(values) -> list[dict[str, str]]:
    """Minute by minute the mean brightness of 60 pictures, or None: no picture came."""
    return [
        counter("input_image_brightness_ratio_sum", [60 * (value or 0) for value in values]),
        counter("input_image_brightness_ratio_count", [60 * (value is not None) for value in values]),
        UP,
    ]


def test_an_alarm_fires_when_it_should_and_not_before(tmp_path):
    values = [0.5] * 10 + [0.05] * 10
    scenario(tmp_path, [DARK], brightness(values), {600: set(), 840: set(), 900: set(), 960: {"Dark"}, 1200: {"Dark"}})


def test_between_the_two_limits_an_alarm_stays_as_it_was(tmp_path):
    values = [0.25] * 10 + [0.1] * 10 + [0.25] * 20 + [0.4] * 10
    scenario(tmp_path, [DARK], brightness(values), {600: set(), 1200: {"Dark"}, 2400: {"Dark"}, 2820: set()})


def test_an_alarm_does_not_end_because_nothing_comes_any_more(tmp_path):
    values = [0.5] * 10 + [0.05] * 10 + [None] * 60 + [0.5] * 10
    scenario(tmp_path, [DARK], brightness(values), {1200: {"Dark"}, 1800: {"Dark"}, 4800: {"Dark"}, 5400: set()})


def test_a_few_pictures_are_no_reason(tmp_path):
    scenario(tmp_path, [replace(DARK, min_rows=301)], brightness([0.05] * 20), {600: set(), 1200: set()})


def test_a_server_that_is_gone_is_noticed(tmp_path):
    up = {**UP, "values": "1x10 0x10"}
    scenario(tmp_path, [DARK], [up], {600: set(), 720: {GONE["alert"]}, 1200: {GONE["alert"]}})
    scenario(tmp_path, [DARK], [], {0: set(), 60: {GONE["alert"]}})


def test_a_ramp_that_nobody_judges_is_an_alarm(tmp_path):
    overdue = {
        "series": 'rollout_unjudged_seconds{job="labsupport",name="yolov3-tiny"}',
        "values": "0 0 30 90 150 210 0",
    }
    scenario(tmp_path, [DARK], [UP, overdue], {120: set(), 240: {UNJUDGED["alert"]}, 360: set()})


@pytest.mark.parametrize("seed", range(8))
def test_alarms_stand_in_prometheus_as_they_stand_in_the_log(tmp_path, seed):
    """Three hours at random, with gaps and values about the limits: minute by minute the same."""
    random, values, level = np.random.default_rng(seed), [0.5] * 6, 0.25
    while len(values) < 180:
        level = float(np.clip(level + random.normal(0, 0.12), 0.01, 0.6))
        values += [None if random.random() < 0.15 else level] * random.integers(1, 7)
    come = [(60 * minute + 30, value) for minute, value in enumerate(values) if value is not None]
    times, seen = (np.repeat(column, 60).astype(float) for column in zip(*come, strict=True))
    alarms = Alarms([DARK], Traffic({"time": times, "brightness": seen}, np.full(len(times), np.nan)))
    firing = {}
    for minute in range(6, len(values) + 1):
        alarms.evaluate(now=60 * minute)
        firing[60 * minute] = set(alarms.firing)
    assert {"fired", "cleared"} <= {event.event for event in alarms.history}
    scenario(tmp_path, [DARK], brightness(values), firing)


# incidents, counted by the server's own metrics


def counted(traffic: Traffic, every: int, seconds: int) -> list[dict[str, str]]:
    """What Prometheus would have scraped from a server that had this traffic."""
    metrics, rows = Metrics(), traffic.rows
    happened = [(time, False, number) for number, time in enumerate(rows["time"])]
    happened += [(time, True, number) for number, time in enumerate(traffic.spoken) if np.isfinite(time)]
    happened.sort(reverse=True)
    series: dict[str, list[float]] = {}
    for scrape in range(seconds // every + 1):
        while happened and happened[-1][0] < scrape * every:
            _, spoken, number = happened.pop()
            (_say if spoken else _answer)(metrics, {name: float(values[number]) for name, values in rows.items()})
        for family in text_string_to_metric_families(metrics.text([("yolov3-tiny", "simulated")])):
            for one in family.samples:
                labels = ",".join(f'{name}="{value}"' for name, value in {**one.labels, "job": "labsupport"}.items())
                series.setdefault(f"{one.name}{{{labels}}}", ["_"] * scrape).append(one.value)
    texts = [{"series": name, "values": " ".join(map(str, values))} for name, values in series.items()]
    return [one for one in texts if "process" not in one["series"]] + [UP]


def _answer(metrics: Metrics, row: dict[str, float]) -> None:
    status, answered = int(row["status"]), row["status"] == 200
    metrics.answered("/detect", "POST", status, 0.1)
    found = [Detection("car", row["max_confidence"], Box(0, 0, 1, 1))] * int(row["n_detections"]) if answered else None
    features = {"brightness": row["brightness"], "width": 640, "height": 480}
    if status != 503:  # who is refused never gets to the predictor
        metrics.predicted("simulated", row["latency"], found, features if answered else None, status)


def _say(metrics: Metrics, row: dict[str, float]) -> None:
    correct = None if np.isnan(row["correct"]) else bool(row["correct"])
    labels = ["car"] if row["labels"] == 1 else None
    metrics.said({"correct": correct, "labels": labels, "retry": row["retry"] == 1})


def test_a_measure_is_the_same_number_in_prometheus_as_in_the_log(tmp_path):
    traffic = simulate("failing model", start=300, seconds=600, rate=40, seed=3)  # more than the slots can do
    rules = [AlertRule(f"Of_{name}", name, above=1e9) for name, measure in MEASURES.items() if measure.promql]
    (tmp_path / "rules.yml").write_text(to_prometheus(rules))
    near = {"s": 0.125, "ratio": 0.05}  # the buckets' width; and what users said is counted when they say it
    expected = []
    for rule in rules:
        columns = traffic.columns(*rule.measure.columns, since=300, until=600)
        value = rule.measure.read(columns, rule.window).value
        off = 0.2 if rule.measure.group == "user" else near.get(rule.measure.unit, 0.01)
        expr = f"abs(labsupport:{rule.metric}:{rule.name} / {value} - 1) < bool {off}"
        expected.append({"expr": expr, "eval_time": "600s", "exp_samples": [{"labels": "{}", "value": 1}]})
    test = {"interval": "15s", "input_series": counted(traffic, 15, 600), "promql_expr_test": expected}
    whole = {"rule_files": ["rules.yml"], "evaluation_interval": "15s", "tests": [test]}
    (tmp_path / "test.yml").write_text(json.dumps(whole))
    promtool("test", "rules", tmp_path / "test.yml")


@pytest.mark.parametrize("incident", [None, *INCIDENTS])
def test_an_incident_is_named_in_prometheus_when_it_is_named_in_the_log(tmp_path, incident):
    traffic = simulate(incident, start=600, seconds=1200, seed=11)
    alarms = Alarms(EXPORTED, traffic)
    for now in range(15, 1201, 15):
        alarms.evaluate(now=now)
    series = counted(traffic, every=15, seconds=1200)
    if incident is None:
        assert alarms.history == []
        return scenario(tmp_path, EXPORTED, series, {second: set() for second in range(60, 1201, 60)}, interval=15)
    ((fired, alarm, *_),) = alarms.history
    assert alarm == INCIDENTS[incident].alarm
    firing = {second: set() for second in range(15, int(fired) - 30, 15)}
    firing |= {second: {alarm} for second in range(int(fired) + 30, 1201, 15)}
    scenario(tmp_path, EXPORTED, series, firing, interval=15)


# the real thing

QUICK = [replace(rule, window=8, hold=1, min_rows=5) for rule in EXPORTED if rule.name != "SlowAnswers"]
WRONG = {"ModelFails", "UndecodableFiles", "Dark", "NothingFound", "UsersCorrect"}


class Fails:
    """A detector that fails on some pictures when it is told to."""

    def __init__(self, detector) -> None:
        self.detector, self.version, self.ill, self.turn = detector, detector.version, False, 0

    def detect(self, image, confidence=0.5):
        self.turn += 1
        if self.ill and self.turn % 5 == 0:
            raise RuntimeError("out of order")
        return self.detector.detect(image, confidence)


@contextlib.contextmanager
def asking(url: str, model: Fails):
    """Users, one after the other. When things go wrong: dark pictures, files that are none, and corrections."""
    well = images.encode(cv2.resize(images.decode((paths.IMAGES / "person_dog.jpg").read_bytes()), (320, 214)))
    dark = images.encode(np.zeros((240, 320, 3), np.uint8))
    stop = threading.Event()

    def ask() -> None:
        with requests.Session() as session:
            turn = 0
            while not stop.wait(0.04):
                turn, ill = turn + 1, model.ill
                picture = (b"none" if turn % 3 == 0 else dark) if ill else well
                answer = session.post(url + "/detect", files={"file": picture}, timeout=30)
                if ill and answer.ok and turn % 2:
                    session.post(url + "/feedback", json={"prediction_id": answer.json()["id"], "correct": False})

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def prometheus(folder, target: str, rules):
    """One that looks every second; its address."""
    (folder / "rules.yml").write_text(to_prometheus(rules))
    config = (DEPLOY / "prometheus.yml").read_text().replace("15s", "1s").replace("127.0.0.1:8000", target)
    (folder / "prometheus.yml").write_text(config)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    words = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", "--log.level=warn"]
    command = [program("prometheus"), *words, f"--web.listen-address={address}"]
    with (folder / "console").open("w") as console, subprocess.Popen(command, stderr=console) as process:
        try:
            until(lambda: _ready(f"http://{address}", process, folder / "console"), 30)
            yield f"http://{address}"
        finally:
            process.kill()


def _ready(url: str, process, console) -> bool:
    assert process.poll() is None, console.read_text()
    with contextlib.suppress(requests.ConnectionError):
        return requests.get(url + "/-/ready", timeout=10).ok
    return False


class Watched:
    """Both, asked again and again: who fired and who cleared, and when."""

    def __init__(self, alarms: Alarms, url: str) -> None:
        self.alarms, self.url, self.firing = alarms, url, set()
        self.history: list[tuple[float, str, str]] = []

    def ask(self) -> tuple[set[str], set[str]]:
        self.alarms.evaluate()
        found = requests.get(self.url + "/api/v1/alerts", timeout=10).json()["data"]["alerts"]
        now = {one["labels"]["alertname"] for one in found if one["state"] == "firing"}
        self.history += [(time.time(), name, "fired") for name in now - self.firing]
        self.history += [(time.time(), name, "cleared") for name in self.firing - now]
        self.firing = now
        time.sleep(0.2)
        return set(self.alarms.firing), now

    def measured(self) -> bool:
        self.ask()
        answer = requests.get(self.url + "/api/v1/query", {"query": "labsupport:brightness_mean:Dark"}, timeout=10)
        return bool(answer.json()["data"]["result"]) and self.alarms.status["Dark"].reading.rows >= 5


def test_prometheus_fires_and_clears_the_alarms_that_the_log_does(tmp_path, detector):
    model = Fails(detector)
    with (
        PredictionLog(f"sqlite:///{tmp_path}/log.db") as log,
        serve(create_app(model, log=log), port=0) as server,
        prometheus(tmp_path, f"{server.host}:{server.port}", QUICK) as url,
        asking(server.url, model),
    ):
        alarms = Alarms(QUICK, log)
        both = Watched(alarms, url)
        until(both.measured, 30)
        assert alarms.history == both.history == []
        model.ill = True
        until(lambda: both.ask() == (WRONG, WRONG), 40)
        model.ill = False
        until(lambda: both.ask() == (set(), set()), 40)
    ours = {(event.alarm, event.event): event.time for event in alarms.history}
    theirs = {(name, event): at for at, name, event in both.history}
    assert ours.keys() == theirs.keys() == {(name, event) for name in WRONG for event in ("fired", "cleared")}
    assert len(alarms.history) == len(both.history) == 2 * len(WRONG)  # once each
    assert all(abs(ours[key] - theirs[key]) < 8 for key in ours)  # a window
