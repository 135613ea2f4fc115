"""Show the commands that ship the lab: build the image, run it, and put nginx in front of it.

notebooks/shipping.ipynb uses this. By default each command is shown with the output of a recorded run (`recorded.json`,
which `python tests/record_shipping.py` makes with a real engine and a real nginx). With `LAB_DOCKER=1`, and if a Docker
engine answers, the commands of `DOCKER` are run here, and what they print is shown in the same form.
"""

import hashlib
import itertools
import json
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from deploy.aws import bundle
from labsupport import paths

RECORDED = Path(__file__).with_name("recorded.json")
SOURCES = (
    "Dockerfile",
    ".dockerignore",
    *(f"deploy/nginx/{name}.conf.template" for name in ("lab", "stable", "canary")),
)
OPTIONS = "--read-only --tmpfs /tmp --memory 1g --cap-drop ALL --security-opt no-new-privileges --network none"
BUILD = "docker build --network host --tag labsupport ."
NEXT = BUILD.replace("labsupport .", "labsupport:next .")
VOLUMES = "--volume shipping-data:/data --volume shipping-keys:/keys"
RUN = f"docker run --detach --name lab-shipping {OPTIONS} {VOLUMES} --env LAB_TOKEN labsupport"
INSIDE = "docker exec --env LAB_TOKEN --interactive lab-shipping python -c"
DOCKER = {  # name of a step: the command, for a shell in a copy of the checkout
    "build": BUILD,
    "size": "docker inspect --format '{{.Size}}' labsupport",
    "layers": "docker history --no-trunc --human=false --format '{{.Size}} {{.CreatedBy}}' labsupport",
    "change code": f'echo "# changed on $(date)" >> labsupport/serving/routes.py; {NEXT}',
    "change packages": f"sed --in-place '/^python-multipart==/,/[^\\\\]$/d' deploy/docker/server.lock; {NEXT}",
    "no token": f"docker run --rm {OPTIONS} labsupport",
    "run": f"{RUN} --precision f32",
    "wait": f"timeout 60 bash -c 'until {INSIDE} \"$ALIVE\"; do sleep 0.1; done'",
    "ask": f'{INSIDE} "$ASK" < images/fruits.jpg',
    "ask 20 times": f'for _ in $(seq 20); do {INSIDE} "$ASK" < images/fruits.jpg; done | sort | uniq -c',
    "memory": "docker exec lab-shipping grep VmHWM /proc/1/status",
    "user": "docker exec lab-shipping id",
    "write": "docker exec lab-shipping touch /opt/lab/app/labsupport/evil.py",
    "call out": f"{INSIDE} \"import socket; socket.create_connection(('192.0.2.1', 80), 2)\"",
    "stop": "docker stop lab-shipping; docker inspect --format 'exit code {{.State.ExitCode}}' lab-shipping",
    "again": f"docker rm lab-shipping; {RUN} --precision f32",
    "rows": f'{INSIDE} "$ROWS"',
    "clean": "docker rm --force lab-shipping; docker volume rm shipping-data shipping-keys",
}
HTTPS, CURL = "https://127.0.0.1:8443/serve", "curl --silent --show-error"
STATUS = "--write-out ' %{http_code}\\n'"
NGINX = {  # the same, for a shell in a folder with the certificate and two pictures, while nginx listens on port 8443
    "stranger": f"{CURL} {HTTPS}/health",
    "known": f"{CURL} {STATUS} --cacert lab.crt {HTTPS}/health",
    "detect": f"{CURL} --cacert lab.crt --form file=@street_1.jpg {HTTPS}/count-cars | cut --delimiter=, --fields=1,2",
    "change": f"{CURL} {STATUS} --cacert lab.crt --request PUT {HTTPS}/rollout",
    "large": f"{CURL} {STATUS} --cacert lab.crt --form file=@large.jpg {HTTPS}/detect",
    "plain": f"{CURL} {STATUS} --output /dev/null http://127.0.0.1:8443/serve/health",
    "gone": f"{CURL} {STATUS} --cacert lab.crt {HTTPS}/ready",
    "canary": "for n in $(seq 100); do "
    f'{CURL} --cacert lab.crt --header "X-Client-Key: client $n" {HTTPS}/ready; '
    "done | grep --only-matching 'stable\\|candidate' | sort | uniq --count",
}
PROGRAMS = {  # the Python programs that the commands above name
    "ALIVE": "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=2)",
    "ASK": """
import os, sys, requests
header, file = {"Authorization": "Bearer " + os.environ["LAB_TOKEN"]}, {"file": sys.stdin.buffer.read()}
answer = requests.post("http://127.0.0.1:8000/detect", headers=header, files=file, timeout=20)
print(answer.status_code, *[f"{one['label']} {one['confidence']:.2f}" for one in answer.json()["detections"]])
""",
    "ROWS": """
import sqlite3
print(*sqlite3.connect("/data/predictions.db").execute("SELECT count(*) FROM predictions").fetchone(), "rows in the log")
""",
}
PURPOSES = (  # how a line of the Dockerfile begins, and what it is for
    ("FROM python:3.11-slim-bookworm AS install", "begin a stage with a small Debian and Python 3.11"),
    ("COPY deploy/docker/server.lock", "only the list of packages: if it is unchanged, the next step is not repeated"),
    ("RUN python3 -m venv", "install each package in a fixed version; refuse a file with another checksum"),
    ("FROM install AS model", "a second stage, for the weights; it continues from the first"),
    ("COPY labsupport/__init__.py", "of our code only the modules that the next steps import"),
    ("COPY labsupport/models", "and the package that fetches and converts weights"),
    ("WORKDIR /build", "the folder in which the next steps run"),
    ("ENV HOME=/home/lab", "store the weights below this folder"),
    ("RUN /opt/lab/bin/python -c", "fetch the weights, check their checksum, convert them"),
    ("FROM install AS packages", "a third stage, for the packages alone"),
    ("RUN /opt/lab/bin/pip uninstall", "remove pip: a server that runs installs nothing"),
    ("FROM python:3.11-slim-bookworm", "the last stage is the image; it begins again from the small base"),
    ("RUN groupadd", "a user who is not root, and the folders that this user may write to"),
    ("COPY --from=packages", "take the packages out of the third stage, and nothing else"),
    ("COPY --from=model", "take the weights out of the second stage"),
    ("COPY labsupport /opt", "of all copies our code is the last, because it changes most often"),
    ("ENV PATH", "where programs and code are, and where the server writes"),
    ("USER 10001", "from here on no step and no container runs as root"),
    ("WORKDIR /data", "the folder in which the server starts"),
    ("VOLUME /data", "these folders lie outside of the container: the log and the keys have to outlive it"),
    ("EXPOSE 8000", "a note for people: the server listens on this port; the line opens nothing"),
    ("STOPSIGNAL SIGTERM", "the signal of docker stop: the server answers its open requests and exits"),
    ("HEALTHCHECK", "the engine asks every 10 seconds whether the server is alive"),
    ("ENTRYPOINT", "the program that every container of this image starts"),
    ("CMD []", "more arguments for it: none, unless docker run adds some"),
)


