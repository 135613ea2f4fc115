"""A crash of the process that runs the tests names the test and what each thread was doing."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).parent.parent / "conftest.py"
DIES = """
import os, signal, threading

def test_before():
    pass

def test_dies():
    threading.Thread(target=lambda: os.kill(os.getpid(), signal.SIGSEGV)).start()
    threading.Event().wait(30)
"""


@pytest.mark.parametrize("code, left", [(DIES, 1), ("def test_fails(): assert 0", 0), ("def test_passes(): pass", 0)])
def test_a_crash_leaves_a_file_and_nothing_else_does(tmp_path, code, left):
    shutil.copy(CONFTEST, tmp_path)
    (tmp_path / "test_it.py").write_text(code)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-c",
        "/dev/null",
        "--rootdir",
        tmp_path,
        tmp_path,
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    files = [*tmp_path.glob(".crash-*")]
    assert len(files) == left, done.stdout + done.stderr
    if files:
        said = files[0].read_text()
        assert said.startswith("The process that ran the tests died in test_it.py::test_dies\n")
        assert "Segmentation fault" in said and "test_it.py" in said.split("Segmentation fault")[1]
