"""Who gets a turn, who waits and who is refused."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from activities.errors import ServerBusy, TooManyRequests
from api.http.turns import Turns
from tests.waiting import until_async


def make_turns(*, room: int = 4, share: int = 3, line: int = 4, patience_s: float = 3600) -> Turns:
    """Four places, three of them for one organization."""
    return Turns(room, share=share, line=line, patience_s=patience_s, what="tests")


async def hold(turns: Turns, key: str, size: int, took: list[str], end: asyncio.Event) -> None:
    """Takes a turn, notes it, and holds it until the end."""
    async with turns.turn(key, size):
        took.append(key)
        await end.wait()


async def test_turns_come_in_order_and_a_share_is_passed() -> None:
    """An organization with its share waits, and another one passes it; a large request is not passed for ever."""
    turns, took, ends = make_turns(), list[str](), [asyncio.Event() for _ in range(6)]
    asks = [("a", 3), ("a", 1), ("b", 1), ("c", 4), ("b", 1)]
    tasks = []
    for (key, size), end in zip(asks, ends, strict=False):
        tasks.append(asyncio.create_task(hold(turns, key, size, took, end)))
        await asyncio.sleep(0)
    assert took == ["a", "b"]
    ends[0].set()
    await until_async(lambda: took == ["a", "b", "a"])  # c needs all the room, and b is behind c
    ends[1].set()
    ends[2].set()
    await until_async(lambda: took == ["a", "b", "a", "c"])
    ends[3].set()
    await until_async(lambda: took == ["a", "b", "a", "c", "b"])
    ends[4].set()
    await asyncio.gather(*tasks)


async def test_line_is_bounded() -> None:
    """Of one organization at most half of the line may wait; then the next is refused at once."""
    turns = make_turns()
    async with AsyncExitStack() as stack:
        for key in ("a", "a", "a", "b"):
            await stack.enter_async_context(turns.turn(key))
        waiting = [asyncio.create_task(hold(turns, key, 1, [], asyncio.Event())) for key in ("a", "a", "b", "b")]
        await asyncio.sleep(0)
        for key, error in (("a", TooManyRequests), ("c", ServerBusy)):
            with pytest.raises(error):
                await turns.turn(key).__aenter__()
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    async with turns.turn("c", 4):
        pass


async def test_nobody_waits_for_ever() -> None:
    """After some time a request is refused: by the organization's name if its own requests are the reason."""
    turns = make_turns(patience_s=0.05)
    async with turns.turn("a", 3):
        with pytest.raises(TooManyRequests, match="the organization a"):
            await turns.turn("a").__aenter__()
        with pytest.raises(ServerBusy):
            await turns.turn("b", 2).__aenter__()
    async with turns.turn("b", 4):
        pass


async def test_request_that_leaves_gives_its_place_back() -> None:
    """Also when it leaves in the moment in which it gets its turn."""
    turns = make_turns()
    async with turns.turn("a", 4):
        waiting = asyncio.create_task(hold(turns, "b", 4, [], asyncio.Event()))
        await asyncio.sleep(0)
        waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    turn = turns.turn("c", 4)
    await turn.__aenter__()
    waiting = asyncio.create_task(hold(turns, "b", 4, [], asyncio.Event()))
    await asyncio.sleep(0)
    await turn.__aexit__(None, None, None)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    async with turns.turn("c", 4):
        pass


async def test_request_larger_than_the_room_gets_all_of_it() -> None:
    """It is served alone."""
    async with make_turns().turn("a", 100):
        pass
