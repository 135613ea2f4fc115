"""Each check cell passes a right answer, and says what is wrong with others."""

import hashlib
import math
import random
import zlib
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
from labsupport.automation import Thresholds, choose_thresholds
from labsupport.detection import Detector, draw_boxes
from labsupport.exercises.release import automation_checks
from labsupport.exercises.upkeep import concept_drift_checks, data_drift_checks
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
    [
        (1 / 60, "Right."),
        (0.0167, "Right."),
        (None, "give a number"),
        ("3%", "give a number"),
        (0.33, "what share of all answers"),
        (0.05, "not all of them are errors"),
        (1.67, "in percent"),
        (0.1, "is not it"),
    ],
)
def test_canary_risk(answer, verdict, capsys):
    exercises.canary_risk.check(answer)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer, verdict",
    [
        (0.19, "Right."),
        (None, "give a number"),
        ("19 %", "give a number"),
        (0.08, "among the volunteers"),
        (0.14, "the mean of both cameras"),
        (0.09, "the other way round"),
        (19, "in percent"),
        (0.24, "is not it"),
    ],
)
def test_errors_for_all(answer, verdict, capsys):
    exercises.errors_for_all.check(answer)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "gate, verdict",
    [
        (Gate(thresholds={"null_rate": (None, 0.2)}, min_requests=50, failure_limit=0), "Right."),
        (Gate(ratios={"null_rate": 2}, min_requests=50, failure_limit=0), "Right."),
        (Gate(thresholds={"null_rate": (None, 0.2)}, min_requests=50), "how many failed checks does it allow?"),
        (
            Gate(thresholds={"null_rate": (None, 0.05)}, failure_limit=0),
            "as good as the stable version it says rollback",
        ),
        (Gate(), "half of its pictures it says promote: which metric"),
        (Gate(min_requests=1), "min_requests=50 at least"),
    ],
)
def test_null_gate(gate, verdict, capsys):
    exercises.null_gate.check(gate)
    assert verdict in capsys.readouterr().out


def place(key, share, count=10_000):
    return int(hashlib.sha256(key.encode()).hexdigest(), 16) % count < count / 100 * share


@pytest.mark.parametrize(
    "goes_to_candidate, verdict",
    [
        (place, "Right."),
        (lambda key, share: place(f"{share} {key}", share), "should go back and forth"),
        (lambda key, share: random.random() < share / 100, "and another one a moment later"),
        (lambda key, share: True, "100% of 4,000 keys"),
        (lambda key, share: place(key, share + 1, 100), "< or <= ?"),
        (7, "it raised TypeError"),
        (lambda key, share: hash(key) % 10_000 < 100 * share, "another version when Python starts again"),
        (lambda key, share: place(key, share) if hash(7) == 7 else False, "Right."),  # that of a number stays
        (lambda key, share: place(key, share, 100), "at 0.5 and at 1 % the same keys"),
        (lambda key, share: zlib.crc32(key.encode()) % 100 < share, "at 0.5 and at 1 % the same keys"),
        (lambda key, share: place(key, int(share)), "at a share of 0.5 % nobody"),
    ],
)
def test_own_router(goes_to_candidate, verdict, capsys):
    exercises.own_router.check(goes_to_candidate)
    assert verdict in capsys.readouterr().out


PATTERNS = {"captions": "canary", "letters": "shadow", "prices": "blue/green"}


