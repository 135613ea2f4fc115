"""Define the exercises of shipping.ipynb."""

from collections.abc import Callable, Mapping

from labsupport.exercises.exercise import OpenExercise, Question, exercise, is_number

LINES = {  # the lines of a small Dockerfile, which the exercise `order_of_lines` puts in order
    "a": "COPY labsupport /app/labsupport",
    "b": "RUN pip install --requirement /build/server.lock",
    "c": "FROM python:3.11-slim",
    "d": 'CMD ["python", "-m", "labsupport", "serve"]',
    "e": "COPY deploy/docker/server.lock /build/",
}
DOCKERFILE = [
    "FROM debian",
    "COPY deploy/list.txt /build/",
    "RUN install /build/list.txt",
    "COPY code tools /app/",
    "CMD run",
]
CHANGES = {  # a file that was changed, and how many of the lines above are repeated
    "code/server.py": 2,
    "deploy/list.txt": 4,
    "tools/clean.sh": 2,
    "README.md": 0,
    "codebook/notes.txt": 0,
}
OPTIONS = {  # what could happen, and the option of docker run that prevents it
    "the server's code is overwritten": "--read-only",
    "the machine runs out of memory": "--memory",
    "the log is gone with its container": "--volume",
    "strangers get answers": "--env LAB_TOKEN",
}
MONTH, HOURS = (0.0832 + 0.005) * 730 + 20 * 0.08, 730  # dollars and hours: a t3.large, an address, 20 GB of disk


@exercise(
    "Which line does every Dockerfile begin with?",
    "A step that is repeated makes the engine repeat all steps below it. Which of the two COPY lines changes more often?",
    "pip can install only from a list that was copied before.",
)
def order_of_lines(answer: str) -> str | None:
    """shipping.ipynb: five lines of a Dockerfile in an order in which a change of code does not install packages again."""
    if not isinstance(answer, str) or sorted(answer) != sorted(LINES):
        return "give a text of the five letters a to e, each once"
    place = {letter: answer.index(letter) for letter in LINES}
    if place["c"] != 0:
        return "every Dockerfile begins with FROM: without a base there is no folder to copy into"
    if place["e"] > place["b"]:
        return "pip install reads server.lock, which is copied only after it"
    if place["a"] < place["b"]:
        return "the code is copied before the packages are installed, so each change of code would install them again"
    return None


@exercise(
    "Look for the first COPY of which a source is the changed file or a folder above it.",
    "That line is repeated, and so are all lines below it.",
    "line.split()[1:-1] are the sources of a COPY. A folder is above a file that starts with the folder's name and a slash.",
)
def repeated_lines(repeated: Callable[[list[str], str], int]) -> str | None:
    """shipping.ipynb: a function that counts the lines of a Dockerfile that are repeated after a file was changed."""
    for changed, right in CHANGES.items():
        answer = repeated(list(DOCKERFILE), changed)
        if not is_number(answer, whole=True):
            return f"for {changed} it returned {answer!r}: return a whole number"
        if answer == right:
            continue
        if changed == "codebook/notes.txt":
            return "codebook is another folder than code: compare whole names of folders"
        if right == 0:
            return f"{changed} is copied by no line, and it returned {answer}"
        if answer == 1:
            return f"for {changed} it counts one line: what of the lines below it?"
        return f"for {changed} it returned {answer}: the COPY of that file, and all lines below it, are repeated"
    return None


@exercise(
    "The four options stand in the command of the step run.",
    "A volume is a folder that is kept outside of the container.",
)
def option_for(answer: Mapping[str, str]) -> str | None:
    """shipping.ipynb: the option of docker run that prevents each of four accidents."""
    if not isinstance(answer, Mapping) or (missing := OPTIONS.keys() - answer.keys()):
        names = ", ".join(sorted(OPTIONS if not isinstance(answer, Mapping) else missing))
        return f"give a dictionary with an option for each accident; missing: {names}"
    said = {name: str(answer[name]) for name in OPTIONS}
    if unknown := [option for option in said.values() if option not in OPTIONS.values()]:
        return f"{unknown[0]!r} is none of {', '.join(OPTIONS.values())}"
    if said["the log is gone with its container"] == "--read-only":
        return "--read-only keeps a program from writing, and so does not keep what it has written"
    if said["strangers get answers"] == "--read-only":
        return "--read-only is about files of the container: who may ask is decided by a token"
    if said["the server's code is overwritten"] == "--volume":
        return "a volume is a folder that may be written to, and the code is not in it"
    wrong = [name for name, option in OPTIONS.items() if said[name] != option]
    return f"{wrong[0]}: {said[wrong[0]]} does not prevent that" if wrong else None


@exercise(
    "In one hour at full speed two vCPUs spend 2 * 60 credits.",
    "In the same hour the machine still earns 36 credits.",
)
def hours_of_credits(answer: float) -> str | None:
    """shipping.ipynb: the hours for which 864 credits last, if 36 an hour are earned and 120 an hour are spent."""
    if not is_number(answer) or answer <= 0:
        return "give a number of hours"
    near = {
        864 / 120: "while it spends 120 credits an hour, it still earns 36",
        864 / 60: "that is one vCPU: the machine has two, and each spends 60 credits an hour",
        864 / 36: "that is how long it takes to save 864 credits",
        864 / 156: "what is earned makes the credits last longer, not shorter",
        864 / 24: "24 is what one vCPU spends beyond what is earned: the machine has two vCPUs",
    }
    if abs(answer - 864 / 84) < 0.06:
        return None
    return next(
        (why for wrong, why in near.items() if abs(answer - wrong) < 0.06), f"864 credits do not last {answer:g} h"
    )


