"""Render children: limited processes that open the PDFs, each for the pages of one upload. No native library is loaded here.

A child is warm: it keeps the document open and its buffer mapped from page to page. It is replaced when another upload needs its slot,
after any fault, and after a number of pages. Its wall time is limited from here, its CPU time by the kernel, its memory by the kernel and
by ``forkserver``, the other side.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from activities import errors
from activities.attempt import BEAT_S
from activities.bucket.records import Note, UploadOptions, from_wire, to_wire
from activities.errors import RenderCrashed, RenderFault, RenderOutOfMemory, RenderTimeout, SiteLinkError
from activities.interface import Document, TilePage
from activities.render.process import start_process

logger = logging.getLogger(__name__)

LONGEST_ANSWER_BYTES = 64 << 20
LONGEST_LINE_BYTES = 2000
CLOSE_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class ChildLimits:
    """What a child may take, and how long it lives.

    Args:
        memory_bytes: Of private memory, the page's pixels included.
        cpu_s: Seconds of CPU time a page, or the counting of a document.
        wall_s: Seconds of time a page, or the counting of a document.
        pages_per_child: Pages after which a child is replaced.
    """

    memory_bytes: int = 3 << 30
    cpu_s: int = 120
    wall_s: float = 180
    pages_per_child: int = 100


class ChildPool:
    """At most ``slots`` children of one fork server. The pool belongs to the event loop in which it is first used.

    Args:
        slots: Children at work at once; callers beyond wait their turn.
        limits: See ChildLimits.
    """

    def __init__(self, slots: int, limits: ChildLimits | None = None) -> None:
        self._slots = slots
        self._limits = limits or ChildLimits()
        self._free_slots = asyncio.Semaphore(slots)
        self._busy = 0
        self._idle: list[_Child] = []
        self._server: _ForkServer | None = None

    async def count_pages(self, upload: str, source: Path, options: UploadOptions, max_pages: int, beat: Callable[[], None]) -> Document:
        """Size and title of every page.

        Args:
            upload: Names the upload and its bytes; a child serves only one.
            source: The PDF.
            options: The upload's.
            max_pages: The published limit.
            beat: Called about once a second while this waits.

        Raises:
            DocumentError: The document cannot be used.
            RenderFault: The child failed.
        """
        request = {
            "operation": "count",
            "source": _absolute(source),
            "options": to_wire(options),
            "maxPages": max_pages,
        }
        return from_wire(Document, await self._ask(upload, request, beat))

    async def tile_page(
        self, upload: str, source: Path, args: TilePage, target: Path, beat: Callable[[], None]
    ) -> tuple[dict[str, str], tuple[Note, ...]]:
        """Draws a page and writes ``tiles.zip`` and ``thumbnail.jpeg``, as ``tilezip`` reads them.

        Args:
            upload: Names the upload and its bytes; a child serves only one.
            source: The PDF.
            args: Which page, at which size.
            target: An existing, empty directory.
            beat: Called about once a second while this waits.

        Returns:
            Library name to version, of all that decided the tiles' bytes; and what was found while the page was drawn.

        Raises:
            DocumentError: The document cannot be used.
            PageError: The page cannot be used.
            RenderFault: The child failed.
            OSError: The files cannot be written.
        """
        request = {
            "operation": "tile",
            "source": _absolute(source),
            "number": args.number,
            "width": args.width,
            "height": args.height,
            "options": to_wire(args.options),
            "target": _absolute(target),
        }
        answer = await self._ask(upload, request, beat)
        engines = {str(name): str(version) for name, version in answer["engines"].items()}
        return engines, tuple(from_wire(Note, note) for note in answer["notes"])

    async def retire(self, upload: str) -> None:
        """Ends the idle children of an upload that is done, and with them its document and buffers."""
        for child in [child for child in self._idle if child.upload == upload]:
            self._idle.remove(child)
            await child.end()

    async def close(self) -> None:
        """Ends every child, the busy ones included, and the fork server. The pool may not be asked again."""
        idle, self._idle = self._idle, []
        await asyncio.gather(*(child.end() for child in idle))
        if self._server is not None:
            await self._server.close()

    async def _ask(self, upload: str, request: dict[str, Any], beat: Callable[[], None]) -> Any:
        async with self._slot(beat):
            child = await self._child_of(upload)
            try:
                result = await child.ask(request, self._limits, beat)
            except BaseException as error:
                # A named refusal leaves the child as good as it was. Any other error ends the child before the caller sees the error.
                if isinstance(error, SiteLinkError) and not isinstance(error, RenderFault):
                    await self._give_back(child)
                else:
                    await asyncio.shield(child.end())
                raise
            await self._give_back(child)
            return result

    @contextlib.asynccontextmanager
    async def _slot(self, beat: Callable[[], None]) -> AsyncIterator[None]:
        taking = asyncio.create_task(self._free_slots.acquire())
        try:
            while not (await asyncio.wait({taking}, timeout=BEAT_S))[0]:
                beat()
            self._busy += 1
            try:
                yield
            finally:
                self._busy -= 1
        finally:
            if not taking.cancel():
                self._free_slots.release()

    async def _child_of(self, upload: str) -> "_Child":
        """An idle child of this upload, else a new one, in the place of the one that was idle for longest if all places are taken."""
        for child in reversed(self._idle):
            if child.upload == upload and not child.ended.done():
                self._idle.remove(child)
                return child
        while self._idle and self._busy + len(self._idle) > self._slots:
            await self._idle.pop(0).end()
        if self._server is not None and self._server.lost:
            # Forgotten first, so that a caller that comes meanwhile starts the next server.
            lost, self._server = self._server, None
            await lost.close()
        if self._server is None:
            self._server = _ForkServer()
        return await self._server.fork(upload, self._limits.memory_bytes)

    async def _give_back(self, child: "_Child") -> None:
        if child.pages < self._limits.pages_per_child and not child.ended.done():
            self._idle.append(child)
        else:
            await child.end()


@dataclass(frozen=True)
class _Ending:
    """How a child ended: its exit code or minus the signal, and whether it was killed for its memory."""

    status: int
    over_limit: bool = False


class _Child:
    """One render process, as its parent sees it."""

    def __init__(self, server: "_ForkServer", pid: int, upload: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.pid = pid
        self.upload = upload
        self.ended = server.ended[pid]
        self.pages = 0
        self._server = server
        self._reader = reader
        self._writer = writer

    async def ask(self, request: dict[str, Any], limits: ChildLimits, beat: Callable[[], None]) -> Any:
        """One request, answered within the limits.

        Raises:
            SiteLinkError: What the child refused, by name.
            RenderFault: It crashed, or went over a limit; it may still be alive.
            OSError: It could not write.
        """
        self._writer.write(json.dumps({**request, "cpuS": limits.cpu_s}).encode() + b"\n")
        line = asyncio.create_task(self._reader.readline())
        try:
            await self._watch(line, limits, beat)
            answer = json.loads(line.result())
        except ValueError as error:
            raise self._fault(RenderCrashed, "the render process answered nonsense") from error
        finally:
            line.cancel()
        fresh = self.pages == 0
        self.pages += request["operation"] == "tile"
        if "error" in answer:
            raise error_of_answer(answer, limits, self.upload, fresh_child=fresh)
        return answer["result"]

    async def end(self) -> None:
        """Kills the process; returns when it is gone."""
        self._writer.close()
        self._server.kill(self.pid)
        # Unlike a plain await, this leaves the future alone when the caller is cancelled.
        await asyncio.wait((self.ended,))

    async def _watch(self, line: asyncio.Task[bytes], limits: ChildLimits, beat: Callable[[], None]) -> None:
        """Waits for the answer, looking at the limits."""
        clock = asyncio.get_running_loop().time
        started = beaten = clock()
        awaited: set[asyncio.Future[Any]] = {line, self.ended}
        while True:
            left = started + limits.wall_s - clock()
            await asyncio.wait(awaited, timeout=max(0, min(BEAT_S, left)), return_when=asyncio.FIRST_COMPLETED)
            if line.done():
                if not line.exception() and line.result().endswith(b"\n"):
                    return
                # The connection has closed; how the process ended is told in a moment.
                awaited.discard(line)
            if self.ended.done():
                raise self._fault_of(self.ended.result(), limits)
            if clock() - started >= limits.wall_s:
                raise self._fault(RenderTimeout, f"not done after {limits.wall_s:g} s")
            if clock() - beaten >= BEAT_S:
                beaten = clock()
                beat()

    def _fault_of(self, end: _Ending, limits: ChildLimits) -> RenderFault:
        status = end.status
        if end.over_limit:
            return self._fault(RenderOutOfMemory, _memory_message(limits))
        if status == -signal.SIGXCPU:
            return self._fault(RenderTimeout, f"not done after {limits.cpu_s:,} s of CPU time")
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with exit code {status}"
        return self._fault(RenderCrashed, f"the render process ended {how}")

    def _fault(self, kind: type[RenderFault], message: str) -> RenderFault:
        return kind(message, fresh_child=self.pages == 0)


class _ForkServer:
    """The process that children are forked from, started at once. ``lost`` when it has ended.

    The kernel kills it when the thread that started it ends, so it is started by the event loop's own thread.
    """

    def __init__(self) -> None:
        self.lost = False
        self.ended: dict[int, asyncio.Future[_Ending]] = {}
        """pid of each child that is alive, to what will be its end."""
        self._starting: deque[asyncio.Future[int]] = deque()
        self._loop = asyncio.get_running_loop()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        with theirs:
            self._process = start_process(
                "activities.render.forkserver",
                str(theirs.fileno()),
                str(os.getpid()),
                stdin=subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
            )
        threading.Thread(target=log_lines, args=(self._process.stdout,), name="render-output", daemon=True).start()
        self._loop.add_reader(self._control, self._receive)

    async def fork(self, upload: str, memory_bytes: int) -> _Child:
        """A new child."""
        ours, theirs = socket.socketpair()
        starting: asyncio.Future[int] = self._loop.create_future()
        try:
            with theirs:
                socket.send_fds(self._control, [json.dumps({"fork": memory_bytes}).encode()], [theirs.fileno()])
            self._starting.append(starting)
            pid = await asyncio.shield(starting)
            reader, writer = await asyncio.open_unix_connection(sock=ours, limit=LONGEST_ANSWER_BYTES)
        except OSError as error:
            ours.close()
            msg = "the fork server does not answer"
            raise RenderCrashed(msg, fresh_child=False) from error
        except asyncio.CancelledError:
            ours.close()
            await asyncio.shield(self._end_unwanted(starting))
            raise
        return _Child(self, pid, upload, reader, writer)

    async def _end_unwanted(self, starting: asyncio.Future[int]) -> None:
        """Ends a child as soon as it has started: its caller was cancelled."""
        with contextlib.suppress(ConnectionError):
            pid = await starting
            if (ended := self.ended.get(pid)) is not None:
                self.kill(pid)
                await asyncio.wait((ended,))

    def kill(self, pid: int) -> None:
        """Kills a child, if it is alive."""
        if pid in self.ended:
            self._control.send(json.dumps({"kill": pid}).encode())

    async def close(self) -> None:
        """Ends every child, then the server; returns when they are gone."""
        alive = list(self.ended.values())
        for pid in self.ended:
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
            self.ended[message["started"]] = self._loop.create_future()
            starting = self._starting.popleft()
            if not starting.done():
                starting.set_result(message["started"])
        else:
            self.ended.pop(message["ended"]).set_result(_Ending(message["status"], message["overLimit"]))

    def _mark_lost(self) -> None:
        """Takes note that the server is gone: the kernel has killed every child with it."""
        if self.lost:
            return
        self.lost = True
        self._loop.remove_reader(self._control)
        self._control.close()
        for starting in self._starting:
            if not starting.done():
                starting.set_exception(ConnectionResetError("the fork server has ended"))
        for ended in self.ended.values():
            ended.set_result(_Ending(-signal.SIGKILL))
        self.ended.clear()


def log_lines(output: IO[bytes]) -> None:
    """Logs what the libraries print, until the server and its children are gone."""
    with output:
        for line in iter(lambda: output.readline(LONGEST_LINE_BYTES), b""):
            logger.warning("a render process printed a line", extra={"line": line.decode("utf-8", "replace").rstrip()})


def _absolute(path: Path) -> str:
    # Render processes have a working directory of their own.
    return str(path.absolute())


def _memory_message(limits: ChildLimits) -> str:
    return f"the page needs more than {limits.memory_bytes:,} bytes of memory"


def error_of_answer(answer: dict[str, Any], limits: ChildLimits, upload: str, *, fresh_child: bool) -> Exception:
    """The exception that a child's answer stands for; the words of a library go to the log only."""
    name, message = str(answer["error"]), str(answer["message"])
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, SiteLinkError) and not issubclass(kind, RenderFault):
        return kind(message)
    if name == MemoryError.__name__:
        return RenderOutOfMemory(_memory_message(limits), fresh_child=fresh_child)
    if name == OSError.__name__:
        return OSError(answer.get("errno"), message) if answer.get("errno") else OSError(message)
    logger.warning("a render process failed: %s: %s", name, message, extra={"ref": upload})
    return RenderCrashed("the render process failed in a way that nobody foresaw; the tile worker's log says why", fresh_child=fresh_child)
