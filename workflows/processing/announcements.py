"""Starts the deliveries of an upload's webhooks. Each is a workflow of its own, for which the upload's run does not wait.

Without a receiver, a run issues no command for it: neither a marker nor a timer.
"""

import asyncio
from dataclasses import replace
from datetime import timedelta

from temporalio import workflow
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError

from activities.bucket.keys import UploadRef
from activities.bucket.records import SheetStatus, Snapshot, WebhookEvent, timestamp
from activities.interface import WORKFLOW_QUEUE, SendWebhook, Subscription
from workflows.deliveries import appearance, webhooks_about
from workflows.processing.patches import WEBHOOKS
from workflows.processing.progress import Progress
from workflows.webhook import DeliverWebhook

GATHERING_TIME = timedelta(seconds=10)
"""How long sheets that become ready are gathered for one webhook."""

SHEETS_AT_ONCE = 100
"""The most sheets in one webhook."""


class Announcements:
    """Announces what happens to one upload.

    Args:
        ref: The upload.
        progress: The upload's progress.
        subscriptions: Who wants webhooks, if an earlier run has handed it over.
    """

    def __init__(self, ref: UploadRef, progress: Progress, subscriptions: tuple[Subscription, ...]) -> None:
        self._ref = ref
        self._progress = progress
        self.subscriptions = subscriptions
        self._announced: set[int] = set()
        self._gathering: asyncio.Task[None] | None = None
        self._is_asleep = False
        self._accepting: asyncio.Task[None] | None = None
        self.skip_sheets()

    def skip_sheets(self) -> None:
        """Counts the sheets that are ready now as announced, because earlier runs have made them."""
        self._announced = set(self._progress.sheets_in(SheetStatus.READY))

    def announce_accepted(self) -> None:
        """Announces that the upload was accepted, unless an earlier run has."""
        if self._wants(WebhookEvent.UPLOAD_ACCEPTED):
            head = self._progress.head
            self._accepting = asyncio.create_task(self._start(WebhookEvent.UPLOAD_ACCEPTED, head))

    async def announce_ended(self, manifest: Snapshot, subscriptions: tuple[Subscription, ...]) -> None:
        """Announces the end.

        Args:
            manifest: The final progress.
            subscriptions: Who wants webhooks now.
        """
        self.subscriptions = subscriptions
        await self._start(WebhookEvent.UPLOAD_ENDED, replace(manifest, sheets=()))

    def gather_sheets(self) -> None:
        """Sees to it that the sheets that are ready, and not announced, are announced soon."""
        if self._gathering is not None and self._gathering.done():
            gathering, self._gathering = self._gathering, None
            gathering.result()  # a bug is raised here, so that Temporal reports it
        if self._gathering is None and self._wants(WebhookEvent.SHEET_READY) and self._new_sheets():
            self._is_asleep = True
            self._gathering = asyncio.create_task(self._gather())

    async def announce_sheets(self) -> None:
        """Announces at once the sheets that are ready and not announced. Returns when all deliveries so far have been started."""
        if self._accepting is not None:
            await self._accepting
        if self._gathering is not None:
            if self._is_asleep:
                self._gathering.cancel()
            await workflow.wait([self._gathering])
            self._gathering = None
        await self._announce_new_sheets()

    async def _gather(self) -> None:
        await workflow.sleep(GATHERING_TIME, summary="gather ready sheets for one webhook")
        self._is_asleep = False
        await self._announce_new_sheets()

    async def _announce_new_sheets(self) -> None:
        ready = set(self._progress.sheets_in(SheetStatus.READY))
        new, self._announced = sorted(ready - self._announced), ready
        head = self._progress.head
        for start in range(0, len(new), SHEETS_AT_ONCE):
            sheets = tuple(self._progress.sheet(number) for number in new[start : start + SHEETS_AT_ONCE])
            await self._start(WebhookEvent.SHEET_READY, replace(head, sheets=sheets))

    def _new_sheets(self) -> bool:
        return not self._announced.issuperset(self._progress.sheets_in(SheetStatus.READY))

    def _wants(self, event: WebhookEvent) -> bool:
        return any(event in each.events for each in self.subscriptions)

    async def _start(self, event: WebhookEvent, snapshot: Snapshot) -> None:
        webhooks = webhooks_about(self._ref, event, timestamp(workflow.now()), snapshot, self.subscriptions)
        if webhooks and workflow.patched(WEBHOOKS):
            await asyncio.gather(*map(_start_delivery, webhooks))


async def _start_delivery(webhook: SendWebhook) -> None:
    looks = appearance(webhook)
    try:
        # This await ends when Temporal has recorded the start: a run that ended before would take the delivery with it.
        await workflow.start_child_workflow(
            DeliverWebhook.run,
            webhook,
            id=looks.id,
            task_queue=WORKFLOW_QUEUE,
            id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            parent_close_policy=workflow.ParentClosePolicy.ABANDON,
            cancellation_type=workflow.ChildWorkflowCancellationType.ABANDON,
            search_attributes=looks.search_attributes,
            memo=looks.memo,
            static_summary=looks.summary,
            priority=looks.priority,
        )
    except WorkflowAlreadyStartedError:
        return
