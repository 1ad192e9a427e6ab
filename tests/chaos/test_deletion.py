"""Deletion, schedules and scratch of whole stacks whose processes are killed and whose runs are ended from outside."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import httpx2
from temporalio.client import Client, ScheduleActionExecutionStartWorkflow, ScheduleHandle

from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.storage import Bucket
from deploy.stack import Stack
from tests.chaos.guarantees import accepted, address, path_of, wait_for, wait_until_scratch_is_empty
from tests.resources.make_pdfs import plan_set
from tests.servers.s3 import TestServer
from tests.waiting import DEADLINE_S, until_async
from worker.schedules import SWEEP
from workflows.starting import is_running, start_deletion


def directory_of(stack: Stack) -> Path:
    """The stack's bucket."""
    return stack.data_dir / "bucket"


def objects(bucket: Bucket, ref: UploadRef) -> list[str]:
    """The keys of every object of the upload."""
    return sorted(info.key for info in bucket.objects(ref.prefix))


async def begun(stack: Stack, pages: int, plan: str) -> UploadRef:
    """An upload with at least one sheet that is ready."""
    ref = await asyncio.to_thread(accepted, stack, plan_set(pages), plan)
    await asyncio.to_thread(wait_for, stack, path_of(ref), lambda status: status["completedPages"] >= 1)
    return ref


async def ask(method: str, stack: Stack, ref: UploadRef) -> int:
    """Sends a request for the upload; returns the answer's status."""
    return (await asyncio.to_thread(httpx2.request, method, address(stack, ref), timeout=DEADLINE_S)).status_code


async def look_again_soon(client: Client, ref: UploadRef) -> None:
    """Ends the deletion's workflow in its long wait, and starts another one with a short wait."""
    await client.get_workflow_handle(ref.delete_workflow_id).terminate()
    await start_deletion(client, ref, look_again_s=0.5)
    await client.get_workflow_handle(ref.delete_workflow_id).result()


async def test_deletion_survives_the_death_of_its_workers(stack_to_kill: Stack) -> None:
    """SIGKILL of both workers while an upload is processed and deleted: it goes on, a late writer loses, and nothing stays."""
    stack = stack_to_kill
    client = await Client.connect(stack.temporal_address)
    bucket = Bucket(BucketSettings(directory_of(stack).as_uri()))
    ref = await begun(stack, 8, "deleted")
    assert await ask("DELETE", stack, ref) == 202
    for name in ("worker-tile", "worker-workflow"):
        stack.kill(name)
    assert await ask("GET", stack, ref) == 404
    assert await ask("DELETE", stack, ref) == 202
    for name in ("worker-tile", "worker-workflow"):
        stack.start_process(name)
    await until_async(lambda: objects(bucket, ref) == [ref.record])
    assert not await is_running(client, ref)
    bucket.put(ref.descriptor(8), b"from a worker that could not be reached")
    await look_again_soon(client, ref)
    uploads = directory_of(stack) / ref.plan_ref.uploads_prefix
    assert await asyncio.to_thread(lambda: [*uploads.rglob("*")]) == []
    assert await ask("DELETE", stack, ref) == 404
    await asyncio.to_thread(wait_until_scratch_is_empty, stack)


async def test_deletion_on_a_server_leaves_nothing(new_stack: Callable[..., Stack], s3_server: TestServer) -> None:
    """Over S3 an upload is deleted while its sheets are written: every object goes."""
    settings = s3_server.new_bucket()
    stack, bucket = new_stack(**s3_server.environment(settings)), Bucket(settings)
    client = await Client.connect(stack.temporal_address)
    ref = await begun(stack, 4, "deleted")
    assert await ask("DELETE", stack, ref) == 202
    await until_async(lambda: objects(bucket, ref) == [ref.record])
    await look_again_soon(client, ref)
    assert objects(bucket, ref) == []


async def test_paused_schedule_stays_paused_over_a_new_start(stack_to_kill: Stack) -> None:
    """A worker that starts again does not resume a schedule. Triggered by hand, the schedule still runs, and its run says what it did."""
    client = await Client.connect(stack_to_kill.temporal_address)
    schedule = client.get_schedule_handle(SWEEP)
    await until_async(lambda: is_there(client, SWEEP))
    await schedule.pause(note="not now")
    stack_to_kill.kill("worker-workflow")
    log = stack_to_kill.processes["worker-workflow"].log
    said = len(log.read_text())
    stack_to_kill.start_process("worker-workflow")
    await until_async(lambda: "workflow worker runs" in log.read_text()[said:])
    await begun(stack_to_kill, 1, "swept")
    runs = await run_ids(schedule)
    await schedule.trigger()
    await until_async(lambda: has_new_run(schedule, runs))
    run = (await schedule.describe()).info.recent_actions[-1].action
    assert isinstance(run, ScheduleActionExecutionStartWorkflow)
    report = await client.get_workflow_handle(run.workflow_id, run_id=run.first_execution_run_id).result()
    uploads = [*directory_of(stack_to_kill).glob("organizations/*/projects/*/plans/*/uploads/*")]
    assert (report["uploads"], report["passed_over"]["count"]) == (len(uploads), 0)
    state = (await schedule.describe()).schedule.state
    assert (state.paused, state.note) == (True, "not now")
    await schedule.unpause()


async def is_there(client: Client, name: str) -> bool:
    """Whether the schedule has been made."""
    return any([entry.id == name async for entry in await client.list_schedules()])


async def run_ids(schedule: ScheduleHandle) -> list[str]:
    """The schedule's latest runs, oldest first."""
    actions = [result.action for result in (await schedule.describe()).info.recent_actions]
    return [action.first_execution_run_id for action in actions if isinstance(action, ScheduleActionExecutionStartWorkflow)]


async def has_new_run(schedule: ScheduleHandle, runs: list[str]) -> bool:
    """Whether the schedule has started another run since ``runs`` were its latest."""
    return await run_ids(schedule) != runs


async def test_pages_of_an_ended_run_hold_nobody_up(stack_to_kill: Stack) -> None:
    """A run is terminated in the middle: a worker that is told to stop does not wait for tiles that nobody will upload."""
    stack = stack_to_kill
    client = await Client.connect(stack.temporal_address)
    ref = await begun(stack, 8, "ended")
    stack.kill("worker-workflow")  # so that tiled pages wait for their upload
    pages = stack.data_dir / "scratch" / "pages"
    await until_async(lambda: any(path.suffix == "" for path in pages.iterdir()))
    await client.get_workflow_handle(ref.workflow_id).terminate()
    worker = stack.processes["worker-tile"]
    first = worker.pid
    worker.terminate()
    await until_async(lambda: worker.pid != first or not worker.is_running)
    assert [*pages.iterdir()] == []
