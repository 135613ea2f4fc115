"""What drift, estimation and automation promise, measured on data that hang together: users, cameras, neighbours, shifts.

`python -m benchmarks.drift_promises` prints a table with exact binomial 95 % intervals; `--runs` makes it quicker and
rougher, `--only WORD` takes the rows that contain the word. All data are simulated.
"""

import argparse
import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.signal import lfilter
from scipy.special import expit

from labsupport import drift
from labsupport.automation import NoSafeThreshold, choose_thresholds
from labsupport.drift import given_input
from labsupport.estimation import Calibration, realised
from labsupport.scenarios import incidents

LAB = ("brightness", "contrast", "sharpness", "saturation", "n_detections", "max_confidence")
FIRST = np.arange(10) == 0  # the one of ten columns that changes
Window = tuple[dict[str, np.ndarray], np.ndarray]  # columns, and the group of each row


class Row(NamedTuple):
    """A line of the table. `run` takes a seed and says what happened, for each of `names`."""

    promise: str
    setting: str
    promised: str  # "<= .05", ">= .95", or "" if nothing is promised
    run: Callable[[int], dict[str, bool]]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=500)
    arguments.add_argument("--only", default="")
    options = arguments.parse_args()
    print("| promise | setting | promised | measured [95 %] | |\n|---|---|---|---|---|")
    for row in rows():
        if options.only in f"{row.promise} {row.setting}":
            for line in lines(row, options.runs):
                print(line, flush=True)


def lines(row: Row, runs: int) -> Iterator[str]:
    """The row's lines, after so many runs with the seeds 0, 1, ..."""
    counts: dict[str, int] = {}
    for seed in range(runs):
        for name, happened in row.run(seed).items():
            counts[name] = counts.get(name, 0) + bool(happened)
    for name, count in counts.items():
        low, high = interval(count, runs)
        measured = f"{count}/{runs} = {count / runs:.3f} [{low:.3f}, {high:.3f}]"
        setting = f"{row.setting}, {name}" if name else row.setting
        yield f"| {row.promise} | {setting} | {row.promised} | {measured} | {verdict(row.promised, low, high)} |"


def interval(count: int, runs: int) -> tuple[float, float]:
    """The exact binomial 95 % interval of Clopper and Pearson.

    >>> [round(end, 3) for end in interval(25, 500)]
    [0.033, 0.073]
    """
    found = stats.binomtest(count, runs).proportion_ci()
    return found.low, found.high


def verdict(promised: str, low: float, high: float) -> str:
    """Broken if the interval lies wholly beyond the promise."""
    if not promised:
        return ""
    side, share = promised.split()
    broken = low > float(share) if side == "<=" else high < float(share)
    return "BROKEN" if broken else "kept"


def rows() -> list[Row]:
    """All lines of the table."""
    level, power = partial(Row, "compare, false alarms"), partial(Row, "compare, power")
    found = [
        level("the lab's traffic 2/s, brightness, 1200/300, groups", "<= .05", partial(lab, 2, 1200, 300, 1, True)),
        level("the lab's traffic 2/s, brightness, 300/300, groups", "<= .05", partial(lab, 2, 300, 300, 1, True)),
        level("the lab's traffic 10/s, brightness, 1200/300, groups", "<= .05", partial(lab, 10, 1200, 300, 1, True)),
        level("the lab's traffic 2/s, 6 columns, 1200/300, groups", "<= .05", partial(lab, 2, 1200, 300, 6, True)),
        level("the lab's traffic 2/s, brightness, 1200/300, no groups", "", partial(lab, 2, 1200, 300, 1, False)),
        level("the lab's Drift rule, an hour and 5 minutes", "<= .05", drift_rule),
        level("users interleaved, 1000/200, groups", "<= .05", partial(users, 1000, 200, 0.0)),
        level("each row five times, 1000/1000, groups", "<= .05", partial(copies, True)),
        level("each row five times, 1000/1000, no groups: a warning", ">= .99", partial(copies, False)),
        level("20 cameras, one of them half of the rows, 400/400, groups", "<= .05", cameras),
        level("users differ in classes and in what is missing, 600/300, groups", "<= .05", classes),
        level("users, 3 columns, 400/200, groups, each test alone", "<= .05", together),
        level("AR(1) .7, 50/50", "<= .05", partial(neighbours, 0.7, 50, 50)),
        level("AR(1) .7, 30/30", "<= .08", partial(neighbours, 0.7, 30, 30)),
        level("AR(1) .3, 50/50", "<= .08", partial(neighbours, 0.3, 50, 50)),
        level("AR(1) .9, 500/100", "<= .05", partial(neighbours, 0.9, 500, 100)),
        level("independent rows, 10 columns, 200/200", "<= .05", partial(independent, "nothing")),
        *(power(f"independent rows, 10 columns, 200/200: {name}", "", partial(independent, name)) for name in CHANGES),
        power("users interleaved, 1000/200, +.5 sd, groups", "", partial(users, 1000, 200, 0.5)),
        power(
            "the lab's traffic 2/s, brightness -20 %, 1200/300, groups",
            "",
            partial(lab, 2, 1200, 300, 1, True, light=0.8),
        ),
    ]
    for kind, shift in (("tree", 0.0), ("tree", 0.5), ("tree", 1.0), ("forest", 1.0), ("boosting", 1.0)):
        found.append(
            Row("estimate, coverage", f"{kind} {shift:+.1f} sd, inputs given", ">= .95", partial(shifted, kind, shift))
        )
    found.append(Row("estimate, coverage", "tree +1.0 sd, no inputs", "", partial(shifted, "tree", 1.0, given=False)))
    found.append(
        Row("estimate, coverage", "forest, no shift, level .99", ">= .99", partial(shifted, "forest", 0.0, level=0.99))
    )
    thresholds = partial(Row, "choose_thresholds, too many errors")
    found.append(thresholds("clusters of 3, groups", "<= .05", partial(clusters, True)))
    found.append(thresholds("clusters of 3, no groups", "", partial(clusters, False)))
    for name, narrowed in GIVEN.items():
        found.append(Row("given_input, false alarms", name, narrowed, partial(conditional, name)))
    return found


