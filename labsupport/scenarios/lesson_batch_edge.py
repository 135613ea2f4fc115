"""Set the scenes of batch_or_realtime.ipynb and edge.ipynb: files, a cable that can be pulled, programs to be killed."""

import inspect
import itertools
import json
import logging
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from labsupport import arguments, background, charts, images, paths
from labsupport.scenarios.phones import Inspection, inspection
from labsupport.scenarios.traffic import wait

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

UNREADABLE = 7  # the phone on the belt whose picture cannot be read
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
READY = 60_000  # milliseconds: to fetch the model and to build the network, on a slow machine
IMPORTS = """
import sqlite3
from labsupport import scenarios
from labsupport.batch import predict_folder
from labsupport.edge import Camera, InspectionStation, Outbox
from labsupport.scenarios import Inspector, lesson_batch_edge as scene, traffic
"""

logger = logging.getLogger(__name__)


def photos_of_a_day(folder: Path, count: int = 300) -> Path:
    """Fill a new folder with `count` copies of the lab's photos. Return the folder."""
    folder.mkdir(parents=True)
    for number, photo in zip(range(count), itertools.cycle(sorted(paths.IMAGES.glob("*.jpg"))), strict=False):
        shutil.copy(photo, folder / f"{number:04}.jpg")
    return folder


