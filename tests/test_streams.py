"""Streaming detectors against river's own and published run lengths, and the windowed monitor against what it promises."""

import decimal
import itertools
import math
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import polars as pl
import pytest
from river import drift, preprocessing
from river.datasets import synth
from river.drift import datasets
from scipy import stats

from labsupport.drift import (
    ConceptDriftMonitor,
    Cusum,
    DataDriftMonitor,
    NotExpected,
    SerialCorrelation,
    compare_detectors,
    cusum,
    cusum_limit,
    cusum_run_length,
    data_monitor,
    detector_evaluation,
)
from labsupport.drift.detector_evaluation import evaluate

RIVER = {
    "adwin": drift.ADWIN,
    "page-hinkley": drift.PageHinkley,
    "kswin": drift.KSWIN,
    "ddm": drift.binary.DDM,
}
PARAMETERS = {
    "adwin": {"delta": 0.05, "clock": 1},
    "page-hinkley": {"threshold": 10.0, "mode": "up"},
    "kswin": {"alpha": 0.001, "seed": 7},
    "ddm": {"drift_threshold": 2.5, "warm_start": 50},
}


def fired(detector, values) -> list[int]:
    """The indices at which a detector says so, asked from outside."""
    return [index for index, value in enumerate(values) if (detector.update(value), detector.drift_detected)[1]]


# the same alarms as river's


def sea_errors(change: int, count: int) -> list[int]:
    """The errors of a model that was right before the concept changed: SEA, from variant 0 to variant 3."""
    before, after = (synth.SEA(variant=variant, seed=1, noise=0.05) for variant in (0, 3))
    samples = itertools.chain(before.take(change), after.take(count - change))
    return [int((x[0] + x[1] > 8) != y) for x, y in samples]


def friedman(change: int, count: int) -> list[float]:
    samples = synth.FriedmanDrift(drift_type="gsg", position=(change, change + 600), transition_window=100, seed=1)
    return [y for _, y in samples.take(count)]


def agrawal(change: int, count: int) -> list[float]:
    before, after = (synth.Agrawal(classification_function=number, seed=2) for number in (0, 5))
    return [x["salary"] * (1 - 2 * y) for x, y in itertools.chain(before.take(change), after.take(count - change))]


SYNTHETIC = {"sea": sea_errors(1000, 2500), "friedman": friedman(600, 1800), "agrawal": agrawal(800, 1800)}


def real(name: str) -> list[float]:
    """The first number of each sample of a series that river ships, where change points were marked by people."""
    targets = (y for _, y in getattr(datasets, name)())
    return [float(next(iter(y.values())) if isinstance(y, dict) else y) for y in targets]


def test_the_error_streams_have_the_drift_that_they_are_made_for():
    errors = SYNTHETIC["sea"]
    assert np.mean(errors[:1000]) < 0.07 < 0.12 < np.mean(errors[1000:])


@pytest.mark.parametrize("settings", [{}, PARAMETERS], ids=["defaults", "parameters"])
@pytest.mark.parametrize(
    "detector, stream",
    [(name, stream) for name in RIVER for stream in SYNTHETIC if name != "ddm" or stream == "sea"],
)
def test_on_synthetic_streams_it_alarms_where_rivers_own_detector_does(detector, stream, settings):
    parameters = settings.get(detector, {"seed": 1} if detector == "kswin" else {})
    values, monitor = SYNTHETIC[stream], ConceptDriftMonitor(detector, **parameters)
    theirs = fired(RIVER[detector](**parameters), values)
    assert fired(monitor, values) == theirs == monitor.alarms
    assert monitor.n == len(values)


@pytest.mark.parametrize("name", datasets.__all__)
def test_on_the_series_that_river_ships_it_alarms_where_rivers_own_detector_does(name):
    values = real(name)[:2000]
    for detector in ("adwin", "page-hinkley", "kswin"):
        parameters = {"seed": 1} if detector == "kswin" else {}
        theirs = fired(RIVER[detector](**parameters), values)
        assert fired(ConceptDriftMonitor(detector, **parameters), values) == theirs


def test_the_streams_make_every_detector_alarm_or_the_comparison_says_nothing():
    everything = [*SYNTHETIC.values(), *(real(name)[:2000] for name in ("RunLog", "Occupancy"))]
    for name in ("adwin", "page-hinkley", "kswin"):
        assert sum(len(fired(ConceptDriftMonitor(name), values)) for values in everything) >= 3
    assert fired(ConceptDriftMonitor("ddm"), SYNTHETIC["sea"])


def test_its_delays_and_false_alarms_are_those_of_rivers_detectors():
    stream = [(SYNTHETIC["sea"], [1000])]
    ours = {name: lambda name=name: ConceptDriftMonitor(name) for name in ("adwin", "page-hinkley", "ddm")}
    table, theirs = compare_detectors(ours, stream), compare_detectors({name: RIVER[name] for name in ours}, stream)
    pd.testing.assert_frame_equal(table, theirs)
    assert table.loc["adwin", "missed_percent"] == 0


def test_warnings_are_those_of_the_detector_and_never_there_without():
    ours, theirs = ConceptDriftMonitor("ddm"), drift.binary.DDM()
    seen = set()
    for value in SYNTHETIC["sea"]:
        theirs.update(value)
        assert ours.update(value).warning_detected == theirs.warning_detected
        seen.add(ours.warning_detected)
    assert seen == {True, False}
    assert not any(monitor.update(9).warning_detected for monitor in [ConceptDriftMonitor("adwin")] for _ in range(50))


