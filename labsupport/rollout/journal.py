"""Store which version answers: one row for each change, in a SQLite file that several processes share.

The last row is the state in force. The rows before it are the history. Each row holds the reason of its change and the
figures that it was decided on. Also store the time of the last check of a ramp. Processes use it to check in turn.
"""

import json
import logging
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from labsupport import arguments
from labsupport.sqlite import connect, identity, make_private, write_ahead

MODES = ("stable", "shadow", "canary", "blue_green")
BUSY = 5.0  # seconds that a change waits for another change
LEASE = 10.0  # seconds after which another process may check, if the one that took the turn has not judged the ramp
READ_BUSY = 0.1  # seconds that a request waits for the state while another process locks the whole file
TABLES = (
    "CREATE TABLE IF NOT EXISTS states (number INTEGER PRIMARY KEY, state TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS looks (ramp TEXT PRIMARY KEY, claimed REAL NOT NULL, judged REAL NOT NULL DEFAULT 0)",
)

logger = logging.getLogger(__name__)


class JournalUnavailable(OSError):
    """The file cannot be opened, read or written, or it is not a journal that this version of the lab can read."""


class Ramp(TypedDict):
    """A ramp that is under way, as the journal stores it."""

    id: NotRequired[str]  # a ramp from an older version of the lab has none
    steps: list[float]  # percent
    gate: dict[str, Any]  # the arguments of `Gate`
    interval: float  # seconds between two checks
    began: float  # seconds since the epoch
    since: float  # when the present step began
    failures: int  # failed checks


@dataclass(frozen=True)
class State:
    """Describe which version answers which requests. Exactly one state is in force at any moment."""

    stable: str  # the version that answers all requests except those of a canary
    candidate: str | None = None
    previous: str | None = None  # the version that `rollback()` returns to, right after a promotion or a switch
    mode: str = "stable"  # one of MODES
    share: float = 0.0  # percent of requests that the candidate answers (canary) or sees (shadow)
    paused: bool = False
    began: float = 0.0  # when the candidate was let in, in seconds since the epoch; the hash of keys includes it
    ramp: Ramp | None = None
    time: float = 0.0  # of the change that led here
    action: str = "start"
    reason: str = ""
    figures: dict[str, float] = field(default_factory=dict)  # that the change was decided on


class Journal:
    """Store states, one after the other. Threads and processes may share a file. `path=None` keeps them in memory.

    >>> journal = Journal(None, State(stable="v1"))
    >>> journal.change(lambda state: replace(state, stable="v2", previous=state.stable)).previous
    'v1'
    >>> [state.stable for state in journal.history()]
    ['v1', 'v2']
    """

    def __init__(self, path: Path | str | None, first: State) -> None:
        """Open the file, or create it with the state `first`. Raises `JournalUnavailable`. Raises ValueError for path ""."""
        if path is not None and not str(path):
            raise ValueError("journal='': give the path of a file, or None to keep it in memory")
        self.trouble = ""  # why the state could not be read the last time, for `Router.status`
        self._reading = threading.Lock()  # never held while a writer waits, because requests take it
        self._writing = threading.Lock() if path else self._reading
        self._path: Path | None = None
        self._seen: int | None = None
        with _named(path):
            self._writer = _opened(path, BUSY)
            self._reader = _opened(path, READ_BUSY) if path else self._writer
            # opening a journal that exists does not wait for writers
            self._state = _last(self._reader) or self._begin(first)
            if path:
                make_private(path)
        self._path = Path(path).absolute() if path else None
        self._identity = identity(self._path) if self._path else None

    @property
    def state(self) -> State:
        """Return the state in force, also if another process changed it. Takes some microseconds.

        If the file cannot be read, or was deleted or replaced, the last known state stays in force. `trouble` then holds
        the reason, which is logged once.
        """
        with self._reading:
            try:
                self._check_place()
                (version,) = self._reader.execute("PRAGMA data_version").fetchone()  # changes with others' commits
                if version != self._seen:
                    self._state, self._seen = _in_force(self._reader), version
                self._say("")
            except (sqlite3.Error, JournalUnavailable) as error:
                self._say(f"{type(error).__name__}: {error}")
            return self._state

    def change(self, change: Callable[[State], State]) -> State:
        """Replace the state in force with `change(state)`, and return it. Nobody else can change it in between.

        If `change` returns the same object, nothing is written. If `change` raises, nothing changes. Raises
        `JournalUnavailable` if the state cannot be written; then nothing changes either.
        """
        with self._transaction() as file:
            before = _in_force(file)
            state = change(before)
            if state is not before:
                state = _added(file, state)
        with self._reading:
            self._state, self._seen = state, None  # data_version changes only with commits of other connections
        return state

    def history(self, most: int | None = None) -> list[State]:
        """Return the newest `most` states, or all, the oldest first. Raises `JournalUnavailable`."""
        limit = -1 if most is None else int(arguments.number("most", most, 0, 2**62, whole=True))  # -1 is no limit
        with self._read() as file:
            rows = file.execute("SELECT state FROM states ORDER BY number DESC LIMIT ?", [limit]).fetchall()
        return [_parsed(text) for (text,) in reversed(rows)]

    def count(self) -> int:
        """Return the number of states so far. Raises `JournalUnavailable`."""
        with self._read() as file:
            count: int = file.execute("SELECT max(number) FROM states").fetchone()[0]
        return count

    def claim(self, ramp: str, interval: float, began: float) -> float:
        """Take the turn to check a ramp: return 0 to one caller in each `interval`, else the seconds until the next turn.

        The first turn comes `interval` seconds after the ramp `began`. The caller that takes a turn calls `looked` after
        the check. If it does not do so in time (`interval`, at most `LEASE`), the turn is free again.
        Raises `JournalUnavailable`.
        """
        with self._read() as file:
            if (left := _left(file, ramp, interval, began)) > 0:
                return left
        with self._transaction() as file:
            if (left := _left(file, ramp, interval, began)) > 0:  # another caller was faster
                return left
            file.execute("DELETE FROM looks WHERE ramp != ?", [ramp])
            again = "ON CONFLICT (ramp) DO UPDATE SET claimed = excluded.claimed"
            file.execute(f"INSERT INTO looks (ramp, claimed) VALUES (?, ?) {again}", [ramp, time.time()])
        return 0.0

    def looked(self, ramp: str) -> None:
        """Store that the ramp has just been judged, so that no other process judges it in the same interval.

        Raises `JournalUnavailable`.
        """
        with self._transaction() as file:
            file.execute("REPLACE INTO looks (ramp, claimed, judged) VALUES (?1, ?2, ?2)", [ramp, time.time()])

    def judged(self, ramp: str) -> float:
        """Return when the ramp was last judged, in seconds since the epoch; 0 if never. Raises `JournalUnavailable`."""
        with self._read() as file:
            row = file.execute("SELECT judged FROM looks WHERE ramp = ?", [ramp]).fetchone()
        return row[0] if row else 0.0

    def close(self) -> None:
        with self._writing:
            self._writer.close()
        with self._reading:
            self._reader.close()

    def _begin(self, first: State) -> State:
        """Write the first state, unless another process was faster. Return the state in force."""
        with self._transaction() as file:
            return _last(file) or _added(file, replace(first, time=time.time()))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Run the block as one transaction: all of it is written, or nothing. No other process writes meanwhile."""
        with self._writing:
            self._check_place()  # else a later reader would miss this
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                try:
                    yield self._writer
                    self._writer.execute("COMMIT")
                except BaseException:
                    with suppress(sqlite3.Error):  # a full disk ends the transaction by itself
                        self._writer.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise JournalUnavailable(f"the change was not written down, so it was not made: {error}") from error

    def _check_place(self) -> None:
        if self._path and identity(self._path) != self._identity:
            raise JournalUnavailable("the journal was deleted or replaced since it was opened: start the server again")

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        with self._reading:
            self._check_place()
            try:
                yield self._reader
            except sqlite3.Error as error:
                raise JournalUnavailable(f"the journal of the rollout cannot be read: {error}") from error

    def _say(self, trouble: str) -> None:
        if trouble and not self.trouble:
            logger.error("the journal of the rollout cannot be read, so the last known state stays: %s", trouble)
        elif self.trouble and not trouble:
            logger.warning("the journal of the rollout can be read again")
        self.trouble = trouble


def check(path: Path) -> None:
    """Raise `JournalUnavailable` if the file exists and cannot be read as a journal."""
    if path.exists():
        with _named(path), closing(_opened(path, BUSY)) as file:
            _last(file)


@contextmanager
def _named(path: Path | str | None) -> Iterator[None]:
    """Convert errors of the file to `JournalUnavailable`, with the file's name and what to do."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        cure = "is its folder writable, and is it a journal? Without the file, the version that you start with answers"
        raise JournalUnavailable(f"{path}: {error}: {cure}: move it away to begin anew") from error


