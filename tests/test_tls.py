"""TLS without a proxy: certificates that other programs accept, a server that speaks HTTPS, and clients that check it."""

import contextlib
import datetime
import functools
import gc
import io
import ipaddress
import os
import re
import shlex
import shutil
import socket
import ssl
import stat
import subprocess
import warnings
from pathlib import Path

import numpy as np
import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from fastapi import FastAPI, Request

from command import SERVE, until
from labsupport import client, images, paths
from labsupport.access import certificates, tls_files
from labsupport.client import Client, ServerError
from labsupport.protection import connections
from labsupport.rollout import Router
from labsupport.serving import create_app, running, serve
from test_cli import Fixed, labsupport

LAB = paths.root()
HELLO = {"timeout": 20}
DAY = datetime.timedelta(days=1)
NOW = datetime.datetime.now(datetime.UTC)
P256 = functools.partial(ec.generate_private_key, ec.SECP256R1())
app = FastAPI()


@app.get("/seen")
def seen(request: Request) -> dict:
    """What the application sees of a request."""
    return {"url": str(request.url), "authorization": request.headers.get("authorization")}


@pytest.fixture(scope="session")
def folder(authority) -> Path:
    """A folder with an authority, and with a server's certificate that it signed."""
    return authority


@pytest.fixture(scope="session")
def other(tmp_path_factory) -> Path:
    """A folder with another authority of the same name, and with a certificate that it signed."""
    made = tmp_path_factory.mktemp("other")
    certificates.make_authority(made)
    certificates.make_certificate(made)
    return made


def files(folder: Path) -> dict[str, Path]:
    return {"certfile": folder / "server.pem", "keyfile": folder / "server.key"}


@pytest.fixture(scope="session")
def secure(folder):
    """A small server that speaks HTTPS."""
    with serve(app, port=0, **files(folder)) as server:
        yield server


def signed(folder: Path, place: Path, first=NOW - DAY, last=NOW + DAY, host="localhost", key=None) -> tuple[Path, Path]:
    """A server's certificate and its key, made without our code and signed by the authority in `folder`."""
    authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    signer = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    key = key or P256()
    names = [x509.DNSName(host), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder(authority.subject, x509.Name([]), key.public_key(), 7, first, last)
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    pem, keyfile = place / "signed.pem", place / "signed.key"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    keyfile.write_bytes(private(key))
    return pem, keyfile


def private(key, password: bytes | None = None) -> bytes:
    """A private key as PEM."""
    how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)


