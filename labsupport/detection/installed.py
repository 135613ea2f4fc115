"""Load the detectors of all installed models, as a server does."""

from labsupport import models
from labsupport.detection.detector import Detector


def load_installed(slots: int | None = None, precision: str | None = None) -> dict[str, Detector]:
    """Return a detector for each installed model, by its name. Raises the errors of `Detector.load`.

    A model that cannot be computed in `precision` gets its own best one, if another model can. Raises `models.NotInstalled`
    if no model is installed.
    """
    installed = [name for name in models.MODELS if not models.missing(name)]
    if not installed:
        models.locate("yolov3-tiny")  # raises, and says how to install it
    able = [name for name in installed if precision in models.precisions(name, "openvino")] or installed
    return {name: Detector.load(name, precision=precision if name in able else None, slots=slots) for name in installed}
