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
from starlette.datastructures import Headers
from typer.testing import CliRunner

from labsupport import cli, paths
from labsupport.access.kept_uploads import Uploads
from labsupport.log import PredictionLog
from labsupport.protection import security
from labsupport.protection.security import TokenMissing
from labsupport.serving import create_app, serve

TOKEN = "0123456789abcdef0123"
READER = "fedcba9876543210"
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


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1"])
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
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"authorization", b"Bearer x")]}
    asyncio.run(guard(scope, None, None))
    assert compared == [(b"x", TOKEN.encode()), "let in"]


def test_no_other_site_may_call_it_from_a_browser(server):
    preflight = requests.options(
        server.url + "/predict",
        headers={"Origin": "http://elsewhere.example", "Access-Control-Request-Method": "POST"},
        timeout=5,
    )
    answer = post(server, headers={"Origin": "http://elsewhere.example"})
    read = requests.get(server.url, headers={"Origin": "http://elsewhere.example"}, timeout=5)
    assert (preflight.status_code, answer.status_code, read.status_code) == (403, 403, 200)
    for response in (preflight, answer, read):
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


# tokens


@pytest.mark.parametrize("given", ["bearer {}", "BEARER {}", "Bearer  {}", "Bearer {}  "])
def test_the_scheme_has_no_case_and_spaces_around_the_token_do_not_count(given):
    assert security.carries(Headers({"authorization": given.format(TOKEN)}), TOKEN)


@pytest.mark.parametrize(
    "given", ["{}", "Basic {}", "Bearer", "Bearer{}", "Bearer x {}", "Bearer {}x", "Bearer\t{}", ""]
)
def test_whatever_is_not_the_token_is_not_taken_for_it(given):
    headers = Headers({"authorization": given.format(TOKEN)})
    assert not security.carries(headers, TOKEN)
    assert not security.carries(headers, None)


VARIABLES = ("LAB_TOKEN", "LAB_READ_TOKEN")
UNFIT = {
    "short": "has 5 characters: take at least 16",
    "geheimnis-für-alle-hier": "may hold ASCII letters",
    "a secret with some spaces": "may hold ASCII letters",
    "0123456789abcdef\n0123": "may hold ASCII letters",
    "0123456789abcdef\x07": "may hold ASCII letters",
    '0123456789";drop': "may hold ASCII letters",
    "=0123456789abcdef": "may hold ASCII letters",
    "0123456789abcdef\udcff": "may hold ASCII letters",
}


@pytest.fixture
def unset(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(f"{name}_FILE", raising=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("value", UNFIT)
def test_a_token_that_could_never_match_is_refused_at_the_start_and_not_shown(host, name, value, unset, monkeypatch):
    monkeypatch.setenv("LAB_TOKEN", TOKEN)
    monkeypatch.setenv(name, value)
    with pytest.raises(TokenMissing) as error:
        serve(FastAPI(), host=host, port=0)
    assert str(error.value).startswith(f"{name} {UNFIT[value]}")
    assert value not in str(error.value) and "openssl rand" in str(error.value)


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("value", [f"{TOKEN}\n", f" {TOKEN}\r\n", f"{TOKEN}\t"])
def test_spaces_and_line_ends_around_a_token_do_not_count_in_a_variable_or_a_file(
    name, value, unset, monkeypatch, tmp_path
):
    ask = {"LAB_TOKEN": security.token, "LAB_READ_TOKEN": security.read_token}[name]
    monkeypatch.setenv(name, value)
    assert ask() == TOKEN
    monkeypatch.setenv(name, " ")  # as good as unset
    assert ask() is None
    (tmp_path / "token").write_text(value)
    monkeypatch.setenv(f"{name}_FILE", str(tmp_path / "token"))
    assert ask() == TOKEN
    monkeypatch.setenv(name, TOKEN)
    with pytest.raises(TokenMissing, match=f"{name} and {name}_FILE are both set"):
        ask()


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "which cannot be read: No such file"),
        (b"", "which is empty"),
        (b"short", "has 5 characters"),
        (b"\xff" * 20, "which cannot be read: it is not UTF-8"),
    ],
)
def test_a_file_without_a_fit_token_is_refused_at_the_start(name, content, message, unset, monkeypatch, tmp_path):
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    monkeypatch.setenv(f"{name}_FILE", str(tmp_path / "token"))
    with pytest.raises(TokenMissing, match=message):
        security.required_token("127.0.0.1")


@pytest.mark.parametrize("name", VARIABLES)
def test_a_token_in_the_place_of_its_file_is_not_shown(name, unset, monkeypatch):
    monkeypatch.setenv(f"{name}_FILE", TOKEN)
    with pytest.raises(TokenMissing, match="is no path, which cannot be read") as raised:
        security.required_token("127.0.0.1")
    assert TOKEN not in str(raised.value)


def test_the_command_says_in_one_line_what_is_wrong_with_a_token_on_loopback_too(unset, monkeypatch):
    monkeypatch.setenv("LAB_TOKEN", "short")
    result = CliRunner().invoke(cli.app, ["serve", "--port", "0"])
    assert result.exit_code == 1
    assert result.stderr.startswith("labsupport: LAB_TOKEN has 5 characters") and result.stderr.count("\n") == 1


def test_a_readers_token_reads_and_does_no_more(detector, unset, monkeypatch):
    monkeypatch.setenv("LAB_TOKEN", TOKEN)
    monkeypatch.setenv("LAB_READ_TOKEN", READER)
    with serve(create_app(detector), host="0.0.0.0", port=0) as server:
        server.url = f"http://127.0.0.1:{server.port}"
        headers = {"Authorization": f"Bearer {READER}"}
        for path in ("/metrics", "/dashboard", "/models", "/rollout", "/ready"):
            assert requests.get(server.url + path, headers=headers, timeout=30).ok
        for path in ("/predict", "/detect", "/count-cars", "/nonsense"):
            assert post(server, path=path, headers=headers).status_code == 401
        for method, path in (("PUT", "/rollout"), ("POST", "/records"), ("POST", "/feedback"), ("DELETE", "/models")):
            assert requests.request(method, server.url + path, headers=headers, timeout=30).status_code == 401


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_a_readers_token_shows_nobodys_predictions(detector, unset, monkeypatch, tmp_path, host):
    monkeypatch.setenv("LAB_TOKEN", TOKEN)
    monkeypatch.setenv("LAB_READ_TOKEN", READER)
    monkeypatch.setattr(paths, "IMAGES_UPLOADED", tmp_path)
    with PredictionLog(tmp_path / "log.db") as log:
        app = create_app(detector, log=log, keep_uploads=True)
        with serve(app, host=host, port=0) as server:
            url, ours = f"http://127.0.0.1:{server.port}", {"Authorization": f"Bearer {TOKEN}"}
            id = requests.post(f"{url}/predict", files={"file": CLOCK}, headers=ours, timeout=30).headers[
                "X-Prediction-Id"
            ]
            for path in (f"/predictions/{id}", f"/predictions/{id}/picture"):
                assert requests.get(url + path, headers=ours, timeout=30).status_code == 200
                theirs = {"Authorization": f"Bearer {READER}"}
                assert requests.get(url + path, headers=theirs, timeout=30).status_code == 404
                if host == "0.0.0.0":  # its guard knows the tokens of its start
                    monkeypatch.setenv("LAB_READ_TOKEN", "another-token-of-readers")
                    assert requests.get(url + path, headers=theirs, timeout=30).status_code == 404
                    monkeypatch.setenv("LAB_READ_TOKEN", READER)


def test_a_readers_token_that_may_do_everything_is_refused(unset, monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, TOKEN)
    with pytest.raises(TokenMissing, match="LAB_READ_TOKEN is the same as LAB_TOKEN"):
        security.required_token("0.0.0.0")


