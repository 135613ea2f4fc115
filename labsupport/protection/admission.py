"""Hold under load and under attack: one budget of memory, one limit a route, a bounded queue, and a quick refusal past them.

A server that takes everything answers nothing in time: at 1.5 times its capacity, 40 threads without a limit answer a
tenth of what two slots and a short queue do. So `Slots` do the work, and `Admission` refuses what does not fit before a byte
of the body is read. Bodies under way, uploads that wait, pictures at work and answers that are not read yet draw on one
`Budget` of bytes. What is large leaves a part of places, slots and memory to what is small.
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

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from labsupport import arguments, background
from labsupport.protection import security
from labsupport.protection.memory import LARGE_BODY, SMALL, Budget, Hold

WAITING_PER_SLOT = 12  # an accepted picture waits about a second at the worst, at f32
MOST_SLOTS = 1_001  # each is a thread
RETRY_AFTER = {"Retry-After": "1"}
BODY_SECONDS = 30  # for a whole upload to arrive
OVERLOADED = "the server is busy: send it again in a second"
MAX_QUERY = 2_000  # bytes
PIECE = 65_536  # bytes of an answer that are handed over at once: the next ones go when these are read


class Overloaded(RuntimeError):
    """The queue is full."""


@dataclass(eq=False)
class _Order:
    """One piece of work that waits for a slot, and where its result goes."""

    work: Callable
    arguments: tuple
    need: int
    large: bool
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future


class _Line:
    """Who waits and who is at work: what the threads of `Slots` share. It is changed under the budget's lock only."""

    def __init__(self, slots: int, budget: Budget) -> None:
        self.slots, self.budget = slots, budget
        self.waiting: list[_Order] = []
        self.at_work = 0
        self.large = 0  # of all who have a place
        self.ready: SimpleQueue = SimpleQueue()  # what the threads take; None ends one
        budget.given_back = self.move_up

    @property
    def taken(self) -> int:
        return len(self.waiting) + self.at_work

    def join(self, order: _Order) -> None:
        self.large += order.large
        self.waiting.append(order)
        self.move_up()

    def move_up(self) -> None:
        """Give a slot to each that waits, as long as there are slots and memory."""
        while self.at_work < self.slots and (order := self._next()):
            self.waiting.remove(order)
            self.at_work += 1
            self.ready.put(order)

    def _next(self) -> _Order | None:
        """Return the next one, with its memory taken: the first that came. The last free slot is for small pictures, the
        smallest first. So a small picture never waits for several large ones, and a large one never for all small ones."""
        last = self.slots > 1 and self.at_work == self.slots - 1
        small = [order for order in self.waiting if not order.large]
        large = next((order for order in self.waiting if order.large), None)  # the others wait behind it
        candidates = sorted(small, key=lambda order: order.need) if last else self.waiting
        for order in candidates:
            if (not order.large or order is large) and self.budget.take(order.need, SMALL if order.large else 0):
                return order
        return None

    def leave(self, order: _Order) -> None:
        with self.budget.lock:
            self.at_work -= 1
            self.large -= order.large
            self.budget.give(order.need)

    def work_off(self) -> bool:
        """Do one piece of work in a slot's thread. Return True if the thread is dismissed."""
        if (order := self.ready.get()) is None:
            return True
        result, error = None, None
        try:
            result = order.work(*order.arguments)
        except BaseException as raised:  # also what would end the thread: `_settle` turns it into an error
            error = raised
        finally:
            self.leave(order)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            order.loop.call_soon_threadsafe(_settle, order.answer, result, error)
        return False


