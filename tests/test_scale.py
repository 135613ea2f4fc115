"""Scaling out: what needs no cluster here, and everything that does in `on_cluster.py`, in a process of its own."""

import asyncio
import contextlib
import errno
import functools
import itertools
import math
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import requests
from starlette.responses import PlainTextResponse

from labsupport import background, batch, models, paths, scale
from labsupport.compute import Cost, Machine, needs
from labsupport.detection import UnknownVersion
from labsupport.paths import whole
from labsupport.protection.security import TokenMissing
from labsupport.rollout import JournalUnavailable, Router, State
from labsupport.scale import bulk, deployment, local_cluster, remote
from labsupport.serving import PortTaken
from test_lab import wait_until

STABLE = "yolov3-tiny/openvino-f32"
BLANK = np.zeros((48, 64, 3), np.uint8)


def test_everything_that_needs_a_cluster():
    pytest.importorskip("ray", reason="needs Ray: pip install 'labsupport[scale]'")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", Path(__file__).with_name("on_cluster.py")]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1_800)
    assert done.returncode == 0, done.stdout[-20_000:]


@pytest.mark.parametrize("wrong", [{"nodes": 0}, {"cores": 0}, {"cores": 1.5}, {"nodes": True}, {"cores": "2"}])
def test_a_cluster_of_less_than_one_is_refused_before_anything_starts(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name}=.*: give a whole number of at least 1"):
        local_cluster.LocalCluster(**wrong)


def test_more_pinned_cores_than_there_are_are_refused_before_anything_starts():
    pytest.importorskip("ray")
    with pytest.raises(ValueError, match="cores are here to be pinned to"):
        local_cluster.LocalCluster(nodes=len(os.sched_getaffinity(0)), cores=2, pinned=True)


def test_what_a_pinned_node_starts_runs_on_cores_of_its_own_and_this_process_on_all():
    program = [sys.executable, "-c", "import os; print(*os.sched_getaffinity(0))"]
    before = os.sched_getaffinity(0)
    cluster = object.__new__(local_cluster.LocalCluster)
    cluster.cores, cluster._free_cores = 1, sorted(before)
    used = []
    for _ in before:
        with cluster._own_cores():
            used.append(subprocess.run(program, capture_output=True, text=True, check=True).stdout)
        assert os.sched_getaffinity(0) == before
    assert sorted(map(int, used)) == sorted(before)
    with pytest.raises(ValueError, match="each pinned node takes 1"), cluster._own_cores():
        pass


def test_the_cores_of_a_killed_node_and_of_one_that_did_not_start_are_free_again(monkeypatch):
    nodes, kept = [], sorted(os.sched_getaffinity(0))
    raylet = SimpleNamespace(process=SimpleNamespace(pid=os.getpid()))

    def add_node(**_):
        nodes.append(os.sched_getaffinity(0))
        if len(nodes) == 2:
            raise OSError("it does not start")
        return SimpleNamespace(all_processes={"raylet": [raylet]})

    monkeypatch.setattr(local_cluster, "_kill", lambda process: None)
    monkeypatch.setattr(local_cluster, "_ports", lambda: contextlib.nullcontext({}))
    cluster = object.__new__(local_cluster.LocalCluster)
    cluster.cores, cluster._free_cores, cluster._others = len(kept), [*kept], []
    cluster._cluster = SimpleNamespace(head_node="head", add_node=add_node, remove_node=lambda *_, **__: None)
    cluster.add()
    cluster.kill()
    with pytest.raises(OSError, match="it does not start"):
        cluster.add()
    cluster.add()
    assert nodes == [set(kept)] * 3 and cluster._free_cores == []


def test_two_fronts_share_a_port_and_one_that_stopped_is_not_healthy():
    def made(name):
        async def app(scope, receive, send):
            if scope["type"] == "http":
                await PlainTextResponse(name)(scope, receive, send)

        return lambda: app

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    fronts = [scale.Front(made(name), "127.0.0.1", port) for name in ("one", "other")]
    answers = {requests.get(f"http://127.0.0.1:{port}", timeout=30).text for _ in range(40)}
    assert answers == {"one", "other"}
    for front in fronts:
        front.check_health()
        front.__del__()
        with pytest.raises(RuntimeError, match="does not listen any more"):
            front.check_health()
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.1:{port}", timeout=30)


