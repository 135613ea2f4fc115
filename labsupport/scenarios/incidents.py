"""Make traffic to test alarms: simulated hours with an incident, and clients that send pictures to a live server.

All data of `simulate` are made up. We draw users who send a few pictures each, of one scene, to a server with three slots
and a bounded queue; the answers are drawn, too. Times start at 0, and nothing waits: an hour is simulated in a moment.
"""

import heapq
import threading
import time as clock
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from labsupport import arguments
from labsupport.detection import Box, Detection

if TYPE_CHECKING:
    from labsupport.log import PredictionLog
    from labsupport.monitoring import Alarms

HOUR = 3600.0
PICTURES, PAUSE = 4, 8.0  # of one user, on average; seconds between them
SLOTS, PLACES = 3, 39  # of the simulated server
SERVICE = 0.12  # seconds for a picture, on a small machine: 25 pictures a second are what it can do
PATIENCE = 80.0  # seconds
SENSED = ("brightness", "contrast", "sharpness", "saturation")
SEEN = (*SENSED, "n_detections", "max_confidence", "correct", "labels", "retry")
Rows = dict[str, np.ndarray]


@dataclass(frozen=True)
class Incident:
    """An incident: how it changes the rows from its start on, and the alarm that should fire."""

    alarm: str
    about: str
    strike: Callable[[Rows, np.ndarray, np.random.Generator], None]
    crowd: float = 0.0  # requests a second that come on top


@dataclass(frozen=True)
class Traffic:
    """Rows in the order of time, as arrays of one length, with NaN for missing values. `rows["key"]` is a number for each
    user; `spoken` is the time of the user's feedback."""

    rows: Rows
    spoken: np.ndarray

    def columns(self, *names: str, since: float = -np.inf, until: float = np.inf) -> Rows:
        """Return columns as `PredictionLog.columns` does, as they were at `until`: later feedback is not known yet."""
        first, last = np.searchsorted(self.rows["time"], [since, until])
        part = {name: self.rows[name][first:last] for name in names}
        unsaid = self.spoken[first:last] > until
        said = {name: np.where(unsaid, np.nan, part[name]) for name in ("correct", "labels", "retry") if name in part}
        return part | said

    def write(self, log: "PredictionLog", began: float = 0.0) -> None:
        """Write the traffic to a log, as if it had begun at `began`, in seconds since the epoch."""
        for number, row in enumerate(zip(*self.rows.values(), strict=True)):
            _record(log, str(number), dict(zip(self.rows, map(float, row), strict=True)), began)
            if number % 5_000 == 4_999:  # more would not find room to wait
                log.flush(60)
        log.flush(60)
        for number in np.flatnonzero(np.isfinite(self.spoken)).tolist():
            correct, labels, retry = (float(self.rows[name][number]) for name in ("correct", "labels", "retry"))
            right = bool(correct) if np.isfinite(correct) else None
            log.feedback(str(number), right, ["car"] if labels == 1 else None, retry == 1)


def simulate(
    incident: str | None = None, start: float = HOUR, seconds: float = HOUR + 900, rate: float = 2.0, seed: int = 0
) -> Traffic:
    """Return traffic of `rate` requests a second. From `start` on it contains an incident, one of `INCIDENTS`, or none.

    Before `start`, traffic of the same seed is the same for every incident. Raises ValueError for an unknown incident,
    and for a time or a rate that is not positive.

    >>> traffic = simulate("darkness", start=60, seconds=120)
    >>> before = traffic.columns("brightness", until=60)["brightness"]
    >>> after = traffic.columns("brightness", since=60)["brightness"]
    >>> float(np.nanmean(before).round(2)), float(np.nanmean(after).round(2))
    (0.46, 0.09)
    """
    if incident not in (None, *INCIDENTS):
        raise ValueError(f"incident={arguments.shown(incident)}: give None, or one of {', '.join(INCIDENTS)}")
    seconds = arguments.number("seconds", seconds, 0, ends=False)
    start = arguments.number("start", start, 0)
    rate = arguments.number("rate", rate, 0, ends=False)
    random, chance = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    rows = _healthy(random, 0.0, seconds, rate)
    if incident:
        found = INCIDENTS[incident]
        if found.crowd:
            rows = _merged(rows, _healthy(chance, start, seconds, found.crowd))
        now = rows["time"] >= start
        found.strike(rows, now, chance)
    _queue(rows)
    rows["latency"][rows["status"] == 503] = np.nan
    for name in SEEN:
        rows[name][rows["status"] != 200] = np.nan
    silent = ~np.isfinite(rows["correct"]) & ~np.isfinite(rows["labels"]) & ~(rows["retry"] == 1)
    rows["spoken"][silent] = np.nan
    spoken = rows.pop("spoken")
    return Traffic(rows, spoken)


