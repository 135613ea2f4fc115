"""The rollout as a model: whatever happens, and in whatever order, its promises hold.

Two workers share a journal (a real SQLite file) and a log. Hypothesis puts together actions, failures, restarts, requests
and looks, by the thousand; a small model says what must come of each. There are no threads and there is no waiting:
time stands still until a step moves it, and what would run on a thread of its own is a step as well. The promises:

- no candidate gets more than its share, and none that is in shadow or kept warm answers anybody;
- none goes up but by the gate that its own ramp was begun with, or by hand;
- every answer and every failure is in the log once;
- a key that had the candidate keeps it while the weight only grows;
- a rollback holds, and a second one does not leave the good version;
- several workers look at a ramp no more often than one.
"""

import contextlib
import json
import logging
import random
import secrets
import sqlite3
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import sqlalchemy as sql
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from labsupport.detection import Box, Detection
from labsupport.log import LogUnavailable, PredictionLog, rows, tables
from labsupport.models import ModelUnavailable
from labsupport.rollout import (
    Gate,
    Ramps,
    Rollout,
    Router,
    WrongMoment,
    journal,
    ramp,
    ramp_figures,
    shadow,
    transitions,
    versions,
)
from test_rollout import Clock

QUICK, SLOW = 2**-7, 0.5  # seconds that a version takes
NAMES, KEYS = ("v1", "v2", "v3"), (None, "anna", "ben", "carla", "dan", "eva")
GATES = (
    Gate(min_requests=2),
    Gate(min_requests=1_000_000),
    Gate(thresholds={"latency_p95": (None, 0.25)}, min_requests=2, failure_limit=1),
    Gate(thresholds={"error_rate": (None, 0.3)}, min_requests=3, failure_limit=0),
)
SETTINGS = settings(
    max_examples=2_000,
    stateful_step_count=30,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)
FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None  # where a file costs no disk
COUNT = 2  # workers
WORKERS, SHARES = st.integers(0, COUNT - 1), st.sampled_from([0, 10, 50, 100])
STEPS, INTERVALS = st.sampled_from([[10, 50, 100], [50, 100], [100]]), st.sampled_from([1, 4])
SECONDS = st.sampled_from([0, 0.5, 1, 4, 8])
MODES, FAULTS = ("shadow", "canary", "blue_green"), ("failing", "slow", "unloadable", "log", "disk")
ACTIONS = ("switch", "promote", "rollback", "rollback to", "pause", "resume")
THEN = st.sampled_from(  # what people do next
    [
        (),
        (),
        ("promote",),
        ("rollback", "rollback"),
        ("switch", "switch", "rollback"),
        ("switch", "rollback", "rollback"),
    ]
)


class Broken(RuntimeError):
    """What a version raises that fails."""


class World:
    """What the workers stand on: the time, the log, the disk, and what is the matter with each."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self.clock, self.folder = Clock(monkeypatch), folder
        monkeypatch.setattr("labsupport.log.prediction_log.clock", self.clock)
        engine = sql.create_engine("sqlite://", poolclass=sql.StaticPool, connect_args={"check_same_thread": False})
        tables.TABLES.create_all(engine)
        self.log, self.current = Log(engine), None
        started = SimpleNamespace(start=lambda work, name: self.current.loading.append(work), repeat=lambda *_: None)
        for module in (versions, shadow, ramp):
            monkeypatch.setattr(module, "background", started)
        monkeypatch.setattr(shadow, "_yield_the_core", lambda: None)
        opened = journal._opened
        monkeypatch.setattr(journal, "_opened", lambda *arguments: Disk(opened(*arguments), self))

    def clear(self) -> None:
        self.clock.now = 1_750_000_000.0
        self.log.clear()
        self.mend()

    def mend(self) -> None:
        self.failing, self.slow, self.unloadable, self.log.away = set(), set(), set(), False


class Log(PredictionLog):
    """A log in memory, which is written when it is read; it may be away."""

    def __init__(self, engine: sql.Engine) -> None:
        self.url, self._engine, self._writer = "sqlite:///memory", engine, self

    def clear(self) -> None:
        with self._engine.begin() as connection:
            for table in tables.TABLES.sorted_tables:
                connection.execute(sql.delete(table))
        self.rows, self._waiting, self.away, self.meanwhile = [], [], False, None

    def put(self, row: dict) -> None:
        self.rows.append(row)
        self._waiting.append(row)

    def stored(self) -> list[str]:
        self.away = False
        with self._reading() as connection:
            return sorted(connection.exec_driver_sql("SELECT id FROM predictions").scalars())

    @contextlib.contextmanager
    def _reading(self):
        if self.meanwhile:  # somebody does something while a look is under way
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        if self.away:
            raise LogUnavailable("the log is away")
        with self._engine.begin() as connection:
            if self._waiting:
                rows.insert(connection, self._waiting)
                self._waiting = []
            yield connection


class Disk:
    """A connection to a journal that fails while its worker's disk does."""

    def __init__(self, connection: sqlite3.Connection, world: World) -> None:
        connection.execute("PRAGMA synchronous=OFF")  # nobody pulls the plug here
        self._connection, self._worker = connection, world.current

    def execute(self, *statement):
        if self._worker.torn:
            raise sqlite3.OperationalError("disk I/O error")
        return self._connection.execute(*statement)

    def close(self) -> None:
        self._connection.close()


