"""A folder overnight: every picture, and every frame of every video, is looked at once, and a table comes out.

Nobody waits for a single answer here. What counts is that every core stays busy, that a bad picture costs one row and not
the night, and that a batch that was stopped goes on where it was. What is done stands in a journal beside the table, which
is made from it at the end: so it is the same, row for row, however often the batch was stopped.
"""

import csv
import functools
import json
import math
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from labsupport import images, paths, rows
from labsupport.detection import Detector
from labsupport.sqlite import write_ahead
from labsupport.tables import FEATURES

PICTURES = (".jpeg", ".jpg", ".png")
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
SEEN = {  # what is said of a picture; the kinds are Python's, as in `tables.COLUMNS`
    "error": str,
    "version": str,
    "width": float,
    "height": float,
    **dict.fromkeys(FEATURES, float),
    "n_detections": int,
    "max_confidence": float,
    "detections": list,
}
COLUMNS = {"file": str, "frame": int, **SEEN}
ROWS = 10_000  # in memory at a time, when the table is written
PICTURE = -1  # the journal's frame of what is no frame; SQLite lets a NULL in a key stand twice
LAYOUT = 1  # of the journal's rows: those of another layout are not taken for ours
SCHEMA = """
CREATE TABLE IF NOT EXISTS seen (
    file BLOB, frame INTEGER, stamp TEXT, row TEXT NOT NULL, PRIMARY KEY (file, frame, stamp)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS ended (file BLOB, stamp TEXT, rows INTEGER NOT NULL, PRIMARY KEY (file, stamp));
CREATE TEMP TABLE wanted (file BLOB PRIMARY KEY, stamp TEXT NOT NULL);
"""
TAKEN = "FROM seen JOIN wanted USING (file, stamp)"


class NoPictures(FileNotFoundError):
    """There is no such folder, or nothing in it that is called a picture or a video."""


class BatchRunning(RuntimeError):
    """Another batch writes the same table at this moment."""


class BatchUnwritable(OSError):
    """The table or its journal cannot be written; what is done so far is kept."""


class BrokenVideo(ValueError):
    """The file is no video that can be read, or it ends before it should."""


@dataclass(frozen=True)
class Summary:
    """What a batch came to, in rows: all, those with an error, those that an earlier run had done."""

    rows: int
    errors: int
    resumed: int


@dataclass(frozen=True)
class _Source:
    """A file to look at. The stamp is another one for other content, another model or another question."""

    path: Path
    name: bytes  # its path within the folder, as the disk has it: not every name is text
    stamp: str

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEOS


@dataclass(frozen=True)
class _Item:
    """One row to be: `read` gives the pixels, or raises what is wrong with them."""

    source: _Source
    frame: int
    read: Callable[[], np.ndarray]


def predict_folder(
    folder: Path | str,
    out: Path | str,
    detector: Detector | None = None,
    confidence: float = 0.5,
    every: int = 1,
    progress: bool = True,
) -> Summary:
    """Detect in all pictures (JPEG, PNG) and videos of a folder, or in a single file, and write a table: .parquet or .csv.

    A row for each picture, and for each `every`-th frame of a video, from frame 0: what `COLUMNS` says. file is the path
    within the folder; frame is null for a picture; error says what was wrong, and then all that was not seen is null;
    version is the model's; then what `images.features` gives, and the detections with more than `confidence` (0 to 1) and
    boxes in pixels, in a CSV as JSON. Rows come by file, then frame. `detector=None` is the one that serves requests, and
    the answers are its answers.

    Subfolders count, and links to folders, each folder once; hidden files and folders do not. Files go by their suffix. As
    many threads as the detector has slots look at one picture each, and none wait in memory. The table appears whole or not
    at all, and replaces one that is there. Until then what is done is in `.partial-` and its name, beside it: after an
    interrupt, a full disk or a kill -9 the same call looks only at what is missing, and at what was changed since.

    Raises `NoPictures`, `BatchRunning` when another batch writes the same table, `BatchUnwritable`, ValueError for another
    suffix, a confidence out of range or an `every` below 1, OSError for a subfolder that cannot be listed, and what
    `Detector.load` raises.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> copy = shutil.copy(paths.IMAGES / "clock.png", folder.name)
    >>> predict_folder(folder.name, Path(folder.name) / "found.csv", Detector.load(precision="f32"), progress=False)
    Summary(rows=1, errors=0, resumed=0)
    >>> print(*(Path(folder.name) / "found.csv").read_text().splitlines()[1].split(",")[:6])
    clock.png   yolov3-tiny/openvino-f32 640.0 480.0
    >>> folder.cleanup()
    """
    folder, out = Path(folder).absolute(), Path(out).resolve()
    write = _writer(out)
    if not 0 <= confidence <= 1:
        raise ValueError(f"confidence={confidence}: give a number from 0 to 1")
    if every < 1:
        raise ValueError(f"every={every}: 1 takes each frame of a video, 10 one in ten")
    found = list(_files(folder))
    if not found:
        raise NoPictures(f"{folder}: no picture or video in it ({', '.join(PICTURES + VIDEOS)})")
    detector = detector or Detector.load()
    question = f"{LAYOUT} {detector.version} {float(confidence)!r} {every}"
    sources = sorted((_source(path, folder, question) for path in found), key=lambda source: source.name)
    with _Journal(out, sources) as journal:
        done = journal.done()
        _look_at_all(sources, done, journal, detector, confidence, every, progress)
        journal.publish(write)
        return Summary(*journal.counts(), resumed=len(done))


