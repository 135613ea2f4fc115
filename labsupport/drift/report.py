"""Compare two windows of data, and return a report with an alarm whose false-alarm rate is known.

Without any drift a window raises an alarm with probability `alpha` at most, whatever the number of features. So a
comparison every hour with alpha = 0.05 gives about one false alarm a day. Use `DataDriftMonitor` to monitor a stream.
"""

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from html import escape
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from labsupport.arguments import choice, number, shown
from labsupport.drift.feature_tests import TESTS, Sampled, Shape, look, look_together, sample, sampled_rows
from labsupport.drift.grouped import Codes, split_off
from labsupport.drift.multivariate import Together
from labsupport.drift.p_values import CORRECTIONS, LEVELS
from labsupport.tabular import check_rows, common_columns, feature, window

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Result = TypeVar("Result")
READINGS = (("small", 0.1), ("moderate", 0.25), ("large", np.inf))  # of what PSI is beyond noise, below these
NEGLIGIBLE = 0.01  # of a whole PSI
REPEATED = 0.1  # share of a column's distinct values that come more than once, above which we speak of it
COLUMNS = (
    *("feature", "kind", "test", "statistic", "p_value", "p_adjusted", "effect", "limit", "reading", "wasserstein"),
    *("jensen_shannon", "missing_reference", "missing_current", "inefficiency", "drifted", "note"),
)
TOGETHER = ("test", "statistic", "p_value", "p_adjusted", "leading", "drifted")
SHOWN = ["feature", "test", "p_adjusted", "effect", "limit", "reading", "drifted", "note"]


@dataclass(frozen=True)
class DriftReport:
    """The result of `compare`. In a notebook it is shown as a table.

    `features` has one row a feature, in the data's order. Its columns:

    - feature, kind, test, statistic, p_value, p_adjusted
    - effect: the population stability index (PSI)
    - limit: an effect without drift exceeds it with probability alpha
    - reading: "within noise" if the feature has not drifted. If it has: "negligible", "small", "moderate" or "large";
      "missing" if the share of missing values changed; "type" if the type changed. The words rate the PSI minus its
      mean without drift.
    - wasserstein: in the reference's standard deviations; numbers only
    - jensen_shannon: 0 to 1
    - missing_reference, missing_current: shares
    - inefficiency: the number of rows that carry as much information as one independent row
    - drifted, note

    `together` has one row for each test of all features: test, statistic, p_value, p_adjusted, leading, drifted.
    """

    found: list[dict[str, Any]]  # of each feature: what `features` shows, and more
    whole: list[dict[str, Any]]  # of each test of all features: what `together` shows
    alpha: float
    correction: str
    rows: tuple[int, int]  # of the reference, of the current window
    warnings: tuple[str, ...]
    shapes: dict[str, Shape]  # to plot: bins or classes, shares before, shares now

    @cached_property
    def features(self) -> "pd.DataFrame":
        """Return the table of the features. pandas is loaded here, because it takes longer than a small comparison."""
        import pandas as pd

        return pd.DataFrame(self.found)[list(COLUMNS)]

    @cached_property
    def together(self) -> "pd.DataFrame":
        """Return the table of the tests of all features."""
        import pandas as pd

        return pd.DataFrame(self.whole, columns=list(TOGETHER))

    @property
    def drifted(self) -> bool:
        """Return True if anything changed, at the level `alpha` for the whole comparison."""
        return any(row["drifted"] for row in [*self.found, *self.whole])

    def to_frame(self) -> "pd.DataFrame":
        """Return a copy of `features`: first those that drifted, then by effect; an unknown effect comes first there."""
        return self.features.iloc[self._order()].reset_index(drop=True)

    def _order(self) -> list[int]:
        """Return the features' places: those that drifted first, then the larger effect; the largest if it is unknown."""
        striking = [
            (row["drifted"], (np.inf if row["drifted"] else -np.inf) if np.isnan(row["effect"]) else row["effect"])
            for row in self.found
        ]
        return sorted(range(len(striking)), key=striking.__getitem__, reverse=True)

    def to_json(self) -> str:
        """Return the report as JSON, without the shapes. NaN becomes null."""
        tables = {name: json.loads(getattr(self, name).to_json(orient="records")) for name in ("features", "together")}
        rest = {"alpha": self.alpha, "correction": self.correction, "rows": self.rows, "warnings": self.warnings}
        return json.dumps({"drifted": self.drifted, **rest, **tables})

    def summary(self) -> str:
        """Return the result in a sentence or two."""
        return "; ".join([self._answer(), *self.warnings])

    def _answer(self) -> str:
        rows = [self.found[place] for place in self._order()]
        words = [f"{row['feature']} ({_why(row)})" for row in rows if row["drifted"]]
        words += [f"{row['test']} of {row['leading']}".removesuffix(" of ") for row in self.whole if row["drifted"]]
        level = f"{LEVELS[self.correction]} {self.alpha:g}, {self.rows[0]:,} and {self.rows[1]:,} rows"
        nothing = "no drift" if np.isfinite([row["p_value"] for row in rows]).any() else "nothing could be tested"
        return f"{'drift in ' + ', '.join(words) if words else nothing} ({level})"

    def plot(self, most: int = 6) -> "Figure":
        """Plot the distributions of at most `most` features before and now, the most striking first."""
        from labsupport.charts import distributions

        most = number("most", most, 1, whole=True)
        rows = [self.found[place] for place in self._order()]
        worst = [(row["feature"], row) for row in rows if row["feature"] in self.shapes][:most]
        return distributions([(f"{name}: {_why(row)}", *self.shapes[name], row["drifted"]) for name, row in worst])

    def __repr__(self) -> str:
        return f"<DriftReport: {self.summary()}>"

    def _repr_html_(self) -> str:
        tables = [self.to_frame()[SHOWN], self.together.drop(columns="statistic")]
        look = {"index": False, "border": 0, "na_rep": "", "justify": "left", "float_format": "{:.3g}".format}
        warnings = "".join(f"<p>{escape(words)}</p>" for words in self.warnings)
        shown = "".join(table.to_html(**look) for table in tables if len(table))
        return f"<p><b>{escape(self._answer())}</b></p>{warnings}{shown}"


