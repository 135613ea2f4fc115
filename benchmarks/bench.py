"""`make bench`: the server beside what people would otherwise use, side by side in one run.

Machines are noisy, so servers take turns, round after round, and what is quoted are ratios within a round, of which the
median is printed. The clients run on the same machine and take their share of it from every server alike.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from tqdm import tqdm

from benchmarks import ahead, batch, capacity, drift, load, log, looks, runtimes, scale, shadow
from benchmarks.processes import PEERS, ROOT, memory, started
from labsupport import paths
from labsupport.models import RUNTIMES, best_precision, float_kernel

CLIENTS = (1, 8, 32)
LAB = "the lab's handler"
OURS = "labsupport serve"
CEILING = "in-process ceiling"

SERVERS = {  # name -> the command, but for its port
    LAB: [sys.executable, "-m", "uvicorn", "benchmarks.lab_handler:app", "--log-level", "warning", "--port"],
    OURS: [sys.executable, "-m", "labsupport", "serve", "--port"],
    "labsupport serve, f32": [sys.executable, "-m", "labsupport", "serve", "--precision", "f32", "--port"],
    "BentoML": [PEERS, "-m", "bentoml", "serve", "benchmarks.peers.bentoml_service:Service", "--port"],
    "LitServe": [PEERS, "-m", "benchmarks.peers.litserve_server"],
    "Ray Serve": [PEERS, "-m", "benchmarks.peers.ray_server"],
}


RESULTS = ROOT / "benchmarks" / "RESULTS.md"
HOLDING = ("ONEDNN_MAX_CPU_ISA", "OV_CPU_MAX_ISA")  # variables that keep OpenVINO from newer parts of a processor
KINDS = ("AMX", "AVX-512", "AVX2", "other")  # of processors; each has its own tables
ABOUT = """The results of `make bench` on each kind of processor that it ran on: AMX (bf16), AVX-512 (VNNI, no AMX), AVX2.

"""
SECTIONS = {  # heading -> how its lines are measured
    "Servers": lambda rounds, seconds: servers(measure(rounds, seconds)),
    "Peers": lambda rounds, seconds: ahead.lines(4 * rounds, seconds / 4),
    "Runtimes": lambda rounds, seconds: compared(measure_runtimes()),
    "Shadow": lambda rounds, seconds: shadow.lines(rounds, seconds / 2),
    "Batch": lambda rounds, seconds: batch.lines(rounds, seconds),
    "Capacity": lambda rounds, seconds: capacity.lines(rounds, seconds),
    "Scale": lambda rounds, seconds: scale.lines(rounds, seconds, best_precision()),
    "Log": lambda rounds, seconds: log.lines(),
    "Drift": lambda rounds, seconds: drift.lines(),
    "Looks": lambda rounds, seconds: looks.lines(),
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--seconds", type=float, default=8)
    arguments.add_argument("--only", choices=SECTIONS, nargs="+", help="measure these anew, and keep the other results")
    options = arguments.parse_args()
    for name in options.only or SECTIONS:
        about = (
            f"{options.rounds} rounds of {options.seconds:g} s a point, in turn; medians over the rounds. {machine()}"
        )
        text = "\n".join([about, *SECTIONS[name](options.rounds, options.seconds)]) + "\n"
        print(f"## {name}\n\n{text}")
        keep(name, text)


def keep(name: str, text: str) -> None:
    """Write a section for this kind of processor into the results. The other sections do not change."""
    before = RESULTS.read_text() if RESULTS.exists() else ""
    sections = dict(re.findall(r"^## (.+)\n\n((?:(?!^## ).*\n)*)", before, re.MULTILINE))
    sections[f"{name} ({kind(float_kernel())})"] = text
    headings = [f"{name} ({kind})" for name in SECTIONS for kind in KINDS]
    known = [f"## {heading}\n\n{sections[heading].strip()}\n" for heading in headings if heading in sections]
    with paths.whole(RESULTS) as partial:
        partial.write_text("# Benchmarks\n\n" + ABOUT + "\n".join(known))


def kind(kernel: str) -> str:
    """Return the kind of processor on which OpenVINO computes with this kernel (`models.float_kernel`).

    >>> kind("brgconv_avx512_amx_bf16"), kind("brgconv_avx2_f32")
    ('AMX', 'AVX2')
    """
    return next((kind for kind in KINDS if kind.lower().replace("-", "") in kernel), KINDS[-1])


def machine() -> str:
    held = [f"{name}={os.environ[name]}" for name in HOLDING if os.environ.get(name)]
    limits = f", OpenVINO held back by {' and '.join(held)}" if held else ""
    python = f"Python {platform.python_version()}"
    return f"{os.cpu_count()} cores, {cpu()}{limits}, {python}; what asks runs on the same cores."


def measure(rounds: int, seconds: float) -> dict[str, list[dict]]:
    """For each server, and for the ceiling, what each round measured."""
    rows = defaultdict(list)
    with tqdm(total=rounds * (len(SERVERS) + 1)) as bar:
        for _ in range(rounds):
            for name, command in SERVERS.items():
                bar.set_description(name)
                rows[name].append(measure_server(command, seconds))
                bar.update()
            bar.set_description(CEILING)
            rows[CEILING].append(measure_ceiling(seconds))
            bar.update()
    return rows


def measure_server(command: list, seconds: float) -> dict:
    """Start it, wait for its first answer, load it with 1, 8 and 32 clients, weigh it, stop it.

    It writes what it writes into a folder of its own.
    """
    with started(command) as (port, process, seconds_to_start):
        row: dict = {"start": seconds_to_start}
        load.run(port, 2, 2)  # warm
        for clients in CLIENTS:
            row[clients] = load.run(port, clients, seconds)
        row["memory"] = memory(process)
    return row


def measure_ceiling(seconds: float) -> dict:
    """Pictures a second without HTTP, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.ceiling", str(seconds)]
    return {"rate": float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)}


