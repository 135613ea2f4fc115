"""What a look at a ramp costs: young and old ramps side by side.

`python -m benchmarks.looks [--rows 10000 1000000]` prints the table that `make bench` writes under "Looks".
"""

import argparse
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

from labsupport.monitoring import PredictionLog
from labsupport.rollout import Gate, Rollout, Router, outcomes_since

AGES = (10_000, 1_000_000)  # requests since the ramp began
NEW = 100  # requests between two looks: a second of a busy server
FOR_EVER = Gate(thresholds={"error_rate": (None, 1), "latency_p95": (None, 10)}, min_requests=10**9)
REQUESTS = """
WITH RECURSIVE numbers (n) AS (SELECT :first UNION ALL SELECT n + 1 FROM numbers WHERE n < :first + :count - 1)
INSERT INTO predictions (time, id, key, version, latency, detections, n_detections, status, shadow)
SELECT :began + n * 0.01, printf('%032x', n), 'user ' || (n * 7919 % 50000), iif(n % 20, 'v1', 'v2'), 0.01 + n % 97 * 0.001,
    '[{"label":"cat","confidence":0.9,"box":[10,20,110,120]}]', 1, iif(n % 101, 200, 500), 0 FROM numbers
"""


class Version:
    def __init__(self, version: str) -> None:
        self.version = version

    def detect(self, image, confidence=0.5):
        return []


class Ramp:
    """A ramp that so many requests have come to, and that stays where it is."""

    def __init__(self, folder: str, age: int) -> None:
        file = Path(folder, f"{age}.db")
        self.log = PredictionLog(f"sqlite:///{file}")
        self.ramp = Rollout(Router(Version("v1"), log=self.log), Version("v2"), gate=FOR_EVER)
        self._file, self._count = sqlite3.connect(file, isolation_level=None), 0
        self._began = self.ramp.router.state.ramp["began"]
        self.come(age)

    def come(self, count: int) -> None:
        """Write so many requests, one in a hundredth of a second."""
        self._file.execute(REQUESTS, {"first": self._count, "count": count, "began": self._began})
        self._count += count

    def look(self) -> float:
        """Return the seconds that a look takes."""
        started = time.perf_counter()
        assert self.ramp.look().verdict == "hold"
        return time.perf_counter() - started

    def look_at_all(self) -> float:
        """Return the seconds that it takes to read all requests again."""
        started = time.perf_counter()
        FOR_EVER.judge(outcomes_since(self.log, self._began), "v1", "v2")
        return time.perf_counter() - started

    def close(self) -> None:
        self._file.close()
        self.log.close()


def lines(ages: tuple[int, ...] = AGES, looks: int = 200) -> list[str]:
    """The table, as Markdown: medians over looks that take turns."""
    with tempfile.TemporaryDirectory() as folder:
        ramps = [Ramp(folder, age) for age in ages]
        first = [ramp.look() for ramp in ramps]
        again: list[list[float]] = [[] for _ in ramps]
        for _ in range(looks):
            for ramp, seconds in zip(ramps, again, strict=True):
                ramp.come(NEW)
                seconds.append(ramp.look())
        everything = [ramp.look_at_all() for ramp in ramps]
        for ramp in ramps:
            ramp.close()
    middle = [statistics.median(seconds) for seconds in again]
    return [
        "",
        f"A look at a ramp with {NEW} new requests since the last look; {looks} looks at each ramp, in turn, on SQLite:",
        "",
        "| requests since the ramp began | a look, ms | x the first line | after a restart, s | to read all each time, s |",
        "|---|---|---|---|---|",
        *(
            f"| {age:,} | {1e3 * look:.1f} | {look / middle[0]:.2f} | {restart:.2f} | {all_of_it:.2f} |"
            for age, look, restart, all_of_it in zip(ages, middle, first, everything, strict=True)
        ),
    ]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, nargs="+", default=AGES)
    arguments.add_argument("--looks", type=int, default=200)
    options = arguments.parse_args()
    print("\n".join(lines(tuple(options.rows), options.looks)))


if __name__ == "__main__":
    main()
