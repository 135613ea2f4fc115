"""Define the exercises of security_privacy.ipynb."""

import hashlib
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from labsupport.exercises.exercise import OpenExercise, Question, exercise, is_number

NAMES = {  # file names that a client may send, and whether a folder and one of them leads out of the folder
    "cat.jpg": False,
    "../cat.jpg": True,
    "..cat.jpg": False,
    "day/../cat.jpg": False,
    "day/../../cat.jpg": True,
    "/tmp/cat.jpg": True,
}
LEAST = {"prometheus": "reader", "ward": "client", "on call": "operator", "privacy officer": "admin"}
TOO_MUCH = {
    "prometheus": "it only reads metrics, and what it may not do, a thief of its token may not do either",
    "ward": "it sends pictures and sees its own: it needs neither the dashboard nor the rollout",
    "on call": "rolling back changes the rollout: the operator may do that, without seeing the pictures of others",
    "privacy officer": "seeing the pictures of others is what only one role may do",
}
PERSON = "Grace Hopper, born 1906"
# texts that a solution may put between two fields
BETWEEN = ("", *" ,;:|/.-_+&=#\t\n\r\0\x1e\x1f", ", ", "; ", ": ", " | ", " - ", "||", "::", "--", "\r\n")


@exercise(
    "Walk through each name: a part .. goes one folder up, and a part day goes one folder down.",
    "What happens if a path that is joined to a folder begins with a slash?",
    'Three of the six leave. Try it: Path("/srv/uploads", name).resolve() shows where each one ends.',
)
def escaping_names(answer: Any) -> str | None:
    """security_privacy.ipynb: the file names that lead out of the folder of the uploads."""
    if isinstance(answer, str) or not isinstance(answer, set | frozenset | list | tuple):
        return 'give a set of names, as in {"cat.jpg"}'
    if unknown := {*answer} - NAMES.keys():
        return f"{sorted(map(str, unknown))[0]!r} is not one of the six"
    if "..cat.jpg" in answer:
        return "..cat.jpg is a name that begins with two dots: only a whole part .. goes up"
    if "day/../cat.jpg" in answer:
        return "day/../cat.jpg goes down and up again: it ends in the folder"
    if "cat.jpg" in answer:
        return "cat.jpg stays in the folder"
    missing = [name for name, leaves in NAMES.items() if leaves and name not in answer]
    if "/tmp/cat.jpg" in missing:
        return "a name that begins with / replaces the whole path: which one does?"
    return f"{len(missing)} more: count the steps down and up" if missing else None


@exercise(
    "The table above says what each role may do. Take the role that is just enough.",
    "Who changes the rollout? Who sees pictures of others?",
)
def least_role(answer: dict[str, str]) -> str | None:
    """security_privacy.ipynb: the role with the fewest rights for each of four users."""
    if not isinstance(answer, dict):
        return "give a dict with a role for each of the four"
    for who, role in LEAST.items():
        given = answer.get(who)
        if given not in LEAST.values():
            return f"{who}: give reader, client, operator or admin"
        if given != role:
            return f"{who}: {given} is not it: {TOO_MUCH[who]}"
    return None


@exercise(
    'hmac.new(key, message, "sha256").hexdigest() is a hash that nobody can compute without the key.',
    "The message has to hold the hash before and the whole row: json.dumps([previous, row]).encode()",
    "The key is the first argument of hmac.new, and no part of the message.",
)
def keyed_link(link: Callable[[bytes, str, list[str]], str]) -> str | None:
    """security_privacy.ipynb: the hash of a row that depends on the key, the hash before it and every field."""
    key, row = b"k" * 32, ["ana", "POST /predict", "200"]
    first = link(key, "", row)
    if not isinstance(first, str) or len(first) < 32:
        return "return the hash as a text of 64 hex digits: hexdigest() gives one"
    if link(key, "", list(row)) != first:
        return "the same key and row give two different hashes: then nobody can verify the trail"
    if link(b"other" * 8, "", row) == first:
        return "another key gives the same hash: whoever changes a row can compute it, too"
    if link(key, "a" * 64, row) == first:
        return "it does not depend on the hash before it: rows could be removed or exchanged"
    for number in range(len(row)):
        changed = [*row[:number], row[number] + "!", *row[number + 1 :]]
        if link(key, "", changed) == first:
            return f"field {number + 1} of the row can be changed without notice"
    for mark in BETWEEN:
        pair = [f"ana{mark}POST", "/predict", "200"], ["ana", f"POST{mark}/predict", "200"]
        if link(key, "", pair[0]) == link(key, "", pair[1]):
            return f"it does not see where a field ends: {pair[0]} and {pair[1]} have the same hash"
    return None


