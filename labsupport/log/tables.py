"""Where predictions are kept: the tables, and how a database that holds them is opened, made or brought up to date.

One SQLite file, or a PostgreSQL database that several machines share. `predictions` writes and reads them.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import sqlalchemy as sql
from sqlalchemy.exc import DBAPIError

from labsupport import sqlite

BUSY = 2.0  # seconds that SQLite waits for another writer
PATIENCE = {  # seconds (and milliseconds) after which a server that does not answer is one that cannot be reached
    "connect_timeout": 5,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
}
SCHEMA = 4  # the version: SQLite's user_version, in PostgreSQL a comment on the table
BOTH = {"predictions", "feedback"}
KNOWN = {0: set(), 1: {"predictions"}, 2: BOTH, 3: BOTH}  # the tables that older versions have at least
STEPS = {  # from a version to the next one, once the tables are made that it lacks
    1: ["ALTER TABLE predictions ADD COLUMN shadow BOOLEAN DEFAULT 0"],
    2: ["ALTER TABLE predictions ADD COLUMN noise FLOAT"],
    3: [
        "CREATE INDEX IF NOT EXISTS ix_feedback_time ON feedback (time)",
        "DROP INDEX ix_feedback_id",
        'CREATE INDEX ix_feedback_id ON feedback (id, "row")',
        "ALTER TABLE predictions ADD COLUMN said BIGINT",
        'UPDATE predictions SET said = (SELECT max(f."row") FROM feedback AS f WHERE f.id = predictions.id) '
        "WHERE id IN (SELECT id FROM feedback)",
    ],
}
FOUND = {  # the version and the tables' names, in one statement: of one moment
    "sqlite": """SELECT user_version, (SELECT group_concat(name) FROM sqlite_master WHERE type = 'table')
        FROM pragma_user_version""",
    "postgresql": """SELECT
        coalesce(substring(obj_description(to_regclass('predictions'), 'pg_class') from '^labsupport ([0-9]+)$'), '0'),
        concat_ws(',', to_regclass('predictions')::text, to_regclass('feedback')::text, to_regclass('decisions')::text)""",
}
ADDRESS = re.compile(  # of a server: user and password hold none of the signs that end them
    r"[\w+]+://([^:/?#@]*(:[^/?#@]*)?@)?[^/?#@]*(/[^/?#@]*)?(\?[^#@]*)?"
)
HINTS = {
    "sqlite": "is its folder writable, and is it a SQLite file?",
    "postgresql": "is the server running, and may we log in?",
}
MARK = {
    "sqlite": "PRAGMA user_version={}",
    "postgresql": "COMMENT ON TABLE predictions IS 'labsupport {}'",
}
MIGRATING, PRUNING, TENDING = 7521948360, 7521948361, 7521948362  # PostgreSQL's locks: numbers that nobody else uses

# what `images.features` gives
FEATURES = ("brightness", "contrast", "sharpness", "saturation", "noise", "width", "height", "aspect")
COLUMNS = {  # the kinds are Python's; a list is kept as JSON
    "time": float,  # seconds since the epoch, UTC, to the microsecond
    "id": str,
    "key": str,
    "version": str,
    "latency": float,
    **dict.fromkeys(FEATURES, float),
    "bytes": int,
    "detections": list,  # [{"label": "cat", "confidence": 0.9, "box": [left, top, right, bottom]}, ...]
    "n_detections": int,
    **dict.fromkeys(("mean_confidence", "max_confidence", "min_confidence"), float),
    "error": str,
    "status": int,
    "shadow": bool,  # nobody was given this answer: a candidate was shown the picture, too
}
SAID = {"correct": bool, "labels": list, "retry": bool}  # by a user, of an answer
DECIDED = {  # by a station, of one product
    "id": str,
    "time": float,
    **dict.fromkeys(("station", "product", "verdict", "decided_by", "version"), str),
    "latency": float,
    "reason": str,
}
KEPT = {name: kind for name, kind in COLUMNS.items() if name != "aspect"}  # which is width / height, when it is read

WHOLE = sql.BigInteger().with_variant(sql.Integer(), "sqlite")  # SQLite's integers have 64 bits anyway
KINDS = {float: sql.Float, int: WHOLE, str: sql.String, list: sql.Text, bool: sql.Boolean}
TABLES = sql.MetaData()
PREDICTIONS = sql.Table(
    "predictions",
    TABLES,
    sql.Column("row", WHOLE, primary_key=True),
    *(sql.Column(name, KINDS[kind], index=name in ("time", "id")) for name, kind in KEPT.items()),
    sql.Column(
        "said", sql.BigInteger
    ),  # the row of the last remark: who reads a window looks nothing up where there is none
)
FEEDBACK = sql.Table(
    "feedback",
    TABLES,
    sql.Column("row", WHOLE, primary_key=True),
    sql.Column("time", sql.Float, index=True),
    sql.Column("id", sql.String),  # the prediction's
    *(sql.Column(name, KINDS[kind]) for name, kind in SAID.items()),
    sql.Index("ix_feedback_id", "id", "row"),  # with the row: PostgreSQL might look for the last one in the whole table
)
DECISIONS = sql.Table(
    "decisions",
    TABLES,
    *(sql.Column(name, KINDS[kind], primary_key=name == "id", index=name == "time") for name, kind in DECIDED.items()),
)


class LogUnavailable(OSError):
    """The file cannot be opened, or the server cannot be reached: no folder, no permission, no SQLite file, no network."""


class UnknownSchema(RuntimeError):
    """The tables are those of a newer version of the lab, or of another program."""


def open_database(url: str | Path) -> sql.Engine:
    """Return the database of a URL, with tables of the present version; several processes may open it at once.

    What follows `sqlite:///` is a path as it is, whatever signs are in it; a `Path` names a SQLite file, too.
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
    """Make the tables if there are none, or bring them up to date; a SQLite file is its owner's alone from now on.

    Raises `LogUnavailable` and `UnknownSchema`.
    """
    sqlite_file = engine.dialect.name == "sqlite"
    name = engine.url.database if sqlite_file else shown(engine.url)
    try:
        if sqlite_file:
            sqlite.make(name)
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            _prepare(connection, name)
        if sqlite_file:
            sqlite.make_private(name)
    except DBAPIError as error:
        hint = (
            "is its folder writable, and is it a SQLite file?"
            if sqlite_file
            else "is the server running, and may we log in?"
        )
        raise LogUnavailable(f"{name}: {reason(error)}: {hint}") from error
    except OSError as error:
        raise LogUnavailable(f"{name}: unable to open it ({error.strerror}): {HINTS['sqlite']}") from error


