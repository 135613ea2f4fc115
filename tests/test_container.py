"""The container: its steps executed, and its command run in a root of its own, as an engine would.

There is no Docker engine here: `image` executes the Dockerfile's instructions with debootstrap and namespaces.
"""

import fnmatch
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
import requests

import image_builder
from labsupport import paths

LAB = paths.root()
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
    """Whatever else lies in a checkout (a log of predictions, a token) is not sent to the engine."""
    first, *lines = (line for line in (LAB / ".dockerignore").read_text().splitlines() if not line.startswith("#"))
    assert first == "*"
    let_in = [line.removeprefix("!") for line in lines if line.startswith("!")]
    steps = image_builder.instructions((LAB / "Dockerfile").read_text())
    copies = [rest for name, rest in steps if name == "COPY" and "--from" not in rest]
    assert copies
    for path in (path for rest in copies for path in rest.split()[:-1]):
        assert any(fnmatch.fnmatch(path, line) or path.startswith(line + "/") for line in let_in), path


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    if missing := image_builder.missing():
        if os.environ.get("LAB_REQUIRE_IMAGE"):
            pytest.fail(f"missing: {', '.join(missing)}")
        pytest.skip(f"building an image without an engine needs {', '.join(missing)}")
    scratch = tmp_path_factory.mktemp("image")
    yield image_builder.build(LAB / "Dockerfile", scratch)
    shutil.rmtree(scratch)


@pytest.fixture
def started(built, tmp_path):
    """Start containers with a volume each; what still runs at the end is stopped."""
    running = []

    def start(*arguments, **env) -> image_builder.Container:
        volume = tmp_path / f"volume{len(running)}"
        shutil.copytree(built.root / "data", volume)  # an engine fills a new volume from the image
        for path in (volume, *volume.rglob("*")):
            os.chown(path, 10001, 10001)
        console = (tmp_path / f"console{len(running)}").open("w+b")
        container = image_builder.Container(built, volume, env, console, *arguments)
        container.volume, container.console = volume, console
        running.append(container)
        return container

    yield start
    for container in running:
        container.kill()
        container.console.close()


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


def ready(container) -> image_builder.Container:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        assert container.process.poll() is None, said(container)
        try:
            if container.inside(container.image.health).returncode == 0:
                return container
        except (IndexError, FileNotFoundError):  # not that far yet
            time.sleep(0.05)
    raise AssertionError(said(container))


def said(container) -> str:
    container.console.seek(0)
    return container.console.read().decode()


def test_it_is_small_and_holds_no_more_than_a_server_needs(built):
    assert built.size() < 1_000_000_000
    packages = {path.name.lower() for path in (built.root / "opt/lab/lib/python3.11/site-packages").iterdir()}
    assert {"fastapi", "openvino", "cv2"} <= packages
    assert not packages & {"tensorflow", "keras", "jupyterlab", "pandas", "matplotlib", "pip", "setuptools", "pytest"}
    assert (built.user, built.ports) == ("10001:10001", [8000])


def test_it_answers_as_the_lab_does_alone_in_its_network_and_on_a_root_it_cannot_write(started, built, server):
    container = ready(started("--precision", "f32", LAB_TOKEN=TOKEN))
    here = requests.post(f"{server.url}/detect", files={"file": FRUITS}, timeout=30).json()
    status, there = ask(container)
    assert (status, there["detections"]) == (200, here["detections"])
    status = Path(f"/proc/{container.pid}/status").read_text()
    assert "Uid:\t10001\t10001\t10001\t10001" in status
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    write = container.inside(["python", "-c", "open('/opt/lab/app/labsupport/evil.py', 'w')"])
    assert b"Read-only file system" in write.stderr
    out = container.inside(["python", "-c", "import socket; socket.create_connection(('192.0.2.1', 80), 2)"])
    assert b"Network is unreachable" in out.stderr


def test_without_the_token_nobody_gets_an_answer_and_without_one_it_does_not_start(started):
    container = ready(started(LAB_TOKEN=TOKEN))
    assert ask(container, token="x" * 32)[0] == 401
    naked = started()
    assert naked.process.wait(30) == 1
    assert "set LAB_TOKEN" in said(naked)


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


def test_told_to_stop_it_answers_what_it_has_and_loses_no_row(started):
    """Eight clients ask without end while it is told to stop: what it took up is in the log, and was answered."""
    container = ready(started(LAB_TOKEN=TOKEN))
    with visit(container, CLIENTS) as clients:
        while int(clients.stdout.readline()) < 40:
            pass
        assert container.stop() == 0
        out, error = clients.communicate(timeout=60)
    assert not error, error.decode()
    answered, wrong = json.loads(out.splitlines()[-1])
    with closing(sqlite3.connect(container.volume / "predictions.db")) as log:
        written = {row[0] for row in log.execute("SELECT id FROM predictions WHERE status = 200")}
    assert len(answered) >= 40
    assert set(answered) == written
    assert not wrong


def test_its_health_check_notices_when_it_hangs(started):
    container = ready(started(LAB_TOKEN=TOKEN))
    os.kill(container.pid, 19)  # SIGSTOP
    try:
        assert container.inside(container.image.health).returncode != 0
    finally:
        os.kill(container.pid, 18)
