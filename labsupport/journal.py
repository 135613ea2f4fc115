"""Who answers, and since when: one row for each change, in a SQLite file that several processes share.

The last row is what is in force; those before it are the history, with the reason of every change and the figures that it
was decided on.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from labsupport.sqlite import SHARED, connect, make_private, write_ahead


class JournalUnavailable(OSError):
    """The file cannot be opened or written, or it is no journal."""


@dataclass(frozen=True)
class State:
    """Who answers. Exactly one of these is in force at any moment."""

    stable: str  # the version that answers, but for what a canary takes
    candidate: str | None = None
    previous: str | None = None  # the version that a rollback returns to when there is no candidate
    mode: str = "stable"  # "stable", "shadow", "canary" or "blue_green"
    share: float = 0.0  # percent of requests that the candidate answers (canary) or sees (shadow)
    paused: bool = False
    began: float = 0.0  # when the candidate was let in, in seconds since the epoch; keys are mixed with it
    ramp: dict | None = None  # of a ramp: its steps, its gate, how many of its checks failed
    time: float = 0.0  # of the change that led here
    action: str = "start"
    reason: str = ""
    figures: dict = field(default_factory=dict)  # what the change was decided on


class Journal:
    """The states, one after the other. Threads and processes may share a file; `path=None` keeps them in memory.

    >>> journal = Journal(None, State(stable="v1"))
    >>> journal.change(lambda state: replace(state, stable="v2", previous=state.stable)).previous
    'v1'
    >>> [state.stable for state in journal.history()]
    ['v1', 'v2']
    """

    def __init__(self, path: Path | str | None, first: State) -> None:
        """Open the file, or make it with `first` in it. Raises `JournalUnavailable`."""
        self._lock = threading.Lock()
        try:
            self._file = connect(path, 5) if path else sqlite3.connect(":memory:", **SHARED)
            write_ahead(self._file)
            self._file.execute("CREATE TABLE IF NOT EXISTS states (number INTEGER PRIMARY KEY, state TEXT NOT NULL)")
            self._seen, self._state = self._look()
            if self._state is None:
                self.change(lambda state: state or replace(first, time=time.time()))
            if path:
                make_private(path)
        except (sqlite3.Error, OSError) as error:
            raise JournalUnavailable(f"{path}: {error}: is its folder writable, and is it a journal?") from error

    @property
    def state(self) -> State:
        """What is in force now, whichever process changed it last. Takes some microseconds."""
        with self._lock:
            if self._version() != self._seen:
                self._seen, self._state = self._look()
            return self._state

    def change(self, change: Callable[[State], State]) -> State:
        """Put `change(state)` in force, where `state` is what is in force now; nobody else changes it in between.

        If it gives back the same object nothing is written. What `change` raises changes nothing. Raises
        `JournalUnavailable` if it cannot be written, and then nothing changes.
        """
        with self._lock:
            try:
                self._file.execute("BEGIN IMMEDIATE")
                try:
                    _, before = self._look()
                    state = change(before)
                    if state is not before:
                        text = json.dumps(asdict(state))
                        self._file.execute("INSERT INTO states (state) VALUES (?)", [text])
                        state = State(**json.loads(text))  # as everybody else will read it
                    self._file.execute("COMMIT")
                except BaseException:
                    self._file.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise JournalUnavailable(f"the change was not written down, so it was not made: {error}") from error
            self._seen, self._state = self._version(), state
            return state

    def history(self) -> list[State]:
        """Every state there was, the oldest first."""
        with self._lock:
            rows = self._file.execute("SELECT state FROM states ORDER BY number").fetchall()
        return [State(**json.loads(text)) for (text,) in rows]

    def close(self) -> None:
        with self._lock:
            self._file.close()

    def _version(self) -> int:
        """Another number once another process has written; SQLite's own, which costs next to nothing."""
        return self._file.execute("PRAGMA data_version").fetchone()[0]

    def _look(self) -> tuple[int, State | None]:
        version = self._version()
        row = self._file.execute("SELECT state FROM states ORDER BY number DESC LIMIT 1").fetchone()
        return version, row and State(**json.loads(row[0]))
