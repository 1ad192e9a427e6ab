"""CPU seconds a sheet in one warm process, seconds in a warm child, beside ``vips dzsave plan.pdf[page=N,dpi=300]``.

``VIPS_CONCURRENCY=1 python -m tests.bench.bench_render plan.pdf[:PAGE,...] ...`` prints a table; all files go to /dev/shm. Columns: drawing
as the cutter reads it, and as libvips does; tiling by libvips' dzsave and by the cutter, their ratio, and the bytes beside dzsave's;
writing the cutter's tiles into a directory, one after the other. So drawing, cutting and writing alone can be set beside a whole job's.
"""

import argparse
import asyncio
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from activities.bucket.dzi import Pyramid
from activities.bucket.location import BucketSettings
from activities.bucket.records import UploadOptions
from activities.bucket.storage import Bucket
from activities.interface import TilePage
from activities.render import raster
from activities.render.child import ChildPool
from activities.render.cutter import Cutter
from activities.render.measure import measure
from activities.render.pdf_file import PdfFile
from activities.render.pyramid import turn_off_cache, write_sheet
from activities.render.tilefile import TILES, TileFile, new_files

OPTIONS = UploadOptions()


def cpu_s(who: int) -> float:
    """CPU seconds used so far."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def original(source: Path, page_number: int, directory: Path) -> tuple[float, float]:
    """Wall and CPU seconds of the original pipeline's command."""
    command = ["vips", "dzsave", f"{source}[page={page_number - 1},dpi={OPTIONS.dpi}]", str(directory / "original")]
    command += ["--tile-size", str(OPTIONS.tile_size), "--overlap", str(OPTIONS.overlap)]
    wall, cpu = time.perf_counter(), cpu_s(resource.RUSAGE_CHILDREN)
    # Unlike our own libvips, it may use all cores.
    environment = {name: value for name, value in os.environ.items() if name != "VIPS_CONCURRENCY"}
    subprocess.run(command, check=True, env=environment)
    return time.perf_counter() - wall, cpu_s(resource.RUSAGE_CHILDREN) - cpu


async def in_child(source: Path, pages: list[TilePage], directory: Path) -> list[float]:
    """Wall seconds of each page through the pool, one child, warmed by the first page."""
    pool = ChildPool(1)
    seconds = []
    try:
        for page in pages[:1] + pages:
            target = Path(tempfile.mkdtemp(dir=directory))
            started = time.perf_counter()
            await pool.tile_page("bench", source, page, target, lambda: None)
            seconds.append(time.perf_counter() - started)
            shutil.rmtree(target)
    finally:
        await pool.close()
    return seconds[1:]


def put_s(page: TilePage, tile_file: Path, directory: Path) -> float:
    """CPU seconds to write every tile of a sheet into a bucket that is a directory."""
    target = Path(tempfile.mkdtemp(dir=directory))
    bucket = Bucket(BucketSettings(target.as_uri()))
    pyramid = Pyramid(page.width, page.height, OPTIONS.tile_size, OPTIONS.overlap)
    with TileFile(tile_file.parent, pyramid) as tiles:
        begun = cpu_s(resource.RUSAGE_SELF)
        for place in pyramid.tiles():
            bucket.put(*tiles.tile(*place))
        seconds = cpu_s(resource.RUSAGE_SELF) - begun
    shutil.rmtree(target)
    return seconds


def tiling(page: TilePage, pixels: memoryview, cutter: Cutter | None, directory: Path, rounds: int) -> tuple[float, int, float]:
    """CPU seconds to cut and encode drawn pixels, the median; bytes of the tile file; CPU seconds to write the tiles, the median."""
    seconds, size, writing = [], 0, []
    for _ in range(rounds):
        target = Path(tempfile.mkdtemp(dir=directory))
        begun = cpu_s(resource.RUSAGE_SELF)
        with new_files(target) as files:
            write_sheet(pixels, page.width, page.height, OPTIONS, *files, cutter)
        seconds.append(cpu_s(resource.RUSAGE_SELF) - begun)
        size = (target / TILES).stat().st_size
        writing.append(put_s(page, target / TILES, directory))
        shutil.rmtree(target)
    return statistics.median(seconds), size, statistics.median(writing)


