"""A JPEG that lost something is refused, wherever it lost it; one that only looks odd is read."""

import io
import itertools
import random
import re
import struct

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from fuzz_images import exif, segment, taken_apart
from hostile_images import apart, flat, in_scans
from labsupport import images, paths
from labsupport.images import UnsupportedImage, jpeg

END = b"\xff\xd9"
PHOTOS = sorted(paths.IMAGES.glob("*.jpg")) + sorted(paths.IMAGES.glob("*.png"))
KINDS = {
    "baseline": ("RGB", {}),
    "no shared colours": ("RGB", {"subsampling": 0, "quality": 92}),
    "progressive": ("RGB", {"progressive": True}),
    "gray": ("L", {}),
    "progressive gray": ("L", {"progressive": True}),
    "four colours": ("CMYK", {}),
    "progressive, four colours": ("CMYK", {"progressive": True}),
    "restarts": ("RGB", {"restart_marker_rows": 1}),
    "turned": ("RGB", {"exif": exif(6)}),
    "optimised": ("RGB", {"optimize": True}),
}


def encoded(kind: str, photo=PHOTOS[0], size=(160, 120)) -> bytes:
    mode, options = KINDS[kind]
    out = io.BytesIO()
    with Image.open(photo) as picture:
        picture.convert("RGB").resize(size).convert(mode).save(out, "jpeg", **options)
    return out.getvalue()


def pixels_of(data: bytes) -> int:
    """Where the first scan's pixels start."""
    start = data.index(b"\xff\xda")
    return start + 2 + int.from_bytes(data[start + 2 : start + 4])


def read(data: bytes) -> np.ndarray | None:
    """The picture, or None if it is refused as damaged."""
    try:
        return images.decode(data)
    except UnsupportedImage as error:
        assert "damaged or cut off" in str(error)
        return None


# what is missing


@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_that_was_cut_and_closed_again_is_refused_or_whole(kind):
    """Whole, where nothing but the bits that fill the last byte is missing."""
    for photo in PHOTOS:
        data = encoded(kind, photo)
        whole, start = images.decode(data), pixels_of(data)
        for percent in (0, *range(10, 100, 10), 97, 99):
            at = start + (len(data) - 2 - start) * percent // 100
            for end in (b"", END, b"\0" + END, b"\xff" + END):
                got = read(data[:at] + end)
                assert got is None or np.array_equal(got, whole), (photo.name, percent, end)
        refused = read(data[: len(data) * 9 // 10] + END)
        assert refused is None, photo.name


@pytest.mark.parametrize("kind", KINDS)
def test_a_jpeg_that_lost_a_piece_of_its_middle_is_nearly_always_refused(kind):
    """Not always: without a checksum, codes that happen to come out even cannot be told from a picture."""
    chance, refused, tries = random.Random(5), 0, 0
    for photo in PHOTOS[:6]:
        data = encoded(kind, photo, (320, 240))
        start = pixels_of(data)
        for lost in (400, 1_000):
            for replacement in (b"", bytes(lost), chance.randbytes(lost).replace(b"\xff", b"\xfe")):
                at = chance.randrange(start, len(data) - 2 - lost)
                refused += read(data[:at] + replacement + data[at + lost :]) is None
                tries += 1
    assert refused > 0.75 * tries


@pytest.mark.parametrize("kind", KINDS)
def test_no_changed_byte_leaves_rows_blank(kind):
    """A byte that was changed may give other pixels without a contradiction; but never rows without any."""
    chance = random.Random(6)
    for photo in PHOTOS[:6]:
        data = encoded(kind, photo)
        start = pixels_of(data)
        ragged = images.decode(data).std(axis=(1, 2)) > 3
        for _ in range(25):
            at = chance.randrange(start, len(data) - 2)
            got = read(data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :])
            if got is not None and len(got) == len(ragged):
                assert (got.std(axis=(1, 2)) > 0)[ragged].mean() > 0.8, (photo.name, at)


def test_a_restart_that_is_missing_is_damage():
    data = encoded("restarts", size=(160, 160))
    for marker in (b"\xff\xd0", b"\xff\xd3", b"\xff\xd7"):
        assert marker in data
        assert read(data.replace(marker, b"", 1)) is None
    first, second = (data.index(marker, pixels_of(data)) for marker in (b"\xff\xd2", b"\xff\xd3"))
    assert read(data[:first] + data[second:]) is None


def scans_of(data: bytes) -> list[int]:
    """Where the scans of a JPEG start, and its end."""
    return [found.start() for found in re.finditer(rb"\xff\xda\0[\x06-\x0e]", data)] + [len(data) - 2]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "progressive" in kind])
