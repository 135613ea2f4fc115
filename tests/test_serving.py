"""The API as clients meet it: over real sockets, with good and bad input, from many clients at once."""

import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests
from fastapi import FastAPI
from PIL import Image

from conftest import PICTURES
from labsupport import images, loopback, models, paths
from labsupport.detection import Detector, draw_boxes
from labsupport.protection.security import TokenMissing
from labsupport.serving import PortTaken, create_app, running, serve


def post(server, path="/predict", content=b"", name="picture.jpg", **params):
    return requests.post(server.url + path, params=params, files={"file": (name, content)}, timeout=30)


def picture(name="fruits.jpg") -> bytes:
    return (paths.IMAGES / name).read_bytes()


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 black pixels in a few kB."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(bytes(3_751)) for _ in range(1_000)) + rows.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def gif() -> bytes:
    frames = [Image.fromarray(np.full((20, 20), shade, np.uint8)) for shade in (0, 255)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    return out.getvalue()


@pytest.mark.parametrize("name", ["fruits.jpg", "clock.png", "photographer.png"])
def test_predict_answers_the_picture_with_its_boxes_drawn(server, detector, pictures, name):
    response = post(server, content=picture(name), model="yolov3-tiny")
    assert (response.status_code, response.headers["content-type"]) == (200, "image/jpeg")
    assert response.headers["x-model-version"] == "yolov3-tiny/openvino-f32"
    assert re.fullmatch("[0-9a-f]{32}", response.headers["x-prediction-id"])
    image = pictures[name]
    assert response.content == images.encode(draw_boxes(image, detector.detect(image)))


def test_the_original_labs_client_works_unchanged(server, detector, pictures):
    url = server.url + "/predict" + "?model=yolov3-tiny"
    with open(paths.IMAGES / "street_1.jpg", "rb") as file:
        response = requests.post(url, files={"file": file})
    assert response.status_code == 200
    assert images.decode(response.content).shape == pictures["street_1.jpg"].shape


def test_detect_answers_what_the_detector_found(server, detector, pictures):
    answer = post(server, "/detect", picture("street_2.jpg"), confidence=0.3).json()
    found = detector.detect(pictures["street_2.jpg"], 0.3)
    assert answer["version"] == detector.version
    assert 0 < answer["latency"] < 10
    assert [(d["label"], tuple(d["box"].values())) for d in answer["detections"]] == [(d.label, d.box) for d in found]
    assert list(answer["detections"][0]["box"]) == ["left", "top", "right", "bottom"]


@pytest.mark.parametrize(
    "path, name, label, count",
    [
        ("/count-cars", "street_1.jpg", "car", 1),
        ("/count-apples", "gallery.jpg", "apple", 1),
        ("/count-plants", "clock.png", "pottedplant", 0),
    ],
)
def test_counting(server, path, name, label, count):
    answer = post(server, path, picture(name)).json()
    assert (answer["label"], answer["count"], len(answer["detections"])) == (label, count, count)


def test_status_routes(server):
    def get(path):
        return requests.get(server.url + path, timeout=30).json()

    assert get("/")["docs"] == "/docs"
    assert get("/health") == {"status": "alive"}
    assert get("/ready") == {"status": "ready", "versions": ["yolov3-tiny/openvino-f32"]}
    by_name = {model["name"]: model for model in get("/models")}
    assert by_name["yolov3-tiny"]["installed"] and by_name["yolov3-tiny"]["version"] == "yolov3-tiny/openvino-f32"
    assert by_name["yolov3"]["version"] is None


@pytest.mark.parametrize(
    "name",
    ["X.JPG", "picture.jpeg", "x", "../x.jpg", "/etc/passwd", "a" * 300 + ".jpg", "obst 水果.jpg", 'a"b\r\n.jpg', ""],
)
def test_what_the_client_calls_its_picture_changes_nothing(server, name):
    files = {"file": (name or "x", picture("clock.png"))}
    response = requests.post(server.url + "/predict", files=files, timeout=30)
    assert (response.status_code, response.headers["content-type"]) == (200, "image/jpeg")


@pytest.mark.parametrize(
    "content, status, detail",
    [
        (b"this is a text", 415, "not a JPEG or PNG picture but text: send one of these"),
        (b"", 415, "the file is empty: send a JPEG or PNG picture"),
        (gif(), 415, "not a JPEG or PNG picture but a GIF picture: send one of these"),
        (picture()[:30_000], 415, "the picture is damaged or cut off: send it again, whole"),
        (bomb(), 413, "send at most 25,000,000 pixels"),
        (bytes(20_000_001), 413, "send at most 20,000,000"),
        (bytes(21_000_000), 413, "send a picture of at most 20,000,000 bytes"),
    ],
    ids=["text", "empty", "gif", "truncated", "bomb", "a byte too many", "far too many bytes"],
)
def test_bad_pictures_are_refused_with_what_to_do(server, content, status, detail):
    response = post(server, content=content, name="x.jpg")
    assert response.status_code == status
    assert detail in response.json()["detail"]


def test_a_large_upload_that_does_not_say_so_is_refused_on_the_way(server):
    sent = 0

    def chunks():
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(200):
            sent += 1
            yield bytes(1_000_000)

    headers = {"content-type": "multipart/form-data; boundary=x"}
    try:
        response = requests.post(server.url + "/predict", data=chunks(), headers=headers, timeout=30)
        assert (response.status_code, "20,000,000" in response.json()["detail"]) == (413, True)
    except requests.ConnectionError:  # the server hung up while we were still sending
        assert sent < 100
    assert requests.get(server.url + "/health", timeout=30).ok


@pytest.mark.parametrize(
    "params, detail",
    [
        ({"confidence": 2}, "confidence: Input should be less than or equal to 1"),
        ({"confidence": -0.1}, "confidence: Input should be greater than or equal to 0"),
        ({"confidence": "nan"}, "confidence: "),
        ({"confidence": "high"}, "confidence: Input should be a valid number"),
        ({"model": "yolov9"}, "model: Input should be 'yolov3-tiny' or 'yolov3'"),
        ({"model": ""}, "model: Input should be 'yolov3-tiny' or 'yolov3'"),
    ],
)
def test_bad_parameters_are_refused_with_what_to_do(server, params, detail):
    response = post(server, content=picture("clock.png"), **params)
    assert response.status_code == 422
    assert detail in response.json()["detail"]


def test_no_file_and_two_files_are_refused(server):
    url = server.url + "/predict"
    assert requests.post(url, timeout=5).status_code == 422
    assert "unknown field 'image'" in requests.post(url, files={"image": b"x"}, timeout=30).json()["detail"]
    two = [("file", ("a.jpg", picture("clock.png"))), ("file", ("b.jpg", picture("clock.png")))]
    response = requests.post(url, files=two, timeout=5)
    assert response.status_code == 422 and "send one at a time" in response.json()["detail"]


def test_a_model_that_is_not_installed_is_a_503_and_nothing_answers_in_its_place(server, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))  # whatever is installed on this machine, it is not there
    response = post(server, content=picture("clock.png"), model="yolov3")
    assert (response.status_code, response.headers["retry-after"]) == (503, "60")
    assert "run labsupport models yolov3" in response.json()["detail"]


