"""The activities for whole uploads: deletion, the sweep, the nightly reconciliation.

Oddities, all on purpose:

1. An upload that cannot be looked at is passed over: the report counts and names it. It must not keep the other uploads waiting, and the
   next sweep looks at it again. Only when a LIST of the walk itself fails, the activity fails and is retried.
2. Temporal is asked for the list of runs that were ended from outside. To describe the run of each upload would take far longer.
3. An ``upload.json`` of an earlier release does not name the record of its ``Idempotency-Key``, and an upload that was never accepted has
   none. The record is made within a day after ``source.pdf``. So only records of this time are read to find it.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Generic, TypeVar

from temporalio import activity
from temporalio.client import (
    Client,
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
)
from temporalio.service import RPCError, RPCStatusCode

from activities.attempt import BEAT_S, Attempt, background_task, raise_if_stopped
from activities.bucket.keys import ROOT, UploadRef, upload_of, walk_uploads
from activities.bucket.records import Snapshot, UploadStatus, WebhookEvent, from_wire, timestamp, to_wire
from activities.bucket.report import NameList
from activities.bucket.setup import BucketSetup, UnfinishedUpload
from activities.bucket.storage import DELETE_BATCH, Bucket
from activities.bucket.uploads import UploadStore
from activities.bucket.webhooks import WebhookStore
from activities.errors import InvalidRequest, ObjectMissing, SiteLinkError, UnreadableRecord, UploadNotFound
from activities.interface import (
    HousekeepingActivities,
    Reconciled,
    ReconcileFinished,
    Removed,
    RemoveObjects,
    RemoveRecord,
    StopRun,
    SweepBucket,
    Swept,
)
from workflows.deliveries import webhooks_about
from workflows.starting import is_running, last_run, reopen_upload, start_deletion, start_delivery, start_upload
from workflows.terminated import ENDED_FROM_OUTSIDE, terminated_progress
from workflows.upload import ProcessUpload

logger = logging.getLogger(__name__)

UPLOADS_AT_ONCE = 16
"""Uploads that are looked at together. The next attempt of an activity looks at most at so many of them a second time."""
RECONCILED_AT_ONCE = 4

CANCEL_AGAIN_S = 30
STOP_PATIENCE_S = 600
"""A run that does not end within this time after a cancellation is terminated. Otherwise a workflow with a bug could never be deleted."""
QUERY_TIMEOUT = timedelta(seconds=10)

KEY_AGE = timedelta(days=1)
"""The record of an ``Idempotency-Key`` is made within this time after ``source.pdf``."""
CLOCK_SLACK = timedelta(minutes=1)

R = TypeVar("R", Swept, Reconciled)


class _Walk(Attempt, Generic[R]):
    """An attempt that walks over the uploads. The next attempt goes on where this one ended.

    For this, the heartbeat's details are the last upload that the walk has finished, and the report so far.

    Args:
        report: An empty report.
    """

    def __init__(self, report: R) -> None:
        super().__init__()
        self.report: R = report
        self._after: UploadRef | None = None
        details = activity.info().heartbeat_details
        if len(details) == 2:
            self._after = UploadRef.parse(details[0]) if details[0] else None
            self.report = from_wire(type(report), details[1])

    def beat(self) -> None:
        """See ``Attempt.beat``."""
        activity.heartbeat(str(self._after or ""), to_wire(self.report))

    async def beat_forever(self) -> None:
        """Sends heartbeats until it is cancelled."""
        while True:
            self.beat()
            await asyncio.sleep(BEAT_S)

    def add_name(self, field: str, name: object) -> None:
        """Adds a name to a list of the report."""
        names: NameList = getattr(self.report, field)
        self.report = replace(self.report, **{field: names.with_names([str(name)])})  # type: ignore[arg-type] # each of these fields is a NameList

    async def visit(
        self, bucket: Bucket, is_wanted: Callable[[UploadRef], bool], work: Callable[[list[UploadRef]], Awaitable[None]]
    ) -> None:
        """Calls ``work`` with all uploads that ``is_wanted`` accepts, ``UPLOADS_AT_ONCE`` at a time."""
        uploads = walk_uploads(bucket.directories, self._after)

        def next_batch(stop: threading.Event) -> list[UploadRef]:
            batch: list[UploadRef] = []
            for ref in uploads:
                raise_if_stopped(stop)
                if is_wanted(ref):
                    batch.append(ref)
                if len(batch) == UPLOADS_AT_ONCE:
                    break
            return batch

        while batch := await self.in_thread(next_batch, more_follows=True):
            await work(batch)
            self._after = batch[-1]
            self.beat()

    @asynccontextmanager
    async def pass_over_failures(self, name: object) -> AsyncIterator[None]:
        """Logs an error in the block, and adds it to the report, so that the walk goes on."""
        try:
            yield
        except (SiteLinkError, RPCError, ValueError, TypeError) as error:
            logger.warning("passed over an upload: %s", error, extra={"ref": str(name)})
            self.add_name("passed_over", f"{name}: {str(error)[:400]}")


@contextmanager
def _ignore_ended_run() -> Iterator[None]:
    """Ignores Temporal's error that there is no running run: it has just ended."""
    try:
        yield
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise


