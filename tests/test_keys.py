"""A picture that one key encrypted opens with that key only, and a key that was removed stays away, whoever asks.

The independent reader is AES-GCM as NIST SP 800-38D writes it, on single blocks of AES. The files' bytes are the others.
"""

import os
import random
import stat
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from labsupport.access import Damaged, Forgotten, Keys, NoKey, key_folder, keys

ANN, BOB = "p-0123456789ab", "p-ba9876543210"
PICTURE = random.Random(1).randbytes(300)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "keys"


@pytest.fixture
def ring(folder):
    keys = Keys(folder)
    keys.make_folder()
    return keys


def gcm_open(key: bytes, nonce: bytes, content: bytes, bound: bytes) -> bytes:
    """Decrypt by the book: counter mode, and a tag from products in GF(2**128). Fails if the tag is another."""

    def block(number: int) -> int:
        encryptor = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()
        return int.from_bytes(encryptor.update(number.to_bytes(16, "big")))

    def times(x: int, y: int) -> int:
        product = 0
        for bit in range(127, -1, -1):
            product ^= y if x >> bit & 1 else 0
            y = y >> 1 ^ (0xE1 << 120 if y & 1 else 0)
        return product

    def blocks(data: bytes) -> list[int]:
        return [int.from_bytes(data[at : at + 16].ljust(16, b"\0")) for at in range(0, len(data), 16)]

    content, tag = content[:-16], content[-16:]
    start, total = int.from_bytes(nonce + b"\0\0\0\1"), 0
    for one in [*blocks(bound), *blocks(content), len(bound) * 8 << 64 | len(content) * 8]:
        total = times(total ^ one, block(0))
    assert (total ^ block(start)).to_bytes(16, "big") == tag
    stream = b"".join(block(start + 1 + number).to_bytes(16, "big") for number in range(len(blocks(content))))
    return bytes(a ^ b for a, b in zip(content, stream, strict=False))


# what is encrypted


def test_what_is_encrypted_is_aes_256_gcm_by_the_book(ring, folder):
    for size in (0, 1, 15, 16, 17, 300):
        secret = ring.encrypt(ANN, "picture ü", PICTURE[:size])
        key = (folder / ANN).read_bytes()
        assert (len(key), secret[:8]) == (32, b"LABAES1\0")
        assert gcm_open(key, secret[8:20], secret[20:], f"{ANN}\0picture ü".encode()) == PICTURE[:size]
        assert ring.decrypt(ANN, "picture ü", secret) == PICTURE[:size]


def test_no_two_contents_are_encrypted_alike_and_no_two_people_have_one_key(ring, folder):
    secrets = [ring.encrypt(ANN, "a", PICTURE) for _ in range(200)]
    assert len({secret[8:20] for secret in secrets}) == 200
    ring.encrypt(BOB, "a", PICTURE)
    assert (folder / ANN).read_bytes() != (folder / BOB).read_bytes()


def test_any_flipped_bit_is_noticed(ring):
    secret = ring.encrypt(ANN, "a", PICTURE)
    for at in range(len(secret)):
        changed = bytearray(secret)
        changed[at] ^= 1 << at % 8
        with pytest.raises(Damaged, match="a: this content was changed, or was encrypted for another person"):
            ring.decrypt(ANN, "a", bytes(changed))


def test_a_cut_or_swapped_content_and_another_persons_are_refused(ring):
    secret, other = ring.encrypt(ANN, "a", PICTURE), ring.encrypt(BOB, "a", PICTURE)
    for cut in (*range(40), 100, len(secret) - 1):
        with pytest.raises(Damaged):
            ring.decrypt(ANN, "a", secret[:cut])
    for person, name, content in [(ANN, "b", secret), (BOB, "a", secret), (ANN, "a", other), (ANN, "a", PICTURE)]:
        with pytest.raises(Damaged):
            ring.decrypt(person, name, content)
    with pytest.raises(Damaged):  # also under the same key: the person is bound, too
        (ring.folder / "p-copy").write_bytes((ring.folder / ANN).read_bytes())
        ring.decrypt("p-copy", "a", secret)


def test_person_and_name_cannot_be_divided_in_another_way(ring):
    """Both are bound with something between them that neither has."""
    (ring.folder / "p-1").write_bytes(bytes(range(32)))
    (ring.folder / "p-12").write_bytes(bytes(range(32)))
    with pytest.raises(Damaged):
        ring.decrypt("p-12", "3", ring.encrypt("p-1", "23", PICTURE))


# files


def test_the_files_are_their_owners_only_whatever_the_umask(folder):
    before = os.umask(0)
    try:
        Keys(folder / "deep").encrypt(ANN, "a", PICTURE)
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / "deep").stat().st_mode) == 0o700
    assert [(path.name, stat.S_IMODE(path.stat().st_mode)) for path in (folder / "deep").iterdir()] == [(ANN, 0o600)]


