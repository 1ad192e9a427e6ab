"""Seconds and CPU a sheet: our calls in one warm process, and in a warm child, beside ``vips dzsave plan.pdf[page=N,dpi=300]``.

``VIPS_CONCURRENCY=1 python -m tests.bench.bench_render plan.pdf [PAGE ...]`` prints a table; all files go to /dev/shm.
"""

import argparse
import asyncio
import os
import resource
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from activities.bucket.records import UploadOptions
from activities.interface import TilePage
from activities.render import raster
from activities.render.child import ChildPool
from activities.render.measure import measure
from activities.render.pdf_file import PdfFile
from activities.render.pyramid import turn_off_cache, write_sheet

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


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pdf", type=Path)
    parser.add_argument("pages", type=int, nargs="*", help="numbers from 1; without, all")
    arguments = parser.parse_args()
    turn_off_cache()
    pdf = PdfFile(arguments.pdf)
    measured = {page.number: page for page in measure(pdf, OPTIONS, 2000).pages if page.reason is None}
    pages = [TilePage("", number, measured[number].width, measured[number].height, OPTIONS) for number in arguments.pages or measured]
    buffer = raster.PixelBuffer()
    raster.draw(pdf, pages[0].number, pages[0].width, pages[0].height, buffer)  # warm, as a child is
    has_original = shutil.which("vips") is not None
    print("CPU seconds a sheet in a bare warm process; wall seconds in a warm child; the original pipeline's wall and CPU seconds")
    print(f"{'page':>5} {'px':>14} | {'draw':>6} {'tile':>6} {'CPU':>6} | {'child':>6} | {'original':>8} {'CPU':>6} {'ratio':>6}")
    sums = [0.0] * 5
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        directory = Path(name)
        children = asyncio.run(in_child(arguments.pdf, pages, directory))
        for page, child_s in zip(pages, children, strict=True):
            target = Path(tempfile.mkdtemp(dir=directory))
            started = cpu_s(resource.RUSAGE_SELF)
            pixels = raster.draw(pdf, page.number, page.width, page.height, buffer).pixels
            drawn = cpu_s(resource.RUSAGE_SELF)
            write_sheet(pixels, page.width, page.height, OPTIONS, target)
            draw, tile = drawn - started, cpu_s(resource.RUSAGE_SELF) - drawn
            old_s, old_cpu = original(arguments.pdf, page.number, target) if has_original else (0.0, 0.0)
            shutil.rmtree(target)
            ratio = old_s / child_s
            print(
                f"{page.number:>5} {f'{page.width} x {page.height}':>14} | {draw:6.2f} {tile:6.2f} {draw + tile:6.2f} | {child_s:6.2f} |"
                f" {old_s:8.2f} {old_cpu:6.2f} {ratio:5.1f}x"
            )
            sums = [total + value for total, value in zip(sums, (draw, tile, child_s, old_s, old_cpu), strict=True)]
    mean = [total / len(pages) for total in sums]
    print(
        f"{'mean':>5} {'':>14} | {mean[0]:6.2f} {mean[1]:6.2f} {mean[0] + mean[1]:6.2f} | {mean[2]:6.2f} |"
        f" {mean[3]:8.2f} {mean[4]:6.2f} {mean[3] / mean[2]:5.1f}x"
    )
    pdf.close()


if __name__ == "__main__":
    main()
