"""What a Temporal Schedule runs: ``Sweep`` puts right what was left undone, ``NightlyReconcile`` looks at what was finished lately.

Each is one activity, which walks over the bucket and, when its worker is lost, goes on where it was; so a history stays small however
much there is. The result says what was done.
"""

from datetime import timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.interface import HOUSEKEEPING_QUEUE, HousekeepingActivities, Reconciled, ReconcileFinished, SweepBucket, Swept
    from workflows.retries import HEARTBEAT, RETRIES

SWEEP_TIMEOUT = timedelta(hours=12)
RECONCILE_TIMEOUT = timedelta(hours=23)


@workflow.defn
class Sweep:
    """Starts, ends and removes what nobody else does any more."""

    @workflow.run
    async def run(self, args: SweepBucket) -> Swept:
        """One pass; the result says what it did."""
        return await workflow.execute_activity_method(
            HousekeepingActivities.sweep,
            args,
            task_queue=HOUSEKEEPING_QUEUE,
            start_to_close_timeout=SWEEP_TIMEOUT,
            heartbeat_timeout=HEARTBEAT,
            retry_policy=RETRIES,
            summary="all uploads" if args.days is None else f"uploads of the last {args.days} days",
        )


@workflow.defn
class NightlyReconcile:
    """Reconciles the uploads that finished lately."""

    @workflow.run
    async def run(self, args: ReconcileFinished) -> Reconciled:
        """One pass; the result says what it found."""
        return await workflow.execute_activity_method(
            HousekeepingActivities.reconcile_finished,
            args,
            task_queue=HOUSEKEEPING_QUEUE,
            start_to_close_timeout=RECONCILE_TIMEOUT,
            heartbeat_timeout=HEARTBEAT,
            retry_policy=RETRIES,
            summary=f"uploads that finished in the last {args.days} days",
        )
