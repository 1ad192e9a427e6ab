"""The pull consumer, against a queue that keeps Cloudflare's contract and one that breaks it. No message is lost or delayed."""

import asyncio
import base64
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from activities.bucket.keys import UploadRef
from activities.bucket.records import SheetStatus
from activities.bucket.storage import Bucket
from api.progress.runs import Runs
from api.progress.status import Status
from api.r2.events import Message, R2Events, Verdict, unreadable_events
from api.r2.pull import BATCH_SIZE, Consumer, PullQueue, sent_body
from api.r2.settings import CLOUDFLARE, PullSettings
from tests.servers.queue import TOKEN, FakeQueue, Trouble, event, serving
from tests.unit.api_fakes import REF, UNAVAILABLE, FakeTemporal, accept, snapshot
from tests.waiting import until_async

READY, PENDING = SheetStatus.READY, SheetStatus.PENDING
IDLE_S = 0.01


@pytest.fixture
def queue() -> Iterator[FakeQueue]:
    """An empty queue whose clock runs 100 times as fast as the real one."""
    with serving(FakeQueue(speed=100)) as queue:
        yield queue


@asynccontextmanager
async def consuming(queue: FakeQueue, bucket: Bucket, temporal: FakeTemporal, *, visibility_s: float = 600) -> AsyncIterator[asyncio.Event]:
    """Runs the consumer, which gathers for 20 ms, and stops it at the end."""
    settings = PullSettings.from_env(queue.environment)
    assert settings is not None
    runs = Runs(temporal.connect)
    events = R2Events(bucket, Status(bucket, runs), runs, gather_s=0.02)
    async with httpx2.AsyncClient(timeout=120, trust_env=False) as http:
        consumer = Consumer(PullQueue(settings, http), events, idle_s=IDLE_S, visibility_s=visibility_s, first_backoff_s=IDLE_S)
        stop = asyncio.Event()
        running = asyncio.create_task(consumer.run(stop))
        try:
            yield stop
        finally:
            stop.set()
            async with asyncio.timeout(120):
                await running


def signalled_sheets(temporal: FakeTemporal) -> set[int]:
    """Every sheet that was signalled to Temporal."""
    return {sheet for start in temporal.starts for sheet in start["start_signal_args"][0].sheets}


async def test_every_message_ends_acknowledged(queue: FakeQueue, bucket: Bucket, temporal: FakeTemporal) -> None:
    """Several batches of our events and other events are acknowledged, and the sheets that are not ready are signalled."""
    await accept(bucket)
    temporal.state = snapshot(*[READY, PENDING] * 125)
    sent = [queue.send(event("plans", REF.descriptor(sheet))) for sheet in range(1, 251)]
    sent += [queue.send(event("plans", "x.txt")), queue.send(event("plans", REF.descriptor(1), "DeleteObject"))]
    async with consuming(queue, bucket, temporal):
        await until_async(lambda: queue.is_empty)
    assert sorted(queue.acknowledged) == sorted(sent)
    assert signalled_sheets(temporal) == set(range(2, 251, 2))
    assert queue.retried == []
    pulls = [request for action, request in queue.requests if action == "pull"]
    assert {request["batch_size"] for request in pulls} == {BATCH_SIZE}


async def test_content_types_are_decoded(queue: FakeQueue, bucket: Bucket, temporal: FakeTemporal) -> None:
    """``json`` and ``bytes`` come in base64, ``text`` as it is."""
    await accept(bucket)
    temporal.state = snapshot(PENDING, PENDING, PENDING)
    texts = [event("plans", REF.descriptor(sheet)) for sheet in (1, 2, 3)]
    queue.send(texts[0])
    queue.send(str(texts[1]).replace("'", '"'), "text")
    queue.send(str(texts[2]).replace("'", '"').encode(), "bytes")
    async with consuming(queue, bucket, temporal):
        await until_async(lambda: queue.is_empty)
    assert signalled_sheets(temporal) == {1, 2, 3}
    assert queue.retried == []


@pytest.mark.parametrize(
    ("body", "content_type", "sent"),
    [
        (base64.b64encode(b'{"a":1}').decode(), "json", b'{"a":1}'),
        (base64.b64encode(b"\x00\xff").decode(), "bytes", b"\x00\xff"),
        ("abcd", "text", b"abcd"),
        ('{"a":1}', "json", b'{"a":1}'),
        (base64.b64encode(b'{"a":1}').decode(), None, b'{"a":1}'),
        ("n\u00e9", "bytes", "n\u00e9".encode()),
    ],
)
def test_a_body_is_decoded_to_the_sent_bytes(body: str, content_type: str | None, sent: bytes) -> None:
    """For each content type, and for a body that is not base64."""
    assert sent_body(body, content_type) == sent


