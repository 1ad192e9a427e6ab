"""A render child that was taken over is not believed, whatever it says or leaves; it ends in bounded time, and the pool goes on."""

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from activities.bucket.records import UploadOptions, to_wire
from activities.errors import (
    PageUnreadable,
    PasswordRequired,
    RenderCrashed,
    RenderOutOfMemory,
    RenderTimeout,
    SiteLinkError,
)
from activities.interface import Document, TilePage
from activities.render import confine
from activities.render.answers import MOST_MESSAGE_CHARACTERS, Rendered
from activities.render.child import ChildLimits, ChildPool
from tests.missing import miss
from tests.waiting import DEADLINE_S, until_async

OPTIONS = UploadOptions()
PATIENT = ChildLimits(wall_s=DEADLINE_S)
IMPATIENT = ChildLimits(wall_s=10)


class HostilePool(ChildPool):
    """A pool whose children run the code in their documents."""

    def __init__(self, slots: int, limits: ChildLimits) -> None:
        super().__init__(slots, limits, fork_server="tests.resources.hostile_child")

    def lose_patience(self) -> None:
        """The fork server that runs now must answer within seconds; the next one has the usual time."""
        self.start()._answer_s = 3

    @property
    def server_pid(self) -> int:
        """The fork server."""
        return int(self.start()._process.pid)

    @property
    def asked_pids(self) -> list[int]:
        """The children that were asked something and have not answered."""
        return [child.pid for child in self._working]


class Attack:
    """Documents that are code, and the requests about them."""

    def __init__(self, pool: HostilePool, directory: Path) -> None:
        self.pool = pool
        self._directory = directory
        self.pages = 0
        self._sources: dict[str, Path] = {}

    def _source(self, code: str) -> Path:
        """The document with this code. The same code is the same document, and so the same child."""
        if code not in self._sources:
            self._sources[code] = self._directory / f"source-{len(self._sources)}.pdf"
            self._sources[code].write_text(code)
        return self._sources[code]

    async def count(self, code: str, options: UploadOptions = OPTIONS) -> Document:
        """Counts the pages."""
        return await self.pool.count_pages(code, self._source(code), options, 5, lambda: None)

    async def tile(self, code: str, *, fresh: bool = False) -> Rendered:
        """Tiles a page of 300 x 200 px."""
        self.pages += 1
        target = self._directory / f"page-{self.pages}"
        target.mkdir()
        page = TilePage("o/p/q/u", 1, 300, 200, OPTIONS)
        return await self.pool.tile_page(code, self._source(code), page, target, lambda: None, fresh=fresh)

    async def goes_on(self) -> None:
        """A child that was not taken over is served."""
        assert (await self.tile("")).engines == {"pdfium": "1"}
        assert [page.title for page in (await self.count("")).pages] == ["A-101"]


@asynccontextmanager
async def attack(directory: Path, limits: ChildLimits = PATIENT, slots: int = 1) -> AsyncIterator[Attack]:
    """A pool with such children; afterwards none is left."""
    pool = HostilePool(slots, limits)
    server = pool.server_pid
    try:
        yield Attack(pool, directory)
    finally:
        await pool.close()
        assert not is_alive(server)


async def test_child_that_is_right_is_believed(tmp_path: Path) -> None:
    """Otherwise the tests below would show nothing."""
    async with attack(tmp_path) as attacked:
        await attacked.goes_on()


