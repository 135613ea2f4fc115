"""The detector in the browser: the page at /browser in a real Chromium, against `Detector` at f32 on the same files."""

import binascii
import http.server
import io
import json
import re
import shutil
import subprocess
import threading
import time
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
import requests
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from conftest import PICTURES, iou
from labsupport import compute, images, models, paths
from labsupport.compute import in_browser
from labsupport.detection import Box, Detection, draw_boxes
from labsupport.models import registry
from labsupport.protection.security import TokenGuard
from labsupport.serving import browser_page, create_app, serve
from test_browser import ARGUMENTS, lacking, program

CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
READY = 60_000  # milliseconds: to fetch the model and to build the network, on a slow machine


def moving_picture(image: np.ndarray) -> bytes:
    """A video of one frame, as Chromium's fake camera takes it (YUV4MPEG2, 4:2:0); the camera shows it again and again."""
    height, width = image.shape[:2]
    header = f"YUV4MPEG2 W{width} H{height} F5:1 Ip A1:1 C420jpeg\nFRAME\n"
    return header.encode() + cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420).tobytes()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory, pictures):
    """A browser whose camera looks at the lab's clock."""
    if browser_page.missing():
        lacking("no TensorFlow.js: make browser")
    video = tmp_path_factory.mktemp("camera") / "clock.y4m"
    video.write_bytes(moving_picture(pictures["clock.png"]))
    arguments = [*ARGUMENTS, *CAMERA, f"--use-file-for-fake-video-capture={video}"]
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=program(), args=arguments)
        yield running
        running.close()


@contextmanager
def visitor(chromium, **options):
    """A new visitor's page; `page.complaints` are its errors."""
    context = chromium.new_context(viewport={"width": 1280, "height": 860}, **options)
    page = context.new_page()
    page.complaints = []
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("console", lambda message: message.type == "error" and page.complaints.append(message.text))
    try:
        yield page
    finally:
        page.unroute_all(behavior="ignoreErrors")  # what a route still fetches has nowhere to go
        context.close()


def ready(page, kept: bool = False):
    """Wait until the network is built; with `kept`, until the page is kept for a time without the server, too."""
    expect(page.locator("#status")).to_have_text("ready", timeout=READY)
    if kept:
        expect(page.locator("#kept")).to_have_text("works without the server from now on", timeout=READY)


@pytest.fixture(scope="module")
def at_work(chromium, server):
    """One page with the network built, for tests that leave it as they found it."""
    with visitor(chromium, service_workers="block") as page:
        page.goto(f"{server.url}/browser")
        ready(page)
        yield page


def choose(page, file) -> list[Detection]:
    """Open a picture of this disk; what the page then lists."""
    page.set_input_files("#file", file)
    expect(page.locator("#hint")).to_contain_text(f"{file.name},", timeout=READY)
    return listed(page)


def listed(page) -> list[Detection]:
    rows = page.locator("#found li").evaluate_all("rows => rows.map(row => ({...row.dataset}))")
    return [Detection(row["label"], float(row["confidence"]), Box(**json.loads(row["box"]))) for row in rows]


def assert_same(seen: list[Detection], wanted: list[Detection], name: str):
    assert [one.label for one in seen] == [one.label for one in wanted], name
    for one, other in zip(seen, wanted, strict=True):
        assert iou(one.box, other.box) > 0.9, (name, one, other)
        assert abs(one.confidence - other.confidence) < 0.02, (name, one, other)


# what is found


def test_it_finds_in_every_picture_what_the_detector_finds(at_work, detector, pictures):
    for name in PICTURES:
        assert_same(choose(at_work, paths.IMAGES / name), detector.detect(pictures[name]), name)
    assert at_work.locator("#by").inner_text().startswith("WebAssembly, f32")
    for time_shown in ("last", "median", "first"):
        assert re.fullmatch(r"\d+ ms", at_work.locator(f"#{time_shown}").inner_text())
    assert at_work.complaints == []


def test_the_confidence_is_the_detectors(at_work, detector, pictures):
    choose(at_work, paths.IMAGES / "street_1.jpg")
    counts = set()
    for percent in (20, 80, 50):
        at_work.locator("#confidence").fill(str(percent))
        wanted = detector.detect(pictures["street_1.jpg"], percent / 100)
        assert_same(listed(at_work), wanted, f"at {percent} %")
        counts.add(len(wanted))
    assert len(counts) == 3  # else the slider may do nothing
    expect(at_work.locator("#summary")).to_have_text("5 x person, truck, car")
    expect(at_work.locator("#canvas")).to_have_attribute("aria-label", re.compile("5 x person"))


