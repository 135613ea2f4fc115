"""The station beside a server that answers, dawdles, lies and dies: one decision for each product, in time, and kept.

`line.py` is the whole line with everything that can be killed; run by hand it takes a thousand products.
"""

import json
import logging
import math
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import requests

import production_line
from labsupport import edge, images, paths
from labsupport.detection import Box, Detection, Detector
from labsupport.edge import Camera, Decision, InspectionStation, NoAnswer, Outbox, breaker, exchange, forwarder, wants
from labsupport.edge.breaker import Backoff, CircuitBreaker
from labsupport.edge.camera import BLIND, CameraUnavailable
from labsupport.edge.deadline import MOST_BYTES, Worker
from labsupport.edge.outbox import OutboxUnavailable
from labsupport.exercises.machines import edge_checks
from labsupport.log import PredictionLog, station_records
from labsupport.serving import create_app, serve

TOKEN = production_line.TOKEN
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
LIGHT, DARK = np.full((8, 8, 3), 200, np.uint8), np.full((8, 8, 3), 40, np.uint8)
NOBODY = "http://127.0.0.1:9"
GRAY, IS_GOOD = production_line.Gray("gray/device"), wants("good")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s"


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("LAB_TOKEN", TOKEN)


@pytest.fixture
def log(tmp_path):
    with PredictionLog(f"sqlite:///{tmp_path}/log.db") as opened:
        yield opened


@pytest.fixture
def lab(log):
    with serve(create_app(production_line.Gray("gray/server"), log=log), port=0) as running:
        yield running


@pytest.fixture
def station(tmp_path, monkeypatch):
    """Makes stations, and closes them at the end."""
    opened = []
    monkeypatch.setattr(forwarder, "PATIENCE", 1.0)  # to close waits for a batch that is under way

    def make(server=NOBODY, device=GRAY, judge=IS_GOOD, deadline=2.0, outbox="outbox.db"):
        opened.append(InspectionStation(server, device, judge, Outbox(tmp_path / outbox), deadline))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@contextmanager
def answering(reply):
    """A server that does with each connection what `reply(connection)` does, on as many threads as it takes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def work(connection) -> None:
            with connection:
                try:
                    reply(connection)
                except OSError:  # the other side has gone
                    return

        def accept() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=work, args=[connection], daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


def until(true, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


# the whole line


def test_a_line_that_is_killed_and_cut_decides_each_product_once_and_all_of_it_arrives_once(tmp_path):
    whole = production_line.Line(tmp_path, seed=3, count=70)
    try:
        whole.run(station_kills=2, server_kills=1, seconds=200)
        figures = production_line.verify(whole)
    finally:
        whole.close()
    assert figures["slowest"] < 3 * production_line.DEADLINE  # who waits takes longer; the rest is for a busy machine
    assert figures["kills"] == {"station": 2, "server": 1} and figures["told"] > 70  # some were told again
    assert figures["by"]["server"] > 5 < figures["by"]["device"]


KILLED = """
import os, signal, sys
import production_line
from labsupport.edge import InspectionStation, wants
from labsupport.edge import Outbox

class Deadly(Outbox):
    def put(self, product, *rest):
        decided = super().put(product, *rest)
        if product == "p1":
            os.kill(os.getpid(), signal.SIGKILL)
        return decided

with InspectionStation("http://127.0.0.1:9", production_line.Gray("v1"), wants("good"), Deadly(sys.argv[1]), 2.0) as station:
    print(station.inspect("p0", production_line.picture(0)).verdict, flush=True)
    print(station.inspect("p1", production_line.picture(1)).verdict, flush=True)
