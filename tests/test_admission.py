"""Holding under load: a bounded queue, a quick no past it, and nothing lost of what was let in."""

import asyncio
import contextlib
import json
import logging
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from pydantic import TypeAdapter, ValidationError

from command import until
from hostile_images import apart, cost
from labsupport import paths
from labsupport.detection import Box, Detection
from labsupport.log import PredictionLog
from labsupport.protection import (
    COPIES,
    LEAST,
    Admission,
    Budget,
    Overloaded,
    Rule,
    Slots,
    WrongTokens,
    admission,
    memory,
)
from labsupport.protection.memory import LARGEST, SMALL
from labsupport.serving import create_app, serve
from labsupport.serving.app import RULES
from labsupport.serving.schemas import Records

TOKEN = "0123456789abcdef0123"


class Gated:
    """A detector that answers when it is let: so tests decide when a slot is free."""

    version = "gated/test"

    def __init__(self):
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)

    def detect(self, image, confidence=0.5):
        self.entered.release()
        assert self.gate.wait(120)
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
    """A server with three threads and room for three to wait."""
    monkeypatch.setattr("labsupport.protection.slots.WAITING_PER_SLOT", 1)
    detector = Gated()
    with serve(create_app(detector, slots=1), port=0) as server:
        yield detector, server
        detector.gate.set()


def fill(detector, server, pool, count=6):
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
        assert [future.result().status_code for future in waiting] == [200] * 6
    assert post(server.url).ok


def test_every_answer_at_four_times_the_capacity_is_right_or_a_503(detector, monkeypatch):
    monkeypatch.setattr("labsupport.protection.slots.WAITING_PER_SLOT", 3)
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
    for number in range(6):
        with socket.create_connection((server.host, server.port), timeout=10) as connection:
            connection.sendall(message)
            assert number > 2 or detector.entered.acquire(timeout=10)
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
        while len(select.select(clients, [], [], 1)[0]) < 3:
            pass  # three are refused, six have a place
        detector.gate.set()
        codes = [int(client.recv(65536).split()[1]) for client in clients]
        log.flush()
        statuses = log.columns("status")["status"]
    assert sorted(codes) == sorted(statuses) == [200] * 6 + [503] * 3


# slots


@pytest.mark.parametrize(
    "raised",
    [SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, asyncio.CancelledError, MemoryError, OSError],
)
def test_a_slot_survives_whatever_its_work_raises_and_the_place_comes_back(raised):
    def work():
        raise raised("no more")

    async def several():
        slots = Slots(count=1)
        ordinary = issubclass(raised, Exception) and raised is not StopIteration
        for _ in range(3):
            with pytest.raises(raised if ordinary else RuntimeError) as error:
                await asyncio.wait_for(slots.run(work, need=100), 10)
            assert ordinary or isinstance(error.value.__cause__, raised)
        assert (slots.taken, slots.budget.taken) == (0, 0)
        assert await asyncio.wait_for(slots.run(len, "abc"), 10) == 3

    asyncio.run(several())


def test_a_place_comes_back_even_if_the_loop_that_asked_is_gone():
    slots, gate = Slots(count=1), threading.Event()

    async def ask_and_leave():
        asked = asyncio.ensure_future(slots.run(gate.wait, 10, need=100))
        await asyncio.sleep(0)
        return asked  # which is cancelled at the end of the loop

    asyncio.run(ask_and_leave())
    assert slots.taken == 1
    gate.set()
    until(lambda: slots.taken == 0)
    assert slots.budget.taken == 0
    assert asyncio.run(slots.run(len, "abc")) == 3


def test_large_pictures_wait_for_memory_and_small_ones_pass_them():
    """There is memory for one of the largest pictures, and three slots."""
    slots, gates = Slots(count=3, budget=Budget(LARGEST + SMALL)), [threading.Event() for _ in range(3)]
    begun = []

    def work(number):
        begun.append(number)
        assert gates[number].wait(30)

    async def several():
        large = [asyncio.ensure_future(slots.run(work, n, need=LARGEST, large=True)) for n in range(3)]
        await asyncio.sleep(0)
        assert await asyncio.wait_for(slots.run(len, "small", need=SMALL), 10) == 5
        assert begun == [0]
        for number in range(3):
            gates[number].set()
            await asyncio.wait_for(large[number], 10)
        assert begun == [0, 1, 2]
        assert slots.budget.taken == 0

    asyncio.run(several())


