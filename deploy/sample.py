"""Draws the sample plan set that ``make run`` processes when it is given no file."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import pikepdf
from pikepdf import Array, Dictionary, Name, OutlineItem, Pdf

INCH = 72.0
FOOT = INCH / 4
"""One foot of the building, at the scale of the title blocks, 1/4" = 1'-0"."""

HEAVY, MEDIUM, LIGHT, FINE = 4.0, 2.0, 1.0, 0.5
"""Line widths in points."""

GRAY, BLUE, RED = (0.55, 0.55, 0.55), (0.1, 0.25, 0.55), (0.7, 0.1, 0.1)
BLACK = (0.0, 0.0, 0.0)

QUARTER_ARC = 0.5522847
"""The distance from an end point to its control point, when a Bezier curve draws a quarter of a unit circle."""

Color = tuple[float, float, float]
Point = tuple[float, float]


class Drawing:
    """The content stream of one page, in points from the lower left corner.

    Args:
        width_in: Width of the page in inches.
        height_in: Height of the page in inches.
    """

    def __init__(self, width_in: float, height_in: float) -> None:
        self.width = width_in * INCH
        self.height = height_in * INCH
        self._operators: list[str] = ["1 J 1 j"]

    @property
    def content(self) -> bytes:
        """The content stream's bytes."""
        return "\n".join(self._operators).encode("ascii")

    def path(self, points: Sequence[Point], width: float = LIGHT, *, color: Color = BLACK, dash: str = "", closed: bool = False) -> None:
        """Draws a polyline; ``closed`` also draws the line from the last point to the first."""
        (x, y), *rest = points
        steps = " ".join(f"{px:.2f} {py:.2f} l" for px, py in rest)
        self._stroke(f"{x:.2f} {y:.2f} m {steps} {'s' if closed else 'S'}", width, color, dash)

    def line(self, x1: float, y1: float, x2: float, y2: float, width: float = LIGHT, *, color: Color = BLACK, dash: str = "") -> None:
        """Draws one line."""
        self.path([(x1, y1), (x2, y2)], width, color=color, dash=dash)

    def box(self, x: float, y: float, width: float, height: float, line: float = LIGHT, *, color: Color = BLACK) -> None:
        """Draws a rectangle's outline."""
        self._stroke(f"{x:.2f} {y:.2f} {width:.2f} {height:.2f} re S", line, color, "")

    def fill(self, x: float, y: float, width: float, height: float, color: Color) -> None:
        """Fills a rectangle."""
        self._operators.append(f"q {_numbers(color)} rg {x:.2f} {y:.2f} {width:.2f} {height:.2f} re f Q")

    def arc(self, x: float, y: float, radius: float, quarters: Sequence[int], width: float = LIGHT, *, color: Color = BLACK) -> None:
        """Draws quarters of a circle; they are numbered 0 to 3, counter-clockwise from the upper right."""
        k = QUARTER_ARC
        for quarter in quarters:
            angle = quarter * math.pi / 2
            cos, sin = math.cos(angle), math.sin(angle)
            curve = [(x + radius * (u * cos - v * sin), y + radius * (u * sin + v * cos)) for u, v in ((1, 0), (1, k), (k, 1), (0, 1))]
            (ax, ay), *controls = curve
            self._stroke(f"{ax:.2f} {ay:.2f} m {' '.join(_numbers(point) for point in controls)} c S", width, color, "")

    def circle(self, x: float, y: float, radius: float, width: float = LIGHT, *, color: Color = BLACK) -> None:
        """Draws a circle."""
        self.arc(x, y, radius, range(4), width, color=color)

    def hatch(self, x: float, y: float, width: float, height: float, spacing: float, *, color: Color = GRAY) -> None:
        """Fills a rectangle with lines at 45 degrees."""
        offset = -height + spacing
        while offset < width:
            low, high = max(0.0, offset), min(width, offset + height)
            self.line(x + low, y + low - offset, x + high, y + high - offset, FINE, color=color)
            offset += spacing

    def text(self, x: float, y: float, size: float, text: str, *, bold: bool = False, upright: bool = False, color: Color = BLACK) -> None:
        """Writes a line of text; ``upright`` text runs from bottom to top."""
        escaped = text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
        turn = "0 1 -1 0" if upright else "1 0 0 1"
        font = "F2" if bold else "F1"
        self._operators.append(f"BT {_numbers(color)} rg /{font} {size:.2f} Tf {turn} {x:.2f} {y:.2f} Tm ({escaped}) Tj ET")

    def _stroke(self, path: str, width: float, color: Color, dash: str) -> None:
        self._operators.append(f"q {width:.2f} w {_numbers(color)} RG [{dash}] 0 d {path} Q")


