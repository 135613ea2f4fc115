"""Predict how long requests wait at a server with a few slots: formulas from queueing theory, and a simulation.

Requests arrive at random (a Poisson process), wait in one queue for a slot, and are processed. Utilisation is the share
of a server's capacity that is requested. As it nears 1 the wait grows without limit, and the 99th percentile long
before the mean. Little's law (1961) always holds: requests in the system = rate x mean response time.

The formulas assume slots that do not disturb each other. Our slots share cores, and service times are measured. So
predictions come from a simulation of the queue, request by request, in virtual time.
"""

import heapq
import math
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from labsupport.arguments import number, shown
from labsupport.tabular import float_column

# in a simulation. At 80 % load the 99th percentile then moves from seed to seed by some 3 % with lognormal service times of
# sigma 0.3, and by 11 % with 1.2; at 95 % load by 24 %. `Prediction.p99_error` says how much for the case at hand.
REQUESTS = 100_000
BATCHES = 10  # stretches of a simulation, beside each other: how far they are apart says how sure the percentile is
UNSURE = 3  # standard errors: a percentile closer than this to what is promised is simulated twice more
DRAWS = 20  # of service times for the same arrivals
WARM_UP = 0.1  # of them: a simulation starts with an empty queue, and these requests do not count
REFUSED_AT_MOST = 0.01  # of all requests: who is refused was not answered within the 99th percentile either
MOST_MACHINES = MOST_SLOTS = 1_000_000
MOST_REQUESTS = 100_000_000


class Overload(ValueError):
    """Raised if the load exceeds the server's capacity, so that the queue would grow without limit."""


class NoMachinesHelp(ValueError):
    """Raised if a request alone takes longer than the promised time, for any number of machines."""


class Prediction(NamedTuple):
    """The predicted behaviour of a server at some rate. Times of answered requests, in seconds; shares of 0 to 1."""

    utilisation: float
    mean: float
    p50: float
    p99: float
    refused: float
    p99_error: float  # standard error of p99, from batches of the simulation (batch means)


def erlang_c(slots: int, load: float) -> float:
    """Return the share of requests that have to wait, 0 to 1, in an M/M/c queue (Erlang, 1917).

    `load` is the rate times the mean service time, in erlangs: the mean number of busy slots. Computed by the
    recurrence for Erlang's B, which never overflows. Raises `Overload` unless the load is below the slots, and
    ValueError below 0.

    >>> round(erlang_c(slots=2, load=1.6), 3), round(erlang_c(slots=1, load=0.8), 3)
    (0.711, 0.8)
    """
    slots, load = number("slots", slots, 1, MOST_SLOTS, whole=True), number("load", load, 0)
    if load >= slots:
        raise Overload(f"{load:.3g} erlangs on {slots} slots: the load has to stay below the number of slots")
    blocked = 1.0
    for busy in range(1, slots + 1):
        blocked = load * blocked / (busy + load * blocked)
    return blocked / (1 - load / slots * (1 - blocked))


def mean_wait(rate: float, service: Sequence[float] | np.ndarray, slots: int) -> float:
    """Return the mean time in the queue, in seconds, of an M/G/c queue, after Kimura (1986).

    `service` (N,) are service times in seconds. The waits of M/M/c (Erlang) and of M/D/c (Cosmetatos, 1976, no more
    than light traffic allows) are averaged harmonically, weighted by the squared coefficient of variation of the
    service times. So a server with constant service times waits about half as long as one with exponential times. The
    result is exact for one slot (Pollaczek, 1930; Khinchine, 1932) and for exponential times. Otherwise it is an
    approximation: within 10 % of simulations with 2 to 8 slots at 50 to 80 % load, for constant times and lognormal
    ones up to sigma 1.5. At lower loads the relative error grows while the waits vanish. It is for the mean, not for
    the 99th percentile. Raises as `erlang_c` and `Server` do.

    >>> mean_wait(rate=8, service=[0.1], slots=1)  # constant: half of what exponential times would wait, 0.4 s
    0.2
    """
    times, rate = _checked(service), number("rate", rate, 0, ends=False)
    mean = float(times.mean())
    variation = float(times.var()) / mean**2
    exponential = erlang_c(slots, rate * mean) / (slots / mean - rate)
    load = rate * mean / slots
    extra = (1 - load) * (slots - 1) * (math.sqrt(4 + 5 * slots) - 2) / (16 * load * slots)
    extra = min(extra, (slots - 1) / (slots + 1))  # M/D/c waits (1 + extra) / 2 of what M/M/c does
    return exponential * (1 + variation) * (1 + extra) / (2 * (1 + variation * extra))


