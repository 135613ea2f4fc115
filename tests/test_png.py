"""A PNG's pixels come out whatever surrounds them, at every depth alike, and a PNG that lost some is refused."""

import io
import itertools
import random
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from fuzz_images import chunk, exif, png
from hostile_images import passes
from labsupport import images
from labsupport.images import UnsupportedImage
from labsupport.images import png as our_png

KINDS = [(d, c) for c, depths in our_png.DEPTHS.items() for d in depths]
SAMPLES = our_png.SAMPLES
WHITE = (255, 255, 255)


def filtered(kind: int, row: np.ndarray, above: np.ndarray, step: int) -> bytes:
    """A row of bytes under one of the standard's filters (PNG, third edition, 9.2), written as the standard does."""
    row, above = row.astype(int), above.astype(int)
    left, corner = (np.concatenate([np.zeros(step, int), values])[: len(row)] for values in (row, above))
    near = np.abs([above - corner, left - corner, left + above - 2 * corner])  # of Paeth's guess to left, above, corner
    paeth = np.choose(near.argmin(axis=0), [left, above, corner])
    guess = (0, left, above, (left + above) // 2, paeth)[kind]
    return bytes([kind]) + ((row - guess) % 256).astype(np.uint8).tobytes()


def packed(samples: np.ndarray, depth: int) -> np.ndarray:
    """Samples (rows, samples of a row) as the bytes of rows."""
    if depth == 16:
        return samples.astype(">u2").view(np.uint8).reshape(len(samples), -1)
    bits = (samples[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    return np.packbits(bits.reshape(len(samples), -1).astype(np.uint8), axis=1)


def made(
    samples: np.ndarray, depth: int, colours: int, interlace: int = 0, before: bytes = b"", seed: int = 0
) -> bytes:
    """A PNG of samples (height, width, samples of a pixel), each row under a filter drawn by chance."""
    chance, (height, width, count) = random.Random(seed), samples.shape
    steps = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = b""
    for x, y, across, down in steps if interlace else ((0, 0, 1, 1),):
        part = samples[y::down, x::across]
        if part.size:
            lines = packed(part.reshape(len(part), -1), depth)
            above = np.vstack([np.zeros_like(lines[:1]), lines[:-1]])
            step = max(1, count * depth // 8)
            pairs = zip(lines, above, strict=True)
            rows += b"".join(filtered(chance.randrange(5), line, over, step) for line, over in pairs)
    return png(width, height, depth, colours, zlib.compress(rows), before, interlace)


def drawn(depth: int, colours: int, height: int = 23, width: int = 37) -> np.ndarray:
    return np.random.default_rng(depth + colours).integers(0, 2**depth, (height, width, SAMPLES[colours]))


def on_white(samples: np.ndarray, depth: int, colours: int, palette: np.ndarray | None = None, key=None) -> np.ndarray:
    """BGR of samples, as plain arithmetic: eight bits, what is transparent white."""
    light = samples * 255 // (2**depth - 1) if depth < 16 else samples >> 8
    if colours == 3:
        light = palette[samples[..., 0]]
    alpha = light[..., -1:] / 255 if colours in (4, 6) or light.shape[2] == 4 else np.ones((*light.shape[:2], 1))
    rgb = light[..., :1].repeat(3, axis=2) if colours in (0, 4) else light[..., :3]
    if key is not None:
        alpha = np.where((samples == key).all(axis=2, keepdims=True), 0, alpha)
    return np.rint(rgb * alpha + 255 * (1 - alpha)).astype(np.uint8)[..., ::-1]


def assert_close(picture: np.ndarray, expected: np.ndarray) -> None:
    assert picture.dtype == np.uint8 and picture.shape == expected.shape
    assert np.abs(picture.astype(int) - expected).max() <= 1


# pixels


@pytest.mark.parametrize("interlace", [0, 1])
@pytest.mark.parametrize(("depth", "colours"), KINDS)
def test_every_kind_of_pixel_is_what_it_should_be(depth, colours, interlace, monkeypatch):
    """With all five filters, in one band of rows and in many, and rows that end within a byte."""
    samples = drawn(depth, colours)
    palette = np.random.default_rng(1).integers(0, 256, (2 ** min(depth, 8), 3))
    before = chunk(b"PLTE", palette.astype(np.uint8).tobytes()) if colours == 3 else b""
    data = made(samples, depth, colours, interlace, before)
    for band in (1, 100, 1_000_000):
        monkeypatch.setattr(our_png, "BAND", band)
        assert_close(images.decode(data), on_white(samples, depth, colours, palette))


@pytest.mark.parametrize(("depth", "colours"), [(1, 0), (8, 2)])
def test_small_pictures_have_passes_without_pixels(depth, colours):
    for height, width in itertools.product((1, 2, 3, 4, 5, 8, 9), repeat=2):
        samples = drawn(depth, colours, height, width)
        assert_close(images.decode(made(samples, depth, colours, interlace=1)), on_white(samples, depth, colours))


@pytest.mark.parametrize("interlace", [0, 1])
@pytest.mark.parametrize(("depth", "colours"), [(d, c) for d, c in KINDS if c in (0, 2)])
def test_the_transparent_colour_is_white_at_every_depth(depth, colours, interlace):
    """All its bits count: a neighbour that differs in the last one of sixteen stays as it is."""
    samples = drawn(depth, colours)
    key = samples[5, 7]
    samples[:4] = key
    samples[4] = key ^ 1
    data = made(samples, depth, colours, interlace, chunk(b"tRNS", struct.pack(f">{len(key)}H", *map(int, key))))
    picture = images.decode(data)
    assert (picture[:4] == 255).all()
    assert_close(picture, on_white(samples, depth, colours, key=key))


def test_sixteen_and_eight_bits_agree_on_what_is_transparent():
    for colours in (0, 2):
        shallow = drawn(8, colours)
        shallow[:9] = shallow[0, 0]
        keys = [chunk(b"tRNS", struct.pack(f">{shallow.shape[2]}H", *(shallow[0, 0] * times))) for times in (1, 257)]
        eight, sixteen = made(shallow, 8, colours, before=keys[0]), made(shallow * 257, 16, colours, before=keys[1])
        np.testing.assert_array_equal(images.decode(eight), images.decode(sixteen))
        assert (images.decode(eight)[:9] == 255).all()


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_palette_has_an_alpha_for_each_colour_and_those_without_are_opaque(depth):
    samples, chance = drawn(depth, 3), np.random.default_rng(2)
    palette = np.hstack([chance.integers(0, 256, (2**depth, 4))])
    palette[2 ** (depth - 1) :, 3] = 255
    before = chunk(b"PLTE", palette[:, :3].astype(np.uint8).tobytes())
    before += chunk(b"tRNS", palette[: 2 ** (depth - 1), 3].astype(np.uint8).tobytes())
    assert_close(images.decode(made(samples, depth, 3, before=before)), on_white(samples, depth, 3, palette))


ODD_TRANSPARENCY = {
    "too short": (8, 2, b"\0\1"),
    "too long": (8, 0, bytes(6)),
    "none at all": (8, 0, b""),
    "where there is alpha already": (8, 6, b"\0\1\0\2\0\3"),
    "and gray with alpha": (16, 4, b"\0\1"),
}


@pytest.mark.parametrize("what", ODD_TRANSPARENCY)
def test_transparency_that_makes_no_sense_is_none(what):
    depth, colours, body = ODD_TRANSPARENCY[what]
    samples = drawn(depth, colours)
    assert_close(
        images.decode(made(samples, depth, colours, before=chunk(b"tRNS", body))), on_white(samples, depth, colours)
    )


def test_only_the_lower_bits_of_a_transparent_colour_count():
    samples = np.full((3, 3, 1), 5)
    assert (images.decode(made(samples, 8, 0, before=chunk(b"tRNS", b"\x77\5"))) == 255).all()
    assert (images.decode(made(samples, 4, 0, before=chunk(b"tRNS", b"\0\xf5"))) == 255).all()


def test_a_longer_transparency_than_the_palette_costs_nothing():
    samples = np.zeros((2, 2, 1), int)
    before = chunk(b"PLTE", bytes([9, 8, 7])) + chunk(b"tRNS", b"\xff" * 300)
    assert (images.decode(made(samples, 8, 3, before=before)) == (7, 8, 9)).all()


def test_a_pixel_beyond_the_palette_is_black():
    assert not images.decode(made(np.full((2, 2, 1), 3), 2, 3, before=chunk(b"PLTE", bytes([9, 8, 7])))).any()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_what_pillow_writes_opencv_reads_alike(mode, level):
    soft = cv2.GaussianBlur(np.random.default_rng(3).integers(0, 256, (70, 90, 3), np.uint8), (0, 0), 2)
    deep, out = mode == "I;16", io.BytesIO()
    picture = Image.fromarray(soft[..., 0].astype(np.uint16) * 257) if deep else Image.fromarray(soft).convert(mode)
    picture.save(out, "png", compress_level=level)
    expected = cv2.imdecode(np.frombuffer(out.getvalue(), np.uint8), cv2.IMREAD_COLOR)
    assert_close(images.decode(out.getvalue()), expected)


# what surrounds them


PICTURE = on_white(drawn(8, 2), 8, 2)
DATA = made(drawn(8, 2), 8, 2)
FRONT, BACK = DATA[:33], DATA[33:]


def broken(name: bytes, body: bytes) -> bytes:
    """A chunk with a wrong checksum."""
    whole = chunk(name, body)
    return whole[:-1] + bytes([whole[-1] ^ 1])


BOMB = zlib.compress(bytes(30_000_000), 9)
AROUND = {
    "a text with a wrong checksum": broken(b"tEXt", b"Title\0a cat"),
    "a time with a wrong checksum": broken(b"tIME", bytes(7)),
    "transparency with a wrong checksum": broken(b"tRNS", bytes(6)),
    "EXIF with a wrong checksum": broken(b"eXIf", exif(6).tobytes()[6:]),
    "1.2 MB of compressed text": chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1_200_000))),
    "a bomb of compressed text": chunk(b"zTXt", b"a\0\0" + BOMB),
    "a bomb of international text": chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB),
    "a bomb of a colour profile": chunk(b"iCCP", b"a\0\0" + BOMB),
    "a broken text": chunk(b"zTXt", b"a\0\0nonsense"),
    "a broken international text": chunk(b"iTXt", b"a"),
    "a broken colour profile": chunk(b"iCCP", b"a\0\0nonsense"),
    "broken EXIF": chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
    "empty EXIF": chunk(b"eXIf", b""),
    "gamma of nothing": chunk(b"gAMA", bytes(4)),
    "gamma of one byte": chunk(b"gAMA", b"\0"),
    "colours of nothing": chunk(b"cHRM", bytes(32)),
    "a size of nothing": chunk(b"pHYs", bytes(9)),
    "a background": chunk(b"bKGD", bytes(6)),
    "a private chunk": chunk(b"prVt", bytes(70_000)),
    "a name with other letters": chunk(b"a1!\xff", b"x"),
    "a palette that is only a suggestion": chunk(b"PLTE", bytes(7)),
    "a hundred texts": chunk(b"tEXt", b"a\0b") * 100,
    "an animation": chunk(b"acTL", struct.pack(">II", 9, 0)) + chunk(b"fcTL", bytes(26)),
    "a broken animation": chunk(b"acTL", b"x") + chunk(b"fdAT", bytes(99)),
}


