"""The memory limit of a render child: RLIMIT_DATA, and the fork server, which notices when the child reaches it.

1. RLIMIT_DATA alone is not enough: the kernel refuses an allocation without telling anybody, and PDFium draws the page without the image.
   So every request for private memory waits in the kernel until the fork server has judged it by the kernel's own rule (seccomp user
   notification). The first request beyond the limit ends the child.
   https://www.kernel.org/doc/html/latest/userspace-api/seccomp_filter.html
2. The growth of the heap (``brk``) and of a thread's heap (small ``mprotect``) is not judged, because a page needs hundreds of such
   requests. When the kernel refuses one at the limit, malloc asks for 1 MiB or more by ``mmap``, and this request is judged. A page takes
   about 20 judgements at most, 0.1 ms each. ``sysmalloc`` and ``MMAP_AS_MORECORE_SIZE`` in
   https://sourceware.org/git/?p=glibc.git;a=blob;f=malloc/malloc.c;hb=glibc-2.36
3. The kernel may refuse a new mapping that the fork server let pass: address space is short, or the host does not overcommit. The fork
   server notices when malloc tries again, because the peak of the address space has not grown. This is certain only while the process
   has one thread; after a child's first page some threads of libvips remain.
4. Memory that RLIMIT_DATA does not count, which is shared memory and memory that grows downwards, is refused (EPERM). So is a file that
   is mapped shared to be read: a child may write some of its files, and could make the mapping writable afterwards. Memory that was
   writable once is not counted either, nor are the tables of pages that are only read. So RLIMIT_AS bounds the address space: no page
   comes near it, but hostile code does. RLIMIT_STACK, which bounds the first thread's stack, cannot be raised.
5. The start of a thread is judged, too: threads take memory of the kernel, which no limit of the process counts.
6. Some kernels offer no such notification (gVisor, an emulator, Linux before 5.5). There RLIMIT_DATA is higher by the largest allocation
   that PDFium tries, so that no allocation is refused before the limit is passed, and the child compares its peak with the limit after
   each page.
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

from activities.render import seccomp

LAYER = "memory watch"
"""The name of this layer of a child's confinement: each request for memory is judged."""

LARGEST_ALLOCATION = 2 << 30
"""Bytes. PDFium refuses a larger allocation itself: ``kMallocSizeLimit`` in
https://pdfium.googlesource.com/pdfium/+/refs/heads/chromium/8149/core/fxcrt/fx_memory.h
"""

OTHER_BYTES = 2 << 30
"""Address space for all that is not private memory: libraries and fonts that are loaded later, and the reserve of each thread's heap."""

DOCUMENT_MAPPINGS = 4
"""How often a child maps its document at most."""

STACK_BYTES = 8 << 20

MOST_THREADS = 64
"""Threads of a process, or a few more if many are started at once. RLIMIT_NPROC does not count for root."""

JUDGED_MPROTECT = 1 << 20
"""Bytes from which ``mprotect`` is judged: a thread's stack is larger, most steps of a thread's heap are smaller."""

# https://github.com/torvalds/linux/blob/master/include/uapi/linux/seccomp.h and mman.h; asm/unistd.h
_SYSCALLS = {
    # Machine: mmap, mprotect, memfd_create, shmget, clone.
    "x86_64": (9, 10, 319, 29, 56),
    "aarch64": (222, 226, 279, 194, 220),
}
_MEMFD_SECRET = 447
_CONTINUE = 1
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_ANSWER = struct.Struct("=QqiI")
_M_ARENA_MAX = -8
_PROT_WRITE = 2
_MAP_SHARED, _MAP_FIXED, _MAP_GROWSDOWN = 0x01, 0x10, 0x100
_FIRST_KERNEL = (5, 5)
"""The first Linux with ``SECCOMP_USER_NOTIF_FLAG_CONTINUE``, by which a request passes."""


def watch() -> int:
    """Makes every later request of this process for private memory wait until the holder of the result answers it.

    Returns:
        A descriptor, the listener, for a ``Judge`` in another process. A request that no process judges waits for ever.

    Raises:
        OSError: The kernel does not offer the notification.
    """
    if tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2]) < _FIRST_KERNEL:
        raise OSError(errno.ENOSYS, "this kernel cannot let a request pass")
    return seccomp.install(program(platform.machine()), seccomp.NEW_LISTENER)


def set_limits(status: int, memory_bytes: int, document_bytes: int) -> None:
    """Sets this process's limits of private memory, and of what RLIMIT_DATA does not count.

    Args:
        status: Descriptor of ``/proc/self/status``.
        memory_bytes: The limit of private memory.
        document_bytes: The size of the document.
    """
    now = read_status(status)
    address_space = now["VmSize"] - now["VmData"] + memory_bytes + OTHER_BYTES + DOCUMENT_MAPPINGS * document_bytes
    for name, most in ((resource.RLIMIT_STACK, STACK_BYTES), (resource.RLIMIT_AS, address_space), (resource.RLIMIT_DATA, memory_bytes)):
        hard = resource.getrlimit(name)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(name, (most, most))


@dataclass(frozen=True)
class _PassedRequest:
    """The last request that passed, if the peak of the address space must grow by it unless the kernel refuses it.

    This holds for a new mapping of a process with one thread. An ``mprotect``, or a mapping in the place of another one, takes no address
    space. With more threads, another thread may give address space back meanwhile.

    Args:
        length: Bytes that the request asked for.
        peak: Bytes that the peak must reach.
    """

    length: int
    peak: int


