"""The commands that shipping.ipynb shows: the recording is of the present files, and a live run looks like it."""

import doctest
import json
import os
import re
from pathlib import Path

import pytest

import engine
from deploy import shipping
from labsupport import exercises, paths
from labsupport.exercises.release import shipping_checks

AGAIN = "after a change of these files record the run again: python tests/record_shipping.py"
RECORDING = shipping.recorded()
STEPS = {**shipping.DOCKER, **shipping.NGINX}
DOCKERFILE = (paths.root() / "Dockerfile").read_text()


def test_the_recording_is_of_the_present_files_and_commands():
    assert RECORDING["sources"] == shipping.checksums(), AGAIN
    assert {name: step["command"] for name, step in RECORDING["steps"].items()} == STEPS, AGAIN
    assert {"date", "docker", "machine", "base", "nginx"} == RECORDING["made"].keys()
    assert shipping.OPTIONS == engine.RUN


def test_the_recording_names_no_address_but_this_machine_and_no_folder_of_the_one_that_made_it():
    text = json.dumps(RECORDING)
    assert {*re.findall(r"https?://([^/\"\\ :]+)", text)} <= {"127.0.0.1", "curl.se"}
    assert not re.search(r"/root|/home/(?!lab\b)|/work|/tmp/|index-url|PIP_", text.replace("--tmpfs /tmp ", ""))


def test_the_recording_shows_what_the_lesson_says_of_the_cache():
    build, code, packages = (RECORDING["steps"][name] for name in ("build", "change code", "change packages"))
    repeated = [
        {line[18:] for line in step["lines"] if "CACHED" not in line and ": FROM" not in line}
        for step in (build, code, packages)
    ]
    assert repeated[1] < repeated[2] < repeated[0]
    (kept,) = repeated[0] - repeated[2]
    assert "RUN groupadd" in kept
    assert code["seconds"] < packages["seconds"] < 2 * build["seconds"]
    texts = [one.text for one in shipping.instructions(DOCKERFILE)]
    assert len(repeated[1]) == len(texts) - texts.index("COPY labsupport /opt/lab/app/labsupport")


def test_every_line_of_the_dockerfile_has_a_purpose_of_its_own():
    found = shipping.instructions(DOCKERFILE)
    assert [one.purpose for one in found] == [purpose for _, purpose in shipping.PURPOSES]
    assert {one.stage for one in found} == {"install", "model", "packages", "the image"}
    assert shipping.instructions("FROM x\nARG nothing")[1].purpose == ""


def test_the_examples_in_the_docstrings_are_true():
    tried = doctest.testmod(shipping)
    assert tried.attempted and not tried.failed


