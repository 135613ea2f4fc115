"""Each check cell passes a right answer, and says what is wrong with others."""

import math
from dataclasses import replace
from typing import Annotated

import pytest
import requests
from fastapi import FastAPI, HTTPException, Query, Response, UploadFile
from scipy import stats

from labsupport import drift, exercises, images, models, paths
from labsupport.alerts import AlertRule
from labsupport.detection import draw_boxes
from labsupport.gate import Gate


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
    exercises.highest_confidence(answer)
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

    exercises.count_endpoint(app)
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

    exercises.alarm_endpoint(app)
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
    exercises.confidence_challenge(lab_app(detector, takes), asks)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer, verdict",
    [(1 / 30, "Right."), (0.033, "Right."), (None, "give a number"), (0.33, "of all answers"), (0.1, "is not it")],
)
def test_canary_risk(answer, verdict, capsys):
    exercises.canary_risk(answer)
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
    exercises.null_gate(gate)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer, verdict",
    [(299, "Right."), (298, "may still hide an error rate of 1.0"), (300, "one less"), (None, "a whole number")],
)
def test_error_free_decisions(answer, verdict, capsys):
    exercises.error_free_decisions(answer)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer, verdict",
    [
        ({"price"}, "Right."),
        (["price"], "Right."),
        (None, "give a set"),
        (set(), "one column has changed"),
        ({"price", "hour"}, "hour comes from the same distribution"),
    ],
)
def test_drifted_columns(answer, verdict, capsys):
    exercises.drifted_columns(answer)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer, verdict",
    [(10.5, "Right."), (None, "between 0 and 20"), (2, "a higher limit costs less"), (15, "a lower limit costs less")],
)
def test_cheapest_limit(answer, verdict, capsys):
    exercises.cheapest_limit(answer)
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
    exercises.own_detector(is_drift)
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
    exercises.bright_rule(rule)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer, verdict",
    [("concept", "Right."), ("input", "compare brightness"), ("model", "compare objects"), (None, 'give "input"')],
)
def test_whose_fault(answer, verdict, capsys):
    exercises.whose_fault(answer)
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
    exercises.pipeline_level(answer)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "describe, verdict",
    [
        (lambda clicks: {"falls": clicks != sorted(clicks)}, "Right."),
        (lambda clicks: {"clicks": len(clicks)}, "sorted clicks look like the others"),
        (lambda clicks, seen=[]: {"number": seen.append(1) or len(seen)}, "where nothing has changed"),
        (None, "it raised TypeError"),
    ],
)
def test_order_of_clicks(describe, verdict, capsys):
    exercises.order_of_clicks(describe)
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
    exercises.two_changes(answer)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize("answer, verdict", [(5.56, "Right."), (20, "7,200,000 pictures"), (None, "a number of hours")])
def test_night_hours(answer, verdict, capsys):
    exercises.night_hours(answer)
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
    exercises.fewest_machines(machines)
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
    exercises.files_to_repeat(again)
    assert verdict in capsys.readouterr().out
