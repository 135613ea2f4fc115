"""Who may ask, and for what.

On loopback the lab is open to whoever sits at the machine, except for what changes its state. Beyond loopback everything but
`/health` needs a bearer token (RFC 6750), which comes from the environment variable `LAB_TOKEN`. It is looked at before a
byte of the body is read.
"""

import hmac
import ipaddress
import os

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

HOW = "start the server with LAB_TOKEN, and send that token in the header Authorization: Bearer ..."
OPEN = ("/health",)  # says that the process is alive, and nothing else
MIN_LENGTH = 16


class TokenMissing(RuntimeError):
    """The server would be reachable from outside without a token."""


def token() -> str | None:
    """The bearer token in `LAB_TOKEN`, None if there is none. Raises `TokenMissing` if it is too short to be one."""
    value = os.environ.get("LAB_TOKEN")
    if value and len(value) < MIN_LENGTH:
        raise TokenMissing(f"LAB_TOKEN has {len(value)} characters: take at least {MIN_LENGTH} that nobody can guess")
    return value or None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0"), is_loopback("")
    (True, True, False, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def required_token(host: str) -> str | None:
    """The token that a server bound to `host` must demand: None on loopback. Raises `TokenMissing`.

    >>> required_token("127.0.0.1")
    """
    if is_loopback(host):
        return None
    if (value := token()) is None:
        raise TokenMissing(
            f"bound to {host!r} the server can be reached from outside: set LAB_TOKEN to a secret of at least "
            f"{MIN_LENGTH} characters (openssl rand -hex 16), or stay on 127.0.0.1"
        )
    return value


def carries(headers: Headers, token: str | None) -> bool:
    """Whether the headers carry this token; compared in constant time. Nobody carries a token that there is not."""
    given = headers.get("authorization", "").encode()
    return token is not None and hmac.compare_digest(given, f"Bearer {token}".encode())


class TokenGuard:
    """Lets a request through if it carries the token; compared in constant time, before the body is read."""

    def __init__(self, app, token: str) -> None:
        self.app, self.token = app, token

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN and not carries(Headers(scope=scope), self.token):
            refusal = JSONResponse({"detail": HOW}, 401, {"WWW-Authenticate": "Bearer"})
            return await refusal(scope, receive, send)
        await self.app(scope, receive, send)
