"""Draw diagrams as SVG: boxes, arrows and a few symbols on an opaque card, in a light and a dark palette.

Every function returns text or a `Part`, and the same arguments always give the same text. A class in the SVG names the
role of a shape, such as "accent", and `PALETTES` gives the role its colours. The accent marks what is new in a picture:
the candidate, or the change that the picture is about.
"""

from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

Point = tuple[float, float]

PALETTES = {  # role: (fill, line, text); a role without a fill of its own uses the card
    "light": {
        "card": ("#f8f9fb", "#ced5de", "#1c2430"),
        "soft": (None, "#6b7684", "#505a67"),
        "plain": ("#ffffff", "#78838f", "#1c2430"),
        "lane": ("#eef1f5", "#c3cbd5", "#3d4754"),
        "accent": ("#d9f2ea", "#0d7f6c", "#07574a"),
        "bad": ("#fde8e2", "#b93a1d", "#8f2710"),
        "blue": ("#e0ebfb", "#2b66b1", "#174a87"),
    },
    "dark": {
        "card": ("#161b22", "#3c444f", "#e8edf3"),
        "soft": (None, "#929caa", "#aeb7c2"),
        "plain": ("#262d37", "#8b95a3", "#e8edf3"),
        "lane": ("#1e252e", "#48515e", "#c5ccd6"),
        "accent": ("#0f3f37", "#45c4ac", "#93ecd9"),
        "bad": ("#4a2018", "#f08a6e", "#ffbdaa"),
        "blue": ("#17335a", "#6ea8ec", "#b3d3fa"),
    },
}
TEXT, SMALL = 16, 14  # font sizes in pixels
ROOM = 1.15  # a box is at least this many times as wide as its text, because fonts differ
WIDTHS = {"ijlI|'.,:;! ": 0.32, "ftr()-/[]": 0.4, "mwMW%": 0.95, "ABCDEFGHJKLNOPQRSTUVXYZ": 0.7}  # in font sizes
HEAD, GAP, BEND = 10, 2, 8  # pixels: length of an arrow head, from its tip to the box, radius of a bend


class Part(NamedTuple):
    """Hold the SVG of one shape and the rectangle that it covers."""

    x: float
    y: float
    w: float
    h: float
    svg: str

    def at(self, across: float, down: float) -> Point:
        """Return a point of the rectangle: (0, 0) is its top left corner, (1, 1) its bottom right corner."""
        return (self.x + across * self.w, self.y + down * self.h)

    left = property(lambda self: self.at(0, 0.5))
    right = property(lambda self: self.at(1, 0.5))
    top = property(lambda self: self.at(0.5, 0))
    bottom = property(lambda self: self.at(0.5, 1))


def number(value: float) -> str:
    """Return a number with at most one decimal: "12", "12.5"."""
    return f"{value:.1f}".removesuffix(".0")


def width(text: str, size: float = TEXT, strong: bool = False) -> float:
    """Estimate how many pixels a line of text takes in a wide font."""
    units = sum(next((unit for chars, unit in WIDTHS.items() if char in chars), 0.62) for char in text)
    return units * size * (1.12 if strong else 1)


def must_fit(text: str, room: float, size: float, strong: bool = False) -> None:
    """Raise ValueError if a line of text is too wide for a shape with so much room."""
    if (needed := ROOM * width(text, size, strong)) > room:
        raise ValueError(f"{text!r} needs {needed:.0f} pixels, not {room:.0f}")


def label(x: float, y: float, *lines: str, role="card", size=SMALL, anchor="middle", mark="free ") -> str:
    """Return lines of text on the card. `y` is the middle of the first line, `anchor` is start, middle or end.

    `mark` tells the tests that the text stands free, outside of boxes; it is "" for text that a shape holds.
    """
    return "".join(
        f'<text class="{mark}{role}" x="{number(x)}" y="{number(y + 0.35 * size + 20 * row)}" font-size="{size}"'
        f' text-anchor="{anchor}">{escape(line)}</text>'
        for row, line in enumerate(lines)
    )


def holding(
    part: Part, lines: Sequence[str], role: str, shape: str, room: float = 0, drop: float = 0, size: int = TEXT
) -> Part:
    """Return a shape with lines of text in its middle; the first line is strong. Raises ValueError if they are too wide.

    `room` is the width that the shape cannot use for text, `drop` moves the text down, `size` is that of the first line.
    """
    styles = [(size, 21, True), *[(SMALL, 19, False)] * len(lines)]
    texts, y = "", part.y + part.h / 2 + drop - (21 + 19 * (len(lines) - 1)) / 2
    for line, (size, height, strong) in zip(lines, styles, strict=False):
        must_fit(line, part.w - room, size, strong)
        weight = ' font-weight="600"' if strong else ""
        texts += (
            f'<text x="{number(part.x + part.w / 2)}" y="{number(y + height / 2 + 0.35 * size)}" font-size="{size}"'
            f'{weight} text-anchor="middle">{escape(line)}</text>'
        )
        y += height
    return part._replace(svg=f'<g class="box {role}">{shape}{texts}</g>')


