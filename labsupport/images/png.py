"""Read PNG files: parse their chunks without a library, and decode some rows at a time, which limits the memory.

Only chunks that the pixels depend on are checked. Other chunks may be large or damaged. zlib decompresses the rows, Pillow
removes their filters, and NumPy and OpenCV convert them to BGR. Transparent pixels become white.
"""

import struct
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np
from PIL import Image

from labsupport.images import headers
from labsupport.images.headers import UnsupportedImage, damaged

START = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS = (
    100_000  # a file of 20 MB has some 2,500, of 8 kB each; a chunk takes 12 bytes, and looking at it a microsecond
)
MAX_ROWS = 100_000_000  # bytes of all decompressed rows: 25 megapixels of 32 bits, or 12.5 of 64
MAX_SECONDS = 1.2  # for decompression: the largest usual pictures take 0.5; a malicious file could take 2
BAND = 256_000  # most bytes of rows converted at a time, unless one row is longer
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type -> samples of a pixel
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
GRAY, PALETTE = 0, 3
NOTED = (b"PLTE", b"tRNS", b"eXIf")
PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)  # Adam7: x, y, steps
MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # bytes of a pixel -> name of its mode in Pillow


@dataclass
class Chunks:
    """Hold the header of a PNG, and where its pixels are."""

    width: int
    height: int
    depth: int  # bits of a sample
    colour: int  # the standard's colour type
    interlaced: bool
    orientation: int = 1
    palette: bytes = b""
    transparency: bytes = b""
    pixels: list[tuple[int, int]] = field(default_factory=list)  # start and end of their compressed bytes in the file

    @property
    def bits(self) -> int:
        """Return the number of bits of a pixel."""
        return SAMPLES[self.colour] * self.depth

    @property
    def most_pixels(self) -> int:
        """Return the limit of pixels for a picture with this number of bits."""
        return MAX_ROWS * 8 // self.bits

    @property
    def about(self) -> str:
        """Return a description of the pixels, for a message."""
        return f"of {self.bits} bits"


def read(data: bytes) -> Chunks:
    """Return the header of a PNG. Check its checksums. Raises `UnsupportedImage` if it is damaged or cut off."""
    if not data.startswith(START):
        raise damaged()
    view, seen = memoryview(data), set()
    name, body, whole, at = _chunk(view, len(START))
    if name != b"IHDR" or not whole:
        raise _unread(name)
    chunks = _header(body)
    for _ in range(MAX_CHUNKS - 1):
        if at == len(data):  # without an end chunk: decoding will show whether all pixels are there
            return chunks
        name, body, whole, at = _chunk(view, at)
        if _critical(name) and (not whole or name not in (b"PLTE", b"IDAT", b"IEND")):
            raise _unread(name) if whole else damaged()
        if name == b"IDAT":
            chunks.pixels.append((at - 4 - len(body), at - 4))
        elif name == b"IEND":
            return chunks
        elif name in NOTED and whole and name not in seen:
            seen.add(name)
            _note(chunks, name, bytes(body))
    raise UnsupportedImage(f"a PNG in more than {MAX_CHUNKS:,} chunks: save it again")


def pixels(data: bytes, chunks: Chunks) -> np.ndarray:
    """Return the pixels of a PNG: uint8, (H, W, 3), BGR, as they are stored. Raises `UnsupportedImage` for damage."""
    take = _inflated(b"".join(data[start:end] for start, end in chunks.pixels))
    convert = _converter(chunks)
    picture = np.empty((chunks.height, chunks.width, 3), np.uint8)
    for left, top, across, down in PASSES if chunks.interlaced else ((0, 0, 1, 1),):
        part = picture[top::down, left::across]
        if not part.size:
            continue
        first = 0
        for rows in _rows(take, chunks, *part.shape[:2]):
            part[first : first + len(rows)] = convert(rows, part.shape[1])
            first += len(rows)
    return picture


