"""One attempt of an activity that renders: it counts how often the PDF and its page have failed in all attempts."""

from collections.abc import Sequence

from temporalio import activity

from activities.attempt import Attempt
from activities.errors import RenderFault, SiteLinkError, SourceAltered


class RenderAttempt(Attempt):
    """An attempt that counts the faults of all attempts, and gives up after a fault's last try, or when another try is known to be in vain.

    The heartbeat's details carry two counts from attempt to attempt: first the fresh render children that failed, then the downloads that
    differed from the accepted PDF. A heartbeat of an older release may have only the first count.
    """

    def __init__(self) -> None:
        counts = [count for count in activity.info().heartbeat_details if isinstance(count, int)]
        self._failed_children, self._altered_reads = [*counts, 0, 0][:2]

    @property
    def is_retry(self) -> bool:
        """Whether an earlier attempt has failed."""
        return activity.info().attempt > 1

    @property
    def counts(self) -> Sequence[int]:
        """See ``Attempt.counts``."""
        return self._failed_children, self._altered_reads

    def gives_up(self, error: SiteLinkError) -> bool:
        """See ``Attempt.gives_up``. Counts the fault, and sends the new count before the attempt ends."""
        if isinstance(error, RenderFault):
            self._failed_children += error.fresh_child
            self.beat()
            return error.is_certain or self._failed_children >= error.tries
        if isinstance(error, SourceAltered):
            self._altered_reads += 1
            self.beat()
            return self._altered_reads >= error.tries
        return super().gives_up(error)
