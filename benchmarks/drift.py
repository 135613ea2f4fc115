"""`drift.compare` beside evidently's default preset: seconds and memory on a large frame, and who finds which shift.

`python -m benchmarks.drift` prints the tables; `--rows` and `--seeds` make it quicker and rougher. All data are simulated.
This file is read in evidently's environment too, which has none of the lab: so it loads the lab where it needs it.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SILENT = {**os.environ, "DO_NOT_TRACK": "1"}  # nobody reports home
ORACLE = ROOT / ".venv-oracle" / "bin" / "python"
NUMBERS, COUNTS, CLASSES = 40, 5, 5  # columns of each kind
MOVED = 0.1  # standard deviations, the first five columns
CHUNK = 100_000  # rows
WINDOWS, SHIFTS = (100, 500, 2000), (0.0, 0.25, 0.5, 1.0)  # rows; standard deviations of one feature
FEATURES, TIMES = 10, 10  # features; how many times as many rows the reference has
MOST = 10  # windows after a shift, until we say that it was missed
Flag = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, bool]]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=1_000_000)
    arguments.add_argument("--seeds", type=int, default=50)
    arguments.add_argument("--frames", nargs=2, metavar="PARQUET", help="compare these two, and print what it took")
    options = arguments.parse_args()
    if options.frames:
        print(json.dumps(_timed(*options.frames)))
    else:
        print("\n".join(lines(options.rows, options.seeds)))


def lines(rows: int = 1_000_000, seeds: int = 50) -> list[str]:
    """Both tables, as Markdown."""
    return [*large(rows), *power(seeds)]


def large(rows: int) -> list[str]:
    """Two frames, compared by each in a process of its own: seconds and megabytes. Ours includes
    reading the files; theirs does not include it in the seconds.
    """
    with tempfile.TemporaryDirectory() as scratch:
        paths = [str(_write(Path(scratch, f"{seed}.parquet"), rows, seed)) for seed in (0, 1)]
        ours = _run(sys.executable, "-m", "benchmarks.drift", "--frames", *paths)
        theirs = _run(ORACLE, "-m", "benchmarks.peers.evidently_drift", "frames", *paths)
    columns = NUMBERS + COUNTS + CLASSES
    return [
        "",
        f"Two frames of {rows:,} rows x {columns} columns ({NUMBERS} of numbers, {COUNTS} of counts, {CLASSES} of classes; "
        f"five columns of numbers moved by {MOVED} standard deviations), the same files for both, one after the other:",
        "",
        "| | seconds | peak MB | columns flagged | times faster |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {found['seconds']:.1f} | {found['memory']:,.0f} | {found['drifted']:.0f} | "
            f"{theirs['seconds'] / found['seconds']:.1f} |"
            for name, found in (("`drift.compare`", ours), ("evidently's `DataDriftPreset()`", theirs))
        ),
    ]


def _write(path: Path, rows: int, seed: int) -> Path:
    """A frame as a Parquet file, made in chunks. Of seed 0, the reference; of another, some columns have moved."""
    import pyarrow as pa
    from pyarrow import parquet

    random, writer = np.random.default_rng(seed), None
    for start in range(0, rows, CHUNK):
        count = min(CHUNK, rows - start)
        moved = np.where(np.arange(NUMBERS) < 5, MOVED * (seed > 0), 0.0)
        table = {f"number_{i}": random.normal(moved[i], 1, count) for i in range(NUMBERS)}
        table |= {f"count_{i}": random.poisson(3, count) for i in range(COUNTS)}
        table |= {
            f"class_{i}": random.choice(list("abcde"), count, p=[0.4, 0.3, 0.15, 0.1, 0.05]) for i in range(CLASSES)
        }
        chunk = pa.table(table)
        writer = writer or parquet.ParquetWriter(path, chunk.schema)
        writer.write_table(chunk)
    writer.close()
    return path


def _timed(*paths: str) -> dict[str, float]:
    from labsupport import drift

    started = time.perf_counter()
    report = drift.compare(*paths)
    seconds = time.perf_counter() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"seconds": seconds, "memory": memory, "drifted": int(report.features["drifted"].sum())}


def _run(*command):
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=True, env=SILENT)
    return json.loads(done.stdout.splitlines()[-1])


def power(seeds: int) -> list[str]:
    """Who finds a shift of one feature in ten, how soon, and what it costs in false alarms."""
    theirs = _run(ORACLE, "-m", "benchmarks.peers.evidently_drift", "windows", seeds)
    ours = measure(_flag, seeds)
    rows = [
        "",
        f"One feature of {FEATURES} shifted, {seeds} streams of windows each, the reference {TIMES} times the window. "
        "Found: the share of first windows in which that feature is flagged, and in brackets, because without it the other "
        "means nothing, the share in which any feature that did not move is flagged. Delay: windows until the feature is "
        f"flagged, on average; {MOST} at most. Whole: the share in which the tool calls the whole drifted.",
        "",
        "| window | shift, sd | `drift.compare`: found | delay | whole | evidently's default: found | delay | whole |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for mine, other in zip(ours, theirs, strict=True):
        cells = [
            f"{row['found']:.2f} ({row['false']:.2f}) | {row['delay']:.1f} | {row['whole']:.2f}"
            if row["shift"]
            else f"({row['false']:.2f}) | | {row['whole']:.2f}"
            for row in (mine, other)
        ]
        rows.append(f"| {mine['window']} | {mine['shift']:g} | {' | '.join(cells)} |")
    return rows


def measure(flag: Flag, seeds: int) -> list[dict[str, float]]:
    """A row for each window and shift; `flag` says which features it takes for drifted, and whether the whole."""
    return [
        {"window": window, "shift": shift, **_cell(flag, seeds, window, shift)}
        for window in WINDOWS
        for shift in SHIFTS
    ]


def _cell(flag: Flag, seeds: int, window: int, shift: float) -> dict[str, float]:
    first, delays = [], []
    for seed in range(seeds):
        random = np.random.default_rng([seed, window])
        reference = random.normal(size=(TIMES * window, FEATURES))
        for number in range(1, MOST + 1):
            flags, whole = flag(reference, random.normal([shift] + [0.0] * (FEATURES - 1), 1, (window, FEATURES)))
            if number == 1:
                first.append((flags[0], flags[1 if shift else 0 :].any(), whole))
            if flags[0] or not shift:
                break
        delays.append(number)
    found, false, whole = np.mean(first, axis=0)
    return {"found": found, "false": false, "whole": whole, "delay": float(np.mean(delays))}


def _flag(reference: np.ndarray, window: np.ndarray) -> tuple[np.ndarray, bool]:
    from labsupport import drift

    report = drift.compare(reference, window)
    return report.features["drifted"].to_numpy(bool), report.drifted


if __name__ == "__main__":
    main()
