"""What is recorded is what is read, whoever writes, reads, locks, fills up or is killed meanwhile.

The independent reader is Python's own sqlite3 module.
"""

import functools
import inspect
import json
import random
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from functools import partial

import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet
import pytest

from labsupport import images
from labsupport.detection import Box, Detection
from labsupport.log import (
    LogUnavailable,
    NotWritten,
    PredictionLog,
    UnknownPrediction,
    parquet,
    prediction_log,
    tables,
    writer,
)
from labsupport.log.drift_window import window
from labsupport.monitoring import DEFAULT_RULES, Alarms, Live, dashboard, learned
from labsupport.monitoring.timeline import COLUMNS, timeline

CAT, DOG = Detection("cat", 0.9, Box(10, 20, 110, 120)), Detection("dog", 1 / 3, Box(-3, 0, 640, 480))
FEATURES = {name: 0.1 * number for number, name in enumerate(tables.FEATURES, 1)}
FEATURES["aspect"] = FEATURES["width"] / FEATURES["height"]
KEPT = [name for name in FEATURES if name != "aspect"]
NOON = datetime(2025, 6, 1, 12, 0, 0, 123457, tzinfo=UTC)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "predictions.db"


@pytest.fixture
def log(file):
    with PredictionLog(f"sqlite:///{file}") as opened:
        yield opened


def record(log: PredictionLog, id: str, **columns) -> None:
    log.record(**{"id": id, "version": "v1", "latency": 0.01, "detections": [CAT], "features": FEATURES, **columns})


def rows(file, columns: str = "id", **options) -> list:
    """What is in the file, one tuple for a row; of one column, its values."""
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, **options)) as connection:
        found = connection.execute(f"SELECT {columns} FROM predictions ORDER BY row").fetchall()
    return [row[0] for row in found] if "," not in columns else found