@pytest.mark.parametrize("count", [4, 10])
def test_waiting_large_uploads_never_fill_the_memory_that_each_of_them_needs(count):
    """Many small files with large pictures in them: their bodies fit, and no picture would fit beside all of them."""
    slots = Slots(count=count, budget=Budget(LEAST))

    async def client(arrived: asyncio.Event) -> str:
        hold = memory.Hold(slots.budget)
        try:
            if not hold.grow(COPIES * 1_990_000):
                return "no memory for the body"
            await arrived.wait()
            return await slots.run(str, "answered", need=LARGEST, large=True)
        except Overloaded:
            return "no place"
        finally:
            hold.set(0)

    async def many() -> set[str]:
        arrived = asyncio.Event()
        clients = [asyncio.ensure_future(client(arrived)) for _ in range(200)]
        await asyncio.sleep(0)
        arrived.set()
        return set(await asyncio.wait_for(asyncio.gather(*clients), 30))

    assert asyncio.run(many()) >= {"answered", "no place"}
    assert slots.budget.taken == 0 and not slots.full_of_large


def test_small_pictures_are_taken_in_the_order_in_which_they_came():
    """Under load each slot that becomes free is the last one. It must not be kept for the smallest picture."""
    slots, gates, taken = Slots(count=2), [threading.Event() for _ in range(2)], list[int]()
    needs = [5, 1, 4, 2, 3]

    async def several():
        busy = [asyncio.ensure_future(slots.run(gate.wait, 30)) for gate in gates]
        await asyncio.sleep(0)
        waiting = [asyncio.ensure_future(slots.run(taken.append, need, need=need)) for need in needs]
        await asyncio.sleep(0)
        gates[0].set()
        await asyncio.wait_for(asyncio.gather(*waiting), 10)
        gates[1].set()
        assert all(await asyncio.gather(*busy))

    asyncio.run(several())
    assert taken == needs


