"""The oldest goes first, what users said goes with it, the disk gets its space back, and nobody waits for it."""

import sqlite3
import threading
import time
from contextlib import closing
from datetime import timedelta

import pytest
import sqlalchemy

from labsupport.detection import Box, Detection
from labsupport.log import NotWritten, PredictionLog, retention, tables, writer
from test_tables import make_old

FOUND = [Detection("cat", 0.9, Box(10, 20, 110, 120)), Detection("dog", 0.8, Box(1, 2, 3, 4))]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "predictions.db"


@pytest.fixture
def log(file):
    with PredictionLog(f"sqlite:///{file}") as opened:
        yield opened


START = float(int(time.time()) - 200_000)  # a whole second: a decision travels as text, with microseconds


def fill(log: PredictionLog, count: int, first: int = 0) -> None:
    """Rows 10 seconds apart, all in the past."""
    for number in range(first, first + count):
        moment = START + 10 * number
        log.record(id=f"{number:032}", version="v1", latency=0.1, detections=FOUND, features=None, time=moment)
        if number % 1000 == 999:
            log.flush(30)
    log.flush(30)


def age(number: int) -> timedelta:
    """As old as what lies half-way between this row and the one before it."""
    return timedelta(seconds=time.time() - (START + 10 * number - 5))


def numbers(log: PredictionLog) -> list[int]:
    return [int(id) for id in log.columns("id")["id"]]


def remarks(file) -> list[int]:
    with closing(sqlite3.connect(file)) as connection:
        return [int(id) for (id,) in connection.execute("SELECT id FROM feedback ORDER BY row")]


def on_disk(file) -> int:
    return sum(path.stat().st_size for path in file.parent.iterdir())


def test_what_is_too_old_goes_and_what_users_said_of_it_too(log, file, monkeypatch):
    monkeypatch.setattr(retention, "ROWS", {"sqlite": 7})  # so that it takes some transactions
    fill(log, 60)
    for number in (3, 39, 40, 41):
        log.feedback(f"{number:032}", correct=True)
    assert log.prune(older_than=age(40)) == 40
    assert numbers(log) == list(range(40, 60))
    assert remarks(file) == [40, 41]
    assert log.prune(older_than=age(40)) == 0
    assert log.prune(older_than=timedelta(days=365)) == 0


def test_a_remark_stays_while_a_candidates_answer_to_the_same_picture_does(log, file):
    now = time.time()
    log.record(id="7", version="v1", latency=0.1, detections=[], features=None, time=now - 100)
    log.record(id="7", version="v2", latency=0.1, detections=[], features=None, time=now - 50, shadow=True)
    log.flush()
    log.feedback("7", correct=True)
    assert log.prune(older_than=timedelta(seconds=75)) == 1
    assert remarks(file) == [7]
    assert log.prune(older_than=timedelta(seconds=25)) == 1
    assert remarks(file) == []


@pytest.mark.parametrize("share", [0.9, 0.5, 0.1])
def test_what_is_too_much_goes_the_oldest_first_and_the_disk_gets_it_back(log, file, share):
    fill(log, 6000)
    log.prune(max_bytes=10**9)
    assert len(numbers(log)) == 6000
    whole = on_disk(file)
    limit = int(whole * share)
    removed = log.prune(max_bytes=limit)
    left = numbers(log)
    assert left == list(range(removed, 6000))
    assert on_disk(file) <= limit + 32_768  # and what SQLite keeps beside the file about who reads it: 32 kB
    assert len(left) > 0.85 * 6000 * (limit - 15 * 4096) / whole  # no more had to go; an empty file has 15 pages
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_both_limits_hold(log):
    fill(log, 2000)
    assert log.prune(older_than=age(100), max_bytes=10**9) == 100
    assert log.prune(older_than=timedelta(days=9), max_bytes=0) == 1900
    assert numbers(log) == []


