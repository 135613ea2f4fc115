"""What a person answered is a label, whoever asks at the same time, and whoever is killed meanwhile.

The independent reader is Python's own sqlite3 module, and the files' bytes.
"""

import gc
import inspect
import io
import random
import sqlite3
import stat
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from labsupport import images
from labsupport.access import Keys, NoKey
from labsupport.automation import (
    Degree,
    QueueUnavailable,
    ReviewItem,
    ReviewQueue,
    Thresholds,
    UnknownItem,
    choose_thresholds,
    decide,
    review,
)
from labsupport.detection import Box, Detection
from labsupport.log import PredictionLog

UNSURE = Thresholds(low=0.1, high=0.8)
SCRATCH = Detection("scratch", np.float32(0.6), Box(10, 20, 60, 30))
ASSISTED = decide([SCRATCH], Degree.ASSISTANCE, UNSURE)
SHADOWED = decide([SCRATCH], Degree.SHADOW, UNSURE)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "review.db"


@pytest.fixture
def queue(file):
    with ReviewQueue(file) as opened:
        yield opened


@pytest.fixture
def now(monkeypatch):
    """The queue's clock, which stands still until it is moved: now[0] += seconds."""
    moment = [1_750_000_000.0]
    monkeypatch.setattr(review.clock, "time", lambda: moment[0])
    return moment


def rows(file, query: str) -> list[tuple]:
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        return connection.execute(query).fetchall()


def drain(queue, answer: bool) -> None:
    """Take item after item and say its id once it is safe: what a process of its own does."""
    while item := queue.next():
        if answer:
            queue.answer(item.id, "good" if int(item.id) % 2 else "defect", person="p1")
        print(item.id, flush=True)


