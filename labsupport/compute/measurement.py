"""Measure the time, memory, disk space and answers of a runtime, estimate its operations, and measure a server's capacity.

`python -m labsupport.compute openvino bf16` measures one runtime in a new process and prints it as JSON. So its memory
is measured alone, and earlier work does not disturb it.
"""

import atexit
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from labsupport import arguments, images, models, paths
from labsupport.compute import loadtest, targets
from labsupport.compute.queueing import Server
from labsupport.detection import Box, Detection, Detector, agreement
from labsupport.edge import NoAnswer, exchange
from labsupport.extras import imported
from labsupport.models import darknet
from labsupport.protection import EXTRA_SLOTS, WAITING_PER_SLOT

LIGHT = 0.12  # of the highest rate
LONGEST = 20  # seconds under a light load: on a slow machine fewer requests have to do
LIMIT = 120  # seconds for a process to measure, or to start
ENDING = 20  # seconds for a server to finish what is under way and to stop


class MeasurementFailed(RuntimeError):
    """Raised if the process that should measure or serve failed; the message holds its output."""


@dataclass(frozen=True)
class Machine:
    """A machine and its price. Raises ValueError for numbers that are not positive and finite, and parts of a core.

    >>> round(Machine("t3.large", cores=2, dollars_per_hour=0.0832).dollars_per_million(rate=100, utilisation=0.5), 2)
    0.46
    """

    name: str
    cores: int
    dollars_per_hour: float

    def __post_init__(self) -> None:
        arguments.number("cores", self.cores, 1, whole=True)
        arguments.number("dollars_per_hour", self.dollars_per_hour, 0, ends=False)

    def dollars_per_million(self, rate: float, utilisation: float = 0.5) -> float:
        """Return the cost of a million pictures, in dollars, on a machine that can process `rate` a second.

        The machine is paid for at all times: `utilisation`, 0 to 1, is the share of that rate which it really gets.
        Raises ValueError for a rate that is not positive and a utilisation that is not above 0 and at most 1.
        """
        arguments.number("rate", rate, 0, ends=False)
        arguments.number("utilisation", utilisation, 0, ends=False)
        arguments.number("utilisation", utilisation, 0, 1)
        return self.dollars_per_hour / 3600 / (rate * utilisation) * 1e6


def weigh(runtime: str, precision: str, seconds: float = 1) -> dict[str, Any]:
    """Return the result of `measure` from a new process, or of `in_browser.measure` for the runtime "browser".

    Raises `MeasurementFailed` if the process fails, prints something else, or takes over `LIMIT` seconds longer than
    `seconds`.
    """
    what = ["labsupport.compute.in_browser"] if runtime == "browser" else ["labsupport.compute", runtime, precision]
    command = [sys.executable, "-m", *what, str(seconds)]
    limit = LIMIT + arguments.number("seconds", seconds, 0, ends=False)
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        raise MeasurementFailed(
            f"{runtime} {precision}: not measured within {limit:g} s: is the machine busy?"
        ) from None
    except (OSError, ValueError) as error:  # no process to be had, or a name that none can be given
        raise MeasurementFailed(f"{runtime} {precision}: no process was started: {error}") from error
    if ended.returncode:
        raise MeasurementFailed(
            f"{runtime} {precision}: {_last_line(ended.stderr) or f'exit status {ended.returncode}'}"
        )
    try:
        row: dict[str, Any] = json.loads(_last_line(ended.stdout))
    except ValueError:
        raise MeasurementFailed(f"{runtime} {precision}: it printed no figures: {ended.stdout[-200:]!r}") from None
    return row


def _last_line(printed: str) -> str:
    return printed.strip().rpartition("\n")[2]


