"""The activities that compare the bucket with the progress, repair sheets, and write the manifest."""

import logging
import threading
from contextlib import closing, suppress
from dataclasses import replace

from temporalio import activity

from activities.attempt import Attempt, raise_if_stopped
from activities.bucket.dzi import Pyramid
from activities.bucket.keys import UploadRef, sheet_of_directory
from activities.bucket.listing import Listing
from activities.bucket.records import SheetRecord, SheetState, SheetStatus, UploadOptions
from activities.bucket.report import SheetReport
from activities.bucket.verify import bounded_map, looks_committed, verify_sheet
from activities.bucket.weight import fit_state
from activities.errors import DamagedRecord
from activities.host import HostActivities
from activities.interface import (
    BrokenSheet,
    BucketState,
    CheckedSheets,
    CheckSheets,
    ListSheets,
    PruneSheets,
    RecordReopening,
    WriteManifest,
    WrittenManifest,
)
from activities.render.attempt import RenderAttempt
from activities.threads import turn_of

logger = logging.getLogger(__name__)

GROUP_SIZE = 16
"""Sheets that a thread looks up in one turn. That takes about as many requests as a turn that uploads tiles (``MOST_CHUNK_TILES``)."""


class ReconcileActivities(HostActivities):
    """The activities that compare the bucket with the progress."""

    @activity.defn
    async def list_sheets(self, args: ListSheets) -> BucketState:
        """See ``UploadActivities.list_sheets``."""
        attempt = Attempt()
        with attempt.named_errors():
            return await attempt.in_thread(lambda _: self._list(UploadRef.parse(args.ref)))

    def _list(self, ref: UploadRef) -> BucketState:
        record = self._store.accepted(ref)
        numbers = self._store.begun(ref)
        groups = [numbers[start : start + GROUP_SIZE] for start in range(0, len(numbers), GROUP_SIZE)]
        records = self._host.threads.map(turn_of(ref), lambda group: [self._committed(ref, number) for number in group], groups)
        committed = tuple(record for group in records for record in group if record)
        manifest = stored.snapshot if (stored := self._store.manifest(ref)) else None
        reopened = self._store.reopened_record(ref, manifest) if manifest else None
        webhooks = self._webhooks.subscriptions(ref, record)
        return fit_state(BucketState(record.options, committed, manifest, webhooks, reopened=reopened))

    @activity.defn
    async def record_reopening(self, args: RecordReopening) -> None:
        """See ``UploadActivities.record_reopening``."""
        attempt = Attempt()
        with attempt.named_errors():
            await attempt.in_thread(lambda _: self._reopen(args))

    def _reopen(self, args: RecordReopening) -> None:
        ref = UploadRef.parse(args.ref)
        self._store.accepted(ref)  # an upload that is being deleted gets no record any more
        self._store.write_reopened_record(ref, args.record)

    @activity.defn
    async def check_sheets(self, args: CheckSheets) -> CheckedSheets:
        """See ``UploadActivities.check_sheets``."""
        # A deep check decodes in a process of its own, and one that cannot start is a ``RenderFault``: it must become final, because the
        # sheets wait for the end of their judgement, and a cancelled run does, too.
        attempt = RenderAttempt()
        with attempt.named_errors():
            return await attempt.in_thread(lambda stop: self._check(args, stop))

    def _check(self, args: CheckSheets, stop: threading.Event) -> CheckedSheets:
        ref = UploadRef.parse(args.ref)
        options = self._store.accepted(ref).options
        begun = set(self._store.begun(ref))

        def check_sheet(state: SheetState) -> CheckedSheets:
            raise_if_stopped(stop)
            if state.number not in begun and state.status is not SheetStatus.READY:
                return CheckedSheets()
            return self._check_sheet(ref, state, options, args)

        with closing(bounded_map(check_sheet, args.sheets)) as checked:
            results = list(checked)
        return CheckedSheets(
            committed=tuple(record for result in results for record in result.committed),
            broken=tuple(sheet for result in results for sheet in result.broken),
            removed=sum(result.removed for result in results),
        )

    def _check_sheet(self, ref: UploadRef, state: SheetState, options: UploadOptions, args: CheckSheets) -> CheckedSheets:
        bucket = self._host.bucket
        number, is_ready = state.number, state.status is SheetStatus.READY
        listing = Listing.fetch(bucket, ref, number)
        report = None
        has_marker = looks_committed(bucket, listing, options)
        if is_ready or has_marker:
            report = verify_sheet(bucket, ref, listing, state, options, deep=args.deep, refuse_newer=True)
        is_whole = report is not None and report.is_whole
        removed = 0
        if args.repair:
            if not is_whole and has_marker:
                self._store.uncommit(ref, number)  # first, so that the sheet is found broken again if this repair is killed
            if args.discard and not is_whole:
                surplus = _sheet_keys(ref, listing)
                bucket.remove_unfinished(ref.sheet_prefix(number))
            else:
                layout = report.layout if report is not None and report.layout is not None else options.layout
                surplus = listing.surplus(ref, _pyramid(state, options), layout)
            bucket.delete(surplus)
            removed = len(surplus)
        if report is None or (is_whole and is_ready):
            return CheckedSheets(removed=removed)
        if not is_whole:
            return CheckedSheets(broken=(BrokenSheet(number, _defects(report)),), removed=removed)
        record = self._committed(ref, number)
        return CheckedSheets(committed=(record,) if record else (), removed=removed)

    def _committed(self, ref: UploadRef, number: int) -> SheetRecord | None:
        """The record of a committed sheet, without digest, engines, transform and layers.

        Returns:
            None if the sheet is not committed. A sheet with a damaged record is uncommitted.
        """
        try:
            record = self._store.committed(ref, number)
        except DamagedRecord as error:
            # Nothing is lost: the sheet, with its sheet.json, can be made again from the PDF.
            logger.warning("the sheet is tiled again: %s", error, extra={"ref": str(ref), "sheet": number})
            self._store.uncommit(ref, number)
            return None
        # With these, the records of 2,000 sheets would not fit.
        return replace(record, digest="", engines={}, transform=None, layers=()) if record else None

    @activity.defn
    async def prune_sheets(self, args: PruneSheets) -> int:
        """See ``UploadActivities.prune_sheets``."""
        attempt = Attempt()
        with attempt.named_errors():
            return await attempt.in_thread(lambda stop: self._prune(UploadRef.parse(args.ref), args.total_pages, stop))

    def _prune(self, ref: UploadRef, total_pages: int, stop: threading.Event) -> int:
        bucket = self._host.bucket
        self._store.accepted(ref)
        directories, objects = bucket.children(ref.sheets_prefix)
        foreign = [info.key for info in objects]
        for name in directories:
            number = sheet_of_directory(name)
            if number is None or number > total_pages:
                raise_if_stopped(stop)
                foreign += [info.key for info in bucket.objects(f"{ref.sheets_prefix}{name}/")]
        bucket.delete(foreign)
        return len(foreign)

    @activity.defn
    async def write_manifest(self, args: WriteManifest) -> WrittenManifest:
        """See ``UploadActivities.write_manifest``."""
        attempt = Attempt()
        with attempt.named_errors():
            return await attempt.in_thread(lambda _: self._write(args))

    def _write(self, args: WriteManifest) -> WrittenManifest:
        ref = UploadRef.parse(args.ref)
        record = self._store.accepted(ref)  # an upload that is being deleted gets no manifest any more
        self._store.write_manifest(ref, args.snapshot)
        if args.reopened:
            self._store.remove_reopened_record(ref, args.reopened)
        return WrittenManifest(self._webhooks.subscriptions(ref, record))


def _sheet_keys(ref: UploadRef, listing: Listing) -> list[str]:
    """The keys of all objects below the sheet's prefix, except its ``.dzi``, which was removed before."""
    objects = (*listing.tiles.values(), listing.archive, listing.thumbnail, listing.record)
    return [*(info.key for info in objects if info is not None), *(ref.sheets_prefix + path for path in listing.foreign)]


def _pyramid(state: SheetState, options: UploadOptions) -> Pyramid | None:
    """The pyramid of a sheet; None when its size is not known, or none that a sheet can have."""
    with suppress(ValueError):
        return Pyramid(state.width or 0, state.height or 0, options.tile_size, options.overlap)
    return None


def _defects(report: SheetReport) -> str:
    """A sentence that says what is wrong with the sheet."""
    counts = ((report.missing_count, report.missing, "missing"), (report.empty_count, report.empty, "empty"))
    defects = [f"{count:,} of {report.expected:,} tiles {state}, the first is {names[0]}" for count, names, state in counts if count]
    return "; ".join([*defects, *report.problems])[:500]