def trusting(folder: Path | None) -> ssl.SSLContext:
    """Settings of a client that trusts the authority in a folder and no other, by the rules of Python 3.13."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    if folder:
        context.load_verify_locations(folder / "ca.pem")
    return context


def version(server, context: ssl.SSLContext, name: str = "localhost") -> str | None:
    """The version of TLS that a client and the server agree on."""
    with (
        socket.create_connection((server.host, server.port), timeout=20) as connection,
        context.wrap_socket(connection, server_hostname=name) as encrypted,
    ):
        return encrypted.version()


# the certificates


def openssl(*words: object) -> subprocess.CompletedProcess:
    if not shutil.which("openssl"):
        pytest.skip("needs openssl")
    return subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True, input="")


def test_openssl_finds_what_a_certificate_needs(folder):
    verify = "verify", "-x509_strict", "-check_ss_sig", "-purpose", "sslserver", "-CAfile", folder / "ca.pem"
    for option, name in {"-verify_hostname": "localhost", "-verify_ip": "127.0.0.1"}.items():
        assert openssl(*verify, option, name, folder / "server.pem").returncode == 0
    assert openssl(*verify, "-verify_ip", "::1", folder / "server.pem").returncode == 0
    assert openssl(*verify, "-verify_hostname", "lab.example", folder / "server.pem").returncode != 0
    ours, authority = (openssl("x509", "-in", folder / name, "-noout", "-text").stdout for name in TEXTS)
    for text, expected in ((ours, TEXTS["server.pem"]), (authority, TEXTS["ca.pem"])):
        lines = [line.strip() for line in text.splitlines()]
        for name, value in expected.items():
            assert lines[lines.index(name) + 1].startswith(value), name
        assert "ASN1 OID: prime256v1" in lines and "Signature Algorithm: ecdsa-with-SHA256" in lines


TEXTS = {
    "server.pem": {
        "X509v3 Basic Constraints: critical": "CA:FALSE",
        "X509v3 Key Usage: critical": "Digital Signature",
        "X509v3 Extended Key Usage:": "TLS Web Server Authentication",
        "X509v3 Subject Alternative Name:": "DNS:localhost, IP Address:127.0.0.1, IP Address:0:0:0:0:0:0:0:1",
        "X509v3 Subject Key Identifier:": "",
        "X509v3 Authority Key Identifier:": "",
    },
    "ca.pem": {
        "X509v3 Basic Constraints: critical": "CA:TRUE, pathlen:0",
        "X509v3 Key Usage: critical": "Certificate Sign, CRL Sign",
        "X509v3 Name Constraints: critical": "Permitted:",
        "X509v3 Subject Key Identifier:": "",
    },
}


def test_a_stolen_authority_cannot_sign_for_another_host(folder, tmp_path):
    pem, _ = signed(folder, tmp_path, host="bank.example")
    refused = openssl("verify", "-CAfile", folder / "ca.pem", pem)
    assert refused.returncode != 0 and "permitted subtree violation" in refused.stderr
    assert openssl("verify", "-CAfile", folder / "ca.pem", signed(folder, tmp_path)[0]).returncode == 0
    with pytest.raises(
        ValueError, match=r"hosts: the authority in .* cannot sign for bank\.example, but only for local"
    ):
        certificates.make_certificate(copied(folder, tmp_path), ["localhost", "bank.example"])


def copied(folder: Path, place: Path) -> Path:
    """The authority alone, in another folder."""
    for name in ("ca.pem", "ca.key"):
        shutil.copy(folder / name, place / name)
    return place


def test_names_and_addresses_of_other_machines_can_be_certified(tmp_path):
    hosts = ["Lab.example", "10.0.0.7", "2001:db8::7", "lab.example"]
    certificates.make_authority(tmp_path, hosts)
    certfile, _ = certificates.make_certificate(tmp_path, [*hosts, "gpu.lab.example"])
    (names,) = (
        one.value
        for one in x509.load_pem_x509_certificate(certfile.read_bytes()).extensions
        if isinstance(one.value, x509.SubjectAlternativeName)
    )
    assert [str(name.value) for name in names] == ["lab.example", "10.0.0.7", "2001:db8::7", "gpu.lab.example"]
    verify = "verify", "-x509_strict", "-CAfile", tmp_path / "ca.pem", "-verify_hostname", "gpu.lab.example"
    assert openssl(*verify, certfile).returncode == 0


def test_keys_are_their_owners_alone_and_validity_is_short(folder):
    for name in ("ca", "server"):
        assert stat.S_IMODE((folder / f"{name}.key").stat().st_mode) == 0o600
    authority, server = (
        x509.load_pem_x509_certificate((folder / f"{one}.pem").read_bytes()) for one in ("ca", "server")
    )
    assert (authority.not_valid_after_utc - datetime.datetime.now(datetime.UTC)).days in (364, 365) and (
        server.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    ).days in (
        89,
        90,
    )
    assert server.not_valid_before_utc < datetime.datetime.now(datetime.UTC)


@pytest.mark.parametrize("there", ["ca.pem", "ca.key", "server.pem", "server.key"])
def test_nothing_is_overwritten(there, folder, tmp_path):
    if there.startswith("server"):
        copied(folder, tmp_path)
    (tmp_path / there).symlink_to("nowhere")
    make = certificates.make_authority if there.startswith("ca") else certificates.make_certificate
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(FileExistsError, match=f"folder=.*: has a {there} already, which is never overwritten: move"):
        make(tmp_path)
    assert sorted(os.listdir(tmp_path)) == before and os.readlink(tmp_path / there) == "nowhere"


def test_two_that_make_an_authority_at_the_same_time_do_not_mix_their_files(folder, tmp_path, monkeypatch):
    """The second one finds the files when it writes, though there were none when it began."""
    copied(folder, tmp_path)
    before = (tmp_path / "ca.key").read_bytes()
    monkeypatch.setattr(certificates, "_place", lambda place, stem: place)
    with pytest.raises(FileExistsError):
        certificates.make_authority(tmp_path)
    assert (tmp_path / "ca.key").read_bytes() == before


@pytest.mark.parametrize(
    "hosts",
    [
        *("localhost", b"localhost", [], None, 5, [5], [None], [""], ["*.lab"], ["a b"], ["http://lab"], ["lab:8000"]),
        *(
            ["999.1.1.1"],
            ["-lab"],
            ["lab-"],
            ["lab."],
            ["a" * 64],
            ["fe80::1%eth0"],
            ["lab", "läb"],
            ["a." * 127 + "a"],
        ),
    ],
)
def test_what_is_no_host_is_refused(hosts, tmp_path):
    for make in (certificates.make_authority, certificates.make_certificate):
        with pytest.raises(ValueError, match=r"^hosts(=|: ).*give host names or IP addresses in a list"):
            make(tmp_path, hosts)
    assert not os.listdir(tmp_path)


def test_a_folder_that_is_none_or_has_no_valid_authority_is_refused(folder, tmp_path):
    (tmp_path / "file").write_text("x")
    for wrong, error in ((None, ValueError), ("a\0b", ValueError), (tmp_path / "file", OSError)):
        with pytest.raises(error, match=r"^folder="):
            certificates.make_authority(wrong)
    with pytest.raises(ValueError, match=r"^folder=.* has no ca\.pem: make an authority there with make_authority"):
        certificates.make_certificate(tmp_path / "empty")
    signed(folder, tmp_path)
    for name in ("pem", "key"):  # a certificate that is no authority
        (tmp_path / f"signed.{name}").rename(tmp_path / f"ca.{name}")
    with pytest.raises(ValueError, match="its authority was not made by make_authority"):
        certificates.make_certificate(tmp_path)
    (tmp_path / "ca.pem").write_text("damaged")
    with pytest.raises(ValueError, match=r"ca\.pem=.*: holds no certificate"):
        certificates.make_certificate(tmp_path)


# the server and clients that are not ours


def test_who_does_not_know_the_authority_refuses_and_who_does_accepts(secure, folder, other):
    url = f"https://localhost:{secure.port}/seen"
    assert secure.url == f"https://127.0.0.1:{secure.port}"
    for unknown in (True, str(other / "ca.pem")):
        with pytest.raises(requests.exceptions.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
            requests.get(url, verify=unknown, **HELLO)
    assert requests.get(url, verify=str(folder / "ca.pem"), **HELLO).json()["url"] == url
    for context in (trusting(None), trusting(other), ssl.create_default_context()):
        with pytest.raises(ssl.SSLCertVerificationError):
            version(secure, context)
    assert {version(secure, trusting(folder), name) for name in ("localhost", "127.0.0.1", "::1")} == {"TLSv1.3"}
    for wrong in ("lab.example", "127.0.0.2"):
        with pytest.raises(ssl.SSLCertVerificationError, match="is not valid for"):
            version(secure, trusting(folder), wrong)


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_curl_refuses_and_accepts(secure, folder, other):
    def curl(*options: str) -> int:
        command = ["curl", "--silent", "--noproxy", "*", *options, f"https://localhost:{secure.port}/seen"]
        return subprocess.run(command, capture_output=True, timeout=60).returncode

    assert (curl(), curl("--cacert", str(other / "ca.pem"))) == (60, 60)  # the peer's certificate cannot be verified
    assert curl("--fail", "--cacert", str(folder / "ca.pem")) == 0


def test_openssls_client_refuses_and_accepts(secure, folder, other):
    for place, fine in ((folder, True), (other, False)):
        words = "-CAfile", place / "ca.pem", "-verify_return_error", "-verify_hostname", "localhost"
        done = openssl("s_client", "-connect", f"127.0.0.1:{secure.port}", *words)
        assert ("Verify return code: 0 (ok)" in done.stdout) is fine, done.stdout


@contextlib.contextmanager
def unchecked(pair: tuple[Path, Path]):
    """A server whose certificate is not checked at its start: it was valid then."""
    with running.RunningServer(app, running._listen("127.0.0.1", 0), pair) as server:
        yield server


def test_a_certificate_that_expired_while_the_server_ran_is_refused(folder, tmp_path):
    with unchecked(signed(folder, tmp_path, last=NOW - DAY / 2)) as server:
        with pytest.raises(ssl.SSLCertVerificationError, match="certificate has expired"):
            version(server, ssl.create_default_context(cafile=folder / "ca.pem"))
        with pytest.raises(
            requests.exceptions.SSLError, match=r"certificate has expired: give the server a new one \(labs"
        ):
            Client(server.url, verify=folder / "ca.pem").rollout()


def handshake(ours: ssl.SSLContext, theirs: ssl.SSLContext) -> str | None:
    """The version that two contexts agree on, without a network."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = ours.wrap_bio(back, there, server_hostname="localhost")
    two = theirs.wrap_bio(there, back, server_side=True)
    for _ in range(5):
        for side in (one, two):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    return one.version()