@pytest.mark.parametrize(
    "answer, verdict",
    [
        (PATTERNS, "Right."),
        (PATTERNS | {"captions": "shadow"}, "captions: nobody writes captions today"),
        (PATTERNS | {"letters": "canary"}, "letters: clerks decide today"),
        (PATTERNS | {"prices": "canary"}, "two versions answer side by side"),
        (PATTERNS | {"prices": "shadow"}, "prices: 'shadow' is not"),
        ({"captions": "canary"}, "missing: letters, prices"),
        ("canary", "missing: captions, letters, prices"),
    ],
)
def test_first_pattern(answer, verdict, capsys):
    exercises.first_pattern.check(answer)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer, verdict",
    [
        (100, "Right."),
        (20, "a promise of 5 %"),
        (0.01, "starts at 1"),
        (50, "up to 2.0%"),
        (1_000, "a lower limit"),
        ("a hundred", "a number"),
    ],
)
def test_e_value_limit(answer, verdict, capsys):
    exercises.e_value_limit.check(answer)
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
        (data_drift_checks.largest_gap, 0.5, "Right."),
        (data_drift_checks.largest_gap, 2, "a difference of two shares"),
        (data_drift_checks.largest_gap, 1, "no value in common"),
        (data_drift_checks.largest_gap, 0.25, "compare the shares"),
        (data_drift_checks.largest_gap, True, "give a number"),
        (data_drift_checks.any_alarm, 0.46, "Right."),
        (data_drift_checks.any_alarm, 0.54, "that no test fires"),
        (data_drift_checks.any_alarm, 0.6, "a sum counts"),
        (data_drift_checks.any_alarm, 0.05, "for one column"),
        (data_drift_checks.any_alarm, 0.2, "the product of their chances"),
        (data_drift_checks.any_alarm, 46, "between 0 and 1"),
        (data_drift_checks.share_of_defects, 0.3, "Right."),
        (data_drift_checks.share_of_defects, 0.34, "the share that the model flags"),
        (data_drift_checks.share_of_defects, 0.24, "80 points"),
        (data_drift_checks.share_of_defects, 0.378, "good phones that are flagged"),
        (data_drift_checks.share_of_defects, 0.5, "write down which phones"),
        (data_drift_checks.share_of_defects, "30 %", "between 0 and 1"),
        (concept_drift_checks.cusum_by_hand, 1.0, "Right."),
        (concept_drift_checks.cusum_by_hand, 0.5, "never falls below 0"),
        (concept_drift_checks.cusum_by_hand, 3, "the number of errors"),
        (concept_drift_checks.cusum_by_hand, 2, "after each of the five values"),
        (concept_drift_checks.cusum_by_hand, None, "give a number"),
        (concept_drift_checks.fair_baseline, 0.3, "Right."),
        (concept_drift_checks.fair_baseline, 0.7, "another constant is better"),
        (concept_drift_checks.fair_baseline, 0.5, "a coin is no constant"),
        (concept_drift_checks.fair_baseline, 0.1, "of the other class"),
        (concept_drift_checks.fair_baseline, 30, "between 0 and 1"),
        (concept_drift_checks.rows_to_learn, "since the change", "Right."),
        (concept_drift_checks.rows_to_learn, "everything", "outvote"),
        (concept_drift_checks.rows_to_learn, "last 1000", "half of the last 1,000"),
        (concept_drift_checks.rows_to_learn, None, "give 'everything'"),
    ],
)
def test_answers_on_drift(check, answer, verdict, capsys):
    check.check(answer)
    assert verdict in capsys.readouterr().out


KINDS = {"houses": "data", "prices": "concept", "payments": "both", "search": "data", "voices": "data"}
KINDS |= {"delivery": "label shift", "lamp": "data"}


@pytest.mark.parametrize(
    "answer, verdict",
    [
        (KINDS, "Right."),
        (KINDS | {"search": "both"}, "Right."),
        (KINDS | {"prices": "Concept drift"}, "Right."),
        (KINDS | {"delivery": "data"}, "1 of the 7:\n  delivery: more phones are scratched"),
        (KINDS | {"delivery": "both"}, "P(x given y) stays"),
        (KINDS | {"prices": "label shift"}, "prices: the same houses are listed"),
        (KINDS | {"lamp": "both", "payments": "data"}, "2 of the 7:\n  payments: more people pay online"),
        (dict.fromkeys(KINDS, "concept"), "6 of the 7:\n  houses: larger houses are listed"),
        (KINDS | {"lamp": "dark"}, "lamp: 'dark' is no kind: give one of data"),
        (KINDS | {"lamp": ...}, "lamp: Ellipsis is no kind"),
        (KINDS | {"lamp": ["data"]}, "lamp: ['data'] is no kind"),
        ({"houses": "data"}, "give a dictionary with a kind for each of houses, prices"),
        ("data", "give a dictionary"),
        (None, "give a dictionary"),
    ],
)
def test_which_kind(answer, verdict, capsys):
    exercises.which_kind.check(answer)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer, verdict",
    [
        (9, "Right."),
        (np.int64(9), "Right."),
        (10, "from day 2 to day 12 the share changes by 5.2 points: report more often"),
        (5, "with 5 days between reports the share changes by at most 4.2 points, so more days"),
        (9.0, "a whole number of days, from 1 to 99"),
        (0, "a whole number"),
        (100, "a whole number"),
        (None, "a whole number"),
    ],
)
def test_days_between_reports(answer, verdict, capsys):
    """A share grows by 1 point on each of four days, and then by 0.2 a day: 4 + 5 * 0.2 = 5 points in nine days."""
    exercises.days_between_reports.check(answer, pd.Series(np.cumsum([0.0] * 3 + [0.01] * 4 + [0.002] * 93)))
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


