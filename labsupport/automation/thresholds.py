"""Choose thresholds above which the model decides alone, with a guaranteed maximum error."""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, overload

import numpy as np

from labsupport.arguments import number
from labsupport.extras import imported
from labsupport.tabular import NARROW, as_float, bool_column, codes_of, float_column, is_missing, shape_of, table

MOST_DECISIONS = 10**12  # with more, floats cannot distinguish the shares


class NoSafeThreshold(ValueError):
    """No threshold guarantees the requested error on these examples. The message says what would be needed."""


@dataclass(frozen=True)
class Thresholds:
    """Hold two thresholds: the model is sure of "good" below `low`, and sure of "defect" from `high` on.

    Confidences are 0 to 1, so `Thresholds()` with low=0 and high=infinity automates nothing. Between the thresholds, the
    model's opinion is that of the nearer one. Raises ValueError unless both are numbers and 0 <= low <= high.

    >>> thresholds = Thresholds(low=0.1, high=0.8)
    >>> thresholds.sure(np.array([0.05, 0.1, 0.5, 0.8])).tolist()
    [True, False, False, True]
    >>> thresholds.defect(0.5), thresholds.defect(0.4)
    (True, False)
    """

    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        low, high = (float_column(name, [getattr(self, name)])[0] for name in ("low", "high"))
        if not 0 <= low <= high:
            raise ValueError(f"low={self.low} and high={self.high}: give 0 <= low <= high")
        object.__setattr__(self, "low", float(low))
        object.__setattr__(self, "high", float(high))

    @overload
    def sure(self, confidence: float) -> bool: ...

    @overload
    def sure(self, confidence: np.ndarray) -> np.ndarray: ...

    def sure(self, confidence: float | np.ndarray) -> bool | np.ndarray:
        """Return whether the model is sure, for a float or an array."""
        confidence = _in_full(confidence)
        sure: bool | np.ndarray = (confidence < self.low) | (confidence >= self.high)
        return sure

    @overload
    def defect(self, confidence: float) -> bool: ...

    @overload
    def defect(self, confidence: np.ndarray) -> np.ndarray: ...

    def defect(self, confidence: float | np.ndarray) -> bool | np.ndarray:
        """Return whether the model's opinion is "defect", sure or not, for a float or an array."""
        defect: bool | np.ndarray = _in_full(confidence) >= (self.low + min(self.high, 1)) / 2
        return defect


def _in_full(confidence: Any) -> Any:
    """Return as float64, because NumPy would round a threshold to float32 in a comparison with a float32."""
    return confidence.astype(float) if getattr(confidence, "ndim", 0) else as_float(confidence)


NEVER_SURE = Thresholds()


def error_bound(errors: int, decisions: int, confidence_level: float = 0.95) -> float:
    """Return an upper bound on the error rate, from the errors in a number of decisions (Clopper & Pearson, 1934).

    It is exact for independent decisions: for any true rate, at most 1 - confidence_level of samples give a bound below it.
    Raises ValueError unless 0 <= errors <= decisions and the level is between 0 and 1.

    >>> [round(error_bound(errors, 299), 5) for errors in (0, 1)]
    [0.00997, 0.01577]
    """
    decisions = number("decisions", decisions, 0, MOST_DECISIONS, whole=True)
    errors = number("errors", errors, 0, decisions, whole=True)
    return _bound(errors, decisions, number("confidence_level", confidence_level, 0, 1, ends=False))


def _bound(errors: int, decisions: int, confidence_level: float) -> float:
    special = imported("scipy.special")

    return float(special.betaincinv(errors + 1, decisions - errors, confidence_level)) if errors < decisions else 1.0


