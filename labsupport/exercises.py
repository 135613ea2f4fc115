"""The check cells: each says whether an exercise's answer is right, and if not, what is wrong with it.

A check runs the answer, it does not read it. It raises nothing, whatever it is given: an unfinished exercise must not stop
a notebook that is run from top to bottom.
"""

import contextlib
from collections.abc import Callable
from functools import cache, wraps
from typing import TYPE_CHECKING

import numpy as np
import requests

from labsupport import images, paths
from labsupport.alerts import AlertRule
from labsupport.automation import error_bound
from labsupport.cusum import cusum_run_length
from labsupport.detection import Detector
from labsupport.gate import Gate, Outcomes
from labsupport.running import serve

if TYPE_CHECKING:
    import pandas as pd


def check(question: Callable[..., str | None]) -> Callable[..., None]:
    """Turn a function that returns what is wrong, or None, into a check cell's function: it prints the verdict.

    >>> @check
    ... def two(answer):
    ...     return None if answer == 2 else f"{answer} is not 2"
    >>> two(3)
    Not yet: 3 is not 2
    """

    @wraps(question)
    def verdict(*answer) -> None:
        try:
            wrong = question(*answer)
        except Exception as error:  # the learner's code may do anything
            wrong = f"it raised {type(error).__name__}: {error}"
        print(f"Not yet: {wrong}" if wrong else "Right.")

    return verdict


@check
def highest_confidence(answer: float) -> str | None:
    """server.ipynb: the highest confidence, in steps of 0.1, at which two objects are found in fruits.jpg."""
    if answer not in [step / 10 for step in range(1, 10)]:
        return "give one of 0.1, 0.2, ... 0.9"
    detector = Detector.load("yolov3-tiny", precision="f32")
    image = images.decode((paths.IMAGES / "fruits.jpg").read_bytes())
    here, above = (len(detector.detect(image, c)) for c in (answer, answer + 0.1))
    if here < 2:
        return f"at {answer} the model reports {here} object(s): go lower"
    return f"at {answer + 0.1:.1f} it still reports {above}: go higher" if above >= 2 else None


@check
def count_endpoint(app) -> str | None:
    """server.ipynb: an app whose `POST /count` answers `{"count": number of objects}`."""
    with serve(app, port=0) as server:
        for name, truth in (("two_clocks.png", 2), ("stop_sign.png", 1)):
            response = _post(f"{server.url}/count?model=yolov3-tiny", name)
            if not response.ok:
                return f"POST /count answered {response.status_code}: {response.text[:100]}"
            if response.json() != {"count": truth}:
                return f'for {name} it answered {response.text[:100]}, not {{"count": {truth}}}'
    return None


@check
def alarm_endpoint(app) -> str | None:
    """server.ipynb: an app whose `POST /alarm?label=person` says whether one is in the picture, and knows its labels."""
    with serve(app, port=0) as server:
        for name, label, truth in (("street_1.jpg", "person", True), ("clock.png", "person", False)):
            response = _post(f"{server.url}/alarm?label={label}", name)
            if not response.ok:
                return f"POST /alarm?label={label} answered {response.status_code}: {response.text[:100]}"
            if response.json() != {"alarm": truth}:
                return (
                    f'for a {label} in {name} it answered {response.text[:100]}, not {{"alarm": {str(truth).lower()}}}'
                )
        if (status := _post(f"{server.url}/alarm?label=unicorn", "clock.png").status_code) != 422:
            return f"a label that no model knows got {status}: refuse it with 422, as models.LABELS has no unicorn"
    return None


@check
def confidence_challenge(app, ask: Callable[[str, str, float], requests.Response]) -> str | None:
    """client.ipynb: `app` takes `?confidence=`, and `ask(url, filename, confidence)` sends it."""
    with serve(app, port=0) as server:
        url = f"{server.url}/predict"
        for confidence in (0.2, 0.5):
            expected = _post(f"{url}?model=yolov3-tiny&confidence={confidence}", "fruits.jpg")
            if not expected.ok:
                return f"the server answered {expected.status_code} at confidence={confidence}: {expected.text[:100]}"
            answer = ask(url, "fruits.jpg", confidence)
            if answer.content != expected.content:
                return f"the client's answer at confidence={confidence} is not the server's: is it in the URL?"
        if _post(f"{url}?confidence=0.2", "fruits.jpg").content == expected.content:
            return "the server draws the same boxes at 0.2 and 0.5: does detect get the confidence?"
        if _post(f"{url}?confidence=2", "fruits.jpg").status_code != 422:
            return "the server takes confidence=2: Query(ge=0, le=1) refuses it with 422"
    return None


