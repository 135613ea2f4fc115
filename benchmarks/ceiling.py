"""How many pictures a second every core together can decode, look at, draw and encode: no HTTP, no log."""

import sys

import cv2

from benchmarks import load
from labsupport import compute, images, paths
from labsupport.detection import Detector, draw_boxes


def main(seconds: float) -> None:
    cv2.setNumThreads(1)  # as in the server
    detector = Detector.load()
    uploads = [(paths.IMAGES / name).read_bytes() for name in load.PICTURES]

    def work(turn: int) -> None:
        image = images.decode(uploads[turn % len(uploads)])
        images.encode(draw_boxes(image, detector.detect(image)))

    compute.throughput(work, detector.slots, 1.0)  # the warm-up
    print(compute.throughput(work, detector.slots, seconds))


if __name__ == "__main__":
    main(float(sys.argv[1]))
