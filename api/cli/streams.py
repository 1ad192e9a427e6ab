"""The standard streams of a command. They may be closed, full, or a pipe that nobody reads any more."""

import io
import os
import sys


class _LossyFile(io.FileIO):
    """stderr: a failed write is dropped, so that it does not change the exit code."""

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override] # as it is called
        """Writes the data, or drops it."""
        try:
            return super().write(data)
        except OSError:
            return len(data)


def prepare_streams() -> bool:
    """Makes stdout and stderr safe to write to; returns False when stdout was closed.

    Afterwards stdout is written line by line, also into a pipe, and a character that the locale cannot write is escaped.
    """
    was_open = sys.stdout is not None
    # Without this, the next file or connection would get the descriptor of a closed stream.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    encoding = sys.stderr.encoding if sys.stderr is not None else None
    raw = _LossyFile(2, "w", closefd=False)
    sys.stderr = io.TextIOWrapper(raw, encoding, "backslashreplace", write_through=True)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    return was_open


def abandon_stdout() -> None:
    """Drops the output that could not be written; otherwise the interpreter would fail to flush it at exit."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.close(devnull)