def run(file, answer: bool) -> subprocess.Popen:
    program = f"import sys\nfrom labsupport.automation import ReviewQueue\n{inspect.getsource(drain)}"
    program += "queue = ReviewQueue(sys.argv[1])\nprint('ready', flush=True)\nsys.stdin.readline()\n"
    program += f"drain(queue, {answer})\n"
    command = [sys.executable, "-W", "error", "-c", program, str(file)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def start(process: subprocess.Popen) -> None:
    process.stdin.write("go\n")
    process.stdin.flush()


def png(number: int) -> bytes:
    """A picture, another one for each number."""
    return images.encode(np.full((4, 4, 3), number, np.uint8), "png")


# what is asked and answered


def test_what_was_answered_is_a_label(queue, now):
    queue.add("a", ASSISTED)
    queue.add("b", SHADOWED)
    queue.add("c", decide([], Degree.HUMAN_ONLY))
    queue.add("d", decide([], Degree.FULL, UNSURE))
    for id, label in [("c", "defect"), ("a", "good"), ("b", "defect")]:
        now[0] += 1
        queue.answer(id, label, person="p7" if id == "a" else None)
    frame = queue.labels()
    assert frame["id"].tolist() == ["a", "b", "c"]  # in the order in which they came; d was not answered
    assert frame["label"].tolist() == ["good", "defect", "defect"]
    assert frame["confidence"].tolist()[:2] == [float(SCRATCH.confidence)] * 2
    assert np.isnan(frame["confidence"][2])
    assert frame["opinion"].tolist()[:2] == ["defect", "defect"]
    assert frame["opinion"].isna().tolist() == [False, False, True]
    assert frame["shown"].isna().tolist() == [False, True, True]
    assert frame["degree"].tolist() == ["assistance", "shadow", "human_only"]
    assert frame["person"][0] == "p7"
    assert [moment.timestamp() - now[0] for moment in frame["time"]] == [-1, 0, -2]
    assert frame["answers"].tolist() == [1, 1, 1]


def test_without_answers_the_frame_is_empty_and_has_its_columns(queue):
    queue.add("a", ASSISTED)
    frame = queue.labels()
    expected = ["id", "confidence", "label", "opinion", "shown", "degree", "person", "time", "answers"]
    assert (len(frame), list(frame.columns)) == (0, expected)
    assert (frame["confidence"].dtype, str(frame["time"].dt.tz)) == (float, "UTC")


def test_in_shadow_mode_and_in_an_audit_a_person_sees_nothing_of_the_model(queue):
    decisions = {"assisted": ASSISTED, "shadowed": SHADOWED, "audited": decide([SCRATCH], Degree.FULL, UNSURE)}
    for number, (id, decision) in enumerate(decisions.items()):
        queue.add(id, decision, picture=png(number))
    seen = Detection("scratch", float(SCRATCH.confidence), SCRATCH.box)
    assert queue.next() == ReviewItem("assisted", "defect", (seen,), png(0))
    assert queue.next() == ReviewItem("shadowed", None, (), png(1))
    assert queue.next() == ReviewItem("audited", None, (), png(2))


def test_another_answer_corrects_and_both_are_kept(file, queue, now):
    queue.add("a", ASSISTED)
    queue.answer("a", "good", person="p1")
    now[0] += 60
    queue.answer("a", "defect", person="p2")
    assert queue.labels()[["label", "person", "answers"]].to_numpy().tolist() == [["defect", "p2", 2]]
    kept = rows(file, "SELECT label, person, time FROM review_answers ORDER BY row")
    assert kept == [("good", "p1", now[0] - 60), ("defect", "p2", now[0])]
    assert queue.waiting() == 0


def test_shadow_labels_choose_thresholds(queue):
    rng = np.random.default_rng(0)
    confidences = rng.random(250).round(3)
    for number, confidence in enumerate(confidences):
        queue.add(str(number), decide([Detection("scratch", confidence, SCRATCH.box)], Degree.SHADOW))
        queue.answer(str(number), "defect" if confidence > 0.5 else "good")
    queue.add("seen", ASSISTED)
    queue.answer("seen", "good")
    frame = queue.labels().query("degree == 'shadow'")
    chosen = choose_thresholds(frame["label"] == "defect", frame["confidence"], max_error=0.05)
    assert chosen == choose_thresholds(confidences > 0.5, confidences, max_error=0.05)


# one person at a time


def test_the_oldest_comes_first_and_to_one_person_only(queue, file):
    for number in range(3):
        queue.add(str(number), ASSISTED)
    other = ReviewQueue(file)
    assert [queue.next().id, other.next().id, queue.next().id] == ["0", "1", "2"]
    assert queue.next() is other.next() is None
    assert queue.waiting() == 3


def test_an_item_that_nobody_answered_in_time_is_handed_out_again(file, now):
    queue, patient = ReviewQueue(file, lease=60), ReviewQueue(file, lease=600)
    for id in "ab":
        queue.add(id, ASSISTED)
    assert (queue.next().id, patient.next().id) == ("a", "b")
    now[0] += 59.9
    assert queue.next() is None
    now[0] += 0.1
    assert queue.next().id == "a"
    now[0] += 540
    assert [queue.next().id, queue.next().id, queue.next()] == ["a", "b", None]


def test_a_clock_that_was_ahead_for_a_time_keeps_no_item_back(queue, now):
    queue.add("a", ASSISTED)
    now[0] += 3e8
    assert queue.next().id == "a"
    now[0] -= 3e8
    assert queue.next().id == "a"
    assert queue.next() is None


def test_one_text_is_no_list_of_ids(queue):
    for id in ("1", "2", "12"):
        queue.add(id, ASSISTED)
    with pytest.raises(ValueError, match=r"^ids='12': give a list"):
        queue.forget_owner("p-1", "12")
    assert queue.waiting() == 3


def test_to_forget_an_owner_removes_no_item_of_another_one(queue):
    queue.add("own", ASSISTED, owner="ann")
    queue.add("nobody's", ASSISTED)
    queue.add("bob's", ASSISTED, owner="bob")
    queue.answer("bob's", "good")
    assert queue.forget_owner("ann", ["own", "nobody's", "bob's", "unknown"]) == 2
    assert list(queue.labels()["id"]) == ["bob's"]


def test_what_was_answered_is_not_handed_out_again(queue, now):
    queue.add("a", ASSISTED)
    queue.add("b", ASSISTED)
    queue.next()
    queue.answer("a", "good")
    queue.answer("b", "good")  # without having been handed out
    now[0] += 10_000
    assert queue.next() is None
    assert queue.waiting() == 0


def test_an_answer_that_comes_late_counts(queue, now):
    queue.add("a", ASSISTED)
    queue.next()
    now[0] += 601
    queue.next()
    queue.answer("a", "defect", person="late")
    now[0] += 601
    assert queue.next() is None
    assert queue.labels()["person"].tolist() == ["late"]


def test_processes_share_the_queue_and_none_gets_what_another_has(file, queue):
    for number in range(120):
        queue.add(str(number), ASSISTED)
    processes = [run(file, answer=number == 0) for number in range(3)]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            start(process)
        handed = [process.communicate(timeout=60)[0].split() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert sum(map(len, handed)) == 120
    assert set().union(*handed) == {str(number) for number in range(120)}
    assert sorted(queue.labels()["id"]) == sorted(handed[0])


def test_threads_share_a_queue(queue):
    for number in range(60):
        queue.add(str(number), ASSISTED)

    def take(_) -> str:
        item = queue.next()
        queue.answer(item.id, "good")
        return item.id

    with ThreadPoolExecutor(8) as pool:
        handed = Counter(pool.map(take, range(60)))
    assert set(handed.values()) == {1}
    assert len(queue.labels()) == 60


def test_many_may_open_a_new_file_at_once(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        for number in range(10):
            opened = list(pool.map(ReviewQueue, [tmp_path / f"{number}.db"] * 8))
            opened[0].add("a", ASSISTED)
            assert {queue.waiting() for queue in opened} == {1}


# nothing is lost


def test_kill_9_loses_nothing_that_was_answered(file, queue):
    for number in range(1000):
        queue.add(str(number), ASSISTED)
    many, answered = random.Random(7), []
    for _ in range(3):
        with run(file, answer=True) as process:
            assert process.stdout.readline() == "ready\n"
            start(process)
            said = "".join(process.stdout.readline() for _ in range(many.randint(1, 20)))
            process.kill()  # SIGKILL
            said += process.stdout.read()
        assert process.returncode == -9
        answered += said[: said.rfind("\n") + 1].split()
        frame = queue.labels()
        kept = dict(zip(frame["id"], frame["label"], strict=True))
        assert {id: kept.get(id) for id in answered} == {id: "good" if int(id) % 2 else "defect" for id in answered}
        assert len(kept) - len(answered) <= 3  # answered, and killed before it could say so
        assert queue.waiting() == 1000 - len(kept)
        assert rows(file, "PRAGMA integrity_check") == [("ok",)]
    assert 3 <= len(answered) < 1000
    assert queue.next().id not in kept
    assert rows(file, "SELECT count(*) FROM review_items WHERE waiting AND leased_until > 0")[0][0] <= 4


def test_to_add_the_same_again_changes_nothing_and_something_else_is_refused(queue):
    for picture in (png(1), images.encode(images.decode(png(1)), "jpeg")):
        id = picture[:4].hex()
        for _ in range(3):
            queue.add(id, ASSISTED, picture)
            queue.answer(id, "good")
    queue.add("a", ASSISTED, png(1))
    queue.answer("a", "good")
    assert (queue.waiting(), len(queue.labels())) == (0, 3)
    for other in [(SHADOWED, png(1)), (ASSISTED, png(2)), (ASSISTED, None)]:
        with pytest.raises(ValueError, match="a is in the queue already"):
            queue.add("a", *other)


def test_a_call_that_fails_leaves_nothing_behind(file, queue, monkeypatch):
    queue.add("a", ASSISTED)
    monkeypatch.setattr(review.clock, "time", lambda: None)  # time may not be NULL
    with pytest.raises(QueueUnavailable, match="NOT NULL"):
        queue.answer("a", "good")
    assert rows(file, "SELECT waiting FROM review_items") == [(1,)]


# privacy


def test_a_picture_is_kept_only_if_given_and_is_gone_once_forgotten(tmp_path, file, queue):
    noise = np.random.default_rng(1).integers(0, 256, (120, 140, 3), np.uint8)
    secret = images.encode(noise, "png")
    assert len(secret) > 50_000
    queue.add("a", ASSISTED, picture=secret)
    queue.add("b", ASSISTED)
    queue.answer("a", "good", person="somebody-17")
    assert (queue.picture("a"), queue.picture("b")) == (secret, None)
    queue.forget("a")
    queue.forget("never there")
    left = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert file.name in {path.name for path in tmp_path.iterdir()}
    for trace in (secret[:64], secret[30_000:30_064], secret[-64:], b"somebody-17"):
        assert trace not in left
    assert (queue.next().id, len(queue.labels())) == ("b", 0)
    with pytest.raises(UnknownItem, match="a is not in"):
        queue.picture("a")


PLACE = b"52.5163 13.3777"  # what a file says beside its pixels, in every corner where it can
TURNED = {"orientation": 6}  # to be turned by 90 degrees


def with_metadata(kind: str) -> bytes:
    """A picture that names a place in EXIF, XMP, comments, a colour profile, a thumbnail's tags, and behind its end."""
    picture = Image.fromarray(np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3))
    exif = picture.getexif()
    exif[0x0112], exif[0x010F], exif[0x8298] = TURNED["orientation"], PLACE.decode(), PLACE.decode()
    gps = exif.get_ifd(0x8825)
    gps[1], gps[2], gps[27] = "N", (52.0, 30.0, 58.0), PLACE
    out, extra = io.BytesIO(), {"exif": exif, "icc_profile": b"profile " + PLACE}
    if kind == "png":
        text = PngInfo()
        text.add_text("Comment", PLACE.decode())
        text.add_text("Place", PLACE.decode(), zip=True)
        text.add_itxt("XML:com.adobe.xmp", f"<x>{PLACE.decode()}</x>")
        picture.save(out, "png", pnginfo=text, **extra)
    else:
        picture.save(out, "jpeg", comment=PLACE, xmp=b"<x>" + PLACE + b"</x>", quality=95, **extra)
    return out.getvalue() + b"trailer " + PLACE


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_a_kept_picture_says_nothing_but_its_pixels(queue, file, tmp_path, kind):
    given = with_metadata(kind)
    assert given.count(PLACE) >= 5
    queue.add("a", ASSISTED, given)
    kept = queue.picture("a")
    opened = Image.open(io.BytesIO(kept))
    assert opened.format.lower() == kind and not opened.getexif() and not opened.info.keys() - {"jfif", *JFIF}
    assert opened.size == (40, 60)  # upright: what the orientation said is done
    pixels = images.decode(kept).astype(int) - images.decode(given)
    assert np.abs(pixels).mean() < (8 if kind == "jpeg" else 1e-9)  # noise is what JPEG keeps worst
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert PLACE not in stored and b"Exif" not in stored and b"13.37" not in stored
    assert queue.next().picture == kept


JFIF = ("jfif_version", "jfif_unit", "jfif_density")  # that there is no unit: the only segment beside the pixels


def saved(kind: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize("picture", [b"", b"no picture", png(0)[:40], *map(saved, ("webp", "tiff", "gif", "bmp"))])
def test_what_is_no_whole_jpeg_or_png_is_not_kept(queue, picture):
    with pytest.raises(images.UnsupportedImage):
        queue.add("a", ASSISTED, picture)
    assert queue.waiting() == 0


@pytest.mark.parametrize("bad", ["", "x" * 1001, "nul \0", "half \ud800", 5, None])
def test_texts_have_a_length_and_are_valid(queue, bad):
    queue.add("a", ASSISTED)
    with pytest.raises(ValueError, match=r"id=.*: give text"):
        queue.add(bad, ASSISTED)
    if bad not in ("", None):
        with pytest.raises(ValueError, match=r"person=.*: give text"):
            queue.answer("a", "good", person=bad)
        with pytest.raises(ValueError, match=r"owner=.*: give text"):
            queue.add("b", ASSISTED, owner=bad)
        for ask in (queue.picture, queue.forget, lambda id: queue.answer(id, "good")):
            with pytest.raises(ValueError, match=r"id=.*: give text"):
                ask(bad)
    with pytest.raises(ValueError, match=r"label=.{,70}: say good or defect"):
        queue.answer("a", bad)
    assert (queue.waiting(), len(queue.labels())) == (1, 0)


def test_a_new_file_is_its_owners_only(file, queue):
    queue.add("a", ASSISTED)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


# bad input and bad files


@pytest.mark.parametrize("label", ["Good", "", None, True])
def test_another_label_is_refused(queue, label):
    queue.add("a", ASSISTED)
    with pytest.raises(ValueError, match="say good or defect"):
        queue.answer("a", label)
    assert queue.waiting() == 1


def test_what_is_not_in_the_queue_cannot_be_answered(queue, file):
    with pytest.raises(UnknownItem, match="x is not in"):
        queue.answer("x", "good")
    assert rows(file, "SELECT * FROM review_answers") == []


def test_a_picture_is_bytes(queue):
    with pytest.raises(TypeError, match="picture is a ndarray: give the bytes"):
        queue.add("a", ASSISTED, picture=np.zeros((2, 2, 3), np.uint8))
    assert queue.waiting() == 0


@pytest.mark.parametrize("lease", [0, -1, float("nan")])
def test_a_lease_is_some_time(file, lease):
    with pytest.raises(ValueError, match="lease"):
        ReviewQueue(file, lease)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(QueueUnavailable, match=r"nowhere/review.db: No such file or directory: name a file"):
        ReviewQueue(tmp_path / "nowhere" / "review.db")


def test_what_is_no_sqlite_file_is_refused_and_left_as_it_is(file):
    file.write_bytes(b"not a database, and longer than SQLite's header of a hundred bytes " * 3)
    before = file.read_bytes()
    with pytest.raises(QueueUnavailable, match="not a database"):
        ReviewQueue(file)
    assert file.read_bytes() == before


def test_another_programs_file_is_refused_and_left_as_it_is(file):
    with PredictionLog(f"sqlite:///{file}"):
        pass
    before = rows(file, "SELECT name FROM sqlite_master")
    with pytest.raises(QueueUnavailable, match="another program"):
        ReviewQueue(file)
    assert rows(file, "SELECT name FROM sqlite_master") == before


def test_a_newer_queue_is_refused(file, queue):
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version = 3")
    with pytest.raises(QueueUnavailable, match="newer version"):
        ReviewQueue(file)


FIRST = """
CREATE TABLE review_items (
    row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, degree TEXT NOT NULL, confidence REAL, opinion TEXT, shown TEXT,
    highlight TEXT NOT NULL, picture BLOB, waiting INTEGER NOT NULL DEFAULT 1, leased_until REAL NOT NULL DEFAULT 0
);
CREATE TABLE review_answers (
    row INTEGER PRIMARY KEY, id TEXT NOT NULL, time REAL NOT NULL, label TEXT NOT NULL, person TEXT
);
CREATE INDEX review_waiting ON review_items (row) WHERE waiting;
CREATE INDEX review_answered ON review_answers (id);
INSERT INTO review_items VALUES(1,'a','assistance',0.6,'defect','defect',
    '[{{"label": "scratch", "confidence": 0.6, "box": [10, 20, 60, 30]}}]',X'{picture}',0,0.0);
INSERT INTO review_items VALUES(2,'b','human_only',NULL,NULL,NULL,'[]',NULL,1,0.0);
INSERT INTO review_answers VALUES(1,'a',1750000000.0,'good','p7');
PRAGMA user_version = 1;
"""  # what version 1 left behind: sqlite3's iterdump of its file


def test_without_keys_no_picture_of_an_owner_is_stored(queue, file):
    with pytest.raises(NoKey, match="a picture of p-1 must be encrypted: give keys="):
        queue.add("a", ASSISTED, png(1), owner="p-1")
    queue.add("b", ASSISTED, owner="p-1")
    assert rows(file, "SELECT id, picture FROM review_items") == [("b", None)]


def test_a_file_of_the_first_version_goes_on_and_many_may_open_it_at_once(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        for number in range(5):
            file = tmp_path / f"{number}.db"
            with closing(sqlite3.connect(file)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.executescript(FIRST.format(picture=png(1).hex()))
            queues = [*pool.map(ReviewQueue, [file] * 8)]
    queue = queues[0]
    assert (queue.picture("a"), queue.picture("b"), queue.waiting()) == (png(1), None, 1)
    assert queue.labels()[["id", "label", "person"]].to_numpy().tolist() == [["a", "good", "p7"]]
    with pytest.raises(ValueError, match="a is in the queue already"):
        queue.add("a", ASSISTED, png(2))
    keyed = ReviewQueue(file, keys=Keys(tmp_path / "keys"))
    keyed.add("c", ASSISTED, png(3), owner="p-1")
    assert (queue.next().id, keyed.next().picture, keyed.picture("a")) == ("b", png(3), png(1))
    with pytest.raises(NoKey, match="the picture of c is encrypted: open this queue with keys="):
        queue.picture("c")
    queue.forget("a")
    assert rows(file, "SELECT user_version FROM pragma_user_version") == [(2,)] and queue.picture("b") is None
    assert rows(file, "PRAGMA table_info(review_items)")[-1][1:3] == ("owner", "TEXT")
    for one in (*queues, keyed):
        one.close()


def test_while_another_program_reads_what_is_forgotten_is_said_to_be_there_still(file, queue, monkeypatch):
    monkeypatch.setattr(review, "BUSY", 0.05)
    queue.add("a", ASSISTED)
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM review_items").fetchone()
        with pytest.raises(
            QueueUnavailable, match="are removed, but their bytes are still in the file: close it in other"
        ):
            queue.forget("a")
        other.execute("COMMIT")
    queue.forget("a")
    assert queue.waiting() == 0


def test_a_queue_lets_go_of_its_file_when_nobody_holds_it(tmp_path, file):
    ReviewQueue(file).add("a", ASSISTED)
    gc.collect()
    assert [path.name for path in tmp_path.iterdir()] == [file.name]  # the last to close tidies the log away


def test_a_queue_that_another_process_keeps_locked_says_so(file, queue, monkeypatch):
    monkeypatch.setattr(review, "BUSY", 0.05)
    impatient = ReviewQueue(file)
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(QueueUnavailable, match="locked"):
            impatient.add("a", ASSISTED)
    impatient.add("a", ASSISTED)
    assert queue.next().id == "a"
    impatient.close()
    impatient.close()
    with pytest.raises(QueueUnavailable, match="closed"):
        impatient.next()