@check
def canary_risk(answer: float) -> str | None:
    """deployment_patterns.ipynb: the share of answers that are errors: a third of a canary's 10 %."""
    if answer is None:
        return "give a number between 0 and 1"
    if abs(answer - 1 / 3) < 0.01:
        return "that is the share among the candidate's answers: how many of all answers are its own?"
    return None if abs(answer - 1 / 30) < 0.002 else f"{answer} is not it: 10 % of the answers, a third of those"


@check
def error_free_decisions(answer: int) -> str | None:
    """automation.ipynb: how many decisions without an error promise at most 1 % errors with 95 % confidence."""
    if not isinstance(answer, int):
        return "give a whole number"
    if (bound := error_bound(0, answer)) > 0.01:
        return f"{answer} decisions without an error may still hide an error rate of {bound:.2%}"
    return None if error_bound(0, answer - 1) > 0.01 else "that is enough, and so is one less"


@check
def price_of_a_look(answer: float, table: "pd.DataFrame") -> str | None:
    """automation.ipynb: the price of a person's look from which on FULL is cheaper than PARTIAL; an error costs 5."""
    if not isinstance(answer, int | float) or not 0 < answer < 100:
        return "give a price, as the 0.2 that a look costs now"

    def cost(degree: str, price: float) -> float:
        row = table[table["degree"] == degree].iloc[0]
        return price * (1 - row["by_model"]) + 5 * row["error"]

    if cost("FULL", 1.02 * answer) >= cost("PARTIAL", 1.02 * answer):
        return f"at {answer} the errors of FULL still cost more than what PARTIAL's looks do: go up"
    return "FULL was cheaper before: go down" if cost("FULL", 0.98 * answer) < cost("PARTIAL", 0.98 * answer) else None


@check
def phones_saved(answer: int) -> str | None:
    """automation.ipynb: of 4,000 phones in shadow, how many fewer does a person look at with the better model?"""
    if not isinstance(answer, int | np.integer):
        return "give a whole number of phones"
    stable, better = _looks("stable"), _looks("better")
    if abs(answer - (stable - better)) <= 5:
        return None
    return f"with the stable model people look at {stable} phones; with the better one it is not {stable - answer}"


@cache
def _looks(name: str) -> int:
    """How many of the phones in shadow a person has to look at, with this model and thresholds of its own."""
    from labsupport import scenarios
    from labsupport.automation import choose_thresholds
    from labsupport.inspection import Inspector

    shadow, inspector = scenarios.inspection(4_000, seed=21), Inspector.load(name)
    confidences = np.array([inspector.score(picture) for picture in shadow.images])
    return int((~choose_thresholds(shadow.truth, confidences, max_error=0.02).sure(confidences)).sum())


@check
def drifted_columns(answer: set[str]) -> str | None:
    """drift.ipynb: which columns of the shop have changed."""
    if not isinstance(answer, set | frozenset | list | tuple):
        return "give a set of column names"
    if extra := set(answer) - {"price"}:
        return f"{', '.join(sorted(extra))} comes from the same distribution as before: is its adjusted p-value below 0.05?"
    return None if answer else "one column has changed: drift.compare(last_week, today).features"


@check
def cheapest_limit(answer: float) -> str | None:
    """drift.ipynb: the CUSUM's limit with the lowest cost in 10,000 samples, of false alarms and of one shift's delay."""
    if not isinstance(answer, int | float) or not 0 < answer <= 20:
        return "give a number between 0 and 20"

    def cost(h: float) -> float:
        return 10_000 / cusum_run_length(0.0, 0.5, h) + cusum_run_length(1.0, 0.5, h) / 20

    best = min(np.arange(0.5, 20.5, 0.5), key=cost)
    if abs(answer - best) <= 0.25:
        return None
    wrong = "a lower" if answer > best else "a higher"
    return f"{answer} costs {cost(answer):.2f} hours in 10,000 samples: {wrong} limit costs less"


