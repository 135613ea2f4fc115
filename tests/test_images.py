"""Whatever a client sends, what comes out is an upright BGR picture or a refusal that says why, and cheaply."""

import io
import os
import re
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from fuzz_images import segment
from hostile_images import flat, in_scans
from labsupport import images
from labsupport.images import ImageTooLarge, UnsupportedImage, codec, jpeg, png

RED, GREEN, BLUE, WHITE = (0, 0, 255), (0, 255, 0), (255, 0, 0), (255, 255, 255)  # BGR


def corners() -> np.ndarray:
    """Four fields: red and green above, blue and white below. Not square, or a turn would not show."""
    picture = np.empty((48, 80, 3), np.uint8)
    picture[:24, :40], picture[:24, 40:], picture[24:, :40], picture[24:, 40:] = RED, GREEN, BLUE, WHITE
    return picture


def noise(*shape: int, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def pillow(picture: np.ndarray, kind: str, mode: str = "RGB", **options) -> bytes:
    """A picture (BGR) as Pillow writes it: not the encoder under test, and it knows modes that OpenCV does not."""
    out = io.BytesIO()
    Image.fromarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)).convert(mode).save(out, kind, **options)
    return out.getvalue()


def opencv(picture: np.ndarray, kind: str) -> bytes:
    return cv2.imencode(f".{kind}", picture)[1].tobytes()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def black_png(width: int, height: int) -> bytes:
    """A PNG of one bit for each pixel, all there: some kilobytes that become gigabytes when they are decoded."""
    squeeze = zlib.compressobj(9)
    row = bytes(1 + -(-width // 8))
    rows = b"".join(squeeze.compress(row) for _ in range(height)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def assert_close(picture: np.ndarray, expected: np.ndarray, tolerance: int) -> None:
    assert picture.dtype == np.uint8
    assert picture.shape == expected.shape
    assert cv2.absdiff(picture, expected).max() <= tolerance


# what comes in


@pytest.mark.parametrize("kind", ["jpeg", "png"])
@pytest.mark.parametrize(
    "picture", [noise(97, 131, 3), cv2.GaussianBlur(noise(300, 200, 3), (0, 0), 5), noise(1, 1, 3)]
)
def test_ordinary_pictures_decode_as_in_opencv(picture, kind):
    for data in (opencv(picture, kind), pillow(picture, kind)):
        np.testing.assert_array_equal(
            images.decode(data), cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        )


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"quality": 20}])
def test_every_flavour_of_jpeg_decodes_as_in_opencv(options):
    data = pillow(noise(60, 90, 3), "jpeg", **options)
    np.testing.assert_array_equal(images.decode(data), cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_grayscale_becomes_three_equal_channels(kind):
    gray = np.full((20, 30), 77, np.uint8)
    gray[:, 15:] = 200
    assert_close(images.decode(opencv(gray, kind)), np.dstack([gray] * 3), 1 if kind == "jpeg" else 0)


def test_transparent_becomes_white_and_half_transparent_half_white():
    rgba = np.zeros((3, 4, 4), np.uint8)
    rgba[..., 3] = [[0], [128], [255]]
    expected = np.zeros((3, 4, 3), np.uint8)
    expected[:] = [[[255]], [[127]], [[0]]]
    assert_close(images.decode(opencv(rgba, "png")), expected, 1)


def test_gray_with_alpha_becomes_white_where_transparent():
    out = io.BytesIO()
    Image.fromarray(np.uint8([[[50, 255], [50, 0]]])).save(out, "png")  # gray, alpha
    assert_close(images.decode(out.getvalue()), np.uint8([[[50] * 3, WHITE]]), 0)


def test_a_palette_keeps_its_colours_and_its_transparent_colour_becomes_white():
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    for transparency, expected in ((None, [RED, BLUE]), (0, [WHITE, BLUE]), (b"\xff\x00", [RED, WHITE])):
        out = io.BytesIO()
        picture.save(out, "png", transparency=transparency)
        assert_close(images.decode(out.getvalue()), np.uint8([expected]), 0)


@pytest.mark.parametrize("shape", [(40, 50), (40, 50, 3)])
def test_sixteen_bits_become_eight(shape):
    deep = noise(*shape, dtype=np.uint16)
    expected = np.round(deep / 257).astype(np.uint8).reshape(40, 50, -1) * np.ones(3, np.uint8)
    assert_close(images.decode(opencv(deep, "png")), expected, 1)


def test_one_bit_becomes_black_and_white():
    bits = noise(13, 17) > 127
    data = pillow(np.dstack([bits * np.uint8(255)] * 3), "png", "1")
    assert_close(images.decode(data), np.dstack([bits * np.uint8(255)] * 3), 0)


def test_cmyk_has_the_colours_it_was_made_of():
    assert_close(images.decode(pillow(corners(), "jpeg", "CMYK", quality=95, subsampling=0)), corners(), 8)


# the corner that an upright picture shows top left is stored elsewhere: EXIF 2.32, tag 0x0112
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),  # taken with the camera turned: shown, it is turned a quarter clockwise
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("kind", ["jpeg", "png"])
@pytest.mark.parametrize("orientation", STORED)
def test_pictures_are_turned_upright(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](corners()))
    data = pillow(stored, kind, exif=exif, **({"quality": 95, "subsampling": 0} if kind == "jpeg" else {}))
    assert_close(images.decode(data), corners(), 8)


