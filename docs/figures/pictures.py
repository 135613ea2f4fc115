"""Write the course's diagrams to notebooks/figures, and say what each of them says.

`python docs/figures/pictures.py` writes all files. A lesson shows one with its text of `ALT`:
`![It says ...](figures/canary.svg)`.
"""

from pathlib import Path

import operation
import patterns
import protection

FOLDER = Path(__file__).parents[2] / "notebooks" / "figures"
HERE = "The lifecycle of a project: scoping, data, modelling, deployment, maintenance, and back to data. You are at {}."
ALT = {  # the alternative text: what the picture says, in 30 words at most
    **{f"lifecycle_{stage.lower()}": HERE.format(stage.lower()) for stage in patterns.STAGES},
    "two_ways": "Two ways to lower an error. Model-centric: the data stay, and the model is improved. Data-centric: the "
    "model stays, and the data and their labels are improved.",
    "request": "A client sends a picture to the API, the API asks the model, writes a row into the log and answers. "
    "Monitoring, drift and gates read the log.",
    "use_cases": "Nobody does the task today: canary, then a ramp. A person does it: shadow, then a canary. "
    "A model does it: ramp, or blue/green.",
    "shadow": "The stable version answers each request. The candidate gets a copy. Both answers go to the log, "
    "and no user gets the candidate's.",
    "canary": "The router sends the keys of 1 of 20 users to the candidate, and the others to the stable version. "
    "The same key always gets the same version.",
    "blue_green": "Blue answers all users while green is ready. One call switches all users to green, "
    "and one call rolls back to blue.",
    "ramp": "The share of keys grows from 5 to 25 to 50 % and to promoted. At each check the gate goes on, "
    "waits, or rolls back to the stable version.",
    "image_layers": "Stages build packages and weights. The image holds base, packages, weights and code. "
    "A container runs the server from it, and writes to a volume that outlives it.",
    "cname_swap": "After the swap the users' name leads to green and the preview to blue. A resolver that remembers the old "
    "meaning still leads its users to blue.",
    "attacks": "Where the attacks of each section enter: in the client's request, on the way, at the server, in the data "
    "folder, in the feedback, and in the model.",
    "hash_chain": "Each row's hash covers the row and the hash before it. A changed row breaks the chain. A cut tail does "
    "not, so the newest hash is kept elsewhere.",
    "automation": "Five degrees: human only, shadow, assistance, partial and full automation. From left to right "
    "the model decides more. Assistance and partial are human in the loop.",
    "human_in_the_loop": "The model decides where it is sure. Other cases wait in a review queue for a person, "
    "whose decisions become labels for retraining the model.",
    "drift": "Data drift: the pictures get darker and the rule for a defect stays. Concept drift: the pictures stay "
    "and the rule changes, so phones with short scratches become good.",
    "monitoring_loop": "Measure, alarm, act, deploy again, and measure again: monitoring is a loop.",
    "pipeline": "A new voice-activity detector shortens the speech, and the recogniser's confidence falls with it. "
    "The first step that changed, given its input, is where to look.",
    "edge": "A station decides with the server or alone, stores the decision in its outbox, acts, and sends the record "
    "until the server confirms it.",
    "batch_stream_online": "The same inputs, answered in three ways: all together at night, each some minutes later, "
    "or each immediately because somebody waits.",
    "retraining": "An alarm starts training. The candidate runs in shadow, and the gate sends it up the ramp if it is "
    "better, or rejects it.",
}


def drawn(name: str) -> str:
    """Return the SVG of a figure."""
    kind, _, stage = name.partition("_")
    if kind == "lifecycle":
        return patterns.lifecycle(stage.capitalize())
    module = next(one for one in (patterns, operation, protection) if hasattr(one, name))
    return getattr(module, name)()


def write(folder: Path = FOLDER) -> None:
    """Write every figure into the folder."""
    folder.mkdir(exist_ok=True)
    for name in ALT:
        (folder / f"{name}.svg").write_text(drawn(name), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write()
