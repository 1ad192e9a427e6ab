"""The workers of each role, and how they stop."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from functools import partial

from temporalio.client import Client, WorkflowQueryFailedError
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.service import RPCError
from temporalio.worker import Worker, WorkerDeploymentConfig

from activities.attempt import background_task
from activities.bucket.setup import BucketSetup
from activities.bucket.storage import Bucket
from activities.document import DocumentActivities
from activities.errors import PayloadUnreadable
from activities.host import Host
from activities.interface import (
    HOUSEKEEPING_QUEUE,
    STORAGE_QUEUE,
    TILE_QUEUE,
    WEBHOOK_QUEUE,
    WORKFLOW_QUEUE,
    HousekeepingActivities,
    LayoutActivities,
    WebhookActivities,
    host_queue,
)
from activities.metrics import HostMetrics
from activities.reconcile import ReconcileActivities
from activities.render import confine, memorylimit
from activities.render.child import ChildLimits, ChildPool
from activities.render.compile import library_path
from activities.render.confinement import check_decoder, check_layers
from activities.scratch import Scratch
from activities.sealing import PasswordSeal
from activities.sheets import SheetActivities
from activities.telemetry import Health
from activities.threads import FairThreads
from activities.webhooks.delivery import WebhookSender
from worker.housekeeping import Housekeeping
from worker.interceptor import ActivityLogContext
from worker.layouts import Layouts
from worker.schedules import keep_schedules
from worker.settings import WebhookRoleSettings, WorkerSettings
from worker.slots import RenderSlots
from workflows.convert import ConvertUpload
from workflows.delete import DeleteUpload
from workflows.starting import is_running, tiles_wanted
from workflows.sweep import NightlyReconcile, Sweep
from workflows.upload import ProcessUpload
from workflows.versioned import CurrentDelete, CurrentDelivery, CurrentReconcile, CurrentSweep
from workflows.webhook import DeliverWebhook

logger = logging.getLogger(__name__)

WORKFLOWS = (ProcessUpload, ConvertUpload, DeleteUpload, DeliverWebhook, Sweep, NightlyReconcile)
VERSIONED_WORKFLOWS = (ProcessUpload, ConvertUpload, CurrentDelete, CurrentDelivery, CurrentSweep, CurrentReconcile)
"""The workflows of a worker without and with a version."""

GRACE = timedelta(seconds=30)
"""How long running activities may take to end after a worker is told to stop. Then they are cancelled, and Temporal retries them."""

LONGEST_STOP = {"workflow": GRACE, "webhook": GRACE, "tile": 4 * GRACE}
"""The longest that a worker of each role takes to stop. A tile worker waits one after the other for its pages, for the uploads of the tiles
on its scratch, and for the other activities of its two further queues. Who runs a worker kills it later than that."""

HEARTBEAT_THROTTLE = timedelta(seconds=1)
"""Longest delay of a heartbeat. A cancellation arrives with the answer to a heartbeat, so it is delayed by as much."""

STORAGE_SLOTS = 16
WEBHOOK_SLOTS = 100
"""Webhooks that are sent at once: a receiver that does not answer takes a slot for some seconds."""

HOUSEKEEPING_SLOTS = 16
"""More than there are cores, because housekeeping mostly waits for a run to end, or for Temporal."""

SCRATCH_THREADS = 4
"""Threads for work on the scratch. This work has no slots, and never waits for the bucket."""

HOST_SLOTS = 1000
"""Slots of a host's own queue: more than pages can wait in it. So the host is dead if it does not take a page in time. A page that it has
taken waits for a thread, with heartbeats."""

CLEAN_INTERVAL_S = 60
DRAIN_INTERVAL_S = 0.2


class Activities(DocumentActivities, SheetActivities, ReconcileActivities):
    """Every activity of a host that renders and uploads."""


def workflow_worker(client: Client, version: WorkerDeploymentVersion | None = None) -> Worker:
    """The worker of the role ``workflow``. It runs the workflows, and touches neither PDFs nor the bucket.

    With a version, uploads and conversions stay on it until they end. Only this worker has a version. The others serve the runs of every
    version: a host has one tile worker, which owns the scratch, and Temporal takes at most 100 queues in a version, but each host has one.
    """
    return Worker(
        client,
        task_queue=WORKFLOW_QUEUE,
        workflows=VERSIONED_WORKFLOWS if version else WORKFLOWS,
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
        graceful_shutdown_timeout=GRACE,
        deployment_config=WorkerDeploymentConfig(version, True, VersioningBehavior.PINNED) if version else None,
    )


async def run_workflow_role(client: Client, stop: asyncio.Event, health: Health, version: WorkerDeploymentVersion | None = None) -> None:
    """Runs the workflow worker until ``stop`` is set. Meanwhile, creates schedules that are missing."""
    if version:
        logger.info("its workflows have a version", extra={"deployment": version.deployment_name, "build": version.build_id})
    async with workflow_worker(client, version), background_task(keep_schedules(client)):
        await health.ready_until(stop)


async def run_webhook_role(client: Client, settings: WebhookRoleSettings, stop: asyncio.Event, health: Health) -> None:
    """Runs the worker that sends webhooks until ``stop`` is set. It opens connections to strangers, and no document of theirs."""
    async with webhook_worker(client, WebhookSender(Bucket(settings.bucket), settings.webhooks), WEBHOOK_SLOTS):
        await health.ready_until(stop)


def webhook_worker(client: Client, activities: WebhookActivities, slots: int) -> Worker:
    """The worker of the activity that sends webhooks."""
    return activity_worker(client, WEBHOOK_QUEUE, slots, activities.send_webhook)


async def run_tile_role(
    client: Client, settings: WorkerSettings, stop: asyncio.Event, passwords: PasswordSeal, metrics: HostMetrics, health: Health
) -> None:
    """Runs the workers that render, upload and talk to the bucket until ``stop`` is set.

    They stop in two steps: first the pages that are being tiled are finished, then the tiles on the scratch are uploaded.

    Raises:
        ScratchInUse: Another worker uses the scratch directory.
        ValueError: Render children, or the decoders of JPEGs, are not confined here, but must be.
        RenderFault: Render children cannot do their work here.
    """
    share_pages = settings.upload_slots + settings.render_slots  # enough pages of one upload to keep all slots busy
    scratch = Scratch(
        settings.scratch_directory,
        settings.scratch_limit_bytes,
        share_pages + settings.upload_slots,
        share_pages,
        fetching=partial(metrics.stage, "fetch"),
    )
    limits = ChildLimits(memory_bytes=settings.render_memory_bytes, cpu_s=settings.render_cpu_s, wall_s=settings.render_wall_s)
    if not settings.dzsave and not library_path().exists():
        logger.warning("tiles are cut by libvips, which takes five times the CPU: the cutter is not compiled")
    children = ChildPool(settings.render_slots, limits, dzsave=settings.dzsave, first_user=settings.first_user, on_end=metrics.count_child)
    try:
        await check_confinement(children, must_confine=settings.must_confine)
        await asyncio.to_thread(check_decoder, must_confine=settings.must_confine)
    except BaseException:
        await children.close()
        scratch.close()
        raise
    # asyncio's default, 6 threads on 2 cores, is too few, because the threads mostly wait for the bucket.
    asyncio.get_running_loop().set_default_executor(
        ThreadPoolExecutor(settings.render_slots + STORAGE_SLOTS + HOUSEKEEPING_SLOTS + SCRATCH_THREADS, thread_name_prefix="activity")
    )
    bucket = Bucket(settings.bucket, max_requests=settings.bucket_threads, on_put=metrics.observe_put)
    metrics.watch(bucket, scratch, children, (*confine.LAYERS, memorylimit.LAYER))
    limit = (lambda: bucket.limiter.limit) if settings.bucket.is_s3 else None
    slots = RenderSlots(settings.render_slots)
    with FairThreads(settings.bucket_threads, "bucket", limit) as threads, FairThreads(settings.upload_slots, "upload") as uploads:
        host = Host(
            bucket=bucket,
            scratch=scratch,
            children=children,
            threads=threads,
            uploads=uploads,
            limits=settings.limits,
            passwords=passwords,
            forecaster=settings.forecaster,
            metrics=metrics,
            free_render_slot=slots.free_early,
        )
        activities = Activities(host)
        layouts = Layouts(client, bucket, threads, settings.scratch_directory)
        housekeeping = Housekeeping(client, bucket, BucketSetup(settings.bucket) if settings.bucket.is_s3 else None)
        logger.info("host", extra={"host": scratch.host, "render_slots": settings.render_slots})
        try:
            async with (
                activity_worker(
                    client,
                    STORAGE_QUEUE,
                    STORAGE_SLOTS,
                    activities.list_sheets,
                    activities.record_reopening,
                    activities.check_sheets,
                    activities.prune_sheets,
                    activities.write_manifest,
                ),
                activity_worker(
                    client,
                    host_queue(scratch.host),
                    max(HOST_SLOTS, 4 * settings.upload_slots),
                    activities.upload_page,
                    activities.discard_scratch,
                ),
            ):
                async with (
                    activity_worker(client, TILE_QUEUE, slots, activities.count_pages, activities.halve_page, activities.tile_page),
                    housekeeping_worker(client, housekeeping, HOUSEKEEPING_SLOTS, layouts),
                    background_task(keep_scratch_clean(scratch, client)),
                ):
                    await health.ready_until(stop)
                await _drain(scratch, client)
        finally:
            await children.close()
            scratch.close()


async def check_confinement(children: ChildPool, *, must_confine: bool) -> list[str]:
    """Says in the log which layers confine the render children, after trying them in one; returns these layers.

    Raises:
        ValueError: They are not confined, but must be.
        RenderFault: A child cannot do its work: it may be unable to read its libraries or fonts.
    """
    held = await children.layers()
    check_layers("render children", held, must_confine=must_confine)
    return held


def housekeeping_worker(client: Client, activities: HousekeepingActivities, slots: int, layouts: LayoutActivities | None = None) -> Worker:
    """The worker of the activities for whole uploads, and of conversions if given.

    It cancels its activities as soon as it stops, and another worker retries them.
    """
    return activity_worker(
        client,
        HOUSEKEEPING_QUEUE,
        slots,
        activities.stop_run,
        activities.remove_objects,
        activities.remove_record,
        activities.sweep,
        activities.reconcile_finished,
        *((layouts.list_convertible, layouts.convert_sheet, layouts.tell_layouts) if layouts else ()),
        grace=timedelta(0),
    )


def activity_worker(client: Client, queue: str, slots: int | RenderSlots, *activities: object, grace: timedelta = GRACE) -> Worker:
    """The worker of one activity queue. A cancellation reaches its activities within about a second."""
    return Worker(
        client,
        task_queue=queue,
        activities=activities,  # type: ignore[arg-type] # bound methods
        max_concurrent_activities=slots if isinstance(slots, int) else None,
        tuner=slots.tuner if isinstance(slots, RenderSlots) else None,
        max_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
        default_heartbeat_throttle_interval=HEARTBEAT_THROTTLE,
        graceful_shutdown_timeout=grace,
        interceptors=[ActivityLogContext()],
    )


async def keep_scratch_clean(scratch: Scratch, client: Client, every_s: float = CLEAN_INTERVAL_S) -> None:
    """Cleans the scratch now, because a crash may have come before, then every ``every_s`` seconds, even after an error."""
    while True:
        try:
            await asyncio.to_thread(scratch.clean)
            await discard_unwanted(scratch, client)
        except Exception:
            logger.exception("the scratch could not be cleaned")
        await asyncio.sleep(every_s)


async def discard_unwanted(scratch: Scratch, client: Client) -> None:
    """Removes from the scratch all files of uploads whose run has ended, and idle pages whose run does not want them any more.

    Age alone is no reason to remove a page: a page that its run wants stays through any outage. If a run does not answer, all its pages
    stay.

    Raises:
        RPCError: Temporal does not answer.
    """
    for ref, paths in (await asyncio.to_thread(scratch.uploads)).items():
        if not await is_running(client, ref):
            logger.info("discards the scratch of a run that has ended", extra={"ref": str(ref), "paths": len(paths)})
            await asyncio.to_thread(scratch.remove_unused, paths)
        elif idle_pages := await asyncio.to_thread(scratch.idle_pages, ref):
            try:
                wanted = await tiles_wanted(client, ref)
            except (RPCError, WorkflowQueryFailedError, PayloadUnreadable) as error:
                logger.info("keeps tiled pages, because their run does not say which pages it wants: %s", error, extra={"ref": str(ref)})
                continue
            unwanted = [page for page in idle_pages if page.name not in wanted]
            await asyncio.to_thread(scratch.remove_unused, unwanted)


async def _drain(scratch: Scratch, client: Client) -> None:
    """Waits until this host's tiles are in the bucket, but at most ``GRACE``. Other hosts tile the remaining pages again."""
    with suppress(TimeoutError):
        async with asyncio.timeout(GRACE.total_seconds()):
            while scratch.has_pages:
                with suppress(RPCError):  # Temporal may be away only for a moment
                    await discard_unwanted(scratch, client)
                await asyncio.sleep(DRAIN_INTERVAL_S)
