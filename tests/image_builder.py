"""The Dockerfile's own steps, executed without a Docker engine: in roots made by debootstrap, with Linux's namespaces.

It takes the instructions that our Dockerfile uses, and refuses any other. What an engine would do besides (layers, its
cache, a registry, network bridges) is not here.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path

SUITE = "bookworm"  # python:3.11-slim-bookworm is this Debian, and a Python 3.11 in /usr/local instead of /usr
NEEDED = ("debootstrap", "unshare", "nsenter", "setpriv", "chroot", "ip")
STOP = 10  # seconds that an engine leaves a container to stop in


def missing() -> list[str]:
    """What keeps this machine from building: programs, or not being root."""
    programs = [name for name in NEEDED if not shutil.which(name)]
    if (
        not programs
        and subprocess.run(["unshare", "--mount", "--pid", "--net", "true"], capture_output=True).returncode
    ):
        return ["to be root, and allowed to make namespaces"]
    return programs


@dataclass
class Image:
    """A root's folder, and what the Dockerfile says of how to run it."""

    root: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"})
    user: str = "0:0"
    workdir: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    cmd: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)

    def size(self) -> int:
        """Bytes, unpacked."""
        return 1024 * int(subprocess.check_output(["du", "-sk", self.root], text=True).split()[0])


def instructions(text: str) -> list[tuple[str, str]]:
    """A Dockerfile's instructions in order, lines that go on joined and comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in joined.splitlines() if line.strip()]


def build(dockerfile: Path, scratch: Path) -> Image:
    """Execute a Dockerfile; its folder is the context. Returns the last stage's image."""
    base, stages, image = debian(scratch / "base"), {}, None
    for name, rest in instructions(dockerfile.read_text()):
        if name == "FROM":
            words = rest.split()
            assert words[0] in ("python:3.11-slim-bookworm", *stages), f"no base {words[0]} here"
            earlier = stages.get(words[0], Image(base))
            image = replace(earlier, root=scratch / f"stage{len(stages)}", env=dict(earlier.env))
            subprocess.run(["cp", "-a", "--reflink=auto", earlier.root, image.root], check=True)
            stages[words[2] if len(words) > 1 else "last"] = image
        else:
            STEPS[name](image, rest, dockerfile.parent, stages)
    return image


def debian(root: Path) -> Path:
    """A Debian with Python, and nothing else of note."""
    mirrors = subprocess.check_output(["apt-get", "indextargets", "--format", "$(REPO_URI)"], text=True).split()
    mirror = next(address for address in mirrors if "security" not in address)
    command = [
        "debootstrap",
        "--variant=minbase",
        "--include=python3,python3-venv,ca-certificates",
        SUITE,
        root,
        mirror,
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for archive in (root / "var/cache/apt/archives").glob("*.deb"):  # an image from a registry comes without them
        archive.unlink()
    shutil.rmtree(root / "var/lib/apt/lists")
    return root


def _run(image: Image, rest: str, context: Path, stages: dict) -> None:
    """In a chroot, with the builder's network and its package registry."""
    registry = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "REQUESTS_"))}
    script = [f"mount --rbind {path} {image.root}{path}" for path in _lent(image)]
    script += [f"exec chroot {image.root} /bin/sh -c {shlex.quote(f'cd {image.workdir} && {rest}')}"]
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", "\n".join(script)]
    done = subprocess.run(command, env=registry | image.env, capture_output=True, text=True)
    assert done.returncode == 0, f"RUN {rest}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def _lent(image: Image) -> list[str]:
    """What a step sees of the machine that builds: its devices, names, certificates and package registry."""
    wanted = ["/dev", "/proc", "/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/ssl/certs"]
    said = os.environ.get("PIP_CONFIG_FILE", "") + " " + os.environ.get("PIP_FIND_LINKS", "")
    wanted += [path for path in said.split() if path.startswith("/")]
    lent = [path for path in wanted if Path(path).exists()]
    for path in lent:
        inside = Path(f"{image.root}{path}")
        if Path(path).is_dir():
            inside.mkdir(parents=True, exist_ok=True)
        elif not inside.exists():
            inside.parent.mkdir(parents=True, exist_ok=True)
            inside.touch()
    return lent


