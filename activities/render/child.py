"""Render children: processes with limits that open the PDFs, each for the pages of one upload. Loads no native library.

A child is warm: it keeps the document open and its buffer mapped from page to page. It is replaced when another upload needs its slot,
after any fault, and after a number of pages. This module limits its wall time, and the kernel its CPU time. ``forkserver``, the process
that forks the children, limits their memory together with the kernel.
"""

import asyncio
import contextlib
import errno
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
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from itertools import count
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from activities.attempt import BEAT_S
from activities.bucket.dzi import Pyramid
from activities.bucket.records import UploadOptions, bounded_layers, to_wire
from activities.errors import RenderCrashed, RenderFault, RenderOutOfMemory, RenderTimeout, SiteLinkError, TilesMissing
from activities.interface import Document, TilePage
from activities.render.answers import (
    REFUSALS,
    TILE_ANSWER_BYTES,
    Rendered,
    clean_text,
    count_answer_bytes,
    raise_if_disk_is_full,
    read_answer,
    read_document,
    read_rendered,
    short_message,
)
from activities.render.process import closed_directory, start_process
from activities.render.tilefile import check_sheet, new_files, write_layers

logger = logging.getLogger(__name__)

T = TypeVar("T")

LONGEST_LINE_BYTES = 2000
MOST_LINES = 100
"""Lines of render processes that are logged within ``LINES_S`` seconds."""
LINES_S = 60.0
MOST_DROPPED_BYTES = 1 << 16
"""Bytes that are dropped in a millisecond at most."""
CRASHED = "the render process failed unexpectedly; the tile worker's log says why"
UNREADABLE = "the render process sent an answer that cannot be read"
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

    server_answer_s = 120.0
    """See ``_ForkServer``. A start takes a third of a second, and an end as long as the kernel needs to free the child's memory."""

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
            self._server = _ForkServer(self._fork_server, self.server_answer_s)
        return self._server

    async def layers(self) -> list[str]:
        """The layers of confinement that hold in a child of its own for this question, as ``confine`` names them.

        A child with a user of its own may be unable to read its libraries. Then no child gets such a user, and the log says so.

        Raises:
            RenderFault: A child cannot do its work: it may be unable to read its libraries or fonts.
        """
        if self._first_user is not None and (closed := closed_directory()):
            logger.warning("render children keep the user of the worker: another user may not enter %s", closed)
            self._first_user = None
        try:
            return await self._layers()
        except RenderFault as fault:
            if self._first_user is None:
                raise
            logger.warning("render children keep the user of the worker: as a user of its own, one failed: %s", fault)
            self._first_user = None
            return await self._layers()

    async def _layers(self) -> list[str]:
        async def read(names: Any) -> list[str]:
            return [str(name) for name in names]

        child = await self._new_child("", Path(__file__), lambda: None)
        try:
            self.confinement = tuple(await child.ask({"operation": "layers"}, (), read, TILE_ANSWER_BYTES, self._limits, lambda: None))
            return list(self.confinement)
        finally:
            await asyncio.shield(child.end())

    async def count_pages(
        self,
        upload: str,
        source: Path,
        options: UploadOptions,
        max_pages: int,
        beat: Callable[[], None],
        password: str = "",
        *,
        fresh: bool = False,
    ) -> Document:
        """Measures every page: its size and title.

        Args:
            upload: Names the upload and its bytes. A child serves only one upload.
            source: The PDF.
            options: The upload's options.
            max_pages: The published limit.
            beat: Called about once a second while this waits.
            password: Opens the PDF, if it needs one. The child gets it over its socket alone.
            fresh: Whether a child that has drawn no page before must do it. Only its faults count against the page, so a page that has
                failed must be given to a fresh child.

        Raises:
            DocumentError: The document cannot be used.
            RenderFault: The child failed.
        """
        request = {"operation": "count", "password": password, "options": to_wire(options), "maxPages": max_pages}

        async def read(result: Any) -> Document:
            return read_document(result, options, max_pages)

        return await self._ask(upload, source, request, (), read, count_answer_bytes(max_pages), beat, fresh=fresh)

    async def tile_page(
        self, upload: str, source: Path, args: TilePage, target: Path, beat: Callable[[], None], password: str = "", *, fresh: bool = False
    ) -> Rendered:
        """Draws a page and writes ``tiles.flat``, ``thumbnail.jpeg`` and ``layers.json``, as ``tilefile`` reads them.

        Args:
            upload: Names the upload and its bytes. A child serves only one upload.
            source: The PDF.
            args: The page and its size.
            target: An existing, empty directory.
            beat: Called about once a second while this waits.
            password: Opens the PDF, if it needs one. The child gets it over its socket alone.
            fresh: Whether a child that has drawn no page before must do it. Only its faults count against the page, so a page that has
                failed must be given to a fresh child.

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
        pyramid = Pyramid(args.width, args.height, args.options.tile_size, args.options.overlap)

        async def read(result: Any) -> Rendered:
            rendered = read_rendered(result)
            await asyncio.to_thread(check_sheet, target, pyramid)
            if layers := bounded_layers(rendered.layers):
                write_layers(target, layers)
            return rendered

        with new_files(target) as files:
            return await self._ask(upload, source, request, files, read, TILE_ANSWER_BYTES, beat, fresh=fresh)

    async def retire(self, upload: str) -> None:
        """Ends the idle children of an upload that has ended, so that its document and buffers are freed."""
        await asyncio.gather(*(self._take(child).end() for child in list(self._idle) if child.upload == upload))

    async def close(self) -> None:
        """Ends every child, also a busy one, and the fork server. The pool cannot be used any more."""
        await asyncio.gather(*(self._take(child).end() for child in list(self._idle)))
        if self._server is not None:
            await self._server.close()
        for server in list(self._replaced):
            await server.close()
        await asyncio.gather(*self._tasks)

    async def _ask(
        self,
        upload: str,
        source: Path,
        request: dict[str, Any],
        files: Sequence[int],
        read: Callable[[Any], Awaitable[T]],
        most_bytes: int,
        beat: Callable[[], None],
        *,
        fresh: bool,
    ) -> T:
        async with self._slot(beat):
            child = await self._child_of(upload, source, beat, fresh=fresh)
            try:
                with self._at_work(child):
                    result = await child.ask(request, files, read, most_bytes, self._limits, beat)
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

    async def _child_of(self, upload: str, source: Path, beat: Callable[[], None], *, fresh: bool) -> "_Child":
        """An idle child of this upload and file, else a new one. A new one takes the place of the one that was idle longest."""
        for child in reversed(self._idle):
            if fresh and child.pages:
                continue
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
        return await self._new_child(upload, source, beat)

    async def _new_child(self, upload: str, source: Path, beat: Callable[[], None]) -> "_Child":
        child = await self._fork(upload, source, beat)
        child.ending.add_done_callback(lambda ending: self._on_end(child.how_it_ended(ending.result(), self._limits)))
        return child

    async def _fork(self, upload: str, source: Path, beat: Callable[[], None]) -> "_Child":
        server = self.start()
        if self._first_user is None:
            return await server.fork(upload, source, self._limits, beat)
        user = next(user for user in count(self._first_user) if user not in self._users)
        self._users.add(user)
        try:
            child = await server.fork(upload, source, self._limits, beat, user, self._first_user)
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
        await asyncio.gather(*(self._take(child).end() for child in list(self._idle) if child.server is server))
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

    def __init__(self, server: "_ForkServer", pid: int, upload: str, source: Path, channel: socket.socket) -> None:
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
        self._channel.setblocking(False)
        self._requests = 0

    async def ask(
        self,
        request: dict[str, Any],
        files: Sequence[int],
        read: Callable[[Any], Awaitable[T]],
        most_bytes: int,
        limits: ChildLimits,
        beat: Callable[[], None],
    ) -> T:
        """Sends a request and the descriptors of the files to write; returns the result.

        Args:
            request: As the renderer takes it.
            files: The descriptors.
            read: Makes the result out of the one in the answer; raises ``ValueError`` or ``TilesMissing`` if it does not believe the child.
            most_bytes: The longest answer.
            limits: The child's limits.
            beat: Called about once a second while this waits.

        Raises:
            SiteLinkError: The child refuses the document or the page.
            RenderFault: The child crashed, went over a limit, or said or left what cannot be. It may still be alive.
            OSError: The disk is full.
        """
        self._requests += 1
        line = json.dumps({**request, "id": self._requests, "cpuS": limits.cpu_s}).encode() + b"\n"
        # A child that has ended is noticed below, and one that has not read its last request does not answer this one.
        with contextlib.suppress(ConnectionError, BlockingIOError):
            socket.send_fds(self._channel, [line], files)
        reading = asyncio.create_task(self._read_line(most_bytes))
        try:
            await self._watch(reading, limits, beat)
            answer = read_answer(reading.result(), self._requests)
            if "error" in answer:
                raise await self._error_of(answer, request["operation"], files, limits)
            result = await read(answer["result"])
        except (ValueError, TilesMissing) as error:
            logger.warning("a render process is not believed: %s", error, extra={"ref": self.upload})
            raise self._fault(RenderCrashed, UNREADABLE) from error
        finally:
            reading.cancel()
            await asyncio.wait((reading,))
            self.pages += request["operation"] == "tile"
        return result

    async def _read_line(self, most_bytes: int) -> bytes:
        """The next line that the child sends. The line lacks its newline if the child has closed its socket.

        Raises:
            ValueError: It is longer than ``most_bytes``.
        """
        line = bytearray()
        while not line.endswith(b"\n") and (data := await asyncio.get_running_loop().sock_recv(self._channel, 1 << 16)):
            line += data
            if len(line) > most_bytes:
                msg = f"its answer has more than {most_bytes:,} bytes"
                raise ValueError(msg)
        return bytes(line)

    async def _error_of(self, answer: dict[str, Any], operation: str, files: Sequence[int], limits: ChildLimits) -> Exception:
        """The exception for the error in an answer, as far as the child is believed: see ``answers``."""
        if answer.get("errno") in (errno.ENOSPC, errno.EDQUOT) and files:
            try:
                await asyncio.to_thread(raise_if_disk_is_full, files[0])
            except OSError as error:
                return error
        return error_of_answer(answer, operation, limits, self.upload, fresh_child=self.pages == 0)

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
        self._channel.close()
        self.server.kill(self.pid)
        await self.server.wait_for_end(self.ending)

    async def _watch(self, line: asyncio.Task[bytes], limits: ChildLimits, beat: Callable[[], None]) -> None:
        """Waits for the answer.

        Raises:
            RenderFault: The child has ended, or is over its limit of wall time.
            ValueError: The answer is too long.
        """
        clock = asyncio.get_running_loop().time
        started_at = beaten_at = clock()
        most_cpu_s = _cpu_s(self.pid) + limits.cpu_s + CPU_GRACE_S
        awaited: set[asyncio.Future[Any]] = {line, self.ending}
        while True:
            remaining_s = started_at + limits.wall_s - clock()
            await asyncio.wait(awaited, timeout=max(0, min(BEAT_S, remaining_s)), return_when=asyncio.FIRST_COMPLETED)
            if line.done():
                if isinstance(line.exception(), ValueError) or (not line.exception() and line.result().endswith(b"\n")):
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
        answer_s: A server that does not start or end a child within this time is stopped, or hangs. It is killed, and its children with it.
    """

    def __init__(self, module: str, answer_s: float) -> None:
        self._answer_s = answer_s
        self.is_lost = False
        self._forks = 0
        self._started_at = time.monotonic()
        self.endings: dict[int, asyncio.Future[_Ending]] = {}
        """The pid of each child that is alive, and the future of its ending."""
        self._starting: deque[asyncio.Future[int]] = deque()
        self._loop = asyncio.get_running_loop()
        self._control, server_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        # No pipe: a child could open it again, for reading, and learn what the others print.
        output, printed = socket.socketpair()
        printed.shutdown(socket.SHUT_RD)
        with server_end, printed:
            self._process = start_process(
                module,
                str(server_end.fileno()),
                str(os.getpid()),
                stdin=subprocess.DEVNULL,
                stdout=printed.fileno(),
                stderr=subprocess.STDOUT,
                pass_fds=[server_end.fileno()],
            )
        threading.Thread(target=log_lines, args=(os.fdopen(output.detach(), "rb"),), name="render-output", daemon=True).start()
        self._loop.add_reader(self._control, self._receive)

    def is_worn(self, most_forks: int) -> bool:
        """Whether it should be replaced."""
        return self._forks >= most_forks or time.monotonic() - self._started_at > RENEW_S

    async def wait_until_unused(self) -> None:
        """Returns when no child is starting or alive."""
        while waiting := {*self._starting, *self.endings.values()}:
            await asyncio.wait(cast("set[asyncio.Future[Any]]", waiting))

    async def fork(
        self, upload: str, source: Path, limits: ChildLimits, beat: Callable[[], None], user: int | None = None, group: int = 0
    ) -> _Child:
        """Starts a child, which may read no document but ``source``.

        Args:
            upload: The child's upload.
            source: The document. With a user, the group gets the right to read it, unless all users may.
            limits: The child's limits.
            beat: Called about once a second while this waits.
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
            pid = await self._started(starting, beat)
        except OSError as error:
            own_end.close()
            msg = "the fork server does not answer"
            raise RenderCrashed(msg, fresh_child=False) from error
        except asyncio.CancelledError:
            own_end.close()
            await asyncio.shield(self._end_unwanted(starting))
            raise
        return _Child(self, pid, upload, source, own_end)

    async def _started(self, starting: asyncio.Future[int], beat: Callable[[], None]) -> int:
        """The pid of a child, once it has started.

        Raises:
            ConnectionError: The server has ended, or was killed because it did not answer.
        """
        deadline = self._loop.time() + self._answer_s
        while not starting.done():
            remaining_s = deadline - self._loop.time()
            if remaining_s <= 0:
                await self._kill_server()
            await asyncio.wait((starting,), timeout=max(0, min(BEAT_S, remaining_s)))
            if not starting.done():
                beat()
        return starting.result()

    async def wait_for_end(self, ending: asyncio.Future[_Ending]) -> None:
        """Returns when a child that was killed has ended."""
        # Unlike a plain await, asyncio.wait does not cancel the future when the caller is cancelled.
        if not (await asyncio.wait((ending,), timeout=self._answer_s))[0]:
            await self._kill_server()

    async def _kill_server(self) -> None:
        logger.warning("the fork server is killed: it did not answer within %g s", self._answer_s)
        self._process.kill()
        await asyncio.to_thread(self._process.wait)
        self._mark_lost()

    async def _end_unwanted(self, starting: asyncio.Future[int]) -> None:
        """Ends a child as soon as it has started, because its caller was cancelled."""
        with contextlib.suppress(ConnectionError):
            pid = await self._started(starting, lambda: None)
            if (ending := self.endings.get(pid)) is not None:
                self.kill(pid)
                await self.wait_for_end(ending)

    def kill(self, pid: int) -> None:
        """Kills a child, if it is alive."""
        if pid in self.endings:
            # A server that has ended is noticed by _receive, and one that does not read by wait_for_end.
            with contextlib.suppress(OSError):
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


def log_lines(output: BufferedReader) -> None:
    """Logs the lines that the libraries print, until the server and its children have ended; the first ``MOST_LINES`` within ``LINES_S``.

    A child that prints without end is read slowly, so that it waits, and not the worker; yet fast enough that others need not wait.
    """
    logged, dropped, since = 0, 0, time.monotonic()
    with output:
        for line in iter(lambda: output.readline(LONGEST_LINE_BYTES), b""):
            if time.monotonic() - since > LINES_S:
                logged, dropped, since = 0, _log_dropped(dropped), time.monotonic()
            if logged < MOST_LINES:
                logged += 1
                logger.warning("a render process printed a line", extra={"line": clean_text(line.decode("utf-8", "replace").rstrip())})
            else:
                dropped += 1 + output.read1(MOST_DROPPED_BYTES).count(b"\n")
                time.sleep(0.001)
    _log_dropped(dropped)


def _log_dropped(lines: int) -> int:
    """Logs how many lines were not logged; returns zero, their number from now on."""
    if lines:
        logger.warning("render processes printed too many lines", extra={"dropped": lines})
    return 0


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


def error_of_answer(answer: dict[str, Any], operation: str, limits: ChildLimits, upload: str, *, fresh_child: bool) -> SiteLinkError:
    """The exception for the error in a child's answer, except for a full disk. The words of a library go only to the log."""
    name, words = str(answer["error"]), short_message(str(answer["message"]))
    if (kind := REFUSALS.get(operation, {}).get(name)) is not None:
        return kind(words)
    if name == MemoryError.__name__:
        return RenderOutOfMemory(_memory_message(limits), fresh_child=fresh_child)
    logger.warning("a render process failed: %s: %s", short_message(name), words, extra={"ref": upload})
    return RenderCrashed(CRASHED, fresh_child=fresh_child)
