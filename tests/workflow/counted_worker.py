"""``python -m tests.workflow.counted_worker ADDRESS`` runs a workflow worker that counts, with little patience, until it is killed."""

import asyncio
import sys
from datetime import timedelta

from prometheus_client import CollectorRegistry
from temporalio.client import Client
from temporalio.worker import Worker

from activities.interface import WORKFLOW_QUEUE
from activities.telemetry import MetricsSettings, serve
from worker.metrics import WorkerMetrics
from workflows.upload import ProcessUpload


async def main(address: str) -> None:
    """Prints where the metrics are, and works."""
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry, has_workflows=True)
    client = await Client.connect(address, interceptors=[metrics])
    worker = Worker(
        client,
        task_queue=WORKFLOW_QUEUE,
        workflows=[ProcessUpload],
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
        max_concurrent_workflow_task_polls=2,  # a worker that stands still keeps a task for each, for 10 seconds
    )
    async with worker:
        sys.stdout.write(f"{serve(registry, MetricsSettings(port=0))}\n")
        sys.stdout.flush()
        await metrics.forget_gone_runs(client, every_s=0.2, quiet_s=1)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