def _healthy(random: np.random.Generator, start: float, end: float, rate: float) -> Rows:
    """Draw healthy rows. Users come at random and send a few pictures of one scene, so neighbouring rows are a little
    alike.
    """
    users = random.poisson((end - start) * rate / PICTURES)
    pictures = random.geometric(1 / PICTURES, users)
    user = np.repeat(np.arange(users), pictures)
    times = start + np.sort(random.uniform(0, end - start, users))[user]
    first = np.concatenate([[True], user[1:] != user[:-1]])
    waited = np.cumsum(random.exponential(PAUSE, len(user)))
    times += waited - np.maximum.accumulate(np.where(first, waited, 0))
    scene, busy = random.normal(0.45, 0.08, users)[user], random.gamma(4, 0.75, users)[user]
    count = len(user)
    found = random.poisson(busy).astype(float)
    rows = {
        "time": times,
        "key": user.astype(float),
        "status": random.choice([200.0, 415.0, 500.0], count, p=[0.989, 0.01, 0.001]),
        "latency": random.lognormal(np.log(SERVICE), 0.25, count),
        "brightness": np.clip(scene + random.normal(0, 0.03, count), 0.02, 0.98),
        "contrast": np.clip(random.normal(0.2, 0.04, count), 0.01, 0.5),
        "sharpness": random.lognormal(6, 0.5, count),
        "saturation": random.beta(4, 8, count),
        "n_detections": found,
        "max_confidence": np.where(found > 0, 0.5 + 0.5 * random.beta(3, 2, count), np.nan),
        **_feedback(random, count, 0.01),
        "spoken": times + random.exponential(30, count),
    }
    return _ordered({name: values[times < end] for name, values in rows.items()})


def _feedback(random: np.random.Generator, count: int, wrong: float) -> Rows:
    """Draw feedback. Of 100 users three report a right answer, some a wrong one, half of these with a correction; one
    asks again.
    """
    drawn, corrected = random.random(count), random.random(count) < 0.5
    bad = drawn < wrong
    correct = np.where(bad, 0.0, np.where(drawn > 0.97, 1.0, np.nan))
    labels = np.where(bad & corrected, 1.0, np.nan)
    retry = random.random(count) < 0.01
    return {"correct": correct, "labels": labels, "retry": np.where(retry, 1.0, np.nan)}


def _ordered(rows: Rows) -> Rows:
    order = np.argsort(rows["time"], kind="stable")
    return {name: values[order] for name, values in rows.items()}


def _merged(some: Rows, others: Rows) -> Rows:
    others = others | {"key": others["key"] + some["key"].max() + 1}  # other users
    return _ordered({name: np.concatenate([values, others[name]]) for name, values in some.items()})


def _queue(rows: Rows) -> None:
    """Give a 503 to requests that find all places taken. A picture's latency does not include the wait."""
    free = [0.0] * SLOTS
    leaving: list[float] = []
    for number, (time, service) in enumerate(zip(rows["time"], rows["latency"], strict=True)):
        while leaving and leaving[0] <= time:
            heapq.heappop(leaving)
        if len(leaving) >= PLACES:
            rows["status"][number] = 503.0
            continue
        end = max(time, free[0]) + service
        heapq.heapreplace(free, end)
        heapq.heappush(leaving, end)


def _darkness(rows: Rows, now: np.ndarray, random: np.random.Generator) -> None:
    """Reduce the light to a fifth: half of the objects are missed, and the confidence of the others falls."""
    rows["brightness"][now] *= 0.2
    rows["contrast"][now] *= 0.3
    _miss_half(rows, now, random)
    rows["max_confidence"][now] = 0.5 + 0.7 * (rows["max_confidence"][now] - 0.5)


def _miss_half(rows: Rows, now: np.ndarray, random: np.random.Generator) -> None:
    rows["n_detections"][now] = random.binomial(rows["n_detections"][now].astype(int), 0.5)
    rows["max_confidence"][rows["n_detections"] == 0] = np.nan


def _dirty_lens(rows: Rows, now: np.ndarray, random: np.random.Generator) -> None:
    """Blur pictures: half of the objects are missed, and half of the users who get a null answer ask again."""
    rows["sharpness"][now] *= 0.1
    _miss_half(rows, now, random)
    rows["retry"][now & (rows["n_detections"] == 0) & (random.random(len(now)) < 0.5)] = 1.0


def _overload(rows: Rows, now: np.ndarray, random: np.random.Generator) -> None:
    """Make pictures slower, because slots that are always busy share the cores."""
    rows["latency"][now] *= 1.3