def lab(rate: float, n: int, m: int, columns: int, grouped: bool, seed: int, light: float = 1.0) -> dict[str, bool]:
    """Two stretches of the lab's own healthy traffic, one after the other; the second one with so much light."""
    traffic = incidents.simulate(seed=10_000 + seed, seconds=1.15 * (n + m) / rate + 120, rate=rate)
    found = traffic.columns("status", "key", *LAB[:columns], since=60)
    answered = found.pop("status") == 200
    found = {name: values[answered] for name, values in found.items()}
    before, now = ({name: values[part] for name, values in found.items()} for part in (slice(n), slice(n, n + m)))
    now["brightness"] = now["brightness"] * light
    return {"": _compared((before, before.pop("key")), (now, now.pop("key")), grouped)}


def drift_rule(seed: int) -> dict[str, bool]:
    """A look of the default rule, whose limit is 1e-5, at healthy traffic."""
    from dataclasses import replace

    from labsupport.monitoring import DEFAULT_RULES, MEASURES

    rule = next(rule for rule in DEFAULT_RULES if rule.metric == "drift")
    traffic = incidents.simulate(seed=20_000 + seed, seconds=4_200)
    names = MEASURES["drift"].columns
    measure = replace(MEASURES["drift"], reference=traffic.columns(*names, until=3_600))
    value = rule.judged(measure.read(traffic.columns(*names, since=3_900), 300))
    return {"": value is not None and rule.beyond(value)}


def users(n: int, m: int, shift: float, seed: int) -> dict[str, bool]:
    """Pictures of users who send five each, interleaved: a scene each, and a little noise."""
    random = np.random.default_rng([seed, n])
    before, now = (_of_users(random, rows, 5, 0.93) for rows in (n, m))
    now[0]["x"] = now[0]["x"] + shift
    return {"": _compared(before, now, True)}


def copies(grouped: bool, seed: int) -> dict[str, bool]:
    random = np.random.default_rng([seed, 2])
    before, now = (_of_users(random, 1000, 5, 1.0) for _ in range(2))
    if grouped:
        return {"": _compared(before, now, True)}
    return {"": any("values repeat in x" in words for words in drift.compare(before[0], now[0]).warnings)}


def cameras(seed: int) -> dict[str, bool]:
    random, windows = np.random.default_rng([seed, 3]), []
    for _ in range(2):
        camera = np.concatenate([np.zeros(200, int), random.integers(1, 20, 200)])
        windows.append(({"x": random.normal(size=20)[camera] + random.normal(size=400)}, camera))
    return {"": _compared(*windows, True)}


def classes(seed: int) -> dict[str, bool]:
    """Each user likes one class, and some send pictures without a measure."""
    random, windows = np.random.default_rng([seed, 4]), []
    for rows in (600, 300):
        (_, user), count = _of_users(random, rows, 5, 0.0), rows
        favourite, holes = random.choice(list("aabcdef"), count)[user], random.beta(0.5, 2.0, count)[user]
        chosen = np.where(random.random(rows) < 0.7, favourite, random.choice(list("abcdef"), rows))
        measured = np.where(random.random(rows) < holes, np.nan, random.normal(size=rows))
        windows.append(({"class": chosen, "measure": measured}, user))
    return {"": _compared(*windows, True)}


def together(seed: int) -> dict[str, bool]:
    """The tests of all columns at once, each without correction."""
    random, windows = np.random.default_rng([seed, 5]), []
    for rows in (400, 200):
        _, user = _of_users(random, rows, 5, 0.0)
        windows.append((0.8 * random.normal(size=(rows, 3))[user] + 0.6 * random.normal(size=(rows, 3)), user))
    groups = [group for _, group in windows]
    report = drift.compare(*(x for x, _ in windows), multivariate=list(drift.TESTS), groups=groups)
    return dict(zip(report.together["test"], report.together["p_value"] <= 0.05, strict=True))


