"""Estimate the performance of a model without labels, from calibrated confidences.

If answers with a confidence of 0.8 are right 8 times in 10, the mean confidence of a window is its expected accuracy
(Kivimäki et al., 2025, "Confidence-based Estimators for Predictive Performance in Model Monitoring"). The calibration is
learnt from labelled reference data. The estimate assumes that it also holds in the window. Every result states this.
"""

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from labsupport.arguments import number, shown
from labsupport.estimation.calibration import (
    MIN_EACH,
    MIN_REFERENCE,
    Calibration,
    NotEstimable,
    calibration_error,
    checked,
    checked_pair,
    read_inputs,
)
from labsupport.extras import imported

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "MIN_EACH",
    "MIN_REFERENCE",
    "Calibration",
    "Estimate",
    "Figure",
    "NotEstimable",
    "Realised",
    "calibration_error",
    "estimate",
    "realised",
]

Cells = TypeVar("Cells", float, np.ndarray)  # one cell of a confusion matrix, or the same cell of many
ASSUMPTION = (
    "Assumes that a confidence is worth what it was worth on the reference data. "
    "It sees data drift: more hard or more easy inputs. "
    "It cannot see concept drift, where the same inputs get other labels: the estimate stays as it is while the performance "
    "falls. On inputs of a new kind it may be wrong either way. Only labels show that."
)
MIN_WINDOW = 30  # confidences: with 30, the interval reaches more than .1 to either side of an accuracy of .9
MAX_OUTSIDE = 0.1  # share of confidences outside `middle` that causes a caution; without drift it is .02
TREES, LEAF = 100, 10  # of the forest that distinguishes the two sets of inputs; rows in a leaf
DRAWS = 2000  # simulated windows for each interval


class Figure(NamedTuple):
    """Hold an estimated metric and the interval in which the realised one is expected, as shares of 0 to 1."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


class _Printed:
    """Show a result as its summary with its assumption, in `print` and in a notebook."""

    def summary(self) -> str:
        """Return the text to print."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        return f"<pre style='white-space: pre-wrap'>{escape(self.summary())}</pre>"


@dataclass(frozen=True, repr=False)
class Estimate(_Printed):
    """Hold the metrics of a window, estimated without labels by `estimate`. `print` also shows the assumption."""

    figures: dict[str, Figure]  # "accuracy"; of a binary model also "precision", "recall" and "f1", where defined
    count: int  # confidences in the window
    outside: float  # share of them where the reference has too few examples
    confidence_level: float
    cautions: tuple[str, ...] = ()
    assumption: str = ASSUMPTION

    @property
    def accuracy(self) -> Figure:
        return self.figures["accuracy"]

    def summary(self) -> str:
        title = f"estimated from {self.count} confidences, without labels ({100 * self.confidence_level:g} % interval)"
        rows = [f"  {name:<9} {figure}" for name, figure in self.figures.items()]
        return "\n".join([title, *rows, *(f"Caution: {text}." for text in self.cautions), self.assumption])

    def __repr__(self) -> str:
        caution = f"; caution: {'; '.join(self.cautions)}" if self.cautions else ""
        return f"<Estimate accuracy {self.accuracy}{caution}; sees data drift, cannot see concept drift>"


@dataclass(frozen=True, repr=False)
class Realised(_Printed):
    """Hold the metrics of a window from its labels, and the estimate without them. Returned by `realised`."""

    figures: dict[str, float]  # as in `Estimate`
    estimate: Estimate

    @property
    def as_estimated(self) -> bool:
        """Return whether the realised accuracy is in the interval. If not, the calibration no longer holds."""
        return self.estimate.accuracy.low <= self.figures["accuracy"] <= self.estimate.accuracy.high

    @property
    def verdict(self) -> str:
        return "as estimated" if self.as_estimated else "not as estimated: concept drift, or inputs of a new kind"

    def summary(self) -> str:
        rows = [f"  {name:<9} {value:.3f}   {self.estimate.figures[name]}" for name, value in self.figures.items()]
        title = f"realised on {self.estimate.count} labels, and estimated without them: {self.verdict}"
        return "\n".join([title, *rows, self.estimate.assumption])

    def __repr__(self) -> str:
        return f"<Realised accuracy {self.figures['accuracy']:.3f}, estimated {self.estimate.accuracy}; {self.verdict}>"


