"""Two nodes on loopback: right answers, shares that hold, a killed node that costs nothing, the same rows from a folder.

What one machine answers is the oracle. `test_scale.py` runs this file in a process of its own, because Ray brings threads
and signal handlers that stay. By hand: `pytest tests/on_cluster.py`.
"""

import contextlib
import ipaddress
import itertools
import os
import pickle
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import grpc
import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import requests
from scipy import stats

from labsupport import batch, images, paths, scale
from labsupport.log import LogUnavailable, PredictionLog
from labsupport.rollout import Journal, JournalUnavailable, State
from labsupport.scale import bulk, deployment, local_cluster, remote
from labsupport.serving import PortTaken
from test_lab import wait_until
from test_postgres import Server, server_programs

pytestmark = [  # Ray leaves sockets to the garbage collector
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
STABLE, CANDIDATE = "yolov3-tiny/openvino-f32", "yolov3-tiny/litert-int8"
TOKEN = "a-token-for-the-tests"
PICTURES = ("street_1.jpg", "fruits.jpg", "person_dog.jpg", "clock.png")
LIMIT = 180  # seconds for an answer: a process for a new version takes its time where the cores are busy


def settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_")}


def usual_places() -> list[Path]:
    """What is where Ray writes when nobody tells it otherwise."""
    return [*Path(tempfile.gettempdir(), "ray").rglob("*"), *Path("/tmp/ray").rglob("*"), *Path.home().glob(".ray/*")]


@pytest.fixture(scope="module")
def cluster():
    """The cluster; nothing of it stays."""
    local_cluster.imported()
    before = settings(), usual_places()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_TOKEN", TOKEN)
        with local_cluster.LocalCluster(nodes=2, cores=4) as running:
            folder = os.environ["RAY_TMPDIR"]
            yield running
            assert processes(folder)
    running.stop()  # twice is fine
    assert not Path(folder).exists() and not processes(folder)
    assert (settings(), usual_places()) == before


def processes(folder: str) -> list[psutil.Process]:
    return [one for one in psutil.process_iter(["cmdline"]) if folder in " ".join(one.info["cmdline"] or ())]


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
    wait_until(lambda: heard(url, action), f"every front hears of {action!r}")
    return answer.json()


def heard(url: str, action: str) -> bool:
    """Has every front heard of it? Each question comes to a front by chance; there are two."""
    return all(requests.get(f"{url}/rollout", timeout=LIMIT).json()["action"] == action for _ in range(12))


# who answers, for all machines


@pytest.fixture
def keeper(cluster, tmp_path):
    """An actor whose journal is a file of ours."""
    actor = local_cluster.imported().remote(remote.Keeper).options(num_cpus=0, max_restarts=-1, max_task_retries=3)
    running = actor.remote(tmp_path / "journal.db", State(stable="v1"))
    yield running
    local_cluster.imported().kill(running)


def test_what_ray_reports_of_nodes_goes_to_the_log_and_is_not_printed(cluster, capsys, caplog):
    from ray._private import worker

    with caplog.at_level("INFO", local_cluster.__name__):
        worker.print_to_stdstream(
            {"lines": ["a node is lost\n"], "pid": "raylet", "is_err": False}, ignore_prefix=False
        )
    assert "raylet: a node is lost" in caplog.text
    assert capsys.readouterr().out == ""


def test_what_one_changes_all_see_and_none_is_lost(keeper, tmp_path):
    journals = [remote.SharedJournal(keeper) for _ in range(4)]

    def more(state):
        return replace(state, share=state.share + 1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda turn: journals[turn % 4].change(more), range(60)))
    wait_until(lambda: [journal.state.share for journal in journals] == [60] * 4, "all journals hear of all changes")
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
    journal.change(lambda state: replace(state, stable="v2", action="promote"))
    local_cluster.imported().kill(keeper, no_restart=False)
    assert journal.state.stable == "v2"  # requests go on meanwhile

    def changed():
        try:
            # a keeper that dies after it has written raises, too: the next try finds v3 there and leaves it
            asked = journal.change(
                lambda state: state if state.stable == "v3" else replace(state, stable="v3", action="promote")
            )
            return asked.stable == "v3"
        except JournalUnavailable:
            return False

    wait_until(changed, "the keeper is back", 60)
    wait_until(lambda: other.state.stable == "v3", "the other journal hears of v3", 60)
    assert [state.stable for state in other.history()] == ["v1", "v2", "v3"]
    for one in (journal, other):
        one.close()


# the app


def nothing_is_left() -> bool:
    actors = local_cluster.imported().util.list_named_actors(all_namespaces=True)
    serving = local_cluster.imported_serve().status().applications
    return not serving and not [actor for actor in actors if actor["namespace"] == "labsupport"]


def test_a_log_or_a_journal_that_cannot_be_opened_is_named_before_anything_starts(cluster, tmp_path):
    (tmp_path / "plain.txt").write_text("no journal")
    with pytest.raises(ValueError, match=r"^log: the log's address cannot be read: write sqlite"):
        scale.deploy(STABLE, port=0, log="nonsense")
    with pytest.raises(LogUnavailable, match=r"^log: there is no folder"):
        scale.deploy(STABLE, port=0, log=f"sqlite:///{tmp_path}/none/log.db")
    with pytest.raises(JournalUnavailable, match=r"^journal: .*plain.txt: "):
        scale.deploy(STABLE, port=0, journal=tmp_path / "plain.txt")
    assert nothing_is_left()


