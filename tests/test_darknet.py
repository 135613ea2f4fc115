"""A Darknet network becomes the same network elsewhere: OpenCV's own reading of the two files is the oracle."""

import json
import struct
import subprocess
import sys
from typing import NamedTuple

import cv2
import numpy as np
import pytest

from labsupport.models import darknet
from labsupport.models.runtimes import made

ANCHORS = "anchors = 10,14, 23,27, 37,58, 81,82, 135,169, 344,319"


class Conv(NamedTuple):
    channels: int
    filters: int
    size: int
    stride: int = 1
    normalised: bool = True
    activation: str = "leaky"

    def section(self) -> str:
        normalise = "batch_normalize=1\n" if self.normalised else ""
        sizes = f"filters={self.filters}\nsize={self.size}\nstride={self.stride}\npad=1\nactivation={self.activation}"
        return f"[convolutional]\n{normalise}{sizes}"

    def weights(self, random: np.random.Generator) -> bytes:
        bias = random.normal(size=self.filters)
        variance = 10 ** random.uniform(-4, 1, self.filters)  # small ones too: those show the epsilon
        gamma, mean = random.normal(1, 0.3, self.filters) * variance**0.5, random.normal(0, 0.3, self.filters)
        norm = [gamma, mean, variance]
        kernel = (
            random.normal(size=(self.filters, self.channels, self.size, self.size)) / self.size / self.channels**0.5
        )
        numbers = [bias, *(norm if self.normalised else ()), kernel]
        return b"".join(array.astype("<f4").tobytes() for array in numbers)


# every kind of layer that yolov3 and yolov3-tiny have, on few channels
LAYERS = [
    "[net]\nwidth=416\nheight=416\nchannels=3",
    Conv(3, 4, size=3),
    Conv(4, 8, size=3, stride=2),  # 416 -> 208
    Conv(8, 4, size=1),
    Conv(4, 8, size=3, activation="linear"),
    "[shortcut]\nfrom=-3\nactivation=linear",
    "[maxpool]\nsize=2\nstride=2",
    Conv(8, 8, size=3, stride=2),  # 104 -> 52
    "[maxpool]\nsize = 2\nstride = 2",
    Conv(8, 8, size=3),  # layer 8, 26 x 26
    "[maxpool]\nsize=2\nstride=2",
    Conv(8, 16, size=3),
    "[maxpool]\nsize=2\nstride=1  # 13 x 13, and so it stays",
    Conv(16, 16, size=1),
    Conv(16, 21, size=1, normalised=False, activation="linear"),  # layer 13
    f"[yolo]\nmask = 3,4,5\n{ANCHORS}\nclasses=2\nnum=6",
    "[route]\nlayers = -3",
    Conv(16, 4, size=1),
    "[upsample]\nstride=2",
    "[route]\nlayers = -1, 8",
    Conv(12, 8, size=3),
    Conv(8, 21, size=1, normalised=False, activation="linear"),  # layer 20
    f"[yolo]\nmask = 0,1,2\n{ANCHORS}\nclasses=2\nnum=6",
]
CFG = "\n\n".join(layer if isinstance(layer, str) else layer.section() for layer in LAYERS)
RANDOM = np.random.default_rng(0)
CONVOLUTIONS = [layer for layer in LAYERS if isinstance(layer, Conv)]
WEIGHTS = struct.pack("<3iq", 0, 2, 0, 32_013_312) + b"".join(layer.weights(RANDOM) for layer in CONVOLUTIONS)
PICTURE = RANDOM.integers(0, 256, (416, 416, 3), np.uint8)  # BGR

