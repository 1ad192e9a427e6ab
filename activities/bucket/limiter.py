"""How many requests to a bucket are in flight. The number finds itself, because nobody can know it: a bucket may be near or far.

By Little's law, requests in flight = requests a second x seconds of a request. So while a request takes no longer than it did with few of
them in flight, more of them are more throughput. Once it takes longer, something is full: a line, a server, or the CPU of this machine.
TCP Vegas finds its window in the same way: https://doi.org/10.1109/49.464716.
"""

import logging
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

LEAST = 16
"""In flight at the beginning, and as long as nothing is refused. Fewer are no cheaper, even at a server on the same machine."""
GROWTH, SHRINKAGE, BACK_OFF = 1.5, 0.8, 0.5
IN_USE = 0.8
"""More requests are let in only if this share of the limit was in flight."""
GROWS_BELOW, SHRINKS_ABOVE = 1.5, 2.5
"""More requests are let in while one takes at most the first number times the best time, fewer when it takes more than the second."""
JITTER_S = 0.005
"""So much longer does a request take on a busy machine, however few are in flight."""
SELDOM_REFUSED, MOSTLY_REFUSED = 0.05, 0.5
"""Up to the first share of refused requests, they are accidents, which need no fewer requests. Above the second, even few are too many."""
AGE_S = 60.0
"""So old may the best time be; then it is measured again with few requests in flight, because the way to the bucket may have changed."""

TELL_EACH_S = 10.0
"""While the bucket refuses requests, the log says so this often."""


class Limiter:
    """The number of requests in flight to one bucket, for all threads of a process.

    Args:
        most: The number is never larger.
        clock: Seconds.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._mutex = threading.Lock()
        self._limit: float = min(LEAST, most)
        self._remembered: float = self._limit
        self._best_s = 0.0
        self._best_at = -AGE_S
        self._in_flight = 0
        self._most_in_flight = 0
        self._taken: list[float] = []
        self._refused = 0
        self._rate: float | None = None
        self._told_at = -TELL_EACH_S

    @property
    def rate(self) -> float | None:
        """Requests a second when as many were in flight as may be; None if there have never been so many."""
        return self._rate

    @property
    def limit(self) -> int:
        """How many requests may be in flight now; at least 1."""
        return int(self._limit)

    @property
    def in_flight(self) -> int:
        """How many requests are in flight now."""
        return self._in_flight

    @contextmanager
    def request(self) -> Iterator[None]:
        """Goes around one try of a request; an error that it raises says nothing about the bucket, unless ``refused`` is called."""
        with self._mutex:
            self._in_flight += 1
            self._most_in_flight = max(self._most_in_flight, self._in_flight)
        begun = self._clock()
        try:
            yield
        finally:
            with self._mutex:
                self._in_flight -= 1
        ended = self._clock()
        with self._mutex:
            self._taken.append(ended - begun)
            self._look(ended)

    def refused(self) -> None:
        """The bucket asked for fewer requests, or did not answer."""
        with self._mutex:
            self._refused += 1
            self._look(self._clock())

    def _look(self, now: float) -> None:
        """Once as many requests have ended as may be in flight, decides how many may be from now on."""
        number = len(self._taken) + self._refused
        if number < max(LEAST, self._limit):
            return
        share = self._refused / number
        median_s = statistics.median(self._taken) if self._taken else 0.0
        most_in_flight, is_old = self._most_in_flight, now - self._best_at >= AGE_S
        self._taken, self._refused, self._most_in_flight = [], 0, self._in_flight
        is_used = most_in_flight >= IN_USE * int(self._limit)
        if is_used and median_s:
            self._rate = (1 - share) * int(self._limit) / median_s
        if share > SELDOM_REFUSED and now - self._told_at >= TELL_EACH_S:
            self._told_at = now
            logger.warning("the bucket refuses requests", extra={"refused": f"{share:.0%}", "in_flight": self.limit})
        if share > MOSTLY_REFUSED:
            self._limit = max(1.0, self._limit * BACK_OFF)
        elif share > SELDOM_REFUSED:
            self._limit = max(min(self._limit, LEAST), self._limit * (1 - share))
        elif is_old and self._limit > LEAST:
            self._remembered, self._limit = self._limit, LEAST
        elif is_old:
            if most_in_flight <= LEAST:  # the requests from before have ended
                self._best_s, self._best_at = median_s, now
                self._limit = max(self._limit, self._remembered)
        elif is_used and median_s <= GROWS_BELOW * self._best_s + JITTER_S:
            self._limit = min(self._most, self._limit * GROWTH + 1)
        elif median_s > SHRINKS_ABOVE * self._best_s + 2 * JITTER_S:
            self._limit = max(min(self._limit, LEAST), self._limit * SHRINKAGE)
        if median_s:
            self._best_s = min(self._best_s, median_s)
