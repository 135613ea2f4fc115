"""The server behind a real nginx, with the files of `deploy/nginx`: TLS, the prefix, limits, who asks, and a canary."""

import contextlib
import http.client
import io
import json
import logging
import os
import re
import shlex
import shutil
import socket
import ssl
import subprocess
import time

import pytest
import requests
import yaml
from compose_spec import PyCompose
from scipy import stats

import composed
from labsupport import paths
from labsupport.client import response_from_server
from labsupport.protection import security
from labsupport.protection.security import TokenGuard
from labsupport.serving import access_log, create_app, serve
from test_browser import chromium  # noqa: F401, the fixture
from test_lab import wait_until

LAB = paths.root()
NGINX = LAB / "deploy" / "nginx"
TOKEN = "0123456789abcdef0123456789abcdef"
SECRETS = ("lab_token", "lab_read_token", "grafana_password")
FRAME = """
daemon off;
pid nginx.pid;
events {}
http {
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    include lab.conf;
    include pool.conf;
}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    make_certificate(folder)
    return folder


def make_certificate(folder):
    """Make it as deploy/README.md says."""
    (said,) = re.findall(r"^    (openssl req .*)$", (LAB / "deploy/README.md").read_text(), re.MULTILINE)
    command = shlex.split(said.replace("$LAB_SECRETS/tls", str(folder)))
    subprocess.run(command, check=True, capture_output=True)


@contextlib.contextmanager
def proxy(folder, certificate, pool: str = "stable", **variables):
    """nginx with our templates filled in, as its image fills them; gives the port and what it logs."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if not program:
        missing = pytest.fail if "LAB_REQUIRE_BROWSER" in os.environ else pytest.skip
        missing("no nginx: apt-get install nginx-light")
    port = free_port()
    known = {"LAB_PORT": f"127.0.0.1:{port}", "LAB_TLS": certificate, "LAB_TOKEN": TOKEN, **variables}
    user = "user root;\n" if os.geteuid() == 0 else ""  # else it becomes nobody, who may not write in our folder
    (folder / "nginx.conf").write_text(user + FRAME)
    for name, made in (("lab", "lab"), (pool, "pool")):
        text = (NGINX / f"{name}.conf.template").read_text()
        (folder / f"{made}.conf").write_text(re.sub(r"\$\{(\w+)\}", lambda name: str(known[name[1]]), text))
    with (folder / "access.log").open("wb") as out:
        process = subprocess.Popen(
            [program, "-p", folder, "-c", "nginx.conf", "-e", "error.log"], stdout=out, stderr=out
        )
    try:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            assert process.poll() is None, (folder / "access.log").read_text() + (folder / "error.log").read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
        yield port
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def said():
    """What the server's console says: JSON, a line a request."""
    stream, root = io.StringIO(), logging.getLogger()
    before = root.handlers[:], access_log.logger.level
    access_log.show(stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:] = before[0]
    access_log.logger.setLevel(before[1])


@pytest.fixture(scope="module")
def behind(detector, certificate, said, tmp_path_factory):
    """The port of an nginx before a server that wants its token for everything, as beyond loopback."""
    folder = tmp_path_factory.mktemp("nginx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_TOKEN", TOKEN)  # what the server compares with
        patch.setenv("REQUESTS_CA_BUNDLE", str(certificate / "lab.crt"))
        app = TokenGuard(create_app(detector, root_path="/serve"), TOKEN)
        with serve(app, port=0) as server, proxy(folder, certificate, LAB_UPSTREAM=f"127.0.0.1:{server.port}") as port:
            yield port, lambda: [json.loads(line) for line in (folder / "access.log").read_text().splitlines()]


def test_the_labs_client_works(behind, server):
    port, _ = behind
    with (paths.IMAGES / "fruits.jpg").open("rb") as picture:
        answer = response_from_server(f"https://127.0.0.1:{port}/serve/predict?model=yolov3-tiny", picture)
        picture.seek(0)
        assert answer.content == response_from_server(f"{server.url}/predict?model=yolov3-tiny", picture).content


def test_the_docs_work_in_a_browser(behind, chromium):  # noqa: F811
    port, _ = behind
    complaints, asked = [], []
    context = chromium.new_context(ignore_https_errors=True)
    page = context.new_page()
    page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"https://127.0.0.1:{port}/")
    page.get_by_text("/count-cars").wait_for()
    page.locator("#operations-status-start__get button").first.click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    page.locator(".live-responses-table .response-col_status", has_text="200").wait_for()
    assert "/serve/docs#" in page.url
    assert all(url.startswith(f"https://127.0.0.1:{port}/") or url.startswith("data:") for url in asked)
    assert not complaints
    context.close()


