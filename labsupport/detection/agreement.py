"""Compare two answers about the same picture, object by object.

Use it to compare two runtimes, or a candidate with the stable version. It counts the objects that both answers contain,
those with another label, and those that only one answer contains.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from labsupport import arguments
from labsupport.detection.objects import Box, Detection
from labsupport.extras import imported

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Agreement:
    """Hold the comparison of two answers about one picture, as numbers of objects."""

    matched: int  # in both, under the same label
    relabelled: int  # in both, under different labels
    missed: int  # in the reference only
    extra: int  # in the other answer only

    @property
    def share(self) -> float:
        """Return the share of matched objects among all objects, 0 to 1. Return 1 if there are none.

        >>> Agreement(matched=3, relabelled=0, missed=1, extra=0).share
        0.75
        """
        seen = self.matched + self.relabelled + self.missed + self.extra
        return self.matched / seen if seen else 1.0


def iou(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes: 0 if they are apart, 1 if they are equal.

    >>> iou(Box(0, 0, 10, 10), Box(5, 0, 15, 10))
    0.3333333333333333
    """
    width = min(a.right, b.right) - max(a.left, b.left)
    height = min(a.bottom, b.bottom) - max(a.top, b.top)
    shared = max(0, width) * max(0, height)
    union = _area(a) + _area(b) - shared
    return shared / union if union else 0.0


def compare(answer: list[Detection], reference: list[Detection], overlap: float = 0.5) -> Agreement:
    """Match the objects of two answers, each at most once, whose boxes overlap more than `overlap` (IoU).

    Objects with the same label are paired first, in the order of overlap, as in COCO's matching (Lin et al., 2014). Other
    pairs that overlap are objects under different labels.

    >>> dog = Detection("dog", 0.9, Box(0, 0, 10, 10))
    >>> compare([dog], [dog, Detection("cat", 0.6, Box(50, 50, 60, 60))])
    Agreement(matched=1, relabelled=0, missed=1, extra=0)
    """
    arguments.number("overlap", overlap, 0, 1)
    overlaps = [
        (iou(a.box, b.box), i, j, a.label == b.label) for i, a in enumerate(answer) for j, b in enumerate(reference)
    ]
    pairs = sorted((pair for pair in overlaps if pair[0] > overlap), key=lambda pair: (not pair[3], -pair[0]))
    counts, taken, found = {True: 0, False: 0}, set(), set()
    for _, i, j, same in pairs:
        if i not in taken and j not in found:
            taken.add(i)
            found.add(j)
            counts[same] += 1
    return Agreement(counts[True], counts[False], len(reference) - len(found), len(answer) - len(taken))


def paired(answers: "pd.DataFrame", others: "pd.DataFrame") -> "pd.DataFrame":
    """Pair each answer with a shadow candidate's answer to the same picture, as `PredictionLog.pairs` describes.

    Both are frames of `PredictionLog.frame`: of the answers, and of the candidates' answers.
    """
    pd = imported("pandas")

    seen = ["version", "latency", "detections", "error"]
    others = others[["id", *seen]].rename(columns={"version": "candidate"})
    others = others.rename(columns={name: f"candidate_{name}" for name in seen})
    answers = answers[["time", "id", "key", "version", "latency", "detections"]]
    pairs = answers.merge(others, on="id", validate="one_to_many")
    both = pairs["detections"].notna() & pairs["candidate_detections"].notna()
    counts = [
        {**vars(verdict), "agreement": verdict.share}
        for verdict in map(compare, pairs["candidate_detections"][both], pairs["detections"][both])
    ]
    names = ["matched", "relabelled", "missed", "extra", "agreement"]
    return pairs.join(pd.DataFrame(counts, index=pairs.index[both], columns=names, dtype="float64"))


def _area(box: Box) -> int:
    return (box.right - box.left) * (box.bottom - box.top)