def test_a_server_without_any_model_does_not_start(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(models.ModelUnavailable, match="run labsupport models yolov3-tiny"):
        create_app()


def test_uploads_are_kept_under_names_of_our_own_and_nowhere_else(detector, monkeypatch, tmp_path):
    lab = tmp_path / "lab"
    lab.mkdir()
    clock, kept = picture("clock.png"), lab / "images_uploaded"
    monkeypatch.setenv("LAB_ROOT", str(lab))
    with serve(create_app(detector, keep_uploads=True), port=0) as server:
        for name in ("x.jpg", "../x.jpg", "../../x.jpg", "/tmp/x.jpg", "x.jpg"):
            response = post(server, content=clock, name=name)
            assert (kept / f"{response.headers['x-prediction-id']}.jpg").read_bytes() == response.content
        post(server, content=b"no picture", name="y.jpg")
    assert len(list(kept.iterdir())) == 5
    assert {path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*.jpg")} == {("lab", "images_uploaded")}


def test_200_requests_from_8_clients_under_one_file_name_each_get_their_own_answer(server, detector, pictures):
    expected = {name: images.encode(draw_boxes(image, detector.detect(image))) for name, image in pictures.items()}
    names = [PICTURES[i % len(PICTURES)] for i in range(200)]
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda name: post(server, content=picture(name), name="same.jpg"), names))
    assert [answer.status_code for answer in answers] == [200] * 200
    assert all(answer.content == expected[name] for answer, name in zip(answers, names, strict=True))
    assert len({answer.headers["x-prediction-id"] for answer in answers}) == 200