def test_wrong_tokens_are_counted_and_logged_and_wait_while_the_right_one_passes(monkeypatch, caplog):
    monkeypatch.setattr(security, "WAIT", 30)
    counted, wrong = [], security.WrongTokens(lambda reason: counted.append(reason))

    async def app(scope, receive, send):
        answers.append(200)

    async def send(message):
        answers.append(message.get("status"))

    guard, answers = security.TokenGuard(app, TOKEN), []
    guard.wrong_tokens = wrong
    scope = {"type": "http", "method": "GET", "path": "/", "client": ("192.0.2.7", 5), "headers": []}

    def given(token: str):
        return guard({**scope, "headers": [(b"authorization", f"Bearer {token}".encode())]}, None, send)

    async def several():
        for _ in range(security.FREE):
            await given("x" * 20)
        waiting = [asyncio.ensure_future(given("y" * 20)) for _ in range(200)]
        for _ in range(5):
            await asyncio.sleep(0)
        await asyncio.wait_for(given(TOKEN), 10)
        await asyncio.wait_for(guard(scope, None, send), 10)  # none at all: a browser, which is told at once
        assert sum(task.done() for task in waiting) == 200 - security.WAITING
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert wrong.waiting == 0

    asyncio.run(several())
    assert counted.count("wrong") == security.FREE + 200 and counted.count("missing") == 1
    assert answers.count(200) == 1 and answers.count(401) == security.FREE + 200 - security.WAITING + 1
    assert [record.args[:2] for record in caplog.records] == [("192.0.2.7", 1), ("192.0.2.7", 10), ("192.0.2.7", 100)]
    assert "xxx" not in caplog.text and "yyy" not in caplog.text


def test_a_great_many_addresses_are_not_all_remembered():
    wrong = security.WrongTokens()
    for number in range(3 * security.ADDRESSES):
        wrong._number(f"2001:db8::{number:x}")
    assert len(wrong._seen) == security.ADDRESSES


def test_prometheus_is_told_of_wrong_tokens_wherever_they_are_refused(detector, monkeypatch):
    monkeypatch.setenv("LAB_TOKEN", TOKEN)
    with serve(create_app(detector), host="0.0.0.0", port=0) as server:
        url = f"http://127.0.0.1:{server.port}"
        for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Bearer y"}):
            assert requests.get(f"{url}/metrics", headers=headers, timeout=30).status_code == 401
        counted = requests.get(f"{url}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30).text
    assert 'tokens_refused_total{reason="wrong"} 2.0' in counted
    assert 'tokens_refused_total{reason="missing"} 1.0' in counted


# other sites


LOCAL = ["127.0.0.1", "127.0.0.1:8000", "localhost", "LocalHost:99", "[::1]", "[::1]:8000", "127.8.9.1:1"]
FOREIGN = [
    "evil.example",
    "evil.example:8000",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "192.0.2.1",
    "[::2]",
]
FOREIGN += ["", "evil.example#127.0.0.1", "0.0.0.0", "127.0.0.1@evil.example", "[", "2130706433"]


def guarded_by_site(method: str, headers: dict[str, str], local: bool = True) -> int:
    """The status of a request to an app behind the guard; the app answers 200."""
    statuses = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    async def send(message):
        if message["type"] == "http.response.start":
            assert set(PROTECTION) <= set(Headers(raw=message["headers"]))
            statuses.append(message["status"])

    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(security.SiteGuard(app, local)({"type": "http", "method": method, "headers": raw}, None, send))
    return statuses[0]


PROTECTION = ("content-security-policy", "x-frame-options", "x-content-type-options", "referrer-policy")


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS"])
def test_on_loopback_only_this_machines_own_names_are_answered(method, unset, monkeypatch):
    assert {guarded_by_site(method, {"Host": host}) for host in LOCAL} == {200}
    assert {guarded_by_site(method, {"Host": host}) for host in FOREIGN} == {421}
    assert guarded_by_site(method, {}) == 421
    assert {guarded_by_site(method, {"Host": host}, local=False) for host in FOREIGN} == {200}
    monkeypatch.setenv("LAB_TOKEN", TOKEN)  # a notebook in a cloud, reached by its own name
    assert guarded_by_site(method, {"Host": "lab.example", "Authorization": f"Bearer {TOKEN}"}) == 200
    assert guarded_by_site(method, {"Host": "lab.example", "Authorization": "Bearer x"}) == 421


OWN = {"Host": "localhost:8000"}
LINK = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("POST", {"Sec-Fetch-Site": "cross-site"}, 403),
        ("POST", {"Sec-Fetch-Site": "cross-site", **LINK}, 403),  # a form
        ("POST", {"Sec-Fetch-Site": "same-site"}, 403),  # another program of this machine
        ("POST", {"Sec-Fetch-Site": "news-of-tomorrow"}, 403),
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, 403),
        ("GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403),
        ("GET", {"Sec-Fetch-Site": "cross-site", **LINK}, 200),
        ("GET", {"Sec-Fetch-Site": "none", **LINK}, 200),
        ("POST", {"Sec-Fetch-Site": "same-origin", "Origin": "https://a-proxy.example"}, 200),
        ("POST", {"Origin": "http://localhost:8000"}, 200),
        ("POST", {"Origin": "http://localhost:3000"}, 403),
        ("PUT", {"Origin": "null"}, 403),
        ("DELETE", {"Origin": ""}, 403),
        ("GET", {"Origin": "http://evil.example"}, 200),  # it may ask; no header lets it read the answer
        ("POST", {}, 200),  # a program
    ],
)
@pytest.mark.parametrize("local", [True, False])
def test_pages_of_other_sites_can_make_a_browser_send_nothing_but_a_followed_link(method, headers, status, local):
    assert guarded_by_site(method, OWN | headers, local) == status