def test_what_a_failed_deployment_has_started_is_taken_down(cluster, monkeypatch):
    def fail(*_):
        assert local_cluster.imported_serve().status().applications[STABLE].status == "RUNNING"
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(deployment, "_start_fronts", fail)
        scale.deploy(STABLE, replicas=(1, 1), port=0)
    wait_until(nothing_is_left, "the keeper and the versions are gone", 60)


def test_a_keeper_with_another_journal_or_another_stable_version_is_named_and_stays(app, tmp_path):
    for other in ({"journal": tmp_path / "journal.db"}, {"stable": CANDIDATE}):
        with pytest.raises(ValueError, match=f"a deployment with journal=None, stable='{STABLE}': give these"):
            scale.deploy(**{"stable": STABLE, "port": 0, **other})
    assert requests.get(f"{app.url}/rollout", timeout=LIMIT).json()["stable"] == STABLE
    assert not list(tmp_path.iterdir())
    with contextlib.ExitStack() as undo:  # with the same arguments its state stays in force
        same = deployment._started_keeper("yolov3-tiny", None, STABLE, None, undo)
    assert remote.answered(same.began) == (None, STABLE)


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
    with ThreadPoolExecutor(6) as pool:  # both fronts are asked
        answers = list(pool.map(lambda _: ask(app.url, "clock.png"), range(24)))
    assert Counter(answer.headers["X-Model-Version"] for answer in answers) == {STABLE: 24}


def test_a_candidate_in_shadow_sees_the_pictures_and_the_log_has_both_answers(app, log_url):
    change(app.url, "shadow", candidate=CANDIDATE)
    ids = [ask(app.url, "fruits.jpg").json()["id"] for _ in range(5)]
    change(app.url, "rollback")
    with PredictionLog(log_url) as log:
        wait_until(
            lambda: set(ids) <= set(log.columns("id", shadow=True)["id"]), "the candidate's answers are written", 60
        )
        rows = log.frame(shadow=True).set_index("id").loc[ids]
    assert set(rows["version"]) == {CANDIDATE} and rows["error"].isna().all()


def test_others_may_not_change_it_and_a_taken_port_is_named(app):
    assert requests.put(f"{app.url}/rollout", json={"action": "rollback"}, timeout=LIMIT).status_code == 401
    with pytest.raises(PortTaken):
        scale.deploy(STABLE, port=int(app.url.rpartition(":")[2]))


# nobody else gets in


def listening() -> dict[int, psutil.Process]:
    """The ports below this process that can be reached from other machines, and who listens there."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        for connection in process.net_connections("inet"):
            address = ipaddress.ip_address(connection.laddr.ip.removeprefix("::ffff:"))
            if connection.status == psutil.CONN_LISTEN and not address.is_loopback:
                found[connection.laddr.port] = process
    return found


class Boom:
    """Whoever unpickles it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def call(port: int, bomb: bytes, token: str | None) -> grpc.StatusCode:
    """What a replica answers to a request that is a bomb."""
    from ray.serve.generated import serve_pb2, serve_pb2_grpc

    metadata = [("authorization", f"Bearer {token}")] if token else []
    request = serve_pb2.ASGIRequest(pickled_request_metadata=bomb)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.RpcError) as refused:
            serve_pb2_grpc.ASGIServiceStub(channel).HandleRequest(request, metadata=metadata, timeout=LIMIT)
        return refused.value.code()


def test_ray_listens_on_loopback_and_replicas_do_nothing_without_the_token(app, tmp_path):
    reachable = listening()
    assert {process.cmdline()[0].split(":")[2] for process in reachable.values()} <= {"ServeReplica"}
    bomb = pickle.dumps(Boom(tmp_path / "boom"))
    for port in reachable:
        for token in (None, "0" * 64):
            assert call(port, bomb, token) is grpc.StatusCode.UNAUTHENTICATED
    assert not (tmp_path / "boom").exists()
    call(next(iter(reachable)), bomb, os.environ["RAY_AUTH_TOKEN"])
    assert (tmp_path / "boom").exists()  # it would have gone off


def test_the_cluster_itself_tells_nothing_without_the_token(cluster):
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    for metadata in ([], [("authorization", "Bearer " + "0" * 64)]):
        address = local_cluster.imported().get_runtime_context().gcs_address
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as refused:
            stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
            stub.GetAllNodeInfo(gcs_service_pb2.GetAllNodeInfoRequest(), metadata=metadata, timeout=LIMIT)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_fronts_listen_themselves_and_no_proxy_stands_before_them(app):
    names = [process.cmdline()[0] for process in psutil.Process().children(recursive=True) if process.cmdline()]
    assert sum(name.startswith("ray::ServeReplica:front") for name in names) == 2
    assert not any(name.startswith("ray::ProxyActor") for name in names)


def test_its_files_are_this_users_alone(cluster):
    assert Path(os.environ["RAY_TMPDIR"]).stat().st_mode & 0o777 == 0o700


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
            wait_until(lambda: len(answers) > 20, "20 answers before the loss", 120)
            killed = time.monotonic()
            cluster.kill()
            wait_until(lambda: sum(moment > killed for moment, *_ in answers) > 40, "40 answers after the loss", 120)
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
        wait_until(lambda: ids <= set(log.columns("id")["id"]), "every answer is written", 60)
        assert max(Counter(log.columns("id")["id"]).values()) == 1
