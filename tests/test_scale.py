"""Two nodes on loopback: right answers, shares that hold, a killed node that costs nothing, the same rows from a folder.

What one machine answers is the oracle. Without Ray most of this is skipped.
"""

import itertools
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import requests
from scipy import stats

from labsupport import batch, bulk, models, nodes, paths, remote, scale
from labsupport.compute import Machine
from labsupport.demand import Cost, needs
from labsupport.detection import UnknownVersion
from labsupport.journal import Journal, JournalUnavailable, State
from labsupport.predictions import PredictionLog
from labsupport.running import PortTaken
from labsupport.security import TokenMissing
from test_postgres import Server, server_programs

# Ray leaves sockets to the garbage collector
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
STABLE, CANDIDATE = "yolov3-tiny/openvino-f32", "yolov3-tiny/litert-int8"
TOKEN = "a token for the tests"
PICTURES = ("street_1.jpg", "fruits.jpg", "person_dog.jpg", "clock.png")
BLANK = np.zeros((48, 64, 3), np.uint8)
LIMIT = 60  # seconds for one answer


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray", reason="needs Ray: pip install 'labsupport[scale]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_TOKEN", TOKEN)
        with nodes.LocalCluster(nodes=2, cores=4) as running:
            yield running


@pytest.fixture(scope="module")
def log_url():
    if (programs := server_programs()) is None:
        with tempfile.TemporaryDirectory() as folder:  # the fronts are on one machine: a file will do
            yield f"sqlite:///{folder}/log.db"
        return
    with tempfile.TemporaryDirectory(prefix="lab-pg-", ignore_cleanup_errors=True) as folder:
        server = Server(programs, Path(folder))
        server.start()
        yield server.url("postgres")
        server.stop()


@pytest.fixture(scope="module")
def app(cluster, log_url):
    with scale.deploy(STABLE, replicas=(2, 2), fronts=2, log=log_url, port=0) as deployed:
        yield deployed


@pytest.fixture(scope="module")
def truth(detector):
    """What one machine answers, as JSON says it."""
    from labsupport import images

    def answer(name):
        found = detector.detect(images.decode((paths.IMAGES / name).read_bytes()))
        return [{"label": d.label, "confidence": d.confidence, "box": d.box._asdict()} for d in found]

    return {name: answer(name) for name in PICTURES}


def ask(url: str, name: str, key: str | None = None) -> requests.Response:
    with (paths.IMAGES / name).open("rb") as picture:
        return requests.post(
            f"{url}/detect", files={"file": picture}, headers={"X-Client-Key": key} if key else {}, timeout=LIMIT
        )


def change(url: str, action: str, **wanted) -> dict:
    header = {"Authorization": f"Bearer {TOKEN}"}
    answer = requests.put(f"{url}/rollout", json={"action": action, **wanted}, headers=header, timeout=LIMIT)
    assert answer.status_code == 200, answer.text
    return answer.json()


def until(true, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


# without a cluster


def test_ray_is_loaded_when_it_is_used_and_not_before():
    program = "import sys, labsupport.scale; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    "name", ["yolov3-tiny", "yolov3-tiny/openvino", "other/openvino-f32", "yolov3-tiny/opencv-bf16"]
)
def test_what_is_no_version_is_refused_before_anything_starts(name, tmp_path):
    for call in (lambda: scale.deploy(name), lambda: bulk.predict_folder(tmp_path, "a.csv", name)):
        with pytest.raises(UnknownVersion, match="no version is called"):
            call()


def test_numbers_that_make_no_sense_are_refused(tmp_path):
    for wrong in ({"replicas": (0, 2)}, {"replicas": (3, 2)}, {"fronts": 0}):
        with pytest.raises(ValueError, match="at least 1 of each"):
            scale.deploy(STABLE, **wrong)
    wrongs = {
        "ends in .parquet or .csv": {"out": "a.txt"},
        "from 0 to 1": {"confidence": 2},
        "each frame": {"every": 0},
    }
    for what, wrong in wrongs.items():
        with pytest.raises(ValueError, match=what):
            bulk.predict_folder(tmp_path, **{"out": "a.csv", "version": STABLE, **wrong})


def test_beyond_loopback_it_needs_a_token(monkeypatch):
    monkeypatch.delenv("LAB_TOKEN", raising=False)
    with pytest.raises(TokenMissing):
        scale.deploy(STABLE, host="0.0.0.0")


class Handle:
    """A handle whose answers come, one after the other, from a list; errors are raised."""

    def __init__(self, *answers):
        self.detect, self._answers = self, iter(answers)

    def remote(self, squeezed, shape, confidence):
        return self

    def result(self, timeout_s):
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_picture_whose_replica_died_is_shown_to_another_one():
    errors = pytest.importorskip("ray").exceptions
    died = (errors.ActorDiedError(), errors.ActorUnavailableError("away", None), errors.WorkerCrashedError())
    assert remote.Remote(STABLE, Handle(*died, ["found"]), slots=2).detect(BLANK) == ["found"]


