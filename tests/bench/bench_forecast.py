"""The bytes of tiles, from which constants of ``activities.bucket.forecast`` come: ``python -m tests.bench.bench_forecast FILE.pdf ...``.

Prints the bytes of the tiles for each pixel of the full-size level, the JPEG tables of each tile left out: of every page at 300 dpi and
quality 85, and of whole documents. Then the factors by which a quality and a resolution change them, medians of every ``--each``-th page.
Beside each number is the constant that stands now.
"""

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

from activities.bucket.dzi import Pyramid
from activities.bucket.forecast import DPI_EXPONENT, HIGH_BYTES, LOW_BYTES, TILE_BYTES, quality_factor
from activities.bucket.records import UploadOptions
from activities.interface import Page
from activities.render import raster
from activities.render.cutter import Cutter
from activities.render.measure import measure
from activities.render.pdf_file import PdfFile
from activities.render.pyramid import turn_off_cache, write_sheet
from activities.render.tilefile import TileFile, new_files

OPTIONS = UploadOptions()
QUALITIES = (1, 10, 50, 75, 89, 90, 95, 100)
RESOLUTIONS = (100, 150, 600)
MOST_PIXELS = 500_000_000
"""A resolution at which a page has more pixels is left out."""


def file_bytes(pixels: memoryview, width: int, height: int, options: UploadOptions, cutter: Cutter | None) -> int:
    """Bytes of all tiles of a sheet."""
    pyramid = Pyramid(width, height, options.tile_size, options.overlap)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        with new_files(Path(name)) as files:
            write_sheet(pixels, width, height, options, *files, cutter)
        with TileFile(Path(name), pyramid) as tiles:
            return sum(len(tiles.tile(*place)[1]) for place in pyramid.tiles())


def content(pixels: memoryview, page: Page, options: UploadOptions, cutter: Cutter | None, tables: int) -> float:
    """Bytes for each pixel, without the tables."""
    tiles = Pyramid(page.width, page.height, options.tile_size, options.overlap).tile_count
    return (file_bytes(pixels, page.width, page.height, options, cutter) - tables * tiles) / (page.width * page.height)


def main() -> None:
    """Prints the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--each", type=int, default=5, metavar="N", help="measure the factors on every N-th page only")
    arguments = parser.parse_args()
    turn_off_cache()
    cutter, buffer = Cutter.find(), raster.PixelBuffer()
    white = memoryview(bytearray(b"\xff\xff\xff"))
    tables = file_bytes(white, 1, 1, OPTIONS, cutter)
    print(f"tables of a tile: {tables} (now {TILE_BYTES})")
    densities: list[float] = []
    by_quality: dict[int, list[float]] = {quality: [] for quality in QUALITIES}
    by_dpi: dict[int, list[float]] = {dpi: [] for dpi in RESOLUTIONS}
    for file in arguments.files:
        pdf = PdfFile(file)
        pages = [page for page in measure(pdf, OPTIONS, 2000).pages if page.reason is None]
        others = {dpi: {page.number: page for page in measure(pdf, replace(OPTIONS, dpi=dpi), 2000).pages} for dpi in RESOLUTIONS}
        weighted = 0.0
        for page in pages:
            pixels = raster.draw(pdf, page.number, page.width, page.height, buffer, blue_first=cutter is not None).pixels
            density = content(pixels, page, OPTIONS, cutter, tables)
            weighted += density * page.width * page.height
            densities.append(density)
            if len(densities) % arguments.each:
                continue
            for quality in QUALITIES:
                by_quality[quality].append(content(pixels, page, replace(OPTIONS, quality=quality), cutter, tables) / density)
            for dpi in RESOLUTIONS:
                other = others[dpi][page.number]
                if other.reason is None and not other.scaled and other.width * other.height <= MOST_PIXELS:
                    pixels = raster.draw(pdf, page.number, other.width, other.height, buffer, blue_first=cutter is not None).pixels
                    by_dpi[dpi].append(content(pixels, other, OPTIONS, cutter, tables) / density)
        area = sum(page.width * page.height for page in pages)
        within = sum(LOW_BYTES <= density <= HIGH_BYTES for density in densities[len(densities) - len(pages) :])
        print(f"{file.name}: {weighted / area:.4f} bytes a pixel, {within} of {len(pages)} pages within the bounds", flush=True)
        pdf.close()
    ordered = sorted(densities)
    within = sum(LOW_BYTES <= density <= HIGH_BYTES for density in ordered)
    print(f"{len(ordered)} pages, {within} between {LOW_BYTES} and {HIGH_BYTES}; extremes {ordered[0]:.4f} and {ordered[-1]:.4f};")
    tenths = statistics.quantiles(ordered, n=10) if len(ordered) > 1 else ordered
    print("tenths: " + " ".join(f"{value:.4f}" for value in tenths))
    for quality, values in by_quality.items():
        print(f"quality {quality}: {statistics.median(values or [0]):.2f} (now {quality_factor(quality):.2f}), {len(values)} pages")
    for dpi, values in by_dpi.items():
        print(f"{dpi} dpi: {statistics.median(values or [0]):.2f} (now {(300 / dpi) ** DPI_EXPONENT:.2f}), {len(values)} pages")


if __name__ == "__main__":
    main()
