"""Limit load: memory, requests a route, length of the queue. Refuse the rest before their bodies are read.

A server without limits answers too late under load: at 1.5 times its capacity, 40 threads without a limit answer a tenth of
the requests that two slots and a short queue answer. So `Slots` do the work, and `Admission` refuses requests that do not
fit. Bodies that arrive, uploads that wait, pictures in work and answers that are not read yet share one `Budget` of bytes.
Some places, slots and memory are reserved for small uploads.
"""

import asyncio
import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar, TypeVarTuple

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labsupport import arguments, background
from labsupport.access import CHANGE
from labsupport.protection import security
from labsupport.protection.memory import LARGE_BODY, SMALL, Budget, Hold

EXTRA_SLOTS = 2  # threads more than cores: they decode, draw, or have a picture ready for the next free core
WAITING_PER_SLOT = 9  # two cores with AVX-512 at f32: an accepted picture then waits about a second at most
MOST_SLOTS = 1_002  # each is a thread
RETRY_AFTER = {"Retry-After": "1"}
BODY_SECONDS = 30  # for a whole upload to arrive
OVERLOADED = "the server is busy: send it again in a second"
MAX_QUERY = 2_000  # bytes
PIECE = 65_536  # bytes of an answer that are sent at a time: the next ones follow when the client has read these


Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


class Overloaded(RuntimeError):
    """The queue is full."""


@dataclass(eq=False)
class _Order:
    """Hold one piece of work that waits for a slot, and the future for its result."""

    work: Callable[..., object]
    arguments: tuple[object, ...]
    need: int
    large: bool
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future[Any]


class _Line:
    """Hold waiting orders and count those at work, for the threads of `Slots`. Change it only with the budget's lock."""

    def __init__(self, slots: int, budget: Budget) -> None:
        self.slots, self.budget = slots, budget
        self.waiting: list[_Order] = []
        self.at_work = 0
        self.large = 0  # large orders, waiting or at work
        self.ready: SimpleQueue[_Order | None] = SimpleQueue()  # orders for the threads; None ends a thread
        budget.given_back = self.move_up

    @property
    def taken(self) -> int:
        return len(self.waiting) + self.at_work

    def join(self, order: _Order) -> None:
        self.large += order.large
        self.waiting.append(order)
        self.move_up()

    def move_up(self) -> None:
        """Give slots to waiting orders, as long as there are free slots and memory."""
        while self.at_work < self.slots and (order := self._next()):
            self.waiting.remove(order)
            self.at_work += 1
            self.ready.put(order)

    def _next(self) -> _Order | None:
        """Reserve the memory of the next order and return it: the oldest one. The last free slot is for small pictures. So a
        small picture never waits for several large ones, and a large one never for all small ones."""
        last = self.slots > 1 and self.at_work == self.slots - 1
        small = [order for order in self.waiting if not order.large]
        large = next((order for order in self.waiting if order.large), None)  # the others wait behind it
        for order in small if last else self.waiting:
            if (not order.large or order is large) and self.budget.take(order.need, SMALL if order.large else 0):
                return order
        return None

    def leave(self, order: _Order) -> None:
        with self.budget.lock:
            self.at_work -= 1
            self.large -= order.large
            self.budget.give(order.need)

    def work_off(self) -> bool:
        """Do one piece of work in the thread of a slot. Return True if the thread must end."""
        if (order := self.ready.get()) is None:
            return True
        result, error = None, None
        try:
            result = order.work(*order.arguments)
        except BaseException as raised:  # including SystemExit, which would end the thread: `_settle` converts it
            error = raised
        finally:
            self.leave(order)
        with contextlib.suppress(RuntimeError):  # the loop is closed: no request waits any more
            order.loop.call_soon_threadsafe(_settle, order.answer, result, error)
        return False


def _settle(answer: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    """Set the result or the error of the future that a request waits for. Runs in the thread of the loop."""
    if answer.cancelled():
        return
    if error is None:
        answer.set_result(result)
    elif isinstance(error, Exception) and not isinstance(error, StopIteration):
        answer.set_exception(error)
    else:  # SystemExit and its like would stop the event loop, and a future takes no StopIteration
        replaced = RuntimeError(f"the work in a slot raised {type(error).__name__}")
        replaced.__cause__ = error
        answer.set_exception(replaced)


class Slots:
    """Run work on a fixed number of threads, with a bounded number of pictures that wait.

    By default there are `EXTRA_SLOTS` threads more than cores.

    >>> slots = Slots(count=1)
    >>> asyncio.run(slots.run(len, b"a picture"))
    9
    """

    def __init__(self, count: int | None = None, waiting: int | None = None, budget: Budget | None = None) -> None:
        count = (os.cpu_count() or 1) + EXTRA_SLOTS if count is None else count
        self.count = arguments.number("count", count, 1, MOST_SLOTS, whole=True)
        waiting = self.count * WAITING_PER_SLOT if waiting is None else waiting
        self.limit = self.count + arguments.number("waiting", waiting, least=0, whole=True)
        self.budget = Budget() if budget is None else budget
        self._line = line = _Line(self.count, self.budget)
        stop = threading.Event()
        for _ in range(self.count):
            background.repeat(line.work_off, "slot", stop)
        weakref.finalize(self, _dismiss, line.ready, self.count)

    @property
    def taken(self) -> int:
        return self._line.taken

    @property
    def full(self) -> bool:
        return self.taken >= self.limit

    @property
    def full_of_large(self) -> bool:
        """Return whether large uploads have taken all their places, which are half of all places."""
        return self._line.large >= max(1, self.limit // 2)

    async def run(
        self, work: Callable[[*Arguments], Result], *arguments: *Arguments, need: int = 0, large: bool = False
    ) -> Result:
        """Return `work(*arguments)`, run in a slot as soon as one and `need` bytes of memory are free.

        Raises `Overloaded` if the queue is full, the errors of `work`, and RuntimeError in place of SystemExit and similar.
        The place is released when the work ends, also after an error, and also if the client has disconnected.
        """
        loop = asyncio.get_running_loop()
        with self.budget.lock:
            if self.full or (large and self.full_of_large):
                raise Overloaded(OVERLOADED)
            order = _Order(work, arguments, need, large, loop, loop.create_future())
            self._line.join(order)
        result: Result = await order.answer
        return result


def _dismiss(ready: SimpleQueue[_Order | None], count: int) -> None:
    for _ in range(count):
        ready.put(None)


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
