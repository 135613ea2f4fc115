"""After `forget` and after retention no byte of a person is left, in any file, whoever writes meanwhile.

The independent reader is a search through the bytes of every file: for texts as they are, and for pieces of pictures. Any 32
bytes of a file hold a whole block of 16 that begins at a multiple of 16, so the blocks are what is looked up.
"""

import contextlib
import multiprocessing
import random
import re
import shutil
import sqlite3
import time
import uuid
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from labsupport import images
from labsupport.access import Forgotten, Keys, Uploads
from labsupport.automation import Degree, QueueUnavailable, ReviewQueue, Thresholds, decide, review
from labsupport.cli import forgetting
from labsupport.detection import Box, Detection
from labsupport.log import NotWritten, PredictionLog, UnknownPrediction, retention
from labsupport.log import forgetting as log_forgetting
from labsupport.rollout import Router, answering

ANN, BOB = "p-0123456789ab", "p-ba9876543210"
KEY = {ANN: "client key of ann", BOB: "client key of bob"}
SAID = {ANN: "ann saw a walrus", BOB: "bob saw an ibis"}
UNSURE = decide([Detection("scratch", 0.6, Box(10, 20, 60, 30))], Degree.ASSISTANCE, Thresholds(low=0.1, high=0.8))
HEADERS = (b"\xff\xd8\xff\xe0\0\x10JFIF", b"\x89PNG\r\n\x1a\n", b"IHDR")
BLOCK = 16


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)


def encoded(seed: int) -> tuple[bytes, bytes]:
    """A picture as JPEG and as PNG."""
    return images.encode(pixels(seed), "jpeg"), images.encode(pixels(seed), "png")


def blocks(seeds) -> set[bytes]:
    """All runs of 16 bytes of these pictures, encoded and raw, but for those that every picture has."""

    def runs(seed) -> set[bytes]:
        contents = (*encoded(seed), pixels(seed).tobytes(), images.decode(encoded(seed)[0]).tobytes())
        return {content[at : at + BLOCK] for content in contents for at in range(len(content) - BLOCK + 1)}

    return set().union(*map(runs, seeds)) - runs(10**6)


def contents(folder) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def traces(folder, *texts: str | bytes) -> set:
    """The texts that some file holds."""
    texts = [text.encode() if isinstance(text, str) else text for text in texts]
    return {text for content in contents(folder).values() for text in texts if text in content}


def pieces(folder, of: set[bytes]) -> list[str]:
    """The files that hold a piece of a picture."""
    return [
        name
        for name, content in contents(folder).items()
        if any(content[at : at + BLOCK] in of for at in range(0, len(content), BLOCK))
    ]


def new_id() -> str:
    return uuid.uuid4().hex


def same_ids(seed: int, count: int) -> list[str]:
    """The same at each run. They were chosen so that SQLite leaves copies of some, unless the file is written anew."""
    chance = random.Random(seed)
    return [f"{chance.getrandbits(128):032x}" for _ in range(count)]


@pytest.fixture
def data(tmp_path):
    made = tmp_path / "data"
    made.mkdir()
    return made


@pytest.fixture
def keys(tmp_path):
    return Keys(tmp_path / "keys")


class Lab:
    """What a server keeps of people, in one data folder."""

    def __init__(self, data, keys) -> None:
        self.keys = keys
        self.log = PredictionLog(data / "predictions.db")
        self.uploads = Uploads(data / "images_uploaded", keys=keys)
        self.queue = ReviewQueue(data / "review.db", keys=keys)

    def predict(self, person: str | None, seed: int) -> str:
        """One request: a row, an answer in shadow, sometimes a failure and a remark, and the picture in two places."""
        id, jpeg_png = new_id(), encoded(seed)
        row = {"latency": 0.1, "detections": [], "features": None, "key": KEY.get(person), "person": person}
        self.log.record(id=id, version="v1", **row)
        self.log.record(id=id, version="v2", shadow=True, **row)
        if seed % 5 == 0:
            self.log.record(id=new_id(), version=None, error="E", status=500, **row)
            self.log.flush()
            self.log.feedback(id, labels=[SAID.get(person, "nobody")])
        owner = person if self.keys else None
        self.uploads.keep(f"{id}.jpg", jpeg_png[0], owner)
        self.queue.add(id, UNSURE, jpeg_png[seed % 3 > 0], owner=owner)
        return id

    def close(self) -> None:
        self.log.close()
        self.queue.close()