LIES: dict[str, str] = {
    "number": "answer = page(number=-5)",
    "number 2": "answer = page(number=2)",
    "width": "answer = page(width=10**9)",
    "negative": "answer = page(width=-300, height=-200)",
    "huge integer": "say(json.dumps({'id': 1, **answer}).replace('300', '9' * 9000, 1) + '\\n'); sleep(600)",
    "zero": "answer = page(height=0)",
    "dpi": "answer = page(dpi=301)",
    "low dpi": "answer = page(dpi=29, scaled=True)",
    "scaled": "answer = page(scaled=True)",
    "scaled for no reason": "answer = page(dpi=200, scaled=True)",
    "not scaled": "answer = page(dpi=200)",
    "true": "answer = page(width=True)",
    "text": "answer = page(width='300')",
    "title": "answer = page(title='A' * 121)",
    "empty title": "answer = page(title='')",
    "control": "answer = page(title='A\\x1b[2J')",
    "surrogate": "answer = page(title='A\\ud800')",
    "turned": "answer = page(title='A\\u202e101')",
    "reason": "answer = page(reason='StorageUnavailable', detail='x', width=0, height=0, dpi=0)",
    "reason with a size": "answer = page(reason='PageUnreadable', detail='x')",
    "detail": "answer = page(detail='x')",
    "no pages": "answer = {'result': {'pages': [], 'forecast': None}}",
    "six pages": "answer['result']['pages'] = [page(number=number)['result']['pages'][0] for number in range(1, 7)]",
    "forecast": "answer['result']['forecast'] = {'puts': 1}",
    "newer schema": "answer['result']['schema'] = 99",
    "newer note": "answer = page(notes=[{'type': 'Scaled', 'message': 'x', 'schema': 99}])",
    "note": "answer = page(notes=[{'type': '<b>', 'message': 'x'}])",
    "notes": "answer = page(notes=[{'type': 'Scaled', 'message': 'x'}] * 1001)",
    "list": "answer = {'result': []}",
    "nothing": "answer = {}",
    "both": "answer['error'] = 'NotAPdf'",
    "no message": "answer = {'error': 'NotAPdf'}",
    "error number": "answer = {'error': 5, 'message': 'x'}",
    "no JSON": "say('{\\n'); sleep(600)",
    "no object": "say('[]\\n'); sleep(600)",
    "NaN": "say(json.dumps({'id': 1, **page(width=float('nan'))}) + '\\n'); sleep(600)",
    "repeated": "say(json.dumps({'id': 1, 'Id': 1, **answer}).replace('Id', 'id') + '\\n'); sleep(600)",
    "deep": "say('[' * 30000 + '\\n'); sleep(600)",
    "no id": "say(json.dumps(answer) + '\\n'); sleep(600)",
    "other id": "say(json.dumps({'id': 0, **answer}) + '\\n'); sleep(600)",
    "not text": "os.write(3, b'\\xff\\n'); sleep(600)",
    "flood": "while True: say('x' * 65536)",
}


@pytest.mark.parametrize("code", LIES.values(), ids=LIES)
async def test_document_that_cannot_be_is_a_crash(tmp_path: Path, code: str) -> None:
    """It is named, without the child's words, and the child is ended."""
    async with attack(tmp_path) as attacked:
        with pytest.raises(RenderCrashed, match=r"^the render process sent an answer that cannot be read$") as fault:
            await attacked.count(code)
        assert fault.value.fresh_child
        await attacked.goes_on()


async def test_page_scaled_to_its_budget_is_believed(tmp_path: Path) -> None:
    """A4 at 300 dpi has 26 MB of pixels."""
    async with attack(tmp_path) as attacked:
        scaled = await attacked.count("answer = page(width=590, height=590, dpi=100, scaled=True)", UploadOptions(budget_bytes=1 << 20))
        assert scaled.pages[0].dpi == 100
        with pytest.raises(RenderCrashed):
            await attacked.count("answer = page(width=592, height=592, dpi=100, scaled=True)", UploadOptions(budget_bytes=1 << 20))


TILED_LIES: dict[str, str] = {
    "engines": "answer = tiled(engines=[])",
    "engine": "answer = tiled(engines={'pdf/ium': '1'})",
    "version": "answer = tiled(engines={'pdfium': '1\\n'})",
    "number": "answer = tiled(engines={'pdfium': 1})",
    "many engines": "answer = tiled(engines={f'e{n}': '1' for n in range(33)})",
    "chroma": "answer = tiled(chroma='4:1:1')",
    "chroma list": "answer = tiled(chroma=[])",
    "transform": "answer = tiled(transform=[1] * 7)",
    "infinite": "say(json.dumps({'id': 1, **answer}).replace('200.0', '1e999') + '\\n'); sleep(600)",
    "true": "answer = tiled(transform=[True] * 6)",
    "seconds": "answer = tiled(drawS=-1)",
    "notes": "answer = tiled(notes=[{'type': 'Scaled', 'message': 'x'}] * 1001)",
    "note": "answer = tiled(notes=['x'])",
    "layer": "answer = tiled(layers=[{'name': 'x', 'on': 1}])",
    "more": "answer = tiled(more=1)",
    "long": "answer = tiled(notes=[{'type': 'Scaled', 'message': 'x' * (2 << 20)}])",
    "no tiles": "os.ftruncate(files[0], 0)",
    "no thumbnail": "os.ftruncate(files[1], 0)",
    "2 GB tile": "os.ftruncate(files[0], 0); os.pwrite(files[0], bytes(8192) + (2 << 30).to_bytes(16, 'little') + bytes(8)"
    " + (8192).to_bytes(8, 'little') + (1).to_bytes(4, 'little') + bytes(4) + b'SLTILES1', 0)",
    "other thumbnail": "os.pwrite(files[1], b'<html>', 0)",
}


