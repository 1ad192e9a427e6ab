"""What of the workflow can be shown without Temporal."""

import asyncio
from typing import Any

import pytest

from workflows.upload import _result_of


async def test_cancel_that_comes_with_a_result_does_not_hide_it() -> None:
    """A sheet that was committed before the workflow heard of the cancel counts, even when it hears of both at once."""
    activity: Any = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(_result_of(activity))
    await asyncio.sleep(0)
    activity.set_result("committed")
    waiting.cancel()
    assert await waiting == "committed"


async def test_cancel_of_an_activity_under_way_reaches_it() -> None:
    """While there is no result, a cancellation is passed on."""
    activity: Any = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(_result_of(activity))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert activity.cancelled()
