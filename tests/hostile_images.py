"""Pictures of up to 20 MB that are made to cost a decoder dear: `python tests/hostile_images.py` prints what each costs.

Each is a valid file, or nearly, that has as much as possible of one thing: segments, chunks, scans, filling, pixels, bits. A
process of its own decodes it, and says how much processor time that took and by how much its memory grew.
"""

import argparse
import itertools
import json
import random
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from fuzz_images import JPEG_START, chunk, exif, png, saved, segment

MOST_BYTES = 20_000_000
MOST_SECONDS = 2.0  # of processor time for one picture
MOST_MEMORY = 250_000_000  # bytes that the process may grow by
SIDE = 5_000  # 25 megapixels: no picture has more
END = b"\xff\xd9"
CHILD = """if True:
    import json, re, sys, time
    from pathlib import Path
    import numpy as np
    from labsupport import images

    def memory(what):
        return 1_000 * int(re.search(what + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

    for kind in ("jpeg", "png"):  # what the first picture costs is no business of the others
        images.decode(images.encode(np.zeros((9, 9, 3), np.uint8), kind))
    for name in sys.argv[1:]:
        data = Path(name).read_bytes()
        Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
        before, started = memory("VmRSS"), time.process_time()
        try:
            answer = "{} x {}".format(*images.decode(data).shape[1::-1])
        except (images.UnsupportedImage, images.ImageTooLarge) as error:
            answer = str(error)
        seconds = time.process_time() - started
        grown = memory("VmHWM") - before
        try:
            images.measure(data)
        except (images.UnsupportedImage, images.ImageTooLarge):
            pass
        print(json.dumps([seconds, grown, answer]), flush=True)
"""


def cost(*pictures: Path) -> list[tuple[float, int, str]]:
    """Return the processor time in seconds, the memory in bytes, and the size or refusal of each picture."""
    command = [sys.executable, "-c", CHILD, *map(str, pictures)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    assert done.stderr == "", done.stderr[-2_000:]
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def main() -> None:
    """Decode all of them, or those that are named, and print a table. Exits with 1 if one costs too much."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="these only")
    parser.add_argument("--random", type=int, default=0, help="so many large pictures put together by chance, as well")
    options = parser.parse_args()
    makers = {**HOSTILE, **{f"random {seed}": lambda seed=seed: by_chance(seed) for seed in range(options.random)}}
    dear = 0
    print(f"{'picture':44} {'MB':>5} {'CPU s':>6} {'peak MB':>7}  answer")
    with tempfile.TemporaryDirectory() as folder:
        for name, make in makers.items():
            if options.names and not any(word in name for word in options.names):
                continue
            file = Path(folder, "picture")
            file.write_bytes(make())
            assert file.stat().st_size <= MOST_BYTES, name
            ((seconds, grown, answer),) = cost(file)
            dear += (too_dear := seconds > MOST_SECONDS or grown > MOST_MEMORY)
            size = file.stat().st_size / 1e6
            print(
                f"{name:44} {size:5.1f} {seconds:6.2f} {grown / 1e6:7.0f}  {answer[:90]}{' !!' * too_dear}", flush=True
            )
    sys.exit(dear > 0)


# JPEGs


def small_jpeg(**options) -> bytes:
    return saved(Image.new("RGB", (64, 64), "orange"), "jpeg", **options)


def filled(start: bytes, piece: bytes, end: bytes) -> bytes:
    """As many pieces as fit."""
    return start + piece * ((MOST_BYTES - len(start) - len(end)) // len(piece)) + end


def in_front(piece: bytes) -> bytes:
    """Pieces between a JPEG's start and its first segment."""
    return filled(JPEG_START, piece, small_jpeg()[2:])


def behind(piece: bytes) -> bytes:
    """Pieces between a JPEG's pixels and its end."""
    return filled(small_jpeg()[:-2], piece, END)


def noise(mode: str, bits: int, width: int = SIDE, height: int = SIDE, **options) -> bytes:
    """A JPEG of noise: of all pictures the one with the most bits for each pixel."""
    random = np.random.default_rng(0)
    channels = {"L": (), "RGB": (3,), "CMYK": (4,)}[mode]
    picture = Image.fromarray(random.integers(0, 2**bits, (height, width, *channels), np.uint8), mode)
    ImageFile.MAXBLOCK = 4 * MOST_BYTES  # a progressive JPEG is written in one go
    for quality in range(95, 4, -15):
        if len(data := saved(picture, "jpeg", quality=quality, **options)) <= MOST_BYTES:
            return data
    raise AssertionError("too large at every quality")


def codes(kind: int, number: int, symbols: dict[int, int]) -> bytes:
    """A Huffman table: the length of each symbol's code."""
    counts = bytes(sum(length == size for length in symbols.values()) for size in range(1, 17))
    return segment(b"\xff\xc4", bytes([kind << 4 | number]) + counts + bytes(sorted(symbols, key=symbols.get)))


def frame(marker: int, width: int, height: int, sampling: list[tuple[int, int]], precision: int = 8) -> bytes:
    colours = b"".join(bytes([number, wide << 4 | high, 0]) for number, (wide, high) in enumerate(sampling, 1))
    body = struct.pack(">BHHB", precision, height, width, len(sampling)) + colours
    return segment(b"\xff\xdb", b"\0" + bytes([1] * 64)) + segment(bytes([255, marker]), body)


def scan(colours: list[int], first: int, last: int, before: int, after: int) -> bytes:
    body = bytes([len(colours)]) + b"".join(bytes([colour, 0]) for colour in colours)
    return segment(b"\xff\xda", body + bytes([first, last, before << 4 | after]))


def ones(text: str) -> bytes:
    """Bits as bytes, filled up with ones as JPEGs are, a zero byte behind each 255."""
    text += "1" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8).replace(b"\xff", b"\xff\0")