def test_the_graphics_card_finds_the_same(at_work, detector, pictures):
    """In Chromium's own rasteriser, which takes seconds for what a card does in milliseconds."""
    choose(at_work, paths.IMAGES / "clock.png")
    tensors = at_work.evaluate("tf.memory().numTensors")
    for backend, spoken in (
        ("webgl", r"^WebGL \d, f(32|16: less exact)$"),
        ("wasm", r"^WebAssembly, f32, \d threads?$"),
    ):
        at_work.locator("#backend").select_option(backend)
        expect(at_work.locator("#by")).to_have_text(re.compile(spoken), timeout=READY)
        ready(at_work)
        assert re.fullmatch(r"\d+ ms", at_work.locator("#first").inner_text())  # what was there is looked at again
        assert_same(listed(at_work), detector.detect(pictures["clock.png"]), backend)
    assert at_work.evaluate("tf.memory().numTensors") == tensors  # nothing is left lying about
    assert at_work.complaints == []


def test_a_picture_is_squeezed_to_the_pixel_as_opencv_does(at_work):
    rng = np.random.default_rng(1)
    sizes = [(1, 1), (2, 3), (416, 416), (832, 832), (417, 415), (576, 768), (100, 900), *rng.integers(1, 900, (5, 2))]
    for height, width in sizes:
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        rgba = cv2.cvtColor(image, cv2.COLOR_BGR2RGBA)
        squeezed = bytes_of(
            at_work,
            """([text, width, height]) => {
                const data = Uint8ClampedArray.from(atob(text), letter => letter.charCodeAt(0));
                return Uint8Array.from(squeeze({data, width, height}), share => Math.round(255 * share));
            }""",
            [base64(rgba), int(width), int(height)],
        )
        ours = squeezed.reshape(416, 416, 3)[..., ::-1]
        assert np.array_equal(ours, cv2.resize(image, (416, 416))), (height, width)


def base64(pixels: np.ndarray) -> str:
    return binascii.b2a_base64(pixels.tobytes(), newline=False).decode()


def bytes_of(page, function: str, given=None) -> np.ndarray:
    """What a function of the page returns, as bytes: Playwright itself hands numbers over one by one."""
    pack = """bytes => Array.from({length: Math.ceil(bytes.length / 4096)}, (_, i) =>
        btoa(String.fromCharCode(...bytes.subarray(4096 * i, 4096 * i + 4096))))"""
    parts = page.evaluate(f"given => ({pack})(({function})(given))", given)
    return np.frombuffer(b"".join(map(binascii.a2b_base64, parts)), np.uint8)


def as_file(picture: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return as_file(Image.open(paths.IMAGES / "person_dog.jpg"), "JPEG", exif=exif)


def glass() -> Image.Image:
    """Half see-through, half not at all."""
    picture = Image.open(paths.IMAGES / "clock.png").convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size).point(lambda value: 255 if value > 127 else 0))
    return picture


@pytest.mark.parametrize(
    "data",
    [
        *(turned(orientation) for orientation in (1, 3, 6, 7)),
        as_file(glass(), "PNG"),
        as_file(Image.open(paths.IMAGES / "fruits.jpg").convert("L"), "JPEG"),
        as_file(Image.open(paths.IMAGES / "fruits.jpg").convert("P"), "PNG"),
        as_file(Image.open(paths.IMAGES / "fruits.jpg"), "PNG", icc_profile=b""),
    ],
    ids=["upright", "upside down", "on its side", "mirrored", "see-through", "gray", "palette", "plain"],
)
def test_a_file_becomes_the_same_pixels_as_on_the_server(at_work, tmp_path, data):
    file = tmp_path / f"{tmp_path.name}.picture"  # a name of its own: the page says which one it shows
    file.write_bytes(data)
    choose(at_work, file)
    width, height = at_work.evaluate("[picture.canvas.width, picture.canvas.height]")
    pixels = bytes_of(at_work, "() => picture.getImageData(0, 0, picture.canvas.width, picture.canvas.height).data")
    seen = pixels.reshape(height, width, 4)
    assert np.array_equal(cv2.cvtColor(seen, cv2.COLOR_RGBA2BGR), images.decode(data))


