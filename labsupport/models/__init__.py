"""Name the models of the lab, install their files and convert them for each runtime.

>>> from labsupport import models
>>> sorted(models.MODELS)
['yolov3', 'yolov3-tiny']
"""

from labsupport.models import darknet, kept, onnx_network, runtimes
from labsupport.models.processor import RUNTIMES, beside_int8, best_precision, float_kernel, precisions
from labsupport.models.registry import (
    LABELS,
    MODELS,
    Files,
    Model,
    ModelFile,
    ModelUnavailable,
    NotInstalled,
    ensure,
    folder,
    locate,
    missing,
    network,
)

__all__ = [
    "LABELS",
    "MODELS",
    "RUNTIMES",
    "Files",
    "Model",
    "ModelFile",
    "ModelUnavailable",
    "NotInstalled",
    "beside_int8",
    "best_precision",
    "darknet",
    "ensure",
    "float_kernel",
    "folder",
    "kept",
    "locate",
    "missing",
    "network",
    "onnx_network",
    "precisions",
    "runtimes",
]