@pytest.mark.parametrize("what", AROUND)
def test_what_surrounds_the_pixels_changes_none_of_them(what):
    for data in (FRONT + AROUND[what] + BACK, DATA[:-12] + AROUND[what] + DATA[-12:]):
        np.testing.assert_array_equal(images.decode(data), PICTURE)


def test_rows_may_come_in_any_number_of_chunks_with_others_between():
    rows = DATA[41:-16]
    for size in (1, 7, 100):
        parts = [chunk(b"IDAT", rows[at : at + size]) for at in range(0, len(rows), size)]
        for between in (b"", chunk(b"IDAT", b""), chunk(b"tEXt", b"a\0b")):
            np.testing.assert_array_equal(images.decode(FRONT + between.join(parts) + DATA[-12:]), PICTURE)


def test_bytes_behind_the_end_and_behind_the_rows_are_nobodys_business():
    for behind in (bytes(1_000), b"<html>", DATA):
        np.testing.assert_array_equal(images.decode(DATA + behind), PICTURE)
    np.testing.assert_array_equal(
        images.decode(FRONT + chunk(b"IDAT", DATA[41:-16] + bytes(1_000)) + DATA[-12:]), PICTURE
    )
    np.testing.assert_array_equal(images.decode(DATA[:-12]), PICTURE)  # the end itself is missing, and no pixel


