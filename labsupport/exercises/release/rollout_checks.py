"""Define the exercises of deployment_patterns.ipynb."""

from collections.abc import Callable, Mapping
from unittest.mock import patch

import numpy as np
import requests

from labsupport import loopback
from labsupport.exercises.exercise import OpenExercise, Question, exercise, is_number
from labsupport.rollout import Gate, Outcomes

FIRST = {  # use case -> the pattern to begin with
    "captions": "canary",
    "letters": "shadow",
    "prices": "blue/green",
}
# of users with a new camera, and with an old one: the share of wrong answers; their shares among volunteers and all users
WRONG, VOLUNTEERS, ALL = (0.04, 0.24), (0.80, 0.20), (0.25, 0.75)
KEYS = [f"user {number}" for number in range(4_000)]


@exercise(
    "Ask of each case: who does the task today?",
    "If nobody does it, there is nothing to compare with. If a person does it, we can compare without any risk.",
    "If two answers must never be seen side by side, all users change at the same moment.",
)
def first_pattern(answer: Mapping[str, str]) -> str | None:
    """deployment_patterns.ipynb: the pattern to begin with for a new feature, a task of people and a model to replace."""
    if not isinstance(answer, Mapping) or (missing := FIRST.keys() - answer.keys()):
        names = ", ".join(FIRST if not isinstance(answer, Mapping) else sorted(missing))
        return f"give a dictionary with a pattern for each case; missing: {names}"
    if answer["letters"] == "canary":
        return "letters: clerks decide today, so we can first compare the model with them while no letter is at risk"
    if answer["captions"] == "shadow":
        return "captions: nobody writes captions today, so a shadow would have nothing to be compared with"
    if answer["prices"] in ("canary", "ramp"):
        return f"prices: in a {answer['prices']} two versions answer side by side, so two shops show different prices"
    wrong = [name for name in FIRST if answer[name] != FIRST[name]]
    return f"{wrong[0]}: {answer[wrong[0]]!r} is not what the table begins with" if wrong else None


@exercise(
    "How many of all answers come from the candidate?",
    "Multiply that share by the share of the candidate's answers that fail.",
)
def canary_risk(answer: float) -> str | None:
    """deployment_patterns.ipynb: the share of answers that are errors: a third of a canary's 5 %."""
    if not is_number(answer):
        return "give a number between 0 and 1"
    if abs(answer - 1 / 3) < 0.01:
        return "that is the share among the candidate's answers: what share of all answers are these?"
    if abs(answer - 0.05) < 0.001:
        return "that is the candidate's share of all answers: not all of them are errors"
    if abs(answer - 5 / 3) < 0.05:
        return "that is in percent: give it as a share, so that 0.5 stands for 50 %"
    return None if abs(answer - 1 / 60) < 0.001 else f"{answer} is not it: it takes a share of a share"


@exercise(
    "Of 100 users, how many have each camera? How many of their answers are wrong?",
    "Weight the two shares of wrong answers by the cameras of all users, and add them.",
)
def errors_for_all(answer: float) -> str | None:
    """deployment_patterns.ipynb: the share of wrong answers among all users, from that of volunteers with each camera."""
    if not is_number(answer):
        return "give a number between 0 and 1"
    new, old = WRONG
    right = ALL[0] * new + ALL[1] * old
    wrong = {
        VOLUNTEERS[0] * new
        + VOLUNTEERS[1] * old: "that is the share among the volunteers: most other users have old cameras",
        (new + old) / 2: "that is the mean of both cameras, as if each had as many users",
        ALL[1] * new + ALL[0] * old: "which camera do most users have? The two weights are the other way round",
        100 * right: "that is in percent: give it as a share, so that 0.5 stands for 50 %",
    }
    for value, verdict in wrong.items():
        if abs(answer - value) < 0.001:
            return verdict
    return None if abs(answer - right) < 0.001 else f"{answer} is not it: how many of all users have which camera?"


