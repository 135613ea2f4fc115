"""Define the exercises of monitoring.ipynb."""

import math
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from labsupport.exercises.exercise import OpenExercise, Question, exercise, is_number
from labsupport.monitoring import DEFAULT_RULES, MEASURES, AlertRule

if TYPE_CHECKING:
    import pandas as pd

    from labsupport.log import PredictionLog
    from labsupport.scenarios import incidents

brainstorm = OpenExercise(
    "Software: a new version fails on some pictures; the machine is too slow; its memory fills up. Input: it is dark, "
    "the lens is dirty, files are no pictures, a field is missing. Output: nothing is found, or much too much. Users: "
    "they correct answers, or ask again.",
    "Is there at least one worry for each of software, input, output and users?",
    "Is there a number for each worry that the server could compute without a person?",
    "Which worry would hurt most people, and would its number change within minutes?",
    hints=["Think of the way of one picture: a camera, a network, a server, a model, a person."],
)


@exercise(
    "How many megabytes can be added before the server reaches the limit?",
    "Megabytes a second are megabytes a picture, times pictures a second.",
)
def until_killed(answer: float) -> str | None:
    """monitoring.ipynb: the seconds until a server that keeps a copy of each picture reaches a limit of memory."""
    if not is_number(answer):
        return "give a number of seconds"
    slips = {
        1.0: "that is a number of minutes: give seconds",
        0.06: "count the memory in megabytes throughout: 2 GB are 2,000 MB",
        75.0: "each picture adds 1.25 MB, and not 1 MB",
        80.0: "the server takes 500 MB when it starts: how much can be added?",
        93.75: "divide by the megabytes a picture: the larger a picture, the sooner the memory is full",
        1_200.0: "that is the number of pictures until then: how many arrive in a second?",
        1_600.0: "the server takes 500 MB when it starts, and 20 pictures arrive in a second",
    }
    if slip := next((text for value, text in slips.items() if math.isclose(answer, value, rel_tol=0.005)), None):
        return slip
    return None if abs(answer - 60) < 0.5 else f"{answer:g} seconds is not it: divide what can be added by MB a second"


@exercise(
    "Read the docstring: help(AlertRule). Which arguments have a default that is not asked for here?",
    "`hold` is a time in seconds, and so is `window`. A person is called at night by severity 'page'.",
)
def bright_rule(rule: AlertRule) -> str | None:
    """monitoring.ipynb: an alarm for a camera that looks into the sun."""
    if not isinstance(rule, AlertRule):
        return "give an AlertRule"
    texts = {
        "name": "the alarm is called Bright",
        "metric": "which of MEASURES is the mean brightness?",
        "above": "it fires when the mean is above 0.8",
        "window": "the mean is over ten minutes, and a window is in seconds",
        "hold": "the mean has to stay there for two minutes, and a hold is in seconds",
        "clear": "it ends below 0.7: without this hysteresis it ends where it began",
        "severity": "a person is to be called at night, too: see the two severities in section 3",
    }
    wanted = dict(zip(texts, ("Bright", "brightness_mean", 0.8, 600, 120, 0.7, "page"), strict=True))
    return next(
        (f"{name} is {getattr(rule, name)!r}: {texts[name]}" for name in texts if not _same(rule, name, wanted)), None
    )


def _same(rule: AlertRule, name: str, wanted: dict[str, object]) -> bool:
    return bool(getattr(rule, name) == wanted[name])


@exercise(
    "How many seconds of failing requests must the window hold, so that their mean share passes the limit?",
    "After x seconds the share in the window is (0.25 * x + 0 * (300 - x)) / 300. When is that 0.05?",
    "The rule then has to be broken for `hold` seconds more.",
)
def alarm_delay(answer: float) -> str | None:
    """monitoring.ipynb: the seconds from the start of an incident to its alarm, from window, limit and hold."""
    if not is_number(answer):
        return "give a number of seconds"
    hints = {
        60: "the hold begins when the limit is passed, and the window needs some time to get there",
        300: "the window does not have to be full of failures to pass the limit",
        360: "the window does not have to be full of failures to pass the limit",
    }
    if answer in hints:
        return hints[int(answer)]
    return None if abs(answer - 120) < 0.5 else f"{answer:g} seconds is not it: add the time to the limit and the hold"


@exercise(
    "Count the remarks: how many of the 100 wrong and of the 900 right answers get one?",
    "The share is that of `wrong` among all remarks, and not among all answers.",
)
def share_of_complaints(answer: float) -> str | None:
    """monitoring.ipynb: the share of wrong answers among those that users speak about, if they praise seldom."""
    if not is_number(answer) or not 0 <= answer <= 1:
        return "give a share between 0 and 1"
    if abs(answer - 0.1) < 0.005:
        return "that is the share of all answers that are wrong: what do you see if you know only the remarks?"
    if abs(answer - 0.05) < 0.005:
        return "that is the share of all answers that are called wrong: divide by the number of remarks"
    return None if abs(answer - 50 / 68) < 0.006 else f"{answer:g} is not it: divide 50 by the number of all remarks"


