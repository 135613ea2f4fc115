"""Has the world changed? Two windows of data, compared, with an alarm that can be believed.

A window without any drift raises an alarm in a share `alpha` of cases at most, however many features there are. So a look
every hour with alpha = 0.05 gives about one false alarm a day; `DataDriftMonitor` is for looking all the time.
"""

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from labsupport.arguments import choice, number, shown
from labsupport.drift import univariate
from labsupport.drift.concept_monitor import ConceptDriftMonitor
from labsupport.drift.data_monitor import DataDriftMonitor
from labsupport.drift.detector_evaluation import compare_detectors, evaluate
from labsupport.drift.feature_tests import TESTS, Shape, counts, look, look_together
from labsupport.drift.grouped import split_off
from labsupport.drift.multiple_testing import CORRECTIONS, LEVELS
from labsupport.drift.univariate import Psi
from labsupport.tabular import DifferentColumns, Feature, TooFewRows, check_rows, features, to_frame

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["ConceptDriftMonitor", "DataDriftMonitor", "DifferentColumns", "DriftReport", "Psi", "TooFewRows"]
__all__ += ["compare", "compare_detectors", "evaluate", "psi"]

READINGS = (("small", 0.1), ("moderate", 0.25), ("large", np.inf))  # of what PSI is beyond noise, below these
NEGLIGIBLE = 0.01  # of a whole PSI
REPEATED = 0.1  # share of a column's distinct values that come more than once, above which we speak of it
COLUMNS = (
    *("feature", "kind", "test", "statistic", "p_value", "p_adjusted", "effect", "limit", "reading", "wasserstein"),
    *("jensen_shannon", "missing_reference", "missing_current", "inefficiency", "drifted", "note"),
)
SHOWN = ["feature", "test", "p_adjusted", "effect", "limit", "reading", "drifted", "note"]


@dataclass(frozen=True)
class DriftReport:
    """What `compare` found. In a notebook it shows itself as a table.

    `features`: one row a feature, in the data's order. Columns: feature, kind, test, statistic, p_value, p_adjusted, effect
    (the population stability index), limit (which an effect without drift exceeds in a share alpha), reading ("within noise"
    if it has not drifted, "negligible", "small", "moderate" or "large" if it has, "missing" if it is the share of missing
    values that has changed, "type" if it is that), wasserstein (in the reference's standard deviations; numbers only),
    jensen_shannon (0 to 1), missing_reference and missing_current (shares), inefficiency (how many rows carry as much as
    one independent row), drifted, note. The words for a PSI are the usual ones, for what it has beyond what chance gives it
    at these numbers of rows.

    `together`: the same for the tests of all features at once: test, statistic, p_value, p_adjusted, leading, drifted.
    """

    features: "pd.DataFrame"
    together: "pd.DataFrame"
    alpha: float
    correction: str
    rows: tuple[int, int]  # of the reference, of the current window
    warnings: tuple[str, ...]
    shapes: dict[str, Shape]  # to plot: bins or classes, shares before, shares now

    @property
    def drifted(self) -> bool:
        """Did anything change? At the level `alpha` for the whole."""
        return bool(self.features["drifted"].any() or self.together["drifted"].any())

    def to_frame(self) -> "pd.DataFrame":
        """A copy of `features`, the most striking first: what can no longer be compared, then by effect."""
        effect = self.features["effect"]
        striking = effect.where(effect.notna() | ~self.features["drifted"], np.inf)
        order = self.features.assign(striking=striking)
        order = order.sort_values(["drifted", "striking"], ascending=False, kind="stable", ignore_index=True)
        return order.drop(columns="striking")

    def to_json(self) -> str:
        """All of it but the shapes; what is not a number is null."""
        tables = {name: json.loads(getattr(self, name).to_json(orient="records")) for name in ("features", "together")}
        rest = {"alpha": self.alpha, "correction": self.correction, "rows": self.rows, "warnings": self.warnings}
        return json.dumps({"drifted": self.drifted, **rest, **tables})

    def summary(self) -> str:
        """The answer in a sentence or two."""
        return "; ".join([self._answer(), *self.warnings])

    def _answer(self) -> str:
        words = [f"{row.feature} ({_why(row)})" for row in self.to_frame().query("drifted").itertuples()]
        whole = self.together.query("drifted").itertuples()
        words += [f"{row.test} of {row.leading}" if row.leading else row.test for row in whole]
        level = f"{LEVELS[self.correction]} {self.alpha:g}, {self.rows[0]:,} and {self.rows[1]:,} rows"
        nothing = "no drift" if self.features["p_value"].notna().any() else "nothing could be tested"
        return f"{'drift in ' + ', '.join(words) if words else nothing} ({level})"

    def plot(self, most: int = 6) -> "Figure":
        """The features' distributions before and now, the most striking first, at most `most` of them."""
        from labsupport.charts import distributions

        most = int(number("most", most, 1, whole=True))
        worst = [row for row in self.to_frame().itertuples() if row.feature in self.shapes][:most]
        return distributions([(f"{row.feature}: {_why(row)}", *self.shapes[row.feature], row.drifted) for row in worst])

    def __repr__(self) -> str:
        return f"<DriftReport: {self.summary()}>"

    def _repr_html_(self) -> str:
        tables = [self.to_frame()[SHOWN], self.together.drop(columns="statistic")]
        look = {"index": False, "border": 0, "na_rep": "", "justify": "left", "float_format": "{:.3g}".format}
        said = "".join(f"<p>{escape(words)}</p>" for words in self.warnings)
        shown = "".join(table.to_html(**look) for table in tables if len(table))
        return f"<p><b>{escape(self._answer())}</b></p>{said}{shown}"


