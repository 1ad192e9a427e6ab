"""The process that forks the render children: run as ``python -m activities.render.forkserver``.

1. This process loads the rendering libraries once; a fork then takes milliseconds. This process itself never opens a document.
2. A child reads requests and writes answers as JSON lines on its own socket. A hostile PDF may take over a child. With pickles such a
   child could make the worker run code; with JSON it cannot.
3. The kernel kills this process when the worker ends, and the children when this process ends (``PR_SET_PDEATHSIG``). This holds even
   when the worker is killed by SIGKILL, and while a child is deep in a library.
   https://man7.org/linux/man-pages/man2/prctl.2.html
4. SIGINT and SIGTERM are ignored: a terminal or a service manager sends them to every process, but the worker finishes its pages first.
5. This process kills a child that asks for more memory than its limit, before the child can go on without it: see ``memorylimit``.
6. A child is confined before it reads a request: see ``confine``. It gets the document and the files that it writes as open descriptors.
7. Where it can be had, a child has a control group of its own: see ``cgroup``.
"""

import fcntl
import gc
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any, NoReturn

from activities.render import cgroup, confine, memorylimit

MOST_FILES = 2
"""Descriptors that come with a request."""

NICENESS = 9
"""How much nicer a child is than the worker. Otherwise the upload of a sheet, and the news of it, would wait for the sheets after it."""


