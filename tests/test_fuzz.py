"""The fuzz of `images.decode`, in short: it finds nothing, and it does find what there is to be found."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fuzz_images
import hostile_images
from labsupport import images
from labsupport.images import UnsupportedImage

FUZZ = Path(fuzz_images.__file__)
needs_atheris = pytest.mark.skipif(
    not importlib.util.find_spec("atheris"), reason="atheris is not installed: it has wheels for Linux on x86-64 only"
)


def run(program: Path, *words) -> subprocess.CompletedProcess:
    command = [sys.executable, program, *map(str, words)]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")


@needs_atheris
def test_nothing_is_found_in_some_thousand_pictures(tmp_path):
    done = run(FUZZ, "--folder", tmp_path, "--runs", 8_000, "--seconds", 60)
    assert done.returncode == 0, done.stdout[-5_000:]
    assert not list((tmp_path / "found").iterdir())
    started, ended = (
        int(re.search(rf"^#\d+\s+{when} +cov: (\d+)", done.stdout, re.M)[1]) for when in ("INITED", "DONE")
    )
    assert started > 200  # places in the code that the pictures it starts from reach
    assert ended > started
    assert int(re.search(r"^stat::number_of_executed_units: (\d+)", done.stdout, re.M)[1]) > 1_000


# it finds what is wrong


def broken(folder: Path, line: str) -> Path:
    """The fuzz of a decode that goes wrong at this line."""
    program = folder / "broken.py"
    program.write_text(f"""
import sys
sys.path.insert(0, {str(FUZZ.parent)!r})
import fuzz_images

_, images = fuzz_images.instrumented()
whole = images.decode

def decode(data):
    picture = whole(data)
    {line}
    return picture

images.decode = decode
fuzz_images.main()
""")
    return program


@needs_atheris
def test_a_fault_that_only_a_changed_picture_shows_is_found_and_kept(tmp_path):
    """A chunk that comes twice: it must make one, and give it the checksum without which the picture is refused."""
    twice = 'any(data.count(name) > 1 for name in (b"IHDR", b"PLTE", b"tRNS", b"gAMA", b"sRGB"))'
    assert not any(eval(twice, {"data": data}) for data in fuzz_images.seeds().values())
    program = broken(tmp_path, f'if {twice}: raise ValueError("odd")')
    done = run(program, "--folder", tmp_path, "--seconds", 120)
    assert done.returncode != 0
    assert "ValueError: odd" in done.stdout
    (found,) = (tmp_path / "found").iterdir()
    assert eval(twice, {"data": found.read_bytes()})


@needs_atheris
@pytest.mark.parametrize(
    ("line", "message", "timeout"),
    [("while True: pass", "libFuzzer: timeout", 1), ("bytearray(900_000_000)", "bytes of memory", 20)],
    ids=["time", "memory"],
)
def test_a_picture_that_takes_too_much_is_found_when_it_is_named(line, message, timeout, tmp_path):
    picture = tmp_path / "picture.png"
    picture.write_bytes(images.encode(np.zeros((8, 8, 3), np.uint8), "png"))
    done = run(broken(tmp_path, line), "--folder", tmp_path, "--timeout", timeout, picture)
    assert done.returncode != 0
    assert message in done.stdout


@pytest.fixture
def terminal(monkeypatch):
    """`judge` takes its process's terminal: here it gets it back."""
    monkeypatch.setattr(fuzz_images, "most_memory", lambda: 1)  # the tests' own is no business of it
    kept = os.dup(2)
    yield
    os.dup2(kept, 2)
    os.close(kept)
    os.close(fuzz_images.console)
    fuzz_images.console = -1


def refuse() -> None:
    raise UnsupportedImage from MemoryError()


