"""Encrypt pictures with one key for each person. The keys lie outside the data folder, so a copy of it shows no picture.

To forget a person, remove the key: then nobody can decrypt the person's pictures, also not those in a backup of the data.
"""

import hashlib
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from labsupport import arguments, paths

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MAGIC = b"LABAES1\0"  # begins each encrypted content
KEY, NONCE = 32, 12  # bytes: AES-256, and 96 random bits for each content (NIST SP 800-38D: up to 2**32 contents a key)
PERSON = re.compile(r"[a-z0-9][a-z0-9-]{0,99}")  # the id of a person, which names the file


class NoKey(RuntimeError):
    """The folder has no usable key for this person."""


class Forgotten(NoKey):
    """The person was forgotten: the key is gone for ever, and nothing is encrypted for this person any more."""


class Damaged(ValueError):
    """The content was changed, or it was encrypted for another person or under another name."""


def keys_for(keys: "Keys | None", person: str) -> "Keys":
    """Return the keys. Raises `NoKey` if there are none, because nothing of a person is stored unencrypted."""
    if keys is None:
        raise NoKey(f"a picture of {person} must be encrypted: give keys=Keys(...)")
    return keys


def key_folder(data: Path) -> Path:
    """Return the folder of the keys for a data folder. It is made when the first key is.

    That is `LAB_KEYS` if set. Otherwise it is `~/.labsupport/keys/` and 16 hex digits of the SHA-256 of `data`'s path.
    Raises ValueError, which names `LAB_KEYS`, if that is a relative path, and if the folder is inside `data`.

    >>> key_folder(Path("/srv/lab")).parent == Path.home() / ".labsupport" / "keys"
    True
    """
    if not isinstance(data, Path):
        raise ValueError(f"data={arguments.shown(data)}: give the Path of the data folder")
    data = data.resolve()
    folder = arguments.variable("LAB_KEYS", _absolute, "an absolute path")
    if folder is None:
        name = hashlib.sha256(os.fsencode(data)).hexdigest()[:16]
        folder = Path.home() / ".labsupport" / "keys" / name
    if folder.resolve().is_relative_to(data):
        words = "is inside the data folder, so a copy of it has the keys: name a folder elsewhere"
        raise ValueError(f"LAB_KEYS: {folder} {words}")
    return folder


