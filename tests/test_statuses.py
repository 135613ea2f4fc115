"""What clients are told when something fails: the status, what to do, and nothing about the machine behind it."""

import contextlib
import errno
import os
import re
import socket
import sqlite3
import uuid

import pytest
import requests

from labsupport import models
from labsupport.access.kept_uploads import Uploads
from labsupport.log import PredictionLog, tables
from labsupport.rollout import Router
from labsupport.serving import create_app, errors, serve
from labsupport.serving.strict_routes import StrictRoute
from test_strict import PICTURE, UPLOADS, Blind

TOKEN = "0123456789abcdef0123"
DECIDED = {"time": 1.75e9, "station": "s", "product": "p", "verdict": "accept", "decided_by": "server", "latency": 1}
WORDS = "sqlite sqlalchemy psycopg pydantic starlette python_multipart simplejpeg pillow opencv numpy errno traceback"
SECRETS = [*WORDS.split(), "site-packages", "python", ".py", ".db", "/home", "/tmp", "/root", "/usr", "/etc", "/work"]
SECRETS += [socket.gethostname().lower(), "127.0.0.1", "localhost"]
CLIENTS_OWN = {  # exceptions whose message is written for clients: it names no file, no address and no library
    "UnsupportedImage", "ImageTooLarge", "UnknownFile", "UnknownVersion", "WrongMoment", "WrongRamp", "RecordClash",
    "NotInstalled", "Overloaded",
}  # fmt: skip


def test_each_exception_either_speaks_to_clients_or_has_a_text_for_them():
    for kind in errors.STATUSES:
        error = kind("sqlite:////home/ann/predictions.db")
        assert (errors.text(error) == "sqlite:////home/ann/predictions.db") == (kind.__name__ in CLIENTS_OWN), kind
        assert errors.text(error) != errors.FAILED
    assert errors.text(sqlite3.OperationalError("/home/ann")) == errors.FAILED


def test_a_subclass_of_a_listed_exception_has_its_parents_text():
    class Theirs(models.ModelUnavailable):
        pass

    assert "/srv" not in errors.text(Theirs("/srv/models"))


class Broken(Blind):
    """A model that fails with all that must not be told."""

    def detect(self, image, confidence=0.5):
        raise RuntimeError("/usr/lib/libinference.so: sqlite said no")


class Gone(Blind):
    def detect(self, image, confidence=0.5):
        raise models.ModelUnavailable("yolov3 could not be stored in /home/ann/.cvlib: No space left")


def raising(error):
    def fail(*args, **options):
        raise error

    return fail


@contextlib.contextmanager
def locked(file):
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


@contextlib.contextmanager
def damaged(file):
    for path in file.parent.glob(f"{file.name}*"):
        path.write_bytes(b"nonsense" * 1_000)
    yield


@contextlib.contextmanager
def removed(file):
    for path in file.parent.glob(f"{file.name}*"):
        path.unlink()
    file.mkdir()  # SQLite would make the file again
    yield


@contextlib.contextmanager
def nothing(file):
    yield


def asks(id: str):
    """Method, path and body of a right request to every route, and of some that ask for what there is not."""
    bodies = {
        "/feedback": {"json": {"prediction_id": id, "correct": True}},
        "/records": {"json": [{**DECIDED, "id": uuid.uuid4().hex}]},
        "/rollout": {"json": {"action": "canary", "candidate": "yolov3-tiny/openvino-f99"}},
        **{path: {"files": {"file": PICTURE}} for path in UPLOADS},
    }
    for route in create_app({}).routes:
        for method in route.methods if isinstance(route, StrictRoute) else ():
            path = route.path.replace("{name:path}", "model/yolov3-tiny.cfg")
            yield method, path, {} if method in ("GET", "HEAD") else bodies[path]
    yield "POST", "/feedback", {"json": {"prediction_id": "no such", "correct": True}}
    yield "POST", "/detect?model=yolov3", bodies["/detect"]
    yield "POST", "/detect", {"files": {"file": PICTURE[:500]}}
    yield "POST", "/detect", {"files": {"file": b"GIF89a"}}
    yield "POST", "/detect", {"data": b"nonsense", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}
    yield "PUT", "/rollout", {"json": {"action": "ramp", "candidate": "blind/none-f32", "steps": [3, 2]}}
    yield "PUT", "/rollout", {"json": {"action": "rollback"}}
    yield "GET", "/browser/../../etc/passwd", {}
    yield "GET", "/nowhere", {}
    yield "DELETE", "/health", {}


def told(answer: requests.Response) -> list[str]:
    """What an answer says that it should not."""
    headers = "\n".join(f"{name}: {value}" for name, value in answer.headers.items() if name.lower() != "server")
    said = f"{headers}\n{answer.text if answer.headers.get('content-type') != 'image/jpeg' else ''}".lower()
    if answer.ok and not answer.headers.get("content-type", "").startswith("application/json"):
        said = headers.lower()  # a page, the metrics
    said = re.sub(r"location: http://127\.0\.0\.1", "", said)  # what the client itself called the server
    said = re.sub(r"yolov3-tiny/[a-z]+-[a-z0-9]+", "", said)  # the names of versions, which name their runtimes
    return [secret for secret in SECRETS if secret in said]


@pytest.mark.parametrize(
    "ground, model", [(locked, Blind), (damaged, Blind), (removed, Blind), (nothing, Broken), (nothing, Gone)]
)
def test_no_answer_of_any_route_names_a_path_a_library_or_a_host(ground, model, tmp_path, monkeypatch, caplog):
    for name, value in {"LAB_ROOT": str(tmp_path), "LAB_TOKEN": TOKEN}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tables, "BUSY", 0.05)
    monkeypatch.setattr(PredictionLog.flush, "__defaults__", (0.1,))
    if model is Gone:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setattr(Uploads, "_write", raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/home/x")))
    file, journal = tmp_path / "predictions.db", tmp_path / "rollout.db"
    log = PredictionLog(f"sqlite:///{file}")
    load = raising(models.ModelUnavailable("no weights in /home/ann"))
    app = create_app(Router(model(), journal=journal, load=load), keep_uploads=True, log=log)
    seen = set()
    with log, serve(app, port=0) as server, ground(file), ground(journal):
        for method, path, options in asks(uuid.uuid4().hex):
            headers = {"Authorization": f"Bearer {TOKEN}", **options.pop("headers", {})}
            answer = requests.request(method, server.url + path, headers=headers, timeout=60, **options)
            assert not told(answer), f"{method} {path}: {answer.status_code} {answer.text[:300]}"
            assert answer.ok or method == "HEAD" or answer.json()["detail"]
            seen.add(answer.status_code)
    assert {404, 405, 422} <= seen and {500, 503} & seen
    if ground is not nothing:
        assert str(file) in caplog.text  # whoever runs the server is told
