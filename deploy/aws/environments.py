"""An environment of Elastic Beanstalk: what it is made of, whether it is well, and back to what it was if it is not.

An environment is one version of the lab on machines of its own, behind a CNAME of its own. Elastic Beanstalk says when it is
Ready and Green; whether it can tell a car from a tree, we ask ourselves. Nothing here prints or keeps the token.
"""

import re
from collections.abc import Callable
from time import sleep
from typing import NamedTuple

import requests
import typer

from deploy.aws.account import APPLICATION, OPERATIONS, Account, NotDeployed, as_options, settings
from labsupport.detection import NOT_OURS, read_answer, read_ready

POLL = 10  # seconds
PATIENCE = 3600  # seconds: every new instance builds the image itself
SETTLE = 300  # seconds from Ready to Green, and until the CNAME is known
DNS = 60  # seconds for which a resolver may go by the CNAME's old meaning
DOCKER = re.compile(r"64bit Amazon Linux 2023 v([\d.]+) running Docker")


class Unhealthy(NotDeployed):
    """The environment is not well."""


class RolledBack(NotDeployed):
    """The change was not well, and was taken back."""


class Environment(NamedTuple):
    """What Elastic Beanstalk says of an environment."""

    name: str
    status: str  # Launching, Updating, Ready, Terminating, Terminated
    health: str  # Grey, Green, Yellow, Red
    version: str  # its label
    cname: str

    @property
    def url(self) -> str:
        return f"http://{self.cname}"


