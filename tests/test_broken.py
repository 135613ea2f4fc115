"""What the log stands on breaks: the file, the disk, the clock. Nothing is lost silently or crashes; one line says it."""

import shutil
import sqlite3
import subprocess
import time
from contextlib import closing
from datetime import timedelta
from types import SimpleNamespace

import pytest
from sqlalchemy import create_engine, exc

from conftest import disk_of
from labsupport.automation import Degree, QueueUnavailable, ReviewQueue, decide
from labsupport.log import LogUnavailable, NotWritten, PredictionLog, retention, tables, writer
from labsupport.log.writer import Writer
from labsupport.monitoring import Alarms, AlertRule

AWAY = " cannot be written, rows wait: "


@pytest.fixture
def file(tmp_path):
    (tmp_path / "log").mkdir()
    return tmp_path / "log" / "predictions.db"


@pytest.fixture
def log(file, monkeypatch):
    """A log that soon has had enough of waiting for a lock."""
    monkeypatch.setattr(tables, "BUSY", 0.05)
    with PredictionLog(file) as opened:
        yield opened


def record(log: PredictionLog, id: str, **columns) -> None:
    log.record(**{"id": id, "version": "v1", "latency": 0.01, "detections": [], "features": None, **columns})


def ids(file) -> list[str]:
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as connection:
        return [id for (id,) in connection.execute("SELECT id FROM predictions ORDER BY row")]


def until(true, what: str, seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds} s for: {what}"
        time.sleep(0.01)


def told(caplog, name: str = writer.__name__) -> list[str]:
    return [entry.getMessage().partition("predictions.db")[2] for entry in caplog.records if entry.name == name]


# each outage once, with its own number


class Away:
    """A database that can be sent away, behind a writer that holds 30 rows."""

    def __init__(self, monkeypatch) -> None:
        monkeypatch.setattr(writer, "QUEUE", 30)
        monkeypatch.setattr(writer, "BATCH", 10)
        monkeypatch.setattr(writer, "DELAY", 0.01)
        self.away, self.slow, self.rows = False, 0.0, []
        self.writer = Writer(create_engine("sqlite://"), "predictions.db", self.insert)

    def insert(self, connection, rows) -> None:
        if self.away:
            raise exc.OperationalError("INSERT", None, sqlite3.OperationalError("database is locked"))
        time.sleep(self.slow)
        self.rows += rows

    def outage(self, rows: int) -> None:
        self.away = True
        for number in range(rows):
            self.writer.put({"number": number})
            if not number:
                until(lambda: self.writer._away.there, "the writer to notice")
        lost = max(rows - 30, 0)
        until(lambda: not lost or self.writer._full.there, "the writer to notice that rows are lost")
        self.away = False
        self.writer.flush()


@pytest.fixture
def database(monkeypatch):
    database = Away(monkeypatch)
    yield database
    database.writer.close()


def test_each_outage_is_told_once_with_its_own_number_of_lost_rows(database, caplog):
    for rows in (50, 33, 10, 31):
        database.outage(rows)
    away, full = f"{AWAY}database is locked", " cannot be written for too long: rows are dropped"
    assert told(caplog) == [
        *(away, full, " is written again, 20 rows were dropped"),
        *(away, full, " is written again, 3 rows were dropped"),
        *(away, " is written again, 0 rows were dropped"),
        *(away, full, " is written again, 1 rows were dropped"),
    ]
    assert database.writer.dropped == 24 and len(database.rows) == 100


def test_rows_that_are_lost_because_they_come_too_fast_are_told_of_too(database, caplog):
    database.slow = 0.02
    for _ in range(2):
        until(lambda: [database.writer.put({}) for _ in range(99)] and database.writer._full.there, "rows to be lost")
        database.writer.flush(30)
    lost = [int(message.split()[3]) for message in told(caplog) if "keeps up again" in message]
    assert len(told(caplog)) == 4 and len(lost) == 2 and min(lost) > 0
    assert told(caplog)[0] == told(caplog)[2] == " takes fewer rows than come: the oldest that wait are dropped"
    assert sum(lost) == database.writer.dropped


