"""Threads that serve uploads in turn, so that a large upload does not hold up a small one."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, Self, TypeVar

from activities.bucket.keys import UploadRef

S = TypeVar("S")
T = TypeVar("T")

Turn = tuple[str, ...]
"""Whose turn a call waits for: organizations take turns, then the uploads of one organization, then the parts of one upload."""


def turn_of(ref: UploadRef, part: str = "") -> Turn:
    """The turn of work for an upload, or for a part of an upload, such as a sheet."""
    return (ref.organization, str(ref), part)


class FairThreads:
    """A fixed number of threads; a context manager that waits for them at its end.

    Args:
        threads: How many calls run at once.
        name: The beginning of the threads' names.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._mutex = threading.Lock()
        self._waiting = _QueueTree()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def submit(self, turn: Turn, work: Callable[..., T], *args: object) -> Future[T]:
        """Runs ``work(*args)`` in a thread when its turn comes. Until then the future can be cancelled.

        Args:
            turn: Calls of the same turn run in order.
            work: A function that blocks.
            args: The arguments of ``work``.
        """
        future: Future[T] = Future()
        with self._mutex:
            # As with asyncio.to_thread, the call runs in the caller's context, so that its log lines show the upload.
            self._waiting.add(turn, (future, partial(copy_context().run, work, *args)))
        self._pool.submit(self._run_next)
        return future

    def map(self, turn: Turn, work: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
        """Runs ``work`` on each item; yields the results in order. When one call raises, the calls that have not begun are dropped."""
        futures = [self.submit(turn, work, item) for item in items]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()

    def _run_next(self) -> None:
        with self._mutex:
            future, work = self._waiting.take()
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            future.set_exception(error)
        else:
            future.set_result(result)


class _QueueTree:
    """A tree of queues: the children of each node take turns, however many items each of them has."""

    def __init__(self) -> None:
        self._items: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._children: dict[str, _QueueTree] = {}

    def __bool__(self) -> bool:
        return bool(self._items or self._children)

    def add(self, turn: Turn, item: tuple[Future[Any], Callable[[], Any]]) -> None:
        if turn:
            self._children.setdefault(turn[0], _QueueTree()).add(turn[1:], item)
        else:
            self._items.append(item)

    def take(self) -> tuple[Future[Any], Callable[[], Any]]:
        if self._items:
            return self._items.popleft()
        name = next(iter(self._children))
        child = self._children.pop(name)
        item = child.take()
        if child:
            self._children[name] = child  # at the end: its siblings are next
        return item
