"""Prepare the environment of every test. Cells of notebooks are tests too, which hooks reach and fixtures do not."""

import copy
import faulthandler
import os
import re
import signal
from pathlib import Path

import pytest

if (Path(__file__).parent / "labsupport").is_dir():  # not a copy beside somebody's own notebooks
    os.environ["LAB_ROOT"] = str(Path(__file__).parent)
os.environ["LAB_PORT"] = "0"  # any free port: notebooks under test cannot collide
crash = None  # the file descriptor of a file that `make test` prints at its end if something is left in it


def note(where: str) -> None:
    """Write where a crash from now on has been, in place of what was written before."""
    if crash:
        os.ftruncate(crash, 0)
        os.write(crash, where.encode())


@pytest.hookimpl(trylast=True)  # after pytest's own faulthandler, which writes to the terminal
def pytest_configure(config):
    """Let Ctrl-C interrupt, also where a shell started this in the background, which makes its programs ignore it.

    Open the file for a crash, one for each process that runs tests. What the tests start does not write there.
    """
    global crash
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("numprocesses", None) or not (file := os.environ.pop("LAB_CRASH", None)):
        return  # where other processes run the tests, these have a file each
    file += os.environ.get("PYTEST_XDIST_WORKER", "")
    crash = os.open(file, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND)
    faulthandler.enable(crash)
    note("while the tests were collected\n")


def pytest_runtest_logstart(nodeid):
    note(f"in {nodeid}\n")


@pytest.hookimpl(trylast=True)
def pytest_unconfigure():
    note("")
    if crash:
        faulthandler.enable(crash)  # for what still goes wrong while the process ends


SOLVED = """import contextlib, io
with contextlib.redirect_stdout(io.StringIO()) as printed:
    {check}
assert printed.getvalue().startswith({verdict!r}), printed.getvalue()
"""


def pytest_collection_modifyitems(items):
    """Test an exercise behind its check cell: its `solution` is right, and each of its `wrong` answers gets its own words.

    Both stand in the metadata of the check cell: a text, and a dict from each answer to a part of what the check prints.
    """
    items[:] = [part for item in items for part in (item, *_answers(item))]


def _answers(item):
    """Yield a test for each answer in the metadata of a notebook's cell."""
    metadata = getattr(item, "cell", {}).get("metadata", {})
    answers = {metadata["solution"]: "Right."} if "solution" in metadata else {}
    for number, (answer, verdict) in enumerate((answers | metadata.get("wrong", {})).items()):
        (check,) = re.findall(r"^\S*\.check\(.*\)", item.cell.source, re.MULTILINE)
        cell = copy.deepcopy(item.cell)
        verdict = verdict if number == 0 and answers else f"Not yet: {verdict}"
        cell.source = answer + "\n" + SOLVED.format(check=check, verdict=verdict)
        name = f"{item.name} {'wrong ' + str(number) if number else 'solution'}"
        yield type(item).from_parent(item.parent, name=name, cell_num=item.cell_num, cell=cell, options=item.options)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A cell that times out and swallows the interrupt would pass, and every later cell would be excused: both fail."""
    report = yield
    if getattr(item.parent, "timed_out", False) and report.when == "call":
        report.outcome = "failed"
        report.longrepr = report.longrepr or f"{item.name}: this cell, or one before it, took too long"
        report.__dict__.pop("wasxfail", None)
    return report
