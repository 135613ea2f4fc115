"""The audit trail: no change goes unnoticed, no entry whose writing returned is lost, and what fails says so."""

import asyncio
import hashlib
import json
import random
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import tracemalloc
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import disk_of
from labsupport import sqlite
from labsupport.access import audit, chain, verification
from labsupport.access.audit import AuditTrail, AuditUnavailable, Entry, lines
from labsupport.access.chain import Keeper, Link

CHILD = Path(__file__).parent / "audit_child.py"
FAST = "/dev/shm" if Path("/dev/shm").is_dir() else None  # where a file costs no disk
FIELDS = ("time", "person", "role", "address", "action", "object", "effect")


@pytest.fixture
def folder():
    with tempfile.TemporaryDirectory(dir=FAST) as name:
        yield Path(name)


@pytest.fixture
def trail(folder):
    with AuditTrail(folder / "audit.db", folder / "keys") as opened:
        yield opened


def entry(number: int = 0, **changed) -> Entry:
    usual = {"time": 1.7e9 + number / 7, "person": f"p-{number % 3:012x}", "role": "client", "address": "127.0.0.1"}
    usual |= {"action": "POST /predict", "object": f"{number:032x}", "effect": "200"}
    return Entry(**(usual | changed))


NAMELESS = {"person": None, "role": None, "object": None}
ODD = [entry(1, **NAMELESS), entry(2, action="GET /ü\n\t\"\\'💡", effect="403 refused"), entry(3, time=0.1)]
FORTY = ODD + [entry(number) for number in range(4, 41)]