def test_the_docs_need_no_internet_directly_and_behind_a_prefix(detector):
    with serve(create_app(detector, root_path="/serve"), port=0) as server:
        for prefix in ("", "/serve"):  # a proxy that strips its prefix, and a direct call; one that does not
            page = requests.get(f"{server.url}{prefix}/docs", timeout=5).text
            links = re.findall(r"""(?:src|href)="([^"]+)"|url: '([^']+)'""", page)
            addresses = [a or b for a, b in links]
            assert len(addresses) >= 3 and all(address.startswith("/serve/") for address in addresses)
            for address in addresses:
                assert requests.get(server.url + address, timeout=30).ok  # direct
                assert requests.get(server.url + address.removeprefix("/serve"), timeout=30).ok  # stripped
        assert post(server, "/serve/predict", picture("clock.png")).ok
        assert requests.get(server.url + "/serve/openapi.json", timeout=30).json()["servers"] == [{"url": "/serve"}]


def test_serving_twice_on_a_port_replaces_the_first(detector):
    first = serve(create_app(detector), port=0)
    second = serve(create_app(detector), port=first.port)
    assert "stopped" in repr(first) and "running" in repr(second)
    assert requests.get(second.url + "/health", timeout=30).ok
    second.stop()
    second.stop()
    with pytest.raises(requests.ConnectionError):
        requests.get(second.url + "/health", timeout=30)


IPV6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
TOKEN = "0123456789abcdef0123"


@pytest.mark.parametrize(
    "first, second",
    [
        ("localhost", "localhost"),
        ("127.0.0.1", "localhost"),
        ("localhost", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("127.0.0.1", "0.0.0.0"),
        pytest.param("::1", "::1", marks=IPV6),
        pytest.param("::", "127.0.0.1", marks=IPV6),
        pytest.param("::", "::1", marks=IPV6),
    ],
)
def test_a_cell_that_serves_can_be_run_again_whatever_its_host_is_called(first, second, monkeypatch):
    monkeypatch.setenv("LAB_TOKEN", TOKEN)
    before = serve(FastAPI(), host=first, port=0)
    with serve(FastAPI(), host=second, port=np.int64(before.port)) as after:
        assert "stopped" in repr(before) and after.port == before.port
        here = after.url.replace("0.0.0.0", "127.0.0.1")
        assert requests.get(here + "/docs", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30).ok
    assert not {before, after} & running._running


def test_only_the_server_in_the_way_is_stopped_and_only_for_one_that_starts(monkeypatch):
    monkeypatch.delenv("LAB_TOKEN", raising=False)
    with serve(FastAPI(), port=0) as one, serve(FastAPI(), port=0) as other:
        assert one.port != other.port
        with pytest.raises(TokenMissing):
            serve(FastAPI(), host="0.0.0.0", port=one.port)
        assert "running" in repr(one)
        serve(FastAPI(), port=one.port).stop()
        assert "stopped" in repr(one) and "running" in repr(other)
        serve(FastAPI(), port=one.port).stop()  # that it was stopped by hand changes nothing


@IPV6
def test_the_url_of_an_ipv6_address_can_be_asked():
    with serve(FastAPI(), host="::1", port=0) as server:
        assert server.url == f"http://[::1]:{server.port}"
        assert requests.get(server.url + "/docs", timeout=30).ok


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({"port": "8000"}, "port='8000': give a whole number from 0 to 65,535"),
        ({"port": 99_999}, "port=99999: give"),
        ({"port": -1}, "port=-1: give"),
        ({"port": True}, "port=True: give"),
        ({"host": "nowhere.invalid", "port": 0}, "host='nowhere.invalid': give an address of this machine"),
        ({"host": "", "port": 0}, "host='': give an address"),
        ({"host": "a..b", "port": 0}, "host='a..b': give an address"),
        ({"host": "a\0b", "port": 0}, "host='a\\x00b': give text without NUL"),
        ({"host": 127, "port": 0}, "host=127: give text"),
        ({"host": "192.0.2.1", "port": 0}, "cannot listen on port 0 of 192.0.2.1"),
    ],
)
def test_where_nobody_can_listen_the_message_says_what_to_give(arguments, says, monkeypatch):
    monkeypatch.setenv("LAB_TOKEN", TOKEN)
    with pytest.raises((ValueError, OSError), match=re.escape(says)):
        serve(FastAPI(), **arguments)


