"""Handles R2 events. The pull consumer and the push endpoint both pass each message to ``R2Events.decide``.

An R2 event says that a ``.dzi``, or the ``.pmtiles`` of a packed sheet, was written, so the sheet is complete. Usually the workflow knows
this before the event arrives. The event helps in the other cases: another program wrote the object, or the result of the workflow's own
activity was lost.

1. Only creations count. When SiteLink itself removes such an object, in a repair or a deletion, it also corrects the progress. When
   somebody else removes it, the next reconcile finds that. The event of a removal is ignored, because it may be older than a repair that
   wrote the object again.
2. Only the key of an event is trusted: the workflow verifies the sheet by a LIST. So a duplicate, late, reordered or forged event changes
   nothing.
3. A message that is not an R2 event is delivered a few times, because a newer release that can read it may be about to start. Then it is
   kept aside in the bucket. An R2 event that cannot be handled, because Temporal or the bucket does not answer, is never kept aside: it
   comes again for as long as the queue allows.

https://developers.cloudflare.com/r2/buckets/event-notifications/#message-format
"""

import asyncio
import base64
import json
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from activities.bucket.keys import UNREADABLE_EVENTS_PREFIX, UploadRef, sheet_of_marker, unreadable_event
from activities.bucket.records import SCHEMA, SheetStatus, timestamp, to_json, to_wire
from activities.bucket.storage import Bucket
from activities.errors import BucketError, ObjectMissing, SiteLinkError, StorageUnavailable, Terminated, UnreadableRecord, UploadNotFound
from activities.logs import set_log_context
from api.progress.runs import Runs
from api.progress.status import Status
from api.r2.settings import DEFAULT_ATTEMPTS, GATHER_S
from workflows.messages import SheetNumbers

logger = logging.getLogger(__name__)

CREATIONS = ("PutObject", "CopyObject", "CompleteMultipartUpload")

DECIDE_LIMIT_S = 20.0
"""How long a decision may take. The bucket may be slow, but the queue waits for the answer."""

FIRST_DELAY_S, LONGEST_DELAY_S = 5, 3600
"""The delay before the next attempt; it doubles with each attempt. 100 attempts, the most that a queue allows, fill the 4 days for which
Cloudflare keeps a message."""

HANDLED, DELAYED, IGNORED, UNREADABLE, KEPT = OUTCOMES = ("handled", "delayed", "ignored", "unreadable", "kept")
"""The outcomes of a message, in this order: the upload was told of the sheet; the message comes again, because Temporal or the bucket does
not answer; the message is about another object, or no object was created; the message is no R2 event, and comes again; the message is no
R2 event, and was kept aside."""

MAX_LISTED = 100
"""How many messages ``unreadable_events`` returns at most."""


@dataclass(frozen=True)
class Message:
    """One message of the queue.

    Args:
        id: The message's id in the queue.
        body: The message's bytes, as they were sent.
        attempts: How often the message was delivered, this time included.
    """

    id: str
    body: bytes
    attempts: int


@dataclass(frozen=True)
class Verdict:
    """The answer to the queue about a message.

    Args:
        retry_in_s: Whole seconds until the message should come again; None acknowledges it.
        failure: The error of Temporal or the bucket, if one is the reason why the message should come again.
    """

    retry_in_s: int | None = None
    failure: SiteLinkError | None = None


ACKNOWLEDGED = Verdict()


@dataclass(frozen=True)
class UnreadableEvent:
    """``events/unreadable/{sha256 of the message}.json``: a message that is not an R2 event.

    Args:
        message: The message's id in the queue.
        attempts: How often the message was delivered.
        error: Why the message cannot be read.
        kept_at: When the message was kept aside.
        body: The message's bytes, in base64.
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
    """The bucket and the whole key of the object that an R2 event reports as written; None if the event is not a creation.

    Raises:
        ValueError: The message is not an R2 event.
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


