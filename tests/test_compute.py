"""What runtimes weigh and cost, against independent counts and known figures. No figure of this machine is asserted."""

import json
import math
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import requests

from labsupport import compute, models, paths
from labsupport.compute import (
    Machine,
    MeasurementFailed,
    Server,
    calibrated,
    flops,
    found,
    loadtest,
    measure,
    measurement,
    server_process,
    targets,
    times,
)
from labsupport.detection import Detector
from labsupport.exercises.machines import compute_checks

# the guess


def test_yolov3_tiny_takes_the_5_56_billion_operations_that_its_authors_publish():
    assert flops(models.locate("yolov3-tiny").cfg.read_text()) / 1e9 == pytest.approx(5.56, abs=0.02)


def test_the_convolutions_of_the_converted_network_come_to_the_same():
    """From OpenVINO's own graph: two operations for each weight of a filter and each number that it puts out."""
    import openvino as ov

    network = ov.Core().read_model(models.network("yolov3-tiny"))
    network.reshape([1, 416, 416, 3])
    total = 0
    for step in network.get_ordered_ops():
        if step.get_type_name() == "Convolution":
            shape = list(step.input(1).get_source_output().get_shape())  # outputs, inputs, rows, columns
            total += 2 * int(np.prod(shape[1:])) * int(np.prod(list(step.output(0).get_shape())))
    # the graph may also hold the scaling of colours as a convolution; it would be less than a thousandth
    assert flops(models.locate("yolov3-tiny").cfg.read_text()) == pytest.approx(total, rel=1e-3)


def test_routes_and_upsampling_are_followed():
    cfg = """[net]
    [convolutional]
    filters=4
    size=1
    stride=2
    [maxpool]
    size=2
    stride=2
    [upsample]
    stride=2
    [route]
    layers=-1,0
    [convolutional]
    filters=1
    size=1
    stride=1"""
    assert flops(cfg) == 2 * 3 * 4 * 208 * 208 + 2 * (4 + 4) * 208 * 208


# prices


def test_a_million_pictures_at_a_price_worked_out_by_hand():
    """$3.60 an hour is a tenth of a cent a second; 100 pictures a second, half of the time busy: 50 for that."""
    machine = Machine("m", cores=2, dollars_per_hour=3.6)
    assert machine.dollars_per_million(rate=100, utilisation=0.5) == pytest.approx(0.001 / 50 * 1e6)
    assert machine.dollars_per_million(rate=100, utilisation=1) == pytest.approx(10)


@pytest.mark.parametrize(
    "wrong",
    [{"rate": 0}, {"rate": math.nan}, {"rate": True}, {"rate": 1, "utilisation": 0}, {"rate": 1, "utilisation": 2}],
)
def test_a_price_needs_a_rate_and_a_share(wrong):
    with pytest.raises(ValueError, match=r"^(rate|utilisation)=.*: give a number"):
        Machine("m", 2, 1.0).dollars_per_million(**wrong)


@pytest.mark.parametrize(
    ("cores", "price"),
    [(0, 1.0), (math.inf, 1.0), (math.nan, 1.0), (True, 1.0), (2, 0.0), (2, math.nan), (2, math.inf), (2, True)],
)
def test_a_machine_has_cores_and_a_price(cores, price):
    with pytest.raises(ValueError, match=r"^(cores|dollars_per_hour)=.*: give a"):
        Machine("m", cores, price)


# runtimes


def test_found_counts_labels_and_overlap():
    cat, dog, moved = ("cat", 0.9, 0, 0, 10, 10), ("dog", 0.9, 0, 0, 10, 10), ("cat", 0.9, 0, 0, 10, 9)
    assert found([[cat], []], [[cat], [cat]], 0.5) == 0.5
    assert found([[dog]], [[cat]], 0.5) == 0
    assert (found([[moved]], [[cat]], 0.8), found([[moved]], [[cat]], 0.95)) == (1, 0)


@pytest.fixture
def three(monkeypatch, pictures):
    """Three pictures instead of all: what is measured is the same."""
    shown = [pictures[name] for name in ("street_1.jpg", "fruits.jpg", "clock.png")]
    monkeypatch.setattr(measurement, "pictures", lambda: shown)
    return shown


