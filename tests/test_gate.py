"""The gate against exact arithmetic, and against what it promises, by simulation. The figures are printed: pytest -rP."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from labsupport import rules
from labsupport.evidence import GUESS, TIMES_AS_BAD, e_value
from labsupport.gate import Gate, Outcomes, measured

RUNS = 500


def outcomes(version, failed, latency=None, null=None, corrected=None, time=None) -> Outcomes:
    """Outcomes from lists; what is not given is as it should be."""
    count = len(version)
    plain = np.zeros(count, bool)
    return Outcomes(
        np.arange(count, dtype=float) if time is None else np.array(time, float),
        np.array(version, str),
        np.array(failed, bool),
        np.full(count, 0.01) if latency is None else np.array(latency, float),
        plain if null is None else np.array(null, bool),
        plain if corrected is None else np.array(corrected, bool),
    )


def traffic(random, count, share, stable_rate, candidate_rate) -> Outcomes:
    candidate = random.random(count) < share
    failed = random.random(count) < np.where(candidate, candidate_rate, stable_rate)
    return outcomes(np.where(candidate, "v2", "v1"), failed)


# the e-value


def by_hand(candidate, bad) -> float:
    """The same e-value one request after the other, in exact fractions, written from the paper's definition."""
    bets = [Fraction(1)] * len(TIMES_AS_BAD)
    failures, count = Fraction(GUESS[0]), Fraction(GUESS[1])
    block = []
    for ours, went_wrong in zip(candidate, bad, strict=True):
        block.append((ours, went_wrong))
        if not ours:
            continue
        base = failures / count
        for number, times in enumerate(TIMES_AS_BAD):
            worse = min(Fraction(float(times)) * base, Fraction(0.99))
            null = (worse + (len(block) - 1) * base) / len(block)
            for mine, wrong in block:
                p = worse if mine else base
                bets[number] *= p / null if wrong else (1 - p) / (1 - null)
        failures += sum(wrong for _, wrong in block)
        count += len(block)
        block = []
    return float(sum(bets) / len(bets))


@pytest.mark.parametrize("seed", range(5))
def test_the_e_value_is_the_one_of_the_paper(seed):
    random = np.random.default_rng(seed)
    candidate, bad = (random.random(60) < share for share in (0.3, 0.2))
    assert e_value(candidate, bad) == pytest.approx(by_hand(candidate.tolist(), bad.tolist()), rel=1e-9)


def test_under_no_difference_its_expectation_is_at_most_one():
    """Exactly, over every possible course of six requests, whatever the common rate."""
    candidate = [False, True, False, False, True, True]
    for rate in (0.01, 0.1, 0.5, 0.9):
        total = 0.0
        for bad in itertools.product([False, True], repeat=len(candidate)):
            total += rate ** sum(bad) * (1 - rate) ** (len(bad) - sum(bad)) * e_value(candidate, bad)
        assert total <= 1 + 1e-12


def test_without_requests_of_the_candidate_there_is_no_evidence():
    assert e_value([], []) == 1
    assert e_value([False] * 50, [True] * 50) == 1


def test_evidence_beyond_all_numbers_stays_a_number():
    assert np.isfinite(e_value([True, False] * 50_000, [True, False] * 50_000))


# what it decides


def test_no_data_holds_whatever_the_limits():
    gate = Gate(thresholds={"error_rate": (None, 1)}, min_requests=1)
    assert gate.judge(outcomes([], []), "v1", "v2").verdict == "hold"
    assert gate.judge(outcomes(["v1"] * 100, [False] * 100), "v1", "v2").verdict == "hold"


def test_too_few_requests_hold_and_enough_within_limits_promote():
    gate = Gate(thresholds={"error_rate": (None, 0.5)}, min_requests=10)
    few = outcomes(["v1"] * 50 + ["v2"] * 9, [False] * 59)
    assert (gate.judge(few, "v1", "v2").verdict, gate.judge(few, "v1", "v2").reason) == (
        "hold",
        "9 of at least 10 requests",
    )
    enough = outcomes(["v1"] * 50 + ["v2"] * 10, [False] * 60)
    assert gate.judge(enough, "v1", "v2").verdict == "promote"


def test_only_requests_of_the_step_count_for_its_sample_and_limits():
    gate = Gate(thresholds={"null_rate": (None, 0.1)}, min_requests=10)
    seen = outcomes(["v2"] * 20, [False] * 20, null=[True] * 10 + [False] * 10)
    assert gate.judge(seen, "v1", "v2", since=10).verdict == "promote"
    assert gate.judge(seen, "v1", "v2", since=5).verdict == "hold"  # a third found nothing
    assert gate.judge(seen, "v1", "v2", since=11).reason == "9 of at least 10 requests"


@pytest.mark.parametrize(
    "metric, limits, worse",
    [
        ("latency_p95", (None, 0.05), {"latency": [0.06] * 20}),
        ("null_rate", (None, 0.2), {"null": [True] * 20}),
        ("null_rate", (0.05, None), {}),  # too few is as odd as too many
        ("correction_rate", (None, 0.9), {"corrected": [True] * 20}),
    ],
)
def test_a_limit_that_is_not_kept_is_named_and_too_many_failed_checks_roll_back(metric, limits, worse):
    gate = Gate(thresholds={metric: limits}, min_requests=20, failure_limit=2, alpha=1e-90)
    seen = outcomes(["v2"] * 20, [False] * 20, **worse)
    verdicts = [gate.judge(seen, "v1", "v2", failures=failures) for failures in (0, 1, 2)]
    assert [judgement.verdict for judgement in verdicts] == ["hold", "hold", "rollback"]
    assert verdicts[2].reason.startswith(metric) and verdicts[2].figures["failures"] == 3


