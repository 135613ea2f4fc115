"""A production line to be broken: the station and the server as processes that can be killed, and a bad network in between.

`python tests/production_line.py 1000` runs a thousand products through it and prints what became of them;
`test_edge.py` runs fewer.
The pictures are plain gray, and a light one is a good product: so the truth is known, and a detector costs nothing.
"""

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np

from labsupport.detection import Box, Detection

TOKEN = "0123456789abcdef"
DEADLINE = 1.0
BELT = 0.05  # seconds between two products
FATES = {  # what the network does to a connection -> how often
    "pass": 150,
    "refuse": 6,  # cut before a byte went through
    "mute": 4,  # nothing is ever answered
    "lost": 8,  # the server gets the question and answers, and the answer never arrives
    "half": 6,  # half of the answer arrives
    "slow": 6,  # all of it, too late
    "dribble": 4,  # a byte now and then
    "error": 6,  # a 500 from somebody in between
}


class Gray:
    """Sees a "good" object in a light picture."""

    def __init__(self, version: str) -> None:
        self.version = version

    def detect(self, image: np.ndarray, confidence: float = 0.5) -> list[Detection]:
        return [Detection("good", 0.9, Box(0, 0, 8, 8))] if image.mean() > 128 else []


def picture(number: int) -> np.ndarray | None:
    """Every fifth is dark; one in fifty cannot be read."""
    return None if number % 50 == 49 else np.full((8, 8, 3), 40 if number % 5 == 2 else 200, np.uint8)


def truth(number: int) -> str:
    return "undecided" if number % 50 == 49 else "reject" if number % 5 == 2 else "accept"


def run_server(folder: str, port: str) -> None:
    from labsupport.log import PredictionLog
    from labsupport.serving import create_app, serve

    serve(create_app(Gray("gray/server"), log=PredictionLog(f"sqlite:///{folder}/log.db")), port=int(port), block=True)


def run_station(folder: str, port: str, count: str) -> None:
    """From the first product on, as a camera does that is started again; what is told goes to the actuator's own list."""
    from labsupport.edge import InspectionStation, Outbox, wants

    outbox, url = Outbox(f"{folder}/outbox.db"), f"http://127.0.0.1:{port}"
    with InspectionStation(url, Gray("gray/device"), wants("good"), outbox, DEADLINE) as station:
        with open(f"{folder}/told", "a", buffering=1) as told:
            for number in range(int(count)):
                known, started = outbox.get(f"p{number}"), time.monotonic()
                decision = station.inspect(f"p{number}", picture(number))
                took = time.monotonic() - started
                told.write(json.dumps([number, decision.verdict, decision.decided_by, decision.time, took]) + "\n")
                time.sleep(0 if known else BELT)
        while outbox.waiting():
            time.sleep(0.05)