def write_sample(path: Path) -> None:
    """Writes the plan set: three ARCH sheets with their bookmarks."""
    sheets = [
        ("A-101", "First Floor Plan", _floor_plan()),
        ("A-201", "Exterior Elevations", _elevations()),
        ("S-101", "Foundation Plan", _foundation()),
    ]
    with pikepdf.new() as pdf:
        fonts = Dictionary(F1=_font(pdf, "Helvetica"), F2=_font(pdf, "Helvetica-Bold"))
        with pdf.open_outline() as outline:
            for index, (number, title, drawing) in enumerate(sheets):
                _frame(drawing, number, title, index + 1, len(sheets))
                page = Dictionary(
                    Type=Name.Page,
                    MediaBox=Array([0, 0, round(drawing.width), round(drawing.height)]),
                    Resources=Dictionary(Font=fonts),
                    Contents=pdf.make_stream(drawing.content),
                )
                pdf.pages.append(pikepdf.Page(pdf.make_indirect(page)))
                outline.root.append(OutlineItem(f"{number} - {title}", index))
        pdf.docinfo["/Title"] = "SiteLink sample plan set"
        pdf.save(path, compress_streams=True, deterministic_id=True)


def _font(pdf: Pdf, name: str) -> pikepdf.Object:
    return pdf.make_indirect(Dictionary(Type=Name.Font, Subtype=Name.Type1, BaseFont=Name("/" + name)))


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


def _frame(drawing: Drawing, number: str, title: str, page: int, pages: int) -> None:
    """Draws the border, and the title block at the right edge."""
    margin, block = 0.5 * INCH, 3.0 * INCH
    left, right, top = margin, drawing.width - margin, drawing.height - margin
    drawing.box(left, margin, right - left, top - margin, HEAVY)
    edge = right - block
    drawing.line(edge, margin, edge, top, MEDIUM)
    for y in (1.6, 2.6, 3.6, 4.6):
        drawing.line(edge, margin + y * INCH, right, margin + y * INCH)
    x = edge + 0.2 * INCH
    drawing.text(x, margin + 0.35 * INCH, 62, number, bold=True)
    drawing.text(x, margin + 1.3 * INCH, 10, "SHEET", color=GRAY)
    drawing.text(x, margin + 2.0 * INCH, 15, title.upper(), bold=True)
    drawing.text(x, margin + 2.9 * INCH, 11, 'SCALE: 1/4" = 1\'-0"')
    drawing.text(x, margin + 3.9 * INCH, 11, f"SHEET {page} OF {pages}")
    drawing.text(x + 0.6 * INCH, margin + 5.4 * INCH, 30, "SITELINK SAMPLE HOUSE", bold=True, upright=True, color=BLUE)
    drawing.text(x + 1.2 * INCH, margin + 5.4 * INCH, 13, "Not for construction. Drawn to show tiles, titles and zoom.", upright=True)
    for row in range(4):
        y = top - (0.5 + row * 0.35) * INCH
        drawing.line(edge, y, right, y, FINE)
        drawing.text(x, y + 6, 8, f"REV {row + 1}   2026-0{row + 1}-15   ISSUED FOR REVIEW", color=GRAY)


def _grid(drawing: Drawing, x: float, y: float, columns: Sequence[float], rows: Sequence[float]) -> None:
    """Draws column lines with their bubbles and dimensions; columns and rows are distances in feet from the plan's corner."""
    reach, radius = 5 * FOOT, 1.0 * FOOT
    width, height = columns[-1] * FOOT, rows[-1] * FOOT
    for index, column in enumerate(columns):
        cx = x + column * FOOT
        drawing.line(cx, y - 2 * FOOT, cx, y + height + reach, FINE, color=GRAY, dash="18 4 3 4")
        drawing.circle(cx, y + height + reach + radius, radius, MEDIUM)
        drawing.text(cx - 5, y + height + reach + radius - 6, 17, str(index + 1), bold=True)
    for index, row in enumerate(rows):
        cy = y + row * FOOT
        drawing.line(x - reach, cy, x + width + 2 * FOOT, cy, FINE, color=GRAY, dash="18 4 3 4")
        drawing.circle(x - reach - radius, cy, radius, MEDIUM)
        drawing.text(x - reach - radius - 6, cy - 6, 17, "ABCDEFGH"[index], bold=True)
    for start, end in itertools.pairwise(columns):
        _dimension(drawing, x + start * FOOT, x + end * FOOT, y - 3 * FOOT, f"{end - start:.0f}'-0\"")
    _dimension(drawing, x, x + width, y - 5 * FOOT, f"{columns[-1]:.0f}'-0\"")


