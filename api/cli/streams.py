"""The standard streams of a command, whatever it was given: closed, full, or a pipe that nobody reads any more."""

import io
import os
import sys


class _Told(io.FileIO):
    """stderr: a write that fails is dropped, and does not change how the command ends."""

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override] # as it is called
        """Writes it, or not."""
        try:
            return super().write(data)
        except OSError:
            return len(data)


def prepare_streams() -> bool:
    """Makes both streams fit to write to, a line at a time also into a pipe; False when stdout was closed.

    A character that the locale lacks is no reason to stop.
    """
    was_open = sys.stdout is not None
    # The number of a closed one would be given to the next file or connection.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    encoding = sys.stderr.encoding if sys.stderr is not None else None
    raw = _Told(2, "w", closefd=False)
    sys.stderr = io.TextIOWrapper(raw, encoding, "backslashreplace", write_through=True)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    return was_open


def abandon_stdout() -> None:
    """Lets go what could not be written: the interpreter must find nothing left to flush there."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.close(devnull)
