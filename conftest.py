"""What every test needs, the notebooks' cells included: fixtures never reach those, hooks do."""

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