class R2Events:
    """Tells a workflow which sheets are stored in the bucket although its progress does not show them as ready.

    The events of one upload are gathered for some seconds. Then the upload's progress is read once, and its workflow is signalled only
    if one of the sheets is not ``ready``. In a healthy upload every sheet is ready by then, and no signal is sent.

    Args:
        bucket: The bucket that sends the events.
        status: Reads the progress of uploads.
        runs: Signals the workflows.
        attempts: How often a message that is not an R2 event is delivered before it is kept aside.
        gather_s: How long the events of an upload are gathered, in seconds.
        on_decided: Called after each decision with one of ``OUTCOMES``.
    """

    def __init__(
        self,
        bucket: Bucket,
        status: Status,
        runs: Runs,
        *,
        attempts: int = DEFAULT_ATTEMPTS,
        gather_s: float = GATHER_S,
        on_decided: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._bucket = bucket
        self._status = status
        self._runs = runs
        self._attempts = attempts
        self._gather_s = gather_s
        self._on_decided = on_decided
        self._gathering: dict[UploadRef, tuple[set[int], asyncio.Task[SiteLinkError | None]]] = {}
        self._tasks: set[asyncio.Task[SiteLinkError | None]] = set()
        self._gathering_stopped = asyncio.Event()

    async def decide(self, message: Message) -> Verdict:
        """Handles a message, together with the other messages of its upload that arrive at the same time.

        Returns:
            An acknowledgement if Temporal has the signal or no signal is needed; else when the message should come again.
        """
        outcome, verdict = await self._decide(message)
        self._on_decided(outcome)
        return verdict

    async def _decide(self, message: Message) -> tuple[str, Verdict]:
        try:
            created = created_object(message.body)
        except ValueError as error:
            return await self._decide_unreadable(message, error)
        key = self._bucket.own_key(*created) if created else None
        sheet = sheet_of_marker(key) if key else None
        if sheet is None:
            logger.debug("an event of another object, or not a creation", extra={"message_id": message.id})
            return IGNORED, ACKNOWLEDGED
        # A sender that closes its connection cancels only its own wait; the workflow still gets the signal.
        failure = await asyncio.shield(self._gather(*sheet))
        return (HANDLED, ACKNOWLEDGED) if failure is None else (DELAYED, Verdict(delay_s(message.attempts), failure))

    def stop_gathering(self) -> None:
        """Handles the gathered events now, and gathers no more."""
        self._gathering_stopped.set()

    async def close(self) -> None:
        """Cancels the running tasks. The queue delivers their messages again."""
        for task in self._tasks:
            task.cancel()
        for task in list(self._tasks):
            with suppress(asyncio.CancelledError):
                await task

    def _gather(self, ref: UploadRef, sheet: int) -> asyncio.Task[SiteLinkError | None]:
        if ref not in self._gathering:
            sheets: set[int] = set()
            task = asyncio.create_task(self._gather_and_signal(ref, sheets))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            self._gathering[ref] = sheets, task
        sheets, task = self._gathering[ref]
        sheets.add(sheet)
        return task

    async def _gather_and_signal(self, ref: UploadRef, sheets: set[int]) -> SiteLinkError | None:
        """Waits for more events of the upload, then signals its workflow.

        Returns:
            The error because of which the messages should come again, if there was one.
        """
        set_log_context(str(ref))  # the events of an upload come by many requests
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._gather_s):
                    await self._gathering_stopped.wait()
        finally:
            del self._gathering[ref]  # an event that arrives from now on begins a new gathering
        try:
            async with asyncio.timeout(DECIDE_LIMIT_S):
                await self._signal_workflow(ref, sheets)
        except UploadNotFound as error:
            logger.warning("R2 events of an upload that does not exist: %s", error, extra={"ref": str(ref), "sheets": len(sheets)})
        except SiteLinkError as error:
            logger.warning("R2 events wait: %s", error, extra={"ref": str(ref), "sheets": len(sheets)})
            return error
        except TimeoutError:
            logger.warning("R2 events wait: no answer", extra={"ref": str(ref), "sheets": len(sheets)})
            return StorageUnavailable(f"the progress of {ref} could not be read within {DECIDE_LIMIT_S:g} s")
        except Exception:
            # A bug must not lose the messages, so they should come again.
            logger.exception("R2 events could not be handled", extra={"ref": str(ref), "sheets": len(sheets)})
            return SiteLinkError("something is wrong on the server; its log says what")
        return None

    async def _signal_workflow(self, ref: UploadRef, sheets: Iterable[int]) -> None:
        state = await self._status.read(ref)
        if state.unreadable is not None:
            raise state.unreadable
        progress = state.snapshot
        if progress.reason == Terminated.__name__:
            # Only a person may resume a run that an operator ended. The event may come from a late writer.
            logger.info("R2 events of an upload whose run was ended", extra={"ref": str(ref)})
            return
        ready = {sheet.number for sheet in progress.sheets if sheet.status is SheetStatus.READY}
        last = progress.total_pages or max(sheets)  # before the pages are counted, only the workflow can tell which sheets exist
        wanted = tuple(sorted(number for number in set(sheets) - ready if number <= last))
        if wanted:
            logger.info("sheets are stored that are not ready", extra={"ref": str(ref), "sheets": wanted})
            await self._runs.reopen(ref, "sheets_stored", SheetNumbers(wanted))

    async def _decide_unreadable(self, message: Message, error: ValueError) -> tuple[str, Verdict]:
        if message.attempts < self._attempts:
            logger.warning("a message is not an R2 event: %s", error, extra={"message_id": message.id, "attempts": message.attempts})
            return UNREADABLE, Verdict(delay_s(message.attempts))
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
            return DELAYED, Verdict(delay_s(message.attempts), failure)
        except TimeoutError:
            return DELAYED, Verdict(
                delay_s(message.attempts), StorageUnavailable(f"{key} could not be written within {DECIDE_LIMIT_S:g} s")
            )
        logger.error("a message is not an R2 event and is kept aside: %s", error, extra={"message_id": message.id, "key": key})
        return KEPT, ACKNOWLEDGED


def unreadable_events(bucket: Bucket) -> list[dict[str, object]]:
    """The messages that were kept aside, newest first, at most 100. Blocks on the bucket.

    Raises:
        BucketError: The bucket failed.
    """
    newest = sorted(bucket.objects(UNREADABLE_EVENTS_PREFIX), key=lambda info: info.modified, reverse=True)[:MAX_LISTED]
    kept: list[dict[str, object]] = []
    for info in newest:
        # An object that was just removed, or that is not a readable record, is left out.
        with suppress(ObjectMissing, UnreadableRecord):
            kept.append({"key": info.key, **to_wire(bucket.get_record(UnreadableEvent, info.key))})
    return kept
