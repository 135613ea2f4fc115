"""Store the people who may use a server: each has a name, a role and a token, of which only the hash is stored."""

import hashlib
import logging
import re
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from labsupport import arguments, sqlite

READ, PREDICT, CHANGE, OTHERS = "read", "predict", "change", "others' objects"
# what each role may do. READ: metrics, dashboard and rollout. PREDICT: send pictures, and see and comment on one's own.
# CHANGE: the rollout, and the records of stations. OTHERS: see and comment on the pictures of other people.
ROLES = {
    "reader": {READ},
    "client": {PREDICT},
    "operator": {READ, PREDICT, CHANGE},
    "admin": {READ, PREDICT, CHANGE, OTHERS},
}
NAME = re.compile(r"[\w.@+-]+( [\w.@+-]+)*")
ID = re.compile(r"p-[0-9a-f]{12}")
LONGEST = 100  # characters of a name
BUSY = 5.0  # seconds that a call waits while another process writes
SHORT = 0.2  # seconds that `who` waits, because meanwhile a server answers nobody
SCHEMA = """
CREATE TABLE IF NOT EXISTS users (
    id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, role TEXT NOT NULL, token BLOB NOT NULL UNIQUE,
    since REAL NOT NULL, revoked REAL
)
"""
COLUMNS = "id, name, role, since, revoked"

logger = logging.getLogger(__name__)


class UsersUnavailable(OSError):
    """The file of users cannot be read or written. The message names no path, because clients may see it."""


@dataclass(frozen=True)
class Person:
    """Hold one person: an id that never changes, a name, a role of `ROLES`, and since when, in seconds since the epoch.

    >>> Person("p-0", "ana", "client").may(CHANGE)
    False
    """

    id: str
    name: str
    role: str
    since: float = 0.0
    revoked: float | None = None  # when the token was revoked, in seconds since the epoch; None if it is valid

    @property
    def owner(self) -> str | None:
        """Return the id under which own pictures are stored; None for the holders of the server's tokens."""
        return self.id if self.id.startswith("p-") else None

    def may(self, what: str) -> bool:
        """Return whether the role allows `what`: READ, PREDICT, CHANGE or OTHERS."""
        return what in ROLES[self.role]


# the holders of LAB_TOKEN and LAB_READ_TOKEN
OWNER, READER = Person("owner", "owner", "admin"), Person("reader", "reader", "reader")
RESERVED = (OWNER.id, READER.id)


