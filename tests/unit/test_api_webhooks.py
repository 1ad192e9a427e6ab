"""The routes of an organization's webhooks, and the receiver of one upload; no webhook is sent."""

import json
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette

from activities.bucket.keys import UploadRef, webhooks_record
from activities.bucket.location import BucketSettings
from activities.bucket.records import UploadRecord, from_json, to_json
from activities.bucket.storage import Bucket
from activities.bucket.uploads import UploadStore
from activities.bucket.webhooks import WebhookStore
from activities.interface import Subscription
from activities.webhooks.settings import WebhookSettings
from activities.webhooks.signing import derived_secret, upload_purpose
from api.app import create_app
from api.settings import ApiSettings
from tests.unit.api_fakes import BASE, REF, FakeTemporal, accept, client_of, make_app

MASTER = "the master secret of these unit tests"
PATH = "/v1/organizations/acme/webhooks"
URL = "https://hooks.example.com/?token=of-the-receiver"
PDF = b"%PDF-1.7\n" + b"x" * 5000


@pytest.fixture
def app(bucket: Bucket, temporal: FakeTemporal) -> Starlette:
    """The API with webhooks."""
    return create_app(bucket, temporal.connect, ApiSettings(BucketSettings("file:///unused"), webhooks=WebhookSettings((MASTER,))))


async def put(app: Starlette, path: str = PATH, **body: Any) -> httpx2.Response:
    """Sets the receiver."""
    async with client_of(app) as client:
        return await client.put(path, json=body)


async def test_webhooks_are_off_by_default(bucket: Bucket, temporal: FakeTemporal) -> None:
    """Without a master secret there is no route, and an upload's own receiver is refused."""
    app = make_app(bucket, temporal)
    assert (await put(app, url=URL)).status_code == 404
    async with client_of(app) as client:
        answer = await client.post(BASE, content=PDF, headers={"Content-Type": "application/pdf", "SiteLink-Webhook": URL})
    assert (answer.status_code, answer.json()["type"]) == (400, "InvalidRequest")


async def test_secret_is_shown_once_and_not_stored(app: Starlette, bucket: Bucket) -> None:
    """A change of the address keeps it, and ``newSecret`` makes another one."""
    first = (await put(app, url=URL)).json()
    assert first["secret"].startswith("whsec_")
    assert first["events"] == ["upload.accepted", "upload.ended"]
    second = (await put(app, url="https://other.example.com/", events=["sheet.ready"])).json()
    assert (second["secret"], second["createdAt"]) == (None, first["createdAt"])
    async with client_of(app) as client:
        assert (await client.get(PATH)).json() == {**second, "secret": None}
    third = (await put(app, f"{PATH}?newSecret=true", url=URL)).json()
    assert third["secret"] not in (None, first["secret"])
    stored = bucket.get(webhooks_record("acme")).body
    assert json.loads(stored)["schema"] == 1
    for document in (first, third):
        assert document["secret"].encode() not in stored
    assert MASTER.encode() not in stored


async def test_receiver_can_be_removed(app: Starlette) -> None:
    """Then there is none; a second removal is no error."""
    await put(app, url=URL)
    async with client_of(app) as client:
        assert [(await client.delete(PATH)).status_code for _ in range(2)] == [204, 204]
        answer = await client.get(PATH)
    assert (answer.status_code, answer.json()["type"]) == (404, "WebhookNotFound")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"url": 1},
        {"url": "http://hooks.example.com/"},
        {"url": "https://169.254.169.254/latest"},
        {"url": "https://jo:of-the-receiver@hooks.example.com/"},
        {"url": URL, "events": []},
        {"url": URL, "events": "upload.ended"},
        {"url": URL, "events": ["upload.deleted"]},
        {"url": URL, "events": [["upload.ended"]]},
        {"url": URL, "secret": "mine"},
    ],
)
async def test_other_receivers_are_refused(app: Starlette, body: dict[str, Any]) -> None:
    """400, and the answer shows no credential."""
    answer = await put(app, **body)
    assert (answer.status_code, answer.json()["type"]) == (400, "InvalidRequest")
    assert "of-the-receiver" not in answer.text


