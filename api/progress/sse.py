"""The live progress of uploads, as Server-Sent Events. One watcher per upload asks Temporal; any number of event streams send its state.

A watcher keeps one current state and no log. A stream remembers the version that it sent last, and sends the sheets that changed since that
version. So a slow client gets fewer and larger changes, and never delays another client.
"""

import asyncio
import logging
import secrets
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from activities.bucket.keys import UploadRef
from activities.bucket.records import Snapshot, to_json
from activities.errors import (
    BucketError,
    ServerBusy,
    SiteLinkError,
    TemporalUnavailable,
    TooManyRequests,
    UnreadableRecord,
    UploadNotFound,
)
from activities.logs import set_log_context
from api.http.problems import refusal
from api.progress.runs import NoRun, Runs
from api.progress.status import Status, UploadState, is_unloaded

logger = logging.getLogger(__name__)

PING_S = 15
RETRY_MS = 1000
FIRST_STATE_TIMEOUT_S = 5.0
SEND_TIMEOUT_S = 30.0
"""A client that takes no bytes for longer is cut off. An EventSource then reconnects by itself."""
POLL_S = 1.0
MAX_POLL_S = 5.0
LONGEST_PAUSE_S = 30.0
"""The longest pause after an unexpected failure of a watcher, such as a change that this release cannot read during a deploy."""
POLLING_S = 60.0
"""How long the watcher only queries, after its update has failed to deliver a change."""
REPEAT_PAUSE_S = 0.05
MAX_FRAMES = 16
"""How many events a watcher keeps for its clients. Nearly all clients need the newest change or the snapshot."""
NO_SHEET = -1
"""Older than every version."""

_PROCESS = secrets.token_hex(6)
"""Names this process in the ids of its updates."""


