"""What writing predictions down costs those who answer: real answers while so many rows a second are recorded, and without.

python -m benchmarks.log [a database's url]

And what a look at the log costs once it is old: python -c "from benchmarks.log import ages; print(*ages(), sep='\\n')"
"""

import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from itertools import count
from pathlib import Path

import cv2
import numpy as np

from labsupport import images, paths
from labsupport.detection import Box, Detection, Detector
from labsupport.log import PredictionLog, tables, to_json
from labsupport.monitoring import DEFAULT_RULES, MINUTES, Alarms, Live

RATE = 5_000  # rows in a second: what many small models, or many workers, would record
FOUND = [Detection("cat", 0.9, Box(10, 20, 110, 120)), Detection("person", 0.8123456, Box(300, 40, 360, 220))]
SEEN = images.features(np.random.default_rng(1).integers(0, 256, (120, 160, 3), np.uint8))
numbers = count()


def note(log: PredictionLog) -> None:
    id = f"{next(numbers):032x}"
    log.record(id=id, version="yolov3-tiny/openvino-f32", latency=0.01, detections=FOUND, features=SEEN, bytes=90_000)


def sustained(log: PredictionLog, rows: int) -> tuple[float, float, float]:
    """Rows written in a second when nobody does anything else; the microseconds of one `record`; those of CPU in all."""
    started, worked, spent = time.perf_counter(), time.process_time(), 0.0
    for _ in range(0, rows, 1_000):
        began = time.perf_counter()
        for _ in range(1_000):
            note(log)
        spent += time.perf_counter() - began
        log.flush(60)  # so that none has to make room
    worked = time.process_time() - worked
    return rows / (time.perf_counter() - started), 1e6 * spent / rows, 1e6 * worked / rows


@contextmanager
def recording(log: PredictionLog):
    """A thread that records `RATE` rows a second, ten at a time; raises if it cannot keep up."""
    stop, made = threading.Event(), 0
    began = time.perf_counter()

    def work() -> None:
        nonlocal made
        while not stop.wait(max(0, began + made / RATE - time.perf_counter())):
            for _ in range(10):
                note(log)
            made += 10

    thread = threading.Thread(target=work)
    thread.start()
    yield
    stop.set()
    thread.join()
    if made < 0.98 * RATE * (time.perf_counter() - began) or log.dropped:
        raise RuntimeError(f"only {made:,} rows were recorded, and {log.dropped:,} dropped")
    log.flush(60)


def answers(detector: Detector, picture: np.ndarray, seconds: float) -> np.ndarray:
    """How long each answer took, in milliseconds, of one client who asks again as soon as it has one."""
    took, end = [], time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        detector.detect(picture)
        images.features(picture)
        took.append(1e3 * (time.perf_counter() - began))
    return np.array(took)


def slowdown(log: PredictionLog, rounds: int, seconds: float) -> list[str]:
    """The table; with and without take turns, and a ratio is taken within a round."""
    cv2.setNumThreads(1)  # as in the server
    detector = Detector.load(precision="f32")
    picture = images.decode((paths.IMAGES / "fruits.jpg").read_bytes())
    answers(detector, picture, 1)
    pairs = []
    for turn in range(rounds):
        pair = {}
        for with_log in (False, True) if turn % 2 else (True, False):
            with recording(log) if with_log else nullcontext():
                pair[with_log] = answers(detector, picture, seconds)
        pairs.append((pair[False], pair[True]))
    figures = {"mean": np.mean, "median": np.median, "p95": lambda took: np.percentile(took, 95)}
    table = [f"| an answer | alone, ms | while {RATE:,} rows a second are recorded, ms | ratio |", "|---|---|---|---|"]
    for name, figure in figures.items():
        alone, beside = ([figure(pair[side]) for pair in pairs] for side in (0, 1))
        ratio = statistics.median(b / a for a, b in zip(alone, beside, strict=True))
        table.append(f"| {name} | {statistics.median(alone):.2f} | {statistics.median(beside):.2f} | {ratio:.3f} |")
    return table


def aged(file: Path, rows: int, every: float = 1.0, until: float | None = None) -> None:
    """Make a log in a SQLite file, far faster than by recording: a row each `every` seconds until `until`, by default now.

    One in ten is of a candidate in shadow, of one in ten a user said something, and one in a hundred a station decided.
    """
    tables.open_database(file).dispose()
    values = {"rows": rows, "every": every, "until": time.time() if until is None else until, "found": to_json(FOUND)}
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        for setting in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-200000"):
            connection.execute(f"PRAGMA {setting}")
        connection.execute("BEGIN")
        indexes = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql NOTNULL"
        ).fetchall()
        for name, _ in indexes:  # made at the end: sorting once is faster than finding a place for each row
            connection.execute(f"DROP INDEX {name}")
        for fill in FILL:
            connection.execute(fill, values)
        for _, make in indexes:
            connection.execute(make)
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode=WAL")