BRIGHT = AlertRule("Bright", "brightness_mean", above=0.8, clear=0.7, window=600, hold=120, severity="page")


@pytest.mark.parametrize(
    "rule, verdict",
    [
        (BRIGHT, "Right."),
        (None, "give an AlertRule"),
        (replace(BRIGHT, severity="ticket"), "severity is 'ticket'"),
        (replace(BRIGHT, clear=None), "clear is None"),
        (replace(BRIGHT, metric="confidence_mean"), "which of MEASURES"),
        (replace(BRIGHT, hold=2), "a hold is in seconds"),
    ],
)
def test_bright_rule(rule, verdict, capsys):
    exercises.bright_rule.check(rule)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer, verdict",
    [
        ((2_000 - 500) / (1.25 * 20), "Right."),
        (60, "Right."),
        (80, "500 MB when it starts"),
        (1_200, "the number of pictures"),
        (1_600, "20 pictures arrive"),
        (75, "and not 1 MB"),
        (93.75, "the larger a picture, the sooner"),
        (1, "a number of minutes"),
        (0.06, "in megabytes throughout"),
        (61, "61 seconds is not it"),
        (None, "give a number"),
        ("60 s", "give a number"),
        (True, "give a number"),
    ],
)
def test_until_killed(answer, verdict, capsys):
    exercises.until_killed.check(answer)
    assert verdict in capsys.readouterr().out


MEASURED = {"it is slow": "latency_p95", "fog": "brightness_mean", "no answer": "empty_ratio", "anger": "wrong_ratio"}


@pytest.mark.parametrize(
    "answer, verdict",
    [
        (MEASURED, "Right."),
        (MEASURED | {"it fails": "error_ratio", "anger": "retry_ratio"}, "Right."),
        ({worry: name for worry, name in MEASURED.items() if worry != "anger"}, "no worry about users yet"),
        (MEASURED | {"it is slow": "refused_ratio", "no answer": "wrong_ratio"}, "no worry about output yet"),
        (MEASURED | {"fog": None}, "nothing measures 'fog' yet"),
        (MEASURED | {"fog": ...}, "nothing measures 'fog' yet"),
        (MEASURED | {"fog": "fog_mean"}, "no measure 'fog_mean'. There are error_ratio, "),
        (MEASURED | {"fog": "Dark"}, "Dark is an alarm, on brightness_mean"),
        (MEASURED | {"fog": ["brightness_mean"]}, "no measure ['brightness_mean']"),
        ({name: worry for worry, name in MEASURED.items()}, "'latency_p95' is a measure: put the worry before"),
        ({}, "give a dict"),
        (None, "give a dict"),
        ("brightness_mean", "give a dict"),
    ],
)
def test_measured_worries(answer, verdict, capsys):
    exercises.measured_worries.check(answer)
    assert verdict in capsys.readouterr().out


KEPT = {"brightness_mean", "empty_ratio", "retry_ratio", "wrong_ratio"}