def test_every_label_has_the_colour_of_draw_boxes(at_work):
    at_work.evaluate("() => { window.pen = document.createElement('canvas').getContext('2d') }")
    for label in models.LABELS:
        at_work.evaluate("label => { pen.fillStyle = colour(label); pen.fillRect(0, 0, 1, 1) }", label)
        red, green, blue = at_work.evaluate("() => Array.from(pen.getImageData(0, 0, 1, 1).data.slice(0, 3))")
        edge = draw_boxes(np.zeros((99, 99, 3), np.uint8), [Detection(label, 0.9, Box(20, 20, 90, 90))])[89, 55]
        assert np.abs(edge.astype(int) - (blue, green, red)).max() <= 2, label  # OpenCV keeps hues as whole numbers


def test_what_is_no_picture_is_refused_and_the_next_one_is_not(at_work, tmp_path):
    letter = tmp_path / "letter.txt"
    letter.write_text("certainly not a picture")
    at_work.set_input_files("#file", letter)
    expect(at_work.locator("#message")).to_have_text("letter.txt is no picture that this browser can open.")
    assert [one.label for one in choose(at_work, paths.IMAGES / "clock.png")] == ["clock"]
    expect(at_work.locator("#message")).to_be_hidden()


def test_a_picture_can_be_dropped_or_taken_from_the_lab(at_work, detector, pictures):
    data = base64(np.frombuffer((paths.IMAGES / "stop_sign.png").read_bytes(), np.uint8))
    at_work.evaluate(
        """text => {
            const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0)), dropped = new DataTransfer();
            dropped.items.add(new File([bytes], "dropped.png"));
            document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: dropped, bubbles: true, cancelable: true}));
        }""",
        data,
    )
    expect(at_work.locator("#hint")).to_contain_text("dropped.png,", timeout=READY)
    assert_same(listed(at_work), detector.detect(pictures["stop_sign.png"]), "dropped")
    at_work.get_by_role("button", name="two_clocks.png").click()
    expect(at_work.locator("#hint")).to_contain_text("two_clocks.png,", timeout=READY)
    assert_same(listed(at_work), detector.detect(pictures["two_clocks.png"]), "taken from the lab")


def test_the_camera_is_watched_and_let_go(at_work, detector, pictures):
    at_work.get_by_role("button", name="Start the camera").click()
    expect(at_work.locator("#rate")).to_have_text(re.compile(r"^[\d.]+ frames/s$"), timeout=READY)
    expect(at_work.locator("#summary")).to_have_text("clock")
    (clock,), (wanted,) = listed(at_work), detector.detect(pictures["clock.png"])
    assert iou(clock.box, wanted.box) > 0.9
    assert at_work.evaluate("() => { window.track = stream.getTracks()[0]; return track.readyState }") == "live"
    at_work.get_by_role("button", name="Stop the camera").click()
    assert at_work.evaluate("() => track.readyState") == "ended"
    expect(at_work.get_by_role("button", name="Start the camera")).to_be_visible()
    frame = "new Promise(requestAnimationFrame)"
    at_work.evaluate(f"() => {frame}.then(() => {frame}).then(() => turn)")
    assert at_work.locator("#message").is_hidden()  # nobody looks at a camera that is off


# without the server


@pytest.mark.parametrize("prefix", ["", "/serve"])
def test_after_the_first_visit_it_works_with_the_server_stopped(chromium, detector, pictures, prefix):
    with visitor(chromium) as page:
        with serve(create_app(detector, root_path=prefix), port=0) as running:
            page.goto(f"{running.url}{prefix}/browser")
            ready(page, kept=True)
            assert page.complaints == []
        with pytest.raises(requests.ConnectionError):
            requests.get(running.url, timeout=5)
        page.context.new_cdp_session(page).send("Network.clearBrowserCache")  # which might help out, and might not
        page.goto("about:blank")
        page.goto(f"{running.url}{prefix}/browser")
        ready(page, kept=True)
        assert_same(choose(page, paths.IMAGES / "stop_sign.png"), detector.detect(pictures["stop_sign.png"]), "offline")
        page.get_by_role("button", name="two_clocks.png").click()
        expect(page.locator("#hint")).to_contain_text("two_clocks.png,", timeout=READY)
        assert_same(listed(page), detector.detect(pictures["two_clocks.png"]), "one of the lab's, offline")
        assert page.evaluate(f"fetch('{prefix}/health').then(() => true, () => false)") is False  # the API is not kept


