"""Convert a Darknet model to ONNX, and run it with ONNX Runtime: on the CPU, or on a GPU through CUDA.

ONNX is a format for networks that many runtimes read. Its operators are those of opset 18 (onnx.ai). Needs the packages of
`labsupport[onnx]`; for a GPU install onnxruntime-gpu instead of onnxruntime.
"""

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from labsupport.models import darknet, registry

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

OPSET = 18
DEVICES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}  # device -> its name in ONNX Runtime
CUDA = "pip install 'onnxruntime-gpu[cuda,cudnn]' in place of onnxruntime, and see that nvidia-smi lists the GPU"


@dataclass
class _Output:
    """The output of a step: its name, and its number of channels."""

    name: str
    channels: int


class _Graph:
    """Collect the steps of a network."""

    def __init__(self) -> None:
        self.helper = _imported("onnx.helper")
        self.numpy = _imported("onnx.numpy_helper")
        self.steps: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, values: np.ndarray) -> str:
        name = f"constant {len(self.constants)}"
        self.constants.append(self.numpy.from_array(np.ascontiguousarray(values), name))
        return name

    def step(self, kind: str, inputs: list[str], channels: int, **options: Any) -> _Output:
        name = f"{kind} {len(self.steps)}"
        self.steps.append(self.helper.make_node(kind, inputs, [name], **options))
        return _Output(name, channels)

    def convolution(self, x: _Output, options: dict[str, str], floats: "darknet.Floats") -> _Output:
        kernel, bias = darknet.folded(x.channels, options, floats)
        size, stride = int(options["size"]), int(options["stride"])
        inputs = [x.name, self.constant(kernel), self.constant(bias)]
        x = self.step("Conv", inputs, len(kernel), strides=[stride] * 2, pads=[size // 2] * 4)
        return self.step("LeakyRelu", [x.name], x.channels, alpha=0.1) if options["activation"] == "leaky" else x

    def max_pool(self, x: _Output, size: int, stride: int) -> _Output:
        shape = {"kernel_shape": [size] * 2, "strides": [stride] * 2, "auto_pad": "SAME_UPPER"}
        return self.step("MaxPool", [x.name], x.channels, **shape)

    def upsample(self, x: _Output, stride: int) -> _Output:
        scales = self.constant(np.array([1, 1, stride, stride], np.float32))
        grid = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self.step("Resize", [x.name, "", scales], x.channels, **grid)

    def concatenate(self, sources: list[_Output]) -> _Output:
        return self.step("Concat", [x.name for x in sources], sum(x.channels for x in sources), axis=1)


def to_onnx(cfg: str, weights: bytes, folder: Path) -> None:
    """Write `onnx.onnx` into `folder`: the network for any number of pictures in the format of OpenCV.

    Input: (N, 416, 416, 3), uint8, BGR. The outputs are those of `darknet.to_keras`, with N in front. Raises ValueError if
    the two files do not belong together, and `models.ModelUnavailable` without the package onnx.
    """
    onnx, graph = _imported("onnx"), _Graph()
    kinds = onnx.TensorProto
    x = graph.step("Cast", ["pictures"], 3, to=kinds.FLOAT)
    x = graph.step("Div", [x.name, graph.constant(np.array(255, np.float32))], 3)
    x = graph.step("Gather", [x.name, graph.constant(np.array([2, 1, 0]))], 3, axis=3)  # RGB
    x = graph.step("Transpose", [x.name], 3, perm=[0, 3, 1, 2])
    steps: dict[str, darknet.Step] = {
        "convolutional": graph.convolution,
        "maxpool": graph.max_pool,
        "upsample": graph.upsample,
        "shortcut": lambda x, y: graph.step("Add", [x.name, y.name], x.channels),
        "route": graph.concatenate,
    }
    heads = darknet.build(cfg, weights, x, steps)
    heads = [graph.step("Transpose", [head.name], head.channels, perm=[0, 2, 3, 1]) for head in heads]
    shape = graph.helper.make_tensor_value_info
    pictures = shape("pictures", kinds.UINT8, ["N", darknet.SIZE, darknet.SIZE, 3])
    outputs = [shape(head.name, kinds.FLOAT, ["N", None, None, head.channels]) for head in heads]
    made = graph.helper.make_graph(graph.steps, "darknet", [pictures], outputs, graph.constants)
    opset = graph.helper.make_opsetid("", OPSET)
    model = graph.helper.make_model(made, opset_imports=[opset], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / darknet.FILES["onnx"])


def session(network: Path, device: str = "cpu") -> "InferenceSession":
    """Return a session for a network of `to_onnx`. Any number of threads may run it; on the CPU each uses one core.

    Raises `models.ModelUnavailable` without the package onnxruntime, and if it cannot compute on `device`: ONNX Runtime
    itself would go on with the CPU.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # else its import writes an id into the home and reports to its maker
    runtime = _imported("onnxruntime")
    if DEVICES[device] not in runtime.get_available_providers():
        raise registry.ModelUnavailable(f"device={device!r}: this ONNX Runtime has only the CPU: {CUDA}")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    exact = {"use_tf32": 0} if device == "cuda" else {}  # TF32 would round each factor to 10 bits
    made: InferenceSession = runtime.InferenceSession(network, options, [(DEVICES[device], exact)])
    if made.get_providers()[0] != DEVICES[device]:
        raise registry.ModelUnavailable(f"device={device!r}: ONNX Runtime could not load CUDA: {CUDA}")
    made.disable_fallback()  # after an error of CUDA it would go on with the CPU, and only print that it does
    return made


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise registry.ModelUnavailable(
            f"{name.partition('.')[0]} is not installed: pip install 'labsupport[onnx]'"
        ) from error
