"""What is put is there, once and in order, whoever kills the process, cuts the power, fills the disk or damages the file."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing

import pytest

from conftest import disk_of
from labsupport.edge import Outbox, outbox
from labsupport.edge.outbox import OutboxUnavailable

ACCEPT, REJECT = {"verdict": "accept", "time": 1.5}, {"verdict": "reject", "time": 2.5}
SEEN = {"version": "v1", "detections": [{"label": "cat", "confidence": 1 / 3}]}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "outbox.db"


def rows(file, query: str) -> list[tuple]:
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute(query).fetchall()


def test_records_come_out_in_order_and_whole_and_go_once_they_are_sent(file):
    with Outbox(file) as box:
        for number in range(5):
            box.put(f"p{number}", ACCEPT, SEEN if number else None)
        batch = box.batch(3)
        assert [record["product"] for _, record in batch] == ["p0", "p1", "p2"]
        told = {"station": box.station, "product": "p1", "id": box.id_of("p1")}
        assert batch[1][1] == {**told, **ACCEPT, "prediction": SEEN} and batch[0][1]["prediction"] is None
        box.sent([number for number, _ in batch])
        assert [record["product"] for _, record in box.batch(3)] == ["p3", "p4"]
        assert box.waiting() == 2
        assert box.get("p1") == ACCEPT and box.get("p9") is None


def test_the_first_decision_counts_in_whatever_state_its_record_is(file):
    with Outbox(file) as box:
        for settle in (lambda number: None, lambda number: box.sent([number]), lambda number: box.refuse(number, "no")):
            product = f"p{settle.__code__.co_firstlineno}{id(settle)}"
            assert box.put(product, ACCEPT) == ACCEPT
            ((number, _),) = box.batch(100)[-1:]
            settle(number)
            waiting = box.waiting()
            assert box.put(product, REJECT, SEEN) == ACCEPT
            assert box.waiting() == waiting


@pytest.mark.parametrize("gone", [lambda file, other: file.unlink(), lambda file, other: os.replace(other, file)])
def test_nothing_is_put_into_a_file_that_was_deleted_or_replaced(file, tmp_path, gone):
    with Outbox(tmp_path / "other.db"):
        pass
    with Outbox(file) as box:
        box.put("p1", ACCEPT)
        gone(file, tmp_path / "other.db")
        with pytest.raises(OutboxUnavailable, match="deleted or replaced since it was opened: start again"):
            box.put("p2", ACCEPT)
        assert [record["product"] for _, record in box.batch(9)] == ["p1"]  # what waits can still be sent


def test_a_decision_that_is_stored_is_returned_whatever_can_be_read_afterwards(file, monkeypatch):
    with Outbox(file) as box:
        monkeypatch.setattr(box, "get", lambda product: 1 / 0)
        assert box.put("p1", ACCEPT) == ACCEPT == box.put("p1", REJECT)


def test_what_is_refused_is_kept_aside_and_the_rest_goes_on(file):
    with Outbox(file) as box:
        for number in range(3):
            box.put(f"p{number}", ACCEPT, SEEN)
        (_, first), (number, second), (_, third) = box.batch(100)
        box.refuse(number, "latency: below 0")
        assert [record for _, record in box.batch(100)] == [first, third]
        assert box.refused() == [(second, "latency: below 0")]
        assert box.waiting() == 2


def test_an_id_is_the_same_after_a_restart_and_another_in_another_file(file, tmp_path):
    with Outbox(file) as box:
        id = box.id_of("p1")
    with Outbox(file) as again, Outbox(tmp_path / "other.db") as other:
        assert again.id_of("p1") == id != other.id_of("p1")
        assert len(id) == 32 and int(id, 16)
        assert again.id_of("p2") != id


def test_threads_that_put_the_same_products_store_each_once(file):
    with Outbox(file) as box:
        given = [{} for _ in range(8)]

        def work(number: int) -> None:
            for product in random.Random(number).sample(range(30), 30):
                given[number][product] = box.put(f"p{product}", {"by": number})["by"]

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert given[1:] == given[:-1]
        assert box.waiting() == 30


# kill -9 and power cuts

PUTS = """
import sys
from labsupport.edge import Outbox
box = Outbox(sys.argv[1])
for number in range(int(sys.argv[2]), 1_000_000):
    box.put(f"p{number}", {"number": number}, {"much": "x" * 3000})
    print(number, flush=True)
    if number % 7 == 6:
        box.sent([number for number, _ in box.batch(3)])
