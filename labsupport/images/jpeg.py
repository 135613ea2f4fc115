"""Read JPEG files: parse their segments without a library, and decode their pixels with libjpeg-turbo.

libjpeg fills in missing pixels of a damaged file, and only warns. So we decode strictly: a warning is an error. Before, we
remove harmless parts that would cause a warning (odd metadata, bytes between segments).
"""

import re
import struct
from dataclasses import dataclass, field

import cv2
import numpy as np
import simplejpeg

from labsupport.images import headers
from labsupport.images.headers import UnsupportedImage, damaged

MAX_SEGMENTS = 10_000  # a file has some 20; a segment takes at least 4 bytes, and parsing it some microseconds
MAX_SCANS = 100  # a progressive JPEG has some 10; each visits every pixel, and takes only 11 bytes
MAX_WORK = 1_000_000_000  # samples in all scans: at 25 megapixels, 40 for each pixel; 15 are usual
MAX_MEMORY = 225_000_000  # bytes: 25 megapixels of 9; 4 colours in several scans take 12
SPARE = 4  # bytes that some encoders write after the pixels, before the next marker
# the start of a segment; the excluded codes occur alone, within the pixels or as filling
MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]")
EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
END = b"\xff\xd9"
JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
PROGRESSIVE = 0xC2
READ = (0xC0, 0xC1, PROGRESSIVE)  # frames: baseline, sequential, progressive; Huffman coded, all of them
UNREAD = {
    0xC3: "a lossless JPEG",
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xDE), "a hierarchical JPEG"),
    **dict.fromkeys((0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF), "an arithmetic-coded JPEG"),
    0xF7: "a JPEG-LS picture",
}
TABLES = (0xC4, 0xDB, 0xDD)  # Huffman, quantisation, restart interval
SCAN = 0xDA


@dataclass
class Frame:
    """Hold the header of a JPEG: its size, colours and orientation, and the segments that decoding needs."""

    progressive: bool
    width: int
    height: int
    sampling: dict[int, tuple[int, int]]  # colour number -> its sampling factors, across and down
    orientation: int = 1
    several: bool = False  # whether the pixels are in several scans
    kept: list[bytes] = field(default_factory=list)  # segments, in the order of the file
    scans: int = 0
    work: float = 0  # samples in all scans
    # colour -> missing bits of each of its 64 coefficients, -1 before its first scan
    bits: dict[int, list[int]] = field(default_factory=dict)

    @property
    def colours(self) -> int:
        return len(self.sampling)

    def samples(self, colour: int) -> float:
        across, down = (max(factors[side] for factors in self.sampling.values()) for side in (0, 1))
        return self.width * self.height * self.sampling[colour][0] * self.sampling[colour][1] / (across * down)

    @property
    def memory(self) -> int:
        """Return the most bytes that decoding takes, besides the file and a copy of it: 6 to 12 for each pixel."""
        pixels = self.width * self.height
        decoded = (4 if self.colours == 4 else 3) * pixels
        # with several scans, libjpeg keeps every coefficient, of two bytes, until the last scan
        coefficients = 2 * round(sum(map(self.samples, self.sampling))) if self.several else 0
        return decoded + max(coefficients, 3 * pixels)  # a second array, for converting colours or turning

    @property
    def most_pixels(self) -> int:
        """Return the limit of pixels for a picture of this kind."""
        return MAX_MEMORY * self.width * self.height // self.memory

    @property
    def about(self) -> str:
        """Return a description of the pixels, for a message."""
        return f"of {self.colours} colours{' in several scans' if self.several else ''}"

    @property
    def missing(self) -> bool:
        """Return whether bits of some coefficients are still missing."""
        return len(self.bits) < self.colours or any(map(any, self.bits.values()))


