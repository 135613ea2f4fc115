"""What people see: the notebooks in JupyterLab and the docs page, in a browser that is cut off from the internet."""

import ctypes.util
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager

import nbformat
import pytest
import requests
from playwright.sync_api import Page, expect, sync_playwright

from labsupport import paths
from labsupport.serving import create_app, serve
from test_lab import answers, code_cells, copy_of_the_lab, outputs, pictures_in, printed, wait_until

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
OUTSIDE = re.compile(r"^(?!https?://(127\.0\.0\.1|localhost)[:/])")
JUPYTERLAB = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.port=0"]
AS_MAKE_LAB = re.findall(r"--LabApp\S+", (paths.root() / "Makefile").read_text())


@pytest.fixture(scope="module")
def chromium():
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    missing = pytest.fail if "LAB_REQUIRE_BROWSER" in os.environ else pytest.skip
    if program is None:
        missing(f"no browser, none of {', '.join(BROWSERS)}: apt-get install chromium")
    if sys.platform == "linux" and ctypes.util.find_library("atomic") is None:
        missing("Playwright's driver needs libatomic: apt-get install libatomic1")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium):
    """A page that reaches this machine only. `page.outside`: what it asked of others; `page.complaints`: its errors."""
    context = chromium.new_context(viewport={"width": 1400, "height": 900}, service_workers="block")
    page = context.new_page()
    page.outside, page.complaints = [], []

    def refuse(route):
        page.outside.append(route.request.url)
        route.abort()

    context.route(OUTSIDE, refuse)
    page.on("console", lambda message: message.type == "error" and page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("response", lambda answer: answer.status >= 400 and page.complaints.append(f"{answer.status} {answer.url}"))
    yield page
    context.close()


def folders(top) -> dict[str, str]:
    """Where JupyterLab keeps its things, not the user's; with a setting: cells out of sight are in the page too."""
    kinds = {"JUPYTER": ("CONFIG", "DATA", "RUNTIME"), "JUPYTERLAB": ("SETTINGS", "WORKSPACES")}
    settings = top / "settings" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"windowingMode": "none"}')
    return {f"{who}_{kind}_DIR": str(top / kind.lower()) for who in kinds for kind in kinds[who]}


