"""A ramp's figures, carried forward from look to look: what a count of the whole log gives, at a cost that does not grow."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import requests
import sqlalchemy as sql

from labsupport import images
from labsupport.log import FEEDBACK, PREDICTIONS, LogUnavailable, PredictionLog
from labsupport.rollout import Gate, Rollout, Router, State, WrongRamp, outcomes_since, ramp_figures
from labsupport.rollout.gate import measured
from labsupport.rollout.ramp_figures import Cursor, TrialFigures, Watch
from labsupport.serving import create_app, serve
from test_router import Version

BEGAN = 1_000_000.0
METRICS = ("error_rate", "latency_p95", "null_rate", "correction_rate")


@pytest.fixture
def log(tmp_path):
    with PredictionLog(f"sqlite:///{tmp_path}/predictions.db") as log:
        yield log


def note(log, id, version="v1", time=BEGAN, latency=0.01, found=(), status=200, **seen):
    """Note one request; `found` is None if the model did not say."""
    log.record(
        id=id, version=version, time=time, latency=latency, detections=found, features=None, status=status, **seen
    )


def some(log, random, first, count, now):
    """Requests of all kinds, with keys and without."""
    for number in range(first, first + count):
        bad = random.random() < 0.1
        note(
            log,
            f"{number}",
            version=random.choice(["v1", "v1", "v2", "other"]),
            time=now + number % 7,  # several processes write, and not quite in turn
            latency=random.exponential(0.1),
            found=None if bad else [],
            status=random.choice([500, 415]) if bad else 200,
            key=None if random.random() < 0.3 else f"user {random.integers(300)}",
            shadow=bool(random.random() < 0.1),
        )
    log.flush()


def reported(number, by, version="v2", found=()) -> dict:
    """What a station reports of one product, with the prediction that it went by."""
    decision = {"id": f"{number:032x}", "station": "s", "product": f"p{number}", "time": BEGAN + number, "latency": 0.1}
    by, _, seen_by = by.partition(", ")
    decision |= {"verdict": "undecided" if by == "nobody" else "accept", "decided_by": by, "version": version}
    decision["reason"] = f"judge: not sure of what the {seen_by} saw" if seen_by else ""
    seen = {"version": version, "latency": 0.02, "detections": list(found), "features": {}}
    return {**decision, "prediction": seen}


def test_what_a_stations_device_answered_counts_for_no_version_of_the_server(log):
    by = ["server"] * 2 + ["nobody, server"] + ["device"] * 5 + ["nobody, device"] * 7
    log.receive([reported(number, who) for number, who in enumerate(by)])
    for number in range(2, 5):  # a candidate in shadow has seen these
        note(log, f"{number:032x}", version="v3", time=BEGAN + number, shadow=True)
    log.flush()
    assert Watch(log, "v1", "v2", BEGAN).figures(BEGAN)["requests"] == 3
    assert outcomes_since(log, BEGAN).version.tolist() == ["v2"] * 3
    assert log.pairs(since=BEGAN)["id"].tolist() == [f"{2:032x}"]
    assert log.elsewhere(since=BEGAN + 4, until=BEGAN + 6) == {f"{number:032x}" for number in (4, 5)}
    log.feedback(f"{4:032x}", correct=False)  # nor does a remark on it
    assert Watch(log, "v1", "v2", BEGAN).figures(BEGAN)["requests"] == 3


def test_devices_promote_no_version_that_the_server_has_never_asked(log):
    router = Router(Version("v1"), log=log)
    ramp = Rollout(router, Version("v2"), steps=(5, 100), gate=Gate(min_requests=50))
    now = time.time()
    log.receive([{**reported(number, "device"), "time": now + number / 1e3} for number in range(100)])
    assert ramp.look().verdict == "hold" and router.version == "v1"


def test_predictions_go_to_the_log_on_which_a_ramp_is_judged(log, tmp_path):
    router = Router(Version("v1"), log=log)
    with serve(create_app(router), port=0) as server:
        picture = images.encode(np.zeros((8, 8, 3), np.uint8))
        answer = requests.post(server.url + "/detect", files={"file": picture}, timeout=30).json()
    assert log.columns("id")["id"] == [answer["id"]]
    with PredictionLog(f"sqlite:///{tmp_path}/other.db") as other, pytest.raises(ValueError, match="the same log"):
        create_app(router, log=other)
    with PredictionLog(log.url) as again:  # as when a cell of a notebook runs again
        create_app(router, log=again)
    one, other = (Router(Version("v1"), log=PredictionLog(f"sqlite:///{tmp_path}/{name}.db")) for name in "ab")
    with pytest.raises(ValueError, match="the same log"):
        create_app({"yolov3-tiny": one, "yolov3": other})


def remark(log, random, upto):
    for number in random.integers(0, upto, 20):
        log.feedback(
            f"{number}", **random.choice([{"correct": True}, {"correct": False}, {"labels": []}, {"retry": True}])
        )


@pytest.mark.parametrize("seed", range(3))
def test_whatever_comes_and_whenever_the_figures_are_those_of_the_whole_log(log, seed, monkeypatch):
    monkeypatch.setattr(ramp_figures, "CHUNK", 70)  # several parts at once
    random, watch, now = np.random.default_rng(seed), Watch(log, "v1", "v2", BEGAN), BEGAN - 3
    for number, since in enumerate([BEGAN, BEGAN, BEGAN + 10, BEGAN + 10, BEGAN + 15]):
        some(log, random, 200 * number, 200, now)
        remark(log, random, 200 * (number + 1))
        now += 5
        figures = watch.figures(since)
        seen = outcomes_since(log, BEGAN)
        expected = {f"stable_{name}": value for name, value in measured(seen.of("v1")).items()}
        expected |= measured(seen.where(seen.time >= since).of("v2"))
        for name, value in expected.items():
            assert figures[name] == pytest.approx(value, rel=0.0051 if "latency" in name else 1e-12), name
        assert figures["requests"] > 0
        later = Watch(log, "v1", "v2", BEGAN).figures(since)  # another process, or this one after a restart
        differ = {name for name in later if later[name] != figures[name]}
        assert differ <= {"e_value"}  # remarks that were known at once there


def test_the_figures_of_a_trial_are_those_of_its_rows_to_users_or_in_shadow(log):
    random, trial = np.random.default_rng(5), TrialFigures()
    canary = State(stable="v1", candidate="v2", mode="canary", time=BEGAN)
    for number in range(3):
        some(log, random, 200 * number, 200, BEGAN + 3 * number)
        figures = trial.figures(log, canary)
        seen = outcomes_since(log, BEGAN)
        for prefix, version in (("", "v2"), ("stable_", "v1")):
            for name, value in measured(seen.of(version)).items():
                assert figures[prefix + name] == pytest.approx(value, rel=0.0051 if "latency" in name else 1e-12), name
    shadow = trial.figures(log, replace(canary, mode="shadow", time=BEGAN + 4))
    rows = log.frame(since=BEGAN + 4, shadow=True)
    rows = rows[(rows["version"] == "v2") & ~rows["status"].between(400, 499)]
    assert shadow["requests"] == len(rows) > 5 and shadow["error_rate"] == pytest.approx((rows["status"] >= 500).mean())
    assert trial.figures(log, State(stable="v1")) == {}


def test_pictures_that_the_candidate_in_shadow_was_not_shown_are_none_of_its_errors(log):
    note(log, "0", "v2", time=BEGAN, shadow=True)
    for number in range(1, 10):
        lost = {"latency": None, "found": None, "status": 500, "error": "NotShown"}
        note(log, f"{number}", "v2", time=BEGAN, shadow=True, **lost)
    log.flush()
    figures = TrialFigures().figures(log, State(stable="v1", candidate="v2", mode="shadow", time=BEGAN))
    assert (figures["requests"], figures["error_rate"]) == (1, 0) and figures["latency_p95"] > 0


def test_what_users_say_of_the_answer_they_got_is_no_remark_on_the_candidate_in_shadow(log):
    for number in range(20):
        for version, shadow in (("v1", False), ("v2", True)):
            note(log, f"{number}", version, time=BEGAN + number, shadow=shadow)
        log.flush()
        log.feedback(f"{number}", correct=False)
    figures = TrialFigures().figures(log, State(stable="v1", candidate="v2", mode="shadow", time=BEGAN))
    assert figures["stable_correction_rate"] == 1 and "correction_rate" not in figures


def test_without_late_remarks_the_e_value_is_that_of_the_first_requests_in_the_order_of_writing(log):
    random, watch = np.random.default_rng(1), Watch(log, "v1", "v2", BEGAN)
    for number in range(300):
        version = random.choice(["v1", "v2"])
        failed = random.random() < (0.3 if version == "v2" else 0.05)
        key = None if number % 5 == 0 else f"user {random.integers(100)}"
        note(log, f"{number}", version, time=BEGAN + number, status=500 if failed else 200, key=key)
        if number % 50 == 49:
            log.flush()
            figures = watch.figures(BEGAN)
    expected = Gate().judge(outcomes_since(log, BEGAN), "v1", "v2").figures
    for name in ("e_value", "counted", "without_key", "largest_key"):
        assert figures[name] == pytest.approx(expected[name], rel=1e-12)
    assert figures["e_value"] > 20


@pytest.mark.parametrize("words", [{"correct": False}, {"labels": ["cat"]}])
def test_users_who_speak_later_are_heard_by_the_limits_and_by_the_evidence(log, words):
    watch = Watch(log, "v1", "v2", BEGAN)
    for number in range(400):
        note(log, f"{number}", "v2" if number % 4 == 3 else "v1", time=BEGAN + number)
    log.flush()
    before = watch.figures(BEGAN)["e_value"]
    for number in range(3, 43, 4):  # the candidate's first ten
        log.feedback(f"{number}", **words)
    figures = watch.figures(BEGAN)
    assert figures["correction_rate"] == 10 / 100 and figures["e_value"] > 20 > 1 >= before
    for number in range(3, 43, 4):  # they changed their minds: the last remark counts
        log.feedback(f"{number}", correct=True)
    assert watch.figures(BEGAN)["correction_rate"] == 0


# what is not known


@pytest.mark.parametrize(
    ("metric", "row"),
    [
        ("latency_p95", {"latency": None}),
        ("latency_p95", {"latency": float("nan")}),
        ("null_rate", {"found": None}),
        ("error_rate", {"status": None}),
    ],
)
@pytest.mark.parametrize("limited", [True, False])
def test_one_row_of_which_a_metric_is_not_known_holds_a_ramp(log, metric, row, limited):
    gate = Gate(thresholds={metric: (None, 1)} if limited else {}, min_requests=20)
    ramp = Rollout(Router(Version("v1"), log=log), Version("v2"), gate=gate)
    for number in range(30):
        note(log, f"{number}", "v2", time=time.time())
    note(log, "30", "v2", time=time.time(), **row)
    log.flush()
    judgement = ramp.look()
    if limited or metric == "error_rate":  # which the evidence needs
        assert (judgement.verdict, judgement.reason) == ("hold", f"{metric}: not known of 1 of 31 requests")
    else:
        assert judgement.verdict == "promote"


def test_before_any_user_has_spoken_a_correction_rate_is_not_known(log):
    gate = Gate(thresholds={"correction_rate": (None, 0.5)}, min_requests=20)
    ramp = Rollout(Router(Version("v1"), log=log), Version("v2"), gate=gate)
    for number in range(30):
        note(log, f"{number}", "v2", time=time.time())
    note(log, "stable's", "v1", time=time.time())
    log.flush()
    assert ramp.look().reason == "correction_rate: not known of 30 of 30 requests"
    assert np.isnan(outcomes_since(log, 0).corrected).all()
    log.feedback("stable's", retry=True)
    assert ramp.look().verdict == "hold"  # that says nothing about right or wrong
    log.feedback("stable's", correct=True)
    assert not outcomes_since(log, 0).corrected.any()
    assert ramp.look().verdict == "promote"


# nothing is lost, and nothing is read twice


def test_a_log_that_is_away_for_a_moment_costs_no_row(log, monkeypatch):
    monkeypatch.setattr(ramp_figures, "CHUNK", 10)
    watch, whole, calls = Watch(log, "v1", "v2", BEGAN), log.select, []
    for number in range(95):
        note(
            log, f"{number}", "v2" if number % 5 else "v1", key=f"user {number % 50}", status=500 if number % 7 else 200
        )
    log.flush()
    log.feedback("7", correct=False)

    def sometimes(query):
        calls.append(query)
        if len(calls) % 7 == 0:
            raise LogUnavailable("away")
        return whole(query)

    monkeypatch.setattr(log, "select", sometimes)
    figures = None
    for _ in range(20):
        try:
            figures = watch.figures(BEGAN)
            break
        except LogUnavailable:
            pass
    monkeypatch.setattr(log, "select", whole)
    assert len(calls) > 10 and figures == Watch(log, "v1", "v2", BEGAN).figures(BEGAN)


def count_rows(log, monkeypatch) -> list[int]:
    read, whole = [], log.select

    def counted(query):
        rows = whole(query)
        read.append(len(rows))
        return rows

    monkeypatch.setattr(log, "select", counted)
    return read


def test_a_look_reads_what_is_new_and_no_more(log, monkeypatch):
    watch = Watch(log, "v1", "v2", BEGAN)
    for number in range(3_000):
        note(log, f"{number}", time=BEGAN + number)
    log.flush()
    watch.figures(BEGAN), watch.figures(BEGAN + 2_500)
    read = count_rows(log, monkeypatch)
    for number in range(3_000, 3_010):
        note(log, f"{number}", time=BEGAN + number)
    log.flush()
    log.feedback("5", correct=True)
    watch.figures(BEGAN + 2_500)
    assert sum(read) == 2 * (10 + 1)  # for the ramp, and for its step


def test_the_queries_of_a_look_search_and_do_not_scan(log):
    note(log, "a", time=BEGAN)
    log.flush()
    log.feedback("a", correct=True)
    ramp = Watch(log, "v1", "v2", BEGAN)._ramp
    queries = [
        ramp_figures.ROWS.where(PREDICTIONS.c.row > 5).order_by(PREDICTIONS.c.row).limit(10),
        ramp_figures.REMARKS.where(FEEDBACK.c.row > 5).order_by(FEEDBACK.c.row).limit(10),
        ramp_figures.ROWS.where(PREDICTIONS.c.row.in_([1, 2, 3])),
        ramp_figures.first_row(BEGAN),
        sql.select(sql.func.max(PREDICTIONS.c.row)),
    ]
    assert ramp.counts["v1"].figures(True)["requests"] == 0  # nothing is read before it is asked for
    with log._engine.connect() as connection:
        for query in queries:
            text = str(query.compile(log._engine, compile_kwargs={"literal_binds": True}))
            plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")]
            steps = [step for step in plan if step.startswith(("SCAN", "SEARCH", "USE TEMP"))]
            assert steps and all(step.startswith("SEARCH") for step in steps), plan
            assert query is queries[-1] or all(" USING " in step for step in steps), plan


def rows_of(cursor) -> list[int]:
    return [row.number for rows, _ in cursor.chunks() for row in rows]


def test_numbers_that_are_left_out_are_asked_for_again_where_they_may_still_appear(log, monkeypatch):
    """PostgreSQL numbers rows before it writes them, and several processes write at once."""

    def write(*numbers):
        with log._engine.begin() as connection:
            for number in numbers:
                values = {
                    "row": number,
                    "time": BEGAN,
                    "id": f"{number}",
                    "version": "v2",
                    "status": 200,
                    "shadow": False,
                }
                connection.execute(sql.insert(PREDICTIONS).values(values))

    monkeypatch.setattr(ramp_figures, "CHUNK", 3)
    cursor = Cursor(log, ramp_figures.ROWS, PREDICTIONS.c.row, 0)
    cursor._skips = True
    write(1, 2, 5, 9)
    assert rows_of(cursor) == [1, 2, 5, 9] and not cursor.has_read(4) and cursor.has_read(5)
    write(4, 8, 10)
    assert rows_of(cursor) == [4, 8, 10] and cursor.has_read(4)
    write(3, 6, 7)
    assert [(len(rows), late) for rows, late in cursor.chunks()] == [(3, True)]
    assert rows_of(cursor) == []
    monkeypatch.setattr(ramp_figures, "PATIENCE", -1.0)
    write(15)
    assert rows_of(cursor) == [15] and rows_of(cursor) == []
    write(12)
    assert rows_of(cursor) == []  # nobody waits for it any more


def test_late_rows_count_for_the_limits(log):
    watch = Watch(log, "v1", "v2", BEGAN)
    watch._ramp._rows._skips = True
    with log._engine.begin() as connection:
        for number in (1, 3):
            values = {"row": number, "time": BEGAN, "id": f"{number}", "version": "v2", "status": 200, "shadow": False}
            connection.execute(sql.insert(PREDICTIONS).values(values))
    assert watch.figures(BEGAN)["requests"] == 2
    with log._engine.begin() as connection:
        connection.execute(sql.insert(PREDICTIONS).values(values | {"row": 2, "id": "2", "status": 500}))
    assert watch.figures(BEGAN)["error_rate"] == pytest.approx(1 / 3)
    log.feedback("2", correct=False)
    assert watch.figures(BEGAN)["correction_rate"] == pytest.approx(1 / 3)


def test_a_log_that_was_emptied_is_read_on_from_its_new_beginning(log):
    watch = Watch(log, "v1", "v2", BEGAN)
    for number in range(20):
        note(log, f"{number}", "v2")
    log.flush()
    assert watch.figures(BEGAN)["requests"] == 20
    log.prune(max_bytes=0)
    assert watch.figures(BEGAN)["requests"] == 20  # they have happened
    for number in range(5):
        note(log, f"new {number}", "v2")
    log.flush()
    log.feedback("new 0", correct=False)
    figures = watch.figures(BEGAN)
    assert (figures["requests"], figures["correction_rate"]) == (25, 1 / 25)


def test_rows_before_the_ramp_are_not_its_own_though_they_are_written_later(log):
    note(log, "before", "v2", time=BEGAN - 1)
    log.flush()
    watch = Watch(log, "v1", "v2", BEGAN)
    note(log, "before, too", "v2", time=BEGAN - 0.5)
    note(log, "after", "v2", time=BEGAN)
    log.flush()
    assert watch.figures(BEGAN)["requests"] == 1
    assert watch.figures(BEGAN + 1)["requests"] == 0


def test_two_threads_may_look_at_one_ramp(log):
    watch, threads = Watch(log, "v1", "v2", BEGAN), []
    for number in range(2_000):
        note(log, f"{number}", "v2")
    log.flush()
    for _ in range(4):
        threads.append(threading.Thread(target=watch.figures, args=(BEGAN,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert watch.figures(BEGAN)["requests"] == 2_000


@pytest.mark.parametrize("spread", [0.1, 1, 3])
@pytest.mark.parametrize("count", [1, 2, 19, 20, 21, 1_000])
def test_the_p95_of_a_histogram_is_right_to_half_a_percent(spread, count):
    latencies = np.random.default_rng(count).lognormal(-3, spread, count).clip(2e-4)
    steps = ramp_figures.Counter(
        int(np.log(latency / ramp_figures.FASTEST) / ramp_figures.STEP) for latency in latencies
    )
    assert ramp_figures._percentile(steps, 0.95) == pytest.approx(np.percentile(latencies, 95), rel=0.0051)


# a gate that no ramp could pass

AGREEMENT = {"agreement": (0.8, None)}


def test_a_ramp_whose_gate_asks_for_agreement_is_refused_when_it_is_begun(log):
    router = Router(Version("v1"), log=log)
    with pytest.raises(WrongRamp, match=r"agreement.*router\.shadow\(candidate\)"):
        Rollout(router, Version("v2"), gate=Gate(thresholds=AGREEMENT))
    assert router.state.action == "start"


@pytest.mark.parametrize(
    "gate",
    [
        '{"thresholds": {"agreement": [0.8, null]}}',
        '{"thresholds": {"error_rate": [null, NaN]}}',
        '{"thresholds": {"error_rate": [null, Infinity]}}',
        '{"thresholds": {"error_rate": [0.2, 0.1]}}',
        '{"thresholds": {"error_rate": [null, null]}}',
        '{"ratios": {"error_rate": NaN}}',
        '{"ratios": {"latency_p95": 1e999}}',
        '{"ratios": {"agreement": 2}}',
        '{"alpha": NaN}',
        '{"min_requests": 2.5}',
    ],
)
def test_over_http_too_and_so_is_what_is_no_number(live, gate):
    url, router = live
    headers = {"Authorization": "Bearer 0123456789abcdef", "Content-Type": "application/json"}
    body = f'{{"action": "ramp", "candidate": "v2", "gate": {gate}}}'
    answer = requests.put(f"{url}/rollout", data=body, headers=headers, timeout=30)
    assert answer.status_code == 422
    # NaN and Infinity are no JSON, and refused before the fields are looked at
    words = [
        name
        for name in ("NaN", "Infinity", "agreement", "error_rate", "latency_p95", "alpha", "min_requests")
        if name in gate
    ]
    assert words[0] in answer.json()["detail"]
    assert router.state.action == "start"


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")
    with pytest.MonkeyPatch.context() as patch, PredictionLog(f"sqlite:///{folder}/predictions.db") as log:
        patch.setenv("LAB_TOKEN", "0123456789abcdef")
        router = Router(Version("v1"), Version("v2"), log=log)
        with serve(create_app(router, log=log), port=0) as server:
            yield server.url, router


def test_a_latency_beyond_all_measure_is_a_very_long_one_and_stops_no_look(log):
    watch = Watch(log, "v1", "v2", BEGAN)
    for number, latency in enumerate([1e308, 1e12, 0.0, 5e-324]):
        note(log, f"{number}", version="v2", latency=latency)
    log.flush()
    figures = watch.figures(BEGAN)
    assert figures["requests"] == 4 and figures["latency_p95"] == pytest.approx(1e9, rel=0.0051)


def test_a_number_that_an_emptied_log_gives_again_is_another_answer(log):
    watch = Watch(log, "v1", "v2", BEGAN)
    for round in range(2):
        note(log, f"{round}", version="v2")
        log.flush()
        watch.figures(BEGAN)
        log.feedback(f"{round}", correct=False)
        figures = watch.figures(BEGAN)
        assert (figures["requests"], figures["correction_rate"]) == (round + 1, 1)
        log.prune(max_bytes=0)
        watch.figures(BEGAN)
