"""Who may do what: every route, role, credential and object, on real servers, against a table written by hand."""

import asyncio
import contextlib
import hashlib
import itertools
import json
import random
import re
import sqlite3
import subprocess
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests
from starlette.routing import Route
from typer.testing import CliRunner

from command import SERVE, until
from labsupport import cli, images
from labsupport.access import ROLES, Access, Person, Users, UsersUnavailable
from labsupport.detection import Box, Detection
from labsupport.log import PredictionLog
from labsupport.protection import PeopleGuard, people_guard, security
from labsupport.rollout import Router
from labsupport.serving import create_app, serve

TOKEN, READ_TOKEN = "0123456789abcdef0123", "fedcba9876543210fedc"
PICTURE = images.encode(np.random.default_rng(3).integers(0, 255, (40, 60, 3), np.uint8))
RIGHTS = {  # by hand, and not from the code
    "nobody": {"anybody", "read", "predict"},  # on loopback only
    "reader": {"anybody", "read"},
    "client": {"anybody", "predict"},
    "operator": {"anybody", "read", "predict", "change"},
    "admin": {"anybody", "read", "predict", "change", "others"},
    "owner": {"anybody", "read", "predict", "change", "others"},
    "read token": {"anybody", "read"},
}
ROUTES = {
    **dict.fromkeys(["/", "/models", "/ready", "/docs", "/docs/oauth2-redirect", "/openapi.json"], "anybody"),
    **dict.fromkeys(["/browser", "/browser/{name:path}"], "anybody"),
    **dict.fromkeys(["/metrics", "/dashboard", "/dashboard/data", "/rollout"], "read"),
    **dict.fromkeys(["/predict", "/detect", "/count-cars", "/count-apples", "/count-plants"], "predict"),
    **dict.fromkeys(["/feedback", "/predictions/{id}", "/predictions/{id}/picture"], "own"),
    "/records": "change",
}
WRONG = ("wrong", "revoked")


class Cats:
    version = "cats"

    def detect(self, image, confidence=0.5):
        return [Detection("cat", 0.9, Box(1, 2, 30, 20))]


class Dogs(Cats):
    version = "dogs"


class World:
    """A data folder with people, a log, and the app that serves them."""

    def __init__(self, folder) -> None:
        self.folder, self.access = folder, Access(folder)
        self.tokens = {role: self.access.users.add(f"the {role}", role) for role in ROLES}
        self.tokens |= {"other": self.access.users.add("another client", "client"), "owner": TOKEN}
        self.tokens |= {"read token": READ_TOKEN, "wrong": f"lab_{'0' * 40}", "nobody": None}
        self.tokens["revoked"] = self.access.users.add("a former operator", "operator")
        self.access.users.revoke("a former operator")
        self.log = PredictionLog(folder / "predictions.db")
        self.router = Router(Cats(), journal=folder / "rollout-yolov3-tiny.db")
        self.app = create_app(self.router, keep_uploads=True, log=self.log, access=self.access)

    def headers(self, who):
        return {} if self.tokens[who] is None else {"Authorization": f"Bearer {self.tokens[who]}"}