def box(x: float, y: float, w: float, h: float, *lines: str, role: str = "plain", round: float = 8) -> Part:
    """Return a box with text."""
    size = f'x="{number(x)}" y="{number(y)}" width="{number(w)}" height="{number(h)}" rx="{number(round)}"'
    return holding(Part(x, y, w, h, ""), lines, role, f"<rect {size}/>")


def state(x: float, y: float, w: float, h: float, *lines: str, role: str = "plain") -> Part:
    """Return a state of a state machine: a box with round ends."""
    return box(x, y, w, h, *lines, role=role, round=h / 2)


def polygon(points: Sequence[Point]) -> str:
    """Return a closed shape through these points."""
    return f'<path d="M{" L".join(f"{number(x)} {number(y)}" for x, y in points)} Z"/>'


def gate(x: float, y: float, w: float, h: float, *lines: str, role: str = "plain") -> Part:
    """Return a gate, where a rule decides which way to go: a hexagon with text."""
    corners = [(x, y + h / 2), (x + 16, y), (x + w - 16, y), (x + w, y + h / 2), (x + w - 16, y + h), (x + 16, y + h)]
    return holding(Part(x, y, w, h, ""), lines, role, polygon(corners), room=12)


def chevron(x: float, y: float, w: float, h: float, *lines: str, role: str = "plain") -> Part:
    """Return a step of a strip: a box that points to the right."""
    tip = 12
    corners = [(x, y), (x + w - tip, y), (x + w, y + h / 2), (x + w - tip, y + h), (x, y + h), (x + tip, y + h / 2)]
    return holding(Part(x, y, w, h, ""), lines, role, polygon(corners), room=2 * tip, size=SMALL)


def cylinder(x: float, y: float, w: float, h: float, *lines: str, role: str = "plain") -> Part:
    """Return a cylinder with text: a database or a file."""
    flat, half = 9, number(w / 2)
    shape = (
        f'<path d="M{number(x)} {number(y + flat)} a{half} {flat} 0 0 1 {number(w)} 0 v{number(h - 2 * flat)}'
        f' a{half} {flat} 0 0 1 {number(-w)} 0 Z"/>'
        f'<path class="rim" d="M{number(x)} {number(y + flat)} a{half} {flat} 0 0 0 {number(w)} 0"/>'
    )
    return holding(Part(x, y, w, h, ""), lines, role, shape, drop=6)


def note(x: float, y: float, w: float, *lines: str, role: str = "lane") -> Part:
    """Return a note: small text from the left on a sheet with a folded corner. Raises ValueError if it is too wide."""
    h, fold = 20 * len(lines) + 20, 14
    for line in lines:
        must_fit(line, w - 24, SMALL)
    sheet = polygon([(x, y), (x + w - fold, y), (x + w, y + fold), (x + w, y + h), (x, y + h)])
    corner = f'<path class="rim" d="M{number(x + w - fold)} {number(y)} v{fold} h{fold}"/>'
    text = label(x + 14, y + 20, *lines, role=role, anchor="start", mark="")
    return Part(x, y, w, h, f'<g class="note {role}">{sheet}{corner}{text}</g>')


def lane(x: float, y: float, w: float, h: float, name: str) -> Part:
    """Return a lane: the ground that several boxes stand on, with its name at the top left."""
    size = f'x="{number(x)}" y="{number(y)}" width="{number(w)}" height="{number(h)}" rx="10"'
    text = label(x + 16, y + 20, name, role="lane", anchor="start", mark="").replace("<text", '<text font-weight="600"')
    return Part(x, y, w, h, f'<g class="lane"><rect {size}/>{text}</g>')


def person(x: float, y: float, role: str = "plain", scale: float = 1) -> Part:
    """Return a person, 32 pixels wide and 40 high; `x`, `y` is the top left corner."""
    body = '<circle cx="16" cy="9" r="8"/><path d="M1 39 v-5 a15 14 0 0 1 30 0 v5 Z"/>'
    move = f"translate({number(x)} {number(y)}) scale({scale:g})"
    return Part(x, y, 32 * scale, 40 * scale, f'<g class="icon {role}" transform="{move}">{body}</g>')


