"""Kept pictures: under names of the server's own, for its owner only, and nothing of anybody else's is ever removed."""

import os
import shutil
import stat
import time
import uuid

import numpy as np
import pytest
import requests

from conftest import disk_of
from labsupport import images, paths
from labsupport.access import Damaged, Forgotten, Keys, NoKey, kept_uploads
from labsupport.access.kept_uploads import ABANDONED, OLDEST, Uploads
from labsupport.log import PredictionLog
from labsupport.serving import create_app, serve
from test_strict import PICTURE, Blind

OURS = images.encode(np.random.default_rng(1).integers(0, 256, (300, 400, 3), np.uint8))
TOKEN = "0123456789abcdef0123"


def fresh() -> str:
    return f"{uuid.uuid4().hex}.jpg"


def aged(path, seconds=2 * OLDEST):
    os.utime(path, (time.time() - seconds,) * 2, follow_symlinks=False)
    return path


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def folder(tmp_path):
    """The folder of kept pictures in a lab of its own."""
    made = tmp_path / "images_uploaded"
    made.mkdir()
    return made


@pytest.fixture
def serving(folder, monkeypatch):
    """Start a server that keeps pictures there, and ask it for one; give its answer."""
    monkeypatch.setenv("LAB_ROOT", str(folder.parent))
    monkeypatch.setenv("LAB_TOKEN", TOKEN)
    with serve(create_app(Blind(), keep_uploads=True), port=0) as server:
        yield lambda **headers: requests.post(
            f"{server.url}/predict", files={"file": PICTURE}, headers=headers, timeout=30
        )


def test_what_a_user_put_there_stays_whatever_its_name_age_and_number(folder):
    photograph = (paths.IMAGES / "street_1.jpg").read_bytes()
    names = ["holiday.jpg", "a" * 32 + ".jpg", fresh(), fresh().upper(), f"x{fresh()}", f"{fresh()}.bak", "p.jpeg"]
    theirs = [folder / name for name in names]
    for path in theirs:
        path.write_bytes(photograph)
        path.chmod(0o644 if path == theirs[2] else 0o600)
        aged(path)
    elsewhere = folder.parent / "elsewhere.jpg"
    elsewhere.write_bytes(OURS)
    theirs += [folder / fresh(), folder / fresh(), folder / fresh()]
    theirs[-3].symlink_to(elsewhere)
    theirs[-2].mkdir()
    theirs[-1].symlink_to(folder / "gone.jpg")
    uploads = Uploads(folder, most=1, oldest=60)
    for _ in range(3):
        kept = uploads.keep(fresh(), OURS)
    assert {path.name for path in folder.iterdir()} == {path.name for path in [*theirs, kept]}
    assert elsewhere.read_bytes() == OURS


def test_one_text_is_no_list_of_ids(folder):
    uploads = Uploads(folder)
    kept = uploads.keep(fresh(), OURS)
    with pytest.raises(ValueError, match=r"ids=.*: give a list of ids"):
        uploads.forget(kept.stem)
    assert kept.exists() and uploads.forget([kept.stem]) == 1


def test_a_clock_that_is_set_makes_no_picture_older_or_younger(folder, monkeypatch):
    wall, steady = [time.time()], [0.0]
    monkeypatch.setattr(time, "time", lambda: wall[0])
    monkeypatch.setattr(kept_uploads, "_steady", lambda: steady[0])
    uploads = Uploads(folder)
    first = uploads.keep(fresh(), OURS)
    wall[0] += 100 * OLDEST
    second = uploads.keep(fresh(), OURS)
    wall[0] -= 100 * OLDEST
    assert first.exists() and second.exists()
    steady[0] += 2 * OLDEST
    third = uploads.keep(fresh(), OURS)
    assert not first.exists() and not second.exists() and third.exists()


