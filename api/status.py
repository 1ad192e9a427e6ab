"""What is known of an upload: from its run, from the bucket, or, when neither answers, from memory."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

from temporalio.client import WorkflowExecutionStatus

from activities.bucket.keys import PlanRef, UploadRef, sheet_numbers
from activities.bucket.records import (
    SheetRecord,
    SheetState,
    SheetStatus,
    Snapshot,
    UploadRecord,
    UploadStatus,
    milliseconds,
    timestamp,
    to_json,
    to_wire,
)
from activities.bucket.storage import Bucket, not_written, read_record
from activities.errors import BucketError, ObjectMissing, TemporalUnavailable, Terminated, UnreadableRecord, UploadNotFound
from api.runs import NoRun, RunClosed, Runs
from workflows.progress import ready_sheet
from workflows.terminated import ENDED_FROM_OUTSIDE, terminated_progress

logger = logging.getLogger(__name__)

RECORD_TTL_S = 2.0
REMEMBERED_RECORDS = 4096
REMEMBERED_SNAPSHOTS = 256

QUIET = timedelta(seconds=10)
"""After this long without a change, it is asked whether an activity keeps failing."""
STUCK = timedelta(minutes=5)
"""After this long without a change, that is worth a warning by itself."""
LOAD_S = 4.0
"""How long an answer waits for a run that has to learn first what an earlier one, now forgotten, has committed."""
LOAD_POLL_S = 0.1
SHEETS_AT_ONCE = 16

WORTH_A_WARNING = 3
"""Tries after which a failing activity is worth a warning."""

_LONG_AGO = datetime.fromtimestamp(0, UTC)

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The values used last, at most ``size`` of them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        """The value, if it is still remembered."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: K, value: V) -> None:
        """Remembers a value, and forgets the one that was not used for longest."""
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._size:
            self._values.popitem(last=False)

    def drop(self, key: K) -> None:
        """Forgets a value."""
        self._values.pop(key, None)


@dataclass(frozen=True)
class Known:
    """What is known of an upload now.

    Args:
        snapshot: Its progress.
        final: The document that ends its event stream, once the run is over: ``manifest.json``, byte for byte.
        certain: Whether its run, or Temporal and the bucket, said so just now.
        record: ``upload.json``; None when that cannot be read.
        unreadable: A record of it cannot be read: the snapshot is what the others tell, with a warning.
    """

    snapshot: Snapshot
    final: bytes | None = None
    certain: bool = True
    record: UploadRecord | None = None
    unreadable: UnreadableRecord | None = None


class Status:
    """Reads uploads.

    Args:
        bucket: Where their records are.
        runs: Their workflows.
    """

    def __init__(self, bucket: Bucket, runs: Runs) -> None:
        self._bucket = bucket
        self._runs = runs
        self._records: Recent[UploadRef, tuple[float, UploadRecord]] = Recent(REMEMBERED_RECORDS)
        self._snapshots: Recent[UploadRef, Snapshot] = Recent(REMEMBERED_SNAPSHOTS)
        self._deleted: Recent[UploadRef, str] = Recent(REMEMBERED_RECORDS)

    async def record(self, ref: UploadRef) -> UploadRecord:
        """``upload.json``, at most 2 seconds old; older only while the bucket fails.

        Raises:
            UploadNotFound: The upload was never accepted or is marked deleted.
            UnreadableRecord: It was accepted, and that is all that can be told.
            BucketError: The bucket failed and nothing is remembered.
        """
        if self._deleted.get(ref):
            raise _deleted(ref)  # a read that began before the mark was set may end after it
        remembered = self._records.get(ref)
        if remembered is not None and time.monotonic() - remembered[0] < RECORD_TTL_S:
            return remembered[1]
        try:
            record = await self._read_record(ref)
        except BucketError:
            if remembered is None:
                raise
            return remembered[1]
        if record.deleted_at is not None:
            raise _deleted(ref)
        self._records.put(ref, (time.monotonic(), record))
        return record

    async def _read_record(self, ref: UploadRef) -> UploadRecord:
        try:
            return await self._bucket.get_record_async(UploadRecord, ref.record)
        except ObjectMissing as error:
            msg = f"there is no upload {ref}"
            raise UploadNotFound(msg) from error

    async def check(self, ref: UploadRef) -> None:
        """Returns if there is such an upload; raises like ``record``, but not for one that cannot be read."""
        with suppress(UnreadableRecord):
            await self.record(ref)

    async def check_readable(self, ref: UploadRef) -> None:
        """Returns if the upload's run may be started again; raises like ``record`` and ``manifest``."""
        await self.record(ref)
        await self.manifest(ref)

    async def mark_deleted(self, ref: UploadRef) -> None:
        """From now on the upload is not found, here at once and by other processes within 2 seconds; once more is no error.

        Raises:
            UploadNotFound: It was never accepted, or nothing is left of it.
            BucketError: The bucket failed.
        """
        record = await self._read_record(ref)
        if record.deleted_at is None:
            await self._bucket.put_async(ref.record, to_json(replace(record, deleted_at=timestamp(datetime.now(UTC)))))
            if (await self._read_record(ref)).deleted_at is None:  # a mark of another request, made at the same moment, is as good
                raise not_written(ref.record)
            await asyncio.to_thread(self._bucket.sync)
            logger.info("marked an upload deleted", extra={"ref": str(ref)})
        self._deleted.put(ref, ref.upload)
        self._records.drop(ref)
        self._snapshots.drop(ref)

    async def manifest(self, ref: UploadRef) -> tuple[Snapshot, bytes] | None:
        """``manifest.json`` and its bytes, if a run has ended.

        Raises:
            UnreadableRecord: It cannot be read.
            BucketError: The bucket failed.
        """
        try:
            body = (await self._bucket.get_async(ref.manifest)).body
        except ObjectMissing:
            return None
        return read_record(Snapshot, ref.manifest, body), body

    def remember(self, ref: UploadRef, snapshot: Snapshot) -> None:
        """Keeps a progress for the time when nobody answers."""
        self._snapshots.put(ref, snapshot)

    async def read(self, ref: UploadRef, *, ask: bool = True, patience_s: float = LOAD_S) -> Known:
        """The progress of an upload; starts its workflow if it was accepted and has no run.

        A record that cannot be read is a warning, and nothing is started then: what it says could be a reason not to.

        Args:
            ref: The upload.
            ask: Whether to ask Temporal.
            patience_s: How long to wait for a run that does not know yet what is committed; after that the bucket says it.

        Raises:
            UploadNotFound: The upload was never accepted or is marked deleted.
            BucketError: The bucket failed and is needed for the answer.
        """
        record: UploadRecord | None = None
        try:
            record = await self.record(ref)
            try:
                if not ask:
                    msg = "Temporal did not answer a moment ago"
                    raise TemporalUnavailable(msg)
                known = await self._ask(ref, record, patience_s)
            except TemporalUnavailable as error:
                return replace(await self._unanswered(ref, record, error, ask=ask), record=record)
        except UnreadableRecord as error:
            return await self._unreadable(ref, record, error, ask=ask)
        self.remember(ref, known.snapshot)
        return replace(known, record=record)

    async def _ask(self, ref: UploadRef, record: UploadRecord, patience_s: float) -> Known:
        try:
            snapshot = await self._run(ref, record)
            if isinstance(snapshot, Known):
                return snapshot
            if is_unloaded(snapshot):
                # Until it has loaded, the truth is the manifest of the run before, or, after a lost history, what was known last, or what
                # the bucket holds. Its version must not fall.
                if ended := await self.manifest(ref):
                    return Known(ended[0])
                if (last := self._snapshots.get(ref)) and not is_unloaded(last):
                    return Known(last)
                snapshot = await self._loaded(ref, snapshot, patience_s)
            return Known(snapshot)
        except RunClosed as closed:
            ended = await self.manifest(ref)
            if closed.status in ENDED_FROM_OUTSIDE:
                return await self._broken_off(ref, closed.status, ended)
            return Known(*ended) if ended else await self._unwritten(ref)

    async def _run(self, ref: UploadRef, record: UploadRecord) -> Snapshot | Known:
        """What the run says; without any, the final progress, or how a run begins that is started now."""
        try:
            return await self._runs.progress(ref)
        except NoRun:
            ended = await self.manifest(ref)
        if ended:
            return Known(*ended)
        logger.info("starts the workflow of an accepted upload", extra={"ref": str(ref)})
        await self._runs.start(ref)
        began, _ = await self._times(ref)
        return _begins(record, began)

    async def _loaded(self, ref: UploadRef, snapshot: Snapshot, patience_s: float) -> Snapshot:
        """The progress of a run that knew nothing yet, once it knows what an earlier one has committed; waits for it."""
        begun = await self._begun(ref)
        if not begun:
            return snapshot
        deadline = time.monotonic() + patience_s
        while is_unloaded(snapshot) and time.monotonic() < deadline:
            await asyncio.sleep(LOAD_POLL_S)
            with suppress(NoRun, TemporalUnavailable):
                snapshot = await self._runs.progress(ref)
        return await self._with_committed(ref, snapshot, begun) if is_unloaded(snapshot) else snapshot

    async def _begun(self, ref: UploadRef) -> list[int]:
        """The numbers of the sheets below whose prefix there is anything."""
        names = await asyncio.to_thread(self._bucket.directories, ref.sheets_prefix)
        return sheet_numbers(names)

    async def _with_committed(self, ref: UploadRef, snapshot: Snapshot, begun: list[int]) -> Snapshot:
        """The same with the sheets that the bucket holds. How many pages there are is not known before the run has counted them.

        A sheet whose record cannot be read is not among them.
        """
        turns = asyncio.Semaphore(SHEETS_AT_ONCE)
        unreadable: list[str] = []

        async def read(number: int) -> SheetState | None:
            async with turns:
                try:
                    await self._bucket.head_async(ref.descriptor(number))
                    sheet = await self._bucket.get_record_async(SheetRecord, ref.sheet_record(number))
                except ObjectMissing:
                    return None
                except UnreadableRecord as error:
                    unreadable.append(str(error))
                    return None
            return ready_sheet(SheetState(number, SheetStatus.PENDING, snapshot.version), sheet)

        sheets = tuple(filter(None, await asyncio.gather(*map(read, begun))))
        warning = f"{len(unreadable):,} sheets are not counted: {min(unreadable)}" if unreadable else snapshot.warning
        return replace(snapshot, completed_pages=len(sheets), sheets=sheets, warning=warning)

    async def _broken_off(self, ref: UploadRef, status: WorkflowExecutionStatus | None, ended: tuple[Snapshot, bytes] | None) -> Known:
        """A run that an operator ended; a manifest that is older than the run was written by one before it."""
        began, moment = await self._times(ref)
        if ended and datetime.fromisoformat(ended[0].updated_at) >= began:
            return Known(*ended)
        candidates = [Snapshot(UploadStatus.QUEUED, 0, timestamp(moment))]
        if remembered := self._snapshots.get(ref):
            candidates.append(remembered)
        if ended:
            candidates.append(ended[0])
        last = max(candidates, key=lambda snapshot: snapshot.version)
        if last.reason != Terminated.__name__:
            last = terminated_progress(last, status, moment)
        return Known(last, to_json(last))

    async def _unreadable(self, ref: UploadRef, record: UploadRecord | None, error: UnreadableRecord, *, ask: bool) -> Known:
        """The newest of what its run says, of what is remembered and of what the bucket holds, without the record that cannot be read."""
        candidates = [self._snapshots.get(ref)]
        with suppress(UnreadableRecord):
            ended = await self.manifest(ref)
            candidates.append(ended[0] if ended else None)
        if ask:
            with suppress(NoRun, RunClosed, TemporalUnavailable):
                candidates.append(await self._runs.progress(ref))
        told = [snapshot for snapshot in candidates if snapshot and not is_unloaded(snapshot)]
        newest = max(told, key=lambda snapshot: snapshot.version, default=None)
        if newest is None:
            began = Snapshot(UploadStatus.QUEUED, 0, record.created_at if record else timestamp(ref.made_at or _LONG_AGO))
            newest = await self._with_committed(ref, began, await self._begun(ref))
        warning = f"this may not be the latest state: {error}"
        return Known(replace(newest, warning=warning), certain=False, record=record, unreadable=error)

    async def _unwritten(self, ref: UploadRef) -> Known:
        """A run has ended by itself, and what it wrote last is not there: it is asked; the sweep writes the manifest from the same answer.

        Raises:
            TemporalUnavailable: It does not answer.
        """
        with suppress(NoRun):
            last = await self._runs.last_progress(ref)
            if last.status.is_final:
                return Known(last, to_json(last))
        msg = "its run has ended, and the final progress is not written yet"
        raise TemporalUnavailable(msg)

    async def _times(self, ref: UploadRef) -> tuple[datetime, datetime]:
        try:
            return await self._runs.times(ref)
        except NoRun as error:
            msg = "the run ended and is gone"
            raise TemporalUnavailable(msg) from error

    async def _unanswered(self, ref: UploadRef, record: UploadRecord, error: TemporalUnavailable, *, ask: bool) -> Known:
        """The newest of what is remembered and what the bucket holds."""
        last = self._snapshots.get(ref)
        ended = await self.manifest(ref)
        candidates = [last, ended[0] if ended else None]
        newest = max(filter(None, candidates), key=lambda snapshot: snapshot.version, default=None)
        if newest is None:
            newest = _queued(record)
            if ask:
                with suppress(NoRun, TemporalUnavailable):  # Temporal itself may answer, only no worker
                    newest = _begins(record, (await self._runs.times(ref))[0])
            newest = await self._with_committed(ref, newest, await self._begun(ref))
            self.remember(ref, newest)
        return Known(replace(newest, warning=f"this may not be the latest state: {error}"), certain=False)

    async def explained(self, ref: UploadRef, known: Known) -> Known:
        """The same with a warning, when nothing moves."""
        now = datetime.now(UTC)
        idle = now - datetime.fromisoformat(known.snapshot.updated_at)
        if known.final is not None or not known.certain or idle < QUIET:
            return known
        try:
            failure = await self._runs.last_failure(ref)
        except (NoRun, TemporalUnavailable):
            return known
        # A final state whose run is open is only being written down, or has just been reopened: it need not move.
        if idle >= STUCK and (failure or not known.snapshot.status.is_final):
            minutes = int(idle.total_seconds() // 60)
            warning = f"nothing moved for {minutes:,} minutes" + (f"; {failure[0]}" if failure else "")
        elif failure and failure[1] >= WORTH_A_WARNING:
            warning = failure[0]
        else:
            return known
        return replace(known, snapshot=replace(known.snapshot, warning=warning))


def is_unloaded(snapshot: Snapshot) -> bool:
    """Whether it is of a run that has not counted the pages yet: it does not know what was done before it."""
    return snapshot.status is UploadStatus.QUEUED and not snapshot.total_pages


def _begins(record: UploadRecord, began: datetime) -> Snapshot:
    """How a run begins: newer than all that a forgotten run before it has said, and not newer than what it will say itself."""
    return replace(_queued(record), version=milliseconds(began))


def _deleted(ref: UploadRef) -> UploadNotFound:
    return UploadNotFound(f"the upload {ref} was deleted")


def _queued(record: UploadRecord) -> Snapshot:
    # Version 0: whatever a run says is newer.
    return Snapshot(UploadStatus.QUEUED, 0, record.created_at)


def collection_path(plan: PlanRef) -> str:
    """The address of a plan's uploads."""
    return f"/v1/organizations/{plan.organization}/projects/{plan.project}/plans/{plan.plan}/uploads"


def links(ref: UploadRef) -> dict[str, str]:
    """Where an upload's state, events and page are."""
    address = f"{collection_path(ref.plan_ref)}/{ref.upload}"
    return {"self": address, "events": f"{address}/events", "page": f"/?ref={ref}"}


def describe(ref: UploadRef, record: UploadRecord | None) -> dict[str, Any]:
    """What ``upload.json`` tells about an upload, on the wire; name and size are null when it cannot be read."""
    return {
        "ref": str(ref),
        "upload": ref.upload,
        "fileName": record.file_name if record else None,
        "sizeBytes": record.size_bytes if record else None,
        "createdAt": record.created_at if record else timestamp(ref.made_at or _LONG_AGO),
        "links": links(ref),
    }


def full_document(ref: UploadRef, known: Known) -> dict[str, Any]:
    """The whole progress with what ``upload.json`` tells."""
    return {**to_wire(known.snapshot), **describe(ref, known.record)}


def list_entry(ref: UploadRef, known: Known) -> dict[str, Any]:
    """One line of a plan's list."""
    snapshot = known.snapshot
    return {
        **describe(ref, known.record),
        "status": snapshot.status.value,
        "warning": snapshot.warning,
        "progress": snapshot.progress,
        "completedPages": snapshot.completed_pages,
        "totalPages": snapshot.total_pages,
    }
