"""Write a picture's drawing to a file in `images_with_boxes`, so that no picture replaces another one's drawing.

A drawing names its picture in a comment of the JPEG, as a checksum of the path, because a path may name a person.
"""

import glob
import hashlib
import itertools
import os
from pathlib import Path

from labsupport import paths
from labsupport.arguments import shown

MARK = b"labsupport: drawing of "
START = 2_000  # so many bytes from the start of a file hold its comment
NOBODY, SOMEBODY = b"", b"?"  # owners of a drawing without a comment, and of what cannot be read


def source(filename: str | Path) -> Path:
    """Return the path of the picture that `filename` names, in a folder without links. Raises ValueError."""
    if not isinstance(filename, str | Path) or not str(filename).strip() or "\0" in str(filename):
        raise ValueError(f"filename={shown(filename)}: give the name of a picture in images, or a picture's path")
    source = paths.IMAGES / filename
    if source.resolve().is_relative_to(paths.IMAGES_WITH_BOXES.resolve()):
        raise ValueError(f"filename={shown(filename)} is in images_with_boxes, where drawings go: copy it first")
    return source.parent.resolve() / source.name


def save(drawing: bytes, picture: Path) -> Path:
    """Write the drawing (a JPEG) of the file `picture` to `images_with_boxes`, and return its path.

    A picture in a subfolder of `images` has it in the same subfolder. Raises ValueError if that is a link to elsewhere.
    Pictures that differ only in their suffix (`a.png`, `a.jpg`), and pictures
    of the same name from several folders, get separate drawings. A drawing without a comment counts as that of the picture
    of its name in `images`.
    """
    folder, pictures = paths.IMAGES_WITH_BOXES, paths.IMAGES.resolve()
    own = picture.is_relative_to(pictures)
    place = folder / picture.parent.relative_to(pictures) if own else folder
    if not place.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{place} is a link out of images_with_boxes: remove it")
    alike = [other for other in picture.parent.glob(f"{glob.escape(picture.stem)}.*") if other != picture]
    stem = picture.name if alike and picture.suffix != ".jpg" else picture.stem
    names = itertools.chain([f"{stem}.jpg"], (f"{stem}_{number}.jpg" for number in itertools.count(2)))
    path = picture.relative_to(pictures) if own else picture  # the lab may move, with its drawings
    mark = hashlib.sha256(str(path).encode(errors="surrogateescape")).hexdigest().encode()
    free = [None, mark]  # what the file of a name may say, so that it can be written
    if own and _owner(place / f"{stem}.jpg") == NOBODY:
        target = place / f"{stem}.jpg"
    else:
        target = next(place / name for name in names if _owner(place / name) in free)
    with paths.whole(target) as partial:
        partial.write_bytes(_marked(drawing, MARK + mark))
    return target


def _marked(jpeg: bytes, comment: bytes) -> bytes:
    """Return a JPEG with a comment after its first header."""
    end = 4 + int.from_bytes(jpeg[4:6]) if jpeg[2:4] == b"\xff\xe0" else 2
    return jpeg[:end] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2) + comment + jpeg[end:]


def _owner(drawing: Path) -> bytes | None:
    """Return the checksum of the picture that a drawing names, `NOBODY` if it names none, or None if there is no such file.

    What is no file, or cannot be read, belongs to somebody else.
    """
    if not drawing.is_file():
        return SOMEBODY if os.path.lexists(drawing) else None
    try:
        with drawing.open("rb") as file:
            _, found, rest = file.read(START).partition(MARK)
    except OSError:
        return SOMEBODY
    return rest[:64] if found else NOBODY
