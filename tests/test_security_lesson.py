"""security_privacy.ipynb: its exercises, and the helpers that listen, limit and look for bytes."""

import hashlib
import os
import socket
import sqlite3
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import requests

from labsupport import exercises, images, paths
from labsupport.access import certificates
from labsupport.exercises.release import security_checks
from labsupport.scenarios import traffic
from labsupport.serving import create_app, serve

# the exercises

LEAVE = {"../cat.jpg", "day/../../cat.jpg", "/tmp/cat.jpg"}
ROLES = {"prometheus": "reader", "ward": "client", "on call": "operator", "privacy officer": "admin"}


@pytest.mark.parametrize(
    "check, answer, verdict",
    [
        (security_checks.escaping_names, LEAVE, "Right."),
        (security_checks.escaping_names, sorted(LEAVE), "Right."),
        (security_checks.escaping_names, "../cat.jpg", "give a set"),
        (security_checks.escaping_names, {"dog.jpg"}, "'dog.jpg' is not one of the six"),
        (security_checks.escaping_names, LEAVE | {"..cat.jpg"}, "only a whole part .. goes up"),
        (security_checks.escaping_names, LEAVE | {"day/../cat.jpg"}, "it ends in the folder"),
        (security_checks.escaping_names, LEAVE | {"cat.jpg"}, "cat.jpg stays"),
        (security_checks.escaping_names, LEAVE - {"/tmp/cat.jpg"}, "begins with /"),
        (security_checks.escaping_names, LEAVE - {"../cat.jpg"}, "1 more"),
        (security_checks.escaping_names, ..., "Not tried yet"),
        (security_checks.least_role, ROLES, "Right."),
        (security_checks.least_role, "reader", "give a dict"),
        (security_checks.least_role, {}, "prometheus: give reader, client"),
        (security_checks.least_role, ROLES | {"prometheus": "admin"}, "it only reads metrics"),
        (security_checks.least_role, ROLES | {"ward": "operator"}, "neither the dashboard"),
        (security_checks.least_role, ROLES | {"on call": "admin"}, "without seeing the pictures of others"),
        (security_checks.least_role, ROLES | {"privacy officer": "operator"}, "only one role"),
    ],
)
def test_an_answer(check, answer, verdict, capsys):
    check.check(answer)
    assert verdict in capsys.readouterr().out


def test_the_names_lead_where_the_exercise_says():
    folder = Path("/srv/uploads")
    for name, leaves in security_checks.NAMES.items():
        end = Path(os.path.normpath(folder / name))
        assert (not end.is_relative_to(folder)) == leaves, name


def hashed(key, previous, row, text=lambda previous, row: repr([previous, row])):
    return hashlib.blake2b(text(previous, row).encode(), key=key, digest_size=32).hexdigest()


@pytest.mark.parametrize(
    "link, verdict",
    [
        (hashed, "Right."),
        (lambda key, previous, row: None, "as a text of 64 hex digits"),
        (lambda key, previous, row: os.urandom(32).hex(), "two different hashes"),
        (lambda key, previous, row: hashed(b"", previous, row), "another key gives the same hash"),
        (lambda key, previous, row: hashed(key, "", row), "the hash before it"),
        (lambda key, previous, row: hashed(key, previous, row[:2]), "field 3 of the row"),
        (lambda key, previous, row: hashed(key, previous, [f"{len(field)}:{field}" for field in row]), "Right."),
        *[
            (lambda key, previous, row, mark=mark: hashed(key, previous, mark.join(row)), "where a field ends")
            for mark in ("", " ", ",", ", ", "|", "\n", "\0")
        ],
    ],
)
def test_keyed_link(link, verdict, capsys):
    exercises.keyed_link.check(link)
    assert verdict in capsys.readouterr().out


def erasing(*statements):
    def erase(connection, name):
        for statement in statements:
            if statement == "commit":
                connection.commit()
            else:
                connection.execute(statement, [name] if "?" in statement else []).fetchall()

    return erase