def until(true, seconds: float = 10) -> None:
    """Ask again and again, for so long at most."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def record_number(log, number: int, prefix: str = "") -> None:
    """A row of which every column can be told from the number: one that is not whole shows."""
    found = [Detection("cat", 0.5, Box(number, number, number, number))] * (number % 4)
    features = dict.fromkeys(tables.FEATURES, number / 7)
    log.record(id=f"{prefix}{number}", version="v1", latency=number / 1000, detections=found, features=features)


PRELUDE = """
import json, sqlite3, sys, time
from labsupport.detection import Box, Detection
from labsupport.log import PredictionLog, tables
""" + inspect.getsource(record_number)


def run(program: str, *arguments, **options) -> subprocess.Popen:
    """A Python program in a process of its own, its answers to be read from stdout."""
    command = [sys.executable, "-W", "error", "-c", PRELUDE + program, *map(str, arguments)]
    return subprocess.Popen(command, text=True, **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, **options})


def assert_whole(file) -> None:
    columns = "id, latency, detections, n_detections, status, " + ", ".join(KEPT)
    for id, latency, detections, count, status, *features in rows(file, columns):
        number = int(id.rpartition("-")[2])
        assert (latency, count, status) == (number / 1000, number % 4, 200)
        assert set(features) == {number / 7}
        assert [found["box"] for found in json.loads(detections)] == [[number] * 4] * count


# what is recorded is what is read


def test_a_frame_holds_what_was_recorded(log):
    recorded = [
        {"id": "a", "detections": [CAT, DOG], "key": "Zoë ☃", "bytes": 12_345, "status": 200, "time": NOON},
        {"id": "b", "detections": [], "version": "v2", "latency": 1 / 3, "time": NOON + timedelta(microseconds=1)},
        {
            "id": "c",
            "detections": None,
            "features": None,
            "version": None,
            "latency": None,
            "error": "UnsupportedImage",
            "status": 415,
            "time": NOON + timedelta(days=1),
        },
        {"id": "d", "status": None, "features": {"contrast": 0.25}, "time": NOON + timedelta(days=2)},
    ]
    for row in recorded:
        record(log, **row)
    log.flush()
    frame = log.frame()
    assert list(frame.columns) == [name for name in (*tables.COLUMNS, *tables.SAID) if name != "shadow"]
    defaults = {"version": "v1", "latency": 0.01, "detections": [CAT], "key": None, "bytes": None, "status": 200}
    for expected, (_, read) in zip(recorded, frame.iterrows(), strict=True):
        expected = {**defaults, "error": None, "features": FEATURES, **expected}
        expected |= dict.fromkeys(FEATURES) | (expected.pop("features") or {})
        for name, value in expected.items():
            assert read[name] == value if value is not None else read[[name]].isna().all(), (name, value)
    assert frame["n_detections"].tolist()[:2] == [2, 0]
    assert frame["mean_confidence"][0] == pytest.approx((0.9 + 1 / 3) / 2)
    assert (frame["max_confidence"][0], frame["min_confidence"][0]) == (0.9, 1 / 3)
    assert frame.loc[1:2, ["mean_confidence", "max_confidence", "min_confidence"]].isna().all(axis=None)
    assert frame[["n_detections", "detections"]].isna().to_numpy().tolist()[1:3] == [[False, False], [True, True]]


def test_the_file_is_plain_sqlite_that_anyone_can_read(log, file):
    record(log, "a", detections=[CAT, DOG], bytes=7, key="k", time=1.5)
    record(log, "b", detections=None, features=None)
    log.flush()
    first, second = rows(file, "time, id, key, version, latency, sharpness, bytes, n_detections, error, status")
    assert first == (1.5, "a", "k", "v1", 0.01, FEATURES["sharpness"], 7, 2, None, 200)
    assert second[5:8] == (None, None, None)
    found, nothing = rows(file, "detections")
    assert json.loads(found)[1] == {"label": "dog", "confidence": 1 / 3, "box": [-3, 0, 640, 480]}
    assert nothing is None
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA user_version").fetchone() == (tables.SCHEMA,)
    with log._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1  # NORMAL


def test_the_features_of_pictures_have_columns():
    assert tuple(images.features(np.zeros((4, 4, 3), np.uint8))) == tables.FEATURES


def test_numpy_scalars_are_written_as_plain_numbers(log, file):
    found = [Detection("cat", np.float32(0.5), Box(*np.int64([1, 2, 3, 4])))]
    features = {"width": np.float32(4), "brightness": np.float64(0.5)}
    record(log, "a", detections=found, features=features, latency=np.float32(0.25), bytes=np.int64(9))
    log.flush()
    assert rows(file, "latency, width, brightness, bytes, max_confidence") == [(0.25, 4.0, 0.5, 9, 0.5)]
    assert log.frame()["detections"][0] == found


def test_what_the_caller_does_to_its_list_and_dict_afterwards_does_not_matter(log):
    found, features = [CAT], dict(FEATURES)
    record(log, "a", detections=found, features=features)
    found.append(DOG)
    features["brightness"] = 99
    log.flush()
    assert log.frame()["detections"][0] == [CAT]
    assert log.frame()["brightness"][0] == FEATURES["brightness"]


def test_an_empty_frame_has_the_columns_and_dtypes_of_a_full_one(log):
    empty = log.frame()
    record(log, "a")
    log.flush()
    assert len(empty) == 0
    assert empty.dtypes.to_dict() == log.frame().dtypes.to_dict()
    assert str(empty["time"].dtype) == "datetime64[us, UTC]"
    assert {str(empty[name].dtype) for name in ("latency", "brightness", "mean_confidence")} == {"float64"}


def test_rows_come_by_time_and_those_of_one_time_as_recorded(log):
    for id, moment in [("c", 30), ("a", 10), ("b2", 20), ("b1", 20)]:
        record(log, id, time=moment)
    log.flush()
    assert log.frame()["id"].tolist() == ["a", "b2", "b1", "c"]


def test_since_is_included_and_until_is_not(log):
    seconds = NOON.timestamp()
    moments = [NOON + timedelta(microseconds=shift) for shift in (-1, 0, 1, 2)]
    for number, moment in enumerate(moments):
        record(log, str(number), time=moment)
    log.flush()

    def ids(**window):
        return "".join(log.frame(**window)["id"])

    assert ids() == "0123"
    assert ids(since=NOON) == ids(since=seconds) == ids(since=NOON.astimezone(timezone(timedelta(hours=9)))) == "123"
    assert ids(until=NOON) == ids(until=seconds) == "0"
    assert ids(since=NOON, until=moments[3]) == "12"
    assert ids(since=NOON, until=NOON) == ids(since=moments[3], until=NOON) == ids(until=0) == ""
    for number, moment in enumerate(log.frame()["time"]):  # a time that was read cuts exactly at its row
        assert ids(since=moment) == "0123"[number:]
        assert ids(until=moment) == "0123"[:number]


def test_a_time_that_the_clock_gave_cuts_exactly_too(log):
    for number in range(200):
        record(log, str(number))
    log.flush()
    times = log.frame()["time"]
    for moment in times[::20]:
        assert len(log.frame(since=moment)) == (times >= moment).sum()


def test_a_timedelta_counts_back_from_now(log):
    for id, ago in [("old", 301), ("new", 290)]:
        record(log, id, time=time.time() - ago)
    record(log, "now")
    log.flush()
    assert log.frame(since=timedelta(minutes=5))["id"].tolist() == ["new", "now"]
    assert abs(log.frame()["time"].iloc[-1] - datetime.now(UTC)) < timedelta(seconds=60)


TOKYO = timezone(timedelta(hours=9))
SECOND = NOON.timestamp()
ACCEPTED = [  # all of them name NOON, to the microsecond or the second before it
    NOON,
    NOON.astimezone(TOKYO),
    SECOND,
    np.float64(SECOND),
    NOON.isoformat(),
    "2025-06-01T12:00:00.123457Z",
    " 2025-06-01 21:00:00.123457+09:00 ",
    pd.Timestamp(NOON),
    pd.Timestamp(NOON).tz_convert("Asia/Tokyo"),
    np.datetime64("2025-06-01T12:00:00.123457"),
    np.datetime64("2025-06-01T12:00:00.123457000"),
    Fraction(SECOND),
]
REFUSED = [
    datetime(2025, 6, 1),
    "2025-06-01",
    "2025-06-01T12:00",
    date(2025, 6, 1),
    pd.Timestamp("2025-06-01"),
    pd.NaT,
    np.datetime64("NaT"),
    np.timedelta64("NaT"),
    np.timedelta64(1, "Y"),
    float("nan"),
    float("inf"),
    -float("inf"),
    1e300,
    10**400,
    1_750_000_000_000,
    True,
    np.True_,
    "yesterday",
    "",
    b"2025-06-01",
    "1750000000",
    (2025, 6, 1),
    [NOON],
    {"year": 2025},
    datetime(2025, 6, 1).time(),
    NOON.timetuple(),
    Decimal(1),
    1j,
    object(),
    pd.Series([1.0]),
    np.array([1.0]),
]


@pytest.mark.parametrize("moment", ACCEPTED, ids=repr)
def test_every_kind_of_moment_is_the_same_moment(log, moment):
    for number, shift in enumerate((-1, 0, 1)):
        record(log, str(number), time=NOON + timedelta(microseconds=shift))
    record(log, "given", time=moment)
    log.flush()
    assert log.columns("id", since=moment, until=NOON + timedelta(microseconds=1))["id"] == ["1", "given"]
    assert log.columns("id", until=moment)["id"] == ["0"]


@pytest.mark.parametrize("ago", [timedelta(minutes=5), pd.Timedelta("5min"), np.timedelta64(5, "m")], ids=repr)
def test_every_kind_of_duration_counts_back_from_now(log, ago):
    for id, seconds in [("old", 320), ("new", 280)]:
        record(log, id, time=time.time() - seconds)
    log.flush()
    assert log.columns("id", since=ago)["id"] == ["new"] and log.columns("id", until=ago)["id"] == ["old"]


def entrances(log, folder):
    """Every public call that takes a moment, with a log to read."""
    yield lambda moment: record(log, "a", time=moment)
    for read in (
        log.frame,
        log.decisions,
        log.pairs,
        partial(log.columns, "id"),
        partial(log.export, folder / "x.parquet"),
    ):
        yield lambda moment, read=read: read(since=moment)
        yield lambda moment, read=read: read(until=moment)
    yield lambda moment: window(log, since=moment)
    yield lambda moment: window(log, until=moment)
    yield lambda moment: dashboard(log, since=moment)
    yield lambda moment: dashboard(log, until=moment)
    yield lambda moment: Live(log, {}).look(15, until=moment)
    yield lambda moment: Alarms(DEFAULT_RULES, log).evaluate(now=moment)
    yield lambda moment: learned(DEFAULT_RULES[0], log, moment, SECOND)
    yield lambda moment: learned(DEFAULT_RULES[0], log, SECOND, moment)
    yield lambda moment: timeline(dict.fromkeys(COLUMNS, np.array([])), moment, 1)
    yield lambda moment: timeline(dict.fromkeys(COLUMNS, np.array([])), 0, moment)


@pytest.mark.parametrize("moment", REFUSED, ids=lambda moment: repr(moment)[:18])
def test_what_is_no_moment_is_refused_in_words_wherever_it_enters(log, tmp_path, moment):
    for call in entrances(log, tmp_path):
        with pytest.raises(
            ValueError, match=r"(?s)^(time|since|until|now)=.*: (give datetime|it has no time zone: write '20)"
        ):
            call(moment)
    assert log.frame().empty and not list(tmp_path.glob("*.parquet"))


def test_a_column_that_there_is_none_of_is_refused(log):
    with pytest.raises(ValueError, match="column='brigthness': give one of 'time', 'id'"):
        log.columns("brigthness")
    with pytest.raises(ValueError, match="no column is named: give some of time, id"):
        log.columns()


# texts: a length, and valid

BAD = ["half \ud800 a pair", "nul \0", "x" * 100_000, "\udcff"]


@pytest.mark.parametrize("bad", BAD, ids=["surrogate", "nul", "long", "escaped"])
@pytest.mark.parametrize("name", ["id", "key", "version", "error", "label"])
def test_an_answer_is_in_the_log_whatever_its_texts_hold(log, tmp_path, name, bad):
    columns = {"detections": [Detection(bad, 0.5, Box(0, 0, 1, 1))]} if name == "label" else {name: bad}
    record(log, **{"id": "a", **columns})
    log.flush()
    assert log.dropped == 0
    row = log.frame().iloc[0]
    text = row["detections"][0].label if name == "label" else row[name]
    assert len(text) <= 1_000 and text[:4] == bad[:4].replace("\udcff", "\ufffd") and text.encode()
    assert not set(text) & set("\0\ud800\udcff")
    assert log.export(tmp_path / "log.parquet") == 1
    log.feedback(bad if name == "id" else "a", correct=True)  # under the id that was given


@pytest.mark.parametrize(
    ("labels", "what"),
    [
        (["cat"] * 1_001, "labels=a list of length 1,001: give a list of at most 1,000 labels"),
        (["x" * 1_001], r"a label=.* \(1,001 characters\): give text of 0 to 1,000 characters"),
        (["x" * 20_000_000], r"a label=.* \(20,000,000 characters\)"),
        (["x" * 999] * 500, "labels: 499,500 characters in all: give at most 200,000"),
        (["half \ud800"], "without half a surrogate pair"),
        (["nul \0"], "without NUL"),
        ([5], "a label=5: give text"),
        ([None], "a label=None: give text"),
        ("cat", "labels='cat': give a list"),
        (5, "labels=5: give a list"),
    ],
)
def test_a_correction_that_is_too_much_or_no_text_is_refused_in_words(log, file, labels, what):
    record(log, "a")
    log.flush()
    before = file.stat().st_size
    with pytest.raises(ValueError, match=what):
        log.feedback("a", labels=labels)
    assert log.frame()["labels"].isna().all() and file.stat().st_size == before


@pytest.mark.parametrize(("said", "what"), [({"correct": "yes"}, "correct='yes'"), ({"retry": 1}, "retry=1")])
def test_a_remark_is_yes_or_no(log, said, what):
    record(log, "a")
    with pytest.raises(ValueError, match=what):
        log.feedback("a", **said)


def test_the_longest_remark_is_kept_and_exported(log, tmp_path):
    record(log, "a")
    log.feedback("a", labels=["é" * 200] * 1_000)
    log.feedback("a", correct=np.False_)
    log.feedback("a", labels=("cat", np.str_("dog")))
    assert log.frame()["labels"][0] == ["cat", "dog"]
    assert log.export(tmp_path / "log.parquet") == 1


def test_a_log_that_already_holds_bad_texts_is_exported_all_the_same(log, file, tmp_path):
    record(log, "a")
    log.feedback("a", labels=["cat"])
    with closing(sqlite3.connect(file)) as connection, connection:
        found = '[{"label":"half \\ud800","confidence":0.5,"box":[0,0,1,1]}]'
        connection.execute("UPDATE predictions SET detections = ?", [found])
        labels = json.dumps(["\ud800", "\0", "x" * 2_000])
        connection.execute("UPDATE feedback SET labels = ?", [labels])
    assert log.export(tmp_path / "log.parquet") == 1
    (row,) = pl.read_parquet(tmp_path / "log.parquet").to_dicts()
    assert row["labels"] == ["\ufffd", "\ufffd", "x" * 2_000] and row["detections"][0]["label"] == "half \ufffd"


def test_a_feature_that_has_no_column_is_refused(log):
    with pytest.raises(ValueError, match="no column for brigthness: the features are brightness, contrast"):
        record(log, "a", features={"brigthness": 0.5})


# when it is written


def test_a_row_is_written_soon_though_nobody_asks(log, file):
    record(log, "a")
    until(lambda: rows(file) == ["a"], seconds=3)
    record(log, "b")  # and again, after the writer has slept
    until(lambda: rows(file) == ["a", "b"], seconds=3)


def test_a_log_that_only_reads_starts_no_thread_and_keeps_no_file_open(file):
    before = threading.active_count()
    log = PredictionLog(f"sqlite:///{file}")
    assert log.frame().empty
    log.flush()
    assert threading.active_count() == before
    assert sorted(path.name for path in file.parent.iterdir()) == [file.name]  # no -wal, no -shm: nobody is connected
    log.close()


def test_closing_writes_what_waits_and_may_be_done_twice(file):
    log = PredictionLog(f"sqlite:///{file}")
    before = threading.active_count()
    record(log, "a")
    assert threading.active_count() == before + 1
    log.close()
    log.close()
    assert threading.active_count() == before
    assert rows(file) == ["a"]
    record(log, "b")  # a request that was still under way
    log.close()
    assert rows(file) == ["a", "b"]


@pytest.mark.parametrize("ending", ["", "raise SystemExit(3)", "1 / 0"])
def test_the_end_of_the_program_writes_what_waits(file, ending):
    program = run(
        f"log = PredictionLog('sqlite:///{file}')\nrecord_number(log, 1)\n{ending}", stderr=subprocess.DEVNULL
    )
    program.communicate(timeout=20)
    assert rows(file) == ["1"]


def test_many_threads_record_each_row_once(log, file):
    def work(thread: int) -> None:
        for number in range(500):
            record(log, f"{thread}-{number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.flush()
    assert log.dropped == 0
    assert sorted(rows(file)) == sorted(f"{thread}-{number}" for thread in range(8) for number in range(500))


def test_what_a_call_costs(log, file, capsys):
    costs = []
    for _ in range(8):
        started = time.perf_counter()
        for _ in range(400):  # fewer than a batch: the caller's cost alone
            record(log, "a")
        costs.append((time.perf_counter() - started) / 400)
        log.flush()
    with capsys.disabled():
        print(f"\nrecord: {1e6 * min(costs):.1f} us a call at best, {1e6 * max(costs):.1f} at worst")
    assert len(rows(file)) == 3200


# several processes


def test_a_reader_beside_the_writer_sees_only_whole_rows_and_is_never_locked_out(log, file):
    reader = """