def _look_at_all(sources, done, journal, detector, confidence, every, progress) -> None:
    """Each thread takes the next item, looks at it, writes it down. The first who cannot write stops all."""
    items = _Shared(_items(sources, done, journal, every))
    bar = tqdm(desc="pictures", total=_total(sources, every), initial=len(done), unit="row", disable=not progress)

    def work() -> None:
        for item in items:
            seen = _look(detector, confidence, item)
            journal.add(item, seen, then=bar.update)

    with _one_thread_each(), bar, ThreadPoolExecutor(detector.slots) as pool:
        workers = [pool.submit(work) for _ in range(detector.slots)]
        try:
            for worker in as_completed(workers):
                worker.result()
        finally:  # an interrupt, too: each finishes the picture it has
            items.stop()


def _look(detector: Detector, confidence: float, item: _Item) -> dict:
    """One row's worth. Whatever goes wrong with one picture is that picture's affair."""
    seen = {"version": detector.version}
    try:
        image = item.read()
        found = detector.detect(image, confidence)
        sure = max((float(detection.confidence) for detection in found), default=None)
        answer = {"n_detections": len(found), "max_confidence": sure, "detections": rows.to_json(found)}
        return seen | images.features(image) | answer
    except Exception as error:
        # the system's own messages hold the whole path, which is another one on another machine
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return seen | {"error": _text(f"{type(error).__name__}: {text}".encode("utf-8", "backslashreplace"))}


def _files(folder: Path) -> Iterator[Path]:
    """What is called a picture or a video; hidden names, `.partial-` among them, left out; each folder once, whatever links
    lead to it, and by its own name rather than a link's where both stand side by side."""
    if not folder.exists():
        raise NoPictures(f"{folder}: there is no such folder")
    if not folder.is_dir():
        yield from [folder] if _is_called_so(folder.name) else []
        return
    visited = set()
    for here, folders, names in os.walk(folder, onerror=_fail, followlinks=True):
        there = os.stat(here)
        known = (there.st_dev, there.st_ino) in visited
        visited.add((there.st_dev, there.st_ino))
        folders[:] = [] if known else _own_first(here, folders)
        yield from (Path(here, name) for name in names if not known and _is_called_so(name))


def _own_first(here: str, folders: list[str]) -> list[str]:
    seen = [name for name in folders if not name.startswith(".")]
    return sorted(seen, key=lambda name: (os.path.islink(os.path.join(here, name)), name))


