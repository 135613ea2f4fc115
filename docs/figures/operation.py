"""Draw the pictures of what follows a release: automation, drift, monitoring, pipelines, the edge, batch, retraining."""

import itertools
import random

from draw import (
    arrow,
    box,
    camera,
    card,
    cylinder,
    gate,
    label,
    lane,
    line,
    network,
    note,
    number,
    person,
    polygon,
)


def automation() -> str:
    """Draw the five degrees of automation from left to right, and who decides in each."""
    degrees = [
        ("Human only", ("a person", "decides", "everything"), 0),
        ("Shadow", ("a person;", "the model is", "recorded"), 0),
        ("Assistance", ("a person", "with the", "model's hints"), 0),
        ("Partial", ("the model", "if it is sure,", "else a person"), 0.5),
        ("Full", ("the model", "decides", "everything"), 1),
    ]
    parts = []
    for place, (name, lines, share) in enumerate(degrees):
        x = 20 + 138 * place
        parts.append(box(x, 112, 128, 104, name, *lines, role="accent" if share else "plain"))
        both = share not in (0, 1)
        if share < 1:
            parts.append(person(x + (18 if both else 48), 60))
        if share > 0:
            parts.append(network(x + (70 if both else 44), 60, role="accent"))
    left, right = 296, 562
    parts += [
        line([(left, 46), (left, 38), (right, 38), (right, 46)]),
        label((left + right) / 2, 22, "human in the loop"),
    ]
    parts.append(arrow((20, 242), (700, 242), role="accent", text="the model decides more", side=-1))
    desc = (
        "Five degrees of automation from left to right. Human only: a person decides all. Shadow: a person decides, the "
        "model is recorded. Assistance: a person decides and sees the model's hint. Partial: the model decides where it is "
        "sure, a person the rest. Full: the model decides all. Assistance and partial are called human in the loop."
    )
    return card("Degrees of automation", desc, 720, 276, *parts)


def human_in_the_loop() -> str:
    """Draw how cases that the model is not sure of become labels, and the labels a better model."""
    eye = camera(28, 62)
    model = box(132, 50, 104, 64, "Model", role="accent")
    sure = gate(280, 50, 152, 64, "Sure?", "threshold")
    decides = box(484, 50, 136, 64, "Decision", "by the model", role="accent")
    queue = box(280, 174, 152, 64, "Review queue", "waits")
    people = box(484, 174, 136, 64, "Decision", "by a person")
    labels = cylinder(484, 289, 136, 74, "Labels")
    training = box(280, 294, 152, 64, "Retraining")
    parts = [
        *(eye, model, sure, decides, queue, people, labels, training),
        *(arrow((84, 82), model.left), arrow(model.right, sure.left)),
        arrow(sure.right, decides.left, role="accent", text="yes"),
        arrow(sure.bottom, queue.top, text="no"),
        *(arrow(queue.right, people.left), arrow(people.bottom, labels.top), arrow(labels.left, training.right)),
        arrow(training.left, (184, 326), model.bottom, role="accent", dashed=True, text="candidate", on=1),
    ]
    desc = (
        "The model looks at each picture. If its confidence is beyond a threshold, it decides. If not, the case waits in "
        "the review queue, and a person decides. These decisions become labels, and retraining makes a candidate from them."
    )
    return card("Human in the loop", desc, 640, 384, *parts)


def mark(x: float, y: float, defect: bool, role: str = "plain") -> str:
    """Draw one phone: a circle if it is good, a triangle if it is a defect."""
    shape = f'<circle cx="{number(x)}" cy="{number(y)}" r="4.5"/>'
    if defect:
        shape = polygon([(x - 5.5, y + 4.5), (x + 5.5, y + 4.5), (x, y - 5.5)])
    return f'<g class="dot {role}">{shape}</g>'