def _opened(path: Path | str | None, patience: float) -> sqlite3.Connection:
    """Return a connection to a journal, in memory for None.

    Raises sqlite3.Error or OSError, and `JournalUnavailable` for another program's database.
    """
    file = (
        connect(path, patience) if path else sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    )
    try:
        file.execute(f"PRAGMA busy_timeout = {round(1000 * BUSY)}")  # until it is open
        tables = {name for (name,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        columns = {row[1] for row in file.execute("PRAGMA table_info(states)")}
        if tables and columns != {"number", "state"}:
            raise JournalUnavailable(f"it holds {', '.join(sorted(tables))}, so it is no journal")
        write_ahead(file)
        for table in TABLES:
            file.execute(table)
        file.execute(f"PRAGMA busy_timeout = {round(1000 * patience)}")
    except BaseException:
        file.close()
        raise
    return file


def _last(file: sqlite3.Connection) -> State | None:
    row = file.execute("SELECT state FROM states ORDER BY number DESC LIMIT 1").fetchone()
    return _parsed(row[0]) if row else None


def _in_force(file: sqlite3.Connection) -> State:
    if (state := _last(file)) is None:
        raise JournalUnavailable("it holds no state: somebody has emptied it")
    return state


def _added(file: sqlite3.Connection, state: State) -> State:
    """Add a state, and return it as all other readers will read it."""
    text = json.dumps(asdict(state))
    file.execute("INSERT INTO states (state) VALUES (?)", [text])
    return _parsed(text)


def _parsed(text: str) -> State:
    """Return the state in a row. Raises `JournalUnavailable` for a row that this version of the lab did not write."""
    with suppress(TypeError, ValueError):
        state = State(**json.loads(text))
        names = isinstance(state.stable, str) and isinstance(state.candidate, str | None)
        fits = state.mode in MODES and (state.mode == "stable") == (state.candidate is None) and 0 <= state.share <= 100
        ramp = state.ramp is None or (isinstance(state.ramp, dict) and state.ramp.keys() >= Ramp.__required_keys__)
        if names and fits and ramp and isinstance(state.figures, dict):
            return state
    raise JournalUnavailable("it holds a state that this version of the lab does not know")


def _left(file: sqlite3.Connection, ramp: str, interval: float, began: float) -> float:
    """Return the seconds until the next check of a ramp is due; 0 if it is due, or if the clock was set back."""
    row = file.execute("SELECT claimed, judged FROM looks WHERE ramp = ?", [ramp]).fetchone()
    claimed, judged = row or (-math.inf, 0.0)
    left = max((judged or began) + interval, claimed + min(interval, LEASE)) - time.time()
    return left if 0 < left <= interval else 0.0
