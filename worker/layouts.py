"""The activities that convert uploads to another layout. They work only while the upload has no run, which might repair its sheets."""

import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from temporalio import activity
from temporalio.client import Client

from activities.attempt import Attempt, raise_if_stopped
from activities.bucket.keys import UploadRef
from activities.bucket.records import Layout, SheetState, SheetStatus, Snapshot, milliseconds, timestamp
from activities.bucket.storage import Bucket
from activities.bucket.uploads import UploadStore
from activities.errors import UnreadableRecord, UploadBusy
from activities.interface import ConvertedSheet, Convertible, ConvertSheet, LayoutActivities, ListConvertible, TellLayouts
from activities.layouts import SheetConversion
from activities.threads import FairThreads, turn_of
from workflows.starting import is_running


class Layouts(LayoutActivities):
    """The activities of one worker process.

    Args:
        client: A connected Temporal client.
        bucket: The bucket of the uploads.
        threads: Make the requests for tiles.
        directory: Has room for the tiles of the sheets that are converted.
    """

    def __init__(self, client: Client, bucket: Bucket, threads: FairThreads, directory: Path) -> None:
        self._client = client
        self._bucket = bucket
        self._threads = threads
        self._directory = directory
        self._store = UploadStore(bucket)

    @activity.defn
    async def list_convertible(self, args: ListConvertible) -> Convertible:
        """See ``LayoutActivities.list_convertible``."""
        attempt, ref = Attempt(), UploadRef.parse(args.ref)

        def numbers() -> Convertible:
            self._store.accepted(ref)
            return Convertible(tuple(self._store.begun(ref)))

        with attempt.named_errors():
            await self._check_idle(ref)
            return await attempt.in_thread(lambda _: numbers())

    @activity.defn
    async def convert_sheet(self, args: ConvertSheet) -> ConvertedSheet:
        """See ``LayoutActivities.convert_sheet``."""
        attempt, ref = Attempt(), UploadRef.parse(args.ref)
        conversion = SheetConversion(self._bucket, self._threads, ref, args.number, args.layout, self._directory)
        with attempt.named_errors():
            await self._check_idle(ref)
            written = await attempt.in_thread(conversion.write, more_follows=True)
            if not conversion.is_written:
                return written
            # A run that has begun since then may have taken the new objects for foreign ones. It has ended when the new objects are proved.
            await self._check_idle(ref)
            return await attempt.in_thread(conversion.remove_earlier)

    @activity.defn
    async def tell_layouts(self, args: TellLayouts) -> None:
        """See ``LayoutActivities.tell_layouts``."""
        attempt, ref = Attempt(), UploadRef.parse(args.ref)
        with attempt.named_errors():
            await self._check_idle(ref)
            told = await attempt.in_thread(lambda stop: self._told(ref, stop), more_follows=True)
            if told is not None:
                # A run that has begun since then writes a manifest of its own, or has written it already.
                await self._check_idle(ref)
                await attempt.in_thread(lambda _: self._write(ref, *told))

    def _write(self, ref: UploadRef, before: Snapshot, now: Snapshot) -> None:
        if (manifest := self._store.manifest(ref)) is None or manifest.snapshot != before:
            msg = f"a run of the upload {ref} has written another manifest meanwhile"
            raise UploadBusy(msg)
        self._store.write_manifest(ref, now)

    def _told(self, ref: UploadRef, stop: threading.Event) -> tuple[Snapshot, Snapshot] | None:
        """The manifest, and the manifest with the layouts as they are; None if it need not be written."""
        self._store.accepted(ref)
        if (manifest := self._store.manifest(ref)) is None:
            return None
        before, now = manifest.snapshot, datetime.now(UTC)
        version = max(before.version + 1, milliseconds(now))

        def look(sheet: SheetState) -> SheetState:
            raise_if_stopped(stop)
            if sheet.status is not SheetStatus.READY:
                return sheet
            try:
                record = self._store.committed(ref, sheet.number)
            except UnreadableRecord:
                return sheet
            is_told = record is None or record.layout is (sheet.layout or Layout.EXPLODED)
            return sheet if is_told or record is None else replace(sheet, layout=record.layout, version=version)

        sheets = tuple(self._threads.map(turn_of(ref), look, before.sheets))
        if sheets == before.sheets:
            return None
        return before, replace(before, sheets=sheets, version=version, updated_at=timestamp(now))

    async def _check_idle(self, ref: UploadRef) -> None:
        if await is_running(self._client, ref):
            msg = f"a run of the upload {ref} works on its sheets"
            raise UploadBusy(msg)
