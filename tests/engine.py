"""Run a Docker engine of the tests' own: build the Dockerfile with it, and start containers.

`started` needs root, and Debian's packages docker.io and debootstrap; with a network of its own, for compose.yaml, also
docker-compose, iproute2, gettext-base, nginx-light, openssl, prometheus. No registry of images is asked: debootstrap makes
the base image. Our engine cannot see the machine's own engine, because the folders of its settings and sockets are hidden.
`python tests/engine.py` starts a small container, and `python tests/engine.py compose` one in such a network. If this
machine cannot, it prints the reason and exits with 3.
"""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BASE, SUITE = "python:3.11-slim-bookworm", "bookworm"  # that image is this Debian, with Python in /usr/local
PROGRAMS = ("dockerd", "docker", "debootstrap", "setpriv", "unshare", "nsenter", "tar")
COMPOSED = ("docker-compose", "ip", "envsubst", "nginx", "openssl", "prometheus")  # which compose.yaml needs on top
UNAVAILABLE = 3  # the exit code; 1 is a fault of this file
HIDDEN = ("/etc/docker", "/run/docker", "/run/containerd")
ALONE = "--bridge=none --iptables=false --ip6tables=false --ip-forward=false"  # it leaves the machine's network alone
# as deploy/README.md and compose.yaml have it, but without any network
RUN = "--read-only --tmpfs /tmp --memory 1g --cap-drop ALL --security-opt no-new-privileges --network none"
# both end if the tests are killed; the mounts that they make end with them
SCRIPT = "setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child sh -ec"
SERVICE = "setpriv --pdeathsig TERM unshare --mount {} sh -ec"


class Unavailable(Exception):
    """This machine cannot run an engine; the message says why."""


@dataclass
class Engine:
    """A running engine. `folder` holds everything that belongs to it."""

    folder: Path

    @property
    def pid(self) -> int:
        """The id of the process `dockerd`."""
        return int((self.folder / "pid").read_text())

    @property
    def env(self) -> dict[str, str]:
        """The variables with which `docker` asks this engine."""
        return {
            "DOCKER_HOST": f"unix://{self.folder}/socket",
            "DOCKER_CONFIG": str(self.folder),
            "DOCKER_BUILDKIT": "0",
        }

    def docker(self, *words: str | Path, stdin: int = subprocess.DEVNULL, stderr: int = subprocess.PIPE) -> str:
        """Run `docker` with these words, and return its output. Raises AssertionError with its errors if it fails."""
        pipes = {"stdin": stdin, "stdout": subprocess.PIPE, "stderr": stderr, "text": True}
        done = subprocess.run(["docker", *words], env=os.environ | self.env, **pipes)
        message = f"docker {shlex.join(map(str, words))}\n{done.stdout[-4000:]}\n{(done.stderr or '')[-2000:]}"
        assert done.returncode == 0, message
        return done.stdout.strip()

    def import_image(self, name: str, script: str, *changes: str) -> None:
        """Make an image of the tar archive that a shell script prints. The script runs in an empty folder in memory."""
        folder, log = self.folder / "memory", self.folder / "import.log"
        folder.mkdir(exist_ok=True)
        enter = f"mount -t tmpfs tmpfs {folder}\ncd {folder}\n"
        words = [word for change in changes for word in ("--change", change)]
        with (
            log.open("w") as errors,
            subprocess.Popen([*SCRIPT.split(), enter + script], stdout=subprocess.PIPE, stderr=errors) as archive,
        ):
            try:
                self.docker("import", *words, "-", name, stdin=archive.stdout)
            finally:
                archive.stdout.close()
                assert archive.wait() == 0, f"{script}\n{log.read_text()[-6000:]}"

    def import_base(self) -> None:
        """Make the Dockerfile's base image: a Debian with Python, and the settings with which this machine's pip works."""
        mirrors = subprocess.check_output(["apt-get", "indextargets", "--format", "$(REPO_URI)"], text=True).split()
        mirror = next(address for address in mirrors if "security" not in address)
        pip = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "REQUESTS_"))}
        files = {"/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt", *pip.values()}
        script = f"""
        debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates {SUITE} root {mirror} >&2
        rm -r root/var/cache/apt/archives root/var/lib/apt/lists
        for file in {shlex.join(sorted(file for file in files if Path(file).is_file()))}; do cp --parents "$file" root; done
        tar -C root -c ."""
        self.import_image(BASE, script, *(f"ENV {name}={json.dumps(value)}" for name, value in pip.items()))

    def build(self, context: Path, name: str) -> None:
        """Build the Dockerfile in a folder. Its steps use this machine's network."""
        self.docker("build", "--network", "host", "--tag", name, context)

    def inspect(self, name: str) -> dict:
        """Return the engine's description of an image or a container."""
        return json.loads(self.docker("inspect", name))[0]


