"""Read pictures into arrays and write them back, within limits of size, time and memory.

>>> import numpy as np
>>> from labsupport import images
>>> image = np.zeros((48, 64, 3), np.uint8)  # rows, columns, and blue, green, red
>>> images.decode(images.encode(image, "png")).shape
(48, 64, 3)
"""

from labsupport.images import folders
from labsupport.images.codec import MAX_BYTES, MAX_PIXELS, checked, decode, encode, features, measure, read, show
from labsupport.images.folders import NoPictures, printable
from labsupport.images.headers import ImageTooLarge, UnsupportedImage

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "ImageTooLarge",
    "NoPictures",
    "UnsupportedImage",
    "checked",
    "decode",
    "encode",
    "features",
    "folders",
    "measure",
    "printable",
    "read",
    "show",
]