def test_of_several_pictures_in_a_file_the_first_counts():
    first, second = (Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (200, 10))
    for kind in ("MPO", "PNG"):
        out = io.BytesIO()
        first.save(out, kind, save_all=True, append_images=[second])
        assert_close(images.decode(out.getvalue()), np.full((8, 8, 3), 200, np.uint8), 1)


def exif_of_nonsense() -> bytes:
    """An orientation that holds, beside entries that point nowhere or are of another type than they should be."""
    entries = [(0x0112, 3, 1, 3), (0x010F, 5, 1, 8), (0x011A, 2, 4, 0x41414141), (0x8769, 4, 9, 9_999)]
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + body + bytes(4)


@pytest.mark.filterwarnings("ignore::UserWarning")  # as it is outside the tests
@pytest.mark.parametrize(
    "exif", [exif_of_nonsense(), b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"]
)
@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_nonsense_in_the_exif_does_not_cost_the_picture(kind, exif):
    assert images.decode(pillow(corners(), kind, exif=exif)).shape == corners().shape


# what is refused


def cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def flipped(data: bytes, where: int) -> bytes:
    return data[:where] + bytes([data[where] ^ 1]) + data[where + 1 :]


PNG = pillow(noise(60, 60, 3), "png", compress_level=0)  # its pixels stand in the file as they are
PIXELS, END = PNG.index(b"IDAT") + 4, PNG.index(b"IEND") - 4


def box(brand: bytes, others: bytes = b"") -> bytes:
    """The start of a file in the ISO base media file format."""
    return struct.pack(">I4s4sI", 16 + len(others), b"ftyp", brand, 0) + others + bytes(50)


NOT_PICTURES = {
    "text": b"certainly not a picture",
    "text, with letters of another kind that are cut": "größer ".encode() * 100,
    "an HTML page": b"\n<!DOCTYPE html><html></html>",
    "an SVG drawing": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "a picture in base64": b"data:image/png;base64,iVBORw0KGgo=",
    "a GIF picture": pillow(corners(), "gif"),
    "a WebP picture": pillow(corners(), "webp"),
    "a BMP picture": pillow(corners(), "bmp"),
    "a TIFF or raw picture": pillow(corners(), "tiff"),
    "a HEIC picture": box(b"heic"),
    "an AVIF picture": box(b"mif1", b"avifmiaf"),
    "a JPEG 2000 picture": b"\xff\x4f\xff\x51" + bytes(50),
    "a JPEG XL picture": b"\xff\x0a" + bytes(50),
    "an icon": b"\0\0\1\0\1\0" + bytes(50),
    "a Photoshop document": b"8BPS\0\1" + bytes(50),
    "a PDF document": b"%PDF-1.7\n",
    "a ZIP archive": b"PK\3\4" + bytes(50),
    "an MP4 or QuickTime video": box(b"isom"),
    "an AVI video": b"RIFF\0\0\0\0AVI LIST",
    "a Matroska or WebM video": b"\x1a\x45\xdf\xa3" + bytes(50),
}


def jpeg_of_kind(marker: int, precision: int = 8, colours: int = 1) -> bytes:
    """The start of a JPEG of a kind that Pillow does not write."""
    parts = b"".join(bytes([number, 0x11, 0]) for number in range(1, colours + 1))
    frame = segment(bytes([0xFF, marker]), struct.pack(">BHHB", precision, 48, 80, colours) + parts)
    return (
        b"\xff\xd8" + segment(b"\xff\xdb", bytes([0] + [1] * 64)) + frame + segment(b"\xff\xda", bytes(6)) + b"\xff\xd9"
    )


UNREAD = {
    "a 12-bit JPEG is not read": jpeg_of_kind(0xC1, precision=12),
    "a lossless JPEG is not read": jpeg_of_kind(0xC3, precision=16),
    "a hierarchical JPEG is not read": jpeg_of_kind(0xC5),
    "an arithmetic-coded JPEG is not read": jpeg_of_kind(0xC9),
    "a JPEG-LS picture is not read": jpeg_of_kind(0xF7),
    "a JPEG of 2 colour channels is not read": jpeg_of_kind(0xC0, colours=2),
    "a JPEG with unusual colour sampling is not read": flat(80, 48, [(1, 2), (1, 1), (2, 1)]),
    "a PNG with 'CgBI' data is not read": PNG[:8] + chunk(b"CgBI", bytes(4)) + PNG[8:],
}
DAMAGED = {
    "half a JPEG": cut(pillow(noise(60, 60, 3), "jpeg"), 0.5),
    "most of a JPEG": cut(pillow(noise(60, 60, 3), "jpeg"), 0.98),
    "half a progressive JPEG": cut(pillow(noise(60, 60, 3), "jpeg", progressive=True), 0.5),
    "half a PNG": cut(PNG, 0.5),
    "most of a PNG": cut(PNG, 0.98),
    "a PNG with one wrong pixel": flipped(PNG, PIXELS + 500),
    "a PNG with a wrong checksum behind its pixels": flipped(PNG, END - 5),
    "a PNG whose pixels are not compressed as they should be": flipped(PNG, PIXELS),
    "only the start of a JPEG's name": b"\xff\xd8\xff",
    "only a PNG's name": b"\x89PNG\r\n\x1a\n",
    "a PNG that was sent as text": PNG.replace(b"\r\n", b"\n"),
    "a JPEG without a height": jpeg_of_kind(0xC0).replace(struct.pack(">HH", 48, 80), struct.pack(">HH", 0, 80)),
}


@pytest.mark.parametrize("what", NOT_PICTURES)
def test_what_is_no_jpeg_or_png_is_refused_by_its_name(what):
    start = re.escape(what.split(",")[0])
    with pytest.raises(UnsupportedImage, match=f"^not a JPEG or PNG picture but {start}.*: send one of these$"):
        images.decode(NOT_PICTURES[what])


@pytest.mark.parametrize("data", [bytes(100), b"\x7fELF\2\1\1", "überall".encode("latin-1")])
def test_what_nobody_knows_is_refused_without_a_guess(data):
    with pytest.raises(UnsupportedImage, match=r"^not a JPEG or PNG picture: send one of these$"):
        images.decode(data)


def test_an_empty_file_is_called_empty():
    with pytest.raises(UnsupportedImage, match="the file is empty: send a JPEG or PNG picture"):
        images.decode(b"")


@pytest.mark.parametrize("why", UNREAD)
def test_a_jpeg_or_png_of_a_kind_that_is_not_read_is_refused_by_its_name(why):
    with pytest.raises(UnsupportedImage, match=rf"^{re.escape(why)}: save it (again|as)\b.*(JPEG|PNG)"):
        images.decode(UNREAD[why])


@pytest.mark.parametrize("data", [None, "photo.jpg", 5, [1], np.zeros(9, np.uint8)])
def test_what_is_not_bytes_is_an_error_of_the_caller(data):
    for function in (images.decode, images.measure):
        with pytest.raises(ValueError, match=r"data=.*give the bytes of a JPEG or PNG file"):
            function(data)


def test_bytes_may_come_in_any_container():
    data = pillow(corners(), "png")
    for kind in (bytes, bytearray, memoryview):
        np.testing.assert_array_equal(images.decode(kind(data)), corners())


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_pictures_are_refused(what):
    with pytest.raises(UnsupportedImage, match="damaged or cut off"):
        images.decode(DAMAGED[what])


@pytest.mark.parametrize("where", ["name of the header", "width", "name of the pixels"])
def test_a_png_that_is_damaged_before_its_pixels_is_refused(where):
    offset = {
        "name of the header": PNG.index(b"IHDR"),
        "width": PNG.index(b"IHDR") + 4,
        "name of the pixels": PIXELS - 4,
    }
    with pytest.raises(UnsupportedImage):
        images.decode(flipped(PNG, offset[where]))


@pytest.mark.parametrize("orientation", [None, 6])
def test_a_damaged_png_is_refused_whether_or_not_it_has_exif(orientation):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    with pytest.raises(UnsupportedImage, match="damaged"):
        images.decode(cut(pillow(noise(60, 60, 3), "png", exif=exif), 0.5))


def test_a_palette_picture_without_its_palette_is_refused():
    data = pillow(corners(), "png", "P")
    start = data.index(b"PLTE") - 4
    length = struct.unpack(">I", data[start : start + 4])[0] + 12
    with pytest.raises(UnsupportedImage, match="damaged"):
        images.decode(data[:start] + data[start + length :])


# limits


def test_more_bytes_than_allowed_are_refused_and_the_limit_itself_is_not(monkeypatch):
    data = pillow(corners(), "png")
    monkeypatch.setattr(codec, "MAX_BYTES", len(data))
    assert images.decode(data).shape == (48, 80, 3)
    with pytest.raises(ImageTooLarge, match=f"{len(data) + 1:,} bytes: send at most {len(data):,}"):
        images.decode(data + b"\0")


def test_more_pixels_than_allowed_are_refused_and_the_limit_itself_is_not(monkeypatch):
    monkeypatch.setattr(codec, "MAX_PIXELS", 48 * 80)
    assert images.decode(pillow(corners(), "png")).shape == (48, 80, 3)
    with pytest.raises(ImageTooLarge, match="80 x 49 pixels: send at most 3,840 pixels"):
        images.decode(pillow(np.zeros((49, 80, 3), np.uint8), "jpeg"))


@pytest.mark.parametrize("shape", [(65_500, 1), (1, 65_500)])
def test_more_pixels_either_way_than_a_jpeg_can_have_are_refused_and_the_limit_itself_comes_out_as_one(shape):
    picture = images.decode(opencv(noise(*shape), "png"))
    assert picture.shape == (*shape, 3)
    assert images.decode(images.encode(picture)).shape == (*shape, 3)
    longer = noise(*(side + (side > 1) for side in shape))
    with pytest.raises(ImageTooLarge, match=r"65,501.* pixels: send at most 65,500 either way"):
        images.decode(opencv(longer, "png"))


def test_the_largest_picture_that_is_let_in_decodes():
    assert images.MAX_PIXELS == 25_000_000
    assert images.decode(black_png(5_000, 5_000)).shape == (5_000, 5_000, 3)


# 30 megapixels are no business of Pillow's, 100 worth a warning to it, 900 an error
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process's memory is read from /proc")
@pytest.mark.parametrize("width", [5_500, 10_000, 30_000])
def test_a_bomb_is_refused_before_it_goes_off(width, tmp_path):
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(black_png(width, width))
    assert bomb.stat().st_size < 150_000
    program = """if True:
        import re, sys
        from pathlib import Path
        from labsupport import images

        def peak():
            return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

        data = Path(sys.argv[1]).read_bytes()
        before = peak()
        try:
            images.decode(data)
        except images.ImageTooLarge as error:
            print(peak() - before, error)
    """
    done = subprocess.run([sys.executable, "-c", program, bomb], capture_output=True, text=True, check=True)
    grown, message = done.stdout.split(maxsplit=1)
    assert "send at most 25,000,000 pixels" in message
    assert int(grown) < 4_000  # kB; the pixels alone would be 30,000 and more
    assert done.stderr == ""  # no warning reaches the server's terminal


def test_a_jpeg_that_goes_over_its_pixels_too_often_is_refused_and_the_limit_itself_is_not():
    assert (
        in_scans(1, 16, 16, 7, 12).count(b"\xff\xda") > 100 > (close := in_scans(1, 16, 16, 6, 13)).count(b"\xff\xda")
    )
    assert images.decode(close).shape == (16, 16, 3)
    with pytest.raises(UnsupportedImage, match="a JPEG in more than 100 scans: save it again in at most 100"):
        images.decode(in_scans(1, 16, 16, 7, 12))


def test_scans_times_pixels_are_limited_and_the_limit_itself_is_let_in(monkeypatch):
    data = in_scans(3, 80, 48, 1, 13)  # 84 times a colour
    monkeypatch.setattr(jpeg, "MAX_WORK", 84 * 80 * 48)
    assert images.decode(data).shape == (48, 80, 3)
    monkeypatch.setattr(jpeg, "MAX_WORK", 84 * 80 * 48 - 1)
    with pytest.raises(UnsupportedImage, match="a JPEG of 80 x 48 pixels in too many scans: save it again in fewer"):
        images.decode(data)


def test_segments_and_chunks_are_limited_and_the_limit_itself_is_let_in(monkeypatch):
    monkeypatch.setattr(jpeg, "MAX_SEGMENTS", 100)
    monkeypatch.setattr(png, "MAX_CHUNKS", 100)
    data = pillow(corners(), "jpeg")
    needed = len(re.findall(rb"\xff[\xc0\xc4\xda\xdb\xe0]", data))
    comments = segment(b"\xff\xfe", b"")
    assert images.decode(data[:2] + (100 - needed) * comments + data[2:]).shape == (48, 80, 3)
    with pytest.raises(UnsupportedImage, match="a JPEG in more than 100 segments: save it again"):
        images.decode(data[:2] + (101 - needed) * comments + data[2:])
    data, text = pillow(corners(), "png"), chunk(b"tEXt", b"a\0b")
    assert images.decode(data[:33] + 97 * text + data[33:]).shape == (48, 80, 3)
    with pytest.raises(UnsupportedImage, match="a PNG in more than 100 chunks: save it again"):
        images.decode(data[:33] + 98 * text + data[33:])


def test_kinds_that_take_more_for_a_pixel_may_have_fewer_pixels(monkeypatch):
    monkeypatch.setattr(jpeg, "MAX_MEMORY", 12 * 48 * 80)
    monkeypatch.setattr(png, "MAX_ROWS", 8 * 48 * 80)
    cmyk, deep = pillow(corners(), "jpeg", "CMYK", progressive=True), rgba16(corners())
    assert images.decode(cmyk).shape == images.decode(deep).shape == (48, 80, 3)
    monkeypatch.setattr(jpeg, "MAX_MEMORY", 12 * 48 * 80 - 12)
    monkeypatch.setattr(png, "MAX_ROWS", 8 * 48 * 80 - 8)
    with pytest.raises(
        ImageTooLarge, match="80 x 48 pixels of 4 colours in several scans: send at most 3,839 of these"
    ):
        images.decode(cmyk)
    with pytest.raises(ImageTooLarge, match="80 x 48 pixels of 64 bits: send at most 3,839 of these"):
        images.decode(deep)
    assert images.decode(pillow(corners(), "jpeg", progressive=True)).shape == (48, 80, 3)


def rgba16(picture: np.ndarray) -> bytes:
    deep = np.dstack([picture[..., ::-1], np.full(picture.shape[:2], 255, np.uint8)]).astype(">u2") * 257
    rows = np.hstack([np.zeros((len(deep), 1), np.uint8), deep.reshape(len(deep), -1).view(np.uint8)])
    return png_of(rows.tobytes(), *picture.shape[1::-1], 16, 6)


def png_of(
    rows: bytes, width: int, height: int, depth: int, colours: int, before: bytes = b"", interlace: int = 0
) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, interlace))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_what_looks_like_the_start_of_a_scan_is_none_in_a_png():
    data = pillow(corners(), "png")
    end = data.index(b"IEND") - 4
    data = data[:end] + chunk(b"prVt", 1_000 * b"\xff\xda\0") + data[end:]
    np.testing.assert_array_equal(images.decode(data), corners())


