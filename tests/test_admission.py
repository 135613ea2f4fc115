"""Holding under load: a bounded queue, a quick no past it, and nothing lost of what was let in."""

import asyncio
import contextlib
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from labsupport import admission, paths
from labsupport.admission import Overloaded, Slots
from labsupport.detection import Box, Detection
from labsupport.monitoring import PredictionLog
from labsupport.serving import create_app, serve


class Gated:
    """A detector that answers when it is let: so tests decide when a slot is free."""

    version = "gated/test"

    def __init__(self):
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)

    def detect(self, image, confidence=0.5):
        self.entered.release()
        assert self.gate.wait(30)
        return [Detection("clock", 0.9, Box(1, 2, 30, 40))]


def clock() -> bytes:
    return (paths.IMAGES / "clock.png").read_bytes()


def post(url: str, **options) -> requests.Response:
    return requests.post(url + "/detect", files={"file": clock()}, timeout=30, **options)


def head(length: int) -> bytes:
    """The start of an upload that says how long it is and then sends nothing."""
    lines = ["POST /detect HTTP/1.1", "Host: 127.0.0.1", "Content-Type: multipart/form-data; boundary=x"]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


@pytest.fixture
def gated(monkeypatch):
    """A server with two threads and room for two to wait."""
    monkeypatch.setattr(admission, "WAITING_PER_SLOT", 1)
    detector = Gated()
    with serve(create_app(detector, slots=1), port=0) as server:
        yield detector, server
        detector.gate.set()


def fill(detector, server, pool, count=4):
    """Bring in as many uploads as there is room for, and wait until the first is worked on."""
    waiting = [pool.submit(post, server.url) for _ in range(count)]
    assert detector.entered.acquire(timeout=10)
    full_within(server, 10)
    return waiting


def full_within(server, seconds):
    """Poll until the server says no to an upload of which it has seen only the headers."""
    until = time.monotonic() + seconds
    while (answer := refusal(server)) is None:
        assert time.monotonic() < until, "the queue never filled"
    return answer


def refusal(server) -> bytes | None:
    """What the server says to an upload whose body never comes, within a moment; None if it waits for the body."""
    with socket.create_connection((server.host, server.port), timeout=10) as connection:
        connection.sendall(head(1_000_000))
        connection.settimeout(0.1)
        try:
            answer = connection.recv(10_000)
        except TimeoutError:
            return None
        connection.settimeout(10)
        while not answer.endswith(b"}") and (more := connection.recv(10_000)):
            answer += more  # the body comes behind the headers, sooner or later
        return answer


def test_past_the_queue_an_upload_is_refused_before_its_body_and_what_was_let_in_is_answered(gated):
    detector, server = gated
    with ThreadPoolExecutor(8) as pool:
        waiting = fill(detector, server, pool)
        answer = full_within(server, 1)
        assert answer.startswith(b"HTTP/1.1 503") and b"retry-after: 1" in answer.lower()
        assert b"the server is busy" in answer
        assert requests.get(server.url + "/health", timeout=30).ok  # only uploads are refused
        detector.gate.set()
        assert [future.result().status_code for future in waiting] == [200] * 4
    assert post(server.url).ok


def test_every_answer_at_four_times_the_capacity_is_right_or_a_503(detector, monkeypatch):
    monkeypatch.setattr(admission, "WAITING_PER_SLOT", 3)
    with serve(create_app(detector), port=0) as server, ThreadPoolExecutor(32) as clients:
        right = post(server.url).json()["detections"]
        answers = list(clients.map(lambda _: post(server.url), range(300)))
    good = [answer.json()["detections"] for answer in answers if answer.status_code == 200]
    refused = [answer.headers["retry-after"] for answer in answers if answer.status_code == 503]
    assert len(good) + len(refused) == 300
    assert good and refused and all(found == right for found in good) and set(refused) == {"1"}


def test_clients_that_vanish_give_their_place_back(gated):
    detector, server = gated
    form = requests.Request("POST", server.url + "/detect", files={"file": clock()}).prepare()
    message = (
        head(len(form.body)).replace(b"boundary=x", form.headers["Content-Type"].split("; ")[1].encode()) + form.body
    )
    for number in range(4):
        with socket.create_connection((server.host, server.port), timeout=10) as connection:
            connection.sendall(message)
            assert number > 1 or detector.entered.acquire(timeout=10)
    full_within(server, 10)
    detector.gate.set()
    until = time.monotonic() + 10
    while (answer := post(server.url)).status_code == 503:
        assert time.monotonic() < until
    assert answer.ok


