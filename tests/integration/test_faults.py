"""A bucket that fails, dawdles and lies: what a client of it sees, and what becomes of a whole job."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import httpx2
import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client

from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.records import Layout
from activities.bucket.setup import BucketSetup
from activities.bucket.storage import PART_BYTES, Bucket
from activities.errors import ObjectMissing, StorageUnavailable
from deploy.stack import Stack
from tests.chaos.guarantees import Watch, accepted, address, assert_whole, sheets_of
from tests.resources.make_pdfs import plan_set
from tests.servers.faults import (
    Fault,
    Faults,
    Rule,
    answers,
    byte_by_byte,
    cut_short,
    delays,
    faulty,
    hides_every,
    lies_about_put,
    reset_after,
    reset_before,
    reset_in_body,
)
from tests.servers.s3 import TestServer
from tests.waiting import ASK_S, DEADLINE_S, until

PAGES = 3
PLAN = plan_set(PAGES, 500, 400)

KINDS: dict[str, Fault] = {
    "500": answers(500, "InternalError"),
    "503": answers(503, "SlowDown"),
    "429": answers(429, "TooManyRequests"),
    "reset before": reset_before,
    "reset in the body": reset_in_body,
    "reset after": reset_after,
    "byte by byte": byte_by_byte,
    "cut short": cut_short,
}


# The bucket's client


@pytest.fixture
def faults(s3_server: TestServer) -> Iterator[Faults]:
    """Stands in front of the real server."""
    with faulty(s3_server.endpoint) as faults:
        yield faults


@pytest.fixture
def settings(s3_server: TestServer, faults: Faults) -> BucketSettings:
    """A new bucket, seen through the proxy."""
    return replace(s3_server.new_bucket(), endpoint=faults.url)


BODY = bytes(range(256)) * 500


async def stream(size_bytes: int) -> AsyncIterator[bytes]:
    """A body in pieces of a megabyte."""
    for start in range(0, size_bytes, 1 << 20):
        yield bytes(min(1 << 20, size_bytes - start))


READS: dict[str, tuple[Callable[[Bucket], Any], Any]] = {
    "get_range": (lambda bucket: bucket.get_range("get_range/a", 10, 90_000).body, BODY[10:90_000]),
    "get_range_async": (lambda bucket: asyncio.run(bucket.get_range_async("get_range_async/a", 10, 90_000)).body, BODY[10:90_000]),
    "get": (lambda bucket: bucket.get("get/a").body, BODY),
    "get_async": (lambda bucket: asyncio.run(bucket.get_async("get_async/a")).body, BODY),
    "chunks": (lambda bucket: b"".join(bucket.chunks("chunks/a")), BODY),
    "chunks_from": (lambda bucket: b"".join(bucket.chunks("chunks_from/a", 10)), BODY[10:]),
    "head": (lambda bucket: bucket.head("head/a").size, len(BODY)),
    "objects": (lambda bucket: [info.key for info in bucket.objects("objects/")], ["objects/a"]),
    "directories": (lambda bucket: bucket.directories("directories/"), ["x"]),
}
WRITES: dict[str, tuple[Callable[[Bucket], Any], Any]] = {
    "put": (lambda bucket: bucket.put("put/a", BODY), None),
    "put_seen": (lambda bucket: bucket.put_seen("put_seen/a", BODY), None),
    "create_async": (lambda bucket: asyncio.run(bucket.create_async("create_async/a", BODY)), True),
    "put_archive": (lambda bucket: bucket.put_archive_seen("put_archive/a", [BODY] * 9, BODY, 9 * len(BODY)), None),
    "put_large": (lambda bucket: bucket.put_archive("put_large/a", [bytes(PART_BYTES)] * 5, 5 * PART_BYTES), None),
    "put_stream": (lambda bucket: asyncio.run(bucket.put_stream("put_stream/a", stream(3 << 20))), None),
    "put_parts": (lambda bucket: asyncio.run(bucket.put_stream("put_parts/a", stream(2 * PART_BYTES))), None),
    "delete": (lambda bucket: bucket.delete(["delete/a", "delete/b"]), None),
}
ONCE_ONLY = {"objects", "directories", "put_parts", "put_large", "delete"}
"""May fail at once where obstore does not know whether it may ask again, or begins to read before it has all: that is left to Temporal."""


def outcomes(bucket: Bucket, calls: dict[str, tuple[Callable[[Bucket], Any], Any]]) -> dict[str, Any]:
    """What each call gives, or its error; all at once, for most of each is waiting."""

    def outcome(call: Callable[[Bucket], Any]) -> Any:
        try:
            return call(bucket)
        except StorageUnavailable as error:
            return error

    with ThreadPoolExecutor(len(calls)) as threads:
        return dict(zip(calls, threads.map(lambda pair: outcome(pair[0]), calls.values()), strict=True))


def prepared(settings: BucketSettings) -> Bucket:
    """A bucket with what the reads look for."""
    bucket = Bucket(settings)
    for name in READS:
        bucket.put(f"{name}/x/b" if name == "directories" else f"{name}/a", BODY)
    return bucket


@pytest.mark.parametrize("fault", KINDS.values(), ids=KINDS)
def test_one_fault_gives_the_truth_or_a_named_error(faults: Faults, settings: BucketSettings, fault: Fault) -> None:
    """Whatever happens to the first request of a call, it gives the whole truth or StorageUnavailable; asked again, it gives the truth."""
    bucket = prepared(settings)
    calls = {**READS, **WRITES}
    rules = {name: Rule(fault, target=rf"[/=]{name}(/|$)" if name != "delete" else r"\?delete", times=1) for name in calls}
    faults.lay(*rules.values())
    given = outcomes(bucket, calls)
    assert {name: rule.struck for name, rule in rules.items()} == dict.fromkeys(calls, 1)
    for name, (call, right) in calls.items():
        if isinstance(given[name], StorageUnavailable):
            assert name in ONCE_ONLY, (name, given[name])
            assert call(bucket) == right, name
        else:
            assert given[name] == right, name
    for name in ("put", "put_seen", "create_async"):
        assert bucket.get(f"{name}/a").body == BODY
    assert bucket.get("put_archive/a").body == 9 * BODY
    assert bucket.head("put_large/a").size == 5 * PART_BYTES
    assert bucket.get("put_stream/a").body == bytes(3 << 20)
    assert bucket.get("put_parts/a").body == bytes(2 * PART_BYTES)


def test_a_body_that_always_ends_too_soon_is_never_taken_for_whole(faults: Faults, settings: BucketSettings) -> None:
    """Every read raises under its name; so does every write that gets no answer, and the multipart uploads that began are aborted.

    A part that the server was writing meanwhile may bring the upload back, as S3 allows it: then the sweep's abort ends it.
    https://docs.aws.amazon.com/AmazonS3/latest/API/API_AbortMultipartUpload.html
    """
    bucket = prepared(settings)
    faults.lay(Rule(cut_short, method="GET"), Rule(reset_after, method="PUT"), Rule(reset_before, method="POST", target="delete"))
    reads = {name: call for name, call in READS.items() if name != "head"}
    given = outcomes(bucket, {**reads, **WRITES})
    assert {name: value for name, value in given.items() if not isinstance(value, StorageUnavailable)} == {}
    faults.lay()
    aborted = faults.sent("DELETE", "uploadId=")
    assert {name for name in ("put_parts/a", "put_large/a") for sent in aborted if name in sent} == {"put_large/a", "put_parts/a"}
    setup = BucketSetup(settings)
    for upload in setup.unfinished_uploads():
        assert any(upload.upload_id in sent for sent in aborted)
        setup.abort(upload.key, upload.upload_id)
    assert setup.unfinished_uploads() == []


async def test_a_write_that_was_lied_about_is_noticed_where_it_counts(faults: Faults, settings: BucketSettings) -> None:
    """The answer 200 is no proof of a ``.dzi``, a source or an ``upload.json``."""
    bucket = Bucket(settings)
    faults.lay(Rule(lies_about_put, method="PUT"))
    with pytest.raises(StorageUnavailable, match="said that it has written a"):
        await asyncio.to_thread(bucket.put_seen, "a", BODY)
    with pytest.raises(StorageUnavailable, match="said that it has written b"):
        await bucket.put_stream_seen("b", stream(1 << 20))
    with pytest.raises(StorageUnavailable, match="said that it has written c"):
        await bucket.create_seen_async("c", BODY)
    for key in ("a", "b", "c"):
        with pytest.raises(ObjectMissing):
            bucket.get(key)


async def test_a_lie_about_a_second_write_is_noticed_though_the_first_has_its_size(faults: Faults, settings: BucketSettings) -> None:
    """A manifest that only says when it was reconciled, and a mark of deletion, stand where another object stood."""
    bucket = Bucket(settings)
    await asyncio.to_thread(bucket.put_seen, "a", b"reconciled at 09:30")
    faults.lay(Rule(lies_about_put, method="PUT"))
    with pytest.raises(StorageUnavailable, match="said that it has written a"):
        await asyncio.to_thread(bucket.put_seen, "a", b"reconciled at 10:30")
    with pytest.raises(StorageUnavailable, match="said that it has written a"):
        await asyncio.to_thread(bucket.put_seen, "a", b"reconciled at 10:30")


async def test_an_object_of_another_is_not_taken_for_ones_own(faults: Faults, settings: BucketSettings) -> None:
    """A create whose answer was lost says that it did; one that came second says that it did not, also when its answer was lost."""
    bucket = Bucket(settings)
    faults.lay(Rule(reset_after, method="PUT", target="key", every=2))
    assert [await bucket.create_async("key", body) for body in (b"first", b"second", b"first of all")] == [True, False, False]
    assert (await bucket.get_async("key")).body == b"first"


# The whole job


@dataclass
class Site:
    """A stack whose bucket is behind the proxy, and what an undisturbed run leaves there."""

    stack: Stack
    faults: Faults
    settings: BucketSettings
    """Of the bucket itself, without the proxy."""
    expected: dict[str, str]
    """In the default layout."""
    others: dict[Layout, dict[str, str]] = field(default_factory=dict)

    def expected_of(self, layout: Layout) -> dict[str, str]:
        """The same in another layout."""
        if layout not in self.others:
            ref = accepted(self.stack, PLAN, layout=layout)
            with Watch(self.stack, ref) as watch:
                assert watch.end()["status"] == "complete"
            self.others[layout] = sheets_of(Bucket(self.settings), ref)
        return self.others[layout]


@pytest.fixture(scope="module")
def site(new_stack_of_module: Callable[..., Stack], s3_server: TestServer) -> Iterator[Site]:
    """One for all tests of the whole job: each has an upload of its own, and lays its own rules."""
    with ExitStack() as opened:
        faults = opened.enter_context(faulty(s3_server.endpoint))
        made = s3_server.new_bucket("site")
        stack = new_stack_of_module(**s3_server.environment(replace(made, endpoint=faults.url)))
        ref = accepted(stack, PLAN)
        with Watch(stack, ref) as watch:
            assert watch.end()["status"] == "complete"
        expected = sheets_of(Bucket(made), ref)
        assert len(expected) > 100
        yield Site(stack, faults, made, expected)


PLANS_OF_FAULTS: dict[str, list[Rule]] = {
    "busy": [Rule(KINDS[name], every=every) for name, every in (("500", 29), ("503", 31), ("429", 37))],
    "reset": [Rule(fault, every=every) for fault, every in ((reset_before, 29), (reset_in_body, 31), (reset_after, 37))],
    "cut short": [Rule(cut_short, method="GET", every=5), Rule(cut_short, method="PUT", every=31)],
    "byte by byte": [Rule(byte_by_byte, every=3)],
    "away for 3 seconds": [Rule(reset_before, target="sheets/", seconds=3)],
    "lies about tiles": [Rule(lies_about_put, method="PUT", target=r"_files/", every=30, times=3)],
    "lies about records": [Rule(lies_about_put, method="PUT", target=r"\.(pdf|json|dzi)$", every=3, times=4)],
    "lies about the end": [Rule(lies_about_put, method="PUT", target=r"manifest\.json$", times=3)],
    "lists too little": [Rule(hides_every(10), method="GET", target=r"list-type=2.*sheet-", times=2)],
    "all of it": [
        Rule(
            fault,
            method="PUT" if fault is lies_about_put else "",
            chance=chance,
            seed=seed,
        )
        for seed, (fault, chance) in enumerate(
            [*((fault, 0.01) for fault in KINDS.values()), (delays(0.3), 0.02), (lies_about_put, 0.005), (hides_every(50), 0.002)]
        )
    ],
}


PACKED_PLANS_OF_FAULTS: dict[str, list[Rule]] = {
    "busy": [Rule(KINDS[name], every=every, target="sheets/") for name, every in (("500", 3), ("503", 4), ("429", 5))],
    "reset": [Rule(fault, every=every, target="sheets/") for fault, every in ((reset_before, 3), (reset_in_body, 4), (reset_after, 5))],
    "cut short": [Rule(cut_short, method="GET", target="pmtiles", every=2, times=2), Rule(cut_short, method="PUT", every=5)],
    "away for 3 seconds": [Rule(reset_before, target="sheets/", seconds=3)],
    "lies about objects": [Rule(lies_about_put, method="PUT", target=r"pmtiles$", every=2, times=3)],
    "lies about records": [Rule(lies_about_put, method="PUT", target=r"(sheet\.json|thumbnail\.jpeg)$", every=2, times=3)],
}


@pytest.mark.parametrize(
    ("layout", "rules"),
    [
        *(pytest.param(Layout.EXPLODED, rules, id=name) for name, rules in PLANS_OF_FAULTS.items()),
        *(pytest.param(Layout.PACKED, rules, id=f"{name}, packed") for name, rules in PACKED_PLANS_OF_FAULTS.items()),
        pytest.param(Layout.BOTH, PACKED_PLANS_OF_FAULTS["lies about objects"], id="lies about objects, both"),
    ],
)
def test_a_plan_is_complete_and_the_same_through(site: Site, layout: Layout, rules: list[Rule]) -> None:
    """It ends complete, ``sheets/**`` is byte-equal, ``verify`` proves it; the version and the counters never fell on the way."""
    expected = site.expected if layout is Layout.EXPLODED else site.expected_of(layout)
    rules = [replace(rule, struck=0) for rule in rules]
    site.faults.lay(*rules)
    try:
        ref = accepted(site.stack, PLAN, layout=layout)
        with Watch(site.stack, ref) as watch:
            final = watch.end()
    finally:
        site.faults.lay()
    assert (final["status"], final["completedPages"], final["totalPages"]) == ("complete", PAGES, PAGES)
    assert [rule for rule in rules if not rule.struck and rule.chance == 1] == []
    assert_whole(site.settings, ref, expected)
    status = httpx2.get(address(site.stack, ref), timeout=DEADLINE_S).json()
    assert status["version"] == final["version"]


def test_a_deletion_is_not_said_before_its_mark_is_there(site: Site) -> None:
    """While the bucket throws the mark away the client is told to come back; then it is gone for good."""
    ref = accepted(site.stack, PLAN)
    with Watch(site.stack, ref) as watch:
        watch.end()
    rule = Rule(lies_about_put, method="PUT", target=r"upload\.json$", times=1)
    site.faults.lay(rule)
    try:
        refused = httpx2.delete(address(site.stack, ref))
    finally:
        site.faults.lay()
    assert (refused.status_code, refused.json()["type"], rule.struck) == (503, "StorageUnavailable", 1)
    assert httpx2.get(address(site.stack, ref)).json()["status"] == "complete"
    assert httpx2.delete(address(site.stack, ref)).status_code == 202
    assert httpx2.get(address(site.stack, ref)).status_code == 404


def await_status(stack: Stack, ref: UploadRef, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Asks for the status until the condition holds."""
    seen: list[dict[str, Any]] = []

    def holds() -> bool:
        seen.append(httpx2.get(address(stack, ref), timeout=DEADLINE_S).json())
        return condition(seen[-1])

    until(holds, ASK_S)
    return seen[-1]


REFUSALS = {
    "denied": (403, "AccessDenied", "StorageDenied"),
    "gone": (404, "NoSuchBucket", "NoSuchBucket"),
    "late": (403, "RequestTimeTooSkewed", "ClockSkewed"),
}


def test_a_bucket_that_refuses_for_a_while_is_a_warning(site: Site) -> None:
    """Wrong credentials, no bucket, a wrong clock end no upload: each is shown by its name and goes on when it is mended."""
    site.faults.lay(*(Rule(answers(*answer[:2]), target=f"plans/{plan}/.*jpeg$") for plan, answer in REFUSALS.items()))
    with ExitStack() as watches:
        refs = {plan: accepted(site.stack, PLAN, plan) for plan in REFUSALS}
        watching = {plan: watches.enter_context(Watch(site.stack, ref)) for plan, ref in refs.items()}
        for plan, (_, _, name) in REFUSALS.items():
            status = await_status(site.stack, refs[plan], lambda status, name=name: name in (status["warning"] or ""))  # type: ignore[misc]
            assert status["completedAt"] is None
        site.faults.lay()
        for plan, ref in refs.items():
            final = watching[plan].end()
            assert (final["status"], final["warning"]) == ("complete", None)
            assert_whole(site.settings, ref, site.expected)


async def test_a_slow_bucket_only_slows_the_job_down(site: Site) -> None:
    """Uploads that take longer than a heartbeat's timeout end at their first attempt, without a warning."""
    site.faults.lay(Rule(delays(17), method="PUT", target=r"sheet-1\.dzi$"), Rule(delays(0.2)))
    try:
        ref = accepted(site.stack, PLAN)
        with Watch(site.stack, ref) as watch:
            final = await asyncio.to_thread(watch.end)
    finally:
        site.faults.lay()
    assert final["status"] == "complete"
    assert watch.warnings == set()
    client = await Client.connect(site.stack.temporal_address)
    history = await client.get_workflow_handle(ref.workflow_id).fetch_history()
    started = [event for event in history.events if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED]
    ended = {event.activity_task_completed_event_attributes.started_event_id: event for event in history.events}
    assert {event.activity_task_started_event_attributes.attempt for event in started} == {1}
    seconds = [ended[event.event_id].event_time.ToSeconds() - event.event_time.ToSeconds() for event in started]
    assert max(seconds) >= 15