def test_what_is_measured_of_a_runtime(three, detector, monkeypatch):
    load, loaded = Detector.load, []
    monkeypatch.setattr(Detector, "load", lambda **how: (loaded.append(how.get("slots")), load(**how))[1])
    row = measure("openvino", "f32", seconds=0.2)
    assert loaded == [None, 1]  # with every core, then on one
    assert row["version"] == detector.version == "yolov3-tiny/openvino-f32"
    assert row["answers"] == [[(d.label, d.confidence, *d.box) for d in detector.detect(picture)] for picture in three]
    assert found(json.loads(json.dumps(row["answers"])), row["answers"], 0.99) == 1  # it survives being written down
    assert 0 < row["one"] <= row["p95"] and row["all"] > 0 and row["memory"] > 0
    assert row["disk"] == pytest.approx(35.5, abs=0.5)  # 8.9 million weights of 4 bytes


def test_size_on_disk_is_that_of_the_weights():
    parameters = 8.858734e6  # of yolov3-tiny, as the Darknet file's size says: (35,434,956 - 20) / 4
    assert compute.size_on_disk("opencv") == pytest.approx(parameters * 4 / 1e6, rel=0.01)
    assert compute.size_on_disk("litert") == pytest.approx(parameters / 1e6, rel=0.02)


def test_a_fresh_process_measures_and_says_what_is_wrong(monkeypatch, tmp_path):
    with pytest.raises(MeasurementFailed, match="no runtime 'abacus'"):
        compute.weigh("abacus", "f32")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho loading\necho "{\\"arguments\\": \\"$*\\"}"\n')
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    assert compute.weigh("openvino", "f32", 2) == {"arguments": "-m labsupport.compute openvino f32 2"}
    assert compute.weigh("browser", "f32", 2) == {"arguments": "-m labsupport.compute.in_browser 2"}


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("#!/bin/sh\nexec sleep 60\n", "not measured within 0.2 s"),
        ("#!/bin/sh\n", "printed no figures"),
        ("#!/bin/sh\necho ready\n", "printed no figures"),
        ("#!/bin/sh\nkill -9 $$\n", "exit status -9"),
        ("no program", "no process was started"),
    ],
)
def test_a_process_that_does_not_measure_is_the_promised_error(monkeypatch, tmp_path, program, message):
    python = tmp_path / "python"
    python.write_text(program)
    python.chmod(0o700 if program.startswith("#!") else 0o600)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(measurement, "LIMIT", 0.1)
    with pytest.raises(MeasurementFailed, match=message):
        compute.weigh("openvino", "f32", 0.1)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("#!/bin/sh\nexec sleep 60\n", "not ready after 0.3 s"),  # it never says where it listens
        ("#!/bin/sh\necho serving on http://127.0.0.1:9 until interrupted\nexec sleep 60\n", "not ready after 0.3 s"),
        ("#!/bin/sh\necho no room >&2\nexit 3\n", r"exit status 3\): no room"),
    ],
)
def test_a_server_that_says_nothing_is_the_promised_error(monkeypatch, tmp_path, program, message):
    python = tmp_path / "python"
    python.write_text(program)
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(measurement, "LIMIT", 0.3)
    with pytest.raises(MeasurementFailed, match=message), server_process():
        pass


