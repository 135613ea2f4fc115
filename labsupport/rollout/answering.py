"""Answer one request: choose a version, run it, log the result. Then copy the picture to a shadow candidate.

HTTP requests and calls in process both use this module."""

import secrets
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np

from labsupport.detection import Detection, Version, all_plain

Answer = TypeVar("Answer")


class VersionFailed(RuntimeError):
    """A version raised an error that blames the request, such as `UnsupportedImage`, although the picture was read."""


class Chooser(Protocol):
    """Describe the part of a `Router` that answers a request."""

    def choose(self, key: str | None = None) -> Version:
        """Return the version that answers."""

    def mirror(
        self, id: str, image: np.ndarray, confidence: float, key: str | None = None, person: str | None = None
    ) -> None:
        """Show an answered picture to the candidate in shadow, if there is one."""


def answer(
    router: Chooser,
    picture: Callable[[], np.ndarray],
    confidence: float,
    key: str | None,
    id: str,
    write: Callable[..., None],
    render: Callable[[str, float, np.ndarray, list[Detection]], Answer],
    status: Callable[[BaseException], int] = lambda error: 500,
    person: str | None = None,
) -> Answer:
    """Run the version that `router` chooses on a picture, and return `render(version, latency, image, detections)`.

    `picture()` returns the picture. `write` is called once, after a success and after a failure, with `id`, `version`,
    `latency`, `detections`, `status` and `error`. A failure is logged under a new id, with the status `status(error)`.
    `person` is the id of the person who asks, for the log of the candidate's answer; `write` logs it with the other rows.
    Raises the error of the step that fails. Raises `VersionFailed` if that error would blame the request although its
    picture has been read.
    """
    started, version, read = time.perf_counter(), None, False
    try:
        chosen = router.choose(key)
        version, image = chosen.version, picture()
        read = True
        detections = all_plain(chosen.detect(image, confidence))
        latency = time.perf_counter() - started
        answer = render(version, latency, image, detections)
    except KeyboardInterrupt:  # somebody stopped the program: the version did not fail
        raise
    except BaseException as error:
        latency = time.perf_counter() - started
        number, kind = status(error), type(error).__name__
        blamed = read and number < 500
        failed = {"detections": None, "status": 500 if blamed else number, "error": kind}
        write(id=secrets.token_hex(16), version=version, latency=latency, **failed)
        if blamed:
            raise VersionFailed(f"{version} raised {kind} on a picture that could be read: {error}") from error
        raise
    write(id=id, version=version, latency=latency, detections=detections, status=200, error=None)
    router.mirror(id, image, confidence, key, person)
    return answer


def only_detections(version: str, latency: float, image: np.ndarray, found: list[Detection]) -> list[Detection]:
    """Return the detections: the `render` of a caller in process."""
    return found