def neighbours(phi: float, n: int, m: int, seed: int) -> dict[str, bool]:
    random = np.random.default_rng([seed, 6])
    return {"": drift.compare(_autoregressive(random, phi, n), _autoregressive(random, phi, m)).drifted}


CHANGES: dict[str, Callable] = {
    "+.5 sd": lambda random, x: x + 0.5 * FIRST,
    "+.3 sd": lambda random, x: x + 0.3 * FIRST,
    "sd x 2": lambda random, x: x * (1 + FIRST),
    "sd x 1.5": lambda random, x: x * (1 + 0.5 * FIRST),
    "correlation 0 to .5": lambda random, x: np.column_stack([x[:, 0], 0.5 * x[:, 0] + 0.87 * x[:, 1], x[:, 2:]]),
    "missing 0 to 5 %": lambda random, x: np.where((random.random(x.shape) < 0.05) & FIRST, np.nan, x),
}


def independent(change: str, seed: int) -> dict[str, bool]:
    random = np.random.default_rng([seed, 7])
    before, now = random.normal(size=(2, 200, 10))
    return {"": drift.compare(before, CHANGES[change](random, now) if change in CHANGES else now).drifted}


def shifted(kind: str, shift: float, seed: int, given: bool = True, level: float = 0.95) -> dict[str, bool]:
    """Are the realised figures in the intervals, if the first of three inputs has moved?"""
    random = np.random.default_rng([seed, 8])
    train, reference = (_inputs(random, rows, 0.0) for rows in (1000, 5000 if kind == "boosting" else 1000))
    window = _inputs(random, 2000 if kind == "boosting" else 500, shift)
    model = _model(kind).fit(*train)
    probabilities = [model.predict_proba(x)[:, 1] for x, _ in (reference, window)]
    calibration = Calibration.binary(reference[1], probabilities[0], inputs=reference[0] if given else None)
    found = realised(
        calibration, window[1], probabilities[1], inputs=window[0] if given else None, confidence_level=level
    )
    figures = found.estimate.figures
    return {name: figures[name].low <= value <= figures[name].high for name, value in found.figures.items()}


def clusters(grouped: bool, seed: int) -> dict[str, bool]:
    """Three like pictures of each product, and an error that is everywhere a little larger than promised."""
    random, promised = np.random.default_rng([seed, 9]), 0.05
    confidence = np.where(random.random(300) < 0.3, random.uniform(0.8, 1, 300), random.uniform(0, 0.2, 300))
    wrong = random.random(300) < 1.02 * promised
    label, product = (confidence > 0.5) != wrong, np.arange(300).repeat(3)
    options = {"groups": product} if grouped else {}
    try:
        thresholds = choose_thresholds(label.repeat(3), confidence.repeat(3), promised, **options)
    except NoSafeThreshold:
        return {"": False}
    return {"": bool(thresholds.sure(np.linspace(0, 1, 1001)).any())}


GIVEN = {"input +1, 100/100": "<= .05", "input +1, 40/40": "<= .08", "AR(1) .7, input +.5, 100/100": "<= .10"}


def conditional(setting: str, seed: int) -> dict[str, bool]:
    import pandas as pd

    random, windows = np.random.default_rng([seed, 10]), []
    rows = 40 if "40/40" in setting else 100
    for shift in (0.0, 0.5 if "+.5" in setting else 1.0):
        draw = partial(_autoregressive, random, 0.7) if "AR" in setting else lambda count: random.normal(size=count)
        x = draw(rows) + shift
        windows.append(pd.DataFrame({"x": x, "y": np.sin(x) + 0.5 * draw(rows)}))
    return {"": given_input(*windows, ["x"], ["y"]).p_value <= 0.05}


def _compared(before: Window, now: Window, grouped: bool) -> bool:
    return drift.compare(before[0], now[0], groups=(before[1], now[1]) if grouped else None).drifted


def _of_users(random: np.random.Generator, rows: int, each: int, alike: float) -> Window:
    user = random.permutation(np.arange(rows) // each)
    return {"x": alike * random.normal(size=rows)[user] + math.sqrt(1 - alike**2) * random.normal(size=rows)}, user


def _autoregressive(random: np.random.Generator, phi: float, rows: int) -> np.ndarray:
    return lfilter([math.sqrt(1 - phi**2)], [1, -phi], random.normal(size=rows + 200))[200:]


def _inputs(random: np.random.Generator, rows: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    x = random.normal([shift, 0, 0], 1, (rows, 3))
    worth = 1.5 * x[:, 0] - x[:, 1] + np.sin(2 * x[:, 2]) + 0.5 * x[:, 0] * x[:, 1] - 0.3
    return x, random.random(rows) < expit(worth)


def _model(kind: str):
    from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
    from sklearn.tree import DecisionTreeClassifier

    if kind == "tree":
        return DecisionTreeClassifier(max_depth=4, random_state=0)
    if kind == "forest":
        return RandomForestClassifier(50, min_samples_leaf=5, random_state=0)
    return HistGradientBoostingClassifier(max_iter=50, random_state=0)


if __name__ == "__main__":
    warnings.simplefilter("error")
    main()