DELETE = "DELETE FROM people WHERE name = ?"
SECURE, TRUNCATE = "PRAGMA secure_delete=ON", "PRAGMA wal_checkpoint(TRUNCATE)"


@pytest.mark.parametrize(
    "erase, verdict",
    [
        (erasing(SECURE, DELETE, "commit", "VACUUM", TRUNCATE), "Right."),
        (erasing(DELETE, "commit", "VACUUM", TRUNCATE), "Right."),
        (erasing(DELETE), "the transaction is still open"),
        (erasing(), "a query still finds the person"),
        (erasing("DELETE FROM people", "commit"), "other people are gone"),
        (erasing(DELETE, "commit"), "still stands in people.db-wal"),
        (erasing(DELETE, "commit", TRUNCATE), "still stands in people.db"),
        (erasing(SECURE, DELETE, "commit"), "still stands in people.db-wal"),
        (erasing("nonsense"), "it raised OperationalError"),
    ],
)
def test_erased(erase, verdict, capsys):
    exercises.erased.check(erase)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "winner, verdict",
    [
        (lambda remarks: Counter(dict(remarks).values()).most_common(1)[0][0], "Right."),
        (lambda remarks: Counter(label for _, label in remarks).most_common(1)[0][0], "forty remarks of one person"),
        (lambda remarks: "defect", "the only one who has said something"),
        (lambda remarks: Counter(dict(remarks[::-1]).values()).most_common(1)[0][0], "has corrected herself"),
    ],
)
def test_one_vote(winner, verdict, capsys):
    exercises.one_vote.check(winner)
    assert verdict in capsys.readouterr().out


def hashed_again(path, expected, reads):
    """Read the file first and compute the checksum of another read."""
    contents = [path.read_bytes() for _ in range(reads)]
    if hashlib.sha256(contents[1]).hexdigest() != expected:
        raise ValueError("other weights")
    return contents[reads - 1 if reads > 2 else 0]


def loaded(path, expected, part=slice(None), again=False):
    content = path.read_bytes()
    if hashlib.sha256(content[part]).hexdigest() != expected:
        raise ValueError("other weights")
    return path.read_bytes() if again else content


@pytest.mark.parametrize(
    "load, verdict",
    [
        (loaded, "Right."),
        (lambda path, expected: path.read_bytes(), "one bit of byte 0 was flipped"),
        (lambda path, expected: b"", "does not return the bytes"),
        (lambda path, expected: loaded(path, expected, slice(10)), "it raised ValueError: other weights"),
        (lambda path, expected: loaded(path, expected, again=True), "it reads the file more than once"),
        (lambda path, expected: hashed_again(path, expected, 2), "it reads the file more than once"),
        (lambda path, expected: hashed_again(path, expected, 3), "it reads the file more than once"),
    ],
)
def test_checked_weights(load, verdict, capsys):
    exercises.checked_weights.check(load)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    "threshold, verdict",
    [
        (0.6, "Right."),
        (0.2, "of the strangers: go higher"),
        (0.95, "another threshold separates them better"),
        (2, "between 0 and 1"),
        (True, "between 0 and 1"),
        ("0.6", "between 0 and 1"),
    ],
)
def test_membership_threshold(threshold, verdict, capsys):
    dice = np.random.default_rng(0)
    exercises.membership_threshold.check(threshold, dice.uniform(0.6, 1, 60), dice.uniform(0.1, 0.6, 60))
    assert verdict in capsys.readouterr().out


# the helpers


def test_a_tap_hears_both_directions_of_http_and_changes_nothing(detector):
    picture = (paths.IMAGES / "clock.png").read_bytes()
    with serve(create_app(detector), port=0) as server, traffic.Tap(server.url) as tap:
        answers = [
            requests.post(f"{url}/predict", files={"file": picture}, timeout=60).content
            for url in (server.url, tap.url)
        ]
        assert answers[0] == answers[1]
        assert picture in tap.heard and answers[0] in tap.heard
    with pytest.raises(requests.ConnectionError):
        requests.get(tap.url, timeout=5)


