"""How long a run knows the sealed password of its document."""

from pathlib import Path

from temporalio import activity
from temporalio.client import Client

from activities.bucket.keys import UploadRef
from activities.bucket.records import UploadStatus
from activities.errors import PageUnreadable, PasswordRequired
from activities.interface import CountPages, Document, TiledPage, TilePage
from deploy.temporal import TemporalServer
from tests.unit.test_progress import record
from tests.waiting import until_async
from tests.workflow.fakes import FakeActivities, pages, working
from tests.workflow.runs import cancelled_after_one, end_as_failed, handle_of
from workflows.messages import Reconcile, SheetNumbers
from workflows.starting import reopen_upload, start_upload


class Listening(FakeActivities):
    """Notes the sealed passwords that the rendering activities get."""

    def __init__(self, count: int, window: int = 16) -> None:
        super().__init__(pages(count), window=window)
        self.heard: list[str] = []

    @activity.defn
    async def count_pages(self, args: CountPages) -> Document:
        """Notes it, and counts."""
        self.heard.append(args.sealed_password)
        return await super().count_pages(args)

    @activity.defn
    async def tile_page(self, args: TilePage) -> TiledPage:
        """Notes it, and tiles."""
        self.heard.append(args.sealed_password)
        return await super().tile_page(args)


async def test_password_goes_to_every_activity_of_its_run_alone(client: Client, ref: UploadRef) -> None:
    """A run that is reopened has the password only if the request brings it, and forgets it again."""
    fake = Listening(2)
    fake.tile_errors[2] = [PageUnreadable("1"), PageUnreadable("2"), PageUnreadable("3")]
    async with working(client, fake):
        await start_upload(client, ref, sealed_password="first")  # noqa: S106 - of a test
        await handle_of(client, ref).result()
        assert fake.heard == ["first"] * 3
        for sealed in ("", "second", ""):
            await reopen_upload(client, ref, "retry_sheets", SheetNumbers((2,), sealed_password=sealed))
            await handle_of(client, ref).result()
    assert fake.heard[3:] == ["", "second", ""]


async def test_refused_document_is_counted_again_with_the_password_of_a_reconcile(client: Client, ref: UploadRef) -> None:
    """Also when the reconcile arrives while the run that lacks it counts the pages."""
    fake = Listening(1)
    good, fake.pages = fake.pages, PasswordRequired("none")
    fake.stubborn = "count_pages"
    async with working(client, fake):
        await start_upload(client, ref)
        await until_async(lambda: fake.reached == "count_pages")
        await reopen_upload(client, ref, "force_reconcile", Reconcile(sealed_password="given"))  # noqa: S106 - of a test
        fake.released.set()
        await end_as_failed(handle_of(client, ref))
        assert fake.heard == ["", "given"]
        fake.pages = good
        await reopen_upload(client, ref, "force_reconcile", Reconcile(sealed_password="right"))  # noqa: S106 - of a test
        result = await handle_of(client, ref).result()
    assert result.status is UploadStatus.COMPLETE
    assert fake.heard[2:] == ["right", "right"]


async def test_cancelled_upload_forgets_its_password(client: Client, ref: UploadRef) -> None:
    """A resumed upload needs it again."""
    fake = Listening(3, window=1)
    fake.closes_after = 1
    async with working(client, fake):
        await cancelled_after_one(client, ref, fake)
        before = len(fake.heard)
        fake.gate.set()
        await reopen_upload(client, ref, "retry_sheets", SheetNumbers(sealed_password="again"))  # noqa: S106 - of a test
        result = await handle_of(client, ref).result()
    assert result.status is UploadStatus.COMPLETE
    assert set(fake.heard[before:]) == {"again"}


async def test_password_crosses_continue_as_new(temporal_binary: Path, tmp_path: Path, ref: UploadRef) -> None:
    """A long upload goes through several runs, and each of them opens the document."""
    server = TemporalServer(temporal_binary, tmp_path / "temporal.db", dynamic_config={"limit.historyCount.suggestContinueAsNew": "60"})
    server.start()
    try:
        client = await Client.connect(server.address, identity="test")
        fake = Listening(30, window=4)
        async with working(client, fake):
            await start_upload(client, ref, sealed_password="kept")  # noqa: S106 - of a test
            first = (await handle_of(client, ref).describe()).run_id
            result = await client.get_workflow_handle(ref.workflow_id).result()
            assert (await handle_of(client, ref).describe()).run_id != first
        assert result["status"] == "complete"
        assert fake.heard == ["kept"] * 31
    finally:
        server.stop()


async def test_sheets_stay_counted_when_a_lost_run_takes_the_password_with_it(client: Client, ref: UploadRef) -> None:
    """The next run cannot open the document and fails. It does not forget the sheets that the bucket holds, and clients know."""
    fake = FakeActivities(PasswordRequired("the server has none"))
    fake.committed[1] = record(1)
    async with working(client, fake):
        await start_upload(client, ref)
        await until_async(lambda: fake.manifest is not None)
    assert fake.manifest is not None
    assert (fake.manifest.status, fake.manifest.reason) == (UploadStatus.FAILED, "PasswordRequired")
    assert (fake.manifest.completed_pages, [sheet.number for sheet in fake.manifest.sheets]) == (1, [1])
