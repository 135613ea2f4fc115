"""A batch is looked at once, whatever stops it: the table of a run that was killed is the table of one that was not."""

import csv
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import requests
from pyarrow import parquet

from labsupport import batch, images, paths
from labsupport.batch import ledger, predict_folder, prediction
from labsupport.batch.ledger import BatchRunning, BatchUnwritable
from labsupport.detection import Box, Detection, videos
from labsupport.edge import Camera
from labsupport.images import NoPictures, codec


class Seer:
    """A detector that costs nothing: its confidence is the first pixel's blue, and it notes every picture it is shown."""

    def __init__(self, slots: int = 2, version: str = "seer/1") -> None:
        self.slots, self.version, self.shown = slots, version, []

    def detect(self, image: np.ndarray, confidence: float = 0.5) -> list[Detection]:
        sure = int(image[0, 0, 0]) / 256
        self.shown.append(number(image))
        return [Detection("cat", sure, Box(0, 0, *image.shape[1::-1]))] if sure > confidence else []


class Stopped(BaseException):
    """As an interrupt is: no error that a row could hold."""


class Stopping(Seer):
    """Is interrupted at its n-th picture, before it has an answer."""

    def __init__(self, at: int, slots: int = 1) -> None:
        super().__init__(slots)
        self.at = at

    def detect(self, image, confidence=0.5):
        if len(self.shown) + 1 >= self.at:
            raise Stopped
        return super().detect(image, confidence)


