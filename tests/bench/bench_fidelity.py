"""Second opinions: the pages of PDFs as SiteLink, poppler and MuPDF draw them: ``python -m tests.bench.bench_fidelity FILE.pdf ...``.

Poppler is ``pdftoppm``. MuPDF is ``mutool``, or a Python with PyMuPDF that ``--mupdf-python`` names. A program that is not there is said
and left out; neither is a dependency of SiteLink. Each program gets a process of its own for each file, with a limit of seconds.

Two pictures are compared in squares of 8 px: a square differs if the means of its pixels differ by more than ``TOLERANCE`` of 255 in one
colour. So anti-aliasing and shifts by less than a pixel do not count. PDFium draws a line that is thinner than a pixel one pixel wide, and
MuPDF draws it as light as it is thin: such lines differ at 72 dpi, and hardly at 150.

Prints the pages as a Markdown table, those first that differ most from both others. ``--pictures DIRECTORY`` gets the three pictures of
each page side by side.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops

SQUARE_PX = 8
TOLERANCE = 40
WIDEST_PX = 1400
"""Width of a picture in ``--pictures``."""

BY_PYMUPDF = """
import sys, pymupdf
source, directory, dpi, most = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
document = pymupdf.open(source)
if document.needs_pass: sys.exit("a password is needed")
for number in range(min(most, document.page_count)):
    try: document[number].get_pixmap(dpi=dpi, alpha=False).save(f"{directory}/{number + 1}.ppm")
    except Exception as error: print(number + 1, error, file=sys.stderr)
