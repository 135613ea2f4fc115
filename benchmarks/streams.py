"""What the streaming detectors and the windowed monitor do on data whose truth is known: delay, misses, false alarms, power.

`python -m benchmarks.streams` prints the tables; `--seeds`, `--references` and `--windows` make them quicker and rougher,
`--kswin` adds the slowest detector. All is simulated.
"""

import argparse
from collections.abc import Callable

import numpy as np
from river import drift
from scipy import special

from labsupport.drift import ConceptDriftMonitor, DataDriftMonitor, compare_detectors, cusum_limit

CLEAN, DRIFTED = 5000, 2000  # samples before and after the change
RATE = 0.01  # share of clean windows that may alarm
Draw = Callable[[np.random.Generator, int], np.ndarray]


def errors(rate: float) -> Draw:
    return lambda random, count: (random.random(count) < rate).astype(float)


def normal(mean: float) -> Draw:
    return lambda random, count: random.normal(mean, 1, count)


STREAMS = {
    "error .05 -> .10": (errors(0.05), errors(0.10)),
    "error .1 -> .2": (errors(0.1), errors(0.2)),
    "N(0,1) + .5 sd": (normal(0), normal(0.5)),
}
CLEAN_DATA: dict[str, Draw] = {
    "1 feature, normal": lambda random, count: random.normal(size=(count, 1)),
    "1 feature, counts": lambda random, count: random.poisson(3, size=(count, 1)),
    "1 feature, 5 classes": lambda random, count: random.choice(list("aaaaabbbcd"), size=(count, 1)),
    "10 features, correlated": lambda random, count: random.normal(size=(count, 10)) + random.normal(size=(count, 1)),
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seeds", type=int, default=100)
    arguments.add_argument("--references", type=int, default=5)
    arguments.add_argument("--windows", type=int, default=10_000)
    arguments.add_argument("--kswin", action="store_true", help="takes a quarter of an hour more")
    options = arguments.parse_args()
    print("\n".join(detectors(options.seeds, options.kswin)), flush=True)
    print("\n".join(power(options.seeds)), flush=True)
    print("\n".join(promise(options.references, options.windows)))


def detectors(seeds: int, kswin: bool = False) -> list[str]:
    """Mean delay / % missed / false alarms per 10,000, a column for each stream."""
    tables = {}
    for name, (before, after) in STREAMS.items():
        streams = [(_stream(seed, before, after), [CLEAN]) for seed in range(seeds)]
        reference = before(np.random.default_rng(10**6), CLEAN)
        tables[name] = compare_detectors(_detectors(name, reference, kswin), streams, max_delay=DRIFTED)
    lines = ["", f"Mean delay / % missed within {DRIFTED} / false alarms per 10,000; {seeds} seeds.", ""]
    lines += ["| detector | " + " | ".join(tables) + " |", "|---" * (len(tables) + 1) + "|"]
    for detector in dict.fromkeys(row for table in tables.values() for row in table.index):
        cells = [_cell(table.loc[detector]) if detector in table.index else "-" for table in tables.values()]
        lines.append(f"| {detector} | " + " | ".join(cells) + " |")
    return lines


def _detectors(stream: str, reference: np.ndarray, kswin: bool) -> dict[str, Callable]:
    # errors pass as they are, other numbers are standardised; a CUSUM is given the half of the shift, and its false alarms
    scale = None if stream.startswith("error") else reference
    shift = {"error .05 -> .10": 0.23, "error .1 -> .2": 0.33, "N(0,1) + .5 sd": 0.5}[stream]
    limit = cusum_limit(shift / 2, 50_000)
    made = {
        "ADWIN": lambda: ConceptDriftMonitor("adwin", reference=scale),
        "ADWIN delta=.05, clock=1": lambda: ConceptDriftMonitor("adwin", reference=scale, delta=0.05, clock=1),
        "Page-Hinkley": lambda: ConceptDriftMonitor("page-hinkley", reference=scale),
        "DDM": lambda: ConceptDriftMonitor(drift.binary.DDM()),
        "KSWIN": lambda: ConceptDriftMonitor("kswin", reference=scale, seed=0),
        "CUSUM k=.5, h=5": lambda: ConceptDriftMonitor("cusum", reference=reference, k=0.5, h=5),
        "CUSUM k=.5, h=10": lambda: ConceptDriftMonitor("cusum", reference=reference, k=0.5, h=10),
        "CUSUM k=half the shift, run length 50,000": lambda: ConceptDriftMonitor(
            "cusum", reference=reference, k=shift / 2, h=limit
        ),
    }
    left_out = {"DDM"} if scale is not None else set()
    left_out |= set() if kswin else {"KSWIN"}
    return {name: make for name, make in made.items() if name not in left_out}


def _stream(seed: int, before: Draw, after: Draw) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.concatenate([before(random, CLEAN), after(random, DRIFTED)])


def _cell(row) -> str:
    return f"{row.mean_delay:.0f}/{row.missed_percent:.0f}/{row.false_alarms_per_10000:.1f}"


def promise(references: int, windows: int, window: int = 50) -> list[str]:
    """The share of clean windows that alarm, for each of some references: their mean and the worst."""
    lines = [
        "",
        f"Share of {windows:,} clean windows of {window} that alarm, on one reference of {10 * window}, promised {RATE}:",
    ]
    lines += ["", f"| data | mean of {references} references | worst |", "|---|---|---|"]
    for name, draw in CLEAN_DATA.items():
        shares = []
        for seed in range(references):
            random = np.random.default_rng(seed)
            monitor = DataDriftMonitor(draw(random, 10 * window), window, RATE)
            for row in draw(random, windows * window).tolist():
                monitor.update(row)
            shares.append(len(monitor.alarms) / monitor.windows)
        lines.append(f"| {name} | {np.mean(shares):.5f} | {max(shares):.5f} |")
    plain = [_plain(seed, windows, window) for seed in range(references)]
    return [*lines, f"| 1 feature, normal, by the plain two-sample test | {np.mean(plain):.5f} | {max(plain):.5f} |"]


def _plain(seed: int, windows: int, window: int) -> float:
    """The share that alarms by the two-sample Kolmogorov-Smirnov test, p-values by its limit distribution."""
    random = np.random.default_rng(seed)
    reference = np.sort(random.normal(size=10 * window))
    clean = np.sort(random.normal(size=(windows, window)), axis=1)
    steps = np.arange(window + 1) / window
    at = np.searchsorted(reference, clean) / len(reference)
    distance = np.maximum(steps[1:] - at, at - steps[:-1]).max(axis=1)
    size = len(reference) * window / (len(reference) + window)
    return float((special.kolmogorov(np.sqrt(size) * distance) <= RATE).mean())


def power(seeds: int) -> list[str]:
    """The share of drifted windows that alarm, each with a reference of its own."""
    shifts = (0.25, 0.5, 1.0)
    lines = [
        "",
        f"Share of drifted windows that alarm at {RATE}, 1 feature / 10 of which one moved; {seeds} seeds:",
        "",
    ]
    lines += ["| window | reference | " + " | ".join(f"+{shift} sd" for shift in shifts) + " |", "|---" * 5 + "|"]
    for window, times in ((100, 10), (100, 100), (500, 10), (2000, 10)):
        cells = ["/".join(f"{_found(seeds, window, times, count, shift):.2f}" for count in (1, 10)) for shift in shifts]
        lines.append(f"| {window} | {times * window} | " + " | ".join(cells) + " |")
    return lines


def _found(seeds: int, window: int, times: int, features: int, shift: float) -> float:
    found = 0
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        monitor = DataDriftMonitor(random.normal(size=(times * window, features)), window, RATE)
        rows = random.normal(size=(window, features))
        rows[:, 0] += shift
        for row in rows.tolist():
            monitor.update(row)
        found += monitor.drift_detected
    return found / seeds


if __name__ == "__main__":
    main()