def test_any_object_with_update_and_drift_detected_will_do():
    class Third:
        n = 0

        def update(self, x):
            self.n += 1

        @property
        def drift_detected(self):
            return self.n % 3 == 0

    assert fired(ConceptDriftMonitor(Third()), range(9)) == [2, 5, 8]
    assert fired(ConceptDriftMonitor(drift.binary.EDDM()), SYNTHETIC["sea"]) == fired(
        drift.binary.EDDM(), SYNTHETIC["sea"]
    )


# one scale


@pytest.mark.parametrize("detector", ["adwin", "page-hinkley", "kswin", "cusum"])
def test_brightness_from_0_to_1_and_from_0_to_255_alarms_at_the_same_samples(detector):
    random = np.random.default_rng(3)
    reference = random.normal(0.5, 0.1, 500)
    values = np.concatenate(
        [random.normal(0.5, 0.1, 1000), random.normal(0.42, 0.1, 500), random.normal(0.5, 0.1, 500)]
    )
    parameters = {"seed": 1} if detector == "kswin" else {}
    alarms = []
    for factor, offset in ((1, 0), (255, 0), (-255, 255)):  # the last is the negative
        monitor = ConceptDriftMonitor(detector, reference=factor * reference + offset, **parameters)
        alarms.append(fired(monitor, factor * values + offset))
    assert alarms[0] == alarms[1] and alarms[0]
    assert detector in ("page-hinkley",) or alarms[2] == alarms[0]  # river's Page-Hinkley starts lopsided


class Record:
    """A detector that keeps what it is given."""

    drift_detected = False

    def __init__(self):
        self.given = []

    def update(self, x):
        self.given.append(x)


def test_values_are_standardised_as_river_does_on_the_reference_and_pass_as_they_are_without():
    random = np.random.default_rng(4)
    reference, values = random.gamma(2, 30, 20), random.gamma(2, 50, 50)
    scaler, with_reference, without = preprocessing.StandardScaler(), Record(), Record()
    for value in reference:
        scaler.learn_one({"x": value})
    for value in values:
        ConceptDriftMonitor(with_reference, reference=reference).update(value)
        ConceptDriftMonitor(without).update(value)
    factor = math.sqrt(19 / 20)  # river divides by n, we by n - 1
    assert with_reference.given == pytest.approx([scaler.transform_one({"x": value})["x"] * factor for value in values])
    assert without.given == values.tolist()


@pytest.mark.parametrize(
    "reference, words",
    [
        ([], "0 reference values"),
        ([1.0], "1 reference values"),
        (np.full(100, 0.1), "constant"),  # its deviation is not 0 but 1e-17
        ([5e-324, 0.0], "constant, or"),
        ([1e308, -1e308], "too large"),
        ([1, 2, math.nan], "no row of finite"),
        ([1, 2, math.inf], "no row of finite"),
        (["1", "2"], "no row of finite"),
        ([1, None], "no row of finite"),
        ([[1, 2], [3, 4]], "no row of finite"),
    ],
)
def test_a_reference_that_cannot_be_measured_by_is_refused(reference, words):
    with pytest.raises(ValueError, match=words):
        ConceptDriftMonitor("adwin", reference=reference)


# values and labels


BAD = [math.nan, math.inf, -math.inf, "0.5", None, [1], 10**400, 1j, np.float32("nan"), pd.NA]


