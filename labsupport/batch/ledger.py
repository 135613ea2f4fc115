"""Store the finished rows of a batch in a hidden folder beside the table, so that a stopped run can continue."""

import functools
import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from labsupport import paths
from labsupport.detection import NO_FRAME
from labsupport.log import FEATURES
from labsupport.sqlite import connect, make_private, write_ahead

SEEN = {  # the columns about a picture, with types of Python, as in `tables.COLUMNS`
    "error": str,
    "version": str,
    "width": float,
    "height": float,
    **dict.fromkeys(FEATURES, float),
    "n_detections": int,
    "max_confidence": float,
    "detections": list,
}
COLUMNS: dict[str, type] = {"file": str, "frame": int, **SEEN}
ROWS = 10_000  # in memory at a time, while the table is written
PICTURE = NO_FRAME  # SQLite allows a NULL in a key twice
LAYOUT = 1  # version of the ledger's rows: rows of another version are not used
SCHEMA = """
CREATE TABLE IF NOT EXISTS seen (
    file BLOB, frame INTEGER, stamp TEXT, row TEXT NOT NULL, PRIMARY KEY (file, frame, stamp)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ended (file BLOB, stamp TEXT, rows INTEGER NOT NULL, PRIMARY KEY (file, stamp));
CREATE TEMP TABLE wanted (file BLOB PRIMARY KEY, stamp TEXT NOT NULL);
"""
TAKEN = "FROM seen JOIN wanted USING (file, stamp)"
Chunks = Iterable[Sequence[tuple[Any, ...]]]  # rows of the table, in the order of `COLUMNS`
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class BatchRunning(RuntimeError):
    """Another batch is writing the same table."""


class BatchUnwritable(OSError):
    """The table or its ledger cannot be written. Finished rows are kept."""


@dataclass(frozen=True)
class Source:
    """Describe a file of the batch. The stamp changes with the content, the model and the arguments of the batch."""

    path: Path
    name: bytes  # its path within the folder, in bytes, because not every name is text
    stamp: str
    video: bool = False


