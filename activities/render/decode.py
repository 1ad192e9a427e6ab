"""The process that decodes JPEGs for ``verify``: run as ``python -m activities.render.decode``. Loads libvips.

A request on stdin is ``REQUEST`` and the JPEG's bytes. The answer on stdout is one line: empty if the JPEG is whole, ``size WIDTH HEIGHT``
if it has another size, ``damaged`` if it cannot be decoded. Before the first request a line names the layers of its confinement. It ends
when its stdin is closed, and with the thread that started it.
"""

import os
import resource
import signal
import sys
from contextlib import suppress

import pyvips

from activities.bucket.dzi import THUMBNAIL_PX
from activities.render import cgroup, confine, memorylimit
from activities.render.decoder import REQUEST

MEMORY_BYTES = 1 << 30
CPU_S = 20
"""Most CPU time for one image. The largest tile needs a tenth of a second."""
LIFE_CPU_S = 3600
"""Most CPU time for all images, which are those of one sheet. Code that takes this process over can lift the other limit, not this one."""


def main() -> None:
    """Answers requests until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is for the parent, which then closes stdin
    os.nice(10)
    pyvips.cache_set_max(0)
    status = os.open("/proc/self/status", os.O_RDONLY)
    own_group: list[str] = []
    with suppress(OSError, ValueError):
        cgroup.find().make(0, MEMORY_BYTES, confine.TASKS).join()
        own_group.append(cgroup.LAYER)
    confine.landlock(confine.library_folders())
    memorylimit.set_limits(status, MEMORY_BYTES, document_bytes=0)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    layers = confine.restrict(confine.Limits(file_bytes=0, cpu_s=LIFE_CPU_S))
    confine.bound_open_files()
    confine.die_with_parent(int(sys.argv[1]))
    confine.seal(threads=False)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    answers.write(", ".join((*layers, *confine.layers(), *own_group)).encode() + b"\n")
    answers.flush()
    while header := requests.read(REQUEST.size):
        width, height, size_bytes = REQUEST.unpack(header)
        limit_cpu()
        problem = decode(requests.read(size_bytes), width, height)
        answers.write(problem.encode() + b"\n")
        answers.flush()


def limit_cpu() -> None:
    """Makes the kernel end this process after ``CPU_S`` more of CPU time."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (min(int(usage.ru_utime + usage.ru_stime) + CPU_S, hard), hard))


def decode(body: bytes, width: int, height: int) -> str:
    """The answer about a JPEG; empty if it has the right size and every pixel can be decoded.

    Args:
        body: The JPEG's bytes.
        width: The width that it must have, in pixels; 0 for any width up to ``THUMBNAIL_PX``.
        height: The height, likewise.
    """
    try:
        image = pyvips.Image.jpegload_buffer(body, fail_on="warning", access="sequential")
        # Before a pixel is decoded: a header may claim gigabytes.
        if (width or min(image.width, THUMBNAIL_PX), height or min(image.height, THUMBNAIL_PX)) != (image.width, image.height):
            return f"size {image.width} {image.height}"
        # Other calls of libvips decode in threads, which this process may not start.
        pyvips.Region.new(image).fetch(0, 0, image.width, image.height)
    except pyvips.Error:  # its message is not for people: it names calls of libvips
        return "damaged"
    return ""


if __name__ == "__main__":
    main()