def _copy(image: Image, rest: str, context: Path, stages: dict) -> None:
    *sources, target = [word for word in rest.split() if not word.startswith("--")]
    origin = re.match(r"--from=(\S+)", rest)
    base = stages[origin[1]].root if origin else context
    for source in sources:
        path, inside = base / source.lstrip("/"), image.root / target.lstrip("/")
        if path.is_dir():
            shutil.copytree(
                path, inside, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            inside = inside / path.name if target.endswith("/") else inside
            inside.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, inside)


def _workdir(image: Image, rest: str, *others) -> None:
    image.workdir = rest
    (image.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)


def _health(image: Image, rest: str, *others) -> None:
    image.health = json.loads(rest.partition("CMD ")[2])


STEPS = {
    "RUN": _run,
    "COPY": _copy,
    "WORKDIR": _workdir,
    "HEALTHCHECK": _health,
    "ENV": lambda image, rest, *others: image.env.update(word.split("=", 1) for word in shlex.split(rest)),
    "USER": lambda image, rest, *others: setattr(image, "user", rest),
    "VOLUME": lambda image, rest, *others: image.volumes.append(rest),
    "EXPOSE": lambda image, rest, *others: image.ports.append(int(rest)),
    "ENTRYPOINT": lambda image, rest, *others: setattr(image, "entrypoint", json.loads(rest)),
    "CMD": lambda image, rest, *others: setattr(image, "cmd", json.loads(rest)),
    "STOPSIGNAL": lambda image, rest, *others: None if rest == "SIGTERM" else 1 / 0,
}


class Container:
    """An image's command at work: its root read-only, without capabilities, in a network that holds nothing but itself."""

    def __init__(self, image: Image, volume: Path, env: dict[str, str], console, *arguments: str) -> None:
        self.image = image
        uid, gid = image.user.split(":")
        root = image.root
        for folder in ("proc", "dev", "tmp"):
            (root / folder).mkdir(exist_ok=True)
        mounts = [
            f"mount --bind {root} {root}",
            f"mount -o remount,bind,ro {root}",
            f"mount -t proc proc {root}/proc",
            f"mount -t tmpfs -o mode=755 tmpfs {root}/dev",
            *(f"touch {root}/dev/{name} && mount --bind /dev/{name} {root}/dev/{name}" for name in ("null", "urandom")),
            f"mkdir {root}/dev/shm && mount -t tmpfs tmpfs {root}/dev/shm",
            f"mount -t tmpfs -o mode=1777 tmpfs {root}/tmp",
            f"mount --bind {volume} {root}{image.volumes[0]}",
            "ip link set lo up",
        ]
        least = f"setpriv --reuid {uid} --regid {gid} --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all"
        words = shlex.join([*image.entrypoint, *(arguments or image.cmd)])
        clean = shlex.join(["env", "-i", *(f"{name}={value}" for name, value in (image.env | env).items())])
        inside = shlex.quote(f"cd {image.workdir} && exec {words}")
        start = f"exec {clean} {shutil.which('chroot')} {root} {least} /bin/sh -c {inside}"
        script = "\n".join([*mounts, start])
        command = [
            "unshare",
            "--mount",
            "--pid",
            "--net",
            "--ipc",
            "--uts",
            "--fork",
            "--kill-child",
            "sh",
            "-ec",
            script,
        ]
        self.process = subprocess.Popen(command, stdout=console, stderr=console)

    @property
    def pid(self) -> int:
        """Its first process, as the machine numbers it."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def inside(self, command: list[str]) -> subprocess.CompletedProcess:
        """Run a command of the image in the container's namespaces, as its user: `docker exec`."""
        uid, gid = self.image.user.split(":")
        enter = ["nsenter", "--target", str(self.pid), "--net", "--pid", "--mount"]
        enter += [shutil.which("chroot"), self.image.root]
        as_user = ["setpriv", "--reuid", uid, "--regid", gid, "--clear-groups"]
        return subprocess.run([*map(str, enter), *as_user, *command], capture_output=True, env=self.image.env)

    def stop(self) -> int:
        """SIGTERM, as `docker stop` sends it; the exit code. Raises `subprocess.TimeoutExpired` after the grace period."""
        os.kill(self.pid, 15)
        try:
            return self.process.wait(STOP)
        finally:
            self.kill()

    def kill(self) -> None:
        """At once, whatever it does: unshare's own --kill-child is undone when setpriv changes the user."""
        with contextlib.suppress(IndexError, FileNotFoundError, ProcessLookupError):
            os.kill(self.pid, 9)  # the first process of its namespace takes all others along
        self.process.kill()
        self.process.wait()
