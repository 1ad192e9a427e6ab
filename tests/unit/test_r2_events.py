"""R2 events: when a workflow is signalled, when a message is acknowledged, and when it is kept aside."""

import asyncio
import base64
import json
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from temporalio.client import WorkflowExecutionStatus

from activities.bucket.keys import UNREADABLE_EVENTS_PREFIX, UploadRef, sheet_of_marker, unreadable_event
from activities.bucket.location import BucketSettings
from activities.bucket.records import SheetStatus, UploadStatus, to_json
from activities.bucket.storage import Bucket
from activities.errors import TemporalUnavailable
from api.progress.runs import Runs
from api.progress.status import Status
from api.r2.events import (
    ACKNOWLEDGED,
    LONGEST_DELAY_S,
    Message,
    R2Events,
    created_object,
    delay_s,
    unreadable_events,
)
from tests.servers.queue import event
from tests.unit.api_fakes import NO_WORKER, REF, UNAVAILABLE, FakeTemporal, accept, closed_run, make_bucket, snapshot

READY, PENDING, UPLOADING = SheetStatus.READY, SheetStatus.PENDING, SheetStatus.UPLOADING


@pytest.fixture
async def events(bucket: Bucket, temporal: FakeTemporal) -> AsyncIterator[R2Events]:
    """The handler of R2 events, which gathers for 50 ms."""
    runs = Runs(temporal.connect)
    events = R2Events(bucket, Status(bucket, runs), runs, gather_s=0.05)
    yield events
    await events.close()


def stored_message(sheet: int, ref: UploadRef = REF, *, attempts: int = 1, action: str = "PutObject") -> Message:
    """The message of an R2 event: the sheet's ``.dzi`` was written."""
    return Message(f"m{sheet}", json.dumps(event("plans", ref.descriptor(sheet), action)).encode(), attempts)


def signals(temporal: FakeTemporal) -> list[tuple[str, tuple[int, ...]]]:
    """The signals that Temporal has taken: their names and their sheets."""
    return [(start["start_signal"], start["start_signal_args"][0].sheets) for start in temporal.starts]


async def test_a_healthy_upload_costs_no_signal(events: R2Events, bucket: Bucket, temporal: FakeTemporal) -> None:
    """Its sheets are ready when the events are gathered, and the progress is read once."""
    await accept(bucket)
    temporal.state = snapshot(READY, READY, PENDING)
    assert await asyncio.gather(*map(events.decide, (stored_message(1), stored_message(2), stored_message(2)))) == [ACKNOWLEDGED] * 3
    assert (temporal.queries, temporal.starts) == (1, [])


async def test_a_sheet_that_is_not_ready_is_signalled(events: R2Events, bucket: Bucket, temporal: FakeTemporal) -> None:
    """One signal names all such sheets. It would also reopen an upload that has ended."""
    await accept(bucket)
    temporal.state = snapshot(READY, PENDING, UPLOADING)
    verdicts = await asyncio.gather(*(events.decide(stored_message(sheet)) for sheet in (3, 1, 2)))
    assert verdicts == [ACKNOWLEDGED] * 3
    assert signals(temporal) == [("sheets_stored", (2, 3))]
    assert temporal.starts[0]["id"] == REF.workflow_id


async def test_a_cancelled_upload_is_signalled(events: R2Events, bucket: Bucket, temporal: FakeTemporal) -> None:
    """Its run has ended, and the manifest shows which sheets are not ready."""
    await accept(bucket)
    await bucket.put_async(REF.manifest, to_json(snapshot(READY, PENDING, status=UploadStatus.CANCELLED)))
    assert await events.decide(stored_message(2)) == ACKNOWLEDGED
    assert signals(temporal) == [("sheets_stored", (2,))]
    assert await events.decide(stored_message(1)) == ACKNOWLEDGED
    assert len(temporal.starts) == 1


async def test_an_upload_whose_run_was_ended_is_not_resumed_by_an_event(events: R2Events, bucket: Bucket, temporal: FakeTemporal) -> None:
    """An operator has ended the run, so the event of a late writer does not start it again."""
    await accept(bucket)
    temporal.state = closed_run(WorkflowExecutionStatus.TERMINATED)
    assert await events.decide(stored_message(1)) == ACKNOWLEDGED
    assert temporal.starts == []


