"""Define the exercises of client.ipynb."""

import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import requests
from starlette.types import ASGIApp

from labsupport import images
from labsupport.detection import Box, Detection
from labsupport.exercises.exercise import OpenExercise, Question, exercise
from labsupport.exercises.release.serving_checks import post
from labsupport.serving import create_app, serve


@exercise(
    "The order is: address of the server, endpoint, then a question mark and the parameters.",
    "Parameters are written name=value, and & stands between two of them.",
)
def built_address(answer: str) -> str | None:
    """client.ipynb: the address of a request for objects with a confidence of 0.3 by yolov3-tiny."""
    if not isinstance(answer, str):
        return "give a text, in quotes"
    parts = urlsplit(answer)
    if (parts.scheme, parts.netloc) != ("http", "127.0.0.1:9000"):
        return "it does not begin with the address of the server, http://127.0.0.1:9000"
    if "?" not in answer:
        return "a question mark stands between the endpoint and the parameters"
    if parts.path != "/detect":
        return f"the endpoint is {parts.path or 'missing'}: the one that returns objects as JSON is /detect"
    given = parse_qs(parts.query)
    for name, value in {"model": ["yolov3-tiny"], "confidence": ["0.3"]}.items():
        if given.get(name) != value:
            return f"the parameter {name} does not arrive as {value[0]}: write name=value, with & between the two"
    return None if len(given) == 2 else "there are more parameters than two"


@exercise(
    "For each status ask: would the same request be answered if I sent it again in a second?",
    "A picture that is too large stays too large. A busy server does not stay busy.",
)
def send_again(answer: set[int]) -> str | None:
    """client.ipynb: which of six statuses are worth sending the same request again."""
    if not isinstance(answer, set | frozenset | list | tuple):
        return "give a set of numbers, as in {200}"
    why = {
        200: "200 is an answer: there is nothing to repeat",
        404: "404 says that the path is wrong: it will be wrong the next time, too",
        413: "413 says that the picture is too large: send a smaller one, not the same one",
        415: "415 says that the file is no picture: it will not become one",
        422: "422 says that a parameter is wrong: correct it first",
    }
    for status, reason in why.items():
        if status in answer:
            return reason
    if set(answer) - {503}:
        return f"{(set(answer) - {503}).pop()} is not one of the six"
    return None if answer else "one of the six means that the server is busy for the moment"


@exercise(
    "On the server: a parameter confidence: float = Query(0.5, ge=0, le=1), handed on to detector.detect(image, ...).",
    "In ask: the address gets one more parameter, &confidence= and the value.",
)
def confidence_challenge(app: ASGIApp, ask: Callable[[str, str, float], requests.Response]) -> str | None:
    """client.ipynb: `app` takes `?confidence=`, and `ask(url, filename, confidence)` sends it."""
    with serve(app, port=0) as server:
        url = f"{server.url}/predict"
        for confidence in (0.2, 0.5):
            expected = post(f"{url}?model=yolov3-tiny&confidence={confidence}", "fruits.jpg")
            if not expected.ok:
                return f"the server answered {expected.status_code} at confidence={confidence}: {expected.text[:100]}"
            answer = ask(url, "fruits.jpg", confidence)
            if answer.content != expected.content:
                return f"the client's answer at confidence={confidence} is not the server's: is it in the URL?"
        if post(f"{url}?confidence=0.2", "fruits.jpg").content == expected.content:
            return "the server draws the same boxes at 0.2 and 0.5: does detect get the confidence?"
        if post(f"{url}?confidence=2", "fruits.jpg").status_code != 422:
            return "the server takes confidence=2: Query(ge=0, le=1) refuses it with 422"
    return None


class _Answer:
    """A response that was never sent."""

    def __init__(self, status: int, wait: int) -> None:
        self.status_code, self.ok = status, status < 400
        self.headers = {"Retry-After": str(wait)} if status == 503 else {}


@exercise(
    "Two things are to be mended: the wait after the last try, and a very long wait.",
    "Read the wait into a variable first. If it is more than 5, return the response.",
    "After a loop with three tries, one more call of send() is the fourth try, whatever it answers.",
)
def patient(ask: Callable[..., object]) -> str | None:
    """client.ipynb: `ask(send, sleep)`: repeat after a 503, four tries in all, and never wait more than 5 seconds."""
    for answers, tries in (
        ([(200, 0)], 1),
        ([(422, 0), (200, 0)], 1),
        ([(503, 1), (503, 3), (200, 0)], 3),
        ([(503, 1)] * 9, 4),
        ([(503, 60), (200, 0)], 1),
    ):
        if wrong := _with_answers(ask, answers, tries):
            return wrong
    return None