PROGRAM = """
import sys
from pathlib import Path
from labsupport.access import Forgotten, Keys
keys = Keys(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
try:
    for number in range(int(sys.argv[3])):
        print(keys.encrypt(sys.argv[2], "a", b"a picture").hex(), flush=True)
except Forgotten:
    print("forgotten", flush=True)
"""


def start(folder, number: int) -> subprocess.Popen:
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(folder), ANN, str(number)]
    return subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def go(processes) -> None:
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()


def test_processes_that_make_a_key_at_once_make_one(folder):
    processes = [start(folder, 20) for _ in range(4)]
    go(processes)
    secrets = [line for process in processes for line in process.communicate(timeout=60)[0].split()]
    assert len(secrets) == 80
    assert {Keys(folder).decrypt(ANN, "a", bytes.fromhex(secret)) for secret in secrets} == {b"a picture"}
    assert [path.name for path in folder.iterdir()] == [ANN]


def test_a_key_that_another_thread_made_between_two_looks_is_used(ring, monkeypatch):
    key, link = bytes(range(32)), os.link

    def late(*names):
        (ring.folder / ANN).write_bytes(key)
        link(*names)

    monkeypatch.setattr(keys.os, "link", late)
    secret = ring.encrypt(ANN, "a", PICTURE)
    assert (ring.folder / ANN).read_bytes() == key and ring.decrypt(ANN, "a", secret) == PICTURE


# forgetting


def test_a_forgotten_person_has_no_key_and_gets_none_in_any_process(ring, folder):
    other = Keys(folder)
    secret = other.encrypt(ANN, "a", PICTURE)
    key = (folder / ANN).read_bytes()
    os.link(folder / ANN, folder / "the same file")
    theirs = ring.encrypt(BOB, "a", PICTURE)
    for _ in range(2):
        ring.forget(ANN)
        for one in (ring, other, Keys(folder)):
            with pytest.raises(Forgotten, match="this person was forgotten"):
                one.decrypt(ANN, "a", secret)
            with pytest.raises(Forgotten):
                one.encrypt(ANN, "a", PICTURE)
    assert (folder / "the same file").read_bytes() == b""  # the bytes went, and not only their name
    assert key not in b"".join(path.read_bytes() for path in folder.iterdir())
    assert other.decrypt(BOB, "a", theirs) == PICTURE


def test_the_key_is_overwritten_before_its_file_is_emptied(ring, folder, monkeypatch):
    """A file that is only emptied leaves its bytes on the disk. At each wait for the disk, we look."""
    ring.encrypt(ANN, "a", PICTURE)
    key, seen, fsync = (folder / ANN).read_bytes(), [], os.fsync

    def look(descriptor):
        seen.append((folder / ANN).read_bytes())
        fsync(descriptor)

    monkeypatch.setattr(keys.os, "fsync", look)
    ring.forget(ANN)
    assert [len(content) for content in seen] == [32, 0, 0] and seen[0] not in (key, bytes(32))


def test_who_was_forgotten_before_the_first_picture_gets_no_key(ring):
    ring.forget(ANN)
    with pytest.raises(Forgotten):
        ring.encrypt(ANN, "a", PICTURE)


def test_processes_that_encrypt_meanwhile_stop_and_make_no_other_key(folder):
    processes = [start(folder, 10**9) for _ in range(2)]
    go(processes)
    first = [process.stdout.readline() for process in processes]
    key = (folder / ANN).read_bytes()
    Keys(folder).forget(ANN)
    last = [process.stdout.read().split()[-1] for process in processes]
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert last == ["forgotten"] * 2 and [(path.name, path.read_bytes()) for path in folder.iterdir()] == [(ANN, b"")]
    for secret in map(bytes.fromhex, first):
        assert gcm_open(key, secret[8:20], secret[20:], f"{ANN}\0a".encode()) == b"a picture"
        with pytest.raises(Forgotten):
            Keys(folder).decrypt(ANN, "a", secret)


def test_what_a_killed_process_left_of_a_key_goes_too(ring, folder):
    ring.encrypt(ANN, "a", PICTURE)
    os.link(folder / ANN, folder / f".{ANN}.x1")  # it was killed after it had linked the file
    (folder / f".{ANN}.x2").write_bytes(b"k" * 32)  # and before
    (folder / f".{BOB}.x3").write_bytes(b"k" * 32)
    ring.forget(ANN)
    assert sorted(path.name for path in folder.iterdir()) == sorted([ANN, f".{BOB}.x3"])


# what is wrong


