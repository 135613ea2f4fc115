"""Clients for a server under test: each sends a picture, waits for the answer, and sends the next.

Written on bare sockets, because the clients share the machine with the server: every millisecond they spend is one that the
server does not get. Loopback only, bounded in time.
"""

import asyncio
import time
from dataclasses import dataclass, field

import numpy as np

from labsupport import paths
from labsupport.compute import BUFFER, exchange, stays_open, upload

PICTURES = ("street_1.jpg", "street_2.jpg", "person_dog.jpg", "fruits.jpg")
JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
HOST = "127.0.0.1"
PREDICT = "/predict?model=yolov3-tiny"


@dataclass
class Result:
    """What the clients of one run saw. A good answer says, to the byte, what a lone client is told about that picture."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)  # of answers with status 200, in seconds
    wrong: int = 0  # of these, with other content: somebody else's boxes, a cut picture
    refused: int = 0  # 503 with Retry-After
    failed: int = 0  # everything else: another status, a cut connection

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return (len(self.latencies) - self.wrong) / self.seconds

    @property
    def any_rate(self) -> float:
        """Answers with status 200 a second, good or wrong."""
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        """In milliseconds; NaN where nothing was answered."""
        return float(np.percentile(self.latencies, share) * 1000) if self.latencies else float("nan")


def request(name: str, filename: str, path: str = PREDICT) -> bytes:
    """The bytes of one upload as a browser would send them."""
    return upload((paths.IMAGES / name).read_bytes(), filename, path)


def run(port: int, clients: int, seconds: float, path: str = PREDICT) -> Result:
    """`clients` at once, each under a file name of its own, for `seconds`; before that, one client asks alone."""
    return asyncio.run(_run(port, clients, seconds, path))


async def _run(port: int, clients: int, seconds: float, path: str) -> Result:
    result, alone = Result(), {}
    for name in PICTURES:
        connection = await asyncio.open_connection(HOST, port, limit=BUFFER)
        status, _, alone[name] = await asyncio.wait_for(exchange(*connection, request(name, name, path)), 60)
        connection[1].close()
        if status != 200 or not told(alone[name]):
            raise RuntimeError(f"a lone client asked about {name} and got no answer, but status {status}")
    started = time.perf_counter()
    work = [_client(port, number, started + seconds, path, alone, result) for number in range(clients)]
    await asyncio.gather(*work)
    result.seconds = time.perf_counter() - started
    return result


def told(body: bytes) -> bytes:
    """What an answer says about a picture: the whole JPEG, or of JSON what follows "detections"; empty for anything else."""
    if body.startswith(JPEG_START) and body.endswith(JPEG_END):
        return body
    return body.partition(b'"detections":')[2].strip(b" }")


async def _client(port: int, number: int, until: float, path: str, alone: dict[str, bytes], result: Result) -> None:
    requests = [(name, request(name, f"client{number}.jpg", path)) for name in PICTURES]
    connection, turn = None, number
    while (sent := time.perf_counter()) < until:
        name, message = requests[turn % len(requests)]
        turn += 1
        try:
            connection = connection or await asyncio.open_connection(HOST, port, limit=BUFFER)
            status, headers, body = await asyncio.wait_for(exchange(*connection, message), 60)
        except (TimeoutError, OSError, EOFError, ValueError, asyncio.LimitOverrunError):
            result.failed += 1
            connection = None
            continue
        if status == 200:
            result.latencies.append(time.perf_counter() - sent)
            result.wrong += told(body) != told(alone[name])
        elif status == 503 and b"retry-after" in headers:
            result.refused += 1
        else:
            result.failed += 1
        if not stays_open(headers):
            connection[1].close()
            connection = None
    if connection:
        connection[1].close()