def _with_answers(ask: Callable[..., object], answers: list[tuple[int, int]], tries: int) -> str | None:
    """Return what `ask` does wrong with a server that gives these answers: (status, seconds in Retry-After)."""
    sent: list[_Answer] = []
    slept: list[float] = []

    def send() -> _Answer:
        sent.append(_Answer(*answers[len(sent)]))
        return sent[-1]

    result = ask(send, slept.append)
    if answers[0][1] > 5 and slept:
        return (
            f"the server asks for a wait of {answers[0][1]} seconds, and your client waits: return the response instead"
        )
    shown = ", ".join(str(status) for status, _ in answers[:4])
    if len(sent) != tries:
        return f"the server would answer {shown}: your client asks {len(sent)} times, {tries} is right"
    if len(slept) == tries:
        return f"the server would answer {shown}: your client waits after the last try, and no try follows"
    if slept != [wait for _, wait in answers[: tries - 1]]:
        return f"your client waits {slept} seconds: Retry-After says how long"
    return None if result is sent[-1] else "it does not return the last response"


class _Labels:
    """Find as many objects as a picture is pixels high, of the label that belongs to its width."""

    version = "labels"

    def detect(self, image: np.ndarray, confidence: float = 0.5) -> list[Detection]:
        label = "dog" if image.shape[1] == 20 else "clock"
        return [Detection(label, 0.9, Box(0, 0, 9, 9))] * image.shape[0]


@exercise(
    "Send each file as in section 2, to /detect, and look at response.ok before you read response.json().",
    "Each object in response.json()['detections'] has a label. A Counter counts them: counts[label] += 1.",
)
def tally(count: Callable[..., dict[str, int]]) -> str | None:
    """client.ipynb: `count(base_url, files)`: how often a server finds each label in files; refused ones are left out."""
    dogs, clocks = random.sample(range(3, 9), 2)  # three or more: then each wrong way of counting has a sum of its own
    with serve(create_app({"yolov3-tiny": _Labels()}), port=0) as server, tempfile.TemporaryDirectory() as folder:
        for name, height, width in (("a.png", dogs, 20), ("b.png", clocks, 30), ("d.png", 1, 20)):
            (Path(folder) / name).write_bytes(images.encode(np.zeros((height, width, 3), np.uint8), "png"))
        (Path(folder) / "c.png").write_text("a text, which the server refuses")
        answer = dict(count(server.url, sorted(Path(folder).iterdir())))
    truth = {"dog": dogs + 1, "clock": clocks}
    if answer == {"dog": 2, "clock": 1}:
        return "it counts pictures with a label: count every object"
    if answer == {"dog": dogs, "clock": clocks}:
        return "it stops at the file that the server refuses: go on with the next file"
    return None if answer == truth else f"a server that found {truth} was counted as {answer}"


when_it_is_down = OpenExercise(
    "The camera's program waits at most one second for an answer. It tries again twice if the server is busy or not "
    "reachable. Then it stores the picture, marks the product as unchecked, and tells a person after ten unchecked products "
    "in a row. It never reports 'no defect' without an answer.",
    "Is there a longest time for which the user or the line waits?",
    "Does the program say 'no answer' instead of inventing one?",
    "Does a person hear of it, and when?",
)
refusal_question = Question(
    "The server answers 422. What should a program do?",
    right="c",
    a=("Send the same request again.", "It would be refused again: that helps only against 503."),
    b=("Ask another server.", "The request is wrong, so that server would refuse it, too."),
    c=("Show the detail, and correct the request.", "4xx means that the client has to change something."),
)
timeout_question = Question(
    "Why does a client give each request a timeout?",
    right="a",
    a=("Without one it may wait forever.", "A server that hangs keeps the connection open and never answers."),
    b=("The server becomes faster.", "The server does not even see the client's timeout."),
    c=("The answer is more accurate.", "The model does the same work, with or without a client that waits."),
)
move_question = Question(
    "A program calls detector.detect(image). The model moves to a server. What has to change in the program?",
    right="b",
    a=("Each call of detect.", "Client has the same method with the same arguments and results."),
    b=("The line that makes the detector.", "Client(url) takes the place of Detector.load(...). The calls stay."),
    c=("Nothing at all.", "The program must learn the address of the server, and that calls can fail."),
)
