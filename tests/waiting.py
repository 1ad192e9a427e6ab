"""How tests wait: for a condition, never for a time. The deadline is for a hang, however busy the machine."""

import asyncio
import time
from collections.abc import Awaitable, Callable

DEADLINE_S = 240
PAUSE_S = 0.02
ASK_S = 0.2
"""Between two questions to a server: whoever asks all the time makes it slow."""


def until(condition: Callable[[], object], pause_s: float = PAUSE_S) -> None:
    """Waits until the condition holds."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"the condition does not hold after {DEADLINE_S} s"
        time.sleep(pause_s)


async def until_async(condition: Callable[[], object]) -> None:
    """Waits until the condition holds while the event loop runs; a condition that asks a server is a coroutine function."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            met, pause_s = condition(), PAUSE_S
            if isinstance(met, Awaitable):
                met, pause_s = await met, ASK_S
            if met:
                return
            await asyncio.sleep(pause_s)