@pytest.mark.parametrize("code", TILED_LIES.values(), ids=TILED_LIES)
async def test_page_that_cannot_be_is_a_crash(tmp_path: Path, code: str) -> None:
    """Also one whose files are wrong."""
    async with attack(tmp_path) as attacked:
        with pytest.raises(RenderCrashed, match=r"^the render process sent an answer that cannot be read$"):
            await attacked.tile(code)
        await attacked.goes_on()


async def test_notes_and_layers_lose_control_characters(tmp_path: Path) -> None:
    """A font or a layer of an honest document may be named so."""
    async with attack(tmp_path) as attacked:
        notes, layers = r"[{'type': 'FontMissing', 'message': 'a\ud800\n'}]", r"[{'name': '\x1b', 'on': True}]"
        rendered = await attacked.tile(f"answer = tiled(notes={notes}, layers={layers})")
    assert rendered.notes[0].message == "a\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"
    assert rendered.layers[0].name == "\N{REPLACEMENT CHARACTER}"


async def test_notes_of_a_page_are_bounded(tmp_path: Path) -> None:
    """Temporal gets them twice: as the result of ``tile_page`` and as the argument of ``upload_page``. They have no path, either."""
    async with attack(tmp_path) as attacked:
        notes = r"[{'type': 'FontMissing', 'message': f'{n} in /var/lib/sitelink/scratch/x ' + '\U0001f3d7' * 80} for n in range(999)]"
        rendered = await attacked.tile(f"answer = tiled(notes={notes})")
    assert 8 << 10 < len(json.dumps(to_wire(rendered.notes))) <= 16 << 10
    assert "scratch" not in str(rendered.notes)
    assert rendered.notes[-1].type == "MoreNotes"


@pytest.mark.parametrize(
    "name",
    [
        "StorageUnavailable",
        "TilesMissing",
        "NewerSchema",
        "ShareFull",
        "SourceMissing",
        "RenderTimeout",
        "SiteLinkError",
        "OSError",
        "KeyError",
    ],
)
async def test_error_that_no_child_may_name_is_a_crash(tmp_path: Path, name: str) -> None:
    """A child cannot make its page be tried for ever: crashes are counted."""
    async with attack(tmp_path) as attacked:
        for ask in (attacked.count, attacked.tile):
            with pytest.raises(RenderCrashed) as fault:
                await ask(f"answer = {{'error': {name!r}, 'message': 'x', 'errno': 5}}")
            assert fault.value.fresh_child


@pytest.mark.parametrize(("operation", "name"), [("count", "PageUnreadable"), ("tile", "TooManyPages"), ("tile", "PdfPortfolio")])
async def test_each_operation_has_its_own_refusals(tmp_path: Path, operation: str, name: str) -> None:
    """A page is not refused while the pages are counted."""
    async with attack(tmp_path) as attacked:
        with pytest.raises(RenderCrashed):
            await getattr(attacked, operation)(f"answer = {{'error': {name!r}, 'message': 'x'}}")


@pytest.mark.parametrize("number", ["errno.ENOSPC", "errno.EDQUOT"])
async def test_disk_that_has_room_is_not_full(tmp_path: Path, number: str) -> None:
    """The worker looks itself."""
    async with attack(tmp_path) as attacked:
        for ask in (attacked.count, attacked.tile):
            with pytest.raises(RenderCrashed):
                await ask(f"import errno; answer = {{'error': 'OSError', 'message': 'No space left', 'errno': {number}}}")