def test_ray_is_loaded_when_it_is_used_and_not_before():
    program = "import sys, labsupport.scale; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    "name", ["", "yolov3-tiny", "yolov3-tiny/openvino", "other/openvino-f32", "yolov3-tiny/opencv-bf16"]
)
def test_what_is_no_version_is_refused_before_anything_starts(name, tmp_path):
    for call in (lambda: scale.deploy(name), lambda: bulk.predict_folder(tmp_path, "a.csv", name)):
        with pytest.raises(UnknownVersion, match="no version is called"):
            call()


def test_numbers_that_make_no_sense_are_refused(tmp_path):
    deployed = {
        r"^replicas\[0\]=0: give a whole number of at least 1$": {"replicas": (0, 2)},
        r"^replicas\[0\]=True: give": {"replicas": (True, 2)},
        r"^replicas\[1\]=2: give a whole number of at least 3$": {"replicas": (3, 2)},
        r"^replicas\[1\]=2.5: give": {"replicas": (1, 2.5)},
        r"^replicas=2: give the fewest and the most, such as \(1, 2\)$": {"replicas": 2},
        r"^replicas='12': give": {"replicas": "12"},
        r"^replicas=\(1, 2, 3\): give": {"replicas": (1, 2, 3)},
        r"^fronts=0: give a whole number of at least 1$": {"fronts": 0},
        r"^fronts=1.5: give": {"fronts": 1.5},
        r"^fronts='2': give": {"fronts": "2"},
        r"^journal='': give a path$": {"journal": ""},
    }
    for what, wrong in deployed.items():
        with pytest.raises(ValueError, match=what):
            scale.deploy(STABLE, **wrong)
    wrongs = {
        "ends in .parquet or .csv": {"out": "a.txt"},
        "from 0 to 1": {"confidence": 2},
        "every=0: give a whole number": {"every": 0},
        "workers=0: give a whole number": {"workers": 0},
    }
    for what, wrong in wrongs.items():
        with pytest.raises(ValueError, match=what):
            bulk.predict_folder(tmp_path, **{"out": "a.csv", "version": STABLE, **wrong})


def test_replicas_are_counted_for_versions_only_also_while_one_starts(monkeypatch):
    def status(*running):
        deployments = [SimpleNamespace(replica_states={"RUNNING": count}) for count in running]
        return SimpleNamespace(deployments=dict(enumerate(deployments)))

    applications = {STABLE: status(2), "yolov3-tiny/litert-int8": status(), "front": status(1), "other": status(1, 1)}
    serve = SimpleNamespace(status=lambda: SimpleNamespace(applications=applications))
    monkeypatch.setattr(local_cluster, "imported_serve", lambda: serve)
    assert scale.Deployed("http://127.0.0.1:1", None).replicas() == {STABLE: 2, "yolov3-tiny/litert-int8": 0}


def test_a_journal_without_a_rollout_begins_with_the_version_that_is_deployed(tmp_path):
    def kept(stable, *actions):
        keeper = remote.Keeper(tmp_path / "journal.db", State(stable=stable))
        for action in actions:
            keeper._journal.change(lambda state, action=action: replace(state, action=action))
        states = keeper._journal.history()
        keeper._journal.close()
        return [state.stable for state in states]

    assert kept("v1") == ["v1"]
    assert kept("v2") == kept("v2") == ["v1", "v2"]
    assert kept("v2", "switch") == kept("v1") == ["v1", "v2", "v2"]


def test_beyond_loopback_it_needs_a_token(monkeypatch):
    monkeypatch.delenv("LAB_TOKEN", raising=False)
    with pytest.raises(TokenMissing):
        scale.deploy(STABLE, host="0.0.0.0")


class Handle:
    """A handle whose answers come, one after the other, from a list; errors are raised."""

    def __init__(self, *answers):
        self.detect, self._answers = self, iter(answers)

    def options(self, _by_reference):
        assert not _by_reference  # over gRPC, not through the object store
        return self

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