def odd_files(folder: Path) -> Path:
    """Fill a new folder with a good picture, half a picture, a text with the name of a picture, and a video. Return it."""
    folder.mkdir(parents=True)
    lab = sorted(paths.IMAGES.glob("*.jpg"))
    shutil.copy(lab[0], folder / "good.jpg")
    (folder / "half.jpg").write_bytes(lab[0].read_bytes()[:2000])
    (folder / "letter.jpg").write_text("dear camera,", encoding="utf-8")
    video = cv2.VideoWriter(str(folder / "belt.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (320, 240))
    for name in lab[:3] * 10:
        video.write(cv2.resize(images.read(name), (320, 240)))
    video.release()
    return folder


def belt(folder: Path, count: int = 120, seed: int = 31) -> Inspection:
    """Fill a new folder with pictures of `count` phones, one of them unreadable. Return the phones with their truth."""
    phones = inspection(count, seed)
    folder.mkdir(parents=True)
    for number, picture in enumerate(phones.images):
        content = b"the camera failed" if number == UNREADABLE else images.encode(picture, "png")
        (folder / f"phone_{number:03}.png").write_bytes(content)
    return phones


def pictures_a_minute(total: int = 20_000_000) -> np.ndarray:
    """Return the pictures in each minute of a day, float, (1440,): most arrive around noon and in the evening."""
    hour = np.arange(24 * 60) / 60
    shape = 0.25 + np.exp(-(((hour - 12.5) / 2) ** 2)) + 1.4 * np.exp(-(((hour - 20) / 1.8) ** 2))
    arrivals: np.ndarray = arguments.number("total", total, 0) * shape / shape.sum()
    return arrivals


def draw_demand(arrivals: np.ndarray, capacities: Mapping[str, float], bills: Mapping[str, float]) -> "Figure":
    """Draw a day's pictures a minute below two capacities (pictures a second), and a bar for each bill (dollars a day)."""
    left, right = (figure := charts.new_figure(9.5, 3.6)).subplots(1, 2, width_ratios=[1.2, 1])
    left.fill_between(np.arange(len(arrivals)) / 60, arrivals / 60, color=charts.BEFORE, alpha=0.4, linewidth=0)
    for (name, capacity), colour in zip(capacities.items(), (charts.NOW, charts.ALARM), strict=False):
        left.axhline(capacity, color=colour, linewidth=2)
        left.text(0.2, capacity, name, color=colour, va="bottom", fontsize=9)
    left.set(xlim=(0, 24), ylim=(0, 1.2 * max(capacities.values())), xticks=range(0, 25, 6))
    left.set(xlabel="hour of the day", ylabel="pictures a second")
    left.set_title("Realtime pays for the peak, a daily batch for the average", fontsize=10)
    colours = [charts.ALARM if "batch" in name else charts.NOW for name in bills]
    bars = right.bar([name.replace(", ", ",\n") for name in bills], [*bills.values()], color=colours, alpha=0.8)
    right.bar_label(bars, fmt="$%.2f", fontsize=9)
    right.tick_params(axis="x", labelsize=8)
    right.set(ylabel="dollars a day", ylim=(0, 1.15 * max(bills.values())))
    right.set_title("The bill for one day", fontsize=10)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_decisions(seen: "pd.DataFrame", deadline: float, pulled: int, plugged: int) -> "Figure":
    """Draw how long each decision took and how many records waited; the cable was out from row `pulled` to `plugged`.

    `seen` has the columns at, took, decided_by, waiting and open: seconds, seconds, a name, a number, and whether the
    circuit breaker is open after the decision.
    """
    above, below = (figure := charts.new_figure(9, 4.6)).subplots(2, 1, sharex=True, height_ratios=(2, 1))
    styles = {"server": (charts.BEFORE, "o"), "device": (charts.NOW, "^"), "nobody": (charts.ALARM, "X")}
    for by, (colour, marker) in styles.items():
        rows = seen[seen["decided_by"] == by]
        above.scatter(rows["at"], rows["took"], s=28, color=colour, marker=marker, label=by)
    above.axhline(deadline, color="black", linestyle="--", linewidth=1)
    above.text(seen["at"].iloc[0], deadline, "deadline", va="bottom", fontsize=9)
    if seen["open"].any():
        decided = seen["at"] + seen["took"]
        top = {"color": charts.NOW, "alpha": 0.25, "linewidth": 0}
        above.fill_between(decided, 1.03 * deadline, 1.13 * deadline, where=seen["open"], **top)
        above.text(decided[seen["open"]].min(), 1.08 * deadline, " breaker open", va="center", fontsize=9)
    below.step(seen["at"], seen["waiting"], where="post", color=charts.BEFORE)
    start, end = seen["at"].iloc[pulled], seen["at"].iloc[plugged]
    for axes in (above, below):
        axes.axvspan(start, end, color="#dddddd", zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
    above.text((start + end) / 2, 0.55 * deadline, "cable pulled", ha="center", fontsize=9)
    above.set(ylabel="seconds to decide", ylim=(-0.04 * deadline, 1.2 * deadline))
    above.legend(title="decided by", frameon=False, fontsize=8, loc="center right", bbox_to_anchor=(1, 0.55))
    above.set_title("Without an answer in time, or with an open breaker, the device decides", fontsize=10)
    below.set(xlabel="seconds since the first phone", ylabel="records that wait", ylim=(0, None))
    return figure


class Cable:
    """Pass bytes to a server on this machine and back, until `pull()`. The clients use `url`.

    While the cable is pulled, connections are still accepted, and their bytes are dropped. Each piece that passes waits
    for `delay` seconds.
    """

    def __init__(self, port: int) -> None:
        self.plugged, self.delay, self._port, self._ends = True, 0.0, port, list[socket.socket]()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        background.start(self._accept, "cable")

    def pull(self) -> None:
        """Drop each byte from now on, in both directions."""
        self.plugged = False

    def plug(self) -> None:
        """Pass bytes again. What was dropped stays lost."""
        self.plugged = True

    def close(self) -> None:
        """Close all connections."""
        for end in (self._listening, *self._ends):
            with suppress(OSError):  # not connected any more
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                here = self._listening.accept()[0]
                try:
                    there = socket.create_connection(("127.0.0.1", self._port))
                except OSError:  # the server is away: this client hears so, and the next one may find it again
                    here.close()
                    continue
                self._ends += [here, there]
                for ends in ((here, there), (there, here)):
                    background.start(partial(self._copy, *ends), "cable")

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):  # one of the ends was closed
            while data := source.recv(65_536):
                time.sleep(self.delay)
                if self.plugged:
                    target.sendall(data)
            target.shutdown(socket.SHUT_WR)


class Program:
    """Run functions of a notebook in a process of its own, which can be killed.

    `call` is a line of Python that runs after the functions are defined. It may use what `IMPORTS` imports.

    >>> def late():
    ...     raise SystemExit("too late")
    >>> Program(late, call="late()").wait_for(lambda: False)
    Traceback (most recent call last):
    RuntimeError: the program ended too early: too late
    """

    def __init__(self, *functions: Callable[..., Any], call: str) -> None:
        sources = [textwrap.dedent(inspect.getsource(function)) for function in functions]
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed by kill
        command = [sys.executable, "-c", "\n".join([IMPORTS, *sources, call])]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=self._said)

    def wait_for(self, condition: Callable[[], object], seconds: float = 250) -> None:
        """Return as soon as `condition()` is true. Raises RuntimeError if the program ends before, and TimeoutError."""

        def reached() -> bool:
            ended = self._process.poll() is not None  # asked first, because its end may have made the condition true
            if not (now := bool(condition())) and ended:
                raise RuntimeError(f"the program ended too early: {self.said()[-500:].strip()}")
            return now

        try:
            wait(reached, "what the program is waited for", seconds)
        except BaseException:
            self.kill()
            raise

    def said(self) -> str:
        """Return what the program has written to its standard error so far."""
        return os.pread(self._said.fileno(), 1_000_000, 0).decode(errors="replace")  # the program goes on at its place

    def kill(self) -> None:
        """End the process with SIGKILL, as `kill -9` does. It has no time to tidy up."""
        self._process.kill()
        self._process.wait()
        self._said.close()


def rows(file: str | Path) -> int:
    """Return the number of rows of the table `done` in a SQLite file, 0 if there is no such file or table yet.

    If the program was killed inside a transaction, SQLite must undo that first, which it cannot on a read-only connection.
    """
    if not Path(file).exists():
        return 0
    with closing(sqlite3.connect(f"{Path(file).absolute().as_uri()}?mode=rw", uri=True)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'done'").fetchone():
            return 0
        (count,) = connection.execute("SELECT count(*) FROM done").fetchone()
        return int(count)


def visit(url: str, picture: Path, screenshot: Path | None = None) -> dict[str, Any] | None:
    """Show a picture to the page `/browser` in a headless Chromium. Return what it found and what it sent.

    `summary` is what it found, `by` what computed it, `last` the time it took. `before` and `after` list the requests
    before and after the picture was opened: method, URL, bytes sent. Returns None if there is no browser to use.
    """
    from labsupport.serving import browser_page

    if browser_page.missing() or not find_spec("playwright") or not any(map(shutil.which, BROWSERS)):
        return None
    look = "from labsupport.scenarios import lesson_batch_edge as scene; scene.look()"
    command = [sys.executable, "-c", look, url, str(picture), *([str(screenshot)] if screenshot else [])]
    if (done := subprocess.run(command, capture_output=True, text=True, timeout=300)).returncode:
        logger.warning("the browser could not be used: %s", done.stderr[-500:])
        return None
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def look() -> None:
    """Do the work of `visit` in a process of its own, because Playwright cannot run inside of a notebook's event loop."""
    from playwright.sync_api import sync_playwright

    url, picture, *screenshot = sys.argv[1:]
    sent: list[tuple[str, str, int]] = []
    with sync_playwright() as playwright:
        chromium = next(filter(None, map(shutil.which, BROWSERS)))
        running = playwright.chromium.launch(executable_path=chromium, args=["--disable-gpu"])
        page = running.new_page(viewport={"width": 1000, "height": 760}, service_workers="block")
        page.on("request", lambda one: sent.append((one.method, one.url, len(one.post_data_buffer or b""))))
        page.goto(url)
        page.locator("#status", has_text="ready").wait_for(timeout=READY)
        before = len(sent)
        page.set_input_files("#file", picture)
        page.locator("#hint", has_text=f"{Path(picture).name},").wait_for(timeout=READY)
        words = {name: page.locator(f"#{name}").inner_text() for name in ("summary", "by", "last")}
        if screenshot:
            page.screenshot(path=screenshot[0])
        running.close()
    print(json.dumps({**words, "before": sent[:before], "after": sent[before:]}))
