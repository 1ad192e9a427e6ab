"""Makes the appearance of a markup that has none in the PDF, from the entries of its dictionary. Loaded in render children only.

1. Text begins at two border widths from the edge, and its lines are 1.15 font sizes apart, as common viewers draw them: the
   specification leaves both to the viewer.
2. A markup with nonsense in its dictionary, or with more points or characters than are drawn here, gets no appearance: the caller
   notes that it is missing.
3. The numbers of sections and tables are those of ISO 32000-1:
   https://opensource.adobe.com/dc-acrobat-sdk-docs/standards/pdfstandards/pdf/PDF32000_2008.pdf
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pikepdf

from activities.render.annotations.entries import (
    BLACK,
    NO_COLOUR,
    has_cloudy_edge,
    read_border,
    read_cloud_radius,
    read_colour,
    read_contents,
    read_default_appearance,
    read_inner_rect,
    read_line_endings,
    read_number,
    read_numbers,
    read_points,
    read_rect,
)
from activities.render.annotations.pen import Pen, Point, moved

HELVETICA = ("helv", "helvetica", "arial", "arialmt", "liberationsans")
"""Names of fonts that look like Helvetica, without a subset's prefix, in small letters."""

CAPTION_PT = 9.0
"""Font size of a line's caption."""

MOST_CORNERS = 1_000
"""Corners of the polygon that stands for a circle with a cloudy edge."""

TextWidth = Callable[[str], float]
"""Gives the width of a text in Helvetica of size 1."""


@dataclass(frozen=True)
class Appearance:
    """How a markup is drawn.

    Args:
        content: Operators, in the page's coordinates, ASCII; ``/GS`` names a graphics state with the markup's opacity.
        rect: Left, bottom, right, top of all that is drawn, in points.
        font_substituted: Its text is in Helvetica though the markup asks for another font.
    """

    content: str
    rect: tuple[float, float, float, float]
    font_substituted: bool = False


