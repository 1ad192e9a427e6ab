"""The watcher and the event streams, against a fake Temporal whose answers the tests set."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from temporalio.client import WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError

from activities.bucket.keys import UploadRef
from activities.bucket.records import SheetStatus, Snapshot, UploadStatus, to_json, to_wire
from activities.bucket.storage import Bucket
from api.progress.runs import Runs
from api.progress.sse import Hub
from api.progress.status import Status
from api.progress.watcher import MAX_FRAMES, POLL_S, Cursor, Watcher
from tests.unit.api_fakes import (
    NO_WORKER,
    NOT_FOUND,
    PATH,
    REF,
    UNAVAILABLE,
    FakeTemporal,
    RawRequest,
    Upstream,
    accept,
    change,
    closed_run,
    make_app,
    snapshot,
)
from tests.unit.api_server import RawConnection, serving
from tests.waiting import until_async

READY, PENDING, TILING = SheetStatus.READY, SheetStatus.PENDING, SheetStatus.TILING


def make_hub(bucket: Bucket, temporal: FakeTemporal) -> Hub:
    """A hub over a bucket and a Temporal."""
    runs = Runs(temporal.connect)
    return Hub(bucket, Status(bucket, runs), runs)


@asynccontextmanager
async def watching(hub: Hub, ref: UploadRef = REF) -> AsyncIterator[Watcher]:
    """Subscribes to an upload's watcher."""
    watcher = hub.subscribe(ref)
    try:
        yield watcher
    finally:
        hub.release(watcher)


class Reader:
    """Takes the events of one stream."""

    def __init__(self, watcher: Watcher, after: int | None = None) -> None:
        self._watcher = watcher
        self._cursor = Cursor(watcher, after)

    async def frame(self) -> bytes | None:
        """The next event, as it is sent; None at the end of the stream."""
        async with asyncio.timeout(120):
            while (frame := self._cursor.take()) is None and not self._cursor.is_over:
                await self._watcher.changed.wait()
        return frame

    async def next(self) -> tuple[str, int, dict[str, Any]]:
        """The next event: name, id and data."""
        frame = await self.frame()
        assert frame is not None
        return _parsed(frame)

    async def rest(self) -> list[str]:
        """The names of all events until the stream ends."""
        names = []
        while (frame := await self.frame()) is not None:
            names.append(_parsed(frame)[0])
        return names


def _parsed(frame: bytes) -> tuple[str, int, dict[str, Any]]:
    fields = dict(line.split(": ", 1) for line in frame.decode().strip().split("\n"))
    return fields["event"], int(fields["id"]), json.loads(fields["data"])


async def test_stream_is_snapshot_changes_end(bucket: Bucket) -> None:
    """The whole state first, then only what changed, then the manifest, byte for byte; ids are the versions."""
    await accept(bucket)
    state = snapshot(PENDING, PENDING)
    upstream = Upstream(state)
    async with watching(make_hub(bucket, upstream)) as watcher:
        reader = Reader(watcher)
        assert await reader.next() == ("snapshot", 100, to_wire(state))
        for number in (1, 2):
            state, delta = change(state, number, READY)
            await upstream.set(state)
            assert await reader.next() == ("change", state.version, to_wire(delta))
        manifest = to_json(snapshot(READY, READY, version=state.version)) + b"\n"
        await bucket.put_async(REF.manifest, manifest)
        await upstream.set(closed_run())
        frame = await reader.frame()
        assert frame is not None
        data = b"\n".join(line.removeprefix(b"data: ") for line in frame.split(b"\n") if line.startswith(b"data: "))
        assert data == manifest
        assert await reader.rest() == []


async def test_one_upstream_for_many(bucket: Bucket) -> None:
    """Any number of clients watch an upload by one query; without a client, Temporal is not asked."""
    await accept(bucket)
    upstream = Upstream(snapshot(PENDING))
    hub = make_hub(bucket, upstream)
    async with watching(hub) as first, watching(hub) as second:
        assert first is second
        await Reader(first).next()
        await Reader(second).next()
        await until_async(lambda: upstream.updates != [])
        assert (upstream.queries, len(upstream.updates)) == (1, 1)
    asked = upstream.queries
    await upstream.set(snapshot(READY))
    async with watching(hub) as third:
        assert third is not first
        assert (await Reader(third).next())[2]["completedPages"] == 1
    assert upstream.queries == asked + 1


