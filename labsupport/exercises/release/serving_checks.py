"""Define the exercises of index.ipynb and server.ipynb."""

from collections.abc import Callable

import numpy as np
import requests
from starlette.types import ASGIApp

from labsupport import images, paths
from labsupport.detection import Box, Detection, Detector
from labsupport.exercises.exercise import OpenExercise, Question, exercise, is_number
from labsupport.serving import create_app, serve

LATENCIES = (12, 14, 15, 15, 16, 17, 18, 18, 19, 20, 21, 22, 23, 24, 26, 28, 31, 35, 48, 120)  # milliseconds
CAT = [Detection("cat", 0.9, Box(0, 0, 10, 10))]


class Cats:
    """Find one cat in every picture, in no time."""

    version = "cats"

    def detect(self, image: np.ndarray, confidence: float = 0.5) -> list[Detection]:
        return CAT


@exercise(
    "Try it: call the detector on fruits.jpg with confidence=0.3 and with confidence=0.5, and count the objects.",
    "A list comprehension over 0.1, 0.2, ... 0.9 tries all nine values.",
)
def highest_confidence(answer: float) -> str | None:
    """server.ipynb: the highest confidence, in steps of 0.1, at which two objects are found in fruits.jpg."""
    if answer not in [step / 10 for step in range(1, 10)]:
        return "give one of 0.1, 0.2, ... 0.9"
    detector = Detector.load("yolov3-tiny", precision="f32")
    image = images.decode((paths.IMAGES / "fruits.jpg").read_bytes())
    here, above = (len(detector.detect(image, c)) for c in (answer, answer + 0.1))
    if here < 2:
        return f"at {answer} the model reports {here} object(s): go lower"
    return f"at {answer + 0.1:.1f} it still reports {above}: go higher" if above >= 2 else None


@exercise(
    "The table of statuses is above. Which of the four requests has bad content, a bad value, a path that is not there?",
    "The fourth path exists, but not with GET: 405 means that the method is not allowed.",
)
def four_statuses(answer: list[int]) -> str | None:
    """server.ipynb: the statuses of four bad requests, which a server is asked now."""
    if not isinstance(answer, list | tuple) or len(answer) != 4:
        return "give a list of four statuses, as in [200, 200, 200, 200]"
    with serve(create_app({"yolov3-tiny": Cats()}), port=0) as server:
        jpeg = (paths.IMAGES / "fruits.jpg").read_bytes()
        real = [
            requests.post(f"{server.url}/detect", files={"file": ("cat.png", b"GIF89a...")}, timeout=30),
            requests.post(f"{server.url}/detect?confidence=2", files={"file": ("x.jpg", jpeg)}, timeout=30),
            requests.post(f"{server.url}/count-dogs", files={"file": ("x.jpg", jpeg)}, timeout=30),
            requests.get(f"{server.url}/detect", timeout=30),
        ]
    why = (
        "the name says PNG, and the content is a GIF",
        "the file is good, and a parameter is out of its range",
        "there is no such path",
        "the path exists, and not for this method",
    )
    for number, (given, response, reason) in enumerate(zip(answer, real, why, strict=True), 1):
        if given != response.status_code:
            return f"request {number} does not get {given}: {reason}"
    return None


@exercise(
    "Take your own /predict as the pattern: a file comes in, pixels(file) makes an array of it.",
    "A function that returns a dict answers with JSON. len counts the objects in a list.",
)
def count_endpoint(app: ASGIApp) -> str | None:
    """server.ipynb: an app whose `POST /count` answers `{"count": number of objects}`."""
    with serve(app, port=0) as server:
        for name, truth in (("two_clocks.png", 2), ("stop_sign.png", 1)):
            response = post(f"{server.url}/count?model=yolov3-tiny", name)
            if not response.ok:
                return f"POST /count answered {response.status_code}: {response.text[:100]}"
            if response.json() != {"count": truth}:
                return f'for {name} it answered {response.text[:100]}, not {{"count": {truth}}}'
    return None


@exercise(
    "The label is a query parameter: give your function a parameter label of type str.",
    "First check the label: raise HTTPException with the status 422 if it is not in models.LABELS.",
    "any(...) over the labels of the objects that were found gives True or False.",
)
def alarm_endpoint(app: ASGIApp) -> str | None:
    """server.ipynb: an app whose `POST /alarm?label=person` returns whether one is in the picture. It refuses unknown
    labels.
    """
    with serve(app, port=0) as server:
        asked = (("street_1.jpg", "person", True), ("clock.png", "person", False), ("clock.png", "clock", True))
        for name, label, truth in asked:
            response = post(f"{server.url}/alarm?label={label}", name)
            if not response.ok:
                return f"POST /alarm?label={label} answered {response.status_code}: {response.text[:100]}"
            if response.json() != {"alarm": truth}:
                return (
                    f'for a {label} in {name} it answered {response.text[:100]}, not {{"alarm": {str(truth).lower()}}}'
                )
        if (status := post(f"{server.url}/alarm?label=unicorn", "clock.png").status_code) != 422:
            return f"a label that no model knows got {status}: refuse it with 422, as models.LABELS has no unicorn"
    return None


