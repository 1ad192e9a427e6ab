"""The tiles of packed sheets: their indexes are kept in memory, their tiles are read by ranges."""

import asyncio
from collections import OrderedDict
from contextlib import suppress

from activities.bucket.packed import PackedSheet, read_packed_async
from activities.bucket.storage import Bucket
from activities.errors import ObjectMissing

MEMORY_BYTES = 64 << 20
"""Memory for indexes: those of about a thousand sheets of 42 x 30 inches."""


class PackedSheets:
    """Reads tiles and descriptors of packed sheets. Requests that need the same index at the same time share one read of it.

    A tile is asked for with the ETag of the object whose index is known. So an object that was replaced is never read by an old index.

    Args:
        bucket: Has the objects.
        memory_bytes: The indexes that were used last are kept, up to so many bytes.
    """

    def __init__(self, bucket: Bucket, memory_bytes: int = MEMORY_BYTES) -> None:
        self._bucket = bucket
        self._memory_bytes = memory_bytes
        self._known: OrderedDict[str, PackedSheet] = OrderedDict()
        self._known_bytes = 0
        self._reads: dict[str, asyncio.Task[PackedSheet]] = {}

    def knows(self, key: str) -> bool:
        """Whether the index of the ``.pmtiles`` at this key is in memory."""
        return key in self._known

    async def tile(self, key: str, tile: tuple[int, int, int]) -> bytes:
        """The JPEG of a tile.

        Args:
            key: Of the ``.pmtiles``.
            tile: Level, column and row.

        Raises:
            ObjectMissing: There is no such object, or it has no such tile.
            DamagedRecord: The object is no archive of a sheet.
            BucketError: The bucket failed.
        """
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
            if known.index.place(*tile) is None:
                known = await self._current(known)
        if known is not None:
            try:
                return await self._read(known, tile)
            except ObjectMissing:
                if await self._current(known) is not None:
                    raise
        return await self._read(await self._load(key), tile)

    async def descriptor(self, key: str) -> bytes:
        """The ``.dzi``, as the sheet would have it if it were exploded. Raises like ``tile``."""
        known = self._known.get(key)
        if known is not None:
            known = await self._current(known)
        return (known or await self._load(key)).index.pyramid.descriptor().encode()

    async def _read(self, packed: PackedSheet, tile: tuple[int, int, int]) -> bytes:
        place = packed.index.place(*tile)
        if place is None:
            msg = "the sheet has no tile {}/{}_{}".format(*tile)
            raise ObjectMissing(msg)
        body = (await self._bucket.get_range_async(packed.info.key, place[0], sum(place), packed.info.etag)).body
        if len(body) != place[1]:
            msg = f"no object {packed.info.key} as it was: it was replaced"
            raise ObjectMissing(msg)
        return body

    async def _current(self, known: PackedSheet) -> PackedSheet | None:
        """The same, if its object was not replaced. Else its index is forgotten, and None returned."""
        with suppress(ObjectMissing):
            if (await self._bucket.head_async(known.info.key)).etag == known.info.etag:
                return known
        self._forget(known)
        return None

    async def _load(self, key: str) -> PackedSheet:
        """Reads the index, or waits until another request has read it."""
        read = self._reads.get(key)
        if read is None:
            read = self._reads[key] = asyncio.create_task(self._read_index(key))
            read.add_done_callback(lambda done: done.cancelled() or done.exception())  # the request may have gone meanwhile
        return await asyncio.shield(read)  # a client that goes away cancels only its own wait

    async def _read_index(self, key: str) -> PackedSheet:
        try:
            packed = await read_packed_async(self._bucket, key)
        finally:
            del self._reads[key]
        if key in self._known:
            self._forget(self._known[key])
        self._known[key] = packed
        self._known_bytes += packed.index.memory_bytes
        while self._known_bytes > self._memory_bytes:
            self._forget(next(iter(self._known.values())))
        return packed

    def _forget(self, packed: PackedSheet) -> None:
        if self._known.get(packed.info.key) is packed:
            del self._known[packed.info.key]
            self._known_bytes -= packed.index.memory_bytes