def compare(
    reference,
    current,
    alpha: float = 0.05,
    correction: str = "holm",
    multivariate: Sequence[str] = ("correlations", "mmd"),
    seed: int = 0,
    groups: Any = None,
) -> DriftReport:
    """Compare two windows of data: pandas or polars frames, arrays (N,) or (N, D), dicts of columns, lists of rows.

    Every feature is tested, and all of them together (`multivariate`: "correlations", "mmd", "classifier", or none), and
    the p-values are corrected for their number: "holm" (Holm, 1979) and "bonferroni" hold the chance of any false alarm at
    `alpha`; "bh" (Benjamini and Hochberg, 1995) holds it too when nothing has drifted, and else lets a share `alpha` of the
    features it names be false. `seed` settles permutations and the classifier.

    The promise holds for independent rows, and for rows in groups (the pictures of a user, of a session, of a camera) if
    `groups` says which: the name of a column of both windows, or a pair of labels, one for each row. Groups have to be
    independent of each other, and at least 20 in each window. Without `groups`, the rows of one user break the promise: of
    windows in which nothing had changed, a third to a half were called drifted.

    Without `groups`, rows are taken to be in the order of time. If neighbours resemble each other, they are counted as fewer
    rows, and `warnings` say so. In windows of less than 100 rows a weak resemblance is not seen: then up to 8 % of windows
    without drift alarm at 5 %. A column of many digits whose values repeat is named in `warnings`, too.

    The tests see shifts of the middle best. They are nearly blind to changes of the outermost 5 % of the values.

    Raises `TooFewRows`, `DifferentColumns`, and ValueError for what it cannot read. A column that turned into another type,
    has no values or holds times is a row in the report, with a note.

    >>> random = np.random.default_rng(0)
    >>> before = {"size": random.normal(90, 20, 500), "rooms": random.integers(1, 6, 500)}
    >>> now = {"size": random.normal(105, 20, 200), "rooms": random.integers(1, 6, 200)}
    >>> report = compare(before, now)
    >>> report
    <DriftReport: drift in size (large), MMD (family-wise level 0.05, 500 and 200 rows)>
    >>> report.features[["feature", "test", "reading", "drifted"]]
      feature        test       reading  drifted
    0    size          KS         large     True
    1   rooms  chi-square  within noise    False
    """
    alpha, seed = number("alpha", alpha, 0, 1, ends=False), number("seed", seed, 0, whole=True)
    choice("correction", correction, CORRECTIONS)
    multivariate = _tests(multivariate)
    reference, current = to_frame(reference, "reference"), to_frame(current, "current")
    check_rows(reference, current)
    codes = None
    if groups is not None:
        codes, reference, current = split_off(groups, reference, current)
    found = features(reference, current)
    looks = _map(lambda feature: look(feature, len(found), alpha, seed, codes), found)
    rows, shapes = [row for row, _ in looks], {row["feature"]: shape for row, shape in looks if shape}
    both, said = look_together(found, max(row["step"] for row in rows), multivariate, alpha, seed, codes)
    frame, whole = _tables(rows, both, alpha, correction)
    warnings = (*_warnings(frame, grouped=codes is not None), *said)
    return DriftReport(frame[list(COLUMNS)], whole, alpha, correction, (len(reference), len(current)), warnings, shapes)


