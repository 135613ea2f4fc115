"""Answer HTTP in an actor of Ray Serve, without Ray Serve's proxy.

The proxy would read each request, send it to the front, and pass the answer back: one more hop, with its own CPU time.
"""

import socket
import threading
import time
from collections.abc import Callable
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from labsupport import background, loopback
from labsupport.protection import connections


class Front:
    """A deployment that listens itself, with the limits of `protection.connections`.

    `make` returns the app; `host` and `port` are the address. All fronts of a machine listen on the same one, and the
    kernel gives each connection to one of them. Raises OSError if the address is taken, and RuntimeError if the app does
    not start.
    """

    def __init__(self, make: Callable[[], ASGIApp], host: str, port: int) -> None:
        family, address = loopback.resolved(host, port)
        app = make()
        listening = socket.create_server(address, family=family, backlog=2048, reuse_port=True)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # without it a small answer waits 40 ms
        self._server = uvicorn.Server(connections.Config(app, files=None))
        self._thread: threading.Thread = background.start(partial(self._server.run, [listening]), "front")
        while not self._server.started and self._thread.is_alive():
            time.sleep(0.005)
        if not self._server.started:
            raise RuntimeError("the app of this front did not start: the log of this process says why")

    def check_health(self) -> None:
        """Raise RuntimeError if the server has stopped. Ray Serve asks, and then starts another front in its place."""
        if not self._thread.is_alive():
            raise RuntimeError("this front does not listen any more")

    def __del__(self) -> None:
        """Finish the requests under way. Ray Serve calls this before it ends the process."""
        if server := getattr(self, "_server", None):
            server.should_exit = True
            self._thread.join()