# libjpeg has its own word on each of these
DAMAGED_AND_READ = {
    "odd EXIF": pillow(corners(), "jpeg", exif=exif_of_nonsense()),
    "a PNG with a broken colour profile": PNG[:33] + chunk(b"iCCP", b"a\0\0nonsense") + PNG[33:],
    "a JPEG with bytes behind its pixels": pillow(corners(), "jpeg")[:-2] + bytes(20) + b"\xff\xd9",
}


@pytest.mark.parametrize("what", DAMAGED_AND_READ)
def test_what_is_damaged_and_can_be_read_prints_nothing(what, tmp_path):
    picture = tmp_path / "damaged"
    picture.write_bytes(DAMAGED_AND_READ[what])
    program = "import sys; from labsupport import images; images.decode(open(sys.argv[1], 'rb').read())"
    done = subprocess.run([sys.executable, "-c", program, picture], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


# the size alone, and files


@pytest.mark.parametrize("kind", ["jpeg", "png"])
@pytest.mark.parametrize("orientation", STORED)
def test_measuring_gives_the_size_of_what_decoding_gives(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = pillow(corners(), kind, exif=exif)
    assert images.measure(data) == images.decode(data).shape[1::-1]


def test_measuring_needs_no_pixels_and_refuses_what_decoding_refuses(monkeypatch):
    data = pillow(corners(), "jpeg")
    for module in (jpeg, png):
        monkeypatch.setattr(module, "pixels", lambda *args: pytest.fail("the pixels were decoded"))
    assert images.measure(data) == images.measure(data[:-20]) == (80, 48)
    for refused in (*NOT_PICTURES.values(), b"", *(UNREAD[why] for why in UNREAD if "sampling" not in why)):
        with pytest.raises(UnsupportedImage):
            images.measure(refused)
    for large in (black_png(5_001, 5_000), black_png(65_501, 1)):
        with pytest.raises(ImageTooLarge):
            images.measure(large)


def test_a_file_is_read_as_its_bytes_are(tmp_path, monkeypatch):
    file = tmp_path / "a photo of no name"
    file.write_bytes(pillow(corners(), "png"))
    for path in (file, str(file)):
        np.testing.assert_array_equal(images.read(path), corners())
    monkeypatch.setattr(codec, "MAX_BYTES", size := file.stat().st_size)
    assert images.read(file).shape == (48, 80, 3)
    monkeypatch.setattr(codec, "MAX_BYTES", size - 1)
    with pytest.raises(ImageTooLarge, match=f"{size:,} bytes: send at most {size - 1:,}"):
        images.read(file)
    with pytest.raises(FileNotFoundError):
        images.read(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_what_is_no_file_is_refused_and_not_waited_for(kind, tmp_path):
    place = tmp_path / "x.jpg"
    if kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place = Path("/dev/zero")
    with pytest.raises(UnsupportedImage, match="this is no file"):
        images.read(place)


# what callers give


def gray_floats() -> np.ndarray:
    return np.full((4, 5, 3), 0.5)


WRONG_PICTURES = {
    "shares of one": (
        gray_floats(),
        r"shape \(4, 5, 3\).*\(image \* 255\)\.round\(\)\.astype\(np\.uint8\)",
    ),
    "floats up to 255": (gray_floats() * 500, r"float64.*; \(image\)\.round\(\)\.astype\(np\.uint8\)"),
    "half floats": (gray_floats().astype(np.float16), "float16"),
    "numbers of another size": (np.zeros((4, 5, 3), np.uint16), "uint16"),
    "signed numbers": (np.zeros((4, 5, 3), int), "int64"),
    "yes and no": (np.zeros((4, 5, 3), bool), "array of bool"),
    "objects": (np.full((4, 5, 3), None), "array of object"),
    "gray": (np.zeros((4, 5), np.uint8), "COLOR_GRAY2BGR"),
    "one channel": (np.zeros((4, 5, 1), np.uint8), r"shape \(4, 5, 1\)"),
    "four channels": (np.zeros((4, 5, 4), np.uint8), "COLOR_BGRA2BGR"),
    "channels first": (np.zeros((3, 40, 50), np.uint8), r"image\.transpose\(1, 2, 0\)"),
    "a batch": (np.zeros((2, 4, 5, 3), np.uint8), "one picture of the batch at a time"),
    "no rows": (np.zeros((0, 5, 3), np.uint8), r"shape \(0, 5, 3\)"),
    "no columns": (np.zeros((5, 0, 3), np.uint8), r"shape \(5, 0, 3\)"),
    "no floats": (np.zeros((0, 5, 3)), "float64"),
    "a number": (np.uint8(3), "uint8"),
    "a list": ([[[1, 2, 3]]], "of type list"),
    "None": (None, "None"),
    "a path": ("photo.jpg", r"images\.read\(path\)"),
    "a Path": (Path("photo.jpg"), r"images\.read\(path\)"),
    "bytes": (b"\xff\xd8", r"images\.decode\(data\)"),
    "a Pillow picture": (Image.new("RGB", (5, 4)), "COLOR_RGB2BGR"),
}


@pytest.mark.parametrize("what", WRONG_PICTURES)
def test_what_is_no_picture_is_named_with_what_to_give(what):
    picture, message = WRONG_PICTURES[what]
    for function in (images.encode, images.features, images.show):
        with pytest.raises(ValueError, match=r"^image is .*give uint8, \(H, W, 3\), BGR, 0 to 255") as refused:
            function(picture)
        assert re.search(message, str(refused.value))


def test_a_picture_may_be_any_view_of_one():
    whole = noise(40, 60, 3)
    views = (whole[::2, ::3], whole[..., ::-1], whole[::-1], whole.transpose(1, 0, 2), np.asfortranarray(whole))
    for view in (*views, np.broadcast_to(whole[:1], (9, 60, 3))):
        copy = view.copy(order="C")
        np.testing.assert_array_equal(images.checked("image", view), copy)
        np.testing.assert_array_equal(images.decode(images.encode(view, "png")), copy)
        assert images.features(view) == images.features(copy)
    assert images.checked("image", whole) is whole


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: images.encode(corners(), "gif"), "kind='gif': give one of 'jpeg', 'png'"),
        (lambda: images.encode(corners(), None), "kind=None: give one of"),
        (lambda: images.encode(np.zeros((1, 65_501, 3), np.uint8)), "a JPEG has at most 65,500 pixels either way"),
        (lambda: images.show(corners(), width=0), "width=0: give a number from 1"),
        (lambda: images.show(corners(), width="500"), "width='500'"),
        (lambda: images.show(corners(), alt=None), "alt=None: give text"),
    ],
)
def test_other_arguments_are_checked_too(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_long_picture_can_be_a_png():
    assert images.encode(np.zeros((1, 65_501, 3), np.uint8), "png").startswith(b"\x89PNG")


# what goes out


@pytest.mark.parametrize("picture", [noise(97, 131, 3), corners()])
def test_png_is_exact_both_ways(picture):
    np.testing.assert_array_equal(images.decode(images.encode(picture, "png")), picture)


def test_jpeg_is_close_and_of_quality_90():
    data = images.encode(corners())
    assert np.abs(images.decode(data).astype(int) - corners()).mean() < 4
    assert Image.open(io.BytesIO(data)).format == "JPEG"
    other = Image.open(io.BytesIO(pillow(corners(), "jpeg", quality=90)))
    assert Image.open(io.BytesIO(data)).quantization == other.quantization


# what a picture is like, in numbers


def flat(*colour: int, height: int = 60, width: int = 80) -> np.ndarray:
    return np.full((height, width, 3), colour if len(colour) == 3 else colour * 3, np.uint8)


def halves(dark: int, bright: int) -> np.ndarray:
    return np.hstack([flat(dark, height=576, width=384), flat(bright, height=576, width=384)])


def checkerboard(field: int = 24) -> np.ndarray:
    rows, columns = np.indices((576, 768)) // field
    return np.dstack([((rows + columns) % 2 * 255).astype(np.uint8)] * 3)


@pytest.mark.parametrize("gray", [0, 1, 127, 255])
def test_a_flat_gray_has_its_brightness_and_nothing_else(gray):
    assert images.features(flat(gray, height=576, width=768)) == {
        "brightness": gray / 255,
        "contrast": 0,
        "sharpness": 0,
        "saturation": 0,
        "noise": 0,
        "width": 768,
        "height": 576,
        "aspect": 4 / 3,
    }


@pytest.mark.parametrize(("dark", "bright"), [(0, 255), (50, 150)])
def test_two_halves_have_half_their_difference_as_contrast(dark, bright):
    found = images.features(halves(dark, bright))
    assert found["brightness"] == pytest.approx((dark + bright) / 2 / 255, abs=0.005)
    assert found["contrast"] == pytest.approx((bright - dark) / 2 / 255, abs=0.005)


# luma: ITU-R BT.601, 0.299 R + 0.587 G + 0.114 B; saturation in HSV: (max - min) / max
@pytest.mark.parametrize(
    ("colour", "luma", "saturation"),
    [
        (RED, 0.299, 1),
        (GREEN, 0.587, 1),
        (BLUE, 0.114, 1),
        (WHITE, 1, 0),
        ((0, 255, 255), 0.886, 1),
        ((128, 128, 255), 0.299 + 0.701 * 128 / 255, 127 / 255),
    ],
)
def test_a_pure_colour_has_its_luma_and_saturation(colour, luma, saturation):
    found = images.features(flat(*colour))
    assert found["brightness"] == pytest.approx(luma, abs=0.003)
    assert found["saturation"] == pytest.approx(saturation, abs=0.003)
    assert found["contrast"] == found["sharpness"] == 0


def test_half_a_picture_in_colour_has_half_the_saturation():
    picture = np.hstack([flat(*RED), flat(127)])
    assert images.features(picture)["saturation"] == pytest.approx(0.5, abs=0.005)


def test_sharpness_is_the_variance_of_the_laplacian_in_squared_gray_levels():
    """At the working size nothing is resized, and the sum over the four neighbours can be written out."""
    picture = np.repeat(noise(128, 128, 1), 3, axis=2)
    doubled = picture.repeat(2, axis=0).repeat(2, axis=1)  # features squeezes it to the original again
    gray = np.pad(picture[..., 0].astype(float), 1, mode="reflect")
    around = gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:]
    assert images.features(doubled)["sharpness"] == pytest.approx(np.var(around - 4 * gray[1:-1, 1:-1]), rel=1e-6)


