"""A socket timeout limits each read, not the whole answer. Here one deadline covers the whole request.

`Worker` runs a function on a thread and stops waiting at the deadline. `exchange` sends one HTTP request. With socket
timeouts only, a server that sends a byte now and then would keep its client for ever.
"""

import contextlib
import http.client
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from labsupport import arguments, background

MOST_BYTES = 10_000_000  # of an answer: longer ones are none
LONGEST = 86_400  # seconds of a deadline; no timer can count to 1e10
PIECE = 65_536  # bytes read at once

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


class NoAnswer(OSError):
    """Raised if no answer came in time, or not a valid HTTP answer; the message says why."""


class Answer(NamedTuple):
    """A complete answer."""

    status: int
    body: bytes


class Worker:
    """A thread that does one task at a time for callers who stop waiting at a given moment.

    It is not an executor, because an executor waits for its threads when the program ends, so a hanging task would hang
    the program. A task that nobody waits for any more runs to its end; only then is the thread free for the next.

    >>> worker = Worker("adds")
    >>> worker.do(lambda: 1 + 1, until=time.monotonic() + 5)
    2
    """

    def __init__(self, name: str) -> None:
        self.name, self._free = name, threading.Semaphore()
        self._orders: SimpleQueue[tuple[Callable[[], object], Future[Any]] | None] = SimpleQueue()
        background.start(self._work, name)

    def do(self, work: Callable[[], Result], until: float) -> Result:
        """Return what `work()` returns, if it does so before `until` (of `time.monotonic`).

        Raises what `work` raises, `NoAnswer` if that would end a program (SystemExit), and TimeoutError after `until`.
        """
        if not self._free.acquire(timeout=max(0.0, until - time.monotonic())):
            raise TimeoutError("still busy with what came before")
        answer: Future[Result] = Future()
        self._orders.put((work, answer))
        try:
            return answer.result(max(0.0, until - time.monotonic()))
        except TimeoutError:
            if answer.done():  # it is the work's own
                raise
            raise TimeoutError("too slow") from None

    def close(self) -> None:
        """End the thread once it is free."""
        self._orders.put(None)

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            work, answer = order
            try:
                result = work()
            except Exception as error:
                self._free.release()
                answer.set_exception(error)
            except BaseException as error:  # it would end the caller's program, which has done nothing wrong
                logger.error("%s: %r", self.name, error, exc_info=True)
                self._free.release()
                answer.set_exception(NoAnswer(f"it ended on {error!r}"))
            else:
                self._free.release()
                answer.set_result(result)
            del order, work, answer  # nothing is held on to while waiting


def exchange(
    method: str, url: str, seconds: float, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """Send one request on a new connection, and return the complete answer within `seconds`.

    When the time is up the connection is closed, which ends any read or write. Only looking up a server's name may take
    longer, in a network that is down: call this in a `Worker`, or use an address. There is no retry, redirect or proxy.
    Raises `NoAnswer`, and ValueError for a `url` that is not http or https, or for `seconds` above a day.

    >>> exchange("GET", "http://127.0.0.1:9/health", seconds=1)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    labsupport.edge.deadline.NoAnswer: ... Connection refused
    """
    until, where = time.monotonic() + arguments.number("seconds", seconds, most=LONGEST), urlsplit(url)
    kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    arguments.address("url", where._replace(query="").geturl())
    if seconds <= 0:
        raise NoAnswer("no time was left")
    connection = kinds[where.scheme](where.hostname, where.port, timeout=seconds)
    cancel = background.after(seconds, partial(_cut, connection), "watchdog")
    try:
        connection.connect()
        if time.monotonic() >= until:  # the watchdog found no connection to cut
            raise TimeoutError
        connection.request(method, where._replace(scheme="", netloc="").geturl(), body, {**(headers or {})})
        with contextlib.closing(connection.getresponse()) as response:
            answer = _read(response)
        if time.monotonic() >= until:  # whoever is cut off in the headers may look like one who has said all
            raise TimeoutError
        return answer
    except (OSError, http.client.HTTPException, ValueError) as error:
        late = time.monotonic() >= until
        raise NoAnswer(f"no answer within {seconds:.2g} s" if late else _said(error)) from error
    finally:
        cancel()
        connection.close()


def _read(response: http.client.HTTPResponse) -> Answer:
    if response.length is None and not response.chunked:
        raise http.client.HTTPException("the answer does not say how long it is, so it may be cut off")
    content = b"".join(_pieces(response)) if response.chunked else response.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise http.client.HTTPException("the answer is too long")
    if (
        response.length
    ):  # what http.client still expects; asked for so many bytes, it gives half an answer without a word
        raise http.client.HTTPException("the answer is cut off")
    return Answer(response.status, content)


def _pieces(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield a chunked answer, at most a piece too much of it. `read` would read a chunk of size -1 without a limit."""
    size = 0
    while size <= MOST_BYTES and (piece := response.read1(PIECE)):
        size += len(piece)
        yield piece


def _cut(connection: http.client.HTTPConnection) -> None:
    if (open_socket := connection.sock) is not None:
        with contextlib.suppress(OSError):  # closed already
            open_socket.shutdown(socket.SHUT_RDWR)


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