def compare(
    reference: Any,
    current: Any,
    alpha: float = 0.05,
    correction: str = "holm",
    multivariate: Sequence[str] | str | None = ("correlations", "mmd"),
    seed: int = 0,
    groups: Any = None,
) -> DriftReport:
    """Compare two windows of data: pandas or polars frames, arrays (N,) or (N, D), dicts of columns, lists of rows.

    A window can also be the path of a Parquet file: a `Path`, or a text that ends in `.parquet`. Its columns are read one
    by one, so a file may be larger than memory.

    Every feature is tested, and all of them together (`multivariate`: "correlations", "mmd", "classifier", or none).
    The p-values are corrected for their number. "holm" (Holm, 1979) and "bonferroni" bound the chance of any false
    alarm by `alpha`. "bh" (Benjamini and Hochberg, 1995) does so, too, if nothing has drifted; otherwise a share
    `alpha` of the features it names may be false. `seed` fixes permutations and the classifier.

    The false-alarm rate holds for independent rows. It also holds for rows in groups (the pictures of a user, of a
    session, of a camera) if `groups` names them: a column of both windows, or a pair of labels, one for each row.
    Groups have to be independent of each other, and at least 20 in each window. If rows come in groups and `groups` is
    missing, the rate does not hold: of unchanged windows, a third to a half were called drifted.

    Without `groups`, rows are assumed to be in the order of time. If neighbours resemble each other, they are counted
    as fewer rows, and `warnings` report it. In windows of less than 100 rows a weak resemblance is not detected: then
    up to 8 % of windows without drift raise an alarm at 5 %. `warnings` also name columns of many digits whose values
    repeat.

    The tests detect shifts of the middle best. They are nearly blind to changes of the outermost 5 % of the values.

    Raises `TooFewRows`, `DifferentColumns`, and ValueError for unreadable data. A column that changed its type, has no
    values or holds times gets a row in the report, with a note.

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
    tests = _tests(multivariate)
    reference, current = window(reference, "reference"), window(current, "current")
    check_rows(reference, current)
    codes = None
    if groups is not None:
        codes, reference, current = split_off(groups, reference, current)
    rows, shapes, both, notes = _looked((reference, current), tests, alpha, seed, codes)
    found, whole = _judged(rows, both, alpha, correction)
    warnings = (*_warnings(found, grouped=codes is not None), *notes)
    return DriftReport(found, whole, alpha, correction, (len(reference), len(current)), warnings, shapes)


def _tests(multivariate: Sequence[str] | str | None) -> list[str]:
    """Return the requested tests of all features, each once. Raises ValueError for an unknown one."""
    if multivariate is None or isinstance(multivariate, str):
        multivariate = [multivariate] if multivariate else []
    if not isinstance(multivariate, Sequence | set | frozenset):
        raise ValueError(f"multivariate={shown(multivariate)}: give a list of {', '.join(TESTS)}, or of none")
    return [test for test in TESTS if any(choice("multivariate", one, TESTS) == test for one in multivariate)]


def _looked(
    windows: tuple[Any, Any], tests: list[str], alpha: float, seed: int, codes: Codes | None
) -> tuple[list[dict[str, Any]], dict[str, Shape], list[Together], list[str]]:
    """Return the features' rows and shapes, and the results and warnings of the tests of all features together.

    Each core has one column in memory at a time. Of the others we keep the rows that the tests of all features take.
    """
    names = common_columns(*windows)

    def one(name: str) -> tuple[dict[str, Any], Shape | None, Sampled | None]:
        column = feature(name, *(window[name] for window in windows))
        return *look(column, len(names), alpha, seed, codes), sample(column, 1.0)

    def again(name: str) -> Sampled | None:
        return sample(feature(name, *(window[name] for window in windows)), step)

    cells = len(names) * len(windows[0])
    rows, shapes, samples = zip(*_map(one, names, cells), strict=True)
    step = max(row["step"] for row in rows)
    samples = samples if step == 1 else _map(again, names, cells)
    if codes is not None:
        codes = codes[0][sampled_rows(len(windows[0]), step)], codes[1][sampled_rows(len(windows[1]), step)]
    both, notes = look_together([one for one in samples if one], len(names), tests, alpha, seed, codes)
    return list(rows), {name: shape for name, shape in zip(names, shapes, strict=True) if shape}, both, notes


def _map(look: Callable[[str], Result], names: list[str], cells: int) -> list[Result]:
    """Call `look` for each column, on every core if there are many cells. Sorting takes most of the time and releases
    the GIL.
    """
    if cells < 100_000:
        return [look(name) for name in names]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(look, names))


def _judged(
    rows: list[dict[str, Any]], both: list[Together], alpha: float, correction: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows of the features and of the tests together, with adjusted p-values and readings."""
    numbers = ("statistic", "p_value", "effect", "limit", "wasserstein", "jensen_shannon")
    rows = [{**dict.fromkeys(numbers, np.nan), "test": "", **row} for row in rows]
    p_values = np.array([row["p_value"] for row in rows] + [result.p_value for result in both])
    adjusted, tested = np.full(len(p_values), np.nan), np.isfinite(p_values)
    adjusted[tested] = CORRECTIONS[correction](p_values[tested])
    for row, p_adjusted in zip(rows, adjusted, strict=False):
        row.update(p_adjusted=p_adjusted, drifted=row["changed"] or bool(p_adjusted <= alpha))
        row.update(reading=_reading(row))
    whole = [
        (one.test, one.statistic, one.p_value, p_adjusted, ", ".join(one.leading), bool(p_adjusted <= alpha))
        for one, p_adjusted in zip(both, adjusted[len(rows) :], strict=True)
    ]
    return rows, [dict(zip(TOGETHER, row, strict=True)) for row in whole]


