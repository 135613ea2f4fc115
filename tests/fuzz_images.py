"""Damaged pictures by the hundred thousand for `labsupport.images.decode`: `python tests/fuzz_images.py --seconds 600`.

A coverage-guided fuzz (atheris, which is libFuzzer). It starts from small pictures of every kind that decode knows and from
traps, changes them, and keeps for further changes what reached code that nothing had reached before. `judge` holds decode
to its promises. The first picture that breaks one ends the run: it stays in the folder `found`, the exit code is not 0, and
`python tests/fuzz_images.py that_file` judges it again. Its pictures are small; large ones are made in `hostile_images`.
"""

import argparse
import io
import os
import random
import re
import resource
import struct
import sys
import tempfile
import time
import zlib
from pathlib import Path

PICTURES = Path(__file__).resolve().parent.parent / "images"
LONGEST = 16_384  # bytes of an input; most of those it starts from have 100 to 1,500
# the program itself takes 130 MB, and the answer, a JPEG, up to 75 MB beside the picture; `hostile_images` is stricter
MOST_MEMORY = 500_000_000
MOST_ADDRESSES = 8_000_000_000  # asked for but never touched is no memory yet: beyond this, asking is a MemoryError
MOST_SECONDS = 4  # of work for one picture, with counting; `hostile_images` is stricter
PNG_START, JPEG_START = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"

console = -1  # a file that stands in for the terminal


def main(words: list[str] | None = None) -> None:
    """Fuzz for so long, or judge the files that are named. Ends the process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="judge these, and nothing else")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--runs", type=int, default=-1, help="pictures after which to end (else when the time is over)")
    parser.add_argument("--timeout", type=int, default=20, help="seconds after which a picture hangs")
    parser.add_argument("--folder", type=Path, help="where seeds, corpus and found are kept (else in a new one)")
    options = parser.parse_args(words)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="fuzz_images_"))
    for name in ("seeds", "corpus", "found"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    atheris, _ = instrumented()
    for name, data in seeds().items():
        (folder / "seeds" / name).write_bytes(data)
    print(f"seeds, corpus and what is found: {folder}", flush=True)
    flags = [
        f"-max_total_time={options.seconds}",
        f"-runs={options.runs}",
        f"-timeout={options.timeout}",
        f"-max_len={LONGEST}",
        f"-artifact_prefix={folder / 'found'}/",
        "-rss_limit_mb=0",  # `judge` weighs; libFuzzer counts in what the process that started this one once held
        "-close_fd_mask=2",  # libFuzzer keeps the terminal for itself; what else is written there, `judge` reads
        "-print_final_stats=1",
        "-entropic_scale_per_exec_time=1",  # a picture of 25 megapixels is changed less often than a thousand small ones
        "-seed=1",
    ]
    resource.setrlimit(resource.RLIMIT_AS, (MOST_ADDRESSES, MOST_ADDRESSES))
    inputs = options.files or [f"{folder}/corpus", f"{folder}/seeds"]
    atheris.Setup([sys.argv[0], *flags, *inputs], judge, custom_mutator=mutate)
    atheris.Fuzz()


def instrumented():
    """atheris and labsupport.images, imported so that the places an input reaches in it are counted."""
    import atheris

    with atheris.instrument_imports(include=["labsupport"]):
        from labsupport import images
    return atheris, images


# what decode promises


def judge(data: bytes) -> None:
    """A picture or one of two refusals, without a word on the terminal, and never more memory than it should need."""
    from labsupport import images

    watch_the_console()
    picture, before = None, time.thread_time()
    try:
        picture = images.decode(data)
    except (images.UnsupportedImage, images.ImageTooLarge) as error:
        assert not isinstance(error.__cause__, MemoryError), "asked for more memory than there is"
    spent = time.thread_time() - before
    assert spent < MOST_SECONDS, f"{spent:.1f} seconds of work"
    written = os.pread(console, 1_000, 0)
    assert not written, f"written to the terminal: {written}"
    if picture is not None:
        height, width, channels = picture.shape
        assert (picture.dtype, channels) == ("uint8", 3), f"{channels} channels of {picture.dtype}"
        assert 0 < height * width <= images.MAX_PIXELS, f"{width} x {height} pixels"
        images.encode(picture)  # as the server answers
    peak = most_memory()
    assert peak < MOST_MEMORY, f"{peak:,} bytes of memory"


def watch_the_console() -> None:
    """Warnings of Python's and of C libraries alike go to file 2."""
    global console
    if console < 0:
        console = os.memfd_create("console")
        os.dup2(console, 2)


