"""Let people do what their role allows, and write each request of theirs, and each refusal, to the audit trail."""

import time
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labsupport.access import (
    CHANGE,
    OWNER,
    PREDICT,
    READ,
    READER,
    Access,
    AuditUnavailable,
    Entry,
    Person,
    UsersUnavailable,
)
from labsupport.protection import security
from labsupport.protection.security import OPEN, READS, WrongTokens, bearer, carries

# what a path needs, by its first part. Other paths are for everybody who may use the server, but only to read them.
READING = {"metrics": READ, "dashboard": READ, "rollout": READ, "predictions": PREDICT}
WRITING = dict.fromkeys(("predict", "detect", "count-cars", "count-apples", "count-plants", "feedback"), PREDICT)
LONGEST = 200  # characters of a path in the trail
NOT_WRITTEN = "the audit trail cannot be written, so this is not answered: the server's log says why"
INVALID = (
    "send a valid token in the header Authorization: Bearer ...: the one that you sent, if any, is wrong or revoked"
)
UNKNOWN_USERS = "the list of users cannot be read, so nobody can be told apart: the server's log says why"


def needed(method: str, path: str) -> str | None:
    """Return what a sender must be allowed to do for this request; None if every sender may do it.

    >>> needed("POST", "/predict"), needed("PUT", "/rollout"), needed("GET", "/rollout"), needed("HEAD", "/docs")
    ('predict', 'change', 'read', None)
    """
    first = path.strip("/").partition("/")[0]
    return READING.get(first) if method in READS else WRITING.get(path.removeprefix("/"), CHANGE)


class PeopleGuard:
    """Find out who sends a request, refuse what the role does not allow, and write to the audit trail.

    The sender is in the scope as `state.person`, for the routes: a `Person`, or None for a request without a token on
    loopback. Checks come before the body is read. The trail begins with the first person. From then on it gets an entry for
    each request with a valid token and for each refusal, before the answer is sent. A change of the rollout, records and
    feedback also have an entry before they begin. Requests without a token that are answered have none. While the trail
    cannot be written, people get 503.
    """

    def __init__(self, app: ASGIApp, access: Access, token: str | None, read_token: str | None, local: bool) -> None:
        self.app, self.access, self.local = app, access, local
        self.token, self.read_token = token, read_token
        self.state = getattr(app, "state", None)
        self.wrong_tokens: WrongTokens = getattr(self.state, "wrong_tokens", None) or WrongTokens()
        self.strangers = Strangers()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, root = scope.get("path", ""), getattr(self.state, "root_path", "")
        path = path.removeprefix(root) if path.startswith(f"{root}/") else path  # as `serving.app.Prefix` reads it
        if scope["type"] != "http" or path in OPEN:
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        try:
            person, active = self.sender(headers), self.access.active
        except OSError:  # also of the key folder
            return await JSONResponse({"detail": UNKNOWN_USERS}, 503)(scope, receive, send)
        scope.setdefault("state", {})["person"] = person
        station = "x-record-id" in headers  # it hands in the record of this prediction later
        need = CHANGE if station else needed(scope["method"], path)
        wrong = bearer(headers) is not None and (active or self.token is not None)
        changes = scope["method"] == "POST" and path == "/feedback"
        unknown = person is None and (not self.local or wrong or need == CHANGE)
        noted = Noted(self, scope, send, person, active)
        if unknown:
            await self.wrong_tokens.refuse(scope, receive, noted, INVALID if active else security.HOW)
        elif person and need and not person.may(need):
            await JSONResponse({"detail": f"{person.name} is a {person.role}, who may not do this"}, 403)(
                scope, receive, noted
            )
        else:
            await self._let_in(scope, receive, noted, begins=needed(scope["method"], path) == CHANGE or changes)

    def sender(self, headers: Headers) -> Person | None:
        """Return the person whose token the headers carry, or None. Raises `UsersUnavailable`."""
        if carries(headers, self.token):
            return OWNER
        if carries(headers, self.read_token):
            return READER
        secret = bearer(headers)
        return self.access.users.who(secret) if secret else None

    def known(self, headers: Headers) -> bool:
        """Return whether the headers carry a valid token. While the list of users cannot be read, none is valid."""
        with suppress(UsersUnavailable):
            return self.sender(headers) is not None
        return False

    def noted(self, scope: Scope, send: Send) -> Send:
        """Return a `send` that writes a refusal of `SiteGuard` to the trail before it sends it."""
        try:
            person, active = self.sender(Headers(scope=scope)), self.access.active
        except OSError:
            return send
        scope.setdefault("state", {})["person"] = person
        return Noted(self, scope, send, person, active)

    async def _let_in(self, scope: Scope, receive: Receive, noted: "Noted", begins: bool) -> None:
        try:
            if begins and not await noted.note("begun"):
                return
            await self.app(scope, receive, noted)
        finally:
            await noted.end()


class Strangers:
    """Limit the entries for senders without a valid token to `MOST` a minute, so that they cannot fill the disk."""

    MOST, WINDOW = 600, 60.0  # entries, seconds

    def __init__(self) -> None:
        self.since, self.count, self.left_out = 0.0, 0, 0

    def effect(self, status: str) -> str | None:
        """Return the effect to write for one more refusal; None if there were too many within the last minute."""
        if (now := time.monotonic()) - self.since > self.WINDOW:
            self.since, self.count = now, 0
        if self.count >= self.MOST:
            self.left_out += 1
            return None
        self.count += 1
        left_out, self.left_out = self.left_out, 0
        return f"{status}, after {left_out:,} refusals that are not listed" if left_out else status


class Noted:
    """Send an answer once the audit trail has its entry. If the trail cannot be written, send 503 in its place."""

    def __init__(self, guard: PeopleGuard, scope: Scope, send: Send, person: Person | None, active: bool) -> None:
        self.guard, self.scope, self.send, self.person, self.active = guard, scope, send, person, active
        self.answered = self.failed = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.answered = True
            if not await self.note(str(message["status"]), dict(message.get("headers", ()))):
                return
        if not self.failed:
            await self.send(message)

    async def note(self, effect: str, headers: dict[bytes, bytes] | None = None) -> bool:
        """Write an entry, if this request needs one. If that fails, answer 503 and return False."""
        text: str | None = effect if self.active else None
        if self.active and self.person is None:
            text = self.guard.strangers.effect(effect) if effect in ("401", "403", "421") else None
        if text is None:
            return True
        try:
            await self.guard.access.trail.write(self._entry(text, headers or {}))
        except AuditUnavailable:
            self.answered = self.failed = True
            await JSONResponse({"detail": NOT_WRITTEN}, 503)(self.scope, _nothing, self.send)
            return False
        return True

    async def end(self) -> None:
        """Write an entry for a request that ended without an answer: its client is gone, or the server stops."""
        if not self.answered:
            self.failed = True  # nobody is there to whom a 503 could be sent
            await self.note("no answer")

    def _entry(self, effect: str, headers: dict[bytes, bytes]) -> Entry:
        state, address = self.scope["state"], (self.scope.get("client") or ["unknown"])[0]
        about = state.get("object") or headers.get(b"x-prediction-id", b"").decode() or None
        id, role = (self.person.id, self.person.role) if self.person else (None, None)
        path = self.scope.get("raw_path", b"").decode("latin-1")[:LONGEST]  # still encoded: no line ends, no colours
        return Entry(time.time(), id, role, address, f"{self.scope['method']} {path}", about, effect)


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