def test_a_progressive_jpeg_without_one_of_its_scans_is_refused(kind):
    """Cut between two scans, it decodes without a warning: blurred, or gray."""
    data = encoded(kind)
    starts = scans_of(data)
    assert len(starts) > 5
    for number, (start, end) in enumerate(itertools.pairwise(starts)):
        assert read(data[:start] + data[end:]) is None, number
        assert number == 0 or read(data[:start] + END) is None, number


def test_colours_in_scans_of_their_own_must_all_come():
    data = apart(3, 64)
    starts = scans_of(data)
    assert images.decode(data).shape == (64, 64, 3)
    for start, end in itertools.pairwise(starts):
        assert read(data[:start] + data[end:]) is None


def test_scans_that_send_the_same_bits_twice_or_out_of_turn_are_damage():
    data = in_scans(1, 64, 64, 1, 2)
    starts = scans_of(data)
    parts = [data[start:end] for start, end in itertools.pairwise(starts)]
    assert images.decode(data).shape == (64, 64, 3)
    for order in ((0, 0, 1, 2, 3, 4, 5), (0, 2, 1, 3, 4, 5), (0, 1, 2, 3, 5, 4), (0, 1, 2, 4, 3, 5)):
        assert read(data[: starts[0]] + b"".join(parts[number] for number in order) + END) is None, order


@pytest.mark.parametrize("part", [b"\xff\xdb", b"\xff\xc4", b"\xff\xc0", b"\xff\xda"])
def test_a_segment_that_breaks_off_is_damage(part):
    data = encoded("baseline")
    start = data.index(part)
    for at in (start + 1, start + 2, start + 3, start + 8):
        assert read(data[:at]) is None
        assert read(data[:at] + END) is None


# what only looks odd


WHOLE = encoded("baseline")
PIXELS = images.decode(WHOLE)
MARKED = WHOLE.index(b"\xff\xdb")
ODD = {
    "a zero behind the pixels": WHOLE[:-2] + b"\0" + END,
    "four bytes behind the pixels": WHOLE[:-2] + b"\x12\x34\x56\x78" + END,
    "many zeros behind the pixels": WHOLE[:-2] + bytes(5_000) + END,
    "filling behind the pixels": WHOLE[:-2] + b"\xff" * 5_000 + END,
    "no end": WHOLE[:-2],
    "half an end": WHOLE[:-1],
    "zeros behind the end": WHOLE + bytes(5_000),
    "another picture behind the end": WHOLE + encoded("gray"),
    "a camera's notes behind the end": WHOLE + b"\0\0\1\x0aImage_UTC_Data1700000000000SEFH" + bytes(50) + b"SEFT",
    "zeros before a segment": WHOLE[:MARKED] + bytes(64) + WHOLE[MARKED:],
    "text before a segment": WHOLE[:MARKED] + b"made by a camera" + WHOLE[MARKED:],
    "a segment without its first byte": WHOLE[:MARKED] + segment(b"\0\xe1", b"notes") + WHOLE[MARKED:],
    "filling before a segment": WHOLE[:MARKED] + b"\xff" * 64 + WHOLE[MARKED:],
    "a thumbnail": WHOLE[:MARKED]
    + segment(b"\xff\xe1", b"Exif\0\0" + encoded("baseline", size=(40, 30)))
    + WHOLE[MARKED:],
    "half a colour profile": WHOLE[:MARKED] + segment(b"\xff\xe2", b"ICC_PROFILE\0\1\2" + bytes(9)) + WHOLE[MARKED:],
    "another version of JFIF": WHOLE.replace(b"JFIF\0\1", b"JFIF\0\7"),
    "a broken index of pictures": WHOLE[:MARKED] + segment(b"\xff\xe2", b"MPF\0MM\0*" + bytes(4)) + WHOLE[MARKED:],
    "scan parameters that mean nothing": WHOLE.replace(b"\3\x11\0\x3f\0", b"\3\x11\0\0\0"),
    "comments behind the pixels": WHOLE[:-2] + segment(b"\xff\xfe", b"a comment") * 3 + END,
}


@pytest.mark.parametrize("what", ODD)
def test_what_looks_odd_beside_the_pixels_changes_none_of_them(what):
    assert what == "no end" or ODD[what] != WHOLE
    np.testing.assert_array_equal(images.decode(ODD[what]), PIXELS)