def estimate(
    calibration: Calibration, confidences: np.ndarray, confidence_level: float = 0.95, inputs: Any = None
) -> Estimate:
    """Estimate the metrics of a window without labels, from its `confidences` (N,), of the kind that was calibrated.

    Each answer is right with its calibrated probability. So the cells of the confusion matrix are sums of Bernoulli
    variables with known probabilities (CBPE: Kivimäki et al., 2025, "Performance Estimation in Binary Classification Using
    Calibrated Confidence"). Precision, recall and F1 are computed from the expected cells.

    The interval is for the metric that the labels of this window will give. It covers two kinds of chance: the outcome of
    each answer, and the finite reference, which leaves each step of the calibration uncertain (Jeffreys' posterior). Both
    are drawn 2,000 times, with a fixed seed. In simulations 93 to 96 of 100 intervals at 95 % held. The interval does not
    cover a broken assumption, or answers that depend on each other. From a video, use only a frame now and then.

    After a shift of two of four inputs by one standard deviation, fewer intervals hold: with `inputs` 92 to 97 of 100, and
    without `inputs` 74 to 90 (a decision tree, a random forest and gradient boosting, 500 runs each).

    If the inputs have changed, the calibration may no longer hold. Example: a decision tree gives all inputs of a leaf one
    confidence, and the easy inputs among them may have become rarer. So give the window's `inputs` (a table of N rows), and
    the reference's inputs to the calibration. Then a reference example gets more weight if inputs like it have become more
    frequent (importance weighting: Shimodaira, 2000; for this estimate Bialek et al., 2024).

    Raises `NotEstimable` for no confidences, for confidences outside 0 to 1, for a confidence_level that is not a share, and
    for inputs that do not fit.

    >>> rng = np.random.default_rng(0)
    >>> worth = rng.uniform(0.5, 1, 4000)
    >>> calibration = Calibration.top_label(rng.random(4000) < worth, worth ** (1 / 3))
    >>> harder = rng.uniform(0.5, 0.8, 1000)  # covariate shift: the true accuracy is .65 now
    >>> estimate(calibration, harder ** (1 / 3))
    <Estimate accuracy 0.652 (0.616 to 0.686); sees data drift, cannot see concept drift>
    """
    confidences = checked(confidences)
    confidence_level = _level(calibration, confidence_level)
    unlike: tuple[str, ...] = ()
    rates, counts = calibration.rates, calibration.counts
    if inputs is not None:
        rates, counts, unlike = _weighted(calibration, read_inputs(inputs, len(confidences)))
    steps, positive = calibration.steps(confidences), calibration.positive(confidences)
    called, passed = (np.bincount(steps[which], minlength=len(rates)) for which in (positive, ~positive))
    expected = _metrics(calibration, called.sum(), passed.sum(), called @ rates, passed @ rates)
    rng, came_true = np.random.default_rng(0), rates * counts
    worth = rng.beta(came_true + 0.5, counts - came_true + 0.5, (DRAWS, len(rates)))
    hits, missed = (rng.binomial(cell, worth).sum(axis=1) for cell in (called, passed))
    drawn = _metrics(calibration, called.sum(), passed.sum(), hits, missed)
    figures = {name: _figure(value, drawn[name], confidence_level) for name, value in expected.items() if name in drawn}
    outside, cautions = _cautions(calibration, confidences)
    return Estimate(figures, len(confidences), outside, confidence_level, (*cautions, *unlike))


def _level(calibration: Calibration, confidence_level: float) -> float:
    if not isinstance(calibration, Calibration):
        raise NotEstimable(f"calibration={shown(calibration)}: give a Calibration")
    try:
        return number("confidence_level", confidence_level, 0, 1, ends=False)
    except ValueError as error:
        raise NotEstimable(f"{error}: give a share, as in 0.95") from None


