"""Tests whether outputs changed more than their inputs explain. Changed inputs alone do not raise an alarm.

The test compares two windows of inputs and outputs. It asks whether output and window are independent, given the input.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from labsupport import tabular
from labsupport.arguments import number, shown
from labsupport.drift import multivariate
from labsupport.drift.effective_rows import inefficiency

if TYPE_CHECKING:
    import pandas as pd

ROWS = 1_000  # of each window, evenly spaced: we need a matrix of all pairs
CLASSES = 6  # the commonest classes of one figure that are told apart
RIDGES = np.logspace(-2, 3, 11)
LEAST_EFFECT = 0.1  # standard deviations: however many rows there are, less is no change worth a name
LEAST_OVERLAP = 0.1  # if the input tells the windows apart better than that, no outputs can be compared


@dataclass(frozen=True)
class ConditionalTest:
    """The result of `given_input`.

    - `figures`: one row for each output that is not constant. Column figure is its name. Column effect is its largest
      change with the input held fixed, in standard deviations. Column p_value is adjusted for the number of figures.
    - `p_value`: the smallest of these p-values.
    - `overlap`: the share, 0 to 1, of the difference between the windows that the inputs do not explain. It is 1 if the
      inputs are alike, and 0 if no input of one window could be from the other. Below `LEAST_OVERLAP` nothing is
      tested.
    """

    p_value: float
    figures: "pd.DataFrame"
    overlap: float

    @property
    def comparable(self) -> bool:
        return self.overlap >= LEAST_OVERLAP


def given_input(
    reference: "pd.DataFrame",
    current: "pd.DataFrame",
    inputs: Sequence[str],
    outputs: Sequence[str],
    draws: int = 1_999,
    seed: int = 0,
) -> ConditionalTest:
    """Test whether the `outputs` changed, given the `inputs`. Both name columns of two frames: numbers, classes or
    truth values.

    The test is the generalised covariance measure (Shah and Peters, 2020). We predict the output and the window from
    the input, and test whether the two residuals are correlated. The level holds if the product of the two prediction
    errors is small, so neither prediction has to be exact. Rows unlike any row of the other window have no weight.
    Weights by each input detect changes that cancel out over all rows (after Scheidegger, Hörrmann and Bühlmann, 2022).
    Spreads are tested like means. The prediction is a kernel ridge regression of each row from the others. The p-value
    is that of the largest statistic of all, by `draws` random signs.

    The test knows only the columns of `inputs`. If a part of the input changes that no column describes, the test
    blames the stage that reads it. The level of 5 % holds for independent rows, from some 100 in each window on. With
    40 rows, or if neighbours resemble each other (which is allowed for in part), 7 to 8 % of unchanged stages are
    called changed.

    Raises `TooFewRows`, `DifferentColumns` for a name that a window does not have, and ValueError for invalid frames,
    `draws` or `seed`, for a name that comes twice, and for a column that cannot be compared (see `columns`).

    >>> import pandas as pd
    >>> random = np.random.default_rng(0)
    >>> before, now = (pd.DataFrame({"x": random.normal(shift, 1, 300)}) for shift in (0, 1))
    >>> before["y"], now["y"] = (2 * frame["x"] + random.normal(size=300) for frame in (before, now))
    >>> given_input(before, now, ["x"], ["y"]).p_value > 0.05  # y has changed, and only because x has
    True
    >>> given_input(before, now.assign(y=now["y"] - 1), ["x"], ["y"]).p_value
    0.0005
    """
    draws, seed = number("draws", draws, 1, whole=True), number("seed", seed, 0, whole=True)
    reference, current = tabular.to_frame(reference, "reference"), tabular.to_frame(current, "current")
    tabular.check_rows(reference, current)
    inputs, outputs = _names("inputs", inputs, reference, current), _names("outputs", outputs, reference, current)
    before, now = (frame.iloc[multivariate.evenly(np.arange(len(frame)), ROWS)] for frame in (reference, current))
    _, x = columns(before, now, inputs)
    whose, y = columns(before, now, outputs)
    window = np.repeat([0.0, 1.0], [len(before), len(now)])[:, np.newaxis]
    predict = Ridge(x)
    rest = predict.residuals(window)  # of the window, given the input
    overlap = float(min(1.0, (rest**2).sum() / ((window - window.mean()) ** 2).sum()))
    if not whose or overlap < LEAST_OVERLAP:
        return _summary([], np.empty(0), np.empty(0), overlap)
    mean = predict.residuals(y)
    spread = predict.residuals(np.abs(mean))
    weights = [np.ones(len(x)), *np.where(x > np.median(x, axis=0), 1.0, -1.0).T]
    parts = [rest * mean * weight[:, np.newaxis] for weight in weights] + [rest * spread]
    products = np.hstack(parts)
    effects = products.sum(axis=0) / (rest**2).sum()
    heard = np.abs(effects) >= LEAST_EFFECT
    p_values = np.where(heard, largest(products, draws, seed), 1.0)
    return _summary(whose * len(parts), effects, p_values, overlap)


def _names(argument: str, names: Sequence[str], *windows: "pd.DataFrame") -> list[str]:
    """Return the names as texts, if both windows have them. Raises ValueError."""
    if isinstance(names, str):
        raise ValueError(f"{argument}={names!r}: give a list of column names")
    names = [str(name) for name in names]
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise ValueError(f"{argument}={shown(names)}: {twice[0]} comes twice: give each name once")
    for window, frame in zip(("reference", "current"), windows, strict=True):
        if gone := [name for name in names if name not in frame.columns]:
            raise tabular.DifferentColumns(f"{argument}: the {window} window has no {', '.join(gone)}")
    return names


def _summary(whose: list[str], effects: np.ndarray, p_values: np.ndarray, overlap: float) -> ConditionalTest:
    """Return the test's result. Of each figure it keeps the statistic with the smallest p-value."""
    import pandas as pd

    table = pd.DataFrame({"figure": whose, "effect": effects, "p_value": p_values})
    table = table.iloc[np.lexsort([-table["effect"].abs(), table["p_value"]])].drop_duplicates("figure")
    p_value = float(table["p_value"].min()) if len(table) else 1.0
    return ConditionalTest(p_value, table.reset_index(drop=True), overlap)