def camera(x: float, y: float, role: str = "plain") -> Part:
    """Return a camera, 52 pixels wide and 40 high."""
    body = (
        '<path d="M4 8 h12 l4 -7 h12 l4 7 h12 a4 4 0 0 1 4 4 v23 a4 4 0 0 1 -4 4 h-44 a4 4 0 0 1 -4 -4 v-23 a4 4 0 0 1'
    )
    body += ' 4 -4 Z"/><circle cx="26" cy="23" r="9"/>'
    return Part(x, y, 52, 40, f'<g class="icon {role}" transform="translate({number(x)} {number(y)})">{body}</g>')


def network(x: float, y: float, role: str = "plain") -> Part:
    """Return the symbol of a model, a small network, 40 pixels wide and 40 high."""
    lines = "".join(f"M6 {a} L34 {b} " for a in (6, 20, 34) for b in (12, 28))
    dots = "".join(f'<circle cx="{cx}" cy="{cy}" r="5"/>' for cx, cy in [(6, 6), (6, 20), (6, 34), (34, 12), (34, 28)])
    move = f"translate({number(x)} {number(y)})"
    return Part(x, y, 40, 40, f'<g class="icon {role}" transform="{move}"><path class="thin" d="{lines}"/>{dots}</g>')


def toward(start: Point, end: Point, distance: float) -> Point:
    """Return the point that lies `distance` pixels from `start` on the way to `end`."""
    length = ((end[0] - start[0]) ** 2 + (end[1] - start[1]) ** 2) ** 0.5
    return (start[0] + (end[0] - start[0]) * distance / length, start[1] + (end[1] - start[1]) * distance / length)


def line(points: Sequence[Point], role: str = "soft", dashed: bool = False) -> str:
    """Return a line through these points, with rounded bends."""
    path = "M{} {}".format(*map(number, points[0]))
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        into, out = toward(corner, before, BEND), toward(corner, after, BEND)
        path += " L{} {} Q{} {} {} {}".format(*map(number, (*into, *corner, *out)))
    path += " L{} {}".format(*map(number, points[-1]))
    return f'<path class="edge {role}{" dashed" if dashed else ""}" d="{path}"/>'


def arrow(*points: Point, role: str = "soft", dashed: bool = False, text: str = "", on: int = 0, side: int = 1) -> str:
    """Return an arrow through these points. `text` stands beside the middle of its piece number `on`.

    `side` is 1 for above a level piece and right of an upright one, -1 for below and left.
    """
    before, end = points[-2:]
    tip = toward(end, before, GAP)
    base = toward(tip, before, HEAD)
    across = ((tip[1] - base[1]) * 0.45, (base[0] - tip[0]) * 0.45)
    corners = [tip, (base[0] + across[0], base[1] + across[1]), (base[0] - across[0], base[1] - across[1])]
    drawn = line([*points[:-1], toward(tip, before, HEAD - 1)], role, dashed)
    drawn += polygon(corners).replace("<path", f'<path class="head {role}"')
    if text:
        (x1, y1), (x2, y2) = points[on : on + 2]
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        place = (x, y - 15 * side, "middle") if y1 == y2 else (x + 10 * side, y, "start" if side == 1 else "end")
        ink = role if role in ("accent", "bad") else "card"
        drawn += label(*place[:2], text, role=ink, anchor=place[2])
    return drawn


def rules(palette: dict[str, tuple[str | None, str, str]]) -> str:
    """Return the CSS rules that give each role its colours."""
    css = ""
    for role, (fill, stroke, ink) in palette.items():
        ground = fill or palette["card"][0]
        css += f".{role} text,text.{role}{{fill:{ink}}}.edge.{role}{{stroke:{stroke}}}.head.{role}{{fill:{stroke}}}"
        css += f".{role}>rect,.{role}>path,.{role}>circle,rect.{role}{{fill:{ground};stroke:{stroke}}}"
    return css


def card(title: str, desc: str, w: float, h: float, *parts: Part | str) -> str:
    """Return a whole SVG: the parts on an opaque card, with a title and a description for people who cannot see it."""
    shared = "text{font-family:system-ui,sans-serif}rect,path,circle{stroke-width:1.5}.card{stroke-width:1}"
    shared += ".edge,.box>.rim,.note>.rim,.icon>.thin{fill:none}.edge{stroke-width:2}.head{stroke:none}"
    shared += ".dashed{stroke-dasharray:6 5}"
    style = f"{rules(PALETTES['light'])}@media (prefers-color-scheme:dark){{{rules(PALETTES['dark'])}}}{shared}"
    size = f'width="{number(w)}" height="{number(h)}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} viewBox="0 0 {number(w)} {number(h)}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<desc>{escape(desc)}</desc>",
            f"<style>{style}</style>",
            f'<rect class="card" x="0.5" y="0.5" width="{number(w - 1)}" height="{number(h - 1)}" rx="12"/>',
            *[part.svg if isinstance(part, Part) else part for part in parts],
            "</svg>\n",
        ]
    )
