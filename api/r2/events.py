"""R2's event notifications: both ways in, the pull consumer and the push endpoint, end in ``Notices.decide``.

An event says that a ``.dzi`` was written, so that a sheet is complete. Mostly the workflow knows before the event is here. The event is
for the times when it does not: the ``.dzi`` was written behind its back, or its own word was lost.

1. Only creations count. A ``.dzi`` is removed by a repair or a deletion of ours, whose progress follows by itself; what somebody else
   removed is found by the next reconcile, and an event of it may be older than the repair that has put it back.
2. Nothing is trusted but the key: the workflow verifies the sheet by a LIST. So a duplicate, late, reordered or forged event
   changes nothing.
3. A message that is no event is tried again a few times, for a newer release may be on its way, and then kept aside in the bucket. Only
   such a message ever is; one whose upload cannot be told yet, because Temporal or the bucket does not answer, comes again for as long
   as the queue lets it.

https://developers.cloudflare.com/r2/buckets/event-notifications/#message-format
"""

import asyncio
import base64
import json
import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from activities.bucket.keys import UNREADABLE_EVENTS_PREFIX, UploadRef, sheet_of_descriptor, unreadable_event
from activities.bucket.records import SCHEMA, SheetStatus, timestamp, to_json, to_wire
from activities.bucket.storage import Bucket
from activities.errors import BucketError, ObjectMissing, SiteLinkError, StorageUnavailable, Terminated, UnreadableRecord, UploadNotFound
from api.runs import Runs
from api.settings import DEFAULT_EVENTS_ATTEMPTS, EVENTS_GATHER_S
from api.status import Status
from workflows.messages import SheetNumbers

logger = logging.getLogger(__name__)

CREATIONS = ("PutObject", "CopyObject", "CompleteMultipartUpload")

DECIDE_LIMIT_S = 20.0
"""A bucket may be slow; a queue waits for its answer."""

FIRST_DELAY_S, LONGEST_DELAY_S = 5, 3600
"""Doubled from attempt to attempt. 100 attempts, the most that Cloudflare makes, then take as long as a message is kept: 4 days."""

SHOWN = 100


@dataclass(frozen=True)
class Message:
    """One message of the queue.

    Args:
        id: The queue's.
        body: As it was sent.
        attempts: How often it was delivered, this time included.
    """

    id: str
    body: bytes
    attempts: int


@dataclass(frozen=True)
class Verdict:
    """What the queue is told about a message.

    Args:
        retry_in_s: Whole seconds until it should come again; None acknowledges it.
        failure: What did not answer, if that is why it should come again.
    """

    retry_in_s: int | None = None
    failure: SiteLinkError | None = None


ACKNOWLEDGED = Verdict()


@dataclass(frozen=True)
class UnreadableEvent:
    """``events/unreadable/{sha256 of the message}.json``: a message that is no event.

    Args:
        message: The queue's id of it.
        attempts: How often it was delivered.
        error: Why it cannot be read.
        kept_at: When it was given up.
        body: As it came, in base64.
    """

    message: str
    attempts: int
    error: str
    kept_at: str
    body: str
    schema: int = SCHEMA


def delay_s(attempts: int) -> int:
    """Seconds until a message should come again after so many attempts."""
    return min(LONGEST_DELAY_S, FIRST_DELAY_S << min(max(attempts, 1) - 1, 20))


def created_object(body: bytes) -> tuple[str, str] | None:
    """The bucket and the whole key of the object that an event says was written; None when it says something else.

    Raises:
        ValueError: It is no event.
    """
    try:
        event = json.loads(body)
    except RecursionError as error:
        msg = "the JSON is nested too deeply"
        raise ValueError(msg) from error
    match event:
        case {"action": str(action), "bucket": str(bucket), "object": {"key": str(key)}}:
            return (bucket, key) if action in CREATIONS else None
    msg = "an event is a JSON object with action, bucket and object.key"
    raise ValueError(msg)


