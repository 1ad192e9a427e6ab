"""The workflows that a worker with a version has instead of those without: they move to the current version at their next step.

These stories are short, but wait for up to a day, so they would keep the workers of an old version. Every other workflow stays on its
version. The behavior is not in the workflows themselves, because Temporal refuses every step of a worker that names one and has no version:
https://github.com/temporalio/temporal/blob/v1.29.1/service/history/api/respondworkflowtaskcompleted/api.go
"""

from temporalio import workflow
from temporalio.common import VersioningBehavior

with workflow.unsafe.imports_passed_through():
    from activities.interface import Reconciled, ReconcileFinished, Removed, SendWebhook, SentWebhook, SweepBucket, Swept
    from workflows.delete import DeleteUpload
    from workflows.messages import DeleteInput
    from workflows.sweep import NightlyReconcile, Sweep
    from workflows.webhook import DeliverWebhook


@workflow.defn(name=DeleteUpload.__name__, versioning_behavior=VersioningBehavior.AUTO_UPGRADE)
class CurrentDelete(DeleteUpload):
    """``DeleteUpload`` on the current version."""

    @workflow.run
    async def run(self, args: DeleteInput) -> Removed:
        """The same run."""
        return await super().run(args)


@workflow.defn(name=DeliverWebhook.__name__, versioning_behavior=VersioningBehavior.AUTO_UPGRADE)
class CurrentDelivery(DeliverWebhook):
    """``DeliverWebhook`` on the current version."""

    @workflow.init
    def __init__(self, args: SendWebhook) -> None:
        super().__init__(args)

    @workflow.run
    async def run(self, args: SendWebhook) -> SentWebhook:
        """The same run."""
        return await super().run(args)


@workflow.defn(name=Sweep.__name__, versioning_behavior=VersioningBehavior.AUTO_UPGRADE)
class CurrentSweep(Sweep):
    """``Sweep`` on the current version."""

    @workflow.run
    async def run(self, args: SweepBucket) -> Swept:
        """The same run."""
        return await super().run(args)


@workflow.defn(name=NightlyReconcile.__name__, versioning_behavior=VersioningBehavior.AUTO_UPGRADE)
class CurrentReconcile(NightlyReconcile):
    """``NightlyReconcile`` on the current version."""

    @workflow.run
    async def run(self, args: ReconcileFinished) -> Reconciled:
        """The same run."""
        return await super().run(args)
