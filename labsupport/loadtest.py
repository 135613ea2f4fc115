"""Load for a server: requests at times of their own (an open loop), or one after the other (a closed loop).

Users do not wait for each other. An open loop sends at the times of a Poisson process, whether or not the last answer is
there, and counts latency from the moment at which a request should have been sent. A closed loop's clients wait for their
answers: while the server stands still they send nothing, so those who would have waited longest are never asked. That is
coordinated omission (Tene, "How NOT to Measure Latency", 2013; Schroeder, Wierman and Harchol-Balter, "Open Versus
Closed: A Cautionary Tale", 2006).

Bounded in time and in number. Load only what is yours: where it goes is the caller's matter.
"""

import asyncio
import contextlib
import urllib.parse
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from labsupport.arguments import number, shown

MAX_REQUESTS = 20_000  # of one run
TIMEOUT = 20  # seconds for one answer
BUFFER = 1 << 20  # bytes: a whole answer, so that reading it costs the machine little
ANSWERED, REFUSED, FAILED = "answered", "refused", "failed"
HEAD = b'--x\r\nContent-Disposition: form-data; name="file"; filename="%b"\r\nContent-Type: image/jpeg\r\n\r\n'
TAIL = b"\r\n--x--\r\n"


class TooMuchLoad(ValueError):
    """More requests than one run may send."""


class Target(Protocol):
    """Where load goes: `Http`, `Function`, or anything with these two."""

    async def send(self) -> str:
        """Send one request and wait for its answer: ANSWERED, REFUSED or FAILED."""

    async def close(self) -> None:
        """The run is over."""


@dataclass(frozen=True)
class Run:
    """What became of the requests of one run, in the order in which they ended.

    >>> run = Run(2.0, np.array([0.1, 0.3, 0.0]), np.array([ANSWERED, ANSWERED, REFUSED]))
    >>> run.rate, round(run.quantile(0.5), 3), round(run.share(REFUSED), 3)
    (1.0, 0.2, 0.333)
    """

    seconds: float  # from the start to the last answer
    latencies: np.ndarray  # (N,) seconds, from when a request should have been sent to its answer
    outcomes: np.ndarray  # (N,) ANSWERED, REFUSED or FAILED

    @property
    def answered(self) -> np.ndarray:
        """The latencies of those that were answered, in seconds."""
        return self.latencies[self.outcomes == ANSWERED]

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.answered) / self.seconds

    def quantile(self, share: float) -> float:
        """The latency, in seconds, that this share (0 to 1) of the answers kept to; NaN where nothing was answered."""
        return float(np.quantile(self.answered, share)) if len(self.answered) else float("nan")

    def share(self, outcome: str) -> float:
        """Of all requests, those that came to this: 0 to 1."""
        return float(np.mean(self.outcomes == outcome)) if len(self.outcomes) else 0.0


def arrivals(rate: float, seconds: float, seed: int = 0) -> np.ndarray:
    """The times, in seconds, at which independent users come: a Poisson process of `rate` a second.

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
    """Send `rate` requests a second for so long, at the times of `arrivals`, and wait for the last answer.

    Raises what `arrivals` raises.

    >>> run = open_loop(Function(lambda: None), rate=200, seconds=0.1)
    >>> set(run.outcomes.tolist())
    {'answered'}
    """
    return _run(opened(target, arrivals(rate, seconds, seed)))


def closed_loop(target: Target, clients: int, seconds: float) -> Run:
    """`clients` at once, each of which sends, waits for the answer, and sends again, for so long.

    Raises ValueError for less than one client or a time that is not positive.

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