def test_rows_that_cannot_be_written_are_told_of_again_after_a_minute(database, caplog, monkeypatch):
    insert = database.insert

    def strict(connection, rows):
        if any("bad" in row for row in rows):
            raise ValueError("no number")
        insert(connection, rows)

    database.writer._insert = strict
    for _ in range(2):
        for number in range(6):
            database.writer.put({"bad": 1} if number % 2 else {})
        database.writer.flush()
    bad = [message for message in told(caplog) if "cannot be written were dropped" in message]
    assert bad == [": 1 rows that cannot be written were dropped: ValueError: no number"]
    database.writer._bad_due = 0.0  # a minute later
    database.writer.put({"bad": 1})
    database.writer.flush()
    until(
        lambda: ": 6 rows that cannot be written were dropped: ValueError: no number" in told(caplog), "the other line"
    )
    assert database.writer.dropped == 7 and len(database.rows) == 6


def test_whatever_the_database_raises_does_not_end_the_writer(database, caplog):
    insert, raised = database.insert, [SystemExit(), MemoryError(), KeyboardInterrupt(), RecursionError()]

    def failing(connection, rows):
        if raised and not isinstance(raised[-1], RecursionError):
            raise raised.pop()
        raised.clear()
        insert(connection, rows)

    raised.pop()
    database.writer._insert = failing
    database.writer.put({"number": 1})
    database.writer.flush()
    assert database.rows == [{"number": 1}] and database.writer.dropped == 0
    assert "KeyboardInterrupt" in caplog.text and "SystemExit" in caplog.text


# the file


@pytest.mark.parametrize("how", ["deleted", "deleted with all beside it", "renamed", "replaced", "another program's"])
def test_a_file_that_goes_away_while_it_is_open_is_begun_anew_and_told_of(log, file, caplog, how):
    record(log, "before")
    log.flush()
    if how == "renamed":
        file.rename(file.with_name("old.db"))
    else:
        file.unlink()
    if how == "deleted with all beside it":
        for path in file.parent.iterdir():
            path.unlink()
    if how == "replaced":
        PredictionLog(file).close()
    if how == "another program's":
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("CREATE TABLE songs (id)")
    for number in range(5):
        record(log, str(number))
    if how == "another program's":
        until(lambda: told(caplog), "the outage to be told")
        with closing(sqlite3.connect(file)) as connection:
            assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("songs",)]  # nothing of ours
        file.unlink()
    log.flush(10)
    assert ids(file) == [str(number) for number in range(5)]
    assert log.dropped == 0 and file.stat().st_mode & 0o777 == 0o600
    assert told(caplog) == [f"{AWAY}the file was deleted or replaced", " is written again, 0 rows were dropped"]
    assert log.columns("id")["id"] == [str(number) for number in range(5)]


def test_who_only_reads_makes_no_file_where_one_was_deleted(log, file, caplog):
    file.unlink()
    for _ in range(3):
        with pytest.raises(LogUnavailable, match="cannot be read now"):
            log.frame()
    assert not file.exists()
    assert told(caplog) == [" cannot be read: unable to open database file"]
    PredictionLog(file).close()
    assert log.frame().empty
    assert told(caplog)[1:] == [" can be read again"]


def test_a_folder_in_place_of_the_file_is_told_of_and_rows_wait_for_its_end(log, file, caplog):
    record(log, "before")
    log.flush()
    for path in file.parent.iterdir():
        path.unlink()
    file.mkdir()
    record(log, "a")
    until(lambda: told(caplog), "the outage to be told")
    with pytest.raises(LogUnavailable, match="cannot be read now"):
        log.frame()
    with pytest.raises(NotWritten, match="cannot be written now"):
        log.feedback("a", correct=True)
    with pytest.raises(LogUnavailable, match="Is a directory"):
        PredictionLog(file)
    file.rmdir()
    log.flush(10)
    assert ids(file) == ["a"] and log.dropped == 0


