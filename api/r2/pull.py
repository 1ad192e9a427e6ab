"""``python -m api events``: takes R2 events from a Cloudflare Queue by HTTP pull.

A pull leases its messages for some time. A message that is neither acknowledged nor handed back in that time comes again. So a failure
here loses no message. At worst a message comes twice, which changes nothing (``api.r2.events``).

https://developers.cloudflare.com/queues/configuration/pull-consumers/
"""

import asyncio
import base64
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx2
from temporalio.client import Client

from activities.bucket.location import BucketSettings
from activities.bucket.storage import Bucket
from api.progress.runs import Runs
from api.progress.status import Status
from api.r2.events import Message, R2Events, Verdict
from api.r2.settings import PullSettings

logger = logging.getLogger(__name__)

BATCH_SIZE = 100
"""The most messages that one pull may bring."""
BATCHES_AT_ONCE = 8
VISIBILITY_S = 60
"""How long a message is leased: more than twice the time that ``R2Events`` may take to decide about it."""
IDLE_S = 5.0
"""The pause after a pull that brought less than a full batch, because a pull does not wait for messages."""
REQUEST_TIMEOUT_S = 30.0
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 1.0, 60.0
STOP_S = 5.0
"""How long a stopping consumer works on the messages that it has. The others come again when their lease ends."""