class Notices:
    """Tells workflows of sheets that are in the bucket and that they do not know.

    The events of one upload are gathered for some seconds; then its progress is asked for once, and its workflow is signalled only
    if a sheet is not ``ready``. In a healthy upload all are by then, and nothing is signalled.

    Args:
        bucket: Whose events these are.
        status: Knows the uploads.
        runs: Takes the signals.
        attempts: How often a message that is no event is delivered before it is kept aside.
        gather_s: Seconds.
    """

    def __init__(
        self, bucket: Bucket, status: Status, runs: Runs, *, attempts: int = DEFAULT_EVENTS_ATTEMPTS, gather_s: float = EVENTS_GATHER_S
    ) -> None:
        self._bucket = bucket
        self._status = status
        self._runs = runs
        self._attempts = attempts
        self._gather_s = gather_s
        self._gathering: dict[UploadRef, tuple[set[int], asyncio.Task[SiteLinkError | None]]] = {}
        self._tasks: set[asyncio.Task[SiteLinkError | None]] = set()
        self._hurry = asyncio.Event()

    async def decide(self, message: Message) -> Verdict:
        """Does what a message asks for; what comes at the same time is done together.

        Returns:
            An acknowledgement once there is nothing left to do: Temporal has the signal, or none is needed.
        """
        try:
            created = created_object(message.body)
        except ValueError as error:
            return await self._unreadable(message, error)
        key = self._bucket.own_key(*created) if created else None
        sheet = sheet_of_descriptor(key) if key else None
        if sheet is None:
            logger.debug("an event of something else", extra={"message_id": message.id})
            return ACKNOWLEDGED
        # Who waits for it may go; the upload is told all the same.
        failure = await asyncio.shield(self._gathered(*sheet))
        return ACKNOWLEDGED if failure is None else Verdict(delay_s(message.attempts), failure)

    def hurry(self) -> None:
        """Gathers no longer: what waits is done now."""
        self._hurry.set()

    async def close(self) -> None:
        """Ends what is under way; its messages come again."""
        for task in self._tasks:
            task.cancel()
        for task in list(self._tasks):
            with suppress(asyncio.CancelledError):
                await task

    def _gathered(self, ref: UploadRef, sheet: int) -> asyncio.Task[SiteLinkError | None]:
        if ref not in self._gathering:
            sheets: set[int] = set()
            task = asyncio.create_task(self._settle(ref, sheets))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            self._gathering[ref] = sheets, task
        sheets, task = self._gathering[ref]
        sheets.add(sheet)
        return task

    async def _settle(self, ref: UploadRef, sheets: set[int]) -> SiteLinkError | None:
        """Waits for more events of the upload, then tells it; returns what did not answer."""
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._gather_s):
                    await self._hurry.wait()
        finally:
            del self._gathering[ref]  # what comes from now on is gathered anew
        try:
            async with asyncio.timeout(DECIDE_LIMIT_S):
                await self._tell(ref, sheets)
        except UploadNotFound as error:
            logger.warning("events of no upload: %s", error, extra={"ref": str(ref), "sheets": len(sheets)})
        except SiteLinkError as error:
            logger.warning("events wait: %s", error, extra={"ref": str(ref), "sheets": len(sheets)})
            return error
        except TimeoutError:
            logger.warning("events wait: no answer", extra={"ref": str(ref), "sheets": len(sheets)})
            return StorageUnavailable(f"the progress of {ref} could not be read within {DECIDE_LIMIT_S:g} s")
        except Exception:
            # Whatever it is, the message must not be lost: it comes again.
            logger.exception("events could not be handled", extra={"ref": str(ref), "sheets": len(sheets)})
            return SiteLinkError("something is wrong here; the server's log says what")
        return None

    async def _tell(self, ref: UploadRef, sheets: Iterable[int]) -> None:
        known = await self._status.read(ref)
        if known.unreadable is not None:
            raise known.unreadable
        progress = known.snapshot
        if progress.reason == Terminated.__name__:
            # A run that somebody ended goes on when somebody asks for it, not because a late writer was heard of.
            logger.info("events of an upload whose run was ended", extra={"ref": str(ref)})
            return
        ready = {sheet.number for sheet in progress.sheets if sheet.status is SheetStatus.READY}
        last = progress.total_pages or max(sheets)  # until the pages are counted, the workflow itself judges
        wanted = tuple(sorted(number for number in set(sheets) - ready if number <= last))
        if wanted:
            logger.info("sheets are stored that are not ready", extra={"ref": str(ref), "sheets": wanted})
            await self._runs.reopen(ref, "sheets_stored", SheetNumbers(wanted))

    async def _unreadable(self, message: Message, error: ValueError) -> Verdict:
        if message.attempts < self._attempts:
            logger.warning("a message is no event: %s", error, extra={"message_id": message.id, "attempts": message.attempts})
            return Verdict(delay_s(message.attempts))
        key = unreadable_event(message.body)
        record = UnreadableEvent(
            message.id[:200].encode(errors="replace").decode(),
            message.attempts,
            str(error)[:500],
            timestamp(datetime.now(UTC)),
            base64.b64encode(message.body).decode(),
        )
        try:
            async with asyncio.timeout(DECIDE_LIMIT_S):
                await self._bucket.put_async(key, to_json(record))
        except BucketError as failure:
            return Verdict(delay_s(message.attempts), failure)
        except TimeoutError:
            return Verdict(delay_s(message.attempts), StorageUnavailable(f"{key} could not be written within {DECIDE_LIMIT_S:g} s"))
        logger.error("a message is no event and is kept aside: %s", error, extra={"message_id": message.id, "key": key})
        return ACKNOWLEDGED


def unreadable_events(bucket: Bucket) -> list[dict[str, object]]:
    """The messages that were kept aside, newest first, at most 100; blocks.

    Raises:
        BucketError: The bucket failed.
    """
    newest = sorted(bucket.objects(UNREADABLE_EVENTS_PREFIX), key=lambda info: info.modified, reverse=True)[:SHOWN]
    kept: list[dict[str, object]] = []
    for info in newest:
        # What somebody has just removed, or put there himself, is none of them.
        with suppress(ObjectMissing, UnreadableRecord):
            kept.append({"key": info.key, **to_wire(bucket.get_record(UnreadableEvent, info.key))})
    return kept
