"""What people see: the notebooks in JupyterLab, the docs page and the dashboard, in a browser that is cut off from the
internet."""

import ctypes.util
import http.server
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import nbformat
import pytest
import requests
from playwright.sync_api import Page, expect, sync_playwright

from labsupport import paths
from labsupport.compute import in_browser
from labsupport.detection import Box, Detection
from labsupport.log import PredictionLog
from labsupport.monitoring.dashboard_data import NO_LOG
from labsupport.rollout import Router
from labsupport.scenarios import simulate
from labsupport.serving import create_app, serve
from test_course import LESSONS
from test_lab import answers, code_cells, copy_of_the_lab, outputs, pictures_in, printed, wait_until

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
OPENED = LESSONS if "LAB_EVERY_LESSON" in os.environ else LESSONS[:3]  # all of them take seven minutes
AS_MAKE_LAB = re.findall(r"--LabApp\S+", (paths.root() / "Makefile").read_text())


def program() -> str:
    """The browser of this machine. Skips the test where there is none, or fails where one is asked for."""
    try:
        found = in_browser.program()
    except in_browser.NoBrowser as error:
        lacking(str(error))
    if sys.platform == "linux" and ctypes.util.find_library("atomic") is None:
        lacking("Playwright's driver needs libatomic: apt-get install libatomic1")
    return found


def lacking(what: str):
    (pytest.fail if "LAB_REQUIRE_BROWSER" in os.environ else pytest.skip)(what)


