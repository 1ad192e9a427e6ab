"""What compares the bucket with the progress: what was done, what is broken, and the manifest that says so in the end."""

import logging
import threading
from contextlib import closing
from dataclasses import replace

from temporalio import activity

from activities.attempt import Attempt, check
from activities.bucket.dzi import Pyramid
from activities.bucket.keys import UploadRef, sheet_numbers, sheet_of_directory
from activities.bucket.listing import Listing
from activities.bucket.records import SheetRecord, SheetState, SheetStatus, Snapshot, UploadOptions, to_json
from activities.bucket.report import SheetReport
from activities.bucket.storage import Bucket
from activities.bucket.verify import in_window, verify_sheet
from activities.document import accepted_upload
from activities.errors import DamagedRecord, ObjectMissing
from activities.host import Host
from activities.interface import (
    BrokenSheet,
    BucketState,
    CheckedSheets,
    CheckSheets,
    ListSheets,
    PruneSheets,
    UploadActivities,
    WriteManifest,
)
from activities.threads import turn_of

logger = logging.getLogger(__name__)

GROUP = 16
"""Sheets that one thread looks up in one turn: as many requests as a turn of an upload makes (``activities.sheets.CHUNK``)."""


class ReconcileActivities(UploadActivities):
    """What compares the bucket with the progress."""

    def __init__(self, host: Host) -> None:
        self._host = host

    @activity.defn
    async def list_sheets(self, args: ListSheets) -> BucketState:
        """See ``UploadActivities.list_sheets``."""
        attempt = Attempt()
        with attempt.named_errors():
            return await attempt.in_thread(lambda _: self._list(UploadRef.parse(args.ref)))

    def _list(self, ref: UploadRef) -> BucketState:
        bucket = self._host.bucket
        options = accepted_upload(bucket, ref).options
        numbers = list(sheet_numbers(bucket.directories(ref.sheets_prefix)))
        groups = [numbers[start : start + GROUP] for start in range(0, len(numbers), GROUP)]
        records = self._host.threads.map(turn_of(ref), lambda group: [_committed(bucket, ref, number) for number in group], groups)
        return BucketState(options, tuple(record for group in records for record in group if record), _manifest(bucket, ref))

    @activity.defn
    async def check_sheets(self, args: CheckSheets) -> CheckedSheets:
        """See ``UploadActivities.check_sheets``."""
        attempt = Attempt()
        with attempt.named_errors():
            return await attempt.in_thread(lambda stop: self._check(args, stop))

    def _check(self, args: CheckSheets, stop: threading.Event) -> CheckedSheets:
        bucket, ref = self._host.bucket, UploadRef.parse(args.ref)
        options = accepted_upload(bucket, ref).options
        begun = set(sheet_numbers(bucket.directories(ref.sheets_prefix)))

        def check_sheet(state: SheetState) -> CheckedSheets:
            check(stop)
            if state.number not in begun and state.status is not SheetStatus.READY:
                return CheckedSheets()
            return _check_sheet(bucket, ref, state, options, args)

        with closing(in_window(check_sheet, args.sheets)) as window:
            parts = list(window)
        return CheckedSheets(
            committed=tuple(record for part in parts for record in part.committed),
            broken=tuple(sheet for part in parts for sheet in part.broken),
            removed=sum(part.removed for part in parts),
        )

    @activity.defn
    async def prune_sheets(self, args: PruneSheets) -> int:
        """See ``UploadActivities.prune_sheets``."""
        attempt = Attempt()
        with attempt.named_errors():
            return await attempt.in_thread(lambda stop: self._prune(UploadRef.parse(args.ref), args.total_pages, stop))

    def _prune(self, ref: UploadRef, total_pages: int, stop: threading.Event) -> int:
        bucket = self._host.bucket
        accepted_upload(bucket, ref)
        names, loose = bucket.children(ref.sheets_prefix)
        foreign = [info.key for info in loose]
        for name in names:
            number = sheet_of_directory(name)
            if number is None or number > total_pages:
                check(stop)
                foreign += [info.key for info in bucket.objects(f"{ref.sheets_prefix}{name}/")]
        bucket.delete(foreign)
        return len(foreign)

    @activity.defn
    async def write_manifest(self, args: WriteManifest) -> None:
        """See ``UploadActivities.write_manifest``."""
        attempt = Attempt()
        with attempt.named_errors():
            await attempt.in_thread(lambda _: self._write(UploadRef.parse(args.ref), args.snapshot))

    def _write(self, ref: UploadRef, snapshot: Snapshot) -> None:
        accepted_upload(self._host.bucket, ref)
        self._host.bucket.put_seen(ref.manifest, to_json(snapshot))


