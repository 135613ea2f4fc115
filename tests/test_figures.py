"""The course's diagrams: drawn by code, readable in light and dark, and every text inside of its box."""

import re
import sys
import xml.etree.ElementTree as ET

import pytest

from labsupport import paths
from test_browser import chromium, contrast, luminance  # noqa: F401, the first is a fixture

sys.path.append(str(paths.root() / "docs" / "figures"))
import draw
import pictures

NAMES = sorted(pictures.ALT)
SVG = "{http://www.w3.org/2000/svg}"
ROLES = {*draw.PALETTES["light"]}
every_figure = pytest.mark.parametrize("name", NAMES)


def committed(name: str) -> bytes:
    return (pictures.FOLDER / f"{name}.svg").read_bytes()


def tree(name: str) -> ET.Element:
    return ET.fromstring(committed(name))


def roles(element: ET.Element) -> set[str]:
    return ROLES & set(element.get("class", "").split())


# the files


def test_there_are_twenty_pictures_the_first_in_five_variants():
    assert len({name.partition("_")[0] if name.startswith("lifecycle") else name for name in NAMES}) == 20
    assert len([name for name in NAMES if name.startswith("lifecycle")]) == 5
    assert sorted(path.name for path in pictures.FOLDER.glob("*.svg")) == [f"{name}.svg" for name in NAMES]


@every_figure
def test_the_committed_file_is_what_the_code_draws(name):
    assert committed(name) == pictures.drawn(name).encode(), "make figures, and commit what changed"


def test_all_files_are_written_where_asked(tmp_path):
    pictures.write(tmp_path / "figures")
    assert {path.name: path.read_bytes() for path in (tmp_path / "figures").iterdir()} == {
        f"{name}.svg": committed(name) for name in NAMES
    }


@every_figure
def test_a_file_needs_nothing_from_elsewhere(name):
    source = committed(name).decode().replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|//|href|url\(|@import|<image|<script|<foreignObject|data:|&[a-z]+;", source)


@every_figure
def test_a_picture_is_small_and_named(name):
    svg = tree(name)
    left, top, width, height = map(float, svg.get("viewBox").split())
    assert (left, top) == (0, 0) and width <= 720 and height <= 480
    assert (float(svg.get("width")), float(svg.get("height"))) == (width, height)
    assert svg.get("role") == "img"
    assert [child.tag for child in svg][:4] == [f"{SVG}title", f"{SVG}desc", f"{SVG}style", f"{SVG}rect"]
    assert len(svg[0].text) > 8 and len(svg[1].text.split()) > 20
    ground = svg[3]
    assert ground.get("class") == "card" and float(ground.get("width")) == width - 1
    boxes = [group for group in svg.iter(f"{SVG}g") if "box" in group.get("class", "").split()]
    assert len(boxes) <= 9
    sizes = [float(text.get("font-size")) for text in svg.iter(f"{SVG}text")]
    assert len(sizes) > 3 and min(sizes) >= 14


# the words beside them


@every_figure
def test_the_alternative_text_says_in_thirty_words_what_the_picture_says(name):
    alt = pictures.ALT[name]
    assert 8 <= len(re.findall(r"[\w%'/-]+", alt)) <= 30
    assert alt.endswith(".") and name.replace("_", " ") != alt.lower().rstrip(".") and ".svg" not in alt
    assert "[" not in alt and "]" not in alt and "\n" not in alt
    assert list(pictures.ALT.values()).count(alt) == 1


# what can be read


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_palettes_can_be_read_by_weak_eyes(scheme):
    """WCAG 2.2: a contrast of 4.5 for texts, and 3 for lines. Free text may stand on the card or on a lane."""
    palette = draw.PALETTES[scheme]
    assert palette.keys() == ROLES
    assert (luminance(palette["card"][0]) < 0.1) == (scheme == "dark")
    grounds = [palette[role][0] for role in ("card", "lane", "plain")]
    for role, (fill, stroke, ink) in palette.items():
        for ground in [fill] if fill else []:
            assert contrast(luminance(ink), luminance(ground)) >= 4.5, role
        for ground in grounds:
            assert contrast(luminance(ink), luminance(ground)) >= 4.5, (role, ground)
            assert role in ("card", "lane") or contrast(luminance(stroke), luminance(ground)) >= 3, (role, ground)


@every_figure
def test_every_text_and_arrow_has_a_role_with_colours(name):
    """A class that the palettes do not know would leave the browser's black, on a dark card too."""
    for group in tree(name).iter(f"{SVG}g"):
        known = roles(group) or {"lane"} & set(group.get("class").split())
        assert len(known) == 1, group.attrib
    for element in tree(name):
        if element.tag in (f"{SVG}text", f"{SVG}path"):
            assert len(roles(element)) == 1, element.attrib


