"""How an upload's workflow is started and reopened: the rules of the design in one place."""

from temporalio.client import Client
from temporalio.common import (
    Priority,
    SearchAttributeKey,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError

from activities.interface import WORKFLOW_QUEUE
from activities.keys import UploadRef
from activities.records import UploadStatus
from workflows.messages import SEARCH_ATTRIBUTES, Reconcile, SheetNumbers, UploadInput
from workflows.upload import ProcessUpload


def _search_attributes(ref: UploadRef) -> TypedSearchAttributes:
    values = (ref.organization, ref.project, ref.plan, UploadStatus.QUEUED)
    return TypedSearchAttributes(
        [
            SearchAttributePair(SearchAttributeKey.for_keyword(name), str(value))
            for name, value in zip(SEARCH_ATTRIBUTES, values, strict=False)
        ]
    )


def _summary(ref: UploadRef) -> str:
    return f"plan {ref.plan} of {ref.project}, {ref.organization}"


async def start(client: Client, ref: UploadRef) -> None:
    """Starts the workflow of an accepted upload; a run that is there already, even a finished one, is success.

    Raises:
        RPCError: Temporal does not answer.
    """
    try:
        await client.start_workflow(
            ProcessUpload.run,
            UploadInput(str(ref)),
            id=ref.workflow_id,
            task_queue=WORKFLOW_QUEUE,
            id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            search_attributes=_search_attributes(ref),
            static_summary=_summary(ref),
            priority=Priority(fairness_key=ref.organization),
        )
    except WorkflowAlreadyStartedError:
        return


async def reopen(client: Client, ref: UploadRef, signal: str, *args: SheetNumbers | Reconcile) -> None:
    """Signals the running workflow, or starts it again with the signal when it has ended.

    The caller has checked that the upload exists.

    Args:
        client: Connected to the namespace.
        ref: The upload.
        signal: ``force_reconcile``, ``sheets_stored``, ``retry_sheets`` or ``prioritize``.
        args: The signal's argument, if it takes one.

    Raises:
        RPCError: Temporal does not answer.
    """
    await client.start_workflow(
        ProcessUpload.run,
        UploadInput(str(ref), reopened=True),
        id=ref.workflow_id,
        task_queue=WORKFLOW_QUEUE,
        id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
        start_signal=signal,
        start_signal_args=args,
        search_attributes=_search_attributes(ref),
        static_summary=_summary(ref),
        priority=Priority(fairness_key=ref.organization),
    )
