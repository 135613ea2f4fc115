"""The scenes of the lessons about batches and the edge: a cable that is pulled, a program that is killed, a page visited."""

import os
import subprocess
import sys

import pytest
import requests

from labsupport import charts, paths
from labsupport.edge import Camera
from labsupport.scenarios import lesson_batch_edge as scene
from labsupport.serving import browser_page, create_app, serve
from test_browser import program


def test_a_belt_has_one_phone_without_a_picture(tmp_path):
    phones = scene.belt(tmp_path / "belt", count=9)
    products = list(Camera(tmp_path / "belt"))
    assert [picture is None for _, picture in products] == [number == scene.UNREADABLE for number in range(9)]
    assert (products[0][1] == phones.images[0]).all()


def test_nothing_passes_a_pulled_cable(server):
    cable = scene.Cable(server.port)
    assert requests.get(f"{cable.url}/health", timeout=5).status_code == 200
    cable.pull()
    with pytest.raises(requests.Timeout):
        requests.get(f"{cable.url}/health", timeout=0.2)
    cable.plug()
    assert requests.get(f"{cable.url}/health", timeout=5).status_code == 200
    cable.close()
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{cable.url}/health", timeout=5)


def test_a_cable_finds_a_server_that_was_away_for_a_time(detector):
    with serve(create_app(detector), port=0) as first:
        port = first.port
    cable = scene.Cable(port)
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{cable.url}/health", timeout=5)
    with serve(create_app(detector), port=port):
        assert requests.get(f"{cable.url}/health", timeout=5).status_code == 200
    cable.close()


def slowly(file):
    import sqlite3
    import time

    db = sqlite3.connect(file)
    db.execute("CREATE TABLE done (number INTEGER)")
    for number in range(10_000):
        with db:
            db.execute("INSERT INTO done VALUES (?)", (number,))
        time.sleep(0.01)


def test_a_killed_program_leaves_what_it_has_committed(tmp_path):
    file = tmp_path / "done.db"
    assert scene.rows(file) == 0
    killed = scene.Program(slowly, call=f"slowly({str(file)!r})")
    killed.wait_for(lambda: scene.rows(file) >= 5)
    killed.kill()
    assert 5 <= scene.rows(file) < 10_000


def test_the_rows_of_a_program_that_was_killed_while_it_wrote_are_those_that_it_had_committed(tmp_path):
    assert scene.rows(tmp_path / "none.db") == 0
    file = tmp_path / "rows.db"
    code = f"""
import os, sqlite3
db = sqlite3.connect({str(file)!r}, isolation_level=None)
db.execute("CREATE TABLE done (text)")
db.execute("INSERT INTO done VALUES ('whole')")
db.execute("PRAGMA cache_size = 2")  # so that a part of the transaction is in the file
db.execute("BEGIN")
db.executemany("INSERT INTO done VALUES (?)", [["x" * 1000]] * 200)
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert file.with_name("rows.db-journal").exists()
    assert scene.rows(file) == 1


def test_a_program_that_fails_or_is_too_slow_is_not_waited_for():
    with pytest.raises(RuntimeError, match="ended too early: no such day"):
        scene.Program(call="raise SystemExit('no such day')").wait_for(lambda: False)
    with pytest.raises(TimeoutError):
        scene.Program(call="import time; time.sleep(60)").wait_for(lambda: False, seconds=0.1)


def test_what_native_code_writes_is_hushed_and_then_not(capfd):
    with charts.hushed():
        os.write(2, b"INFO: a delegate")
    os.write(2, b"an error")
    assert capfd.readouterr().err == "an error"


def test_the_page_sends_no_picture(server):
    if browser_page.missing():
        pytest.skip("no TensorFlow.js: make browser")
    program()
    visit = scene.visit(f"{server.url}/browser", paths.IMAGES / "clock.png")
    assert visit["summary"] == "clock"
    assert {method for method, *_ in visit["before"] + visit["after"]} == {"GET"}
    assert sum(size for *_, size in visit["before"] + visit["after"]) == 0


def test_without_a_browser_there_is_no_visit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert scene.visit("http://127.0.0.1:9/browser", paths.IMAGES / "clock.png") is None
