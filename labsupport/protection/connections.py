"""Limit the number of connections. Close slow or idle ones.

uvicorn waits without limit for the rest of a request's head, for a body and for a client that does not read its answer. It
also accepts any number of connections. `Connection` is uvicorn's HTTP/1.1 connection with a limit for each of these.
`EncryptedConnection` is the same with TLS.
"""

import asyncio
import json
import logging
import re
import resource
import ssl
from typing import Any, cast

import uvicorn
from uvicorn.protocols.utils import is_ssl

from labsupport.access import tls_files
from labsupport.protection.once import Once
from labsupport.protection.one_request import OneRequest, Part
from labsupport.protection.security import FRAMES, HEADERS

# for the head of a request, from its first byte; for the first head, from the start of the connection
HEAD_SECONDS = 10
BODY_SECONDS = 35  # for a body: a little longer than in `admission`, which answers with an error message
ANSWER_SECONDS = 60  # for the client to read an answer, from the time when it stops reading
CLOSING_SECONDS = 10  # for the client to read the refusal of a body that it is still sending
MAX_HEAD = 16_384  # bytes of a request's head
MAX_LINES = 128  # in it
# refuse a body if what is read at once holds more chunks, with fewer bytes each on average: they cost too much time to parse
MAX_CHUNKS, CHUNK_BYTES = 1_000, 16
MOST = 1_000  # connections
OTHER_FILES = 64  # other open files of the process: the log, the models, the listening socket
FILES_EACH = 3  # for each connection: itself, an upload on the disk, a connection accepted while it closes
HEAD_END = re.compile(rb"\r\n\r\n")
# the header of a client that would rather speak HTTP/2 or WebSocket; llhttp would take the body for the other protocol
UPGRADE = re.compile(rb"^upgrade(?=:)", re.IGNORECASE | re.MULTILINE)
HANDSHAKE = b"\x16"  # the first byte of a client that speaks TLS, and of no HTTP request

logger = logging.getLogger(__name__)
for _name in (__name__, "uvicorn.error", "asyncio"):
    logging.getLogger(_name).addFilter(Once())


