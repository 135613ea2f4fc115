"""Alarms: the measures beside pandas, the states beside a plain reading of the rules, the promises beside simulations."""

import itertools
import math
import socket
import threading
import time
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pytest
import requests
from scipy import stats

from labsupport.log import PredictionLog
from labsupport.monitoring import DEFAULT_RULES, MEASURES, Alarms, AlertRule, learned
from labsupport.monitoring.learned_limits import learn_limit, mean_limit, p95_limit
from labsupport.monitoring.measures import DRIFTING
from labsupport.monitoring.timeline import replayed
from labsupport.scenarios import incidents, simulate
from labsupport.scenarios.incidents import HOUR, INCIDENTS, Traffic

DAY = 24 * HOUR
RULES = {rule.name: rule for rule in DEFAULT_RULES}
WITHOUT_DRIFT = [rule for rule in DEFAULT_RULES if rule.metric != "drift"]
DARK = AlertRule("Dark", "brightness_mean", below=0.2, clear=0.3, window=60, hold=120, min_rows=5, cure="Look.")


def brightness(values, times=None):
    """A log of nothing but brightness: one row a second unless it is said when."""
    times = np.arange(len(values)) if times is None else times
    rows = {"time": np.asarray(times, float), "brightness": np.asarray(values, float)}
    return Traffic(rows, np.full(len(times), np.nan))


