"""What moto leaves out of Elastic Beanstalk: versions, settings, updates, swaps, and environments that take their time.

moto keeps the applications, knows the platforms, and refuses an environment twice or in no application; S3, the Parameter
Store and STS are moto's too. The rest is added here to moto's own class of answers. So every call still goes the whole way:
checked by botocore against the service's model, sent as a request, parsed by moto, and its answer read by that model again.

Nothing takes real time: `advance` is what the tests have in the place of `sleep`.
"""

import socket
from dataclasses import dataclass, field

from moto.core.exceptions import ServiceException
from moto.core.responses import ActionResult, EmptyResult
from moto.elasticbeanstalk import responses
from moto.elasticbeanstalk.models import Environment

LAUNCH, UPDATE, SWAP, TERMINATE, PROCESS = 400, 300, 40, 200, 30  # seconds, roughly what AWS takes
SETTLES, CACHED = 100, 60  # seconds from Ready to Green; for which a resolver goes by what it knows
DOMAIN = "elasticbeanstalk.com"
KEYS = ("Namespace", "OptionName", "Value")


class Invalid(ServiceException):
    code = "InvalidParameterValue"


class InvalidCombination(ServiceException):
    code = "InvalidParameterCombination"


@dataclass
class Fake:
    """The service's memory. `fate` says what becomes of a version: "red", "turned back" or "stuck"; else it is well."""

    servers: dict[str, int] = field(
        default_factory=dict
    )  # version -> the port on which it really answers; 0: any other
    fate: dict[str, str] = field(default_factory=dict)
    faulty: set[str] = field(default_factory=set)  # versions with a configuration file that cannot be read
    after_swap: str = ""  # a version whose CNAME leads nowhere once it is swapped in
    clock: float = 0
    versions: dict[str, dict] = field(default_factory=dict)
    environments: dict[str, Environment] = field(default_factory=dict)
    events: list[dict] = field(default_factory=list)
    cached: dict[str, tuple[str, float]] = field(
        default_factory=dict
    )  # CNAME -> whose it was, and until when it seems so
    calls: list[tuple[str, str, dict]] = field(default_factory=list)  # what was called: service, operation, arguments
    asked: list[str] = field(default_factory=list)  # every host that was looked up

    def advance(self, seconds: float) -> None:
        self.clock += seconds
        for environment in self.environments.values():
            if environment.due and environment.due <= self.clock:
                environment.due = None
                for name, value in environment.outcome.items():
                    setattr(environment, name, value)
                if environment.outcome.get("health") == "Green" and "status" in environment.outcome:
                    environment.health = "Yellow"
                    environment.due, environment.outcome = self.clock + SETTLES, {"health": "Green"}

    # what AWS does

    def version(self, label: str) -> dict:
        if label not in self.versions:
            raise Invalid(f"No Application Version named '{label}' found.")
        return self.versions[label]

    def named(self, name: str) -> Environment:
        if name not in self.environments or self.environments[name].status == "Terminated":
            raise Invalid(f"No Environment found for EnvironmentName = '{name}'.")
        return self.environments[name]

    def ready(self, name: str) -> Environment:
        environment = self.named(name)
        if environment.status != "Ready":
            raise Invalid(f"Environment named {name} is in an invalid state for this operation. Must be Ready.")
        return environment

    def begin(self, environment: Environment, status: str, seconds: float, **outcome) -> None:
        environment.status, environment.health = status, "Grey"
        environment.due, environment.outcome = self.clock + seconds, {"status": "Ready", "health": "Green", **outcome}

    def deploy(self, environment: Environment, label: str, status: str, seconds: float) -> None:
        old, fate = environment.version_label, self.fate.get(label)
        self.begin(environment, status, seconds, version_label=label, health="Red" if fate == "red" else "Green")
        if fate == "turned back":
            environment.outcome["version_label"] = old
            self.event(environment, "Failed to deploy application.")
        if fate == "stuck":
            environment.due = None

    def event(self, environment: Environment, message: str) -> None:
        self.events.append({"EnvironmentName": environment.environment_name, "Severity": "ERROR", "Message": message})

    def port(self, host: str) -> int | None:
        """DNS: where a CNAME leads; None where nothing answers."""
        self.asked.append(host)
        known, until = self.cached.get(host, ("", 0))
        for environment in self.environments.values():
            if environment.status == "Terminated":
                continue
            if environment.environment_name == known if self.clock < until else environment.cname == host:
                if self.after_swap == environment.version_label and "preview" not in host:
                    return None
                return self.servers.get(environment.version_label, self.servers.get("any"))
        return None

    def connect(self, real):
        """In place of urllib3's `create_connection`: the environments' names lead to this machine, no other does."""

        def create_connection(address, *arguments, **options):
            host, port = address
            if host.endswith(DOMAIN) and port == 80 and (port := self.port(host)):
                host = "127.0.0.1"
            if host != "127.0.0.1":
                raise socket.gaierror(f"{host} is not known here")
            return real((host, port), *arguments, **options)

        return create_connection