def once(source: Path, cutter: Cutter | None, directory: Path) -> None:
    """Prints the CPU seconds to draw, cut and write every page of a document once, as a job does."""
    pdf, buffer = PdfFile(source), raster.PixelBuffer()
    pages = [TilePage("", page.number, page.width, page.height, OPTIONS) for page in measure(pdf, OPTIONS, 2000).pages if not page.reason]
    pdf.close()
    pdf, target = PdfFile(source), Path(tempfile.mkdtemp(dir=directory))
    drawing = cutting = writing = 0.0
    for page in pages:
        begun = cpu_s(resource.RUSAGE_SELF)
        pixels = raster.draw(pdf, page.number, page.width, page.height, buffer, blue_first=cutter is not None).pixels
        drawn = cpu_s(resource.RUSAGE_SELF)
        with new_files(target) as files:
            write_sheet(pixels, page.width, page.height, OPTIONS, *files, cutter)
        drawing, cutting = drawing + drawn - begun, cutting + cpu_s(resource.RUSAGE_SELF) - drawn
        writing += put_s(page, target / TILES, directory)
    pdf.close()
    print(f"{source.name}, once: draw {drawing:.1f}, cut {cutting:.1f}, put {writing:.1f}, together {drawing + cutting + writing:.1f}")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="+", help="plan.pdf, or plan.pdf:1,5 for some pages")
    parser.add_argument("--rounds", type=int, default=5, help="each number is the median of so many rounds; the original runs once")
    parser.add_argument("--no-original", action="store_true", help="leave the original pipeline out")
    parser.add_argument("--once", action="store_true", help="only draw, cut and write each page of the files once, beside whole jobs")
    arguments = parser.parse_args()
    turn_off_cache()
    cutter = Cutter.find()
    if arguments.once:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
            for source in arguments.pages:
                once(Path(source), cutter, Path(name))
        return
    has_original = shutil.which("vips") is not None and not arguments.no_original
    print("CPU seconds in a bare warm process; wall seconds in a warm child; the original pipeline's wall and CPU seconds")
    heads = [f"{'page':>24} {'px':>14}", f"{'draw':>6} {'RGB':>6}", f"{'dzsave':>6} {'cutter':>6} {'ratio':>6} {'bytes':>6}"]
    print(" | ".join((*heads, f"{'put':>6}", f"{'child':>6}", f"{'original':>8} {'CPU':>6}")))
    rows = []
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        for argument in arguments.pages:
            path, _, numbers = argument.partition(".pdf:")
            source = Path(path if not numbers else f"{path}.pdf")
            rows += _rows(
                source, [int(number) for number in numbers.split(",") if number], cutter, Path(name), arguments.rounds, has_original
            )
    sums = [sum(values) for values in zip(*rows, strict=True)]
    _print_row("sum", "", sums)


def _rows(source: Path, numbers: list[int], cutter: Cutter | None, directory: Path, rounds: int, has_original: bool) -> list[list[float]]:
    pdf = PdfFile(source)
    measured = {page.number: page for page in measure(pdf, OPTIONS, 2000).pages if page.reason is None}
    pages = [TilePage("", number, measured[number].width, measured[number].height, OPTIONS) for number in numbers or measured]
    buffer = raster.PixelBuffer()
    raster.draw(pdf, pages[0].number, pages[0].width, pages[0].height, buffer)  # warm, as a child is
    rows = []
    for page, child_s in zip(pages, asyncio.run(in_child(source, pages, directory)), strict=True):
        drawing: dict[bool, list[float]] = {True: [], False: []}
        tiles: dict[bool, tuple[float, int, float]] = {}
        for blue_first in (False, True):
            for _ in range(rounds):
                begun = cpu_s(resource.RUSAGE_SELF)
                pixels = raster.draw(pdf, page.number, page.width, page.height, buffer, blue_first=blue_first).pixels
                drawing[blue_first].append(cpu_s(resource.RUSAGE_SELF) - begun)
            tiles[blue_first] = tiling(page, pixels, cutter if blue_first else None, directory, rounds)
        old = (0.0, 0.0)
        if has_original:
            target = Path(tempfile.mkdtemp(dir=directory))
            old = original(source, page.number, target)
            shutil.rmtree(target)
        draw, reverse = statistics.median(drawing[True]), statistics.median(drawing[False])
        row = [draw, reverse, tiles[False][0], tiles[True][0], tiles[False][1], tiles[True][1], tiles[True][2], child_s, *old]
        _print_row(f"{source.stem[:20]} {page.number}", f"{page.width} x {page.height}", row)
        rows.append(row)
    pdf.close()
    return rows


def _print_row(name: str, size: str, row: list[float]) -> None:
    draw, reverse, dzsave, cut, dzsave_bytes, cut_bytes, put, child_s, old_s, old_cpu = row
    print(
        f"{name:>24} {size:>14} | {draw:6.2f} {reverse:6.2f} | {dzsave:6.2f} {cut:6.2f} {dzsave / cut:5.1f}x"
        f" {cut_bytes / dzsave_bytes:6.2f} | {put:6.2f} | {child_s:6.2f} | {old_s:8.2f} {old_cpu:6.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
