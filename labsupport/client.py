"""The other side of the API: the same `detect` over HTTP, and the two helpers of the client notebook."""

import math
import random
import time
from pathlib import Path
from typing import BinaryIO

import numpy as np
import requests

from labsupport import images, paths
from labsupport.detection import Box, Detection

TIMEOUT = 60  # seconds
TRIES = 4
PATIENCE = 5  # seconds: a server that asks for more wants something done first, a model installed for example


class ServerError(RuntimeError):
    """The server refused or could not answer; the message is the server's own."""


class Client:
    """A server seen as a detector: `Client(url).detect(image)` answers what a `Detector` in this process would.

    >>> Client("http://127.0.0.1:8000/").url
    'http://127.0.0.1:8000'
    """

    def __init__(self, url: str, model: str = "yolov3-tiny") -> None:
        self.url, self.model, self.version = url.rstrip("/"), model, None
        self._session = requests.Session()  # keeps its connection between calls

    def detect(self, image: np.ndarray, confidence: float = 0.5) -> list[Detection]:
        """The objects in a picture (uint8, (H, W, 3), BGR); sent as PNG, so that no pixel changes on the way.

        Afterwards `version` is the model version that answered. A server that is busy (a 503 with a `Retry-After` of at most
        `PATIENCE` seconds) is asked again, `TRIES` times in all, after the time it names and up to a second more. Raises
        `ServerError` if it stays busy and at any other refusal, and what requests raises when nobody answers at all.
        """
        response = self._post(
            f"{self.url}/detect",
            params={"model": self.model, "confidence": confidence},
            files={"file": ("picture.png", images.encode(image, "png"), "image/png")},
        )
        if not response.ok:
            raise ServerError(f"{response.status_code}: {_detail(response)}")
        answer = response.json()
        self.version = answer["version"]
        return [Detection(d["label"], d["confidence"], Box(**d["box"])) for d in answer["detections"]]

    def _post(self, url: str, **request) -> requests.Response:
        """Not `urllib3.util.Retry`: it would wait for a minute if asked to, and it has no jitter for `Retry-After`."""
        for _ in range(TRIES - 1):
            response = self._session.post(url, timeout=TIMEOUT, **request)
            if (wait := _busy_for(response)) > PATIENCE:
                return response
            time.sleep(wait + random.random())  # else all who were refused at once would come back at once
        return self._session.post(url, timeout=TIMEOUT, **request)


def find_server(port: int | None = None) -> str | None:
    """The address of the lab's server on this machine, or None if there is none. `port=None`: 8000 or `LAB_PORT`."""
    from labsupport.running import default_port

    url = f"http://127.0.0.1:{default_port() if port is None else port}"
    try:
        return url if "docs" in requests.get(url, timeout=2).json() else None
    except (requests.RequestException, ValueError):
        return None


def response_from_server(url: str, image_file: BinaryIO, verbose: bool = True) -> requests.Response:
    """Send an open picture file to a prediction URL and return the response, having said whether it went well."""
    response = requests.post(url, files={"file": image_file}, timeout=TIMEOUT)
    if verbose and response.ok:
        print(f"answered: {response.status_code}, {len(response.content):,} bytes")
    elif verbose:
        print(f"refused: {response.status_code}, {_detail(response)}")
    return response


def display_image_from_response(response: requests.Response) -> Path:
    """Save the picture in a response to `images_with_boxes`, display it, and return where it was saved.

    Raises `ServerError` if the response holds no picture.
    """
    if not response.ok:
        raise ServerError(f"{response.status_code}: {_detail(response)}")
    picture = images.decode(response.content)
    name = response.headers.get("X-Prediction-Id", "")
    target = paths.IMAGES_WITH_BOXES / f"{name if name.isalnum() else 'answer'}.jpg"  # no server names a path here
    with paths.whole(target) as partial:
        partial.write_bytes(response.content)
    images.show(picture, alt="the picture that the server sent back")
    return target


def _detail(response: requests.Response) -> str:
    """The server's own words, or the start of whatever it sent instead."""
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return response.text[:200]


def _busy_for(response: requests.Response) -> float:
    """After how many seconds a server that is busy asks to be asked again; for ever, if that is not what it says."""
    asked = response.headers.get("Retry-After", "")
    return int(asked) if response.status_code == 503 and asked.isdecimal() else math.inf
