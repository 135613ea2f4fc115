"""Records in a log on SQLite and on PostgreSQL: each once, whoever hands them in at the same moment."""

import threading

import pytest
from pandas.testing import assert_frame_equal

from labsupport.predictions import PredictionLog
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
        assert log.feedback(f"{1:032x}", correct=False) is None  # a record's prediction is one like any other
    assert_frame_equal(logs[0].decisions(), logs[1].decisions())
    assert_frame_equal(logs[0].frame(), logs[1].frame())
    assert logs[0].frame()["correct"].tolist()[0] is False
    window = {"since": 1.75e9 + 1 / 7, "until": 1.75e9 + 3 / 7}
    assert logs[1].decisions(**window)["product"].tolist() == ["p1", "p2"]