@pytest.fixture(scope="module")
def chromium():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program(), args=ARGUMENTS)
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
    # before the kernel has answered JupyterLab drops what it is told to run
    expect(page.locator("#jp-main-statusbar")).to_contain_text("Python 3 (ipykernel) | Idle", timeout=60_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    prompts = panel.locator(".jp-CodeCell .jp-InputArea-prompt")
    finished = prompts.last.filter(has_text=re.compile(r"\d")).or_(errors(panel))
    expect(finished.first).to_be_attached(timeout=600_000)  # as a cell of nbval may: machines differ
    expect(prompts).to_have_text([f"[{number}]:" for number in range(1, prompts.count() + 1)])
    page.keyboard.press("Control+s")
    expect(tab).not_to_have_class(re.compile("jp-mod-dirty"))
    return nbformat.read(notebook, as_version=4)


def worded(pictures: list[str]) -> list[str]:
    """Texts without their numbers, which are this run's."""
    return [re.sub(r"-?\d[\d.,:]*", "0", text) for text in pictures]


def assert_all_is_well(page: Page, lesson, committed):
    """No error, and as many pictures as are committed, in the page and in the file."""
    assert not [output for output in outputs(lesson) if output.output_type == "error"]
    assert worded(pictures_in(lesson)) == worded(pictures_in(committed))
    panel = page.locator(".jp-NotebookPanel:visible")
    assert errors(panel).count() == 0
    pictures = panel.locator(".jp-OutputArea-output img")
    widths = pictures.evaluate_all("all => Promise.all(all.map(img => img.decode().then(() => img.naturalWidth)))")
    assert len(widths) == len(pictures_in(committed))
    assert min(widths) > 0
    assert page.outside == []


def test_the_lessons_in_jupyterlab(page, jupyterlab, tmp_path):
    """In the order of the README's map, each opened from the list of files while the kernels of those before it live on."""
    address, env = jupyterlab
    url = f"http://127.0.0.1:{env['LAB_PORT']}"
    page.goto(address)
    for name in OPENED:
        if name != "index":  # which JupyterLab opens with
            page.locator(".jp-DirListing-item", has_text=re.compile(rf"^{name}\.ipynb")).dblclick()
        lesson = run_all(page, tmp_path / "notebooks" / f"{name}.ipynb")
        assert_all_is_well(page, lesson, nbformat.read(paths.root() / "notebooks" / f"{name}.ipynb", as_version=4))
        if name == "server":
            expect(page.get_by_text("nothing found in apple.jpg")).to_be_visible()
            assert page.locator(".Toastify__toast").count() == 0  # no question about news that would be fetched
            written = {path.name for path in (tmp_path / "images_with_boxes").iterdir()}
            assert written == {"stop_sign.png", "gallery.jpg", "apple.jpg", "fruits.jpg"}
        if name == "client":
            assert printed(lesson).startswith(url + "\n")
        assert answers(url) or name == "index", "the server that server.ipynb started outlives its clients"


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
        try:
            yield f"http://127.0.0.1:{proxy.server_port}"
        finally:
            proxy.shutdown()  # else a test that fails would never end


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


# the dashboard

NOTHING = "\N{EN DASH}"


class Cats:
    def __init__(self, version="cats"):
        self.version = version

    def detect(self, image, confidence=0.5):
        return [Detection("cat", 0.9, Box(0, 0, 9, 9))]


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A server whose log holds a quarter of an hour of simulated traffic, and the lamp went out seven minutes ago."""
    with PredictionLog(f"sqlite:///{tmp_path_factory.mktemp('watched')}/log.db") as log:
        simulate("darkness", start=780, seconds=1200).write(log, began=time.time() - 1200)
        router = Router(Cats(), log=log)
        router.canary(Cats("better <b>cats</b>"), 5, "to see")
        with serve(create_app(router, log=log), port=0) as server:
            yield server


def shown(value: float | None, unit: str) -> str:
    """A figure as people write it, with three digits that count."""
    if value is None:
        return NOTHING
    return {"ratio": f"{100 * value:.3g} %", "1/s": f"{value:.3g} /s"}.get(unit, f"{value:.3g} {unit}".strip())


def hold(page, url) -> dict:
    """The page with one answer of the server, which stays the same; and that answer."""
    data = requests.get(f"{url}/dashboard/data", timeout=30).json()
    page.route("**/dashboard/data*", lambda route: route.fulfill(json=data))
    page.goto(f"{url}/dashboard")
    expect(page.locator("#status")).to_have_text("live")
    return data


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_dashboard_shows_what_the_data_say(page, watched, width, scheme):
    page.set_viewport_size({"width": width, "height": 844})
    page.emulate_media(color_scheme=scheme)
    data = hold(page, watched.url)
    figures = data["figures"]
    expect(page.locator("#up")).to_have_text("up")
    expect(page.locator("#version")).to_have_text("cats (canary: better <b>cats</b> 5 %)")
    expect(page.locator("#requests_per_second")).to_have_text(f"{figures['requests_per_second']:.3g}")
    for name, unit in (("error_ratio", "ratio"), ("refused_ratio", "ratio"), ("latency_p95", "s")):
        expect(page.locator(f"#{name}")).to_have_text(shown(figures[name], unit))
    (alarm,) = [alarm for alarm in data["alarms"] if alarm["state"] == "firing"]
    expect(page.locator("#firing")).to_have_text("1")
    for text in ("Dark", alarm["severity"], alarm["text"], alarm["cure"]):
        expect(page.locator("#alarms li")).to_contain_text(text)
    panels = [panel for row in data["rows"] for panel in row["panels"]]
    assert page.locator("figure").count() == len(panels) == 12
    for panel in panels:
        figure = page.locator(f"figure[data-title='{panel['title']}']")
        for one in panel["series"]:
            expect(figure.locator("figcaption span")).to_contain_text(shown(one["value"], one["unit"]))
            assert shown(one["value"], one["unit"]) in figure.locator("svg").get_attribute("aria-label")
        drawn = [one for one in panel["series"] if any(value is not None for value in one["judged"])]
        assert figure.locator("path.line").count() == len(drawn)
        assert figure.locator("text", has_text="nothing to measure").count() == (panel["title"] == "picture size")
        assert figure.locator("line.limit").count() == len(
            {limit for one in panel["series"] for limit in one["limits"]}
        )
        assert figure.locator("rect.shade").count() == (panel["title"] == "brightness")
        assert figure.locator("line.rollout").count() == len(data["rollouts"]) == 2
    expect(page.locator("#rollouts li")).to_contain_text(["start cats", "canary better <b>cats</b> 5 % (to see)"])
    assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
    assert (page.outside, page.complaints) == ([], [])


def test_the_dashboards_lines_are_where_the_values_are(page, watched):
    data = hold(page, watched.url)
    one = next(panel for row in data["rows"] for panel in row["panels"] if panel["title"] == "brightness")["series"][0]
    drawn = page.locator("figure[data-title=brightness] path.line").get_attribute("d")
    places = [tuple(map(float, place.split())) for place in re.findall(r"[ML]([\d.]+ [\d.]+)", drawn)]
    ends = [end for end, value in zip(data["edges"][1:], one["judged"], strict=True) if value is not None]
    values = [value for value in one["judged"] if value is not None]
    assert len(places) == len(values)
    for drawn, meant in zip(zip(*places, strict=True), (ends, values), strict=True):  # on one straight scale each
        assert abs(statistics.correlation(drawn, meant)) > 0.9999
    assert places[0][0] < places[-1][0] and (places[0][1] < places[-1][1]) == (values[0] > values[-1])  # y goes down
    limit = float(page.locator("figure[data-title=brightness] line.limit").get_attribute("y1"))
    assert all(
        (y > limit) == (value < 0.2) for (_, y), value in zip(places, values, strict=True) if abs(y - limit) > 0.1
    )


def test_the_dashboard_as_a_table(page, watched):
    data = hold(page, watched.url)
    page.locator("summary").click()
    lines = [one for row in data["rows"] for panel in row["panels"] for one in panel["series"]]
    cells = [row.locator("td").all_inner_texts() for row in page.locator("tbody tr").all()]
    assert [(row[1], row[2]) for row in cells] == [(one["about"], shown(one["value"], one["unit"])) for one in lines]
    assert ["below 0.2", "Dark: firing"] in [row[3:] for row in cells]


def test_pointing_at_a_chart_tells_the_value_of_that_moment(page, watched):
    data = hold(page, watched.url)
    one = next(panel for row in data["rows"] for panel in row["panels"] if panel["title"] == "brightness")["series"][0]
    figure = page.locator("figure[data-title=brightness]")
    box = figure.locator("svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 5, box["y"] + 60)  # right of the last value
    expect(figure.locator("figcaption span")).to_have_text(re.compile(rf"\d\d:\d\d {one['judged'][-1]:.3g}"))
    page.mouse.move(0, 0)
    expect(figure.locator("figcaption span")).to_have_text(f"{one['value']:.3g}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_the_dashboard_says_can_be_read_by_weak_eyes(page, watched, scheme):
    """WCAG 2.1: a contrast of 4.5 for texts, and 3 for lines."""
    page.emulate_media(color_scheme=scheme)
    hold(page, watched.url)
    palette = page.evaluate(
        "names => names.map(name => getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim())",
        ["page", "card", "text", "quiet", "alarm", "good", "first", "second"],
    )
    back, card, *texts, first, second = map(luminance, palette)
    assert min(contrast(text, ground) for text in texts for ground in (back, card)) >= 4.5
    assert min(contrast(line, card) for line in (first, second)) >= 3


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def test_the_dashboard_lives_and_notices_when_the_server_stops_and_starts(page, tmp_path):
    picture = (paths.IMAGES / "apple.jpg").read_bytes()
    with PredictionLog(f"sqlite:///{tmp_path}/log.db") as log:
        with serve(create_app(Cats(), log=log), port=0) as server:
            page.goto(f"{server.url}/dashboard")
            expect(page.locator("#message")).to_contain_text("Nothing was asked in the last 15 minutes")
            for _ in range(6):
                assert requests.post(f"{server.url}/detect", files={"file": picture}, timeout=30).ok
            expect(page.locator("#requests_per_second")).to_have_text("0.1", timeout=30_000)
            expect(page.locator("#message")).to_be_hidden()
            assert page.complaints == []
        expect(page.locator("#status")).to_have_text(re.compile(r"no answer since \d\d:\d\d:\d\d"), timeout=30_000)
        assert set(page.locator("dd:not(#up)").all_inner_texts()) == {NOTHING}
        expect(page.locator("#up")).to_have_text("down")
        with serve(create_app(Cats(), log=log), port=server.port):
            expect(page.locator("#status")).to_have_text("live", timeout=30_000)
            expect(page.locator("#version")).to_have_text("cats")
    assert page.outside == []


def test_without_a_log_the_dashboard_says_how_to_get_one(page):
    with serve(create_app(Cats()), port=0) as server:
        page.goto(f"{server.url}/dashboard")
        expect(page.locator("#message")).to_have_text(NO_LOG)
        expect(page.locator("#version")).to_have_text("cats")
        assert page.locator("figure").count() == 0
    assert page.outside == []


@pytest.mark.parametrize(("status", "text"), [(401, "wants its token"), (503, "the database is away")])
def test_the_dashboard_passes_on_why_there_are_no_figures(page, watched, status, text):
    page.route(
        "**/dashboard/data*", lambda route: route.fulfill(status=status, json={"detail": "the database is away"})
    )
    page.goto(f"{watched.url}/dashboard")
    expect(page.locator("#status")).to_contain_text(text)


@pytest.mark.parametrize("behind", ["root_path", "a proxy"])
def test_the_dashboard_under_a_prefix(page, behind):
    with serve(create_app(Cats(), root_path="/serve"), port=0) as server, stripping_proxy(server.url) as outside:
        page.goto(f"{outside if behind == 'a proxy' else server.url}/serve/dashboard")
        expect(page.locator("#status")).to_have_text("live")
    assert page.outside == []


def test_the_browser_is_cut_off(page, server):
    page.goto(f"{server.url}/health")
    reached = page.evaluate("fetch('http://example.com/').then(() => true, () => false)")
    assert (reached, page.outside) == (False, ["http://example.com/"])
    assert page.complaints
