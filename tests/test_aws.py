"""The lab on Elastic Beanstalk, against moto (S3, Parameter Store, STS, applications) and what fake_beanstalk adds to it."""

import contextlib
import doctest
import hashlib
import json
import os
import re
import shutil
import subprocess
import zipfile
from fnmatch import fnmatchcase
from io import BytesIO
from pathlib import Path

import boto3
import botocore.loaders
import botocore.session
import moto
import numpy as np
import pytest
import urllib3
from fastapi import FastAPI
from typer.testing import CliRunner

from deploy.aws import account, beanstalk, bundle, costs, environments, fake_beanstalk, rehearsal, steps
from labsupport import images, serving
from labsupport.detection import Box, Detection
from labsupport.protection import security
from labsupport.serving import app

LAB = Path(__file__).parent.parent
AWS = LAB / "deploy" / "aws"
TOKEN = "a-token-that-nobody-guesses"
REGION, NUMBER = "eu-central-1", "123456789012"
ACTIVE = f"labsupport-{NUMBER}.{REGION}.elasticbeanstalk.com"
PREVIEW = ACTIVE.replace(NUMBER, f"{NUMBER}-preview")
READS = ("Describe", "Get", "List")


class Detector:
    """Answers as ours does, at once."""

    version = "fake/detector"

    def __init__(self, *found: Detection) -> None:
        self.found = list(found)

    def detect(self, image: np.ndarray, confidence: float = 0.5) -> list[Detection]:
        return self.found


