"""Render children: a hostile document ends only its own child, and no process is left."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from activities.bucket.dzi import Pyramid
from activities.bucket.records import UploadOptions
from activities.errors import (
    NoPages,
    NotAPdf,
    PageUnreadable,
    PasswordRequired,
    RenderCrashed,
    RenderFault,
    RenderOutOfMemory,
    RenderTimeout,
    SiteLinkError,
    TooManyPages,
    UnreadablePdf,
)
from activities.interface import TilePage
from activities.render.child import ChildLimits, ChildPool
from activities.render.fonts import faces
from activities.render.tilefile import THUMBNAIL, TileFile
from tests.resources import make_pdfs
from tests.waiting import DEADLINE_S, until, until_async

ROOT = Path(__file__).parents[2]
OPTIONS = UploadOptions()


def silent() -> None:
    """Ignores heartbeats."""


@asynccontextmanager
async def children(
    slots: int = 1, limits: ChildLimits | None = None, on_end: Callable[[str], None] = lambda _: None
) -> AsyncIterator[ChildPool]:
    """A pool that leaves nothing behind."""
    pool = ChildPool(slots, limits, on_end=on_end)
    try:
        yield pool
    finally:
        await pool.close()
        assert fork_servers() == set()


def fork_servers(of: int | None = None) -> set[int]:
    """The fork servers that a process has started; by default this process."""
    return {pid for pid, parent in processes().items() if parent == (of or os.getpid()) and b"activities.render.forkserver" in command(pid)}


def render_children(of: int | None = None) -> set[int]:
    """The children of those fork servers."""
    servers = fork_servers(of)
    return {pid for pid, parent in processes().items() if parent in servers}


def processes() -> dict[int, int]:
    """Every process that is no zombie, and its parent."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rsplit(")", 1)[1].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            found[int(stat.parent.name)] = int(parent)
    return found


def command(pid: int) -> bytes:
    """The command line of a process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def none_alive(pids: set[int]) -> bool:
    """Whether all of these processes have ended."""
    return pids.isdisjoint(processes())


def cpu_ticks(pid: int) -> int:
    """The CPU time that a process has used, in ticks of the kernel; for ever more of one that is gone."""
    try:
        return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))
    except (FileNotFoundError, ProcessLookupError):
        return sys.maxsize


def pending_signals(pid: int) -> int:
    """The signals that the kernel still holds back from a process; none from one that is gone."""
    try:
        return int(Path(f"/proc/{pid}/status").read_text().split("ShdPnd:")[1].split()[0], 16)
    except (FileNotFoundError, ProcessLookupError):
        return 0


def environment(pid: int) -> bytes:
    """The environment with which a process was started."""
    return Path(f"/proc/{pid}/environ").read_bytes()


class Sheets:
    """PDFs in a directory, and calls for their pages."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._targets = 0

    def source(self, data: bytes, name: str = "source.pdf") -> Path:
        """Writes a PDF."""
        path = self._directory / name
        path.write_bytes(data)
        return path

    def target(self) -> Path:
        """A new directory."""
        self._targets += 1
        path = self._directory / f"page-{self._targets}"
        path.mkdir()
        return path

    async def tile(
        self,
        pool: ChildPool,
        source: Path,
        upload: str = "a",
        number: int = 1,
        size: tuple[int, int] = (200, 100),
        beat: Callable[[], None] = silent,
    ) -> Path:
        """Tiles a page; returns the directory."""
        target = self.target()
        rendered = await pool.tile_page(upload, source, TilePage("o/p/q/u", number, *size, OPTIONS), target, beat)
        assert rendered.engines.keys() == {"pdfium", "sitelink-cutter", "sitelink-raster", *faces.VERSIONS}
        assert rendered.chroma == "4:4:4"
        return target


@pytest.fixture
def sheets(tmp_path: Path) -> Sheets:
    """A directory for PDFs and tiles."""
    return Sheets(tmp_path)