def test_a_new_version_of_the_page_replaces_the_old_one(chromium, detector, monkeypatch, tmp_path):
    newer = tmp_path / "browser"
    shutil.copytree(browser_page.FOLDER, newer)
    title = "<h1>Detection in the browser</h1>"
    text = (newer / "index.html").read_text()
    assert title in text
    (newer / "index.html").write_text(text.replace(title, "<h1>Newer</h1>"))
    (newer / "style.css").write_text("h1 { color: rgb(1, 2, 3) }")
    with visitor(chromium) as page:
        with serve(create_app(detector), port=0) as running:
            page.goto(f"{running.url}/browser")
            ready(page, kept=True)
        monkeypatch.setattr(browser_page, "FOLDER", newer)
        with serve(create_app(detector), port=running.port) as running:
            page.reload()
            expect(page.locator("h1")).to_have_text("Newer")  # at once, not only at the visit after this one
            ready(page, kept=True)
            version = re.search(rb'"version": "(\w+)"', browser_page.file("worker.js").content)[1].decode()
            wanted = {f"{running.url}/browser {name}" for name in (version, "model")}
            deadline = time.monotonic() + 30
            while {*page.evaluate("caches.keys()")} != wanted and time.monotonic() < deadline:
                page.wait_for_timeout(50)
            assert {*page.evaluate("caches.keys()")} == wanted  # what the old one kept is gone
        page.reload()
        ready(page)
        expect(page.locator("h1")).to_have_text("Newer")
        expect(page.locator("h1")).to_have_css("color", "rgb(1, 2, 3)")


# nothing is sent


class Recorder(http.server.BaseHTTPRequestHandler):
    """A proxy that writes down whatever a browser asks of anybody, and passes on what is meant for one server."""

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append((self.command, self.path, len(body)))
        if not self.path.startswith(self.server.behind + "/"):
            return self.send_error(403)
        answer = requests.request(self.command, self.path, headers=dict(self.headers), data=body, timeout=60)
        self.send_response(answer.status_code)
        for name, value in answer.headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "date", "server"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.content)

    do_POST = do_PUT = do_HEAD = do_OPTIONS = do_CONNECT = do_PATCH = do_DELETE = do_GET

    def log_message(self, *what):
        pass


@contextmanager
def recorder(url: str):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorder) as proxy:
        proxy.behind, proxy.seen = url, []
        threading.Thread(target=proxy.serve_forever).start()
        try:
            yield proxy
        finally:
            proxy.shutdown()


def test_no_picture_leaves_the_page(chromium, server):
    """A whole session, page and service worker, through a proxy on the wire: it sees all that leaves the browser."""
    with recorder(server.url) as wire:
        proxy = {"server": f"http://127.0.0.1:{wire.server_port}", "bypass": "<-loopback>"}
        with visitor(chromium, proxy=proxy) as page:
            page.add_init_script("window.RTCPeerConnection = class { constructor() { throw Error('a call') } }")
            page.goto(f"{server.url}/browser")
            ready(page, kept=True)
            visited = len(wire.seen)
            for name in ("street_1.jpg", "stop_sign.png"):
                assert choose(page, paths.IMAGES / name)
            page.get_by_role("button", name="two_clocks.png").click()
            expect(page.locator("#hint")).to_contain_text("two_clocks.png,", timeout=READY)
            page.get_by_role("button", name="Start the camera").click()
            expect(page.locator("#rate")).to_contain_text("frames/s", timeout=READY)
            page.get_by_role("button", name="Stop the camera").click()
            page.wait_for_timeout(300)  # for a beacon that waits for a quiet moment
            assert wire.seen[visited:] == []
            assert page.complaints == []
            asked = {path for _, path, _ in wire.seen}
            assert {(method, size) for method, _, size in wire.seen} == {("GET", 0)}
            assert {path for path in asked if not path.startswith(f"{server.url}/browser")} == set()
            assert {f"{server.url}/browser", f"{server.url}/browser/worker.js"} <= asked
            # that the wire would show it, and that the page may not even try elsewhere
            page.evaluate("navigator.sendBeacon('/browser', 'a picture')")
            page.evaluate("fetch('http://pictures.example/', {method: 'POST', body: 'a picture'}).catch(() => 0)")
            page.wait_for_timeout(300)
            assert wire.seen[visited:] == [("POST", f"{server.url}/browser", len("a picture"))]


