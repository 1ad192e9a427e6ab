"""Reads the state of an upload from its run, from the bucket or, while Temporal does not answer, from the memory of this process."""

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from temporalio.client import WorkflowExecutionStatus

from activities.bucket.keys import UploadRef
from activities.bucket.records import (
    SheetState,
    SheetStatus,
    Snapshot,
    UploadRecord,
    UploadStatus,
    milliseconds,
    timestamp,
    to_json,
)
from activities.bucket.storage import Bucket
from activities.bucket.uploads import Manifest, UploadStore, upload_deleted_error
from activities.errors import BucketError, TemporalUnavailable, Terminated, UnreadableRecord
from api.progress.live import LiveProgress
from api.progress.recent import Recent
from api.progress.remaining import with_estimate
from api.progress.runs import NoRun, RunClosed, Runs
from workflows.processing.progress import ready_sheet
from workflows.terminated import ENDED_FROM_OUTSIDE, terminated_progress

logger = logging.getLogger(__name__)

RECORD_TTL_S = 2.0
REMEMBERED_RECORDS = 4096
REMEMBERED_SNAPSHOTS = 256

QUIET = timedelta(seconds=10)
"""After this long without a change, Temporal is asked whether an activity keeps failing."""
STUCK = timedelta(minutes=5)
"""After this long without a change, the standstill itself is worth a warning."""
LOAD_S = 4.0
"""How long an answer waits for a new run to find out which sheets an earlier run has committed, after Temporal has lost that run."""
LOAD_POLL_S = 0.1
SHEETS_AT_ONCE = 16

WORTH_A_WARNING = 3
"""An activity that has failed is worth a warning when the attempt with this number is due or runs."""

_LONG_AGO = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True)
class UploadState:
    """The state of an upload, as far as it is known now.

    Args:
        snapshot: The upload's progress.
        final: The last document of the event stream, once the run has ended: the bytes of ``manifest.json``, if it is written.
        certain: Whether the progress is current. False when Temporal does not answer, or a record cannot be read: it may then be old.
        record: ``upload.json``; None when it cannot be read.
        unreadable: The error, if a record of the upload cannot be read. The snapshot then comes from the other records and has a warning.
        is_loading: Whether Temporal answers, but the run that follows a lost run has not loaded yet. The progress is then not certain.
    """

    snapshot: Snapshot
    final: bytes | None = None
    certain: bool = True
    record: UploadRecord | None = None
    unreadable: UnreadableRecord | None = None
    is_loading: bool = False