@pytest.mark.parametrize("name", ["TLSv1", "TLSv1_1", "TLSv1_2", "TLSv1_3"])
def test_only_tls_1_2_and_later_are_spoken(name, secure, folder):
    client, server = trusting(folder), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.pem", folder / "server.key")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        client.maximum_version = client.minimum_version = server.minimum_version = ssl.TLSVersion[name]
    for context in (client, server):
        context.set_ciphers("ALL:@SECLEVEL=0")
    # the rules of OpenSSL 3 refuse 1.1 as well, those of older releases do not
    assert tls_files.server_context(*files(folder).values()).minimum_version is ssl.TLSVersion.TLSv1_2
    expected = name.replace("_", ".")
    assert handshake(client, server) == expected  # this client can speak it
    if name in ("TLSv1_2", "TLSv1_3"):
        assert version(secure, client) == expected
    else:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            version(secure, client)


@pytest.mark.parametrize(
    "message", [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"POST /x HTTP/1.1\r\n\r\n" + b"x" * 100_000]
)
def test_plain_http_gets_an_answer_that_names_https(message, secure, caplog):
    open_, answer = secure._server.server_state.connections, b""
    before = len(open_)
    with socket.create_connection((secure.host, secure.port), timeout=20) as connection:
        connection.sendall(message)
        while more := connection.recv(10_000):
            answer += more
        connection.sendall(message)  # the server discards it
    until(lambda: len(open_) <= before)
    assert answer.startswith(b"HTTP/1.1 400") and b"use the same address with https://" in answer
    with pytest.raises(ServerError, match="400: this server speaks HTTPS: use the same address with https://"):
        Client(secure.url.replace("https", "http")).rollout()
    assert not caplog.records