def read(data: bytes) -> tuple[Frame, int]:
    """Return the header of a JPEG, and where its first scan starts. Raises `UnsupportedImage`."""
    frame, jfif, adobe, exif, tables, at = None, b"", None, None, [], 2
    for _ in range(MAX_SEGMENTS):
        marker, start, end = _segment(data, at)
        body = data[start + 4 : end]
        if marker in UNREAD:
            raise UnsupportedImage(f"{UNREAD[marker]} is not read: save it as an ordinary JPEG, or as PNG")
        if marker in READ:
            if frame:
                raise damaged()
            frame = _frame(marker, body)
            tables.append(data[start:end])
        elif marker in TABLES:
            tables.append(data[start:end])
        elif marker == 0xE0 and body.startswith(b"JFIF\0") and len(body) >= 14:
            jfif = JFIF
        elif marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
            adobe = body[11]
        elif marker == 0xE1 and exif is None and body.startswith(b"Exif\0"):
            exif = body[6:]
        elif marker == SCAN:
            break
        at = end
    else:
        raise _too_many_segments()
    if not frame or not body:
        raise damaged()
    frame.several = frame.progressive or body[0] < frame.colours
    if exif:
        frame.orientation = headers.orientation(exif)
    frame.kept = [b"\xff\xd8", jfif, _adobe(adobe, frame.colours), *tables]
    return frame, start


def pixels(data: bytes, frame: Frame, at: int) -> np.ndarray:
    """Return the pixels of a JPEG: uint8, (H, W, 3), BGR, as they are stored. `frame` and `at` come from `read`.

    Raises `UnsupportedImage` for a damaged file. A changed byte that decodes without a contradiction is not found.
    """
    parts: list[bytes | memoryview] = [*frame.kept]
    end, view = at, memoryview(data)  # a view avoids copies
    for _ in range(MAX_SEGMENTS):
        marker, start, end = _segment(data, end)
        if marker == SCAN:
            _count(frame, data[start + 4 : end])
            following = MARKER.search(data, end)
            end = following.start() if following else len(data)
            parts += _scan(frame, view[start:end])
            if not frame.missing:
                break
        elif marker in TABLES:
            parts.append(data[start:end])
        elif marker in READ or marker == END[1]:
            raise damaged()
    else:
        raise _too_many_segments()
    return _decoded(b"".join([*parts, END]), frame.colours)


def _segment(data: bytes, at: int) -> tuple[int, int, int]:
    """Return the next marker at or after `at`, its position, and the end of its segment. Raises if it is cut off."""
    found = MARKER.search(data, at)
    if not found:
        raise damaged()
    marker, start = data[found.end() - 1], found.start()
    if marker == END[1]:
        return marker, start, start + 2
    if marker < 0xC0 or marker == 0xD8 or start + 4 > len(data):
        raise damaged()
    end = start + 2 + int.from_bytes(data[start + 2 : start + 4])
    if end < start + 4 or end > len(data):
        raise damaged()
    return marker, start, end


def _frame(marker: int, body: bytes) -> Frame:
    if len(body) < 6 or len(body) != 6 + 3 * body[5]:
        raise damaged()
    precision, height, width, colours = struct.unpack_from(">BHHB", body)
    sampling = {body[at]: (body[at + 1] >> 4, body[at + 1] & 15) for at in range(6, len(body), 3)}
    if precision != 8:
        raise UnsupportedImage(f"a {precision}-bit JPEG is not read: save it as a JPEG of 8 bits, or as PNG")
    if colours not in (1, 3, 4):
        raise UnsupportedImage(f"a JPEG of {colours} colour channels is not read: save it as an ordinary JPEG or PNG")
    if not width or not height or len(sampling) < colours:
        raise damaged()
    if not all(1 <= share <= 4 for both in sampling.values() for share in both):
        raise damaged()
    return Frame(marker == PROGRESSIVE, width, height, sampling)


def _adobe(transform: int | None, colours: int) -> bytes:
    """Return the segment with the coding of colours. For an unknown code, use the one that libjpeg assumes."""
    if transform is None:
        return b""
    if transform and colours != 1:
        transform = 1 if colours == 3 else 2
    return b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])