connection = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)  # 0: a lock is an error at once
seen = reads = 0
print("ready", flush=True)
while seen < 3000:
    rows = connection.execute("SELECT id, latency, detections, n_detections, height FROM predictions").fetchall()
    assert len(rows) >= seen
    seen, reads = len(rows), reads + 1
    for id, latency, detections, count, height in rows:
        assert latency == int(id) / 1000 and len(json.loads(detections)) == count and height == int(id) / 7
print(reads)
"""
    program = run(reader, file)
    assert program.stdout.readline() == "ready\n"
    for number in range(3000):
        record_number(log, number)
        if number % 10 == 0:
            time.sleep(0.005)  # some batches, not one
    out, _ = program.communicate(timeout=20)
    assert program.returncode == 0
    assert int(out) > 3  # it did look while rows came in
    assert_whole(file)


def test_processes_that_open_a_new_file_and_write_at_once_lose_nothing(file):
    program = """
print("ready", flush=True)
sys.stdin.readline()
with PredictionLog(f"sqlite:///{sys.argv[1]}") as log:
    for number in range(1500):
        record_number(log, number, sys.argv[2] + "-")
        if number % 100 == 0:
            time.sleep(0.01)
    log.flush(20)
    print(log.dropped)
"""
    names = ["a", "b", "c"]
    programs = [run(program, file, name) for name in names]
    for process in programs:
        assert process.stdout.readline() == "ready\n"
    for process in programs:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=20)[0] for process in programs]
    assert outputs == ["0\n"] * len(names)
    assert sorted(rows(file)) == sorted(f"{name}-{number}" for name in names for number in range(1500))
    assert_whole(file)


def test_a_log_reads_what_another_process_writes(file):
    program = run(
        "with PredictionLog(f'sqlite:///{sys.argv[1]}') as log:\n"
        "    record_number(log, 1); log.flush(); print('written', flush=True); sys.stdin.readline()",
        file,
    )
    assert program.stdout.readline() == "written\n"
    assert PredictionLog(f"sqlite:///{file}").frame()["id"].tolist() == ["1"]
    program.communicate("\n", timeout=20)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_killed_process_leaves_a_sound_file_that_lacks_its_last_moment_only(file, tmp_path, seed):
    program = """