BROKEN = {
    "garbage": b"\x16\x03\x01\x02\x00" + b"\xff" * 512,
    "an alert": b"\x16\x03\x01\x00\x02\x02\x28",
    "a long record": b"\x16\x03\x03\xff\xff" + b"\x01" * 200_000,
    "one byte": b"\x16",
}


@pytest.mark.parametrize("message", BROKEN.values(), ids=BROKEN)
def test_a_broken_handshake_ends_the_connection_and_says_nothing_in_the_log(message, secure, folder, caplog):
    before = len(secure._server.server_state.connections)
    with socket.create_connection((secure.host, secure.port), timeout=20) as connection, contextlib.suppress(OSError):
        connection.sendall(message)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1_000)[:5] != b"HTTP/"
    with pytest.raises(ssl.SSLCertVerificationError):  # a client that leaves in the middle
        version(secure, trusting(None))
    until(lambda: len(secure._server.server_state.connections) <= before)
    gc.collect()  # asyncio reports an exception that nobody asked for when it is collected
    assert requests.get(secure.url + "/seen", verify=str(folder / "ca.pem"), **HELLO).ok
    assert not caplog.records


def client_hello() -> bytes:
    """What a client sends first."""
    sent = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        trusting(None).wrap_bio(ssl.MemoryBIO(), sent, server_hostname="localhost").do_handshake()
    return sent.read()


@pytest.mark.parametrize("part", [0, 1, 100, 10_000])
def test_handshakes_that_never_end_keep_nobody_out_and_are_closed(part, folder, monkeypatch):
    """With nothing, with one byte, with a part or with all of what a client sends first."""
    hello = client_hello()[:part]
    with serve(app, port=0, **files(folder)) as server, contextlib.ExitStack() as stack:
        monkeypatch.setattr(connections, "MOST", 10)
        open_ = server._server.server_state.connections
        for _ in range(40):
            connection = stack.enter_context(socket.create_connection((server.host, server.port), timeout=20))
            connection.sendall(hello)
        for _ in range(10):
            assert requests.get(server.url + "/seen", verify=str(folder / "ca.pem"), **HELLO).ok
            assert len(open_) <= 10
        monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
        last = stack.enter_context(socket.create_connection((server.host, server.port), timeout=20))
        last.sendall(hello)
        with contextlib.suppress(ConnectionError):
            while last.recv(10_000):
                pass  # the server's part of the handshake


