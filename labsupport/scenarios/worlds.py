"""Simulate small worlds, so that the truth is known and the world changes at a chosen time.

*Data drift*: the inputs x change; y given x stays. *Concept drift*: y given x changes; x stays (virtual and real drift
in Gama et al., 2014, "A survey on concept drift adaptation"). A world does one, both or none, at a chosen row and speed
(`When`), and reports it (`Stream`). The same seed gives the same random numbers for every kind of drift: with concept
drift x is exactly as with none. `inspection`, the factory of the lectures, is drawn in `phones`. Nothing here was
measured: we chose the numbers to show how methods behave, not how houses, customers or spammers do.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, Unpack

import numpy as np

from labsupport.scenarios.phones import SIZE, Inspection, Scratch, inspection

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["SIZE", "Inspection", "Scratch", "Stream", "When", "churn", "fraud"]
__all__ += ["house_prices", "inspection", "spam", "vocabulary"]

KINDS, SPEEDS = ("none", "data", "concept", "both"), ("sudden", "gradual", "recurring")
COMMON, WORDS, LONGEST = 10, 500, 40  # of `vocabulary`: words that say nothing, words known before, words in a text
STYLES = {  # of `spam`: which words the mails are made of
    "offer": ["free", "prize", "cash", "discount", "bonus", "credit", "click", "winner", "deal", "cheap"],
    "work": ["meeting", "report", "budget", "project", "invoice", "draft", "deadline", "agenda", "contract", "office"],
    "chat": ["hello", "dinner", "weekend", "photo", "birthday", "holiday", "match", "music", "kids", "thanks"],
}
STYLE = {True: np.array([0.8, 0.1, 0.1]), False: np.array([0.1, 0.5, 0.4])}  # share of each among spam and honest mail


@dataclass(frozen=True, eq=False)
class Stream:
    """N rows in the order of time, and the truth about them. A model may see `frame`, and `target` once it is known.

    >>> stream = churn(4000, seed=1, drift="concept")
    >>> error = np.abs(stream.expected - stream.before)  # of a model that knew all there was to know before the change
    >>> [round(float(part.mean()), 2) for part in np.split(error, stream.drifts)]
    [0.0, 0.1]
    """

    frame: "pd.DataFrame"  # the features x, one row a sample
    target: np.ndarray  # (N,): y
    drifts: list[int]  # the rows at which the world changes, or begins to
    kind: str  # what changes: "none", "data", "concept", "both"; in `spam` "prior" in place of "data"
    regime: np.ndarray  # bool, (N,): is the row from the new world?
    before: np.ndarray  # (N,): E[y|x] as it was in the old world; for classes that is P(y|x)
    after: np.ndarray  # (N,): E[y|x] as it is in the new world; the same unless the concept changes

    @property
    def expected(self) -> np.ndarray:
        """Return E[y|x] in the world that each row is from, (N,): the best possible prediction of y."""
        return np.where(self.regime, self.after, self.before)


class When(TypedDict, total=False):
    """The time and the speed of a change. Every world takes these by name, and raises ValueError for invalid ones.

    - `speed`: "sudden" (the default): the rows from `at` on are from the new world. "gradual": the share of such rows
      grows in `width` equal steps from 0 before row `at` to 1. "recurring": from `at` on the new world and the old one
      take turns, `period` rows each.
    - `at`: a row, counted from 0, which may itself be 0; in the middle if not given
    - `width`, `period`: rows

    >>> fraud(10, drift="data", at=4, speed="recurring", period=2).regime.astype(int).tolist()
    [0, 0, 0, 0, 1, 1, 0, 0, 1, 1]
    """

    speed: str
    at: int
    width: int
    period: int


class _Plan(NamedTuple):
    share: np.ndarray  # (N,): how likely each row is to be from the new world
    regime: np.ndarray  # bool, (N,): whether it is
    drifts: list[int]
    moved: np.ndarray  # bool, (N,): whether its x is
    concept: bool  # whether what y is, given x, changes


def _plan(count: int, seed: int, drift: str, kinds: tuple[str, ...] = KINDS, **when: Unpack[When]) -> _Plan:
    """Return which rows are from the new world. Raises ValueError for invalid arguments."""
    if drift not in kinds:
        raise ValueError(f"drift={drift!r}: in this world there is {', '.join(kinds)}")
    share, drifts = _share(count, **when)
    if drift == "none":
        share, drifts = np.zeros(count), []
    regime = np.random.default_rng([seed, 0]).random(count) < share
    return _Plan(share, regime, drifts, regime & (drift != "concept"), drift in ("concept", "both"))


def _share(
    count: int, *, speed: str = "sudden", at: int | None = None, width: int | None = None, period: int | None = None
) -> tuple[np.ndarray, list[int]]:
    """Return each row's probability to be from the new world, and the rows where it changes."""
    rows = {"count": count, "at": at, "width": width, "period": period}
    if wrong := [name for name, value in rows.items() if not isinstance(value, int | np.integer | None)]:
        raise ValueError(f"{', '.join(wrong)}: give a whole number of rows")
    at = count // 2 if at is None else at
    if not 0 <= at < count:
        raise ValueError(f"count={count}, at={at}: give at least one row, and let the world change at one of them")
    if speed not in SPEEDS:
        raise ValueError(f"speed={speed!r}: a world changes {', '.join(SPEEDS)}")
    for name, value, needs in (("width", width, "gradual"), ("period", period, "recurring")):
        if value is not None and speed != needs:
            raise ValueError(f"{name}={value} goes with speed={needs!r}, not with {speed!r}")
        if speed == needs and (value is None or value < 1):
            raise ValueError(f"speed={speed!r}, {name}={value}: give the {name}, 1 row or more")
    since = np.arange(count) - at
    if width is not None:  # gradual
        return ((since + 1) / width).clip(0, 1), [at]
    if period is not None:  # recurring
        return ((since >= 0) & (since // period % 2 == 0)).astype(float), list(range(at, count, period))
    return (since >= 0).astype(float), [at]


def _stream(x: dict[str, Any], y: np.ndarray, plan: _Plan, drift: str, before: np.ndarray, after: np.ndarray) -> Stream:
    import pandas as pd

    return Stream(pd.DataFrame(x), y, plan.drifts, drift, plan.regime, before, after)


def _generators(seed: int, count: int) -> list[np.random.Generator]:
    """Return one generator for each thing that is drawn.

    So a change of one thing does not change the others, and a longer series begins with a shorter one.
    """
    return [np.random.default_rng([seed, part]) for part in range(1, count + 1)]


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    probability: np.ndarray = 1 / (1 + np.exp(-logit))
    return probability


def house_prices(count: int, seed: int = 0, *, drift: str = "both", **when: Unpack[When]) -> Stream:
    """Return houses and the price of each, in euros.

    size = 90 exp(0.3 z) square metres; rooms = size / 25 + 0.8 z, rounded, at least 1; age from 0 to 60 years and
    distance to the centre from 0 to 20 kilometres, both uniform; price = E[price|x] (1 + 0.1 z), each z standard
    normal, with E[price|x] = 50,000 + 2,500 size + 5,000 rooms - 500 age - 2,000 distance.

    Data drift: houses are 1.3 times as large. Concept drift: inflation, the same house costs 1.25 times as much.

    >>> stream = house_prices(4000, seed=1, drift="concept", at=3000)
    >>> stream.drifts, [round(float(part.mean()), -3) for part in np.split(stream.target, stream.drifts)]
    ([3000], [268000.0, 338000.0])
    """
    plan = _plan(count, seed, drift, **when)
    size, rooms, age, distance, noise = _generators(seed, 5)
    frame = {"size": 90 * np.exp(0.3 * size.standard_normal(count)) * np.where(plan.moved, 1.3, 1)}
    frame["rooms"] = np.rint(frame["size"] / 25 + 0.8 * rooms.standard_normal(count)).clip(1).astype(int)
    frame |= {"age": age.uniform(0, 60, count), "distance": distance.uniform(0, 20, count)}
    worth = np.array([2500, 5000, -500, -2000])
    before = 50_000 + sum(each * column for each, column in zip(worth, frame.values(), strict=True))
    after = before * (1.25 if plan.concept else 1)
    price = np.where(plan.regime, after, before) * (1 + 0.1 * noise.standard_normal(count))
    return _stream(frame, price, plan, drift, before, after)


def fraud(count: int, seed: int = 0, *, drift: str = "both", **when: Unpack[When]) -> Stream:
    """Return payments before and after covid, and whether each was a fraud. Frauds are far more frequent than in reality.

    amount = 40 exp(z) euros; online: 30 % of payments; hour: at an odd one (0 to 5) 10 % of what is bought online and 2
    % of the rest; logit P(fraud|x) = -4 + 0.8 ln(amount / 40) + 1.5 if online + 2.5 if the hour is odd.

    Data drift: people stay at home; online 70 %, and 35 % of that at odd hours. Concept drift: buying online or at
    night becomes normal, and only the amount remains suspicious: logit P(fraud|x) = -2.5 + 0.8 ln(amount / 40). With
    data drift alone a model makes more errors although it is as good as before: a model that knew `expected` would make
    more errors, too.

    >>> stream = fraud(4000, seed=1)
    >>> [round(float(part.mean()), 2) for part in np.split(stream.frame["online"], stream.drifts)]
    [0.29, 0.69]
    """
    plan = _plan(count, seed, drift, **when)
    amount, online, odd, hour, noise = _generators(seed, 5)
    frame = {"amount": 40 * np.exp(amount.standard_normal(count))}
    frame["online"] = online.random(count) < np.where(plan.moved, 0.7, 0.3)
    at_night = odd.random(count) < np.where(frame["online"], np.where(plan.moved, 0.35, 0.1), 0.02)
    frame["hour"] = (hour.random(count) * np.where(at_night, 6, 18) + np.where(at_night, 0, 6)).astype(int)
    large = 0.8 * np.log(frame["amount"] / 40)
    before = _sigmoid(-4 + large + 1.5 * frame["online"] + 2.5 * at_night)
    after = _sigmoid(-2.5 + large) if plan.concept else before
    return _stream(frame, noise.random(count) < np.where(plan.regime, after, before), plan, drift, before, after)


def churn(count: int, seed: int = 0, *, drift: str = "both", clear: bool = False, **when: Unpack[When]) -> Stream:
    """Return customers, and whether each leaves.

    age = 45 + 13 z years, kept within 18 and 90; months as a customer from 0 to 60, uniform; calls to the hotline:
    Poisson, mean 1; logit P(leaves|x) = -1.5 + 0.6 calls - 0.04 months, at any age.

    Data drift: customers get younger, by 12 years. Concept drift: those below 35 begin to leave, + 2.5 on their logit.

    With `clear` the reasons are strong, so a model makes far fewer errors than a constant does: logit P(leaves|x) = 4
    (-0.4 + 0.6 (calls - 1) - 0.04 (months - 30)). Concept drift: 0.05 (45 - age) replaces 0.6 (calls - 1), and about as
    many leave as before.

    >>> stream = churn(4000, seed=1, drift="concept")
    >>> young = stream.frame["age"] < 35
    >>> [round(float(part.mean()), 2) for part in (stream.before[young], stream.after[young], stream.after[~young])]
    [0.13, 0.57, 0.13]
    """
    plan = _plan(count, seed, drift, **when)
    age, months, calls, noise = _generators(seed, 4)
    frame = {"age": (45 + 13 * age.standard_normal(count) - 12 * plan.moved).clip(18, 90)}
    frame |= {"months": months.uniform(0, 60, count), "calls": calls.poisson(1, count)}
    logit = -1.5 + 0.6 * frame["calls"] - 0.04 * frame["months"]
    later = logit + 2.5 * (frame["age"] < 35)
    if clear:
        loyal = -0.4 - 0.04 * (frame["months"] - 30)
        logit, later = 4 * (loyal + 0.6 * (frame["calls"] - 1)), 4 * (loyal + 0.05 * (45 - frame["age"]))
    before = _sigmoid(logit)
    after = _sigmoid(later) if plan.concept else before
    return _stream(frame, noise.random(count) < np.where(plan.regime, after, before), plan, drift, before, after)


def vocabulary(count: int, seed: int = 0, *, drift: str = "data", **when: Unpack[When]) -> Stream:
    """Return reviews, column text, and whether the writer is content. Writers start to use new words.

    A text has 4 words, and on average nearly 8 more (exponential, cut off at 40 in all), drawn from w0 to w499 with
    frequencies that fall as 1 / rank (Zipf). w0 to w9 have no meaning; of the others the even ones are kind and the odd
    ones are unkind; logit P(content|x) = kind words - unkind words, for old and new words.

    Data drift: each word is with probability 0.3 a new one, w500 to w999, with the frequency and meaning of the one 500
    below it, and texts are 1.5 times as long beyond their first 4 words. There is no concept drift. A model that
    learned on old texts may still get worse, because it does not know the new words.

    >>> vocabulary(2, seed=262).frame["text"].tolist()
    ['w0 w0 w74 w50', 'w726 w679 w608 w7']
    """
    plan = _plan(count, seed, drift, ("none", "data"), **when)
    length, word, new, noise = _generators(seed, 4)
    lengths = 4 + (length.exponential(8, count) * np.where(plan.moved, 1.5, 1)).astype(int).clip(max=LONGEST - 4)
    rank = np.floor((WORDS + 1) ** word.random((count, LONGEST))).astype(int) - 1
    ids = rank + WORDS * (plan.moved[:, None] & (new.random((count, LONGEST)) < 0.3))
    says = np.where(rank < COMMON, 0, 1 - 2 * (rank % 2)) * (np.arange(LONGEST) < lengths[:, None])
    p = _sigmoid(says.sum(axis=1))
    texts = [" ".join(f"w{id}" for id in row[:size]) for row, size in zip(ids.tolist(), lengths, strict=True)]
    return _stream({"text": texts}, noise.random(count) < p, plan, drift, p, p)


def spam(count: int, seed: int = 0, *, drift: str = "concept", **when: Unpack[When]) -> Stream:
    """Return mails, column text, and whether each is spam. Spammers change their words, or send more.

    A mail is written in one style, offer, work or chat: of spam 80, 10 and 10 %, of honest mail 10, 50 and 40 %. Its 6
    words are with probability 0.5 from the ten of its style and otherwise from all thirty. 30 % of mail is spam.
    P(spam|x) is Bayes' theorem over the styles that the words may come from.

    Concept drift: spammers learn to chat and shops send the offers: P(spam|offer) and P(spam|chat) are exchanged. Both
    styles make up 31 % of mail, so the mails look as before. "prior": a campaign, 60 % is spam, and spam and honest
    mail each look as before (prior probability shift; Moreno-Torres et al., 2012); x and P(y|x) change both. "both":
    both.

    >>> stream = spam(4000, seed=1, drift="prior")
    >>> [round(float(part.mean()), 2) for part in np.split(stream.target, stream.drifts)]
    [0.29, 0.6]
    """
    plan = _plan(count, seed, drift, ("none", "prior", "concept", "both"), **when)
    style, own, word, noise = _generators(seed, 4)
    old = np.array([0.7 * STYLE[False], 0.3 * STYLE[True]])  # P(y, style), (2, 3)
    spams, order = 0.6 if drift in ("prior", "both") else 0.3, [2, 1, 0] if plan.concept else [0, 1, 2]
    new = np.array([(1 - spams) * STYLE[False][order], spams * STYLE[True][order]])
    u = style.random(count)
    styles = np.where(plan.moved, *(np.searchsorted(world.sum(axis=0).cumsum()[:2], u) for world in (new, old)))
    ids = word.integers(30, size=(count, 6))
    ids = np.where(own.random((count, 6)) < 0.5, 10 * styles[:, None] + ids % 10, ids)
    likely = 4.0 ** (ids[:, :, None] // 10 == np.arange(3)).sum(axis=1)  # a word is (1/2 + 1/6) / (1/6) times as likely
    before, after = (likely @ world[1] / (likely @ world.sum(axis=0)) for world in (old, new))
    of_style = np.where(plan.regime, *((world[1] / world.sum(axis=0))[styles] for world in (new, old)))
    words = np.array([word for words in STYLES.values() for word in words])
    texts = [" ".join(row) for row in words[ids].tolist()]
    return _stream({"text": texts}, noise.random(count) < of_style, plan, drift, before, after)
