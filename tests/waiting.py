"""How tests wait: for a condition, never for a time. The deadline is for a hang, however busy the machine."""

import asyncio
import time
from collections.abc import Awaitable, Callable

DEADLINE_S = 240
PAUSE_S = 0.02


def until(condition: Callable[[], object]) -> None:
    """Waits until the condition holds."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"the condition does not hold after {DEADLINE_S} s"
        time.sleep(PAUSE_S)


async def until_async(condition: Callable[[], object]) -> None:
    """Waits until the condition holds while the event loop runs; the condition may be a coroutine function."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            met = condition()
            if await met if isinstance(met, Awaitable) else met:
                return
            await asyncio.sleep(PAUSE_S)
