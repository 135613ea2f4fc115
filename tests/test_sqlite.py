"""Files of SQLite: under any path, their owner's alone, and read while somebody else writes, whichever module keeps them."""

import os
import sqlite3
import stat
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from labsupport import sqlite
from labsupport.access import Users
from labsupport.automation import Degree, ReviewQueue, decide
from labsupport.batch.ledger import Ledger, Source
from labsupport.edge import Outbox
from labsupport.log import PredictionLog
from labsupport.rollout import Journal, State

SHADOWED = decide([], Degree.SHADOW)
SOURCE = Source(Path("a.png"), b"a.png", "stamp")


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


# everything here that keeps something in a file of SQLite: how it is opened, written and read


class Kept:
    """One store in a file: `use` opens it and writes to it, `read` reads whatever can be read."""

    name = "kept.db"

    def __init__(self, folder: Path) -> None:
        self.file = folder / self.name


class KeptLog(Kept):
    def use(self):
        log = PredictionLog(self.file)
        log.record(id="a", version="v", latency=0.1, detections=[], features=None)
        log.flush()
        return log

    def open(self):
        return PredictionLog(self.file)

    def read(self, log) -> list:
        return [len(log.frame()), len(log.pairs()), len(log.decisions()), log.columns("id"), bool(log.oldest())]


class KeptJournal(Kept):
    def use(self):
        return self.open()

    def open(self):
        return Journal(self.file, State(stable="v1"))

    def read(self, journal) -> list:
        return [journal.state.stable, len(journal.history())]


class KeptOutbox(Kept):
    def use(self):
        outbox = self.open()
        outbox.put("p1", {"verdict": "accept"})
        return outbox

    def open(self):
        return Outbox(self.file)

    def read(self, outbox) -> list:
        return [outbox.get("p1"), len(outbox.batch(10)), outbox.waiting(), outbox.refused()]


class KeptQueue(Kept):
    def use(self):
        queue = self.open()
        queue.add("a", SHADOWED)
        return queue

    def open(self):
        return ReviewQueue(self.file)

    def read(self, queue) -> list:
        return [queue.waiting(), queue.picture("a"), len(queue.labels())]


class KeptUsers(Kept):
    def use(self):
        users = Users(self.file)
        if not users.all():
            users.add("ana", "client")
        return users

    def close(self, users) -> None:
        """Each call closes the file."""


class KeptLedger(Kept):
    name = ".partial-table.csv/ledger.db"

    def use(self):
        ledger = Ledger(self.file.parent.parent / "table.csv", [SOURCE])
        if not ledger.done():
            ledger.add(SOURCE, 0, {"version": "v"}, then=lambda: None)
        return ledger

    def close(self, ledger) -> None:
        ledger.__exit__(KeyboardInterrupt)  # as a run that is stopped: the ledger stays


READABLE = [KeptLog, KeptJournal, KeptOutbox, KeptQueue]
STORES = [*READABLE, KeptUsers, KeptLedger]  # a ledger is one process's alone


def close(store: Kept, opened) -> None:
    getattr(store, "close", lambda one: one.close())(opened)


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield
    os.umask(before)


# its owner's alone


@pytest.mark.parametrize("kind", STORES)
def test_what_is_kept_is_its_owners_alone_whatever_the_umask(kind, tmp_path, umask):
    store = kind(tmp_path)
    opened = store.use()
    found = modes(tmp_path)
    close(store, opened)
    assert {*found.values()} <= {0o600, 0o700} and len(found) >= 1
    assert found[store.file.name] == 0o600
    if kind not in (KeptLog, KeptUsers):  # these may have closed their connection by now, and with it these files
        assert found["kept.db-wal" if kind is not KeptLedger else "ledger.db-wal"] == 0o600


@pytest.mark.parametrize("kind", STORES)
def test_what_others_could_read_before_they_cannot_read_any_more(kind, tmp_path):
    store = kind(tmp_path)
    first = store.use()
    for path in tmp_path.rglob("*"):
        path.chmod(0o777 if path.is_dir() else 0o666)
    if kind is KeptLedger:  # which one process has at a time
        close(store, first)
    second = store.use()
    found = modes(tmp_path)
    close(store, second)
    if kind is not KeptLedger:
        close(store, first)
    assert {*found.values()} <= {0o600, 0o700}


def test_another_programs_file_stays_as_readable_as_it_was(file):
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE songs (id)")
    file.chmod(0o644)
    for kind in (lambda: PredictionLog(file), lambda: Outbox(file), lambda: ReviewQueue(file)):
        with pytest.raises(Exception, match=r"another program|holds schema"):
            kind()
        assert stat.S_IMODE(file.stat().st_mode) == 0o644


