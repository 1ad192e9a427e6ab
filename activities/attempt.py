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

from activities.errors import RenderFault, SiteLinkError, SourceAltered, StorageUnavailable, to_application_error

T = TypeVar("T")

BEAT_S = 1.0
"""How often a waiting activity beats; Temporal's client throttles what it sends."""


class Attempt:
    """The attempt that runs now.

    The heartbeat's details are two counts of earlier attempts: fresh render children that failed, and reads that gave another PDF.
    """

    def __init__(self) -> None:
        counts = [count for count in activity.info().heartbeat_details if isinstance(count, int)]
        self._faults, self._altered = [*counts, 0, 0][:2]

    def beat(self) -> None:
        """Tells Temporal that the attempt is alive."""
        activity.heartbeat(self._faults, self._altered)

    @contextmanager
    def named_errors(self) -> Iterator[None]:
        """Turns named errors into the form in which they leave an activity.

        A render fault, or another PDF than was accepted, is final after its fresh tries; a full disk is waited out.
        """
        try:
            yield
        except RenderFault as fault:
            self._faults += fault.fresh_child
            self.beat()
            raise to_application_error(fault, final=self._faults >= fault.tries) from fault
        except SourceAltered as error:
            self._altered += 1
            self.beat()
            raise to_application_error(error, final=self._altered >= error.tries, again_in=error.again_in) from error
        except SiteLinkError as error:
            raise to_application_error(error) from error
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

        Cancelling the caller, once or several times, sets the event, which ``work`` looks at often, and waits for the thread: what it
        managed to finish counts. If the attempt stopped beating, Temporal would take it for dead, others would clean up, and its late write
        would undo that. Work that has not begun is dropped.

        Args:
            work: Blocks.
            more_follows: It is only a step of the activity: a cancelled caller goes no further, even if this step was finished.
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


def check(stop: threading.Event) -> None:
    """Ends a thread whose result nobody waits for any more.

    Raises:
        CancelledError: The event is set.
    """
    if stop.is_set():
        raise CancelledError


@asynccontextmanager
async def beside(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Does some work that has no end meanwhile."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
