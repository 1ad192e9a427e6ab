"""What a worker counts around its activities and workflows. Nothing here changes what a workflow does."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import temporalio.client
from prometheus_client import CollectorRegistry, Counter, Gauge
from temporalio import activity, workflow
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowQueryFailedError
from temporalio.exceptions import ApplicationError, is_cancelled_exception
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import (
    ActivityInboundInterceptor,
    ExecuteActivityInput,
    ExecuteWorkflowInput,
    Interceptor,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
)

from activities.errors import PayloadUnreadable
from workflows.upload import ProcessUpload

logger = logging.getLogger(__name__)

LOOK_INTERVAL_S = 60.0
QUIET_S = 300.0
"""A run without a change for so long may have left this worker."""
ANSWER_WITHIN = timedelta(seconds=10)
FIND_INTERVAL_S = 600.0
FOUND_AT_ONCE = 1000
"""At most so many open runs are asked, because a worker has no more in its cache."""

COMPLETED, CANCELLED, UNEXPECTED = "completed", "cancelled", "unexpected"


class WorkerMetrics(temporalio.client.Interceptor, Interceptor):
    """Counts the attempts of activities, and the sheets that wait in the runs that a worker has in its cache.

    The workers of a client that has this interceptor use it, too.

    Args:
        registry: Where the counts are asked for.
        has_workflows: Whether the process runs workflows.
    """

    def __init__(self, registry: CollectorRegistry, *, has_workflows: bool) -> None:
        self._attempts = Counter(
            "sitelink_activity_attempts",
            "Attempts of activities that ended, by activity, outcome (completed, cancelled or the type of the error) and number (1, 2, 3+)",
            ["activity", "outcome", "attempt"],
            registry=registry,
        )
        self._runs: dict[str, tuple[str, ProcessUpload]] = {}
        """By run id: the workflow's id, and the run as it is in the cache."""
        if has_workflows:
            self._gauge(
                registry,
                "sheets_pending",
                "Sheets that are neither ready nor failed, in the runs that this worker has in its cache. An approximation: a run that no "
                "worker has in its cache is not counted until one asks it; one that has just moved may be counted twice for some minutes",
                lambda runs: sum(run.backlog().sheets for run in runs),
            )
            self._gauge(
                registry,
                "sitelink_longest_standstill_seconds",
                "Seconds since the last change of the run that has stood still longest, of the runs that this worker has in its cache",
                lambda runs: max((time.time() - run.backlog().changed_at for run in runs), default=0.0),
            )

    def _gauge(self, registry: CollectorRegistry, name: str, help_text: str, value: Callable[[list[ProcessUpload]], float]) -> None:
        Gauge(name, help_text, registry=registry).set_function(lambda: value([run for _, run in list(self._runs.values())]))

    async def forget_gone_runs(self, client: Client, every_s: float = LOOK_INTERVAL_S, quiet_s: float = QUIET_S) -> None:
        """Goes on for ever: counts no longer the runs that have stood still here because they have ended, or go on in another worker.

        Temporal tells a worker neither, so such a run stays in its cache until the cache is full.

        Args:
            client: Asks for the runs.
            every_s: Seconds between two looks.
            quiet_s: Seconds without a change after which a run is asked for.
        """
        while True:
            await asyncio.sleep(every_s)
            for run_id, (workflow_id, run) in list(self._runs.items()):
                if time.time() - run.backlog().changed_at <= quiet_s:
                    continue
                try:
                    gone = await _is_gone(client.get_workflow_handle(workflow_id, run_id=run_id), run)
                except (RPCError, WorkflowQueryFailedError) as error:  # Temporal is away, or a worker of another version answers
                    logger.info("a run that stands still cannot be asked for: %s", error)
                    continue
                except Exception:  # such as an answer that this process cannot decrypt or read
                    logger.exception("a run that stands still cannot be asked for")
                    continue
                if gone:
                    self._runs.pop(run_id, None)

    async def find_open_runs(self, client: Client, every_s: float = FIND_INTERVAL_S) -> None:
        """Goes on for ever: asks the open runs that are not counted here, so that each comes into the cache of some worker.

        Else a run that stands still would not be counted after its worker has started again, because nothing happens in it.
        """
        query = f"WorkflowType = '{ProcessUpload.__name__}' AND ExecutionStatus = 'Running'"
        while True:
            try:
                async for run in client.list_workflows(query, limit=FOUND_AT_ONCE):
                    if run.run_id not in self._runs:
                        # It has ended, its steps fail, or the worker that has it encrypts by another key.
                        with suppress(RPCError, WorkflowQueryFailedError, PayloadUnreadable):
                            await client.get_workflow_handle(run.id, run_id=run.run_id).query(
                                ProcessUpload.tiles_wanted, rpc_timeout=ANSWER_WITHIN
                            )
            except RPCError as error:
                logger.info("Temporal does not list the open runs: %s", error)
            except Exception:
                logger.exception("the open runs cannot be asked")
            await asyncio.sleep(every_s)

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002 - Temporal's name for it
        """Wraps each activity."""
        return _CountedActivity(next, self._attempts)

    def workflow_interceptor_class(self, input: WorkflowInterceptorClassInput) -> type[WorkflowInboundInterceptor]:  # noqa: A002 - likewise
        """Wraps each run."""
        runs = self._runs

        class CountedRun(WorkflowInboundInterceptor):
            async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:  # noqa: A002 - likewise
                if input.type.__name__ != ProcessUpload.__name__:
                    return await super().execute_workflow(input)
                run_id = workflow.info().run_id
                runs[run_id] = workflow.info().workflow_id, workflow.instance()
                try:
                    return await super().execute_workflow(input)
                finally:  # also when the cache drops the run
                    runs.pop(run_id, None)

        return CountedRun


async def _is_gone(handle: temporalio.client.WorkflowHandle[Any, Any], run: ProcessUpload) -> bool:
    try:
        if (await handle.describe(rpc_timeout=ANSWER_WITHIN)).status is not WorkflowExecutionStatus.RUNNING:
            return True
        asked = await handle.query(ProcessUpload.backlog, rpc_timeout=ANSWER_WITHIN)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:  # this Temporal has lost its database
            return True
        raise
    return asked.changed_at > run.backlog().changed_at


class _CountedActivity(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, attempts: Counter) -> None:  # noqa: A002 - likewise
        super().__init__(next)
        self._attempts = attempts

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002 - likewise
        outcome = UNEXPECTED
        try:
            result = await super().execute_activity(input)
            outcome = COMPLETED
        except ApplicationError as error:
            outcome = error.type or UNEXPECTED
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) or is_cancelled_exception(error):
                outcome = CANCELLED
            raise
        finally:
            info = activity.info()
            self._attempts.labels(info.activity_type, outcome, str(info.attempt) if info.attempt < 3 else "3+").inc()
        return result