def _dimension(drawing: Drawing, x1: float, x2: float, y: float, label: str) -> None:
    drawing.line(x1, y, x2, y, FINE, color=BLUE)
    for x in (x1, x2):
        drawing.line(x - 4, y - 4, x + 4, y + 4, MEDIUM, color=BLUE)
        drawing.line(x, y - 10, x, y + 10, FINE, color=BLUE)
    drawing.text((x1 + x2) / 2 - 14, y + 5, 10, label, color=BLUE)


def _walls(drawing: Drawing, x: float, y: float, width_ft: float, height_ft: float, thickness_ft: float = 0.66) -> None:
    """Draws four walls, hatched."""
    width, height, thick = width_ft * FOOT, height_ft * FOOT, thickness_ft * FOOT
    for bx, by, bw, bh in (
        (x, y, width, thick),
        (x, y + height - thick, width, thick),
        (x, y + thick, thick, height - 2 * thick),
        (x + width - thick, y + thick, thick, height - 2 * thick),
    ):
        drawing.hatch(bx, by, bw, bh, 4)
    drawing.box(x, y, width, height, HEAVY)
    drawing.box(x + thick, y + thick, width - 2 * thick, height - 2 * thick, MEDIUM)


def _room(drawing: Drawing, x: float, y: float, width_ft: float, height_ft: float, name: str, number: int) -> None:
    width, height = width_ft * FOOT, height_ft * FOOT
    drawing.box(x, y, width, height, MEDIUM)
    drawing.text(x + width / 2 - 4 * len(name), y + height / 2 + 6, 14, name, bold=True)
    drawing.box(x + width / 2 - 18, y + height / 2 - 18, 36, 18, LIGHT, color=RED)
    drawing.text(x + width / 2 - 11, y + height / 2 - 13, 11, str(number), color=RED)
    drawing.text(x + width / 2 - 30, y + height / 2 - 32, 8, f"{width_ft * height_ft:,.0f} SF", color=GRAY)


def _door(drawing: Drawing, x: float, y: float, quarter: int) -> None:
    """Draws a door leaf and its swing into one of the four quarters."""
    leaf = 3 * FOOT
    angle = quarter * math.pi / 2
    drawing.line(x, y, x + leaf * math.cos(angle), y + leaf * math.sin(angle), MEDIUM, color=BLUE)
    drawing.arc(x, y, leaf, [quarter], FINE, color=BLUE)


def _floor_plan() -> Drawing:
    drawing = Drawing(36, 24)
    x, y = 5.5 * INCH, 5.0 * INCH
    columns, rows = (0, 20, 38, 60, 84, 96), (0, 18, 30, 52)
    _grid(drawing, x, y, columns, rows)
    _walls(drawing, x, y, columns[-1], rows[-1])
    names = iter(
        (
            "KITCHEN",
            "DINING",
            "LIVING",
            "STUDY",
            "MUD",
            "HALL",
            "BATH",
            "STAIR",
            "GALLERY",
            "LAUNDRY",
            "BEDROOM 1",
            "BEDROOM 2",
            "FAMILY",
            "GUEST",
            "CLOSET",
        )
    )
    number = 101
    for low, high in itertools.pairwise(rows):
        for left, right in itertools.pairwise(columns):
            name = next(names)
            rx, ry = x + left * FOOT, y + low * FOOT
            if name in ("KITCHEN", "BATH", "LAUNDRY"):
                for step in range(1, int(right - left) * 2):
                    drawing.line(rx + step * FOOT / 2, ry, rx + step * FOOT / 2, ry + (high - low) * FOOT, FINE, color=GRAY)
                for step in range(1, int(high - low) * 2):
                    drawing.line(rx, ry + step * FOOT / 2, rx + (right - left) * FOOT, ry + step * FOOT / 2, FINE, color=GRAY)
            _room(drawing, rx, ry, right - left, high - low, name, number)
            _door(drawing, rx + 4 * FOOT, ry, number % 2)
            if name == "STAIR":
                for tread in range(15):
                    drawing.line(rx + (5 + tread) * FOOT, ry + 1 * FOOT, rx + (5 + tread) * FOOT, ry + 3.2 * FOOT)
                drawing.text(rx + 5 * FOOT, ry + 3.5 * FOOT, 9, "UP 15R")
            number += 1
    _notes(drawing, x, 2.6 * INCH)
    return drawing


