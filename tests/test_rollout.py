"""The ramp: a good candidate goes up, a bad one comes back down, and a crash in between forgets nothing. And all of it over
HTTP."""

import secrets
import subprocess
import sys
import threading

import numpy as np
import pytest
import requests

from labsupport import images
from labsupport.log import LogUnavailable, PredictionLog, tables
from labsupport.monitoring import Metrics
from labsupport.rollout import Gate, Ramps, Rollout, Router, WrongRamp, outcomes_since
from labsupport.rollout.router import OVERDUE
from labsupport.serving import create_app, serve
from test_router import PICTURE, Version, until, who

TOKEN = "0123456789abcdef"
GATE = Gate(thresholds={"error_rate": (None, 0.05)}, min_requests=20)


@pytest.fixture
def log(tmp_path):
    with PredictionLog(f"sqlite:///{tmp_path}/predictions.db") as log:
        yield log


class Clock:
    """The time, as the modules of the rollout see it: it stands until somebody moves it."""

    def __init__(self, monkeypatch, now: float = 1_750_000_000.0) -> None:
        self.now, self.set_back = now, 0.0
        for module in ("answering", "journal", "ramp", "router", "shadow", "transitions"):
            monkeypatch.setattr(f"labsupport.rollout.{module}.time", self, raising=False)

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now + self.set_back

    perf_counter = time


def answered(log, version, count, failed=0, **seen):
    """Note so many requests that a version answered, the last ones with an error."""
    for number in range(count):
        bad = number >= count - failed
        found = None if bad else []
        status, error = (500, "ValueError") if bad else (200, None)
        seen = {"latency": 0.01, **seen}
        log.record(
            id=secrets.token_hex(8),
            version=version,
            detections=found,
            features=None,
            status=status,
            error=error,
            **seen,
        )
    log.flush()


def test_a_good_candidate_climbs_every_step_and_becomes_stable(log):
    router = Router(Version("v1"), log=log)
    ramp = Rollout(router, Version("v2"), steps=[5, 50, 100], gate=GATE)
    shares = []
    while not ramp.done:
        shares.append(router.state.share)
        assert ramp.look().verdict == "hold"  # nothing has happened at this step yet
        answered(log, "v1", 40)
        answered(log, "v2", 20)
        assert ramp.look().verdict == "promote"
    assert shares == [5, 50, 100]
    assert (who(router), router.state.previous) == ("v2", "v1")
    assert [state.action for state in router.history()] == ["start", "ramp", "promote", "promote", "promote"]
    assert all(state.figures["requests"] == 20 and state.reason for state in router.history()[2:])
    router.rollback()
    assert who(router) == "v1"


def test_a_candidate_that_fails_is_rolled_back_with_the_figures_it_was_decided_on(log):
    router = Router(Version("v1"), log=log)
    ramp = Rollout(router, Version("v2"), gate=GATE)
    for _ in range(30):
        answered(log, "v1", 19)
        answered(log, "v2", 1, failed=1)
        if ramp.look().verdict == "rollback":
            break
    assert ramp.done and who(router) == "v1" and router.status()["phase"] == "Degraded"
    state = router.state
    assert state.figures["error_rate"] == 1 and state.figures["e_value"] >= 20
    assert "goes wrong more often than v1" in state.reason
    assert state.figures["requests"] < 20  # evidence enough before the sample that promotion needs


def test_failed_checks_are_counted_and_remembered(log):
    gate = Gate(thresholds={"latency_p95": (None, 0.1)}, min_requests=5, failure_limit=1)
    router = Router(Version("v1"), log=log)
    ramp = Rollout(router, Version("v2"), gate=gate)
    answered(log, "v2", 5, latency=0.5)
    assert ramp.look().verdict == "hold"
    assert router.state.action == "check failed" and router.state.ramp["failures"] == 1
    assert Rollout.resumed(router).look().verdict == "rollback"


def test_bad_uploads_are_the_clients_fault_and_shadows_are_no_answers(log):
    seen = {"latency": 0.1, "detections": None, "features": None}
    log.record(id="a", version="v2", status=415, error="UnsupportedImage", **seen)
    log.record(id="b", version="v2", status=500, error="ValueError", **seen)
    log.record(id="c", version="v2", status=500, error="ValueError", shadow=True, **seen)
    log.record(id="d", version="v1", latency=0.2, detections=[], features=None)
    log.feedback("d", correct=False)
    outcomes = outcomes_since(log, 0)
    assert outcomes.version.tolist() == ["v2", "v1"]
    assert outcomes.failed.tolist() == [True, False]
    assert outcomes.null.tolist() == [False, True]
    assert outcomes.corrected.tolist() == [False, True]


