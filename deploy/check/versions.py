"""Looks at Temporal's Worker Versioning: which workflow workers get the uploads, and whether runs wait for workers that are gone.

https://docs.temporal.io/worker-versioning
"""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

from temporalio.api.deployment.v1 import WorkerDeploymentOptions
from temporalio.api.deployment.v1 import WorkerDeploymentVersion as VersionMessage
from temporalio.api.enums.v1 import TaskQueueType, WorkerDeploymentVersionStatus
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest, DescribeWorkerDeploymentRequest
from temporalio.client import Client
from temporalio.common import WorkerDeploymentVersion
from temporalio.service import RPCError, RPCStatusCode

from activities.interface import WORKFLOW_QUEUE
from deploy.check.table import Finding, Grade

CHECK = "Temporal versions"
SET_CURRENT = "temporal worker deployment set-current-version"

LONGEST_POLL = timedelta(seconds=150)
"""A worker asks for work at least once a minute. Temporal also names workers that have not asked for some minutes."""

REPLACED = (
    WorkerDeploymentVersionStatus.WORKER_DEPLOYMENT_VERSION_STATUS_DRAINING,
    WorkerDeploymentVersionStatus.WORKER_DEPLOYMENT_VERSION_STATUS_DRAINED,
)


async def check_versions(client: Client, ours: WorkerDeploymentVersion | None) -> AsyncIterator[Finding]:
    """The findings; none where neither the environment nor Temporal has a version.

    Args:
        client: Connected to the namespace.
        ours: The version that the environment gives to workflow workers.
    """
    request = DescribeTaskQueueRequest(
        namespace=client.namespace, task_queue=TaskQueue(name=WORKFLOW_QUEUE), task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW
    )
    queue = await client.workflow_service.describe_task_queue(request)
    routing = queue.versioning_info
    current, share = _version(routing.current_deployment_version), routing.ramping_version_percentage
    statuses: dict[WorkerDeploymentVersion | None, int] = {}
    for name in sorted({version.deployment_name for version in (ours, current) if version}):
        statuses |= await _statuses(client, name)
    if share and ours == _version(routing.ramping_deployment_version):
        yield Finding(CHECK, Grade.OK, f"{_name(ours)}: {share:g} % of the new uploads; {_name(current)}: the others")
    elif ours == current and ours:
        yield Finding(CHECK, Grade.OK, f"{_name(ours)}: new uploads")
    elif ours:
        yield _not_current(ours, current, statuses.get(ours))
    elif current:
        facts = f"{_name(current)}: new uploads; {_name(None)}: none"
        command = f"{SET_CURRENT} --deployment-name {current.deployment_name} --unversioned"
        yield Finding(CHECK, Grade.WRONG, facts, f"set TEMPORAL_DEPLOYMENT_NAME and TEMPORAL_WORKER_BUILD_ID; or {command}")
    asked_since = datetime.now(UTC) - LONGEST_POLL
    manned = {_version(each.deployment_options) for each in queue.pollers if each.last_access_time.ToDatetime(UTC) > asked_since}
    for version in statuses:
        if version and version != current and (runs := (await client.count_workflows(_pinned_to(version))).count):
            yield left_behind(version, current, runs, has_workers=version in manned)


def _version(message: VersionMessage | WorkerDeploymentOptions) -> WorkerDeploymentVersion | None:
    """None stands for workers without a version."""
    return WorkerDeploymentVersion(message.deployment_name, message.build_id) if message.build_id else None


async def _statuses(client: Client, deployment: str) -> dict[WorkerDeploymentVersion | None, int]:
    """The status of each version of a deployment; empty when none of its workers has ever started."""
    request = DescribeWorkerDeploymentRequest(namespace=client.namespace, deployment_name=deployment)
    try:
        answer = await client.workflow_service.describe_worker_deployment(request)
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise
        return {}
    return {_version(each.deployment_version): each.status for each in answer.worker_deployment_info.version_summaries}


def _pinned_to(version: WorkerDeploymentVersion) -> str:
    """The query of the open runs that only workers of this version go on with."""
    name = f"{version.deployment_name}:{version.build_id}"
    return f"TemporalWorkerDeploymentVersion='{name}' AND TemporalWorkflowVersioningBehavior='Pinned' AND ExecutionStatus='Running'"


def _name(version: WorkerDeploymentVersion | None) -> str:
    return f"version {version.build_id} of {version.deployment_name}" if version else "workers without a version"


def _not_current(ours: WorkerDeploymentVersion, current: WorkerDeploymentVersion | None, status: int | None) -> Finding:
    facts = f"{_name(current)}: new uploads; {_name(ours)}: none"
    command = f"{SET_CURRENT} --deployment-name {ours.deployment_name} --build-id {ours.build_id}"
    if status is None:
        return Finding(CHECK, Grade.NOTE, f"no worker of {_name(ours)} has started", f"start workflow workers; then {command}")
    if status in REPLACED:
        return Finding(CHECK, Grade.NOTE, f"{facts}, because it was replaced", f"to go back to it: {command}")
    return Finding(CHECK, Grade.WRONG, facts, command)


def left_behind(version: WorkerDeploymentVersion, current: WorkerDeploymentVersion | None, runs: int, *, has_workers: bool) -> Finding:
    """The finding about open runs of a version that is not current."""
    if has_workers:
        return Finding(CHECK, Grade.NOTE, f"{_name(version)}: {runs:,} open runs", "let its workers run until these have ended")
    advice = "start its workers again"
    if current:
        advice += (
            f'; or move the runs: temporal workflow reset with-workflow-update-options --query "{_pinned_to(version)}" '
            "--type FirstWorkflowTask --reason moved --versioning-override-behavior pinned "
            f"--versioning-override-deployment-name {current.deployment_name} --versioning-override-build-id {current.build_id} --yes"
        )
    return Finding(CHECK, Grade.WRONG, f"{_name(version)}: {runs:,} open runs wait, because it has no workers", advice)