def refused(port: int, size: int) -> tuple[int, dict]:
    """What is answered to the announcement of so many bytes, none of which is sent."""
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=ssl._create_unverified_context(), timeout=20)
    with contextlib.closing(connection):
        connection.putrequest("POST", "/serve/predict")
        connection.putheader("Content-Length", str(size))
        connection.putheader("Content-Type", "multipart/form-data; boundary=b")
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def test_two_hundred_megabytes_are_refused_before_they_are_sent_and_the_server_never_hears_of_them(behind, said):
    port, _ = behind
    before = len(said())
    status, answer = refused(port, 200_000_000)
    assert (status, answer) == (413, {"detail": "send a picture of at most 20,000,000 bytes"})
    assert len(said()) == before
    form = {"file": ("large.jpg", b"x" * 20_500_000)}
    over = requests.post(f"https://127.0.0.1:{port}/serve/predict", files=form, timeout=20)
    assert over.status_code == 413
    (line,) = wait_until(lambda: said()[before:], "the server's line", 10)
    assert line["status"] == 413


def test_the_real_clients_address_is_in_both_logs_whatever_it_claims(behind, said):
    port, log = behind
    here = ssl._create_unverified_context()
    connection = http.client.HTTPSConnection(
        "127.0.0.1", port, context=here, timeout=20, source_address=("127.0.0.9", 0)
    )
    with contextlib.closing(connection):
        connection.request("GET", "/serve/models", headers={"X-Forwarded-For": "8.8.8.8", "X-Real-IP": "8.8.8.8"})
        assert connection.getresponse().status == 200
    # both write when the answer is out
    (ours,) = wait_until(lambda: [line for line in said() if line["route"] == "/models"], "the server's line", 10)
    (theirs,) = wait_until(lambda: [line for line in log() if line["path"] == "/serve/models"], "nginx's line", 10)
    assert (ours["client"], theirs["client"]) == ("127.0.0.9", "127.0.0.9")


def test_who_looks_and_asks_needs_no_token_and_who_changes_something_does(behind, server):
    port, log = behind
    url = f"https://127.0.0.1:{port}/serve"
    assert requests.get(f"{url}/metrics", timeout=20).status_code == 200
    change = {"json": {"action": "canary", "candidate": "nobody/at-all"}, "timeout": 20}
    assert requests.put(f"{url}/rollout", **change).status_code == 401
    assert requests.put(f"{url}/rollout", headers={"Authorization": "Bearer wrong"}, **change).status_code == 401
    assert requests.put(f"{url}/rollout", headers={"Authorization": f"Bearer {TOKEN}"}, **change).status_code == 404
    assert requests.post(f"{url}/records", json={}, timeout=20).status_code == 401
    assert requests.post(f"{url}//records", json={}, timeout=20).status_code in (401, 404)
    picture = {"files": {"file": (paths.IMAGES / "clock.png").read_bytes()}, "timeout": 20}
    assert requests.post(f"{url}/detect", **picture).status_code == 200
    assert requests.post(f"{url}/detect", headers={"X-Record-Id": "0" * 32}, **picture).status_code == 401
    assert TOKEN not in json.dumps(log())


def test_what_is_not_the_servers_is_not_answered(behind):
    port, _ = behind
    assert requests.get(f"https://127.0.0.1:{port}/metrics", timeout=20).status_code == 404
    assert requests.get(f"http://127.0.0.1:{port}/serve/ready", timeout=20).status_code == 400  # plain HTTP


def test_a_server_that_is_gone_is_said_in_json_with_a_time_to_come_back(certificate, tmp_path):
    with proxy(tmp_path, certificate, LAB_UPSTREAM=f"127.0.0.1:{free_port()}") as port:
        crt = certificate / "lab.crt"
        answer = requests.get(f"https://127.0.0.1:{port}/serve/ready", verify=crt, timeout=20)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
    assert "send it again" in answer.json()["detail"]


class Named:
    """A detector that finds nothing, and has a version's name."""

    slots = 1

    def __init__(self, version: str) -> None:
        self.version = version

    def detect(self, image, confidence=0.5):
        return []


def test_a_canary_in_the_proxy_gets_its_share_of_the_clients_and_keeps_them(certificate, tmp_path):
    stable, candidate = (serve(create_app(Named(name), root_path="/serve"), port=0) for name in ("stable", "candidate"))
    weights = {"LAB_UPSTREAM": stable.url[7:], "LAB_CANDIDATE": candidate.url[7:], "LAB_WEIGHT": "20%"}
    with stable, candidate, proxy(tmp_path, certificate, "canary", **weights) as port, requests.Session() as session:
        session.verify = str(certificate / "lab.crt")
        url = f"https://127.0.0.1:{port}/serve/ready"

        def who(key: int) -> str:
            return session.get(url, headers={"X-Client-Key": f"client {key}"}, timeout=20).json()["versions"][0]

        first = [who(key) for key in range(200)]
        assert [who(key) for key in range(30)] == first[:30]
    # a share this far from 20 % comes once in 10,000 seeds, and the keys are fixed
    low, high = stats.binom.interval(0.9999, 200, 0.2)
    assert low <= first.count("candidate") <= high