def test_a_pause_holds_whatever_the_figures_and_what_a_person_does_ends_the_ramp(log):
    router = Router(Version("v1"), log=log)
    ramp = Rollout(router, Version("v2"), gate=GATE)
    answered(log, "v2", 50)
    router.pause("lunch")
    assert ramp.look().reason == "paused" and router.state.share == 5
    router.resume()
    assert ramp.look().verdict == "promote" and router.state.share == 25
    router.rollback("I have seen enough")
    assert ramp.done and ramp.look().reason == "the ramp is over"


def test_what_was_seen_is_no_ground_once_somebody_changed_something(log):
    router = Router(Version("v1"), log=log)
    ramp = Rollout(router, Version("v2"), gate=GATE)
    answered(log, "v2", 50)
    seen = router.state
    judgement = ramp.gate.judge(outcomes_since(log, 0), "v1", "v2")
    router.rollback("at the same moment")
    ramp._act(judgement, seen)
    assert who(router) == "v1" and router.state.action == "rollback"


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    "steps", [[], [50, 5, 100], [5, 50], [0, 100], [5, 5, 100], "100", 100, None, [*range(1, 101), 100]]
)
def test_steps_that_do_not_lead_to_100_are_refused(steps, log):
    with pytest.raises(WrongRamp, match=r"steps=.*grow to 100"):
        Rollout(Router(Version("v1"), log=log), Version("v2"), steps=steps)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": [NAN, 100]},
        {"steps": [5, INFINITE]},
        {"steps": ["5", 100]},
        {"steps": [True, 100]},
        {"interval": 0},
        {"interval": -1},
        {"interval": NAN},
        {"interval": INFINITE},
        {"interval": "1"},
        {"interval": None},
        {"gate": {"min_requests": 3}},
    ],
)
def test_a_ramp_that_cannot_be_meant_is_refused_before_anything_changes(wrong, log):
    router = Router(Version("v1"), log=log)
    with pytest.raises(WrongRamp, match=next(iter(wrong))):
        Rollout(router, Version("v2"), **wrong)
    assert len(router.history()) == 1


# whose ramp it is


EASY, NEVER = Gate(min_requests=1), Gate(min_requests=1_000_000)


@pytest.mark.parametrize("again", ["v2", "v3"])
@pytest.mark.parametrize("between", ["rollback", "nothing"])
def test_a_ramp_is_judged_by_its_own_gate_and_by_no_other(log, again, between):
    router = Router(Version("v1"), Version("v2"), Version("v3"), log=log)
    first = Rollout(router, "v2", [50, 100], EASY)
    if between == "rollback":
        router.rollback()
    second = Rollout(router, again, [50, 100], NEVER)
    answered(log, "v1", 50)
    answered(log, again, 50)
    assert first.done and first.look().reason == "the ramp is over" and first.look_in_turn() > 0
    first.run()  # returns
    assert second.look().verdict == "hold" and router.state.share == 50
    assert Rollout.resumed(router).look().verdict == "hold"  # by the gate that the journal holds


def test_a_servers_watcher_judges_the_ramp_that_there_is_by_its_own_gate(log):
    router = Router(Version("v1"), Version("v2"), log=log)
    ramps = Ramps({"m": router})
    ramps.start("m", "v2", [50, 100], EASY, interval=0.05)
    router.rollback()
    ramps.start("m", "v2", [50, 100], NEVER, interval=0.05)
    answered(log, "v1", 50)
    answered(log, "v2", 50)
    began = router.state.time
    until(lambda: router.journal.judged(router.state.ramp["id"]) > began + 0.3)  # some looks of whoever looks
    assert router.state.share == 50
    assert [thread.name for thread in threading.enumerate()].count("rollout of m") == 1
    with pytest.raises(ValueError, match="model='n'"):
        ramps.start("n", "v2", [50, 100], EASY, interval=1)
    ramps.stop()
    assert "rollout of m" not in [thread.name for thread in threading.enumerate()]


