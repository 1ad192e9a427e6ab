"""``send_webhook``: signs a webhook and sends it once. Temporal tries again."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http import HTTPStatus

import httpcore2
from temporalio import activity

from activities.attempt import Attempt, to_application_error
from activities.bucket.keys import UploadRef
from activities.bucket.records import UploadRecord, to_wire
from activities.bucket.storage import Bucket
from activities.bucket.uploads import UploadStore
from activities.bucket.webhooks import WebhookStore
from activities.errors import WebhookError, WebhookGone, WebhookRefused
from activities.interface import UPLOAD, SendWebhook, SentWebhook, WebhookActivities
from activities.webhooks.network import TIMEOUT_S, Resolver, post, resolve
from activities.webhooks.settings import WebhookSettings
from activities.webhooks.signing import organization_purpose, signed_headers, upload_purpose

LONGEST_DELAY_S = 3600
"""A receiver that asks for a longer delay by ``Retry-After`` gets this one."""


class WebhookSender(WebhookActivities):
    """Sends webhooks.

    Args:
        bucket: Has the addresses.
        settings: How webhooks are signed, and where they may be sent.
        resolver: Gives the addresses of a name.
        timeout_s: How long a receiver may take to answer, in seconds.
        now: Tells the time, in UTC.
    """

    def __init__(
        self,
        bucket: Bucket,
        settings: WebhookSettings,
        *,
        resolver: Resolver = resolve,
        timeout_s: float = TIMEOUT_S,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._uploads = UploadStore(bucket)
        self._webhooks = WebhookStore(bucket)
        self._settings = settings
        self._resolve = resolver
        self._timeout_s = timeout_s
        self._tls = httpcore2.default_ssl_context()  # loads many certificates, so there is one for all requests
        self._now = now

    @activity.defn
    async def send_webhook(self, args: SendWebhook) -> SentWebhook:
        """See ``WebhookActivities.send_webhook``."""
        ref = UploadRef.parse(args.ref)
        with Attempt().named_errors():
            record = await self._uploads.accepted_async(ref)
            url, purpose = await self._receiver(ref, record, args.receiver)
            body = webhook_body(args, record)
            headers = signed_headers(self._settings.secrets, purpose, args.id, self._now(), body)
            headers |= {"Content-Type": "application/json", "User-Agent": "SiteLink"}
            networks, timeout_s = self._settings.networks, self._timeout_s
            status, retry_after = await post(
                url, headers, body.encode(), networks, resolver=self._resolve, timeout_s=timeout_s, tls=self._tls
            )
            if status == HTTPStatus.GONE:
                msg = "the receiver answered 410: it wants no more webhooks"
                raise WebhookGone(msg)
        if not HTTPStatus(200) <= status < HTTPStatus.MULTIPLE_CHOICES:
            raise _refusal(status, retry_after)
        return SentWebhook(status)

    async def _receiver(self, ref: UploadRef, record: UploadRecord, receiver: str) -> tuple[str, str]:
        """The receiver's address, and the purpose from which its secret is derived."""
        if receiver == UPLOAD and record.webhook is not None:
            return record.webhook.url, upload_purpose(ref)
        record_of_organization = await self._webhooks.organization_async(ref.organization) if receiver != UPLOAD else None
        if record_of_organization is None:
            msg = "the webhook was removed"
            raise WebhookGone(msg)
        return record_of_organization.url, organization_purpose(ref.organization, record_of_organization.secret_id)


def webhook_body(args: SendWebhook, record: UploadRecord) -> str:
    """The body of a webhook: JSON, the same at every attempt."""
    about = {
        "ref": args.ref,
        "upload": UploadRef.parse(args.ref).upload,
        "fileName": record.file_name,
        "sizeBytes": record.size_bytes,
        "createdAt": record.created_at,
    }
    document = {"type": args.event, "timestamp": args.at, "data": {**to_wire(args.snapshot), **about}}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def _refusal(status: int, retry_after: str) -> Exception:
    error: WebhookError = WebhookRefused(
        f"the receiver answered {status}" + (", and no redirect is followed" if 300 <= status < 400 else "")
    )
    if retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 10:
        error.retry_delay = timedelta(seconds=min(LONGEST_DELAY_S, int(retry_after)))
    return to_application_error(error)