def damage(file, table: str) -> None:
    """Overwrite the first page of a table, and empty the write-ahead log into the file before."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", [table]).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with file.open("r+b") as opened:
        opened.seek((page - 1) * size)
        opened.write(b"\xa5" * size)


def test_a_damaged_page_is_told_of_once_and_rows_wait(file, caplog, monkeypatch):
    monkeypatch.setattr(writer.Writer.flush, "__defaults__", (0.3,))
    with PredictionLog(file, max_bytes=10**9) as log:
        record(log, "before")
        log.flush(5)
    damage(file, "predictions")
    monkeypatch.setattr(writer, "TEND", 0.0)
    with PredictionLog(file, max_bytes=10**9) as log:
        for number in range(5):
            record(log, str(number))
        with pytest.raises(NotWritten, match="5 rows still wait"):
            log.flush(0.5)
        for attempt in (log.frame, lambda: log.export(file.with_name("log.parquet"))):
            with pytest.raises(LogUnavailable, match="cannot be read now"):
                attempt()
        with pytest.raises(NotWritten, match="cannot be written now"):
            log.feedback("before", correct=True)
        assert not file.with_name("log.parquet").exists()
    assert log.dropped == 5
    malformed = "database disk image is malformed"
    assert told(caplog) == [
        f"{AWAY}{malformed}",
        f" cannot be read: {malformed}",
        " is closed while it cannot be written: 5 rows were dropped",
    ]


def test_a_disk_that_becomes_read_only_is_told_of_and_rows_wait(tmp_path, caplog):
    with disk_of(2, tmp_path / "disk") as disk, PredictionLog(disk / "predictions.db") as log:
        record(log, "before")
        log.flush()
        log.close()  # nothing may be open for writing
        remount = ["mount", "-o", "remount,ro", str(disk)]
        if subprocess.run(remount, capture_output=True).returncode:
            pytest.skip("this disk cannot be made read-only")
        record(log, "a")
        until(lambda: told(caplog), "the outage to be told")
        assert "readonly" in told(caplog)[0] or "unable to open" in told(caplog)[0]
        with pytest.raises(NotWritten):
            log.feedback("before", correct=True)
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        log.flush(10)
        assert ids(disk / "predictions.db") == ["before", "a"] and log.dropped == 0


def test_on_a_full_disk_what_is_said_or_asked_for_is_refused_and_nothing_is_half_written(tmp_path):
    record_of_station = {
        **{"id": "1" * 32, "time": 1.0, "station": "s", "product": "p", "verdict": "accept", "decided_by": "device"},
        **{"latency": 0.1, "reason": "x" * 1000},
    }
    shadowed = decide([], Degree.SHADOW)
    with disk_of(1, tmp_path / "disk") as disk:
        with PredictionLog(disk / "predictions.db") as log, ReviewQueue(disk / "review.db") as queue:
            record(log, "a")
            log.flush()
            with (disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError):
                while True:
                    filler.write(bytes(4096))
            with pytest.raises(NotWritten, match="nothing was noted"):
                for _ in range(100):  # SQLite may have a page or two left
                    log.feedback("a", labels=["x" * 1000] * 100)
            with pytest.raises(NotWritten, match="nothing was noted"):
                for number in range(100):
                    log.receive([{**record_of_station, "id": f"{number:032x}"}] * 10)
            with pytest.raises(QueueUnavailable, match="full"):
                for number in range(1000):
                    queue.add(f"{number}" + "x" * 900, shadowed)
            (disk / "filler").unlink()
            log.feedback("a", correct=True)
            queue.add("after", shadowed)
            assert log.receive([record_of_station]) == 1
            assert "after" in {row[0] for row in queue._reader.execute("SELECT id FROM review_items")}
        for name in ("predictions.db", "review.db"):
            with closing(sqlite3.connect(disk / name)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_log_that_is_locked_for_long_serves_who_reads(log, file, caplog):
    record(log, "before")
    log.flush()
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        record(log, "a")
        until(lambda: told(caplog), "the outage to be told")
        for _ in range(20):
            assert log.columns("id")["id"] == ["before"]
            with pytest.raises(NotWritten, match="cannot be written now"):
                log.feedback("before", retry=True)
        other.execute("ROLLBACK")
    log.flush()
    assert told(caplog) == [f"{AWAY}database is locked", " is written again, 0 rows were dropped"]


@pytest.mark.parametrize("attempt", ["frame", "feedback", "receive", "prune", "flush", "unknown"])
def test_what_is_raised_names_no_file_and_no_library(log, file, attempt, caplog):
    """A server may hand the message to a client."""
    record(log, "a")
    log.flush()
    if attempt not in ("unknown", "flush"):
        shutil.rmtree(file.parent)
    attempts = {
        "frame": log.frame,
        "feedback": lambda: log.feedback("a", correct=True),
        "receive": lambda: log.receive([]),
        "prune": lambda: log.prune(older_than=timedelta(0)),
        "unknown": lambda: log.feedback("nobody", correct=True),
    }
    if attempt == "flush":
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            record(log, "b")
            with pytest.raises(NotWritten) as raised:
                log.flush(0.1)
            other.execute("ROLLBACK")
    else:
        with pytest.raises((LogUnavailable, NotWritten, KeyError)) as raised:
            attempts[attempt]()
    said = str(raised.value)
    assert said and not any(word in said for word in ("/", "predictions.db", "sqlite", "SQL", "psycopg"))
    if attempt not in ("unknown", "flush"):
        assert str(file) in caplog.text  # the program's own log names it


# the clock


@pytest.fixture
def clock(monkeypatch):
    """The wall clock, which can be set: clock[0] is how many seconds it is ahead."""
    ahead, now = [0.0], time.time
    monkeypatch.setattr(time, "time", lambda: now() + ahead[0])
    return ahead


YEAR = 365 * 86_400.0


def test_a_clock_that_is_set_ahead_while_a_server_runs_makes_no_row_too_old(file, clock, monkeypatch, caplog):
    monkeypatch.setattr(writer, "TEND", 0.0)
    with PredictionLog(file, keep=timedelta(days=30)) as log:
        record(log, "before")
        log.flush()
        clock[0] = YEAR
        record(log, "meanwhile")
        log.flush()
        until(lambda: "was set ahead by 365 days" in caplog.text, "the jump to be told")
        clock[0] = 0.0
        record(log, "after")
        log.flush()
        assert log.columns("id")["id"] == ["before", "after", "meanwhile"]  # by time
        assert [entry.name for entry in caplog.records] == [retention.__name__]


def test_a_clock_that_is_set_back_loses_no_row_and_keeps_the_order_of_time(file, clock):
    with PredictionLog(file, keep=timedelta(days=30)) as log:
        record(log, "before")
        log.flush()
        clock[0] = -YEAR
        record(log, "meanwhile")
        log.flush()
        log.feedback("before", correct=True)  # said a year before it was answered
        assert log.columns("id", "correct") == {"id": ["meanwhile", "before"], "correct": [None, True]}
        assert log.columns("id", since=timedelta(minutes=1), until=time.time() + 1)["id"] == ["meanwhile"]
        clock[0] = 0.0
        assert log.prune(older_than=timedelta(days=30)) == 1  # by its own time, it is a year old
        assert log.columns("id", "correct") == {"id": ["before"], "correct": [None]}  # and so is the remark


def test_alarms_look_on_after_the_clock_was_set_back(file, clock, caplog):
    rule = AlertRule("Dark", "brightness_mean", below=0.2, window=60, hold=0, min_rows=1)
    with PredictionLog(file) as log:
        alarms = Alarms([rule], log, clock=lambda: time.time())
        record(log, "bright", features={"brightness": 0.5})
        log.flush()
        assert alarms.evaluate() == [] and alarms.status["Dark"].reading.rows == 1
        clock[0] = -YEAR
        record(log, "dark", features={"brightness": 0.1})
        log.flush()
        assert [event.alarm for event in alarms.evaluate()] == ["Dark"]
        assert "the clock was set back by" in caplog.text
        clock[0] = 0.0  # ahead again: the rows of now are looked at
        assert [event.event for event in alarms.evaluate()] == ["cleared"]


def test_a_clock_that_is_corrected_by_a_second_changes_nothing(caplog):
    now = [1000.0]
    log = SimpleNamespace(columns=lambda *names, since, until: {"time": [999.0], "brightness": [0.1]})
    rule = AlertRule("Dark", "brightness_mean", below=0.2, window=60, hold=5, min_rows=1)
    alarms = Alarms([rule], log, clock=lambda: now[0])
    alarms.evaluate()
    now[0] -= 1
    alarms.evaluate()
    assert alarms.states == {"Dark": "pending"} and alarms.status["Dark"].since == 1000 and not caplog.records
    now[0] += 7
    assert [event.event for event in alarms.evaluate()] == ["fired"]
