"""The real command in a process of its own, and clients for it: what the tests of the whole server share.

The clients speak HTTP on bare connections, because they share the machine with the server and are many.
"""

import asyncio
import contextlib
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import requests

from labsupport import images, paths

HOST = "127.0.0.1"
SERVE = (sys.executable, "-u", "-m", "labsupport", "serve", "--port", "0")
PHOTOS = ("apple.jpg", "clock.png", "fruits.jpg", "gallery.jpg", "grace_hopper.jpg", "person_dog.jpg", "street_1.jpg")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    sent: float  # seconds, of time.monotonic
    received: float

    @property
    def id(self) -> str:
        return self.headers["x-prediction-id"]


@dataclass(frozen=True)
class Server:
    """The command as it runs."""

    process: subprocess.Popen
    port: int
    log: Path
    console: Path

    def ask(self, message: bytes) -> Answer:
        """What a lone client gets."""
        (answer,) = self.ask_many([message], clients=1)
        assert answer, "the connection was cut"
        return answer

    def ask_many(self, messages: Sequence[bytes], clients: int = 8, rate: float = float("inf")) -> list[Answer | None]:
        """An answer for each message, in their order, or None where the connection was cut: that client stops.

        The clients share the messages, and send at most `rate` of them a second.
        """
        return asyncio.run(_ask_many(self.port, messages, clients, rate))

    def rows(self, columns: str = "id") -> list[tuple]:
        return rows(self.log, columns)


def rows(log: Path, columns: str = "id") -> list[tuple]:
    """What is in a log, as Python's own sqlite3 reads it."""
    with contextlib.closing(sqlite3.connect(log)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return connection.execute(f"SELECT {columns} FROM predictions ORDER BY row").fetchall()


@contextlib.contextmanager
def serving(folder: Path, *options: str, command: Sequence[str] = SERVE, **environment: str) -> Iterator[Server]:
    """The command, ready to answer, with a lab of its own in `folder`. Killed at the end, if it still runs."""
    lab, console = folder / "lab", folder / "console"
    lab.mkdir(exist_ok=True)
    log = lab / "predictions.db"
    words = [*command, "--log", f"sqlite:///{log}", *options]
    own = {**os.environ, "LAB_ROOT": str(lab), **environment}
    with (
        console.open("w") as stderr,
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=stderr, text=True, env=own) as process,
    ):
        try:
            where = re.search(r":(\d+) until", process.stdout.readline())
            assert where, console.read_text()
            server = Server(process, int(where[1]), log, console)
            until(lambda: _ready(server), 180)
            yield server
        finally:
            process.kill()


def _ready(server: Server) -> bool:
    assert server.process.poll() is None, server.console.read_text()
    with contextlib.suppress(requests.ConnectionError):
        return requests.get(f"http://{HOST}:{server.port}/ready", timeout=180).ok  # it may have a network to convert
    return False


def until(true: Callable[[], object], seconds: float = 30) -> None:
    """Ask again and again, for so long at most."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


def small_uploads(path: str = "/predict?confidence=0.2", width: int = 160) -> list[bytes]:
    """Requests with some of the lab's photographs, small: quick to decode, and the network takes as long as ever."""
    photos = [images.decode((paths.IMAGES / name).read_bytes()) for name in PHOTOS]
    small = [cv2.resize(photo, (width, width * photo.shape[0] // photo.shape[1])) for photo in photos]
    return [upload(images.encode(photo), path) for photo in small]


def upload(picture: bytes, path: str) -> bytes:
    """The bytes of one request. All pictures have one name: a server that tells them apart by it mixes them up."""
    request = requests.Request("POST", f"http://{HOST}{path}", files={"file": ("same.jpg", picture)}).prepare()
    lines = [f"POST {request.path_url} HTTP/1.1", f"Host: {HOST}"]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + request.body


async def _ask_many(port: int, messages: Sequence[bytes], clients: int, rate: float) -> list[Answer | None]:
    answers, turns, started = [None] * len(messages), iter(enumerate(messages)), time.monotonic()

    async def client() -> None:
        reader, writer = await asyncio.open_connection(HOST, port)
        with contextlib.suppress(OSError, EOFError):
            for number, message in turns:
                await asyncio.sleep(started + number / rate - time.monotonic())
                answers[number] = await asyncio.wait_for(_ask(reader, writer, message), 60)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers


async def _ask(reader, writer, message: bytes) -> Answer:
    sent = time.monotonic()
    writer.write(message)
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status, *lines = head.strip().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    body = await reader.readexactly(int(headers["content-length"]))
    return Answer(int(status.split()[1]), headers, body, sent, time.monotonic())