def test_a_server_that_does_not_stop_is_killed(monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\n{DEAF}")
    python.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(measurement, "ENDING", 0.1)
    with server_process() as url:
        pass
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{url}/ready", timeout=5)


DEAF = """
import http.server, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
server = http.server.HTTPServer(("127.0.0.1", 0), Ready)
print(f"serving on http://127.0.0.1:{server.server_port} until interrupted", flush=True)
server.serve_forever()
"""


def test_throughput_raises_what_the_work_raises():
    with pytest.raises(ZeroDivisionError):
        compute.throughput(lambda turn: 1 / (turn - 3), threads=2, seconds=10)


def test_on_a_machine_so_busy_that_the_time_is_over_before_a_thread_begins_throughput_is_still_a_rate():
    assert compute.throughput(lambda turn: None, threads=2, seconds=1e-9) > 0


def test_throughput_uses_every_thread(monkeypatch):
    """The first calls only return when three are made at once; each thread's own calls are counted from 0."""
    together, turns = threading.Barrier(3), []

    def work(turn):
        if turn < 2:
            turns.append(turn)
        if turn == 0:
            together.wait(timeout=10)

    # the time is over when each thread has made its second call, however busy the machine is
    monkeypatch.setattr(measurement, "time", SimpleNamespace(perf_counter=lambda: float(turns.count(1) == 3)))
    assert compute.throughput(work, threads=3, seconds=0.5) > 0
    assert turns.count(0) == turns.count(1) == 3


def test_times_leave_out_the_first_call():
    calls = []
    assert times(lambda: calls.append(1), repeats=4).shape == (4,) and len(calls) == 5


# the server


def run(latencies, seconds, outcome=targets.ANSWERED):
    return loadtest.Run(seconds, np.array(latencies), np.array([outcome] * len(latencies)))


@pytest.fixture
def loads(monkeypatch):
    """What a closed loop of so many clients, and an open loop of a rate and a time, will have measured."""
    measured = {4: run([0.02], 1.0), 12: run([0.03] * 240, 3.0)}
    monkeypatch.setattr(loadtest, "closed_loop", lambda target, clients, seconds: measured[clients])
    monkeypatch.setattr(
        loadtest, "open_loop", lambda target, rate, seconds, seed: measured[round(rate, 6), round(seconds, 6)]
    )
    return measured


def test_a_calibration_is_littles_law(loads):
    """What is worked on at once is rate x time: here 80 a second, 25 ms each, so two at full speed."""
    loads[9.6, 1.0] = run([0.02, 0.02, 0.02, 0.03, 0.035] * 2, 1.0)
    model = calibrated(None, light=9.6, seconds=3, cores=2)
    assert model.cores == pytest.approx(80 * 0.025)
    assert model.capacity == pytest.approx(80)
    assert model.slots == 4 + 1  # and the event loop
    assert model.places == 4 * (1 + 9)


def test_a_calibration_in_which_requests_are_refused_is_none(loads):
    loads[9.6, 1.0] = run([0.001] * 9, 1.0, targets.REFUSED)
    with pytest.raises(MeasurementFailed, match="under a light load"):
        calibrated(None, light=9.6, seconds=3, cores=2)
    loads[9.6, 1.0] = run([0.02] * 10, 1.0)
    loads[12] = run([], 1.0)
    with pytest.raises(MeasurementFailed, match=r"^0 of 0 requests were answered at full load"):
        calibrated(None, light=9.6, seconds=3, cores=2)
    loads[12] = loadtest.Run(3.0, np.full(480, 0.03), np.array([targets.ANSWERED, targets.FAILED] * 240))
    with pytest.raises(MeasurementFailed, match=r"^240 of 480 requests were answered at full load"):
        calibrated(None, light=9.6, seconds=3, cores=2)


def test_a_server_process_answers_and_ends_with_its_block():
    picture = (paths.IMAGES / "street_1.jpg").read_bytes()
    with server_process("f32") as url:
        answer = requests.post(f"{url}/detect", files={"file": picture}, timeout=60).json()
        assert answer["version"] == "yolov3-tiny/openvino-f32"
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{url}/health", timeout=5)


def test_a_server_that_does_not_start_says_why():
    with pytest.raises(MeasurementFailed, match="did not start"), server_process("f8"):
        pass


def test_the_command_prints_json(tmp_path):
    """In a lab with one picture: what `weigh` reads."""
    for folder in ("images", "notebooks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes((paths.IMAGES / "street_1.jpg").read_bytes())
    command = [sys.executable, "-m", "labsupport.compute", "openvino", "f32", "0.1"]
    environment = {**os.environ, "LAB_ROOT": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    row = json.loads(done.stdout.splitlines()[-1])
    assert len(row["answers"]) == 1 and {label for label, *_ in row["answers"][0]} >= {"person"}


# the check cells of compute.ipynb

SERVER = Server(np.linspace(0.018, 0.022, 50), slots=3, cores=2, places=39)  # 100 requests/s
COLUMNS = {"exact %": [89.2, 100.0, 99.5, 100.0], "$ a million": [0.4, 0.5, 0.7, float("nan")]}
TABLE = pd.DataFrame(COLUMNS, index=["a", "b", "c", "d"])


@pytest.mark.parametrize(
    "answer, verdict",
    [
        (4, "Right."),
        (5, "so are fewer: think of 4"),
        (3, "only while all of them run"),
        (2, "gets 200 requests/s, more than the capacity of 100/s"),
        (1, "nobody gets an answer"),
        (None, "a whole number"),
        (2.5, "a whole number"),
    ],
)
def test_enough_machines(answer, verdict, capsys):
    compute_checks.enough_machines.check(answer, SERVER)
    assert verdict in capsys.readouterr().out


def test_too_few_machines_are_told_their_99th_percentile(capsys):
    slow = Server([0.09, 0.11], slots=3, cores=2, places=39)  # 20 requests/s: 11 machines have 18.2 each
    compute_checks.enough_machines.check(12, slow)
    assert "gets 18 requests/s, and their 99th percentile is" in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer, verdict",
    [
        (SERVER.predict(50).p99, "Right."),
        (1000 * SERVER.predict(50).p99, "in milliseconds"),
        (SERVER.predict(50).p50, "that is the median"),
        (SERVER.predict(90).p99, "Half of server.capacity"),
        (None, "give seconds"),
    ],
)
def test_half_load(answer, verdict, capsys):
    compute_checks.half_load.check(answer, SERVER)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "answer, verdict",
    [
        ("b", "Right."),
        ("a", "a finds only 89.2 % exactly, and at least 99 % are needed"),
        ("c", "a runtime that costs less than c is exact enough, too"),
        ("d", "d has no price"),
        (None, "give one of a, b, c, d"),
    ],
)
def test_cheapest(answer, verdict, capsys):
    compute_checks.cheapest.check(answer, TABLE)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "estimate, keeps, verdict",
    [
        (355.4, False, "Right."),
        (np.float64(360), np.bool_(False), "Right."),
        (355.4, True, "355 ms are above the limit of 200 ms"),
        (0.3554, False, "give milliseconds"),
        (2.533, True, "yolov3 needs more operations"),
        (212.6, False, "compare the operations"),
        (90, True, "by the same factor as the operations"),
        (None, False, "give a number of milliseconds"),
        (355.4, "no", "and True or False"),
    ],
)
def test_larger_model(estimate, keeps, verdict, capsys):
    """If yolov3-tiny takes 30 ms."""
    compute_checks.larger_model.check(estimate, keeps, 30.0)
    assert verdict in capsys.readouterr().out


