"""Read a model's network, find its parts, and compile it for the CPU with OpenVINO."""

import functools
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from labsupport import arguments
from labsupport.models import kept, quantisation, registry
from labsupport.models.processor import beside_int8, float_kernel

if TYPE_CHECKING:
    import openvino as ov


COMPILED = "compiled.blob"
LIMITS = ("OV_CPU_MAX_ISA", "ONEDNN_MAX_CPU_ISA", "ONEDNN_CPU_ISA_HINTS")  # variables that restrict the processor

logger = logging.getLogger(__name__)


def read(core: "ov.Core", name: str, precision: str) -> "ov.Model":
    """Return the network of the model `name`, prepared for a precision. Raises the errors of `registry.network`."""
    file = registry.network(name)
    network = core.read_model(file, config={"ENABLE_MMAP": False})  # if a mapped file is cut off, the process is killed
    if precision == "int8":
        quantisation.quantise(network, quantisation.ranges(name, beside_int8()))
    return network


class Kept(NamedTuple):
    """Hold an int8 network as OpenVINO exported it after it was compiled."""

    content: bytes
    folder: Path
    again: Callable[[], "ov.Model"]  # reads the network, which can be compiled anew


def ready(core: "ov.Core", name: str, precision: str) -> "ov.Model | Kept":
    """Return the network of a model for `requests`: as `read` does, or in int8 as OpenVINO exports it once it is compiled.

    OpenVINO takes three quarters of a second to compile an int8 network, and an eighth of that to import the result. So
    the result is kept in the cache, for this kind of processor, what the environment allows of it, and this version of
    OpenVINO. OpenVINO's own cache (`CACHE_DIR`) would not notice a damaged file, and answer wrongly.
    """
    if precision != "int8":
        return read(core, name, precision)
    import openvino as ov

    modules = ("darknet.py", "quantisation.py", "openvino_network.py")
    cpu = [core.get_property("CPU", "FULL_DEVICE_NAME"), *core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")]
    limits = [str(arguments.variable(one, str, "an instruction set")) for one in LIMITS]
    made_for = (registry.MODELS[name].weights.sha256, ov.get_version(), *cpu, *limits, float_kernel(), beside_int8())
    again = functools.partial(read, core, name, "int8")
    try:
        made = kept.folder(f"{name}-int8-{kept.key(*modules, *made_for)}", functools.partial(_export, core, again))
        return Kept((made / COMPILED).read_bytes(), made, again)
    except OSError as error:
        logger.info("the int8 network of %s %s: every start compiles it anew", name, error)
        return again()


def _export(core: "ov.Core", again: Callable[[], "ov.Model"], folder: Path) -> None:
    compiled = core.compile_model(again(), "CPU", _options("int8", 1, 1))
    (folder / COMPILED).write_bytes(compiled.export_model().getvalue())


def requests(
    core: "ov.Core",
    network: "ov.Model | Kept",
    precision: str,
    streams: int,
    threads: int | None = None,
    spare: int = 0,
) -> "list[ov.InferRequest]":
    """Compile or import a network, and return OpenVINO's requests to run it: one for each stream, and `spare` more.

    The spare ones wait until a stream is free. A stream computes one picture at a time. The streams use `threads` cores,
    by default one each.
    """
    options = _options(precision, streams, threads or streams)
    compiled = (
        _imported(core, network, options) if isinstance(network, Kept) else core.compile_model(network, "CPU", options)
    )
    return [compiled.create_infer_request() for _ in range(streams + spare)]


def _imported(core: "ov.Core", network: Kept, options: dict[str, str | int | bool]) -> "ov.CompiledModel":
    try:
        return core.import_model(io.BytesIO(network.content), "CPU", options)
    except RuntimeError as error:  # made for a processor with other instructions, which the folder's name did not tell
        logger.warning("OpenVINO does not take %s, so it compiles the network anew: %s", network.folder, error)
        return core.compile_model(network.again(), "CPU", options)


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
