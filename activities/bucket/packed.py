"""Reads packed sheets in the bucket: the index of a ``.pmtiles`` by one or two requests, its tiles by ranges."""

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from activities.bucket.pmtiles import FIRST_BYTES, Index, index_bytes
from activities.bucket.storage import Bucket, ObjectInfo, StoredObject
from activities.errors import DamagedRecord

FIRST_READ_BYTES = 2 * FIRST_BYTES
"""The index of a sheet of 42 x 30 inches, and often more, lies within."""

RANGE_BYTES = 8 << 20
"""Tiles that lie one after the other are read together, up to so many bytes."""


@dataclass(frozen=True)
class PackedSheet:
    """A ``.pmtiles`` in the bucket.

    Args:
        info: Key, size and ETag.
        index: What it says of its tiles.
    """

    info: ObjectInfo
    index: Index


def read_packed(bucket: Bucket, key: str) -> PackedSheet:
    """Reads the index of a ``.pmtiles``; blocks.

    Raises:
        ObjectMissing: There is no such object, or it was replaced during this call.
        DamagedRecord: It is no archive of a sheet.
        BucketError: The bucket failed.
    """
    stored = bucket.get_range(key, 0, FIRST_READ_BYTES)
    body = stored.body
    if needed := _further_bytes(stored):
        body += bucket.get_range(key, len(body), needed, stored.info.etag).body
    return PackedSheet(stored.info, _index(key, body, stored.info.size))


async def read_packed_async(bucket: Bucket, key: str) -> PackedSheet:
    """``read_packed``, for an event loop."""
    stored = await bucket.get_range_async(key, 0, FIRST_READ_BYTES)
    body = stored.body
    if needed := _further_bytes(stored):
        body += (await bucket.get_range_async(key, len(body), needed, stored.info.etag)).body
    # A large index takes some 10 ms. The event loop has no time for that.
    return PackedSheet(stored.info, await asyncio.to_thread(_index, key, body, stored.info.size))


def read_places(bucket: Bucket, packed: PackedSheet, places: Iterable[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], bytes]]:
    """The bytes at places of a ``.pmtiles``, by as few requests as the places allow, in bounded memory; blocks.

    Args:
        bucket: Has the object.
        packed: The object.
        places: Offset and size of each.

    Raises:
        ObjectMissing: The object is gone, or was replaced since its index was read.
        BucketError: The bucket failed.
    """
    group: list[tuple[int, int]] = []
    for place in [*sorted(set(places)), None]:
        if group and (place is None or place[0] != sum(group[-1]) or sum(place) - group[0][0] > RANGE_BYTES):
            start = group[0][0]
            body = bucket.get_range(packed.info.key, start, sum(group[-1]), packed.info.etag).body
            for offset, size in group:
                yield (offset, size), body[offset - start : offset - start + size]
            group = []
        if place is not None:
            group.append(place)


def _further_bytes(head: StoredObject) -> int:
    """How many bytes the index has, if ``head`` lacks some that the object has; else 0."""
    try:
        needed = min(index_bytes(head.body), head.info.size)
    except ValueError as error:
        raise _damaged(head.info.key, error) from error
    return needed if needed > len(head.body) else 0


def _index(key: str, body: bytes, size_bytes: int) -> Index:
    try:
        index = Index(body)
        _ = index.pyramid
    except ValueError as error:
        raise _damaged(key, error) from error
    if index.size_bytes != size_bytes:
        msg = f"{key} cannot be read: it has {size_bytes:,} bytes, and its index makes {index.size_bytes:,}"
        raise DamagedRecord(msg)
    return index


def _damaged(key: str, error: ValueError) -> DamagedRecord:
    return DamagedRecord(f"{key} cannot be read: {error}")
