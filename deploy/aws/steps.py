"""From what there is to what there should be: the steps that are missing, each with the words in which we announce it.

Nothing in here changes anything until a step is done. If all is as it should be, there are no steps.
"""

import os
from collections.abc import Callable
from functools import partial
from time import sleep
from typing import NamedTuple

from deploy.aws import environments
from deploy.aws.account import APPLICATION, PARAMETER, Account, NotDeployed, as_options, settings
from deploy.aws.bundle import Bundle
from deploy.aws.environments import Check, Environment
from labsupport.protection import unfit

COLOURS = (f"{APPLICATION}-blue", f"{APPLICATION}-green")
PROCESSING = 600  # seconds for Elastic Beanstalk to look through a bundle


class TokenMissing(NotDeployed):
    """There is no token, and without one nobody should reach the server."""


class Step(NamedTuple):
    """One thing to do, and how we say it."""

    says: str
    do: Callable[[], object]


# what there is


def both(account: Account) -> tuple[Environment | None, Environment | None]:
    """The active environment and the other one. Raises `NotDeployed` while something is being done to one of them."""
    found = environments.all_of(account)
    if busy := [one for one in found if one.status != "Ready"]:
        raise NotDeployed(f"{busy[0].name} is {busy[0].status}: wait until it is Ready, then try again")
    active = next((one for one in found if one.cname.split(".")[0] == account.active), None)
    return active, next((one for one in found if one is not active and one.name in COLOURS), None)


def has_application(account: Account) -> bool:
    answer = account.beanstalk.describe_applications(ApplicationNames=[APPLICATION])
    return APPLICATION in [one["ApplicationName"] for one in answer["Applications"]]


def version_status(account: Account, label: str) -> str | None:
    answer = account.beanstalk.describe_application_versions(ApplicationName=APPLICATION, VersionLabels=[label])
    return next((one["Status"].lower() for one in answer["ApplicationVersions"]), None)


def uploads(account: Account) -> list[str]:
    """The keys of our bundles; an account keeps at most 1,000 versions, which is one page of the listing."""
    try:
        answer = account.s3.list_objects_v2(Bucket=account.bucket, Prefix=f"{APPLICATION}/")
    except account.s3.exceptions.NoSuchBucket:
        return []
    return [one["Key"] for one in answer.get("Contents", [])]


def stored_token(account: Account) -> str | None:
    try:
        return account.ssm.get_parameter(Name=PARAMETER, WithDecryption=True)["Parameter"]["Value"]
    except account.ssm.exceptions.ParameterNotFound:
        return None


def token_of(account: Account) -> str:
    """The token that the server asks for: the one in the Parameter Store, else `LAB_TOKEN`. Raises `TokenMissing`."""
    stored, given = stored_token(account), os.environ.get("LAB_TOKEN", "").strip()
    if stored and given and stored != given:
        raise TokenMissing(f"LAB_TOKEN is not the token in {PARAMETER}: unset it, or change that as the README says")
    if not (stored or given):
        raise TokenMissing('no token: export LAB_TOKEN="$(openssl rand -hex 16)"')
    if problem := unfit(stored or given):  # our server would not start with it
        raise TokenMissing(f"the token {problem}")
    return stored or given


# what is missing


def for_version(account: Account, made: Bundle) -> list[Step]:
    """Before an environment can run this bundle. Raises `NotDeployed` if Elastic Beanstalk found it faulty before."""
    key, keys, known = f"{APPLICATION}/{made.label}.zip", uploads(account), has_application(account)
    status = version_status(account, made.label) if known else None
    if status == "failed":
        raise NotDeployed(f"Elastic Beanstalk found version {made.label} faulty: look at its events, change the bundle")
    steps = []
    if not keys:
        steps.append(Step(f"have the storage location {account.bucket}", account.beanstalk.create_storage_location))
    if key not in keys:
        upload = partial(account.s3.put_object, Bucket=account.bucket, Key=key, Body=made.content)
        size = f"{len(made.names)} files, {len(made.content):,} bytes"
        steps.append(Step(f"upload s3://{account.bucket}/{key} ({size})", upload))
    if not known:
        add = partial(account.beanstalk.create_application, ApplicationName=APPLICATION)
        steps.append(Step(f"create the application {APPLICATION}", add))
    if status is None:
        steps.append(Step(f"create the version {made.label}", partial(_create_version, account, made.label, key)))
    return steps


