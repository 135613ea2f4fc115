"""The one way to an answer, in process and over HTTP: a version is chosen, looks at the picture, and what happened is
written down; then a candidate in shadow sees the picture, too."""

import math
import secrets
import time
from collections.abc import Callable

import numpy as np

from labsupport import arguments
from labsupport.detection import Detection


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
    `detections`, `status` and `error`. A failure gets an id of its own and what `status(error)` returns. Raises what fails.
    """
    started, version = time.perf_counter(), None
    try:
        chosen = router.choose(key)
        version, image = chosen.version, picture()
        found = checked(chosen.detect(image, confidence))
        latency = time.perf_counter() - started
        answer = render(version, latency, image, found)
    except KeyboardInterrupt:  # the person's, and no failure of the version
        raise
    except BaseException as error:
        latency = time.perf_counter() - started
        failed = {"detections": None, "status": status(error), "error": type(error).__name__}
        write(id=secrets.token_hex(16), version=version, latency=latency, **failed)
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
        if not (math.isfinite(one.confidence) and len(one.box) == 4 and isinstance(one.label, str)):
            raise ValueError(f"{arguments.shown(one)} is no detection: give it a label, a finite confidence and a box")
    return found