class Server:
    """A server with `slots` slots that share `cores` cores, and a queue in front of them.

    `service` (N,) are times in seconds that one request takes alone on the machine. Up to `cores` busy slots run at
    full speed; if k > cores are busy, each runs at cores / k of it. If `cores >= slots`, slots never slow each other
    (M/G/c). This is limited processor sharing (Avi-Itzhak and Halfin, 1988). `cores` need not be whole: by Little's law
    it is the highest measured rate, times the mean service time. `places` is the most requests in the server, processed
    and waiting; requests beyond it are refused. None is no limit. Raises ValueError for service times that are not
    positive, for less than one slot, and for fewer places than slots.

    >>> server = Server([0.02, 0.03], slots=3, cores=2)
    >>> server.capacity, server.utilisation(rate=40)
    (80.0, 0.5)
    >>> busy, busier = server.predict(rate=40), server.predict(rate=72)
    >>> bool(busy.p99 < 0.08 < busier.p99)
    True
    """

    def __init__(
        self, service: Sequence[float] | np.ndarray, slots: int, cores: float | None = None, places: int | None = None
    ) -> None:
        self.service = _checked(service)
        self.slots = number("slots", slots, 1, MOST_SLOTS, whole=True)
        self.cores = self.slots if cores is None else number("cores", cores, 0, ends=False)
        self.places = None if places is None else number("places", places, self.slots, whole=True)

    @property
    def capacity(self) -> float:
        """Return the most requests a second that the server can answer."""
        return float(min(self.slots, self.cores) / self.service.mean())

    def utilisation(self, rate: float) -> float:
        """Return the share of the capacity that `rate` requests a second need: above 1 the server cannot keep up."""
        return rate / self.capacity

    def simulate(self, rate: float, requests: int = REQUESTS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return the arrival times of requests (N,) and how long each took (N,), both in seconds, infinite for refused
        ones.

        The same seed draws the same users, who come faster at a higher rate. Raises ValueError for a rate that is not
        positive, and `Overload` if without a limit on places the rate is not below the capacity.
        """
        rate, seed = number("rate", rate, 0, ends=False), number("seed", seed, 0, whole=True)
        requests = number("requests", requests, 1, MOST_REQUESTS, whole=True)
        if self.places is None and rate >= self.capacity:
            raise Overload(f"{rate:.4g} requests a second at a capacity of {self.capacity:.4g}: the queue has no end")
        random = np.random.default_rng(seed)
        arrivals = random.exponential(size=requests).cumsum() / rate
        return arrivals, self._answer(arrivals, random)

    def predict(self, rate: float, requests: int = REQUESTS, seed: int = 0) -> Prediction:
        """Return the response times in the long run at `rate` requests a second. Raises as `simulate` does."""
        _, times = self.simulate(rate, requests, seed)
        return _summary(self.utilisation(rate), times[int(WARM_UP * requests) :])

    def replay(self, arrivals: np.ndarray, seed: int = 0) -> Prediction:
        """Return the response times of requests that come at these times (N,), in seconds and in order, to an idle server.

        Compare the result with a measured run. With some hundred random arrivals, which may come in clusters, the 99th
        percentile may be far from that in the long run. Only the service times are drawn here, `DRAWS` times. Raises
        ValueError for fewer than two requests.

        >>> evenly = np.arange(100) / 50
        >>> round(Server([0.02], slots=1).replay(evenly).p99, 6)  # nobody meets anybody
        0.02
        """
        arrivals = float_column("arrivals", arrivals).astype(float)
        if len(arrivals) < 2 or not np.isfinite(arrivals).all() or (np.diff(arrivals) < 0).any():
            raise ValueError(f"arrivals={shown(arrivals)}: give at least two times in seconds, in order")
        if arrivals[0] == arrivals[-1]:
            raise ValueError(f"arrivals={shown(arrivals)}: all at once have no rate: give times that differ")
        random = np.random.default_rng(number("seed", seed, 0, whole=True))
        rate = (len(arrivals) - 1) / (arrivals[-1] - arrivals[0])
        drawn = [self._answer(arrivals, random) for _ in range(DRAWS)]
        return _summary(self.utilisation(rate), np.concatenate(drawn))

    def _answer(self, arrivals: np.ndarray, random: np.random.Generator) -> np.ndarray:
        # each service time as often as the others, to within one: less left to chance than with draws
        work = random.permutation(np.resize(random.permutation(self.service), len(arrivals)))
        return responses(arrivals, work, self.slots, self.cores, self.places)

    def __repr__(self) -> str:
        return f"<Server of {self.slots} slots on {self.cores:.3g} cores, {self.capacity:.3g} requests/s>"


def responses(
    arrivals: np.ndarray, work: np.ndarray, slots: int, cores: float, places: int | None = None
) -> np.ndarray:
    """Return how long each request takes (N,), from its arrival to its answer, in seconds; infinite for refused ones.

    `arrivals` (N,) are in order, `work` (N,) is how long each takes alone; slots, cores and places as in `Server`.
    First come, first served. All requests in slots advance at the same speed, so one number, `progress`, describes it:
    a request that starts at progress p with work w is done at p + w.

    >>> responses(np.array([0.0, 0.0, 1.0]), np.array([2.0, 2.0, 1.0]), slots=1, cores=1, places=2).tolist()
    [2.0, 4.0, inf]
    >>> responses(np.array([0.0, 0.0]), np.array([2.0, 2.0]), slots=2, cores=1).tolist()
    [4.0, 4.0]
    """
    limit = math.inf if places is None else places
    came, takes = np.asarray(arrivals, float).tolist(), np.asarray(work, float).tolist()
    speed = [1.0] + [min(1.0, cores / busy) for busy in range(1, slots + 1)]
    taken = [math.inf] * len(came)
    busy: list[tuple[float, int]] = []  # a heap: (progress at which it ends, index)
    waiting: deque[int] = deque()
    now, progress = 0.0, 0.0
    for index, arrival in enumerate([*came, math.inf]):
        while busy and (end := now + (busy[0][0] - progress) / speed[len(busy)]) <= arrival:
            now, (progress, ready) = end, heapq.heappop(busy)
            taken[ready] = now - came[ready]
            if waiting:
                heapq.heappush(busy, (progress + takes[waiting[0]], waiting.popleft()))
        if index == len(came):
            break
        now, progress = arrival, progress + (arrival - now) * speed[len(busy)]
        if len(busy) < slots:
            heapq.heappush(busy, (progress + takes[index], index))
        elif len(busy) + len(waiting) < limit:
            waiting.append(index)
    return np.array(taken)


def _summary(utilisation: float, times: np.ndarray) -> Prediction:
    answered = times[np.isfinite(times)]
    middle, high = np.quantile(answered, [0.5, 0.99]).tolist()
    each = [np.quantile(batch, 0.99) for batch in np.array_split(answered, BATCHES) if len(batch)]
    error = float(np.std(each, ddof=1)) / math.sqrt(len(each)) if len(each) > 1 else math.nan
    return Prediction(float(utilisation), float(answered.mean()), middle, high, 1 - len(answered) / len(times), error)


def machines_for(server: Server, rate: float, p99: float) -> int:
    """Return how many machines such as `server` answer `rate` requests a second with a 99th percentile within `p99`
    seconds.

    Requests are split at random between the machines, each with its own queue, as by a load balancer that does not know
    which machine is free. A better load balancer needs the same number or fewer. At most 1 % of the requests may be
    refused. The number is found by simulation. If the 99th percentile is close to `p99`, three simulations are
    averaged, and the result may still be one machine too many or too few by chance. Raises `NoMachinesHelp` if a
    request alone takes longer than `p99`, and ValueError for numbers that are not positive.

    >>> server = Server([0.02, 0.03], slots=3, cores=2)
    >>> machines_for(server, rate=200, p99=0.1)
    4
    >>> machines_for(server, rate=200, p99=0.02)
    Traceback (most recent call last):
    labsupport.compute.queueing.NoMachinesHelp: alone on a machine, 1 request in 100 takes 0.03 s or more: promise more than 0.03 s
    """  # noqa: E501
    if not isinstance(server, Server):
        raise ValueError(f"server={shown(server)}: give a Server")
    rate, p99 = number("rate", rate, 0, ends=False), number("p99", p99, 0, ends=False)

    def enough(machines: int) -> bool:
        if server.utilisation(rate / machines) >= 1:
            return False
        runs = [server.predict(rate / machines)]
        if abs(runs[0].p99 - p99) < UNSURE * runs[0].p99_error:
            runs += [server.predict(rate / machines, seed=seed) for seed in (1, 2)]
        high, refused = (float(np.mean([getattr(run, name) for run in runs])) for name in ("p99", "refused"))
        return high <= p99 and refused <= REFUSED_AT_MOST

    high = 1
    if (alone := float(np.quantile(server.service, 0.99))) < p99:
        while high < MOST_MACHINES and not enough(high):
            high *= 2
    if alone >= p99 or high >= MOST_MACHINES:
        longest = f"1 request in 100 takes {alone:.2g} s or more"
        raise NoMachinesHelp(f"alone on a machine, {longest}: promise more than {max(alone, p99):.2g} s")
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _checked(service: Sequence[float] | np.ndarray) -> np.ndarray:
    try:
        times = float_column("service", service).astype(float)
    except ValueError as error:
        raise ValueError(f"service times: {error}: give at least one, in seconds, all above 0") from None
    if not len(times) or not (np.isfinite(times) & (times > 0)).all():
        raise ValueError("service times: give at least one, in seconds, all above 0 (NaN is not)")
    return times
