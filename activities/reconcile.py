"""``list_sheets`` and ``write_manifest``: what the bucket says was done, and what it shall say in the end."""

from dataclasses import replace

from temporalio import activity

from activities.attempt import Attempt
from activities.document import Host, read_upload
from activities.errors import ObjectMissing, UploadNotFound
from activities.interface import BucketState, ListSheets, UploadActivities, WriteManifest
from activities.keys import UploadRef, sheet_of_directory
from activities.records import SheetRecord, Snapshot, UploadRecord, from_json, to_json
from activities.storage import Bucket


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
        options = _accepted(bucket, ref).options
        numbers = sorted(filter(None, map(sheet_of_directory, bucket.directories(ref.sheets_prefix))))
        records = self._host.threads.map(lambda number: _committed(bucket, ref, number), numbers)
        return BucketState(options, tuple(filter(None, records)), _manifest(bucket, ref))

    @activity.defn
    async def write_manifest(self, args: WriteManifest) -> None:
        """See ``UploadActivities.write_manifest``."""
        attempt = Attempt()
        with attempt.named_errors():
            await attempt.in_thread(lambda _: self._write(UploadRef.parse(args.ref), args.snapshot))

    def _write(self, ref: UploadRef, snapshot: Snapshot) -> None:
        _accepted(self._host.bucket, ref)
        self._host.bucket.put(ref.manifest, to_json(snapshot))


def _accepted(bucket: Bucket, ref: UploadRef) -> UploadRecord:
    """``upload.json`` of an upload that exists.

    Raises:
        UploadNotFound: It was never accepted or is marked deleted.
    """
    try:
        record = read_upload(bucket, ref)
    except ObjectMissing as error:
        msg = f"no upload {ref} was accepted"
        raise UploadNotFound(msg) from error
    if record.deleted_at is not None:
        msg = f"upload {ref} was deleted at {record.deleted_at}"
        raise UploadNotFound(msg)
    return record


def _committed(bucket: Bucket, ref: UploadRef, number: int) -> SheetRecord | None:
    try:
        bucket.head(ref.descriptor(number))
        record = from_json(SheetRecord, bucket.get(ref.sheet_record(number)).body)
    except ObjectMissing:
        return None
    # Not for the workflow: with these, 2,000 sheets would come near the 2 MB that Temporal takes.
    return replace(record, digest="", engines={})


def _manifest(bucket: Bucket, ref: UploadRef) -> Snapshot | None:
    try:
        return from_json(Snapshot, bucket.get(ref.manifest).body)
    except ObjectMissing:
        return None
