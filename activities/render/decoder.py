"""Starts the process that decodes JPEGs, ``activities.render.decode``, and asks it. Loads no native library."""

import os
import re
import struct
import subprocess
import threading
from contextlib import suppress
from types import TracebackType
from typing import IO, Self, cast

from activities.bucket.dzi import THUMBNAIL_PX
from activities.errors import RenderCrashed
from activities.render import cgroup
from activities.render.process import start_process

REQUEST = struct.Struct(">III")
"""The header of a request: the width and the height in pixels that the JPEG must have, both 0 for a thumbnail; its size in bytes."""

LONGEST_ANSWER_BYTES = 200
"""The first answer, which names the layers, is the longest."""
_ANSWER = re.compile(rb"(?P<size>size (?P<width>\d{1,9}) (?P<height>\d{1,9}))?(?P<damaged>damaged)?\n")
DAMAGED = "cannot be decoded: it is damaged or cut off"

ANSWER_S = 180.0
"""A decoder that does not answer within this time hangs: an image takes a tenth of a second, and at most 20 s of CPU time."""


class Decoder:
    """A context manager around a process that decodes JPEGs. A JPEG that crashes or hangs libvips does so only in that process.

    Args:
        answer_s: Seconds to wait for the answer about an image.

    Attributes:
        layers: The layers of the process's confinement, as ``confine`` names them.

    Raises:
        RenderCrashed: The process cannot be started.
    """

    def __init__(self, answer_s: float = ANSWER_S) -> None:
        self._answer_s = answer_s
        self.layers: list[str] = []
        self.start()

    def start(self) -> None:
        """Starts a process, in place of one that has ended."""
        # stderr has only warnings of libvips.
        self._process = start_process("activities.render.decode", str(os.getpid()), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._requests, self._answers = cast("IO[bytes]", self._process.stdin), cast("IO[bytes]", self._process.stdout)
        greeting = self._ask(b"", ANSWER_S)
        self.layers = greeting.decode().strip().split(", ")
        if not greeting:
            msg = f"the process that decodes JPEGs did not start: it {self._end()}"
            raise RenderCrashed(msg)

    def _ask(self, request: bytes, answer_s: float) -> bytes:
        """The answer: one line. It is cut off if the process died, or was killed because it did not answer in time."""
        self._killed_after_s: float | None = None
        timer = threading.Timer(answer_s, self._kill, [answer_s])
        timer.daemon = True
        timer.start()
        try:
            self._requests.write(request)
            self._requests.flush()
            return self._answers.readline(LONGEST_ANSWER_BYTES)
        except BrokenPipeError:
            return b""
        finally:
            timer.cancel()
            timer.join()  # otherwise it might kill the next process

    def _kill(self, after_s: float) -> None:
        self._killed_after_s = after_s
        self._process.kill()

    def problem(self, body: bytes, width: int, height: int) -> str:
        """Says what is wrong with a JPEG; empty if nothing is.

        Args:
            body: The JPEG's bytes.
            width: The width that it must have, in pixels; 0, with a height of 0, for a thumbnail.
            height: The height that it must have, in pixels.

        Raises:
            RenderCrashed: The next process cannot be started.
        """
        ending = ""
        # A process may die for another reason. So a JPEG is blamed only if a fresh process dies, too.
        for _ in range(2):
            answer = self._ask(REQUEST.pack(width, height, len(body)) + body, self._answer_s)
            if (problem := _problem(answer, width, height)) is not None:
                return problem
            ending = self._end()
            self.start()
        return f"broke the decoder, which {ending}"

    @property
    def pid(self) -> int:
        """The process id of the decoder that runs now."""
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
        if cgroup.LAYER in self.layers:
            with suppress(OSError, ValueError):
                cgroup.find()  # removes the group of the process
        if self._killed_after_s is not None:
            return f"gave no answer within {self._killed_after_s:g} s and was killed"
        return f"ended with exit code {code}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()


def _problem(answer: bytes, width: int, height: int) -> str | None:
    """The sentence for an answer; None for one that the decoder does not give, unless a JPEG has taken it over."""
    match = _ANSWER.fullmatch(answer)
    if match is None:
        return None
    if match["size"]:
        wanted = f"{width} x {height}" if width else f"at most {THUMBNAIL_PX} x {THUMBNAIL_PX}"
        return f"has {match['width'].decode()} x {match['height'].decode()} px, not {wanted}"
    return DAMAGED if match["damaged"] else ""
