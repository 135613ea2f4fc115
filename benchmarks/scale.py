"""When is it worth it? One process, Ray Serve on one node and on two: the same clients, one after the other, in one table.

`python -m benchmarks.scale` needs Ray (pip install 'labsupport[scale]'). Both nodes are on this machine and share its cores,
so the figures show what the cluster costs, and not what it gains. What machines with cores of their own would need is
calculated from them, on paper, below the table. Rounds take turns; figures are medians over the rounds. Only on a machine
that does nothing else: of cores that others want, sixteen processes get more than one does. CPU an answer bears it best.
"""

import argparse
import math
import os
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks import log as rows
from labsupport import batch, compute, paths, scale
from labsupport.compute import Cost, Machine, loadtest, needs, targets
from labsupport.detection import Detector
from labsupport.log import PredictionLog
from labsupport.scale import local_cluster

PICTURE = "street_1.jpg"
CLIENTS = (1, 4, 16)
COPIES = 10  # of the pictures, in the folder that a batch looks at
CORES = 4  # that each node says it has, so that Ray finds room for all
SQUEEZED = 416 * 416 * 3  # bytes of a picture as a replica gets it
MACHINE = Machine("16 cores", cores=16, dollars_per_hour=0.70)  # made up: put in your own
ONE, RAY_ONE, RAY_TWO = "uvicorn, one process", "Ray Serve, one node", "Ray Serve, two nodes"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--seconds", type=float, default=8, help="for each point")
    arguments.add_argument("--precision", default="bf16")
    print("\n".join(lines(**vars(arguments.parse_args()))))


def lines(rounds: int, seconds: float, precision: str = "bf16") -> list[str]:
    """The tables: requests, a folder, the log, and what other rates would need."""
    measured = defaultdict(list)
    for turn in range(rounds):
        for name, start in STARTS.items() if turn % 2 == 0 else reversed(STARTS.items()):
            measured[name].append(point(start, precision, seconds))
            print(f"round {turn}, {name}: {measured[name][-1]}", flush=True)
    return [*served(measured), "", *folder_lines(precision), "", *log_lines(), "", *paper(measured)]


def point(start: Callable, precision: str, seconds: float) -> dict:
    """What one round says of one way to serve."""
    began = time.perf_counter()
    with start(precision) as url:
        figures = {"start": time.perf_counter() - began}
        target = targets.Http(f"{url}/detect", (paths.IMAGES / PICTURE).read_bytes())
        loadtest.closed_loop(target, clients=2, seconds=3)  # warm
        for clients in CLIENTS:
            spent, run = cpu(), loadtest.closed_loop(target, clients, seconds)
            figures[clients] = run.rate, 1000 * run.quantile(0.5), 1000 * run.quantile(0.99)
            figures["cpu"] = 1000 * (cpu() - spent) / max(1, len(run.answered))
            figures["failed"] = figures.get("failed", 0) + run.share(targets.FAILED)
        figures["memory"] = sum(process.memory_full_info().pss for process in family()) / 1e6
    return figures


def family() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def cpu() -> float:
    """Seconds of CPU that every process of the server has used so far."""
    return sum(sum(process.cpu_times()[:2]) for process in family())


@contextmanager
def one_process(precision: str) -> Iterator[str]:
    with compute.server_process(precision) as url:
        yield url


@contextmanager
def on_ray(precision: str, count: int) -> Iterator[str]:
    """As many replicas as there are cores, whatever the number of nodes."""
    replicas = os.cpu_count() or 2
    with local_cluster.LocalCluster(nodes=count, cores=CORES):
        name = f"yolov3-tiny/openvino-{precision}"
        with scale.deploy(name, replicas=(replicas, replicas), port=0) as app:
            yield app.url


STARTS = {
    ONE: one_process,
    RAY_ONE: lambda precision: on_ray(precision, 1),
    RAY_TWO: lambda precision: on_ray(precision, 2),
}


