"""Does retraining keep its promise? How often a candidate passes the shadow, by who says what is right.

`python -m benchmarks.retraining_promises [--runs 500]` prints a table. All answers, users and auditors are simulated. Each
run is looked at after every 25 pictures, and what is decided is what `Retraining` decides on them. Intervals are exact
(Clopper and Pearson), 95 %.
"""

import argparse

import numpy as np

from benchmarks.gate_promises import interval
from labsupport.rollout import weighed
from labsupport.rollout.retraining import _bounds

PICTURES, LOOK, ALPHA = 1_000, 25, 0.05
SILENT = (0.0, 0.0, 0.0)
USERS = {  # how often they confirm a right answer, and call a wrong one wrong, without and with labels
    "users: 3 % confirm, 10 % correct": (0.03, 0.0, 0.1),
    "users: 3 % confirm, 50 % correct": (0.03, 0.0, 0.5),
    "users: 3 % confirm, .5 % correct (the lab's)": (0.03, 0.0, 0.005),
    "users: 3 % confirm, 10 % say wrong without labels": (0.03, 0.1, 0.0),
}
AUDITS = {  # share of the pictures in `to_label` that get a label, where the stable version is right and where it is wrong
    "audit: every picture": (1.0, 1.0),
    "audit: 90 % of the pictures": (0.9, 0.9),
    "audit: 20 % where it was right, 90 % where it was wrong": (0.2, 0.9),
}
QUALITIES = (
    (0.9, 0.9),
    (0.9, 0.87),
    (0.9, 0.8),
    (0.97, 0.97),
    (0.97, 0.94),
    (0.9, 0.95),
    (0.9, 0.97),
)  # stable, candidate


def signs(random, stable: float, candidate: float, users: tuple, audit: tuple, alike: int = 1) -> list[tuple]:
    """The bounds of each picture on which the two differ, or None where they do not, as `Retraining.compared` finds them.

    `alike` pictures of a user are right or wrong together; only the first of them on which the two differ counts.
    """
    scene = np.arange(PICTURES) // alike
    right = random.random(PICTURES)[scene] < stable
    better = random.random(PICTURES)[scene] < candidate
    other = random.random(PICTURES)[scene] < 0.5  # both are wrong, and say different things
    confirm, deny, correct = users
    luck, audited = random.random(PICTURES), random.random(PICTURES)
    found, seen = [], set()
    for number in range(PICTURES):
        answers = (
            ({"cat"} if right[number] else {"dog"}),
            ({"cat"} if better[number] else {"cow"} if other[number] else {"dog"}),
        )
        if answers[0] == answers[1] or scene[number] in seen:
            found.append(None)
            continue
        seen.add(scene[number])
        spoken, labels = None, None
        if audited[number] < audit[0 if right[number] else 1]:
            spoken, labels = False, ["cat"]
        elif right[number]:
            spoken = True if luck[number] < confirm else None
        elif luck[number] < correct:
            spoken, labels = False, ["cat"]
        elif luck[number] < correct + deny:
            spoken = False
        found.append(_bounds(*answers, spoken, labels))
    return found


def passes(found: list) -> bool:
    """Whether the candidate is promoted at any look before it is sent away."""
    for upto in range(LOOK, PICTURES + 1, LOOK):
        better, worse = weighed([bounds for bounds in found[:upto] if bounds])
        if better >= 1 / ALPHA or worse >= 1 / ALPHA:
            return better >= 1 / ALPHA
    return False


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=500)
    options = arguments.parse_args()
    settings = [(name, users, (0.0, 0.0), 1) for name, users in USERS.items()]
    settings += [(name, SILENT, audit, 1) for name, audit in AUDITS.items()]
    settings += [
        (f"{name}, and {first}", users, AUDITS[name], 1)
        for name, (first, users) in zip(AUDITS, USERS.items(), strict=False)
    ]
    settings += [("audit: every picture, 4 alike of each user", SILENT, (1.0, 1.0), 4)]
    print(
        f"{options.runs} runs each: the share of candidates that pass. No worse or equal ones may pass in {ALPHA} of runs.\n"
    )
    print("| who says what is right | right: stable, candidate | passes |\n|---|---|---|")
    for name, users, audit, alike in settings:
        for quality in QUALITIES:
            random = np.random.default_rng([int(1_000 * share) for share in quality])
            count = sum(passes(signs(random, *quality, users, audit, alike)) for _ in range(options.runs))
            print(f"| {name} | {quality[0]:.2f}, {quality[1]:.2f} | {interval(count, options.runs)} |", flush=True)


if __name__ == "__main__":
    main()