async def test_memory_error_ends_after_its_tries(tmp_path: Path) -> None:
    """It counts each time."""
    async with attack(tmp_path) as attacked:
        for _ in range(2):
            with pytest.raises(RenderOutOfMemory) as fault:
                await attacked.tile("answer = {'error': 'MemoryError', 'message': 'x'}")
            assert fault.value.fresh_child


async def test_fault_of_a_warm_child_is_followed_by_a_fresh_one(tmp_path: Path) -> None:
    """A retry asks for a child that has drawn no page, so that its fault counts."""
    code = "state['n'] = state.get('n', 0) + 1\nif state['n'] > 1: answer = {'error': 'OSError', 'message': 'x', 'errno': 5}"
    async with attack(tmp_path, slots=2) as attacked:
        await asyncio.gather(attacked.tile(code), attacked.tile(code))
        with pytest.raises(RenderCrashed) as fault:
            await attacked.tile(code)
        assert not fault.value.fresh_child
        await attacked.tile(code, fresh=True)


@pytest.mark.parametrize(
    ("name", "error", "operation"), [("PasswordRequired", PasswordRequired, "count"), ("PageUnreadable", PageUnreadable, "tile")]
)
async def test_words_of_a_refusal_are_cut(tmp_path: Path, name: str, error: type[SiteLinkError], operation: str) -> None:
    """They have no path, no control character, and an end."""
    words = "see /var/lib/sitelink/scratch/pages/x\\x1b\\n or page 1/2 \\ud800" + "x" * 9000
    async with attack(tmp_path) as attacked:
        with pytest.raises(error) as refusal:
            await getattr(attacked, operation)(f"answer = {{'error': {name!r}, 'message': '{words}'}}")
    told = str(refusal.value)
    assert told.startswith("see \N{HORIZONTAL ELLIPSIS} or page 1/2 \N{REPLACEMENT CHARACTER}xxx") or "scratch" not in told
    assert len(told) <= MOST_MESSAGE_CHARACTERS
    assert told.replace("\N{HORIZONTAL ELLIPSIS}", "x").replace("\N{REPLACEMENT CHARACTER}", "x").isprintable()


HOARD = "state.setdefault('kept', []).extend(map(os.dup, files))"


async def test_child_that_keeps_the_files_of_earlier_pages_is_replaced_soon(tmp_path: Path) -> None:
    """A file that is open takes room on the disk also after the worker has removed it."""

    async def draw_pages() -> None:
        for _ in range(confine.OPEN_FILES):
            await attacked.tile(HOARD)

    async with attack(tmp_path) as attacked:
        with pytest.raises(RenderCrashed):
            await draw_pages()
        assert 1 < attacked.pages <= 8


async def test_second_answer_is_not_taken_for_the_next_page(tmp_path: Path) -> None:
    """Nor is one that is sent before its request."""
    code = "say(json.dumps({'id': request['id'], **answer}) + '\\n')\nsay(json.dumps({'id': request['id'], **answer}) + '\\n')\nsleep(0.5)"
    early = "say(json.dumps({'id': request['id'], **answer}) + '\\n'); say(json.dumps({'id': 7, **answer}) + '\\n'); sleep(600)"
    async with attack(tmp_path) as attacked:
        for each in (code, early):
            told: list[Any] = []
            for _ in range(2):
                told += await asyncio.gather(attacked.tile(each), return_exceptions=True)
            assert sum(isinstance(one, RenderCrashed) for one in told) >= 1
        await attacked.goes_on()


async def test_silent_child_is_killed_at_its_wall_limit(tmp_path: Path) -> None:
    """Also one that has been stopped."""
    async with attack(tmp_path, IMPATIENT) as attacked:
        with pytest.raises(RenderTimeout):
            await attacked.tile("sleep(600)")
        asked = asyncio.create_task(attacked.tile("say(' '); sleep(600)"))
        await until_async(lambda: bool(attacked.pool.asked_pids))
        (child,) = attacked.pool.asked_pids
        os.kill(child, signal.SIGSTOP)
        with pytest.raises(RenderTimeout):
            await asked
        assert not is_alive(child)