# in a process of its own: TensorFlow is slow, and the tests shall not depend on what it does to theirs
WORKSHOP = """if True:
    import json, sys
    from pathlib import Path
    import numpy as np
    from labsupport.models import darknet

    folder = Path(sys.argv[1])
    cfg, weights = (folder / "net.cfg").read_text(), (folder / "net.weights").read_bytes()
    network = darknet.to_keras(cfg, weights)
    picture = np.load(folder / "picture.npy")
    heads = network(picture[None, :, :, ::-1].astype("float32") / 255)
    np.savez(folder / "keras.npz", *[np.asarray(head) for head in heads])
    darknet.to_openvino(cfg, weights, folder)
    darknet.to_litert(cfg, weights, folder)

    def refusal(cfg, weights):
        said = set()
        for convert in (darknet.to_keras, lambda *files: darknet.to_openvino(*files, folder / "never")):
            try:
                convert(cfg, weights)
            except ValueError as error:
                said.add(str(error))
        assert len(said) == 1, said  # both refuse, in the same words
        return said.pop()

    print(json.dumps({
        "one number short": refusal(cfg, weights[:-4]),
        "one byte short": refusal(cfg, weights[:-1]),
        "half of it": refusal(cfg, weights[: len(weights) // 8 * 4]),
        "half a header": refusal(cfg, weights[:10]),
        "one number more": refusal(cfg, weights + bytes(4)),
        "a layer of another network": refusal(cfg + "\\n[lstm]", weights),
    }))
"""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with the two files, what Keras makes of them, and OpenVINO's network; and what was refused."""
    folder = tmp_path_factory.mktemp("network")
    (folder / "net.cfg").write_text(CFG)
    (folder / "net.weights").write_bytes(WEIGHTS)
    np.save(folder / "picture.npy", PICTURE)
    command = [sys.executable, "-W", "ignore", "-c", WORKSHOP, folder]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def expected(workshop):
    """What comes out of the convolution before each [yolo], by OpenCV: (1, rows, columns, channels)."""
    folder, _ = workshop
    net = cv2.dnn.readNetFromDarknet(str(folder / "net.cfg"), str(folder / "net.weights"))
    net.setInput(cv2.dnn.blobFromImage(PICTURE, 1 / 255, swapRB=True))
    heads = [head.transpose(0, 2, 3, 1) for head in net.forward(["conv_13", "conv_20"])]
    assert [head.shape for head in heads] == [(1, 13, 13, 21), (1, 26, 26, 21)]
    assert all(0.5 < head.std() < 50 for head in heads)  # an oracle that says something
    return heads


def assert_same(heads, expected):
    for head, oracle in zip(heads, expected, strict=True):
        np.testing.assert_allclose(head, oracle, rtol=0, atol=1e-4)


def test_keras_computes_what_opencv_computes(workshop, expected):
    heads = np.load(workshop[0] / "keras.npz")
    assert_same([heads[name] for name in sorted(heads)], expected)


def test_openvino_computes_the_same_from_a_picture_as_opencv_holds_it(workshop, expected):
    def compiled():
        import openvino as ov

        return ov.Core().compile_model(workshop[0] / "openvino.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    answer = made(compiled, PICTURE[np.newaxis])(PICTURE[np.newaxis])
    assert_same([answer[index] for index in range(len(answer))], expected)


def test_litert_computes_nearly_the_same_with_weights_of_a_byte_each(workshop, expected):
    from ai_edge_litert.interpreter import Interpreter

    small = Interpreter(str(workshop[0] / "litert.tflite"))
    small.allocate_tensors()
    small.set_tensor(small.get_input_details()[0]["index"], PICTURE[np.newaxis].astype(np.float32))
    small.invoke()
    heads = [small.get_tensor(output["index"]) for output in small.get_output_details()]
    for head, oracle in zip(sorted(heads, key=np.size), expected, strict=True):
        assert 1e-6 < np.abs(head - oracle).mean() < 0.03 * oracle.std()  # 8 bits are not exact, and not far off


@pytest.mark.parametrize(
    ("what", "why"),
    {
        "one number short": "shorter than the cfg",
        "one byte short": "multiple of element size",
        "half of it": "shorter than the cfg",
        "half a header": "offset",
        "one number more": "1 numbers more than the cfg",
        "a layer of another network": "only the layers of YOLOv3",
    }.items(),
)
def test_files_that_do_not_belong_together_are_refused(workshop, what, why):
    assert why in workshop[1][what]


def test_each_output_has_the_anchors_of_its_mask():
    large, small = darknet.anchors(CFG)
    assert large.tolist() == [[81, 82], [135, 169], [344, 319]]
    assert small.tolist() == [[10, 14], [23, 27], [37, 58]]


def test_comments_spaces_and_empty_lines_in_a_cfg_mean_nothing():
    assert darknet.parse("# a\n[net] # b\n\n  width =  416  # c\n") == [("net", {"width": "416"})]
