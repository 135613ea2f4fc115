"""How the tests themselves are run: a crash says in which test and where, and CI starts as on a new machine."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

LAB = Path(__file__).parent.parent
CRASHES = {
    "the test's own thread": "crash_here()",
    "another thread": "other = threading.Thread(target=crash_here); other.start(); other.join()",
    "no signal stack": "take_the_signal_stack_away(); crash_here()",
    "killed": "os.kill(os.getpid(), signal.SIGKILL)",
    "left": "os._exit(0)",
}
FILE = """
import ctypes, os, signal, threading

def crash_here():
    ctypes.string_at(0)

def take_the_signal_stack_away():
    stack = (ctypes.c_size_t * 3)(1 << 12, 0, 1 << 16)  # an address where nothing is, flags, a size
    assert ctypes.CDLL(None).sigaltstack(stack, None) == 0

def test_before():
    pass

def test_that_crashes():
    {crash}

def test_behind():
    pass
"""


@pytest.fixture
def recipe(tmp_path):
    """What `make test` runs at its end, in a folder that has our settings and one file of tests."""
    if not shutil.which("make"):
        pytest.skip("needs make")
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(LAB / name, tmp_path)

    def run(source: str, processes: int = 0) -> subprocess.CompletedProcess:
        (tmp_path / "test_it.py").write_text(source)
        arguments = f"ARGS=-p nbval.plugin -p xdist.plugin --numprocesses {processes} test_it.py"
        words = [f"BIN={Path(sys.executable).parent}", arguments, f"CRASH={tmp_path}/crash"]
        shown = subprocess.run(
            ["make", "-n", "test", *words], cwd=LAB, capture_output=True, text=True, check=True
        ).stdout
        (line,) = [line for line in shown.replace("\\\n", "").splitlines() if "-m pytest" in line]
        environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # but the one that our settings name
        return subprocess.run(["sh", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


@pytest.mark.parametrize("crash", CRASHES)
def test_a_crash_says_in_which_test_it_was(crash, recipe):
    done = recipe(FILE.format(crash=CRASHES[crash]))
    ended = done.stdout.split("did not come to their end:\n")[1]
    assert ended.startswith("in test_it.py::test_that_crashes\n")
    assert done.returncode == {"killed": 137, "left": 1}.get(crash, 139)
    if crash in ("the test's own thread", "another thread"):
        current = re.search(r"^Current thread .*\n(?:  .*\n)+", ended, re.MULTILINE)[0]
        assert "in crash_here\n" in current and ("in test_that_crashes" in current) == (
            crash == "the test's own thread"
        )


def test_a_crash_in_one_of_several_processes_says_so_too_and_ends_the_run(recipe):
    done = recipe(FILE.format(crash="crash_here()"), processes=2)
    ended = done.stdout.split("did not come to their end:\n")[1]
    assert ended.startswith("in test_it.py::test_that_crashes\n") and "in crash_here\n" in ended
    assert done.returncode == 1 and "1 failed, 1 passed" in done.stdout


def test_a_crash_while_tests_are_collected_says_so(recipe):
    done = recipe("import ctypes\nctypes.string_at(0)")
    ended = done.stdout.split("did not come to their end:\n")[1]
    assert ended.startswith("while the tests were collected\n") and "test_it.py" in ended and done.returncode == 139


def test_a_crash_behind_the_last_test_is_not_lost(recipe):
    late = "import atexit, ctypes\natexit.register(ctypes.string_at, 0)\ndef test_good():\n    pass\n"
    done = recipe(late)
    assert "1 passed" in done.stdout and done.returncode == 139
    assert "Segmentation fault" in done.stdout.split("did not come to their end:\n")[1]


def test_tests_that_end_say_no_more_than_pytest_does_and_what_they_start_writes_elsewhere(recipe, tmp_path):
    own = "import os\ndef test_good():\n    assert 'LAB_CRASH' not in os.environ\ndef test_bad():\n    assert False\n"
    done = recipe(own)
    assert done.returncode == 1 and "1 failed, 1 passed" in done.stdout
    assert "did not come" not in done.stdout + done.stderr and not (tmp_path / "crash").exists()


# CI


def ci_script(folder: Path, make: str, engine: int, compose: int) -> str:
    """Copy CI's script, beside an `engine.py` that only ends with one of these codes. Return the PATH for it, with a `make`
    that is a script of the shell, and with every program that CI would install."""
    (folder / ".ci").mkdir()
    shutil.copy(LAB / ".ci" / "run", folder / ".ci")
    (folder / "tests").mkdir()
    program = f"import sys; print('words'); sys.exit({compose} if 'compose' in sys.argv else {engine})"
    (folder / "tests" / "engine.py").write_text(program)
    programs = folder / "bin"
    programs.mkdir()
    there = "chromium npm promtool dockerd docker-compose debootstrap envsubst ip openssl apt-get"
    for name in there.split():
        (programs / name).symlink_to("/bin/true")
    (programs / "make").write_text(f"#!/bin/sh\n{make}\n")
    (programs / "make").chmod(0o755)
    return f"{programs}:{os.environ['PATH']}"


@pytest.mark.skipif(sys.platform != "linux", reason="CI's script is for Debian")
@pytest.mark.parametrize(
    ("engine", "compose", "wanted", "told"),
    [
        (0, 0, "1 1", []),
        (0, 3, "1 ", ["compose.yaml is not tested on this machine: words"]),
        (3, 3, " ", [f"{what} not tested on this machine: words" for what in ("Containers are", "compose.yaml is")]),
        (1, 0, None, ["tests/engine.py failed: words"]),
        (0, 1, None, ["tests/engine.py compose failed: words"]),
    ],
)
def test_ci_skips_containers_where_there_can_be_none_and_stops_for_a_fault(engine, compose, wanted, told, tmp_path):
    path = ci_script(tmp_path, 'echo "[$LAB_REQUIRE_IMAGE $LAB_REQUIRE_COMPOSE]"', engine, compose)
    env = {"PATH": path, "HOME": str(tmp_path)}
    done = subprocess.run([tmp_path / ".ci" / "run"], env=env, capture_output=True, text=True)
    assert done.stderr.splitlines() == told
    assert (done.returncode, done.stdout) == ((1, "") if wanted is None else (0, f"[{wanted}]\n"))


@pytest.mark.skipif(sys.platform != "linux", reason="CI's script is for Debian")
@pytest.mark.parametrize("settings", [True, False])
def test_ci_starts_with_an_empty_home_and_keeps_the_package_clients_settings(settings, tmp_path):
    """Its script, with a `make` that only looks around."""
    home = tmp_path / "old"
    (home / ".config" / "pip").mkdir(parents=True)
    (home / ".cache" / "labsupport").mkdir(parents=True)
    if settings:
        (home / ".config" / "pip" / "pip.conf").touch()
        (home / ".npmrc").touch()
    look = """
ls -A "$HOME" "$TMPDIR"
stat -c %a "$(dirname "$TMPDIR")"
echo "$HOME|$TMPDIR|$PIP_CONFIG_FILE|$NPM_CONFIG_USERCONFIG"
exit 3
"""
    path = ci_script(tmp_path, look, engine=3, compose=3)
    env = {"PATH": path, "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")}
    done = subprocess.run([tmp_path / ".ci" / "run"], env=env, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    *listed, mode, places = done.stdout.splitlines()
    new_home, temporary, pip, npm = places.split("|")
    assert listed == [f"{new_home}:", "", f"{temporary}:"] and mode == "755"
    assert home not in Path(new_home).parents and not Path(new_home).exists()  # gone at the end
    assert (pip, npm) == ((str(home / ".config/pip/pip.conf"), str(home / ".npmrc")) if settings else ("", ""))
    assert len(temporary) < 40  # a socket's path has 107 bytes
