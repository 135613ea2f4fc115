"""Where predictions are kept: the tables, and how a database that holds them is opened, made or brought up to date.

One SQLite file, or a PostgreSQL database that several machines share. `predictions` writes and reads them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sql
from sqlalchemy.exc import DBAPIError

from labsupport.sqlite import write_ahead

BUSY = 2.0  # seconds that SQLite waits for another writer
PATIENCE = {  # seconds (and milliseconds) after which a server that does not answer is one that cannot be reached
    "connect_timeout": 5,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 3,
}
SCHEMA = 3  # the version: SQLite's user_version, in PostgreSQL a comment on the table
KNOWN = {0: set(), 1: {"predictions"}, 2: {"predictions", "feedback"}}  # the tables that older versions have
STEPS = {  # from a version to the next one; missing tables are made besides
    1: "ALTER TABLE predictions ADD COLUMN shadow BOOLEAN DEFAULT 0",
    2: "ALTER TABLE predictions ADD COLUMN noise FLOAT",
}
FOUND = {  # the version and the tables' names, in one statement: of one moment
    "sqlite": """SELECT user_version, (SELECT group_concat(name) FROM sqlite_master WHERE type = 'table')
        FROM pragma_user_version""",
    "postgresql": """SELECT
        coalesce(substring(obj_description(to_regclass('predictions'), 'pg_class') from '^labsupport ([0-9]+)$'), '0'),
        concat_ws(',', to_regclass('predictions')::text, to_regclass('feedback')::text)""",
}
MARK = {
    "sqlite": "PRAGMA user_version={}",
    "postgresql": "COMMENT ON TABLE predictions IS 'labsupport {}'",
}
ALONE = {  # a transaction in which nobody else migrates or prunes; with SQLite nobody else writes at all
    "sqlite": ("BEGIN IMMEDIATE",),
    "postgresql": ("BEGIN", "SELECT pg_advisory_xact_lock(7521948360)"),  # any number that nobody else uses
}

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
KEPT = {name: kind for name, kind in COLUMNS.items() if name != "aspect"}  # which is width / height, when it is read

WHOLE = sql.BigInteger().with_variant(sql.Integer(), "sqlite")  # SQLite's integers have 64 bits anyway
KINDS = {float: sql.Float, int: WHOLE, str: sql.String, list: sql.Text, bool: sql.Boolean}
TABLES = sql.MetaData()
PREDICTIONS = sql.Table(
    "predictions",
    TABLES,
    sql.Column("row", WHOLE, primary_key=True),
    *(sql.Column(name, KINDS[kind], index=name in ("time", "id")) for name, kind in KEPT.items()),
)
FEEDBACK = sql.Table(
    "feedback",
    TABLES,
    sql.Column("row", WHOLE, primary_key=True),
    sql.Column("time", sql.Float),
    sql.Column("id", sql.String, index=True),  # the prediction's
    *(sql.Column(name, KINDS[kind]) for name, kind in SAID.items()),
)


class LogUnavailable(OSError):
    """The file cannot be opened, or the server cannot be reached: no folder, no permission, no SQLite file, no network."""


class UnknownSchema(RuntimeError):
    """The tables are those of a newer version of the lab, or of another program."""


def open_database(url: str) -> sql.Engine:
    """The database of a URL, with tables of the present version; several processes may open it at once.

    Raises `LogUnavailable`, `UnknownSchema`, and ValueError if `url` names neither a SQLite file nor a PostgreSQL database.

    >>> open_database("mysql://localhost/lab")
    Traceback (most recent call last):
    ValueError: mysql://localhost/lab: name a SQLite file, as in sqlite:///predictions.db, or a PostgreSQL database, as in \
postgresql+psycopg://user@host/lab
    """
    address = _parsed(url)
    name = shown(url)
    if address.drivername in ("postgresql", "postgresql+psycopg"):
        engine, hint = _postgres(address, name), "is the server running, and may we log in?"
    elif address.drivername == "sqlite" and address.database not in (None, "", ":memory:"):
        name = Path(address.database).absolute()
        engine, hint = _sqlite(address, name), "is its folder writable, and is it a SQLite file?"
    else:
        raise ValueError(
            f"{name}: name a SQLite file, as in sqlite:///predictions.db, or a PostgreSQL database, as in "
            "postgresql+psycopg://user@host/lab"
        )
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            _prepare(connection, name)
    except DBAPIError as error:
        raise LogUnavailable(f"{name}: {reason(error)}: {hint}") from error
    return engine


def shown(url: str) -> str:
    """The URL as it may be printed: without its password.

    >>> shown("postgresql+psycopg://lab:secret@db.example.org/lab?sslpassword=secret")
    'postgresql+psycopg://lab:***@db.example.org/lab?sslpassword=%2A%2A%2A'
    """
    if url.startswith("sqlite:"):
        return url
    address = _parsed(url)
    secrets = {name: "***" for name in address.query if "password" in name}
    return address.update_query_dict(secrets).render_as_string(hide_password=True)


def reason(error: Exception) -> str:
    """What the database said, in one line and without SQLAlchemy's own words about it."""
    return " ".join(str(getattr(error, "orig", None) or error).split())


@contextmanager
def alone(connection: sql.Connection) -> Iterator[None]:
    """A transaction on a connection in autocommit, in which nobody else migrates or prunes."""
    for statement in ALONE[connection.dialect.name]:
        connection.exec_driver_sql(statement)
    try:
        yield
    except BaseException:
        connection.exec_driver_sql("ROLLBACK")
        raise
    connection.exec_driver_sql("COMMIT")


def _parsed(url: str) -> sql.URL:
    try:
        return sql.make_url(url)
    except (ValueError, sql.exc.ArgumentError):  # their messages may quote what they took for a port: a password
        raise ValueError(
            "the log's address cannot be read: write sqlite:///file or postgresql+psycopg://user:password@host/database, "
            "with special characters in the password percent-encoded"
        ) from None


def _sqlite(address: sql.URL, file: Path) -> sql.Engine:
    if not file.parent.is_dir():
        raise LogUnavailable(f"there is no folder {file.parent}: make it, or name a file elsewhere")
    # no pool: nothing stays open between uses, so who only reads holds nothing and a fork takes no connection along
    engine = sql.create_engine(address, poolclass=sql.NullPool, connect_args={"timeout": BUSY})
    sql.event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=NORMAL"))
    return engine


def _postgres(address: sql.URL, name: str) -> sql.Engine:
    patience = {option: value for option, value in PATIENCE.items() if option not in address.query}
    try:
        return sql.create_engine(
            address.set(drivername="postgresql+psycopg"), poolclass=sql.NullPool, connect_args=patience
        )
    except ImportError as error:
        raise LogUnavailable(f"{name} needs the package psycopg: pip install 'psycopg[binary]'") from error


def _prepare(connection: sql.Connection, name: Path | str) -> None:
    """Make the tables or bring them up to date, once, whoever else opens them now; refuse what is not ours."""
    if _older(connection):
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA auto_vacuum=INCREMENTAL")  # of a new file only: `retention` gives back
            write_ahead(connection.connection.driver_connection)  # kept in the file, as the version is
        with alone(connection):
            if _older(connection):
                version, _ = _found(connection)
                for step in range(max(version, 1), SCHEMA) if version else ():
                    connection.exec_driver_sql(STEPS[step])
                TABLES.create_all(connection)
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