async def test_count_then_tile_gives_every_tile(sheets: Sheets) -> None:
    """The page is tiled with the geometry that was counted. Thumbnail and archive are there when the call returns."""
    source = sheets.source(make_pdfs.plan_set(2))
    async with children() as pool:
        document = await pool.count_pages("a", source, OPTIONS, 2000, silent)
        assert [(page.title, page.width, page.height) for page in document.pages] == [
            ("A-101 - Floor 1", 5100, 3300),
            ("A-102 - Floor 2", 5100, 3300),
        ]
        page = document.pages[1]
        target = await sheets.tile(pool, source, number=page.number, size=(page.width, page.height))
    with Image.open(target / THUMBNAIL) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("JPEG", (512, 331))
    check_complete(target, Pyramid(page.width, page.height))


@pytest.mark.parametrize(
    ("dzsave", "tile_size", "engine", "chroma"),
    [(False, 256, "sitelink-cutter", "4:4:4"), (True, 256, "libvips", "4:2:0"), (False, 255, "libvips", "4:2:0")],
    ids=["cutter", "setting", "odd tiles"],
)
async def test_what_cuts_the_tiles_is_told(sheets: Sheets, dzsave: bool, tile_size: int, engine: str, chroma: str) -> None:
    """Libvips cuts the tiles where the setting wants it, or the cutter cannot; both write every tile."""
    pool = ChildPool(1, dzsave=dzsave)
    target, options = sheets.target(), replace(OPTIONS, tile_size=tile_size)
    try:
        page = TilePage("o/p/q/u", 1, 900, 700, options)
        rendered = await pool.tile_page("a", sheets.source(make_pdfs.one_page()), page, target, silent)
    finally:
        await pool.close()
    assert rendered.engines.keys() & {"sitelink-cutter", "libvips"} == {engine}
    assert rendered.chroma == chroma
    check_complete(target, Pyramid(900, 700, tile_size))


def check_complete(target: Path, pyramid: Pyramid) -> None:
    """Each expected tile is in the file, or blank."""
    with TileFile(target, pyramid) as tiles:
        assert all(tiles.tile(*tile)[1] for tile in pyramid.tiles())


async def test_child_stays_for_the_upload_and_goes_with_it(sheets: Sheets) -> None:
    """The next page of the upload gets the same process, and another upload another one. A retired upload leaves no process."""
    source = sheets.source(make_pdfs.plan_set(2))
    async with children() as pool:
        await sheets.tile(pool, source)
        first = render_children()
        assert len(first) == 1
        await sheets.tile(pool, source, number=2)
        assert render_children() == first
        await sheets.tile(pool, source, upload="b")
        second = render_children()
        assert len(second) == 1
        assert second.isdisjoint(first)
        await pool.retire("a")
        assert render_children() == second
        await pool.retire("b")
        assert render_children() == set()


async def test_child_is_replaced_after_its_pages(sheets: Sheets) -> None:
    """After a number of pages, the next page gets a fresh process."""
    source = sheets.source(make_pdfs.one_page())
    async with children(limits=ChildLimits(pages_per_child=2)) as pool:
        await sheets.tile(pool, source)
        first = render_children()
        await sheets.tile(pool, source)
        assert render_children() == set()
        await sheets.tile(pool, source)
        assert render_children().isdisjoint(first)


async def test_no_more_children_than_slots(sheets: Sheets) -> None:
    """Many uploads at once are all served, and there are never more processes than slots."""
    source = sheets.source(make_pdfs.plan_set(1))
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, len(render_children()))
            await asyncio.sleep(0.05)

    async with children(slots=2) as pool:
        watching = asyncio.create_task(watch())
        await asyncio.gather(*(sheets.tile(pool, source, upload=f"u{index % 4}", size=(2550, 1650)) for index in range(12)))
        watching.cancel()
    assert most == 2


