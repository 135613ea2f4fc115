"""The three roles of an environment, and what each may do. They cost nothing, and the whole account can share them."""

import json
from functools import partial

import boto3

from deploy.aws.account import INSTANCE, OPERATIONS, SERVICE, Account
from deploy.aws.steps import Step

AWS, AWS_SERVICE = "arn:aws:iam::aws:policy/", "arn:aws:iam::aws:policy/service-role/"
ROLES = {  # role -> the service that acts in it, and AWS's own policies for that
    SERVICE: ("elasticbeanstalk", [AWS_SERVICE + "AWSElasticBeanstalkEnhancedHealth"]),
    INSTANCE: ("ec2", [AWS + "AWSElasticBeanstalkWebTier"]),
    OPERATIONS: (
        "elasticbeanstalk",
        [AWS_SERVICE + f"AWSElasticBeanstalkRole{which}" for which in ("Core", "CWL")],
    ),
}
READ_TOKEN = "labsupport-read-token"


def missing_roles(account: Account) -> list[Step]:
    """The steps to roles with their policies, and to an instance profile, which is how a machine gets its role."""
    iam, steps = boto3.Session().client("iam"), []
    for role, (service, policies) in ROLES.items():
        there = _found(iam, iam.get_role, RoleName=role)
        if not there:
            trust = _policy("sts:AssumeRole", Principal={"Service": f"{service}.amazonaws.com"})
            create = partial(iam.create_role, RoleName=role, AssumeRolePolicyDocument=trust)
            steps.append(Step(f"create the role {role}, for {service}", create))
        has = iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"] if there else []
        for policy in policies:
            if policy not in [one["PolicyArn"] for one in has]:
                attach = partial(iam.attach_role_policy, RoleName=role, PolicyArn=policy)
                steps.append(Step(f"attach {policy} to {role}", attach))
    return steps + _for_instances(iam, account.secret)


def _for_instances(iam, secret: str) -> list[Step]:
    steps = []
    if not _found(iam, iam.get_role_policy, RoleName=INSTANCE, PolicyName=READ_TOKEN):
        policy = _policy("ssm:GetParameter*", Resource=secret)
        allow = partial(iam.put_role_policy, RoleName=INSTANCE, PolicyName=READ_TOKEN, PolicyDocument=policy)
        steps.append(Step(f"let {INSTANCE} read the token", allow))
    profile = _found(iam, iam.get_instance_profile, InstanceProfileName=INSTANCE)
    if not profile:
        create = partial(iam.create_instance_profile, InstanceProfileName=INSTANCE)
        steps.append(Step(f"create the instance profile {INSTANCE}", create))
    if not profile or not profile["InstanceProfile"]["Roles"]:
        add = partial(iam.add_role_to_instance_profile, InstanceProfileName=INSTANCE, RoleName=INSTANCE)
        steps.append(Step(f"put the role {INSTANCE} into it", add))
    return steps


def _policy(action: str, **rest) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": action, **rest}]})


def _found(iam, get, **name) -> dict | None:
    try:
        return get(**name)
    except iam.exceptions.NoSuchEntityException:
        return None
