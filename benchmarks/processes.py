"""Start a server in a process of its own, wait for its first answer, weigh it, and stop it."""

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import requests

from benchmarks import load
from labsupport import loopback

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".venv-bench" / "bin" / "python"
SILENT = {"BENTOML_DO_NOT_TRACK": "True", "RAY_USAGE_STATS_ENABLED": "0", "DO_NOT_TRACK": "1"}  # nobody reports home


@contextlib.contextmanager
def started(command: list, path: str = load.PREDICT) -> Iterator[tuple[int, psutil.Popen, float]]:
    """A server in an empty lab that has given its first answer: its port, its process, and the seconds until then.

    `command` lacks only the port. The server ends with the block.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as scratch, open(Path(scratch, "console"), "wb") as console:
        for folder in ("images", "notebooks", "images_uploaded"):
            Path(scratch, folder).mkdir()
        environment = {**os.environ, **SILENT, "LAB_ROOT": scratch}
        since = time.perf_counter()
        process = psutil.Popen([*command, str(port)], cwd=ROOT, env=environment, stdout=console, stderr=console)
        try:
            first_answer(port, process, path)
            yield port, process, time.perf_counter() - since
        finally:
            stop(process)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((load.HOST, 0))
        return probe.getsockname()[1]


def first_answer(port: int, process: psutil.Popen, path: str, limit: float = 180) -> None:
    loopback.ask_directly()
    until = time.monotonic() + limit
    picture = {"file": ("start.jpg", (ROOT / "images" / "fruits.jpg").read_bytes())}
    while time.monotonic() < until and process.poll() is None:
        try:
            if requests.post(f"http://{load.HOST}:{port}{path}", files=picture, timeout=60).ok:
                return
        except requests.RequestException:
            time.sleep(0.05)
    raise RuntimeError(f"no answer from {' '.join(map(str, process.args))} within {limit} s")


def memory(process: psutil.Popen) -> float:
    """MB that the process and its children hold: their proportional set sizes, so that shared pages count once."""
    return sum(member.memory_full_info().pss for member in family(process)) / 1e6


def family(process: psutil.Popen) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def stop(process: psutil.Popen) -> None:
    """Politely; and whatever of its family is still there after that, for good."""
    if process.poll() is not None:
        return
    members = family(process)
    process.terminate()
    _, left = psutil.wait_procs(members, timeout=20)
    for member in left:
        member.kill()
