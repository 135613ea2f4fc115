"""Rehearse the commands of `deploy.aws.beanstalk` without an account: the real code, against a stand-in for AWS.

S3, the Parameter Store and STS are moto's, and so is a part of Elastic Beanstalk; `fake_beanstalk` adds the rest. No call
leaves this machine, nothing is paid for, and waiting takes no time. notebooks/shipping.ipynb shows it.
"""

import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import moto
import urllib3
from typer.testing import CliRunner

from deploy.aws import beanstalk, bundle, environments, fake_beanstalk, steps
from labsupport import paths

NAMES = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
POLL = 50  # seconds of the stand-in's time between two looks


class _Patches(ExitStack):
    """Replace attributes until it is closed, with the one method that `fake_beanstalk.install` calls."""

    def setattr(self, owner: object, name: str, value: object, raising: bool = True) -> None:
        self.enter_context(mock.patch.object(owner, name, value, create=not raising))


class Rehearsal:
    """An account of the stand-in, and a copy of the checkout that may be changed. `close` ends it.

    `port` is that of a server on this machine, which was started with `LAB_TOKEN`. It answers for every environment, unless
    `answered_by` names another one.
    """

    def __init__(self, port: int) -> None:
        self._patches = _Patches()
        self._fake = fake_beanstalk.Fake(servers={"any": port})
        try:
            self._begin()
        except BaseException:
            self._patches.close()
            raise

    def _begin(self) -> None:
        self.checkout = Path(self._patches.enter_context(tempfile.TemporaryDirectory()))
        for name in bundle.make(paths.root()).names:
            if not name.startswith(".platform/"):
                (self.checkout / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(paths.root() / name, self.checkout / name)
        self._patches.enter_context(mock.patch.dict(os.environ, {**NAMES, "NO_PROXY": "*"}))
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
            os.environ.pop(name, None)
        self._patches.setattr(beanstalk, "ROOT", self.checkout)
        self._patches.setattr(environments, "POLL", POLL)
        for module in (environments, steps):
            self._patches.setattr(module, "sleep", self._fake.advance)
        connection = urllib3.util.connection
        self._patches.setattr(connection, "create_connection", self._fake.connect(connection.create_connection))
        self._patches.enter_context(moto.mock_aws())
        fake_beanstalk.install(self._fake, self._patches)

    def close(self) -> None:
        """Forget the account, and remove the copy of the checkout."""
        self._patches.close()

    @property
    def version(self) -> str:
        """The name of the version that the copy of the checkout makes."""
        return bundle.make(self.checkout).label

    def change(self, name: str = "labsupport/paths.py") -> str:
        """Add a comment to one file of the copy, and return the name of the version that it makes now."""
        with (self.checkout / name).open("a") as file:
            file.write("# changed\n")
        return self.version

    def answered_by(self, version: str, port: int) -> None:
        """Let the server on another port answer for every environment that runs this version."""
        self._fake.servers[version] = port

    def run(self, *words: str) -> int:
        """Print a command of `deploy.aws.beanstalk` and its output, and return its exit code."""
        done = CliRunner().invoke(beanstalk.app, words)
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        print(" ".join(("$ python -m deploy.aws.beanstalk", *words)) + f"\n{done.output}")
        return done.exit_code

    def table(self) -> list[dict[str, str]]:
        """Return the environments that there are: name, CNAME, version and health."""
        there = [one for one in self._fake.environments.values() if one.status != "Terminated"]
        return [
            {
                "environment": one.environment_name,
                "CNAME": one.cname,
                "version": one.version_label,
                "health": one.health,
            }
            for one in there
        ]
