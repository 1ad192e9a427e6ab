"""Runs a coroutine at once, without a task, for as long as it does not wait.

asyncio does the same from Python 3.12 on: https://docs.python.org/3/library/asyncio-task.html#asyncio.eager_task_factory
"""

import asyncio
from collections.abc import Coroutine, Generator
from functools import partial
from typing import Any


def run_now(coroutine: Coroutine[Any, None, None]) -> asyncio.Task[None] | None:
    """Runs a coroutine until it ends or waits.

    Args:
        coroutine: It must not ask for its task before it first waits, as ``asyncio.timeout`` does.

    Returns:
        The task that runs the rest; None if the coroutine has ended.
    """
    try:
        awaited = coroutine.send(None)
    except StopIteration:
        return None
    return asyncio.create_task(_finish(coroutine, awaited))


async def _finish(coroutine: Coroutine[Any, None, None], awaited: Any) -> None:
    await _Begun(coroutine, awaited)


class _Begun:
    def __init__(self, coroutine: Coroutine[Any, None, None], awaited: Any) -> None:
        self._coroutine = coroutine
        self._awaited = awaited

    def __await__(self) -> Generator[Any, Any, None]:
        awaited = self._awaited
        while True:
            try:
                result = yield awaited
            except BaseException as error:  # noqa: BLE001 - the coroutine decides, as with ``await``
                step = partial(self._coroutine.throw, error)
            else:
                step = partial(self._coroutine.send, result)
            try:
                awaited = step()
            except StopIteration:
                return
