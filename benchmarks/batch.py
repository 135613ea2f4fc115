"""What a batch makes of the machine: its pictures a second beside the in-process ceiling's, in turns, in one run.

`python -m benchmarks.batch` prints each round's figures and the median of their ratios. The ceiling also draws boxes and
encodes; the batch also reads files, takes features, and writes its journal and its table. Each runs in a process of its own.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import load
from labsupport import batch, paths
from labsupport.detection import Detector

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=8, help="of the ceiling, a round")
    arguments.add_argument("--pictures", type=int, default=1000)
    arguments.add_argument("--folder", help="measure one batch of this folder, and print its rate")
    options = arguments.parse_args()
    if options.folder:
        print(once(Path(options.folder)))
    else:
        print("\n".join(lines(options.rounds, options.seconds, options.pictures)))


def lines(rounds: int, seconds: float, pictures: int = 1000) -> list[str]:
    """A row for each round, and the median."""
    shares = []
    table = ["", "| batch, pictures/s | in-process ceiling, pictures/s | share |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = filled(Path(scratch), pictures)
        for turn in range(rounds):
            order = ["ceiling", "batch"] if turn % 2 == 0 else ["batch", "ceiling"]
            rate = {name: measured(name, str(seconds) if name == "ceiling" else f"--folder={folder}") for name in order}
            shares.append(rate["batch"] / rate["ceiling"])
            table.append(f"| {rate['batch']:.1f} | {rate['ceiling']:.1f} | {shares[-1]:.0%} |")
    return [
        *table,
        "",
        f"A batch of {pictures} pictures does {statistics.median(shares):.0%} of what the ceiling does.",
    ]


def filled(folder: Path, count: int) -> Path:
    """The ceiling's pictures again and again, each under a name of its own."""
    for name in load.PICTURES:
        (folder / name).write_bytes((paths.IMAGES / name).read_bytes())
    pictures = folder / "pictures"
    pictures.mkdir()
    for number in range(count):
        os.link(folder / load.PICTURES[number % len(load.PICTURES)], pictures / f"{number:06}.jpg")
    return pictures


def measured(name: str, argument: str) -> float:
    command = [sys.executable, "-m", f"benchmarks.{name}", argument]
    return float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def once(folder: Path) -> float:
    """Pictures a second, from the first to the table's last byte; the model is loaded before."""
    detector = Detector.load()
    started = time.perf_counter()
    done = batch.predict_folder(folder, folder.parent / "found.parquet", detector, progress=False)
    return done.rows / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
