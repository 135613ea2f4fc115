"""Make OpenVINO compute most of a network with whole numbers of 8 bits (int8).

OpenVINO does so for a convolution whose inputs and weights are both rounded by a FakeQuantize step. The weights get one
scale for each filter; the inputs get one range, which has to be known before (Krishnamoorthi, 2018, "Quantizing deep
convolutional networks for efficient inference", sections 2 and 3).
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import openvino as ov
    from openvino import Node, Output

# Model -> number of a convolution, from 0 -> its lowest and its highest output, found by `benchmarks.quantise`. These
# outputs become 8 bits, and so do the weights of the convolutions that read nothing else. The first three, and the last of
# each branch (9 and 12), stay as they are, because 8 bits cost much accuracy there and save little time. Outputs that are
# concatenated (4 and 10) share a range.
RANGES: dict[str, Mapping[int, tuple[float, float]]] = {
    "yolov3-tiny": {
        2: (-7.9, 32.4),
        3: (-4.0, 23.2),
        4: (-2.3, 27.0),
        5: (-1.9, 16.1),
        6: (-6.4, 49.4),
        7: (-0.8, 9.1),
        10: (-2.3, 27.0),
    }
}
# Of these, the outputs that stay as they are if the other steps compute in bf16, which rounds, too. Convolutions 3 and 7,
# which read them, then compute in bf16. Objects of f32 that are found at IoU > 0.8 and 0.9 on the pictures of
# `compute.measure`: 100 and 94.0 % with these outputs left, 98.2 and 91.6 % without. On the pictures for calibration:
# 96.3 and 90.4 %, against 96.7 and 89.4 %.
LEFT_BESIDE_BF16 = {"yolov3-tiny": {2, 6}}
CHOOSE = {"MaxPool", "Interpolate", "Concat"}  # steps that return some of the numbers they get


def ranges(name: str, beside: str) -> dict[int, tuple[float, float]]:
    """Return the `RANGES` to use for a model whose other steps compute in the precision `beside`.

    >>> list(ranges("yolov3-tiny", beside="bf16"))
    [3, 4, 5, 7, 10]
    """
    left = LEFT_BESIDE_BF16.get(name, set()) if beside == "bf16" else set()
    return {number: ends for number, ends in RANGES[name].items() if number not in left}


def quantise(network: "ov.Model", ranges: Mapping[int, tuple[float, float]]) -> None:
    """Add the FakeQuantize steps to an OpenVINO network of `darknet.to_openvino`. `ranges` are those of a model."""
    steps = network.get_ordered_ops()
    named = {step.get_friendly_name(): step for step in steps}
    for number, (low, high) in ranges.items():
        output = named[f"convolution {number}"].output(0)
        readers = output.get_target_inputs()
        step = (high - low) / 255
        zero = round(-low / step)  # 0 has to be one of the 256 numbers: the border of a picture is filled with it
        rounded = _rounded(output, np.array(-zero * step), np.array((255 - zero) * step), levels=256)
        for reader in readers:
            reader.replace_source_output(rounded)
    for step in steps:
        if step.get_type_name() == "Convolution" and _is_rounded(step.input_value(0).get_node()):
            filters = step.input_value(1)
            limit = np.abs(filters.get_node().data).max(axis=(1, 2, 3), keepdims=True)
            step.input(1).replace_source_output(_rounded(filters, -limit, limit, levels=255))  # odd: 0 is in the middle


def _is_rounded(step: "Node") -> bool:
    """Return whether a step returns only numbers that a FakeQuantize step has rounded."""
    kind = step.get_type_name()
    sources = step.input_values()[: None if kind == "Concat" else 1]  # the others are constants
    return kind == "FakeQuantize" or (kind in CHOOSE and all(_is_rounded(source.get_node()) for source in sources))


def _rounded(numbers: "Output", low: np.ndarray, high: np.ndarray, levels: int) -> "Output":
    from openvino import opset13

    ends = [opset13.constant(end.astype(np.float32)) for end in (low, high)]
    return opset13.fake_quantize(numbers, *ends, *ends, levels).output(0)
