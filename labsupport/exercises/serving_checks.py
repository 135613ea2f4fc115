"""Define the exercises of server.ipynb and client.ipynb."""

from collections.abc import Callable

import requests
from starlette.types import ASGIApp

from labsupport import images, paths
from labsupport.detection import Detector
from labsupport.exercises.exercise import exercise
from labsupport.serving import serve


@exercise()
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


@exercise()
def count_endpoint(app: ASGIApp) -> str | None:
    """server.ipynb: an app whose `POST /count` answers `{"count": number of objects}`."""
    with serve(app, port=0) as server:
        for name, truth in (("two_clocks.png", 2), ("stop_sign.png", 1)):
            response = _post(f"{server.url}/count?model=yolov3-tiny", name)
            if not response.ok:
                return f"POST /count answered {response.status_code}: {response.text[:100]}"
            if response.json() != {"count": truth}:
                return f'for {name} it answered {response.text[:100]}, not {{"count": {truth}}}'
    return None


@exercise()
def alarm_endpoint(app: ASGIApp) -> str | None:
    """server.ipynb: an app whose `POST /alarm?label=person` returns whether one is in the picture. It refuses unknown
    labels.
    """
    with serve(app, port=0) as server:
        for name, label, truth in (("street_1.jpg", "person", True), ("clock.png", "person", False)):
            response = _post(f"{server.url}/alarm?label={label}", name)
            if not response.ok:
                return f"POST /alarm?label={label} answered {response.status_code}: {response.text[:100]}"
            if response.json() != {"alarm": truth}:
                return (
                    f'for a {label} in {name} it answered {response.text[:100]}, not {{"alarm": {str(truth).lower()}}}'
                )
        if (status := _post(f"{server.url}/alarm?label=unicorn", "clock.png").status_code) != 422:
            return f"a label that no model knows got {status}: refuse it with 422, as models.LABELS has no unicorn"
    return None


@exercise()
def confidence_challenge(app: ASGIApp, ask: Callable[[str, str, float], requests.Response]) -> str | None:
    """client.ipynb: `app` takes `?confidence=`, and `ask(url, filename, confidence)` sends it."""
    with serve(app, port=0) as server:
        url = f"{server.url}/predict"
        for confidence in (0.2, 0.5):
            expected = _post(f"{url}?model=yolov3-tiny&confidence={confidence}", "fruits.jpg")
            if not expected.ok:
                return f"the server answered {expected.status_code} at confidence={confidence}: {expected.text[:100]}"
            answer = ask(url, "fruits.jpg", confidence)
            if answer.content != expected.content:
                return f"the client's answer at confidence={confidence} is not the server's: is it in the URL?"
        if _post(f"{url}?confidence=0.2", "fruits.jpg").content == expected.content:
            return "the server draws the same boxes at 0.2 and 0.5: does detect get the confidence?"
        if _post(f"{url}?confidence=2", "fruits.jpg").status_code != 422:
            return "the server takes confidence=2: Query(ge=0, le=1) refuses it with 422"
    return None


def _post(url: str, name: str) -> requests.Response:
    with (paths.IMAGES / name).open("rb") as picture:
        return requests.post(url, files={"file": picture}, timeout=30)