@exercise(
    "hashlib.sha256(key.encode()).hexdigest() is a number in base 16: int(..., 16) reads it.",
    "The remainder after a division by 10,000 is between 0 and 9,999: a hundredth of a percent each. Compare it.",
)
def own_router(goes_to_candidate: Callable[[str, float], bool]) -> str | None:
    """deployment_patterns.ipynb: a function that says whether the candidate answers a key, at a share in percent."""
    first = [bool(goes_to_candidate(key, 10)) for key in KEYS]
    if first != [bool(goes_to_candidate(key, 10)) for key in KEYS]:
        return "the same key got one version now and another one a moment later"
    with patch.dict(getattr(goes_to_candidate, "__globals__", {}), hash=_hash_after_a_restart):
        if first != [bool(goes_to_candidate(key, 10)) for key in KEYS]:
            return "the same key gets another version when Python starts again: hash() of a text changes then"
    if not 0.07 < np.mean(first) < 0.13:
        return f"at a share of 10 %, {np.mean(first):.0%} of 4,000 keys go to the candidate"
    later = [bool(goes_to_candidate(key, 50)) for key in KEYS]
    if lost := sum(before and not after for before, after in zip(first, later, strict=True)):
        return (
            f"when the share grows from 10 to 50 %, {lost} keys leave the candidate: no user should go back and forth"
        )
    if any(goes_to_candidate(key, 0) for key in KEYS) or not all(goes_to_candidate(key, 100) for key in KEYS):
        return "at a share of 0 nobody goes to the candidate, and at 100 everybody does: < or <= ?"
    half, whole = ([bool(goes_to_candidate(key, share)) for key in KEYS] for share in (0.5, 1))
    if not any(half):
        return "at a share of 0.5 % nobody goes to the candidate: a share need not be a whole number of percents"
    return "at 0.5 and at 1 % the same keys go to the candidate: divide by more than 100" if half == whole else None


def _hash_after_a_restart(value: object) -> int:
    """Return what `hash(value)` may be in another process: for texts it is another number each time Python starts."""
    return hash((value, "restarted")) if isinstance(value, str | bytes) else hash(value)


@exercise(
    "Which metric counts answers without an object? Its name is in the figures above.",
    "failure_limit is the number of failed checks that are allowed before the next one rolls back.",
    "A limit is a pair (least, most) in thresholds. It must lie between one in ten and one in two.",
)
def null_gate(gate: Gate) -> str | None:
    """deployment_patterns.ipynb: a gate that rolls back a candidate that finds nothing much more often than the stable
    version.
    """
    if gate.min_requests < 50:
        return f"it decides on {gate.min_requests} requests: min_requests=50 at least"
    if (verdict := gate.judge(_nulls(0.1), "v1", "v2").verdict) != "promote":
        return f"to a candidate as good as the stable version it says {verdict}, not promote"
    verdict = gate.judge(_nulls(0.5), "v1", "v2").verdict
    if verdict == "hold":
        return "to one that finds nothing in half of its pictures it says hold: how many failed checks does it allow?"
    if verdict == "promote":
        return "to one that finds nothing in half of its pictures it says promote: which metric would show it?"
    return None


@exercise(
    "The second server needs a token: LAB_TOKEN=0123456789abcdef labsupport serve --port 8123",
    "labsupport rollout lists the versions that can be loaded. The action to begin with is ramp.",
    "--steps takes the shares with commas between them; PUT /rollout takes a list called steps.",
)
def ramp_by_request(url: str) -> str | None:
    """deployment_patterns.ipynb: a server of one's own, on which a ramp that begins with 7 % is under way."""
    if not isinstance(url, str):
        return "give the address of your server, such as http://127.0.0.1:8123"
    loopback.ask_directly()
    try:
        state = requests.get(f"{url.rstrip('/')}/rollout", timeout=10).json()
    except requests.RequestException as error:
        return f"nobody answers there ({type(error).__name__}): does your server run?"
    if state.get("mode") != "canary":
        return f"it says {state.get('phase', state)}, and no candidate answers anybody: what did PUT /rollout answer?"
    if state["action"] == "canary":
        return "a canary runs there, whose share grows only by hand: the action of a ramp is another one"
    if state["share"] != 7:
        return f"the ramp there is at {state['share']:g} %: begin one with steps of 7, 70 and 100 %, and with time for each"
    return None


