"""Damaged PDFs through real render children: each must end by name, in time, and leave its neighbours and the host as they were.

``python -m tests.chaos.fuzz --minutes N --seed S --keep DIRECTORY CORPUS`` takes the PDFs below CORPUS and damages them by the seeds from S
on: a seed chooses the file and the damage. It prints a line for each finding, keeps the file, and counts the outcomes at the end; the exit
code is 1 if there was a finding. ``--seed S --cases 1`` rebuilds and runs one case. A finding is

1. a child that died (``RenderCrashed``), or a failure without a name,
2. a document that breaks the rules of ``Document``, or a sheet without all its tiles,
3. a run over the limit of wall time,
4. a sound sheet, drawn by the same pool at the same time, with other bytes than alone,
5. a process or a file that was left.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from activities.bucket.dzi import Pyramid
from activities.bucket.records import UploadOptions
from activities.errors import DocumentError, PageError, RenderOutOfMemory, RenderTimeout, SiteLinkError
from activities.interface import Document, TilePage
from activities.limits import DocumentLimits
from activities.render.child import ChildLimits, ChildPool
from activities.render.tilefile import LAYERS, THUMBNAIL, TILES
from tests.resources import make_pdfs
from tests.resources.mutate import mutate
from tests.unit.test_child import check_complete, fork_servers, render_children

LIMITS = ChildLimits(memory_bytes=1 << 30, cpu_s=10, wall_s=60)
MAX_PAGES = 500
MOST_SHEETS = 3
LATE_S = 30
"""A call may take so much longer than the limit of wall time: a busy machine is no finding."""

LARGEST_BYTES = 3 << 20
"""Larger files of the corpus are left out, for the sake of many cases."""

NEIGHBOUR_EVERY = 8
EXPECTED = (DocumentError, PageError, RenderTimeout, RenderOutOfMemory)


@dataclass(frozen=True)
class Recipe:
    """The source of one case: the first is damaged, and the second may give a part."""

    data: bytes
    other: bytes
    seed: int

    def build(self) -> bytes:
        """The damaged PDF."""
        return mutate(self.data, self.other, self.seed)


class Fuzzer:
    """Runs cases with one pool of two children.

    Args:
        pool: Its children have ``LIMITS``.
        directory: For the files of the cases.
        sound: The bytes of a sound sheet's files, drawn alone.
    """

    def __init__(self, pool: ChildPool, directory: Path, sound: dict[str, bytes]) -> None:
        self._pool = pool
        self._directory = directory
        self._sound = sound
        self.outcomes: Counter[str] = Counter()

    @classmethod
    @asynccontextmanager
    async def started(cls, directory: Path) -> AsyncIterator["Fuzzer"]:
        """A fuzzer with a pool of its own.

        Raises:
            AssertionError: A fork server was left.
        """
        pool = ChildPool(2, LIMITS)
        (directory / "neighbour.pdf").write_bytes(make_pdfs.plan_set(1))
        try:
            yield cls(pool, directory, await _neighbour(pool, directory))
        finally:
            await pool.close()
        assert not fork_servers(), "a fork server was left"

    async def run(self, data: bytes, seed: int, *, beside: bool = False) -> list[str]:
        """Runs one case.

        Args:
            data: The damaged PDF.
            seed: Chooses resolution and pages.
            beside: Whether a sound sheet is drawn at the same time.

        Returns:
            The findings, each a sentence.
        """
        neighbour = asyncio.create_task(_neighbour(self._pool, self._directory)) if beside else None
        source, findings = self._directory / "case.pdf", []
        source.write_bytes(data)
        rng = random.Random(~seed)  # noqa: S311 - no secret
        options = UploadOptions(dpi=rng.choice((36, 72, 150)), budget_bytes=64 << 20)
        try:
            findings += await self._upload(source, options, rng)
        finally:
            if neighbour is not None and await neighbour != self._sound:
                findings.append("a sheet drawn at the same time has other bytes than alone")
            await self._pool.retire("case")
        await self._pool.retire("neighbour")
        if render_children():
            findings.append("a render child was left")
        if left := [path.name for path in self._directory.iterdir() if path.name not in ("case.pdf", "neighbour.pdf")]:
            findings.append(f"files were left: {left}")
        return findings

    async def _upload(self, source: Path, options: UploadOptions, rng: random.Random) -> list[str]:
        findings, begun = [], time.monotonic()

        def note_fault(error: Exception) -> None:
            name = error.type if isinstance(error, SiteLinkError) else type(error).__name__
            self.outcomes[name] += 1
            if not isinstance(error, EXPECTED):
                findings.append(f"{name}: {error}")

        def note_time() -> None:
            nonlocal begun
            if time.monotonic() - begun > LIMITS.wall_s + LATE_S:
                findings.append(f"took {time.monotonic() - begun:.0f} s, limit {LIMITS.wall_s:g} s")
            begun = time.monotonic()

        try:
            document = await self._pool.count_pages("case", source, options, MAX_PAGES, _silent)
        except Exception as error:  # noqa: BLE001 (judged)
            note_fault(error)
            note_time()
            return findings
        note_time()
        self.outcomes["counted"] += 1
        findings += _broken_rules(document, options)
        pages = [page for page in DocumentLimits().check_pages(document.pages, options) if not page.reason]
        for page in rng.sample(pages, min(MOST_SHEETS, len(pages))):
            with tempfile.TemporaryDirectory() as target:
                try:
                    args = TilePage("o/p/q/u", page.number, page.width, page.height, options)
                    await self._pool.tile_page("case", source, args, Path(target), _silent)
                except Exception as error:  # noqa: BLE001 (judged)
                    note_fault(error)
                else:
                    self.outcomes["ready"] += 1
                    findings += _broken_sheet(Path(target), Pyramid(page.width, page.height))
                note_time()
        return findings


async def _neighbour(pool: ChildPool, directory: Path) -> dict[str, bytes]:
    """The bytes of the files of a sound sheet."""
    with tempfile.TemporaryDirectory() as target:
        args = TilePage("o/p/q/n", 1, 1275, 825, UploadOptions())
        await pool.tile_page("neighbour", directory / "neighbour.pdf", args, Path(target), _silent)
        return {name: (Path(target) / name).read_bytes() for name in (TILES, THUMBNAIL)}


def _silent() -> None:
    pass


def _broken_rules(document: Document, options: UploadOptions) -> Iterator[str]:
    for number, page in enumerate(document.pages, 1):
        area = page.width * page.height
        usable = page.reason is None and page.width > 0 < page.height and area * 3 <= options.budget_bytes and 0 < page.dpi <= options.dpi
        refused = page.reason in {kind.__name__ for kind in PageError.__subclasses__()} and page.detail and area == 0
        if page.number != number or not (usable or refused) or len(page.title or "") > 120:
            yield f"page {number} breaks the rules: {replace(page, notes=())}"


def _broken_sheet(target: Path, pyramid: Pyramid) -> Iterator[str]:
    if names := ({path.name for path in target.iterdir()} - {LAYERS}) ^ {TILES, THUMBNAIL}:
        yield f"a sheet has too many or too few files: {names}"
        return
    try:
        check_complete(target, pyramid)
    except (AssertionError, ValueError, OSError, KeyError) as error:
        yield f"a sheet is not whole: {error}"


def sources(corpus: Path) -> list[Path]:
    """The files that the seeds choose from."""
    return sorted(path for path in corpus.rglob("*.pdf") if 0 < path.stat().st_size <= LARGEST_BYTES)


def recipe(paths: Sequence[Path], seed: int) -> tuple[str, Recipe]:
    """The case of a seed, and the names of its files."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    path, other = rng.choice(paths), rng.choice(paths)
    return f"{path.name} {other.name}", Recipe(path.read_bytes(), other.read_bytes(), seed)


