"""The check cells of lifecycle.ipynb: a right answer passes, and each wrong one gets its words."""

import numpy as np
import pandas as pd
import pytest

from labsupport import exercises
from labsupport.exercises.upkeep import lifecycle_checks
from labsupport.scenarios import labelling

LENGTHS = np.array(labelling.ON_THE_SHEET, float)
ONE, OTHER = np.array([True, True, False, False, True]), np.array([True, False, False, True, True])
TABLE = pd.DataFrame(
    {"share": [0.6, 0.1, 0.3], "model": [0.0, 0.9, 0.5], "gap": [0.0, 0.1, 0.4]}, index=["easy", "hard", "some"]
)


@pytest.mark.parametrize(
    "check, answers, verdict",
    [
        (lifecycle_checks.chance_agreement, [0.82], "Right."),
        (lifecycle_checks.chance_agreement, [np.float64(0.82)], "Right."),
        (lifecycle_checks.chance_agreement, [0.9], "one of them says good"),
        (lifecycle_checks.chance_agreement, [0.81], "both say good"),
        (lifecycle_checks.chance_agreement, [0.01], "both say defect"),
        (lifecycle_checks.chance_agreement, [0.18], "they differ"),
        (lifecycle_checks.chance_agreement, [0.5], "0.5 is not it"),
        (lifecycle_checks.chance_agreement, [82], "a share between"),
        (lifecycle_checks.chance_agreement, [True], "a share between"),
        (lifecycle_checks.shortest_defect, [20], "Right."),
        (lifecycle_checks.shortest_defect, [20.0], "Right."),
        (lifecycle_checks.shortest_defect, [16], "16 is too short"),
        (lifecycle_checks.shortest_defect, [24], "24 is too long"),
        (lifecycle_checks.shortest_defect, [28], "half of the customers"),
        (lifecycle_checks.shortest_defect, ["20"], "give a number"),
        (lifecycle_checks.twelve_by_rule, ["dgdg dgdg dgdd", LENGTHS], "Right."),
        (lifecycle_checks.twelve_by_rule, ["DGDGDGDDDDDD", LENGTHS], "Right."),  # two mistakes
        (lifecycle_checks.twelve_by_rule, ["ddddddddddgg", LENGTHS], "7 of your labels differ"),
        (lifecycle_checks.twelve_by_rule, ["g" * 12, LENGTHS], "you reject no phone"),
        (lifecycle_checks.twelve_by_rule, ["d" * 12, LENGTHS], "phone 2 is good"),
        (lifecycle_checks.twelve_by_rule, ["gggg gggg gggd", LENGTHS], "phone 1 is a defect"),
        (lifecycle_checks.twelve_by_rule, ["dgd", LENGTHS], "there are 3 labels"),
        (lifecycle_checks.twelve_by_rule, ["defect", LENGTHS], "'c' is no label"),
        (lifecycle_checks.twelve_by_rule, [["d", "g"], LENGTHS], "give a text"),
        (lifecycle_checks.labels_to_compare, [2, ONE, OTHER], "Right."),
        (lifecycle_checks.labels_to_compare, [np.int64(2), ONE, OTHER], "Right."),
        (lifecycle_checks.labels_to_compare, [5, ONE, OTHER], "both models say the same"),
        (lifecycle_checks.labels_to_compare, [3, ONE, OTHER], "they agree"),
        (lifecycle_checks.labels_to_compare, [1, ONE, OTHER], "1 is not it"),
        (lifecycle_checks.labels_to_compare, [2.0, ONE, OTHER], "a whole number"),
        (lifecycle_checks.next_slice, ["some", TABLE], "Right."),
        (lifecycle_checks.next_slice, ["hard", TABLE], "wrong most often"),
        (lifecycle_checks.next_slice, ["easy", TABLE], "the largest slice"),
        (lifecycle_checks.next_slice, ["other", TABLE], "easy, hard, some"),
        (lifecycle_checks.next_slice, [2, TABLE], "the name of a slice"),
    ],
)
def test_an_answer(check, answers, verdict, capsys):
    check.check(*answers)
    assert verdict in capsys.readouterr().out


def test_a_slice_that_is_neither_the_worst_nor_the_largest_hears_what_it_can_win(capsys):
    lifecycle_checks.next_slice.check("fair", pd.concat([TABLE, TABLE.loc[["some"]].rename({"some": "fair"}) / 2]))
    assert "fair can win 3.0 points" in capsys.readouterr().out


def places(chances, labels):
    return min([*chances, 1.1], key=lambda place: np.sum((chances >= place) != labels))


@pytest.mark.parametrize(
    "threshold, verdict",
    [
        (places, "Right."),
        (lambda chances, labels: np.float32(places(chances, labels)) - np.float32(1e-6), "Right."),
        (lambda chances, labels: 0.5, "returns 0.5 whatever"),
        (lambda chances, labels: 1 - places(chances, labels), "are possible"),
        (
            lambda chances, labels: min(np.sum((chances >= one) != labels) for one in chances),
            "not the number of errors",
        ),
        (lambda chances, labels: None, "a value of type NoneType"),
        (lambda chances: 0.5, "it raised TypeError"),
    ],
)
def test_best_threshold(threshold, verdict, capsys):
    exercises.best_threshold.check(threshold)
    assert verdict in capsys.readouterr().out


def test_the_open_exercise_prints_a_model_answer_and_no_verdict(capsys):
    exercises.project_page.check(...)
    exercises.project_page.check("mine")
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("Not tried yet") and rest[0].startswith("One good answer") and "Right." not in "".join(rest)


def test_the_right_options_stand_in_different_places():
    asked = (exercises.kappa_question, exercises.relabel_question, exercises.fading_light_question)
    assert len({question.right for question in asked}) == 3