def install(fake: Fake, monkeypatch) -> None:
    """Give moto's answers the actions that it lacks. Each has the name that moto derives from the API's."""
    created = responses.EBResponse.create_environment

    class Actions:
        def create_storage_location(self):
            from moto.s3.models import s3_backends

            name = f"elasticbeanstalk-{self.region}-{self.current_account}"
            backend = s3_backends[self.current_account]["aws"]
            if name not in backend.buckets:
                backend.create_bucket(name, self.region)
            return ActionResult({"S3Bucket": name})

        def create_application_version(self):
            from moto.s3.models import s3_backends

            source, label = self._get_param("SourceBundle"), self._get_param("VersionLabel")
            if self._get_param("ApplicationName") not in self.elasticbeanstalk_backend.applications:
                raise Invalid("No Application named so found.")
            if label in fake.versions:
                raise Invalid(f"Application Version {label} already exists.")
            bucket = s3_backends[self.current_account]["aws"].buckets.get(source["S3Bucket"])
            if bucket is None or source["S3Key"] not in bucket.keys:
                raise Invalid(
                    f"Unable to download from S3 location (Bucket: {source['S3Bucket']} Key: {source['S3Key']})."
                )
            due = fake.clock + PROCESS if self._get_param("Process") else float("inf")
            fake.versions[label] = {"VersionLabel": label, "SourceBundle": source, "due": due}
            return ActionResult({"ApplicationVersion": described(label)})

        def describe_application_versions(self):
            wanted = self._get_param("VersionLabels", [])
            return ActionResult({"ApplicationVersions": [described(one) for one in fake.versions if one in wanted]})

        def create_environment(self):
            label = self._get_param("VersionLabel")
            cname = f"{self._get_param('CNAMEPrefix')}.{self.region}.{DOMAIN}"
            if described(label)["Status"] == "FAILED":
                raise Invalid(f"Application Version {label} is not usable.")
            if any(one.cname == cname and one.status != "Terminated" for one in fake.environments.values()):
                raise Invalid(f"DNS name ({cname}) is not available.")
            stacks = [stack["SolutionStackName"] for stack in responses.SOLUTION_STACK_DETAILS]
            if self._get_param("SolutionStackName") not in stacks:
                raise Invalid("No Solution Stack named so found.")
            environment = created(self)._result
            environment.cname, environment.version_label = cname, label
            environment.options = options_of(self._get_param("OptionSettings", []))
            environment.operations_role = self._get_param("OperationsRole")
            fake.environments[environment.environment_name] = environment
            fake.deploy(environment, label, "Launching", LAUNCH)
            return ActionResult(environment)

        def describe_environments(self):
            deleted = self._get_param("IncludeDeleted", True)
            shown = [one for one in fake.environments.values() if deleted or one.status != "Terminated"]
            return ActionResult({"Environments": shown})

        def update_environment(self):
            environment, label = fake.ready(self._get_param("EnvironmentName")), self._get_param("VersionLabel")
            settings, removed = self._get_param("OptionSettings", []), self._get_param("OptionsToRemove", [])
            if label and (settings or removed):
                raise InvalidCombination("Release and configuration cannot be updated together.")
            if label:
                fake.version(label)
                fake.deploy(environment, label, "Updating", UPDATE)
            else:
                environment.options.update(options_of(settings))
                for one in removed:
                    environment.options.pop((one["Namespace"], one["OptionName"]), None)
                fake.begin(environment, "Updating", UPDATE)
            return ActionResult(environment)

        def abort_environment_update(self):
            environment = fake.named(self._get_param("EnvironmentName"))
            if environment.status != "Updating":
                raise Invalid("Environment has no update to abort.")
            fake.begin(environment, "Aborting", UPDATE, version_label=environment.version_label)
            return EmptyResult()

        def swap_environment_cnam_es(self):
            one, other = (fake.ready(self._get_param(f"{end}EnvironmentName")) for end in ("Source", "Destination"))
            names = one.cname, other.cname
            for environment, cname in zip((one, other), reversed(names), strict=True):
                fake.cached[environment.cname] = environment.environment_name, fake.clock + SWAP + CACHED
                environment.status, environment.due = "Updating", fake.clock + SWAP
                environment.outcome = {"status": "Ready", "cname": cname}  # as well, or ill, as before
            return EmptyResult()

        def terminate_environment(self):
            environment = fake.named(self._get_param("EnvironmentName"))
            fake.begin(environment, "Terminating", TERMINATE)
            environment.outcome = {"status": "Terminated"}
            environment.application.environments.pop(environment.environment_name, None)
            return ActionResult(environment)

        def describe_configuration_settings(self):
            environment = fake.named(self._get_param("EnvironmentName"))
            options = [dict(zip(KEYS, (*key, value), strict=True)) for key, value in environment.options.items()]
            # AWS lists many more than were set
            options.append(dict(zip(KEYS, ("aws:autoscaling:asg", "MaxSize", "1"), strict=True)))
            return ActionResult(
                {"ConfigurationSettings": [{"DeploymentStatus": "deployed", "OptionSettings": options}]}
            )

        def describe_events(self):
            name = self._get_param("EnvironmentName")
            found = [one for one in reversed(fake.events) if one["EnvironmentName"] == name]
            return ActionResult({"Events": found[: self._get_param("MaxRecords", 100)]})

        def delete_application(self):
            name = self._get_param("ApplicationName")
            if any(one.status != "Terminated" for one in fake.environments.values()):
                raise Invalid(f"Unable to delete application {name} because it has a version that is deployed.")
            self.elasticbeanstalk_backend.delete_application(application_name=name)
            fake.versions.clear()
            return EmptyResult()

    def described(label: str) -> dict:
        version = fake.version(label)
        done = "FAILED" if label in fake.faulty else "PROCESSED"
        return {
            **version,
            "ApplicationName": "labsupport",
            "Status": done if version["due"] <= fake.clock else "PROCESSING",
        }

    for name in [name for name in vars(Actions) if not name.startswith("_")]:
        monkeypatch.setattr(responses.EBResponse, name, getattr(Actions, name), raising=False)


def options_of(settings: list[dict]) -> dict:
    return {(one["Namespace"], one["OptionName"]): one["Value"] for one in settings}
