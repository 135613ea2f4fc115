"""Run the `labsupport` command: check the installation, install models, serve, detect, process a folder, manage users."""

from labsupport.cli import certificates, commands, people
from labsupport.cli.app import app

__all__ = ["app", "certificates", "commands", "people"]
