"""The lab on AWS Elastic Beanstalk: `python -m deploy.aws.beanstalk` says what it would do, `deploy --apply` does it.

Every command first looks at what there is and lists the steps that are missing. So a second run finds none, and a run that
was interrupted goes on where it was. deploy/aws/README.md is the lesson that goes with it.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from botocore.exceptions import BotoCoreError, ClientError

from deploy.aws import bundle, environments, steps
from deploy.aws.account import Account, NotDeployed
from deploy.aws.environments import Check
from deploy.aws.roles import missing_roles
from deploy.aws.steps import Step

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "images" / "street_1.jpg"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)
Apply = Annotated[bool, typer.Option("--apply", help="do it; without, only say what would be done")]


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        run(_deploy, apply=False)


@app.command()
def deploy(apply: Apply = False) -> None:
    """Bring this checkout to the active environment, in place: a new instance takes over when it is well."""
    run(_deploy, apply)


@app.command()
def swap(apply: Apply = False) -> None:
    """Bring this checkout to a second environment, check it there, then exchange the CNAMEs: blue/green."""
    run(_swap, apply)


@app.command()
def back(apply: Apply = False) -> None:
    """Exchange the CNAMEs again: the other environment, as it is, becomes the active one."""
    run(_back, apply)


@app.command()
def terminate(apply: Apply = False) -> None:
    """End the environment that is not active. After that there is nothing to swap back to."""
    run(_terminate, apply)


@app.command()
def roles(apply: Apply = False) -> None:
    """Create the three roles, once for an account, by somebody who may; `deploy` itself never touches rights."""
    run(missing_roles, apply)


@app.command()
def clean(apply: Apply = False) -> None:
    """Remove everything that `deploy` and `swap` have made, so that nothing is billed any more."""
    run(steps.to_clean, apply)


def run(missing: Callable[[Account], list[Step]], apply: bool) -> None:
    """Say the steps, and do them if that is what was asked for; every error that has a name ends in exit code 1."""
    try:
        found = missing(Account())
        for step in found:
            typer.echo(step.says if apply else f"would {step.says}")
            if apply:
                step.do()
    except (NotDeployed, bundle.BundleRefused, BotoCoreError, ClientError) as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        raise typer.Exit(1) from None
    if not found:
        typer.echo("nothing to change")
    elif not apply:
        typer.echo("nothing has been changed: --apply does it")


def _deploy(account: Account) -> list[Step]:
    made, (active, _), token = bundle.make(ROOT), steps.both(account), steps.token_of(account)
    check, name = Check(token, PICTURE.read_bytes()), active.name if active else steps.COLOURS[0]
    missing = [
        *steps.for_version(account, made),
        *steps.for_token(account, token),
        *steps.for_environment(account, made, active, name, account.active, check),
    ]
    if not missing:
        environments.confirm(account, active.name, active.version, check)
    return missing


def _swap(account: Account) -> list[Step]:
    made, (active, other), token = bundle.make(ROOT), steps.both(account), steps.token_of(account)
    if active is None:
        raise NotDeployed("there is no active environment to swap with: deploy one first")
    check = Check(token, PICTURE.read_bytes())
    if active.version == made.label:
        environments.confirm(account, active.name, active.version, check)  # an earlier swap may have been cut off
        return []
    name = other.name if other else next(colour for colour in steps.COLOURS if colour != active.name)
    ready = steps.for_environment(account, made, other, name, account.preview, check)
    return [
        *steps.for_version(account, made),
        *steps.for_token(account, token),
        *(ready or [_checked(account, name, made.label, check)]),  # it is there, maybe because it failed its check
        *steps.for_swap(account, name, active, check),
    ]


def _back(account: Account) -> list[Step]:
    active, other = steps.both(account)
    if active is None or other is None:
        raise NotDeployed("there is no second environment to swap back to")
    check = Check(steps.token_of(account), PICTURE.read_bytes())
    ask = _checked(account, other.name, other.version, check)
    return [ask, *steps.for_swap(account, other.name, active, check)]


def _checked(account: Account, name: str, version: str, check: Check) -> Step:
    return Step(f"check {name} with version {version}", partial(environments.confirm, account, name, version, check))


def _terminate(account: Account) -> list[Step]:
    _, other = steps.both(account)
    return steps.to_terminate(account, other) if other else []


if __name__ == "__main__":
    app()
