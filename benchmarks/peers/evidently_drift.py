"""evidently, as it comes, in its own environment: what our drift helpers are checked and measured beside.

Run in .venv-oracle: python -m benchmarks.peers.evidently_drift tests | windows SEEDS | frames REFERENCE CURRENT
"""

import json
import resource
import sys
import time
import warnings

import numpy as np
import pandas as pd
from evidently import Report
from evidently.legacy.calculations.stattests import get_stattest
from evidently.presets import DataDriftPreset

from benchmarks.drift import measure

SHARE = 0.5  # of the columns: what its presets call drift of the whole


def tests() -> list[dict[str, float]]:
    """Cases from standard input, {"kind": "num" or "cat", "reference", "current", "tests"}: each test's score."""
    answers = []
    for case in json.load(sys.stdin):
        windows = [pd.Series(case[name]) for name in ("reference", "current")]
        made = {name: get_stattest(*windows, case["kind"], name) for name in case["tests"]}
        answers.append({name: float(test(*windows, case["kind"], None).drift_score) for name, test in made.items()})
    return answers


def flag(reference: np.ndarray, window: np.ndarray) -> tuple[np.ndarray, bool]:
    """Which features its default tests flag, and whether it calls the whole drifted."""
    flags = []
    for before, now in zip(reference.T, window.T, strict=True):
        columns = pd.Series(before), pd.Series(now)
        flags.append(bool(get_stattest(*columns, "num", None)(*columns, "num", None).drifted))
    return np.array(flags), float(np.mean(flags)) >= SHARE


def frames(*paths: str) -> dict[str, float]:
    """Seconds and peak megabytes of the default preset on two Parquet files, and the columns that it flags."""
    reference, current = (pd.read_parquet(path) for path in paths)
    started = time.perf_counter()
    result = Report([DataDriftPreset()]).run(current, reference)
    seconds = time.perf_counter() - started
    (count,) = [m["value"]["count"] for m in result.dict()["metrics"] if "DriftedColumns" in m["metric_name"]]
    return {"seconds": seconds, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, "drifted": count}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    what, *rest = sys.argv[1:]
    jobs = {"tests": tests, "frames": frames, "windows": lambda seeds: measure(flag, int(seeds))}
    print(json.dumps(jobs[what](*rest)))