log = PredictionLog(f"sqlite:///{sys.argv[1]}")
for number in range(10**9):
    now = time.time()
    record_number(log, number)
    print(number, now, flush=True)
    if number % 20 == 0:
        time.sleep(0.002)
"""
    printed = tmp_path / "printed"
    with printed.open("w") as out:
        process = run(program, file, stdout=out)
        until(lambda: printed.stat().st_size, seconds=20)
        time.sleep(1.3 + random.Random(seed).random())  # a moment that nothing in the program knows of
        process.kill()
        killed = time.time()
        process.communicate()
    lines = printed.read_text().splitlines()[:-1]  # the last may be cut off
    recorded = {number: float(moment) for number, moment in map(str.split, lines)}
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    written = rows(file)
    assert written == [str(number) for number in range(len(written))]  # each once, in order, none left out
    early = [number for number, moment in recorded.items() if moment < killed - 1]
    assert len(early) > 100
    assert set(early) <= set(written)
    assert_whole(file)
    with PredictionLog(f"sqlite:///{file}") as log:  # and work goes on
        assert len(log.frame()) == len(written)
        record(log, "next")
    assert rows(file)[-1] == "next"


def test_two_processes_write_while_a_notebook_reads_and_nothing_is_lost_or_doubled(log, file):
    program = """
