"""Find the port and the address of the lab's server on this machine, and send requests to it without a proxy."""

import os
import socket
from typing import Any

from labsupport import arguments

ADDRESSES = ("localhost", "127.0.0.1", "::1")
DEFAULT_PORT, MAX_PORT = 8000, 65_535


def ask_directly() -> None:
    """Let this process, and those that it starts, send requests to this machine without a proxy.

    Adds the loopback addresses to `NO_PROXY` and keeps its entries. The proxies for all other servers stay.
    """
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    names = [name.strip() for name in listed.split(",") if name.strip()]
    if "*" not in names and (new := [name for name in ADDRESSES if name not in names]):
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join([*names, *new])


def default_port() -> int:
    """Return the port of the lab's server: the environment variable `LAB_PORT`, or 8000. Raises ValueError."""
    port = arguments.variable("LAB_PORT", lambda text: checked_port(int(text)), "a whole number from 0 to 65,535")
    return DEFAULT_PORT if port is None else port


def checked_port(port: int) -> int:
    """Return `port` as an int. Raises ValueError for an invalid port."""
    return arguments.number("port", port, 0, MAX_PORT, whole=True)


def resolved(host: str, port: int) -> tuple[socket.AddressFamily, tuple[Any, ...]]:
    """Return the address family and the socket address of a host, IPv4 if it has both. Raises ValueError."""
    try:
        addresses = socket.getaddrinfo(arguments.text("host", host, 255), port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ValueError(
            f"host={arguments.shown(host)}: give an address of this machine, such as 127.0.0.1, ::1 or 0.0.0.0"
        ) from None
    family, _, _, _, address = min(addresses, key=lambda one: one[0] != socket.AF_INET)
    return family, address
