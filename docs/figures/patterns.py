"""Draw how a model reaches its users: lifecycle, ways, request, use cases, shadow, canary, blue/green, ramp, shipping."""

from draw import arrow, box, card, chevron, cylinder, label, lane, note, person, polygon, state

STAGES = ("Scoping", "Data", "Modelling", "Deployment", "Maintenance")
LOOKS_BACK = "What the service shows in use leads back to the data."


def lifecycle(here: str) -> str:
    """Draw the five stages of a project, and mark the stage `here`."""
    strip = [
        chevron(12 + 137.5 * place, 58, 146, 52, name, role="accent" if name == here else "plain")
        for place, name in enumerate(STAGES)
    ]
    marked = strip[STAGES.index(here)]
    middle = marked.x + marked.w / 2
    pointer = polygon([(middle - 7, 45), (middle + 7, 45), (middle, 54)]).replace("<path", '<path class="head accent"')
    back = arrow(strip[4].at(0.45, 1), (strip[4].at(0.45, 1)[0], 136), (strip[1].at(0.5, 1)[0], 136), strip[1].bottom)
    parts = [*strip, label(middle, 32, "you are here", role="accent"), pointer, back]
    parts.append(label((strip[1].bottom[0] + strip[4].at(0.45, 1)[0]) / 2, 154, LOOKS_BACK))
    desc = f"Five stages from left to right: {', '.join(STAGES)}. {here} is marked. {LOOKS_BACK}"
    return card(f"The lifecycle of a project: {here}", desc, 720, 180, *parts)


def two_ways() -> str:
    """Draw the two ways to lower an error: change the model and keep the data, or change the data and keep the model."""
    rows = [
        ("Model-centric: the data stay", 1, "improve the model"),
        ("Data-centric: the model stays", 0, "improve the data and their labels"),
    ]
    parts: list = []
    for row, (name, changed, words) in enumerate(rows):
        y = 20 + 172 * row
        parts.append(lane(20, y, 600, 156, name))
        kinds = [("Data", "with labels"), ("Model", "learns from them"), ("Error", "on a test")]
        data, model, error = (
            box(40 + 200 * place, y + 38, 160, 56, *lines, role="accent" if place == changed else "plain")
            for place, lines in enumerate(kinds)
        )
        target = (data, model)[changed]
        low = y + 118
        back = [error.bottom, (error.bottom[0], low), (target.bottom[0], low), target.bottom]
        parts += [data, model, error, arrow(data.right, model.left), arrow(model.right, error.left)]
        parts.append(arrow(*back, role="accent", text=words, on=1, side=-1))
    desc = (
        "Two rows of the same three boxes: data, model and error. In the upper row, model-centric, an arrow leads from the "
        "error back to the model, and the data stay. In the lower row, data-centric, the arrow leads back to the data and "
        "their labels, and the model stays."
    )
    return card("Model-centric and data-centric", desc, 640, 368, *parts)


def request() -> str:
    """Draw the way of a request from the client to the model, back to the client and into the log."""
    server = lane(212, 20, 408, 296, "Server")
    client = box(20, 82, 98, 64, "Client", "app, page")
    api = box(234, 82, 128, 64, "API", "checks input")
    model = box(470, 82, 128, 64, "Model", "finds objects", role="accent")
    log = cylinder(234, 216, 128, 76, "Log", "one row each")
    readers = box(470, 216, 128, 76, "Readers", "monitoring,", "drift, gates")
    there, back = 0.3, 0.7
    parts = [
        *(server, client, api, model, log, readers),
        *(arrow(client.at(1, there), api.at(0, there)), label(164, 86, "1 picture")),
        arrow(api.at(1, there), model.at(0, there), text="2 pixels"),
        arrow(model.at(0, back), api.at(1, back), text="3 objects", side=-1),
        arrow(api.bottom, log.top, text="4 record"),
        *(arrow(api.at(0, back), client.at(1, back)), label(164, 142, "5 answer")),
        arrow(log.right, readers.left),
    ]
    desc = (
        "The client sends a picture to the API. The API checks it and gives its pixels to the model. The model returns "
        "objects. The API writes one row into the log and sends the answer. Monitoring, drift and gates read the log."
    )
    return card("A request on its way through the server", desc, 640, 336, *parts)


