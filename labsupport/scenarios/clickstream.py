"""Simulate a recommender. A profile model guesses from clicks whether a visitor owns a car, and the recommender makes
an offer.

The visitors and all numbers are made up by a program, so it is known who owns a car. The visitors, the logging, the
profile model and the recommender change when the caller says so. The recommender is a table of rules, because not every
stage learns.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from labsupport import arguments
from labsupport.pipeline import UNKNOWN, Pipeline, Stage

PAGES = ("home", "search", "news", "sport", "family", "travel", "cars", "insurance")
READ = {  # how often each page is read, by those who own a car and by those who do not
    True: np.array([0.18, 0.14, 0.16, 0.12, 0.10, 0.08, 0.14, 0.08]),
    False: np.array([0.18, 0.14, 0.20, 0.14, 0.13, 0.14, 0.04, 0.03]),
}
OFFERS = {  # what is offered, and how often: some exploration is always left
    "yes": {"winter tyres": 0.6, "car insurance": 0.3, "train ticket": 0.1},
    "no": {"train ticket": 0.6, "bicycle": 0.3, "car insurance": 0.1},
    UNKNOWN: {"gift card": 0.8, "train ticket": 0.1, "car insurance": 0.1},
}
OFFERS_2 = OFFERS | {"yes": {"winter tyres": 0.35, "car insurance": 0.55, "train ticket": 0.1}}


@dataclass(frozen=True, eq=False)
class Visits:
    """N visits: for each the list of pages in the order in which they were read, and whether that visitor owns a car."""

    clicks: list[list[str]]
    owns_car: np.ndarray


def visits(count: int, seed: int | Sequence[int], news: float = 1.0, lost: float = 0.0) -> Visits:
    """Return `count` visits.

    `news` is how many times as often as usual news are read. `lost` is the share of clicks that the logging loses. The
    same seed gives the same visitors for any of these values.

    >>> some = visits(100, seed=1)
    >>> some.clicks[0][:4], bool(some.owns_car[0])
    (['home', 'sport', 'news', 'home'], False)
    """
    count = arguments.number("count", count, 0, whole=True)
    news, lost = arguments.number("news", news, 0), arguments.number("lost", lost, 0, 1)
    random = np.random.default_rng(seed)
    owns_car = random.random(count) < 0.5
    return Visits(
        [_visit(owns, news, lost, one) for owns, one in zip(owns_car, random.spawn(count), strict=True)], owns_car
    )


def _visit(owns_car: bool, news: float, lost: float, random: np.random.Generator) -> list[str]:
    shares = READ[bool(owns_car)] * np.where(np.array(PAGES) == "news", news, 1)
    length = 5 + random.geometric(1 / 20)
    read = np.searchsorted(np.cumsum(shares / shares.sum()), random.random(length))
    return [PAGES[page] for page in read[random.random(length) >= lost]]


def count(clicks: list[str]) -> dict[str, int]:
    """Return how often each page was read. The profile uses only these numbers.

    >>> {page: often for page, often in count(["home", "cars", "cars"]).items() if often}
    {'home': 1, 'cars': 2}
    """
    found = Counter(clicks)
    return {page: found[page] for page in PAGES}


class Profile:
    """Predicts whether a visitor owns a car: logistic regression on the counts, learned from 2,000 visitors with known
    answers.
    """

    def __init__(self, seed: int = 0) -> None:
        from sklearn.linear_model import LogisticRegression

        known = visits(2_000, seed=(7, seed))
        model = LogisticRegression(max_iter=500).fit(
            [list(count(clicks).values()) for clicks in known.clicks], known.owns_car
        )
        self._weights, self._bias = model.coef_[0], model.intercept_[0]

    def owns_car(self, clicks: list[str], sure: float = 0.7) -> str:
        """Return "yes" or "no" if the model's confidence is at least `sure`, 0.5 to 1; otherwise "unknown"."""
        probability = 1 / (1 + np.exp(-self._weights @ list(count(clicks).values()) - self._bias))
        return "yes" if probability >= sure else "no" if probability <= 1 - sure else UNKNOWN


@cache
def profile() -> Profile:
    """Return the profile model in use. It is trained on first use, in a second."""
    return Profile()


class Recommender:
    """Chooses an offer at random. `offers` maps profile -> offer -> how often. The `seed` fixes the choices."""

    def __init__(self, offers: dict[str, dict[str, float]], seed: int | Sequence[int] = 0) -> None:
        own = [9, *np.atleast_1d(seed)]  # visitors of the same seed have other chances
        self.offers, self._random = offers, np.random.default_rng(own)

    def recommend(self, owns_car: str) -> str:
        """Return one offer."""
        offers = self.offers[arguments.choice("owns_car", owns_car, self.offers)]
        return str(self._random.choice(list(offers), p=list(offers.values())))


def pipeline(
    sure: float = 0.7, offers: dict[str, dict[str, float]] = OFFERS, seed: int | Sequence[int] = 0
) -> Pipeline:
    """Return the pipeline of two stages, "profile" and "recommender".

    >>> pipeline().run(["home", *["cars"] * 5, "insurance"])
    'car insurance'
    """
    steps = [
        Stage("profile", partial(profile().owns_car, sure=sure)),
        Stage("recommender", Recommender(offers, seed).recommend),
    ]
    return Pipeline(steps, count)
