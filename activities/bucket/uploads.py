"""Reads and writes the records of uploads, and holds the rules for them.

    begun.json               a client sends source.pdf in parts
    upload.json              the upload was accepted; a mark in it says that the upload was deleted
    source.pdf               the PDF as it was sent
    source.json              its SHA-256, if ``upload.json`` does not say it
    sheet-N.dzi, sheet.json  the sheet is committed; sheet-N.pmtiles, sheet.json: the same of a packed sheet
    manifest.json            the final progress of a run
    reopened.json            a later run goes on from that progress, and has not ended
    keys/….json              the upload that the first request with an Idempotency-Key made

Rules for all records:

1. A record that is damaged, or that a newer release wrote, raises ``UnreadableRecord``. The caller decides what follows.
2. Each write that decides a state of the upload (``upload.json``, the mark in it, ``source.pdf``, ``.dzi``, ``.pmtiles``,
   ``manifest.json``, ``reopened.json``) is checked afterwards, because an S3 server may confirm a write that did not happen.
3. A method without ``_async`` blocks, and is for threads. A method with ``_async`` is for event loops. It needs no thread, so that no pool
   of threads fills up while the bucket hangs. Where a method has both forms, they do the same.

Three things are elsewhere: ``activities.sheets`` writes ``sheet.json`` together with the tiles, ``activities.scratch`` reads
``source.pdf``, and ``activities.bucket.verify`` reads the records for its report, where an unreadable record is a line and not an error.
"""

import logging
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from activities.bucket.keys import UploadRef, sheet_numbers
from activities.bucket.records import (
    BegunRecord,
    KeyRecord,
    Layout,
    ReopenedRecord,
    SheetRecord,
    Snapshot,
    SourceRecord,
    UploadRecord,
    timestamp,
    to_json,
)
from activities.bucket.storage import Bucket, read_record
from activities.bucket.store_errors import not_written_error
from activities.errors import ObjectMissing, StorageUnavailable, UploadNotFound

logger = logging.getLogger(__name__)

CLAIM_TRIES = 5
"""Tries to create a key's record. A deletion may remove the record between the try that finds it and the read."""


@dataclass(frozen=True)
class Manifest:
    """``manifest.json``.

    Args:
        snapshot: The final progress of a run.
        body: The bytes of ``manifest.json``; an event stream ends with them.
    """

    snapshot: Snapshot
    body: bytes