@pytest.mark.parametrize(
    "answer, verdict",
    [
        (KEPT, "Right."),
        (["wrong_ratio", "detections_mean", "retry_ratio", "brightness_mean"], "Right."),
        (KEPT - {"wrong_ratio"}, "in another hour 'users correct' moves none of your measures"),
        (KEPT - {"retry_ratio"}, "'blind model' and 'dirty lens' both move empty_ratio and no other"),
        (KEPT | {"latency_p95"}, "without latency_p95 the others still show"),
        (KEPT | {"hue_mean"}, "'hue_mean' is not in the table"),
        (KEPT | {"drift"}, "'drift' is not in the table"),
        ({None}, "None is not in the table"),
        (set(), "'darkness' moves none"),
        ("wrong_ratio", "give a set"),
        (None, "give a set"),
    ],
)
def test_kept_measures(answer, verdict, capsys):
    exercises.kept_measures.check(answer)
    assert verdict in capsys.readouterr().out


CAUSES = {"A": "input", "B": "concept", "C": "model"}


@pytest.mark.parametrize(
    "answer, verdict",
    [
        (CAUSES, "Right."),
        (CAUSES | {"A": "model"}, "compare the brightness"),
        (CAUSES | {"B": "model"}, "which answers do people replace"),
        (CAUSES | {"C": "concept"}, "how often is each answer given"),
        (CAUSES | {"C": "lens"}, "'lens' is no cause"),
        ("concept", "give a dict"),
    ],
)
def test_whose_fault(answer, verdict, capsys):
    exercises.whose_fault.check(answer)
    assert verdict in capsys.readouterr().out


def test_the_data_tell_the_cause_of_each_day():
    """Day A has other pictures, C other answers, and B neither: only what people say differs there."""
    usual, *days = exercises.days_of_corrections().values()
    drifted = [set(drift.compare(usual, day, multivariate=()).features.query("drifted").feature) for day in days]
    assert "brightness" in drifted[0]
    assert drifted[1] == {"person"}
    assert "answer" in drifted[2] and "brightness" not in drifted[2]


@pytest.mark.parametrize(
    "answer, verdict",
    [(120, "Right."), (60, "the hold begins"), (300, "does not have to be full"), (7, "is not it"), (None, "a number")],
)
def test_alarm_delay(answer, verdict, capsys):
    exercises.alarm_delay.check(answer)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer, verdict",
    [
        (50 / 68, "Right."),
        (0.1, "of all answers that are wrong"),
        (0.05, "divide by"),
        (0.5, "is not it"),
        (2, "a share"),
    ],
)
def test_share_of_complaints(answer, verdict, capsys):
    exercises.share_of_complaints.check(answer)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer, verdict",
    [("cropper", "Right."), ("checker", "before it"), ("reader", "inherited"), ("moon", "is no part"), (2, "as text")],
)
def test_first_change(answer, verdict, capsys):
    exercises.first_change.check(answer)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "share, verdict",
    [
        (lambda day: (day["profile.value"] == "unknown").mean(), "Right."),
        (lambda day: (day["profile.value"] == "unknown").sum(), "that is a count"),
        (lambda day: day["profile.null"].mean(), "you count None"),
        (lambda day: (day["profile.value"].dropna() == "unknown").mean(), "a visit without one"),
        (lambda day: 1.0, "it gives 1"),
    ],
)
def test_unknown_share(share, verdict, capsys):
    exercises.unknown_share.check(share)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize("name", ["brainstorm", "own_pipeline"])
def test_an_open_exercise_prints_a_model_answer_and_no_verdict(name, capsys):
    getattr(exercises, name).check(...)
    getattr(exercises, name).check("mine")
    getattr(exercises, name).hint()
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("Not tried yet")
    assert rest[0].startswith("One good answer") and rest[-1].startswith("Hint 1 of")
    assert "Right." not in "".join(rest)