async def test_slow_client_gets_one_change(bucket: Bucket) -> None:
    """A slow client gets the changes that it missed as one change, and does not delay another client."""
    await accept(bucket)
    state = snapshot(*[PENDING] * 50)
    upstream = Upstream(state)
    async with watching(make_hub(bucket, upstream)) as watcher:
        slow, quick = Reader(watcher), Reader(watcher)
        await slow.next()
        await quick.next()
        for number in range(1, 51):
            state, delta = change(state, number, READY)
            await upstream.set(state)
            assert await quick.next() == ("change", state.version, to_wire(delta))
        name, version, data = await slow.next()
        assert (name, version, len(data["sheets"]), data["completedPages"]) == ("change", state.version, 50, 50)


async def test_invented_versions_take_no_memory(bucket: Bucket) -> None:
    """Clients that lack the same sheets share one event, whatever versions they name, and a watcher keeps only a few events."""
    await accept(bucket)
    async with watching(make_hub(bucket, Upstream(snapshot(*[PENDING] * 1000, version=5000)))) as watcher:
        await until_async(lambda: watcher.snapshot is not None)
        assert watcher.frame(17) is watcher.frame(3999)
        assert watcher.frame(5000) is not watcher.frame(4999)
        for after in range(3000, 5000):
            watcher.frame(after)
        assert len(watcher._frames) == MAX_FRAMES


@pytest.mark.parametrize(
    ("after", "name", "numbers"),
    [(None, "snapshot", [1, 2, 3]), (98, "change", [2, 3]), (99, "change", [3]), (0, "change", [1, 2, 3]), (101, "snapshot", [1, 2, 3])],
)
async def test_resume_brings_exactly_what_changed(bucket: Bucket, after: int | None, name: str, numbers: list[int]) -> None:
    """A client with a version gets the sheets that changed since then; a client with a future version gets the whole state."""
    await accept(bucket)
    async with watching(make_hub(bucket, Upstream(snapshot(READY, READY, PENDING)))) as watcher:
        await until_async(lambda: watcher.snapshot is not None)
        event = await Reader(watcher, after).next()
    assert (event[0], event[1], [sheet["number"] for sheet in event[2]["sheets"]]) == (name, 100, numbers)


async def test_late_joiner_gets_snapshot_and_end(bucket: Bucket) -> None:
    """A client that joins after the end gets the final state and the end at once."""
    await accept(bucket)
    await bucket.put_async(REF.manifest, to_json(snapshot(READY)))
    async with watching(make_hub(bucket, Upstream(closed_run()))) as watcher:  # type: ignore[arg-type]
        assert await Reader(watcher).rest() == ["snapshot", "end"]


@pytest.mark.parametrize("silence", [UNAVAILABLE, NO_WORKER, RuntimeError("Failed client connect: refused")])
async def test_watcher_survives_an_outage(bucket: Bucket, silence: Exception) -> None:
    """While Temporal does not answer, clients keep the last state with a warning. When it is back, the warning goes and changes come."""
    await accept(bucket)
    state = snapshot(PENDING)
    upstream = Upstream(state)
    async with watching(make_hub(bucket, upstream)) as watcher:
        reader = Reader(watcher)
        await reader.next()
        await upstream.set(silence)
        name, version, data = await reader.next()
        assert (name, version, data["sheets"]) == ("change", 100, [])
        assert "may not be the latest" in data["warning"]
        await upstream.set(state)
        assert (await reader.next())[2]["warning"] is None
        state, _ = change(state, 1, READY)
        await upstream.set(state)
        assert (await reader.next())[2]["completedPages"] == 1


async def test_stream_opens_while_temporal_is_away(bucket: Bucket) -> None:
    """Without Temporal, an upload is shown as queued; its stream goes on when Temporal is back."""
    await accept(bucket)
    upstream = Upstream(UNAVAILABLE)  # type: ignore[arg-type]
    async with watching(make_hub(bucket, upstream)) as watcher:
        reader = Reader(watcher)
        assert (await reader.next())[2]["status"] == "queued"
        await upstream.set(snapshot(PENDING))
        assert (await reader.next())[2]["status"] == "processing"


async def test_update_that_ended_without_a_change_is_not_repeated_under_its_id(bucket: Bucket) -> None:
    """Temporal would answer the same id with the same old result, at once and for ever."""
    await accept(bucket)
    temporal = FakeTemporal()
    temporal.state = snapshot(READY, status=UploadStatus.COMPLETE)

    async def answer_unchanged(_: int) -> Snapshot:
        assert isinstance(temporal.state, Snapshot)
        return temporal.state

    temporal.update = answer_unchanged
    async with watching(make_hub(bucket, temporal)):
        await until_async(lambda: len(temporal.updates) >= 3)
    assert len({name for _, name in temporal.updates}) == len(temporal.updates)