async def test_a_sheet_beyond_the_last_page_is_ignored(events: R2Events, bucket: Bucket, temporal: FakeTemporal) -> None:
    """A ``.dzi`` of no sheet does not wake the workflow."""
    await accept(bucket)
    temporal.state = snapshot(READY, READY)
    assert await events.decide(stored_message(3)) == ACKNOWLEDGED
    assert temporal.starts == []


@pytest.mark.parametrize(
    ("bucket_name", "key", "action"),
    [
        ("plans", REF.descriptor(1), "DeleteObject"),
        ("plans", REF.descriptor(1), "LifecycleDeletion"),
        ("plans", REF.sheet_record(1), "PutObject"),
        ("plans", f"{REF.tiles_prefix(1)}0/0_0.jpeg", "PutObject"),
        ("plans", f"x/{REF.descriptor(1)}", "PutObject"),
        ("plans", REF.descriptor(1).replace("sheet-1.dzi", "sheet-2.dzi"), "PutObject"),
        ("plans", f"{REF.descriptor(1)}\n", "PutObject"),
    ],
)
async def test_other_events_are_acknowledged(
    events: R2Events, bucket: Bucket, temporal: FakeTemporal, bucket_name: str, key: str, action: str
) -> None:
    """Only an event about a written ``.dzi`` with a key of ours is handled."""
    await accept(bucket)
    temporal.state = snapshot(PENDING)
    assert await events.decide(Message("m", json.dumps(event(bucket_name, key, action)).encode(), 1)) == ACKNOWLEDGED
    assert (temporal.queries, temporal.starts) == (0, [])


@pytest.mark.parametrize("action", ["PutObject", "CopyObject", "CompleteMultipartUpload"])
def test_every_way_of_writing_counts(action: str) -> None:
    """Each action that creates an object counts."""
    assert created_object(json.dumps(event("plans", "a/b.dzi", action)).encode()) == ("plans", "a/b.dzi")


def test_the_prefix_is_taken_off_and_other_buckets_are_not_ours() -> None:
    """An event names the bucket and the whole key; the bucket's prefix is removed."""
    settings = BucketSettings("s3://plans/site/a", "http://127.0.0.1:1", "key", "secret")
    bucket = Bucket(settings)
    assert bucket.own_key("plans", f"site/a/{REF.descriptor(7)}") == REF.descriptor(7)
    assert bucket.own_key("plans", REF.descriptor(7)) is None
    assert bucket.own_key("plans", f"site/ab/{REF.descriptor(7)}") is None
    assert bucket.own_key("other", f"site/a/{REF.descriptor(7)}") is None
    assert Bucket(BucketSettings("s3://plans", "http://127.0.0.1:1", "key", "secret")).own_key("plans", "x") == "x"


@given(sheet=st.integers(1, 10**9 - 1))
def test_a_descriptor_is_read_as_it_is_written(sheet: int) -> None:
    """Parsing a key of a ``.dzi`` or of a ``.pmtiles`` gives the upload and the sheet from which it was made."""
    assert sheet_of_marker(REF.descriptor(sheet)) == sheet_of_marker(REF.archive(sheet)) == (REF, sheet)


@pytest.mark.parametrize("key", [REF.descriptor(2), REF.archive(2)])
async def test_each_commit_marker_is_told_to_the_workflow(events: R2Events, bucket: Bucket, temporal: FakeTemporal, key: str) -> None:
    """The workflow then looks which layout the sheet has."""
    await accept(bucket)
    temporal.state = snapshot(READY, PENDING)
    assert await events.decide(Message("m", json.dumps(event("plans", key)).encode(), 1)) == ACKNOWLEDGED
    assert len(temporal.starts) == 1


@pytest.mark.parametrize("deleted_at", [None, "2026-01-31T09:30:00.250Z"])
async def test_events_of_an_unknown_upload_are_acknowledged(
    events: R2Events, bucket: Bucket, temporal: FakeTemporal, caplog: pytest.LogCaptureFixture, deleted_at: str | None
) -> None:
    """For an upload that was never accepted, or is being deleted, nothing is started, and the log has a warning."""
    if deleted_at:
        await accept(bucket, deleted_at=deleted_at)
    assert await events.decide(stored_message(1)) == ACKNOWLEDGED
    assert temporal.starts == []
    assert "R2 events of an upload that does not exist" in caplog.text


