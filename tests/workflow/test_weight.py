"""Documents of 2,000 pages with the longest texts: each of their payloads fits into Temporal, in clear and encrypted."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from temporalio.client import Client, WorkflowHandle

from activities.bucket.keys import UploadRef
from activities.bucket.records import NOTES_BYTES, Note, SheetStatus, Snapshot, UploadOptions, UploadStatus, bounded_notes
from activities.bucket.weight import DETAIL_BYTES, MOST_BYTES, MOST_PAGES, cut, weight
from activities.errors import PageUnreadable
from activities.interface import Page
from activities.limits import DocumentLimits
from deploy.temporal import TemporalServer
from tests.temporal import idle_client
from tests.waiting import until_async
from tests.workflow.fakes import FakeActivities, pages, working
from tests.workflow.runs import end_as_failed, handle_of
from workflows.codec import data_converter
from workflows.messages import ProgressAfter, SheetNumbers
from workflows.starting import reopen_upload, start_upload
from workflows.upload import MAX_WAITERS, ProcessUpload

BLOB_BYTES = 2 << 20
"""Temporal's limit on one payload."""
EMOJI = "\N{GRINNING FACE}"
WORST = (EMOJI, '"', "\\", "\uffff", "\x01", "\ud83d")
"""Characters that escapes make long. The last is half an emoji."""
NOTES = bounded_notes(Note("FontSubstituted", f"{number}{'n' * 200}") for number in range(9))
UNFINISHED = 30


def worst_pages() -> tuple[Page, ...]:
    """2,000 pages with the longest titles, as ``count_pages`` returns them."""
    counted = [replace(page, title=WORST[page.number % len(WORST)] * 120) for page in pages(MOST_PAGES)]
    return DocumentLimits().check_pages(counted, UploadOptions())


@pytest.fixture(params=[(), (bytes(range(32)),)], ids=["clear", "encrypted"])
async def client(request: pytest.FixtureRequest, forgetful_server: TemporalServer) -> Client:
    """A client of a server that often suggests continue-as-new."""
    await idle_client(forgetful_server)
    keys: Sequence[bytes] = request.param
    return await Client.connect(forgetful_server.address, identity="test", data_converter=data_converter(keys))


async def heaviest_event(handle: WorkflowHandle[object, object]) -> int:
    """Bytes of the heaviest event of a run."""
    return max(event.ByteSize() for event in (await handle.fetch_history()).events)


async def test_sheets_with_the_longest_titles_and_notes_fit(client: Client, ref: UploadRef) -> None:
    """Through query, update, continue-as-new and manifest, and when the upload is reopened; short payloads would prove nothing."""
    counted = worst_pages()
    fake = FakeActivities(counted, window=8)
    assert weight(NOTES) > NOTES_BYTES - 100
    for page in counted[UNFINISHED:]:
        fake.commit(replace(page, notes=NOTES))
    fake.gate.clear()
    async with working(client, fake, tile_slots=8):
        await start_upload(client, ref)
        handle = handle_of(client, ref)
        first_run = (await handle.describe()).run_id
        await until_async(lambda: fake.in_flight == 8)
        snapshot = await handle.query(ProcessUpload.progress)
        assert [sheet.notes for sheet in snapshot.sheets[UNFINISHED:]] == [NOTES] * (MOST_PAGES - UNFINISHED)
        assert BLOB_BYTES * 0.8 < weight(snapshot) < MOST_BYTES
        updates = [handle.execute_update(ProcessUpload.progress_after, ProgressAfter(1), id=f"watch-{at}") for at in range(MAX_WAITERS)]
        for change in await asyncio.gather(*updates):
            assert (change.version, change.sheets, change.completed_pages) == (1, (), MOST_PAGES - UNFINISHED)
        waiting = asyncio.create_task(
            handle.execute_update(ProcessUpload.progress_after, ProgressAfter(snapshot.version), id=f"watch-{snapshot.version}")
        )
        fake.gate.set()
        assert 0 < len((await waiting).sheets) < 20
        result = await handle_of(client, ref).result()
        assert (result.status, result.completed_pages) == (UploadStatus.COMPLETE, MOST_PAGES)
        first = client.get_workflow_handle(ref.workflow_id, run_id=first_run)
        assert BLOB_BYTES * 0.8 < await heaviest_event(first) < BLOB_BYTES
        assert (await handle_of(client, ref).describe()).run_id != first_run

        fake.manifest = _with_one_failed(fake.manifest)
        del fake.committed[1]
        await reopen_upload(client, ref, "retry_sheets", SheetNumbers())
        await until_async(lambda: 1 in fake.committed)
        result = await handle_of(client, ref).result()
    assert (result.status, result.completed_pages) == (UploadStatus.COMPLETE, MOST_PAGES)
    assert fake.tiled.count(2) == 1  # sheets that stayed committed were not made again
    assert fake.manifest is not None
    assert [sheet.title for sheet in fake.manifest.sheets] == [page.title for page in counted]


def _with_one_failed(manifest: Snapshot | None) -> Snapshot:
    assert manifest is not None
    first = replace(manifest.sheets[0], status=SheetStatus.FAILED, reason="RenderCrashed", detail="x")
    counters = {"status": UploadStatus.PARTIAL, "completed_pages": MOST_PAGES - 1, "progress": 99}
    return replace(manifest, sheets=(first, *manifest.sheets[1:]), **counters)  # type: ignore[arg-type] # by name


async def test_sheets_with_the_longest_failures_fit(client: Client, ref: UploadRef) -> None:
    """Pages that cannot be used, and some that fail while they are drawn: a sentence that is too long is cut."""
    counted = [
        page if page.number <= UNFINISHED else Page(page.number, EMOJI * 120, reason="PageUnreadable", detail=EMOJI * 5000, notes=NOTES[:1])
        for page in pages(MOST_PAGES)
    ]
    fake = FakeActivities(DocumentLimits().check_pages(counted, UploadOptions()))
    fake.tile_errors = {number: [PageUnreadable(WORST[number % 5] * 5000)] for number in range(1, UNFINISHED + 1)}
    async with working(client, fake):
        await start_upload(client, ref)
        error = await end_as_failed(handle_of(client, ref))
        last = await handle_of(client, ref).query(ProcessUpload.progress)
    assert fake.manifest == last
    assert error.type == "PageUnreadable"
    assert {sheet.status for sheet in last.sheets} == {SheetStatus.FAILED}
    assert {weight(sheet.detail) > DETAIL_BYTES - 12 for sheet in last.sheets} == {True}
    assert last.sheets[-1].detail == cut(EMOJI * 5000, DETAIL_BYTES)
    assert weight(last) < MOST_BYTES


async def test_few_sheets_with_the_longest_titles_are_made(client: Client, ref: UploadRef) -> None:
    """Their titles stay whole in the progress. Temporal takes less in the summary of an activity, where they are cut."""
    counted = [Page(number, character * 120, 100, 50, 300) for number, character in enumerate(WORST, 1)]
    checked = DocumentLimits().check_pages(counted, UploadOptions())
    fake = FakeActivities(checked)
    async with working(client, fake):
        await start_upload(client, ref)
        await handle_of(client, ref).result()
        history = await handle_of(client, ref).fetch_history()
    summaries = [event.user_metadata.summary.ByteSize() for event in history.events]
    assert 200 < max(summaries) <= 400  # limit.userMetadataSummarySize
    assert fake.manifest is not None
    assert [sheet.title for sheet in fake.manifest.sheets] == [*(character * 120 for character in WORST[:-1]), "?" * 120]
