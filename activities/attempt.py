"""One attempt of an activity: heartbeats while threads work, and how named errors leave it."""

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TypeVar

from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.errors import SiteLinkError, StorageUnavailable

T = TypeVar("T")

BEAT_S = 1.0
"""How often a waiting activity beats; Temporal's client throttles what it sends."""


def to_application_error(error: SiteLinkError, *, final: bool | None = None) -> ApplicationError:
    """The form in which a named error leaves an activity.

    Args:
        error: The named error.
        final: Overrides ``error.final``, for faults that become final after some tries.
    """
    non_retryable = error.final if final is None else final
    return ApplicationError(str(error), type=error.type, non_retryable=non_retryable, next_retry_delay=error.retry_delay)


class Attempt:
    """The attempt that runs now."""

    def beat(self) -> None:
        """Tells Temporal that the attempt is alive."""
        activity.heartbeat()

    def gives_up(self, error: SiteLinkError) -> bool:
        """Whether this attempt, which ends with ``error``, is the last one."""
        return error.final

    @contextmanager
    def named_errors(self) -> Iterator[None]:
        """Turns named errors into the form in which they leave an activity; a full disk is one of them, and is waited out."""
        try:
            yield
        except SiteLinkError as error:
            raise to_application_error(error, final=self.gives_up(error)) from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise to_application_error(StorageUnavailable(f"this host's disk is full: {os.strerror(error.errno)}")) from error

    async def in_thread(
        self,
        work: Callable[[threading.Event], T],
        *,
        more_follows: bool = False,
        submit: Callable[[Callable[[threading.Event], T], threading.Event], Future[T]] | None = None,
    ) -> T:
        """Runs ``work`` in a thread, with heartbeats for as long as the thread lives.

        Cancelling the caller, once or several times, sets the event, which ``work`` looks at often. The caller then waits for the thread,
        still with heartbeats: without them Temporal would take the attempt for dead, others would clean up after it, and a late write of
        the thread would undo their work. If the thread ends well, its result counts. Work that has not begun is dropped.

        Args:
            work: Blocks.
            more_follows: Whether ``work`` is only a step of the activity: a cancelled caller then goes no further, even if it is done.
            submit: Hands the work and its event to other threads than asyncio's own.
        """
        stop = threading.Event()
        queued = submit(work, stop) if submit else None
        thread = asyncio.wrap_future(queued) if queued else asyncio.ensure_future(asyncio.to_thread(work, stop))
        cancelled: asyncio.CancelledError | None = None
        while not thread.done():
            try:
                await asyncio.wait({thread}, timeout=BEAT_S)
            except asyncio.CancelledError as error:
                cancelled = error
                stop.set()
                if queued:
                    queued.cancel()
            self.beat()
        failed = thread.cancelled() or thread.exception() is not None
        if cancelled is not None and (failed or more_follows):
            raise cancelled
        return thread.result()


def raise_if_stopped(stop: threading.Event) -> None:
    """Ends a thread whose result is not wanted any more.

    Raises:
        CancelledError: The event is set.
    """
    if stop.is_set():
        raise CancelledError


@asynccontextmanager
async def background_task(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Runs endless work until the block ends."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