class Users:
    """Store people in a SQLite file, which is made with the first one. Several processes may use it at the same time.

    Each call opens the file anew, so a revoked token is refused from the next request on, in every process. The file holds
    the SHA-256 of each token. A token has 160 random bits, so the hash cannot be turned back into it.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> users = Users(Path(folder.name, "users.db"))
    >>> token = users.add("ana", "client")
    >>> users.who(token).name, users.who("lab_guess")
    ('ana', None)
    >>> users.revoke("ana")
    >>> users.who(token) is None
    True
    >>> folder.cleanup()
    """

    def __init__(self, path: Path) -> None:
        """Name the file. It is not made yet. Raises ValueError if `path` is no Path."""
        if not isinstance(path, Path):
            raise ValueError(f"path={arguments.shown(path)}: give a Path")
        self.path = path.absolute()
        self._private = False  # whether this object has made sure that only the owner can read the file

    @property
    def exist(self) -> bool:
        """Return whether the file of people exists and is not empty. If so, a wrong token is refused on loopback, too."""
        try:
            return self.path.stat().st_size > 0
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._unavailable(error) from error

    def add(self, name: str, role: str) -> str:
        """Add a person, and return the new token. It is not stored, so it cannot be shown again.

        A person whose token was revoked gets a new one and keeps the id, so also the own pictures. Raises ValueError for an
        invalid name or role and for a name that has a valid token, and `UsersUnavailable`.
        """
        _checked(name)
        arguments.choice("role", role, ROLES)
        token = f"lab_{secrets.token_hex(20)}"
        with self._used(make=True) as connection:
            assert connection
            connection.execute("BEGIN IMMEDIATE")  # two processes must not add the same name
            connection.execute(SCHEMA)
            if (known := _named(connection, name)) and known.revoked is None:
                raise ValueError(
                    f"name={name!r}: {name} has a token as {known.role}: revoke it before you give a new one"
                )
            id = known.id if known else f"p-{secrets.token_hex(6)}"
            row = (id, name, role, _hash(token), time.time())
            connection.execute(
                "INSERT OR REPLACE INTO users (id, name, role, token, since) VALUES (?, ?, ?, ?, ?)", row
            )
        return token

    def revoke(self, name: str) -> None:
        """Revoke a person's token. Raises ValueError for a name without a valid token, and `UsersUnavailable`."""
        with self._used() as connection:
            known = connection and _named(connection, _checked(name))
            if not connection or not known or known.revoked is not None:
                raise ValueError(f"name={name!r}: nobody of this name has a valid token: labsupport users lists all")
            connection.execute("UPDATE users SET revoked = ? WHERE name = ?", [time.time(), name])

    def who(self, token: str) -> Person | None:
        """Return the person with this token; None if there is none, or if it was revoked. Raises `UsersUnavailable`."""
        with self._used(patience=SHORT) as connection:
            if not connection:
                return None
            query = f"SELECT {COLUMNS} FROM users WHERE token = ? AND revoked IS NULL"
            row = connection.execute(query, [_hash(token)]).fetchone()
        return row and Person(*row)

    def all(self) -> list[Person]:
        """Return all people in the order of their names, also those with a revoked token. Raises `UsersUnavailable`."""
        with self._used() as connection:
            query = f"SELECT {COLUMNS} FROM users ORDER BY name"
            return [Person(*row) for row in connection.execute(query)] if connection else []

    def forget(self, name: str) -> str:
        """Remove a person, and overwrite the name in the file. Return the id, which names the person elsewhere.

        Raises ValueError for an unknown name, and `UsersUnavailable`.
        """
        with self._used() as connection:
            known = connection and _named(connection, _checked(name))
            if not connection or not known:
                raise ValueError(f"name={name!r}: nobody has this name: labsupport users lists all")
            connection.execute("DELETE FROM users WHERE name = ?", [name])
            connection.execute("VACUUM")  # a deleted name may be left in a page that was moved
        return known.id

    @contextmanager
    def _used(self, make: bool = False, patience: float = BUSY) -> Iterator[sqlite3.Connection | None]:
        """Open the file, run the block, and close it. Without a file, and without `make`, yield None."""
        try:
            if make:
                sqlite.make(self.path)
            elif not self.exist:
                yield None
                return
            with closing(sqlite.reopen(self.path, patience)) as connection:
                connection.execute("PRAGMA secure_delete=ON")
                with connection:  # commits, or undoes what the block has written
                    yield connection
                if not self._private:  # from here on it is known to be a file of users
                    sqlite.make_private(self.path)
                    self._private = True
        except (sqlite3.Error, OSError) as error:
            if isinstance(error, UsersUnavailable):
                raise
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> UsersUnavailable:
        logger.warning("%s: %s", self.path, error)
        return UsersUnavailable("the list of users cannot be used now: the server's log says why")


def _checked(name: object) -> str:
    """Return a valid name. Raises ValueError."""
    if not isinstance(name, str) or len(name) > LONGEST or not NAME.fullmatch(name):
        raise ValueError(
            f"name={arguments.shown(name)}: give letters, digits and . @ + - _, with single spaces between"
        )
    if ID.fullmatch(name):
        raise ValueError(f"name={name!r}: this is the form of an id: choose another name")
    if name in RESERVED:
        raise ValueError(f"name={name!r}: this is the holder of LAB_TOKEN or LAB_READ_TOKEN: choose another name")
    return name


def _named(connection: sqlite3.Connection, name: str) -> Person | None:
    row = connection.execute(f"SELECT {COLUMNS} FROM users WHERE name = ?", [name]).fetchone()
    return row and Person(*row)


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
