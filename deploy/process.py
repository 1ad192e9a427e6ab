"""Child processes that each lead a process group and cannot outlive the process that started them.

A deliberate oddity: the link to the parent is a shell that waits for the end of a pipe, and not ``PR_SET_PDEATHSIG``.
That signal is sent when the starting *thread* ends, does not reach grandchildren, and needs code between fork and exec.
"""

# ruff: noqa: S603 - starting programs is what this module is for

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

_WAIT_AND_KILL = 'trap "" HUP INT TERM; read -r _; kill -KILL "$1"'
"""``read`` returns when the other end of the pipe is closed: by this process, or by the kernel when this process has ended."""

_PORTS = range(20_000, 32_000)
"""Below the ports that the kernel gives to outgoing connections, so that a client that retries a dead server never takes its port."""


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen on the port now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port(host: str = "127.0.0.1", ports: Sequence[int] = _PORTS) -> int:
    """A port that is free, and that is given to nobody else for a minute, in which the server can start.

    Args:
        host: The address on which the server will listen.
        ports: The ports to choose from.
    """
    while True:
        port = random.choice(ports)  # noqa: S311 - no secret
        if _reserve(port, host):
            return port


def _reserve(port: int, host: str) -> bool:
    """Reserves a port for a minute; returns whether the port was free.

    A closed connection stays on the port. Until the kernel forgets the connection, after a minute, only a program that reuses addresses
    can bind the port: servers do, and this function does not. https://github.com/Yelp/ephemeral-port-reserve
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as server, socket.socket(family, socket.SOCK_STREAM) as client:
        try:
            server.bind((host, port))
        except OSError:
            return False
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.listen(1)
        client.connect((host, port))
        server.accept()[0].close()  # the side that closes first keeps the connection
    return True


def take_port(port: int, host: str = "127.0.0.1") -> tuple[int, socket.socket | None]:
    """The wanted port if nobody has it, else a free one.

    A port on which nobody listens may still belong to another stack that is just starting. So a wanted port is claimed by a name that only
    one process of this machine can hold; the kernel takes the name back when its holder ends.
    https://man7.org/linux/man-pages/man7/unix.7.html, "Abstract sockets"

    Args:
        port: 0 for any.
        host: Where the server will listen.

    Returns:
        The port, and the claim: it lasts until it is closed. A free port needs none.
    """
    if port:
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0sitelink-port-{port}")
        except OSError:
            claim.close()
        else:
            if is_free(port, host):
                return port, claim
            claim.close()
    return free_port(host), None


class Guard:
    """Kills another process when this process ends in any way.

    Args:
        target: The process; a negative number is a process group.
    """

    def __init__(self, target: int) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _WAIT_AND_KILL, "guard", str(target)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            close_fds=True,
            # It needs no variable. The data directory tells a person whose guard it is.
            env={name: value for name, value in os.environ.items() if name == "SITELINK_DATA_DIR"},
        )

    def release(self) -> None:
        """Ends the guard: the end of this process kills nothing any more."""
        self._shell.kill()
        self._shell.communicate()


class Process:
    """A server process with its own process group and a log file. It may be started again after it has ended.

    Args:
        command: Program and arguments.
        log: The file to which the process's output is appended.
        environ: The process's environment.
        directory: The process's working directory; default: that of this process.
    """

    def __init__(self, command: Sequence[str], *, log: Path, environ: Mapping[str, str], directory: Path | None = None) -> None:
        self.command = list(command)
        self.log = log
        self._directory = directory
        self._environ = dict(environ)
        self._child: subprocess.Popen[bytes] | None = None
        self._guard: Guard | None = None
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """The process's number, which is also that of its group; None before the start."""
        return self._child.pid if self._child else None

    @property
    def is_running(self) -> bool:
        """Whether the process was started and has not ended."""
        if self._child is None:
            return False
        # An ended process is not reaped here, so that its number still names its group.
        return os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def start(self) -> None:
        """Starts the process, if it does not run.

        Raises:
            OSError: The program or the log cannot be opened.
        """
        if self.is_running:
            return
        self.kill()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._child = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environ,
                cwd=self._directory,
                start_new_session=True,
            )
        self._guard = Guard(-self._child.pid)

    def kill(self) -> int | None:
        """Kills the process and the rest of its group, also when the process itself has ended already.

        Returns:
            The process's exit code, negative for a signal; None when it was not started.
        """
        if self._child is None:
            return None
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        if self._guard is not None:
            self._guard.release()
        code = self._child.wait()
        self._child = self._guard = None
        return code

    def stop(self, limit_s: float) -> None:
        """Asks the leader to stop, and kills the whole group when the leader has ended or the time is over.

        Args:
            limit_s: Seconds that the leader may take.
        """
        self.terminate()
        deadline = time.monotonic() + limit_s
        while self.is_running and time.monotonic() < deadline:
            time.sleep(0.02)
        self.kill()

    def terminate(self) -> None:
        """Asks the process to stop; returns at once."""
        if self._child is not None and self.is_running:
            # Not by Popen.send_signal, which reaps a process that has just ended: then nobody could tell its group.
            os.kill(self._child.pid, signal.SIGTERM)

    def tail(self, lines: int = 20) -> str:
        """The last lines of the log since the last start."""
        try:
            with self.log.open("rb") as log:
                log.seek(self._log_start)
                text = log.read()[-20_000:].decode("utf-8", "replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])