def columns(
    reference: "pd.DataFrame", current: "pd.DataFrame", names: Sequence[str] | None = None
) -> tuple[list[str], np.ndarray]:
    """Return (names, matrix): the figure that each column belongs to, and the columns, shape (N + M, K).

    Columns are scaled to standard deviation 1; constant ones are left out. Numbers become normal scores, so that
    neither the unit nor outliers matter; missing numbers get the middle score. Classes and missing values become zeros
    and ones. Raises ValueError for a column that cannot be compared, such as times, or numbers that have become texts.
    """
    matrix: list[np.ndarray] = []
    whose: list[str] = []
    both = (reference, current) if names is None else (reference[list(names)], current[list(names)])
    for feature in tabular.features(*both) if len(both[0].columns) else []:
        if feature.kind == "none" and min(feature.missing_shares) < 1:
            raise ValueError(f"{feature.name} cannot be compared: {feature.note}: convert it, or leave it out")
        gone = np.concatenate(feature.missing)
        values = np.full(len(gone), np.nan)
        values[~gone] = np.concatenate([feature.reference, feature.current]) if feature.kind != "none" else 0
        mine = [gone.astype(float)]
        if feature.kind in ("category", "boolean"):
            mine += [(values == code).astype(float) for code in range(min(CLASSES, len(feature.labels)))]
        elif feature.kind != "none":
            mine.append(np.concatenate(multivariate.scores(*np.split(values, [len(feature.missing[0])]))))
        mine = [column / column.std() for column in mine if column.std() > 1e-9]
        mine = mine[:1] if feature.kind in ("category", "boolean") and len(mine) == 2 else mine  # each tells the other
        matrix, whose = matrix + mine, whose + [feature.name] * len(mine)
    return whose, np.column_stack(matrix) if matrix else np.empty((len(reference) + len(current), 0))


class Ridge:
    """Kernel ridge regression on inputs (N, D). Its kernel is the sum of a linear one and a Gaussian one.

    The width of the Gaussian kernel is the median distance. The kernel is decomposed once and then predicts any number
    of outputs. Each output gets the ridge, of `RIDGES`, that predicts it best.
    """

    def __init__(self, x: np.ndarray) -> None:
        from scipy import linalg
        from scipy.spatial.distance import cdist

        squared = cdist(x, x, "sqeuclidean") if x.size else np.zeros((len(x), len(x)))
        near = np.exp(-squared / (np.median(squared[squared > 0]) if squared.any() else 1.0))
        middle = x - x.mean(axis=0)
        kernel = near + middle @ middle.T / max(1, x.shape[1])
        kernel = kernel - kernel.mean(axis=0)
        values, self.vectors = linalg.eigh(kernel - kernel.mean(axis=1, keepdims=True), overwrite_a=True)
        self.shrink = np.maximum(values, 0)[:, np.newaxis] / (np.maximum(values, 0)[:, np.newaxis] + RIDGES)

    def residuals(self, y: np.ndarray) -> np.ndarray:
        """Return each row of y, (N, K), minus its prediction by the other rows. Computed in closed form, as for any
        ridge.
        """
        y = y - y.mean(axis=0)
        turned = self.vectors.T @ y
        weights = (self.vectors**2) @ self.shrink + 1 / len(y)  # of each row in its own prediction, for each ridge
        left = [
            (y - self.vectors @ (shrink[:, np.newaxis] * turned)) / np.maximum(1 - own, 0.01)[:, np.newaxis]
            for shrink, own in zip(self.shrink.T, weights.T, strict=True)
        ]
        best = np.argmin([(part**2).sum(axis=0) for part in left], axis=0)
        return np.column_stack([left[ridge][:, column] for column, ridge in enumerate(best)])


def largest(products: np.ndarray, draws: int, seed: int = 0) -> np.ndarray:
    """Return p-values, (K,), for the hypothesis that the sum of each column of (N, K) is 0.

    Each sum is compared with the largest of all under random signs (Chernozhukov, Chetverikov and Kato, 2013).
    Neighbouring rows that resemble each other are counted as fewer rows.
    """
    length = np.sqrt((products**2).sum(axis=0))
    unit = products / np.where(length > 0, length, np.inf)
    alike = np.array([inefficiency(column) for column in unit.T])
    signs = np.random.default_rng(seed).integers(0, 2, (draws, len(unit)), np.int8) * 2.0 - 1
    drawn = np.sort(np.abs(signs @ unit).max(axis=1))
    beyond = draws - np.searchsorted(drawn, np.abs(unit.sum(axis=0)) / np.sqrt(alike) - 1e-12)
    p_values: np.ndarray = (1 + beyond) / (draws + 1)
    return p_values
