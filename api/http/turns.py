"""Takes turns: work that needs memory or threads waits until there is room for it, and is refused when too much waits already."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from activities.errors import ServerBusy, TooManyRequests

PATIENCE_S = 30.0
"""How long a request waits for its turn."""


@dataclass(eq=False)
class _Waiter:
    size: int
    key: str
    turn: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Turns:
    """Divides a number of places, or of bytes, between requests, in the order in which they came.

    No organization gets all: one that has its share waits, and others pass it.

    Args:
        room: How much all requests together may take.
        share: How much the requests of one organization may take together; one request may always take its own size.
        line: How many requests may wait. Of one organization at most half of them.
        patience_s: How long a request waits, in seconds.
        what: What the room is for, in words for a person.
    """

    def __init__(self, room: int, *, share: int, line: int, what: str, patience_s: float = PATIENCE_S) -> None:
        self._room = room
        self._share = share
        self._line = line
        self._patience_s = patience_s
        self._what = what
        self._taken: Counter[str] = Counter()
        self._waiters: dict[_Waiter, None] = {}

    @asynccontextmanager
    async def turn(self, key: str, size: int = 1) -> AsyncIterator[None]:
        """Waits for room, and holds it for the block.

        Args:
            key: The organization, or whatever else has a share.
            size: How much of the room the block needs; more than the whole room counts as the whole room.

        Raises:
            ServerBusy: Too many requests wait, or none gave way in time.
            TooManyRequests: The same, because of other requests of the organization.
        """
        size = min(size, self._room)
        await self._wait(key, size)
        with self._given_back(key, size):
            yield

    async def _wait(self, key: str, size: int) -> None:
        of_key = sum(waiter.key == key for waiter in self._waiters)
        waiter = _Waiter(size, key)
        self._waiters[waiter] = None
        self._give_turns()
        if not waiter.turn.done() and (len(self._waiters) > self._line or of_key >= max(1, self._line // 2)):
            del self._waiters[waiter]
            raise self._refusal(key, size)
        try:
            async with asyncio.timeout(self._patience_s):
                await waiter.turn
        except BaseException as error:
            if waiter in self._waiters:
                del self._waiters[waiter]
            else:  # it got its turn in the same moment
                self._give_back(key, size)
            self._give_turns()
            if isinstance(error, TimeoutError):
                raise self._refusal(key, size) from None
            raise

    def _refusal(self, key: str, size: int) -> ServerBusy | TooManyRequests:
        if self._exceeds_share(key, size):
            return TooManyRequests(f"{self._what}: the organization {key} has its share of this server already, try again later")
        return ServerBusy(f"{self._what}: this server has as many as it may, try again later")

    def _exceeds_share(self, key: str, size: int) -> bool:
        return self._taken[key] > 0 and self._taken[key] + size > self._share

    def _give_turns(self) -> None:
        for waiter in list(self._waiters):
            if self._exceeds_share(waiter.key, waiter.size):
                continue
            if self._taken.total() + waiter.size > self._room:
                return  # those behind it must not pass, or a large one would wait for ever
            del self._waiters[waiter]
            self._taken[waiter.key] += waiter.size
            if not waiter.turn.cancelled():  # else ``_wait`` is about to give it back
                waiter.turn.set_result(None)

    @contextmanager
    def _given_back(self, key: str, size: int) -> Iterator[None]:
        try:
            yield
        finally:
            self._give_back(key, size)
            self._give_turns()

    def _give_back(self, key: str, size: int) -> None:
        self._taken[key] -= size
        if not self._taken[key]:
            del self._taken[key]