"""


def test_a_kill_at_any_moment_loses_nothing_that_put_has_returned(file):
    chance, told = random.Random(5), -1
    for _ in range(4):
        program = [sys.executable, "-c", PUTS, str(file), str(told + 1)]
        with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
            for _ in range(chance.randrange(5, 60)):
                told = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            told = max([told, *(int(line) for line in process.stdout if line.endswith("\n"))])
        with Outbox(file) as box:
            assert rows(file, "PRAGMA integrity_check") == [("ok",)]
            stored = [json.loads(text)["number"] for (text,) in rows(file, "SELECT decision FROM outbox_decisions")]
            assert stored in ([*range(told + 1)], [*range(told + 2)])  # one may be stored and not told yet
            waiting = [record["number"] for _, record in box.batch(10_000)]
            assert waiting == stored[len(stored) - len(waiting) :] and 0 < len(waiting) < len(stored)
            told = stored[-1]


def test_whatever_a_power_cut_leaves_of_the_log_holds_the_first_records_whole(file, tmp_path):
    """A disk may have written the log up to anywhere. What put has returned is before that: it waits for the disk."""
    box = Outbox(file)
    for number in range(6):
        box.put(f"p{number}", {"number": number}, {"much": "x" * 5000})
    log = tmp_path / "outbox.db-wal"
    found, size = set(), log.stat().st_size
    for length in (*range(0, size, 1024), size):
        cut = tmp_path / "cut.db"
        shutil.copy(file, cut)
        shutil.copy(log, tmp_path / "cut.db-wal")
        os.truncate(tmp_path / "cut.db-wal", length)
        if cut.stat().st_size:
            with Outbox(cut) as rest:
                numbers = [record["number"] for _, record in rest.batch(100)]
            assert numbers == [*range(len(numbers))]
            found.add(len(numbers))
        for path in tmp_path.glob("cut.db*"):
            path.unlink()
    box.close()
    assert found == {*range(7)}


def test_put_waits_for_the_disk_and_sent_does_not(file):
    with Outbox(file) as box:
        (mode,) = box._connection.execute("PRAGMA journal_mode").fetchone()
        assert mode == "wal"
        levels = []
        box._connection.set_trace_callback(
            lambda statement: levels.append(box.level()) if statement == "COMMIT" else None
        )
        box.level = lambda: box._connection.execute("PRAGMA synchronous").fetchone()[0]
        box.put("p1", ACCEPT)
        box.sent([1])
        box.put("p2", ACCEPT)
        assert levels == [2, 1, 2]  # SQLite's FULL and NORMAL


# what the disk may be like


@pytest.fixture
def small_disk(tmp_path):
    """A folder with room for 1 MB."""
    with disk_of(1, tmp_path / "disk") as disk:
        yield disk


def test_a_full_disk_is_said_stores_nothing_and_passes(small_disk):
    with Outbox(small_disk / "outbox.db") as box:
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as opened, pytest.raises(OSError):
            while True:
                opened.write(bytes(4096))
        stored = 0
        with pytest.raises(OutboxUnavailable, match="make room on the disk"):
            for stored in range(1_000):
                box.put(f"p{stored}", ACCEPT, {"much": "x" * 20_000})
        assert box.get(f"p{stored}") is None and box.waiting() == stored
        filler.unlink()
        assert box.put(f"p{stored}", REJECT) == REJECT
        assert box.waiting() == stored + 1


def test_a_file_that_another_process_locks_costs_a_moment_and_says_so(file):
    with Outbox(file) as box, closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OutboxUnavailable, match="another process keeps it locked"):
            box.put("p1", ACCEPT)
        assert box.get("p1") is None  # reading goes on
        other.execute("ROLLBACK")
        assert box.put("p1", ACCEPT) == ACCEPT


def overwrite(file) -> None:
    size = file.stat().st_size
    with file.open("r+b") as opened:
        opened.seek(size // 3)
        opened.write(os.urandom(size // 3))


def other_program(file) -> None:
    file.unlink()
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE songs (id)")


def newer(file) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version = 2")


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (overwrite, "it is damaged or no outbox: keep it, records may wait in it, and name a new file"),
        (lambda file: os.truncate(file, file.stat().st_size // 2), "it is damaged or no outbox"),
        (lambda file: file.write_bytes(b"a text, and no database"), "it is damaged or no outbox"),
        (other_program, "is of another program or of a newer version: name another file"),
        (newer, "is of another program or of a newer version"),
    ],
    ids=["overwritten", "cut off", "no database", "other program", "newer"],
)
def test_a_file_that_is_damaged_or_foreign_is_refused_and_left_alone(file, damage, what):
    with Outbox(file) as box:
        for number in range(100):
            box.put(f"p{number}", ACCEPT, SEEN)
    damage(file)
    before = file.read_bytes()
    with pytest.raises(OutboxUnavailable, match=what):
        Outbox(file)
    assert file.read_bytes() == before


@pytest.mark.parametrize("path", ["nowhere/outbox.db", "."], ids=["no folder", "a folder"])
def test_a_place_that_takes_no_file_is_refused(tmp_path, path):
    with pytest.raises(OutboxUnavailable, match="name a file in a folder you may write in"):
        Outbox(tmp_path / path)


def test_space_that_was_waited_in_is_used_again(file):
    """What a day costs: pages of records that were sent go to those that come."""
    sizes = []
    with Outbox(file) as box:
        for day in range(4):
            for number in range(200):
                box.put(f"{day} {number}", ACCEPT, {"much": "x" * 1_200})
            while batch := box.batch(100):
                box.sent([number for number, _ in batch])
            box._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            sizes.append(file.stat().st_size)
    assert sizes[-1] < 1.3 * sizes[0]


def test_it_is_made_for_its_owner_only(file):
    Outbox(file).close()
    assert file.stat().st_mode & 0o777 == 0o600
    assert outbox.BUSY < 1  # the line waits that long


@pytest.mark.parametrize("path", [None, 3, "", b"outbox.db", "a\0b"])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(ValueError, match=r"^path=.*: give the path of a file$"):
        Outbox(path)


@pytest.mark.parametrize(
    "wrong", [(None, {}), ("", {}), ("\ud800", {}), ("p\0", {}), ("p", None), ("p", [1]), ("p", {}, 3)]
)
def test_what_is_no_decision_is_not_blamed_on_the_file(tmp_path, wrong):
    with Outbox(tmp_path / "outbox.db") as outbox:
        with pytest.raises(ValueError, match=r"^(product|decision)="):
            outbox.put(*wrong)
        assert outbox.batch(9) == []
    with pytest.raises(OutboxUnavailable, match=r"closed database.*: open it again$"):
        outbox.put("p", {})