class Instruction(NamedTuple):
    """One instruction of a Dockerfile: its stage, its text in one line, and what it is for."""

    stage: str
    text: str
    purpose: str


class Result(NamedTuple):
    """What a command printed (both outputs), how long it took, and its exit code."""

    command: str
    lines: list[str]
    seconds: float
    code: int


class NotTheSame(RuntimeError):
    """A command that was run here ended in another way than in the recorded run."""


def instructions(dockerfile: str) -> list[Instruction]:
    """Return the instructions of a Dockerfile. A purpose is "" if `PURPOSES` has none.

    >>> instructions("# a comment\\nFROM scratch AS one\\nUSER \\\\\\n    10001:10001")[1]
    Instruction(stage='one', text='USER 10001:10001', purpose='from here on no step and no container runs as root')
    """
    kept = "\n".join(line for line in dockerfile.splitlines() if not line.startswith("#"))
    found, stage = [], ""
    for line in kept.replace("\\\n", " ").splitlines():
        if text := " ".join(line.split()):
            if text.startswith("FROM "):
                stage = text.partition(" AS ")[2] or "the image"
            purpose = next((purpose for begin, purpose in PURPOSES if text.startswith(begin)), "")
            found.append(Instruction(stage, text, purpose))
    return found


def checksums() -> dict[str, str]:
    """Return the sha256 of each file of which a recording shows the effect."""
    return {name: hashlib.sha256((paths.root() / name).read_bytes()).hexdigest() for name in SOURCES}