@pytest.mark.parametrize(
    "answer, verdict",
    [
        (0.005, "Right."),
        (0.05 / 9, "what else is tested?"),
        (0.05, "all tests together"),
        (0.1, "is not it"),
        (None, "a share"),
    ],
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
        (lambda clicks: {}, "holds no measure"),
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


@pytest.mark.parametrize(
    "answer, verdict",
    [
        (5.56, "Right."),
        (20, "7,200,000 pictures"),
        (20_000, "the number of seconds"),
        (1_000 / 3, "the number of minutes"),
        (None, "a number of hours"),
    ],
)
def test_night_hours(answer, verdict, capsys):
    exercises.night_hours.check(answer)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer, verdict",
    [
        (0.25, "Right."),
        (2.78, "the machine's hours"),
        (0.357, "70 % busy"),
        (25, "pay for 100,000,000 pictures"),
        ("0.25", "give a number"),
    ],
)
def test_price_of_a_million(answer, verdict, capsys):
    exercises.price_of_a_million.check(answer)
    assert verdict in capsys.readouterr().out


def once(db, name, look, ask=True, commit=True):
    if not (ask and db.execute("SELECT 1 FROM done WHERE name = ?", (name,)).fetchone()):
        db.execute("INSERT OR REPLACE INTO done VALUES (?, ?)", (name, look(name)))
        if commit:
            db.commit()


def placed_before(db, name, look):
    with db:
        db.execute("INSERT OR IGNORE INTO done VALUES (?, NULL)", (name,))
    db.execute("UPDATE done SET score = ? WHERE name = ?", (look(name), name))


@pytest.mark.parametrize(
    "answer, verdict",
    [
        (once, "Right."),
        (lambda *given: once(*given, commit=False), "0 of 2 finished pictures are in the table"),
        (lambda *given: once(*given, ask=False), "does once ask the table first?"),
        (placed_before, "store the row after the look"),
        (None, "it raised TypeError"),
    ],
)
def test_resumable(answer, verdict, capsys):
    exercises.resumable.check(answer)
    assert verdict in capsys.readouterr().out


QUESTIONS = {name: one for name, one in vars(exercises).items() if isinstance(one, exercises.Question)}


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_explains_each_option(name, capsys):
    for letter in QUESTIONS[name].options:
        QUESTIONS[name].check(letter)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len({*printed}) == len(QUESTIONS[name].options) >= 3
    assert sum(line.startswith("Right. ") for line in printed) == 1


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


OUTCOMES = pd.DataFrame(
    {"by_model": [0.0, 0.6, 1.0], "misses": [0.005, 0.015, 0.045], "rejects": [0.01, 0.005, 0.005]},
    index=["assistance", "partial", "full"],
)


@pytest.mark.parametrize(
    "answer, verdict",
    [(0.375, "Right."), (0.3, "go up"), (0.5, "go down"), (None, "give a price"), (-1, "give a price")],
)
def test_price_of_a_look(answer, verdict, capsys):
    """0.4 looks cost as much as 0.03 misses at 5 each."""
    exercises.price_of_a_look.check(answer, OUTCOMES)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer, verdict",
    [(12.5, "Right."), (5, "go up"), (20, "go down"), (None, "give a price"), ("5", "give a price")],
)
def test_price_of_a_miss(answer, verdict, capsys):
    """0.6 looks at 0.2 each and 0.005 rejects cost as much as 0.01 misses."""
    exercises.price_of_a_miss.check(answer, OUTCOMES)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "thresholds, verdict",
    [
        (Thresholds(0, 0.5), "Right."),
        (Thresholds(0.1, 0.9), "which of the two thresholds lets scratches pass?"),
        (Thresholds(), "nothing is decided by the model"),
        (Thresholds(0.5, 0.5), "the model decides everything"),
        (0.5, "give Thresholds"),
    ],
)
def test_cheapest_thresholds(thresholds, verdict, capsys):
    """Of the phones below 0.1 one in ten is scratched, and of those above 0.5 nearly all are."""
    confidences = np.repeat([0.05, 0.3, 0.7, 0.95], 1_000)
    labels = np.arange(4_000) % 100 < np.repeat([10, 40, 97, 99], 1_000)
    exercises.cheapest_thresholds.check(thresholds, labels, confidences)
    assert verdict in capsys.readouterr().out


ANSWERS = {"x-ray": "assistance", "spam": "full", "payments": "partial", "loans": "shadow"}
LOOP = {"x-ray", "payments"}


