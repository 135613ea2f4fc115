"""Generate load for a server: at fixed times, without waiting for answers (open loop), or one after the other (closed
loop).

Real users do not wait for each other. An open loop sends at the times of a Poisson process, even if earlier answers are
missing, and measures latency from the time at which a request should have been sent. In a closed loop clients wait for
their answers. While the server is blocked they send nothing, so the longest waits are never measured. This error is
called coordinated omission (Tene, "How NOT to Measure Latency", 2013; Schroeder, Wierman and Harchol-Balter, "Open
Versus Closed: A Cautionary Tale", 2006).

A run is limited in time and in number of requests. Load only your own servers: this module does not check the address.
"""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from labsupport.arguments import number
from labsupport.compute.targets import ANSWERED, Target

MAX_REQUESTS = 20_000  # of one run


class TooMuchLoad(ValueError):
    """Raised for more requests than one run may send."""


@dataclass(frozen=True)
class Run:
    """The latencies and outcomes of the requests of one run, in the order in which they ended.

    >>> from labsupport.compute.targets import REFUSED
    >>> run = Run(2.0, np.array([0.1, 0.3, 0.0]), np.array([ANSWERED, ANSWERED, REFUSED]))
    >>> run.rate, round(run.quantile(0.5), 3), round(run.share(REFUSED), 3)
    (1.0, 0.2, 0.333)
    """

    seconds: float  # from the start to the last answer
    latencies: np.ndarray  # (N,) seconds, from when a request should have been sent to its answer
    outcomes: np.ndarray  # (N,) ANSWERED, REFUSED or FAILED

    @property
    def answered(self) -> np.ndarray:
        """Return the latencies of the answered requests, in seconds."""
        latencies: np.ndarray = self.latencies[self.outcomes == ANSWERED]
        return latencies

    @property
    def rate(self) -> float:
        """Return the answers a second."""
        return len(self.answered) / self.seconds

    def quantile(self, share: float) -> float:
        """Return the latency, in seconds, that this share (0 to 1) of the answers does not exceed; NaN if nothing was
        answered.
        """
        return float(np.quantile(self.answered, share)) if len(self.answered) else float("nan")

    def share(self, outcome: str) -> float:
        """Return the share of all requests that had this outcome: 0 to 1."""
        return float(np.mean(self.outcomes == outcome)) if len(self.outcomes) else 0.0


def arrivals(rate: float, seconds: float, seed: int = 0) -> np.ndarray:
    """Return the times, in seconds, at which independent users send requests: a Poisson process of `rate` a second.

    Raises ValueError for a rate or a time that is not positive, and `TooMuchLoad` beyond `MAX_REQUESTS`.

    >>> times = arrivals(rate=100, seconds=10, seed=1)
    >>> 900 < len(times) < 1100, bool((np.diff(times) > 0).all())
    (True, True)
    """
    rate, seconds = number("rate", rate, 0, ends=False), number("seconds", seconds, 0, ends=False)
    seed = number("seed", seed, 0, whole=True)
    if rate * seconds > MAX_REQUESTS:
        raise TooMuchLoad(f"{rate * seconds:,.0f} requests: send at most {MAX_REQUESTS:,}, so for a shorter time")
    random = np.random.default_rng(seed)
    # given how many come, their times are independent and uniform
    return np.sort(random.uniform(0, seconds, random.poisson(rate * seconds)))


def open_loop(target: Target, rate: float, seconds: float, seed: int = 0) -> Run:
    """Send `rate` requests a second for `seconds`, at the times of `arrivals`, and wait for the last answer.

    Raises what `arrivals` raises.

    >>> from labsupport.compute.targets import Function
    >>> run = open_loop(Function(lambda: None), rate=200, seconds=0.1)
    >>> set(run.outcomes.tolist())
    {'answered'}
    """
    return _run(opened(target, arrivals(rate, seconds, seed)))


def closed_loop(target: Target, clients: int, seconds: float) -> Run:
    """Run `clients` in parallel for `seconds`. Each sends a request, waits for the answer, and sends the next.

    Raises ValueError for less than one client or a time that is not positive.

    >>> from labsupport.compute.targets import Function
    >>> closed_loop(Function(lambda: None), clients=2, seconds=0.01).share(ANSWERED)
    1.0
    """
    clients, seconds = (
        number("clients", clients, 1, MAX_REQUESTS, whole=True),
        number("seconds", seconds, 0, ends=False),
    )
    return _run(closed(target, clients, seconds))


async def opened(target: Target, times: np.ndarray) -> Run:
    """`open_loop` as a coroutine, at these times (N,) in seconds."""
    loop = asyncio.get_running_loop()
    seen: list[tuple[float, str]] = []
    started = loop.time()

    async def ask(intended: float) -> None:
        outcome = await target.send()
        seen.append((loop.time() - intended, outcome))

    async with asyncio.TaskGroup() as group:
        for time in times.tolist():
            # who is late sends at once, and its latency counts from when it was due
            await asyncio.sleep(max(0.0, started + time - loop.time()))
            group.create_task(ask(started + time))
    return await _ended(target, loop.time() - started, seen)


async def closed(target: Target, clients: int, seconds: float) -> Run:
    """`closed_loop` as a coroutine."""
    loop = asyncio.get_running_loop()
    seen: list[tuple[float, str]] = []
    started = loop.time()

    async def client() -> None:
        while (sent := loop.time()) < started + seconds and len(seen) < MAX_REQUESTS:
            outcome = await target.send()
            seen.append((loop.time() - sent, outcome))

    await asyncio.gather(*[client() for _ in range(clients)])
    return await _ended(target, loop.time() - started, seen)


async def _ended(target: Target, seconds: float, seen: list[tuple[float, str]]) -> Run:
    await target.close()
    latencies, outcomes = zip(*seen, strict=True) if seen else ((), ())
    return Run(seconds, np.array(latencies, float), np.array(outcomes, str))


def _run(run: Coroutine[Any, Any, Run]) -> Run:
    """Run the coroutine on a new thread, because in a notebook an event loop runs already."""
    with ThreadPoolExecutor(1) as pool:
        result: Run = pool.submit(asyncio.run, run).result()
        return result
