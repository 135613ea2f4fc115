"""A world whose truth is known: what is drawn is what is said to be drawn, and each kind of drift changes only its own."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from labsupport import images, paths
from labsupport.scenarios import inspection, inspector_training, phones, worlds

PICTURES = 150


@pytest.fixture(scope="module")
def clean():
    return inspection(PICTURES, seed=5, scratch_share=0)


@pytest.fixture(scope="module")
def scratched():
    """The same phones, each with a scratch."""
    return inspection(PICTURES, seed=5, scratch_share=1)


# the seed


def test_a_seed_gives_the_same_pictures_and_the_first_ones_of_a_longer_series(scratched):
    again = inspection(20, seed=5, scratch_share=1)
    assert (again.images == scratched.images[:20]).all()
    assert again.boxes == scratched.boxes[:20]
    assert inspection(0).images.shape == (0, 128, 128, 3)


def test_two_seeds_give_other_phones_other_scratches_and_other_noise(scratched):
    other = inspection(20, seed=6, scratch_share=1)
    assert not any(boxes in other.boxes for boxes in scratched.boxes)
    assert all((a != b).mean() > 0.5 for a in other.images for b in scratched.images[:20])


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_the_share_of_scratched_phones_is_the_one_asked_for(share):
    count = 500
    found = inspection(count, seed=11, scratch_share=share).truth.sum()
    assert abs(found - share * count) < 4 * np.sqrt(count * share * (1 - share))  # four standard errors: 1 in 16,000


def test_more_scratches_leave_the_other_phones_as_they_were(clean, scratched):
    some = inspection(PICTURES, seed=5, scratch_share=0.4)
    expected = np.where(some.truth[:, None, None, None], scratched.images, clean.images)
    assert 0 < some.truth.sum() < PICTURES
    assert (some.images == expected).all()


# the truth, held against what a scratch changes in the picture


def test_the_boxes_hold_every_pixel_that_a_scratch_changes_and_little_else(clean, scratched):
    changed = (clean.images != scratched.images).any(axis=3)
    loose = []
    for pixels, boxes in zip(changed, scratched.boxes, strict=True):
        outside = pixels.copy()
        for box in boxes:
            outside[box.top : box.bottom, box.left : box.right] = False
        assert pixels.any()
        assert not outside.any()
        if len(boxes) == 1:
            rows, columns = np.nonzero(pixels)
            ((left, top, right, bottom),) = boxes
            edges = (columns.min() - left, rows.min() - top, right - 1 - columns.max(), bottom - 1 - rows.max())
            loose.append(max(edges))
    assert len(loose) > PICTURES / 2
    assert np.median(loose) <= 3
    assert np.mean(np.array(loose) > 6) < 0.05  # light on a light rim: nothing to be seen there


def test_lengths_are_the_lengths_of_the_lines(scratched):
    for scratches, lengths in zip(scratched.scratches, scratched.lengths, strict=True):
        arcs = [cv2.arcLength(scratch.line.astype(np.float32), closed=False) for scratch in scratches]
        assert lengths == pytest.approx(arcs, rel=1e-4)


def test_a_longer_scratch_changes_more_pixels(clean, scratched):
    alone = [index for index, lengths in enumerate(scratched.lengths) if len(lengths) == 1]
    lengths = [scratched.lengths[index][0] for index in alone]
    changed = (clean.images[alone] != scratched.images[alone]).any(axis=3).sum(axis=(1, 2))
    assert np.corrcoef(lengths, changed)[0, 1] > 0.9


def test_scratches_are_on_the_phone(clean, scratched):
    """The belt is gray, and a scratch on it would change it: two columns at each side are belt in every picture."""
    margin = np.r_[0:20, 108:128]
    assert (clean.images[:, :, margin] == scratched.images[:, :, margin]).all()


# concept drift: another definition of a defect


def test_a_definition_changes_the_truth_of_the_right_phones_and_no_picture(scratched):
    world = inspection(PICTURES, seed=5, scratch_share=1, smallest_defect=20)
    longest = np.array([max(lengths) for lengths in scratched.lengths])
    assert (world.images == scratched.images).all()
    assert ((scratched.truth != world.truth) == (longest < 20)).all()
    assert 0.2 < world.truth.mean() < 0.9
    assert (replace(scratched, smallest_defect=20).truth == world.truth).all()


def test_a_phone_without_a_scratch_is_no_defect_under_any_definition(clean):
    assert not clean.truth.any()
    assert not replace(clean, smallest_defect=1e9).truth.any()


# data drift: other pictures, the same truth


@pytest.mark.parametrize("lighting", [0.4, (0.5, 0.8, 0.6)])
def test_lighting_multiplies_every_pixel(lighting):
    day = inspection(20, seed=5, noise=0)
    night = inspection(20, seed=5, noise=0, lighting=lighting)
    expected = day.images * np.broadcast_to(lighting, 3)
    inside = (day.images > 0) & (day.images < 255)  # where the sensor is not at its end
    assert np.abs(night.images - expected)[inside].max() < 1.01  # both are rounded to whole gray levels
    assert (night.truth == day.truth).all()


def test_darker_pictures_are_darker_in_what_the_monitoring_looks_at(scratched):
    dark = inspection(20, seed=5, scratch_share=1, lighting=0.4)
    for before, after in zip(scratched.images, dark.images, strict=False):
        assert images.features(after)["brightness"] / images.features(before)["brightness"] == pytest.approx(
            0.4, abs=0.02
        )


def test_noise_has_the_deviation_asked_for():
    still = inspection(20, seed=5, noise=0).images.astype(float)
    noisy = inspection(20, seed=5, noise=6).images.astype(float)
    middle = (still > 30) & (still < 225)
    assert np.std((noisy - still)[middle]) == pytest.approx(6, rel=0.02)


def test_smaller_scratches_are_shorter_and_the_truth_is_the_same(clean, scratched):
    small = inspection(PICTURES, seed=5, scratch_share=1, scratch_size=0.5)
    shorter = [a[0] / b[0] for a, b in zip(small.lengths, scratched.lengths, strict=True)]
    assert np.median(shorter) == pytest.approx(0.5, abs=0.01)
    assert small.truth.all()
    changed, before = ((world.images != clean.images).any(axis=3).sum() for world in (small, scratched))
    assert changed < 0.5 * before


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": -1},
        {"scratch_share": 1.1},
        {"scratch_size": 0},
        {"lighting": -1},
        {"lighting": (1, 1, -1)},
        {"noise": -1},
        {"noise": float("nan")},
        {"count": 1.5},
        {"count": True},
        {"lighting": "dark"},
        {"lighting": (1, 1)},
        {"smallest_defect": None},
    ],
)
def test_numbers_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name}=.*: give "):
        inspection(**{"count": 1, **wrong})


def test_networks_are_trained_anew_when_the_drawing_changes_and_only_then(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "cache", lambda: tmp_path / "cache")
    monkeypatch.setattr(inspector_training, "_train_all", lambda *_: None)
    own = {"own": inspector_training.Recipe(pictures=1, epochs=1, filters=1)}
    before = inspector_training.networks(own)
    for module, same in ((worlds, True), (phones, False)):
        changed = tmp_path / f"{module.__name__}.py"
        changed.write_text("# another world")
        monkeypatch.setattr(module, "__file__", str(changed))
        assert (inspector_training.networks(own) == before) is same


def test_the_networks_of_the_recipes_come_with_the_package_and_other_recipes_are_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "cache", lambda: tmp_path / "cache")
    assert {path.stem for path in inspector_training.networks().glob("*.xml")} == {*inspector_training.RECIPES}
    trained = []
    monkeypatch.setattr(inspector_training, "_train_all", lambda recipes, *_: trained.append(recipes))
    other = inspector_training.RECIPES | {"stable": inspector_training.Recipe(pictures=1, epochs=1, filters=1)}
    assert inspector_training.networks(other).is_relative_to(tmp_path)
    assert trained == [other]
