"""Show things in a notebook: charts in colours for colour-blind people, and no notes of compiled libraries."""

import io
import os
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from labsupport import arguments
from labsupport.extras import imported

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEFORE, NOW, ALARM = "#4477aa", "#ee7733", "#aa3377"  # after Paul Tol's schemes


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of this size in inches. A notebook shows it with or without pyplot.

    >>> new_figure(1, 1)._repr_png_()[1:4]
    b'PNG'
    """
    figure: Figure = imported("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")
    # IPython calls it; with pyplot imported, pyplot's method comes first
    figure._repr_png_ = lambda: _png(figure)  # type: ignore[attr-defined]  # a hook that Figure has no name for
    return figure


def show(figure: "Figure", alt: str, caption: str = "") -> None:
    """Display a figure under a cell, with `alt` for people who cannot see it and `caption` below it, and close it.

    Raises ValueError for an empty `alt`.
    """
    notebook = imported("IPython.display")
    arguments.text("alt", alt, 1_000, least=1)
    notebook.display(notebook.Image(_png(figure)), metadata={"image/png": {"alt": alt}})
    if caption:
        notebook.display(notebook.Markdown(f"*{caption}*"))
    figure.clear()  # a figure of pyplot would be drawn a second time when the cell ends
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close(figure)


def slider(draw: "Callable[[float], Figure]", label: str, positions: Sequence[float], start: float, alt: str) -> None:
    """Display a slider under a cell, and below it the figure that `draw` returns for its position.

    A figure is drawn anew for each move, so `draw` should take less than a second. Where no slider can be shown, as on a
    page without a kernel, the figure of `start` stands in its place, with `alt` for people who cannot see it.
    Raises ValueError if `start` is not one of the `positions`, and for an empty `alt`.
    """
    widgets, notebook = imported("ipywidgets"), imported("IPython.display")
    arguments.text("alt", alt, 1_000, least=1)
    if start not in positions:
        raise ValueError(f"start={start!r}: give one of the positions {', '.join(map(str, positions))}")
    first = _png(draw(start))
    chosen = widgets.SelectionSlider(options=positions, value=start, description=label, continuous_update=False)
    picture = widgets.Image(value=first, format="png", layout=widgets.Layout(max_width="100%"))
    chosen.observe(lambda move: setattr(picture, "value", _png(draw(move["new"]))), "value")
    box = widgets.VBox([chosen, picture], layout=widgets.Layout(align_items="flex-start"))  # in its own size
    shown = box._repr_mimebundle_()  # a viewer takes what it knows: the slider, the picture, or the words
    shown |= {"image/png": b64encode(first).decode(), "text/plain": alt}
    notebook.display(shown, raw=True, metadata={"image/png": {"alt": alt}})


@contextmanager
def hushed() -> Iterator[None]:
    """Drop what compiled code writes to the standard error inside a `with` block. Python's own messages still appear.

    >>> with hushed():
    ...     _ = os.write(2, b"a note of a library")
    """
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _png(figure: "Figure") -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def distributions(
    panels: Sequence[tuple[str, Sequence[Any], np.ndarray, np.ndarray, bool]], columns: int = 3
) -> "Figure":
    """Draw a small chart for each panel: (title, edges of bins or classes, shares before, shares now, marked).

    >>> figure = distributions([("size", [0, 1, 2], np.array([0.5, 0.5]), np.array([0.1, 0.9]), True)])
    >>> [axes.get_title() for axes in figure.axes]
    ['size']
    """
    columns = max(1, min(columns, len(panels)))
    rows = max(1, -(-len(panels) // columns))
    figure = new_figure(4 * columns, 2.4 * rows)
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axis, (title, bins, before, now, marked) in zip(axes, panels, strict=False):
        draw = _steps if len(bins) > len(before) else _bars
        draw(axis, bins, before, now)
        colour, weight = (ALARM, "bold") if marked else ("black", "normal")
        axis.set_title(title, fontsize=10, color=colour, fontweight=weight, parse_math=False)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_yticks([])
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    if panels:
        axes[0].legend(frameon=False, fontsize=8)
    return figure


def _steps(axis: "Axes", edges: Sequence[float], before: np.ndarray, now: np.ndarray) -> None:
    axis.stairs(before, edges, fill=True, color=BEFORE, alpha=0.45, label="reference")
    axis.stairs(now, edges, color=NOW, linewidth=2, label="current")


def _bars(axis: "Axes", classes: Sequence[str], before: np.ndarray, now: np.ndarray) -> None:
    place = np.arange(len(classes))
    axis.bar(place - 0.2, before, 0.4, color=BEFORE, alpha=0.45, label="reference")
    axis.bar(place + 0.2, now, 0.4, color="none", edgecolor=NOW, linewidth=2, label="current")
    slanted: dict[str, Any] = {"rotation": 45, "ha": "right"} if max(map(len, classes)) * len(classes) > 40 else {}
    axis.set_xticks(place, classes, parse_math=False, fontsize=8, **slanted)
