"""When is it worth it? One process, Ray Serve on one node and on two: the same clients, one after the other, in one table.

`python -m benchmarks.scale` needs Ray (pip install 'labsupport[scale]'). Both nodes are on this machine and share its cores,
so the figures show what the cluster costs, and not what it gains. What machines with cores of their own would need is
calculated from them, on paper, below the table. Rounds take turns; figures are medians over the rounds. Only on a machine
that does nothing else: of cores that others want, sixteen processes get more than one does. CPU an answer bears it best.

The second table divides the CPU time of an answer among the processes that a request passes. Two apps that do nothing with
the same upload show which part of it is Ray's own. In the third table each node has a core that no other node uses.
"""

import argparse
import asyncio
import math
import os
import shutil
import socket
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
from starlette.requests import Request
from starlette.responses import Response

from benchmarks import log as rows
from labsupport import batch, compute, paths, scale
from labsupport.compute import Cost, Machine, loadtest, needs, targets
from labsupport.detection import Detector
from labsupport.log import PredictionLog
from labsupport.models import best_precision
from labsupport.scale import local_cluster

PICTURE = "street_1.jpg"
CLIENTS = (1, 4, 16)
COPIES = 10  # of the pictures, in the folder that a batch looks at
CORES = 4  # that each node says it has, so that Ray finds room for all
SQUEEZED = 416 * 416 * 3  # bytes of a picture as a replica gets it
QUIET = {"log_level": "WARNING", "enable_access_log": False}
MACHINE = Machine("16 cores", cores=16, dollars_per_hour=0.70)  # made up: put in your own
ONE, RAY_ONE, RAY_TWO = "uvicorn, one process", "Ray Serve, one node", "Ray Serve, two nodes"
EMPTY_HOP = "empty app, front and replica as ours"
EMPTY_PROXY = "empty app, Ray's proxy and replica"
ALL_CLIENTS = CLIENTS[-1]  # of which the tables of CPU time speak
ALONE = "python -m labsupport serve"  # one process, which does everything
HOPS = ("proxy", "front", "replica", "rest")
TITLES = {  # how Ray names its processes
    "ray::ProxyActor": "proxy",
    "ray::ServeReplica:front": "front",
    "ray::ServeReplica": "replica",
    ALONE: "front",
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--seconds", type=float, default=8, help="for each point")
    arguments.add_argument("--precision", default=best_precision())
    print("\n".join(lines(**vars(arguments.parse_args()))))


def lines(rounds: int, seconds: float, precision: str) -> list[str]:
    """The tables: requests, a folder, the log, and what other rates would need."""
    measured = defaultdict(list)
    for turn in range(rounds):
        for name, start in STARTS.items() if turn % 2 == 0 else reversed(STARTS.items()):
            measured[name].append(point(start, precision, seconds))
            print(f"round {turn}, {name}: {measured[name][-1]}", flush=True)
    tables = served(measured), hop_lines(measured), pinned_lines(precision, rounds, seconds), folder_lines(precision)
    return [line for table in (*tables, log_lines(), paper(measured)) for line in [*table, ""]][:-1]


def point(start: Callable, precision: str, seconds: float) -> dict:
    """What one round says of one way to serve."""
    began = time.perf_counter()
    with start(precision) as url:
        figures = {"start": time.perf_counter() - began}
        target = targets.Http(f"{url}/detect", (paths.IMAGES / PICTURE).read_bytes())
        loadtest.closed_loop(target, clients=2, seconds=3)  # warm
        for clients in CLIENTS:
            before, run = cpu(), loadtest.closed_loop(target, clients, seconds)
            figures[clients] = run.rate, 1000 * run.quantile(0.5), 1000 * run.quantile(0.99)
            figures["hops"] = spent(before, cpu(), len(run.answered))
            figures["cpu"] = sum(figures["hops"].values())
            figures["failed"] = figures.get("failed", 0) + run.share(targets.FAILED)
        figures["memory"] = sum(process.memory_full_info().pss for process in family()) / 1e6
    return figures


def family() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def cpu() -> dict[int, tuple[str, float]]:
    """Each process of the server: the hop that it belongs to, and the seconds of CPU that it has used so far."""
    used = {}
    for process in family():
        with suppress(psutil.NoSuchProcess, IndexError):
            command = process.cmdline()
            title = ALONE if "labsupport" in command else command[0]
            hop = next((hop for start, hop in TITLES.items() if title.startswith(start)), "rest")
            used[process.pid] = hop, sum(process.cpu_times()[:2])
    return used


def spent(before: dict, after: dict, answers: int) -> dict[str, float]:
    """Milliseconds of CPU an answer in each hop, from what `cpu` returned before and after."""
    hops: Counter = Counter(dict.fromkeys(HOPS, 0.0))
    for pid, (hop, seconds) in after.items():
        hops[hop] += 1000 * (seconds - before.get(pid, ("", 0.0))[1]) / max(1, answers)
    return dict(hops)


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


@contextmanager
def empty_with_proxy(precision: str) -> Iterator[str]:
    """Ray's own way: its proxy takes the upload, and a replica reads it and answers."""

    class Empty:
        async def __call__(self, request: Request) -> Response:
            return Response(str(len(await request.body())))

    with local_cluster.LocalCluster(nodes=1, cores=CORES):
        serve, port = local_cluster.imported_serve(), free_port()
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port}, logging_config=QUIET)
        serve.run(serve.deployment(Empty, logging_config=QUIET).bind(), name="empty", route_prefix="/")
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()


