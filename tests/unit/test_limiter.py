"""The number of requests in flight finds itself. Each bucket is a model: how long a request takes, by how many are in flight."""

import heapq
import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from activities.bucket.limiter import AGE_S, LEAST, Limiter

MOST = 256


class Model:
    """A bucket, and a client that always has as many requests in flight as the limiter allows.

    Args:
        takes_s: The seconds of a request, by the seconds since the beginning and the requests in flight when it begins.
        refuses: Whether the request of this number, which ends at this time, is refused.
    """

    def __init__(self, takes_s: Callable[[float, int], float], refuses: Callable[[int, float], bool] = lambda number, now: False) -> None:
        self.now = 0.0
        self.limiter = Limiter(MOST, clock=lambda: self.now)
        self.limits: list[int] = []
        self.answered = 0
        self._takes_s = takes_s
        self._refuses = refuses
        self._numbers = itertools.count(1)

    def run(self, seconds: float) -> int:
        """Runs for so long; returns the limit at the end."""
        ends: list[tuple[float, int]] = []
        requests = {}
        until = self.now + seconds
        while self.now < until:
            while len(ends) < self.limiter.limit:
                number = next(self._numbers)
                requests[number] = self.limiter.request()
                requests[number].__enter__()
                heapq.heappush(ends, (self.now + self._takes_s(self.now, len(ends) + 1), number))
            self.now, number = heapq.heappop(ends)
            self._end(requests.pop(number), number)
            self.limits.append(self.limiter.limit)
        for number, request in requests.items():
            self._end(request, number)
        return self.limiter.limit

    def _end(self, request: AbstractContextManager[None], number: int) -> None:
        if self._refuses(number, self.now):
            request.__exit__(ConnectionError, ConnectionError(), None)
            self.limiter.refused()
        else:
            request.__exit__(None, None, None)
            self.answered += 1


@pytest.mark.parametrize("delay_s", [0.02, 0.05, 0.1, 0.3])
def test_far_bucket_gets_all(delay_s: float) -> None:
    """While a request takes as long as ever, more and more are in flight: after 20 times the delay, as many as may be."""
    assert Model(lambda now, in_flight: delay_s).run(20 * delay_s) == MOST


def test_near_server_keeps_few() -> None:
    """A server that does one request after the other is no faster with more in flight."""
    model = Model(lambda now, in_flight: 0.002 * in_flight)
    model.run(60)
    assert max(model.limits) <= 2 * LEAST


def test_full_line_is_found() -> None:
    """Beyond 50 requests in flight a request only takes longer: the limit stays near there, and no throughput is lost."""
    model = Model(lambda now, in_flight: 0.05 * max(1, in_flight / 50))
    model.run(4 * AGE_S)  # the best time is measured again meanwhile
    assert 50 <= model.limiter.limit <= 150
    assert model.answered >= 0.9 * 4 * AGE_S * 50 / 0.05


def test_accidents_cost_nothing() -> None:
    """One refused request in a hundred does not change the number in flight."""
    assert Model(lambda now, in_flight: 0.05, lambda number, now: number % 100 == 0).run(10) == MOST


def test_part_of_the_requests_refused() -> None:
    """One in ten is more than accidents: the first number in flight is kept, but no more."""
    assert Model(lambda now, in_flight: 0.05, lambda number, now: number % 10 == 0).run(10) == LEAST


def test_bucket_that_asks_for_less_gets_less() -> None:
    """When all requests are refused, one is tried at last; when they are taken again, there are soon as many as before."""
    model = Model(lambda now, in_flight: 0.05, lambda number, now: 10 <= now < 30)
    model.run(10)
    assert model.run(20) == 1
    assert model.run(10) == MOST


def test_way_that_became_longer_is_measured_again() -> None:
    """A bucket that is suddenly further away is taken for a full one at first, but not for long."""
    model = Model(lambda now, in_flight: 0.02 if now < 10 else 0.2)
    assert model.run(10) == MOST
    assert model.run(20) == LEAST
    assert model.run(AGE_S) == MOST


def test_idle_client_gets_no_more() -> None:
    """That few requests take no longer says nothing about many."""
    limiter = Limiter(MOST)
    for _ in range(1000):
        with limiter.request():
            pass
    assert limiter.limit == LEAST


def test_rate_is_measured() -> None:
    """Only when as many requests were in flight as may be: a client that sends few of them has not seen what the bucket can do."""
    assert Model(lambda now, in_flight: 0.05).limiter.rate is None
    far = Model(lambda now, in_flight: 0.05)
    far.run(10)
    assert far.limiter.rate == pytest.approx(MOST / 0.05, rel=0.01)
    near = Model(lambda now, in_flight: 0.002 * in_flight)
    near.run(10)
    assert near.limiter.rate == pytest.approx(500, rel=0.2)


def test_refusals_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """Now and then, not for each request."""
    model = Model(lambda now, in_flight: 0.05, lambda number, now: True)
    model.run(25)
    assert [(record.getMessage(), vars(record)["refused"]) for record in caplog.records] == [("the bucket refuses requests", "100%")] * 3


def test_setting_is_kept() -> None:
    """Never are more in flight than the setting says, also when it is less than usual at the beginning."""
    limiter = Limiter(3)
    for _ in range(100):
        with limiter.request(), limiter.request(), limiter.request():
            pass
    assert limiter.limit == 3