def _check_sheet(bucket: Bucket, ref: UploadRef, state: SheetState, options: UploadOptions, args: CheckSheets) -> CheckedSheets:
    number, is_ready = state.number, state.status is SheetStatus.READY
    listing = Listing.of(bucket, ref, number)
    report = None
    if is_ready or listing.descriptor is not None:
        report = verify_sheet(bucket, ref, listing, state, options, deep=args.deep, refuse_newer=True)
    is_whole = report is not None and report.is_whole
    removed = 0
    if args.repair:
        if not is_whole and listing.descriptor is not None:
            bucket.delete([ref.descriptor(number)])  # first of all: whatever happens now, it is found broken again
        if args.discard and not is_whole:
            surplus = _keys(ref, listing)
            bucket.remove_unfinished(ref.sheet_prefix(number))
        else:
            surplus = listing.surplus(ref, _pyramid(state, options))
        bucket.delete(surplus)
        removed = len(surplus)
    if report is None or (is_whole and is_ready):
        return CheckedSheets(removed=removed)
    if not is_whole:
        return CheckedSheets(broken=(BrokenSheet(number, _sentence(report)),), removed=removed)
    record = _committed(bucket, ref, number)
    return CheckedSheets(committed=(record,) if record else (), removed=removed)


def _keys(ref: UploadRef, listing: Listing) -> list[str]:
    """Every object below the sheet's prefix but its ``.dzi``."""
    objects = (*listing.tiles.values(), listing.thumbnail, listing.record)
    return [*(info.key for info in objects if info is not None), *(ref.sheets_prefix + path for path in listing.foreign)]


def _pyramid(state: SheetState, options: UploadOptions) -> Pyramid | None:
    """Of a sheet whose size is known."""
    return Pyramid(state.width, state.height, options.tile_size, options.overlap) if state.width and state.height else None


def _sentence(report: SheetReport) -> str:
    counts = ((report.missing_count, report.missing, "missing"), (report.empty_count, report.empty, "empty"))
    wrong = [f"{count:,} of {report.expected:,} tiles {what}, the first is {names[0]}" for count, names, what in counts if count]
    return "; ".join([*wrong, *report.problems])[:500]


def _committed(bucket: Bucket, ref: UploadRef, number: int) -> SheetRecord | None:
    try:
        bucket.head(ref.descriptor(number))
        record = bucket.get_record(SheetRecord, ref.sheet_record(number))
    except ObjectMissing:
        return None
    except DamagedRecord as error:
        # It is part of the sheet, and all of it follows from the PDF: this is a broken sheet.
        logger.warning("the sheet is tiled again: %s", error, extra={"ref": str(ref), "sheet": number})
        bucket.delete([ref.descriptor(number)])
        return None
    # Not for the workflow: with these, 2,000 sheets would come near the 2 MB that Temporal takes.
    return replace(record, digest="", engines={})


def _manifest(bucket: Bucket, ref: UploadRef) -> Snapshot | None:
    try:
        return bucket.get_record(Snapshot, ref.manifest)
    except ObjectMissing:
        return None