class QueueUnavailable(Exception):
    """The queue's API refused or did not answer.

    Args:
        message: The failed request, and the answer or the error.
        retry_after_s: The seconds in the answer's ``Retry-After``, if there is one.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class LeasedMessage:
    """A message, and the id of the lease that acknowledges it."""

    lease_id: str
    message: Message


class PullQueue:
    """One Cloudflare Queue.

    Args:
        settings: The address of the queue, and the token.
        http: Makes the requests.
    """

    def __init__(self, settings: PullSettings, http: httpx2.AsyncClient) -> None:
        self._address = f"{settings.url}/accounts/{settings.account}/queues/{settings.queue}/messages"
        self._headers = {"Authorization": f"Bearer {settings.token}"}
        self._http = http

    async def pull(self, visibility_s: float) -> list[LeasedMessage]:
        """Leases up to 100 messages for ``visibility_s`` seconds.

        Raises:
            QueueUnavailable: The queue's API failed.
        """
        result = await self._post("pull", {"batch_size": BATCH_SIZE, "visibility_timeout_ms": int(visibility_s * 1000)})
        entries = result.get("messages") or []
        leased = [entry for entry in map(_read_entry, entries) if entry is not None]
        if len(leased) < len(entries):
            logger.error("the queue's API sent messages that have no lease", extra={"messages": len(entries) - len(leased)})
        return leased

    async def acknowledge(self, decided: Sequence[tuple[LeasedMessage, Verdict]]) -> None:
        """Tells the queue which messages are done, and when the others should come again.

        Raises:
            QueueUnavailable: The queue's API failed.
        """
        body = {
            "acks": [{"lease_id": leased.lease_id} for leased, verdict in decided if verdict.retry_in_s is None],
            "retries": [
                {"lease_id": leased.lease_id, "delay_seconds": verdict.retry_in_s}
                for leased, verdict in decided
                if verdict.retry_in_s is not None
            ],
        }
        result = await self._post("ack", body)
        if result.get("warnings"):
            # The usual reason is a lease that has ended. Its message comes again and is handled again.
            logger.warning("the queue's API warns: %.500s", result["warnings"])

    async def _post(self, action: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            response = await self._http.post(f"{self._address}/{action}", json=body, headers=self._headers, timeout=REQUEST_TIMEOUT_S)
            answer = response.json()
        except httpx2.HTTPError as error:
            msg = f"{action}: {type(error).__name__}: {error}"
            raise QueueUnavailable(msg) from None
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            answer = {}
        result = answer.get("result")
        if response.is_success and answer.get("success") is True and isinstance(result, dict | None):
            return result or {}
        after = response.headers.get("retry-after", "")
        msg = f"{action}: HTTP {response.status_code} {str(answer.get('errors') or '')[:500]}"
        raise QueueUnavailable(msg, float(after) if after.isascii() and after.isdigit() and len(after) < 6 else None)


def _read_entry(entry: object) -> LeasedMessage | None:
    match entry:
        case {"lease_id": str(lease_id), **rest}:
            metadata, attempts, body = rest.get("metadata"), rest.get("attempts"), rest.get("body")
            kind = metadata.get("CF-Content-Type") if isinstance(metadata, dict) else None
            return LeasedMessage(
                lease_id,
                Message(
                    str(rest.get("id")),
                    sent_body(body if isinstance(body, str) else "", kind),
                    attempts if isinstance(attempts, int) else 1,
                ),
            )
    return None


def sent_body(body: str, content_type: object) -> bytes:
    """The bytes of a message as they were sent. Cloudflare's API gives ``json`` and ``bytes`` in base64, ``text`` as it is.

    A body that is not base64 is also taken as it is, because Cloudflare's own examples show such bodies.
    """
    if content_type != "text":
        with suppress(ValueError):
            return base64.b64decode(body, validate=True)
    return body.encode("utf-8", "surrogatepass")


class Consumer:
    """Takes messages from the queue, has them handled and acknowledges them.

    Args:
        queue: The queue.
        r2_events: Handles each message.
        idle_s: Seconds to pause after a pull that brought less than a full batch.
        visibility_s: How long a message is leased, in seconds.
        first_backoff_s: Seconds until a failed request is made again; doubled while it fails.
    """

    def __init__(
        self,
        queue: PullQueue,
        r2_events: R2Events,
        *,
        idle_s: float = IDLE_S,
        visibility_s: float = VISIBILITY_S,
        first_backoff_s: float = FIRST_BACKOFF_S,
    ) -> None:
        self._queue = queue
        self._r2_events = r2_events
        self._idle_s = idle_s
        self._visibility_s = visibility_s
        self._first_backoff_s = first_backoff_s
        self._slots = asyncio.Semaphore(BATCHES_AT_ONCE)
        self._batches: set[asyncio.Task[None]] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Runs until ``stop`` is set, and some seconds longer for the messages that it has."""
        pulling = asyncio.create_task(self._pull_forever())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({pulling, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if pulling.done():
                pulling.result()  # only a bug ends the pulling; this raises it
        finally:
            stopping.cancel()
            pulling.cancel()
            self._r2_events.stop_gathering()
            if self._batches:
                await asyncio.wait(self._batches, timeout=STOP_S)
            for batch in self._batches:
                batch.cancel()
            await asyncio.gather(pulling, stopping, *self._batches, return_exceptions=True)
            await self._r2_events.close()

    async def _pull_forever(self) -> None:
        backoff_s = self._first_backoff_s
        while True:
            await self._slots.acquire()
            leased: list[LeasedMessage] = []
            try:
                leased_until = time.monotonic() + self._visibility_s
                leased = await self._queue.pull(self._visibility_s)
                pause_s, backoff_s = 0.0 if len(leased) >= BATCH_SIZE else self._idle_s, self._first_backoff_s
            except QueueUnavailable as error:
                pause_s = error.retry_after_s if error.retry_after_s is not None else backoff_s
                backoff_s = min(LONGEST_BACKOFF_S, backoff_s * 2)
                logger.warning("the queue's API fails, asked again in %.0f s: %s", pause_s, error)
            finally:
                if not leased:
                    self._slots.release()
            if leased:
                batch = asyncio.create_task(self._handle(leased, leased_until))
                self._batches.add(batch)
                batch.add_done_callback(self._end_batch)
            await asyncio.sleep(pause_s)

    def _end_batch(self, batch: asyncio.Task[None]) -> None:
        self._batches.discard(batch)
        self._slots.release()
        if not batch.cancelled() and (error := batch.exception()):
            logger.error("a batch could not be handled; its messages come again", exc_info=error)

    async def _handle(self, leased: Sequence[LeasedMessage], leased_until: float) -> None:
        verdicts = await asyncio.gather(*(self._r2_events.decide(entry.message) for entry in leased))
        decided = list(zip(leased, verdicts, strict=True))
        backoff_s = self._first_backoff_s
        while True:
            try:
                await self._queue.acknowledge(decided)
            except QueueUnavailable as error:
                pause_s = error.retry_after_s if error.retry_after_s is not None else backoff_s
                backoff_s *= 2
                if time.monotonic() + pause_s > leased_until:
                    logger.warning("the messages could not be acknowledged before their lease ends; they come again: %s", error)
                    return
                logger.warning("the messages could not be acknowledged; tried again in %.0f s: %s", pause_s, error)
                await asyncio.sleep(pause_s)
            else:
                return


async def take_events(
    connect: Callable[[], Awaitable[Client]],
    settings: PullSettings,
    bucket_settings: BucketSettings,
    stop: asyncio.Event,
    on_decided: Callable[[str], None],
) -> None:
    """Takes R2 events from the queue until ``stop`` is set.

    Args:
        connect: Gives the Temporal client when it is first needed; a lazy client, so that this process starts without Temporal.
        settings: The address of the queue, and the token.
        bucket_settings: The bucket that sends the events.
        stop: Ends the consumer when it is set.
        on_decided: Called after each decision about a message, with its outcome.
    """
    bucket, runs = Bucket(bucket_settings), Runs(connect)
    r2_events = R2Events(bucket, Status(bucket, runs), runs, attempts=settings.attempts, on_decided=on_decided)
    async with httpx2.AsyncClient() as http:
        await Consumer(PullQueue(settings, http), r2_events).run(stop)
