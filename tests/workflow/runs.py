"""What the tests of the workflows share: a run is started, held, cancelled, and its end is read."""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle, WorkflowHistory
from temporalio.exceptions import ApplicationError, CancelledError

from activities.bucket.keys import UploadRef
from activities.bucket.records import Snapshot
from tests.waiting import until_async
from tests.workflow.fakes import FakeActivities, working
from workflows.starting import start_upload
from workflows.upload import ProcessUpload

HISTORIES = Path(__file__).parents[1] / "replay" / "histories"


def handle_of(client: Client, ref: UploadRef) -> WorkflowHandle[Any, Snapshot]:
    """The upload's latest run, whichever that is when it is asked."""
    return client.get_workflow_handle_for(ProcessUpload.run, ref.workflow_id)


async def keep_history(handle: WorkflowHandle[Any, Any], name: str) -> None:
    """Exports the history for the replay tests when ``SITELINK_KEEP_HISTORIES`` is set."""
    if os.environ.get("SITELINK_KEEP_HISTORIES"):
        HISTORIES.mkdir(exist_ok=True)
        (HISTORIES / f"{name}.json").write_text((await handle.fetch_history()).to_json())


def handover_in(history: WorkflowHistory) -> dict[str, Any]:
    """The argument with which a run was continued as new, as it is on the wire."""
    (payload,) = history.events[-1].workflow_execution_continued_as_new_event_attributes.input.payloads
    argument: dict[str, Any] = json.loads(payload.data)
    return argument


@asynccontextmanager
async def held_in_flight(
    client: Client, ref: UploadRef, fake: FakeActivities, sheets: int, *, tile_slots: int = 16
) -> AsyncIterator[WorkflowHandle[Any, Snapshot]]:
    """Workers that process the upload; so many of its sheets are in flight, and stay there until ``fake.gate`` is set."""
    fake.gate.clear()
    async with working(client, fake, tile_slots=tile_slots):
        await start_upload(client, ref)
        await until_async(lambda: fake.in_flight == sheets)
        yield handle_of(client, ref)


async def end_as_failed(handle: WorkflowHandle[Any, Any]) -> ApplicationError:
    """Waits for the end of a run, which must be a failure with a named error."""
    with pytest.raises(WorkflowFailureError) as failure:
        await handle.result()
    assert isinstance(failure.value.cause, ApplicationError)
    return failure.value.cause


async def end_as_cancelled(handle: WorkflowHandle[Any, Any]) -> None:
    """Waits for the end of a run, which must be its cancellation."""
    with pytest.raises(WorkflowFailureError) as failure:
        await handle.result()
    assert isinstance(failure.value.cause, CancelledError)


async def cancel_in_step(handle: WorkflowHandle[Any, Any], fake: FakeActivities, step: str) -> None:
    """Cancels a run while ``fake.stubborn`` holds it in this step; returns when Temporal has recorded that the activity shall stop."""
    await until_async(lambda: fake.reached == step)
    await handle.cancel()
    await until_async(lambda: has_cancelled_its_activities(handle))


async def has_cancelled_its_activities(handle: WorkflowHandle[Any, Any]) -> bool:
    """Whether the workflow has passed its cancellation on to every activity that is under way."""
    activities = (await handle.describe()).raw_description.pending_activities
    return {activity.state for activity in activities} == {PendingActivityState.PENDING_ACTIVITY_STATE_CANCEL_REQUESTED}


async def cancelled_after_one(client: Client, ref: UploadRef, fake: FakeActivities) -> list[int]:
    """Cancels the upload when its first sheet is committed, waits for its end and opens the gate; what was tiled until then."""
    await start_upload(client, ref)
    await until_async(lambda: len(fake.committed) == 1)
    await handle_of(client, ref).cancel()
    await end_as_cancelled(handle_of(client, ref))
    fake.gate.set()
    return list(fake.tiled)