@pytest.mark.parametrize("text", ["", "  "])
def test_a_port_in_the_environment_that_is_empty_is_none(text, monkeypatch):
    monkeypatch.setenv("LAB_PORT", text)
    assert loopback.default_port() == 8000


@pytest.mark.parametrize("text", ["much", "99999", "-1", "80.5", "0x50"])
def test_a_port_in_the_environment_that_is_none_names_the_variable(text, monkeypatch):
    monkeypatch.setenv("LAB_PORT", text)
    with pytest.raises(ValueError, match=f"LAB_PORT='{text}': give a whole number from 0 to 65,535, or unset"):
        serve(FastAPI())


@pytest.mark.parametrize("prefix", ["serve", "/serve", "/serve/", "serve/"])
def test_a_prefix_is_understood_with_and_without_slashes(prefix):
    with serve(create_app({}, root_path=prefix), port=0) as server:
        for path in ("/serve", "/serve/", "/"):
            assert requests.get(server.url + path, timeout=30).json()["docs"] == "/serve/docs"
        for path in ("/health", "/serve/health"):
            assert requests.get(server.url + path, timeout=30).ok
        assert requests.get(server.url + "/serving", timeout=30).status_code == 404


@pytest.mark.parametrize("prefix", ["", "/"])
def test_no_prefix_is_none(prefix):
    with serve(create_app({}, root_path=prefix), port=0) as server:
        assert requests.get(server.url, timeout=30).json()["docs"] == "/docs"


@pytest.mark.parametrize(
    "prefix",
    ["//", "/a//b", "/serve//", "/a b", " /serve", "/a?b=1", "/a#b", "/a/../b", ".", "http://h/serve", "/%20", 5],
)
def test_what_is_no_prefix_is_refused_at_the_start(prefix):
    with pytest.raises(ValueError, match="root_path="):
        create_app({}, root_path=prefix)


def test_a_port_that_another_program_has_is_named_and_a_free_one_offered(detector, server):
    code = "from labsupport.serving import serve\nserve(print, port=int(__import__('sys').argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, str(server.port)], capture_output=True, text=True, timeout=60)
    assert f"port {server.port} on 127.0.0.1 is taken" in done.stderr
    assert "labsupport serve --port 0" in done.stderr and "serve(app, port=0)" in done.stderr
    assert PortTaken.__mro__[1] is OSError


@pytest.mark.parametrize("block", [False, True])
def test_an_app_that_cannot_start_says_so_and_not_that_it_serves(block):
    code = """
import contextlib, fastapi, sys
from labsupport.serving import serve
@contextlib.asynccontextmanager
async def lifespan(app):
    raise RuntimeError("no camera")
    yield
serve(fastapi.FastAPI(lifespan=lifespan), port=0, block=len(sys.argv) > 1)
"""
    command = [sys.executable, "-W", "error", "-c", code, *["block"] * block]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "no camera" in done.stderr and done.returncode and not done.stdout
    assert block or done.stderr.endswith("the server did not start: its own message is above\n")


