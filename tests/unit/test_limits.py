"""How many requests, streams and unfinished uploads an address and an organization may have."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.records import SheetStatus
from activities.bucket.storage import Bucket
from api.app import create_app
from api.http.counters import MemoryCounters
from api.http.limits import RateLimits
from api.settings import ApiSettings
from tests.unit.api_fakes import BASE, PATH, PDF, REF, URL, FakeTemporal, RawRequest, Upstream, accept, snapshot
from tests.unit.api_server import RawConnection, serving
from tests.waiting import DEADLINE_S, until_async

EVENT_SOURCE = {"Accept": "text/event-stream"}


@asynccontextmanager
async def client_with(
    bucket: Bucket, temporal: FakeTemporal, address: str = "192.0.2.1", **settings: Any
) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of an API with these settings."""
    app = create_app(bucket, temporal.connect, ApiSettings(BucketSettings("file:///unused"), **settings))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app, client=(address, 1)), base_url=URL) as client:
        yield client


async def test_address_has_a_limit(bucket: Bucket, temporal: FakeTemporal) -> None:
    """A refusal says when to come back; health checks are not counted."""
    async with client_with(bucket, temporal, limit_address="3/hour") as client:
        assert [(await client.get("/livez")).status_code for _ in range(5)] == [200] * 5
        assert [(await client.get("/")).status_code for _ in range(4)] == [200, 200, 200, 429]
        answer = await client.get(BASE)
    assert (answer.status_code, answer.json()["type"]) == (429, "TooManyRequests")
    assert "192.0.2.1" in answer.json()["detail"]
    assert 1 <= int(answer.headers["retry-after"]) <= 3600
    assert "content-security-policy" in answer.headers


async def test_organization_has_a_limit(bucket: Bucket, temporal: FakeTemporal) -> None:
    """Another organization still has its own. A name that is no id is not counted."""
    async with client_with(bucket, temporal, limit_organization="2/hour") as client:
        assert [(await client.get(BASE)).status_code for _ in range(3)] == [200, 200, 429]
        assert (await client.get(BASE.replace("acme", "other"))).status_code == 200
        assert [(await client.get(BASE.replace("acme", "-"))).status_code for _ in range(3)] == [422] * 3


async def test_limit_can_be_off(bucket: Bucket, temporal: FakeTemporal) -> None:
    """Then nobody is refused."""
    async with client_with(bucket, temporal, limit_organization="off", limit_address="off") as client:
        assert {(await client.get(BASE)).status_code for _ in range(20)} == {200}


async def test_event_source_comes_back_after_a_refusal(bucket: Bucket, temporal: FakeTemporal) -> None:
    """An error answer would end it for good. An empty stream makes it come back when it may."""
    async with client_with(bucket, temporal, limit_address="1/hour") as client:
        await client.get("/")
        answer = await client.get(f"{PATH}/events", headers=EVENT_SOURCE)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert answer.text == f"retry: {answer.headers['retry-after']}000\n: TooManyRequests\n\n"


async def test_clients_of_one_ipv6_network_share_a_limit() -> None:
    """An attacker has 2^64 addresses there."""
    limits = RateLimits("1/hour", "off", "memory://")
    await limits.check_address("2001:db8::1")
    with pytest.raises(Exception, match="2001:db8::/64"):
        await limits.check_address("2001:db8::2")
    await limits.check_address("2001:db8:0:1::1")