def test_a_foreign_name_and_a_foreign_form_are_refused_by_the_running_server_and_a_proxy_in_front_is_not(detector):
    with serve(create_app(detector), port=0) as server:
        assert requests.get(server.url, headers={"Host": "evil.example"}, timeout=30).status_code == 421
        assert post(server, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
        assert requests.get(server.url.replace("127.0.0.1", "localhost"), timeout=30).ok
    with serve(create_app(detector, root_path="/serve"), port=0) as server:
        assert requests.get(server.url, headers={"Host": "hub.example"}, timeout=30).ok
        assert post(server, headers={"Host": "hub.example", "Sec-Fetch-Site": "cross-site"}).status_code == 403


def test_no_answer_can_be_shown_in_a_frame_or_says_what_answers(server):
    asked = [("GET", path) for path in ("/", "/docs", "/dashboard", "/browser", "/openapi.json", "/health", "/nowhere")]
    asked += [("POST", "/predict"), ("DELETE", "/models"), ("PUT", "/rollout"), ("POST", "/feedback"), ("GET", "/\x7f")]
    for method, path in asked:
        answer = requests.request(method, server.url + path, timeout=30)
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "server" not in answer.headers
    assert "script-src" in requests.get(server.url + "/dashboard", timeout=30).headers["content-security-policy"]


def test_what_cannot_be_read_as_a_request_is_answered_the_same_way(server):
    with socket.create_connection((server.host, server.port), timeout=10) as connection:
        connection.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        answer = connection.makefile("rb").read().decode().lower()
    assert answer.startswith("http/1.1 400") and '"detail"' in answer
    assert all(name in answer for name in PROTECTION) and "\nserver:" not in answer


# what is kept and said


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


NAMED = "0123456789ab40008000{:012}.jpg"  # as the server names them: version 4, variant 10


def test_what_is_kept_is_capped_in_number_and_in_age(tmp_path):
    uploads = Uploads(tmp_path, most=3)
    for number in range(5):
        uploads.keep(NAMED.format(number), b"a picture")
    assert sorted(path.name[31:] for path in tmp_path.iterdir()) == ["2.jpg", "3.jpg", "4.jpg"]
    again = Uploads(tmp_path, most=3)  # a new start counts what is there
    again.keep(NAMED.format(5), b"a picture")
    assert sorted(path.name[31:] for path in tmp_path.iterdir()) == ["3.jpg", "4.jpg", "5.jpg"]
    Uploads(tmp_path, oldest=-1).keep(NAMED.format(6), b"a picture")
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
