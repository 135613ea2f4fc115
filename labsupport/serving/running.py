"""Start and stop a server from a notebook cell.

`serve` runs an app on its own thread, so that the notebook can call it. With `block=True` it waits until it is
interrupted. It takes any ASGI app: one from `serving.create_app`, or one that a notebook builds.
"""

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal, overload

import uvicorn
from starlette.types import ASGIApp
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from labsupport import arguments, background, loopback
from labsupport.access import tls_files
from labsupport.protection import PeopleGuard, connections, security

MADE = "made"  # the file by which a worker says that it has made its app, beside the metrics


class PortTaken(OSError):
    """Raised if another program listens on the requested port."""


class RunningServer:
    """A server on a thread of this process. It stops with `stop()`, at the end of a `with` block, or with the process.

    >>> import requests
    >>> from labsupport.serving import create_app
    >>> with serve(create_app({}), port=0) as server:
    ...     requests.get(server.url + "/health", timeout=5).json()
    {'status': 'alive'}
    """

    def __init__(self, app: ASGIApp, listening: socket.socket, files: tls_files.Files | None = None) -> None:
        self.host, self.port = listening.getsockname()[:2]
        self.url = _url(listening, files)
        self._server = uvicorn.Server(connections.Config(app, files))
        self._ended = threading.Event()
        loopback.ask_directly()
        self._thread = background.start(partial(self._run, listening), f"server on port {self.port}")
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.005)
        if not self._server.started:
            listening.close()
            raise RuntimeError("the server did not start: its own message is above")

    def _run(self, listening: socket.socket) -> None:
        try:
            with contextlib.suppress(SystemExit):  # uvicorn's way to say that an app did not start
                self._server.run([listening])
        finally:
            _running.discard(self)
            self._ended.set()

    def stop(self) -> None:
        """Finish the requests under way, then stop listening. Stopping twice is fine."""
        self._server.should_exit = True
        self._thread.join()

    def wait(self) -> None:
        """Return when the server has stopped; an interrupt ends the waiting, not the server."""
        self._ended.wait()  # an interrupted join would take the thread for ended (Python < 3.13)

    def __enter__(self) -> "RunningServer":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<RunningServer {self.url} {'running' if self._thread.is_alive() else 'stopped'}>"


_running: set[RunningServer] = set()  # those that `serve` started, so that a cell can be run again


@overload
def serve(
    app: ASGIApp,
    host: str = ...,
    port: int | None = ...,
    block: Literal[False] = ...,
    *,
    certfile: str | Path | None = ...,
    keyfile: str | Path | None = ...,
) -> RunningServer: ...


@overload
def serve(
    app: ASGIApp,
    host: str = ...,
    port: int | None = ...,
    *,
    block: Literal[True],
    certfile: str | Path | None = ...,
    keyfile: str | Path | None = ...,
) -> None: ...


def serve(
    app: ASGIApp,
    host: str = "127.0.0.1",
    port: int | None = None,
    block: bool = False,
    *,
    certfile: str | Path | None = None,
    keyfile: str | Path | None = None,
) -> RunningServer | None:
    """Run an app: in the background, or with `block=True` until the kernel is interrupted.

    `port=None` is 8000, or the port in `LAB_PORT`; `port=0` is any free port. If a server that this process started has
    the port, it is stopped first, so a cell can be run twice. Beyond loopback every request must carry the token in
    `LAB_TOKEN`. With `certfile` and `keyfile` (PEM) the server speaks HTTPS. If a proxy is set, this process no longer uses
    it for its own machine (`loopback.ask_directly`). Raises `PortTaken` if the port belongs to another program,
    `security.TokenMissing` beyond loopback without a token, ValueError for an invalid app, host, port, certificate or key,
    and OSError for an address that this machine does not have.
    """
    port = loopback.default_port() if port is None else loopback.checked_port(port)
    if not callable(app):
        raise ValueError(f"app={arguments.shown(app)}: give an app, as create_app returns it")
    loopback.resolved(host, port)
    files = tls_files.checked(certfile, keyfile)
    app = guarded(app, host)
    try:
        listening = _listen(host, port)
    except PortTaken:
        if not (servers := _ours(host, port)):
            raise
        for server in servers:
            server.stop()
        listening = _listen(host, port)
    if block:
        _serve_here(app, listening, files)
        return None
    server = RunningServer(app, listening, files)
    _running.add(server)
    return server


def guarded(app: ASGIApp, host: str) -> ASGIApp:
    """Return the app behind a guard that refuses pages of other sites. Beyond loopback it also requires the token.

    Raises `security.TokenMissing`. Without a token the request's `Host` must be this machine, unless the app was made
    for a proxy (`root_path`).
    """
    required, state, known = security.required_token(host), getattr(app, "state", None), None
    local = not (getattr(state, "root_path", "") or required or isinstance(app, security.TokenGuard))
    if access := getattr(state, "access", None):
        app = people = PeopleGuard(app, access, security.token(), security.read_token(), local=required is None)
        return security.SiteGuard(people, local, people.known, people.noted)
    elif required:
        app = security.TokenGuard(app, required, security.read_token())
    return security.SiteGuard(app, local, known)


def _ours(host: str, port: int) -> list[RunningServer]:
    """Return the servers of this process that keep another one from listening on this address."""
    address = loopback.resolved(host, port)[1][0]
    return [
        one for one in _running if one.port == port and (one.host == address or {one.host, address} & {"0.0.0.0", "::"})
    ]


def _listen(host: str, port: int) -> socket.socket:
    family, address = loopback.resolved(host, port)
    both = address[0] == "::" and socket.has_dualstack_ipv6()
    try:
        listening = socket.create_server(address, family=family, backlog=2048, dualstack_ipv6=both)
        # every connection inherits it; without it a small answer waits 40 ms for the client's acknowledgement
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(
                f"port {port} on {host} is taken by another program: stop that one, or take any free port, with "
                "labsupport serve --port 0 in a shell, or with serve(app, port=0) in Python"
            ) from None
        raise OSError(
            f"cannot listen on port {port} of {host} ({os.strerror(error.errno or 0)}): give an address of this machine, "
            "such as 127.0.0.1, ::1 or 0.0.0.0, and a port above 1,023"
        ) from None


def _url(listening: socket.socket, files: tls_files.Files | None) -> str:
    host, port = listening.getsockname()[:2]
    return f"{'https' if files else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


class _Announcing(uvicorn.Server):
    """A server that prints its address once it has started."""

    def __init__(self, config: uvicorn.Config, announcement: str) -> None:
        super().__init__(config)
        self.announcement = announcement

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self.announcement, flush=True)


class _Workers(Multiprocess):
    """Several worker processes. The first one starts alone, because an error in it would occur in all of them.

    A worker that has made its app leaves a file `made`. If the first one ends before, `run` returns and `failed` is
    True.
    """

    def __init__(self, config: uvicorn.Config, listening: socket.socket, made: Path, announcement: str) -> None:
        super().__init__(config, [listening])
        self.made, self.announcement, self.failed = made, announcement, False

    def init_processes(self) -> None:
        number, self.processes_num = self.processes_num, 1
        super().init_processes()
        self.processes_num = number
        while not self.made.exists():
            self.handle_signals()
            self.failed = not self.processes[0].process.is_alive()
            if self.failed or self.should_exit.wait(0.05):
                self.should_exit.set()
                return
        print(self.announcement, flush=True)
        for _ in range(1, number):
            process = Process(self.config, self.sockets)
            process.start()
            self.processes.append(process)


def _serve_here(app: ASGIApp, listening: socket.socket, files: tls_files.Files | None) -> None:
    """Run the server and block until it is interrupted.

    In a notebook the cell waits for a server on a thread, because an event loop already runs there. A nested loop
    (nest_asyncio) would lose the cells that are queued behind this one.
    """
    announcement = f"serving on {_url(listening, files)} until interrupted (in a notebook: Kernel, Interrupt)"
    with contextlib.suppress(KeyboardInterrupt):
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            _Announcing(connections.Config(app, files), announcement).run([listening])
        else:
            with RunningServer(app, listening, files) as server:
                print(announcement, flush=True)
                server.wait()
    print("stopped")


def run(options: dict[str, Any], port: int, workers: int, files: tls_files.Files | None) -> None:
    """Run `labsupport serve`: the app of `serving.worker` in this process, or in `workers` processes, until it is stopped.

    The cores are divided among the workers. With the `files` that `tls_files.checked` returns, the server speaks HTTPS.
    Prints its address once it answers. Raises the errors of `_listen` and of making the app. With several workers these
    errors are printed by a worker, and this function raises SystemExit.
    """
    slots = max(1, (os.cpu_count() or 1) // workers)
    os.environ["LAB_APP_OPTIONS"] = json.dumps({**options, "slots": slots, "workers": workers})
    listening = _listen(options["host"], port)
    announcement = f"serving on {_url(listening, files)} until interrupted"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # to be told to stop is no failure
    with contextlib.suppress(KeyboardInterrupt), listening:
        if workers > 1:
            with tempfile.TemporaryDirectory(prefix="labsupport-metrics-") as folder:
                os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # where every worker counts
                config = connections.Config("labsupport.serving.worker:worker_app", files, workers, factory=True)
                supervisor = _Workers(config, listening, Path(folder, MADE), announcement)
                supervisor.run()
            if supervisor.failed:
                sys.exit(1)
        else:
            config = connections.Config("labsupport.serving.worker:app_from_environment", files, factory=True)
            config.load()
            _Announcing(config, announcement).run([listening])