@contextlib.contextmanager
def started(own_network: bool = False) -> Iterator[Engine]:
    """Start an engine. At the end stop it, and remove everything that it has made.

    With `own_network` it lives in a network of its own: nothing outside can be reached, its containers reach each other by
    name, and the ports that they publish are on the loopback of that network (`nsenter --target PID --net`).
    Raises Unavailable if it does not start, or cannot start a container.
    """
    wanted = PROGRAMS + COMPOSED * own_network
    lacking = [name for name in wanted if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")] + ["root"] * (
        os.geteuid() != 0
    )
    if lacking:
        raise Unavailable(f"an engine needs {', '.join(lacking)}")
    short = tempfile.gettempdir() if len(tempfile.gettempdir()) < 40 else "/tmp"  # a socket's path has 107 bytes
    folder = Path(tempfile.mkdtemp(prefix="lab-", dir=short))
    hide = "".join(f"mkdir -p {path}\nmount -t tmpfs tmpfs {path}\n" for path in HIDDEN)
    places = f"--host unix://{folder}/socket --data-root {folder}/data --exec-root {folder}/exec --pidfile {folder}/pid"
    apart, loopback = ("--net", "ip link set lo up\n") if own_network else ("", "")
    command = [*SERVICE.format(apart).split(), f"{hide}{loopback}exec dockerd {places} {ALONE}"]
    engine, log = Engine(folder), folder / "log"
    with log.open("w") as printed, subprocess.Popen(command, stdout=printed, stderr=printed) as dockerd:
        try:
            _try(engine, dockerd, log)
            yield engine
        finally:
            with contextlib.suppress(AssertionError):
                if containers := engine.docker("ps", "--all", "--quiet").split():
                    engine.docker("rm", "--force", "--volumes", *containers)
            dockerd.terminate()
            try:
                dockerd.wait(60)
            except subprocess.TimeoutExpired:
                dockerd.kill()
                dockerd.wait()
            shutil.rmtree(folder)


def _try(engine: Engine, dockerd: subprocess.Popen, log: Path) -> None:
    """Wait until the engine answers, and run a program of this machine in a container."""
    until = time.monotonic() + 120
    while True:
        try:
            engine.docker("info")
            break
        except AssertionError as error:
            if dockerd.poll() is not None or time.monotonic() > until:
                raise Unavailable(f"dockerd does not start: {log.read_text().strip()[-300:]}") from error
        time.sleep(0.1)
    try:
        engine.import_image("probe", "cd /; tar -c bin lib*")  # links into /usr
        engine.docker("run", "--rm", "--network", "none", "--volume", "/usr:/usr:ro", "probe", "/bin/true")
    except AssertionError as error:
        raise Unavailable(f"an engine runs here, but no container: {' '.join(str(error).split())}") from error


if __name__ == "__main__":
    try:
        with started(own_network="compose" in sys.argv[1:]):
            pass
    except Unavailable as reason:
        print(reason, file=sys.stderr)
        sys.exit(UNAVAILABLE)