async def test_waiting_caller_beats(sheets: Sheets) -> None:
    """A caller sends heartbeats while it waits for a slot."""
    async with children() as pool:
        busy = await hanging(sheets, pool)
        beaten = asyncio.Event()
        waiting = asyncio.create_task(sheets.tile(pool, sheets.source(make_pdfs.one_page()), upload="b", beat=beaten.set))
        async with asyncio.timeout(DEADLINE_S):
            await beaten.wait()
        busy.cancel()
        await waiting


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("html_error_page", NotAPdf),
        ("cut_off", UnreadablePdf),
        ("password_needed", PasswordRequired),
        ("no_pages", NoPages),
        ("many_pages_3000", TooManyPages),
    ],
)
async def test_refusals_cross_by_name_and_leave_the_child(sheets: Sheets, name: str, error: type[SiteLinkError]) -> None:
    """The caller gets the class and the sentence from the child. The child goes on with the upload."""
    source = sheets.source(make_pdfs.ALL[name]())
    async with children() as pool:
        with pytest.raises(error) as first:
            await pool.count_pages("a", source, OPTIONS, 2000, silent)
        child = render_children()
        with pytest.raises(error) as second:
            await pool.count_pages("a", source, OPTIONS, 2000, silent)
        assert str(first.value) == str(second.value)
        assert render_children() == child


async def test_unreadable_page_leaves_the_others(sheets: Sheets) -> None:
    """One page is refused by name, and the same child tiles the next one."""
    source = sheets.source(make_pdfs.bad_pages_among_good())
    async with children() as pool:
        with pytest.raises(PageUnreadable, match="page 3"):
            await sheets.tile(pool, source, number=3)
        child = render_children()
        await sheets.tile(pool, source, number=5)
        assert render_children() == child


async def hanging(sheets: Sheets, pool: ChildPool) -> asyncio.Task[Path]:
    """Starts to draw a page that takes hours; returns when the child is drawing it."""
    before = {pid: cpu_ticks(pid) for pid in render_children()}
    task = asyncio.create_task(sheets.tile(pool, sheets.source(make_pdfs.nested_forms(), "hangs.pdf")))
    await until_async(lambda: any(cpu_ticks(pid) > before.get(pid, 0) + 20 for pid in render_children()))
    return task


async def stopped(sheets: Sheets, pool: ChildPool, source: Path) -> asyncio.Task[Path]:
    """Stops the only child by a signal, and gives it a page; returns when it is asked for the page. SIGCONT lets it go on."""
    (child,) = render_children()
    os.kill(child, signal.SIGSTOP)
    busy = asyncio.Event()
    task = asyncio.create_task(sheets.tile(pool, source, beat=busy.set))
    async with asyncio.timeout(DEADLINE_S):
        await busy.wait()
    return task


@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "warm"])
async def test_child_that_dies_is_a_crash(sheets: Sheets, fresh: bool) -> None:
    """The fault of SIGSEGV in a page names the signal, and the next page gets a new child. A warm child may itself be to blame."""
    async with children() as pool:
        source = sheets.source(make_pdfs.one_page())
        # Counting alone does not make a child suspect.
        await pool.count_pages("a", source, OPTIONS, 2000, silent)
        if not fresh:
            await sheets.tile(pool, source)
        (child,) = render_children()
        task = await stopped(sheets, pool, source)
        os.kill(child, signal.SIGSEGV)
        os.kill(child, signal.SIGCONT)
        with pytest.raises(RenderCrashed, match="SIGSEGV") as fault:
            await task
        assert fault.value.fresh_child is fresh
        assert render_children() == set()
        await sheets.tile(pool, sheets.source(make_pdfs.one_page()))