def most() -> int:
    """Return how many connections may be open: `MOST`, or fewer if the limit on open files is low."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if files == resource.RLIM_INFINITY else max(8, min(MOST, (files - OTHER_FILES) // FILES_EACH))


class Connection(OneRequest):
    """Handle one connection. Close it if the client is too slow. If there are too many connections, close the one whose
    client we have waited for longest. If a client sends several requests without waiting for answers, answer only the
    first."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self._timer: asyncio.TimerHandle | None = None
        self._since = 0.0
        self._phase: tuple[object, Part] | None = None, Part.HEAD  # the request, and what of it the client sends
        self._closing, self._stalled = False, False
        self._new_head()
        if len(self.connections) > (limit := most()):
            logger.warning("more than %d connections: those that keep us waiting for longest are closed", limit)
            waiting = [one for one in self.connections if isinstance(one, Connection) and one._timer]
            last = min(waiting, key=lambda one: one._since, default=self)
            last.transport.abort()
            last._expect(None)  # it will be closed soon: the next new connection must not choose it again
        if not self.transport.is_closing():
            self._expect(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        while data and not self._closing and not self.transport.is_closing():
            if self.part is Part.HEAD:
                data = self._head_received(data)
            elif self.part is Part.BODY:
                self._body_received(data)
                data = b""
            else:  # the next request, before this one is answered
                self.answer_only_this()
                break
        if not self._closing and not self._stalled:
            phase = self.cycle, self.part
            if phase != self._phase:
                self._phase = phase
                self._stalled = self.part is Part.NOTHING and self.flow.write_paused  # the last answer is not read yet
                limits = {Part.HEAD: HEAD_SECONDS, Part.BODY: BODY_SECONDS}
                self._expect(ANSWER_SECONDS if self._stalled else limits.get(self.part))

    def _new_head(self) -> None:
        self._size, self._lines, self._last, self._cut_line, self._beside, self._chunks = 0, 0, b"", b"", 0, 0

    def _head_received(self, data: bytes) -> bytes:
        """Process the part of `data` that belongs to the head of a request, and return the rest. Parse only whole lines."""
        self._unset_keepalive_if_required()  # a head has begun, also if its first line is not complete
        end = HEAD_END.search(self._last + data)
        length = end.end() - len(self._last) if end else len(data)
        head, rest = data[:length], data[length:]
        self._size, self._lines = self._size + len(head), self._lines + head.count(b"\n")
        self._last = (self._last + head)[-3:]
        if self._size == len(head) and head.startswith(HANDSHAKE):
            self._refuse("this server speaks HTTP: use the same address with http:// at its start", 400)
            return b""
        if self._size > MAX_HEAD or self._lines > MAX_LINES:
            self._refuse(f"send at most {MAX_LINES} headers and {MAX_HEAD:,} bytes of them", 431)
            return b""
        lines, end_of_line, self._cut_line = (self._cut_line + head).rpartition(b"\n")
        if end_of_line:
            super().data_received(UPGRADE.sub(b"x-upgrade", lines + end_of_line))  # renamed, so that llhttp checks it
        if self.part is not Part.HEAD:
            self._new_head()
        return rest

    def _body_received(self, data: bytes) -> None:
        self._beside, self._chunks = self._beside + len(data), 0
        super().data_received(data)
        if self._chunks > MAX_CHUNKS and self._chunks * CHUNK_BYTES > len(data):
            self._refuse("the body is cut into too many pieces: send it in larger ones", 400)
        elif self._beside > MAX_HEAD and self.part is Part.BODY:  # llhttp would keep a trailer of any length
            self._refuse(f"send at most {MAX_HEAD:,} bytes beside the body", 400)

    def on_chunk_header(self) -> None:
        """Count a chunk. The parser calls this."""
        self._chunks += 1

    def on_body(self, body: bytes) -> None:
        self._beside = 0
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        if self.part is Part.NOTHING:  # the request is whole, and what follows it cannot be read
            self.answer_only_this()
        else:
            self._refuse("this is no HTTP/1.1 request that can be read", 400)

    def _refuse(self, detail: str, status: int) -> None:
        """Send an error for an invalid request, unless another answer has begun, and close the connection."""
        if self._closing:  # refused already
            return
        cycle = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            if cycle:
                cycle.disconnected = True  # the app must not answer as well
                cycle.waiting_for_100_continue = False
                cycle.message_event.set()
            body = json.dumps({"detail": detail}).encode()
            headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
            headers |= HEADERS | {"content-security-policy": FRAMES}
            lines = [f"HTTP/1.1 {status} ", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
            self.transport.write("\r\n".join(lines).encode() + body)
            self._close_slowly()
        else:
            self.transport.abort()

    def on_response_complete(self) -> None:
        self._stalled = False
        if self.part is Part.BODY and not self.transport.is_closing():
            self.server_state.total_requests += 1
            self._close_slowly()
        else:
            self._phase = None
            super().on_response_complete()
            self._expect(ANSWER_SECONDS)

    def _close_slowly(self) -> None:
        """Close our side, and discard what the client still sends. If we closed both sides immediately, the client's system
        would drop our answer."""
        self._closing = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._expect(CLOSING_SECONDS)

    def pause_writing(self) -> None:
        super().pause_writing()
        if not self._stalled:
            self._stalled = True
            self._expect(ANSWER_SECONDS)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled and not self._closing and self.part is Part.NOTHING and not self.cycle.response_started:
            self._stalled = False  # the client has read the last answer: now the server works
            self._expect(None)

    def _expect(self, seconds: float | None) -> None:
        """Close the connection after `seconds`, unless this is called again before. None: no limit, the server works."""
        if self._timer:
            self._timer.cancel()
        self._since = self.loop.time()
        self._timer = self.loop.call_later(seconds, self.transport.abort) if seconds else None


class EncryptedConnection(Connection):
    """Handle one connection with TLS. It counts as one from its start, and has `HEAD_SECONDS` for its handshake and its
    first head together. If a client sends HTTP without TLS, it gets an error that says so.

    uvicorn's own TLS gives each handshake 60 seconds, and a connection counts only after it. So a thousand clients that
    send nothing would keep all others out.
    """

    _bare: asyncio.Transport  # what the encrypted bytes go through

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin a connection. The second call, when the handshake has succeeded, brings the encrypted transport."""
        if is_ssl(cast(asyncio.Transport, transport)):
            OneRequest.connection_made(self, cast(asyncio.Transport, transport))
        else:
            self._bare = cast(asyncio.Transport, transport)
            super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if self.scheme == "https" or self._closing:
            super().data_received(data)
        elif data.startswith(HANDSHAKE):
            self._begin_handshake(data)
        else:
            self._refuse("this server speaks HTTPS: use the same address with https:// at its start", 400)

    def _begin_handshake(self, data: bytes) -> None:
        """Put TLS between the bare transport and this connection. Pass it the bytes that came already."""
        ended = self.loop.create_future()
        ended.add_done_callback(self._handshake_ended)
        context = cast(Config, self.config).tls
        tls = tls_files.Tls(self.loop, self, context, ended, server_side=True, ssl_shutdown_timeout=ANSWER_SECONDS)
        self._bare.set_protocol(tls)
        tls.connection_made(self._bare)
        while data and not self._bare.is_closing():
            buffer = tls.get_buffer(len(data))
            part = data[: len(buffer)]
            buffer[: len(part)] = part
            tls.buffer_updated(len(part))
            data = data[len(part) :]

    def _handshake_ended(self, ended: asyncio.Future[None]) -> None:
        error = ended.exception()
        if self.scheme != "https":  # asyncio does not report a failed handshake
            self.connection_lost(cast(Exception | None, error))

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._close_now()

    def shutdown(self) -> None:
        super().shutdown()
        self._close_now()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._close_now()

    def _close_now(self) -> None:
        """Close a closing connection as soon as all is sent. asyncio would wait until the client says goodbye, too."""
        if self.transport.is_closing():
            self._bare.close()


class Config(uvicorn.Config):
    """Hold the settings of uvicorn for every server of the lab. With `files`, a certificate and its key, it speaks TLS."""

    tls: ssl.SSLContext

    def __init__(self, app: Any, files: tls_files.Files | None, workers: int = 1, factory: bool = False) -> None:
        super().__init__(
            app,
            http=EncryptedConnection if files else Connection,
            log_level="warning",  # at "info" every request would be printed into whichever cell is running
            log_config=None,  # uvicorn's own would reset the logging of the whole process, the notebook's too
            loop="asyncio",  # and not what else happens to be installed
            ws="none",
            backlog=most(),
            server_header=False,
            timeout_graceful_shutdown=10,
            workers=workers,
            factory=factory,
        )
        self.files = files

    def load(self) -> None:
        super().load()
        if self.files:
            self.tls = tls_files.server_context(*self.files)
