"""Convert the files of a Darknet model for one runtime. `models.network` runs it in a process of its own."""

import sys
from pathlib import Path

from labsupport.models import darknet


def main() -> None:
    """Convert the files on the command line: CFG WEIGHTS RUNTIME FOLDER."""
    cfg_file, weights_file, runtime, out = sys.argv[1:]
    if runtime == "onnx":
        from labsupport.models.onnx_network import to_onnx as write
    else:
        write = {"openvino": darknet.to_openvino, "litert": darknet.to_litert}[runtime]
    write(Path(cfg_file).read_text(), Path(weights_file).read_bytes(), Path(out))
