"""Which version answers, under load and after a crash: versions that sign their answers, on real servers and journals."""

import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests

from labsupport import images
from labsupport.detection import Box, Detection, UnknownVersion
from labsupport.journal import Journal, JournalUnavailable, State
from labsupport.monitoring import PredictionLog
from labsupport.rollout import Router, WrongMoment
from labsupport.serving import create_app, serve

PICTURE = np.zeros((8, 8, 3), np.uint8)


class Version:
    """A version that signs its answers with its own name."""

    def __init__(self, version: str, work=lambda: None) -> None:
        self.version, self.work = version, work

    def detect(self, image, confidence=0.5):
        self.work()
        return [Detection(self.version, 0.9, Box(0, 0, 4, 4))]


def who(router, key=None) -> str:
    return router.detect(PICTURE, key=key)[0].label


def until(condition, seconds=20):
    """Wait for something that happens on another thread."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


@pytest.fixture
def log(tmp_path):
    with PredictionLog(f"sqlite:///{tmp_path}/predictions.db") as log:
        yield log


# canary


@pytest.mark.parametrize("weight", [1, 5, 25, 50])
def test_a_canarys_share_of_10_000_keys_is_its_weight_within_sampling_error(weight):
    router = Router(Version("v1"))
    router.canary(Version("v2"), weight=weight)
    count = sum(who(router, f"user {number}") == "v2" for number in range(10_000))
    assert abs(count - 100 * weight) < 4 * (10_000 * weight / 100 * (1 - weight / 100)) ** 0.5


def test_growing_the_weight_never_moves_a_key_back():
    router, candidate = Router(Version("v1")), Version("v2")
    keys, on_trial = [f"user {number}" for number in range(2_000)], set()
    for weight in (1, 5, 25, 25, 50, 99, 100):
        router.canary(candidate, weight=weight)
        now = {key for key in keys if who(router, key) == "v2"}
        assert on_trial <= now
        on_trial = now
    assert len(on_trial) == 2_000


def test_another_candidate_tries_other_keys():
    """Else the same few users would get every trial there is."""
    chosen = []
    for _ in range(2):
        router = Router(Version("v1"))
        router.canary(Version("v2"), weight=10)
        chosen.append({number for number in range(1_000) if who(router, str(number)) == "v2"})
    assert len(chosen[0] & chosen[1]) < 40  # 10 of 100 by chance


@pytest.mark.parametrize("weight", [0, 1, 5, 33.3, 100])
def test_without_keys_the_share_is_exact_over_many_requests(weight):
    router = Router(Version("v1"))
    router.canary(Version("v2"), weight=weight)
    count = sum(who(router) == "v2" for _ in range(10_000))
    assert count == pytest.approx(100 * weight, abs=10)


def test_neighbours_without_keys_do_not_take_turns():
    """A client that alternates between two kinds of pictures must not send all of one kind to the candidate."""
    router = Router(Version("v1"))
    router.canary(Version("v2"), weight=50)
    answers = [who(router) for _ in range(2_000)]
    assert 400 < sum(answer == "v2" for answer in answers[::2]) < 600


# blue/green, promotion, and the ways back


def test_the_next_request_after_a_rollback_is_answered_by_the_stable_version():
    router = Router(Version("v1"))
    router.canary(Version("v2"), weight=100)
    assert who(router) == "v2"
    router.rollback("seen enough")
    assert who(router) == "v1"
    assert router.status()["phase"] == "Degraded" and router.status()["reason"] == "seen enough"


def test_blue_and_green_change_places_and_back():
    router = Router(Version("blue"))
    router.blue_green(Version("green"))
    assert who(router) == "blue"
    router.switch()
    assert who(router) == "green"
    router.rollback()
    assert who(router) == "blue"
    router.switch()
    router.promote()
    assert (who(router), router.state.candidate) == ("blue", None)  # the preview was promoted: blue, since the switch
    router.rollback()
    assert who(router) == "green"


def test_a_promoted_candidate_can_be_rolled_back_to_the_version_before():
    router = Router(Version("v1"))
    router.canary(Version("v2"), weight=5)
    router.promote("good")
    assert (who(router), router.version) == ("v2", "v2")
    router.rollback()
    assert who(router) == "v1"


@pytest.mark.parametrize("action", ["switch", "promote", "rollback"])
def test_what_makes_no_sense_now_is_refused_and_changes_nothing(action):
    router = Router(Version("v1"))
    with pytest.raises(WrongMoment):
        getattr(router, action)()
    assert len(router.history()) == 1


def test_a_version_nobody_knows_or_the_stable_one_is_no_candidate():
    router = Router(Version("v1"), Version("v2"))
    with pytest.raises(UnknownVersion, match="there are v1, v2"):
        router.canary("v3")
    with pytest.raises(WrongMoment, match="a candidate is another one"):
        router.canary("v1")
    with pytest.raises(ValueError, match="from 0 to 100"):
        router.canary("v2", weight=101)
    router.canary("v2", weight=100)
    assert who(router) == "v2"


def test_a_name_can_be_loaded_when_it_is_needed():
    router = Router(Version("v1"), load=Version)
    router.canary("v7", weight=100)
    assert who(router) == "v7"


def test_100_switches_and_rollbacks_under_50_clients_lose_and_mix_up_nothing(log):
    blue, green = Version("blue"), Version("green")
    router = Router(blue)
    router.blue_green(green)
    picture, over = images.encode(PICTURE), threading.Event()

    def client(_) -> list[tuple]:
        answers = []
        with requests.Session() as session:
            while not over.is_set():
                response = session.post(server.url + "/detect", files={"file": picture}, timeout=60)
                if response.status_code == 503:
                    continue  # busy: not accepted, so not lost
                found = response.json()
                answers.append((response.headers["X-Prediction-Id"], response.headers["X-Model-Version"], found))
        return answers

    with serve(create_app(router, log=log, slots=4), port=0) as server, ThreadPoolExecutor(50) as pool:
        clients = pool.map(client, range(50))
        for _ in range(100):
            router.switch()
            time.sleep(0.01)
            router.rollback()
        over.set()
        answers = [answer for answers in clients for answer in answers]
    log.flush()
    assert all(version == found["version"] == found["detections"][0]["label"] for _, version, found in answers)
    written = log.columns("id", "version", "status")
    assert sorted(written["id"]) == sorted(id for id, _, _ in answers)  # each once
    assert set(written["status"]) == {200}
    assert {version for _, version, _ in answers} == {"blue", "green"}
    assert dict(zip(written["id"], written["version"], strict=True)) == {id: version for id, version, _ in answers}


# shadow


def test_a_candidate_in_shadow_answers_nobody_and_is_written_down(log):
    router = Router(Version("v1"), log=log)
    router.shadow(Version("v2"))
    assert {who(router, str(number)) for number in range(5)} == {"v1"}
    until(lambda: len(log.columns("id", shadow=True)["id"]) == 5)
    log.flush()
    pairs = log.pairs()
    assert set(pairs["version"]) == {"v1"} and set(pairs["candidate"]) == {"v2"}
    assert pairs["relabelled"].tolist() == [1] * 5 and pairs["agreement"].tolist() == [0] * 5


@pytest.mark.parametrize("percent", [0, 20, 100])
def test_a_shadow_sees_its_percentage(percent, log):
    seen = []
    router = Router(Version("v1"), log=log)
    router.shadow(Version("v2", lambda: seen.append(1)), percent=percent)
    for number in range(200):
        who(router)
        until(lambda expected=number * percent / 100: len(seen) >= expected - 2)
    until(lambda: len(seen) >= 2 * percent - 2)
    assert len(seen) == pytest.approx(2 * percent, abs=2)


@pytest.mark.filterwarnings("ignore")
def test_a_candidate_that_raises_changes_no_answer(log):
    def fail():
        raise ValueError("it is broken")

    router = Router(Version("v1"), log=log)
    router.shadow(Version("v2", fail))
    assert who(router) == "v1"
    until(lambda: log.columns("error", shadow=True)["error"] == ["ValueError"])
    assert who(router) == "v1"


def test_a_candidate_that_hangs_keeps_nobody_waiting_and_what_it_was_not_shown_is_said(log):
    release, stuck = threading.Event(), threading.Event()

    def hang():
        stuck.set()
        release.wait(30)

    router = Router(Version("v1"), log=log)
    router.shadow(Version("v2", hang))
    who(router)
    assert stuck.wait(10)
    started = time.perf_counter()
    assert {who(router) for _ in range(200)} == {"v1"}
    assert time.perf_counter() - started < 5  # not 200 times anything
    log.flush()
    errors = Counter(log.columns("error", shadow=True)["error"])
    assert errors == {"NotShown": 200 - router._shadow._waiting.maxsize}
    release.set()


def test_a_person_may_be_the_stable_version(log):
    """Shadow mode as the lectures mean it: the person's decision is the answer, the model's is only recorded."""
    person, model = Version("inspector"), Version("model")
    router = Router(person, log=log)
    router.shadow(model)
    assert who(router) == "inspector"
    until(lambda: log.columns("version", shadow=True)["version"] == ["model"])


# the journal


def test_a_router_goes_on_where_its_journal_says(tmp_path):
    journal = tmp_path / "rollout.db"
    router = Router(Version("v1"), journal=journal)
    router.canary(Version("v2"), weight=30, reason="try it")
    before = [who(router, str(number)) for number in range(500)]
    again = Router(Version("v1"), Version("v2"), journal=journal)
    assert [who(again, str(number)) for number in range(500)] == before
    again.promote()
    assert who(router, "x") == "v2"  # they share the journal
    assert [state.action for state in router.history()] == ["start", "canary", "promote"]
    assert router.history()[1].reason == "try it"
    assert Router(Version("v1"), Version("v2"), journal=journal).version == "v2"


def test_where_nothing_was_rolled_out_another_stable_version_may_be_started_with(tmp_path):
    Router(Version("v1"), journal=tmp_path / "rollout.db")
    router = Router(Version("v2"), journal=tmp_path / "rollout.db")
    assert (who(router), router.version) == ("v2", "v2")


def test_a_journal_that_names_a_version_we_do_not_have_is_no_start(tmp_path):
    Router(Version("v1"), journal=tmp_path / "rollout.db").canary(Version("v2"))
    with pytest.raises(UnknownVersion, match="'v2'"):
        Router(Version("v1"), journal=tmp_path / "rollout.db")


@pytest.mark.parametrize("content", [b"no database at all" * 100, None])
def test_a_journal_that_cannot_be_opened_says_so(tmp_path, content):
    path = tmp_path / "rollout.db"
    path.write_bytes(content) if content else path.mkdir()
    with pytest.raises(JournalUnavailable, match="rollout"):
        Router(Version("v1"), journal=path)


def test_changes_from_many_threads_are_all_made_one_after_the_other(tmp_path):
    journals = [Journal(tmp_path / "rollout.db", State(stable="v1")) for _ in range(4)]

    def grow(journal):
        for _ in range(25):
            journal.change(lambda state: State(stable="v1", share=state.share + 1))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(grow, journals))
    assert {journal.state.share for journal in journals} == {100}
    assert [state.share for state in journals[0].history()] == list(range(101))


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_router import Version, who
from labsupport.rollout import Router
router = Router(Version("v1"), Version("v2"), journal=sys.argv[1])
weight = router.state.share
print(weight, *[number for number in range(300) if who(router, str(number)) == "v2"], flush=True)
for weight in range(int(weight) + 1, 100):
    router.canary("v2", weight=weight)
    print(weight, *[number for number in range(300) if who(router, str(number)) == "v2"], flush=True)
"""


def test_killed_while_it_grows_the_canary_is_there_again_with_the_same_keys(tmp_path, request):
    last: list[str] = []
    for _ in range(3):
        command = [sys.executable, "-c", KILLED, str(tmp_path / "rollout.db"), str(request.path.parent)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            first = process.stdout.readline().split()
            if last:
                assert float(first[0]) in (float(last[0]), float(last[0]) + 1)  # the one that was said, or just not yet
                assert set(last[1:]) <= set(first[1:])
            for _ in range(5):
                last = process.stdout.readline().split()
            process.kill()
            said = [line.split() for line in process.stdout if line.endswith("\n")]  # before it died
            last = said[-1] if said else last
