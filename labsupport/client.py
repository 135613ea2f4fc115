"""Call the server: `detect` over HTTP, and the two helper functions of the client notebook."""

import io
import itertools
import math
import os
import random
import re
import ssl
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import numpy as np
import requests

from labsupport import arguments, images, loopback, paths
from labsupport.detection import NOT_OURS, Detection, read_answer

TIMEOUT = 60  # seconds
TRIES = 4
# of what GET /rollout answers: the parts that people are shown
STATUS: dict[str, Any] = {"phase": str, "action": str, "reason": str, "stable": str, "mode": str, "share": float | int}
STATUS |= {"candidate": str | None, "paused": bool, "loadable": list, "trouble": str}
EXPIRED, MISMATCH = 10, (62, 64)  # OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED, _HOSTNAME_MISMATCH and _IP_ADDRESS_MISMATCH
PATIENCE = 5  # seconds: a server that needs more time must first be repaired, for example by installing a model


class ServerError(RuntimeError):
    """The server refused or could not answer. The message comes from the server."""


class Client:
    """Use a server as a detector: `Client(url).detect(image)` returns the same as a `Detector` in this process.

    >>> Client("http://127.0.0.1:8000/").url
    'http://127.0.0.1:8000'
    """

    def __init__(
        self,
        url: str,
        model: str = "yolov3-tiny",
        *,
        verify: str | os.PathLike[str] | None = None,
        token: str | None = None,
    ) -> None:
        """Connect to the server at `url`.

        `verify` is the file of the authority (PEM) that signed the server's certificate, for an address with https. Without
        it, requests trusts those in `REQUESTS_CA_BUNDLE`, or the public ones. `token` is sent with every request. Raises
        ValueError if `url` is not an address of a server, and for an invalid model, file or token.
        """
        self.url, self.model = arguments.address("url", url), arguments.text("model", model, least=1)
        self.version: str | None = None
        self._verify, self._token = _checked_authority(verify), _checked_token(token)
        loopback.ask_directly()
        self._session = requests.Session()  # keeps its connection between calls

    def detect(self, image: np.ndarray, confidence: float = 0.5) -> list[Detection]:
        """Return the objects in a picture (uint8, (H, W, 3), BGR). It is sent as PNG, so that no pixel changes.

        Afterwards `version` is the model version that answered. If the server is busy (a 503 with a `Retry-After` of at
        most `PATIENCE` seconds), wait that time and up to a second more, and try again, `TRIES` times in all. Raises
        `ServerError` if it stays busy, refuses, is not the lab's server, or redirects. A redirect is not followed, so the
        picture is sent nowhere else. Raises the errors of requests if there is no response, and ValueError for an invalid
        picture or confidence.
        """
        confidence = arguments.number("confidence", confidence, 0, 1)
        response = self._post(
            "/detect",
            params={"model": self.model, "confidence": confidence},
            files={"file": ("picture.png", images.encode(image, "png"), "image/png")},
        )
        if response.status_code != 200:
            raise ServerError(f"{response.status_code}: {_detail(response)}")
        try:
            self.version, detections = read_answer(response.json())
        except NOT_OURS as error:
            raise ServerError(f"{self.url} is not the lab's server, it answered: {response.text[:200]}") from error
        return detections

    def rollout(self, change: dict[str, Any] | None = None, token: str | None = None) -> dict[str, Any]:
        """Return which version of the model answers, as `GET /rollout` says it. With a `change`, make it first.

        A change is the body of `PUT /rollout`, as {"action": "canary", "candidate": "yolov3-tiny/opencv-f32"}, and needs a
        token: that of this call, or that of the client. Raises `ServerError` if the server refuses, and the errors of
        requests if there is no response.
        """
        method, token = "GET" if change is None else "PUT", _checked_token(token)
        response = self._send(method, "/rollout", token or self._token, params={"model": self.model}, json=change)
        if response.status_code != 200:
            raise ServerError(f"{response.status_code}: {_detail(response)}")
        try:
            status = dict(response.json())
            datetime.fromtimestamp(status["time"], UTC)
            status["figures"].items()
            if all(isinstance(status[name], kind) for name, kind in STATUS.items()):
                return status
        except (*NOT_OURS, AttributeError, OverflowError, OSError):
            pass
        raise ServerError(f"{self.url} is not this version of the lab's server, it answered: {response.text[:200]}")

    def _post(self, path: str, **request: Any) -> requests.Response:
        """Send a request, with retries. `urllib3.util.Retry` may wait for a minute, and adds no jitter to `Retry-After`."""
        for _ in range(TRIES - 1):
            response = self._send("POST", path, self._token, **request)
            if (wait := _busy_for(response)) > PATIENCE:
                return response
            time.sleep(wait + random.random())  # spreads the retries of clients that were refused together
        return self._send("POST", path, self._token, **request)

    def _send(self, method: str, path: str, token: str | None, **request: Any) -> requests.Response:
        request["headers"] = {"Authorization": f"Bearer {token}"} if token else {}
        request["auth"] = lambda request: request  # else an entry in ~/.netrc would replace the token
        return _request(self._session, method, f"{self.url}{path}", self._verify, **request)


