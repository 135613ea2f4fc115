"""Content decides what is a picture, in a batch and before a camera; what is left out is counted and named."""

import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import pytest

from labsupport import batch, images, paths
from labsupport.batch.ledger import BatchUnwritable
from labsupport.edge import Camera
from labsupport.edge.camera import CameraUnavailable
from labsupport.images import NoPictures, folders
from test_batch import Seer, film, picture, read, run

PNG = images.encode(picture(1), "png")
JPEG = images.encode(picture(2))
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)
WEBP = cv2.imencode(".webp", picture(3))[1].tobytes()


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, body in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    return folder


def names(folder: Path, files: list[Path]) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in files)


def test_what_can_be_read_is_found_by_its_content_and_the_rest_is_named(tmp_path, caplog):
    film(tmp_path / "film.avi", frames=3)
    shutil.copy(tmp_path / "film.avi", tmp_path / "film of no name")
    shutil.copy(tmp_path / "film.avi", tmp_path / "film.jpg")
    fill(
        tmp_path,
        {
            "a.jpg": JPEG,
            "b.jfif": JPEG,
            "c.jpe": PNG,
            "D.JPG": JPEG,
            "e": PNG,
            "f.dat": JPEG,
            "g.mp4": PNG,
            "below/h.bin": JPEG,
            "broken.jfif": b"",
            "broken.png": b"text",
            "broken.mov": b"",
            "i.HEIC": HEIC,
            "j.webp": WEBP,
            "k.gif": b"GIF89a",
            "notes.txt": b"notes",
            "raw.bin": bytes(100),
            "nothing": b"",
            ".hidden.jpg": JPEG,
            ".DS_Store": bytes(9),
            ".git/l.png": PNG,
        },
    )
    found = folders.found(tmp_path)
    assert names(tmp_path, found.pictures) == [
        "D.JPG", "a.jpg", "b.jfif", "below/h.bin", "broken.jfif", "broken.png", "c.jpe", "e", "f.dat", "g.mp4",
    ]  # fmt: skip
    assert names(tmp_path, found.videos) == ["broken.mov", "film of no name", "film.avi", "film.jpg"]
    assert found.left_out == {
        "i.HEIC": "a HEIC picture",
        "j.webp": "a WebP picture",
        "k.gif": "a GIF picture",
        "notes.txt": "text",
        "raw.bin": "a file of no known kind",
        "nothing": "empty",
        ".hidden.jpg": "hidden",
    }
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert ": 7 left out: .hidden.jpg (hidden), i.HEIC (a HEIC picture), " in record.getMessage()


def test_a_batch_says_what_it_left_out(tmp_path, caplog):
    fill(tmp_path / "in", {"a.jfif": JPEG, "b": PNG, "c.HEIC": HEIC, "d.webp": WEBP, "broken.jpe": b"text"})
    done = run(tmp_path / "in", tmp_path / "out.csv")
    assert (done, done.left_out) == (
        batch.Summary(3, 1, 0),
        {"c.HEIC": "a HEIC picture", "d.webp": "a WebP picture"},
    )
    rows = {row["file"]: row["error"] for row in read(tmp_path / "out.csv")}
    assert rows == {
        "a.jfif": None,
        "b": None,
        "broken.jpe": "UnsupportedImage: not a JPEG or PNG picture but text: send one of these",
    }
    assert "2 left out: c.HEIC (a HEIC picture), d.webp (a WebP picture)" in caplog.text


def test_the_command_says_what_it_left_out(tmp_path):
    fill(tmp_path / "in", {"a.jpg": JPEG, "b.HEIC": HEIC, "c.HEIC": HEIC})
    command = [sys.executable, "-m", "labsupport", "batch", "in", "--out", "out.csv"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "LAB_ROOT": str(paths.root())}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "out.csv: 1 rows, 0 with an error, 0 from an earlier run, 2 files left out\n"
    assert "2 left out: b.HEIC (a HEIC picture), c.HEIC (a HEIC picture)" in done.stderr


def test_many_that_are_left_out_are_all_counted_and_ten_are_named(tmp_path, caplog):
    fill(tmp_path, {"a.jpg": JPEG, **{f"{number:03}.txt": b"x" for number in range(300)}})
    assert len(folders.found(tmp_path).left_out) == 300
    assert ": 300 left out: 000.txt (text), " in caplog.text and "009.txt (text), ..." in caplog.text
    assert "010.txt" not in caplog.text


def test_nothing_to_look_at_says_what_is_there(tmp_path):
    fill(tmp_path, {"a.HEIC": HEIC})
    with pytest.raises(NoPictures, match=r"no picture or video in it: 1 left out: a\.HEIC \(a HEIC picture\)"):
        folders.found(tmp_path)
    with pytest.raises(NoPictures, match=r"no picture or video in it: 1 left out: a\.HEIC \(a HEIC picture\)"):
        folders.found(tmp_path / "a.HEIC")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoPictures, match=r"no picture or video in it \(\.jfif, "):
        folders.found(tmp_path / "empty")


