"""Starts, reopens and finds the workflows of an upload. Only this module decides when a workflow id may be used again."""

from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar

from temporalio.client import Client, WorkflowExecutionDescription, WorkflowExecutionStatus
from temporalio.common import (
    Priority,
    SearchAttributeKey,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.types import MethodAsyncSingleParam

from activities.bucket.keys import UploadRef
from activities.bucket.records import Layout, UploadStatus
from activities.interface import WORKFLOW_QUEUE, SendWebhook
from workflows.convert import ConvertUpload
from workflows.delete import DeleteUpload
from workflows.deliveries import appearance
from workflows.messages import SEARCH_ATTRIBUTES, ConvertInput, DeleteInput, Reconcile, SheetNumbers, UploadInput
from workflows.processing.calls import SHEET_TIMEOUT
from workflows.processing.display import ABOUT
from workflows.upload import ProcessUpload
from workflows.webhook import DeliverWebhook

T = TypeVar("T")

LOOK_AGAIN_S = (SHEET_TIMEOUT + timedelta(minutes=5)).total_seconds()
"""No activity that may write to the bucket runs for longer than this."""


def _search_attributes(ref: UploadRef, *status: UploadStatus) -> TypedSearchAttributes:
    values = (ref.organization, ref.project, ref.plan, *status)
    return TypedSearchAttributes(
        [
            SearchAttributePair(SearchAttributeKey.for_keyword(name), str(value))
            for name, value in zip(SEARCH_ATTRIBUTES, values, strict=False)
        ]
    )


def _summary(ref: UploadRef) -> str:
    return f"plan {ref.plan} of {ref.project}, {ref.organization}"


def _memo(request_id: str | None) -> dict[str, str]:
    return {"requestId": request_id} if request_id else {}


async def start_upload(
    client: Client, ref: UploadRef, *, sealed_password: str = "", lost: bool = False, request_id: str | None = None
) -> None:
    """Starts the workflow of an accepted upload, unless there has been a run already.

    Args:
        client: Connected to the namespace.
        ref: The upload.
        sealed_password: See ``UploadInput``.
        lost: Whether the upload had ended, and the run that went on with it was lost. See ``UploadInput``.
        request_id: The ``X-Request-ID`` of the request that starts the run. An operator finds it as ``requestId`` in the run's memo.

    Raises:
        RPCError: Temporal does not answer.
    """
    try:
        await client.start_workflow(
            ProcessUpload.run,
            UploadInput(str(ref), reopened=lost, sealed_password=sealed_password, lost=lost),
            id=ref.workflow_id,
            task_queue=WORKFLOW_QUEUE,
            id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            search_attributes=_search_attributes(ref, UploadStatus.QUEUED),
            memo=_memo(request_id),
            static_summary=_summary(ref),
            static_details=ABOUT,
            priority=Priority(fairness_key=ref.organization),
        )
    except WorkflowAlreadyStartedError:
        return


async def reopen_upload(
    client: Client,
    ref: UploadRef,
    signal: str,
    args: SheetNumbers | Reconcile = Reconcile(),  # noqa: B008 - frozen
    *,
    request_id: str | None = None,
) -> None:
    """Signals the running workflow, or starts it again with the signal when it has ended.

    The caller has checked that the upload exists.

    Args:
        client: Connected to the namespace.
        ref: The upload.
        signal: ``force_reconcile``, ``sheets_stored``, ``retry_sheets`` or ``prioritize``.
        args: The signal's argument.
        request_id: See ``start_upload``; only a run that the signal starts has it.

    Raises:
        RPCError: Temporal does not answer.
    """
    # The run cannot see whether this signal came before or after a cancellation, so the sender asks before it sends.
    run = await last_run(client, ref)
    if run is not None and run.raw_description.workflow_extended_info.cancel_requested:
        args = replace(args, after_cancel_of=run.run_id)
    await client.start_workflow(
        ProcessUpload.run,
        UploadInput(str(ref), reopened=True, lost=run is None),
        id=ref.workflow_id,
        task_queue=WORKFLOW_QUEUE,
        id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
        start_signal=signal,
        start_signal_args=[args],
        search_attributes=_search_attributes(ref, UploadStatus.QUEUED),
        memo=_memo(request_id),
        static_summary=_summary(ref),
        static_details=ABOUT,
        priority=Priority(fairness_key=ref.organization),
    )


async def start_deletion(client: Client, ref: UploadRef, *, look_again_s: float = LOOK_AGAIN_S, request_id: str | None = None) -> bool:
    """Starts the workflow that removes an upload. The caller has marked the upload deleted.

    Args:
        client: Connected to the namespace.
        ref: The upload.
        look_again_s: See ``DeleteInput``.
        request_id: See ``start_upload``.

    Returns:
        False if the workflow was running already.

    Raises:
        RPCError: Temporal does not answer.
    """
    argument = DeleteInput(str(ref), look_again_s)
    return await _start_if_idle(client, ref, DeleteUpload.run, argument, ref.delete_workflow_id, "delete", request_id)


async def _start_if_idle(
    client: Client,
    ref: UploadRef,
    run: MethodAsyncSingleParam[Any, T, Any],
    argument: T,
    workflow_id: str,
    name: str,
    request_id: str | None,
) -> bool:
    """Starts a workflow about an upload; returns False if one with this id was running already."""
    try:
        await client.start_workflow(
            run,
            argument,
            id=workflow_id,
            task_queue=WORKFLOW_QUEUE,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            search_attributes=_search_attributes(ref),
            memo=_memo(request_id),
            static_summary=f"{name}: {_summary(ref)}",
            priority=Priority(fairness_key=ref.organization),
        )
    except WorkflowAlreadyStartedError:
        return False
    return True


async def start_conversion(client: Client, ref: UploadRef, layout: Layout, *, request_id: str | None = None) -> bool:
    """Starts the workflow that converts an upload to another layout. The caller has checked that the upload exists and has ended.

    Args:
        client: Connected to the namespace.
        ref: The upload.
        layout: The layout that its sheets get.
        request_id: See ``start_upload``.

    Returns:
        False if a conversion of this upload was running already, perhaps to another layout.

    Raises:
        RPCError: Temporal does not answer.
    """
    argument = ConvertInput(str(ref), layout)
    return await _start_if_idle(client, ref, ConvertUpload.run, argument, ref.layout_workflow_id, layout, request_id)


async def start_delivery(client: Client, webhook: SendWebhook, *, again: bool = False) -> None:
    """Starts the delivery of a webhook, unless it was started before.

    Args:
        client: Connected to the namespace.
        webhook: The webhook.
        again: Send it again, also if it was delivered or given up. A delivery that waits for its next try makes that try now.

    Raises:
        RPCError: Temporal does not answer.
    """
    looks = appearance(webhook)
    with suppress(WorkflowAlreadyStartedError):
        await client.start_workflow(
            DeliverWebhook.run,
            webhook,
            id=looks.id,
            task_queue=WORKFLOW_QUEUE,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE if again else WorkflowIDReusePolicy.REJECT_DUPLICATE,
            start_signal=DeliverWebhook.redeliver.__name__ if again else None,
            search_attributes=looks.search_attributes,
            memo=looks.memo,
            static_summary=looks.summary,
            priority=looks.priority,
        )


async def last_run(client: Client, ref: UploadRef) -> WorkflowExecutionDescription | None:
    """The upload's last run, or None when Temporal knows no run.

    Raises:
        RPCError: Temporal does not answer.
    """
    try:
        return await client.get_workflow_handle(ref.workflow_id).describe()
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return None
        raise


async def tiles_wanted(client: Client, ref: UploadRef) -> set[str]:
    """The names of the tiled pages, on all hosts, that the upload's run still wants.

    Raises:
        RPCError: Temporal, or the worker that would answer for the run, does not answer.
        WorkflowQueryFailedError: The worker that has the run is of a release without this query.
    """
    handle = client.get_workflow_handle(ref.workflow_id)
    return set(await handle.query(ProcessUpload.tiles_wanted, rpc_timeout=timedelta(seconds=5)))


async def is_running(client: Client, ref: UploadRef) -> bool:
    """Whether the upload has a run that has not ended; raises the same errors as ``last_run``."""
    run = await last_run(client, ref)
    return run is not None and run.status is WorkflowExecutionStatus.RUNNING
