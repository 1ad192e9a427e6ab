"""The parts of ``source.pdf`` on an S3 server: those of a multipart upload, which clients send to presigned URLs."""

from collections.abc import Sequence

from activities.bucket.keys import UploadRef
from activities.bucket.location import BucketSettings
from activities.bucket.parts import StoredPart
from activities.bucket.records import BegunRecord
from activities.bucket.setup import BucketSetup


class S3Parts:
    """The parts on an S3 server.

    Args:
        settings: The bucket.

    Raises:
        ValueError: A setting cannot be used.
    """

    def __init__(self, settings: BucketSettings) -> None:
        self._setup = BucketSetup(settings)

    def begin(self, ref: UploadRef) -> str:
        """See ``PartStore.begin``."""
        return self._setup.start_upload(ref.source)

    def stored(self, ref: UploadRef, begun: BegunRecord) -> list[StoredPart]:
        """See ``PartStore.stored``."""
        return self._setup.parts(ref.source, begun.multipart_id or "")

    def join(self, ref: UploadRef, begun: BegunRecord, parts: Sequence[StoredPart]) -> None:
        """See ``PartStore.join``."""
        self._setup.complete(ref.source, begun.multipart_id or "", [part.etag for part in parts])

    def discard(self, ref: UploadRef, begun: BegunRecord) -> None:
        """See ``PartStore.discard``."""
        self._setup.abort(ref.source, begun.multipart_id or "")

    def url(self, ref: UploadRef, begun: BegunRecord, number: int, expires_s: int) -> str:
        """The URL to which the client sends one part. No request is made."""
        return self._setup.part_url(ref.source, begun.multipart_id or "", number, begun.part_size(number), expires_s)

    @property
    def origin(self) -> str:
        """The origin of these URLs."""
        return self._setup.origin