def test_a_handshake_and_the_first_head_have_one_limit_together(secure, folder):
    open_ = secure._server.server_state.connections
    before = {*open_}
    with socket.create_connection((secure.host, secure.port), timeout=20) as bare:
        until(lambda: {*open_} - before)
        (connection,) = {*open_} - before
        timer = connection._timer
        with trusting(folder).wrap_socket(bare, server_hostname="localhost"):
            until(lambda: connection.scheme == "https")
            assert connection._timer is timer and not timer.cancelled()


def test_a_connection_costs_little_memory(folder):
    """asyncio's own buffer alone takes 256 kB of each."""
    with serve(app, port=0, **files(folder)) as server, contextlib.ExitStack() as stack:

        def connect(number: int) -> int:
            for _ in range(number):
                connection = stack.enter_context(socket.create_connection((server.host, server.port), timeout=20))
                stack.enter_context(trusting(folder).wrap_socket(connection, server_hostname="localhost"))
            return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        if not Path("/proc/self/statm").exists():
            pytest.skip("reads /proc")
        before = connect(20)
        assert (connect(60) - before) / 60 < 200_000  # the client's half is in this process, too


def test_the_application_sees_https_and_no_browser_is_bound_to_it(secure, folder):
    """No Strict-Transport-Security: on localhost it would break every other server of this machine."""
    get = functools.partial(requests.get, verify=str(folder / "ca.pem"), allow_redirects=False, **HELLO)
    answer = get(secure.url + "/seen")
    assert answer.json()["url"] == secure.url + "/seen"
    assert not any(name.lower() == "strict-transport-security" for name in answer.headers)
    assert get(secure.url + "/seen/").headers["Location"] == secure.url + "/seen"
    forwarded = get(secure.url + "/seen", headers={"X-Forwarded-Proto": "https", "X-Forwarded-For": "10.0.0.1"})
    assert forwarded.json()["url"] == secure.url + "/seen"
    cross = get(secure.url + "/seen", headers={"Sec-Fetch-Site": "cross-site"})
    assert cross.status_code == 403
    assert get(secure.url + "/seen", headers={"Host": "bank.example"}).status_code == 421


def test_a_picture_over_https_is_the_picture_over_http(detector, folder):
    answers = []
    for options in ({}, files(folder)):
        with (
            serve(create_app(detector, keep_uploads=False), port=0, **options) as server,
            requests.Session() as session,
        ):
            picture = {"file": (paths.IMAGES / "clock.png").read_bytes()}
            answers.append(session.post(f"{server.url}/predict", files=picture, verify=str(folder / "ca.pem"), **HELLO))
            assert answers[-1].ok
    plain, encrypted = answers
    assert plain.content == encrypted.content
    own = {"date", "x-prediction-id"}
    first, second = ({k.lower(): v for k, v in one.headers.items() if k.lower() not in own} for one in answers)
    assert first.keys() == second.keys() and len(first) > 5
    assert {name for name in first if first[name] != second[name]} <= {"server-timing"}


def test_a_server_stops_in_no_time_although_a_client_keeps_its_connection(folder, caplog):
    """asyncio waits 30 seconds for the client's goodbye, which no client sends."""
    with requests.Session() as session:
        server = serve(app, port=0, **files(folder))
        assert session.get(server.url + "/seen", verify=str(folder / "ca.pem"), **HELLO).ok
        until(lambda: server._server.server_state.connections)
        (connection,) = server._server.server_state.connections
        server.stop()
        assert connection._bare.is_closing() and not caplog.records


def test_an_idle_connection_is_closed_after_the_time_for_the_next_request(folder):
    with serve(app, port=0, **files(folder)) as server, requests.Session() as session:
        server._server.config.timeout_keep_alive = 0
        assert session.get(server.url + "/seen", verify=str(folder / "ca.pem"), **HELLO).ok
        until(lambda: not server._server.server_state.connections, 10)


# files that a server cannot use


