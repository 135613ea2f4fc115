"""The containers of compose.yaml on an engine of the tests' own: which images stand in for the published ones, and how.

No registry of images is asked. Each image holds the program of this machine's Debian, which is older than the published one
(Debian 12: nginx 1.22, Prometheus 2.42), and what compose.yaml expects of the published image: where it reads its
configuration, who it runs as, what it does when it starts. Grafana is left out.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from engine import Engine
from labsupport import paths

LAB = paths.root()
# for the shell: make the folders of root/, and a function that copies programs and their libraries into it
COPY = """
copy() {
  for name in "$@"; do
    program=$(command -v "$name")
    { echo "$program"; ldd "$program" | grep -o '/[^ ]*'; } | xargs cp --parents --dereference --target-directory root
  done
}
mkdir -p root/tmp root/etc root/run root/usr/bin root/usr/lib root/usr/lib64
for name in bin lib lib64; do ln -s usr/$name root/$name; done
cp /etc/passwd /etc/group root/etc
"""
NGINX = (
    COPY
    + r"""
PATH=$PATH:/usr/sbin
copy nginx sh cat env sed envsubst
mkdir -p root/etc/nginx/conf.d root/var/log/nginx root/var/lib/nginx root/usr/share/nginx
cp /etc/nginx/mime.types root/etc/nginx
cat > root/etc/nginx/nginx.conf <<'END'
user www-data;
error_log /dev/stderr notice;
pid /run/nginx.pid;
events { }
http { include /etc/nginx/mime.types; include /etc/nginx/conf.d/*.conf; }
END
cat > root/docker-entrypoint.sh <<'END'
#!/bin/sh
set -e
names=$(env | sed -n 's/^\([A-Z_]*\)=.*/${\1}/p')
for template in /etc/nginx/templates/*.template; do
  name=${template##*/}
  envsubst "$names" < "$template" > "/etc/nginx/conf.d/${name%.template}"
done
exec "$@"
END
chmod 755 root/docker-entrypoint.sh
tar -C root -c ."""
)
PROMETHEUS = (
    COPY
    + """
copy prometheus
mkdir -p root/etc/prometheus root/prometheus
chown nobody root/prometheus
tar -C root -c ."""
)
STARTED = ["/usr/bin/prometheus", "--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]


def secrets(home: Path) -> Path:
    """Run the commands of deploy/README.md with `home` as HOME. Return the folder of secrets that they make."""
    page = (LAB / "deploy/README.md").read_text()
    script = page.partition("    export LAB_SECRETS")[2].partition("    docker compose")[0]
    # a strict umask: the page must itself make readable what the containers read
    script = "umask 077\nexport LAB_SECRETS" + script.replace("\n    ", "\n")
    subprocess.run(["bash", "-ec", script], env={**os.environ, "HOME": str(home)}, check=True, capture_output=True)
    return home / ".config/labsupport/secrets"


class Composed:
    """compose.yaml on an engine with a network of its own."""

    def __init__(self, engine: Engine, image: str, folder: Path) -> None:
        self.engine, self.secrets = engine, secrets(folder)
        wanted = yaml.safe_load((LAB / "compose.yaml").read_text())
        services = wanted["services"]
        self.name = wanted.pop("name")  # docker-compose of Debian 12 takes it as an option only
        services["server"].pop("build")
        services["server"]["image"] = image
        del services["grafana"]
        engine.import_image(services["nginx"]["image"], NGINX)
        changes = (f"ENTRYPOINT {json.dumps(STARTED)}", "USER nobody", "WORKDIR /prometheus", "VOLUME /prometheus")
        engine.import_image(services["prometheus"]["image"], PROMETHEUS, *changes)
        self.file = folder / "compose.yaml"
        self.file.write_text(yaml.safe_dump(wanted))

    def compose(self, *words: str) -> str:
        """Run docker-compose, and return its output. Raises AssertionError with its errors if it fails."""
        options = ["--project-name", self.name, "--project-directory", LAB, "--file", self.file]
        env = os.environ | self.engine.env | {"LAB_SECRETS": str(self.secrets)}
        done = subprocess.run(
            ["docker-compose", *options, *words], env=env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def container(self, service: str) -> str:
        return self.compose("ps", "--quiet", service).strip()

    @contextlib.contextmanager
    def up(self) -> Iterator[None]:
        try:
            self.compose("up", "--detach", "--no-build")
            yield
        finally:
            self.compose("down", "--volumes")

    def run(self, program: str) -> str:
        """Run a Python program where the published ports are, with `session` and `token`; return what it prints."""
        begin = f"""
import json, sys, requests
session = requests.Session()
session.trust_env = False
session.verify = {str(self.secrets / "tls" / "lab.crt")!r}
token = open({str(self.secrets / "lab_token")!r}).read().strip()
"""
        enter = ["nsenter", "--target", str(self.engine.pid), "--net", sys.executable, "-c", begin + program]
        done = subprocess.run(enter, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout
