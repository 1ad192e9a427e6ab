"""Makes the log lines of an activity show its upload and its sheet."""

import logging
import time
from typing import Any

from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from activities.logs import set_log_context, subject_of

logger = logging.getLogger(__name__)


class ActivityLogContext(Interceptor):
    """An interceptor for the workers that run activities."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002 - Temporal's name for it
        """Wraps each activity."""
        return _ActivityWithLogContext(next)


class _ActivityWithLogContext(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002 - Temporal's name for it
        """Runs the activity, and logs its end if it works for an upload, because Temporal's library logs only failures."""
        ref, sheet = subject_of(input.args)
        set_log_context(ref, sheet)
        begun = time.monotonic()
        result = await super().execute_activity(input)
        if ref is not None:
            info, seconds = activity.info(), round(time.monotonic() - begun, 3)
            logger.info("finished", extra={"activity": info.activity_type, "attempt": info.attempt, "seconds": seconds})
        return result
