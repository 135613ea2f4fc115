"""Test rows that come in groups: the pictures of one user, the frames of one scene, the readings of one camera.

Rows of one group resemble each other, so they carry less information than as many independent rows. We estimate how
much less from the groups' sums: by the design effect for numbers (Kish, 1965, "Survey sampling") and by the corrected
chi-square test for classes (Rao and Scott, 1981 and 1992). Groups are assumed to be independent of each other.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from labsupport.arguments import shown
from labsupport.drift import effective_rows, univariate
from labsupport.drift.effective_rows import Alike
from labsupport.drift.p_values import Noise
from labsupport.drift.univariate import Counts, TwoSampleTest
from labsupport.tabular import TooFewRows, codes_of, table

if TYPE_CHECKING:
    import pandas as pd

MIN_GROUPS = 20  # in each window: of fewer, nobody can say how much groups differ
Codes = tuple[np.ndarray, np.ndarray]  # of each row of both windows, the number of its group: 0, 1, ...


def split_off(groups: Any, reference: Any, current: Any) -> tuple["Codes", Any, Any]:
    """Return the rows' groups, and both windows (see `tabular.window`) without the column that held them.

    `groups` is the name of a column, or a pair of labels: one for each row of the reference, and of the current window.
    Raises ValueError for missing labels, an unknown column, or a number of labels that differs from the number of rows.
    Raises `TooFewRows` for fewer than `MIN_GROUPS` groups in a window.
    """
    if isinstance(groups, list | tuple) and len(groups) == 2 and not any(map(np.isscalar, groups)):
        labels = [table(column, "groups") for column in groups]
    else:
        labels, name = [], str(groups)
        for window, frame in (("reference", reference), ("current", current)):
            if name not in frame.columns:
                cure = "give the name of a column of both windows, or a pair of labels for their rows"
                raise ValueError(f"groups={shown(groups)}: the {window} window has no such column: {cure}")
            labels.append(table(frame[name], "groups"))
        reference, current = reference.drop(columns=name), current.drop(columns=name)
    codes = _codes("reference", labels[0], reference), _codes("current", labels[1], current)
    return codes, reference, current


def _codes(window: str, labels: "pd.DataFrame", frame: Any) -> np.ndarray:
    if labels.shape != (len(frame), 1):
        raise ValueError(
            f"groups: labels of shape {labels.shape} for {len(frame)} rows of the {window} window: give one each"
        )
    if gone := int(labels.iloc[:, 0].isna().sum()):
        raise ValueError(f"groups: {gone} rows of the {window} window have no group: name one, or leave these rows out")
    codes = codes_of(labels.iloc[:, 0])
    if (count := int(codes.max()) + 1) < MIN_GROUPS:
        raise TooFewRows(
            f"the {window} window has {count} groups: at least {MIN_GROUPS} are needed, so collect rows of more of them"
        )
    return codes


def exchangeable(x: np.ndarray, y: np.ndarray, codes: Codes | None) -> tuple[np.ndarray, int]:
    """Return the unit (row or group) that is permuted for each row, and the number of units in the first sample."""
    if codes is None:
        return np.arange(len(x) + len(y)), len(x)
    first = int(codes[0].max()) + 1
    return np.concatenate([codes[0], codes[1] + first]), first


def renumbered(codes: Codes, kept: np.ndarray) -> Codes:
    """Return the groups of the rows that are kept, as truth values of both windows, (N + M,), numbered anew in each."""
    parts = np.split(kept, [len(codes[0])])
    before, now = (np.unique(of_row[part], return_inverse=True)[1] for of_row, part in zip(codes, parts, strict=True))
    return before, now


def sums(indicators: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the sums of each group, (G, K), of what rows (N, K) differ from their mean by, and the degrees of freedom.

    The squares of these sums add up to what those of the rows do if rows are independent, and to more if rows of one group
    resemble each other. A large group moves the mean itself, which is allowed for as by leaving it out (the jackknife).
    """
    codes = np.unique(codes, return_inverse=True)[1]
    size, groups = np.bincount(codes), int(codes.max()) + 1
    if groups < 2:
        return np.zeros((1, indicators.shape[1])), 0.0
    centred = indicators - indicators.mean(axis=0)
    totals = np.column_stack([np.bincount(codes, weights=column) for column in centred.T])
    share = size / len(codes)
    totals *= np.sqrt((groups - 1) / groups * (len(codes) - 1) / len(codes)) / (1 - share)[:, np.newaxis]
    return totals, float(1 / (share**2).sum() - 1)


