import numpy as np
import pytest
from scipy import integrate

from labsupport.detection import Box, Detection
from labsupport.gate import Gate
from labsupport.monitoring import PredictionLog
from labsupport.retraining import Retraining, better_evidence
from labsupport.rollout import Router, WrongMoment

PICTURE = np.zeros((8, 8, 3), np.uint8)
GATE = Gate(thresholds={"error_rate": (None, 0.05)}, min_requests=50)


class Model:
    """Finds a cat in every picture, or, in a share of them, wrongly a dog; which, the picture's first pixel settles."""

    def __init__(self, version: str, wrong: float) -> None:
        self.version, self.wrong = version, wrong

    def detect(self, image, confidence=0.5):
        chances = np.random.default_rng([int(image[0, 0, 0]), int(image[0, 0, 1]), len(self.version)])
        label = "dog" if chances.random() < self.wrong else "cat"
        return [Detection(label, 0.9, Box(0, 0, 1, 1))]


@pytest.fixture
def log(tmp_path):
    with PredictionLog(f"sqlite:///{tmp_path}/predictions.db") as log:
        yield log


def router_with(log, wrong=0.3):
    return Router(Model("v1", wrong), log=log)


def ask(router, count, first=0, told=1.0):
    """Pictures of cats, answered, shown to whoever is in shadow, and, a share of them, commented on by their users."""
    for number in range(first, first + count):
        image = PICTURE.copy()
        image[0, 0, :2] = divmod(number, 256)
        chosen, id = router.choose(), f"{number}"
        found = chosen.detect(image)
        router.log.record(id=id, version=chosen.version, latency=0.01, detections=found, features=None)
        router.mirror(id, image, 0.5)
        if number % 10 == 9 and router.state.mode == "shadow":
            wait_for_shadows(router, number + 1)  # a candidate is not shown more than it can look at
        if number % 100 < 100 * told:
            right = found[0].label == "cat"
            router.log.feedback(id, correct=True) if right else router.log.feedback(id, labels=["cat"])
    wait_for_shadows(router, first + count if router.state.mode == "shadow" else 0)


def wait_for_shadows(router, count):
    for _ in range(1000):
        router.log.flush()
        if len(router.log.columns("id", shadow=True)["id"]) >= count:
            return
    raise AssertionError("the candidate in shadow was not shown everything")


def test_a_better_candidate_goes_through_shadow_and_ramp_and_then_answers(log):
    router = router_with(log)
    run = Retraining(router, lambda: Model("v2-better", 0.05), GATE, steps=[50, 100])
    run.open("errors are up")
    assert router.version == "v1" and router.state.mode == "shadow"
    ask(router, 200)
    assert run.look().verdict == "promote"
    assert run.stage == "ramp" and router.version == "v1"  # not yet
    for step in range(1, 20):
        ask(router, 200, first=step * 200)
        run.look()
        if run.stage != "ramp":
            break
    assert run.stage == "promoted" and router.version == "v2-better"
    assert [state.action for state in router.history()][:3] == ["start", "shadow", "ramp"]
    assert "errors are up" in router.history()[1].reason


def test_a_candidate_that_makes_things_worse_never_answers_anybody(log):
    router = router_with(log, wrong=0.1)
    run = Retraining(router, lambda: Model("v2-worse!", 0.5), GATE)
    run.open("by hand")
    ask(router, 200)
    judgement = run.look()
    assert judgement.verdict == "rollback" and "worse in shadow" in judgement.reason
    assert run.stage == "rejected" and router.version == "v1" and router.state.candidate is None
    assert set(log.columns("version")["version"]) == {"v1"}


def test_a_candidate_that_is_no_better_is_sent_away_in_the_end(log):
    router = router_with(log)
    run = Retraining(router, lambda: Model("v2", 0.3), GATE, most=150)
    run.open("by hand")
    ask(router, 100)
    assert run.look().verdict == "hold"
    ask(router, 100, first=100)
    assert "no better in shadow" in run.look().reason
    assert run.stage == "rejected"
    assert "rejected" in run.look().reason  # and nothing more happens