class Status:
    """Reads the state of uploads.

    Args:
        bucket: Holds the records of the uploads.
        runs: Asks and starts the workflows of the uploads.
    """

    def __init__(self, bucket: Bucket, runs: Runs) -> None:
        self._store = UploadStore(bucket)
        self._runs = runs
        self._records: Recent[UploadRef, tuple[float, UploadRecord]] = Recent(REMEMBERED_RECORDS)
        self._snapshots: Recent[UploadRef, UploadState | LiveProgress] = Recent(REMEMBERED_SNAPSHOTS)
        self._deleted: Recent[UploadRef, str] = Recent(REMEMBERED_RECORDS)

    async def record(self, ref: UploadRef) -> UploadRecord:
        """``upload.json``, at most 2 seconds old; older only while the bucket fails.

        Raises:
            UploadNotFound: The upload was never accepted or is marked deleted.
            UnreadableRecord: The upload was accepted, but ``upload.json`` cannot be read.
            BucketError: The bucket failed, and this process does not remember the record.
        """
        deleted_at = self._deleted.get(ref)
        if deleted_at is not None:  # a read that began before the deletion mark was set may end after it
            raise upload_deleted_error(ref, deleted_at)
        remembered = self._records.get(ref)
        if remembered is not None and time.monotonic() - remembered[0] < RECORD_TTL_S:
            return remembered[1]
        try:
            record = await self._store.accepted_async(ref)
        except BucketError:
            if remembered is None:
                raise
            return remembered[1]
        self._records.put(ref, (time.monotonic(), record))
        return record

    async def check(self, ref: UploadRef) -> None:
        """Returns if the upload exists. Raises the same errors as ``record``, but not ``UnreadableRecord``."""
        with suppress(UnreadableRecord):
            await self.record(ref)

    async def check_readable(self, ref: UploadRef) -> None:
        """Returns if the upload's run may be started again. Raises the errors of ``record`` about any record that the run would read."""
        await self.record(ref)
        if manifest := await self._store.manifest_async(ref):
            await self._store.reopened_record_async(ref, manifest.snapshot)

    async def mark_deleted(self, ref: UploadRef) -> None:
        """Marks the upload deleted. It is gone at once in this process, and within 2 seconds in other processes. A second call is no error.

        Raises:
            UploadNotFound: The upload was never accepted, or all its objects are removed.
            UnreadableRecord: ``upload.json`` cannot be read.
            BucketError: The bucket failed.
        """
        self._deleted.put(ref, await self._store.mark_deleted_async(ref))
        self._records.drop(ref)
        self._snapshots.drop(ref)

    def remember(self, ref: UploadRef, state: "UploadState | LiveProgress") -> None:
        """Keeps a progress for the time when Temporal does not answer."""
        self._snapshots.put(ref, state)

    def _remembered(self, ref: UploadRef) -> Snapshot | None:
        state = self._snapshots.get(ref)
        return state.snapshot if state else None

    async def read(self, ref: UploadRef, *, ask_temporal: bool = True, patience_s: float = LOAD_S) -> UploadState:
        """The progress of an upload; starts its workflow if it was accepted and has no run.

        A record that cannot be read becomes a warning. Then no workflow is started: the record might say that the upload has ended or is
        deleted.

        Args:
            ref: The upload.
            ask_temporal: Whether to ask Temporal.
            patience_s: How long to wait for a run that does not know yet which sheets are committed. After that, the bucket is read.

        Raises:
            UploadNotFound: The upload was never accepted or is marked deleted.
            BucketError: The bucket failed, and the answer needs it.
        """
        record: UploadRecord | None = None
        try:
            record = await self.record(ref)
            try:
                if not ask_temporal:
                    msg = "Temporal did not answer a moment ago"
                    raise TemporalUnavailable(msg)
                state = await self._ask_temporal(ref, record, patience_s)
            except TemporalUnavailable as error:
                return replace(await self._last_known_state(ref, record, error, ask_temporal=ask_temporal), record=record)
        except UnreadableRecord as error:
            return await self._state_beside_unreadable_record(ref, record, error, ask_temporal=ask_temporal)
        if state.is_loading:
            return replace(state, record=record)
        self.remember(ref, state)
        return replace(state, snapshot=with_estimate(state.snapshot), record=record)

    async def _ask_temporal(self, ref: UploadRef, record: UploadRecord, patience_s: float) -> UploadState:
        try:
            snapshot = await self._ask_run(ref, record)
            if isinstance(snapshot, UploadState):
                return snapshot
            if is_unloaded(snapshot):
                # Until the run has loaded, the manifest of the previous run counts, unless a run that went on from it was lost. What this
                # process knows of a lost run may be older than what another process has told. So the version does not fall.
                manifest = await self._store.manifest_async(ref)
                if manifest and await self._store.reopened_record_async(ref, manifest.snapshot) is None:
                    return UploadState(manifest.snapshot)
                last = self._remembered(ref)
                if manifest or (last and not is_unloaded(last)):
                    return await self._state_after_loss(ref, record, snapshot, patience_s)
                snapshot = await self._wait_until_loaded(ref, snapshot, patience_s)
            return UploadState(snapshot)
        except RunClosed as closed:
            manifest = await self._store.manifest_async(ref)
            if closed.status in ENDED_FROM_OUTSIDE:
                return await self._terminated_state(ref, closed.status, manifest)
            return _ended_state(manifest) if manifest else await self._state_without_manifest(ref)

    async def _ask_run(self, ref: UploadRef, record: UploadRecord) -> Snapshot | UploadState:
        """The run's progress. Without a run: the final state from the manifest, or, after starting a run, its first progress."""
        try:
            return await self._runs.progress(ref)
        except NoRun:
            manifest = await self._store.manifest_async(ref)
        reopened = manifest is not None and await self._store.reopened_record_async(ref, manifest.snapshot) is not None
        if manifest and not reopened:
            return _ended_state(manifest)
        logger.info("starts the workflow of an accepted upload", extra={"ref": str(ref)})
        await self._runs.start(ref, lost=reopened)
        began, _ = await self._run_times(ref)
        return _first_snapshot(record, began)

    async def _wait_until_loaded(self, ref: UploadRef, snapshot: Snapshot, patience_s: float) -> Snapshot:
        """Waits until a run has loaded, if earlier runs have begun sheets. When time is up, adds the committed sheets from the bucket."""
        begun = await self._store.begun_async(ref)
        if not begun:
            return snapshot
        snapshot = await self._progress_once_loaded(ref, snapshot, patience_s)
        return await self._with_committed(ref, snapshot, begun) if is_unloaded(snapshot) else snapshot

    async def _state_after_loss(self, ref: UploadRef, record: UploadRecord, snapshot: Snapshot, patience_s: float) -> UploadState:
        """The progress of a run that follows a lost one, once it has loaded; until then, the last known state, which may be old."""
        snapshot = await self._progress_once_loaded(ref, snapshot, patience_s)
        if not is_unloaded(snapshot):
            return UploadState(snapshot)
        await self.check(ref)  # perhaps the upload was deleted meanwhile
        error = TemporalUnavailable("the run was lost, and the new run has not loaded yet")
        return replace(await self._last_known_state(ref, record, error, ask_temporal=False), is_loading=True)

    async def _progress_once_loaded(self, ref: UploadRef, snapshot: Snapshot, patience_s: float) -> Snapshot:
        """The progress of a run as soon as it has loaded, or as it is when time is up."""
        deadline = time.monotonic() + patience_s
        while is_unloaded(snapshot) and time.monotonic() < deadline:
            await asyncio.sleep(LOAD_POLL_S)
            with suppress(NoRun, TemporalUnavailable):
                snapshot = await self._runs.progress(ref)
        return snapshot

    async def _with_committed(self, ref: UploadRef, snapshot: Snapshot, begun: list[int]) -> Snapshot:
        """The snapshot, with the committed sheets from the bucket. The number of pages stays unknown until the run has counted them.

        A sheet whose record cannot be read is left out. The warning counts such sheets and names one of them.
        """
        turns = asyncio.Semaphore(SHEETS_AT_ONCE)
        unreadable: list[str] = []

        async def read(number: int) -> SheetState | None:
            async with turns:
                try:
                    sheet = await self._store.committed_async(ref, number)
                except UnreadableRecord as error:
                    unreadable.append(str(error))
                    return None
            return ready_sheet(SheetState(number, SheetStatus.PENDING, snapshot.version), sheet) if sheet else None

        sheets = tuple(filter(None, await asyncio.gather(*map(read, begun))))
        warning = f"{len(unreadable):,} sheets are not counted: {min(unreadable)}" if unreadable else snapshot.warning
        return replace(snapshot, completed_pages=len(sheets), sheets=sheets, warning=warning)

    async def _terminated_state(self, ref: UploadRef, status: WorkflowExecutionStatus | None, manifest: Manifest | None) -> UploadState:
        """The state after the run was terminated or timed out. A manifest that is older than the run was written by an earlier run."""
        began, ended = await self._run_times(ref)
        if ended is None:  # an operator has reset the run, so the upload goes on in another one
            msg = "the run was replaced by another one"
            raise TemporalUnavailable(msg)
        if manifest and datetime.fromisoformat(manifest.snapshot.updated_at) >= began:
            has_ended = await self._store.reopened_record_async(ref, manifest.snapshot) is None
            if has_ended:
                return _ended_state(manifest)
        candidates = [_queued_snapshot(timestamp(ended))]
        if remembered := self._remembered(ref):
            candidates.append(remembered)
        if manifest:
            candidates.append(manifest.snapshot)
        last = max(candidates, key=lambda snapshot: snapshot.version)
        if last.reason != Terminated.__name__:
            last = terminated_progress(last, status, ended)
        return UploadState(last, to_json(last))

    async def _state_beside_unreadable_record(
        self, ref: UploadRef, record: UploadRecord | None, error: UnreadableRecord, *, ask_temporal: bool
    ) -> UploadState:
        """The newest state from the run, from memory and from the readable records in the bucket, with a warning."""
        snapshots = [self._remembered(ref)]
        with suppress(UnreadableRecord):
            manifest = await self._store.manifest_async(ref)
            snapshots.append(manifest.snapshot if manifest else None)
        if ask_temporal:
            with suppress(NoRun, RunClosed, TemporalUnavailable):
                snapshots.append(await self._runs.progress(ref))
        candidates = [snapshot for snapshot in snapshots if snapshot and not is_unloaded(snapshot)]
        newest = max(candidates, key=lambda snapshot: snapshot.version, default=None)
        if newest is None:
            queued = _queued_snapshot(created_at(ref, record))
            newest = await self._with_committed(ref, queued, await self._store.begun_async(ref))
        warning = f"this may not be the latest state: {error}"
        return UploadState(replace(newest, warning=warning), certain=False, record=record, unreadable=error)

    async def _state_without_manifest(self, ref: UploadRef) -> UploadState:
        """The state after a run that ended by itself and left no manifest: the run's last progress. The sweep makes it the manifest.

        Raises:
            TemporalUnavailable: The run does not answer.
        """
        with suppress(NoRun):
            last = await self._runs.last_progress(ref)
            if last.status.is_final:
                return UploadState(last, to_json(last))
        msg = "its run has ended, and the final progress is not written yet"
        raise TemporalUnavailable(msg)

    async def _run_times(self, ref: UploadRef) -> tuple[datetime, datetime | None]:
        try:
            return await self._runs.run_times(ref)
        except NoRun as error:
            msg = "the run ended and is gone"
            raise TemporalUnavailable(msg) from error

    async def _last_known_state(
        self, ref: UploadRef, record: UploadRecord, error: TemporalUnavailable, *, ask_temporal: bool
    ) -> UploadState:
        """The newest state from memory and from the bucket, while Temporal does not answer."""
        manifest = await self._store.manifest_async(ref)
        candidates = [self._remembered(ref), manifest.snapshot if manifest else None]
        newest = max(filter(None, candidates), key=lambda snapshot: snapshot.version, default=None)
        if newest is None:
            newest = _queued_snapshot(record.created_at)
            if ask_temporal:
                with suppress(NoRun, TemporalUnavailable):  # perhaps only the workers do not answer, and Temporal does
                    newest = _first_snapshot(record, (await self._runs.run_times(ref))[0])
            newest = await self._with_committed(ref, newest, await self._store.begun_async(ref))
            self.remember(ref, UploadState(newest))
        return UploadState(replace(newest, warning=f"this may not be the latest state: {error}"), certain=False)

    async def with_standstill_warning(self, ref: UploadRef, state: UploadState) -> UploadState:
        """The state, with a warning if the progress has not changed for some time."""
        now = datetime.now(UTC)
        idle = now - datetime.fromisoformat(state.snapshot.updated_at)
        if state.final is not None or not (state.certain or state.is_loading) or idle < QUIET:
            return state
        try:
            failure = await self._runs.last_failure(ref)
        except (NoRun, TemporalUnavailable):
            return state
        sentence, attempt = failure or ("", 0)
        if state.is_loading:  # its own warning stays; how long nothing has moved is not known
            more = f"; {sentence}" if attempt >= WORTH_A_WARNING else ""
            return replace(state, snapshot=replace(state.snapshot, warning=f"{state.snapshot.warning}{more}"))
        # A final state of an open run needs no change: the run is writing its manifest, or was just reopened.
        if idle >= STUCK and (failure or not state.snapshot.status.is_final):
            minutes = int(idle.total_seconds() // 60)
            warning = f"nothing moved for {minutes:,} minutes" + (f"; {sentence}" if failure else "")
        elif attempt >= WORTH_A_WARNING:
            warning = sentence
        else:
            return state
        return replace(state, snapshot=replace(state.snapshot, warning=warning, seconds_left=None))


def created_at(ref: UploadRef, record: UploadRecord | None) -> str:
    """When the upload was accepted; if ``upload.json`` cannot be read, the time in the upload's id."""
    return record.created_at if record else timestamp(ref.made_at or _LONG_AGO)


def is_unloaded(snapshot: Snapshot) -> bool:
    """Whether the snapshot is of a run that has not counted the pages yet. Such a run does not know what earlier runs did."""
    return snapshot.status is UploadStatus.QUEUED and not snapshot.total_pages


def _first_snapshot(record: UploadRecord, began: datetime) -> Snapshot:
    """The first progress of a run. Its version is newer than those of earlier runs, and not newer than this run's own versions."""
    return replace(_queued_snapshot(record.created_at), version=milliseconds(began))


def _queued_snapshot(updated_at: str) -> Snapshot:
    # Version 0 is older than every version of a run.
    return Snapshot(UploadStatus.QUEUED, 0, updated_at)


def _ended_state(manifest: Manifest) -> UploadState:
    return UploadState(manifest.snapshot, manifest.body)