def shown(url: str | Path | sql.URL) -> str:
    """Return the URL as it may be printed: without its password. Raises ValueError if it cannot be read.

    >>> shown("postgresql+psycopg://lab:secret@db.example.org/lab?sslpassword=secret")
    'postgresql+psycopg://lab:***@db.example.org/lab?sslpassword=%2A%2A%2A'
    """
    if (file := _file(url)) is not None:
        return url if isinstance(url, str) else f"sqlite:///{file}"
    address = _parsed(url)
    secrets = {name: "***" for name in address.query if "password" in name.lower()}
    return address.update_query_dict(secrets).render_as_string(hide_password=True)


def reason(error: Exception) -> str:
    """Return what the database said, in one line and without SQLAlchemy's own words about it."""
    return " ".join(str(getattr(error, "orig", None) or error).split())


def moved(connection: sql.Connection) -> bool:
    """Return whether the SQLite file of a connection was deleted or replaced since: what is written there is lost."""
    file, identity = connection.info.get("file", (None, None))
    return file is not None and sqlite.identity(file) != identity


@contextmanager
def alone(connection: sql.Connection, lock: int = MIGRATING) -> Iterator[None]:
    """A transaction on a connection in autocommit, in which nobody else has the lock; with SQLite nobody else writes."""
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
    """Return the SQLite file that a URL names, None if it is no such URL."""
    if isinstance(url, Path):
        return url.absolute()
    path = url.removeprefix("sqlite:///") if isinstance(url, str) else url
    return Path(path).absolute() if path not in (url, "", ":memory:") else None


def _parsed(url: str | sql.URL) -> sql.URL:
    """Return the parts of a URL. A password with signs that mean something in one is refused: it would be torn apart."""
    if isinstance(url, sql.URL):
        return url
    try:
        if isinstance(url, str) and ADDRESS.fullmatch(url):
            return sql.make_url(url)
    except (ValueError, sql.exc.ArgumentError):  # their messages may quote what they took for a port: a password
        pass
    raise ValueError(
        "the log's address cannot be read: write sqlite:///file or postgresql+psycopg://user:password@host/database, "
        "with special characters in the password percent-encoded, as in urllib.parse.quote(password, safe='')"
    )


def _sqlite(file: Path) -> sql.Engine:
    if not file.parent.is_dir():
        raise LogUnavailable(f"there is no folder {file.parent}: make it, or name a file elsewhere")
    # no pool: nothing stays open between uses, so who only reads holds nothing and a fork takes no connection along
    engine = sql.create_engine(
        sql.URL.create("sqlite", database=str(file)),
        creator=partial(sqlite.reopen, file, BUSY, isolation_level=""),
        poolclass=sql.NullPool,
        hide_parameters=True,
    )

    @sql.event.listens_for(engine, "connect")
    def connected(connection, record) -> None:
        connection.execute("PRAGMA synchronous=NORMAL")
        record.info["file"] = file, sqlite.identity(file)

    return engine


def _postgres(address: sql.URL, name: str) -> sql.Engine:
    patience = {option: value for option, value in PATIENCE.items() if option not in address.query}
    address = address.set(drivername="postgresql+psycopg")
    try:
        return sql.create_engine(address, poolclass=sql.NullPool, connect_args=patience, hide_parameters=True)
    except ImportError as error:
        raise LogUnavailable(f"{name} needs the package psycopg: pip install 'psycopg[binary]'") from error


def _prepare(connection: sql.Connection, name: str) -> None:
    """Make the tables or bring them up to date, once, whoever else opens them now; refuse what is not ours."""
    if _older(connection):
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA auto_vacuum=INCREMENTAL")  # of a new file only: `retention` gives back
            sqlite.write_ahead(connection.connection.driver_connection)  # kept in the file, as the version is
        with alone(connection):
            if _older(connection):
                version, _ = _found(connection)
                TABLES.create_all(connection)
                for step in range(version, SCHEMA) if version else ():
                    for statement in STEPS[step]:
                        connection.exec_driver_sql(statement)
                connection.exec_driver_sql(MARK[connection.dialect.name].format(SCHEMA))
    version, tables = _found(connection)
    if version != SCHEMA or PREDICTIONS.name not in tables:
        what = f"{name} holds schema {version} (tables: {', '.join(sorted(tables)) or None})"
        raise UnknownSchema(f"{what}, this labsupport reads {SCHEMA}: update it, or name another database")


def _older(connection: sql.Connection) -> bool:
    """Whether this is an empty database, or one of a version that we know how to bring up to date."""
    version, tables = _found(connection)
    return version in KNOWN and (KNOWN[version] <= tables if version else not tables)


def _found(connection: sql.Connection) -> tuple[int, set[str]]:
    version, tables = connection.exec_driver_sql(FOUND[connection.dialect.name]).one()
    return int(version), set(filter(None, (tables or "").split(",")))
