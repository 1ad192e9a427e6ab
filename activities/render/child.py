"""Render children: processes with limits that open the PDFs, each for the pages of one upload. Loads no native library.

A child is warm: it keeps the document open and its buffer mapped from page to page. It is replaced when another upload needs its slot,
after any fault, and after a number of pages. This module limits its wall time, and the kernel its CPU time. ``forkserver``, the process
that forks the children, limits their memory together with the kernel.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import stat
import subprocess
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any, cast

from activities import errors
from activities.attempt import BEAT_S
from activities.bucket.records import Layer, Note, UploadOptions, bounded_layers, from_wire, to_wire
from activities.errors import RenderCrashed, RenderFault, RenderOutOfMemory, RenderTimeout, SiteLinkError
from activities.interface import Document, TilePage
from activities.render.process import start_process
from activities.render.tilefile import new_files, write_layers

logger = logging.getLogger(__name__)

LONGEST_ANSWER_BYTES = 64 << 20
LONGEST_LINE_BYTES = 2000
FORK_SERVER = "activities.render.forkserver"
CLOSE_TIMEOUT_S = 5.0
IDLE_S = 15.0
"""An idle child ends after this time: it holds a stranger's document and memory."""
RENEW_FORKS, RENEW_S = 200, 3600.0
"""A fork server is replaced after so many children, or so many seconds: its children have the same layout of memory, which an attacker
could learn from one child for the next."""
RETIRED = "retired"
"""How a child ends that nothing is wrong with."""
CPU_GRACE_S = 3.0
"""A child that has not ended so long after its limit of CPU time has lifted the limit, and is killed."""


@dataclass(frozen=True)
class ChildLimits:
    """The limits of a child.

    Args:
        memory_bytes: Most private memory, including the page's pixels.
        cpu_s: Most seconds of CPU time for one page, or for counting the pages of a document.
        wall_s: Most seconds for one page, or for counting the pages of a document.
        pages_per_child: A child is replaced after so many pages.
    """

    memory_bytes: int = 3 << 30
    cpu_s: int = 120
    wall_s: float = 180
    pages_per_child: int = 100


@dataclass(frozen=True)
class Rendered:
    """A page whose tiles were written.

    Args:
        engines: Name to version of every library that decided the tiles' bytes.
        chroma: The chroma subsampling of tiles with colours.
        notes: What was found while the page was drawn.
        transform: From the page to its pixels, as ``SheetRecord`` explains.
        draw_s: Seconds in which the page was drawn.
        tile_s: Seconds in which its tiles were cut.
    """

    engines: dict[str, str]
    chroma: str
    notes: tuple[Note, ...]
    transform: tuple[float, ...]
    draw_s: float = 0.0
    tile_s: float = 0.0