@check
def own_detector(is_drift: Callable[[np.ndarray, np.ndarray], bool]) -> str | None:
    """drift.ipynb: at most 5 % false alarms on 10 columns, and 80 % of the shifts by half a standard deviation found."""
    random = np.random.default_rng(9)
    false, found = 0, 0
    for _ in range(200):
        reference, current = random.normal(size=(2, 200, 10))
        false += bool(is_drift(reference, current))
        current[:, random.integers(10)] += 0.5
        found += bool(is_drift(reference, current))
    if false > 0.05 * 200 + 7:  # two standard errors more than is allowed
        return f"it alarms in {false} of 200 windows in which nothing has changed: correct for the ten columns"
    return None if found >= 160 else f"it finds {found} of 200 shifts: at least 160 are wanted"


@check
def bright_rule(rule: AlertRule) -> str | None:
    """monitoring.ipynb: an alarm for a camera that looks into the sun."""
    if not isinstance(rule, AlertRule):
        return "give an AlertRule"
    wanted = {"name": "Bright", "metric": "brightness_mean", "above": 0.8, "window": 600, "hold": 120, "clear": 0.7}
    wanted["severity"] = "ticket"
    wrong = [f"{name} is {getattr(rule, name)!r}" for name, value in wanted.items() if getattr(rule, name) != value]
    return f"{', '.join(wrong)}: read the exercise again" if wrong else None


def two_windows() -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """monitoring.ipynb: what a log might say of two hours; in the second one users correct more."""
    import pandas as pd

    windows = []
    for seed, content in ((1, 0.97), (2, 0.85)):
        random = np.random.default_rng(seed)
        columns = {"brightness": random.normal(0.45, 0.08, 600), "objects": random.poisson(3, 600)}
        columns |= {"confidence": 0.5 + 0.5 * random.beta(3, 2, 600), "correct": random.random(600) < content}
        windows.append(pd.DataFrame(columns))
    return windows[0], windows[1]


@check
def whose_fault(answer: str) -> str | None:
    """monitoring.ipynb: is it the pictures, the model, or what users expect of it?"""
    if answer not in ("input", "model", "concept"):
        return 'give "input", "model" or "concept"'
    hints = {
        "input": "compare brightness: if the pictures had changed, it would show",
        "model": "compare objects and confidence: what the model says is what it used to say",
    }
    return hints.get(answer)


@check
def null_gate(gate: Gate) -> str | None:
    """deployment_patterns.ipynb: a gate that rolls back who finds nothing much more often than the stable version."""
    if gate.min_requests < 50:
        return f"it decides on {gate.min_requests} requests: min_requests=50 at least"
    if (verdict := gate.judge(_nulls(0.1), "v1", "v2").verdict) != "promote":
        return f"to a candidate as good as the stable version it says {verdict}, not promote"
    if (verdict := gate.judge(_nulls(0.5), "v1", "v2").verdict) != "rollback":
        return f"to one that finds nothing in half of its pictures it says {verdict}: which metric, and which failure_limit?"
    return None


@check
def ramp_by_request(url: str) -> str | None:
    """deployment_patterns.ipynb: a server of one's own, on which a ramp was begun with PUT /rollout."""
    if not isinstance(url, str):
        return "give the address of your server, such as http://127.0.0.1:8123"
    try:
        state = requests.get(f"{url.rstrip('/')}/rollout", timeout=10).json()
    except requests.RequestException as error:
        return f"nobody answers there ({type(error).__name__}): does your server run?"
    if state.get("mode") == "canary" or state.get("action") in ("promote", "rollback"):
        return None
    return f"it says {state.get('phase', state)}, and no candidate answers anybody: what did PUT /rollout answer?"