def _create_version(account: Account, label: str, key: str) -> None:
    source = {"S3Bucket": account.bucket, "S3Key": key}
    account.beanstalk.create_application_version(
        ApplicationName=APPLICATION, VersionLabel=label, SourceBundle=source, Process=True
    )
    for _ in range(PROCESSING // environments.POLL):
        if (status := version_status(account, label)) == "processed":
            return
        if status == "failed":
            break
        sleep(environments.POLL)
    raise NotDeployed(f"Elastic Beanstalk has version {label} as {status}, not as processed: look at its events")


def for_token(account: Account, token: str) -> list[Step]:
    if stored_token(account):
        return []
    keep = partial(account.ssm.put_parameter, Name=PARAMETER, Value=token, Type="SecureString")
    return [Step(f"keep LAB_TOKEN encrypted in {PARAMETER}", keep)]


def for_environment(
    account: Account, made: Bundle, there: Environment | None, name: str, prefix: str, check: Check
) -> list[Step]:
    """Until it has these settings and runs this version: the settings first, for the API takes one at a time."""
    if there is None:
        create = partial(environments.create, account, name, prefix, made.label, check)
        return [Step(f"create the environment {name} with version {made.label} at {prefix}, and check it", create)]
    steps, deployed = [], environments.deployed_settings(account, name)
    if wrong := {key: value for key, value in settings(account).items() if deployed.get(key) != value}:
        change = partial(environments.change, account, there, *_options(wrong, deployed), check)
        steps.append(Step(f"set {', '.join(option for _, option in wrong)} of {name}, and check it", change))
    if there.version != made.label:
        labels = {"VersionLabel": made.label}, {"VersionLabel": there.version}
        change = partial(environments.change, account, there, *labels, check)
        steps.append(Step(f"update {name} from version {there.version} to {made.label}, and check it", change))
    return steps


def _options(wrong: dict, deployed: dict) -> tuple[dict, dict]:
    """What brings the new settings, and what brings the old ones back: of some there was none."""
    before = {key: deployed[key] for key in wrong if key in deployed}
    added = [{"Namespace": space, "OptionName": option} for space, option in wrong if (space, option) not in deployed]
    return {"OptionSettings": as_options(wrong)}, {"OptionSettings": as_options(before), "OptionsToRemove": added}


def for_swap(account: Account, name: str, active: Environment, check: Check) -> list[Step]:
    def exchange() -> None:
        environments.swap(account, environments.find(account, name), active, check)

    return [Step(f"swap: {name} becomes active, {active.name} is kept to swap back to", exchange)]


def to_terminate(account: Account, environment: Environment) -> list[Step]:
    end = partial(environments.terminate, account, environment.name)
    return [Step(f"terminate {environment.name} with version {environment.version}", end)]


def to_clean(account: Account) -> list[Step]:
    """Everything that was made here, the environments first: they are what costs."""
    steps = [step for environment in both(account) if environment for step in to_terminate(account, environment)]
    if has_application(account):
        delete = partial(account.beanstalk.delete_application, ApplicationName=APPLICATION)
        steps.append(Step(f"delete the application {APPLICATION} and its versions", delete))
    for key in uploads(account):
        delete = partial(account.s3.delete_object, Bucket=account.bucket, Key=key)
        steps.append(Step(f"delete s3://{account.bucket}/{key}", delete))
    if stored_token(account):
        steps.append(Step(f"delete the token in {PARAMETER}", partial(account.ssm.delete_parameter, Name=PARAMETER)))
    return steps