def use_cases() -> str:
    """Draw which deployment pattern fits which of three use cases."""
    question = box(20, 136, 150, 76, "Who does", "this task today?")
    patterns = [
        ("Nobody", "Canary, then a ramp", "Begin with few users,", "then raise the share."),
        ("A person", "Shadow, then a canary", "The person decides until", "the model is good enough."),
        ("A model", "Ramp, or blue/green", "The old version stays ready:", "one call rolls back."),
    ]
    parts = [question]
    for row, (case, *lines) in enumerate(patterns):
        pattern = box(340, 20 + 108 * row, 280, 92, *lines, role="accent")
        bend = [question.right, (208, question.right[1]), (208, pattern.left[1])] if row != 1 else [question.right]
        parts += [pattern, arrow(*bend, pattern.left), label(268, pattern.left[1] - 15, case)]
    parts.append(note(20, 352, 600, "In all three cases: watch the new version, and keep a way back."))
    desc = (
        "A decision with three ways. Nobody does the task today: canary, then a ramp. A person does it: shadow mode, then "
        "a canary. A model does it: ramp, or blue/green. In all cases: watch the new version, and keep a way back."
    )
    return card("Three use cases and the pattern that fits", desc, 640, 412, *parts)


def shadow() -> str:
    """Draw shadow mode: the stable version answers, and the candidate gets a copy of the request."""
    user = person(40, 78)
    router = box(140, 66, 100, 64, "Router")
    stable = box(310, 66, 156, 64, "Stable version", "answers")
    candidate = box(310, 198, 156, 64, "Candidate", "is only recorded", role="accent")
    log = cylinder(526, 124, 92, 80, "Log", "pairs")
    parts = [
        *(user, label(56, 132, "user"), router, stable, candidate, log),
        arrow((78, 98), router.left),
        arrow(router.right, stable.left),
        arrow(stable.top, (stable.top[0], 34), (56, 34), (56, 74), text="answer of the stable version", on=1, side=-1),
        arrow(router.bottom, (190, 230), candidate.left, role="accent", dashed=True, text="a copy", on=1),
        arrow(stable.right, (log.top[0], 98), log.top),
        arrow(candidate.right, (log.top[0], 230), log.bottom, role="accent", dashed=True),
        label(389, 284, "No user gets the candidate's answer.", role="accent"),
    ]
    desc = (
        "The router sends each request to the stable version, which answers the user, and a copy to the candidate. Both "
        "answers go to the log as a pair. No user gets the candidate's answer."
    )
    return card("Shadow mode", desc, 640, 310, *parts)


