"""Connections have an end: a client that sends nothing, reads nothing, or sends crumbs keeps one for a while only.

With TLS, too: the tests with a server run over HTTP and over HTTPS.
"""

import asyncio
import contextlib
import http.client
import logging
import os
import re
import resource
import select
import socket
import ssl
import threading
import time
from random import Random
from types import SimpleNamespace

import pytest
import requests
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect
from uvicorn.server import ServerState

from command import until
from labsupport.protection import connections, once
from labsupport.serving import serve

LARGE = 30_000_000  # bytes of an answer: more than the system takes off our hands
app = FastAPI()
asked: list[str] = []  # the paths of requests for large answers, in their order


@app.get("/")
async def hello() -> str:
    return "hello"


@app.get("/large")
async def large() -> Response:
    asked.append("/large")
    return Response(bytes(LARGE))


@app.post("/read")
async def read(request: Request) -> int:
    return len(await request.body())


@app.get("/slow")
async def slow() -> str:
    await asyncio.sleep(1.5)
    return "slow"


@app.post("/refuse")
async def refuse() -> Response:
    return Response("no", 503)


@pytest.fixture(params=["http", "https"])
def files(request, authority, monkeypatch):
    """The options of a server that speaks HTTP, then those of one that speaks HTTPS, which `requests` trusts."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority / "ca.pem"))
    names = {"certfile": "server.pem", "keyfile": "server.key"} if request.param == "https" else {}
    return {option: authority / name for option, name in names.items()}


@pytest.fixture
def quick(monkeypatch, files):
    """A server whose limits are at most one second: long enough for a handshake, and for a large answer."""
    limits = {"HEAD_SECONDS": 1.0 if files else 0.3, "BODY_SECONDS": 0.3, "ANSWER_SECONDS": 1.0, "CLOSING_SECONDS": 0.3}
    for name, seconds in limits.items():
        monkeypatch.setattr(connections, name, seconds)
    with serve(app, port=0, **files) as server:
        yield server


@pytest.fixture
def usual(files):
    with serve(app, port=0, **files) as server:
        yield server


@contextlib.contextmanager
def connected(server, sent: bytes = b""):
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(socket.create_connection((server.host, server.port), timeout=20))
        if server.url.startswith("https"):
            context = ssl.create_default_context(cafile=os.environ["REQUESTS_CA_BUNDLE"])
            context.maximum_version = ssl.TLSVersion.TLSv1_2  # with 1.3 tickets follow: bytes to read, and no answer
            connection = stack.enter_context(context.wrap_socket(connection, server_hostname=server.host))
        connection.sendall(sent)
        yield connection


def fetched(server, path: str) -> bytes:
    """The body of an answer; nothing if the client itself was too slow for the server's limits, on a busy machine."""
    with contextlib.suppress(requests.RequestException):
        return requests.get(server.url + path, timeout=20).content
    return b""


def head(line: str, *headers: str) -> bytes:
    return "\r\n".join([f"{line} HTTP/1.1", "Host: 127.0.0.1", *headers, "", ""]).encode()