def most_memory() -> int:
    """The most bytes that the process ever held: it stays below the limit until the first picture that breaks it."""
    return 1_000 * int(re.search(rb"VmHWM:\s+(\d+)", Path("/proc/self/status").read_bytes())[1])


# how pictures are changed


def mutate(data: bytes, most: int, seed: int) -> bytes:
    """Change one part of a PNG or JPEG, and make its length and checksum right: else nothing gets past those checks.

    One time in four any bytes at all are changed, and what is wrong then stays wrong.
    """
    import atheris

    chance = random.Random(seed)
    start, parts, end = taken_apart(data)
    if not parts or chance.random() < 0.25:
        return atheris.Mutate(data, most)
    at, other = chance.randrange(len(parts)), chance.randrange(len(parts))
    name, body = parts[at]
    match chance.choice(["change", "change", "change", "change inside", "name", "twice", "drop", "swap", "end"]):
        case "change":
            parts[at] = name, atheris.Mutate(body, LONGEST)
        case "change inside":
            parts[at] = name, changed_inside(body, atheris.Mutate)
        case "name":
            parts[at] = parts[other][0], body
        case "twice":
            parts.insert(other, parts[at])
        case "drop":
            del parts[at]
        case "swap":
            parts[at], parts[other] = parts[other], parts[at]
        case "end":
            end = atheris.Mutate(end, LONGEST)
    return (start + b"".join(chunk(*part) if start == PNG_START else segment(*part) for part in parts) + end)[:most]


def changed_inside(body: bytes, change) -> bytes:
    """What zlib compressed within a chunk: pixels from its first byte on, a profile or text behind a name."""
    for at in (0, body.find(b"\0") + 2):
        try:
            return body[:at] + zlib.compress(change(zlib.decompress(body[at:])[:LONGEST], LONGEST))
        except zlib.error:
            continue
    return change(body, LONGEST)


def taken_apart(data: bytes) -> tuple[bytes, list[tuple[bytes, bytes]], bytes]:
    """How it starts, each part's name and content, and whatever is behind them: a JPEG's pixels, or what is broken."""
    start = next((start for start in (PNG_START, JPEG_START) if data.startswith(start)), b"")
    at, parts = len(start), []
    while start and at + 8 <= len(data) and not data.startswith(b"\xff\xda", at):
        if start == PNG_START:
            length, name, skipped, checksum = *struct.unpack_from(">I4s", data, at), 8, 4
        else:
            name, length, skipped, checksum = *struct.unpack_from(">2sH", data, at), 4, 0
            length -= 2
        if length < 0 or at + skipped + length + checksum > len(data):
            break
        parts.append((name, data[at + skipped : at + skipped + length]))
        at += skipped + length + checksum
    return start, parts, data[at:]


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def segment(name: bytes, body: bytes) -> bytes:
    return name + struct.pack(">H", min(len(body) + 2, 65_535)) + body


# what it starts from