"""


def test_killed_between_the_disk_and_the_actuator_it_gives_the_same_decision_again(tmp_path, station):
    path = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-W", "error", "-c", KILLED, str(tmp_path / "outbox.db")]
    done = subprocess.run(command, env=path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "accept\n")
    again = station(device=production_line.Gray("v2")).inspect(
        "p1", DARK
    )  # whatever is in the picture now, and whoever would look
    assert (again.verdict, again.decided_by, again.version) == ("accept", "device", "v1")


def test_a_product_that_is_decided_is_not_looked_at_again(station):
    device, looks = production_line.Gray("v"), []
    device.detect = lambda image, confidence: looks.append(image) or []
    line_ = station(device=device)
    first, count = line_.inspect("p1", LIGHT), len(looks)
    assert line_.inspect("p1", DARK) == first and len(looks) == count


# who decides


def test_the_server_decides_while_it_answers_and_its_log_has_one_row_for_each(lab, log, station):
    line_ = station(lab.url)
    decisions = [line_.inspect(f"p{number}", picture) for number, picture in enumerate((LIGHT, DARK, LIGHT))]
    assert [(one.verdict, one.decided_by, one.version, one.reason) for one in decisions] == [
        (verdict, "server", "gray/server", "") for verdict in ("accept", "reject", "accept")
    ]
    until(lambda: not line_.outbox.waiting())
    frame, decided = log.frame(), log.decisions()
    assert frame["id"].tolist() == decided["id"].tolist() == [line_.outbox.id_of(f"p{number}") for number in range(3)]
    assert frame["key"].tolist() == decided["product"].tolist() == ["p0", "p1", "p2"]
    assert frame["n_detections"].tolist() == [1, 0, 1] and frame["brightness"].round(2).tolist() == [0.78, 0.16, 0.78]
    assert decided["latency"].tolist() == [one.latency for one in decisions]
    assert (frame["latency"] < decided["latency"]).all()  # the model's, and that of all


def test_without_a_server_the_device_decides_and_says_why(station):
    line_ = station()
    decisions = [line_.inspect(f"p{number}", DARK) for number in range(5)]
    assert {(one.verdict, one.decided_by, one.version) for one in decisions} == {("reject", "device", "gray/device")}
    assert [one.reason.rpartition("] ")[2] for one in decisions[:3]] == ["Connection refused"] * 3
    assert {one.reason for one in decisions[3:]} == {"server: not asked, it failed before"}


def sleepy(seconds):
    def detect(image, confidence=0.5):
        time.sleep(seconds if image.shape == LIGHT.shape else 0)  # not while it warms up
        return []

    device = production_line.Gray("slow")
    device.detect = detect
    return device


def unsure(confidence):
    device = production_line.Gray("unsure")
    device.detect = lambda image, _: (
        [Detection("good", confidence, Box(0, 0, 1, 1))] if image.shape == LIGHT.shape else []
    )
    return device


@pytest.mark.parametrize(
    ("device", "judge", "picture", "reason"),
    [
        (production_line.Gray("v"), wants("good"), None, "no picture"),
        (production_line.Gray("v"), wants("good", low=0.5, high=0.95), LIGHT, "judge: not sure of what the device saw"),
        (
            production_line.Gray("v"),
            lambda found: 1 / 0,
            LIGHT,
            "judge of what the device saw: ZeroDivisionError: division by zero",
        ),
        (None, wants("good"), LIGHT, "Connection refused; device: there is none"),
        (sleepy(5), wants("good"), LIGHT, "Connection refused; device: too slow"),
        (production_line.Gray("v"), wants("good"), "no picture", "picture is 'no picture', of type str: give uint8"),
        (unsure(math.nan), wants("good"), LIGHT, "confidence=nan: give a number from 0 to 1"),
    ],
    ids=["no picture", "not sure", "judge fails", "no device", "slow device", "not a picture", "device gives NaN"],
)
def test_who_cannot_decide_says_so_and_the_line_goes_on(station, device, judge, picture, reason):
    line_ = station(device=device, judge=judge, deadline=1.0)
    decision = line_.inspect("p1", picture)
    assert (decision.verdict, decision.decided_by) == ("undecided", "nobody") and reason in decision.reason
    assert line_.inspect("p1", LIGHT) == decision  # it counts like any other
    assert line_.outbox.get("p1")["verdict"] == "undecided"


@pytest.mark.parametrize("verdict", ["reject", math.nan, (False, 0.3), np.array([True, False]), 1], ids=str)
def test_a_judge_that_says_neither_true_nor_false_nor_none_accepts_nothing(station, verdict):
    decision = station(judge=lambda found: verdict).inspect("p1", LIGHT)
    assert (decision.verdict, decision.decided_by, decision.version) == ("undecided", "nobody", "gray/device")
    assert decision.reason == f"judge of what the device saw: ValueError: gave {verdict!r}, not True, False or None"


@pytest.mark.parametrize("judge", [lambda found: None, lambda found: 1 / 0, lambda found: "reject", lambda found: True])
def test_the_log_knows_that_a_device_looked_whatever_the_judge_says(station, log, judge):
    """`station_records.by_device` reads it from the reason: else a ramp would count it as the server's answer."""
    line_ = station(judge=judge)
    line_.inspect("p1", LIGHT)
    ((_, record),) = line_.outbox.batch(100)
    log.receive([record])
    assert log.elsewhere() == {record["id"]}


def test_a_judge_may_give_numpys_bool(station):
    line_ = station(judge=lambda found: np.array([len(found)]).any())
    assert [line_.inspect(name, picture).verdict for name, picture in (("a", LIGHT), ("b", DARK))] == [
        "accept",
        "reject",
    ]


def seeing(found):
    """A device that sees what `found()` returns in a light picture, and nothing while it warms up."""
    device = production_line.Gray("v")
    device.detect = lambda image, confidence: found() if image.shape == LIGHT.shape else []
    return device