class Errors:
    """The errors of a Ray that is none."""

    class RayActorError(Exception): ...

    class GetTimeoutError(Exception): ...

    class RayTaskError(Exception): ...


def test_a_journal_that_hears_nothing_says_so_once_goes_on_and_says_that_it_works_again(monkeypatch, caplog):
    answers = [Errors.RayActorError("gone"), Errors.RayActorError("gone"), ZeroDivisionError(), (2, "news")]
    asked, end = [], threading.Event()

    def get(question, timeout):
        asked.append(timeout)
        if len(asked) == 1:
            return 1, "first"
        if len(asked) == 2 + len(answers):
            end.wait()
            raise SystemExit
        if isinstance(answer := answers[len(asked) - 2], Exception):
            raise answer
        return answer

    ray = SimpleNamespace(get=get, exceptions=Errors, is_initialized=lambda: True)
    monkeypatch.setattr(local_cluster, "imported", lambda: ray)
    monkeypatch.setattr(background, "repeat", functools.partial(background.repeat, after_error=0.01))
    method = SimpleNamespace(remote=lambda *_: None)
    journal = remote.SharedJournal(SimpleNamespace(read=method, wait=method))
    wait_until(lambda: journal.state == "news", "the journal hears the news")
    end.set()
    assert asked[0] > asked[1]  # for the first answer the keeper may have to start
    lines = [record.getMessage() for record in caplog.records if record.name == "labsupport.background"]
    assert [line.split("(")[0] for line in lines] == [
        "journal: JournalUnavailable",
        "journal: ZeroDivisionError",
        "journal: works again",
    ]


class Local:
    """A handle to a keeper in this process, without Ray. Only what the test asks is answered; the router hears no news.

    `lose` sends the next write twice, as Ray does if the keeper has died after it wrote: to `keeper`, then to `lose()`.
    """

    def __init__(self, monkeypatch, path):
        self.path, self.dead, self.lose = path, False, None
        self.keeper = remote.Keeper(path, State(stable="v1"))
        ray = SimpleNamespace(get=lambda ask, timeout: ask(), exceptions=Errors, is_initialized=lambda: True)
        monkeypatch.setattr(local_cluster, "imported", lambda: ray)
        monkeypatch.setattr(background, "repeat", lambda step, *_: setattr(self, "hear", step))

    def restarted(self):
        self.keeper._journal.close()
        return remote.Keeper(self.path, State(stable="v1"))

    def __getattr__(self, name):
        def answer(*arguments):
            if self.dead:
                raise Errors.RayActorError("the actor died")
            answer = asyncio.run(getattr(self.keeper, name)(*arguments))
            if name == "write" and self.lose:
                self.keeper, self.lose = self.lose(), None
                answer = asyncio.run(getattr(self.keeper, name)(*arguments))
            return answer

        return SimpleNamespace(remote=lambda *arguments: functools.partial(answer, *arguments))


@pytest.fixture
def handle(monkeypatch, tmp_path):
    local = Local(monkeypatch, tmp_path / "journal.db")
    yield local
    local.keeper._journal.close()


class Version:
    def __init__(self, version):
        self.version = version

    def detect(self, image, confidence=0.5):
        return []


@pytest.mark.parametrize("restarts", [False, True])
def test_a_change_that_ray_sends_twice_is_made_once(restarts, handle):
    router = Router(Version("v1"), Version("v2"), journal=remote.SharedJournal(handle))
    router.blue_green("v2")
    handle.lose = handle.restarted if restarts else lambda: handle.keeper
    router.switch("go")
    assert router.version == "v2" and [state.action for state in router.history()] == ["start", "blue_green", "switch"]
    handle.lose = handle.restarted if restarts else lambda: handle.keeper
    router.promote("good")
    assert router.version == "v1"