with PredictionLog(f"sqlite:///{sys.argv[1]}") as log:
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(3000):
        record_number(log, number, sys.argv[2] + "-")
        if number % 50 == 0:
            time.sleep(0.01)
    log.flush(20)
    print(log.dropped)
"""
    names = ["a", "b"]
    programs = [run(program, file, name) for name in names]
    for process in programs:
        assert process.stdout.readline() == "ready\n"
    for process in programs:
        process.stdin.write("go\n")
        process.stdin.flush()
    sizes = [0]
    while any(process.poll() is None for process in programs):
        found = log.columns("id", "latency", "n_detections")
        assert len(set(found["id"])) == len(found["id"]) >= sizes[-1]
        for id, latency, count in zip(*found.values(), strict=True):
            number = int(id.rpartition("-")[2])
            assert (latency, count) == (number / 1000, number % 4)
        sizes.append(len(found["id"]))
    assert [process.communicate(timeout=20)[0] for process in programs] == ["0\n"] * len(names)
    assert len(set(sizes)) > 3  # it did look while rows came in
    assert sorted(log.columns("id")["id"]) == sorted(f"{name}-{number}" for name in names for number in range(3000))


# a disk that does not take it


class Locked:
    """Another program that holds the file's write lock."""

    def __init__(self, file) -> None:
        self.connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)

    def __enter__(self):
        self.connection.execute("BEGIN IMMEDIATE")
        return self

    def __exit__(self, *error) -> None:
        self.connection.execute("ROLLBACK")
        self.connection.close()


@pytest.fixture
def small_log(file, monkeypatch):
    """A log that holds little, and soon has had enough of waiting for a lock."""
    monkeypatch.setattr(writer, "QUEUE", 50)
    monkeypatch.setattr(writer, "BATCH", 20)
    monkeypatch.setattr(tables, "BUSY", 0.05)
    with PredictionLog(f"sqlite:///{file}") as opened:
        yield opened


def messages(caplog) -> list[str]:
    return [entry.getMessage() for entry in caplog.records if entry.name == writer.__name__]


def test_while_another_program_locks_the_file_rows_wait(small_log, file, caplog):
    with Locked(file):
        for number in range(40):
            record(small_log, str(number))
        with pytest.raises(NotWritten, match=r"40 rows still wait to be written to the log after 0.5 s"):
            small_log.flush(0.5)
        assert small_log.frame().empty  # reading goes on
    small_log.flush()
    assert rows(file) == [str(number) for number in range(40)]
    assert small_log.dropped == 0
    assert len(messages(caplog)) == 2  # not with every row, not with every attempt
    assert "cannot be written, rows wait: database is locked" in messages(caplog)[0]
    assert "is written again, 0 rows were dropped" in messages(caplog)[1]


def test_when_too_many_wait_the_oldest_make_room_and_are_counted(small_log, file, caplog):
    with Locked(file):
        for number in range(30):
            record(small_log, str(number))
        until(lambda: messages(caplog))
        for number in range(30, 200):
            record(small_log, str(number))
        assert small_log.dropped == 150
        until(lambda: any("rows are dropped" in message for message in messages(caplog)))
    small_log.flush()
    written = [int(id) for id in rows(file)]
    assert len(written) == 50
    assert written == sorted(set(written))
    assert written[-30:] == list(range(170, 200))  # all but those that were in a transaction are the newest
    assert small_log.dropped == 150
    assert [message.partition("predictions.db ")[2].partition(":")[0] for message in messages(caplog)] == [
        "cannot be written, rows wait",
        "cannot be written for too long",
        "is written again, 150 rows were dropped",
    ]


