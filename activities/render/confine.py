"""Confines this process before it opens a stranger's document: it keeps its libraries, its memory, and the files that it was handed open.

Each layer is used where the kernel offers it, and ``layers`` tells which hold. In this order a process

1. may only read, and only the given files and folders: ``landlock``. https://docs.kernel.org/userspace-api/landlock.html
2. gives up its user and all privileges, gets a user, network and IPC namespace of its own, and hard limits: ``restrict``;
3. keeps a list of system calls: ``seal``. The list has no call that starts a process or a program, opens a socket, writes anything but
   an open file, reaches another process, or changes these limits. https://man7.org/linux/man-pages/man2/seccomp.2.html

A process that is in none of these layers yet must have one thread.
"""

import ctypes
import errno
import os
import platform
import re
import resource
import signal
import socket
import stat
import struct
import sys
import sysconfig
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from activities.render import cgroup, seccomp
from activities.render.seccomp import ALLOW, ANSWER, ANY_BIT, AT_LEAST, AUDIT_ARCH, EQUAL, KILL, LOAD, Line, argument, refuse

OWN_USER, NAMESPACES, LANDLOCK, SECCOMP = "own user", "namespaces", "Landlock", "seccomp"
"""The names of layers."""
LAYERS = (OWN_USER, NAMESPACES, LANDLOCK, SECCOMP, cgroup.LAYER)

OPEN_FILES = 16
"""Descriptors that a process may have, for a file that it keeps open takes room on the disk also after it was removed. A child that draws
a page has 12 at most; tried with PDFs of many kinds.
"""
TASKS = 64
"""Threads that a process with a user of its own may have."""

# https://github.com/torvalds/linux/blob/master/include/uapi/linux/prctl.h
_PR_SET_PDEATHSIG, _PR_GET_DUMPABLE, _PR_SET_DUMPABLE, _PR_SET_NAME, _PR_GET_NAME = 1, 3, 4, 15, 16
_PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_SET_VMA = 38, 47, 0x53564D41
_PR_CAP_AMBIENT_CLEAR_ALL = 4

# https://github.com/torvalds/linux/blob/master/include/uapi/linux/landlock.h; the numbers are the same on all machines.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION, _PATH_BENEATH = 1, 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
"""The version that first had so many rights of files. What is not granted below is forbidden."""
_NET_RIGHTS, _FIRST_WITH_NET = 0b11, 4
_SCOPES, _FIRST_WITH_SCOPES = 0b11, 6
"""Abstract sockets and signals of processes outside."""

# https://github.com/torvalds/linux/blob/master/include/uapi/linux/sched.h
_CLONE_NEWUSER, _CLONE_NEWIPC, _CLONE_NEWNET, _CLONE_THREAD = 0x10000000, 0x08000000, 0x40000000, 0x00010000
_TASKS_COUNTED_BY_NAMESPACE = (5, 14)

# https://github.com/torvalds/linux/blob/master/arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h
_MACHINES = ("x86_64", "aarch64")
_ALLOWED = """
read 0 63, write 1 64, close 3 57, stat 4 -, fstat 5 80, lstat 6 -, poll 7 -, lseek 8 62, mprotect 10 226,
munmap 11 215, brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139, pread64 17 67, pwrite64 18 68,
readv 19 65, writev 20 66, access 21 -, sched_yield 24 124, mremap 25 216, madvise 28 233, dup 32 23, dup2 33 -, nanosleep 35 101,
getpid 39 172, recvfrom 45 207, recvmsg 47 212, exit 60 93, uname 63 160, ftruncate 77 46, getcwd 79 17, readlink 89 -,
gettimeofday 96 169, getrlimit 97 163, getrusage 98 165, sysinfo 99 179, times 100 153, getuid 102 174, getgid 104 176,
geteuid 107 175, getegid 108 177, getppid 110 173, sigaltstack 131 132, setrlimit 160 164, gettid 186 178, time 201 -,
futex 202 98, sched_getaffinity 204 123, getdents64 217 61, restart_syscall 219 128, fadvise64 221 223, clock_gettime 228 113,
clock_getres 229 114, clock_nanosleep 230 115, exit_group 231 94, newfstatat 262 79, readlinkat 267 78, faccessat 269 48,
ppoll 271 73, set_robust_list 273 99, dup3 292 24, preadv 295 69, sched_getattr 315 275, getrandom 318 278, membarrier 324 283,
statx 332 291, rseq 334 293, faccessat2 439 439
"""
"""Each call, its number on x86-64, and its number on aarch64."""
_CHECKED = """
mmap 9 222, open 2 -, openat 257 56, ioctl 16 29, clone 56 220, fcntl 72 25, prctl 157 167, tgkill 234 131, prlimit64 302 261,
sendto 44 206, clone3 435 435
"""
"""The calls whose arguments decide."""
_MAP_SHARED = 0x01
"""The bit of all shared mappings: MAP_SHARED_VALIDATE has it, too."""
_WRITES = 0x1 | 0x2 | 0x40 | 0x200 | 0x400000
"""O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, and the bit of O_TMPFILE that no other flag has."""
_TERMINAL_QUESTIONS = (0x5401, 0x5450, 0x5451)
"""TCGETS, by which programs ask whether a file is a terminal; FIONCLEX and FIOCLEX."""
_DUPLICATIONS = (0, 1, 2, 3, 1030)
"""F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC. Others can send signals (F_SETOWN) or change a file that is shared (F_SETFL)."""


