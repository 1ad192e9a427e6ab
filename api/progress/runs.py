"""The API's requests to Temporal about the runs of uploads. Every failure of Temporal becomes a named error.

Oddities, all on purpose:

1. When no server answers, a lazy client raises a bare ``RuntimeError`` (temporalio ``service.py``, ``_connected_client``).
2. ``execute_update`` turns the cancellation of its task into an error of its own, so it runs in a separate task here.
3. ``progress`` does not query a closed run: the final progress is in the bucket, and Temporal would replay the run's history for seconds.
   ``last_progress`` queries a closed run, for the case that the bucket lacks the final progress.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.client import (
    Client,
    RPCTimeoutOrCancelledError,
    WorkflowExecution,
    WorkflowExecutionStatus,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
    WorkflowUpdateFailedError,
)
from temporalio.common import QueryRejectCondition
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from activities.bucket.keys import UploadRef, webhook_workflow_id
from activities.bucket.records import Layout, Snapshot, timestamp
from activities.bucket.report import Conversion, ConversionStatus
from activities.errors import PayloadUnreadable, TemporalUnavailable, UploadBusy, is_error_name
from activities.interface import SendWebhook
from activities.logs import current_request_id
from workflows.convert import ConvertUpload
from workflows.deliveries import DELIVERING
from workflows.messages import SEARCH_ATTRIBUTES, ProgressAfter, Reconcile, SheetNumbers
from workflows.starting import is_running, reopen_upload, start_conversion, start_deletion, start_delivery, start_upload
from workflows.upload import ProcessUpload
from workflows.webhook import GIVEN_UP, DeliverWebhook

logger = logging.getLogger(__name__)

QUERY_TIMEOUT_S = 2.0
UPDATE_TIMEOUT_S = 25.0
DESCRIBED_AT_ONCE = 16
_CONNECT_FAILURE = "Failed client connect"


class NoRun(Exception):
    """Temporal has no run of this upload, or no open run where the request needs one."""


@dataclass(frozen=True)
class Delivery:
    """The delivery of one webhook.

    Args:
        id: The `webhook-id`.
        event: The type of the event.
        ref: The upload, `org/project/plan/upload`.
        receiver: `organization` or `upload`.
        status: `delivering`, `delivered` or `failed`.
        attempts: Which attempt is made, or comes next; None when the delivery has ended.
        reason: Why the last attempt failed, or why the delivery was given up.
        started_at: When the delivery began.
        ended_at: When it ended.
    """

    id: str
    event: str
    ref: str
    receiver: str
    status: str
    attempts: int | None
    reason: str | None
    started_at: str
    ended_at: str | None


class RunClosed(Exception):
    """The run has ended.

    Args:
        status: How it ended.
    """

    def __init__(self, status: WorkflowExecutionStatus | None) -> None:
        super().__init__(status)
        self.status = status


class Runs:
    """Asks, signals and starts the workflows of uploads.

    Args:
        connect: Gives the client. It is called once, when the client is first needed, and must not wait for Temporal's server.
    """

    def __init__(self, connect: Callable[[], Awaitable[Client]]) -> None:
        self._connect = connect
        self._client: Client | None = None
        self._lock = asyncio.Lock()

    async def _get_client(self) -> Client:
        async with self._lock:
            if self._client is None:
                self._client = await self._connect()
            return self._client

    async def _handle(self, ref: UploadRef) -> WorkflowHandle[ProcessUpload, Snapshot]:
        return (await self._get_client()).get_workflow_handle_for(ProcessUpload.run, ref.workflow_id)

    async def progress(self, ref: UploadRef) -> Snapshot:
        """The whole progress, from the run.

        Raises:
            NoRun: Temporal knows no run.
            RunClosed: The run has ended.
            TemporalUnavailable: Temporal or the workers do not answer within 2 seconds.
        """
        try:
            async with _naming_failures(QUERY_TIMEOUT_S):
                handle = await self._handle(ref)
                return await handle.query(
                    ProcessUpload.progress,
                    reject_condition=QueryRejectCondition.NOT_OPEN,
                    rpc_timeout=timedelta(seconds=QUERY_TIMEOUT_S),
                )
        except WorkflowQueryRejectedError as error:
            raise RunClosed(error.status) from error
        except WorkflowQueryFailedError as error:
            raise _silent_workflow_error(ref, error) from error

    async def last_progress(self, ref: UploadRef) -> Snapshot:
        """The whole progress, also from a run that has ended. Raises ``NoRun`` and ``TemporalUnavailable`` like ``progress``."""
        try:
            async with _naming_failures(QUERY_TIMEOUT_S):
                handle = await self._handle(ref)
                return await handle.query(ProcessUpload.progress, rpc_timeout=timedelta(seconds=QUERY_TIMEOUT_S))
        except WorkflowQueryFailedError as error:
            raise _silent_workflow_error(ref, error) from error

    async def progress_after(self, ref: UploadRef, version: int, update_id: str) -> tuple[Snapshot, tuple[float, ...]] | None:
        """Waits at most 25 seconds for progress newer than ``version``.

        Args:
            ref: The upload.
            version: The version that the caller has.
            update_id: The id of this wait. A second call with the same id joins the first call's wait.

        Returns:
            The counters and the sheets that changed since ``version``, and when sheets among them were committed, seconds since 1970;
            unchanged counters when the workflow has too many waiters or closes; None after 25 seconds without a change.

        Raises:
            NoRun: There is no open run.
            TemporalUnavailable: Temporal does not answer.
        """
        handle = await self._handle(ref)
        update = asyncio.create_task(handle.execute_update(ProcessUpload.progress_after, ProgressAfter(version), id=update_id))
        try:
            await asyncio.wait({update}, timeout=UPDATE_TIMEOUT_S)
            if not update.done():
                return None
            async with _naming_failures(None):
                change = dict(vars(update.result()))
                committed = change.pop("committed", ())
                return Snapshot(**change), committed
        except WorkflowUpdateFailedError as error:
            raise NoRun from error  # the run ended while the update waited
        except RPCTimeoutOrCancelledError:
            return None
        finally:
            if not update.done():
                update.cancel()
                update.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def start(self, ref: UploadRef, sealed_password: str = "", *, lost: bool = False) -> None:
        """Starts the workflow of an accepted upload, unless it was started before.

        Args:
            ref: The upload.
            sealed_password: See ``UploadInput``.
            lost: See ``start_upload``.

        Raises:
            TemporalUnavailable: Temporal does not answer.
        """
        async with _naming_start_failures():
            client, request_id = await self._get_client(), current_request_id()
            await start_upload(client, ref, sealed_password=sealed_password, lost=lost, request_id=request_id)

    async def reopen(self, ref: UploadRef, signal: str, args: SheetNumbers | Reconcile) -> None:
        """Sends a signal to the run, or starts the run again with the signal.

        Raises:
            TemporalUnavailable: Temporal does not answer.
        """
        async with _naming_start_failures():
            await reopen_upload(await self._get_client(), ref, signal, args, request_id=current_request_id())

    async def delete(self, ref: UploadRef) -> None:
        """Starts the workflow that removes an upload, unless it runs already. The upload must be marked deleted before.

        Raises:
            TemporalUnavailable: Temporal does not answer.
        """
        async with _naming_start_failures():
            await start_deletion(await self._get_client(), ref, request_id=current_request_id())

    async def convert(self, ref: UploadRef, layout: Layout) -> None:
        """Starts the conversion of an upload to another layout, unless it runs already.

        Raises:
            UploadBusy: The upload has a run, or a conversion to another layout.
            TemporalUnavailable: Temporal does not answer.
        """
        async with _naming_start_failures():
            client = await self._get_client()
            if await is_running(client, ref):
                msg = "the upload is being processed: convert it when it has ended"
                raise UploadBusy(msg)
            if await start_conversion(client, ref, layout, request_id=current_request_id()):
                return
        if (running := (await self.conversion(ref)).layout) is not layout:
            msg = f"the upload is being converted: its sheets become {running}"
            raise UploadBusy(msg)

    async def conversion(self, ref: UploadRef) -> Conversion:
        """How far the last conversion of an upload is.

        Raises:
            NoRun: Temporal knows no conversion of this upload.
            TemporalUnavailable: Temporal or the workers do not answer within 2 seconds.
        """
        try:
            async with _naming_failures(QUERY_TIMEOUT_S):
                handle = (await self._get_client()).get_workflow_handle_for(ConvertUpload.run, ref.layout_workflow_id)
                timeout = timedelta(seconds=QUERY_TIMEOUT_S)
                status = (await handle.describe(rpc_timeout=timeout)).status
                conversion = await handle.query(ConvertUpload.conversion, rpc_timeout=timeout)
        except WorkflowQueryFailedError as error:
            raise _silent_workflow_error(ref, error) from error
        if conversion.status is not ConversionStatus.RUNNING or status is WorkflowExecutionStatus.RUNNING:
            return conversion
        ending = ConversionStatus.CANCELLED if status is WorkflowExecutionStatus.CANCELED else ConversionStatus.FAILED
        return replace(conversion, status=ending)

    async def prioritize(self, ref: UploadRef, sheet: int) -> None:
        """Asks the run to tile a sheet next; raises the same errors as ``cancel``."""
        async with _naming_failures(QUERY_TIMEOUT_S):
            handle = await self._handle(ref)
            await handle.signal(ProcessUpload.prioritize, SheetNumbers((sheet,)), rpc_timeout=timedelta(seconds=QUERY_TIMEOUT_S))

    async def cancel(self, ref: UploadRef) -> None:
        """Asks the run to end.

        Raises:
            NoRun: There is no open run.
            TemporalUnavailable: Temporal does not answer.
        """
        async with _naming_failures(QUERY_TIMEOUT_S):
            await (await self._handle(ref)).cancel(rpc_timeout=timedelta(seconds=QUERY_TIMEOUT_S))

    async def run_times(self, ref: UploadRef) -> tuple[datetime, datetime | None]:
        """When the last run began, and when it ended; None if it still runs. Raises the same errors as ``cancel``."""
        async with _naming_failures(QUERY_TIMEOUT_S):
            description = await (await self._handle(ref)).describe(rpc_timeout=timedelta(seconds=QUERY_TIMEOUT_S))
            return description.start_time, description.close_time

    async def last_failure(self, ref: UploadRef) -> tuple[str, int] | None:
        """The last failure of the activity with the most attempts: a sentence about it, and the number of that activity's attempts.

        Returns:
            None when no activity waits for a retry.

        Raises:
            NoRun: There is no run.
            TemporalUnavailable: Temporal does not answer.
        """
        async with _naming_failures(QUERY_TIMEOUT_S):
            client = await self._get_client()
            description = await (await self._handle(ref)).describe(rpc_timeout=timedelta(seconds=QUERY_TIMEOUT_S))
            failing = [activity for activity in description.raw_description.pending_activities if activity.HasField("last_failure")]
            if not failing:
                return None
            worst = max(failing, key=lambda activity: activity.attempt)
            return await _failure_sentence(client, worst), worst.attempt

    async def count_open(self, organization: str) -> int:
        """How many uploads of an organization have a run that has not ended. A run that has just started may not be counted yet.

        Raises:
            TemporalUnavailable: Temporal does not answer.
        """
        query = f"WorkflowType = '{ProcessUpload.__name__}' AND ExecutionStatus = 'Running' AND {SEARCH_ATTRIBUTES[0]} = '{organization}'"
        async with _naming_start_failures():
            client = await self._get_client()
            return (await client.count_workflows(query, rpc_timeout=timedelta(seconds=QUERY_TIMEOUT_S))).count

    async def deliveries(self, organization: str, status: str | None, limit: int) -> list[Delivery]:
        """The newest deliveries of an organization's webhooks. One that has just started may not be listed yet.

        Args:
            organization: The organization.
            status: Only deliveries with this status; None for all.
            limit: At most so many.

        Raises:
            TemporalUnavailable: Temporal does not answer.
        """
        query = f"WorkflowType = '{DeliverWebhook.__name__}' AND {SEARCH_ATTRIBUTES[0]} = '{organization}'"
        if status is not None:
            query += f" AND {SEARCH_ATTRIBUTES[3]} = '{status}'"
        async with _naming_start_failures():
            client = await self._get_client()
            found = [each async for each in client.list_workflows(query, limit=limit, page_size=limit)]
        newest = {each.id: each for each in reversed(found)}  # the list is newest first; a webhook that was sent again has several runs
        async with _naming_start_failures():
            turns = asyncio.Semaphore(DESCRIBED_AT_ONCE)
            deliveries = await asyncio.gather(*(_delivery(client, each, turns, is_newest=status is None) for each in newest.values()))
        return sorted(filter(None, deliveries), key=lambda each: each.started_at, reverse=True)

    async def redeliver(self, organization: str, delivery: str) -> None:
        """Sends a webhook again.

        Raises:
            NoRun: Temporal knows no such delivery any more.
            TemporalUnavailable: Temporal does not answer.
        """
        async with _naming_failures(QUERY_TIMEOUT_S):
            client = await self._get_client()
            handle = client.get_workflow_handle(webhook_workflow_id(organization, delivery))
            first = await anext(handle.fetch_history_events(page_size=1))
            payloads = first.workflow_execution_started_event_attributes.input.payloads
            (webhook,) = await client.data_converter.decode(payloads, [SendWebhook])
            await start_delivery(client, webhook, again=True)

    async def check_health(self) -> None:
        """Returns when Temporal's frontend answers.

        Raises:
            TemporalUnavailable: The frontend does not answer within 2 seconds.
        """
        async with _naming_failures(QUERY_TIMEOUT_S):
            client = await self._get_client()
            if not await client.service_client.check_health(timeout=timedelta(seconds=QUERY_TIMEOUT_S)):
                msg = "Temporal says that it is not serving"
                raise TemporalUnavailable(msg)


async def _delivery(client: Client, execution: WorkflowExecution, turns: asyncio.Semaphore, *, is_newest: bool) -> Delivery | None:
    """The delivery, as its newest run tells; None when a newer run than this one is found. ``is_newest`` says that there is none."""
    attributes = {pair.key.name: str(pair.value) for pair in execution.typed_search_attributes}
    status, reason = attributes.get(SEARCH_ATTRIBUTES[3], ""), attributes.get(SEARCH_ATTRIBUTES[4])
    attempts = None
    if execution.status is WorkflowExecutionStatus.RUNNING or not is_newest:
        try:
            async with turns:
                description = await client.get_workflow_handle(execution.id).describe()
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return None  # Temporal has forgotten it since it was listed
            raise
        if description.run_id != execution.run_id:
            return None
        for activity in description.raw_description.pending_activities:
            attempts = activity.attempt
            if activity.HasField("last_failure"):
                reason = await _failure_sentence(client, activity)
    if status == DELIVERING and execution.status is not WorkflowExecutionStatus.RUNNING:  # cancelled or terminated by an operator
        status, reason = GIVEN_UP, execution.status.name.title() if execution.status else None
    memo = await execution.memo()
    return Delivery(
        id=execution.id.rsplit("/", 1)[1],
        event=str(memo.get("event")),
        ref=str(memo.get("ref")),
        receiver=str(memo.get("receiver")),
        status=status,
        attempts=attempts,
        reason=reason,
        started_at=timestamp(execution.start_time),
        ended_at=timestamp(execution.close_time) if execution.close_time else None,
    )


async def _failure_sentence(client: Client, activity: PendingActivityInfo) -> str:
    error, attempt = await client.data_converter.decode_failure(activity.last_failure), f"(attempt {activity.attempt})"
    if isinstance(error, ApplicationError) and error.type and is_error_name(error.type):
        return f"{error.type}: {error.message[:300]} {attempt}"
    # Any other failure is an error of a library or of Temporal, such as a missed heartbeat. Its message is not for clients.
    return f"{activity.activity_type.name} failed; Temporal's UI and the worker's log say why {attempt}"


@asynccontextmanager
async def _naming_failures(timeout_s: float | None) -> AsyncIterator[None]:
    """Raises ``NoRun`` or ``TemporalUnavailable`` for a failure of the block, also when the block takes too long."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            raise NoRun from error
        if error.status in (RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED):
            raise _silent_temporal_error() from error
        raise _unavailable_error(error) from error
    except TimeoutError as error:
        raise _silent_temporal_error() from error
    except PayloadUnreadable as error:
        logger.warning("what Temporal answers cannot be read: %s", error)
        msg = f"{error.type}: what Temporal answers cannot be decrypted; the log says why"
        raise TemporalUnavailable(msg) from error
    except RuntimeError as error:
        if not str(error).startswith(_CONNECT_FAILURE):
            raise
        msg = "Temporal does not answer: its server is not reached"
        raise TemporalUnavailable(msg) from error


@asynccontextmanager
async def _naming_start_failures() -> AsyncIterator[None]:
    """Like ``_naming_failures``, for a block that starts a run. Such a block needs no run, so "not found" is a failure of Temporal."""
    try:
        async with _naming_failures(QUERY_TIMEOUT_S):
            yield
    except NoRun as error:
        raise _unavailable_error(error.__cause__) from error


def _silent_workflow_error(ref: UploadRef, error: WorkflowQueryFailedError) -> TemporalUnavailable:
    logger.warning("a workflow does not answer: %s", error.message, extra={"ref": str(ref)})
    return TemporalUnavailable("the upload's workflow does not answer; the log says why")


def _silent_temporal_error() -> TemporalUnavailable:
    return TemporalUnavailable(f"no worker and no Temporal server answered within {QUERY_TIMEOUT_S:g} s")


def _unavailable_error(error: BaseException | None) -> TemporalUnavailable:
    logger.warning("Temporal does not answer: %s", error)
    code = f": {error.status.name}" if isinstance(error, RPCError) else ""
    return TemporalUnavailable(f"Temporal does not answer{code}")