class Dying(Seer):
    """Kills its process at its n-th picture, as kill -9 does; what it was shown is in a file."""

    def __init__(self, at: int, shown: Path) -> None:
        super().__init__()
        self.at, self.file = at, os.open(shown, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def detect(self, image, confidence=0.5):
        found = super().detect(image, confidence)
        os.write(self.file, b"%d\n" % number(image))
        if len(self.shown) >= self.at > 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return found


def picture(which: int) -> np.ndarray:
    image = np.full((12, 16, 3), which % 256, np.uint8)
    image[0, 0] = (which % 256, which // 256, 0)
    return image


def number(image: np.ndarray) -> int:
    """Which picture it is."""
    return int(image[0, 0, 0]) + 256 * int(image[0, 0, 1])


def fill(folder: Path, count: int) -> Path:
    """Pictures 0, 1, 2, ... in subfolders of a hundred."""
    for which in range(count):
        path = folder / f"{which // 100}" / f"{which:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(images.encode(picture(which), "png"))
    return folder


def film(path: Path, frames: int = 20, codec: str = "MJPG") -> Path:
    """A video whose frame n is of gray 10 n."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), 10, (64, 48))
    assert writer.isOpened()
    for number in range(frames):
        writer.write(np.full((48, 64, 3), 10 * number, np.uint8))
    writer.release()
    return path


def run(folder: Path, out: Path, detector=None, **options) -> batch.Summary:
    return predict_folder(folder, out, detector or Seer(), progress=False, **options)


def read(out: Path) -> list[dict]:
    """The rows of a table, by readers of their own: what a CSV holds as text gets its kind back."""
    if out.suffix == ".parquet":
        return parquet.read_table(out).to_pylist()
    kinds = {str: str, int: int, float: float, list: json.loads}
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [
        {name: kinds[kind](row[name]) if row[name] else None for name, kind in ledger.COLUMNS.items()} for row in rows
    ]


def as_lists(rows: list[dict]) -> list[dict]:
    """Boxes as CSV has them."""
    for row in rows:
        for found in row["detections"] or []:
            found["box"] = list(found["box"].values())
    return rows


@pytest.fixture
def folder(tmp_path):
    return fill(tmp_path / "pictures", 30)


# the same answers as elsewhere


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_every_picture_of_the_lab_gets_the_detectors_own_answer_to_the_last_digit(kind, detector, pictures, tmp_path):
    out = tmp_path / f"found.{kind}"
    done = run(paths.IMAGES, out, detector, confidence=0.3)
    table = {row["file"]: row for row in read(out)}
    assert done == batch.Summary(len(table), 0, 0)
    assert set(pictures) < set(table) and sum(name.startswith("street/") for name in table) == 40
    for name, image in pictures.items():
        row, found = table[name], detector.detect(image, 0.3)
        boxes = [one.box._asdict() if kind == "parquet" else list(one.box) for one in found]
        expected = [{"label": f.label, "confidence": f.confidence, "box": b} for f, b in zip(found, boxes, strict=True)]
        assert row["detections"] == expected
        assert (row["n_detections"], row["version"], row["error"]) == (len(found), detector.version, None)
        assert row["max_confidence"] == max((one.confidence for one in found), default=None)
        assert {key: row[key] for key in images.features(image)} == images.features(image)


def test_the_servers_answers_are_the_batchs(detector, server, tmp_path):
    run(paths.IMAGES, tmp_path / "found.csv", detector)
    table = {row["file"]: row for row in read(tmp_path / "found.csv")}
    for name in ("fruits.jpg", "person_dog.jpg", "two_clocks.png"):
        sent = {"file": (name, (paths.IMAGES / name).read_bytes())}
        answer = requests.post(f"{server.url}/detect", files=sent, timeout=30).json()
        assert answer["version"] == table[name]["version"]
        boxes = [{**found, "box": list(found["box"].values())} for found in answer["detections"]]
        assert boxes == table[name]["detections"] != []


def test_csv_and_parquet_agree_row_for_row(folder, tmp_path):
    (folder / "bad.jpg").write_text('no picture, "and quotes"')
    film(folder / "film.avi")
    for kind in ("csv", "parquet"):
        assert run(folder, tmp_path / f"out.{kind}") == batch.Summary(51, 1, 0)
    assert as_lists(read(tmp_path / "out.parquet")) == read(tmp_path / "out.csv")
    assert list(read(tmp_path / "out.parquet")[0]) == list(ledger.COLUMNS)


def test_a_table_of_nothing_but_errors_keeps_its_kinds(tmp_path):
    (tmp_path / "bad.jpg").write_text("no picture")
    run(tmp_path, tmp_path / "out.parquet")
    kinds = {field.name: str(field.type) for field in parquet.read_schema(tmp_path / "out.parquet")}
    assert (kinds["frame"], kinds["width"], kinds["error"]) == ("int64", "double", "string")
    assert kinds["detections"].startswith("list<")


# what is looked at


def test_rows_come_by_path_subfolders_included_and_hidden_files_left_out(tmp_path):
    for name in ("b.png", "a/z.PNG", "a/b/c.png", "a.png", "é.png", ".hidden.png", ".git/x.png", ".partial-1/y.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(images.encode(picture(1), "png"))
    (tmp_path / "notes.txt").write_text("not called a picture")
    run(tmp_path, tmp_path / "out.csv")
    assert [row["file"] for row in read(tmp_path / "out.csv")] == ["a.png", "a/b/c.png", "a/z.PNG", "b.png", "é.png"]


def test_links_are_followed_once_and_loops_end(tmp_path):
    outside, inside = fill(tmp_path / "outside", 2), tmp_path / "inside"
    (inside / "z").mkdir(parents=True)
    shutil.copy(outside / "0/0000.png", inside / "z/own.png")
    (inside / "a").symlink_to(inside / "z")  # its own name comes first, though a is before z
    (inside / "z/loop").symlink_to(inside)
    (inside / "elsewhere").symlink_to(outside)
    run(inside, tmp_path / "out.csv")
    files = [row["file"] for row in read(tmp_path / "out.csv")]
    assert files == ["elsewhere/0/0000.png", "elsewhere/0/0001.png", "z/own.png"]


def test_a_single_file_will_do(folder, tmp_path):
    assert run(folder / "0/0003.png", tmp_path / "out.csv").rows == 1
    assert read(tmp_path / "out.csv")[0]["file"] == "0003.png"


def test_a_bad_picture_is_a_row_and_not_the_end_of_the_night(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(codec, "MAX_BYTES", 10_000)
    good = (paths.IMAGES / "apple.jpg").read_bytes()
    for name, content in {"empty.jpg": b"", "text.jpg": b"text", "cut.jpg": good[:9000], "large.jpg": good}.items():
        (folder / name).write_bytes(content)
    (folder / "gone.jpg").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "a\udcff\n.png").write_bytes(images.encode(picture(1), "png"))  # a name that is no text
    assert run(folder, tmp_path / "out.parquet") == batch.Summary(37, 6, 0)
    table = {row["file"]: row for row in read(tmp_path / "out.parquet")}
    errors = {name: row["error"] for name, row in table.items() if row["error"]}
    assert errors == {
        "empty.jpg": "UnsupportedImage: the file is empty: send a JPEG or PNG picture",
        "text.jpg": "UnsupportedImage: not a JPEG or PNG picture but text: send one of these",
        "cut.jpg": "UnsupportedImage: the picture is damaged or cut off: send it again, whole",
        "large.jpg": f"ImageTooLarge: {len(good):,} bytes: send at most 10,000",
        "gone.jpg": "FileNotFoundError: No such file or directory",
        "pipe.jpg": "UnsupportedImage: this is no file",
    }
    assert {table["gone.jpg"][name] for name in ledger.SEEN if name not in ("error", "version")} == {None}
    assert table["a\\xff\n.png"]["width"] == 16


def test_a_picture_over_which_the_detector_stumbles_is_a_row_too(folder, tmp_path):
    class Stumbling(Seer):
        def detect(self, image, confidence=0.5):
            if (image[0, 0] == 7).any():
                raise ValueError("seven \ud800")
            return super().detect(image, confidence)

    assert run(folder, tmp_path / "out.parquet", Stumbling()) == batch.Summary(30, 1, 0)
    assert read(tmp_path / "out.parquet")[7]["error"] == "ValueError: seven \\ud800"


# videos


def test_each_frame_of_a_video_is_a_row(tmp_path):
    film(tmp_path / "film.avi")
    assert run(tmp_path, tmp_path / "out.csv").rows == 20
    table = read(tmp_path / "out.csv")
    assert [(row["file"], row["frame"]) for row in table] == [("film.avi", number) for number in range(20)]
    assert [row["brightness"] for row in table] == pytest.approx([10 * number / 255 for number in range(20)], abs=0.01)
    assert (table[0]["width"], table[0]["height"]) == (64, 48)


def test_one_frame_in_so_many(tmp_path):
    film(tmp_path / "film.mp4", codec="mp4v")
    assert run(tmp_path, tmp_path / "out.csv", every=6).rows == 4
    table = read(tmp_path / "out.csv")
    assert [row["frame"] for row in table] == [0, 6, 12, 18]
    assert [row["brightness"] for row in table] == pytest.approx(
        [number / 255 for number in (0, 60, 120, 180)], abs=0.02
    )


def test_a_video_that_breaks_off_keeps_its_frames_and_says_where(tmp_path):
    whole = film(tmp_path / "film.avi").read_bytes()
    middle = (whole.index(b"movi") + whole.index(b"idx1")) // 2  # of its frames: before them stands what it promises
    (tmp_path / "film.avi").write_bytes(whole[:middle])
    done = run(tmp_path, tmp_path / "out.csv")
    table = read(tmp_path / "out.csv")
    assert (done.errors, len(table)) == (1, done.rows)
    assert 5 < table[-1]["frame"] == done.rows - 1 < 15
    assert table[-1]["error"] == f"BrokenVideo: it ends after {done.rows - 1} of 20 frames"


def test_a_camera_says_that_its_video_breaks_off(tmp_path, caplog):
    file = film(tmp_path / "film.avi")
    assert len([*Camera(file)]) == 20
    assert not caplog.records
    whole = file.read_bytes()
    file.write_bytes(whole[: (whole.index(b"movi") + whole.index(b"idx1")) // 2])
    seen = [*Camera(file)]
    assert 5 < len(seen) < 15
    assert f"film.avi: it ends after {len(seen)} of 20 frames: is the file whole" in caplog.text


def test_a_video_too_large_to_serve_is_too_large_for_a_batch(tmp_path, monkeypatch):
    film(tmp_path / "film.avi")
    monkeypatch.setattr(images, "MAX_PIXELS", 64 * 48 - 1)
    assert run(tmp_path, tmp_path / "out.csv") == batch.Summary(1, 1, 0)
    assert read(tmp_path / "out.csv")[0]["error"].startswith("ImageTooLarge: 64 x 48 pixels")


@pytest.mark.parametrize("content", [b"", b"not a video at all", None])
def test_a_video_that_cannot_be_read_is_a_row(folder, tmp_path, content, capfd):
    cut = film(tmp_path / "cut.mp4", codec="mp4v").read_bytes()[:1000]  # its index, at the end, is missing
    (folder / "clip_001.mp4").write_bytes(cut if content is None else content)
    assert run(folder, tmp_path / "out.csv") == batch.Summary(31, 1, 0)
    row = next(row for row in read(tmp_path / "out.csv") if row["error"])
    assert (row["file"], row["frame"]) == ("clip_001.mp4", None)
    assert row["error"].startswith("BrokenVideo: not a video")


def test_a_video_goes_on_where_it_was_and_is_not_opened_when_it_is_done(tmp_path, monkeypatch):
    for name in ("a.avi", "b.avi"):
        film(tmp_path / name)
    run(tmp_path, tmp_path / "whole.csv")
    first, second = Stopping(at=28), Seer(slots=1)
    with pytest.raises(Stopped):
        run(tmp_path, tmp_path / "out.csv", first)
    opened, real = [], videos.frames
    monkeypatch.setattr(videos, "frames", lambda path, *rest: opened.append(path.name) or real(path, *rest))
    assert run(tmp_path, tmp_path / "out.csv", second) == batch.Summary(40, 0, 27)
    assert (len(first.shown), len(second.shown), opened) == (27, 13, ["b.avi"])
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_frame_that_was_still_looked_at_when_its_video_ended_is_not_lost(tmp_path):
    """One thread is stuck with frame 3, the other comes to the end of the video and beyond; then all is interrupted."""
    film(tmp_path / "film.avi")
    run(tmp_path, tmp_path / "whole.csv")
    others = threading.Event()

    class Stuck(Seer):
        def detect(self, image, confidence=0.5):
            if abs(int(image[0, 0, 0]) - 30) < 5:
                assert others.wait(20)
                raise Stopped
            found = super().detect(image, confidence)
            if len(self.shown) == 19:
                others.set()
            return found

    with pytest.raises(Stopped):
        run(tmp_path, tmp_path / "out.csv", Stuck())
    assert run(tmp_path, tmp_path / "out.csv", last := Seer()) == batch.Summary(20, 0, 19)
    assert len(last.shown) == 1
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


# stopped and started again


def test_nothing_is_done_twice(folder, tmp_path):
    first, second = Stopping(at=12), Seer(slots=1)
    with pytest.raises(Stopped):
        run(folder, tmp_path / "out.csv", first)
    assert not (tmp_path / "out.csv").exists()
    assert run(folder, tmp_path / "out.csv", second) == batch.Summary(30, 0, 11)
    assert first.shown + second.shown == list(range(30))
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "out.csv"}  # and no ledger


def test_what_changed_meanwhile_is_looked_at_again_and_what_went_is_gone(folder, tmp_path):
    with pytest.raises(Stopped):
        run(folder, tmp_path / "out.csv", Stopping(at=12))
    (folder / "0/0004.png").write_bytes(images.encode(picture(200), "png"))
    os.utime(folder / "0/0004.png", ns=(1, 1))
    (folder / "0/0005.png").unlink()
    assert run(folder, tmp_path / "out.csv", second := Seer()) == batch.Summary(29, 0, 9)
    assert sorted(second.shown) == [*range(11, 30), 200]
    run(folder, tmp_path / "whole.csv")
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.parametrize("other", [{"detector": Seer(version="seer/2")}, {"confidence": 0.05}, {"every": 2}])
def test_another_question_is_not_answered_from_the_old_ledger(folder, tmp_path, other):
    with pytest.raises(Stopped):
        run(folder, tmp_path / "out.csv", Stopping(at=12))
    assert run(folder, tmp_path / "out.csv", **other).resumed == 0
    run(folder, tmp_path / "whole.csv", **other)
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


PROGRAM = """
import sys
from pathlib import Path
from test_batch import Dying, batch, die_in_writing
folder, out, shown, where, at = sys.argv[1:]
if where != "looking":
    die_in_writing(int(at))
batch.predict_folder(folder, out, Dying(int(at) if where == "looking" else -1, Path(shown)), progress=False)
"""


def die_in_writing(at: int) -> None:
    """Kill the process when the table is written and has not its name yet (1), or has it, and the ledger is there (2)."""
    calls = []

    def die(path: Path) -> None:
        calls.append(path)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    ledger.paths.sync = die


def test_a_batch_that_is_killed_again_and_again_makes_the_table_of_one_that_was_not(tmp_path):
    folder, out, shown = fill(tmp_path / "pictures", 300), tmp_path / "out.parquet", tmp_path / "shown"
    film(folder / "film.avi")
    (folder / "bad.jpg").write_text("no picture")
    assert run(folder, tmp_path / "whole.parquet").rows == 321
    chance = random.Random(7)
    deaths = [("looking", chance.randrange(1, 80)) for _ in range(4)] + [("writing", 1), ("writing", 2)]
    for where, at in deaths:
        command = [sys.executable, "-c", PROGRAM, folder, out, shown, where, str(at)]
        done = subprocess.run(command, cwd=Path(__file__).parent, timeout=60)
        assert done.returncode == -signal.SIGKILL
        assert out.exists() == ((where, at) == ("writing", 2))
    assert run(folder, out, last := Seer()) == batch.Summary(321, 1, 321)
    assert not last.shown
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    twice = len(shown.read_text().splitlines()) - 320
    assert 0 < twice <= 4 * 2  # at each death those that two threads were looking at
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "shown", "out.parquet", "whole.parquet"}


def test_one_thread_that_is_stopped_stops_the_others(folder, tmp_path, monkeypatch):
    stopped, stop = threading.Event(), prediction._Shared.stop
    monkeypatch.setattr(prediction._Shared, "stop", lambda items: (stop(items), stopped.set()))

    class Half(Seer):
        """Its third picture is an interrupt; whoever looks at one after that waits until the batch knows of it."""

        def detect(self, image, confidence=0.5):
            found = super().detect(image, confidence)
            if len(self.shown) == 3:
                raise Stopped
            assert len(self.shown) < 3 or stopped.wait(10)
            return found

    detector = Half()
    with pytest.raises(Stopped):
        run(folder, tmp_path / "out.csv", detector)
    assert len(detector.shown) <= 4  # of 30: one more was under way


def test_two_batches_on_one_table_are_refused(folder, tmp_path):
    refused = []

    class Meddling(Seer):
        def detect(self, image, confidence=0.5):
            if not refused:
                with pytest.raises(BatchRunning, match="wait for it"):
                    run(folder, tmp_path / "out.csv")
                command = [
                    sys.executable,
                    "-c",
                    PROGRAM,
                    folder,
                    tmp_path / "out.csv",
                    tmp_path / "shown",
                    "looking",
                    "-1",
                ]
                done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=60)
                refused.append(done.stderr.splitlines()[-1])
            return super().detect(image, confidence)

    assert run(folder, tmp_path / "out.csv", Meddling(slots=1)).rows == 30
    assert refused[0].startswith("labsupport.batch.ledger.BatchRunning: another batch is writing")


# every core, and no more in memory


def test_as_many_pictures_are_looked_at_at_once_as_there_are_slots(folder, tmp_path, monkeypatch):
    together, decoded, waiting = threading.Barrier(3, timeout=20), images.decode, []

    class Together(Seer):
        def detect(self, image, confidence=0.5):
            together.wait()  # nobody goes on until three are here
            waiting.append(held[0] - len(self.shown))
            return super().detect(image, confidence)

    held = [0]

    def count(data):
        held[0] += 1
        return decoded(data)

    monkeypatch.setattr(codec, "decode", count)
    assert run(folder, tmp_path / "out.csv", Together(slots=3)) == batch.Summary(30, 0, 0)
    assert max(waiting) <= 3


# what cannot be written, and what is not there


def test_a_full_disk_is_a_named_error_and_loses_nothing(tmp_path):
    folder = fill(tmp_path / "pictures", 150)
    run(folder, tmp_path / "whole.csv")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, before[1]))  # no file grows beyond
    try:
        with pytest.raises(BatchUnwritable, match="make room"):
            run(folder, tmp_path / "out.csv", first := Seer())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    done = run(folder, tmp_path / "out.csv", second := Seer())
    assert 10 < done.resumed >= len(first.shown) - 2 and len(second.shown) == 150 - done.resumed
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_table_that_cannot_get_its_name_costs_no_picture(folder, tmp_path):
    class InTheWay(Seer):
        def detect(self, image, confidence=0.5):
            (tmp_path / "out.csv").mkdir(exist_ok=True)
            return super().detect(image, confidence)

    with pytest.raises(BatchUnwritable, match="what is done is kept"):
        run(folder, tmp_path / "out.csv", InTheWay())
    (tmp_path / "out.csv").rmdir()
    assert run(folder, tmp_path / "out.csv") == batch.Summary(30, 0, 30)


def test_a_place_that_cannot_be_written_is_said_before_the_first_picture(folder, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "taken.csv").mkdir()
    (tmp_path / ".partial-odd.csv").mkdir()
    (tmp_path / ".partial-odd.csv/ledger.db").write_text("not a ledger, and longer than a header" * 9)
    for out in ("file/out.csv", "taken.csv", "odd.csv"):
        with pytest.raises(BatchUnwritable, match="name another file"):
            run(folder, tmp_path / out, seer := Seer())
        assert not seer.shown


def test_what_is_no_file_is_not_replaced(folder, tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(BatchUnwritable, match="a folder, a pipe or a device, and is not replaced: name another file"):
        run(folder, tmp_path / "pipe.csv", seer := Seer())
    assert not seer.shown and (tmp_path / "pipe.csv").is_fifo()


@pytest.mark.parametrize("name", ["out.xlsx", "out", "parquet"])
def test_another_suffix_is_refused_in_words(folder, tmp_path, name):
    with pytest.raises(ValueError, match=r"ends in \.parquet or \.csv"):
        run(folder, tmp_path / name)


@pytest.mark.parametrize("wrong", [{"confidence": 1.5}, {"confidence": float("nan")}, {"every": 0}])
def test_options_out_of_range_are_refused(folder, tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        run(folder, tmp_path / "out.csv", **wrong)


def test_a_folder_without_pictures_is_a_named_error_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").write_text("no picture")
    for name, why in {
        "empty": "no picture or video",
        "missing": "no such folder",
        "empty/notes.txt": "no picture",
    }.items():
        with pytest.raises(NoPictures, match=why):
            run(tmp_path / name, tmp_path / "out.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_opencvs_threads_are_as_they_were(folder, tmp_path):
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(3)
        run(folder, tmp_path / "out.csv")
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)