class Version:
    def __init__(self, version: str, world: World) -> None:
        self.version, self._world = version, world

    def detect(self, image, confidence=0.5):
        self._world.clock.now += SLOW if self.version in self._world.slow else QUICK
        if self.version in self._world.failing:
            raise Broken(self.version)
        return [Detection(self.version, 0.9, Box(0, 0, 1, 1))]


class Worker:
    """A process: a router, the watcher of its ramps, and what its other threads would do."""

    def __init__(self, path: Path, world: World) -> None:
        self.path, self.world, self.torn, self.router = path, world, False, None

    def start(self) -> None:
        self.stop()
        self.torn, self.loading, self.asked, self.given = False, [], 0, 0
        self.world.current = self
        self.router = Router(Version("v1", self.world), load=self._load, journal=self.path, log=self.world.log)
        self.ramps = Ramps({"m": self.router})
        self.ramps._stop = SimpleNamespace(wait=lambda seconds: None)

    def stop(self) -> None:
        if self.router:
            self.router.journal.close()

    def load(self) -> None:
        self.world.current = self
        while self.loading:
            self.loading.pop()()

    def show(self) -> None:
        while not self.router._shadow._waiting.empty():
            self.router._shadow._step()

    def loaded(self) -> list[str]:
        return self.router._versions.names()

    def _load(self, name: str) -> Version:
        if name in self.world.unloadable:
            raise OSError(f"{name} is gone")
        return Version(name, self.world)


