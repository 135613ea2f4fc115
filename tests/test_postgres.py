"""The same log on PostgreSQL, on a real server that the tests start, stop and throw away.

What a log on SQLite answers to the same questions is the oracle, and psycopg alone the independent reader. Without a server
program these tests are skipped, unless LAB_REQUIRE_POSTGRES is set.
"""

import os
import pwd
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pandas as pd
import polars as pl
import psycopg
import pytest
import sqlalchemy as sql

from labsupport.detection import Box, Detection
from labsupport.log import (
    LogUnavailable,
    NotWritten,
    PredictionLog,
    UnknownPrediction,
    UnknownSchema,
    forgetting,
    retention,
    rows,
    tables,
    writer,
)
from labsupport.rollout.ramp_figures import Watch
from test_tables import FIRST, SECOND

PASSWORD = "s3cret"
NOON = datetime(2025, 6, 1, 12, 0, 0, 123457, tzinfo=UTC)
CAT, DOG = Detection("cat", 0.9, Box(10, 20, 110, 120)), Detection("dog", 1 / 3, Box(-3, 0, 640, 480))
numbers = count()


class Server:
    """A throwaway cluster in a folder of its own, on a free port of this machine; root runs it as somebody else."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.programs, self.folder, self.port = programs, folder, free_port()
        self.user = {}
        if os.geteuid() == 0:  # the server refuses root
            account = pwd.getpwnam("postgres" if any(one.pw_name == "postgres" for one in pwd.getpwall()) else "nobody")
            self.user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
            os.chown(folder, account.pw_uid, account.pw_gid)
        (folder / "password").write_text(PASSWORD)
        (folder / "password").chmod(0o644)
        options = ["--username=lab", "--auth=scram-sha-256", "--encoding=UTF8", "--no-sync", "--no-instructions"]
        self._run("initdb", *options, f"--pwfile={folder / 'password'}", "-D", folder / "data")

    def start(self) -> None:
        settings = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off -c max_connections=30"
        self._run("pg_ctl", "-D", self.folder / "data", "-w", "-l", self.folder / "log", "-o", settings, "start")

    def stop(self) -> None:
        """At once, as if the machine had gone."""
        self._run("pg_ctl", "-D", self.folder / "data", "-w", "-m", "immediate", "stop")

    def url(self, database: str, password: str = PASSWORD) -> str:
        return f"postgresql+psycopg://lab:{password}@127.0.0.1:{self.port}/{database}"

    def ask(self, database: str, question: str) -> list[tuple]:
        """What psycopg alone gets, committed."""
        login = {"host": "127.0.0.1", "port": self.port, "user": "lab", "password": PASSWORD}
        with psycopg.connect(dbname=database, autocommit=True, **login) as connection:
            cursor = connection.execute(question)
            return cursor.fetchall() if cursor.description else []

    def _run(self, program: str, *arguments) -> None:
        command = [self.programs / program, *arguments]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "cwd": self.folder}
        subprocess.run(command, check=True, timeout=60, **quiet, **self.user)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def server_programs() -> Path | None:
    """Debian keeps them off the path, one folder for each version."""
    folders = [*sorted(Path("/usr/lib/postgresql").glob("*/bin")), *map(Path, filter(None, [shutil.which("pg_ctl")]))]
    folders = [folder if folder.is_dir() else folder.resolve().parent for folder in folders]
    return next((folder for folder in reversed(folders) if (folder / "initdb").exists()), None)


@pytest.fixture(scope="module")
def server():
    if (programs := server_programs()) is None:
        if os.environ.get("LAB_REQUIRE_POSTGRES"):
            pytest.fail("LAB_REQUIRE_POSTGRES is set, and there is no initdb: apt-get install postgresql")
        pytest.skip("needs a PostgreSQL server: apt-get install postgresql")
    with tempfile.TemporaryDirectory(
        prefix="lab-pg-", ignore_cleanup_errors=True
    ) as folder:  # a short path: a socket's
        running = Server(programs, Path(folder))
        running.start()
        yield running
        running.stop()


@pytest.fixture
def database(server):
    """An empty database of its own for each test."""
    name = f"lab{next(numbers)}"
    server.ask("postgres", f"CREATE DATABASE {name}")
    return name


@pytest.fixture
def url(server, database):
    return server.url(database)


@pytest.fixture
def log(url):
    with PredictionLog(url) as opened:
        yield opened


def record(log: PredictionLog, id: str, **columns) -> None:
    log.record(**{"id": id, "version": "v1", "latency": 0.01, "detections": [CAT], "features": None, **columns})


def until(true, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def fill(log: PredictionLog) -> None:
    """Something of everything."""
    features = {"brightness": 1 / 3, "contrast": float("nan"), "noise": 0.02, "width": 640, "height": 480}
    record(log, "a", detections=[CAT, DOG], key="Zoë ☃ 100%", bytes=5_000_000_000, features=features, time=NOON)
    record(log, "a", detections=[DOG], version="v2", time=NOON + timedelta(milliseconds=1), shadow=True)
    record(log, "b", detections=[], latency=float("nan"), time=NOON + timedelta(microseconds=1))
    record(log, "c", detections=None, version=None, latency=None, error="E", status=None, time=NOON + timedelta(days=1))
    record(log, "c", detections=None, version="v2", error="ValueError", time=NOON + timedelta(days=1), shadow=True)
    for number in range(1234):
        record(log, f"n{number}", features={"width": number, "height": number % 2}, time=2e9 + number // 2)
    log.flush(20)
    log.feedback("a", correct=True)
    log.feedback("a", labels=["cat", "cow"])
    log.feedback("n7", retry=True)


@pytest.fixture
def both(log, tmp_path):
    """The same rows in both kinds of database."""
    with PredictionLog(f"sqlite:///{tmp_path}/predictions.db") as file:
        for one in (log, file):
            fill(one)
        yield log, file


def test_it_answers_as_a_log_in_a_file_does(both):
    here, file = both
    names = (*tables.COLUMNS, *tables.SAID)
    windows = [{}, {"since": NOON}, {"until": NOON}, {"since": NOON + timedelta(microseconds=1), "until": 2e9 + 100}]
    for window in [*windows, {"since": timedelta(days=1)}, {"shadow": True}]:
        assert here.columns(*names, **window) == file.columns(*names, **window)
        pd.testing.assert_frame_equal(here.frame(**window), file.frame(**window))
    assert len(here.frame()) == 1237 and here.dropped == 0
    pd.testing.assert_frame_equal(here.pairs(), file.pairs())
    assert len(here.pairs()) == 2


def test_a_ramp_has_the_same_figures_as_on_a_log_in_a_file(both):
    ramps = [Watch(log, "v1", "v2", NOON.timestamp()) for log in both]
    figures = [ramp.figures(NOON.timestamp()) for ramp in ramps]
    assert figures[0] == figures[1] and figures[0]["stable_requests"] > 1_000
    for log in both:
        record(log, "late", version="v2", detections=[], key="Zoë ☃ 100%")
        log.flush()
        log.feedback("late", correct=False)
        log.feedback("n8", correct=False)
    figures = [ramp.figures(NOON.timestamp()) for ramp in ramps]
    assert figures[0] == figures[1] and figures[0]["correction_rate"] == 1


def test_it_exports_as_a_log_in_a_file_does(both, tmp_path):
    for number, one in enumerate(both):
        assert one.export(tmp_path / f"{number}.parquet") == 1239
    here, file = (pl.read_parquet(tmp_path / f"{number}.parquet") for number in (0, 1))
    assert here.equals(file) and here.schema == file.schema


def test_the_tables_are_plain_and_can_be_read_by_anyone(log, server, database):
    record(log, "a", detections=[CAT, DOG], time=1.5)
    log.flush()
    (row,) = server.ask(database, "SELECT row, time, id, shadow, detections::json -> 1 ->> 'label' FROM predictions")
    assert row == (1, 1.5, "a", False, "dog")
    ((kinds,),) = server.ask(
        database,
        "SELECT array_agg(DISTINCT data_type::text) FROM information_schema.columns WHERE table_name='predictions'",
    )
    assert set(kinds) == {"bigint", "double precision", "character varying", "text", "boolean"}


def test_feedback_needs_a_prediction(log):
    with pytest.raises(UnknownPrediction, match="no prediction 'x' is in the log"):
        log.feedback("x", correct=True)


def test_no_password_is_shown(log, server, database):
    assert PASSWORD not in repr(log) + log.url
    with pytest.raises(LogUnavailable, match=r"lab:\*\*\*@127.0.0.1.*password authentication failed") as raised:
        PredictionLog(server.url(database, "s3cret2"))
    assert PASSWORD not in f"{raised.value} {raised.value.__cause__!r}"
    with pytest.raises(LogUnavailable, match="does not exist"):
        PredictionLog(server.url("nowhere"))


# several processes, and one that is killed

PROGRAM = """
import sys, time
from labsupport.detection import Box, Detection
from labsupport.rollout.ramp_figures import Watch
from labsupport.log import PredictionLog
print("ready", flush=True)
sys.stdin.readline()
log = PredictionLog(sys.argv[1])
for number in range(int(sys.argv[3])):
    now = time.time()
    found = [Detection("cat", 0.5, Box(number, number, number, number))] * (number % 4)
    log.record(id=f"{sys.argv[2]}-{number}", version="v", latency=number / 1000, detections=found, features=None)
    print(number, now, flush=True)
    if number % 20 == 0:
        time.sleep(0.002)
