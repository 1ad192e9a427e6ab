"""One attempt of an activity: it sends heartbeats while a thread works, and turns named errors into Temporal's."""

import asyncio
import errno
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TypeVar

from temporalio import activity
from temporalio.api.common.v1 import Payload
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError

from activities.errors import SiteLinkError, StorageUnavailable
from activities.interface import IN_CLEAR

T = TypeVar("T")

BEAT_S = 1.0
"""A waiting activity sends a heartbeat this often. Temporal's client throttles the heartbeats."""


def to_application_error(error: SiteLinkError, *, final: bool | None = None) -> ApplicationError:
    """Makes the error that Temporal gets for a named error.

    Args:
        error: The named error.
        final: Overrides ``error.final``: some faults become final only after several tries.
    """
    non_retryable = error.final if final is None else final
    return ApplicationError(str(error), type=error.type, non_retryable=non_retryable, next_retry_delay=error.retry_delay)


class Attempt:
    """The attempt that this activity task is."""

    step = ""
    """A few words for operators: the work that the attempt does, or waits for. They contain nothing of the document."""

    def beat(self) -> None:
        """Tells Temporal that the attempt is alive, and at which step."""
        activity.heartbeat(*self.counts, *([_in_clear(self.step)] if self.step else []))

    @property
    def counts(self) -> Sequence[int]:
        """Numbers that each heartbeat carries to the next attempt."""
        return ()

    def gives_up(self, error: SiteLinkError) -> bool:
        """Whether the activity is not tried again after this attempt, which ends with ``error``."""
        return error.final

    @contextmanager
    def named_errors(self) -> Iterator[None]:
        """Turns a named error into Temporal's. A full disk becomes ``StorageUnavailable``, so that the activity is retried."""
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
        """Runs ``work`` in a thread, and sends heartbeats until the thread ends.

        When the caller is cancelled, the event is set, and ``work`` ends at its next look at the event. Until then the caller goes on to
        wait and to send heartbeats. Without heartbeats Temporal would take the attempt for dead, the next attempt would clean up, and a
        late write of this thread would undo the cleaning. If ``work`` returns all the same, its result counts. Work that has not begun is
        dropped.

        Args:
            work: A function that blocks. It gets the event, and looks at it often.
            more_follows: Whether the activity goes on after ``work``. If so, a cancelled caller is ended even if ``work`` returns.
            submit: Hands ``work`` and the event to a thread; default: one of asyncio's threads.

        Raises:
            CancelledError: The caller was cancelled, and ``work`` failed, was dropped, or is not the end of the activity.
        """
        stop = threading.Event()
        queued = submit(work, stop) if submit else None
        thread = asyncio.wrap_future(queued) if queued else asyncio.ensure_future(asyncio.to_thread(_unless_stopped, work, stop))
        cancelled: asyncio.CancelledError | None = None
        while not thread.done():
            try:
                await asyncio.wait({thread}, timeout=BEAT_S)
            except asyncio.CancelledError as error:
                cancelled = error
                stop.set()
                if queued:
                    queued.cancel()
            if not thread.done():  # short work needs no heartbeat, which would take Temporal as much CPU as a step of the run
                self.beat()
        failed = thread.cancelled() or thread.exception() is not None
        if cancelled is not None and (failed or more_follows):
            raise cancelled
        return thread.result()


def _in_clear(text: str) -> RawValue:
    """A text that is never encrypted. Temporal's library ends an activity for good if a worker cannot decrypt its heartbeat."""
    return RawValue(Payload(metadata={"encoding": b"json/plain", IN_CLEAR: b"1"}, data=json.dumps(text).encode()))


def raise_if_stopped(stop: threading.Event) -> None:
    """Ends the work of a thread whose caller was cancelled.

    Raises:
        CancelledError: ``stop`` is set.
    """
    if stop.is_set():
        raise CancelledError


def _unless_stopped(work: Callable[[threading.Event], T], stop: threading.Event) -> T:
    raise_if_stopped(stop)
    return work(stop)


@asynccontextmanager
async def background_task(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Runs ``work``, which never ends by itself, until the block ends."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
