"""Histories of real runs still replay: a deploy of changed workflow code breaks no run that is under way.

The histories are exported by ``tests/workflow`` when ``SITELINK_KEEP_HISTORIES`` is set. A change to the issued commands ships with
``workflow.patched`` and one more history; an old history is never replaced.
"""

import base64
import json
from pathlib import Path

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

from worker.app import VERSIONED_WORKFLOWS, WORKFLOWS
from workflows.codec import data_converter

HISTORIES = Path(__file__).parent / "histories"
KEY = bytes(range(32))
"""That of the encrypted history, from ``tests/workflow/test_encryption.py``."""


@pytest.mark.parametrize("path", sorted(HISTORIES.glob("*.json")), ids=lambda path: path.stem)
@pytest.mark.parametrize("workflows", [WORKFLOWS, VERSIONED_WORKFLOWS], ids=["", "versioned"])
async def test_history_replays(path: Path, workflows: tuple[type, ...]) -> None:
    """The workflow issues the same commands as when the history was recorded: in clear, or encrypted."""
    await Replayer(workflows=workflows, data_converter=data_converter([KEY])).replay_workflow(_history(path.stem))


def test_encrypted_history_shows_no_title() -> None:
    """The history that was recorded with a key is encrypted."""
    assert b"A-10" not in b"".join(event.SerializeToString() for event in _history("encrypted").events)


@pytest.mark.parametrize(
    ("name", "event"),
    [
        ("plain", "EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED"),
        ("continue-as-new-first", "EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW"),
        ("cancelled", "EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED"),
        ("reopened", "EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED"),
        ("reconciled", "EVENT_TYPE_MARKER_RECORDED"),
        ("stored", "EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED"),
        ("cancelled-and-cleaned", "EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED"),
        ("fell-silent", "EVENT_TYPE_TIMER_FIRED"),
        ("cancelled-then-retried", "EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW"),
        ("cancelled-before-loaded", "EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED"),
        ("check-failed", "EVENT_TYPE_ACTIVITY_TASK_FAILED"),
        ("deleted", "EVENT_TYPE_TIMER_FIRED"),
        ("halved", "EVENT_TYPE_MARKER_RECORDED"),
        ("terminated-then-reconciled", "EVENT_TYPE_WORKFLOW_EXECUTION_FAILED"),
        ("swept", "EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED"),
        ("nightly", "EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED"),
        ("webhooks", "EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_STARTED"),
        ("webhooks-of-sheets", "EVENT_TYPE_TIMER_FIRED"),
        ("converted", "EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED"),
        ("converted-in-runs", "EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW"),
        ("conversion-cancelled", "EVENT_TYPE_MARKER_RECORDED"),
        ("reopened-after-its-end", "EVENT_TYPE_MARKER_RECORDED"),
        ("reopened-while-it-ends", "EVENT_TYPE_MARKER_RECORDED"),
        ("lost-and-resumed", "EVENT_TYPE_MARKER_RECORDED"),
        ("redelivered", "EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED"),
    ],
)
def test_history_proves_what_its_name_says(name: str, event: str) -> None:
    """The histories cover the ways in which a run goes."""
    assert EventType.Value(event) in {each.event_type for each in _history(name).events}


def test_retried_sheet_was_attempted_twice() -> None:
    """The history with a retried sheet holds a second attempt."""
    assert 2 in [each.activity_task_started_event_attributes.attempt for each in _history("retried-sheet").events]


async def test_run_of_an_earlier_release_does_not_look_for_a_lost_one() -> None:
    """Its tile worker is of this release, and has found the record of a lost run. The sheets of the bucket are not taken then, either."""
    history = _history("reconciled").to_json_dict()
    (result,) = (
        event["activityTaskCompletedEventAttributes"]["result"]["payloads"][0] for event in history["events"] if event["eventId"] == "10"
    )
    state = json.loads(base64.b64decode(result["data"]))
    assert len(state["committed"]) == 2
    state |= {"committed": [], "reopened": {"manifest_version": state["manifest"]["version"], "retries": [[]]}}
    result["data"] = base64.b64encode(json.dumps(state).encode()).decode()
    await Replayer(workflows=WORKFLOWS).replay_workflow(WorkflowHistory.from_json("altered", history))


def _history(name: str) -> WorkflowHistory:
    return WorkflowHistory.from_json(name, (HISTORIES / f"{name}.json").read_text())