class Keys:
    """Encrypt and decrypt with the key of a person, which is made at first use. Several processes may share the folder.

    A key is 32 random bytes in a file that is called as the person's id (0600). Each call reads this file anew, because no
    process may use a key that another one has removed. A lost key cannot be replaced: keep a backup, apart from the data's.

    >>> keys = Keys(Path(tempfile.mkdtemp()))
    >>> secret = keys.encrypt("p-0123456789ab", "picture 1", b"pixels")
    >>> keys.decrypt("p-0123456789ab", "picture 1", secret)
    b'pixels'
    >>> keys.forget("p-0123456789ab")
    >>> keys.decrypt("p-0123456789ab", "picture 1", secret)
    Traceback (most recent call last):
    labsupport.access.keys.Forgotten: this person was forgotten: the key is gone, and with it every picture
    """

    def __init__(self, folder: Path) -> None:
        """Name the folder, as `key_folder` returns it. Raises ValueError if `folder` is no Path."""
        if not isinstance(folder, Path):
            raise ValueError(f"folder={arguments.shown(folder)}: give a Path, as key_folder returns it")
        self.folder = folder.absolute()

    def make_folder(self) -> None:
        """Make the folder, which only its owner can use (0700), if it does not exist.

        Raises ValueError if other users may open it, and OSError if it cannot be made. `forget` does the same.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (mode := self.folder.stat().st_mode) & 0o077:
            words = f"other users may open {self.folder} (mode {mode & 0o777:o})"
            raise ValueError(f"LAB_KEYS: {words}: chmod 700 it, or name another")

    def encrypt(self, person: str, name: str, content: bytes) -> bytes:
        """Return the encrypted content (AES-256-GCM). Only the same person and name decrypt it.

        `name` is what the content is stored under, so that one picture cannot take the place of another one. Raises
        `Forgotten`, `NoKey` if the key file is damaged or a new key would lie in a folder that other users may open,
        ValueError for an invalid person or name, and TypeError.
        """
        bound, nonce = _bound(person, name), os.urandom(NONCE)
        if not isinstance(content, bytes):
            raise TypeError(f"content is a {type(content).__name__}: give bytes")
        key = self._read(person) or self._new(person)
        return MAGIC + nonce + _cipher(key).encrypt(nonce, content, bound)

    def decrypt(self, person: str, name: str, content: bytes) -> bytes:
        """Return what was encrypted. Raises `Forgotten`, `NoKey`, `Damaged`, and the errors of `encrypt`."""
        from cryptography.exceptions import InvalidTag

        bound = _bound(person, name)
        if (key := self._read(person)) is None:
            raise NoKey(f"{self.folder} has no key for {person}: does LAB_KEYS name the folder that was used before?")
        try:
            if not self.encrypted(content):
                raise InvalidTag
            start = len(MAGIC) + NONCE
            return _cipher(key).decrypt(content[len(MAGIC) : start], content[start:], bound)
        except (InvalidTag, ValueError):  # ValueError: the nonce is too short
            words = "was changed, or was encrypted for another person or under another name"
            raise Damaged(f"{name}: this content {words}: restore it from a backup") from None

    @staticmethod
    def encrypted(content: bytes) -> bool:
        """Return whether a content begins as `encrypt` makes it.

        >>> Keys.encrypted(b"a picture")
        False
        """
        return content.startswith(MAGIC)

    def forget(self, person: str) -> None:
        """Overwrite the key of a person and leave an empty file, so that no process makes another key for this id.

        A key that never existed is forgotten, too. You may call it twice. A disk with flash memory, or a file system that
        writes elsewhere at each change, may keep the old bytes for a while: encrypt the disk itself against that.
        """
        path = self._path(person)
        self.make_folder()
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb", buffering=0) as file:
            file.write(os.urandom(KEY))  # not zeros: who reads it now gets a key that nobody can guess
            os.fsync(file.fileno())
            file.truncate(0)
            os.fsync(file.fileno())
        for rest in self.folder.glob(f".{person}.*"):  # left by a process that was killed while it made the key
            rest.unlink(missing_ok=True)
        paths.sync(self.folder)

    def _path(self, person: str) -> Path:
        if not isinstance(person, str) or not PERSON.fullmatch(person):
            raise ValueError(f"person={arguments.shown(person)}: give the id of a person, as in p-0123456789ab")
        return self.folder / person

    def _read(self, person: str) -> bytes | None:
        """Return the key; None if there is none. Raises `Forgotten` for an empty file."""
        try:
            key = self._path(person).read_bytes()
        except FileNotFoundError:
            return None
        if not key:
            raise Forgotten("this person was forgotten: the key is gone, and with it every picture")
        if len(key) != KEY:
            raise NoKey(f"{self._path(person)} has {len(key)} bytes and not {KEY}: restore it from a backup")
        return key

    def _new(self, person: str) -> bytes:
        """Make a key and return it, or the one that another process has made meanwhile."""
        try:
            self.make_folder()
        except ValueError as error:
            raise NoKey(str(error)) from error
        descriptor, partial = tempfile.mkstemp(prefix=f".{person}.", dir=self.folder)  # 0600
        try:
            with open(descriptor, "wb") as file:
                file.write(os.urandom(KEY))
                file.flush()
                os.fsync(descriptor)
            with suppress(FileExistsError):
                os.link(partial, self._path(person))  # unlike a rename, it never replaces a file
        finally:
            os.unlink(partial)
        paths.sync(self.folder)  # the key is on the disk before anything that it encrypts
        if key := self._read(person):
            return key
        raise NoKey(f"{self._path(person)} was removed a moment after it was made: try again")


def _bound(person: str, name: str) -> bytes:
    """Return the associated data of AES-GCM, which binds the content to the person and the name. Neither contains NUL."""
    return f"{person}\0{arguments.text('name', name, least=1)}".encode()


def _cipher(key: bytes) -> "AESGCM":
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # 7 MB, which a server without people saves

    return AESGCM(key)


def _absolute(text: str) -> Path:
    if not os.path.isabs(text):
        raise ValueError
    return Path(text)