@pytest.mark.parametrize(
    ("limits", "message"),
    [(ChildLimits(cpu_s=1), "not done after 1 s of CPU time"), (ChildLimits(wall_s=0.7), "not done after 0.7 s")],
    ids=["cpu", "wall"],
)
async def test_page_that_never_ends_is_a_timeout(sheets: Sheets, limits: ChildLimits, message: str) -> None:
    """It ends by CPU time or by wall time. The message has the limit, and the process has ended. Only CPU time is sure to run out again."""
    beats: list[float] = []
    async with children(limits=limits) as pool:
        with pytest.raises(RenderTimeout, match=message) as fault:
            await sheets.tile(pool, sheets.source(make_pdfs.nested_forms()), beat=lambda: beats.append(time.monotonic()))
        assert (fault.value.fresh_child, fault.value.is_certain) == (True, limits.cpu_s == 1)
        assert render_children() == set()
        assert beats or limits.wall_s < 1


@pytest.mark.parametrize(("warm", "company"), [(True, False), (False, True)], ids=["warm", "company"])
async def test_cpu_time_may_suffice_another_time(sheets: Sheets, warm: bool, company: bool) -> None:
    """The fault is not certain where the child had drawn other pages, or where another child worked beside it for a part of the time."""
    async with children(slots=2) as pool:
        if warm:
            source = sheets.source(make_pdfs.one_page())
            await sheets.tile(pool, source)
            task = await stopped(sheets, pool, source)
        else:
            task = await hanging(sheets, pool)
        (child,) = render_children()
        if company:
            await sheets.tile(pool, sheets.source(make_pdfs.one_page()), upload="b")
        os.kill(child, signal.SIGXCPU)
        os.kill(child, signal.SIGCONT)
        with pytest.raises(RenderTimeout, match="CPU time") as fault:
            await task
        assert not fault.value.is_certain


async def test_cpu_limit_counts_each_page_for_itself(sheets: Sheets) -> None:
    """A warm child may do any number of pages that each stay below the limit."""
    source = sheets.source(make_pdfs.plan_set(1))
    async with children(limits=ChildLimits(cpu_s=2)) as pool:
        for _ in range(12):
            await sheets.tile(pool, source, size=(5100, 3300))
        assert len(render_children()) == 1


async def test_page_that_eats_memory_is_out_of_memory(sheets: Sheets) -> None:
    """The child is killed at the limit. With enough memory the same page is drawn."""
    source = sheets.source(make_pdfs.inflates_to(64 << 20))
    async with children(limits=ChildLimits(memory_bytes=100 << 20)) as pool:
        with pytest.raises(RenderOutOfMemory, match="104,857,600 bytes") as fault:
            await sheets.tile(pool, source)
        assert fault.value.fresh_child
        assert render_children() == set()
    async with children() as pool:
        await sheets.tile(pool, source)


async def test_images_that_were_drawn_need_not_stay(sheets: Sheets) -> None:
    """A page whose images take 300 MB together is drawn within 220 MB, for each is drawn once."""
    source = sheets.source(make_pdfs.images(1, 25, 2000))
    async with children(limits=ChildLimits(memory_bytes=220_000_000)) as pool:
        await sheets.tile(pool, source)


async def test_pages_that_were_drawn_need_not_stay(sheets: Sheets) -> None:
    """A document whose pages take 12 MB each is drawn by one child, within the memory that a few pages take."""
    source = sheets.source(make_pdfs.images(14, 1, 2000, deflated=False))
    async with children(limits=ChildLimits(memory_bytes=180_000_000)) as pool:
        await sheets.tile(pool, source)
        child = render_children()
        for number in range(2, 15):
            await sheets.tile(pool, source, number=number)
        assert render_children() == child


def shows_image(target: Path) -> bool:
    """Whether the colour of ``make_pdfs.wide_image`` is where it must be."""
    with TileFile(target, Pyramid(200, 100)) as tiles:
        colour = Image.open(io.BytesIO(tiles.tile(8, 0, 0)[1])).getpixel((100, 50))
    assert isinstance(colour, tuple)
    return all(abs(ours - theirs) < 8 for ours, theirs in zip(colour, (0x20, 0x40, 0x80), strict=True))


