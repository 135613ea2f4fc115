"""Draw what two ways to serve cost, side by side, and how long answers took before and after a node was lost."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from labsupport.charts import ALARM, BEFORE, NOW, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)  # seconds


def compared(table: "pd.DataFrame", columns: Sequence[str], title: str) -> "Figure":
    """Draw a chart for each column, with a bar and its value for each row of the table.

    The title of a rate, which ends with "/s", says that more is better.

    >>> import pandas as pd
    >>> table = pd.DataFrame({"answers/s": [100.0, 34.6]}, index=["one process", "two nodes"])
    >>> [text.get_text() for text in compared(table, ["answers/s"], "A third").axes[0].texts]
    ['100', '35']
    """
    figure = new_figure(8, 2.4)
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    for axes, column in zip(panels, columns, strict=True):
        bars = axes.barh(table.index, table[column], color=[BEFORE, NOW])
        axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=9)
        axes.set_title(column + "\n(more is better)" * column.endswith("/s"), fontsize=10)
        axes.set(xlim=(0, 1.4 * table[column].max()), xticks=[])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.invert_yaxis()
        axes.tick_params(labelsize=9, labelleft=axes is panels[0])
    figure.suptitle(title, fontsize=11)
    return figure


def around_a_loss(answers: "pd.DataFrame", killed: float, title: str) -> "Figure":
    """Draw how long each answer took, against the time at which it was asked for.

    `answers` has the columns `sent` and `seconds`; `killed` is the time of the loss on the same clock.
    """
    figure = new_figure(8, 2.8)
    axes = figure.subplots()
    axes.plot(answers["sent"] - killed, answers["seconds"], ".", color=BEFORE, markersize=5)
    axes.axvline(0, color=ALARM)
    axes.text(0, 1, " killed", color=ALARM, fontsize=9, va="top", transform=axes.get_xaxis_transform())
    axes.set(xlabel="request sent, seconds after the kill", ylabel="seconds until the answer\n(log scale)")
    low, high = answers["seconds"].min() / 1.5, answers["seconds"].max() * 1.5
    axes.set(yscale="log", ylim=(low, high))
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_title(title, fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
