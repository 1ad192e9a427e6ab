"""The process that forks the render children: run as ``python -m activities.render.forkserver``.

1. This process loads the rendering libraries once; a fork then takes milliseconds. This process itself never opens a document.
2. A child reads requests and writes answers as JSON lines on its own socket. A hostile PDF may take over a child. With pickles such a
   child could make the worker run code; with JSON it cannot.
3. The kernel kills this process when the worker ends, and the children when this process ends (``PR_SET_PDEATHSIG``). This holds even
   when the worker is killed by SIGKILL, and while a child is deep in a library.
   https://man7.org/linux/man-pages/man2/prctl.2.html
4. SIGINT and SIGTERM are ignored: a terminal or a service manager sends them to every process, but the worker finishes its pages first.
5. This process kills a child that asks for more memory than its limit, before the child can go on without it: see ``memorylimit``.
"""

import ctypes
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
from typing import Any, NoReturn

from activities.render import memorylimit

_PR_SET_PDEATHSIG = 1

NICENESS = 9
"""How much nicer a child is than the worker. Otherwise the upload of a sheet, and the news of it, would wait for the sheets after it."""


def main() -> None:
    """Serves fork and kill requests until the worker ends. Arguments: the descriptor of the socket to the worker, and the worker's pid."""
    control = socket.socket(fileno=int(sys.argv[1]))
    _die_with_parent(int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Not imported at the top: loading the libraries takes a while, and until then a signal would end this process.
    renderer = import_module("activities.render.renderer")
    gc.freeze()
    _Server(control, renderer.Renderer).serve()


@dataclass
class _Child:
    """A child, as the fork server sees it.

    Args:
        pid: The child's process id.
        memory_bytes: The child's memory limit.
        judge: Judges the child's requests for memory; None until the child has sent its listener.
        over_limit: Whether the child was killed because it reached its memory limit.
    """

    pid: int
    memory_bytes: int
    judge: memorylimit.Judge | None = None
    over_limit: bool = False


class _Server:
    """Forks and kills children for the worker. One message is one packet.

    The worker sends ``{"fork": memory limit}`` with the child's socket, or ``{"kill": pid}``. The answers are ``{"started": pid}`` and
    ``{"ended": pid, "status": exit code or minus the signal, "overLimit": whether it reached its memory limit}``.
    A child that has ended stays a zombie until it is removed from ``_children``, so a pid in ``_children`` never names another process.

    Args:
        control: The socket to the worker.
        make_renderer: Called in a child, makes its ``Renderer``.
    """

    def __init__(self, control: socket.socket, make_renderer: Callable[[], Any]) -> None:
        self._control = control
        self._make_renderer = make_renderer
        self._pid = os.getpid()
        self._children: dict[int, _Child] = {}
        self._poll = select.poll()
        self._watched: dict[int, tuple[Callable[[int, _Child], None], _Child]] = {}
        """A watched descriptor, the function that is called when it is readable, and its child."""
        self._to_close: list[int] = []

    def serve(self) -> None:
        """Serves requests; returns when the worker has ended."""
        self._poll.register(self._control, select.POLLIN)
        while True:
            for descriptor, event in self._poll.poll():
                if descriptor == self._control.fileno():
                    data, descriptors, _, _ = socket.recv_fds(self._control, 4096, 1)
                    if not data:
                        return
                    self._handle(json.loads(data), descriptors)
                elif event & select.POLLIN:
                    react, child = self._watched[descriptor]
                    react(descriptor, child)
                else:
                    self._unwatch(descriptor)
            # Closed only now: before, a new descriptor could get the same number while the list of events still has the old one.
            while self._to_close:
                os.close(self._to_close.pop())

    def _handle(self, message: dict[str, int], descriptors: list[int]) -> None:
        if "kill" in message:
            if message["kill"] in self._children:
                os.kill(message["kill"], signal.SIGKILL)
            return
        listener_socket, child_end = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            _run_child(self._pid, descriptors[0], child_end.fileno(), message["fork"], self._make_renderer)
        os.close(descriptors[0])
        child_end.close()
        child = self._children[pid] = _Child(pid, message["fork"])
        self._watch(os.pidfd_open(pid), self._reap, child)
        self._watch(listener_socket.detach(), self._receive_listener, child)
        self._send({"started": pid})

    def _watch(self, descriptor: int, react: Callable[[int, _Child], None], child: _Child) -> None:
        self._watched[descriptor] = react, child
        self._poll.register(descriptor, select.POLLIN)

    def _unwatch(self, descriptor: int) -> None:
        self._poll.unregister(descriptor)
        del self._watched[descriptor]
        self._to_close.append(descriptor)

    def _receive_listener(self, descriptor: int, child: _Child) -> None:
        """Takes the listener that a child has sent. A child that cannot be watched closes its socket without sending one."""
        listener_socket = socket.socket(fileno=descriptor)
        _, listeners, _, _ = socket.recv_fds(listener_socket, 1, 1)
        listener_socket.detach()
        self._unwatch(descriptor)
        for listener in listeners:
            child.judge = memorylimit.Judge(listener, child.pid, child.memory_bytes)
            self._watch(listener, self._judge_request, child)

    def _judge_request(self, _listener: int, child: _Child) -> None:
        if child.pid not in self._children or child.judge is None:
            return
        try:
            if child.judge.judge():
                return
            child.over_limit = True
        except OSError:  # The error ends only this child.
            traceback.print_exc()
        os.kill(child.pid, signal.SIGKILL)

    def _reap(self, pidfd: int, child: _Child) -> None:
        self._unwatch(pidfd)
        del self._children[child.pid]
        _, status = os.waitpid(child.pid, 0)
        self._send({"ended": child.pid, "status": os.waitstatus_to_exitcode(status), "overLimit": child.over_limit})

    def _send(self, message: dict[str, int]) -> None:
        self._control.send(json.dumps(message).encode())


def _run_child(server: int, descriptor: int, listener_descriptor: int, memory_bytes: int, make_renderer: Callable[[], Any]) -> NoReturn:
    """Answers requests until the socket closes, then exits. It must not return, or the child would go on with the server's loop.

    Args:
        server: The pid of the fork server.
        descriptor: The child's socket to the worker.
        listener_descriptor: The socket that takes the child's listener to the server.
        memory_bytes: The child's limit.
        make_renderer: Makes the ``Renderer``.
    """
    status = 1
    try:
        _die_with_parent(server)
        os.nice(NICENESS)
        # First both are copied to numbers above 4: otherwise the copy of one to 3 or 4 could close the other.
        descriptor, listener_descriptor = (fcntl.fcntl(number, fcntl.F_DUPFD, 5) for number in (descriptor, listener_descriptor))
        channel = socket.socket(fileno=os.dup2(descriptor, 3))
        listener_socket = socket.socket(fileno=os.dup2(listener_descriptor, 4))
        # The other descriptors include the sockets of other children.
        os.closerange(5, os.sysconf("SC_OPEN_MAX"))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        peak = _limit_memory(listener_socket, memory_bytes)
        renderer = make_renderer()
        for line in channel.makefile("rb"):
            answer = renderer.answer(json.loads(line))
            if peak is not None and peak.is_exceeded():
                answer = {"error": MemoryError.__name__, "message": "over the limit"}
            channel.sendall(json.dumps(answer).encode() + b"\n")
        status = 0
    except ConnectionError:
        pass  # The worker has closed the socket, because it does not need this child any more.
    except BaseException:  # noqa: BLE001 (stderr and the exit code tell the worker)
        traceback.print_exc()
    finally:
        os._exit(status)


def _limit_memory(listener_socket: socket.socket, memory_bytes: int) -> memorylimit.PeakLimit | None:
    """Sets the child's memory limit, and sends the server the listener by which the server watches the child.

    Returns:
        Where the kernel does not let the server watch, the limit that the child checks after each page; else None.
    """
    peak = None
    # After ``watch``, a request for memory waits for ever if the server does not have the listener yet. Python takes memory for small
    # objects by the megabyte. The memory of these objects, which are freed at once, is its reserve until then. The last object is kept, so
    # that the reserve is not given back to the kernel.
    spare = [bytes(400) for _ in range(4000)]
    last = spare.pop()
    del spare
    with listener_socket:
        try:
            listener = memorylimit.watch()
        except OSError:
            peak = memorylimit.PeakLimit(memory_bytes)
            memory_bytes += memorylimit.LARGEST_ALLOCATION
        else:
            socket.send_fds(listener_socket, [b"!"], [listener])
            os.close(listener)
    del last
    # Set only now: a heap that may not grow asks for memory by mmap, and this request would wait until the server has the listener.
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    return peak


def _die_with_parent(parent: int) -> None:
    """Asks the kernel to kill this process when its parent ends. Ends this process if the parent has ended already."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    main()
