"""What one machine has for the activities that run on it."""

from dataclasses import dataclass, field

from activities.bucket.forecast import Forecaster
from activities.bucket.storage import Bucket
from activities.render.child import ChildPool
from activities.scratch import Scratch
from activities.threads import FairThreads


@dataclass(frozen=True, kw_only=True)
class Host:
    """What the activities of one host share.

    Args:
        bucket: The bucket of the uploads.
        scratch: Keeps PDFs and tiles until the tiles are uploaded.
        children: The render children.
        threads: Make the requests to the bucket, for the uploads in turn. Their number limits the requests that this host makes at once.
        uploads: Upload one sheet each. Further sheets that Temporal has handed over wait for their turn, with heartbeats.
        max_pages: Most pages that a document may have.
        forecaster: Estimates what a document will take on this host.
    """

    bucket: Bucket
    scratch: Scratch
    children: ChildPool
    threads: FairThreads
    uploads: FairThreads
    max_pages: int = 2000
    forecaster: Forecaster = field(default_factory=Forecaster)
