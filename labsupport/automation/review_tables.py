"""Create and migrate the tables of a review queue, and name the statements that `review` executes on them."""

import json
import sqlite3
from typing import Any

from labsupport import sqlite
from labsupport.automation.degrees import Decision
from labsupport.detection import Box, Detection

TABLES = "review_items,review_answers"
NEW, FIRST, OURS = (0, None), (1, TABLES), (2, TABLES)  # SQLite's user_version and the tables
SCHEMA = """
CREATE TABLE IF NOT EXISTS review_items (
    row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, degree TEXT NOT NULL, confidence REAL, opinion TEXT, shown TEXT,
    highlight TEXT NOT NULL, picture BLOB, waiting INTEGER NOT NULL DEFAULT 1, leased_until REAL NOT NULL DEFAULT 0,
    owner TEXT
);
CREATE TABLE IF NOT EXISTS review_answers (
    row INTEGER PRIMARY KEY, id TEXT NOT NULL, time REAL NOT NULL, label TEXT NOT NULL, person TEXT
);
CREATE INDEX IF NOT EXISTS review_waiting ON review_items (row) WHERE waiting;
CREATE INDEX IF NOT EXISTS review_answered ON review_answers (id);
PRAGMA user_version = 2;
"""
CONTENT = """
SELECT user_version, (SELECT group_concat(name) FROM sqlite_master WHERE type = 'table') FROM pragma_user_version
"""
ADD = """
INSERT INTO review_items (id, degree, confidence, opinion, shown, highlight, picture, owner)
VALUES (:id, :degree, :confidence, :opinion, :shown, :highlight, :picture, :owner) ON CONFLICT (id) DO NOTHING
"""
NEXT = """
UPDATE review_items SET leased_until = :now + :lease WHERE row = (
    SELECT row FROM review_items
    WHERE waiting AND (leased_until <= :now OR leased_until > :now + :longest) ORDER BY row LIMIT 1
) RETURNING id, shown, highlight, picture, owner
"""
READ = """
SELECT item.id, confidence, label, opinion, shown, degree, person, time,
    (SELECT count(*) FROM review_answers WHERE id = item.id) AS answers
FROM review_items AS item JOIN review_answers AS answer
    ON answer.row = (SELECT max(row) FROM review_answers WHERE id = item.id)
ORDER BY item.row
"""
FORGET = [f"DELETE FROM {table} WHERE id = ?" for table in TABLES.split(",")]
FORGET_UNOWNED = [
    f"{statement} AND id NOT IN (SELECT id FROM review_items WHERE owner IS NOT NULL)" for statement in FORGET
]
FORGET_OWNER = [  # answers that the owner gave to other people's items stay, without the name
    "DELETE FROM review_answers WHERE id IN (SELECT id FROM review_items WHERE owner = ?)",
    "UPDATE review_answers SET person = NULL WHERE person = ?",
    "DELETE FROM review_items WHERE owner = ?",
]


def prepare(connection: sqlite3.Connection) -> bool:
    """Create the tables in a new file, or migrate them, once even if several processes open it.

    Returns False for a file of another program or of a newer version, and does not change it.

    >>> connection = sqlite3.connect(":memory:", isolation_level=None)
    >>> prepare(connection), connection.execute(CONTENT).fetchone()
    (True, (2, 'review_items,review_answers'))
    """
    if (content := connection.execute(CONTENT).fetchone()) not in (NEW, FIRST, OURS):
        return False
    connection.execute("PRAGMA secure_delete=ON")
    if content == NEW:
        sqlite.write_ahead(connection)
        connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} COMMIT")
    elif content == FIRST:
        with sqlite.transaction(connection, "FULL"):
            if connection.execute(CONTENT).fetchone() == FIRST:  # no other process has done it meanwhile
                connection.execute("ALTER TABLE review_items ADD COLUMN owner TEXT")
                connection.execute("PRAGMA user_version = 2")
    return True


def row(id: str, decision: Decision, owner: str | None) -> dict[str, Any]:
    """Return the columns of an item, without its picture."""
    return {
        "id": id,
        "degree": decision.degree.name.lower(),
        "confidence": None if decision.confidence is None else float(decision.confidence),
        "opinion": decision.opinion,
        "shown": decision.shown,
        "highlight": json.dumps([vars(detection) for detection in decision.highlight], default=float),
        "owner": owner,
    }


def from_json(text: str) -> tuple[Detection, ...]:
    """Return the detections in the column `highlight`."""
    return tuple(Detection(one["label"], one["confidence"], Box(*one["box"])) for one in json.loads(text))
