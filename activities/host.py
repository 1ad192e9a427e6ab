"""The parts of one machine that its activities share."""

from collections.abc import Callable
from dataclasses import dataclass, field

from activities.bucket.forecast import Forecaster
from activities.bucket.storage import Bucket
from activities.bucket.uploads import UploadStore
from activities.bucket.webhooks import WebhookStore
from activities.interface import UploadActivities
from activities.limits import DocumentLimits
from activities.metrics import HostMetrics
from activities.render.child import ChildPool
from activities.scratch import Scratch
from activities.sealing import PasswordSeal
from activities.threads import FairThreads


@dataclass(frozen=True, kw_only=True)
class Host:
    """The parts that the activities of one host share.

    Args:
        bucket: The bucket of the uploads.
        scratch: Keeps PDFs and tiles until the tiles are uploaded.
        children: The render children.
        threads: Make the requests to the bucket, for the uploads in turn. Their number limits the requests that this host makes at once.
        uploads: Upload one sheet each. Further sheets that Temporal has handed over wait for their turn, with heartbeats.
        limits: The most that a document may have.
        passwords: Opens the sealed passwords of documents.
        forecaster: Estimates what a document will take on this host.
        metrics: Counts what this host does.
        free_render_slot: Called by an activity that goes on after its page was rendered: the next page need not wait for its end.
    """

    bucket: Bucket
    scratch: Scratch
    children: ChildPool
    threads: FairThreads
    uploads: FairThreads
    limits: DocumentLimits = field(default_factory=DocumentLimits)
    passwords: PasswordSeal = field(default_factory=PasswordSeal)
    forecaster: Forecaster = field(default_factory=Forecaster)
    metrics: HostMetrics = field(default_factory=HostMetrics)
    free_render_slot: Callable[[], None] = lambda: None


class HostActivities(UploadActivities):
    """Activities that use the parts of a host.

    Args:
        host: The parts.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._store = UploadStore(host.bucket)
        self._webhooks = WebhookStore(host.bucket)