@contextmanager
def empty_hop(precision: str) -> Iterator[str]:
    """Our way: a front takes the upload, sends a replica as many bytes as a picture has there, and answers."""

    class Empty:
        async def detect(self, pixels: np.ndarray) -> int:
            return len(pixels)

    def make() -> Callable:
        handle = local_cluster.imported_serve().get_app_handle("empty").options(_by_reference=False)
        pixels = np.zeros(SQUEEZED, np.uint8)

        async def app(scope, receive, send) -> None:
            if scope["type"] == "http":
                await Request(scope, receive).body()
                size = await asyncio.to_thread(lambda: handle.detect.remote(pixels).result())
                await Response(str(size))(scope, receive, send)

        return app

    with local_cluster.LocalCluster(nodes=1, cores=CORES):
        serve, port = local_cluster.imported_serve(), free_port()
        serve.start(proxy_location="Disabled", logging_config=QUIET)
        serve.run(serve.deployment(Empty, logging_config=QUIET).bind(), name="empty", route_prefix=None)
        front = serve.deployment(scale.Front, name="front", ray_actor_options={"num_cpus": 0}, logging_config=QUIET)
        serve.run(front.bind(make, "127.0.0.1", port), name="front", route_prefix=None)
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


STARTS = {
    ONE: one_process,
    RAY_ONE: lambda precision: on_ray(precision, 1),
    RAY_TWO: lambda precision: on_ray(precision, 2),
    EMPTY_HOP: empty_hop,
    EMPTY_PROXY: empty_with_proxy,
}


def served(measured: dict[str, list[dict]]) -> list[str]:
    """The table."""
    lines = ["| server | clients | answers/s | p50 ms | p99 ms | x one process | CPU ms an answer | MB | start s |"]
    lines.append("|---" * 9 + "|")
    for name in (ONE, RAY_ONE, RAY_TWO):
        rounds = measured[name]
        for clients in CLIENTS:
            rate, p50, p99 = (middle(column) for column in zip(*(one[clients] for one in rounds), strict=True))
            pairs = zip(rounds, measured[ONE], strict=True)
            ratio = middle([one[clients][0] / base[clients][0] for one, base in pairs])
            cost, memory, start = (middle([one[key] for one in rounds]) for key in ("cpu", "memory", "start"))
            about = f"{cost:.1f} | {memory:.0f} | {start:.1f}" if clients == ALL_CLIENTS else " | | "
            lines.append(f"| {name} | {clients} | {rate:.1f} | {p50:.0f} | {p99:.0f} | {ratio:.2f} | {about} |")
    failed = sum(one["failed"] for rounds in measured.values() for one in rounds)
    return [*lines, "", f"CPU is that at {ALL_CLIENTS} clients. Failed requests: {failed:g}."]


def hop_lines(measured: dict[str, list[dict]]) -> list[str]:
    """The CPU time of an answer, divided among the processes that a request passes."""
    lines = [f"CPU ms an answer, at {ALL_CLIENTS} clients, by the process that spends it:", ""]
    lines += ["| server | " + " | ".join(HOPS) + " | all | answers a core, % of one process |", "|---" * 7 + "|"]
    base = middle([one["cpu"] for one in measured[ONE]])
    for name, rounds in measured.items():
        hops = [middle([one["hops"][hop] for one in rounds]) for hop in HOPS]
        cost = middle([one["cpu"] for one in rounds])
        share = f"{100 * base / cost:.0f}" if name in (ONE, RAY_ONE, RAY_TWO) else ""
        lines.append(f"| {name} | {' | '.join(f'{hop:.1f}' for hop in hops)} | {cost:.1f} | {share} |")
    return [
        *lines,
        "",
        "The front of one process is that process. Rest: Ray's controller, its node processes and the keeper. An empty app "
        "reads the upload and finds nothing: what it costs is Ray's own.",
    ]


def pinned_lines(precision: str, rounds: int, seconds: float) -> list[str]:
    """One node on one core, and two nodes on a core each."""
    if len(os.sched_getaffinity(0)) < 2:
        return ["One node on one core against two on two: this machine has one core."]
    rates, costs = defaultdict(list), defaultdict(list)
    for turn in range(rounds):
        for nodes in (1, 2) if turn % 2 == 0 else (2, 1):
            rate, cost = pinned_point(precision, nodes, seconds)
            rates[nodes].append(rate)
            costs[nodes].append(cost)
            print(f"round {turn}, {nodes} pinned: {rate:.1f} answers/s, {cost:.1f} ms", flush=True)
    lines = [
        "Each node on one core of its own, with one replica:",
        "",
        "| nodes | answers/s | x one node | CPU ms an answer |",
    ]
    lines.append("|---" * 4 + "|")
    for nodes in (1, 2):
        ratio = middle([rate / one for rate, one in zip(rates[nodes], rates[1], strict=True)])
        lines.append(f"| {nodes} | {middle(rates[nodes]):.1f} | {ratio:.2f} | {middle(costs[nodes]):.1f} |")
    return lines


def pinned_point(precision: str, nodes: int, seconds: float) -> tuple[float, float]:
    """Answers a second and CPU ms an answer, of nodes with a core each. The client may use every core."""
    name, cluster = f"yolov3-tiny/openvino-{precision}", local_cluster.LocalCluster(nodes=nodes, cores=1, pinned=True)
    with cluster, scale.deploy(name, replicas=(nodes, nodes), port=0) as app:
        target = targets.Http(f"{app.url}/detect", (paths.IMAGES / PICTURE).read_bytes())
        loadtest.closed_loop(target, clients=2, seconds=3)  # warm
        before, run = cpu(), loadtest.closed_loop(target, ALL_CLIENTS, seconds)
        return run.rate, sum(spent(before, cpu(), len(run.answered)).values())


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