def plot(x: float, y: float, points: list, limit: float, new_points: bool = False, old_limit: float = 0) -> list[str]:
    """Draw a scatter plot of phones, with a line at `limit`. What changed has the accent."""
    w, h = 270, 140
    parts = [f'<rect class="plain" x="{x}" y="{y}" width="{w}" height="{h}" rx="6"/>']
    for across, up in points:
        new = new_points or (old_limit > 0 and (up > limit) != (up > old_limit))
        parts.append(mark(x + w * across, y + h * (1 - up), up > limit, "accent" if new else "plain"))
    height, before = y + h * (1 - limit), y + h * (1 - old_limit)
    parts.append(line([(x, height), (x + w, height)], "accent" if old_limit else "soft"))
    if old_limit:
        parts.append(line([(x, before), (x + w, before)], dashed=True))
        parts.append(arrow((x + 40, before), (x + 40, height), role="accent"))
    if new_points:
        parts.append(arrow((x + w - 20, y + 28), (x + w - 90, y + 28), role="accent"))
    return parts


def drift(seed: int = 4) -> str:
    """Draw data drift and concept drift: two rows of two scatter plots, when the model was trained and later."""
    dice = random.Random(seed)
    places = [(column, height) for column in range(6) for height in (0.12, 0.24, 0.45, 0.51, 0.75, 0.87)]
    points = [
        (0.42 + 0.09 * column + 0.07 * dice.random(), height + 0.05 * (dice.random() - 0.5))
        for column, height in places
        if dice.random() < 0.8
    ]
    darker = [(across - 0.37, up) for across, up in points]
    parts = [label(165, 26, "when trained", size=16), label(475, 26, "later", size=16)]
    parts += [label(30, 58, "Data drift: the pictures get darker, the rule stays.", anchor="start")]
    parts += [*plot(30, 76, points, 0.63), *plot(340, 76, darker, 0.63, new_points=True)]
    parts += [label(30, 252, "Concept drift: the pictures stay, the rule changes.", anchor="start")]
    parts += [*plot(30, 270, points, 0.345), *plot(340, 270, points, 0.63, old_limit=0.345)]
    parts += [mark(36, 436, False), label(50, 436, "good", anchor="start"), mark(116, 436, True)]
    parts += [
        label(130, 436, "defect", anchor="start"),
        line([(204, 436), (232, 436)]),
        label(242, 436, "rule", anchor="start"),
    ]
    parts += [label(610, 436, "right: brighter, up: longer scratch", anchor="end")]
    desc = (
        "Four scatter plots of phones by brightness and length of the scratch; a line separates good from defect. Data "
        "drift: later the points lie further left, in the dark, and the line is where it was. Concept drift: the points are "
        "where they were, but the line is higher, so some phones that were defects are good now."
    )
    return card("Data drift and concept drift", desc, 640, 460, *parts)


def monitoring_loop() -> str:
    """Draw the loop of monitoring: measure, alarm, act, deploy again."""
    measure = box(40, 36, 190, 84, "Measure", "software, inputs,", "outputs, users")
    alarm = box(410, 36, 190, 84, "Alarm", "a rule is broken", "for some time", role="bad")
    act = box(410, 216, 190, 84, "Act", "roll back, repair", "or retrain")
    deploy = box(40, 216, 190, 84, "Deploy again", "shadow, canary, ramp", role="accent")
    parts = [
        *(measure, alarm, act, deploy),
        arrow(measure.right, alarm.left, text="too far from healthy"),
        arrow(alarm.bottom, act.top, text="find the cause", side=-1),
        arrow(act.left, deploy.right, text="a candidate", side=-1),
        arrow(deploy.top, measure.bottom, text="watch it again"),
    ]
    desc = (
        "A circle of four steps. Measure software, inputs, outputs and users. An alarm fires if a rule is broken for some "
        "time. Act: find the cause, then roll back, repair or retrain. Deploy again, and measure again."
    )
    return card("The monitoring loop", desc, 640, 336, *parts)