class Judge:
    """Judges a watched process's requests for memory.

    Args:
        listener: The descriptor that ``watch`` returned in the process.
        status: Descriptor of the process's ``/proc/PID/status``. The process opens it itself: another process may not see this file.
        limit_bytes: The process's limit of private memory, which is its RLIMIT_DATA.
    """

    def __init__(self, listener: int, status: int, limit_bytes: int) -> None:
        self._listener = listener
        self._status = status
        self._limit_bytes = limit_bytes
        self._last: _PassedRequest | None = None

    def judge(self) -> bool:
        """Answers the request that waits.

        Returns:
            False if the request is over the limit: it stays unanswered, and the caller must kill the process.

        Raises:
            OSError: The kernel refuses the answer.
        """
        request = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self._listener, _RECEIVE, request)
            identity, _, _, call, _, _, _, length, _, flags, *_ = _NOTIFICATION.unpack(request)
            status = read_status(self._status)
            if call == _SYSCALLS[platform.machine()][-1]:
                refused = status["Threads"] >= MOST_THREADS
                fcntl.ioctl(self._listener, _SEND, _ANSWER.pack(identity, 0, -errno.EAGAIN if refused else 0, 0 if refused else _CONTINUE))
                return True
            page = resource.getpagesize()
            # The kernel's rule: may_expand_vm() in https://github.com/torvalds/linux/blob/v6.6/mm/mmap.c
            if status["VmData"] // page + -(-length // page) > self._limit_bytes // page:
                return False
            last, self._last = self._last, None
            if status["Threads"] == 1:
                if last is not None and length >= last.length and status["VmPeak"] < last.peak:
                    return False  # The kernel refused the last request for another reason, and malloc tries again in another way.
                if call == _SYSCALLS[platform.machine()][0] and not flags & _MAP_FIXED:
                    self._last = _PassedRequest(length, status["VmSize"] + length)
            fcntl.ioctl(self._listener, _SEND, _ANSWER.pack(identity, 0, 0, _CONTINUE))
        except (FileNotFoundError, ProcessLookupError, KeyError):
            pass  # The process has ended.
        return True


class PeakLimit:
    """The memory limit of this process, where no other process can watch it.

    It must be made before the process takes memory. Afterwards it tells whether the process has ever taken too much.

    Args:
        status: Descriptor of ``/proc/self/status``.
        limit_bytes: The limit of private memory.
    """

    def __init__(self, status: int, limit_bytes: int) -> None:
        # One heap for all threads: a heap for each would reserve address space, which the peak counts.
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
        self._status = status
        now = read_status(status)
        self._highest_peak = limit_bytes + now["VmSize"] - now["VmData"]

    def is_exceeded(self) -> bool:
        """Whether the process has ever had more private memory than the limit."""
        return read_status(self._status)["VmPeak"] > self._highest_peak


def read_status(descriptor: int) -> dict[str, int]:
    """The numbers in an open ``/proc/PID/status``, sizes in bytes: https://man7.org/linux/man-pages/man5/proc_pid_status.5.html."""
    numbers = {}
    for line in os.pread(descriptor, 1 << 16, 0).decode(errors="replace").splitlines():
        name, _, value = line.partition(":")
        first, *unit = value.split() or [""]
        if first.isdecimal():
            numbers[name] = int(first) << (10 if unit == ["kB"] else 0)
    return numbers


def program(machine: str) -> bytes:
    """The filter for a machine, as ``platform.machine`` names it."""
    if machine not in _SYSCALLS:
        raise OSError(errno.ENOSYS, "no system call numbers for this machine")
    mmap, mprotect, memfd_create, shmget, clone = _SYSCALLS[machine]
    load, equal, at_least, any_bit, answer = seccomp.LOAD, seccomp.EQUAL, seccomp.AT_LEAST, seccomp.ANY_BIT, seccomp.ANSWER
    length, protection, flags = (seccomp.argument(number) for number in (1, 2, 3))
    lines = [
        ("", load, seccomp.MACHINE, "", ""),
        ("", equal, seccomp.AUDIT_ARCH[machine], "", "refuse"),
        ("", load, seccomp.CALL, "", ""),
        ("", at_least, seccomp.X32, "refuse", ""),
        ("", equal, mmap, "mmap", ""),
        ("", equal, mprotect, "mprotect", ""),
        ("", equal, clone, "judge", ""),
        ("", equal, memfd_create, "refuse", ""),
        ("", equal, _MEMFD_SECRET, "refuse", ""),
        ("", equal, shmget, "refuse", "allow"),
        ("mmap", load, flags, "", ""),
        ("", any_bit, _MAP_SHARED | _MAP_GROWSDOWN, "refuse", ""),
        ("", load, protection, "", ""),
        ("", any_bit, _PROT_WRITE, "judge", "allow"),
        ("mprotect", load, protection, "", ""),
        ("", any_bit, _PROT_WRITE, "", "allow"),
        ("", load, length + 4, "", ""),
        ("", equal, 0, "", "judge"),
        ("", load, length, "", ""),
        ("", at_least, JUDGED_MPROTECT, "judge", "allow"),
        ("allow", answer, seccomp.ALLOW, "", ""),
        ("refuse", answer, seccomp.refuse(errno.EPERM), "", ""),
        ("judge", answer, seccomp.NOTIFY, "", ""),
    ]
    return seccomp.assemble(lines)
