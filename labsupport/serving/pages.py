"""Serve the pages for people: the start page, the dashboard, and the detector in the browser."""

import html
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse

from labsupport.monitoring import MINUTES, Live
from labsupport.serving import browser_page, errors

STATIC = Path(__file__).parent / "static"
DASHBOARD = {  # the schema of its data
    "type": "object",
    "required": ["now", "since", "versions", "message", "rows", "alarms", "spans", "rollouts"],
}
PAGE_HEADERS = {  # whatever a version's name may hold, the page talks to this server only
    "Content-Security-Policy": "default-src 'none'; connect-src 'self'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
    "Cache-Control": "no-cache",
}


if TYPE_CHECKING:  # the default below

    class Minutes(IntEnum):
        last_15 = 15

else:
    Minutes = IntEnum("Minutes", {f"last_{minutes}": minutes for minutes in MINUTES})


def add_start_route(app: FastAPI) -> None:
    @app.get(
        "/",
        tags=["status"],
        summary="Open the start page",
        response_description="the page, or JSON",
        description="A browser gets a page that links to all others. A program gets JSON.",
        response_class=Response,
        responses={
            200: {
                "content": {
                    "application/json": {"schema": {"type": "object", "required": ["message", "docs"]}},
                    "text/html": {"schema": {"type": "string"}},
                }
            }
        },
    )
    def start(request: Request) -> Response:
        base = request.scope.get("root_path", "") + "/"
        vary = {"Vary": "Accept"}
        if "text/html" in request.headers.get("accept", ""):
            page = (STATIC / "start.html").read_text(encoding="utf-8")
            page = page.replace("{{base}}", base).replace("{{url}}", html.escape(f"{request.base_url}"))
            return HTMLResponse(page, headers={**PAGE_HEADERS, **vary})
        message = f"The detector is up. Try it in the browser: {base}docs"
        return JSONResponse({"message": message, "docs": f"{base}docs"}, headers=vary)


def add_dashboard_routes(app: FastAPI, live: Live) -> None:
    @app.get(
        "/dashboard",
        tags=["status"],
        summary="Open the dashboard",
        response_description="the page",
        description="One live page with charts. On an address other than loopback it needs the token in a header, as every "
        "route does. A browser does not send it, so a proxy in front of the server has to add it.",
        response_class=Response,
        responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}},
    )
    def dashboard() -> HTMLResponse:
        return HTMLResponse((STATIC / "dashboard.html").read_text(encoding="utf-8"), headers=PAGE_HEADERS)

    @app.get(
        "/dashboard/data",
        tags=["status"],
        summary="Get the numbers of the dashboard",
        response_description="the numbers",
        response_class=Response,
        responses={200: {"content": {"application/json": {"schema": DASHBOARD}}}, **errors.refusals(422, 503)},
    )
    def data(minutes: Minutes = Minutes.last_15) -> Response:
        return Response(live.text(minutes), media_type="application/json", headers={"Cache-Control": "no-store"})


def add_browser_routes(app: FastAPI) -> None:
    @app.get(
        "/browser",
        tags=["predictions"],
        summary="Open the detector in the browser",
        response_description="the page",
        description="One page that detects in the browser itself: no picture is sent. After the first visit it works with "
        "the server stopped. Needs `make browser`, and says so without it.",
        response_class=Response,
        responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}},
    )
    def page() -> HTMLResponse:
        return HTMLResponse(browser_page.page(), headers=browser_page.PAGE_HEADERS)

    @app.get("/browser/{name:path}", include_in_schema=False)  # what that page is made of
    def file(name: str, v: str | None = None) -> Response:
        content, media_type, headers = browser_page.file(name, v)
        if isinstance(content, Path):
            return FileResponse(content, media_type=media_type, headers=headers)
        return Response(content, media_type=media_type, headers=headers)
