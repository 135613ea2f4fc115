"""The queueing model against tables, exact results and a recursion of its own. Seeds are fixed, tolerances stated."""

import heapq
import math

import numpy as np
import pytest
from scipy import stats

from labsupport.compute import NoMachinesHelp, Overload, Server, erlang_c, machines_for, mean_wait
from labsupport.compute.queueing import REFUSED_AT_MOST, responses

MEAN = 0.02  # seconds


def exponential(count: int = 200_000) -> np.ndarray:
    """Service times whose distribution is exponential to within its quantiles: no sampling error."""
    return stats.expon.ppf((np.arange(count) + 0.5) / count) * MEAN


EXPONENTIAL = exponential()

# formulas


def waiting_share(slots: int, load: float) -> float:
    """Erlang's C written down as the sum over the states of the Markov chain, in logarithms."""
    states = [busy * math.log(load) - math.lgamma(busy + 1) for busy in range(slots)]
    last = slots * math.log(load) - math.lgamma(slots + 1) + math.log(slots / (slots - load))
    return math.exp(last) / (sum(map(math.exp, states)) + math.exp(last))


@pytest.mark.parametrize("slots", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("utilisation", [0.05, 0.5, 0.8, 0.99])
def test_erlang_c_is_the_sum_over_states(slots, utilisation):
    load = slots * utilisation
    assert erlang_c(slots, load) == pytest.approx(waiting_share(slots, load), rel=1e-9)


@pytest.mark.parametrize(
    ("slots", "load", "waits"),
    [(1, 0.7, 0.7), (2, 1.0, 1 / 3), (2, 1.6, 32 / 45), (3, 2.0, 4 / 9), (10, 6.0, 0.1013)],
)
def test_erlang_c_at_values_that_are_known(slots, load, waits):
    """One slot: the load. Two: load^2 / (2 + load). Ten slots at 6 erlangs: .10 on Erlang's curve."""
    assert erlang_c(slots, load) == pytest.approx(waits, rel=1e-3)


def test_erlang_c_does_not_overflow():
    assert 0 < erlang_c(1_000, 950) < 0.1


@pytest.mark.parametrize(
    ("slots", "load", "error"),
    [(2, 2.0, Overload), (2, 3.0, Overload), (0, 0.5, ValueError), (2, math.nan, ValueError)],
)
def test_erlang_c_refuses(slots, load, error):
    with pytest.raises(error):
        erlang_c(slots, load)


@pytest.mark.parametrize("service", [[MEAN], [0.01, 0.03], [0.001] * 9 + [0.191]])
def test_the_mean_wait_at_one_slot_is_pollaczek_and_khinchines(service):
    rate, service = 35.0, np.array(service)
    exact = rate * np.mean(service**2) / (2 * (1 - rate * service.mean()))
    assert mean_wait(rate, service, slots=1) == pytest.approx(exact)


# the simulation


def recursion(arrivals, work, slots) -> np.ndarray:
    """The same queue after Kiefer and Wolfowitz (1955): whoever comes takes the slot that is free first."""
    free, taken = [0.0] * slots, []
    for arrival, takes in zip(arrivals.tolist(), work.tolist(), strict=True):
        begins = max(arrival, free[0])
        heapq.heapreplace(free, begins + takes)
        taken.append(begins + takes - arrival)
    return np.array(taken)


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_slots_with_a_core_each_are_the_recursion(slots):
    random = np.random.default_rng(slots)
    arrivals = random.exponential(MEAN / slots / 0.9, 5_000).cumsum()
    work = random.gamma(2, MEAN / 2, 5_000)
    np.testing.assert_allclose(responses(arrivals, work, slots, slots), recursion(arrivals, work, slots), atol=1e-9)


def by_small_steps(arrivals, work, slots, cores, places, step=0.002) -> list[float]:
    """Sharing as one would do it by hand: in each small step everybody at work gets an equal share of the cores."""
    left, done, now = dict(enumerate(work)), {}, 0.0
    line: list[int] = []
    coming = list(enumerate(arrivals))
    while coming or line:
        while coming and coming[0][1] <= now:
            index, _ = coming.pop(0)
            if len(line) < places:
                line.append(index)
        for index in line[:slots]:
            left[index] -= step * min(1, cores / len(line[:slots]))
        now += step
        for index in [index for index in line if left[index] <= 0]:
            line.remove(index)
            done[index] = now - arrivals[index]
    return [done.get(index, math.inf) for index in range(len(arrivals))]


@pytest.mark.parametrize(("slots", "cores", "places"), [(1, 1, 3), (2, 1, 4), (3, 2.5, 6), (4, 1, 4)])
def test_shared_cores_and_refusals_are_what_one_gets_in_small_steps(slots, cores, places):
    random = np.random.default_rng(slots)
    arrivals, work = random.exponential(0.8 / cores, 60).cumsum(), random.uniform(0.2, 1.8, 60)
    slow = by_small_steps(arrivals.tolist(), work.tolist(), slots, cores, places)
    fast = responses(arrivals, work, slots, cores, places)
    assert np.isinf(fast).any() and np.isfinite(fast).any()
    np.testing.assert_allclose(fast, slow, atol=0.1)  # every request that ends wastes a part of a step


@pytest.mark.parametrize(("slots", "utilisation"), [(1, 0.5), (2, 0.8), (3, 0.7), (8, 0.9)])
def test_m_m_c_waits_as_erlang_says(slots, utilisation):
    """Mean wait and the share that waits; a wait is exponential, so the 99th percentile is known too. Within 5 and 8 %."""
    server = Server(EXPONENTIAL, slots)
    rate = utilisation * server.capacity
    _, times = server.simulate(rate, requests=200_000, seed=2)
    wait = erlang_c(slots, rate * MEAN) / (slots / MEAN - rate)
    assert times[20_000:].mean() == pytest.approx(wait + MEAN, rel=0.05)
    assert np.quantile(times[20_000:], 0.99) == pytest.approx(m_m_c_quantile(slots, rate, 0.99), rel=0.08)


def m_m_c_quantile(slots: int, rate: float, share: float) -> float:
    """Of the response time in M/M/c: the sum of an exponential service and a wait that is 0 or exponential, by bisection."""
    waits, service, drain = erlang_c(slots, rate * MEAN), 1 / MEAN, slots / MEAN - rate

    def above(t: float) -> float:
        if abs(drain - service) < 1e-9 * service:
            return math.exp(-service * t) * (1 + waits * service * t)
        both = (service * math.exp(-drain * t) - drain * math.exp(-service * t)) / (service - drain)
        return (1 - waits) * math.exp(-service * t) + waits * both

    low, high = 0.0, 100 * MEAN
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if above(middle) > 1 - share else (low, middle)
    return high


@pytest.mark.parametrize("utilisation", [0.3, 0.6, 0.8])
def test_m_d_1_has_crommelins_distribution(utilisation):
    """P(wait <= t) of a server that always takes the same time (Erlang, 1909; Crommelin, 1932). Within 0.01 everywhere."""
    server = Server([1.0], slots=1)
    _, times = server.simulate(utilisation, requests=200_000, seed=3)
    waits = times[10_000:] - 1.0
    for t in (0.0, 0.5, 1.0, 2.5, 4.0):
        terms = [
            math.exp(-utilisation * (k - t)) * (utilisation * (k - t)) ** k / math.factorial(k)
            for k in range(math.floor(t) + 1)
        ]
        assert np.mean(waits <= t + 1e-9) == pytest.approx((1 - utilisation) * math.fsum(terms), abs=0.01)


@pytest.mark.parametrize("service", [[MEAN], [0.001] * 9 + [0.191]], ids=["constant", "wild"])
def test_shared_by_all_a_core_serves_everybody_alike(service):
    """M/G/1 processor sharing: the mean response is mean service / (1 - load), whatever its distribution. Within 5 %."""
    server = Server(service, slots=1_000, cores=1)
    assert server.predict(0.7 / MEAN, requests=200_000).mean == pytest.approx(MEAN / 0.3, rel=0.05)


def test_with_exponential_times_more_slots_than_cores_change_the_mean_nothing():
    """The number in the system is then M/M/2's, whoever shares with whom. Within 5 %."""
    exact = MEAN + mean_wait(70.0, EXPONENTIAL, slots=2)
    for slots in (2, 3, 6):
        seen = Server(EXPONENTIAL, slots, cores=2).predict(70.0, requests=200_000, seed=4).mean
        assert seen == pytest.approx(exact, rel=0.05)


def test_a_full_house_refuses_as_erlang_b_says():
    """M/M/2/2: no queue. The share refused is (a^2 / 2) / (1 + a + a^2 / 2). Within 0.01."""
    load = 1.5
    refused = Server(EXPONENTIAL, slots=2, places=2).predict(load / MEAN, requests=100_000).refused
    assert refused == pytest.approx(load**2 / 2 / (1 + load + load**2 / 2), abs=0.01)


def test_littles_law():
    """The mean number in the system, counted at 100,000 moments, is rate x mean response. Within 3 %."""
    arrivals, times = Server([0.01, 0.03], slots=3, cores=2).simulate(80.0, requests=100_000, seed=5)
    moments = np.linspace(arrivals[1_000], arrivals[-1_000], 100_000)
    here = np.searchsorted(arrivals, moments) - np.searchsorted(np.sort(arrivals + times), moments)
    rate = len(arrivals) / arrivals[-1]
    assert here.mean() == pytest.approx(rate * times.mean(), rel=0.03)


QUANTILES = (np.arange(4_000) + 0.5) / 4_000


@pytest.mark.parametrize(
    ("slots", "load", "service"),
    [
        (3, 0.8, stats.gamma(4).ppf(QUANTILES)),
        (4, 0.8, np.ones(5)),
        (2, 0.6, np.ones(5)),
        (8, 0.6, stats.lognorm(1).ppf(QUANTILES)),
        (8, 0.8, stats.lognorm(1.5).ppf(QUANTILES)),
    ],
)
def test_kimura_comes_close_at_several_slots(slots, load, service):
    """Within 10 % of the mean wait of simulated M/G/c, three seeds."""
    server = Server(service, slots)
    rate = load * server.capacity
    waits = [server.predict(rate, requests=150_000, seed=seed).mean - service.mean() for seed in range(3)]
    assert mean_wait(rate, service, slots) == pytest.approx(np.mean(waits), rel=0.1)


@pytest.mark.parametrize("sigma", [0.3, 1.2])
def test_a_prediction_says_how_far_chance_moves_it(sigma):
    """The standard error beside the spread of 10 seeds; within a factor of two, for both are estimates."""
    server = Server(stats.lognorm(sigma).ppf(QUANTILES), slots=2)
    runs = [server.predict(0.8 * server.capacity, requests=100_000, seed=seed) for seed in range(10)]
    spread = np.std([run.p99 for run in runs], ddof=1)
    assert 0.5 < np.median([run.p99_error for run in runs]) / spread < 2


def test_machines_do_not_hang_on_one_seed():
    """At 300 requests a second 16 machines keep 200 ms: on three seeds 198 ms on average, and 202 on the first of them."""
    service = 0.05 * stats.lognorm(0.4).ppf(QUANTILES)
    server = Server(service, slots=3, cores=2)
    count = machines_for(server, 300, 0.2)
    means = [np.mean([server.predict(300 / n, seed=seed).p99 for seed in range(6)]) for n in (count, count - 1)]
    assert means[0] <= 0.2 * 1.02 and means[1] > 0.2 * 0.98


@pytest.mark.parametrize("seed", range(3))
def test_more_load_is_never_faster_and_more_slots_or_cores_never_slower(seed):
    service = np.random.default_rng(seed).gamma(3, MEAN / 3, 500)
    server = Server(service, slots=3, cores=2)
    by_rate = [server.predict(share * server.capacity, 20_000, seed) for share in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert sorted(row.p99 for row in by_rate) == [row.p99 for row in by_rate]
    assert sorted(row.mean for row in by_rate) == [row.mean for row in by_rate]
    rate = 0.9 * server.capacity
    assert Server(service, slots=3, cores=3).predict(rate, 20_000, seed).mean < by_rate[-1].mean
    assert Server(service, slots=4, cores=4).predict(rate, 20_000, seed).p99 < by_rate[-1].p99


def test_the_99th_percentile_hardly_depends_on_the_seed():
    server = Server(np.random.default_rng(1).gamma(50, MEAN / 50, 200), slots=3, cores=2.4)
    seen = [server.predict(0.8 * server.capacity, seed=seed).p99 for seed in range(8)]
    print(f"p99 at 80 % load: {np.mean(seen):.4f} s, from seed to seed {np.std(seen) / np.mean(seen):.1%}")
    assert np.std(seen) < 0.06 * np.mean(seen)


def test_a_replay_is_the_queue_for_just_these_arrivals():
    """Two bursts, constant work: everything can be counted. Four at once on one slot take 1, 2, 3 and 4 seconds."""
    seen = Server([1.0], slots=1).replay(np.r_[np.zeros(4), np.full(4, 100.0)])
    assert (seen.mean, seen.p50, seen.refused) == (2.5, 2.5, 0)
    assert Server([1.0], slots=1, places=2).replay(np.r_[np.zeros(4), np.full(4, 100.0)]).refused == 0.5
    with pytest.raises(ValueError, match=r"at least two|differ"):
        Server([1.0], slots=1).replay(np.zeros(1))


def test_a_replay_of_many_arrivals_is_the_long_run():
    server = Server([0.015, 0.025], slots=3, cores=2)
    arrivals, _ = server.simulate(70.0, requests=30_000, seed=11)
    long, short = server.predict(70.0), server.replay(arrivals)
    assert short.p50 == pytest.approx(long.p50, rel=0.03)
    assert short.p99 == pytest.approx(long.p99, rel=0.1)


# errors


def test_overload_is_named_unless_the_house_has_an_end():
    with pytest.raises(Overload, match="capacity"):
        Server([MEAN], slots=2).predict(100.0)
    bounded = Server([MEAN], slots=2, places=6).predict(200.0)
    assert bounded.utilisation == pytest.approx(2)
    assert bounded.refused == pytest.approx(0.5, abs=0.02)
    assert bounded.p99 <= 6 / 100 + MEAN + 1e-9


@pytest.mark.parametrize("service", [[], [0.0], [-1.0, 1.0], [math.nan], [[0.1]], [math.inf]])
def test_service_times_are_positive_seconds(service):
    for call in (lambda: Server(service, 2), lambda: mean_wait(1.0, service, 2)):
        with pytest.raises(ValueError, match="service times"):
            call()


@pytest.mark.parametrize("wrong", [{"slots": 0}, {"slots": 2, "cores": 0}, {"slots": 3, "places": 2}])
def test_a_server_has_slots_cores_and_places(wrong):
    with pytest.raises(ValueError, match=r"(slots|cores|places)=.*: give "):
        Server([MEAN], **wrong)


@pytest.mark.parametrize("rate", [0, -1, math.nan, math.inf])
def test_a_rate_is_positive(rate):
    with pytest.raises(ValueError, match="rate="):
        Server([MEAN], slots=1).simulate(rate)
    with pytest.raises(ValueError, match="rate="):
        machines_for(Server([MEAN], slots=1), rate, 1.0)


# machines


def test_machines_are_enough_and_one_less_is_not():
    server = Server(np.random.default_rng(2).gamma(20, MEAN / 20, 300), slots=3, cores=2, places=39)
    for rate, p99 in ((30, 0.2), (200, 0.2), (1_000, 0.06)):
        count = machines_for(server, rate, p99)
        assert server.predict(rate / count).p99 <= p99
        if count > 1:
            fewer = rate / (count - 1)
            assert server.utilisation(fewer) >= 1 or server.predict(fewer).p99 > p99


def test_machines_of_m_m_1_are_known():
    """The response time of M/M/1 is exponential: p99 = ln 100 / (1 / mean - rate). So each machine takes what is left."""
    server, p99 = Server(EXPONENTIAL, slots=1), 0.3
    each = 1 / MEAN - math.log(100) / p99  # 34.65 requests a second
    assert machines_for(server, 10 * each - 20, p99) == 10
    assert machines_for(server, 10 * each + 14, p99) == 11


def test_a_long_sample_of_service_times_counts_as_a_whole():
    """In order, and longer than the simulation: the slow ones at its end are drawn as well."""
    server = Server(np.r_[np.full(50_000, 0.01), np.full(50_000, 0.03)], slots=1)
    assert server.predict(1.0, requests=10_000).mean == pytest.approx(0.02, rel=0.05)


def test_refused_requests_do_not_make_a_server_fast_enough():
    server = Server([MEAN], slots=1, places=1)  # whoever is let in is done at once
    count = machines_for(server, 50, p99=0.03)
    assert server.predict(50 / count).refused <= REFUSED_AT_MOST < server.predict(50 / (count // 2)).refused


@pytest.mark.parametrize("p99", [0.01, MEAN])
def test_no_number_of_machines_makes_the_work_itself_faster(p99):
    with pytest.raises(NoMachinesHelp, match="alone on a machine"):
        machines_for(Server([MEAN], slots=2), 10.0, p99)


GOOD = {"service": [0.02, 0.03], "slots": 3, "cores": 2}


@pytest.mark.parametrize(
    "wrong",
    [
        *({"slots": slots} for slots in (0, 1.5, True, "3", math.nan, math.inf)),
        *({"cores": cores} for cores in (0, -1, "2", math.nan, math.inf)),
        *({"places": places} for places in (2, 3.5, "9", math.nan, math.inf)),
        *({"service": service} for service in (3, {"a": 1}, [1j], ["1"], [None, 1], [[1, 2]], np.ones(3, "m8[ns]"))),
        {"service": np.ma.array([0.02, 9.0], mask=[False, True])},
    ],
)
def test_a_server_that_makes_no_sense_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Server(**GOOD | wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": None},
        {"rate": True},
        {"rate": "40"},
        {"requests": 0},
        {"requests": 1.5},
        {"requests": None},
        {"seed": -1},
    ],
)
def test_a_simulation_that_makes_no_sense_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        Server(**GOOD).predict(**{"rate": 40} | wrong)


@pytest.mark.parametrize("arrivals", [None, 3, ["a", "b"], [1, 0], [math.nan, 1], [0, math.inf], [5, 5]])
def test_times_that_are_none_are_not_replayed(arrivals):
    with pytest.raises(ValueError, match=r"^arrivals"):
        Server(**GOOD).replay(arrivals)
