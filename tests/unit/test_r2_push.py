"""``POST /v1/events/r2``: its signature, its answers, and that it is off by default."""

import base64
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest
from standardwebhooks import Webhook
from starlette.applications import Starlette

from activities.bucket.location import BucketSettings
from activities.bucket.records import SheetStatus
from activities.bucket.storage import Bucket
from api.app import create_app
from api.paths import R2_EVENTS, UNREADABLE_EVENTS
from api.r2.push import MAX_BODY_BYTES, TOLERANCE_S, signature
from api.r2.settings import PushSettings
from api.settings import ApiSettings
from tests.servers.queue import event
from tests.unit.api_fakes import REF, UNAVAILABLE, FakeTemporal, accept, client_of, make_app, snapshot

SECRET, OLD_SECRET = "a secret of the tests", "an older secret of theirs"
READY, PENDING = SheetStatus.READY, SheetStatus.PENDING


@pytest.fixture
def app(bucket: Bucket, temporal: FakeTemporal) -> Starlette:
    """The API, with two secrets."""
    settings = ApiSettings(BucketSettings("file:///unused"), push=PushSettings((SECRET, OLD_SECRET), gather_s=0.05))
    return create_app(bucket, temporal.connect, settings)


def message(name: str, body: object, attempts: int = 1) -> dict[str, Any]:
    """One message as the Worker sends it."""
    return {"id": name, "attempts": attempts, "body": body if isinstance(body, str) else json.dumps(body)}


def stored_message(sheet: int) -> dict[str, Any]:
    """The message of an R2 event: the sheet's ``.dzi`` was written."""
    return message(f"m{sheet}", event("plans", REF.descriptor(sheet)))


async def push(
    app: Starlette,
    *messages: dict[str, Any],
    body: bytes | None = None,
    secret: str = SECRET,
    age_s: float = 0,
    headers: Mapping[str, str] | None = None,
    library: Webhook | None = None,
) -> httpx2.Response:
    """Sends a signed batch: as an earlier release did, or by the library of Standard Webhooks."""
    data = json.dumps({"messages": messages}).encode() if body is None else body
    timestamp = str(int(time.time() - age_s))
    if library is not None:
        sent_at = datetime.fromtimestamp(int(timestamp), UTC)
        signed = {"webhook-id": "msg_1", "webhook-timestamp": timestamp, "webhook-signature": library.sign("msg_1", sent_at, data.decode())}
        async with client_of(app) as client:
            return await client.post(R2_EVENTS, content=data, headers={**signed, **(headers or {})})
    signed = {"SiteLink-Timestamp": timestamp, "SiteLink-Signature": signature(secret, timestamp, data)}
    async with client_of(app) as client:
        return await client.post(R2_EVENTS, content=data, headers={**signed, **(headers or {})})


async def test_push_is_off_by_default(bucket: Bucket, temporal: FakeTemporal) -> None:
    """Without a secret there is no route, even for a signed request."""
    app = make_app(bucket, temporal)
    answer = await push(app, stored_message(1), secret="")
    assert (answer.status_code, answer.json()["type"]) == (404, "NotFound")
    assert (await push(app, stored_message(1), headers={"Host": "plans.example.com"})).status_code == 421


async def test_a_signed_batch_is_decided_message_by_message(app: Starlette, bucket: Bucket, temporal: FakeTemporal) -> None:
    """Handled events are acknowledged. A message that is not an R2 event comes again, and is kept aside at its fifth attempt."""
    await accept(bucket)
    temporal.state = snapshot(READY, PENDING)
    batch = [stored_message(1), stored_message(2), message("poison", "no event"), message("old poison", "no event either", 5)]
    answer = await push(app, *batch)
    assert answer.status_code == 200
    assert answer.json() == {"acks": ["m1", "m2", "old poison"], "retries": [{"id": "poison", "delaySeconds": 5}]}
    assert [start["start_signal_args"][0].sheets for start in temporal.starts] == [(2,)]
    async with client_of(app) as client:
        (kept,) = (await client.get(UNREADABLE_EVENTS)).json()["unreadable"]
    assert kept["message"] == "old poison"


async def test_an_outage_is_a_503_that_names_the_messages_to_send_again(app: Starlette, bucket: Bucket, temporal: FakeTemporal) -> None:
    """The problem document has the answer about every message."""
    await accept(bucket)
    temporal.state = temporal.start_error = UNAVAILABLE
    answer = await push(app, stored_message(1), message("other", event("plans", "x.txt")), message("poison", "no event"))
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert answer.headers["retry-after"]
    document = answer.json()
    assert (document["type"], document["acks"]) == ("TemporalUnavailable", ["other"])
    assert document["retries"] == [{"id": "m1", "delaySeconds": 5}, {"id": "poison", "delaySeconds": 5}]


async def test_any_host_and_origin_may_carry_a_signed_request(app: Starlette, bucket: Bucket) -> None:
    """A tunnel has its own host name. Under this name, all other routes stay closed."""
    answer = await push(app, headers={"Host": "plans.example.com", "Origin": "https://elsewhere.example", "Sec-Fetch-Site": "cross-site"})
    assert (answer.status_code, answer.json()) == (200, {"acks": [], "retries": []})
    async with client_of(app) as client:
        for path in (UNREADABLE_EVENTS, f"{R2_EVENTS}/", "/"):
            assert (await client.get(path, headers={"Host": "plans.example.com"})).status_code == 421


async def test_an_older_secret_is_accepted_while_it_is_replaced(app: Starlette) -> None:
    """A request may be signed with any of the configured secrets."""
    assert (await push(app, secret=OLD_SECRET)).status_code == 200