@pytest.mark.parametrize("attempts", [1, 5, 99])
async def test_nothing_is_acknowledged_while_temporal_is_down(
    events: R2Events, bucket: Bucket, temporal: FakeTemporal, attempts: int
) -> None:
    """The message comes again, later each time, until Temporal answers. It is never kept aside."""
    await accept(bucket)
    temporal.state, temporal.start_error = UNAVAILABLE, UNAVAILABLE
    verdict = await events.decide(stored_message(1, attempts=attempts))
    assert verdict.retry_in_s == delay_s(attempts)
    assert isinstance(verdict.failure, TemporalUnavailable)
    temporal.state, temporal.start_error = snapshot(PENDING), None
    assert await events.decide(stored_message(1, attempts=attempts + 1)) == ACKNOWLEDGED
    assert signals(temporal) == [("sheets_stored", (1,))]
    assert unreadable_events(bucket) == []


async def test_a_temporal_without_workers_takes_the_signal(events: R2Events, bucket: Bucket, temporal: FakeTemporal) -> None:
    """Without a worker the query fails, but Temporal still takes the signal."""
    await accept(bucket)
    temporal.state = NO_WORKER
    assert await events.decide(stored_message(4)) == ACKNOWLEDGED
    assert signals(temporal) == [("sheets_stored", (4,))]


