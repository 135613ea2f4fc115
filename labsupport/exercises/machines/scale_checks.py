"""Define the check cells of scale.ipynb."""

import contextlib
from collections.abc import Callable

from labsupport.exercises.exercise import OpenExercise, Question, exercise, is_number

Replica = Callable[[object], object]  # a function of a picture
RATE, UPLOAD, PIXELS = 1_000, 100_000, 519_000  # requests a second; bytes: the upload is sent twice, the pixels once


@exercise(
    "The number of requests stays the same, and three machines share it.",
    "Together the four did the work of 2.4 machines.",
)
def load_after_a_loss(answer: float) -> str | None:
    """Check the load of the remaining machines, if one of four machines at 60 % load is lost."""
    if not is_number(answer) or not 0 < answer < 2:
        return "give a share: 0.6 is 60 %"
    if abs(answer - 0.6) < 1e-3:
        return "the requests of the lost one go to the others"
    return None if abs(answer - 0.8) < 1e-3 else f"{answer}: the load of four machines, on three"


@exercise(
    "At 80 % load a machine answers 0.8 * each requests a second.",
    "math.ceil rounds up to whole machines. Those that may be lost come on top.",
)
def machines_with_spares(machines: Callable[[float, float, int], int]) -> str | None:
    """Check `machines(rate, each, lost)`: the fewest that answer `rate` at 80 % load when `lost` of them are gone."""
    for rate, each, lost in ((100, 50, 0), (100, 50, 1), (1_000, 90, 2), (40, 100, 1), (80, 100, 3)):
        fewest = next(count for count in range(lost + 1, 100) if rate <= 0.8 * each * (count - lost) + 1e-9)
        if not is_number(answer := machines(rate, each, lost), whole=True):
            return f"for rate={rate}, each={each}, lost={lost} it returned {answer!r}: return a whole number"
        if answer != fewest:
            wrong = "too few" if answer < fewest else "more than it takes"
            return f"{answer} is {wrong} for rate={rate}, each={each}, lost={lost}"
    return None


@exercise(
    "Go through the replicas in a loop, and return the first answer.",
    "try: and except ConnectionError: around the call go on to the next replica. Other errors pass through.",
    "After the loop nobody is left: raise ConnectionError there.",
)
def asked_again(ask: Callable[[list[Replica], object], object]) -> str | None:
    """Check `ask(replicas, picture)`: the answer of the first living replica; ConnectionError if none is alive."""
    calls: list[str] = []

    def replica(name: str, answer: Exception | str) -> Replica:
        def detect(picture: object) -> str:
            calls.append(name)
            if isinstance(answer, Exception):
                raise answer
            return f"{answer} in {picture}"

        return detect

    dead, alive = replica("dead", ConnectionError("its node is gone")), replica("alive", "a cat")
    if (answer := ask([dead, dead, alive, alive], "clock.png")) != "a cat in clock.png":
        return f"with two dead replicas and two living ones it answered {answer!r}, not 'a cat in clock.png'"
    if calls != ["dead", "dead", "alive"]:
        return f"it asked {', '.join(calls)}: each once, in order, until one has answered"
    with contextlib.suppress(ConnectionError):
        return f"all are dead, and it answered {ask([dead, dead], 'clock.png')!r}: raise ConnectionError"
    calls.clear()
    with contextlib.suppress(ValueError):
        return f"no picture, and it answered {ask([replica('first', ValueError('no picture')), alive], 'a')!r}"
    return None if calls == ["first"] else "a bad picture is bad at every replica: do not ask again"


@exercise(
    "Each request sends the file twice and the pixels once.",
    "A byte has 8 bits, and a gigabit has 1e9 bits.",
)
def network_load(answer: float) -> str | None:
    """Check the gigabits a second of 1,000 requests that each send 100 kB twice and 519 kB once."""
    if not is_number(answer) or answer <= 0:
        return "give a number of gigabits a second"
    right = 8 * RATE * (2 * UPLOAD + PIXELS) / 1e9
    hints = {
        right / 8: "that is in gigabytes: a byte has 8 bits",
        8 * RATE * (UPLOAD + PIXELS) / 1e9: "the file is sent twice",
        8 * RATE * 2 * (UPLOAD + PIXELS) / 1e9: "the pixels are sent once",
        right * 1000: "that is in megabits: give gigabits",
        8 * RATE * 2 * UPLOAD / 1e9: "that leaves out the picture as the network sees it, 519 kB",
    }
    if abs(answer / right - 1) < 0.02:
        return None
    near = (hint for value, hint in hints.items() if abs(answer / value - 1) < 0.02)
    return next(near, "multiply the bytes of one request by 8 and by the requests of a second")


one_or_many = OpenExercise(
    "Two single machines behind a load balancer. One of them can do the work, the second replaces it when it fails, and "
    "nobody has to look after a cluster. If the night shift's model grows different from the day shift's and needs a GPU, "
    "a cluster becomes worth its price.",
    "Does it say what happens when one machine is lost?",
    "Does it name what the choice costs, in memory, CPU time or work?",
    "Does it say what would change the choice?",
)

slower_cluster = Question(
    "Two nodes that share one machine's cores answer fewer requests than a single process there. Why?",
    right="b",
    a=("The nodes have an older model.", "Both used the same version, and their answers were equal."),
    b=(
        "The same cores also have to send each picture from process to process.",
        "Each hop copies, packs and unpacks the picture. On two machines there would be more cores, and the same hops.",
    ),
    c=("A cable between the nodes is slow.", "There is no cable: both nodes are on one machine."),
)

safe_to_repeat = Question(
    "A node dies while it looks at a picture. Why may another replica get the same picture?",
    right="a",
    a=("Detection changes nothing, so doing it twice does no harm.", "It is idempotent. A payment would not be."),
    b=(
        "Ray makes sure that each picture is processed once.",
        "Ray reports the loss. Our code sends the picture again.",
    ),
    c=("The dead node had not started with it.", "Nobody can know that, and for detection it does not matter."),
)

start_small = Question(
    "A service needs a tenth of one machine, and an outage of ten minutes is acceptable. How should it run?",
    right="c",
    a=("On a cluster, because it may grow.", "It can move when it grows. Until then a cluster costs memory and work."),
    b=("On ten machines at 1 % load each.", "Ten machines are paid for, and nine of them are of no use."),
    c=("On one machine.", "It can do the work, and it is the cheapest way with the fewest parts that may fail."),
)