def psi(reference, current, alpha: float = 0.05, seed: int = 0) -> Psi:
    """The population stability index of one feature, of two arrays (N,) and (M,), with its limit for these sizes.

    >>> random = np.random.default_rng(0)
    >>> found = psi(random.normal(size=100), random.normal(size=100))
    >>> round(found.value, 2), round(found.limit, 2), found.drifted  # above 0.1, and no drift
    (0.2, 0.33, False)
    """
    alpha, seed = number("alpha", alpha, 0, 1, ends=False), number("seed", seed, 0, whole=True)
    feature, *more = features(to_frame(reference, "reference"), to_frame(current, "current"))
    if more:
        raise ValueError(f"one feature is needed, not {len(more) + 1}: compare takes several")
    if feature.kind == "none" or not min(len(feature.reference), len(feature.current)):
        raise ValueError(f"cannot be compared: {feature.note or 'one window has no values'}")
    return univariate.population_stability(counts(feature, (feature.reference, feature.current)), alpha, seed=seed)


def _tests(multivariate: Sequence[str] | str | None) -> list[str]:
    """The tests of all features that were asked for, each once. Raises ValueError for what is none."""
    if multivariate is None or isinstance(multivariate, str):
        multivariate = [multivariate] if multivariate else []
    if not isinstance(multivariate, Sequence | set | frozenset):
        raise ValueError(f"multivariate={shown(multivariate)}: give a list of {', '.join(TESTS)}, or of none")
    return [test for test in TESTS if any(choice("multivariate", one, TESTS) == test for one in multivariate)]


def _map(look: Callable, found: list[Feature]) -> list:
    """On every core if it is worth it: sorting, which takes the time, leaves Python to others."""
    if sum(len(feature.reference) for feature in found) < 100_000:
        return [look(feature) for feature in found]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(look, found))


def _tables(rows: list[dict], both: list, alpha: float, correction: str) -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """The features' and the whole's, with adjusted p-values and what follows from them."""
    import pandas as pd

    numbers = ("statistic", "p_value", "effect", "limit", "wasserstein", "jensen_shannon")
    rows = [{**dict.fromkeys(numbers, np.nan), "test": "", **row} for row in rows]
    p_values = np.array([row["p_value"] for row in rows] + [result.p_value for result in both])
    adjusted, tested = np.full(len(p_values), np.nan), np.isfinite(p_values)
    adjusted[tested] = CORRECTIONS[correction](p_values[tested])
    for row, p_adjusted in zip(rows, adjusted, strict=False):
        row.update(p_adjusted=p_adjusted, drifted=row["changed"] or bool(p_adjusted <= alpha))
        row.update(reading=_reading(row))
    whole = [
        (
            result.test,
            result.statistic,
            result.p_value,
            p_adjusted,
            ", ".join(result.leading),
            bool(p_adjusted <= alpha),
        )
        for result, p_adjusted in zip(both, adjusted[len(rows) :], strict=True)
    ]
    columns = ["test", "statistic", "p_value", "p_adjusted", "leading", "drifted"]
    return pd.DataFrame(rows), pd.DataFrame(whole, columns=columns)


def _reading(row: dict[str, Any]) -> str:
    if not row["drifted"]:
        return "within noise" if np.isfinite(row["p_value"]) else ""
    if row["changed"] or row["of_missing"]:
        return "type" if row["changed"] else "missing"
    if row["effect"] < NEGLIGIBLE:
        return "negligible"
    return next(word for word, limit in READINGS if row["effect"] - row["noise"] < limit)


def _why(row) -> str:
    """A row's reading in words."""
    if row.reading == "missing":
        return f"missing: {row.missing_reference:.0%} before, {row.missing_current:.0%} now"
    return row.note if row.reading in ("", "type") else row.reading


def _warnings(frame: "pd.DataFrame", grouped: bool) -> tuple[str, ...]:
    said = []
    alike = frame.query("inefficiency > 1.0").sort_values("inefficiency", ascending=False)
    why = "rows of one group resemble each other" if grouped else "rows resemble their neighbours (serial correlation)"
    if frame["step"].max() > 1:
        worst = alike.iloc[0]
        said.append(
            f"{why}: {len(alike)} of {len(frame)} features were counted as "
            f"fewer rows, {worst.feature} as one in {worst.inefficiency:.1f}"
        )
    if len(copies := frame.query("repeats > @REPEATED")):
        said.append(
            f"values repeat in {', '.join(copies.feature)}: if rows are copies of each other, or of one user, they count "
            "for too much: say so by groups"
        )
    if len(tiny := frame.query("drifted and reading == 'negligible'")):
        said.append(f"significant, but too small to matter by itself: {', '.join(tiny.feature)}")
    if len(untested := frame.query("p_value.isna() and not changed")):
        said.append("not compared: " + ", ".join(f"{row.feature} ({row.note})" for row in untested.itertuples()))
    return tuple(said)
