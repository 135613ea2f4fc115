"""Define the check cells of compute.ipynb. The right answer depends on the machine, so each check gets the measurements."""

import pandas as pd

from labsupport.compute import Server, machines_for
from labsupport.exercises.exercise import exercise

RATE, P99 = 200, 0.2  # requests a second; seconds
CLOSE = 0.05  # an answer is right that is this close: a simulation has its noise


@exercise()
def enough_machines(answer: int, server: Server) -> str | None:
    """Check the number of such servers that answer `RATE` requests a second with a 99th percentile of at most `P99`
    seconds.
    """
    if not isinstance(answer, int) or isinstance(answer, bool) or answer < 1:
        return "give a whole number of machines"
    right = machines_for(server, RATE, P99)
    if answer > right:
        return (
            f"{answer} are enough, and so are fewer: {answer - 1} would have {RATE / (answer - 1):.0f} requests/s each"
        )
    if answer == right:
        return None
    each = RATE / answer
    if server.utilisation(each) >= 1:
        return f"{each:.0f} requests/s each is more than the capacity of {server.capacity:.0f}/s"
    return f"{each:.0f} requests/s each is a 99th percentile of {server.predict(each).p99 * 1000:.0f} ms"


@exercise()
def half_load(answer: float, server: Server) -> str | None:
    """Check the predicted 99th percentile, in seconds, at half of the capacity."""
    if not isinstance(answer, int | float) or isinstance(answer, bool):
        return "give seconds: server.predict(rate).p99"
    said = server.predict(server.capacity / 2)
    if _close(answer, said.p99):
        return None
    if _close(answer, 1000 * said.p99):
        return "that is in milliseconds: give seconds"
    return (
        "that is the median: who waits longest?"
        if _close(answer, said.p50)
        else "at which rate? Half of server.capacity"
    )


@exercise()
def cheapest(answer: str, table: pd.DataFrame, limits: dict[str, float]) -> str | None:
    """Check the runtime (a row of `table`) that costs least in dollars, of those within `limits`: column -> the most."""
    if answer not in table.index:
        return f"give one of {', '.join(table.index)}"
    for column, most in limits.items():
        if table[column][answer] > most:
            return f"{answer} has {table[column][answer]:.0f} {column}: the limit is {most:.0f}"
    fits = (table[list(limits)] <= pd.Series(limits)).all(axis=1)
    best = table["$ a million"][fits].idxmin()
    return None if answer == best else f"{answer} fits, and so does one that costs less"


def _close(answer: float, right: float) -> bool:
    return abs(answer / right - 1) < CLOSE
