"""The process that render children are forked from, and what a child does. Run as ``python -m activities.render.forkserver``.

1. The rendering libraries are loaded once, here; a fork then takes milliseconds. Nothing in this process ever opens a document.
2. A child reads requests and writes answers as JSON lines on its own socket. JSON, because whoever takes over a child by a hostile
   PDF must not be able to make the worker run code, as a pickle would.
3. This process dies with the worker and the children with this process, by the kernel (``PR_SET_PDEATHSIG``), even when all of
   them are killed by SIGKILL, and even while a child is deep in a library.
4. SIGINT and SIGTERM are ignored: a terminal or a service manager sends them to every process, and the worker finishes its pages first.
5. A child that asks for more memory than its limit is killed from here, before it could go on without that memory: see ``memorylimit``.
"""

import ctypes
import errno
import fcntl
import gc
import json
import os
import resource
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from activities.bucket.records import UploadOptions, from_wire, to_wire
from activities.errors import SiteLinkError
from activities.render import memorylimit

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serves fork and kill requests on the socket whose descriptor is the first argument, until the worker is gone."""
    control = socket.socket(fileno=int(sys.argv[1]))
    _die_with(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raster = import_module("activities.render.raster")
    pyramid = import_module("activities.render.pyramid")
    pyramid.configure()
    gc.freeze()
    _Server(control, raster, pyramid).serve()


@dataclass
class _Forked:
    """A child as the server sees it."""

    pid: int
    memory_bytes: int
    judge: memorylimit.Judge | None = None
    over_limit: bool = False


class _Server:
    """One message of the worker is one packet: ``{"fork": memory limit}`` with the child's socket, or ``{"kill": pid}``.

    Answers ``{"started": pid}`` and ``{"ended": pid, "status": exit code or minus the signal, "overLimit": killed for its memory}``.
    A process that has ended stays a zombie until it is answered for, so that a pid never names another process meanwhile.
    """

    def __init__(self, control: socket.socket, raster: ModuleType, pyramid: ModuleType) -> None:
        self._control = control
        self._modules = raster, pyramid
        self._pid = os.getpid()
        self._children: dict[int, _Forked] = {}
        self._poll = select.poll()
        self._watched: dict[int, tuple[Callable[[int, _Forked], None], _Forked]] = {}
        self._unused: list[int] = []

    def serve(self) -> None:
        """Returns when the worker is gone."""
        self._poll.register(self._control, select.POLLIN)
        while True:
            for descriptor, event in self._poll.poll():
                if descriptor == self._control.fileno():
                    data, descriptors, _, _ = socket.recv_fds(self._control, 4096, 1)
                    if not data:
                        return
                    self._do(json.loads(data), descriptors)
                elif event & select.POLLIN:
                    react, child = self._watched[descriptor]
                    react(descriptor, child)
                else:
                    self._forget(descriptor)
            # Only now, so that among the ready ones no number means something new.
            while self._unused:
                os.close(self._unused.pop())

    def _do(self, message: dict[str, int], descriptors: list[int]) -> None:
        if "kill" in message:
            if message["kill"] in self._children:
                os.kill(message["kill"], signal.SIGKILL)
            return
        hello, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            _child(self._pid, descriptors[0], theirs.fileno(), message["fork"], *self._modules)
        os.close(descriptors[0])
        theirs.close()
        child = self._children[pid] = _Forked(pid, message["fork"])
        self._watch(os.pidfd_open(pid), self._ended, child)
        self._watch(hello.detach(), self._greeted, child)
        self._tell({"started": pid})

    def _watch(self, descriptor: int, react: Callable[[int, _Forked], None], child: _Forked) -> None:
        self._watched[descriptor] = react, child
        self._poll.register(descriptor, select.POLLIN)

    def _forget(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        del self._watched[descriptor]
        self._unused.append(descriptor)

    def _greeted(self, hello: int, child: _Forked) -> None:
        """The child has sent its listener, or has none."""
        channel = socket.socket(fileno=hello)
        _, listeners, _, _ = socket.recv_fds(channel, 1, 1)
        channel.detach()
        self._forget(hello)
        for listener in listeners:
            child.judge = memorylimit.Judge(listener, child.pid, child.memory_bytes)
            self._watch(listener, self._asked_for_memory, child)

    def _asked_for_memory(self, _listener: int, child: _Forked) -> None:
        if child.pid not in self._children or child.judge is None:
            return
        try:
            if child.judge.judge():
                return
            child.over_limit = True
        except OSError:  # a fault of this child, not of all others
            traceback.print_exc()
        os.kill(child.pid, signal.SIGKILL)

    def _ended(self, pidfd: int, child: _Forked) -> None:
        self._forget(pidfd)
        del self._children[child.pid]
        _, status = os.waitpid(child.pid, 0)
        self._tell({"ended": child.pid, "status": os.waitstatus_to_exitcode(status), "overLimit": child.over_limit})

    def _tell(self, message: dict[str, int]) -> None:
        self._control.send(json.dumps(message).encode())


def _child(server: int, descriptor: int, hello: int, memory_bytes: int, raster: ModuleType, pyramid: ModuleType) -> NoReturn:
    """Answers requests until the socket closes; never returns, for nothing of the server's loop may run in a child."""
    status = 1
    try:
        _die_with(server)
        # Moved above 4 first: a copy to 3 or 4 could otherwise close the other one.
        hello, descriptor = (fcntl.fcntl(each, fcntl.F_DUPFD, 5) for each in (hello, descriptor))
        channel = socket.socket(fileno=os.dup2(descriptor, 3))
        greeting = socket.socket(fileno=os.dup2(hello, 4))
        # The sockets of other children, among others.
        os.closerange(5, os.sysconf("SC_OPEN_MAX"))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        peak = _limit_memory(greeting, memory_bytes)
        renderer = Renderer(raster, pyramid)
        for line in channel.makefile("rb"):
            answer = renderer.answer(json.loads(line))
            if peak is not None and peak.exceeded():
                answer = {"error": MemoryError.__name__, "message": "over the limit"}
            channel.sendall(json.dumps(answer).encode() + b"\n")
        status = 0
    except ConnectionError:
        pass  # The worker went on without this child.
    except BaseException:  # noqa: BLE001 (told on stderr, and by the exit code)
        traceback.print_exc()
    finally:
        os._exit(status)