def test_blur_takes_sharpness_away_and_leaves_the_rest():
    sharp = checkerboard()
    levels = [images.features(cv2.GaussianBlur(sharp, (0, 0), sigma))["sharpness"] for sigma in (1, 2, 4, 8, 16)]
    assert images.features(sharp)["sharpness"] > levels[0]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] > 20 * levels[-2]
    blurred = images.features(cv2.GaussianBlur(sharp, (0, 0), 4))
    assert blurred["brightness"] == pytest.approx(0.5, abs=0.02)
    assert blurred["saturation"] == 0


def test_brightness_follows_the_light(pictures):
    for picture in pictures.values():
        found = [images.features((picture * light).astype(np.uint8)) for light in (0, 0.2, 0.4, 0.6, 0.8, 1)]
        levels = [one["brightness"] for one in found]
        assert levels == sorted(set(levels))
        assert levels[2] == pytest.approx(0.4 * levels[5], abs=0.01)
        assert found[2]["contrast"] == pytest.approx(0.4 * found[5]["contrast"], abs=0.01)


def test_the_same_scene_has_much_the_same_features_at_any_resolution(pictures):
    for name, picture in pictures.items():
        if min(picture.shape[:2]) < 470:
            continue
        found = [
            images.features(cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))
            for scale in (0.6, 0.75, 0.9, 1, 1.5, 2, 3)
        ]
        for feature in ("brightness", "contrast", "saturation"):
            levels = [one[feature] for one in found]
            assert max(levels) - min(levels) < 0.02, (name, feature)
        levels = [one["sharpness"] for one in found]
        assert max(levels) < 1.6 * min(levels), name