# when something is missing or wrong


def test_weights_that_arrive_in_half_are_refused_and_not_kept(chromium, server):
    with visitor(chromium, service_workers="block") as page:
        files = models.locate("yolov3-tiny")
        half = files.weights.read_bytes()[: files.weights.stat().st_size // 2]
        page.route("**/*.weights*", lambda route: route.fulfill(body=half))
        page.goto(f"{server.url}/browser")
        expect(page.locator("#message")).to_contain_text("The model's weights did not arrive whole", timeout=READY)
        assert page.locator("#file").is_disabled()
        page.unroute("**/*.weights*")
        page.reload()
        ready(page)  # what was refused was not kept
        spoil = """async () => {
            const cache = await caches.open(`${scope} model`), keys = await cache.keys();
            await cache.put(keys.find(({url}) => url.includes(".weights")), new Response("spoilt"));
        }"""
        page.evaluate(spoil)
        page.reload()
        ready(page)  # what is kept is checked as well, and fetched again
        assert page.complaints == []


def test_over_plain_http_from_afar_it_says_what_is_missing(chromium, server):
    def pass_on(route):
        route.fulfill(response=route.fetch(url=route.request.url.replace("http://lab.example", server.url)))

    with visitor(chromium, service_workers="block") as page:
        page.route("http://lab.example/**", pass_on)
        page.goto("http://lab.example/browser")
        expect(page.locator("#message")).to_contain_text("put https in front of the server")
        assert page.locator("#file").is_disabled()


def test_without_the_model_it_says_so(chromium, server, monkeypatch):
    monkeypatch.setattr(registry, "folder", lambda: paths.root() / "nowhere")
    with visitor(chromium, service_workers="block") as page:
        page.goto(f"{server.url}/browser")
        expect(page.locator("#message")).to_contain_text("run labsupport models yolov3-tiny", timeout=READY)
    answer = requests.get(f"{server.url}/browser/model/yolov3-tiny.weights", timeout=30)
    assert answer.status_code == 503 and answer.headers["Retry-After"]


def test_without_tensorflow_the_page_names_the_command_that_brings_it(server, monkeypatch, tmp_path):
    bare = tmp_path / "browser"
    shutil.copytree(browser_page.FOLDER, bare, ignore=shutil.ignore_patterns("tfjs"))
    monkeypatch.setattr(browser_page, "FOLDER", bare)
    answer = requests.get(f"{server.url}/browser", timeout=30)
    assert answer.status_code == 200
    assert "<code>make browser</code>" in answer.text
    assert "<script" not in answer.text
    (style,) = re.findall(r'href="(browser/style.css[^"]+)"', answer.text)
    assert requests.get(f"{server.url}/{style}", timeout=30).ok
    assert requests.get(f"{server.url}/browser/{browser_page.TENSORFLOW[0]}", timeout=30).status_code == 404


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_sticks_out(at_work, width):
    at_work.set_viewport_size({"width": width, "height": 844})
    choose(at_work, paths.IMAGES / "gallery.jpg")
    assert at_work.evaluate("document.documentElement.scrollWidth") == width
    at_work.set_viewport_size({"width": 1280, "height": 860})


# what is served


def test_files_are_kept_for_good_under_their_checksum_and_the_page_is_not(server):
    page = requests.get(f"{server.url}/browser", timeout=30)
    assert page.headers["Cache-Control"] == "no-cache"
    addresses = re.findall(r'(?:src|href)="(browser/[^"]+)"', page.text)
    assert len(addresses) >= 3
    for address in addresses:
        answer = requests.get(f"{server.url}/{address}", timeout=30)
        assert "immutable" in answer.headers["Cache-Control"]
        assert answer.headers["ETag"].strip('"').startswith(address.partition("?v=")[2])
        assert requests.get(f"{server.url}/{address}0", timeout=30).status_code == 404  # of another version
    worker = requests.get(f"{server.url}/browser/worker.js", timeout=30)
    assert worker.headers["Cache-Control"] == "no-cache"


def test_what_the_page_may_do_is_little(server):
    headers = requests.get(f"{server.url}/browser", timeout=30).headers
    rules = dict(rule.strip().split(" ", 1) for rule in headers["Content-Security-Policy"].split(";"))
    nothing = ("default-src", "base-uri", "form-action", "frame-ancestors")
    assert {rules[name] for name in nothing} == {"'none'"}
    assert rules["connect-src"] == rules["img-src"] == rules["style-src"] == "'self'"
    assert not re.search("unsafe-inline|'unsafe-eval'|http|[*]", headers["Content-Security-Policy"])
    assert headers["Permissions-Policy"].startswith("camera=(self), microphone=()")
    assert "Cross-Origin-Opener-Policy" not in requests.get(f"{server.url}/docs", timeout=30).headers


@pytest.mark.parametrize(
    "name",
    ["", "nothing.js", "index.html", "../browser.py", "%2e%2e/dashboard.html", "images/../README.md", "images/cat.png"],
)
def test_nothing_else_is_served(server, name):
    raw = requests.Request("GET", server.url).prepare()
    raw.url = f"{server.url}/browser/{name}"  # as it is: requests would tidy it up
    with requests.Session() as session:
        answer = session.send(raw, timeout=30, allow_redirects=False)
    assert answer.status_code == 404
    assert "detail" in answer.json()


def test_beyond_loopback_it_needs_the_token_as_everything_does(detector):
    with serve(TokenGuard(create_app(detector), "0123456789abcdef"), port=0) as guarded:
        for name in ("browser", "browser/worker.js", "browser/model/yolov3-tiny.weights"):
            assert requests.get(f"{guarded.url}/{name}", timeout=30).status_code == 401


# what npm brings


def test_the_lock_pins_every_package_with_its_hash_and_names_no_registry():
    text = (paths.root() / "package-lock.json").read_text()
    assert "://" not in text and "resolved" not in text
    packages = json.loads(text)["packages"]
    declared = json.loads((paths.root() / "package.json").read_text())["dependencies"]
    assert packages[""]["dependencies"] == declared
    assert all(package["integrity"].startswith("sha512-") for name, package in packages.items() if name)
    for name, version in declared.items():
        assert packages[f"node_modules/{name}"]["version"] == version


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_browser_says_when_npm_is_missing(tmp_path):
    command = [shutil.which("make"), "browser", f"TFJS={tmp_path}/tfjs"]
    done = subprocess.run(command, cwd=paths.root(), env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode and "npm is needed" in done.stdout
    assert not (tmp_path / "tfjs").exists()


# what it weighs


def test_it_is_measured_as_a_runtime_is(chromium, detector, pictures, tmp_path, monkeypatch):
    """In a lab with two pictures."""
    names = ["person_dog.jpg", "stop_sign.png"]
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "images").mkdir()
    for name in names:
        shutil.copy(paths.IMAGES / name, tmp_path / "images")
    monkeypatch.setenv("LAB_ROOT", str(tmp_path))
    row = compute.weigh("browser", "f32", seconds=0.3)
    reference = [[(d.label, d.confidence, *d.box) for d in detector.detect(pictures[name])] for name in names]
    assert row["version"] == "yolov3-tiny/browser-f32"
    assert compute.found(row["answers"], reference, 0.9) == 1
    assert [answer[0][1] for answer in row["answers"]] == pytest.approx(
        [answer[0][1] for answer in reference], abs=1e-3
    )
    assert 0 < row["one"] <= row["p95"] and row["all"] > 0
    assert row["memory"] > 35  # the weights alone
    assert 36 < row["disk"] < 45  # the weights are 35.4, TensorFlow.js with its WebAssembly the rest


def test_without_a_browser_it_is_said_what_brings_it(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with (
        pytest.raises(in_browser.NoBrowser, match="apt-get install chromium"),
        in_browser.page_at("http://127.0.0.1:9"),
    ):
        pass
    monkeypatch.undo()
    monkeypatch.setattr(browser_page, "missing", lambda: ["tfjs"])
    monkeypatch.setattr(in_browser, "BROWSERS", ("python3",))
    with pytest.raises(in_browser.NoBrowser, match="make browser"), in_browser.page_at("http://127.0.0.1:9"):
        pass
