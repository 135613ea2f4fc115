"""How many pictures a second every core together can decode, look at, draw and encode: no HTTP, no log."""

import sys
import threading
import time

import cv2

from benchmarks import load
from labsupport import images, paths
from labsupport.detection import Detector, draw_boxes


def main(seconds: float) -> None:
    cv2.setNumThreads(1)  # as in the server
    detector = Detector.load()
    uploads = [(paths.IMAGES / name).read_bytes() for name in load.PICTURES]
    counts: list[int] = []

    def work(until: float) -> None:
        done = 0
        while time.perf_counter() < until:
            image = images.decode(uploads[done % len(uploads)])
            images.encode(draw_boxes(image, detector.detect(image)))
            done += 1
        counts.append(done)

    for length in (1.0, seconds):  # the first is the warm-up
        counts.clear()
        started = time.perf_counter()
        threads = [threading.Thread(target=work, args=(started + length,)) for _ in range(detector.slots)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print(sum(counts) / (time.perf_counter() - started))


if __name__ == "__main__":
    main(float(sys.argv[1]))
