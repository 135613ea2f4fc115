"""What several test files share: one detector, one running server, the lab's pictures."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from labsupport import images, loopback, paths
from labsupport.detection import Detector
from labsupport.serving import create_app, serve

collect_ignore = ["on_cluster.py"]  # test_scale.py runs it, in a process of its own
loopback.ask_directly()  # the tests' own requests, too
PICTURES = sorted(path.name for path in paths.IMAGES.iterdir() if path.suffix in (".jpg", ".png"))


@pytest.fixture(scope="session")
def pictures():
    """Every picture of the lab, by file name."""
    return {name: images.decode((paths.IMAGES / name).read_bytes()) for name in PICTURES}


@pytest.fixture(scope="session")
def street():
    """The forty frames of a street."""
    return [images.decode(path.read_bytes()) for path in sorted((paths.IMAGES / "street").iterdir())]


@pytest.fixture(scope="session")
def detector():
    return Detector.load("yolov3-tiny", precision="f32")


@pytest.fixture(scope="session")
def server(detector):
    with serve(create_app(detector, keep_uploads=False), port=0) as running:
        yield running


def iou(a, b) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, width) * max(0, height)
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return shared / (areas - shared)


@contextlib.contextmanager
def disk_of(megabytes: int, folder: Path) -> Iterator[Path]:
    """The folder as a disk of its own, with room for so much. Skips the test where nobody may mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk, on Linux")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
