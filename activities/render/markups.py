"""What a markup without an appearance looks like: the operators that draw what its dictionary says. Loaded in render children only.

1. Sizes that the specification leaves to the viewer are those of common viewers: line endings are 9 line widths long, text begins at
   two border widths from the edge, and its lines are 1.15 font sizes apart.
2. Whatever is nonsense, or more than is drawn here, gives no appearance: the caller says that the markup is missing.
3. Text is in Helvetica, for an appearance that is set through PDFium has no fonts of its own; PDFium draws a name that it does not
   find in Helvetica with WinAnsiEncoding: core/fpdfapi/page/cpdf_streamcontentparser.cpp, ``FindFont``.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pikepdf

MOST_POINTS = 5_000
"""Corners of a markup, and bumps of a cloud's edge."""

MOST_CHARACTERS = 5_000
"""Characters of a text."""

FARTHEST = 1_000_000.0
"""Points from the page's origin, and anything else that a number can mean."""

HELVETICA = ("helv", "helvetica", "arial", "arialmt", "liberationsans")
"""Names of fonts that look like it, without a subset's prefix, in small letters."""

Point = tuple[float, float]
Width = Callable[[str], float]
"""Tells how wide a text is in Helvetica of size 1."""


@dataclass(frozen=True)
class Appearance:
    """How a markup is drawn.

    Args:
        content: Operators, in the page's coordinates, ASCII; ``/GS`` names a graphics state with the markup's opacity.
        rect: Left, bottom, right, top of all that is drawn, in points.
        font_substituted: Its text is in Helvetica though another font was asked for.
    """

    content: str
    rect: tuple[float, float, float, float]
    font_substituted: bool = False


class _Unusable(ValueError):
    """The dictionary says nothing that can be drawn."""