def test_the_number_of_a_removed_row_is_not_used_again(log, file):
    """Otherwise a reader that goes on after the last row it read passes over the new ones."""

    def last(table):
        with closing(sqlite3.connect(file)) as connection:
            return connection.execute(f"SELECT max(row) FROM {table}").fetchone()[0]

    for first in (0, 20):
        fill(log, 20, first)
        log.feedback(f"{first:032}", correct=True)
        assert (last("predictions"), last("feedback")) == (first + 20, 1 + first // 20)
        log.prune(older_than=timedelta(0))
        assert numbers(log) == remarks(file) == []


def test_an_older_file_is_written_anew_once_and_then_given_back_in_pieces(file, monkeypatch):
    make_old(file, 2)
    asked = []
    monkeypatch.setattr(retention, "PAGES", 10)
    with PredictionLog(f"sqlite:///{file}") as log:
        fill(log, 3000)
        before = on_disk(file)
        assert log.prune(older_than=age(2000)) == 2003  # and the three that were there
        assert on_disk(file) < 0.5 * before
        listen(log, asked)
        fill(log, 3000, first=3000)
        before = on_disk(file)
        assert log.prune(max_bytes=100_000) > 3000
        assert on_disk(file) <= 100_000 + 32_768 < before
    pieces = [number for number, one in enumerate(asked) if one == "PRAGMA incremental_vacuum(10)"]
    # what needs no free space on the disk comes first
    assert len(pieces) > 10 and [number for number, one in enumerate(asked) if one == "VACUUM"] > pieces[-1:]


def listen(log: PredictionLog, asked: list) -> None:
    """Note every statement that SQLite gets to see."""
    sqlalchemy.event.listen(log._engine, "connect", lambda connection, _: connection.set_trace_callback(asked.append))


def test_who_writes_meanwhile_loses_nothing_and_two_may_prune_at_once(log, file):
    fill(log, 8000)
    pruned = []
    with PredictionLog(f"sqlite:///{file}") as other:
        pruners = [
            threading.Thread(target=lambda at=at: pruned.append(at.prune(older_than=age(1800)))) for at in (log, other)
        ]
        for thread in pruners:
            thread.start()
        fill(log, 2000, first=8000)
        for thread in pruners:
            thread.join()
    assert sum(pruned) == 1800  # each row once
    assert numbers(log) == list(range(1800, 10_000))
    assert log.dropped == 0


def test_a_reader_keeps_what_it_sees_while_rows_go(log, file):
    fill(log, 3000)
    with closing(sqlite3.connect(file, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM predictions").fetchone() == (3000,)
        assert log.prune(older_than=timedelta(0)) > 0
        assert reader.execute("SELECT count(*) FROM predictions").fetchone() == (3000,)
        reader.execute("COMMIT")
    log.prune(older_than=timedelta(0))
    assert on_disk(file) < 200_000  # what could not be given back while somebody read is given back later


def test_a_file_that_somebody_locks_is_not_pruned_and_nothing_is_lost(log, file, monkeypatch):
    fill(log, 10)
    monkeypatch.setattr("labsupport.log.tables.BUSY", 0.05)
    with closing(sqlite3.connect(file, isolation_level=None)) as other, PredictionLog(f"sqlite:///{file}") as hasty:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(NotWritten, match="cannot be written now"):
            hasty.prune(older_than=timedelta(0))
        other.execute("ROLLBACK")
    assert len(numbers(log)) == 10


# every table

DECISION = {"station": "s", "verdict": "accept", "decided_by": "device", "latency": 0.1, "prediction": None}


def decide(log: PredictionLog, numbers, reason: str = "") -> None:
    """Decisions of a station that go with the rows of these numbers."""
    chosen = [
        {**DECISION, "id": f"d{n:031}", "product": str(n), "time": START + 10 * n, "reason": reason} for n in numbers
    ]
    for first in range(0, len(chosen), 100):
        log.receive(chosen[first : first + 100])


def decisions(log: PredictionLog) -> list[int]:
    return log.decisions()["product"].astype(int).tolist()


def test_every_table_has_a_rule():
    """A new table needs a line in `retention.AGED`: what says how old its rows are, by an index."""
    assert {*tables.TABLES.sorted_tables} == {*retention.AGED}
    for table, column in retention.AGED.items():
        assert column.table is table and column.index


def test_what_stations_decided_long_ago_goes_too(log):
    fill(log, 20)
    decide(log, range(20))
    log.receive([{**DECISION, "id": "f" * 32, "product": "-1", "time": 0.0}])  # a station whose clock began in 1970
    assert log.prune(older_than=age(15)) == 15
    assert decisions(log) == numbers(log) == list(range(15, 20))


def test_decisions_count_towards_the_size_and_the_oldest_of_all_rows_go_first(log, file):
    decide(log, range(0, 3000), reason="x" * 500)
    fill(log, 2000, first=2000)  # of the same hours, and later
    with pytest.raises(ValueError):
        log.prune()
    limit = int(on_disk(file) * 0.7)
    log.prune(max_bytes=limit)
    assert on_disk(file) <= limit + 32_768
    left, stations = numbers(log), decisions(log)
    assert len(left) == 2000  # they are younger than the decisions that had to go
    assert stations == list(range(stations[0], 3000)) and 0 < stations[0] < 2000
    log.prune(max_bytes=limit // 2)
    left, stations = numbers(log), decisions(log)
    assert left == list(range(left[0], 4000)) and stations == list(range(left[0], 3000)) and left[0] > 2000
    log.prune(max_bytes=0)
    assert not numbers(log) and not decisions(log)


def test_many_remarks_on_one_prediction_go_before_what_is_younger(log, file, monkeypatch):
    fill(log, 300)
    fill(log, 50, first=400)
    with monkeypatch.context() as patch:
        patch.setattr("labsupport.log.prediction_log.clock.time", lambda: START + 3000)
        for _ in range(60):
            log.feedback(f"{299:032}", labels=["x" * 1000] * 20)
    assert on_disk(file) > 1_000_000
    log.prune(max_bytes=500_000)
    assert file.stat().st_size <= 500_000
    assert numbers(log) == list(range(400, 450)) and not remarks(file)


def test_a_remark_whose_prediction_has_gone_meanwhile_goes_by_its_own_time(log, file):
    fill(log, 3)
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("INSERT INTO feedback (time, id, correct) VALUES (?, 'nobody', 1)", [START])
    assert log.prune(older_than=age(1)) == 1
    assert not remarks(file)


def test_the_writer_keeps_decisions_within_the_limits_too(file, monkeypatch):
    monkeypatch.setattr(writer, "TEND", 0.05)
    with PredictionLog(f"sqlite:///{file}", keep=age(15)) as log:
        decide(log, range(20))
        fill(log, 1, first=19)
        until(lambda: decisions(log) == list(range(15, 20)))


# what a look costs


def test_a_look_takes_no_lock_and_reads_no_table(log, file):
    """Twice a minute each process looks: SQLite's own steps are counted, in a file with 50 times as many rows."""
    fill(log, 500)
    decide(log, range(100))
    kept = retention.Retention(log._engine, timedelta(days=365), 10**9)
    few = steps(log, kept.step)
    fill(log, 25_000, first=500)
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        many = steps(log, kept.step)
        other.execute("ROLLBACK")
    assert 0 < many < 1.5 * few


def steps(log: PredictionLog, work) -> int:
    """How many instructions SQLite's virtual machine runs for some work: a measure that no other load changes."""
    counted = 0

    def count() -> int:
        nonlocal counted
        counted += 1
        return 0

    def listen(connection, record) -> None:
        connection.set_progress_handler(count, 1)

    sqlalchemy.event.listen(log._engine, "connect", listen)
    try:
        work()
    finally:
        sqlalchemy.event.remove(log._engine, "connect", listen)
    return counted


# by itself


def until(true, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def test_by_default_nothing_goes(log, monkeypatch):
    monkeypatch.setattr(writer, "TEND", 0.0)
    log.record(id="1", version="v", latency=0.1, detections=[], features=None, time=1.5)
    log.flush()
    log.record(id="2", version="v", latency=0.1, detections=[], features=None)
    log.flush()
    assert len(numbers(log)) == 2


def test_the_writer_removes_what_is_too_old_though_nobody_records_any_more(file, monkeypatch):
    monkeypatch.setattr(writer, "TEND", 0.05)
    with PredictionLog(f"sqlite:///{file}", keep=age(1500)) as log:
        fill(log, 3000)
        until(lambda: len(numbers(log)) == 1500)
        log.record(id="1", version="v", latency=0.1, detections=[], features=None, time=START)
        log.flush()
        until(lambda: numbers(log)[0] == 1500)


def test_the_writer_keeps_the_file_within_its_limit(file, monkeypatch):
    monkeypatch.setattr(writer, "TEND", 0.0)
    with PredictionLog(f"sqlite:///{file}", max_bytes=300_000) as log:
        fill(log, 5000)
        until(lambda: file.stat().st_size <= 300_000)
        left = numbers(log)
        assert left == list(range(left[0], 5000)) and len(left) > 300
        assert log.dropped == 0


def test_a_failure_to_remove_is_said_once_and_stops_no_row(file, monkeypatch, caplog):
    monkeypatch.setattr(writer, "TEND", 0.0)
    with PredictionLog(f"sqlite:///{file}", keep=timedelta(days=1)) as log:
        log._writer._tend = lambda: 1 / 0
        fill(log, 2000)
        assert len(numbers(log)) == 2000
    told = [entry.getMessage() for entry in caplog.records if "old rows" in entry.getMessage()]
    assert told == [f"sqlite:///{file} is not kept within its limits, old rows stay: division by zero"]


@pytest.mark.parametrize(
    ("limits", "error", "what"),
    [
        ({}, ValueError, "say what is to go"),
        ({"older_than": 30}, TypeError, r"timedelta\(days=30\)"),
        ({"older_than": 30}, TypeError, "older_than=30: give a timedelta"),
        ({"older_than": timedelta(-1)}, ValueError, "older_than=-1 day, .* negative"),
        ({"max_bytes": -1}, ValueError, "max_bytes=-1: give a whole number of at least 0"),
    ],
)
def test_limits_that_are_none_are_refused(log, limits, error, what):
    with pytest.raises(error, match=what):
        log.prune(**limits)


def test_a_log_refuses_the_same_limits(file):
    with pytest.raises(TypeError, match="timedelta"):
        PredictionLog(f"sqlite:///{file}", keep=30)
