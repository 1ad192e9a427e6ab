"""Writes the operators of a content stream: paths, cloudy edges, line endings, text. Loaded in render children only.

1. A line ending is 9 line widths long, as common viewers draw it: the specification leaves its size to the viewer.
2. Text is in Helvetica: an appearance that is set through PDFium has no fonts of its own, and for a font name that it does not find
   PDFium takes Helvetica with WinAnsiEncoding.
   https://pdfium.googlesource.com/pdfium/+/refs/heads/chromium/8149/core/fpdfapi/page/cpdf_streamcontentparser.cpp (``FindFont``)
"""

import math
from collections.abc import Sequence
from itertools import pairwise

MOST_BUMPS = 5_000
"""Bumps of a cloud's edge."""

CIRCLE_HANDLE = 0.5523
"""Distance of a Bezier curve's control points from its ends, in radii, for a quarter of a circle."""

Point = tuple[float, float]
Colour = tuple[float, ...]
"""One component is gray, three are RGB, four are CMYK; a colour without components paints nothing."""


class Pen:
    """Collects operators, and the points that they reach.

    Args:
        width: Line width in points; 0 draws no line.
        dashes: Lengths of dashes and gaps in points; empty for a solid line.
    """

    def __init__(self, width: float, dashes: Sequence[float]) -> None:
        self.width = width
        self.points: list[Point] = []
        self.operators = [f"{operands(width)} w"]
        self._dashed = any(dashes)
        if self._dashed:
            self.operators.append(f"[{operands(*dashes)}] 0 d")
        self._stroke: Colour = ()
        self._fill: Colour = ()

    def set_colours(self, stroke: Colour, fill: Colour) -> None:
        """Sets the colours of the paths that follow."""
        self._stroke, self._fill = stroke if self.width else (), fill
        self.operators += [
            operator for operator in (_colour_operator(self._stroke, "G RG K"), _colour_operator(fill, "g rg k")) if operator
        ]

    def end_dashes(self) -> None:
        """Makes the lines that follow solid."""
        if self._dashed:
            self.operators.append("[] 0 d")

    def clip(self, left: float, bottom: float, right: float, top: float) -> None:
        """Keeps all that follows within a rectangle."""
        self.operators.append(f"{operands(left, bottom, right - left, top - bottom)} re W n")

    def draw_path(self, points: Sequence[Point], *, closed: bool = False, filled: bool = False, curved: bool = False) -> None:
        """Paints a path; with ``curved`` the points after the first are control points and ends of Bezier curves, in threes."""
        self.points += points
        segments = [f"{operands(*points[0])} m"]
        if curved:
            segments += [f"{operands(*a, *b, *c)} c" for a, b, c in zip(*[iter(points[1:])] * 3, strict=True)]
        else:
            segments += [f"{operands(*point)} l" for point in points[1:]]
        fill = filled and self._fill
        # https://opensource.adobe.com/dc-acrobat-sdk-docs/standards/pdfstandards/pdf/PDF32000_2008.pdf, table 60
        paint = ("b" if closed else "B") if fill and self._stroke else "f" if fill else ("s" if closed else "S") if self._stroke else "n"
        self.operators += [*segments, paint]

    def draw_cloud(self, corners: list[Point], radius: float) -> None:
        """Paints a polygon whose edge is half circles that bulge outwards.

        Args:
            corners: Of the polygon.
            radius: Of a half circle, in points.

        Raises:
            ValueError: The edge needs too many half circles.
        """
        closed = [*corners, corners[0]]
        area = sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(closed))
        curves = [corners[0]]
        for a, b in pairwise(closed):
            length = math.dist(a, b)
            bumps = max(1, round(length / (2 * radius)))
            if len(curves) > 3 * (MOST_BUMPS - bumps):
                msg = f"a cloud of more than {MOST_BUMPS:,} bumps"
                raise ValueError(msg)
            if not length:
                continue
            step = ((b[0] - a[0]) / bumps, (b[1] - a[1]) / bumps)
            # Outwards is to the right of a counter-clockwise way; control points 2/3 of the diameter away make a half circle.
            outwards = 2 / 3 if area > 0 else -2 / 3
            bulge = (step[1] * outwards, -step[0] * outwards)
            for bump in range(bumps):
                p = (a[0] + bump * step[0], a[1] + bump * step[1])
                q = (p[0] + step[0], p[1] + step[1])
                curves += [(p[0] + bulge[0], p[1] + bulge[1]), (q[0] + bulge[0], q[1] + bulge[1]), q]
        self.draw_path(curves, closed=True, filled=True, curved=True)

    def draw_line_endings(self, styles: Sequence[str], points: Sequence[Point]) -> None:
        """Draws the ending of a line at its first point and, where there is a second style, at its last.

        https://opensource.adobe.com/dc-acrobat-sdk-docs/standards/pdfstandards/pdf/PDF32000_2008.pdf, table 176
        """
        ends = [(points[0], points[1]), (points[-1], points[-2])]
        for style, (tip, neighbour) in zip(styles, ends, strict=False):
            length = math.dist(tip, neighbour)
            if length:
                self._draw_line_ending(style, tip, ((neighbour[0] - tip[0]) / length, (neighbour[1] - tip[1]) / length))

    def _draw_line_ending(self, style: str, tip: Point, back: Point) -> None:
        across = (-back[1], back[0])
        size = max(9 * self.width, 3.0)

        def at(along: float, aside: float) -> Point:
            return moved(moved(tip, back, along * size), across, aside * size)

        third = 1 / 3
        match style:
            case "/OpenArrow" | "/ClosedArrow" | "/ROpenArrow" | "/RClosedArrow":
                along = -math.cos(math.pi / 6) if style.startswith("/R") else math.cos(math.pi / 6)
                closed = style.endswith("ClosedArrow")
                self.draw_path([at(along, 0.5), tip, at(along, -0.5)], closed=closed, filled=closed)
            case "/Square":
                self.draw_path([at(-third, -third), at(third, -third), at(third, third), at(-third, third)], closed=True, filled=True)
            case "/Diamond":
                self.draw_path([at(-third, 0), at(0, -third), at(third, 0), at(0, third)], closed=True, filled=True)
            case "/Circle":
                k = third * CIRCLE_HANDLE
                curve = [at(third, 0), at(third, k), at(k, third), at(0, third), at(-k, third), at(-third, k), at(-third, 0)]
                curve += [at(-third, -k), at(-k, -third), at(0, -third), at(k, -third), at(third, -k), at(third, 0)]
                self.draw_path(curve, closed=True, filled=True, curved=True)
            case "/Butt":
                self.draw_path([at(0, -third), at(0, third)])
            case "/Slash":
                self.draw_path([at(-0.25, -0.433), at(0.25, 0.433)])

    def set_text_colour(self, colour: Colour) -> None:
        """Sets the colour of the text that follows."""
        self.operators.append(_colour_operator(colour, "g rg k"))

    def write_text(self, text: str, origin: Point, forward: Point, size: float) -> None:
        """Writes one line of text.

        Args:
            text: Only characters of the code page 1252.
            origin: The left end of the baseline.
            forward: The direction of the baseline, of length 1.
            size: Font size in points.
        """
        codes = "".join(chr(code) if 32 <= code < 127 and code not in b"()\\" else f"\\{code:03o}" for code in text.encode("cp1252"))
        matrix = operands(forward[0], forward[1], -forward[1], forward[0], *origin)
        self.operators.append(f"BT /SiteLinkHelvetica {operands(size)} Tf {matrix} Tm ({codes}) Tj ET")


def moved(point: Point, direction: Point, distance: float) -> Point:
    """The point at a distance in a direction of length 1."""
    return point[0] + distance * direction[0], point[1] + distance * direction[1]


def operands(*numbers: float) -> str:
    """Numbers as an operator's operands."""
    return " ".join(f"{number:.4f}".rstrip("0").rstrip(".") for number in numbers)


def _colour_operator(colour: Colour, operators: str) -> str:
    """The operator that sets a colour; ``operators`` are its names for gray, RGB and CMYK."""
    gray, rgb, cmyk = operators.split()
    return f"{operands(*colour)} { ({1: gray, 3: rgb, 4: cmyk}[len(colour)]) }" if colour else ""