def _run(run: Coroutine) -> Run:
    """On a thread of its own: in a notebook an event loop runs already."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, run).result()


class Function:
    """A function of this process, with `slots` threads to work in. What it raises counts as failed.

    >>> closed_loop(Function(lambda: 1 / 0), clients=1, seconds=0.01).share(FAILED)
    1.0
    """

    def __init__(self, work: Callable[[], object], slots: int = 1) -> None:
        if not callable(work):
            raise ValueError(f"work={shown(work)}: give a function")
        self._work, self._pool = work, ThreadPoolExecutor(number("slots", slots, 1, 1_000, whole=True))

    async def send(self) -> str:
        try:
            await asyncio.get_running_loop().run_in_executor(self._pool, self._worked)
        except Exception:
            return FAILED
        return ANSWERED

    def _worked(self) -> None:
        try:
            self._work()
        except SystemExit as error:  # it would end the event loop
            raise RuntimeError("the work tried to end the program") from error

    async def close(self) -> None:
        """Nothing to do: the threads wait for the next run."""


class Http:
    """An address that takes pictures: status 200 is an answer, 503 a refusal, all else has failed.

    On bare sockets, which stay open between requests: who makes the load on the server's own machine takes from the server
    every millisecond it needs. Raises ValueError for what is no http address.

    >>> Http("https://example.org/", b"")
    Traceback (most recent call last):
    ValueError: 'https://example.org/': give an address such as http://127.0.0.1:8000/detect
    """

    def __init__(self, url: str, picture: bytes) -> None:
        if not isinstance(picture, bytes):
            raise ValueError(
                f"picture={shown(picture)}: give the bytes of a picture's file, as Path.read_bytes returns them"
            )
        wrong = ValueError(f"{shown(url)}: give an address such as http://127.0.0.1:8000/detect")
        try:
            parts = urllib.parse.urlsplit(url if isinstance(url, str) else "")
            fine = parts.scheme == "http" and bool(parts.hostname) and parts.port != 0 and parts.username is None
        except ValueError:  # a port that is no number, a bracket that is not closed
            raise wrong from None
        if not (fine and url.isascii() and url.isprintable() and " " not in url):
            raise wrong
        self._host, self._port = parts.hostname, parts.port or 80
        path = f"{parts.path or '/'}?{parts.query}".rstrip("?")
        self._message = upload(picture, "picture.jpg", path)
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def send(self) -> str:
        connection = None
        try:
            async with asyncio.timeout(TIMEOUT):
                connection = self._waiting() or await asyncio.open_connection(self._host, self._port, limit=BUFFER)
                status, headers, _ = await exchange(*connection, self._message)
        except (TimeoutError, OSError, EOFError, ValueError, asyncio.LimitOverrunError):
            await _hang_up(connection)
            return FAILED
        if not stays_open(headers):
            await _hang_up(connection)
        else:
            self._idle.append(connection)
        return {200: ANSWERED, 503: REFUSED}.get(status, FAILED)

    async def close(self) -> None:
        """Close the connections."""
        while self._idle:
            await _hang_up(self._idle.pop())

    def _waiting(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """A connection that nobody uses, and that the server has not closed meanwhile."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return None


async def _hang_up(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None) -> None:
    if connection:
        connection[1].close()
        with contextlib.suppress(OSError):  # the server was quicker
            await connection[1].wait_closed()


def upload(picture: bytes, filename: str, path: str) -> bytes:
    """The bytes of one upload, as a browser would send them.

    >>> upload(b"...", "a.jpg", "/detect").splitlines()[0]
    b'POST /detect HTTP/1.1'
    """
    body = HEAD % filename.encode() + picture + TAIL
    lines = (f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: multipart/form-data; boundary=x")
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


async def exchange(reader, writer, message: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    """Send a request and read its answer: the status, the headers (names and values in small letters), the body.

    A body that says neither its length nor that it comes in chunks ends with the connection (RFC 9112, section 6.3). Raises
    ValueError for what is no answer, EOFError for one that is cut off.
    """
    writer.write(message)
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
    if not first.startswith(b"http/"):
        raise ValueError("this is no HTTP answer")
    status = int(first.partition(b" ")[2][:3])
    headers = {name.strip(): value.strip() for name, _, value in (line.partition(b":") for line in lines if line)}
    if status in (204, 304):
        return status, headers, b""
    if headers.get(b"transfer-encoding") == b"chunked":
        return status, headers, await _chunks(reader)
    if b"content-length" in headers:
        return status, headers, await reader.readexactly(int(headers[b"content-length"]))
    return status, headers, await reader.read()


def stays_open(headers: dict[bytes, bytes]) -> bool:
    """Return whether another request may follow on the connection, given the headers of an answer as `exchange` has them."""
    delimited = headers.get(b"transfer-encoding") == b"chunked" or b"content-length" in headers
    return delimited and headers.get(b"connection") != b"close"


async def _chunks(reader) -> bytes:
    body = b""
    while size := int((await reader.readline()).partition(b";")[0], 16):
        body += (await reader.readexactly(size + 2))[:-2]
    while (await reader.readline()).strip():  # what may follow the last chunk
        pass
    return body