def canary(users: int = 20) -> str:
    """Draw a canary with 5 % of the keys: one of twenty users gets the candidate, and always the same one."""
    crowd = [
        person(28 + 42 * (place % 5), 36 + 52 * (place // 5), role="accent" if place == users - 1 else "plain")
        for place in range(users)
    ]
    router = box(282, 98, 120, 70, "Router", "reads the key")
    stable = box(464, 28, 156, 80, "Stable version", "95 % of the keys:", "19 users of 20")
    candidate = box(464, 158, 156, 80, "Candidate", "5 % of the keys:", "1 user of 20", role="accent")
    parts = [
        *crowd,
        *(router, stable, candidate),
        arrow((242, 133), router.left),
        arrow(router.right, (433, 133), (433, 198), candidate.left, role="accent"),
        arrow(router.right, (433, 133), (433, 68), stable.left),
        note(
            20,
            262,
            600,
            "The same key always gets the same version,",
            "so no user goes back and forth between the two.",
        ),
    ]
    desc = (
        "Twenty users send requests with their key. The router sends 95 % of the keys to the stable version and 5 % to the "
        "candidate: one user of twenty. The same key always gets the same version."
    )
    return card("A canary with 5 % of the keys", desc, 640, 342, *parts)


def side(x: float, name: str, green: bool) -> list:
    """Draw one half of the blue/green picture: the router sends all users to blue, or to green."""
    ground = lane(x, 20, 246, 316, name)
    users = [person(x + 77 + 34 * place, 54, scale=0.75) for place in range(3)]
    router = box(x + 68, 128, 110, 48, "Router")
    blue = box(x + 16, 244, 100, 68, "Blue", "ready" if green else "answers", role="blue")
    new = box(x + 130, 244, 100, 68, "Green", "answers" if green else "ready", role="accent")
    target, role = (new, "accent") if green else (blue, "blue")
    down = (router.bottom[0], 210)
    way = arrow(router.bottom, down, (target.top[0], 210), target.top, role=role)
    return [ground, *users, arrow((x + 123, 88), router.top), router, blue, new, way]


def blue_green() -> str:
    """Draw blue/green: two versions are ready, and one call of the router switches between them."""
    parts = [
        *side(20, "Before", green=False),
        *side(374, "After", green=True),
        arrow((268, 138), (372, 138), text="switch", role="accent"),
        arrow((372, 184), (268, 184), text="roll back", side=-1, role="bad", dashed=True),
    ]
    desc = (
        "Before: the router sends all users to blue, and green is ready. One call switches. After: the router sends all "
        "users to green, and blue stays ready. One call rolls back."
    )
    return card("Blue/green", desc, 640, 356, *parts)


def ramp(shares: tuple[int, ...] = (5, 25, 50)) -> str:
    """Draw a ramp as a state machine: the gate raises the share, waits, or rolls back."""
    states = [state(20 + 158 * step, 104, 106, 62, f"{share} %", "of keys") for step, share in enumerate(shares)]
    promoted = state(20 + 158 * len(shares), 104, 126, 62, "Promoted", "100 %", role="accent")
    away = state(20, 250, 422, 62, "Rolled back", "the stable version answers all requests", role="bad")
    parts = [*states, promoted, away, label(20, 30, "What the gate says at each check:", anchor="start", size=16)]
    for here, following in zip(states, [*states[1:], promoted], strict=True):
        parts.append(arrow(here.right, following.left, role="accent", text="good"))
        x, y = here.top
        parts.append(arrow((x - 22, y), (x - 22, y - 30), (x + 22, y - 30), (x + 22, y)))
        parts.append(label(x, y - 42, "too few yet"))
    for here in states:
        parts.append(arrow(here.bottom, (here.bottom[0], away.y), role="bad", dashed=True, text="worse"))
    desc = (
        "A ramp with the states 5 %, 25 %, 50 % and promoted. At each check the gate says one of three things. Good: the "
        "share grows. Too few yet: it stays. Worse: the candidate is rolled back and the stable version answers everything."
    )
    return card("A ramp as a state machine", desc, 640, 332, *parts)


def image_layers() -> str:
    """Draw what is in an image: the stages that are only for building, the layers, and a container with its volume."""
    install, model, packages = (
        box(52, 60 + 88 * row, 154, 64, *lines)
        for row, lines in enumerate(
            [("Install", "with pip"), ("Model", "fetches weights"), ("Packages", "without pip")]
        )
    )
    code, weights, kept, base = (
        box(270, 60 + 64 * row, 150, 52, *lines, role="plain" if row else "accent")
        for row, lines in enumerate(
            [("Our code", "changes often"), ("Weights",), ("Packages",), ("Base", "Debian, Python")]
        )
    )
    server = box(490, 60, 114, 64, "Server", "runs")
    data = cylinder(490, 216, 114, 88, "/data", "a volume:", "outlives it")
    parts = [
        lane(20, 20, 200, 312, "Stages, for building"),
        lane(252, 20, 186, 312, "Image, read only"),
        lane(472, 20, 150, 312, "Container"),
        *(install, model, packages, code, weights, kept, base, server, data),
        arrow(install.bottom, model.top),
        arrow(install.left, (36, install.left[1]), (36, packages.left[1]), packages.left),
        arrow(model.right, (236, model.right[1]), (236, weights.left[1]), weights.left),
        arrow(packages.right, (236, packages.right[1]), (236, kept.left[1]), kept.left),
        arrow((438, 92), server.left),
        arrow(server.bottom, data.top, text="writes", side=-1),
    ]
    desc = (
        "Three stages are only for building: one installs the packages, one fetches the weights, one keeps the packages "
        "without pip. The image has four layers: the base, the packages, the weights, and on top our code, which changes "
        "most often. A container runs the server from the image, which is read only, and writes to a volume."
    )
    return card("Stages, layers and a container", desc, 642, 352, *parts)


def cname_swap() -> str:
    """Draw a swap of two names, and a resolver that still remembers the old meaning."""
    user = person(24, 82)
    resolver = box(84, 70, 128, 64, "Resolver", "remembers")
    ours, preview = box(292, 70, 144, 64, "Users' name"), box(292, 196, 144, 64, "Preview", "the other name")
    blue = box(504, 70, 116, 64, "Blue", "old version", role="blue")
    green = box(504, 196, 116, 64, "Green", "new version", role="accent")
    memory = "what it remembers: still blue"
    parts = [
        *(user, resolver, ours, preview, blue, green),
        arrow((62, 102), resolver.left),
        arrow(resolver.right, ours.left, text="looks up"),
        arrow(ours.at(1, 0.7), green.at(0, 0.3), role="accent"),
        arrow(preview.at(1, 0.3), blue.at(0, 0.7)),
        arrow(resolver.top, (148, 46), (562, 46), blue.top, role="bad", dashed=True, text=memory, on=1),
        note(20, 276, 600, "A swap exchanges the two names.", "While blue runs, another swap is the way back."),
    ]
    desc = (
        "After the swap the users' name leads to the green environment with the new version, and the preview name leads to "
        "blue. A resolver that has looked up the name before still remembers blue, until it forgets. A second swap is the "
        "way back."
    )
    return card("Blue/green by a swap of names", desc, 640, 356, *parts)
