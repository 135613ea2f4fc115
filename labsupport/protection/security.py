"""Check bearer tokens and where requests come from. Accept a separate read-only token, for Prometheus.

On loopback every user of the machine may send requests without a token, except requests that change the state. Pages of
other sites are refused. Beyond loopback every path but `/health` needs a bearer token (RFC 6750). The token comes from the
environment variable `LAB_TOKEN`, or from the file named by `LAB_TOKEN_FILE`. It is checked before the body is read. The
read-only token comes from `LAB_READ_TOKEN` (or `LAB_READ_TOKEN_FILE`).
"""

import asyncio
import hmac
import ipaddress
import logging
import os
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labsupport.access import OWNER, READER, Person

HOW = "start the server with LAB_TOKEN, and send that token in the header Authorization: Bearer ..."
OPEN = ("/health",)  # reports only that the process is alive
MIN_LENGTH = 16
TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750: characters allowed in a header, a URL and a proxy's settings
READS = ("GET", "HEAD")
FRAMES = "frame-ancestors 'none'"
HEADERS = {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer"}
OTHER_SITE = "this came from a page of another site: open the server's own pages, or call it from a program"
OTHER_HOST = (
    "this server answers for localhost and 127.0.0.1 only: ask for one of these, or send the token in LAB_TOKEN"
)
FREE = 10  # wrong tokens from one address within `WINDOW`: the answers to the next ones are delayed
WINDOW, WAIT = 60.0, 1.0  # seconds
WAITING = 32  # answers that may be delayed at the same time: an attacker must not hold all connections
ADDRESSES = 1_000  # addresses that are remembered

logger = logging.getLogger(__name__)


class TokenMissing(RuntimeError):
    """The server needs a token and has none, or has a token that cannot be used."""


def token() -> str | None:
    """Return the bearer token in `LAB_TOKEN` or in the file `LAB_TOKEN_FILE`, or None if neither is set.

    Spaces and line ends around it are removed, and an empty variable counts as unset. Raises `TokenMissing` for a token
    that is too short or has characters not allowed in a header, and for a file that cannot be read.
    """
    return _secret("LAB_TOKEN")


def read_token() -> str | None:
    """Return the read-only token in `LAB_READ_TOKEN` or in the file `LAB_READ_TOKEN_FILE`, or None.

    Raises `TokenMissing` as `token` does, and if both tokens are the same.
    """
    value = _secret("LAB_READ_TOKEN")
    if value is not None and value == token():
        raise TokenMissing("LAB_READ_TOKEN is the same as LAB_TOKEN: give who only reads a token of its own")
    return value


def _secret(name: str) -> str | None:
    value, path = os.environ.get(name, "").strip(), os.environ.get(f"{name}_FILE", "").strip()
    if value and path:
        raise TokenMissing(f"{name} and {name}_FILE are both set: unset one of them")
    if path:
        try:
            value = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            shown = repr(path) if "/" in path else "no path"  # it may be the token itself
            raise TokenMissing(f"{name}_FILE is {shown}, which cannot be read: {reason}") from None
        if not value:
            raise TokenMissing(f"{name}_FILE is {path!r}, which is empty: write the token into it")
    if value and (problem := unfit(value)):
        raise TokenMissing(f"{name} {problem}")
    return value or None


def unfit(value: str) -> str:
    """Return the problem of a token, and what to give instead. Return an empty text for a good token.

    >>> unfit("short"), unfit("0123456789abcdef")
    ('has 5 characters: take at least 16 that nobody can guess (openssl rand -hex 16)', '')
    """
    if not TOKEN.fullmatch(value):
        return "may hold ASCII letters, digits and - . _ ~ + / only, and = at its end (openssl rand -hex 16)"
    if len(value) < MIN_LENGTH:
        return f"has {len(value)} characters: take at least {MIN_LENGTH} that nobody can guess (openssl rand -hex 16)"
    return ""


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server bound to `host`.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0"), is_loopback("")
    (True, True, False, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def required_token(host: str) -> str | None:
    """Return the token that a server bound to `host` must require; None on loopback.

    Raises `TokenMissing` if a token is needed and missing. Raises it for a token that cannot be used, also on loopback.

    >>> required_token("127.0.0.1")
    """
    value, _ = token(), read_token()
    if is_loopback(host):
        return None
    if value is None:
        raise TokenMissing(
            f"bound to {host!r} the server can be reached from outside: set LAB_TOKEN to a secret of at least "
            f"{MIN_LENGTH} characters (openssl rand -hex 16), or stay on 127.0.0.1"
        )
    return value


def bearer(headers: Headers) -> str | None:
    """Return the bearer token in the headers, which may be wrong; None if there is none."""
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    return secret.strip(" ") if scheme.lower() == "bearer" else None


def carries(headers: Headers, token: str | None) -> bool:
    """Return whether the headers carry this token, compared in constant time. Return False for None."""
    secret = bearer(headers)
    return token is not None and secret is not None and hmac.compare_digest(secret.encode(), token.encode())


def sender(scope: Scope) -> Person | None:
    """Return the person who sends a request: as a guard found out, else the holder of one of the server's tokens."""
    state = scope.get("state") or {}
    if "person" in state:
        person: Person | None = state["person"]
        return person
    headers = Headers(scope=scope)
    if bearer(headers) is None:
        return None
    if carries(headers, token()):
        return OWNER
    return READER if carries(headers, read_token()) else None


def may(scope: Scope, what: str) -> bool:
    """Return whether the sender of a request is known, and has a role that allows `what` (`access.users`)."""
    person = sender(scope)
    return person is not None and person.may(what)


class WrongTokens:
    """Answer requests without the right token. Count and log them. Delay the answers to an address with many wrong tokens.

    A request with the right token is never delayed, from any address. The log contains the address and never the token.
    """

    def __init__(self, count: Callable[[str], None] = lambda reason: None) -> None:
        """Call `count` with "missing" or "wrong" for each such request."""
        self.count, self.waiting = count, 0
        # address -> time of the first wrong token, number of wrong tokens
        self._seen: dict[str, tuple[float, int]] = {}

    async def refuse(self, scope: Scope, receive: Receive, send: Send, text: str = HOW) -> None:
        if "authorization" not in Headers(scope=scope):
            self.count("missing")
        else:
            self.count("wrong")
            if self._number((scope.get("client") or ["unknown"])[0]) > FREE and self.waiting < WAITING:
                self.waiting += 1
                try:
                    await asyncio.sleep(WAIT)
                finally:
                    self.waiting -= 1
        await JSONResponse({"detail": text}, 401, {"WWW-Authenticate": "Bearer"})(scope, receive, send)

    def _number(self, address: str) -> int:
        """Return how many wrong tokens came from an address within the window. Log the 1st, 10th, 100th ..."""
        now = time.monotonic()
        since, number = self._seen.pop(address, (now, 0))
        since, number = (since, number + 1) if now - since < WINDOW else (now, 1)
        self._seen[address] = since, number
        if len(self._seen) > ADDRESSES:
            del self._seen[next(iter(self._seen))]
        if re.fullmatch("10*", str(number)):
            logger.warning("a wrong token from %s, number %d within %d s", address, number, WINDOW)
        return number


class TokenGuard:
    """Pass a request that carries the token, or the read-only token and only reads. Check before the body is read.

    The app finds the sender in the request's state, so that it does not look at tokens that may have changed meanwhile.
    """

    def __init__(self, app: ASGIApp, token: str, read_token: str | None = None) -> None:
        self.app, self.token, self.read_token = app, token, read_token
        self.state = getattr(app, "state", None)
        self.wrong_tokens: WrongTokens = getattr(self.state, "wrong_tokens", None) or WrongTokens()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN:
            person = self._sender(Headers(scope=scope))
            if person is None or (person is READER and scope["method"] not in READS):
                return await self.wrong_tokens.refuse(scope, receive, send)
            scope.setdefault("state", {})["person"] = person
        await self.app(scope, receive, send)

    def _sender(self, headers: Headers) -> Person | None:
        if carries(headers, self.token):
            return OWNER
        return READER if carries(headers, self.read_token) else None


class SiteGuard:
    """Refuse requests that a page of another site makes through a visitor's browser, and forbid to show answers in a frame.

    With `local` it also refuses every `Host` that is not this machine's, because a foreign name may point at 127.0.0.1 (DNS
    rebinding). A request with a valid token may use any name: `known` returns whether the headers carry one.
    """

    def __init__(
        self,
        app: ASGIApp,
        local: bool,
        known: Callable[[Headers], bool] | None = None,
        noted: Callable[[Scope, Send], Send] = lambda scope, send: send,
    ) -> None:
        self.app, self.local, self.noted = app, local, noted
        self.known = known or partial(carries, token=token() if local else None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                message.setdefault("headers", [])
                _protect(MutableHeaders(scope=message))
            await send(message)

        headers = Headers(scope=scope)
        if self.local and not _is_own(headers.get("host", "")) and not self.known(headers):
            return await JSONResponse({"detail": OTHER_HOST}, 421)(scope, receive, self.noted(scope, protected))
        if _from_other_site(scope["method"], headers):
            return await JSONResponse({"detail": OTHER_SITE}, 403)(scope, receive, self.noted(scope, protected))
        await self.app(scope, receive, protected)


def _protect(headers: MutableHeaders) -> None:
    """Add headers to an answer that forbid frames and other misuse."""
    policy = headers.get("content-security-policy", "")
    if "frame-ancestors" not in policy:
        headers["content-security-policy"] = f"{policy}; {FRAMES}" if policy else FRAMES
    for name, value in HEADERS.items():
        headers.setdefault(name, value)


def _is_own(host: str) -> bool:
    """Return whether a `Host` header names this machine: an address of loopback, or localhost, with any port."""
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def _from_other_site(method: str, headers: Headers) -> bool:
    """Return whether a page of another site made a browser send this. Following a link from there is allowed.

    Browsers report this in Sec-Fetch-Site. Old browsers, and all browsers over plain HTTP beyond loopback, only send Origin.
    """
    if (site := headers.get("sec-fetch-site")) is not None:
        link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        return site not in ("same-origin", "none") and not (link and method in READS)
    origin = headers.get("origin")
    return origin is not None and method not in READS and origin.partition("://")[2] != headers.get("host")