@pytest.fixture(scope="module")
def ports():
    """Real servers, as they run behind an environment: one that is well, and one that finds nothing."""
    car = Detection("car", 0.9, Box(1, 2, 30, 40))
    apps = [security.TokenGuard(serving.create_app(Detector(*found)), TOKEN) for found in ((car,), ())]
    with serving.serve(apps[0], port=0) as well, serving.serve(apps[1], port=0) as blind:
        yield {"well": well.port, "blind": blind.port}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A small checkout that can be changed, with a Dockerfile."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "app.py").write_text("print('one')")
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY --from=other /x /app/\nCOPY code code\n")
    monkeypatch.setattr(beanstalk, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture
def config():
    """What moto is told; a test that needs AWS's own policies says so, for they take it a second."""
    return {}


@pytest.fixture
def fake(ports, checkout, config, monkeypatch):
    """Elastic Beanstalk, an account, a token in LAB_TOKEN; time passes when somebody sleeps, no call leaves the machine."""
    fake = fake_beanstalk.Fake(servers={"any": ports["well"]})
    monkeypatch.setattr(environments, "sleep", fake.advance)
    monkeypatch.setattr(steps, "sleep", fake.advance)
    monkeypatch.setattr(environments, "POLL", 50)  # seconds of the fake's time; every look costs some of ours
    real = urllib3.util.connection.create_connection
    monkeypatch.setattr(urllib3.util.connection, "create_connection", fake.connect(real))
    monkeypatch.setattr(boto3, "Session", lambda: recorded(botocore.session.Session(), fake.calls))
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": REGION,
        "LAB_TOKEN": TOKEN,
        "NO_PROXY": "*",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    with moto.mock_aws(config=config):
        fake_beanstalk.install(fake, monkeypatch)
        yield fake


@pytest.fixture
def calls(fake):
    """Every call to AWS that is made, from botocore's own events: (service, operation, its arguments)."""
    return fake.calls


LOADER = botocore.loaders.create_loader()  # reads the service's model once, not for every session


def recorded(session: botocore.session.Session, calls: list) -> boto3.session.Session:
    def record(params, model, **_) -> None:
        calls.append((model.service_model.signing_name, model.name, dict(params)))

    session.register_component("data_loader", LOADER)
    session.register("before-parameter-build", record)
    return boto3.session.Session(botocore_session=session)


def run(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(beanstalk.app, arguments)
    assert result.exit_code == code, result.output
    assert TOKEN not in result.output
    return result.output


def changes(calls) -> list[str]:
    return [name for _, name, _ in calls if not name.startswith(READS)]


def edit(checkout: Path, text: str) -> str:
    """Another version of the code; its label."""
    (checkout / "code" / "app.py").write_text(text)
    return bundle.make(checkout).label


def state(fake) -> dict[str, tuple]:
    return {
        name: (one.status, one.version_label, one.cname)
        for name, one in fake.environments.items()
        if one.status != "Terminated"
    }


# the bundle


def test_the_same_content_gives_the_same_bytes_wherever_and_whenever(checkout, tmp_path_factory):
    other = tmp_path_factory.mktemp("elsewhere") / "checkout"
    shutil.copytree(checkout, other)
    os.utime(other / "code" / "app.py", (0, 10**9))
    (other / "code" / "app.py").chmod(0o600)
    first, second = bundle.make(checkout), bundle.make(other)
    assert first == second
    assert first.label == hashlib.sha256(first.content).hexdigest()[:16]
    assert edit(other, "print('two')") != first.label


def test_the_bundle_is_what_the_dockerfile_copies_and_no_secret_and_nobodys_picture(checkout):
    planted = [
        "code/.env",
        "code/predictions.db",
        "code/predictions.db-wal",
        "code/id.pem",
        "code/tls.key",
        ".aws/credentials",
    ]
    planted += ["code/__pycache__/app.pyc", "code/images_uploaded/a.jpg", "images_with_boxes/b.jpg", "notes.txt"]
    for name in planted:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(TOKEN)
    made = bundle.make(checkout)
    platform = {".platform/hooks/postdeploy/ready.sh", ".platform/nginx/conf.d/uploads.conf"}
    assert set(made.names) == {"Dockerfile", "code/app.py"} | platform
    with zipfile.ZipFile(BytesIO(made.content)) as archive:
        assert archive.namelist() == list(made.names) == sorted(made.names)
        assert {one.date_time for one in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert TOKEN.encode() not in made.content
        modes = {one.filename: one.external_attr >> 16 for one in archive.infolist()}
    assert modes[".platform/hooks/postdeploy/ready.sh"] & 0o111 and not modes["code/app.py"] & 0o111


def test_the_bundle_of_this_checkout_holds_what_its_dockerfile_needs_and_no_picture():
    made = bundle.make(LAB)
    assert {"Dockerfile", "labsupport/serving/app.py"} <= set(made.names)
    for source in bundle.sources((LAB / "Dockerfile").read_text()):
        assert any(name == source or name.startswith(f"{source}/") for name in made.names)
    assert not [name for name in made.names if re.search(r"\.(jpe?g|png|db|pem|key|env)$|^\.git|^images", name)]
    assert len(made.content) < 20_000_000


@pytest.mark.parametrize(
    "line",
    ["COPY . /app", "COPY lab*/ /app/", 'COPY ["a b", "/app"]', "ADD https://x.example/y /app", "COPY gone /app"],
)
def test_a_dockerfile_that_we_cannot_follow_is_refused(checkout, line):
    (checkout / "Dockerfile").write_text(f"FROM scratch\n{line}\n")
    with pytest.raises(bundle.BundleRefused, match="the Dockerfile copies"):
        bundle.make(checkout)


def test_what_elastic_beanstalk_would_not_take_is_refused(checkout, monkeypatch):
    monkeypatch.setattr(bundle, "LIMIT", 100)
    with pytest.raises(bundle.BundleRefused, match=r"more than 100 bytes.*is \.platform/"):
        bundle.make(checkout)
    (checkout / "Dockerfile").unlink()
    with pytest.raises(bundle.BundleRefused, match="no Dockerfile"):
        bundle.make(checkout)


def test_nginx_lets_through_what_our_server_wants_to_judge_itself():
    (size,) = re.findall(
        r"^client_max_body_size (\d+);$", (AWS / ".platform/nginx/conf.d/uploads.conf").read_text(), re.M
    )
    assert int(size) == images.MAX_BYTES + app.MULTIPART_OVERHEAD


READY = '{"status":"ready","versions":["v1"]}'


@pytest.mark.parametrize(("answers_at", "says", "code"), [(2, READY, 0), (61, READY, 1), (1, "<html>", 1)])
def test_on_the_instance_the_deployment_fails_unless_ready_answers(tmp_path, answers_at, says, code):
    asked = 'cat >> asked; echo >> asked; echo "$@" > arguments'
    curl = f"#!/bin/bash\n{asked}\nif [ $(wc -l < asked) -ge {answers_at} ]; then echo '{says}'; fi\n"
    for name, text in {"curl": curl, "sleep": "#!/bin/bash\n"}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LAB_TOKEN": TOKEN}
    script = AWS / ".platform/hooks/postdeploy/ready.sh"
    assert subprocess.run(["bash", script], cwd=tmp_path, env=env, capture_output=True).returncode == code
    assert set((tmp_path / "asked").read_text().split("\n")[:-1]) == {f"Authorization: Bearer {TOKEN}"}
    arguments = (tmp_path / "arguments").read_text().split()
    assert {"--fail", "--max-time", "http://127.0.0.1/ready"} <= set(arguments)


# deploy


@pytest.mark.parametrize("arguments", [(), ("deploy",)])
def test_unless_told_to_apply_it_only_says_what_it_would_do(fake, calls, arguments):
    output = run(*arguments)
    assert [line.split("(")[0] for line in output.splitlines() if line.startswith("would")] == [
        f"would have the storage location elasticbeanstalk-{REGION}-{NUMBER}",
        f"would upload s3://elasticbeanstalk-{REGION}-{NUMBER}/labsupport/{bundle.make(beanstalk.ROOT).label}.zip ",
        "would create the application labsupport",
        f"would create the version {bundle.make(beanstalk.ROOT).label}",
        "would keep LAB_TOKEN encrypted in /labsupport/token",
        f"would create the environment labsupport-blue with version {bundle.make(beanstalk.ROOT).label} "
        f"at labsupport-{NUMBER}, and check it",
    ]
    assert "nothing has been changed" in output
    assert calls and not changes(calls)


def test_a_deployment_leaves_the_application_the_version_and_the_environment_that_it_promises(fake, checkout):
    made = bundle.make(checkout)
    run("deploy", "--apply")
    client = boto3.client("elasticbeanstalk")
    assert [one["ApplicationName"] for one in client.describe_applications()["Applications"]] == ["labsupport"]
    (version,) = client.describe_application_versions(ApplicationName="labsupport", VersionLabels=[made.label])[
        "ApplicationVersions"
    ]
    assert version["Status"] == "PROCESSED"
    source = version["SourceBundle"]
    stored = boto3.client("s3").get_object(Bucket=source["S3Bucket"], Key=source["S3Key"])["Body"].read()
    assert stored == made.content
    (environment,) = client.describe_environments()["Environments"]
    assert [environment[key] for key in ("EnvironmentName", "VersionLabel", "Status", "Health", "CNAME")] == [
        "labsupport-blue", made.label, "Ready", "Green", ACTIVE
    ]  # fmt: skip
    assert fake.asked and set(fake.asked) == {ACTIVE}


def test_the_environment_is_one_t3_large_that_is_replaced_and_gets_its_token_from_the_parameter_store(fake, calls):
    run("deploy", "--apply")
    options = {one[1]: value for one, value in fake.environments["labsupport-blue"].options.items()}
    expected = {"InstanceTypes": "t3.large", "EnvironmentType": "SingleInstance", "DeploymentPolicy": "Immutable"}
    expected |= {"RollingUpdateType": "Immutable", "SystemType": "enhanced", "StreamLogs": "true"}
    expected |= {"LAB_TOKEN": f"arn:aws:ssm:{REGION}:{NUMBER}:parameter/labsupport/token"}
    assert {name: options[name] for name in expected} == expected
    stored = boto3.client("ssm").get_parameter(Name="/labsupport/token", WithDecryption=True)["Parameter"]
    assert (stored["Value"], stored["Type"]) == (TOKEN, "SecureString")
    assert {service for service, _, arguments in calls if TOKEN in repr(arguments)} == {"ssm"}
    (made,) = [arguments for _, name, arguments in calls if name == "CreateEnvironment"]
    assert re.fullmatch(r"64bit Amazon Linux 2023 v[\d.]+ running Docker", made["SolutionStackName"])
    assert made["OperationsRole"] == f"arn:aws:iam::{NUMBER}:role/labsupport-operations"


def test_the_newest_docker_platform_is_taken_by_number_and_not_by_letter(fake, calls, monkeypatch):
    from moto.elasticbeanstalk import responses

    names = [f"64bit Amazon Linux 2023 v{number} running Docker" for number in ("4.9.1", "4.10.0", "4.2.7")]
    monkeypatch.setattr(responses, "SOLUTION_STACK_DETAILS", [{"SolutionStackName": name} for name in names])
    run("deploy", "--apply")
    assert [one["SolutionStackName"] for _, name, one in calls if name == "CreateEnvironment"] == [names[1]]
    run("clean", "--apply")
    monkeypatch.setattr(responses, "SOLUTION_STACK_DETAILS", [])
    assert "no Docker platform" in run("deploy", "--apply", code=1)


def test_a_second_run_changes_nothing_and_says_so(fake, calls):
    run("deploy", "--apply")
    before = state(fake)
    calls.clear()
    output = run("deploy", "--apply")
    assert "nothing to change" in output and f"http://{ACTIVE} is ready: fake/detector finds 1 objects" in output
    assert not changes(calls) and state(fake) == before


def test_a_run_that_was_interrupted_goes_on_where_it_was(fake, calls, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(environments, "create", interrupted)
        CliRunner().invoke(beanstalk.app, ["deploy", "--apply"])
    assert changes(calls)[-1] == "PutParameter"
    calls.clear()
    run("deploy", "--apply")
    assert changes(calls) == ["CreateEnvironment"]


def test_a_new_version_is_an_update_in_place(fake, calls, checkout):
    run("deploy", "--apply")
    calls.clear()
    label = edit(checkout, "print('two')")
    run("deploy", "--apply")
    assert changes(calls) == ["PutObject", "CreateApplicationVersion", "UpdateEnvironment"]
    assert state(fake) == {"labsupport-blue": ("Ready", label, ACTIVE)}


def test_settings_that_somebody_changed_are_set_again_and_before_the_version(fake, calls, checkout):
    run("deploy", "--apply")
    environment = fake.environments["labsupport-blue"]
    environment.options["aws:ec2:instances", "InstanceTypes"] = "t3.nano"
    del environment.options["aws:elasticbeanstalk:command", "Timeout"]
    calls.clear()
    edit(checkout, "print('two')")
    assert "set InstanceTypes, Timeout of labsupport-blue" in run("deploy", "--apply")
    first, second = (arguments for _, name, arguments in calls if name == "UpdateEnvironment")
    assert {one["OptionName"]: one["Value"] for one in first["OptionSettings"]} == {
        "InstanceTypes": "t3.large",
        "Timeout": "1800",
    }
    assert "VersionLabel" in second and "nothing to change" in run("deploy", "--apply")


# what fails


def broken(fake, ports, label: str, how: str) -> None:
    if how in ("red", "turned back", "stuck"):
        fake.fate[label] = how
    else:
        fake.servers[label] = ports["blind"] if how == "blind" else 1  # nobody listens on port 1


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("red", "labsupport-blue is Red"),
        ("turned back", "turned back by Elastic Beanstalk; Failed to deploy application."),
        ("stuck", "labsupport-blue is Updating after 3600 seconds"),
        ("blind", "/detect finds nothing in a picture of a street"),
        ("down", "fails the check"),
    ],
)
def test_a_version_that_is_not_well_is_rolled_back(fake, ports, calls, checkout, how, says):
    old = bundle.make(checkout).label
    run("deploy", "--apply")
    calls.clear()
    new = edit(checkout, "print('two')")
    broken(fake, ports, new, how)
    output = run("deploy", "--apply", code=1)
    assert says in output and "RolledBack: " in output and f"rolled back to {old}, which is well" in output
    assert state(fake) == {"labsupport-blue": ("Ready", old, ACTIVE)}
    updates = [arguments["VersionLabel"] for _, name, arguments in calls if name == "UpdateEnvironment"]
    assert updates == ([new] if how in ("turned back", "stuck") else [new, old])


def test_if_the_old_version_is_not_well_either_it_says_that(fake, ports, checkout):
    old = bundle.make(checkout).label
    run("deploy", "--apply")
    fake.servers["any"] = ports["blind"]
    edit(checkout, "print('two')")
    output = run("deploy", "--apply", code=1)
    assert f"rolled back to {old}, which is not well either" in output and "RolledBack" not in output


def test_settings_that_do_no_good_are_taken_back(fake, ports, calls):
    run("deploy", "--apply")
    options = fake.environments["labsupport-blue"].options
    options["aws:ec2:instances", "InstanceTypes"] = "m7i.large"
    del options["aws:elasticbeanstalk:command", "Timeout"]
    before, version = dict(options), fake.environments["labsupport-blue"].version_label
    changed = lambda: options["aws:ec2:instances", "InstanceTypes"] == "t3.large"  # noqa: E731
    real = fake.port
    fake.port = lambda host: ports["blind"] if changed() else real(host)
    assert f"rolled back to {version}, which is well" in run("deploy", "--apply", code=1)
    assert options == before


@pytest.mark.parametrize(
    ("how", "says"), [("red", "is Red"), ("stuck", "is Launching after"), ("blind", "finds nothing")]
)
def test_a_first_environment_that_is_not_well_is_left_to_be_looked_at(fake, ports, checkout, how, says):
    label = bundle.make(checkout).label
    broken(fake, ports, label, how)
    output = run("deploy", "--apply", code=1)
    assert says in output and "Unhealthy" in output
    assert list(state(fake)) == ["labsupport-blue"]
    again = run("deploy", "--apply", code=1)  # nor does a second run take it for well
    assert "Unhealthy" in again or "wait until it is Ready" in again


FOUND = {"label": "car", "confidence": 0.9, "box": {"left": 0, "top": 0, "right": 9, "bottom": 9}}
OURS = {"/ready": json.loads(READY), "/detect": {"version": "v1", "detections": [FOUND]}}
THEIRS = [
    {"/ready": {"status": "ready"}},
    {"/detect": []},
    {"/detect": {"version": "v1", "detections": "page"}},
    {"/detect": {"detections": [FOUND]}},
]


def saying(said):
    def route():
        return said

    return route


@pytest.mark.parametrize("changed", [{}, *THEIRS])
def test_another_program_behind_the_environment_is_not_well(changed, monkeypatch):
    monkeypatch.setattr(environments, "sleep", lambda seconds: None)
    monkeypatch.setattr(environments, "POLL", environments.SETTLE)  # one look
    program = FastAPI()
    for path, said in (OURS | changed).items():
        program.add_api_route(path, saying(said), methods=["GET", "POST"])
    wrong = pytest.raises(environments.Unhealthy, match="does not answer as the lab's server does")
    with serving.serve(program, port=0) as server, wrong if changed else contextlib.nullcontext():
        assert environments.Check(TOKEN, b"").ask(server.url) == f"{server.url} is ready: v1 finds 1 objects"


def test_a_server_with_another_token_is_not_ours(fake, monkeypatch, ports):
    run("deploy", "--apply")
    boto3.client("ssm").put_parameter(Name="/labsupport/token", Value="another-token-of-this-lab", Overwrite=True)
    assert "LAB_TOKEN is not the token in /labsupport/token" in run("deploy", "--apply", code=1)
    monkeypatch.delenv("LAB_TOKEN")
    assert "/ready answers 401" in run("deploy", "--apply", code=1)


def test_without_a_token_or_a_region_or_with_a_faulty_bundle_it_says_what_to_do(fake, calls, checkout, monkeypatch):
    fake.faulty.add(bundle.make(checkout).label)
    assert "as failed, not as processed" in run("deploy", "--apply", code=1)
    assert "faulty" in run("deploy", "--apply", code=1)
    boto3.client("ssm").delete_parameter(Name="/labsupport/token") if steps.stored_token(account.Account()) else None
    calls.clear()
    for unfit in ("", "short", "0123456789 abcdef", "geheimnis-für-alle-hier"):
        monkeypatch.setenv("LAB_TOKEN", unfit)
        assert "TokenMissing" in run("deploy", "--apply", code=1)
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert "set AWS_DEFAULT_REGION" in run("deploy", "--apply", code=1)
    assert not changes(calls)


def test_while_something_is_being_done_nothing_else_is_begun(fake, calls, checkout):
    run("deploy", "--apply")
    boto3.client("elasticbeanstalk").update_environment(
        EnvironmentName="labsupport-blue", VersionLabel=bundle.make(checkout).label
    )
    calls.clear()
    for command in ("deploy", "swap", "back", "terminate", "clean"):
        assert "labsupport-blue is Updating: wait until it is Ready" in run(command, "--apply", code=1)
    assert not changes(calls)


# blue/green


def test_a_swap_gives_users_the_new_version_and_keeps_the_old_one(fake, calls, checkout):
    old = bundle.make(checkout).label
    run("deploy", "--apply")
    calls.clear()
    new = edit(checkout, "print('two')")
    assert "would swap: labsupport-green becomes active" in run("swap")
    assert not changes(calls)
    run("swap", "--apply")
    blue, green = ("Ready", old, PREVIEW), ("Ready", new, ACTIVE)
    assert state(fake) == {"labsupport-blue": blue, "labsupport-green": green}
    assert changes(calls) == ["PutObject", "CreateApplicationVersion", "CreateEnvironment", "SwapEnvironmentCNAMEs"]
    asked = [host for host in fake.asked if host == PREVIEW]
    assert asked and fake.asked[-1] == ACTIVE  # first by its own name, at last by the one that users know
    calls.clear()
    assert "nothing to change" in run("swap", "--apply") and not changes(calls)
    run("back", "--apply")
    assert state(fake) == {"labsupport-blue": ("Ready", old, ACTIVE), "labsupport-green": ("Ready", new, PREVIEW)}
    assert changes(calls) == ["SwapEnvironmentCNAMEs"]


def test_the_next_swap_updates_the_environment_that_is_not_active(fake, calls, checkout):
    run("deploy", "--apply")
    second = edit(checkout, "print('two')")
    run("swap", "--apply")
    calls.clear()
    third = edit(checkout, "print('three')")
    run("swap", "--apply")
    assert state(fake) == {"labsupport-blue": ("Ready", third, ACTIVE), "labsupport-green": ("Ready", second, PREVIEW)}
    assert changes(calls) == ["PutObject", "CreateApplicationVersion", "UpdateEnvironment", "SwapEnvironmentCNAMEs"]


@pytest.mark.parametrize("how", ["red", "blind"])
def test_a_candidate_that_is_not_well_is_not_swapped_in(fake, ports, calls, checkout, how):
    old = bundle.make(checkout).label
    run("deploy", "--apply")
    broken(fake, ports, edit(checkout, "print('two')"), how)
    run("swap", "--apply", code=1)
    run("swap", "--apply", code=1)  # nor where it is there already
    run("back", "--apply", code=1)  # nor by this way
    assert "SwapEnvironmentCNAMEs" not in changes(calls)
    assert state(fake)["labsupport-blue"] == ("Ready", old, ACTIVE)


def test_a_swap_that_was_cut_off_is_checked_by_the_next_one(fake, checkout, monkeypatch):
    run("deploy", "--apply")
    fake.after_swap = edit(checkout, "print('two')")
    with monkeypatch.context() as cut:
        cut.setattr(environments, "swap", cut_off)
        CliRunner().invoke(beanstalk.app, ["swap", "--apply"])
    fake.advance(1000)
    assert state(fake)["labsupport-green"][2] == ACTIVE
    assert "Unhealthy" in run("swap", "--apply", code=1)


def cut_off(account, new, active, check):
    account.beanstalk.swap_environment_cnames(SourceEnvironmentName=active.name, DestinationEnvironmentName=new.name)
    raise KeyboardInterrupt


def test_a_swap_after_which_users_are_not_well_is_swapped_back(fake, calls, checkout):
    old = bundle.make(checkout).label
    run("deploy", "--apply")
    fake.after_swap = edit(checkout, "print('two')")
    output = run("swap", "--apply", code=1)
    assert "RolledBack" in output and "swapped back to labsupport-blue, which is well" in output
    assert changes(calls)[-2:] == ["SwapEnvironmentCNAMEs"] * 2
    assert state(fake)["labsupport-blue"] == ("Ready", old, ACTIVE)


def test_one_can_go_back_from_a_version_that_turned_out_to_be_bad(fake, ports, checkout):
    old = bundle.make(checkout).label
    run("deploy", "--apply")
    new = edit(checkout, "print('two')")
    run("swap", "--apply")
    fake.environments["labsupport-green"].health, fake.servers[new] = "Red", ports["blind"]
    run("back", "--apply")
    assert state(fake) == {"labsupport-blue": ("Ready", old, ACTIVE), "labsupport-green": ("Ready", new, PREVIEW)}


def test_there_is_nothing_to_swap_before_a_deployment_nor_back_without_a_second_environment(fake):
    assert "deploy one first" in run("swap", "--apply", code=1)
    assert "no second environment" in run("back", "--apply", code=1)
    assert "nothing to change" in run("terminate", "--apply")


def test_only_the_environment_that_is_not_active_is_terminated_and_clean_leaves_nothing(fake, calls, checkout):
    run("deploy", "--apply")
    new = edit(checkout, "print('two')")
    run("swap", "--apply")
    assert "would terminate labsupport-blue" in run("terminate")
    run("terminate", "--apply")
    assert state(fake) == {"labsupport-green": ("Ready", new, ACTIVE)}
    run("clean", "--apply")
    assert not state(fake) and not boto3.client("elasticbeanstalk").describe_applications()["Applications"]
    assert "Contents" not in boto3.client("s3").list_objects_v2(Bucket=f"elasticbeanstalk-{REGION}-{NUMBER}")
    assert not boto3.client("ssm").describe_parameters()["Parameters"]
    calls.clear()
    assert "nothing to change" in run("clean", "--apply") and not changes(calls)


# what the fake refuses, as AWS does


def test_the_fake_refuses_what_aws_would_refuse(fake, checkout):
    client = boto3.client("elasticbeanstalk")
    run("deploy", "--apply")
    label, name = bundle.make(checkout).label, "labsupport-blue"
    bad = [
        (client.update_environment, {"EnvironmentName": name, "VersionLabel": "gone"}, "InvalidParameterValue"),
        (client.update_environment, {"EnvironmentName": "gone", "VersionLabel": label}, "InvalidParameterValue"),
        (
            client.update_environment,
            {"EnvironmentName": name, "VersionLabel": label, "OptionSettings": [{"Namespace": "a", "OptionName": "b"}]},
            "InvalidParameterCombination",
        ),
        (client.create_environment, {"ApplicationName": "gone", "VersionLabel": label}, "InvalidParameterValue"),
        (client.delete_application, {"ApplicationName": "labsupport"}, "InvalidParameterValue"),
        (
            client.create_application_version,
            {"ApplicationName": "labsupport", "VersionLabel": "x", "SourceBundle": {"S3Bucket": "b", "S3Key": "k"}},
            "InvalidParameterValue",
        ),
    ]
    for call, arguments, code in bad:
        with pytest.raises(client.exceptions.ClientError) as refused:
            call(**arguments)
        assert refused.value.response["Error"]["Code"] == code
    with pytest.raises(Exception, match="Parameter validation failed"):
        client.update_environment(EnvironmentName=name, Version=label)


# rights


def allowed(action: str, resource: str) -> bool:
    policy = json.loads((AWS / "policy.json").read_text())
    for statement in policy["Statement"]:
        actions, resources = (
            [one] if isinstance(one, str) else one for one in (statement["Action"], statement["Resource"])
        )
        if action in actions and any(fnmatchcase(resource, pattern) for pattern in resources):
            return True
    return False


ACTIONS = {"ListObjectsV2": "ListBucket"}  # the others are called as the operation is


def resource_of(service: str, arguments: dict) -> str:
    if service == "s3":
        return "arn:aws:s3:::" + "/".join(arguments[key] for key in ("Bucket", "Key") if key in arguments)
    if service == "ssm":
        return f"arn:aws:ssm:{REGION}:{NUMBER}:parameter{arguments['Name']}"
    environment = arguments.get("EnvironmentName") or arguments.get("SourceEnvironmentName")
    kind, rest = ("environment", f"/{environment}") if environment else ("application", "")
    return f"arn:aws:elasticbeanstalk:{REGION}:{NUMBER}:{kind}/labsupport{rest}"


def test_the_policy_allows_every_call_that_is_made_and_none_that_is_not(fake, calls, checkout):
    run("deploy", "--apply")
    fake.fate[edit(checkout, "print('stuck')")] = "stuck"
    run("deploy", "--apply", code=1)
    edit(checkout, "print('two')")
    run("swap", "--apply")
    run("back", "--apply")
    run("clean", "--apply")
    made = {(service, f"{service}:{ACTIONS.get(name, name)}", resource_of(service, arguments))
            for service, name, arguments in calls if service != "sts"}  # fmt: skip
    assert not [(action, resource) for _, action, resource in made if not allowed(action, resource)]
    policy = json.loads((AWS / "policy.json").read_text())
    assert policy["Version"] == "2012-10-17"
    assert all(statement.keys() == {"Sid", "Effect", "Action", "Resource"} for statement in policy["Statement"])
    listed = {one for statement in policy["Statement"] for one in np.atleast_1d(statement["Action"])}
    on_our_behalf = {f"s3:{name}" for name in ("CreateBucket", "GetBucketLocation", "GetBucketPolicy", "GetObject",
                                               "PutBucketOwnershipControls", "PutBucketPolicy")}  # fmt: skip
    assert listed - {action for _, action, _ in made} == on_our_behalf | {"iam:PassRole"}


def test_iam_takes_the_policy(fake):
    made = boto3.client("iam").create_policy(PolicyName="lab", PolicyDocument=(AWS / "policy.json").read_text())
    assert len((AWS / "policy.json").read_text().replace(" ", "")) < 6_144  # characters, the most that IAM takes
    assert made["Policy"]["PolicyName"] == "lab"


@pytest.mark.parametrize("config", [{"iam": {"load_aws_managed_policies": True}}], ids=[""])
def test_the_roles_are_made_once_and_hold_policies_that_there_are(fake, calls):
    assert "would create the role labsupport-operations" in run("roles")
    assert not changes(calls)
    run("roles", "--apply")
    iam = boto3.client("iam")
    trusted = {
        role: iam.get_role(RoleName=role)["Role"]["AssumeRolePolicyDocument"]["Statement"][0]["Principal"]["Service"]
        for role in (account.SERVICE, account.INSTANCE, account.OPERATIONS)
    }
    assert list(trusted.values()) == [
        "elasticbeanstalk.amazonaws.com",
        "ec2.amazonaws.com",
        "elasticbeanstalk.amazonaws.com",
    ]
    profile = iam.get_instance_profile(InstanceProfileName=account.INSTANCE)["InstanceProfile"]
    assert [one["RoleName"] for one in profile["Roles"]] == [account.INSTANCE]
    (token,) = iam.get_role_policy(RoleName=account.INSTANCE, PolicyName="labsupport-read-token")["PolicyDocument"][
        "Statement"
    ]
    assert token["Resource"] == f"arn:aws:ssm:{REGION}:{NUMBER}:parameter/labsupport/token"
    calls.clear()
    assert "nothing to change" in run("roles", "--apply") and not changes(calls)
    iam.detach_role_policy(
        RoleName=account.OPERATIONS, PolicyArn="arn:aws:iam::aws:policy/service-role/AWSElasticBeanstalkRoleCWL"
    )
    calls.clear()
    run("roles", "--apply")
    assert changes(calls) == ["AttachRolePolicy"]


def test_the_policy_allows_nothing_outside_of_the_lab():
    for action, resource in [
        (
            "elasticbeanstalk:TerminateEnvironment",
            f"arn:aws:elasticbeanstalk:{REGION}:{NUMBER}:environment/shop/shop-1",
        ),
        ("ssm:GetParameter", f"arn:aws:ssm:{REGION}:{NUMBER}:parameter/shop/password"),
        ("s3:GetObject", "arn:aws:s3:::shop/customers.csv"),
        ("s3:PutObject", f"arn:aws:s3:::elasticbeanstalk-{REGION}-{NUMBER}/shop/1.zip"),
        ("iam:PassRole", f"arn:aws:iam::{NUMBER}:role/administrator"),
        ("iam:CreateUser", "*"),
    ]:
        assert not allowed(action, resource)


def test_every_operation_and_option_that_we_use_is_in_botocores_model(calls):
    run("deploy", "--apply")
    model = boto3.client("elasticbeanstalk").meta.service_model
    assert {name for service, name, _ in calls if service == "elasticbeanstalk"} <= set(model.operation_names)
    for name in (*steps.COLOURS, "labsupport-" + NUMBER + "-preview"):
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{2,38}[A-Za-z0-9]", name)


# the rehearsal of the lesson


def test_a_rehearsal_runs_the_commands_and_leaves_nothing_behind(monkeypatch, capsys):
    """As in shipping.ipynb, with servers that were started with the token."""
    monkeypatch.setenv("LAB_TOKEN", TOKEN)
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    replaced = [beanstalk.ROOT, environments.POLL, environments.sleep, steps.sleep, boto3.Session]
    car = Detection("car", 0.9, Box(1, 2, 30, 40))
    well, blind = (serving.serve(serving.create_app(Detector(*found)), port=0) for found in ((car,), ()))
    with well, blind, contextlib.closing(rehearsal.Rehearsal(well.port)) as aws:
        first = aws.version
        assert first == bundle.make(LAB).label
        assert aws.run() == 0 and "nothing has been changed" in capsys.readouterr().out
        assert aws.run("deploy", "--apply") == 0
        (there,) = aws.table()
        cname = f"labsupport-{NUMBER}.us-east-1.elasticbeanstalk.com"
        assert [*there.values()] == ["labsupport-blue", cname, first, "Green"]
        aws.answered_by(aws.change(), blind.port)
        assert aws.run("swap", "--apply") == 1 and "finds nothing in a picture" in capsys.readouterr().out
        second = aws.change()
        assert aws.run("swap", "--apply") == 0
        now = {one["environment"]: one["version"] for one in aws.table()}
        assert now == {"labsupport-blue": first, "labsupport-green": second}
        monkeypatch.setattr(beanstalk, "_back", lambda account: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            aws.run("back", "--apply")
    assert replaced == [beanstalk.ROOT, environments.POLL, environments.sleep, steps.sleep, boto3.Session]
    assert "AWS_DEFAULT_REGION" not in os.environ and not aws.checkout.exists()
    assert TOKEN not in capsys.readouterr().out


def test_a_rehearsal_that_cannot_begin_leaves_nothing_behind(monkeypatch):
    def refuse(*_):
        raise RuntimeError("no room")

    monkeypatch.setattr(rehearsal.shutil, "copy", refuse)
    with pytest.raises(RuntimeError, match="no room"):
        rehearsal.Rehearsal(0)
    assert beanstalk.ROOT == LAB


# costs


def test_costs_are_those_that_one_reckons_by_hand():
    assert costs.month() == pytest.approx(60.736 + 3.65 + 1.6)
    assert costs.month(balanced=True) - costs.month() == pytest.approx(16.425 + 7.3)
    assert costs.month(busy=0.3) == costs.month(busy=0) == costs.month()
    # AWS's own words: 30 % of two vCPUs is 36 credits an hour
    assert costs.VCPUS * costs.BASELINE * 60 == costs.EARNED
    assert costs.month(busy=1) - costs.month() == pytest.approx(2 * 0.7 * 0.05 * 730)
    left, hours = costs.SAVED, costs.burst()
    assert left + hours * costs.EARNED - hours * 2 * 60 == pytest.approx(0)


def test_the_figures_in_the_readme_are_those_of_the_bench():
    tables = costs.tables(costs.RESULTS.read_text())
    assert tables in (AWS / "README.md").read_text(), "python -m deploy.aws.costs prints them anew"
    with pytest.raises(ValueError, match="run make bench"):
        costs.rate("")


@pytest.mark.parametrize("module", [account, bundle, costs], ids=lambda module: module.__name__)
def test_the_examples_in_the_docstrings_are_true(module):
    tried = doctest.testmod(module)
    assert tried.attempted and not tried.failed
