"""Read a network from its OpenVINO file, find its parts, and compile it for the CPU."""

from pathlib import Path
from typing import TYPE_CHECKING

from labsupport.models import quantisation
from labsupport.models.processor import beside_int8

if TYPE_CHECKING:
    import openvino as ov


def read(core: "ov.Core", name: str, file: Path, precision: str) -> "ov.Model":
    """Return the network in `file`, the OpenVINO file of the model `name`, prepared for a precision."""
    network = core.read_model(file, config={"ENABLE_MMAP": False})  # if a mapped file is cut off, the process is killed
    if precision == "int8":
        quantisation.quantise(network, quantisation.ranges(name, beside_int8()))
    return network


def requests(
    core: "ov.Core", network: "ov.Model", precision: str, streams: int, threads: int | None = None, spare: int = 0
) -> "list[ov.InferRequest]":
    """Compile a network, and return OpenVINO's requests to run it: one for each stream, and `spare` more that wait until a
    stream is free. A stream computes one picture at a time. The streams use `threads` cores, one each by default."""
    options = {
        "INFERENCE_PRECISION_HINT": beside_int8() if precision == "int8" else precision,
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": threads or streams,
        "ENABLE_CPU_PINNING": False,  # several workers would all pin themselves to the same cores
    }
    compiled = core.compile_model(network, "CPU", options)
    return [compiled.create_infer_request() for _ in range(streams + spare)]


def parting(network: "ov.Model") -> "ov.Node":
    """Return the last step that all outputs of an OpenVINO network depend on."""
    shared = set.intersection(*map(_leading_to, network.get_results()))
    steps = [step for step in network.get_ordered_ops() if step.get_type_name() != "Constant"]
    return [step for step in steps if step.get_friendly_name() in shared][-1]


def _leading_to(result: "ov.Node") -> set[str]:
    """Return the names of all steps that a result depends on, including itself."""
    names: set[str] = set()
    ahead = [result]
    while ahead:
        step = ahead.pop()
        if step.get_friendly_name() not in names:
            names.add(step.get_friendly_name())
            ahead += [entry.get_source_output().get_node() for entry in step.inputs()]
    return names