def unusable(folder: Path, other: Path, place: Path) -> dict[str, tuple[object, object, str]]:
    """What is given as certfile and keyfile, and what the message says."""
    pem, key = folder / "server.pem", folder / "server.key"
    (place / "empty").touch()
    (place / "text").write_text("no PEM")
    certificate = x509.load_pem_x509_certificate(pem.read_bytes())
    (place / "der").write_bytes(certificate.public_bytes(serialization.Encoding.DER))
    (place / "cut").write_bytes(pem.read_bytes()[:200] + b"\n-----END CERTIFICATE-----\n")
    secret = serialization.load_pem_private_key(key.read_bytes(), None)
    (place / "encrypted").write_bytes(private(secret, b"password"))
    os.mkfifo(place / "pipe")
    for name in ("old", "early", "short"):
        (place / name).mkdir()
    old = signed(folder, place / "old", last=NOW - DAY / 2)
    early = signed(folder, place / "early", first=NOW + DAY / 2)
    with warnings.catch_warnings(action="ignore"):
        short = signed(folder, place / "short", key=rsa.generate_private_key(65537, 1024))
    return {
        "only a certificate": (pem, None, "keyfile=None: give certfile and keyfile together"),
        "only a key": (None, key, "certfile=None: give certfile and keyfile together"),
        "no file": (place / "none.pem", key, "certfile='{0}': cannot be read (No such file or directory): give"),
        "no key file": (pem, place / "none.key", "keyfile='{1}': cannot be read (No such file or directory): give"),
        "a folder": (place, key, "certfile='{0}': cannot be read (it is not a file): give"),
        "a pipe": (pem, place / "pipe", "keyfile='{1}': cannot be read (it is not a file): give"),
        "an empty file": (place / "empty", key, "certfile='{0}': holds no certificate: give a PEM file"),
        "text": (place / "text", key, "certfile='{0}': holds no certificate: give a PEM file"),
        "DER": (place / "der", key, "certfile='{0}': holds no certificate: give a PEM file"),
        "a damaged certificate": (place / "cut", key, "certfile='{0}': holds no certificate: give a PEM file"),
        "a key for a certificate": (key, key, "certfile='{0}': holds no certificate: give a PEM file"),
        "a certificate for a key": (pem, pem, "keyfile='{1}': holds no private key: give a PEM file"),
        "the key of another": (
            pem,
            other / "server.key",
            "keyfile='{1}': belongs to another certificate: give the key",
        ),
        "an encrypted key": (
            pem,
            place / "encrypted",
            "keyfile='{1}': is encrypted, which is not supported: give a key",
        ),
        "an expired certificate": (*old, "certfile='{0}': expired at 20"),
        "one of tomorrow": (*early, "certfile='{0}': is valid only from 20"),
        "a short key": (*short, "certfile='{0}': OpenSSL refuses it (EE_KEY_TOO_SMALL): move it away"),
    }


CASES = """
only a certificate, only a key, no file, no key file, a folder, a pipe, an empty file, text, DER, a damaged certificate,
a key for a certificate, a certificate for a key, the key of another, an encrypted key, an expired certificate,
one of tomorrow, a short key
"""


@pytest.mark.parametrize("case", [" ".join(case.split()) for case in CASES.split(",")])
def test_files_that_a_server_cannot_use_are_named_before_it_listens(case, folder, other, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "_listen", lambda *_: pytest.fail("it listens"))
    certfile, keyfile, says = unusable(folder, other, tmp_path)[case]
    says = says.format(certfile, keyfile)
    with pytest.raises(ValueError) as error:
        serve(app, port=0, certfile=certfile, keyfile=keyfile)
    assert str(error.value).startswith(says) and "\n" not in str(error.value)
    options = [
        word for name, file in (("--certfile", certfile), ("--keyfile", keyfile)) if file for word in (name, file)
    ]
    code, out, err = labsupport("serve", "--port", 0, *options)
    assert (code, out, err.count("\n")) == (1, "", 1) and err.startswith(f"labsupport: {says}")


@pytest.mark.parametrize("wrong", [5, "a\0b", ["server.pem"], object()])
def test_what_is_no_path_is_refused(wrong, folder):
    with pytest.raises(ValueError, match=r"^certfile=.*: cannot be read \(it is not a path\)"):
        serve(app, port=0, certfile=wrong, keyfile=folder / "server.key")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_key_that_may_not_be_read_is_named(folder, tmp_path):
    (tmp_path / "server.key").touch(mode=0o000)
    with pytest.raises(ValueError, match=r"^keyfile=.*Permission denied"):
        tls_files.checked(folder / "server.pem", tmp_path / "server.key")


# our client


@pytest.fixture
def lab(folder, monkeypatch):
    """A lab's server that speaks HTTPS, and whose models find nothing."""
    monkeypatch.setenv("LAB_TOKEN", "0123456789abcdef")
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    with serve(create_app(Router(Fixed("v1"), Fixed("v2"))), port=0, **files(folder)) as server:
        yield server


