"""Predict a folder on several machines: `batch.predict_folder` with Ray Data, with the same columns and rows.

The files are divided into shares. Each worker of the cluster processes its share as one machine processes a whole
folder.
"""

import contextlib
import functools
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from labsupport import arguments, batch
from labsupport.detection import Detector, parse_version
from labsupport.images import folders
from labsupport.models import best_precision
from labsupport.paths import whole
from labsupport.scale import local_cluster

FILES = 16  # handed to a worker together


def predict_folder(
    folder: Path | str,
    out: Path | str,
    version: str | None = None,
    confidence: float = 0.5,
    every: int = 1,
    workers: int | None = None,
) -> batch.Summary:
    """Detect in all pictures and videos of a folder on a cluster, and write a table, as `batch.predict_folder` does.

    The rows, their order and the answers are the same. `workers` is the most workers, by default one for each core of
    the cluster. `version` is a version's name, by default yolov3-tiny as it serves requests. Every node must see the
    folder under the same path. If a worker dies, its share is done again elsewhere. But a stopped run cannot be
    continued: it starts from the beginning, because Ray Data keeps no ledger, and `resumed` is 0.

    Raises `folders.NoPictures`, `UnknownVersion`, `batch.BatchUnwritable` and ValueError as `batch.predict_folder` does,
    and RuntimeError outside of a cluster.

    >>> from labsupport import paths
    >>> from labsupport.scale import LocalCluster, bulk
    >>> with LocalCluster() as cluster:  # doctest: +SKIP
    ...     bulk.predict_folder(paths.IMAGES, "found.parquet")
    Summary(rows=56, errors=0, resumed=0, left_out={})
    """
    folder, out = arguments.path("folder", folder).absolute(), arguments.path("out", out).resolve()
    version = f"yolov3-tiny/openvino-{best_precision()}" if version is None else version
    parse_version(version)
    batch.check(out, confidence, every)
    if workers is not None:
        arguments.number("workers", workers, 1, whole=True)
    ray = local_cluster.imported()
    if not ray.is_initialized():
        raise RuntimeError("this process is in no cluster: ray.init(address=...), or scale.LocalCluster()")
    files = folders.found(folder, but=out)
    names = _names([*files.pictures, *files.videos], folder)
    workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    with contextlib.ExitStack() as stack:
        with _named(out):  # before the pictures are looked at
            partial = stack.enter_context(whole(out))
        results = _looked_at(names, (folder, out.suffix.lower(), version, confidence, every), workers)
        batch.check(out, confidence, every)  # the file may have appeared during the run
        with _named(out):
            JOIN[out.suffix.lower()](partial, [result["table"] for result in results])
            stack.close()  # renames it to `out`
    rows, errors = (int(sum(result[name] for result in results)) for name in ("rows", "errors"))
    return batch.Summary(rows, errors, resumed=0, left_out=files.left_out)


@contextlib.contextmanager
def _named(out: Path) -> Iterator[None]:
    """Convert errors of the disk to `BatchUnwritable`, with the name of the table."""
    try:
        yield
    except OSError as error:
        raise batch.BatchUnwritable(f"{out}: {error}: make room, or name another file") from error


def _names(files: list[Path], folder: Path) -> list[bytes]:
    """Return the paths within the folder, in the bytes of the disk, in the order of the table."""
    return sorted(os.fsencode(path.name if path == folder else path.relative_to(folder)) for path in files)


def _looked_at(names: list[bytes], question: tuple[Any, ...], workers: int) -> list[dict[str, Any]]:
    """Return the result of each share, in order."""
    look: Callable[..., dict[str, Any]] = _look
    with local_cluster.quiet():
        from ray import data

        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it says a page about each run
        context = data.DataContext.get_current().copy()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        shares = [{"names": names[first : first + FILES]} for first in range(0, len(names), FILES)]
        with data.DataContext.current(context):
            pool = data.TaskPoolStrategy(size=workers)
            source = data.from_items(shares, override_num_blocks=len(shares))
            return source.map(look, fn_args=question, compute=pool, num_cpus=1).take_all()


def _look(
    share: dict[str, Any], folder: Path, suffix: str, version: str, confidence: float, every: int
) -> dict[str, Any]:
    """Process the files of a share on one core. They are linked into a new folder, which is an ordinary batch."""
    with tempfile.TemporaryDirectory() as scratch:
        here, out = Path(scratch, "files"), Path(scratch, f"table{suffix}")
        for name in share["names"]:
            link = here / os.fsdecode(name)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(folder if folder.is_file() else folder / os.fsdecode(name))
        summary = batch.predict_folder(here, out, _detector(version), confidence, every, progress=False)
        return {"rows": summary.rows, "errors": summary.errors, "table": out.read_bytes()}


@functools.cache
def _detector(version: str) -> Detector:
    """Return the detector of this worker's process, which processes many shares."""
    return Detector.load(*parse_version(version), slots=1)


def _join_csv(out: Path, tables: list[bytes]) -> None:
    """Write one header, then all rows."""
    head = tables[0][: tables[0].index(b"\n") + 1]
    out.write_bytes(head + b"".join(table.removeprefix(head) for table in tables))


def _join_parquet(out: Path, tables: list[bytes]) -> None:
    from pyarrow import BufferReader, concat_tables, parquet

    parquet.write_table(concat_tables([parquet.read_table(BufferReader(table)) for table in tables]), out)


JOIN = {".csv": _join_csv, ".parquet": _join_parquet}
