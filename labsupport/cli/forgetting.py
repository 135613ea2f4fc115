"""Remove all that the lab keeps of a person: the key, the kept pictures, the review items and the predictions."""

from pathlib import Path

from labsupport import arguments
from labsupport.access import RESERVED, Keys


def forget(person: str, data: Path, keys: Path, log: str | Path | None = None) -> list[str]:
    """Remove all that is kept under the id of a person, and return lines that say how much that was.

    `data` is the data folder and `keys` the key folder. `log` is the address of the log, by default the file
    `predictions.db` in `data`. The server may run meanwhile. If a step fails, the key is gone already, so no picture can be
    decrypted, and you can repeat the call. The name and the token are in `access.Users`, which has its own `forget`.
    The audit trail stays as it is.

    Raises ValueError for an invalid id, and for the ids of `LAB_TOKEN` and `LAB_READ_TOKEN`, which are used again.
    Raises OSError if a file cannot be changed, because another process holds it or because of its permissions.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> forget("p-0123456789ab", folder / "data", folder / "keys")
    ['the key: removed, so that no copy of the data shows the pictures of this person']
    """
    if person in RESERVED:
        raise ValueError(
            f"person={arguments.shown(person)}: several people may use this token: give the id of one person"
        )
    if (data / "audit.db").exists() and not (keys / "audit.key").exists():
        raise ValueError(f"LAB_KEYS: {keys} has not the key of the audit trail in {data}: set it as for the server")
    Keys(keys).forget(person)
    lines = ["the key: removed, so that no copy of the data shows the pictures of this person"]
    file = data / "predictions.db"
    if log is None and not file.exists():
        return lines + _pictures(person, data, [])
    import sqlalchemy as sql

    from labsupport.log import PREDICTIONS, PredictionLog

    with PredictionLog(file if log is None else log) as opened:
        own = (PREDICTIONS.c.person == person) & PREDICTIONS.c.shadow.is_(False)  # of these ids nobody else has another
        ids = opened.select(sql.select(PREDICTIONS.c.id).where(own))
        lines += _pictures(person, data, [row.id for row in ids])
        lines.append(f"predictions removed, with remarks on them: {len(opened.forget(person))}")
    return lines


def _pictures(person: str, data: Path, ids: list[str]) -> list[str]:
    """Remove the pictures and the review items of a person, who has predictions with these ids. Return the lines."""
    lines, uploads, review = [], data / "images_uploaded", data / "review.db"
    if uploads.is_dir():
        from labsupport.access import Uploads

        lines.append(f"kept pictures removed: {Uploads(uploads).forget(ids)}")
    if review.exists():
        from labsupport.automation import ReviewQueue

        with ReviewQueue(review) as queue:
            lines.append(f"review items removed: {queue.forget_owner(person, ids)}")
    return lines