@exercise(
    "A refused request has no list in the column detections: isinstance(found, list) tells.",
    "Loop over zip(frame.id, frame.key, frame.detections) and collect the ids that fit.",
)
def answers_with(find: Callable[..., list[str]]) -> str | None:
    """server.ipynb: `find(frame, key, label)`: the ids of a user's answers that contain a label, oldest first."""
    import pandas as pd

    dog, two = [Detection("dog", 0.6, Box(0, 0, 9, 9))], [Detection("dog", 0.95, Box(0, 0, 9, 9)), *CAT]
    rows = [
        ("r1", "ann", 200, CAT),
        ("r2", "ben", 200, CAT),
        ("r3", "ann", 415, None),
        ("r4", "ann", 200, []),
        ("r5", "ann", 200, dog),
        ("r6", "ann", 200, two),
        ("r7", "ann", 200, [*CAT, *CAT]),
    ]
    answer = list(find(pd.DataFrame(rows, columns=["id", "key", "status", "detections"]), "ann", "cat"))
    if "r2" in answer:
        return "one of these answers went to another user: compare the key"
    if "r5" in answer or "r4" in answer:
        return "one of these answers has no cat in it: compare the labels"
    if answer.count("r7") > 1:
        return "an answer with two cats is one answer: name its id once"
    if missing := sorted({"r1", "r6", "r7"} - set(answer)):
        return f"missing: {', '.join(missing)}. An answer may hold several objects"
    return None if answer == ["r1", "r6", "r7"] else f"{answer}: the oldest answer comes first"


def post(url: str, name: str) -> requests.Response:
    """Send a picture of the lab to this address and return the response."""
    with (paths.IMAGES / name).open("rb") as picture:
        return requests.post(url, files={"file": picture}, timeout=30)


what_to_keep = OpenExercise(
    "For every request: time, id, status, version, latency, and the size and brightness of the picture, for 30 days, as "
    "complaints come within days and drift shows within weeks. The user's key goes after 7 days. No picture, because it may "
    "show a person, and no file name, because it may name one: most complaints can be answered without them.",
    "Can you find one request again, and say which version answered it?",
    "Is there a reason for each column that may point to a person?",
    "Is there an end: a number of days after which a row is removed?",
)
confidence_question = Question(
    "The model reports an orange with a confidence of 0.67. What do you know?",
    right="b",
    a=(
        "In 67 of 100 such cases it is an orange.",
        "Only if the model is calibrated. Here it was a lemon.",
    ),
    b=("The model's own number for this box is 0.67.", "Whether such a number is a probability must be measured."),
    c=("The box covers 67 % of the orange.", "The confidence says nothing of how well the box fits."),
)
content_question = Question(
    "A client sends a file that it calls cat.png. What should the server look at to find out if it is a picture?",
    right="c",
    a=("At the ending of the name.", "The client chooses the name. A text can be called cat.png."),
    b=("At the content type that the client declares.", "The client chooses that, too."),
    c=("At the bytes of the file.", "Only the content decides whether it can be decoded."),
)
log_question = Question(
    "A user complains about an answer of yesterday. What finds it in the log?",
    right="a",
    a=("The id of the answer, or the user's key and the time.", "The client gets the id in a header of each answer."),
    b=("The picture.", "This log keeps no pictures. A picture may also be sent many times."),
    c=("The version of the model.", "It says who answered, but thousands of answers have the same version."),
)


@exercise(
    "Think of the picture as a table: 480 rows, 512 columns. How many cells does it have?",
    "Each cell holds three numbers: blue, green and red. Python can multiply for you.",
)
def question_zero(answer: int) -> str | None:
    """Check how many numbers a colour picture of 480 x 512 pixels has."""
    if not is_number(answer):
        return "give a whole number, as in answer = 12"
    if answer == 480 * 512:
        return f"{answer:,} is the number of pixels: each of them has three numbers"
    if answer == 480 + 512 + 3:
        return "you added: rows times columns gives the number of pixels"
    return None if answer == 480 * 512 * 3 else f"{answer:,} is not rows times columns times colours"


