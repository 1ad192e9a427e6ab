"""The slots of the worker that renders pages."""

import asyncio
from contextlib import suppress

from temporalio.worker import (
    CustomSlotSupplier,
    FixedSizeSlotSupplier,
    SlotMarkUsedContext,
    SlotPermit,
    SlotReleaseContext,
    SlotReserveContext,
    WorkerTuner,
)

UNUSED_SLOTS = 2
"""Of the kinds of tasks that this worker does not have. temporalio wants a number all the same."""


class RenderSlots(CustomSlotSupplier):
    """As many activities at once as pages are rendered at once. An activity that has rendered its page and goes on does not count.

    It belongs to the event loop in which it is made. https://python.temporal.io/temporalio.worker.CustomSlotSupplier.html

    Args:
        slots: Pages rendered at once.
    """

    def __init__(self, slots: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._free = asyncio.Semaphore(slots)
        self._freed_early = 0

    @property
    def tuner(self) -> WorkerTuner:
        """The argument of a worker that has these slots for its activities."""
        unused = FixedSizeSlotSupplier(UNUSED_SLOTS)
        return WorkerTuner.create_composite(
            workflow_supplier=unused, activity_supplier=self, local_activity_supplier=unused, nexus_supplier=unused
        )

    def free_early(self) -> None:
        """Gives the slot of an activity to another one before the activity ends. Called once by the activity, in the event loop."""
        self._freed_early += 1
        self._free.release()

    async def reserve_slot(self, ctx: SlotReserveContext) -> SlotPermit:
        """Waits for a free slot."""
        await self._free.acquire()
        return SlotPermit()

    def try_reserve_slot(self, ctx: SlotReserveContext) -> SlotPermit | None:
        """Never gives a slot at once: Temporal asks only for activities on the queue of their own workflow."""
        return None

    def mark_slot_used(self, ctx: SlotMarkUsedContext) -> None:
        """Does nothing: a reserved slot counts as used."""

    def release_slot(self, ctx: SlotReleaseContext) -> None:
        """Frees the slot of an activity that has ended, or of a poll without a task. temporalio calls this in threads of its own."""
        with suppress(RuntimeError):  # the event loop has ended
            self._loop.call_soon_threadsafe(self._release)

    def _release(self) -> None:
        if self._freed_early:
            self._freed_early -= 1
        else:
            self._free.release()