def test_what_a_server_kept_before_a_restart_is_removed_in_its_time(folder):
    before = Uploads(folder)
    old, new = before.keep(fresh(), OURS), before.keep(fresh(), OURS)
    aged(old)
    kept = Uploads(folder).keep(fresh(), OURS)
    assert {*folder.iterdir()} == {new, kept}


def test_only_its_owner_can_read_what_is_kept_also_in_a_folder_that_was_open(folder):
    folder.chmod(0o777)
    before = os.umask(0)
    try:
        kept = Uploads(folder).keep(fresh(), OURS)
        shutil.rmtree(folder)
        again = Uploads(folder).keep(fresh(), OURS)
    finally:
        os.umask(before)
    assert kept.name != again.name and (mode(again), mode(folder)) == (0o600, 0o700)


def test_the_rest_of_a_picture_that_was_being_written_is_removed_and_nothing_else(folder):
    half, theirs, young = (folder / f".partial-{name}" for name in ("half", "theirs", "young"))
    for made in (half, theirs, young):
        made.mkdir()
        (made / fresh()).write_bytes(b"half of it")
        (made / fresh().replace("jpg", "bin")).write_bytes(b"half of it")
    (theirs / "notes.txt").write_text("mine")
    (folder / ".partial-file").write_text("mine, too")
    for path in (half, theirs, folder / ".partial-file"):
        aged(path, 2 * ABANDONED)
    Uploads(folder)
    assert not half.exists() and [*young.iterdir()]
    assert [path.name for path in theirs.iterdir()] == ["notes.txt"] and (folder / ".partial-file").exists()


def broken_folder(folder, how):
    """Make the folder unusable after the server has started."""
    shutil.rmtree(folder)
    if how == "a file":
        folder.write_text("no folder")
    elif how == "a dangling link":
        folder.symlink_to(folder.parent / "nowhere")


@pytest.mark.parametrize("how", ["a file", "a dangling link", "gone"])
def test_a_folder_that_breaks_costs_no_answer_and_is_said_once(serving, folder, caplog, how):
    assert serving().ok
    broken_folder(folder, how)
    assert [serving().status_code for _ in range(3)] == [200] * 3
    complaints = [record.getMessage() for record in caplog.records if "cannot be kept" in record.getMessage()]
    assert len(complaints) == (how != "gone")  # it is simply made again
    if how == "gone":
        assert len([*folder.iterdir()]) == 3 and mode(folder) == 0o700


def test_a_picture_that_cannot_be_removed_costs_no_answer_and_is_said_once(folder, caplog):
    uploads = Uploads(folder, most=1)
    first = uploads.keep(fresh(), OURS)
    first.unlink()
    first.mkdir()
    second = uploads.keep(fresh(), OURS)
    second.unlink()
    second.mkdir()
    last = [uploads.keep(fresh(), OURS) for _ in range(3)][-1]
    assert {*folder.iterdir()} == {first, second, last}
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "old pictures cannot be removed",
        "old pictures are removed again, 2 were not",
    ]


def test_a_read_only_disk_costs_no_answer(tmp_path, caplog):
    import subprocess

    with disk_of(4, tmp_path / "disk") as disk:
        uploads = Uploads(disk, most=1)
        kept = uploads.keep(fresh(), OURS)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert [uploads.keep(fresh(), OURS) for _ in range(3)] == [None] * 3
        assert kept.read_bytes() == OURS
    assert len(caplog.records) == 1


def test_a_server_that_cannot_keep_from_the_start_says_so(folder, monkeypatch):
    monkeypatch.setenv("LAB_ROOT", str(folder.parent))
    shutil.rmtree(folder)
    folder.write_text("no folder")
    with pytest.raises(OSError, match="images_uploaded"):
        create_app(Blind(), keep_uploads=True)


