"""Record the run that notebooks/shipping.ipynb shows: `python tests/record_shipping.py`, or only a part: `docker`, `nginx`.

The first part runs the commands of `deploy.shipping.DOCKER` with an engine of its own, as the tests of the container do. The
second runs those of `NGINX` against a real nginx on port 8443, with the files of `deploy/nginx` and a real server behind it.
"""

import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import engine
import test_proxy
from deploy import shipping
from labsupport import images, paths
from labsupport.detection import Detector
from labsupport.protection.security import TokenGuard
from labsupport.serving import create_app, serve

BASE = "Debian 12 with Debian's Python 3.11, in place of python:3.11-slim-bookworm"
CODES = {"no token": 1, "write": 1, "call out": 1, "stranger": 60}  # the exit codes of the other steps are 0


def with_docker() -> tuple[dict, dict]:
    """Return how this part of the recording was made, and its results."""
    with engine.started() as docker:
        docker.import_base()
        os.environ.update(docker.env)
        shell = shipping.Shell()
        results = {}
        for name in shipping.DOCKER:
            results[name] = shell.run(name)
            print(f"{name}: {results[name].seconds} s")
        made = {"docker": shipping.version(), "machine": shipping.machine(), "base": BASE}
        shell.close()
    return made, results


def behind_nginx(detector: Detector, folder: Path) -> Iterator[tuple[str, shipping.Result]]:
    """Run each command of `NGINX` in a folder, against nginx and a server that wants its token. Yields names and results."""
    test_proxy.make_certificate(folder)
    shutil.copy(paths.IMAGES / "street_1.jpg", folder)
    (folder / "large.jpg").write_bytes(bytes(images.MAX_BYTES + 5_000_000))
    stable, candidate = (create_app(test_proxy.Named(name), root_path="/serve") for name in ("stable", "candidate"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_TOKEN", test_proxy.TOKEN)
        app = TokenGuard(create_app(detector, root_path="/serve"), test_proxy.TOKEN)
    with serve(app, port=0) as server, serve(stable, port=0) as first, serve(candidate, port=0) as second:
        weights = {"LAB_UPSTREAM": first.url[7:], "LAB_CANDIDATE": second.url[7:], "LAB_WEIGHT": "20%"}
        pools = {
            "gone": ("stable", {"LAB_UPSTREAM": f"127.0.0.1:{test_proxy.free_port()}"}),
            "canary": ("canary", weights),
        }
        for name, command in shipping.NGINX.items():
            pool, variables = pools.get(name, ("stable", {"LAB_UPSTREAM": server.url[7:]}))
            here = folder / name
            here.mkdir()
            with test_proxy.proxy(here, folder, pool, **variables) as port:
                done = shipping.run(command.replace("8443", str(port)), folder)
            yield name, done._replace(command=command)


def main(*parts: str) -> None:
    recording = shipping.recorded() if shipping.RECORDED.exists() else {"made": {}, "steps": {}}
    results = {name: shipping.Result(**step) for name, step in recording["steps"].items()}
    if "docker" in parts:
        made, done = with_docker()
        recording["made"] |= made
        results |= done
    if "nginx" in parts:
        with tempfile.TemporaryDirectory() as folder:
            results |= behind_nginx(Detector.load("yolov3-tiny", precision="f32"), Path(folder))
        said = subprocess.run(["/usr/sbin/nginx", "-v"], capture_output=True, text=True, check=True).stderr
        recording["made"]["nginx"] = said.strip().rpartition("/")[2]
    assert all(done.code == CODES.get(name, 0) for name, done in results.items()), results
    recording["made"]["date"] = datetime.date.today().isoformat()
    recording["sources"] = shipping.checksums()
    order = {**shipping.DOCKER, **shipping.NGINX}
    recording["steps"] = {name: results[name]._asdict() for name in order if name in results}
    shipping.RECORDED.write_text(json.dumps(recording, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:] or ("docker", "nginx"))
