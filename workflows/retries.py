"""How Temporal retries an activity that fails only in an outage, and how soon Temporal notices that a worker is gone."""

from datetime import timedelta

from temporalio.common import RetryPolicy

RETRIES = RetryPolicy(initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=60))
HEARTBEAT = timedelta(seconds=15)