async def test_standard_webhooks_are_accepted(app: Starlette, bucket: Bucket, temporal: FakeTemporal) -> None:
    """The library signs with a secret as it stands, or with one in base64; other signatures beside ours do not matter."""
    encoded = f"whsec_{base64.b64encode(b'0123456789abcdef01234567').decode()}"
    encoding = create_app(
        bucket, temporal.connect, ApiSettings(BucketSettings("file:///unused"), push=PushSettings((encoded,), gather_s=0.05))
    )
    assert (await push(app, library=Webhook(SECRET.encode()))).status_code == 200
    assert (await push(encoding, library=Webhook(encoded))).status_code == 200
    sent_at = datetime.now(UTC)
    good = Webhook(SECRET.encode()).sign("msg_1", sent_at, '{"messages": []}')
    several = {"webhook-timestamp": str(int(sent_at.timestamp())), "webhook-signature": f"v1a,other v1,AAAA {good}"}
    assert (await push(app, library=Webhook(SECRET.encode()), headers=several)).status_code == 200
    for bad in (
        {"webhook-id": "msg_2"},
        {"webhook-id": ""},
        {"webhook-signature": ""},
        {"webhook-signature": "v1,AAAA"},
        {"webhook-signature": "x" * 5000},
        {"webhook-timestamp": str(int(time.time()) - TOLERANCE_S - 2)},
        {"webhook-timestamp": "soon"},
    ):
        answer = await push(app, library=Webhook(SECRET.encode()), headers=bad)
        assert (answer.status_code, answer.json()["type"]) == (401, "BadSignature"), bad
    assert (await push(app, library=Webhook(b"some other secret"))).status_code == 401
    with pytest.raises(ValueError, match="base64"):
        PushSettings(("whsec_this is not base64",))


@pytest.mark.parametrize(
    ("how", "headers"),
    [
        ({"secret": "some other secret"}, {}),
        ({"secret": ""}, {}),
        ({"age_s": TOLERANCE_S + 2}, {}),
        ({"age_s": -TOLERANCE_S - 2}, {}),
        ({}, {"SiteLink-Timestamp": ""}),
        ({}, {"SiteLink-Timestamp": "-5"}),
        ({}, {"SiteLink-Timestamp": "9" * 400}),
        ({}, {"SiteLink-Timestamp": str(int(time.time()) - 100)}),
        ({}, {"SiteLink-Signature": ""}),
        ({}, {"SiteLink-Signature": "0" * 64}),
    ],
)
async def test_a_wrong_signature_is_refused(
    app: Starlette, bucket: Bucket, temporal: FakeTemporal, how: dict[str, Any], headers: dict[str, str]
) -> None:
    """A wrong or missing secret, time or signature is a 401, and nothing is done."""
    await accept(bucket)
    answer = await push(app, stored_message(1), **how, headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (401, "BadSignature")
    assert answer.headers["www-authenticate"]
    assert SECRET not in answer.text
    assert (temporal.queries, temporal.starts) == (0, [])


async def test_a_signature_fits_only_its_body(app: Starlette) -> None:
    """With one more byte in the body, the signature is wrong."""
    timestamp = str(int(time.time()))
    headers = {"SiteLink-Timestamp": timestamp, "SiteLink-Signature": signature(SECRET, timestamp, b'{"messages":[]}')}
    async with client_of(app) as client:
        assert (await client.post(R2_EVENTS, content=b'{"messages":[]}', headers=headers)).status_code == 200
        assert (await client.post(R2_EVENTS, content=b'{"messages":[]} ', headers=headers)).status_code == 401


async def test_a_body_is_bounded(app: Starlette) -> None:
    """A body over the limit is refused before the signature is checked, so that it cannot fill the memory."""
    answer = await push(app, body=b" " * (MAX_BODY_BYTES + 1))
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"messages": 1}',
        b'{"messages": [{}]}',
        b'{"messages": [{"id": 1, "attempts": 1, "body": ""}]}',
        b'{"messages": [{"id": "\\ud800", "attempts": 1, "body": ""}]}',
        b"[" * 100_000,
    ],
    ids=range(8),
)
async def test_a_body_that_is_not_a_batch_is_refused(app: Starlette, body: bytes) -> None:
    """A signed body of another form is an ``InvalidRequest``."""
    answer = await push(app, body=body)
    assert (answer.status_code, answer.json()["type"]) == (400, "InvalidRequest")


async def test_any_text_may_be_a_message(app: Starlette) -> None:
    """Even text that cannot be encoded in UTF-8."""
    answer = await push(app, body=b'{"messages": [{"id": "a", "attempts": 5, "body": "\\ud800\\u0000"}]}')
    assert answer.json() == {"acks": ["a"], "retries": []}


def test_secrets_are_checked_and_not_shown() -> None:
    """Several secrets are separated by commas. A short secret is refused, and neither messages nor settings show a secret."""
    settings = ApiSettings.from_env({"SITELINK_EVENTS_SECRET": f" {SECRET}, {OLD_SECRET},", "SITELINK_EVENTS_ATTEMPTS": "7"})
    assert (settings.push.secrets, settings.push.attempts) == ((SECRET, OLD_SECRET), 7)
    assert SECRET not in repr(settings)
    assert ApiSettings.from_env({}).push.secrets == ()
    with pytest.raises(ValueError, match="SITELINK_EVENTS_SECRET") as refused:
        ApiSettings.from_env({"SITELINK_EVENTS_SECRET": f"{SECRET},short"})
    assert "short" not in str(refused.value)
    with pytest.raises(ValueError, match="SITELINK_EVENTS_ATTEMPTS"):
        ApiSettings.from_env({"SITELINK_EVENTS_ATTEMPTS": "0"})