def is_alive(pid: int) -> bool:
    """Whether there is such a process."""
    return Path(f"/proc/{pid}").exists()


async def test_stopped_fork_server_is_replaced(tmp_path: Path) -> None:
    """Whoever waits for it gets a fault within the wall limit, and beats until then. The next caller gets another server."""
    async with attack(tmp_path, IMPATIENT, slots=3) as attacked:
        await attacked.goes_on()
        stopped = attacked.pool.server_pid
        attacked.pool.lose_patience()
        os.kill(stopped, signal.SIGSTOP)
        with pytest.raises(RenderCrashed, match="the fork server does not answer"):
            await attacked.tile("pass  # a new document, and so a new child")
        assert not is_alive(stopped)
        await attacked.goes_on()


async def test_stopped_fork_server_does_not_keep_a_child_alive(tmp_path: Path) -> None:
    """A child that must end ends all the same, whatever the queue to the server has."""
    async with attack(tmp_path, IMPATIENT) as attacked:
        asked = asyncio.create_task(attacked.tile("sleep(600)"))
        await until_async(lambda: bool(attacked.pool.asked_pids))
        stopped, (child,) = attacked.pool.server_pid, attacked.pool.asked_pids
        attacked.pool.lose_patience()
        os.kill(stopped, signal.SIGSTOP)
        for _ in range(2000):
            attacked.pool.start().kill(child)
        with pytest.raises(RenderTimeout):
            await asked
        await until_async(lambda: not is_alive(child))
        await attacked.goes_on()


async def test_pool_with_a_stopped_fork_server_closes(tmp_path: Path) -> None:
    """In bounded time, and nothing is left."""
    async with attack(tmp_path, IMPATIENT) as attacked:
        await attacked.goes_on()
        stopped = attacked.pool.server_pid
        attacked.pool.lose_patience()
        os.kill(stopped, signal.SIGSTOP)
        await attacked.pool.close()
        assert not is_alive(stopped)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with a megabyte. If none can be mounted, a test run on CI fails; elsewhere its tests are skipped."""
    path = tmp_path / "small"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", path], capture_output=True, check=False)
    if mounted.returncode != 0:
        miss("no small disk can be mounted here")
    yield path
    subprocess.run(["umount", path], check=True)


async def test_disk_that_is_full_is_believed(small_disk: Path, tmp_path: Path) -> None:
    """The page is tried again until there is room."""
    pool = HostilePool(1, PATIENT)
    source = tmp_path / "source.pdf"
    source.write_text("answer = {'error': 'OSError', 'message': 'No space left', 'errno': 28}")
    try:
        with pytest.raises(OSError, match="No space left on device"):
            await pool.tile_page("u", source, TilePage("o/p/q/u", 1, 30, 20, OPTIONS), small_disk, lambda: None)
    finally:
        await pool.close()


async def test_child_reads_nothing_of_what_others_print(tmp_path: Path) -> None:
    """They all write into one stream: Landlock lets a pipe be opened again, also for reading, but nobody can open a socket."""
    code = """
try:
    os.open("/proc/self/fd/1", os.O_RDONLY | os.O_NONBLOCK)
except OSError:
    os.write(1, b"printed\\n")
    if os.read(1, 1):
        answer = {"error": "PageUnreadable", "message": "read"}
else:
    answer = {"error": "PageUnreadable", "message": "opened"}
"""
    async with attack(tmp_path) as attacked:
        assert (await attacked.tile(code)).engines == {"pdfium": "1"}


async def test_threads_of_a_child_are_limited(tmp_path: Path) -> None:
    """Also where the worker runs as root, for whom RLIMIT_NPROC does not count. Otherwise a child could use up the host's process ids."""
    code = """
import threading
waits, started = threading.Event(), 0
threading.stack_size(1 << 16)
try:
    while started < 1000:
        threading.Thread(target=waits.wait, daemon=True).start()
        started += 1
except RuntimeError:
    pass
waits.set()
if started >= 100:
    answer = {"error": "PageUnreadable", "message": str(started)}
"""
    async with attack(tmp_path) as attacked:
        assert (await attacked.tile(code)).engines == {"pdfium": "1"}
