"""Deletion, schedules and scratch of the whole stack, with its processes killed and its runs ended from outside."""

import asyncio
from collections.abc import Callable

import httpx2 as httpx
from temporalio.client import Client

from activities.bucket.keys import UploadRef
from activities.bucket.storage import Bucket, BucketSettings
from deploy.local import Stack
from tests.chaos.test_worker_killed import DEADLINE_S, send, wait_for, wait_until_scratch_is_empty
from tests.resources.make_pdfs import plan_set
from tests.servers.s3 import TestServer
from tests.workflow.runs import until
from worker.schedules import SWEEP
from workflows.starting import is_running, start_deletion


def ref_of(upload: str) -> UploadRef:
    """The upload whose path this is."""
    return UploadRef("acme", "tower", "a1", upload.rsplit("/", 1)[-1])


def objects(bucket: Bucket, ref: UploadRef) -> list[str]:
    """The keys of everything below the upload's prefix."""
    return sorted(info.key for info in bucket.objects(ref.prefix))


async def look_again_soon(client: Client, ref: UploadRef) -> None:
    """An operator ends the removal in its long wait; it is started again with a short one."""
    await client.get_workflow_handle(ref.delete_workflow_id).terminate()
    await start_deletion(client, ref, look_again_s=0.5)
    await client.get_workflow_handle(ref.delete_workflow_id).result()


async def test_deletion_survives_the_death_of_its_workers(new_stack: Callable[..., Stack]) -> None:
    """SIGKILL of both workers while an upload is processed and deleted: it goes on, late writers lose, and nothing is left anywhere."""
    stack = new_stack()
    client = await Client.connect(stack.temporal_address)
    bucket = Bucket(BucketSettings((stack.data_dir / "bucket").as_uri()))
    upload = send(stack, plan_set(8))
    ref = ref_of(upload)
    await asyncio.to_thread(wait_for, stack, upload, lambda status: status["completedPages"] >= 1)
    assert (await asyncio.to_thread(httpx.delete, stack.api_url + upload, timeout=DEADLINE_S)).status_code == 202
    for name in ("worker-tile", "worker-workflow"):
        stack.kill(name)
    assert (await asyncio.to_thread(httpx.get, stack.api_url + upload, timeout=DEADLINE_S)).status_code == 404
    assert (await asyncio.to_thread(httpx.delete, stack.api_url + upload, timeout=DEADLINE_S)).status_code == 202
    for name in ("worker-tile", "worker-workflow"):
        stack.start_process(name)
    await until(lambda: objects(bucket, ref) == [ref.record], DEADLINE_S)
    assert not await is_running(client, ref)
    bucket.put(ref.descriptor(8), b"a worker that nobody reached")
    await look_again_soon(client, ref)
    left = await asyncio.to_thread(lambda: [*(stack.data_dir / "bucket" / ref.plan_ref.uploads_prefix).rglob("*")])
    assert left == []
    assert (await asyncio.to_thread(httpx.delete, stack.api_url + upload, timeout=DEADLINE_S)).status_code == 404
    await asyncio.to_thread(wait_until_scratch_is_empty, stack)


async def test_deletion_on_a_server_leaves_nothing(new_stack: Callable[..., Stack], s3_server: TestServer) -> None:
    """The same job over S3: every object goes while its sheets are being written."""
    settings = s3_server.new_bucket()
    stack, bucket = new_stack(**s3_server.environment(settings)), Bucket(settings)
    client = await Client.connect(stack.temporal_address)
    upload = send(stack, plan_set(4))
    ref = ref_of(upload)
    await asyncio.to_thread(wait_for, stack, upload, lambda status: status["completedPages"] >= 1)
    assert (await asyncio.to_thread(httpx.delete, stack.api_url + upload, timeout=DEADLINE_S)).status_code == 202
    await until(lambda: objects(bucket, ref) == [ref.record], DEADLINE_S)
    await look_again_soon(client, ref)
    assert objects(bucket, ref) == []


async def test_paused_schedule_stays_paused_over_a_new_start(new_stack: Callable[..., Stack]) -> None:
    """The stack makes the schedules; a worker that starts again resumes none. Triggered by hand, a pass says what it did."""
    stack = new_stack()
    client = await Client.connect(stack.temporal_address)
    handle = client.get_schedule_handle(SWEEP)
    await until(lambda: is_there(client, SWEEP))
    await handle.pause(note="not now")
    stack.kill("worker-workflow")
    log = stack.processes["worker-workflow"].log
    said = len(log.read_text())
    stack.start_process("worker-workflow")
    await until(lambda: "workflow worker runs" in log.read_text()[said:] or len(log.read_text()) < said)
    bucket = Bucket(BucketSettings((stack.data_dir / "bucket").as_uri()))
    bucket.put("organizations/acme/projects/tower/plans/a1/uploads/u1/source.pdf", b"%PDF-1.7")
    await handle.trigger()
    await until(lambda: has_run(client, SWEEP))
    state = (await handle.describe()).schedule.state
    assert (state.paused, state.note) == (True, "not now")


async def is_there(client: Client, name: str) -> bool:
    """Whether the schedule has been made."""
    return any([entry.id == name async for entry in await client.list_schedules()])


async def has_run(client: Client, name: str) -> bool:
    """Whether a run of the schedule has ended well."""
    return bool([run async for run in client.list_workflows("WorkflowType = 'Sweep' AND ExecutionStatus = 'Completed'")])


async def test_pages_of_an_ended_run_hold_nobody_up(new_stack: Callable[..., Stack]) -> None:
    """Terminated in the middle: a worker that is told to stop waits for no tiles that nobody uploads; the scratch is empty."""
    stack = new_stack()
    client = await Client.connect(stack.temporal_address)
    upload = send(stack, plan_set(8))
    await asyncio.to_thread(wait_for, stack, upload, lambda status: status["completedPages"] >= 1)
    stack.kill("worker-workflow")  # so that tiled pages wait for their upload
    pages = stack.data_dir / "scratch" / "pages"
    await until(lambda: any(path.suffix == "" for path in pages.iterdir()), DEADLINE_S)
    await client.get_workflow_handle(ref_of(upload).workflow_id).terminate()
    worker = stack.processes["worker-tile"]
    first = worker.pid
    worker.terminate()
    await until(lambda: worker.pid != first or not worker.is_running, DEADLINE_S)
    assert [*pages.iterdir()] == []
    stack.start_process("worker-workflow")
