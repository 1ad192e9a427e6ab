"""The routes of webhooks: they set an organization's receiver, list the deliveries, and send a webhook again."""

import asyncio
import json
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from activities.bucket.records import DEFAULT_WEBHOOK_EVENTS, UploadWebhook, WebhookEvent, WebhooksRecord, timestamp, to_wire
from activities.bucket.storage import Bucket
from activities.bucket.webhooks import WebhookStore
from activities.errors import InvalidRequest, WebhookNotFound
from activities.webhooks.network import check_url
from activities.webhooks.settings import WebhookSettings
from activities.webhooks.signing import derived_secret, organization_purpose
from api.access.credentials import WEBHOOK_HEADER
from api.http.bodies import read_body
from api.http.parameters import flag, page_limit, path_id
from api.progress.runs import NoRun, Runs

EVENTS_HEADER = "sitelink-webhook-events"
MAX_BODY_BYTES = 16 << 10
STATUSES = ("delivering", "delivered", "failed")


class Webhooks:
    """Answers the routes of an organization's webhooks.

    Args:
        bucket: Has the receivers.
        runs: Knows the deliveries.
        settings: The master secrets that sign webhooks, and the private networks to which webhooks may be sent.
    """

    def __init__(self, bucket: Bucket, runs: Runs, settings: WebhookSettings) -> None:
        self._store = WebhookStore(bucket)
        self._runs = runs
        self._settings = settings

    async def show(self, request: Request) -> Response:
        """The receiver.

        Raises:
            WebhookNotFound: There is none.
        """
        organization = path_id(request, "organization")
        record = await self._store.organization_async(organization)
        if record is None:
            raise _no_receiver_error(organization)
        return JSONResponse(_document(record, None), headers={"Cache-Control": "no-store"})

    async def put(self, request: Request) -> Response:
        """Sets the receiver. The answer has its secret if the secret is new, and no later answer has it."""
        organization, wants_secret = path_id(request, "organization"), flag(request, "newSecret")
        webhook = self._read(await _read_json(request))
        now = timestamp(datetime.now(UTC))
        earlier = await self._store.organization_async(organization)
        kept_id = None if earlier is None or wants_secret else earlier.secret_id
        secret_id = kept_id or secrets.token_hex(16)
        record = WebhooksRecord(webhook.url, webhook.events, secret_id, earlier.created_at if earlier else now, now)
        await asyncio.to_thread(self._store.put, organization, record)
        secret = derived_secret(self._settings.secrets[0], organization_purpose(organization, secret_id)) if kept_id is None else None
        return JSONResponse(_document(record, secret), headers={"Cache-Control": "no-store"})

    async def delete(self, request: Request) -> Response:
        """Removes the receiver; a second request is no error."""
        await asyncio.to_thread(self._store.delete, path_id(request, "organization"))
        return Response(status_code=HTTPStatus.NO_CONTENT)

    async def list_deliveries(self, request: Request) -> Response:
        """The newest deliveries."""
        organization, status = path_id(request, "organization"), request.query_params.get("status")
        if status not in (None, *STATUSES):
            msg = f"status is {status[:80]!r}, there are {', '.join(STATUSES)}"
            raise InvalidRequest(msg)
        deliveries = await self._runs.deliveries(organization, status, page_limit(request))
        return JSONResponse({"deliveries": list(map(to_wire, deliveries))}, headers={"Cache-Control": "no-store"})

    async def redeliver(self, request: Request) -> Response:
        """Sends a webhook again, with the same id."""
        organization, delivery = path_id(request, "organization"), path_id(request, "delivery")
        try:
            await self._runs.redeliver(organization, delivery)
        except NoRun as error:
            msg = f"there is no delivery {delivery} any more"
            raise WebhookNotFound(msg) from error
        return JSONResponse({"id": delivery}, HTTPStatus.ACCEPTED, {"Cache-Control": "no-store"})

    def _read(self, document: object) -> UploadWebhook:
        match document:
            case {"url": str(url), **rest} if not rest.keys() - {"events"}:
                events = rest.get("events", list(DEFAULT_WEBHOOK_EVENTS))
                if isinstance(events, list):
                    return _checked(url, events, self._settings)
        msg = 'the body is not {"url": "https://…", "events": ["upload.ended"]}'
        raise InvalidRequest(msg)


def read_webhook(headers: Headers, settings: WebhookSettings) -> UploadWebhook | None:
    """The receiver that a request names for its upload alone; None without one.

    Raises:
        InvalidRequest: Webhooks may not be sent there, or the events do not exist.
    """
    url, events = headers.get(WEBHOOK_HEADER), headers.get(EVENTS_HEADER)
    if url is None:
        if events is not None:
            msg = "SiteLink-Webhook-Events needs SiteLink-Webhook, the address of the receiver"
            raise InvalidRequest(msg)
        return None
    if not settings.secrets:
        msg = "this server sends no webhooks: SITELINK_WEBHOOK_SECRET is not set"
        raise InvalidRequest(msg)
    names: list[object] = list(DEFAULT_WEBHOOK_EVENTS) if events is None else [name.strip() for name in events.split(",")]
    return _checked(url, names, settings)


def _checked(url: str, events: list[object], settings: WebhookSettings) -> UploadWebhook:
    try:
        check_url(url, settings.networks)
    except ValueError as error:
        raise InvalidRequest(str(error)) from error
    if not events or any(event not in list(WebhookEvent) for event in events):
        msg = f"the events of a webhook are some of {', '.join(WebhookEvent)}"
        raise InvalidRequest(msg)
    return UploadWebhook(url, tuple(event for event in WebhookEvent if event in events))


def _no_receiver_error(organization: str) -> WebhookNotFound:
    return WebhookNotFound(f"the organization {organization} has no webhooks")


def _document(record: WebhooksRecord, secret: str | None) -> Mapping[str, Any]:
    wire = to_wire(record)
    return {**{name: wire[name] for name in ("url", "events", "createdAt", "updatedAt")}, "secret": secret}


async def _read_json(request: Request) -> object:
    body = await read_body(request, MAX_BODY_BYTES)
    try:
        document: object = json.loads(body)
    except (ValueError, RecursionError) as error:
        msg = "the body is not JSON"
        raise InvalidRequest(msg) from error
    return document
