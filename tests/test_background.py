"""Threads that never end without a line in the log, and the one place that starts them."""

import re
import threading
import time
from pathlib import Path

import pytest

import labsupport
from labsupport import background

PACKAGE = Path(labsupport.__file__).parent


def test_one_place_starts_threads():
    starts = re.compile(r"threading\.(Thread|Timer)\(|from threading import.*\b(Thread|Timer)\b")
    files = [path for path in PACKAGE.rglob("*.py") if starts.search(path.read_text())]
    assert files == [PACKAGE / "background.py"]


@pytest.mark.parametrize(
    "error", [ValueError("odd"), SystemExit("odd"), KeyboardInterrupt("odd"), GeneratorExit("odd")]
)
def test_a_thread_that_ends_on_an_error_says_so(error, caplog):
    def work():
        raise error

    background.start(work, "example").join(10)
    (record,) = caplog.records
    assert record.levelname == "CRITICAL" and "'example'" in record.message and record.exc_info[1] is error


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt, MemoryError])
def test_what_is_repeated_survives_errors_and_logs_each_once(kind, caplog):
    outcomes = iter([kind("first"), kind("first"), kind("second"), None, kind("second"), True])

    def step():
        outcome = next(outcomes)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    thread = background.repeat(step, "example", threading.Event(), after_error=0)
    thread.join(10)
    assert not thread.is_alive() and next(outcomes, "all asked") == "all asked"
    levels = [record.levelname for record in caplog.records]
    assert levels == ["ERROR", "ERROR", "WARNING", "ERROR", "WARNING"]
    assert [word in caplog.text for word in ("first", "second", "works again")] == [True] * 3


def test_a_stop_ends_what_is_repeated_and_its_pauses():
    stop, called = threading.Event(), threading.Event()
    thread = background.repeat(called.set, "example", stop, every=60)
    assert called.wait(10)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


def test_after_waits_and_can_be_cancelled(caplog):
    called, started = threading.Event(), time.monotonic()
    background.after(0.05, called.set, "example")
    assert called.wait(10) and time.monotonic() - started >= 0.05
    cancel = background.after(0.05, lambda: caplog.records.append("called"), "cancelled")
    cancel()
    (thread,) = [one for one in threading.enumerate() if one.name == "cancelled"] or [threading.Thread()]
    if thread.ident:
        thread.join(10)
    assert "called" not in caplog.records
