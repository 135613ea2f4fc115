"""Run the command that makes certificates for a server on this machine."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from labsupport.cli.app import command


@command
def certificate(
    folder: Annotated[
        Path | None, typer.Argument(help="where to write them; by default ~/.labsupport/certificates")
    ] = None,
    host: Annotated[
        list[str] | None, typer.Option(help="another name or address of the server, besides those of this machine")
    ] = None,
) -> None:
    """Make a certificate authority and a server's certificate, for HTTPS. An authority that exists is used again."""
    from labsupport import loopback, paths
    from labsupport.access import certificates

    place = (folder or Path.home() / ".labsupport" / "certificates").absolute()
    data = paths.root_or_data().resolve()
    if place.resolve().is_relative_to(data):
        raise ValueError(
            f"folder={str(folder)!r}: is in the lab's folder {data}: keep keys out of it and of its copies"
        )
    hosts = [*certificates.LOCAL, *(host or [])]
    if not (authority := place / "ca.pem").exists():
        certificates.make_authority(place, hosts)
    certfile, keyfile = certificates.make_certificate(place, hosts)
    for line in _next_steps(authority, certfile, keyfile, hosts, loopback.default_port()):
        typer.echo(line)


def _next_steps(authority: Path, certfile: Path, keyfile: Path, hosts: list[str], port: int) -> list[str]:
    """Return a text with what was made, and the commands to type next.

    >>> print(*_next_steps(Path("ca.pem"), Path("server.pem"), Path("my key"), ["localhost"], 8000)[2:], sep="\\n")
    next:
      labsupport serve --certfile server.pem --keyfile 'my key'
      curl --cacert ca.pem https://localhost:8000/health
    """
    pem, certificate, key = (shlex.quote(str(file)) for file in (authority, certfile, keyfile))
    return [
        f"{authority}: the authority; programs that are given this file trust the server",
        f"{certfile}: the server's certificate, for {', '.join(hosts)}; {keyfile.name} is its private key",
        "next:",
        f"  labsupport serve --certfile {certificate} --keyfile {key}",
        f"  curl --cacert {pem} https://localhost:{port}/health",
    ]
