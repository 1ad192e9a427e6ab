"""How events come to clients: at once, in one pass, and to a slow client when it can take them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from starlette.types import Message

from api.http.eager import run_now
from api.progress.delivery import PIECE_BYTES, Audience, EventStream, Heart
from tests.waiting import until_async


async def test_coroutine_that_does_not_wait_runs_without_a_task() -> None:
    """Its effects are there when the call returns."""
    done = []

    async def act() -> None:
        done.append(1)

    assert run_now(act()) is None
    assert done == [1]


async def test_coroutine_that_waits_goes_on_in_a_task() -> None:
    """It gets what it waits for, also errors and its cancellation, as with ``await``."""
    steps: list[object] = []
    gates: list[asyncio.Future[str]] = [asyncio.get_running_loop().create_future() for _ in range(3)]

    async def act() -> None:
        steps.append(await gates[0])
        try:
            await gates[1]
        except ValueError as error:
            steps.append(str(error))
        try:
            await gates[2]
        except asyncio.CancelledError:
            steps.append("cancelled")
            raise

    task = run_now(act())
    assert task is not None
    gates[0].set_result("first")
    gates[1].set_exception(ValueError("second"))
    await until_async(lambda: len(steps) == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["first", "second", "cancelled"]


async def test_error_before_the_first_wait_is_raised_at_once() -> None:
    """The caller gets it."""

    async def fail() -> None:
        msg = "at once"
        raise ValueError(msg)

    with pytest.raises(ValueError, match="at once"):
        run_now(fail())


class Numbers:
    """A source whose state is a number: a client gets the newest."""

    is_over = False

    def __init__(self, state: list[int]) -> None:
        self._state = state
        self._sent = 0

    def take(self) -> bytes | None:
        """The newest number, once."""
        if self._sent == self._state[0]:
            return None
        self._sent = self._state[0]
        return b"data: %d\n\n" % self._sent


class Client:
    """A client that can stop taking bytes."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.takes = asyncio.Event()
        self.takes.set()
        self.has_gone = asyncio.Event()
        self.released = 0

    async def send(self, message: Message) -> None:
        """Takes a piece, when it can."""
        if message["type"] == "http.response.body":
            await self._until_it_takes()
            self.bodies.append(message["body"])
            if not message.get("more_body", False):
                self.has_gone.set()

    async def _until_it_takes(self) -> None:
        if not self.takes.is_set():
            await self.takes.wait()

    async def receive(self) -> Message:
        """Says when the client has gone."""
        await self.has_gone.wait()
        return {"type": "http.disconnect"}

    def release(self) -> None:
        """Counts."""
        self.released += 1


@asynccontextmanager
async def served(
    state: list[int], audience: Audience, heart: Heart, make: Callable[[list[int]], Numbers] = Numbers
) -> AsyncIterator[Client]:
    """A stream to a client."""
    client = Client()
    stream = EventStream(make(state), audience, heart, client.release)
    task = asyncio.create_task(stream({"type": "http", "method": "GET"}, client.receive, client.send))
    await until_async(lambda: client.bodies != [])
    yield client
    client.has_gone.set()
    await task
    assert client.released == 1


async def test_slow_client_gets_the_newest_state_and_delays_nobody() -> None:
    """What comes while a client takes nothing comes to it as one event."""
    state, audience, heart = [1], Audience(), Heart()
    async with served(state, audience, heart) as slow, served(state, audience, heart) as quick:
        slow.takes.clear()
        for number in range(2, 6):
            state[0] = number
            audience.notify()
            await until_async(lambda number=number: quick.bodies[-1] == b"data: %d\n\n" % number)  # type: ignore[misc]
        slow.takes.set()
        await until_async(lambda: slow.bodies[-1] == b"data: 5\n\n")
    assert slow.bodies == [b"retry: 1000\ndata: 1\n\n", b"data: 2\n\n", b"data: 5\n\n"]
    await heart.close()


async def test_large_event_is_sent_in_pieces() -> None:
    """So that a client that does not read holds one of them, and not the whole."""

    class Large(Numbers):
        def take(self) -> bytes | None:
            event = super().take()
            return event and b"data: " + b"x" * (3 * PIECE_BYTES) + b"\n\n"

    heart = Heart()
    async with served([1], Audience(), heart, Large) as client:
        await until_async(lambda: client.bodies[-1].endswith(b"\n\n"))
        assert max(map(len, client.bodies)) == PIECE_BYTES
        assert b"".join(client.bodies) == b"retry: 1000\ndata: " + b"x" * (3 * PIECE_BYTES) + b"\n\n"
    await heart.close()


async def test_stopped_process_ends_streams_between_two_events() -> None:
    """Also a stream that is opened later; the client of each comes back to another process."""
    state, audience, heart = [1], Audience(), Heart()
    async with served(state, audience, heart) as client:
        heart.stop()
        await client.has_gone.wait()
        assert client.bodies == [b"retry: 1000\ndata: 1\n\n", b""]
    async with served(state, audience, heart) as late:
        await late.has_gone.wait()
    await heart.close()


async def test_client_without_a_state_sees_that_it_is_connected() -> None:
    """It gets ``retry`` at once, and its first event when there is one."""
    state, audience, heart = [0], Audience(), Heart()
    async with served(state, audience, heart) as client:
        assert client.bodies == [b"retry: 1000\n\n"]
        state[0] = 1
        audience.notify()
        await until_async(lambda: client.bodies[-1] == b"data: 1\n\n")
    await heart.close()