async def test_watcher_that_is_pushed_out_only_asks(bucket: Bucket) -> None:
    """Where more processes watch than Temporal lets wait, each new update would push out that of another process, and so on for ever."""
    await accept(bucket)
    temporal = FakeTemporal()
    temporal.state = snapshot(PENDING)

    async def push_out(_: int) -> Snapshot:
        assert isinstance(temporal.state, Snapshot)
        return temporal.state

    temporal.update = push_out
    async with watching(make_hub(bucket, temporal)) as watcher:
        reader = Reader(watcher)
        await reader.next()
        await until_async(lambda: len(temporal.updates) == 2)
        asked = temporal.queries
        await until_async(lambda: temporal.queries >= asked + 3)
        assert len(temporal.updates) == 2
        temporal.state, _ = change(snapshot(PENDING), 1, READY)
        assert (await reader.next())[2]["completedPages"] == 1  # a query brings it


async def test_repeated_wait_has_the_same_update_id(bucket: Bucket) -> None:
    """A watcher that begins again joins the update that still waits, instead of adding another update."""
    await accept(bucket)
    upstream = Upstream(snapshot(PENDING))
    hub = make_hub(bucket, upstream)
    for count in (1, 2):
        async with watching(hub) as watcher:
            await Reader(watcher).next()
            await until_async(lambda count=count: len(upstream.updates) == count)  # type: ignore[misc]
    assert len(set(upstream.updates)) == 1


async def test_run_that_ends_with_a_wait_open_is_read_from_the_bucket(bucket: Bucket) -> None:
    """An update that fails because its workflow completed is no error: the stream ends with the manifest."""
    await accept(bucket)
    await bucket.put_async(REF.manifest, to_json(snapshot(READY, version=101)))
    temporal = FakeTemporal()
    temporal.state = snapshot(PENDING)

    async def completed(_: int) -> Snapshot:
        temporal.state = closed_run()
        raise WorkflowUpdateFailedError(ApplicationError("workflow completed", type="AcceptedUpdateCompletedWorkflow"))

    temporal.update = completed
    async with watching(make_hub(bucket, temporal)) as watcher:
        assert (await Reader(watcher).rest())[-1] == "end"


async def test_lost_history_starts_again_and_clients_follow(bucket: Bucket) -> None:
    """A Temporal server that lost its file has no run: the watcher starts a run, the streams go on, and no counter falls."""
    await accept(bucket)
    upstream = Upstream(snapshot(READY, PENDING))
    async with watching(make_hub(bucket, upstream)) as watcher:
        reader = Reader(watcher)
        await reader.next()
        upstream.started = snapshot(version=400)
        await upstream.set(NOT_FOUND)
        await until_async(lambda: upstream.starts != [])
        await upstream.set(snapshot(READY, TILING, version=500))
        name, version, state = await reader.next()
        assert (name, version, state["completedPages"]) == ("change", 500, 1)


async def test_watcher_that_is_behind_its_client_reads_again(bucket: Bucket) -> None:
    """Another process was faster to tell the client a change. It is not taken back, and the changes that follow come as before."""
    await accept(bucket)
    upstream = Upstream(snapshot(READY, PENDING))
    hub = make_hub(bucket, upstream)
    async with watching(hub) as watcher:
        await until_async(lambda: upstream.updates != [])
        upstream.state = snapshot(READY, TILING, version=150)  # this watcher's update is still on its way
        told = await hub.next_state(REF, 140, 0)
        assert told.snapshot.version == 150
        await upstream.set(snapshot(READY, READY, version=160))
        await until_async(lambda: watcher.head is not None and watcher.head.version == 160)


async def test_first_state_after_a_lost_history_is_whole(bucket: Bucket) -> None:
    """A fresh process waits until the run that it started knows the committed sheets. A returning client gets no smaller state."""
    await accept(bucket)
    await bucket.put_async(REF.descriptor(1), b"<Image/>")
    upstream = Upstream(NOT_FOUND)  # type: ignore[arg-type]
    upstream.started = snapshot(version=400)
    async with watching(make_hub(bucket, upstream)) as watcher:
        new, returning = Reader(watcher), Reader(watcher, 350)
        await until_async(lambda: upstream.queries > 2)
        assert watcher.snapshot is None
        await upstream.set(snapshot(READY, TILING, version=500))
        name, version, state = await new.next()
        assert (name, version, state["completedPages"], state["totalPages"]) == ("snapshot", 500, 1, 2)
        name, version, state = await returning.next()
        assert (name, version, state["completedPages"], len(state["sheets"])) == ("change", 500, 1, 2)