def machine() -> str:
    """Describe this machine: "2 cores, Intel(R) Xeon(R) Processor"."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "an unknown processor")
    return f"{os.cpu_count()} cores, {name}"


class Shell:
    """A folder with a copy of what the Dockerfile needs, in which commands run. `close` removes it, and its container."""

    def __init__(self) -> None:
        self._made = tempfile.TemporaryDirectory(prefix="lab-shipping-")  # at the latest it goes with the process
        self.folder = Path(self._made.name)
        for name in (*bundle.make(paths.root()).names, "images/fruits.jpg"):
            if not name.startswith(".platform/"):
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(paths.root() / name, self.folder / name)
        # the older of Docker's two builders prints the same lines everywhere
        self._env = {**os.environ, **PROGRAMS, "LAB_TOKEN": secrets.token_hex(16), "DOCKER_BUILDKIT": "0"}

    def run(self, name: str) -> Result:
        """Run a step of `DOCKER`."""
        if name in ("run", "no token"):  # when a cell is run twice
            run(DOCKER["clean"], self.folder, self._env)
        return run(DOCKER[name], self.folder, self._env, CLEANED.get(name, plain))

    def close(self) -> None:
        run(DOCKER["clean"], self.folder, self._env)
        self._made.cleanup()


Printed = list[tuple[float, str]]  # seconds since the command began, and a line


def plain(printed: Printed) -> list[str]:
    """Return the lines without blank ones and warnings, and of a Python traceback only its last line."""
    lines = [line for _, line in printed if line.strip() and not line.startswith("WARNING: ")]
    return lines[-1:] if any(line.startswith("Traceback ") for line in lines) else lines


def _steps(printed: Printed) -> list[str]:
    """Return the steps of a build: seconds, CACHED for one that was not repeated, and the instruction."""
    begun = [(second, line) for second, line in printed if line.startswith("Step ")]
    ends = [second for second, _ in begun[1:]] + [printed[-1][0]] if printed else []
    cached = {line for (_, line), (_, after) in itertools.pairwise(printed) if "Using cache" in after}
    lines = [
        f"{end - second:6.1f} s  {'CACHED' if line in cached else '      '}  {' '.join(line.split())[:88]}"
        for (second, line), end in zip(begun, ends, strict=True)
    ]
    return lines or [line for _, line in printed][-20:]


def _layers(printed: Printed) -> list[str]:
    """Return the layers that take room, the lowest first. What came before our first one is the base image."""
    rows = [line.partition(" ") for _, line in reversed(printed) if line.strip()]
    layers = [(int(size), _instruction(made)) for size, _, made in rows]
    first = next(place for place, (_, made) in enumerate(layers) if "groupadd" in made)
    base = (sum(size for size, _ in layers[:first]), "FROM: the base image")
    return [f"{size / 1e6:7.1f} MB  {made[:70]}" for size, made in (base, *layers[first:]) if size > 0]


def _instruction(made: str) -> str:
    """Return the instruction that made a layer, from the notes of either of Docker's two builders."""
    made = re.sub(r"^(RUN )?(\|\d+ )?/bin/sh -c ", "RUN ", made.replace("# buildkit", "")).removeprefix("RUN #(nop) ")
    return " ".join(re.sub(r" (dir|file|multi):\S+ in ", " ", made).split())


