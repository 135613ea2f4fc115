"""The source bundle: the one zip file that Elastic Beanstalk gets, from which each instance builds its own image.

What the Dockerfile copies is in it, and the platform's own files (`.platform`), and nothing else. The same content gives the
same bytes on every machine, so a version is named after them: it is neither uploaded nor deployed twice.
"""

import hashlib
import io
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

PLATFORM = Path(__file__).parent / ".platform"
LIMIT = 500_000_000  # bytes: what Elastic Beanstalk takes
NEVER = (".*", "__pycache__", "*.pyc", "*.db*", "*.pem", "*.key", "images_uploaded", "images_with_boxes")
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip file can hold: when a file was written is no content


class BundleRefused(ValueError):
    """There is no bundle to be made of this checkout; the message says why."""


class Bundle(NamedTuple):
    """What to upload."""

    label: str  # the version's name: what its content's sha256 begins with
    content: bytes
    names: tuple[str, ...]  # the files in it


def make(root: Path) -> Bundle:
    """The bundle of a checkout that has a Dockerfile at its `root`. Raises `BundleRefused`."""
    if not (root / "Dockerfile").is_file():
        raise BundleRefused(f"no Dockerfile in {root}: start from the top of the checkout")
    files = {name: path.read_bytes() for name, path in sorted(_files(root))}
    if sum(map(len, files.values())) > LIMIT:
        largest = max(files, key=lambda name: len(files[name]))
        raise BundleRefused(f"more than {LIMIT:,} bytes, the most that Elastic Beanstalk takes: is {largest} needed?")
    buffer = io.BytesIO()
    with zipfile.ZipFile(
        buffer, "w", zipfile.ZIP_STORED
    ) as archive:  # deflated, the bytes would depend on zlib's version
        for name, content in files.items():
            archive.writestr(_entry(name), content)
    content = buffer.getvalue()
    return Bundle(hashlib.sha256(content).hexdigest()[:16], content, tuple(files))


def sources(dockerfile: str) -> set[str]:
    """What a Dockerfile copies out of the checkout. Raises `BundleRefused` for what we cannot follow.

    >>> sorted(sources("COPY --chown=1 code more /app/\\nCOPY --from=packages /opt/lab /opt"))
    ['code', 'more']
    """
    found: set[str] = set()
    for line in dockerfile.replace("\\\n", " ").splitlines():
        instruction, *words = line.split() or [""]
        if instruction.upper() in ("COPY", "ADD") and not any(word.startswith("--from=") for word in words):
            found |= {word for word in words[:-1] if not word.startswith("--")}
    if vague := [
        word for word in found if word in (".", "./") or any(sign in word for sign in "[]$*?") or "://" in word
    ]:
        raise BundleRefused(f"the Dockerfile copies {vague[0]}: have it name the files and folders that it needs")
    return found


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    """The name in the bundle and the place on disk of each file."""
    for name in ("Dockerfile", ".dockerignore"):
        if (root / name).is_file():
            yield name, root / name
    for path in filter(Path.is_file, PLATFORM.rglob("*")):
        yield f".platform/{path.relative_to(PLATFORM).as_posix()}", path
    for source in sources((root / "Dockerfile").read_text()):
        if not (root / source).exists():
            raise BundleRefused(f"the Dockerfile copies {source}, and there is none in {root}")
        for path in filter(Path.is_file, [root / source, *(root / source).rglob("*")]):
            name = path.relative_to(root).as_posix()
            if not any(fnmatch(part, pattern) for part in name.split("/") for pattern in NEVER):
                yield name, path


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, EPOCH)
    entry.create_system = 3  # Unix, wherever we are: else the mode would not count
    entry.external_attr = (0o100755 if name.startswith(".platform/hooks/") else 0o100644) << 16
    return entry
