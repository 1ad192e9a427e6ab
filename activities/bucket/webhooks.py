"""Reads and writes who wants webhooks: ``webhooks.json`` of an organization, and the receiver in an upload's ``upload.json``."""

import logging
from contextlib import suppress

from activities.bucket.keys import UploadRef, webhooks_record
from activities.bucket.records import UploadRecord, WebhooksRecord, to_json
from activities.bucket.storage import Bucket
from activities.errors import ObjectMissing, UnreadableRecord
from activities.interface import ORGANIZATION, UPLOAD, Subscription

logger = logging.getLogger(__name__)


class WebhookStore:
    """Reads and writes the receivers of webhooks. Every method may raise ``BucketError``.

    Args:
        bucket: Where the records are.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def subscriptions(self, ref: UploadRef, record: UploadRecord) -> tuple[Subscription, ...]:
        """The receivers of webhooks about an upload. An unreadable ``webhooks.json`` counts as absent, because it must not stop an upload.

        Args:
            ref: The upload.
            record: Its ``upload.json``.
        """
        found = []
        try:
            with suppress(ObjectMissing):
                own = self._bucket.get_record(WebhooksRecord, webhooks_record(ref.organization))
                found.append(Subscription(ORGANIZATION, tuple(map(str, own.events))))
        except UnreadableRecord as error:
            logger.warning("no webhooks of the organization: %s", error, extra={"ref": str(ref)})
        if record.webhook is not None:
            found.append(Subscription(UPLOAD, tuple(map(str, record.webhook.events))))
        return tuple(found)

    async def organization_async(self, organization: str) -> WebhooksRecord | None:
        """``webhooks.json``; None when the organization has none.

        Raises:
            UnreadableRecord: It cannot be read.
        """
        with suppress(ObjectMissing):
            return await self._bucket.get_record_async(WebhooksRecord, webhooks_record(organization))
        return None

    def put(self, organization: str, record: WebhooksRecord) -> None:
        """Writes ``webhooks.json``, over any earlier one."""
        self._bucket.put_seen(webhooks_record(organization), to_json(record))
        self._bucket.sync()

    def delete(self, organization: str) -> None:
        """Removes ``webhooks.json``."""
        self._bucket.delete([webhooks_record(organization)])
