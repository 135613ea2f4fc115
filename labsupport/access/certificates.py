"""Make a certificate authority, and certificates for a server that it signs.

A server that speaks TLS has a certificate and a private key. A client accepts the certificate if it trusts the authority
that signed it. An authority made here can sign for the named hosts only. So a stolen key of it is of no use for other sites.

>>> import tempfile
>>> folder = tempfile.mkdtemp()
>>> make_authority(folder).name
'ca.pem'
>>> certfile, keyfile = make_certificate(folder)
>>> certfile.name, keyfile.name
('server.pem', 'server.key')
"""

import ipaddress
import os
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from labsupport import arguments
from labsupport.access.tls_files import read_pair

LOCAL = ("localhost", "127.0.0.1", "::1")
AUTHORITY_DAYS, SERVER_DAYS = 365, 90
SLACK = timedelta(minutes=10)  # certificates are valid from this long ago: clocks of other machines may be late
NAME = re.compile(r"(?=.{1,253}$)((?!-)[a-z0-9-]{1,63}(?<!-)\.)*(?!\d+$)(?!-)[a-z0-9-]{1,63}(?<!-)")
Host = x509.DNSName | x509.IPAddress
USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


def make_authority(folder: str | Path, hosts: Iterable[str] = LOCAL) -> Path:
    """Make a certificate authority that can sign for `hosts` and their subdomains. Return the path of its certificate.

    Writes `ca.pem`, for the clients, and the private key `ca.key`, which only this user can read. They are valid for
    `AUTHORITY_DAYS` days. Makes the folder if there is none. Raises ValueError for an invalid folder or host,
    FileExistsError if one of the files exists already, and OSError if they cannot be written.
    """
    names = _names(hosts)
    place = _place(folder, "ca")
    permitted = [
        x509.IPAddress(ipaddress.ip_network(name.value)) if isinstance(name, x509.IPAddress) else name for name in names
    ]
    key, subject = ec.generate_private_key(ec.SECP256R1()), _subject("labsupport certificate authority")
    certificate = (
        _builder(subject, subject, key, datetime.now(UTC) + timedelta(AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
        .add_extension(x509.NameConstraints(permitted, None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _write(place, "ca", certificate, key)[0]


def make_certificate(folder: str | Path, hosts: Iterable[str] = LOCAL) -> tuple[Path, Path]:
    """Make a server's certificate for `hosts`, signed by the authority in `folder`. Return the paths of it and of its key.

    Writes `server.pem`, and the private key `server.key`, which only this user can read. They are valid for `SERVER_DAYS`
    days. Raises ValueError for an invalid folder or host, for a host that the authority cannot sign for, and for a folder
    without a valid authority. Raises FileExistsError if one of the files exists already, and OSError if they cannot be
    written.
    """
    names = _names(hosts)
    place = _place(folder, "server")
    authority, signer, permitted = _authority(place)
    for name in names:
        if not any(_covers(one, name) for one in permitted):
            raise ValueError(
                f"hosts: the authority in {str(place)!r} cannot sign for {name.value}, but only for "
                f"{', '.join(str(one.value) for one in permitted)}: make another authority in another folder"
            )
    key = ec.generate_private_key(ec.SECP256R1())
    until = min(datetime.now(UTC) + timedelta(SERVER_DAYS), authority.not_valid_after_utc)
    signer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    certificate = (
        _builder(_subject("labsupport server"), authority.subject, key, until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(signer_id, critical=False)
        .sign(signer, hashes.SHA256())
    )
    return _write(place, "server", certificate, key)


def _authority(place: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey, list[x509.GeneralName]]:
    """Return the certificate and the key of the authority in a folder, and the hosts that it can sign for."""
    for file in (place / "ca.pem", place / "ca.key"):
        if not file.exists():
            cure = "make an authority there with make_authority"
            raise ValueError(f"folder={str(place)!r}: has no {file.name}: {cure}")
    certificate, key = read_pair("ca.pem", place / "ca.pem", "ca.key", place / "ca.key")
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.NameConstraints).value
    except x509.ExtensionNotFound:
        constraints = None
    if constraints is None or not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"folder={str(place)!r}: its authority was not made by make_authority: give another folder")
    return certificate, key, list(constraints.permitted_subtrees or [])


def _names(hosts: Iterable[str]) -> list[Host]:
    """Return the names and addresses of `hosts`, each once. Raises ValueError."""
    cure = "give host names or IP addresses in a list, as in ['localhost', '127.0.0.1']"
    if isinstance(hosts, str | bytes) or not isinstance(hosts, Iterable) or not (listed := list(hosts)):
        raise ValueError(f"hosts={arguments.shown(hosts)}: {cure}")
    names: list[Host] = []
    for host in listed:
        text = host.lower() if isinstance(host, str) else ""
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(text.replace("%", " "))))  # no zone, as in fe80::1%eth0
        except ValueError:
            if not NAME.fullmatch(text):
                raise ValueError(f"hosts: {arguments.shown(host)} is invalid: {cure}") from None
            names.append(x509.DNSName(text))
    return list(dict.fromkeys(names))


def _covers(permitted: x509.GeneralName, name: Host) -> bool:
    if isinstance(name, x509.DNSName):
        return f".{name.value}".endswith(f".{permitted.value}")
    network = permitted.value
    return isinstance(network, ipaddress.IPv4Network | ipaddress.IPv6Network) and name.value in network


def _place(folder: str | Path, stem: str) -> Path:
    """Return the folder, made if there was none. Raises FileExistsError if it has one of the files already."""
    try:
        place = Path(folder)
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (TypeError, ValueError):
        raise ValueError(f"folder={arguments.shown(folder)}: give the path of a folder") from None
    except OSError as error:
        raise OSError(f"folder={str(folder)!r}: {error.strerror}: give a folder that you may write to") from None
    for file in (place / f"{stem}.pem", place / f"{stem}.key"):
        if os.path.lexists(file):
            raise FileExistsError(
                f"folder={str(place)!r}: has a {file.name} already, which is never overwritten: move {stem}.pem and "
                f"{stem}.key away, or give another folder"
            )
    return place


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - SLACK)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*allowed: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{usage: usage in allowed for usage in USAGES})


def _write(place: Path, stem: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> tuple[Path, Path]:
    """Write a certificate and its key into new files, the key first. Return their paths. Raises FileExistsError."""
    pem, keyfile = place / f"{stem}.pem", place / f"{stem}.key"
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    _write_new(keyfile, secret, 0o600)
    _write_new(pem, certificate.public_bytes(Encoding.PEM), 0o644)
    return pem, keyfile


def _write_new(file: Path, content: bytes, mode: int) -> None:
    with open(file, "xb", opener=lambda path, flags: os.open(path, flags, mode)) as opened:
        opened.write(content)
