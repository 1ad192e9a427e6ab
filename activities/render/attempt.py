"""One attempt of an activity that renders: it knows how often the PDF and its page have failed before."""

from temporalio import activity

from activities.attempt import Attempt
from activities.errors import RenderFault, SiteLinkError, SourceAltered


class RenderAttempt(Attempt):
    """An attempt that counts the faults of all attempts, and gives up after a fault's last try.

    Two counts go from attempt to attempt as the heartbeat's details: the fresh render children that failed, and the reads of the bucket
    that gave another PDF than the one that was accepted. Other releases beat one or both of them, in this order.
    """

    def __init__(self) -> None:
        counts = [count for count in activity.info().heartbeat_details if isinstance(count, int)]
        self._failed_children, self._altered_reads = [*counts, 0, 0][:2]

    def beat(self) -> None:
        """See ``Attempt.beat``."""
        activity.heartbeat(self._failed_children, self._altered_reads)

    def gives_up(self, error: SiteLinkError) -> bool:
        """See ``Attempt.gives_up``. A fault is counted first, and the count is sent before the attempt ends."""
        if isinstance(error, RenderFault):
            self._failed_children += error.fresh_child
            self.beat()
            return self._failed_children >= error.tries
        if isinstance(error, SourceAltered):
            self._altered_reads += 1
            self.beat()
            return self._altered_reads >= error.tries
        return super().gives_up(error)