async def test_memory_limit_is_exact(sheets: Sheets) -> None:
    """One number divides the limits: with 1 MiB more the page is drawn whole, with 1 MiB less it is out of memory, each time.

    The margin is for Python: what it has on its heap when the page begins differs by some pages from process to process.
    PDFium skips an image that it cannot allocate: at no limit is the page drawn without it.
    """
    source = sheets.source(make_pdfs.wide_image(4000, 4000))

    async def is_drawn(limit: int) -> bool:
        async with children(limits=ChildLimits(memory_bytes=limit)) as pool:
            try:
                target = await sheets.tile(pool, source)
            except RenderOutOfMemory:
                return False
            assert shows_image(target)
            return True

    step, margin = 1 << 16, (1 << 20) // (1 << 16)
    too_little, enough = (48 << 20) // step, (300 << 20) // step
    while enough - too_little > 1:
        middle = (too_little + enough) // 2
        too_little, enough = (too_little, middle) if await is_drawn(middle * step) else (middle, enough)
    for _ in range(2):
        assert await is_drawn((enough + margin) * step)
        assert not await is_drawn((too_little - margin) * step)


UNWATCHED = """
import asyncio, ctypes, struct, sys
from pathlib import Path
from activities.render.child import ChildLimits, ChildPool
from activities.errors import RenderOutOfMemory
from activities.interface import TilePage
from activities.render.memorylimit import watch
from activities.bucket.records import UploadOptions
import platform

# Load the number of the system call; let all pass but seccomp, which is answered with ENOSYS.
seccomp = {"x86_64": 317, "aarch64": 277}[platform.machine()]
code = b"".join(struct.pack("=HBBI", *line) for line in ((0x20, 0, 0, 0), (0x15, 0, 1, seccomp), (6, 0, 0, 0x50026), (6, 0, 0, 0x7FFF0000)))
program = ctypes.create_string_buffer(code, len(code))
head = ctypes.create_string_buffer(struct.pack("@HP", 4, ctypes.addressof(program)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(head)), 0, 0) == 0

try:
    watch()
except OSError as error:
    print(error.strerror)

async def main():
    for number, limit in enumerate((60, 1000)):
        pool = ChildPool(1, ChildLimits(memory_bytes=limit << 20))
        target = Path(sys.argv[2], str(number))
        target.mkdir()
        page = TilePage("o/p/q/u", 1, 200, 100, UploadOptions())
        try:
            await pool.tile_page("a", Path(sys.argv[1]), page, target, lambda: None)
            print("drawn")
        except RenderOutOfMemory as error:
            print(error)
        await pool.close()

asyncio.run(main())
"""


def test_memory_limit_holds_where_nobody_can_watch(sheets: Sheets) -> None:
    """On a kernel without seccomp's notifications no page over the limit passes, however fast, and none loses its image."""
    source, target = sheets.source(make_pdfs.wide_image(4000, 4000)), sheets.target()
    answers = subprocess.check_output([sys.executable, "-c", UNWATCHED, source, target], cwd=ROOT, text=True)
    assert answers.splitlines() == ["seccomp", "the page needs more than 62,914,560 bytes of memory", "drawn"]
    assert shows_image(target / "1")


async def test_refused_allocation_is_a_render_fault(sheets: Sheets) -> None:
    """A page too large for the kernel's limit ends as a fault, not in a hang."""
    async with children(limits=ChildLimits(memory_bytes=64 << 20)) as pool:
        with pytest.raises(RenderOutOfMemory):
            await sheets.tile(pool, sheets.source(make_pdfs.one_page()), size=(40_000, 30_000))


async def test_cancel_kills_the_child_first(sheets: Sheets) -> None:
    """When the caller is cancelled, the process has ended, and the slot is free again."""
    async with children() as pool:
        task = await hanging(sheets, pool)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert render_children() == set()
        await sheets.tile(pool, sheets.source(make_pdfs.one_page()))


