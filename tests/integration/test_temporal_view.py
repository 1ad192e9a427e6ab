"""What an operator finds in Temporal about real uploads: by the filters of deploy/README.md, and at which step an activity stands."""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from temporalio.api.sdk.v1 import WorkflowMetadata
from temporalio.client import Client

from activities.bucket.keys import UploadRef
from deploy.stack import Stack
from tests.chaos.guarantees import accepted, path_of, wait_for
from tests.resources.make_pdfs import bad_pages_among_good, password_needed, plan_set
from tests.servers.faults import Rule, faulty, held_until
from tests.servers.s3 import TestServer
from tests.waiting import until_async

pytestmark = pytest.mark.usefixtures("temporal_binary")

ROOT = Path(__file__).parents[2]


def filters() -> list[str]:
    """The filters of the README."""
    section = (ROOT / "deploy" / "README.md").read_text().split("### What the Temporal UI shows\n")[1].split("\n### ")[0]
    return re.findall(r"^\| `(.+?)` \|", section.split("| filter | finds |")[1], re.MULTILINE)


async def found(client: Client, query: str) -> set[str]:
    """The ids of the workflows that a filter finds."""
    return {run.id async for run in client.list_workflows(query)}


async def test_filters_find_what_the_readme_says(new_stack: Callable[..., Stack]) -> None:
    """Each filter is one that the server takes, and those with a status find the uploads that have it."""
    stack = new_stack()
    client = await Client.connect(stack.temporal_address)
    refs = {}
    for status, body in (("complete", plan_set(1)), ("partial", bad_pages_among_good()), ("failed", password_needed())):
        refs[status] = accepted(stack, body)
        assert wait_for(stack, path_of(refs[status]), lambda progress: progress["completedAt"] is not None)["status"] == status
    deleted = accepted(stack, plan_set(1), plan="b2")
    wait_for(stack, path_of(deleted), lambda progress: progress["completedAt"] is not None)
    httpx2.delete(stack.api_url + path_of(deleted), timeout=60, trust_env=False).raise_for_status()
    stack.kill("worker-tile")
    waiting = accepted(stack, plan_set(1))
    old, queued, partial, failed, plan, _, deletions = filters()

    async def finds(query: str, *expected: str) -> None:
        await until_async(lambda: _is_found(client, query, set(expected)))

    ids = {status: ref.workflow_id for status, ref in refs.items()}
    await finds(re.sub(r"'\d{4}-.*?'", "'2099-01-01T00:00:00Z'", old), waiting.workflow_id)
    assert await found(client, re.sub(r"'\d{4}-.*?'", "'2001-01-01T00:00:00Z'", old)) == set()
    await finds(queued, waiting.workflow_id)
    await finds(partial.replace("RenderTimeout", "PageUnreadable"), ids["partial"])
    await finds(failed, ids["failed"])
    await finds(plan, waiting.workflow_id, *ids.values())
    await finds(deletions, deleted.delete_workflow_id)
    for query in filters():
        await found(client, query)


async def _is_found(client: Client, query: str, expected: set[str]) -> bool:
    return await found(client, query) == expected


async def test_a_sheet_that_the_bucket_holds_up_says_so(new_stack: Callable[..., Stack], s3_server: TestServer) -> None:
    """The details name the host's queue and the sheet, and the activity's heartbeat how many tiles are written."""
    made, gate = s3_server.new_bucket(), threading.Event()
    with faulty(made.endpoint) as faults:
        settings = s3_server.settings(made.url.removeprefix("s3://"), endpoint=faults.url)
        faults.lay(Rule(held_until(gate), "PUT", r"sheet-1_files/"))
        stack = new_stack(**s3_server.environment(settings))
        client = await Client.connect(stack.temporal_address)
        ref = accepted(stack, plan_set(1, 300, 200))
        try:
            steps: list[str] = []

            async def writes() -> bool:
                steps[:] = await steps_of(client, ref)
                return any("writes the tiles" in step for step in steps)

            await until_async(writes)
            details = (await handle(client, ref).query("__temporal_workflow_metadata", result_type=WorkflowMetadata)).current_details
        finally:
            gate.set()
        assert wait_for(stack, path_of(ref), lambda progress: progress["completedAt"] is not None)["status"] == "complete"
    assert re.fullmatch(r"writes the tiles: 0 of \d+ are written", steps[0])
    assert re.search(r"It waits for\n\n- since \S+ \S+ UTC: `upload_page` on the task queue `host-\S+`: sheet 1: A-101", details)


def handle(client: Client, ref: UploadRef) -> Any:
    """The upload's run."""
    return client.get_workflow_handle(ref.workflow_id)


async def steps_of(client: Client, ref: UploadRef) -> list[str]:
    """The steps at which the upload's activities are."""
    waiting = (await handle(client, ref).describe()).raw_description.pending_activities
    return [
        step for each in waiting for step in await client.data_converter.decode(each.heartbeat_details.payloads) if isinstance(step, str)
    ]
