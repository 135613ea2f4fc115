"""Databases of older versions, of newer ones, of other programs, and addresses that lead to none.

The older files are made by the SQL that the older versions themselves left behind (sqlite3's iterdump of their files).
"""

import re
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
import sqlalchemy
from typer.testing import CliRunner

from labsupport import models, paths
from labsupport.detection import Box, Detection
from labsupport.log import LogUnavailable, PredictionLog, UnknownSchema, tables

CAT = Detection("cat", 0.9, Box(10, 20, 110, 120))
FIRST = """
CREATE TABLE predictions (
    "row" INTEGER NOT NULL, time FLOAT, id VARCHAR, "key" VARCHAR, version VARCHAR, latency FLOAT, brightness FLOAT,
    contrast FLOAT, sharpness FLOAT, saturation FLOAT, width FLOAT, height FLOAT, bytes INTEGER, detections TEXT,
    n_detections INTEGER, mean_confidence FLOAT, max_confidence FLOAT, min_confidence FLOAT, error VARCHAR, status INTEGER,
    {shadow} PRIMARY KEY ("row")
);
INSERT INTO "predictions" VALUES(1,1750000000.25,'a1','k','v1',0.012,0.4,0.2,100.5,0.3,640.0,480.0,12345,
    '[{{"label":"cat","confidence":0.9,"box":[10,20,110,120]}}]',1,0.9,0.9,0.9,NULL,200{no});
INSERT INTO "predictions" VALUES(2,1750000001.0,'a2',NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,
    NULL,NULL,'UnsupportedImage',415{no});
CREATE INDEX ix_predictions_time ON predictions (time);
CREATE INDEX ix_predictions_id ON predictions (id);
"""
SECOND = """
CREATE TABLE feedback (
    "row" INTEGER NOT NULL, time FLOAT, id VARCHAR, correct BOOLEAN, labels TEXT, retry BOOLEAN, PRIMARY KEY ("row")
);
INSERT INTO "feedback" VALUES(1,1750000009.0,'a1',0,'["dog"]',0);
INSERT INTO "predictions" VALUES(3,1750000000.5,'a1',NULL,'v2',0.03,NULL,NULL,NULL,NULL,NULL,NULL,NULL,'[]',0,NULL,NULL,
    NULL,NULL,200,1);
CREATE INDEX ix_feedback_id ON feedback (id);
"""
THIRD = """
ALTER TABLE predictions ADD COLUMN noise FLOAT;
CREATE TABLE decisions (
    id VARCHAR NOT NULL, time FLOAT, station VARCHAR, product VARCHAR, verdict VARCHAR, decided_by VARCHAR, version VARCHAR,
    latency FLOAT, reason VARCHAR, PRIMARY KEY (id)
);
INSERT INTO decisions VALUES('d1',1750000000.0,'s','p1','accept','device','v1',0.1,'');
CREATE INDEX ix_decisions_time ON decisions (time);
"""
FOURTH = """
CREATE INDEX ix_feedback_time ON feedback (time);
DROP INDEX ix_feedback_id;
CREATE INDEX ix_feedback_id ON feedback (id, "row");
ALTER TABLE predictions ADD COLUMN said BIGINT;
UPDATE predictions SET said = 1 WHERE id = 'a1';
"""
OLD = {
    1: FIRST.format(shadow="", no="") + "PRAGMA user_version=1;",
    2: FIRST.format(shadow="shadow BOOLEAN,", no=",0") + SECOND + "PRAGMA user_version=2;",
    3: FIRST.format(shadow="shadow BOOLEAN,", no=",0") + SECOND + THIRD + "PRAGMA user_version=3;",
    4: FIRST.format(shadow="shadow BOOLEAN,", no=",0") + SECOND + THIRD + FOURTH + "PRAGMA user_version=4;",
}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "predictions.db"


def make_old(file, version: int) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(OLD[version])