@pytest.fixture
def lab(data, keys):
    made = Lab(data, keys)
    yield made
    made.close()


SEEDS = {ANN: [seed for seed in range(133) if seed % 4 < 3], BOB: [seed for seed in range(133) if seed % 4 == 3]}


def fill(lab) -> dict[str, list[str]]:
    """Requests of two people, mixed. Each person also labels some pictures of both."""
    ids = {ANN: [], BOB: []}
    for seed in range(133):
        person = BOB if seed in SEEDS[BOB] else ANN
        ids[person].append(lab.predict(person, seed))
    lab.log.flush()
    for number, id in enumerate(ids[ANN][:20] + ids[BOB][:20]):
        lab.queue.answer(id, "good", person=ANN if number % 2 else BOB)
    return ids


# all of it


def test_a_stolen_copy_shows_no_picture_and_after_forget_nothing_of_the_person_is_left(lab, data, tmp_path):
    ids, anns = fill(lab), blocks(SEEDS[ANN])
    assert traces(data, ANN, KEY[ANN], SAID[ANN], ids[ANN][0])  # the search finds what there is
    shutil.copytree(data, tmp_path / "stolen")
    assert not traces(tmp_path / "stolen", *HEADERS)
    assert not pieces(tmp_path / "stolen", anns | blocks(SEEDS[BOB]))
    key = (lab.keys.folder / ANN).read_bytes()

    lines = forgetting.forget(ANN, data, lab.keys.folder)
    assert lines == [
        "the key: removed, so that no copy of the data shows the pictures of this person",
        "kept pictures removed: 100",
        "review items removed: 100",
        f"predictions removed, with remarks on them: {100 + sum(seed % 5 == 0 for seed in SEEDS[ANN])}",
    ]
    for _ in range(2):
        assert not traces(data, ANN, KEY[ANN], SAID[ANN], key, *ids[ANN], *HEADERS)
        assert not pieces(data, anns)
        lab.close()  # and once more without a log beside the files
    assert not traces(lab.keys.folder, key)

    again = Lab(data, lab.keys)
    for id, seed in zip(ids[BOB], SEEDS[BOB], strict=True):
        assert again.uploads.picture(id, BOB) == encoded(seed)[0]
        assert np.array_equal(images.decode(again.queue.picture(id)), images.decode(_stored(seed)))
        assert again.log.person_of(id) == BOB
    assert (
        set(again.log.columns("key", "person")["key"])
        == {KEY[BOB]}
        == set(again.log.columns("key", shadow=True)["key"])
    )
    assert again.log.columns("labels")["labels"].count(f'["{SAID[BOB]}"]') == sum(seed % 5 == 0 for seed in SEEDS[BOB])
    assert again.queue.labels()["id"].tolist() == ids[BOB][:20] and again.queue.waiting() == 13
    again.close()


def _stored(seed: int) -> bytes:
    """What a queue stores of a picture: the PNG as it is, the JPEG encoded again."""
    picture = encoded(seed)[seed % 3 > 0]
    return picture if seed % 3 else images.encode(images.decode(picture), "jpeg")


def test_without_keys_the_same_search_finds_the_pictures(data, tmp_path):
    """Otherwise a search that finds nothing would mean nothing."""
    lab = Lab(data, None)
    for seed in range(6):
        lab.predict(ANN, seed)
    lab.close()
    assert {name.partition("/")[0] for name in pieces(data, blocks(range(6)))} == {"images_uploaded", "review.db"}
    assert traces(data, *HEADERS) == {*HEADERS}
    forgetting.forget(ANN, data, tmp_path / "keys")  # what was kept before there were keys goes by its ids
    assert not pieces(data, blocks(range(6))) and not traces(data, ANN, KEY[ANN], *HEADERS)


def test_items_without_an_owner_go_with_the_prediction(data, keys, lab):
    lab.log.record(id="a1", version="v", latency=0.1, detections=[], features=None, person=ANN)
    lab.log.flush()
    for id in ("a1", "b1"):
        lab.queue.add(id, UNSURE, encoded(1)[1])
    forgetting.forget(ANN, data, keys.folder)
    assert lab.queue.next().id == "b1" and lab.queue.waiting() == 1