async def test_body_is_bounded(app: Starlette) -> None:
    """And what is not JSON is refused."""
    async with client_of(app) as client:
        assert (await client.put(PATH, content=b" " * 20_000)).status_code == 413
        for content in (b"", b"{", b"[" * 10_000, b"\xff"):
            assert (await client.put(PATH, content=content)).json()["type"] == "InvalidRequest"


async def test_upload_keeps_its_own_receiver(app: Starlette, bucket: Bucket) -> None:
    """In ``upload.json``, which an earlier release reads, too; the answer has the secret; the key is for the same receiver only."""
    headers = {"Content-Type": "application/pdf", "Idempotency-Key": "k1", "SiteLink-Webhook": URL}
    async with client_of(app) as client:
        answers = [await client.post(BASE, content=PDF, headers=headers) for _ in range(2)]
        other = await client.post(BASE, content=PDF, headers={**headers, "SiteLink-Webhook-Events": "sheet.ready, upload.ended"})
        plain = await client.post(BASE, content=PDF, headers={"Content-Type": "application/pdf"})
        progress = await client.get(answers[0].headers["location"])
    first, second = (answer.json() for answer in answers)
    assert first == second
    ref = UploadRef.parse(first["ref"])
    assert first["webhookSecret"] == derived_secret(MASTER, upload_purpose(ref))
    assert (other.status_code, other.json()["type"]) == (422, "IdempotencyConflict")
    assert "webhookSecret" not in plain.json()
    record = UploadStore(bucket).record(ref)
    assert record.webhook is not None
    assert record.webhook.url == URL
    assert "of-the-receiver" not in repr(record)
    assert "of-the-receiver" not in progress.text
    assert WebhookStore(bucket).subscriptions(ref, record) == (Subscription("upload", ("upload.accepted", "upload.ended")),)
    document = json.loads(to_json(record))
    assert document["schema"] == 1
    del document["webhook"]
    assert from_json(UploadRecord, json.dumps(document)).webhook is None


@pytest.mark.parametrize(
    "headers",
    [
        {"SiteLink-Webhook": "http://127.0.0.1/"},
        {"SiteLink-Webhook": URL, "SiteLink-Webhook-Events": "upload.deleted"},
        {"SiteLink-Webhook": URL, "SiteLink-Webhook-Events": ""},
        {"SiteLink-Webhook-Events": "upload.ended"},
    ],
)
async def test_wrong_receiver_of_an_upload_is_refused(app: Starlette, bucket: Bucket, headers: dict[str, str]) -> None:
    """Before the file is stored."""
    async with client_of(app) as client:
        answer = await client.post(BASE, content=PDF, headers={"Content-Type": "application/pdf", **headers})
    assert (answer.status_code, answer.json()["type"]) == (400, "InvalidRequest")
    assert bucket.directories("organizations/") == []


async def test_damaged_record_holds_up_no_upload(app: Starlette, bucket: Bucket) -> None:
    """It counts as none for the upload; who asks for it learns of it; and nobody writes over one of a newer release."""
    await accept(bucket)
    bucket.put(webhooks_record("acme"), b'{"schema": 2}')
    assert WebhookStore(bucket).subscriptions(REF, UploadStore(bucket).record(REF)) == ()
    async with client_of(app) as client:
        assert (await client.get(PATH)).json()["type"] == "NewerSchema"
    assert (await put(app, url=URL)).json()["type"] == "NewerSchema"


def test_settings_are_checked() -> None:
    """A short secret and a network that is none are refused, and no secret is shown."""
    assert WebhookSettings.from_env({"SITELINK_WEBHOOK_SECRET": f"{MASTER}, {MASTER}"}).secrets == (MASTER, MASTER)
    with pytest.raises(ValueError, match="SITELINK_WEBHOOK_SECRET") as refused:
        WebhookSettings.from_env({"SITELINK_WEBHOOK_SECRET": "short and secret"})
    assert "short" not in str(refused.value)
    with pytest.raises(ValueError, match="SITELINK_WEBHOOK_NETWORKS"):
        WebhookSettings.from_env({"SITELINK_WEBHOOK_NETWORKS": "10.0.0.1/8"})
    assert MASTER not in repr(WebhookSettings((MASTER,)))
