"""Plot the dashboard in a notebook: small charts of the log over a period, in rows.

The rows are software, input, output and users, and drift if there is a reference. `dashboard_data` serves the same to
the page `/dashboard`.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from labsupport.charts import ALARM, BEFORE, NOW
from labsupport.extras import imported
from labsupport.log import Moment, seconds
from labsupport.monitoring.alarms import Alarms
from labsupport.monitoring.default_rules import DEFAULT_RULES
from labsupport.monitoring.measures import rounded
from labsupport.monitoring.panels import Panel
from labsupport.monitoring.timeline import Series, Timeline, reach, read, timeline, window
from labsupport.rollout import State

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from labsupport.log import PredictionLog

COLUMNS = 3
CLOSE = np.timedelta64(600, "s")  # a shorter period shows seconds, because several marks lie in one minute
HEADLINE = {
    "requests_per_second": lambda value: f"{rounded(value)} requests/s",
    "error_ratio": lambda value: f"{rounded(100 * value)} % failed",
    "refused_ratio": lambda value: f"{rounded(100 * value)} % refused",
    "latency_p95": lambda value: f"p95 {rounded(value)} s",
}
STEPS = (1, 2, 5, 10, 15, 30, 60, 120)  # seconds between two marks of the clock in such a period
STABLE = ("start", "promote", "rollback", "switch")  # changes after which the stable version is what one asks for


def dashboard(
    log: "PredictionLog",
    since: Moment = timedelta(hours=1),
    until: Moment = None,
    alarms: Alarms | None = None,
    rollouts: Sequence[State] = (),
) -> "Figure":
    """Plot the log in since <= time < until. The figure's attribute `alt` describes it in a sentence.

    `since` and `until` as in `PredictionLog.columns`, by default the last hour; a timedelta counts back from `until`.
    Dots are single intervals, and lines the window that an alarm judges. Dashes are limits; the background is shaded
    while an alarm fires. `alarms` are those that were evaluated during this period. Without them the `DEFAULT_RULES`
    are replayed (`timeline`), and drift is left out, because it needs the reference of `alarms`. `rollouts` is
    `router.history()`: changes are marked by letters. Raises ValueError for a window that ends before it begins, and
    what `log.columns` raises.

    >>> import tempfile
    >>> from labsupport.scenarios import simulate
    >>> from labsupport.log import PredictionLog
    >>> with tempfile.TemporaryDirectory() as folder, PredictionLog(f"sqlite:///{folder}/predictions.db") as log:
    ...     simulate("darkness", start=600, seconds=1200).write(log)
    ...     figure = dashboard(log, since=0, until=1200)
    >>> print(figure.alt.removeprefix("Dashboard from 00:00 to 00:20 UTC: "))
    simulated answers, 1.22 requests/s, 0 % failed, 0 % refused, p95 0.16 s, firing: Dark.
    """
    until = datetime.now(UTC).timestamp() if until is None else seconds(until, "until")
    since, until = window(_start(log, since, until), until)
    rules = DEFAULT_RULES if alarms is None else alarms.rules
    period = timeline(read(log, since - reach(rules), until), since, until, rules, alarms)
    title = headline(period, _versions(log, until))
    figure = _drawn(period, [state for state in rollouts if since <= state.time < until], title)
    vars(figure)["alt"] = f"Dashboard from {_clock(since)} to {_clock(until)} UTC: {title}."
    return figure


def headline(seen: Timeline, versions: Sequence[str] = ()) -> str:
    """Return one line: the versions that answer, and the measures of the last minute."""
    if not seen.count or seen.last is None:
        return "no requests were written down"
    who = f"{' and '.join(versions)} {'answer' if len(versions) > 1 else 'answers'}"
    words = [who if versions else f"silent since {_clock(seen.last)}"]
    readings = {name: seen.now[name].value for name in HEADLINE}
    words += [HEADLINE[name](value) for name, value in readings.items() if value is not None]
    firing = [span.alarm for span in seen.spans if span.until == seen.edges[-1]]
    return ", ".join([*words, f"firing: {', '.join(firing)}" if firing else "no alarm fires"])


def change(state: State) -> str:
    """Return a short text for a change of the rollout.

    >>> change(State("v1", candidate="v2", mode="canary", share=5.0, action="canary")), change(State("v2", action="promote"))
    ('canary v2 5 %', 'promote v2')
    """
    name = state.stable if state.action in STABLE else state.candidate or state.stable
    share = f" {state.share:g} %" if state.mode in ("canary", "shadow") and state.share else ""
    return f"{state.action} {name}{share}"


def _start(log: "PredictionLog", since: Moment, until: float) -> Moment:
    if since is None:
        return until - 3600 if (first := log.oldest()) is None else min(first, until - 1)
    return until - since.total_seconds() if isinstance(since, timedelta) else since


def _versions(log: "PredictionLog", until: float) -> list[str]:
    """Return the versions that answered in the last minute."""
    rows = log.columns("version", "status", since=until - 60, until=until)
    answered = zip(rows["version"], rows["status"], strict=True)
    return sorted({version for version, status in answered if status == 200 and version})


def _clock(time: float) -> str:
    return f"{datetime.fromtimestamp(time, UTC):%H:%M}"


def _drawn(seen: Timeline, changes: Sequence[State], title: str) -> "Figure":
    plt = imported("matplotlib.pyplot")
    figure: Figure
    if not seen.count:
        figure, axis = plt.subplots(figsize=(12, 1.2), layout="constrained")
        axis.set_axis_off()
        span = f"{_clock(seen.edges[0])} and {_clock(seen.edges[-1])} UTC"
        axis.text(0.5, 0.5, f"Nothing was written down between {span}: choose another since=", ha="center")
        plt.close(figure)
        return figure
    size = (12, 1.85 * len(seen.rows) + 0.8)
    figure, grid = plt.subplots(len(seen.rows), COLUMNS, figsize=size, sharex=True, layout="constrained", squeeze=False)
    plt.close(figure)  # it is the caller's, and pyplot must not show it a second time
    for axes, (group, panels) in zip(grid, seen.rows.items(), strict=True):
        for axis, (panel, series) in zip(axes, panels, strict=False):
            _draw_panel(axis, panel, series, seen)
            _mark(axis, changes)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        axes[0].set_ylabel(group, fontweight="bold")
    figure.suptitle(fill(title, 115), x=0.01, ha="left", fontsize=11, fontweight="bold", parse_math=False)
    letters = "   ".join(
        f"{_letter(number)}: {_clock(state.time)} {change(state)}" for number, state in enumerate(changes)
    )
    figure.supxlabel("\n".join(filter(None, ["time in UTC", fill(letters, 170)])), fontsize=9, parse_math=False)
    return figure


def _draw_panel(axis: "Axes", panel: Panel, series: Sequence[Series], seen: Timeline) -> None:
    times = seen.edges.astype("datetime64[s]")
    middles = (seen.edges[:-1] + np.diff(seen.edges) / 2).astype("datetime64[s]")
    for one, colour, style in zip(series, (BEFORE, NOW), ("-", "--"), strict=False):
        if one.rules:
            axis.plot(middles, one.points, ".", color=colour, alpha=0.45, markersize=4)
        axis.plot(times[1:], one.judged, style, color=colour, linewidth=1.8, label=one.name)
        for limit in one.limits:
            axis.axhline(limit, color=ALARM, linestyle=(0, (4, 3)), linewidth=1)
    for span in seen.spans:
        if span.metric in [one.measure.name for one in series]:
            axis.axvspan(
                *np.array([span.since, span.until]).astype("datetime64[s]"), color=ALARM, alpha=0.18, linewidth=0
            )
    axis.set_title(panel.title, loc="left", fontsize=10, pad=14)  # letters of changes stand below it
    if len(series) > 1:
        axis.legend(frameon=False, fontsize=8, loc="upper left")
    _scale(axis, series[0], times)


def _scale(axis: "Axes", series: Series, times: np.ndarray) -> None:
    dates = imported("matplotlib.dates")
    ticker = imported("matplotlib.ticker")

    axis.set_xlim(times[0], times[-1])
    # shares and counts begin at 0; whether it is brighter than before can be seen without
    axis.set_ylim(bottom=0, top=None if axis.get_ylim()[1] > 0.001 else 1)
    axis.yaxis.set_major_locator(ticker.MaxNLocator(3))
    axis.yaxis.set_major_formatter(lambda value, position: series.text(value))
    close = times[-1] - times[0] < CLOSE
    if close:
        step = next(step for step in STEPS if (times[-1] - times[0]).astype(int) < 5 * step)
        first = -(-times[0].astype(int) // step) * step
        axis.set_xticks(np.arange(first, times[-1].astype(int) + 1, step).astype("datetime64[s]"))
    else:
        axis.xaxis.set_major_locator(dates.AutoDateLocator(maxticks=5))
    clock = "%H:%M:%S" if close else "%H:%M"
    axis.xaxis.set_major_formatter(dates.DateFormatter(clock))
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def _mark(axis: "Axes", changes: Sequence[State]) -> None:
    for number, state in enumerate(changes):
        time: Any = np.array(state.time).astype("datetime64[s]")  # Matplotlib takes a date where its types say float
        axis.axvline(time, color="black", linewidth=0.8, linestyle=":")
        axis.annotate(
            *(_letter(number), (time, 1)), xycoords=("data", "axes fraction"), fontsize=8, ha="center", va="bottom"
        )


def _letter(number: int) -> str:
    """Return a letter, A to Z, and after that a number."""
    return chr(ord("A") + number) if number < 26 else str(number + 1)