@exercise(
    "A dict gives the value of a key with square brackets: found['label'] is 'dog'.",
    "The box is a dict inside the dict, so you need square brackets twice.",
    "To read: https://docs.python.org/3/tutorial/datastructures.html#dictionaries",
)
def from_a_dict(answer: int) -> str | None:
    """Check the left edge of a box, taken out of a nested dict."""
    if isinstance(answer, dict):
        return "that is the whole box: take one more key"
    if isinstance(answer, str):
        return "that is a text: the left edge is a number inside the box"
    if answer == 258:
        return "that is the top edge"
    return None if answer == 62 else f"{answer} does not stand under 'left'"


@exercise(
    "[name for name in names if ...] keeps the names for which the condition is true.",
    "Each element is a pair, so the loop may have two variables: for label, confidence in objects",
    "To read: https://docs.python.org/3/tutorial/datastructures.html#list-comprehensions",
)
def sure_labels(answer: list[str]) -> str | None:
    """Check the labels of the objects with a confidence above 0.8."""
    if not isinstance(answer, list | tuple):
        return "give a list of labels"
    if any(isinstance(one, tuple) for one in answer):
        return "these are pairs: keep the label only"
    if "sheep" in answer:
        return "the sheep has 0.78, which is not above 0.8"
    return None if list(answer) == ["person", "dog"] else f"{list(answer)}: which objects have more than 0.8?"


@exercise(
    "NumPy counts True as 1 and False as 0.",
    "The mean of such an array is the share of True. Every array has the method mean.",
    "To read: https://numpy.org/doc/stable/user/absolute_beginners.html#more-useful-array-operations",
)
def share_of_errors(answer: float) -> str | None:
    """Check the share of wrong answers in an array of True and False: two of five."""
    if not is_number(answer):
        return "give a number between 0 and 1"
    if answer == 2:
        return "that is how many are wrong: divide by how many there are"
    if abs(answer - 0.6) < 1e-9:
        return "that is the share of right answers"
    if answer == 40:
        return "that is in per cent: give a share between 0 and 1"
    return None if abs(answer - 0.4) < 1e-9 else f"{answer} is not the share of True in the array"


@exercise(
    "Each bar counts the values between its two edges. Find the bar between 0.8 and 0.9.",
    "The height of that bar, read at the axis on the left, is the answer.",
    "To read: https://numpy.org/doc/stable/reference/generated/numpy.histogram.html",
)
def read_a_histogram(answer: int) -> str | None:
    """Check how many values lie between 0.8 and 0.9 in a histogram."""
    if not is_number(answer):
        return "give a whole number"
    if answer == 20:
        return "that is the number of all values: read one bar"
    if answer in (2, 3, 4, 5):
        return "that is the height of another bar: look between 0.8 and 0.9"
    return None if answer == 6 else f"no bar is {answer} high"


@exercise(
    "It is the status that you see in the browser when a link is broken.",
    "It begins with 4, because the client has to change something.",
    "To read: https://developer.mozilla.org/en-US/docs/Web/HTTP/Reference/Status",
)
def missing_page(answer: int) -> str | None:
    """Check the HTTP status of a page that does not exist."""
    if isinstance(answer, str):
        return "give the number, without quotes"
    if answer == 200:
        return "200 means that all is well, and the page is in the answer"
    if is_number(answer, whole=True) and 500 <= answer < 600:
        return f"{answer} says that the server failed: here the server works, and the address is wrong"
    return None if answer == 404 else f"{answer} is another status"


@exercise(
    "Half of the values are below the median. 95 % of the values are below the 95th percentile.",
    "NumPy has a function with this name. Its second argument is the 95.",
    "To read: https://numpy.org/doc/stable/reference/generated/numpy.percentile.html",
)
def slow_answers(answer: float) -> str | None:
    """Check the 95th percentile of `LATENCIES`."""
    if not is_number(answer):
        return "give a number of milliseconds"
    close: dict[str, float] = {
        "the median: half of the answers are faster": np.median(LATENCIES),
        "the mean": float(np.mean(LATENCIES)),
        "the slowest answer: five in a hundred may be slower than the 95th percentile": max(LATENCIES),
        "nearly nothing: the second argument goes from 0 to 100": np.percentile(LATENCIES, 0.95),
    }
    for name, value in close.items():
        if abs(answer - value) < 0.01:
            return f"{answer:.4g} ms is {name}"
    return None if 48 <= answer <= 120 else f"{answer:.4g} ms: 19 of the 20 answers should be faster or as fast"
