"""Calls an activity of the housekeeping queue from a workflow."""

from datetime import timedelta
from typing import TypeVar

from temporalio import workflow
from temporalio.types import MethodAsyncSingleParam

from activities.interface import HOUSEKEEPING_QUEUE, HousekeepingActivities, LayoutActivities
from workflows.retries import HEARTBEAT, RETRIES

S = TypeVar("S", HousekeepingActivities, LayoutActivities)
A = TypeVar("A")
T = TypeVar("T")


async def call_housekeeping(
    method: MethodAsyncSingleParam[S, A, T],
    args: A,
    timeout: timedelta,
    summary: str,
    *,
    cancellation: workflow.ActivityCancellationType = workflow.ActivityCancellationType.TRY_CANCEL,
) -> T:
    """Calls an activity that retries without end.

    Args:
        method: The activity.
        args: Its argument.
        timeout: How long one attempt may take.
        summary: What Temporal's UI shows of the call.
        cancellation: Whether a run that is cancelled waits for the end of the activity.
    """
    return await workflow.execute_activity_method(
        method,
        args,
        task_queue=HOUSEKEEPING_QUEUE,
        start_to_close_timeout=timeout,
        heartbeat_timeout=HEARTBEAT,
        retry_policy=RETRIES,
        summary=summary,
        cancellation_type=cancellation,
    )
