"""Deletion and sweep over a real S3 server, with a real Temporal server; only the work on sheets is pretended."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
from temporalio.client import Client

from activities.bucket.keys import UploadRef
from activities.bucket.records import BegunRecord, KeyRecord, UploadOptions, timestamp, to_json
from activities.bucket.report import NameList
from activities.bucket.setup import BucketSetup
from activities.bucket.storage import Bucket
from activities.interface import WORKFLOW_QUEUE, SweepBucket, Swept
from api.uploads import new_upload_id
from deploy.temporal import TemporalServer
from tests.servers.s3 import TestServer
from tests.waiting import until_async
from tests.workflow.runs import handle_of
from tests.workflow.test_housekeeping import OLD, Activities, accept, at_work, mark, new_ref
from workflows.starting import start_deletion, start_upload
from workflows.sweep import Sweep

PART = 8 << 20


@pytest.fixture
async def client(temporal_server: TemporalServer) -> Client:
    """A client of the real server."""
    return await Client.connect(temporal_server.address)


@asynccontextmanager
async def house(client: Client, server: TestServer) -> AsyncIterator[tuple[Activities, Bucket, BucketSetup]]:
    """Workers over a new bucket, which others use, too: ours is a prefix in it."""
    settings = server.new_bucket("site/plans")
    bucket, setup = Bucket(settings), BucketSetup(settings)
    fake = Activities(2, bucket)
    async with at_work(client, fake, setup):
        yield fake, bucket, setup


def keys(bucket: Bucket, prefix: str) -> list[str]:
    """Every object's."""
    return sorted(info.key for info in bucket.objects(prefix))


async def sweep(client: Client, abandoned_after_s: int) -> Swept:
    """One pass over everything; the server's clock tells what is old."""
    args = SweepBucket(abandoned_after_s=abandoned_after_s)
    return await client.execute_workflow(Sweep.run, args, id=f"sweep-{new_upload_id()}", task_queue=WORKFLOW_QUEUE)


async def test_deleted_while_processing_leaves_nothing_on_a_server(client: Client, s3_server: TestServer) -> None:
    """More objects than one LIST or one request takes, an unfinished multipart upload, a late ``.dzi``, the Idempotency-Key."""
    async with house(client, s3_server) as (fake, bucket, setup):
        ref, other = accept(bucket, new_ref()), accept(bucket, new_ref())
        key, foreign = (ref.plan_ref.idempotency_key(name) for name in ("ours", "others"))
        for name, upload in ((key, ref), (foreign, other)):
            bucket.put(name, to_json(KeyRecord(upload.upload, "0" * 64)))
        setup.start_upload(ref.source)
        fake.gate.clear()
        await start_upload(client, ref)
        await until_async(lambda: len(fake.tiled) == 2)
        for n in range(1005):
            await bucket.put_async(f"{ref.tiles_prefix(1)}11/{n}_0.jpeg", b"tile")
        mark(bucket, ref)
        await start_deletion(client, ref, look_again_s=10)
        await until_async(lambda: keys(bucket, ref.prefix) == [ref.record])
        bucket.put(ref.descriptor(1), b"late")
        result = await client.get_workflow_handle(ref.delete_workflow_id).result()
        assert result["objects"] == 1007
        assert keys(bucket, ref.plan_ref.prefix) == [foreign, other.source, other.record]
        assert setup.unfinished_uploads() == []


async def test_sweep_over_a_server(client: Client, s3_server: TestServer) -> None:
    """Accepted uploads are started; what was never accepted goes once it is old, its multipart upload with it; fresh ones stay."""
    async with house(client, s3_server) as (_, bucket, setup):
        accepted, old, fresh = accept(bucket, new_ref()), new_ref(OLD), new_ref()
        for ref in (old, fresh):
            bucket.put(ref.source, b"%PDF-1.7")
        stale_key, waiting = new_ref().source, new_ref()
        multipart = setup.start_upload(waiting.source)
        now = timestamp(datetime.now(UTC))
        bucket.put(waiting.begun, to_json(BegunRecord("plan.pdf", PART, None, PART, UploadOptions(), now, multipart_id=multipart)))
        stale, elsewhere = setup.start_upload(stale_key), setup.start_upload("not/ours.pdf")
        swept = await sweep(client, 24 * 60 * 60)
        assert (swept.uploads, swept.started, swept.removed) == (4, NameList(1, (str(accepted),)), NameList())  # both were written just now
        assert {upload.upload_id for upload in setup.unfinished_uploads()} == {stale, elsewhere, multipart}
        assert keys(bucket, fresh.prefix) == [fresh.source]

        await until_async(lambda: is_older(bucket, old, 2))
        swept = await sweep(client, 1)
        assert str(old) in swept.removed.first
        assert keys(bucket, old.prefix) == []
        assert swept.aborted == NameList(1, (stale_key,))
        assert {upload.upload_id for upload in setup.unfinished_uploads()} == {elsewhere, multipart}

        expired = timestamp(datetime.now(UTC) - timedelta(days=7, minutes=1))
        bucket.put(waiting.begun, to_json(BegunRecord("plan.pdf", PART, None, PART, UploadOptions(), expired, multipart_id=multipart)))
        await until_async(lambda: is_older(bucket, waiting, 2))
        assert str(waiting) in (await sweep(client, 1)).removed.first
        assert [upload.upload_id for upload in setup.unfinished_uploads()] == [elsewhere]
        await handle_of(client, accepted).result()


def is_older(bucket: Bucket, ref: UploadRef, seconds: float) -> bool:
    """Whether nothing was written there for so long."""
    written = bucket.last_written(ref.prefix)
    return written is not None and datetime.now(UTC) - written > timedelta(seconds=seconds)