@exercise(
    "The e-value of a candidate that is no worse reaches 1/alpha with a probability of at most alpha.",
    "Here alpha is the promise: at most one good candidate in a hundred.",
)
def e_value_limit(answer: float) -> str | None:
    """deployment_patterns.ipynb: the e-value at which to roll back, if at most 1 % of good candidates may be."""
    if not is_number(answer):
        return "give a number"
    if answer == 20:
        return "that is the limit for a promise of 5 %"
    if answer <= 1:
        return f"every e-value starts at 1, so a limit of {answer:g} would stop each candidate before its first request"
    if answer < 100:
        return f"a good candidate may reach {answer:g} with a probability of up to {1 / answer:.1%}"
    return (
        None
        if answer == 100
        else "that keeps the promise, but a lower limit does, too, and finds bad candidates sooner"
    )


rollout_plan = OpenExercise(
    "Nurses assess photos of wounds today, so a person does the task. First shadow: for four weeks the model assesses each "
    "photo and nobody sees it. We compare it with the nurses, and with a doctor where they differ. We go on if it misses "
    "at most 1 % of bad wounds, with an exact bound. Then a canary with one ward of volunteers, then a ramp of 5, 25 and "
    "100 % of the wards. The key is the patient. A gate checks errors, latency and corrections. The way back is one call, "
    "and the nurse in charge may make it.",
    "Does your plan say who does the task today, and so which pattern comes first?",
    "Is there a number, written down before, that decides to go on, and one that decides to go back?",
    "Is it said who or what goes back, how long that takes, and what the key of a user is?",
)

shadow_question = Question(
    "A candidate has run in shadow for a week, and its answers agree with the stable version's. What do we not know?",
    right="b",
    a=("whether it is fast enough on real pictures", "The log holds its latency for each copied picture."),
    b=(
        "how users react to its answers",
        "No user has seen them, so nobody could correct them or ask again. A canary is needed.",
    ),
    c=("whether it fails on some pictures", "A failure in shadow is logged, although no user notices it."),
)

looks_question = Question(
    "A team runs a z-test at 5 % each morning, and stops a candidate on the first day on which it reports 'worse'. Why do "
    "they stop good candidates in more than 5 % of all rollouts?",
    right="c",
    a=("A z-test is only for large samples.", "With many requests a day the samples are large enough."),
    b=("A candidate gets fewer requests.", "The test accounts for the size of both samples."),
    c=(
        "Each morning is one more chance for a false alarm.",
        "The 5 % hold for one look. With each further look the chance of at least one false alarm grows.",
    ),
)

gradual_question = Question(
    "Green has passed every test, and has never answered a user. The two versions may answer side by side. How do you move "
    "the users to green?",
    right="b",
    a=("All at once, because it has passed every test.", "Users also send what no test holds, and a fault meets all."),
    b=("Gradually.", "A fault that the tests missed then meets only a few users, and blue still answers the others."),
    c=(
        "All at once, because one call goes back.",
        "It goes back quickly, but somebody must notice the fault first. Until then every user meets it.",
    ),
)

blue_green_question = Question(
    "Why does blue/green keep the old version loaded after the switch?",
    right="a",
    a=(
        "So that one call brings it back with the next request",
        "Loading or installing it again would take time in which users meet errors.",
    ),
    b=(
        "So that both answer and can be compared",
        "Only one of them answers. To compare answers, use shadow or a canary.",
    ),
    c=("So that each user keeps a version", "At a switch all users change their version at the same time."),
)


def _nulls(share: float) -> Outcomes:
    """Return 1,000 requests of v1, which finds nothing in one of ten, and 1,000 of v2, which finds nothing in this share."""
    number = np.arange(2_000)
    version = np.where(number % 2, "v2", "v1")
    null = number // 2 % 10 < np.where(number % 2, 10 * share, 1)
    fine = np.zeros(2_000, bool)
    return Outcomes(number.astype(float), version, fine, np.full(2_000, 0.01), null, fine)
