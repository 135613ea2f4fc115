"""The container: built by a real Docker engine, and run as compose.yaml runs it, but without any network."""

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import pytest
import requests

import composed
import engine
from deploy import shipping
from deploy.aws import bundle
from labsupport import paths
from test_lab import wait_until

LAB = paths.root()
IMAGE = "labsupport"
TOKEN = "0123456789abcdef0123456789abcdef"
FRUITS = (paths.IMAGES / "fruits.jpg").read_bytes()
VISITOR = """
import json, sys, threading, requests
url, session = "http://127.0.0.1:8000", requests.Session()
session.headers["Authorization"] = "Bearer " + sys.argv[1]
picture = open(sys.argv[2], "rb").read()
"""


def test_the_linter_has_nothing_to_say():
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, "--no-color", LAB / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_an_image_is_made_of_is_named():
    """The engine is sent only what .dockerignore names, and that is enough for every COPY."""
    first, *lines = (line for line in (LAB / ".dockerignore").read_text().splitlines() if not line.startswith("#"))
    assert first == "*"
    let_in = [line.removeprefix("!") for line in lines if line.startswith("!")]
    copied = bundle.sources((LAB / "Dockerfile").read_text())
    assert copied
    for path in copied:
        assert any(fnmatch(path, line) or path.startswith(line + "/") for line in let_in), path


@dataclass
class Container:
    """A container of the image; `id` is its name in the engine."""

    engine: engine.Engine
    id: str

    @property
    def state(self) -> dict:
        return self.engine.inspect(self.id)["State"]

    @property
    def pid(self) -> int:
        """Its first process, as the machine numbers it."""
        return self.state["Pid"]

    @property
    def volume(self) -> Path:
        """The folder that it sees as /data."""
        mounts = {mount["Destination"]: mount["Source"] for mount in self.engine.inspect(self.id)["Mounts"]}
        assert {*mounts} == {"/data", "/keys"}
        return Path(mounts["/data"])

    @property
    def console(self) -> str:
        """All that it printed."""
        return self.engine.docker("logs", self.id, stderr=subprocess.STDOUT)

    def fails(self, program: str) -> str:
        """Run a Python program in it, as its user; return its errors. Raises if the program succeeds."""
        with pytest.raises(AssertionError) as raised:
            self.engine.docker("exec", self.id, "python", "-c", program)
        return str(raised.value)

    def becomes(self, health: str) -> None:
        """Return when the engine's health check says so."""
        until = time.monotonic() + 60
        while (state := self.state)["Health"]["Status"] != health:
            assert state["Running"] and time.monotonic() < until, f"{state}\n{self.console}"
            time.sleep(0.1)


@contextlib.contextmanager
def engine_or_skip(variable: str, **options):
    """An engine; where this machine cannot run one, skip the tests, or fail if `variable` is set."""
    with contextlib.ExitStack() as stack:
        try:
            docker = stack.enter_context(engine.started(**options))
        except engine.Unavailable as reason:
            (pytest.fail if os.environ.get(variable) else pytest.skip)(str(reason))
        yield docker


@pytest.fixture(scope="module")
def built():
    """An engine that has built the image."""
    with engine_or_skip("LAB_REQUIRE_IMAGE") as docker:
        docker.import_base()
        docker.build(LAB, IMAGE)
        yield docker


@pytest.fixture
def started(built):
    """Start containers with a volume each; they are removed at the end."""
    running = []

    def start(*arguments, **env) -> Container:
        given = [word for name, value in env.items() for word in ("--env", f"{name}={value}")]
        # the image's own check, but every second: the tests wait for it
        options = [*engine.RUN.split(), *given, "--health-interval", "1s", "--health-retries", "1"]
        running.append(built.docker("run", "--detach", *options, IMAGE, *arguments))
        return Container(built, running[-1])

    yield start
    built.docker("rm", "--force", "--volumes", *running)