async def test_a_poison_message_is_kept_aside_and_delays_no_other(queue: FakeQueue, bucket: Bucket, temporal: FakeTemporal) -> None:
    """It is kept aside and acknowledged at the 5th delivery. The messages beside it are done at the first."""
    await accept(bucket)
    temporal.state = snapshot(*[PENDING] * 5)
    poison = queue.send(b"\x00no event", "bytes")
    good = [queue.send(event("plans", REF.descriptor(sheet))) for sheet in range(1, 6)]
    async with consuming(queue, bucket, temporal):
        await until_async(lambda: len(queue.acknowledged) == 5)
        assert sorted(queue.acknowledged) == sorted(good)
        assert queue.messages[poison].attempts < 5
        await until_async(lambda: queue.is_empty)
    assert queue.acknowledged[-1] == poison
    assert queue.retried == [(poison, delay) for delay in (5, 10, 20, 40)]
    (kept,) = unreadable_events(bucket)
    assert (kept["message"], kept["attempts"], base64.b64decode(str(kept["body"]))) == (poison, 5, b"\x00no event")


async def test_temporal_down_and_up_again_loses_nothing(queue: FakeQueue, bucket: Bucket, temporal: FakeTemporal) -> None:
    """While Temporal is down, no event is acknowledged or kept aside. Afterwards every event is handled."""
    await accept(bucket)
    temporal.state = temporal.start_error = UNAVAILABLE
    sent = [queue.send(event("plans", REF.descriptor(sheet))) for sheet in range(1, 8)]
    async with consuming(queue, bucket, temporal):
        await until_async(lambda: all(queue.messages[name].attempts > 6 for name in sent))
        assert (queue.acknowledged, queue.dead, unreadable_events(bucket)) == ([], [], [])
        temporal.state, temporal.start_error = snapshot(*[PENDING] * 7), None
        queue.advance(3600)
        await until_async(lambda: queue.is_empty)
    assert sorted(queue.acknowledged) == sorted(sent)
    assert signalled_sheets(temporal) == set(range(1, 8))


@pytest.mark.parametrize("seed", range(4))
async def test_a_bad_queue_changes_nothing(bucket: Bucket, temporal: FakeTemporal, seed: int) -> None:
    """With reordered, repeated, lost and late messages, each message is acknowledged, and only sheets that are not ready are signalled."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    await accept(bucket)
    other = UploadRef("acme", "tower", "b2", REF.upload)
    await accept(bucket, other)
    temporal.state = snapshot(*[READY, PENDING] * 30)
    with serving(FakeQueue(speed=100, seed=seed)) as queue:
        queue.trouble = Trouble(shuffle=True, duplicate=0.2, lose_answer=0.2, end_lease=0.2, errors=[500, 429, 503, 500])
        sent = [queue.send(event("plans", chance.choice((REF, other)).descriptor(chance.randint(1, 60)))) for _ in range(150)]
        sent.append(queue.send("no event", "text"))
        async with consuming(queue, bucket, temporal, visibility_s=20):
            await until_async(lambda: len(queue.acknowledged) > 50)
            queue.trouble.errors += [500, 429, 200, 503]
            await until_async(lambda: queue.is_empty)
        assert sorted(queue.acknowledged) == sorted(sent)
    assert signalled_sheets(temporal) <= set(range(2, 61, 2))
    assert {start["start_signal"] for start in temporal.starts} == {"sheets_stored"}
    assert len(unreadable_events(bucket)) == 1


async def test_a_lease_that_ends_before_the_ack_is_harmless(queue: FakeQueue, bucket: Bucket, temporal: FakeTemporal) -> None:
    """The message comes again and is handled again. In the end it is acknowledged and not kept aside."""
    await accept(bucket)
    temporal.state = snapshot(PENDING)
    name = queue.send(event("plans", REF.descriptor(1)))
    queue.trouble.end_lease = 1
    async with consuming(queue, bucket, temporal):
        await until_async(lambda: queue.is_empty)
    assert queue.acknowledged == [name]
    assert unreadable_events(bucket) == []


async def test_failed_requests_to_the_queue_are_repeated(
    queue: FakeQueue, bucket: Bucket, temporal: FakeTemporal, caplog: pytest.LogCaptureFixture
) -> None:
    """After a pause, or after the answer's ``Retry-After``. A failed acknowledgement is sent again. No log shows the token."""
    await accept(bucket)
    temporal.state = snapshot(PENDING)
    queue.trouble.errors = [500, 429]
    name = queue.send(event("plans", REF.descriptor(1)))
    async with consuming(queue, bucket, temporal):
        await until_async(lambda: [action for action, _ in queue.requests].count("pull") >= 3)
        queue.trouble.errors = [429, 429]
        await until_async(lambda: queue.is_empty)
    assert queue.acknowledged == [name]
    assert "HTTP 500" in caplog.text
    assert TOKEN not in caplog.text