class Housekeeping(HousekeepingActivities):
    """The activities of one worker process.

    Args:
        client: A connected Temporal client.
        bucket: The bucket of the uploads.
        setup: The same bucket, for its multipart uploads; None for a directory.
    """

    def __init__(self, client: Client, bucket: Bucket, setup: BucketSetup | None) -> None:
        self._client = client
        self._bucket = bucket
        self._store = UploadStore(bucket)
        self._webhooks = WebhookStore(bucket)
        self._setup = setup

    # ------------------------------------------------------------------ deletion

    @activity.defn
    async def stop_run(self, args: StopRun) -> None:
        """See ``HousekeepingActivities.stop_run``."""
        attempt, ref = Attempt(), UploadRef.parse(args.ref)
        handle = self._client.get_workflow_handle(ref.workflow_id)
        started_at, cancelled_after_s = time.monotonic(), -float(CANCEL_AGAIN_S)
        while await is_running(self._client, ref):
            waited_s = time.monotonic() - started_at
            with _ignore_ended_run():
                if waited_s > STOP_PATIENCE_S:
                    logger.warning("terminates a run that a cancellation does not end", extra={"ref": str(ref)})
                    await handle.terminate("the upload is deleted, and a cancellation did not end this run")
                elif waited_s - cancelled_after_s >= CANCEL_AGAIN_S:
                    cancelled_after_s = waited_s
                    await handle.cancel()
            attempt.beat()
            await asyncio.sleep(BEAT_S / 4)

    @activity.defn
    async def remove_objects(self, args: RemoveObjects) -> Removed:
        """See ``HousekeepingActivities.remove_objects``."""
        attempt, ref = Attempt(), UploadRef.parse(args.ref)
        with attempt.named_errors():
            return await attempt.in_thread(lambda stop: self._remove(ref, stop))

    def _remove(self, ref: UploadRef, stop: threading.Event) -> Removed:
        try:
            record = self._store.record(ref)
        except ObjectMissing:
            return Removed(self._remove_all_but_record(ref, None, stop), marked=False)
        if record.deleted_at is None:
            msg = f"the upload {ref} is not marked deleted"
            raise InvalidRequest(msg)
        return Removed(self._remove_all_but_record(ref, record.idempotency_key, stop), marked=True)

    def _remove_all_but_record(self, ref: UploadRef, idempotency_key: str | None, stop: threading.Event) -> int:
        """Removes everything of an upload except ``upload.json``; returns how many objects were removed.

        Args:
            ref: The upload.
            idempotency_key: As ``upload.json`` names it; None if that does not, or is not there.
            stop: Ends this early.
        """
        self._free_key(ref, idempotency_key)
        removed = 0
        objects = self._bucket.objects(ref.prefix)
        while batch := list(islice(objects, DELETE_BATCH)):
            raise_if_stopped(stop)
            keys = [info.key for info in batch if info.key != ref.record]
            self._bucket.delete(keys)
            removed += len(keys)
        self._bucket.remove_unfinished(ref.prefix)
        self._bucket.remove_empty_directories(ref.prefix)
        if self._setup is not None:
            for upload in self._setup.unfinished_uploads(ref.prefix):
                self._setup.abort(upload.key, upload.upload_id)
        return removed

    def _free_key(self, ref: UploadRef, key: str | None) -> None:
        """Removes the record of the upload's ``Idempotency-Key``. A request with the same key then makes a new upload."""
        if key is None:
            with suppress(UnreadableRecord):
                if (begun := self._store.begun_record(ref)) is not None:
                    key = begun.idempotency_key or ""
        if key is not None:
            if key and self._leads_to(key, ref):
                self._bucket.delete([key])
            return
        try:
            begun_at = self._bucket.head(ref.source).modified
        except ObjectMissing:
            return
        for info in self._bucket.objects(ref.plan_ref.keys_prefix):
            if begun_at - CLOCK_SLACK <= info.modified <= begun_at + KEY_AGE and self._leads_to(info.key, ref):
                self._bucket.delete([info.key])

    def _leads_to(self, key: str, ref: UploadRef) -> bool:
        try:
            record = self._store.key_record(key)
        except UnreadableRecord as error:
            logger.warning("passed over the record of an Idempotency-Key: %s", error, extra={"ref": str(ref)})
            return False
        return record is not None and record.upload == ref.upload

    @activity.defn
    async def remove_record(self, args: RemoveRecord) -> None:
        """See ``HousekeepingActivities.remove_record``."""
        attempt, ref = Attempt(), UploadRef.parse(args.ref)

        def remove() -> None:
            self._bucket.delete([ref.record])
            self._bucket.remove_empty_directories(ref.prefix)

        with attempt.named_errors():
            await attempt.in_thread(lambda _: remove())

    # ------------------------------------------------------------------ the sweep

    @activity.defn
    async def sweep(self, args: SweepBucket) -> Swept:
        """See ``HousekeepingActivities.sweep``."""
        now = datetime.now(UTC)
        oldest = now - timedelta(days=args.days) if args.days is not None else datetime.min.replace(tzinfo=UTC)
        abandoned_before = now - timedelta(seconds=args.abandoned_after_s)
        walk = _Walk(Swept())
        seen: set[str] = set()  # of the last uploads: those of a plan come one after the other, and its keys are looked at once

        def is_wanted(ref: UploadRef) -> bool:
            return args.days is None or (ref.made_at is not None and ref.made_at >= oldest)

        async def look_at(ref: UploadRef) -> None:
            async with walk.pass_over_failures(ref):
                walk.report = replace(walk.report, uploads=walk.report.uploads + 1)
                await self.sweep_upload(ref, abandoned_before, walk)

        async def look_at_all(refs: list[UploadRef]) -> None:
            nonlocal seen
            await asyncio.gather(*map(look_at, refs))
            before, seen = seen, {ref.plan_ref.keys_prefix for ref in refs}
            new = seen - before
            removed = await asyncio.to_thread(lambda: sum(self._remove_leftovers(prefix, abandoned_before) for prefix in new))
            walk.report = replace(walk.report, leftovers=walk.report.leftovers + removed)

        with walk.named_errors():
            async with background_task(walk.beat_forever()):
                async with walk.pass_over_failures("runs that were ended from outside"):
                    await self._write_terminated_manifests(oldest, walk)
                await walk.visit(self._bucket, is_wanted, look_at_all)
                await asyncio.to_thread(self._abort_abandoned, abandoned_before, walk)
        logger.info("swept the bucket", extra=to_wire(walk.report))
        return walk.report

    async def sweep_upload(self, ref: UploadRef, abandoned_before: datetime, walk: _Walk[Swept]) -> None:
        """Does for one upload the work that was left undone."""
        try:
            record = await asyncio.to_thread(self._store.record, ref)
        except ObjectMissing:
            if await walk.in_thread(lambda stop: self._remove_abandoned(ref, abandoned_before, stop), more_follows=True):
                walk.add_name("removed", ref)
            return
        removed = await asyncio.to_thread(self._remove_leftovers, ref.prefix, abandoned_before)
        walk.report = replace(walk.report, leftovers=walk.report.leftovers + removed)
        if record.deleted_at is not None:
            if await start_deletion(self._client, ref):
                walk.add_name("deleted", ref)
        elif await self._store.manifest_written_at_async(ref) is not None:
            if await self._is_reopened(ref) and await last_run(self._client, ref) is None:
                await start_upload(self._client, ref, lost=True)
                walk.add_name("started", ref)
        else:
            run = await last_run(self._client, ref)
            if run is None:
                await start_upload(self._client, ref)
                walk.add_name("started", ref)
            elif run.status in ENDED_FROM_OUTSIDE:
                await self._write_terminated_manifest(ref, run, walk)
            elif run.status is not WorkflowExecutionStatus.RUNNING:
                await self._write_missing_manifest(ref, run, walk)

    async def _is_reopened(self, ref: UploadRef) -> bool:
        """Whether a run went on from the manifest, and has not ended."""
        if not await self._store.has_reopened_record_async(ref):  # so that manifests, which may be large, are seldom read
            return False
        manifest = await self._store.manifest_async(ref)
        return manifest is not None and await self._store.reopened_record_async(ref, manifest.snapshot) is not None

    def _remove_abandoned(self, ref: UploadRef, abandoned_before: datetime, stop: threading.Event) -> bool:
        """Removes an upload that was never accepted, if nothing was written since ``abandoned_before``; returns whether it did."""
        if ref.made_at is not None and ref.made_at > abandoned_before:
            return False
        begun = self._store.begun_record(ref)
        if begun is not None and begun.expires_at > abandoned_before:
            return False
        written_at = self._bucket.last_written(ref.prefix)
        if begun is None and written_at is not None and written_at > abandoned_before:
            return False
        with suppress(ObjectMissing):
            self._bucket.head(ref.record)
            return False  # it has just been accepted
        self._remove_all_but_record(ref, None, stop)
        return True

    def _remove_leftovers(self, prefix: str, abandoned_before: datetime) -> int:
        """Removes the files that killed writes left directly below ``prefix``; returns how many.

        Such a file below ``sheets/`` is removed when its sheet is written again or discarded.
        """
        return self._bucket.remove_unfinished(prefix, before=abandoned_before, deep=False)

    def _abort_abandoned(self, abandoned_before: datetime, walk: _Walk[Swept]) -> None:
        """Aborts multipart uploads from before ``abandoned_before``, because the server may have no lifecycle rule that does so.

        Those that clients have begun live longer, and end with their ``begun.json``.
        """
        if self._setup is None:
            return
        for upload in self._setup.unfinished_uploads(ROOT):
            if upload.started_at < abandoned_before and not self._is_begun(upload):
                self._setup.abort(upload.key, upload.upload_id)
                walk.add_name("aborted", upload.key)

    def _is_begun(self, upload: UnfinishedUpload) -> bool:
        """Whether a client may still complete a multipart upload."""
        ref = upload_of(upload.key)
        try:
            begun = self._store.begun_record(UploadRef.parse(ref)) if ref else None
        except UnreadableRecord as error:
            logger.warning("passed over a multipart upload: %s", error, extra={"ref": ref})
            return True
        return begun is not None and begun.multipart_id == upload.upload_id

    async def _write_terminated_manifests(self, oldest: datetime, walk: _Walk[Swept]) -> None:
        """Writes the manifests of runs that were ended from outside since ``oldest``.

        ``sweep_upload`` does the same for an earlier run, if its upload has no manifest.
        """
        how = ", ".join(f"'{status.name.title().replace('_', '')}'" for status in ENDED_FROM_OUTSIDE)
        query = f"WorkflowType = '{ProcessUpload.__name__}' AND ExecutionStatus IN ({how})"
        if oldest.year > 1:
            query += f" AND CloseTime >= '{timestamp(oldest)}'"
        async for execution in self._client.list_workflows(query):
            async with walk.pass_over_failures(execution.id):
                ref = UploadRef.parse(execution.id.removeprefix("upload/"))
                run = await last_run(self._client, ref)
                if run is not None and run.status in ENDED_FROM_OUTSIDE:
                    await self._write_terminated_manifest(ref, run, walk)

    async def _write_terminated_manifest(self, ref: UploadRef, run: WorkflowExecutionDescription, walk: _Walk[Swept]) -> None:
        """Writes the manifest of a run that was ended from outside, unless the run had written it or the upload is deleted."""
        try:
            await asyncio.to_thread(self._store.accepted, ref)
        except UploadNotFound:
            return
        stored = await asyncio.to_thread(self._store.manifest, ref)
        manifest = stored.snapshot if stored else None
        if manifest is not None and datetime.fromisoformat(manifest.updated_at) >= run.start_time:
            has_ended = await self._store.reopened_record_async(ref, manifest) is None
            if has_ended:
                return
        last = await self._last_progress(ref, run)
        if last is None or not last.total_pages:  # the run had not even read the manifest of an earlier run
            last = manifest or last or Snapshot(UploadStatus.QUEUED, 0, timestamp(run.start_time))
        if manifest is not None:
            last = replace(last, version=max(last.version, manifest.version))
        newest = await last_run(self._client, ref)
        if newest is None or newest.run_id != run.run_id:
            return  # a new run has started
        manifest = terminated_progress(last, run.status, datetime.now(UTC))
        await asyncio.to_thread(self._store.write_manifest, ref, manifest)
        await self._announce_end(ref, manifest)
        await asyncio.to_thread(self._store.remove_reopened_record, ref, manifest.version)
        walk.add_name("terminated", ref)

    async def _write_missing_manifest(self, ref: UploadRef, run: WorkflowExecutionDescription, walk: _Walk[Swept]) -> None:
        """Writes the last progress of a run that ended by itself as its manifest.

        If the run does not tell a final progress, a new run is started, which looks at the bucket.
        """
        last = await self._last_progress(ref, run)
        if run.status is WorkflowExecutionStatus.CANCELED and (last is None or not last.status.is_final):
            last = terminated_progress(last or Snapshot(UploadStatus.QUEUED, 0, timestamp(run.start_time)), run.status, datetime.now(UTC))
        if last is None or not last.status.is_final:
            if await self._store.manifest_written_at_async(ref) is None:
                await reopen_upload(self._client, ref, "force_reconcile")
                walk.add_name("started", ref)
            return
        if await self._store.create_manifest_async(ref, last):  # the run may have written its manifest since
            await self._announce_end(ref, last)
            walk.add_name("mended", ref)

    async def _announce_end(self, ref: UploadRef, manifest: Snapshot) -> None:
        """Starts the webhooks about the end of an upload whose run did not start them."""
        record = await self._store.accepted_async(ref)
        subscriptions = await asyncio.to_thread(self._webhooks.subscriptions, ref, record)
        ended = replace(manifest, sheets=())
        for webhook in webhooks_about(ref, WebhookEvent.UPLOAD_ENDED, manifest.updated_at, ended, subscriptions):
            await start_delivery(self._client, webhook)

    async def _last_progress(self, ref: UploadRef, run: WorkflowExecutionDescription) -> Snapshot | None:
        """The last progress of a run, which may have ended: Temporal also answers queries for ended runs. None if there is no answer."""
        handle = self._client.get_workflow_handle_for(ProcessUpload.run, ref.workflow_id, run_id=run.run_id)
        try:
            return await handle.query(ProcessUpload.progress, rpc_timeout=QUERY_TIMEOUT)
        except (RPCError, WorkflowQueryFailedError, WorkflowQueryRejectedError) as error:
            logger.info("a run that has ended does not tell its progress: %s", error, extra={"ref": str(ref)})
            return None

    # ------------------------------------------------------------------ the nightly reconciliation

    @activity.defn
    async def reconcile_finished(self, args: ReconcileFinished) -> Reconciled:
        """See ``HousekeepingActivities.reconcile_finished``."""
        oldest = datetime.now(UTC) - timedelta(days=args.days)
        walk = _Walk(Reconciled())
        slots = asyncio.Semaphore(RECONCILED_AT_ONCE)

        async def look_at(ref: UploadRef) -> None:
            async with walk.pass_over_failures(ref):
                before = await asyncio.to_thread(self._finished_manifest, ref, oldest)
                if before is not None:
                    async with slots:
                        await self._reconcile(ref, before, args.patience_s, walk)

        async def look_at_all(refs: list[UploadRef]) -> None:
            await asyncio.gather(*map(look_at, refs))

        with walk.named_errors():
            async with background_task(walk.beat_forever()):
                await walk.visit(self._bucket, lambda _: True, look_at_all)
        logger.info("reconciled the uploads that finished lately", extra=to_wire(walk.report))
        return walk.report

    def _finished_manifest(self, ref: UploadRef, oldest: datetime) -> Snapshot | None:
        """The manifest of an upload that finished since ``oldest`` as ``complete`` or ``partial``."""
        written_at = self._store.manifest_written_at(ref)
        if written_at is None or written_at < oldest - KEY_AGE:
            return None  # an upload with an older manifest did not finish since ``oldest``
        stored = self._store.manifest(ref)
        if stored is None or stored.snapshot.status not in (UploadStatus.COMPLETE, UploadStatus.PARTIAL):
            return None
        manifest = stored.snapshot
        if manifest.completed_at is None or datetime.fromisoformat(manifest.completed_at) < oldest:
            return None
        try:
            self._store.accepted(ref)
        except UploadNotFound:
            return None
        return manifest

    async def _reconcile(self, ref: UploadRef, before: Snapshot, patience_s: float, walk: _Walk[Reconciled]) -> None:
        await reopen_upload(self._client, ref, "force_reconcile")
        walk.report = replace(walk.report, uploads=walk.report.uploads + 1)
        started_at = time.monotonic()
        while await is_running(self._client, ref):
            if time.monotonic() - started_at > patience_s:
                walk.add_name("unfinished", ref)
                return
            await asyncio.sleep(BEAT_S)
        after = await asyncio.to_thread(self._store.manifest, ref)
        if after is None or (after.snapshot.status, after.snapshot.completed_at) != (before.status, before.completed_at):
            walk.add_name("corrected", ref)