def test_large_pictures_leave_a_slot_and_half_of_the_places_to_small_ones():
    slots, gate = Slots(count=2, waiting=6), threading.Event()

    async def several():
        large = [asyncio.ensure_future(slots.run(gate.wait, 30, large=True)) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await slots.run(len, "a fifth", large=True)
        assert await asyncio.wait_for(slots.run(len, "small"), 10) == 5
        gate.set()
        assert all(await asyncio.gather(*large))

    asyncio.run(several())


def test_memory_in_which_the_largest_picture_would_wait_for_ever_is_refused_when_the_app_is_made():
    with pytest.raises(ValueError, match=f"memory=1: give a whole number of at least {LEAST:,}"):
        create_app(Gated(), memory=1)


# the budget


def test_a_picture_takes_no_more_memory_than_it_is_given():
    with tempfile.TemporaryDirectory() as folder:
        for colours, side in (
            (4, 4_300),
            (4, 1_500),
            (3, 4_900),
        ):  # each in scans of its own: all coefficients are kept
            picture = apart(colours, side)
            (file := Path(folder, "picture")).write_bytes(picture)
            ((_, grown, answer),) = cost(file)
            assert answer == f"{side} x {side}"
            assert grown < memory.memory_needed(picture) + COPIES * len(picture)
    assert memory.memory_needed(apart(3, 5_000)) == LARGEST


@pytest.mark.parametrize("arguments", [{"count": 0}, {"count": -1}, {"count": 1.5}, {"count": 1, "waiting": -1}])
def test_slots_of_no_number_are_not_made(arguments):
    with pytest.raises(ValueError, match=r"=-?[0-9.]+: give a whole number"):
        Slots(**arguments)


def test_bytes_are_given_out_until_they_are_used_up_and_come_back():
    budget, came_back = Budget(100), []
    budget.given_back = lambda: came_back.append(budget.taken)
    assert [budget.take(60), budget.take(41), budget.take(30, leaving=11), budget.take(30, leaving=10)] == [1, 0, 0, 1]
    budget.give(90)
    assert (budget.taken, came_back) == (0, [0])


@pytest.mark.parametrize(
    ("membership", "file", "folder"),
    [
        ("0::/lab/server\n", "memory.max", ""),
        ("5:cpu:/x\n4:memory:/lab/server\n0::/y\n", "memory.limit_in_bytes", "memory"),
    ],
    ids=["v2", "v1"],
)
def test_the_limit_of_the_container_is_read_in_its_group_and_in_those_above(membership, file, folder, tmp_path):
    (tmp_path / "cgroup").write_text(membership)
    own = tmp_path / "fs" / folder / "lab" / "server"
    own.mkdir(parents=True)
    (own / file).write_text("max\n" if file == "memory.max" else str(2**63 - 4096))
    (own.parent / file).write_text("1073741824\n")
    limits = list(memory.group_limits(tmp_path / "cgroup", tmp_path / "fs"))
    assert min(limits) == 1 << 30


def test_without_a_limit_a_quarter_of_the_machine_may_be_taken(monkeypatch):
    monkeypatch.setattr(memory, "group_limits", lambda: iter([2**63 - 4096]))
    machine = memory.memory_limit() * 4
    monkeypatch.setattr(memory, "group_limits", lambda: iter([machine // 10]))
    assert memory.memory_limit() == machine // 10


def test_where_the_largest_picture_does_not_fit_a_warning_says_how_much_is_missing(caplog):
    with caplog.at_level(logging.WARNING):
        assert Budget.left(1) == LEAST
    assert "give this server" in caplog.text


# requests, without a server


async def respond(app, method, path, *headers, body=(), reads=True):
    """Return the status, the answer's text, and how many pieces of the body were read. None of `body` may be read unless
    `reads`. A chunked body never ends: after its pieces nothing more comes."""
    pieces, answer, read = list(body), {}, []

    async def receive():
        assert reads, "the body was read"
        read.append(1)
        if len(read) > len(pieces):
            await asyncio.sleep(60)
        more = CHUNKED in headers or len(read) < len(pieces)
        return {"type": "http.request", "body": pieces[len(read) - 1], "more_body": more}

    async def send(message):
        answer["status"] = message.get("status", answer.get("status"))
        answer["body"] = answer.get("body", b"") + message.get("body", b"")

    fields = [(name.lower().encode(), value.encode()) for name, value in headers]
    scope = {"type": "http", "method": method, "path": path, "headers": fields, "query_string": b"", "root_path": ""}
    await app({**scope, "http_version": "1.1", "scheme": "http", "client": ("192.0.2.7", 5)}, receive, send)
    return answer["status"], answer["body"].decode(), len(read)


def ask(app, *arguments, **options):
    return asyncio.run(asyncio.wait_for(respond(app, *arguments, **options), 30))


AS_JSON = ("content-type", "application/json")
BEARER = ("authorization", f"bearer {TOKEN}")
CHUNKED = ("transfer-encoding", "chunked")


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("PUT", "/rollout", [("content-length", "400000000"), AS_JSON], 401),
        ("PUT", "/rollout", [CHUNKED, AS_JSON], 401),
        ("PUT", "/rollout", [("content-length", "400000000"), AS_JSON, BEARER], 413),
        ("POST", "/records", [("content-length", "100"), AS_JSON], 401),
        ("POST", "/records", [("content-length", "2000001"), AS_JSON, BEARER], 413),
        ("POST", "/detect", [("content-length", "100"), ("x-record-id", "0" * 32)], 401),
        ("POST", "/count-cars", [("content-length", "20010001")], 413),
        ("POST", "/feedback", [("content-length", "16001"), AS_JSON], 413),
        ("PUT", "/predict", [("content-length", "400000000")], 413),
        ("POST", "/models", [("content-length", "400000000")], 405),
        ("POST", "/nonsense", [("content-length", "400000000")], 404),
        ("PATCH", "/nonsense", [CHUNKED], 404),
    ],
)
def test_token_and_limit_come_before_the_body_whatever_the_method_and_the_path(
    method, path, headers, status, monkeypatch
):
    monkeypatch.setenv("LAB_TOKEN", TOKEN)
    assert ask(create_app(Gated()), method, path, *headers, reads=False)[0] == status


@pytest.mark.parametrize(
    ("path", "headers", "piece"),
    [
        ("/feedback", [AS_JSON], b"[" * 4_000),
        ("/records", [AS_JSON, BEARER], b"[" * 100_000),
        ("/records", [AS_JSON, BEARER], b"{}," * 10_000),
        ("/detect", [("content-type", "multipart/form-data; boundary=x")], b"--x\r\nContent-Disposition: form-data; n"),
    ],
    ids=["feedback", "records", "many values", "a picture"],
)
def test_a_body_that_does_not_say_how_long_it_is_ends_at_the_limit(path, headers, piece, monkeypatch):
    monkeypatch.setenv("LAB_TOKEN", TOKEN)
    monkeypatch.setitem(RULES, "/detect", Rule(300, predicts=True))
    app = create_app(Gated())
    status, text, read = ask(app, "POST", path, CHUNKED, *headers, body=[piece] * 100)
    assert status in (413, 400 if path == "/detect" else 413), text
    assert read <= 22


def test_every_path_that_takes_a_body_has_a_limit_of_its_own():
    routes = [
        route for route in create_app(Gated()).routes if getattr(route, "methods", set()) & {"POST", "PUT", "PATCH"}
    ]
    assert len(routes) >= 8
    assert {route.path for route in routes} == set(RULES)


def test_every_method_has_a_deadline(monkeypatch):
    monkeypatch.setenv("LAB_TOKEN", TOKEN)
    monkeypatch.setattr(admission, "BODY_SECONDS", 0.05)
    status, text, _ = ask(create_app(Gated()), "PUT", "/rollout", CHUNKED, AS_JSON, BEARER)
    assert (status, "send it again" in text) == (408, True)


def test_a_long_address_is_refused():
    async def long():
        app, sent = Admission(None, Slots(count=1), {}, WrongTokens()), []

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b"a=b&" * 1_000}
        await app(scope, None, send)
        return sent[0]["status"]

    assert asyncio.run(long()) == 414


def test_a_body_that_does_not_fit_into_memory_is_refused_before_it_is_read_and_small_ones_are_let_in():
    refused = []
    app = Admission(
        None, Slots(count=1, budget=Budget(LEAST)), RULES, WrongTokens(), refused=lambda: refused.append("refused")
    )
    large, small = ("content-length", "19500000"), ("content-length", "100000")
    let_in, answered = asyncio.Event(), []

    async def inner(scope, receive, send):
        let_in.set()
        await asyncio.sleep(60)

    async def several():
        app.app = inner
        first = asyncio.ensure_future(respond(app, "POST", "/detect", large, reads=False))
        await asyncio.wait_for(let_in.wait(), 10)
        assert app.slots.budget.taken == 3 * 19_500_000
        status, text, _ = await respond(app, "POST", "/detect", large, reads=False)
        assert (status, "busy" in text, refused) == (503, True, ["refused"])
        let_in.clear()
        second = asyncio.ensure_future(respond(app, "POST", "/detect", small, reads=False))
        await asyncio.wait_for(let_in.wait(), 10)
        for task in (first, second):
            task.cancel()
        answered.extend(await asyncio.gather(first, second, return_exceptions=True))
        assert app.slots.budget.taken == 0

    asyncio.run(several())


def test_a_body_in_chunks_draws_on_the_budget_as_it_grows():
    refused, budget = [], Budget(SMALL + 10_000)
    app = create_app(Gated())
    admitted = Admission(app, Slots(count=1, budget=budget), {"/feedback": Rule(9_000, copies=3)}, WrongTokens())
    admitted.refused = lambda: refused.append("refused")
    status, text, read = ask(admitted, "POST", "/feedback", CHUNKED, AS_JSON, body=[b"[" * 1_000] * 9)
    assert (status, read) == (503, 4), text
    assert (budget.taken, refused) == (0, [])  # no prediction: not one that was refused either


def test_an_answer_counts_as_memory_until_the_client_has_read_it():
    slots, read = Slots(count=1), asyncio.Event()

    async def inner(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(1_000_000)})

    async def several():
        sizes = []

        async def send(message):
            if message["type"] == "http.response.body":
                sizes.append((len(message["body"]), message["more_body"]))
                await read.wait()

        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
        answering = asyncio.ensure_future(Admission(inner, slots, {}, WrongTokens())(scope, None, send))
        while not sizes:
            await asyncio.sleep(0)
        assert slots.budget.taken == 1_000_000
        read.set()
        await answering
        assert slots.budget.taken == 0
        assert sum(size for size, _ in sizes) == 1_000_000
        assert [more for _, more in sizes] == [True] * (len(sizes) - 1) + [False]
        assert max(size for size, _ in sizes) == admission.PIECE

    asyncio.run(several())