async def test_nothing_is_acknowledged_while_the_bucket_is_away(temporal: FakeTemporal, tmp_path: Path) -> None:
    """An event comes again, and so does a message that should be kept aside."""
    bucket = make_bucket(tmp_path / "bucket")
    runs = Runs(temporal.connect)
    events = R2Events(bucket, Status(bucket, runs), runs, gather_s=0)
    await accept(bucket)
    temporal.state = snapshot(PENDING)
    (tmp_path / "bucket").rename(tmp_path / "away")
    (tmp_path / "bucket").write_text("no directory")
    for message in (stored_message(1), Message("m", b"no event", 5)):
        verdict = await events.decide(message)
        assert verdict.retry_in_s is not None
        assert verdict.failure is not None
    (tmp_path / "bucket").unlink()
    (tmp_path / "away").rename(tmp_path / "bucket")
    assert await events.decide(stored_message(1, attempts=2)) == ACKNOWLEDGED
    assert await events.decide(Message("m", b"no event", 6)) == ACKNOWLEDGED
    assert signals(temporal) == [("sheets_stored", (1,))]
    assert len(unreadable_events(bucket)) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no json",
        b"\xff\xfe",
        b"[]",
        b'"text"',
        b"{}",
        b'{"action":"PutObject","bucket":"plans"}',
        b'{"action":"PutObject","bucket":"plans","object":{"key":7}}',
        b"[" * 100_000,
    ],
    ids=range(9),
)
async def test_a_message_that_is_not_an_event_is_kept_aside(
    events: R2Events, bucket: Bucket, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    """After 5 attempts it is kept once, with its bytes and the reason. Then it is acknowledged, and the log has an error."""
    for attempts in range(1, 5):
        assert (await events.decide(Message("m", body, attempts))).retry_in_s == delay_s(attempts)
        assert unreadable_events(bucket) == []
    for attempts in (5, 6):
        assert await events.decide(Message("m", body, attempts)) == ACKNOWLEDGED
    (kept,) = unreadable_events(bucket)
    assert kept["key"] == unreadable_event(body)
    assert base64.b64decode(str(kept["body"])) == body
    assert (kept["message"], kept["attempts"]) == ("m", 6)
    assert kept["error"]
    assert [record.levelname for record in caplog.records if "kept aside" in record.message] == ["ERROR"] * 2


async def test_unreadable_events_are_listed_newest_first(events: R2Events, bucket: Bucket, tmp_path: Path) -> None:
    """Each has its key. Other objects below the prefix are left out."""
    bucket.put(f"{UNREADABLE_EVENTS_PREFIX}junk.json", b"junk")
    for number in range(3):
        body = b"%d" % number
        assert await events.decide(Message(f"m{number}", body, 5)) == ACKNOWLEDGED
        os.utime(tmp_path / "bucket" / unreadable_event(body), (1_000_000 + number, 1_000_000 + number))
    assert [kept["message"] for kept in unreadable_events(bucket)] == ["m2", "m1", "m0"]


async def test_uploads_are_gathered_apart(events: R2Events, bucket: Bucket, temporal: FakeTemporal) -> None:
    """An event of an unknown upload does not delay or fail the events of another upload."""
    other = UploadRef("acme", "tower", "b2", REF.upload)
    await accept(bucket)
    temporal.state = snapshot(PENDING)
    assert await asyncio.gather(*map(events.decide, (stored_message(1), stored_message(1, other)))) == [ACKNOWLEDGED] * 2
    assert signals(temporal) == [("sheets_stored", (1,))]


async def test_duplicates_and_order_change_nothing(events: R2Events, bucket: Bucket, temporal: FakeTemporal) -> None:
    """Only sheets that are not ready are signalled, however often and in whatever order their events come."""
    await accept(bucket)
    temporal.state = snapshot(READY, PENDING, READY, PENDING)
    chance = random.Random(7)  # noqa: S311 - no secret
    for _ in range(5):
        messages = [stored_message(chance.randint(1, 4)) for _ in range(8)] + [stored_message(2)]
        assert set(await asyncio.gather(*map(events.decide, messages))) == {ACKNOWLEDGED}
    assert {name for name, _ in signals(temporal)} == {"sheets_stored"}
    assert {sheet for _, sheets in signals(temporal) for sheet in sheets} == {2, 4}
    temporal.starts.clear()
    temporal.state = snapshot(READY, READY, READY, READY)
    assert await asyncio.gather(*(events.decide(stored_message(sheet)) for sheet in (4, 4, 2, 1, 3))) == [ACKNOWLEDGED] * 5
    assert temporal.starts == []


async def test_a_sender_that_hangs_up_loses_no_event(events: R2Events, bucket: Bucket, temporal: FakeTemporal) -> None:
    """It cancels only its own wait; other messages of the upload are still handled."""
    await accept(bucket)
    temporal.state = snapshot(PENDING)
    gone, stays = asyncio.create_task(events.decide(stored_message(1))), asyncio.create_task(events.decide(stored_message(1)))
    await asyncio.sleep(0)
    gone.cancel()
    assert await stays == ACKNOWLEDGED
    assert signals(temporal) == [("sheets_stored", (1,))]


async def test_stopped_gathering_handles_the_events_at_once(bucket: Bucket, temporal: FakeTemporal) -> None:
    """A process that stops does not wait until the gathering time is over."""
    runs = Runs(temporal.connect)
    events = R2Events(bucket, Status(bucket, runs), runs, gather_s=60)
    await accept(bucket)
    temporal.state = snapshot(PENDING)
    waiting = asyncio.create_task(events.decide(stored_message(1)))
    await asyncio.sleep(0)
    events.stop_gathering()
    async with asyncio.timeout(120):
        assert await waiting == ACKNOWLEDGED


async def test_a_bug_loses_no_event(events: R2Events, bucket: Bucket, temporal: FakeTemporal, caplog: pytest.LogCaptureFixture) -> None:
    """An unexpected error is logged with its traceback, and the message comes again."""
    await accept(bucket)
    temporal.state = ZeroDivisionError("nobody has thought of it")
    verdict = await events.decide(stored_message(1))
    assert verdict.retry_in_s is not None
    assert "Traceback" in caplog.text


def test_delays_outlast_the_queue() -> None:
    """Delays grow to an hour, and 100 attempts take more than 3.5 days: longer than an outage over a weekend."""
    delays = [delay_s(attempts) for attempts in range(1, 101)]
    assert delays[:5] == [5, 10, 20, 40, 80]
    assert max(delays) == LONGEST_DELAY_S
    assert sum(delays) > 3.5 * 24 * 3600
    assert delay_s(0) == 5
    assert delay_s(10**6) == LONGEST_DELAY_S