@pytest.mark.parametrize(
    "found",
    [
        lambda: [Detection("good", 0.9, (1, 2, 3, 4))],
        lambda: [Detection("good", np.float32(0.9), [1, 2, 3, 4])],
        lambda: [Detection("good", 0.9, Box(*np.array([1, 2, 3, 4])))],
        lambda: [Detection("good", 0.9, Box(1.2, 2.0, 2.9, 4.4))],
        lambda: (one for one in [Detection("good", 0.9, Box(1, 2, 3, 4))]),
    ],
    ids=["tuple", "list", "NumPy", "fractions", "generator"],
)
def test_a_device_may_give_what_a_version_on_the_server_may(lab, station, found):
    boxes = []
    line_ = station(device=seeing(found), judge=lambda found: bool(boxes.extend(one.box for one in found) or found))
    decision = line_.inspect("p1", LIGHT)
    assert (decision.verdict, decision.decided_by) == ("accept", "device")
    assert boxes == [Box(1, 2, 3, 4)] and boxes[0].right == 3  # the judge can name the sides
    ((_, record),) = line_.outbox.batch(10)
    assert record["prediction"]["detections"][0]["box"] == {"left": 1, "top": 2, "right": 3, "bottom": 4}
    assert post(lab, [record]).json() == {"new": 1, "known": 0}


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (Detection("good", 95, Box(0, 0, 1, 1)), "confidence=95: give a number from 0 to 1"),
        (Detection("x" * 201, 0.9, Box(0, 0, 1, 1)), "give text of 0 to 200 characters"),
        (Detection(None, 0.9, Box(0, 0, 1, 1)), "label=None: give text"),
        (Detection("good", 0.9, Box(0, 0, 1, math.nan)), "box=nan: give a number from -1,000,000 to 1,000,000"),
        (Detection("good", 0.9, Box(0, 0, 1, 10**7)), "box=10000000: give a number"),
        (Detection("good", 0.9, (0, 0, 1)), "a box of four numbers (not enough values"),
        (Detection("good", 0.9, None), "'NoneType' object is not iterable"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_no_record_can_hold_is_not_decided_on(station, one, reason):
    decision = station(device=seeing(lambda: [one])).inspect("p1", LIGHT)
    assert (decision.verdict, decision.decided_by) == ("undecided", "nobody")
    assert "device: " in decision.reason and reason in decision.reason


def test_a_device_whose_name_no_record_can_hold_is_refused(station):
    with pytest.raises(ValueError, match=r"^version=.* \(201 characters\): give text"):
        station(device=production_line.Gray("v" * 201))


def test_a_device_that_hangs_is_not_asked_twice_at_once(station):
    free, device = threading.Event(), production_line.Gray("slow")
    device.detect = lambda image, confidence: [] if image.shape != LIGHT.shape or free.wait(30) else None
    line_ = station(device=device, deadline=2.0)
    reasons = [line_.inspect(f"p{number}", LIGHT).reason for number in range(2)]
    assert reasons[0].endswith("device: too slow") and reasons[1].endswith("device: still busy with what came before")
    free.set()
    assert line_.inspect("p9", np.zeros((9, 9, 3), np.uint8)).decided_by == "device"


def test_the_models_own_answer_decides_beside_the_real_server(detector, log, station, pictures):
    """Real networks on both sides: with the server, and then with what is left."""
    device = Detector.load("yolov3-tiny", runtime="litert")
    with serve(create_app(detector, log=log), port=0) as server:
        line_ = station(server.url, device, wants("clock"), deadline=20.0)
        there = {name: line_.inspect(f"{name} 1", pictures[name]) for name in ("clock.png", "cat.png")}
        until(lambda: not line_.outbox.waiting())
    here = {name: line_.inspect(f"{name} 2", pictures[name]) for name in there}
    for made, by, version in ((there, "server", "openvino-f32"), (here, "device", "litert-int8")):
        assert [(one.verdict, one.decided_by) for one in made.values()] == [("accept", by), ("reject", by)]
        assert {one.version for one in made.values()} == {f"yolov3-tiny/{version}"}
    found = log.frame()["detections"][0]
    assert found == detector.detect(pictures["clock.png"], 0.3)  # the very boxes: nothing was rounded


# the deadline


def mute(connection) -> None:
    time.sleep(30)


def dribble(connection) -> None:
    """Every byte comes long before a socket's timeout."""
    for byte in b"HTTP/1.1 200 OK\r\n" + b"X-Patience: yes\r\n" * 1_000:
        connection.sendall(bytes([byte]))
        time.sleep(0.02)


def dribble_a_body(connection) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while True:
        connection.sendall(b" ")
        time.sleep(0.02)


def flood(connection) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")


ID = "0" * 32  # in an answer below: the id that the question has


def saying(answer: bytes):
    def reply(connection) -> None:
        asked = re.search(rb"X-Record-Id: ([0-9a-f]{32})", connection.recv(65536))
        connection.sendall(answer.replace(ID.encode(), asked[1]) if asked else answer)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass

    return reply


@pytest.mark.parametrize("reply", [mute, dribble, dribble_a_body])
def test_an_answer_that_does_not_end_is_none_when_the_time_is_up(reply):
    with answering(reply) as url:
        started = time.monotonic()
        with pytest.raises(NoAnswer, match=r"no answer within 0\.3 s"):
            exchange("GET", f"{url}/ready", seconds=0.3)
        assert time.monotonic() - started < 5  # of the minutes that it would have taken
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "watchdog"])


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (b"", "closed connection without response"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{", "the answer is cut off"),
        (b"HTTP/1.1 200 OK\r\nDate: toda", "does not say how long it is"),
        (CHUNKED + b"5\r\nab", "IncompleteRead"),
        (OK % (MOST_BYTES + 1, bytes(MOST_BYTES + 1)), "the answer is too long"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "SSH-2.0"),
    ],
    ids=["nothing", "half", "half of the head", "half a chunk", "too long", "not HTTP"],
)
def test_what_is_no_whole_answer_is_none(answer, what):
    with answering(saying(answer)) as url, pytest.raises(NoAnswer, match=what):
        exchange("GET", f"{url}/ready", seconds=5)


def test_a_chunk_that_claims_to_be_shorter_than_nothing_is_not_read_for_ever():
    def reply(connection) -> None:
        connection.recv(65536)
        connection.sendall(CHUNKED + b"-1\r\n" + bytes(2 * MOST_BYTES))
        connection.recv(65536)  # and then it says nothing more

    with answering(reply) as url, pytest.raises(NoAnswer, match="the answer is too long"):
        exchange("GET", f"{url}/ready", seconds=20)


def test_a_whole_answer_is_one_whatever_its_status():
    with answering(saying(b"HTTP/1.1 418 I'm a teapot\r\nContent-Length: 3\r\n\r\ntea")) as url:
        assert exchange("POST", url, 5, b"water") == (418, b"tea")
    with pytest.raises(ValueError, match=r"^url=.*: give an address"):
        exchange("GET", "localhost:8000", 5)


@pytest.mark.parametrize("seconds", [1e10, math.inf, math.nan, "5", None])
def test_a_time_that_no_timer_can_count_is_refused(seconds):
    with pytest.raises(ValueError, match=r"^seconds=.*: give a number of at most 86,400"):
        exchange("GET", NOBODY, seconds)


PREDICTED = b'{"id": "1", "version": "v9", "latency": 0.1, "detections": []}'
DEADLINE = 2.0  # a tenth of it is the device's, also on a busy machine
WRONG = {  # a detection that would be a verdict, if anybody believed it
    "no number": {"confidence": math.nan},
    "infinite": {"confidence": math.inf},
    "percent": {"confidence": 95},
    "text": {"confidence": "0.1"},
    "no label": {"label": None},
    "a number": {"label": 5},
    "half a box": {"box": {"left": 1}},
}
GOOD = {"label": "scratch", "confidence": 0.9, "box": {"left": 0, "top": 0, "right": 1, "bottom": 1}}


def detected(id: str = ID, **changed) -> bytes:
    """A whole answer of a server that sees a scratch."""
    return json.dumps({"id": id, "version": "v", "latency": 0.1, "detections": [GOOD | changed]}).encode()


