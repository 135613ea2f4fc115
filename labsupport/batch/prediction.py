"""A folder overnight: every picture, and every frame of every video, is looked at once, and a table comes out.

Nobody waits for a single answer here. What counts is that every core stays busy, that a bad picture costs one row and not
the night, and that a batch that was stopped goes on where it was. What is done stands in a ledger beside the table, which
is made from it at the end: so it is the same, row for row, however often the batch was stopped.
"""

import csv
import functools
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from labsupport import images, paths
from labsupport.arguments import number, shown
from labsupport.batch.ledger import (
    COLUMNS,
    LAYOUT,
    PICTURE,
    BatchRunning,
    BatchUnwritable,
    Ledger,
    Source,
    as_text,
    spare_others,
)
from labsupport.detection import Detector, videos
from labsupport.images import NoPictures, folders
from labsupport.log import rows

__all__ = ["COLUMNS", "BatchRunning", "BatchUnwritable", "NoPictures", "Summary", "predict_folder"]


@dataclass(frozen=True)
class Summary:
    """What a batch came to, in rows: all, those with an error, those that an earlier run had done."""

    rows: int
    errors: int
    resumed: int
    left_out: dict[str, str] = field(default_factory=dict, compare=False)  # a file without a row -> why


@dataclass(frozen=True)
class _Item:
    """One row to be: `read` gives the pixels, or raises what is wrong with them."""

    source: Source
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

    Content decides what is a picture or a video, whatever a file is called. A file that is called so and cannot be read is a
    row with an error. Other files are left out: the summary and the log say which and why. Subfolders count, and links to
    folders, each folder once; hidden files and folders do not.

    As many threads as the detector has slots look at one picture each, and none wait in memory. The table appears whole or
    not at all, and replaces one that is there; no other file is replaced. Until then what is done is in `.partial-` and its
    name, beside it: after an interrupt, a full disk or a kill -9 the same call looks only at what is missing, and at what
    was changed since.

    Raises `NoPictures`, `BatchRunning` when another batch writes the same table, `BatchUnwritable`, also where `out` is a
    file of another kind, ValueError for an argument that is not what it should be, OSError for a folder that cannot be
    listed, and what `Detector.load` raises.

    >>> import shutil, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> copy = shutil.copy(paths.IMAGES / "clock.png", folder.name)
    >>> predict_folder(folder.name, Path(folder.name) / "found.csv", Detector.load(precision="f32"), progress=False)
    Summary(rows=1, errors=0, resumed=0, left_out={})
    >>> print(*(Path(folder.name) / "found.csv").read_text().splitlines()[1].split(",")[:6])
    clock.png   yolov3-tiny/openvino-f32 640.0 480.0
    >>> folder.cleanup()
    """
    folder, out = _path("folder", folder).absolute(), _path("out", out).resolve()
    check(out, confidence, every)
    write, found = _writer(out), folders.found(folder, but=out)
    detector = detector or Detector.load()
    question = f"{LAYOUT} {detector.version} {float(confidence)!r} {every}"
    sources = [_source(path, folder, question) for path in found.pictures]
    sources += [_source(path, folder, question, video=True) for path in found.videos]
    sources.sort(key=lambda source: source.name)
    with Ledger(out, sources) as ledger:
        done = ledger.done()
        _look_at_all(sources, done, ledger, detector, confidence, every, progress)
        ledger.publish(write)
        return Summary(*ledger.counts(), resumed=len(done), left_out=found.left_out)


def check(out: Path, confidence: float, every: int) -> None:
    """Raise ValueError for what `predict_folder` cannot do, and `BatchUnwritable` if `out` is another kind of file.

    >>> check(Path("found.xlsx"), 0.5, 1)
    Traceback (most recent call last):
    ValueError: found.xlsx: name a file that ends in .parquet or .csv
    """
    if out.suffix.lower() not in (".csv", ".parquet"):
        raise ValueError(f"{out}: name a file that ends in .parquet or .csv")
    number("confidence", confidence, 0, 1)
    number("every", every, 1, whole=True)
    try:
        spare_others(out)
    except OSError as error:
        raise BatchUnwritable(f"{out}: {error.strerror or error}: name another file") from error


def _path(name: str, path: Path | str) -> Path:
    if not isinstance(path, str | Path) or not str(path) or "\0" in str(path):
        raise ValueError(f"{name}={shown(path)}: give a path")
    return Path(path)


def _look_at_all(sources, done, ledger, detector, confidence, every, progress) -> None:
    """Each thread takes the next item, looks at it, writes it down. The first who cannot write stops all."""
    items = _Shared(_items(sources, done, ledger, every))
    bar = tqdm(desc="pictures", total=_total(sources, every), initial=len(done), unit="row", disable=not progress)

    def work() -> None:
        for item in items:
            seen = _look(detector, confidence, item)
            ledger.add(item.source, item.frame, seen, then=bar.update)

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
        return seen | {"error": as_text(f"{type(error).__name__}: {text}".encode("utf-8", "backslashreplace"))}


def _source(path: Path, folder: Path, question: str, video: bool = False) -> Source:
    try:
        status = path.stat()
        content = f"{status.st_size} {status.st_mtime_ns}"
    except OSError:  # gone meanwhile, or a link to nothing: its row will say so
        content = "unreadable"
    name = path.name if path == folder else path.relative_to(folder).as_posix()
    return Source(path, os.fsencode(name), f"{content} {question}", video)


def _items(sources: Iterable[Source], done: set, ledger: Ledger, every: int) -> Iterator[_Item]:
    """What is still to be looked at. A picture is read by the thread that looks at it; a video's frames come one by one."""
    for source in sources:
        if source.video:
            if not ledger.has_ended(source):
                yield from _frames(source, done, ledger, every)
        elif (source.name, PICTURE) not in done:
            yield _Item(source, PICTURE, functools.partial(images.read, source.path))


def _frames(source: Source, done: set, ledger: Ledger, every: int) -> Iterator[_Item]:
    """Every so many frames. Frames that are done are passed over: they cost their decoding, for a video's own seeking is
    not exact. At the end we note how many rows there were, so that a video that is done is not opened again."""
    asked = 0
    for frame, read in videos.frames(source.path, every, lambda frame: (source.name, frame) in done):
        asked += 1
        if read:
            yield _Item(source, frame, read)
    ledger.ended(source, asked)


def _total(sources: Iterable[Source], every: int) -> int:
    """Rows to come, for the progress bar: what the videos' headers promise."""
    total = 0
    for source in sources:
        total += math.ceil(videos.promised(source.path) / every) if source.video else 1
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


def _writer(out: Path) -> Callable[[Path, Iterable], object]:
    """What writes such a table. Asked at once: to learn at dawn that there is no pyarrow would be late."""
    if out.suffix.lower() == ".csv":
        return _write_csv
    try:
        from labsupport.log import parquet
    except ImportError as error:
        raise BatchUnwritable("Parquet needs pyarrow: pip install 'labsupport[lab]', or name a .csv") from error
    return lambda path, chunks: parquet.write(path, COLUMNS, chunks)


def _write_csv(path: Path, chunks: Iterable[Sequence[tuple]]) -> None:
    with paths.whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for chunk in chunks:
            table.writerows(chunk)