async def test_nobody_is_refused_while_the_counters_are_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that fails does not end the service."""

    async def fail(*_: object, **__: object) -> int:
        raise ConnectionError

    monkeypatch.setattr(MemoryCounters, "incr", fail)
    monkeypatch.setattr(MemoryCounters, "base_exceptions", (ConnectionError,))
    limits = RateLimits("1/hour", "off", "memory://")
    for _ in range(3):
        await limits.check_address("192.0.2.1")


async def test_silent_store_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that does not answer, not even by an error, counts as away."""

    async def silent(*_: object, **__: object) -> int:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(MemoryCounters, "incr", silent)
    limits = RateLimits("1/hour;1/day", "off", "memory://", timeout_s=0.01)
    async with asyncio.timeout(DEADLINE_S):
        for _ in range(3):
            await limits.check_address("192.0.2.1")


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"limit_address": "many"}, "SITELINK_LIMIT_ADDRESS"),
        ({"limit_organization": "1/week?"}, "SITELINK_LIMIT_ORGANIZATION"),
        ({"limits_storage": "nothing://user:a-password@host"}, "SITELINK_LIMITS_STORAGE"),
        ({"limits_storage": "redis://user:a-password@host"}, "SITELINK_LIMITS_STORAGE"),
    ],
)
def test_unusable_limit_is_refused_by_name(bucket: Bucket, temporal: FakeTemporal, settings: dict[str, str], name: str) -> None:
    """Also a storage whose client is not installed. A password is not shown."""
    with pytest.raises(ValueError, match=name) as refusal:
        create_app(bucket, temporal.connect, ApiSettings(BucketSettings("file:///unused"), **settings))  # type: ignore[arg-type]
    assert "a-password" not in str(refusal.value)
    assert "a-password" not in repr(ApiSettings.from_env({"SITELINK_LIMITS_STORAGE": "redis://user:a-password@host"}))


async def test_streams_are_limited(bucket: Bucket) -> None:
    """Three quarters of the streams are one organization's at most. A stream that ends makes room."""
    upstream, other = Upstream(snapshot(SheetStatus.PENDING)), UploadRef("other", "tower", "a1", REF.upload)
    for ref in (REF, other):
        await accept(bucket, ref)
    app = create_app(bucket, upstream.connect, ApiSettings(BucketSettings("file:///unused"), max_streams=4))
    paths = [f"{path}/events" for path in (PATH, PATH.replace("acme", "other"))]

    async def opened(path: str, **headers: str) -> RawRequest:
        request = RawRequest(app, "GET", path, headers)
        await until_async(lambda: len(request.sent) > 1)
        return request

    ours = [await opened(paths[0]) for _ in range(3)]
    assert [request.status for request in ours] == [200] * 3
    assert (await opened(paths[0])).status == 429
    assert b"retry: " in (await opened(paths[0], **EVENT_SOURCE)).sent[1]["body"]
    theirs = await opened(paths[1])
    assert theirs.status == 200
    assert (await opened(paths[1])).status == 503
    ours[0].disconnect()
    await ours[0].task
    again = await opened(paths[0])
    assert again.status == 200
    for request in (*ours[1:], theirs, again):
        request.disconnect()
        await request.task


async def test_streams_that_open_at_once_are_limited(bucket: Bucket) -> None:
    """As after a restart of the server, when all clients come back and no upload is known yet."""
    await accept(bucket)
    app = create_app(bucket, Upstream(snapshot(SheetStatus.PENDING)).connect, ApiSettings(BucketSettings("file:///unused"), max_streams=4))
    requests = [RawRequest(app, "GET", f"{PATH}/events", {}) for _ in range(8)]
    await until_async(lambda: all(len(request.sent) > 1 for request in requests))
    assert sorted(request.status or 0 for request in requests) == [200] * 3 + [429] * 5
    for request in requests:
        request.disconnect()
        await request.task


async def test_unfinished_uploads_are_limited(bucket: Bucket, temporal: FakeTemporal) -> None:
    """A further one is refused before its body is read; the same upload again is not, and other organizations are not."""
    temporal.open_runs = 4
    async with client_with(bucket, temporal, max_open_uploads=5) as client:
        first = await client.post(BASE, content=PDF, headers={"Idempotency-Key": "one"})
        assert first.status_code == 202
        temporal.open_runs = 5
        refused = await client.post(BASE, content=PDF)
        assert (refused.status_code, refused.json()["type"]) == (429, "QuotaExceeded")
        assert refused.json()["detail"] == "5 uploads of acme are not finished, limit 5"
        assert refused.headers["retry-after"] == "60"
        again = await client.post(BASE, content=PDF, headers={"Idempotency-Key": "one"})
        assert again.json()["ref"] == first.json()["ref"]
        assert (await client.post(BASE.replace("acme", "other"), content=PDF)).status_code == 202