def measure_runtimes() -> list[dict]:
    """One row for each runtime and precision; bf16 only where the CPU computes in it."""
    kinds = [(runtime, precision) for runtime, precisions in RUNTIMES.items() for precision in precisions]
    rows = []
    for kind in tqdm([kind for kind in kinds if kind[1] != "bf16" or "bf16" in float_kernel()], desc="runtimes"):
        command = [sys.executable, "-m", "benchmarks.runtimes", *kind]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return rows


def servers(measured: dict[str, list[dict]]) -> list[str]:
    return [*served(measured), *share(measured)]


def served(measured: dict[str, list[dict]]) -> list[str]:
    """The table of servers."""
    lines = [
        "",
        "A good answer is, to the byte, the picture that a lone client gets; wrong: another picture; failed: no picture. "
        "The last ratio counts the lab's answers with status 200, wrong ones too.",
        "",
        "| server | clients | good answers/s | p50 ms | p99 ms | wrong | failed | x the lab's | MB | first answer s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in SERVERS:
        rounds = measured[name]
        for clients in CLIENTS:
            points = [row[clients] for row in rounds]
            lab = [row[clients].any_rate for row in measured[LAB]]
            ratio = middle([point.any_rate / base for point, base in zip(points, lab, strict=True)])
            speed = [f"{middle([point.rate for point in points]):.1f}"]
            speed += [f"{middle([point.percentile(share) for point in points]):.0f}" for share in (50, 99)]
            bad = [sum(point.wrong for point in points), sum(point.failed + point.refused for point in points)]
            weight = f"{middle([row['memory'] for row in rounds]):.0f} | {middle([row['start'] for row in rounds]):.1f}"
            cells = [name, clients, *speed, *bad, f"{ratio:.1f}", weight]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def share(measured: dict[str, list[dict]]) -> list[str]:
    """Return the lines that say which share of the ceiling survives HTTP."""
    shares = [row[8].rate / top["rate"] for row, top in zip(measured[OURS], measured[CEILING], strict=True)]
    top = middle([row["rate"] for row in measured[CEILING]])
    return [
        "",
        f"Without HTTP (decode, detect, draw, encode on {os.cpu_count()} threads) this machine does {top:.0f} pictures/s; "
        f"{middle(shares):.0%} of that survives HTTP at 8 clients, with checks, log and the clients' own share taken off.",
    ]


def compared(rows: list[dict]) -> list[str]:
    """The table of runtimes."""
    reference = next(row["answers"] for row in rows if row["version"].endswith("openvino-f32"))
    objects = sum(map(len, reference))
    lines = [
        "",
        f"The runtimes on {len(reference)} pictures (`images/`, every second street frame), in which f32 finds {objects} "
        "objects at confidence 0.5:",
        "",
        "| runtime | ms, one core | ms, every core | MB | MB on disk | found of f32, IoU > 0.8 | found, IoU > 0.9 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        shares = [f"{runtimes.found(row['answers'], reference, bar):.1%}" for bar in runtimes.BARS]
        numbers = f"{row['one']:.1f} | {row['all']:.1f} | {row['memory']:.0f} | {row['disk']:.1f}"
        lines.append(f"| {row['version'].partition('/')[2]} | {numbers} | {' | '.join(shares)} |")
    return lines


def middle(numbers: list[float]) -> float:
    return statistics.median(numbers)


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    flags = next(line for line in lines if line.startswith("flags"))
    extras = [name for name in ("amx_bf16", "avx512_bf16", "avx512_vnni") if f" {name} " in flags + " "]
    return f"{model} ({', '.join(extras) or 'no bf16'})"


if __name__ == "__main__":
    main()