@pytest.mark.skipif(sys.platform != "linux", reason="what is written to the terminal is caught in a memfd")
@pytest.mark.parametrize(
    ("fault", "limits", "message"),
    [
        (lambda picture: picture[..., 0], {}, "not enough values"),
        (lambda picture: picture[..., :1], {}, "1 channels of uint8"),
        (lambda picture: picture / 255, {}, "3 channels of float64"),
        (lambda picture: picture[:0], {}, "8 x 0 pixels"),
        (lambda picture: np.zeros((5_001, 5_001, 3), np.uint8), {}, "5001 x 5001 pixels"),
        (lambda picture: np.zeros((65_501, 1, 3), np.uint8), {}, "a JPEG has at most 65,500 pixels"),
        (lambda picture: os.write(2, b"odd"), {}, "written to the terminal: b'odd'"),
        (lambda picture: refuse(), {}, "more memory than there is"),
        (lambda picture: picture, {"MOST_SECONDS": 0}, "seconds of work"),
        (lambda picture: picture, {"MOST_MEMORY": 1}, "bytes of memory"),
    ],
)
def test_every_promise_is_watched(fault, limits, message, terminal, monkeypatch):
    data = images.encode(np.zeros((8, 8, 3), np.uint8), "png")
    fuzz_images.judge(data)
    whole = images.decode
    monkeypatch.setattr(images, "decode", lambda data: fault(whole(data)))
    for name, limit in limits.items():
        monkeypatch.setattr(fuzz_images, name, limit)
    with pytest.raises((AssertionError, AttributeError, ValueError), match=message):
        fuzz_images.judge(data)


# large files


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process's memory is read from /proc")
def test_files_of_twenty_megabytes_cost_little_whatever_is_in_them(tmp_path):
    """The dearest of `hostile_images`, or those that once were; by hand all of them run."""
    names = (
        "JPEG: EXIF segments",
        "JPEG: ICC segments behind the pixels",
        "JPEG: filling behind the pixels",
        "JPEG: Huffman tables",
        "JPEG: three scans of a colour each",
        "JPEG: 40 scans of 25 megapixels",
        "PNG: empty IDATs",
        "PNG: compressed texts",
        "PNG: empty blocks in front of many rows",
        "PNG: RGBA of a few kilobytes",
    )
    files = [tmp_path / str(number) for number in range(len(names))]
    for name, file in zip(names, files, strict=True):
        file.write_bytes(hostile_images.HOSTILE[name]())
    costs = hostile_images.cost(*files)
    for name, (seconds, grown, answer) in zip(names, costs, strict=True):
        assert seconds < hostile_images.MOST_SECONDS, (name, answer)
        assert grown < hostile_images.MOST_MEMORY, (name, answer)


def test_a_cost_is_measured(tmp_path):
    """Else the test above would mean nothing. Of 18 MB of pixels some may fall into memory that was there before."""
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(images.encode(np.zeros((2_000, 3_000, 3), np.uint8)))
    ((seconds, grown, answer),) = hostile_images.cost(picture)
    assert answer == "3000 x 2000"
    assert 0.002 < seconds < 2 and 15_000_000 < grown < 200_000_000


# what it starts from


def test_what_is_taken_apart_is_whole_again_when_put_together():
    for name, data in {**fuzz_images.jpegs(), **fuzz_images.pngs()}.items():
        start, parts, end = fuzz_images.taken_apart(data)
        put = fuzz_images.chunk if start == fuzz_images.PNG_START else fuzz_images.segment
        assert len(parts) >= 3, name
        assert start + b"".join(put(*part) for part in parts) + end == data, name


@pytest.mark.filterwarnings("ignore::UserWarning")  # as it is outside the tests
def test_it_starts_from_pictures_that_are_read_and_from_some_that_are_not():
    for data in {**fuzz_images.jpegs(), **fuzz_images.pngs()}.values():
        assert images.decode(data).size
    for name, data in fuzz_images.traps().items():
        if "_5000" not in name and "Xt_" not in name and "iCCP" not in name:
            with pytest.raises((UnsupportedImage, images.ImageTooLarge)):
                images.decode(data)
