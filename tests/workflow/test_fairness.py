"""Uploads of several organizations at once."""

import asyncio
import secrets

from temporalio import activity
from temporalio.client import Client

from activities.bucket.keys import UploadRef
from activities.bucket.records import UploadStatus
from activities.errors import NoPages
from activities.interface import STORAGE_QUEUE, BucketState, ListSheets
from tests.waiting import until_async
from tests.workflow.fakes import FakeActivities, pages, working
from tests.workflow.runs import handle_of
from worker.app import activity_worker, workflow_worker
from workflows.starting import start_upload


async def test_ten_uploads_of_two_organizations_all_finish(client: Client) -> None:
    """Uploads that are started together all end, each in its own state."""
    fake = FakeActivities(pages(3), window=2)
    refs = [UploadRef(("acme", "zeta")[index % 2], "tower", "a1", secrets.token_hex(8)) for index in range(10)]
    async with working(client, fake, tile_slots=2):
        await asyncio.gather(*(start_upload(client, each) for each in refs))
        results = await asyncio.gather(*(handle_of(client, each).result() for each in refs))
    assert {result.status for result in results} == {UploadStatus.COMPLETE}


async def test_an_organization_with_much_to_do_does_not_stand_before_others(client: Client) -> None:
    """On the storage queue of the real server, 2 uploads that come after 20 of another organization are among the first 10."""
    refs = [UploadRef(organization, "tower", "a1", secrets.token_hex(8)) for organization in ("many",) * 20 + ("few",) * 2]
    served: list[str] = []

    class Noting(FakeActivities):
        @activity.defn
        async def list_sheets(self, args: ListSheets) -> BucketState:
            """Notes whose turn it is."""
            served.append(UploadRef.parse(args.ref).organization)
            return await super().list_sheets(args)

    async def is_waiting(ref: UploadRef) -> bool:
        return bool((await handle_of(client, ref).describe()).raw_description.pending_activities)

    fake = Noting(NoPages("none"))
    async with workflow_worker(client):
        for ref in refs:
            await start_upload(client, ref)
            await until_async(lambda ref=ref: is_waiting(ref))  # type: ignore[misc]
        async with activity_worker(client, STORAGE_QUEUE, 1, fake.list_sheets):
            await until_async(lambda: len(served) == len(refs))
        for ref in refs:
            await handle_of(client, ref).terminate()
    assert [place for place, organization in enumerate(served) if organization == "few"][-1] < 10