class Watcher:
    """Keeps the current progress of one upload, while somebody watches it.

    Args:
        ref: The upload.
        status: Reads the upload's state.
        runs: Waits for its changes.
    """

    def __init__(self, ref: UploadRef, status: Status, runs: Runs) -> None:
        self.ref = ref
        self.subscribers = 0
        self.snapshot: Snapshot | None = None
        self.certain = True
        """False when Temporal or the bucket does not answer, so that ``snapshot`` is only the last known state."""
        self.final: bytes | None = None
        """The data of the event ``end``, once the run has ended."""
        self.deleted = False
        """Whether the upload was deleted."""
        self.changed = asyncio.Event()
        """Set at the next change; then a new event takes its place."""
        self._status = status
        self._runs = runs
        self._frames: dict[int | None, bytes] = {}
        self._versions: list[int] | None = None
        """The versions of the sheets, sorted; made when a client asks for changes."""
        self._ended_updates = 0
        """Counts the updates that ended without a change: their ids are used up."""

    @property
    def is_over(self) -> bool:
        """Whether this watcher will publish no further change."""
        return self.deleted or self.final is not None

    def has_news(self, after: int) -> bool:
        """Whether a client with the version ``after`` should have the current state. A state that would take it back is no news."""
        if self.snapshot is None or self.snapshot.version == after:
            return False
        return self.snapshot.version > after or (self.certain and not is_unloaded(self.snapshot))

    def frame(self, snapshot: Snapshot, since: int | None) -> bytes:
        """The event that brings a client from version ``since`` to the current ``snapshot``; None is a client without a version.

        It is encoded once for all clients. Clients that lack the same sheets share it, whatever version they name, so there are at most as
        many events as versions of sheets. Only the events of the last ``MAX_FRAMES`` versions that a client asked for are kept.
        """
        if since is not None:
            since = self._known_version(snapshot, since)
        if since not in self._frames:
            if since is None:
                event = _encode_event("snapshot", snapshot.version, to_json(snapshot))
            else:
                changed = tuple(sheet for sheet in snapshot.sheets if sheet.version > since)
                event = _encode_event("change", snapshot.version, to_json(replace(snapshot, sheets=changed)))
            if len(self._frames) >= MAX_FRAMES:
                del self._frames[next(iter(self._frames))]
            self._frames[since] = event
        return self._frames[since]

    def _known_version(self, snapshot: Snapshot, since: int) -> int:
        """The newest version of a sheet that a client with version ``since`` has: clients with the same one lack the same sheets."""
        if self._versions is None:
            self._versions = sorted({sheet.version for sheet in snapshot.sheets})
        index = bisect_right(self._versions, since)
        return self._versions[index - 1] if index else NO_SHEET

    def _publish(self, snapshot: Snapshot | None, *, certain: bool = True, final: bytes | None = None, deleted: bool = False) -> None:
        if self.deleted or (snapshot, certain, final, deleted) == (self.snapshot, self.certain, self.final, self.deleted):
            return
        self.snapshot, self.certain, self.final, self.deleted = snapshot, certain, final, deleted
        self._frames.clear()
        self._versions = None
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def end(self) -> None:
        """Ends every stream, because the upload was deleted. A client that reconnects gets ``UploadNotFound``."""
        self._publish(self.snapshot, deleted=True)

    async def run(self) -> None:
        """Watches until the run has ended, the upload is deleted or this task is cancelled. Even an unexpected failure does not end it."""
        set_log_context(str(self.ref))  # the watcher serves many requests, not only the first one
        pause_s = POLL_S
        while not self.is_over:
            version = self.snapshot.version if self.snapshot else None
            try:
                await self._watch()
            except Exception:
                if self.snapshot is not None and self.snapshot.version != version:
                    pause_s = POLL_S
                logger.exception("a watcher failed, it begins again", extra={"ref": str(self.ref), "pause_s": pause_s})
                self._publish_doubt("the server's log says why")
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _publish_doubt(self, why: object) -> None:
        """Publishes the last known state again, with a warning."""
        if self.snapshot is not None:
            self._publish(replace(self.snapshot, warning=f"this may not be the latest state: {why}"), certain=False)

    async def _watch(self) -> None:
        pause_s = POLL_S
        polling_until = 0.0
        overdue = False
        while not self.is_over:
            state = await self._read()
            if state is None or not state.certain:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, MAX_POLL_S)
                continue
            pause_s = POLL_S
            if overdue and self.snapshot is not None and state.snapshot.version > self.snapshot.version:
                # The update should have delivered this change. Too many updates wait already, so Temporal silently retries ours.
                logger.info("the update does not deliver, queries instead", extra={"ref": str(self.ref)})
                polling_until = time.monotonic() + POLLING_S
            self._publish(state.snapshot, final=state.final)
            overdue = False
            if time.monotonic() < polling_until:
                await asyncio.sleep(POLL_S)
            elif not self.is_over:
                overdue = await self._follow(state.snapshot)

    async def _read(self) -> UploadState | None:
        try:
            state = await self._status.with_standstill_warning(self.ref, await self._status.read(self.ref))
        except UploadNotFound:
            self.end()
            return None
        except SiteLinkError as error:  # the bucket failed
            self._publish_doubt(error)
            return None
        if not state.certain and (self.snapshot is None or state.snapshot.version >= self.snapshot.version):
            self._publish(state.snapshot, certain=False)
        return state

    async def _follow(self, snapshot: Snapshot) -> bool:
        """Publishes changes until the whole state must be read again.

        Returns:
            Whether it must be read because no change came in time.
        """
        while True:
            version = snapshot.version
            try:
                change = await self._runs.progress_after(self.ref, version, f"watch-{_PROCESS}-{version}-{self._ended_updates}")
            except (NoRun, TemporalUnavailable):
                await asyncio.sleep(REPEAT_PAUSE_S)
                return False
            if change is None:
                return True
            if change.version == version:
                # Too many updates wait, or the run is closing. The update with this id has ended, so the next wait needs a new id.
                self._ended_updates += 1
                await asyncio.sleep(REPEAT_PAUSE_S if change.status.is_final else POLL_S)
                return False
            snapshot = _merge(snapshot, change)
            self._status.remember(self.ref, snapshot)
            self._publish(snapshot)


