"""Find objects in pictures and draw boxes around them.

>>> from labsupport.detection import Box, Detection
>>> Detection("cat", 0.9, Box(left=2, top=2, right=30, bottom=40)).label
'cat'
"""

from labsupport.detection import agreement, videos
from labsupport.detection.detector import (
    Box,
    Detection,
    Detector,
    UnknownVersion,
    detect_and_draw_box,
    draw_boxes,
    parts,
    squeezed,
)
from labsupport.detection.server_answer import NOT_OURS, read_answer
from labsupport.detection.videos import NO_FRAME

__all__ = [
    "NOT_OURS",
    "NO_FRAME",
    "Box",
    "Detection",
    "Detector",
    "UnknownVersion",
    "agreement",
    "detect_and_draw_box",
    "draw_boxes",
    "parts",
    "read_answer",
    "squeezed",
    "videos",
]