RUBBISH = [*(detected(**wrong) for wrong in WRONG.values()), detected(id="1" * 32)]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (mute, "no answer within|too slow"),
        (dribble, "no answer within|too slow"),
        (flood, "too long|no answer within|too slow|IncompleteRead"),
        (saying((OK % (len(PREDICTED), PREDICTED))[:-9]), "cut off"),
        (saying(OK % (9, b"<html></h")), "not the lab's server, it answered 200: <html></h"),
        (saying(OK % (2, b"{}")), "not the lab's server, it answered 200: {}"),
        (saying(OK % (4, b"null")), "not the lab's server, it answered 200: null"),
        (saying(OK % (9_999, b"[" * 9_999)), "not the lab's server"),
        *((saying(OK % (len(said), said)), "not the lab's server") for said in RUBBISH),
        (saying(b"HTTP/1.1 415 No\r\nContent-Length: 2\r\n\r\n{}"), "not the lab's server, it answered 415: {}"),
        (
            saying(b'HTTP/1.1 415 No\r\nContent-Length: 14\r\n\r\n{"detail": ""}'),
            "not the lab's server, it answered 415: {",
        ),
        (saying(b"HTTP/1.1 \0 No\r\n\r\n"), r"HTTP/1.1 \? No"),
        (saying(b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\noh"), "500: oh"),
        (saying(b"HTTP/1.1 302 Found\r\nLocation: http://login\r\nContent-Length: 0\r\n\r\n"), "302: "),
    ],
    ids=[
        "mute",
        "dribble",
        "flood",
        "half",
        "a page",
        "nothing in it",
        "null",
        "deep",
        *WRONG,
        "another request's",
        "no detail",
        "no word",
        "NUL",
        "500",
        "login",
    ],
)
def test_whatever_the_server_does_each_product_is_decided_by_the_device_in_time(station, reply, reason):
    with answering(reply) as url:
        line_, took = station(url, deadline=DEADLINE), []
        for number in range(4):
            started = time.monotonic()
            decision = line_.inspect(f"p{number}", LIGHT)
            took.append(time.monotonic() - started)
            assert (decision.verdict, decision.decided_by, decision.version) == ("accept", "device", "gray/device")
            if number == 0:
                assert re.search(reason, decision.reason), decision.reason
        assert decision.reason == "server: not asked, it failed before"  # three were enough
    assert max(took) < 3 * DEADLINE  # on a busy machine; what the server sends would take for ever


def test_a_reason_is_one_that_a_record_can_hold(station):
    detail = json.dumps({"detail": "no \0\n\ud800" + "x" * 5_000}).encode()
    with answering(saying(b"HTTP/1.1 415 No\r\nContent-Length: %d\r\n\r\n%s" % (len(detail), detail))) as url:
        decision = station(url).inspect("p1", LIGHT)
    assert decision.decided_by == "device" and decision.reason.startswith("server: ")
    assert decision.reason.isprintable() and len(decision.reason) <= 1_000


def test_a_device_that_finds_more_than_a_record_can_hold_decides_nothing(station):
    many = production_line.Gray("many")
    line_ = station(device=many)
    many.detect = lambda image, confidence: [Detection("scratch", 0.5, Box(0, 0, 1, 1))] * 10_001
    decision = line_.inspect("p1", LIGHT)
    assert (decision.verdict, decision.decided_by) == ("undecided", "nobody")
    assert "10,001 detections in one picture: give at most 10,000" in decision.reason


def test_a_picture_that_the_server_does_not_take_does_not_count_against_the_server(station):
    answer = b'HTTP/1.1 415 No\r\nContent-Length: 35\r\n\r\n{"detail": "not a JPEG or PNG ..."}'
    with answering(saying(answer)) as url:
        line_ = station(url)
        reasons = {line_.inspect(f"p{number}", LIGHT).reason for number in range(5)}
    assert reasons == {"server: 415: not a JPEG or PNG ..."} and line_.breaker.closed


@pytest.mark.parametrize("picture", [np.zeros((4, 4)), LIGHT[:, :, 0], LIGHT[:0], "no picture"], ids=lambda _: "")
def test_what_is_no_picture_does_not_count_against_the_server(lab, station, picture):
    line_ = station(lab.url)
    decisions = [line_.inspect(f"p{number}", picture) for number in range(breaker.FAILURES)]
    assert {(one.verdict, one.decided_by, one.version) for one in decisions} == {("undecided", "nobody", None)}
    assert decisions[0].reason.startswith("picture is ") and line_.breaker.closed
    assert line_.inspect("good", LIGHT).decided_by == "server"


def test_a_deadline_that_device_and_disk_alone_would_miss_is_refused(tmp_path):
    device = production_line.Gray("slow")
    device.detect = lambda image, confidence: time.sleep(0.05) or []
    with Outbox(tmp_path / "o.db") as outbox, pytest.raises(ValueError, match=r"device and disk alone take 0\.\d+ s"):
        InspectionStation(NOBODY, device, wants("good"), outbox, deadline=0.04)


@pytest.mark.parametrize("product", ["", "a" * 201, "line\nbreak", "\udcff", 7, None])
def test_a_name_that_cannot_be_written_down_is_refused(station, product):
    with pytest.raises(ValueError, match="give a printable name"):
        station().inspect(product, LIGHT)


# the breaker


def ours() -> set[threading.Thread]:
    return {
        thread for thread in threading.enumerate() if thread.name in ("ask the server", "ask the device", "forward")
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"server": "127.0.0.1:8000"},
        {"server": "ftp://127.0.0.1"},
        {"server": "http://127.0.0.1/?"},
        {"server": "http://127.0.0.1/#"},
        {"server": "http://"},
        {"server": "http://127.0.0.1:eighty"},
        {"server": "http://127.0.0.1:99999"},
        {"server": "http://[::1"},
        {"server": "http://lab:secret@127.0.0.1"},
        {"server": None},
        {"device": "yolov3-tiny"},
        {"judge": "good"},
        {"deadline": 0},
        {"deadline": float("nan")},
        {"deadline": "1"},
        {"deadline": 1e10},  # no timer counts so far
        {"deadline": 1e-9},  # device and disk alone would miss it
    ],
)
def test_a_station_that_is_refused_leaves_no_thread_behind(station, wrong):
    (name,) = wrong
    before = ours()
    with pytest.raises(ValueError, match=f"^{name}=") as refused:
        station(**wrong)
    until(lambda: ours() <= before)  # a thread of an earlier test may end meanwhile
    assert "secret" not in str(refused.value)


def test_a_device_that_would_end_the_program_does_not(station, caplog):
    class Ends(production_line.Gray):
        def detect(self, image, confidence=0.5):
            if image.shape == LIGHT.shape:
                sys.exit("no camera driver")
            return super().detect(image, confidence)

    decided = station(device=Ends("gray/ends")).inspect("p1", LIGHT)
    assert (decided.verdict, decided.decided_by) == ("undecided", "nobody")
    assert "no camera driver" in decided.reason and "no camera driver" in caplog.text


