"""Act around a server while a lesson looks on: send its users' requests, listen to its connections, limit a process."""

import functools
import inspect
import json
import math
import os
import random
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import requests

from labsupport import arguments, background, loopback

if TYPE_CHECKING:
    import pandas as pd

NO_ANSWER = 0  # the status of a request that got no answer at all
PATIENCE = 150.0  # seconds that a cell waits for something
CHILD = """
import json, resource, sys
import cv2
import numpy as np
from labsupport import images

def kilobytes(name):  # of this process, as Linux reports it
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(name + ":"))

{source}

content = sys.stdin.buffer.read()
most = kilobytes("VmSize") * 1024 + {megabytes} * 10**6
resource.setrlimit(resource.RLIMIT_AS, (most, most))
before, result, error = kilobytes("VmHWM"), None, None
try:
    result = repr({call}(content))
except Exception as problem:
    error = f"{{type(problem).__name__}}: {{problem}}"
print(json.dumps([kilobytes("VmHWM") - before, result, error]))
"""


@dataclass(frozen=True)
class Answer:
    """Hold what one user got: when the request was sent, how long it took, and how it ended."""

    sent: float  # seconds since the epoch
    seconds: float
    status: int  # `NO_ANSWER` if none came
    version: str | None
    key: str
    body: dict[str, Any] | None  # the JSON of an answer with status 200