LAYOUT = """svg => {
    const found = [], all = selector => [...svg.querySelectorAll(selector)];
    const rect = element => { const b = element.getBBox(); return [b.x, b.y, b.x + b.width, b.y + b.height]; };
    const meet = (a, b, by) => a[0] < b[2] - by && b[0] < a[2] - by && a[1] < b[3] - by && b[1] < a[3] - by;
    const within = (a, b) => a[0] >= b[0] && a[1] >= b[1] && a[2] <= b[2] && a[3] <= b[3];
    const holds = (shape, x, y) => shape.isPointInFill(new DOMPoint(x, y));
    const outline = shape => Array.from({length: Math.ceil(shape.getTotalLength() / 2)}, (_, at) => {
        const {x, y} = shape.getPointAtLength(2 * at);
        return [x, y, x, y];
    });
    const grounds = all('g.box, g.note, g.lane').map(group => {
        const shape = group.firstElementChild, kinds = group.classList;
        for (const text of group.querySelectorAll('text')) {
            const [x1, y1, x2, y2] = rect(text);
            if (![[x1, y1], [x2, y1], [x1, y2], [x2, y2]].every(([x, y]) => holds(shape, x, y)))
                found.push(`${text.textContent}: sticks out of its box`);
        }
        return {name: group.textContent, shape, rect: rect(shape), box: kinds.contains('box'), lane: kinds[0] === 'lane'};
    });
    const texts = all('text').map(text => ({name: text.textContent, rect: rect(text), free: text.matches('.free')}));
    const edges = all('.edge, .head').map(outline), card = svg.viewBox.baseVal;
    for (const own of texts.filter(text => text.free)) {
        const say = what => found.push(`${own.name}: ${what}`);
        if (!within(own.rect, [8, 8, card.width - 8, card.height - 8])) say('sticks out of the card');
        for (const other of texts) if (other !== own && meet(own.rect, other.rect, 1)) say(`over ${other.name}`);
        for (const ground of grounds)
            if (meet(own.rect, ground.rect, 0) && !(ground.lane && within(own.rect, ground.rect))) say('over a border');
        for (const edge of edges) if (edge.some(point => meet(point, own.rect, -1))) say('over an arrow');
    }
    const boxes = grounds.filter(ground => ground.box);
    for (const box of boxes) {
        if (edges.some(edge => edge.some(point => meet(point, box.rect, 3)))) found.push(`${box.name}: under an arrow`);
        const rim = outline(box.shape);
        for (const other of boxes)
            if (other !== box && rim.some(([x, y]) => holds(other.shape, x, y)))
                found.push(`${box.name}: over ${other.name}`);
    }
    return found;
}"""
COLOURS = """svg => [...svg.querySelectorAll('text')].map(text => {
    const fill = getComputedStyle(text).fill, {x, y, width, height} = text.getBoundingClientRect();
    const below = document.elementsFromPoint(x + width / 2, y + height / 2).filter(
        one => one instanceof SVGGeometryElement && getComputedStyle(one).fill !== 'none');
    return [text.textContent, fill, below.length ? getComputedStyle(below[0]).fill : 'nothing'];
})"""


def hexadecimal(colour: str) -> str:
    """Return a colour as the palettes write it. Chromium says rgb(1, 2, 3)."""
    return "#{:02x}{:02x}{:02x}".format(*map(int, re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", colour).groups()))


def test_in_a_browser_every_text_fits_its_box_and_stands_out_from_it(chromium):  # noqa: F811, the fixture
    page = chromium.new_page(viewport={"width": 760, "height": 8_000})
    try:
        figures = "".join(f'<div id="{name}">{committed(name).decode()}</div>' for name in NAMES)
        page.set_content(f"<!doctype html><body>{figures}")
        problems = {name: page.locator(f"#{name} svg").evaluate(LAYOUT) for name in NAMES}
        assert [f"{name}: {each}" for name, found in problems.items() for each in found] == []
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            grounds = set()
            for name in NAMES:
                for text, ink, ground in page.locator(f"#{name} svg").evaluate(COLOURS):
                    assert ground != "nothing", (scheme, name, text, "stands on no card")
                    dark, bright = luminance(hexadecimal(ink)), luminance(hexadecimal(ground))
                    assert contrast(dark, bright) >= 4.5, (scheme, name, text)
                    grounds.add(hexadecimal(ground))
            assert {draw.PALETTES[scheme][role][0] for role in ("card", "lane", "plain", "accent", "bad")} <= grounds
    finally:
        page.close()


# the module that draws


def test_a_text_that_is_too_wide_for_its_box_is_refused():
    assert "<rect" in draw.box(0, 0, 100, 40, "Router").svg
    for shape in (draw.box, draw.state, draw.gate, draw.chevron, draw.cylinder):
        with pytest.raises(ValueError, match="'A very long name' needs"):
            shape(0, 0, 100, 40, "A very long name")
    with pytest.raises(ValueError, match="needs"):
        draw.note(0, 0, 100, "A very long note")


def test_texts_are_escaped():
    svg = draw.card("a < b", "c & d", 100, 100, draw.label(50, 50, "e > f & g"))
    assert [element.text for element in ET.fromstring(svg)][:2] == ["a < b", "c & d"]
    assert ET.fromstring(svg)[-1].text == "e > f & g"