def visit(container, script: str, token: str = TOKEN) -> subprocess.Popen:
    """A client of ours in the container's network, where nobody else is."""
    enter = ["nsenter", "--target", str(container.pid), "--net", sys.executable, "-c", VISITOR + script, token]
    return subprocess.Popen([*enter, paths.IMAGES / "fruits.jpg"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def ask(container, token: str = TOKEN) -> tuple[int, dict]:
    script = "answer = session.post(url + '/detect', files={'file': picture}, timeout=20)\n"
    with visit(container, script + "print(json.dumps([answer.status_code, answer.json()]))", token) as visitor:
        out, error = visitor.communicate(timeout=60)
    assert not error, error.decode()
    return tuple(json.loads(out))


def ready(container) -> Container:
    container.becomes("healthy")
    return container


def test_it_is_small_and_holds_no_more_than_a_server_needs(built):
    image = built.inspect(IMAGE)
    assert image["Size"] < 1_000_000_000
    listed = ("run", "--rm", *engine.RUN.split(), "--entrypoint", "ls", IMAGE, "/opt/lab/lib/python3.11/site-packages")
    packages = {name.lower() for name in built.docker(*listed).split()}
    assert {"fastapi", "openvino", "cv2"} <= packages
    assert not packages & {"tensorflow", "keras", "jupyterlab", "pandas", "matplotlib", "pip", "setuptools", "pytest"}
    config = image["Config"]
    assert (config["User"], [*config["ExposedPorts"]]) == ("10001:10001", ["8000/tcp"])
    assert {*config["Volumes"]} == {"/data", "/keys"}
    check = config["Healthcheck"]
    assert [check[name] / 1e9 for name in ("Interval", "Timeout", "StartPeriod")] == [10, 3, 20]
    assert (check["Retries"], config["StopSignal"]) == (3, "SIGTERM")


def test_nothing_else_of_a_checkout_reaches_the_engine(built, tmp_path):
    """A log of predictions, pictures, keys: .dockerignore keeps them out of an image that copies everything."""
    wanted = ["deploy/docker/server.lock", "labsupport/serving/app.py"]
    others = ["predictions.db", "token", "images_uploaded/a.jpg", "deploy/docker/prometheus.yml", "labsupport/.env"]
    others += ["labsupport/lab.pem", "labsupport/tls/lab.key", "labsupport/__pycache__/app.pyc"]
    for name in [*wanted, *others]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    shutil.copy(LAB / ".dockerignore", tmp_path)
    (tmp_path / "Dockerfile").write_text(f"FROM {engine.BASE}\nCOPY . /context\n")
    built.build(tmp_path, "context")
    sent = built.docker(
        "run", "--rm", *engine.RUN.split(), "context", "find", "/context", "-type", "f", "-printf", "%P "
    )
    assert sorted(sent.split()) == wanted


def test_it_answers_as_the_lab_does_alone_in_its_network_and_on_a_root_it_cannot_write(started, server):
    container = ready(started("--precision", "f32", LAB_TOKEN=TOKEN))
    here = requests.post(f"{server.url}/detect", files={"file": FRUITS}, timeout=30).json()
    status, there = ask(container)
    assert (status, there["detections"]) == (200, here["detections"])
    status = Path(f"/proc/{container.pid}/status").read_text()
    assert "Uid:\t10001\t10001\t10001\t10001" in status
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    assert "Read-only file system" in container.fails("open('/opt/lab/app/labsupport/evil.py', 'w')")
    elsewhere = "import socket; socket.create_connection(('192.0.2.1', 80), 2)"
    assert "Network is unreachable" in container.fails(elsewhere)


def test_without_the_token_nobody_gets_an_answer_and_without_one_it_does_not_start(started, built):
    container = ready(started(LAB_TOKEN=TOKEN))
    assert ask(container, token="x" * 32)[0] == 401
    naked = started()
    assert built.docker("wait", naked.id) == "1"
    assert "set LAB_TOKEN" in naked.console


CLIENTS = """
answered, wrong = [], []
def go():
    while True:
        try:
            answer = session.post(url + "/detect", files={"file": picture}, timeout=20)
        except requests.ConnectionError:  # nobody there, or nobody took it up
            return
        if answer.status_code == 503:
            return
        answered.append(answer.json()["id"]) if answer.ok else wrong.append(answer.status_code)
        sys.stdout.write(f"{len(answered)}\\n")
        sys.stdout.flush()
threads = [threading.Thread(target=go) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(json.dumps([answered, wrong]))
"""


def test_told_to_stop_it_answers_what_it_has_and_loses_no_row(started, built):
    """Eight clients ask without end while it is told to stop: what it took up is in the log, and was answered."""
    container = ready(started(LAB_TOKEN=TOKEN))
    with visit(container, CLIENTS) as clients:
        while int(clients.stdout.readline()) < 40:
            pass
        built.docker("stop", container.id)  # after ten seconds it would kill it, which is exit code 137
        out, error = clients.communicate(timeout=60)
    assert not error, error.decode()
    assert container.state["ExitCode"] == 0, container.console
    answered, wrong = json.loads(out.splitlines()[-1])
    with closing(sqlite3.connect(container.volume / "predictions.db")) as log:
        written = {row[0] for row in log.execute("SELECT id FROM predictions WHERE status = 200")}
    assert len(answered) >= 40
    assert set(answered) == written
    assert not wrong


def test_its_health_check_notices_when_it_hangs(started):
    container = ready(started(LAB_TOKEN=TOKEN))
    os.kill(container.pid, signal.SIGSTOP)
    container.becomes("unhealthy")
    os.kill(container.pid, signal.SIGCONT)
    container.becomes("healthy")


@pytest.fixture
def shell(built, monkeypatch):
    """A folder with a copy of the checkout, in which the lesson's commands run with our engine."""
    for name, value in built.env.items():
        monkeypatch.setenv(name, value)
    shell = shipping.Shell()
    yield shell
    shell.close()


def test_the_recorded_run_in_the_lesson_is_one_of_this_image(shell):
    """Run each command of shipping.ipynb again, but not the build after a change of the packages, which takes minutes.

    Texts are the recorded ones. The image and each layer have the recorded size within 15 % or 5 MB, the memory is the
    recorded one within 25 %, and the server's start takes at most 10 seconds longer than in the recorded run.
    """
    recorded = {name: shipping.Result(**step) for name, step in shipping.recorded()["steps"].items()}
    now = {name: shell.run(name) for name in shipping.DOCKER if name != "change packages"}
    assert {name: done.code for name, done in now.items()} == {name: recorded[name].code for name in now}
    assert all("CACHED" in line or ": FROM " in line for line in now["build"].lines)  # it is what `built` has built
    assert "set LAB_TOKEN" in now["no token"].lines[0]
    for name in ("ask", "ask 20 times", "user", "write", "call out", "stop", "rows"):
        assert words(now[name]) == words(recorded[name])
    for name in ("build", "change code"):
        assert [line[18:] for line in now[name].lines] == [line[18:] for line in recorded[name].lines]
    assert cached(now["change code"]) == cached(recorded["change code"])
    for name in ("size", "layers", "memory"):
        tolerance = {"rel": 0.25} if name == "memory" else {"rel": 0.15, "abs": 5}
        assert numbers(now[name]) == pytest.approx(numbers(recorded[name]), **tolerance)
    start, before = (done["run"].seconds + done["wait"].seconds for done in (now, recorded))
    assert start < before + 10


def words(done: shipping.Result) -> list[str]:
    """What it printed, without numbers that have a decimal point, as confidences have."""
    return [re.sub(r"\d+\.\d+", "", line) for line in done.lines]


def numbers(done: shipping.Result) -> list[float]:
    return [float(re.findall(r"[\d.]+", line)[0]) for line in done.lines]


def cached(done: shipping.Result) -> list[bool]:
    return ["CACHED" in line for line in done.lines]


# compose.yaml: the server behind nginx, watched by Prometheus


@pytest.fixture(scope="module")
def together(built, tmp_path_factory):
    """The containers of compose.yaml, in a network of their own."""
    with engine_or_skip("LAB_REQUIRE_COMPOSE", own_network=True) as docker:
        with subprocess.Popen(["docker", "save", IMAGE], stdout=subprocess.PIPE, env=os.environ | built.env) as saved:
            docker.docker("load", stdin=saved.stdout)
        lab = composed.Composed(docker, IMAGE, tmp_path_factory.mktemp("composed"))
        with lab.up():
            yield lab


ASK = f"""
with open({str(paths.IMAGES / "fruits.jpg")!r}, "rb") as picture:
    answer = session.post("https://127.0.0.1:8443/serve/detect", files={{"file": picture}}, timeout=60)
print(json.dumps([answer.status_code, answer.json()]))
"""
CHANGE = """
change = {{"action": "resume"}}, {{{}}}
print(session.put("https://127.0.0.1:8443/serve/rollout", json=change[0], headers=change[1], timeout=60).status_code)
"""
WAIT = """
import time
until = time.monotonic() + 90
def ask(): return session.get("http://127.0.0.1:9090/api/v1/{}", timeout=20).json()["data"]
while not ({}):
    assert time.monotonic() < until, ask()
    time.sleep(0.2)
print(json.dumps(ask()))
"""


def test_nginx_asks_the_server_that_has_a_name_in_their_network(together):
    status, answer = json.loads(together.run(ASK))
    assert status == 200 and answer["detections"]
    assert together.run(CHANGE.format("")) == "401\n"  # who changes something brings a token
    assert together.run(CHANGE.format('"Authorization": "Bearer " + token')) == "200\n"


def test_prometheus_reads_what_the_server_counts_and_has_its_rules(together):
    assert json.loads(together.run(ASK))[0] == 200
    counted = "any(float(one['value'][1]) >= 1 for one in ask()['result'])"
    (found,) = json.loads(together.run(WAIT.format("query?query=predictions_total", counted)))["result"]
    assert (found["metric"]["job"], found["metric"]["instance"]) == ("labsupport", "server:8000")
    groups = json.loads(together.run(WAIT.format("rules", "True")))["groups"]
    assert "UsersRetry" in {rule["name"] for group in groups for rule in group["rules"]}


def test_only_loopback_is_published(together):
    """Only nginx and Prometheus listen, on loopback. The server's own port would bypass nginx's limits."""
    tables = "".join(Path(f"/proc/{together.engine.pid}/net/{name}").read_text() for name in ("tcp", "tcp6"))
    listening = {words[1] for words in map(str.split, tables.splitlines()) if words[3:4] == ["0A"]}
    assert listening == {"0100007F:20FB", "0100007F:2382"}  # 127.0.0.1, ports 8443 and 9090


def test_a_server_that_is_killed_is_started_again_and_answers_through_nginx(together):
    id = together.container("server")
    before = together.engine.inspect(id)["State"]
    os.kill(before["Pid"], signal.SIGKILL)

    def again() -> bool:
        state = together.engine.inspect(id)["State"]
        return state["StartedAt"] != before["StartedAt"] and state["Health"]["Status"] == "healthy"

    wait_until(again, "the server is started again and healthy", 90)
    assert json.loads(together.run(ASK))[0] == 200