def measure(runtime: str, precision: str, seconds: float = 4) -> dict[str, Any]:
    """Measure one runtime in this process, on all pictures of `images` and every second frame of `images/street`.

    - `version`: the name in the log and the headers
    - `one`, `p95`: milliseconds a picture on one core, the resize included: median and 95th percentile
    - `all`: milliseconds a picture when every slot is busy for so many `seconds`
    - `memory`: MB that only this process holds (unique set size), without the pictures
    - `disk`: MB of what the runtime reads
    - `answers`: the objects in each picture, as label, confidence and the four sides of the box

    Raises `models.ModelUnavailable`, and ValueError for an unknown runtime or precision.
    """
    psutil = imported("psutil")
    cv2.setNumThreads(1)  # as in the server
    detector, shown = Detector.load(runtime=runtime, precision=precision), pictures()
    throughput(lambda turn: detector.detect(shown[0]), detector.slots, 0.1)  # the first picture of a slot takes longer
    rate = throughput(lambda turn: detector.detect(shown[turn % len(shown)]), detector.slots, seconds)
    held = psutil.Process().memory_full_info().uss - sum(picture.nbytes for picture in shown)
    row = {"version": detector.version, "all": 1000 / rate, "memory": held / 1e6, "disk": size_on_disk(runtime)}
    alone = Detector.load(runtime=runtime, precision=precision, slots=1)  # `detector` gives a lone picture every core
    answers, taken = [], []
    for picture in shown:
        started = time.perf_counter()
        detections = alone.detect(picture)
        taken.append(time.perf_counter() - started)
        answers.append([(d.label, d.confidence, *d.box) for d in detections])
    one, p95 = (np.quantile(taken, [0.5, 0.95]) * 1000).tolist()
    return {**row, "one": one, "p95": p95, "answers": answers}


def pictures() -> list[np.ndarray]:
    """Return all pictures of `images`, and every second frame of `images/street`."""
    return [images.decode(path.read_bytes()) for path in picture_files()]


def picture_files() -> list[Path]:
    """Return the files of `pictures`."""
    street = paths.IMAGES / "street"
    files = [path for path in sorted(paths.IMAGES.rglob("*")) if path.suffix in (".jpg", ".png")]
    return [path for path in files if path.parent != street] + [path for path in files if path.parent == street][::2]


def throughput(work: Callable[[int], object], threads: int, seconds: float) -> float:
    """Return how often a second `threads` threads finish `work(0)`, `work(1)`, …, in `seconds`. Each thread counts for
    itself, and finishes at least one.

    Raises what `work` raises.

    >>> throughput(lambda turn: time.sleep(0.01), threads=2, seconds=0.1) < 200
    True
    """

    def again(until: float) -> int:
        done = 0
        while done == 0 or time.perf_counter() < until:
            work(done)
            done += 1
        return done

    with ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        counts = list(pool.map(again, [started + seconds] * threads))
        return sum(counts) / (time.perf_counter() - started)


def found(answers: list[Any], reference: list[Any], overlap: float) -> float:
    """Return the share of the reference's objects, 0 to 1, that the answers contain; both as `measure` returns them.

    An object is contained if one with the same label has a box that overlaps its box by more than `overlap` (IoU).

    >>> cat, dog = ("cat", 0.9, 0, 0, 10, 10), ("dog", 0.8, 50, 0, 60, 10)
    >>> found([[cat]], [[cat, dog]], overlap=0.8)
    0.5
    """
    pairs = zip(map(_detections, answers), map(_detections, reference), strict=True)
    matched = sum(agreement.compare(answer, right, overlap).matched for answer, right in pairs)
    return matched / sum(map(len, reference))


def _detections(rows: list[Any]) -> list[Detection]:
    return [Detection(label, confidence, Box(*box)) for label, confidence, *box in rows]


def size_on_disk(runtime: str) -> float:
    """Return the MB of the files that the runtime reads."""
    name = "yolov3-tiny"
    files = models.locate(name) if runtime == "opencv" else models.network(name, runtime).parent.iterdir()
    return sum(file.stat().st_size for file in files) / 1e6


def flops(cfg: str) -> int:
    """Return the floating-point operations of a Darknet network for one picture of 416 x 416, counted as Darknet does.

    Only convolutions count; a product and a sum are two. `cfg` is the text of the .cfg file.

    >>> flops("[net]\\n[convolutional]\\nfilters=16\\nsize=3\\nstride=1")  # 2 x 3 x 3 x 3 colours x 16 x 416 x 416
    149520384
    """
    total, shape = 0, (3, darknet.SIZE)  # channels, and pixels either way
    shapes: list[tuple[int, int]] = []
    for kind, options in darknet.parse(cfg)[1:]:
        channels, side = shape
        if kind == "convolutional":
            filters, size = int(options["filters"]), int(options["size"])
            side //= int(options["stride"])
            total += 2 * size * size * channels * filters * side * side
            shape = filters, side
        elif kind == "maxpool":
            shape = channels, side // int(options["stride"])
        elif kind == "upsample":
            shape = channels, side * int(options["stride"])
        elif kind == "route":
            sources = [shapes[int(index)] for index in options["layers"].split(",")]
            shape = sum(source[0] for source in sources), sources[0][1]
        shapes.append(shape)
    return total


