"""Define the check cells of scale.ipynb."""

import contextlib
from collections.abc import Callable

from labsupport.exercises.exercise import exercise

Replica = Callable[[object], object]  # a function of a picture


@exercise()
def load_after_a_loss(answer: float) -> str | None:
    """scale.ipynb: the load of the remaining machines, if one of four machines at 60 % load is lost."""
    if answer is None or not 0 < answer < 2:
        return "give a share: 0.6 is 60 %"
    if abs(answer - 0.6) < 1e-3:
        return "the requests of the lost one go to the others"
    return None if abs(answer - 0.8) < 1e-3 else f"{answer}: the load of four machines, on three"


@exercise()
def machines_with_spares(machines: Callable[[float, float, int], int]) -> str | None:
    """scale.ipynb: `machines(rate, each, lost)`: the fewest that answer `rate` at 80 % load when `lost` of them are gone."""
    for rate, each, lost in ((100, 50, 0), (100, 50, 1), (1_000, 90, 2), (40, 100, 1), (80, 100, 3)):
        fewest = next(count for count in range(lost + 1, 100) if rate <= 0.8 * each * (count - lost) + 1e-9)
        if (answer := machines(rate, each, lost)) != fewest:
            wrong = "too few" if answer < fewest else "more than it takes"
            return f"{answer} machines are {wrong} for rate={rate}, each={each}, lost={lost}"
    return None


@exercise()
def asked_again(ask: Callable[[list[Replica], object], object]) -> str | None:
    """scale.ipynb: `ask(replicas, picture)`: the answer of the first living replica; ConnectionError if none is alive."""
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
    return None if calls == ["first"] else "what is wrong with the picture is wrong at every replica: do not ask again"
