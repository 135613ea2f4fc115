"""Ask the processor in which precision OpenVINO computes fastest on it."""

import functools

import numpy as np

from labsupport import background
from labsupport.models import quantisation

EMULATED = "jit_avx512_bf16"  # the code with which AVX-512 without bf16 computes in bf16: slower than in f32
RUNTIMES = {  # runtime -> its precisions
    "openvino": ("f32", "bf16", "int8"),
    "litert": ("int8",),
    "onnx": ("f32",),
    "opencv": ("f32",),
}


def precisions(name: str, runtime: str) -> tuple[str, ...]:
    """Return the precisions in which a runtime can compute a model; () for an unknown runtime.

    OpenVINO computes a model in int8 only if its ranges are known (`quantisation.RANGES`).

    >>> precisions("yolov3-tiny", "openvino"), precisions("yolov3", "openvino")
    (('f32', 'bf16', 'int8'), ('f32', 'bf16'))
    """
    kinds = RUNTIMES.get(runtime, ())
    return tuple(kind for kind in kinds if (runtime, kind) != ("openvino", "int8") or name in quantisation.RANGES)


def best_precision(name: str = "yolov3-tiny") -> str:
    """Return the precision in which OpenVINO computes a model fastest on this CPU, of those that find nearly what f32 finds.

    | CPU | precision |
    |---|---|
    | AMX | bf16 |
    | AVX-512 with bf16 | int8, or bf16 for a model that cannot be computed in int8 |
    | AVX2 or AVX-512, without bf16 | int8, or f32 for such a model |
    | another one that computes in bf16 | bf16, which was not measured there |
    | any other | f32, because nothing else was measured there |

    On the 36 pictures of benchmarks/RESULTS.md bf16 and int8 find at least 99 % of f32's objects at an overlap (IoU) above
    0.8. Above 0.9 bf16 finds 98 %, and int8 93 %, or 94 % if its other steps are in bf16. On harder pictures they find less.
    """
    kernel, in_int8 = float_kernel(), "int8" in precisions(name, "openvino")
    if in_int8 and beside_int8() == "bf16":
        return "int8"
    if "bf16" in kernel and not kernel.startswith(EMULATED):
        return "bf16"
    return "int8" if in_int8 and "avx" in kernel else "f32"


def beside_int8() -> str:
    """Return the precision of those steps of an int8 network that are not in 8 bits.

    That is bf16 on a CPU with AVX-512 that computes in bf16 and has no AMX. There the network then takes 0.8 times as long
    as with f32. On all other CPUs it is f32.
    """
    return "bf16" if float_kernel() == "brgconv_avx512_bf16" else "f32"


@functools.cache
def float_kernel() -> str:
    """Return OpenVINO's name of the code that computes a convolution here, in bf16 if possible: "brgconv_avx2_f32".

    The name shows what this process may use. Environment variables can restrict OpenVINO (`OV_CPU_MAX_ISA`) and the
    library oneDNN that it uses (`ONEDNN_MAX_CPU_ISA`), and OpenVINO's list of capabilities ignores the second.
    """
    return background.call(_compile_a_convolution, "ask the CPU")


def _compile_a_convolution() -> str:
    """Compile two convolutions with a pooling step between them, and return the name of the second one's code.

    OpenVINO may compute the first convolution of a network with other code, because it has few inputs.
    """
    import openvino as ov
    from openvino import opset13 as steps

    entry = steps.parameter([1, 32, 16, 16], np.float32)
    filters, one, none = np.ones((32, 32, 3, 3), np.float32), [1, 1], [0, 0]
    x = steps.convolution(entry, filters, one, none, none, one)
    x = steps.max_pool(x, one, one, none, none, [2, 2]).output(0)
    network = ov.Model([steps.convolution(x, filters, one, none, none, one)], [entry])
    core = ov.Core()
    bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    try:
        made = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32"})
    except RuntimeError:  # oneDNN does not support one of these steps in bf16
        made = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    about = [step.get_rt_info() for step in made.get_runtime_model().get_ordered_ops()]
    kernels = [one["primitiveType"].astype(str) for one in about if one["layerType"].astype(str) == "Convolution"]
    return str(kernels[-1])