def test_a_ramp_that_another_process_began_is_watched_too(log, tmp_path):
    one, other = (Router(Version("v1"), Version("v2"), journal=tmp_path / "rollout.db", log=log) for _ in range(2))
    ramps = Ramps({"m": other})
    ramps.go_on()
    Rollout(one, "v2", [100], EASY, interval=0.05)
    answered(log, "v2", 5)
    until(lambda: one.version == "v2")
    ramps.stop()


# when what it stands on breaks


class Away:
    """A log that cannot be read, whatever is asked of it."""

    def __getattr__(self, name):
        raise LogUnavailable("the server cannot be reached")


@pytest.mark.parametrize("watcher", ["server", "run"])
def test_a_watcher_survives_a_log_that_is_away_and_says_so_once(log, caplog, watcher):
    router = Router(Version("v1"), Version("v2"), log=log)
    ramps, router.log = Ramps({"m": router}), Away()
    if watcher == "server":
        ramps.start("m", "v2", [100], EASY, interval=0.02)
    else:
        threading.Thread(target=Rollout(router, "v2", [100], EASY, interval=0.02).run, daemon=True).start()
    until(lambda: "LogUnavailable" in caplog.text)
    assert router.status()["phase"] == "Progressing"  # it has not been for long
    router.log = log
    answered(log, "v2", 5)
    until(lambda: router.version == "v2")
    assert caplog.text.count("the server cannot be reached'); trying again") == 1
    until(lambda: "works again" in caplog.text)
    ramps.stop()


def test_a_ramp_that_nobody_could_judge_for_long_is_visible(log, monkeypatch):
    clock = Clock(monkeypatch)
    router = Router(Version("v1"), Version("v2"), log=log)
    ramp = Rollout(router, "v2", [50, 100], EASY, interval=60)
    assert (router.unjudged, router.status()["phase"]) == (0, "Progressing")
    clock.now += 60 + OVERDUE
    assert (router.unjudged, router.status()["phase"]) == (OVERDUE, "Progressing")
    clock.now += 15
    status = router.status()
    assert (status["phase"], status["unjudged_seconds"]) == ("Degraded", OVERDUE + 15)
    assert "nobody has judged the ramp, which has been overdue for 45 s" in status["trouble"]
    text = Metrics().text([("m", "v1")], {"m": router.unjudged})
    assert 'rollout_unjudged_seconds{name="m"} 45.0' in text
    router.pause()
    assert (router.unjudged, router.status()["phase"]) == (0, "Paused")
    router.resume()
    clock.now += 100
    assert router.unjudged == 40
    assert ramp.look().verdict == "hold"
    assert (router.unjudged, router.status()["phase"]) == (0, "Progressing")
    clock.now -= 1e6  # the clock is set back
    assert router.unjudged == 0
    router.rollback()
    assert router.unjudged == 0


def test_without_a_log_a_ramp_under_way_is_not_judged_and_says_why(log, tmp_path):
    Rollout(Router(Version("v1"), Version("v2"), journal=tmp_path / "rollout.db", log=log), "v2")
    router = Router(Version("v1"), Version("v2"), journal=tmp_path / "rollout.db")
    with pytest.raises(WrongRamp, match="reads a log"):
        Rollout.resumed(router).look()


# several workers on one journal


@pytest.fixture
def workers(log, tmp_path, monkeypatch):
    """Four routers on one journal, as four processes have them, and a clock that the test moves."""
    clock = Clock(monkeypatch)
    routers = [Router(Version("v1"), Version("v2"), journal=tmp_path / "rollout.db", log=log) for _ in range(4)]
    return clock, routers


def watch(clock, ramps, seconds, every=0.125) -> None:
    """So many seconds, in which each worker comes by again and again."""
    for _ in range(round(seconds / every)):
        clock.now += every
        for ramp in ramps:
            ramp.look_in_turn()


SLOW = Gate(thresholds={"latency_p95": (None, 0.1)}, min_requests=5, failure_limit=3)


def test_four_workers_use_up_the_failure_limit_no_faster_than_one(workers, log):
    clock, routers = workers
    Rollout(routers[0], "v2", gate=SLOW, interval=1)
    ramps = [Rollout.resumed(router) for router in routers]
    answered(log, "v2", 5, latency=0.5)
    for second in (1, 2, 3):
        watch(clock, ramps, 0.875)
        assert routers[3].state.ramp["failures"] == second - 1
        watch(clock, ramps, 0.125)
        assert routers[3].state.ramp["failures"] == second
    watch(clock, ramps, 1)
    assert {router.state.action for router in routers} == {"rollback"} and routers[0].version == "v1"