def test_slow_and_cut_uploads_take_no_place(gated):
    detector, server = gated
    detector.gate.set()
    connections = [socket.create_connection((server.host, server.port), timeout=10) for _ in range(50)]
    for number, connection in enumerate(connections):
        connection.sendall(head(1_000_000) + b"--x\r\n")
        if number % 2:
            connection.close()  # cut off; the others just hang there
    assert post(server.url).ok
    for connection in connections:
        connection.close()


def test_an_upload_that_takes_too_long_is_given_up(monkeypatch, detector):
    monkeypatch.setattr(admission, "BODY_SECONDS", 0.3)
    with (
        serve(create_app(detector), port=0) as server,
        socket.create_connection((server.host, server.port), timeout=10) as connection,
    ):
        connection.sendall(head(1_000_000) + b"--x\r\n")
        assert connection.recv(10_000).startswith(b"HTTP/1.1 408")
        assert post(server.url).ok


def test_a_slot_works_one_after_the_other_and_passes_errors_on():
    async def several():
        slots = Slots(count=1, waiting=1)
        first, second = (asyncio.ensure_future(slots.run(time.strftime, "%Y")) for _ in range(2))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await slots.run(len, "a third")
        assert len(await first) == len(await second) == 4
        with pytest.raises(ZeroDivisionError):
            await slots.run(lambda: 1 / 0)
        assert slots.taken == 0

    asyncio.run(several())


def test_slots_that_nobody_holds_end_their_threads():
    before = threading.active_count()
    slots = Slots(count=3)
    assert threading.active_count() == before + 3
    threads = [thread for thread in threading.enumerate() if thread.name == "slot"][-3:]
    del slots
    for thread in threads:
        thread.join(10)
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [1, 2])
def test_on_sigterm_what_is_under_way_is_answered_and_the_exit_code_is_0(workers, tmp_path):
    """Requests that were accepted when the signal came are all answered, by one worker as by several."""
    command = [sys.executable, "-u", "-m", "labsupport", "serve", "--port", "0", f"--workers={workers}"]
    command += ["--log", f"sqlite:///{tmp_path}/predictions.db"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process,
        ThreadPoolExecutor(8) as clients,
    ):
        url = next(word for line in process.stdout for word in line.split() if word.startswith("http"))
        until = time.monotonic() + 60
        while True:
            try:
                right = post(url).json()["detections"]
                break
            except requests.ConnectionError:
                assert time.monotonic() < until
        answers = [clients.submit(post, url) for _ in range(60)]
        while sum(answer.done() for answer in answers) < 10:
            assert time.monotonic() < until
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
        statuses = []
        for answer in answers:
            try:
                statuses.append(answer.result().status_code)
                assert answer.result().json()["detections"] == right
            except requests.ConnectionError as error:  # not let in any more: refused, not cut off in the middle
                assert "refused" in str(error) or "RemoteDisconnected" in repr(error) or "reset" in str(error)
        assert set(statuses) == {200} and len(statuses) >= 10
    with contextlib.closing(sqlite3.connect(tmp_path / "predictions.db")) as log:
        (worked_on,) = log.execute("SELECT count(*) FROM predictions").fetchone()
    assert worked_on == len(statuses) + 1  # whatever a slot worked on reached the client that asked; one asked first


def test_uploads_that_find_no_place_once_they_have_arrived_are_written_down_too(gated, tmp_path):
    detector, _ = gated
    request = requests.Request("POST", "http://127.0.0.1/detect", files={"file": clock()}).prepare()
    lines = [
        "POST /detect HTTP/1.1",
        "Host: 127.0.0.1",
        *(f"{name}: {value}" for name, value in request.headers.items()),
    ]
    message = "\r\n".join([*lines, "", ""]).encode() + request.body
    with (
        PredictionLog(f"sqlite:///{tmp_path}/predictions.db") as log,
        serve(create_app(detector, log=log, slots=1), port=0) as server,
        contextlib.ExitStack() as stack,
    ):
        clients = [stack.enter_context(socket.create_connection((server.host, server.port))) for _ in range(9)]
        for client in clients:
            client.sendall(message[:-50])
        while "http_requests_in_progress 10.0" not in requests.get(f"{server.url}/metrics", timeout=5).text:
            pass  # nine uploads that were let in, and this question
        for client in clients:
            client.sendall(message[-50:])
        while len(select.select(clients, [], [], 1)[0]) < 5:
            pass  # five are refused, four have a place
        detector.gate.set()
        codes = [int(client.recv(65536).split()[1]) for client in clients]
        log.flush()
        statuses = log.columns("status")["status"]
    assert sorted(codes) == sorted(statuses) == [200] * 4 + [503] * 5
