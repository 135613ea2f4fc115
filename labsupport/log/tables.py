"""Define the tables of the log. Open, create or migrate the database that holds them.

It is a SQLite file, or a PostgreSQL database for several machines. `prediction_log` uses the tables, `rows` converts rows.
"""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.types import TypeEngine

from labsupport import sqlite
from labsupport.extras import needed
from labsupport.log.migrations import ALWAYS, FOUND, KNOWN, MARK, SCHEMA, STEPS

BUSY = 2.0  # seconds that SQLite waits for another writer
PATIENCE = {  # seconds (tcp_user_timeout: milliseconds) to wait for a server that does not answer
    "connect_timeout": 5,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
}
# of a server: user and password may not contain the characters that end them
ADDRESS = re.compile(r"[\w+]+://([^:/?#@]*(:[^/?#@]*)?@)?[^/?#@]*(/[^/?#@]*)?(\?[^#@]*)?")
HINTS = {
    "sqlite": "is its folder writable, and is it a SQLite file?",
    "postgresql": "is the server running, and may we log in?",
}
# PostgreSQL's locks: numbers that no other program uses
MIGRATING, PRUNING, TENDING = 7521948360, 7521948361, 7521948362

# from `images.features`
FEATURES = ("brightness", "contrast", "sharpness", "saturation", "noise", "width", "height", "aspect")
COLUMNS = {  # types of Python; a list is stored as JSON
    "time": float,  # seconds since the epoch, UTC, to the microsecond
    "id": str,
    "key": str,
    "person": str,  # the id of the person whose token came with the request
    "version": str,
    "latency": float,
    **dict.fromkeys(FEATURES, float),
    "bytes": int,
    "detections": list,  # [{"label": "cat", "confidence": 0.9, "box": [left, top, right, bottom]}, ...]
    "n_detections": int,
    **dict.fromkeys(("mean_confidence", "max_confidence", "min_confidence"), float),
    "error": str,
    "status": int,
    "shadow": bool,  # the answer of a candidate in shadow, which no client received
}
SAID = {"correct": bool, "labels": list, "retry": bool}  # a remark of a user on an answer
DECIDED = {  # the verdict of a station on one product
    "id": str,
    "time": float,
    **dict.fromkeys(("station", "product", "verdict", "decided_by", "version"), str),
    "latency": float,
    "reason": str,
}
# `aspect` is width / height, computed at reading
KEPT = {name: kind for name, kind in COLUMNS.items() if name != "aspect"}

WHOLE = sql.BigInteger().with_variant(sql.Integer(), "sqlite")  # SQLite's integers have 64 bits anyway
Kind = type[TypeEngine[Any]] | TypeEngine[Any]
KINDS: dict[type, Kind] = {float: sql.Float, int: WHOLE, str: sql.String, list: sql.Text, bool: sql.Boolean}
TABLES = sql.MetaData()
PREDICTIONS = sql.Table(
    "predictions",
    TABLES,
    sql.Column("row", WHOLE, primary_key=True),
    *(sql.Column(name, KINDS[kind], index=name in ("time", "id")) for name, kind in KEPT.items()),
    sql.Column("said", sql.BigInteger),  # the row of the last remark, so that reading a window needs no search for it
    sqlite_autoincrement=True,  # the number of a removed row is not used again: a reader goes on from the last one it read
)
FEEDBACK = sql.Table(
    "feedback",
    TABLES,
    sql.Column("row", WHOLE, primary_key=True),
    sql.Column("time", sql.Float, index=True),
    sql.Column("id", sql.String),  # of the prediction
    *(sql.Column(name, KINDS[kind]) for name, kind in SAID.items()),
    sql.Index("ix_feedback_id", "id", "row"),  # with the row: PostgreSQL might look for the last one in the whole table
    sqlite_autoincrement=True,
)
DECISIONS = sql.Table(
    "decisions",
    TABLES,
    *(sql.Column(name, KINDS[kind], primary_key=name == "id", index=name == "time") for name, kind in DECIDED.items()),
)
# whose rows must not be written any more, though a process may still have some: see `forgetting`
FORGOTTEN = sql.Table(
    "forgotten",
    TABLES,
    sql.Column("id", sql.String, primary_key=True),  # the SHA-256 of a person's id
    sql.Column("time", sql.Float, index=True),
)


