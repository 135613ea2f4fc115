"""Which version answers, under load and after a crash: versions that sign their answers, on real servers and journals."""

import contextlib
import sqlite3
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
from labsupport.client import Client
from labsupport.detection import Box, Detection, UnknownVersion
from labsupport.log import PredictionLog
from labsupport.models import ModelUnavailable
from labsupport.rollout import Journal, JournalUnavailable, Router, State, WrongMoment
from labsupport.rollout.shadow import SHADOW_BYTES, SHADOW_WAITING
from labsupport.rollout.transitions import let_in
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


@pytest.mark.parametrize("action", ["switch", "promote", "rollback", "pause"])
def test_what_makes_no_sense_now_is_refused_and_changes_nothing(action):
    router = Router(Version("v1"))
    with pytest.raises(WrongMoment):
        getattr(router, action)()
    assert len(router.history()) == 1


@pytest.mark.parametrize(
    ("steps", "good"),
    [
        ("canary v2, promote, canary v3, rollback, rollback", "v2"),
        ("canary v2, promote, shadow v3, rollback, rollback", "v2"),
        ("canary v2, promote, blue_green v3, rollback, rollback", "v2"),
        ("canary v2, promote, rollback, rollback", "v1"),
        ("shadow v2, promote, rollback, rollback", "v1"),
        ("canary v2, rollback, rollback", "v1"),
        ("blue_green v2, rollback, rollback", "v1"),
        ("blue_green v2, switch, rollback, rollback, rollback", "v1"),
        ("blue_green v2, switch, switch, rollback, rollback", "v1"),
        ("blue_green v2, switch, switch, switch, rollback, rollback", "v1"),
        ("blue_green v2, switch, canary v3, rollback, rollback", "v2"),
        ("canary v2, promote, canary v3, pause, rollback, rollback", "v2"),
    ],
)
def test_pressing_rollback_twice_never_leaves_a_good_version(steps, good):
    router = Router(Version("v1"), Version("v2"), Version("v3"))
    for step in steps.split(", "):
        try:
            getattr(router, step.split()[0])(*step.split()[1:])
        except WrongMoment as error:
            assert step == "rollback" and f"nothing is on trial, and {good} answers" in str(error)
    assert (who(router), router.version) == (good, good)


def test_a_rollback_may_name_the_version_to_return_to():
    router = Router(Version("v1"), Version("v2"), Version("v3"))
    router.canary("v2")
    router.promote()
    router.canary("v3", weight=100)
    router.rollback("both are bad", to="v1")
    assert (who(router), router.state.candidate, router.state.previous) == ("v1", None, None)
    router.rollback(to="v1")  # it answers already
    assert [state.action for state in router.history()] == ["start", "canary", "promote", "canary", "rollback"]
    with pytest.raises(UnknownVersion, match="there are v1, v2, v3"):
        router.rollback(to="v4")
    router.canary("v2")
    with pytest.raises(WrongMoment, match="v2 is on trial"):
        router.rollback(to="v2")


def test_to_do_what_is_done_already_writes_nothing():
    """Else a resume after a rollback would say Healthy again."""
    router = Router(Version("v1"))
    router.resume()
    router.canary(Version("v2"))
    router.resume()
    router.pause("lunch")
    router.pause("again")
    assert router.state.reason == "lunch"
    router.rollback()
    router.resume()
    assert router.status()["phase"] == "Degraded" and len(router.history()) == 4


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


class Nameless:
    def detect(self, image, confidence=0.5):
        return []


class Mute:
    version = "v3"


NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "do"),
    [
        ("weight", lambda router: router.canary("v2", weight=NAN)),
        ("weight", lambda router: router.canary("v2", weight="5")),
        ("weight", lambda router: router.canary("v2", weight=True)),
        ("percent", lambda router: router.shadow("v2", percent=-1)),
        ("percent", lambda router: router.shadow("v2", percent=NAN)),
        ("reason", lambda router: router.canary("v2", reason="x" * 1_001)),
        ("reason", lambda router: router.shadow("v2", reason=None)),
        ("reason", lambda router: router.pause("a\0b")),
        ("version", lambda router: router.canary(Nameless())),
        ("detect", lambda router: router.canary(Mute())),
        ("key", lambda router: router.detect(PICTURE, key=7)),
        ("key", lambda router: router.choose("x" * 201)),
        ("key", lambda router: router.choose("\ud800")),
        ("confidence", lambda router: router.detect(PICTURE, confidence=NAN)),
        ("confidence", lambda router: router.detect(PICTURE, confidence=50)),
        ("version", lambda router: Router(None)),
        ("version", lambda router: Router(Nameless())),
        ("detect", lambda router: Router(Version("v1"), Mute())),
        ("v1", lambda router: Router(Version("v1"), Version("v1"))),
        ("load", lambda router: Router(Version("v1"), load="yolov3-tiny")),
        ("journal", lambda router: Router(Version("v1"), journal="")),
        ("journal", lambda router: Router(Version("v1"), journal=7)),
        ("log", lambda router: Router(Version("v1"), log="predictions.db")),
    ],
)
def test_an_argument_that_cannot_be_meant_is_named_and_changes_nothing(name, do):
    router = Router(Version("v1"), Version("v2"))
    router.canary("v2")
    with pytest.raises(ValueError, match=name):
        do(router)
    assert len(router.history()) == 2


def test_figures_that_are_not_known_keep_nobody_from_reading_the_journal():
    router = Router(Version("v1"), Version("v2"))
    router.canary("v2")
    router.rollback("by hand", latency_p95=NAN, e_value=float("inf"), requests=np.int64(20), rate=np.float32(0.5))
    assert router.state.figures == {"requests": 20, "rate": 0.5}


# one path: what every version's answer goes through