class UploadStore:
    """Reads and writes the records of uploads.

    Every method may raise ``BucketError``: the bucket failed, or confirmed a write that did not happen.

    Args:
        bucket: Where the records are.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    # ------------------------------------------------------------------ upload.json

    def record(self, ref: UploadRef) -> UploadRecord:
        """``upload.json``, whether or not the upload is marked deleted.

        Raises:
            ObjectMissing: The upload was never accepted, or nothing is left of it.
            UnreadableRecord: ``upload.json`` cannot be read.
        """
        return self._bucket.get_record(UploadRecord, ref.record)

    async def record_async(self, ref: UploadRef) -> UploadRecord:
        """``record``, for an event loop."""
        return await self._bucket.get_record_async(UploadRecord, ref.record)

    def accepted(self, ref: UploadRef) -> UploadRecord:
        """``upload.json`` of an upload that exists.

        Raises:
            UploadNotFound: The upload was never accepted, or is marked deleted.
            UnreadableRecord: ``upload.json`` cannot be read.
        """
        with _not_found_if_missing(ref):
            return _unless_deleted(ref, self.record(ref))

    async def accepted_async(self, ref: UploadRef) -> UploadRecord:
        """``accepted``, for an event loop."""
        with _not_found_if_missing(ref):
            return _unless_deleted(ref, await self.record_async(ref))

    async def accept_async(self, ref: UploadRef, record: UploadRecord) -> bool:
        """Makes ``upload.json``. From then on the upload exists, also after a power cut.

        Returns:
            False when there was an ``upload.json`` already, which is not changed.
        """
        created = await self._bucket.create_seen_async(ref.record, to_json(record))
        if created:
            await self._bucket.sync_async()
        return created

    async def mark_deleted_async(self, ref: UploadRef) -> str:
        """Marks the upload deleted, unless it is marked already.

        Returns:
            The time of the mark.

        Raises:
            UploadNotFound: The upload was never accepted, or nothing is left of it.
            UnreadableRecord: ``upload.json`` cannot be read.
        """
        with _not_found_if_missing(ref):
            record = await self.record_async(ref)
            if record.deleted_at is not None:
                return record.deleted_at
            await self._bucket.put_async(ref.record, to_json(replace(record, deleted_at=timestamp(datetime.now(UTC)))))
            # If another request marked the upload at the same moment, its mark counts.
            deleted_at = (await self.record_async(ref)).deleted_at
        if deleted_at is None:
            raise not_written_error(ref.record)
        await self._bucket.sync_async()
        logger.info("marked an upload deleted", extra={"ref": str(ref)})
        return deleted_at

    async def was_deleted_async(self, ref: UploadRef) -> bool:
        """Whether an upload that was begun has been deleted since: it is marked, or has neither ``upload.json`` nor ``source.pdf``.

        Raises:
            UnreadableRecord: ``upload.json`` cannot be read.
        """
        with suppress(ObjectMissing):
            return (await self.record_async(ref)).deleted_at is not None
        with suppress(ObjectMissing):
            await self._bucket.head_async(ref.source)
            return False
        return True

    # ------------------------------------------------------------------ begun.json

    def begun_record(self, ref: UploadRef) -> BegunRecord | None:
        """``begun.json``; None for an upload that was not begun, or was aborted.

        Raises:
            UnreadableRecord: ``begun.json`` cannot be read.
        """
        with suppress(ObjectMissing):
            return self._bucket.get_record(BegunRecord, ref.begun)
        return None

    async def begun_record_async(self, ref: UploadRef) -> BegunRecord | None:
        """``begun_record``, for an event loop."""
        with suppress(ObjectMissing):
            return await self._bucket.get_record_async(BegunRecord, ref.begun)
        return None

    async def begin_async(self, ref: UploadRef, record: BegunRecord) -> None:
        """Makes ``begun.json``. From then on the upload may be completed, also after a power cut."""
        await self._bucket.create_seen_async(ref.begun, to_json(record))
        await self._bucket.sync_async()

    # ------------------------------------------------------------------ source.pdf

    async def put_source_async(self, ref: UploadRef, body: AsyncIterator[bytes]) -> None:
        """Writes ``source.pdf`` from a stream. It appears whole or not at all. To end the write early, raise in ``body``."""
        await self._bucket.put_stream_seen(ref.source, body)

    def source_sha256(self, ref: UploadRef, record: UploadRecord) -> str | None:
        """The SHA-256 that ``source.pdf`` must have, hexadecimal; None as long as nobody has read the PDF whole.

        Raises:
            UnreadableRecord: ``source.json`` cannot be read.
        """
        with suppress(ObjectMissing):
            return record.sha256 or self._bucket.get_record(SourceRecord, ref.source_record).sha256
        return None

    async def set_source_sha256_async(self, ref: UploadRef, sha256: str) -> str:
        """Makes ``source.json``, unless there is one.

        Returns:
            The SHA-256 that counts: of several readers, that of the first.

        Raises:
            UnreadableRecord: ``source.json`` cannot be read.
        """
        if await self._bucket.create_seen_async(ref.source_record, to_json(SourceRecord(sha256))):
            return sha256
        return (await self._bucket.get_record_async(SourceRecord, ref.source_record)).sha256

    # ------------------------------------------------------------------ manifest.json

    def manifest(self, ref: UploadRef) -> Manifest | None:
        """``manifest.json``; None when no run has ended.

        Raises:
            UnreadableRecord: ``manifest.json`` cannot be read.
        """
        with suppress(ObjectMissing):
            return _parse_manifest(ref, self._bucket.get(ref.manifest).body)
        return None

    async def manifest_async(self, ref: UploadRef) -> Manifest | None:
        """``manifest``, for an event loop."""
        with suppress(ObjectMissing):
            return _parse_manifest(ref, (await self._bucket.get_async(ref.manifest)).body)
        return None

    def manifest_written_at(self, ref: UploadRef) -> datetime | None:
        """When ``manifest.json`` was written, whether or not it can be read; None when there is none."""
        with suppress(ObjectMissing):
            return self._bucket.head(ref.manifest).modified
        return None

    async def manifest_written_at_async(self, ref: UploadRef) -> datetime | None:
        """``manifest_written_at``, for an event loop."""
        with suppress(ObjectMissing):
            return (await self._bucket.head_async(ref.manifest)).modified
        return None

    def write_manifest(self, ref: UploadRef, snapshot: Snapshot) -> None:
        """Writes ``manifest.json``, over any earlier one."""
        self._bucket.put_seen(ref.manifest, to_json(snapshot))

    async def create_manifest_async(self, ref: UploadRef, snapshot: Snapshot) -> bool:
        """Writes ``manifest.json`` only if there is none; returns whether it did."""
        return await self._bucket.create_seen_async(ref.manifest, to_json(snapshot))

    # ------------------------------------------------------------------ reopened.json

    def reopened_record(self, ref: UploadRef, manifest: Snapshot) -> ReopenedRecord | None:
        """``reopened.json`` if a run goes on from this manifest, or was lost when it did; else None.

        Raises:
            UnreadableRecord: ``reopened.json`` cannot be read.
        """
        with suppress(ObjectMissing):
            return _unless_ended(self._bucket.get_record(ReopenedRecord, ref.reopened), manifest)
        return None

    async def reopened_record_async(self, ref: UploadRef, manifest: Snapshot) -> ReopenedRecord | None:
        """``reopened_record``, for an event loop."""
        with suppress(ObjectMissing):
            return _unless_ended(await self._bucket.get_record_async(ReopenedRecord, ref.reopened), manifest)
        return None

    async def has_reopened_record_async(self, ref: UploadRef) -> bool:
        """Whether there is a ``reopened.json``, of whatever manifest."""
        with suppress(ObjectMissing):
            await self._bucket.head_async(ref.reopened)
            return True
        return False

    def write_reopened_record(self, ref: UploadRef, record: ReopenedRecord) -> None:
        """Writes ``reopened.json``, unless it is about a newer manifest: then a later run has written it.

        Raises:
            UnreadableRecord: The ``reopened.json`` that is there cannot be read.
        """
        with suppress(ObjectMissing):
            if self._bucket.get_record(ReopenedRecord, ref.reopened).manifest_version > record.manifest_version:
                return
        self._bucket.put_seen(ref.reopened, to_json(record))

    def remove_reopened_record(self, ref: UploadRef, manifest_version: int) -> None:
        """Removes ``reopened.json``: the run has ended. Must come after the write of its manifest.

        Args:
            ref: The upload.
            manifest_version: That of the run's record, or a newer one. A record of a later run stays.

        Raises:
            UnreadableRecord: ``reopened.json`` cannot be read.
        """
        with suppress(ObjectMissing):
            if self._bucket.get_record(ReopenedRecord, ref.reopened).manifest_version <= manifest_version:
                self._bucket.delete([ref.reopened])

    # ------------------------------------------------------------------ sheets

    def begun(self, ref: UploadRef) -> list[int]:
        """The numbers of the sheets that have or had an object, ascending."""
        return sheet_numbers(self._bucket.directories(ref.sheets_prefix))

    async def begun_async(self, ref: UploadRef) -> list[int]:
        """``begun``, for an event loop."""
        return sheet_numbers(await self._bucket.directories_async(ref.sheets_prefix))

    def committed(self, ref: UploadRef, number: int) -> SheetRecord | None:
        """``sheet.json`` of a sheet whose commit marker exists; None for a sheet that lacks one of the two.

        Raises:
            UnreadableRecord: ``sheet.json`` cannot be read.
        """
        with suppress(ObjectMissing):
            record = self._bucket.get_record(SheetRecord, ref.sheet_record(number))
            self._bucket.head(marker(ref, number, record.layout))
            return record
        return None

    async def committed_async(self, ref: UploadRef, number: int) -> SheetRecord | None:
        """``committed``, for an event loop."""
        with suppress(ObjectMissing):
            record = await self._bucket.get_record_async(SheetRecord, ref.sheet_record(number))
            await self._bucket.head_async(marker(ref, number, record.layout))
            return record
        return None

    def commit(self, ref: UploadRef, number: int, descriptor: bytes) -> None:
        """Writes the ``.dzi`` of a sheet that is in the bucket whole, unless the upload was marked deleted before this call.

        Raises:
            UploadNotFound: The upload was never accepted, or is marked deleted.
            UnreadableRecord: ``upload.json`` cannot be read.
        """
        self.accepted(ref)
        self._bucket.put_seen(ref.descriptor(number), descriptor)

    def commit_packed(self, ref: UploadRef, number: int, chunks: Iterable[bytes], index: bytes, size_bytes: int) -> None:
        """Writes the ``.pmtiles`` of a sheet whose other objects are in the bucket, unless the upload was marked deleted before this call.

        Args:
            ref: The upload.
            number: The sheet.
            chunks: The bytes of the ``.pmtiles``.
            index: Its first bytes, which name the place of each tile.
            size_bytes: How many bytes it has.

        Raises:
            UploadNotFound: The upload was never accepted, or is marked deleted.
            UnreadableRecord: ``upload.json`` cannot be read.
        """
        self.accepted(ref)
        self._bucket.put_archive_seen(ref.archive(number), chunks, index, size_bytes)

    def uncommit(self, ref: UploadRef, number: int) -> None:
        """Removes the ``.dzi`` and the ``.pmtiles`` of a sheet. Must come before any other change of the sheet."""
        self._bucket.delete([ref.descriptor(number), ref.archive(number)])

    # ------------------------------------------------------------------ Idempotency-Key

    def key_record(self, key: str) -> KeyRecord | None:
        """The record of an ``Idempotency-Key``; None when the key is free.

        Args:
            key: The key of the record, from ``PlanRef.idempotency_key``.

        Raises:
            UnreadableRecord: The record cannot be read.
        """
        with suppress(ObjectMissing):
            return self._bucket.get_record(KeyRecord, key)
        return None

    async def key_record_async(self, key: str) -> KeyRecord | None:
        """``key_record``, for an event loop."""
        with suppress(ObjectMissing):
            return await self._bucket.get_record_async(KeyRecord, key)
        return None

    async def claim_key_async(self, key: str, record: KeyRecord) -> KeyRecord | None:
        """Makes the record of an ``Idempotency-Key``, unless there is one.

        Returns:
            The record of an earlier request with the same key; None if there was none.

        Raises:
            UnreadableRecord: The earlier request's record cannot be read.
        """
        for _ in range(CLAIM_TRIES):
            if await self._bucket.create_seen_async(key, to_json(record)):
                return None
            if (earlier := await self.key_record_async(key)) is not None:
                return earlier
        msg = f"the bucket contradicts itself: it refuses to create {key} because it exists, but does not find it"
        raise StorageUnavailable(msg)


def marker(ref: UploadRef, number: int, layout: Layout) -> str:
    """The key of a sheet's commit marker."""
    return ref.descriptor(number) if layout.has_tiles else ref.archive(number)


def upload_deleted_error(ref: UploadRef, deleted_at: str) -> UploadNotFound:
    """The error of a request for an upload that is marked deleted."""
    return UploadNotFound(f"the upload {ref} was deleted at {deleted_at}")


def _unless_deleted(ref: UploadRef, record: UploadRecord) -> UploadRecord:
    if record.deleted_at is not None:
        raise upload_deleted_error(ref, record.deleted_at)
    return record


def _unless_ended(record: ReopenedRecord, manifest: Snapshot) -> ReopenedRecord | None:
    return record if record.manifest_version >= manifest.version else None


@contextmanager
def _not_found_if_missing(ref: UploadRef) -> Iterator[None]:
    try:
        yield
    except ObjectMissing as error:
        msg = f"there is no upload {ref}"
        raise UploadNotFound(msg) from error


def _parse_manifest(ref: UploadRef, body: bytes) -> Manifest:
    return Manifest(read_record(Snapshot, ref.manifest, body), body)