@dataclass(frozen=True)
class Limits:
    """The hard limits of a process.

    Args:
        file_bytes: The largest file that it may write.
        cpu_s: The most CPU time of its whole life; None for no limit.
    """

    file_bytes: int
    cpu_s: int | None = None


def library_folders() -> list[int]:
    """Descriptors of the folders of the interpreter, of the libraries, and of this program's modules; they contain the fonts, too.

    A checkout of this program may contain the data directory, so only its modules are among them.
    """
    root = Path(__file__).parents[2]
    is_checkout = (root / "pyproject.toml").exists()
    names = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    names |= {"/lib", "/lib64", "/usr/lib", "/usr/lib64", str(Path(__file__).parents[1])}
    names |= {name for name in sys.path if name and not (is_checkout and root.is_relative_to(name))}
    return [os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for name in sorted(names) if Path(name).is_dir()]


def hide_memory() -> None:
    """Makes this process not dumpable: no process without privileges may attach to it, or read its memory or environment in ``/proc``."""
    _libc().prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """Asks the kernel to kill this process when its parent ends. Ends this process if the parent has ended already.

    A change of the user takes the request back. https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html
    """
    if _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        os._exit(1)


def landlock_version() -> int:
    """The kernel's version of Landlock; 0 for a kernel without Landlock."""
    return max(0, int(_libc().syscall(ctypes.c_long(_CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))))


def landlock(readable: Iterable[int]) -> None:
    """Leaves this process the right to read the given files and the files below the given folders, and no other right to open files.

    Args:
        readable: Descriptors, which may be closed afterwards.
    """
    if not (version := landlock_version()):
        return
    attributes = struct.pack("=Q", next(rights for first, rights in reversed(_FILE_RIGHTS.items()) if first <= version))
    if version >= _FIRST_WITH_NET:
        attributes += struct.pack("=Q", _NET_RIGHTS)
    if version >= _FIRST_WITH_SCOPES:
        attributes += struct.pack("=Q", _SCOPES)
    libc = _libc()
    ruleset = libc.syscall(ctypes.c_long(_CREATE_RULESET), attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    if ruleset < 0:
        return
    for descriptor in readable:
        rights = _READ_FILE | (_READ_DIR if stat.S_ISDIR(os.fstat(descriptor).st_mode) else 0)
        rule = struct.pack("=Qi", rights, descriptor)
        libc.syscall(ctypes.c_long(_ADD_RULE), ruleset, _PATH_BENEATH, rule, ctypes.c_uint32(0))
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.syscall(ctypes.c_long(_RESTRICT_SELF), ruleset, ctypes.c_uint32(0))
    os.close(ruleset)


def restrict(limits: Limits, user: int | None = None, group: int | None = None) -> list[str]:
    """Gives up privileges, and sets hard limits.

    Args:
        limits: The limits.
        user: The uid that this process gets; None: it keeps its own. Only root can change it.
        group: The gid that it gets with the uid.

    Returns:
        The layers that hold now.

    Raises:
        OSError: The user cannot be changed.
    """
    libc = _libc()
    os.environ.clear()
    layers = []
    if user is not None and group is not None:
        os.setgroups([])
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
        layers.append(OWN_USER)
    has_namespace = libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC) == 0
    # Root needs no user namespace for the others.
    if has_namespace or libc.unshare(_CLONE_NEWNET | _CLONE_NEWIPC) == 0:
        layers.append(NAMESPACES)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    libc.capset(struct.pack("=Ii", 0x20080522, 0), bytes(24))
    hide_memory()
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, limits.file_bytes)
    _lower(resource.RLIMIT_MEMLOCK, 0)
    _lower(resource.RLIMIT_MSGQUEUE, 0)
    if limits.cpu_s is not None:
        _lower(resource.RLIMIT_CPU, limits.cpu_s)
    # Elsewhere the limit would count the processes of the worker, which has the same user, too.
    if user is not None or (has_namespace and _kernel() >= _TASKS_COUNTED_BY_NAMESPACE):
        _lower(resource.RLIMIT_NPROC, TASKS)
    # Python ignores this signal, and the error of a file that is too large could be taken for a full disk.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    return layers


