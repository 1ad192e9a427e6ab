"""The begin and the end of a process that uses Temporal's client."""

import asyncio
import ctypes
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

_PR_SET_DUMPABLE = 4


def run(main: Callable[[], int]) -> NoReturn:
    """Runs a program and ends the process with the exit code that it returns.

    The interpreter's own exit can crash in temporalio's native library, after all work is done. So the process ends without it.
    https://github.com/temporalio/sdk-python/issues/300
    """
    os.umask(0o077)  # no other user of this machine may read the plans
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def hide_memory() -> None:
    """Lets no process without privileges attach to this one, or read its memory and environment, where the secrets are.

    A program calls it after ``give_way``, which writes a file that then belongs to root.
    https://man7.org/linux/man-pages/man2/PR_SET_DUMPABLE.2const.html
    """
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def keep_what_is_loaded() -> None:
    """Takes all present objects out of garbage collection.

    A program calls it when it is ready to serve. Otherwise a full collection looks at all modules, and the program stands still for 70 ms.
    https://docs.python.org/3/library/gc.html#gc.freeze
    """
    gc.collect()
    gc.freeze()


def give_way(niceness: int, group_niceness: int) -> None:
    """Lets other programs of this machine go first.

    Linux may compare the programs of different sessions by the niceness of their groups only (``man 7 sched``, "The autogroup feature").
    Then this process' own niceness counts within its session, so its group gets one, too; unless the session belongs to others.

    Args:
        niceness: How much nicer the process becomes.
        group_niceness: The niceness of its session.
    """
    os.nice(niceness)
    if os.getsid(0) == os.getpid():
        with suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(group_niceness))


def stop_request() -> asyncio.Event:
    """Set when SIGTERM or SIGINT asks the process to stop. For the running event loop."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop
