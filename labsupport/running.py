"""A server that a notebook cell can start and stop.

`serve` runs an app on a thread of its own, so that the notebook stays free to call it; or blocks, as the lab does. Any ASGI
app will do, the one that a notebook builds in the open as well as `serving.create_app`'s.
"""

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
import tempfile
import threading
import time

import uvicorn
from uvicorn.supervisors import Multiprocess

from labsupport import connections, security

DEFAULT_PORT = 8000


class PortTaken(OSError):
    """Another program listens on the port that was asked for."""


class RunningServer:
    """A server on a thread of this process. Stops with `stop()`, at the end of a `with` block, or with the process.

    >>> import requests
    >>> from labsupport.serving import create_app
    >>> with serve(create_app({}), port=0) as server:
    ...     requests.get(server.url + "/health", timeout=5).json()
    {'status': 'alive'}
    """

    def __init__(self, app, listening: socket.socket) -> None:
        self.host, self.port = listening.getsockname()[:2]
        self.url = f"http://{self.host}:{self.port}"
        self._server = uvicorn.Server(_config(app))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(listening,), daemon=True)
        self._thread.start()
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
            self._ended.set()

    def stop(self) -> None:
        """Finish the requests under way, then stop listening. Stopping twice is fine."""
        self._server.should_exit = True
        self._thread.join()
        _running.pop((self.host, self.port), None)

    def wait(self) -> None:
        """Return when the server has stopped; an interrupt ends the waiting, not the server."""
        self._ended.wait()  # an interrupted join would take the thread for ended (Python < 3.13)

    def __enter__(self) -> "RunningServer":
        return self

    def __exit__(self, *error) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<RunningServer {self.url} {'running' if self._thread.is_alive() else 'stopped'}>"


_running: dict[tuple[str, int], RunningServer] = {}  # so that a cell can be run again


def serve(app, host: str = "127.0.0.1", port: int | None = None, block: bool = False) -> RunningServer | None:
    """Run an app: at once and beside the notebook, or, with `block=True`, until the kernel is interrupted.

    `port=None` is 8000, or what `LAB_PORT` says; `port=0` is any free port. A server that this process already runs there is
    stopped first, so a cell can be run twice. Beyond loopback every request must carry the token in `LAB_TOKEN`.
    Raises `PortTaken` when the port belongs to another program, and `security.TokenMissing` beyond loopback without one.
    """
    port = default_port() if port is None else port
    if (host, port) in _running:
        _running[host, port].stop()
    app = guarded(app, host)
    listening = _listen(host, port)
    if block:
        return _serve_here(app, listening)
    server = RunningServer(app, listening)
    _running[server.host, server.port] = server
    return server


def guarded(app, host: str):
    """Return the app, closed to pages of other sites; beyond loopback, behind a token. Raises `security.TokenMissing`.

    Without a token the request's `Host` must be this machine, unless the app was made for a proxy (`root_path`).
    """
    token = security.required_token(host)
    proxied = getattr(getattr(app, "state", None), "root_path", "")
    if token:
        app = security.TokenGuard(app, token, security.read_token())
    return security.SiteGuard(app, local=not (proxied or isinstance(app, security.TokenGuard)))


def default_port() -> int:
    """Where the lab's server is looked for: 8000, or what the environment variable `LAB_PORT` says."""
    return int(os.environ.get("LAB_PORT", DEFAULT_PORT))


def _listen(host: str, port: int) -> socket.socket:
    try:
        listening = socket.create_server((host, port), backlog=2048)
        # every connection inherits it; without it a small answer waits 40 ms for the client's acknowledgement
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise PortTaken(
            f"port {port} on {host} is taken by another program: stop that one, or use any free port with port=0"
        ) from None


def _config(app, **options) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_level="warning",  # at "info" every request would be printed into whichever cell is running
        log_config=None,  # uvicorn's own would reset the logging of the whole process, the notebook's too
        loop="asyncio",  # and not what else happens to be installed
        http=connections.Connection,
        ws="none",
        h11_max_incomplete_event_size=connections.MAX_HEAD,
        backlog=connections.most(),
        server_header=False,
        timeout_graceful_shutdown=10,
        **options,
    )


def _serve_here(app, listening: socket.socket) -> None:
    """Block as the lab does. In a notebook the cell waits for a server on a thread: an event loop already runs there, and
    one that is run within it (nest_asyncio) loses the cells that queue up behind this one."""
    host, port = listening.getsockname()[:2]
    print(f"serving on http://{host}:{port} until interrupted (in a notebook: Kernel, Interrupt)")
    with contextlib.suppress(KeyboardInterrupt):
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            uvicorn.Server(_config(app)).run([listening])
        else:
            with RunningServer(app, listening) as server:
                server.wait()
    print("stopped")


def run(options: dict, port: int, workers: int) -> None:
    """What `labsupport serve` does: `serving.app_from_environment` in this process, or in several, until told to stop.

    The cores are shared out among the workers.
    """
    slots = max(1, (os.cpu_count() or 1) // workers)
    os.environ["LAB_APP_OPTIONS"] = json.dumps({**options, "slots": slots, "workers": workers})
    listening = _listen(options["host"], port)
    print(f"serving on http://{options['host']}:{listening.getsockname()[1]} until interrupted", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # to be told to stop is no failure
    with contextlib.suppress(KeyboardInterrupt):
        config = _config("labsupport.serving:app_from_environment", factory=True, workers=workers)
        if workers > 1:
            with tempfile.TemporaryDirectory(prefix="labsupport-metrics-") as folder:
                os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # where every worker counts
                Multiprocess(config, sockets=[listening]).run()
        else:
            uvicorn.Server(config).run([listening])