# measures


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Some traffic with a bit of everything, and the same in a log."""
    traffic = simulate("failing model", start=60, seconds=100, rate=40, seed=3)  # more than the slots can do
    with PredictionLog(f"sqlite:///{tmp_path_factory.mktemp('alerts')}/log.db") as log:
        traffic.write(log, began=1_000_000)
        yield traffic, log


def by_pandas(frame, name):
    """What the metric's name says, in a data analyst's words."""
    frame = frame.assign(error=frame.error.fillna(""))
    good = frame[frame.status == 200]
    match name:
        case "error_ratio":
            tried = frame[(frame.status == 200) | (frame.error == "RuntimeError")]
            return (tried.status == 500).mean()
        case "refused_ratio":
            return (frame.error == "Overloaded").mean()
        case "undecodable_ratio":
            return (frame.error == "UnsupportedImage").mean()
        case "latency_p95":
            return good.latency.quantile(0.95)
        case "requests_per_second":
            return len(frame) / 40
        case "brightness_mean":
            return good.brightness.mean()
        case "empty_ratio":
            return (good.detections.str.len() == 0).mean()
        case "detections_mean":
            return good.detections.str.len().mean()
        case "confidence_mean":
            return good.detections.map(lambda found: max((one.confidence for one in found), default=None)).mean()
        case "wrong_ratio":
            return ((good.correct == False) | good.labels.notna()).fillna(False).mean()  # noqa: E712
        case "retry_ratio":
            return good.retry.fillna(False).astype(bool).mean()


@pytest.mark.parametrize("name", [name for name in MEASURES if name != "drift"])
def test_a_measure_of_the_log_is_what_pandas_makes_of_its_frame(written, name):
    traffic, log = written
    frame, measure = log.frame(since=1_000_060, until=1_000_100), MEASURES[name]
    value, rows, _ = measure.read(log.columns(*measure.columns, since=1_000_060, until=1_000_100), window=40)
    assert value == pytest.approx(by_pandas(frame, name), rel=1e-9)
    assert value > 0 and 0 < rows <= len(frame)
    if measure.group != "user":  # the log does not say when somebody spoke
        simulated = measure.read(traffic.columns(*measure.columns, since=60, until=100), window=40)
        assert simulated == pytest.approx((value, rows, ""))


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_where_there_is_nothing_to_measure_a_measure_says_so(measure):
    columns = ("status", *measure.columns)
    empty = {name: [] for name in columns}
    assert measure.read(empty, 60) == (measure.nothing, 0, "")
    missing = {name: [None] * 30 for name in columns}
    assert measure.read(missing, 60).value in (None, 0.0, 0.5)
    if measure.name not in ("refused_ratio", "undecodable_ratio", "requests_per_second"):  # which are about all rows
        assert measure.read(missing, 60).value is None


def test_every_group_of_metrics_has_a_rule_and_every_rule_says_what_to_do():
    assert {rule.measure.group for rule in DEFAULT_RULES} == {"software", "input", "output", "user", "drift"}
    assert all(len(rule.cure.split()) > 5 for rule in DEFAULT_RULES)
    assert len(RULES) == len(DEFAULT_RULES)


# rules


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"name": "too dark"}, "'too dark' is no name"),
        ({"metric": "darkness"}, "no metric 'darkness': there are error_ratio, "),
        ({"above": 0.5}, "one limit"),
        ({"below": None}, "one limit"),
        ({"name": 5}, "name=5 is no name"),
        ({"metric": []}, r"no metric \[\]"),
        ({"severity": []}, r"no severity \[\]"),
        ({"below": math.nan}, "below=nan: give a finite number"),
        ({"hold": math.inf}, "hold=inf: give a finite number"),
        ({"below": "0.2"}, "below='0.2': give a finite number"),
        ({"window": timedelta(minutes=5)}, "window=datetime.timedelta.*: give a finite number"),
        ({"min_rows": None}, "min_rows=None: give a finite number"),
        ({"clear": 0.1}, "clear=0.1 lies beyond the limit, 0.2"),
        ({"window": 0}, "window is more than 0"),
        ({"hold": -1}, "hold is not negative"),
        ({"min_rows": 0}, "min_rows is at least 1"),
        ({"severity": "urgent"}, "no severity 'urgent': there are page, ticket"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        replace(DARK, **wrong)


def test_a_reference_that_lacks_a_column_is_refused():
    reference = {name: [] for name in MEASURES["drift"].columns}
    Alarms([RULES["Drift"]], None, reference=reference)
    with pytest.raises(ValueError, match=r"reference lacks status, brightness: give log.columns"):
        Alarms([], None, reference={name: [] for name in reference if name not in ("status", "brightness")})


def test_a_reference_is_converted_once_or_refused(tmp_path):
    columns = {name: [1.0] * 100 for name in MEASURES["drift"].columns} | {"key": ["a", None] * 50}
    assert all(len(column) == 100 for column in Alarms([], None, reference=columns).reference.values())
    with pytest.raises(ValueError, match=r"reference has columns of different lengths: give log.columns"):
        Alarms([], None, reference={**columns, "status": [200] * 5})
    with pytest.raises(ValueError, match=r"reference has values that are neither numbers, texts nor None: give"):
        Alarms([], None, reference={**columns, "status": ["ok", 5] * 50})
    with PredictionLog(tmp_path / "log.db") as log:
        log.record(id="a", version="v", latency=0.1, detections=None, features=None, key="k", status=500)
        log.record(id="b", version="v", latency=0.1, detections=[], features=None)
        log.flush()
        with pytest.raises(ValueError, match=r"neither numbers, texts nor None: give log.columns"):
            Alarms(DEFAULT_RULES, log, reference=log.frame())


def test_rules_may_come_from_anything_that_yields_them():
    bright = brightness([0.1] * 300)
    for alarms in (Alarms(iter([DARK]), bright), replayed(iter([DARK]), bright.rows, 0, 300)):
        assert alarms.rules == (DARK,)
        alarms.evaluate(300)
        assert alarms.states["Dark"] in ("pending", "firing")


@pytest.mark.parametrize("rules", [["Dark"], [DARK, None], [Alarms]])
def test_what_is_no_rule_is_refused(rules):
    with pytest.raises(ValueError, match=r"rules: .*: give a list of AlertRule"):
        Alarms(rules, brightness([]))


def test_answers_of_which_nothing_is_known_are_no_answers_with_something_in_them():
    columns = {"status": [200] * 100, "n_detections": [0] * 30 + [None] * 60 + [2] * 10}
    assert MEASURES["empty_ratio"].read(columns, 60)[:2] == (0.75, 40)


def test_two_rules_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two rules are called Dark"):
        Alarms([DARK, DARK], brightness([]))


# states


def expected_firing(rule, values):
    """Minute by minute, from the rule's words: due for `hold` seconds at every look, then until it is past `clear`."""
    firing, due, told = False, 0, []
    for value in values:
        if firing:
            firing = value is None or value < rule.clear
            due = 0
        else:
            due = due + 1 if value is not None and value < rule.below else 0
            firing = (due - 1) * 60 >= rule.hold
        told.append(firing)
    return told