def test_what_a_client_did_under_anothers_id_takes_nothing_of_the_other_along(data, lab):
    bobs = lab.predict(BOB, 3)
    lab.log.record(id=bobs, version="v2", latency=0.1, detections=[], features=None, person=ANN, shadow=True)
    lab.log.flush()
    waiting = lab.queue.waiting()
    forgetting.forget(ANN, data, lab.keys.folder)
    assert lab.uploads.picture(bobs, BOB) and lab.queue.waiting() == waiting > 0


def test_people_who_share_a_token_cannot_be_forgotten(data, keys):
    for id in ("owner", "reader"):
        with pytest.raises(ValueError, match=f"person='{id}': several people may use this token"):
            forgetting.forget(id, data, keys.folder)
    with pytest.raises(ValueError, match=r"person='ann': no .*|give the id"):
        forgetting.forget("../ann", data, keys.folder)
    assert not keys.folder.exists() and not [*data.iterdir()]


# while others write

SERVER = multiprocessing.get_context("forkserver")  # imports these once, and forks: each import takes seconds
SERVER.set_forkserver_preload(["pytest", "labsupport.serving", "labsupport.cli", "labsupport.automation.review"])


def work(data, keys, stop, seed: int, ids) -> None:
    """Serve both people until there is a file `stop`. Send the ids of Bob's predictions."""
    lab = Lab(data, keys)
    ids.send("ready")
    while not stop.exists():
        seed += 1
        with contextlib.suppress(Forgotten, UnknownPrediction):
            lab.predict(ANN, seed)
        ids.send(lab.predict(BOB, seed))
    lab.close()
    assert not lab.log.dropped


@contextlib.contextmanager
def workers(data, keys, stop, *first_seeds: int):
    """Start processes that `work`, and yield each with the end of its pipe."""
    started = []
    for seed in first_seeds:
        ours, theirs = SERVER.Pipe(duplex=False)
        process = SERVER.Process(target=work, args=(data, keys, stop, seed, theirs), daemon=True)
        process.start()
        theirs.close()
        started.append((process, ours))
    for _, ids in started:
        assert ids.recv() == "ready"
    try:
        yield started
    finally:
        for process, ids in started:
            process.kill()
            process.join()
            process.close()
            ids.close()


def rest(ids) -> list[str]:
    """What still comes until the process ends."""
    found = []
    with contextlib.suppress(EOFError):
        while True:
            found.append(ids.recv())
    return found


def test_processes_that_write_meanwhile_leave_nothing_of_the_person_and_lose_nothing_else(data, keys, tmp_path):
    with workers(data, keys, tmp_path / "stop", 1000, 2000) as started:
        bobs = [ids.recv() for _ in range(4) for _, ids in started]
        forgetting.forget(ANN, data, keys.folder)
        bobs += [ids.recv() for _ in range(4) for _, ids in started]  # they went on
        (tmp_path / "stop").touch()
        for process, ids in started:
            bobs += rest(ids)
            process.join(60)
            assert process.exitcode == 0
    assert not traces(data, ANN, KEY[ANN], SAID[ANN])
    with PredictionLog(data / "predictions.db") as log, ReviewQueue(data / "review.db", keys=keys) as queue:
        uploads = Uploads(data / "images_uploaded", keys=keys)
        kept = log.columns("id", "person")
        assert {*kept["person"]} == {BOB} and len(bobs) >= 16
        for id in bobs:
            assert id in kept["id"] and uploads.picture(id, BOB) and queue.picture(id)


def test_a_killed_process_leaves_no_pixel_unencrypted(data, keys, tmp_path):
    """At any moment: what is being written is encrypted already."""
    many, last = random.Random(3), 1000
    for _ in range(4):
        with workers(data, keys, tmp_path / "stop", last) as ((process, ids),):
            for _ in range(many.randint(1, 8)):
                ids.recv()
            process.kill()
            last += 10
            rest(ids)
        assert not pieces(tmp_path, blocks(range(last - 9, last + 3))) and not traces(data, *HEADERS)