def chart(x: float, y: float, name: str, fall: float, dice: random.Random, role: str) -> list[str]:
    """Draw the chart of one metric; after the middle it is lower by `fall`, a share of the height."""
    w, h, count = 176, 84, 24
    values = [0.7 + 0.12 * (dice.random() - 0.5) - (fall if step >= count / 2 else 0) for step in range(count)]
    points = [(x + 8 + (w - 16) * step / (count - 1), y + h * (1 - value)) for step, value in enumerate(values)]
    path = " L".join(f"{number(px)} {number(py)}" for px, py in points)
    return [
        label(x + w / 2, y - 14, name),
        f'<rect class="plain" x="{x}" y="{y}" width="{w}" height="{h}" rx="6"/>',
        line([(x + w / 2, y), (x + w / 2, y + h)], dashed=True),
        f'<path class="edge {role}" d="M{path}"/>',
    ]


def pipeline(seed: int = 3) -> str:
    """Draw a pipeline with one metric at each step: the voice-activity detector changed, the recogniser did not."""
    dice = random.Random(seed)
    steps = [
        (("Sound", "from a phone"), "plain", "loudness", 0, "unchanged"),
        (("VAD", "finds the speech"), "accent", "length of the speech", 0.38, "changed: look here"),
        (("Recogniser", "names the word"), "plain", "confidence", 0.3, "falls, but inherits it"),
    ]
    boxes, parts = [], []
    for place, (lines, role, metric, fall, verdict) in enumerate(steps):
        x, new = 20 + 212 * place, role == "accent"
        boxes.append(box(x, 24, 176, 64, *lines, role=role))
        parts += chart(x, 132, metric, fall, dice, "accent" if new else "soft")
        parts.append(label(x + 88, 236, verdict, role="accent" if new else "card"))
    parts += [arrow(one.right, two.left) for one, two in itertools.pairwise(boxes)]
    story = [
        "Dashed line: a phone gets a new voice-activity detector (VAD).",
        "It cuts off the soft start of words, so the recogniser is less sure.",
    ]
    desc = (
        "Sound goes to a voice-activity detector, which finds the speech, and then to a recogniser, which names the word. "
        "Three charts. The loudness of the sound is unchanged. The length of the speech falls when the detector changes. "
        "The confidence of the recogniser falls at the same moment, because it inherits the change."
    )
    return card("A pipeline with a metric at each step", desc, 640, 336, *boxes, *parts, note(20, 262, 600, *story))


def edge() -> str:
    """Draw a station with its outbox, the cable, and the server."""
    parts = [lane(20, 20, 370, 296, "Station, beside the line"), lane(484, 20, 136, 296, "Server")]
    eye = camera(44, 88)
    decide = box(184, 72, 150, 72, "Decide", "by the deadline:", "server or device")
    outbox = cylinder(184, 210, 150, 80, "Outbox", "until confirmed", role="accent")
    arm = box(40, 212, 92, 76, "Act", "accept,", "reject")
    model = box(500, 72, 104, 72, "Model")
    records = cylinder(500, 210, 104, 80, "Records", "each once")
    parts += [eye, decide, outbox, arm, model, records, arrow((100, 108), decide.left)]
    parts.append(arrow(decide.bottom, outbox.top, role="accent", text="1 store"))
    parts.append(arrow(outbox.left, arm.right, text="2"))
    parts.append(arrow(decide.at(1, 0.3), model.at(0, 0.3)))
    parts.append(arrow(model.at(0, 0.7), decide.at(1, 0.7)))
    parts.append(arrow(outbox.at(1, 0.35), records.at(0, 0.35), role="accent"))
    parts.append(arrow(records.at(0, 0.7), outbox.at(1, 0.7), dashed=True))
    for y, text in [(80, "ask"), (136, "answer"), (224, "3 send"), (280, "confirm")]:
        parts.append(label(437, y, text))
    parts.append(label(437, 170, "network,", "may fail"))
    desc = (
        "At the station a camera takes a picture. The station decides by the deadline, with the server or with the device. "
        "It stores the decision in the outbox, then acts. The outbox sends each record until the server confirms it. The "
        "server keeps each record once."
    )
    return card("A station with its outbox", desc, 640, 336, *parts)