@pytest.mark.parametrize("after_s", [0, 0.001, 0.01, 0.1, 0.3, 0.6])
async def test_cancel_at_any_time_leaves_no_child(sheets: Sheets, after_s: float) -> None:
    """Also while the fork server or the child is only starting."""
    source = sheets.source(make_pdfs.nested_forms())
    async with children() as pool:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(after_s):
                await sheets.tile(pool, source)
        assert render_children() == set()


async def test_cancel_of_a_waiting_caller_takes_no_slot(sheets: Sheets) -> None:
    """A caller that is cancelled in the queue leaves the queue as it was."""
    source = sheets.source(make_pdfs.one_page())
    async with children() as pool:
        busy = await hanging(sheets, pool)
        waiting = [asyncio.create_task(sheets.tile(pool, source, upload="b")) for _ in range(3)]
        await asyncio.sleep(0)
        for task in (*waiting[:2], busy):
            task.cancel()
        results = await asyncio.gather(busy, *waiting, return_exceptions=True)
        assert [isinstance(result, asyncio.CancelledError) for result in results] == [True, True, True, False]
        await sheets.tile(pool, source)


async def test_lost_fork_server_is_replaced(sheets: Sheets) -> None:
    """When it is killed while a page is drawn, the child ends, the page is a crash, and the next call starts another server."""
    async with children() as pool:
        task = await hanging(sheets, pool)
        before = fork_servers() | render_children()
        (server,) = fork_servers()
        os.kill(server, signal.SIGKILL)
        with pytest.raises(RenderCrashed):
            await task
        await until_async(lambda: none_alive(before))
        await sheets.tile(pool, sheets.source(make_pdfs.one_page()))


async def test_ended_children_are_told_by_how_they_ended(sheets: Sheets) -> None:
    """Those that nothing is wrong with are retired; of the others, the fault is told, whoever ends the child."""
    ends: list[str] = []
    source = sheets.source(make_pdfs.one_page())
    async with children(on_end=ends.append) as pool:
        await sheets.tile(pool, source)
        await pool.retire("a")
        await sheets.tile(pool, source)
        (child,) = render_children()
        task = await stopped(sheets, pool, source)
        os.kill(child, signal.SIGSEGV)
        os.kill(child, signal.SIGCONT)
        with pytest.raises(RenderCrashed):
            await task
        await sheets.tile(pool, source)
    assert ends == ["retired", "RenderCrashed", "retired"]
    limits = ChildLimits(memory_bytes=100 << 20)
    async with children(limits=limits, on_end=ends.append) as pool:
        with pytest.raises(RenderOutOfMemory):
            await sheets.tile(pool, sheets.source(make_pdfs.inflates_to(64 << 20)))
    async with children(limits=ChildLimits(wall_s=3), on_end=ends.append) as pool:
        with pytest.raises(RenderTimeout):
            await sheets.tile(pool, sheets.source(make_pdfs.nested_forms(), "hangs.pdf"))
    assert ends[3:] == ["RenderOutOfMemory", "RenderTimeout"]


async def test_lost_fork_server_is_replaced_once(sheets: Sheets) -> None:
    """Callers that notice the loss at the same time share the next server. None is left when the pool closes."""
    source = sheets.source(make_pdfs.one_page())
    async with children(slots=2) as pool:
        await sheets.tile(pool, source)
        (server,) = fork_servers()
        os.kill(server, signal.SIGKILL)
        await until_async(lambda: none_alive({server}))
        await asyncio.gather(sheets.tile(pool, source), sheets.tile(pool, source, upload="b"))
        assert len(fork_servers()) == 1


async def test_full_disk_is_an_os_error(sheets: Sheets) -> None:
    """A write that fails is no fault of the page, and may be tried again."""
    async with children() as pool:
        target = sheets.target()
        target.rmdir()
        with pytest.raises(OSError, match=r"tiles\.flat"):
            await pool.tile_page("a", sheets.source(make_pdfs.one_page()), TilePage("o/p/q/u", 1, 200, 100, OPTIONS), target, silent)
        with pytest.raises(FileNotFoundError):
            await pool.count_pages("a", target / "absent.pdf", OPTIONS, 2000, silent)