@pytest.mark.parametrize("seed", range(20))
def test_alarms_stand_as_the_rule_says(seed):
    random = np.random.default_rng(seed)
    values = [None if random.random() < 0.15 else float(value) for value in random.choice([0.1, 0.1, 0.25, 0.4], 150)]
    times = [60 * minute + second for minute, value in enumerate(values) if value is not None for second in range(30)]
    alarms = Alarms([DARK], brightness([values[time // 60] for time in times], times))
    told = []
    for minute in range(1, len(values) + 1):
        events = alarms.evaluate(now=60 * minute)
        told.append(alarms.firing == ("Dark",))
        assert bool(events) == (told[-1] != ([False, *told])[-2])
    assert told == expected_firing(DARK, values)
    kinds = [event.event for event in alarms.history]
    assert kinds == ["fired", "cleared"] * (len(kinds) // 2) + ["fired"] * (len(kinds) % 2)  # once each
    assert any(told)


def test_an_alarm_says_why_when_it_comes_and_when_it_goes():
    log = brightness([0.4] * 60 + [0.1] * 240 + [0.4] * 60)
    alarms = Alarms([replace(DARK, hold=0)], log)
    for now in range(30, 391, 30):
        alarms.evaluate(now=now)
    fired, cleared = alarms.history
    assert (fired.time, fired.event, fired.severity, fired.value) == (120, "fired", "ticket", pytest.approx(0.1))
    assert fired.text == "Dark fired: brightness_mean is 0.1 over the last 1 minute (60 rows), limit 0.2. Look."
    assert cleared.text == (
        "Dark cleared: brightness_mean is 0.4 over the last 1 minute (60 rows), it had to come back past 0.3."
    )
    (row,) = alarms.to_frame().to_dict("records")
    assert (row["alarm"], row["state"], row["limit"], row["clear"]) == ("Dark", "inactive", 0.2, 0.3)
    assert row["since"].timestamp() == cleared.time


def test_what_cannot_be_measured_neither_fires_nor_clears():
    log = brightness([0.1] * 60)
    quick = replace(DARK, hold=0)
    alarms = Alarms([quick], log)
    assert [event.event for event in alarms.evaluate(now=60)] == ["fired"]
    assert alarms.evaluate(now=600) == [] and alarms.firing == ("Dark",)
    assert alarms.status["Dark"].reading.value is None
    slow = Alarms([DARK], log)
    slow.evaluate(now=60)
    assert slow.states == {"Dark": "pending"}
    assert slow.evaluate(now=600) == [] and slow.states == {"Dark": "inactive"}
    few = Alarms([replace(quick, min_rows=61)], log)
    assert few.evaluate(now=60) == []


def test_no_traffic_is_a_measurement():
    idle = AlertRule("Idle", "requests_per_second", below=0.1, window=60, hold=0)
    log = Traffic({"time": np.arange(60.0), "status": np.full(60, 200.0)}, np.full(60, np.nan))
    alarms = Alarms([idle], log)
    assert [bool(alarms.evaluate(now=now)) for now in (60, 119, 200)] == [False, True, False]
    assert alarms.firing == ("Idle",)


def test_a_look_back_in_time_changes_nothing():
    alarms = Alarms([replace(DARK, hold=0)], brightness([0.4] * 60 + [0.1] * 60))
    assert alarms.evaluate(now=120)
    assert alarms.evaluate(now=60) == [] and alarms.firing == ("Dark",)


def test_many_who_ask_at_once_hear_of_an_alarm_once():
    traffic, inside, most, heard = brightness([0.1] * 60), [], [], []

    def columns(*names, since, until):
        inside.append(1)
        time.sleep(0.01)  # another one would come in here
        most.append(len(inside))
        inside.pop()
        return traffic.columns(*names, since=since, until=until)

    alarms = Alarms([replace(DARK, hold=0)], SimpleNamespace(columns=columns), clock=lambda: 60.0)
    threads = [threading.Thread(target=lambda: heard.extend(alarms.evaluate())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(heard) == 1 == len(alarms.history)
    assert most == [1] * 8


def test_a_real_log_is_read_up_to_now(tmp_path):
    with PredictionLog(f"sqlite:///{tmp_path}/log.db") as log:
        simulate(seconds=400, seed=1).write(log, began=1_000_000)
        alarms = Alarms(WITHOUT_DRIFT, log, clock=itertools.count(1_000_300, 15).__next__)
        assert alarms.evaluate() == alarms.evaluate() == []
        frame = alarms.to_frame().set_index("alarm")
        assert frame.loc["Overloaded", "rows"] > 400
        assert frame.loc["UsersRetry", "value"] > 0


# learned limits


@pytest.mark.parametrize(("rows", "coming"), [(7_200, 300), (7_200, 600), (2_000, 100)])
@pytest.mark.parametrize("rate", [1e-2, 1e-3, 2.5e-5])
def test_a_learned_share_is_passed_no_more_often_than_promised_whatever_the_true_share_is(rows, coming, rate):
    """Exactly: summed over what the healthy period may have shown, with SciPy's binomial distribution."""
    windows = 12
    seen = np.arange(200)
    shares = [np.full(windows, count / rows) for count in seen]
    limits = [learn_limit(share, rate, counts=([rows / windows] * windows, coming)) for share in shares]
    for true in np.geomspace(1e-5, 0.01, 15):
        passed = stats.binom.sf(np.round(np.array(limits) * coming), coming, true)
        assert stats.binom.pmf(seen, rows, true) @ passed <= rate


@pytest.mark.parametrize("upper", [True, False])
@pytest.mark.parametrize("windows", [10, 12, 40])
def test_a_learned_limit_is_passed_as_often_as_promised(windows, upper):
    """200,000 healthy periods of normal values; 0.02 is promised for the value after each."""
    random = np.random.default_rng(windows)
    reaches = []  # in standard deviations from the mean: the same, whatever the values
    for past in (random.normal(5, 2, windows), random.normal(-1, 0.1, windows)):
        reaches.append((learn_limit(past, 0.02, upper) - past.mean()) / past.std(ddof=1))
    assert reaches[0] == pytest.approx(reaches[1])
    values = random.normal(0, 1, (200_000, windows))
    limits = values.mean(axis=1) + reaches[0] * values.std(axis=1, ddof=1)
    coming = random.normal(0, 1, 200_000)
    passed = np.mean(coming > limits if upper else coming < limits)
    assert passed == pytest.approx(0.02, abs=4 * math.sqrt(0.02 / 200_000))


@pytest.mark.parametrize("upper", [True, False])
def test_a_limit_for_means_holds_for_windows_of_many_rows_and_of_few(upper):
    """1,000 healthy periods, half of whose windows have a tenth of the rows; 0.01 is promised for the window after each."""
    random, rows, passed, pooled = np.random.default_rng(1), np.array([100, 10] * 10), 0, 0
    for _ in range(1_000):
        windows = [random.normal(random.normal(0, 0.1), 1, count) for count in rows]
        coming = random.normal(random.normal(0, 0.1), 1, random.choice(rows)).mean()
        for limit, kind in (
            (mean_limit(windows, 0.01, upper), "mean"),
            (learn_limit([w.mean() for w in windows], 0.01, upper), ""),
        ):
            beyond = coming > limit if upper else coming < limit
            passed, pooled = (passed + beyond, pooled) if kind else (passed, pooled + beyond)
    assert 0 < passed / 1_000 < 0.01 + 3 * math.sqrt(0.01 / 1_000)
    assert passed < pooled  # of the means alone nobody can tell windows of many rows from those of few


@pytest.mark.parametrize("upper", [True, False])
@pytest.mark.parametrize("rows", [[30] * 40, [30, 41, 60, 200] * 10])
def test_a_limit_for_percentiles_holds_whatever_the_distribution(rows, upper):
    """400 healthy periods of exponential values; 0.05 is promised, and the percentile is NumPy's own."""
    random, passed = np.random.default_rng(2), 0
    for _ in range(400):
        limit = p95_limit([random.exponential(size=count) for count in rows], 0.05, upper)
        coming = np.percentile(random.exponential(size=random.choice(rows)), 95)
        passed += coming > limit if upper else coming < limit
    assert 0.005 < passed / 400 < 0.05 + 3 * math.sqrt(0.05 / 400)


def test_too_few_rows_to_know_a_percentile_are_refused():
    with pytest.raises(ValueError, match="300 rows to learn a 95th percentile from are too few"):
        p95_limit([np.arange(30.0)] * 10, 2.5e-5)


def test_a_limit_that_nothing_can_pass_is_refused():
    light_and_dark = brightness(np.tile(np.repeat([0.5, 0.1], 60), 6))
    with pytest.raises(
        ValueError, match=r"Dark: no brightness_mean can pass -\d.*: give a longer window, a more even period"
    ):
        learned(DARK, light_and_dark, 0, 720)
    rows = {
        "time": np.arange(720.0),
        "status": np.full(720, 200.0),
        "n_detections": np.tile(np.repeat([0.0, 1.0], 60), 6),
    }
    with pytest.raises(ValueError, match="NothingFound: no empty_ratio can pass 1, because"):
        learned(replace(RULES["NothingFound"], window=60), Traffic(rows, np.full(720, np.nan)), 0, 720)


def test_missing_values_do_not_hide_that_the_rest_changed():
    random = np.random.default_rng(0)

    def rows(share, count):
        columns = {name: random.random(count) for name in DRIFTING}
        return {**columns, "status": np.full(count, 200.0), "brightness": columns["brightness"] * share}

    drift, now = replace(MEASURES["drift"], reference=rows(1, 2000)), rows(0.5, 200)
    assert drift.read(now, 60).value < 1e-5
    now["brightness"][np.arange(200) % 5 < 3] = np.nan
    reading = drift.read(now, 60)
    assert reading.value < 1e-5 and reading.note == "brightness"


@pytest.mark.parametrize(("missing", "note"), [(1.0, "sharpness"), (0.3, "sharpness"), (0.2, "")])
def test_a_feature_that_is_missing_drifts_if_a_quarter_of_it_is(missing, note):
    random = np.random.default_rng(0)
    rows = {name: random.random(2000) for name in DRIFTING} | {"status": np.full(2000, 200.0)}
    now = {name: values[:1000].copy() for name, values in rows.items()}
    now["sharpness"][: int(1000 * missing)] = np.nan
    reading = replace(MEASURES["drift"], reference=rows).read(now, 60)
    assert reading.note == note and (reading.value < 1e-5) == bool(note)


def test_nights_with_few_rows_raise_no_more_alarms_than_promised():
    """A day and a week after it, 20 times: 2 requests a second by day, 0.1 by night. One alarm a week is promised."""
    alarms = 0
    for seed in range(20):
        random = np.random.default_rng(seed)
        times = np.sort(random.uniform(0, 8 * DAY, 1_382_400))
        times = times[(times % DAY < DAY / 2) | (random.random(len(times)) < 0.05)]
        log = Traffic({"time": times, "brightness": random.normal(0.5, 0.1, len(times))}, np.full(len(times), np.nan))
        rule = learned(replace(RULES["Dark"], hold=0), log, 0, DAY)
        ends = np.arange(DAY + rule.window, 8 * DAY, 15)
        first, last = np.searchsorted(times, [ends - rule.window, ends])
        total = np.concatenate([[0], np.cumsum(log.columns("brightness", since=0, until=9 * DAY)["brightness"])])
        means = (total[last] - total[first]) / np.maximum(1, last - first)
        beyond = (means < rule.limit) & (last - first >= rule.min_rows)
        alarms += beyond[0] + (beyond[1:] & ~beyond[:-1]).sum()
    assert alarms / 20 <= 1


def test_windows_that_hang_together_are_said():
    times = np.arange(0, 4 * HOUR, 1.0)
    log = Traffic({"time": times, "brightness": 0.5 + 0.1 * np.sin(times / HOUR)}, np.full(len(times), np.nan))
    with pytest.warns(UserWarning, match="say as much as . independent ones"):
        learned(RULES["Dark"], log, 0, 4 * HOUR)


def test_looks_that_overlap_raise_no_more_alarms_than_promised():
    """30 services learn from an hour and are watched for four, every 15 s: two false alarms each may be, on average."""
    rule = AlertRule("Slow", "latency_p95", above=1.0, clear=0.8, window=300, hold=0)
    alarms, limits = [], []
    for seed in range(30):
        random = np.random.default_rng(seed)
        times = np.sort(random.uniform(0, 5 * HOUR, 9_000))
        rows = {"time": times, "status": np.full(9_000, 200.0), "latency": random.lognormal(-3, 0.4, 9_000)}
        log = Traffic(rows, np.full(9_000, np.nan))
        found = learned(rule, log, 0, HOUR, every=15, false_alarms=2, period=4 * HOUR)
        p95 = [
            np.percentile(log.columns("latency", since=now - 300, until=now)["latency"], 95)
            for now in np.arange(HOUR + 300, 5 * HOUR, 15)
        ]
        beyond = np.array(p95) > found.limit
        alarms.append(beyond[0] + (beyond[1:] & ~beyond[:-1]).sum())
        limits.append(found.limit)
    assert 0 < np.mean(alarms) <= 2
    assert np.mean(limits) < 0.2  # the true p95 is 0.096


def test_a_rule_learns_from_a_healthy_hour_and_keeps_the_rest():
    healthy, later = simulate(seconds=HOUR, seed=1), simulate("darkness", seed=2)
    rule = learned(RULES["Dark"], healthy, 0, HOUR)
    assert 0.2 < rule.limit < rule.clear < 0.46
    assert replace(rule, below=0.2, clear=0.25, min_rows=20) == RULES["Dark"]
    delays = [named(Alarms([one], later), 0, HOUR + 900)["Dark"] for one in (rule, RULES["Dark"])]
    assert HOUR < delays[0] < delays[1]  # closer, so it is sooner


def test_a_share_that_was_never_seen_gets_a_limit_above_one_row():
    log = Traffic({"time": np.arange(3600.0), "status": np.full(3600, 200.0)}, np.full(3600, np.nan))
    rule = learned(RULES["ModelFails"], log, 0, HOUR)
    assert 1 < rule.limit * rule.min_rows < 10


@pytest.mark.parametrize(
    ("learn", "says"),
    [
        (lambda: learn_limit([1.0] * 9, 0.01), "9 windows to learn from: give at least 10"),
        (lambda: learn_limit([1.0] * 9 + [math.nan], 0.01), "finite"),
        (lambda: learn_limit([1.0] * 10, 0.7), "between 0 and 0.5"),
        (lambda: learned(RULES["Drift"], simulate(seconds=HOUR), 0, HOUR), "p-value"),
        (lambda: learned(DARK, brightness([]), 0, HOUR), "0 windows"),
        (lambda: learned(DARK, brightness([]), 0, HOUR, every=0), "every=0: give a number above 0"),
        (lambda: learned(DARK, brightness([]), 0, HOUR, period="week"), "period='week': give a number above 0"),
    ],
)
def test_what_cannot_be_learned_is_refused(learn, says):
    with pytest.raises(ValueError, match=says):
        learn()


# incidents


def test_clients_of_a_server_that_is_gone_raise_their_error_and_nobody_waits(monkeypatch):
    with socket.socket() as taken:  # nobody listens there
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(incidents, "PATIENCE", 3.0)  # without the clients' error: TimeoutError
        with pytest.raises(requests.ConnectionError):
            incidents.send(f"http://127.0.0.1:{taken.getsockname()[1]}", [b"picture"], until=3)


WITHIN = {  # seconds from the incident's start to its alarm
    "darkness": 330,
    "overload": 120,
    "undecodable files": 225,
    "blind model": 300,
    "failing model": 225,
    "users correct": 330,
    "dirty lens": 315,
}


def named(alarms: Alarms, since: float, until: float) -> dict[str, float]:
    """Which alarms fired, and when first."""
    for now in np.arange(since + 15, until + 1, 15):
        alarms.evaluate(now=now)
    fired = [event for event in alarms.history if event.event == "fired"]
    return {event.alarm: event.time for event in reversed(fired)}


@pytest.mark.parametrize("seed", range(4))
def test_nothing_fires_in_a_healthy_hour(seed):
    assert named(Alarms(WITHOUT_DRIFT, simulate(seed=seed)), 0, HOUR) == {}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("incident", INCIDENTS)
def test_an_incident_is_named_by_its_alarm_and_by_no_other(incident, seed):
    fired = named(Alarms(WITHOUT_DRIFT, simulate(incident, seed=seed)), HOUR - 300, HOUR + 900)
    assert list(fired) == [INCIDENTS[incident].alarm]
    assert fired[INCIDENTS[incident].alarm] - HOUR <= WITHIN[incident]


def test_drift_is_seen_beside_a_reference_and_named_with_its_feature():
    reference = simulate(seconds=HOUR, seed=99).columns(*MEASURES["drift"].columns)
    alarms = Alarms([RULES["Drift"]], simulate("darkness", start=900, seconds=1500, seed=1), reference=reference)
    assert 900 < named(alarms, 300, 1500)["Drift"] <= 1320
    assert "limit 1e-05" in alarms.history[0].text
    assert "brightness" in alarms.status["Drift"].reading.note
    blind = Alarms([RULES["Drift"]], simulate("darkness", start=300, seconds=900, seed=1))
    assert named(blind, 0, 900) == {}  # nothing to compare with


def test_users_who_send_many_pictures_of_one_scene_are_no_drift():
    """Their rows hang together, so p-values are smaller than they should be: in this hour one of brightness is 1e-8."""
    reference = simulate(seconds=HOUR, seed=10_000).columns(*MEASURES["drift"].columns)
    assert named(Alarms([RULES["Drift"]], simulate(seed=4), reference=reference), 2100, 2700) == {}


def test_drift_is_computed_again_only_after_half_a_window():
    traffic = simulate(seconds=900, seed=0)
    asked = []
    log = SimpleNamespace(columns=lambda *names, since, until: traffic.columns(*names, since=since, until=until))
    alarms = Alarms([RULES["Drift"]], log, reference=traffic.rows)
    for now in np.arange(300, 901, 15):
        alarms.evaluate(now=now)
        asked.append(alarms.status["Drift"].looked)
    assert sorted(set(asked)) == [300, 450, 600, 750, 900]


def test_an_unknown_incident_is_refused():
    with pytest.raises(ValueError, match="incident='flood': give None, or one of darkness, overload"):
        simulate("flood")


def test_traffic_before_an_incident_is_the_same_without_it():
    calm = simulate(start=300, seconds=600, seed=5).columns("brightness", "status", until=300)
    for incident in INCIDENTS:
        before = simulate(incident, start=300, seconds=600, seed=5).columns("brightness", "status", until=300)
        assert all(np.array_equal(before[name], calm[name], equal_nan=True) for name in calm)