class BadNetwork:
    """A relay on a port of its own, which does to each connection what its fate is; with `healthy` it only passes on."""

    def __init__(self, seed: int, target: int) -> None:
        self.target, self.healthy, self.fates = target, False, Counter()
        self._random, self._loop, self._tasks = random.Random(seed), asyncio.new_event_loop(), set()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = self._server.sockets[0].getsockname()[1]
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            self._loop.stop()

        asyncio.run_coroutine_threadsafe(end(), self._loop)
        while self._loop.is_running():
            time.sleep(0.01)
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fate = "pass" if self.healthy else self._random.choices([*FATES], [*FATES.values()])[0]
        self.fates[fate] += 1
        self._tasks.add(asyncio.current_task())  # the loop itself would let go of them
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await getattr(self, f"_{fate}")(reader, writer)
        writer.close()

    async def _question(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
        return head + (await reader.readexactly(int(lengths[0].split(b":")[1])) if lengths else b"")

    async def _answer(self, question: bytes) -> bytes:
        """The server's, to a question on a connection of its own."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.target)
        writer.write(question.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        answer = await reader.read(-1)
        writer.close()
        return answer

    async def _pass(self, reader, writer) -> None:
        writer.write(await self._answer(await self._question(reader)))
        await writer.drain()

    async def _refuse(self, reader, writer) -> None:
        return

    async def _mute(self, reader, writer) -> None:
        await asyncio.sleep(60)

    async def _lost(self, reader, writer) -> None:
        await self._answer(await self._question(reader))

    async def _half(self, reader, writer) -> None:
        answer = await self._answer(await self._question(reader))
        writer.write(answer[: len(answer) - 40])

    async def _slow(self, reader, writer) -> None:
        question = await self._question(reader)
        await asyncio.sleep(1.5 * DEADLINE)
        writer.write(await self._answer(question))

    async def _dribble(self, reader, writer) -> None:
        for byte in await self._answer(await self._question(reader)):
            writer.write(bytes([byte]))
            await writer.drain()  # raises once the station has gone
            await asyncio.sleep(0.05)

    async def _error(self, reader, writer) -> None:
        await self._question(reader)
        writer.write(b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\nConnection: close\r\n\r\noops")


class Line:
    """The three processes' worth of it, in a folder."""

    def __init__(self, folder: Path, seed: int, count: int) -> None:
        self.folder, self.count, self.random, self.kills = folder, count, random.Random(seed), Counter()
        self.port = _free_port()
        self.network = BadNetwork(seed, self.port)
        self.server, self.station = self.start("server", self.port), None

    def start(self, what: str, *arguments) -> subprocess.Popen:
        words = [sys.executable, "-W", "error", __file__, what, str(self.folder), *map(str, arguments)]
        with (self.folder / f"{what}.txt").open("a") as console:
            own = {**os.environ, "LAB_TOKEN": TOKEN}
            return subprocess.Popen(words, env=own, stdout=console, stderr=console)

    def kill(self, what: str) -> None:
        process = getattr(self, what)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            self.kills[what] += 1
        process.wait()

    def told(self) -> list[list]:
        file = self.folder / "told"
        lines = file.read_text().split("\n")[:-1] if file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("]")]  # a kill may cut one off: nobody was told

    def run(self, station_kills: int, server_kills: int, seconds: float) -> None:
        """All products, with so many kills of each at random moments; then the network heals, and all is forwarded."""
        last = self.count - 10  # one that is killed later may have ended by itself
        moments = [(self.random.randrange(last), "station") for _ in range(station_kills)]
        moments += [(self.random.randrange(last), "server") for _ in range(server_kills)]
        end = time.monotonic() + seconds
        self._wait(self._server_listens, end)  # else a short line is over before it does
        self.station = self.start("station", self.network.port, self.count)
        for moment, what in sorted(moments):
            self._wait(lambda moment=moment: len({number for number, *_ in self.told()}) > moment, end)
            time.sleep(self.random.uniform(0, 0.1))  # where in its work it is hit
            self.kill(what)
            again = [self.port] if what == "server" else [self.network.port, self.count]
            setattr(self, what, self.start(what, *again))
        self._wait(lambda: len({number for number, *_ in self.told()}) == self.count, end)
        self.network.healthy = True
        self._wait(lambda: self.station.poll() is not None, end)

    def _server_listens(self) -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port)).close()
            return True
        return False

    def _wait(self, true, end: float) -> None:
        while not true():
            if time.monotonic() > end or (self.station and self.station.poll()):
                words = [file.read_text() for file in sorted(self.folder.glob("*.txt"))]
                raise AssertionError("".join(words) or "the line takes too long")
            time.sleep(0.02)

    def close(self) -> None:
        for what in ("station", "server"):
            if getattr(self, what):
                self.kill(what)
        self.network.close()

    def rows(self, file: str, query: str) -> list[tuple]:
        with contextlib.closing(sqlite3.connect(self.folder / file)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            return connection.execute(query).fetchall()


def verify(line: Line) -> dict:
    """Every promise, looked up by other means than the package's own; and some figures."""
    decided = {}
    for number, *decision, _ in line.told():
        assert decided.setdefault(number, decision) == decision, f"product {number} got two decisions"
    assert sorted(decided) == list(range(line.count))
    wrong = [number for number, (verdict, *_) in decided.items() if verdict not in (truth(number), "undecided")]
    assert not wrong, f"decided against the truth: {wrong}"
    stored = line.rows("outbox.db", "SELECT product, decision FROM outbox_decisions ORDER BY number")
    assert [product for product, _ in stored] == [f"p{number}" for number in range(line.count)]
    arrived = line.rows("log.db", "SELECT product, verdict, decided_by, time FROM decisions ORDER BY rowid")
    assert arrived == [(f"p{number}", *decided[number]) for number in range(line.count)]  # each once, and in order
    seen = line.rows("log.db", "SELECT key, version FROM predictions WHERE status = 200 AND NOT shadow ORDER BY row")
    looked = [number for number in range(line.count) if decided[number][0] != "undecided"]
    assert seen == [(f"p{number}", f"gray/{decided[number][1]}") for number in looked]
    reasons = [json.loads(text)["reason"] for _, text in stored]
    unsure = Counter(reason for number, reason in enumerate(reasons) if decided[number][0] == "undecided")
    took = np.array([took for *_, took in line.told()])
    by = Counter(by for _, by, _ in decided.values())
    return {
        "by": dict(by),
        "told": len(took),
        "slowest": took.max(),
        "p50": np.median(took),
        "kills": dict(line.kills),
        "unsure": unsure,
    }


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def main(count: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        line = Line(Path(folder), seed, count)
        started = time.monotonic()
        try:
            line.run(station_kills=count // 40, server_kills=count // 60, seconds=3_600)
            print(verify(line), dict(line.network.fates), f"{time.monotonic() - started:.0f} s")
        finally:
            line.close()


if __name__ == "__main__":
    if sys.argv[1] == "server":
        run_server(*sys.argv[2:])
    elif sys.argv[1] == "station":
        run_station(*sys.argv[2:])
    else:
        main(int(sys.argv[1]), int((*sys.argv, 0)[2]))