def test_spare_bytes_are_read_behind_the_pixels_of_every_kind():
    for kind in KINDS:
        data = encoded(kind)
        np.testing.assert_array_equal(images.decode(data[:-2] + bytes(20) + END), images.decode(data))


def test_bytes_behind_the_pixels_that_could_be_pixels_are_damage():
    assert read(WHOLE[:-2] + WHOLE[-100:-90] + END) is None


def test_more_than_one_picture_is_the_first():
    first, second = (Image.fromarray(np.full((40, 40, 3), value, np.uint8)) for value in (200, 10))
    out = io.BytesIO()
    first.save(out, "MPO", save_all=True, append_images=[second] * 3)
    assert abs(int(images.decode(out.getvalue()).mean()) - 200) < 3


@pytest.mark.parametrize("transform", range(4))
@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
def test_adobes_colour_code_means_what_it_means_to_others(mode, transform):
    """Against Pillow, which asks the same library and does not mind its warnings."""
    out = io.BytesIO()
    with Image.open(PHOTOS[0]) as photo:
        photo.resize((64, 48)).convert(mode).save(out, "jpeg", subsampling=0)
    start, parts, end = taken_apart(out.getvalue())
    parts = [(b"\xff\xee", b"Adobe\0\x64" + bytes(4) + bytes([transform])), *parts]
    ours, others = parts[:1], [part for part in parts[1:] if part[0] not in (b"\xff\xe0", b"\xff\xee")]
    data = start + b"".join(segment(*part) for part in ours + others) + end
    with Image.open(io.BytesIO(data)) as picture:
        expected = np.asarray(picture.convert("RGB"))[..., ::-1].astype(int)
    assert np.abs(images.decode(data) - expected).max() <= 1


@pytest.mark.parametrize("sampling", ["444", "422", "420", "440", "411", "Gray"])
def test_every_usual_sampling_decodes_as_in_opencv(sampling):
    picture = np.ascontiguousarray(PIXELS[..., :1] if sampling == "Gray" else PIXELS)
    space = "GRAY" if sampling == "Gray" else "BGR"
    data = simplejpeg.encode_jpeg(picture, 90, space, sampling)
    np.testing.assert_array_equal(images.decode(data), cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))


@pytest.mark.parametrize("sampling", [[(2, 2), (1, 2), (1, 2)], [(2, 1)] * 3, [(4, 1), (1, 1), (1, 1)], [(2, 2)]])
def test_usual_samplings_in_unusual_words_are_read(sampling):
    assert images.decode(flat(80, 48, sampling)).shape == (48, 80, 3)


# which way up


def turned(tiff: bytes) -> int:
    """The orientation that we read in EXIF."""
    data = WHOLE[:2] + segment(b"\xff\xe1", b"Exif\0\0" + tiff) + WHOLE[2:]
    return jpeg.read(data)[0].orientation


def tiff(order: str, kind: int, value: int, count: int = 1, tag: int = 0x0112) -> bytes:
    packed = struct.pack(f"{order}{ {1: 'B', 3: 'H', 4: 'I'}.get(kind, 'I') }", value).ljust(4, b"\0")
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(f"{order}IHHHI", 8, 1, tag, kind, count) + packed + bytes(4)


@pytest.mark.parametrize("order", "<>")
def test_orientation_is_read_in_either_order_of_bytes(order):
    for value in range(1, 9):
        for kind in (1, 3, 4):
            assert turned(tiff(order, kind, value)) == value


@pytest.mark.parametrize("nonsense", [
    tiff("<", 3, 0), tiff("<", 3, 9), tiff("<", 2, 6), tiff("<", 3, 6, count=2), tiff("<", 3, 6, tag=0x0113), b"", b"II*\0",
    b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff", tiff("<", 3, 6)[:-9], b"XX" + tiff("<", 3, 6)[2:], bytes(500),
])  # fmt: skip
def test_orientation_that_makes_no_sense_is_upright(nonsense):
    assert turned(nonsense) == 1


def test_of_two_orientations_the_first_counts():
    first, second = (segment(b"\xff\xe1", b"Exif\0\0" + tiff(">", 3, value)) for value in (3, 6))
    assert jpeg.read(WHOLE[:2] + first + second + WHOLE[2:])[0].orientation == 3
    other = segment(b"\xff\xe1", b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='8'/>")
    assert jpeg.read(WHOLE[:2] + other + second + WHOLE[2:])[0].orientation == 6
