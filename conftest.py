"""What every test needs, the notebooks' cells included: fixtures never reach those, hooks do."""

import faulthandler
import os
from pathlib import Path

import pytest

os.environ["LAB_ROOT"] = str(Path(__file__).parent)
os.environ["LAB_PORT"] = "0"  # any free port: notebooks under test cannot collide


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A cell that times out and swallows the interrupt would pass, and every later cell would be excused: both fail."""
    report = yield
    if getattr(item.parent, "timed_out", False) and report.when == "call":
        report.outcome = "failed"
        report.longrepr = report.longrepr or f"{item.name}: this cell, or one before it, took too long"
        report.__dict__.pop("wasxfail", None)
    return report


CRASH = pytest.StashKey()


@pytest.hookimpl(
    trylast=True
)  # after pytest has sent faulthandler's words to the terminal, which a crash may not reach
def pytest_configure(config):
    """Keep a file that says which test is running. If the process dies, it also holds what each thread was doing."""
    file = config.stash[CRASH] = (config.rootpath / f".crash-{os.getpid()}").open("w")
    faulthandler.enable(file)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item):
    file = item.config.stash[CRASH]
    file.seek(0)
    file.truncate()
    file.write(f"The process that ran the tests died in {item.nodeid}\n")
    file.flush()


def pytest_unconfigure(config):
    """The run has come to its end, so nothing has crashed: `make test` prints the file if it is still there."""
    if file := config.stash.get(CRASH, None):
        faulthandler.disable()
        file.close()
        Path(file.name).unlink(missing_ok=True)