@pytest.mark.parametrize("shape", [(576, 768), (480, 640), (1536, 2048), (2100, 1300)])
def test_detail_too_fine_to_be_seen_is_averaged_and_not_picked_from(shape):
    """A picture of noise, against OpenCV's average over every pixel; taking one pixel in so many would show the noise."""
    grain = noise(*shape, 3)
    averaged = cv2.cvtColor(cv2.resize(grain, (128, 128), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2GRAY)
    expected = cv2.Laplacian(averaged, cv2.CV_64F).var()
    assert 0.5 * expected < images.features(grain)["sharpness"] < 2.5 * expected


@pytest.mark.parametrize("height", [1, 2, 127, 767, 769, 3000])
@pytest.mark.parametrize("width", [1, 3, 128, 768])
def test_features_are_finite_and_in_range_whatever_the_size(height, width):
    for picture in (noise(height, width, 3), flat(0, height=height, width=width)):
        found = images.features(picture)
        assert all(type(value) is float and np.isfinite(value) for value in found.values())
        assert (found["width"], found["height"], found["aspect"]) == (width, height, width / height)
        assert found["noise"] >= 0
        assert 0 <= found["brightness"] <= 1
        assert 0 <= found["contrast"] <= 0.5
        assert 0 <= found["saturation"] <= 1
        assert found["sharpness"] >= 0


def grainy(scene: np.ndarray, sigma: float) -> np.ndarray:
    """The scene (H, W) in gray, with normal noise of so many gray levels."""
    grain = np.random.default_rng(1).normal(0, sigma, scene.shape)
    return np.repeat(np.clip(np.round(scene + grain), 0, 255).astype(np.uint8)[..., None], 3, axis=2)


ROWS, ACROSS = np.indices((480, 640))
SCENES = {
    "flat": np.full((480, 640), 128.0),
    "slope": 60 + 0.2 * ACROSS,
    "edges": 90 + 70.0 * (ACROSS // 80 % 2),  # straight up and down: the filter leaves nothing of them
    "waves": 128 + 40 * np.sin(ROWS / 25) * np.cos(ACROSS / 30),
}


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("sigma", [1, 2, 5, 10, 20])
def test_noise_is_the_standard_deviation_of_what_was_added(scene, sigma):
    sigma_after_rounding = np.sqrt(sigma**2 + 1 / 12)
    assert images.features(grainy(SCENES[scene], sigma))["noise"] * 255 == pytest.approx(sigma_after_rounding, rel=0.04)


def test_noise_is_immerkaers_sum_over_the_middle_192_x_192_pixels():
    """His formula written out: sqrt(pi / 2) / (6 (W - 2) (H - 2)) times the sum of absolute values."""
    picture = np.repeat(noise(300, 400, 1), 3, axis=2)
    gray = picture[54:246, 104:296, 0].astype(int)
    across = gray[:, :-2] - 2 * gray[:, 1:-1] + gray[:, 2:]
    both = across[:-2] - 2 * across[1:-1] + across[2:]
    assert both.shape == (190, 190)
    expected = np.sqrt(np.pi / 2) * np.abs(both).sum() / (6 * 190 * 190) / 255
    assert images.features(picture)["noise"] == pytest.approx(expected, rel=1e-9)


def test_noise_is_seen_that_sharpness_cannot_see(pictures):
    """At 768 x 576 and above squeezing averages it away."""
    scene = cv2.resize(pictures["fruits.jpg"], (1536, 1152))
    grain = np.random.default_rng(1).normal(0, 8, scene.shape[:2])[..., None]
    noisy = np.clip(np.round(scene + grain), 0, 255).astype(np.uint8)
    before, after = images.features(scene), images.features(noisy)
    assert after["sharpness"] == pytest.approx(before["sharpness"], rel=0.1)
    assert after["noise"] * 255 == pytest.approx(8, rel=0.1)
    assert before["noise"] * 255 < 1.5


def test_features_leave_the_picture_as_it_is():
    picture = noise(900, 800, 3)
    before = picture.copy()
    images.features(picture)
    np.testing.assert_array_equal(picture, before)


@pytest.mark.parametrize("path", [None, 5, b"picture.png", ["picture.png"], "pic\0ture.png"])
def test_what_is_no_path_is_refused_with_the_path_named(path):
    with pytest.raises(ValueError, match=r"path=.*: give the path of a JPEG or PNG file"):
        images.read(path)


@pytest.mark.parametrize("shape", [(1, 5_000), (2, 2_000), (5_000, 1)])
def test_a_picture_of_any_shape_is_shown(shape, capsys):
    images.show(np.zeros((*shape, 3), np.uint8))
    assert "Image" in capsys.readouterr().out


def test_a_masked_picture_is_refused_and_so_are_floats_that_are_nothing():
    masked = np.ma.masked_equal(np.zeros((2, 2, 3), np.uint8), 0)
    with pytest.raises(ValueError, match=r"image is a masked array.*; image.filled\(0\) makes it"):
        images.encode(masked)
    assert images.encode(masked.filled(0))
    with warnings.catch_warnings(), pytest.raises(ValueError, match="image is an array of float64"):
        warnings.simplefilter("error")
        images.encode(np.full((2, 2, 3), np.nan))
