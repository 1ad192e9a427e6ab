"""Threads that serve uploads in turn, so that a large upload does not hold up a small one."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from heapq import heappop, heappush
from itertools import count
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
    """Threads that take waiting calls in turn; a context manager that waits for all calls at its end.

    Args:
        threads: How many calls run at once at most.
        name: The beginning of the threads' names.
        limit: How many calls may run at once now, at least 1; default: always ``threads``.
    """

    def __init__(self, threads: int, name: str, limit: Callable[[], int] | None = None) -> None:
        self.most = threads
        self._limit = limit or (lambda: threads)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._mutex = threading.Lock()
        self._waiting = _QueueTree()
        self._order = count()
        self._waiting_calls = 0
        self._running = 0
        self._all_done = threading.Condition(self._mutex)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._all_done:
            self._all_done.wait_for(lambda: not self._running)
        self._pool.shutdown()

    def submit(self, turn: Turn, work: Callable[..., T], *args: object, rank: int = 0) -> Future[T]:
        """Runs ``work(*args)`` in a thread when its turn comes. Until then the future can be cancelled.

        Args:
            turn: Calls of the same turn run in order.
            work: A function that blocks.
            args: The arguments of ``work``.
            rank: Calls of the same turn with a lower rank go before this one.
        """
        future: Future[T] = Future()
        with self._mutex:
            # As with asyncio.to_thread, the call runs in the caller's context, so that its log lines show the upload.
            self._waiting.add(turn, (rank, next(self._order), future, partial(copy_context().run, work, *args)))
            self._waiting_calls += 1
            self._start_threads()
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

    def _start_threads(self) -> None:
        """Lets as many threads work as there is work for, and as the limit allows. Called with the mutex."""
        for _ in range(min(self._waiting_calls, min(self._limit(), self.most) - self._running)):
            self._running += 1
            self._pool.submit(self._run_calls)

    def _run_calls(self) -> None:
        """Runs waiting calls. Ends when no call waits, or when more threads run than the limit allows."""
        while True:
            with self._mutex:
                if not self._waiting_calls or self._running > self._limit():
                    self._running -= 1
                    self._all_done.notify_all()
                    return
                self._waiting_calls -= 1
                _, _, future, work = self._waiting.take()
                self._start_threads()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
                future.set_exception(error)
            else:
                future.set_result(result)


_Call = tuple[int, int, Future[Any], Callable[[], Any]]
"""The rank, the number of the call, which no other has, the future and the work."""


class _QueueTree:
    """A tree of queues: the children of each node take turns, however many items each of them has. The items of a node go by rank."""

    def __init__(self) -> None:
        self._items: list[_Call] = []
        self._children: dict[str, _QueueTree] = {}

    def __bool__(self) -> bool:
        return bool(self._items or self._children)

    def add(self, turn: Turn, item: _Call) -> None:
        if turn:
            self._children.setdefault(turn[0], _QueueTree()).add(turn[1:], item)
        else:
            heappush(self._items, item)

    def take(self) -> _Call:
        if self._items:
            return heappop(self._items)
        name = next(iter(self._children))
        child = self._children.pop(name)
        item = child.take()
        if child:
            self._children[name] = child  # at the end: its siblings are next
        return item