def flat(width: int, height: int, sampling: list[tuple[int, int]], marker: int = 0xC0) -> bytes:
    """A gray JPEG in one scan with any sampling: two bits for each block."""
    wide, high = (max(sides) for sides in zip(*sampling, strict=True))
    blocks = -(-width // (8 * wide)) * -(-height // (8 * high)) * sum(a * b for a, b in sampling)
    if len(sampling) == 1:
        blocks = -(-width // 8) * -(-height // 8)
    tables = codes(0, 0, {0: 1}) + codes(1, 0, {0: 1})
    start = JPEG_START + frame(marker, width, height, sampling) + tables
    return start + scan(list(range(1, len(sampling) + 1)), 0, 63, 0, 0) + ones("00" * blocks) + END


def in_scans(colours: int, width: int, height: int, bands: int, bits: int) -> bytes:
    """A progressive JPEG, all zero, in as many scans as it takes to send each band of coefficients bit by bit."""
    blocks = -(-width // 8) * -(-height // 8)
    start = JPEG_START + frame(0xC2, width, height, [(1, 1)] * colours) + codes(0, 0, {0: 1}) + codes(1, 0, {0xE0: 1})
    every, runs = list(range(1, colours + 1)), ""
    for first in range(0, blocks, 32_767):  # 0xE0: so many blocks, at least 16,384, have nothing more
        runs += "0" + format(max(16_384, min(32_767, blocks - first)) - 16_384, "014b")
    parts = [start]
    for after in range(bits, -1, -1):
        before = after + 1 if after < bits else 0
        parts.append(scan(every, 0, 0, before, after) + bytes(-(-blocks * colours // 8)))
    edges = [1 + 63 * band // bands for band in range(bands + 1)]
    for colour in every:
        for first, last in itertools.pairwise(edges):
            for after in range(bits, -1, -1):
                before = after + 1 if after < bits else 0
                parts.append(scan([colour], first, last - 1, before, after) + ones(runs))
    return b"".join(parts) + END


def apart(colours: int, side: int) -> bytes:
    """A gray JPEG whose colours come in scans of their own, so that all coefficients must be kept."""
    blocks = (-(-side // 8)) ** 2
    start = JPEG_START + frame(0xC0, side, side, [(1, 1)] * colours) + codes(0, 0, {0: 1}) + codes(1, 0, {0: 1})
    scans = (scan([colour], 0, 63, 0, 0) + ones("00" * blocks) for colour in range(1, colours + 1))
    return start + b"".join(scans) + END


def many_bits(side: int = SIDE) -> bytes:
    """A progressive JPEG of one colour in which every coefficient has all the bits that fit into the file."""
    blocks = (-(-side // 8)) ** 2
    start = JPEG_START + frame(0xC2, side, side, [(1, 1)]) + codes(0, 0, {0: 1}) + codes(1, 0, {0x01: 1, 0x00: 2})
    rest = scan([1], 0, 0, 0, 0) + bytes(-(-blocks // 8))
    # one bit says "the next coefficient", one its sign; later one bit for each says nothing new
    body = scan([1], 1, 63, 0, 3) + ones("00" * 63 * blocks)
    for after in (2, 1, 0):
        body += scan([1], 1, 63, after + 1, after) + ones(("10" + "0" * 63) * blocks)
    return start + rest + body + END


def tables(marker: bytes, body: bytes) -> bytes:
    return in_front(segment(marker, body * (65_533 // len(body))))


def entries() -> bytes:
    """EXIF with as many entries as fit, of which each points at all the others."""
    entry = struct.pack(">HHII", 0x9286, 7, 60_000, 8)
    return segment(b"\xff\xe1", b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 5_400) + entry * 5_400)


def jpegs() -> dict[str, Callable[[], bytes]]:
    tiny = segment(b"\xff\xe1", b"Exif\0\0MM\0*\0\0\0\x08\0\0")
    many = {
        "EXIF segments": lambda: in_front(tiny),
        "ICC segments behind the pixels": lambda: behind(segment(b"\xff\xe2", b"")),
        "comments": lambda: in_front(segment(b"\xff\xfe", b"")),
        "comments behind the pixels": lambda: behind(segment(b"\xff\xfe", b"")),
        "EXIF entries": lambda: in_front(entries()),
        "large segments": lambda: in_front(segment(b"\xff\xe5", bytes(65_533))),
        "Huffman tables": lambda: tables(
            b"\xff\xc4", b"\0" + bytes([0, 1, 5, 1, 1, 1, 1, 1, 1, *bytes(7)]) + bytes(range(12))
        ),
        "quantisation tables": lambda: tables(b"\xff\xdb", b"\0" + bytes([1] * 64)),
        "restart intervals": lambda: in_front(segment(b"\xff\xdd", b"\0\1")),
        "frames": lambda: in_front(frame(0xC0, 64, 64, [(1, 1)] * 3)),
        "starts": lambda: in_front(JPEG_START),
        "filling in front": lambda: in_front(b"\xff"),
        "filling behind the pixels": lambda: behind(b"\xff"),
        "zeros in front": lambda: in_front(b"\0"),
        "zeros behind the pixels": lambda: behind(b"\0"),
        "zeros behind the end": lambda: filled(small_jpeg(), b"\0", b""),
        "stuffed bytes behind the pixels": lambda: behind(b"\xff\0"),
        "restart markers behind the pixels": lambda: behind(b"\xff\xd0"),
        "pictures in a row": lambda: filled(b"", small_jpeg(), b""),
    }
    pixels = {
        "no height": lambda: flat(64, 64, [(1, 1)]).replace(struct.pack(">HH", 64, 64), struct.pack(">HH", 0, 64)),
        "noise": lambda: noise("RGB", 8),
        "noise, colours not shared": lambda: noise("RGB", 8, subsampling=0),
        "noise, turned": lambda: noise("RGB", 8, subsampling=0, exif=exif(7)),
        "noise, a restart after each block": lambda: noise("RGB", 8, restart_marker_blocks=1),
        "noise, progressive": lambda: noise("RGB", 8, progressive=True, subsampling=0),
        "noise, progressive, turned": lambda: noise("RGB", 8, progressive=True, subsampling=0, exif=exif(5)),
        "noise, four colours": lambda: noise("CMYK", 8),
        "noise, four colours, turned": lambda: noise("CMYK", 8, exif=exif(6)),
        "noise, four colours, progressive": lambda: noise("CMYK", 8, 4_330, 4_330, progressive=True),
        "noise, four colours, progressive, too large": lambda: noise("CMYK", 4, progressive=True),
        "noise, gray, progressive": lambda: noise("L", 8, progressive=True),
        "wide": lambda: flat(65_500, 381, [(2, 2), (1, 1), (1, 1)]),
        "high": lambda: flat(381, 65_500, [(1, 1)] * 3),
        "wider than high": lambda: flat(65_500, 1, [(4, 1), (1, 1), (1, 1)]),
        "odd sampling": lambda: flat(SIDE, SIDE, [(1, 2), (1, 1), (2, 1)]),
        "three scans of a colour each": lambda: apart(3, SIDE),
        "56 scans": lambda: in_scans(3, SIDE, SIDE, 1, 13),
        "40 scans of 25 megapixels": lambda: in_scans(1, SIDE, SIDE, 2, 12),
        "100 scans": lambda: in_scans(3, 1_900, 1_900, 10, 2),
        "100 scans, gray": lambda: in_scans(1, 3_100, 3_100, 13, 6),
        "27 scans, three colours": lambda: in_scans(3, 4_100, 4_100, 4, 1),
        "many bits": lambda: many_bits(3_700),
        "arithmetic": lambda: flat(64, 64, [(1, 1)], marker=0xC9),
        "lossless": lambda: flat(64, 64, [(1, 1)], marker=0xC3),
        "12 bits": lambda: JPEG_START + frame(0xC1, 64, 64, [(1, 1)], precision=12) + scan([1], 0, 63, 0, 0) + END,
    }
    return {f"JPEG: {name}": make for name, make in (many | pixels).items()}


# PNGs


def deflated(row: bytes, rows: int, level: int = 1) -> bytes:
    squeeze = zlib.compressobj(level)
    return b"".join(squeeze.compress(row) for _ in range(rows)) + squeeze.flush()


def rough(width: int, height: int, depth: int, colours: int, filters: int = 4, interlace: int = 0) -> bytes:
    """A PNG of noise under a filter (0 none, 3 average, 4 Paeth), with as much noise as fits into the file."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colours]
    random, length = np.random.default_rng(0), -(-width * samples * depth // 8)
    total = (
        sum(high * (wide + 1) for wide, high in passes(width, height, samples * depth))
        if interlace
        else height * (length + 1)
    )
    bits = next((bits for bits in range(8, 1, -1) if total * bits / 8 < 0.9 * MOST_BYTES), 1)
    share = min(1, 0.7 * MOST_BYTES / (total * max(bits, 2.2) / 8))  # of each row: the rest is zero
    squeeze, parts = zlib.compressobj(1 if bits < 8 else 0), []
    shapes = passes(width, height, samples * depth) if interlace else [(length, height)]
    for wide, high in shapes:
        for first in range(0, high, 500):
            rows = random.integers(0, 2**bits, (min(500, high - first), wide + 1), np.uint8)
            rows[:, 0], rows[:, 1 + round(share * wide) :] = filters, 0
            parts.append(squeeze.compress(rows.tobytes()))
    palette = chunk(b"PLTE", bytes(range(256)) * 3) + chunk(b"tRNS", bytes(range(256))) if colours == 3 else b""
    key = chunk(b"tRNS", bytes(2 * samples)) if colours in (0, 2) else b""
    turned = chunk(b"eXIf", exif(7).tobytes()[6:])
    data = png(width, height, depth, colours, b"".join(parts) + squeeze.flush(), palette + key + turned, interlace)
    return data if len(data) <= MOST_BYTES else smooth(width, height, depth, colours, interlace)


def smooth(width: int, height: int, depth: int, colours: int, interlace: int = 0) -> bytes:
    """A PNG of zeros under Paeth's filter: a few kilobytes for any size."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colours]
    shapes = passes(width, height, samples * depth) if interlace else [(-(-width * samples * depth // 8), height)]
    squeeze = zlib.compressobj(1)
    rows = b"".join(squeeze.compress(b"\4" + bytes(wide)) for wide, high in shapes for _ in range(high))
    return png(width, height, depth, colours, rows + squeeze.flush(), interlace=interlace)


def passes(width: int, height: int, bits: int) -> list[tuple[int, int]]:
    """The bytes of a row and the rows of each of Adam7's passes."""
    steps = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    sizes = ((-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in steps)
    return [(-(-wide * bits // 8), high) for wide, high in sizes if wide > 0 and high > 0]


def empty_blocks(long_codes: bool) -> bytes:
    """Deflate blocks with a table of codes each, and nothing in them: eight are whole bytes."""
    bits: list[int] = []

    def add(value: int, count: int) -> None:
        bits.extend(value >> at & 1 for at in range(count))

    def code(value: int, count: int) -> None:
        bits.extend(value >> at & 1 for at in reversed(range(count)))

    # lengths of the 257 codes: literals 0 to 8 (or just one) and the end of the block; then one distance
    lengths = [1, 2, 3, 4, 5, 6, 7, 8, 9] + [0] * 247 + [9] if long_codes else [1] + [0] * 255 + [1]
    wanted = [*sorted({*lengths, 1, 18} - {0}), 0]
    size = max(1, (len(wanted) - 1).bit_length())
    spare = 2**size - len(wanted)  # so many codes are one shorter
    codes_, value = {}, 0
    for place, symbol in enumerate(sorted(wanted)[:spare] + sorted(wanted)[spare:]):
        count = size - 1 if place < spare else size
        codes_[symbol] = (value >> (size - count), count)
        value += 1 << (size - count)
    order = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)
    add(0, 1), add(2, 2), add(0, 5), add(0, 5)
    needed = max(place for place, symbol in enumerate(order) if symbol in codes_) + 1
    add(needed - 4, 4)
    for symbol in order[:needed]:
        add(codes_.get(symbol, (0, 0))[1], 3)
    at, all_lengths = 0, [*lengths, 1]
    while at < len(all_lengths):
        run = next((n for n in range(138, 10, -1) if all_lengths[at : at + n] == [0] * n), 0)
        if run:
            code(*codes_[18]), add(run - 11, 7)
        else:
            code(*codes_[all_lengths[at]])
        at += run or 1
    code(*((511, 9) if long_codes else (1, 1)))
    whole = bits * 8
    return bytes(sum(bit << place for place, bit in enumerate(whole[at : at + 8])) for at in range(0, len(whole), 8))


def in_blocks(piece: bytes, colours: int = 0) -> bytes:
    """A PNG whose compressed rows have as many of these blocks in front as fit."""
    rows = deflated(b"\4" + bytes(4 * SIDE), SIDE) if colours else deflated(bytes(1 + SIDE // 8), SIDE)
    return png(SIDE, SIDE, 8 if colours else 1, colours, filled(rows[:2], piece, rows[2:] + bytes(100))[:-100])


def among(piece: bytes, rows: bytes = b"") -> bytes:
    """A small PNG with as many of these chunks as fit."""
    whole = png(8, 8, 8, 0, zlib.compress(bytes(72)))
    return filled(whole[:33], piece, whole[33:])


def pngs() -> dict[str, Callable[[], bytes]]:
    bomb = zlib.compress(bytes(15_000_000), 9)
    many = {
        "empty IDATs": lambda: among(chunk(b"IDAT", b"")),
        "texts": lambda: among(chunk(b"tEXt", b"a\0b")),
        "palettes": lambda: among(chunk(b"PLTE", bytes(768))),
        "transparencies": lambda: among(chunk(b"tRNS", b"\0\1")),
        "EXIF": lambda: among(chunk(b"eXIf", exif(6).tobytes()[6:])),
        "compressed texts": lambda: among(chunk(b"zTXt", b"a\0\0" + bomb)),
        "compressed international texts": lambda: among(chunk(b"iTXt", b"a\0\1\0\0\0" + bomb)),
        "colour profiles": lambda: among(chunk(b"iCCP", b"a\0\0" + bomb)),
        "one large text": lambda: among(chunk(b"tEXt", b"a\0" + bytes(19_000_000))),
        "frames of an animation": lambda: among(chunk(b"fdAT", bytes(4) + bomb)),
        "IDATs of a byte": lambda: split(png(200, 200, 8, 2, zlib.compress(bytes(120_200), 0))),
        "bytes behind the end": lambda: filled(png(8, 8, 8, 0, zlib.compress(bytes(72))), b"\0", b""),
        "bytes behind the rows": lambda: png(8, 8, 8, 0, filled(zlib.compress(bytes(72)), b"\0", bytes(100))[:-100]),
        "more rows than there should be": lambda: png(8, 8, 8, 0, deflated(bytes(1_000_000), 4_000)),
        "empty blocks": lambda: in_blocks(empty_blocks(False)),
        "empty blocks of long codes": lambda: in_blocks(empty_blocks(True)),
        "empty blocks in front of many rows": lambda: in_blocks(empty_blocks(False), colours=6),
        "empty stored blocks": lambda: in_blocks(b"\0\0\0\xff\xff"),
        "too few rows": lambda: png(SIDE, SIDE, 8, 6, deflated(b"\4" + bytes(4 * SIDE), SIDE - 1)),
    }
    pixels = {
        f"{depth} bits, type {colours}{', interlaced' * interlace}": lambda d=depth, c=colours, i=interlace: rough(
            *size_of(d, c), d, c, interlace=i
        )
        for interlace in (0, 1)
        for depth, colours in ((8, 0), (16, 0), (8, 2), (16, 2), (8, 4), (16, 4), (8, 6), (16, 6), (1, 3), (8, 3))
    }
    pixels |= {
        "averages": lambda: rough(SIDE, SIDE, 8, 6, filters=3),
        "wide": lambda: rough(65_500, 381, 8, 6),
        "high": lambda: rough(381, 65_500, 8, 6),
        "wide, interlaced": lambda: rough(65_500, 381, 8, 6, interlace=1),
        "one pixel wide": lambda: rough(1, 65_500, 16, 6),
        "64 bits, too large": lambda: smooth(SIDE, SIDE, 16, 6),
        "1 bit": lambda: smooth(SIDE, SIDE, 1, 0),
        "RGBA of a few kilobytes": lambda: smooth(SIDE, SIDE, 8, 6),
    }
    return {f"PNG: {name}": make for name, make in (many | pixels).items()}


def size_of(depth: int, colours: int) -> tuple[int, int]:
    """The largest size that is let in."""
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colours]
    return (SIDE, min(SIDE, 800_000_000 // bits // SIDE))


def split(data: bytes) -> bytes:
    """The same PNG, its compressed rows in chunks of one byte."""
    start, end = data.index(b"IDAT") + 4, len(data) - 16
    parts = b"".join(chunk(b"IDAT", data[at : at + 1]) for at in range(start, start + 99_000))
    return data[: start - 8] + parts + chunk(b"IDAT", data[start + 99_000 : end]) + data[-12:]


HOSTILE: dict[str, Callable[[], bytes]] = jpegs() | pngs()


# by chance


def by_chance(seed: int) -> bytes:
    """A large picture put together from many pieces of one or a few kinds, of which each may be cut or changed."""
    chance = random.Random(seed)
    return b"".join(_pieces(chance))[:MOST_BYTES]


def _pieces(chance: random.Random) -> Iterator[bytes]:
    is_png = chance.random() < 0.5
    whole = (
        png(64, 64, 8, 6, deflated(b"\4" + bytes(256), 64)) if is_png else small_jpeg(progressive=chance.random() < 0.5)
    )
    at = 33 if is_png else chance.choice([2, whole.rindex(b"\xff\xda"), len(whole) - 2])
    yield whole[:at]
    left = MOST_BYTES - len(whole)
    while left > 0:
        size = chance.choice([0, 1, 7, 100, 4_000, 65_000])
        body = chance.choice([bytes(size), b"\xff" * size, chance.randbytes(size), exif(6).tobytes()])
        if is_png:
            name = chance.choice(
                [b"IDAT", b"tEXt", b"zTXt", b"eXIf", b"PLTE", b"tRNS", b"fdAT", b"prVt", b"IHDR", b"IEND"]
            )
            piece = chunk(name, body)
        else:
            piece = segment(
                bytes([255, chance.choice([0xC0, 0xC2, 0xC4, 0xDB, 0xDD, 0xDA, 0xE1, 0xE2, 0xEE, 0xFE, 0xD0])]), body
            )
        if chance.random() < 0.2:
            piece = piece[: chance.randrange(len(piece) + 1)]
        piece *= min(left // max(1, len(piece)) + 1, chance.choice([1, 10, 10_000, 10_000_000]))
        piece = piece[:left]
        left -= max(1, len(piece))
        yield piece
    yield whole[at:]


if __name__ == "__main__":
    main()
