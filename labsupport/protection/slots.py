"""Run work on a few threads. Let a bounded number of orders wait, in the order in which they came.

Some slots, places and memory are reserved for small uploads. The memory comes from one `Budget`, as does that of the bodies
that arrive and of the answers that are not read yet.
"""

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar, TypeVarTuple

from labsupport import arguments, background
from labsupport.protection.memory import LARGEST, SMALL, Budget

EXTRA_SLOTS = 2  # threads more than cores: they decode, draw, or have a picture ready for the next free core
WAITING_PER_SLOT = 9  # two cores with AVX-512 at f32: an accepted picture then waits about a second at most
MOST_SLOTS = 1_002  # each is a thread
OVERLOADED = "the server is busy: send it again in a second"

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
        self.bytes_at_work = 0
        self.large = 0  # large orders, waiting or at work
        self.ready: SimpleQueue[_Order | None] = SimpleQueue()  # orders for the threads; None ends a thread
        budget.given_back = self.move_up

    @property
    def taken(self) -> int:
        return len(self.waiting) + self.at_work

    def join(self, order: _Order) -> bool:
        """Add an order. Return False for a large one that can neither begin now nor wait: uploads hold so much memory that
        the largest picture may not fit beside them. If only such orders waited, none could ever begin."""
        self.waiting.append(order)
        self.large += order.large
        self.move_up()
        resting = self.budget.taken - self.bytes_at_work
        if not order.large or order not in self.waiting or resting + LARGEST + SMALL <= self.budget.total:
            return True
        self.waiting.remove(order)
        self.large -= 1
        return False

    def move_up(self) -> None:
        """Give slots to waiting orders, as long as there are free slots and memory."""
        while self.at_work < self.slots and (order := self._next()):
            self.waiting.remove(order)
            self.at_work += 1
            self.bytes_at_work += order.need
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
            self.bytes_at_work -= order.need
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

        Raises `Overloaded` if the queue is full, or uploads hold too much memory for a large order to wait, the errors of
        `work`, and RuntimeError in place of SystemExit and similar.
        The place is released when the work ends, also after an error, and also if the client has disconnected.
        """
        loop = asyncio.get_running_loop()
        with self.budget.lock:
            if self.full or (large and self.full_of_large):
                raise Overloaded(OVERLOADED)
            order = _Order(work, arguments, need, large, loop, loop.create_future())
            if not self._line.join(order):
                raise Overloaded(OVERLOADED)
        result: Result = await order.answer
        return result


def _dismiss(ready: SimpleQueue[_Order | None], count: int) -> None:
    for _ in range(count):
        ready.put(None)