def _settle(answer: asyncio.Future, result, error: BaseException | None) -> None:
    """Hand the result or the error over to who waits, in the thread of the loop."""
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
    """Threads for the pictures that are worked on, and a bounded number of pictures that wait for one.

    One thread more than there are cores: while the others wait for the network, it decodes and draws.

    >>> slots = Slots(count=1)
    >>> asyncio.run(slots.run(len, b"a picture"))
    9
    """

    def __init__(self, count: int | None = None, waiting: int | None = None, budget: Budget | None = None) -> None:
        count = (os.cpu_count() or 1) + 1 if count is None else count
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
        """Whether large uploads have all the places that they may have, which is half of them."""
        return self._line.large >= max(1, self.limit // 2)

    async def run(self, work: Callable, *arguments, need: int = 0, large: bool = False):
        """Return `work(*arguments)`, done in a slot when its turn comes and `need` bytes of memory are free.

        Raises `Overloaded` if the queue is full, what `work` raises, and RuntimeError for SystemExit and its like. The place
        is given back when the work is done, whatever it raised, even if the client that asked for it is gone.
        """
        loop = asyncio.get_running_loop()
        with self.budget.lock:
            if self.full or (large and self.full_of_large):
                raise Overloaded(OVERLOADED)
            order = _Order(work, arguments, need, large, loop, loop.create_future())
            self._line.join(order)
        return await order.answer


def _dismiss(ready: SimpleQueue, count: int) -> None:
    for _ in range(count):
        ready.put(None)


@dataclass(frozen=True)
class Rule:
    """What a path takes."""

    most: int  # bytes of a body
    copies: int = 1  # so many times the body's bytes are in memory at once: as they came, parsed, checked
    values: int = 1_000_000_000  # commas in a body, which is about how many values JSON holds
    predicts: bool = False  # its POST waits for a slot
    guarded: tuple[str, ...] = ()  # methods that need the token, on loopback too
    too_large: str = ""  # what to send instead

    def needs_token(self, method: str, headers: Headers) -> bool:
        return method in self.guarded or (self.predicts and "x-record-id" in headers)


OTHER = Rule(1_000)  # for every path that has no rule of its own


class Admission:
    """Refuses a request before its body is read if the token is missing where it is needed, the body is too large, or there
    is no place or no memory for it; and while the body is read, if it grows too large or takes too long."""

    def __init__(
        self,
        app,
        slots: Slots,
        rules: Mapping[str, Rule],
        wrong_tokens: security.WrongTokens,
        refused: Callable[[], None] = lambda: None,
    ) -> None:
        """`rules` are looked up by path. `refused` is called for each prediction that finds no place or no memory."""
        self.app, self.slots, self.rules, self.wrong_tokens, self.refused = app, slots, rules, wrong_tokens, refused

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        rule = self.rules.get(scope["path"].removeprefix(scope.get("root_path", "")), OTHER)
        headers = Headers(scope=scope)
        if rule.needs_token(scope["method"], headers) and not security.carries(headers, security.token()):
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

    def _bounded(self, receive, rule: Rule, hold: Hold, predicts: bool):
        """`receive`, with an end in bytes and in seconds."""
        received, values, deadline = 0, 0, time.monotonic() + BODY_SECONDS

        async def bounded():
            nonlocal received, values
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the upload took more than {BODY_SECONDS} seconds: send it again") from None
            body = message.get("body", b"")
            received += len(body)
            values += body.count(b",")
            if received > rule.most or values > rule.values:
                raise HTTPException(413, _too_large(rule))
            if not hold.grow(rule.copies * received):
                if predicts:
                    self.refused()
                raise HTTPException(503, OVERLOADED, RETRY_AFTER)
            return message

        return bounded


def _too_large(rule: Rule) -> str:
    return rule.too_large or f"send at most {rule.most:,} bytes"


def _in_pieces(send, hold: Hold):
    """`send`, which waits for the client to read each piece of a long answer: until then it counts as memory in use."""

    async def piecewise(message) -> None:
        body = message.get("body", b"")
        if len(body) <= PIECE:
            return await send(message)
        hold.set(max(hold.size, len(body)))
        for start in range(0, len(body), PIECE):
            more = message.get("more_body", False) or start + PIECE < len(body)
            await send({**message, "body": bytes(body[start : start + PIECE]), "more_body": more})

    return piecewise
