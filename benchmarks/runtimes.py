"""The same pictures through every runtime: how fast, how large, and how far the answers agree with f32's.

`python -m benchmarks.runtimes openvino bf16` measures one runtime in a process of its own and prints it as JSON.
"""

import json
import sys
import threading
import time
from pathlib import Path

import cv2
import psutil

from labsupport import agreement, images, models, paths
from labsupport.detection import Box, Detection, Detector

BARS = (0.8, 0.9)  # an object counts as found when the boxes overlap more than this (IoU), under the same label


def pictures() -> list:
    """All pictures of `images`, and the forty frames of `images/street`."""
    files = [path for path in sorted(paths.IMAGES.rglob("*")) if path.suffix in (".jpg", ".png")]
    return [images.decode(path.read_bytes()) for path in files]


def found(answers: list, reference: list, overlap: float) -> float:
    """The share of the reference's objects that the answers hold too, as `measure` gives them."""
    pairs = zip(map(_detections, answers), map(_detections, reference), strict=True)
    matched = sum(agreement.compare(answer, wanted, overlap).matched for answer, wanted in pairs)
    return matched / sum(map(len, reference))


def _detections(rows: list) -> list[Detection]:
    return [Detection(label, confidence, Box(*box)) for label, confidence, *box in rows]


def measure(runtime: str, precision: str, seconds: float = 4) -> dict:
    """One runtime, in this process. What it found in each picture goes along, for the comparison."""
    cv2.setNumThreads(1)  # as in the server
    shown = pictures()
    detector = Detector.load(runtime=runtime, precision=precision)
    row = {"version": detector.version, "disk": size_on_disk(runtime)}
    row["answers"] = [[(d.label, d.confidence, *d.box) for d in detector.detect(picture)] for picture in shown]
    row["one"] = per_picture(detector, shown, 1, seconds)
    row["all"] = per_picture(detector, shown, detector.slots, seconds)
    row["memory"] = (psutil.Process().memory_full_info().pss - sum(picture.nbytes for picture in shown)) / 1e6
    return row


def per_picture(detector: Detector, shown: list, threads: int, seconds: float) -> float:
    """Milliseconds a picture, the resize included, when so many threads ask at once."""
    counts: list[int] = []

    def work(until: float) -> None:
        done = 0
        while time.perf_counter() < until:
            detector.detect(shown[done % len(shown)])
            done += 1
        counts.append(done)

    started = time.perf_counter()
    workers = [threading.Thread(target=work, args=(started + seconds,)) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return (time.perf_counter() - started) / sum(counts) * 1000


def size_on_disk(runtime: str) -> float:
    """MB of what the runtime reads."""
    if runtime == "opencv":
        files: list[Path] = list(models.locate("yolov3-tiny"))
    else:
        files = list(models.network("yolov3-tiny", runtime).parent.iterdir())
    return sum(file.stat().st_size for file in files) / 1e6


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))