def test_two_that_make_the_same_change_to_the_same_state_make_two(handle):
    journal, other = (remote.SharedJournal(handle) for _ in range(2))

    def more(state):
        return replace(state, share=state.share + 1)

    def more_after_the_other(state):
        if state.share == 0:
            other.change(more)
        return more(state)

    assert journal.change(more_after_the_other).share == 2
    assert [state.share for state in journal.history()] == [0, 1, 2]


def test_the_status_says_that_the_keeper_does_not_answer_until_it_does(handle):
    router = Router(Version("v1"), Version("v2"), journal=remote.SharedJournal(handle))
    assert router.status()["trouble"] == ""
    for ask in (handle.hear, router.history, lambda: router.blue_green("v2")):
        handle.dead = True
        with pytest.raises(JournalUnavailable, match="does not answer: the actor died"):
            ask()
        assert "the journal cannot be read" in router.status()["trouble"]
        handle.dead = False
        handle.hear()
        assert router.status()["trouble"] == ""


def test_the_status_says_that_the_keeper_cannot_read_its_file(handle):
    router = Router(Version("v1"), journal=remote.SharedJournal(handle))
    with contextlib.closing(sqlite3.connect(handle.path)) as file, file:
        file.execute("DELETE FROM states")
    with pytest.raises(JournalUnavailable, match="holds no state"):
        handle.hear()
    assert "the journal cannot be read" in router.status()["trouble"]


def test_who_has_left_the_cluster_says_so_and_starts_no_ray_of_its_own(monkeypatch, handle):
    router = Router(Version("v1"), Version("v2"), journal=remote.SharedJournal(handle))
    monkeypatch.setattr(local_cluster.imported(), "is_initialized", lambda: False)
    monkeypatch.setattr(local_cluster.imported(), "get", None)
    for ask in (router.history, lambda: router.blue_green("v2")):
        with pytest.raises(JournalUnavailable, match="this process has left its cluster"):
            ask()
    assert handle.hear() and "the journal cannot be read" in router.status()["trouble"]


def test_tables_are_joined_under_one_header(tmp_path):
    bulk.JOIN[".csv"](tmp_path / "all.csv", [b"a,b\n1,2\n", b"a,b\n", b"a,b\n3,4\n"])
    assert (tmp_path / "all.csv").read_text() == "a,b\n1,2\n3,4\n"


