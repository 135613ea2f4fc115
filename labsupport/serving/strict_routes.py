"""Refuse unknown or repeated parameters, fields and keys, bodies that the route does not read, and changes without token.

If the server ignored a misspelt `?conf=0.9`, it would answer for another confidence than the client asked for. So every
route of the app is a `StrictRoute`. Unknown headers are exempt, because proxies and browsers add their own.
"""

import json
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException as Refusal  # what Starlette raises; FastAPI's own is a subclass
from starlette.formparsers import MultiPartParser

from labsupport.access import CHANGE
from labsupport.arguments import shown
from labsupport.protection import security

logging.getLogger("python_multipart").setLevel(
    logging.ERROR
)  # a damaged form is the client's fault: the answer says so
MultiPartParser.spool_max_size = 0  # uploads stay in memory, where they are counted (`memory.COPIES`), and need no disk
FILE = "file"  # the one field of a form
NOT_JSON = "the body is not JSON that can be read"
JSON = "send JSON with the header Content-Type: application/json"
CUT_OFF = "it is damaged or cut off"
EMPTY_BODY = "this call takes no body: send its parameters in the address"


class StrictRoute(APIRoute):
    """A route that answers 422 to input that it does not read. The error names the input that it does read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle, names = super().get_route_handler(), sorted(_names(self.dependant, "query_params"))
        headers = sorted(_names(self.dependant, "header_params"))

        async def handle_strictly(request: Request) -> Response:
            _check_names([name for name, _ in request.query_params.multi_items()], names)
            _check_names([name for name in request.headers if name in headers], headers)
            if self.body_field is None and _has_body(request):
                raise HTTPException(422, EMPTY_BODY)
            return await handle(StrictRequest(request.scope, request.receive))

        return handle_strictly


class StrictRequest(Request):
    """A request whose form or JSON is checked as a whole: no unknown field, and no repeated key."""

    is_form = False

    async def body(self) -> bytes:
        if _has_body(self) and not _is_json(self.headers.get("content-type", "")):
            raise HTTPException(422, JSON)
        return await super().body()

    async def json(self) -> Any:
        try:
            return json.loads(await self.body(), object_pairs_hook=_unique, parse_constant=_refuse_constant)
        except json.JSONDecodeError as error:
            problem = f"{error.msg} at character {error.pos:,}"
        except UnicodeError:
            problem = "it is not UTF-8"
        except (ValueError, RecursionError):
            problem = "a number in it is too long, or it is nested too deeply"
        raise HTTPException(422, f"{NOT_JSON}: {problem}")

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the body. Raises HTTPException if a form lacks its end, because the parser would accept it as complete."""
        _, options = parse_options_header(self.headers.get("content-type"))
        end, last, ended = b"--" + options.get(b"boundary", b"") + b"--", b"", not self.is_form
        async for piece in super().stream():
            ended = ended or end in last + piece[: len(end)] or end in piece
            last = (last + piece[-len(end) :])[-len(end) :]
            yield piece
        if not ended:
            raise HTTPException(400, CUT_OFF)

    async def form(self, **limits: int) -> FormData:  # type: ignore[override]  # FastAPI only awaits it
        """Return the form with its one file. Raises an HTTPException that says what to send."""
        address = f"http://HOST:PORT{self.scope['path']}"
        cure = f"Send a multipart form with the picture in the field '{FILE}': curl -F {FILE}=@picture.jpg {address}"
        if not self.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise HTTPException(422, f"the body is not a multipart form. {cure}")
        self.is_form = True
        try:
            form = await super().form(**limits)
        except Refusal as error:
            if error.status_code != 400:  # too large or too slow: the message says so
                raise
            raise HTTPException(400, f"the form cannot be read: {_reason(error.detail, **limits)}. {cure}") from None
        if problem := _problem(form):
            await form.close()
            raise HTTPException(422, f"{problem}. {cure}")
        return form


BEARER = HTTPBearer(auto_error=False, scheme_name="token", description="LAB_TOKEN, or a person's own token")


def change_allowed(request: Request, _: Annotated[object, Depends(BEARER)] = None) -> None:
    """Raise a 401 unless the sender may change the server's state. A server without a token refuses every change."""
    if not security.may(request.scope, CHANGE):
        raise HTTPException(401, security.HOW, {"WWW-Authenticate": "Bearer"})


def _names(dependant: Dependant, kind: str) -> Iterator[str]:
    yield from (field.alias for field in getattr(dependant, kind))
    for one in dependant.dependencies:
        yield from _names(one, kind)


def _check_names(names: Iterable[str], known: list[str]) -> None:
    for name, count in Counter(names).items():
        if name not in known:
            cure = f"this call reads {', '.join(known)}" if known else "this call reads none"
            raise HTTPException(422, f"unknown parameter {shown(name)}: {cure}")
        if count > 1:
            raise HTTPException(422, f"{name}: it came {count} times, send it once")


def _has_body(request: Request) -> bool:
    return request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind.startswith("application/") and (kind.endswith(("/json", "+json")))


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return the pairs of a JSON object as a dictionary. Raises HTTPException for a key that comes twice."""
    keys = dict(pairs)
    if len(keys) < len(pairs):
        name = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise HTTPException(422, f"{NOT_JSON}: the key {shown(name)} comes twice")
    return keys


def _refuse_constant(name: str) -> None:
    raise HTTPException(422, f"{NOT_JSON}: {name} is not a number in JSON")


def _reason(detail: str, max_fields: int, max_files: int, max_part_size: int) -> str:
    """Return why a form was refused. The library's own words round 1,000 bytes to "0KB"."""
    if "maximum size" in detail:
        return f"a field that is not a file has more than {max_part_size:,} bytes"
    if "Too many" in detail:
        return f"it has more than {max_files} files or {max_fields} other fields"
    if "boundary" in detail:
        return "its header Content-Type names no boundary, so leave that header to your program"
    return CUT_OFF


def _problem(form: FormData) -> str:
    """Return a text about the problem of a form that should hold one file, or an empty text."""
    for name in form:
        if name != FILE:
            return f"unknown field {shown(name)}: this form has one field, and parameters belong into the address"
    match form.getlist(FILE):
        case []:
            return f"there is no field '{FILE}'"
        case [str()]:
            return f"the field '{FILE}' holds text and not a file (curl sends a file if its name follows an @)"
        case [_]:
            return ""
        case several:
            return f"{FILE}: {len(several)} pictures came, send one at a time"
