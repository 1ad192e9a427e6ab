"""Reads the entries of a markup's dictionary, in which any nonsense may stand. Loaded in render children only.

A value of a wrong type raises whatever Python or pikepdf raises for it. The numbers of sections and tables are those of ISO 32000-1:
https://opensource.adobe.com/dc-acrobat-sdk-docs/standards/pdfstandards/pdf/PDF32000_2008.pdf
"""

from typing import Any

import pikepdf

from activities.render.annotations.pen import Colour, Point

MOST_POINTS = 5_000
"""Points of a markup."""

MOST_CHARACTERS = 5_000
"""Characters of a text."""

LARGEST_NUMBER = 1_000_000.0
"""For coordinates and lengths, in points; a markup with a larger number is not drawn."""

THICKEST_LINE_PT = 1_000.0

BLACK: Colour = (0.0,)
NO_COLOUR: Colour = ()

Rect = tuple[float, float, float, float]
"""Left, bottom, right, top."""


def read_number(value: Any, low: float = -LARGEST_NUMBER, high: float = LARGEST_NUMBER) -> float:
    """A number of this range.

    Raises:
        ValueError: The number is out of range, or the value is no number.
    """
    number = float(value)
    if not low <= number <= high:  # also true for NaN
        msg = f"{number:g} is not within {low:g} and {high:g}"
        raise ValueError(msg)
    return number


def read_numbers(values: Any) -> list[float]:
    """The numbers of an array.

    Raises:
        ValueError: There are too many, or one is out of range.
    """
    if len(values) > 2 * MOST_POINTS:
        msg = f"{len(values):,} numbers, limit {2 * MOST_POINTS:,}"
        raise ValueError(msg)
    return [read_number(value) for value in values]


def read_points(values: Any) -> list[Point]:
    """At least two points.

    Raises:
        ValueError: There are fewer, or too many, or a number is out of range.
    """
    numbers = read_numbers(values)
    points = list(zip(numbers[::2], numbers[1::2], strict=False))
    if len(points) < 2:
        msg = f"{len(points)} points, at least 2 are needed"
        raise ValueError(msg)
    return points


def read_rect(markup: pikepdf.Dictionary) -> Rect:
    """The rectangle of a markup."""
    x1, y1, x2, y2 = read_numbers(markup["/Rect"])
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def read_inner_rect(markup: pikepdf.Dictionary, default: float) -> Rect:
    """The rectangle within the differences ``/RD``, or ``default`` points from each edge where the markup has none.

    Raises:
        ValueError: No area is left.
    """
    differences = read_numbers(markup.get("/RD", [default] * 4))
    left, bottom, right, top = (
        edge + sign * difference for edge, difference, sign in zip(read_rect(markup), differences, (1, 1, -1, -1), strict=True)
    )
    if left >= right or bottom >= top:
        msg = "the rectangle has no area"
        raise ValueError(msg)
    return left, bottom, right, top


def read_colour(value: Any, default: Colour) -> Colour:
    """A colour; ``default`` where the markup names none.

    Raises:
        ValueError: It has another number of components than a colour has, or one is out of range.
    """
    if value is None:
        return default
    components = tuple(read_number(component, 0, 1) for component in value)
    if len(components) not in (0, 1, 3, 4):
        msg = f"a colour of {len(components)} components"
        raise ValueError(msg)
    return components


def read_border(markup: pikepdf.Dictionary) -> tuple[float, list[float]]:
    """Line width, and lengths of dashes and gaps, in points: ``/BS``, else ``/Border`` (section 12.5.4)."""
    style, border = markup.get("/BS"), markup.get("/Border")
    width: Any = 1
    dashes: Any = None
    if isinstance(style, pikepdf.Dictionary):
        width = style.get("/W", 1)
        dashes = style.get("/D", [3]) if style.get("/S") == "/D" else None
    elif isinstance(border, pikepdf.Array) and len(border) >= 3:
        width = border[2]
        dashes = border[3] if len(border) > 3 else None
    lengths = [] if dashes is None else [read_number(length, 0, THICKEST_LINE_PT) for length in dashes][:8]
    return read_number(width, 0, THICKEST_LINE_PT), lengths


def has_cloudy_edge(markup: pikepdf.Dictionary) -> bool:
    """Whether its edge is a cloud (section 12.5.4, table 167)."""
    effect = markup.get("/BE")
    return isinstance(effect, pikepdf.Dictionary) and effect.get("/S") == "/C"


def read_cloud_radius(markup: pikepdf.Dictionary) -> float:
    """Radius of the bumps of a cloudy edge, in points, from its intensity."""
    return 4 * read_number(markup["/BE"].get("/I", 1), 0.5, 4)


def read_line_endings(value: Any) -> list[str]:
    """The styles of a line's endings, at most two (table 175)."""
    return [str(name) for name in value][:2] if isinstance(value, pikepdf.Array) else []


def read_contents(markup: pikepdf.Dictionary) -> str:
    """The text of a markup, its lines separated by line feeds.

    Raises:
        ValueError: It is too long, or has a character that Helvetica lacks: a part of a text would be worse than no text.
    """
    text = str(markup.get("/Contents", ""))
    if len(text) > MOST_CHARACTERS:
        msg = f"{len(text):,} characters, limit {MOST_CHARACTERS:,}"
        raise ValueError(msg)
    text = "\n".join(text.expandtabs(4).splitlines())
    text.encode("cp1252")
    return text


def read_default_appearance(markup: pikepdf.Dictionary) -> tuple[str, float, Colour]:
    """Name of the font in small letters, font size in points, and colour, from ``/DA`` (section 12.7.3.3)."""
    font, size, colour = "", 0.0, BLACK
    operands: list[str] = []
    for word in str(markup.get("/DA", ""))[:1000].replace("/", " /").split():
        if word == "Tf" and len(operands) >= 2:
            font, size = operands[-2].lstrip("/").lower(), read_number(operands[-1], 0, 1000)
        elif (count := {"g": 1, "rg": 3, "k": 4}.get(word, 0)) and len(operands) >= count:
            colour = tuple(read_number(value, 0, 1) for value in operands[-count:])
        else:
            operands.append(word)
            continue
        operands.clear()
    return font, size or 10.0, colour
