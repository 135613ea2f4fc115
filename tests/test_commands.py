"""The `labsupport` and `curl` commands of README and docs/service.md, typed in a shell; `serve` as a process."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from command import serving
from labsupport import paths

LAB = paths.root()
README, SERVICE = ((LAB / page).read_text() for page in ("README.md", "docs/service.md"))
TABLE = re.findall(
    r"^\| `(labsupport .*?)` \|", SERVICE.partition("\n## Commands")[2].partition("\n## ")[0], re.MULTILINE
)
TOKEN = "0123456789abcdef0123456789abcdef"


def shown(page: str, start: str) -> list[str]:
    """The commands of the block that begins with this one. A backslash continues a line."""
    block = page.partition(f"\n    {start}")[2].partition("\n\n")[0]
    return f"{start}{block}".replace("\\\n", "").replace("\n    ", "\n").splitlines()


@pytest.fixture
def typed(tmp_path):
    """A shell in a folder with the lab's pictures, with `labsupport` on its path. It returns what a command prints."""
    shutil.copytree(paths.IMAGES, tmp_path / "images", ignore=shutil.ignore_patterns("street", "*.md"))
    for folder in ("images_with_boxes", "images_uploaded"):
        (tmp_path / folder).mkdir()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "LAB_ROOT": str(tmp_path), "LAB_KEYS": f"{tmp_path}-keys"}

    def run(command: str, **more: str) -> str:
        done = subprocess.run(
            ["bash", "-ec", command], cwd=tmp_path, env={**env, **more}, capture_output=True, text=True, timeout=180
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


ELSEWHERE = ("serve", "rollout", "users", "audit", "forget ana", "certificate")  # in tests below


@pytest.mark.parametrize("command", [line for line in TABLE if not line.endswith(ELSEWHERE)])
def test_a_command_of_the_table_works_in_another_lab_folder(typed, command, tmp_path):
    printed = typed(command)
    if "batch" in command:
        assert (tmp_path / "found.parquet").stat().st_size > 1_000
    else:
        assert printed


def test_people_are_added_looked_after_and_forgotten(typed):
    add, look, revoke = shown(SERVICE, "labsupport users add")
    assert typed(add).split()[-1].startswith("lab_")
    assert typed(look).startswith("ana") and "valid" in typed(look)
    typed(revoke)
    assert "revoked" in typed(look) and "is intact" in typed("labsupport audit")
    assert typed("labsupport forget ana") and not typed(look)
    assert {"labsupport users", "labsupport audit", "labsupport forget ana"} <= {*TABLE}


def test_a_certificate_is_made(typed, tmp_path):
    (command,) = shown(SERVICE, "labsupport certificate")
    home = tmp_path.with_name("a home")
    assert "labsupport serve --certfile" in typed(command, HOME=str(home))
    assert (home / ".labsupport" / "certificates" / "ca.pem").is_file()


def test_the_table_of_commands_is_that_of_the_help(typed):
    offered = re.findall(r"^[│ ]+([a-z]+) {2,}", typed("labsupport --help", COLUMNS="100"), re.MULTILINE)
    assert sorted(offered) == sorted(command.split()[1] for command in TABLE)


def test_the_service_is_asked_and_another_version_rolled_out(typed, tmp_path):
    token, tell, serve = shown(SERVICE, "export LAB_TOKEN")
    assert re.fullmatch(r"[0-9a-f]{32}", typed(f"{token}; {tell}").strip()) and serve == "labsupport serve"
    look, shadow, canary, rollback = shown(SERVICE, "labsupport rollout")
    (curl,) = shown(SERVICE, "curl -X PUT")
    (ask,) = shown(README, "curl -F")
    with serving(
        tmp_path, "--precision", "f32", command=(*command_line(serve), "--port", "0"), LAB_TOKEN=TOKEN
    ) as server:
        env = {"LAB_TOKEN": TOKEN, "LAB_PORT": str(server.port), "NO_PROXY": "127.0.0.1"}
        typed(ask.replace(":8000", f":{server.port}") + " --fail --silent", **env)
        assert (tmp_path / "answer.jpg").read_bytes()[:2] == b"\xff\xd8"
        assert typed(look, **env).startswith("Healthy: ")
        for command, first in ((shadow, "shadow"), (canary, "canary"), (rollback, "rollback")):
            typed(command, **env)
            assert typed(look, **env).partition(",")[0].endswith(f": {first}"), command
        typed(curl.replace(":8000", f":{server.port}") + " --fail --silent", **env)
        assert typed(look, **env).partition(",")[0].endswith(": canary")


def command_line(command: str) -> tuple[str, ...]:
    """The words of a command, with our Python's `labsupport` in place of any other."""
    name, *words = command.split()
    return str(Path(sys.executable).with_name(name)), *words
