"""What a candidate in shadow costs those who get their answers from the stable version: their p95, side by side."""

import statistics
import tempfile
import threading
import time

import cv2
import numpy as np

from benchmarks import load
from labsupport.detection import Detector
from labsupport.monitoring import PredictionLog
from labsupport.rollout import Router
from labsupport.serving import create_app, serve

CLIENTS = 2


class Candidate:
    """A candidate that does something to each picture before it finds nothing."""

    def __init__(self, version: str, work) -> None:
        self.version, self.work = version, work

    def detect(self, image, confidence=0.5) -> list:
        self.work()
        return []


def lines(rounds: int, seconds: float) -> list[str]:
    """The table; cases take turns, and a ratio is taken within a round."""
    cv2.setNumThreads(1)  # as in the server
    stable = Detector.load()
    cases = _cases(per_picture(stable))
    p95: dict[str, list[float]] = {name: [] for name in cases}
    with tempfile.TemporaryDirectory() as folder, PredictionLog(f"sqlite:///{folder}/predictions.db") as log:
        for _ in range(rounds):
            for name, candidate in cases.items():
                p95[name].append(measure(stable, candidate, log, seconds))
    table = [
        "",
        f"A candidate in shadow sees every picture of {CLIENTS} clients; what the clients get is the stable version's:",
        "",
    ]
    table += ["| candidate in shadow | p95 ms | against none |", "|---|---|---|"]
    for name, measured in p95.items():
        ratio = statistics.median(value / base for value, base in zip(measured, p95["none"], strict=True))
        table.append(f"| {name} | {statistics.median(measured):.1f} | {ratio:.3f} |")
    return table


def measure(stable: Detector, candidate: Candidate | None, log: PredictionLog, seconds: float) -> float:
    router = Router(stable, log=log)
    if candidate:
        router.shadow(candidate)
    with serve(create_app(router, log=log), port=0) as server:
        result = load.run(server.port, CLIENTS, seconds)
    if result.wrong or result.failed or result.refused:
        raise RuntimeError(f"a stable answer was changed: {result}")
    return result.percentile(95)


def per_picture(detector: Detector) -> float:
    """Seconds that the stable version takes for a picture."""
    picture, started = np.zeros((576, 768, 3), np.uint8), time.perf_counter()
    for _ in range(20):
        detector.detect(picture)
    return (time.perf_counter() - started) / 20


def _cases(usual: float) -> dict[str, Candidate | None]:
    def fail() -> None:
        raise ValueError("it is broken")

    return {
        "none": None,
        "raises": Candidate("raises", fail),
        "hangs": Candidate("hangs", threading.Event().wait),
        "10 times slower": Candidate("slow", lambda: time.sleep(10 * usual)),
    }


if __name__ == "__main__":
    print("\n".join(lines(3, 4)))
