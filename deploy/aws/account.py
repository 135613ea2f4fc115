"""One account in one region: the names that we use there, and what an environment of ours is set to."""

import boto3

APPLICATION = "labsupport"
PARAMETER = "/labsupport/token"  # where the token is kept, in the Parameter Store

# the roles: who watches an environment, who its instances are, who makes and ends them. AWS's policy for the last one lets
# it pass on the others only if their names begin as they do
SERVICE, INSTANCE, OPERATIONS = (
    "aws-elasticbeanstalk-service-role",
    "aws-elasticbeanstalk-ec2-role",
    "labsupport-operations",
)


class NotDeployed(RuntimeError):
    """What was asked for was not done; the message says why, and what is there now."""


class Account:
    """One account in one region, as boto3 finds them: the clients, and the names that follow from them.

    `active` is the CNAME prefix that users know, `preview` the one to look at a candidate by.
    """

    def __init__(self) -> None:
        session = boto3.Session()
        if not session.region_name:
            raise NotDeployed("no region: set AWS_DEFAULT_REGION, to us-east-1 for example")
        self.region = session.region_name
        self.beanstalk, self.s3, self.ssm = (session.client(name) for name in ("elasticbeanstalk", "s3", "ssm"))
        self.number = session.client("sts").get_caller_identity()["Account"]
        self.bucket = f"elasticbeanstalk-{self.region}-{self.number}"
        self.active = f"{APPLICATION}-{self.number}"
        self.preview = f"{self.active}-preview"

    @property
    def secret(self) -> str:
        """Where instances find the token: its address, not the token."""
        return f"arn:aws:ssm:{self.region}:{self.number}:parameter{PARAMETER}"


def settings(account: Account) -> dict[tuple[str, str], str]:
    """(namespace, option) -> value: one t3.large without a load balancer, replaced and never changed in place."""
    chosen = {
        "aws:elasticbeanstalk:environment": {
            "EnvironmentType": "SingleInstance",
            "ServiceRole": SERVICE,
        },
        "aws:ec2:instances": {"InstanceTypes": "t3.large"},
        "aws:autoscaling:launchconfiguration": {
            "IamInstanceProfile": INSTANCE,
            "DisableIMDSv1": "true",  # who tricks a server into asking for the machine's credentials gets none
            "RootVolumeType": "gp3",
            "RootVolumeSize": "20",  # GB: the image, its parts while it is built, and the log
        },
        "aws:autoscaling:updatepolicy:rollingupdate": {
            "RollingUpdateEnabled": "true",
            "RollingUpdateType": "Immutable",
        },
        "aws:elasticbeanstalk:command": {"DeploymentPolicy": "Immutable", "Timeout": "1800"},  # seconds, to build it in
        "aws:elasticbeanstalk:healthreporting:system": {"SystemType": "enhanced"},  # what Immutable goes by
        "aws:elasticbeanstalk:cloudwatch:logs": {
            "StreamLogs": "true",
            "RetentionInDays": "7",
            "DeleteOnTerminate": "true",
        },
        "aws:elasticbeanstalk:application:environmentsecrets": {"LAB_TOKEN": account.secret},
    }
    return {(space, name): value for space, options in chosen.items() for name, value in options.items()}


def as_options(chosen: dict[tuple[str, str], str]) -> list[dict[str, str]]:
    """As the API wants them.

    >>> as_options({("aws:ec2:instances", "InstanceTypes"): "t3.large"})
    [{'Namespace': 'aws:ec2:instances', 'OptionName': 'InstanceTypes', 'Value': 't3.large'}]
    """
    return [{"Namespace": space, "OptionName": name, "Value": value} for (space, name), value in chosen.items()]
