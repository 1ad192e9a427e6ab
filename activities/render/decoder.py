"""The process that decodes JPEGs, as its parent sees it: ``activities.render.decode`` is the other side. Loads no native library."""

import struct
import subprocess
import threading
from contextlib import suppress
from types import TracebackType
from typing import IO, Self, cast

from activities.errors import RenderCrashed
from activities.render.process import start_process

REQUEST = struct.Struct(">III")
"""The header of a JPEG: the width and the height in pixels that it must have, both 0 for a thumbnail; its size in bytes."""

ANSWER_S = 180.0
"""A decoder that does not answer for so long hangs: one image takes a tenth of a second, and no more than 20 s of CPU."""


class Decoder:
    """A context manager around a process that decodes JPEGs: a JPEG that crashes or hangs libvips does so only there.

    Args:
        answer_s: How long an answer about an image may take, in seconds.

    Raises:
        RenderCrashed: The process cannot be started.
    """

    def __init__(self, answer_s: float = ANSWER_S) -> None:
        self._answer_s = answer_s
        self._start()

    def _start(self) -> None:
        # libvips warns on stderr.
        self._process = start_process("activities.render.decode", stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._requests, self._answers = cast("IO[bytes]", self._process.stdin), cast("IO[bytes]", self._process.stdout)
        if not self._ask(b"", ANSWER_S):
            msg = f"the process that decodes JPEGs did not start: it {self._end()}"
            raise RenderCrashed(msg)

    def _ask(self, request: bytes, answer_s: float) -> bytes:
        """The answer: one line, which is cut off if the process has died, or was killed because it did not answer in time."""
        self._killed_after_s: float | None = None
        timer = threading.Timer(answer_s, self._kill, [answer_s])
        timer.daemon = True
        timer.start()
        try:
            self._requests.write(request)
            self._requests.flush()
            return self._answers.readline()
        except BrokenPipeError:
            return b""
        finally:
            timer.cancel()
            timer.join()  # or it might kill the process that is asked next

    def _kill(self, after_s: float) -> None:
        self._killed_after_s = after_s
        self._process.kill()

    def problem(self, body: bytes, width: int, height: int) -> str:
        """What is wrong with a JPEG, or nothing.

        Args:
            body: Its bytes.
            width: Pixels that it must have; 0, with a height of 0, for a thumbnail.
            height: Likewise.
        """
        how = ""
        for _ in range(2):  # the process may have died of something else: only a JPEG that breaks a fresh one, too, is to blame
            answer = self._ask(REQUEST.pack(width, height, len(body)) + body, self._answer_s)
            if answer.endswith(b"\n"):
                return answer.decode().rstrip("\n")
            how = self._end()
            self._start()
        return f"broke the decoder, which {how}"

    @property
    def pid(self) -> int:
        """The id of the process that runs now."""
        return self._process.pid

    def _end(self) -> str:
        """Ends the process; returns how it ended."""
        with suppress(BrokenPipeError):
            self._requests.close()
        self._answers.close()
        try:
            code = self._process.wait(self._answer_s)
        except subprocess.TimeoutExpired:
            self._kill(self._answer_s)
            code = self._process.wait()
        if self._killed_after_s is not None:
            return f"gave no answer within {self._killed_after_s:g} s and was killed"
        return f"ended with exit code {code}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()