async def run(arguments: argparse.Namespace) -> int:
    """Runs cases until the time is over; returns how many findings there were."""
    paths, found = sources(arguments.corpus), 0
    arguments.keep.mkdir(parents=True, exist_ok=True)
    deadline, cases = time.monotonic() + 60 * arguments.minutes, 0
    with tempfile.TemporaryDirectory() as directory:
        async with Fuzzer.started(Path(directory)) as fuzzer:
            while time.monotonic() < deadline and cases != arguments.cases:
                seed = arguments.seed + cases
                names, case = recipe(paths, seed)
                data = await asyncio.to_thread(case.build)
                cases += 1
                findings = await fuzzer.run(data, seed, beside=cases % NEIGHBOUR_EVERY == 0)
                for finding in findings:
                    print(f"seed {seed} ({names}): {finding}", flush=True)
                if findings:
                    found += 1
                    (arguments.keep / f"{seed}.pdf").write_bytes(data)
    outcomes = ", ".join(f"{count:,} {name}" for name, count in fuzzer.outcomes.most_common())
    print(f"{cases:,} cases from seed {arguments.seed}: {outcomes}; {found:,} with findings")
    return found


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--cases", type=int, default=-1, help="end after so many cases")
    parser.add_argument("--seed", type=int, default=1, help="of the first case; each next case has the next seed")
    parser.add_argument("--keep", type=Path, default=Path("var/fuzz"), help="where the files with findings are kept")
    sys.exit(1 if asyncio.run(run(parser.parse_args())) else 0)


if __name__ == "__main__":
    main()
