"""How much can the server take? Its latency at one load after the other, and what the queueing model had said before.

`python -m benchmarks.capacity` starts `labsupport serve`. Each round calibrates the model (a saturated server, and a
light load), and only then sends load: Poisson arrivals, in an order of their own. Figures are medians over the rounds.
The load is made on the same cores.

A rented machine is not equally fast all the time. So the server is saturated before each load, which tells the model how
fast the machine is now, and after it. Where the two differ by more than 5 %, or other programs took more than 3 % of the
machine, that load is measured again, at most twice, and the steadiest run counts, whatever it showed.
"""

import argparse
import os
import statistics
import time
from collections import defaultdict

import numpy as np
import psutil

from labsupport import compute, paths
from labsupport.compute import Server, loadtest, targets
from labsupport.protection import EXTRA_SLOTS

LOADS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.1)  # of the capacity
CLAIM = (0.25, 0.8)  # the model's p99 is this close, up to this load
QUIET, STEADY, TRIES = 0.03, 0.05, 3  # the share of the machine that others may take; by how much its speed may change
SATURATED = 2  # seconds, to see how fast it is now


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--seconds", type=float, default=8, help="for each load")
    arguments.add_argument("--precision", help="f32, bf16 or int8; unless given, what this CPU is best at")
    arguments.add_argument("--seed", type=int, default=0)
    print("\n".join(lines(**vars(arguments.parse_args()))))


def lines(rounds: int, seconds: float, precision: str | None = None, seed: int = 0) -> list[str]:
    """The table, after `rounds` times `LOADS` of so many seconds."""
    picture = (paths.IMAGES / "street_1.jpg").read_bytes()
    rows: dict[float, list] = defaultdict(list)
    with compute.server_process(precision) as url:
        target = targets.Http(f"{url}/predict", picture)
        for turn in range(seed, seed + rounds):
            model = compute.calibrated(target, light=200, seconds=4)
            print(f"round {turn}: {model}, light load {describe(model)}", flush=True)
            for load in np.random.default_rng(turn).permutation(LOADS).tolist():
                row = measured(target, model, load, seconds, turn)
                what = f"p99 {row[1]:.1f} ms, model {row[3]:.1f} ms, {row[-2]:.1%} faster or slower"
                print(f"  {load:4.0%}: {what}", flush=True)
                rows[load].append(row)
    return table(rows)


def describe(model: Server) -> str:
    middle, high = np.quantile(model.service, [0.5, 0.99]) * 1000
    return f"p50 {middle:.1f} ms, p99 {high:.1f} ms"


def measured(target: targets.Target, model: Server, load: float, seconds: float, seed: int) -> tuple[float, ...]:
    """Milliseconds: p50 and p99 measured; both as the model has them for these very arrivals, and its p99 in the long run;
    and the share refused, the model's share, how much faster or slower the machine became, and what others took of it."""
    runs = []
    while len(runs) < TRIES and not (runs and runs[-1][-2] <= STEADY and runs[-1][-1] <= QUIET):
        before, taken, started = saturated(target), others(), time.perf_counter()
        now = Server(model.service * (model.capacity / before), model.slots, model.cores, model.places)
        rate, key = load * before, 1000 * seed + round(100 * load)
        run = loadtest.open_loop(target, rate, seconds, key)
        taken = (others() - taken) / (time.perf_counter() - started) / psutil.cpu_count()
        change = abs(saturated(target) / before - 1)
        said, long = now.replay(loadtest.arrivals(rate, seconds, key)), now.predict(rate)
        times = (run.quantile(0.5), run.quantile(0.99), said.p50, said.p99, long.p99)
        shares = (1 - run.share(targets.ANSWERED), said.refused, change, max(0.0, taken))
        runs.append((*(1000 * time for time in times), *shares))
    return min(runs, key=lambda row: max(row[-2] / STEADY, row[-1] / QUIET))


def saturated(target: targets.Target) -> float:
    """The most requests a second that it answers at this moment."""
    return loadtest.closed_loop(target, clients=3 * ((os.cpu_count() or 1) + EXTRA_SLOTS), seconds=SATURATED).rate


def others() -> float:
    """Seconds of every core's time that went to other programs so far, and to other guests of the same hardware."""
    total = psutil.cpu_times()
    ours = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(total) - total.idle - total.iowait - sum(sum(one.cpu_times()[:2]) for one in ours)


def table(rows: dict[float, list]) -> list[str]:
    """A line for each load, and whether the claim holds."""
    heads = ["load", "p50 ms", "model", "p99 ms", "model", "long run", "model / measured p99", "in each round"]
    lines = [f"| {' | '.join([*heads, 'refused', 'model', 'speed ±', 'others'])} |", "|---" * (len(heads) + 4) + "|"]
    off = []
    for load in sorted(rows):
        p50, p99, said50, said99, long, *shares = (
            statistics.median(column) for column in zip(*rows[load], strict=True)
        )
        ratios = [row[3] / row[1] for row in rows[load]]
        numbers = f"{p50:.1f} | {said50:.1f} | {p99:.1f} | {said99:.1f} | {long:.1f} | {statistics.median(ratios):.2f}"
        each = " ".join(f"{ratio:.2f}" for ratio in ratios)
        lines.append(f"| {load:.0%} | {numbers} | {each} | {' | '.join(f'{share:.1%}' for share in shares)} |")
        if abs(statistics.median(ratios) - 1) > CLAIM[0]:
            off.append(load)
    holds = "does not hold" if [load for load in off if load <= CLAIM[1]] else "holds"
    claim = f"within {CLAIM[0]:.0%} of the measured p99 up to {CLAIM[1]:.0%} load"
    where = ", ".join(f"{load:.0%}" for load in off)
    return [*lines, "", f"The model's p99 is {claim}: this {holds}. It is further off at: {where or 'no load'}."]


if __name__ == "__main__":
    main()
