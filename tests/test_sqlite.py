import sqlite3

import pytest

from labsupport import sqlite


@pytest.fixture
def file(tmp_path):
    return tmp_path / "some.db"


@pytest.fixture
def other(file):
    """Another connection, in the middle of a transaction that lets nobody else write."""
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    yield connection
    connection.close()


def test_a_file_in_use_is_switched_once_the_other_lets_go(file, other, monkeypatch):
    monkeypatch.setattr(sqlite.time, "sleep", lambda _: other.in_transaction and other.execute("COMMIT"))
    connection = sqlite3.connect(file, timeout=0)
    sqlite.write_ahead(connection)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_whoever_never_lets_go_is_not_waited_for_for_ever(file, other):
    connection = sqlite3.connect(file, timeout=0)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        sqlite.write_ahead(connection, patience=0)
    connection.close()


def test_a_file_that_is_no_database_is_an_error_at_once(file):
    file.write_bytes(b"no database" * 100)
    connection = sqlite3.connect(file)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        sqlite.write_ahead(connection)
    connection.close()
