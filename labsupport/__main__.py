"""Run the `labsupport` command with `python -m labsupport`."""

from labsupport.cli import app

app()