def test_a_look_by_hand_counts_as_one_of_the_watchers(workers, log):
    clock, routers = workers
    ramp = Rollout(routers[0], "v2", gate=SLOW, interval=10)
    ramps = [Rollout.resumed(router) for router in routers]
    answered(log, "v2", 5, latency=0.5)
    watch(clock, ramps, 9.875)
    ramp.look()
    watch(clock, ramps, 9.875)
    assert ramp.router.state.ramp["failures"] == 1
    watch(clock, ramps, 0.125)
    assert ramp.router.state.ramp["failures"] == 2


def test_a_worker_that_dies_after_it_took_the_turn_costs_ten_seconds_and_no_hour(workers):
    clock, routers = workers
    Rollout(routers[0], "v2", gate=SLOW, interval=3600)
    id, began = routers[0].state.ramp["id"], routers[0].state.ramp["began"]
    clock.now += 3600
    assert [router.journal.claim(id, 3600, began) for router in routers] == [0, 10, 10, 10]
    clock.now += 10
    assert routers[1].journal.claim(id, 3600, began) == 0


def test_a_clock_that_is_set_back_stops_no_watcher(workers, log):
    clock, routers = workers
    Rollout(routers[0], "v2", gate=SLOW, interval=1)
    ramps = [Rollout.resumed(router) for router in routers]
    watch(clock, ramps, 5)
    clock.now -= 86_400
    before = clock.now
    watch(clock, ramps, 1)
    assert routers[0].journal.judged(ramps[0].id) > before


def test_while_the_clock_is_behind_its_step_a_ramp_holds_and_says_so_and_then_goes_on(workers, log):
    clock, (router, *_) = workers
    ramp = Rollout(router, "v2", gate=GATE)
    clock.now -= 3600
    answered(log, "v2", 40, failed=40, time=clock.now)  # before the step, as this clock says
    judgement, status = ramp.look(), router.status()
    words = "the clock was set back to 3,600 s before this step of the ramp: new requests do not count yet"
    assert judgement.verdict == "hold" and judgement.reason == words.replace("3,600", "3,600.0").replace(
        " of the ramp", ""
    )
    assert status["phase"] == "Degraded" and words in status["trouble"]
    assert (router.state.action, router.unjudged) == ("ramp", 0)
    router.pause()
    assert (router.status()["phase"], router.status()["trouble"]) == ("Paused", "")
    router.resume()
    clock.now += 3600 - OVERDUE
    assert ramp.look().verdict == "hold"
    assert (router.status()["phase"], router.status()["trouble"]) == ("Progressing", "")  # it will not be for long
    clock.now += OVERDUE
    assert ramp.look().reason == "0 of at least 20 requests"
    answered(log, "v2", 20, time=clock.now)
    assert ramp.look().verdict == "promote" and router.state.share == 25


def test_what_was_seen_before_the_clock_was_set_back_still_rolls_back(workers, log):
    clock, (router, *_) = workers
    ramp = Rollout(router, "v2", gate=GATE)
    for _ in range(30):
        answered(log, "v1", 19, time=clock.now)
        answered(log, "v2", 1, failed=1, time=clock.now)
    clock.now -= 3600
    assert ramp.look().verdict == "rollback" and router.state.action == "rollback"


@pytest.mark.parametrize("back", [0.25, 60])
def test_the_requests_of_a_step_count_for_no_later_one_though_the_clock_is_set_back(workers, log, back):
    clock, routers = workers
    ramp = Rollout(routers[0], "v2", gate=GATE)
    clock.now += 100
    assert ramp.look().verdict == "hold"
    answered(log, "v2", 20, time=clock.now)
    clock.now, clock.set_back = clock.now - back, back
    assert ramp.look().verdict == "promote" and ramp.router.state.share == 25
    answered(log, "v2", 20, time=clock.now + back)  # of the first step too: they were written late
    assert ramp.look().verdict == "hold"
    assert {Rollout.resumed(router).look().verdict for router in routers} == {"hold"}  # and who reads all rows again
    clock.now += back + 1
    assert ramp.look().reason == "0 of at least 20 requests"
    answered(log, "v2", 20, time=clock.now)
    assert ramp.look().verdict == "promote" and ramp.router.state.figures["requests"] == 20