class Rollouts(RuleBasedStateMachine):
    world: World

    def __init__(self) -> None:
        super().__init__()
        self.world.clear()
        path = self.world.folder / "rollout.db"
        self.workers = [Worker(path, self.world) for _ in range(COUNT)]
        for worker in self.workers:
            worker.start()
        self.witness = sqlite3.connect(path, isolation_level=None)
        # the model: who answers, who is on trial, where a rollback leads to, and the ramp
        self.stable, self.candidate, self.mode, self.share, self.paused = "v1", None, "stable", 0, False
        self.home, self.ramp, self.sticky = None, None, {}
        self.shown: list[str] = []  # ids of the pictures that a candidate in shadow must be shown

    def teardown(self) -> None:
        try:
            for worker in self.workers:
                worker.show()
            self.all_is_written()
        finally:
            self.witness.close()
            for worker in self.workers:
                worker.stop()
            for file in self.workers[0].path.parent.iterdir():
                file.unlink()

    def all_is_written(self) -> None:
        written = [row["id"] for row in self.world.log.rows if row["shadow"]]
        assert sorted(written) == sorted(self.shown), "each picture in shadow is written down once"
        recorded = sorted(row["id"] for row in self.world.log.rows)
        assert self.world.log.stored() == recorded, "the log holds what was recorded"

    # what a person does

    @rule(worker=WORKERS, mode=st.sampled_from(MODES), name=st.sampled_from(NAMES), share=SHARES, then=THEN)
    def let_in(self, worker, mode, name, share, then):
        share = {"blue_green": 0, "shadow": 100}.get(mode, share)
        arguments = (name,) if mode == "blue_green" else (name, share)
        with self.done_by(worker, name, moment=name != self.stable) as done:
            getattr(done.router, mode)(*arguments)
        if done.right:
            self.on_trial(mode, name, share)
        for action in then:
            self.act(worker, action, name)

    @rule(worker=WORKERS, name=st.sampled_from(NAMES), gate=st.sampled_from(GATES), steps=STEPS, interval=INTERVALS)
    def begin(self, worker, name, gate, steps, interval):
        self.begun(worker, name, gate, steps, interval)

    @rule(worker=WORKERS, gate=st.sampled_from(GATES), fault=st.sampled_from([None, "slow", "failing"]))
    def begin_with_another_version(self, worker, gate, fault):
        """A ramp that can begin, of a version that may be bad."""
        self.world.mend()
        self.workers[worker].torn = False
        name = next(name for name in NAMES if name != self.stable)
        if fault:
            getattr(self.world, fault).add(name)
        self.begun(worker, name, gate, [50, 100], 1)

    @precondition(lambda self: self.ramp)
    @rule(worker=WORKERS, gate=st.sampled_from(GATES))
    def begin_again(self, worker, gate):
        name, steps, interval = self.candidate, self.ramp.steps, self.ramp.interval
        self.act(worker, "rollback", name)
        if self.candidate is None:
            self.begun(worker, name, gate, steps, interval)

    def begun(self, worker, name, gate, steps, interval):
        with self.done_by(worker, name, moment=name != self.stable) as done:
            self.workers[worker].ramps.start("m", name, steps, gate, interval)
        if done.right:
            self.on_trial("canary", name, steps[0])
            self.ramp = SimpleNamespace(gate=gate, steps=steps, interval=interval, since=self.now, failures=0)
            self.ramp.began = self.ramp.failed = self.now

    @rule(worker=WORKERS, action=st.sampled_from(ACTIONS), name=st.sampled_from(NAMES))
    def act(self, worker, action, name):
        if action == "rollback to":
            return self.rollback_to(worker, name)
        moments = {"switch": self.mode == "blue_green", "rollback": self.home is not None, "resume": True}
        with self.done_by(worker, moment=moments.get(action, self.candidate is not None)) as done:
            getattr(done.router, action)()
        if done.right and action == "switch":
            self.stable, self.candidate = self.candidate, self.stable
        elif done.right:
            {"promote": self.promoted, "rollback": self.rolled_back}.get(action, lambda: None)()
            self.paused = {"pause": True, "resume": False}.get(action, self.paused)

    def rollback_to(self, worker, name):
        returns = self.mode == "blue_green" and name == self.home
        with self.done_by(worker, name, moment=name != self.candidate or returns) as done:
            done.router.rollback(to=name)
        if done.right and (name, None) != (self.stable, self.candidate):
            self.nothing_on_trial(name)

    # what goes wrong, and right again

    @rule(what=st.sampled_from(FAULTS), name=st.sampled_from(NAMES[1:]), worker=WORKERS)
    def something_breaks(self, what, name, worker):
        if what == "log":
            self.world.log.away = True
        elif what == "disk":
            self.workers[worker].torn = True
        else:
            getattr(self.world, what).add(name)

    @rule()
    def all_is_mended(self):
        self.world.mend()
        for worker in self.workers:
            worker.torn = False
        self.agreed()

    @precondition(lambda self: self.candidate)
    @rule(count=st.integers(1, 4))
    def a_latency_is_not_known(self, count):
        """Rows that somebody else wrote."""
        for _ in range(count):
            self.world.clock.now += QUICK
            number = len(self.world.log.rows)
            row = {"id": f"row {number}", "version": self.candidate, "detections": [], "features": None}
            self.world.log.record(**row, latency=None)

    @rule(worker=WORKERS)
    def restart(self, worker):
        gone = self.world.unloadable & {self.stable, self.candidate, self.home}
        waiting = self.workers[worker].router._shadow._waiting
        while not waiting.empty():  # what a process had in memory is lost
            self.shown.remove(waiting.get()[1].id)
        self.workers[worker].start()
        if self.stable in gone:
            self.nothing_on_trial("v1")
        elif self.candidate in gone:
            self.nothing_on_trial(self.stable)
        elif self.home in gone and self.mode == "stable":
            self.home = None
        self.agreed()

    # what threads do

    @rule(worker=WORKERS)
    def load(self, worker):
        self.workers[worker].load()

    @rule(worker=WORKERS)
    def show(self, worker):
        self.workers[worker].show()

    @precondition(lambda self: self.ramp)
    @rule(worker=WORKERS, action=st.sampled_from(ACTIONS), name=st.sampled_from(NAMES))
    def look_while_somebody_acts(self, worker, action, name):
        """Just when a worker's watcher reads the log, somebody does something at another worker."""
        between, before = [], self.truth()
        self.world.log.meanwhile = lambda: (self.act((worker + 1) % COUNT, action, name), between.append(self.truth()))
        self.looked(self.workers[worker], 4, lambda: between and between[0] != before)
        self.world.log.meanwhile = None

    # what users do

    @rule(worker=WORKERS, key=st.sampled_from(KEYS), count=st.integers(1, 4))
    def ask(self, worker, key, count):
        for _ in range(count):
            self.asked(self.workers[worker], key)

    @rule(workers=st.permutations(range(COUNT)), count=st.integers(1, 4), seconds=SECONDS)
    def a_while(self, workers, count, seconds):
        """Users ask every worker, and then the watchers come by, twice."""
        for worker in workers:
            self.workers[worker].load()
            for number in range(count):
                self.asked(self.workers[worker], KEYS[number])
        for worker in [*workers, *workers]:
            self.looked(self.workers[worker], seconds / COUNT)

    @precondition(lambda self: self.mode == "canary")
    @rule(worker=WORKERS)
    def census(self, worker):
        """Of a hundred keys, no more than its share belong to the candidate, but for chance."""
        self.world.current, router = self.workers[worker], self.workers[worker].router
        view = router.state
        spread = (view.share * (100 - view.share) / 100) ** 0.5
        with contextlib.suppress(ModelUnavailable):
            count = sum(router.choose(f"key {one}").version == view.candidate for one in range(100))
            assert count <= view.share + 5 * spread, f"{count} of 100 keys at {view.share} %"

    # the model

    @property
    def now(self) -> float:
        return self.world.clock.now

    def truth(self) -> dict:
        """What the journal's file says."""
        row = self.witness.execute("SELECT state FROM states ORDER BY number DESC LIMIT 1").fetchone()
        return json.loads(row[0])

    def looked(self, worker: Worker, seconds: float, overtaken=lambda: False) -> None:
        """Some time passes, and a worker's watcher comes by."""
        self.world.clock.now += seconds
        self.world.current, before = worker, self.truth()
        try:
            worker.ramps._step("m")
        except LogUnavailable:
            assert self.world.log.away
        except journal.JournalUnavailable:
            assert worker.torn
        after = self.truth()
        if not overtaken() and after != before:
            assert not worker.torn and not self.world.log.away
            self.judged(after)
        self.agreed()

    @contextlib.contextmanager
    def done_by(self, number, name=None, moment=True):
        """Something that a person does at a worker: it works, or says why not and changes nothing."""
        worker, before = self.workers[number], self.truth()
        self.world.clock.now += QUICK
        self.world.current, done = worker, SimpleNamespace(router=worker.router, right=False)
        missing = name in self.world.unloadable and name not in worker.loaded()
        try:
            yield done
            assert moment and not missing and not worker.torn, "it made no sense, and was done"
            done.right = True
        except journal.JournalUnavailable:
            assert worker.torn
        except ModelUnavailable:
            assert missing
        except WrongMoment:
            assert not moment, "it was refused, and made sense"
        if not done.right:
            assert self.truth() == before, "what is refused changes nothing"

    def on_trial(self, mode, name, share):
        self.sticky = self.sticky if name == self.candidate else {}
        self.mode, self.candidate, self.share, self.home = mode, name, share, self.stable
        self.paused, self.ramp = False, None
        self.counted_anew()

    def nothing_on_trial(self, stable):
        self.stable, self.candidate, self.mode, self.share = stable, None, "stable", 0
        self.home, self.paused, self.ramp = None, False, None
        self.counted_anew()

    def promoted(self):
        before, candidate = self.stable, self.candidate
        self.nothing_on_trial(candidate)
        self.home = before

    def rolled_back(self):
        if self.mode == "blue_green" and self.stable != self.home:  # the two change places again
            self.stable, self.candidate = self.home, self.stable
        else:
            self.nothing_on_trial(self.home)

    def counted_anew(self):
        for worker in self.workers:
            worker.asked = worker.given = 0

    def judged(self, after: dict) -> None:
        """A look has changed something: only as the gate says that the present ramp was begun with, and not too often."""
        ramp = self.ramp
        assert ramp and not self.paused, f"{after['action']} without a ramp"
        if after["action"] == "promote":
            assert self.passes(), f"{after['reason']}, {after['figures']}: not by {ramp.gate}"
            higher = [step for step in ramp.steps if step > self.share]
            if higher:
                self.share, ramp.since = higher[0], self.now
                self.counted_anew()
            else:
                self.promoted()
            return
        assert after["action"] in ("rollback", "check failed")
        if after["figures"]["failures"] > ramp.failures:
            assert self.now - ramp.failed >= ramp.interval - 1e-6, "two checks failed within one interval"
            ramp.failed, ramp.failures = self.now, ramp.failures + 1
            assert (after["action"] == "rollback") == (ramp.failures > ramp.gate.failure_limit)
        else:
            assert after["action"] == "rollback" and after["figures"]["e_value"] >= 1 / ramp.gate.alpha
        if after["action"] == "rollback":
            self.nothing_on_trial(self.stable)

    def passes(self) -> bool:
        """Whether the candidate's requests in this step are within the limits of its ramp's gate, all of them known."""
        ours = [row for row in self.world.log.rows if row["version"] == self.candidate and not row["shadow"]]
        step = [row for row in ours if row["time"] >= self.ramp.since and not 400 <= row["status"] < 500]
        limits = self.ramp.gate.thresholds
        if len(step) < self.ramp.gate.min_requests:
            return False
        if "error_rate" in limits and np.mean([row["status"] >= 500 for row in step]) > limits["error_rate"][1]:
            return False
        if "latency_p95" not in limits:
            return True
        known = all(row["latency"] is not None for row in step)
        return known and np.percentile([row["latency"] for row in step], 95) <= 1.02 * limits["latency_p95"][1]

    def agreed(self) -> None:
        """The journal says what the model says, and so does every worker whose disk works."""
        now = self.truth()
        said = (now["stable"], now["candidate"], now["mode"], now["share"], now["paused"], now["ramp"] is not None)
        assert said == (self.stable, self.candidate, self.mode, self.share, self.paused, self.ramp is not None)
        for worker in self.workers:
            state = worker.router.state
            assert worker.torn or (state.time, state.action) == (now["time"], now["action"])

    def asked(self, worker: Worker, key: str | None) -> None:
        """Ask for one answer: from a version that may give it, written down once, shown to the shadow once."""
        self.world.current, log = worker, self.world.log
        view, there, before = worker.router.state, worker.loaded(), len(log.rows)
        try:
            answer, error = worker.router.detect(None, key=key)[0].label, None
        except Broken as raised:
            answer, error = str(raised), "Broken"
        except ModelUnavailable:
            answer, error = None, "ModelUnavailable"
            assert view.stable not in there and view.candidate == "v1"
        written = [row for row in log.rows[before:] if not row["shadow"]]
        (row,) = written  # every answer and every failure, once
        assert (row["version"], row["error"], row["key"]) == (answer, error, key)
        assert row["status"] == (500 if error else 200)
        on_trial = view.mode == "canary" and view.candidate in there
        if answer == view.candidate and not (on_trial and answer):
            assert answer in (None, view.previous), f"{answer} is {view.mode}, and answers"
        if answer not in (None, view.candidate):
            assert answer == view.stable or (view.stable not in there and answer in (view.previous, "v1"))
        if on_trial and not worker.torn:
            self.shared(worker, key, answer == view.candidate)
        if view.mode == "shadow" and not view.paused and not error:
            self.shown.append(row["id"])

    def shared(self, worker: Worker, key: str | None, given: bool) -> None:
        """The candidate on trial got this request, or not: is that within its share, and as before for this key?"""
        assert self.share > 0 or not given
        if key is None:
            worker.asked, worker.given = worker.asked + 1, worker.given + given
            assert worker.given <= worker.asked * self.share / 100 + 2, "more than its share"
        elif given:
            self.sticky[key] = min(self.share, self.sticky.get(key, 100))
        else:
            assert self.sticky.get(key, 101) > self.share, f"{key} had the candidate at a lower weight"


