"""``ProcessUpload`` with little patience. It has a module of its own, because Temporal's sandbox loads the module again for each run."""

from datetime import timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from activities.bucket.records import Snapshot
    from workflows.messages import UploadInput
    from workflows.processing.calls import Patience
    from workflows.upload import ProcessUpload

PATIENCE = Patience(
    host=timedelta(seconds=8), heartbeat=timedelta(seconds=4), late_write=timedelta(seconds=10), free_scratch=timedelta(seconds=2)
)


@workflow.defn(name="ProcessUpload")
class ImpatientUpload(ProcessUpload):
    """The same workflow with shorter times."""

    patience = PATIENCE

    @workflow.init
    def __init__(self, args: UploadInput) -> None:
        super().__init__(args)

    @workflow.run
    async def run(self, args: UploadInput) -> Snapshot:
        """The same run."""
        return await super().run(args)
