"""Nothing that a client sends is dropped silently: what no route reads is refused, and the answer says what to send."""

import http.client
import json
import tempfile

import numpy as np
import pytest
import requests

from labsupport import images, paths
from labsupport.serving import create_app, schemas, serve
from labsupport.serving.strict_routes import StrictRoute

PICTURE = (paths.IMAGES / "clock.png").read_bytes()
CURL = "curl -F file=@picture.jpg http://HOST:PORT/serve/detect"
UPLOADS = ("/predict", "/detect", "/count-cars", "/count-apples", "/count-plants")
GETS = ("/", "/models", "/health", "/ready", "/metrics", "/dashboard", "/dashboard/data", "/browser", "/rollout")


class Blind:
    """A model that finds nothing and costs nothing."""

    version, slots = "blind/none-f32", 1

    def detect(self, image, confidence=0.5):
        return []


TOKEN = {"Authorization": "Bearer 0123456789abcdef0123"}


@pytest.fixture(scope="module")
def server():
    with serve(create_app(Blind(), root_path="/serve"), port=0) as running:
        yield running


def ask(server, method, path, **options):
    return requests.request(
        method, server.url + path, timeout=30, headers={**TOKEN, **options.pop("headers", {})}, **options
    )


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("LAB_TOKEN", TOKEN["Authorization"].removeprefix("Bearer "))


def upload(server, path="/detect", **options):
    return ask(server, "POST", path, **{"files": {"file": PICTURE}, **options})


def refusal(answer, status=422) -> str:
    assert answer.status_code == status, answer.text
    return answer.json()["detail"]


def routes():
    """Every method and path of the API, with a body that fits where there is one."""
    for route in create_app({}).routes:
        if isinstance(route, StrictRoute):
            for method in route.methods:
                body = {"files": {"file": PICTURE}} if route.path in UPLOADS else {"json": {}}
                path = route.path.replace("{name:path}", "style.css")
                yield pytest.param(method, path, {} if method in ("GET", "HEAD") else body, id=f"{method} {path}")


@pytest.mark.parametrize("method, path, body", [*routes()])
def test_every_route_refuses_an_unknown_parameter_and_names_it(server, method, path, body):
    answer = ask(server, method, f"{path}?conf=0.9", **body)
    assert answer.status_code == 422
    if method != "HEAD":
        assert "unknown parameter 'conf': this call reads " in answer.json()["detail"]


def test_the_names_that_are_known_stand_in_the_answer(server):
    assert refusal(upload(server, "/detect?conf=0.9")) == "unknown parameter 'conf': this call reads confidence, model"
    assert refusal(ask(server, "GET", "/health?a=1")) == "unknown parameter 'a': this call reads none"
    assert refusal(upload(server, "/detect?Confidence=0.9")).startswith("unknown parameter 'Confidence'")
    assert refusal(upload(server, "/detect?=0.9")).startswith("unknown parameter ''")
    assert refusal(upload(server, "/detect?confidence")).startswith("confidence: ")
    assert len(refusal(upload(server, f"/detect?{'x' * 1_900}=1"))) < 200


@pytest.mark.parametrize("query", ["confidence=0.2&confidence=0.9", "confidence=0.2&confidence=0.2", "model=&model="])
def test_a_parameter_that_comes_twice_is_refused(server, query):
    assert refusal(upload(server, f"/detect?{query}")).endswith("it came 2 times, send it once")


@pytest.mark.parametrize(
    "path", ["/docs?x=1", "/openapi.json?x=1", "/docs/oauth2-redirect?code=1", "/browser/style.css", "/serve/docs"]
)
def test_pages_for_people_keep_working(server, path):
    assert ask(server, "GET", path).ok


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("body", [b"x", [b"x"]], ids=["a length", "chunks"])
def test_a_body_that_nobody_reads_is_refused(server, method, body):
    answer = ask(server, method, "/health", data=body if isinstance(body, bytes) else iter(body))
    assert answer.status_code == 422
    assert ask(server, method, "/health", headers={"Content-Length": "0", "Content-Type": "text/plain"}).ok