# what is wrong with a body


def test_an_error_names_the_first_ten_problems_and_is_short_and_quick():
    names = ["b" * 3_000, *(f"a{number}" for number in range(1_000))]
    body = json.dumps(dict.fromkeys(names, 0), separators=(",", ":")).encode()
    app = create_app(Gated())
    ask(app, "POST", "/feedback", AS_JSON, ("content-length", "2"), body=[b"{}"])
    started = time.process_time()
    status, text, _ = ask(app, "POST", "/feedback", AS_JSON, ("content-length", str(len(body))), body=[body])
    assert time.process_time() - started < 0.5
    problems = json.loads(text)["detail"].split("; ")
    assert (status, len(problems), problems[-1]) == (422, 11, "and 992 more problems")
    assert max(map(len, problems)) == 200 and problems[1].endswith("bbb...")


@pytest.mark.parametrize(
    "body",
    [[{}] * 100, [{"prediction": {"detections": [{}] * 9_999}}] * 100, [{"prediction": {"detections": [0] * 300_000}}]],
    ids=["records", "detections", "too many"],
)
def test_of_many_wrong_records_the_first_is_enough(body):
    with pytest.raises(ValidationError) as error:
        TypeAdapter(Records).validate_python(body)
    assert error.value.error_count() < 30


