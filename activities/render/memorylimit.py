"""The memory limit of a render child: RLIMIT_DATA, and the fork server, which notices when it is reached.

1. The limit alone is not enough: the kernel refuses an allocation, says nothing to anybody, and PDFium draws the page without the image.
   So every request for private memory waits in the kernel until the fork server has judged it by the kernel's own rule (seccomp user
   notification); the first one beyond the limit ends the child. https://www.kernel.org/doc/html/latest/userspace-api/seccomp_filter.html
2. The heap's own growth (``brk``) and that of a thread's heap (small ``mprotect``) are not judged, for there are hundreds of them a page.
   When the kernel refuses them at the limit, malloc asks for 1 MiB or more by ``mmap``, and that is judged: glibc's malloc/malloc.c,
   ``sysmalloc`` and ``MMAP_AS_MORECORE_SIZE``. A page takes at most some 20 judgements, 0.1 ms each.
3. A new mapping that passes and is refused all the same, for a lack of address space or by a host without overcommit, is noticed when
   malloc tries again, because the peak of the address space has not grown by it. That is certain only while the process has one thread:
   libvips leaves some after a child's first page.
4. Memory that RLIMIT_DATA does not count, shared or growing downwards, is refused (EPERM).
5. Where the kernel offers no such notification (gVisor, an emulator, Linux before 5.5), the limit is set higher by the largest allocation
   that PDFium tries, so that none is refused before the limit is passed, and the child compares its peak with the limit after each page.
"""

import ctypes
import errno
import fcntl
import os
import platform
import re
import resource
import struct
from dataclasses import dataclass
from pathlib import Path

LARGEST_ALLOCATION = 2 << 30
"""PDFium refuses larger ones itself: core/fxcrt/fx_memory.h, ``kMallocSizeLimit``."""

JUDGED_MPROTECT = 1 << 20
"""Bytes; a thread's stack is larger, most steps of a thread's heap are smaller."""

# https://github.com/torvalds/linux/blob/master/include/uapi/linux/seccomp.h and filter.h, audit.h, mman.h; asm/unistd.h
_SYSCALLS = {
    # Machine: AUDIT_ARCH; seccomp, mmap, mprotect, memfd_create, shmget.
    "x86_64": (0xC000003E, 317, 9, 10, 319, 29),
    "aarch64": (0xC00000B7, 277, 222, 226, 279, 194),
}
_MEMFD_SECRET = 447
_X32 = 0x40000000
_SET_MODE_FILTER = 1
_SPEC_ALLOW, _NEW_LISTENER = 1 << 2, 1 << 3
_ALLOW, _NOTIFY, _REFUSE = 0x7FFF0000, 0x7FC00000, 0x00050000 | errno.EPERM
_CONTINUE = 1
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_ANSWER = struct.Struct("=QqiI")
_PR_SET_NO_NEW_PRIVS = 38
_M_ARENA_MAX = -8
_PROT_WRITE = 2
_MAP_SHARED, _MAP_FIXED, _MAP_ANONYMOUS, _MAP_GROWSDOWN = 0x01, 0x10, 0x20, 0x100
_FIRST_KERNEL = (5, 5)
"""With ``SECCOMP_USER_NOTIF_FLAG_CONTINUE``: without it no request could pass."""


def watch() -> int:
    """Makes every later request of this process for private memory wait until the holder of the result answers it.

    Returns:
        A descriptor for a ``Judge`` in another process: a request that nobody judges waits for ever.

    Raises:
        OSError: The kernel does not offer it.
    """
    if platform.machine() not in _SYSCALLS:
        raise OSError(errno.ENOSYS, "no system call numbers for this machine")
    if tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2]) < _FIRST_KERNEL:
        raise OSError(errno.ENOSYS, "the kernel lets no request pass")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    program = _program()
    buffer = ctypes.create_string_buffer(program, len(program))
    head = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer)))
    number = _SYSCALLS[platform.machine()][1]
    # Without SPEC_ALLOW, kernels before 5.16 make all code of the process slower.
    flags = ctypes.c_ulong(_SPEC_ALLOW | _NEW_LISTENER)
    listener = libc.syscall(ctypes.c_long(number), ctypes.c_long(_SET_MODE_FILTER), flags, ctypes.byref(head))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return int(listener)


@dataclass(frozen=True)
class _Passed:
    """The last request that passed and that must have raised the peak of the address space, if the kernel granted it.

    Only a new mapping of a process with one thread is remembered: an ``mprotect``, or a mapping in the place of another, takes no address
    space, and another thread may give some back meanwhile.
    """

    length: int
    peak: int


