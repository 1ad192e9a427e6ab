"""Whole jobs with an S3 server that is far away.

``python -m tests.bench.bench_far [--pdf FILE.pdf] [--rounds 3] [--layout LAYOUT,...] [OPTIONS ...]``

OPTIONS are options of ``tests/resources/far.go``, joined by commas, such as ``delay=50ms`` or ``delay=20ms,error-each=100``; or ``near``,
without the proxy, which takes CPU time, too. All OPTIONS and layouts have their turn in each round. Prints medians: seconds, beside the
seconds of the first row; CPU seconds of all processes but the bucket's; requests, refused requests, the most in flight, connections;
megabytes sent, headers included, and which share of the line (``bandwidth``, in bytes a second) was in use over the whole job, and from
the first PUT of a sheet to the last; PUTs and dollars of the receipt. Then tiles are read through the API: ms of the median and of the
slowest hundredth, and tiles a second.
Everything is written below ``/dev/shm``.
"""

import argparse
import asyncio
import re
import statistics
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import httpx2

from activities.bucket.dzi import Pyramid, tile_name
from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.records import Layout
from api.paths import upload_path
from deploy.stack import Stack
from tests.bench.bench_bucket import environment, logging_server
from tests.bench.bench_jobs import run_job
from tests.bench.usage import Usage, kind_in
from tests.resources.make_pdfs import plan_set
from tests.servers.far import far_away

NEAR = "near"
READS = 3000
READERS = 40
"""Requests for tiles at once. A browser has six for each viewer."""

Row = tuple[float, ...]
"""Seconds, CPU seconds, requests, refused ones, most in flight, connections, bytes sent, bytes a second while sheets were sent, PUTs,
dollars; p50 and p99 ms of a read, tiles read a second."""


async def read_tiles(stack: Stack, status: dict[str, Any]) -> tuple[float, float, float]:
    """Reads tiles of the first sheet through the API; returns p50 and p99 in ms, and tiles a second."""
    ref, sheet = UploadRef.parse(status["ref"]), status["sheets"][0]
    url = f"{stack.api_url}{upload_path(ref)}/sheets/{ref.tiles_prefix(1).removeprefix(ref.sheets_prefix)}"
    names = (tile_name(*place) for place in Pyramid(sheet["width"], sheet["height"], 256, 1).tiles())
    waiting, taken = deque(islice(cycle(list(names)), READS)), []
    async with httpx2.AsyncClient(trust_env=False, timeout=60, limits=httpx2.Limits(max_connections=READERS)) as client:

        async def read() -> None:
            while waiting:
                begun = time.perf_counter()
                (await client.get(url + waiting.popleft())).raise_for_status()
                taken.append(time.perf_counter() - begun)

        begun = time.perf_counter()
        await asyncio.gather(*(read() for _ in range(READERS)))
        seconds = time.perf_counter() - begun
    hundredths = statistics.quantiles(taken, n=100)
    return hundredths[49] * 1000, hundredths[98] * 1000, READS / seconds


@contextmanager
def behind_proxy(settings: BucketSettings, options: str) -> Iterator[tuple[BucketSettings, Callable[[], Counter[str]]]]:
    """The bucket behind a proxy with these options, or ``near``, without one; and what has passed the proxy."""
    if options == NEAR:
        yield settings, Counter
        return
    with far_away(settings.endpoint, *(f"-{each}" for each in options.split(","))) as far:
        yield replace(settings, endpoint=far.endpoint), lambda: Counter(far.counts())


def job(pdf: Path, options: str, layout: Layout) -> Row:
    """Runs one job in a stack and a bucket of its own."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        directory = Path(name)
        with logging_server(directory) as (near, _), behind_proxy(near, options) as (settings, counts):
            stack = Stack(directory / "data", environ=environment(settings), port=0, temporal_ports=(0, 0))
            stack.start()
            usage = Usage(kind_in(stack))
            usage.wait_until_idle()
            idle, before = usage.total_s, counts()
            try:
                with usage.watching():
                    status, seconds = run_job(stack, pdf, is_watched=True, layout=layout)
                after = counts()
                reads = asyncio.run(read_tiles(stack, status))
            finally:
                stack.stop()
            assert status["status"] == "complete", status
            return (
                seconds,
                usage.total_s - idle,
                after["requests"] - before["requests"],
                after["refused"] - before["refused"],
                after["mostInFlight"],
                after["connections"] - before["connections"],
                after["bytesIn"] - before["bytesIn"],
                after["sheetsBytes"] / (after["sheetsMs"] / 1000 or 1),
                status["receipt"]["puts"],
                status["receipt"]["dollars"],
                *reads,
            )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("options", nargs="*", default=["delay=0ms", "delay=20ms", "delay=50ms", "delay=100ms"])
    parser.add_argument("--pdf", type=Path, help="default: 15 sheets of 42 x 30 inches")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layout", default="exploded", help=f"layouts, separated by commas: {', '.join(Layout)}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        pdf = arguments.pdf or Path(name) / "plan.pdf"
        if not arguments.pdf:
            pdf.write_bytes(plan_set(15, 42 * 72, 30 * 72))
        layouts = [Layout(name) for name in arguments.layout.split(",")]
        rows: dict[tuple[str, Layout], list[Row]] = {(options, layout): [] for options in arguments.options for layout in layouts}
        for _ in range(arguments.rounds):
            for (options, layout), found in rows.items():
                found.append(job(pdf, options, layout))
    names = (
        "s",
        "ratio",
        "CPU s",
        "requests",
        "refused",
        "most in flight",
        "connections",
        "MB sent",
        "of the line",
        "for sheets",
        "PUTs",
        "$",
    )
    print(f"| bucket | layout | {' | '.join(names)} | read p50 ms | p99 | tiles/s |")
    print("|---" * 17 + "|")
    first_s = 0.0
    for (options, layout), found in rows.items():
        seconds, cpu_s, requests, refused, in_flight, connections, sent, sheets_rate, puts, price, p50_ms, p99_ms, reads = (
            statistics.median(column) for column in zip(*found, strict=True)
        )
        first_s = first_s or seconds
        line = re.search(r"bandwidth=(\d+)", options)
        share = f"{sent / seconds / int(line[1]):.0%} | {sheets_rate / int(line[1]):.0%}" if line else "- | -"
        print(
            f"| {options} | {layout} "
            f"| {seconds:.1f} | {seconds / first_s:.2f} | {cpu_s:.1f} | {requests:,.0f} | {refused:,.0f} | {in_flight:.0f} "
            f"| {connections:.0f} | {sent / 1e6:.1f} | {share} | {puts:,.0f} | {price:.4f} | {p50_ms:.0f} | {p99_ms:.0f} | {reads:.0f} |"
        )


if __name__ == "__main__":
    main()