@pytest.mark.parametrize("version", OLD)
def test_a_file_of_an_older_version_is_read_and_goes_on(file, version):
    make_old(file, version)
    with PredictionLog(f"sqlite:///{file}") as log:
        log.record(
            id="new",
            version="v3",
            latency=0.1,
            detections=[],
            features={"noise": 0.02, "width": 3, "height": 2},
            person="p-1",
        )
        log.flush()
        log.feedback("a2", correct=True)
        frame = log.frame().set_index("id")
    assert [*frame.index] == ["a1", "a2", "new"]
    first = {"key": "k", "version": "v1", "latency": 0.012, "sharpness": 100.5, "aspect": 640 / 480, "bytes": 12345}
    assert frame.loc["a1", [*first]].to_dict() == first
    assert frame["detections"]["a1"] == [CAT] and frame["error"]["a2"] == "UnsupportedImage"
    assert frame["time"]["a1"].timestamp() == 1_750_000_000.25
    assert frame["noise"].isna().tolist() == frame["person"].isna().tolist() == [True, True, False]
    assert frame["person"]["new"] == "p-1"
    assert frame["labels"]["a1"] == ["dog"] if version > 1 else frame["labels"].isna().all()
    assert bool(frame["correct"]["a2"])
    assert len(log.frame(shadow=True)) == (version > 1)
    assert log.decisions()["product"].tolist() == (["p1"] if version > 2 else [])
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (tables.SCHEMA,)
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("version", OLD)
def test_a_file_that_was_brought_up_to_date_has_the_columns_and_indexes_of_a_new_one(file, tmp_path, version):
    make_old(file, version)
    new = tmp_path / "new.db"
    tables.open_database(f"sqlite:///{file}")
    tables.open_database(f"sqlite:///{new}")
    assert layout(file) == layout(new)


def layout(file) -> tuple[set, set]:
    """Each table's columns with their types, and what is indexed."""
    with closing(sqlite3.connect(file)) as connection:
        columns = {
            (table, name, kind)
            for table in tables.TABLES.tables
            for _, name, kind, *_ in connection.execute(f"PRAGMA table_info({table})")
        }
        names = connection.execute("SELECT name, tbl_name FROM sqlite_master WHERE type = 'index'").fetchall()
        indexes = {
            (name, table, *(column for _, _, column in connection.execute(f"PRAGMA index_info({name})")))
            for name, table in names
        }
    return columns, indexes