class Judge:
    """Who decides about the requests of a watched process.

    Args:
        listener: What ``watch`` returned there.
        pid: The process.
        limit_bytes: Of private memory, its RLIMIT_DATA.
    """

    def __init__(self, listener: int, pid: int, limit_bytes: int) -> None:
        self._listener = listener
        self._pid = pid
        self._limit_bytes = limit_bytes
        self._last: _Passed | None = None

    def judge(self) -> bool:
        """Answers the request that waits.

        Returns:
            False if it is over the limit: it stays unanswered, and the caller must kill the process.

        Raises:
            OSError: The kernel does not let it pass.
        """
        request = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self._listener, _RECEIVE, request)
            identity, _, _, call, _, _, _, length, _, flags, *_ = _NOTIFICATION.unpack(request)
            status = _status(self._pid)
            page = resource.getpagesize()
            # As the kernel reckons: mm/mmap.c, may_expand_vm().
            if status["VmData"] // page + -(-length // page) > self._limit_bytes // page:
                return False
            last, self._last = self._last, None
            if len(list(Path(f"/proc/{self._pid}/task").iterdir())) == 1:
                if last is not None and length >= last.length and status["VmPeak"] < last.peak:
                    return False  # The last one was refused for another reason, and malloc tries again in another way.
                if call == _SYSCALLS[platform.machine()][2] and not flags & _MAP_FIXED:
                    self._last = _Passed(length, status["VmSize"] + length)
            fcntl.ioctl(self._listener, _SEND, _ANSWER.pack(identity, 0, 0, _CONTINUE))
        except (FileNotFoundError, ProcessLookupError, KeyError):
            pass
        return True


class PeakLimit:
    """The limit of a process that nobody watches: made before it takes memory, asked after.

    Args:
        limit_bytes: Of private memory.
    """

    def __init__(self, limit_bytes: int) -> None:
        # Else every thread's heap would reserve address space, which the peak counts.
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
        status = _status(os.getpid())
        self._most = limit_bytes + status["VmSize"] - status["VmData"]

    def exceeded(self) -> bool:
        """Whether the process has ever had more."""
        return _status(os.getpid())["VmPeak"] > self._most


def _status(pid: int) -> dict[str, int]:
    """The sizes in /proc/PID/status, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    return {name: int(value.split()[0]) << 10 for name, _, value in (line.partition(":") for line in lines) if value.endswith(" kB")}


def _program() -> bytes:
    """The filter, in classic BPF."""
    architecture, _, mmap, mprotect, memfd_create, shmget = _SYSCALLS[platform.machine()]
    load, equal, at_least, any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    # Offsets in struct seccomp_data: of the system call, the machine, and the arguments' lower halves.
    call, machine, length, protection, flags = 0, 4, 24, 32, 40
    # Label, operation, its operand, and the labels of where it goes on: if true, if false; the next line where there is none.
    lines = [
        ("", load, machine, "", ""),
        ("", equal, architecture, "", "refuse"),
        ("", load, call, "", ""),
        ("", at_least, _X32, "refuse", ""),
        ("", equal, mmap, "mmap", ""),
        ("", equal, mprotect, "mprotect", ""),
        ("", equal, memfd_create, "refuse", ""),
        ("", equal, _MEMFD_SECRET, "refuse", ""),
        ("", equal, shmget, "refuse", "allow"),
        ("mmap", load, flags, "", ""),
        ("", any_bit, _MAP_GROWSDOWN, "refuse", ""),
        ("", any_bit, _MAP_SHARED, "shared", ""),
        ("", load, protection, "", ""),
        ("", any_bit, _PROT_WRITE, "judge", "allow"),
        ("shared", any_bit, _MAP_ANONYMOUS, "refuse", ""),
        ("", load, protection, "", ""),
        ("", any_bit, _PROT_WRITE, "refuse", "allow"),
        ("mprotect", load, protection, "", ""),
        ("", any_bit, _PROT_WRITE, "", "allow"),
        ("", load, length + 4, "", ""),
        ("", equal, 0, "", "judge"),
        ("", load, length, "", ""),
        ("", at_least, JUDGED_MPROTECT, "judge", "allow"),
        ("allow", answer, _ALLOW, "", ""),
        ("refuse", answer, _REFUSE, "", ""),
        ("judge", answer, _NOTIFY, "", ""),
    ]
    at = {label: index for index, (label, *_) in enumerate(lines) if label}
    return b"".join(
        struct.pack("=HBBI", operation, *(at[label] - index - 1 if label else 0 for label in (if_true, if_false)), operand)
        for index, (_, operation, operand, if_true, if_false) in enumerate(lines)
    )
