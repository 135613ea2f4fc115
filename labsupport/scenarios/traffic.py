"""Send the requests of a server's users while a lesson looks on, and wait for what they bring about."""

import functools
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import requests

from labsupport import background, loopback

if TYPE_CHECKING:
    import pandas as pd

NO_ANSWER = 0  # the status of a request that got no answer at all
PATIENCE = 150.0  # seconds that a cell waits for something


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