@check
def firings(calls: Callable[..., int]) -> str | None:
    """monitoring.ipynb: how often a rule fires in an hour of traffic that is looked at every 15 seconds."""
    from labsupport import incidents
    from labsupport.alerts import Alarms

    nervous = AlertRule("Nervous", "brightness_mean", below=0.46, window=30, hold=0, clear=0.461)
    patient = AlertRule("Patient", "brightness_mean", below=0.46, window=30, hold=120, clear=0.461)
    for rule, seed in ((nervous, 1), (patient, 1), (nervous, 2)):
        traffic = incidents.simulate(seed=seed, seconds=3_600)
        watch = Alarms([rule], traffic)
        for now in range(0, 3_601, 15):
            watch.evaluate(now)
        truth = sum(event.event == "fired" for event in watch.history)
        if (answer := calls(rule, traffic)) != truth:
            return f"the rule {rule.name} fires {truth} times in the hour of seed {seed}, not {answer}"
    return None


@check
def pipeline_level(answer: float) -> str | None:
    """pipeline_monitoring.ipynb: the level of each test in a pipeline of nine stages, of which one look in 20 may err."""
    if not isinstance(answer, float):
        return "give a share between 0 and 1"
    if abs(answer - 0.05 / 9) < 1e-4:
        return "there are nine stages: what else is tested?"
    return None if abs(answer - 0.005) < 1e-6 else f"{answer} is not it: the levels of all tests add up to 0.05"


@check
def order_of_clicks(describe: Callable[[list[str]], dict]) -> str | None:
    """pipeline_monitoring.ipynb: figures of a visit that change if the logging sorts its clicks, and only then."""
    from labsupport import clickstream, drift

    before, same, other = (clickstream.visits(200, seed=seed).clicks for seed in (71, 72, 73))
    seen = [[dict(describe(list(clicks))) for clicks in visits] for visits in (before, same, map(sorted, other))]
    columns = [{name: [row.get(name) for row in rows] for name in seen[0][0]} for rows in seen]
    if drift.compare(columns[0], columns[1], alpha=0.001).drifted:
        return "it raises an alarm where nothing has changed"
    if not drift.compare(columns[0], columns[2], alpha=0.001).drifted:
        return "sorted clicks look like the others to it: how do neighbours in a list tell whether it is sorted?"
    return None


@check
def two_changes(answer: list[str]) -> str | None:
    """pipeline_monitoring.ipynb: who changed, if the microphone is noisier and the recogniser is version 2."""
    if not isinstance(answer, (list, tuple)):
        return 'give the names as a list, as in ["vad"]'
    if missing := {"input", "recogniser"} - set(answer):
        return f"{' and '.join(sorted(missing))} is missing: use report.named('changed')"
    return "the detection is as it was, it inherited its change" if "vad" in answer else None


@check
def night_hours(answer: float) -> str | None:
    """batch_or_realtime.ipynb: two million pictures at 100 a second, in hours."""
    if not isinstance(answer, int | float):
        return "give a number of hours"
    return None if abs(answer - 50 / 9) < 0.1 else f"{answer} hours are {answer * 3600 * 100:,.0f} pictures"


@check
def fewest_machines(machines: Callable[[list[int], int, int], int]) -> str | None:
    """batch_or_realtime.ipynb: the fewest machines with which no picture waits longer than it may."""
    random = np.random.default_rng(4)
    for patience in (0, 1, 3, 8):
        arrivals = random.integers(0, 9_000, 24).tolist()
        fewest = next(count for count in range(1, 100) if _in_time(arrivals, 1_000 * count, patience))
        if (answer := machines(list(arrivals), 1_000, patience)) != fewest:
            wrong = "too few" if answer < fewest else "more than it takes"
            return (
                f"{answer} machines are {wrong} with patience={patience}: what is still waiting at the end of an hour?"
            )
    return None


def _in_time(arrivals: list[int], capacity: int, patience: int) -> bool:
    """Is what came in each hour done `patience` hours after it? First come, first served."""
    waiting = []  # (hour, pictures), the oldest first
    for hour in range(len(arrivals) + patience + 1):
        waiting.append((hour, arrivals[hour] if hour < len(arrivals) else 0))
        left = capacity
        while waiting and left >= waiting[0][1]:
            left -= waiting.pop(0)[1]
        if waiting:
            waiting[0] = (waiting[0][0], waiting[0][1] - left)
            if waiting[0][0] + patience <= hour:
                return False
    return True


