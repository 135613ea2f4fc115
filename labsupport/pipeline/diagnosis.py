"""Find the stage of a pipeline where a change entered, and the stages that only inherited it.

A stage has changed if it gives other outputs for the same input. A stage has inherited a change if its outputs differ only
because its input does. So the input is compared between two windows (`drift.compare`), and each stage is compared given
its input (`drift.given_input`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from labsupport import drift
from labsupport.arguments import number, shown
from labsupport.charts import ALARM, BEFORE, NOW
from labsupport.drift import given_input
from labsupport.tabular import MIN_ROWS, TooFewRows, features, to_frame

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INPUT = "input"
ALPHA = 0.02  # without a change, one diagnosis in 50 names a stage
NOTED = ("asked", "latency", "error", "null")  # columns of every stage; the others are its figures
SLOWER, LEAST_SECONDS = 1.5, 0.001  # smaller differences in median latency do not count, because machines vary
Shape = tuple[list[Any], np.ndarray, np.ndarray]  # bins or classes, shares before and now
COLUMNS = ("stage", "verdict", "p_value", "figure", "before", "now", "overlap", "note")


@dataclass(frozen=True)
class Diagnosis:
    """Hold the result of `diagnose`. A notebook shows it as a table.

    `stages` has a row for the input and for each stage, in order:

    | column | value |
    |---|---|
    | stage | "input", or the name of the stage |
    | verdict | see below |
    | p_value | adjusted for the number of rows |
    | figure | the figure with the clearest change |
    | before, now | its mean or its share in the two windows |
    | overlap | the share of the windows' difference that the stage's input does not explain |
    | note | the reason for "unclear" |

    - "changed": the stage gives other outputs for the same input. For the input: it has changed;
    - "inherited": its outputs have changed, as far as visible only because its inputs have;
    - "unchanged";
    - "unclear": no verdict is possible.
    """

    stages: "pd.DataFrame"
    alpha: float
    rows: tuple[int, int]  # of the reference, of the current window
    slower: float  # the factor by which all stages have become slower
    shapes: dict[str, Shape]  # to plot each row's figure

    @property
    def entered(self) -> str | None:
        """Return where the change entered: "input", a stage's name, or None if nothing has changed."""
        return next(iter(self.named("changed")), None)

    def named(self, verdict: str) -> list[str]:
        """Return the stages with this verdict, in order."""
        names: list[str] = self.stages["stage"][self.stages["verdict"] == verdict].tolist()
        return names

    def summary(self) -> str:
        """Return the result in a sentence."""
        level = f"(family-wise level {self.alpha:g}, {self.rows[0]:,} and {self.rows[1]:,} runs)"
        parts = ["no change"]
        if self.entered:
            row = self.stages.set_index("stage").loc[self.entered]
            parts = [f"the change entered at {self.entered}: {row.figure} was {row.before}, is {row.now}"]
        if more := self.named("changed")[1:]:
            parts.append(f"{', '.join(more)} changed too")
        parts += [f"{', '.join(who)} {verdict}" for verdict in ("inherited", "unclear") if (who := self.named(verdict))]
        if not 1 / SLOWER < self.slower < SLOWER:
            parts.append(f"every stage takes {self.slower:.1f} times as long")
        return f"{'; '.join(parts)} {level}"

    def __repr__(self) -> str:
        return f"<Diagnosis: {self.summary()}>"

    def _repr_html_(self) -> str:
        table = self.stages.to_html(index=False, float_format="{:.3g}".format, border=0, na_rep="")
        return f"<p>{escape(self.summary())}</p>{table}"

    def plot(self) -> "Figure":
        """Draw the stages in a row, mark changed ones, and draw under each its clearest figure, before and now."""
        from matplotlib.figure import Figure

        count = len(self.stages)
        figure = Figure(figsize=(3.2 * count, 3.4), layout="constrained")
        axes = figure.subplots(2, count, squeeze=False, height_ratios=[1, 2])
        for place, row in enumerate(self.stages.itertuples()):
            _box(axes[0, place], row.stage, row.verdict, last=place == count - 1)
            _shape(axes[1, place], row.figure, self.shapes.get(row.stage), row.verdict == "changed")
        axes[1, 0].legend(frameon=False, fontsize=8)
        return figure


