"""Read a model's network, find its parts, and compile it for the CPU with OpenVINO."""

import functools
import io
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from labsupport.models import kept, quantisation, registry
from labsupport.models.processor import beside_int8, float_kernel

if TYPE_CHECKING:
    import openvino as ov


COMPILED = "compiled.blob"

logger = logging.getLogger(__name__)


def read(core: "ov.Core", name: str, precision: str) -> "ov.Model":
    """Return the network of the model `name`, prepared for a precision. Raises the errors of `registry.network`."""
    file = registry.network(name)
    network = core.read_model(file, config={"ENABLE_MMAP": False})  # if a mapped file is cut off, the process is killed
    if precision == "int8":
        quantisation.quantise(network, quantisation.ranges(name, beside_int8()))
    return network


def quick(core: "ov.Core", name: str, precision: str) -> "ov.Model | bytes":
    """Return the network of a model for `requests`: as `read` does, or in int8 as OpenVINO exports it once it is compiled.

    OpenVINO takes three quarters of a second to compile an int8 network, and an eighth of that to import the result. So
    the result is kept in the cache, for this kind of processor and this version of OpenVINO.
    """
    if precision != "int8":
        return read(core, name, precision)
    import openvino as ov

    weights, cpu = registry.MODELS[name].weights.sha256, core.get_property("CPU", "FULL_DEVICE_NAME")
    modules = ("darknet.py", "quantisation.py", "openvino_network.py")
    key = kept.key(*modules, weights, ov.get_version(), cpu, float_kernel())
    try:
        made = kept.folder(f"{name}-int8-{key}", functools.partial(_export, core, name))
    except OSError as error:
        logger.info("the int8 network of %s %s: every start compiles it anew", name, error)
        return read(core, name, precision)
    return (made / COMPILED).read_bytes()


def _export(core: "ov.Core", name: str, folder: Path) -> None:
    compiled = core.compile_model(read(core, name, "int8"), "CPU", _options("int8", 1, 1))
    (folder / COMPILED).write_bytes(compiled.export_model().getvalue())


def requests(
    core: "ov.Core",
    network: "ov.Model | bytes",
    precision: str,
    streams: int,
    threads: int | None = None,
    spare: int = 0,
) -> "list[ov.InferRequest]":
    """Compile or import a network, and return OpenVINO's requests to run it: one for each stream, and `spare` more.

    Those wait until a stream is free. A stream computes one picture at a time. The streams use `threads` cores, by default
    one each.
    """
    options = _options(precision, streams, threads or streams)
    if isinstance(network, bytes):
        compiled = core.import_model(io.BytesIO(network), "CPU", options)
    else:
        compiled = core.compile_model(network, "CPU", options)
    return [compiled.create_infer_request() for _ in range(streams + spare)]


def _options(precision: str, streams: int, threads: int) -> dict[str, str | int | bool]:
    return {
        "INFERENCE_PRECISION_HINT": beside_int8() if precision == "int8" else precision,
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # several workers would all pin themselves to the same cores
    }


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