def appearance(markup: pikepdf.Dictionary, width_of: Width) -> Appearance | None:
    """How a markup is drawn; None where that is not known, or it is nonsense.

    Args:
        markup: An annotation of any kind.
        width_of: Tells how wide a text is in Helvetica of size 1.
    """
    draw = _DRAW.get(str(markup.get("/Subtype")))
    if draw is None:
        return None
    try:
        opacity = _number(markup.get("/CA", 1), 0, 1)
        pen = _Pen(markup)
        substituted = draw(markup, pen, width_of)
        left, bottom, right, top = _rect(markup)
        xs, ys = zip(*pen.points, strict=True)
        # Miters of sharp corners reach farther than the pen is wide.
        reach = 2 * pen.width + 1
        rect = (min(left, *xs) - reach, min(bottom, *ys) - reach, max(right, *xs) + reach, max(top, *ys) + reach)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 (any nonsense may stand in a dictionary, and pikepdf's errors have no common base)
        return None
    return Appearance("\n".join((*(("/GS gs",) if opacity < 1 else ()), *pen.operators)), rect, substituted)


def is_cloud(markup: pikepdf.Dictionary) -> bool:
    """Whether its edge is a cloud: section 12.5.4 of ISO 32000-1."""
    effect = markup.get("/BE")
    return isinstance(effect, pikepdf.Dictionary) and effect.get("/S") == "/C"


class _Pen:
    """Collects operators, and the points that they reach.

    Args:
        markup: Tells the border: ``/BS``, else ``/Border``.
    """

    def __init__(self, markup: pikepdf.Dictionary) -> None:
        style = markup.get("/BS")
        border = markup.get("/Border")
        dash: Any = None
        if isinstance(style, pikepdf.Dictionary):
            self.width = _number(style.get("/W", 1), 0, 1000)
            dash = style.get("/D", [3]) if style.get("/S") == "/D" else None
        elif isinstance(border, pikepdf.Array) and len(border) >= 3:
            self.width = _number(border[2], 0, 1000)
            dash = border[3] if len(border) > 3 else None
        else:
            self.width = 1.0
        self.points: list[Point] = []
        self.operators = [f"{_text(self.width)} w"]
        lengths = [] if dash is None else [_number(length, 0, 1000) for length in dash][:8]
        self._dash = f"[{_text(*lengths)}] 0 d" if any(lengths) else ""
        if self._dash:
            self.operators.append(self._dash)

    def colours(self, stroke: str, fill: str) -> None:
        """Operands of both; an empty one paints nothing."""
        self._stroke, self._fill = stroke if self.width else "", fill
        self.operators += [part for part in (_operator(self._stroke, "G RG K"), _operator(fill, "g rg k")) if part]

    def path(self, points: Sequence[Point], *, closed: bool = False, filled: bool = False, curves: bool = False) -> None:
        """Paints a path; with ``curves`` the points after the first are those of Bezier curves, in threes."""
        self.points += points
        steps = [f"{_text(*points[0])} m"]
        if curves:
            steps += [f"{_text(*a, *b, *c)} c" for a, b, c in zip(*[iter(points[1:])] * 3, strict=True)]
        else:
            steps += [f"{_text(*point)} l" for point in points[1:]]
        fill = filled and self._fill
        paint = ("b" if closed else "B") if fill and self._stroke else "f" if fill else ("s" if closed else "S") if self._stroke else "n"
        self.operators += [*steps, paint]

    def solid(self) -> None:
        """No dashes from here on."""
        if self._dash:
            self.operators.append("[] 0 d")


def _line(markup: pikepdf.Dictionary, pen: _Pen, width_of: Width) -> bool:
    """A line or a dimension: leader lines, endings and a caption; sections 12.5.6.7 and table 175 of ISO 32000-1."""
    start, end = _points(markup["/L"])[:2]
    length = math.dist(start, end)
    if not length:
        raise _Unusable
    along = ((end[0] - start[0]) / length, (end[1] - start[1]) / length)
    across = (-along[1], along[0])
    leader = _number(markup.get("/LL", 0))
    side = math.copysign(1, leader)
    pen.colours(_colour(markup.get("/C"), "0"), _colour(markup.get("/IC"), ""))
    first, last = (_moved(point, across, leader) for point in (start, end))
    if leader:
        near = side * _number(markup.get("/LLO", 0), 0)
        far = leader + side * _number(markup.get("/LLE", 0), 0)
        for point in (start, end):
            pen.path([_moved(point, across, near), _moved(point, across, far)])
    caption = _words(markup).replace("\n", " ") if markup.get("/Cap", False) else ""
    size = 9.0
    room = width_of(caption) * size + 4 if caption else 0.0
    inline = markup.get("/CP", "/Inline") != "/Top" and 0 < room < length
    if inline:
        gap = (length - room) / 2
        pen.path([first, _moved(first, along, gap)])
        pen.path([_moved(last, along, -gap), last])
    else:
        pen.path([first, last])
    pen.solid()
    _endings(pen, markup.get("/LE"), [first, last])
    if caption:
        # Read from the left, or from below on an upright line.
        forward = along if along[0] > 1e-6 or (abs(along[0]) <= 1e-6 and along[1] > 0) else (-along[0], -along[1])
        up = (-forward[1], forward[0])
        middle = ((first[0] + last[0]) / 2, (first[1] + last[1]) / 2)
        right, above = _numbers(markup.get("/CO", [0, 0]))
        origin = _moved(_moved(middle, along, right), across, above)
        origin = _moved(_moved(origin, forward, 2 - room / 2), up, -size / 3 if inline else pen.width + 2)
        pen.operators.append("0 g")
        _write(pen, caption, origin, forward, size)
        pen.points += [_moved(origin, up, size), _moved(origin, up, -size), _moved(origin, forward, room)]
    return False


def _polygon(markup: pikepdf.Dictionary, pen: _Pen, _width_of: Width) -> bool:
    pen.colours(_colour(markup.get("/C"), "0"), _colour(markup.get("/IC"), ""))
    _closed(markup, pen, _points(markup["/Vertices"]))
    return False


def _polyline(markup: pikepdf.Dictionary, pen: _Pen, _width_of: Width) -> bool:
    pen.colours(_colour(markup.get("/C"), "0"), _colour(markup.get("/IC"), ""))
    points = _points(markup["/Vertices"])
    pen.path(points)
    pen.solid()
    _endings(pen, markup.get("/LE"), points)
    return False


def _cloudy_box(markup: pikepdf.Dictionary, pen: _Pen, _width_of: Width) -> bool:
    """A square or circle with a cloud for an edge."""
    left, bottom, right, top = _inset(_rect(markup), markup.get("/RD", [pen.width / 2] * 4))
    pen.colours(_colour(markup.get("/C"), "0"), _colour(markup.get("/IC"), ""))
    if markup["/Subtype"] == "/Square":
        points = [(left, bottom), (right, bottom), (right, top), (left, top)]
    else:
        x, y, half_x, half_y = (left + right) / 2, (bottom + top) / 2, (right - left) / 2, (top - bottom) / 2
        corners = min(max(4, round(math.pi * (half_x + half_y) / (2 * _bump(markup)))), 1000)
        turns = [corner * math.tau / corners for corner in range(corners)]
        points = [(x + half_x * math.cos(turn), y + half_y * math.sin(turn)) for turn in turns]
    _closed(markup, pen, points)
    return False


def _free_text(markup: pikepdf.Dictionary, pen: _Pen, width_of: Width) -> bool:
    """Text in a box, and the line of a callout. The default appearance gives the text's and the border's colour, ``/C`` the background."""
    font, size, colour = _default_appearance(str(markup.get("/DA", "")))
    text = _words(markup)
    pen.colours(colour, _colour(markup.get("/C"), ""))
    callout = markup.get("/CL")
    if callout is not None:
        points = _points(callout)
        pen.path(points)
        ending = markup.get("/LE")
        _endings(pen, [ending] if isinstance(ending, pikepdf.Name) else ending, points, both=False)
    left, bottom, right, top = _inset(_rect(markup), markup.get("/RD", [0, 0, 0, 0]))
    half = pen.width / 2
    corners = [(left + half, bottom + half), (right - half, bottom + half), (right - half, top - half), (left + half, top - half)]
    pen.path(corners, closed=True, filled=True)
    pen.solid()
    margin = 2 * pen.width
    left, bottom, right, top = left + margin, bottom + margin, right - margin, top - margin
    pen.operators.append(f"{_text(left, bottom, right - left, top - bottom)} re W n")
    align = {1: 0.5, 2: 1.0}.get(int(_number(markup.get("/Q", 0))), 0.0)
    pen.operators.append(_operator(colour, "g rg k"))
    baseline = top - size
    for line in _wrapped(text, (right - left) / size, width_of):
        if baseline < bottom - size:
            break
        _write(pen, line, (left + align * (right - left - width_of(line) * size), baseline), (1.0, 0.0), size)
        baseline -= 1.15 * size
    return bool(text) and font not in HELVETICA


_DRAW: dict[str, Callable[[pikepdf.Dictionary, _Pen, Width], bool]] = {
    "/Line": _line,
    "/Polygon": _polygon,
    "/PolyLine": _polyline,
    "/Square": _cloudy_box,
    "/Circle": _cloudy_box,
    "/FreeText": _free_text,
}
"""What draws each kind; it tells whether a font was substituted."""


def _closed(markup: pikepdf.Dictionary, pen: _Pen, points: list[Point]) -> None:
    if is_cloud(markup):
        pen.path(_cloud(points, _bump(markup)), closed=True, filled=True, curves=True)
    else:
        pen.path(points, closed=True, filled=True)


def _bump(markup: pikepdf.Dictionary) -> float:
    """Radius of a cloud's bumps, in points."""
    return 4 * _number(markup["/BE"].get("/I", 1), 0.5, 4)


def _cloud(points: list[Point], radius: float) -> list[Point]:
    """Bezier curves around a polygon: half circles that bulge outwards."""
    closed = [*points, points[0]]
    area = sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(closed))
    curves = [points[0]]
    for a, b in pairwise(closed):
        length = math.dist(a, b)
        bumps = max(1, round(length / (2 * radius)))
        if len(curves) > 3 * (MOST_POINTS - bumps):
            raise _Unusable
        if not length:
            continue
        step = ((b[0] - a[0]) / bumps, (b[1] - a[1]) / bumps)
        # To the right of the way around when that is counter-clockwise; 2/3 of the diameter makes a half circle.
        out = 2 / 3 if area > 0 else -2 / 3
        bulge = (step[1] * out, -step[0] * out)
        for bump in range(bumps):
            p = (a[0] + bump * step[0], a[1] + bump * step[1])
            q = (p[0] + step[0], p[1] + step[1])
            curves += [(p[0] + bulge[0], p[1] + bulge[1]), (q[0] + bulge[0], q[1] + bulge[1]), q]
    return curves


