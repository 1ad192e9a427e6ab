"""The process that render children are forked from, and what a child does. Run as ``python -m activities.forkserver``.

1. The rendering libraries are loaded once, here; a fork then takes milliseconds. Nothing in this process ever opens a document.
2. A child reads requests and writes answers as JSON lines on its own socket. JSON, because whoever takes over a child by a hostile
   PDF must not be able to make the worker run code, as a pickle would.
3. This process dies with the worker and the children with this process, by the kernel (``PR_SET_PDEATHSIG``), even when all of
   them are killed by SIGKILL, and even while a child is deep in a library.
4. SIGINT and SIGTERM are ignored: a terminal or a service manager sends them to every process, and the worker finishes its pages first.
5. The parent measures a child's memory and kills it. The kernel's limit here lies above that on purpose: PDFium draws a page without an
   image that it could not allocate and says nothing, so an allocation must not be refused before the parent has seen the limit passed.
"""

import ctypes
import errno
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
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from activities.errors import SiteLinkError
from activities.records import UploadOptions, from_wire, to_wire

LARGEST_ALLOCATION = 2 << 30
"""PDFium refuses larger ones itself: core/fxcrt/fx_memory.h, ``kMallocSizeLimit``."""

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serves fork and kill requests on the socket whose descriptor is the first argument, until the worker is gone."""
    control = socket.socket(fileno=int(sys.argv[1]))
    _die_with(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raster = import_module("activities.raster")
    pyramid = import_module("activities.pyramid")
    pyramid.configure()
    gc.freeze()
    _serve(control, raster, pyramid)


def _serve(control: socket.socket, raster: ModuleType, pyramid: ModuleType) -> None:
    """One message is one packet: ``{"fork": memory limit}`` with the child's socket, or ``{"kill": pid}``.

    Answers ``{"started": pid}`` and ``{"ended": pid, "status": exit code or minus the signal}``. A process that has ended stays a zombie
    until it is answered for, so that a pid never names another process meanwhile.
    """
    children: dict[int, int] = {}
    poll = select.poll()
    poll.register(control, select.POLLIN)
    server = os.getpid()
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == control.fileno():
                data, descriptors, _, _ = socket.recv_fds(control, 4096, 1)
                if not data:
                    return
                message = json.loads(data)
                if "kill" in message:
                    if message["kill"] in children.values():
                        os.kill(message["kill"], signal.SIGKILL)
                    continue
                pid = os.fork()
                if pid == 0:
                    _child(server, descriptors[0], message["fork"], raster, pyramid)
                os.close(descriptors[0])
                pidfd = os.pidfd_open(pid)
                children[pidfd] = pid
                poll.register(pidfd, select.POLLIN)
                control.send(json.dumps({"started": pid}).encode())
            else:
                poll.unregister(descriptor)
                pid, status = os.waitpid(children.pop(descriptor), 0)
                os.close(descriptor)
                control.send(json.dumps({"ended": pid, "status": os.waitstatus_to_exitcode(status)}).encode())


def _child(server: int, descriptor: int, memory_bytes: int, raster: ModuleType, pyramid: ModuleType) -> NoReturn:
    """Answers requests until the socket closes; never returns, for nothing of the server's loop may run in a child."""
    status = 1
    try:
        _die_with(server)
        channel = socket.socket(fileno=os.dup2(descriptor, 3))
        # The sockets of other children, among others.
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        hard = memory_bytes + LARGEST_ALLOCATION
        resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
        renderer = Renderer(raster, pyramid)
        for line in channel.makefile("rb"):
            channel.sendall(json.dumps(renderer.answer(json.loads(line))).encode() + b"\n")
        status = 0
    except ConnectionError:
        pass  # The worker went on without this child.
    except BaseException:  # noqa: BLE001 (told on stderr, and by the exit code)
        traceback.print_exc()
    finally:
        os._exit(status)


class Renderer:
    """What a child knows: one open document and one buffer.

    Args:
        raster: The module ``activities.raster``.
        pyramid: The module ``activities.pyramid``.
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