def diagnose(
    reference: "pd.DataFrame", current: "pd.DataFrame", stages: Sequence[str], alpha: float = ALPHA, seed: int = 0
) -> Diagnosis:
    """Find where a change entered, from two windows of runs (`Pipeline.frame`) and the stages' names in order.

    Without any change, a change is reported in at most a share `alpha` of cases. If one stage has changed, the others are
    reported as changed no more often than that. The input and each stage get an equal share of `alpha` (Bonferroni). All
    figures of a stage are tested given those of its input, also nulls, errors and latency. Latency counts only if medians
    differ by a factor of `SLOWER` and by a millisecond. If all stages are slower by a factor, this is due to the machine.
    It is removed from the latencies and reported as `slower`. Runs that did not reach a stage do not count for it.

    Raises `TooFewRows`, and ValueError for frames that do not come from this pipeline.

    >>> import pandas as pd
    >>> random = np.random.default_rng(0)
    >>> def window(shift, times):
    ...     x = random.normal(shift, 1, 300)
    ...     noted = {"a.asked": True, "a.latency": 0.1, "a.error": None, "a.null": False}
    ...     return pd.DataFrame({"input.x": x, **noted, "a.y": times * x + 0.1 * random.normal(size=300)})
    >>> diagnose(window(0, times=1), window(1, times=1), ["a"])
    <Diagnosis: the change entered at input: x was -0.0358, is 0.973; a inherited (family-wise level 0.02, 300 and 300 runs)>
    >>> diagnose(window(0, times=1), window(0, times=2), ["a"]).entered
    'a'
    """
    import pandas as pd

    alpha, seed = number("alpha", alpha, 0, 1, ends=False), number("seed", seed, 0, whole=True)
    if isinstance(stages, str) or len(stages := list(stages)) != len(set(stages)) or not stages:
        raise ValueError(f"stages={shown(stages)}: give the names of the stages in order, each of them once")
    windows = (to_frame(reference, "reference"), to_frame(current, "current"))
    for name, frame in zip(("reference", "current"), windows, strict=True):
        _check(name, frame, stages)
    parts = [_figures(windows, part) for part in (INPUT, *stages)]
    share = alpha / len(parts)
    machine = _machine(parts[1:])
    results = [_input(parts[0], share, seed)]
    for stage, before, after in zip(stages, parts, parts[1:], strict=False):
        reached = [frame[f"{stage}.asked"].eq(True).fillna(False).to_numpy(bool) for frame in windows]
        before, after = ([f[rows] for f, rows in zip(part, reached, strict=True)] for part in (before, after))
        results.append(_stage(stage, before, after, machine, share, seed))
    rows = [{**dict.fromkeys(COLUMNS, ""), "overlap": np.nan, **row} for row, _ in results]
    for row in rows:
        row["p_value"] = min(1.0, len(parts) * row["p_value"])
    shapes = {row["stage"]: shape for row, shape in results if shape}
    return Diagnosis(pd.DataFrame(rows)[list(COLUMNS)], alpha, (len(reference), len(current)), machine, shapes)


def _check(name: str, frame: "pd.DataFrame", stages: Sequence[str]) -> None:
    if absent := [f"{stage}.{noted}" for stage in stages for noted in NOTED if f"{stage}.{noted}" not in frame]:
        raise ValueError(f"the {name} window has no {', '.join(absent)}: give frames of this pipeline's runs")
    if len(frame) < MIN_ROWS:
        raise TooFewRows(
            f"the {name} window has {len(frame)} runs: at least {MIN_ROWS} are needed, so collect more of them"
        )