def test_what_is_handed_to_the_disk_is_encrypted_already(lab, monkeypatch):
    """Temporary files, too: whatever is written to any file, and each statement of SQLite with its values."""
    written, statements, write = [], [], Path.write_bytes

    def note(path, content):
        written.append(content)
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", note)
    lab.queue._connection.set_trace_callback(statements.append)
    for seed in range(6):
        lab.predict(ANN, seed)
    of = blocks(range(6))
    assert len(written) == 6 and len([one for one in statements if one.strip().startswith("INSERT")]) == 6
    for content in (
        *written,
        *(bytes.fromhex(one) for text in statements for one in re.findall("X'([0-9A-F]+)'", text)),
    ):
        assert len(content) > 500 and not any(content[at : at + BLOCK] in of for at in range(len(content)))


# the log


def rows(log, **where) -> list[str]:
    return log.columns("id", **where)["id"]


def record(log, id: str, person: str | None = None, **columns) -> None:
    given = {"version": "v1", "latency": 0.1, "detections": [], "features": None, **columns}
    log.record(id=id, person=person, **given)


@pytest.fixture
def log(data):
    with PredictionLog(data / "predictions.db") as opened:
        yield opened


def test_the_person_of_a_prediction_is_known_at_once(log):
    for id, person in (("a", ANN), ("b", BOB), ("c", None)):
        record(log, id, person)
    assert [log.person_of(id) for id in "abc"] == [ANN, BOB, None]
    record(log, "a", BOB, shadow=True)
    record(log, "d", BOB, shadow=True)
    log.flush()
    assert log.person_of("a") == ANN
    for id in ("d", "x", "", 5):  # a candidate's answer is not the prediction
        with pytest.raises(UnknownPrediction, match=f"no prediction '{id}' is in the log"):
            log.person_of(id)


@pytest.mark.parametrize("person", ["", "x" * 1001, "nul \0", 5, b"p-1"])
def test_a_person_is_text(log, person):
    for call in (lambda: record(log, "a", person), lambda: log.forget(person)):
        with pytest.raises(ValueError, match=r"person=.*: give text"):
            call()
    with pytest.raises(ValueError, match="person=None: give text"):
        log.forget(None)


def test_answers_in_shadow_go_with_the_prediction_and_nobody_can_take_anothers_along(log, data):
    record(log, "a1", ANN)
    record(log, "a1", shadow=True, key=KEY[ANN])  # of an older version: without the person
    record(log, "b1", BOB)
    record(log, "b1", ANN, shadow=True)  # a client that chose the id of another one's prediction
    record(log, "a1", BOB, shadow=True)
    log.flush()
    log.feedback("b1", labels=[SAID[BOB]])
    log.feedback("a1", labels=[SAID[ANN]])
    assert log.forget(ANN) == ["a1"]
    assert log.columns("id", "person") == {"id": ["b1"], "person": [BOB]}
    assert log.columns("id", "person", shadow=True) == {"id": ["a1"], "person": [BOB]}
    assert log.columns("labels")["labels"] == [f'["{SAID[BOB]}"]']
    assert not traces(data, ANN, KEY[ANN], SAID[ANN])


def test_rows_that_come_late_are_dropped_and_those_beside_them_are_written(log, data):
    record(log, "a1", ANN)
    assert log.forget(ANN) == ["a1"]  # also what was still waiting
    with PredictionLog(data / "predictions.db") as other:
        for number in range(120):
            record(other, f"b{number}", BOB if number % 2 else None)
            record(other, f"late a{number}", ANN, key=KEY[ANN])
            record(other, "a1", ANN, shadow=True, key=KEY[ANN])
        other.flush()
        assert other.dropped == 0
    assert rows(log) == [f"b{number}" for number in range(120)] and not rows(log, shadow=True)
    assert not traces(data, ANN, KEY[ANN], "late a", b"a1")
    assert log.forget(ANN) == []


def test_a_row_that_is_being_written_is_found(log, data, monkeypatch):
    """A writer looks who was forgotten, then `forget` runs, then the writer writes: it must not come so."""
    looked, remaining = [], log_forgetting.remaining

    def hold(connection, batch):
        found = remaining(connection, batch)
        monkeypatch.setattr(log_forgetting, "PATIENCE", 0.05)
        with PredictionLog(data / "predictions.db") as other, pytest.raises(NotWritten, match="cannot be written now"):
            other.forget(ANN)  # waits for the writer, in vain
        looked.append(len(found))
        return found

    monkeypatch.setattr(log_forgetting, "remaining", hold)
    record(log, "a1", ANN)
    log.flush()
    assert looked == [1] and rows(log) == ["a1"]


