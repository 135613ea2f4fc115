"""Detect objects in every picture, and every frame of every video, of a folder. Write the result as a table.

A batch uses every core. A bad picture gives a row with an error, and the batch goes on. A batch that was stopped continues
where it was. Finished rows are in a ledger beside the table. The table is written from the ledger at the end. So it has the
same rows, however often the batch was stopped.
"""

import csv
import functools
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from labsupport import images, paths
from labsupport.arguments import number, path
from labsupport.batch.ledger import (
    COLUMNS,
    LAYOUT,
    PICTURE,
    BatchRunning,
    BatchUnwritable,
    Chunks,
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
    """Count the rows of a batch: all, those with an error, and those from an earlier run."""

    rows: int
    errors: int
    resumed: int
    left_out: dict[str, str] = field(default_factory=dict, compare=False)  # a file without a row -> reason


@dataclass(frozen=True)
class _Item:
    """Describe one row to compute. `read` returns the pixels, or raises the error of the picture."""

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

    The table has a row for each picture, and for each `every`-th frame of a video, from frame 0, sorted by file and frame:

    | columns of `COLUMNS` | value |
    |---|---|
    | file, frame | the path within the folder; the frame's number, null for a picture |
    | error | the reason why the picture has no result; of the columns below, only version is then set |
    | version | of the model |
    | width, height, brightness, ... | from `images.features` |
    | n_detections, max_confidence, detections | detections above `confidence` (0 to 1), boxes in pixels, in a CSV as JSON |

    `detector=None` uses the same detector as the server. Content decides whether a file is a picture or a video. A file with
    the name of one that cannot be read gives a row with an error. Other files are left out; the summary and the log name
    them with the reason. Subfolders and links to folders are included, each folder once. Hidden files and folders are not.

    There is a thread for each slot of the detector, and each holds one picture. The table appears complete or not at all. It
    replaces only a table of a batch. Until then, finished rows are in the folder `.partial-` and the name of the table,
    beside it. After an interrupt, a full disk or a kill -9 the same call computes only missing and changed rows.

    Raises `NoPictures`, `BatchRunning` if another batch is writing the same table, `BatchUnwritable`, also if `out` is
    another kind of file, ValueError for an invalid argument, OSError for a folder that cannot be listed, and the errors of
    `Detector.load`.

    >>> import shutil, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> copy = shutil.copy(paths.IMAGES / "clock.png", folder.name)
    >>> predict_folder(folder.name, Path(folder.name) / "found.csv", Detector.load(precision="f32"), progress=False)
    Summary(rows=1, errors=0, resumed=0, left_out={})
    >>> print(*(Path(folder.name) / "found.csv").read_text().splitlines()[1].split(",")[:6])
    clock.png   yolov3-tiny/openvino-f32 640.0 480.0
    >>> folder.cleanup()
    """
    folder, out = path("folder", folder).absolute(), path("out", out).resolve()
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
    """Raise ValueError for invalid arguments of `predict_folder`, and `BatchUnwritable` if `out` is another kind of file.

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


def _look_at_all(
    sources: list[Source],
    done: set[tuple[bytes, int]],
    ledger: Ledger,
    detector: Detector,
    confidence: float,
    every: int,
    progress: bool,
) -> None:
    """Let each thread take items, detect objects and store the rows. The first error in storing stops all threads."""
    items = _Shared(_items(sources, done, ledger, every))
    bar = tqdm(desc="pictures", total=_total(sources, every), initial=len(done), unit="row", disable=not progress)

    def work() -> None:
        for item in items:
            row = _look(detector, confidence, item)
            ledger.add(item.source, item.frame, row, then=bar.update)

    with _one_thread_each(), bar, ThreadPoolExecutor(detector.slots) as pool:
        workers = [pool.submit(work) for _ in range(detector.slots)]
        try:
            for worker in as_completed(workers):
                worker.result()
        finally:  # also after an interrupt: each thread finishes its picture
            items.stop()


def _look(detector: Detector, confidence: float, item: _Item) -> dict[str, Any]:
    """Return one row. An error with a picture becomes a row with that error."""
    row: dict[str, Any] = {"version": detector.version}
    try:
        image = item.read()
        detections = detector.detect(image, confidence)
        sure = max((float(detection.confidence) for detection in detections), default=None)
        answer = {"n_detections": len(detections), "max_confidence": sure, "detections": rows.to_json(detections)}
        return row | images.features(image) | answer
    except Exception as error:
        # messages of the system contain the whole path, which differs between machines
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return row | {"error": as_text(f"{type(error).__name__}: {text}".encode("utf-8", "backslashreplace"))}


def _source(path: Path, folder: Path, question: str, video: bool = False) -> Source:
    try:
        status = path.stat()
        content = f"{status.st_size} {status.st_mtime_ns}"
    except OSError:  # deleted meanwhile, or a broken link: its row will have the error
        content = "unreadable"
    name = path.name if path == folder else path.relative_to(folder).as_posix()
    return Source(path, os.fsencode(name), f"{content} {question}", video)


def _items(sources: Iterable[Source], done: set[tuple[bytes, int]], ledger: Ledger, every: int) -> Iterator[_Item]:
    """Yield the items without a row. A picture is read by the thread that takes it; a video's frames come one by one."""
    for source in sources:
        if source.video:
            if not ledger.has_ended(source):
                yield from _frames(source, done, ledger, every)
        elif (source.name, PICTURE) not in done:
            yield _Item(source, PICTURE, functools.partial(images.read, source.path))


def _frames(source: Source, done: set[tuple[bytes, int]], ledger: Ledger, every: int) -> Iterator[_Item]:
    """Yield every `every`-th frame without a row. Finished frames are still decoded, because seeking in a video is not
    exact. At the end, store the number of rows, so that a finished video is not opened again."""
    count = 0
    for frame, read in videos.frames(source.path, every, lambda frame: (source.name, frame) in done):
        count += 1
        if read:
            yield _Item(source, frame, read)
    ledger.ended(source, count)


def _total(sources: Iterable[Source], every: int) -> int:
    """Return the number of rows for the progress bar, by the frame counts in the videos' headers."""
    total = 0
    for source in sources:
        total += math.ceil(videos.promised(source.path) / every) if source.video else 1
    return total


class _Shared:
    """Share an iterator between threads, until it ends or is stopped."""

    def __init__(self, items: Iterator[_Item]) -> None:
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
    """Switch off OpenCV's threads, because they would compete with ours, as in the server."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _writer(out: Path) -> Callable[[Path, Chunks], object]:
    """Return the function that writes the table. Raise before the batch begins if pyarrow is missing."""
    if out.suffix.lower() == ".csv":
        return _write_csv
    try:
        from labsupport.log import parquet
    except ImportError as error:
        raise BatchUnwritable("Parquet needs pyarrow: pip install 'labsupport[lab]', or name a .csv") from error
    return lambda path, chunks: parquet.write(path, COLUMNS, chunks)


def _write_csv(path: Path, chunks: Chunks) -> None:
    with paths.whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for chunk in chunks:
            table.writerows(chunk)
