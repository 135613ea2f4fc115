"""Measure what one request costs, and estimate the machines that a number of requests a second needs.

Cores, the network and the log's database each need a number of machines, and the largest number counts. The result is a
lower bound, for an even load. `queueing` predicts how long requests wait.
"""

import math
from dataclasses import dataclass

from labsupport.arguments import number
from labsupport.compute import loadtest, targets
from labsupport.compute.measurement import Machine, MeasurementFailed


@dataclass(frozen=True)
class Cost:
    """The cost of one request: seconds of CPU in all, bytes sent over the network, rows of the log.

    Raises ValueError for negative numbers and numbers that are not finite, and for no CPU at all.
    """

    cpu: float
    bytes: float
    rows: float = 1.0

    def __post_init__(self) -> None:
        number("cpu", self.cpu, 0, ends=False)
        number("bytes", self.bytes, 0)
        number("rows", self.rows, 0)


def usage(url: str, picture: bytes, clients: int = 4, seconds: float = 3) -> dict[str, float]:
    """Load a server with clients that each wait for their answers, and return what it answers and what that costs.

    The server must be a child process of this one, or several: all children count. The keys are "answers/s", "p50 ms",
    "p99 ms", "CPU ms an answer", "memory MB" (shared memory counts once) and "processes". Raises `MeasurementFailed` if
    no request was answered, and ValueError as `loadtest.closed_loop` does.
    """
    import psutil

    def cpu() -> float:
        return sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children(recursive=True))

    target = targets.Http(url, picture)
    loadtest.closed_loop(target, clients, seconds=min(1.0, seconds))  # warm
    before = cpu()
    run = loadtest.closed_loop(target, clients, seconds)
    if not len(run.answered):
        raise MeasurementFailed(f"{url}: no request was answered")
    spent, children = cpu() - before, psutil.Process().children(recursive=True)
    return {
        "answers/s": run.rate,
        "p50 ms": 1000 * run.quantile(0.5),
        "p99 ms": 1000 * run.quantile(0.99),
        "CPU ms an answer": 1000 * spent / len(run.answered),
        "memory MB": sum(child.memory_full_info().pss for child in children) / 1e6,
        "processes": len(children),
    }


@dataclass(frozen=True)
class Needs:
    """The machines and resources that a rate needs. Made by `needs`."""

    rate: float  # requests a second
    machines: int
    limit: str  # which resource asks for that many: "cores" or "network"
    gigabits: float  # a second, over all machines
    databases: int  # for the log
    dollars_per_hour: float  # of the machines, without the databases
    dollars_per_million: float  # requests


def needs(
    rate: float,
    cost: Cost,
    machine: Machine,
    link: float = 10e9,
    rows: float = 5_000,
    utilisation: float = 0.6,
) -> Needs:
    """Return how many machines answer `rate` requests a second, and what they cost.

    `link` is each machine's network in bits a second. `rows` is how many rows a second one database takes: by default
    about what a PostgreSQL took from one writer that shared two cores with it. Each resource is used up to
    `utilisation`, 0 to 1; the rest is for bursts, and for machines that fail. Raises ValueError for numbers that are
    not positive and finite.

    >>> plan = needs(1_000, Cost(cpu=0.024, bytes=200_000), Machine("16 cores", 16, 0.8))
    >>> plan.machines, plan.limit, plan.gigabits, plan.databases, round(plan.dollars_per_million, 2)
    (3, 'cores', 1.6, 1, 0.67)
    """
    for name, value in (("rate", rate), ("link", link), ("rows", rows), ("utilisation", utilisation)):
        number(name, value, 0, ends=False)
    number("utilisation", utilisation, 0, 1)
    bits = 8 * cost.bytes * rate
    count = {
        "cores": math.ceil(rate * cost.cpu / (machine.cores * utilisation)),
        "network": math.ceil(bits / (link * utilisation)),
    }
    limit = max(count, key=lambda name: count[name])
    dollars = count[limit] * machine.dollars_per_hour
    databases = math.ceil(cost.rows * rate / (rows * utilisation))
    return Needs(rate, count[limit], limit, bits / 1e9, databases, dollars, dollars / 3600 / rate * 1e6)