def test_what_the_detector_raises_comes_as_it_was_raised_and_is_not_asked_again():
    errors = pytest.importorskip("ray").exceptions
    raised = errors.RayTaskError("detect", "its traceback", ValueError("no picture"))
    with pytest.raises(ValueError, match=r"^no picture$"):
        remote.Remote(STABLE, Handle(raised, ["found"]), slots=2).detect(BLANK)


def test_who_gets_no_answer_is_told_to_come_again(monkeypatch):
    errors = pytest.importorskip("ray").exceptions
    monkeypatch.setattr(remote, "PATIENCE", 0.2)
    for answers in (itertools.repeat(errors.ActorDiedError()), [TimeoutError()]):
        with pytest.raises(models.ModelUnavailable, match=f"no machine has answered for {STABLE}"):
            remote.Remote(STABLE, Handle(*itertools.islice(answers, 1_000)), slots=2).detect(BLANK)


def test_tables_are_joined_under_one_header(tmp_path):
    bulk.JOIN[".csv"](tmp_path / "all.csv", [b"a,b\n1,2\n", b"a,b\n", b"a,b\n3,4\n"])
    assert (tmp_path / "all.csv").read_text() == "a,b\n1,2\n3,4\n"


# on paper


def test_what_a_rate_needs_is_what_the_scarcest_resource_asks_for():
    machine = Machine("ten cores", 10, 3.6)
    by_cores = needs(1_000, Cost(cpu=0.05, bytes=1_000, rows=2), machine, link=1e9, rows=1_000, utilisation=0.5)
    # 50 cores' worth of work on 5 usable ones each; 2,000 rows on 500 each; 36 dollars an hour are a cent a second
    assert (by_cores.machines, by_cores.limit, by_cores.gigabits, by_cores.databases) == (10, "cores", 0.008, 4)
    assert by_cores.dollars_per_hour == pytest.approx(36) and by_cores.dollars_per_million == pytest.approx(10)
    by_network = needs(1_000, Cost(cpu=0.001, bytes=1_000_000), machine, link=1e9, utilisation=0.5)
    assert (by_network.machines, by_network.limit) == (16, "network")  # 8 gigabits on half a gigabit each


@pytest.mark.parametrize("wrong", [{"rate": 0}, {"link": 0}, {"rows": -1}, {"utilisation": 1.1}])
def test_nonsense_is_refused_on_paper_too(wrong):
    with pytest.raises(ValueError, match="above 0"):
        needs(**{"rate": 1, "cost": Cost(0.01, 1), "machine": Machine("m", 1, 1), **wrong})
    with pytest.raises(ValueError, match="CPU seconds above 0"):
        Cost(cpu=0, bytes=1)


# who answers, for all machines


@pytest.fixture
def keeper(cluster, tmp_path):
    """An actor whose journal is a file of ours."""
    actor = nodes.imported().remote(remote.Keeper).options(num_cpus=0, max_restarts=-1, max_task_retries=3)
    running = actor.remote(tmp_path / "journal.db", State(stable="v1"))
    yield running
    nodes.imported().kill(running)


def test_what_one_changes_all_see_and_none_is_lost(keeper, tmp_path):
    journals = [remote.SharedJournal(keeper) for _ in range(4)]

    def more(state):
        return replace(state, share=state.share + 1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda turn: journals[turn % 4].change(more), range(60)))
    until(lambda: [journal.state.share for journal in journals] == [60] * 4, 5)
    assert [state.share for state in journals[0].history()] == list(range(61))
    assert journals[1].change(lambda state: state).share == 60  # the same object: nothing happened
    assert Journal(tmp_path / "journal.db", State("v1")).history() == journals[2].history()
    for journal in journals:
        journal.close()


def test_of_many_fronts_one_looks_at_a_ramp_in_each_interval(keeper):
    journals = [remote.SharedJournal(keeper) for _ in range(4)]
    now = time.time()
    waits = [journal.claim("a ramp", 60, now - 60) for journal in journals]
    assert waits.count(0) == 1 and 0 < max(waits) <= 10
    journals[2].looked("a ramp")
    assert journals[3].judged("a ramp") >= now and journals[3].judged("another") == 0
    assert 50 < journals[1].claim("a ramp", 60, now - 60) <= 60
    for journal in journals:
        journal.close()


def test_what_a_change_raises_changes_nothing(keeper):
    journal = remote.SharedJournal(keeper)
    with pytest.raises(ZeroDivisionError):
        journal.change(lambda state: replace(state, share=1 / 0))
    assert len(journal.history()) == 1
    journal.close()


def test_a_keeper_that_is_killed_comes_back_and_has_forgotten_nothing(keeper):
    journal, other = remote.SharedJournal(keeper), remote.SharedJournal(keeper)
    journal.change(lambda state: replace(state, stable="v2"))
    nodes.imported().kill(keeper, no_restart=False)
    assert journal.state.stable == "v2"  # requests go on meanwhile

    def changed():
        try:
            return journal.change(lambda state: replace(state, stable="v3")).stable == "v3"
        except JournalUnavailable:
            return False

    until(changed)
    until(lambda: other.state.stable == "v3")
    assert [state.stable for state in other.history()] == ["v1", "v2", "v3"]
    for one in (journal, other):
        one.close()