def test_a_single_file_counts_whatever_it_is_called(tmp_path):
    fill(tmp_path, {".hidden": JPEG, "no name": PNG})
    for name in (".hidden", "no name"):
        assert folders.found(tmp_path / name) == ([tmp_path / name], [], {})


def test_what_is_no_file_stops_nobody(tmp_path):
    """Neither pipes, nor sockets, links to nothing, links in a circle, or devices."""
    fill(tmp_path, {"a.jpg": JPEG})
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "itself.jpg").symlink_to(tmp_path / "itself.jpg")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "again").symlink_to(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        folder = os.open(tmp_path, os.O_RDONLY)
        try:
            listening.bind(f"/proc/self/fd/{folder}/s.jpg")
        finally:
            os.close(folder)
        finished = threading.Event()
        threading.Thread(target=lambda: (run(tmp_path, tmp_path / "out.csv"), finished.set()), daemon=True).start()
        assert finished.wait(60), "the batch hangs"
    errors = {row["file"]: row["error"] for row in read(tmp_path / "out.csv")}
    assert errors.pop("itself.jpg").startswith("OSError: ")
    assert errors == {
        "a.jpg": None,
        "device.png": "UnsupportedImage: this is no file",
        "gone.jpg": "FileNotFoundError: No such file or directory",
        "pipe.jpg": "UnsupportedImage: this is no file",
        "s.jpg": "UnsupportedImage: this is no file",
    }
    (tmp_path / "out.csv").unlink()
    left_out = folders.found(tmp_path).left_out
    assert left_out == {"device": "no file", "pipe": "no file", "gone": "cannot be read: No such file or directory"}


@pytest.fixture
def closed(monkeypatch):
    """Files and folders called `closed` cannot be read: what permissions do to anybody but root."""
    scan, open_ = os.scandir, os.open

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", lambda path: refuse(path) or scan(path))
    monkeypatch.setattr(os, "open", lambda path, *rest, **more: refuse(path) or open_(path, *rest, **more))


def test_what_may_not_be_read_is_named(tmp_path, closed):
    fill(tmp_path, {"a.jpg": JPEG, "closed": JPEG, "below/closed/b.jpg": JPEG})
    assert folders.found(tmp_path).left_out == {
        "closed": "cannot be read: Permission denied",
        "below/closed/": "cannot be listed: Permission denied",
    }
    (tmp_path / "closed").unlink()
    (tmp_path / "closed").mkdir()
    with pytest.raises(PermissionError):
        folders.found(tmp_path / "closed")


def test_names_that_are_no_text_are_printed_as_such(tmp_path, caplog):
    odd = os.fsdecode(b"\xff,\n.txt")
    fill(tmp_path, {"a,\n.jpg": JPEG, odd: b"notes"})
    assert folders.found(tmp_path).left_out == {r"\udcff,\n.txt": "text"}
    assert caplog.text.count("\n") == 1
    run(tmp_path, tmp_path.parent / "out.csv")
    assert [row["file"] for row in read(tmp_path.parent / "out.csv")] == ["a,\n.jpg"]


def test_a_file_that_vanishes_or_changes_meanwhile_is_a_row(tmp_path):
    fill(tmp_path / "in", {f"{number}.jpg": JPEG for number in range(4)})

    class Meddling(Seer):
        def detect(self, image, confidence=0.5):
            (tmp_path / "in/1.jpg").unlink(missing_ok=True)
            (tmp_path / "in/2.jpg").write_bytes(b"")
            if not (tmp_path / "in/3.jpg").is_dir():
                (tmp_path / "in/3.jpg").unlink()
                (tmp_path / "in/3.jpg").mkdir()
            return super().detect(image, confidence)

    assert run(tmp_path / "in", tmp_path / "out.csv", Meddling(slots=1)) == batch.Summary(4, 3, 0)
    assert [row["error"] for row in read(tmp_path / "out.csv")] == [
        None,
        "FileNotFoundError: No such file or directory",
        "UnsupportedImage: the file is empty: send a JPEG or PNG picture",
        "UnsupportedImage: this is no file",
    ]


def test_a_batchs_own_table_in_the_folder_is_not_mentioned(tmp_path):
    fill(tmp_path, {"a.jpg": JPEG})
    for _ in range(2):
        assert run(tmp_path, tmp_path / "out.csv").left_out == {}


# nothing of the user's is overwritten


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("prices.csv", b"file,price\nphone,5\n"),
        ("prices.csv", b"\xff\xd8\xff"),
        ("prices.csv", b"one line"),
        ("a.parquet", b"PAR1 and nothing else"),
        ("photo.CSV", JPEG),
    ],
)
def test_a_file_that_is_no_table_of_ours_is_never_replaced(name, body, tmp_path):
    fill(tmp_path, {"in/a.jpg": JPEG, name: body})
    (tmp_path / "link.csv").symlink_to(tmp_path / name)
    for out in (name, *["link.csv"] * name.endswith("csv")):
        with pytest.raises(BatchUnwritable, match="no table of a batch, and is not replaced: name another file"):
            run(tmp_path / "in", tmp_path / out, seer := Seer())
        assert not seer.shown
    assert (tmp_path / name).read_bytes() == body
    assert {path.name for path in tmp_path.iterdir()} == {"in", name, "link.csv"}


