"""``GET /readyz``: whether this process can work."""

import asyncio
import logging
import time
from collections.abc import Awaitable

from activities.bucket.storage import ROOM_KEY, Bucket
from activities.errors import BucketError, ObjectMissing, RenderCrashed, SiteLinkError, StorageUnavailable, TemporalUnavailable
from activities.render.decoder import Decoder
from api.progress.runs import NoRun, Runs

logger = logging.getLogger(__name__)

BUCKET_TIMEOUT_S = 2.0
ROOM_S, NO_ROOM_S = 60.0, 5.0
"""How long the last answer counts: ``ROOM_S`` when the bucket has room, ``NO_ROOM_S`` when it has none. On S3 each question is a PUT.

A PUT a minute costs 0.2 dollars a month.
"""


class Readiness:
    """Checks that Temporal and the bucket can be used.

    Args:
        bucket: The bucket to check.
        runs: Asks Temporal.
    """

    def __init__(self, bucket: Bucket, runs: Runs) -> None:
        self._bucket = bucket
        self._runs = runs
        self._room_asked_at: float | None = None
        self._room_failure: SiteLinkError | None = None
        self._layers: str | None = None
        self._checking: asyncio.Task[list[SiteLinkError]] | None = None

    async def check(self) -> None:
        """Returns when Temporal and the bucket answer, and the bucket has room. Calls at the same time share one check.

        Raises:
            TemporalUnavailable: Temporal does not answer. If the bucket fails, too, the message names both failures.
            BucketError: The bucket does not answer, or is full.
        """
        if self._checking is None or self._checking.done():
            self._checking = asyncio.create_task(self._failures())
        if failures := await asyncio.shield(self._checking):
            raise type(failures[0])("; ".join(str(error) for error in failures))

    async def confinement(self) -> str:
        """The layers that confine the process in which this one decodes JPEGs for ``verify``; tried once, in such a process."""
        if self._layers is None:
            self._layers = await asyncio.to_thread(_decoder_layers)
        return self._layers

    async def _failures(self) -> list[SiteLinkError]:
        return [error for error in await asyncio.gather(self._temporal_failure(), self._bucket_failure()) if error]

    async def _temporal_failure(self) -> SiteLinkError | None:
        try:
            await self._runs.check_health()
        except TemporalUnavailable as error:
            return error
        except NoRun as error:
            logger.warning("Temporal's frontend does not answer: %s", error.__cause__)
            return TemporalUnavailable("Temporal's frontend does not answer")
        return None

    async def _bucket_failure(self) -> SiteLinkError | None:
        if failure := await _failure_of(self._bucket.head_async(ROOM_KEY)):
            return failure
        now = time.monotonic()
        if self._room_asked_at is None or now - self._room_asked_at >= (NO_ROOM_S if self._room_failure else ROOM_S):
            self._room_asked_at = now
            self._room_failure = await _failure_of(self._bucket.check_room())
        return self._room_failure


def _decoder_layers() -> str:
    try:
        with Decoder() as decoder:
            return ", ".join(decoder.layers) or "nothing"
    except RenderCrashed as error:
        return f"unknown: {error}"


async def _failure_of(asking: Awaitable[object]) -> SiteLinkError | None:
    """The reason why the bucket did not answer, if it did not. That an object does not exist is an answer, too."""
    try:
        async with asyncio.timeout(BUCKET_TIMEOUT_S):
            await asking
    except BucketError as error:
        return error
    except TimeoutError:
        return StorageUnavailable(f"the bucket did not answer within {BUCKET_TIMEOUT_S:g} s")
    except ObjectMissing:
        pass
    return None
