"""A server seen from its clients."""

import concurrent.futures
import contextlib
import http.server
import io
import json
import math
import os
from types import SimpleNamespace

import numpy as np
import pytest
import requests

from labsupport import background, client, images, loopback, paths
from labsupport.client import Client, ServerError
from labsupport.serving import create_app, serve
from test_admission import Gated, fill


@pytest.fixture
def waits(monkeypatch):
    """How long the client would have waited each time; it does not wait in fact."""
    waited = []
    monkeypatch.setattr(client, "time", SimpleNamespace(sleep=waited.append))
    return waited


@pytest.fixture
def full(monkeypatch):
    """A server whose slots and queue are taken, its detector, and those who wait for that to be let go on."""
    monkeypatch.setattr("labsupport.protection.slots.WAITING_PER_SLOT", 1)
    detector = Gated()
    with serve(create_app(detector, slots=1), port=0) as server, concurrent.futures.ThreadPoolExecutor(8) as pool:
        yield server, detector, fill(detector, server, pool)
        detector.gate.set()


def test_a_client_answers_what_the_detector_behind_the_server_answers(server, detector, pictures):
    remote = Client(server.url)
    for image in pictures.values():
        assert remote.detect(image, confidence=0.3) == detector.detect(image, confidence=0.3)
    assert remote.version == detector.version


def test_a_client_comes_back_to_a_busy_server_when_asked_to(full, pictures, monkeypatch):
    server, detector, waiting = full
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        detector.gate.set()
        concurrent.futures.wait(waiting, timeout=30)

    monkeypatch.setattr(client, "time", SimpleNamespace(sleep=sleep))
    assert [found.label for found in Client(server.url).detect(pictures["clock.png"])] == ["clock"]
    assert len(waits) == 1 and 1 <= waits[0] <= 2


def test_a_client_gives_up_on_a_server_that_stays_busy_and_says_what_it_said(full, waits):
    """With as many bytes as a picture may have: the server refuses while the client is still sending."""
    server, _, _ = full
    noise = np.random.default_rng(1).integers(0, 256, (2500, 2600, 3), np.uint8)
    with pytest.raises(ServerError, match="503: the server is busy: send it again in a second"):
        Client(server.url).detect(noise)
    assert len(set(waits)) == client.TRIES - 1 and all(1 <= wait <= 2 for wait in waits)  # never twice the same


def test_a_client_passes_on_what_the_server_says_at_once(server, pictures, waits, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ServerError, match="503: yolov3 is not installed"):
        Client(server.url, model="yolov3").detect(pictures["clock.png"])
    with pytest.raises(ServerError, match="404"):
        Client(server.url + "/nowhere").detect(pictures["clock.png"])
    assert waits == []


class Elsewhere(http.server.BaseHTTPRequestHandler):
    """A server that remembers what it was asked, and answers as its class says."""

    status, headers_, body, asked = 200, (), b"", ()

    def do_POST(self):
        type(self).asked = (*self.asked, (self.command, self.path))
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(self.status)
        for name, value in self.headers_:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_GET = do_POST

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def elsewhere(**answer):
    """Its URL, and what it was asked so far."""
    handler = type("Handler", (Elsewhere,), {"asked": (), **answer})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = background.start(lambda: server.serve_forever(0.02), "elsewhere")
        yield f"http://127.0.0.1:{server.server_port}", lambda: handler.asked
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_picture_is_never_sent_on_to_where_a_server_points(status, pictures, capsys, monkeypatch):
    with (
        elsewhere() as (other, stolen),
        elsewhere(status=status, headers_=[("Location", f"{other}/x")]) as (url, asked),
    ):
        with pytest.raises(ServerError, match=f"{status}: the server points to {other}/x"):
            Client(url).detect(pictures["clock.png"])
        answer = client.response_from_server(f"{url}/predict", io.BytesIO(b"a picture"))
        assert f"refused: {status}, the server points to {other}/x" in capsys.readouterr().out
        with pytest.raises(ServerError, match=f"points to {other}/x"):
            client.display_image_from_response(answer)
        assert client.find_server(int(url.rpartition(":")[2])) is None
        assert not stolen() and len(asked()) == 3


def start_page(**changed) -> bytes:
    return json.dumps({"message": "The detector is up. Try it", "docs": "/docs"} | changed).encode()


STRANGERS = [start_page(docs="/"), start_page(docs=["/docs"]), start_page(message="Hello"), start_page(message=None)]
STRANGERS += [b'["docs"]', b'"see the docs"', b'{"docs": "/docs"}', b"null"]


@pytest.mark.parametrize("body", STRANGERS)
def test_a_server_of_somebody_else_is_not_found(body):
    with elsewhere(body=body) as (url, _):
        assert client.find_server(int(url.rpartition(":")[2])) is None
    with elsewhere(body=start_page()) as (url, _):
        assert client.find_server(int(url.rpartition(":")[2])) == url


