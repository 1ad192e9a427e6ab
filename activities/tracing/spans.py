"""The stages of a host's work, for a trace. This module loads no tracing library."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Writes:
    """The writes to the bucket in one stage.

    Args:
        puts: Objects written.
        bytes: Size of the tiles of the sheet.
        retries: Tries of a write that failed.
    """

    puts: int = 0
    bytes: int = 0
    retries: int = 0


class Spans:
    """The spans of the stages of an activity. This class drops them; ``ExportedStages`` of ``activities.tracing.sdk`` exports them."""

    @contextmanager
    def stage(self, name: str) -> Iterator[Writes]:
        """A stage that lasts as long as the block."""
        del name
        yield Writes()

    def ended(self, name: str, seconds: float, seconds_ago: float = 0.0) -> None:
        """A stage of so many seconds, which has ended so many seconds ago in another process."""

    def count_put(self, error_code: str) -> None:
        """A try of a write; without an error the code is empty."""
