"""Send requests to the target of a load test: a function, or a server over HTTP."""

import asyncio
import contextlib
import urllib.parse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from labsupport.arguments import number, shown

TIMEOUT = 20  # seconds for one answer


BUFFER = 1 << 20  # bytes: a whole answer, so that reading it costs the machine little


ANSWERED, REFUSED, FAILED = "answered", "refused", "failed"


HEAD = b'--x\r\nContent-Disposition: form-data; name="file"; filename="%b"\r\nContent-Type: image/jpeg\r\n\r\n'


TAIL = b"\r\n--x--\r\n"


class Target(Protocol):
    """The target of a load test: `Http`, `Function`, or any object with these two methods."""

    async def send(self) -> str:
        """Send one request and wait for its answer: ANSWERED, REFUSED or FAILED."""

    async def close(self) -> None:
        """End the run."""


class Function:
    """A function of this process, called on `slots` threads. An exception counts as failed.

    >>> from labsupport.compute.loadtest import closed_loop
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
        """Do nothing: the threads wait for the next run."""


class Http:
    """An address that takes pictures. Status 200 counts as answered, 503 as refused, anything else as failed.

    It uses bare sockets, which stay open between requests. A heavier client on the server's own machine would take CPU
    time from the server. Raises ValueError for an address that is not http.

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
        """Return an idle connection that the server has not closed, or None."""
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
    """Return the bytes of one upload, as a browser would send them.

    >>> upload(b"...", "a.jpg", "/detect").splitlines()[0]
    b'POST /detect HTTP/1.1'
    """
    body = HEAD % filename.encode() + picture + TAIL
    lines = (f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: multipart/form-data; boundary=x")
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: bytes
) -> tuple[int, dict[bytes, bytes], bytes]:
    """Send a request and read its answer: the status, the headers (names and values in small letters), the body.

    A body without a length and without chunks ends with the connection (RFC 9112, section 6.3). Raises ValueError for
    an invalid answer, EOFError for one that is cut off.
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


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int((await reader.readline()).partition(b";")[0], 16):
        body += (await reader.readexactly(size + 2))[:-2]
    while (await reader.readline()).strip():  # what may follow the last chunk
        pass
    return body