def test_only_pictures_whose_users_spoke_are_compared(log):
    router = router_with(log)
    run = Retraining(router, lambda: Model("v2-better", 0.05), GATE)
    run.open("by hand")
    ask(router, 200, told=0.25)
    won, lost, count = run.compared()
    assert count == 50
    pairs = log.pairs()
    cats = pairs[["detections", "candidate_detections"]].map(lambda found: found[0].label == "cat")
    cats = cats[pairs["id"].astype(int) % 100 < 25]
    assert won == (cats["candidate_detections"] & ~cats["detections"]).sum()
    assert lost == (~cats["candidate_detections"] & cats["detections"]).sum()


def test_what_a_candidate_was_not_shown_does_not_count_against_it_and_what_it_failed_on_does(log):
    router = router_with(log, wrong=0)
    run = Retraining(router, lambda: Model("v2", 0), GATE)
    run.open("by hand")
    cat = [Detection("cat", 0.9, Box(0, 0, 1, 1))]
    for id, error in (("a", "NotShown"), ("b", "ValueError")):
        log.record(id=id, version="v1", latency=0.01, detections=cat, features=None)
        log.record(id=id, version="v2", latency=0.01, detections=None, features=None, error=error, shadow=True)
        log.feedback(id, correct=True)
    log.flush()
    assert run.compared() == (0, 1, 1)


def test_a_training_that_fails_changes_nothing(log):
    def train():
        raise RuntimeError("no pictures")

    router = router_with(log)
    with pytest.raises(RuntimeError, match="no pictures"):
        Retraining(router, train, GATE).open("by hand")
    assert router.state.mode == "stable" and len(router.history()) == 1


def test_one_run_at_a_time(log):
    run = Retraining(router_with(log), lambda: Model("v2", 0.3), GATE)
    run.open("by hand")
    with pytest.raises(WrongMoment, match="on trial already"):
        run.open("again")


def test_a_person_may_end_it(log):
    router = router_with(log)
    run = Retraining(router, lambda: Model("v2", 0.3), GATE)
    run.open("by hand")
    router.rollback("I changed my mind")
    assert run.look().verdict == "hold"
    assert run.stage == "rejected"


class Event:
    def __init__(self, event, alarm):
        self.event, self.alarm, self.text = event, alarm, f"{alarm} {event}"


def test_an_alarm_opens_a_run_and_others_do_not(log):
    router = router_with(log)
    run = Retraining(router, lambda: Model("v2", 0.3), GATE)
    events = [Event("cleared", "WrongAnswers"), Event("fired", "Slow")]
    assert not run.open_on(events, ["WrongAnswers"])
    assert run.open_on([*events, Event("fired", "WrongAnswers")], ["WrongAnswers"])
    assert router.state.reason == "retrained: WrongAnswers fired"
    assert not run.open_on([Event("fired", "WrongAnswers")], ["WrongAnswers"])  # one is under way


def test_bad_settings_are_refused(log):
    with pytest.raises(ValueError, match="alpha"):
        Retraining(router_with(log), lambda: None, alpha=1)
    with pytest.raises(ValueError, match="log"):
        Retraining(Router(Model("v1", 0)), lambda: None)


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (5, 5), (12, 2), (2, 12), (60, 40)])
def test_the_evidence_is_the_integral_it_stands_for(won, lost):
    likelihood, _ = integrate.quad(lambda p: 2 * (2 * p) ** won * (2 * (1 - p)) ** lost, 0.5, 1)
    assert better_evidence(won, lost) == pytest.approx(likelihood, rel=1e-6)


def test_candidates_without_merit_pass_no_more_often_than_promised():
    random, passed = np.random.default_rng(0), 0
    for _ in range(1_000):
        won = np.cumsum(random.random(300) < 0.5)
        passed += any(better_evidence(int(w), n + 1 - int(w)) >= 20 for n, w in enumerate(won) if n % 3 == 0)
    assert passed <= 50 + 14  # two standard errors
    assert passed > 0  # it can fail