def test_a_forwarder_survives_what_nobody_thought_of(lab, log, station, monkeypatch, caplog):
    monkeypatch.setattr(breaker.Backoff, "next", lambda self: 0.01)
    busy = station(server=lab.url)
    real, fail = busy.outbox.batch, [KeyError("no such column"), SystemExit("a library gave up")]
    monkeypatch.setattr(busy.outbox, "batch", lambda most: real(most) if not fail else raising(fail.pop()))
    busy.inspect("p1", LIGHT)
    until(lambda: busy.outbox.waiting() == 0 and "works again" in caplog.text)
    assert "no such column" in caplog.text and "a library gave up" in caplog.text


def raising(error: BaseException):
    raise error


def test_a_probe_that_raises_does_not_leave_the_breaker_open_for_ever(caplog):
    tries = iter([RuntimeError("the network card is gone"), False, True])

    def probe():
        answer = next(tries)
        return raising(answer) if isinstance(answer, Exception) else answer

    breaker = CircuitBreaker(probe, failures=1, backoff=Backoff(0.001, 0.001))
    breaker.failed()
    until(lambda: breaker.closed)
    assert "the network card is gone" in caplog.text


def test_a_breaker_opens_only_when_a_probe_can_start(monkeypatch):
    def none_left(thread):
        raise RuntimeError("can't start new thread")

    circuit = CircuitBreaker(lambda: True, failures=2, backoff=Backoff(0.001, 0.001))
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", none_left)
        for _ in range(3):
            circuit.failed()  # raises nothing into the line
        assert circuit.closed  # otherwise nobody would close it again
    closing, probed = threading.Event(), threading.Event()
    circuit._probe = lambda: probed.set() or closing.wait(20)
    circuit.failed()
    assert not circuit.closed and probed.wait(20)
    closing.set()
    until(lambda: circuit.closed)


def test_a_whole_answer_decides(station):
    with answering(saying(OK % (len(detected()), detected()))) as url:
        decision = station(url, judge=wants("scratch"), deadline=20.0).inspect("p1", LIGHT)
    assert (decision.verdict, decision.decided_by, decision.version) == ("accept", "server", "v")


OTHERS = [
    PREDICTED,
    b"<html></html>",
    b"null",
    b"[]",
    b"[" * 9_999,
    b'{"status": "starting", "versions": ["v"]}',
    *(
        b'{"status": "ready"%s}' % more
        for more in (b"", b', "versions": []', b', "versions": [1]', b', "versions": "v"')
    ),
]


@pytest.mark.parametrize("body", OTHERS)
def test_another_program_that_answers_200_to_the_probe_is_not_the_server_that_came_back(station, monkeypatch, body):
    monkeypatch.setattr(breaker.Backoff, "next", lambda self: 0.01)
    asked, reply = [], saying(OK % (len(body), body))
    with answering(lambda connection: [asked.append(connection), reply(connection)]) as url:
        line_ = station(url)
        for _ in range(breaker.FAILURES):
            line_.breaker.failed()
        until(lambda: len(asked) > 3)
        assert not line_.breaker.closed and not line_.outbox.waiting()


def test_a_server_that_comes_back_is_asked_again(log, station):
    app = create_app(production_line.Gray("gray/server"), log=log)
    with serve(app, port=0) as first:
        port, line_ = first.port, station(first.url)
        assert line_.inspect("a", LIGHT).decided_by == "server"
    assert {line_.inspect(f"b{number}", LIGHT).decided_by for number in range(4)} == {"device"}
    assert not line_.breaker.closed
    with serve(app, port=port):
        until(lambda: line_.breaker.closed)
        assert line_.inspect("c", LIGHT).decided_by == "server"
        until(lambda: not line_.outbox.waiting())
    assert log.decisions()["product"].tolist() == ["a", "b0", "b1", "b2", "b3", "c"]


def test_after_a_probe_one_failure_opens_again_and_only_a_success_shortens_the_pauses():
    backoff = Backoff(first=0.002, longest=0.01)
    breaker = CircuitBreaker(probe=lambda: True, failures=3, backoff=backoff)
    for _ in range(2):
        breaker.failed()
        breaker.succeeded()  # never three in a row
        assert breaker.closed
    for _ in range(3):
        breaker.failed()
    until(lambda: breaker.closed)
    tries = backoff.tries
    breaker.failed()
    until(lambda: breaker.closed and backoff.tries == tries + 1)
    breaker.succeeded()
    assert backoff.tries == 0
    breaker.failed()
    assert breaker.closed
    breaker.stop()


def test_a_worker_hands_on_what_is_raised_and_is_free_again():
    worker = Worker("w")
    with pytest.raises(ZeroDivisionError):
        worker.do(lambda: 1 / 0, time.monotonic() + 5)
    with pytest.raises(TimeoutError, match="mine"):
        worker.do(lambda: (_ for _ in ()).throw(TimeoutError("mine")), time.monotonic() + 5)
    go = threading.Event()
    for what in ("too slow", "still busy with what came before"):
        with pytest.raises(TimeoutError, match=what):
            worker.do(go.wait, time.monotonic() + 0.05)
    go.set()
    assert worker.do(lambda: 7, time.monotonic() + 5) == 7
    worker.close()


# forwarding


def forwarded(station, url, decide=3):
    """A station that has decided without a server, and is given this one now: it forwards when it is told to."""
    line_ = station()
    line_._forwarder.close()
    for number in range(decide):
        line_.inspect(f"p{number}", LIGHT)
    line_._forwarder.url = f"{url}/records"
    return line_


def test_an_answer_that_came_too_late_is_nobodys_and_counts_once(log, station):
    """The server looks, and its answer gets lost: the device decides. Two saw the product, and one row says so."""
    slow = sleepy(2.5)
    slow.version = "late/server"
    with serve(create_app(slow, log=log), port=0) as server:
        line_ = station(server.url, deadline=2.0)
        assert line_.inspect("p1", LIGHT).decided_by == "device"
        until(lambda: not line_.outbox.waiting())
        answered = 'predictions_total{version="late/server"} 1.0'
        until(lambda: answered in requests.get(f"{server.url}/metrics", timeout=5).text)
    log.flush()
    assert log.frame()["version"].tolist() == ["gray/device"] and len(log.decisions()) == 1