def _limit_memory(greeting: socket.socket, memory_bytes: int) -> memorylimit.PeakLimit | None:
    """Gives the limit to the kernel and the watching to the server; returns what is left to look at here if it cannot watch."""
    peak = None
    # Python takes memory for small objects by the megabyte: some stays free, so that it needs none until the server can judge it.
    spare = [bytes(400) for _ in range(4000)]
    last = spare.pop()
    del spare
    with greeting:
        try:
            listener = memorylimit.watch()
        except OSError:
            peak = memorylimit.PeakLimit(memory_bytes)
            memory_bytes += memorylimit.LARGEST_ALLOCATION
        else:
            socket.send_fds(greeting, [b"!"], [listener])
            os.close(listener)
    del last
    # After that: a heap that may not grow would ask for memory in a way that is judged.
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    return peak


class Renderer:
    """What a child knows: one open document and one buffer.

    Args:
        raster: The module ``activities.render.raster``.
        pyramid: The module ``activities.render.pyramid``.
    """

    def __init__(self, raster: ModuleType, pyramid: ModuleType) -> None:
        self._raster = raster
        self._pyramid = pyramid
        self._buffer = raster.PixelBuffer()
        self._source: str | None = None
        self._document: Any = None

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """``{"result": ...}``, or ``{"error": name of the class, "message": ...}``; ``"errno"`` comes with an OSError that has one."""
        operations: dict[str, Callable[[dict[str, Any]], Any]] = {"count": self._count, "tile": self._tile}
        _limit_cpu(request["cpuS"])
        try:
            return {"result": operations[request["operation"]](request)}
        except SiteLinkError as error:
            return {"error": error.type, "message": str(error)}
        except OSError as error:
            if error.errno == errno.ENOMEM:
                return {"error": MemoryError.__name__, "message": str(error)}
            return {"error": "OSError", "message": str(error), "errno": error.errno}
        except Exception as error:  # noqa: BLE001 (named to the parent, which replaces this child)
            return {"error": type(error).__name__, "message": str(error)}

    def _open(self, request: dict[str, Any]) -> Any:
        if self._source != request["source"]:
            if self._document is not None:
                self._document.close()
                self._source = self._document = None
            self._document = self._raster.PdfFile(Path(request["source"]))
            self._source = request["source"]
        return self._document

    def _count(self, request: dict[str, Any]) -> Any:
        options = from_wire(UploadOptions, request["options"])
        return to_wire(self._open(request).measure(options, request["maxPages"]))

    def _tile(self, request: dict[str, Any]) -> Any:
        options = from_wire(UploadOptions, request["options"])
        width, height = request["width"], request["height"]
        drawn = self._open(request).draw(request["number"], width, height, self._buffer)
        self._pyramid.write_sheet(drawn.pixels, width, height, options, Path(request["target"]))
        engines = {
            "pdfium": self._raster.PDFIUM_VERSION,
            "libvips": self._pyramid.LIBVIPS_VERSION,
            "sitelink-raster": self._raster.REVISION,
            **self._raster.FONT_VERSIONS,
        }
        return {"engines": engines, "notes": to_wire(drawn.notes)}


def _limit_cpu(seconds: int) -> None:
    """Ends this process by SIGXCPU after so many more seconds of CPU time."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    # Rounded up, because the kernel counts whole seconds.
    resource.setrlimit(resource.RLIMIT_CPU, (int(usage.ru_utime + usage.ru_stime) + 1 + seconds, hard))


def _die_with(parent: int) -> None:
    """Asks the kernel to kill this process when its parent ends; does so itself when the parent has ended already."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    main()