def _reading(row: dict[str, Any]) -> str:
    if not row["drifted"]:
        return "within noise" if np.isfinite(row["p_value"]) else ""
    if row["changed"] or row["of_missing"]:
        return "type" if row["changed"] else "missing"
    if row["effect"] < NEGLIGIBLE:
        return "negligible"
    return next(word for word, limit in READINGS if row["effect"] - row["noise"] < limit)


def _why(row: dict[str, Any]) -> str:
    """Return a row's reading as text."""
    if row["reading"] == "missing":
        return f"missing: {row['missing_reference']:.0%} before, {row['missing_current']:.0%} now"
    return str(row["note"] if row["reading"] in ("", "type") else row["reading"])


def _warnings(rows: list[dict[str, Any]], grouped: bool) -> tuple[str, ...]:
    warnings = []
    why = "rows of one group resemble each other" if grouped else "rows resemble their neighbours (serial correlation)"
    if max(row["step"] for row in rows) > 1:
        worst, alike = max(rows, key=itemgetter("inefficiency")), [row for row in rows if row["inefficiency"] > 1]
        warnings.append(
            f"{why}: {len(alike)} of {len(rows)} features were counted as "
            f"fewer rows, {worst['feature']} as one in {worst['inefficiency']:.1f}"
        )
    if copies := [row["feature"] for row in rows if row["repeats"] > REPEATED]:
        warnings.append(
            f"values repeat in {', '.join(copies)}: if rows are copies of each other, or of one user, they count "
            "for too much: say so by groups"
        )
    if tiny := [row["feature"] for row in rows if row["drifted"] and row["reading"] == "negligible"]:
        warnings.append(f"significant, but too small to matter by itself: {', '.join(tiny)}")
    if untested := [row for row in rows if np.isnan(row["p_value"]) and not row["changed"]]:
        warnings.append("not compared: " + ", ".join(f"{row['feature']} ({row['note']})" for row in untested))
    return tuple(warnings)
