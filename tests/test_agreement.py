"""Agreement against cases worked out by hand, and against the best of all matchings."""

import itertools

import numpy as np
import pytest

from conftest import iou as drawn_iou
from labsupport.detection import Box, Detection
from labsupport.detection.agreement import Agreement, compare, iou

RANDOM = np.random.default_rng(0)


def thing(label: str, left: int, top: int = 0, size: int = 10) -> Detection:
    return Detection(label, 0.9, Box(left, top, left + size, top + size))


def test_iou_is_the_share_of_pixels_in_both():
    for _ in range(200):
        corners = RANDOM.integers(0, 20, (2, 4))
        a, b = (Box(*np.minimum(c[:2], c[2:]).tolist(), *np.maximum(c[:2], c[2:]).tolist()) for c in corners)
        canvas = np.zeros((2, 20, 20), bool)
        for layer, box in zip(canvas, (a, b), strict=True):
            layer[box.top : box.bottom, box.left : box.right] = True
        either = (canvas[0] | canvas[1]).sum()
        assert iou(a, b) == pytest.approx((canvas[0] & canvas[1]).sum() / either if either else 0.0)


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ([], [], Agreement(0, 0, 0, 0)),
        ([thing("cat", 0)], [], Agreement(0, 0, 0, 1)),
        ([], [thing("cat", 0)], Agreement(0, 0, 1, 0)),
        ([thing("cat", 0)], [thing("cat", 2)], Agreement(1, 0, 0, 0)),  # IoU 2/3
        ([thing("cat", 0)], [thing("cat", 4)], Agreement(0, 0, 1, 1)),  # IoU 3/7
        ([thing("dog", 0)], [thing("cat", 2)], Agreement(0, 1, 0, 0)),
        ([thing("cat", 0), thing("cat", 1)], [thing("cat", 0)], Agreement(1, 0, 0, 1)),  # each at most once
        # the name decides before the overlap does
        ([thing("dog", 0), thing("cat", 2)], [thing("cat", 0)], Agreement(1, 0, 0, 1)),
        ([thing("dog", 0), thing("cat", 0)], [thing("cat", 0), thing("dog", 0)], Agreement(2, 0, 0, 0)),
    ],
)
def test_cases_worked_out_by_hand(answer, reference, expected):
    assert compare(answer, reference) == expected


def test_every_object_is_counted_once_and_no_matching_finds_many_more():
    """Against all matchings tried out: the greedy one may lose a pair where boxes crowd, seldom."""
    lost = total = 0
    for _ in range(200):
        answer, reference = ([thing("x", *RANDOM.integers(0, 12, 2).tolist()) for _ in range(4)] for _ in range(2))
        got = compare(answer, reference, 0.3)
        assert got.matched + got.relabelled + got.missed == got.matched + got.relabelled + got.extra == 4
        fits = [[drawn_iou(a.box, b.box) > 0.3 for b in reference] for a in answer]
        best = max(sum(fits[i][j] for i, j in enumerate(order)) for order in itertools.permutations(range(4)))
        assert got.matched <= best
        lost, total = lost + best - got.matched, total + best
    assert lost < 0.1 * total


def test_two_answers_swapped_swap_what_is_missed_and_extra():
    answer, reference = [thing("cat", 0), thing("dog", 50)], [thing("cat", 1)]
    assert compare(answer, reference) == Agreement(1, 0, 0, 1)
    assert compare(reference, answer) == Agreement(1, 0, 1, 0)


def test_where_nobody_saw_anything_both_agree():
    assert Agreement(0, 0, 0, 0).share == 1
    assert Agreement(1, 1, 1, 1).share == 0.25