async def test_request_costs_the_same_however_many_addresses_are_counted() -> None:
    """Whoever owns an IPv6 network of 2^16 smaller ones must not slow down the requests of all."""
    limits = RateLimits("12000/minute;12000/hour", "off", "memory://")

    async def cost_s() -> float:
        """The time of the fastest of many requests, so that a busy machine does not count."""
        times = []
        for _ in range(50):
            began = time.perf_counter()
            await limits.check_address("192.0.2.1")
            await asyncio.sleep(0)  # also what the request leaves to do for later
            times.append(time.perf_counter() - began)
        return min(times)

    alone_s = await cost_s()
    for number in range(5000):
        await limits.check_address(f"2001:db8:0:{number:x}::1")
    assert await cost_s() < 5 * alone_s


async def test_counters_are_bounded_and_end() -> None:
    """A counter begins anew when its time is over. Old ones go, also those whose time is not over when there are too many."""
    now = 1000.0
    counters = MemoryCounters(now=lambda: now, most=100)
    assert [await counters.incr("a", 60) for _ in range(3)] == [1, 2, 3]
    assert (await counters.get("a"), await counters.get_expiry("a")) == (3, 1060.0)
    now = 1060.0
    assert await counters.get("a") == 0
    assert await counters.incr("a", 60) == 1
    for number in range(1000):
        await counters.incr(f"b{number}", 60)
    assert len(counters) == 100
    now = 1120.0
    for _ in range(60):
        await counters.incr("c", 60)
    assert len(counters) == 1


@pytest.mark.parametrize(("proxies", "status"), [(("127.0.0.0/8", "192.0.2.66"), b"200"), (("192.0.2.66",), b"429")])
async def test_only_listed_proxies_name_the_address(
    bucket: Bucket, temporal: FakeTemporal, proxies: tuple[str, ...], status: bytes
) -> None:
    """An address that anybody else writes into X-Forwarded-For does not count, nor does one that a client wrote before the proxy."""
    app = create_app(bucket, temporal.connect, ApiSettings(BucketSettings("file:///unused"), limit_address="1/hour"))
    answers = []
    async with serving(app, proxies=proxies) as port:
        for number in (1, 2):
            forwarded = f"X-Forwarded-For: 203.0.113.9, 198.51.100.{number}, 192.0.2.66"
            head = f"GET / HTTP/1.1\r\nHost: localhost\r\n{forwarded}\r\nConnection: close\r\n\r\n"
            answers.append((await (await RawConnection.open(port, head)).rest()).split()[1])
    assert answers == [b"200", status]


@pytest.mark.parametrize("text", ["*", "a-proxy", "10.0.0.1/8", ","])
def test_unusable_proxy_is_refused_by_name(text: str) -> None:
    """Above all not every address: then every client would choose its own."""
    with pytest.raises(ValueError, match="SITELINK_PROXIES"):
        ApiSettings.from_env({"SITELINK_PROXIES": text})
    assert ApiSettings.from_env({"SITELINK_PROXIES": "10.0.0.0/8, ::1"}).proxies == ("10.0.0.0/8", "::1")


def test_store_of_the_limits_may_come_from_a_file(tmp_path: Path) -> None:
    """As every setting that may hold a password."""
    file = tmp_path / "store"
    file.write_text("redis://user:a-password@host\n")
    assert ApiSettings.from_env({"SITELINK_LIMITS_STORAGE_FILE": str(file)}).limits_storage == "redis://user:a-password@host"