def _machine(parts: list[list["pd.DataFrame"]]) -> float:
    """Return the factor by which all stages became slower or faster; 1 if one did not, or if fewer than 2 take 1 ms."""
    medians = np.array([[frame["latency"].median() for frame in part] for part in parts])
    medians = medians[(medians > 0).all(axis=1) & (medians.max(axis=1) >= LEAST_SECONDS)]
    factors = np.log(medians[:, 1] / medians[:, 0])
    if len(factors) < 2 or not ((factors > 0).all() or (factors < 0).all()):
        return 1.0
    return float(np.exp(factors[np.abs(factors).argmin()]))


def _figures(windows: Sequence["pd.DataFrame"], part: str) -> list["pd.DataFrame"]:
    """Return the figures of the input or a stage in both windows, with equal columns, without the part's name."""
    start = f"{part}."
    names = dict.fromkeys(name for frame in windows for name in frame if name.startswith(start))
    both = [frame.reindex(columns=list(names)).reset_index(drop=True) for frame in windows]
    both = [frame.set_axis([name[len(start) :] for name in names], axis=1) for frame in both]
    if part == INPUT:
        return both
    return [
        frame.drop(columns="asked").assign(null=frame["null"].eq(True), error=frame["error"].notna()) for frame in both
    ]


def _input(windows: list["pd.DataFrame"], level: float, seed: int) -> tuple[dict[str, Any], Shape | None]:
    row: dict[str, Any] = {"stage": INPUT, "verdict": "unclear", "p_value": 1.0, "note": "nothing of it is described"}
    if not len(windows[0].columns):
        return row, None
    report = drift.compare(windows[0], windows[1], alpha=level, seed=seed)
    figure = report.to_frame()["feature"].iloc[0]
    p_values = np.concatenate([report.features["p_adjusted"], report.together["p_adjusted"]]).astype(float)
    verdict, note = ("changed", "") if report.drifted else _without_drift(report)
    row |= {"verdict": verdict, "figure": figure, "note": note}
    row |= {"p_value": 1.0 if np.isnan(p_values).all() else np.nanmin(p_values), **_values(windows, figure)}
    return row, report.shapes.get(figure)


def _stage(
    stage: str, before: list["pd.DataFrame"], after: list["pd.DataFrame"], machine: float, level: float, seed: int
) -> tuple[dict[str, Any], Shape | None]:
    row: dict[str, Any] = {"stage": stage, "verdict": "unclear", "p_value": 1.0}
    if (fewest := min(map(len, after))) < MIN_ROWS:
        return row | {"note": f"it was asked {fewest} times in one window"}, None
    after = [after[0], after[1].assign(latency=after[1]["latency"] / machine)]
    quick, slow = sorted(frame["latency"].median() for frame in after)
    if slow - quick < LEAST_SECONDS or slow < SLOWER * quick:
        after = [frame.drop(columns="latency") for frame in after]
    inputs = [name for name in before[0] if name not in NOTED]
    reference, current = (
        one[inputs].add_prefix("its input's ").join(two) for one, two in zip(before, after, strict=True)
    )
    names = [f"its input's {name}" for name in inputs]
    both = features(reference, current)
    unknown = {one.name: one.note for one in both if one.kind == "none" and min(one.missing_shares) < 1}
    report = drift.compare(after[0], after[1], alpha=level, multivariate=(), seed=seed)
    if unclear := [f"{name}: {unknown[name]}" for name in names if name in unknown]:
        figure = report.to_frame()["feature"].iloc[0]
        return row | {"figure": figure, "note": unclear[0], **_values(after, figure)}, report.shapes.get(figure)
    outputs = [name for name in after[0] if name not in unknown]
    test = given_input(reference, current, names, outputs, _draws(level), seed)
    # for example numbers that have become classes
    retyped = report.features.query("kind == 'none' and drifted")["feature"].tolist()
    blamed = [*retyped, *test.figures["figure"][test.figures["p_value"] <= level]]
    figure = (blamed or report.to_frame()["feature"].tolist())[0]
    row |= {"figure": figure, "p_value": test.p_value, "overlap": test.overlap, **_values(after, figure)}
    if blamed:
        verdict, note = "changed", ""
    elif not test.comparable:
        verdict, note = "unclear", "hardly any of its inputs are alike in both windows"
    else:
        verdict, note = ("inherited", "") if report.drifted else _without_drift(report)
    return row | {"verdict": verdict, "note": note}, report.shapes.get(figure)