ASKED = {
    "software": "does the service answer, and how fast?",
    "input": "are the pictures such as the model knows?",
    "output": "does the model answer as it used to?",
    "user": "are people content with the answers?",
}


@exercise(
    "The table above lists the measures, and monitoring.MEASURES[name].about says what each one is.",
    "Section 1 has worries of each kind: software, input, output and users.",
)
def measured_worries(answer: dict[str, Any]) -> str | None:
    """monitoring.ipynb: a measure for each worry, with a worry about each of software, input, output and users."""
    if not isinstance(answer, dict) or not answer:
        return 'give a dict of worries and names of measures: {"a lamp goes out": "brightness_mean", ...}'
    if swapped := next((worry for worry in answer if worry in MEASURES), None):
        return f"{swapped!r} is a measure: put the worry before the colon, and the measure after it"
    watched = {rule.name: rule.metric for rule in DEFAULT_RULES}
    for worry, name in answer.items():
        if name is None or name is ...:
            return f"nothing measures {worry!r} yet: write a measure, as `mean_of` does in section 4, or leave it out"
        if not isinstance(name, str) or name not in MEASURES:
            alarm = f" {name} is an alarm, on {watched[name]}." if isinstance(name, str) and name in watched else ""
            return f"for {worry!r} there is no measure {name!r}.{alarm} There are {', '.join(MEASURES)}"
    groups = {MEASURES[name].group for name in answer.values()}
    if missing := next((group for group in ASKED if group not in groups), None):
        return f"no worry about {'users' if missing == 'user' else missing} yet: {ASKED[missing]}"
    return None


FEARED = ("darkness", "blind model", "dirty lens", "users correct")


@exercise(
    "Look at the columns of the four incidents: table[['darkness', 'blind model', 'dirty lens', 'users correct']].",
    "Some measures are moved by one incident only. Which incident has no such measure?",
)
def kept_measures(answer: Collection[str]) -> str | None:
    """monitoring.ipynb: as few measures as needed to see each of four incidents and to tell them apart."""
    from labsupport.scenarios import incidents

    if not isinstance(answer, set | frozenset | list | tuple):
        return 'give a set of names of measures: {"brightness_mean", ...}'
    if unknown := [name for name in answer if name not in MEASURES or name == "drift"]:
        return f"{unknown[0]!r} is not in the table: it has {', '.join(name for name in MEASURES if name != 'drift')}"
    hours = {incident: incidents.simulate(incident, seed=5) for incident in FEARED}
    moved = {incident: {name for name in answer if _moved(name, hour)} for incident, hour in hours.items()}
    if unclear := _unclear(moved):
        return unclear
    needless = next(
        (name for name in sorted(answer) if not _unclear({one: moved[one] - {name} for one in moved})), None
    )
    return needless and f"without {needless} the others still show all four incidents and tell them apart: drop it"


def _moved(name: str, traffic: "incidents.Traffic") -> bool:
    """Return whether an incident moves a measure by more than six of its usual standard deviations, as in section 6."""
    measure, windows = MEASURES[name], [*range(0, 3_600, 300), 3_900]
    parts = [traffic.columns(*measure.columns, since=start, until=start + 300) for start in windows]
    *usual, now = (cast("float", measure.read(part, 300).value) for part in parts)
    return bool(abs(now - np.mean(usual)) > 6 * np.std(usual))


def _unclear(moved: dict[str, set[str]]) -> str | None:
    """Return an incident that moves no measure, or two that move the same ones."""
    for number, (incident, names) in enumerate(moved.items()):
        if not names:
            return f"in another hour {incident!r} moves none of your measures"
        for other in [*moved][:number]:
            if moved[other] == names:
                same = " and ".join(sorted(names))
                return f"{other!r} and {incident!r} both move {same} and no other: how do you tell them apart?"
    return None


CAUSES = ("input", "model", "concept")


def days_of_corrections() -> dict[str, "pd.DataFrame"]:
    """monitoring.ipynb: return four simulated days of a log, by name. On A, B and C users correct more than usual."""
    import pandas as pd

    days = {}
    for seed, name in enumerate(("usual", "A", "B", "C")):
        random = np.random.default_rng([7, seed])
        truth = random.choice(["good", "scratch", "dent"], 600, p=[0.6, 0.25, 0.15])
        length = np.where(truth == "scratch", random.uniform(4, 40, 600), np.nan).round(1)
        said = np.where(random.random(600) < 0.03, "good", truth)
        brightness, confidence = random.normal(0.45, 0.05, 600), 0.5 + 0.5 * random.beta(6, 2, 600)
        if name == "A":  # darker: half of the defects are missed
            brightness, confidence = brightness * 0.5, confidence - 0.12
            said = np.where(random.random(600) < 0.5, "good", said)
        if name == "C":  # a new version confuses two classes
            said = np.where(said == "scratch", "dent", np.where(said == "dent", "scratch", said))
        if name == "B":  # the definition has changed: short scratches are allowed
            truth = np.where(length < 20, "good", truth)
        days[name] = pd.DataFrame(
            {"brightness": brightness, "confidence": confidence, "answer": said, "length": length, "person": truth}
        )
    return days