def _chunk(view: memoryview, at: int) -> tuple[bytes, memoryview, bool, int]:
    """Return the chunk at `at`: its name, its content, whether its checksum is right, and where the next one starts.

    If the pixels do not depend on a chunk, its checksum is not checked.
    """
    if at + 12 > len(view):
        raise damaged()
    length, name = struct.unpack_from(">I4s", view, at)
    end = at + 8 + length
    if end + 4 > len(view):
        raise damaged()
    needed = _critical(name) or name in NOTED
    whole = not needed or zlib.crc32(view[at + 4 : end]) == int.from_bytes(view[end : end + 4])
    return name, view[at + 8 : end], whole, end + 4


def _critical(name: bytes) -> bool:
    """Return whether a reader that does not know this chunk must refuse the picture, by the standard."""
    return not name[0] & 0x20


def _header(body: memoryview) -> Chunks:
    if len(body) != 13:
        raise damaged()
    width, height, depth, colour, compression, filters, interlace = struct.unpack(">IIBBBBB", body)
    if not width or not height or depth not in DEPTHS.get(colour, ()) or compression or filters or interlace > 1:
        raise damaged()
    return Chunks(width, height, depth, colour, bool(interlace))


def _note(chunks: Chunks, name: bytes, body: bytes) -> None:
    if name == b"PLTE":
        if chunks.colour == PALETTE and (len(body) % 3 or not 3 <= len(body) <= 768):
            raise damaged()
        chunks.palette = body
    elif name == b"tRNS":
        chunks.transparency = body
    else:
        chunks.orientation = headers.orientation(body)


def _unread(name: bytes) -> UnsupportedImage:
    """Return the error for a chunk in the wrong place, or of an unknown kind."""
    if name.isalpha() and _critical(name) and name not in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
        return UnsupportedImage(f"a PNG with {name.decode()!r} data is not read: save it as an ordinary PNG")
    return damaged()


def _inflated(data: bytes) -> Callable[[int], bytes]:
    """Return a function `take(count)` that returns the next `count` decompressed bytes of `data`, or raises."""
    stream, at, spent = zlib.decompressobj(), 0, 0.0

    def take(count: int) -> bytes:
        nonlocal at, spent
        got, left = [], count
        while left:
            piece, started = stream.unconsumed_tail or data[at : (at := at + 16_384)], time.thread_time()
            try:
                got.append(stream.decompress(piece, left))
            except zlib.error as error:
                raise damaged() from error
            left -= len(got[-1])
            if (spent := spent + time.thread_time() - started) > MAX_SECONDS:
                raise UnsupportedImage("the picture takes too long to unpack: save it again")
            if left and (stream.eof or not piece):
                raise damaged()
        return b"".join(got)

    return take


