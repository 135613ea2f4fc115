"""Run the commands about people: who may use the server, what they did, and how all of one person is removed."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from labsupport.cli.app import command

if TYPE_CHECKING:
    from labsupport.access import Access

Log = Annotated[
    str | None, typer.Option(envvar="LAB_LOG", help="the log of the server, unless it is in the lab's folder")
]
Change = StrEnum("Change", "list add revoke")
Role = StrEnum("Role", "reader client operator admin")


def _access() -> "Access":
    from labsupport import paths
    from labsupport.access import Access

    return Access(paths.root_or_data())


@command
def users(
    change: Annotated[Change, typer.Argument(help="what to do")] = Change.list,
    name: Annotated[str | None, typer.Argument(help="whom to add, or whose token to revoke")] = None,
    role: Annotated[Role | None, typer.Option(help="of the new person")] = None,
) -> None:
    """List the people who may use the server, add one, or revoke a token.

    A reader sees metrics, dashboard and rollout. A client sends pictures, and sees only its own. An operator does both, and
    changes the rollout. An admin also sees the predictions of others. Example: labsupport users add ana --role client
    """
    access = _access()
    people = access.users
    if change is Change.list:
        if name or role:
            raise ValueError("list takes no name and no role: leave them out, or write add or revoke")
        for one in people.all():
            state = "valid" if one.revoked is None else f"revoked {_day(one.revoked)}"
            typer.echo(f"{one.name:20} {one.role:9} since {_day(one.since)}  {state}  {one.id}")
    elif not name:
        raise ValueError(f"{change} needs a name, as in labsupport users {change} ana")
    elif change is Change.revoke:
        if role:
            raise ValueError("revoke takes no role: leave out --role")
        people.revoke(name)
        typer.echo(f"the token of {name} is revoked, from the next request on")
    else:
        if role is None:
            raise ValueError(f"add needs a role: give one of --role {', --role '.join(Role)}")
        access.keys.make_folder()  # it must be usable before there are people
        token = people.add(name, role.value)
        typer.echo(f"{name} is a {role}. The token is shown once, send it in Authorization: Bearer ...\n{token}")


@command
def audit(
    person: Annotated[str | None, typer.Option(help="only the entries of this person, by name or id")] = None,
) -> None:
    """Check the audit trail, and print who did what, when, from where, on which object and with what effect.

    The exit status is 1 if an entry was changed, removed, exchanged or added, or if the newest entries are missing.
    """
    from labsupport.access import ID, RESERVED, lines

    access = _access()
    names = {one.id: one.name for one in access.users.all()}
    ids = {name: id for id, name in names.items()}
    id = None if person is None else ids.get(person, person)
    # an id may be of somebody who was forgotten
    if id is not None and id not in (*names, *RESERVED) and not ID.fullmatch(id):
        raise ValueError(f"--person={person!r}: nobody has this name: labsupport users lists all")
    for line in lines(access.trail, names, person=id):
        typer.echo(line)
    verdict = access.trail.verify()
    typer.echo(f"the audit trail is {verdict}", err=not verdict.intact)
    if not verdict.intact:
        raise typer.Exit(1)


@command
def forget(name: Annotated[str, typer.Argument(help="whom: labsupport users lists all")], log: Log = None) -> None:
    """Remove a person, and all predictions, remarks, pictures and review items of this person.

    The audit trail keeps the person's id, but no longer a name for it. Set LAB_KEYS and LAB_LOG as for the server.
    """
    from labsupport.cli import forgetting

    access = _access()
    person = next((one for one in access.users.all() if one.name == name), None)
    if person is None:
        raise ValueError(f"name={name!r}: nobody has this name: labsupport users lists all")
    if person.revoked is None:
        access.users.revoke(name)  # first, so that no new picture comes meanwhile
    for line in forgetting.forget(person.id, access.folder, access.key_folder, log or None):
        typer.echo(line)
    access.users.forget(name)  # last, so that the same command can go on if a step fails
    typer.echo(f"the name and the token of {name}: removed")


def _day(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC")
