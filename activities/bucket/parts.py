"""The parts in which a client sends ``source.pdf`` into the bucket itself.

On an S3 server they are the parts of a multipart upload, and the client sends them to that server. In a directory they are objects, and the
client sends them to the API. Every method blocks, and is for threads.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from activities.bucket.keys import UploadRef
from activities.bucket.records import MOST_PARTS, BegunRecord
from activities.bucket.storage import PART_BYTES, Bucket
from activities.errors import ObjectMissing

_PART_NAME = re.compile(r"part-([1-9][0-9]{0,4})")


@dataclass(frozen=True)
class StoredPart:
    """A part that the bucket has.

    Args:
        number: From 1.
        size_bytes: The size of the part.
        etag: The ETag of the part, with its quotes.
    """

    number: int
    size_bytes: int
    etag: str


class PartStore(Protocol):
    """Keeps the parts of uploads until they are joined. Every method may raise ``BucketError``."""

    def begin(self, ref: UploadRef) -> str | None:
        """Prepares the bucket for parts; returns the id of the multipart upload, if there is one."""

    def stored(self, ref: UploadRef, begun: BegunRecord) -> list[StoredPart]:
        """The parts that the bucket has, by number. Raises ``ObjectMissing`` if they were joined or discarded."""

    def join(self, ref: UploadRef, begun: BegunRecord, parts: Sequence[StoredPart]) -> None:
        """Makes ``source.pdf`` of all parts, given in order. It appears whole or not at all.

        Raises:
            PartsIncomplete: A part has been replaced meanwhile.
            ObjectMissing: The parts were joined or discarded.
        """

    def discard(self, ref: UploadRef, begun: BegunRecord) -> None:
        """Removes the parts that are still there. A missing part is no error."""


class DirectoryParts:
    """The parts in a directory.

    Args:
        bucket: The directory.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def begin(self, ref: UploadRef) -> None:
        """See ``PartStore.begin``. Nothing is to be prepared."""

    def stored(self, ref: UploadRef, begun: BegunRecord) -> list[StoredPart]:
        """See ``PartStore.stored``."""
        if self._bucket.has(ref.source):  # some parts may be left, if their removal was cut off
            msg = f"the parts of {ref} were joined"
            raise ObjectMissing(msg)
        return self._found(ref)

    def _found(self, ref: UploadRef) -> list[StoredPart]:
        found = [
            StoredPart(int(match[1]), info.size, info.etag or "")
            for info in self._bucket.objects(ref.parts_prefix)
            if (match := _PART_NAME.fullmatch(info.key.removeprefix(ref.parts_prefix)))
        ]
        return sorted(found, key=lambda part: part.number)

    def join(self, ref: UploadRef, begun: BegunRecord, parts: Sequence[StoredPart]) -> None:
        """See ``PartStore.join``."""
        self._bucket.join([ref.part(part.number) for part in parts], ref.source)
        self._bucket.sync()  # before the parts are removed

    def discard(self, ref: UploadRef, begun: BegunRecord) -> None:
        """See ``PartStore.discard``."""
        self._bucket.delete([ref.part(part.number) for part in self._found(ref)])
        self._bucket.remove_unfinished(ref.parts_prefix)
        self._bucket.remove_empty_directories(ref.parts_prefix)


def equal_parts(size_bytes: int) -> int:
    """The size of each part but the last: whole MiB, at least 8 MiB, and large enough for at most ``MOST_PARTS`` parts."""
    return max(PART_BYTES, math.ceil(size_bytes / MOST_PARTS / (1 << 20)) << 20)