def test_the_recorded_answers_of_nginx_in_the_lesson_are_given_again(detector, tmp_path):
    """Run each command of shipping.ipynb again. Only the words of refusals may be others."""
    from deploy import shipping
    from record_shipping import behind_nginx

    recorded = {name: shipping.Result(**step) for name, step in shipping.recorded()["steps"].items()}
    for name, done in behind_nginx(detector, tmp_path):
        assert (done.command, done.code) == (recorded[name].command, recorded[name].code)
        if name == "change":
            assert done.lines[0].endswith("} 401")
        elif name != "stranger":
            assert done.lines == recorded[name].lines


def test_compose_is_what_the_specification_says_and_names_files_that_are_there():
    text = (LAB / "compose.yaml").read_text()
    compose = PyCompose.from_yaml(re.sub(r"\$\{LAB_SECRETS[^}]*\}", "/secrets", text))  # the parser fills nothing in
    assert sorted(compose.service_names()) == ["grafana", "nginx", "prometheus", "server"]
    mounted = re.findall(r"- \./(\S+?):", text)
    assert len(mounted) >= 7
    assert not [path for path in mounted if not (LAB / path).exists()]
    published = re.findall(r'ports: \["(\S+)"\]', text)
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_prometheus_takes_the_configuration_that_compose_gives_it(tmp_path):
    from test_prometheus import promtool

    secret = tmp_path / "token"
    secret.write_text(TOKEN)
    text = (LAB / "deploy/docker/prometheus.yml").read_text()
    assert "/run/secrets/lab_read_token" in text
    text = text.replace("/run/secrets/lab_read_token", str(secret))
    (tmp_path / "prometheus.yml").write_text(text)
    shutil.copy(LAB / "deploy/rules.yml", tmp_path)
    promtool("check", "config", tmp_path / "prometheus.yml")


def services() -> dict[str, dict]:
    return yaml.safe_load((LAB / "compose.yaml").read_text())["services"]


def test_each_container_is_shown_the_secrets_that_it_needs_and_none_has_one_in_its_environment():
    """A reader's token for Prometheus and a password of its own for Grafana; everything lies outside of the checkout."""
    shown = {name: service.get("secrets", []) for name, service in services().items()}
    assert shown == {
        "server": ["lab_token", "lab_read_token"],
        "nginx": ["lab_token"],
        "prometheus": ["lab_read_token"],
        "grafana": ["grafana_password"],
    }
    for service in services().values():
        for name, value in service.get("environment", {}).items():
            assert not re.search("TOKEN|PASSWORD", name) or value in [f"/run/secrets/{one}" for one in SECRETS], name
    kept = yaml.safe_load((LAB / "compose.yaml").read_text())["secrets"]
    assert list(kept) == list(SECRETS)
    assert all(secret["file"].startswith("${LAB_SECRETS") for secret in kept.values())


def test_the_secrets_that_the_readme_makes_are_fit_and_all_different(tmp_path):
    folder = composed.secrets(tmp_path)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in folder.iterdir()) == sorted([*SECRETS, "tls"])
    values = {(folder / name).read_text().strip() for name in SECRETS}
    assert len(values) == 3
    assert not any(map(security.unfit, values))
    assert all((folder / name).stat().st_mode & 0o777 == 0o644 for name in SECRETS)
    assert (folder / "tls/lab.key").stat().st_mode & 0o777 == 0o600


def test_nginx_gets_its_token_from_the_file(tmp_path):
    """Run the command of compose.yaml, with a file and a program of ours in the place of the image's."""
    (tmp_path / "token").write_text(TOKEN + "\n")
    entry = tmp_path / "entry.sh"
    entry.write_text('#!/bin/sh\necho "$LAB_TOKEN" "$@"\n')
    entry.chmod(0o755)
    (command,) = services()["nginx"]["command"]
    for ours, its in ((str(tmp_path / "token"), "/run/secrets/lab_token"), (str(entry), "/docker-entrypoint.sh")):
        command = command.replace(its, ours)
    done = subprocess.run(
        [*services()["nginx"]["entrypoint"], command.replace("$$", "$")], capture_output=True, text=True
    )
    assert done.stdout == f"{TOKEN} nginx -g daemon off;\n"


@pytest.mark.parametrize("name", ["deploy/nginx/tls/lab.key", "lab.key", "deploy/lab.pem", "deploy/lab.crt", ".env"])
def test_git_takes_no_key(name):
    assert subprocess.run(["git", "check-ignore", "--quiet", "--no-index", name], cwd=LAB).returncode == 0
