"""Measure the detector of the page /browser in a headless Chromium, as `compute.measure` measures a runtime.

`python -m labsupport.compute.in_browser` prints the result as JSON. The page runs the detector; the server only sends
it the files.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from labsupport import models
from labsupport.compute import measurement
from labsupport.extras import imported
from labsupport.serving import browser_page

if TYPE_CHECKING:
    from playwright.sync_api import Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
READY = 60_000  # milliseconds: to fetch the model and to build the network, on a slow machine
LISTED = "all => all.map(item => ({...item.dataset}))"
AGAIN = """async milliseconds => {
    const began = performance.now();
    let done = 0;
    for (; performance.now() - began < milliseconds; done++) await detect();
    return (performance.now() - began) / done;
}"""


class NoBrowser(RuntimeError):
    """Raised if Chromium or TensorFlow.js is missing; the message says how to install it."""


def measure(seconds: float = 4) -> dict[str, Any]:
    """Return a row as `compute.measure` does, for the page's detector: WebAssembly, f32, one picture at a time.

    `one` and `p95` are the milliseconds that the page shows, `memory` is the memory of the page's process, and `disk`
    is the size of what a first visit downloads. Raises `NoBrowser`, and `models.ModelUnavailable`.
    """
    files, shown, answers = measurement.picture_files(), [], []
    with measurement.server_process() as url, page_at(f"{url}/browser") as page:
        page.locator("#status", has_text="ready").wait_for(timeout=READY)
        for file in files:
            page.set_input_files("#file", file)
            page.locator("#hint", has_text=f"{file.name},").wait_for(timeout=READY)
            shown.append(page.evaluate("runs.at(-1)"))
            answers.append([answer(row) for row in page.locator("#found li").evaluate_all(LISTED)])
        each, held = page.evaluate(AGAIN, 1000 * seconds), memory()
    one, p95 = np.quantile(shown, [0.5, 0.95]).tolist()
    version = f"{browser_page.MODEL}/browser-f32"
    row = {"version": version, "one": one, "p95": p95, "all": each, "memory": held, "disk": size_on_disk()}
    return {**row, "answers": answers}


def program() -> str:
    """Return the path of this machine's Chromium. Raises `NoBrowser`."""
    if found := next(filter(None, map(shutil.which, BROWSERS)), None):
        return found
    raise NoBrowser(f"no browser, none of {', '.join(BROWSERS)}: apt-get install chromium")


@contextmanager
def page_at(url: str) -> Iterator["Page"]:
    """Yield a page of a headless Chromium, which is closed at the end of the block. Raises `NoBrowser`."""
    chromium = program()
    if browser_page.missing():
        raise NoBrowser("no TensorFlow.js: make browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--disable-gpu"])
        page = running.new_page(service_workers="block")
        page.goto(url)
        yield page
        running.close()


def answer(row: dict[str, str]) -> tuple[Any, ...]:
    """Return a row of the page's list in the form of `compute.measure`.

    >>> answer({"label": "cat", "confidence": "0.9", "box": '{"left": 1, "top": 2, "right": 3, "bottom": 4}'})
    ('cat', 0.9, 1, 2, 3, 4)
    """
    box = json.loads(row["box"])
    return row["label"], float(row["confidence"]), *(box[side] for side in ("left", "top", "right", "bottom"))


def memory() -> float:
    """Return the MB that only the page's process holds: the largest of the browser processes that draw pages."""
    psutil = imported("psutil")

    drawing = (one for one in psutil.Process().children(recursive=True) if "--type=renderer" in one.cmdline())
    return float(max(one.memory_full_info().uss for one in drawing)) / 1e6


def size_on_disk() -> float:
    """Return the MB that a first visit downloads: the page's files, TensorFlow.js, the weights."""
    files = [browser_page.FOLDER / name for name in ("index.html", *browser_page.OURS, *browser_page.TENSORFLOW)]
    return sum(file.stat().st_size for file in [*files, *models.locate(browser_page.MODEL)]) / 1e6


if __name__ == "__main__":
    print(json.dumps(measure(*map(float, sys.argv[1:]))))
