"""Threads that serve their callers in turn: a caller with much to do does not stand before one with little."""

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


def turn_of(ref: UploadRef, part: str = "") -> Turn:
    """The key of work for an upload: organizations take turns, then the uploads of one, then the parts of one upload."""
    return (ref.organization, str(ref), part)


class FairThreads:
    """A fixed number of threads; a context manager that waits for them at its end.

    Args:
        threads: So many calls run at once.
        name: How the threads' names begin.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._mutex = threading.Lock()
        self._waiting = _QueueTree()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def submit(self, key: Turn, work: Callable[..., T], *args: object) -> Future[T]:
        """Has ``work(*args)`` done when it is the key's turn; until then the future can be cancelled.

        Args:
            key: At each of its levels those that have work waiting take turns, however much each has. One key is served in order.
            work: Blocks.
            args: Its arguments.
        """
        future: Future[T] = Future()
        with self._mutex:
            # In the caller's context, as asyncio.to_thread does it: log lines show what they are about.
            self._waiting.add(key, (future, partial(copy_context().run, work, *args)))
        self._pool.submit(self._run_next)
        return future

    def map(self, key: Turn, work: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
        """The results in order; when one raises, work that has not begun is dropped."""
        futures = [self.submit(key, work, item) for item in items]
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
    """A tree of queues; the children of each node take turns."""

    def __init__(self) -> None:
        self._items: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._children: dict[str, _QueueTree] = {}

    def __bool__(self) -> bool:
        return bool(self._items or self._children)

    def add(self, key: Turn, item: tuple[Future[Any], Callable[[], Any]]) -> None:
        if key:
            self._children.setdefault(key[0], _QueueTree()).add(key[1:], item)
        else:
            self._items.append(item)

    def take(self) -> tuple[Future[Any], Callable[[], Any]]:
        if self._items:
            return self._items.popleft()
        name = next(iter(self._children))
        child = self._children.pop(name)
        item = child.take()
        if child:
            self._children[name] = child  # behind the others
        return item
