"""``DeliverWebhook``: delivers one webhook, and tries for a day.

Whoever knows of an event starts this workflow: the upload's run as a child that goes on by itself, or the sweep. Its id follows from the
event, so that a second start changes nothing. ``redeliver`` signals it: a delivery that waits for its next try does not wait any longer,
and one that has ended is done again, with the same ``webhook-id``.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from temporalio import workflow
from temporalio.common import Priority, RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from activities.bucket.keys import UploadRef
    from activities.interface import WEBHOOK_QUEUE, SendWebhook, SentWebhook, WebhookActivities
    from workflows.deliveries import DELIVERING
    from workflows.processing.display import REASON, STATUS
    from workflows.processing.failures import reason_and_detail
    from workflows.processing.metrics import count_webhook

DELIVERED, GIVEN_UP = "delivered", "failed"
"""The values of the search attribute ``SiteLinkStatus`` at the end of a delivery."""


@dataclass(frozen=True)
class Persistence:
    """How long and how often a delivery is tried. Only tests change these times.

    Args:
        whole: From the first attempt to the last.
        first_pause: After the first attempt. Each later pause is three times as long.
        longest_pause: The longest pause.
        attempt: The longest time of one attempt. The activity's own limit is shorter, so this one is for a lost worker.
    """

    whole: timedelta = timedelta(days=1)
    first_pause: timedelta = timedelta(seconds=5)
    longest_pause: timedelta = timedelta(hours=1)
    attempt: timedelta = timedelta(seconds=60)


@workflow.defn
class DeliverWebhook:
    """Delivers one webhook."""

    persistence = Persistence()

    @workflow.init
    def __init__(self, args: SendWebhook) -> None:
        self._is_asked = False

    @workflow.signal(description="Send it now, also after its end")
    def redeliver(self) -> None:
        """Send it now."""
        self._is_asked = True

    @workflow.run
    async def run(self, args: SendWebhook) -> SentWebhook:
        """Sends the webhook until the receiver takes it.

        Raises:
            ApplicationError: The receiver did not take it within ``persistence.whole``, or nothing can be sent there.
        """
        self._is_asked = False  # the signal that started this run asks for nothing more
        sending = self._start(args)
        while not await self._is_done(sending):
            # The pause before the next try cannot be shortened, so the activity is replaced. The receiver knows a repeat by its id.
            sending.cancel()
            with suppress(ActivityError, asyncio.CancelledError):
                await sending
            self._is_asked = False
            sending = self._start(args)
        try:
            sent = await sending
        except ActivityError as error:
            if is_cancelled_exception(error):
                raise
            reason, detail = reason_and_detail(error)
            workflow.set_current_details(f"**{GIVEN_UP}**: {reason}: {detail}")
            workflow.upsert_search_attributes([STATUS.value_set(GIVEN_UP), REASON.value_set(reason)])
            count_webhook(GIVEN_UP)
            raise ApplicationError(detail, type=reason, non_retryable=True) from error
        count_webhook(DELIVERED)
        workflow.set_current_details(f"**{DELIVERED}**: the receiver answered {sent.status}")
        workflow.upsert_search_attributes([STATUS.value_set(DELIVERED), REASON.value_unset()])
        return sent

    async def _is_done(self, sending: workflow.ActivityHandle[SentWebhook]) -> bool:
        """Waits for the end of the sending, or for a ``redeliver``; returns whether the sending has ended."""
        await workflow.wait_condition(lambda: sending.done() or self._is_asked)
        return sending.done()

    def _start(self, args: SendWebhook) -> workflow.ActivityHandle[SentWebhook]:
        last_try = workflow.now() + self.persistence.whole
        workflow.set_current_details(
            f"**{DELIVERING}**: tried until {last_try:%Y-%m-%d %H:%M} UTC; Pending Activities says what the last try met"
        )
        return workflow.start_activity_method(
            WebhookActivities.send_webhook,
            args,
            task_queue=WEBHOOK_QUEUE,
            start_to_close_timeout=self.persistence.attempt,
            schedule_to_close_timeout=self.persistence.whole,
            retry_policy=RetryPolicy(
                initial_interval=self.persistence.first_pause,
                backoff_coefficient=3,
                maximum_interval=self.persistence.longest_pause,
            ),
            priority=Priority(fairness_key=UploadRef.parse(args.ref).organization),
            summary=f"send {args.event}",
        )
