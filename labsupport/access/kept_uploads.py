"""Keep the newest annotated pictures in `images_uploaded`, if `create_app` got `keep_uploads=True`.

A picture of a named person is encrypted, in a `.bin` file. Without a person it is a plain JPEG.
"""

import logging
import os
import re
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from labsupport import paths
from labsupport.access.keys import Forgotten, Keys, NoKey, keys_for
from labsupport.arguments import number, shown

MOST = 1_000  # pictures
OLDEST = 7 * 24 * 3600  # seconds
ABANDONED = 600  # seconds: no picture takes so long to write
ID = "[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}"  # as uuid.uuid4().hex: version 4, variant 10
NAME, OURS = re.compile(rf"{ID}\.jpg"), re.compile(rf"{ID}\.(jpg|bin)")  # given by the caller, and in the folder
PRIVATE = stat.S_IFREG | 0o600  # a regular file that only its owner may read and write

logger = logging.getLogger(__name__)


class Uploads:
    """Keeps pictures in `images_uploaded`: at most `most`, and none older than `oldest` seconds once another one is kept.

    Only pictures that a server kept are ever removed. At the start the class counts a file as such a picture if its
    name matches `OURS` and only the server's user may read and write it (0600).

    >>> import tempfile
    >>> from uuid import uuid4
    >>> uploads = Uploads(Path(tempfile.mkdtemp()), most=2)
    >>> kept = [uploads.keep(f"{uuid4().hex}.jpg", b"a picture") for _ in range(3)]
    >>> [path.exists() for path in kept]
    [False, True, True]
    """

    def __init__(
        self, folder: Path | None = None, most: int = MOST, oldest: float = OLDEST, keys: Keys | None = None
    ) -> None:
        """List the pictures in the folder. `keys` encrypt the pictures of people.

        Raises OSError if the folder cannot be made, or if it is a file, and ValueError for an argument of another type, or
        out of range.
        """
        self.folder = paths.IMAGES_UPLOADED if folder is None else folder
        if not isinstance(self.folder, Path):
            raise ValueError(f"folder={shown(folder)}: give a Path")
        self.most, self.oldest = number("most", most, least=0, whole=True), number("oldest", oldest)
        self.keys = keys
        self._lock = threading.RLock()
        self._troubles: dict[str, int] = {}  # what fails -> how often since it last worked
        self._open_folder()
        now, wall = _steady(), time.time()
        self._kept = deque((now - max(0.0, wall - at), path) for at, path in sorted(_kept_before(self.folder)))
        for half in self.folder.glob(".partial-*"):  # of a server that was killed while it wrote
            self._attempt("leftovers", "removed", partial(_clear, half))

    def keep(self, name: str, content: bytes, person: str | None = None) -> Path | None:
        """Write a picture and return its path. Then remove pictures that are too old or too many.

        `name` must be new and match `NAME`; otherwise raises ValueError. With `person`, the id of a person, the picture is
        encrypted before it is written, and the file ends with `.bin`. If the disk does not take the picture, or there are no
        keys, or the key cannot be used, returns None and raises nothing. The log reports this once. Of a forgotten person
        nothing is kept, which returns None, too.
        """
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise ValueError(f"name={shown(name)}: give uuid.uuid4().hex and .jpg")
        path = self.folder / name
        if person is not None:
            path = path.with_suffix(".bin")
        written = self._attempt("pictures", "kept", lambda: self._write(path, content, person))
        with self._lock:
            if written:
                self._kept.append((_steady(), path))
            while self._kept and (len(self._kept) > self.most or _steady() - self._kept[0][0] > self.oldest):
                old = self._kept.popleft()[1]
                self._attempt("old pictures", "removed", partial(old.unlink, missing_ok=True))
        return path if written else None

    def picture(self, id: str, person: str | None = None) -> bytes | None:
        """Return the picture that was kept for a person, or for nobody, under `id` and `.jpg`; None if it is not there.

        Raises ValueError for an invalid id or person, and what `Keys.decrypt` raises: `Forgotten`, `NoKey` (also if there
        are no keys) and `Damaged` (also for another person's picture).

        >>> import tempfile
        >>> from uuid import uuid4
        >>> uploads = Uploads(Path(tempfile.mkdtemp()), keys=Keys(Path(tempfile.mkdtemp())))
        >>> id = uuid4().hex
        >>> uploads.keep(f"{id}.jpg", b"a picture", "p-0123456789ab").suffix
        '.bin'
        >>> uploads.picture(id, "p-0123456789ab")
        b'a picture'
        """
        if not isinstance(id, str) or not re.fullmatch(ID, id):
            raise ValueError(f"id={shown(id)}: give the id of a prediction, without .jpg")
        keys = None if person is None else keys_for(self.keys, person)
        try:
            content = (self.folder / f"{id}.{'jpg' if person is None else 'bin'}").read_bytes()
        except FileNotFoundError:
            return None
        return content if keys is None or person is None else keys.decrypt(person, id, content)

    def forget(self, ids: Iterable[str]) -> int:
        """Remove the pictures that were kept under these ids, encrypted or not. Return the number of removed files.

        Ids under which no picture was kept are ignored. Raises OSError if a file cannot be removed, and ValueError
        for one text.
        """
        if isinstance(ids, str):  # its letters would be taken for ids
            raise ValueError(f"ids={shown(ids)}: give a list of ids")
        gone = {self.folder / f"{id}{end}" for id in ids if re.fullmatch(ID, id) for end in (".jpg", ".bin")}
        removed = 0
        for path in gone:
            with suppress(FileNotFoundError):
                path.unlink()
                removed += 1
        with self._lock:
            self._kept = deque(one for one in self._kept if one[1] not in gone)
        return removed

    def _open_folder(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._attempt("the permissions", "set", lambda: self.folder.chmod(0o700))

    def _write(self, path: Path, content: bytes, person: str | None) -> None:
        if person is not None:
            content = keys_for(self.keys, person).encrypt(person, path.stem, content)
        if not self.folder.is_dir():
            self._open_folder()
        with paths.whole(path) as partial:
            partial.touch()
            partial.chmod(0o600)
            partial.write_bytes(content)

    def _attempt(self, what: str, done: str, work: Callable[[], object]) -> bool:
        """Call `work()` and return whether it succeeded. Log what fails once, and once more when it works again."""
        try:
            work()
        except Forgotten:  # while the request was answered
            return False
        except (OSError, NoKey) as error:
            with self._lock:
                self._troubles[what] = self._troubles.get(what, 0) + 1
                if self._troubles[what] == 1:
                    logger.warning("%s: %s cannot be %s: %s", self.folder, what, done, error)
            return False
        with self._lock:
            if missed := self._troubles.pop(what, 0):
                logger.warning("%s: %s are %s again, %d were not", self.folder, what, done, missed)
        return True


def _steady() -> float:
    """Return seconds of a clock that nobody sets, and that also goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _kept_before(folder: Path) -> Iterator[tuple[float, Path]]:
    """Yield (seconds since the epoch, path) of each picture in `folder` that a server kept there."""
    for path in (*folder.glob("*.jpg"), *folder.glob("*.bin")):
        with suppress(FileNotFoundError):  # another worker has just removed it
            status = path.lstat()
            if OURS.fullmatch(path.name) and status.st_mode == PRIVATE and status.st_uid == os.geteuid():
                yield status.st_mtime, path


def _clear(half: Path) -> None:
    """Remove the folder of a picture that was never finished, if it is old and holds nothing else."""
    if half.is_symlink() or time.time() - half.stat().st_mtime < ABANDONED:
        return
    for file in half.iterdir():
        if OURS.fullmatch(file.name):
            file.unlink()
    half.rmdir()