@exercise(
    "For each day compare brightness and confidence with the usual day, then day['answer'].value_counts().",
    "pd.crosstab(day['answer'], day['person']) shows which answers people replace, and by what.",
    "If pictures and answers are as usual and only people's words differ, people now expect another answer.",
)
def whose_fault(answer: dict[str, str]) -> str | None:
    """monitoring.ipynb: is it the pictures, the model, or what people expect? For three days, by name."""
    if not isinstance(answer, dict) or set(answer) != {"A", "B", "C"}:
        return 'give a dict: {"A": ..., "B": ..., "C": ...}'
    if strange := [cause for cause in answer.values() if cause not in CAUSES]:
        return f"{strange[0]!r} is no cause: choose from {', '.join(CAUSES)}"
    texts = {
        "A": "compare the brightness of day A with the usual one",
        "B": "on day B pictures and answers are as usual: which answers do people replace, and by what?",
        "C": "on day C the pictures are as usual: how often is each answer given?",
    }
    right = {"A": "input", "B": "concept", "C": "model"}
    return next((texts[day] for day in right if answer[day] != right[day]), None)


@exercise(
    "Alarms([rule], traffic) evaluates a rule on simulated traffic, as section 6 does.",
    "range(0, 3_601, 15) gives the times. `evaluate(now)` returns events, and `event.event` is 'fired' or 'cleared'.",
)
def firings(calls: Callable[..., Any]) -> str | None:
    """monitoring.ipynb: how often a rule fires in an hour of traffic that is looked at every 15 seconds."""
    from labsupport.monitoring import Alarms
    from labsupport.scenarios import incidents

    nervous = AlertRule("Nervous", "brightness_mean", below=0.46, window=30, hold=0, clear=0.461)
    patient = AlertRule("Patient", "brightness_mean", below=0.46, window=30, hold=120, clear=0.461)
    for rule, seed in ((nervous, 1), (patient, 1), (nervous, 2)):
        traffic = incidents.simulate(seed=seed, seconds=3_600)
        watch = Alarms([rule], cast("PredictionLog", traffic))  # of a log only `columns` is called
        for now in range(0, 3_601, 15):
            watch.evaluate(now)
        truth = sum(event.event == "fired" for event in watch.history)
        if (answer := calls(rule, traffic)) is ...:
            return "calls returns the dots: put the number of alarms that fired in their place"
        if answer == len(watch.history) != truth:
            return f"for the rule {rule.name} you count {answer}: that includes the alarms that cleared"
        if answer != truth:
            much = "few" if answer < truth else "many"
            return f"for the rule {rule.name} in the hour of seed {seed} you count {answer}, which is too {much}"
    return None


hysteresis_question = Question(
    "A rule fires above 10 % and clears below 7 %. Why are there two limits?",
    right="b",
    a=("So that it fires sooner.", "It fires at 10 % either way. The second limit only says when it ends."),
    b=(
        "So that a value that varies around 10 % raises one alarm, and not one each time.",
        "Between 7 % and 10 % a firing alarm keeps firing and a quiet one stays quiet. This is called hysteresis.",
    ),
    c=(
        "So that short peaks do not count.",
        "That is what `hold` is for: the rule has to be broken for some time before the alarm fires.",
    ),
)
cause_question = Question(
    "Null answers rise from 10 % to 70 %. The log shows them for one version only; brightness is as before. What first?",
    right="c",
    a=(
        "Retrain on today's pictures.",
        "The pictures have not changed, and training takes long. Users suffer meanwhile.",
    ),
    b=("Raise the limit of the alarm.", "The alarm is right: 70 % of the users get nothing."),
    c=(
        "Roll back to the version before.",
        "One call brings back what worked. Then there is time to find out why the new version finds nothing.",
    ),
)
retraining_question = Question(
    "A model is trained on nothing but the answers that users corrected. What will go wrong?",
    right="a",
    a=(
        "It has never seen a case that the old model got right.",
        "Corrections are a biased sample: all of one kind here. Train on confirmed answers too, as we did.",
    ),
    b=("Nothing: corrections are the most useful data.", "They are useful, but only beside answers that were right."),
    c=(
        "It cannot be put into shadow mode.",
        "Any candidate can run in shadow. The shadow is what would reveal that this one is worse.",
    ),
)
