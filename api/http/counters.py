"""Counts requests in the memory of this process.

The library's own ``MemoryStorage`` looks at every counter for each request: 6 ms with the counters of 65,536 addresses, as one IPv6 network
of the usual size (/48) has them. https://github.com/alisaifee/limits/blob/5.8.0/limits/aio/storage/memory.py
"""

import time
from collections import OrderedDict
from collections.abc import Callable

from limits.aio.storage import Storage

MAX_COUNTERS = 1 << 18
"""The oldest counters are forgotten for newer ones. Each takes some 300 bytes."""
CHECKED_AT_ONCE = 2
"""How many old counters each request looks at: it adds one at most, so the old ones go faster than new ones come."""


class MemoryCounters(Storage):
    """Counters that cost a request the same, however many there are.

    Args:
        now: Tells the time in seconds since 1970.
        most: How many counters are kept.
    """

    STORAGE_SCHEME = None
    base_exceptions = ()

    def __init__(self, *, now: Callable[[], float] = time.time, most: int = MAX_COUNTERS) -> None:
        super().__init__()
        self._now, self._most = now, most
        self._counters: OrderedDict[str, tuple[float, int]] = OrderedDict()
        """When each counter ends, and its count."""

    def __len__(self) -> int:
        return len(self._counters)

    async def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Adds to a counter; begins it anew for ``expiry`` seconds, if its time is over."""
        self._forget_old()
        ends_at, count = self._counters.get(key, (0.0, 0))
        now = self._now()
        if ends_at <= now:
            ends_at, count = now + expiry, 0
        self._counters[key] = ends_at, count + amount
        return count + amount

    def _forget_old(self) -> None:
        now = self._now()
        for _ in range(min(CHECKED_AT_ONCE, len(self._counters))):
            oldest = next(iter(self._counters))
            if self._counters[oldest][0] <= now or len(self._counters) >= self._most:
                del self._counters[oldest]
            else:
                self._counters.move_to_end(oldest)

    async def get(self, key: str) -> int:
        """The count of a counter; 0 if its time is over."""
        ends_at, count = self._counters.get(key, (0.0, 0))
        return count if ends_at > self._now() else 0

    async def get_expiry(self, key: str) -> float:
        """When the time of a counter is over."""
        return self._counters.get(key, (self._now(), 0))[0]

    async def check(self) -> bool:
        """Whether the counters can be used."""
        return True

    async def reset(self) -> int | None:
        """Forgets all counters; returns how many there were."""
        count = len(self._counters)
        self._counters.clear()
        return count

    async def clear(self, key: str) -> None:
        """Forgets a counter."""
        self._counters.pop(key, None)