async def test_returning_client_gets_no_older_state(bucket: Bucket) -> None:
    """Without Temporal, a fresh process may know less than its client. It sends nothing until the run has a newer state."""
    await accept(bucket)
    upstream = Upstream(NO_WORKER)  # type: ignore[arg-type]
    async with watching(make_hub(bucket, upstream)) as watcher:
        returning = Reader(watcher, 450)
        await until_async(lambda: watcher.snapshot is not None)
        received = asyncio.create_task(returning.next())
        await upstream.set(snapshot(version=400))
        await until_async(lambda: watcher.snapshot is not None and watcher.snapshot.version == 400)
        assert not received.done()
        await upstream.set(snapshot(READY, TILING, version=500))
        assert (await received)[:2] == ("change", 500)


@pytest.mark.parametrize(
    ("manifest", "sentence"), [(to_json(replace(snapshot(READY, version=101), schema=2)), "schema 2"), (b'{"status":"comp', "not JSON")]
)
async def test_watcher_survives_an_unreadable_manifest(bucket: Bucket, manifest: bytes, sentence: str) -> None:
    """A manifest of a newer release, or half a manifest, gives a warning, and the stream stays alive."""
    await accept(bucket)
    await bucket.put_async(REF.manifest, manifest)
    upstream = Upstream(snapshot(PENDING))
    async with watching(make_hub(bucket, upstream)) as watcher:
        reader = Reader(watcher)
        await reader.next()
        await upstream.set(closed_run())
        assert sentence in (await reader.next())[2]["warning"]
        await bucket.put_async(REF.manifest, to_json(snapshot(READY, version=101)))
        assert (await reader.rest())[-1] == "end"


class FailingUpstream(Upstream):
    """A workflow whose next ``failures`` answers cannot be decoded."""

    failures = 0

    async def query(self, *args: object, **options: object) -> Snapshot:
        """The state."""
        self._fail()
        return await super().query(*args, **options)

    async def execute_update(self, update: object, args: Any, *, id: str) -> Snapshot:  # noqa: A002 - the client's own name
        """The next change."""
        self._fail()
        return await super().execute_update(update, args, id=id)

    def _fail(self) -> None:
        if self.failures:
            self.failures -= 1
            msg = "Failed decoding arguments"  # as the payload converter says it
            raise RuntimeError(msg)


def failure_records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """The log records about watchers that failed."""
    return [record for record in caplog.records if record.message == "a watcher failed, it begins again"]


@pytest.mark.parametrize("failures", [1, 2])
async def test_watcher_that_fails_begins_again(bucket: Bucket, caplog: pytest.LogCaptureFixture, failures: int) -> None:
    """An unexpected error is logged with the upload. Its streams get a warning, and then the changes that came meanwhile."""
    await accept(bucket)
    state = snapshot(PENDING)
    upstream = FailingUpstream(state)
    hub = make_hub(bucket, upstream)
    async with watching(hub) as watcher:
        reader = Reader(watcher)
        await reader.next()
        await until_async(lambda: upstream.updates != [])
        upstream.failures = failures
        received = []
        for status in (TILING, READY):  # the update that waits already delivers the first change
            state, _ = change(state, 1, status)
            await upstream.set(state)
            received.append(await reader.next())
        while received[-1][1] < state.version or received[-1][2]["warning"]:
            received.append(await reader.next())
        assert {event[2]["warning"] for event in received} == {None, "this may not be the latest state: the server's log says why"}
        assert [event[1] for event in received] == sorted(event[1] for event in received)
        async with watching(hub) as again:
            assert again is watcher
    assert len(failure_records(caplog)) == failures
    assert all(record.__dict__["ref"] == str(REF) and record.exc_info for record in failure_records(caplog))


async def test_watcher_that_fails_for_ever_tries_less_often(bucket: Bucket, caplog: pytest.LogCaptureFixture) -> None:
    """Its streams stay open, new clients get a stream, too, and all of them get the state when the watcher has recovered."""
    await accept(bucket)
    upstream = FailingUpstream(snapshot(READY, PENDING))
    upstream.failures = 1 << 30
    async with watching(make_hub(bucket, upstream)) as watcher:
        await until_async(lambda: len(failure_records(caplog)) == 3)
        pauses = [record.__dict__["pause_s"] for record in failure_records(caplog)]
        assert pauses == [POLL_S, 2 * POLL_S, 4 * POLL_S]
        readers = [Reader(watcher), Reader(watcher)]
        upstream.failures = 0
        for reader in readers:
            assert (await reader.next())[:2] == ("snapshot", 100)


