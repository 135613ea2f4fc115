"""The whole lab, as a learner meets it: notebooks in real kernels, beside each other and from top to bottom."""

import os
import queue
import shutil
import socket
import subprocess
import sys
import time

import jupyter_client
import nbclient
import nbformat
import pytest
import requests

from labsupport import paths

NOTEBOOKS = sorted((paths.root() / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False


def wait_until(condition, what: str, seconds: float = 30):
    """The first true answer of `condition`; fails if there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(0.05)
    pytest.fail(f"not within {seconds} s: {what}")


def environment(**own: str) -> dict[str, str]:
    """That of a terminal, and `own`: a kernel that sees it is under test would leave out what compiled code prints."""
    return {name: value for name, value in (os.environ | own).items() if name != "PYTEST_CURRENT_TEST"}


def copy_of_the_lab(folder) -> dict[str, str]:
    """A lab of its own in `folder`, so that nothing is written into this one, and the environment that leads there."""
    for name in ("notebooks", "images"):
        shutil.copytree(paths.root() / name, folder / name, ignore=shutil.ignore_patterns(".*"))
    for name in ("images_with_boxes", "images_uploaded"):
        (folder / name).mkdir()
    (folder / "ipython").mkdir()
    return environment(LAB_ROOT=str(folder), LAB_PORT=str(free_port()), IPYTHONDIR=str(folder / "ipython"))


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def printed(notebook) -> str:
    return "".join(output.text for output in outputs(notebook) if output.get("name") == "stdout")


def pictures_in(notebook):
    """The alt text of every picture under a cell, None for one that has none."""
    return [
        output.metadata.get(kind, {}).get("alt")
        for output in outputs(notebook)
        for kind in output.get("data", {})
        if kind.startswith("image/")
    ]


def running(notebook, cwd) -> nbclient.NotebookClient:
    return nbclient.NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(cwd)}})


@every_notebook
def test_what_is_committed_can_be_read_without_running_it(notebook):
    assert notebook.stat().st_size < 1_000_000
    lesson = nbformat.read(notebook, as_version=4)
    nbformat.validate(lesson)
    assert [cell.execution_count for cell in code_cells(lesson)] == list(range(1, len(code_cells(lesson)) + 1))
    assert outputs(lesson)
    assert not [output for output in outputs(lesson) if output.output_type == "error"]
    complaints = "".join(output.text for output in outputs(lesson) if output.get("name") == "stderr")
    assert "Traceback" not in complaints
    assert all(pictures_in(lesson)), "a picture without a text for those who cannot see it"
    for promise in ("**What we will learn**", "**Time**", "**Needs**"):
        assert promise in lesson.cells[0].source


def test_the_client_notebook_uses_the_server_notebooks_server(tmp_path):
    env = copy_of_the_lab(tmp_path)
    url = f"http://127.0.0.1:{env['LAB_PORT']}"
    server, client = (nbformat.read(tmp_path / "notebooks" / name, 4) for name in ("server.ipynb", "client.ipynb"))
    last = next(index for index, cell in enumerate(server.cells) if "serve(create_app(" in cell.source)
    serving = running(server, tmp_path / "notebooks")
    with serving.setup_kernel(env=env):
        for index, cell in enumerate(server.cells[: last + 1]):
            serving.execute_cell(cell, index)
        assert url in server.cells[last].outputs[0].data["text/plain"]
        assert answers(url)
        running(client, tmp_path / "notebooks").execute(env=env)
        assert answers(url), "the server outlives its clients"
    assert printed(client).startswith(url + "\n")
    assert len(pictures_in(client)) == 3
    wait_until(lambda: not answers(url), "the server stops with its kernel")
    socket.create_server(("127.0.0.1", int(env["LAB_PORT"]))).close()  # raises if the port is still taken


def test_a_notebook_finds_its_files_from_any_folder(tmp_path):
    env = environment(LAB_PORT=str(free_port()))
    del env["LAB_ROOT"]
    client = nbformat.read(paths.root() / "notebooks" / "client.ipynb", as_version=4)
    running(client, cwd=tmp_path).execute(env=env)
    assert len(pictures_in(client)) == 3


@pytest.fixture
def kernel():
    manager, client = jupyter_client.manager.start_new_kernel(kernel_name="python3", env=environment())
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def reply(client, request: str, timeout: float) -> str:
    """The status of the reply to this request; others are for the handshake, which asks again where a kernel is slow."""
    while (message := client.get_shell_msg(timeout=timeout))["parent_header"]["msg_id"] != request:
        pass
    return message["content"]["status"]


BLOCKING_CELL = """
from labsupport.serving import create_app, serve
serve(create_app(), port={port}, block=True)
"""


def test_a_cell_that_serves_until_interrupted(kernel):
    manager, client = kernel
    url = f"http://127.0.0.1:{(port := free_port())}"
    blocking = client.execute(BLOCKING_CELL.format(port=port))
    wait_until(lambda: answers(url), "the blocking cell serves")
    with open(paths.IMAGES / "street_1.jpg", "rb") as picture:
        assert requests.post(f"{url}/predict", files={"file": picture}, timeout=30).status_code == 200
    following = client.execute("import gc; collected = gc.collect(); print('next cell')")
    with pytest.raises(queue.Empty):
        reply(client, blocking, timeout=0.5)  # no reply: the cell still runs, and the next one waits
    manager.interrupt_kernel()
    assert reply(client, blocking, timeout=15) == "ok"
    assert not answers(url)
    assert reply(client, following, timeout=15) == "ok"
    said = {"stdout": "", "stderr": ""}
    while "next cell" not in said["stdout"]:
        content = client.get_iopub_msg(timeout=5)["content"]  # raises if nothing more is said
        if "text" in content:
            said[content["name"]] += content["text"]
    where = f"serving on {url} until interrupted (in a notebook: Kernel, Interrupt)"
    assert said["stdout"].splitlines() == [where, "stopped", "next cell"]
    assert "Traceback" not in said["stderr"]


def test_a_cell_that_hangs_fails_the_run_and_hides_nothing(tmp_path):
    """nbval alone passes a cell that swallows the interrupt, and then expects every later one to fail."""
    hangs = "import time\ntry:\n    for _ in range(600):\n        time.sleep(0.1)\nexcept KeyboardInterrupt:\n    pass"
    own = f"import os\nassert os.environ['LAB_ROOT'] == {str(paths.root())!r}"  # as it was set; conftest.py is copied
    cells = [nbformat.v4.new_code_cell(source) for source in (own, hangs, "assert False, 'the last cell'")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "hangs.ipynb")
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(paths.root() / name, tmp_path)
    command = [sys.executable, "-m", "pytest", "--nbval-cell-timeout=3", "-p", "no:cacheprovider", "hangs.ipynb"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "2 failed, 1 passed" in run.stdout.splitlines()[-1]
    assert "FAILED hangs.ipynb::Cell 1" in run.stdout
    assert "FAILED hangs.ipynb::Cell 2" in run.stdout
    assert "took too long" in run.stdout and "the last cell" in run.stdout
