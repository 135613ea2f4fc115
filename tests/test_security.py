"""What SECURITY.md promises, one test for each promise that no other file holds."""

import asyncio
import contextlib
import io
import socket
import subprocess
import sys

import pytest
import requests
from fastapi import FastAPI
from PIL import Image

from labsupport import paths, security
from labsupport.security import TokenMissing
from labsupport.serving import create_app, serve
from labsupport.uploads import Uploads

TOKEN = "0123456789abcdef0123"
CLOCK, STREET = ((paths.IMAGES / name).read_bytes() for name in ("clock.png", "street_1.jpg"))


def post(server, content=None, path="/predict", **options):
    return requests.post(server.url + path, files={"file": content or CLOCK}, timeout=30, **options)


def exif_picture() -> bytes:
    """A JPEG that says where it was taken, and whose."""
    exif = Image.Exif()
    exif[0x013B] = "a photographer"
    exif.get_ifd(0x8825)[1] = "N"
    out = io.BytesIO()
    Image.open(io.BytesIO(STREET)).save(out, "JPEG", exif=exif)
    return out.getvalue()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "lab.example"])
def test_beyond_loopback_without_a_token_it_refuses_to_start_and_says_why(host, monkeypatch):
    monkeypatch.delenv("LAB_TOKEN", raising=False)
    with pytest.raises(TokenMissing, match="set LAB_TOKEN"):
        serve(FastAPI(), host=host, port=0)


def test_the_command_refuses_too(monkeypatch):
    monkeypatch.delenv("LAB_TOKEN", raising=False)
    command = [sys.executable, "-m", "labsupport", "serve", "--host", "0.0.0.0", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "set LAB_TOKEN" in done.stderr and "Traceback" not in done.stderr


def test_a_token_that_can_be_guessed_is_refused(monkeypatch):
    monkeypatch.setenv("LAB_TOKEN", "secret")
    with pytest.raises(TokenMissing, match="at least 16"):
        serve(FastAPI(), host="0.0.0.0", port=0)


def test_beyond_loopback_everything_but_health_needs_the_token(detector, monkeypatch):
    monkeypatch.setenv("LAB_TOKEN", TOKEN)
    with serve(create_app(detector), host="0.0.0.0", port=0) as server:
        server.url = f"http://127.0.0.1:{server.port}"
        assert requests.get(server.url + "/health", timeout=30).ok
        for path in ("/", "/ready", "/models", "/docs", "/openapi.json", "/nowhere", "/nowhere/health", "/health/"):
            answer = requests.get(server.url + path, timeout=30)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        for given in ("", "Bearer", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", TOKEN, f"Basic {TOKEN}", "Bearer \xe9"):
            assert post(server, headers={"Authorization": given.encode("latin-1")}).status_code == 401
        assert post(server, headers={"Authorization": f"Bearer {TOKEN}"}).ok
        assert TOKEN not in post(server).text


def test_the_token_is_asked_for_before_the_body(detector, monkeypatch):
    monkeypatch.setenv("LAB_TOKEN", TOKEN)
    with (
        serve(create_app(detector), host="0.0.0.0", port=0) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection,
    ):
        headers = ["POST /predict HTTP/1.1", "Host: 127.0.0.1", "Content-Length: 1000000", "", ""]
        connection.sendall("\r\n".join(headers).encode())
        assert connection.recv(10_000).startswith(b"HTTP/1.1 401")


def test_tokens_are_compared_in_constant_time(monkeypatch):
    compared = []
    monkeypatch.setattr(security.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or True)

    async def app(scope, receive, send):
        compared.append("let in")

    guard = security.TokenGuard(app, TOKEN)
    scope = {"type": "http", "path": "/", "headers": [(b"authorization", b"Bearer x")]}
    asyncio.run(guard(scope, None, None))
    assert compared == [(b"x", TOKEN.encode()), "let in"]


def test_no_other_site_may_call_it_from_a_browser(server):
    preflight = requests.options(
        server.url + "/predict",
        headers={"Origin": "http://elsewhere.example", "Access-Control-Request-Method": "POST"},
        timeout=5,
    )
    answer = post(server, headers={"Origin": "http://elsewhere.example"})
    assert preflight.status_code == answer.status_code == 403
    for response in (preflight, answer):
        assert not [name for name in response.headers if name.lower().startswith("access-control")]


def test_an_answer_to_a_failure_names_no_path_and_no_library(caplog):
    class Broken:
        version = "broken"

        def detect(self, image, confidence):
            raise RuntimeError("/secret/path/libinference.so said no")

    with serve(create_app(Broken()), port=0) as server:
        answer = post(server)
    assert (answer.status_code, answer.json()) == (
        500,
        {"detail": "the server failed, and its log says how: send it again"},
    )
    assert "libinference.so" in caplog.text  # whoever runs the server is told


def test_where_a_picture_was_taken_stays_with_who_took_it(detector, monkeypatch, tmp_path):
    monkeypatch.setenv("LAB_ROOT", str(tmp_path))
    assert b"a photographer" in exif_picture()
    with serve(create_app(detector, keep_uploads=True), port=0) as server:
        answer = post(server, exif_picture())
    kept = (tmp_path / "images_uploaded" / f"{answer.headers['x-prediction-id']}.jpg").read_bytes()
    for picture in (answer.content, kept):
        assert b"a photographer" not in picture and b"Exif" not in picture
        assert not Image.open(io.BytesIO(picture)).getexif()


def test_uploads_are_kept_only_if_asked_for(detector, monkeypatch, tmp_path):
    monkeypatch.setenv("LAB_ROOT", str(tmp_path))
    with serve(create_app(detector), port=0) as server:
        assert post(server).ok
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_is_kept_is_capped_in_number_and_in_age(tmp_path):
    names = [f"{number}0000000-0000-4000-8000-000000000000.jpg".replace("-", "") for number in range(7)]
    picture = b"a picture"
    uploads = Uploads(tmp_path, most=3)
    for number in range(5):
        uploads.keep(names[number], picture)
    assert sorted(path.name for path in tmp_path.iterdir()) == names[2:5]
    again = Uploads(tmp_path, most=3)  # a new start counts what is there
    again.keep(names[5], picture)
    assert sorted(path.name for path in tmp_path.iterdir()) == names[3:6]
    Uploads(tmp_path, oldest=-1).keep(names[6], picture)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("headers", [{"X-Client-Key": "k" * 201}, {"X-Filler": "x" * 1_000_000}])
def test_headers_have_limits(server, headers):
    with contextlib.suppress(requests.RequestException):  # hung up on while it was still sending
        assert post(server, headers=headers).status_code in (400, 422, 431)
    assert requests.get(server.url + "/health", timeout=30).ok


def test_a_form_of_a_thousand_fields_is_refused(server):
    fields = {f"field{number}": "x" for number in range(1000)}
    answer = requests.post(server.url + "/predict", data=fields, files={"file": b"x"}, timeout=5)
    assert answer.status_code == 400