def times(work: Callable[[], object], repeats: int = 20) -> np.ndarray:
    """Return the seconds that each of `repeats` calls took, (repeats,). A first call is not measured."""
    work()
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return np.array(taken)


# a server


@contextlib.contextmanager
def server_process(precision: str | None = None) -> Iterator[str]:
    """Yield the address of a `labsupport serve` in a new process, in an empty folder, which ends with the block.

    Raises `MeasurementFailed` if it does not start.
    """
    command = [sys.executable, "-m", "labsupport", "serve", "--port", "0"]
    command += ["--precision", precision] if precision else []
    with tempfile.TemporaryDirectory() as scratch, Path(scratch, "console").open("w+") as console:
        for folder in ("images", "notebooks", "images_uploaded"):
            Path(scratch, folder).mkdir()
        environment = {**os.environ, "LAB_ROOT": scratch}
        process = subprocess.Popen(command, env=environment, stdout=console, stderr=console, text=True)
        atexit.register(process.terminate)  # a notebook that is closed half-way leaves nothing behind
        try:
            yield _address(Path(console.name), process)
        finally:
            atexit.unregister(process.terminate)
            process.terminate()
            try:
                process.wait(timeout=ENDING)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(console: Path, process: subprocess.Popen[str]) -> str:
    """Wait until the server's models are loaded, and return its address. Raises `MeasurementFailed`."""
    until = time.monotonic() + LIMIT
    while process.poll() is None and time.monotonic() < until:
        if address := re.search(r"serving on (http://\S+)", console.read_text()):
            with contextlib.suppress(NoAnswer):
                if exchange("GET", f"{address[1]}/ready", until - time.monotonic()).status == 200:
                    return address[1]
        time.sleep(0.05)
    ended = f"exit status {process.returncode}" if process.returncode is not None else f"not ready after {LIMIT} s"
    raise MeasurementFailed(f"the server did not start ({ended}): {console.read_text().strip()[-300:]}")


def calibrated(target: targets.Target, light: int = 80, seconds: float = 3, cores: int | None = None) -> Server:
    """Return a model of this project's server from two measurements: at full load for `seconds`, then `light` requests.

    The light requests come at random and so rarely (`LIGHT`) that almost none waits. So their times are service times.
    `cores` is the server's number of cores, by default this machine's. The model's own number is smaller: it counts the
    requests that run together as fast as a lone one, which gets every core. By Little's law it is the highest rate times
    the mean service time. The server's event loop, which reads uploads and writes answers, counts as one more slot. Raises
    `MeasurementFailed` if requests fail."""
    slots = (cores or os.cpu_count() or 1) + EXTRA_SLOTS  # as many as `Slots` has
    loadtest.closed_loop(target, clients=slots, seconds=1)  # warm
    most = loadtest.closed_loop(target, clients=3 * slots, seconds=seconds)
    if most.share(targets.ANSWERED) < 1:
        what = f"{len(most.answered):,} of {len(most.outcomes):,} requests were answered at full load"
        raise MeasurementFailed(f"{what}: is it the lab's server, and has it so many cores?")
    rate = LIGHT * most.rate
    few = loadtest.open_loop(target, rate, seconds=min(light / rate, LONGEST), seed=light)
    if few.share(targets.ANSWERED) < 1:
        raise MeasurementFailed("requests were refused or failed under a light load: is it the lab's server?")
    service = few.answered
    return Server(service, slots + 1, cores=most.rate * float(service.mean()), places=slots * (1 + WAITING_PER_SLOT))


def main() -> None:
    """Measure what the command line names, and print it as JSON: RUNTIME PRECISION [SECONDS]."""
    runtime, precision, *seconds = sys.argv[1:]
    print(json.dumps(measure(runtime, precision, *map(float, seconds))))