def timeline(y: float, name: str, waits: tuple[str, str], arrivals: list[float], answers: list[float]) -> list:
    """Draw one row: when inputs arrive (circles) and when their answers are there (squares)."""
    parts = [lane(20, y, 600, 92, name), label(36, y + 46, *waits, anchor="start")]
    for start, end in zip(arrivals, answers, strict=True):
        parts += [line([(start, y + 24), (end, y + 68)]), arrived(start, y + 24), answered(end, y + 68)]
    return parts


def arrived(x: float, y: float) -> str:
    """Draw the arrival of an input, a circle."""
    return f'<g class="dot plain"><circle cx="{number(x)}" cy="{number(y)}" r="5"/></g>'


def answered(x: float, y: float) -> str:
    """Draw an answer, a square."""
    return f'<rect class="accent" x="{number(x - 5)}" y="{number(y - 5)}" width="10" height="10"/>'


def batch_stream_online(seed: int = 5, count: int = 7) -> str:
    """Draw when the answers to the same inputs come: in a batch at night, from a stream, or online."""
    dice = random.Random(seed)
    arrivals = [186 + 42 * place + 24 * dice.random() for place in range(count)]
    night = [504 + 16 * place for place in range(count)]
    parts = [
        *timeline(20, "Batch", ("nobody waits,", "all at night"), arrivals, night),
        *timeline(126, "Stream", ("nobody waits,", "minutes later"), arrivals, [start + 34 for start in arrivals]),
        *timeline(232, "Online", ("somebody waits,", "immediately"), arrivals, [start + 3 for start in arrivals]),
        *(arrived(42, 352), label(54, 352, "input", anchor="start"), answered(108, 352)),
        *(label(120, 352, "answer", anchor="start"), arrow((190, 342), (612, 342))),
        *(label(330, 356, "day"), label(556, 356, "night")),
    ]
    desc = (
        "Three timelines with the same seven inputs over a day. Batch: all answers come together at night. Stream: each "
        "answer comes some minutes after its input. Online: each answer comes immediately, because somebody waits."
    )
    return card("Batch, stream and online", desc, 640, 380, *parts)


def retraining() -> str:
    """Draw the loop of retraining, with the gate that lets a better candidate through."""
    names = [("Alarm", "or a person"), ("Train", "on new labels"), ("Shadow", "both answer")]
    alarm, train, compare = (
        box(20 + 158 * place, 40, 126, 64, *lines, role="accent" if place else "plain")
        for place, lines in enumerate(names)
    )
    better = gate(494, 40, 126, 64, "Gate", "better?")
    log = cylinder(20, 194, 126, 76, "Log", "and labels")
    stable = box(178, 200, 126, 64, "Stable", "answers")
    climb = box(336, 200, 126, 64, "Ramp", "step by step", role="accent")
    rejected = box(494, 200, 126, 64, "Rejected", "stable stays", role="bad")
    parts = [
        *(alarm, train, compare, better, log, stable, climb, rejected),
        *(arrow(one.right, two.left) for one, two in [(alarm, train), (train, compare), (compare, better)]),
        arrow(
            better.at(0.25, 1),
            (better.at(0.25, 1)[0], 152),
            (climb.top[0], 152),
            climb.top,
            role="accent",
            text="yes",
            on=1,
        ),
        arrow(better.at(0.6, 1), (better.at(0.6, 1)[0], 200), role="bad", dashed=True, text="no"),
        *(arrow(climb.left, stable.right, role="accent"), arrow(stable.left, log.right), arrow(log.top, alarm.bottom)),
        label(93, 150, "measures", anchor="start"),
    ]
    desc = (
        "A loop. An alarm or a person opens a run. A candidate is trained on new labels and answers in shadow beside the "
        "stable version. The gate lets a better candidate onto the ramp, after which it is the stable version. Another is "
        "rejected. The log of the stable version feeds the measures and the labels."
    )
    return card("Retraining with a gate", desc, 640, 306, *parts)
