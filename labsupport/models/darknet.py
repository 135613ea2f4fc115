"""Convert Darknet's two files, `.cfg` and `.weights`, to a network for OpenVINO, or by way of Keras to one for LiteRT.

`models.network` converts each model once, and keeps the result. It does so in a separate process, because TensorFlow, which
LiteRT's network needs, takes seconds to import and hundreds of megabytes of memory.

The format is Darknet's (Redmon and Farhadi, "YOLOv3: An Incremental Improvement", 2018): the cfg lists the layers in order;
the weights follow in the same order, raw 32-bit floats behind a header of 20 bytes.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras
    from openvino import Node

SIZE = 416  # every model of the lab gets pictures of 416 x 416, also if its cfg has another size
HEADER_BYTES = 20  # three int32 for the version, one int64 for the pictures seen in training
FILES = {
    "openvino": "openvino.xml",
    "litert": "litert.tflite",
    "onnx": "onnx.onnx",
}  # runtime -> the file written for it
Step = Callable[..., Any]  # adds one kind of layer, in one library
EPSILON = 1e-6  # Darknet's batch-norm epsilon; the default of Keras is 1e-3


def parse(cfg: str) -> list[tuple[str, dict[str, str]]]:
    """Return the sections of a Darknet cfg, in order, each with its options.

    >>> parse("[net]\\nwidth=416\\n# a comment\\n[maxpool]\\nsize = 2")
    [('net', {'width': '416'}), ('maxpool', {'size': '2'})]
    """
    sections: list[tuple[str, dict[str, str]]] = []
    for line in cfg.splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("["):
            sections.append((line.strip("[]"), {}))
        elif line:
            key, value = line.split("=")
            sections[-1][1][key.strip()] = value.strip()
    return sections


def anchors(cfg: str) -> list[np.ndarray]:
    """Return the anchor boxes of each output, in order: arrays (anchors, 2), width and height in pixels of the
    input.

    >>> tiny = "[yolo]\\nmask = 1,2\\nanchors = 10,14, 23,27, 37,58"
    >>> anchors(tiny)[0].tolist()
    [[23.0, 27.0], [37.0, 58.0]]
    """
    heads = [options for kind, options in parse(cfg) if kind == "yolo"]
    return [np.array(_numbers(head["anchors"]), np.float32).reshape(-1, 2)[_numbers(head["mask"])] for head in heads]


def to_keras(cfg: str, weights: bytes) -> "keras.Model":
    """Return the Keras network of a Darknet model, with its trained weights. Fold batch normalisation into convolutions.

    Input: (1, 416, 416, 3), RGB, 0 to 1. Outputs, one for each `[yolo]` section: (1, rows, columns, 3 * 85), the raw
    numbers that `runtimes` converts to boxes. Raises ValueError if the two files do not belong together.
    """
    import keras

    image = keras.Input((SIZE, SIZE, 3), batch_size=1, name="image")
    steps: dict[str, Step] = {
        "convolutional": _keras_convolution,
        "maxpool": lambda x, size, stride: keras.layers.MaxPool2D(size, stride, "same")(x),
        "upsample": lambda x, stride: keras.layers.UpSampling2D(stride)(x),
        "shortcut": lambda x, y: keras.layers.Add()([x, y]),
        "route": lambda sources: keras.layers.Concatenate()(sources),
    }
    return keras.Model(image, build(cfg, weights, image, steps))


def to_openvino(cfg: str, weights: bytes, folder: Path) -> None:
    """Write `openvino.xml` and `openvino.bin` into `folder`: the network for pictures in the format of OpenCV.

    Input: (1, 416, 416, 3), uint8, BGR. The order of the colours and the scale are part of the network. The outputs are
    those of `to_keras`. Raises ValueError if the two files do not belong together.
    """
    import openvino as ov
    from openvino import opset1, opset13
    from openvino.preprocess import ColorFormat, PrePostProcessor

    def upsample(x: "Node", stride: int) -> "Node":
        grid = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}  # repeats each cell
        return opset13.interpolate(x, np.full(2, stride, np.float32), "nearest", "scales", axes=[2, 3], **grid)

    image = opset13.parameter([1, 3, SIZE, SIZE], np.float32, name="image")
    steps: dict[str, Step] = {
        "convolutional": functools.partial(_openvino_convolution, itertools.count()),
        "maxpool": lambda x, size, stride: opset1.max_pool(
            x, [stride] * 2, [0, 0], [0, 0], [size] * 2, auto_pad="same_upper"
        ),
        "upsample": upsample,
        "shortcut": opset13.add,
        "route": lambda sources: opset13.concat(sources, 1),
    }
    last = opset13.constant(np.array([0, 2, 3, 1]))  # channels last, as Keras has them
    heads = [opset13.transpose(head, last) for head in build(cfg, weights, image, steps)]
    made = PrePostProcessor(ov.Model(heads, [image], "darknet"))
    picture = made.input().tensor()
    picture.set_element_type(ov.Type.u8).set_color_format(ColorFormat.BGR).set_layout(ov.Layout("NHWC"))
    made.input().model().set_layout(ov.Layout("NCHW"))
    made.input().preprocess().convert_element_type(ov.Type.f32).convert_color(ColorFormat.RGB).scale(255.0)
    ov.save_model(made.build(), folder / FILES["openvino"], compress_to_fp16=False)


def build(cfg: str, weights: bytes, image: Any, steps: dict[str, Step]) -> list[Any]:
    """Apply the steps of a library, layer by layer, and return the inputs of the `[yolo]` sections."""
    x, layers, heads, floats = image, list[Any](), list[Any](), Floats(weights)
    for kind, options in parse(cfg)[1:]:  # after [net], which is only for training
        if kind == "convolutional":
            x = steps[kind](x, options, floats)
        elif kind in ("maxpool", "upsample"):
            x = steps[kind](x, **{name: int(options[name]) for name in ("size", "stride") if name in options})
        elif kind == "shortcut":
            x = steps[kind](x, layers[int(options["from"])])
        elif kind == "route":
            sources = [layers[i] for i in _numbers(options["layers"])]
            x = steps[kind](sources) if len(sources) > 1 else sources[0]
        elif kind == "yolo":
            heads.append(x)
        else:
            raise ValueError(f"a [{kind}] section: only the layers of YOLOv3 are known here")
        layers.append(x)
    floats.finish()
    return heads


def to_litert(cfg: str, weights: bytes, folder: Path) -> None:
    """Write `litert.tflite` into `folder`: the same network with its weights in 8 bits, a quarter of the size.

    Input: (1, 416, 416, 3), float32, BGR, 0 to 255. The first convolution contains order and scale.
    """
    import tensorflow as tf

    network = to_keras(cfg, weights)
    first = next(layer for layer in network.layers if layer.weights)
    kernel, bias = first.get_weights()
    first.set_weights([kernel[:, :, ::-1] / 255, bias])
    converter = tf.lite.TFLiteConverter.from_keras_model(network)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]  # dynamic range: weights in int8, one scale for each filter
    (folder / FILES["litert"]).write_bytes(converter.convert())


class Floats:
    """Read the numbers of a weights file, one array after another."""

    def __init__(self, weights: bytes) -> None:
        self.left = np.frombuffer(weights, np.float32, offset=HEADER_BYTES)

    def take(self, *shape: int) -> np.ndarray:
        count = int(np.prod(shape))
        if count > self.left.size:
            raise ValueError("the weights file is shorter than the cfg asks for")
        taken, self.left = self.left[:count], self.left[count:]
        return taken.reshape(shape)

    def finish(self) -> None:
        if self.left.size:
            raise ValueError(f"the weights file holds {self.left.size} numbers more than the cfg asks for")


def folded(channels: int, options: dict[str, str], floats: Floats) -> tuple[np.ndarray, np.ndarray]:
    """Return a convolution's kernel (filters, channels, size, size) and bias, with its batch normalisation in them.

    The file holds bias, batch norm and kernel in this order.
    """
    filters, size = int(options["filters"]), int(options["size"])
    bias, scale = floats.take(filters), np.ones(filters, np.float32)
    if options.get("batch_normalize") == "1":
        gamma, mean, variance = floats.take(3, filters)
        scale = gamma / np.sqrt(variance + EPSILON)
        bias = bias - mean * scale
    return floats.take(filters, channels, size, size) * scale[:, None, None, None], bias


def _openvino_convolution(numbers: Iterator[int], x: "Node", options: dict[str, str], floats: Floats) -> "Node":
    from openvino import opset13

    stride, pad = [int(options["stride"])] * 2, [int(options["size"]) // 2] * 2
    kernel, bias = folded(x.get_output_shape(0)[1], options, floats)
    x = opset13.convolution(x, opset13.constant(kernel), stride, pad, pad, [1, 1])
    x = opset13.add(x, opset13.constant(bias[None, :, None, None]))
    if options["activation"] == "leaky":
        x = opset13.prelu(x, opset13.constant(np.array([0.1], np.float32)))
    x.set_friendly_name(f"convolution {next(numbers)}")  # `quantisation` asks for it
    return x


def _keras_convolution(x: "keras.KerasTensor", options: dict[str, str], floats: Floats) -> "keras.KerasTensor":
    import keras

    filters, size, stride = (int(options[key]) for key in ("filters", "size", "stride"))
    kernel, bias = folded(x.shape[-1], options, floats)
    if stride > 1:  # Darknet pads both sides; "same" would pad only the right and bottom side
        x = keras.layers.ZeroPadding2D(size // 2)(x)
    layer = keras.layers.Conv2D(filters, size, stride, "same" if stride == 1 else "valid")
    x = layer(x)
    layer.set_weights([kernel.transpose(2, 3, 1, 0), bias])
    return keras.layers.LeakyReLU(negative_slope=0.1)(x) if options["activation"] == "leaky" else x


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]
