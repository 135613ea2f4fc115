"""Parse the HTTP/1.1 requests of a connection with llhttp (`httptools`), one at a time.

llhttp goes on to the next request as soon as it has the end of one. If a client sends more before it has the answer,
`OneRequest` ignores that, and closes the connection after the answer. So requests never wait on a connection. A client that
sends one request at a time keeps its connection.
"""

import asyncio
from enum import Enum
from typing import cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Part(Enum):
    """A part of a request: the one that the client sends next on a connection."""

    HEAD = "the head of a request"
    BODY = "its body"
    NOTHING = "nothing, until it has the answer"


class OneRequest(HttpToolsProtocol):
    """Handle the requests of a connection. `part` tells what the client sends now."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self.part = Part.HEAD

    def answer_only_this(self) -> None:
        """Close the connection when the present request is answered."""
        if self.cycle:
            self.cycle.keep_alive = False

    def on_response_complete(self) -> None:
        self.part = Part.HEAD
        super().on_response_complete()

    def on_message_begin(self) -> None:
        if self.part is Part.HEAD:
            super().on_message_begin()
        else:  # the next request, in one piece with the end of this one
            self.answer_only_this()

    def on_url(self, url: bytes) -> None:
        if self.part is Part.HEAD:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.part is Part.HEAD:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.part is Part.HEAD:
            self._check_head()
            self.part = Part.BODY
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self.part is Part.BODY:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.part is Part.BODY:
            self.part = Part.NOTHING
            super().on_message_complete()
            if not self.parser.should_keep_alive():  # as a trailer may say: the parser reads nothing more
                self.answer_only_this()

    def _check_head(self) -> None:
        """Raise ValueError for a head that llhttp accepts and we do not. The caller then answers with status 400.

        HTTP/1.1 requires exactly one `Host`, and HTTP/1.0 allows none. The check of the origin reads it, so two would be
        ambiguous. The only transfer coding that we decode is "chunked". `should_upgrade` is true for CONNECT, which we do
        not support. HTTP/1.0 has no "100 Continue", so none is sent.
        """
        version, names = self.parser.get_http_version(), [name for name, _ in self.headers]
        hosts, least = names.count(b"host"), {"1.0": 0, "1.1": 1}.get(version, 2)  # 2: no other version
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if not least <= hosts <= 1 or codings not in ([], [b"chunked"]) or self.parser.should_upgrade():
            raise ValueError(f"HTTP/{version}, {hosts} hosts, transfer codings {codings}")
        self.expect_100_continue = self.expect_100_continue and version == "1.1"
