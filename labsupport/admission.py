"""Holding under load: as many pictures at work as there are cores, a bounded queue behind them, and a quick no past it.

A server that takes everything answers nothing in time: at 1.5 times its capacity, 40 threads without a limit answer a
tenth of what two slots and a short queue do. So `Slots` do the work, and `Admission` says 503 with `Retry-After` before a
byte of the upload is read.
"""

import asyncio
import contextlib
import functools
import os
import threading
import time
import weakref
from collections.abc import Callable
from queue import SimpleQueue

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

WAITING_PER_SLOT = 12  # an accepted picture waits about a second at the worst, at f32
RETRY_AFTER = {"Retry-After": "1"}
BODY_SECONDS = 30  # for a whole upload to arrive
OVERLOADED = "the server is busy: send it again in a second"


class Overloaded(RuntimeError):
    """The queue is full."""


class Slots:
    """Threads for the pictures that are worked on, and a bounded number of pictures that wait for one.

    One thread more than there are cores: while the others wait for the network, it decodes and draws.

    >>> slots = Slots(count=1)
    >>> asyncio.run(slots.run(len, b"a picture"))
    9
    """

    def __init__(self, count: int | None = None, waiting: int | None = None) -> None:
        self.count = count or (os.cpu_count() or 1) + 1
        self.limit = self.count + (self.count * WAITING_PER_SLOT if waiting is None else waiting)
        self.taken = 0  # changed in the event loop's thread only
        self._queue: SimpleQueue = SimpleQueue()
        for _ in range(self.count):
            # daemons: work that hangs must not keep the process from stopping
            threading.Thread(target=_work_off, args=(self._queue,), name="slot", daemon=True).start()
        weakref.finalize(self, _dismiss, self._queue, self.count)

    @property
    def full(self) -> bool:
        return self.taken >= self.limit

    async def run(self, work: Callable, *arguments):
        """`work(*arguments)` in a slot, when its turn comes. Raises `Overloaded` if the queue is full.

        The place is given back when the work is done, even if the client that asked for it is gone.
        """
        if self.full:
            raise Overloaded(OVERLOADED)
        self.taken += 1
        loop = asyncio.get_running_loop()
        answer = loop.create_future()
        self._queue.put((work, arguments, loop, functools.partial(self._settle, answer)))
        return await answer

    def _settle(self, answer: asyncio.Future, result, error: Exception | None) -> None:
        self.taken -= 1
        if answer.cancelled():
            return
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(error)


def _work_off(queue: SimpleQueue) -> None:
    """What a slot's thread does: one piece of work after another, until it is dismissed."""
    while (order := queue.get()) is not None:
        work, arguments, loop, settle = order
        result, error = None, None
        try:
            result = work(*arguments)
        except Exception as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, result, error)
        del order, work, arguments, settle, result, error  # nothing is held on to while waiting


def _dismiss(queue: SimpleQueue, count: int) -> None:
    for _ in range(count):
        queue.put(None)


class Admission:
    """Refuses an upload before its body is read when it is too large or the slots' queue is full, and while it is read when
    it grows too large or takes too long."""

    def __init__(
        self, app, slots: Slots, max_bytes: int, too_large: str, refused: Callable[[], None] = lambda: None
    ) -> None:
        """`refused` is called for each upload that finds the queue full."""
        self.app, self.slots, self.max_bytes, self.too_large, self.refused = app, slots, max_bytes, too_large, refused

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        length = Headers(scope=scope).get("content-length", "")
        if length.isdecimal() and int(length) > self.max_bytes:
            refusal = JSONResponse({"detail": f"{int(length):,} bytes: {self.too_large}"}, 413)
            return await refusal(scope, receive, send)
        if self.slots.full:
            self.refused()
            return await JSONResponse({"detail": OVERLOADED}, 503, RETRY_AFTER)(scope, receive, send)
        await self.app(scope, self._bounded(receive), send)

    def _bounded(self, receive):
        """`receive`, with an end in bytes and in seconds."""
        received, deadline = 0, time.monotonic() + BODY_SECONDS

        async def bounded():
            nonlocal received
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the upload took more than {BODY_SECONDS} seconds: send it again") from None
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise HTTPException(413, self.too_large)
            return message

        return bounded