FILL = (
    """
    INSERT INTO predictions (time, id, key, version, latency, brightness, contrast, sharpness, saturation, noise, width,
        height, bytes, detections, n_detections, mean_confidence, max_confidence, min_confidence, status, shadow,
        said)
    WITH RECURSIVE numbers(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM numbers WHERE i + 1 < :rows)
    SELECT :until - (:rows - i) * :every, printf('%08x%024x', i * 2654435761 % 4294967296, i), 'user ' || i % 1000,
        'yolov3-tiny/openvino-f32', 0.01 + i % 97 / 1000.0, 0.3 + i % 100 / 500.0, 0.2, 100.0 + i % 10, 0.3, 0.02, 640, 480,
        90000, :found, 2, 0.86, 0.9, 0.81, 200, i % 10 = 8,
        CASE i % 10 WHEN 9 THEN (i + 1) / 10 END
    FROM numbers
    """,
    """
    INSERT INTO feedback (row, time, id, correct, retry)
    SELECT said, time + 5, id, row % 500 != 0, 0 FROM predictions WHERE said NOTNULL
    """,
    """
    INSERT INTO decisions (id, time, station, product, verdict, decided_by, version, latency, reason)
    SELECT id, time, 'station', key, 'accept', 'device', version, latency, ''
    FROM predictions WHERE row % 100 = 0
    """,
)


def ages(few: int = 100_000, many: int = 10_000_000, rounds: int = 9, folder: Path | None = None) -> list[str]:
    """The table of what a page of the dashboard and a look at the alarms cost on a young log and on an old one.

    Both hold the same last rows, one a second; young and old take turns, and a ratio is taken within a round.
    """
    now = time.time()
    with tempfile.TemporaryDirectory(dir=folder) as where:
        logs = {rows: PredictionLog(Path(where) / f"{rows}.db") for rows in (few, many)}
        for rows in logs:
            aged(Path(where) / f"{rows}.db", rows, until=now)
        table = [f"| a look at a log of | {few:,} rows, ms | {many:,} rows, ms | ratio |", "|---|---|---|---|"]
        looks = {f"dashboard, the last {minutes} minutes": partial(_page, minutes, now) for minutes in MINUTES}
        for name, look in {**looks, "alarms": partial(_alarms, now)}.items():
            pairs = []
            for turn in range(rounds + 1):
                took = {rows: _timed(look, logs[rows]) for rows in (sorted(logs) if turn % 2 else sorted(logs)[::-1])}
                pairs.append((took[few], took[many]))
            young, old = (
                statistics.median(pair[side] for pair in pairs[1:]) for side in (0, 1)
            )  # the first one warms up
            ratio = statistics.median(b / a for a, b in pairs[1:])
            table.append(f"| {name} | {young:.1f} | {old:.1f} | {ratio:.2f} |")
    return table


def _page(minutes: int, now: float, log: PredictionLog) -> None:
    Live(log, {}).look(minutes, now)


def _alarms(now: float, log: PredictionLog) -> None:
    Alarms(DEFAULT_RULES, log).evaluate(now)


def _timed(work, *arguments) -> float:
    """How long it takes, in milliseconds."""
    began = time.perf_counter()
    work(*arguments)
    return 1e3 * (time.perf_counter() - began)


def lines(url: str | None = None, rounds: int = 9, seconds: float = 3, rows: int = 100_000) -> list[str]:
    with tempfile.TemporaryDirectory() as folder, PredictionLog(url or f"sqlite:///{folder}/predictions.db") as log:
        rate, cost, worked = sustained(log, rows)
        kind = log.url.partition(":")[0]
        told = f"{kind}: {rate:,.0f} rows a second when nothing else is done; `record` takes {cost:.1f} us, and a row "
        told += f"{worked:.1f} us of CPU in all: {RATE:,} a second are {worked * RATE / 1e4:.0f} % of a core."
        return [told, "", *slowdown(log, rounds, seconds), "", *ages()]


if __name__ == "__main__":
    print("\n".join(lines(*sys.argv[1:2])))