def test_of_an_animation_the_still_picture_counts():
    still, other = (Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (200, 10))
    for options in ({}, {"default_image": True}):
        out = io.BytesIO()
        still.save(out, "png", save_all=True, append_images=[other], **options)
        assert (images.decode(out.getvalue()) == 200).all()


@pytest.mark.parametrize("place", [33, -12])
def test_a_png_is_turned_by_its_exif_wherever_that_stands(place):
    data = DATA[:place] + chunk(b"eXIf", exif(6).tobytes()[6:]) + DATA[place:]
    np.testing.assert_array_equal(images.decode(data), cv2.rotate(PICTURE, cv2.ROTATE_90_CLOCKWISE))
    assert images.measure(data) == (23, 37)


def test_texts_that_pillow_writes_are_read():
    texts, out = PngImagePlugin.PngInfo(), io.BytesIO()
    texts.add_text("Comment", "x" * 3_000_000, zip=True)
    texts.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="8"/>', "en", "xmp", zip=True)
    Image.fromarray(np.ascontiguousarray(PICTURE[..., ::-1])).save(out, "png", pnginfo=texts)
    np.testing.assert_array_equal(images.decode(out.getvalue()), PICTURE)


# what is refused


def test_rows_that_are_missing_are_damage_even_if_their_end_looks_right():
    """Pillow leaves them black."""
    whole = drawn(8, 2)
    header, other = FRONT, made(whole[:-1], 8, 2)[33:]
    for data in (header + other, png(37, 23, 8, 2, zlib.compress(b"")), png(37, 23, 8, 2, b"")):
        with pytest.raises(UnsupportedImage, match="damaged or cut off"):
            images.decode(data)
    interlaced = made(whole, 8, 2, interlace=1)
    assert sum((wide + 1) * high for wide, high in passes(37, 23, 24)) == len(zlib.decompress(interlaced[41:-16]))
    short = zlib.compress(zlib.decompress(interlaced[41:-16])[:-1])
    with pytest.raises(UnsupportedImage, match="damaged or cut off"):
        images.decode(png(37, 23, 8, 2, short, interlace=1))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9, 0.99])
