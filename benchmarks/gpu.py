"""Measure the detector on an NVIDIA GPU with ONNX Runtime: latency, throughput by batch size, memory, price, agreement.

`python -m benchmarks.gpu --dollars-per-hour 0.526` on a machine with a GPU, onnx and onnxruntime-gpu; `--device cpu` tries
the same on the CPU. **Not measured here**: no machine with a GPU was at hand, so RESULTS.md has no such table.
"""

import argparse
import subprocess

import numpy as np

from labsupport import compute, models
from labsupport.compute import Machine
from labsupport.detection import Detector
from labsupport.models import onnx_network

BATCHES = (1, 2, 4, 8, 16, 32)
SHAPE = (416, 416, 3)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--device", choices=onnx_network.DEVICES, default="cuda")
    arguments.add_argument("--dollars-per-hour", type=float, default=0.526, help="a g4dn.xlarge of 2025, us-east-1")
    options = arguments.parse_args()
    lines = [about(options.device), "", *table(options.device, options.dollars_per_hour), "", agreement(options.device)]
    print("\n".join(lines))


def table(device: str, dollars: float) -> list[str]:
    """Return the lines of a table: a row for each batch size, with 50 runs after a first one."""
    session = onnx_network.session(models.network("yolov3-tiny", "onnx"), device)
    machine = Machine(device, cores=1, dollars_per_hour=dollars)
    lines = ["| pictures at once | ms, p50 | ms, p95 | pictures/s | $ a million, half busy |", "|---|---|---|---|---|"]
    rng = np.random.default_rng(0)
    for batch in BATCHES:
        pictures = rng.integers(0, 256, (batch, *SHAPE), np.uint8)
        seconds = compute.times(lambda pictures=pictures: session.run(None, {"pictures": pictures}), repeats=50)
        rate = batch / np.median(seconds)
        p50, p95 = np.quantile(seconds, [0.5, 0.95]) * 1000
        lines.append(f"| {batch} | {p50:.1f} | {p95:.1f} | {rate:.0f} | {machine.dollars_per_million(rate):.2f} |")
    return [*lines, "", f"memory of the GPU in use: {memory() if device == 'cuda' else 'none'}"]


def agreement(device: str) -> str:
    """Return how many objects of OpenVINO in f32 this device finds, too."""
    shown = compute.pictures()
    detectors = Detector.load(runtime="onnx", device=device), Detector.load(precision="f32")
    answers = [
        [[(d.label, d.confidence, *d.box) for d in one.detect(picture)] for picture in shown] for one in detectors
    ]
    shares = [f"{compute.found(*answers, overlap):.1%} at IoU > {overlap}" for overlap in (0.8, 0.9)]
    return f"found of the {sum(map(len, answers[1]))} objects of openvino-f32: {' and '.join(shares)}"


def about(device: str) -> str:
    return query("name,driver_version,memory.total") if device == "cuda" else "the CPU"


def memory() -> str:
    return query("memory.used")


def query(fields: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
