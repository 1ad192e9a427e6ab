"""The workflows that Temporal Schedules run: ``Sweep`` completes unfinished work, ``NightlyReconcile`` checks finished uploads.

Each workflow runs one activity that walks over the bucket, so its history stays small for any number of uploads. When the worker of the
activity is lost, the next attempt goes on where the last attempt was.
"""

from datetime import timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.interface import HousekeepingActivities, Reconciled, ReconcileFinished, SweepBucket, Swept
    from workflows.housekeeping import call_housekeeping

SWEEP_TIMEOUT = timedelta(hours=12)
RECONCILE_TIMEOUT = timedelta(hours=23)


@workflow.defn
class Sweep:
    """Starts uploads without a run, also reopened ones, ends uploads whose run was terminated, and removes uploads never accepted."""

    @workflow.run
    async def run(self, args: SweepBucket) -> Swept:
        """Walks once over all uploads; the result counts what the sweep did."""
        summary = "all uploads" if args.days is None else f"uploads of the last {args.days} days"
        return await call_housekeeping(HousekeepingActivities.sweep, args, SWEEP_TIMEOUT, summary)


@workflow.defn
class NightlyReconcile:
    """Reconciles the uploads that finished in the last days."""

    @workflow.run
    async def run(self, args: ReconcileFinished) -> Reconciled:
        """Walks once over the finished uploads; the result counts what was wrong."""
        summary = f"uploads that finished in the last {args.days} days"
        return await call_housekeeping(HousekeepingActivities.reconcile_finished, args, RECONCILE_TIMEOUT, summary)