def test_processes_that_bring_files_up_to_date_at_once_do_it_once(tmp_path):
    files = {version: tmp_path / f"{version}.db" for version in (0, *OLD)}  # 0: nobody has made it yet
    for version in OLD:
        make_old(files[version], version)
    program = """
import sys
from labsupport.log import PredictionLog
for file in sys.argv[2:]:
    print("ready", flush=True)
    sys.stdin.readline()
    with PredictionLog(f"sqlite:///{file}") as log:
        log.record(id=sys.argv[1], version="v", latency=0.1, detections=[], features={"noise": 0.5})
    assert not log.dropped
"""
    names = ["p0", "p1", "p2"]
    commands = [[sys.executable, "-W", "error", "-c", program, name, *map(str, files.values())] for name in names]
    pipes = {"text": True, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    processes = [subprocess.Popen(command, **pipes) for command in commands]
    for _ in files:
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
    for process in processes:
        process.communicate(timeout=30)
        assert process.returncode == 0
    for version, file in files.items():
        found = PredictionLog(f"sqlite:///{file}").columns("id", "noise")
        assert sorted(found["id"]) == [*(["a1", "a2"] if version else []), *names]
        assert found["noise"].count(0.5) == 3


@pytest.mark.parametrize(
    ("script", "what"),
    [
        ("CREATE TABLE predictions (id); PRAGMA user_version=6", r"holds schema 6 \(tables: predictions\)"),
        ("PRAGMA user_version=-1", r"holds schema -1 \(tables: None\)"),
        *(
            (
                f"CREATE TABLE predictions (id INTEGER PRIMARY KEY, label TEXT); PRAGMA user_version={number}",
                rf"schema {number} \(tables: predictions\)",
            )
            for number in (1, 5)
        ),
        ("CREATE TABLE songs (id)", r"holds schema 0 \(tables: songs\)"),
        ("CREATE TABLE songs (id); PRAGMA user_version=1", r"holds schema 1 \(tables: songs\)"),
        ("CREATE TABLE songs (id); PRAGMA user_version=5", r"holds schema 5 \(tables: songs\)"),
    ],
)
def test_a_file_of_a_newer_lab_or_of_another_program_is_refused_and_left_alone(file, script, what):
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(script)
    before = file.read_bytes()
    with pytest.raises(UnknownSchema, match=what + ", this labsupport reads 5: update it, or name another database"):
        PredictionLog(f"sqlite:///{file}")
    assert file.read_bytes() == before


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://localhost/lab", "sqlite+other:///a.db"])
def test_a_url_that_names_no_database_of_ours_is_refused(url):
    with pytest.raises(ValueError, match=r"name a SQLite file, as in sqlite:///predictions\.db, or a PostgreSQL"):
        PredictionLog(url)


# passwords


SIGNS = [*"@:/?#[]%&=+;,\\ '\"", "@@", "%40", "é"]


@pytest.mark.parametrize(
    "url",
    [
        "mysql://lab:s3cret@localhost/lab",  # no database of ours
        "postgresql://lab:s3cret/more@localhost:5432/lab",  # what should be percent-encoded is taken for a port
        "postgresql://lab:s3cret@127.0.0.1:1/lab",  # nobody listens
        "postgresql+psycopg://127.0.0.1:1/lab?user=lab&password=s3cret",
        "postgresql+psycopg://lab:s3cret@127.0.0.1:1/lab?nonsense=1",
        "postgresql+psycopg://127.0.0.1:1/lab?user=lab&Password=s3cret",
        "postgresql://lab:s3cret\n@127.0.0.1:1/lab",
        "postgresql://lab:s3cret",  # the host was forgotten
        "postgresql://lab:s3cret@",
        "postgresql:/lab:s3cret@127.0.0.1:1/lab",
        "postgresql//lab:s3cret@127.0.0.1:1/lab",
        "postgres://lab:s3cret@127.0.0.1:1/lab",
        "sqlite+pysqlite://lab:s3cret@127.0.0.1:1/lab",
        "s3cret",
        # a password or a name with signs that mean something in a URL, not encoded, before and behind what is secret
        *(f"{kind}://lab:{sign}s3cret@127.0.0.1:1/lab" for kind in ("postgresql", "mysql") for sign in SIGNS),
        *(f"{kind}://lab:s3{sign}cret@127.0.0.1:1/lab" for kind in ("postgresql", "mysql") for sign in SIGNS),
        *(f"postgresql://l{sign}b:s3cret@127.0.0.1:1/lab" for sign in SIGNS),
    ],
)
def test_no_message_shows_a_password(url):
    with pytest.raises((ValueError, LogUnavailable)) as raised:
        PredictionLog(url)
    told = [str(raised.value), repr(raised.value), str(raised.value.__cause__), repr(raised.value.__cause__)]
    assert not re.search(r"s3.{0,3}cret|cret@", " ".join(told))
    assert raised.value.__context__ is raised.value.__cause__ or raised.value.__suppress_context__


@pytest.mark.parametrize("password", ["a@s3cret", "s3/cr?et#", "s3:cret", "100%", "é ☃", "'\"\\ \n"])
def test_an_encoded_password_is_the_one_that_is_sent_and_is_not_shown(password):
    """Checked at psycopg's own door: what it is given."""
    from urllib.parse import quote

    address = tables._parsed(f"postgresql://lab:{quote(password, safe='')}@db.example.org:5432/lab")
    given = tables._postgres(address, "db").dialect.create_connect_args(address)[1]
    assert (given["password"], given["host"], given["user"], given["dbname"]) == (
        password,
        "db.example.org",
        "lab",
        "lab",
    )
    assert tables.shown(address) == "postgresql://lab:***@db.example.org:5432/lab"


def test_a_password_with_an_at_sign_says_how_to_write_it():
    with pytest.raises(ValueError, match="special characters in the password percent-encoded"):
        PredictionLog("postgresql://lab:a@SECRET@host/lab")


@pytest.mark.parametrize("url", [None, 5, b"sqlite:///a.db", "", "predictions.db", "sqlite:", "sqlite:///", ["a"]])
def test_what_is_no_address_is_refused_in_words(url):
    with pytest.raises(ValueError, match=r"write sqlite:///file or|name a SQLite file"):
        PredictionLog(url)


def test_what_is_recorded_is_in_no_message_of_the_database(file):
    with PredictionLog(file) as log, pytest.raises(sqlalchemy.exc.StatementError) as raised, log._engine.begin() as one:
        one.execute(sqlalchemy.insert(tables.PREDICTIONS).values(key="somebody", time=object()))
    assert "somebody" not in str(raised.value)


def test_the_address_of_the_log_can_stay_off_the_command_line(monkeypatch):
    from labsupport import cli
    from labsupport.serving import running

    started = []
    monkeypatch.setattr(running, "run", lambda options, port, workers, files: started.append(options["log"]))
    monkeypatch.setattr(models, "ensure", lambda name: None)
    monkeypatch.setattr(models, "network", lambda name: None)
    for value, options in [("postgresql://db/a", []), ("postgresql://db/a", ["--log", "sqlite:///b.db"]), ("", [])]:
        monkeypatch.setenv("LAB_LOG", value)
        assert CliRunner().invoke(cli.app, ["serve", *options]).exit_code == 0
    assert started == ["postgresql://db/a", "sqlite:///b.db", f"sqlite:///{paths.root()}/predictions.db"]


def test_a_server_that_nobody_runs_is_named():
    with pytest.raises(LogUnavailable, match=r"lab:\*\*\*@127.0.0.1:1/lab: .*refused.*: is the server running"):
        PredictionLog("postgresql://lab:s3cret@127.0.0.1:1/lab")


def test_without_psycopg_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(LogUnavailable, match=r"postgresql://lab:\*\*\*@db/lab: psycopg is not installed: pip install"):
        PredictionLog("postgresql://lab:s3cret@db/lab")