@pytest.mark.parametrize("body", [b"{", b'{"schema": 2}'])
async def test_stream_of_an_upload_that_cannot_be_read_has_a_warning(bucket: Bucket, body: bytes) -> None:
    """While ``upload.json`` cannot be read, the stream shows the run's state with a warning. Then the warning goes."""
    await bucket.put_async(REF.record, body)
    upstream = Upstream(snapshot(READY, PENDING))
    async with watching(make_hub(bucket, upstream)) as watcher:
        reader = Reader(watcher)
        name, version, data = await reader.next()
        assert (name, version, data["completedPages"]) == ("snapshot", 100, 1)
        assert f"{REF.record} cannot be read: it" in data["warning"]
        await accept(bucket)
        assert (await reader.next())[2]["warning"] is None


async def test_deleted_upload_ends_its_streams(bucket: Bucket) -> None:
    """A stream of an upload that is deleted ends, without a final event."""
    await accept(bucket)
    upstream = Upstream(snapshot(PENDING))
    async with watching(make_hub(bucket, upstream)) as watcher:
        reader = Reader(watcher)
        await reader.next()
        await accept(bucket, deleted_at="2026-01-31T00:00:00.000Z")
        await upstream.set(NOT_FOUND)
        assert await reader.rest() == []


# The route


async def test_route_answers_204_at_the_final_version(bucket: Bucket) -> None:
    """A reconnect at the final version gets 204, which stops an EventSource; an older version gets the change and the end."""
    await accept(bucket)
    await bucket.put_async(REF.manifest, to_json(snapshot(READY, READY)))
    app = make_app(bucket, Upstream(closed_run()))  # type: ignore[arg-type]
    for headers, query in (({"Last-Event-ID": "100"}, ""), ({}, "?after=100")):
        request = RawRequest(app, "GET", f"{PATH}/events{query}", headers)
        await request.task
        assert request.status == 204
    request = RawRequest(app, "GET", f"{PATH}/events", {"Last-Event-ID": "99"})
    await request.task
    body = b"".join(message["body"] for message in request.sent[1:])
    assert request.status == 200
    assert body.startswith(b"retry: 1000\nid: 100\nevent: change\ndata: {")
    assert b"\n\nid: 100\nevent: end\ndata: " in body
    assert dict(request.sent[0]["headers"])[b"cache-control"] == b"no-store, no-transform"
    assert dict(request.sent[0]["headers"])[b"x-accel-buffering"] == b"no"
    assert dict(request.sent[0]["headers"])[b"content-type"].startswith(b"text/event-stream")


@pytest.mark.parametrize("bad", ["", "x", "-1", "1e3", "9" * 40, "٣"])
async def test_bad_last_event_id_counts_as_none(bucket: Bucket, bad: str) -> None:
    """A malformed id must not end an EventSource, so the client gets the whole state."""
    await accept(bucket)
    await bucket.put_async(REF.manifest, to_json(snapshot(READY)))
    request = RawRequest(make_app(bucket, Upstream(closed_run())), "GET", f"{PATH}/events", {"Last-Event-ID": bad})  # type: ignore[arg-type]
    await request.task
    assert request.status == 200
    assert b"event: snapshot" in request.sent[1]["body"]


async def test_stream_that_ends_gives_its_watcher_back(bucket: Bucket) -> None:
    """A client that goes away, at once or later, leaves no watcher behind."""
    await accept(bucket)
    upstream = Upstream(snapshot(PENDING))
    app = make_app(bucket, upstream)
    for early in (True, False):
        request = RawRequest(app, "GET", f"{PATH}/events", {})
        if early:
            request.disconnect()
        else:
            await until_async(lambda request=request: len(request.sent) > 1)  # type: ignore[misc]
            request.disconnect()
        await asyncio.wait_for(request.task, 120)
    assert not [task for task in asyncio.all_tasks() if "Watcher" in repr(task.get_coro())]


async def test_stream_of_an_unknown_upload_is_not_found(bucket: Bucket) -> None:
    """An unknown upload is the only refusal of the route."""
    request = RawRequest(make_app(bucket, FakeTemporal()), "GET", f"{PATH}/events", {})
    await request.task
    assert request.status == 404


async def test_head_of_a_stream_is_answered_at_once(bucket: Bucket) -> None:
    """A client that only asks for the head must not hold a stream, nor wait on its connection for as long as the upload takes."""
    await accept(bucket)
    app = make_app(bucket, Upstream(snapshot(PENDING)))
    async with serving(app) as port:
        line = f"{PATH}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        connection = await RawConnection.open(port, f"HEAD {line}")
        head = await connection.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert b"content-type: text/event-stream" in head
        await connection.send("GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert b"200 OK" in await connection.until(b"ok\n")
        connection.close()