def served(measured: dict[str, list[dict]]) -> list[str]:
    """The table."""
    lines = ["| server | clients | answers/s | p50 ms | p99 ms | x one process | CPU ms an answer | MB | start s |"]
    lines.append("|---" * 9 + "|")
    for name, rounds in measured.items():
        for clients in CLIENTS:
            rate, p50, p99 = (middle(column) for column in zip(*(one[clients] for one in rounds), strict=True))
            pairs = zip(rounds, measured[ONE], strict=True)
            ratio = middle([one[clients][0] / base[clients][0] for one, base in pairs])
            cost, memory, start = (middle([one[key] for one in rounds]) for key in ("cpu", "memory", "start"))
            about = f"{cost:.1f} | {memory:.0f} | {start:.1f}" if clients == CLIENTS[-1] else " | | "
            lines.append(f"| {name} | {clients} | {rate:.1f} | {p50:.0f} | {p99:.0f} | {ratio:.2f} | {about} |")
    failed = sum(one["failed"] for rounds in measured.values() for one in rounds)
    return [*lines, "", f"CPU is that at {CLIENTS[-1]} clients. Failed requests: {failed:g}."]


def folder_lines(precision: str) -> list[str]:
    """A folder: one process against Ray Data on one and two nodes, the start of the cluster not counted."""
    name = f"yolov3-tiny/openvino-{precision}"
    with tempfile.TemporaryDirectory() as scratch:
        for copy in range(COPIES):
            shutil.copytree(paths.IMAGES, Path(scratch, "pictures", str(copy)))
        pictures = Path(scratch, "pictures")
        began = time.perf_counter()
        done = batch.predict_folder(pictures, Path(scratch, "a.parquet"), Detector.named(name), progress=False)
        took = {"one process": time.perf_counter() - began}
        for count in (1, 2):
            with local_cluster.LocalCluster(nodes=count, cores=CORES):
                began = time.perf_counter()
                scale.predict_folder(pictures, Path(scratch, "b.parquet"), name, workers=os.cpu_count())
                took[f"Ray Data, {count} node(s)"] = time.perf_counter() - began
    lines = [f"A folder of {done.rows} pictures:", "", "| batch | s | pictures/s |", "|---|---|---|"]
    return [*lines, *(f"| {who} | {seconds:.1f} | {done.rows / seconds:.1f} |" for who, seconds in took.items())]


def log_lines() -> list[str]:
    """Rows a second that one process writes to SQLite; `python -m benchmarks.log URL` measures a PostgreSQL."""
    with tempfile.TemporaryDirectory() as folder, PredictionLog(f"sqlite:///{folder}/predictions.db") as log:
        rate, _, _ = rows.sustained(log, 20_000)
    return [f"A log in SQLite takes {rate:,.0f} rows a second."]


def paper(measured: dict[str, list[dict]]) -> list[str]:
    """What other rates would need: all single machines behind a balancer, or one cluster.

    A file travels twice, to the balancer or the proxy and on. In the cluster its pixels then travel to a replica.
    """
    upload = (paths.IMAGES / PICTURE).stat().st_size
    shapes = {"many single machines": (ONE, 2 * upload), "one cluster": (RAY_TWO, 2 * upload + SQUEEZED)}
    lines = [f"On paper, with machines of {MACHINE.cores} cores at {MACHINE.dollars_per_hour} dollars an hour:", ""]
    lines += ["| requests/s | shape | machines | limit | Gbit/s | databases | $/hour | $/million |", "|---" * 8 + "|"]
    for rate in (1_000, 100_000):
        for shape, (name, size) in shapes.items():
            cost = Cost(cpu=middle([one["cpu"] for one in measured[name]]) / 1000, bytes=size)
            plan = needs(rate, cost, MACHINE)
            money = f"{plan.dollars_per_hour:.2f} | {plan.dollars_per_million:.2f}"
            size = f"{plan.machines} | {plan.limit} | {plan.gigabits:.1f} | {plan.databases}"
            lines.append(f"| {rate:,} | {shape} | {size} | {money} |")
    return lines


def middle(numbers) -> float:
    return statistics.median([number for number in numbers if not math.isnan(number)])


if __name__ == "__main__":
    main()