def choose_thresholds(
    labels: np.ndarray,
    confidences: np.ndarray,
    max_error: float = 0.01,
    confidence_level: float = 0.95,
    groups: np.ndarray | None = None,
    seed: int = 0,
) -> Thresholds:
    """Choose thresholds with a guarantee: of the model's own decisions, at most a share `max_error` is wrong.

    Of all possible samples, at most a share 1 - confidence_level leads to thresholds with a larger true error.
    `labels` (N,) are True for a defect, `confidences` (N,) the model's, 0 to 1; they need not be calibrated. The guarantee
    applies to pictures like these. So take a random sample, labelled by people who did not see the model's opinion (shadow
    mode or an audit). Do not take the pictures that partial automation left to a person. The guarantee counts all errors.
    If 2 % are defects, calling everything good has an error of 2 %. So choose `max_error` well below the share of defects.

    The pictures must be independent of each other. Pictures of one product, one video or one user are right or wrong
    together. With three similar pictures of each, the guarantee was broken three times as often. Give their group labels
    as `groups` (N,). Then one picture of each group counts, drawn with `seed`, and the error is that of such a picture.

    Trying many thresholds and keeping the best would break the guarantee. So thresholds are tested as in Learn then Test
    (Angelopoulos et al., 2021), by `error_bound`, from the most conservative outwards. Quantiles of the confidences set
    three sequences of tests, without using labels. One goes from the surest pictures to those at 0.5, with half of
    1 - confidence_level. One is for "good" alone and one for "defect" alone, with a quarter each. Of the thresholds that
    pass, the result is the pair with the most decisions.

    Raises `NoSafeThreshold` if nothing passes. Raises ValueError for lengths that differ, labels that are not bool,
    confidences outside 0 to 1, labels of one kind only, shares outside 0 to 1, and missing groups.

    >>> rng = np.random.default_rng(0)
    >>> confidences = rng.beta(0.2, 0.4, size=2000)
    >>> labels = rng.random(2000) < confidences
    >>> thresholds = choose_thresholds(labels, confidences, max_error=0.02)
    >>> round(thresholds.low, 3), round(thresholds.high, 3)
    (0.061, 0.939)
    """
    labels, confidences = checked(labels, confidences)
    max_error = number("max_error", max_error, 0, 1, ends=False)
    confidence_level = number("confidence_level", confidence_level, 0, 1, ends=False)
    if groups is not None:
        chosen = one_of_each(groups, len(labels), number("seed", seed, 0, whole=True))
        labels, confidences = _of_both_kinds(labels[chosen]), confidences[chosen]
    order, level, held = np.argsort(confidences), 1 - confidence_level, confidences.dtype.type
    labels, confidences = labels[order], confidences[order].astype(float)
    test = partial(_passed, labels, confidences, max_error)
    both = test(level / 2, np.abs(confidences - 0.5), lambda cut: Thresholds(0.5 - cut, _above(0.5 + cut)))
    low = test(level / 4, -confidences, lambda cut: Thresholds(low=-cut))
    high = test(level / 4, confidences, lambda cut: Thresholds(high=_above(cut)))
    highs = [thresholds.high for thresholds in reversed([NEVER_SURE, *high])]
    one_sided = [Thresholds(good, highs[bisect_left(highs, good)]) for good in (t.low for t in [NEVER_SURE, *low])]
    candidates = [*one_sided, *both[-1:]]
    decided, _ = _count(labels, confidences, candidates)
    if not decided.any():
        raise NoSafeThreshold(
            f"no threshold promises an error of at most {max_error:.3g} with confidence {confidence_level:.3g} on these "
            f"{len(labels)} examples. It takes at least {_error_free(max_error, level / 2)} sure decisions without an "
            "error, or more with some: collect more examples, allow more errors, or let people decide (NEVER_SURE)"
        )
    best = candidates[int(decided.argmax())]
    return Thresholds(_between(best.low, held), _between(best.high, held)) if held in NARROW else best


def _passed(
    labels: np.ndarray,
    confidences: np.ndarray,
    max_error: float,
    level: float,
    sureness: np.ndarray,
    pair: Callable[[float], Thresholds],
) -> list[Thresholds]:
    """Return the thresholds of one sequence that keep `max_error`. With probability 1 - `level` all of them do.

    Examples come in the order of confidence. `pair(cut)` returns the thresholds that are sure of examples surer than `cut`.
    A run of tests ends with the first that fails. So that one early error does not end all tests, there are several runs,
    each starting at twice the size of the one before. They share the level. A run that reaches the start of the next one
    adds its share to it (fallback: Wiens, 2003).
    """
    sizes, starts = _plan(len(labels), max_error, level)
    pairs = [pair(cut) for cut in np.sort(sureness)[::-1][sizes].tolist()]
    passed, spend = [], 0.0
    for thresholds, decided, errors in zip(pairs, *_count(labels, confidences, pairs), strict=True):
        while starts and decided >= starts[0][0]:
            spend += starts.pop(0)[1]
        if spend and _bound(errors, decided, 1 - spend) <= max_error:
            passed.append(thresholds)
        else:
            spend = 0.0
    return passed


