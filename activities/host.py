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
        bucket: Where the objects are.
        scratch: Where this host keeps PDFs and tiles on their way.
        children: The render children.
        threads: Make the requests of the bucket, in turn; their number bounds this host's requests at once.
        uploads: Upload one sheet each; the other sheets that Temporal has handed over wait for their turn, with heartbeats.
        max_pages: Most pages that a document may have.
        forecaster: Says what a document will take on hosts like this one.
    """

    bucket: Bucket
    scratch: Scratch
    children: ChildPool
    threads: FairThreads
    uploads: FairThreads
    max_pages: int = 2000
    forecaster: Forecaster = field(default_factory=Forecaster)
