"""The workers of each role, and how they stop."""

import asyncio
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from datetime import timedelta

from temporalio.client import Client
from temporalio.worker import Worker

from activities.child import ChildLimits, ChildPool
from activities.document import DocumentActivities, Host
from activities.interface import STORAGE_QUEUE, TILE_QUEUE, WORKFLOW_QUEUE, host_queue
from activities.reconcile import ReconcileActivities
from activities.scratch import Scratch
from activities.sheet import SheetActivities
from activities.storage import Bucket
from worker.settings import WorkerSettings
from workflows.upload import ProcessUpload

logger = logging.getLogger(__name__)

GRACE = timedelta(seconds=30)
"""How long running work may take to end once a worker is told to stop; the rest is handed back to Temporal."""

HEARTBEAT_THROTTLE = timedelta(seconds=1)
"""How late a heartbeat may be sent, and so how late a cancellation arrives."""

STORAGE_SLOTS = 16

JANITOR_S = 600


class Activities(DocumentActivities, SheetActivities, ReconcileActivities):
    """Every activity of a host that renders and uploads."""


def workflow_worker(client: Client) -> Worker:
    """The worker of role ``workflow``: it decides, and touches neither PDFs nor the bucket."""
    return Worker(
        client,
        task_queue=WORKFLOW_QUEUE,
        workflows=[ProcessUpload],
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
        graceful_shutdown_timeout=GRACE,
    )


async def run_workflow_role(client: Client, stop: asyncio.Event) -> None:
    """Runs the workflow worker until ``stop`` is set."""
    async with workflow_worker(client):
        await stop.wait()


async def run_tile_role(client: Client, settings: WorkerSettings, stop: asyncio.Event) -> None:
    """Runs the workers that render, upload and talk to the bucket until ``stop`` is set.

    They stop in order: first no more pages are taken and those at hand are finished, then what lies on the scratch is uploaded.

    Raises:
        ScratchInUse: Another worker uses the scratch directory.
    """
    scratch = Scratch(settings.scratch_directory, settings.scratch_limit_bytes)
    limits = ChildLimits(memory_bytes=settings.render_memory_bytes, cpu_s=settings.render_cpu_s, wall_s=settings.render_wall_s)
    children = ChildPool(settings.render_slots, limits)
    # asyncio's own default is 6 threads on 2 cores; each of ours mostly waits for the bucket.
    asyncio.get_running_loop().set_default_executor(
        ThreadPoolExecutor(settings.upload_slots + STORAGE_SLOTS, thread_name_prefix="activity")
    )
    with ThreadPoolExecutor(settings.bucket_threads, thread_name_prefix="bucket") as threads:
        bucket = Bucket(settings.bucket, max_requests=settings.bucket_threads)
        busy = max(1, settings.upload_slots - settings.render_slots)
        host = Host(bucket, scratch, children, threads, settings.max_pages, busy, settings.forecaster)
        activities = Activities(host)
        logger.info("host", extra={"host": scratch.host, "render_slots": settings.render_slots})
        try:
            async with (
                activity_worker(
                    client,
                    STORAGE_QUEUE,
                    STORAGE_SLOTS,
                    activities.list_sheets,
                    activities.check_sheets,
                    activities.prune_sheets,
                    activities.write_manifest,
                ),
                activity_worker(
                    client, host_queue(scratch.host), settings.upload_slots, activities.upload_page, activities.discard_scratch
                ),
            ):
                async with (
                    activity_worker(client, TILE_QUEUE, settings.render_slots, activities.count_pages, activities.tile_page),
                    _janitor(scratch),
                ):
                    await stop.wait()
                await _drain(scratch)
        finally:
            await children.close()
            scratch.close()


def activity_worker(client: Client, queue: str, slots: int, *activities: object) -> Worker:
    """The worker of one activity queue: cancellations arrive within a second, and it has as many slots as it can really serve."""
    return Worker(
        client,
        task_queue=queue,
        activities=activities,  # type: ignore[arg-type] # bound methods
        max_concurrent_activities=slots,
        max_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
        default_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
        graceful_shutdown_timeout=GRACE,
    )


@asynccontextmanager
async def _janitor(scratch: Scratch) -> AsyncIterator[None]:
    async def clean_forever() -> None:
        while True:
            await asyncio.sleep(JANITOR_S)
            try:
                await asyncio.to_thread(scratch.clean)
            except OSError:
                logger.exception("the scratch could not be cleaned")

    task = asyncio.create_task(clean_forever())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _drain(scratch: Scratch) -> None:
    """Waits until this host's tiles are in the bucket, or the grace is over: then other hosts tile those pages again."""
    with suppress(TimeoutError):
        async with asyncio.timeout(GRACE.total_seconds()):
            while scratch.has_pages:  # noqa: ASYNC110 - files change outside of this loop's events
                await asyncio.sleep(0.1)