# the app


def test_a_canary_gets_its_share_and_each_key_stays(app, truth):
    before = requests.get(f"{app.url}/rollout", timeout=LIMIT).json()
    assert before["stable"] == STABLE and app.replicas()[STABLE] == 2
    assert change(app.url, "canary", candidate=CANDIDATE, weight=30)["candidate"] == CANDIDATE
    with ThreadPoolExecutor(6) as pool:
        first, again = (list(pool.map(lambda key: ask(app.url, "clock.png", str(key)), range(60))) for _ in range(2))
    versions = [answer.headers["X-Model-Version"] for answer in first]
    assert [answer.headers["X-Model-Version"] for answer in again] == versions  # whichever front answers
    low, high = stats.binom.interval(0.999, 60, 0.3)
    assert low <= versions.count(CANDIDATE) <= high
    assert all(answer.json()["detections"] == truth["clock.png"] for answer in first if STABLE in answer.text)


def test_a_rollback_holds_at_every_front(app):
    change(app.url, "canary", candidate=CANDIDATE, weight=100)
    change(app.url, "rollback", reason="enough seen")
    time.sleep(1)
    with ThreadPoolExecutor(6) as pool:  # both fronts are asked
        answers = list(pool.map(lambda _: ask(app.url, "clock.png"), range(24)))
    assert Counter(answer.headers["X-Model-Version"] for answer in answers) == {STABLE: 24}


def test_a_candidate_in_shadow_sees_the_pictures_and_the_log_has_both_answers(app, log_url):
    change(app.url, "shadow", candidate=CANDIDATE)
    time.sleep(1)
    ids = [ask(app.url, "fruits.jpg").json()["id"] for _ in range(5)]
    change(app.url, "rollback")
    with PredictionLog(log_url) as log:
        until(lambda: set(ids) <= set(log.columns("id", shadow=True)["id"]))
        rows = log.frame(shadow=True).set_index("id").loc[ids]
    assert set(rows["version"]) == {CANDIDATE} and rows["error"].isna().all()


def test_others_may_not_change_it_and_a_taken_port_is_named(app):
    assert requests.put(f"{app.url}/rollout", json={"action": "rollback"}, timeout=LIMIT).status_code == 401
    with pytest.raises(PortTaken):
        scale.deploy(STABLE, port=int(app.url.rpartition(":")[2]))


# a folder


def test_the_rows_of_a_folder_are_those_of_one_machine(cluster, detector, tmp_path):
    folder = tmp_path / "folder"
    (folder / "deep" / "er").mkdir(parents=True)
    for number in range(18):  # more than one share
        name = PICTURES[number % 3]
        (folder / ("deep/er" if number % 2 else "") / f"{number:02}_{name}").write_bytes(
            (paths.IMAGES / name).read_bytes()
        )
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "gone.png").symlink_to("nowhere.png")
    video = cv2.VideoWriter(str(folder / "film.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for level in range(5):
        video.write(np.full((48, 64, 3), 50 * level, np.uint8))
    video.release()
    one = batch.predict_folder(folder, tmp_path / "one.parquet", detector, every=2, progress=False)
    many = bulk.predict_folder(folder, tmp_path / "many.parquet", STABLE, every=2)
    assert many == one and many.rows == 18 + 2 + 3 and many.errors == 2
    assert pq.read_table(tmp_path / "many.parquet").equals(pq.read_table(tmp_path / "one.parquet"))


# last of all


def test_a_killed_node_costs_no_accepted_request(cluster, app, log_url, truth):
    answers, end = [], threading.Event()

    def client(number: int) -> None:
        for turn in itertools.count(number):
            if end.is_set():
                return
            name = PICTURES[turn % len(PICTURES)]
            answers.append((time.monotonic(), name, ask(app.url, name)))

    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(client, number) for number in range(8)]
        try:
            until(lambda: len(answers) > 20, 60)
            killed = time.monotonic()
            cluster.kill()
            until(lambda: sum(moment > killed for moment, *_ in answers) > 40, 60)
        finally:
            end.set()
        for one in clients:
            one.result()
    statuses = Counter(answer.status_code for *_, answer in answers)
    assert set(statuses) <= {200, 503} and statuses[200] > 50
    assert all("Retry-After" in answer.headers for *_, answer in answers if answer.status_code == 503)
    good = [(name, answer.json()) for _, name, answer in answers if answer.status_code == 200]
    assert all(answer["detections"] == truth[name] for name, answer in good)
    with PredictionLog(log_url) as log:
        ids = {answer["id"] for _, answer in good}
        until(lambda: ids <= set(log.columns("id")["id"]))
        assert max(Counter(log.columns("id")["id"]).values()) == 1