def _image_size(printed: Printed) -> list[str]:
    return [f"{int(line) / 1e6:.0f} MB" for line in plain(printed)]


def _short(printed: Printed) -> list[str]:
    """Return the lines, and of the long name of a container its beginning, as Docker itself shows it."""
    return [line[:12] if re.fullmatch("[0-9a-f]{64}", line) else line for line in plain(printed)]


CLEANED: dict[str, Callable[[Printed], list[str]]] = {
    **dict.fromkeys(("build", "change code", "change packages"), _steps),
    "layers": _layers,
    "size": _image_size,
    **dict.fromkeys(("run", "again"), _short),
    "wait": lambda printed: [],  # the complaints of the tries before
}


def run(
    command: str, folder: Path, env: dict[str, str] | None = None, cleaned: Callable[[Printed], list[str]] = plain
) -> Result:
    """Run a command in a shell in this folder."""
    began, printed = time.monotonic(), []
    words = ["bash", "-c", command]
    with subprocess.Popen(
        words,
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout
        printed = [(time.monotonic() - began, line.rstrip()) for line in process.stdout]
    printed_at_end = [*printed, (time.monotonic() - began, "")]
    lines = cleaned(printed_at_end) if process.returncode == 0 else plain(printed)
    return Result(command, lines, round(time.monotonic() - began, 2), process.returncode)


def recorded() -> dict:
    """Return the recording: `made` says how it came to be, `sources` of which files, `steps` holds the results."""
    return json.loads(RECORDED.read_text())


class Shipping:
    """The steps of `DOCKER` and `NGINX`: recorded, or those of `DOCKER` live. `live` asks for that; by default `LAB_DOCKER`.

    Those of nginx are always recorded.
    """

    def __init__(self, live: bool | None = None) -> None:
        recording = recorded()
        self.results = {name: Result(**step) for name, step in recording["steps"].items()}
        self.made: dict[str, str] = recording["made"]
        self._shell = None
        if os.environ.get("LAB_DOCKER") == "1" if live is None else live:
            if engine := version():
                self._shell = Shell()
                print(f"Each command is run here, by Docker {engine}.")
                return
            print("No Docker engine answers here, so the steps are the recorded ones.")
        print("Recorded on {date}, with Docker {docker}: {machine}.".format(**self.made))

    def show(self, name: str, without: str | None = None, most: int = 100) -> Result:
        """Print a command and what came of it, and return that.

        Lines with the text `without` are left out, and lines beyond the first `most`. Raises `NotTheSame` if a command that
        is run here ends with another exit code than in the recorded run.
        """
        before = self.results[name]
        done = self._shell.run(name) if self._shell and name in DOCKER else before
        chosen = [line for line in done.lines if without is None or without not in line][:most]
        ended = f"exit code {done.code}, " if done.code else ""
        print("\n".join([f"$ {done.command}", *chosen, f"[{ended}{done.seconds:.1f} s]\n"]))
        if done.code != before.code:
            raise NotTheSame(f"it ended with exit code {done.code}, and in the recorded run with {before.code}")
        return done

    def close(self) -> None:
        """Remove the container, its volume and the copy of the checkout, if there are any."""
        if self._shell:
            self._shell.close()
            self._shell = None


def version() -> str | None:
    """Return the version of the Docker engine that answers here, or None."""
    if not shutil.which("docker"):
        return None
    done = run("docker version --format '{{.Server.Version}}'", Path.cwd())
    return done.lines[-1] if done.code == 0 and done.lines else None
