"""What writing predictions down costs those who answer: real answers while so many rows a second are recorded, and without.

python -m benchmarks.log [a database's url]
"""

import statistics
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, nullcontext
from itertools import count

import cv2
import numpy as np

from labsupport import images, paths
from labsupport.detection import Box, Detection, Detector
from labsupport.predictions import PredictionLog

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


def lines(url: str | None = None, rounds: int = 9, seconds: float = 3, rows: int = 100_000) -> list[str]:
    with tempfile.TemporaryDirectory() as folder, PredictionLog(url or f"sqlite:///{folder}/predictions.db") as log:
        rate, cost, worked = sustained(log, rows)
        kind = log.url.partition(":")[0]
        told = f"{kind}: {rate:,.0f} rows a second when nothing else is done; `record` takes {cost:.1f} us, and a row "
        told += f"{worked:.1f} us of CPU in all: {RATE:,} a second are {worked * RATE / 1e4:.0f} % of a core."
        return [told, "", *slowdown(log, rounds, seconds)]


if __name__ == "__main__":
    print("\n".join(lines(*sys.argv[1:2])))