def test_a_tap_understands_nothing_of_tls(tmp_path):
    authority = certificates.make_authority(tmp_path)
    certfile, keyfile = certificates.make_certificate(tmp_path)
    with (
        serve(create_app({}), port=0, certfile=certfile, keyfile=keyfile) as server,
        traffic.Tap(server.url) as tap,
        requests.Session() as session,
    ):
        assert tap.url.startswith("https://")
        session.trust_env = False
        assert session.get(f"{tap.url}/health", verify=str(authority), timeout=20).json() == {"status": "alive"}
        assert len(tap.heard) > 500 and b"alive" not in tap.heard and b"/health" not in tap.heard


def test_a_tap_finds_a_server_that_was_away_for_a_time():
    with serve(create_app({}), port=0) as first:
        port = first.port
    with traffic.Tap(f"http://127.0.0.1:{port}") as tap:
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{tap.url}/health", timeout=20)
        with serve(create_app({}), port=port):
            assert requests.get(f"{tap.url}/health", timeout=20).ok


def test_a_tap_survives_a_client_that_goes_away():
    with serve(create_app({}), port=0) as server, traffic.Tap(server.url) as tap:
        host, _, port = tap.url.removeprefix("http://").rpartition(":")
        socket.create_connection((host, int(port))).close()
        assert requests.get(f"{tap.url}/health", timeout=20).ok


@pytest.mark.parametrize("url", ["http://example.com:80", "ftp://127.0.0.1:21", "127.0.0.1", "http://127.0.0.1", 8000])
def test_a_tap_listens_to_this_machine_only(url):
    with pytest.raises(ValueError, match="url"):
        traffic.Tap(url)


def shape(content):
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR).shape


def hungry(content):
    return len(bytearray(900_000_000))


def busy(content):
    return len(b"1" * 100_000_000)


def leaving(content):
    raise SystemExit(3)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process")
def test_a_child_is_limited_and_measured():
    picture = images.encode(np.zeros((300, 400, 3), np.uint8))
    seen = traffic.in_child(shape, picture, megabytes=500)
    assert seen.result == "(300, 400, 3)" and seen.error is None and seen.megabytes < 50
    refused = traffic.in_child(hungry, b"", megabytes=300)
    assert refused.result is None and refused.error.startswith("MemoryError") and refused.megabytes < 50
    assert 80 < traffic.in_child(busy, b"", megabytes=500).megabytes < 150
    with pytest.raises(RuntimeError, match="ended too early"):
        traffic.in_child(leaving, b"", megabytes=300)


def test_elsewhere_nothing_is_called(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    seen = traffic.in_child(hungry, b"", megabytes=300)
    assert seen.result is None and "only Linux" in seen.error and np.isnan(seen.megabytes)


@pytest.mark.parametrize("before", [None, "/tmp"])
def test_the_data_folder_holds_inside_the_block_only(before, tmp_path, monkeypatch):
    if before is None:
        monkeypatch.delenv("LAB_ROOT", raising=False)
    else:
        monkeypatch.setenv("LAB_ROOT", before)
    with pytest.raises(KeyError), traffic.data_folder(tmp_path):
        assert paths.root() == tmp_path.resolve()
        raise KeyError
    assert os.environ.get("LAB_ROOT") == before


def test_files_with_some_bytes_are_found_in_folders_too(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.bin").write_bytes(b"\0needle\0")
    with sqlite3.connect(tmp_path / "b.db") as connection:
        connection.execute("CREATE TABLE notes AS SELECT 'needle' AS text")
    connection.close()
    (tmp_path / "c.txt").write_text("hay")
    assert traffic.files_with(tmp_path, b"needle") == ["b.db", "inner/a.bin"]
