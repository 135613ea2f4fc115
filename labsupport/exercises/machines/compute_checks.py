"""Define the check cells of compute.ipynb, and one of server.ipynb that estimates a time.

The right answers depend on the machine, so each check gets the measurements.
"""

from typing import TYPE_CHECKING

import numpy as np

from labsupport.compute import Machine, Server, machines_for
from labsupport.exercises.exercise import OpenExercise, Question, exercise, is_number

if TYPE_CHECKING:
    import pandas as pd

RATE, P99 = 200, 0.5  # requests a second; seconds
CLOSE = 0.05  # an answer is right that is this close: a simulation has its noise
PROCESS, MEMORY, DECODED, FILE = 250, 1_000, 36, 3  # MB: the server, its machine, a picture in memory and as a file
TINY, LARGE = 5.56, 65.86  # billions of operations for a picture: yolov3-tiny, and yolov3
LIMIT = 200  # milliseconds
EXACT = 99  # % of f32's objects


@exercise(
    "machines_for(model, rate, p99) gives the number while all of them run.",
    "On the worst day one of them is down, and the others must still keep the promise.",
)
def enough_machines(answer: int, server: Server) -> str | None:
    """Check the number of such servers that answer `RATE` requests a second with a 99th percentile of at most `P99`
    seconds, also while one of them is down.
    """
    if not is_number(answer, whole=True) or answer < 1:
        return "give a whole number of machines"
    right = machines_for(server, RATE, P99) + 1
    if answer == right:
        return None
    if answer == right - 1:
        return "that is enough only while all of them run, and one may be down"
    if answer > right:
        return f"that is enough, and so are fewer: think of {answer - 1}, and of one that is down"
    if answer == 1:
        return "while this one is down, nobody gets an answer"
    each = RATE / (answer - 1)
    left = f"while one is down, each of the others gets {each:.0f} requests/s"
    if server.utilisation(each) >= 1:
        return f"{left}, more than the capacity of {server.capacity:.0f}/s"
    return f"{left}, and their 99th percentile is {server.predict(each).p99 * 1000:.0f} ms"


@exercise(
    "model.predict(rate) returns p50 and p99 in seconds.",
    "The rate is half of model.capacity.",
)
def half_load(answer: float, server: Server) -> str | None:
    """Check the predicted 99th percentile, in seconds, at half of the capacity."""
    if not is_number(answer):
        return "give seconds: server.predict(rate).p99"
    said = server.predict(server.capacity / 2)
    if _close(answer, said.p99):
        return None
    if _close(answer, 1000 * said.p99):
        return "that is in milliseconds: give seconds"
    return (
        "that is the median: how long do the slowest of 100 take?"
        if _close(answer, said.p50)
        else "at which rate? Half of server.capacity"
    )


@exercise(
    "First leave out the rows in which less than 99 % is exact, then look at the price of the others.",
    "table[table[column] >= number] keeps the rows with this number or more; idxmin() names the row with the lowest value.",
)
def cheapest(answer: str, table: "pd.DataFrame") -> str | None:
    """Check the runtime (a row of `table`) that costs least in dollars, of those with at least `EXACT` in "exact %"."""
    if answer not in table.index:
        return f"give one of {', '.join(table.index)}"
    price, exact = table["$ a million"], table["exact %"]
    if exact[answer] < EXACT:
        return f"{answer} finds only {exact[answer]:.1f} % exactly, and at least {EXACT} % are needed"
    best = price[exact >= EXACT].idxmin()
    if answer == best:
        return None
    return (
        f"a runtime that costs less than {answer} is exact enough, too"
        if price[answer] > 0
        else f"{answer} has no price"
    )


@exercise(
    "How many times as many operations does yolov3 need as yolov3-tiny?",
    "Multiply your milliseconds by that factor, and compare the result with 200.",
)
def larger_model(estimate: float, keeps: bool, milliseconds: float) -> str | None:
    """server.ipynb: the milliseconds of yolov3, estimated from those of yolov3-tiny, and whether they keep the limit."""
    if not is_number(estimate) or not isinstance(keeps, bool | np.bool_):
        return "give a number of milliseconds, and True or False"
    right = milliseconds * LARGE / TINY
    if _close(estimate, right / 1000):
        return "that is in seconds: give milliseconds"
    if _close(estimate, milliseconds * TINY / LARGE):
        return "that is shorter, but yolov3 needs more operations"
    if _close(estimate, milliseconds * 248 / 35):  # megabytes of their weights
        return "that grows as the weights do: a weight is used at many places of a picture, so compare the operations"
    if not _close(estimate, right):
        return f"{estimate:.0f} ms: the time should grow by the same factor as the operations"
    if keeps != (estimate <= LIMIT):
        return f"{estimate:.0f} ms are {'within' if estimate <= LIMIT else 'above'} the limit of {LIMIT} ms"
    return None