@pytest.mark.parametrize("path", [*GETS, "/browser/style.css", "/docs", "/openapi.json", "/serve", "/serve/health"])
def test_head_is_get_without_the_body(server, path):
    get, head = ask(server, "GET", path), ask(server, "HEAD", path)
    assert (get.status_code, head.status_code, head.content) == (200, 200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    same = path not in ("/metrics", "/dashboard/data", "/serve/health")  # these change
    assert not same or head.headers["content-length"] == get.headers["content-length"]


def test_head_is_not_in_the_document_and_only_where_get_is(server):
    paths_ = create_app({}).openapi()["paths"]
    assert not [path for path, methods in paths_.items() if "head" in methods]
    for path in (*UPLOADS, "/feedback", "/records"):
        assert ask(server, "HEAD", path).status_code == 405


def part(headers: str, content: bytes = PICTURE) -> dict:
    """A form that no library would make."""
    data = f"--x\r\n{headers}\r\n\r\n".encode() + content + b"\r\n--x--\r\n"
    return {"files": None, "data": data, "headers": {"Content-Type": "multipart/form-data; boundary=x"}}


DISPOSITION = 'Content-Disposition: form-data; name="file"'
BASE64 = "iVBORw0KGgo" * 300


@pytest.mark.parametrize(
    "status, says, options",
    [
        (400, "more than 1,000 bytes", part(f"{DISPOSITION}; filename*=UTF-8''a.jpg")),
        (422, "holds text and not a file", part(f"{DISPOSITION}; filename*=UTF-8''a.jpg", b"small")),
        (400, "more than 1,000 bytes", {"files": {"file": (None, BASE64)}}),
        (400, "more than 1,000 bytes", {"data": {"note": "n" * 1_500}}),
        (422, "unknown field 'note'", {"data": {"note": "n"}}),
        (422, "unknown field 'confidence'", {"data": {"confidence": "0.9"}}),
        (422, "unknown field '\\x1b[2J'", {"data": {"\x1b[2J": "0.9"}}),
        (422, "curl sends a file if its name follows an @", {"files": {"file": (None, "a.jpg")}}),
        (422, "not a multipart form", {"files": None, "data": PICTURE}),
        (422, "not a multipart form", {"files": None, "data": PICTURE, "headers": {"Content-Type": "image/png"}}),
        (
            422,
            "not a multipart form",
            {"files": None, "data": PICTURE, "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
        ),
        (422, "not a multipart form", {"files": None, "data": {"file": "a.jpg"}}),
        (422, "not a multipart form", {"files": None, "json": {"file": BASE64}}),
        (422, "not a multipart form", {"files": None}),
        (422, "unknown field 'image'", {"files": {"image": PICTURE}}),
        (422, "2 pictures came", {"files": [("file", PICTURE), ("file", PICTURE)]}),
        (
            400,
            "names no boundary",
            {"files": None, "data": PICTURE, "headers": {"Content-Type": "multipart/form-data"}},
        ),
        (400, "damaged or cut off", part("no header at all")),
        (400, "more than 4 files or 4 other fields", {"data": {f"f{number}": "x" for number in range(9)}}),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_whatever_is_no_picture_in_a_form_is_told_what_to_send(server, status, says, options):
    detail = refusal(upload(server, **options), status)
    assert says in detail and detail.endswith(CURL)


@pytest.mark.parametrize("path", UPLOADS)
def test_all_routes_that_take_pictures_say_so(server, path):
    detail = refusal(upload(server, path, files=None, data=PICTURE))
    assert detail.endswith(f"curl -F file=@picture.jpg http://HOST:PORT/serve{path}")


SAID = {"prediction_id": "a", "correct": True}


@pytest.mark.parametrize(
    "body, says",
    [
        (json.dumps({**SAID, "corect": True}), "corect"),
        ('{"prediction_id": "a", "correct": true, "correct": false}', "the key 'correct' comes twice"),
        ('{"prediction_id": "a", "correct": NaN}', "NaN is not a number in JSON"),
        ('{"prediction_id": "\\ud800", "correct": true}', "prediction_id"),
        ('{"prediction_id": "a\\u0000", "correct": true}', "prediction_id"),
        ('{"prediction_id": "a", "labels": ["\\udfff"]}', "unicode"),
        (json.dumps({"prediction_id": "a", "labels": ["x" * 201]}), "at most 200 characters"),
        (json.dumps({"prediction_id": "a", "labels": ["x"] * 1_001}), "at most 1000 items"),
        ('{"prediction_id": ', "not JSON that can be read: Expecting value at character 18"),
        (b'{"\xff": 1}', "not UTF-8"),
        ("[" * 15_000, "too long, or it is nested too deeply"),
        ("1" * 5_000, "too long, or it is nested too deeply"),
    ],
)
def test_json_is_read_whole_or_refused(server, body, says):
    answer = ask(server, "POST", "/feedback", data=body, headers={"Content-Type": "application/json"})
    assert says in refusal(answer) and "sys." not in answer.text


def test_what_the_docs_offer_to_try_is_read_whole():
    for model in (schemas.FeedbackIn, schemas.RolloutIn):
        for example in model.model_json_schema()["examples"]:
            assert model(**example).model_dump(exclude_unset=True) == example


def test_labels_and_correct_do_not_contradict_each_other(server):
    both = {"prediction_id": "a", "labels": ["cat"]}
    contradiction = ask(server, "POST", "/feedback", json={**both, "correct": True})
    assert "labels say that the answer was wrong" in refusal(contradiction)
    for said in (both, {**both, "correct": False}, {**both, "correct": None}):
        assert refusal(ask(server, "POST", "/feedback", json=said), 404)  # it keeps no log


CHANGES = {
    "candidate": "v",
    "percent": 10,
    "weight": 10,
    "steps": [5, 100],
    "gate": {"alpha": 0.1},
    "interval": 2,
    "reason": "a test",
    "to": "v",
}


@pytest.mark.parametrize("action", schemas.READS)
@pytest.mark.parametrize("field", CHANGES)
def test_what_an_action_does_not_read_is_refused_and_what_it_reads_is_named(action, field):
    wanted = {"action": action, field: CHANGES[field]}
    if field in schemas.READS[action]:
        assert schemas.RolloutIn(**wanted)
    else:
        with pytest.raises(ValueError, match=f"{action} does not read {field}: it reads "):
            schemas.RolloutIn(**wanted)


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "image/png", ""])
def test_a_body_that_is_not_said_to_be_json_is_told_to_be(server, kind):
    answer = ask(server, "POST", "/feedback", data=json.dumps(SAID), headers={"Content-Type": kind})
    assert refusal(answer) == "send JSON with the header Content-Type: application/json"


def test_headers_are_exempt(server):
    headers = {"X-Anything": "at all", "X-Forwarded-For": "10.0.0.1", "Accept-Language": "de"}
    assert upload(server, "/detect?confidence=0.9&model=yolov3-tiny", headers=headers).ok


def test_a_wrong_method_on_any_path_is_a_405(server):
    for route in create_app({}).routes:
        answer = ask(server, "DELETE", route.path.replace("{name:path}", "style.css") or "/")
        assert answer.status_code in (404, 405), route.path


FILE_PART = b'--X\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + PICTURE + b"\r\n"
FORM = {"Content-Type": "multipart/form-data; boundary=X"}


@pytest.mark.parametrize(
    "rest", [b"", b"--X\r\nContent-Disposition: form-data; name=", FILE_PART[:-30], b"--X", b"--X-"]
)
def test_a_form_that_ends_before_its_end_is_refused_as_cut_off(server, rest):
    said = refusal(ask(server, "POST", "/detect", data=FILE_PART + rest, headers=FORM), 400)
    assert "it is damaged or cut off" in said and CURL in said


def test_an_upload_of_any_size_needs_no_folder_for_temporary_files(server, monkeypatch, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (2_000, 2_000, 3), np.uint8)
    large = images.encode(noise, "png")
    assert 10_000_000 < len(large) <= images.MAX_BYTES
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    for path in ("/detect", "/predict"):
        answer = upload(server, path, files={"file": large})
        assert answer.ok, answer.text


@pytest.mark.parametrize("rest", [b"--X--", b"--X--\r\n", b"--X--\r\nbehind the end"])
def test_a_form_is_whole_with_its_last_boundary_however_it_comes(server, rest):
    whole = FILE_PART + rest
    assert ask(server, "POST", "/detect", data=whole, headers=FORM).ok
    pieces = (whole[at : at + 997] for at in range(0, len(whole), 997))
    assert ask(server, "POST", "/detect", data=pieces, headers=FORM).ok
    last = iter((FILE_PART, *(bytes([byte]) for byte in rest)))
    assert ask(server, "POST", "/detect", data=last, headers=FORM).ok


@pytest.mark.parametrize("name, value", [("x-client-key", "ann"), ("x-record-id", "0" * 32)])
def test_a_header_that_is_read_and_comes_twice_is_refused(server, name, value):
    connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
    body = FILE_PART + b"--X--\r\n"
    connection.putrequest("POST", "/detect")
    for header, text in [*TOKEN.items(), *FORM.items(), ("Content-Length", len(body)), (name, value), (name, value)]:
        connection.putheader(header, text)
    connection.endheaders(body)
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["detail"]) == (422, f"{name}: it came 2 times, send it once")
    connection.close()


@pytest.mark.parametrize(
    "path, body, says",
    [
        ("/feedback", {"prediction_id": "a", "labels": ["cat", 5]}, "labels[1]: Input should be a valid string"),
        ("/feedback", {"prediction_id": "a", "correct": True, "x": 1}, "x: no such key is read here: leave it out"),
        ("/feedback", {"prediction_id": "a\0", "correct": True}, "prediction_id: give text without NUL"),
        ("/feedback", {"prediction_id": "a"}, "body: say correct, labels or retry"),
        ("/feedback", [], "body: send a JSON object, as in {...}"),
        ("/feedback", None, "body: it is missing: send JSON with the header Content-Type: application/json"),
        ("/records", [{"id": "0" * 32, "time": -1}], "[0].time: Input should be greater than or equal to 0"),
        (
            "/rollout",
            {"action": "ramp", "candidate": "b", "gate": {"thresholds": {"p95": [0, 1]}}},
            "gate.thresholds.p95: Input should be 'error_rate'",
        ),
    ],
)
def test_a_problem_says_where_in_the_body_it_is_and_what_to_give(server, path, body, says):
    method = "PUT" if path == "/rollout" else "POST"
    options = {} if body is None else {"json": body}
    assert says in refusal(ask(server, method, path, **options))


@pytest.mark.parametrize("path", ["/nonsense", "/serve/predictions", "/detect/dog", "/static-offline-docs/none.js"])
def test_a_path_that_there_is_not_says_where_the_paths_are(server, path):
    said = refusal(ask(server, "GET", path), 404)
    assert said.startswith("there is no such path here: see which there are at /serve")
    assert requests.get(server.url + said.split()[-1], timeout=30).ok


def test_a_wrong_method_on_the_files_of_the_docs_names_the_right_ones(server):
    answer = ask(server, "POST", "/static-offline-docs/swagger-ui.css")
    assert refusal(answer, 405) == "ask with GET or HEAD" and answer.headers["Allow"] == "GET, HEAD"
