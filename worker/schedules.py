"""The Temporal Schedules that start the sweeps and the nightly reconciliation. A schedule that an operator changed or paused stays so."""

import asyncio
import logging
from datetime import timedelta

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

from activities.interface import WORKFLOW_QUEUE, ReconcileFinished, SweepBucket
from workflows.sweep import NightlyReconcile, Sweep

logger = logging.getLogger(__name__)

CHECK_INTERVAL_S = 600
"""A Temporal server that lost its database has lost the schedules, too, and the worker is not restarted for that."""

RECENT_DAYS = 7

SWEEP, SWEEP_ALL, RECONCILE = "sitelink-sweep", "sitelink-sweep-all", "sitelink-reconcile"


def _schedules() -> dict[str, Schedule]:
    return {
        SWEEP: Schedule(
            ScheduleActionStartWorkflow(Sweep.run, SweepBucket(days=RECENT_DAYS), id=SWEEP, task_queue=WORKFLOW_QUEUE),
            ScheduleSpec(intervals=[ScheduleIntervalSpec(timedelta(hours=1))]),
            SchedulePolicy(catchup_window=timedelta(hours=1)),
            ScheduleState(note=f"hourly, uploads of the last {RECENT_DAYS} days"),
        ),
        SWEEP_ALL: Schedule(
            ScheduleActionStartWorkflow(Sweep.run, SweepBucket(), id=SWEEP_ALL, task_queue=WORKFLOW_QUEUE),
            _nightly(2),
            SchedulePolicy(catchup_window=timedelta(days=1)),  # a machine that was off at night runs it when it is on again
            ScheduleState(note="nightly, all uploads"),
        ),
        RECONCILE: Schedule(
            ScheduleActionStartWorkflow(NightlyReconcile.run, ReconcileFinished(), id=RECONCILE, task_queue=WORKFLOW_QUEUE),
            _nightly(3),
            SchedulePolicy(catchup_window=timedelta(days=1)),
            ScheduleState(note=f"nightly, uploads that finished in the last {ReconcileFinished.days} days"),
        ),
    }


def _nightly(hour: int) -> ScheduleSpec:
    """Every day at this hour, UTC."""
    return ScheduleSpec(calendars=[ScheduleCalendarSpec(hour=[ScheduleRange(hour)])])


async def create_schedules(client: Client) -> None:
    """Creates the schedules that do not exist; a schedule that exists is not changed.

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
    """Creates the schedules now, and looks again every ``every_s`` seconds, also after a failure."""
    while True:
        try:
            await create_schedules(client)
        except Exception:
            logger.exception("the schedules could not be created")
        await asyncio.sleep(every_s)