@exercise(
    "By which factor is an hour of the GPU machine more expensive?",
    "It must answer more pictures than cpu_rate by the same factor.",
)
def gpu_break_even(answer: float, cpu_rate: float, cpu: Machine, gpu: Machine) -> str | None:
    """Check the pictures a second from which the GPU's machine costs less a picture than the CPU's at `cpu_rate`."""
    if not is_number(answer):
        return "give a number of pictures a second"
    factor = gpu.dollars_per_hour / cpu.dollars_per_hour
    if _close(answer, cpu_rate * factor):
        return None
    slips = {
        factor: "that is how many times as much an hour costs: of which rate?",
        cpu_rate / factor: "that is slower than the CPU, on a machine that costs more",
        cpu_rate: "at the rate of the CPU the more expensive machine costs more a picture",
    }
    nearest = min(slips, key=lambda slip: abs(answer - slip))  # at some rates two of them are nearly the same number
    if _close(answer, nearest):
        return slips[nearest]
    return "the price of an hour, divided by the pictures of an hour, must be the same on both machines"


@exercise(
    "What is left of the memory when the process itself is loaded?",
    "Divide what is left by the size of one decoded picture, and round down.",
)
def queue_in_memory(answer: int) -> str | None:
    """Check how many decoded pictures of 36 MB fit beside a process of 250 MB into 1,000 MB."""
    if not is_number(answer, whole=True):
        return "give a whole number of pictures"
    right = (MEMORY - PROCESS) // DECODED
    if answer == right:
        return None
    if answer == MEMORY // DECODED:
        return "the process itself takes 250 MB"
    if answer == (MEMORY - PROCESS) // FILE:
        return "that many files fit, but decoded pictures are larger"
    if answer > right:
        return f"{answer} pictures and the process take {PROCESS + answer * DECODED:,} MB"
    return f"{answer} fit, and more would fit, too"


sizing_note = OpenExercise(
    "From the arithmetic we guessed too few machines. Measured and simulated, 200 pictures a second need the number that "
    "the table gives, plus one in case a machine fails. We assumed that all pictures are like the measured one and arrive "
    "at random. If the pictures get larger, or the provider slows the machine down, we measure again.",
    "Does it name the number of machines, and the spare?",
    "Does it say what was measured and what was assumed?",
    "Does it say when the number has to be worked out again?",
)

blocked_clients = Question(
    "In a load test, one client sends its next request when it has its answer. The server stalls for a second. "
    "What does the test report?",
    right="a",
    a=(
        "One slow request; all others are fast.",
        "The client was waiting too, so it did not send the requests that users would have sent in that second.",
    ),
    b=(
        "As many slow requests as users would have met.",
        "That needs an open loop, which sends at its own times. This client sent nothing while it waited.",
    ),
    c=("A second of errors.", "Nothing failed: the server answered late."),
)

idle_server = Question(
    "A server is idle a fifth of the time. Why do requests have to wait?",
    right="c",
    a=("The server gets slower when it is busy.", "Our simulated server always took 20 ms, and its requests waited."),
    b=("Its queue is too long.", "The queue is where requests wait. It is not the reason why they come together."),
    c=(
        "Requests arrive at random, so some come close together.",
        "With even gaps nobody waited. The idle time lies between the clusters and helps nobody.",
    ),
)

half_busy = Question(
    "A GPU machine costs six times as much an hour as a CPU machine, and answers ten times as many pictures a second. "
    "Your load keeps one CPU machine half busy. Which is cheaper?",
    right="b",
    a=(
        "The GPU machine, because each picture is cheaper.",
        "Only if it is busy. At this load it would be idle 95 % of the time, and every hour is paid for.",
    ),
    b=("The CPU machine.", "One is enough, and an hour of it costs a sixth."),
    c=(
        "They cost the same.",
        "The prices of an hour differ by a factor of six, and you need one machine in both cases.",
    ),
)


def _close(answer: float, right: float) -> bool:
    return abs(answer / right - 1) < CLOSE