def detected(**changed) -> bytes:
    box = {"left": 0, "top": 0, "right": 9, "bottom": 9}
    one = {"label": "clock", "confidence": 0.9, "box": box} | changed
    return json.dumps({"version": "v", "detections": [one]}).encode()


WRONG = [{"label": 5}, {"label": None}, {"box": None}, {"box": {"left": 0.5, "top": 0, "right": 9, "bottom": 9}}]
WRONG += [{"confidence": confidence} for confidence in ("0.9", None, True, -1, 95, math.nan, math.inf)]
NOT_OURS = [b"", b"<html>", b"5", b"{}", b'{"version": "v", "detections": [1]}', b'{"version": null, "detections": []}']
NOT_OURS += [b'{"version": "v", "detections": {}}', b"[" * 100_000, *(detected(**wrong) for wrong in WRONG)]


@pytest.mark.parametrize("body", NOT_OURS)
def test_what_is_not_the_labs_server_is_said_to_be_none(body, pictures):
    with elsewhere(body=body) as (url, _):
        with pytest.raises(ServerError, match="is not the lab's server"):
            Client(url).detect(pictures["clock.png"])
        assert client.find_server(int(url.rpartition(":")[2])) is None


NO_ADDRESSES = ["127.0.0.1:8000", "localhost", "ftp://x", "", None, 8000, "http://", "http://127.0.0.1:99999"]


@pytest.mark.parametrize("url", [*NO_ADDRESSES, "http://u:secret@h", "http://h:1#x", "http://h:1 /"])
def test_what_is_no_address_is_refused(url):
    says = r"url=.*: give an address such as http://127\.0\.0\.1:8000"
    for call in (Client, lambda url: client.response_from_server(url, io.BytesIO(b"x"))):
        with pytest.raises(ValueError, match=says) as refused:
            call(url)
        assert "secret" not in str(refused.value)


def test_a_query_belongs_to_a_url_of_a_prediction_and_not_to_the_address_of_a_server(server):
    with pytest.raises(ValueError, match=r"url='http://h:1/\?a=1': give an address"):
        Client("http://h:1/?a=1")
    url = f"{server.url}/detect?confidence=0.9"
    with open(paths.IMAGES / "clock.png", "rb") as file:
        assert client.response_from_server(url, file, verbose=False).ok


@pytest.mark.parametrize("model", [None, "", 5])
def test_a_client_names_its_model(model):
    with pytest.raises(ValueError, match=r"model=.*: give text"):
        Client("http://127.0.0.1:8000", model)


@pytest.mark.parametrize("confidence", [None, "0.5", -0.1, 50, math.nan, True])
def test_a_confidence_is_checked_before_anything_is_sent(confidence, pictures):
    with elsewhere() as (url, asked):
        with pytest.raises(ValueError, match=r"confidence=.*: give a number from 0 to 1"):
            Client(url).detect(pictures["clock.png"], confidence=confidence)
        assert not asked()