@pytest.fixture
def looked(monkeypatch, tmp_path):
    """A folder with a picture, as the working folder, and a cluster that is none. `looked` lists the calls for rows."""
    (tmp_path / "clock.png").write_bytes((paths.IMAGES / "clock.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    ray = SimpleNamespace(is_initialized=lambda: True, cluster_resources=lambda: {"CPU": 1})
    monkeypatch.setattr(local_cluster, "imported", lambda: ray)
    calls = []

    def look(names, question, workers):
        calls.append(names)
        return [{"table": b"file,frame,error,version\n", "rows": 1, "errors": 0}]

    monkeypatch.setattr(bulk, "_looked_at", look)
    return calls


@pytest.mark.parametrize("wrong", [{"folder": ""}, {"folder": None}, {"folder": "a\0"}, {"out": ""}, {"out": 5}])
def test_what_is_no_path_is_refused_before_a_picture_is_looked_at(wrong, looked):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name}=.*: give a path$"):
        bulk.predict_folder(**{"folder": ".", "out": "out.csv", "version": STABLE, **wrong})
    assert not looked


def test_a_table_that_cannot_be_written_is_named_before_a_picture_is_looked_at(looked):
    Path("plain.txt").write_text("x")
    with pytest.raises(batch.BatchUnwritable, match=r"plain.txt/out.csv: .*: make room, or name another file"):
        bulk.predict_folder(".", "plain.txt/out.csv", STABLE)
    assert not looked


def test_a_file_that_appears_during_the_run_is_not_replaced_and_the_table_of_an_earlier_run_is(looked, monkeypatch):
    for _ in range(2):
        assert bulk.predict_folder(".", "out.csv", STABLE).rows == 1
    look = bulk._looked_at

    def appears(*arguments):
        Path("new.csv").write_text("my,own,notes\n")
        return look(*arguments)

    monkeypatch.setattr(bulk, "_looked_at", appears)
    with pytest.raises(batch.BatchUnwritable, match=r"new.csv: this file is no table of a batch"):
        bulk.predict_folder(".", "new.csv", STABLE)
    assert Path("new.csv").read_text() == "my,own,notes\n"
    monkeypatch.setattr(bulk, "whole", full_disk)
    with pytest.raises(batch.BatchUnwritable, match="No space left"):
        bulk.predict_folder(".", "out.csv", STABLE)
    assert sorted(file.name for file in Path.cwd().iterdir()) == ["clock.png", "new.csv", "out.csv"]


@contextlib.contextmanager
def full_disk(path):
    with whole(path) as partial:
        yield partial
        raise OSError(errno.ENOSPC, "No space left on device")


# on paper


def test_what_a_rate_needs_is_what_the_scarcest_resource_asks_for():
    machine = Machine("ten cores", 10, 3.6)
    by_cores = needs(1_000, Cost(cpu=0.05, bytes=1_000, rows=2), machine, link=1e9, rows=1_000, utilisation=0.5)
    # 50 cores' worth of work on 5 usable ones each; 2,000 rows on 500 each; 36 dollars an hour are a cent a second
    assert (by_cores.machines, by_cores.limit, by_cores.gigabits, by_cores.databases) == (10, "cores", 0.008, 4)
    assert by_cores.dollars_per_hour == pytest.approx(36) and by_cores.dollars_per_million == pytest.approx(10)
    by_network = needs(1_000, Cost(cpu=0.001, bytes=1_000_000), machine, link=1e9, utilisation=0.5)
    assert (by_network.machines, by_network.limit) == (16, "network")  # 8 gigabits on half a gigabit each


@pytest.mark.parametrize("wrong", [{"rate": 0}, {"link": 0}, {"rows": -1}, {"utilisation": 1.1}, {"link": math.inf}])
def test_nonsense_is_refused_on_paper_too(wrong):
    with pytest.raises(ValueError, match=rf"^{next(iter(wrong))}=.*: give a number"):
        needs(**{"rate": 1, "cost": Cost(0.01, 1), "machine": Machine("m", 1, 1), **wrong})


@pytest.mark.parametrize("name", ["cpu", "bytes", "rows"])
@pytest.mark.parametrize("wrong", [-1, math.nan, math.inf, True, "1"])
def test_a_cost_is_of_finite_numbers(name, wrong):
    assert Cost(**{"cpu": 0.1, "bytes": 0, "rows": 0}).rows == 0
    with pytest.raises(ValueError, match=rf"^{name}=.*: give a number"):
        Cost(**{"cpu": 0.1, "bytes": 1, name: wrong})
    with pytest.raises(ValueError, match=r"^cpu=0: give a number above 0"):
        Cost(cpu=0, bytes=1)


def test_a_figure_of_a_loss_marks_the_moment():
    answers = pd.DataFrame({"sent": [9.0, 11.0], "seconds": [0.1, 1.5]})
    (axes,) = scale.figures.around_a_loss(answers, 10.0, "All were answered").axes
    assert axes.get_title(loc="left") == "All were answered"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0.1", "0.2", "0.5", "1", "2"]


def test_two_deployments_do_not_share_a_port():
    with deployment._reserved("127.0.0.1", 0) as port:
        with (
            pytest.raises(PortTaken, match=f"port {port} on 127.0.0.1 is taken"),
            deployment._reserved("127.0.0.1", port),
        ):
            pass
        with socket.create_server(("127.0.0.1", port), reuse_port=True):  # as a front listens
            pass
    with deployment._reserved("127.0.0.1", port) as again:
        assert again == port


def test_a_port_is_free_right_after_a_server_there_has_closed_its_connections():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        port = server.getsockname()[1]
        server.accept()[0].close()  # the side that closes first keeps the address for a minute
        assert client.recv(1) == b""
    with deployment._reserved("127.0.0.1", port) as free:
        assert free == port
        socket.create_server(("127.0.0.1", port), reuse_port=True).close()


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_a_port_can_be_held_on_ipv6():
    with deployment._reserved("::1", 0) as port:
        assert port