@pytest.fixture
def world(monkeypatch):
    logging.disable()  # what goes wrong here is said a hundred thousand times
    try:
        with tempfile.TemporaryDirectory(dir=FAST) as folder:
            monkeypatch.setattr(Rollouts, "world", World(monkeypatch, Path(folder)), raising=False)
            monkeypatch.setattr(
                "labsupport.rollout.canary_split.SystemRandom", lambda: random.Random(0)
            )  # steps repeat
            yield
    finally:
        logging.disable(logging.NOTSET)


def test_the_promises_of_a_rollout_hold_whatever_happens_in_whatever_order(world):
    run_state_machine_as_test(Rollouts, settings=SETTINGS)


# the machine itself: it finds the faults that it is there for, if they are made again


def any_ramp_is_mine(monkeypatch):
    """A watcher whose ramp was taken back goes on with the next one, by the gate that it had."""
    monkeypatch.setattr(Rollout, "_goes_on", lambda rollout, state: state.ramp is not None)


def failures_are_not_written_down(monkeypatch):
    def detect(router, image, confidence=0.5, key=None):
        chosen = router.choose(key)
        found = chosen.detect(image, confidence)
        id = secrets.token_hex(16)
        router.log.record(id=id, version=chosen.version, latency=0.01, detections=found, features=None, key=key)
        router.mirror(id, image, confidence, key)
        return found

    monkeypatch.setattr(Router, "detect", detect)


