"""``DeliverWebhook`` with short times. It has a module of its own, because Temporal's sandbox loads the module again for each run."""

from datetime import timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.interface import SendWebhook, SentWebhook
    from workflows.webhook import DeliverWebhook, Persistence


@workflow.defn(name="DeliverWebhook")
class ImpatientDelivery(DeliverWebhook):
    """The same workflow with shorter times."""

    persistence = Persistence(first_pause=timedelta(seconds=0.2), longest_pause=timedelta(seconds=1), attempt=timedelta(seconds=4))

    @workflow.init
    def __init__(self, args: SendWebhook) -> None:
        super().__init__(args)

    @workflow.run
    async def run(self, args: SendWebhook) -> SentWebhook:
        """The same run."""
        return await super().run(args)


@workflow.defn(name="DeliverWebhook")
class HopelessDelivery(DeliverWebhook):
    """The same workflow, which gives up after seconds."""

    persistence = Persistence(whole=timedelta(seconds=3), first_pause=timedelta(seconds=0.2), attempt=timedelta(seconds=4))

    @workflow.init
    def __init__(self, args: SendWebhook) -> None:
        super().__init__(args)

    @workflow.run
    async def run(self, args: SendWebhook) -> SentWebhook:
        """The same run."""
        return await super().run(args)