"""


@dataclass(frozen=True)
class Compared:
    """A page as SiteLink draws it, beside the others.

    Args:
        file: The name of the file.
        number: 1-based.
        shares: The share of squares that differ: from poppler, from MuPDF, and between these two; None where one has no picture.
        notes: The types of the sheet's notes.
    """

    file: str
    number: int
    shares: tuple[float | None, float | None, float | None]
    notes: tuple[str, ...]

    @property
    def rank(self) -> tuple[float, float]:
        """The least, then the largest difference from another program."""
        known = [share for share in self.shares[:2] if share is not None]
        return (min(known), max(known)) if known else (0.0, 0.0)


def draw(source: Path, directory: Path, dpi: int, most: int) -> None:
    """Draws the pages as SiteLink does, to ``N.ppm``, and writes the types of their notes to ``N.txt``."""
    from activities.bucket.records import UploadOptions
    from activities.render.measure import measure
    from activities.render.pdf_file import PdfFile
    from activities.render.raster import PixelBuffer
    from activities.render.raster import draw as draw_page

    options = UploadOptions(dpi=dpi)
    pdf = PdfFile(source, options=options)
    buffer = PixelBuffer()
    for page in measure(pdf, options, 1_000_000).pages[:most]:
        if page.reason is None:
            drawn = draw_page(pdf, page.number, page.width, page.height, buffer)
            Image.frombytes("RGB", (page.width, page.height), bytes(drawn.pixels)).save(directory / f"{page.number}.ppm")
            (directory / f"{page.number}.txt").write_text(
                " ".join(note.type for note in (*page.notes, *pdf.contents.notes(page.number - 1), *drawn.notes))
            )


def by_others(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """The command of each program that is there, with ``SOURCE`` and ``DIRECTORY`` in it."""
    dpi, most = str(arguments.dpi), str(arguments.most_pages)
    commands = {}
    if shutil.which("pdftoppm"):
        commands["poppler"] = ["pdftoppm", "-r", dpi, "-l", most, "-cropbox", "SOURCE", "DIRECTORY/page"]
    if shutil.which("mutool"):
        commands["mupdf"] = ["mutool", "draw", "-q", "-r", dpi, "-o", "DIRECTORY/%d.ppm", "SOURCE", f"1-{most}"]
    elif arguments.mupdf_python:
        commands["mupdf"] = [arguments.mupdf_python, "-c", BY_PYMUPDF, "SOURCE", "DIRECTORY", dpi, most]
    for name in {"poppler", "mupdf"} - commands.keys():
        print(f"no {name} here", file=sys.stderr)
    return commands


def run(command: Sequence[str], source: Path, directory: Path, timeout_s: float) -> str:
    """Has a program draw a file; returns why it failed, if it did."""
    directory.mkdir()
    filled = [part.replace("SOURCE", str(source)).replace("DIRECTORY", str(directory)) for part in command]
    try:
        ended = subprocess.run(filled, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return f"not done after {timeout_s:g} s"
    lines = ended.stderr.decode(errors="replace").splitlines() or [""]
    return "" if ended.returncode == 0 else f"exit code {ended.returncode}: {lines[-1][-160:]}"


def pictures(directory: Path) -> dict[int, Path]:
    """The pictures in a directory by page number."""
    return {int(path.stem.removeprefix("page-")): path for path in directory.glob("*.ppm")}


def opened(path: Path | None, size: tuple[int, int] | None = None) -> Image.Image | None:
    """A picture, at this size if one is given; None if there is none, or it is cut off."""
    if path is None:
        return None
    with suppress(OSError), Image.open(path) as image:
        picture = image.convert("RGB")
        return picture if size is None or picture.size == size else picture.resize(size, Image.Resampling.BOX)
    return None


def difference(one: Image.Image | None, other: Image.Image | None) -> float | None:
    """The share of squares that differ."""
    if one is None or other is None:
        return None
    bands = ImageChops.difference(one.reduce(SQUARE_PX), other.reduce(SQUARE_PX)).split()
    largest = ImageChops.lighter(ImageChops.lighter(bands[0], bands[1]), bands[2])
    return sum(largest.histogram()[TOLERANCE + 1 :]) / (largest.width * largest.height)


def compare(source: Path, arguments: argparse.Namespace, others: dict[str, list[str]]) -> list[Compared]:
    """Compares the pages of a file."""
    with tempfile.TemporaryDirectory() as scratch:
        drawing = ["--draw", "SOURCE", "--pictures", "DIRECTORY", "--dpi", str(arguments.dpi), "--most-pages", str(arguments.most_pages)]
        commands = {"ours": [sys.executable, "-m", "tests.bench.bench_fidelity", *drawing], **others}
        for name, command in commands.items():
            if reason := run(command, source, Path(scratch, name), arguments.timeout_s):
                print(f"{source.name}: {name}: {reason}", file=sys.stderr)
        made = {name: pictures(Path(scratch, name)) for name in commands}
        rows = []
        for number, path in sorted(made["ours"].items()):
            ours = opened(path)
            if ours is None:
                continue
            poppler, mupdf = (opened(made.get(name, {}).get(number), ours.size) for name in ("poppler", "mupdf"))
            shares = (difference(ours, poppler), difference(ours, mupdf), difference(poppler, mupdf))
            rows.append(Compared(source.name, number, shares, tuple(path.with_suffix(".txt").read_text().split())))
            if arguments.pictures and max(rows[-1].rank) > arguments.least_share:
                together(ours, poppler, mupdf).save(arguments.pictures / f"{source.stem[:40]}-{number}.png")
        return rows


def together(*drawn: Image.Image | None) -> Image.Image:
    """Pictures side by side; a missing one is gray."""
    first = next(picture for picture in drawn if picture is not None)
    width, height = first.size
    whole = Image.new("RGB", (len(drawn) * (width + 4), height), "magenta")
    for place, picture in enumerate(drawn):
        whole.paste(picture or Image.new("RGB", first.size, "gray"), (place * (width + 4), 0))
    whole.thumbnail((3 * WIDEST_PX, 3 * WIDEST_PX))
    return whole


def percent(share: float | None) -> str:
    """A share, to be read."""
    return "-" if share is None else f"{100 * share:.2f} %"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE.pdf")
    parser.add_argument("--dpi", type=int, default=100)
    parser.add_argument("--most-pages", type=int, default=40, help="pages of a file")
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--timeout-s", type=float, default=60)
    parser.add_argument("--mupdf-python", help="a Python with PyMuPDF")
    parser.add_argument("--pictures", type=Path, help="gets the pictures of the pages that differ")
    parser.add_argument("--least-share", type=float, default=0.002, help="of squares that differ, for a picture")
    parser.add_argument("--draw", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None  # a whole sheet is larger than Pillow expects of a picture
    if arguments.draw:
        draw(arguments.draw, arguments.pictures, arguments.dpi, arguments.most_pages)
        return
    others = by_others(arguments)
    if arguments.pictures:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
    rows = [row for source in arguments.files for row in compare(source, arguments, others)]
    rows.sort(key=lambda row: row.rank, reverse=True)
    print(f"{len(rows)} pages\n\n| page | ours, poppler | ours, MuPDF | poppler, MuPDF | notes |\n|---|---|---|---|---|")
    for row in rows[: arguments.rows]:
        print(f"| {row.file} {row.number} | {' | '.join(map(percent, row.shares))} | {' '.join(row.notes)} |")


if __name__ == "__main__":
    main()
