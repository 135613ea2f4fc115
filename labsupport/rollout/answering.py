"""The one way to an answer, in process and over HTTP: a version is chosen, looks at the picture, and what happened is
written down; then a candidate in shadow sees the picture, too."""

import math
import secrets
import time
from collections.abc import Callable
from numbers import Real

import numpy as np

from labsupport import arguments
from labsupport.detection import Detection

FAR = 2**31  # pixels: boxes may lie outside of the picture, but not farther away


class VersionFailed(RuntimeError):
    """A version raised what a request is blamed for, such as `UnsupportedImage`: it has failed, and not the client."""


def answer(
    router,
    picture: Callable[[], np.ndarray],
    confidence: float,
    key: str | None,
    id: str,
    write: Callable[..., None],
    render: Callable = lambda version, latency, image, found: found,
    status: Callable[[BaseException], int] = lambda error: 500,
):
    """Let the version whose turn it is look at a picture, and return what `render(version, latency, image, found)` does.

    `picture()` gives the picture. `write` is called once, whether it works or fails, with `id`, `version`, `latency`,
    `detections`, `status` and `error`. A failure gets an id of its own and what `status(error)` returns. Raises what fails,
    and `VersionFailed` where that would blame the request although its picture has been read.
    """
    started, version, read = time.perf_counter(), None, False
    try:
        chosen = router.choose(key)
        version, image = chosen.version, picture()
        read = True
        found = checked(chosen.detect(image, confidence))
        latency = time.perf_counter() - started
        answer = render(version, latency, image, found)
    except KeyboardInterrupt:  # the person's, and no failure of the version
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
    write(id=id, version=version, latency=latency, detections=found, status=200, error=None)
    router.mirror(id, image, confidence, key)
    return answer


def checked(found) -> list[Detection]:
    """Return what a version found as a list. Raises for what the log could not hold: the version has failed.

    >>> checked([])
    []
    """
    found = list(found)
    for one in found:
        if not (math.isfinite(one.confidence) and isinstance(one.label, str) and _is_box(one.box)):
            words = "give it a label that is text, a finite confidence and a box of four numbers"
            raise ValueError(f"{arguments.shown(one)} is no detection: {words}")
    return found


def _is_box(box) -> bool:
    """Four numbers below 2**31, as the records of stations have: NaN is none, and nothing can draw what is larger."""
    return isinstance(box, tuple | list) and len(box) == 4 and all(isinstance(n, Real) and abs(n) < FAR for n in box)