class Users:
    """Send one picture after another to a server, in several threads, until `stop`. Each request has a user's key.

    `answers` holds every request that is over, also those without an answer.
    """

    def __init__(
        self, url: str, pictures: Sequence[bytes], people: int = 200, threads: int = 3, pause: float = 0.02
    ) -> None:
        loopback.ask_directly()
        self.answers: list[Answer] = []
        self._url, self._pictures, self._people, self._pause = url, pictures, people, pause
        self._over = threading.Event()
        self._threads = [
            background.start(functools.partial(self._send, seed), f"user {seed}") for seed in range(threads)
        ]

    def ask(self, key: str, picture: bytes) -> Answer:
        """Send one picture as the user `key`, over a new connection. Return and remember what came back."""
        sent, began, status, version, body = time.time(), time.monotonic(), NO_ANSWER, None, None
        try:
            response = requests.post(
                f"{self._url}/detect", files={"file": picture}, headers={"X-Client-Key": key}, timeout=60
            )
            status, version = response.status_code, response.headers.get("X-Model-Version")
            body = response.json() if response.ok else None
        except requests.RequestException:
            self._over.wait(0.05)  # a server that is gone refuses quickly, and would fill the table
        self.answers.append(Answer(sent, time.monotonic() - began, status, version, key, body))
        return self.answers[-1]

    def wait_for(self, count: int, since: float | None = None) -> "pd.DataFrame":
        """Wait until `count` requests that were sent `since` then (or from now on) are over, and return all of these."""
        since = time.time() if since is None else since
        wait(lambda: sum(answer.sent >= since for answer in self.answers) >= count, f"{count} answers")
        return self.frame(since)

    def frame(self, since: float = 0.0) -> "pd.DataFrame":
        """Return the requests sent `since` then, with a column for each field of `Answer`."""
        import pandas as pd

        rows = [vars(answer) for answer in list(self.answers) if answer.sent >= since]
        return pd.DataFrame(rows, columns=[field.name for field in fields(Answer)])

    def stop(self) -> "pd.DataFrame":
        """Stop sending, wait for the last answers, and return all requests."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        return self.frame()

    def _send(self, seed: int) -> None:
        choose = random.Random(seed)
        while not self._over.wait(self._pause):
            self.ask(f"person {choose.randrange(self._people)}", choose.choice(self._pictures))


def wait(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Return when `condition()` is true. Raises TimeoutError if that takes longer than so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds:g} seconds: {what}")
        time.sleep(0.05)


class Tap:
    """Listen to the connections of a server on this machine: a proxy that passes all bytes on, and keeps a copy of them.

    Clients ask `url` in place of the server's own address. `heard` holds the bytes of both directions. A proxy in the middle
    of a network path can do the same.

    >>> from labsupport.serving import create_app, serve
    >>> with serve(create_app({}), port=0) as server, Tap(server.url) as tap:
    ...     status = requests.get(tap.url + "/health", timeout=5).status_code
    ...     status, b"GET /health" in tap.heard, b"alive" in tap.heard
    (200, True, True)
    """

    def __init__(self, url: str) -> None:
        """Listen on a free port. `url` is the address of a server on this machine. Raises ValueError for another one."""
        scheme, _, address = arguments.text("url", url, 100).partition("://")
        host, _, port = address.rpartition(":")
        if scheme not in ("http", "https") or host not in loopback.ADDRESSES or not port.isdecimal():
            raise ValueError(f"url={arguments.shown(url)}: give the url of a server that runs here, as server.url")
        loopback.ask_directly()
        self._server, self._listening = (host, int(port)), socket.create_server(("127.0.0.1", 0))
        self._kept, self._open, self._guard = bytearray(), list[socket.socket](), threading.Lock()
        self.url = f"{scheme}://127.0.0.1:{self._listening.getsockname()[1]}"
        background.start(self._accept, "tap")

    @property
    def heard(self) -> bytes:
        """Return all bytes that have passed so far."""
        with self._guard:
            return bytes(self._kept)

    def close(self) -> None:
        """Close all connections."""
        for one in (self._listening, *self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for it
            one.close()

    def __enter__(self) -> "Tap":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client = self._listening.accept()[0]
                try:
                    server = socket.create_connection(self._server)
                except OSError:  # the server is away: this client hears so, and the next one may find it again
                    client.close()
                    continue
                self._open += [client, server]
                for source, target in ((client, server), (server, client)):
                    background.start(functools.partial(self._pass_on, source, target), "tap")

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):  # one side has closed
            while content := source.recv(65_536):
                with self._guard:
                    self._kept += content
                target.sendall(content)
            target.shutdown(socket.SHUT_WR)


class Outcome(NamedTuple):
    """Hold what a function did in a process of its own: megabytes that it took, and its result or its error as text."""

    megabytes: float
    result: str | None
    error: str | None


def in_child(function: Callable[[bytes], object], content: bytes, megabytes: int) -> Outcome:
    """Call `function(content)` in a process of its own, which gets at most so many megabytes more memory.

    The process has the source of the function, and the names `cv2`, `np` and `images`. So the function must be written with
    `def`, and use no other name from outside. Nothing is called without Linux, because other systems limit no memory.
    Raises RuntimeError if the process does not come to its end.

    >>> def double(content):
    ...     return 2 * content
    >>> in_child(double, b"ab", megabytes=100).result  # doctest: +SKIP
    "b'abab'"
    """
    most = arguments.number("megabytes", megabytes, 1, whole=True)
    if sys.platform != "linux":
        return Outcome(math.nan, None, "not called: only Linux limits the memory of a process")
    source = textwrap.dedent(inspect.getsource(function))
    program = CHILD.format(source=source, megabytes=most, call=function.__name__)
    done = subprocess.run([sys.executable, "-c", program], input=content, capture_output=True, timeout=PATIENCE)
    if done.returncode:
        raise RuntimeError(f"the process ended too early: {done.stderr.decode(errors='replace')[-500:].strip()}")
    kilobytes, result, error = json.loads(done.stdout)
    return Outcome(kilobytes / 1000, result, error)


@contextmanager
def data_folder(folder: Path) -> Iterator[Path]:
    """Let a service that is made inside the `with` block keep its files in `folder`, and not in the lab's own folder.

    >>> import tempfile
    >>> from labsupport import paths
    >>> with tempfile.TemporaryDirectory() as folder, data_folder(Path(folder)):
    ...     paths.IMAGES_UPLOADED.parent == Path(folder).resolve()
    True
    """
    before = os.environ.get("LAB_ROOT")
    os.environ["LAB_ROOT"] = str(folder)
    try:
        yield folder
    finally:
        if before is None:
            del os.environ["LAB_ROOT"]
        else:
            os.environ["LAB_ROOT"] = before


def files_with(folder: Path, content: bytes) -> list[str]:
    """Return the names of the files in a folder, and in the folders in it, that hold these bytes.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     size = Path(folder, "a.txt").write_text("some notes")
    ...     files_with(Path(folder), b"notes"), files_with(Path(folder), b"letters")
    (['a.txt'], [])
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path.relative_to(folder).as_posix() for path in files if content in path.read_bytes()]
