"""The server beside BentoML and LitServe around the same detector, on both endpoints: paired ratios with their spread.

All servers run at the same time, and one at a time is asked, in turns and in an order that changes: so a slow second of
the machine meets all alike. A ratio is that of two servers within one round. `python -m benchmarks.ahead` prints the table.
A worker process of a peer gives one core to each picture; `PEER_SLOTS=2` gives it two.
"""

import argparse
import contextlib
import random
import sys
from collections import defaultdict

import numpy as np
import psutil
from tqdm import tqdm

from benchmarks import load
from benchmarks.processes import PEERS, family, memory, started
from labsupport.models import best_precision

OURS, WORKERS = "labsupport serve", "labsupport serve --workers 2"
BENTOML, LITSERVE = "BentoML", "LitServe"
BENTOML_SERVER = [PEERS, "-m", "bentoml", "serve", "benchmarks.peers.bentoml_service:Service", "--port"]
LITSERVE_SERVER = [PEERS, "-m", "benchmarks.peers.litserve_server"]
COMMANDS = {  # server, endpoints -> the command, but for its port
    (OURS, ("/predict", "/detect")): [sys.executable, "-m", "labsupport", "serve", "--port"],
    (WORKERS, ("/predict", "/detect")): [sys.executable, "-m", "labsupport", "serve", "--workers", "2", "--port"],
    (BENTOML, ("/predict", "/detect")): BENTOML_SERVER,
    (LITSERVE, ("/predict",)): LITSERVE_SERVER,
    (LITSERVE, ("/detect",)): [*LITSERVE_SERVER, "--detect"],
}
CLIENTS = (1, 8, 32)
SPREAD = (5, 95)  # percentiles: a 90 % interval
RESAMPLES = 2_000
Point = tuple[str, str, int]  # server, endpoint, clients


def lines(rounds: int, seconds: float) -> list[str]:
    measured, cpu, megabytes = measure(rounds, seconds)
    table = [
        "",
        f"Answers a second with {rounds} rounds of {seconds:g} s; `x` is ours / theirs within a round: the median, and its "
        f"90 % interval from resampled rounds (bootstrap). Ours has log, metrics and checks. All in {best_precision()}.",
        "",
        "| endpoint | clients | server | MB | answers/s | CPU ms an answer | p99 ms | failed | x, one process "
        "| x, two processes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for endpoint in ("/predict", "/detect"):
        for clients in CLIENTS:
            for server in (OURS, WORKERS, BENTOML, LITSERVE):
                results = measured[server, endpoint, clients]
                cells = [endpoint, clients, server, f"{megabytes[server, endpoint]:.0f}"]
                cells += [f"{np.median([one.rate for one in results]):.1f}"]
                cells += [f"{np.median(cpu[server, endpoint, clients]):.1f}"]
                cells += [f"{np.median([one.percentile(99) for one in results]):.0f}"]
                cells += [sum(one.wrong + one.failed + one.refused for one in results)]
                for ours in (OURS, WORKERS):
                    cells += ["" if server in (OURS, WORKERS) else ratio(measured[ours, endpoint, clients], results)]
                table.append("| " + " | ".join(map(str, cells)) + " |")
    return table


def measure(
    rounds: int, seconds: float
) -> tuple[dict[Point, list[load.Result]], dict[Point, list[float]], dict[tuple[str, str], float]]:
    """Return the results and the CPU ms an answer of each server, endpoint and number of clients, and each server's MB."""
    measured: dict[Point, list[load.Result]] = defaultdict(list)
    cpu: dict[Point, list[float]] = defaultdict(list)
    chance = random.Random(0)
    with contextlib.ExitStack() as stack:
        ports, processes = {}, {}
        for (server, endpoints), command in COMMANDS.items():
            port, process, _ = stack.enter_context(started(command, path(endpoints[0])))
            ports |= {(server, endpoint): port for endpoint in endpoints}
            processes |= {(server, endpoint): process for endpoint in endpoints}
        for (_, endpoint), port in ports.items():
            load.run(port, 8, 2, path(endpoint))  # warm
        points = [(*target, clients) for target in ports for clients in CLIENTS]
        for _ in tqdm(range(rounds), desc="rounds"):
            chance.shuffle(points)
            points.sort(key=lambda point: (point[1], point[2]))  # the servers of one point meet, in any order
            for server, endpoint, clients in points:
                before = used(processes[server, endpoint])
                result = load.run(ports[server, endpoint], clients, seconds, path(endpoint))
                taken = used(processes[server, endpoint]) - before
                measured[server, endpoint, clients].append(result)
                cpu[server, endpoint, clients].append(1000 * taken / (len(result.latencies) + len(load.PICTURES)))
        return measured, cpu, {target: memory(process) for target, process in processes.items()}


def used(process: psutil.Popen) -> float:
    """CPU seconds of a server's processes, until now."""
    return sum(sum(member.cpu_times()[:2]) for member in family(process))


def path(endpoint: str) -> str:
    return f"{endpoint}?model=yolov3-tiny"


def ratio(ours: list[load.Result], theirs: list[load.Result]) -> str:
    """The median of the rounds' ratios, with the interval of that median if the rounds are drawn again."""
    ratios = np.array([one.rate / other.rate for one, other in zip(ours, theirs, strict=True)])
    drawn = np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), SPREAD)
    return f"{np.median(ratios):.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=12)
    arguments.add_argument("--seconds", type=float, default=2)
    options = arguments.parse_args()
    print("\n".join(lines(options.rounds, options.seconds)))