@exercise(
    "The table has what one environment costs in a month of 730 hours.",
    "Blue would have run in these three days anyway.",
)
def three_days_of_green(answer: float) -> str | None:
    """shipping.ipynb: the dollars that a second environment adds in three days."""
    if not is_number(answer) or answer <= 0:
        return "give a number of dollars"
    right = MONTH * 72 / HOURS
    near = {
        0.0832 * 72: "that is the machine alone: its disk and its address are paid for, too",
        2 * right: "that is what both cost: blue would have run in these three days anyway",
        MONTH: "that is a whole month of green, which is ended after three days",
        MONTH * 3 / 24: "a day has 24 hours: three days are 72 of the month's 730",
        MONTH * 3 / HOURS: "that is three hours: three days have 72",
    }
    if abs(answer - right) < 0.1:
        return None
    return next(
        (why for wrong, why in near.items() if abs(answer - wrong) < 0.1), f"{answer:g} is not 72 hours of the month"
    )


@exercise(
    "Before the swap, and as long as the client remembers what it looked up before the swap, it reaches blue.",
    "A client that looked up at second -20 and remembers for 60 seconds looks up again at second 40.",
    'Two questions joined by "and": did it look up before second 0, and is it still before looked_up + remembers?',
)
def answered_by(function: Callable[[float, float, float], str]) -> str | None:
    """shipping.ipynb: a function that says which environment a client reaches, if the names are swapped at second 0."""
    cases = [(30, -20, 60), (50, -20, 60), (5, 1, 60), (50, -55, 60), (200, -10, 3600), (-5, -10, 60)]
    for now, looked_up, remembers in cases:
        right = "blue" if looked_up < 0 and now < looked_up + remembers else "green"
        answer = function(now, looked_up, remembers)
        if answer not in ("blue", "green"):
            return f"it returned {answer!r}: return 'blue' or 'green'"
        if answer == right:
            continue
        case = f"a client looks up at second {looked_up:g} and remembers for {remembers:g} s"
        if now < 0:
            return f"at second {now:g} the names are not swapped yet: everybody reaches blue"
        if looked_up >= 0:
            return f"{case}: it looked up after the swap, so it knows green"
        if right == "blue":
            return f"{case}: at second {now:g} it still remembers blue"
        return (
            f"{case}: it remembers from its own look-up, not from the swap, so at second {now:g} it has looked up again"
        )
    return None


shipping_plan = OpenExercise(
    "We ship the model of our wound photos in an image of 1 GB: code, packages at fixed versions, weights. Only nginx can "
    "be reached, over TLS with a certificate of the hospital's authority. Each ward has a token of its own. The log is on "
    "a volume that is backed up. 2,000 photos a day are one in 43 seconds, so one small machine in the hospital's own "
    "computing centre does it, and a second one takes its place for blue/green. Before a swap we ask the new one for ten "
    "photos with known answers. The way back is the old machine, which stays for a week.",
    "Is it said what is in the image, and what is not (data, tokens, keys)?",
    "Is there a number of requests a second, and does the machine hold it without credits?",
    "Is it said what is checked before the switch, what the way back is, and how long it is kept?",
    "Is it said who can reach the service, and how it is encrypted on the way?",
    hints=(
        "Begin with what is in the image, then where it runs, then how a new version takes over and how you get back.",
    ),
)

stages_question = Question(
    "Our Dockerfile begins again with FROM python:3.11-slim-bookworm in its last stage. What is that good for?",
    right="b",
    a=("The build is faster.", "All stages that are needed are built. What is saved is room in the image, not time."),
    b=(
        "What was needed only for the building stays out of the image.",
        "Only what is copied from other stages gets in: no pip, no list of packages, no files that were made on the way.",
    ),
    c=(
        "Each program of the container needs a stage.",
        "A stage is a step of the building. A container runs the one program of ENTRYPOINT, however many stages there were.",
    ),
)

green_question = Question(
    "Elastic Beanstalk reports that the new environment is Green. Why does our script still send a picture of a street?",
    right="c",
    a=("To warm the model up for the first user.", "A first request does that, but nothing depends on it here."),
    b=("To measure how fast it is.", "One request measures nothing. That takes many, under load."),
    c=(
        "Because a server can be healthy and its answers wrong.",
        "Green says that the machine and the server answer. Only an answer to a known question shows that it is right.",
    ),
)

swap_question = Question(
    "A new version is worse for one user in fifty, and nobody knows it yet. Which way to release it hurts the fewest users?",
    right="a",
    a=(
        "A canary, by our router or by nginx.",
        "It shows the version to a small share of the users, and the gate or a person looks before the share grows.",
    ),
    b=("Blue/green by CNAME swap.", "A swap gives the new version to everybody as soon as their look-up is repeated."),
    c=(
        "An update in place, one machine after the other.",
        "It replaces the old version everywhere. It turns back if a machine is ill, and a worse answer is no illness.",
    ),
)
