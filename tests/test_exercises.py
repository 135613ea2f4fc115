"""Each check cell passes a right answer, and says what is wrong with others."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Annotated

import numpy as np
import pandas as pd
import pytest
import requests
from fastapi import FastAPI, HTTPException, Query, Response, UploadFile
from scipy import stats

from labsupport import drift, exercises, images, models, paths, scenarios
from labsupport.automation import choose_thresholds
from labsupport.detection import Detector, draw_boxes
from labsupport.exercises import automation_checks, drift_checks
from labsupport.log import PredictionLog
from labsupport.monitoring import Alarms, AlertRule
from labsupport.rollout import Gate, Router
from labsupport.scenarios import Inspector
from labsupport.serving import create_app, serve


@pytest.mark.parametrize(
    "answer, verdict",
    [
        (0.4, "Right."),
        (0.3, "it still reports 2: go higher"),
        (0.5, "reports 1 object(s): go lower"),
        (None, "give one of"),
    ],
)
def test_highest_confidence(answer, verdict, capsys):
    exercises.highest_confidence.check(answer)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "count, verdict",
    [
        (len, "Right."),
        (lambda found: 1, "for two_clocks.png it answered"),
        (lambda found: None, "for two_clocks.png it answered"),
        (None, "POST /count answered 404"),
    ],
)
def test_count_endpoint(count, verdict, detector, capsys):
    app = FastAPI()
    if count:

        @app.post("/count")
        def answer(file: UploadFile, model: str = "yolov3-tiny"):
            return {"count": count(detector.detect(images.decode(file.file.read())))}

    exercises.count_endpoint.check(app)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "status, answer, verdict",
    [
        (422, lambda found: found, "Right."),
        (200, lambda found: found, "a label that no model knows got 200"),
        (422, lambda found: True, "for a person in clock.png it answered"),
        (422, lambda found: str(found), "for a person in street_1.jpg it answered"),
    ],
)
def test_alarm_endpoint(status, answer, verdict, detector, capsys):
    app = FastAPI()

    @app.post("/alarm")
    def alarm(file: UploadFile, label: str):
        if label not in models.LABELS and status != 200:
            raise HTTPException(status, "no such label")
        found = detector.detect(images.decode(file.file.read()))
        return {"alarm": answer(label in [d.label for d in found])}

    exercises.alarm_endpoint.check(app)
    assert verdict in capsys.readouterr().out


def lab_app(detector, takes):
    app = FastAPI()

    @app.post("/predict")
    def predict(file: UploadFile, confidence: takes = 0.5):
        image = images.decode(file.file.read())
        found = detector.detect(image, confidence if takes is not str else 0.5)
        return Response(images.encode(draw_boxes(image, found)), media_type="image/jpeg")

    return app


def ask(url, filename, confidence):
    with open(paths.IMAGES / filename, "rb") as file:
        return requests.post(f"{url}?confidence={confidence}", files={"file": file}, timeout=30)


LIMITED = Annotated[float, Query(ge=0, le=1)]


@pytest.mark.parametrize(
    "takes, asks, verdict",
    [
        (LIMITED, ask, "Right."),
        (LIMITED, lambda url, filename, confidence: ask(url, filename, 0.5), "is it in the URL?"),
        (str, ask, "does detect get the confidence?"),
        (float, ask, "the server takes confidence=2"),
        (LIMITED, None, "it raised TypeError"),
    ],
)
def test_confidence_challenge(takes, asks, verdict, detector, capsys):
    exercises.confidence_challenge.check(lab_app(detector, takes), asks)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer, verdict",
    [(1 / 30, "Right."), (0.033, "Right."), (None, "give a number"), (0.33, "of all answers"), (0.1, "is not it")],
)
def test_canary_risk(answer, verdict, capsys):
    exercises.canary_risk.check(answer)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "gate, verdict",
    [
        (Gate(thresholds={"null_rate": (None, 0.2)}, min_requests=50, failure_limit=0), "Right."),
        (Gate(ratios={"null_rate": 2}, min_requests=50, failure_limit=0), "Right."),
        (Gate(thresholds={"null_rate": (None, 0.2)}, min_requests=50), "it says hold"),
        (
            Gate(thresholds={"null_rate": (None, 0.05)}, failure_limit=0),
            "as good as the stable version it says rollback",
        ),
        (Gate(), "half of its pictures it says promote"),
        (Gate(min_requests=1), "min_requests=50 at least"),
    ],
)
def test_null_gate(gate, verdict, capsys):
    exercises.null_gate.check(gate)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer, verdict",
    [(299, "Right."), (298, "may still hide an error rate of 1.0"), (300, "one less"), (None, "a whole number")],
)
def test_error_free_decisions(answer, verdict, capsys):
    exercises.error_free_decisions.check(answer)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer, verdict",
    [
        ({"price"}, "Right."),
        (["price"], "Right."),
        (None, "give a set"),
        (set(), "one column has changed"),
        ({"price", "hour"}, "hour comes from the same distribution"),
        ({"prices"}, "the shop has no column prices"),
    ],
)
def test_drifted_columns(answer, verdict, capsys):
    exercises.drifted_columns.check(answer)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer, verdict",
    [(10.5, "Right."), (None, "between 0 and 20"), (2, "a higher limit costs less"), (15, "a lower limit costs less")],
)
def test_cheapest_limit(answer, verdict, capsys):
    exercises.cheapest_limit.check(answer)
    assert verdict in capsys.readouterr().out


def corrected(reference, current):
    return min(stats.ks_2samp(a, b).pvalue for a, b in zip(reference.T, current.T, strict=True)) < 0.05 / 10


def uncorrected(reference, current):
    return min(stats.ks_2samp(a, b).pvalue for a, b in zip(reference.T, current.T, strict=True)) < 0.05


@pytest.mark.parametrize(
    "is_drift, verdict",
    [
        (corrected, "Right."),
        (uncorrected, "correct for the ten columns"),
        (lambda reference, current: False, "it finds 0 of 200 shifts"),
        (None, "it raised TypeError"),
    ],
)
def test_own_detector(is_drift, verdict, capsys):
    exercises.own_detector.check(is_drift)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "check, answer, verdict",
    [
        (drift_checks.largest_gap, 0.5, "Right."),
        (drift_checks.largest_gap, 2, "a difference of two shares"),
        (drift_checks.largest_gap, 1, "no value in common"),
        (drift_checks.largest_gap, 0.25, "compare the shares"),
        (drift_checks.largest_gap, True, "give a number"),
        (drift_checks.any_alarm, 0.46, "Right."),
        (drift_checks.any_alarm, 0.54, "that no test fires"),
        (drift_checks.any_alarm, 0.6, "a sum counts"),
        (drift_checks.any_alarm, 0.05, "for one column"),
        (drift_checks.any_alarm, 0.2, "the product of their chances"),
        (drift_checks.any_alarm, 46, "between 0 and 1"),
        (drift_checks.share_of_defects, 0.3, "Right."),
        (drift_checks.share_of_defects, 0.34, "the share that the model flags"),
        (drift_checks.share_of_defects, 0.24, "80 points"),
        (drift_checks.share_of_defects, 0.378, "good phones that are flagged"),
        (drift_checks.share_of_defects, 0.5, "write down which phones"),
        (drift_checks.share_of_defects, "30 %", "between 0 and 1"),
        (drift_checks.cusum_by_hand, 1.0, "Right."),
        (drift_checks.cusum_by_hand, 0.5, "never falls below 0"),
        (drift_checks.cusum_by_hand, 3, "the number of errors"),
        (drift_checks.cusum_by_hand, 2, "after each of the five values"),
        (drift_checks.cusum_by_hand, None, "give a number"),
        (drift_checks.fair_baseline, 0.3, "Right."),
        (drift_checks.fair_baseline, 0.7, "another constant is better"),
        (drift_checks.fair_baseline, 0.5, "a coin is no constant"),
        (drift_checks.fair_baseline, 0.1, "of the other class"),
        (drift_checks.fair_baseline, 30, "between 0 and 1"),
        (drift_checks.rows_to_learn, "since the change", "Right."),
        (drift_checks.rows_to_learn, "everything", "outvote"),
        (drift_checks.rows_to_learn, "last 1000", "half of the last 1,000"),
        (drift_checks.rows_to_learn, None, "give 'everything'"),
    ],
)
def test_answers_on_drift(check, answer, verdict, capsys):
    check.check(answer)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "column_with_new_gaps, verdict",
    [
        (lambda before, now: (now.isna().mean() - before.isna().mean()).idxmax(), "Right."),
        (lambda before, now: now.isna().mean().idxmax(), "light always had gaps"),
        (lambda before, now: before.isna().sum().idxmax(), "light always had gaps"),
        (lambda before, now: (now.isna().mean() - before.isna().mean()).idxmin(), "speed has fewer gaps"),
        (lambda before, now: 0.2, "return the name"),
        (lambda before, now: "belt", "there is no column 'belt'"),
    ],
)
def test_most_missing(column_with_new_gaps, verdict, capsys):
    exercises.most_missing.check(column_with_new_gaps)
    assert verdict in capsys.readouterr().out


def cusum_alarm(values, k, limit, floor=0.0, late=0):
    total = 0.0
    for index, value in enumerate(values):
        total = max(floor, total + value - k)
        if total > limit:
            return index + late
    return None


@pytest.mark.parametrize(
    "first_alarm, verdict",
    [
        (cusum_alarm, "Right."),
        (lambda values, k, limit: cusum_alarm(values, k, limit, late=1), "the first alarm is at index"),
        (lambda values, k, limit: cusum_alarm(values, 0, limit), "subtract k"),
        (lambda values, k, limit: None, "the sum exceeds the limit at"),
    ],
)
def test_own_cusum(first_alarm, verdict, capsys):
    exercises.own_cusum.check(first_alarm)
    assert verdict in capsys.readouterr().out


BRIGHT = AlertRule("Bright", "brightness_mean", above=0.8, clear=0.7, window=600, hold=120)


@pytest.mark.parametrize(
    "rule, verdict",
    [
        (BRIGHT, "Right."),
        (None, "give an AlertRule"),
        (replace(BRIGHT, severity="page"), "severity is 'page'"),
        (replace(BRIGHT, clear=None), "clear is None"),
    ],
)
def test_bright_rule(rule, verdict, capsys):
    exercises.bright_rule.check(rule)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer, verdict",
    [("concept", "Right."), ("input", "compare brightness"), ("model", "compare objects"), (None, 'give "input"')],
)
def test_whose_fault(answer, verdict, capsys):
    exercises.whose_fault.check(answer)
    assert verdict in capsys.readouterr().out


def test_only_what_users_say_differs_between_the_two_windows():
    before, now = exercises.two_windows()
    report = drift.compare(before, now)
    assert report.features.query("drifted").feature.tolist() == ["correct"]


@pytest.mark.parametrize(
    "answer, verdict",
    [(0.005, "Right."), (0.05 / 9, "what else is tested?"), (0.05, "is not it"), (None, "give a share")],
)
def test_pipeline_level(answer, verdict, capsys):
    exercises.pipeline_level.check(answer)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "describe, verdict",
    [
        (lambda clicks: {"falls": clicks != sorted(clicks)}, "Right."),
        (lambda clicks: {"clicks": len(clicks)}, "sorted clicks look like the others"),
        (
            lambda clicks, seen=[]: {"odd": seen.append(1) or len(seen) // 200 + len(seen) % 7},
            "where nothing has changed",
        ),
        (None, "it raised TypeError"),
    ],
)
def test_order_of_clicks(describe, verdict, capsys):
    exercises.order_of_clicks.check(describe)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer, verdict",
    [
        (["input", "recogniser"], "Right."),
        (["input"], "recogniser is missing"),
        (["input", "vad", "recogniser"], "the detection is as it was"),
        (None, "as a list"),
    ],
)
def test_two_changes(answer, verdict, capsys):
    exercises.two_changes.check(answer)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize("answer, verdict", [(5.56, "Right."), (20, "7,200,000 pictures"), (None, "a number of hours")])
def test_night_hours(answer, verdict, capsys):
    exercises.night_hours.check(answer)
    assert verdict in capsys.readouterr().out


def fewest(arrivals, per_hour, patience):
    """What came in any span of hours has that span and the patience to be done."""
    spans = [(first, last) for first in range(len(arrivals)) for last in range(first, len(arrivals))]
    loads = [sum(arrivals[first : last + 1]) / (last + 1 - first + patience) for first, last in spans]
    return math.ceil(max(loads) / per_hour)


@pytest.mark.parametrize(
    "machines, verdict",
    [
        (fewest, "Right."),
        (
            lambda arrivals, per_hour, patience: math.ceil(max(arrivals) / per_hour),
            "more than it takes with patience=1",
        ),
        (lambda arrivals, per_hour, patience: math.ceil(sum(arrivals) / 24 / per_hour), "too few with patience=0"),
        (lambda *given: 99, "more than it takes"),
        (None, "it raised TypeError"),
    ],
)
def test_fewest_machines(machines, verdict, capsys):
    exercises.fewest_machines.check(machines)
    assert verdict in capsys.readouterr().out


def repeated(table, version):
    disk = table["error"].fillna("").str.split(":").str[0].isin(["OSError", "FileNotFoundError", "PermissionError"])
    return table["file"][disk | (table["version"] != version)].unique().tolist()


@pytest.mark.parametrize(
    "again, verdict",
    [
        (repeated, "Right."),
        (lambda table, version: table["file"].tolist(), "a.jpg, broken.jpg would be looked at again"),
        (lambda table, version: table["file"][table["version"] != version].tolist(), "gone.jpg, locked.jpg is missing"),
        (lambda table, version: repeated(table, version)[::-1], "in the table's order"),
        (lambda table, version: [*repeated(table, version), "old.jpg"], "each file once"),
    ],
)
def test_files_to_repeat(again, verdict, capsys):
    exercises.files_to_repeat.check(again)
    assert verdict in capsys.readouterr().out


OUTCOMES = pd.DataFrame({"degree": ["PARTIAL", "FULL"], "by_model": [0.6, 1.0], "error": [0.02, 0.05]})


@pytest.mark.parametrize(
    "answer, verdict",
    [(0.375, "Right."), (0.3, "go up"), (0.5, "go down"), (None, "give a price"), (-1, "give a price")],
)
def test_price_of_a_look(answer, verdict, capsys):
    """0.4 looks cost as much as 0.03 errors at 5 each."""
    exercises.price_of_a_look.check(answer, OUTCOMES)
    assert verdict in capsys.readouterr().out


def test_phones_saved(monkeypatch, capsys):
    """On 4,000 phones that are numbers, and two models of which one is surer: the real ones take half a minute."""
    random = np.random.default_rng(0)
    worth = {"stable": random.beta(0.3, 0.6, 4_000), "better": random.beta(0.1, 0.2, 4_000)}
    truth = random.random(4_000) < worth["stable"]
    worth["better"] = np.where((worth["better"] > 0.5) == truth, worth["better"], 1 - worth["better"])
    monkeypatch.setattr(automation_checks, "_looks", automation_checks._looks.__wrapped__)
    monkeypatch.setattr(scenarios, "inspection", lambda count, seed: SimpleNamespace(images=range(count), truth=truth))
    monkeypatch.setattr(Inspector, "load", lambda name: SimpleNamespace(score=lambda phone: worth[name][phone]))

    def looks(name):
        chosen = choose_thresholds(truth, worth[name], max_error=0.02, confidence_level=0.95)
        return np.count_nonzero((worth[name] >= chosen.low) & (worth[name] < chosen.high))

    assert looks("stable") > looks("better")
    for answer in (looks("stable") - looks("better"), looks("better") - looks("stable"), None):
        exercises.phones_saved.check(answer)
    right, wrong, missing = capsys.readouterr().out.splitlines()
    assert right == "Right."
    assert f"with the better one it is not {2 * looks('stable') - looks('better')}" in wrong
    assert "a whole number" in missing


def test_ramp_by_request(detector, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("LAB_TOKEN", "0123456789abcdef")
    router = Router(detector)
    candidate = Detector.load(runtime="opencv")
    router.add(candidate)
    with PredictionLog(f"sqlite:///{tmp_path}/log.db") as log, serve(create_app(router, log=log), port=0) as running:
        exercises.ramp_by_request.check(running.url)
        change = {"action": "ramp", "candidate": candidate.version, "steps": [5, 100], "interval": 60}
        headers = {"Authorization": "Bearer 0123456789abcdef"}
        requests.put(f"{running.url}/rollout", json=change, headers=headers, timeout=30).raise_for_status()
        exercises.ramp_by_request.check(running.url)
        requests.put(f"{running.url}/rollout", json={"action": "rollback"}, headers=headers, timeout=30)
    exercises.ramp_by_request.check(running.url)
    exercises.ramp_by_request.check(None)
    before, after, gone, nothing = capsys.readouterr().out.splitlines()
    assert "no candidate answers anybody" in before
    assert after == "Right."
    assert "nobody answers there" in gone
    assert "give the address" in nothing


def calls(rule, traffic, event="fired"):
    watch, said = Alarms([rule], traffic), []
    for now in range(0, 3_601, 15):
        said += watch.evaluate(now)
    return sum(one.event == event for one in said)


@pytest.mark.parametrize(
    "function, verdict",
    [
        (calls, "Right."),
        (lambda rule, traffic: 0, "not 0"),
        (lambda rule, traffic: calls(rule, traffic) + calls(rule, traffic, "cleared"), "fires"),
        (None, "it raised TypeError"),
    ],
)
def test_firings(function, verdict, capsys):
    exercises.firings.check(function)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer, verdict",
    [(0.8, "Right."), (0.6, "go to the others"), (0.75, "on three"), (None, "give a share"), (80, "give a share")],
)
def test_load_after_a_loss(answer, verdict, capsys):
    exercises.load_after_a_loss.check(answer)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "machines, verdict",
    [
        (lambda rate, each, lost: math.ceil(rate / (0.8 * each)) + lost, "Right."),
        (lambda rate, each, lost: math.ceil(rate / (0.8 * each)), "too few for rate=100, each=50, lost=1"),
        (lambda rate, each, lost: math.ceil(rate / each) + lost, "too few for rate=100, each=50, lost=0"),
        (lambda rate, each, lost: math.ceil(rate / (0.8 * each)) * (lost + 1), "more than it takes"),
        (None, "it raised TypeError"),
    ],
)
def test_machines_with_spares(machines, verdict, capsys):
    exercises.machines_with_spares.check(machines)
    assert verdict in capsys.readouterr().out


def asking(replicas, picture):
    for replica in replicas:
        try:
            return replica(picture)
        except ConnectionError:
            pass
    raise ConnectionError("nobody answers")


def asking_whatever_is_wrong(replicas, picture):
    for replica in replicas:
        try:
            return replica(picture)
        except Exception as error:
            raised = error
    raise raised


@pytest.mark.parametrize(
    "ask, verdict",
    [
        (asking, "Right."),
        (lambda replicas, picture: replicas[0](picture), "it raised ConnectionError"),
        (lambda replicas, picture: replicas[-1](picture), "it asked alive"),
        (asking_whatever_is_wrong, "no picture, and it answered"),
        (
            lambda replicas, picture: asking([*replicas, lambda picture: None], picture),
            "all are dead, and it answered None",
        ),
        (None, "it raised TypeError"),
    ],
)
def test_asked_again(ask, verdict, capsys):
    exercises.asked_again.check(ask)
    assert verdict in capsys.readouterr().out