class Hub:
    """The watchers of this process: one for each upload that somebody watches.

    Args:
        status: Reads states.
        runs: Waits for changes.
        max_streams: How many clients may stream or wait at once; of one organization at most three quarters of them.
    """

    def __init__(self, status: Status, runs: Runs, max_streams: int = 6000) -> None:
        self._status = status
        self._runs = runs
        self._max_streams = max_streams
        self._streams: Counter[str] = Counter()
        """How many clients of each organization stream or wait."""
        self._watchers: dict[UploadRef, tuple[Watcher, asyncio.Task[None]]] = {}

    def subscribe(self, ref: UploadRef) -> Watcher:
        """The watcher of an upload. The caller must give it back with ``release``."""
        entry = self._watchers.get(ref)
        if entry is None or entry[0].is_over or entry[1].done():
            watcher = Watcher(ref, self._status, self._runs)
            task = asyncio.create_task(watcher.run())
            task.add_done_callback(_log_failure)
            entry = self._watchers[ref] = (watcher, task)
        entry[0].subscribers += 1
        return entry[0]

    def release(self, watcher: Watcher) -> None:
        """Gives a watcher back. When its last subscriber has gone, the watcher ends."""
        watcher.subscribers -= 1
        entry = self._watchers.get(watcher.ref)
        if watcher.subscribers == 0 and entry is not None and entry[0] is watcher:
            del self._watchers[watcher.ref]
            entry[1].cancel()

    async def next_state(self, ref: UploadRef, after: int, wait_s: float) -> UploadState:
        """The state of an upload, as soon as a client with the version ``after`` should have it, and at the latest after ``wait_s``.

        Raises:
            UploadNotFound: There is no such upload, or it was deleted while the client waited.
            BucketError: The bucket failed before the upload was found, or there is no state yet.
            ServerBusy, TooManyRequests: Too many clients stream or wait already.
        """
        if (error := self._too_many_error(ref)) is not None:
            raise error
        await self._status.check(ref)
        watcher = self._subscribe_stream(ref)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    while not (watcher.is_over or watcher.has_news(after)):
                        await watcher.changed.wait()
            if watcher.snapshot is None or watcher.deleted:
                return await self._status.read(ref)
            with suppress(UnreadableRecord):
                return UploadState(watcher.snapshot, watcher.final, watcher.certain, await self._status.record(ref))
            return UploadState(watcher.snapshot, watcher.final, watcher.certain)
        finally:
            self._release_stream(watcher)

    def end(self, ref: UploadRef) -> None:
        """Ends the streams of an upload that was deleted."""
        if entry := self._watchers.get(ref):
            entry[0].end()

    async def close(self) -> None:
        """Ends all watching."""
        tasks = [task for _, task in self._watchers.values()]
        self._watchers.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def respond(self, ref: UploadRef, request: Request) -> Response:
        """``GET …/events``.

        Raises:
            UploadNotFound: There is no such upload. No other error is raised, because an error answer ends an EventSource for good.
        """
        if (error := self._too_many_error(ref)) is not None:
            return refusal(error, request.scope)
        after = _last_event_id(request)
        try:
            await self._status.check(ref)
        except BucketError as error:
            logger.warning("opens an event stream before the bucket answers", extra={"ref": str(ref), "problem": str(error)})
        watcher = self._subscribe_stream(ref)
        try:
            await _first_state(watcher)
            if watcher.final is not None and watcher.snapshot is not None and watcher.snapshot.version == after:
                self._release_stream(watcher)
                return Response(status_code=204, headers={"Cache-Control": "no-store"})
        except BaseException:
            self._release_stream(watcher)
            raise
        return _Stream(stream_events(watcher, after), lambda: self._release_stream(watcher))

    def _too_many_error(self, ref: UploadRef) -> SiteLinkError | None:
        if self._streams.total() >= self._max_streams:
            return ServerBusy(f"{self._max_streams:,} event streams are open, and no more may be")
        share = max(1, self._max_streams * 3 // 4)
        if self._streams[ref.organization] >= share:
            return TooManyRequests(f"{share:,} event streams of {ref.organization} are open, and no more may be")
        return None

    def _subscribe_stream(self, ref: UploadRef) -> Watcher:
        self._streams[ref.organization] += 1
        return self.subscribe(ref)

    def _release_stream(self, watcher: Watcher) -> None:
        self._streams[watcher.ref.organization] -= 1
        if not self._streams[watcher.ref.organization]:
            del self._streams[watcher.ref.organization]
        self.release(watcher)


class _Stream(EventSourceResponse):
    """An event stream that gives its watcher back when it ends, even if it ends before it began."""

    def __init__(self, events: AsyncIterator[bytes], release: Callable[[], None]) -> None:
        super().__init__(
            events,
            headers={"Cache-Control": "no-store, no-transform"},
            ping=PING_S,
            ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
            sep="\n",
            send_timeout=SEND_TIMEOUT_S,
        )
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            logger.info("cut off a client that takes nothing", extra={"path": scope["path"]})
        finally:
            self._release()


async def stream_events(watcher: Watcher, after: int | None) -> AsyncIterator[bytes]:
    """The events of one client.

    Args:
        watcher: The upload's watcher.
        after: The version that the client has, if any. Such a client gets no state that would take it back: neither a last known state that
            is older than its version, nor the state of a run that lost its history and has not counted the pages again.
    """
    sent = after
    knows_pages = after is not None  # a client that has a version has probably seen the pages
    warning: str | None = None
    prefix = f"retry: {RETRY_MS}\n".encode()
    if watcher.snapshot is None:
        yield prefix + b"\n"  # there is no state yet; this shows the client that it is connected
        prefix = b""
    while not watcher.deleted:
        changed, snapshot = watcher.changed, watcher.snapshot
        is_sent = snapshot is None or (snapshot.version, snapshot.warning) == (sent, warning)
        if snapshot is not None and not is_sent and not (_is_behind(watcher, snapshot, sent) or (knows_pages and is_unloaded(snapshot))):
            since = sent if sent is not None and sent <= snapshot.version else None
            sent, warning = snapshot.version, snapshot.warning
            knows_pages = knows_pages or not is_unloaded(snapshot)
            yield prefix + watcher.frame(snapshot, since)
            prefix = b""
            continue  # the state may have changed while the event was sent
        if snapshot is not None and watcher.final is not None:
            yield prefix + _encode_event("end", snapshot.version, watcher.final)
            return
        await changed.wait()


def _is_behind(watcher: Watcher, snapshot: Snapshot, sent: int | None) -> bool:
    """Whether the watcher has only a last known state, and this state is older than the client's."""
    return not watcher.certain and sent is not None and snapshot.version < sent


async def _first_state(watcher: Watcher) -> None:
    try:
        async with asyncio.timeout(FIRST_STATE_TIMEOUT_S):
            while watcher.snapshot is None and not watcher.deleted:
                await watcher.changed.wait()
    except TimeoutError:
        return


def _last_event_id(request: Request) -> int | None:
    """The version that a reconnecting client has. A malformed id counts as None, because an error would end an EventSource for good."""
    for text in (request.headers.get("last-event-id"), request.query_params.get("after")):
        if text and text.isascii() and text.isdigit() and len(text) <= 18:
            return int(text)
    return None


def _merge(snapshot: Snapshot, change: Snapshot) -> Snapshot:
    """The state after a change. A change with an earlier version holds the whole state."""
    if change.version < snapshot.version:
        return change
    sheets = {sheet.number: sheet for sheet in snapshot.sheets if sheet.number <= change.total_pages}
    sheets.update((sheet.number, sheet) for sheet in change.sheets)
    return replace(change, sheets=tuple(sheets[number] for number in sorted(sheets)))


def _encode_event(name: str, version: int, data: bytes) -> bytes:
    return ServerSentEvent(data.decode(), event=name, id=str(version), sep="\n").encode()


def _log_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and task.exception() is not None:
        logger.error("a watcher failed", exc_info=task.exception())