# what counts as a refusal


def test_only_predictions_wait_and_log_and_prometheus_agree_on_what_was_refused(gated, tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_TOKEN", TOKEN)
    detector, _ = gated
    with (
        PredictionLog(f"sqlite:///{tmp_path}/predictions.db") as log,
        serve(create_app(detector, log=log, slots=1), port=0) as server,
        ThreadPoolExecutor(8) as pool,
    ):
        waiting = fill(detector, server, pool)
        others = {
            ("POST", "/feedback"): 404,
            ("POST", "/records"): 422,
            ("PUT", "/rollout"): 422,
            ("POST", "/nonsense"): 404,
            ("POST", "/health"): 405,
            ("GET", "/detect"): 405,
            ("GET", "/rollout"): 200,
        }
        for (method, path), status in others.items():
            said = {"json": {"prediction_id": "x", "correct": True}} if method != "GET" else {}
            headers = {"Authorization": f"Bearer {TOKEN}"}
            answer = requests.request(method, server.url + path, headers=headers, timeout=30, **said)
            assert answer.status_code == status, (method, path, answer.text)
        assert post(server.url).status_code == 503
        detector.gate.set()
        assert [future.result().status_code for future in waiting] == [200] * 6
        log.flush()
        refused = log.columns("status")["status"].count(503)
        counted = requests.get(server.url + "/metrics", timeout=30).text
    assert f'input_rejected_total{{reason="unavailable"}} {float(refused)}' in counted
