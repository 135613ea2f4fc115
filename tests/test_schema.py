"""The server against its own OpenAPI document: schemathesis asks what it allows and what it forbids, and judges the answers.

All its checks are on. What is forbidden includes other methods and headers that do not fit. Chains of calls are left out:
no route takes what another one answers.
"""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import schemathesis
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from pydantic import TypeAdapter, ValidationError
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig

from labsupport import images, paths
from labsupport.images import codec
from labsupport.models import registry
from labsupport.protection import Slots, admission, security
from labsupport.protection.security import TokenGuard
from labsupport.serving import create_app, schemas, serve
from labsupport.serving.app import FORM_LIMITS

CONFIG = {
    "seed": 1,
    "generation": {"max-examples": 20, "database": "none"},
    "suppress-health-check": ["too_slow"],  # that judges the machine
    # what is too long is refused before it is read, so before anybody knows what else is wrong
    "checks": {"negative_data_rejection": {"expected-statuses": [400, 401, 403, 404, 409, 413, 414, 415, 422, "5xx"]}},
}

set_hypothesis_home_dir(Path(tempfile.gettempdir(), "hypothesis"))  # its caches: else they would be in the checkout


def pictures_as(kind: str, suffix: str):
    """The lab's own pictures of a kind, and black ones of any small size."""
    ours = [path.read_bytes() for path in sorted(paths.IMAGES.glob(f"*{suffix}"))]
    sizes = st.tuples(st.integers(1, 99), st.integers(1, 99), st.just(3))
    return st.sampled_from(ours) | sizes.map(lambda size: images.encode(np.zeros(size, np.uint8), kind))


schemathesis.openapi.media_type("image/jpeg", pictures_as("jpeg", ".jpg"))
schemathesis.openapi.media_type("image/png", pictures_as("png", ".png"))
schema = schemathesis.openapi.from_dict(create_app({}).openapi(), config=SchemathesisConfig.from_dict(CONFIG))


@schema.hook
def filter_body(context, form) -> bool:
    """OpenAPI has no word for how many fields a form may have besides the picture; `test_security.py` sends too many."""
    fields = getattr(form, "body", form)
    values = fields.values() if isinstance(fields, dict) else []
    return sum(len(value) if isinstance(value, list) else 1 for value in values) <= FORM_LIMITS["max_fields"]