def _rows(take: Callable[[int], bytes], chunks: Chunks, height: int, width: int) -> Iterator[np.ndarray]:
    """Yield all rows, some at a time, as bytes (rows, bytes of a row) without their filters."""
    length = -(-width * chunks.bits // 8)
    step = max(1, chunks.bits // 8)  # bytes from a pixel to the next, for the filters
    previous, many = bytes(length), max(1, BAND // (length + 1))
    for first in range(0, height, many):
        filtered = take(min(many, height - first) * (length + 1))
        rows = _unfiltered(b"\0" + previous + filtered, length, step)[1:]
        yield rows
        previous = rows[-1].tobytes()


def _unfiltered(filtered: bytes, length: int, step: int) -> np.ndarray:
    """Return rows without their filters. Pillow removes them; it gets the rows in the form of its own reader of PNGs."""
    size, packed = (length // step, len(filtered) // (length + 1)), zlib.compress(filtered, 0)
    try:
        if step <= 4:
            rows = np.asarray(Image.frombytes(MODES[step], size, packed, "zip", MODES[step]))
        else:  # samples of 16 bits: Pillow returns one of the two bytes, so we decode both ways
            mode = MODES[step // 2]
            halves = (Image.frombytes(mode, size, packed, "zip", f"{mode};16{order}") for order in "BL")
            rows = np.stack([np.asarray(half) for half in halves], axis=-1)
    except ValueError as error:  # an unknown filter
        raise damaged() from error
    return rows.reshape(size[1], length)


def _converter(chunks: Chunks) -> Callable[[np.ndarray, int], np.ndarray]:
    """Return the function that converts rows of bytes, with their width in pixels, to BGR (rows, width, 3)."""
    if chunks.colour == PALETTE or (chunks.colour == GRAY and chunks.depth <= 8):
        table = (_palette if chunks.colour == PALETTE else _grays)(chunks)
        return lambda rows, width: cv2.LUT(cv2.merge([_indices(rows, width, chunks.depth)] * 3), table)
    return lambda rows, width: _blended(rows.reshape(len(rows), width, -1), chunks)


def _palette(chunks: Chunks) -> np.ndarray:
    """Return the colours on white, BGR, (256, 1, 3). Indices beyond the palette are black, as in browsers."""
    if not chunks.palette:
        raise damaged()
    colours, alphas = np.zeros((256, 1, 4), np.uint8), chunks.transparency[:256]
    colours[..., 3] = 255
    colours[: len(chunks.palette) // 3, 0, :3] = np.frombuffer(chunks.palette, np.uint8).reshape(-1, 3)
    colours[: len(alphas), 0, 3] = np.frombuffer(alphas, np.uint8)
    return _on_white(colours)


def _grays(chunks: Chunks) -> np.ndarray:
    """Return the grays of all samples, BGR, (256, 1, 3); the transparent one, if there is one, is white."""
    most = 2**chunks.depth - 1
    grays = np.arange(256) * 255 // most
    if len(chunks.transparency) == 2:
        grays[int.from_bytes(chunks.transparency) & most] = 255
    return np.repeat(grays.astype(np.uint8)[:, None, None], 3, axis=2)


def _indices(rows: np.ndarray, width: int, depth: int) -> np.ndarray:
    """Return one byte for each sample of up to 8 bits."""
    if depth == 8:
        return rows
    shifts = np.arange(8 - depth, -1, -depth, dtype=np.uint8)
    samples = (rows[..., None] >> shifts) & np.uint8(2**depth - 1)
    return np.ascontiguousarray(samples.reshape(len(rows), -1)[:, :width])


def _blended(rows: np.ndarray, chunks: Chunks) -> np.ndarray:
    """Return BGR of whole bytes (rows, width, bytes of a pixel): the high byte of each sample, on white."""
    samples = np.ascontiguousarray(rows[..., :: chunks.depth // 8])
    count = samples.shape[2]
    if count == 4:
        return _on_white(samples)
    if count == 2:
        return _on_white(np.ascontiguousarray(samples[..., [0, 0, 0, 1]]))
    picture = cv2.cvtColor(samples, cv2.COLOR_GRAY2BGR if count == 1 else cv2.COLOR_RGB2BGR)
    # one transparent colour, in 16 bits, of which only the lower 8 may be used
    if len(chunks.transparency) == 2 * count:
        key, kind = (chunks.transparency, np.uint16) if chunks.depth == 16 else (chunks.transparency[1::2], np.uint8)
        colour = np.frombuffer(key, kind).astype(float)
        picture[cv2.inRange(rows.view(kind), colour, colour) == 255] = 255
    return picture


def _on_white(rgba: np.ndarray) -> np.ndarray:
    """Blend RGBA with white, and return BGR."""
    if rgba[..., 3].min() == 255:
        return cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGR)
    red, green, blue, alpha = cv2.split(rgba)
    return cv2.merge([255 - cv2.multiply(255 - colour, alpha, scale=1 / 255) for colour in (blue, green, red)])