STUB = r"""#!/bin/bash
echo "$@" >> "$STUB_LOG"
case "$1 $2" in
  "version "*) [ -z "$STUB_ABSENT" ] || exit 1; echo 99.0 ;;
  "build "*) cat Dockerfile > /dev/null || exit 1
    printf 'Sending build context\nStep 1/3 : FROM scratch\n ---> 1\n'
    printf 'Step 2/3 : COPY a   b\n ---> Using cache\n ---> 2\n'
    printf 'Step 3/3 : CMD []\n ---> 3\nSuccessfully built\n' ;;
  "history "*) cat "$STUB_HISTORY" ;;
  "inspect "*) case "$3" in *Size*) echo 812345678 ;; *) echo 'exit code 0' ;; esac ;;
  "run --rm") printf 'Traceback (most recent call last):\n  File "x"\nTokenMissing: set LAB_TOKEN\n' >&2
    exit "${STUB_CODE:-1}" ;;
  "run --detach") echo "WARNING: no swap" >&2; printf '%064d\n' 7 ;;
  "exec "*) echo "VmHWM: 300 kB" ;;
esac
"""
CLASSIC = """0 /bin/sh -c #(nop)  CMD []
2000000 /bin/sh -c #(nop) COPY dir:0123abcd in /opt/lab/app/labsupport
70000000 /bin/sh -c #(nop) COPY dir:89ab in /home/lab
3000 /bin/sh -c groupadd --gid 10001 lab     && useradd lab
50000000 /bin/sh -c apt-get install
90000000
"""
BUILDKIT = """0 CMD []
2000000 COPY labsupport /opt/lab/app/labsupport # buildkit
70000000 COPY /home/lab /home/lab # buildkit
3000 RUN /bin/sh -c groupadd --gid 10001 lab     && useradd lab # buildkit
140000000 RUN /bin/sh -c set -eux # buildkit
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """A program called docker that prints what Docker prints; gives the file in which it notes its arguments."""
    (tmp_path / "docker").write_text(STUB)
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("STUB_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("STUB_HISTORY", str(tmp_path / "history"))
    return tmp_path / "log"


def test_by_default_the_steps_are_the_recorded_ones_and_no_engine_is_asked(stub, monkeypatch, capsys):
    monkeypatch.delenv("LAB_DOCKER", raising=False)
    ship = shipping.Shipping()
    result = ship.show("run")
    assert result == shipping.Result(**RECORDING["steps"]["run"])
    first, command, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith(f"Recorded on {RECORDING['made']['date']}, with Docker")
    assert command == f"$ {shipping.DOCKER['run']}"
    assert not stub.exists()


def test_a_live_run_prints_the_same_kind_of_lines(stub, monkeypatch, capsys):
    monkeypatch.setenv("LAB_DOCKER", "1")
    monkeypatch.setattr(shipping, "DOCKER", shipping.DOCKER | {"wait": "true"})
    ship = shipping.Shipping()
    assert capsys.readouterr().out == "Each command is run here, by Docker 99.0.\n"
    built = ship.show("build")
    assert [re.sub(r"^ +\d+\.\d s", "", line) for line in built.lines] == [
        "          Step 1/3 : FROM scratch", "  CACHED  Step 2/3 : COPY a b", "          Step 3/3 : CMD []"
    ]  # fmt: skip
    assert capsys.readouterr().out.startswith(f"$ {shipping.BUILD}\n")
    ship.show("build", without="CACHED", most=1)
    assert capsys.readouterr().out.count("Step") == 1
    assert ship.show("size").lines == ["812 MB"]
    assert ship.show("no token").lines == ["TokenMissing: set LAB_TOKEN"]
    assert ship.show("run").lines == ["000000000000"]
    assert ship.show("wait").lines == []
    assert ship.show("memory").lines == ["VmHWM: 300 kB"]
    assert ship.show("known") == shipping.Result(**RECORDING["steps"]["known"])  # nginx is always recorded
    log = stub.read_text()
    assert "run --detach --name lab-shipping --read-only" in log and "rm --force lab-shipping" in log
    monkeypatch.setenv("STUB_CODE", "0")
    ship.close()
    ship.close()


@pytest.mark.parametrize("history", [CLASSIC, BUILDKIT], ids=["classic", "buildkit"])
def test_the_layers_are_told_from_the_notes_of_both_builders(stub, history):
    (stub.parent / "history").write_text(history)
    done = shipping.run(shipping.DOCKER["layers"], stub.parent, {**os.environ}, shipping.CLEANED["layers"])
    sizes, made = zip(*(line.split(" MB  ") for line in done.lines), strict=True)
    assert [float(size) for size in sizes] == [140, 0, 70, 2]
    assert made[0] == "FROM: the base image" and made[1] == "RUN groupadd --gid 10001 lab && useradd lab"
    assert made[3].startswith("COPY ") and made[3].endswith(" /opt/lab/app/labsupport") and "dir:" not in made[3]


def test_a_step_that_ends_in_another_way_than_recorded_is_said(stub, monkeypatch, capsys):
    monkeypatch.setenv("STUB_CODE", "0")
    ship = shipping.Shipping(live=True)
    with pytest.raises(shipping.NotTheSame, match="exit code 0, and in the recorded run with 1"):
        ship.show("no token")
    assert "TokenMissing: set LAB_TOKEN" in capsys.readouterr().out
    ship.close()


def test_without_an_engine_the_recorded_run_is_shown_even_if_a_live_one_was_wished(stub, monkeypatch, capsys):
    monkeypatch.setenv("STUB_ABSENT", "1")
    shipping.Shipping(live=True)
    assert capsys.readouterr().out.startswith("No Docker engine answers here, so the steps are the recorded ones.\n")
    monkeypatch.setenv("PATH", "")
    assert shipping.version() is None


def test_the_folder_of_a_live_run_holds_what_the_dockerfile_copies_and_goes_away(stub):
    shell = shipping.Shell()
    assert (shell.folder / "Dockerfile").read_text() == DOCKERFILE
    assert (shell.folder / "labsupport" / "serving" / "routes.py").exists()
    assert (shell.folder / "images" / "fruits.jpg").exists() and not (shell.folder / "tests").exists()
    shell.close()
    assert not Path(shell.folder).exists()


# the exercises of the lesson


def repeated(lines, changed):
    for number, line in enumerate(lines):
        if line.startswith("COPY ") and any(f"{changed}/".startswith(f"{one}/") for one in line.split()[1:-1]):
            return len(lines) - number
    return 0


def reached(now, looked_up, remembers):
    return "blue" if looked_up < 0 and now < looked_up + remembers else "green"


FOUR = dict(shipping_checks.OPTIONS)
CODE, ROOM, LOG, _ = FOUR


@pytest.mark.parametrize(
    "check, answer, verdict",
    [
        (shipping_checks.order_of_lines, "cebad", "Right."),
        (shipping_checks.order_of_lines, "cdeba", "Right."),
        (shipping_checks.order_of_lines, "caebd", "each change of code would install them again"),
        (shipping_checks.order_of_lines, "cbead", "copied only after it"),
        (shipping_checks.order_of_lines, "ecbad", "begins with FROM"),
        (shipping_checks.order_of_lines, "cebaa", "each once"),
        (shipping_checks.order_of_lines, 5, "each once"),
        (shipping_checks.repeated_lines, repeated, "Right."),
        (shipping_checks.repeated_lines, lambda lines, changed: repeated(lines, changed) and 1, "counts one line"),
        (shipping_checks.repeated_lines, lambda lines, changed: repeated(lines, changed) + 1, "are repeated"),
        (shipping_checks.repeated_lines, lambda lines, changed: repeated(lines, changed) or 5, "copied by no line"),
        (shipping_checks.repeated_lines, lambda lines, changed: repeated(lines, changed[:4]), "for deploy/list.txt"),
        (
            shipping_checks.repeated_lines,
            lambda lines, changed: repeated(lines, changed.replace("book", "")),
            "codebook is another folder",
        ),
        (shipping_checks.repeated_lines, lambda lines, changed: True, "return a whole number"),
        (shipping_checks.repeated_lines, None, "it raised TypeError"),
        (shipping_checks.option_for, FOUR, "Right."),
        (shipping_checks.option_for, FOUR | {LOG: "--read-only"}, "does not keep what it has written"),
        (shipping_checks.option_for, FOUR | {"strangers get answers": "--read-only"}, "decided by a token"),
        (shipping_checks.option_for, FOUR | {CODE: "--volume"}, "the code is not in it"),
        (shipping_checks.option_for, FOUR | {ROOM: "--volume"}, "--volume does not prevent that"),
        (shipping_checks.option_for, FOUR | {ROOM: "--cpus"}, "'--cpus' is none of"),
        (shipping_checks.option_for, {ROOM: "--memory"}, "missing: strangers get answers"),
        (shipping_checks.option_for, "--memory", "give a dictionary"),
        (shipping_checks.hours_of_credits, 10.3, "Right."),
        (shipping_checks.hours_of_credits, 7.2, "it still earns 36"),
        (shipping_checks.hours_of_credits, 14.4, "the machine has two"),
        (shipping_checks.hours_of_credits, 24, "how long it takes to save"),
        (shipping_checks.hours_of_credits, 5.54, "last longer, not shorter"),
        (shipping_checks.hours_of_credits, 36, "beyond what is earned"),
        (shipping_checks.hours_of_credits, 50, "do not last 50 h"),
        (shipping_checks.hours_of_credits, None, "give a number"),
        (shipping_checks.three_days_of_green, 6.51, "Right."),
        (shipping_checks.three_days_of_green, 5.99, "the machine alone"),
        (shipping_checks.three_days_of_green, 13.02, "blue would have run"),
        (shipping_checks.three_days_of_green, 65.99, "a whole month"),
        (shipping_checks.three_days_of_green, 8.25, "72 of the month's 730"),
        (shipping_checks.three_days_of_green, 0.27, "that is three hours"),
        (shipping_checks.three_days_of_green, 30, "is not 72 hours"),
        (shipping_checks.three_days_of_green, "6", "give a number"),
        (shipping_checks.answered_by, reached, "Right."),
        (shipping_checks.answered_by, lambda now, looked_up, remembers: "green", "still remembers blue"),
        (shipping_checks.answered_by, lambda now, looked_up, remembers: "blue", "it has looked up again"),
        (
            shipping_checks.answered_by,
            lambda now, looked_up, remembers: "blue" if now < looked_up + remembers else "green",
            "it looked up after the swap",
        ),
        (
            shipping_checks.answered_by,
            lambda now, looked_up, remembers: reached(now, looked_up, remembers) if now >= 0 else "green",
            "not swapped yet",
        ),
        (shipping_checks.answered_by, lambda now, looked_up, remembers: now, "return 'blue' or 'green'"),
    ],
)
def test_answers_on_shipping(check, answer, verdict, capsys):
    check.check(answer)
    assert verdict in capsys.readouterr().out


def test_the_model_of_a_plan_is_shown_once_there_is_an_answer(capsys):
    for answer in (..., "a server in a container"):
        exercises.shipping_plan.check(answer)
    first, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("Not tried yet") and rest[0].startswith("One good answer") and len(rest) == 6