async def test_a_wrong_token_is_logged_without_the_token(
    queue: FakeQueue, bucket: Bucket, temporal: FakeTemporal, caplog: pytest.LogCaptureFixture
) -> None:
    """The consumer goes on, because somebody may correct the token's permissions at Cloudflare."""
    settings = PullSettings.from_env({**queue.environment, "SITELINK_EVENTS_TOKEN": "secret-wrong-token"})
    assert settings is not None
    runs = Runs(temporal.connect)
    stop = asyncio.Event()
    async with httpx2.AsyncClient(timeout=120, trust_env=False) as http:
        consumer = Consumer(PullQueue(settings, http), R2Events(bucket, Status(bucket, runs), runs), idle_s=IDLE_S)
        running = asyncio.create_task(consumer.run(stop))
        await until_async(lambda: "HTTP 401" in caplog.text)
        stop.set()
        await running
    assert "Authentication error" in caplog.text
    assert "secret-wrong-token" not in caplog.text + repr(settings)


class NotingEvents(R2Events):
    """Sets ``asked`` when the first message comes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.asked = asyncio.Event()

    async def decide(self, message: Message) -> Verdict:
        """Notes the message, and decides."""
        self.asked.set()
        return await super().decide(message)


async def test_a_stopping_consumer_finishes_its_messages(queue: FakeQueue, bucket: Bucket, temporal: FakeTemporal) -> None:
    """Gathering ends at once, and the pulled messages are handled and acknowledged."""
    await accept(bucket)
    temporal.state = snapshot(PENDING)
    settings = PullSettings.from_env(queue.environment)
    assert settings is not None
    runs = Runs(temporal.connect)
    name, stop = queue.send(event("plans", REF.descriptor(1))), asyncio.Event()
    async with httpx2.AsyncClient(timeout=120, trust_env=False) as http:
        events = NotingEvents(bucket, Status(bucket, runs), runs, gather_s=3600)
        running = asyncio.create_task(Consumer(PullQueue(settings, http), events, idle_s=IDLE_S).run(stop))
        await events.asked.wait()
        stop.set()
        async with asyncio.timeout(120):
            await running
    assert (queue.acknowledged, signalled_sheets(temporal)) == ([name], {1})


def test_pulling_is_off_by_default() -> None:
    """Without settings there is no queue. If some are missing, the error names these and does not show the token."""
    assert PullSettings.from_env({}) is None
    assert PullSettings.from_env({"SITELINK_EVENTS_ACCOUNT": "", "SITELINK_EVENTS_API": "http://127.0.0.1:1"}) is None
    with pytest.raises(ValueError, match="SITELINK_EVENTS_ACCOUNT and SITELINK_EVENTS_QUEUE must be set") as refused:
        PullSettings.from_env({"SITELINK_EVENTS_TOKEN": "hidden-token"})
    assert "hidden-token" not in str(refused.value)
    settings = PullSettings.from_env({"SITELINK_EVENTS_ACCOUNT": "a1", "SITELINK_EVENTS_QUEUE": "b2", "SITELINK_EVENTS_TOKEN": "c3"})
    assert settings == PullSettings("a1", "b2", "c3", 5, CLOUDFLARE)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SITELINK_EVENTS_ACCOUNT", "a/../b"),
        ("SITELINK_EVENTS_QUEUE", "my-queue"),
        ("SITELINK_EVENTS_TOKEN", "a b"),
        ("SITELINK_EVENTS_API", "ftp://127.0.0.1"),
        ("SITELINK_EVENTS_API", "http://api.example.com"),
        ("SITELINK_EVENTS_API", "https://user@api.example.com"),
        ("SITELINK_EVENTS_ATTEMPTS", "101"),
    ],
)
def test_settings_are_checked(name: str, value: str) -> None:
    """A value that cannot be used is refused by its name. So is an address that would send the token unencrypted to another machine."""
    environ = {"SITELINK_EVENTS_ACCOUNT": "a1", "SITELINK_EVENTS_QUEUE": "b2", "SITELINK_EVENTS_TOKEN": "c3", name: value}
    with pytest.raises(ValueError, match=name):
        PullSettings.from_env(environ)