@contextmanager
def opened(path: Path):
    """The file, as any program with SQLite opens it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        yield connection


def rows(path: Path) -> list[tuple]:
    with opened(path) as connection:
        return connection.execute("SELECT * FROM audit ORDER BY number").fetchall()


# the chain


def hmac_sha256(key: bytes, message: bytes) -> bytes:
    """RFC 2104, from the hash alone."""
    padded = key.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded) + message).digest()
    return hashlib.sha256(bytes(byte ^ 0x5C for byte in padded) + inner).digest()


def as_json(value) -> str:
    if value is None or isinstance(value, int | float):
        return "null" if value is None else repr(value)
    units = value.encode("utf-16-be")
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t"}
    codes = [int.from_bytes(units[i : i + 2], "big") for i in range(0, len(units), 2)]
    characters = [chr(code) if 32 <= code < 127 else escapes.get(chr(code), f"\\u{code:04x}") for code in codes]
    return '"' + "".join(escapes.get(c, c) for c in characters) + '"'


def chained(key: bytes | None, previous: bytes, values: tuple) -> bytes:
    """The hash of a row of these values, the number first; without a key, their SHA-256."""
    message = previous + f"[{', '.join(map(as_json, values))}]".encode()
    return hashlib.sha256(message).digest() if key is None else hmac_sha256(key, message)


def test_each_hash_is_the_hmac_of_the_one_before_it_the_number_and_all_fields(trail, folder):
    trail.append(FORTY[:20])
    trail.append(FORTY[20:])
    key, previous = (folder / "keys" / "audit.key").read_bytes(), bytes(32)
    for number, row in enumerate(rows(trail.path), start=1):
        assert row[:-1] == (number, *(getattr(FORTY[number - 1], field) for field in FIELDS))
        assert row[-1] == chained(key, previous, row[:-1])
        previous = row[-1]
    text = f"{40:019} {previous.hex()}"
    assert (folder / "keys" / "audit.anchor").read_text() == f"{text} {hmac_sha256(key, text.encode()).hex()}\n"


def test_only_the_owner_can_read_the_files_and_the_key_is_random(trail, folder):
    trail.append([entry()])
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in [folder / "keys", *(folder / "keys").iterdir()]}
    assert modes == {"keys": "0o700", "audit.key": "0o600", "audit.anchor": "0o600"}
    assert {oct(path.stat().st_mode & 0o777) for path in folder.glob("audit.db*")} == {"0o600"}
    with AuditTrail(folder / "other.db", folder / "others") as other:
        other.append([entry()])
    keys = {(folder / name / "audit.key").read_bytes() for name in ("keys", "others")}
    assert len(keys) == 2 and all(len(key) == 32 for key in keys)


def test_nothing_changes_or_removes_a_row(trail):
    public = {name for name in dir(trail) if not name.startswith("_")}
    assert public == {"append", "begun", "close", "entries", "path", "verify", "write"}


def test_a_trail_without_entries_is_intact_and_verifying_makes_no_file(trail, folder):
    assert (trail.verify().intact, trail.verify().rows, list(trail.entries())) == (True, 0, [])
    assert list(folder.iterdir()) == []
    trail.append([])
    assert trail.verify() == verification.Verdict(True, 0)


# tampering


def moved(connection: sqlite3.Connection, first: int, by: int) -> None:
    """Renumber the rows from `first` on."""
    connection.execute("UPDATE audit SET number = -number WHERE number >= ?", [first])
    connection.execute("UPDATE audit SET number = -number + ? WHERE number < 0", [by])


def change_a_field(connection, chance, count):
    number, field = chance.randint(1, count), chance.choice(FIELDS)
    (old,) = connection.execute(f"SELECT {field} FROM audit WHERE number = ?", [number]).fetchone()
    nullable = [None] if field in ("person", "role", "object") else []
    texts = ["", "0", "admin", "null", "127.0.0.2", f"{old} ", f"{old}\n", str(old)[:-1], *nullable]
    new = chance.choice([old + 1e-6, old - 3600, -old] if field == "time" else [t for t in texts if t != old])
    if field != "time" and old is not None and chance.random() < 0.2:
        new = old.encode()  # the same bytes, but no text
    connection.execute(f"UPDATE audit SET {field} = ? WHERE number = ?", [new, number])
    return number


def move_a_text_into_the_next_field(connection, chance, count):
    number = chance.randint(4, count)
    connection.execute("UPDATE audit SET role = person || role, person = '' WHERE number = ?", [number])
    return number


def change_a_hash(connection, chance, count):
    number = chance.randint(1, count)
    (old,) = connection.execute("SELECT hash FROM audit WHERE number = ?", [number]).fetchone()
    place = chance.randrange(len(old))
    new = old[:place] + bytes([old[place] ^ 1 << chance.randrange(8)]) + old[place + 1 :]
    new = chance.choice([new, new, new, old[:-1], old + b"\0", b"", old.hex()])
    connection.execute("UPDATE audit SET hash = ? WHERE number = ?", [new, number])
    return number


def delete_a_row(connection, chance, count):
    number = chance.randint(1, count)
    connection.execute("DELETE FROM audit WHERE number = ?", [number])
    if chance.random() < 0.5:
        moved(connection, number, -1)
    return number


def swap_two_rows(connection, chance, count):
    first, second = sorted(chance.sample(range(1, count + 1), 2))
    for old, new in ((first, -1), (second, first), (-1, second)):
        connection.execute("UPDATE audit SET number = ? WHERE number = ?", [new, old])
    return first


def copy_a_row(connection, chance, count):
    source, place = chance.randint(1, count), chance.randint(1, count + 1)
    row = connection.execute("SELECT * FROM audit WHERE number = ?", [source]).fetchone()
    moved(connection, place, 1)
    connection.execute(f"INSERT INTO audit VALUES ({', '.join('?' * 9)})", [place, *row[1:]])
    return place + (source == place)  # the copy is in the place of the row, and the row is too much


def make_up_a_row(connection, chance, count):
    place = chance.randint(1, count + 1)
    before = connection.execute("SELECT hash FROM audit WHERE number = ?", [place - 1]).fetchone()
    values = (place, 1.7e9, "p-1", "admin", "127.0.0.1", "GET /", None, "200")
    moved(connection, place, 1)
    hash = chained(chance.randbytes(32), before[0] if before else bytes(32), values)
    connection.execute(f"INSERT INTO audit VALUES ({', '.join('?' * 9)})", [*values, hash])
    return place


def add_a_row_far_away(connection, chance, count):
    number = chance.choice([0, -1, -(2**63), 2**63 - 1, count + 2])
    values = (number, 1.7e9, None, None, "", "", None, "", bytes(32))
    connection.execute(f"INSERT INTO audit VALUES ({', '.join('?' * 9)})", values)
    return min(number, count + 1)


def chain_the_rest_without_the_key(connection, chance, count):
    first, key = chance.randint(1, count), chance.choice([chance.randbytes(32), bytes(32), b"", None])
    before = connection.execute("SELECT hash FROM audit WHERE number = ?", [first - 1]).fetchone()
    previous = before[0] if before else bytes(32)
    for row in connection.execute("SELECT * FROM audit WHERE number >= ? ORDER BY number", [first]).fetchall():
        previous = chained(key, previous, row[:-1])
        connection.execute("UPDATE audit SET hash = ? WHERE number = ?", [previous, row[0]])
    return first


def cut_the_tail(connection, chance, count):
    first = chance.randint(1, count)
    connection.execute("DELETE FROM audit WHERE number >= ?", [first])
    return first


TAMPERINGS = (
    *(change_a_field, change_a_field, move_a_text_into_the_next_field, change_a_hash, delete_a_row, swap_two_rows),
    *(copy_a_row, make_up_a_row, add_a_row_far_away, chain_the_rest_without_the_key, cut_the_tail),
)


def test_a_thousand_random_tamperings_are_found_at_the_first_wrong_row(trail):
    trail.append(FORTY[:20])
    trail.close()
    whole, chance = trail.path.read_bytes(), random.Random(17)
    for turn in range(1_000):
        tamper = TAMPERINGS[turn % len(TAMPERINGS)]
        with opened(trail.path) as connection, connection:
            connection.execute("BEGIN")
            first = tamper(connection, chance, 20)
        verdict = trail.verify()
        assert (verdict.intact, verdict.wrong) == (False, first), (turn, tamper, verdict)
        assert verdict.rows == max(first - 1, 0) and str(first) in str(verdict).replace(",", "")
        trail.path.write_bytes(whole)
        assert trail.verify() == verification.Verdict(True, 20)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER quiet BEFORE INSERT ON audit WHEN NEW.effect = '403' BEGIN SELECT RAISE(IGNORE); END",
        "ALTER TABLE audit ADD COLUMN note TEXT",
        "ALTER TABLE audit RENAME COLUMN role TO rank",
    ],
)
def test_what_was_added_to_the_tables_is_found_and_not_written_to(trail, statement):
    trail.append(FORTY)
    trail.close()
    with opened(trail.path) as connection:
        connection.execute(statement)
    assert not trail.verify().intact
    with pytest.raises(AuditUnavailable):
        trail.append([entry()])


def test_random_damage_to_the_file_is_found_or_changes_no_row(trail):
    trail.append(FORTY)
    trail.close()
    whole, chance, before = trail.path.read_bytes(), random.Random(3), list(trail.entries())
    found = 0
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(chance.choice([1, 100])):
            damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        trail.path.write_bytes(damaged)
        try:
            if trail.verify().intact:
                assert list(trail.entries()) == before
            else:
                found += 1
        except AuditUnavailable:  # of another version of SQLite
            found += 1
        for left in trail.path.parent.glob("audit.db-*"):
            left.unlink()
    assert found > 100


def test_the_words_say_what_is_wrong(trail):
    trail.append(FORTY)

    def words(statement: str) -> str:
        with opened(trail.path) as connection:
            connection.execute("BEGIN")
            connection.execute(statement)
            connection.execute("COMMIT")
        return str(trail.verify())

    assert str(trail.verify()) == "intact, rows: 40"
    cut = "NOT INTACT: rows 38 to 40 are missing. Rows before that are intact: 37"
    assert words("DELETE FROM audit WHERE number >= 38") == cut
    assert words("DELETE FROM audit WHERE number = 20").startswith("NOT INTACT: rows 20 to 20 are missing. Rows")
    assert "NOT INTACT: row 7: it is not the row that was written" in words(
        "UPDATE audit SET role = '' WHERE number = 7"
    )
    assert words("INSERT INTO audit SELECT 0, * FROM (SELECT 1.0, '', '', '', '', '', '', x'00')").startswith(
        "NOT INTACT: row 0 was added"
    )


def test_what_is_cut_is_still_missing_after_the_next_entries(trail, caplog):
    trail.append(FORTY)
    with opened(trail.path) as connection:
        connection.execute("DELETE FROM audit WHERE number > 30")
    trail.append([entry()])
    trail.append([entry()])
    assert [row[0] for row in rows(trail.path)][-3:] == [30, 41, 42]
    assert (trail.verify().wrong, trail.verify().rows) == (31, 30)
    assert f"{trail.path}: rows 31 to 40 are missing" in caplog.messages


def test_a_removed_file_is_noticed_by_all_and_the_next_rows_follow_the_anchor(trail, folder):
    with AuditTrail(trail.path, folder / "keys") as other:
        trail.append(FORTY)
        other.append([entry()])
        for path in folder.glob("audit.db*"):
            path.unlink()
        verdict = trail.verify()
        assert (verdict.intact, verdict.wrong) == (False, 1) and "rows 1 to 41 are missing" in str(verdict)
        trail.append([entry()])
        other.append([entry()])
        trail.append([entry()])
    assert [row[0] for row in rows(trail.path)] == [42, 43, 44]
    assert trail.verify().wrong == 1
    key = (folder / "keys" / "audit.key").read_bytes()
    assert all(after[-1] == chained(key, before[-1], after[:-1]) for before, after in pairwise(rows(trail.path)))


def test_an_older_copy_of_the_file_is_found(trail):
    trail.append(FORTY[:30])
    trail.close()
    older = trail.path.read_bytes()
    trail.append(FORTY[30:])
    trail.close()
    trail.path.write_bytes(older)
    assert (trail.verify().wrong, trail.verify().rows) == (31, 30)


def test_rows_that_the_key_made_in_another_history_are_found(trail, folder):
    trail.append(FORTY[:20])
    trail.close()
    shutil.copytree(folder, folder / "copy")
    with AuditTrail(folder / "copy" / "audit.db", folder / "copy" / "keys") as other:
        other.append([entry(effect="403 refused")] * 20)
    trail.append(FORTY[20:])
    with opened(trail.path) as connection, opened(other.path) as strange:
        row = strange.execute("SELECT * FROM audit WHERE number = 30").fetchone()
        connection.execute(f"REPLACE INTO audit VALUES ({', '.join('?' * 9)})", row)
    assert trail.verify().wrong == 30
    trail.close()
    shutil.copy(other.path, trail.path)
    assert trail.verify().wrong == 40 and "not the row in the anchor" in str(trail.verify())


# the key and the anchor


def kept(folder: Path, name: str) -> Path:
    return folder / "keys" / f"audit.{name}"


TROUBLES = {
    "no key": (lambda folder: kept(folder, "key").unlink(), "key .*audit.key is missing"),
    "short key": (lambda folder: kept(folder, "key").write_bytes(b"short"), "key .*audit.key has 5 bytes, not 32"),
    "wrong key": (lambda folder: kept(folder, "key").write_bytes(bytes(32)), "do not belong together"),
    "no anchor": (lambda folder: kept(folder, "anchor").unlink(), "anchor .*audit.anchor is missing"),
    "empty anchor": (lambda folder: kept(folder, "anchor").write_bytes(b""), "anchor .*audit.anchor is damaged"),
    "made up anchor": (
        lambda folder: kept(folder, "anchor").write_text(f"{2:019} {'0' * 64} {'0' * 64}\n"),
        "do not belong together",
    ),
    "no file and no key": (
        lambda folder: [path.unlink() for path in (folder / "audit.db", kept(folder, "key"))],
        "key .*audit.key is missing",
    ),
    "no folder": (lambda folder: shutil.rmtree(folder / "keys"), "key .*audit.key is missing"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_without_the_right_key_and_anchor_nothing_is_written_and_verify_says_why(trail, folder, trouble, caplog):
    trail.append(FORTY)
    trail.close()
    shutil.copytree(folder / "keys", folder / "copy")
    spoil, words = TROUBLES[trouble]
    spoil(folder)
    with pytest.raises(AuditUnavailable) as error:
        trail.append([entry()])
    assert str(folder) not in str(error.value)
    verdict = trail.verify()
    assert (verdict.intact, verdict.wrong) == (False, None)
    assert re.search(words, str(verdict)) and re.search(words, caplog.text)
    shutil.rmtree(folder / "keys", ignore_errors=True)
    shutil.copytree(folder / "copy", folder / "keys")
    trail.append([entry()])
    assert [row[0] for row in rows(trail.path)][-1] == 41
    assert trail.verify().intact == (trouble != "no file and no key")


def test_an_anchor_that_is_removed_while_the_trail_is_open_is_not_made_again(trail, folder):
    trail.append(FORTY)
    kept(folder, "anchor").unlink()
    with pytest.raises(AuditUnavailable):
        trail.append([entry()])
    assert not kept(folder, "anchor").exists()


def test_a_crash_while_the_key_is_made_leaves_a_trail_that_can_begin(trail, folder, monkeypatch):
    def create(path: Path, content: bytes, create=chain._create) -> None:
        if path.name == "audit.key":
            raise OSError("the crash")
        create(path, content)

    with monkeypatch.context() as patched, pytest.raises(AuditUnavailable):
        patched.setattr(chain, "_create", create)
        trail.append([entry()])
    assert kept(folder, "anchor").exists() and trail.verify() == verification.Verdict(True, 0)
    trail.append([entry()])
    assert trail.verify() == verification.Verdict(True, 1)


def anchored(folder: Path) -> int:
    keeper = Keeper(folder / "keys")
    return keeper.anchored(keeper.key()).number


def test_rows_that_a_crash_left_beyond_the_anchor_are_intact_and_protected(trail, folder, monkeypatch):
    trail.append(FORTY[:38])
    with monkeypatch.context() as patched, pytest.raises(AuditUnavailable):
        patched.setattr(Keeper, "anchor", lambda *_: (_ for _ in ()).throw(OSError("the crash")))
        trail.append(FORTY[38:])
    assert anchored(folder) == 38 and trail.verify() == verification.Verdict(True, 40)
    with opened(trail.path) as connection:
        connection.execute("UPDATE audit SET effect = '500' WHERE number = 39")
        assert trail.verify().wrong == 39
        connection.execute("UPDATE audit SET effect = '200' WHERE number = 39")
    trail.append([entry()])
    assert anchored(folder) == 41 and trail.verify() == verification.Verdict(True, 41)


def test_the_anchor_covers_the_rows_when_append_returns_and_never_goes_back(trail, folder, monkeypatch):
    for number in range(1, 6):
        trail.append([entry(), entry()])
        assert anchored(folder) == 2 * number
    keeper = Keeper(folder / "keys")
    keeper.anchor(keeper.key(), Link(9, bytes(32)))
    assert anchored(folder) == 10
    with AuditTrail(trail.path, folder / "keys") as other:
        turns = iter(["open", "committed"])

        def identity(path: Path, identity=sqlite.identity):
            if next(turns, None) == "committed":
                other.append([entry()])  # another process is faster than our anchor
            return identity(path)

        monkeypatch.setattr(sqlite, "identity", identity)
        trail.append([entry()])
    assert len(rows(trail.path)) == anchored(folder) == 12


def test_no_other_process_writes_while_the_anchor_is_compared_and_replaced(trail, folder, monkeypatch):
    trail.append([entry()])
    monkeypatch.setattr(audit, "BUSY", 0.01)
    refused = []
    with AuditTrail(trail.path, folder / "keys") as other:

        def anchor(keeper: Keeper, key: bytes, link: Link, anchor=Keeper.anchor) -> None:
            monkeypatch.undo()
            monkeypatch.setattr(audit, "BUSY", 0.01)
            with pytest.raises(AuditUnavailable) as error:
                other.append([entry()])
            refused.append(str(error.value.__cause__))
            anchor(keeper, key, link)

        monkeypatch.setattr(Keeper, "anchor", anchor)
        trail.append([entry()])
    assert refused == ["database is locked"] and len(rows(trail.path)) == anchored(folder) == 2


# several processes, and kill -9


def child(*words: object) -> list:
    """Run audit_child.py, and return the lines that it prints."""
    command = [sys.executable, str(CHILD), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(("writers", "count"), [(8, 1)] * 3 + [(4, 40)])
def test_processes_that_append_together_make_one_key_and_a_chain_without_gaps(trail, folder, writers, count):
    ((all_done, numbers),) = child("together", folder, count, writers)
    assert all_done and numbers == sorted(numbers)
    expected = writers * sum(number % 3 + 1 for number in range(count))
    assert trail.verify() == verification.Verdict(True, expected) and anchored(folder) == expected
    assert [number for number, _ in trail.entries()] == list(range(1, expected + 1))
    for writer in range(writers):
        own = [written.object for _, written in trail.entries() if written.object.startswith(f"{writer}-")]
        assert own == [f"{writer}-{number}" for number in range(count) for _ in range(number % 3 + 1)]


def test_kill_9_at_two_hundred_random_moments_loses_no_entry_whose_writing_returned(trail, folder):
    lives = child("kills", folder, 200, 5)
    assert len(lives) == 200 and not any(lost for _, _, lost in lives)
    verdicts = [verdict for verdict, _, _ in lives if verdict is not None]
    assert len(verdicts) == 50 and all(intact for intact, _ in verdicts)
    reported, (_, written) = sum(names for _, names, _ in lives), verdicts[-1]
    assert 300 < reported < written  # the rest was written, and killed before it could be reported
    trail.append([entry()])
    assert trail.verify() == verification.Verdict(True, written + 1)


# writing from coroutines


def test_write_returns_when_the_entry_is_committed_and_anchored(trail, folder):
    async def main() -> None:
        for number in range(1, 6):
            await trail.write(entry(number))
            assert len(rows(trail.path)) == anchored(folder) == number

    asyncio.run(main())


def test_entries_that_wait_share_a_transaction_and_none_returns_before_it(trail, monkeypatch):
    sizes = []
    commit = AuditTrail._commit
    monkeypatch.setattr(AuditTrail, "_commit", lambda self, rows: (sizes.append(len(rows)), commit(self, rows)))

    async def main() -> None:
        with trail._lock:  # as if a commit took long
            tasks = [asyncio.create_task(trail.write(entry(number))) for number in range(50)]
            done, _ = await asyncio.wait(tasks, timeout=0.05)
            assert not done
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert sum(sizes) == 50 and len(sizes) <= 2
    assert sorted(written.object for _, written in trail.entries()) == [f"{number:032x}" for number in range(50)]


def test_a_task_that_is_cancelled_keeps_its_entry_and_disturbs_no_other(trail):
    async def main() -> list[bool]:
        with trail._lock:  # as if a commit took long
            tasks = [asyncio.create_task(trail.write(entry(number))) for number in range(3)]
            await asyncio.wait(tasks, timeout=0.01)
            tasks[1].cancel()
            await asyncio.wait(tasks, timeout=0.01)
        done, _ = await asyncio.wait(tasks, timeout=20)
        assert done == {*tasks}
        return [task.cancelled() or task.exception() for task in tasks]

    assert asyncio.run(main()) == [None, True, None]
    assert len(rows(trail.path)) == 3


def test_close_writes_what_waits_and_the_trail_can_be_used_again(trail):
    async def main() -> None:
        tasks = [asyncio.create_task(trail.write(entry(number))) for number in range(3)]
        await asyncio.sleep(0)  # now they wait
        thread = trail._thread
        trail.close()
        assert len(rows(trail.path)) == 3 and not thread.is_alive()
        await asyncio.gather(*tasks)
        await trail.write(entry(3))

    asyncio.run(main())
    assert len(rows(trail.path)) == 4


# what fails


def refused(trail: AuditTrail, caplog: pytest.LogCaptureFixture) -> str:
    """The reason in the log, once, of writes that fail in both ways. The errors name no path."""
    caplog.clear()
    for write in (lambda: trail.append([entry()]), lambda: asyncio.run(trail.write(entry()))):
        with pytest.raises(AuditUnavailable) as error:
            write()
        assert str(error.value) == audit.UNWRITTEN and isinstance(error.value, OSError)
    (line,) = [record.message for record in caplog.records]
    assert line.startswith(f"{trail.path} cannot be written: ")
    return line


def test_a_locked_file_is_waited_for_and_then_named(trail, monkeypatch, caplog):
    trail.append([entry()])
    monkeypatch.setattr(audit, "BUSY", 0.05)
    with opened(trail.path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert "database is locked" in refused(trail, caplog)
        with pytest.raises(AuditUnavailable, match="cannot be read"):
            trail.verify()
    trail.append([entry()])
    assert caplog.messages[-1] == f"{trail.path} is written again"
    assert trail.verify() == verification.Verdict(True, 2)


def test_a_lock_that_ends_in_time_costs_nothing(trail, monkeypatch):
    trail.append([entry()])
    with opened(trail.path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        asked = []

        def monotonic() -> float:
            asked.append(None)
            if len(asked) == 4:  # the third time after an attempt
                connection.execute("COMMIT")
            return 0.0

        monkeypatch.setattr(audit, "time", SimpleNamespace(monotonic=monotonic))
        trail.append([entry()])
    assert len(rows(trail.path)) == 2


def test_a_missing_folder_is_named_and_used_once_it_is_there(folder, caplog):
    with AuditTrail(folder / "data" / "audit.db", folder / "keys") as trail:
        assert "No such file or directory" in refused(trail, caplog)
        assert not (folder / "keys").exists()
        (folder / "data").mkdir()
        trail.append([entry()])
        shutil.rmtree(folder / "data")
        assert "No such file or directory" in refused(trail, caplog)
        (folder / "data").mkdir()
        trail.append([entry()])
        assert trail.verify().wrong == 1 and [row[0] for row in rows(trail.path)] == [2]


def test_a_file_of_another_kind_is_left_alone(trail, caplog):
    trail.path.write_bytes(b"no database at all" * 100)
    assert "not a database" in refused(trail, caplog)
    assert trail.path.read_bytes() == b"no database at all" * 100 and not trail.verify().intact
    trail.path.unlink()
    with opened(trail.path) as connection:
        connection.execute("CREATE TABLE others (name TEXT)")
        assert "not those of an audit trail" in refused(trail, caplog)
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("others",)]
        assert not trail.verify().intact


def test_a_file_that_may_not_grow_is_named_and_loses_nothing(trail, caplog):
    trail.append(FORTY)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = Path(f"{trail.path}-wal").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))  # no file grows beyond
    try:
        refused(trail, caplog)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert trail.verify() == verification.Verdict(True, 40)
    trail.append([entry()])
    assert trail.verify() == verification.Verdict(True, 41)


def test_a_full_disk_is_named_and_loses_nothing(tmp_path, caplog):
    with disk_of(1, tmp_path / "disk") as disk, AuditTrail(disk / "audit.db", tmp_path / "keys") as trail:
        written = 0
        with pytest.raises(AuditUnavailable):
            while True:
                trail.append(FORTY)
                written += 40
        with pytest.raises(AuditUnavailable):
            trail.append(FORTY)
        assert "database or disk is full" in caplog.text and len(caplog.messages) == 1 and written > 400
        assert anchored(tmp_path) == written
        for path in disk.glob("audit.db*"):
            shutil.copy(path, tmp_path)
        with AuditTrail(tmp_path / "audit.db", tmp_path / "keys") as larger:
            larger.append([entry()])
            assert larger.verify() == verification.Verdict(True, written + 1)


def test_a_full_disk_of_keys_stops_nothing(tmp_path):
    with disk_of(1, tmp_path / "disk") as disk, AuditTrail(tmp_path / "audit.db", disk / "keys") as trail:
        trail.append([entry()])
        with (disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError):
            while True:
                filler.write(bytes(4096))
        trail.append(FORTY)
        assert trail.verify() == verification.Verdict(True, 41) and anchored(disk) == 41


def test_a_system_without_a_free_thread_is_an_error_that_passes(trail, monkeypatch):
    def repeat(*_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched, pytest.raises(AuditUnavailable):
        patched.setattr(audit.background, "repeat", repeat)
        asyncio.run(trail.write(entry()))
    asyncio.run(trail.write(entry()))
    assert len(rows(trail.path)) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"time": None},
        {"time": float("nan")},
        {"time": -1},
        {"time": 1e12},
        {"action": None},
        {"person": 5},
        {"effect": 200},
    ],
    ids=str,
)
def test_a_field_of_a_wrong_type_is_named_and_nothing_is_written(trail, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        trail.append([entry(), entry(**wrong)])
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        asyncio.run(trail.write(entry(**wrong)))
    with pytest.raises(ValueError, match="entry='GET /'"):
        trail.append(["GET /"])
    assert not trail.path.exists()


@pytest.mark.parametrize("wrong", ["", 5, None, "a\0b"])
def test_a_wrong_path_is_named(folder, wrong):
    with pytest.raises(ValueError, match="path="):
        AuditTrail(wrong, folder)
    with pytest.raises(ValueError, match="keys="):
        AuditTrail(folder, wrong)


def test_texts_that_nobody_can_read_are_replaced_and_long_ones_cut(trail):
    trail.append([entry(action="GET /\0\ud800x", object="y" * 201, address="z" * 200, time=-0.0)])
    ((number, written),) = trail.entries()
    assert (number, written.action, written.object) == (1, "GET /\ufffd?x", "y" * 199 + "…")
    assert (written.address, str(written.time)) == ("z" * 200, "0.0")
    assert trail.verify() == verification.Verdict(True, 1)


# reading


@pytest.mark.parametrize("chunk", [1, 13, 39, 40, 41])
def test_rows_are_read_in_chunks_and_selected(trail, monkeypatch, chunk):
    monkeypatch.setattr(verification, "CHUNK", chunk)
    trail.append(FORTY)
    assert list(trail.entries()) == list(enumerate(FORTY, start=1))
    assert trail.verify() == verification.Verdict(True, 40)
    since, until = FORTY[9].time, FORTY[29].time
    expected = [(number, each) for number, each in enumerate(FORTY, start=1) if since <= each.time < until]
    assert list(trail.entries(since, until)) == expected and len(expected) == 20
    assert [number for number, _ in trail.entries(since, until, FORTY[9].person)] == [10, 13, 16, 19, 22, 25, 28]
    assert list(trail.entries(person="nobody")) == []
    for wrong in ({"since": "now"}, {"until": float("inf")}, {"person": 5}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            trail.entries(**wrong)


def test_memory_does_not_grow_with_the_trail(trail, monkeypatch):
    assert verification.CHUNK <= 1_000
    monkeypatch.setattr(verification, "CHUNK", 50)
    trail.append(entry(number) for number in range(1_000))
    tracemalloc.start()
    assert trail.verify().rows == sum(1 for _ in trail.entries()) == 1_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000  # all rows together take 560 kB


def test_lines_name_the_person_and_no_entry_looks_like_two(trail):
    trail.append(
        [entry(1), entry(2, **NAMELESS), entry(3, action="GET /\n9\tadmin\x1b[2J\u202e\\", effect="403 refused")]
    )
    trail.append([entry(4, time=1.7e9 + 0.25)])
    printed = [line.split("\t") for line in lines(trail, {"p-000000000001": "Ada"})]
    assert printed == [
        ["number", "time", "person", "role", "address", "action", "object", "effect"],
        ["1", "2023-11-14T22:13:20.142+00:00", "Ada", "client", "127.0.0.1", "POST /predict", f"{1:032x}", "200"],
        ["2", "2023-11-14T22:13:20.285+00:00", "-", "-", "127.0.0.1", "POST /predict", "-", "200"],
        [
            *("3", "2023-11-14T22:13:20.428+00:00", "p-000000000000", "client", "127.0.0.1"),
            *(r"GET /\n9\tadmin\x1b[2J\u202e\\", f"{3:032x}", "403 refused"),
        ],
        ["4", "2023-11-14T22:13:20.250+00:00", "Ada", "client", "127.0.0.1", "POST /predict", f"{4:032x}", "200"],
    ]
    assert [line.split("\t")[0] for line in lines(trail, {}, 1.7e9 + 0.2, 1.7e9 + 0.4, "p-000000000001")] == [
        "number",
        "4",
    ]


def test_a_tampered_trail_can_still_be_printed(trail):
    trail.append([entry(1)])
    with opened(trail.path) as connection:
        connection.execute("UPDATE audit SET time = 'soon', address = x'ff', action = CAST(x'ff41' AS TEXT)")
    assert not trail.verify().intact
    (_, line) = lines(trail, {})
    assert line.split("\t")[1] == "soon" and line.split("\t")[4:6] == [r"b'\\xff'", r"\udcffA"]
