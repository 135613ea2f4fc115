"""Send requests without a pause while something happens to a service, and keep how each of them ended."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import requests

if TYPE_CHECKING:
    import pandas as pd

NO_ANSWER = 0  # the status of a request that no answer came to
TIMEOUT = 60  # seconds for one answer
PAUSE = 0.05  # seconds between two looks


class SteadyClients:
    """Let `count` clients send a picture to a URL again and again, until the `with` block ends.

    Each client waits for its answer before it sends the next request. `right(answer)` says whether an answer with status
    200 is right, given its JSON. A request that nobody answers is kept too, with status `NO_ANSWER`.
    """

    def __init__(self, url: str, picture: bytes, right: Callable[[dict[str, object]], bool], count: int = 6) -> None:
        self._url, self._picture, self._right, self._count = url, picture, right, count
        self._ended: list[tuple[float, float, int, bool]] = []
        self._stop, self._pool = threading.Event(), ThreadPoolExecutor(count)
        self._clients: list[Future[None]] = []

    def wait(self, answers: int, since: float = 0.0, seconds: float = 80) -> None:
        """Return when so many requests have ended that were sent after `since` (of `time.monotonic`).

        Raises TimeoutError if that takes longer than so many seconds.
        """
        end = time.monotonic() + seconds
        while sum(sent >= since for sent, *_ in list(self._ended)) < answers:
            if time.monotonic() > end:
                raise TimeoutError(f"less than {answers} requests have ended within {seconds:g} s")
            time.sleep(PAUSE)

    def frame(self) -> "pd.DataFrame":
        """Return a row for each request that has ended: `sent` and `seconds`, the `status`, and whether it was `right`."""
        import pandas as pd

        return pd.DataFrame(list(self._ended), columns=["sent", "seconds", "status", "right"])

    def _client(self) -> None:
        while not self._stop.is_set():
            sent, status, right = time.monotonic(), NO_ANSWER, False
            try:
                answer = requests.post(self._url, files={"file": self._picture}, timeout=TIMEOUT)
                status = answer.status_code
                right = answer.ok and self._right(answer.json())
            except requests.RequestException:
                self._stop.wait(PAUSE)  # a server that is gone answers quickly, and would fill the table
            self._ended.append((sent, time.monotonic() - sent, status, right))

    def __enter__(self) -> "SteadyClients":
        self._clients = [self._pool.submit(self._client) for _ in range(self._count)]
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Stop the clients. Raises what `right` raised, unless the block raised already."""
        self._stop.set()
        self._pool.shutdown()
        for client in self._clients if kind is None else ():
            client.result()
