"""Define the exercises of pipeline_monitoring.ipynb."""

from collections.abc import Callable
from typing import Any

from labsupport.exercises.exercise import OpenExercise, Question, exercise, is_number


@exercise(
    "Which parts of the pipeline can be named by a diagnosis? Count the rows of the table in section 3.",
    "The chances of a false alarm add up, so each part gets an equal share of alpha.",
)
def pipeline_level(answer: float) -> str | None:
    """pipeline_monitoring.ipynb: the level of each test in a pipeline of nine stages, of which one look in 20 may err."""
    if not is_number(answer) or not 0 < answer < 1:
        return "give a share between 0 and 1"
    if abs(answer - 0.05 / 9) < 1e-4:
        return "there are nine stages: what else is tested?"
    if abs(answer - 0.05) < 1e-6:
        return "0.05 is for all tests together: with this level for each, false alarms would be much more frequent"
    return None if abs(answer - 0.005) < 1e-6 else f"{answer} is not it: the levels of all tests add up to 0.05"


@exercise(
    "In a sorted list, equal pages stand side by side.",
    "Compare each click with the next one: zip(clicks, clicks[1:]).",
)
def order_of_clicks(describe: Callable[[list[str]], dict[str, Any]]) -> str | None:
    """pipeline_monitoring.ipynb: measures of a visit that change if the logging sorts its clicks, and only then."""
    from labsupport import drift
    from labsupport.scenarios import clickstream

    before, same, other = (clickstream.visits(200, seed=seed).clicks for seed in (71, 72, 73))
    figures = [[dict(describe(list(clicks))) for clicks in visits] for visits in (before, same, map(sorted, other))]
    if not figures[0][0]:
        return "your description holds no measure"
    columns = [{name: [row.get(name) for row in rows] for name in figures[0][0]} for rows in figures]
    if drift.compare(columns[0], columns[1], alpha=0.001).drifted:
        return "it raises an alarm where nothing has changed"
    if not drift.compare(columns[0], columns[2], alpha=0.001).drifted:
        return "sorted clicks look like the others to it: how do neighbours in a list tell whether it is sorted?"
    return None


@exercise(
    "Run the 300 clips through the pipeline with both changes, as `window` does.",
    "`report.named('changed')` gives all names, and `report.entered` only the first.",
)
def two_changes(answer: list[str]) -> str | None:
    """pipeline_monitoring.ipynb: which stages changed, if the microphone is noisier and the recogniser is version 2."""
    if not isinstance(answer, (list, tuple)):
        return 'give the names as a list, as in ["vad"]'
    if missing := {"input", "recogniser"} - set(answer):
        return f"{' and '.join(sorted(missing))} is missing: use report.named('changed')"
    if "vad" in answer:
        return "the detection is as it was, it inherited its change"
    others = [name for name in answer if name not in ("input", "recogniser")]
    return f"{others[0]!r} is no part that changed" if others else None


@exercise(
    "The rows are in the order of the pipeline.",
    "'inherited' means: its outputs changed because its inputs did.",
)
def first_change(answer: str) -> str | None:
    """pipeline_monitoring.ipynb: the stage to look at first, read from the verdicts of five parts."""
    if not isinstance(answer, str):
        return 'give the name of a part as text, such as "camera"'
    texts = {
        "camera": "the camera's pictures are unchanged",
        "cropper": None,
        "reader": "its verdict is inherited: it only passes on what the cropper does",
        "checker": "it changed too, but the cropper is before it: repair that first",
        "printer": "its verdict is inherited: it only passes on what it is given",
    }
    return texts.get(answer, f"{answer!r} is no part of this pipeline")


@exercise(
    "The rows of the day are in `days`, under its name. The profile's output is in the column 'profile.value'.",
    "(column == 'unknown') is True or False for each visit. The mean of that is a share.",
)
def unknown_share(share: Callable[[Any], Any]) -> str | None:
    """pipeline_monitoring.ipynb: the share of visits of a day for which the profile says "unknown"."""
    import pandas as pd

    day = pd.DataFrame(
        {"profile.value": ["yes", "unknown", None, "no", "unknown"], "profile.null": [False, True, True, False, True]}
    )
    if (returned := share(day)) is ...:
        return "share returns the dots: put the share in their place"
    answer = float(returned)
    if abs(answer - 0.6) < 1e-9:
        return "you count None, too: it is null, but it is not the word unknown"
    if abs(answer - 2) < 1e-9:
        return "that is a count: divide it by the number of rows"
    if abs(answer - 0.5) < 1e-9:
        return "you divide by the rows with a value: a visit without one is a visit as well"
    return None if abs(answer - 0.4) < 1e-9 else f"for yes, unknown, None, no, unknown it gives {answer:g}"


own_pipeline = OpenExercise(
    "Camera -> cropper (finds the phone in the picture) -> inspector (finds scratches) -> rule (reject, or pass). "
    "Input: brightness and sharpness. Cropper: size and position of the cut, null if no phone was found. Inspector: "
    "number of scratches, highest confidence. Rule: share rejected. Each: latency and errors.",
    "Does each stage have a measure for its output, and one for a missing output?",
    "Does each description contain all that the next stage looks at?",
    "Which stage would you suspect if only the share of rejected phones rises, and what would prove you wrong?",
    hints=["Begin with the steps from the camera to the arm that takes a phone off the line."],
)
convention_question = Question(
    "Which convention must training and service share here, and why?",
    right="a",
    a=(
        "The silence: the recogniser has learned at which part of a segment each sound comes.",
        "More silence moves the sounds to other parts. Another volume adds the same number to every log energy, "
        "and `spectrum` subtracts the mean, so the recogniser gets nearly the same numbers.",
    ),
    b=(
        "The volume: a softer word has less energy.",
        "It has, but `spectrum` subtracts the mean of the log energies, so the recogniser does not get the volume.",
    ),
    c=(
        "Both: each difference from the training costs some words.",
        "Compare the two panels: one of the lines is flat.",
    ),
    d=(
        "Neither: a word stays the same word.",
        "To us it does. The left panel shows that the recogniser gets it wrong.",
    ),
)
rollback_question = Question(
    "The recogniser's confidence falls. Given its input, nothing about it has changed. What do you do?",
    right="c",
    a=("Roll back the recogniser.", "It does what it always did. The old version would get the same bad input."),
    b=("Nothing: it is not a fault.", "The answers are worse, so something before it has changed. Look there."),
    c=(
        "Look at the stages before it.",
        "It inherited the change. The first stage that changed given its input is the cause.",
    ),
)
conditional_question = Question(
    "Why is it not enough to watch the output of each stage?",
    right="a",
    a=(
        "A change in one stage changes the outputs of all later ones.",
        "All of them raise alarms, and none says where it began.",
    ),
    b=("Outputs cannot be measured.", "They can, and we do. But what they mean depends on the input."),
    c=("It takes too long.", "Comparing outputs is quick. The trouble is that it blames stages that only inherit."),
)
describe_question = Question(
    "Children speak, and the diagnosis blames the voice-activity detection. What was missing?",
    right="b",
    a=("More data.", "With more data the wrong verdict would only become more certain."),
    b=(
        "A measure of the input that tells children's voices from adults'.",
        "The input looked the same to the diagnosis, so the first stage that reacted to the new voices was blamed.",
    ),
    c=("A stricter level.", "A stricter level hides the change. It does not say where the change began."),
)