def _weighted(calibration: Calibration, inputs: "pd.DataFrame") -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return the rates and counts of the steps weighted for these inputs, and cautions."""
    if calibration.labelled is None:
        raise NotEstimable("inputs: the calibration has none to compare them with: give it those of the reference, too")
    try:
        weights = density_ratio(calibration.labelled.inputs, inputs)
    except ValueError as error:
        raise NotEstimable(f"inputs: {error}") from None
    rates, counts = calibration.weighted(weights)
    effective = float(weights.sum() ** 2 / (weights**2).sum())
    if effective >= MIN_REFERENCE / 2:
        return rates, counts, ()
    text = f"inputs like the window's are rare in the reference: its {len(weights)} examples count as {effective:.0f}"
    return rates, counts, (f"{text}, so label some of the window",)


def density_ratio(reference: "pd.DataFrame", window: "pd.DataFrame") -> np.ndarray:
    """Return, for each row of the reference, how much more frequent such inputs are in the window, (N,).

    A random forest learns to distinguish the two. Its out-of-bag odds for a row are the ratio, up to a constant factor that
    does not matter (Bickel, Brückner and Scheffer, 2009). Raises ValueError as `tabular.features` and `drift.columns` do.
    """
    RandomForestClassifier = imported("sklearn.ensemble").RandomForestClassifier

    from labsupport.drift import columns
    from labsupport.tabular import to_frame

    both = to_frame(reference), to_frame(window)
    _, x = columns(*both)
    if not x.shape[1]:
        return np.ones(len(reference))
    whose = np.repeat([0, 1], list(map(len, both)))
    forest = RandomForestClassifier(TREES, min_samples_leaf=LEAF, oob_score=True, random_state=0).fit(x, whose)
    share = np.clip(forest.oob_decision_function_[: len(reference), 1], 1 / TREES, 1 - 1 / TREES)
    odds: np.ndarray = share / (1 - share)
    return odds


def realised(
    calibration: Calibration,
    labels: np.ndarray,
    confidences: np.ndarray,
    confidence_level: float = 0.95,
    inputs: Any = None,
) -> Realised:
    """Compute the metrics of a window from labels that came later, and compare them with the estimate without labels.

    `labels` (N,), bool, have the same meaning as for the calibration: the answer was right, or the example is positive. Give
    all labels of a window or a random part. Labels from users' complaints are not representative. Without drift, one window
    in twenty is not as estimated, at a 95 % interval. `confidence_level` and `inputs` are as in `estimate`. Raises the
    errors of `estimate`, also for labels that do not fit.

    >>> rng = np.random.default_rng(0)
    >>> worth = rng.uniform(0.5, 1, 4000)
    >>> calibration = Calibration.top_label(rng.random(4000) < worth, worth)
    >>> realised(calibration, rng.random(4000) > worth, worth)  # concept drift: what was right is wrong
    <Realised accuracy 0.263, estimated 0.749 (0.729 to 0.765); not as estimated: concept drift, or inputs of a new kind>
    """
    confidences, labels = checked_pair(confidences, labels)
    expected = estimate(calibration, confidences, confidence_level, inputs)
    positive = calibration.positive(confidences)
    cells = positive.sum(), (~positive).sum(), (labels & positive).sum(), (labels & ~positive).sum()
    figures = {name: float(value) for name, value in _metrics(calibration, *cells).items() if name in expected.figures}
    return Realised(figures, expected)


def _metrics(calibration: Calibration, called: Cells, passed: Cells, hits: Cells, missed: Cells) -> dict[str, Cells]:
    """Return the metrics of cells, or of arrays of cells: called positive, called negative, positives in each."""
    metrics = {"accuracy": (hits + passed - missed) / (called + passed)}
    if calibration.threshold is not None:
        with np.errstate(invalid="ignore"):
            metrics["precision"] = np.divide(hits, called)
            metrics["recall"] = np.divide(hits, hits + missed)
            metrics["f1"] = np.divide(2 * hits, called + hits + missed)
    return {name: value for name, value in metrics.items() if not np.isnan(value).all()}


def _figure(value: float, drawn: np.ndarray, confidence_level: float) -> Figure:
    tails = (1 - confidence_level) / 2
    # metrics are fractions of counts, so the interval ends at possible values
    low, high = np.quantile(drawn[~np.isnan(drawn)], [tails, 1 - tails], method="inverted_cdf")
    return Figure(float(value), float(min(low, value)), float(max(high, value)))


def _cautions(calibration: Calibration, confidences: np.ndarray) -> tuple[float, tuple[str, ...]]:
    """Return the share of a window where the reference has few examples, and cautions."""
    low, high = calibration.middle
    outside, cautions = float(np.mean((confidences < low) | (confidences > high))), []
    if len(confidences) < MIN_WINDOW:
        cautions.append(
            f"{len(confidences)} confidences, of at least {MIN_WINDOW}: the interval is too wide to say much"
        )
    if outside > MAX_OUTSIDE:
        cautions.append(
            f"{100 * outside:.0f} % of the confidences are below {low:.3g} or above {high:.3g}, where the reference has few "
            "(2 % are usual): what they are worth is a guess, so label some of them"
        )
    return outside, tuple(cautions)