def _plan(examples: int, max_error: float, level: float) -> tuple[np.ndarray, list[tuple[int, float]]]:
    """Return the number of surest examples in each test, and the sizes at which runs start, with their share of the level.

    Each size allows one more error than the one before. A test in between would only be one more chance to fail.
    """
    special = imported("scipy.special")

    runs = max(1, int(math.log2(examples / _error_free(max_error, level))))
    first = _error_free(max_error, level / runs)
    allowed = np.arange(1, examples * max_error)
    poisson = special.pdtri(allowed, level / runs) / max_error  # slightly above the binomial value, and fast
    sizes = np.unique([first, *np.ceil(poisson).astype(int), examples - 1])
    return sizes[sizes < examples], [(first * 2**run, level / runs) for run in range(runs)]


def _error_free(max_error: float, level: float) -> int:
    """Return how many decisions without an error pass the test at this level: 299 for 1 % at 5 %."""
    return math.ceil(min(math.log(level) / math.log1p(-max_error), MOST_DECISIONS))


def _count(labels: np.ndarray, confidences: np.ndarray, pairs: list[Thresholds]) -> tuple[np.ndarray, np.ndarray]:
    """Return the decisions and errors of each pair of thresholds. Examples come in the order of confidence."""
    defects = np.concatenate([[0], np.cumsum(labels)])  # entry i: among the first i examples
    good = np.searchsorted(confidences, [thresholds.low for thresholds in pairs])
    rest = np.searchsorted(confidences, [thresholds.high for thresholds in pairs])
    defect = len(labels) - rest
    return good + defect, defects[good] + defect - (defects[-1] - defects[rest])


def _above(confidence: float) -> float:
    """Return the next float above `confidence`."""
    return math.nextafter(confidence, math.inf)


def _between(threshold: float, held: type) -> float:
    """Return the middle between the numbers of type `held` around a threshold, which is safe in any other type."""
    if not 0 < threshold < math.inf:
        return threshold
    above = held(threshold)
    above = above if above >= threshold else np.nextafter(above, held(math.inf))
    return (float(above) + float(np.nextafter(above, held(-math.inf)))) / 2


def one_of_each(groups: np.ndarray, rows: int, seed: int) -> np.ndarray:
    """Return the index of one random row of each group, in ascending order. Raises ValueError for missing labels.

    >>> one_of_each(["a", "b", "a", "a"], 4, seed=0).tolist()
    [1, 2]
    """
    frame = table(groups, "groups")
    if frame.shape != (rows, 1):
        raise ValueError(f"groups of shape {frame.shape} for {rows} examples: give one label for each")
    if gone := int(frame.iloc[:, 0].map(is_missing).sum()):
        raise ValueError(f"groups: {gone} of {rows} labels are missing: name a group for each example")
    codes = codes_of(frame.iloc[:, 0])
    order = np.random.default_rng(seed).permutation(rows)
    return np.sort(order[np.unique(codes[order], return_index=True)[1]])


def checked(labels: np.ndarray, confidences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and confidences as arrays of bool and of float. Raises ValueError."""
    shapes = shape_of(labels), shape_of(confidences)
    if len(shapes[0]) != 1 or shapes[0] != shapes[1]:
        raise ValueError(f"labels {shapes[0]} and confidences {shapes[1]}: give two arrays of one length")
    try:
        labels = bool_column("labels", labels)
    except ValueError as error:
        raise ValueError(
            f'labels are not bool: give True for a defect, as in frame["label"] == "defect" ({error})'
        ) from None
    confidences = float_column("confidences", confidences)
    if not ((confidences >= 0) & (confidences <= 1)).all():
        raise ValueError("confidences are not all between 0 and 1 (NaN is not either): leave those examples out")
    return _of_both_kinds(labels), confidences


def _of_both_kinds(labels: np.ndarray) -> np.ndarray:
    if labels.all() or not labels.any():
        raise ValueError(f"of {len(labels)} labels {labels.sum()} are defects: give examples of both kinds")
    return labels
