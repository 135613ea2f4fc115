"""Limit load: memory, requests a route, length of the queue. Refuse the rest before their bodies are read.

A server without limits answers too late under load: at 1.5 times its capacity, 40 threads without a limit answer a tenth of
the requests that two slots and a short queue answer. So `Slots` do the work, and `Admission` refuses requests that do not
fit. Bodies that arrive, uploads that wait, pictures in work and answers that are not read yet share one `Budget` of bytes.
Some places, slots and memory are reserved for small uploads.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labsupport.access import CHANGE
from labsupport.protection import security
from labsupport.protection.memory import LARGE_BODY, Hold
from labsupport.protection.slots import OVERLOADED, Slots

RETRY_AFTER = {"Retry-After": "1"}
BODY_SECONDS = 30  # for a whole upload to arrive
MAX_QUERY = 2_000  # bytes
PIECE = 65_536  # bytes of an answer that are sent at a time: the next ones follow when the client has read these


@dataclass(frozen=True)
class Rule:
    """Describe the limits of a path."""

    most: int  # bytes of a body
    copies: int = 1  # copies of the body in memory at the same time: as received, parsed, checked
    values: int | None = None  # commas in a body, which is about how many values JSON holds
    predicts: bool = False  # its POST waits for a slot
    guarded: tuple[str, ...] = ()  # methods that need the token, on loopback too
    too_large: str = ""  # the message for a body that is too large

    def needs_token(self, method: str, headers: Headers) -> bool:
        return method in self.guarded or (self.predicts and "x-record-id" in headers)


OTHER = Rule(1_000)  # for every path without a rule


class Admission:
    """Refuse a request before its body is read if a required token is missing, the body is too large, or no place or memory
    is free. While the body is read, refuse it if it grows too large or takes too long."""

    def __init__(
        self,
        app: ASGIApp,
        slots: Slots,
        rules: Mapping[str, Rule],
        wrong_tokens: security.WrongTokens,
        refused: Callable[[], None] = lambda: None,
    ) -> None:
        """Wrap `app`. `rules` maps paths to rules. `refused` is called for each prediction without a place or memory."""
        self.app, self.slots, self.rules, self.wrong_tokens, self.refused = app, slots, rules, wrong_tokens, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        rule = self.rules.get(scope["path"].removeprefix(scope.get("root_path", "")), OTHER)
        headers = Headers(scope=scope)
        if rule.needs_token(scope["method"], headers) and not security.may(scope, CHANGE):
            return await self.wrong_tokens.refuse(scope, receive, send)
        if len(scope["query_string"]) > MAX_QUERY:
            refusal = JSONResponse(
                {"detail": f"the address is too long: send at most {MAX_QUERY:,} bytes after the ?"}, 414
            )
            return await refusal(scope, receive, send)
        length = headers.get("content-length", "")
        size = int(length) if length.isdecimal() else 0
        if size > rule.most and rule is not OTHER:
            return await JSONResponse({"detail": f"{size:,} bytes: {_too_large(rule)}"}, 413)(scope, receive, send)
        predicts, hold = rule.predicts and scope["method"] == "POST", Hold(self.slots.budget)
        no_place = predicts and (self.slots.full or (size > LARGE_BODY and self.slots.full_of_large))
        try:
            if no_place or not hold.grow(rule.copies * min(size, rule.most)):
                return await self._refuse(predicts)(scope, receive, send)
            await self.app(scope, self._bounded(receive, rule, hold, predicts), _in_pieces(send, hold))
        finally:
            hold.set(0)

    def _refuse(self, predicts: bool) -> JSONResponse:
        if predicts:
            self.refused()
        return JSONResponse({"detail": OVERLOADED}, 503, RETRY_AFTER)

    def _bounded(self, receive: Receive, rule: Rule, hold: Hold, predicts: bool) -> Receive:
        """Return `receive` with limits on bytes and seconds."""
        received, values, deadline = 0, 0, time.monotonic() + BODY_SECONDS

        async def bounded() -> Message:
            nonlocal received, values
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the upload took more than {BODY_SECONDS} seconds: send it again") from None
            body = message.get("body", b"")
            received += len(body)
            values += 0 if rule.values is None else body.count(b",")
            if received > rule.most or (rule.values is not None and values > rule.values):
                raise HTTPException(413, _too_large(rule))
            if not hold.grow(rule.copies * received):
                if predicts:
                    self.refused()
                raise HTTPException(503, OVERLOADED, RETRY_AFTER)
            return message

        return bounded


def _too_large(rule: Rule) -> str:
    return rule.too_large or f"send at most {rule.most:,} bytes"


def _in_pieces(send: Send, hold: Hold) -> Send:
    """Return a `send` that waits until the client has read each piece of a long answer. Until then it counts as memory."""

    async def piecewise(message: Message) -> None:
        body = message.get("body", b"")
        if len(body) <= PIECE:
            return await send(message)
        hold.set(max(hold.size, len(body)))
        for start in range(0, len(body), PIECE):
            more = message.get("more_body", False) or start + PIECE < len(body)
            await send({**message, "body": bytes(body[start : start + PIECE]), "more_body": more})

    return piecewise