def test_a_remark_on_a_forgotten_prediction_leaves_nothing(log, data, monkeypatch):
    record(log, "a1", ANN)
    record(log, "a2", ANN)
    log.flush()
    looks = log._row_of

    def then_forget(id):
        found = looks(id)
        with PredictionLog(data / "predictions.db") as other:
            other.forget(ANN)
        return found

    monkeypatch.setattr(log, "_row_of", then_forget)
    for id in ("a1", "a2"):
        with pytest.raises(UnknownPrediction, match=f"no prediction '{id}'"):
            log.feedback(id, labels=[SAID[ANN]])
    with contextlib.closing(sqlite3.connect(data / "predictions.db")) as connection:
        assert connection.execute("SELECT count(*) FROM feedback").fetchone() == (0,)
    assert not traces(data, SAID[ANN])


def test_while_another_program_reads_or_writes_forget_says_what_to_do(log, data, monkeypatch):
    monkeypatch.setattr(log_forgetting, "PATIENCE", 0.05)
    for number in range(50):
        record(log, f"id of ann {number}", ANN, key=KEY[ANN])
    log.flush()
    with contextlib.closing(sqlite3.connect(data / "predictions.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(NotWritten, match="cannot be written now: nothing was noted, try again"):
            log.forget(ANN)
        other.execute("COMMIT")
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM predictions").fetchone()
        words = "the rows are removed, but their bytes are still in the file .*stop the server and whatever else reads"
        with pytest.raises(NotWritten, match=words):
            log.forget(ANN)
        assert rows(log) == [] and traces(data, KEY[ANN])
        other.execute("COMMIT")
        assert log.forget(ANN) == [] and not traces(data, ANN, KEY[ANN], "id of ann")


def fill_mixed(log, ids: list[str], gone: str, stays: str) -> None:
    """Rows with keys and labels: every second one is Bob's, and young."""
    now = time.time()
    for number, id in enumerate(ids):
        kind, person, age = (stays, BOB, 10) if number % 2 else (gone, ANN, 5000)
        found = [Detection(f"{kind} label", 0.9, Box(1, 2, 3, 4))] * (number % 5)
        record(log, id, person, time=now - age, key=f"{kind} key {id}", detections=found)
    log.flush(20)


def test_after_forget_no_copy_of_a_row_is_left_between_the_others(log, data):
    ids = same_ids(3, 1200)
    fill_mixed(log, ids, "gone", "stays")
    assert log.forget(ANN) == ids[::2]
    assert not traces(data, ANN, "gone", *ids[::2]) and len(traces(data, *ids)) == 600


def test_after_retention_no_byte_of_removed_rows_is_left(log, data):
    """Also where the order of times is not that of the rows: stations' records come late."""
    ids = same_ids(3, 1200)
    fill_mixed(log, ids, "gone", "stays")
    assert len(traces(data, *ids)) == 1200
    assert log.prune(older_than=timedelta(seconds=1000)) == 600
    assert not traces(data, ANN, "gone", *ids[::2])
    assert len(traces(data, *ids)) == 600 and sorted(rows(log)) == sorted(ids[1::2])


def test_the_writers_own_retention_overwrites_what_it_removes(log, data):
    """It does not write the file anew, as that would let writers wait: removed rows are overwritten in their place."""
    now = time.time()
    for number in range(300):
        age, key = (5000, f"old key {number}") if number < 150 else (10, f"young key {number}")
        record(log, f"{number:032}", key=key, time=now - age)
    log.flush(20)
    kept = retention.Retention(log._engine, timedelta(seconds=1000), None)
    while kept.step():
        pass
    assert rows(log) == [f"{number:032}" for number in range(150, 300)]
    assert not traces(data, "old key") and traces(data, "young key")


def test_what_retention_could_not_overwrite_is_said(log, data, monkeypatch, caplog):
    monkeypatch.setattr(retention, "BUSY", 0.05)
    record(log, "a1", key="old key", time=1.5)
    log.flush()
    with contextlib.closing(sqlite3.connect(data / "predictions.db", isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM predictions").fetchone()
        assert log.prune(older_than=timedelta(1)) == 1
    (said,) = [entry.getMessage() for entry in caplog.records]
    assert said.startswith(
        "old rows are removed, but the log's file may still have some of their bytes: another process"
    )


# the person's way into the log


class Blind:
    def __init__(self, version: str) -> None:
        self.version = version

    def detect(self, image, confidence=0.5):
        return []


@pytest.mark.parametrize("bytes_left", [10**9, 0])
def test_a_candidate_in_shadow_is_logged_with_the_person(log, monkeypatch, bytes_left):
    monkeypatch.setattr("labsupport.rollout.shadow.SHADOW_BYTES", bytes_left)
    router = Router(Blind("v1"), log=log)
    router.shadow(Blind("v2"))

    def write(**row):
        log.record(features=None, person=ANN, key="k", **row)

    answering.answer(router, lambda: pixels(1), 0.5, "k", "a1", write, answering.only_detections, person=ANN)
    end = time.monotonic() + 20
    while not rows(log, shadow=True):
        assert time.monotonic() < end
        log.flush()
    assert log.columns("person", "error", shadow=True) == {
        "person": [ANN],
        "error": [None if bytes_left else "NotShown"],
    }
    log.forget(ANN)
    router.mirror("a1", pixels(1), 0.5, "k", ANN)
    record(log, "b1", BOB)
    while "b1" not in rows(log):
        assert time.monotonic() < end
    assert not rows(log, shadow=True)


# the review queue


def test_after_forget_no_byte_of_a_review_item_is_left(data, keys):
    """Small rows in the middle of others are what SQLite copies when it moves rows between pages."""
    ids = same_ids(19, 300)
    with ReviewQueue(data / "review.db", keys=keys) as queue:
        for number, id in enumerate(ids):
            queue.add(id, UNSURE, encoded(number)[1] if number % 50 == 0 else None, owner=BOB if number % 2 else ANN)
            queue.answer(id, "good", person=f"said of {id}")
        some = ids[1:41:2]
        for id in some:
            queue.forget(id)
        assert not traces(data, *some)
        assert queue.forget_owner(ANN) == 150
        assert not traces(data, ANN, *ids[::2]) and not pieces(data, blocks(range(0, 300, 50)))
        assert len(queue.labels()) == 130 and sorted(queue.labels()["id"]) == sorted({*ids[1::2]} - {*some})
        assert len(traces(data, *ids)) == 130


def test_a_forgotten_owner_has_no_picture_and_gets_no_item(data, keys, tmp_path):
    with ReviewQueue(data / "review.db", keys=keys) as queue:
        for id, owner in (("a1", ANN), ("b1", BOB)):
            queue.add(id, UNSURE, encoded(1)[1], owner)
            queue.add(id, UNSURE, encoded(1)[1], owner)  # the same again, though it is encrypted in another way
            assert queue.picture(id) == encoded(1)[1]
        queue.answer("b1", "good", person=ANN)
        for other in ((encoded(2)[1], ANN), (None, ANN), (encoded(1)[1], BOB), (encoded(1)[1], None)):
            with pytest.raises(ValueError, match="a1 is in the queue already"):
                queue.add("a1", UNSURE, *other)
        keys.forget(ANN)
        with pytest.raises(Forgotten):
            queue.picture("a1")
        item = queue.next()
        assert (item.id, item.picture) == ("a1", None)
        for picture in (encoded(1)[1], None):
            with pytest.raises(Forgotten):
                queue.add("a2", UNSURE, picture, ANN)
        assert queue.waiting() == 1
        assert queue.forget_owner(ANN) == 1
        assert queue.picture("b1") == encoded(1)[1]
        assert queue.labels()[["id", "label"]].to_numpy().tolist() == [
            ["b1", "good"]
        ]  # the label stays, without the name
        assert queue.labels()["person"].isna().all() and not traces(data, ANN)


def test_an_item_that_is_being_added_is_found(data, keys, monkeypatch):
    """A process has encrypted with the key, then the key goes and `forget_owner` runs: it waits for the item."""
    encrypt = keys.encrypt
    monkeypatch.setattr(review, "BUSY", 0.05)

    def then_forget(*picture):
        secret = encrypt(*picture)
        keys.forget(ANN)
        with ReviewQueue(data / "review.db") as other, pytest.raises(QueueUnavailable, match="locked"):
            other.forget_owner(ANN)
        return secret

    with ReviewQueue(data / "review.db", keys=keys) as queue:
        monkeypatch.setattr(keys, "encrypt", then_forget)
        queue.add("a1", UNSURE, encoded(1)[1], ANN)
        assert queue.forget_owner(ANN) == 1 and queue.waiting() == 0