def test_a_request_from_a_clock_that_was_ahead_stalls_no_ramp(workers, log):
    clock, (router, *_) = workers
    ramp = Rollout(router, "v2", gate=GATE)
    answered(log, "v2", 20, time=clock.now + 86_400)
    assert ramp.look().verdict == "promote" and router.status()["trouble"] == ""
    clock.now += 1
    assert "the clock was set back" not in ramp.look().reason


def test_in_real_time_four_workers_take_turns(log, tmp_path):
    routers = [Router(Version("v1"), Version("v2"), journal=tmp_path / "rollout.db", log=log) for _ in range(4)]
    workers = [Ramps({"m": router}) for router in routers]
    workers[0].start("m", "v2", [50, 100], Gate(thresholds=SLOW.thresholds, min_requests=5, failure_limit=3), 0.2)
    began = routers[0].state.time
    for ramps in workers:
        ramps.go_on()
    answered(log, "v2", 5, latency=0.5)
    until(lambda: routers[3].state.action == "rollback")
    assert routers[3].state.time - began >= 4 * 0.2
    assert [state.action for state in routers[0].history()].count("check failed") == 3
    for ramps in workers:
        ramps.stop()


def test_without_a_log_there_is_no_ramp():
    with pytest.raises(ValueError, match="reads a log"):
        Rollout(Router(Version("v1")), Version("v2"))


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from test_rollout import GATE, Version, answered
from labsupport.monitoring import PredictionLog
from labsupport.rollout import Rollout, Router
log = PredictionLog(f"sqlite:///{sys.argv[1]}/predictions.db")
router = Router(Version("v1"), Version("v2"), journal=f"{sys.argv[1]}/rollout.db", log=log)
ramp = Rollout(router, "v2", gate=GATE)
answered(log, "v2", 20)
ramp.look()
print(router.state.share, *[key for key in range(300) if router.choose(str(key)).version == "v2"], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_in_the_middle_of_a_ramp_it_goes_on_at_the_recorded_step_with_the_same_keys(tmp_path, request):
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(request.path.parent)]
    share, *keys = subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.split()
    assert share == "25" and 40 < len(keys) < 110
    with PredictionLog(f"sqlite:///{tmp_path}/predictions.db") as log:
        router = Router(Version("v1"), Version("v2"), journal=tmp_path / "rollout.db", log=log)
        ramp = Rollout.resumed(router)
        assert [key for key in range(300) if router.choose(str(key)).version == "v2"] == [int(key) for key in keys]
        assert (router.state.share, ramp.gate.min_requests) == (25, 20)
        answered(log, "v2", 20)
        assert ramp.look().verdict == "promote" and router.state.share == 50


# over HTTP


@pytest.fixture
def live(log, monkeypatch):
    """A server with two versions, and a function that asks it to change who answers."""
    monkeypatch.setenv("LAB_TOKEN", TOKEN)
    router = Router(Version("v1"), Version("v2"), log=log)
    with serve(create_app(router, log=log), port=0) as server:

        def change(token=TOKEN, **wanted):
            headers = {"Authorization": f"Bearer {token}"}
            return requests.put(server.url + "/rollout", json=wanted, headers=headers, timeout=30)

        def ask(key=None, picture=None):
            picture = picture or images.encode(PICTURE)
            headers = {"X-Client-Key": key} if key else {}
            response = requests.post(server.url + "/detect", files={"file": picture}, headers=headers, timeout=30)
            assert response.headers["X-Model-Version"] == response.json()["detections"][0]["label"]
            return response

        yield server.url, change, ask


def test_who_answers_is_shown_and_changed_with_the_token(live):
    url, change, ask = live
    assert requests.get(url + "/rollout", timeout=30).json()["phase"] == "Healthy"
    answer = change(action="canary", candidate="v2", weight=100, reason="a try")
    assert (answer.status_code, answer.json()["candidate"], answer.json()["share"]) == (200, "v2", 100)
    assert ask("me").headers["X-Model-Version"] == "v2"
    assert change(action="rollback").json()["phase"] == "Degraded"
    assert ask("me").headers["X-Model-Version"] == "v1"


