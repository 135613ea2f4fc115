"""Are the visitors as they are said to be, and do profile and recommender know them?"""

from collections import Counter

import numpy as np
import pytest

from labsupport.scenarios import clickstream

MANY = clickstream.visits(2_000, seed=3)


def shares(visits, owns_car):
    pages = Counter(page for clicks, owns in zip(visits.clicks, visits.owns_car, strict=True) if owns == owns_car
                    for page in clicks)  # fmt: skip
    return np.array([pages[page] / pages.total() for page in clickstream.PAGES])


@pytest.mark.parametrize("owns_car", [True, False])
def test_pages_are_read_as_often_as_the_table_says(owns_car):
    assert clickstream.READ[owns_car].sum() == pytest.approx(1)
    np.testing.assert_allclose(shares(MANY, owns_car), clickstream.READ[owns_car], atol=0.01)


def test_news_and_lost_clicks():
    more = shares(clickstream.visits(1_000, seed=3, news=2.0), True)
    expected = clickstream.READ[True] * np.where(np.arange(8) == 2, 2, 1)
    np.testing.assert_allclose(more, expected / expected.sum(), atol=0.015)
    whole, lost = (sum(map(len, clickstream.visits(1_000, 3, lost=lost).clicks)) for lost in (0, 0.35))
    assert lost / whole == pytest.approx(0.65, abs=0.02)


def test_the_profile_is_mostly_right_and_says_when_it_does_not_know():
    answers = np.array([clickstream.profile().owns_car(clicks) for clicks in MANY.clicks])
    known = answers != "unknown"
    assert 0.1 < 1 - known.mean() < 0.35
    assert ((answers == "yes") == MANY.owns_car)[known].mean() > 0.85
    unsure = np.array([clickstream.profile().owns_car(clicks, sure=0.85) for clicks in MANY.clicks]) == "unknown"
    assert unsure.mean() > (~known).mean() + 0.15


def test_offers_come_as_often_as_the_rules_say():
    shop = clickstream.Recommender(clickstream.OFFERS, seed=1)
    for owns_car, offers in clickstream.OFFERS.items():
        given = Counter(shop.recommend(owns_car) for _ in range(1_500))
        assert {offer: given[offer] / 1_500 for offer in offers} == pytest.approx(offers, abs=0.04)


def test_nothing_read_is_nothing_known():
    assert clickstream.pipeline().run([]) in clickstream.OFFERS["unknown"]


def test_the_same_seed_gives_the_same_visitors():
    assert clickstream.visits(5, 1).clicks == clickstream.visits(5, 1).clicks
    fewer = clickstream.visits(5, 1, lost=0.5).clicks
    assert all(len(a) < len(b) for a, b in zip(fewer, clickstream.visits(5, 1).clicks, strict=True))


def test_chances_of_visitors_and_of_offers_are_not_the_same():
    """With one seed for both, whoever owns a car must not be offered anything else than the rules say."""
    pipeline, world = clickstream.pipeline(seed=1), clickstream.visits(600, seed=1)
    offers = [pipeline.run(clicks) for clicks in world.clicks]
    table = pipeline.frame()
    for owns_car, expected in clickstream.OFFERS.items():
        given = Counter(offer for offer, told in zip(offers, table["profile.value"], strict=True) if told == owns_car)
        assert {offer: given[offer] / given.total() for offer in expected} == pytest.approx(expected, abs=0.1)
