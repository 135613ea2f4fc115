"""Read a file's header: its kind and EXIF orientation. Define the errors for files that are refused."""

import os
import stat
import struct
from pathlib import Path
from typing import BinaryIO

SNIFFED = 512  # bytes that `kind` reads
PICTURES = ("a JPEG picture", "a PNG picture")  # the kinds that are decoded
VIDEOS = ("an MP4 or QuickTime video", "an AVI video", "a Matroska or WebM video")
KINDS = {  # first bytes of a file -> its kind
    b"\xff\xd8": "a JPEG picture",
    b"\x89PNG": "a PNG picture",
    b"GIF8": "a GIF picture",
    b"BM": "a BMP picture",
    b"II*\0": "a TIFF or raw picture",
    b"MM\0*": "a TIFF or raw picture",
    b"II+\0": "a TIFF picture",
    b"MM\0+": "a TIFF picture",
    b"FUJIFILM": "a raw picture",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 picture",
    b"\xff\x4f\xff\x51": "a JPEG 2000 picture",
    b"\0\0\0\x0cJXL ": "a JPEG XL picture",
    b"\xff\x0a": "a JPEG XL picture",
    b"8BPS": "a Photoshop document",
    b"\0\0\1\0": "an icon",
    b"%PDF": "a PDF document",
    b"PK\3\4": "a ZIP archive or an Office document",
    b"\x1f\x8b": "a gzip archive",
    b"\x1a\x45\xdf\xa3": "a Matroska or WebM video",
}
BRANDS = {  # of the ISO base media file format: bytes 8 to 11
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "a HEIC picture"),
    **dict.fromkeys((b"avif", b"avis"), "an AVIF picture"),
    b"crx ": "a raw picture",
    **dict.fromkeys((b"M4A ", b"M4B "), "a sound file"),
}
RIFFS = {b"WEBP": "a WebP picture", b"AVI ": "an AVI video", b"WAVE": "a sound file"}
ORIENTATION = 0x0112  # the EXIF standard's tag


class UnsupportedImage(ValueError):
    """The bytes are not a JPEG or PNG picture that can be read."""


class ImageTooLarge(ValueError):
    """The picture has more bytes or pixels than the lab accepts."""


def damaged() -> UnsupportedImage:
    """Return the error for a picture that is damaged or cut off."""
    return UnsupportedImage("the picture is damaged or cut off: send it again, whole")


def opened(path: Path) -> BinaryIO:
    """Open a file to read its bytes. Raises `UnsupportedImage` for a pipe or a device, which could block, and OSError."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise UnsupportedImage("this is no file")
    # if a pipe has replaced the file meanwhile, opening must not block
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))


def kind(data: bytes) -> str | None:
    """Return the kind of a file from its first bytes; None if it is unknown. 512 bytes are enough.

    >>> kind(b"GIF89a"), kind(b"<!DOCTYPE html><html></html>"), kind(bytes(9))
    ('a GIF picture', 'an HTML page', None)
    """
    data = bytes(data[:SNIFFED])
    if data[4:8] == b"ftyp":
        if data[8:12] == b"mif1" and b"avif" in data[16:64]:
            return "an AVIF picture"
        return BRANDS.get(data[8:12], "an MP4 or QuickTime video")
    if data[:4] == b"RIFF":
        return RIFFS.get(data[8:12])
    return next((name for start, name in KINDS.items() if data.startswith(start)), None) or _text(data)


def orientation(tiff: bytes) -> int:
    """Return the orientation in EXIF data, 1 to 8. Return 1 (upright) for missing or invalid data.

    `tiff` begins with the byte order: the bytes after `Exif\\0\\0` in a JPEG, or the content of a PNG's `eXIf`.

    >>> orientation(b"MM\\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0))
    6
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(tiff[:4]))
    if not order or len(tiff) < 10:
        return 1
    (first,) = struct.unpack_from(f"{order}I", tiff, 4)
    if first + 2 > len(tiff):
        return 1
    (count,) = struct.unpack_from(f"{order}H", tiff, first)
    for entry in range(first + 2, min(first + 2 + 12 * count, len(tiff) - 11), 12):
        tag, type_, values = struct.unpack_from(f"{order}HHI", tiff, entry)
        if tag == ORIENTATION and values == 1 and type_ in (1, 3, 4):  # a byte, 16 or 32 bits
            (value,) = struct.unpack_from(order + {1: "B", 3: "H", 4: "I"}[type_], tiff, entry + 8)
            return value if 1 <= value <= 8 else 1
    return 1


def _text(data: bytes) -> str | None:
    start = data.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if b"<svg" in start and start.startswith(b"<"):
        return "an SVG drawing"
    if start.startswith((b"data:image/", b"/9j/4", b"ivborw0kggo")):
        return "a picture in base64, which is text"
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        if error.start < len(data) - 3:  # the last character may be cut
            return None
        text = data[: error.start].decode()
    readable = text and all(character.isprintable() or character.isspace() for character in text)
    return "text" if readable else None