def rest(connection: socket.socket) -> bytes:
    """All that comes until the connection is closed."""
    answer = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while more := connection.recv(1 << 20):
            answer += more
    return answer


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """The status and the body of the next answer, as Python's own library reads it."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, response.read()


CHUNKED = "Transfer-Encoding: chunked"
WAITING = {
    "nothing": b"",
    "half a head": b"GET / HTTP/1.1\r\nHost:",
    "no body": head("POST /read", "Content-Length: 10"),
    "half a body": head("POST /read", "Content-Length: 10") + b"12345",
    "a chunk without an end": head("POST /read", CHUNKED) + b"5\r\n123",
    "half of a second head": head("GET /") + b"GET / HT",
}


@pytest.mark.parametrize("sent", WAITING.values(), ids=WAITING)
def test_who_sends_no_more_loses_the_connection(quick, sent):
    with connected(quick, sent) as connection:
        started = time.monotonic()
        rest(connection)
        assert time.monotonic() - started < 15
        until(lambda: fetched(quick, "/"))


CHUNKS = b"3\r\nabc\r\n0\r\n\r\n"
UPGRADE = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")  # as curl --http2 sends
REQUESTS = {  # what a client sends -> the status of the answer, and the answer if there is one
    "lines without a carriage return": (head("GET /").replace(b"\r\n", b"\n"), 400, b""),
    "a line that goes on in the next one": (head("GET /", "X: a\r\n b"), 400, b""),
    "a bare line end after Upgrade": (head("POST /read", "Upgrade: x\nContent-Length: 3") + b"abc", 400, b""),
    "a return after Upgrade": (head("GET /", "Upgrade: x\rContent-Length: 3"), 400, b""),
    "Upgrade before the request": (b"Upgrade: x\r\n" + head("GET /"), 400, b""),
    "CONNECT": (head("CONNECT 127.0.0.1:80"), 400, b""),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400, b""),
    "two hosts": (head("GET /", "Host: 127.0.0.1"), 400, b""),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400, b""),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, b""),
    "TLS inside": (b"\x16\x03\x01\x02\x00", 400, b""),
    "two lengths": (head("POST /read", "Content-Length: 3", "Content-Length: 4") + b"abc", 400, b""),
    "a length, and chunks": (head("POST /read", "Content-Length: 3", CHUNKED) + CHUNKS, 400, b""),
    "a coding that is not read": (head("POST /read", "Transfer-Encoding: gzip, chunked") + CHUNKS, 400, b""),
    "a chunk of no length": (head("POST /read", CHUNKED) + b"-1\r\nabc\r\n0\r\n\r\n", 400, b""),
    "an empty line before": (b"\r\n" + head("GET /"), 200, b'"hello"'),
    "empty lines before": (b"\r\n\r\n\n\n" + head("GET /"), 200, b'"hello"'),
    "a trailer": (head("POST /read", CHUNKED) + CHUNKS[:-2] + b"X: y\r\n\r\n", 200, b"3"),
    "HTTP/1.0": (b"GET / HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n", 200, b'"hello"'),
    "chunks": (head("POST /read", CHUNKED) + CHUNKS, 200, b"3"),
    "a body of line ends": (head("POST /read", CHUNKED) + b"400\r\n" + b"\n" * 1024 + b"\r\n0\r\n\r\n", 200, b"1024"),
    "a wish for HTTP/2": (head("POST /read", *UPGRADE, "Content-Length: 3") + b"abc", 200, b"3"),
    "more than the body": (head("POST /read", "Content-Length: 3") + b"abc\0\0", 200, b"3"),
    "a request after the body": (head("POST /read", "Content-Length: 3") + b"abc" + head("GET /"), 200, b"3"),
}


@pytest.mark.parametrize("bytewise", [False, True], ids=["whole", "bytewise"])
@pytest.mark.parametrize(("sent", "status", "body"), REQUESTS.values(), ids=REQUESTS)
def test_what_is_no_request_is_refused_and_no_body_is_lost(usual, sent, status, body, bytewise):
    """Behind a proxy that reads such bytes in another way, a part of one request could pass as another one."""
    with connected(usual) as connection:
        for piece in [sent[place : place + 1] for place in range(len(sent))] if bytewise else [sent]:
            with contextlib.suppress(ConnectionError, ssl.SSLError):  # it answers before it has read all
                connection.sendall(piece)
        found, text = answer(connection)
        assert found == status and text.endswith(body)


def test_who_asks_again_without_reading_the_last_answer_loses_the_connection(quick):
    """The transport reports only once that nothing is read. Such connections kept everybody else out."""
    with connected(quick, head("GET /large")) as connection:
        until(
            lambda: [one for one in quick._server.server_state.connections if one.cycle and one.cycle.response_complete]
        )
        connection.sendall(head("GET /"))
        until(lambda: not quick._server.server_state.connections, 20)


def test_what_follows_a_request_does_not_end_the_time_of_its_answer(quick):
    with connected(quick, head("GET /slow") + b"\r\n") as connection:
        assert answer(connection) == (200, b'"slow"')


def test_a_trailer_that_closes_the_connection_does(usual):
    """llhttp reads nothing after it: the next request would get no answer."""
    with connected(usual, head("POST /read", CHUNKED) + CHUNKS[:-2] + b"Connection: close\r\n\r\n") as connection:
        assert b"connection: close" in rest(connection)


def test_a_trailer_is_not_kept_whatever_its_length(usual):
    with connected(usual, head("POST /read", CHUNKED) + CHUNKS[:-2] + b"X: ") as connection:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            for _ in range(1_000):  # more than is read at once
                connection.sendall(b"y" * 1_000)
        assert answer(connection)[0] == 400


@pytest.mark.parametrize("sent", [b"\n\nG", b"\r\n\r\nGET / HTTP/1.1\r\n", b"\n" * 10])
def test_empty_lines_before_a_request_stop_nobody_else(usual, sent):
    with connected(usual, sent):
        assert requests.get(usual.url, timeout=20).json() == "hello"


def test_a_head_that_has_begun_outlasts_the_wait_for_the_next_request(monkeypatch):
    config = connections.Config.__init__
    monkeypatch.setattr(
        connections.Config,
        "__init__",
        lambda self, *a, **k: (config(self, *a, **k), setattr(self, "timeout_keep_alive", 0.3))[0],
    )
    with serve(app, port=0) as server, connected(server, head("GET /")) as connection:
        assert answer(connection)[0] == 200
        connection.sendall(b"GET / HT")
        assert not select.select([connection], [], [], 0.8)[0]  # it is not closed
        connection.sendall(head("GET /")[8:])
        assert answer(connection)[0] == 200


@pytest.mark.parametrize("crumb", [b"a", b"a: b\r\n"], ids=["bytes", "lines"])
def test_a_head_that_comes_in_crumbs_ends_as_well(quick, crumb):
    """Each of them used to start the clock anew."""
    with connected(quick, b"GET / HTTP/1.1\r\n") as connection:
        until(lambda: cut(connection, crumb), 15)


def cut(connection: socket.socket, crumb: bytes) -> bool:
    try:
        connection.sendall(crumb)
        return bool(select.select([connection], [], [], 0.02)[0]) and not connection.recv(1000)
    except (ConnectionError, ssl.SSLError):
        return True


def test_who_does_not_read_a_large_answer_loses_it_and_who_reads_gets_all_of_it(quick):
    with connected(quick, head("GET /large")) as idle:
        until(lambda: len(fetched(quick, "/large")) == LARGE)
        until(lambda: not quick._server.server_state.connections, 15)
        assert len(rest(idle)) < LARGE


def test_a_large_answer_is_whole_although_the_connection_closes_after_it(usual):
    before = len(asked)
    with connected(usual, head("GET /large", "Connection: close")) as connection:
        until(lambda: len(asked) > before)
        (server_side,) = usual._server.server_state.connections
        until(server_side.transport.is_closing)  # the server has written all of it, and most was not sent yet
        status, body = answer(connection)
    assert status == 200 and body == bytes(LARGE)


@pytest.mark.parametrize("sent", [head("GET /large"), head("GET /large", "Connection: close")])
def test_no_connection_and_no_memory_is_left_behind(quick, sent):
    before = len(asked)
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(connected(quick, sent))
        until(lambda: len(asked) == before + 5, 15)
        until(lambda: not quick._server.server_state.connections, 15)
        assert not quick._server.server_state.tasks


def test_a_client_that_is_refused_while_it_sends_20_mb_reads_the_answer(usual):
    for _ in range(5):
        answer = requests.post(usual.url + "/refuse", data=bytes(20_000_000), timeout=20)
        assert (answer.status_code, answer.text) == (503, "no")


def test_a_body_without_an_end_is_cut_after_the_refusal(quick):
    with connected(quick, head("POST /refuse", CHUNKED)) as connection:
        piece = b"10000\r\n" + bytes(65_536) + b"\r\n"
        until(lambda: cut(connection, piece) and cut(connection, piece), 15)


@pytest.mark.parametrize(
    "sent",
    [
        head("GET /", *["a: b"] * 200),
        head("GET /", "a: " + "b" * 20_000),
        head("GET /" + "a" * 1_000_000),
        head("GET /").replace(b"\r\n", b"\n" * 1)[:-1] + b"a: b\n" * 200 + b"\n",
    ],
    ids=["lines", "bytes", "the address", "bare line feeds"],
)
@pytest.mark.parametrize("step", [1 << 20, 1_000])
def test_a_head_has_a_limit_in_bytes_and_in_lines(usual, sent, step):
    with connected(usual) as connection:
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(sent), step):
                connection.sendall(sent[start : start + step])
        assert answer(connection)[0] == 431


def test_a_body_that_follows_its_head_at_once_is_not_taken_for_the_head(usual):
    """JSON may have a great many lines, and more bytes than a head."""
    body = b'{"a":\r\n' * 10_000
    sent = head("POST /read", f"Content-Length: {len(body)}", "Connection: close") + body
    for step in (1 << 20, 41, 43):
        with connected(usual) as connection:
            for start in range(0, 500, step):
                connection.sendall(sent[start : min(500, start + step)] if step < 500 else sent)
            connection.sendall(sent[500:] if step < 500 else b"")
            assert rest(connection).endswith(b"\r\n\r\n%d" % len(body))


@pytest.mark.parametrize("size", [1, 5])
def test_a_body_cut_into_crumbs_is_refused_and_one_cut_into_pieces_is_not(usual, size):
    crumbs = b"%d\r\n%s\r\n" % (size, b"x" * size) * 30_000
    with connected(usual, head("POST /read", CHUNKED)) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(crumbs)
        status, body = answer(connection)
    assert status == 400 and b"send it in larger ones" in body
    pieces = iter([b"x" * 1_000] * 1_000)  # requests cuts there
    assert requests.post(usual.url + "/read", data=pieces, timeout=20).json() == 1_000_000


def test_of_requests_that_are_sent_at_once_the_first_is_answered(usual):
    """What comes after it never costs anything: it may be a flood."""
    flood = head("GET /") * (100 if usual.url.startswith("https") else 5_000)  # what is read at once
    with connected(usual, flood) as connection:
        answer = rest(connection)
    assert answer.count(b"HTTP/1.1 200") == 1 and answer.endswith(b'"hello"')
    with connected(usual, head("POST /read", "Content-Length: 3") + b"abc" + flood) as connection:
        assert rest(connection).count(b"HTTP/1.1 200") == 1


def test_requests_one_after_the_other_share_a_connection(usual):
    with connected(usual) as connection:
        for _ in range(3):
            connection.sendall(head("GET /"))
            assert answer(connection) == (200, b'"hello"')
        assert len(usual._server.server_state.connections) == 1


def test_past_the_most_connections_whoever_kept_us_waiting_for_longest_makes_room(usual, monkeypatch):
    monkeypatch.setattr(connections, "MOST", 10)
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connected(usual)) for _ in range(30)]
        until(lambda: len(usual._server.server_state.connections) == 10)
        for _ in range(20):
            assert requests.get(usual.url, timeout=20).ok
        assert rest(idle[0]) == b""
        assert not select.select(idle[-1:], [], [], 0)[0] or rest(idle[-1]) == b""


def test_whoever_waits_for_us_is_not_closed_for_a_new_one(monkeypatch, files):
    monkeypatch.setattr(connections, "MOST", 4)
    gate, slow = threading.Event(), FastAPI()
    entered = threading.Semaphore(0)

    @slow.get("/slow")
    def wait() -> str:
        entered.release()
        assert gate.wait(30)
        return "done"

    with serve(slow, port=0, **files) as server, contextlib.ExitStack() as stack:
        working = [stack.enter_context(connected(server, head("GET /slow", "Connection: close"))) for _ in range(3)]
        for _ in working:
            assert entered.acquire(timeout=10)
        for _ in range(20):
            stack.enter_context(connected(server))
        gate.set()
        assert all(b"done" in rest(connection) for connection in working)


FILES = {256: 64, 1024: 320, 1 << 20: 1000, resource.RLIM_INFINITY: 1000, 1: 8}


@pytest.mark.parametrize(("files", "most"), FILES.items())
def test_there_are_fewer_connections_where_few_files_may_be_open(files, most, monkeypatch):
    monkeypatch.setattr(connections.resource, "getrlimit", lambda kind: (files, files))
    assert connections.most() == most


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("asyncio", "socket.accept() out of system resource\nsocket: <socket.socket fd={}>"),
        ("uvicorn.error", "Invalid HTTP request received."),
        (
            "labsupport.protection.connections",
            "more than %d connections: those that keep us waiting for longest are closed",
        ),
    ],
)
def test_what_anybody_can_cause_at_will_is_logged_once_a_minute(name, text, caplog, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(once, "time", SimpleNamespace(monotonic=lambda: now[0]))
    logger, arguments = logging.getLogger(name), (5,) if "%d" in text else ()
    (rare,) = (one for one in logger.filters if isinstance(one, once.Once))
    monkeypatch.setattr(rare, "_logged", {})
    for number in range(1_000):
        logger.warning(text.format(number), *arguments, exc_info=name == "asyncio" and OSError("no file is left"))
        logger.warning("something else")
    now[0] += 61
    logger.warning(text.format(0), *arguments)
    assert sum(record.name == name and text[:9] in record.getMessage() for record in caplog.records) == 2


def test_failures_of_an_app_are_logged_each_time(caplog):
    for _ in range(3):
        logging.getLogger("uvicorn.error").error("Exception in ASGI application\n", exc_info=OSError("disk"))
    assert len(caplog.records) == 3


WHOLE = [head("GET /"), head("POST /read", "Content-Length: 3") + b"abc", head("POST /read", CHUNKED) + CHUNKS]
PIECES = [
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\n\n",
    b"\r",
    b": ",
    b" ",
    b"\0",
    b"\x16",
    b"abc",
    b"0\r\n\r\n",
    b"0\r\nX: y\r\n\r\n",
]
PIECES += [b"Upgrade: x\r\n", b"Expect: 100-continue\r\n", b"HTTP/1.0", b"CONNECT ", b"x" * 20_000, *WHOLE]


class Pipe(asyncio.Transport):
    """What a connection writes to, without a network."""

    closed = ended = False

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()

    def write(self, data) -> None:
        assert not self.ended
        self.written += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def abort(self) -> None:
        self.closed = True

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


@pytest.mark.parametrize("sent", [b"1\r\na\r\n" * 1_100 + b"zz\r\n", b"zz\r\n"], ids=["for two reasons", "at once"])
def test_a_body_that_is_refused_gets_one_answer_and_no_traceback(sent, caplog):
    async def refused() -> bytes:
        config = connections.Config(app, None)
        config.load()
        connection, pipe = connections.Connection(config=config, server_state=ServerState(), app_state={}), Pipe()
        connection.connection_made(pipe)
        connection.data_received(head("POST /read", CHUNKED, "Expect: 100-continue") + sent)
        for _ in range(50):
            await asyncio.sleep(0)
        connection.connection_lost(None)
        return bytes(pipe.written)

    answers = asyncio.run(refused())
    assert len(re.findall(rb"HTTP/1\.1 \d", answers)) == 1 and answers.startswith(b"HTTP/1.1 400")
    assert not [record for record in caplog.records if record.exc_info and record.exc_info[0] is not ClientDisconnect]


def test_who_reads_the_last_answer_may_wait_for_the_next_one(quick):
    with connected(quick, head("GET /large")) as connection:
        until(
            lambda: [one for one in quick._server.server_state.connections if one.cycle and one.cycle.response_complete]
        )
        connection.sendall(head("GET /slow"))
        first, second = http.client.HTTPResponse(connection), http.client.HTTPResponse(connection)
        first.begin()
        assert len(first.read()) == LARGE
        second.begin()
        assert second.read() == b'"slow"'


def test_the_first_byte_of_the_first_head_does_not_start_its_time_anew():
    async def first_byte() -> tuple[float, float]:
        config = connections.Config(app, None)
        config.load()
        connection = connections.Connection(config=config, server_state=ServerState(), app_state={})
        connection.connection_made(Pipe())
        before = connection._timer.when()
        await asyncio.sleep(0.01)
        connection.data_received(b"G")
        after = connection._timer.when()
        connection.connection_lost(None)
        return before, after

    before, after = asyncio.run(first_byte())
    assert before == after


def test_whatever_comes_is_read_once_and_leaves_nothing(monkeypatch):
    """Damaged requests in pieces: each call comes back, and each answer is one of the app's or an error.

    Two empty lines before a request once kept the event loop busy for ever.
    """
    random, parse, turns = Random(0), connections.Connection._head_received, []

    def counting(connection, data):
        turns.append(data)
        assert len(turns) < 1_000
        return parse(connection, data)

    async def come_and_go(config) -> None:
        state = ServerState()
        connection, pipe = connections.Connection(config=config, server_state=state, app_state={}), Pipe()
        connection.connection_made(pipe)
        sent = b"".join(random.choices(WHOLE, k=random.randint(1, 3)))
        for _ in range(random.randint(0, 3)):
            place = random.randint(0, len(sent))
            sent = sent[:place] + random.choice(PIECES) + sent[place + random.randint(0, 3) :]
        while sent and not pipe.closed:
            turns.clear()
            size = random.choice((1, 2, 3, random.randint(1, 60), len(sent)))
            connection.data_received(sent[:size])
            sent = sent[size:]
            for _ in range(random.choice((0, 20))):
                await asyncio.sleep(0)
        for status in re.findall(rb"HTTP/1\.1 (\d+)", bytes(pipe.written)):
            assert status in (b"100", b"200", b"400", b"404", b"405", b"422", b"431")
        connection.connection_lost(None)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not state.tasks and not state.connections and connection._timer is None

    async def all_of_them() -> None:
        config = connections.Config(app, None)
        config.load()
        for _ in range(2_000):
            await come_and_go(config)

    monkeypatch.setattr(connections.Connection, "_head_received", counting)
    asyncio.run(all_of_them())