def what_is_not_known_is_nan(monkeypatch):
    """And NaN is beyond no limit."""
    figures = ramp_figures.Watch.figures

    def with_nan(watch, since):
        return {name.removesuffix("_unknown"): np.nan for name in figures(watch, since)} | figures(watch, since)

    monkeypatch.setattr(ramp_figures.Watch, "figures", with_nan)
    monkeypatch.setattr("labsupport.rollout.gate.plain", lambda figures: figures)  # which takes NaN for unknown


def each_worker_counts(monkeypatch):
    """Nobody asks the journal whether another worker has just looked."""
    monkeypatch.setattr(journal.Journal, "claim", lambda *arguments: 0.0)


def a_second_rollback_goes_further_back(monkeypatch):
    def let_in(state, *arguments):
        return replace(transitions.let_in(state, *arguments), previous=state.previous)

    monkeypatch.setattr("labsupport.rollout.router.let_in", let_in)
    calm = transitions.calm
    monkeypatch.setattr(transitions, "calm", lambda state: replace(calm(state), previous=state.previous))


def a_second_switch_is_undone(monkeypatch):
    def switched(state):
        return replace(transitions.switched(state), previous=state.stable)

    monkeypatch.setattr("labsupport.rollout.router.switched", switched)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (any_ramp_is_mine, "not by Gate"),
        (failures_are_not_written_down, "not enough values to unpack"),
        (what_is_not_known_is_nan, "not by Gate"),
        (each_worker_counts, "two checks failed within one interval"),
        (a_second_rollback_goes_further_back, None),
        (a_second_switch_is_undone, None),
    ],
)
def test_the_machine_finds_what_it_is_there_for(world, monkeypatch, fault, said):
    fault(monkeypatch)
    first = settings(SETTINGS, phases=[Phase.generate], report_multiple_bugs=False)
    with pytest.raises((AssertionError, ValueError), match=said):
        run_state_machine_as_test(Rollouts, settings=first)
