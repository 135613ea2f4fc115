"""Check the certificate and the private key that a server is given, and make the TLS settings of the server from them."""

import os
import ssl
import stat
from asyncio.sslproto import SSLProtocol
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the functions import what they need, because a server without TLS needs none of these 7 MB
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

Files = tuple[Path, Path]  # of a certificate and of its key
MOST = 1_000_000  # bytes of a file that are read
NEW = "move it away, and make a new one with labsupport certificate"


def checked(certfile: str | Path | None, keyfile: str | Path | None) -> Files | None:
    """Return the files of a server's certificate and of its private key as paths, or None if neither is given.

    The certificates of authorities between the server's and a trusted one may follow in `certfile`. Raises ValueError, which
    names the argument and says what to do, if only one file is given, a file cannot be read or is not PEM, the key is
    encrypted or belongs to another certificate, the certificate is not valid today, or OpenSSL refuses it.

    >>> checked("server.pem", None)
    Traceback (most recent call last):
    ValueError: keyfile=None: give certfile and keyfile together, or neither
    """
    if certfile is None and keyfile is None:
        return None
    if certfile is None or keyfile is None:
        missing = "certfile" if certfile is None else "keyfile"
        raise ValueError(f"{missing}=None: give certfile and keyfile together, or neither")
    read_pair("certfile", certfile, "keyfile", keyfile)
    files = Path(certfile), Path(keyfile)
    try:
        server_context(*files)
    except ssl.SSLError as error:  # for example a key of 1,024 bits
        raise ValueError(f"certfile={str(certfile)!r}: OpenSSL refuses it ({error.reason or error}): {NEW}") from None
    return files


def server_context(certfile: Path, keyfile: Path) -> ssl.SSLContext:
    """Return the TLS settings of a server with these files: TLS 1.2 or 1.3. `checked` raises the clearer errors."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certfile, keyfile)
    return context


def read_pair(
    cert_name: str, certfile: str | Path, key_name: str, keyfile: str | Path
) -> "tuple[x509.Certificate, PrivateKeyTypes]":
    """Return the first certificate in a file, and its key. Raises ValueError, which names the argument, like `checked`."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    content, shown = _content(cert_name, certfile), f"{cert_name}={str(certfile)!r}"
    try:
        certificate, *_ = x509.load_pem_x509_certificates(content)
        first, last = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        public = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except ValueError:
        raise ValueError(f"{shown}: holds no certificate: give a PEM file (-----BEGIN CERTIFICATE-----)") from None
    if (now := datetime.now(UTC)) > last:
        raise ValueError(f"{shown}: expired at {last:%Y-%m-%d %H:%M} UTC: {NEW}")
    if now < first:
        raise ValueError(
            f"{shown}: is valid only from {first:%Y-%m-%d %H:%M} UTC: wait, or set the clock of this machine"
        )
    key = _key(key_name, keyfile)
    if key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != public:
        raise ValueError(f"{key_name}={str(keyfile)!r}: belongs to another certificate: give the key of {cert_name}")
    return certificate, key


def _key(name: str, file: str | Path) -> "PrivateKeyTypes":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content, shown = _content(name, file), f"{name}={str(file)!r}"
    try:
        return load_pem_private_key(content, None)
    except TypeError:
        cure = "give a key without a password, which openssl pkey -in OLD -out NEW writes"
        raise ValueError(f"{shown}: is encrypted, which is not supported: {cure}") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(f"{shown}: holds no private key: give a PEM file (-----BEGIN PRIVATE KEY-----)") from None


def _content(name: str, file: str | Path) -> bytes:
    try:
        path = os.fspath(file)  # of a number, which open takes for an open file, it raises TypeError
        if stat.S_ISREG(os.stat(path).st_mode):
            with open(path, "rb") as opened:
                return opened.read(MOST)
        reason = "it is not a file"
    except (OSError, ValueError, TypeError) as error:
        reason = str(error.strerror) if isinstance(error, OSError) else "it is not a path"
    cure = "give the path of a PEM file (labsupport certificate makes one)"
    raise ValueError(f"{name}={str(file)!r}: cannot be read ({reason}): {cure}")


class Tls(SSLProtocol):
    """asyncio's TLS with a smaller buffer for reading. asyncio's own takes 256 kB of memory for each connection."""

    max_size = 32_768
