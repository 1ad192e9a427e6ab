"""The control group (cgroup) of each process that opens documents or JPEGs. It bounds the process's memory of every kind, and its tasks.

1. A group counts what the limit of private memory does not: memory that is not writable any more, tables of pages, and files' pages that
   the process was the first to read or write. Private memory reaches its own, exact limit first: see ``memorylimit``.
   https://docs.kernel.org/admin-guide/cgroup-v2.html#memory
2. The groups are made below the worker's own one, with version 1 or 2 of the kernel's interface. In version 2 a group with processes
   cannot limit groups below it. So the worker and the fork server move into the group ``worker`` below, if no other process is beside
   them. systemd's ``DelegateSubgroup=worker`` starts the worker there. https://docs.kernel.org/admin-guide/cgroup-v2.html#no-internal-process-constraint
3. A group that nobody removed, because its fork server was killed, is removed by the next fork server.
"""

import errno
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath

LAYER = "cgroup"
"""The name of this layer of a process's confinement."""

WORKER = "worker"
"""The group of the worker itself."""

OTHER_BYTES = 512 << 20
"""Memory beside the private one. A child needs little of it, unless the scratch is a tmpfs, where a page's tiles are memory."""

_SLACK_BYTES = 2 << 20
"""A huge page that does not fit is not counted."""

_PREFIX = "sitelink-child-"
_CONTROLLERS = ("memory", "pids")


@dataclass(frozen=True)
class Group:
    """The group of one child.

    Args:
        memory: Its folder for the controller of memory.
        pids: Its folder for the controller of tasks. In version 2 it is the same.
    """

    memory: Path
    pids: Path

    @property
    def _is_version_2(self) -> bool:
        return self.memory == self.pids

    def make(self, memory_bytes: int, tasks: int) -> None:
        """Makes the group, with its limits.

        Raises:
            OSError: It cannot be made.
        """
        self.remove()  # left by an earlier process with the same pid
        most = str(memory_bytes + OTHER_BYTES)
        try:
            for folder in {self.memory, self.pids}:
                folder.mkdir()
            (self.pids / "pids.max").write_text(str(tasks))
            (self.memory / ("memory.max" if self._is_version_2 else "memory.limit_in_bytes")).write_text(most)
            with suppress(OSError):  # Some kernels have no limit of swap.
                name, most_swap = ("memory.swap.max", "0") if self._is_version_2 else ("memory.memsw.limit_in_bytes", most)
                (self.memory / name).write_text(most_swap)
        except OSError:
            self.remove()
            raise

    def join(self) -> None:
        """Moves this process into the group.

        Raises:
            OSError: It may not.
        """
        for folder in {self.memory, self.pids}:
            (folder / "cgroup.procs").write_text("0")

    def was_over_limit(self) -> bool:
        """Whether the kernel killed the child because the group reached its limit, and not because a group above or the host did."""
        with suppress(OSError, ValueError):
            if self._is_version_2:
                events = _numbers(self.memory / "memory.events")
                return bool(events.get("oom_kill") and events.get("oom"))
            # Some kernels leave memory.failcnt at zero.
            limit, peak = (int((self.memory / f"memory.{name}_in_bytes").read_text()) for name in ("limit", "max_usage"))
            return bool(_numbers(self.memory / "memory.oom_control").get("oom_kill") and peak > limit - _SLACK_BYTES)
        return False

    def remove(self) -> None:
        """Removes the group, if it has no process."""
        for folder in {self.memory, self.pids}:
            with suppress(OSError):
                folder.rmdir()


@dataclass(frozen=True)
class Groups:
    """The place of the children's groups.

    Args:
        memory: The folder above, for the controller of memory.
        pids: The folder above, for the controller of tasks.
    """

    memory: Path
    pids: Path

    def make(self, number: int, memory_bytes: int, tasks: int) -> Group:
        """Makes a group.

        Args:
            number: No other group of this process has the same.
            memory_bytes: The child's limit of private memory.
            tasks: The most threads.

        Raises:
            OSError: It cannot be made.
        """
        name = f"{_PREFIX}{os.getpid()}-{number}"
        group = Group(self.memory / name, self.pids / name)
        group.make(memory_bytes, tasks)
        return group

    def remove_left(self) -> None:
        """Removes groups whose fork server has ended. The kernel removes no group that has a process."""
        for folder in {self.memory, self.pids}:
            for group in folder.glob(f"{_PREFIX}*"):
                with suppress(OSError, ValueError):
                    if not _is_alive(int(group.name.removeprefix(_PREFIX).split("-")[0])):
                        group.rmdir()


def find(process: Path = Path("/proc/self")) -> Groups:
    """The place for groups below the group of the worker, whose fork server this process is.

    Args:
        process: This process's folder in ``/proc``.

    Raises:
        OSError: The kernel has no such groups, or this process may not make them.
        ValueError: ``/proc`` is not as Linux writes it.
    """
    try:
        groups = Groups(*(_own_folder(process, controller) for controller in _CONTROLLERS))
    except FileNotFoundError:
        place = _unified(_own_folder(process, ""))
        groups = Groups(place, place)
    if not all(os.access(folder, os.W_OK) for folder in (groups.memory, groups.pids)):
        raise PermissionError(errno.EACCES, "the process's cgroup is not writable, as in most containers")
    groups.remove_left()
    return groups


def _own_folder(process: Path, controller: str) -> Path:
    """The folder of the process's group in the hierarchy of a controller; without a name, in that of version 2.

    https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html

    Raises:
        FileNotFoundError: The process has no such group, or its folder is not mounted here.
    """
    lines = [line.split(":", 2) for line in (process / "cgroup").read_text().splitlines()]
    paths = [PurePath(path) for _, controllers, path in lines if controller in controllers.split(",") and ".." not in path]
    for line in (process / "mountinfo").read_text().splitlines():
        place, _, kind = line.partition(" - ")
        root, point = place.split()[3:5]
        name, _, options = kind.split(" ", 2)
        if name == ("cgroup" if controller else "cgroup2") and (not controller or controller in options.split(",")):
            for path in paths:
                if path.is_relative_to(root):
                    return Path(point, path.relative_to(root))
    raise FileNotFoundError(errno.ENOENT, "no cgroup of this controller")


def _unified(own: Path) -> Path:
    """The folder for groups of version 2, prepared for limits.

    Args:
        own: The folder of this process's group.

    Raises:
        OSError: It cannot be prepared.
    """
    place = own.parent if own.name == WORKER else own
    if set(_CONTROLLERS) <= set((place / "cgroup.subtree_control").read_text().split()):
        return place
    if not set(_CONTROLLERS) <= set((place / "cgroup.controllers").read_text().split()):
        raise FileNotFoundError(errno.ENOENT, "the controllers are not delegated")
    if place == own:
        movable = (os.getpid(), os.getppid())
        if not {int(pid) for pid in (own / "cgroup.procs").read_text().split()} <= set(movable):
            raise OSError(errno.EBUSY, "other processes are in the group")
        (own / WORKER).mkdir(exist_ok=True)
        for pid in movable:
            (own / WORKER / "cgroup.procs").write_text(str(pid))
    (place / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in _CONTROLLERS))
    return place


def _numbers(file: Path) -> dict[str, int]:
    """The lines of a file, each a name and a number."""
    return {name: int(number) for name, number in (line.split() for line in file.read_text().splitlines())}


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