def test_a_file_that_cannot_be_made_private_is_told_of(file, monkeypatch, caplog):
    def refuse(self, mode):
        raise PermissionError(1, "Operation not permitted")

    file.touch(mode=0o644)
    monkeypatch.setattr(Path, "chmod", refuse)
    sqlite.make_private(file)
    assert f"{file}: others may be able to read it" in caplog.text


# under any path

NAMES = [
    *(
        "My%20Course",
        "100%",
        "what?",
        "what?mode=memory",
        "a#b",
        "a;b&c",
        "it's",
        'so "called"',
        "two\nlines",
        "tab\there",
    ),
    *("Zoë ☃", " spaces ", "file:x", ":memory:", "back\\slash", "dots...", "~", "$HOME", "*", "[1]", "{x}", "é" * 60),
    os.fsdecode(b"no \xff text"),
]


@pytest.mark.parametrize("name", ["100%?mode=memory#", "two\nlines 'it''s'", "file:x", NAMES[-1]], ids=repr)
@pytest.mark.parametrize("kind", STORES)
def test_any_legal_name_of_a_folder_or_file_works(kind, name, tmp_path, monkeypatch):
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(kind, "name", kind.name if kind is KeptLedger else f"{name}.db")
    store = kind(folder)
    close(store, store.use())
    assert store.file.is_file() and store.file.stat().st_size > 0
    assert [path.name for path in tmp_path.iterdir()] == [name]  # nothing landed elsewhere
    if kind in READABLE:
        again = store.open()
        assert store.read(again)
        close(store, again)


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_an_address_with_any_legal_path_is_that_of_the_file(name, tmp_path, monkeypatch):
    folder = tmp_path / name
    folder.mkdir()
    for address in (f"sqlite:///{folder}/a.db", folder / "b.db"):
        with PredictionLog(address) as log:
            log.record(id="a", version="v", latency=0.1, detections=[], features=None)
    monkeypatch.chdir(folder)
    with PredictionLog("sqlite:///c.db") as log:
        assert log.frame().empty
    assert {"a.db", "b.db", "c.db"} <= {path.name for path in folder.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("kind", READABLE)
def test_a_path_that_is_too_long_for_sqlite_is_refused_in_words(kind, tmp_path):
    folder = tmp_path / "/".join(["x" * 200] * 3)
    folder.mkdir(parents=True)
    with pytest.raises(OSError, match="SQLite takes paths of at most 503 bytes"):
        kind(folder).open()
    assert not list(folder.iterdir())


@pytest.mark.parametrize("kind", READABLE)
def test_the_longest_path_works(kind, tmp_path):
    folder, left = tmp_path / ("x" * 200), 503 - len(f"{tmp_path}/{'x' * 200}/kept.db") - 1
    folder = folder / ("y" * (left // 2)) / ("z" * (left - left // 2 - 1))
    folder.mkdir(parents=True)
    store = kind(folder)
    assert len(os.fsencode(store.file)) == 503
    opened = store.use()
    assert store.read(opened)
    close(store, opened)


# who reads waits for no writer


@pytest.mark.parametrize("kind", READABLE)
def test_who_reads_waits_for_no_other_process_that_writes(kind, tmp_path):
    store = kind(tmp_path)
    opened = store.use()
    expected = store.read(opened)
    with closing(sqlite3.connect(store.file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        started = time.perf_counter()
        assert store.read(opened) == expected
        newcomer = store.open()  # to open a file that is there is to read it
        assert store.read(newcomer) == expected
        took = time.perf_counter() - started
        other.execute("ROLLBACK")
    for one in (opened, newcomer):
        close(store, one)
    assert took < 1  # a lock is waited for up to 5 s


def test_who_reads_a_review_queue_waits_for_no_thread_that_writes(file):
    with ReviewQueue(file) as queue, closing(sqlite3.connect(file, isolation_level=None)) as other:
        queue.add("a", SHADOWED)
        other.execute("BEGIN IMMEDIATE")
        writer = threading.Thread(target=queue.add, args=("b", SHADOWED))
        writer.start()
        while not queue._lock.locked():
            time.sleep(0.001)
        started = time.perf_counter()
        assert queue.waiting() == 1 and queue.picture("a") is None
        took = time.perf_counter() - started
        assert writer.is_alive()
        other.execute("ROLLBACK")
        writer.join()
        assert queue.waiting() == 2
    assert took < 1
