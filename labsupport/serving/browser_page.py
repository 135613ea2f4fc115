"""Serves the page and its files. File names carry a checksum, so browsers may cache them for ever.

The page runs the detector in the browser with TensorFlow.js, on the weights that are installed here. It sends no
picture to the server. The address of each file, except the page itself, contains the checksum of the file. So a new
version of the page never loads an old script. `make browser` downloads TensorFlow.js, which is not part of this
project.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from labsupport import images, models, paths

MODEL = "yolov3-tiny"
FOLDER = Path(__file__).parent / "static" / "browser"
OURS = ("style.css", "detector.js", "page.js", "icon.svg", "manifest.webmanifest")
WASM = ("tfjs-backend-wasm.wasm", "tfjs-backend-wasm-simd.wasm", "tfjs-backend-wasm-threaded-simd.wasm")
SCRIPTS = ("tf-core.es2017.min.js", "tf-backend-wasm.es2017.min.js", "tf-backend-webgl.es2017.min.js")
TENSORFLOW = tuple(f"tfjs/{name}" for name in (*SCRIPTS, *WASM))
PICTURES = ("street_1.jpg", "person_dog.jpg", "grace_hopper.jpg", "fruits.jpg", "two_clocks.png", "stop_sign.png")
DIGITS = 16  # of a checksum that stand in an address
TYPES = {
    ".css": "text/css",
    ".cfg": "text/plain",
    ".jpg": "image/jpeg",
    ".js": "text/javascript",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
    ".weights": "application/octet-stream",
}
PAGE_HEADERS = {
    # blob: is where TensorFlow.js keeps the program of its threads; memory that threads share needs the last two
    "Content-Security-Policy": "default-src 'none'; script-src 'self' blob: 'wasm-unsafe-eval'; worker-src 'self' blob:; "
    "connect-src 'self'; img-src 'self'; style-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
}
FILE_HEADERS = {"X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin"}
WORKER_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'",
    "Service-Worker-Allowed": "../browser",  # the page, which lies one level above the worker; right under any prefix
}


class UnknownFile(LookupError):
    """Raised if the page has no file of that name, or not in that version."""


class File(NamedTuple):
    """One file of the page: its content (bytes, or the path of a large file), its media type and its HTTP headers."""

    content: bytes | Path
    media_type: str
    headers: dict[str, str]


def missing() -> list[str]:
    """Return the names of the TensorFlow.js files that are missing; an empty list after `make browser`."""
    return [name for name in TENSORFLOW if not (FOLDER / name).is_file()]


def page() -> str:
    """Return the HTML of the page. Without TensorFlow.js the page shows the command that downloads it.

    >>> "make browser" in page() or "detector.js?v=" in page()
    True
    """
    text = (FOLDER / ("missing.html" if missing() else "index.html")).read_text(encoding="utf-8")
    text = re.sub(r'(?<=")browser/([^"?]+)', lambda found: f"browser/{_address(found[1])}", text)
    return text.replace("{{lab}}", "" if missing() else json.dumps(_settings()))


def file(name: str, version: str | None = None) -> File:
    """Return a file of the page. `name` is its path below `browser/`, and `version` is the beginning of its checksum.

    Raises `UnknownFile`, and for the model's files `models.ModelUnavailable`.

    >>> file("style.css").media_type
    'text/css'
    >>> file("../../browser.py")
    Traceback (most recent call last):
    labsupport.serving.browser_page.UnknownFile: no such file here: load the page again
    """
    if name == "worker.js":
        return File(_worker(), TYPES[".js"], {**FILE_HEADERS, **WORKER_HEADERS, "Cache-Control": "no-cache"})
    checksum = _checksum(name)
    if version not in (None, checksum[:DIGITS]):
        raise UnknownFile("no such file here: load the page again")
    keep = "private, max-age=31536000, immutable" if version else "no-cache"
    headers = {**FILE_HEADERS, "Cache-Control": keep, "ETag": f'"{checksum}"'}
    return File(_content(name), TYPES[Path(name).suffix], headers)


def _model_files() -> dict[str, models.ModelFile]:
    model = models.MODELS[MODEL]
    return {f"model/{file.name}": file for file in (model.cfg, model.weights)}


def _pictures() -> list[str]:
    """Return the names of this project's example pictures. Other files in the folder are ignored."""
    return [name for name in PICTURES if (paths.IMAGES / name).is_file()]


def _content(name: str) -> bytes | Path:
    if name in _model_files():
        files = models.locate(MODEL)  # checks them, each time
        return files.cfg if name.endswith(".cfg") else files.weights
    return _read(name)


def _read(name: str) -> bytes:
    """Return a file that does not belong to the model. Raises `UnknownFile`."""
    folder, _, picture = name.partition("/")
    if folder == "images" and picture in _pictures():
        return (paths.IMAGES / picture).read_bytes()
    if name in OURS or (name in TENSORFLOW and (FOLDER / name).is_file()):
        return (FOLDER / name).read_bytes()
    raise UnknownFile("no such file here: load the page again")


def _checksum(name: str) -> str:
    if name in (files := _model_files()):
        return files[name].sha256
    return hashlib.sha256(_read(name)).hexdigest()


def _address(name: str) -> str:
    """Return a file's address relative to `browser/`, so that it is right under any prefix."""
    return f"{name}?v={_checksum(name)[:DIGITS]}"


def _settings() -> dict[str, Any]:
    """Return the settings that the page's script reads."""
    kinds = zip(("cfg", "weights"), _model_files().items(), strict=True)
    return {
        "model": {
            kind: {"address": _address(name), "bytes": file.size, "sha256": file.sha256} for kind, (name, file) in kinds
        },
        "labels": models.LABELS,
        "most_pixels": images.MAX_PIXELS,
        "pictures": {name: _address(f"images/{name}") for name in _pictures()},
        "wasm": {name: _address(f"tfjs/{name}") for name in WASM},
    }


def _worker() -> bytes:
    """Return the service worker's script. Its first line names the files that it caches.

    The model's files are not among them, because the page keeps these itself.
    """
    names = [*OURS, *([] if missing() else TENSORFLOW), *(f"images/{name}" for name in _pictures())]
    version = hashlib.sha256(page().encode()).hexdigest()[:DIGITS]
    cached = {"version": version, "files": [_address(name) for name in names]}
    return f"const LAB = {json.dumps(cached)};\n".encode() + (FOLDER / "worker.js").read_bytes()