def test_against_the_stable_version_and_where_that_is_unknown_it_holds():
    gate = Gate(ratios={"latency_p95": 1.5}, min_requests=20)
    both = outcomes(["v1"] * 20 + ["v2"] * 20, [False] * 40, latency=[0.1] * 20 + [0.149] * 20)
    assert gate.judge(both, "v1", "v2").verdict == "promote"
    slow = both._replace(latency=np.where(both.version == "v2", 0.16, 0.1))
    assert gate.judge(slow, "v1", "v2").reason.startswith("latency_p95 0.16 is above 0.15")
    alone = both.of("v2")
    assert gate.judge(alone, "v1", "v2").reason == "latency_p95 of v1: not known"


def test_agreement_in_shadow_is_judged_without_a_single_answer_of_the_candidate():
    gate = Gate(thresholds={"agreement": (0.9, None)}, min_requests=20)
    answers = outcomes(["v1"] * 30, [False] * 30)
    assert gate.judge(answers, "v1", "v2", agreement=[0.95] * 20).verdict == "promote"
    assert gate.judge(answers, "v1", "v2", agreement=[0.85] * 20).verdict == "hold"
    assert gate.judge(answers, "v1", "v2", agreement=[0.95] * 19).verdict == "hold"


def test_users_who_correct_a_candidate_roll_it_back_as_errors_do():
    half = np.arange(400) % 2 == 0
    seen = outcomes(np.where(half, "v2", "v1"), np.zeros(400, bool), corrected=half & (np.arange(400) % 10 == 0))
    assert Gate().judge(seen, "v1", "v2").verdict == "rollback"


def test_figures_are_those_that_numpy_gives():
    random = np.random.default_rng(0)
    latency = random.exponential(size=200)
    seen = outcomes(["v2"] * 200, random.random(200) < 0.1, latency, null=random.random(200) < 0.3)
    figures = measured(seen)
    assert figures["latency_p95"] == np.percentile(latency, 95)
    assert figures["error_rate"] == seen.failed.sum() / 200
    assert figures["null_rate"] == seen.null.sum() / 200


@pytest.mark.parametrize(
    "wrong", [{"thresholds": {"errors": (None, 1)}}, {"ratios": {"p99": 2}}, {"alpha": 0}, {"min_requests": 0}]
)
def test_a_gate_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match="give"):
        Gate(**wrong)


# what it promises, by simulation


def rolled_back_after(gate: Gate, seen: Outcomes, every: int = 40, looks: int = 25) -> float:
    """Requests of the candidate until a gate that looks after every 40 of them rolls it back; infinity if it never does."""
    ends = np.flatnonzero(seen.version == "v2")[every - 1 :: every][:looks] + 1
    evidence = [e_value(seen.version[:end] == "v2", seen.bad[:end]) for end in ends]
    number = next((number for number, value in enumerate(evidence) if value >= 1 / gate.alpha), None)
    last = ends[-1 if number is None else number]
    verdict = gate.judge(Outcomes(*(column[:last] for column in seen)), "v1", "v2").verdict
    assert (verdict == "rollback") == (number is not None)
    return np.inf if number is None else (number + 1) * every


def test_an_equally_good_candidate_is_rolled_back_in_at_most_5_percent_of_runs():
    for rate in (0.01, 0.1):
        hits = 0
        for run in range(RUNS):
            seen = traffic(np.random.default_rng(run), 21_000, 0.05, rate, rate)
            hits += rolled_back_after(Gate(alpha=0.05), seen) < np.inf
        print(f"error rate {rate:.0%} in both: {hits / RUNS:.1%} of {RUNS} candidates rolled back, 5 % are promised")
        assert hits / RUNS <= 0.05


def test_a_candidate_with_4_percent_errors_is_rolled_back_early():
    """Against 1 %; a full ramp of four steps with at least 1,000 requests each shows it 4,000, of which 20 % are 800."""
    after = []
    for run in range(RUNS):
        seen = traffic(np.random.default_rng(run), 21_000, 0.05, 0.01, 0.04)
        after.append(rolled_back_after(Gate(alpha=0.05, min_requests=1_000), seen))
    early = np.mean(np.array(after) < 800)
    print(
        f"4 % against 1 %: {early:.1%} of {RUNS} rolled back before 800 requests, half of them by {np.median(after):.0f}"
    )
    assert early >= 0.95


def test_other_rules_err_as_they_are_known_to():
    """Beside it, the rules that others use. Known: peeking kills one good candidate in four, tolerant limits miss a tripled
    error rate two times in three."""
    rows = {rate: rules.rolled_back(rate, runs=RUNS) for rate in (0.01, 0.03, 0.1)}
    print("share rolled back at 1 % / 3 % / 10 % errors against 1 %")
    for name in rows[0.01]:
        print(f"{name:28}", *(f"{rows[rate][name]:6.1%}" for rate in rows))
    assert rows[0.01]["e-value"] <= 0.05 < 0.15 < rows[0.01]["z-test at every look"]
    assert rows[0.03]["e-value"] > 0.9 and rows[0.1]["e-value"] > 0.99
    assert rows[0.03]["Argo, failureLimit 3"] < 0.5 and rows[0.03]["Flagger, threshold 5"] < 0.5
