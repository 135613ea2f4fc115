"""Find objects in pictures and draw boxes around them.

>>> from labsupport.detection import Box, Detection
>>> Detection("cat", 0.9, Box(left=2, top=2, right=30, bottom=40)).label
'cat'
"""

from labsupport.detection import agreement, videos
from labsupport.detection.detector import (
    Detector,
    UnknownVersion,
    detect_and_draw_box,
    draw_boxes,
    parse_version,
    resize_for_network,
    versions,
)
from labsupport.detection.installed import load_installed
from labsupport.detection.objects import MOST_DETECTIONS, MOST_PIXEL, Box, Detection, Version, all_plain, plain
from labsupport.detection.server_answer import NOT_OURS, read_answer, read_ready
from labsupport.detection.videos import NO_FRAME

__all__ = [
    "MOST_DETECTIONS",
    "MOST_PIXEL",
    "NOT_OURS",
    "NO_FRAME",
    "Box",
    "Detection",
    "Detector",
    "UnknownVersion",
    "Version",
    "agreement",
    "all_plain",
    "detect_and_draw_box",
    "draw_boxes",
    "load_installed",
    "parse_version",
    "plain",
    "read_answer",
    "read_ready",
    "resize_for_network",
    "versions",
    "videos",
]