@check
def files_to_repeat(again: Callable[["pd.DataFrame", str], list[str]]) -> str | None:
    """batch_or_realtime.ipynb: the files of a table that the next batch must look at again."""
    import pandas as pd

    rows = [
        ("a.jpg", None, "v2", None),
        ("belt.avi", 0, "v2", None),
        ("belt.avi", 10, "v1", None),
        ("belt.avi", 20, "v1", None),
        ("broken.jpg", None, "v2", "UnsupportedImage: the picture is damaged"),
        ("gone.jpg", None, "v2", "FileNotFoundError: No such file or directory"),
        ("locked.jpg", None, "v2", "PermissionError: Permission denied"),
        ("old.jpg", None, "v1", None),
    ]
    answer = list(again(pd.DataFrame(rows, columns=["file", "frame", "version", "error"]), "v2"))
    wanted = ["belt.avi", "gone.jpg", "locked.jpg", "old.jpg"]
    if missing := [name for name in wanted if name not in answer]:
        return f"{', '.join(missing)} is missing"
    if extra := sorted(set(answer) - set(wanted)):
        return f"{', '.join(extra)} would be looked at again, and say the same"
    return None if answer == wanted else f"{answer}: each file once, in the table's order"


@check
def load_after_a_loss(answer: float) -> str | None:
    """scale.ipynb: four machines at 60 % load; what is the load of the others when one is lost?"""
    if answer is None or not 0 < answer < 2:
        return "give a share: 0.6 is 60 %"
    if abs(answer - 0.6) < 1e-3:
        return "the requests of the lost one go to the others"
    return None if abs(answer - 0.8) < 1e-3 else f"{answer}: the load of four machines, on three"


@check
def machines_with_spares(machines: Callable[[float, float, int], int]) -> str | None:
    """scale.ipynb: `machines(rate, each, lost)`: the fewest that answer `rate` at 80 % load when `lost` of them are gone."""
    for rate, each, lost in ((100, 50, 0), (100, 50, 1), (1_000, 90, 2), (40, 100, 1), (80, 100, 3)):
        fewest = next(count for count in range(lost + 1, 100) if rate <= 0.8 * each * (count - lost) + 1e-9)
        if (answer := machines(rate, each, lost)) != fewest:
            wrong = "too few" if answer < fewest else "more than it takes"
            return f"{answer} machines are {wrong} for rate={rate}, each={each}, lost={lost}"
    return None


@check
def asked_again(ask: Callable[[list[Callable], object], object]) -> str | None:
    """scale.ipynb: `ask(replicas, picture)`: the answer of the first replica that lives; ConnectionError if none does."""
    asked = []

    def replica(name: str, answer):
        def detect(picture):
            asked.append(name)
            if isinstance(answer, Exception):
                raise answer
            return f"{answer} in {picture}"

        return detect

    dead, alive = replica("dead", ConnectionError("its node is gone")), replica("alive", "a cat")
    if (answer := ask([dead, dead, alive, alive], "clock.png")) != "a cat in clock.png":
        return f"with two dead replicas and two living ones it answered {answer!r}, not 'a cat in clock.png'"
    if asked != ["dead", "dead", "alive"]:
        return f"it asked {', '.join(asked)}: each once, in order, until one has answered"
    with contextlib.suppress(ConnectionError):
        return f"all are dead, and it answered {ask([dead, dead], 'clock.png')!r}: raise ConnectionError"
    asked.clear()
    with contextlib.suppress(ValueError):
        return f"no picture, and it answered {ask([replica('first', ValueError('no picture')), alive], 'a')!r}"
    return None if asked == ["first"] else "what is wrong with the picture is wrong at every replica: do not ask again"


def _nulls(share: float) -> Outcomes:
    """1,000 requests of v1, which finds nothing in one of ten, and as many of v2, which finds nothing in this share."""
    number = np.arange(2_000)
    version = np.where(number % 2, "v2", "v1")
    null = number // 2 % 10 < np.where(number % 2, 10 * share, 1)
    fine = np.zeros(2_000, bool)
    return Outcomes(number.astype(float), version, fine, np.full(2_000, 0.01), null, fine)


def _post(url: str, name: str) -> requests.Response:
    with (paths.IMAGES / name).open("rb") as picture:
        return requests.post(url, files={"file": picture}, timeout=30)
