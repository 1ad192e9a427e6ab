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
4. Memory that RLIMIT_DATA does not count, which is shared memory and memory that grows downwards, is refused (EPERM).
5. Some kernels offer no such notification (gVisor, an emulator, Linux before 5.5). There RLIMIT_DATA is higher by the largest allocation
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
from pathlib import Path

LARGEST_ALLOCATION = 2 << 30
"""Bytes. PDFium refuses a larger allocation itself: ``kMallocSizeLimit`` in
https://pdfium.googlesource.com/pdfium/+/refs/heads/chromium/8149/core/fxcrt/fx_memory.h
"""

JUDGED_MPROTECT = 1 << 20
"""Bytes from which ``mprotect`` is judged: a thread's stack is larger, most steps of a thread's heap are smaller."""

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
"""The first Linux with ``SECCOMP_USER_NOTIF_FLAG_CONTINUE``, by which a request passes."""


def watch() -> int:
    """Makes every later request of this process for private memory wait until the holder of the result answers it.

    Returns:
        A descriptor, the listener, for a ``Judge`` in another process. A request that no process judges waits for ever.

    Raises:
        OSError: The kernel does not offer the notification.
    """
    if platform.machine() not in _SYSCALLS:
        raise OSError(errno.ENOSYS, "no system call numbers for this machine")
    if tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2]) < _FIRST_KERNEL:
        raise OSError(errno.ENOSYS, "this kernel cannot let a request pass")
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
        pid: The process.
        limit_bytes: The process's limit of private memory, which is its RLIMIT_DATA.
    """

    def __init__(self, listener: int, pid: int, limit_bytes: int) -> None:
        self._listener = listener
        self._pid = pid
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
            status = memory_status(self._pid)
            page = resource.getpagesize()
            # The kernel's rule: may_expand_vm() in https://github.com/torvalds/linux/blob/v6.6/mm/mmap.c
            if status["VmData"] // page + -(-length // page) > self._limit_bytes // page:
                return False
            last, self._last = self._last, None
            if len(list(Path(f"/proc/{self._pid}/task").iterdir())) == 1:
                if last is not None and length >= last.length and status["VmPeak"] < last.peak:
                    return False  # The kernel refused the last request for another reason, and malloc tries again in another way.
                if call == _SYSCALLS[platform.machine()][2] and not flags & _MAP_FIXED:
                    self._last = _PassedRequest(length, status["VmSize"] + length)
            fcntl.ioctl(self._listener, _SEND, _ANSWER.pack(identity, 0, 0, _CONTINUE))
        except (FileNotFoundError, ProcessLookupError, KeyError):
            pass  # The process has ended.
        return True


class PeakLimit:
    """The memory limit of this process, where no other process can watch it.

    It must be made before the process takes memory. Afterwards it tells whether the process has ever taken too much.

    Args:
        limit_bytes: The limit of private memory.
    """

    def __init__(self, limit_bytes: int) -> None:
        # One heap for all threads: a heap for each would reserve address space, which the peak counts.
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
        status = memory_status(os.getpid())
        self._highest_peak = limit_bytes + status["VmSize"] - status["VmData"]

    def is_exceeded(self) -> bool:
        """Whether the process has ever had more private memory than the limit."""
        return memory_status(os.getpid())["VmPeak"] > self._highest_peak


def memory_status(pid: int) -> dict[str, int]:
    """The sizes in ``/proc/PID/status``, in bytes: https://man7.org/linux/man-pages/man5/proc_pid_status.5.html."""
    lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    return {name: int(value.split()[0]) << 10 for name, _, value in (line.partition(":") for line in lines) if value.endswith(" kB")}


def _program() -> bytes:
    """The filter, in classic BPF."""
    architecture, _, mmap, mprotect, memfd_create, shmget = _SYSCALLS[platform.machine()]
    load, equal, at_least, any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    # Offsets in struct seccomp_data: of the system call, the machine, and the arguments' lower halves.
    call, machine, length, protection, flags = 0, 4, 24, 32, 40
    # Label, operation, operand, label to jump to if true, label to jump to if false. An empty label means the next line.
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
