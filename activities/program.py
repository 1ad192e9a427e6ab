"""The begin and the end of a process that uses Temporal's client."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn


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


def stop_request() -> asyncio.Event:
    """Set when SIGTERM or SIGINT asks the process to stop. For the running event loop."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop
