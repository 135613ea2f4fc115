"""One line a request: all of it, and nothing that is nobody's business."""

import io
import json
import logging

import pytest
import requests

from labsupport import paths
from labsupport.log import PredictionLog
from labsupport.serving import access_log, create_app, serve


@pytest.fixture
def lines(monkeypatch):
    """What the console shows from now on; JSON, as where no terminal is."""
    stream, root = io.StringIO(), logging.getLogger()
    before = root.handlers[:], access_log.logger.level
    access_log.show(stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:], _ = before
    access_log.logger.setLevel(before[1])


def test_one_json_line_a_request(detector, lines):
    with serve(create_app(detector, root_path="/serve"), port=0) as server:
        picture = (paths.IMAGES / "clock.png").read_bytes()
        files, headers = {"file": ("my-cat.png", picture)}, {"Authorization": "Bearer of-a-secret"}
        answer = requests.post(server.url + "/predict?confidence=0.24680135", files=files, headers=headers, timeout=10)
        requests.post(server.url + "/predict", files={"file": b"no picture"}, timeout=10)
        requests.get(server.url + "/no/such/my-cat", timeout=10)
    good, refused, unknown = lines()
    assert good["id"] == answer.headers["x-prediction-id"]
    assert (good["method"], good["route"], good["status"], good["version"]) == (
        "POST",
        "/predict",
        200,
        detector.version,
    )
    assert 0 < good["latency"] < 10
    assert (refused["route"], refused["status"], refused["id"]) == ("/predict", 415, None)
    assert (unknown["route"], unknown["status"]) == (None, 404)
    assert not any(word in json.dumps(lines()) for word in ("my-cat", "secret", "0.24680135"))


def test_a_person_gets_a_readable_line():
    record = logging.LogRecord("x", logging.INFO, "", 0, "request", (), None)
    record.fields = {
        "id": "4f0c",
        "method": "POST",
        "route": "/predict",
        "status": 200,
        "latency": 0.0113,
        "version": "v",
    }
    assert access_log.Readable().format(record)[9:] == "POST /predict 200 11.3 ms v 4f0c"


def test_in_a_notebook_nothing_is_printed(server, capfd):
    requests.get(server.url + "/health", timeout=30)
    assert capfd.readouterr() == ("", "")


def test_every_prediction_is_written_down(detector, tmp_path):
    fruits = (paths.IMAGES / "fruits.jpg").read_bytes()
    with PredictionLog(f"sqlite:///{tmp_path}/predictions.db") as log:
        with serve(create_app(detector, log=log), port=0) as server:
            url = server.url
            good = requests.post(
                url + "/detect?confidence=0.2", files={"file": fruits}, headers={"X-Client-Key": "me"}, timeout=10
            )
            requests.post(url + "/predict", files={"file": b"no picture"}, timeout=10)
            requests.post(url + "/predict?confidence=7", files={"file": fruits}, timeout=10)  # refused at the edge
        log.flush()
        frame = log.frame()
    assert list(frame["status"]) == [200, 415]
    row = frame.iloc[0]
    assert (row["id"], row["version"], row["key"], row["bytes"]) == (
        good.json()["id"],
        detector.version,
        "me",
        len(fruits),
    )
    assert [d.label for d in row["detections"]] == [d["label"] for d in good.json()["detections"]]
    assert (row["width"], row["height"]) == (512, 480) and 0 < row["brightness"] < 1
    assert frame.iloc[1]["error"] == "UnsupportedImage"