PICTURE = np.zeros((8, 8, 3), np.uint8)
UNTRUSTED = (
    "its certificate is not trusted (unable to get local issuer certificate): give the file of the authority that "
)
UNTRUSTED += (
    "signed it, with verify='ca.pem' in Python, with --cacert ca.pem on the command line, or in REQUESTS_CA_BUNDLE"
)


def test_the_client_needs_the_authority_and_says_so(lab, folder, other, monkeypatch, capsys):
    picture = io.BytesIO((paths.IMAGES / "clock.png").read_bytes())
    assert Client(lab.url, verify=folder / "ca.pem").detect(PICTURE) == []
    assert Client(lab.url, verify=str(folder / "ca.pem")).rollout()["stable"] == "v1"
    calls = [
        lambda **verify: Client(lab.url, **verify).detect(PICTURE),
        lambda **verify: Client(lab.url, **verify).rollout(),
        lambda **verify: client.response_from_server(f"{lab.url}/detect", picture, **verify),
    ]
    for call in calls:
        monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
        with pytest.raises(requests.exceptions.SSLError) as error:
            call()
        assert str(error.value) == f"{lab.url}: {UNTRUSTED}"
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(folder / "ca.pem"))
        call()
        with pytest.raises(requests.exceptions.SSLError, match="is not trusted"):
            call(verify=other / "ca.pem")  # it comes before the variable
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other / "ca.pem"))
        call(verify=folder / "ca.pem")


def test_a_client_that_uses_another_name_or_a_server_without_tls_is_told_so(folder):
    mismatch = pytest.raises(
        requests.exceptions.SSLError, match=r"127\.0\.0\.2.*: use an address that the certificate names"
    )
    with serve(app, host="127.0.0.2", port=0, **files(folder)) as server, mismatch:
        Client(server.url, verify=folder / "ca.pem").rollout()
    with serve(app, port=0) as server, pytest.raises(requests.exceptions.SSLError) as error:
        Client(server.url.replace("http://", "https://"), verify=folder / "ca.pem").rollout()
    assert f"https://127.0.0.1:{server.port}: no encrypted connection (" in str(error.value)
    assert str(error.value).endswith("use http://")
    with pytest.raises(ValueError, match=r"url='\.\.\.@\.\.\.'"):
        Client(server.url.replace("http://", "https://me:secret@"), verify=folder / "ca.pem")


def test_a_client_never_trusts_every_server(tmp_path, folder):
    (tmp_path / "text").write_text("no PEM")
    cure = "give the file of the authority"
    for wrong in (False, True, 0, 1, b"ca.pem", [], tmp_path, tmp_path / "none", tmp_path / "text", "", "a\0b"):
        for call in (Client, functools.partial(client.response_from_server, image_file=io.BytesIO(b"x"))):
            with pytest.raises(ValueError, match=f"(?s)^verify=.*{cure}"):
                call("https://127.0.0.1:9", verify=wrong)