def test_a_larger_model_on_a_fast_machine(capsys):
    compute_checks.larger_model.check(59.2, False, 5.0)
    compute_checks.larger_model.check(59.2, True, 5.0)
    assert capsys.readouterr().out == "Not yet: 59 ms are within the limit of 200 ms\nRight.\n"


CPU, GPU = Machine("cpu", cores=2, dollars_per_hour=0.1), Machine("gpu", cores=4, dollars_per_hour=0.6)


@pytest.mark.parametrize(
    "answer, verdict",
    [
        (1_200, "Right."),
        (6, "of which rate?"),
        (33.3, "slower than the CPU"),
        (200, "costs more a picture"),
        (5_000, "must be the same on both"),
        (None, "give a number"),
    ],
)
def test_gpu_break_even(answer, verdict, capsys):
    compute_checks.gpu_break_even.check(answer, 200, CPU, GPU)
    assert verdict in capsys.readouterr().out


def test_at_a_rate_at_which_two_slips_are_nearly_one_number_the_nearer_is_named(capsys):
    factor = GPU.dollars_per_hour / CPU.dollars_per_hour
    rate = 1.002 * factor**2
    compute_checks.gpu_break_even.check(factor, rate, CPU, GPU)
    compute_checks.gpu_break_even.check(rate / factor, rate, CPU, GPU)
    first, second = capsys.readouterr().out.strip().splitlines()
    assert "of which rate?" in first and "slower than the CPU" in second


@pytest.mark.parametrize(
    "answer, verdict",
    [
        (20, "Right."),
        (27, "the process itself takes 250 MB"),
        (250, "decoded pictures are larger"),
        (21, "21 pictures and the process take 1,006 MB"),
        (12, "more would fit"),
        (20.8, "a whole number"),
    ],
)
def test_queue_in_memory(answer, verdict, capsys):
    compute_checks.queue_in_memory.check(answer)
    assert verdict in capsys.readouterr().out


def test_usage_counts_the_work_and_the_memory_of_child_processes():
    picture = (paths.IMAGES / "clock.png").read_bytes()
    with compute.server_process() as url:
        spent = compute.usage(f"{url}/detect", picture, clients=2, seconds=0.5)
        with pytest.raises(MeasurementFailed, match="no request was answered"):
            compute.usage(f"{url}/nothing-here", picture, clients=1, seconds=0.1)
    assert spent["processes"] >= 1
    assert spent["answers/s"] > 0 < spent["CPU ms an answer"] < 5_000
    assert 50 < spent["memory MB"] < 5_000
    assert spent["p50 ms"] <= spent["p99 ms"]


def test_the_figures_name_their_axes_and_mark_the_capacity():
    run = loadtest.Run(1.0, np.array([0.01, 0.02]), np.array([targets.ANSWERED] * 2))
    knee = compute.figures.knee([run], [run, run], rates=[1, 2], capacity=2)
    assert [axes.get_ylabel() for axes in knee.axes] == ["p99, ms", "refused, %"]
    assert "capacity" in knee.axes[0].texts[0].get_text()
    predicted = SERVER.predict(50, requests=1_000)
    model = compute.figures.modelled([0.5], [run], [predicted], [0.2, 0.5], [predicted] * 2, "It held")
    (axes,) = model.axes
    assert (axes.get_xlabel(), axes.get_title(loc="left")) == ("load, % of the capacity", "It held")