def test_a_worker_does_not_look_for_garbage_in_what_stays(tmp_path):
    """A look through all that was loaded would stop every request for 60 ms: what there is at the start is exempt."""
    code = """
import gc
from labsupport.serving.worker import app_from_environment
app = app_from_environment()
print(gc.get_freeze_count(), len(gc.get_objects()))
"""
    for folder in ("images", "notebooks"):
        (tmp_path / folder).mkdir()
    options = {"host": "127.0.0.1", "log": "", "precision": "f32", "slots": 1, "workers": 1}
    env = {**os.environ, "LAB_APP_OPTIONS": json.dumps(options), "LAB_ROOT": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, env=env)
    exempt, looked_through = map(int, done.stdout.split()[-2:])
    assert exempt > 50_000 and looked_through < 5_000


def test_serving_in_the_foreground_stops_when_interrupted(detector):
    """`labsupport serve` says where it listens, answers, and on SIGINT or SIGTERM stops with exit code 0."""
    for signal_ in (signal.SIGINT, signal.SIGTERM):
        command = [sys.executable, "-u", "-m", "labsupport", "serve", "--port", "0", "--log", ""]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                url = next(word for line in process.stdout for word in line.split() if word.startswith("http"))
                assert requests.get(url + "/ready", timeout=60).ok  # it loads the model first
                process.send_signal(signal_)
                assert process.wait(timeout=30) == 0
            finally:
                process.kill()


def test_a_small_answer_does_not_wait_for_the_clients_acknowledgement():
    with running._listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({"detectors": "yolov3"}, "detectors='yolov3': give a Detector, a Router, or one for each model's name"),
        ({"detectors": {"yolov3-tiny": None}}, "detectors=None: give a Detector"),
        ({"detectors": {"yolov5": Detector}}, "the name of a model in detectors='yolov5': give one of 'yolov3-tiny'"),
        ({"detectors": {"yolov3": Detector}}, "give a Detector"),
        ({"log": "sqlite:///log.db"}, "log='sqlite:///log.db': give a PredictionLog"),
        ({"keep_uploads": "no"}, "keep_uploads='no': give one of False, True"),
        ({"slots": 0}, "slots=0: give a whole number from 1 to 1,000"),
        ({"slots": -1}, "slots=-1: give"),
        ({"slots": 1.5}, "slots=1.5: give"),
        ({"slots": "2"}, "slots='2': give"),
        ({"slots": 10**30}, "slots=1000000000000000000000000000000: give"),
    ],
)
def test_an_app_of_wrong_arguments_is_not_made_and_the_message_names_the_argument(arguments, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        create_app(**{"detectors": {}, **arguments})


@pytest.mark.parametrize("app", [None, "labsupport.serving:app", Detector.detect.__doc__])
def test_what_is_no_app_is_not_served(app):
    with pytest.raises(ValueError, match=r"app=.*: give an app, as create_app returns it"):
        serve(app, port=0)


@pytest.mark.parametrize("host", ["http://127.0.0.1", "127.0.0.1:8000", "", None])
def test_a_host_that_is_no_address_is_not_told_to_set_a_token(host, monkeypatch):
    monkeypatch.delenv("LAB_TOKEN", raising=False)
    with pytest.raises(ValueError, match=r"host=.*: give"):
        serve(create_app({}), host=host, port=0)


# the start page


@pytest.mark.parametrize("prefix", ["", "/serve"])
def test_a_browser_gets_a_start_page_whose_links_all_answer_and_a_program_gets_json(prefix, detector):
    with serve(create_app(detector, root_path=prefix), port=0) as server:
        page = requests.get(f"{server.url}{prefix}/", headers={"Accept": "text/html,*/*"}, timeout=30)
        assert page.headers["Content-Type"].startswith("text/html") and page.headers["Vary"] == "Accept"
        assert f"{server.url}{prefix}/detect</pre>" in page.text
        links = re.findall(r'<a href="([^"]+)"', page.text)
        assert len(links) == 6 and all(link.startswith(f"{prefix}/") for link in links)
        for link in links:
            assert requests.get(server.url + link, timeout=30).ok, link
        answer = requests.get(f"{server.url}{prefix}/", timeout=30)
        assert answer.json()["docs"] == f"{prefix}/docs"