class LogUnavailable(OSError):
    """The file cannot be opened, or the server cannot be reached: no folder, no permission, no SQLite file, no network."""


class UnknownSchema(RuntimeError):
    """The tables belong to a newer version of the lab, or to another program."""


def open_database(url: str | Path) -> sql.Engine:
    """Return the database of a URL, with tables of the present version. Several processes may open it at the same time.

    `sqlite:///` is followed by an unescaped path. A `Path` also names a SQLite file.
    Raises `LogUnavailable`, `UnknownSchema`, and ValueError if `url` names neither a SQLite file nor a PostgreSQL database.

    >>> open_database("mysql://localhost/lab")
    Traceback (most recent call last):
    ValueError: mysql://localhost/lab: name a SQLite file, as in sqlite:///predictions.db, or a PostgreSQL database, as in \
postgresql+psycopg://user@host/lab
    """
    if (file := _file(url)) is not None:
        engine = _sqlite(file)
    elif (address := _parsed(url)).drivername in ("postgresql", "postgresql+psycopg"):
        engine = _postgres(address, shown(url))
    else:
        raise ValueError(
            f"{shown(url)}: name a SQLite file, as in sqlite:///predictions.db, or a PostgreSQL database, as in "
            "postgresql+psycopg://user@host/lab"
        )
    prepare(engine)
    return engine


def prepare(engine: sql.Engine) -> None:
    """Create the tables, or migrate them to the present version. Only the owner can then read a SQLite file.

    Raises `LogUnavailable` and `UnknownSchema`.
    """
    kind = engine.dialect.name
    file = engine.url.database if kind == "sqlite" else None
    name = file or shown(engine.url)
    try:
        if file:
            sqlite.make(file)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            _prepare(connection, name)
        if file:
            sqlite.make_private(file)
    except DBAPIError as error:
        raise LogUnavailable(f"{name}: {reason(error)}: {HINTS[kind]}") from error
    except OSError as error:
        raise LogUnavailable(f"{name}: unable to open it ({error.strerror}): {HINTS['sqlite']}") from error


def shown(url: str | Path | sql.URL) -> str:
    """Return the URL without its password, for printing. Raises ValueError if it cannot be parsed.

    >>> shown("postgresql+psycopg://lab:secret@db.example.org/lab?sslpassword=secret")
    'postgresql+psycopg://lab:***@db.example.org/lab?sslpassword=%2A%2A%2A'
    """
    if (file := _file(url)) is not None:
        return url if isinstance(url, str) else f"sqlite:///{file}"
    address = _parsed(url)
    secrets = {name: "***" for name in address.query if "password" in name.lower()}
    return address.update_query_dict(secrets).render_as_string(hide_password=True)


def reason(error: Exception) -> str:
    """Return the message of the database in one line, without the text that SQLAlchemy adds."""
    return " ".join(str(getattr(error, "orig", None) or error).split())


def check_file(connection: sql.Connection) -> None:
    """Raise `LogUnavailable` if the SQLite file of a connection was deleted or replaced. Then what it wrote is lost."""
    file, identity = connection.info.get("file", (None, None))
    if file is not None and sqlite.identity(file) != identity:
        raise LogUnavailable("the file was deleted or replaced")


def driver(connection: sql.Connection) -> sqlite3.Connection:
    """Return the connection of the module sqlite3 that a connection to a SQLite file uses."""
    driver: sqlite3.Connection | None = connection.connection.driver_connection
    assert driver is not None
    return driver


