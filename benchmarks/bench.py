"""`make bench`: the server beside what people would otherwise use, side by side in one run.

Machines are noisy, so servers take turns, round after round, and what is quoted are ratios within a round, of which the
median is printed. The clients run on the same machine and take their share of it from every server alike.
"""

import argparse
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import requests
from tqdm import tqdm

from benchmarks import load

ROOT = Path(__file__).resolve().parent.parent
CLIENTS = (1, 8, 32)
LAB = "the lab's handler"
OURS = "labsupport serve"
OURS_F32 = "labsupport serve, f32"
CEILING = "in-process ceiling"

SERVERS = {  # name -> command; {port} is filled in
    LAB: "{python} -m uvicorn benchmarks.lab_handler:app --port {port} --log-level warning",
    OURS: "{python} -m labsupport serve --port {port} --log sqlite:///{scratch}/bf16.db",
    OURS_F32: "{python} -m labsupport serve --port {port} --precision f32 --log sqlite:///{scratch}/f32.db",
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--seconds", type=float, default=8)
    options = arguments.parse_args()
    rows = measure(options.rounds, options.seconds)
    text = report(rows, options)
    print(text)
    (ROOT / "benchmarks" / "RESULTS.md").write_text(text)


def measure(rounds: int, seconds: float) -> dict[str, list[dict]]:
    """For each server, what each round measured."""
    rows = defaultdict(list)
    with tqdm(total=rounds * (len(SERVERS) + 1)) as bar:
        for _ in range(rounds):
            for name, command in SERVERS.items():
                bar.set_description(name)
                rows[name].append(measure_server(command, seconds))
                bar.update()
            bar.set_description(CEILING)
            rows[CEILING].append({"ceiling": ceiling(seconds)})
            bar.update()
    return rows


def measure_server(command: str, seconds: float) -> dict:
    """Start it, wait for its first answer, load it with 1, 8 and 32 clients, weigh it, stop it."""
    port, scratch = free_port(), os.environ.get("TMPDIR", "/tmp")
    words = command.format(python=sys.executable, port=port, scratch=scratch).split()
    started = time.perf_counter()
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            first_answer(port, process)
            row = {"start": time.perf_counter() - started}
            load.run(port, 2, 2)  # warm
            for clients in CLIENTS:
                row[clients] = load.run(port, clients, seconds)
            row["memory"] = memory(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
    return row


def ceiling(seconds: float) -> float:
    """Pictures a second without HTTP: decode, detect, draw, encode on every core, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.ceiling", str(seconds)]
    return float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((load.HOST, 0))
        return probe.getsockname()[1]


def first_answer(port: int, process: subprocess.Popen, limit: float = 180) -> None:
    until = time.monotonic() + limit
    picture = {"file": ("start.jpg", (ROOT / "images" / "fruits.jpg").read_bytes())}
    while time.monotonic() < until and process.poll() is None:
        try:
            if requests.post(f"http://{load.HOST}:{port}/predict?model=yolov3-tiny", files=picture, timeout=60).ok:
                return
        except requests.RequestException:
            time.sleep(0.05)
    raise RuntimeError(f"no answer from {' '.join(process.args)} within {limit} s")


def memory(pid: int) -> float:
    """MB that the process and its children hold: their proportional set sizes, so that shared pages count once."""
    children = {int(p.name): _parent(p) for p in Path("/proc").iterdir() if p.name.isdigit()}
    family = {pid}
    while grown := {child for child, parent in children.items() if parent in family} - family:
        family |= grown
    return sum(_pss(member) for member in family) / 1000


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _pss(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next(float(line.split()[1]) for line in lines if line.startswith("Pss:"))


def report(rows: dict[str, list[dict]], options) -> str:
    heading = ["answers/s", "p50 ms", "p99 ms", "failed"]
    lines = [
        "# Benchmarks",
        "",
        f"`make bench`, {options.rounds} rounds of {options.seconds:g} s a point, servers in turn; medians over the rounds.",
        f"{os.cpu_count()} cores, {cpu()}, Python {platform.python_version()}. The clients run on the same cores.",
        "",
        "| server | clients | " + " | ".join(heading) + " | x the lab's answers/s | MB | first answer s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, measured in rows.items():
        if name == CEILING:
            continue
        for clients in CLIENTS:
            points = [row[clients] for row in measured]
            ratios = [row[clients].rate / lab[clients].rate for row, lab in zip(measured, rows[LAB], strict=True)]
            cells = [
                f"{middle([point.rate for point in points]):.1f}",
                f"{middle([point.percentile(50) for point in points]):.0f}",
                f"{middle([point.percentile(99) for point in points]):.0f}",
                f"{sum(point.failed for point in points)}",
                f"{middle(ratios):.1f}",
                f"{middle([row['memory'] for row in measured]):.0f}",
                f"{middle([row['start'] for row in measured]):.1f}",
            ]
            lines.append(f"| {name} | {clients} | " + " | ".join(cells) + " |")
    shares = [row[8].rate / top["ceiling"] for row, top in zip(rows[OURS], rows[CEILING], strict=True)]
    top = middle([row["ceiling"] for row in rows[CEILING]])
    lines += [
        "",
        f"Without HTTP (decode, detect, draw, encode on {os.cpu_count()} threads) this machine does {top:.0f} pictures/s; "
        f"{middle(shares):.0%} of that survives HTTP at 8 clients, with checks, log and the clients' own share taken off.",
        "",
    ]
    return "\n".join(lines)


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
