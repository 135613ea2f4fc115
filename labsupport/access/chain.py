"""Compute the hashes that chain the rows of the audit trail, and keep their key and the anchor.

The hash of a row is an HMAC-SHA256 (RFC 2104) over the hash of the row before it, the row's number and its fields. Nobody
can compute it without the key. The key folder holds two files:

- `audit.key`: the key, 32 random bytes.
- `audit.anchor`: the number and the hash of the newest row, and an HMAC of both. It shows if the newest rows were removed.
"""

import hmac
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from labsupport import paths

SIZE = 32  # bytes of a key and of a hash
Field = str | float | bytes | None  # only a row that another program has written contains bytes


class ChainBroken(Exception):
    """The key or the anchor is missing, damaged or the wrong one. The message says which, and what to do."""


class Link(NamedTuple):
    """Name a row by its number and its hash. Number 0 stands before the first row."""

    number: int
    hash: bytes


START = Link(0, bytes(SIZE))


def row_hash(key: bytes, previous: bytes, number: int, fields: Sequence[Field]) -> bytes:
    """Return the hash of a row, 32 bytes: the HMAC-SHA256 of `previous`, followed by the number and the fields as JSON.

    `previous` is the hash of the row before it, and 32 zero bytes for row 1. JSON marks where each field ends, and
    distinguishes "1", 1 and null. It is the JSON of Python's `json.dumps`, without options.

    >>> row_hash(bytes(32), START.hash, 1, [1700000000.0, "p-1", None]).hex()[:16]
    'acca993e9dd54ec0'
    """
    text = json.dumps([number, *fields], default=lambda value: [value.hex()])
    return hmac.digest(key, previous + text.encode(), "sha256")


class Keeper:
    """Read and write the key and the anchor in the key folder.

    The caller holds the write lock of the trail's database, so that no two processes write at the same time. The anchor is
    overwritten in place. It always has the same length and is shorter than a sector of a disk. So a crash or a power cut
    leaves the old anchor or the new one, and a full disk does not prevent the write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._key, self._anchor = folder, folder / "audit.key", folder / "audit.anchor"

    def unused(self) -> bool:
        """Return True if there is no key and no row was anchored: then a new trail may begin. Raises OSError."""
        if self._key.exists():
            return False
        return not self._anchor.exists() or self._anchor.read_bytes().startswith(b"0" * 19)

    def begin(self) -> None:
        """Make the folder, a key, and the anchor of a trail without rows. Raises OSError.

        The key is made last. After a crash in between, the next call makes both again.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = secrets.token_bytes(SIZE)
        _create(self._anchor, _content(key, START))
        _create(self._key, key)

    def key(self) -> bytes:
        """Return the key. Raises `ChainBroken` if it is missing or has the wrong length, and OSError."""
        try:
            key = self._key.read_bytes()
        except FileNotFoundError:
            raise ChainBroken(f"the key {self._key} is missing: restore it from a copy") from None
        if len(key) != SIZE:
            raise ChainBroken(f"the key {self._key} has {len(key)} bytes, not {SIZE}: restore it from a copy")
        return key

    def anchored(self, key: bytes) -> Link:
        """Return the number and the hash in the anchor.

        Raises `ChainBroken` if the anchor is missing, damaged or was made with another key, and OSError.
        """
        with self._opened(os.O_RDONLY) as file:
            return self._read(file, key)

    def anchor(self, key: bytes, link: Link) -> None:
        """Write `link` into the anchor, unless the anchor has a higher number. Raises the errors of `anchored`."""
        with self._opened(os.O_RDWR) as file:
            if link.number > self._read(file, key).number:
                os.pwrite(file, _content(key, link), 0)

    @contextmanager
    def _opened(self, flags: int) -> Iterator[int]:
        try:
            file = os.open(self._anchor, flags)
        except FileNotFoundError:
            raise ChainBroken(f"the anchor {self._anchor} is missing: restore it from a copy") from None
        try:
            yield file
        finally:
            os.close(file)

    def _read(self, file: int, key: bytes) -> Link:
        content = os.read(file, 1_000)
        try:
            number, text, _ = content.decode().split(" ")
            link = Link(int(number), bytes.fromhex(text))
        except ValueError:
            raise ChainBroken(f"the anchor {self._anchor} is damaged: restore it from a copy") from None
        if not hmac.compare_digest(content, _content(key, link)):
            raise ChainBroken(
                f"the key and the anchor in {self.folder} do not belong together: one of them was changed"
            )
        return link


def _content(key: bytes, link: Link) -> bytes:
    """Return the content of the anchor: number, hash and HMAC, always 150 bytes."""
    text = f"{link.number:019} {link.hash.hex()}"
    return f"{text} {hmac.digest(key, text.encode(), 'sha256').hex()}\n".encode()


def _create(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, and wait until the disk has it."""
    with paths.whole(path) as partial:
        file = os.open(partial, os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            os.write(file, content)
            os.fsync(file)
        finally:
            os.close(file)
    paths.sync(path.parent)  # now the disk has the name, too