def test_a_png_that_is_cut_is_refused(share):
    at = int((len(DATA) - 12) * share)
    for end in (b"", DATA[-12:], bytes(40)):
        with pytest.raises(UnsupportedImage, match="damaged or cut off"):
            images.decode(DATA[:at] + end)


@pytest.mark.parametrize("name", [b"IHDR", b"PLTE", b"IDAT", b"IEND"])
def test_a_wrong_checksum_of_what_pixels_need_is_damage(name):
    data = made(drawn(8, 3), 8, 3, before=chunk(b"PLTE", bytes(768)))
    end = data.index(name) + 4 + struct.unpack_from(">I", data, data.index(name) - 4)[0]
    assert images.decode(data).shape == (23, 37, 3)
    with pytest.raises(UnsupportedImage, match="damaged or cut off"):
        images.decode(data[:end] + bytes([data[end] ^ 1]) + data[end + 1 :])


ROWS = zlib.compress(bytes(64))
WRONG = {
    "no header": DATA[:8] + BACK,
    "two headers": FRONT + DATA[8:33] + BACK,
    "text before the header": DATA[:8] + chunk(b"tEXt", b"a\0b") + DATA[8:],
    "a header that is too short": DATA[:8] + chunk(b"IHDR", bytes(12)) + BACK,
    "no width": png(0, 8, 8, 0, ROWS),
    "no height": png(8, 0, 8, 0, ROWS),
    "a depth that there is not": png(8, 8, 3, 0, ROWS),
    "a depth that colours have not": png(8, 8, 4, 2, ROWS),
    "colours that there are not": png(8, 8, 8, 5, ROWS),
    "a way to interlace that there is not": png(8, 7, 8, 0, ROWS, interlace=2),
    "a filter that there is not": png(8, 7, 8, 0, zlib.compress((b"\5" + bytes(8)) * 7)),
    "no palette": png(8, 7, 8, 3, zlib.compress(bytes(63))),
    "a palette of no colours": png(8, 7, 8, 3, zlib.compress(bytes(63)), chunk(b"PLTE", b"")),
    "a palette of half a colour": png(8, 7, 8, 3, zlib.compress(bytes(63)), chunk(b"PLTE", bytes(4))),
    "a palette of too many colours": png(8, 7, 8, 3, zlib.compress(bytes(63)), chunk(b"PLTE", bytes(771))),
    "no rows": FRONT + DATA[-12:],
    "rows that are not compressed": FRONT + chunk(b"IDAT", bytes(5_000)) + DATA[-12:],
    "a chunk that ends beyond the file": FRONT + struct.pack(">I", 2**31) + b"IDAT" + bytes(99),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_contradicts_the_standard_is_damage(what):
    with pytest.raises(UnsupportedImage, match="damaged or cut off"):
        images.decode(WRONG[what])


def test_unpacking_has_an_end(monkeypatch):
    monkeypatch.setattr(our_png, "MAX_SECONDS", -1)
    with pytest.raises(UnsupportedImage, match="takes too long to unpack: save it again"):
        images.decode(DATA)