def seeds() -> dict[str, bytes]:
    """Small pictures of every kind, traps, and both of them damaged."""
    whole = {**jpegs(), **pngs()}
    damaged = {}
    for number, (name, data) in enumerate(whole.items()):
        damaged[f"cut_{name}"] = data[: len(data) * (1 + number % 9) // 10]
        damaged[f"flipped_{name}"] = flipped(data, len(data) * (1 + number % 7) // 8)
    return {**whole, **damaged, **traps()}


def small(name: str, width: int = 24, height: int = 17):
    from PIL import Image

    with Image.open(PICTURES / name) as picture:
        return picture.convert("RGB").resize((width, height))


def saved(picture, kind: str, **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def jpegs() -> dict[str, bytes]:
    picture, other = small("person_dog.jpg"), small("fruits.jpg", 16, 16)
    found = {f"{mode}.jpg": saved(picture.convert(mode), "jpeg") for mode in ("L", "RGB", "CMYK")}
    found |= {
        f"progressive_{mode}.jpg": saved(picture.convert(mode), "jpeg", progressive=True) for mode in ("L", "RGB")
    }
    found |= {f"subsampling_{at}.jpg": saved(picture, "jpeg", subsampling=at, quality=30) for at in (0, 1)}
    found |= {f"turned_{at}.jpg": saved(picture, "jpeg", exif=exif(at), quality=30) for at in range(9)}
    found["restarts.jpg"] = saved(picture, "jpeg", restart_marker_blocks=1)
    found["comment.jpg"] = saved(picture, "jpeg", comment=b"a comment", dpi=(72, 72), icc_profile=bytes(130))
    found["xmp.jpg"] = saved(picture, "jpeg", xmp=b'<x tiff:Orientation="6"/>')
    found["two.jpg"] = saved(picture, "MPO", save_all=True, append_images=[other], quality=30)
    found["one_pixel.jpg"] = saved(picture.resize((1, 1)), "jpeg")
    photoshop = b"Photoshop 3.0\0" + b"8BIM\x03\xed\0\0" + struct.pack(">IIHIIH", 16, 72, 1, 1, 72, 1) + bytes(2)
    for name, extra in {
        "photoshop": segment(b"\xff\xed", photoshop),
        "flashpix": segment(b"\xff\xe2", b"FPXR\0" + bytes(10)),
        "adobe": segment(b"\xff\xee", b"Adobe\0\x64" + bytes(5)),
        "thumbnail": segment(b"\xff\xe1", b"Exif\0\0" + with_thumbnail(saved(other, "jpeg", quality=10))),
        "exif_of_nonsense": segment(b"\xff\xe1", b"Exif\0\0II*\0" + struct.pack("<IHHHII", 8, 99, 0x112, 5, 9, 9_999)),
    }.items():
        found[f"{name}.jpg"] = JPEG_START + extra + found["RGB.jpg"][2:]
    return found


def exif(orientation: int):
    """With where and when it was taken, and fractions: every way that a value is stored in."""
    from PIL import Image

    made = Image.Exif()
    made[0x0112], made[0x010F], made[0x011A], made[0x0128] = orientation, "a camera", 72.5, 3
    made.get_ifd(0x8769).update({0x9003: "2024:02:29 12:00:00", 0x829A: 0.01, 0x927C: b"FUJIFILM" + bytes(20)})
    made.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.5), 3: "E", 4: (13.0, 24.0, 17.5)})
    return made


def with_thumbnail(picture: bytes) -> bytes:
    """A second directory behind the first that says where a smaller picture is, as cameras write it."""
    first = struct.pack("<HHHII", 1, 0x0112, 3, 1, 6) + struct.pack("<I", 26)
    second = struct.pack("<HHHIIHHIII", 2, 0x0201, 4, 1, 56, 0x0202, 4, 1, len(picture), 0)
    return b"II*\0" + struct.pack("<I", 8) + first + second + picture


