"""Load in virtual time: nothing sleeps, and what will be measured is known. HTTP against a server of our own."""

import asyncio
import contextlib
import selectors
import sys
import threading

import numpy as np
import pytest

from labsupport import paths
from labsupport.compute import Server, erlang_c, exchange, upload
from labsupport.compute.loadtest import MAX_REQUESTS, Run, TooMuchLoad, arrivals, closed, closed_loop, open_loop, opened
from labsupport.compute.queueing import responses
from labsupport.compute.targets import ANSWERED, FAILED, REFUSED, Function, Http

# virtual time: where others would wait for a timer, this loop's clock jumps to it


class Jumping(selectors.DefaultSelector):
    now = 0.0

    def select(self, timeout=None):
        ready = super().select(0)
        if not ready and timeout:
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = Jumping()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def virtually(coroutine):
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coroutine)


class Simulated:
    """A server with slots that take the times of a list, one after the other; the clock stands still for all else."""

    def __init__(self, work, slots=1, places=np.inf, stalls=()) -> None:
        self.work, self.slots, self.places, self.stalls = iter(work), asyncio.Semaphore(slots), places, stalls
        self.inside, self.sent, self.closed = 0, 0, False

    async def send(self) -> str:
        self.sent += 1
        if self.inside >= self.places:
            return REFUSED
        self.inside += 1
        takes = next(self.work)
        async with self.slots:
            now = asyncio.get_running_loop().time()
            await asyncio.sleep(max([takes, *(end - now for start, end in self.stalls if start <= now < end)]))
        self.inside -= 1
        return ANSWERED

    async def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(("slots", "places"), [(1, None), (3, None), (2, 4)])
def test_the_open_loop_measures_what_the_queue_does(slots, places):
    """Request by request the response times of the queueing recursion, which knows nothing of this code."""
    times = arrivals(rate=100, seconds=20, seed=slots)
    work = np.random.default_rng(slots).gamma(4, 0.009 * slots / 4, len(times))
    target = Simulated(work, slots, places or np.inf)
    run = virtually(opened(target, times))
    refused = run.outcomes == REFUSED
    if places:  # the work of who is refused is nobody's: the next one gets it, so only the counts compare
        assert 0.01 < refused.mean() < 0.9
    else:
        exact = responses(times, work, slots, slots)
        np.testing.assert_allclose(np.sort(run.latencies), np.sort(exact), atol=1e-6)
    assert len(run.latencies) == len(times) and target.closed


@pytest.mark.parametrize("load", [0.2, 0.5, 0.8])
def test_the_model_holds_for_a_server_it_was_not_told_of(load):
    """The claim without a machine's noise: calibrated on requests one by one, its p99 is within 10 % of the measured."""
    random = np.random.default_rng(7)

    def work(count):
        return random.choice([0.018, 0.02, 0.022, 0.05], count, p=[0.4, 0.4, 0.17, 0.03])

    alone = virtually(opened(Simulated(work(300), slots=2), np.arange(300) * 0.2))
    model = Server(alone.answered, slots=2)
    times = arrivals(load * model.capacity, seconds=90, seed=8)
    run = virtually(opened(Simulated(work(len(times)), slots=2), times))
    said = model.replay(times)
    print(f"load {load:.0%}: p99 measured {run.quantile(0.99) * 1000:.1f} ms, model {said.p99 * 1000:.1f} ms")
    assert said.p50 == pytest.approx(run.quantile(0.5), rel=0.1)
    assert said.p99 == pytest.approx(run.quantile(0.99), rel=0.1)


def test_the_share_that_waits_is_erlangs():
    """M/M/2 through the load generator: a latency above the work means a wait. Within 0.03."""
    times = arrivals(rate=80, seconds=80, seed=9)
    work = np.random.default_rng(9).exponential(0.015, len(times))
    run = virtually(opened(Simulated(work, slots=2), times))
    exact = responses(times, work, 2, 2)
    assert np.mean(exact > work + 1e-9) == pytest.approx(erlang_c(2, 80 * 0.015), abs=0.03)
    assert run.latencies.mean() == pytest.approx(exact.mean(), rel=1e-6)