def find_server(port: int | None = None) -> str | None:
    """Return the address of the lab's server on this machine, or None. `port=None` means `LAB_PORT` or 8000.

    It finds servers without TLS only.
    Raises ValueError for an invalid port.
    """
    port = loopback.default_port() if port is None else loopback.checked_port(port)
    loopback.ask_directly()
    url = f"http://127.0.0.1:{port}"
    try:
        said = requests.get(url, timeout=2, allow_redirects=False).json()
        return url if said["docs"].endswith("/docs") and said["message"].startswith("The detector is up") else None
    except (requests.RequestException, *NOT_OURS, AttributeError):
        return None


def response_from_server(
    url: str, image_file: BinaryIO, verbose: bool = True, *, verify: str | os.PathLike[str] | None = None
) -> requests.Response:
    """Send an open picture file, from its beginning, to a prediction URL and return the response.

    Prints whether it succeeded. A redirect is returned and not followed. `verify` is the same as for `Client`.
    Raises ValueError for anything but a file that was opened for reading bytes, and for an empty file.

    >>> response_from_server("http://127.0.0.1:8000/predict", "images/clock.png")
    Traceback (most recent call last):
    ValueError: image_file='images/clock.png': give a file opened for reading bytes, as in open("picture.jpg", "rb")
    """
    content = _content(image_file)
    loopback.ask_directly()
    name = Path(str(getattr(image_file, "name", ""))).name or "picture"
    with requests.Session() as session:
        response = _request(
            session, "POST", _checked_url(url), _checked_authority(verify), files={"file": (name, content)}
        )
    if verbose and response.ok and not response.is_redirect:
        print(f"answered: {response.status_code}, {len(response.content):,} bytes")
    elif verbose:
        print(f"refused: {response.status_code}, {_detail(response)}")
    return response


def display_image_from_response(response: requests.Response) -> Path:
    """Save the picture in a response to `images_with_boxes`, display it, and return where it was saved.

    The file's name is the prediction's id, or `answer`, with a number if another picture has that name.
    Raises `ServerError` if the server refused, and the errors of `images.decode` if the response holds no picture.
    """
    if response.is_redirect or not response.ok:
        raise ServerError(f"{response.status_code}: {_detail(response)}")
    picture = images.decode(response.content)
    name = response.headers.get("X-Prediction-Id", "")
    # a server must not choose a path or another picture
    stem = name if re.fullmatch("[0-9a-f]{32}", name) else "answer"
    names = itertools.chain([f"{stem}.jpg"], (f"{stem}_{number}.jpg" for number in itertools.count(2)))
    target = next(place for place in map(paths.IMAGES_WITH_BOXES.joinpath, names) if _is_free(place, response.content))
    with paths.whole(target) as partial:
        partial.write_bytes(response.content)
    images.show(picture, alt="the picture that the server sent back")
    return target


def _is_free(place: Path, content: bytes) -> bool:
    """Return whether there is no file at this path, or a file with this content."""
    return not os.path.lexists(place) or (place.is_file() and place.read_bytes() == content)


