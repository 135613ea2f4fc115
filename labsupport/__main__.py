"""`python -m labsupport` is the `labsupport` command."""

from labsupport.cli import app

app()