@exercise(
    "After your function the check reads all bytes of the folder: the database and the files beside it.",
    'PRAGMA secure_delete=ON must come before the DELETE. The last writes are in the file that ends with "-wal".',
    "Four steps: the pragma, DELETE and commit, VACUUM, PRAGMA wal_checkpoint(TRUNCATE).",
)
def erased(erase: Callable[[sqlite3.Connection, str], None]) -> str | None:
    """security_privacy.ipynb: a function that removes a person from a SQLite file so that no byte of the name is left."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "people.db")
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA secure_delete=OFF")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("CREATE TABLE people (name TEXT, note TEXT)")
            people = [(PERSON if number == 150 else f"person {number}", "x" * 50) for number in range(300)]
            connection.executemany("INSERT INTO people VALUES (?, ?)", people)
            connection.commit()
            connection.execute("UPDATE people SET note = note || note WHERE name LIKE 'person 1%'")  # moves some rows
            connection.commit()
            erase(connection, PERSON)
            if connection.in_transaction:
                return "the transaction is still open: call connection.commit()"
            names = {name for (name,) in connection.execute("SELECT name FROM people")}
            if PERSON in names:
                return "a query still finds the person: DELETE comes first"
            if len(names) < 299:
                return "other people are gone, too: DELETE ... WHERE name = ?"
            left = [one.name for one in sorted(Path(folder).iterdir()) if PERSON.encode() in one.read_bytes()]
    return f"no query finds the person, but the name still stands in {', '.join(left)}" if left else None


@exercise(
    "A dict keeps one value for each key: the person as the key, the label as the value.",
    "Count the values of that dict: collections.Counter has most_common.",
)
def one_vote(winner: Callable[[Sequence[tuple[str, str]]], str]) -> str | None:
    """security_privacy.ipynb: a function that returns the label of most people, each with the last remark only."""
    forty = [("eve", "good")] * 40
    honest = [(f"person {number}", "defect") for number in range(10)]
    cases: list[tuple[list[tuple[str, str]], str, str]] = [
        ([*forty, *honest], "defect", "forty remarks of one person outvote ten people: each person has one vote"),
        ([("ana", "good")], "good", "ana is the only one who has said something, and she said good"),
        (
            [("ana", "good"), ("ben", "defect"), ("ana", "defect"), ("cleo", "good")],
            "defect",
            "ana has corrected herself: her last remark is her vote",
        ),
        ([*honest[:3], *[(f"guest {n}", "good") for n in range(4)], *honest[:3]], "good", "people count, not remarks"),
    ]
    for remarks, right, words in cases:
        if (answer := winner(list(remarks))) != right:
            return f"{words}. It returned {answer!r}"
    return None


class Swapped:
    """Pretend to be the path of a file that somebody exchanges after it was read once."""

    def __init__(self, *contents: bytes) -> None:
        self.contents = [*contents]

    def read_bytes(self) -> bytes:
        return self.contents.pop(0) if len(self.contents) > 1 else self.contents[0]


@exercise(
    "hashlib.sha256(content).hexdigest() is the checksum. Raise ValueError if it is another one.",
    "The file may be exchanged between two reads. Call path.read_bytes() once, and keep what it returns.",
)
def checked_weights(load: Callable[[Any, str], bytes]) -> str | None:
    """security_privacy.ipynb: a function that returns a file's bytes only if their SHA-256 is the expected one."""
    good = bytes(range(256)) * 40
    digest = hashlib.sha256(good).hexdigest()
    if load(Swapped(good), digest) != good:
        return "for a file with the right checksum it does not return the bytes of the file"
    for position in (0, 5_000, len(good) - 1):
        flipped = bytearray(good)
        flipped[position] ^= 1
        try:
            load(Swapped(bytes(flipped)), digest)
        except ValueError:
            continue
        return f"one bit of byte {position:,} was flipped, and it raised no ValueError"
    for contents in product((good, b"other weights"), repeat=3):
        with suppress(ValueError):
            if load(Swapped(*contents), digest) != good:
                return "it reads the file more than once, and returns bytes that it has not checked"
    return None