def test_a_request_that_failed_is_a_row_of_its_own(log, station):
    broken = production_line.Gray("broken")
    broken.detect = lambda image, confidence: 1 / 0
    with serve(create_app(broken, log=log), port=0) as server:
        line_ = station(server.url)
        line_.inspect("p1", LIGHT)
        until(lambda: not line_.outbox.waiting())
        log.flush()
    frame = log.frame().sort_values("status")
    assert frame["status"].tolist() == [200, 500] and frame["key"].tolist() == ["p1", "p1"]
    assert frame["id"].nunique() == 2 and frame["error"].tolist()[1] == "ZeroDivisionError"


def test_what_is_sent_twice_is_there_once(lab, log, station):
    line_ = forwarded(station, lab.url)
    batch = [record for _, record in line_.outbox.batch(100)]
    assert post(lab, batch[:2]).json() == {"new": 2, "known": 0}
    changed = [{**record, "verdict": "reject"} for record in batch]
    assert post(lab, changed[:1] + batch[1:] + batch[1:]).json() == {"new": 1, "known": 4}
    assert line_.forward() == 3
    assert log.decisions()["verdict"].tolist() == ["accept"] * 3 and len(log.frame()) == 3


def post(lab, records_, headers=HEADERS):
    return requests.post(f"{lab.url}/records", json=records_, headers=headers, timeout=10)


def test_a_record_that_the_server_refuses_is_kept_aside_and_the_rest_arrives_in_order(
    lab, log, station, monkeypatch, caplog
):
    line_ = forwarded(station, lab.url, decide=0)
    monkeypatch.setattr(forwarder, "PATIENCE", 10.0)  # each batch waits for the disk
    for number in range(250):
        poison = {"latency": -1.0} if number in (3, 130) else {}
        decision = vars(Decision("", "accept", "device", "v1", 0.1, "", 1.75e9 + number)) | poison
        line_.outbox.put(f"p{number}", {name: value for name, value in decision.items() if name != "product"})
    assert line_.forward() == 248 and not line_.outbox.waiting()
    assert [(record["product"], reason) for record, reason in line_.outbox.refused()] == [
        (name, "[0].latency: Input should be greater than or equal to 0") for name in ("p3", "p130")
    ]
    assert log.decisions()["product"].tolist() == [f"p{number}" for number in range(250) if number not in (3, 130)]
    assert "refuses p3 for good" in caplog.text


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\n{}",
        b'HTTP/1.1 401 No\r\nContent-Length: 15\r\n\r\n{"detail": "x"}',
        b'HTTP/1.1 404 No\r\nContent-Length: 15\r\n\r\n{"detail": "x"}',
        b"HTTP/1.1 422 No\r\nContent-Length: 6\r\n\r\n<html>",
        b'HTTP/1.1 422 No\r\nContent-Length: 14\r\n\r\n{"detail": ""}',
        b'HTTP/1.1 413 No\r\nContent-Length: 16\r\n\r\n{"detail": null}',
        b'HTTP/1.1 422 No\r\nContent-Length: 17\r\n\r\n{"detail": ["x"]}',
        b'HTTP/1.1 400 No\r\nContent-Length: 15\r\n\r\n{"detail": "x"}',  # ours, to one who sends HTTP where it speaks HTTPS
        OK % (13, b"<html></html>"),
        OK % (22, b'{"new": 1, "known": 0}'),
        OK % (2, b"[]"),
        b"HTTP/1.1 204 No\r\n\r\n",
    ],
    ids=[
        "500",
        "no token",
        "no route",
        "a proxy's 422",
        "no word",
        "null",
        "a list",
        "not HTTPS",
        "a page to log in",
        "too few",
        "odd JSON",
        "nothing",
    ],
)
def test_only_the_servers_own_word_for_all_of_them_counts_as_sent(station, answer):
    with answering(saying(answer)) as url:
        line_ = forwarded(station, url)
        with pytest.raises(NoAnswer):
            line_.forward()
    assert line_.outbox.waiting() == 3 and not line_.outbox.refused()


def test_records_wait_while_the_servers_disk_is_locked(lab, log, station, tmp_path, monkeypatch):
    line_ = station()
    monkeypatch.setattr(forwarder, "PATIENCE", 10.0)  # the server waits 2 s for its disk
    line_.inspect("p1", LIGHT)
    with closing(sqlite3.connect(tmp_path / "log.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        line_._forwarder.url = f"{lab.url}/records"
        with pytest.raises(NoAnswer, match=r"503: .*cannot be written at present"):
            line_.forward()
        other.execute("ROLLBACK")
    until(lambda: not line_.outbox.waiting())  # in the background
    assert log.decisions()["product"].tolist() == ["p1"]


def test_the_server_answers_when_its_disk_has_them(lab, log, station, monkeypatch):
    levels, take = [], station_records.take

    def watched(connection, decided):
        levels.append(connection.exec_driver_sql("PRAGMA synchronous").scalar_one())
        return take(connection, decided)

    monkeypatch.setattr(station_records, "take", watched)
    assert forwarded(station, lab.url).forward() == 3
    assert levels == [2]  # FULL


def test_a_crash_half_way_takes_nothing_of_a_batch(log, station, monkeypatch):
    line_ = forwarded(station, NOBODY)
    monkeypatch.setattr(station_records, "_prediction", lambda record: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        log.receive([record for _, record in line_.outbox.batch(100)])
    assert not len(log.decisions()) and not len(log.frame())


def test_many_that_send_the_same_at_once_leave_one_of_each(lab, log, station):
    batch = [record for _, record in forwarded(station, NOBODY, decide=40).outbox.batch(100)]
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(post(lab, batch).json())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(answer["new"] for answer in answers) == 40
    assert len(log.decisions()) == len(log.frame()) == 40


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}])
def test_without_the_token_nobody_hands_in_records_or_keeps_an_answer_out_of_the_log(lab, log, headers):
    assert post(lab, [], headers).status_code == 401
    files = {"file": images.encode(LIGHT, "png")}
    own = {**headers, "X-Record-Id": "0" * 32}
    assert requests.post(f"{lab.url}/detect", files=files, headers=own, timeout=10).status_code == 401
    assert requests.post(f"{lab.url}/detect", files=files, timeout=10).ok
    log.flush()
    assert len(log.frame()) == 1