def _without_drift(report: drift.DriftReport) -> tuple[str, str]:
    """Return (verdict, reason) without drift: "unclear" if a figure could not be compared, else "unchanged"."""
    unknown = [row for row in report.found if row["kind"] == "none" and row["missing_current"] < 1]
    return ("unclear", f"{unknown[0]['feature']}: {unknown[0]['note']}") if unknown else ("unchanged", "")


def _draws(level: float) -> int:
    """Return the number of random signs that allows p-values well below the level."""
    return max(1_999, int(np.ceil(20 / level)))


def _values(windows: list["pd.DataFrame"], figure: str) -> dict[str, str]:
    """Return a figure's mean, its share of True, or the share of the class that has changed most, in both windows."""
    from pandas.api import types

    one, two = (frame[figure].dropna().infer_objects() for frame in windows)
    if one.empty and two.empty:
        return {"before": "not known", "now": "not known"}
    if not (types.is_numeric_dtype(one) and types.is_numeric_dtype(two)):
        shares = [values.astype(str).value_counts(normalize=True) for values in (one, two)]
        label = (shares[1].sub(shares[0], fill_value=0)).abs().idxmax()
        return {
            name: f"{label} {share.get(label, 0.0):.0%}" for name, share in zip(("before", "now"), shares, strict=True)
        }
    style = ".0%" if types.is_bool_dtype(one) else ".3g"
    return {name: format(values.astype(float).mean(), style) for name, values in (("before", one), ("now", two))}


COLOURS = {"changed": ALARM, "inherited": NOW, "unchanged": "#888888", "unclear": "#888888"}


def _box(axis: "Axes", stage: str, verdict: str, last: bool) -> None:
    loud = verdict == "changed"
    style = {"boxstyle": "round,pad=0.7", "facecolor": ALARM if loud else "white", "edgecolor": COLOURS[verdict]}
    axis.text(
        0.5, 0.6, stage, ha="center", va="center", color="white" if loud else "black", bbox=style | {"linewidth": 2}
    )
    axis.text(0.5, 0.05, verdict, ha="center", color=COLOURS[verdict], fontweight="bold" if loud else "normal")
    if not last:
        arrow = {"arrowstyle": "->", "color": "#888888", "linewidth": 1.5}
        axis.annotate("", (1.25, 0.6), (0.95, 0.6), xycoords="axes fraction", arrowprops=arrow, annotation_clip=False)
    axis.set_axis_off()


def _shape(axis: "Axes", figure: str, shape: Shape | None, marked: bool) -> None:
    axis.set_visible(shape is not None)
    if shape is None:
        return
    bins, before, now = shape
    if len(bins) > len(before):  # edges
        axis.stairs(before, bins, fill=True, color=BEFORE, alpha=0.45, label="reference")
        axis.stairs(now, bins, color=NOW, linewidth=2, label="current")
    else:
        place = np.arange(len(bins))
        axis.bar(place - 0.2, before, 0.4, color=BEFORE, alpha=0.45, label="reference")
        axis.bar(place + 0.2, now, 0.4, color="none", edgecolor=NOW, linewidth=2, label="current")
        step = -(-len(bins) // 8)  # more labels would overlap
        slanted: dict[str, Any] = {"rotation": 45, "ha": "right"} if len(bins) > 3 else {}
        axis.set_xticks(place[::step], bins[::step], **slanted)
    axis.set_title(figure, fontsize=10, color=ALARM if marked else "black", fontweight="bold" if marked else "normal")
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_yticks([])
