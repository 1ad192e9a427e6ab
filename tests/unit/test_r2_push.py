"""``POST /v1/events/r2``: who may, what it answers, and that it is off by default."""

import json
import time
from collections.abc import Mapping
from typing import Any

import httpx2 as httpx
import pytest
from starlette.applications import Starlette

from activities.bucket.records import SheetStatus
from activities.bucket.storage import Bucket, BucketSettings
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


def stored(sheet: int) -> dict[str, Any]:
    """The sheet's ``.dzi`` was written."""
    return message(f"m{sheet}", event("plans", REF.descriptor(sheet)))


async def push(
    app: Starlette,
    *messages: dict[str, Any],
    body: bytes | None = None,
    secret: str = SECRET,
    age_s: float = 0,
    headers: Mapping[str, str] | None = None,
) -> httpx.Response:
    """Sends a signed batch."""
    data = json.dumps({"messages": messages}).encode() if body is None else body
    timestamp = str(int(time.time() - age_s))
    signed = {"SiteLink-Timestamp": timestamp, "SiteLink-Signature": signature(secret, timestamp, data)}
    async with client_of(app) as client:
        return await client.post(R2_EVENTS, content=data, headers={**signed, **(headers or {})})


async def test_it_is_off_by_default(bucket: Bucket, temporal: FakeTemporal) -> None:
    """Without a secret nothing is there, whoever signs."""
    app = make_app(bucket, temporal)
    answer = await push(app, stored(1), secret="")
    assert (answer.status_code, answer.json()["type"]) == (404, "NotFound")
    assert (await push(app, stored(1), headers={"Host": "plans.example.com"})).status_code == 421


async def test_a_signed_batch_is_decided_message_by_message(app: Starlette, bucket: Bucket, temporal: FakeTemporal) -> None:
    """What is done is acknowledged; what is no event comes again, and at its fifth time is kept aside."""
    await accept(bucket)
    temporal.state = snapshot(READY, PENDING)
    batch = [stored(1), stored(2), message("poison", "no event"), message("old poison", "no event either", 5)]
    answer = await push(app, *batch)
    assert answer.status_code == 200
    assert answer.json() == {"acks": ["m1", "m2", "old poison"], "retries": [{"id": "poison", "delaySeconds": 5}]}
    assert [start["start_signal_args"][0].sheets for start in temporal.starts] == [(2,)]
    async with client_of(app) as client:
        (kept,) = (await client.get(UNREADABLE_EVENTS)).json()["unreadable"]
    assert kept["message"] == "old poison"


async def test_what_cannot_be_done_now_is_a_503_that_says_which(app: Starlette, bucket: Bucket, temporal: FakeTemporal) -> None:
    """A problem document, and in it every message's fate."""
    await accept(bucket)
    temporal.state = temporal.start_error = UNAVAILABLE
    answer = await push(app, stored(1), message("other", event("plans", "x.txt")), message("poison", "no event"))
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
    assert answer.headers["retry-after"]
    document = answer.json()
    assert (document["type"], document["acks"]) == ("TemporalUnavailable", ["other"])
    assert document["retries"] == [{"id": "m1", "delaySeconds": 5}, {"id": "poison", "delaySeconds": 5}]


async def test_any_host_and_origin_may_carry_a_signed_request(app: Starlette, bucket: Bucket) -> None:
    """A tunnel has its own name; all else stays closed to it."""
    answer = await push(app, headers={"Host": "plans.example.com", "Origin": "https://elsewhere.example", "Sec-Fetch-Site": "cross-site"})
    assert (answer.status_code, answer.json()) == (200, {"acks": [], "retries": []})
    async with client_of(app) as client:
        for path in (UNREADABLE_EVENTS, f"{R2_EVENTS}/", "/"):
            assert (await client.get(path, headers={"Host": "plans.example.com"})).status_code == 421


async def test_an_older_secret_is_known_while_it_is_replaced(app: Starlette) -> None:
    """Either signs."""
    assert (await push(app, secret=OLD_SECRET)).status_code == 200


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
        ({}, {"SiteLink-Timestamp": str(int(time.time()) + 1)}),
        ({}, {"SiteLink-Signature": ""}),
        ({}, {"SiteLink-Signature": "0" * 64}),
    ],
)
async def test_a_wrong_signature_is_refused(
    app: Starlette, bucket: Bucket, temporal: FakeTemporal, how: dict[str, Any], headers: dict[str, str]
) -> None:
    """Another secret, another time, none at all: a 401, and nothing is done."""
    await accept(bucket)
    answer = await push(app, stored(1), **how, headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (401, "BadSignature")
    assert answer.headers["www-authenticate"]
    assert SECRET not in answer.text
    assert (temporal.queries, temporal.starts) == (0, [])


async def test_a_signature_is_of_its_body(app: Starlette) -> None:
    """One byte more, and it is none."""
    timestamp = str(int(time.time()))
    headers = {"SiteLink-Timestamp": timestamp, "SiteLink-Signature": signature(SECRET, timestamp, b'{"messages":[]}')}
    async with client_of(app) as client:
        assert (await client.post(R2_EVENTS, content=b'{"messages":[]}', headers=headers)).status_code == 200
        assert (await client.post(R2_EVENTS, content=b'{"messages":[]} ', headers=headers)).status_code == 401


async def test_a_body_is_bounded(app: Starlette) -> None:
    """Nobody fills the memory before the signature is looked at."""
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
async def test_what_is_no_batch_is_refused(app: Starlette, body: bytes) -> None:
    """Signed, but by no Worker of ours."""
    answer = await push(app, body=body)
    assert (answer.status_code, answer.json()["type"]) == (400, "InvalidRequest")


async def test_any_text_may_be_a_message(app: Starlette) -> None:
    """Also one that no encoding likes."""
    answer = await push(app, body=b'{"messages": [{"id": "a", "attempts": 5, "body": "\\ud800\\u0000"}]}')
    assert answer.json() == {"acks": ["a"], "retries": []}


def test_secrets_are_checked_and_not_shown() -> None:
    """A short one is refused, without being said; several are separated by commas; the settings do not print them."""
    settings = ApiSettings.from_env({"SITELINK_EVENTS_SECRET": f" {SECRET}, {OLD_SECRET},", "SITELINK_EVENTS_ATTEMPTS": "7"})
    assert (settings.push.secrets, settings.push.attempts) == ((SECRET, OLD_SECRET), 7)
    assert SECRET not in repr(settings)
    assert ApiSettings.from_env({}).push.secrets == ()
    with pytest.raises(ValueError, match="SITELINK_EVENTS_SECRET") as refused:
        ApiSettings.from_env({"SITELINK_EVENTS_SECRET": f"{SECRET},short"})
    assert "short" not in str(refused.value)
    with pytest.raises(ValueError, match="SITELINK_EVENTS_ATTEMPTS"):
        ApiSettings.from_env({"SITELINK_EVENTS_ATTEMPTS": "0"})