log.close()
assert not log.dropped
"""


def start(url: str, name: str, rows: int, out=subprocess.DEVNULL) -> subprocess.Popen:
    command = [sys.executable, "-W", "error", "-c", PROGRAM, url, name, str(rows)]
    return subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=out)


def test_processes_that_make_the_tables_and_write_at_once_lose_nothing(server, database, url):
    processes = [start(url, name, 1500, subprocess.PIPE) for name in "ab"]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=40)
        assert process.returncode == 0
    with PredictionLog(url) as log:
        found = log.columns("id", "latency", "n_detections")
    assert sorted(found["id"]) == sorted(f"{name}-{number}" for name in "ab" for number in range(1500))
    for id, latency, many in zip(*found.values(), strict=True):
        assert (latency, many) == (int(id[2:]) / 1000, int(id[2:]) % 4)


def test_a_killed_process_leaves_whole_rows_that_lack_its_last_moment_only(url, tmp_path):
    printed = tmp_path / "printed"
    with printed.open("w") as out:
        process = start(url, "a", 10**9, out)
        process.stdin.write("go\n")
        process.stdin.flush()
        until(lambda: printed.stat().st_size > 10)
        time.sleep(1.3 + random.Random(1).random())  # a moment that nothing in the program knows of
        process.kill()
        killed = time.time()
        process.communicate()
    lines = printed.read_text().splitlines()[1:-1]  # the last may be cut off
    recorded = {number: float(moment) for number, moment in map(str.split, lines)}
    with PredictionLog(url) as log:
        found = log.columns("id", "latency", "n_detections")
    assert found["id"] == [f"a-{number}" for number in range(len(found["id"]))]  # each once, none left out
    assert found["latency"] == [number / 1000 for number in range(len(found["id"]))]
    early = [number for number, moment in recorded.items() if moment < killed - 1]
    assert len(early) > 100
    assert len(found["id"]) > int(early[-1])


# a server that is away


def test_while_the_server_is_away_rows_wait_and_are_written_when_it_is_back(server, url, caplog):
    with PredictionLog(url) as log:
        for number in range(700):
            record(log, str(number))
        log.flush()
        server.stop()
        try:
            for number in range(700, 1500):
                record(log, str(number))
            with pytest.raises(NotWritten, match="800 rows still wait to be written to the log"):
                log.flush(0.5)
            with pytest.raises(LogUnavailable, match="cannot be read now"):
                log.columns("id")
            with pytest.raises(NotWritten, match="cannot be written now"):
                log.feedback("1", correct=True)
            with pytest.raises(NotWritten, match="cannot be written now"):
                log.prune(older_than=timedelta(0))
            with pytest.raises(LogUnavailable, match="refused"):
                PredictionLog(url)
        finally:
            server.start()
        log.flush(20)
        assert log.columns("id")["id"] == [str(number) for number in range(1500)]
        assert log.dropped == 0
    told = [
        entry.getMessage().removeprefix(log.url) for entry in caplog.records if entry.name == "labsupport.log.writer"
    ]
    assert [message.partition(":")[0] for message in told] == [
        " cannot be written, rows wait",
        " cannot be read",
        " is written again, 0 rows were dropped",
        " can be read again",
    ]
    assert "server" in told[0] and "refused" in told[1]
    assert PASSWORD not in caplog.text


def test_a_commit_whose_answer_is_lost_doubles_nothing(log):
    """The batch is committed, and then the connection breaks: the writer cannot know, and writes it again."""
    breaks = [True, True]

    def insert(connection, batch):
        rows.insert(connection, batch)
        if breaks:
            connection.connection.driver_connection.commit()
            breaks.pop()
            raise sql.exc.OperationalError("COMMIT", None, psycopg.OperationalError("server closed the connection"))

    log._writer._insert = insert
    for number in range(120):
        record(log, str(number))
    log.flush()
    assert not breaks
    assert log.columns("id")["id"] == [str(number) for number in range(120)]


@pytest.mark.parametrize(
    "poison",
    [
        {"detections": [Detection("cat", float("nan"), Box(0, 0, 1, 1))]},  # no JSON
        {"bytes": 2**70},  # no integer
        {"latency": "fast"},
    ],
)
def test_a_row_that_cannot_be_written_stops_no_other(log, poison, caplog):
    for number in range(45):
        record(log, str(number), **poison if number in (7, 29) else {})
    log.flush()
    assert log.columns("id")["id"] == [str(number) for number in range(45) if number not in (7, 29)]
    assert log.dropped == 2
    assert caplog.text.count("1 rows that cannot be written were dropped") == 1


# what was there before


def test_tables_of_an_older_version_are_brought_up_to_date_once_by_all_who_come_at_once(
    server, database, url, monkeypatch
):
    script = FIRST.format(shadow="shadow BOOLEAN,", no=",FALSE") + SECOND
    script = script.replace("FLOAT", "double precision").replace("'[\"dog\"]',0)", "'[\"dog\"]',FALSE)")
    script = script.replace("'a1',0,", "'a1',FALSE,").replace("200,1)", "200,TRUE)")
    server.ask(database, script.replace('"row" INTEGER NOT NULL', '"row" BIGSERIAL'))
    server.ask(database, "COMMENT ON TABLE predictions IS 'labsupport 2'; ALTER SEQUENCE predictions_row_seq RESTART 4")
    older, opened, threads, all_saw_it, saw = tables._older, [], [], threading.Barrier(4), threading.local()

    def older_at_once(connection):
        found = older(connection)
        if not hasattr(saw, "it"):
            saw.it = all_saw_it.wait(20)
        return found

    monkeypatch.setattr(tables, "_older", older_at_once)
    for _ in range(4):
        threads.append(threading.Thread(target=lambda: opened.append(PredictionLog(url))))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert len(opened) == 4
    with opened[0] as log:
        record(log, "new", features={"noise": 0.5})
        log.flush()
        assert log.columns("id", "noise", "labels")["id"] == ["a1", "a2", "new"]
        assert log.frame()["labels"][0] == ["dog"] and len(log.frame(shadow=True)) == 1


@pytest.mark.parametrize(
    ("script", "what"),
    [
        ("CREATE TABLE predictions (id int)", r"schema 0 \(tables: predictions\)"),
        ("CREATE TABLE feedback (id int)", r"schema 0 \(tables: feedback\)"),
        ("CREATE TABLE predictions (id int); COMMENT ON TABLE predictions IS 'labsupport 6'", "schema 6"),
    ],
)
def test_tables_of_a_newer_lab_or_of_another_program_are_refused(server, database, url, script, what):
    server.ask(database, script)
    with pytest.raises(UnknownSchema, match=what):
        PredictionLog(url)
    ((left,),) = server.ask(database, "SELECT count(*) FROM information_schema.columns WHERE table_schema = 'public'")
    assert left == 1


def test_a_forgotten_person_is_gone_and_stays_away(log, url, server, database):
    for number in range(30):
        record(log, f"a{number}", person="p-ann", key="client key of ann")
        record(log, f"a{number}", version="v2", shadow=True, person="p-ann" if number % 2 else None)
        record(log, f"b{number}", person="p-bob")
    log.flush()
    for id in ("a1", "b1"):
        log.feedback(id, labels=[f"said of {id}"])
    assert (log.person_of("a1"), log.person_of("b1")) == ("p-ann", "p-bob")
    assert log.forget("p-ann") == [f"a{number}" for number in range(30)]
    record(log, "late", person="p-ann")
    record(log, "a2", person="p-ann", shadow=True)
    record(log, "b30", person="p-bob")
    log.flush()
    assert server.ask(database, "SELECT DISTINCT person, shadow FROM predictions") == [("p-bob", False)]
    assert server.ask(database, "SELECT count(*) FROM predictions") == [(31,)]
    assert server.ask(database, "SELECT id FROM feedback") == [("b1",)]
    assert log.forget("p-ann") == [] and log.dropped == 0


def test_who_is_being_forgotten_waits_for_a_writer_and_the_next_writer_for_that(
    log, url, server, database, monkeypatch
):
    """A writer looks who was forgotten, then `forget` begins, then the writer writes: `forget` finds the row."""
    remaining, at_once, done = forgetting.remaining, threading.Event(), []
    with PredictionLog(url) as other:

        def forget() -> None:
            at_once.set()
            done.append(other.forget("p-ann"))

        def look(connection, batch):
            found = remaining(connection, batch)
            thread.start()
            at_once.wait(20)
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            until(lambda: server.ask(database, waiting) == [(1,)])
            monkeypatch.setattr(forgetting, "remaining", remaining)
            return found

        thread = threading.Thread(target=forget)
        monkeypatch.setattr(forgetting, "remaining", look)
        record(log, "a1", person="p-ann")
        log.flush()
        thread.join(20)
    assert done == [["a1"]] and server.ask(database, "SELECT count(*) FROM predictions") == [(0,)]


def test_who_may_only_read_can_read(server, database, log):
    record(log, "a")
    log.flush()
    server.ask(database, f"CREATE ROLE reader{database} LOGIN PASSWORD '{PASSWORD}'")
    server.ask(database, f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader{database}")
    with PredictionLog(server.url(database).replace("lab:", f"reader{database}:")) as reader:
        assert reader.columns("id") == {"id": ["a"]}


# what is not kept


def test_the_oldest_go_by_age_and_by_size(log, server, database, monkeypatch):
    monkeypatch.setattr(retention, "ROWS", {"postgresql": 300})
    start = time.time() - 100_000
    for number in range(3000):
        record(log, str(number), time=start + 10 * number)
    log.flush(20)
    for number in (5, 2000, 2999):
        log.feedback(str(number), correct=True)
    assert log.prune(older_than=timedelta(seconds=time.time() - start - 9995)) == 1000
    used = "SELECT sum(pg_column_size(predictions)) FROM predictions"
    ((before,),) = server.ask(database, used)
    assert log.prune(max_bytes=before // 4) == pytest.approx(1500, abs=20)
    ids = [int(id) for id in log.columns("id")["id"]]
    assert ids == list(range(ids[0], 3000))
    ((after,),) = server.ask(database, used)
    assert after <= before // 4
    assert server.ask(database, "SELECT id FROM feedback ORDER BY row") == [("2999",)]
    assert log.prune(max_bytes=before // 4) == 0


def test_decisions_and_remarks_count_and_go_too(log, server, database):
    start = time.time() - 100_000
    decided = {"station": "s", "verdict": "accept", "decided_by": "device", "latency": 0.1, "reason": "x" * 1000}
    for first in range(0, 1000, 100):
        log.receive(
            [{**decided, "id": f"{n:032}", "product": str(n), "time": start + n} for n in range(first, first + 100)]
        )
    for number in range(1000, 1500):
        record(log, str(number), time=start + number)
    log.flush(20)
    log.prune(max_bytes=700_000)
    assert len(log.columns("id")["id"]) == 500  # the decisions are older
    left = log.decisions()["product"].astype(int).tolist()
    assert left == list(range(left[0], 1000))
    ((used,),) = server.ask(
        database,
        "SELECT (SELECT sum(pg_column_size(predictions)) FROM predictions) + sum(pg_column_size(decisions)) FROM decisions",
    )
    assert 650_000 < used <= 700_000
    assert log.prune(older_than=timedelta(seconds=time.time() - start - 1249.5)) == 250
    assert log.decisions().empty
    log.prune(max_bytes=0)
    assert [
        server.ask(database, f"SELECT count(*) FROM {table}") for table in ("predictions", "decisions", "feedback")
    ] == [[(0,)]] * 3


BULK = """
INSERT INTO predictions (time, id, version, latency, detections, n_detections, status, shadow)
SELECT 1.7e9 + i, md5(i::text), 'v', 0.01, '[]', 0, 200, false FROM generate_series(1, {rows}) AS i
"""


def test_a_look_at_a_large_table_reads_a_sample_of_it(log, server, database, monkeypatch):
    server.ask(database, BULK.format(rows=60_000))
    monkeypatch.setattr(retention, "SAMPLE", 100)
    asked = []
    sql.event.listen(log._engine, "before_cursor_execute", lambda *about: asked.append(about[2]))
    with log._engine.connect() as connection:
        used, many = retention.size(connection)
    ((exact, count_, pages),) = server.ask(
        database,
        "SELECT sum(pg_column_size(predictions)), count(*), pg_relation_size('predictions') / 8192 FROM predictions",
    )
    assert used == pytest.approx(exact, rel=0.4) and many == pytest.approx(
        count_, rel=0.4
    )  # 100 pages: 10 % off as a rule
    sums = [statement for statement in asked if "sum(" in statement]
    assert len(sums) == len(retention.AGED)
    for statement in sums:
        plan = " ".join(row[0] for row in server.ask(database, f"EXPLAIN (ANALYZE, BUFFERS) {statement}"))
        assert "Sample Scan" in plan and "Seq Scan" not in plan
        blocks = sum(map(int, re.findall(r"shared (?:hit|read)=(\d+)", plan.partition("Planning")[0])))
        assert blocks < pages / 2
    assert retention.Retention(log._engine, timedelta(days=100_000), 10**12).all() == 0
    assert len(log.columns("id", since=1.7e9, until=1.7e9 + 10)["id"]) == 9


def test_one_process_tends_for_all_until_it_ends(log, url, server, database):
    engines = [tables.open_database(url) for _ in range(3)]
    asked = [[] for _ in engines]
    for engine, statements in zip(engines, asked, strict=True):
        sql.event.listen(engine, "before_cursor_execute", lambda *about, to=statements: to.append(about[2]))
    first, second, third = (retention.Retention(engine, timedelta(days=1), 10**9) for engine in engines)
    for number in range(10):
        record(log, str(number), time=1.7e9)
    log.flush()
    assert first.step() is True and log.columns("id")["id"] == []
    for number in range(10):
        record(log, str(number), time=1.7e9)
    log.flush()
    for statements in asked:
        statements.clear()
    assert second.step() is third.step() is False and len(log.columns("id")["id"]) == 10
    assert [len(statements) for statements in asked] == [0, 1, 1]  # each only asked whether it is its turn
    assert first.step() is True and first.step() is False  # it stays the first one's
    first.close()
    record(log, "old", time=1.7e9)
    log.flush()
    assert second.step() is True and log.columns("id")["id"] == []
    second.close()
    third.close()


def test_rows_are_removed_while_somebody_holds_the_lock_of_migrations(log, server, database):
    record(log, "old", time=1.7e9)
    log.flush()
    login = {"host": "127.0.0.1", "port": server.port, "user": "lab", "password": PASSWORD, "dbname": database}
    with psycopg.connect(**login) as other:
        other.execute(f"SELECT pg_advisory_xact_lock({tables.MIGRATING})")
        assert log.prune(older_than=timedelta(days=1)) == 1


def test_a_log_closes_the_connection_that_it_tends_with(server, database, url, monkeypatch):
    monkeypatch.setattr(writer, "TEND", 0.0)
    with PredictionLog(url, keep=timedelta(days=1)) as log:
        record(log, "old", time=1.7e9)
        record(log, "new")
        log.flush()
        until(lambda: log.columns("id")["id"] == ["new"])
    until(lambda: server.ask(database, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)])


def test_remarks_are_found_by_an_index_before_the_server_has_counted_anything(log, server, database):
    """Until ANALYZE has run, PostgreSQL would look for the last remark from the end of the table on, for each row."""
    for table in ("predictions", "feedback"):
        server.ask(database, f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
    server.ask(database, BULK.format(rows=20_000))
    server.ask(
        database, "INSERT INTO feedback (time, id, correct) SELECT time, id, true FROM predictions WHERE row % 4 = 0"
    )
    query = rows.query(("id", "correct"), 1.7e9, 1.7e9 + 100)
    with log._engine.connect() as connection:
        text = str(query.compile(connection, compile_kwargs={"literal_binds": True}))
    plan = "\n".join(row[0] for row in server.ask(database, f"EXPLAIN {text}"))
    assert "using ix_feedback_id on feedback feedback_1" in plan


def test_two_who_prune_at_once_remove_no_more_than_one_would(log, url, server, database, monkeypatch):
    """The second one asks how much is too much as soon as it is let, and removes once the first is done."""
    for number in range(1000):
        record(log, str(number), time=number + 1)
    log.flush(20)
    too_many, asked = retention._too_many, threading.Barrier(2)

    def ask(connection, max_bytes):
        found = too_many(connection, max_bytes)
        with suppress(threading.BrokenBarrierError):
            asked.wait(0.5)
        if threading.current_thread() is second:
            first.join(1)
        return found

    monkeypatch.setattr(retention, "_too_many", ask)
    pruned = []
    first, second = (
        threading.Thread(target=lambda: pruned.append(PredictionLog(url).prune(max_bytes=100_000))) for _ in range(2)
    )
    for thread in (first, second):
        thread.start()
    for thread in (first, second):
        thread.join()
    left = log.columns("id")["id"]
    assert sum(pruned) == 1000 - len(left)
    ((used, each),) = server.ask(
        database, "SELECT sum(size), max(size) FROM (SELECT pg_column_size(p) AS size FROM predictions p) s"
    )
    assert 100_000 - each < used <= 100_000  # not one row too many
    assert left == [str(number) for number in range(1000 - len(left), 1000)]
