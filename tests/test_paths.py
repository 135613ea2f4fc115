"""The lab's folders are found from wherever one starts, and every file appears complete or not at all."""

import os
import re
import threading
from pathlib import Path

import pytest

from labsupport import paths

CHECKOUT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Each test starts in an empty folder, and nothing says where the lab is."""
    monkeypatch.delenv("LAB_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)


def make_lab(folder: Path) -> Path:
    (folder / "images").mkdir(parents=True)
    (folder / "notebooks").mkdir()
    return folder


def test_lab_root_wins_over_the_working_folder(tmp_path, monkeypatch):
    chosen, here = make_lab(tmp_path / "chosen"), make_lab(tmp_path / "here")
    monkeypatch.chdir(here)
    monkeypatch.setenv("LAB_ROOT", str(chosen))
    assert paths.root() == chosen
    assert chosen / "images" == paths.IMAGES


def test_lab_root_may_be_relative(tmp_path, monkeypatch):
    make_lab(tmp_path / "lab")
    monkeypatch.setenv("LAB_ROOT", "lab")
    assert paths.root() == tmp_path / "lab"


def test_lab_root_that_is_no_folder_is_named_in_the_error(tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_ROOT", str(tmp_path / "gone"))
    with pytest.raises(paths.LabNotFound, match=r"LAB_ROOT is .*gone.*no such folder"):
        paths.root()


def test_the_nearest_lab_above_the_working_folder_is_found(tmp_path, monkeypatch):
    make_lab(tmp_path)
    inner = make_lab(tmp_path / "inner")
    deep = inner / "notebooks" / "more" / "deeper"
    deep.mkdir(parents=True)
    monkeypatch.chdir(deep)
    assert paths.root() == inner


def test_a_folder_with_images_alone_is_no_lab(tmp_path, monkeypatch):
    lab = make_lab(tmp_path / "lab")
    (lab / "work" / "images").mkdir(parents=True)
    monkeypatch.chdir(lab / "work")
    assert paths.root() == lab


def test_outside_any_lab_the_checkout_is_the_lab():
    assert paths.root() == CHECKOUT


def test_no_lab_anywhere_says_how_to_point_at_one(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site-packages" / "labsupport" / "paths.py"))
    with pytest.raises(paths.LabNotFound, match="set LAB_ROOT"):
        paths.root()


@pytest.mark.parametrize("name", ["IMAGES", "IMAGES_WITH_BOXES", "IMAGES_UPLOADED"])
def test_a_folder_that_is_asked_for_exists(name, tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_ROOT", str(tmp_path))
    assert getattr(paths, name) == tmp_path / name.lower()
    assert (tmp_path / name.lower()).is_dir()


def test_other_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="PICTURES"):
        _ = paths.PICTURES


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_while_writing_leaves_nothing_new_and_the_old_file_alone(error, tmp_path):
    (tmp_path / "kept.txt").write_text("old")
    for name in ("kept.txt", "new.txt"):
        with pytest.raises(error), paths.whole(tmp_path / name) as partial:
            partial.write_text("half of i")
            raise error
    assert [file.name for file in tmp_path.iterdir()] == ["kept.txt"]
    assert (tmp_path / "kept.txt").read_text() == "old"


def test_a_folder_appears_whole_and_its_parents_with_it(tmp_path):
    target = tmp_path / "a" / "b" / "network"
    with paths.whole(target) as partial:
        partial.mkdir()
        (partial / "openvino.xml").write_text("<net/>")
        assert not target.exists()
        assert partial.is_relative_to(target.parent)  # only within one file system is a rename atomic
    assert (target / "openvino.xml").read_text() == "<net/>"
    assert list(target.parent.iterdir()) == [target]


def test_a_failed_folder_leaves_nothing(tmp_path):
    with pytest.raises(ValueError), paths.whole(tmp_path / "network") as partial:
        partial.mkdir()
        (partial / "openvino.xml").write_text("<net/>")
        raise ValueError
    assert not list(tmp_path.iterdir())


def test_a_reader_never_sees_part_of_a_file(tmp_path):
    path, seen, done = tmp_path / "notes", set(), threading.Event()
    versions = [letter * 1_000_000 for letter in (b"a", b"b")]
    path.write_bytes(versions[0])

    def read():
        while not done.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for i in range(100):
            with paths.whole(path) as partial, partial.open("wb") as out:
                for start in range(0, 1_000_000, 100_000):
                    out.write(versions[i % 2][start : start + 100_000])
    finally:
        done.set()
        reader.join()
    assert seen and seen <= set(versions)


def test_two_writers_at_once_leave_the_work_of_one(tmp_path):
    meet, path = threading.Barrier(2), tmp_path / "notes"

    def write(text):
        with paths.whole(path) as partial:
            meet.wait(10)  # both are writing now
            partial.write_text(text)

    threads = [threading.Thread(target=write, args=(letter * 1000,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in ("a" * 1000, "b" * 1000)
    assert list(tmp_path.iterdir()) == [path]


def test_converted_networks_are_kept_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert paths.cache() == tmp_path / "cache" / "labsupport"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.cache() == tmp_path / ".cache" / "labsupport"


@pytest.mark.parametrize("name", ["LAB_ROOT", "XDG_CACHE_HOME"])
@pytest.mark.parametrize("text", ["", "  "])
def test_a_variable_that_is_empty_is_as_if_it_were_not_set(name, text, monkeypatch):
    monkeypatch.delenv(name, raising=False)
    before = paths.root(), paths.cache()
    monkeypatch.setenv(name, text)
    assert (paths.root(), paths.cache()) == before


@pytest.mark.parametrize("text", ["cache", "./cache", "~/.cache"])
def test_a_cache_folder_that_is_no_absolute_path_names_the_variable(text, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", text)
    with pytest.raises(ValueError, match=r"XDG_CACHE_HOME='.*': give an absolute path, or unset"):
        paths.cache()


def test_from_a_folder_that_was_removed_the_message_says_so(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(paths.LabNotFound, match="the working folder was removed"):
        paths.root()


def test_one_helper_reads_the_environment():
    """So an empty variable counts as unset everywhere, and nonsense names the variable."""
    readers = {"arguments.py", "loopback.py"}  # the helper; NO_PROXY
    readers |= {"counters.py", "running.py", "worker.py"}  # what the server sets for its workers
    readers |= {"traffic.py"}  # sets the data folder for a lesson, and sets it back
    readers |= {
        "security.py",
        "station.py",
        "local_cluster.py",
    }  # the token, which has rules of its own; what Ray reads
    reads = re.compile(r"os\.environ(\.get\(|\[)(?!.*\] = )|getenv")
    found = {file.name for file in Path(paths.__file__).parent.rglob("*.py") if reads.search(file.read_text())}
    assert found <= readers


def test_a_file_is_as_readable_as_any_other(tmp_path):
    (tmp_path / "plain").write_text("x")
    with paths.whole(tmp_path / "whole") as partial:
        partial.write_text("x")
    assert os.stat(tmp_path / "whole").st_mode == os.stat(tmp_path / "plain").st_mode