def failing(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize("error", [ZeroDivisionError("it is broken"), SystemExit(1), MemoryError()])
def test_a_failure_in_a_process_is_written_down_as_one_over_http_is(log, error):
    router = Router(Version("v1"), log=log)
    router.canary(Version("v2", failing(error)), weight=100)
    with pytest.raises(type(error)):
        router.detect(PICTURE, key="me")
    router.rollback()
    assert who(router, "me") == "v1"
    log.flush()
    rows = log.columns("version", "status", "error", "key", "n_detections")
    name = type(error).__name__
    assert [*zip(*rows.values(), strict=True)] == [("v2", 500, name, "me", None), ("v1", 200, None, "me", 1)]


def test_an_interrupt_is_nobodys_failure(log):
    router = Router(Version("v1", failing(KeyboardInterrupt())), log=log)
    with pytest.raises(KeyboardInterrupt):
        who(router)
    log.flush()
    assert log.columns("id")["id"] == []


BOXES = [
    (0, NAN, 1, 1),
    (0, 0, float("inf"), 1),
    (0, 0, 1, None),
    ("0", "0", "1", "1"),
    (0, 0, 1j, 1),
    (0, 0, 1, 2**31),
]


@pytest.mark.parametrize(
    "found",
    [
        *(None, 7, ["a cat"], [Detection("cat", NAN, Box(0, 0, 1, 1))], [Detection("cat", 0.9, "abcd")]),
        *([Detection("cat", 0.9, Box(*sides))] for sides in BOXES),
    ],
)
def test_an_answer_that_the_log_cannot_hold_is_a_failure_of_its_version(log, found):
    """Else its row would be lost, and the gate would see nothing of it."""
    bad = Version("v2")
    bad.detect = lambda image, confidence=0.5: found
    router = Router(Version("v1"), log=log)
    router.canary(bad, weight=100)
    with pytest.raises((TypeError, ValueError, AttributeError)):
        router.detect(PICTURE)
    router.shadow(bad)
    who(router)
    until(lambda: log.columns("status", shadow=True)["status"] == [500])
    assert sorted(log.columns("status")["status"]) == [200, 500]


def test_what_a_version_says_in_numpys_types_is_sent_and_logged_in_pythons(log):
    odd = Version("v1")
    found = [Detection("cat", np.float32(0.5), (np.int64(1), 2.25, np.float32(3), 4))]
    odd.detect = lambda image, confidence=0.5: (one for one in found)
    with serve(create_app(Router(odd, log=log), log=log), port=0) as server:
        picture = {"file": images.encode(PICTURE)}
        sent = [requests.post(f"{server.url}/{route}", files=picture, timeout=30) for route in ("detect", "predict")]
        assert [answer.status_code for answer in sent] == [200, 200]
        stored = requests.get(f"{server.url}/predictions/{sent[0].json()['id']}", timeout=30).json()
        assert Client(server.url).detect(PICTURE) == [Detection("cat", 0.5, Box(1, 2, 3, 4))]
    box = {"left": 1, "top": 2, "right": 3, "bottom": 4}
    assert stored["detections"] == sent[0].json()["detections"] == [{"label": "cat", "confidence": 0.5, "box": box}]


@pytest.mark.parametrize(
    "error", [images.UnsupportedImage("no alpha, please"), images.ImageTooLarge("too much"), WrongMoment("not now")]
)
def test_a_version_that_refuses_a_picture_that_could_be_read_has_failed_and_not_the_client(log, error):
    """The gate leaves out what was the client's fault: such a candidate would be promoted."""
    router = Router(Version("v1"), log=log)
    router.canary(Version("v2", failing(error)), weight=100)
    with serve(create_app(router, log=log), port=0) as server:
        answer = requests.post(server.url + "/detect", files={"file": images.encode(PICTURE)}, timeout=30)
        unread = requests.post(server.url + "/detect", files={"file": b"GIF89a"}, timeout=30)
    assert (answer.status_code, unread.status_code) == (500, 415)
    log.flush()
    rows = log.columns("version", "status", "error")
    assert next(zip(*rows.values(), strict=True)) == ("v2", 500, type(error).__name__)
    assert rows["status"] == [500, 415]


# versions that this process has not loaded


class Loader:
    """Loads versions by name, when it is let; counts how often."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.loaded, self.free, self.error = Counter(), threading.Event(), error

    def __call__(self, name):
        self.loaded[name] += 1
        if name != "v1":
            assert self.free.wait(20), "nobody lets it load"
            if self.error:
                raise self.error
        return Version(name)


@pytest.fixture
def workers(tmp_path, log):
    """Two routers on one journal: the first has v2, the second has to load it."""
    loader = Loader()
    one = Router(Version("v1"), Version("v2"), journal=tmp_path / "rollout.db", log=log)
    yield one, Router(Version("v1"), load=loader, journal=tmp_path / "rollout.db", log=log), loader
    loader.free.set()


def test_a_version_is_loaded_once_and_nobody_waits_for_it(workers):
    one, other, loader = workers
    one.canary("v2", weight=100)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda key: who(other, str(key)), range(40))) == {"v1"}
    assert "v2 gets no requests here: it is being loaded" in other.status()["trouble"]
    loader.free.set()
    until(lambda: who(other) == "v2")
    assert loader.loaded == {"v2": 1} and other.status()["trouble"] == ""


def test_a_shadow_that_is_not_loaded_yet_touches_no_answer_and_is_noted_as_not_shown(workers, log):
    one, other, loader = workers
    one.shadow("v2")
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda key: who(other, str(key)), range(8))) == {"v1"}
    log.flush()
    assert log.columns("version", "error", shadow=True) == {"version": ["v2"] * 8, "error": ["NotShown"] * 8}
    loader.free.set()
    until(lambda: who(other) == "v1" and None in log.columns("error", shadow=True)["error"])
    assert loader.loaded == {"v2": 1}


@pytest.mark.parametrize("error", [OSError("/secret/path is gone"), SystemExit(3)])
@pytest.mark.parametrize("mode", ["shadow", "canary"])
def test_a_version_that_cannot_be_loaded_is_said_once_and_tried_once(workers, log, caplog, mode, error):
    one, other, loader = workers
    loader.error = error
    loader.free.set()
    getattr(one, mode)("v2", 100)

    def lines() -> int:
        return caplog.text.count("gets no requests in this process")

    until(lambda: who(other) == "v1" and "could not be loaded" in other.status()["trouble"] and lines())
    assert {who(other) for _ in range(20)} == {"v1"}
    assert loader.loaded == {"v2": 1}
    assert lines() == 1
    assert "/secret/path" not in str(other.status())
    log.flush()
    assert set(log.columns("status")["status"]) == {200}


def test_whoever_lets_a_version_in_waits_until_it_is_loaded_and_hears_why_it_is_not():
    loader = Loader(OSError("gone"))
    loader.free.set()
    router = Router(Version("v1"), load=loader)
    for _ in range(2):  # a person may try again
        with pytest.raises(ModelUnavailable, match="v2 cannot be loaded"):
            router.shadow("v2")
    assert router.state.mode == "stable" and loader.loaded == {"v2": 2}
    loader.error = None
    router.shadow("v2")
    assert router.status()["trouble"] == ""


def test_a_loader_that_gives_another_version_is_found_out():
    with pytest.raises(UnknownVersion, match="no version of that name"):
        Router(Version("v1"), load=lambda name: Version("v9")).canary("v2")


def test_a_promoted_version_that_is_not_loaded_here_is_stood_in_for_by_the_one_before(workers):
    one, other, loader = workers
    one.canary("v2")
    one.promote()
    assert who(other) == "v1"
    loader.free.set()
    until(lambda: who(other) == "v2")


def test_a_candidate_never_stands_in_for_the_stable_version(workers, log):
    one, other, _ = workers
    one.canary("v2")
    one.promote()
    one.canary("v1", weight=0)
    with pytest.raises(ModelUnavailable, match="v2 is not ready here"):
        other.detect(PICTURE)
    log.flush()
    assert log.columns("version", "error") == {"version": [None], "error": ["ModelUnavailable"]}


def test_a_candidate_in_blue_green_is_loaded_before_it_is_switched_to(workers):
    one, other, loader = workers
    one.blue_green("v2")
    loader.free.set()
    until(lambda: who(other) == "v1" and other.status()["versions"] == ["v1", "v2"])
    one.switch()
    assert who(other) == "v2"


@pytest.mark.filterwarnings("ignore")
def test_a_mirror_that_breaks_changes_no_answer(log, caplog):
    class Full:
        def record(self, *, shadow=False, **row):
            if shadow:
                raise OSError("no space left on device")
            log.record(**row)

    router = Router(Version("v1"), load=Loader(), log=Full())
    router.change("shadow", lambda state: let_in(state, "shadow", "v2", 100))
    assert who(router) == "v1"
    assert "was not shown" in caplog.text


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
def test_what_happens_to_a_picture_after_its_answer_is_not_seen_in_shadow_and_the_other_way_round(log):
    mine, may_look, seen = PICTURE.copy(), threading.Event(), []

    class Painter(Version):
        def detect(self, image, confidence=0.5):
            may_look.wait(20)
            seen.append(int(image[0, 0, 0]))
            image[:] = 77
            return []

    router = Router(Version("v1"), log=log)
    router.shadow(Painter("v2"))
    router.detect(mine)
    mine[:] = 9  # a camera's next frame, in the same buffer
    may_look.set()
    until(lambda: len(log.columns("id", shadow=True)["id"]) == 1)
    assert seen == [0] and (mine == 9).all()


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
    assert errors == {"NotShown": 200 - SHADOW_WAITING}
    release.set()


def test_what_waits_for_a_candidate_in_shadow_is_bounded_in_bytes(log):
    release = threading.Event()
    router = Router(Version("v1"), log=log)
    router.shadow(Version("v2", lambda: release.wait(30)))
    large = np.zeros((5000, 5000, 3), np.uint8)
    assert 75_000_000 == large.nbytes < SHADOW_BYTES < 2 * large.nbytes  # one may wait, and no second one
    for picture in (large, large, PICTURE, large):
        router.detect(picture)
    log.flush()
    assert log.columns("error", shadow=True)["error"] == ["NotShown"] * 2
    release.set()
    until(lambda: len(log.columns("error", shadow=True)["error"]) == 4)
    until(lambda: router._shadow._bytes == 0)
    router.detect(large)
    until(lambda: log.columns("error", shadow=True)["error"].count(None) == 3)


def test_a_candidate_that_exits_does_not_end_the_shadow(log):
    router = Router(Version("v1"), log=log)
    router.shadow(Version("v2", failing(SystemExit(1))))
    who(router)
    router.shadow(Version("v3"))
    who(router)
    until(lambda: sorted(log.columns("status", shadow=True)["status"]) == [200, 500])


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


def test_another_version_of_a_known_name_does_not_take_its_place_unsaid(caplog):
    router = Router(Version("v1"))
    better = Version("v2")
    router.canary(better, weight=100)
    router.canary(better, weight=50)
    assert caplog.text == ""
    router.canary(Version("v2"), weight=100)
    assert "v2 is known already, and the one that came first stays" in caplog.text
    assert router.choose() is better


def test_what_another_process_rolls_out_while_this_one_starts_stays(tmp_path):
    first = Router(Version("v1"), Version("v2"), journal=tmp_path / "rollout.db")

    class Slow(Journal):
        def change(self, change):
            first.canary("v2", weight=10)
            return super().change(change)

    Router(Version("v3"), Version("v1"), Version("v2"), journal=Slow(tmp_path / "rollout.db", State("v3")))
    assert (first.state.stable, first.state.candidate, first.state.action) == ("v1", "v2", "canary")


def test_a_journal_that_was_deleted_or_replaced_takes_no_change_that_nobody_would_know_of(tmp_path):
    path = tmp_path / "rollout.db"
    router = Router(Version("v1"), Version("v2"), journal=path)
    path.rename(tmp_path / "moved.db")
    for _ in range(2):
        with pytest.raises(JournalUnavailable, match="deleted or replaced since it was opened: start the server again"):
            router.canary("v2", weight=100)
        assert who(router) == "v1"
        Router(Version("v1"), journal=path)  # another one in its place
    (tmp_path / "moved.db").replace(path)
    router.canary("v2", weight=100)
    assert who(router) == "v2"


def test_a_journal_that_was_deleted_or_replaced_is_a_trouble_that_the_status_names(tmp_path, caplog):
    path = tmp_path / "rollout.db"
    one = Router(Version("v1"), Version("v2"), journal=path)
    one.canary("v2", weight=100)
    for file in tmp_path.iterdir():
        file.unlink()
    assert who(one) == "v2" and "the journal cannot be read" in one.status()["trouble"]
    other = Router(Version("v1"), Version("v2"), journal=path)
    assert other.status()["trouble"] == ""
    assert (
        who(one) == "v2" and "the journal cannot be read" in one.status()["trouble"]
    )  # also where there is another one now
    assert caplog.text.count("deleted or replaced since it was opened: start the server again") == 1


def test_the_first_request_of_a_process_is_not_always_the_candidates():
    first = [Router(Version("v1"), Version("v2")) for _ in range(200)]
    for router in first:
        router.canary("v2", weight=50)
    assert 50 < sum(who(router) == "v2" for router in first) < 150  # 100 are expected: beyond 7 standard deviations


def test_a_shadow_whose_thread_could_not_start_is_shown_pictures_as_soon_as_one_can(log, monkeypatch):
    def none_is_free(*arguments, **options):
        raise RuntimeError("can't start new thread")

    router = Router(Version("v1"), Version("v2"), log=log)
    router.shadow("v2")
    with monkeypatch.context() as short:
        short.setattr("labsupport.background.repeat", none_is_free)
        for _ in range(SHADOW_WAITING + 4):
            who(router)
    for _ in range(SHADOW_WAITING):
        who(router)
    until(lambda: log.columns("error", shadow=True)["error"].count(None) >= SHADOW_WAITING)


@pytest.mark.parametrize("name", ["\u03b2/v2", "v1\r\nX-Evil: yes", "v\t2", ""])
def test_a_name_that_no_header_can_carry_is_refused(name):
    with pytest.raises(ValueError, match=r"version\.version="):
        Router(Version(name))
    if name:
        loaded = Router(Version("v1"), load=Version)
        with pytest.raises(ValueError, match=r"version\.version="):
            loaded.canary(name, weight=5)


def test_of_a_long_history_the_newest_states_can_be_read_alone(tmp_path):
    journal = Journal(tmp_path / "rollout.db", State(stable="v0"))
    for number in range(1, 6):
        journal.change(lambda state, number=number: State(stable=f"v{number}"))
    assert [state.stable for state in journal.history(2)] == ["v4", "v5"]
    assert journal.history(6) == journal.history() and journal.count() == 6
    with pytest.raises(ValueError, match="most=-1: give a whole number"):
        journal.history(-1)


def test_a_journal_that_names_a_version_we_do_not_have_is_no_start(tmp_path):
    Router(Version("v1"), journal=tmp_path / "rollout.db").canary(Version("v2"))
    with pytest.raises(UnknownVersion, match="'v2'"):
        Router(Version("v1"), journal=tmp_path / "rollout.db")
    assert Router(Version("v1"), Version("v2"), journal=tmp_path / "rollout.db").state.candidate == "v2"


def gone(name):
    raise FileNotFoundError(f"/somewhere/{name}.xml")


def uninstalled(name):
    raise ModelUnavailable(f"{name} is not installed: labsupport models {name}")


@pytest.mark.parametrize("load", [gone, uninstalled])
@pytest.mark.parametrize(
    ("steps", "action", "after"),
    [
        ("shadow v2", "rollback", ("v1", None, None)),
        ("canary v2", "rollback", ("v1", None, None)),
        ("blue_green v2", "rollback", ("v1", None, None)),
        ("canary v2, promote", "rollback", ("v1", None, None)),
        ("blue_green v2, switch", "rollback", ("v1", None, None)),
        ("canary v2, promote, canary v1, promote", "forget", ("v1", None, None)),
        ("canary v2, promote, canary v3", "rollback", ("v1", None, None)),
    ],
)
def test_a_version_that_can_no_longer_be_loaded_is_taken_out_and_named(tmp_path, caplog, steps, action, after, load):
    path = tmp_path / "rollout.db"
    router = Router(Version("v1"), Version("v2"), Version("v3"), journal=path)
    for step in steps.split(", "):
        getattr(router, step.split()[0])(*step.split()[1:])
    late = Router(Version("v1"), load=load, journal=path)
    state = late.state
    assert who(late) == "v1"
    assert (state.stable, state.candidate, state.previous, state.action) == (*after, action)
    assert "v2 cannot be loaded" in state.reason and "/somewhere" not in state.reason
    assert "v2 cannot be loaded" in caplog.text and "begin its rollout again" in caplog.text
    assert router.state == state  # the others hear of it


def test_a_router_starts_although_the_journal_cannot_be_written(tmp_path, monkeypatch, caplog):
    Router(Version("v1"), journal=tmp_path / "rollout.db").canary(Version("v2"))

    def full(*arguments):
        raise JournalUnavailable("database or disk is full")

    journal = Journal(tmp_path / "rollout.db", State("v1"))
    monkeypatch.setattr(journal, "change", full)
    router = Router(Version("v1"), load=gone, journal=journal)
    assert {who(router, str(key)) for key in range(40)} == {"v1"}
    assert "cannot be written to the journal" in caplog.text


@pytest.mark.parametrize("content", [b"no database at all" * 100, None])
def test_a_journal_that_cannot_be_opened_says_so(tmp_path, content):
    path = tmp_path / "rollout.db"
    path.write_bytes(content) if content else path.mkdir()
    with pytest.raises(JournalUnavailable, match="rollout"):
        Router(Version("v1"), journal=path)


FUTURE = '{"stable": "v1", "mode": "bandit", "arms": 3}'


RAMP = (
    '{"stable": "v1", "candidate": "v2", "mode": "canary", "share": 5, "ramp": {"id": "a"}}'  # and nothing of its gate
)


@pytest.mark.parametrize(
    "row", [FUTURE, "[]", "no JSON", "{}", '{"stable": null}', '{"stable": "v1", "mode": "canary", "share": 5}', RAMP]
)
def test_a_state_that_this_version_does_not_know_is_no_start_and_later_changes_nothing(tmp_path, caplog, row):
    path = tmp_path / "rollout.db"
    router = Router(Version("v1"), journal=path)
    with contextlib.closing(sqlite3.connect(path)) as newer:
        newer.execute("INSERT INTO states (state) VALUES (?)", [row])
        newer.commit()
    assert {who(router) for _ in range(3)} == {"v1"}
    assert caplog.text.count("the last known state stays") == 1
    assert "cannot be read" in router.status()["trouble"]
    with pytest.raises(JournalUnavailable, match="does not know"):
        router.canary(Version("v2"))
    with pytest.raises(JournalUnavailable, match=r"rollout\.db.*does not know.*move it away"):
        Router(Version("v1"), journal=path)


def test_another_programs_database_is_left_alone(tmp_path):
    with PredictionLog(f"sqlite:///{tmp_path}/predictions.db"):
        pass
    before = (tmp_path / "predictions.db").read_bytes()
    with pytest.raises(JournalUnavailable, match="it is no journal"):
        Router(Version("v1"), journal=tmp_path / "predictions.db")
    assert (tmp_path / "predictions.db").read_bytes() == before


def test_another_programs_table_of_the_same_name_is_left_alone(tmp_path):
    path = tmp_path / "map.db"
    with contextlib.closing(sqlite3.connect(path)) as theirs:
        theirs.execute("CREATE TABLE states (name TEXT, capital TEXT)")
    before = path.read_bytes()
    with pytest.raises(JournalUnavailable, match="it is no journal"):
        Router(Version("v1"), journal=path)
    assert path.read_bytes() == before and [*tmp_path.iterdir()] == [path]


@pytest.fixture
def torn(tmp_path):
    """A router and a function that damages its journal's file while it is open, and one that repairs it."""
    path = tmp_path / "rollout.db"
    router = Router(Version("v1"), Version("v2"), journal=path)
    router.canary("v2", weight=100)

    def damage():
        with contextlib.closing(sqlite3.connect(path)) as file:
            file.execute("ALTER TABLE states RENAME TO other")

    def repair():
        with contextlib.closing(sqlite3.connect(path)) as file:
            file.execute("ALTER TABLE other RENAME TO states")

    return router, damage, repair


def test_while_the_journal_cannot_be_read_the_last_known_state_answers(torn, caplog):
    router, damage, repair = torn
    damage()
    assert {who(router) for _ in range(5)} == {"v2"}
    assert caplog.text.count("the last known state stays") == 1
    assert "the journal cannot be read" in router.status()["trouble"]
    for ask in (router.history, router.rollback):
        with pytest.raises(JournalUnavailable):
            ask()
    repair()
    assert who(router) == "v2" and router.status()["trouble"] == ""
    assert "can be read again" in caplog.text
    router.rollback()
    assert who(router) == "v1"


@pytest.mark.parametrize("damage", ["ALTER TABLE states RENAME TO other", "DELETE FROM states"])
def test_a_journal_that_is_damaged_before_its_first_read_has_the_state_that_it_was_opened_with(tmp_path, damage):
    path = tmp_path / "rollout.db"
    Journal(path, State(stable="v1")).close()
    journal = Journal(path, State(stable="v2"))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute(damage)
    assert journal.state.stable == "v1" and journal.trouble
    with pytest.raises(JournalUnavailable):
        journal.change(lambda state: State(stable="v3"))


def test_a_journal_that_cannot_be_read_is_no_failure_of_the_model_and_says_503(torn, log, monkeypatch):
    monkeypatch.setenv("LAB_TOKEN", "0123456789abcdef")
    router, damage, _ = torn
    with serve(create_app(router, log=log), port=0) as server:
        damage()
        picture = {"file": images.encode(PICTURE)}
        assert requests.post(server.url + "/detect", files=picture, timeout=30).status_code == 200
        assert "cannot be read" in requests.get(server.url + "/rollout", timeout=30).json()["trouble"]
        token = {"Authorization": "Bearer 0123456789abcdef"}
        change = requests.put(server.url + "/rollout", json={"action": "rollback"}, headers=token, timeout=30)
        assert (
            change.status_code == 503
            and change.headers["Retry-After"] == "1"
            and "cannot be read or written at present" in change.json()["detail"]
        )
        monkeypatch.setattr(router, "choose", lambda key: router.history())  # a journal that fails on the answer's path
        assert requests.post(server.url + "/detect", files=picture, timeout=30).status_code == 503
        metrics = requests.get(server.url + "/metrics", timeout=30).text
    log.flush()
    assert log.columns("status", "error")["status"] == [200, 503]
    assert 'prediction_errors_total{version="none"}' not in metrics


def test_who_answers_is_read_while_a_change_waits_for_its_turn(tmp_path):
    router = Router(Version("v1"), Version("v2"), journal=tmp_path / "rollout.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "rollout.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        change = threading.Thread(target=router.canary, args=("v2", 100))
        change.start()
        until(lambda: router.journal._writing.locked())
        started = time.perf_counter()
        assert {who(router) for _ in range(20)} == {"v1"}
        assert time.perf_counter() - started < 2
        other.execute("COMMIT")
    change.join()
    assert who(router) == "v2"


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