def test_a_server_without_a_log_takes_no_records(station):
    with serve(create_app(production_line.Gray("v")), port=0) as server:
        line_ = forwarded(station, server.url)
        with pytest.raises(NoAnswer, match=r"404: .*keeps no log"):
            line_.forward()
    assert line_.outbox.waiting() == 3


RECORD = {
    "id": "0" * 32,
    "time": 1.75e9,
    "station": "s",
    "product": "p",
    "verdict": "accept",
    "decided_by": "device",
    "latency": 0.1,
}
SEEN = {"version": "v", "latency": 0.1, "detections": [], "features": {"brightness": 0.5}}
CAT = {"label": "cat", "confidence": 0.5, "box": {"left": 0, "top": 0, "right": 1, "bottom": 1}}


@pytest.mark.parametrize(
    "change",
    [
        {"id": "A" * 32},
        {"time": 1.75e12},
        {"latency": float("nan")},
        {"product": "a\0b"},
        {"verdict": "good"},
        {"more": 1},
        {"prediction": {**SEEN, "features": {"colour": 1.0}}},
        {"prediction": {**SEEN, "features": {"brightness": float("inf")}}},
        {"prediction": {**SEEN, "detections": [{**CAT, "confidence": 2}]}},
        {"prediction": {**SEEN, "detections": [{**CAT, "box": {"left": 0}}]}},
    ],
    ids=str,
)
def test_a_record_that_no_log_could_hold_is_refused(lab, log, change):
    content = json.dumps([{**RECORD, **change}])
    answer = requests.post(f"{lab.url}/records", data=content, headers=HEADERS, timeout=10)
    assert answer.status_code == 422 and answer.json()["detail"]
    assert (
        post(lab, [RECORD, {**RECORD, "id": "1" * 32, "prediction": {**SEEN, "detections": [CAT]}}]).json()["new"] == 2
    )
    assert not len(log.decisions(since=1.8e9)) and log.frame()["max_confidence"].tolist() == [0.5]


def test_a_batch_has_an_upper_limit(lab):
    many = [{**RECORD, "id": f"{number:032x}"} for number in range(station_records.MOST + 1)]
    assert post(lab, many).status_code == 422
    assert post(lab, many[1:]).json() == {"new": station_records.MOST, "known": 0}


# the outbox fails


def test_a_decision_that_cannot_be_stored_is_undecided_and_the_line_goes_on(station, monkeypatch, caplog):
    line_ = station()

    def full(*given):
        raise OutboxUnavailable("database or disk is full: make room on the disk")

    with monkeypatch.context() as patched:
        patched.setattr(line_.outbox, "put", full)
        with caplog.at_level(logging.ERROR):
            decisions = [line_.inspect(f"p{number}", LIGHT) for number in range(3)]
    assert {(one.verdict, one.decided_by) for one in decisions} == {("undecided", "nobody")}
    assert decisions[0].reason == "outbox: database or disk is full: make room on the disk"
    assert len([one for one in caplog.records if one.levelno == logging.ERROR]) == 1  # once, not with every product
    assert line_.inspect("p0", LIGHT).verdict == "accept"  # what was never stored may be decided anew


def test_an_outbox_that_cannot_be_read_decides_nothing(station, monkeypatch):
    line_ = station()

    def gone(product):
        raise OutboxUnavailable("disk I/O error")

    monkeypatch.setattr(line_.outbox, "get", gone)
    decision = line_.inspect("p1", LIGHT)
    assert (decision.verdict, decision.reason) == ("undecided", "outbox: disk I/O error")


# the judge, the camera


def found(*confidences):
    return [Detection("clock", sure, Box(0, 0, 9, 9)) for sure in confidences]


@pytest.mark.parametrize(
    ("confidences", "verdict"),
    [
        ([], False),
        ([0.3], False),
        ([0.31], None),
        ([0.5], None),
        ([0.51], True),
        ([0.51, 0.4], True),
        ([0.4, 0.4], None),
    ],
)
def test_wants_counts_what_is_sure_and_says_when_it_is_not(confidences, verdict):
    assert wants("clock")(found(*confidences)) is verdict
    assert wants("cat")(found(*confidences)) is False


def test_wants_more_than_one():
    two = wants("clock", at_least=2)
    assert [two(found(*these)) for these in ((0.9,), (0.9, 0.4), (0.9, 0.6))] == [False, None, True]


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        *(({"at_least": value}, "at_least") for value in (0, -1, 1.5, "2", True)),
        *(({"low": value}, "low") for value in (-0.1, math.nan, 30)),
        *(({"high": value}, "high") for value in (50, math.nan, "0.5", None)),
        ({"low": 0.8, "high": 0.3}, "high"),
        *(({"label": value}, "label") for value in (["clock"], "", None)),
    ],
    ids=str,
)
def test_wants_refuses_what_no_judge_could_use(wrong, name):
    with pytest.raises(ValueError, match=f"^{name}=.*: give "):
        wants(**({"label": "clock"} | wrong))


def test_a_folder_gives_its_pictures_by_name_and_a_broken_one_is_a_product_too(tmp_path, caplog):
    for name, picture in (("b.PNG", LIGHT), ("a.jpg", DARK)):
        (tmp_path / name).write_bytes(images.encode(picture, "png"))
    (tmp_path / "c.png").write_bytes(images.encode(LIGHT, "png")[:-20])
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "d.png").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/e\xff\n.png")).write_bytes(images.encode(LIGHT, "png"))
    for _ in range(2):  # and again, under the same names
        seen = list(Camera(tmp_path))
        assert [name for name, _ in seen] == ["a.jpg", "b.PNG", "c.png", "d.png", r"e\udcff\n.png"]
        assert [None if picture is None else picture.mean() for _, picture in seen] == [40, 200, None, None, 200]