def _endings(pen: _Pen, names: Any, points: list[Point], *, both: bool = True) -> None:
    """The endings of a line at its first and, with ``both``, at its last point: table 176 of ISO 32000-1."""
    styles = [str(name) for name in names][:2] if isinstance(names, pikepdf.Array | list) else []
    ways = [(points[0], points[1]), (points[-1], points[-2])]
    for style, (tip, inner) in zip(styles, ways[: 1 + both], strict=False):
        length = math.dist(tip, inner)
        if not length:
            continue
        back = ((inner[0] - tip[0]) / length, (inner[1] - tip[1]) / length)
        _ending(pen, style, tip, back)


def _ending(pen: _Pen, style: str, tip: Point, back: Point) -> None:
    across = (-back[1], back[0])
    size = max(9 * pen.width, 3.0)

    def at(far: float, aside: float) -> Point:
        return _moved(_moved(tip, back, far * size), across, aside * size)

    third = 1 / 3
    match style:
        case "/OpenArrow" | "/ClosedArrow" | "/ROpenArrow" | "/RClosedArrow":
            far = -math.cos(math.pi / 6) if style.startswith("/R") else math.cos(math.pi / 6)
            closed = style.endswith("ClosedArrow")
            pen.path([at(far, 0.5), tip, at(far, -0.5)], closed=closed, filled=closed)
        case "/Square":
            pen.path([at(-third, -third), at(third, -third), at(third, third), at(-third, third)], closed=True, filled=True)
        case "/Diamond":
            pen.path([at(-third, 0), at(0, -third), at(third, 0), at(0, third)], closed=True, filled=True)
        case "/Circle":
            k = third * 0.5523
            curve = [at(third, 0), at(third, k), at(k, third), at(0, third), at(-k, third), at(-third, k), at(-third, 0)]
            curve += [at(-third, -k), at(-k, -third), at(0, -third), at(k, -third), at(third, -k), at(third, 0)]
            pen.path(curve, closed=True, filled=True, curves=True)
        case "/Butt":
            pen.path([at(0, -third), at(0, third)])
        case "/Slash":
            pen.path([at(-0.25, -0.433), at(0.25, 0.433)])


