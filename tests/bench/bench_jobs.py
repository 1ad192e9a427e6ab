"""Whole jobs through the embedded stack.

``python -m tests.bench.bench_jobs [--unwatched] [--layout LAYOUT] [--original SHEET,SHEET,...] FILE.pdf ...``

Prints a Markdown table: sheets, tiles, bytes and dollars beside their forecasts; seconds from the request to the final state, those of the
receipt beside their forecast; CPU seconds of all processes, and of each kind; the peak memory of the tile worker and of its largest render
child.
With ``--original``, the original pipeline (``vips dzsave`` with poppler, page by page)
does the named sheets of each file in the same run, onto the same disk. Everything is written below ``--directory``.
"""

import argparse
import mmap
import shutil
import subprocess
import sys
import tempfile
import time
from operator import itemgetter
from pathlib import Path
from typing import Any

import httpx2

from activities.bucket.records import Layout
from deploy.stack import Stack
from tests.bench.usage import CHILDREN, Usage, kind_in

UPLOADS = "/v1/organizations/local/projects/demo/plans/bench/uploads"
CHILDREN_BYTES = 3 << 30


def use_memory() -> None:
    """Uses as much memory as the render children will. A virtual machine may get it from its host only then, and that takes CPU time."""
    with mmap.mmap(-1, CHILDREN_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        for start in range(0, CHILDREN_BYTES, 4096):
            memory[start] = 1


def run_job(stack: Stack, pdf: Path, *, is_watched: bool, layout: Layout = Layout.EXPLODED) -> tuple[dict[str, Any], float]:
    """Sends a PDF and waits for its final state, as a client that watches, or by the ``manifest.json`` in the bucket's directory.

    Returns:
        The final state and the seconds.
    """
    use_memory()
    begun = time.monotonic()
    with httpx2.Client(base_url=stack.api_url, timeout=30) as client:
        with pdf.open("rb") as body:
            headers = {"Content-Type": "application/pdf", "Content-Length": str(pdf.stat().st_size)}
            response = client.post(UPLOADS, params={"layout": layout}, content=body, headers=headers)
        response.raise_for_status()
        upload = response.headers["Location"]
        if is_watched:
            with client.stream("GET", f"{upload}/events") as events:
                for line in events.iter_lines():
                    if line.startswith("event: end"):
                        break
        else:
            while not any(stack.data_dir.glob("bucket/organizations/*/projects/*/plans/*/uploads/*/manifest.json")):
                time.sleep(0.05)
        seconds = time.monotonic() - begun
        return client.get(upload).json(), seconds


def original_s(pdf: Path, sheet: int, directory: Path) -> float:
    """Seconds that the original pipeline takes for one sheet; ``sheet`` is 1-based."""
    target = directory / "original"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    source = f"{pdf}[page={sheet - 1},dpi=300]"
    begun = time.monotonic()
    subprocess.run(["vips", "dzsave", source, str(target / "out"), "--tile-size", "256", "--overlap", "1"], check=True)
    seconds = time.monotonic() - begun
    shutil.rmtree(target)
    return seconds


def main() -> None:
    """Runs every job in a stack of its own and prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--original", default="", help="1-based numbers of sheets, for the original pipeline")
    parser.add_argument("--unwatched", action="store_true", help="no client watches or asks")
    parser.add_argument("--layout", type=Layout, default=Layout.EXPLODED, help=f"of the sheets: {', '.join(Layout)}")
    parser.add_argument("--directory", type=Path, default=Path("/dev/shm"), help="where everything is written")  # noqa: S108
    arguments = parser.parse_args()
    print(
        "| file | state | sheets | tiles | forecast | MB | forecast | $ | forecast | s | receipt s | forecast | CPU s "
        "| worker MB | child MB | original pipeline |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    for pdf in arguments.files:
        with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
            directory = Path(name)
            stack = Stack(directory / "stack", port=0, temporal_ports=(0, 0))
            stack.start()
            usage = Usage(kind_in(stack))
            usage.wait_until_idle()
            idle = usage.by_kind()
            with usage.watching():
                status, seconds = run_job(stack, pdf, is_watched=not arguments.unwatched, layout=arguments.layout)
            stack.stop()
            originals = [
                f"sheet {sheet}: {original_s(pdf, int(sheet), directory):.1f} s" for sheet in filter(None, arguments.original.split(","))
            ]
            busy = {kind: seconds - idle.get(kind, 0) for kind, seconds in usage.by_kind().items()}
            parts = ", ".join(f"{kind} {seconds:.1f}" for kind, seconds in sorted(busy.items(), key=itemgetter(1), reverse=True))
            forecast, receipt = status["forecast"], status["receipt"]
            worker_mb, child_mb = (usage.peak_bytes[kind] / 1e6 for kind in ("worker-tile", CHILDREN))
            print(
                f"| {pdf.name} | {status['status']} | {status['completedPages']} of {status['totalPages']} "
                f"| {receipt['tiles']:,} | {forecast['tiles']:,} "
                f"| {receipt['bytes'] / 1e6:.1f} | {forecast['bytesLow'] / 1e6:.1f} to {forecast['bytesHigh'] / 1e6:.1f} "
                f"| {receipt['dollars']:.4f} | {forecast['dollars']:.4f} "
                f"| {seconds:.1f} | {receipt['seconds']:.1f} | {forecast['seconds']:.1f} "
                f"| {sum(busy.values()):.1f}: {parts} | {worker_mb:.0f} | {child_mb:.0f} "
                f"| {', '.join(originals) or '-'} |"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
