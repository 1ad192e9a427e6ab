"""Assembles and installs filters of system calls, in classic BPF: https://man7.org/linux/man-pages/man2/seccomp.2.html.

A filter gets ``struct seccomp_data``: the number of the call, the machine, the instruction pointer, and six arguments of 64 bits.
Numbers are from https://github.com/torvalds/linux/blob/master/include/uapi/linux/seccomp.h, filter.h and audit.h.
"""

import ctypes
import errno
import platform
import struct
from collections.abc import Sequence

ALLOW, NOTIFY, KILL = 0x7FFF0000, 0x7FC00000, 0x80000000
X32 = 0x40000000
"""Calls of x86-64 from this number on take pointers of 32 bits."""
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CALL, MACHINE = 0, 4
"""Offsets in ``struct seccomp_data``."""
LOAD, EQUAL, AT_LEAST, ANY_BIT, ANSWER = 0x20, 0x15, 0x35, 0x45, 0x06
SPEC_ALLOW, NEW_LISTENER = 1 << 2, 1 << 3

Line = tuple[str, int, int, str, str]
"""Label, operation, operand, label to jump to if true, label to jump to if false. An empty label means the next line."""

_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SET_MODE_FILTER = 1
_PR_SET_NO_NEW_PRIVS = 38


def argument(number: int) -> int:
    """The offset of an argument's lower half; ``number`` is 0-based."""
    return 16 + 8 * number


def refuse(error: int) -> int:
    """The answer that makes a call fail with an error number."""
    return 0x00050000 | error


def assemble(lines: Sequence[Line]) -> bytes:
    """The program. Each label stands before one line at most, and jumps go forwards by at most 255 lines."""
    at = {label: index for index, (label, *_) in enumerate(lines) if label}
    return b"".join(
        struct.pack("=HBBI", operation, *(at[label] - index - 1 if label else 0 for label in (if_true, if_false)), operand)
        for index, (_, operation, operand, if_true, if_false) in enumerate(lines)
    )


def install(program: bytes, flags: int = 0) -> int:
    """Filters every later call of this thread, and of the threads and processes that it starts.

    Args:
        program: As from ``assemble``.
        flags: ``SECCOMP_FILTER_FLAG_*``.

    Returns:
        The listener, if ``NEW_LISTENER`` is among the flags; else 0.

    Raises:
        OSError: The kernel does not offer this.
    """
    if platform.machine() not in _SECCOMP:
        raise OSError(errno.ENOSYS, "no system call numbers for this machine")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    buffer = ctypes.create_string_buffer(program, len(program))
    head = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer)))
    # Without SPEC_ALLOW, kernels before 5.16 make all code of the process slower.
    result = libc.syscall(
        ctypes.c_long(_SECCOMP[platform.machine()]),
        ctypes.c_long(_SET_MODE_FILTER),
        ctypes.c_ulong(SPEC_ALLOW | flags),
        ctypes.byref(head),
    )
    if result < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return int(result)
