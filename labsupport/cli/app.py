"""Define the `labsupport` command, to which `commands` and `people` add their subcommands."""

import functools
from collections.abc import Callable
from typing import ParamSpec

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Check this installation, install models, serve, detect, process folders, and change which version answers.",
)

# errors caused by users and their machines, shown in one line
TROUBLE = (OSError, ValueError, RuntimeError, ImportError)

Arguments = ParamSpec("Arguments")


def command(function: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Make a command from a function. An error in `TROUBLE` becomes one line on stderr and exit status 1."""

    @functools.wraps(function)
    def in_one_line(*args: Arguments.args, **options: Arguments.kwargs) -> None:
        try:
            function(*args, **options)
        except (typer.Exit, typer.Abort):  # these are RuntimeErrors
            raise
        except TROUBLE as error:
            complain(" ".join(str(error).split()) or type(error).__name__)
            raise typer.Exit(1) from None

    return app.command()(in_one_line)


def complain(text: str) -> None:
    """Print a line about a problem to stderr."""
    typer.echo(f"labsupport: {text}", err=True)
