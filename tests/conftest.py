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
# files that take long, or need a program of the system: `make check` leaves them out, and `make test` begins with them
SLOW = """
admission alerts automation aws batch checking cli clickstream commands compute conditional connections damage darknet
dashboard detection diagnosis drift edge estimation exercises extras figures folders fuzz gate holding inspection lab
lesson_scenes metrics models multivariate natives oracle outbox outcomes people phones predictions queueing retention
retraining review rollout rollout_machine router runs scenarios schema security serving speech statuses streams tables tls
univariate wheel
"""
MARKS = {
    **dict.fromkeys(("test_browser", "test_in_browser"), "browser"),
    **dict.fromkeys(("test_container", "test_postgres", "test_prometheus", "test_proxy"), "system"),
    "test_scale": "cluster",
    **dict.fromkeys((f"test_{name}" for name in SLOW.split()), "slow"),
}
QUICK = "not slow and not browser and not system and not cluster"
loopback.ask_directly()  # the tests' own requests, too
PICTURES = sorted(path.name for path in paths.IMAGES.iterdir() if path.suffix in (".jpg", ".png"))


def pytest_ignore_collect(collection_path, config):
    """Do not even import the files that `make check` leaves out."""
    return True if config.option.markexpr == QUICK and collection_path.stem in MARKS else None


def pytest_collection_modifyitems(items):
    """Mark the tests of those files, and run these and the lessons first, so that no process is left alone at the end."""
    for item in items:
        if mark := MARKS.get(item.path.stem):
            item.add_marker(mark)
    items.sort(key=lambda item: item.path.stem not in MARKS and item.path.suffix != ".ipynb")


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """A folder with a certificate authority for this machine, and with a server's certificate that it signed."""
    from labsupport.access import certificates

    folder = tmp_path_factory.mktemp("certificates")
    certificates.make_authority(folder)
    certificates.make_certificate(folder)
    return folder


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