def _undecodable(rows: Rows, now: np.ndarray, random: np.random.Generator) -> None:
    rows["status"][now & (random.random(len(now)) < 0.3)] = 415.0


def _blind(rows: Rows, now: np.ndarray, random: np.random.Generator) -> None:
    blind = now & (random.random(len(now)) < 0.9)
    rows["n_detections"][blind], rows["max_confidence"][blind] = 0.0, np.nan


def _failing(rows: Rows, now: np.ndarray, random: np.random.Generator) -> None:
    rows["status"][now & (rows["status"] == 200) & (random.random(len(now)) < 0.2)] = 500.0


def _corrections(rows: Rows, now: np.ndarray, random: np.random.Generator) -> None:
    rows.update({name: np.where(now, new, rows[name]) for name, new in _feedback(random, len(now), 0.2).items()})


INCIDENTS = {
    "darkness": Incident("Dark", "a lamp is out: a fifth of the light is left", _darkness),
    "overload": Incident("Overloaded", "40 requests a second more, for a server that can do 25", _overload, 40.0),
    "undecodable files": Incident("UndecodableFiles", "an app sends HEIC: 30 % of the uploads", _undecodable),
    "blind model": Incident("NothingFound", "a new version finds nothing in 90 % of the pictures", _blind),
    "failing model": Incident("ModelFails", "a new version fails on 20 % of the pictures", _failing),
    "users correct": Incident(
        "UsersCorrect", "labels were mixed up: 20 % of the answers are called wrong", _corrections
    ),
    "dirty lens": Incident(
        "UsersRetry", "pictures are blurred, and users who get a null answer ask again", _dirty_lens
    ),
}


def _record(log: "PredictionLog", id: str, row: dict[str, float], began: float) -> None:
    status, count = int(row["status"]), row["n_detections"]
    sure = 0.0 if np.isnan(row["max_confidence"]) else row["max_confidence"]
    errors = {200: None, 415: "UnsupportedImage", 500: "RuntimeError", 503: "Overloaded"}
    log.record(
        id=id,
        key=f"user {row['key']:.0f}",
        time=began + row["time"],
        version="simulated",
        latency=None if status == 503 else row["latency"],
        detections=[Detection("car", sure, Box(0, 0, 1, 1))] * int(count) if status == 200 else None,
        features={name: row[name] for name in SENSED} if status == 200 else None,
        status=status,
        error=errors[status],
    )


def send(
    url: str,
    files: Sequence[bytes],
    until: int | str,
    alarms: "Alarms | None" = None,
    clients: int = 2,
    say: Callable[[dict[str, Any]], dict[str, Any] | None] | None = None,
    keys: bool = True,
) -> None:
    """Let clients send files to a running server, each one after the other, and print what `alarms` report meanwhile.

    It ends after `until` answers, or at an event of an alarm, such as "Dark fired". `say` returns a remark on an answer, as
    `/feedback` takes it, or None. Without `keys` requests do not name their user. Raises TimeoutError after 80 seconds, and
    the error of a client, such as requests.ConnectionError if the server is gone.
    """
    import requests
    from urllib3 import Retry

    again = Retry(1, allowed_methods=None, respect_retry_after_header=False)  # a busy server may cut a connection
    answered, heard, over, began = list[int](), list[str](), threading.Event(), clock.monotonic()

    def client(number: int) -> None:
        random = np.random.default_rng([clock.perf_counter_ns(), number])
        with requests.Session() as session:
            session.mount("http://", requests.adapters.HTTPAdapter(max_retries=again))
            while not over.is_set():
                headers = {"X-Client-Key": f"user {random.integers(50)}"} if keys else {}
                upload = {"file": files[int(random.integers(len(files)))]}
                answer = session.post(f"{url}/detect", files=upload, headers=headers, timeout=30)
                if say and answer.ok and (remark := say(answer.json())):
                    session.post(f"{url}/feedback", json=remark, timeout=30)
                answered.append(answer.status_code)

    with ThreadPoolExecutor(clients) as pool:
        working = [pool.submit(client, number) for number in range(clients)]
        try:
            while until not in heard and not (isinstance(until, int) and len(answered) >= until):
                for one in filter(Future.done, working):
                    one.result()  # raises: a client ends before `over` only by an error
                if clock.monotonic() - began > PATIENCE:
                    raise TimeoutError(f"not within {PATIENCE:.0f} seconds: {until}, after {len(answered)} answers")
                clock.sleep(0.2)
                for event in alarms.evaluate() if alarms else ():
                    print(event.text)
                    heard.append(f"{event.alarm} {event.event}")
        finally:
            over.set()
    for one in working:
        one.result()  # raises what the client met
