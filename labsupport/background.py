"""Run work on threads that log their errors.

An exception ends a thread of Python without being noticed: a watcher that died looks like one with nothing to report. So
every thread of this package is started here.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

logger = logging.getLogger(__name__)
Result = TypeVar("Result")


def start(work: Callable[[], object], name: str) -> threading.Thread:
    """Call `work()` once, on a daemon thread called `name`, and return the thread.

    If `work` raises any exception, the thread logs it with its traceback before it ends.
    Raises RuntimeError if the system cannot start a thread.

    >>> start(lambda: print("done"), name="example").join()
    done
    """

    def run() -> None:
        try:
            work()
        except BaseException:
            logger.critical("the thread %r ended on an error: what it did is not done any more", name, exc_info=True)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


def repeat(
    step: Callable[[], bool | None],
    name: str,
    stop: threading.Event,
    every: float = 0.0,
    after_error: float = 1.0,
) -> threading.Thread:
    """Call `step()` again and again on a daemon thread called `name`, until `stop` is set or `step` returns True.

    Between two calls the thread waits `every` seconds, and `after_error` seconds after a call that raised. An error never
    ends the thread. It is logged with its traceback when it first appears, and not again until a call succeeds or another
    error occurs. The first success after an error is logged, too. Returns the thread.
    Raises RuntimeError if the system cannot start a thread.

    >>> stop, counts = threading.Event(), []
    >>> repeat(lambda: counts.append(1) or len(counts) == 3, name="example", stop=stop).join()
    >>> len(counts)
    3
    """

    def run() -> None:
        trouble = ""  # the error of the last call
        while not stop.is_set():
            try:
                done = step()
            except BaseException as error:
                if (text := repr(error)) != trouble:
                    logger.error("%s: %s; trying again", name, text, exc_info=True)
                trouble, done, pause = text, False, after_error
            else:
                if trouble:
                    logger.warning("%s: works again", name)
                trouble, pause = "", every
            if done or stop.wait(pause):
                return

    return start(run, name)


def after(seconds: float, work: Callable[[], object], name: str) -> Callable[[], None]:
    """Call `work()` on a daemon thread after `seconds`, unless the returned function is called first.

    If `work` raises, the error is logged as `start` does.

    >>> cancel = after(60, lambda: print("too late"), name="example")
    >>> cancel()
    """
    cancelled = threading.Event()
    start(lambda: cancelled.wait(seconds) or work(), name)
    return cancelled.set


def call(work: Callable[[], Result], name: str) -> Result:
    """Return `work()`, called on a thread called `name`. Raises the errors of `work`.

    An interrupt (Ctrl-C) is raised after `work` has ended, because native code cannot be stopped. So `work` never runs on
    after this has returned.

    >>> call(lambda: 6 * 7, name="example")
    42
    """
    with beside(work, name) as outcome:
        pass
    return outcome.result()


@contextlib.contextmanager
def beside(work: Callable[[], Result], name: str) -> Iterator[Future[Result]]:
    """Call `work()` on a thread called `name` while the block of the `with` statement runs, and give the block its outcome.

    The block ends when both have ended, also if the block raises an error or is interrupted. After it, `outcome.result()`
    returns what `work` returned or raises its error: call it always, because nothing else reports that error.

    >>> with beside(lambda: 6 * 7, name="example") as outcome:
    ...     text = "a product"
    >>> print(text, outcome.result())
    a product 42
    """
    outcome: Future[Result] = Future()

    def run() -> None:
        if outcome.set_running_or_notify_cancel():
            try:
                outcome.set_result(work())
            except BaseException as error:
                outcome.set_exception(error)

    try:
        start(run, name)
    except BaseException:
        if not outcome.cancel():  # an interrupt came when the work had begun
            _wait(outcome)
        raise
    try:
        yield outcome
    finally:
        _wait(outcome)


def _wait(outcome: Future[Any]) -> None:
    """Wait until the work has ended. An interrupt is raised after that."""
    interrupt = None
    while not outcome.done():
        try:
            outcome.exception()  # waits; after an interrupt, join would treat the thread as ended (Python < 3.13)
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt:
        raise interrupt
