"""Print one line a request to the console: client, id, method, route, status, latency and model version.

On a terminal the line is easy to read; elsewhere it is JSON. It never contains a picture, a parameter or a token. In a
notebook nothing is printed until `show` is called, because the line would land in whichever cell is running.
"""

import json
import logging
import sys
import time
from typing import Any, TextIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("labsupport.access")
FIELDS = ("client", "id", "method", "route", "status", "latency", "version")


class AccessLog:
    """Logs each request after it was answered. `route` is the template of the route, never the path that the client sent."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not logger.isEnabledFor(logging.INFO):
            return await self.app(scope, receive, send)
        started = time.perf_counter()
        answered: dict[str, Any] = {"status": 500}

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = dict(message.get("headers", ()))
                answered["status"] = message["status"]
                answered["id"] = headers.get(b"x-prediction-id", b"").decode() or None
                answered["version"] = headers.get(b"x-model-version", b"").decode() or None
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", None)
            latency = round(time.perf_counter() - started, 6)
            client = (scope.get("client") or [None])[0]  # behind a proxy, whom the proxy names
            fields = {**answered, "client": client, "method": scope["method"], "route": route, "latency": latency}
            logger.info("request", extra={"fields": {name: fields.get(name) for name in FIELDS}})


class Readable(logging.Formatter):
    """`12:00:01 POST /predict 200 11.3 ms yolov3-tiny/openvino-bf16 4f0c...`"""

    def format(self, record: logging.LogRecord) -> str:
        if not (fields := getattr(record, "fields", None)):
            return super().format(record)
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        words = [
            clock,
            fields["method"],
            fields["route"] or "-",
            fields["status"],
            f"{fields['latency'] * 1000:.1f} ms",
        ]
        return " ".join(str(word) for word in [*words, fields["version"] or "", fields["id"] or ""]).rstrip()


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object a line, with `time` in seconds since the epoch and `latency` in seconds."""

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", None) or {"level": record.levelname, "message": super().format(record)}
        return json.dumps({"time": round(record.created, 3), **fields})


def show(stream: TextIO | None = None) -> None:
    """Print a line for each request from now on to `stream`: plain text if it is a terminal, otherwise JSON."""
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Readable() if stream.isatty() else JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