@pytest.fixture
def proxied(monkeypatch):
    """A proxy that the environment names for everything; gives what it was asked."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "lab.example")  # so that what is changed is undone
        monkeypatch.delenv(name)
    with elsewhere(body=b"from the proxy") as (url, asked):
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, url)
        yield asked


def test_loopback_never_goes_through_a_proxy(proxied, server, pictures):
    assert client.find_server(server.port) == server.url
    for url in (server.url, server.url.replace("127.0.0.1", "localhost")):
        assert [found.label for found in Client(url).detect(pictures["clock.png"])] == ["clock"]
    with (paths.IMAGES / "clock.png").open("rb") as file:
        assert client.response_from_server(server.url + "/detect", file).ok
    assert not proxied()


def test_who_serves_here_asks_here_without_a_proxy_and_elsewhere_with_it(proxied):
    with serve(create_app({}), port=0) as server:
        assert requests.get(server.url + "/health", timeout=10).json() == {"status": "alive"}  # as a lesson's cell does
    assert requests.get("http://lab.invalid/", timeout=10).text == "from the proxy"
    assert client.response_from_server("http://lab.invalid/predict", io.BytesIO(b"x"), verbose=False).ok
    assert [path for _, path in proxied()] == ["http://lab.invalid/", "http://lab.invalid/predict"]


@pytest.mark.parametrize(
    "before, after",
    [
        ("", "localhost,127.0.0.1,::1"),
        ("lab.example, .intra", "lab.example,.intra,localhost,127.0.0.1,::1"),
        ("127.0.0.1", "127.0.0.1,localhost,::1"),
        ("*", "*"),
    ],
)
def test_who_was_to_be_asked_without_a_proxy_before_still_is(before, after, monkeypatch):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, before)
    loopback.ask_directly()
    loopback.ask_directly()
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == after


def test_find_server_knows_ours_and_is_not_fooled(server, monkeypatch):
    assert client.find_server(server.port) == server.url
    monkeypatch.setenv("LAB_PORT", str(server.port))
    assert client.find_server() == server.url
    assert client.find_server(port=1) is None
    for port in ("8000", -1, 65_536, 1.5):
        with pytest.raises(ValueError, match="port="):
            client.find_server(port)


def test_a_file_that_was_read_before_is_sent_from_its_beginning(server):
    with open(paths.IMAGES / "clock.png", "rb") as file:
        answers = [client.response_from_server(server.url + "/predict", file) for _ in range(2)]
    assert answers[0].status_code == 200 and answers[0].content == answers[1].content
    with open(paths.IMAGES / "clock.png", "rb") as file:
        read, write = os.pipe()  # which has no beginning to return to
        with open(read, "rb") as piped, open(write, "wb", buffering=0) as into:
            background.start(lambda: (into.write(file.read()), into.close()), "pipe")
            assert client.response_from_server(server.url + "/predict", piped).ok


def not_a_picture(kind, tmp_path):
    path = tmp_path / "picture.jpg"
    path.write_bytes(b"" if kind == "empty" else b"\xff\xd8\xff")
    if kind in ("a path", "bytes", "nothing"):
        return {"a path": path, "bytes": b"a picture", "nothing": None}[kind]
    file = path.open({"text": "r", "writing": "ab"}.get(kind, "rb"))
    if kind == "closed":
        file.close()
    return file


@pytest.mark.parametrize(
    "kind, says",
    [
        ("empty", "is empty: give a file that holds a picture"),
        ("closed", "closed file"),
        ("text", "is open as text"),
        ("writing", "read"),
        ("a path", "give a file opened for reading bytes"),
        ("bytes", "give a file opened for reading bytes"),
        ("nothing", "None: give a file opened"),
    ],
)
def test_what_is_no_open_picture_is_refused_before_anything_is_sent(kind, says, tmp_path):
    file = not_a_picture(kind, tmp_path)
    with pytest.raises(ValueError, match=f"image_file=.*{says}"):
        client.response_from_server("http://127.0.0.1:9/predict", file)
    if hasattr(file, "close"):
        file.close()


def test_response_from_server_says_how_it_went(server, capsys):
    url = server.url + "/predict?model=yolov3-tiny"
    with open(paths.IMAGES / "clock.png", "rb") as file:
        assert client.response_from_server(url, file).ok
    assert "answered: 200" in capsys.readouterr().out
    assert client.response_from_server(url, io.BytesIO(b"no picture")).status_code == 415
    assert "refused: 415, not a JPEG or PNG picture" in capsys.readouterr().out
    client.response_from_server(url, io.BytesIO(b"no picture"), verbose=False)
    assert capsys.readouterr().out == ""


def test_display_saves_the_picture_and_refuses_what_is_none(server, monkeypatch, tmp_path):
    with open(paths.IMAGES / "clock.png", "rb") as file:
        response = requests.post(server.url + "/predict", files={"file": file}, timeout=10)
    monkeypatch.setenv("LAB_ROOT", str(tmp_path))
    target = client.display_image_from_response(response)
    assert target == tmp_path / "images_with_boxes" / f"{response.headers['x-prediction-id']}.jpg"
    assert target.read_bytes() == response.content
    with pytest.raises(ServerError, match="415"):
        client.display_image_from_response(requests.post(server.url + "/predict", files={"file": b"x"}, timeout=10))
    with pytest.raises(images.UnsupportedImage):
        client.display_image_from_response(requests.get(server.url + "/health", timeout=10))
    assert len(list(target.parent.iterdir())) == 1


@pytest.mark.parametrize("id", [None, "clock", "x" * 5000, "a" * 32])
def test_an_answer_takes_the_place_of_no_other_picture(id, monkeypatch, tmp_path):
    monkeypatch.setenv("LAB_ROOT", str(tmp_path))
    stem = id if id == "a" * 32 else "answer"
    mine = {tmp_path / "images_with_boxes" / f"{name}.jpg": name.encode() for name in (stem, "clock", f"{stem}_2")}
    response = requests.Response()
    response.status_code, response._content = 200, images.encode(np.zeros((2, 3, 3), np.uint8))
    response.headers.update({"X-Prediction-Id": id} if id else {})
    (tmp_path / "images_with_boxes").mkdir()
    for path, content in mine.items():
        path.write_bytes(content)
    for _ in range(2):  # the same answer again is the same file
        assert client.display_image_from_response(response) == tmp_path / "images_with_boxes" / f"{stem}_3.jpg"
    assert {path: path.read_bytes() for path in mine} == mine


def test_no_server_names_a_path_here(server, monkeypatch, tmp_path):
    with open(paths.IMAGES / "clock.png", "rb") as file:
        response = requests.post(server.url + "/predict", files={"file": file}, timeout=10)
    monkeypatch.setenv("LAB_ROOT", str(tmp_path))
    response.headers["X-Prediction-Id"] = "../../elsewhere"
    assert client.display_image_from_response(response) == tmp_path / "images_with_boxes" / "answer.jpg"