def _count(frame: Frame, body: bytes) -> None:
    """Record the bits of coefficients in a scan. Raises `UnsupportedImage` for too many scans, and for invalid ones.

    If a progressive JPEG lacks some scans, it decodes without a warning, only blurred or gray. So we require all bits of
    all coefficients. A file that omits some on purpose looks the same as one that lost them.
    """
    if not body or len(body) != 4 + 2 * body[0] or not 1 <= body[0] <= 4:
        raise damaged()
    colours, (first, last, shifts) = body[1 : 1 + 2 * body[0] : 2], body[-3:]
    before, after = (shifts >> 4, shifts & 15) if frame.progressive else (0, 0)
    if not frame.progressive:
        first, last = 0, 63
    if not set(colours) <= set(frame.sampling) or not first <= last <= 63:
        raise damaged()
    for colour in colours:
        lacking = frame.bits.setdefault(colour, [-1] * 64)
        if set(lacking[first : last + 1]) != {before or -1} or (before and after != before - 1):
            raise damaged()
        lacking[first : last + 1] = [after] * (last + 1 - first)
    frame.scans += 1
    frame.work += sum(map(frame.samples, colours))
    if frame.scans > MAX_SCANS:
        raise UnsupportedImage(f"a JPEG in more than {MAX_SCANS} scans: save it again in at most {MAX_SCANS}")
    if frame.work > MAX_WORK:
        size = f"{frame.width:,} x {frame.height:,} pixels"
        raise UnsupportedImage(f"a JPEG of {size} in too many scans: save it again in fewer")


def _scan(frame: Frame, scan: memoryview) -> list[memoryview | bytes]:
    """Return a scan. In a JPEG that is not progressive, replace its last parameters, because some files have wrong ones."""
    if frame.progressive:
        return [scan]
    pixels = 2 + int.from_bytes(scan[2:4])
    return [scan[: pixels - 3], b"\0\x3f\0", scan[pixels:]]


def _decoded(data: bytes, colours: int) -> np.ndarray:
    space = "CMYK" if colours == 4 else "BGR"
    try:
        picture = simplejpeg.decode_jpeg(data, space, strict=True)
    except ValueError as error:
        if "subsampling" in str(error):
            raise UnsupportedImage("a JPEG with unusual colour sampling is not read: save it again as PNG") from error
        if not _harmless(str(error), data):
            raise damaged() from error
        picture = simplejpeg.decode_jpeg(data, space, strict=False)
    return _without_black(picture) if colours == 4 else picture


def _harmless(warning: str, data: bytes) -> bool:
    """Return whether a warning is only about spare bytes after the pixels, which some cameras write.

    libjpeg reports only its first warning. A warning about bytes before the end is the last possible one, so there was no
    other. In a damaged file, bytes after the pixels may be left-over pixels. After a changed byte these are nearly always
    more than `SPARE`. One byte repeated many times is filling, and harmless.
    """
    found = EXTRANEOUS.search(warning)
    if not found:
        return False
    spare = data[-2 - int(found[1]) : -2]
    return len(spare) <= SPARE or spare.count(spare[:1]) == len(spare)


def _without_black(cmyk: np.ndarray) -> np.ndarray:
    """Convert inverted CMYK, as Adobe stores it in JPEGs, to BGR: multiply each colour by black."""
    picture = np.empty((*cmyk.shape[:2], 3), np.uint8)
    for top in range(0, len(cmyk), 64):
        red, green, blue, black = cv2.split(cmyk[top : top + 64])
        rows = [cv2.multiply(colour, black, scale=1 / 255) for colour in (blue, green, red)]
        cv2.merge(rows, picture[top : top + 64])
    return picture


def _too_many_segments() -> UnsupportedImage:
    return UnsupportedImage(f"a JPEG in more than {MAX_SEGMENTS:,} segments: save it again")
