"""The heap of this process, as glibc's malloc sees it. Elsewhere nothing is known of it, and nothing is returned."""

import ctypes


class _Mallinfo2(ctypes.Structure):
    """``struct mallinfo2``: https://man7.org/linux/man-pages/man3/mallinfo.3.html."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    )


_LIBC = ctypes.CDLL(None)
_mallinfo2 = getattr(_LIBC, "mallinfo2", None)  # since glibc 2.33
if _mallinfo2 is not None:
    _mallinfo2.restype = _Mallinfo2


def used_bytes() -> int:
    """Bytes that are allocated and not freed; 0 where malloc does not say."""
    if _mallinfo2 is None:
        return 0
    info = _mallinfo2()
    return int(info.uordblks + info.hblkhd)


def return_free_memory() -> None:
    """Returns free memory to the kernel: malloc would keep what lies below memory that is used."""
    if _mallinfo2 is not None:
        _LIBC.malloc_trim(0)