def _write(pen: _Pen, text: str, origin: Point, forward: Point, size: float) -> None:
    codes = "".join(chr(code) if 32 <= code < 127 and code not in b"()\\" else f"\\{code:03o}" for code in text.encode("cp1252"))
    matrix = _text(forward[0], forward[1], -forward[1], forward[0], *origin)
    pen.operators.append(f"BT /SiteLinkHelvetica {_text(size)} Tf {matrix} Tm ({codes}) Tj ET")


def _words(markup: pikepdf.Dictionary) -> str:
    """The text of a markup, lines ended by line feeds."""
    text = str(markup.get("/Contents", ""))
    if len(text) > MOST_CHARACTERS:
        raise _Unusable
    text = "\n".join(text.expandtabs(4).splitlines())
    # Raises for a character that Helvetica does not have: a part of a text would be worse than none.
    text.encode("cp1252")
    return text


def _wrapped(text: str, width: float, width_of: Width) -> Iterator[str]:
    """Lines of at most this width, in font sizes; a word that is longer has its own."""
    space = width_of(" ")
    for paragraph in text.split("\n"):
        line: list[str] = []
        used = 0.0
        for word in paragraph.split(" "):
            needed = width_of(word)
            if line and used + space + needed > width:
                yield " ".join(line)
                line, used = [], 0.0
            used += needed + (space if line else 0)
            line.append(word)
        yield " ".join(line)


def _default_appearance(text: str) -> tuple[str, float, str]:
    """Font name in small letters, size and operands of the colour, by ``/DA``."""
    font, size, colour = "", 0.0, "0"
    operands: list[str] = []
    for word in text[:1000].replace("/", " /").split():
        if word == "Tf" and len(operands) >= 2:
            font, size = operands[-2].lstrip("/").lower(), _number(float(operands[-1]), 0, 1000)
        elif (count := {"g": 1, "rg": 3, "k": 4}.get(word, 0)) and len(operands) >= count:
            colour = _text(*(_number(float(value), 0, 1) for value in operands[-count:]))
        else:
            operands.append(word)
            continue
        operands.clear()
    return font, size or 10.0, colour


def _colour(value: Any, otherwise: str) -> str:
    """Operands of a colour: none for an empty array, which paints nothing."""
    if value is None:
        return otherwise
    components = [_number(component, 0, 1) for component in value]
    if len(components) not in (0, 1, 3, 4):
        raise _Unusable
    return _text(*components)


def _operator(operands: str, names: str) -> str:
    gray, rgb, cmyk = names.split()
    return f"{operands} { ({1: gray, 3: rgb, 4: cmyk}[len(operands.split())]) }" if operands else ""


def _points(values: Any) -> list[Point]:
    numbers = _numbers(values)
    points = list(zip(numbers[::2], numbers[1::2], strict=False))
    if len(points) < 2:
        raise _Unusable
    return points


def _numbers(values: Any) -> list[float]:
    if len(values) > 2 * MOST_POINTS:
        raise _Unusable
    return [_number(value) for value in values]


def _number(value: Any, low: float = -FARTHEST, high: float = FARTHEST) -> float:
    number = float(value)
    # Not number < low: it may be NaN.
    if not low <= number <= high:
        raise _Unusable
    return number


def _rect(markup: pikepdf.Dictionary) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = _numbers(markup["/Rect"])
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _inset(rect: tuple[float, float, float, float], differences: Any) -> tuple[float, float, float, float]:
    left, bottom, right, top = (edge + sign * by for edge, by, sign in zip(rect, _numbers(differences), (1, 1, -1, -1), strict=True))
    if left >= right or bottom >= top:
        raise _Unusable
    return left, bottom, right, top


def _moved(point: Point, direction: Point, by: float) -> Point:
    return point[0] + by * direction[0], point[1] + by * direction[1]


def _text(*numbers: float) -> str:
    return " ".join(f"{number:.4f}".rstrip("0").rstrip(".") for number in numbers)