def test_rows_in_a_transaction_are_not_the_ones_that_make_room(small_log, file, monkeypatch):
    monkeypatch.setattr(tables, "BUSY", 20)  # SQLite itself waits, and then goes through
    with PredictionLog(f"sqlite:///{file}") as log:
        with Locked(file):
            for number in range(20):
                record(log, str(number))
            until(lambda: log._writer._writing == 20)
            for number in range(20, 80):
                record(log, str(number))
        log.flush()
        assert [int(id) for id in rows(file)] == [*range(20), *range(50, 80)]
        assert log.dropped == 30


def test_a_log_that_cannot_write_closes_all_the_same(small_log, file, caplog, monkeypatch):
    monkeypatch.setattr(writer.Writer, "flush", functools.partialmethod(writer.Writer.flush, timeout=0.3))
    with Locked(file):
        for number in range(10):
            record(small_log, str(number))
        small_log.close()
        assert small_log.dropped == 10
    assert rows(file) == []
    assert "is closed while it cannot be written: 10 rows were dropped" in messages(caplog)[-1]


@pytest.mark.parametrize(
    "poison",
    [
        {"detections": [Detection("cat", float("nan"), Box(0, 0, 1, 1))]},  # no JSON
        {"detections": ["cat"]},
        {"bytes": 2**70},  # no SQLite integer
        {"latency": "fast"},
    ],
)
def test_a_row_that_cannot_be_written_stops_no_other(small_log, file, caplog, poison):
    with Locked(file):  # so that they come in batches
        for number in range(45):
            record(small_log, str(number), **poison if number in (7, 29) else {})
    small_log.flush()
    assert rows(file) == [str(number) for number in range(45) if number not in (7, 29)]
    assert small_log.dropped == 2
    assert sum("1 rows that cannot be written were dropped" in message for message in messages(caplog)) == 1
    small_log.close()
    assert messages(caplog)[-1].endswith("1 rows that cannot be written were dropped: as before")


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs a disk of its own to fill up: {getattr(error, 'stderr', error)}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk) -> None:
    with (disk / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            return


def test_on_a_full_disk_answers_go_on_and_what_was_kept_arrives_later(small_disk, monkeypatch, caplog):
    monkeypatch.setattr(writer, "QUEUE", 1000)
    file = small_disk / "predictions.db"
    with PredictionLog(f"sqlite:///{file}") as log:
        for number in range(100):
            record(log, str(number))
        log.flush()
        fill(small_disk)
        slowest = 0.0
        for number in range(100, 1600):
            started = time.perf_counter()
            record(log, str(number))
            slowest = max(slowest, time.perf_counter() - started)
        with pytest.raises(NotWritten):
            log.flush(0.5)
        assert log.dropped >= 400  # of 1500, 1000 are kept; what little space was left may have taken a batch
        assert slowest < 0.5  # seconds; the disk never took it
        (small_disk / "filler").unlink()
        log.flush()
        written = [int(id) for id in rows(file)]
        assert written == sorted(set(written))
        assert written[:100] == list(range(100))
        assert written[-500:] == list(range(1100, 1600))
        assert len(written) + log.dropped == 1600
    assert "database or disk is full" in messages(caplog)[0]
    assert len(messages(caplog)) == 3  # full, dropped, written again
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# files that cannot be opened, or are not ours


def test_a_folder_that_does_not_exist_is_named_and_not_made(tmp_path):
    with pytest.raises(LogUnavailable, match=r"there is no folder .*missing: make it"):
        PredictionLog(f"sqlite:///{tmp_path}/missing/predictions.db")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is a folder that even root cannot write")
def test_a_folder_that_cannot_be_written_is_named():
    with pytest.raises(LogUnavailable, match=r"/proc/predictions.db: unable to open .*: is its folder writable"):
        PredictionLog("sqlite:////proc/predictions.db")


def test_a_file_that_is_no_database_is_named_and_left_alone(file):
    file.write_text("certainly not a database\n" * 100)
    with pytest.raises(LogUnavailable, match=r"predictions.db: file is not a database"):
        PredictionLog(f"sqlite:///{file}")
    assert file.read_text() == "certainly not a database\n" * 100


# what it costs to import


def test_importing_it_loads_neither_pandas_nor_the_server():
    program = run("print(*sys.modules)")
    loaded = set(program.communicate(timeout=20)[0].split())
    assert "labsupport.log" in loaded
    assert not loaded & {
        "pandas",
        "pyarrow",
        "psycopg",
        "fastapi",
        "starlette",
        "uvicorn",
        "labsupport.serving",
        "openvino",
        "IPython",
    }


# what candidates in shadow say, and what users say


def detections(*labels):
    return [Detection(label, 0.9, Box(100 * place, 0, 100 * place + 50, 50)) for place, label in enumerate(labels)]


def test_what_a_candidate_says_in_shadow_is_no_answer_and_stands_beside_it(log):
    said = {"a": ("cat", "dog"), "b": ("cat", "cow"), "c": ("cat",), "d": None}
    for id, labels in said.items():
        log.record(id=id, version="v1", latency=0.1, detections=detections("cat", "dog"), features=None)
        found, error = (None, "ValueError") if labels is None else (detections(*labels), None)
        log.record(id=id, version="v2", latency=0.3, detections=found, features=None, error=error, shadow=True)
    log.record(id="e", version="v1", latency=0.1, detections=[], features=None)  # not shown to the candidate
    log.flush()
    assert set(log.frame()["version"]) == {"v1"}
    assert set(log.frame(shadow=True)["version"]) == {"v2"}
    pairs = log.pairs().set_index("id")
    assert [*pairs.index] == list("abcd")
    assert set(pairs["candidate"]) == {"v2"} and set(pairs["candidate_latency"]) == {0.3}
    counts = pairs[["matched", "relabelled", "missed", "extra"]]
    assert counts.loc["a":"c"].to_numpy().tolist() == [[2, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0]]
    assert pairs["agreement"]["a":"c"].tolist() == [1, 0.5, 0.5]
    assert counts.loc["d"].isna().all() and pairs["candidate_error"]["d"] == "ValueError"


def test_without_a_candidate_there_are_no_pairs(log):
    log.record(id="a", version="v1", latency=0.1, detections=[], features=None)
    log.flush()
    assert len(log.pairs()) == 0
    assert "agreement" in log.pairs().columns


def test_of_what_a_user_says_the_last_counts(log):
    for id in "abcd":
        log.record(id=id, version="v", latency=0.1, detections=detections("cat"), features=None)
    log.feedback("a", correct=True)  # at once: the row may still wait to be written
    log.feedback("b", correct=True)
    log.feedback("b", labels=["dog", "dog"])
    log.feedback("c", retry=True)
    frame = log.frame().set_index("id")
    assert [None if value is pd.NA else bool(value) for value in frame["correct"]] == [True, False, None, None]
    assert frame["labels"]["b"] == ["dog", "dog"] and frame["labels"].isna()["a"]
    assert [bool(value) for value in frame["retry"].fillna(False)] == [False, False, True, False]


def test_a_remark_counts_for_a_candidates_answer_too_even_if_that_comes_later(log):
    log.record(id="a", version="v1", latency=0.1, detections=[], features=None)
    log.record(id="a", version="v2", latency=0.1, detections=[], features=None, shadow=True)
    log.feedback("a", labels=["cat"])
    log.record(id="a", version="v3", latency=0.1, detections=[], features=None, shadow=True)
    log.flush()
    assert log.columns("version", "labels", shadow=True) == {"version": ["v2", "v3"], "labels": ['["cat"]'] * 2}
    assert log.columns("version", "labels") == {"version": ["v1"], "labels": ['["cat"]']}


def test_a_remark_reaches_a_prediction_that_another_process_has_not_written_yet(log, file, monkeypatch):
    monkeypatch.setattr(prediction_log, "DELAY", 5.0, raising=False)  # so that a slow machine has time
    with PredictionLog(f"sqlite:///{file}") as other:
        for number, ask in enumerate([other.person_of, lambda id: other.feedback(id, correct=True)]):
            log.record(id=f"{number}", version="v", latency=0.1, detections=[], features=None)
            assert not ask(f"{number}")
    assert [*log.columns("correct")["correct"]] == [None, True]


def test_what_is_said_of_no_prediction_or_says_nothing_is_refused(log):
    log.record(id="a", version="v", latency=0.1, detections=[], features=None)
    with pytest.raises(UnknownPrediction, match="X-Prediction-Id"):
        log.feedback("b", correct=True)
    with pytest.raises(ValueError, match="say something"):
        log.feedback("a")
    assert log.frame()["correct"].isna().all()


def test_columns_are_those_of_the_frame_without_its_cost(log):
    for number in range(5):
        log.record(id=str(number), version="v", latency=number / 10, detections=[], features=None, time=number + 1)
    log.flush()
    assert log.columns("id", "latency", since=2, until=4) == {"id": ["1", "2"], "latency": [0.1, 0.2]}
    assert log.columns("id", since=100) == {"id": []}


# Parquet files


def record_all_kinds(log: PredictionLog) -> None:
    """Rows of every kind: empty, failed, in shadow, with remarks, with NumPy's numbers in boxes."""
    boxed = Detection("Zoë ☃", np.float32(0.5), Box(*np.int64([1, 2, 3, 4])))
    record(log, "a", detections=[CAT, DOG], key="k", bytes=12_345, time=NOON)
    record(log, "a", detections=[boxed], version="v2", features=None, time=NOON, shadow=True)
    record(log, "b", detections=[], latency=1 / 3, time=NOON + timedelta(microseconds=1))
    record(log, "c", detections=None, features=None, version=None, latency=None, error="E", status=415, time=2e9)
    for number in range(25):
        record(
            log, f"n{number}", detections=[boxed] * (number % 3), time=NOON + timedelta(seconds=1.000007 * (number + 1))
        )
    log.flush()
    log.feedback("a", labels=["cat", "cow"])
    log.feedback("b", correct=True)
    log.feedback("n3", retry=True)


def found_in(detections) -> list[Detection]:
    """Detections from a list of dictionaries, as every reader of Parquet gives them."""
    return [Detection(one["label"], one["confidence"], Box(**one["box"])) for one in detections]


def same(frame: pd.DataFrame, read: pd.DataFrame) -> None:
    """A frame of the log and one of a file have the same values; for this one alone what is not there has many names."""
    assert len(frame) == len(read)
    for name in frame.columns:
        for expected, value in zip(frame[name], read[name], strict=True):
            if expected is None or expected is pd.NA or (np.isscalar(expected) and pd.isna(expected)):
                assert value is None or pd.isna(value), name
            elif name == "detections":
                assert found_in(value) == expected
            else:
                assert list(value) == expected if name == "labels" else value == expected, name


def test_an_exported_file_reads_as_the_frame_with_pyarrow_pandas_and_polars(log, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROWS", 10)  # so that there are some chunks
    record_all_kinds(log)
    path = tmp_path / "log.parquet"
    assert log.export(path) == 29
    table = pyarrow.parquet.read_table(path)
    assert table.column_names == [*tables.COLUMNS, *tables.SAID]
    assert pyarrow.parquet.ParquetFile(path).num_row_groups == 3
    frames = {
        "pyarrow": pd.DataFrame(table.to_pylist()),
        "pandas": pd.read_parquet(path),
        "polars": pd.DataFrame(pl.read_parquet(path).to_dicts()),
    }
    for name, read in frames.items():
        for shadow in (False, True):
            chosen = read[read["shadow"].astype(bool) == shadow].reset_index(drop=True)
            same(log.frame(shadow=shadow), chosen)
            assert len(chosen) == (1 if shadow else 28), name


def test_an_exported_file_keeps_the_types(log, tmp_path):
    record_all_kinds(log)
    log.export(tmp_path / "log.parquet")
    read = pl.read_parquet(tmp_path / "log.parquet")
    box = pl.Struct(dict.fromkeys(Box._fields, pl.Int64))
    kinds = {"time": pl.Datetime("us", "UTC"), "id": pl.String, "latency": pl.Float64, "status": pl.Int64}
    kinds |= {"shadow": pl.Boolean, "correct": pl.Boolean, "labels": pl.List(pl.String)}
    kinds["detections"] = pl.List(pl.Struct({"label": pl.String, "confidence": pl.Float64, "box": box}))
    assert {name: read.schema[name] for name in kinds} == kinds
    assert str(pd.read_parquet(tmp_path / "log.parquet")["time"].dtype) == "datetime64[us, UTC]"
    assert read["detections"][0].struct.field("label").to_list() == ["cat", "dog"]


def test_a_window_is_exported_and_an_empty_one_has_all_columns(log, tmp_path):
    record_all_kinds(log)
    path = tmp_path / "new folder" / "log.parquet"
    assert log.export(path, since=NOON, until=NOON + timedelta(microseconds=1)) == 2
    assert pl.read_parquet(path)["shadow"].to_list() == [False, True]
    full = pl.read_parquet_schema(path)
    assert log.export(path, until=0) == 0  # over the file that is there
    assert pl.read_parquet(path).is_empty() and pl.read_parquet_schema(path) == full
    assert [file.name for file in path.parent.iterdir()] == ["log.parquet"]


def test_an_export_that_fails_leaves_what_was_there(log, tmp_path, monkeypatch):
    record_all_kinds(log)
    path = tmp_path / "log.parquet"
    log.export(path)
    before = path.read_bytes()
    monkeypatch.setattr(parquet, "ROWS", 10)
    struct = parquet._struct
    monkeypatch.setattr(parquet, "_struct", lambda found: 1 / 0 if found["label"] == "dog" else struct(found))
    record(log, "z", detections=[DOG], time=3e9)
    log.flush()
    with pytest.raises(ZeroDivisionError):
        log.export(path)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir() if "predictions" not in file.name) == ["log.parquet"]


def test_an_export_reads_a_chunk_at_a_time(log, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROWS", 7)
    record_all_kinds(log)
    seen = []
    write = parquet.write
    monkeypatch.setattr(
        parquet,
        "write",
        lambda path, kinds, chunks: write(path, kinds, (seen.append(len(some)) or some for some in chunks)),
    )
    log.export(tmp_path / "log.parquet")
    assert seen == [7, 7, 7, 7, 1]


def test_a_remark_that_contradicts_itself_is_refused(log):
    record(log, "a")
    log.flush()
    with pytest.raises(ValueError, match=r"^correct=True, labels"):
        log.feedback("a", correct=True, labels=["cat"])
    assert log.frame()["correct"].isna().all()


def test_a_remark_hears_of_the_earlier_ones_also_of_one_that_comes_at_the_same_moment(log):
    for number in range(20):
        record(log, f"{number}")
    log.flush()
    for number in range(20):
        together, heard = threading.Barrier(2), []

        def say(id=f"{number}", together=together, heard=heard):
            together.wait()
            heard.append(log.feedback(id, correct=False))

        threads = [threading.Thread(target=say) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(map(len, heard)) == [0, 1]
        assert log.feedback(f"{number}", labels=["cat"]) == [{"correct": False, "labels": None, "retry": False}]
        assert len(log.feedback(f"{number}", labels=["dog"])) == 2  # however many there are


def test_rows_for_which_no_thread_was_free_are_written_at_the_end(file, monkeypatch):
    log = PredictionLog(f"sqlite:///{file}")
    with monkeypatch.context() as busy:
        busy.setattr(writer.background, "repeat", lambda *_, **__: raising(RuntimeError("can't start new thread")))
        record(log, "a")
    log.close()
    assert rows(file) == ["a"]


def raising(error: Exception):
    raise error


def test_rows_that_hang_in_the_database_at_the_end_are_told(file, monkeypatch, caplog):
    log, free = PredictionLog(f"sqlite:///{file}"), threading.Event()
    monkeypatch.setattr(tables, "BUSY", 0.05)
    monkeypatch.setattr(log._writer, "flush", lambda: raising(NotWritten("not in time")))
    monkeypatch.setattr(log._writer, "_insert", lambda *_: free.wait(30))
    record(log, "a")
    log.close()
    free.set()
    assert "is closed, and 1 rows are not written" in caplog.text