def _is_called_so(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in PICTURES + VIDEOS


def _source(path: Path, folder: Path, question: str) -> _Source:
    try:
        status = path.stat()
        content = f"{status.st_size} {status.st_mtime_ns}"
    except OSError:  # gone meanwhile, or a link to nothing: its row will say so
        content = "unreadable"
    name = path.name if path == folder else path.relative_to(folder).as_posix()
    return _Source(path, os.fsencode(name), f"{content} {question}")


def _items(sources: Iterable[_Source], done: set, journal: "_Journal", every: int) -> Iterator[_Item]:
    """What is still to be looked at. A picture is read by the thread that looks at it; a video's frames come one by one."""
    for source in sources:
        if source.is_video:
            if not journal.has_ended(source):
                yield from _frames(source, done, journal, every)
        elif (source.name, PICTURE) not in done:
            yield _Item(source, PICTURE, functools.partial(_read, source.path))


def _read(path: Path) -> np.ndarray:
    if path.exists() and not path.is_file():  # reading from a pipe would wait for ever
        raise images.UnsupportedImage("this is no file")
    if (size := path.stat().st_size) > images.MAX_BYTES:
        raise images.ImageTooLarge(f"{size:,} bytes: send at most {images.MAX_BYTES:,}")
    return images.decode(path.read_bytes())


def _frames(source: _Source, done: set, journal: "_Journal", every: int) -> Iterator[_Item]:
    """Every so many frames. Frames that are done are passed over: they cost their decoding, for a video's own seeking is
    not exact. At the end we note how many rows there were, so that a video that is done is not opened again."""
    asked = 0
    for frame, read in _decoded(source.path, every, lambda frame: (source.name, frame) in done):
        asked += 1
        if read:
            yield _Item(source, frame, read)
    journal.ended(source, asked)


def _decoded(path: Path, every: int, known: Callable[[int], bool]) -> Iterator[tuple[int, Callable | None]]:
    """Frame numbers with what gives their pixels, None for frames that are known; what is wrong with a video comes last."""
    number, promised = 0, 0
    try:
        with _opened(path) as video:
            promised = _promised(video)
            while video.grab():
                if number % every == 0:
                    yield number, None if known(number) else _keep(*video.retrieve())
                number += 1
        if number < max(1, promised - 1):  # some headers are one off
            raise BrokenVideo(f"it ends after {number} of {promised} frames")
    except Exception as error:
        frame = number or PICTURE
        yield frame, None if known(frame) else functools.partial(_fail, error)


@contextmanager
def _opened(path: Path) -> Iterator[cv2.VideoCapture]:
    if path.exists() and not path.is_file():
        raise BrokenVideo("this is no file")
    # FFmpeg and nothing else: OpenCV would go on to take a name with digits for a series of pictures
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        if not video.isOpened():
            raise BrokenVideo("not a video that can be read, or its beginning or end is missing")
        width, height = (int(video.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        if width * height > images.MAX_PIXELS:
            raise images.ImageTooLarge(f"{width:,} x {height:,} pixels: send at most {images.MAX_PIXELS:,} pixels")
        yield video
    finally:
        video.release()


def _keep(whole: bool, image: np.ndarray | None) -> Callable[[], np.ndarray]:
    return (lambda: image) if whole else functools.partial(_fail, BrokenVideo("this frame cannot be decoded"))


def _fail(error: Exception) -> np.ndarray:
    raise error


def _promised(video: cv2.VideoCapture) -> int:
    """Frames, by the header; 0 where it does not say."""
    count = video.get(cv2.CAP_PROP_FRAME_COUNT)
    return int(count) if 0 < count < 1e9 else 0


def _total(sources: Iterable[_Source], every: int) -> int:
    """Rows to come, for the progress bar: what the videos' headers promise."""
    total = 0
    for source in sources:
        promised = 1
        if source.is_video:
            with suppress(Exception), _opened(source.path) as video:
                promised = math.ceil(_promised(video) / every)
        total += promised
    return total


class _Shared:
    """An iterator that several threads take from, until it ends or is stopped."""

    def __init__(self, items: Iterator) -> None:
        self._items, self._lock, self._stopped = items, threading.Lock(), False

    def __iter__(self) -> "_Shared":
        return self

    def __next__(self) -> _Item:
        with self._lock:
            if self._stopped:
                raise StopIteration
            return next(self._items)

    def stop(self) -> None:
        self._stopped = True


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """OpenCV's own threads would get in the way of ours, as in the server."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _named(method: Callable) -> Callable:
    """The disk's and SQLite's errors get our name, and say what to do."""

    @functools.wraps(method)
    def call(self, *args, **kwargs):
        try:
            return method(self, *args, **kwargs)
        except (sqlite3.Error, OSError) as error:
            why = f"{self.out}: {error}: make room, or name another file"
            raise BatchUnwritable(f"{why}; what is done is kept, and the same call goes on from there") from error

    return call


class _Journal:
    """What is done: a SQLite file in a hidden folder beside the table, ours alone while it is open.

    Each row is a transaction. A killed process loses none; a power cut may take the last few, which are then done again.
    """

    def __init__(self, out: Path, sources: Sequence[_Source]) -> None:
        self.out, self._folder, self._lock = out, out.parent / f".partial-{out.name}", threading.Lock()
        self._open(sources)

    @_named
    def _open(self, sources: Sequence[_Source]) -> None:
        if self.out.is_dir():
            raise IsADirectoryError("this is a folder")
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / "journal.db"
        self._file = sqlite3.connect(file, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(sources)
        except sqlite3.Error as error:
            self._file.close()
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
                raise BatchRunning(f"another batch is writing {self.out}: wait for it, or name another file") from None
            raise

    def _prepare(self, sources: Sequence[_Source]) -> None:
        self._file.execute("PRAGMA locking_mode=EXCLUSIVE")  # the lock goes with the process, however it ends
        write_ahead(self._file, patience=0)
        self._file.execute("PRAGMA synchronous=NORMAL")
        self._file.executescript(SCHEMA)
        with self._file:
            self._file.execute("BEGIN EXCLUSIVE")
            wanted = [(source.name, source.stamp) for source in sources]
            self._file.executemany("INSERT INTO wanted VALUES (?, ?)", wanted)
        for half in self._folder.glob(".partial-*"):  # of a run that was killed while it wrote the table
            shutil.rmtree(half, ignore_errors=True)

    @_named
    def done(self) -> set[tuple[bytes, int]]:
        return set(self._file.execute(f"SELECT file, frame {TAKEN}"))

    @_named
    def add(self, item: _Item, seen: dict, then: Callable[[], object]) -> None:
        row = json.dumps([seen.get(name) for name in SEEN])
        with self._lock:
            values = (item.source.name, item.frame, item.source.stamp, row)
            self._file.execute("INSERT INTO seen VALUES (?, ?, ?, ?)", values)
            then()

    @_named
    def ended(self, source: _Source, count: int) -> None:
        with self._lock:
            self._file.execute("INSERT OR REPLACE INTO ended VALUES (?, ?, ?)", (source.name, source.stamp, count))

    @_named
    def has_ended(self, source: _Source) -> bool:
        """Whether every frame's row is there: the end may have been reached while others were still looked at."""
        key = (source.name, source.stamp)
        with self._lock:
            ended = self._file.execute("SELECT rows FROM ended WHERE file = ? AND stamp = ?", key).fetchone()
            seen = self._file.execute("SELECT count(*) FROM seen WHERE file = ? AND stamp = ?", key).fetchone()
        return ended == seen

    @_named
    def counts(self) -> tuple[int, int]:
        error = f"json_extract(row, '$[{list(SEEN).index('error')}]')"
        return self._file.execute(f"SELECT count(*), count({error}) {TAKEN}").fetchone()

    @_named
    def publish(self, write: Callable[[Path, Iterable], object]) -> None:
        """Make the table, let the disk have it, give it its name."""
        partial = self._folder / self.out.name
        write(partial, self._chunks())
        _to_disk(partial)
        os.replace(partial, self.out)
        _to_disk(self.out.parent)

    def _chunks(self) -> Iterator[list[tuple]]:
        cursor = self._file.execute(f"SELECT file, frame, row {TAKEN} ORDER BY file, frame")
        while chunk := cursor.fetchmany(ROWS):
            yield [(_text(file), None if frame == PICTURE else frame, *json.loads(row)) for file, frame, row in chunk]

    def __enter__(self) -> "_Journal":
        return self

    def __exit__(self, kind, *error) -> None:
        """Without an error the journal has served: it goes away while we still hold its lock."""
        if kind is None:
            with suppress(sqlite3.Error, OSError):  # the table is there; a journal that stays costs nobody a row
                self._file.execute("PRAGMA journal_mode=DELETE")
                (self._folder / "journal.db").unlink()
        self._file.close()
        if kind is None:
            with suppress(OSError):  # somebody begins anew already
                self._folder.rmdir()


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _writer(out: Path) -> Callable[[Path, Iterable], object]:
    """What writes such a table. Asked at once: to learn at dawn that there is no pyarrow would be late."""
    if out.suffix.lower() == ".csv":
        return _write_csv
    if out.suffix.lower() != ".parquet":
        raise ValueError(f"{out.name}: name a file that ends in .parquet or .csv")
    try:
        from labsupport import parquet
    except ImportError as error:
        raise BatchUnwritable("Parquet needs pyarrow: pip install 'labsupport[lab]', or name a .csv") from error
    return lambda path, chunks: parquet.write(path, COLUMNS, chunks)


def _write_csv(path: Path, chunks: Iterable[Sequence[tuple]]) -> None:
    with paths.whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for chunk in chunks:
            table.writerows(chunk)