@pytest.fixture
def world(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, value in {
        "LAB_ROOT": folder,
        "LAB_KEYS": tmp_path / "keys",
        "LAB_TOKEN": TOKEN,
        "LAB_READ_TOKEN": READ_TOKEN,
    }.items():
        monkeypatch.setenv(name, str(value))
    world = World(folder)
    yield world
    world.log.close()


class Caller:
    """Sends requests as different people to one server."""

    def __init__(self, url, world, **options) -> None:
        self.url, self.world, self.session = url, world, requests.Session()
        self.options = {"timeout": 60, **options}

    def __call__(self, who, method, path, **options):
        headers = {**self.world.headers(who), **options.pop("headers", {})}
        return self.session.request(method, self.url + path, headers=headers, **self.options, **options)

    def predict(self, who):
        answer = self(who, "POST", "/predict", files={"file": PICTURE})
        assert answer.ok, answer.text
        return answer.headers["X-Prediction-Id"]


def body(method, path, id):
    """What a valid request of this route sends."""
    if path in ("/predict", "/detect") or path.startswith("/count-"):
        return {"files": {"file": PICTURE}}
    if (method, path) == ("PUT", "/rollout"):
        return {"json": {"action": "resume"}}
    if path == "/feedback":
        return {"json": {"prediction_id": id, "correct": True}}
    if path == "/records":
        record = {"id": uuid.uuid4().hex, "time": time.time(), "station": "s", "product": "p", "verdict": "accept"}
        return {"json": [{**record, "decided_by": "device", "latency": 0.1}]}
    return {}


def calls(app):
    """Each method and path of the app, in the app's own words."""
    for route in app.routes:
        if isinstance(route, Route) and not route.path.startswith("/static-offline"):
            yield from itertools.product(sorted(route.methods), [route.path])


def check_every_cell(caller, world, beyond, wrong=1_000):
    """Compare each route x person x object with the table. Return the number of cells.

    `wrong` is how many requests with wrong tokens are sent at most, because the server delays the answers to them.
    """
    mine = {who: caller.predict(who) for who in RIGHTS if "predict" in RIGHTS[who] and not (beyond and who == "nobody")}
    other, cells = caller.predict("other"), 0
    for (method, path), who in itertools.product(calls(world.app), [*RIGHTS, *WRONG]):
        if path == "/health":
            assert caller(who, method, path).status_code == 200
            continue
        kind = "change" if (method, path) == ("PUT", "/rollout") else ROUTES[path]
        known = who in RIGHTS and not (beyond and who == "nobody")
        if who in WRONG and (wrong := wrong - 1) < 0:
            continue
        for whose, id in {"own": mine.get(who, other), "other's": other}.items() if kind == "own" else [("", "")]:
            address = path.replace("{id}", id).replace("{name:path}", "page.js")
            answer = caller(who, method, address, **body(method, path, id))
            cell, status = (method, path, who, whose), answer.status_code
            if not known:
                assert status == 401, cell
            elif kind == "own":
                if "predict" not in RIGHTS[who]:
                    assert status == 403, cell
                else:
                    mayest = whose == "own" or "others" in RIGHTS[who]
                    assert (status in (200, 204)) is mayest and (mayest or status == 404), (cell, answer.text)
            elif kind in RIGHTS[who]:
                assert status not in (401, 403), cell
                assert status < 300 or path in ("/browser", "/browser/{name:path}"), (cell, answer.text)
            else:
                assert status == (401 if who == "nobody" else 403), cell
            cells += 1
    return cells


@pytest.mark.parametrize("beyond", [False, True])
@pytest.mark.parametrize("encrypted", [False, True])
def test_every_route_role_credential_and_object(world, beyond, encrypted, authority, monkeypatch):
    monkeypatch.setattr(security, "WAIT", 0)  # seconds that wrong tokens are delayed after the tenth
    files = {"certfile": authority / "server.pem", "keyfile": authority / "server.key"} if encrypted else {}
    with serve(world.app, host="0.0.0.0" if beyond else "127.0.0.1", port=0, **files) as server:
        url = f"{'https' if encrypted else 'http'}://127.0.0.1:{server.port}"
        caller = Caller(url, world, verify=str(authority / "ca.pem"))
        if encrypted:  # a refusal before the body ends the connection, and with TLS the next request may notice it late
            caller.session.headers["Connection"] = "close"
        assert check_every_cell(caller, world, beyond) > 300
    assert world.access.trail.verify().intact
    written = {entry.person for _, entry in world.access.trail.entries()}
    assert {one.id for one in world.access.users.all() if one.revoked is None} < written
    assert {"owner", "reader", None} < written


def test_every_route_role_credential_and_object_with_two_workers_over_https(world, authority):
    options = ["--host", "0.0.0.0", "--workers", "2", "--keep-uploads", "--precision", "f32"]
    options += ["--certfile", str(authority / "server.pem"), "--keyfile", str(authority / "server.key")]
    with subprocess.Popen([*SERVE, *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            port = re.search(r":(\d+) until", process.stdout.readline())[1]
            caller = Caller(f"https://127.0.0.1:{port}", world, verify=str(authority / "ca.pem"))
            caller.session.headers["Connection"] = "close"  # so that both workers answer
            assert check_every_cell(caller, world, beyond=True, wrong=12) > 250
        finally:
            process.terminate()
    assert world.access.trail.verify().intact


def test_all_that_a_person_does_and_every_refusal_is_in_the_trail(world):
    with serve(world.app, port=0) as server:
        caller = Caller(server.url, world)
        id = caller.predict("client")
        caller("operator", "PUT", "/rollout", json={"action": "resume"})
        caller("reader", "PUT", "/rollout", json={"action": "resume"})
        caller("revoked", "GET", "/models")
        caller("nobody", "PUT", "/rollout", json={"action": "resume"})
        caller("other", "GET", f"/predictions/{id}")
        caller("nobody", "GET", "/models")
    people = {one.name: one.id for one in world.access.users.all()}
    assert [(one.person, one.role, one.action, one.object, one.effect) for _, one in world.access.trail.entries()] == [
        (people["the client"], "client", "POST /predict", id, "200"),
        (people["the operator"], "operator", "PUT /rollout", None, "begun"),
        (people["the operator"], "operator", "PUT /rollout", "yolov3-tiny resume", "200"),
        (people["the reader"], "reader", "PUT /rollout", None, "403"),
        (None, None, "GET /models", None, "401"),
        (None, None, "PUT /rollout", None, "401"),
        (people["another client"], "client", f"GET /predictions/{id}", id, "404"),
    ]
    assert {one.address for _, one in world.access.trail.entries()} == {"127.0.0.1"}


def test_what_cannot_be_written_to_the_trail_is_not_done(world):
    with serve(world.app, port=0) as server:
        caller = Caller(server.url, world)
        caller.predict("client")
        for end in ("", "-wal", "-shm"):
            (world.folder / f"audit.db{end}").unlink(missing_ok=True)
        (world.folder / "audit.db").write_bytes(b"no database" * 1_000)
        before = caller("nobody", "GET", "/rollout").json()
        refused = [
            caller("client", "POST", "/predict", files={"file": PICTURE}),
            caller("operator", "PUT", "/rollout", json={"action": "pause"}),
            caller("reader", "GET", "/metrics"),
        ]
        assert [(one.status_code, one.json()) for one in refused] == [(503, {"detail": people_guard.NOT_WRITTEN})] * 3
        assert caller("nobody", "GET", "/rollout").json()["paused"] is before["paused"] is False


def test_no_header_skips_the_entry_before_a_change_and_no_feedback_is_stored_without_one(world):
    world.router.shadow(Dogs())
    with serve(world.app, port=0) as server:
        caller = Caller(server.url, world)
        id = caller.predict("client")
        for end in ("", "-wal", "-shm"):
            (world.folder / f"audit.db{end}").unlink(missing_ok=True)
        (world.folder / "audit.db").write_bytes(b"no database" * 1_000)
        change = {"json": {"action": "promote"}, "headers": {"X-Record-Id": "0" * 32}}
        assert caller("operator", "PUT", "/rollout", **change).status_code == 503
        said = {"prediction_id": id, "correct": False, "labels": ["dog"]}
        assert caller("client", "POST", "/feedback", json=said).status_code == 503
    assert world.router.state.mode == "shadow"
    assert world.log.columns("correct")["correct"] == [None]


def test_a_removed_list_of_people_does_not_end_the_trail(world):
    with serve(world.app, port=0) as server:
        caller = Caller(server.url, world)
        caller.predict("client")
        (world.folder / "users.db").unlink()
        caller("owner", "GET", "/models")
        assert caller("client", "GET", "/models").status_code == 401
    assert [entry.effect for _, entry in world.access.trail.entries()] == ["200", "200", "401"]


@pytest.mark.parametrize("headers, status", [({"Sec-Fetch-Site": "cross-site"}, 403), ({"Host": "evil.example"}, 421)])
def test_a_refused_origin_is_in_the_trail(world, headers, status):
    with serve(world.app, port=0) as server:
        caller = Caller(server.url, world)
        caller.predict("client")
        who = "operator" if status == 403 else "revoked"
        assert caller(who, "PUT", "/rollout", headers=headers).status_code == status
    assert [entry.effect for _, entry in world.access.trail.entries()] == ["200", str(status)]


@pytest.mark.parametrize("prefix", ["/roll", "/dash", "/met"])
def test_a_proxys_prefix_that_begins_like_a_route_changes_no_right(world, prefix):
    app = create_app(world.router, root_path=prefix, log=world.log, access=world.access)
    with serve(app, port=0) as server:
        caller = Caller(server.url, world)
        for path in ("/rollout", "/dashboard/data", "/metrics"):
            assert (
                caller("client", "GET", path).status_code == caller("client", "GET", prefix + path).status_code == 403
            )


def test_a_picture_that_cannot_be_decrypted_is_named_and_one_of_a_record_is_not_there(world):
    with serve(world.app, port=0) as server:
        caller = Caller(server.url, world)
        id = caller.predict("client")
        (file,) = (world.folder / "images_uploaded").glob("*.bin")
        file.write_bytes(file.read_bytes()[:-1] + b"?")
        answer = caller("client", "GET", f"/predictions/{id}/picture")
        assert (answer.status_code, "cannot be decrypted" in answer.text) == (503, True)
        world.log.record(id="0" * 32, version="cats", latency=0.1, detections=[], features=None)
        assert caller("nobody", "GET", f"/predictions/{'0' * 32}/picture").status_code == 404


def test_while_the_list_of_users_cannot_be_read_no_token_counts(world):
    with serve(world.app, port=0) as server:
        caller = Caller(server.url, world)
        (world.folder / "users.db").write_bytes(b"this is no database" * 100)
        answers = [caller(who, "GET", "/models").status_code for who in ("client", "revoked", "owner", "nobody")]
        assert answers == [503, 503, 200, 200]


def test_what_a_candidate_in_shadow_saw_of_a_person_is_the_persons_too(world):
    with serve(world.app, port=0) as server:
        world.router.shadow(Dogs())
        caller = Caller(server.url, world)
        id = caller.predict("client")
        until(lambda: world.log.columns("id", shadow=True)["id"] == [id])
    (person,) = (one.id for one in world.access.users.all() if one.name == "the client")
    assert world.log.columns("person", shadow=True)["person"] == [person]


def test_an_operator_changes_the_rollout_of_a_server_without_lab_token(world, monkeypatch):
    monkeypatch.delenv("LAB_TOKEN")
    monkeypatch.delenv("LAB_READ_TOKEN")
    with serve(world.app, port=0) as server:
        caller = Caller(server.url, world)
        assert caller("operator", "PUT", "/rollout", json={"action": "resume"}).status_code == 200
        refused = caller("revoked", "PUT", "/rollout", json={"action": "resume"})
        assert (refused.status_code, refused.json()["detail"]) == (401, people_guard.INVALID)
        assert caller("owner", "PUT", "/rollout", json={"action": "resume"}).status_code == 401


@pytest.mark.parametrize("where", ["a relative path", "inside the data", "a file"])
def test_a_key_folder_that_is_of_no_use_costs_a_server_without_people_nothing(tmp_path, monkeypatch, where):
    (tmp_path / "data").mkdir()
    (tmp_path / "file").touch()
    places = {"inside the data": tmp_path / "data" / "keys", "a file": tmp_path / "file"}
    monkeypatch.setenv("LAB_KEYS", str(places.get(where, "keys")))
    with serve(create_app(Cats(), access=Access(tmp_path / "data")), port=0) as server:
        assert requests.get(f"{server.url}/models", timeout=10).status_code == 200


def test_who_needs_no_people_has_no_trail_and_no_keys(tmp_path, monkeypatch):
    for name, value in {"LAB_ROOT": tmp_path, "LAB_KEYS": tmp_path.parent / "unused keys", "LAB_TOKEN": TOKEN}.items():
        monkeypatch.setenv(name, str(value))
    with PredictionLog(tmp_path / "predictions.db") as log:
        app = create_app(Cats(), keep_uploads=True, log=log, access=Access(tmp_path))
        with serve(app, port=0) as server:
            for headers in ({}, {"Authorization": f"Bearer {TOKEN}"}):
                files = {"file": PICTURE}
                id = requests.post(f"{server.url}/predict", files=files, headers=headers, timeout=30).headers[
                    "X-Prediction-Id"
                ]
                picture = requests.get(f"{server.url}/predictions/{id}/picture", headers=headers, timeout=30)
                assert images.decode(picture.content).shape == (40, 60, 3)
                assert (tmp_path / "images_uploaded" / f"{id}.jpg").read_bytes() == picture.content
            wrong = requests.get(f"{server.url}/models", headers={"Authorization": "Bearer wrong"}, timeout=30)
            assert wrong.status_code == 401
    assert not (tmp_path / "audit.db").exists() and not (tmp_path.parent / "unused keys").exists()


def test_a_lock_on_the_list_of_users_keeps_nobody_else_waiting(world):
    with (
        serve(world.app, port=0) as server,
        contextlib.closing(sqlite3.connect(world.folder / "users.db", isolation_level=None)) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        other.execute("BEGIN EXCLUSIVE")
        asked = pool.submit(Caller(server.url, world), "client", "GET", "/models")
        requests.get(f"{server.url}/health", timeout=3).raise_for_status()
        assert asked.result(3).status_code == 503
        other.execute("ROLLBACK")
        assert Caller(server.url, world)("client", "GET", "/models").ok


def test_a_token_is_revoked_from_the_next_request_on_and_a_new_one_finds_the_own_pictures(world):
    with serve(world.app, port=0) as server:
        caller = Caller(server.url, world)
        id = caller.predict("client")
        world.access.users.revoke("the client")
        assert caller("client", "GET", f"/predictions/{id}").status_code == 401
        world.tokens["client"] = world.access.users.add("the client", "client")
        again = caller("client", "GET", f"/predictions/{id}").json()
        assert (again["id"], again["version"], again["detections"][0]["label"]) == (id, "cats", "cat")
        picture = caller("client", "GET", f"/predictions/{id}/picture")
        assert images.decode(picture.content).shape == (40, 60, 3)


def test_ten_thousand_requests_of_a_reader_change_no_byte(world):
    """In process, through the same guards as `serve`. Only the trail grows, and what the log keeps of time passing."""
    with serve(world.app, port=0) as server:
        caller = Caller(server.url, world)
        mine, other = caller.predict("other"), caller.predict("nobody")
    world.log.flush()
    guard = PeopleGuard(world.app, world.access, TOKEN, READ_TOKEN, local=True)
    before, choose = state(world), random.Random(17)
    paths = [*ROUTES, "/rollout/", "//rollout", "/Rollout", "/rollout%2f", "/nowhere", "/predictions"]
    statuses = asyncio.run(random_requests(guard, world, choose, paths, [mine, other, "0" * 32]))
    assert len(statuses) == 10_000 and {200, 403, 404} < {*statuses}
    world.log.flush()
    assert state(world) == before
    assert world.access.trail.verify().intact


async def random_requests(guard, world, choose, paths, ids):
    """Send 10,000 requests, fifty at a time, so that they share the trail's transactions. Return the statuses."""
    statuses = []

    async def send(message):
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def ask():
        method = choose.choice(["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT"])
        path = choose.choice(paths).replace("{id}", choose.choice(ids)).replace("{name:path}", "x")
        who = choose.choice(["reader", "read token"])
        content = json.dumps(choose.choice([{"action": "promote"}, {"prediction_id": ids[0], "correct": False}, [], 1]))
        headers = [(b"authorization", f"Bearer {world.tokens[who]}".encode()), (b"host", b"localhost")]
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
        scope |= {"headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "scheme": "http"}

        async def receive():
            return {"type": "http.request", "body": content.encode(), "more_body": False}

        await guard({**scope, "http_version": "1.1", "root_path": ""}, receive, send)

    for _ in range(200):
        await asyncio.gather(*(ask() for _ in range(50)))
    return statuses


def state(world):
    """What is stored, but for the trail: the rows of each database, and the bytes of every other file."""
    contents = {}
    for file in sorted(world.folder.rglob("*")):
        if file.suffix == ".db" and file.name != "audit.db":
            with contextlib.closing(sqlite3.connect(file)) as connection:
                contents[file.name] = hashlib.sha256("\n".join(connection.iterdump()).encode()).digest()
        elif file.is_file() and not file.name.startswith("audit.db") and not file.name.endswith(("-wal", "-shm")):
            contents[file.name] = hashlib.sha256(file.read_bytes()).digest()
    return contents


# the list of users


@pytest.mark.parametrize("name", ["", "owner", "reader", "two  spaces", " ana", "a\nb", "x" * 101, 7, None, "a;b"])
def test_a_name_that_does_not_fit_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="name="):
        Users(tmp_path / "users.db").add(name, "client")


def test_a_role_that_is_not_there_is_refused_and_a_name_is_given_once(tmp_path):
    users = Users(tmp_path / "users.db")
    with pytest.raises(ValueError, match="role='boss'"):
        users.add("ana", "boss")
    assert not users.exist
    users.add("ana", "client")
    with pytest.raises(ValueError, match="revoke it before"):
        users.add("ana", "admin")
    with pytest.raises(ValueError, match="nobody of this name"):
        users.revoke("bob")


def test_no_token_is_in_the_file_and_a_forgotten_name_is_not_either(tmp_path):
    users = Users(tmp_path / "users.db")
    tokens = {name: users.add(name, "client") for name in (f"person number {number}" for number in range(50))}
    content = (tmp_path / "users.db").read_bytes()
    assert not any(token.encode() in content or token[4:].encode() in content for token in tokens.values())
    ids = {one.name: one.id for one in users.all()}
    assert users.forget("person number 33") == ids["person number 33"]
    everything = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"person number 33" not in everything and b"person number 34" in everything
    assert users.who(tokens["person number 33"]) is None and users.who(tokens["person number 34"])


def test_a_file_that_is_no_list_is_not_overwritten(tmp_path):
    (tmp_path / "users.db").write_text("a diary")
    with pytest.raises(UsersUnavailable):
        Users(tmp_path / "users.db").add("ana", "client")
    assert (tmp_path / "users.db").read_text() == "a diary"


def test_the_commands(tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_ROOT", str(tmp_path))
    monkeypatch.setenv("LAB_KEYS", str(tmp_path.parent / "keys"))

    def run(*arguments):
        result = CliRunner().invoke(cli.app, ["users", *arguments])
        return result.exit_code, result.output

    assert run() == (0, "")
    code, text = run("add", "ana", "--role", "client")
    token = text.split()[-1]
    assert code == 0 and Users(tmp_path / "users.db").who(token).name == "ana"
    assert "ana" in run()[1] and token not in run()[1]
    assert run("revoke", "ana")[0] == 0 and "revoked 20" in run("list")[1]
    for wrong in (["add"], ["add", "bob"], ["revoke", "ana"], ["list", "ana"], ["revoke", "ana", "--role", "admin"]):
        code, text = run(*wrong)
        assert code == 1 and text.startswith("labsupport: ") and text.count("\n") == 1, wrong
    assert isinstance(Users(tmp_path / "users.db").all()[0], Person)


def test_the_commands_show_the_trail_and_forget_a_person(world):
    def run(*arguments):
        result = CliRunner().invoke(cli.app, [*arguments])
        return result.exit_code, result.output

    with serve(world.app, port=0) as server:
        caller = Caller(server.url, world)
        mine, other = caller.predict("client"), caller.predict("other")
        world.log.flush()
        code, text = run("audit", "--person", "the client")
        assert (
            code == 0 and mine in text and other not in text and "the client" in text and "is intact, rows: 2" in text
        )
        code, text = run("forget", "the client")
        assert (
            code == 0 and "predictions removed, with remarks on them: 1" in text and "kept pictures removed: 1" in text
        )
        assert caller("client", "GET", "/models").status_code == 401
        assert caller("admin", "GET", f"/predictions/{mine}").status_code == 404
        assert caller("other", "GET", f"/predictions/{other}/picture").ok
    code, text = run("audit")
    assert code == 0 and mine in text and "the client" not in text
    assert (
        run("forget", "the client")[0] == run("audit", "--person", "nobody")[0] == run("audit", "--person", "")[0] == 1
    )
    with contextlib.closing(sqlite3.connect(world.folder / "audit.db")) as connection, connection:
        connection.execute("UPDATE audit SET effect = '404' WHERE number = 1")
    code, text = run("audit")
    assert code == 1 and "NOT INTACT" in text
