"""Records in a log on SQLite and on PostgreSQL: each once, whoever hands them in at the same moment."""

import contextlib
import sqlite3
import threading
from datetime import UTC, datetime

import numpy as np
import pytest
from pandas.testing import assert_frame_equal

from labsupport.log import NotWritten, PredictionLog, forgetting, rows, station_records
from labsupport.serving.schemas import DetectionIn, FeedbackIn, RecordIn
from test_postgres import database, server, url  # noqa: F401

CAT = {"label": "cat", "confidence": 0.9, "box": {"left": 1, "top": 2, "right": 3, "bottom": 4}}
SEEN = {"version": "v1", "latency": 0.02, "detections": [CAT], "features": {"brightness": 0.5, "aspect": 2.0}}


def record(number: int) -> dict:
    decided = {"verdict": "accept", "decided_by": "device", "version": "v1", "latency": 0.1, "reason": "ü"}
    told = {"id": f"{number:032x}", "station": "s", "product": f"p{number}", "time": 1.75e9 + number / 7}
    return {**told, **decided, "prediction": SEEN if number % 3 else None}


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request, tmp_path):
    return f"sqlite:///{tmp_path}/log.db" if request.param == "sqlite" else request.getfixturevalue("url")


def test_many_that_hand_in_the_same_at_once_leave_one_of_each(address):
    """Each with a connection of its own, as the workers of a server and several machines have."""
    logs, new, go = [PredictionLog(address) for _ in range(6)], [], threading.Barrier(6)

    def hand_in(log: PredictionLog) -> None:
        go.wait()
        for first in range(0, 60, 20):
            new.append(log.receive([record(number) for number in range(first, first + 25)]))

    threads = [threading.Thread(target=hand_in, args=[log]) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(new) == 65
    assert logs[0].decisions()["product"].tolist() == [f"p{number}" for number in range(65)]
    assert logs[0].frame()["key"].tolist() == [f"p{number}" for number in range(65) if number % 3]


def test_both_kinds_of_database_say_the_same(url, tmp_path):  # noqa: F811
    logs = [PredictionLog(f"sqlite:///{tmp_path}/log.db"), PredictionLog(url)]
    for log in logs:
        assert not len(log.decisions())
        log.receive([record(number) for number in range(10)])
        assert log.feedback(f"{1:032x}", correct=False) == []  # a record's prediction is one like any other
    assert_frame_equal(logs[0].decisions(), logs[1].decisions())
    assert_frame_equal(logs[0].frame(), logs[1].frame())
    assert logs[0].frame()["correct"].tolist()[0] is False
    window = {"since": 1.75e9 + 1 / 7, "until": 1.75e9 + 3 / 7}
    assert logs[1].decisions(**window)["product"].tolist() == ["p1", "p2"]


TEXTS = ("x" * 1_001, "nul \0", "half \ud800", 5)
WRONG = {
    "time": ["2025-06-01", float("nan"), None, True],
    "latency": [-1, float("inf"), 10**400, "0.1", None, True],
    **dict.fromkeys(("station", "product", "reason", "version"), TEXTS),
    "id": ["", "x" * 1_001, None],
    "verdict": ["maybe", None, 1],
    "decided_by": ["", None],
    "prediction": [
        {**SEEN, "version": "x" * 1_001},
        {**SEEN, "latency": -1},
        *({**SEEN, "features": bad} for bad in ({"brigthness": 1}, {"brightness": float("nan")}, {"brightness": "1"})),
        {**SEEN, "detections": [{**CAT, "label": "half \ud800"}]},
        {**SEEN, "detections": [{**CAT, "confidence": 1.1}]},
        {**SEEN, "detections": [{**CAT, "box": {**CAT["box"], "left": 1_000_001}}]},
        {**SEEN, "detections": [CAT] * 10_001},
        *({**SEEN, "detections": [{**CAT, "box": bad}]} for bad in (None, [1, 2, 3, 4], {}, {**CAT["box"], "up": 1})),
        *({**SEEN, "detections": bad} for bad in (None, 5, [5], "cat")),
        *({**SEEN, "features": bad} for bad in (None, [1])),
        *({key: value for key, value in SEEN.items() if key != name} for name in ("features", "detections")),
        *(5, "cat", []),
    ],
    "predicton": [SEEN],
}
DEMANDED = ("id", "time", "station", "product", "verdict", "decided_by", "latency")


@pytest.mark.parametrize("name", WRONG)
def test_a_record_that_is_none_is_refused_in_words_and_none_of_its_batch_is_taken(tmp_path, name):
    log = PredictionLog(tmp_path / "log.db")
    wrong = [{**record(1), name: value} for value in WRONG[name]]
    if name in DEMANDED:
        wrong.append({key: value for key, value in record(1).items() if key != name})
    for bad in wrong:
        with pytest.raises(ValueError, match=r"(?s)=.*: (give|it has no time zone)"):
            log.receive([record(2), bad])
    for none in (5, None, "x"):
        with pytest.raises(ValueError, match=r"record=.*: give a dictionary"):
            log.receive([record(2), none])
    assert log.decisions().empty and log.frame().empty


def test_records_are_not_taken_where_another_programs_file_has_taken_the_place_of_the_log(tmp_path):
    path = tmp_path / "log.db"
    with PredictionLog(path) as log:
        for file in tmp_path.glob("log.db*"):
            file.unlink()
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("CREATE TABLE mine (text TEXT)")
        with pytest.raises(NotWritten, match="cannot be written now: nothing was noted"):
            log.receive([record(1)])


@pytest.mark.parametrize("call", ["receive", "feedback", "forget"])
def test_nothing_is_confirmed_that_was_written_to_a_file_that_another_one_has_replaced(call, tmp_path, monkeypatch):
    path, id = tmp_path / "log.db", f"{0:032x}"
    calls = {
        "receive": (station_records, "take", lambda log: log.receive([record(1)])),
        "feedback": (rows, "note", lambda log: log.feedback(id, correct=True)),
        "forget": (forgetting, "_digest", lambda log: log.forget("p-1")),
    }
    module, name, use = calls[call]
    work = getattr(module, name)

    def replaced(*arguments):
        result = work(*arguments)
        for file in tmp_path.glob("log.db*"):
            file.unlink()
        PredictionLog(path).close()
        return result

    with PredictionLog(path) as log:
        log.receive([record(0) | {"prediction": SEEN}])
        with monkeypatch.context() as patched, pytest.raises(NotWritten, match="nothing was noted, try again"):
            patched.setattr(module, name, replaced)
            use(log)
        if call == "receive":
            assert (log.receive([record(1)]), len(log.decisions())) == (1, 1)


def test_numbers_and_moments_of_every_kind_are_kept_as_numbers(tmp_path):
    log = PredictionLog(tmp_path / "log.db")
    given = {"time": np.int64(1_750_000_000), "latency": np.float32(0.5), "version": None}
    seen = {**SEEN, "latency": np.float32(0.25), "features": {"brightness": np.float64(0.5)}}
    assert log.receive([{**record(1), **given, "prediction": seen}]) == 1
    assert log.receive([{**record(2), "time": datetime(2025, 6, 1, tzinfo=UTC), "prediction": None}]) == 1
    assert log.decisions()[["latency"]].to_numpy().tolist() == [[0.1], [0.5]]
    assert log.frame()[["latency", "brightness"]].to_numpy().tolist() == [[0.25, 0.5]]


def test_what_the_servers_schema_lets_in_the_log_takes(tmp_path):
    """Otherwise a station or a user would get a 500 for what the document says is right."""
    log, longest = PredictionLog(tmp_path / "log.db"), {}
    for name, field in RecordIn.model_json_schema()["properties"].items():
        if sizes := [one["maxLength"] for one in (field, *field.get("anyOf", ())) if "maxLength" in one]:
            longest[name] = "é" * max(sizes)
    empty = {"station": "", "product": "", "reason": "", "version": ""}
    label = "x" * DetectionIn.model_json_schema()["properties"]["label"]["maxLength"]
    seen = {**SEEN, "detections": [{**CAT, "label": label}]}
    for number, texts in enumerate((longest, empty)):
        entered = RecordIn(**{**record(number), **texts, "time": 0, "latency": 0, "prediction": seen})
        assert log.receive([entered.model_dump()]) == 1
    labels = FeedbackIn.model_json_schema()["properties"]["labels"]["anyOf"][0]
    log.feedback(f"{0:032x}", labels=["x" * labels["items"].get("maxLength", 200)] * labels["maxItems"])