def bound_open_files() -> None:
    """Sets the hard limit of open descriptors. A process calls this after it has sent its last descriptor.

    The kernel counts the descriptors that all processes of a user have sent, and that nobody has received yet. If they are more than the
    sender's limit, the kernel refuses the next one: https://man7.org/linux/man-pages/man7/unix.7.html, ETOOMANYREFS.
    """
    _lower(resource.RLIMIT_NOFILE, OPEN_FILES)


def layers() -> list[str]:
    """The layers of ``landlock`` and ``seal`` that hold in this process, by trying what they forbid."""
    held = []
    try:
        os.close(os.open("/", os.O_RDONLY | os.O_DIRECTORY))
    except PermissionError:
        held.append(LANDLOCK)
    try:
        socket.socket(socket.AF_UNIX).close()
    except PermissionError:
        held.append(SECCOMP)
    return held


def seal(*, threads: bool = True) -> None:
    """Leaves this process the system calls that rendering needs; any other call fails with EPERM.

    Args:
        threads: Whether the process may start threads.
    """
    with suppress(OSError):
        seccomp.install(program(platform.machine(), os.getpid(), threads=threads))


def program(machine: str, pid: int, *, threads: bool = True) -> bytes:
    """The filter of ``seal``.

    Args:
        machine: As ``platform.machine`` names it.
        pid: The process that is filtered.
        threads: Whether it may start threads.

    Raises:
        OSError: There is no table for the machine.
    """
    if machine not in _MACHINES:
        raise OSError(errno.ENOSYS, "no system call numbers for this machine")
    checked = _numbers(_CHECKED, machine)
    lines: list[Line] = [
        ("", LOAD, seccomp.MACHINE, "", ""),
        ("", EQUAL, AUDIT_ARCH[machine], "", "kill"),
        ("", LOAD, seccomp.CALL, "", ""),
        ("", AT_LEAST, seccomp.X32, "kill", ""),
        *(("", EQUAL, number, name, "") for name, number in checked.items()),
        *(("", EQUAL, number, "allow", "") for number in _numbers(_ALLOWED, machine).values()),
        ("refuse", ANSWER, refuse(errno.EPERM), "", ""),
        ("mmap", LOAD, argument(3), "", ""),
        ("", ANY_BIT, _MAP_SHARED, "forbid", "allow"),
        *([("open", LOAD, argument(1), "", ""), ("", ANY_BIT, _WRITES, "forbid", "allow")] if "open" in checked else []),
        ("openat", LOAD, argument(2), "", ""),
        ("", ANY_BIT, _WRITES, "forbid", "allow"),
        ("ioctl", LOAD, argument(1), "", ""),
        *_any_of(_TERMINAL_QUESTIONS),
        ("fcntl", LOAD, argument(1), "", ""),
        *_any_of(_DUPLICATIONS),
        ("prctl", LOAD, argument(0), "", ""),
        *_any_of((_PR_SET_NAME, _PR_GET_NAME, _PR_GET_DUMPABLE, _PR_SET_VMA)),
        ("tgkill", LOAD, argument(0), "", ""),
        *_any_of((pid,)),
        ("prlimit64", LOAD, argument(0), "", ""),
        *_any_of((0,)),
        # A name would be that of another socket; both halves of the pointer must be zero.
        ("sendto", LOAD, argument(4), "", ""),
        ("", EQUAL, 0, "", "forbid"),
        ("", LOAD, argument(4) + 4, "", ""),
        *_any_of((0,)),
        ("clone", LOAD, argument(0), "", ""),
        ("", ANY_BIT, _CLONE_THREAD, "allow" if threads else "forbid", "forbid"),
        ("clone3", ANSWER, refuse(errno.ENOSYS), "", ""),  # glibc then calls clone, whose flags can be read here
        ("forbid", ANSWER, refuse(errno.EPERM), "", ""),
        ("kill", ANSWER, KILL, "", ""),
        ("allow", ANSWER, ALLOW, "", ""),
    ]
    return seccomp.assemble(lines)


def _numbers(table: str, machine: str) -> dict[str, int]:
    """The calls of a table that the machine has, and their numbers."""
    rows = (row.split() for row in table.split(","))
    column = 1 + _MACHINES.index(machine)
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


def _any_of(values: tuple[int, ...]) -> list[Line]:
    """Allows the call if the loaded value is one of these, else forbids it."""
    return [*(("", EQUAL, value, "allow", "") for value in values[:-1]), ("", EQUAL, values[-1], "allow", "forbid")]


def _lower(name: int, most: int) -> None:
    """Lowers a limit, soft and hard. One that is lower already stays."""
    hard = resource.getrlimit(name)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(name, (most, most))


def _kernel() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