class Check(NamedTuple):
    """What we ask an environment ourselves: is it ready, and what is in this picture?"""

    token: str
    picture: bytes  # a JPEG with something in it

    def ask(self, url: str) -> str:
        """What it says. Asked again for `SETTLE` seconds: a new name has to get around first. Raises `Unhealthy`."""
        for _ in range(SETTLE // POLL):
            try:
                return self._once(url)
            except (requests.RequestException, Unhealthy) as error:
                problem = error
                sleep(POLL)
        raise Unhealthy(f"{url} fails the check: {problem}")

    def _once(self, url: str) -> str:
        headers = {"Authorization": f"Bearer {self.token}"}
        ready = requests.get(f"{url}/ready", headers=headers, timeout=10, allow_redirects=False)
        if ready.status_code != 200:
            raise Unhealthy(f"/ready answers {ready.status_code}")
        files = {"file": ("picture.jpg", self.picture, "image/jpeg")}
        answer = requests.post(f"{url}/detect", headers=headers, files=files, timeout=60, allow_redirects=False)
        if answer.status_code != 200:
            raise Unhealthy(f"/detect answers {answer.status_code}")
        try:
            read_ready(ready.json())
            version, found = read_answer(answer.json())
        except NOT_OURS as error:
            raise Unhealthy(f"{url} does not answer as the lab's server does: {error!r}") from error
        if not found:
            raise Unhealthy("/detect finds nothing in a picture of a street")
        return f"{url} is ready: {version} finds {len(found)} objects"


def deployed_settings(account: Account, name: str) -> dict[tuple[str, str], str]:
    """What is set in an environment, of what `settings` sets."""
    answer = account.beanstalk.describe_configuration_settings(ApplicationName=APPLICATION, EnvironmentName=name)
    deployed = next(one for one in answer["ConfigurationSettings"] if one.get("DeploymentStatus") != "pending")
    found = {(one["Namespace"], one["OptionName"]): one.get("Value", "") for one in deployed["OptionSettings"]}
    return {key: found[key] for key in settings(account) if key in found}


def all_of(account: Account) -> list[Environment]:
    """The application's environments, without those that were terminated (which stay listed for an hour)."""
    answer = account.beanstalk.describe_environments(ApplicationName=APPLICATION, IncludeDeleted=False)
    keys = ("EnvironmentName", "Status", "Health", "VersionLabel", "CNAME")
    return [Environment(*(one.get(key, "") for key in keys)) for one in answer["Environments"]]


def find(account: Account, name: str) -> Environment:
    """One of them by its name. Raises `Unhealthy` if it is gone."""
    for environment in all_of(account):
        if environment.name == name:
            return environment
    raise Unhealthy(f"{name} is gone")


def create(account: Account, name: str, prefix: str, version: str, check: Check) -> None:
    """Make an environment, and check it. Raises `Unhealthy`, and then leaves it there to be looked at."""
    stacks = account.beanstalk.list_available_solution_stacks()["SolutionStacks"]
    versions = {stack: found[1] for stack in stacks if (found := DOCKER.fullmatch(stack))}
    if not versions:
        raise NotDeployed(f"no Docker platform on Amazon Linux 2023 in {account.region}: choose another region")
    account.beanstalk.create_environment(
        ApplicationName=APPLICATION,
        EnvironmentName=name,
        CNAMEPrefix=prefix,
        VersionLabel=version,
        SolutionStackName=max(versions, key=lambda stack: [int(part) for part in versions[stack].split(".")]),
        OptionSettings=as_options(settings(account)),
        OperationsRole=f"arn:aws:iam::{account.number}:role/{OPERATIONS}",
    )
    confirm(account, name, version, check)


def confirm(account: Account, name: str, version: str, check: Check) -> None:
    """Elastic Beanstalk finds it well, and so do we. Raises `Unhealthy`."""
    typer.echo(check.ask(wait(account, name, version).url))


def change(account: Account, environment: Environment, wanted: dict, previous: dict, check: Check) -> None:
    """Update an environment with `wanted`, and with `previous` if it is not well then. Raises `RolledBack`.

    Both are arguments of `update_environment`: a VersionLabel or OptionSettings, which it does not take together.
    """
    try:
        _update(account, environment, wanted, check)
    except Unhealthy as problem:
        typer.echo(f"{problem}: rolling back")
        try:
            if "VersionLabel" in previous and find(account, environment.name).version == environment.version:
                previous = {}  # Elastic Beanstalk was there first
            _update(account, environment, previous, check)
        except Unhealthy as worse:
            raise NotDeployed(
                f"{problem}; rolled back to {environment.version}, which is not well either: {worse}"
            ) from None
        raise RolledBack(f"{problem}; rolled back to {environment.version}, which is well") from None


def _update(account: Account, environment: Environment, arguments: dict, check: Check) -> None:
    if arguments:
        account.beanstalk.update_environment(EnvironmentName=environment.name, **arguments)
    confirm(account, environment.name, arguments.get("VersionLabel", environment.version), check)


def wait(account: Account, name: str, version: str) -> Environment:
    """Until it is Ready with this version and Green. Raises `Unhealthy` when it is not, or not within `PATIENCE` seconds."""
    environment = _watch(account, name, PATIENCE, lambda now: now.status == "Ready")
    if environment.status == "Updating":
        account.beanstalk.abort_environment_update(EnvironmentName=name)
        _watch(account, name, PATIENCE, lambda now: now.status == "Ready")
    if environment.status != "Ready":
        raise Unhealthy(f"{name} is {environment.status} after {PATIENCE} seconds{_why(account, name)}")
    if environment.version != version:
        raise Unhealthy(f"{name} was turned back by Elastic Beanstalk{_why(account, name)}")
    environment = _watch(account, name, SETTLE, lambda now: now.health == "Green")
    if environment.health != "Green":
        raise Unhealthy(f"{name} is {environment.health}{_why(account, name)}")
    return environment


def _watch(account: Account, name: str, seconds: int, enough: Callable[[Environment], bool]) -> Environment:
    """The environment as soon as it is `enough`, or as it is after so many seconds; prints what changes."""
    said = None
    for _ in range(seconds // POLL):
        environment = find(account, name)
        if (now := f"{name}: {environment.status}, {environment.health}") != said:
            typer.echo(said := now)
        if enough(environment):
            break
        sleep(POLL)
    return environment


def _why(account: Account, name: str) -> str:
    events = account.beanstalk.describe_events(EnvironmentName=name, Severity="ERROR", MaxRecords=3)["Events"]
    return "".join(f"; {event['Message']}" for event in events)


def swap(account: Account, candidate: Environment, active: Environment, check: Check) -> None:
    """Exchange the CNAMEs of two environments, and exchange them again if users are not well then. Raises `RolledBack`."""
    try:
        _swapped(account, candidate, active, active.url, check)
    except Unhealthy as problem:
        typer.echo(f"{problem}: swapping back")
        try:
            _swapped(account, active, candidate, active.url, check)
        except Unhealthy as worse:
            raise NotDeployed(f"{problem}; swapped back to {active.name}, which is not well either: {worse}") from None
        raise RolledBack(f"{problem}; swapped back to {active.name}, which is well") from None


def _swapped(account: Account, comes: Environment, goes: Environment, url: str, check: Check) -> None:
    account.beanstalk.swap_environment_cnames(SourceEnvironmentName=goes.name, DestinationEnvironmentName=comes.name)
    _watch(account, goes.name, PATIENCE, lambda now: now.status == "Ready")  # no more: it may go because it is not well
    wait(account, comes.name, comes.version)
    sleep(DNS)  # before that we might be asking the other one
    typer.echo(check.ask(url))


def terminate(account: Account, name: str) -> None:
    """End an environment and everything that is billed for it, and wait until it has gone. Raises `NotDeployed`."""
    account.beanstalk.terminate_environment(EnvironmentName=name)
    for _ in range(PATIENCE // POLL):
        if name not in [environment.name for environment in all_of(account)]:
            return
        sleep(POLL)
    raise NotDeployed(f"{name} is still there after {PATIENCE} seconds: look in the console, for it is billed")
