"""A server seen from its clients."""

import concurrent.futures
import io
from types import SimpleNamespace

import numpy as np
import pytest
import requests

from labsupport import admission, client, images, paths
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
    monkeypatch.setattr(admission, "WAITING_PER_SLOT", 1)
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


def test_find_server_knows_ours_and_is_not_fooled(server, monkeypatch):
    assert client.find_server(server.port) == server.url
    monkeypatch.setenv("LAB_PORT", str(server.port))
    assert client.find_server() == server.url
    assert client.find_server(port=1) is None


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


def test_no_server_names_a_path_here(server, monkeypatch, tmp_path):
    with open(paths.IMAGES / "clock.png", "rb") as file:
        response = requests.post(server.url + "/predict", files={"file": file}, timeout=10)
    monkeypatch.setenv("LAB_ROOT", str(tmp_path))
    response.headers["X-Prediction-Id"] = "../../elsewhere"
    assert client.display_image_from_response(response) == tmp_path / "images_with_boxes" / "answer.jpg"
