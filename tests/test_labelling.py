"""People who label phones, and customers who return them: each is as right, as wrong and as biased as is said."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage, stats
from sklearn.metrics import cohen_kappa_score

from labsupport.log import PredictionLog
from labsupport.rollout import Router
from labsupport.scenarios import Inspector, Line, inspection, labelling
from labsupport.scenarios.labelling import CAREFUL, HURRIED, RULE, Labeller, PhoneModel


@pytest.fixture(scope="module")
def pool():
    return labelling.pool(120, seed=5)


def chance(person, lengths):
    """The chance that a person calls each phone a defect, by the normal distribution."""
    looks = stats.norm.sf(person.limit, loc=lengths, scale=person.jitter) * (lengths > 0)
    return looks * (1 - person.slips) + (1 - looks) * person.slips


def many(count=40_000):
    """Lengths of scratches as they come: four in ten phones have none."""
    random = np.random.default_rng(0)
    return np.exp(random.uniform(np.log(12), np.log(45), count)) * (random.random(count) < labelling.SCRATCHED)


# people


@pytest.mark.parametrize("person", [*HURRIED, CAREFUL, Labeller("wild", 18, jitter=6, slips=0.2)])
@pytest.mark.parametrize("length", [0.0, 19.0, 21.0, 25.0, 33.0, 45.0])
def test_a_person_calls_a_phone_a_defect_as_often_as_the_normal_distribution_says(person, length):
    count = 20_000
    said = person.label(np.full(count, length), np.random.default_rng(1)).mean()
    expected = float(chance(person, np.array([length]))[0])
    assert abs(said - expected) < 4 * np.sqrt(expected * (1 - expected) / count) + 1e-9


@pytest.mark.parametrize("one, other", [HURRIED, (CAREFUL, CAREFUL), (Labeller("strict", 15), Labeller("mild", 27))])
def test_two_people_agree_as_much_as_their_chances_say(one, other):
    """Given its length, two people judge a phone independently. So the four shares follow, and kappa from these."""
    lengths, random = many(), np.random.default_rng(2)
    p, q = chance(one, lengths), chance(other, lengths)
    share, by_chance = np.mean(p * q + (1 - p) * (1 - q)), p.mean() * q.mean() + (1 - p.mean()) * (1 - q.mean())
    said = one.label(lengths, random), other.label(lengths, random)
    assert np.mean(said[0] == said[1]) == pytest.approx(share, abs=0.01)
    assert cohen_kappa_score(*said) == pytest.approx((share - by_chance) / (1 - by_chance), abs=0.02)


def test_hurried_people_err_to_one_side_and_careful_ones_to_both():
    lengths, random = many(), np.random.default_rng(3)
    truth = lengths >= RULE
    hurried, careful = labelling.labels(lengths, HURRIED, random), CAREFUL.label(lengths, random)
    missed, refused = np.sum(truth & ~hurried), np.sum(~truth & hurried)
    assert missed > 8 * refused
    assert 0.5 < np.sum(truth & ~careful) / np.sum(~truth & careful) < 2
    assert np.mean(careful != truth) < 0.06 < 0.12 < np.mean(hurried != truth)


def test_each_phone_is_labelled_by_one_of_the_people():
    always, never = Labeller("always", 1, 0, 0), Labeller("never", 99, 0, 0)
    lengths = np.full(10_000, 40.0)
    assert labelling.labels(lengths, [always], np.random.default_rng(0)).all()
    both = labelling.labels(lengths, [always, never], np.random.default_rng(0))
    assert abs(both.mean() - 0.5) < 4 * 0.5 / 100
    again = labelling.labels(lengths, [always, never], np.random.default_rng(0))
    assert (both == again).all()
    with pytest.raises(ValueError, match=r"people=\[\]"):
        labelling.labels(lengths, [], np.random.default_rng(0))


@pytest.mark.parametrize("wrong", [{"limit": -1}, {"jitter": -0.1}, {"slips": 1.5}, {"slips": "few"}])
def test_impossible_people_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Labeller("A", **wrong)


# customers


def test_at_the_rule_a_return_costs_on_average_what_rejecting_costs():
    random = np.random.default_rng(4)
    for length, share in ((RULE, 0.1), (labelling.WORTH, 0.5), (0.0, 0.0), (60.0, 1.0)):
        assert labelling.returned(np.full(40_000, length), random).mean() == pytest.approx(share, abs=0.008)


# phones and the model


def test_a_pool_knows_of_each_phone_what_the_drawing_knows(pool):
    assert (pool.truth == pool.phones.truth).all() and 0.2 < pool.truth.mean() < 0.4
    assert pool.lengths.tolist() == [max(one, default=0) for one in pool.phones.lengths]
    network = Inspector.load("stable")
    for number in (0, 7, 119):
        assert (pool.heat[number] == network.heat_map(pool.phones.images[number])).all()
    assert (pool.cells[3] == pool.heat[3].ravel()).all()
    dim = labelling.pool(3, seed=5, lighting=0.5)
    assert (dim.lengths == pool.lengths[:3]).all() and dim.phones.images.mean() < 0.6 * pool.phones.images[:3].mean()
    assert labelling.pool(0).inputs.shape == (0, 3)


def test_the_inputs_are_those_that_scipy_finds(pool):
    for heat, found in zip(pool.heat, pool.inputs, strict=True):
        regions, count = ndimage.label(heat > labelling.WARM, np.ones((3, 3)))
        sides = [
            (rows.stop - rows.start - 1, columns.stop - columns.start - 1)
            for rows, columns in ndimage.find_objects(regions)
        ]
        longest = max((8 + 8 * (down**2 + across**2) ** 0.5 for down, across in sides), default=0)
        assert len(sides) == count
        assert found == pytest.approx([heat.max(), np.log(1 + heat.sum(dtype=float)), longest], abs=1e-4)


def test_a_model_answers_with_what_its_last_step_says_and_where_the_network_is_surest(pool):
    step = SimpleNamespace(predict_proba=lambda inputs: np.column_stack([1 - inputs[:, 0], inputs[:, 0]]))
    model = PhoneModel("highest", step)
    for heat, picture in zip(pool.heat[:20], pool.phones.images[:20], strict=True):
        chance = float(heat.max())
        assert model.detect(picture, confidence=chance) == []
        (found,) = model.detect(picture, confidence=chance - 1e-6)
        assert found.confidence == pytest.approx(chance)
        left, top, right, bottom = found.box
        assert (right - left, bottom - top) == (8, 8) and heat[top // 8, left // 8] == heat.max()


def test_the_person_beside_a_line_may_be_wrong(pool, tmp_path):
    never = SimpleNamespace(predict_proba=lambda inputs: np.array([[1.0, 0.0]]))
    line = Line(Router(PhoneModel("never", never), log=PredictionLog(f"sqlite:///{tmp_path}/line.db")))
    phones = inspection(6, seed=1)
    wrong = ~phones.truth
    line.inspect(phones, wrong)
    rows = line.log.frame()
    assert rows["correct"].fillna(False).astype(bool).tolist() == (~wrong).tolist()
    assert [list(labels) if labels is not None else None for labels in rows["labels"]] == [
        ["scratch"] if one else None for one in wrong
    ]
    line.log.close()


# the contact sheet


def test_twelve_phones_are_shown_once_each_with_scratches_of_all_lengths():
    phones = SimpleNamespace(lengths=np.concatenate([many(3_000), [0.0, 0.0]]))
    shown = labelling.twelve(phones)
    assert len({*shown.tolist()}) == 12
    assert np.abs(phones.lengths[shown] - labelling.ON_THE_SHEET).max() < 1
    with pytest.raises(ValueError, match="11 phones"):
        labelling.twelve(SimpleNamespace(lengths=np.zeros(11)))


def test_a_ruler_is_as_long_as_is_said_and_changes_nothing_else():
    pictures = np.zeros((5, 128, 128, 3), np.uint8)
    plain, ruled = (labelling.contact_sheet(pictures, ruler=ruler, columns=5) for ruler in (0, 20))
    assert plain.shape == ruled.shape == (256, 1280, 3)
    changed = (plain != ruled).any(axis=2)
    for tile in np.hsplit(changed, 5):
        across = np.flatnonzero(tile.any(axis=0))
        assert across[-1] - across[0] + 1 == 40  # a picture is shown twice as large
        assert np.flatnonzero(tile.any(axis=1)).min() > 230


def test_letters_become_labels():
    assert labelling.from_letters("Dg G d").tolist() == [True, False, False, True]
    for text, words in (("dx", "'x' is no label"), (7, "letters=7"), ("dg", "there are 2 labels: give 12")):
        with pytest.raises(ValueError, match=words):
            labelling.from_letters(text, count=12)


def test_every_detector_refuses_what_is_no_picture_and_no_confidence():
    step = SimpleNamespace(predict_proba=lambda inputs: np.array([[0.0, 1.0]]))
    picture = np.zeros((128, 128, 3), np.uint8)
    for model in (Inspector.load("stable", slots=1), PhoneModel("always", step)):
        for confidence in (50, -0.1, math.nan, True, "0.5", None):
            with pytest.raises(ValueError, match=r"^confidence=.*: give a number from 0 to 1$"):
                model.detect(picture, confidence)
        for image in (picture / 255, picture[..., 0], np.zeros((128, 128, 4), np.uint8), None):
            with pytest.raises(ValueError, match=r"^image is .*: give uint8, \(H, W, 3\), BGR"):
                model.detect(image)