def test_a_video_gives_its_frames(tmp_path):
    file = tmp_path / "belt.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for gray in (10, 120, 240):
        writer.write(np.full((48, 64, 3), gray, np.uint8))
    writer.release()
    for _ in range(2):
        seen = list(Camera(str(file)))
        assert [name for name, _ in seen] == ["belt.avi/000000", "belt.avi/000001", "belt.avi/000002"]
        assert [round(picture.mean(), -1) for _, picture in seen] == [10, 120, 240]


def test_a_camera_gives_long_names_that_a_station_takes(tmp_path, station):
    names = [b"a" * 210 + b"1.png", b"a" * 210 + b"2.png", b"\xff" * 50 + b".png", b"b" * 196 + b".png"]
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(images.encode(LIGHT, "png"))
    video = tmp_path / f"{'v' * 190}.avi"
    writer = cv2.VideoWriter(str(tmp_path / "short.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(2):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    (tmp_path / "short.avi").rename(video)
    line_ = station()
    products = [(name, picture) for source in (tmp_path, video) for name, picture in Camera(source)]
    assert {line_.inspect(name, picture).decided_by for name, picture in products} == {"device"}
    frames = [name for name, _ in products[-2:]]
    assert [name[-7:] for name in frames] == ["/000000", "/000001"] and frames[0][:-7] == frames[1][:-7]
    assert len({name for name, _ in products}) == len(names) + 2
    assert "b" * 196 + ".png" in dict(products)  # 200 characters: as it is
    assert [name for name, _ in Camera(tmp_path)] == [name for name, _ in products[:-2]]


class Device:
    """What `cv2.VideoCapture` would be, if a camera were plugged in: it fails now and then, and at last for good."""

    def __init__(self, number: int) -> None:
        self.left = [True, False, True]

    def isOpened(self) -> bool:
        return True

    def read(self):
        whole = self.left.pop(0) if self.left else False
        return whole, LIGHT if whole else None

    def release(self) -> None:
        pass


def test_a_device_names_each_picture_once_and_is_gone_after_some_that_fail(monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Device)
    seen = []
    with pytest.raises(CameraUnavailable, match="is it plugged in"):
        seen.extend(iter_into(seen, Camera(0)))
    assert [picture is not None for _, picture in seen] == [True, False, True, *[False] * BLIND]
    assert len({name for name, _ in seen}) == len(seen)


def iter_into(seen: list, camera: Camera):
    for product in camera:
        seen.append(product)
    return []


@pytest.mark.parametrize("source", ["nowhere", __file__], ids=["nothing there", "no video"])
def test_a_source_that_gives_nothing_is_refused_at_once(source):
    with pytest.raises(CameraUnavailable, match=r"no such folder or video|not a video that can be read"):
        Camera(source)


def test_every_picture_of_the_lab_passes_a_station_once(tmp_path, station):
    line_ = station(judge=wants("good"))
    for product, picture in Camera(paths.IMAGES):
        line_.inspect(product, picture)
    products = [product for product, _ in Camera(paths.IMAGES)]
    assert [record["product"] for _, record in line_.outbox.batch(1_000)] == products
    assert edge.Camera is Camera


# the check cells of edge.ipynb


def careful(found):
    if any(one.confidence >= 0.6 and one.box.right - one.box.left >= 20 for one in found):
        return False
    return None if any(one.confidence < 0.6 for one in found) else True


pool = ThreadPoolExecutor(4)


def decide(server, device, picture, seconds):
    for by, ask in (("server", lambda: pool.submit(server, picture).result(timeout=seconds)), ("device", None)):
        try:
            return (ask or (lambda: device(picture)))(), by
        except Exception:
            continue
    return None, "nobody"


def waits(server, device, picture, seconds):
    try:
        return server(picture), "server"
    except OSError:
        return device(picture), "device"


@pytest.mark.parametrize(
    ("question", "answer", "verdict"),
    [
        (edge_checks.backlog, 561.6, "Right."),
        (edge_checks.backlog, None, "give a number"),
        (edge_checks.backlog, 280.8, "one product a second"),
        (edge_checks.backlog, 9.36, "60 minutes, not 60 hours"),
        (edge_checks.backlog, 561_600_000, "the number of bytes"),
        (edge_checks.backlog, 5, "is not it"),
        (edge_checks.receiver, lambda kept, record: kept.setdefault(record["id"], record), "Right."),
        (edge_checks.receiver, lambda kept, record: kept.update({record["id"]: record}), "the first one counts"),
        (edge_checks.receiver, lambda kept, record: kept.update({len(kept): record}), "what is the key?"),
        (edge_checks.receiver, lambda kept, record: kept.setdefault(record["verdict"], record), "and 2 are kept"),
        (edge_checks.receiver, None, "it raised TypeError"),
        (edge_checks.careful_judge, careful, "Right."),
        (edge_checks.careful_judge, lambda found: careful(found) or False, "0.4 it says False, not None"),
        (edge_checks.careful_judge, lambda found: not found, "8 pixels wide it says False"),
        (edge_checks.probe_pause, lambda failed: min(15, 0.25 * 2**failed), "Right."),
        (edge_checks.probe_pause, lambda failed: 0.25 * 2**failed, "no pause is longer than 15 s"),
        (edge_checks.probe_pause, lambda failed: min(15, 0.5 * 2**failed), "one doubling too many"),
        (edge_checks.probe_pause, lambda failed: None, "it waits None s, not 0.25"),
        (edge_checks.fallback, decide, "Right."),
        (edge_checks.fallback, waits, "it had 0.2 s for the server"),
        (
            edge_checks.fallback,
            lambda server, *others: (server("p"), "server"),
            "with a server that raises it raises OSError",
        ),
        (
            edge_checks.fallback,
            lambda server, device, *others: (device("p"), "device"),
            "with a server that answers it returns",
        ),
    ],
)
def test_a_check_cell_passes_what_is_right_and_says_what_is_wrong(question, answer, verdict, capsys):
    question.check(answer)
    assert verdict in capsys.readouterr().out