@contextmanager
def alone(connection: sql.Connection, lock: int = MIGRATING) -> Iterator[None]:
    """Run the block in a transaction on a connection in autocommit, with the lock. In SQLite no other process writes."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.exec_driver_sql("BEGIN")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({lock})")
    try:
        yield
    except BaseException:
        connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")


def _file(url: str | Path | sql.URL) -> Path | None:
    """Return the SQLite file that a URL names, or None for another URL."""
    if isinstance(url, Path):
        return url.absolute()
    if not isinstance(url, str) or not url.startswith("sqlite:///"):
        return None
    path = url.removeprefix("sqlite:///")
    return Path(path).absolute() if path not in ("", ":memory:") else None


def _parsed(url: str | Path | sql.URL) -> sql.URL:
    """Parse a URL. Raises ValueError for a password with special characters, because it would be split at them."""
    if isinstance(url, sql.URL):
        return url
    try:
        if isinstance(url, str) and ADDRESS.fullmatch(url):
            return sql.make_url(url)
    except (ValueError, ArgumentError):  # their messages may contain the password, taken for a port
        pass
    raise ValueError(
        "the log's address cannot be read: write sqlite:///file or postgresql+psycopg://user:password@host/database, "
        "with special characters in the password percent-encoded, as in urllib.parse.quote(password, safe='')"
    )


def _sqlite(file: Path) -> sql.Engine:
    if not file.parent.is_dir():
        raise LogUnavailable(f"there is no folder {file.parent}: make it, or name a file elsewhere")
    # no pool: no connection stays open between uses, so a reader holds no lock, and a fork inherits no connection
    engine = sql.create_engine(
        sql.URL.create("sqlite", database=str(file)),
        creator=partial(sqlite.reopen, file, BUSY, isolation_level=""),
        poolclass=sql.NullPool,
        hide_parameters=True,
    )

    @sql.event.listens_for(engine, "connect")
    def connected(connection: sqlite3.Connection, record: ConnectionPoolEntry) -> None:
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA secure_delete=ON")  # overwrites removed rows
        record.info["file"] = file, sqlite.identity(file)

    return engine


def _postgres(address: sql.URL, name: str) -> sql.Engine:
    patience = {option: value for option, value in PATIENCE.items() if option not in address.query}
    address = address.set(drivername="postgresql+psycopg")
    try:
        return sql.create_engine(address, poolclass=sql.NullPool, connect_args=patience, hide_parameters=True)
    except ImportError as error:
        raise LogUnavailable(f"{name}: {needed('psycopg')}") from error


def _prepare(connection: sql.Connection, name: str) -> None:
    """Create or migrate the tables, once even if several processes open them. Raise `UnknownSchema` for other tables."""
    if _older(connection):
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA auto_vacuum=INCREMENTAL")  # works only for a new file; for `retention`
            sqlite.write_ahead(driver(connection))  # a permanent setting of the file
        with alone(connection):
            if _older(connection):
                version, _ = _found(connection)
                TABLES.create_all(connection)
                for step in range(version, SCHEMA) if version else ():
                    for statement in STEPS[step]:
                        connection.exec_driver_sql(statement)
                connection.exec_driver_sql(MARK[connection.dialect.name].format(SCHEMA))
    version, tables = _found(connection)
    if version != SCHEMA or not _ours(connection, tables):
        what = f"{name} holds schema {version} (tables: {', '.join(sorted(tables)) or None})"
        raise UnknownSchema(f"{what}, this labsupport reads {SCHEMA}: update it, or name another database")


def _older(connection: sql.Connection) -> bool:
    """Return whether this is an empty database, or one of a version that we can migrate."""
    version, tables = _found(connection)
    if version not in KNOWN:
        return False
    return KNOWN[version] <= tables and _ours(connection, tables) if version else not tables


def _ours(connection: sql.Connection, tables: set[str]) -> bool:
    """Return whether there is a table of predictions, and with our columns. In PostgreSQL the version is written on it."""
    if PREDICTIONS.name not in tables or connection.dialect.name != "sqlite":
        return PREDICTIONS.name in tables
    columns = connection.exec_driver_sql(f"SELECT name FROM pragma_table_info('{PREDICTIONS.name}')").scalars()
    return {*columns} >= ALWAYS


def _found(connection: sql.Connection) -> tuple[int, set[str]]:
    version, tables = connection.exec_driver_sql(FOUND[connection.dialect.name]).one()
    return int(version), set(filter(None, (tables or "").split(",")))