def make_appearance(markup: pikepdf.Dictionary, text_width: TextWidth) -> Appearance | None:
    """The appearance of a markup; None for a kind that is not drawn here, and where the dictionary is nonsense.

    Args:
        markup: An annotation of any kind.
        text_width: Gives the width of a text in Helvetica of size 1.
    """
    draw = _DRAW_BY_KIND.get(str(markup.get("/Subtype")))
    if draw is None:
        return None
    try:
        opacity = read_number(markup.get("/CA", 1), 0, 1)
        pen = Pen(*read_border(markup))
        font_substituted = draw(markup, pen, text_width)
        left, bottom, right, top = read_rect(markup)
        xs, ys = zip(*pen.points, strict=True)
        # Miters of sharp corners reach farther than the pen is wide.
        reach = 2 * pen.width + 1
        rect = (min(left, *xs) - reach, min(bottom, *ys) - reach, max(right, *xs) + reach, max(top, *ys) + reach)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 (any nonsense may stand in a dictionary, and pikepdf's errors have no common base)
        return None
    return Appearance("\n".join((*(("/GS gs",) if opacity < 1 else ()), *pen.operators)), rect, font_substituted)


def _draw_line(markup: pikepdf.Dictionary, pen: Pen, text_width: TextWidth) -> bool:
    """Draws a line or a dimension with its leader lines, endings and caption (section 12.5.6.7, table 175)."""
    start, end = read_points(markup["/L"])[:2]
    length = math.dist(start, end)
    if not length:
        msg = "a line without length"
        raise ValueError(msg)
    along = ((end[0] - start[0]) / length, (end[1] - start[1]) / length)
    across = (-along[1], along[0])
    leader = read_number(markup.get("/LL", 0))
    side = math.copysign(1, leader)
    _set_colours(markup, pen)
    first, last = (moved(point, across, leader) for point in (start, end))
    if leader:
        near = side * read_number(markup.get("/LLO", 0), 0)
        far = leader + side * read_number(markup.get("/LLE", 0), 0)
        for point in (start, end):
            pen.draw_path([moved(point, across, near), moved(point, across, far)])
    caption = read_contents(markup).replace("\n", " ") if markup.get("/Cap", False) else ""
    room = text_width(caption) * CAPTION_PT + 4 if caption else 0.0
    inline = markup.get("/CP", "/Inline") != "/Top" and 0 < room < length
    if inline:
        gap = (length - room) / 2
        pen.draw_path([first, moved(first, along, gap)])
        pen.draw_path([moved(last, along, -gap), last])
    else:
        pen.draw_path([first, last])
    pen.end_dashes()
    pen.draw_line_endings(read_line_endings(markup.get("/LE")), [first, last])
    if caption:
        # Read from the left, or from below on an upright line.
        forward = along if along[0] > 1e-6 or (abs(along[0]) <= 1e-6 and along[1] > 0) else (-along[0], -along[1])
        up = (-forward[1], forward[0])
        middle = ((first[0] + last[0]) / 2, (first[1] + last[1]) / 2)
        right, above = read_numbers(markup.get("/CO", [0, 0]))
        origin = moved(moved(middle, along, right), across, above)
        origin = moved(moved(origin, forward, 2 - room / 2), up, -CAPTION_PT / 3 if inline else pen.width + 2)
        pen.set_text_colour(BLACK)
        pen.write_text(caption, origin, forward, CAPTION_PT)
        pen.points += [moved(origin, up, CAPTION_PT), moved(origin, up, -CAPTION_PT), moved(origin, forward, room)]
    return False


def _draw_polygon(markup: pikepdf.Dictionary, pen: Pen, _text_width: TextWidth) -> bool:
    _set_colours(markup, pen)
    _draw_closed(markup, pen, read_points(markup["/Vertices"]))
    return False


def _draw_polyline(markup: pikepdf.Dictionary, pen: Pen, _text_width: TextWidth) -> bool:
    _set_colours(markup, pen)
    points = read_points(markup["/Vertices"])
    pen.draw_path(points)
    pen.end_dashes()
    pen.draw_line_endings(read_line_endings(markup.get("/LE")), points)
    return False


def _draw_cloudy(markup: pikepdf.Dictionary, pen: Pen, _text_width: TextWidth) -> bool:
    """Draws a square or circle with a cloudy edge."""
    left, bottom, right, top = read_inner_rect(markup, pen.width / 2)
    _set_colours(markup, pen)
    if markup["/Subtype"] == "/Square":
        points = [(left, bottom), (right, bottom), (right, top), (left, top)]
    else:
        x, y, half_x, half_y = (left + right) / 2, (bottom + top) / 2, (right - left) / 2, (top - bottom) / 2
        corners = min(max(4, round(math.pi * (half_x + half_y) / (2 * read_cloud_radius(markup)))), MOST_CORNERS)
        angles = [corner * math.tau / corners for corner in range(corners)]
        points = [(x + half_x * math.cos(angle), y + half_y * math.sin(angle)) for angle in angles]
    _draw_closed(markup, pen, points)
    return False


def _draw_free_text(markup: pikepdf.Dictionary, pen: Pen, text_width: TextWidth) -> bool:
    """Draws text in a box, and the line of a callout. The default appearance gives the colour of text and border, ``/C`` the background."""
    font, size, colour = read_default_appearance(markup)
    text = read_contents(markup)
    pen.set_colours(colour, read_colour(markup.get("/C"), NO_COLOUR))
    callout = markup.get("/CL")
    if callout is not None:
        points = read_points(callout)
        pen.draw_path(points)
        ending = markup.get("/LE")
        # One name (table 174), though some programs write an array.
        pen.draw_line_endings([str(ending)] if isinstance(ending, pikepdf.Name) else read_line_endings(ending)[:1], points)
    left, bottom, right, top = read_inner_rect(markup, 0)
    half = pen.width / 2
    corners = [(left + half, bottom + half), (right - half, bottom + half), (right - half, top - half), (left + half, top - half)]
    pen.draw_path(corners, closed=True, filled=True)
    pen.end_dashes()
    margin = 2 * pen.width
    left, bottom, right, top = left + margin, bottom + margin, right - margin, top - margin
    pen.clip(left, bottom, right, top)
    alignment = {1: 0.5, 2: 1.0}.get(int(read_number(markup.get("/Q", 0))), 0.0)
    pen.set_text_colour(colour)
    baseline = top - size
    for line in _wrapped(text, (right - left) / size, text_width):
        if baseline < bottom - size:
            break
        pen.write_text(line, (left + alignment * (right - left - text_width(line) * size), baseline), (1.0, 0.0), size)
        baseline -= 1.15 * size
    return bool(text) and font not in HELVETICA


_DRAW_BY_KIND: dict[str, Callable[[pikepdf.Dictionary, Pen, TextWidth], bool]] = {
    "/Line": _draw_line,
    "/Polygon": _draw_polygon,
    "/PolyLine": _draw_polyline,
    "/Square": _draw_cloudy,
    "/Circle": _draw_cloudy,
    "/FreeText": _draw_free_text,
}
"""The function that draws each kind; it returns whether the font was substituted."""


def _set_colours(markup: pikepdf.Dictionary, pen: Pen) -> None:
    """Black lines and no fill, where the markup names no colours."""
    pen.set_colours(read_colour(markup.get("/C"), BLACK), read_colour(markup.get("/IC"), NO_COLOUR))


def _draw_closed(markup: pikepdf.Dictionary, pen: Pen, corners: list[Point]) -> None:
    if has_cloudy_edge(markup):
        pen.draw_cloud(corners, read_cloud_radius(markup))
    else:
        pen.draw_path(corners, closed=True, filled=True)


def _wrapped(text: str, width: float, text_width: TextWidth) -> Iterator[str]:
    """The lines of a text, at most ``width`` font sizes wide; a longer word gets a line of its own."""
    space = text_width(" ")
    for paragraph in text.split("\n"):
        line: list[str] = []
        used = 0.0
        for word in paragraph.split(" "):
            needed = text_width(word)
            if line and used + space + needed > width:
                yield " ".join(line)
                line, used = [], 0.0
            used += needed + (space if line else 0)
            line.append(word)
        yield " ".join(line)