@pytest.mark.parametrize(
    "answer, loop, verdict",
    [
        (ANSWERS, LOOP, "Right."),
        (ANSWERS, sorted(LOOP), "Right."),
        (ANSWERS | {"loans": "assistance"}, LOOP, "so it assists nobody"),
        (ANSWERS | {"payments": "full"}, LOOP, "full is one way for all cases"),
        (ANSWERS | {"x-ray": "partial"}, LOOP, "the model decides none alone"),
        (ANSWERS | {"spam": "partial"}, LOOP, "spam: 'partial' is not its degree"),
        ("full", LOOP, "give a dictionary"),
        (ANSWERS, LOOP | {"loans"}, "the model takes no part"),
        (ANSWERS, LOOP | {"spam"}, "no person takes part"),
        (ANSWERS, {"payments"}, "both take part in the decisions of x-ray"),
        (ANSWERS, [], "both take part in the decisions of x-ray"),
        (ANSWERS, "x-ray", "give a set with some of"),
        (ANSWERS, {"assistance", "partial"}, "give a set with some of"),
        (ANSWERS, None, "give a set with some of"),
    ],
)
def test_name_the_degree(answer, loop, verdict, capsys):
    exercises.name_the_degree.check(answer, loop)
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
    for answer in (looks("stable") - looks("better"), 7, looks("better") - looks("stable"), looks("better"), None):
        exercises.phones_saved.check(answer)
    right, wrong, negative, left, missing = capsys.readouterr().out.splitlines()
    assert right == "Right."
    assert f"with the better one it is not {looks('stable') - 7}" in wrong
    assert "more work for people" in negative
    assert "how many fewer are these?" in left
    assert "a whole number" in missing


def test_ramp_by_request(detector, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("LAB_TOKEN", "0123456789abcdef")
    router = Router(detector)
    candidate = Detector.load(runtime="opencv")
    router.add(candidate)
    headers = {"Authorization": "Bearer 0123456789abcdef"}
    ramp = {"action": "ramp", "candidate": candidate.version, "interval": 60}
    with PredictionLog(f"sqlite:///{tmp_path}/log.db") as log, serve(create_app(router, log=log), port=0) as running:
        exercises.ramp_by_request.check(running.url)
        canary = {"action": "canary", "candidate": candidate.version}
        for change in (canary, ramp | {"steps": [5, 100]}, ramp | {"steps": [7, 70, 100]}, {"action": "rollback"}):
            requests.put(f"{running.url}/rollout", json=change, headers=headers, timeout=30).raise_for_status()
            exercises.ramp_by_request.check(running.url)
    exercises.ramp_by_request.check(running.url)
    exercises.ramp_by_request.check(None)
    before, by_hand, other, right, undone, gone, nothing = capsys.readouterr().out.splitlines()
    assert "no candidate answers anybody" in before and "no candidate answers anybody" in undone
    assert "grows only by hand" in by_hand
    assert "the ramp there is at 5 %" in other
    assert right == "Right."
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
        (lambda rule, traffic: 0, "too few"),
        (lambda rule, traffic: ..., "returns the dots"),
        (
            lambda rule, traffic: calls(rule, traffic) + calls(rule, traffic, "cleared"),
            "includes the alarms that cleared",
        ),
        (None, "it raised TypeError"),
    ],
)
def test_firings(function, verdict, capsys):
    exercises.firings.check(function)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer, verdict",
    [
        (0.8, "Right."),
        (0.6, "go to the others"),
        (0.75, "on three"),
        (None, "give a share"),
        (80, "give a share"),
        ("80 %", "give a share"),
    ],
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
        (lambda rate, each, lost: rate / (0.8 * each) + lost, "return a whole number"),
        (None, "it raised TypeError"),
    ],
)
def test_machines_with_spares(machines, verdict, capsys):
    exercises.machines_with_spares.check(machines)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer, verdict",
    [
        (5.75, "Right."),
        (0.719, "in gigabytes"),
        (4.95, "file is sent twice"),
        (9.9, "pixels are sent once"),
        (5_752, "in megabits"),
        (1.6, "as the network sees it"),
        (7, "by the requests of a second"),
        (None, "give a number"),
    ],
)
def test_network_load(answer, verdict, capsys):
    exercises.network_load.check(answer)
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