@pytest.mark.parametrize(
    "status, wanted",
    [
        (401, {"token": "0123456789abcdeX", "action": "rollback"}),
        (409, {"action": "rollback"}),
        (404, {"action": "rollback", "to": "v3"}),
        (409, {"action": "pause"}),
        (409, {"action": "promote"}),
        (422, {"action": "rollback", "to": "v" * 1_001}),
        (422, {"action": "canary", "candidate": "v2", "reason": "a\0b"}),
        (422, {"action": "canary", "candidate": "v2", "reason": "x" * 1_001}),
        (409, {"action": "canary", "candidate": "v1"}),
        (404, {"action": "canary", "candidate": "v3"}),
        (422, {"action": "canary"}),
        (422, {"action": "canary", "candidate": "v2", "weight": 101}),
        (422, {"action": "ramp", "candidate": "v2", "steps": [50, 5]}),
        (422, {"action": "explode"}),
    ],
)
def test_what_cannot_be_done_says_why_and_changes_nothing(live, status, wanted):
    url, change, _ = live
    answer = change(**wanted)
    assert answer.status_code == status and answer.json()["detail"]
    assert requests.get(url + "/rollout", timeout=30).json()["action"] == "start"


def test_without_a_token_in_its_environment_a_server_changes_for_nobody(live, monkeypatch):
    _, change, _ = live
    monkeypatch.delenv("LAB_TOKEN")
    answer = change(action="canary", candidate="v2")
    assert answer.status_code == 401 and "LAB_TOKEN" in answer.json()["detail"]


def test_a_second_rollback_over_http_is_refused_until_it_names_where_to(live):
    _, change, ask = live
    for action in ({"action": "canary", "candidate": "v2"}, {"action": "promote"}, {"action": "rollback"}):
        assert change(**action).status_code == 200
    refused = change(action="rollback")
    assert refused.status_code == 409 and "v1 answers" in refused.json()["detail"]
    assert change(action="rollback", to="v2").json()["stable"] == "v2"
    assert ask("me").headers["X-Model-Version"] == "v2"


def test_a_ramp_that_nobody_judges_shows_in_status_and_metrics_of_a_server(live, log, monkeypatch):
    url, change, _ = live
    monkeypatch.setattr(Rollout, "look", lambda ramp: Away().columns)
    assert change(action="ramp", candidate="v2", interval=0.01).json()["phase"] == "Progressing"
    monkeypatch.setattr("labsupport.rollout.router.OVERDUE", 0.05)
    until(lambda: requests.get(url + "/rollout", timeout=30).json()["phase"] == "Degraded")
    assert "nobody has judged the ramp" in requests.get(url + "/rollout", timeout=30).json()["trouble"]
    (line,) = [
        line
        for line in requests.get(url + "/metrics", timeout=30).text.splitlines()
        if line.startswith("rollout_unjudged_seconds")
    ]
    assert float(line.split()[1]) > 0.05


def test_a_ramp_on_a_live_server_ends_in_a_promotion(live):
    _, change, ask = live
    gate = {"min_requests": 3, "thresholds": {"error_rate": [None, 0.1]}}
    answer = change(action="ramp", candidate="v2", steps=[50, 100], gate=gate, interval=0.02)
    assert answer.json()["phase"] == "Progressing"
    until(lambda: ask().headers["X-Model-Version"] == "v2" and change(action="resume").json()["stable"] == "v2")


def test_users_feedback_is_noted_and_unknown_answers_are_not(live, log):
    url, _, ask = live
    id = ask().headers["X-Prediction-Id"]
    for said in ({"correct": False}, {"labels": ["cat"]}, {"retry": True}):
        assert requests.post(url + "/feedback", json={"prediction_id": id, **said}, timeout=30).status_code == 204
    assert requests.post(url + "/feedback", json={"prediction_id": "x", "retry": True}, timeout=30).status_code == 404
    assert requests.post(url + "/feedback", json={"prediction_id": id}, timeout=30).status_code == 422
    assert bool(log.frame()["retry"][0]) and tables.SAID.keys() <= set(log.frame().columns)


def test_pictures_in_shadow_are_paired_on_a_live_server(live, log):
    _, change, ask = live
    change(action="shadow", candidate="v2", percent=100)
    ids = {
        ask(picture=images.encode(np.full((9, 9, 3), shade, np.uint8))).headers["X-Prediction-Id"] for shade in (1, 2)
    }
    until(lambda: len(log.columns("id", shadow=True)["id"]) == 2)
    assert set(log.pairs()["id"]) == ids