def design_effect(windows: Sequence[np.ndarray], codes: Codes) -> Alike:
    """Return the number of rows that carry as much information as one independent row, of indicators (N, K) of both
    windows.

    >>> rows = np.random.default_rng(0).normal(size=200)
    >>> design_effect((effective_rows.below(rows.repeat(5)),) * 2, (np.arange(200).repeat(5),) * 2).reference.round(1)
    np.float64(5.0)
    """
    effects, freedoms = [], []
    for window, of_row in zip(windows, codes, strict=True):
        totals, freedom = sums(window.astype(float), of_row)
        within = ((window - window.mean(axis=0)) ** 2).sum()
        effects.append(max(1.0, (totals**2).sum() / within) if within and totals.shape[0] < len(window) else 1.0)
        freedoms.append(np.inf if totals.shape[0] == len(window) else max(freedom, 0.1))
    spreads = np.array([effect / len(window) for effect, window in zip(effects, windows, strict=True)])
    return Alike(effects[0], effects[1], effective_rows.welch(spreads, freedoms))


def class_test(values: Sequence[np.ndarray], codes: Codes, classes: int) -> tuple[TwoSampleTest, Alike]:
    """Test whether the shares of each class are the same in both windows. Values are whole numbers below `classes`,
    (N,), (M,).

    The test is Pearson's chi-square with Rao and Scott's second-order correction for groups. It uses an F distribution,
    because the correction is an estimate (Thomas and Rao, 1987). With two classes Fisher's test is used, too, on counts
    that are scaled down; the larger p-value counts.
    """
    counts = _counted(values, classes)
    average = [len(window) / len(np.unique(of_row)) for window, of_row in zip(values, codes, strict=True)]
    place = univariate.without_rare(np.array([counts.reference / average[0], counts.current / average[1]]))
    values = [place[window] for window in values]
    counts = _counted(values, place.max() + 1)
    if len(counts.reference) < 2:
        return TwoSampleTest("chi-square", 0.0, 1.0), Alike()
    windows = [window[:, np.newaxis] == np.arange(len(counts.reference)) for window in values]
    alike = design_effect(windows, codes)
    if alike == Alike():  # every row is a group
        return univariate.chi_square(counts), alike
    statistic = squared_difference(counts)
    p_value = noise(windows, codes).p_value(statistic)
    if len(counts.reference) > 2:
        return TwoSampleTest("chi-square", statistic / sum(1 / size for size in counts.sizes), p_value), alike
    fisher = univariate.chi_square(counts, alike[:2])
    return TwoSampleTest("Fisher", fisher.statistic, max(fisher.p_value, p_value)), alike


def _counted(values: Sequence[np.ndarray], classes: int) -> Counts:
    before, now = (np.bincount(window, minlength=classes) for window in values)
    return Counts(before, now)


def squared_difference(counts: Counts) -> float:
    """Return the sum of the shares' squared differences, each by the common share: chi-square for one row of each window."""
    p, q = counts.reference / counts.sizes[0], counts.current / counts.sizes[1]
    return float(((p - q) ** 2 / ((counts.reference + counts.current) / sum(counts.sizes))).sum())


def noise(windows: Sequence[np.ndarray], codes: Codes) -> Noise:
    """Return the distribution of `squared_difference` without any drift. `windows` are truth values (N, K): each row's
    class. A class without any row in either window does not count.

    Its covariance matrix is that of the groups' sums. A chi-square with the same mean and variance replaces the sum of
    its eigenvalues times chi-squares of one degree (Satterthwaite, 1946).
    """
    share = np.concatenate(windows).mean(axis=0)
    covariances, freedoms = [], []
    for window, of_row in zip(windows, codes, strict=True):
        totals, freedom = sums(window[:, share > 0] / np.sqrt(share[share > 0]), of_row)
        covariances.append(totals.T @ totals / len(window) ** 2)
        freedoms.append(max(freedom, 0.1))
    whole = sum(covariances)
    trace, square = np.trace(whole), (whole**2).sum()
    if not square:
        return Noise(1.0, 1.0)
    freedom = effective_rows.welch(np.array([np.trace(part) for part in covariances]), freedoms)
    return Noise(square / trace, trace**2 / square, freedom)