@pytest.mark.parametrize("detector", ["adwin", "page-hinkley", "kswin", "ddm", "cusum"])
def test_a_bad_value_is_refused_and_changes_nothing(detector):
    reference = np.random.default_rng(0).random(100) if detector == "cusum" else None
    parameters = {"seed": 1} if detector == "kswin" else {}
    clean, disturbed = (ConceptDriftMonitor(detector, reference=reference, **parameters) for _ in range(2))
    for number, value in enumerate(SYNTHETIC["sea"]):
        if number % 10 == 5:
            with pytest.raises(ValueError, match="is no finite number"):
                disturbed.update(BAD[number // 10 % len(BAD)])
        assert disturbed.update(value).drift_detected == clean.update(value).drift_detected
    assert disturbed.alarms == clean.alarms and disturbed.n == len(SYNTHETIC["sea"])


def test_numbers_of_every_kind_are_numbers():
    kinds = (bool, int, float, np.bool_, np.int8, np.uint64, np.float32, np.float16)
    assert [fired(ConceptDriftMonitor("ddm"), map(kind, SYNTHETIC["sea"])) for kind in kinds] == [
        fired(drift.binary.DDM(), SYNTHETIC["sea"])
    ] * len(kinds)


@pytest.mark.parametrize("detector", ["ddm", drift.binary.HDDMA()])
def test_detectors_of_errors_take_nothing_else(detector):
    with pytest.raises(ValueError, match="takes errors, 0 or 1"):
        ConceptDriftMonitor(detector).update(0.5)
    with pytest.raises(ValueError, match="leave the reference out"):
        ConceptDriftMonitor(detector, reference=[0, 1])


@pytest.mark.parametrize(
    "arguments, parameters, words",
    [
        (["adwim"], {}, "no detector 'adwim': there are adwin, page-hinkley, kswin, ddm and cusum"),
        ([drift.ADWIN], {}, "is no detector"),  # the class, not one of it
        ([object()], {}, "is no detector"),
        ([None], {}, "is no detector"),
        ([drift.ADWIN()], {"delta": 0.1}, "delta: give these to the detector"),
        (["cusum"], {}, "give a reference"),
        (["adwin"], {"max_waiting": 0}, "max_waiting=0"),
        (["adwin"], {"dleta": 0.1}, "dleta: ADWIN takes delta, "),
        (["adwin"], {"delta": "0.1"}, "delta: ADWIN takes delta, "),
        (["page-hinkley"], {"threshold": math.nan}, "threshold=nan: give a number"),
        (["cusum"], {"reference": [0, 1], "limit": 5}, "limit: Cusum takes k, h, two_sided"),
    ],
)
def test_a_detector_that_makes_no_sense_is_refused(arguments, parameters, words):
    with pytest.raises(ValueError, match=words):
        ConceptDriftMonitor(*arguments, **parameters)


def test_labels_that_come_late_and_in_disorder_give_the_errors_in_the_order_of_their_arrival():
    random = np.random.default_rng(5)
    predictions, labels = random.integers(3, size=(2, 2000))
    labels[:1000] = np.where(random.random(1000) < 0.9, predictions[:1000], labels[:1000])
    arrival = np.argsort(np.arange(2000) + random.exponential(50, 2000))
    monitor, due = ConceptDriftMonitor("adwin"), np.empty(2000, int)
    due[arrival] = np.arange(2000)
    for id in range(2000):
        monitor.expect(f"p{id}", predictions[id])
    for id in arrival:
        monitor.arrived(f"p{id}", labels[id])
    assert monitor.alarms == fired(drift.ADWIN(), (predictions != labels)[arrival].astype(int)) != []
    assert (monitor.n, monitor.waiting, monitor.forgotten) == (2000, 0, 0)


def test_predictions_and_labels_may_take_turns():
    monitor = ConceptDriftMonitor("adwin")
    monitor.expect("a", "cat").expect("b", "dog").arrived("a", "cat").expect("c", "dog").arrived("c", "cat")
    assert (monitor.n, monitor.waiting) == (2, 1)


def test_labels_that_never_come_do_not_fill_the_memory():
    monitor = ConceptDriftMonitor("adwin", max_waiting=3)
    for id in range(10):
        monitor.expect(id, "cat")
    assert (monitor.waiting, monitor.forgotten) == (3, 7)
    with pytest.raises(NotExpected, match="6: not expected, labelled already, or older than the 3"):
        monitor.arrived(6, "cat")
    assert monitor.arrived(7, "cat").n == 1


def test_labels_of_no_prediction_and_second_ones_are_refused_and_change_nothing():
    monitor = ConceptDriftMonitor("adwin").expect("a", "cat")
    with pytest.raises(NotExpected):
        monitor.arrived("b", "cat")
    for missing in (None, math.nan, np.float32("nan"), pd.NA, pd.NaT, np.ma.masked, decimal.Decimal("NaN")):
        with pytest.raises(ValueError, match="label is missing"):
            monitor.arrived("a", missing)
    with pytest.raises(ValueError, match="waits for its label already"):
        monitor.expect("a", "dog")
    assert (monitor.n, monitor.waiting) == (0, 1)
    monitor.arrived("a", "cat")
    with pytest.raises(NotExpected):
        monitor.arrived("a", "dog")
    assert (monitor.n, monitor.waiting) == (1, 0)


def test_an_error_may_be_a_distance_on_the_scale_of_a_reference():
    random = np.random.default_rng(6)
    reference = np.abs(random.normal(0, 20_000, 500))
    monitor = ConceptDriftMonitor("cusum", reference=reference, error=lambda price, paid: abs(price - paid), h=10)
    for id in range(600):
        price = random.uniform(1e5, 5e5)
        paid = price + random.normal(0, 20_000) + (60_000 if id >= 500 else 0)
        monitor.expect(id, price).arrived(id, paid)
    assert monitor.alarms and 500 <= monitor.alarms[0] < 520


def test_river_is_loaded_only_when_a_detector_of_its_is_asked_for():
    program = """
import sys
from labsupport.drift import ConceptDriftMonitor
ConceptDriftMonitor("cusum", reference=[0, 1, 2]).update(1)
assert not {"river", "pandas"} & sys.modules.keys()
ConceptDriftMonitor("adwin")
assert "river" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


# CUSUM

# Lucas and Crosier (1982, "Fast initial response for CUSUM quality-control schemes", Technometrics 24), as printed in
# Montgomery, "Introduction to statistical quality control", table of the ARL of the two-sided CUSUM, k = .5: h, shift, ARL
PUBLISHED = [
    *[(4, 0, 168), (4, 0.25, 74.2), (4, 0.5, 26.6), (4, 0.75, 13.3), (4, 1, 8.38), (4, 1.5, 4.75), (4, 2, 3.34)],
    *[(4, 2.5, 2.62), (4, 3, 2.19), (4, 4, 1.71)],
    *[(5, 0, 465), (5, 0.25, 139), (5, 0.5, 38.0), (5, 0.75, 17.0), (5, 1, 10.4), (5, 1.5, 5.75), (5, 2, 4.01)],
    *[(5, 2.5, 3.11), (5, 3, 2.57), (5, 4, 2.01)],
]


@pytest.mark.parametrize("h, shift, published", PUBLISHED)
def test_run_lengths_are_the_published_ones(h, shift, published):
    assert cusum_run_length(shift, 0.5, h) == pytest.approx(published, rel=0.005)
    assert cusum_run_length(-shift, 0.5, h) == pytest.approx(published, rel=0.005)


@pytest.mark.parametrize("h, shift, published", [row for row in PUBLISHED if row[1] in (0, 0.5, 1, 2)])
def test_simulated_run_lengths_are_the_published_ones(h, shift, published):
    """Of the class itself, restarted by its alarms: 5 % is more than four standard errors of 8,000 runs."""
    random, detector, runs = np.random.default_rng(10 * h), Cusum(0.5, h), 8000 if shift else 2000
    count, alarms = int(runs * published * 1.1), 0
    for value in random.normal(shift, 1, min(count, 400_000)).tolist():
        alarms += detector.update(value).drift_detected
    assert min(count, 400_000) / alarms == pytest.approx(published, rel=0.05 if shift else 0.075)


def markov_chain(shift: float, k: float, h: float, states: int = 400) -> float:
    """The one-sided run length by Brook and Evans (1972): the sum is one of so many values, and 0."""
    width = 2 * h / (2 * states - 1)
    centre = np.arange(states) * width
    edges = centre[None, :] + width / 2 - centre[:, None] + k - shift
    inside = stats.norm.cdf(edges) - np.where(np.arange(states) > 0, stats.norm.cdf(edges - width), 0)
    return np.linalg.solve(np.eye(states) - inside, np.ones(states))[0]


@pytest.mark.parametrize(
    "shift, k, h", [(0, 0.5, 5), (0, 0.25, 8), (0.3, 0.1, 12), (1, 0.5, 4), (-0.5, 0.5, 3), (0, 0, 6)]
)
def test_run_lengths_are_those_of_the_markov_chain(shift, k, h):
    one_sided = markov_chain(shift, k, h)
    assert cusum_run_length(shift, k, h, two_sided=False) == pytest.approx(one_sided, rel=1e-3)
    both = 1 / (1 / one_sided + 1 / markov_chain(-shift, k, h))
    assert cusum_run_length(shift, k, h) == pytest.approx(both, rel=1e-3)


@pytest.mark.parametrize("two_sided", [True, False])
@pytest.mark.parametrize("k", [0.1, 0.25, 0.5, 1])
@pytest.mark.parametrize("wanted", [20, 500, 1e5])
def test_the_limit_gives_the_run_length_that_was_wished_for(k, wanted, two_sided):
    limit = cusum_limit(k, wanted, two_sided)
    assert cusum_run_length(0, k, limit, two_sided) == pytest.approx(wanted, rel=1e-6)


def test_the_limits_of_the_published_table_come_back():
    assert cusum_limit(0.5, 168) == pytest.approx(4, abs=0.01)
    assert cusum_limit(0.5, 465) == pytest.approx(5, abs=0.01)


def test_what_an_estimated_reference_does_is_what_the_docstring_says():
    """Mean and deviation of m values, spread evenly over their distributions: the median, and one in ten."""
    evenly = (np.arange(25) + 0.5) / 25
    for m, median, low in ((100, 353, 157), (1000, 450, 346)):
        means, deviations = stats.norm.ppf(evenly) / m**0.5, (stats.chi2.ppf(evenly, m - 1) / (m - 1)) ** 0.5
        lengths = [cusum_run_length(mean, 0.5 * s, 5 * s) for mean in means for s in deviations]
        assert np.quantile(lengths, [0.5, 0.1]) == pytest.approx([median, low], rel=0.03)
        assert str(median) in cusum_run_length.__doc__ and str(low) in cusum_run_length.__doc__


def test_skewed_errors_alarm_as_often_as_the_docstring_says():
    errors = np.random.default_rng(0).random(100_000) < 0.05
    alarms = fired(Cusum(0.5, 5), ((errors - 0.05) / math.sqrt(0.05 * 0.95)).tolist())
    assert len(errors) / len(alarms) == pytest.approx(128, rel=0.1)


def test_run_lengths_stay_numbers_where_nothing_or_everything_alarms():
    assert cusum_run_length(1e6) == cusum_run_length(-50) == 1
    assert cusum_run_length(-30, two_sided=False) == cusum_run_length(0, 0.5, 60) == math.inf
    assert cusum_run_length(3, 0.5, 60) == pytest.approx(60 / 2.5, rel=0.05)


def test_it_says_where_the_mean_went_and_starts_again_at_zero():
    up, down, one = Cusum(), Cusum(), Cusum(two_sided=False)
    for _ in range(4):
        assert up.update(1.5).direction is down.update(-1.5).direction is None
    assert [up.update(1.6).direction, down.update(-1.6).direction] == ["up", "down"]
    assert (up.upper, up.lower) == (down.lower, down.upper) == (pytest.approx(5.1), 0)
    assert up.update(1.5).upper == 1 and up.direction is None
    assert not any(one.update(-9).drift_detected for _ in range(9)) and one.update(9).direction == "up"


@pytest.mark.parametrize(
    "wrong", [{"k": -0.1}, {"h": 0}, {"h": math.inf}, {"k": math.nan}, {"k": "0.5"}, {"h": None}, {"two_sided": "no"}]
)
def test_a_cusum_that_makes_no_sense_is_refused(wrong):
    for make in (Cusum, cusum_run_length):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*: give "):
            make(**wrong)


def test_run_lengths_that_cannot_be_had_are_refused():
    for k, wanted, said in (
        (0.5, 1.5, "give one above 1.62, or a smaller k"),
        (0, 1e9, r"give one up to 2.02e\+04, or a larger k"),
        (3, 100, "give one above 370, or a smaller k"),
        (50, 1e4, r"give one above 1e\+12, or a smaller k"),
    ):
        with pytest.raises(ValueError, match=said):
            cusum_limit(k, wanted)
    for wanted in (math.nan, 1e12, "1000", None):
        with pytest.raises(ValueError, match=r"run_length=.*: give a number from 1 to"):
            cusum_limit(0.5, wanted)
    with pytest.raises(ValueError, match="up to h=200"):
        cusum_run_length(0, 0.5, 201)
    for shift in (math.nan, "1", None):
        with pytest.raises(ValueError, match=r"shift=.*: give a finite number"):
            cusum_run_length(shift)


# what alarms are worth

CASES = {  # alarms, drifts, n_samples, max_delay -> delays, missed, false alarms, clean samples
    "nothing happens": (([], [], 100, 10), ((), 0, 0, 100)),
    "nothing but false": (([5, 50], [], 100, 10), ((), 0, 2, 100)),
    "at once": (([40], [40], 100, 10), ((0,), 0, 0, 89)),
    "at the last moment": (([50], [40], 100, 10), ((10,), 0, 0, 89)),
    "a sample too late": (([51], [40], 100, 10), ((), 1, 1, 89)),
    "a sample too early": (([39], [40], 100, 10), ((), 1, 1, 89)),
    "the first one counts, later ones are neither": (([42, 45, 50, 51], [40], 100, 10), ((2,), 0, 1, 89)),
    "the next drift ends it": (([46], [40, 45], 100, 10), ((1,), 1, 0, 84)),
    "both are found": (([44, 46], [40, 45], 100, 10), ((4, 1), 0, 0, 84)),
    "the stream ends first": (([], [95], 100, 10), ((), 1, 0, 95)),
    "no delay at all": (([40, 41], [40], 100, 0), ((0,), 0, 1, 99)),
    "no clean sample": (([3], [0], 10, 100), ((3,), 0, 0, 0)),
}


@pytest.mark.parametrize("arguments, expected", CASES.values(), ids=CASES)
def test_alarms_are_sorted_into_detections_and_false_ones(arguments, expected):
    found = evaluate(*arguments)
    assert (found.delays, found.missed, found.false_alarms, found.clean_samples) == expected


def by_hand(alarms, drifts, n_samples, max_delay) -> tuple:
    """The same by looking at every sample."""
    delays, missed, false, clean, current, found = [], 0, 0, 0, None, True
    for sample in range(n_samples):
        if sample in drifts:
            missed += not found
            current, found = sample, False
        late = current is None or sample > current + max_delay
        clean += late
        if sample in alarms and late:
            false += 1
        elif sample in alarms and not found:
            delays.append(sample - current)
            found = True
    return tuple(delays), missed + (not found), false, clean


@pytest.mark.parametrize("seed", range(50))
def test_alarms_are_sorted_as_one_would_by_looking_at_every_sample(seed):
    random = np.random.default_rng(seed)
    n, max_delay = int(random.integers(20, 200)), int(random.integers(0, 40))
    alarms, drifts = (np.flatnonzero(random.random(n) < share).tolist() for share in (0.1, 0.04))
    found = evaluate(alarms, drifts, n, max_delay)
    assert (found.delays, found.missed, found.false_alarms, found.clean_samples) == by_hand(
        alarms, drifts, n, max_delay
    )


def test_figures_follow_from_the_counts_and_what_cannot_be_said_is_nan():
    found = evaluate([120, 530, 540, 900], [500, 700], 1000, 100)
    assert found.to_dict() == {
        "detected": 1,
        "missed": 1,
        "mean_delay": 30,
        "false_alarms": 2,
        "false_alarms_per_10000": 10_000 * 2 / (1000 - 2 * 101),
    }
    assert math.isnan(evaluate([], [5], 10, 2).mean_delay)
    assert math.isnan(evaluate([], [0], 10, 20).false_alarms_per_10000)


@pytest.mark.parametrize(
    "alarms, drifts, n_samples, max_delay, words",
    [
        ([5, 3], [], 10, 1, "alarms=.*each above the one before"),
        ([3, 3], [], 10, 1, "alarms=.*each above"),
        ([], [7, 2], 10, 1, "drifts=.*each above"),
        ([10], [], 10, 1, "alarms from 10 to 10: there are 10 samples, 0 to 9"),
        ([], [-1], 10, 1, "drifts from -1"),
        ([1.5], [], 10, 1, "give whole indices"),
        ([True], [], 10, 1, "give whole indices"),
        ([], [], 0, 1, "n_samples=0"),
        ([], [], 10, -1, "max_delay=-1"),
        ([], [], 10, 0.5, "max_delay=0.5"),
    ],
)
def test_indices_that_make_no_sense_are_refused(alarms, drifts, n_samples, max_delay, words):
    with pytest.raises(ValueError, match=words):
        evaluate(alarms, drifts, n_samples, max_delay)


def test_every_table_has_the_row_of_the_detector_that_looks_at_nothing():
    streams_ = [(np.zeros(7000), [5000])] * 3
    for detectors in ({}, {"ADWIN": drift.ADWIN}):
        table = compare_detectors(detectors, streams_)
        assert [*table.index] == [*detectors, "fires every 300"]
        assert table.loc["fires every 300"].tolist() == [99, 0, pytest.approx(10_000 * 16 / 4999 + 0, rel=0.01)]
    assert table.loc["ADWIN"].fillna(-1).tolist() == [-1, 100, 0]


def test_the_dummy_fires_every_300_samples():
    assert fired(detector_evaluation._Always(), np.zeros(1000)) == [299, 599, 899]


def test_a_table_adds_up_all_drifts_and_all_clean_samples_not_streams():
    random = np.random.default_rng(8)
    long, short = (
        (np.concatenate([random.normal(0, 1, a), random.normal(2, 1, b)]), [a]) for a, b in ((9000, 500), (100, 100))
    )
    table = compare_detectors({"cusum": lambda: Cusum(h=4)}, [long, short], max_delay=50)
    each = [evaluate(fired(Cusum(h=4), values), drifts, len(values), 50) for values, drifts in (long, short)]
    row = table.loc["cusum"]
    assert row.mean_delay == np.mean([delay for one in each for delay in one.delays])
    assert row.false_alarms_per_10000 == 1e4 * sum(e.false_alarms for e in each) / sum(e.clean_samples for e in each)


def test_each_stream_may_have_its_own_reference_and_each_figure_an_interval():
    random = np.random.default_rng(3)
    levels, starts = range(0, 600, 10), random.integers(500, 1_500, 60)
    parts = [
        (random.normal(at, 1, start), random.normal(at + 2, 1, 300)) for at, start in zip(levels, starts, strict=True)
    ]
    streams_ = [(np.concatenate(part), [len(part[0])]) for part in parts]
    references = [random.normal(level, 1, 2_000) for level in levels]
    detectors = {"cusum": lambda reference: ConceptDriftMonitor("cusum", reference=reference, h=6)}
    table = compare_detectors(detectors, streams_, 300, references, interval=0.95)
    own, dummy = table.loc["cusum"], table.loc["fires every 300"]
    assert own.delay_low < own.mean_delay < own.delay_high < 8 and own.missed_percent == 0
    assert own.false_alarms_low <= own.false_alarms_per_10000 <= own.false_alarms_high < 20
    assert (
        dummy.delay_low < 150 < dummy.delay_high
    )  # it is as late as it should be, because changes come at random times
    assert compare_detectors(detectors, streams_, 300, references).columns.tolist() == table.columns[:3].tolist()


def test_no_false_alarm_leaves_room_for_some():
    table = compare_detectors({"cusum": lambda: Cusum(h=50)}, [(np.zeros(10_000), [9_000])], 100, interval=0.95)
    row = table.loc["cusum"]
    assert (row.false_alarms_per_10000, row.false_alarms_low) == (0, 0)
    assert row.false_alarms_high == pytest.approx(-math.log(0.025) * 10_000 / 9_899)
    assert math.isnan(row.delay_low)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"references": []}, "0 references, 1 streams"),
        ({"interval": 95}, "interval=95"),
        ({"interval": 1}, "interval=1"),
    ],
)
def test_references_and_intervals_that_do_not_fit_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        compare_detectors({}, [(np.zeros(10), [])], **options)


def test_a_table_of_nothing_and_of_used_detectors_is_refused():
    with pytest.raises(ValueError, match="no stream"):
        compare_detectors({}, [])
    with pytest.raises(TypeError, match="ADWIN: give what makes one"):
        compare_detectors({"ADWIN": drift.ADWIN()}, [([0.0], [])])


# the windowed monitor: its statistics


def p_values(reference, window) -> dict:
    monitor = DataDriftMonitor(reference, len(window))
    for row in window:
        monitor.update(row)
    return monitor.p_values


@pytest.mark.parametrize("shift", [1, -1])
@pytest.mark.parametrize("draw", ["normal", "poisson"])
def test_the_distance_is_scipys_and_both_bounds_are_those_of_massart(draw, shift):
    random = np.random.default_rng(9)
    sample = {"normal": random.normal, "poisson": lambda mean, _, size: random.poisson(8 + 3 * mean, size)}[draw]
    reference, window = sample(0, 1, size=1000), sample(shift, 1, size=80)
    rest = np.delete(reference, np.s_[::10])  # every tenth row only says what kind of values there are
    distance = stats.ks_2samp(rest, window).statistic
    beyond = distance - math.sqrt(math.log(2 / 0.01) / (2 * len(rest)))
    expected = 2 * math.exp(-2 * 80 * beyond**2)
    assert p_values(reference, window.tolist())[0] == pytest.approx(expected, rel=1e-9)


def test_the_bound_for_the_window_is_no_less_than_the_exact_p_value_and_close_to_it():
    for n, distance in ((50, 0.25), (100, 0.2), (1000, 0.06)):
        exact = stats.kstwo.sf(distance, n)
        assert exact <= 2 * math.exp(-2 * n * distance**2) <= 1.6 * exact


@pytest.mark.parametrize("counts", [{"a": 40, "b": 20, "c": 25, "z": 5}, {"a": 20, "b": 35, "c": 35}])
def test_classes_are_tested_by_scipys_binomial_test_against_scipys_interval(counts):
    """In the first case a class is decisive that became more frequent, in the second one that became less so."""
    random = np.random.default_rng(10)
    reference, window = random.choice(list("aaaabbcc"), 1000), [name for name, n in counts.items() for _ in range(n)]
    rest = np.delete(reference, np.s_[::10]).tolist()
    smallest = 1.0
    for chosen in ("a", "b", "c", "z"):
        known, count = rest.count(chosen), window.count(chosen)
        interval = stats.binomtest(known, len(rest)).proportion_ci(1 - 0.01 / 4, "exact")
        more = stats.binomtest(count, len(window), interval.high, "greater").pvalue
        fewer = stats.binomtest(count, len(window), interval.low, "less").pvalue
        smallest = min(smallest, 2 * min(more, fewer))
    assert p_values(reference, window)[0] == pytest.approx(4 * smallest, rel=1e-9)


def test_an_alarm_is_a_p_value_corrected_for_the_number_of_features():
    random = np.random.default_rng(21)
    monitor, outcomes = DataDriftMonitor(random.normal(size=(1000, 10)), window=50), set()
    alone = DataDriftMonitor(random.normal(size=(1000, 1)), window=50)
    assert next(iter(monitor._features.values())).margin > next(iter(alone._features.values())).margin
    for row in random.normal([0.8] + [0] * 9, size=(50 * 100, 10)).tolist():
        if monitor.update(row).n % 50 == 0:
            smallest = min(monitor.p_values.values())
            assert monitor.p_value == min(1, 10 * smallest)
            assert monitor.drift_detected == (monitor.p_value <= 0.01)
            outcomes.add((monitor.drift_detected, smallest <= 0.01))
    assert outcomes == {(True, True), (False, True), (False, False)}


# what it promises


def clean(kind: str, random, rows: int) -> np.ndarray | list:
    if kind == "normal":
        return random.normal(size=(rows, 1))
    if kind == "counts":  # more than ten values, with ties
        return random.poisson(8, size=(rows, 1))
    if kind == "classes":  # three frequent ones and a thousand rare ones
        return [(str(number),) for number in np.minimum(random.geometric(0.4, rows), 3) + random.integers(1000, size=rows)
                * 10 * (random.random(rows) < 0.2)]  # fmt: skip
    if kind == "missing":
        return [
            (None if gone else value,)
            for gone, value in zip(random.random(rows) < 0.3, random.random(rows), strict=True)
        ]
    return random.normal(size=(rows, 5)) + 2 * random.normal(size=(rows, 1))  # correlated


@pytest.mark.parametrize("kind", ["normal", "counts", "classes", "missing", "correlated"])
def test_over_10000_clean_windows_on_one_reference_it_keeps_its_rate(kind):
    """At most the promised share, 3 standard errors included. An unlucky reference is let pass once in a hundred."""
    random = np.random.default_rng(11)
    count = 10_000 if kind == "normal" else 2000
    monitor = DataDriftMonitor(clean(kind, random, 300), window=30, false_alarm_rate=0.01)
    rows = clean(kind, random, 30 * count)
    for row in rows if isinstance(rows, list) else rows.tolist():
        monitor.update(row)
    assert monitor.windows == count
    assert len(monitor.alarms) <= 0.01 * count + 3 * math.sqrt(0.01 * count)


def distances(reference: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """The Kolmogorov-Smirnov distance of each row (uniform values) to the reference."""
    steps, at = np.arange(drawn.shape[1] + 1) / drawn.shape[1], np.sort(drawn, axis=1)
    share = np.searchsorted(np.sort(reference), at) / len(reference)
    return np.maximum(steps[1:] - share, share - steps[:-1]).max(axis=1)


def test_the_rate_holds_for_the_worst_of_150_references_where_a_two_sample_test_does_not():
    random = np.random.default_rng(12)
    drawn, references = random.random((2000, 50)), random.random((150, 500))
    plain, ours = [], []
    for reference in references:
        monitor = DataDriftMonitor(reference, window=50)
        (feature,) = monitor._features.values()
        plain.append(
            np.mean(stats.distributions.kstwobign.sf(math.sqrt(500 * 50 / 550) * distances(reference, drawn)) <= 0.01)
        )
        ours.append(np.mean([feature.p_value(window) <= 0.01 for window in drawn[:100]]))
    print(f"two-sample test: mean {np.mean(plain):.4f}, worst {max(plain):.4f}; monitor: worst {max(ours):.4f}")
    assert max(plain) > 0.018
    assert max(ours) <= 0.01


def test_without_what_the_reference_may_be_wrong_by_an_unlucky_one_would_break_the_promise():
    """The reference that DKW just allows: all of its values lie low by the margin."""
    random = np.random.default_rng(13)
    monitor = DataDriftMonitor(random.permutation((np.arange(1000) + 0.5) / 1000), window=50)
    (feature,) = monitor._features.values()
    feature.sorted = feature.sorted - feature.margin
    drawn = random.random((4000, 50))
    rate = np.mean([feature.p_value(window) <= 0.01 for window in drawn])
    assert 0.002 <= rate <= 0.01 + 3 * math.sqrt(0.01 / 4000)
    feature.margin = 0.0
    assert np.mean([feature.p_value(window) <= 0.01 for window in drawn]) > 0.03


# what it finds


def test_changes_are_found_and_named_and_what_did_not_change_is_not():
    random = np.random.default_rng(14)

    def rows(count, mean=0.0, share=0.5, labels="aab", missing=0.0):
        gone = random.random(count) < missing
        return pd.DataFrame(
            {
                "size": random.normal(mean, 1, count),
                "wet": random.random(count) < share,
                "label": random.choice(list(labels), count),
                "age": np.where(gone, np.nan, random.normal(size=count)),
            }
        )

    monitor = DataDriftMonitor(rows(5000), window=200)
    changes = [{"mean": 0.7}, {"share": 0.8}, {"labels": "abb"}, {"labels": "aabz"}, {"missing": 0.3}, {}]
    found = []
    for change in changes:
        for row in rows(200, **change).to_dict("records"):
            assert not monitor.reasons or monitor.n % 200 == 0
            monitor.update(row)
        found.append(monitor.reasons)
        assert monitor.drift_detected == bool(monitor.reasons) == (monitor.p_value <= 0.01)
    assert found == [("size",), ("wet",), ("label",), ("label",), ("age",), ()]
    assert monitor.alarms == [199, 399, 599, 799, 999]


def test_the_worst_feature_comes_first():
    random = np.random.default_rng(15)
    monitor = DataDriftMonitor(random.normal(size=(2000, 3)), window=100)
    for row in random.normal([0.9, 0, 3], size=(100, 3)):
        monitor.update(row)
    assert monitor.reasons == (2, 0)


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, dict, lambda columns: np.array([*columns.values()]).T])
def test_frames_dicts_and_arrays_are_one_and_so_are_their_rows(make):
    random = np.random.default_rng(16)
    columns = {"a": random.normal(size=600), "b": random.poisson(2, 600).astype(float)}
    window = random.normal(0.5, 1, size=(50, 2)).round()
    named = DataDriftMonitor(columns, window=50)
    monitor = DataDriftMonitor(make(columns), window=50)
    for a, b in window:
        named.update({"b": b, "a": a})
        monitor.update([a, b] if 0 in monitor._features else {"a": a, "b": b})
    assert [*monitor.p_values.values()] == [*named.p_values.values()]


def test_missing_values_of_every_library_are_missing():
    random = np.random.default_rng(17)
    for reference in (random.normal(size=1000), random.choice(list("ab"), 1000)):
        results = [
            p_values(reference, [gone] * 30 + reference[:30].tolist())[0] for gone in (None, math.nan, pd.NA, pd.NaT)
        ]
        assert len(set(results)) == 1 and results[0] < 1e-6


def test_the_same_alarms_for_brightness_0_to_1_and_0_to_255():
    random = np.random.default_rng(18)
    reference, stream = random.random(1000), random.random(2000) ** 1.7
    small, large = DataDriftMonitor(reference, window=100), DataDriftMonitor(reference * 255, window=100)
    for value in stream:
        small.update(value), large.update(value * 255)
    assert small.alarms == large.alarms != []


# what it refuses


def neither(random):
    return {"x": random.normal(size=500), "label": random.choice(list("ab"), 500)}


@pytest.mark.parametrize(
    "row, words",
    [
        ({"x": 1.0}, "label: in the row or in the reference, but not in both"),
        ({"x": 1.0, "label": "a", 0: 1, "0": 1}, "(0, '0'|'0', 0): in the row or in the reference, but not in both"),
        ({"x": 1.0, "label": "a", "y": 2}, "y: in the row or"),
        ({"x": "1.0", "label": "a"}, "x: '1.0' is no number"),
        ({"x": math.inf, "label": "a"}, "x: inf is neither a finite number nor a text"),
        ({"x": [1], "label": "a"}, "x: .* is neither"),
        ({"x": 1.0, "label": 3}, "label: 3 is no text"),
        ({"x": 1.0, "label": ["a"]}, "label: .* is neither"),
        ([1.0], r"row=\[1.0\]: 1 values: give 2"),
        (1.0, "row=1.0: 1 values: give 2"),
    ],
)
def test_a_bad_row_is_refused_and_changes_nothing(row, words):
    monitor = DataDriftMonitor(neither(np.random.default_rng(19)), window=50)
    for _ in range(49):
        monitor.update({"x": 0.1, "label": "a"})
    with pytest.raises(ValueError, match=words):
        monitor.update(row)
    assert (monitor.n, monitor.windows, monitor.p_value) == (49, 0, None)
    assert monitor.update({"x": 0.1, "label": "a"}).windows == 1


@pytest.mark.parametrize(
    "reference, options, words",
    [
        (np.arange(499.0), {}, "499 reference rows: give at least 10 windows, 500 rows"),
        ([], {}, "0 reference rows"),
        ({}, {}, "reference: it has no columns"),
        ({"a": [1] * 500, "b": [1] * 499}, {}, "reference: columns of different lengths"),
        (np.zeros((5, 5, 5)), {}, "shape"),
        ({"a": [None] * 500}, {}, "a: nothing in the reference"),
        ({"a": [1.0, "x"] * 250}, {}, "a: number and text in the reference"),
        ({"a": [math.inf] + [0.0] * 499}, {}, "a: inf is neither"),
        (pd.DataFrame({"day": pd.date_range("2025-01-01", periods=500)}), {}, "day: Timestamp.* is neither"),
        (np.zeros(500), {"window": 29}, "window=29: give a whole number of at least 30"),
        (np.zeros(500), {"window": 50.5}, "window=50.5: give a whole number"),
        (np.zeros(500), {"false_alarm_rate": 0}, "false_alarm_rate=0"),
        (np.zeros(500), {"false_alarm_rate": 1}, "false_alarm_rate=1"),
    ],
)
def test_a_reference_that_makes_no_sense_is_refused(reference, options, words):
    with pytest.raises(ValueError, match=words):
        DataDriftMonitor(reference, **{"window": 50, **options})


def test_a_constant_column_sees_what_is_new():
    monitor = DataDriftMonitor({"a": [7] * 500}, window=50)
    assert not any(monitor.update({"a": 7}).drift_detected for _ in range(50))
    assert [monitor.update({"a": 7 if row % 2 else 8}).drift_detected for row in range(50)][-1]


def test_rows_that_hang_together_are_noticed_and_others_are_not():
    random = np.random.default_rng(20)
    noise = random.normal(size=9000)
    slow = np.zeros(9000)
    for row in range(1, 9000):
        slow[row] = 0.9 * slow[row - 1] + noise[row]
    with pytest.warns(
        SerialCorrelation, match="slow: neighbours in the reference correlate by 0.89.*one row in 26, there"
    ):
        DataDriftMonitor({"noise": noise, "slow": slow}, window=100)
    with pytest.warns(SerialCorrelation, match="wet"):
        DataDriftMonitor({"wet": slow > 0}, window=100)
    with warnings.catch_warnings(action="error"):
        DataDriftMonitor({"slow": slow[::26]}, window=30)
        for seed in range(20):
            random = np.random.default_rng(seed)
            columns = {
                "noise": random.standard_cauchy(500),
                "zeros": random.normal(size=500) * (random.random(500) < 0.1),
            }
            DataDriftMonitor(columns | {"constant": [1] * 500}, window=50)


def test_modules_hold_together():
    assert data_monitor.DataDriftMonitor is data_monitor.DataDriftMonitor and cusum.Cusum is cusum.Cusum