STALL = (10.0, 12.0)  # seconds: the server stands still


def test_a_closed_loop_hides_a_stall_and_an_open_loop_does_not():
    """10 ms a request, and 2 s of nothing in 20 s. One client meets it once; of users at random, one in ten does."""
    alone = virtually(closed(Simulated([0.01] * 3_000, stalls=[STALL]), clients=1, seconds=20))
    assert alone.quantile(0.99) == pytest.approx(0.01)
    assert np.sum(alone.latencies > 0.1) == 1
    users = virtually(opened(Simulated([0.01] * 3_000, stalls=[STALL]), arrivals(50, 20, seed=3)))
    assert users.quantile(0.99) > 1.8
    assert np.mean(users.latencies > 0.1) > 0.1


def test_latency_counts_from_the_intended_arrival_even_if_sending_is_late():
    class Late(Simulated):
        async def send(self):
            asyncio.get_running_loop()._clock.now += 1.0  # everything in this process stood still, the sender too
            return ANSWERED

    run = virtually(opened(Late([]), np.array([0.0, 0.1, 0.2])))
    np.testing.assert_allclose(run.latencies, [1.0, 1.9, 2.8])


def test_a_closed_loop_never_has_more_under_way_than_clients():
    target = Simulated([0.05] * 1_000, slots=2, places=4)
    run = virtually(closed(target, clients=4, seconds=5))
    assert run.share(ANSWERED) == 1
    assert run.rate == pytest.approx(40, rel=0.03)  # two slots, 50 ms
    assert run.answered.mean() == pytest.approx(4 / run.rate, rel=0.03)  # Little's law


def test_a_closed_loop_ends_when_it_has_sent_enough():
    class Free(Simulated):
        async def send(self):
            self.sent += 1
            return ANSWERED

    target = Free([])
    virtually(closed(target, clients=2, seconds=1e9))
    assert target.sent == MAX_REQUESTS


def test_arrivals_are_a_poisson_process():
    """Counts have the variance of their mean, gaps that of their mean squared. 400 windows: within four standard errors."""
    times = arrivals(rate=40, seconds=400, seed=1)
    counts = np.histogram(times, bins=400, range=(0, 400))[0]
    assert counts.mean() == pytest.approx(40, abs=4 * np.sqrt(40 / 400))
    assert counts.var() / counts.mean() == pytest.approx(1, abs=4 * np.sqrt(2 / 400))
    gaps = np.diff(times)
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.05)


def test_how_many_come_is_random_too():
    """Poisson: over 1,000 seeds the variance is the mean. Within four standard errors."""
    counts = [len(arrivals(rate=40, seconds=1, seed=seed)) for seed in range(1_000)]
    assert np.var(counts) / np.mean(counts) == pytest.approx(1, abs=4 * np.sqrt(2 / 1_000))


def test_only_answers_have_a_latency_that_counts():
    run = Run(2.0, np.array([0.1, 9.0, 8.0, 0.3]), np.array([ANSWERED, REFUSED, FAILED, ANSWERED]))
    assert run.answered.tolist() == [0.1, 0.3] and run.rate == 1 and run.quantile(1.0) == 0.3
    assert (run.share(REFUSED), run.share(FAILED)) == (0.25, 0.25)


@pytest.mark.parametrize(("rate", "seconds"), [(0, 1), (-1, 1), (10, 0), (float("nan"), 1), (10, float("inf"))])
def test_load_needs_a_rate_and_a_time(rate, seconds):
    with pytest.raises(ValueError, match=r"above 0|finite"):
        open_loop(Function(print), rate, seconds)