@exercise(
    "Plot or sort both lists: above which confidence are there many members and few strangers?",
    "np.mean(members >= t) - np.mean(strangers >= t) is the gap at the threshold t. Try many t.",
)
def membership_threshold(answer: float, members: np.ndarray, strangers: np.ndarray) -> str | None:
    """security_privacy.ipynb: a threshold on the confidence that tells members of the training set from strangers."""
    if not is_number(answer) or not 0 <= float(answer) <= 1:
        return "give a confidence between 0 and 1"
    gaps = [float(np.mean(members >= t) - np.mean(strangers >= t)) for t in np.linspace(0, 1, 1001)]
    own = float(np.mean(members >= answer) - np.mean(strangers >= answer))
    if own > max(gaps) - 0.03:
        return None
    if np.mean(strangers >= answer) > 0.5:
        return f"above {answer:g} there are also {np.mean(strangers >= answer):.0%} of the strangers: go higher"
    found = f"{np.mean(members >= answer):.0%} of the members and {np.mean(strangers >= answer):.0%} of the strangers"
    return f"above {answer:g} there are {found}: another threshold separates them better"


hospital_plan = OpenExercise(
    "In transit: TLS between the wards and the service, with the hospital's own authority, and also inside the network. At "
    "rest: pictures encrypted with a key for each patient, keys on another machine, and the disks encrypted, because names "
    "and labels are in databases. Roles: a ward sends and sees its own pictures, the operator changes versions and sees no "
    "picture, one privacy officer sees all. Audit: every access, also refused ones, chained, and the anchor is sent to "
    "another machine every minute. Pictures go after 30 days, and nobody outside of the hospital gets a copy.",
    "Is it said for each of the four what it protects against, and what it does not?",
    "Who holds the keys and the anchor of the trail: somebody other than who can write the data?",
    "Is there an end: when is a picture removed, and from which copies?",
    "Does it say who decides whether the law is met? A list of measures does not.",
    hints=("Take the four words one by one: what would a thief, an insider and a listener get without it?",),
)

transit_question = Question(
    "The hospital's pictures are encrypted at rest. Its server speaks plain HTTP. What can a listener in the network read?",
    right="b",
    a=(
        "Nothing: the pictures are encrypted.",
        "At rest means on the disk. The server decrypts a picture before it sends it.",
    ),
    b=(
        "Pictures and tokens, as they pass.",
        "Encryption at rest ends where the server reads the file. The way to the client needs TLS.",
    ),
    c=("Only the tokens.", "Section 7 took the picture out of the bytes on the wire, beside the token."),
)

chain_question = Question(
    "An operator with full access to the server removes the newest ten entries of a hash chain. What reveals it?",
    right="c",
    a=("The hash of the last row that is left.", "All rows that are left fit together. A shorter chain is intact."),
    b=("The signature of each row.", "A signature says that a row is genuine. It does not say that rows follow it."),
    c=(
        "The number and hash of the newest row, kept where the operator cannot write.",
        "The anchor says how many rows there must be. On the same machine the operator could replace it, too.",
    ),
)

forget_question = Question(
    "We deleted a person's key. Last month's backup of the data folder still exists. What does it show of this person?",
    right="a",
    a=(
        "The rows of the databases, but no picture.",
        "Without the key the pictures cannot be decrypted. Rows are not encrypted, so backups need an end, too.",
    ),
    b=("Everything, until the backup is overwritten.", "The pictures in it were encrypted with the key that is gone."),
    c=("Nothing.", "Only what was encrypted with the key is gone. The log's rows are readable in the backup."),
)
