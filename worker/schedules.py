"""The Temporal Schedules that start the sweeps and the nightly reconciliation. Changes and pauses by an operator stay."""

import asyncio
import logging
from datetime import timedelta

from temporalio.api.common.v1 import Payload
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleCalendarSpec,
    ScheduleIntervalSpec,
    SchedulePolicy,
    ScheduleRange,
    ScheduleSpec,
    ScheduleState,
)
from temporalio.converter import DataConverter

from activities.interface import WORKFLOW_QUEUE, ReconcileFinished, SweepBucket
from workflows.sweep import NightlyReconcile, Sweep

logger = logging.getLogger(__name__)

CHECK_INTERVAL_S = 600
"""The schedules are checked this often: a Temporal server that loses its database loses them, too, while the worker goes on."""

RECENT_DAYS = 7

SWEEP, SWEEP_ALL, RECONCILE = "sitelink-sweep", "sitelink-sweep-all", "sitelink-reconcile"


def _schedules() -> dict[str, Schedule]:
    return {
        SWEEP: Schedule(
            ScheduleActionStartWorkflow(Sweep.run, args=_in_clear(SweepBucket(days=RECENT_DAYS)), id=SWEEP, task_queue=WORKFLOW_QUEUE),
            ScheduleSpec(intervals=[ScheduleIntervalSpec(timedelta(hours=1))]),
            SchedulePolicy(catchup_window=timedelta(hours=1)),
            ScheduleState(note=f"hourly, uploads of the last {RECENT_DAYS} days"),
        ),
        SWEEP_ALL: Schedule(
            ScheduleActionStartWorkflow(Sweep.run, args=_in_clear(SweepBucket()), id=SWEEP_ALL, task_queue=WORKFLOW_QUEUE),
            _nightly(2),
            SchedulePolicy(
                catchup_window=timedelta(days=1)
            ),  # after a night in which the machine was off, it runs when the machine is on again
            ScheduleState(note="nightly, all uploads"),
        ),
        RECONCILE: Schedule(
            ScheduleActionStartWorkflow(NightlyReconcile.run, args=_in_clear(ReconcileFinished()), id=RECONCILE, task_queue=WORKFLOW_QUEUE),
            _nightly(3),
            SchedulePolicy(catchup_window=timedelta(days=1)),
            ScheduleState(note=f"nightly, uploads that finished in the last {ReconcileFinished.days} days"),
        ),
    }


def _in_clear(args: SweepBucket | ReconcileFinished) -> list[Payload]:
    """Not encrypted: a schedule outlives the keys, and its arguments name nothing."""
    return [DataConverter.default.payload_converter.to_payload(args)]


def _nightly(hour: int) -> ScheduleSpec:
    """Every day at this hour, UTC."""
    return ScheduleSpec(calendars=[ScheduleCalendarSpec(hour=[ScheduleRange(hour)])])


async def create_schedules(client: Client) -> None:
    """Creates the schedules that do not exist. A schedule that exists is not changed.

    Raises:
        RPCError: Temporal does not answer, or refuses.
    """
    for name, schedule in _schedules().items():
        try:
            await client.create_schedule(name, schedule)
        except ScheduleAlreadyRunningError:
            continue
        logger.info("created a schedule", extra={"schedule": name})


async def keep_schedules(client: Client, every_s: float = CHECK_INTERVAL_S) -> None:
    """Creates missing schedules now, and every ``every_s`` seconds, even after an error."""
    while True:
        try:
            await create_schedules(client)
        except Exception:
            logger.exception("the schedules could not be created")
        await asyncio.sleep(every_s)