def test_another_programs_parquet_is_not_replaced_either(tmp_path):
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"file": [1], "price": [2]}), tmp_path / "prices.parquet")
    fill(tmp_path, {"in/a.jpg": JPEG})
    before = (tmp_path / "prices.parquet").read_bytes()
    with pytest.raises(BatchUnwritable, match="is not replaced"):
        run(tmp_path / "in", tmp_path / "prices.parquet")
    assert (tmp_path / "prices.parquet").read_bytes() == before


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_an_empty_file_and_a_table_of_ours_are_replaced(kind, tmp_path):
    fill(tmp_path, {"in/a.jpg": JPEG, f"out.{kind}": b""})
    for count in (1, 2):
        assert run(tmp_path / "in", tmp_path / f"out.{kind}").rows == count
        fill(tmp_path, {"in/b.jpg": JPEG})
    assert len(read(tmp_path / f"out.{kind}")) == 2


def test_a_file_that_appears_during_the_night_is_spared_and_no_picture_is_lost(tmp_path):
    fill(tmp_path, {"in/a.jpg": JPEG})

    class Slow(Seer):
        def detect(self, image, confidence=0.5):
            (tmp_path / "out.csv").write_text("price\n5\n")
            return super().detect(image, confidence)

    with pytest.raises(BatchUnwritable, match=r"no table of a batch, and is not replaced.*what is done is kept"):
        run(tmp_path / "in", tmp_path / "out.csv", Slow())
    assert (tmp_path / "out.csv").read_text() == "price\n5\n"
    (tmp_path / "out.csv").unlink()
    assert run(tmp_path / "in", tmp_path / "out.csv", seer := Seer()) == batch.Summary(1, 0, 1)
    assert not seer.shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence": "0.5"}, "confidence='0.5': give a number from 0 to 1"),
        ({"confidence": True}, "confidence=True"),
        ({"confidence": None}, "confidence=None"),
        ({"every": 1.5}, "every=1.5: give a whole number of at least 1"),
        ({"every": True}, "every=True"),
        ({"every": "2"}, "every='2'"),
        ({"folder": None}, "folder=None: give a path"),
        ({"folder": ""}, "folder=''"),
        ({"folder": 5}, "folder=5"),
        ({"out": None}, "out=None: give a path"),
        ({"out": "a\0.csv"}, "out="),
    ],
)
def test_a_batchs_arguments_are_checked(options, message, tmp_path):
    fill(tmp_path, {"a.jpg": JPEG})
    given = {"folder": tmp_path, "out": tmp_path / "out.csv", "detector": Seer(), "progress": False, **options}
    with pytest.raises(ValueError, match=message):
        batch.predict_folder(**given)


# before a camera


def test_a_camera_shows_what_is_a_picture_and_logs_what_is_not(tmp_path, caplog):
    fill(tmp_path, {"a.jfif": JPEG, "b": PNG, "c.HEIC": HEIC, "d.png": b"text", "notes.txt": b"notes", ".e.png": PNG})
    os.mkfifo(tmp_path / "f")
    os.mkfifo(tmp_path / "g.jpg")
    seen = [(name, image is not None) for name, image in Camera(tmp_path)]
    assert seen == [("a.jfif", True), ("b", True), ("d.png", False), ("g.jpg", False)]
    said = caplog.text
    assert "c.HEIC: no JPEG or PNG picture, but a HEIC picture: left out" in said
    assert "notes.txt: no JPEG or PNG picture, but text: left out" in said
    assert "f: no JPEG or PNG picture, but no file: left out" in said
    assert "d.png: not a JPEG or PNG picture but text: send one of these" in said


def test_a_camera_reads_no_larger_frames_than_a_batch(tmp_path, monkeypatch):
    film(tmp_path / "belt.avi", frames=2)
    assert len(list(Camera(tmp_path / "belt.avi"))) == 2
    monkeypatch.setattr(images, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(CameraUnavailable, match="64 x 48 pixels: send at most 3,071"):
        Camera(tmp_path / "belt.avi")


def test_a_camera_waits_for_no_pipe(tmp_path):
    os.mkfifo(tmp_path / "belt.avi")
    with pytest.raises(CameraUnavailable, match="neither a folder nor a file"):
        Camera(tmp_path / "belt.avi")


@pytest.mark.parametrize("source", [None, "", True, -1, 1.5, b"folder", "a\0"])
def test_a_camera_says_what_it_can_be_made_of(source):
    with pytest.raises(ValueError, match=r"source=.*: give a folder, a video file, or the number of a device"):
        Camera(source)