def _detail(response: requests.Response) -> str:
    """Return the target of a redirect, or the detail of an error, or the start of the response."""
    if response.is_redirect:
        return f"the server points to {response.headers['Location']}: if you trust it, ask there"
    try:
        return str(response.json()["detail"])
    except NOT_OURS:
        return response.text[:200]


def _content(image_file: BinaryIO) -> bytes:
    """Return all bytes of an open file, from its beginning if it can go back. Raises ValueError that says what to give."""
    shown = f"image_file={arguments.shown(image_file)}"
    cure = 'give a file opened for reading bytes, as in open("picture.jpg", "rb")'
    if not hasattr(image_file, "read"):
        raise ValueError(f"{shown}: {cure}")
    if isinstance(image_file, io.TextIOBase):
        raise ValueError(f"{shown} is open as text: {cure}")
    try:
        if getattr(image_file, "seekable", lambda: False)():
            image_file.seek(0)
        content = image_file.read()
    except (OSError, ValueError) as error:  # opened for writing; closed
        raise ValueError(f"{shown}: {error}: {cure}") from error
    if not content:
        raise ValueError(f"{shown} is empty: give a file that holds a picture")
    return content


def _checked_url(url: str) -> str:
    """Return `url` if it is the address of a server, maybe with a query. Raises ValueError."""
    arguments.address("url", url.partition("?")[0] if isinstance(url, str) else url)
    return url


def _checked_authority(verify: str | os.PathLike[str] | None) -> str | None:
    """Return the path of a file with certificates of authorities, or None. Raises ValueError."""
    if verify is None:
        return None
    cure = "give the file of the authority that signed the server's certificate (PEM), such as 'ca.pem'"
    if not isinstance(verify, str | os.PathLike):  # False would mean: trust every server
        raise ValueError(f"verify={arguments.shown(verify)}: {cure}")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(verify)
    except (OSError, ValueError) as error:  # an ssl.SSLError if it holds no certificate
        reason = "it holds none" if isinstance(error, ssl.SSLError) else getattr(error, "strerror", None) or error
        raise ValueError(f"verify={os.fspath(verify)!r} ({reason}): {cure}") from None
    return os.fspath(verify)


def _checked_token(token: str | None) -> str | None:
    """Return a token that a header can carry, or None. Raises ValueError, which does not contain it."""
    if token is None or (isinstance(token, str) and re.fullmatch("[!-~]+", token)):
        return token
    raise ValueError("token: give the text that labsupport users or LAB_TOKEN gives, without spaces")


def _request(session: requests.Session, method: str, url: str, verify: str | None, **request: Any) -> requests.Response:
    """Send a request. Follow no redirect. Raises the errors of requests, that of TLS with a text that says what to do."""
    try:
        return session.request(method, url, verify=verify, timeout=TIMEOUT, allow_redirects=False, **request)
    except requests.exceptions.SSLError as error:
        raise requests.exceptions.SSLError(_tls_problem(url, error), request=error.request) from error


def _tls_problem(url: str, error: Exception) -> str:
    """Return the reason why there is no encrypted connection, and what to do, in one sentence."""
    cause: BaseException | None = error
    while cause and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    server = f"https://{urlsplit(url).netloc.rpartition('@')[2]}"  # without a password
    if not isinstance(cause, ssl.SSLCertVerificationError):
        reason = getattr(cause, "reason", None) or error
        return f"{server}: no encrypted connection ({reason}): if this server speaks HTTP without TLS, use http://"
    reason = cause.verify_message.strip(".")
    if cause.verify_code in MISMATCH:
        return f"{server}: {reason}: use an address that the certificate names"
    if cause.verify_code == EXPIRED:
        return f"{server}: {reason}: give the server a new one (labsupport certificate)"
    return (
        f"{server}: its certificate is not trusted ({reason}): give the file of the authority that signed it, with "
        "verify='ca.pem' in Python, with --cacert ca.pem on the command line, or in REQUESTS_CA_BUNDLE"
    )


def _busy_for(response: requests.Response) -> float:
    """Return the seconds in `Retry-After` of a busy server; infinity for any other response."""
    seconds = response.headers.get("Retry-After", "")
    return int(seconds) if response.status_code == 503 and seconds.isdecimal() and len(seconds) < 10 else math.inf
