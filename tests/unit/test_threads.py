"""Threads that serve their callers in turn."""

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import pytest

from activities.bucket.keys import UploadRef
from activities.threads import FairThreads, turn_of

FIRST, SECOND = (UploadRef("acme", "tower", "a1", upload) for upload in ("u1", "u2"))
OTHER = UploadRef("other", "tower", "a1", "u3")


@contextmanager
def one_busy_thread() -> Iterator[FairThreads]:
    """One thread that is busy until the block ends. The call that keeps it busy waits in no queue, so each turn begins anew."""
    busy, closed = threading.Event(), threading.Event()

    def keep_busy() -> None:
        busy.set()
        closed.wait(60)

    with FairThreads(1, "test") as threads:
        threads.submit(turn_of(FIRST), keep_busy)
        assert busy.wait(60)
        yield threads
        closed.set()


def test_small_jobs_do_not_wait_for_large_ones() -> None:
    """Organizations take turns, then the uploads of one organization, then the sheets of one upload; one sheet's work keeps its order."""
    done: list[str] = []
    futures: list[Future[Any]] = []
    with one_busy_thread() as threads:
        for ref, sheet, chunks in ((FIRST, "1", 6), (FIRST, "2", 2), (SECOND, "1", 2), (OTHER, "1", 3)):
            futures += [threads.submit(turn_of(ref, sheet), done.append, f"{ref.upload} {sheet} {chunk}") for chunk in range(chunks)]
    wait(futures, 30)
    assert done == [
        *("u1 1 0", "u3 1 0", "u2 1 0", "u3 1 1", "u1 2 0", "u3 1 2"),
        *("u2 1 1", "u1 1 1", "u1 2 1", "u1 1 2", "u1 1 3", "u1 1 4", "u1 1 5"),
    ]


def test_calls_of_one_turn_go_by_rank() -> None:
    """A call of a lower rank goes before all that wait, calls of one rank in their order."""
    done: list[str] = []
    futures: list[Future[Any]] = []
    with one_busy_thread() as threads:
        for rank, chunk in ((2, 0), (2, 1), (1, 0), (1, 1), (3, 0), (2, 2)):
            futures.append(threads.submit(turn_of(FIRST, "tiles"), done.append, f"{rank} {chunk}", rank=rank))
    wait(futures, 30)
    assert done == ["1 0", "1 1", "2 0", "2 1", "2 2", "3 0"]


def test_results_and_errors_come_back() -> None:
    """``map`` gives results in order; after an error the calls that have not begun are dropped."""
    did = []
    dropped = threading.Event()

    def work(number: int) -> int:
        did.append(number)
        if number == 2:
            msg = "two"
            raise ValueError(msg)
        if number > 2:
            dropped.wait(60)
        return 10 * number

    with FairThreads(1, "test") as threads:
        assert list(threads.map(("a",), work, (0, 1))) == [0, 10]
        gate = threading.Event()
        after = [threads.submit(("b",), gate.wait, 30)]
        results = threads.map(("a",), work, range(2, 1000))
        gate.set()
        with pytest.raises(ValueError, match="two"):
            next(results)
        dropped.set()
        assert threads.submit(("a",), str, 1).result(30) == "1"
        assert after[0].result(30)
    assert did in ([0, 1, 2], [0, 1, 2, 3])  # one more may have begun before the error was seen


def test_work_is_done_in_the_context_of_its_caller() -> None:
    """So that its log lines show the upload."""
    name: ContextVar[str] = ContextVar("name", default="")
    with FairThreads(1, "test") as threads:
        results = []
        for value in ("a", "b"):
            name.set(value)
            results.append(threads.submit((value,), name.get))
        assert [result.result(60) for result in results] == ["a", "b"]


def test_work_that_was_dropped_is_not_done() -> None:
    """It does not run, and its place in the queue does not hold up other work."""
    gate = threading.Event()
    with FairThreads(1, "test") as threads:
        threads.submit(("a",), gate.wait, 30)
        dropped, kept = (threads.submit(("b",), str, number) for number in range(2))
        assert dropped.cancel()
        gate.set()
        assert kept.result(30) == "1"
        with pytest.raises(CancelledError):
            dropped.result()