def _notes(drawing: Drawing, x: float, y: float) -> None:
    drawing.text(x, y, 15, "GENERAL NOTES", bold=True)
    for index, note in enumerate(
        (
            "ALL DIMENSIONS ARE TO FACE OF STUD UNLESS NOTED OTHERWISE.",
            "VERIFY ALL DIMENSIONS IN THE FIELD BEFORE WORK BEGINS.",
            "DOOR AND WINDOW ROUGH OPENINGS AS THE MANUFACTURER REQUIRES.",
            "SMOKE DETECTORS IN EVERY BEDROOM AND ON EVERY STOREY.",
        )
    ):
        drawing.text(x, y - (index + 1) * 16, 10, f"{index + 1}.  {note}")


def _elevations() -> Drawing:
    drawing = Drawing(36, 24)
    for title, y in (("SOUTH ELEVATION", 13.0 * INCH), ("NORTH ELEVATION", 3.5 * INCH)):
        x, width, storey = 3.0 * INCH, 96 * FOOT, 10 * FOOT
        drawing.line(x - 1 * INCH, y, x + width + 1 * INCH, y, HEAVY)
        drawing.box(x, y, width, 2 * storey, MEDIUM)
        for course in range(1, 60):
            drawing.line(x, y + course * FOOT / 3, x + width, y + course * FOOT / 3, FINE, color=GRAY)
        drawing.path(
            [(x - 2 * FOOT, y + 2 * storey), (x + width / 2, y + 3.6 * storey), (x + width + 2 * FOOT, y + 2 * storey)],
            HEAVY,
            closed=True,
        )
        for seam in range(1, 48):
            sx = x + seam * width / 48
            rise = (1 - abs(seam - 24) / 24) * 1.5 * storey
            drawing.line(sx, y + 2 * storey, sx, y + 2 * storey + rise, FINE, color=GRAY)
        for floor in range(2):
            for window in range(9):
                wx, wy = x + (4 + window * 10.2) * FOOT, y + floor * storey + 3 * FOOT
                drawing.fill(wx, wy, 5 * FOOT, 5 * FOOT, (0.86, 0.92, 0.97))
                drawing.box(wx, wy, 5 * FOOT, 5 * FOOT, MEDIUM)
                drawing.line(wx + 2.5 * FOOT, wy, wx + 2.5 * FOOT, wy + 5 * FOOT)
                drawing.line(wx, wy + 2.5 * FOOT, wx + 5 * FOOT, wy + 2.5 * FOOT)
            drawing.line(x - 1 * INCH, y + floor * storey, x - 0.2 * INCH, y + floor * storey, FINE, color=BLUE)
            drawing.text(x - 1 * INCH, y + floor * storey + 4, 10, f"EL. {100 + floor * 10}'-0\"", color=BLUE)
        drawing.text(x, y - 0.6 * INCH, 22, title, bold=True)
    return drawing


def _foundation() -> Drawing:
    drawing = Drawing(24, 18)
    x, y = 3.2 * INCH, 3.4 * INCH
    columns, rows = (0, 14, 28, 44, 60), (0, 16, 30, 44)
    _grid(drawing, x, y, columns, rows)
    _walls(drawing, x, y, columns[-1], rows[-1], 1.0)
    for row in rows:
        for column in columns:
            fx, fy = x + column * FOOT, y + row * FOOT
            drawing.box(fx - 1.5 * FOOT, fy - 1.5 * FOOT, 3 * FOOT, 3 * FOOT, LIGHT, color=RED)
            drawing.fill(fx - 0.4 * FOOT, fy - 0.4 * FOOT, 0.8 * FOOT, 0.8 * FOOT, BLACK)
            drawing.text(fx + 0.6 * FOOT, fy + 0.6 * FOOT, 7, "F-3", color=RED)
    for joist in range(1, 59):
        drawing.line(x + joist * FOOT, y + 1 * FOOT, x + joist * FOOT, y + 43 * FOOT, FINE, color=GRAY, dash="9 5")
    drawing.text(x, 1.2 * INCH, 12, 'CONCRETE f\'c = 3,000 PSI AT 28 DAYS. REBAR GRADE 60. SLAB 4" ON 6" GRAVEL.', bold=True)
    return drawing
