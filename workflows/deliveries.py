"""A delivery of a webhook in Temporal: its id, and the attributes by which an operator finds it."""

from collections.abc import Iterable
from dataclasses import dataclass

from temporalio.common import Priority, SearchAttributeKey, SearchAttributePair, TypedSearchAttributes

from activities.bucket.keys import UploadRef, webhook_workflow_id
from activities.bucket.records import Snapshot, WebhookEvent
from activities.interface import SendWebhook, Subscription
from workflows.messages import SEARCH_ATTRIBUTES

DELIVERING = "delivering"
"""The value of the search attribute ``SiteLinkStatus`` until the end of a delivery."""


@dataclass(frozen=True)
class Appearance:
    """How a delivery appears in Temporal."""

    id: str
    search_attributes: TypedSearchAttributes
    memo: dict[str, str]
    summary: str
    priority: Priority


def webhooks_about(
    ref: UploadRef, event: WebhookEvent, at: str, snapshot: Snapshot, subscriptions: Iterable[Subscription]
) -> list[SendWebhook]:
    """The webhooks about one event, one for each receiver that wants it.

    Args:
        ref: The upload.
        event: The type of the event.
        at: When it happened: RFC 3339, UTC.
        snapshot: The progress then, with the sheets that the event is about.
        subscriptions: The receivers.
    """
    match event:
        case WebhookEvent.UPLOAD_ACCEPTED:
            occasion = ""  # an upload is accepted once
        case WebhookEvent.SHEET_READY:
            occasion = f"{snapshot.version} {snapshot.sheets[0].number}"
        case WebhookEvent.UPLOAD_ENDED:
            occasion = f"{snapshot.version}"
    return [
        SendWebhook(str(ref), each.receiver, str(event), at, snapshot, ref.delivery(event, each.receiver, occasion))
        for each in subscriptions
        if event in each.events
    ]


def appearance(webhook: SendWebhook) -> Appearance:
    """How the delivery of a webhook appears in Temporal."""
    ref = UploadRef.parse(webhook.ref)
    values = (ref.organization, ref.project, ref.plan, DELIVERING)
    attributes = [
        SearchAttributePair(SearchAttributeKey.for_keyword(name), value) for name, value in zip(SEARCH_ATTRIBUTES, values, strict=False)
    ]
    return Appearance(
        id=webhook_workflow_id(ref.organization, webhook.id),
        search_attributes=TypedSearchAttributes(attributes),
        memo={"event": webhook.event, "ref": webhook.ref, "receiver": webhook.receiver},
        summary=f"{webhook.event} to the {webhook.receiver}'s receiver: plan {ref.plan} of {ref.project}, {ref.organization}",
        priority=Priority(fairness_key=ref.organization),
    )
