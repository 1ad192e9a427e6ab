"""Every hostile file through the activities of a host: how it ends, what it takes, what it leaves.

``python -m tests.bench.bench_hostile DIRECTORY [--only GLOB ...]`` prints a table in Markdown. Columns: the pages counted, or the error
that refuses the document; how many of the first pages became ready sheets, or by which error they failed; failed attempts; seconds;
CPU seconds of the children; the largest memory of a child in MB, as ``VmHWM`` tells; what stayed: processes, files on the scratch.
The limits of a child are read from the environment, as a worker reads them.

``--beside PLAN`` draws the plan alone first, then at the same time as all these files, by the same children, and compares each object of
its sheets.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from activities.render.child import ChildLimits
from tests.one_upload import OneHost, Outcome, one_host
from tests.unit.test_child import fork_servers, render_children
from worker.settings import WorkerSettings

SAMPLE_S = 0.02


def children_cpu_s() -> float:
    """CPU seconds of the render children that have ended."""
    ticks = 0
    for server in fork_servers():
        ticks += sum(map(int, Path(f"/proc/{server}/stat").read_text().rsplit(")", 1)[1].split()[13:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


class Peak:
    """The largest memory of any render child, in bytes."""

    def __init__(self) -> None:
        self.size_bytes = 0

    async def watch(self) -> None:
        """Looks at the children again and again."""
        servers: set[int] = set()
        while True:
            servers = servers or fork_servers()
            for server in servers:
                self._look(server)
            await asyncio.sleep(SAMPLE_S)

    def _look(self, server: int) -> None:
        with suppress(OSError, IndexError):
            for pid in Path(f"/proc/{server}/task/{server}/children").read_text().split():
                status = Path(f"/proc/{pid}/status").read_text()
                self.size_bytes = max(self.size_bytes, int(status.split("VmHWM:")[1].split()[0]) << 10)


@contextmanager
def watched() -> Iterator[Peak]:
    """Watches the children's memory."""
    peak = Peak()
    task = asyncio.create_task(peak.watch())
    try:
        yield peak
    finally:
        task.cancel()


def sheets_of(outcome: Outcome) -> str:
    """How the sheets ended, in words."""
    counts = Counter(outcome.sheets.values())
    return ", ".join(f"{count} {how}" for how, count in counts.most_common()) or "-"


async def measure(host: OneHost, path: Path, pages: int) -> str:
    """Runs one file; returns its line of the table."""
    begun, cpu = time.perf_counter(), children_cpu_s()
    with watched() as peak:
        outcome = await host.run(path, lambda page: page.number <= pages)
    left = [f"process {pid}" for pid in render_children()] + host.leftovers()
    document = outcome.refusal[0] if outcome.refusal else f"{outcome.pages:,} pages"
    return (
        f"| {path.stem} | {document} | {sheets_of(outcome)} | {outcome.tries} | {time.perf_counter() - begun:.1f}"
        f" | {children_cpu_s() - cpu:.1f} | {peak.size_bytes / 1e6:.0f} | {' '.join(left) or 'nothing'} |"
        f" {' / '.join(dict.fromkeys([outcome.refusal[1]] if outcome.refusal else outcome.details.values()))} |"
    )


async def beside(plan: Path, paths: list[Path], pages: int, slots: int, limits: ChildLimits) -> None:
    """Prints whether a plan's sheets are the same beside hostile files."""

    async def bodies(others: list[Path]) -> dict[str, bytes]:
        with tempfile.TemporaryDirectory() as directory:
            async with one_host(Path(directory), slots, limits) as host:
                outcome, *ends = await asyncio.gather(*(host.run(path, lambda page: page.number <= pages) for path in (plan, *others)))
                for path, end in zip(others, ends, strict=True):
                    print(f"{path.stem}: {end.refusal[0] if end.refusal else sheets_of(end)}")
                print(f"{plan.stem}: {sheets_of(outcome)}; left: {host.leftovers() or 'nothing'}, {len(render_children())} processes")
                return host.sheets(plan)

    alone, mixed = await bodies([]), await bodies(paths)
    print(f"{len(alone):,} objects alone, {len(mixed):,} beside {len(paths)} files: {'equal' if alone == mixed else 'DIFFERENT'}")


async def run(arguments: argparse.Namespace) -> None:
    """Prints the table, or the comparison."""
    settings = WorkerSettings.from_env(os.environ)
    limits = ChildLimits(settings.render_memory_bytes, settings.render_cpu_s, settings.render_wall_s)
    paths = [path for path in sorted(arguments.directory.glob("*.pdf")) if any(map(path.match, arguments.only))]
    if arguments.beside:
        await beside(arguments.beside, paths, arguments.pages, settings.render_slots, limits)
        return
    print("| file | document | sheets | failed tries | s | CPU s | MB | left | said |\n|---|---|---|--:|--:|--:|--:|---|---|", flush=True)
    for path in paths:
        with tempfile.TemporaryDirectory() as directory:
            async with one_host(Path(directory), 1, limits) as host:
                print(await measure(host, path, arguments.pages), flush=True)
    print(f"\nleft at the end: {len(fork_servers())} fork servers")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--only", nargs="+", default=["*"], help="which files, by the names' pattern")
    parser.add_argument("--pages", type=int, default=2, help="so many pages of each file")
    parser.add_argument("--beside", type=Path, help="a plan that is drawn at the same time")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
