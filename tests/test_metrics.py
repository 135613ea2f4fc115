"""What /metrics says, counted beside it: in one process, in several, and when somebody asks for what there is not."""

import contextlib
import os
import random
import re
import socket
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from command import serving, small_uploads, until
from labsupport import images, paths
from labsupport.detection import Box, Detection
from labsupport.log import PredictionLog
from labsupport.monitoring import Metrics
from labsupport.monitoring.counters import FOLDER, PROMISED, SECONDS, UPLOADS
from labsupport.serving import create_app, serve

APPLE = (paths.IMAGES / "apple.jpg").read_bytes()
FEATURES = {"brightness": 0.4, "width": 640, "height": 480}


def read(text: str) -> dict[tuple, float]:
    """Every sample by its name and labels, as prometheus-client's own parser reads it."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize("text", ["", " "])
def test_a_folder_of_metrics_that_is_empty_in_the_environment_is_none(text):
    """The client library decides when it is imported: in a process of its own."""
    code = (
        "from labsupport.monitoring import Metrics; m = Metrics(); m.answered('/x', 'GET', 200, 1.0); print(m.text())"
    )
    env = {**os.environ, FOLDER: text}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=env)
    assert 'http_requests_total{handler="/x",method="GET",status="2xx"} 1.0' in done.stdout, done.stderr


@pytest.mark.parametrize("folder", ["/nowhere", "/etc/passwd"])
def test_a_folder_of_metrics_that_is_none_names_the_variable(folder, monkeypatch):
    monkeypatch.setenv(FOLDER, folder)
    with pytest.raises(ValueError, match=f"{FOLDER}='{folder}': give a folder that can be written"):
        Metrics()


def scraped(url: str) -> dict[tuple, float]:
    answer = requests.get(f"{url}/metrics", timeout=30)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return read(answer.text)


def total(samples: dict[tuple, float], name: str, **labels: str) -> float:
    return sum(value for key, value in samples.items() if key[0] == name and set(labels.items()) <= set(key[1:]))


class Named:
    """A version that finds what it is told to, or fails."""

    def __init__(self, version: str, found=(), error: Exception | None = None) -> None:
        self.version, self.found, self.error = version, list(found), error

    def detect(self, image, confidence=0.5):
        if self.error:
            raise self.error
        return self.found


CAR = Detection("car", 0.8, Box(0, 0, 10, 10))

# counting


def test_many_threads_count_what_they_counted_themselves():
    metrics, lock, expected = Metrics(), threading.Lock(), Counter()

    def work(seed):
        draw, mine = random.Random(seed), Counter()
        for _ in range(300):
            version, found = draw.choice(["a", "b"]), draw.choice([None, [], [CAR], [CAR, CAR]])
            status = draw.choice([415, 500, 503]) if found is None else 200
            metrics.predicted(version, 0.02, found, FEATURES if found is not None else None, status)
            mine["predictions_total", version] += found is not None
            mine["predictions_empty_total", version] += found == []
            mine["prediction_errors_total", version] += status == 500
            mine["detections_per_picture_sum", version] += len(found or [])
            mine["prediction_confidence_ratio_count", version] += bool(found)
        with lock:
            expected.update(mine)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    samples = read(metrics.text())
    assert expected and {key: total(samples, key[0], version=key[1]) for key in expected} == dict(expected)
    assert total(samples, "input_image_pixels_sum") == 640 * 480 * total(samples, "predictions_total")


def test_a_quantile_read_from_the_buckets_is_off_by_an_eighth_at_most():
    assert PROMISED in SECONDS
    draw = np.random.default_rng(0)
    for median in np.geomspace(0.02, 1.5, 12):
        seconds = draw.lognormal(np.log(median), 0.4, 5_000)
        edges = [0.0, *SECONDS]
        below = np.array([(seconds <= edge).sum() for edge in edges])
        rank = 0.95 * len(seconds)
        above = int(np.searchsorted(below, rank))
        share = (rank - below[above - 1]) / (below[above] - below[above - 1])
        guess = edges[above - 1] + share * (edges[above] - edges[above - 1])  # as histogram_quantile does
        assert abs(guess / np.quantile(seconds, 0.95) - 1) < 0.125


def test_what_may_go_wrong_is_there_before_it_does():
    """A series that begins with its first count never rose, as far as rate() can see."""
    samples = read(Metrics().text([("yolov3-tiny", "v1")]))
    for name, labels in [
        ("input_rejected_total", {"reason": "not a picture"}),
        ("input_rejected_total", {"reason": "unavailable"}),
        ("feedback_total", {"verdict": "corrected"}),
        ("predictions_total", {"version": "v1"}),
        ("predictions_empty_total", {"version": "v1"}),
        ("prediction_errors_total", {"version": "v1"}),
        ("inference_duration_seconds_count", {"version": "v1"}),
    ]:
        assert [key for key in samples if key[0] == name and set(labels.items()) <= set(key[1:])], (name, labels)
        assert total(samples, name, **labels) == 0
    assert samples["model_info", ("name", "yolov3-tiny"), ("version", "v1")] == 1


def test_a_version_that_answers_no_more_is_named_no_more():
    metrics = Metrics()
    metrics.text([("yolov3-tiny", "v1")])
    samples = read(metrics.text([("yolov3-tiny", "v2")]))
    assert [dict(key[1:])["version"] for key in samples if key[0] == "model_info"] == ["v2"]


def test_rows_that_the_log_dropped_are_counted_once():
    metrics = Metrics()
    for rows in (0, 3, 3, 2, 5):
        metrics.dropped(rows)
    assert total(read(metrics.text()), "log_rows_dropped_total") == 5


# the server


def test_each_verdict_on_an_answer_counts_once():
    metrics, said = Metrics(), []
    for correct, labels, retry in [
        (None, None, True),
        (True, None, False),
        (False, None, True),
        (False, ["cat"], False),
    ]:
        metrics.said(remark := {"correct": correct, "labels": labels, "retry": retry}, said)
        said.append(remark)
    samples = read(metrics.text())
    counts = [total(samples, "feedback_total", verdict=one) for one in ("retry", "correct", "wrong", "corrected")]
    assert counts == [1, 1, 1, 0] and total(samples, "feedback_answers_total") == 1


def test_what_the_server_counts_is_what_was_asked_and_what_the_log_holds(tmp_path):
    picture = {"file": ("x.jpg", APPLE)}
    with (
        PredictionLog(f"sqlite:///{tmp_path}/log.db") as log,
        serve(create_app(Named("v1", [CAR]), log=log), port=0) as server,
    ):
        ids = [requests.post(server.url + "/detect", files=picture).json()["id"] for _ in range(3)]
        requests.post(server.url + "/predict", files=picture)
        requests.post(server.url + "/predict", files={"file": ("x.jpg", b"no picture")})
        requests.post(server.url + "/predict?confidence=7", files=picture)
        requests.post(server.url + "/predict?model=yolov3", files=picture)
        requests.post(server.url + "/feedback", json={"prediction_id": ids[0], "labels": ["cat"]})
        for _ in range(3):  # a double click is no second answer
            requests.post(server.url + "/feedback", json={"prediction_id": ids[1], "correct": False, "retry": True})
        requests.post(server.url + "/feedback", json={"prediction_id": ids[2]})
        samples = scraped(server.url)
        log.flush()
        status = log.columns("status")["status"]
    assert total(samples, "http_requests_total", handler="/detect", status="2xx") == 3
    assert total(samples, "http_request_duration_seconds_count", handler="/detect", status="2xx") == 3
    assert total(samples, "predictions_total", version="v1") == status.count(200) == 4
    assert total(samples, "input_rejected_total", reason="not a picture") == status.count(415) == 1
    assert total(samples, "input_rejected_total", reason="unavailable") == status.count(503) == 1
    assert total(samples, "input_rejected_total", reason="bad parameters") == 1  # and not the remark that said nothing
    assert total(samples, "prediction_errors_total") == 0  # a model that is not installed failed on no picture
    said = {verdict: total(samples, "feedback_total", verdict=verdict) for verdict in ("corrected", "wrong", "retry")}
    assert said == {"corrected": 1, "wrong": 1, "retry": 1}
    assert total(samples, "feedback_answers_total") == 2
    assert total(samples, "http_requests_in_progress") == 1  # the one that asks
    brightness = images.features(images.decode(APPLE))["brightness"]
    assert total(samples, "input_image_brightness_ratio_sum") == pytest.approx(4 * brightness)


def test_a_model_that_fails_is_an_error_of_ours_and_a_client_that_hangs_up_is_not():
    with serve(create_app(Named("v1", error=RuntimeError("out of order"))), port=0) as server:
        with socket.create_connection((server.host, server.port)) as client:
            head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
            client.sendall(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n".encode())
            until(lambda: total(scraped(server.url), "http_requests_in_progress") == 2)
        until(lambda: total(scraped(server.url), "http_requests_in_progress") == 1)
        assert total(scraped(server.url), "http_requests_total", status="5xx") == 0
        assert requests.post(server.url + "/predict", files={"file": APPLE}).status_code == 500
        samples = scraped(server.url)
    assert total(samples, "http_requests_total", handler="/predict", status="5xx") == 1
    assert total(samples, "prediction_errors_total", version="v1") == 1


def test_whoever_asks_for_strange_things_makes_no_series():
    with serve(create_app(Named("v1", [CAR]), root_path="/serve"), port=0) as server:
        draw = random.Random(0)
        strange = ["/" + "".join(draw.choices("abc/%.?é", k=12)) for _ in range(60)]
        for path in [*strange, "/predict/", "/static-offline-docs/none.js"]:
            requests.request(draw.choice(["GET", "POST", "PATCH", "DELETE"]), server.url + path, allow_redirects=False)
        requests.get(server.url + "/serve/health")
        samples = scraped(server.url)
    series = {key for key in samples if key[0] == "http_requests_total"}
    assert total(samples, "http_requests_total", handler="other") >= 50
    assert total(samples, "http_requests_total", handler="/health", status="2xx") == 1
    assert len(series) < 16 and len(samples) < 400
    assert {dict(key[1:])["method"] for key in series} <= {"GET", "POST", "other"}


def test_an_app_made_again_starts_at_zero_and_counts_right():
    for times in (2, 3):  # as when a cell is run twice
        with serve(create_app(Named("v1", [CAR])), port=0) as server:
            for _ in range(times):
                assert requests.post(server.url + "/detect", files={"file": APPLE}).ok
            assert total(scraped(server.url), "predictions_total") == times


def test_the_routes_that_take_pictures_are_the_ones_whose_refusals_count():
    paths_of_uploads = {
        path
        for path, methods in create_app({}).openapi()["paths"].items()
        if "multipart/form-data" in methods.get("post", {}).get("requestBody", {}).get("content", {})
    }
    every = set(create_app({}).openapi()["paths"])
    assert paths_of_uploads == {path for path in every if UPLOADS.fullmatch(path)}


def test_the_memory_is_what_the_system_says(server):
    told = total(scraped(server.url), "process_resident_memory_bytes")
    assert told == pytest.approx(psutil.Process().memory_info().rss, rel=0.1)


def test_names_keep_to_the_conventions():
    families = list(text_string_to_metric_families(Metrics().text([("m", "v")])))
    names = {family.name + ("_total" if family.type == "counter" else "") for family in families}
    assert all(re.fullmatch(r"[a-z_]+", name) for name in names)
    assert not [name for name in names if re.search(r"milli|_ms$|percent", name)]
    assert not [family.name for family in families if not family.documentation.endswith(".") and family.documentation]


# several workers


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """A server of two, and the folder in which they count."""
    with serving(tmp_path_factory.mktemp("workers"), "--workers", "2", "--precision", "f32") as server:
        children = psutil.Process(server.process.pid).children()
        (folder,) = {child.environ().get(FOLDER) for child in children} - {None}
        until(lambda: len(living(server, Path(folder))) == 2, 60)
        yield server, Path(folder)


def living(server, folder: Path) -> list[psutil.Process]:
    """The processes that answer: those that count."""
    children = psutil.Process(server.process.pid).children()
    return [child for child in children if (folder / f"counter_{child.pid}.db").exists()]


def url(server) -> str:
    return f"http://127.0.0.1:{server.port}"


def counted_by(folder: Path, worker: psutil.Process) -> float:
    families = MultiProcessCollector.merge([str(folder / f"counter_{worker.pid}.db")])
    return sum(one.value for family in families for one in family.samples if one.name == "predictions_total")


def held_by(worker: psutil.Process) -> int:
    return sum(one.status == "ESTABLISHED" for one in worker.net_connections())


def test_what_two_workers_count_adds_up(workers):
    server, folder = workers
    both, uploads, asked = living(server, folder), small_uploads(), 0
    while asked < 400 and not all(counted_by(folder, worker) for worker in both):
        answers = server.ask_many(uploads * 3, clients=8)
        assert all(answer and answer.status == 200 for answer in answers)
        asked += len(answers)
    assert all(counted_by(folder, worker) for worker in both)
    for _ in range(4):  # whoever answers
        samples = scraped(url(server))
        assert total(samples, "predictions_total") == total(samples, "inference_duration_seconds_count") == asked
        assert total(samples, "http_requests_total", handler="/predict", status="2xx") == asked
    memory = sum(worker.memory_info().rss for worker in both)
    assert total(samples, "process_resident_memory_bytes") == pytest.approx(memory, rel=0.1)


def test_what_a_killed_worker_had_under_way_is_under_way_no_longer(workers):
    server, folder = workers
    before = scraped(url(server))
    head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
    with contextlib.ExitStack() as clients:
        for _ in range(8):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            client.sendall(f"{head}Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n".encode())
        until(lambda: total(scraped(url(server)), "http_requests_in_progress") == 9)
        victim = max(living(server, folder), key=held_by)
        left = 8 - held_by(victim)
        assert left < 8
        victim.kill()
        until(lambda: stood_in_for(victim, living(server, folder)), 60)
        # the new worker is there before its first numbers are
        until(lambda: total(scraped(url(server)), "slots_limit") == total(before, "slots_limit"), 60)
        samples = scraped(url(server))
    assert total(samples, "http_requests_in_progress") == left + 1
    assert total(samples, "predictions_total") == total(before, "predictions_total")  # what it counted stays counted


def test_workers_end_with_the_process_that_started_them(workers):
    server, folder = workers
    both = living(server, folder)
    server.process.kill()
    gone, _ = psutil.wait_procs(both, timeout=30)
    assert len(gone) == 2
    socket.create_server(("127.0.0.1", server.port)).close()  # raises while anybody listens there


def stood_in_for(victim: psutil.Process, workers: list[psutil.Process]) -> bool:
    return len(workers) == 2 and victim.pid not in {worker.pid for worker in workers}