class ChildPool:
    """At most ``slots`` children of one fork server. The pool belongs to the event loop in which it is first used.

    Args:
        slots: Children at work at once; further callers wait for a slot.
        limits: See ChildLimits.
        dzsave: Whether libvips cuts the tiles, also where the cutter could.
        first_user: The uid of the first slot's children; each further slot has the next one. All have the gid ``first_user``. None: the
            children keep the worker's user. Only root can give them others.
        idle_s: An idle child ends after so many seconds.
        renew_forks: A fork server is replaced after so many children.
        fork_server: The module of the fork server.
        on_end: Called with how a child ended: ``RETIRED``, or the name of the fault.
    """

    def __init__(
        self,
        slots: int,
        limits: ChildLimits | None = None,
        *,
        dzsave: bool = False,
        first_user: int | None = None,
        idle_s: float = IDLE_S,
        renew_forks: int = RENEW_FORKS,
        fork_server: str = FORK_SERVER,
        on_end: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.slots = slots
        self.busy = 0
        """How many slots are in use."""
        self.confinement: tuple[str, ...] = ()
        """The last answer of ``layers``."""
        self._on_end = on_end
        self._dzsave = dzsave
        self._first_user = first_user
        self._idle_s = idle_s
        self._renew_forks = renew_forks
        self._fork_server = fork_server
        self._users: set[int] = set()
        """The uids of children that are alive."""
        self._replaced: set[_ForkServer] = set()
        """Fork servers that fork no more; each ends when its last child has ended."""
        self._tasks: set[asyncio.Task[None]] = set()
        """They end idle children, and fork servers that were replaced."""
        self._limits = limits or ChildLimits()
        self._free_slots = asyncio.Semaphore(slots)
        self._idle: list[_Child] = []
        self._working: set[_Child] = set()
        self._server: _ForkServer | None = None

    def start(self) -> "_ForkServer":
        """Starts the fork server if it does not run. It takes a third of a second, for which the first upload need not wait."""
        if not self._server:
            self._server = _ForkServer(self._fork_server)
        return self._server

    async def layers(self) -> list[str]:
        """The layers of confinement that hold in a child of its own for this question, as ``confine`` names them.

        Where a user of its own cannot be had, this says so in the log, and no child gets one.

        Raises:
            RenderFault: A child cannot do its work: it may be unable to read its libraries or fonts.
        """
        try:
            return await self._layers()
        except RenderFault as fault:
            if self._first_user is None:
                raise
            logger.warning("render children keep the user of the worker: as a user of its own, one failed: %s", fault)
            self._first_user = None
            return await self._layers()

    async def _layers(self) -> list[str]:
        child = await self._new_child("", Path(__file__))
        try:
            held = await child.ask({"operation": "layers"}, (), self._limits, lambda: None)
            self.confinement = tuple(str(name) for name in held)
            return list(self.confinement)
        finally:
            await asyncio.shield(child.end())

    async def count_pages(
        self, upload: str, source: Path, options: UploadOptions, max_pages: int, beat: Callable[[], None], password: str = ""
    ) -> Document:
        """Measures every page: its size and title.

        Args:
            upload: Names the upload and its bytes. A child serves only one upload.
            source: The PDF.
            options: The upload's options.
            max_pages: The published limit.
            beat: Called about once a second while this waits.
            password: Opens the PDF, if it needs one. The child gets it over its socket alone.

        Raises:
            DocumentError: The document cannot be used.
            RenderFault: The child failed.
        """
        request = {"operation": "count", "password": password, "options": to_wire(options), "maxPages": max_pages}
        return from_wire(Document, await self._ask(upload, source, request, (), beat))

    async def tile_page(
        self, upload: str, source: Path, args: TilePage, target: Path, beat: Callable[[], None], password: str = ""
    ) -> Rendered:
        """Draws a page and writes ``tiles.flat``, ``thumbnail.jpeg`` and ``layers.json``, as ``tilefile`` reads them.

        Args:
            upload: Names the upload and its bytes. A child serves only one upload.
            source: The PDF.
            args: The page and its size.
            target: An existing, empty directory.
            beat: Called about once a second while this waits.
            password: Opens the PDF, if it needs one. The child gets it over its socket alone.

        Raises:
            DocumentError: The document cannot be used.
            PageError: The page cannot be used.
            RenderFault: The child failed.
            OSError: The files cannot be made or written.
        """
        request = {
            "operation": "tile",
            "password": password,
            "number": args.number,
            "width": args.width,
            "height": args.height,
            "options": to_wire(args.options),
            "dzsave": self._dzsave,
        }
        with new_files(target) as files:
            answer = await self._ask(upload, source, request, files, beat)
        engines = {str(name): str(version) for name, version in answer["engines"].items()}
        notes = tuple(from_wire(Note, note) for note in answer["notes"])
        if layers := bounded_layers(from_wire(Layer, layer) for layer in answer["layers"]):
            write_layers(target, layers)
        draw_s, tile_s = (self._bounded_s(answer.get(name)) for name in ("drawS", "tileS"))
        return Rendered(engines, str(answer["chroma"]), notes, tuple(float(number) for number in answer["transform"]), draw_s, tile_s)

    def _bounded_s(self, seconds: object) -> float:
        """The seconds that a child says it took, if it can have taken them; else 0."""
        return float(seconds) if isinstance(seconds, int | float) and 0 <= seconds <= self._limits.wall_s else 0.0

    async def retire(self, upload: str) -> None:
        """Ends the idle children of an upload that has ended, so that its document and buffers are freed."""
        for child in [child for child in self._idle if child.upload == upload]:
            await self._take(child).end()

    async def close(self) -> None:
        """Ends every child, also a busy one, and the fork server. The pool cannot be used any more."""
        await asyncio.gather(*(self._take(child).end() for child in list(self._idle)))
        if self._server is not None:
            await self._server.close()
        for server in list(self._replaced):
            await server.close()
        await asyncio.gather(*self._tasks)

    async def _ask(self, upload: str, source: Path, request: dict[str, Any], files: Sequence[int], beat: Callable[[], None]) -> Any:
        async with self._slot(beat):
            child = await self._child_of(upload, source)
            try:
                with self._at_work(child):
                    result = await child.ask(request, files, self._limits, beat)
            except BaseException as error:
                # A child that refuses a document or a page by name is still usable. After any other error it is ended first.
                if isinstance(error, SiteLinkError) and not isinstance(error, RenderFault):
                    await self._give_back(child)
                else:
                    await asyncio.shield(child.end(type(error).__name__))
                raise
            await self._give_back(child)
            return result

    @contextlib.contextmanager
    def _at_work(self, child: "_Child") -> Iterator[None]:
        """Keeps in mind which children work at the same time."""
        for other in self._working:
            other.worked_alone = False
        child.worked_alone = not self._working
        self._working.add(child)
        try:
            yield
        finally:
            self._working.remove(child)

    @contextlib.asynccontextmanager
    async def _slot(self, beat: Callable[[], None]) -> AsyncIterator[None]:
        taking = asyncio.create_task(self._free_slots.acquire())
        try:
            while not (await asyncio.wait({taking}, timeout=BEAT_S))[0]:
                beat()
            self.busy += 1
            try:
                yield
            finally:
                self.busy -= 1
        finally:
            if not taking.cancel():
                self._free_slots.release()

    async def _child_of(self, upload: str, source: Path) -> "_Child":
        """An idle child of this upload and file, else a new one. A new one takes the place of the one that was idle longest."""
        for child in reversed(self._idle):
            if (child.upload, child.source) == (upload, source) and not child.ending.done():
                return self._take(child)
        while self._idle and self.busy + len(self._idle) > self.slots:
            await self._take(self._idle[0]).end()
        if self._server is not None and self._server.is_lost:
            # Removed before the wait, so that another caller who comes meanwhile starts the next server.
            lost_server, self._server = self._server, None
            await lost_server.close()
        if self._server is not None and self._server.is_worn(self._renew_forks):
            worn_server, self._server = self._server, None
            self._replaced.add(worn_server)
            self._in_background(self._end_replaced(worn_server))
        return await self._new_child(upload, source)

    async def _new_child(self, upload: str, source: Path) -> "_Child":
        child = await self._fork(upload, source)
        child.ending.add_done_callback(lambda ending: self._on_end(child.how_it_ended(ending.result(), self._limits)))
        return child

    async def _fork(self, upload: str, source: Path) -> "_Child":
        server, user = self.start(), None
        if self._first_user is None:
            return await server.fork(upload, source, self._limits)
        user = next(user for user in count(self._first_user) if user not in self._users)
        self._users.add(user)
        try:
            child = await server.fork(upload, source, self._limits, user, self._first_user)
        except BaseException:
            self._users.discard(user)
            raise
        child.ending.add_done_callback(lambda _: self._users.discard(user))
        return child

    def _take(self, child: "_Child") -> "_Child":
        """Takes a child out of the idle ones."""
        self._idle.remove(child)
        if child.idle_timer is not None:
            child.idle_timer.cancel()
        return child

    async def _give_back(self, child: "_Child") -> None:
        if child.pages < self._limits.pages_per_child and not child.ending.done() and child.server is self._server:
            self._idle.append(child)
            child.idle_timer = asyncio.get_running_loop().call_later(self._idle_s, self._end_idle, child)
        else:
            await child.end()

    def _end_idle(self, child: "_Child") -> None:
        self._in_background(self._take(child).end())

    async def _end_replaced(self, server: "_ForkServer") -> None:
        """Ends a fork server when its last child has ended. Its idle children end at once."""
        for child in [child for child in self._idle if child.server is server]:
            await self._take(child).end()
        await server.wait_until_unused()
        await server.close()
        self._replaced.discard(server)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@dataclass(frozen=True)
class _Ending:
    """How a child ended.

    Args:
        status: The exit code, or minus the signal.
        over_limit: Whether the fork server killed it because it reached its memory limit.
    """

    status: int
    over_limit: bool = False


class _Child:
    """A render child, as the worker sees it."""

    def __init__(
        self,
        server: "_ForkServer",
        pid: int,
        upload: str,
        source: Path,
        channel: socket.socket,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.pid = pid
        self.upload = upload
        self.source = source
        self.ending = server.endings[pid]
        self.pages = 0
        self.worked_alone = True
        """Whether no other child of the pool has worked during the last request."""
        self.idle_timer: asyncio.TimerHandle | None = None
        self.server = server
        self._how_ended = ""
        self._channel = channel
        self._reader = reader
        self._writer = writer

    async def ask(self, request: dict[str, Any], files: Sequence[int], limits: ChildLimits, beat: Callable[[], None]) -> Any:
        """Sends a request and the descriptors of the files to write; returns the result.

        Raises:
            SiteLinkError: The child refuses the document or the page.
            RenderFault: The child crashed or went over a limit. It may still be alive.
            OSError: The child could not write its files.
        """
        line = json.dumps({**request, "cpuS": limits.cpu_s}).encode() + b"\n"
        # A child that has ended is noticed below. The socket has room: the child has read every request before.
        with contextlib.suppress(ConnectionError):
            socket.send_fds(self._channel, [line], files)
        reading = asyncio.create_task(self._reader.readline())
        try:
            await self._watch(reading, limits, beat)
            answer = json.loads(reading.result())
        except ValueError as error:
            raise self._fault(RenderCrashed, "the render process sent an answer that cannot be read") from error
        finally:
            reading.cancel()
        is_fresh = self.pages == 0
        self.pages += request["operation"] == "tile"
        if "error" in answer:
            raise error_of_answer(answer, limits, self.upload, fresh_child=is_fresh)
        return answer["result"]

    def how_it_ended(self, ending: _Ending, limits: ChildLimits) -> str:
        """How the worker has ended it, or the name of the fault by which it has ended itself."""
        return self._how_ended or type(self._fault_of(ending, limits)).__name__

    async def end(self, how: str = RETIRED) -> None:
        """Kills the process; returns when it has ended.

        Args:
            how: ``RETIRED``, or the name of the error for which the worker ends it.
        """
        if not self.ending.done():
            self._how_ended = how
        self._writer.close()
        self.server.kill(self.pid)
        # Unlike a plain await, asyncio.wait does not cancel the future when the caller is cancelled.
        await asyncio.wait((self.ending,))

    async def _watch(self, line: asyncio.Task[bytes], limits: ChildLimits, beat: Callable[[], None]) -> None:
        """Waits for the answer.

        Raises:
            RenderFault: The child has ended, or is over its limit of wall time.
        """
        clock = asyncio.get_running_loop().time
        started_at = beaten_at = clock()
        most_cpu_s = _cpu_s(self.pid) + limits.cpu_s + CPU_GRACE_S
        awaited: set[asyncio.Future[Any]] = {line, self.ending}
        while True:
            remaining_s = started_at + limits.wall_s - clock()
            await asyncio.wait(awaited, timeout=max(0, min(BEAT_S, remaining_s)), return_when=asyncio.FIRST_COMPLETED)
            if line.done():
                if not line.exception() and line.result().endswith(b"\n"):
                    return
                # The connection has closed. The fork server will say in a moment how the process ended.
                awaited.discard(line)
            if self.ending.done():
                raise self._fault_of(self.ending.result(), limits)
            if clock() - started_at >= limits.wall_s:
                raise self._fault(RenderTimeout, f"not done after {limits.wall_s:g} s")
            if _cpu_s(self.pid) > most_cpu_s:
                raise self._fault(RenderTimeout, _cpu_message(limits))
            if clock() - beaten_at >= BEAT_S:
                beaten_at = clock()
                beat()

    def _fault_of(self, ending: _Ending, limits: ChildLimits) -> RenderFault:
        status = ending.status
        if ending.over_limit:
            return self._fault(RenderOutOfMemory, _memory_message(limits))
        if status == -signal.SIGXCPU:
            return RenderTimeout(_cpu_message(limits), fresh_child=self.pages == 0, is_certain=self.pages == 0 and self.worked_alone)
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with exit code {status}"
        return self._fault(RenderCrashed, f"the render process ended {how}")

    def _fault(self, kind: type[RenderFault], message: str) -> RenderFault:
        return kind(message, fresh_child=self.pages == 0)


class _ForkServer:
    """The process that forks the children. It is started at once; ``is_lost`` is set when it has ended.

    The kernel kills it when the thread that started it ends. So it is started by the thread of the event loop.

    Args:
        module: The module that it runs.
    """

    def __init__(self, module: str = FORK_SERVER) -> None:
        self.is_lost = False
        self._forks = 0
        self._started_at = time.monotonic()
        self.endings: dict[int, asyncio.Future[_Ending]] = {}
        """The pid of each child that is alive, and the future of its ending."""
        self._starting: deque[asyncio.Future[int]] = deque()
        self._loop = asyncio.get_running_loop()
        self._control, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        with server_end:
            self._process = start_process(
                module,
                str(server_end.fileno()),
                str(os.getpid()),
                stdin=subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
                pass_fds=[server_end.fileno()],
            )
        threading.Thread(target=log_lines, args=(self._process.stdout,), name="render-output", daemon=True).start()
        self._loop.add_reader(self._control, self._receive)

    def is_worn(self, most_forks: int) -> bool:
        """Whether it should be replaced."""
        return self._forks >= most_forks or time.monotonic() - self._started_at > RENEW_S

    async def wait_until_unused(self) -> None:
        """Returns when no child is starting or alive."""
        while waiting := {*self._starting, *self.endings.values()}:
            await asyncio.wait(cast("set[asyncio.Future[Any]]", waiting))

    async def fork(self, upload: str, source: Path, limits: ChildLimits, user: int | None = None, group: int = 0) -> _Child:
        """Starts a child, which may read no document but ``source``.

        Args:
            upload: The child's upload.
            source: The document. With a user, the group gets the right to read it, unless all users may.
            limits: The child's limits.
            user: The child's uid; None: the worker's.
            group: Its gid.

        Raises:
            RenderCrashed: The fork server does not answer.
            OSError: The document cannot be opened.
        """
        message = {"fork": limits.memory_bytes, "cpuS": (limits.pages_per_child + 1) * (limits.cpu_s + 1)}
        document = source.open("rb")
        if user is not None:
            message |= {"user": user, "group": group}
            _let_read(document, group)
        self._forks += 1
        own_end, child_end = socket.socketpair()
        starting: asyncio.Future[int] = self._loop.create_future()
        try:
            with child_end, document:
                socket.send_fds(self._control, [json.dumps(message).encode()], [child_end.fileno(), document.fileno()])
            self._starting.append(starting)
            pid = await asyncio.shield(starting)
            reader, writer = await asyncio.open_unix_connection(sock=own_end, limit=LONGEST_ANSWER_BYTES)
        except OSError as error:
            own_end.close()
            msg = "the fork server does not answer"
            raise RenderCrashed(msg, fresh_child=False) from error
        except asyncio.CancelledError:
            own_end.close()
            await asyncio.shield(self._end_unwanted(starting))
            raise
        return _Child(self, pid, upload, source, own_end, reader, writer)

    async def _end_unwanted(self, starting: asyncio.Future[int]) -> None:
        """Ends a child as soon as it has started, because its caller was cancelled."""
        with contextlib.suppress(ConnectionError):
            pid = await starting
            if (ending := self.endings.get(pid)) is not None:
                self.kill(pid)
                await asyncio.wait((ending,))

    def kill(self, pid: int) -> None:
        """Kills a child, if it is alive."""
        if pid in self.endings:
            self._control.send(json.dumps({"kill": pid}).encode())

    async def close(self) -> None:
        """Ends every child, then the server; returns when all have ended."""
        alive = list(self.endings.values())
        for pid in self.endings:
            self.kill(pid)
        if alive:
            await asyncio.wait(alive, timeout=CLOSE_TIMEOUT_S)
        self._mark_lost()
        try:
            await asyncio.to_thread(self._process.wait, CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)

    def _receive(self) -> None:
        try:
            data = self._control.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._mark_lost()
            return
        message = json.loads(data)
        if "started" in message:
            self.endings[message["started"]] = self._loop.create_future()
            starting = self._starting.popleft()
            if not starting.done():
                starting.set_result(message["started"])
        else:
            self.endings.pop(message["ended"]).set_result(_Ending(message["status"], message["overLimit"]))

    def _mark_lost(self) -> None:
        """Marks the server, and every child, as ended: the kernel kills the children when the server ends."""
        if self.is_lost:
            return
        self.is_lost = True
        self._loop.remove_reader(self._control)
        self._control.close()
        for starting in self._starting:
            if not starting.done():
                starting.set_exception(ConnectionResetError("the fork server has ended"))
        for ending in self.endings.values():
            ending.set_result(_Ending(-signal.SIGKILL))
        self.endings.clear()


def log_lines(output: IO[bytes]) -> None:
    """Logs the lines that the libraries print, until the server and its children have ended."""
    with output:
        for line in iter(lambda: output.readline(LONGEST_LINE_BYTES), b""):
            logger.warning("a render process printed a line", extra={"line": line.decode("utf-8", "replace").rstrip()})


def _let_read(document: IO[bytes], group: int) -> None:
    """Lets a group read the file if not everybody may; on an error closes it."""
    try:
        if not (mode := os.fstat(document.fileno()).st_mode) & stat.S_IROTH:
            os.fchown(document.fileno(), -1, group)
            os.fchmod(document.fileno(), stat.S_IMODE(mode) | stat.S_IRGRP)
    except OSError:
        document.close()
        raise


def _cpu_s(pid: int) -> float:
    """The CPU time that a process has used; 0 if it has ended. For the number of its clock see ``clock_getcpuclockid(3)``."""
    try:
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:
        return 0.0


def _cpu_message(limits: ChildLimits) -> str:
    return f"not done after {limits.cpu_s:,} s of CPU time"


def _memory_message(limits: ChildLimits) -> str:
    return f"the page needs more than {limits.memory_bytes:,} bytes of memory"


def error_of_answer(answer: dict[str, Any], limits: ChildLimits, upload: str, *, fresh_child: bool) -> Exception:
    """The exception for the error in a child's answer. The words of a library go only to the log."""
    name, message = str(answer["error"]), str(answer["message"])
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, SiteLinkError) and not issubclass(kind, RenderFault):
        return kind(message)
    if name == MemoryError.__name__:
        return RenderOutOfMemory(_memory_message(limits), fresh_child=fresh_child)
    if name == OSError.__name__:
        return OSError(answer.get("errno"), message) if answer.get("errno") else OSError(message)
    logger.warning("a render process failed: %s: %s", name, message, extra={"ref": upload})
    return RenderCrashed("the render process failed unexpectedly; the tile worker's log says why", fresh_child=fresh_child)
