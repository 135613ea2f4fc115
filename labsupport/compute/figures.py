"""Draw where the time of a request goes, how latency grows with load, and a model beside a measurement."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from labsupport.charts import ALARM, BEFORE, NOW, new_figure
from labsupport.compute import targets
from labsupport.compute.loadtest import Run
from labsupport.compute.queueing import Prediction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def waterfall(parts: Mapping[str, float], title: str) -> "Figure":
    """Draw parts in seconds as bars in ms, each on the end of the one before. The first one has a colour of its own.

    >>> figure = waterfall({"guess": 0.002, "decode": 0.001}, "A request takes 1.5 times the guess")
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['+2.0', '+1.0']
    """
    sizes = 1000 * np.array(list(parts.values()))
    ends = np.cumsum(sizes)
    figure = new_figure(8, 3)
    axes = figure.subplots()
    axes.bar(list(parts), sizes, bottom=ends - sizes, color=[NOW] + [BEFORE] * (len(parts) - 1))
    for place, (end, size) in enumerate(zip(ends, sizes, strict=True)):
        axes.text(place, max(end, end - size) + 0.02 * ends.max(), f"{size:+.1f}", ha="center", fontsize=9)
    axes.set(ylabel="ms for one picture", ylim=(0, 1.15 * ends.max()))
    axes.set_title(title, fontsize=11, loc="left")
    return _plain(figure, [axes])


def knee(
    closed: Sequence[Run], opened: Sequence[Run], rates: Sequence[float], capacity: float, clients: Sequence[int] = ()
) -> "Figure":
    """Draw p99 and refusals against requests a second: runs of a closed loop, and of an open loop at `rates`.

    `clients` are the numbers of clients of the closed loop's runs. They are written beside its points.
    """
    figure = new_figure(8, 3.2)
    left, right = figure.subplots(1, 2)
    answered = [run.rate for run in closed]
    for axes, values in ((left, _p99), (right, _refused)):
        axes.plot(rates, values(opened), "o-", color=NOW, markersize=8, mfc="none", label="open loop")
        axes.plot(answered, values(closed), "s-", color=BEFORE, markersize=4, label="closed loop")
        axes.axvline(capacity, color=ALARM, linestyle="--", linewidth=1)
        highest = max((value for value in values(opened) + values(closed) if np.isfinite(value)), default=1.0)
        axes.set(xlabel="requests/s", ylim=(0, max(1.0, 1.15 * highest)))
    left.text(capacity, left.get_ylim()[1], "capacity ", color=ALARM, fontsize=8, ha="right", va="top", rotation=90)
    for count, rate, high in zip(clients, answered, _p99(closed), strict=False):
        left.annotate(
            str(count), (rate, high), (-4, 4), textcoords="offset points", ha="right", color=BEFORE, fontsize=8
        )
    left.set_ylabel("p99, ms")
    right.set_ylabel("refused, %")
    right.legend(frameon=False, fontsize=8, loc="upper left")
    figure.suptitle("Only the open loop asks for more than the capacity, and shows what follows", fontsize=11)
    return _plain(figure, [left, right])


def modelled(
    loads: Sequence[float],
    runs: Sequence[Run],
    replays: Sequence[Prediction],
    grid: Sequence[float],
    long_run: Sequence[Prediction],
    title: str,
) -> "Figure":
    """Draw the measured p99 at each load, and what a model says: for the same arrivals, and in the long run."""
    figure = new_figure(8, 3.2)
    axes = figure.subplots()
    axes.plot(100 * np.array(grid), [1000 * one.p99 for one in long_run], color=BEFORE, label="model, in the long run")
    same = [1000 * one.p99 for one in replays]
    axes.plot(100 * np.array(loads), same, "s", mfc="none", ms=9, color=BEFORE, label="model, same arrivals")
    axes.plot(100 * np.array(loads), _p99(runs), "o", color=NOW, label="measured")
    axes.axvline(100, color=ALARM, linestyle="--", linewidth=1)
    axes.set(xlabel="load, % of the capacity", ylabel="p99, ms", ylim=0)
    axes.text(100, 0, " capacity", color=ALARM, fontsize=8, ha="right", va="bottom", rotation=90)
    axes.set_title(title, fontsize=11, loc="left")
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    return _plain(figure, [axes])


def _p99(runs: Sequence[Run]) -> list[float]:
    return [1000 * run.quantile(0.99) for run in runs]


def _refused(runs: Sequence[Run]) -> list[float]:
    return [100 * run.share(targets.REFUSED) for run in runs]


def _plain(figure: "Figure", all_axes: Sequence["Axes"]) -> "Figure":
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
    return figure