def test_too_much_is_refused_before_anything_is_sent():
    with pytest.raises(TooMuchLoad, match="at most 20,000"):
        arrivals(rate=10_001, seconds=2)
    for wrong in ((0, 1.0), (1, 0.0), (1, float("inf"))):
        with pytest.raises(ValueError, match=r"(clients|seconds)=.*: give "):
            closed_loop(Function(print), *wrong)


def test_a_run_without_answers_has_no_quantile():
    nothing = Run(1.0, np.array([]), np.array([], str))
    assert np.isnan(nothing.quantile(0.5)) and nothing.share(REFUSED) == 0 and nothing.rate == 0


def test_a_function_that_raises_has_failed_and_slots_bound_how_many_run():
    most, here, lock = 0, 0, threading.Lock()

    def work():
        nonlocal most, here
        with lock:
            here += 1
            most = max(most, here)
        sum(range(20_000))
        with lock:
            here -= 1

    run = open_loop(Function(work, slots=2), rate=500, seconds=0.3)
    assert run.share(ANSWERED) == 1 and 1 <= most <= 2
    assert closed_loop(Function(lambda: 1 / 0), clients=1, seconds=0.01).share(FAILED) == 1


# HTTP


class Scripted:
    """A server on a thread that gives the answers of a script, whatever it is asked, and keeps what it was sent."""

    def __init__(self, *script: bytes) -> None:
        self.script, self.seen, self.connections = iter(script), [], 0
        self.started, self.loop = threading.Event(), asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_until_complete, args=[self.serve()])

    async def serve(self) -> None:
        self.over = asyncio.Event()
        server = await asyncio.start_server(self.answer, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/predict?model=a"
        self.started.set()
        await self.over.wait()
        server.close()
        await server.wait_closed()

    async def answer(self, reader, writer) -> None:
        self.connections += 1
        with contextlib.suppress(EOFError, OSError, StopIteration):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(int(head.split(b"Content-Length: ")[1]))
                self.seen.append(head + body)
                answer = next(self.script)
                writer.write(answer)
                await writer.drain()
                if not answer or b"close" in answer or isinstance(answer, Leaving):
                    break
        writer.close()

    def __enter__(self):
        self.thread.start()
        self.started.wait()
        return self

    def __exit__(self, *error) -> None:
        self.loop.call_soon_threadsafe(self.over.set)
        self.thread.join()
        self.loop.close()


FINE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
BROKEN = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
NONSENSE = b"SMTP ready\r\n\r\n"
CUT = b""


class Leaving(bytes):
    """An answer after which the server hangs up without a word, as when nothing came for a while."""


def one_by_one(target, requests: int) -> list[str]:
    async def send():
        outcomes = [await target.send() for _ in range(requests)]
        await target.close()
        return outcomes

    return asyncio.run(send())


def test_what_a_server_answers_and_how_it_is_counted():
    with Scripted(FINE, CHUNKED, BUSY, BROKEN, NONSENSE, CUT, FINE) as server:
        outcomes = one_by_one(Http(server.url, b"JPEG"), 7)
    assert outcomes == [ANSWERED, ANSWERED, REFUSED, FAILED, FAILED, FAILED, ANSWERED]
    assert server.connections == 4  # a new one after a refusal, after nonsense, and after a cut
    assert server.seen == [upload(b"JPEG", "picture.jpg", "/predict?model=a")] * 7


UNTIL_IT_CLOSES = Leaving(b"HTTP/1.0 200 OK\r\n\r\nok")
EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"
TIGHT = b"HTTP/1.1 200\r\ncontent-length:2\r\n\r\nok"
EXTENDED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nok\r\n0\r\nDigest: x\r\n\r\n"
SHORT = Leaving(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok")


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (UNTIL_IT_CLOSES, ANSWERED),
        (Leaving(b"HTTP/1.1 503 Busy\r\n\r\n"), REFUSED),
        (EMPTY, FAILED),
        (TIGHT, ANSWERED),
        (EXTENDED, ANSWERED),
        (SHORT, FAILED),
        (Leaving(b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nok"), FAILED),
        (Leaving(b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok"), FAILED),
        (Leaving(b"HTTP/1.1\r\n\r\n"), FAILED),
        (Leaving(b"HTTP/1.1 200 OK\r\nX: " + b"x" * (3 << 20)), FAILED),
        (Leaving(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), FAILED),
    ],
)
def test_answers_of_other_servers_are_counted_and_the_run_goes_on(answer, outcome):
    with Scripted(answer, FINE) as server:
        assert one_by_one(Http(server.url, b"JPEG"), 2) == [outcome, ANSWERED]


def test_work_that_would_end_the_program_has_failed():
    assert closed_loop(Function(sys.exit), clients=1, seconds=0.01).share(FAILED) == 1


def test_a_connection_that_the_server_gave_up_is_not_used_again():
    async def twice(target):
        first = await target.send()
        async with asyncio.timeout(10):
            while not target._idle[0][0].at_eof():
                await asyncio.sleep(0.001)
        second = await target.send()
        await target.close()
        return first, second

    with Scripted(Leaving(FINE), FINE) as server:
        assert asyncio.run(twice(Http(server.url, b"JPEG"))) == (ANSWERED, ANSWERED)
    assert server.connections == 2


def test_nobody_listens():
    with Scripted() as server:
        url = server.url
    assert one_by_one(Http(url, b"JPEG"), 2) == [FAILED, FAILED]


def test_the_labs_server_takes_what_is_sent(server):
    picture = (paths.IMAGES / "street_1.jpg").read_bytes()
    assert one_by_one(Http(f"{server.url}/predict?model=yolov3-tiny", picture), 2) == [ANSWERED, ANSWERED]
    assert one_by_one(Http(f"{server.url}/predict", b"no picture"), 1) == [FAILED]


@pytest.mark.parametrize("url", ["https://127.0.0.1/", "127.0.0.1:8000", "http:///detect", ""])
def test_only_http_addresses(url):
    with pytest.raises(ValueError, match="give an address"):
        Http(url, b"JPEG")


def test_it_runs_beside_an_event_loop():
    """As in a notebook, whose kernel runs one."""

    async def cell():
        return open_loop(Function(lambda: None), rate=100, seconds=0.05)

    assert asyncio.run(cell()).share(ANSWERED) == 1


def test_exchange_keeps_the_body():
    async def ask(url):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.split(":")[2].split("/")[0]))
        try:
            return await exchange(reader, writer, upload(b"JPEG", "a.jpg", "/"))
        finally:
            writer.close()
            await writer.wait_closed()

    for answer in (FINE, CHUNKED):
        with Scripted(answer) as server:
            assert asyncio.run(ask(server.url))[::2] == (200, b"ok")


@pytest.mark.parametrize(
    "call",
    [
        lambda: arrivals("10", 1),
        lambda: arrivals(10, None),
        lambda: arrivals(10, 1, seed=-1),
        lambda: closed_loop(Function(lambda: None), clients=1.5, seconds=0.01),
        lambda: closed_loop(Function(lambda: None), clients=float("nan"), seconds=0.01),
        lambda: Function(None),
        lambda: Function(lambda: None, slots=0),
        lambda: Http("http://127.0.0.1:9/", "picture.jpg"),
        *(
            lambda url=url: Http(url, b"")
            for url in (3, "http://x:abc/", "http://x:99999/", "http://x:0/", "http://[::1")
        ),
        *(
            lambda url=url: Http(url, b"")
            for url in ("http://h/\r\nX: y", "http://a b/", "http://h/é", "http://u:p@h/")
        ),
    ],
)
def test_load_that_makes_no_sense_is_refused_before_anything_is_sent(call):
    with pytest.raises(ValueError, match=": give "):
        call()