async def test_close_ends_busy_children_too(sheets: Sheets) -> None:
    """No process is left, and the caller that waited gets an error."""
    pool = ChildPool(1)
    task = await hanging(sheets, pool)
    left = fork_servers() | render_children()
    await pool.close()
    assert none_alive(left)
    with pytest.raises(RenderFault):
        await task


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may read the environment of a process that is not dumpable")
async def test_render_processes_see_no_secrets(sheets: Sheets) -> None:
    """The bucket's keys are not in the environment of a process that opens strangers' files."""
    os.environ["AWS_SECRET_ACCESS_KEY"] = "secret"  # noqa: S105 (made up)
    try:
        async with children() as pool:
            await sheets.tile(pool, sheets.source(make_pdfs.one_page()))
            assert not any(b"AWS_SECRET_ACCESS_KEY" in environment(pid) for pid in fork_servers() | render_children())
    finally:
        del os.environ["AWS_SECRET_ACCESS_KEY"]


WORKER = """
import asyncio, sys
from pathlib import Path
from activities.render.child import ChildPool
from activities.interface import TilePage
from activities.bucket.records import UploadOptions

async def main():
    pool = ChildPool(2)
    pages = [TilePage("o/p/q/u", 1, 200, 100, UploadOptions())] * 2
    await asyncio.gather(*(pool.tile_page("a", Path(sys.argv[1]), page, Path(sys.argv[2]), lambda: None) for page in pages))

asyncio.run(main())
"""


@pytest.fixture
def worker(sheets: Sheets) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose two children are busy for hours."""
    source = sheets.source(make_pdfs.nested_forms())
    with subprocess.Popen([sys.executable, "-c", WORKER, source, sheets.target()], cwd=ROOT) as process:
        try:
            until(lambda: len(render_children(process.pid)) == 2)
            yield process
        finally:
            process.kill()


def test_killed_worker_leaves_no_orphan(worker: subprocess.Popen[bytes]) -> None:
    """SIGKILL of the worker alone: the fork server and both busy children die at once."""
    left = fork_servers(worker.pid) | render_children(worker.pid)
    assert len(left) == 3
    worker.kill()
    worker.wait()
    until(lambda: none_alive(left))


def test_signals_of_the_terminal_are_the_workers_to_handle(worker: subprocess.Popen[bytes]) -> None:
    """SIGINT and SIGTERM to every render process change nothing: the worker finishes its pages first."""
    servers, busy = fork_servers(worker.pid), render_children(worker.pid)
    for pid in servers | busy:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    # A process that works on after its signals has outlived them; the one that only waits has if the kernel holds none back for it.
    worked = {pid: cpu_ticks(pid) for pid in busy}
    until(lambda: all(cpu_ticks(pid) > worked[pid] + 5 for pid in busy) and not any(map(pending_signals, servers)))
    assert (fork_servers(worker.pid), render_children(worker.pid)) == (servers, busy)
    assert worker.poll() is None


def test_parent_loads_no_native_library() -> None:
    """The worker's own process cannot open a PDF."""
    code = (
        "import sys, activities.render.child; print([name for name in sys.modules if name.startswith(('pypdfium2', 'pikepdf', 'pyvips'))])"
    )
    assert json.loads(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT)) == []


async def test_idle_children_may_be_ended_from_two_sides(sheets: Sheets) -> None:
    """An upload may end while its idle children are ended already: each is ended once."""
    source = sheets.source(make_pdfs.plan_set(2))
    async with children(slots=2) as pool:
        await asyncio.gather(*(sheets.tile(pool, source, number=number) for number in (1, 2)))
        await asyncio.gather(pool.retire("a"), pool.retire("a"))
        assert render_children() == set()
