"""Changes to the commands of ``ProcessUpload``, by their names in histories.

Each name is an argument of ``workflow.patched``. A run whose history was recorded before a change goes on without that change. The
strings are in stored histories, so they never change.
"""

CHECK_SHEETS = "check-sheets"
"""A reconcile checks the tiles of every sheet, and the end of a run removes half sheets. Without it, a run trusts every ``.dzi``."""

OBEY_REQUESTS_AFTER_CANCEL = "heard-after-cancel"
"""Requests that come after a cancellation are done by a next run; a run that is cancelled before it has read the bucket leaves a manifest;
a check that fails does not end the run."""

WAIT_FOR_LATE_WRITES = "late-writes"
"""The end of a run waits for a ``.dzi`` that a silent host may still have sent."""

HALVE_RESOLUTION = "half-resolution"
"""A sheet that needs too much memory is tiled at half its resolution. Without it, the sheet fails."""

STAY_TERMINATED = "stays-terminated"
"""An upload that an operator terminated before its pages were counted is resumed only by a retry. Without it, by any request."""

RECORD_REOPENINGS = "record-reopenings"
"""A run that goes on with an upload that had ended writes ``reopened.json`` before anything changes. Without it, a run neither writes
nor heeds that record."""

WEBHOOKS = "webhooks"
"""A run starts deliveries of webhooks. The marker is recorded only where somebody wants them."""