def pngs() -> dict[str, bytes]:
    from PIL import PngImagePlugin

    picture, other = small("cat.png"), small("clock.png")
    found = {
        f"{mode}.png": saved(picture.convert(mode), "png") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
    }
    found["turned.png"] = saved(picture, "png", exif=exif(6))
    found["palette_transparent.png"] = saved(picture.quantize(8), "png", transparency=3)
    found["palette_alphas.png"] = saved(picture.quantize(8), "png", transparency=bytes(range(0, 240, 30)))
    found["gray_transparent.png"] = saved(picture.convert("L"), "png", transparency=7)
    found["rgb_transparent.png"] = saved(picture, "png", transparency=(1, 2, 3))
    found["animated.png"] = saved(picture, "png", save_all=True, append_images=[other], duration=100, loop=0)
    found["animated_apart.png"] = saved(picture, "png", save_all=True, append_images=[other], default_image=True)
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Title", "a cat")
    texts.add_text("Comment", "a cat " * 20, zip=True)
    texts.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="8"/>', "en", "xmp", zip=True)
    texts.add_text("Raw profile type exif", "\nexif\n 8\n" + b"Exif\0\0MM\0*\0\0\0\x08".hex())
    for name, body in {b"gAMA": bytes(4), b"cHRM": bytes(32), b"prVt": b"private"}.items():
        texts.add(name, body)
    found["texts.png"] = saved(picture, "png", pnginfo=texts, dpi=(72, 72), icc_profile=bytes(200))
    found["srgb.png"] = png(8, 8, 8, 0, zlib.compress(bytes(72)), chunk(b"sRGB", bytes(1)))
    for depth, colours in ((1, 0), (2, 0), (4, 0), (16, 0), (16, 2), (4, 3), (16, 4), (16, 6)):
        found[f"interlaced_{depth}_{colours}.png"] = interlaced(depth, colours)
    return found


def interlaced(depth: int, colours: int) -> bytes:
    """4 x 4 pixels in Adam7's passes, which Pillow reads and does not write."""
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colours]
    passes = ((1, 1), (1, 1), (2, 1), (2, 2), (4, 2))  # of so many pixels and rows; two of the seven have none
    rows = b"".join((b"\0" + b"\x5a" * -(-wide * bits // 8)) * high for wide, high in passes)
    palette = chunk(b"PLTE", bytes(range(48))) if colours == 3 else b""
    return png(4, 4, depth, colours, zlib.compress(rows), before=palette, interlace=1)


def png(
    width: int, height: int, depth: int, colours: int, pixels: bytes, before: bytes = b"", interlace: int = 0
) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, interlace))
    return PNG_START + header + before + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def traps() -> dict[str, bytes]:
    """Small files that claim, or become, a great deal."""
    from PIL import Image

    picture = saved(small("cat.png", 8, 8), "jpeg", quality=10)
    scans = saved(Image.new("L", (8, 8)), "jpeg", progressive=True)
    last = scans[scans.rindex(b"\xff\xda") : -2]
    black = zlib.compress(bytes(5_000 * 626), 9)  # rows of 5,000 bits
    found = {f"bomb_{side}.png": png(side, side, 1, 0, black) for side in (5_001, 30_000, 2**31 - 1)}
    found |= {f"bomb_{side}.jpg": resized(picture, side) for side in (5_001, 65_500)}
    palette = chunk(b"PLTE", bytes(6)) + chunk(b"tRNS", bytes(2)) + chunk(b"eXIf", exif(6).tobytes()[6:])
    found["hungriest_5000.png"] = png(5_000, 5_000, 1, 3, black, palette)
    cmyk = saved(Image.new("CMYK", (8, 8)), "jpeg", progressive=True, subsampling=0, exif=exif(6))
    found["hungriest_5000.jpg"] = resized(cmyk, 5_000)
    found["many_scans.jpg"] = resized(scans[:-2] + last * 1_400 + scans[-2:], 5_000)
    for name, start in ((b"iTXt", b"a\0\1\0\0\0"), (b"zTXt", b"a\0\0"), (b"iCCP", b"a\0\0")):
        for size in (1_000_000, 2_000_000):
            body = start + zlib.compress(bytes(size), 9)
            found[f"bomb_{name.decode()}_{size}.png"] = png(8, 8, 8, 0, zlib.compress(bytes(72)), chunk(name, body))
    found["wrong_checksum.png"] = flipped(png(8, 8, 8, 0, zlib.compress(bytes(72))), 29)
    return found


def resized(data: bytes, side: int) -> bytes:
    """The same JPEG, which claims to be larger."""
    at = re.search(rb"\xff[\xc0\xc2]\0.\x08", data, re.DOTALL).end()
    return data[:at] + struct.pack(">HH", side, side) + data[at + 4 :]


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


if __name__ == "__main__":
    main()