@pytest.fixture(scope="module")
def both_models(detector):
    """A server on which every model in the document answers, the big one in name only: what fits must not be refused.

    It lets nobody wait for an answer to a wrong token, of which hundreds come.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(security, "WAIT", 0)
        with serve(create_app({"yolov3-tiny": detector, "yolov3": detector}), port=0) as running:
            yield running


@schema.parametrize()
def test_every_route_keeps_to_the_document(case, both_models):
    case.call_and_validate(base_url=both_models.url)


@schema.include(method="POST").exclude(path=["/feedback", "/records"]).given(content=st.binary())
@schema.include(method="POST").exclude(path=["/feedback", "/records"]).parametrize()
def test_whatever_is_no_picture_is_refused_as_documented(case, both_models, content):
    case.body = {"file": content}
    assert case.call_and_validate(base_url=both_models.url).status_code in (413, 414, 415, 422)


@pytest.mark.parametrize(
    "status, model, change",
    [
        (408, "yolov3-tiny", (admission, "BODY_SECONDS", 0)),
        (413, "yolov3-tiny", (codec, "MAX_PIXELS", 1)),
        (503, "yolov3-tiny", (Slots, "full", True)),
        (503, "yolov3", (registry, "missing", lambda name: ["its weights"])),
    ],
    ids=["too slow", "too large", "busy", "not installed"],
)
def test_what_happens_only_at_times_is_documented_too(server, monkeypatch, status, model, change):
    monkeypatch.setattr(*change)
    # with 2 MB of nothing behind it: that cannot have arrived as a whole before the first clock is looked at
    picture = {"file": (paths.IMAGES / "clock.png").read_bytes() + bytes(2_000_000)}
    case = schema["/detect"]["POST"].Case(query={"model": model}, body=picture, media_type="multipart/form-data")
    # excluded because here a 503 is the right answer
    answer = case.call_and_validate(base_url=server.url, excluded_checks=[not_a_server_error])
    assert answer.status_code == status


def unbounded(part: dict, document: dict, where: str) -> list[str]:
    """Where a request's schema has no end, or takes text that no file can hold."""
    if "$ref" in part:
        return unbounded(document["components"]["schemas"][part["$ref"].rsplit("/", 1)[1]], document, where)
    match part.get("type"):
        case "string":
            listed = {
                "enum",
                "const",
                "contentMediaType",
            } & part.keys()  # the last is the file, which `admission` bounds
            right = listed or part.get("pattern") == schemas.RECORD_ID or {"maxLength", "pattern"} <= part.keys()
            right = right or (" x-" in where and "maxLength" in part)  # a header: HTTP itself forbids the rest
        case "array":
            right = "maxItems" in part
        case "object":
            right = part.get("additionalProperties") is False or "enum" in part.get("propertyNames", {})
        case _:
            right = True
    inner = dict(part.get("properties", {}))
    inner |= {key: part[key] for key in ("items", "additionalProperties") if part.get(key)}
    choices = [
        one for one in part.get("anyOf", []) if {"type", "$ref"} & one.keys()
    ]  # others only name what is required
    inner |= {str(number): one for number, one in enumerate([*choices, *part.get("prefixItems", [])])}
    found = [] if right else [where]
    return found + [bad for name, one in inner.items() for bad in unbounded(one, document, f"{where}.{name}")]


def test_all_that_a_client_may_send_has_an_end():
    document, seen = create_app({}).openapi(), set()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            for parameter in operation.get("parameters", []):
                assert not unbounded(parameter["schema"], document, f"{method} {path} {parameter['name']}")
            for kind, content in operation.get("requestBody", {}).get("content", {}).items():
                seen.add(path)
                assert not unbounded(content["schema"], document, f"{method} {path} {kind}")
    assert {"/predict", "/feedback", "/records", "/rollout"} <= seen


@pytest.mark.parametrize("bad", ["\0", "\ud800", "a\udfff"])
def test_all_texts_are_such_as_any_file_and_any_database_can_hold(bad):
    for text in (schemas.Name, schemas.Text):
        assert TypeAdapter(text).validate_python("fine ü 水 \n")
        with pytest.raises(ValidationError):
            TypeAdapter(text).validate_python(bad)


def test_that_a_token_is_missing_is_documented_everywhere(detector):
    with serve(TokenGuard(create_app(detector), "0123456789abcdef"), port=0) as guarded:
        for route in schema.get_all_operations():
            names = {"id": "0" * 32} if "{id}" in route.ok().path else {}
            answer = route.ok().Case(path_parameters=names).call_and_validate(base_url=guarded.url)
            assert answer.status_code == (200 if route.ok().path == "/health" else 401)


def test_the_page_of_the_document_can_send_the_token_and_says_in_words_what_each_answer_is():
    """/docs shows Authorize for a security scheme, and offers examples: they name a version that loads on any machine."""
    document = create_app({}).openapi()
    assert [scheme["scheme"] for scheme in document["components"]["securitySchemes"].values()] == ["bearer"]
    operations = {(path, method): one for path, methods in document["paths"].items() for method, one in methods.items()}
    assert {place for place, one in operations.items() if "security" in one} == {
        ("/rollout", "put"),
        ("/records", "post"),
    }
    assert "Successful Response" not in {
        answer["description"] for one in operations.values() for answer in one["responses"].values()
    }
    (example,) = document["components"]["schemas"]["RolloutIn"]["examples"]
    schemas.RolloutIn(**example)
    assert example["candidate"] == "yolov3-tiny/opencv-f32"