def _named(
    method: Callable[Concatenate["Ledger", Arguments], Result],
) -> Callable[Concatenate["Ledger", Arguments], Result]:
    """Convert errors of the disk and of SQLite to `BatchUnwritable`, with what to do."""

    @functools.wraps(method)
    def call(self: "Ledger", /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return method(self, *args, **kwargs)
        except (sqlite3.Error, OSError) as error:
            why = f"{self.out}: {error}: make room, or name another file"
            raise BatchUnwritable(f"{why}; what is done is kept, and the same call goes on from there") from error

    return call


class Ledger:
    """Store finished rows in a SQLite file in a hidden folder beside the table, locked while it is open.

    Each row is a transaction. A killed process loses no row. A power cut may lose the last few; these are then done again.
    """

    def __init__(self, out: Path, sources: Sequence[Source]) -> None:
        self.out, self._folder, self._lock = out, out.parent / f".partial-{out.name}", threading.Lock()
        self._open(sources)

    @_named
    def _open(self, sources: Sequence[Source]) -> None:
        if self.out.is_dir():
            raise IsADirectoryError("this is a folder")
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_private(self._folder)  # the folder may be older
        self._file = connect(self._folder / "ledger.db", patience=0)
        try:
            self._prepare(sources)
        except sqlite3.Error as error:
            self._file.close()
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
                raise BatchRunning(f"another batch is writing {self.out}: wait for it, or name another file") from None
            raise

    def _prepare(self, sources: Sequence[Source]) -> None:
        self._file.execute("PRAGMA locking_mode=EXCLUSIVE")  # the lock ends with the process, in any case
        write_ahead(self._file, patience=0)
        make_private(self._folder / "ledger.db")
        self._file.execute("PRAGMA synchronous=NORMAL")
        self._file.executescript(SCHEMA)
        with self._file:
            self._file.execute("BEGIN EXCLUSIVE")
            wanted = [(source.name, source.stamp) for source in sources]
            self._file.executemany("INSERT INTO wanted VALUES (?, ?)", wanted)
        for half in self._folder.glob(".partial-*"):  # from a run that was killed while it wrote the table
            shutil.rmtree(half, ignore_errors=True)

    @_named
    def done(self) -> set[tuple[bytes, int]]:
        return set(self._file.execute(f"SELECT file, frame {TAKEN}"))

    @_named
    def add(self, source: Source, frame: int, seen: dict[str, Any], then: Callable[[], object]) -> None:
        row = json.dumps([seen.get(name) for name in SEEN])
        with self._lock:
            values = (source.name, frame, source.stamp, row)
            self._file.execute("INSERT INTO seen VALUES (?, ?, ?, ?)", values)
            then()

    @_named
    def ended(self, source: Source, count: int) -> None:
        with self._lock:
            self._file.execute("INSERT OR REPLACE INTO ended VALUES (?, ?, ?)", (source.name, source.stamp, count))

    @_named
    def has_ended(self, source: Source) -> bool:
        """Return whether the rows of all frames are stored. The end may be reached while other frames are in work."""
        key = (source.name, source.stamp)
        with self._lock:
            ended = self._file.execute("SELECT rows FROM ended WHERE file = ? AND stamp = ?", key).fetchone()
            seen = self._file.execute("SELECT count(*) FROM seen WHERE file = ? AND stamp = ?", key).fetchone()
        return bool(ended == seen)

    @_named
    def counts(self) -> tuple[int, int]:
        error = f"json_extract(row, '$[{list(SEEN).index('error')}]')"
        counts: tuple[int, int] = self._file.execute(f"SELECT count(*), count({error}) {TAKEN}").fetchone()
        return counts

    @_named
    def publish(self, write: Callable[[Path, Chunks], object]) -> None:
        """Write the table, flush it to the disk, and rename it to `out`."""
        partial = self._folder / self.out.name
        write(partial, self._chunks())
        paths.sync(partial)
        spare_others(self.out)  # the file may have appeared during the batch
        os.replace(partial, self.out)
        paths.sync(self.out.parent)

    def _chunks(self) -> Iterator[list[tuple[Any, ...]]]:
        cursor = self._file.execute(f"SELECT file, frame, row {TAKEN} ORDER BY file, frame")
        while chunk := cursor.fetchmany(ROWS):
            yield [(as_text(file), None if frame == PICTURE else frame, *json.loads(row)) for file, frame, row in chunk]

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Close the ledger. After a batch without errors, delete it while we still hold its lock."""
        if kind is None:
            with suppress(sqlite3.Error, OSError):  # the table is complete; a ledger that stays does no harm
                self._file.execute("PRAGMA journal_mode=DELETE")
                (self._folder / "ledger.db").unlink()
        self._file.close()
        if kind is None:
            with suppress(OSError):  # another batch has begun already
                self._folder.rmdir()


def spare_others(out: Path) -> None:
    """Raise FileExistsError if `out` exists and is not a table of a batch, because only such tables are replaced.

    >>> spare_others(Path(__file__))
    Traceback (most recent call last):
    FileExistsError: this file is no table of a batch, and is not replaced
    """
    if out.exists() and not out.is_file():
        raise FileExistsError("this is a folder, a pipe or a device, and is not replaced")
    if not out.exists() or not out.stat().st_size:
        return
    ours = list(COLUMNS)[:4]
    try:
        if out.suffix.lower() == ".parquet":
            from pyarrow import parquet

            columns = parquet.read_schema(out).names
        else:
            with out.open(encoding="utf-8", newline="") as file:
                columns = file.readline(1_000).strip().split(",")
    except (ValueError, ImportError):  # not text, not Parquet
        columns = []
    if columns[:4] != ours:
        raise FileExistsError("this file is no table of a batch, and is not replaced")


def as_text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
