"""The API is killed while it passes the body of an upload on to an S3 server in parts."""

import asyncio
import hashlib
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from temporalio.client import Client

from activities.bucket.setup import BucketSetup
from activities.bucket.storage import PART_BYTES, Bucket
from activities.interface import WORKFLOW_QUEUE, SweepBucket, Swept
from deploy.stack import Stack
from tests.chaos.guarantees import PLAN, Watch, accepted, assert_whole, sheets_of
from tests.resources.make_pdfs import plan_set
from tests.servers.s3 import TestServer, count_parts
from tests.waiting import DEADLINE_S, until_async
from workflows.sweep import Sweep

ABANDONED_AFTER_S = 1
PLAN_NAME, KEY = "killed", "tower-revision-7"


@contextmanager
def half_sent(stack: Stack, body: bytes) -> Iterator[None]:
    """A request whose client has sent the first two parts of the body, and waits."""
    where = urlsplit(stack.api_url)
    lines = [
        f"POST {PLAN.format(plan=PLAN_NAME)}?filename=plan.pdf&layout=exploded HTTP/1.1",
        f"Host: {where.netloc}",
        "Content-Type: application/pdf",
        f"Content-Length: {len(body)}",
        f"Idempotency-Key: {KEY}",
    ]
    with socket.create_connection((where.hostname, where.port), timeout=DEADLINE_S) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body[: 2 * PART_BYTES])
        yield


async def test_kill_in_the_middle_of_a_body_leaves_parts_only_until_the_sweep(
    new_stack: Callable[..., Stack], s3_server: TestServer
) -> None:
    """SIGKILL of the API when the bucket has the first part of a body: the client sends it again, with the same Idempotency-Key.

    That upload completes. The parts of the killed request, which nobody can complete or abort any more, stay until the sweep.
    """
    settings = s3_server.new_bucket()
    stack, bucket, setup = new_stack(**s3_server.environment(settings)), Bucket(settings), BucketSetup(settings)
    body = plan_set(2, 500, 400, padding=random.Random(1).randbytes(20 << 20))  # noqa: S311 - no secret
    with half_sent(stack, body):
        await until_async(lambda: asyncio.to_thread(count_parts, settings))
        stack.kill("api")
    stack.start_process("api")
    ref = await asyncio.to_thread(accepted, stack, body, PLAN_NAME, key=KEY)
    with Watch(stack, ref) as watch:
        end = await asyncio.to_thread(watch.end)
    assert (end["status"], end["completedPages"]) == ("complete", 2)
    source = await asyncio.to_thread(bucket.get, ref.source)
    assert hashlib.sha256(source.body).digest() == hashlib.sha256(body).digest()

    (left,) = setup.unfinished_uploads()
    assert left.key != ref.source
    await until_async(lambda: datetime.now(UTC) - left.started_at > timedelta(seconds=2 * ABANDONED_AFTER_S))
    swept = await sweep(stack)
    assert swept.aborted.first == (left.key,)
    sheets = await asyncio.to_thread(sheets_of, bucket, ref)
    await asyncio.to_thread(assert_whole, settings, ref, sheets)  # asks also for unfinished uploads
    assert setup.unfinished_uploads() == []


async def sweep(stack: Stack) -> Swept:
    """Sweeps the bucket, as the schedules do, but sooner after the last part."""
    client = await Client.connect(stack.temporal_address)
    return await client.execute_workflow(
        Sweep.run, SweepBucket(abandoned_after_s=ABANDONED_AFTER_S), id="sweep-of-a-test", task_queue=WORKFLOW_QUEUE
    )