def test_a_key_that_is_missing_or_damaged_is_named(ring, folder):
    secret = ring.encrypt(ANN, "a", PICTURE)
    with pytest.raises(NoKey, match=f"keys has no key for {BOB}: does LAB_KEYS name the folder"):
        ring.decrypt(BOB, "a", secret)
    (folder / ANN).write_bytes(b"half of a key")
    for call in (ring.decrypt, ring.encrypt):
        with pytest.raises(NoKey, match=f"{ANN} has 13 bytes and not 32: restore it from a backup"):
            call(ANN, "a", secret)
    assert (folder / ANN).read_bytes() == b"half of a key"
    assert not issubclass(NoKey, Forgotten)


@pytest.mark.parametrize("person", ["", "../p-1", "p/1", ".p-1", "P-1", "p-1\n", "p\0", "a" * 101, None, 5, b"p-1"])
def test_a_person_is_an_id_and_no_path(ring, folder, person):
    for call in (
        lambda: ring.encrypt(person, "a", PICTURE),
        lambda: ring.decrypt(person, "a", PICTURE),
        lambda: ring.forget(person),
    ):
        with pytest.raises(ValueError, match=r"person=.*: give the id of a person"):
            call()
    assert not [*folder.iterdir()]


@pytest.mark.parametrize("name", ["", "x" * 1001, "nul \0", "half \ud800", 5, None])
def test_a_name_is_text(ring, name):
    for call in (ring.encrypt, ring.decrypt):
        with pytest.raises(ValueError, match=r"name=.*: give text"):
            call(ANN, name, PICTURE)


def test_a_content_is_bytes(ring, folder):
    with pytest.raises(TypeError, match="content is a str: give bytes"):
        ring.encrypt(ANN, "a", "text")
    with pytest.raises(ValueError, match="folder='keys': give a Path"):
        Keys("keys")
    assert not [*folder.iterdir()]


# where the keys lie


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data folder, beside a home without keys."""
    monkeypatch.delenv("LAB_KEYS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    made = tmp_path / "data"
    made.mkdir()
    return made


def test_each_data_folder_has_a_key_folder_of_its_own_at_home(data, tmp_path):
    import hashlib

    chosen = key_folder(data)
    name = hashlib.sha256(str(data).encode()).hexdigest()[:16]
    assert chosen == tmp_path / "home" / ".labsupport" / "keys" / name
    assert not (tmp_path / "home").exists()
    Keys(chosen).make_folder()
    assert stat.S_IMODE(chosen.stat().st_mode) == 0o700
    (tmp_path / "link").symlink_to(data)
    assert key_folder(tmp_path / "link") == key_folder(data / "x" / "..") == chosen  # one folder under any name
    assert key_folder(tmp_path / "other") != chosen


def test_a_key_folder_can_be_named(data, tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_KEYS", str(tmp_path / "safe" / "keys"))
    assert key_folder(data) == key_folder(tmp_path / "other") == tmp_path / "safe" / "keys"
    Keys(key_folder(data)).make_folder()
    assert stat.S_IMODE((tmp_path / "safe" / "keys").stat().st_mode) == 0o700


def test_keys_inside_the_data_folder_are_refused_and_not_made(data, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(data)
    for inside in (data, data / "keys", tmp_path / "link" / "keys", tmp_path / "x" / ".." / "data" / "keys"):
        monkeypatch.setenv("LAB_KEYS", str(inside))
        with pytest.raises(ValueError, match=r"LAB_KEYS: .* is inside the data folder"):
            key_folder(data)
    monkeypatch.delenv("LAB_KEYS")
    with pytest.raises(ValueError, match=r"LAB_KEYS: .* is inside the data folder"):
        key_folder(tmp_path)  # it holds the home, too
    assert not [*data.iterdir()] and not (tmp_path / "home").exists()
    monkeypatch.setenv("LAB_KEYS", str(tmp_path / "data and more"))
    assert key_folder(data) == tmp_path / "data and more"


def test_a_relative_or_an_open_key_folder_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_KEYS", "keys")
    with pytest.raises(ValueError, match="LAB_KEYS='keys': give an absolute path"):
        key_folder(data)
    (tmp_path / "open").mkdir(mode=0o755)
    ring = Keys(tmp_path / "open")
    says = r"LAB_KEYS: other users may open .*open \(mode 755\): chmod 700 it"
    for call in (ring.make_folder, lambda: ring.forget(ANN)):
        with pytest.raises(ValueError, match=says):
            call()
    with pytest.raises(NoKey, match=says):
        ring.encrypt(ANN, "1", b"pixels")
    with pytest.raises(ValueError, match="data='data': give the Path"):
        key_folder("data")


def test_who_uses_no_key_does_not_load_the_library():
    program = "import sys, labsupport.access; assert 'cryptography' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