def test_the_token_of_a_client_is_in_each_of_its_requests(monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("default login someone password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    sent, echo = [], FastAPI()

    @echo.api_route("/{path}", methods=["GET", "POST", "PUT"])
    def answer(request: Request) -> None:
        sent.append(request.headers.get("authorization"))

    with serve(echo, port=0) as server:
        for options in ({}, {"token": "mine"}):
            for call in (lambda c: c.detect(PICTURE), lambda c: c.rollout(), lambda c: c.rollout({"action": "pause"})):
                with pytest.raises(ServerError, match="is not"):
                    call(Client(server.url, **options))
        with pytest.raises(ServerError):
            Client(server.url, token="mine").rollout(token="another")
        monkeypatch.setattr(client, "TRIES", 1)
        with pytest.raises(ServerError):
            Client(server.url, token="mine").detect(PICTURE)
    assert sent == [None] * 3 + ["Bearer mine"] * 3 + ["Bearer another", "Bearer mine"]
    for wrong in ("", "a b", "secret\r\nX: y", "sécret", 5, b"secret"):
        with pytest.raises(ValueError, match=r"^token: give") as error:
            Client(server.url, token=wrong)
        assert "cret" not in str(error.value)


def test_a_rollout_is_shown_and_changed_over_https(lab, folder):
    shown = labsupport("rollout", "--url", lab.url, "--cacert", folder / "ca.pem")
    assert shown[0] == 0 and shown[1].startswith("Healthy: start")
    changed = labsupport("rollout", "canary", "v2", "--url", lab.url, "--cacert", folder / "ca.pem")
    assert changed[0] == 0 and changed[1].startswith("Progressing: canary")
    assert labsupport("rollout", "--url", lab.url) == (1, "", f"labsupport: {lab.url}: {UNTRUSTED}\n")


# the commands


def test_the_command_makes_both_says_what_to_type_and_can_renew(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LAB_PORT", "8000")
    made = tmp_path / ".labsupport" / "certificates"
    code, out, err = labsupport("certificate", "--host", "lab.example")
    assert (code, err) == (0, "") and stat.S_IMODE(made.stat().st_mode) == 0o700
    serve_, curl = (shlex.split(line) for line in out.splitlines()[-2:])
    assert serve_[:2] == ["labsupport", "serve"] and serve_[2::2] == ["--certfile", "--keyfile"]
    assert tls_files.checked(*serve_[3::2]) == (made / "server.pem", made / "server.key")
    assert curl == ["curl", "--cacert", f"{made}/ca.pem", "https://localhost:8000/health"]
    before = {file.name: file.read_bytes() for file in made.iterdir()}
    code, out, err = labsupport("certificate")
    assert (code, out, err.count("\n")) == (1, "", 1) and "has a server.pem already" in err
    assert {file.name: file.read_bytes() for file in made.iterdir()} == before
    for name in ("server.pem", "server.key"):
        (made / name).unlink()
    assert labsupport("certificate")[0] == 0
    assert (made / "ca.key").read_bytes() == before["ca.key"]
    assert openssl("verify", "-CAfile", made / "ca.pem", made / "server.pem").returncode == 0


def test_keys_are_not_made_in_the_labs_folder_whose_copies_travel(tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_ROOT", str(tmp_path))
    code, out, err = labsupport("certificate", tmp_path / "certificates")
    assert (code, out) == (1, "") and "is in the lab's folder" in err and not os.listdir(tmp_path)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_command_serves_https_with_one_worker_and_with_two(workers, folder, tmp_path):
    words = [*SERVE, "--precision", "f32", "--workers", str(workers), *(str(w) for w in options(folder))]
    env = {**os.environ, "LAB_ROOT": str(tmp_path)}
    with (
        (tmp_path / "console").open("w") as console,
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=console, text=True, env=env) as process,
    ):
        try:
            url = re.search(r"serving on (https://127\.0\.0\.1:\d+) until", process.stdout.readline())[1]
            get = functools.partial(requests.get, verify=str(folder / "ca.pem"), timeout=180)
            assert get(f"{url}/ready").ok
            for _ in range(20):  # each a new connection, to either of them
                assert get(f"{url}/health").json() == {"status": "alive"}
            assert requests.get(url.replace("https", "http"), timeout=20).status_code == 400
            assert len(Client(url, verify=folder / "ca.pem").detect(images.read(paths.IMAGES / "clock.png"))) == 1
            process.terminate()
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
    assert "Traceback" not in (tmp_path / "console").read_text()


def options(folder: Path) -> list[object]:
    return ["--certfile", folder / "server.pem", "--keyfile", folder / "server.key"]


def test_nothing_here_switches_the_check_of_certificates_off():
    word = "verify"
    ways = [
        rf"{word}\W{{0,3}}\s*[=:]\s*False",
        "[C]ERT_NONE",
        r"[c]heck_hostname\s*=\s*False",
        "--[i]nsecure",
        r"[c]url.* -k\b",
    ]
    off = re.compile("|".join(ways))
    folders = ("labsupport", "tests", "notebooks", "benchmarks", "deploy", "docs", ".github", ".ci")
    looked = [path for name in folders for path in (LAB / name).rglob("*") if path.suffix in KINDS]
    looked += [path for path in LAB.iterdir() if path.is_file() and (path.suffix in KINDS or not path.suffix)]
    assert len(looked) > 200
    assert [str(path) for path in looked if off.search(path.read_text(errors="replace"))] == []
    wrong = "False)"
    assert all(map(off.search, (f"get(url, {word}={wrong}", f'"{word}": {wrong}', f"session.{word} = {wrong}")))


KINDS = (".py", ".ipynb", ".md", ".yml", ".yaml", ".sh", ".conf", ".toml", ".template")