def main() -> None:
    """Serves fork and kill requests until the worker ends. Arguments: the descriptor of the socket to the worker, and the worker's pid."""
    control = socket.socket(fileno=int(sys.argv[1]))
    confine.hide_memory()
    confine.die_with_parent(int(sys.argv[2]))
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
        group: The child's control group; None if it has none.
        judge: Judges the child's requests for memory; None until the child has sent its listener.
        status: Descriptor by which the judge sees the child's memory.
        over_limit: Whether the child was killed because it reached its memory limit.
    """

    pid: int
    memory_bytes: int
    group: cgroup.Group | None
    judge: memorylimit.Judge | None = None
    status: int | None = None
    over_limit: bool = False


class _Server:
    """Forks and kills children for the worker. One message is one packet.

    The worker sends ``{"fork": memory limit, "cpuS": limit of CPU time}`` with the child's socket and its document, or ``{"kill": pid}``.
    With ``"user"`` and ``"group"`` the child gets this uid and gid. The answers are ``{"started": pid}`` and
    ``{"ended": pid, "status": exit code or minus the signal, "overLimit": whether it reached its memory limit}``.

    A child that has ended stays a zombie until it is removed from ``_children``, so a pid in ``_children`` never names another process.

    Args:
        control: The socket to the worker.
        make_renderer: Called in a child with the path of its document, makes its ``Renderer``.
    """

    def __init__(self, control: socket.socket, make_renderer: Callable[[Path], Any]) -> None:
        self._control = control
        self._make_renderer = make_renderer
        self._libraries = confine.library_folders()
        self._pid = os.getpid()
        self._groups: cgroup.Groups | None = None
        with suppress(OSError, ValueError):
            self._groups = cgroup.find()
        self._numbers = count()
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
                    data, descriptors, _, _ = socket.recv_fds(self._control, 4096, 2)
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
        group = self._make_group(message["fork"])
        pid = os.fork()
        if pid == 0:
            _run_child(self._pid, group, message, [*descriptors, child_end.fileno()], self._libraries, self._make_renderer)
        for descriptor in descriptors:
            os.close(descriptor)
        child_end.close()
        child = self._children[pid] = _Child(pid, message["fork"], group)
        self._watch(os.pidfd_open(pid), self._reap, child)
        self._watch(listener_socket.detach(), self._receive_listener, child)
        self._send({"started": pid})

    def _make_group(self, memory_bytes: int) -> cgroup.Group | None:
        """The control group of the next child; None if it cannot have one."""
        if self._groups is None:
            return None
        try:
            return self._groups.make(next(self._numbers), memory_bytes, confine.TASKS)
        except OSError:  # The other layers hold.
            traceback.print_exc()
            return None

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
        _, descriptors, _, _ = socket.recv_fds(listener_socket, 1, 2)
        listener_socket.detach()
        self._unwatch(descriptor)
        if descriptors:
            listener, child.status = descriptors
            child.judge = memorylimit.Judge(listener, child.status, child.memory_bytes)
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
        if child.status is not None:
            self._to_close.append(child.status)
        del self._children[child.pid]
        status = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
        if child.group is not None:
            child.over_limit |= status == -signal.SIGKILL and child.group.was_over_limit()
            child.group.remove()
        self._send({"ended": child.pid, "status": status, "overLimit": child.over_limit})

    def _send(self, message: dict[str, int]) -> None:
        self._control.send(json.dumps(message).encode())


def _run_child(
    server: int,
    group: cgroup.Group | None,
    message: dict[str, int],
    descriptors: list[int],
    libraries: list[int],
    make_renderer: Callable[[Path], Any],
) -> NoReturn:
    """Answers requests until the socket closes, then exits. It must not return, or the child would go on with the server's loop.

    Args:
        server: The pid of the fork server.
        group: Its control group; None if it has none.
        message: The request to fork.
        descriptors: The child's socket to the worker, its document, and the socket that takes its listener to the server.
        libraries: The folders that it may read.
        make_renderer: Makes the ``Renderer``.
    """
    status = 1
    try:
        confine.die_with_parent(server)
        os.nice(NICENESS)
        own_status = os.open("/proc/self/status", os.O_RDONLY)
        own_group = _join(group)
        confine.landlock([*libraries, descriptors[1]])
        # First all are copied to numbers above 6: otherwise the copy of one could close another.
        numbers = [fcntl.fcntl(number, fcntl.F_DUPFD, 7) for number in (*descriptors, own_status)]
        for index, number in enumerate(numbers):
            os.dup2(number, 3 + index, inheritable=False)
        channel, source, listener_socket, own_status = socket.socket(fileno=3), Path("/proc/self/fd/4"), socket.socket(fileno=5), 6
        # The other descriptors include the sockets of other children.
        os.closerange(7, os.sysconf("SC_OPEN_MAX"))
        # As large as the pixels of a page may be: tiles are larger only if they are noise at the best quality.
        limits = confine.Limits(2 * message["fork"] // 3, message["cpuS"])
        layers = confine.restrict(limits, message.get("user"), message.get("group"))
        confine.die_with_parent(server)  # again, because a change of the user takes it back
        peak = _limit_memory(listener_socket, own_status, message["fork"], os.fstat(4).st_size)
        confine.bound_open_files()
        confine.seal()
        renderer = make_renderer(source)
        for request, files in _requests(channel):
            if request["operation"] == "layers":
                renderer.check()
                answer: dict[str, Any] = {"result": [*layers, *confine.layers(), *own_group, *(() if peak else (memorylimit.LAYER,))]}
            else:
                answer = renderer.answer(request, files)
            if peak is not None and peak.is_exceeded():
                answer = {"error": MemoryError.__name__, "message": "over the limit"}
            channel.sendall(json.dumps({"id": request["id"], **answer}).encode() + b"\n")
        status = 0
    except ConnectionError:
        pass  # The worker has closed the socket, because it does not need this child any more.
    except BaseException:  # noqa: BLE001 (stderr and the exit code tell the worker)
        traceback.print_exc()
    finally:
        os._exit(status)


def _join(group: cgroup.Group | None) -> list[str]:
    """Moves this process into its group; returns the layers that hold by this."""
    if group is None:
        return []
    try:
        group.join()
    except OSError:  # The other layers hold.
        traceback.print_exc()
        return []
    return [cgroup.LAYER]


def _requests(channel: socket.socket) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """Each request, and the descriptors that came with it, which are closed afterwards."""
    line, files = b"", list[int]()
    while received := socket.recv_fds(channel, 1 << 16, MOST_FILES):
        if not received[0]:
            return
        line += received[0]
        files += received[1]
        if line.endswith(b"\n"):
            yield json.loads(line), files
            for descriptor in files:
                os.close(descriptor)
            line, files = b"", []


def _limit_memory(listener_socket: socket.socket, own_status: int, memory_bytes: int, document_bytes: int) -> memorylimit.PeakLimit | None:
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
            peak = memorylimit.PeakLimit(own_status, memory_bytes)
            memory_bytes += memorylimit.LARGEST_ALLOCATION
        else:
            socket.send_fds(listener_socket, [b"!"], [listener, own_status])
            os.close(listener)
    del last
    # Set only now: a heap that may not grow asks for memory by mmap, and this request would wait until the server has the listener.
    memorylimit.set_limits(own_status, memory_bytes, document_bytes)
    return peak


if __name__ == "__main__":
    main()