def test_a_client_with_the_token_cannot_name_or_overwrite_a_kept_picture(serving, folder):
    somebodys = serving().headers["X-Prediction-Id"]
    before = (folder / f"{somebodys}.jpg").stat()
    answer = serving(**{"X-Record-Id": somebodys, "Authorization": f"Bearer {TOKEN}"})
    assert answer.headers["X-Prediction-Id"] == somebodys  # the station's own id for what it will report
    after = (folder / f"{somebodys}.jpg").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert len([*folder.iterdir()]) == 2
    assert serving(**{"X-Record-Id": "../x", "Authorization": f"Bearer {TOKEN}"}).status_code == 422
    assert serving(**{"X-Record-Id": somebodys}).status_code == 401


def test_a_record_cannot_take_the_row_of_a_prediction(tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_TOKEN", TOKEN)
    seen = {"version": "evil", "latency": 1, "detections": [], "features": {}}
    decided = {
        "time": 1.75e9,
        "station": "s",
        "product": "p",
        "verdict": "accept",
        "decided_by": "server",
        "latency": 1,
    }
    with PredictionLog(f"sqlite:///{tmp_path}/log.db") as log, serve(create_app(Blind(), log=log), port=0) as server:
        answer = requests.post(f"{server.url}/detect", files={"file": PICTURE}, timeout=30)
        log.flush()
        before = log.frame()
        records = [{**decided, "id": id, "prediction": seen} for id in (uuid.uuid4().hex, answer.json()["id"])]
        headers = {"Authorization": f"Bearer {TOKEN}"}
        refused = requests.post(f"{server.url}/records", json=records, headers=headers, timeout=30)
        assert refused.status_code == 422 and "another prediction has this id" in refused.json()["detail"]
        assert log.frame().equals(before) and not len(log.decisions())
        taken = requests.post(f"{server.url}/records", json=records[:1], headers=headers, timeout=30)
        assert taken.json() == {"new": 1, "known": 0}
        again = requests.post(f"{server.url}/records", json=records[:1], headers=headers, timeout=30)
        assert again.json() == {"new": 0, "known": 1}


ANN, BOB = "p-0123456789ab", "p-ba9876543210"


@pytest.fixture
def keys(tmp_path):
    return Keys(tmp_path / "keys")


def test_a_picture_of_a_person_is_kept_encrypted_and_one_of_nobody_as_it_was(folder, keys):
    uploads, ids = Uploads(folder, keys=keys), [uuid.uuid4().hex for _ in range(4)]
    kept = [uploads.keep(f"{id}.jpg", OURS, person) for id, person in zip(ids, (ANN, BOB, None, ANN), strict=True)]
    assert [path.name for path in kept] == [f"{ids[0]}.bin", f"{ids[1]}.bin", f"{ids[2]}.jpg", f"{ids[3]}.bin"]
    assert kept[2].read_bytes() == OURS and uploads.picture(ids[2], ANN) is None
    for path, id, person in ((kept[0], ids[0], ANN), (kept[1], ids[1], BOB)):
        assert mode(path) == 0o600 and OURS[:16] not in path.read_bytes()
        assert keys.decrypt(person, id, path.read_bytes()) == uploads.picture(id, person) == OURS
    for id, person in ((ids[0], BOB), (ids[1], ANN)):
        with pytest.raises(Damaged):
            uploads.picture(id, person)
    kept[3].write_bytes(kept[0].read_bytes())  # one picture in the place of another one
    with pytest.raises(Damaged):
        uploads.picture(ids[3], ANN)


def test_without_keys_no_picture_of_a_person_is_kept(folder, caplog):
    uploads, before = Uploads(folder), {*folder.iterdir()}
    assert uploads.keep(fresh(), OURS, ANN) is None and {*folder.iterdir()} == before
    assert "must be encrypted: give keys=" in caplog.text


def test_a_key_folder_that_others_may_open_costs_no_answer_and_is_said_once(folder, keys, caplog):
    uploads = Uploads(folder, keys=keys)
    keys.folder.mkdir(mode=0o755)
    assert [uploads.keep(fresh(), OURS, ANN) for _ in range(3)] == [None] * 3 and not [*folder.iterdir()]
    (said,) = [record.getMessage() for record in caplog.records]
    assert "pictures cannot be kept" in said and "chmod 700 it" in said
    keys.folder.chmod(0o700)
    assert uploads.keep(fresh(), OURS, ANN) and "pictures are kept again, 3 were not" in caplog.text


def test_encrypted_pictures_count_towards_the_limits_also_after_a_restart(folder, keys):
    uploads = Uploads(folder, most=3, keys=keys)
    kept = [uploads.keep(fresh(), OURS, ANN if number % 2 else None) for number in range(5)]
    assert {*folder.iterdir()} == {*kept[2:]}
    aged(kept[3])
    aged(kept[2])
    (theirs := folder / "notes.bin").touch(0o600)
    aged(theirs)
    last = Uploads(folder, most=3, keys=keys).keep(fresh(), OURS, ANN)
    assert {*folder.iterdir()} == {kept[4], last, theirs}


def test_pictures_of_given_ids_are_removed_and_leave_their_place(folder, keys):
    uploads = Uploads(folder, most=3, keys=keys)
    kept = [uploads.keep(fresh(), OURS, person) for person in (BOB, ANN, None)]
    assert uploads.forget([kept[1].stem, kept[2].stem, uuid.uuid4().hex, "../keys/p-0123456789ab", "", "*"]) == 2
    assert [*folder.iterdir()] == [kept[0]] and uploads.picture(kept[1].stem, ANN) is None
    more = [uploads.keep(fresh(), OURS, ANN) for _ in range(2)]
    assert {*folder.iterdir()} == {kept[0], *more}


def test_of_a_forgotten_person_nothing_is_kept(folder, keys, caplog):
    uploads = Uploads(folder, keys=keys)
    before = uploads.keep(fresh(), OURS, ANN)
    keys.forget(ANN)
    assert uploads.keep(fresh(), OURS, ANN) is None and not caplog.records
    with pytest.raises(Forgotten):
        uploads.picture(before.stem, ANN)
    (keys.folder / BOB).write_bytes(b"half")
    assert [uploads.keep(fresh(), OURS, BOB) for _ in range(3)] == [None] * 3
    (said,) = [record.getMessage() for record in caplog.records]
    assert "pictures cannot be kept" in said and f"{BOB} has 4 bytes and not 32" in said
    assert [*folder.iterdir()] == [before]


def test_a_picture_is_asked_for_by_an_id_and_with_keys(folder, keys):
    for id in ("../keys/p-1", f"{uuid.uuid4().hex}.jpg", "", None, 5):
        with pytest.raises(ValueError, match=r"id=.*: give the id of a prediction, without .jpg"):
            Uploads(folder, keys=keys).picture(id, ANN)
    with pytest.raises(NoKey, match="must be encrypted: give keys="):
        Uploads(folder).picture(uuid.uuid4().hex, ANN)
    with pytest.raises(ValueError, match=r"person=.*: give the id of a person"):
        Uploads(folder, keys=keys).keep(fresh(), OURS, "../p-1")
    assert not [*folder.iterdir()]


@pytest.mark.parametrize(
    "name", ["../x.jpg", "/etc/x.jpg", "x.jpg", 5, f"{'0' * 32}.jpg", f"{'0' * 12}4{'0' * 3}8{'0' * 15}.jpg\n"]
)
def test_a_name_that_the_server_would_not_make_is_never_written(folder, name):
    with pytest.raises(ValueError, match=r"name=.*: give uuid.uuid4"):
        Uploads(folder).keep(name, b"a picture")
    assert not list(folder.iterdir()) and not list(folder.parent.glob("*.jpg"))


@pytest.mark.parametrize(
    "arguments", [{"folder": 5}, {"folder": "kept"}, {"most": -1}, {"most": "x"}, {"oldest": np.nan}]
)
def test_a_folder_of_wrong_arguments_is_not_kept(folder, arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}=.*: give"):
        Uploads(**{"folder": folder, **arguments})