@pytest.fixture
def jupyterlab(tmp_path):
    """JupyterLab on a copy of the lab: its address, that copy's environment. Its kernels end with it."""
    env = copy_of_the_lab(tmp_path) | folders(tmp_path / "jupyter")
    for notebook in (tmp_path / "notebooks").glob("*.ipynb"):
        strip(notebook)
    command = [*JUPYTERLAB, *AS_MAKE_LAB, f"--notebook-dir={tmp_path}"]
    with open(tmp_path / "jupyter.log", "w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    try:
        runtime = tmp_path / "jupyter" / "runtime"
        started = wait_until(lambda: list(runtime.glob("jpserver-*.json")), "JupyterLab starts", 60)
        server = json.loads(started[0].read_text())
        address = f"{server['url']}?token={server['token']}"
        wait_until(lambda: answers(address), "JupyterLab answers", 60)
        yield address, env
    finally:
        process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()  # nothing to one that has ended
            process.wait()
    wait_until(lambda: not answers(f"http://127.0.0.1:{env['LAB_PORT']}"), "the kernels end with JupyterLab")


def strip(notebook):
    """Take the outputs out of a notebook, so that what is seen was made now."""
    lesson = nbformat.read(notebook, as_version=4)
    for cell in code_cells(lesson):
        cell.outputs, cell.execution_count = [], None
    nbformat.write(lesson, notebook)


def errors(panel):
    return panel.locator(".jp-OutputArea-output", has_text="Traceback (most recent call last)")


def run_all(page: Page, notebook):
    """Run > Run All Cells on the notebook in front, wait until every cell is done, save; returns what was saved."""
    tab = page.locator(".lm-DockPanel-tabBar .lm-TabBar-tab.lm-mod-current")
    expect(tab).to_have_text(notebook.name, timeout=60_000)
    panel = page.locator(".jp-NotebookPanel:visible")
    expect(panel.locator(".jp-Toolbar-kernelName")).to_contain_text("Python 3", timeout=60_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    prompts = panel.locator(".jp-CodeCell .jp-InputArea-prompt")
    finished = prompts.last.filter(has_text=re.compile(r"\d")).or_(errors(panel))
    expect(finished.first).to_be_attached(timeout=120_000)
    expect(prompts).to_have_text([f"[{number}]:" for number in range(1, prompts.count() + 1)])
    page.keyboard.press("Control+s")
    expect(tab).not_to_have_class(re.compile("jp-mod-dirty"))
    return nbformat.read(notebook, as_version=4)


def assert_all_is_well(page: Page, lesson, committed):
    """No error, and as many pictures as are committed, in the page and in the file."""
    assert not [output for output in outputs(lesson) if output.output_type == "error"]
    assert pictures_in(lesson) == pictures_in(committed)
    panel = page.locator(".jp-NotebookPanel:visible")
    assert errors(panel).count() == 0
    pictures = panel.locator(".jp-OutputArea-output img")
    widths = pictures.evaluate_all("all => Promise.all(all.map(img => img.decode().then(() => img.naturalWidth)))")
    assert len(widths) == len(pictures_in(committed))
    assert min(widths) > 0
    assert page.outside == []


def test_both_notebooks_in_jupyterlab(page, jupyterlab, tmp_path):
    address, env = jupyterlab
    url = f"http://127.0.0.1:{env['LAB_PORT']}"
    page.goto(address)
    lesson = run_all(page, tmp_path / "notebooks" / "server.ipynb")
    assert_all_is_well(page, lesson, nbformat.read(paths.root() / "notebooks" / "server.ipynb", as_version=4))
    expect(page.get_by_text("nothing found in apple.jpg")).to_be_visible()
    assert page.locator(".Toastify__toast").count() == 0  # no question about news that would be fetched
    written = {path.name for path in (tmp_path / "images_with_boxes").iterdir()}
    assert {"stop_sign.png", "person_dog.jpg", "street_2.jpg", "gallery.jpg", "apple.jpg", "fruits.jpg"} == written
    assert answers(url)

    page.locator(".jp-DirListing-item", has_text="client.ipynb").dblclick()
    lesson = run_all(page, tmp_path / "notebooks" / "client.ipynb")
    assert_all_is_well(page, lesson, nbformat.read(paths.root() / "notebooks" / "client.ipynb", as_version=4))
    assert printed(lesson).startswith(url + "\n")


class StripPrefix(http.server.BaseHTTPRequestHandler):
    """A proxy as the hosted course has one: what is /serve/docs outside is /docs inside, and there is nothing else."""

    def do_GET(self):
        if not self.path.startswith("/serve/"):
            return self.send_error(404)
        url = self.server.behind + self.path.removeprefix("/serve")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = requests.request(self.command, url, headers=dict(self.headers), data=body, timeout=30)
        self.send_response(answer.status_code)
        self.send_header("Content-Type", answer.headers["Content-Type"])
        self.end_headers()
        self.wfile.write(answer.content)

    do_POST = do_GET

    def log_message(self, *what):
        pass


@contextmanager
def stripping_proxy(url: str):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), StripPrefix) as proxy:
        proxy.behind = url
        threading.Thread(target=proxy.serve_forever).start()
        yield f"http://127.0.0.1:{proxy.server_port}"
        proxy.shutdown()


@pytest.fixture(params=["plain", "with root_path", "behind a proxy"])
def docs(request, server, detector):
    """The address of the docs page, in each of the ways in which the server is run."""
    if request.param == "plain":
        yield f"{server.url}/docs"
        return
    with serve(create_app(detector, root_path="/serve"), port=0) as prefixed:
        if request.param == "with root_path":
            yield f"{prefixed.url}/docs"
        else:
            with stripping_proxy(prefixed.url) as outside:
                yield f"{outside}/serve/docs"


def test_try_it_out_without_the_internet(page, docs):
    page.goto(docs)
    assert (page.outside, page.complaints) == ([], [])
    predict = page.locator(".opblock", has=page.locator("[data-path='/predict']"))
    predict.locator(".opblock-summary-control").click()
    predict.get_by_role("button", name="Try it out").click()
    expect(predict.locator("tr[data-param-name=model] option")).to_have_text(["--", "yolov3-tiny", "yolov3"])
    predict.locator("input[type=file]").set_input_files(paths.IMAGES / "street_1.jpg")
    predict.get_by_role("button", name="Execute").click()
    answer = predict.locator(".live-responses-table tbody")
    expect(answer.locator(".response-col_status")).to_contain_text("200")
    size = answer.locator("img").evaluate("img => img.decode().then(() => [img.naturalWidth, img.naturalHeight])")
    assert size == [768, 576]
    assert (page.outside, page.complaints) == ([], [])


def test_the_browser_is_cut_off(page, server):
    page.goto(f"{server.url}/health")
    reached = page.evaluate("fetch('http://example.com/').then(() => true, () => false)")
    assert (reached, page.outside) == (False, ["http://example.com/"])
    assert page.complaints
