"""The memory of render children: ``python -m tests.bench.bench_memory [--children N] FILE.pdf ...``.

Prints a Markdown table of each file: the peak of the child that had the most memory, in MB; how much of it was anonymous, which is what the
memory limit counts; the sheet during which the child reached its peak; CPU seconds of all children; a digest of all tiles: two versions
draw the same if it is the same.

The peak is ``VmHWM``, the most memory that was resident. It counts mapped files too: about 30 MB of libraries, which all processes share.
The anonymous part is looked at every 10 ms, so it may miss the peak by a little.
"""

import argparse
import asyncio
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from activities.bucket.records import UploadOptions
from activities.interface import Document, TilePage
from activities.render.child import ChildPool
from activities.render.tilefile import TILES

OPTIONS = UploadOptions()
TICKS = os.sysconf("SC_CLK_TCK")
LOOK_S = 0.01


def children_of(pid: int) -> set[int]:
    """The processes that a process has started."""
    return {int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()}


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Child:
    """A render child, and the most memory that it had."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._pool = ChildPool(1)
        self._pid = 0
        self.peak = self.anonymous = self.sheet = 0
        self.cpu_s = 0.0

    async def start(self) -> Document:
        """Starts the child by counting the pages. No two children may start at once."""
        before = children_of(os.getpid())
        document = await self._pool.count_pages("bench", self._source, OPTIONS, 2000, lambda: None)
        (server,) = children_of(os.getpid()) - before
        (self._pid,) = children_of(server)
        return document

    async def draw(self, pages: Iterator[TilePage], directory: Path, digests: dict[int, bytes]) -> None:
        """Draws pages until none is left, then ends the child."""
        for page in pages:
            with tempfile.TemporaryDirectory(dir=directory) as name:
                drawing = asyncio.create_task(self._pool.tile_page("bench", self._source, page, Path(name), lambda: None))
                while not drawing.done():
                    await asyncio.wait({drawing}, timeout=LOOK_S)
                    self._look(page.number)
                drawing.result()
                digests[page.number] = hashlib.sha256((Path(name) / TILES).read_bytes()).digest()
        self.cpu_s = cpu_s(self._pid)
        await self._pool.close()

    def _look(self, sheet: int) -> None:
        status = Path(f"/proc/{self._pid}/status").read_text()
        peak, anonymous = (int(status.split(f"{name}:")[1].split()[0]) * 1024 for name in ("VmHWM", "RssAnon"))
        self.anonymous = max(self.anonymous, anonymous)
        if peak > self.peak:
            self.peak, self.sheet = peak, sheet


async def measure(source: Path, count: int, directory: Path) -> str:
    """A row of the table."""
    children = [Child(source) for _ in range(count)]
    for child in children:
        document = await child.start()
    pages = [TilePage("", page.number, page.width, page.height, OPTIONS) for page in document.pages if not page.reason]
    digests: dict[int, bytes] = {}
    left = iter(pages)
    await asyncio.gather(*(child.draw(left, directory, digests) for child in children))
    most = max(children, key=lambda child: child.peak)
    digest = hashlib.sha256(b"".join(digests[number] for number in sorted(digests))).hexdigest()[:16]
    seconds = sum(child.cpu_s for child in children)
    return (
        f"| {source.name} | {len(pages)} | {most.peak / 1e6:.0f} | {most.anonymous / 1e6:.0f} | {most.sheet} | {seconds:.1f} | {digest} |"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--children", type=int, default=2, help="that draw at once")
    arguments = parser.parse_args()
    print("| file | sheets | peak MB of a child | of it anonymous | at sheet | CPU s | digest |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        for source in arguments.files:
            print(asyncio.run(measure(source, arguments.children, Path(name))), flush=True)


if __name__ == "__main__":
    main()
